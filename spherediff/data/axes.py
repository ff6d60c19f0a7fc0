"""What the dimensions of a variable stand for: latitude, longitude, cells, levels or samples.

By CF attributes (standard_name, then units, then axis), then by common names, whatever their case.
"""

from __future__ import annotations

import math
from typing import Any

import xarray as xr

from spherediff.data.climatology import is_dates

_LATITUDE_UNITS = {"degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn"}
_LONGITUDE_UNITS = {"degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese"}
_LATITUDE_NAMES = {"lat", "lats", "latitude", "latitudes", "y", "nav_lat", "fnocy", "nlat", "ylat"}
_LONGITUDE_NAMES = {
    "lon", "lons", "long", "longitude", "longitudes", "x", "nav_lon", "fnocx", "nlon", "xlon",
}  # fmt: skip
_VERTICAL_NAMES = {
    "level", "lev", "levels", "plev", "pressure", "pressure_level", "height", "depth", "altitude",
    "isobaricinhpa", "hybrid", "sigma", "z", "heightaboveground", "model_level", "nlev",
}  # fmt: skip
_VERTICAL_STANDARD = {"air_pressure", "height", "altitude", "depth", "model_level_number"}
_SAMPLE_NAMES = {
    "time", "times", "t", "date", "day", "month", "year", "season", "sample", "samples", "run",
    "member", "members", "ens", "ensemble", "realization", "realisation", "number", "valid_time",
    "init_time", "member_id",
}  # fmt: skip
_CELL_NAMES = {
    "cell", "cells", "pix", "pixel", "pixels", "npix", "ipix", "value", "values", "ncell",
    "ncells", "hpx", "healpix", "hp_cell", "cell_ids",
}  # fmt: skip


def describe(ds: xr.Dataset, name: Any) -> str:
    """A variable with its dimensions, for messages: ``tas(time, lat, lon)``."""
    return f"{name}({', '.join(map(str, ds[name].dims))})"


def values_of(ds: xr.Dataset, dim: str) -> str:
    """The first values along a dimension, for messages."""
    size = ds.sizes[dim]
    if dim not in ds.coords:
        return f"indices 0 to {size - 1}"
    values = [str(v) for v in ds[dim].values[:6]]
    return ", ".join(values) + (f", … ({size} values)" if size > 6 else "")


def kind_of(ds: xr.Dataset, dim: str) -> str:
    """What a dimension stands for: latitude, longitude, vertical, sample, cell or unknown."""
    attrs = ds[dim].attrs if dim in ds.coords else {}
    standard = str(attrs.get("standard_name", "")).lower()
    if standard in ("latitude", "longitude"):
        return standard
    if standard in _VERTICAL_STANDARD or "positive" in attrs:
        return "vertical"
    if standard in ("time", "realization") or (dim in ds.coords and is_dates(ds[dim].values)):
        return "sample"
    if standard.startswith(("grid_", "projection_")):
        return "unknown"
    units = str(attrs.get("units", "")).lower()
    if units in _LATITUDE_UNITS:
        return "latitude"
    if units in _LONGITUDE_UNITS:
        return "longitude"
    angular = units in ("", "degrees", "degree", "deg")
    axis = str(attrs.get("axis", "")).upper()
    if axis in ("X", "Y") and angular:
        return {"X": "longitude", "Y": "latitude"}[axis]
    if axis in ("T", "E", "Z"):
        return {"T": "sample", "E": "sample", "Z": "vertical"}[axis]
    return _kind_by_name(dim.lower(), angular)


def _kind_by_name(name: str, angular: bool) -> str:
    if name in _LATITUDE_NAMES and angular:
        return "latitude"
    if name in _LONGITUDE_NAMES and angular:
        return "longitude"
    if name in _VERTICAL_NAMES:
        return "vertical"
    if name in _SAMPLE_NAMES:
        return "sample"
    return "cell" if name in _CELL_NAMES else "unknown"


def spatial_axes(ds: xr.Dataset, name: str) -> tuple[str, ...] | None:
    """(latitude, longitude) or (cell,) among the dimensions of a variable; None without."""
    kinds = {kind_of(ds, str(dim)): str(dim) for dim in ds[name].dims}
    if "latitude" in kinds and "longitude" in kinds:
        axes = kinds["latitude"], kinds["longitude"]
        return axes if all(dim in ds.coords for dim in axes) else None
    if "cell" in kinds and nside_of(ds.sizes[kinds["cell"]]) is not None:
        return (kinds["cell"],)
    return None


def nside_of(npix: int) -> int | None:
    """The nside with 12 nside² = npix; None if there is none."""
    nside = math.isqrt(npix // 12)
    return nside if nside >= 1 and 12 * nside**2 == npix else None


def why_not_spatial(ds: xr.Dataset, name: str) -> str:
    """Why :func:`spatial_axes` finds none, and what to do about it."""
    dims = [str(dim) for dim in ds[name].dims]
    kinds = {kind_of(ds, dim): dim for dim in dims}
    curvilinear = [
        str(c)
        for c, v in ds.variables.items()
        if v.ndim == 2 and str(v.attrs.get("standard_name", c)).lower() in _LATITUDE_NAMES
    ]
    if curvilinear:
        return (
            f"its latitudes {curvilinear[0]} have two dimensions: a curvilinear grid has no exact"
            " analysis, so interpolate to a regular latitude-longitude grid first"
        )
    if "latitude" in kinds and "longitude" in kinds:
        return (
            f"the dimensions {kinds['latitude']} and {kinds['longitude']} have no coordinate"
            " values, so the grid is unknown: assign their degrees with ds.assign_coords"
        )
    if "cell" in kinds:
        return (
            f"the dimension {kinds['cell']} has {ds.sizes[kinds['cell']]} values, which is not"
            " 12 nside² as on HEALPix: an unstructured grid has no exact analysis, so"
            " interpolate to a regular latitude-longitude grid first"
        )
    return (
        "no dimension is recognised as latitude and longitude or as HEALPix cells; give them"
        " units degrees_north and degrees_east, or rename them with"
        " ds.rename({...: 'latitude', ...: 'longitude'}), and pass the dataset to normalise"
    )
