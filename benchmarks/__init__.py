"""What scoring costs, measured against its limit and against other ways to the same numbers."""
