"""Pointwise invertible transforms: a field x in physical units ↔ a field y nearer to Gaussian.

    Identity      y = x
    Log1p(s)      y = log(1 + x/s)            x ≥ 0;  x = s (e^max(y,0) − 1)
    SquareRoot    y = √x                      x ≥ 0;  x = max(y,0)²
    Quantile      y = Φ⁻¹(F(x))               F the empirical distribution function

A band-limited or generated y may leave the range of the transform: Log1p and SquareRoot take
negative y for 0, so that x stays in its domain x ≥ 0; Quantile goes on linearly beyond its table,
down to ``lower`` where that is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from spherediff._config import from_config

Values = NDArray[np.floating]


@dataclass(frozen=True)
class Identity:
    """y = x."""

    def forward(self, x: Values) -> Values:
        return x

    def inverse(self, y: Values) -> Values:
        return y


@dataclass(frozen=True)
class Log1p:
    """y = log(1 + x/scale), for amounts x ≥ 0.

    Args:
        scale: in the units of x, above 0; linear below it, logarithmic above.

    Raises:
        ValueError: ``scale`` is not positive and finite.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"Log1p needs a positive finite scale, got {self.scale}")

    def forward(self, x: Values) -> Values:
        """Raises ValueError where x < 0."""
        return np.log1p(_nonnegative(x, "Log1p") / self.scale)

    def inverse(self, y: Values) -> Values:
        return self.scale * np.expm1(np.maximum(y, 0))


@dataclass(frozen=True)
class SquareRoot:
    """y = √x, for amounts x ≥ 0."""

    def forward(self, x: Values) -> Values:
        """Raises ValueError where x < 0."""
        return np.sqrt(_nonnegative(x, "SquareRoot"))

    def inverse(self, y: Values) -> Values:
        return np.square(np.maximum(y, 0))


@dataclass(frozen=True)
class Quantile:
    """Normal scores: the empirical distribution of the training values mapped to N(0, 1).

    Between ``knots`` quantiles, evenly spaced in normal score, the map is linear, and beyond the
    outermost it goes on with the slope of the outermost tenth of its side.  A value with positive
    probability, such as no rain, is one knot at the middle of its range of scores.

    Args:
        knots: number of quantiles, at least 8.
        lower: least physical value (units of x), if there is one; 0 for rain.
        x, y: the table, strictly increasing; empty until :meth:`fit`.

    Raises:
        ValueError: fewer than 8 knots, or a table that does not increase.
    """

    knots: int = 257
    lower: float | None = None
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.knots < 8:
            raise ValueError(f"Quantile needs at least 8 knots, got {self.knots}")
        if len(self.x) != len(self.y) or min([1.0, *np.diff(self.x), *np.diff(self.y)]) <= 0:
            raise ValueError("the table of Quantile must be strictly increasing in x and in y")

    def fit(self, values: Values, weights: Values) -> Quantile:
        """The transform with the table of these values.

        Args:
            values: any shape, finite.
            weights: of the same shape, not negative (areas).

        Raises:
            ValueError: the values are all the same.
        """
        order = np.argsort(values, axis=None, kind="stable")
        x = np.asarray(values, np.float64).ravel()[order]
        weight = np.asarray(weights, np.float64).ravel()[order]
        cumulative = (np.cumsum(weight) - weight / 2) / weight.sum()
        outermost = ndtri(min(0.5 / self.knots, 16 / len(x)))
        scores = np.linspace(outermost, -outermost, self.knots)
        quantiles = np.interp(ndtr(scores), cumulative, x)
        # Equal quantiles are one knot at the mean of their scores, which keeps the map invertible.
        knots, group = np.unique(quantiles, return_inverse=True)
        if len(knots) < 2:
            raise ValueError("Quantile cannot be fitted to values that are all the same")
        middle = np.bincount(group, scores) / np.bincount(group)
        return replace(self, x=tuple(knots.tolist()), y=tuple(middle.tolist()))

    def forward(self, x: Values) -> Values:
        """Raises RuntimeError before :meth:`fit`."""
        return _interpolate(x, *self._table())

    def inverse(self, y: Values) -> Values:
        """Raises RuntimeError before :meth:`fit`."""
        knots, scores = self._table()
        x = _interpolate(y, scores, knots)
        return x if self.lower is None else np.maximum(x, self.lower)

    def _table(self) -> tuple[Values, Values]:
        if not self.x:
            raise RuntimeError("this Quantile has no table yet: Encoder.fit makes it, or call fit")
        return np.asarray(self.x), np.asarray(self.y)


Transform = Identity | Log1p | SquareRoot | Quantile


def transform_from_config(config: Mapping[str, Any]) -> Transform:
    """The transform that a model or a file of coefficients describes.

    Raises:
        ValueError: no such transform.
    """
    return from_config(config, (Identity, Log1p, SquareRoot, Quantile), "transform")


def _nonnegative(x: Values, name: str) -> Values:
    negative = np.count_nonzero(x < 0)
    if negative:
        raise ValueError(
            f"{name} needs values that are not negative, but {negative} of {x.size} are"
            f" (least {x.min():g}); clip them first, as in ds.clip(min=0), or choose another"
            " transform"
        )
    return x


def _interpolate(at: Values, abscissa: Values, ordinate: Values) -> Values:
    """Piecewise linear, with the slopes of the outermost tenth of each side beyond the table."""
    tail = max(1, len(abscissa) // 20)
    low = (ordinate[tail] - ordinate[0]) / (abscissa[tail] - abscissa[0])
    high = (ordinate[-1] - ordinate[-1 - tail]) / (abscissa[-1] - abscissa[-1 - tail])
    inside = np.interp(at, abscissa, ordinate)
    return inside + low * np.minimum(at - abscissa[0], 0) + high * np.maximum(at - abscissa[-1], 0)
