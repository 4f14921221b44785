"""What a run found, as results.json holds it: types without torch that reports and scripts read."""
