"""One map, with gaps, of a part of the sphere or coarse: NetCDF, Zarr, GRIB or HEALPix FITS.

Nothing is known where values are missing.  The standard error is a variable ``name_error``, which
may be one number, or one for each latitude.  Every place is read once: a closing meridian that
repeats the first is left out, and at a pole, but for the components of winds, which differ from
meridian to meridian, the mean of the values there is read.  The values of a map that is coarse for
the model are means over its cells (:mod:`spherediff.data.cells`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spherediff.data.archive import grid_of, normalise, sample_dimension
from spherediff.data.cells import Cells, of_healpix, of_rectangle
from spherediff.data.encoder import Encoder
from spherediff.data.read import open_stored
from spherediff.data.readings import (
    Reading,
    date_of,
    errors_of,
    naming,
    require_units,
    variable_of,
)
from spherediff.grids import Grid, HEALPix, Points

_SAME_PLACE = 1e-4  # degrees


def read_map(path: Path, encoder: Encoder) -> list[Reading]:
    """What a map knows of the encoder's variables.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: none of the variables; several maps; other units; coordinates out of range.
    """
    with naming(path):
        ds, errors = _fields(open_stored(path), encoder, path)
        if ds.sizes[sample_dimension(ds)] != 1:
            raise ValueError(
                f"{path} holds {ds.sizes[sample_dimension(ds)]} maps; expected one, of the date to "
                "which the observations belong"
            )
        date = date_of(ds["time"].values[0], str(path)) if "time" in ds.coords else None
        ds = _without_closing_meridian(ds.isel({sample_dimension(ds): 0}))
        grid, flat = _grid(ds)
    readings = []
    for name, error in errors.items():
        variable = variable_of(name, encoder)
        assert variable is not None
        for one in (name, error):
            if one is not None:
                require_units(encoder, variable, ds[one].attrs.get("units"), path, one)
        component = any(variable in pair for pair in encoder.vectors)
        values = _values(ds, name, component)
        spread = None if error is None else _values(ds, error, component)
        if flat:
            values, spread = values.ravel(), None if spread is None else spread.ravel()
        cells = None if _at_points(ds[name]) else _cells(ds, grid, encoder.lmax, not component)
        readings.append(Reading(variable, grid, values, spread, date, str(path), cells=cells))
    return readings


def _fields(
    stored: xr.Dataset, encoder: Encoder, path: Path
) -> tuple[xr.Dataset, dict[str, str | None]]:
    """The encoder's variables and their errors in normal form, and the error's name of each."""
    names = [str(name) for name in stored.data_vars if variable_of(str(name), encoder)]
    if not names:
        raise ValueError(
            f"{path} knows none of the model's variables {', '.join(encoder.names)}: it has "
            f"{', '.join(map(str, stored.data_vars))}"
        )
    errors = errors_of(map(str, stored.variables), path)
    found = {name: errors.get(name.lower()) for name in names}
    fields = {error: stored[name] for name, error in found.items() if error is not None}
    stored = stored.reset_coords([error for error in fields if error in stored.coords])
    for error, field in fields.items():  # one number for all, or one for each latitude
        stored[error] = stored[error].broadcast_like(field)
    return normalise(stored, [*names, *fields]), found


def _grid(ds: xr.Dataset) -> tuple[Grid, bool]:
    """The grid of a map, or its points, flattened, if they cover no sphere."""
    try:
        return grid_of(ds), False
    except ValueError:
        latitude, longitude = np.meshgrid(ds.latitude.values, ds.longitude.values, indexing="ij")
        return Points(latitude.ravel(), longitude.ravel()), True


def _at_points(field: xr.DataArray) -> bool:
    """Whether a field says that its values are those at its points."""
    return "point" in str(field.attrs.get("cell_methods", "")).split()


def _cells(ds: xr.Dataset, grid: Grid, lmax: int, caps: bool) -> Cells | None:
    """Those of a map that is coarse for a model of degrees up to lmax."""
    if isinstance(grid, HEALPix):
        return of_healpix(grid, lmax)
    return of_rectangle(ds["latitude"].values, ds["longitude"].values, lmax, caps)


def _without_closing_meridian(ds: xr.Dataset) -> xr.Dataset:
    """Without a last meridian that is the first, a full turn later, with the same values."""
    if "cell" in ds.dims:
        return ds
    first, last = ds.isel(longitude=0), ds.isel(longitude=-1)
    turn = abs(float(last["longitude"] - first["longitude"]))
    same = first.drop_vars("longitude").equals(last.drop_vars("longitude"))
    return ds.isel(longitude=slice(-1)) if same and abs(turn - 360) < _SAME_PLACE else ds


def _values(ds: xr.Dataset, name: str, component: bool) -> NDArray[np.float64]:
    """A field, or its errors; at a pole the mean on one meridian alone, unless of a component."""
    values = np.array(ds[name].values, np.float64)
    if component or "cell" in ds.dims:
        return values
    for k in np.flatnonzero(np.abs(ds["latitude"].values) > 90 - _SAME_PLACE):
        known = values[k][~np.isnan(values[k])]
        values[k] = np.nan
        values[k, :1] = known.mean() if known.size else np.nan
    return values
