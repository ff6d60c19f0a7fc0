"""Are coarse maps read as what they are?  Means over cells against what the model sees of them.

    python experiments/coarse_maps.py speedy-daily.nc [--model speedy-daily] [--days 13]

The archive has a variable `test(time)` that is 1 in the years that were neither trained nor tuned
on.  Maps of evenly spaced test days are averaged, in physical units, over blocks of 2 × 2 and 4 × 4
of the archive's cells, written to a file, and read as `spherediff sample --given` does.  With y, H
and √N what it makes of them and x the truth up to the model's lmax, the table has over all days and
cells, weighted by area,

    mean of (y − Hx)/√N,    root mean square of (y − Hx)/√N,

which are 0 and 1 where bias and error are what is assumed (no error is given), and below 1 where it
is assumed too large.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from spherediff import data
from spherediff.data import observations
from spherediff.model import Model

BLOCKS = (2, 4)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", default="speedy-daily", help="name or directory")
    parser.add_argument("--days", type=int, default=13)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def averaged(maps: xr.Dataset, block: int) -> xr.Dataset:
    """Means over blocks of cells, weighted by the cosine of latitude."""
    area = np.cos(np.radians(maps["latitude"]))
    sums = (maps * area).coarsen(latitude=block, longitude=block).mean()
    weights = area.coarsen(latitude=block).mean().values
    coarse = (sums / weights[:, None]).transpose("time", "latitude", "longitude")
    for name in coarse.data_vars:
        coarse[name].attrs = maps[name].attrs
    return coarse


def misfit(model: Model, coarse: xr.Dataset, x: torch.Tensor) -> NDArray[np.float64]:
    """(y − Hx)/√N of one map, shape (variables, cells)."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "coarse.nc"
        coarse.to_netcdf(path)
        readings = observations.read(path, model.encoder)
    given = model.observe(readings, coarse["time"].values[0])
    z = (given.values - given.operator(x.double())) / given.noise_std
    return z.reshape(len(model.encoder.names), -1).numpy()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    model = Model.load(options.model)
    names = list(model.encoder.names)
    archive = data.open(options.archive, names)
    test = archive.isel(time=archive.test.values == 1)
    chosen = np.linspace(0, test.sizes["time"] - 1, options.days).round().astype(int)
    test = test[names].isel(time=chosen)
    truth = model.encoder.encode(test)
    print(f"{options.model}; {platform.machine()}, torch {torch.__version__}\n")
    print("| cells | " + " | ".join(f"{name}: mean, r.m.s." for name in names) + " |")
    print("| --- " * (1 + len(names)) + "|")
    for block in BLOCKS:
        coarse = averaged(test, block)
        z = np.stack([misfit(model, coarse.isel(time=[k]), x) for k, x in enumerate(truth)])
        area = np.cos(np.radians(coarse["latitude"].values)).repeat(coarse.sizes["longitude"])
        cells = [
            f"{np.average(v.mean(0), weights=area):.2f}, "
            f"{np.average((v**2).mean(0), weights=area) ** 0.5:.2f}"
            for v in z.swapaxes(0, 1)
        ]
        size = 360 / coarse.sizes["longitude"]
        print(f"| {size:.3g}° | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
