"""What calibration on held-out fields changes: one network with and without it, on test years.

    python experiments/calibration.py speedy-daily.nc --model MODEL [--steps 32] [--seed 0]

The archive has a variable `test(time)` that is 1 in the years that were neither trained nor tuned
on.  As many maps as there are test maps are drawn for the same days and from the same noise,
without the calibration that the model was saved with and with it, and scored against the test maps.
The first rows are the mean of the leading modes, which is to be that of the known maps, in standard
deviations, and the power of octaves of degrees, over that of test maps; then come the rows of the
scorecard that calibration changes by a twentieth or more, or that differ either way.

The bundled winds are `spherediff/data/navy-winds.nc`, and `make demo` trains a model of them.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from spherediff import data, harmonics, metrics
from spherediff.metrics import Row, octaves
from spherediff.model import Model

_GROUPS = 4  # of the 1, 3, 12 and 48 strongest modes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", default="speedy-daily", help="name or directory")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def draw(model: Model, ds: xr.Dataset, options: argparse.Namespace) -> Tensor:
    """For the dates of an archive."""
    generator = torch.Generator().manual_seed(options.seed)
    return model.sample(
        ds.sizes["time"], generator=generator, time=ds.time, steps=options.steps, progress=True
    )


def means(model: Model, x: Tensor) -> list[float]:
    """Root mean square, in each group of modes, of their means in standard deviations."""
    group = model.denoiser.calibration.group
    mean = model.denoiser.reference.standardise_clean(x.mean(0))[..., : group.shape[-1]]
    return [float(mean[group == g].square().mean().sqrt()) for g in range(_GROUPS)]


def power_ratios(drawn: Tensor, real: Tensor) -> list[list[float]]:
    """Of each octave, for each channel."""
    p, q = (harmonics.sum_orders(x.square().mean(0)) for x in (drawn, real))
    lmax = p.shape[-1] - 1
    return [
        [float(a[lo : hi + 1].sum() / b[lo : hi + 1].sum()) for lo, hi in octaves(lmax)]
        for a, b in zip(p, q, strict=True)
    ]


def shown(row: Row) -> float:
    return row.value if row.ratio is None else row.ratio


def cell(row: Row) -> str:
    return f"{shown(row):.2f}{'*' if row.differs else ''}"


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    model = Model.load(options.model)
    names = model.encoder.names
    archive = data.open(options.archive, list(names))
    known, test = (archive.isel(time=archive.test.values == k) for k in (0, 1))
    real, learnt = (model.encoder.anomalies(model.encoder.encode(ds)) for ds in (test, known))
    calibrated = draw(model, test, options)
    model.denoiser.calibration.reset()
    pair = draw(model, test, options), calibrated
    anomalies = [model.encoder.anomalies(x) for x in pair]
    rows = []
    for x in anomalies:
        generator = torch.Generator().manual_seed(options.seed)
        rows.append(metrics.scorecard(x, real, learnt, names=names, generator=generator).rows)
    print(f"\n{options.model}, {options.steps} steps; {platform.machine()}, {os.cpu_count()} cores")
    print("\n|  | without | with |\n|---|--:|--:|")
    for g, (before, after) in enumerate(zip(*(means(model, x) for x in pair), strict=True)):
        count = int((model.denoiser.calibration.group == g).sum())
        name = "mean of the strongest mode" if g == 0 else f"means of the next {count} modes"
        print(f"| {name}, noise {len(real) ** -0.5:.2f} | {before:.2f} | {after:.2f} |")
    without, with_it = (power_ratios(x, real) for x in anomalies)
    for name, before, after in zip(names, without, with_it, strict=True):
        for (low, high), p, q in zip(octaves(model.encoder.lmax), before, after, strict=True):
            print(f"| {name}: power of degrees {low} to {high} | {p:.3f} | {q:.3f} |")
    for one, other in zip(*rows, strict=True):
        if one.differs or other.differs or abs(shown(one) - shown(other)) >= 0.05:
            print(f"| {one.variable}: {one.statistic} | {cell(one)} | {cell(other)} |")
    differ = (sum(row.differs for row in card) for card in rows)
    print(f"| rows that differ, of {len(rows[0])} | " + " | ".join(map(str, differ)) + " |")


if __name__ == "__main__":
    main()
