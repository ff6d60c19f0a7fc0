"""Can a model of pixels change its resolution?  Its grid is part of it, and so is its noise.

    python experiments/peers/pixel_resolution.py ARCHIVES --output OUT [--archive u250]
        [--seconds 400] [--draws 64] [--threads 1]

The U-Net of :mod:`diffusion` is trained on the 32 × 64 grid and draws there, and, with its learned
positions interpolated, on the grid of 64 × 128.  Convolutions go to any grid; but a filter of 3 × 3
pixels spans half the angle there, and white noise of σ per pixel has a quarter of the power in each
degree, so that the network meets neither the fields nor the noise that it knows.  Power by octave
relative to the known maps, with the standard error over draws, goes to OUT/pixel_resolution.json;
for the same of this package see experiments/resolution.py.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import archives
import torch
from diffusion import Backbone, PixelDiffusion, cartesian
from store import environment, write_json
from torch import Tensor
from torch.nn import functional

from spherediff import harmonics
from spherediff._files import require_writable
from spherediff.grids import GaussLegendre

OCTAVES = ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31))


def refine(emulator: PixelDiffusion) -> None:
    """Let a trained emulator draw on a grid with twice as many points each way."""
    backbone = emulator.denoiser.backbone
    assert isinstance(backbone, Backbone)
    emulator.grid = GaussLegendre(2 * (emulator.lmax + 1) - 1)
    backbone.position = cartesian(emulator.grid)
    learned = functional.interpolate(
        backbone.learned[None], size=emulator.grid.shape, mode="bilinear"
    )
    backbone.learned = torch.nn.Parameter(learned[0])


def power(x: Tensor) -> Tensor:
    """Of each map and octave, shape (maps, octaves)."""
    by_degree = harmonics.sum_orders(x[:, 0].double().square())
    return torch.stack([by_degree[:, a : b + 1].sum(1) for a, b in OCTAVES], dim=1)


def compared(drawn: Tensor, known: Tensor) -> dict[str, list[float]]:
    """Ratio of mean powers by octave with its standard error."""
    p, q = power(drawn), power(known)
    ratio = p.mean(0) / q.mean(0)
    error = ratio * (p.std(0) / p.mean(0)) / math.sqrt(len(p))
    return {"ratio": ratio.tolist(), "error": error.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="ARCHIVES")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--archive", default="u250", choices=archives.NAMES)
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    archives.require([options.archive], options.folder)
    path = options.output / "pixel_resolution.json"
    require_writable(path)
    torch.set_num_threads(options.threads)
    split = archives.load(options.archive, options.folder)
    emulator = PixelDiffusion()
    training = emulator.fit(split.training, split.validation, options.seconds, seed=0)
    found = {"own grid": compared(emulator.sample(options.draws, seed=1), split.known)}
    refine(emulator)
    found["finer grid"] = compared(emulator.sample(options.draws, seed=1), split.known)
    for name, one in found.items():
        for (a, b), ratio, error in zip(OCTAVES, one["ratio"], one["error"], strict=True):
            print(f"{name}, degrees {a} to {b}: power {ratio:.3f} ± {error:.3f} of the archive's")
    write_json(path, {"octaves": OCTAVES, **found, "training": training, **environment()})


if __name__ == "__main__":
    main()
