"""Scores of rows; higher is better, always."""
