"""``spherediff demo``: from an archive to new maps in a few minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spherediff.cli.common import Invocation


@dataclass(frozen=True)
class Demo:
    """Train on the bundled observed winds, draw new wind maps, compare them with held-out months.

    Takes a few minutes on two cores.  If it is interrupted, the same command goes on from the last
    checkpoint.

    For example:
      spherediff demo
      spherediff demo --quick --output /tmp/demo

    Attributes:
        output: folder for the model, the samples and the figures.
        quick: the same path in less than a minute, at low resolution: to see that it runs.
        seed: of the training and of the samples.
    """

    output: Path = Path("demo-output")
    quick: bool = False
    seed: int = 0

    def run(self, invocation: Invocation) -> None:
        """Train, sample, draw, compare."""
        from spherediff import demo

        demo.run(self.output, quick=self.quick, seed=self.seed, record=invocation.record(self.seed))
