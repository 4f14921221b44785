"""Repeating the paper's evaluation: recipes in, stored results and tables out."""
