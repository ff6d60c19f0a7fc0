"""Distances between two weighted sets P = Σ p_k δ_{x_k} and Q = Σ q_k δ_{x_k} of maps of one pool.

With E_P y = Σ p_k y_k, s_P² = (E_P y² − (E_P y)²)/(1 − Σp_k²), x the field in local units and ⟨·⟩
the average over the sphere, a row of the scorecard is the root mean square over its parts of

    1  log(E_P u_o/E_Q u_o), log(s_P²(u_o)/s_Q²(u_o))      u_o the power of a map in an octave o
    2  E_P x − E_Q x, log(s_P/s_Q), difference of skewness, of excess kurtosis       at each place
    3  ⟨W₁(P, Q)⟩ of x at each place; differences of quantiles of x, pooled over a region, by region
    4  (2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖)^{1/2} for independent X, X' ~ P and Y, Y' ~ Q
    5  the mean of W₁ over principal components and random directions in their span
    6  W₁ of ‖∇f‖, of f(s) − f(t); differences of skewness and of excess kurtosis of bands, by band
    7  W₁ of four numbers of each map
    8  differences of the correlations of means over regions, by pair

The energy distance (Székely & Rizzo 2013) is that of the weights themselves (V-statistic), so it
is not negative and contains sampling noise as all other rows do; its square root is a metric, and
in proportion to a small difference as they are.  Its unit is the square root of the root mean
square distance of two real maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spherediff.metrics.distributions import Ordered
from spherediff.metrics.features import SEPARATIONS, Features, JointFeatures, octaves

Array = NDArray[np.float64]
Parts = Callable[[Array, Array], Sequence[Array]]

_LEVELS = np.array([0.001, 0.01, 0.99, 0.999])
_DIRECTIONS = 50
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Statistic:
    """Rows of the scorecard that are computed together.

    Attributes:
        group: of the scorecard, 1 to 8.
        names: of the rows.
        parts: from weights p and q of shape (pairs, maps), for each row its parts, shape
            (pairs, parts).
        labels: of the parts; none if they need no names.
        units: of each row.
    """

    group: int
    names: tuple[str, ...]
    parts: Parts
    labels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    def distances(self, p: Array, q: Array) -> Array:
        """Root mean square of the parts, shape (rows, pairs)."""
        return np.stack([np.sqrt(np.square(x).mean(axis=1)) for x in self.parts(p, q)])

    def detail(self, p: Array, q: Array) -> list[dict[str, float]]:
        """For each row its parts by name, at one pair of weights of shape (maps,)."""
        return [
            {label: float(x) for label, x in zip(self.labels, row[0], strict=True)}
            if self.labels
            else {}
            for row in self.parts(p[None], q[None])
        ]


def spectrum(features: Features) -> Statistic:
    """Group 1."""
    ranges = octaves(features.lmax)
    power = np.stack([features.power[:, low : high + 1].sum(1) for low, high in ranges], axis=1)
    unit = power[features.sets.real].mean(axis=0)
    power /= np.where(unit > 0, unit, 1.0)
    square = np.square(power)

    def moments(w: Array) -> tuple[Array, Array]:
        mean = w @ power
        return np.log(np.maximum(mean, _SMALLEST)), np.log(
            _unbiased(w @ square - np.square(mean), w)
        )

    return Statistic(
        1,
        ("spectrum by octave, log ratio", "variance of octave power, log ratio"),
        _differences(moments),
        tuple(f"degree {low}" if low == high else f"degrees {low}–{high}" for low, high in ranges),
    )


def shapes(features: Features) -> Statistic:
    """Group 2."""
    x, area = features.values, features.area
    powers = [x, x**2, x**3, x**4]

    def moments(w: Array) -> tuple[Array, ...]:
        raw = [w @ power for power in powers]
        variance, skewness, kurtosis = _central(*raw)
        return raw[0], np.log(_unbiased(variance, w)) / 2, skewness, kurtosis

    differences = _differences(moments)

    def parts(p: Array, q: Array) -> list[Array]:
        return [np.sqrt(np.square(d) @ area)[:, None] for d in differences(p, q)]

    names = ("mean map", "log standard-deviation map", "skewness map", "excess-kurtosis map")
    return Statistic(2, names, parts, units=("std", "", "", ""))


def marginals(features: Features) -> Statistic:
    """Group 3, Wasserstein-1 at each place."""
    ordered, area = Ordered.of(features.sparse), features.sparse_area

    def parts(p: Array, q: Array) -> list[Array]:
        return [(ordered.wasserstein(p, q) @ area)[:, None]]

    return Statistic(3, ("local marginals, W1",), parts, units=("std",))


def quantiles(features: Features) -> Statistic:
    """Group 3, quantiles by region."""
    regional = features.regional

    def parts(p: Array, q: Array) -> list[Array]:
        difference = regional.quantiles(p, _LEVELS) - regional.quantiles(q, _LEVELS)
        return list(np.moveaxis(difference, -1, 0))

    names = tuple(f"{100 * level:g} % quantile by region" for level in _LEVELS)
    labels = tuple(f"region {k + 1}" for k in range(regional.shares.shape[1]))
    return Statistic(3, names, parts, labels, ("std",) * len(names))


def energy(features: Features | JointFeatures) -> Statistic:
    """Group 4."""
    distances = [np.sqrt(features.squared_distances), np.sqrt(features.whitened_distances)]

    def parts(p: Array, q: Array) -> list[Array]:
        return [np.sqrt(_energy(D, p, q))[:, None] for D in distances]

    return Statistic(4, ("energy distance", "energy distance, whitened"), parts)


def _energy(D: Array, p: Array, q: Array) -> Array:
    # 2 pᵀDq − pᵀDp − qᵀDq = −(p − q)ᵀ D (p − q), never negative as D is a Euclidean distance
    d = p - q
    return np.maximum(-((d @ D) * d).sum(axis=1), 0.0)


def sliced(features: Features | JointFeatures) -> Statistic:
    """Group 5."""
    scores = features.scores
    directions = np.random.default_rng(6).normal(size=(scores.shape[1], _DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    ordered = Ordered.of(np.concatenate([scores, scores @ directions], axis=1))

    def parts(p: Array, q: Array) -> list[Array]:
        return [ordered.wasserstein(p, q).mean(axis=1, keepdims=True)]

    return Statistic(5, ("principal components, sliced W1",), parts, units=("std",))


def texture(features: Features) -> Statistic:
    """Group 6, gradients and increments."""
    gradient, increments = features.gradient, features.increments

    def parts(p: Array, q: Array) -> list[Array]:
        apart = increments.wasserstein(p, q)
        return [gradient.wasserstein(p, q), *np.split(apart, len(SEPARATIONS), axis=1)]

    names = ("gradient, W1", *(f"increments over {angle}°, W1" for angle in SEPARATIONS))
    return Statistic(6, names, parts, units=("rms",) * len(names))


def bands(features: Features) -> Statistic:
    """Group 6, shape of band-filtered fields."""
    moments = features.bands

    def shape(w: Array) -> tuple[Array, ...]:
        return _central(*(w @ power for power in moments))[1:]

    labels = tuple(f"degrees about {2**j}" for j in range(moments.shape[-1]))
    return Statistic(
        6, ("skewness by band", "excess kurtosis by band"), _differences(shape), labels
    )


def summaries(features: Features) -> Statistic:
    """Group 7."""
    ordered, units = Ordered.of(features.extremes), features.units
    names = ("area mean", "maximum", "minimum", "area above local 95 %")
    return Statistic(
        7,
        tuple(f"{name} of a map, W1" for name in names),
        lambda p, q: list(ordered.wasserstein(p, q).T[..., None]),
        units=(units, units, units, ""),
    )


def correlations(features: Features | JointFeatures) -> Statistic:
    """Group 8."""
    means = features.means
    rows, columns = np.triu_indices(means.shape[1])
    products = means[:, rows] * means[:, columns]
    diagonal, beside = rows == columns, rows != columns

    def correlation(w: Array) -> tuple[Array]:
        mean = w @ means
        covariance = w @ products - mean[:, rows] * mean[:, columns]
        std = np.sqrt(np.maximum(covariance[:, diagonal], _SMALLEST))
        return ((covariance / (std[:, rows] * std[:, columns]))[:, beside],)

    return Statistic(8, ("correlations of regional means",), _differences(correlation))


def _differences(function: Callable[[Array], Sequence[Array]]) -> Parts:
    def parts(p: Array, q: Array) -> list[Array]:
        return [x - y for x, y in zip(function(p), function(q), strict=True)]

    return parts


def _unbiased(variance: Array, w: Array) -> Array:
    """The variance of the law from that of a weighted set; not below the smallest positive."""
    share = np.minimum(np.square(w).sum(axis=1, keepdims=True), 0.5)
    return np.maximum(variance / (1 - share), _SMALLEST)


def _central(first: Array, second: Array, third: Array, fourth: Array) -> tuple[Array, ...]:
    """Variance, skewness and excess kurtosis from moments about any point near the mean."""
    square = np.square(first)
    variance = np.maximum(second - square, _SMALLEST)
    cubed = third - 3 * first * second + 2 * first * square
    to_fourth = fourth - 4 * first * third + 6 * square * second - 3 * square * square
    return variance, cubed / variance**1.5, to_fourth / np.square(variance) - 3
