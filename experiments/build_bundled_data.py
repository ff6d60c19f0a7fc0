"""Build the data files that the package ships, from those of Debian's package ferret-datasets.

    apt-get download ferret-datasets && dpkg -x ferret-datasets_*.deb ferret
    python experiments/build_bundled_data.py \\
        ferret/usr/share/ferret-vis/data/monthly_navy_winds.cdf \\
        ferret/usr/share/ferret-vis/data/etopo20.cdf

Both sources are works of the United States government in the public domain.

navy-winds.nc   monthly surface winds 1982–92, 132 × 73 × 144, two components.  The analysis
                itself is uncertain by about 1 m/s, so the values are rounded to 0.2 m/s (error at
                most 0.1, root mean square 0.06 m/s) and packed into one byte each: 1.7 MB
                instead of 11.
coastlines.npz  zero contour of 20-minute relief, cut at the 180th meridian, simplified to
                0.1°, without the lines shorter than 2.5°; hundredths of a degree.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import contourpy
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spherediff._files import atomic_write

STEP = np.float32(0.2)  # m/s
LOWEST = np.float32(-26.0)  # m/s, below the least value −25.55
TEST_MONTHS = 24
TOLERANCE = 0.1  # degrees of arc
SHORTEST = 2.5  # degrees of arc


def winds(source: Path) -> xr.Dataset:
    """The winds with CF names and attributes, times at the middle of each month kept."""
    raw = xr.load_dataset(source, engine="scipy")
    ds = raw.rename(TIME="time", FNOCY="latitude", FNOCX="longitude").drop_encoding()
    ds.time.attrs = {"standard_name": "time", "axis": "T", "long_name": "middle of the month"}
    ds.latitude.attrs = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
    ds.longitude.attrs = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    ds.UWND.attrs = {
        "standard_name": "eastward_wind",
        "long_name": "zonal surface wind",
        "units": "m s-1",
        "cell_methods": "time: mean",
    }
    ds.VWND.attrs = {
        "standard_name": "northward_wind",
        "long_name": "meridional surface wind",
        "units": "m s-1",
        "cell_methods": "time: mean",
    }
    held_out = np.arange(ds.sizes["time"]) >= ds.sizes["time"] - TEST_MONTHS
    ds = ds.assign_coords(test=("time", held_out.astype(np.int8)))
    ds.test.attrs = {
        "long_name": "1 in the last two years, held out for testing",
        "flag_values": np.array([0, 1], np.int8),
        "flag_meanings": "train test",
    }
    ds.attrs = {
        "Conventions": "CF-1.10",
        "title": "Monthly mean surface winds 1982-1992",
        "institution": "US Navy Fleet Numerical Oceanography Center; NOAA",
        "source": "monthly_navy_winds.cdf of Debian's package ferret-datasets (NOAA/PMEL Ferret)",
        "license": "public domain",
        "comment": "values rounded to 0.2 m/s: error at most 0.1 m/s",
        "history": f"{raw.attrs['history']}; packed by experiments/build_bundled_data.py",
    }
    return ds


def write_winds(source: Path, target: Path) -> None:
    """Pack the winds into bytes and report the error that makes."""
    ds = winds(source)
    packing = {
        "dtype": "uint8",
        "scale_factor": STEP,
        "add_offset": LOWEST,
        "_FillValue": np.uint8(255),
        "zlib": True,
        "complevel": 9,
        "chunksizes": (12, ds.sizes["latitude"], ds.sizes["longitude"]),
    }
    with atomic_write(target) as path:
        ds.to_netcdf(path, engine="h5netcdf", encoding={"UWND": packing, "VWND": packing})
    packed = xr.load_dataset(target, engine="h5netcdf")
    for name in ("UWND", "VWND"):
        error = packed[name].astype(float) - ds[name].astype(float)
        print(
            f"{name}: {packed[name].dtype}, largest error {float(abs(error).max()):.4f} m/s,"
            f" root mean square {float((error**2).mean() ** 0.5):.4f} m/s"
        )
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


def relief(source: Path) -> tuple[NDArray, NDArray, NDArray]:
    """Longitudes from −180 to 180 (both included where the data allow), latitudes, heights."""
    height = xr.load_dataset(source, engine="scipy")["ROSE"]
    latitude, longitude = (height[d].values for d in height.dims)
    columns = np.unique(np.round((longitude + 180) % 360 - 180, 3), return_index=True)[1]
    east = (longitude[columns] + 180) % 360 - 180
    values = height.values[:, columns]
    # One interpolated column on each side closes the circle exactly at the 180th meridian.
    seam = (values[:, :1] + values[:, -1:]) / 2
    values = np.concatenate([seam, values, seam], axis=1)
    return np.concatenate([[-180.0], east, [180.0]]), latitude, values


def unit_vectors(line: NDArray) -> NDArray:
    """(n, 2) longitudes and latitudes in degrees → (n, 3)."""
    lon, lat = np.radians(line).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def arc_length(line: NDArray) -> float:
    """Length of a polyline in degrees of arc."""
    chords = np.linalg.norm(np.diff(unit_vectors(line), axis=0), axis=1)
    return float(np.degrees(2 * np.arcsin(chords / 2)).sum())


def simplify(line: NDArray, tolerance: float) -> NDArray:
    """Douglas–Peucker on the sphere's chords: no vertex is further off than ``tolerance`` (deg)."""
    x = unit_vectors(line)
    keep = np.zeros(len(x), bool)
    keep[[0, -1]] = True
    pending = [(0, len(x) - 1)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        inner = x[first + 1 : last] - x[first]
        chord = x[last] - x[first]
        along = np.clip(inner @ chord / max(chord @ chord, 1e-300), 0, 1)
        distance = np.linalg.norm(inner - along[:, None] * chord, axis=1)
        if distance.max() > np.radians(tolerance):
            middle = first + 1 + int(distance.argmax())
            keep[middle] = True
            pending += [(first, middle), (middle, last)]
    return line[keep]


def coastlines(source: Path) -> Iterator[NDArray]:
    """Polylines (n, 2) of longitude and latitude in degrees."""
    lines = contourpy.contour_generator(*relief(source)).lines(0.0)
    for line in lines:
        assert isinstance(line, np.ndarray)
        if arc_length(line) >= SHORTEST:
            yield simplify(line, TOLERANCE)


def write_coastlines(source: Path, target: Path) -> None:
    """Store the lines one after the other, with the start of each."""
    lines = list(coastlines(source))
    starts = np.cumsum([0, *map(len, lines)], dtype=np.int32)
    points = np.round(100 * np.concatenate(lines)).astype(np.int16)
    with atomic_write(target) as path:
        np.savez_compressed(path, hundredths=points, starts=starts)
    print(f"{target}: {len(lines)} lines, {len(points)} points, {target.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("winds", type=Path, help="monthly_navy_winds.cdf")
    parser.add_argument("relief", type=Path, help="etopo20.cdf")
    target = Path(__file__).parents[1] / "spherediff" / "data"
    parser.add_argument("--output", type=Path, default=target, help="folder to write into")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_winds(arguments.winds, arguments.output / "navy-winds.nc")
    write_coastlines(arguments.relief, arguments.output / "coastlines.npz")


if __name__ == "__main__":
    main()
