"""Distances of weighted samples on the line, exactly by order or on a grid of bins.

For weights p and q on common values x_1 ≤ … ≤ x_n with cumulative sums F_P, F_Q,

    W₁(P, Q) = ∫|F_P − F_Q| dx = Σ_i|F_P(x_i) − F_Q(x_i)| (x_{i+1} − x_i)

(Vallender 1974).  Where each map contributes many values, its histogram is kept instead: bins of
equal width in asinh x, linear near zero and logarithmic in the tails, with F linear inside a bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_BINS = 256


@dataclass(frozen=True)
class Ordered:
    """One value of each map at several places.

    Attributes:
        order: which map comes k-th, shape (places, maps).
        gaps: differences of successive values, shape (places, maps − 1).
    """

    order: NDArray[np.intp]
    gaps: Array

    @classmethod
    def of(cls, values: Array) -> Ordered:
        """From values of shape (maps, places)."""
        columns = np.ascontiguousarray(values.T)
        order = np.argsort(columns, axis=1)
        return cls(order, np.diff(np.take_along_axis(columns, order, axis=1), axis=1))

    def wasserstein(self, p: Array, q: Array) -> Array:
        """W₁ at each place; weights of shape (pairs, maps) → (pairs, places)."""
        return np.stack([self._wasserstein(d) for d in p - q])

    def _wasserstein(self, difference: Array) -> Array:
        excess = difference[self.order]
        np.cumsum(excess, axis=1, out=excess)
        np.abs(excess, out=excess)
        return np.einsum("ij,ij->i", excess[:, :-1], self.gaps)


@dataclass(frozen=True)
class Histograms:
    """The distribution of the values of each map, in several groups of places.

    Attributes:
        shares: of the area of a group in each bin, shape (maps, groups, bins).
        edges: of the bins, shape (bins + 1,).
    """

    shares: NDArray[np.float32]
    edges: Array

    @classmethod
    def of(cls, values: Array, area: Array, group: NDArray[np.intp]) -> Histograms:
        """From values (maps, places), the area of the places and the group each belongs to."""
        maps, groups = len(values), int(group.max()) + 1
        share = area / np.bincount(group, area)[group]
        y = np.arcsinh(values)
        edges = np.linspace(y.min(), y.max(), _BINS + 1)
        scale = _BINS / max(edges[-1] - edges[0], np.finfo(np.float64).tiny)
        bins = np.minimum(((y - edges[0]) * scale).astype(np.intp), _BINS - 1)
        bins += _BINS * (group + groups * np.arange(maps)[:, None])
        weight = np.broadcast_to(share, values.shape).ravel()
        shares = np.bincount(bins.ravel(), weight, minlength=maps * groups * _BINS)
        return cls(shares.reshape(maps, groups, _BINS).astype(np.float32), np.sinh(edges))

    def cumulative(self, w: Array) -> Array:
        """F at the edges; weights (pairs, maps) → (pairs, groups, bins + 1)."""
        maps, groups, bins = self.shares.shape
        mixed = w.astype(np.float32) @ self.shares.reshape(maps, -1)
        return _cumulative(mixed.reshape(-1, groups, bins))

    def wasserstein(self, p: Array, q: Array) -> Array:
        """W₁ in each group, (pairs, groups)."""
        excess = np.abs(self.cumulative(p) - self.cumulative(q))
        return 0.5 * (excess[..., 1:] + excess[..., :-1]) @ np.diff(self.edges)

    def quantiles(self, w: Array, levels: Array) -> Array:
        """Quantiles of the mixture of maps, (pairs, groups, levels)."""
        return self._invert(self.cumulative(w), levels)

    def map_quantiles(self, levels: Array) -> Array:
        """Quantiles of every single map, (maps, groups, levels)."""
        return self._invert(_cumulative(self.shares), levels)

    def _invert(self, cumulative: Array, levels: Array) -> Array:
        rows = cumulative.reshape(-1, len(self.edges))
        values = np.stack([np.interp(levels, F, self.edges) for F in rows])
        return values.reshape(*cumulative.shape[:-1], len(levels))


def _cumulative(shares: NDArray[np.floating]) -> Array:
    F = np.zeros((*shares.shape[:-1], shares.shape[-1] + 1))
    np.cumsum(shares, axis=-1, out=F[..., 1:])
    return F / F[..., -1:]
