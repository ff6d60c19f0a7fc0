"""Climatologies: the part of a field that depends on the time of the year alone.

Every climatology is a linear model, fitted by least squares to each coefficient a_i(t):

    a_i(t) ≈ Σ_j D_j(t) β_ji

    NoClimatology   no column          Constant   D = 1
    Monthly         D_j = 1 in month j
    Harmonics(K)    D = 1, cos kφ, sin kφ, k = 1 … K, with φ(t) = 2π (days since 2000-01-01)/Y

and Y the mean year of the calendar (365.2425 days in the Gregorian one).  Fitting and evaluating
take place in coefficient space, where a transform of the sphere, being linear, changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

MEAN_YEAR = {
    "standard": 365.2425,
    "gregorian": 365.2425,
    "proleptic_gregorian": 365.2425,
    "julian": 365.25,
    "noleap": 365.0,
    "365_day": 365.0,
    "all_leap": 366.0,
    "366_day": 366.0,
    "360_day": 360.0,
}


@dataclass(frozen=True)
class NoClimatology:
    """Nothing is removed."""

    def columns(self) -> int:
        return 0

    def design(self, time: xr.DataArray | None, count: int) -> NDArray[np.float64]:
        return np.empty((count, 0))


@dataclass(frozen=True)
class Constant:
    """The mean of the training samples."""

    def columns(self) -> int:
        return 1

    def design(self, time: xr.DataArray | None, count: int) -> NDArray[np.float64]:
        return np.ones((count, 1))


@dataclass(frozen=True)
class Monthly:
    """Twelve means, one for each calendar month."""

    def columns(self) -> int:
        return 12

    def design(self, time: xr.DataArray | None, count: int) -> NDArray[np.float64]:
        month = _require_dates(time, "Monthly").dt.month.values
        return (month[:, None] == np.arange(1, 13)).astype(np.float64)


@dataclass(frozen=True)
class Harmonics:
    """The mean and the first ``k`` harmonics of the year.

    Raises:
        ValueError: ``k`` is less than 1.
    """

    k: int = 3

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"Harmonics needs at least one harmonic, got k = {self.k}")

    def columns(self) -> int:
        return 2 * self.k + 1

    def design(self, time: xr.DataArray | None, count: int) -> NDArray[np.float64]:
        phase = 2 * np.pi * years(_require_dates(time, "Harmonics"))
        angle = phase[:, None] * np.arange(1, self.k + 1)
        return np.concatenate([np.ones((count, 1)), np.cos(angle), np.sin(angle)], axis=1)


Climatology = NoClimatology | Constant | Monthly | Harmonics
KINDS = (NoClimatology, Constant, Monthly, Harmonics)


def needs_dates(climatology: Climatology) -> bool:
    """Whether the climatology differs from one time of the year to another."""
    return isinstance(climatology, Monthly | Harmonics)


def fit(design: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares β with y ≈ design β.

    Args:
        design: shape (samples, columns).
        y: shape (samples, features).

    Raises:
        ValueError: the samples do not determine every column, as when a month never occurs.
    """
    samples, columns = design.shape
    if columns and np.linalg.matrix_rank(design) < columns:
        empty = np.flatnonzero(~design.any(axis=0)) + 1
        hint = f" (columns without a sample: {empty.tolist()})" if empty.size else ""
        raise ValueError(
            f"{samples} samples at {len(np.unique(design, axis=0))} different times of the year"
            f" do not determine the {columns} means or harmonics of this climatology{hint};"
            " give more samples or choose a simpler climatology, such as Constant()"
        )
    return np.asarray(np.linalg.lstsq(design, y, rcond=None)[0], np.float64)


def inflation(climatology: Climatology, samples: int) -> float:
    """√((N−1)/(N−k)), what anomalies of the N samples of a fit are to be multiplied by.

    A least-squares fit of k columns leaves (N−k)/N of the variance that samples have about the true
    cycle; sample variances about the mean, which divide by N − 1, know of one column only.
    """
    return math.sqrt((samples - 1) / (samples - max(1, climatology.columns())))


def is_dates(values: NDArray[Any]) -> bool:
    """Whether these are datetime64 or cftime dates."""
    if values.dtype.kind == "M":
        return True
    return values.dtype == object and values.size > 0 and hasattr(values.flat[0], "calendar")


def dates_of(time: Any, count: int) -> xr.DataArray:
    """One date for each sample, as a DataArray along its own dimension or ``sample``.

    Args:
        time: date of each, or one for all: datetime64, cftime, ISO text or a DataArray.
        count: number of samples.

    Raises:
        ValueError: another number of dates, or no dates.
    """
    if isinstance(time, xr.DataArray) and time.ndim == 1:
        dates = time.reset_coords(drop=True)
    else:
        values = np.asarray(time.values if isinstance(time, xr.DataArray) else time)
        if values.dtype.kind in "US":
            values = values.astype("datetime64[ns]")
        if values.dtype == object and not is_dates(np.atleast_1d(values)):
            values = values.astype("datetime64[ns]")  # datetime.datetime
        if values.ndim == 0:
            values = np.repeat(values, count)
        dates = xr.DataArray(values, dims="sample")
    if dates.ndim != 1 or len(dates) != count:
        raise ValueError(f"expected one date for each of {count} samples, got {dates.shape}")
    return dates


def years(time: xr.DataArray) -> NDArray[np.float64]:
    """Mean years since 2000-01-01 in the calendar of ``time``, shape (samples,)."""
    values = time.values
    if values.dtype.kind == "M":
        days = (values - np.datetime64("2000-01-01")) / np.timedelta64(1, "D")
        return days / MEAN_YEAR["standard"]
    first = values.flat[0]
    epoch = type(first)(2000, 1, 1, calendar=first.calendar)
    days = np.array([(t - epoch).total_seconds() / 86400 for t in values])
    return days / MEAN_YEAR[first.calendar]


def _require_dates(time: xr.DataArray | None, name: str) -> xr.DataArray:
    if time is None:
        raise ValueError(
            f"the climatology {name} needs the date of every sample: give time=, or data with a"
            " time coordinate, or choose Constant()"
        )
    if not is_dates(time.values):
        raise ValueError(
            f"the climatology {name} needs dates, but the time coordinate holds"
            f" {time.dtype} values such as {time.values.flat[0]!r}; decode or assign dates first"
        )
    return time
