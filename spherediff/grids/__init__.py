"""Grids on the sphere."""
