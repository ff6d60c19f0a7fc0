"""Can generated maps be told from an archive?  Distances, noise floors, classifiers, copies."""

from spherediff.metrics.card import Scorecard, scorecard
from spherediff.metrics.features import octaves
from spherediff.metrics.judge import Row

__all__ = ["Row", "Scorecard", "octaves", "scorecard"]
