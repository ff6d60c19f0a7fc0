"""Train at one band limit, draw at twice that: is the spectrum right, are low degrees unchanged?

    python experiments/resolution.py speedy-daily.nc --output OUT [--variable u250] [--steps 1000]

The network learns the degrees up to 23 of a daily field; the model reaches to degree 46.  Draws for
the days of the year of all training maps, four for each, are compared with these maps: the ratio of
the power of anomalies in each degree with the sampling error of both sets, at the same degrees also
for the test years.  Quarters of a year count as independent.  Then the same draws at several band
limits, and on HEALPix grids.  Numbers go to OUT/resolution.json, the figure to OUT/resolution.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from spherediff import data, harmonics
from spherediff.grids import HEALPix
from spherediff.model import Model
from spherediff.nn import OperatorConfig
from spherediff.sample import ProbabilityFlow
from spherediff.train import Fields, TrainConfig

LOW, HIGH = 23, 46
FLOW_STEPS = 48
BLOCK = 30  # maps, of a quarter of a year
DRAWS = 4  # for each date: less noise than the maps have
NSIDES = (16, 32, 128)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variable", default="u250")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def power(a: Tensor) -> np.ndarray:
    """Σ_m a_ℓm² of each map, shape (maps, lmax + 1)."""
    return harmonics.sum_orders(a[:, 0].double().square()).numpy()


def ratio(one: Tensor, other: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of mean powers and its standard error, blocks of maps counted as independent."""
    p, q = power(one), power(other)
    value = p.mean(0) / q.mean(0)
    return value, value * np.hypot(_relative_error(p), _relative_error(q))


def _relative_error(p: np.ndarray) -> np.ndarray:
    blocks = [block.mean(0) for block in np.array_split(p, len(p) // BLOCK)]
    return np.std(blocks, axis=0, ddof=1) / p.mean(0) / math.sqrt(len(blocks))


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    archive = data.open(options.archive, [options.variable])
    known, test = (archive.isel(time=archive.test.values == k) for k in (0, 1))
    cut = known.sizes["time"] * 9 // 10
    parts = [known.isel(time=slice(cut)), known.isel(time=slice(cut, None)), test]
    # no local amplitude: times a map of it, independent high degrees would spill their power
    encoder = data.Encoder.fit(parts[0], lmax=HIGH, climatology=data.Harmonics(3))
    labels = data.Labels.seasonal(encoder.climatology)
    fields = [Fields(encoder.encode(ds), labels.encode(ds, ds.sizes["time"])) for ds in parts]
    network = OperatorConfig(LOW, 1)
    model = Model.build(encoder, fields[0], labels=labels, network=network)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(steps=options.steps)
        result = model.train(fields[0], fields[1], config, folder)

    generator = torch.Generator().manual_seed(1)
    dates = parts[0].time[np.tile(np.arange(len(parts[0].time)), DRAWS)]
    x = model.sample(len(dates), generator=generator, time=dates, steps=FLOW_STEPS, progress=True)
    drawn, real, held_out = (encoder.anomalies(a) for a in (x, fields[0].x, fields[2].x))
    value, error = ratio(drawn, real)
    print("degree: power of draws / training maps ± error; test years / training maps ± error")
    other, other_error = ratio(held_out, real)
    for ell in range(1, HIGH + 1):
        print(
            f"{ell:3d}  {value[ell]:.3f} ± {error[ell]:.3f}   "
            f"{other[ell]:.3f} ± {other_error[ell]:.3f}"
        )

    learner = model.learner().given(fields[0].condition[:8])
    start = torch.Generator().manual_seed(1)
    alone = ProbabilityFlow(learner, FLOW_STEPS).sample((8,), generator=start)
    same = float((x[:8, :, : harmonics.count(LOW)] - alone).abs().max())
    print(f"degrees up to {LOW} drawn alone and within lmax {HIGH} differ by {same:.2g} at most")
    variances = {}
    for nside in NSIDES:
        maps = HEALPix(nside).synthesis(drawn[:64, 0])
        variances[nside] = float(maps.var())
        print(f"HEALPix nside {nside}: variance of 64 maps {variances[nside]:.4f}")

    _figure(value, error, other, other_error, options)
    numbers = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "versions": {name: version(name) for name in ("spherediff", "torch", "ducc0")},
        "training": asdict(result),
        "ratio": value.tolist(),
        "error": error.tolist(),
        "test_ratio": other.tolist(),
        "test_error": other_error.tolist(),
        "largest_difference_of_low_degrees": same,
        "healpix_variance": variances,
    }
    (options.output / "resolution.json").write_text(json.dumps(numbers, indent=2) + "\n")


def _figure(value, error, other, other_error, options) -> None:
    plt.switch_backend("Agg")
    figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    ell = np.arange(1, HIGH + 1)
    ax.axvspan(LOW + 0.5, HIGH + 0.7, color="0.93", zorder=0)
    ax.axhspan(0.95, 1.05, color="#0072B2", alpha=0.12, zorder=0)
    ax.errorbar(ell - 0.15, value[1:], 2 * error[1:], fmt="o", ms=4, color="#0072B2", label="draws")
    ax.errorbar(
        ell + 0.15, other[1:], 2 * other_error[1:], fmt="s", ms=3, color="#D55E00",
        label="test years", alpha=0.8,
    )  # fmt: skip
    ax.axhline(1, color="0.4", lw=0.8)
    ax.set(
        xlabel="degree ℓ", ylabel="power / power of the training maps", ylim=(0.7, 1.4),
        title=f"{options.variable}: a network for degrees up to {LOW}, a model up to {HIGH}",
    )  # fmt: skip
    ax.text(LOW + 1.2, 1.33, "beyond the network", color="0.35")
    ax.legend(
        loc="upper left", bbox_to_anchor=(0.1, 1), frameon=False, title="mean ± 2 standard errors"
    )
    figure.savefig(options.output / "resolution.png", dpi=120)


if __name__ == "__main__":
    main()
