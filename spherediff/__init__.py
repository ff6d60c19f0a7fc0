"""Infinite-dimensional random-field diffusion on the sphere."""
