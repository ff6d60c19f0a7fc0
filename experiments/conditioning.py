"""Gaps filled, stations, coarse maps: are fields given observations right, and better than kriging?

    python experiments/conditioning.py ARCHIVE.nc --model DIRECTORY --output OUT
        [--days 4] [--draws 16] [--steps 40] [--threads 2]

DIRECTORY holds a model of one variable that has not seen the archive's test years (`spherediff
train`).  On evenly spaced test days its field up to lmax is observed, with errors of a tenth of the
variable's standard deviation:

    gap         on the model's grid, but for a sector over the Pacific, where alone it is judged
    stations    at 50, 200 and 1,000 places, at random over the sphere
    downscaling all coefficients up to degree 10, nearly exactly

Draws by the model (pseudoinverse guidance, from the Gaussian posterior, by the reverse SDE) are
compared with draws by kriging under the best Gaussian law, the model's own reference, in physical
units: fair CRPS, root mean square error of the mean, spread over skill (1 is calibrated), and how
often 50 % and 90 % intervals hold the truth.  OUT/conditioning-VARIABLE.md has the table, .png the
fields of one day, -ranks.png the rank histograms.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from spherediff import data, plot
from spherediff._files import atomic_write, require_writable
from spherediff.data.observations import Standardised
from spherediff.denoise import Denoiser
from spherediff.grids import GaussLegendre, LatLon, Points
from spherediff.kriging import Kriging
from spherediff.model import Model
from spherediff.observe import Coefficients, Dense, Observation, Operator, Values
from spherediff.posterior import PseudoinverseGuidance, Referenced, posterior_reference
from spherediff.sample import ReverseSDE

Array = NDArray[np.float64]

ERROR = 0.1  # of the variable's standard deviation
COARSE, COARSE_ERROR = 10, 0.01
GAP_LATITUDE, GAP_LONGITUDE = (-35.0, 35.0), (150.0, 260.0)
STATIONS = (50, 200, 1000)
COLUMNS = ("CRPS", "RMSE", "spread/skill", "50 %", "90 %")


def in_gap(grid: LatLon | GaussLegendre) -> NDArray[np.bool_]:
    """Which points of the grid lie in the sector."""
    south, north = GAP_LATITUDE
    west, east = GAP_LONGITUDE
    rows = (grid.latitude > south) & (grid.latitude < north)
    columns = (grid.longitude > west) & (grid.longitude < east)
    return rows[:, None] & columns


def scattered(count: int, seed: int) -> Points:
    """Places, evenly at random over the sphere."""
    rng = np.random.default_rng(seed)
    latitude = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    return Points(latitude, rng.uniform(0, 360, count))


def cases(model: Model) -> dict[str, Callable[[int], tuple[Operator, float]]]:
    """Operator on standardised anomalies and standard error, for a day."""
    encoder = model.encoder
    shape = model.denoiser.process.event_shape
    scale = float(encoder.scale[0])
    grid = GaussLegendre(encoder.lmax)
    size = float(model.denoiser.covariance.variance[:, : (COARSE + 1) ** 2].mean().sqrt())

    def stations(count: int) -> Callable[[int], tuple[Operator, float]]:
        return lambda day: (
            Standardised(Values(scattered(count, 1000 * count + day), shape), encoder),
            ERROR * scale,
        )

    return {
        "gap": lambda _: (
            Standardised(Values(grid, shape, mask=~in_gap(grid)), encoder),
            ERROR * scale,
        ),
        **{f"{count} stations": stations(count) for count in STATIONS},
        f"degrees ≤ {COARSE}": lambda _: (
            Coefficients.up_to(COARSE, shape),
            COARSE_ERROR * size,
        ),
    }


def observed(operator: Operator, error: float, x: Tensor, seed: int) -> Observation:
    """The truth's observations with errors."""
    generator = torch.Generator().manual_seed(seed)
    y = operator(x.double())
    return Observation(
        operator, y + error * torch.randn(y.shape, generator=generator).double(), error
    )


def draw(
    model: Model, denoiser: Denoiser, observation: Observation, options: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Draws by the model and by kriging, (draws, 1, n)."""
    given = PseudoinverseGuidance(denoiser, observation)
    start = posterior_reference(denoiser.reference, observation)
    sampler = ReverseSDE(Referenced(given, start), options.steps)
    shape = (options.draws,)
    x = sampler.sample(shape, generator=torch.Generator().manual_seed(1))
    prior = model.denoiser
    gaussian = Kriging(observation, prior.covariance, prior.mean)
    return x, gaussian.sample(shape, generator=torch.Generator().manual_seed(2)).to(x)


def physical(model: Model, x: Tensor, date: xr.DataArray, grid: LatLon) -> Array:
    """Maps in physical units, (draws, *grid.shape)."""
    dates = xr.DataArray(np.repeat(date.values, len(x)), dims="sample")
    return model.encoder.channels.maps(model.encoder.restore(x, dates), grid)[:, 0]


class Scores:
    """Sums over days of one method's scores in one case."""

    def __init__(self, weights: Array) -> None:
        self.weights, self.days = weights / weights.sum(), 0
        self.rng = np.random.default_rng(0)
        self.crps = self.square = self.variance = 0.0
        self.inside = np.zeros(2)
        self.ranks: Array = np.zeros(0)

    def add(self, ensemble: Array, truth: Array) -> None:
        """One day: ensemble (M, points), truth (points,)."""
        M, w = len(ensemble), self.weights
        ordered = np.sort(ensemble, axis=0)
        between = (2 * np.arange(1, M + 1) - M - 1) @ ordered * 2 / (M * (M - 1))
        self.crps += w @ (np.abs(ensemble - truth).mean(0) - 0.5 * between)
        self.square += w @ (ensemble.mean(0) - truth) ** 2
        self.variance += w @ ensemble.var(0, ddof=1)
        below, up_to = (ensemble < truth).sum(0), (ensemble <= truth).sum(0)
        rank = self.rng.integers(below, up_to + 1)  # ties, as of no rain, in random order
        self.ranks = np.bincount(rank, weights=w, minlength=M + 1) + (
            self.ranks if len(self.ranks) else 0
        )
        # of M + 1 equally likely ranks the middle ones, the last of them in part
        for k, level in enumerate((0.5, 0.9)):
            outside = (1 - level) / 2 * (M + 1)
            tail = np.clip(np.minimum(rank, M - rank) + 1 - outside, 0, 1)
            self.inside[k] += w @ tail
        self.days += 1

    def row(self, M: int) -> list[float]:
        """CRPS, RMSE, spread over skill, coverage."""
        error = math.sqrt(self.square / self.days)
        spread = math.sqrt((1 + 1 / M) * self.variance / self.days)
        coverage = self.inside / self.days
        return [self.crps / self.days, error, spread / error, *map(float, coverage)]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plt.switch_backend("Agg")
    model = Model.load(options.model)
    encoder = model.encoder
    if len(encoder.names) != 1:
        raise ValueError(f"expected a model of one variable, got {', '.join(encoder.names)}")
    path = options.output / f"conditioning-{encoder.names[0]}.md"
    require_writable(path)
    archive = data.open(options.archive, encoder.names)
    test = archive.isel(time=archive.test.values == 1)
    days = np.linspace(0, test.sizes["time"] - 1, options.days + 2).astype(int)[1:-1]
    truth = encoder.encode(test.isel(time=days))
    grid = LatLon(np.linspace(-88.5, 88.5, 60), np.arange(0.0, 360.0, 3.0))
    weights = grid.area_weights.numpy()
    scores: dict[tuple[str, str], Scores] = {}
    shown: dict[str, list[Array]] = {}
    start = time.perf_counter()
    observing = cases(model)
    todo = [(name, k) for name in observing for k in range(options.days)]
    for name, k in tqdm(todo, desc=encoder.names[0]):
        date = test.time.isel(time=days[k : k + 1])
        label = model.labels.encode({"time": date}, 1)[0]
        denoiser = model.denoiser.given(label) if len(label) else model.denoiser
        operator, error = observing[name](k)
        observation = observed(Dense.of(operator), error, truth[k], seed=k)
        drawn = draw(model, denoiser, observation, options)
        real = physical(model, truth[k : k + 1], date, grid)[0]
        judged = in_gap(grid) if name == "gap" else np.ones(grid.shape, bool)
        fields = [physical(model, x, date, grid) for x in drawn]
        for method, ensemble in zip(("spherediff", "kriging"), fields, strict=True):
            one = scores.setdefault((name, method), Scores(weights[judged]))
            one.add(ensemble[:, judged], real[judged])
        if k == 0:
            shown[name] = [real, fields[1].mean(0), fields[1][0], fields[0].mean(0), fields[0][0]]
    took = time.perf_counter() - start
    _write(path, scores, options, encoder, took)
    _maps(path.with_suffix(".png"), shown, grid, encoder)
    _ranks(path.with_name(f"{path.stem}-ranks.png"), scores, encoder)


def _write(path, scores, options, encoder, took) -> None:
    units = encoder.units[0]
    lines = [
        f"| case | method | {' | '.join(COLUMNS)} |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for (name, method), one in scores.items():
        row = one.row(options.draws)
        cells = [f"{row[0]:.3f}", f"{row[1]:.3f}", *(f"{value:.2f}" for value in row[2:])]
        lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    command = shlex.join(["python", *sys.argv])
    lines += [
        "",
        f"CRPS and RMSE in {units}. {options.days} days, {options.draws} draws, {options.steps} "
        f"steps. {took:.0f} s on {options.threads} thread(s), {platform.machine()}, torch "
        f"{version('torch')}. `{command}`",
        "",
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    numbers = {
        f"{name}, {method}": one.row(options.draws) for (name, method), one in scores.items()
    }
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"columns": COLUMNS, **numbers}, indent=2) + "\n")


def _maps(path, shown, grid, encoder) -> None:
    names = [name for name in shown if name in ("gap", "200 stations", f"degrees ≤ {COARSE}")]
    titles = ["truth", "kriging: mean", "kriging: a draw", "spherediff: mean", "spherediff: a draw"]
    fields = [field for name in names for field in shown[name]]
    figure = plt.figure(figsize=(15, 6.2), layout="compressed")
    plot.panels(
        fields,
        grid=grid,
        columns=5,
        figure=figure,
        titles=[f"{name}: {title}" for name in names for title in titles],
        units=encoder.units[0],
        coastlines=True,
        graticule=None,
        vmin=float(np.quantile(fields[0], 0.002)),
        vmax=float(np.quantile(fields[0], 0.998)),
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def _ranks(path, scores, encoder) -> None:
    names = list(dict.fromkeys(name for name, _ in scores))
    figure, axes = plt.subplots(1, len(names), figsize=(2.6 * len(names), 2.6), sharey=True,
                                layout="constrained")  # fmt: skip
    for ax, name in zip(np.atleast_1d(axes), names, strict=True):
        for method, colour in (("kriging", "#D55E00"), ("spherediff", "#0072B2")):
            ranks = (
                scores[name, method].ranks
                / scores[name, method].days
                * len(scores[name, method].ranks)
            )
            ax.step(np.arange(len(ranks)), ranks, where="mid", color=colour, label=method)
        ax.axhline(1, color="0.5", lw=0.8)
        ax.set(title=name, xlabel="rank of the truth", ylim=(0, 3))
    np.atleast_1d(axes)[0].set_ylabel("frequency / expected")
    np.atleast_1d(axes)[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Rank histograms: {encoder.names[0]}")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
