"""Observations in files, as linear observations of what a model draws.

A model draws standardised anomalies x; a reading r of variable c at a place, with error e, tells

    T_c(r) = H(s K x + climatology) + ε,    so    y = T_c(r) − H climatology,    H' = H s K,

with the encoder's transform T_c, scale s and amplitude K.  The standard deviation of ε has two
parts: what the error makes of T_c, T_c(r + e) − T_c(r), and what a reading sees that the model does
not, the variance of degrees beyond its lmax (the error of representativeness), taken to be
independent from place to place.

Files are tables of stations (.csv or .txt, :mod:`spherediff.data.stations`), or one map (NetCDF,
Zarr, GRIB, HEALPix FITS), missing where nothing is known, the standard error in a variable
``name_error``, which may be one number.

A map on a grid too coarse for the model is taken to hold the degrees that its grid can, and no
others: H cuts off at these.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff.data.archive import grid_of, normalise, sample_dimension
from spherediff.data.climatology import dates_of
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
from spherediff.data.stations import read_table
from spherediff.grids import GaussLegendre, Grid, Points
from spherediff.observe import Component, Filtered, Observation, Operator, Stacked, Values

_ERROR = 0.05  # of a variable's standard deviation, where no error is known
_SMALLEST = 1e-3
_TABLES = (".csv", ".txt")


class Standardised(Operator):
    """H' = H s K: an observation of anomalies as one of standardised anomalies.

    Args:
        operator: H, of anomalies in transformed units.
        encoder: for s and K.
    """

    def __init__(self, operator: Operator, encoder: Encoder) -> None:
        super().__init__(operator.event_shape, operator.size)
        self.operator, self.encoder = operator, encoder

    def _apply(self, x: Tensor) -> Tensor:
        scale = self.encoder.scale[:, None]
        return self.operator(self.encoder.amplitude.multiply(x.cpu().double() * scale)).to(x)

    def _transpose(self, y: Tensor) -> Tensor:
        x = self.operator.adjoint(y.cpu().double())
        return (self.encoder.scale[:, None] * self.encoder.amplitude.multiply(x)).to(y)


def read(path: str | os.PathLike[str], encoder: Encoder) -> list[Reading]:
    """What a file knows of the encoder's variables.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: none of the variables; other units; an error without its variable; coordinates
            out of range; infinite values, negative errors, or nothing known at all; a file of
            several maps or dates; no date where one is expected.
    """
    path = Path(path)
    readings = (
        read_table(path, encoder) if path.suffix.lower() in _TABLES else _read_map(path, encoder)
    )
    for reading in readings:
        _require_sound(reading, path)
    return readings


def observe(readings: Sequence[Reading], encoder: Encoder, time: Any = None) -> Observation:
    """The readings as an observation of the encoder's standardised anomalies.

    Args:
        readings: at least one.
        encoder: of the model.
        time: the date to which they belong; needed if the climatology varies with it.

    Raises:
        ValueError: no readings, no date, or a value outside the domain of a transform.
    """
    if not readings:
        raise ValueError("expected at least one reading to condition on")
    dates = None if time is None else dates_of(time, 1)
    climatology = encoder.climatology_at(dates, 1)[0]
    unresolved = representativeness(encoder)
    operators, values, errors = [], [], []
    for reading in readings:
        H = _operator(reading, encoder)
        channel = encoder.names.index(reading.variable)
        known = np.isfinite(reading.values)
        y, error = _transformed(reading, encoder, known)
        if reading.grid.max_lmax < 0 or reading.grid.max_lmax >= encoder.lmax:
            error = np.hypot(error, float(unresolved[channel]))
        operators.append(Standardised(H, encoder))
        values.append(torch.from_numpy(y) - H(climatology))
        errors.append(torch.from_numpy(error))
    return Observation(Stacked(operators), torch.cat(values), torch.cat(errors))


def representativeness(encoder: Encoder) -> Tensor:
    """Standard deviation of what lies beyond lmax, in transformed units, float64 (channels,).

    From the share ``encoder.truncated`` of the variance about the time mean, which anomalies and
    the yearly cycle make up.
    """
    grid = GaussLegendre(encoder.lmax)
    weights = grid.area_weights / (4 * math.pi)
    unevenness = (weights * encoder.amplitude.map(grid).square()).sum((-2, -1))
    middle = np.array([f"2001-{month:02d}-15" for month in range(1, 13)], "datetime64[ns]")
    cycle = encoder.climatology_at(xr.DataArray(middle, dims="sample"), 12)
    kept = encoder.scale.square() * unevenness + cycle.var(0).sum(-1) / (4 * math.pi)
    return (encoder.truncated / (1 - encoder.truncated) * kept).sqrt()


def _operator(reading: Reading, encoder: Encoder) -> Operator:
    """H, of anomalies in transformed units."""
    shape = (len(encoder.names), harmonics.count(encoder.lmax))
    known = np.isfinite(reading.values)
    pair = next((p for p in encoder.vectors if reading.variable in p), None)
    if pair is None:
        channel = encoder.names.index(reading.variable)
        H: Operator = Values(reading.grid, shape, channel, known)
    else:
        both = encoder.names.index(pair[0]), encoder.names.index(pair[1])
        H = Component(reading.grid, shape, both, pair.index(reading.variable), known)
    if 0 <= reading.grid.max_lmax < encoder.lmax:
        held = torch.arange(encoder.lmax + 1) <= reading.grid.max_lmax
        return Filtered(H, held.double())
    return H


def _transformed(
    reading: Reading, encoder: Encoder, known: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """T(r) and its standard error where something is known."""
    channel = encoder.names.index(reading.variable)
    transform, scale = encoder.transforms[channel], float(encoder.scale[channel])
    r = reading.values[known]
    try:
        y = np.asarray(transform.forward(r), np.float64)
    except ValueError as error:
        raise ValueError(f"{reading.variable}: {error}") from error
    if reading.error is None:
        return y, np.full(len(r), _ERROR * scale)
    spread = np.asarray(transform.forward(r + reading.error[known]), np.float64) - y
    return y, np.maximum(spread, _SMALLEST * scale)


def _read_map(path: Path, encoder: Encoder) -> list[Reading]:
    with naming(path):
        ds, errors = _fields(open_stored(path), encoder, path)
        if ds.sizes[sample_dimension(ds)] != 1:
            raise ValueError(
                f"{path} holds {ds.sizes[sample_dimension(ds)]} maps; expected one, of the date to "
                "which the observations belong"
            )
        date = date_of(ds["time"].values[0], str(path)) if "time" in ds.coords else None
        ds = ds.isel({sample_dimension(ds): 0})
        grid, flat = _grid(ds)
    readings = []
    for name, error in errors.items():
        variable = variable_of(name, encoder)
        assert variable is not None
        for one in (name, error):
            if one is not None:
                require_units(encoder, variable, ds[one].attrs.get("units"), path, one)
        values = np.asarray(ds[name].values, np.float64)
        spread = None if error is None else np.asarray(ds[error].values, np.float64)
        if flat:
            values, spread = values.ravel(), None if spread is None else spread.ravel()
        readings.append(Reading(variable, grid, values, spread, date, str(path)))
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


def _require_sound(reading: Reading, path: Path) -> None:
    known = np.isfinite(reading.values)
    what = f"{path}: {reading.variable}"
    if np.isinf(reading.values).any():
        raise ValueError(f"{what} has {int(np.isinf(reading.values).sum())} infinite values")
    if not known.any():
        raise ValueError(f"{what} has no value at all: leave it out")
    if reading.error is None:
        return
    bad = int((~(np.isfinite(reading.error[known]) & (reading.error[known] >= 0))).sum())
    if bad:
        raise ValueError(
            f"{what} has {bad} values whose standard error is missing, infinite or negative: give "
            "each an error of at least 0, or leave the column of errors out"
        )
