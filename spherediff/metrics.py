"""Are two sets of maps alike?  Statistics of samples against a reference, and what chance gives.

Every statistic is a functional of two weighted sets P = Σ p_k δ_{x_k} and Q = Σ q_k δ_{x_k} over
one pool of maps, with Σp = Σq = 1; P are the samples and Q the reference.  With ⟨·⟩ the average
over the sphere, ‖x‖² = ⟨x²⟩, E_P x = Σ p_k x_k, s_P² = Σ p_k (x_k − E_P x)²/(1 − Σp_k²) and g_P
the skewness at a place,

    mean          ⟨(E_P x − E_Q x)²⟩^{1/2}
    spread        ⟨(s_P/s_Q − 1)²⟩^{1/2}
    skewness      ⟨(g_P − g_Q)²⟩^{1/2}
    marginals     ⟨W₁(P, Q)/s_Q⟩,  W₁ = ∫|F_P − F_Q| dx at each place (Wasserstein-1)
    energy        (2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖)/E‖Y − Y'‖  (Székely & Rizzo 2013, eq. 2.1)
    variance      ⟨s_P²⟩/⟨s_Q²⟩, also by octaves of degrees: Σ_{ℓ,m} Var_P a_ℓm / Σ_{ℓ,m} Var_Q a_ℓm

X, X' and Y, Y' are independent draws of different maps of P and Q, so the energy statistic is
unbiased and may be negative.  The first four are not zero for finite sets of one law.  What
"alike" means is therefore told by other weights on the same pool: by exchanging maps between
samples and reference at random (chance), and by maps of the training archive in the place of the
samples (noise floor).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff.grids import GaussLegendre

Array = NDArray[np.float64]

_DRAWS = 200
_BLOCKS = 10  # of the jackknife
_LEVEL = 0.05


@dataclass(frozen=True)
class Pool:
    """Maps by their coefficients and by their values at the points of an exact quadrature.

    Attributes:
        coefficients: float64, shape (maps, (lmax+1)²), in the units of the field.
        values: float64, shape (maps, places).
        area: of each place as a fraction of the sphere, shape (places,).
    """

    coefficients: Array
    values: Array
    area: Array

    @classmethod
    def of(cls, coefficients: Tensor) -> Pool:
        """The pool of fields with these coefficients, shape (maps, (lmax+1)²)."""
        a = coefficients.detach().cpu().double()
        grid = GaussLegendre(harmonics.band_limit(a.shape[-1]))
        area = grid.area_weights.numpy().ravel() / (4 * math.pi)
        return cls(a.numpy(), grid.synthesis(a).numpy().reshape(len(a), -1), area)

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Which map comes k-th at each place, shape (maps, places)."""
        return np.argsort(self.values, axis=0)

    @cached_property
    def gaps(self) -> Array:
        """Differences of successive values at each place, shape (maps − 1, places)."""
        return np.diff(np.take_along_axis(self.values, self.order, axis=0), axis=0)

    @cached_property
    def distances(self) -> Array:
        """‖x_j − x_k‖, root mean square over the sphere (Parseval), shape (maps, maps)."""
        a = self.coefficients - self.coefficients.mean(axis=0)
        square = np.square(a).sum(axis=1)
        squares = square[:, None] + square - 2 * a @ a.T
        np.fill_diagonal(squares, 0.0)
        return np.sqrt(np.maximum(squares, 0.0) / (4 * math.pi))


def mean_rmse(pool: Pool, p: Array, q: Array) -> float:
    """⟨(E_P x − E_Q x)²⟩^{1/2}, in the units of the field."""
    return float(np.sqrt(pool.area @ np.square((p - q) @ pool.values)))


def spread_error(pool: Pool, p: Array, q: Array) -> float:
    """⟨(s_P/s_Q − 1)²⟩^{1/2}."""
    ratio = np.sqrt(_variance(pool.values, p) / _variance(pool.values, q))
    return float(np.sqrt(pool.area @ np.square(ratio - 1)))


def skewness_rmse(pool: Pool, p: Array, q: Array) -> float:
    """⟨(g_P − g_Q)²⟩^{1/2}."""
    difference = _skewness(pool.values, p) - _skewness(pool.values, q)
    return float(np.sqrt(pool.area @ np.square(difference)))


def wasserstein(pool: Pool, p: Array, q: Array) -> float:
    """⟨∫|F_P − F_Q| dx / s_Q⟩, in units of the reference's local standard deviation."""
    excess = np.cumsum((p - q)[pool.order], axis=0)[:-1]
    distance = (np.abs(excess) * pool.gaps).sum(axis=0)
    return float(pool.area @ (distance / np.sqrt(_variance(pool.values, q))))


def energy_distance(pool: Pool, p: Array, q: Array) -> float:
    """(2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖)/E‖Y − Y'‖ of sets without common maps."""
    D = pool.distances
    within_p, within_q = (w @ D @ w / (1 - w @ w) for w in (p, q))
    return float((2 * p @ D @ q - within_p - within_q) / within_q)


def variance_ratio(pool: Pool, p: Array, q: Array, lowest: int = 0, highest: int = -1) -> float:
    """Σ Var_P a_ℓm / Σ Var_Q a_ℓm over the degrees ``lowest`` ≤ ℓ ≤ ``highest`` (−1: lmax)."""
    last = None if highest < 0 else (highest + 1) ** 2
    a = pool.coefficients[:, lowest**2 : last]
    return float(_variance(a, p).sum() / _variance(a, q).sum())


def octaves(lmax: int) -> list[tuple[int, int]]:
    """Degrees (1, 1), (2, 3), (4, 7), … (lowest, highest) up to ``lmax``."""
    return [(2**k, min(2 ** (k + 1) - 1, lmax)) for k in range(int(lmax).bit_length())]


@dataclass(frozen=True)
class Row:
    """A statistic of samples against a reference.

    Attributes:
        variable: name of the field; "all" for all of them together.
        statistic: what it is.
        units: of the value; "" if it has none.
        value: of the samples against the reference.
        error: its standard error by a jackknife over ten blocks of successive maps of each set.
        chance: interval that holds 95 % of the values when maps are exchanged between samples and
            reference at random; one-sided (from −∞) for a distance, central for a ratio.
        floor: the same interval for as many maps of the training archive as there are samples,
            drawn with replacement, in their place: what a generator that knows the archive by
            heart and nothing else would score.  None without an archive.
    """

    variable: str
    statistic: str
    units: str
    value: float
    error: float
    chance: tuple[float, float]
    floor: tuple[float, float] | None

    @property
    def alike(self) -> bool:
        """Whether the value lies in the interval of the floor, or of chance without a floor."""
        low, high = self.floor or self.chance
        return low <= self.value <= high


Function = Callable[[Pool, Array, Array], float]


@dataclass(frozen=True)
class _Statistic:
    name: str
    function: Function
    has_units: bool = False
    is_ratio: bool = False

    def interval(self, values: Sequence[float]) -> tuple[float, float]:
        if self.is_ratio:
            low, high = np.quantile(values, [_LEVEL / 2, 1 - _LEVEL / 2]).tolist()
            return low, high
        return -math.inf, float(np.quantile(values, 1 - _LEVEL))


def _statistics(lmax: int) -> list[_Statistic]:
    def octave(lowest: int, highest: int) -> _Statistic:
        name = f"variance ratio, degree{'s' if highest > lowest else ''} {lowest}"
        return _Statistic(
            name + (f"–{highest}" if highest > lowest else ""),
            lambda pool, p, q: variance_ratio(pool, p, q, lowest, highest),
            is_ratio=True,
        )

    return [
        _Statistic("mean map, RMS difference", mean_rmse, has_units=True),
        _Statistic("standard-deviation map, RMS relative error", spread_error),
        _Statistic("skewness map, RMS difference", skewness_rmse),
        _Statistic("local marginals, Wasserstein-1 / std", wasserstein),
        _Statistic("fields, energy distance", energy_distance),
        _Statistic("variance ratio, all degrees", variance_ratio, is_ratio=True),
        *(octave(*pair) for pair in octaves(lmax)),
    ]


def compare(
    samples: Tensor,
    reference: Tensor,
    training: Tensor | None = None,
    *,
    names: Sequence[str] = (),
    units: Sequence[str] = (),
    draws: int = _DRAWS,
    generator: torch.Generator,
) -> list[Row]:
    """Statistics of samples against a reference, with their sampling error and what chance gives.

    Fields with a yearly cycle should be compared by their anomalies, or the cycle, which a
    climatology reproduces, hides everything else.

    Args:
        samples: coefficients in physical units, shape (N, channels, (lmax+1)²).
        reference: the same of M maps that no one was trained on, in order of time.
        training: the maps the samples were learnt from, for the noise floor.
        names: of the channels, in the rows.
        units: of the channels.
        draws: random exchanges for chance, and draws for the floor.
        generator: of those draws.

    Returns:
        Rows channel by channel; for several channels, last, the energy distance of all of them
        together, each in units of its standard deviation in the reference.

    Raises:
        ValueError: fewer than four maps, other shapes, values that are not finite, or a reference
            that does not vary somewhere.
    """
    sets = {"samples": samples, "reference": reference}
    sets |= {} if training is None else {"training": training}
    _check(sets)
    channels = samples.shape[1]
    names = tuple(names) or tuple(f"channel {c}" for c in range(channels))
    units = tuple(units) or ("",) * channels
    if len(names) != channels or len(units) != channels:
        raise ValueError(f"expected {channels} names and units, got {names} and {units}")
    weights = _Weights.draw([len(x) for x in sets.values()], draws, generator)
    pooled = torch.cat([x.detach().cpu().double() for x in sets.values()])
    lmax = harmonics.band_limit(pooled.shape[-1])
    rows = []
    for c, (name, unit) in enumerate(zip(names, units, strict=True)):
        pool = Pool.of(pooled[:, c])
        if not (_variance(pool.values, weights.reference) > 0).all():
            raise ValueError(f"{name}: the maps of the reference are all alike at some place")
        rows += [_row(name, unit, one, pool, weights) for one in _statistics(lmax)]
    if channels > 1:
        scale = reference.detach().cpu().double().std(dim=0).square().sum(-1).sqrt()
        joint = (pooled / scale[:, None]).flatten(1).numpy()
        pool = Pool(joint, joint, np.ones(joint.shape[1]))
        energy = _Statistic("fields, energy distance", energy_distance)
        rows.append(_row("all", "", energy, pool, weights))
    return rows


def _row(variable: str, units: str, statistic: _Statistic, pool: Pool, weights: _Weights) -> Row:
    def values(pairs: Sequence[tuple[Array, Array]]) -> list[float]:
        return [statistic.function(pool, p, q) for p, q in pairs]

    return Row(
        variable,
        statistic.name,
        units if statistic.has_units else "",
        statistic.function(pool, weights.samples, weights.reference),
        math.sqrt(sum(_jackknife(values(one)) for one in weights.jackknife)),
        statistic.interval(values(weights.chance)),
        statistic.interval(values(weights.floor)) if weights.floor else None,
    )


@dataclass(frozen=True)
class _Weights:
    """Pairs (p, q) of weights on the pool [samples, reference, training]."""

    samples: Array
    reference: Array
    jackknife: tuple[list[tuple[Array, Array]], list[tuple[Array, Array]]]
    chance: list[tuple[Array, Array]]
    floor: list[tuple[Array, Array]]

    @classmethod
    def draw(cls, sizes: list[int], draws: int, generator: torch.Generator) -> _Weights:
        total, (N, M) = sum(sizes), sizes[:2]

        def uniform(members: NDArray[np.intp]) -> Array:
            weights = np.zeros(total)
            weights[members] = 1 / len(members)
            return weights

        def drawn() -> Array:
            members = torch.randint(archive, (N,), generator=generator).numpy()
            return np.bincount(N + M + members, minlength=total) / N

        archive = sum(sizes[2:])
        p, q = uniform(np.arange(N)), uniform(np.arange(N, N + M))
        exchanges = [torch.randperm(N + M, generator=generator).numpy() for _ in range(draws)]
        return cls(
            p,
            q,
            (
                [(uniform(kept), q) for kept in _without_blocks(np.arange(N))],
                [(p, uniform(kept)) for kept in _without_blocks(np.arange(N, N + M))],
            ),
            [(uniform(order[:N]), uniform(order[N:])) for order in exchanges],
            [(drawn(), q) for _ in range(draws)] if archive else [],
        )


def _without_blocks(members: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    blocks = np.array_split(members, min(_BLOCKS, len(members)))
    return [np.setdiff1d(members, block) for block in blocks]


def _jackknife(values: Sequence[float]) -> float:
    """Variance by the delete-a-block jackknife, (B−1)/B Σ(θ_b − θ̄)²."""
    return (len(values) - 1) * float(np.var(values))


def _variance(x: Array, w: Array) -> Array:
    """Σ w (x − Σwx)²/(1 − Σw²) along the first axis, of the maps with w > 0."""
    chosen = w > 0
    x, w = x[chosen], w[chosen]
    return w @ np.square(x - w @ x) / (1 - w @ w)


def _skewness(x: Array, w: Array) -> Array:
    """Σ w z³/(Σ w z²)^{3/2}, z = x − Σwx."""
    chosen = w > 0
    x, w = x[chosen], w[chosen]
    z = x - w @ x
    square = np.square(z)
    return w @ (square * z) / (w @ square) ** 1.5


def _check(sets: dict[str, Tensor]) -> None:
    shape = next(iter(sets.values())).shape[1:]
    for name, maps in sets.items():
        if maps.ndim != 3 or len(maps) < 4 or maps.shape[1:] != shape:
            raise ValueError(
                f"expected at least four {name} of shape (maps, channels, (lmax+1)²), alike in all"
                f" sets, got {tuple(maps.shape)} beside (…, {', '.join(map(str, shape))})"
            )
        if bad := int((~torch.isfinite(maps)).sum()):
            raise ValueError(f"{bad} of {maps.numel()} coefficients of the {name} are not finite")
