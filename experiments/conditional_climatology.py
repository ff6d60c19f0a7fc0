"""Has each month of a model's draws the mean and the spread of that month in years not learnt from?

    python experiments/conditional_climatology.py speedy-daily.nc [--model speedy-daily]
        [--maps 20] [--steps 24] [--spacing 7.5] [--guidance 1]

The archive has a variable `test(time)` that is 1 in the years that were neither trained nor tuned
on.  For each month as many maps are drawn as `--maps` says, of the dates that the test years have
in it.  With m and s the local mean and standard deviation over the maps of a month, and ⟨·⟩ the
mean over the area of the sphere, the tables have for draws, test years and training years

    spread              ⟨s⟩,
    error of mean       √⟨(m − m_test)²⟩, less what independent maps differ by, s²/n each,
    error of spread     √⟨(s − s_test)²⟩,

in the units of the variable.  The noise floor of an error is that of training years, as many at a
time as there are test years: the mean of these groups and their range.  Days that follow one
another are not independent, and years differ, so that the floor of the mean is not zero.

The yearly cycle is not taken out: it is judged together with the draws.  The archive's maps are
truncated to the model's band limit first.
"""

from __future__ import annotations

import argparse
import calendar
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from spherediff import data
from spherediff.grids import LatLon
from spherediff.model import Model


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", default="speedy-daily", help="name or directory")
    parser.add_argument("--maps", type=int, default=20, help="drawn for each month")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--spacing", type=float, default=7.5, help="of the grid, degrees")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class Moments:
    """Local mean and standard deviation of maps, and area means of such maps."""

    def __init__(self, maps: NDArray[np.float64], latitude: NDArray[np.float64]) -> None:
        self.mean, self.std, self.count = maps.mean(0), maps.std(0, ddof=1), len(maps)
        area = np.cos(np.radians(latitude))
        self.area = np.maximum(area, 0) / np.maximum(area, 0).sum()

    @property
    def spread(self) -> float:
        """⟨s⟩."""
        return self.average(self.std)

    def average(self, field: NDArray[np.float64]) -> float:
        """⟨field⟩."""
        return float((self.area @ field).mean())

    def errors(self, other: Moments) -> tuple[float, float]:
        """√⟨(m − m')²⟩ and √⟨(s − s')²⟩, the first less what independent maps differ by."""
        noise = self.std**2 / self.count + other.std**2 / other.count
        square = self.average((self.mean - other.mean) ** 2 - noise)
        return max(square, 0.0) ** 0.5, self.average((self.std - other.std) ** 2) ** 0.5


def truncated(model: Model, ds: xr.Dataset, grid: LatLon) -> xr.Dataset:
    """The maps of an archive as the model could draw them."""
    return model.encoder.decode(model.encoder.encode(ds), grid, ds.time)


def drawn(
    model: Model, dates: xr.DataArray, grid: LatLon, options: argparse.Namespace
) -> xr.Dataset:
    """Maps for every month, the dates of the test years in it over and over."""
    months = dates.dt.month.values
    wanted = [np.resize(np.flatnonzero(months == k), options.maps) for k in np.unique(months)]
    time = dates.values[np.concatenate(wanted)]
    x = model.sample(
        len(time),
        generator=torch.Generator().manual_seed(options.seed),
        time=time,
        guidance=options.guidance,
        steps=options.steps,
        progress=True,
    )
    return model.encoder.decode(x, grid, time)


def moments(ds: xr.Dataset, name: str, month: int, latitude: NDArray[np.float64]) -> Moments:
    chosen = ds.time.dt.month.values == month
    return Moments(ds[name].values[chosen].astype(np.float64), latitude)


def row(draws: Moments, test: Moments, groups: list[Moments], whole: Moments) -> list[float]:
    """Three spreads, then the error of the draws and the floor (mean, least, largest), twice."""
    floors = np.array([group.errors(test) for group in groups])
    errors = []
    for error, floor in zip(draws.errors(test), floors.T, strict=True):
        errors += [error, floor.mean(), floor.min(), floor.max()]
    return [draws.spread, test.spread, whole.spread, *errors]


def line(label: str, r: list[float]) -> str:
    cells = [f"{v:.3g}" for v in r[:3]]
    for error, mean, low, high in (r[3:7], r[7:]):
        cells += [f"{error:.3g}", f"{mean:.3g} ({low:.3g}–{high:.3g})"]
    return f"| {label} | " + " | ".join(cells) + " |"


HEADER = """
| {} | spread: draws | test | training | error of mean: draws | floor | error of spread: draws | floor |
|---|--:|--:|--:|--:|--:|--:|--:|"""  # noqa: E501


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    model = Model.load(options.model)
    archive = data.open(options.archive, list(model.encoder.names))
    known, test = (archive.isel(time=archive.test.values == k) for k in (0, 1))
    grid = LatLon.regular(options.spacing)
    latitude = np.asarray(grid.latitude)
    learnt, held_out = (truncated(model, ds, grid) for ds in (known, test))
    draws = drawn(model, test.time, grid, options)
    parts = max(2, round(known.sizes["time"] / test.sizes["time"]))
    groups = [
        learnt.isel(time=indices) for indices in np.array_split(np.arange(learnt.time.size), parts)
    ]
    print(
        f"{options.maps} draws a month in {options.steps} steps, guidance {options.guidance:g};"
        f" {test.sizes['time']} test maps; {parts} groups of training years"
    )
    for name, units in zip(model.encoder.names, model.encoder.units, strict=True):
        print(HEADER.format(f"{name}, {units}"))
        rows = []
        for month in np.unique(test.time.dt.month.values):
            of = [moments(ds, name, month, latitude) for ds in (draws, held_out, learnt, *groups)]
            rows.append(row(of[0], of[1], of[3:], of[2]))
            print(line(calendar.month_abbr[month], rows[-1]))
        print(line("mean", np.mean(rows, axis=0).tolist()))


if __name__ == "__main__":
    main()
