"""Figures, a file for each family."""
