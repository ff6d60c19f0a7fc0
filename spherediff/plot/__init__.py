"""Figures: maps, panels, spectra, marginals, training curves and scorecards.

Every function draws on plain matplotlib axes, returns the artists it made and never shows or
saves.  Nothing global is changed: sizes and fonts follow the reader's matplotlib style.
"""

from spherediff.plot.curves import Curves, degree_spectrum, marginals, training_curve
from spherediff.plot.maps import Map, mollweide, orthographic
from spherediff.plot.panels import Panels, compare, moments, panels
from spherediff.plot.scorecard import scorecard

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
    "scorecard",
    "training_curve",
]
