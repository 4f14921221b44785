"""The public side of the wall: it sees public rows and replies, never a silo's rows."""
