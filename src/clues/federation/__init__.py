"""The wall and its two sides."""
