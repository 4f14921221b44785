"""From scores to decisions: units of the anchors, weights of parts, one threshold, a row's fate."""
