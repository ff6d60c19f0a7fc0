"""What a transform leaves of rain once maps are cut off at a band limit.

    python experiments/rain_transform.py speedy-daily.nc [--lmax 31]

Maps of the archive are transformed, analysed, cut off at the band limit and restored, which is the
best that a model of these coefficients could draw.  Averages of two by two cells, which the band
limit resolves, are then compared with the archive's own:

    mean     over area and maps, mm/day
    >= 10    share of area and maps with 10 mm/day or more
    99 %, 99.99 %, largest   of all cells and maps, mm/day
    error    √⟨(m − m_archive)²⟩ of the local means, and of the local standard deviations, mm/day

A mean of logarithms is that of the geometric mean: the more a transform bends, the more of the rain
is lost where a band limit averages over what it does not resolve.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
from coarse_maps import averaged

from spherediff import data
from spherediff.grids import LatLon

TRANSFORMS = {
    "archive": None,
    "log1p:0.5": data.Log1p(0.5),
    "log1p:2": data.Log1p(2.0),
    "log1p:10": data.Log1p(10.0),
    "sqrt": data.SquareRoot(),
    "quantile": data.Quantile(lower=0.0),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--lmax", type=int, default=31)
    return parser.parse_args()


def restored(
    ds: xr.Dataset, transform: data.Log1p | data.SquareRoot | data.Quantile, lmax: int
) -> xr.Dataset:
    """Maps as a model of the transformed coefficients could draw them."""
    encoder = data.Encoder.fit(ds, lmax=lmax, transform={"pr": transform})
    grid = LatLon(ds.latitude.values, ds.longitude.values)
    return encoder.decode(encoder.encode(ds), grid, ds.time)


def moments(pr: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Local mean and standard deviation."""
    return pr.mean("time"), pr.std("time")


def over_area(field: xr.DataArray) -> float:
    """Mean over the sphere."""
    return float(field.weighted(np.cos(np.radians(field.latitude))).mean())


def main() -> None:
    options = arguments()
    archive = data.open(options.archive, ["pr"])
    truth = averaged(archive, 2).pr
    print("| transform | mean | >= 10 | 99 % | 99.99 % | largest | error of mean | of spread |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, transform in TRANSFORMS.items():
        maps = archive if transform is None else restored(archive, transform, options.lmax)
        pr = averaged(maps, 2).pr
        errors = [
            over_area((m - t) ** 2) ** 0.5 for m, t in zip(moments(pr), moments(truth), strict=True)
        ]
        cells = [f"{over_area(pr):.2f}", f"{over_area(pr >= 10):.3f}"]
        cells += [f"{v:.0f}" for v in np.quantile(pr.values, [0.99, 0.9999, 1.0])]
        cells += [f"{v:.2f}" for v in errors]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
