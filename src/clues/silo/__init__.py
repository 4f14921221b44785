"""The private side of the wall: everything that may see a silo's rows."""
