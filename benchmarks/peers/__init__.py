"""Clues beside other programs that score rows by gradients, each on the same model in memory."""
