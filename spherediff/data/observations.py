"""Observations in files, as linear observations of what a model draws.

A model draws standardised anomalies x; a reading r of variable c at a place, with error e, tells

    T_c(r) = H(s K x + climatology) + ε,    so    y = T_c(r) − H climatology,    H' = H s K,

with the encoder's transform T_c, scale s and amplitude K.  The standard deviation of ε has two
parts: what the error makes of T_c, T_c(r + e) − T_c(r), and what a reading sees that the model does
not, the variance of degrees beyond its lmax (the error of representativeness), taken to be
independent from place to place.

Files are tables of stations (.csv or .txt, :mod:`spherediff.data.stations`), or one map (NetCDF,
Zarr, GRIB, HEALPix FITS, :mod:`spherediff.data.partial`).

The values of a coarse map are means over cells (:mod:`spherediff.data.cells`), and H takes these
means; of what is independent from π/L to π/L, L the model's lmax, a share of 1/√n is left in a cell
with n such places.  A variable that has a transform is averaged before the transform, so that

    T(mean T⁻¹(a + u ξ)) = mean a + b + e,

with u ξ the part of the field that the model does not resolve.  As statistical linearisation has it
(Gelb et al. 1974, Applied Optimal Estimation, §6.2, with the slope kept), b is the mean of the
difference over the prior, for each cell, and is taken off what is read.  What is unresolved enters
by its large values, which do not average out: e has the variance of a reading at a point.
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
from scipy.spatial import KDTree
from torch import Tensor

from spherediff import harmonics
from spherediff.data.climatology import dates_of
from spherediff.data.encoder import Encoder
from spherediff.data.partial import read_map
from spherediff.data.readings import Reading, coordinates
from spherediff.data.stations import read_table
from spherediff.data.transforms import Identity, Transform
from spherediff.grids import GaussLegendre, Grid
from spherediff.observe import Averaged, Component, Observation, Operator, Stacked, Values

_ERROR = 0.05  # of a variable's standard deviation, where no error is known
_SMALLEST = 1e-3
_SAME_PLACE = 1e-6  # radians, 6 m
_UNLIKELY = 10  # standard deviations from the climatology
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
        read_table(path, encoder) if path.suffix.lower() in _TABLES else read_map(path, encoder)
    )
    for reading in readings:
        _require_sound(reading, path)
    return readings


def observe(
    readings: Sequence[Reading], encoder: Encoder, time: Any = None, prior: Tensor | None = None
) -> Observation:
    """The readings as an observation of the encoder's standardised anomalies.

    Args:
        readings: at least one.
        encoder: of the model.
        time: the date to which they belong; needed if the climatology varies with it.
        prior: standardised anomalies as likely as any before something is read, some dozens, shape
            (count, channels, n); needed for means over cells of variables with a transform
            (:meth:`spherediff.model.Model.observe` draws them).

    Raises:
        ValueError: no readings, no date, no prior where it is needed, a place given twice, or a
            value outside the domain of a transform or more than ten standard deviations from the
            climatology.
    """
    if not readings:
        raise ValueError("expected at least one reading to condition on")
    _require_distinct(readings, encoder)
    dates = None if time is None else dates_of(time, 1)
    climatology = encoder.climatology_at(dates, 1)[0]
    unresolved = representativeness(encoder)
    operators, values, errors = [], [], []
    for reading in readings:
        H, y, error = _observed(reading, encoder, climatology, unresolved, prior)
        mean = H(climatology)
        _require_plausible(reading, encoder, y, error, mean.numpy())
        operators.append(Standardised(H, encoder))
        values.append(torch.from_numpy(y) - mean)
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


def _observed(
    reading: Reading,
    encoder: Encoder,
    climatology: Tensor,
    unresolved: Tensor,
    prior: Tensor | None,
) -> tuple[Operator, NDArray[np.float64], NDArray[np.float64]]:
    """H of fields in transformed units, what it has to give, and the standard error of that."""
    channel, known = encoder.names.index(reading.variable), np.isfinite(reading.values)
    transform, beyond = encoder.transforms[channel], float(unresolved[channel])
    H = _operator(reading, encoder, known)
    y, error = _transformed(reading, encoder, known)
    if reading.cells is None:
        return H, y, np.hypot(error, beyond)
    if isinstance(transform, Identity):
        share = min(1, math.pi / (encoder.lmax * reading.cells.extent))
        return H, y, np.hypot(error, beyond * share)
    if prior is None:
        raise ValueError(
            f"{reading.source}: {reading.variable} has the transform {transform}, and the mean over"
            " a cell is no mean of that: expected draws of the prior to tell what it is instead;"
            " use Model.observe"
        )
    assert isinstance(H, Averaged)
    fields = encoder.anomalies(prior) + climatology
    return H, y - _excess(H, fields, transform, beyond), np.hypot(error, beyond)


def _operator(reading: Reading, encoder: Encoder, known: NDArray[np.bool_]) -> Operator:
    """H, of anomalies in transformed units."""
    if reading.cells is None:
        return _values(reading.variable, encoder, reading.grid, known)
    nodes, weights, _ = reading.cells.of(known.ravel())
    return Averaged(_values(reading.variable, encoder, nodes), weights)


def _values(
    variable: str, encoder: Encoder, grid: Grid, mask: NDArray[np.bool_] | None = None
) -> Operator:
    """Values of a variable on a grid."""
    shape = (len(encoder.names), harmonics.count(encoder.lmax))
    pair = next((p for p in encoder.vectors if variable in p), None)
    if pair is None:
        return Values(grid, shape, encoder.names.index(variable), mask)
    both = encoder.names.index(pair[0]), encoder.names.index(pair[1])
    return Component(grid, shape, both, pair.index(variable), mask)


def _excess(
    H: Averaged, fields: Tensor, transform: Transform, unresolved: float
) -> NDArray[np.float64]:
    """b, the mean over fields of T(mean T⁻¹(a + u ξ)) − mean a, for each cell."""
    rng = np.random.default_rng(0)
    weights = H.weights.numpy()
    total = np.zeros(H.size)
    for field in fields:
        a = H.operator(field).numpy().reshape(weights.shape)
        x = transform.inverse(a + unresolved * rng.standard_normal(a.shape))
        total += transform.forward((weights * x).sum(1)) - (weights * a).sum(1)
    return total / len(fields)


def _transformed(
    reading: Reading, encoder: Encoder, known: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """T(r) and its standard error where something is known."""
    channel = encoder.names.index(reading.variable)
    transform, scale = encoder.transforms[channel], float(encoder.scale[channel])
    r = reading.values[known]
    try:
        y = np.asarray(transform.forward(r), np.float64)
    except ValueError as error:  # amounts below 0
        k = int(np.flatnonzero(known)[r.argmin()])
        raise ValueError(
            f"{reading.place(k)}: expected {reading.variable} not below 0, found {r.min():.6g}, as "
            f"are {int((r < 0).sum())} of {len(r)} values: does it mark a missing value? Leave what"
            " is not known empty (in a map: NaN)"
        ) from error
    if reading.error is None:
        return y, np.full(len(r), _ERROR * scale)
    spread = np.asarray(transform.forward(r + reading.error[known]), np.float64) - y
    return y, np.maximum(spread, _SMALLEST * scale)


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


def _require_distinct(readings: Sequence[Reading], encoder: Encoder) -> None:
    """Refuse a place that is given twice, but for a point that is also part of a coarse map."""
    groups: dict[Any, list[Reading]] = {}
    for reading in readings:
        key = reading.variable, reading.cells is None
        groups.setdefault(key, []).append(reading)
    for (variable, _), alike in groups.items():
        component = any(variable in pair for pair in encoder.vectors)
        known = [np.flatnonzero(np.isfinite(one.values)) for one in alike]
        places = np.concatenate(
            [_directions(one.grid, component)[k] for one, k in zip(alike, known, strict=True)]
        )
        distance, nearest = KDTree(places).query(places, 2, distance_upper_bound=_SAME_PLACE)
        repeated = np.flatnonzero(np.isfinite(distance[:, 1]))
        if not len(repeated):
            continue
        whose = [(one, i) for one, k in zip(alike, known, strict=True) for i in k]
        pair = np.sort(nearest, axis=1)[repeated[0]].tolist()
        first, second = (one.place(int(k)) for one, k in (whose[i] for i in pair))
        raise ValueError(
            f"{first} and {second}: {len(repeated)} readings of {variable}, these among them, are"
            " at places that are given more than once: average them, with the error of the mean"
        )


def _directions(grid: Grid, component: bool) -> NDArray[np.float64]:
    """Unit vectors of places, and for components of winds also those to the east of them."""
    latitude, longitude = (np.radians(axis) for axis in coordinates(grid))
    north, east = np.cos(latitude), np.stack([-np.sin(longitude), np.cos(longitude)])
    up = np.stack([north * np.cos(longitude), north * np.sin(longitude), np.sin(latitude)])
    return np.concatenate([up, east] if component else [up]).T


def _require_plausible(
    reading: Reading,
    encoder: Encoder,
    y: NDArray[np.float64],
    error: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> None:
    """Refuse values far from the climatology, which mostly have other units or mark a gap."""
    known = np.flatnonzero(np.isfinite(reading.values))
    reach = _UNLIKELY * np.hypot(_prior_std(reading, encoder).ravel()[known], error)
    unlikely = np.flatnonzero(np.abs(y - mean) > reach)
    if not len(unlikely):
        return
    k = int(unlikely[0])
    channel = encoder.names.index(reading.variable)
    bounds = encoder.transforms[channel].inverse(mean[k] + reach[k] * np.array([-1.0, 1.0]))
    low, high = (f"{bound:.4g}" for bound in bounds)
    raise ValueError(
        f"{reading.place(int(known[k]))}: expected {reading.variable} between {low} and {high} "
        f"{encoder.units[channel]}, found {reading.values.flat[known[k]]:.6g}, more than "
        f"{_UNLIKELY} standard deviations from the climatology, as are {len(unlikely)} of "
        f"{len(known)} values: are the units others, or does it mark a missing value? Leave what "
        "is not known empty (in a map: NaN), and give a value that is right a larger error"
    )


def _prior_std(reading: Reading, encoder: Encoder) -> NDArray[np.float64]:
    """Standard deviation at each place, or that of the whole sphere where this is larger."""
    channel = encoder.names.index(reading.variable)
    pair = next((p for p in encoder.vectors if reading.variable in p), None)
    if pair is not None:
        both = [encoder.names.index(name) for name in pair]
        return np.full(reading.grid.shape, float(encoder.scale[both].norm()))
    local = encoder.amplitude.map(reading.grid)[channel].clamp(min=1)
    return (encoder.scale[channel] * local).numpy()
