"""From an archive to new maps in a few minutes: the path of ``spherediff demo``.

The bundled archive holds 132 months of observed surface winds, 1982–92.  Of these

    1–96      train: yearly cycle, standard deviation and network are fitted to them,
    97–108    are held out: their denoising loss ends the training,
    109–132   test: the samples are compared with them, and nothing is fitted to them.

What is learnt is the law of the anomalies, the winds less their yearly cycle.  The cycle is the
mean and two harmonics of the year: on the held-out months twelve monthly means, each from eight
values, leave larger anomalies.  Everything is deterministic in the seed.
"""

from spherediff.demo.pipeline import run
from spherediff.demo.settings import FULL, QUICK, Settings

__all__ = ["FULL", "QUICK", "Settings", "run"]
