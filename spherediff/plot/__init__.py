"""Figures of fields on the sphere: maps, panels, spectra, marginals and training curves.

Every function draws on plain matplotlib axes, returns the artists it made and never shows or
saves.  Nothing global is changed: sizes and fonts follow the reader's matplotlib style.
"""

from spherediff.plot.curves import Curves, degree_spectrum, marginals, training_curve
from spherediff.plot.maps import Map, mollweide, orthographic
from spherediff.plot.panels import Panels, compare, moments, panels

__all__ = [
    "Curves",
    "Map",
    "Panels",
    "compare",
    "degree_spectrum",
    "marginals",
    "mollweide",
    "moments",
    "orthographic",
    "panels",
    "training_curve",
]
