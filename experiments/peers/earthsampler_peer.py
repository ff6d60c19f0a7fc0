"""EarthSampler as a peer: a published HEALPix-pixel emulator, trained on our maps.

Its wheel installs packages named ``datasets`` and ``utils`` and wants other versions of numpy and
xarray than ours, so that it lives in an environment of its own, in which
``earthsampler/worker.py`` runs; its folder keeps our modules off its path.  Maps go there and back
on the Gauss–Legendre grid.

Compilation, about a minute, counts against its budget, and it computes on all cores.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spherediff import harmonics
from spherediff.grids import GaussLegendre

REQUIREMENTS = ("earthsampler==0.2.0", "healpy", "optax")
_WORKER = Path(__file__).parent / "earthsampler" / "worker.py"


def prepare(environment: Path) -> Path:
    """The environment's Python; made and filled by pip if it is not there.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    python = environment / "bin" / "python"
    complete = environment / "complete"
    if not complete.exists():
        print(f"installing {', '.join(REQUIREMENTS)} into {environment}", flush=True)
        venv.create(environment, clear=True, with_pip=True)
        (environment / ".gitignore").write_text("*\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *REQUIREMENTS], check=True)
        complete.touch()
    return python


class EarthSampler:
    """EarthSampler's HEALPix U-Net and training.

    Args:
        python: of the environment of :func:`prepare`.
    """

    def __init__(self, python: Path) -> None:
        self.python = python

    def fit(
        self, training: Tensor, validation: Tensor, seconds: float, seed: int
    ) -> dict[str, Any]:
        self.lmax = harmonics.band_limit(training.shape[-1])
        self.grid = GaussLegendre(self.lmax)
        self.folder = tempfile.TemporaryDirectory()
        np.savez(
            self._file("maps.npz"),
            training=self.grid.synthesis(training).numpy(),
            validation=self.grid.synthesis(validation).numpy(),
            latitude=self.grid.latitude,
            longitude=self.grid.longitude,
        )
        self._run("train", seconds, seed)
        return json.loads(self._file("record.json").read_text("utf-8"))

    def sample(self, count: int, seed: int) -> Tensor:
        self._run("draw", count, seed)
        pixels = torch.from_numpy(np.load(self._file("draws.npy")))
        return self.grid.analysis(pixels, self.lmax)

    def _run(self, task: str, amount: float, seed: int) -> None:
        command = [self.python, _WORKER, task, self.folder.name, str(amount), str(seed)]
        subprocess.run(command, check=True)

    def _file(self, name: str) -> Path:
        return Path(self.folder.name) / name
