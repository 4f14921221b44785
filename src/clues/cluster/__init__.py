"""A silo's own Ray cluster: who scores and trains in the silo's place, inside its own network."""
