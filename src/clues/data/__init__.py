"""Rows in, tokens out."""
