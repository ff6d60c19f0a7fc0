"""Labels: what the law of a field depends on besides chance, as numbers that a network is told.

The label of a sample is the vector

    c = (1, e_1, …, e_J),

    Season(K)    e = cos φ, …, cos Kφ, sin φ, …, sin Kφ,  φ = 2π · mean years since 2000-01-01
    Scalar       e = (v − mean)/std, moments of the training samples
    Category     e_k = 1 if v is the k-th of the values, else 0

The leading 1 says that something is told; the null label c = 0 says that nothing is.  A network
that is trained with both knows the conditional laws and the law of all samples together, as
classifier-free guidance needs (Ho & Salimans 2022, arXiv 2207.12598, algorithm 1).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from spherediff._config import from_config, to_config
from spherediff.data.archive import sample_dimension
from spherediff.data.climatology import (
    Climatology,
    Constant,
    Harmonics,
    dates_of,
    is_dates,
    needs_dates,
)

Values = xr.Dataset | Mapping[str, Any]


@dataclass(frozen=True)
class Season:
    """The time of the year, from dates.

    Attributes:
        harmonics: K, at least 1.
    """

    harmonics: int = 2
    name: ClassVar[str] = "time"

    def __post_init__(self) -> None:
        if self.harmonics < 1:
            raise ValueError(f"a Season needs at least one harmonic, got {self.harmonics}")

    @property
    def size(self) -> int:
        return 2 * self.harmonics

    def encode(self, dates: xr.DataArray) -> NDArray[np.float64]:
        """cos kφ, sin kφ, shape (samples, 2K)."""
        return Harmonics(self.harmonics).design(dates, len(dates))[:, 1:]


@dataclass(frozen=True)
class Scalar:
    """A number, such as the year, a forcing or an index.

    Attributes:
        name: of the coordinate or variable.
        mean: of the training samples.
        std: their standard deviation.
        low, high: their least and largest value.
    """

    name: str
    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def fit(cls, name: str, values: NDArray[Any]) -> Scalar:
        """Moments and range of training values, shape (samples,).

        Raises:
            ValueError: values that are no finite numbers, or all the same.
        """
        numbers = _numbers(name, values)
        if numbers.min() == numbers.max():
            raise ValueError(
                f"{name} is {numbers[0]:g} in every training sample: nothing depends on it, so"
                " leave the label out"
            )
        moments = numbers.mean(), numbers.std(), numbers.min(), numbers.max()
        return cls(name, *map(float, moments))

    @property
    def size(self) -> int:
        return 1

    @property
    def example(self) -> str:
        """A value of the training samples, as text."""
        return f"{self.high:.10g}"

    def __str__(self) -> str:
        return f"{self.name}, a number that was between {self.low:g} and {self.high:g} in training"

    def encode(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """(v − mean)/std, shape (samples, 1).

        Warns:
            UserWarning: a value more than a standard deviation beyond those of the training.
        """
        numbers = _numbers(self.name, values)
        beyond = numbers[(numbers < self.low - self.std) | (numbers > self.high + self.std)]
        if beyond.size:
            warnings.warn(
                f"{self.name} = {beyond[0]:g} is far from the training samples, which go from"
                f" {self.low:g} to {self.high:g}: the model has learnt nothing there",
                stacklevel=4,
            )
        return ((numbers - self.mean) / self.std)[:, None]


@dataclass(frozen=True)
class Category:
    """One of several kinds, such as the ensemble member, the calendar month or a regime.

    Attributes:
        name: of the coordinate or variable.
        values: the kinds, whole numbers or words; compared by how they are written.
    """

    name: str
    values: tuple[str | int, ...]

    @classmethod
    def fit(cls, name: str, values: NDArray[Any]) -> Category:
        """The different values of training samples, in order.

        Raises:
            ValueError: numbers that are not whole, one value alone, or as many as samples.
        """
        found = sorted({_plain(name, v) for v in values}, key=lambda v: (isinstance(v, str), v))
        if len(found) < 2 or len(found) == len(values):
            raise ValueError(
                f"{name} has {len(found)} different value(s) in {len(values)} training samples: a"
                " category needs several, and several samples of each"
            )
        return cls(name, tuple(found))

    @property
    def size(self) -> int:
        return len(self.values)

    @property
    def example(self) -> str:
        """A value of the training samples, as text."""
        return str(self.values[0])

    def __str__(self) -> str:
        return f"{self.name}, one of {', '.join(map(str, self.values))}"

    def encode(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """One-hot rows, shape (samples, kinds).

        Raises:
            ValueError: a value that the training samples did not have.
        """
        known = [str(value) for value in self.values]
        given = [str(_plain(self.name, value)) for value in values]
        for value in given:
            if value not in known:
                raise ValueError(
                    f"{self.name} = {value} is not known: the training samples had"
                    f" {', '.join(known)}"
                )
        return (np.array(given)[:, None] == np.array(known)).astype(np.float64)


Label = Season | Scalar | Category
_KINDS = (Season, Scalar, Category)


@dataclass(frozen=True)
class Labels:
    """All that a model is told of a sample.

    Attributes:
        parts: the labels, in order.

    Raises:
        ValueError: two labels of one name.
    """

    parts: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.parts):
            raise ValueError(f"expected labels of different names, got {', '.join(self.names)}")

    @classmethod
    def seasonal(cls, climatology: Climatology) -> Labels:
        """The season where the climatology varies with the time of the year, else nothing."""
        return cls((Season(),) if needs_dates(climatology) else ())

    @classmethod
    def fit(
        cls,
        ds: xr.Dataset,
        kinds: Mapping[str, type[Scalar | Category]],
        *,
        climatology: Climatology = Constant(),
    ) -> Labels:
        """Labels of an archive in normal form (:func:`~spherediff.data.normalise`).

        Args:
            ds: the training samples, and only these.
            kinds: Scalar or Category by name of a coordinate or variable along the samples;
                ``year`` and ``month`` are taken from the dates where there is none.
            climatology: the season is told first if it varies with the time of the year.

        Raises:
            ValueError: nothing of that name, or what :meth:`Scalar.fit` and :meth:`Category.fit`
                refuse.
        """
        count = ds.sizes[sample_dimension(ds)]
        fitted = [kind.fit(name, _column(ds, name, count)) for name, kind in kinds.items()]
        return cls((*cls.seasonal(climatology).parts, *fitted))

    @property
    def names(self) -> tuple[str, ...]:
        """What to give for each: ``time`` for the season, else the label's own name."""
        return tuple(part.name for part in self.parts)

    @property
    def size(self) -> int:
        """How many numbers a label has; none if nothing is told."""
        return 1 + sum(part.size for part in self.parts) if self.parts else 0

    def encode(self, values: Values, count: int) -> Tensor:
        """Labels of ``count`` samples, float32, shape (count, size).

        Args:
            values: an archive in normal form; or by name one value for all or one a sample, and as
                ``time`` their dates, for the season, and for ``year`` and ``month`` where they are
                not given themselves.
            count: number of samples.

        Raises:
            ValueError: a label without a value, or a value without a label; another number of
                values; an unknown category; numbers that are not finite.

        Warns:
            UserWarning: a number far from those of the training samples.
        """
        unknown = set(() if isinstance(values, xr.Dataset) else values) - {"time", *self.names}
        if unknown:
            told = ", ".join(self.names) or "nothing"
            raise ValueError(
                f"the model is not told {', '.join(sorted(unknown))}; it is told {told}"
            )
        if not self.parts:
            return torch.zeros(count, 0)
        told = [_encoded(part, values, count) for part in self.parts]
        return torch.from_numpy(np.concatenate([np.ones((count, 1)), *told], axis=1)).float()

    def to_config(self) -> list[dict[str, Any]]:
        """What :meth:`from_config` makes the same labels from; JSON-able."""
        return [to_config(part) for part in self.parts]

    @classmethod
    def from_config(cls, config: Sequence[Mapping[str, Any]]) -> Labels:
        """The labels of :meth:`to_config`, also after a passage through JSON.

        Raises:
            ValueError: no such kind of label.
        """
        return cls(tuple(from_config(entry, _KINDS, "label") for entry in config))


def _encoded(part: Label, values: Values, count: int) -> NDArray[np.float64]:
    if isinstance(part, Season):
        return part.encode(_dates(values, count))
    return part.encode(_column(values, part.name, count, f": give {part}"))


def _column(values: Values, name: str, count: int, hint: str = "") -> NDArray[Any]:
    """The values of a label, shape (count,)."""
    given = values.get(name)
    if given is None and name in ("year", "month") and values.get("time") is not None:
        return getattr(_dates(values, count).dt, name).values
    if given is None:
        there = [str(k) for k in (values.variables if isinstance(values, xr.Dataset) else values)]
        raise ValueError(
            f"the label {name} has no value{hint}; there is {', '.join(there) or 'nothing'}"
        )
    column = np.asarray(given)
    column = np.repeat(column, count) if column.ndim == 0 else column
    if column.shape != (count,):
        raise ValueError(
            f"expected one value of {name}, or one for each of {count} samples, got shape"
            f" {column.shape}"
        )
    return column


def _dates(values: Values, count: int) -> xr.DataArray:
    given = values.get("time")
    if given is None:
        raise ValueError(
            "the season needs the date of every sample: give time=, or data with a time coordinate"
        )
    dates = dates_of(given, count)
    if not is_dates(dates.values):
        raise ValueError(f"the season needs dates, but time holds {dates.dtype} values")
    return dates


def _numbers(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    try:
        if values.dtype.kind in "mM":
            raise ValueError("dates are no numbers")
        numbers = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a number for {name}, got {str(values.flat[0])!r}") from error
    bad = numbers[~np.isfinite(numbers)]
    if bad.size:
        raise ValueError(f"{name} has {bad.size} missing or infinite values, such as {bad[0]}")
    return numbers


def _plain(name: str, value: Any) -> str | int:
    """A kind as JSON holds it: a whole number or a word."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return value
    if not (isinstance(value, int | float) and math.isfinite(value) and value == int(value)):
        raise ValueError(
            f"expected words or whole numbers for the category {name}, got {value!r}; a number that"
            " varies continuously is a scalar"
        )
    return int(value)
