"""What Python callers use: rows in memory in, decisions out. Its names are those of `clues`."""
