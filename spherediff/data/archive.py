"""The normal form of an archive, and the grid it lies on.

Whatever the file, an archive becomes an ``xarray.Dataset`` whose fields have the dimensions

    (time, latitude, longitude)     one dimension of samples, with dates or called time
    (sample, latitude, longitude)   another one, or several (members × years), stacked in order
    (…, cell)                       the same on HEALPix pixels

with ``units`` and ``long_name`` as they were.  Coordinates along the samples keep their names
(``time``, ``member``, ``year``), and so do variables that only vary along them: a variable
``test(time)`` becomes a coordinate to split by.  Latitude and longitude are in degrees, in the
order of the file.  HEALPix archives have a scalar coordinate ``crs`` whose attributes
``healpix_nside`` and ``healpix_order`` ("ring" or "nested") say how pixels are numbered.

The axes are found by CF attributes (standard_name, then units, then axis), then by common names,
whatever their case.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from spherediff.data.axes import (
    describe,
    kind_of,
    nside_of,
    spatial_axes,
    values_of,
    why_not_spatial,
)
from spherediff.data.climatology import is_dates
from spherediff.grids import Grid, HEALPix, LatLon

_LOG = logging.getLogger(__name__)

_CHUNK_BYTES = 2**25  # of maps in float64
_ORDERING_KEYS = ("healpix_order", "ordering", "healpix_ordering", "indexing_scheme", "order")
_ORDERINGS = {
    "ring": "ring", "ringed": "ring", "nest": "nested", "nested": "nested", "nesting": "nested",
}  # fmt: skip


def span(ds: xr.Dataset) -> str:
    """How many samples, in any order, and from which date to which, as one says it."""
    count = ds.sizes[sample_dimension(ds)]
    if "time" not in ds.coords or ds["time"].ndim != 1:
        return f"{count} samples"
    times = ds["time"].values
    return f"{count} samples, {str(times.min())[:10]} to {str(times.max())[:10]}"


def normalise(
    ds: xr.Dataset,
    variables: str | Sequence[str] | None = None,
    *,
    select: Mapping[str, Any] | None = None,
    ordering: str | None = None,
) -> xr.Dataset:
    """Bring a dataset into the normal form of this module; lazily, and idempotently.

    Args:
        ds: any dataset with global fields.
        variables: names of the fields to keep; by default all that lie on a sphere.
        select: value of each further dimension, such as ``{"lev": 850}``.
        ordering: "ring" or "nested", for HEALPix data that do not say so themselves.

    Raises:
        ValueError: a variable is not there or has no spatial axes; variables lie on different
            grids; a level or another dimension has to be chosen; HEALPix without an ordering.
    """
    if select:
        ds = _select(ds, select)
    names = _requested(ds, variables)
    axes = {name: spatial_axes(ds, name) for name in names}
    fields = {name: dims for name, dims in axes.items() if dims is not None}
    if variables is not None and len(fields) < len(names):
        missing = next(name for name in names if name not in fields)
        raise ValueError(f"{describe(ds, missing)}: {why_not_spatial(ds, missing)}")
    if not fields:
        reason = why_not_spatial(ds, names[0]) if names else "there is no numeric variable"
        raise ValueError(f"no variable lies on a sphere; there are {_listing(ds)}. {reason}")
    if len(set(fields.values())) > 1:
        listing = ", ".join(f"{name} on {' × '.join(dims)}" for name, dims in fields.items())
        raise ValueError(
            f"the variables lie on different grids ({listing}): choose some with variables="
        )
    spatial = next(iter(fields.values()))
    ds = _squeeze(ds, list(fields), spatial)
    kept, sample_dims = _sample_dimensions(ds, list(fields), spatial, variables is not None)
    ds = _only(ds, kept, spatial, sample_dims)
    ds = _rename_spatial(ds, kept, spatial, ordering)
    ds = _lazy(ds, kept, sample_dims)
    ds = _one_sample_dimension(ds, sample_dims)
    return ds.transpose(sample_dimension(ds), *spatial_dimensions(ds))


def sample_dimension(ds: xr.Dataset) -> str:
    """Name of the samples' dimension of a dataset in normal form: ``time`` or ``sample``."""
    return "time" if "time" in ds.dims else "sample"


def spatial_dimensions(ds: xr.Dataset) -> tuple[str, ...]:
    """Names of the spatial dimensions of a dataset in normal form."""
    return ("cell",) if "cell" in ds.dims else ("latitude", "longitude")


def grid_of(ds: xr.Dataset) -> LatLon | HEALPix:
    """The grid a dataset in normal form lies on.

    Raises:
        ValueError: the grid is regional or irregular.
    """
    if "cell" in ds.dims:
        attrs = ds["crs"].attrs
        return HEALPix(int(attrs["healpix_nside"]), str(attrs["healpix_order"]))
    return LatLon(ds["latitude"].values, ds["longitude"].values)


def grid_coordinates(grid: Grid) -> tuple[tuple[str, ...], dict[str, xr.Variable]]:
    """Spatial dimensions and CF coordinates of values on ``grid``."""
    if isinstance(grid, HEALPix):
        return ("cell",), {"crs": _healpix_crs(grid.nside, grid.ordering)}
    latitude, longitude = (np.asarray(axis) for axis in (grid.latitude, grid.longitude))
    if len(grid.shape) == 2:
        return ("latitude", "longitude"), {
            "latitude": xr.Variable("latitude", latitude, _LATITUDE_ATTRS),
            "longitude": xr.Variable("longitude", longitude, _LONGITUDE_ATTRS),
        }
    pointwise = [{k: v for k, v in a.items() if k != "axis"} for a in _AXIS_ATTRS]
    return ("point",), {
        "latitude": xr.Variable("point", latitude, pointwise[0]),
        "longitude": xr.Variable("point", longitude, pointwise[1]),
    }


_LATITUDE_ATTRS = {
    "standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y",
}  # fmt: skip
_LONGITUDE_ATTRS = {
    "standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X",
}  # fmt: skip
_AXIS_ATTRS = (_LATITUDE_ATTRS, _LONGITUDE_ATTRS)


def _healpix_crs(nside: int, ordering: str) -> xr.Variable:
    attrs = {
        "grid_mapping_name": "healpix", "healpix_nside": nside, "healpix_order": ordering,
    }  # fmt: skip
    return xr.Variable((), np.int8(0), attrs)


def _select(ds: xr.Dataset, select: Mapping[str, Any]) -> xr.Dataset:
    for name, value in select.items():
        if name not in ds.dims:
            raise ValueError(
                f"cannot select {name} = {value!r}: the dimensions are"
                f" {', '.join(map(str, ds.dims))}"
            )
        try:
            ds = ds.sel({name: value})
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"cannot select {name} = {value!r}: there are {values_of(ds, name)}"
            ) from error
    return ds


def _requested(ds: xr.Dataset, variables: str | Sequence[str] | None) -> list[str]:
    if variables is None:
        return [str(name) for name, v in ds.data_vars.items() if v.dtype.kind in "fiu"]
    names = [variables] if isinstance(variables, str) else list(variables)
    missing = [name for name in names if name not in ds.data_vars]
    if missing or not names:
        raise ValueError(f"no variable {', '.join(missing)}; there are {_listing(ds)}")
    return names


def _listing(ds: xr.Dataset) -> str:
    return ", ".join(describe(ds, name) for name in ds.data_vars) or "no variables"


def _squeeze(ds: xr.Dataset, names: list[str], spatial: tuple[str, ...]) -> xr.Dataset:
    """Drop levels and unknown dimensions that hold a single value; refuse them otherwise."""
    for name in names:
        for dim in map(str, ds[name].dims):
            if dim in spatial or dim not in ds.dims or kind_of(ds, dim) == "sample":
                continue
            if ds.sizes[dim] > 1:
                raise ValueError(
                    f"{describe(ds, name)} has a dimension {dim} ({values_of(ds, dim)}) besides"
                    f" space and samples: choose one value, as in select={{{dim!r}: …}} or"
                    f" ds.sel({dim}=…), or rename it to 'sample' if its values are samples"
                )
            ds = ds.isel({dim: 0}, drop=True)
    return ds


def _sample_dimensions(
    ds: xr.Dataset, names: list[str], spatial: tuple[str, ...], requested: bool
) -> tuple[list[str], list[str]]:
    """The fields that have all sample dimensions, and these dimensions in order."""
    dims = {name: [str(d) for d in ds[name].dims if d not in spatial] for name in names}
    longest = max(dims.values(), key=len)
    kept = [name for name in names if set(dims[name]) == set(longest)]
    left_out = [name for name in names if name not in kept]
    if left_out and requested:
        raise ValueError(
            f"the variables have different samples: {', '.join(describe(ds, n) for n in names)};"
            " choose variables with the same dimensions"
        )
    if left_out:
        _LOG.info("left out %s: not along %s", ", ".join(left_out), " × ".join(longest))
    return kept, longest


def _only(
    ds: xr.Dataset, names: list[str], spatial: tuple[str, ...], sample_dims: list[str]
) -> xr.Dataset:
    """The fields, the spatial axes, and whatever only varies along the samples."""
    along = [
        name
        for name, v in ds.variables.items()
        if v.dims and set(v.dims) <= set(sample_dims) and name not in names
    ]
    axes = [dim for dim in spatial if dim in ds.coords]
    scalars = [c for c in ("time", "crs") if c in ds.variables and ds[c].ndim == 0]
    mapping = [ds[n].attrs.get("grid_mapping", ds[n].encoding.get("grid_mapping")) for n in names]
    crs = [m for m in mapping if m in ds.variables]
    coordinates = list(dict.fromkeys([*along, *axes, *scalars, *crs]))
    kept = ds[[*names, *coordinates]].set_coords(coordinates)
    return kept.drop_vars([c for c in kept.coords if c not in coordinates])


def _rename_spatial(
    ds: xr.Dataset, names: list[str], spatial: tuple[str, ...], ordering: str | None
) -> xr.Dataset:
    mappings = [c for c in ds.coords if ds[c].ndim == 0 and c != "time"]
    if len(spatial) == 2:
        ds = ds.drop_vars(mappings)
        ds = ds.rename(dict(zip(spatial, ("latitude", "longitude"), strict=True)))
        for axis, attrs in zip(("latitude", "longitude"), _AXIS_ATTRS, strict=True):
            ds[axis].attrs = attrs
        return _set_mapping(ds, names, None)
    nside = nside_of(ds.sizes[spatial[0]])
    assert nside is not None
    order = _ordering(ds, names, spatial[0], ordering)
    if spatial[0] in ds.coords:
        if not np.array_equal(ds[spatial[0]].values, np.arange(ds.sizes[spatial[0]])):
            raise ValueError(
                f"the coordinate {spatial[0]} does not number the HEALPix pixels from 0 upwards:"
                f" sort the data by it first, as in ds.sortby({spatial[0]!r})"
            )
        ds = ds.drop_vars(spatial[0])
    ds = ds.drop_vars(mappings)
    if spatial[0] != "cell":
        ds = ds.rename_dims({spatial[0]: "cell"})
    return _set_mapping(ds, names, "crs").assign_coords(crs=_healpix_crs(nside, order))


def _set_mapping(ds: xr.Dataset, names: list[str], mapping: str | None) -> xr.Dataset:
    """Point the fields to their grid mapping instead of the file's."""
    for name in names:
        attrs = {k: v for k, v in ds[name].attrs.items() if k != "grid_mapping"}
        ds[name].attrs = attrs | ({"grid_mapping": mapping} if mapping else {})
        ds[name].encoding.pop("grid_mapping", None)
    return ds


def _ordering(ds: xr.Dataset, names: list[str], cell: str, given: str | None) -> str:
    scalars = [ds[c] for c in ds.coords if ds[c].ndim == 0]
    axis = [ds[cell]] if cell in ds.coords else []
    stated = None
    for holder in (*scalars, *axis, *(ds[n] for n in names), ds):
        attrs = {str(k).lower(): v for k, v in holder.attrs.items()}
        stated = stated or next((attrs[key] for key in _ORDERING_KEYS if key in attrs), None)
    stated = given or stated
    if stated is None or str(stated).lower() not in _ORDERINGS:
        found = "do not say" if stated is None else f"say {stated!r}"
        raise ValueError(
            f"the HEALPix data {found} whether pixels are in ring or nested ordering: pass"
            " ordering='ring' or ordering='nested'"
        )
    return _ORDERINGS[str(stated).lower()]


def _lazy(ds: xr.Dataset, names: list[str], sample_dims: list[str]) -> xr.Dataset:
    """Chunks of samples that hold whole maps, at least as large as those on disk."""
    ds = ds.assign_coords({c: v.compute() for c, v in ds.coords.items() if c not in ds.indexes})
    if not sample_dims or any(ds[name].chunks for name in names):
        return ds
    field = ds[names[0]]
    size = 8 * math.prod(n for d, n in field.sizes.items() if d not in sample_dims)
    budget = max(1, _CHUNK_BYTES // size)
    stored = field.encoding.get("preferred_chunks", {})
    chunks = {}
    for dim in reversed(sample_dims):  # the last one varies fastest
        unit = stored.get(dim, 1)
        chunks[dim] = min(ds.sizes[dim], unit * math.ceil(budget / unit))
        budget = max(1, budget // chunks[dim])
    return ds.assign({name: ds[name].variable.chunk(chunks) for name in names})


def _one_sample_dimension(ds: xr.Dataset, sample_dims: list[str]) -> xr.Dataset:
    dated = [d for d in sample_dims if d in ds.coords and is_dates(ds[d].values)]
    if len(dated) == 1 and dated[0] != "time":
        ds = ds.rename({dated[0]: "time"})
        sample_dims = ["time" if d == dated[0] else d for d in sample_dims]
    if not sample_dims:
        return _expand(ds)
    if len(sample_dims) > 1:
        return _stack(ds, sample_dims)
    name = sample_dims[0]
    if name.lower() == "time" and name != "time":
        return ds.rename({name: "time"})
    if name in ("time", "sample"):
        return ds
    if name in ds.indexes:
        ds = ds.reset_index(name)
    return ds.rename_dims({name: "sample"})


def _expand(ds: xr.Dataset) -> xr.Dataset:
    return ds.expand_dims("time") if "time" in ds.coords else ds.expand_dims("sample")


def _stack(ds: xr.Dataset, sample_dims: list[str]) -> xr.Dataset:
    """Stack the sample dimensions in C order, every coordinate repeated along the others."""
    along = {str(c): v for c, v in ds.coords.items() if v.dims and set(v.dims) <= set(sample_dims)}
    shape = {d: ds.sizes[d] for d in sample_dims}
    ds = ds.drop_vars(list(along)).stack(sample=sample_dims, create_index=False)
    return ds.assign_coords(
        {
            name: ("sample", v.variable.set_dims(shape).transpose(*sample_dims).values.ravel())
            for name, v in along.items()
        }
    )
