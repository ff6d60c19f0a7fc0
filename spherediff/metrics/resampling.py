"""Which maps stand for which: noise floor and bootstrap as weights on one pool of maps.

The pool is [generated G, reference R, training T].  A set of maps drawn from it, with repetitions
or without, is a weight vector w with Σw = 1, and a distance d(P, Q) is a function of two of them.
With G*, R*, T* drawn with replacement,

    value       d(G, R)
    floor       mean over k of d(T'_k, R),  T'_k as many maps of T as G has
    resample b  d(G*_b, R*_b) and the mean over k of d(T*_bk, R*_b)

Successive maps of an archive are correlated.  R and T are therefore taken in blocks of successive
maps, so that T'_k has the autocorrelation of R; G is drawn map by map.  The parts T*_bk of one
resample have together as many maps as T has, or four times as many as G has if that is less.
Here T are the last two thirds of the training maps; the first third sets bases and thresholds.

Without training maps, T'_k and R are replaced by a random exchange of blocks between G and R.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Members = NDArray[np.intp]

BLOCK = 5  # successive maps that are kept together
_FLOORS = 20
_PARTS = 4


@dataclass(frozen=True)
class Sets:
    """Sizes of the sets in a pool, which lie one behind the other.

    Attributes:
        sizes: numbers of generated, reference and training maps; the last may be 0.
    """

    sizes: tuple[int, int, int]

    @property
    def total(self) -> int:
        """Number of maps in the pool."""
        return sum(self.sizes)

    @property
    def generated(self) -> Members:
        """Where the generated maps are."""
        return np.arange(self.sizes[0])

    @property
    def reference(self) -> Members:
        """Where the reference maps are."""
        return self.sizes[0] + np.arange(self.sizes[1])

    @property
    def training(self) -> Members:
        """Where the training maps are."""
        return self.sizes[0] + self.sizes[1] + np.arange(self.sizes[2])

    @property
    def real(self) -> Members:
        """Maps that set the local units: reference and training, or all without training maps."""
        return np.arange(self.sizes[0] if self.sizes[2] else 0, self.total)

    @property
    def basis(self) -> Members:
        """Maps that set principal components, spectra and thresholds: a third of training, or all.

        In a basis fitted to T' itself T' would have more variance than any other maps have, and
        could be told from them.  So can, rightly, generated maps that repeat those of the basis.
        """
        return self.training[: self.sizes[2] // 3] if self.sizes[2] else np.arange(self.total)

    @property
    def fresh(self) -> Members:
        """The training maps that T' is drawn from: those behind the basis."""
        return self.training[self.sizes[2] // 3 :]

    def weights(self, members: Members) -> Array:
        """The set of these maps, some perhaps several times, as weights, shape (total,)."""
        return np.bincount(members, minlength=self.total) / len(members)


def moving_blocks(members: Members, count: int, rng: np.random.Generator) -> Members:
    """``count`` of them by the moving-block bootstrap (Künsch 1989)."""
    size = min(BLOCK, len(members))
    starts = rng.integers(len(members) - size + 1, size=-(-count // size))
    return members[(starts[:, None] + np.arange(size)).ravel()[:count]]


def distinct_blocks(members: Members, count: int, rng: np.random.Generator) -> Members:
    """``count`` of them in blocks of successive ones, each at most once if there are enough."""
    whole = len(members) // BLOCK * BLOCK
    if count > whole:
        return moving_blocks(members, count, rng)
    start = rng.integers(len(members) - whole + 1)
    return rng.permutation(members[start : start + whole].reshape(-1, BLOCK)).ravel()[:count]


def exchanged(first: Members, second: Members, rng: np.random.Generator) -> tuple[Members, Members]:
    """Two sets of the same sizes with blocks of both in random order."""
    blocks = [x[k : k + BLOCK] for x in (first, second) for k in range(0, len(x), BLOCK)]
    mixed = np.concatenate([blocks[k] for k in rng.permutation(len(blocks))])
    return mixed[: len(first)], mixed[len(first) :]


def floor_sets(sets: Sets, rng: np.random.Generator, count: int) -> list[tuple[Members, Members]]:
    """Pairs (T', R), or exchanges of G and R without training maps."""
    G, R, T = sets.generated, sets.reference, sets.fresh
    if len(T):
        return [(distinct_blocks(T, len(G), rng), R) for _ in range(count)]
    return [exchanged(G, R, rng) for _ in range(count)]


@dataclass(frozen=True)
class Design:
    """All pairs of weights at which a distance is evaluated, and what becomes of its values.

    Attributes:
        p: first weights of each pair, shape (pairs, maps).
        q: second weights.
        parts: pairs (T*, R*) for each pair (G*, R*).
    """

    p: Array
    q: Array
    parts: int

    @classmethod
    def draw(cls, sets: Sets, resamples: int, rng: np.random.Generator) -> Design:
        """The value, its floor, then the resamples."""
        G, R, T = sets.generated, sets.reference, sets.fresh
        parts = min(_PARTS, max(1, len(T) // len(G))) if len(T) else _PARTS
        pairs = [(G, R), *floor_sets(sets, rng, _FLOORS)]
        for _ in range(resamples):
            g, r = rng.choice(G, len(G)), moving_blocks(R, len(R), rng)
            pairs.append((g, r))
            for _ in range(parts):
                exchange = len(T) == 0
                pairs.append(
                    exchanged(g, r, rng) if exchange else (moving_blocks(T, len(G), rng), r)
                )
        p, q = (np.array([sets.weights(pair[side]) for pair in pairs]) for side in (0, 1))
        return cls(p, q, parts)

    @property
    def bootstrap(self) -> tuple[Array, Array]:
        """Weights of G* and of R*, of every resample, shape (resamples, maps)."""
        chosen = slice(1 + _FLOORS, None, 1 + self.parts)
        return self.p[chosen], self.q[chosen]

    def read(self, values: Array) -> tuple[float, float, Array]:
        """Value, floor, and log(d(G*, R*)/d(T*, R*)) of each resample, from all values."""
        tiny = np.finfo(np.float64).tiny
        resampled = np.maximum(values[1 + _FLOORS :].reshape(-1, 1 + self.parts), tiny)
        log_ratio = np.log(resampled[:, 0] / resampled[:, 1:].mean(axis=1))
        return float(values[0]), float(values[1 : 1 + _FLOORS].mean()), log_ratio
