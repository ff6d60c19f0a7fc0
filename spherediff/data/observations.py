"""Observations in files, as linear observations of what a model draws.

A model draws standardised anomalies x; a reading r of variable c at a place, with error e, tells

    T_c(r) = H(s K x + climatology) + ε,    so    y = T_c(r) − H climatology,    H' = H s K,

with the encoder's transform T_c, scale s and amplitude K.  The standard deviation of ε has two
parts: what the error makes of T_c, T_c(r + e) − T_c(r), and what a reading sees that the model does
not, the variance of degrees beyond its lmax (the error of representativeness), taken to be
independent from place to place.

Files are tables of stations (.csv), with columns ``latitude``, ``longitude`` (degrees) and one for
each variable, headed by its name or ``name [units]``, the standard error in ``name_error``, the
date in ``time``; or one map (NetCDF, Zarr, GRIB, HEALPix FITS), missing where nothing is known, the
standard error in a variable ``name_error``.

A map on a grid too coarse for the model is taken to hold the degrees that its grid can, and no
others: H cuts off at these.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff.data.archive import grid_of, sample_dimension
from spherediff.data.climatology import dates_of
from spherediff.data.encoder import Encoder
from spherediff.data.read import open as open_archive
from spherediff.grids import GaussLegendre, Grid, Points
from spherediff.observe import Component, Filtered, Observation, Operator, Stacked, Values

_ERROR = 0.05  # of a variable's standard deviation, where no error is known
_SMALLEST = 1e-3
_SAME_PLACE = 1e-6  # degrees
_SHOWN = 5  # rows named in an error


@dataclass(frozen=True, eq=False)
class Reading:
    """What is known of one variable.

    Attributes:
        variable: its name.
        grid: where.
        values: in the units of the encoder, NaN where nothing is known; shape ``grid.shape``.
        error: standard error in the same units; None if it is not known.
        date: to which it belongs, if the file says so.
    """

    variable: str
    grid: Grid
    values: NDArray[np.float64]
    error: NDArray[np.float64] | None
    date: Any = None


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
        ValueError: none of the variables; other units; coordinates out of range; a place given
            twice; infinite values, negative errors, or nothing known at all; a file of several
            maps.
    """
    path = Path(path)
    readings = _read_table(path, encoder) if path.suffix == ".csv" else _read_map(path, encoder)
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


def _read_table(path: Path, encoder: Encoder) -> list[Reading]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    table = pd.read_csv(path, skipinitialspace=True)
    columns = {str(column).strip(): str(column) for column in table.columns}
    latitude = _numbers(table, _one_of(columns, ("latitude", "lat"), path), path)
    longitude = _numbers(table, _one_of(columns, ("longitude", "lon"), path), path)
    _require_rows(np.isfinite(latitude) & np.isfinite(longitude), path, "have no coordinates")
    _require_rows(np.abs(latitude) <= 90, path, "have a latitude outside [-90, 90] degrees")
    _require_rows(np.abs(longitude) <= 360, path, "have a longitude outside [-360, 360] degrees")
    _require_distinct(latitude, longitude, path)
    date = _date(table, columns, path)
    readings = []
    for heading, column in columns.items():
        name, _, units = heading.partition("[")
        name = name.strip()
        if name not in encoder.names:
            continue
        _require_units(encoder, name, units.rstrip("] ") or None, path)
        error = columns.get(f"{name}_error")
        readings.append(
            Reading(
                name,
                Points(latitude, longitude),
                _numbers(table, column, path),
                None if error is None else _numbers(table, error, path),
                date,
            )
        )
    if not readings:
        raise ValueError(
            f"{path} knows none of the model's variables {', '.join(encoder.names)}: its columns "
            f"are {', '.join(columns)}"
        )
    return readings


def _read_map(path: Path, encoder: Encoder) -> list[Reading]:
    ds = open_archive(path)
    if ds.sizes[sample_dimension(ds)] != 1:
        raise ValueError(
            f"{path} holds {ds.sizes[sample_dimension(ds)]} maps; expected one, of the date to "
            "which the observations belong"
        )
    date = ds["time"].values[0] if "time" in ds.coords else None
    ds = ds.isel({sample_dimension(ds): 0})
    names = [name for name in encoder.names if name in ds.data_vars]
    if not names:
        raise ValueError(
            f"{path} knows none of the model's variables {', '.join(encoder.names)}: it has "
            f"{', '.join(map(str, ds.data_vars))}"
        )
    grid, flat = _grid(ds)
    readings = []
    for name in names:
        _require_units(encoder, name, ds[name].attrs.get("units"), path)
        error = ds.get(f"{name}_error")
        values = np.asarray(ds[name].values, np.float64)
        spread = None if error is None else np.asarray(error.values, np.float64)
        if flat:
            values, spread = values.ravel(), None if spread is None else spread.ravel()
        readings.append(Reading(name, grid, values, spread, date))
    return readings


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


def _require_units(encoder: Encoder, name: str, found: Any, path: Path) -> None:
    expected = encoder.units[encoder.names.index(name)]
    if found is not None and str(found) != expected:
        raise ValueError(
            f"{path}: {name} is in {str(found)!r}, but the model is in {expected!r}: convert it"
        )


def _require_rows(good: NDArray[np.bool_], path: Path, what: str) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        rows = ", ".join(str(k + 2) for k in bad[:_SHOWN]) + ("…" if len(bad) > _SHOWN else "")
        raise ValueError(f"{path}: {len(bad)} stations {what}: line {rows}")


def _require_distinct(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], path: Path
) -> None:
    places = np.stack([latitude, longitude % 360], axis=1)
    _, first, count = np.unique(
        np.round(places / _SAME_PLACE), axis=0, return_index=True, return_counts=True
    )
    if (count > 1).any():
        line = int(first[count > 1].min()) + 2
        raise ValueError(
            f"{path}: {int((count > 1).sum())} places are given more than once, the first in line "
            f"{line}: average their readings, with the error of the mean"
        )


def _one_of(columns: dict[str, str], names: tuple[str, ...], path: Path) -> str:
    found = {heading.lower(): column for heading, column in columns.items()}
    for name in names:
        if name in found:
            return found[name]
    raise ValueError(f"{path}: expected a column {names[0]}; there are {', '.join(columns)}")


def _numbers(table: pd.DataFrame, column: str, path: Path) -> NDArray[np.float64]:
    entries = np.asarray(table[column])
    numbers = np.asarray(pd.to_numeric(entries, errors="coerce"), np.float64)
    wrong = np.flatnonzero(np.isnan(numbers) & ~np.asarray(pd.isna(entries)))
    if len(wrong):
        raise ValueError(
            f"{path}: {len(wrong)} entries of {column.strip()} are no numbers, the first "
            f"{entries[wrong[0]]!r} in line {wrong[0] + 2}"
        )
    return numbers


def _date(table: pd.DataFrame, columns: dict[str, str], path: Path) -> Any:
    column = next((c for h, c in columns.items() if re.fullmatch("time|date", h.lower())), None)
    if column is None:
        return None
    dates = table[column].dropna().unique()
    if len(dates) != 1:
        raise ValueError(
            f"{path} has readings of {len(dates)} dates; expected one, as all of them are to "
            "belong to the same map"
        )
    return np.datetime64(str(dates[0]), "ns")
