"""Grids on the sphere: synthesis, analysis and adjoint, differentiable and batched."""

from spherediff.grids.gauss_legendre import GaussLegendre
from spherediff.grids.grid import Grid
from spherediff.grids.healpix import HEALPix, Solution
from spherediff.grids.latlon import LatLon
from spherediff.grids.points import Points

__all__ = ["GaussLegendre", "Grid", "HEALPix", "LatLon", "Points", "Solution"]
