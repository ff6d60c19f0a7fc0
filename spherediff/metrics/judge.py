"""From a distance between sets of maps to a row of the scorecard: noise floor, ratio, interval.

With generated maps G, reference R, and T' as many training maps as there are generated ones
(:mod:`spherediff.metrics.resampling` draws them), a distance d gives

    ratio = d(G, R)/floor,   floor = mean of d(T', R),
    interval = ratio · exp(±1.96 s),   s² = Var_b log(d(G*_b, R*_b)/d(T*_b, R*_b)).

1 means: as close to maps that nobody has seen as other real maps are.  Resampling adds noise to
the distances of either kind, hence the interval about the ratio itself.  An AUC has the interval
AUC ± 1.96 times its bootstrap standard deviation at fixed scores.

Memorisation.  n(x) is the distance of a map to the nearest training map, root mean square over
the sphere in local units.  Medians of n over G and over R are alike for new maps of the law of
the archive, and that of G is smaller for copies.  Of N generated and M reference maps of one law,
at least j generated ones have a smaller n than any of R with probability Π_{i<j} (N−i)/(N+M−i).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from spherediff.metrics import classifier
from spherediff.metrics.resampling import Design, Sets, floor_sets
from spherediff.metrics.statistics import Statistic

Array = NDArray[np.float64]

_NORMAL = 1.96  # 95 % of a normal law lie within so many standard deviations
_TAIL = 0.025
_PAIRS_AT_ONCE = 64
_CLASSIFIER_FLOORS = 5
_COPY = 1e-3  # what is this much nearer to training than real maps are is a copy


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        variable: name of the field; "all" for all of them together.
        group: 1 spectra, 2 moment maps, 3 marginals, 4 energy distances, 5 principal components,
            6 texture, 7 extremes, 8 dependence, 9 classifiers, 10 memorisation.
        statistic: what it is.
        units: of value and floor; "" if they have none.
        value: of the generated maps against the reference.
        floor: the same for real maps.
        ratio: value/floor; None for an AUC and for a share.
        interval: holds the ratio, or the value if there is no ratio, at a level of 95 %.
        alike: ratios, or values, of generated maps that are no worse than real ones.
        detail: named parts of the value.
    """

    variable: str
    group: int
    statistic: str
    units: str
    value: float
    floor: float
    ratio: float | None
    interval: tuple[float, float]
    alike: tuple[float, float] = (0.0, 1.0)
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether the whole interval lies outside what is alike: significantly worse."""
        return self.interval[0] > self.alike[1] or self.interval[1] < self.alike[0]


@dataclass(frozen=True)
class Judge:
    """Which maps stand for which, and all pairs of weights a distance is evaluated at.

    Attributes:
        sets: the sets of the pool.
        design: the pairs of weights.
        seed: of the training maps that a classifier is to tell from the reference.
    """

    sets: Sets
    design: Design
    seed: int

    @classmethod
    def draw(cls, sets: Sets, resamples: int, generator: torch.Generator) -> Judge:
        """All random draws of a scorecard."""
        seed = int(torch.randint(2**62, (), generator=generator))
        return cls(sets, Design.draw(sets, resamples, np.random.default_rng(seed)), seed)

    def distances(self, statistic: Statistic, variable: str) -> Iterator[Row]:
        """Groups 1 to 8."""
        p, q = self.design.p, self.design.q
        parts = range(0, len(p), _PAIRS_AT_ONCE)
        values = np.concatenate(
            [
                statistic.distances(p[k : k + _PAIRS_AT_ONCE], q[k : k + _PAIRS_AT_ONCE])
                for k in parts
            ],
            axis=1,
        )
        details = statistic.detail(p[0], q[0])
        for k, (name, of_row) in enumerate(zip(statistic.names, values, strict=True)):
            value, floor, log_ratio = self.design.read(of_row)
            yield Row(
                variable,
                statistic.group,
                name,
                statistic.units[k] if statistic.units else "",
                value,
                floor,
                value / floor,
                _around(value / floor, log_ratio),
                detail=details[k],
            )

    def classifier(self, x: Array, what: str, variable: str) -> Iterator[Row]:
        """Group 9, from features of shape (maps, features)."""
        G, R = self.sets.generated, self.sets.reference
        won, together = classifier.wins(x, G, R)
        value = float(won.sum() / together.sum())
        p, q = self.design.bootstrap
        interval = _within(value, classifier.area_under_curve(won, together, p[:, G], q[:, R]))
        rng = np.random.default_rng(self.seed + 1)
        others = [
            classifier.wins(x, *pair) for pair in floor_sets(self.sets, rng, _CLASSIFIER_FLOORS)
        ]
        floor = float(np.mean([won.sum() / together.sum() for won, together in others]))
        name, alike = f"classifier AUC, {what}", (0.0, max(0.5, floor))
        yield Row(variable, 9, name, "", value, floor, None, interval, alike)

    def memorisation(self, to_training: Array, variable: str) -> Iterator[Row]:
        """Group 10, from squared distances of shape (maps, training maps)."""
        G, R = self.sets.generated, self.sets.reference
        nearest = np.sqrt(to_training.min(axis=1))
        value, floor = (float(np.median(nearest[members])) for members in (G, R))
        yield Row(
            variable,
            10,
            "distance to the nearest training map",
            "std",
            value,
            floor,
            value / floor,
            _around(value / floor, self._median_ratios(nearest)),
            alike=(1.0, np.inf),
        )
        closer = nearest[G] < nearest[R].min()
        resampled = self.design.bootstrap[0][:, G] @ closer
        yield Row(
            variable,
            10,
            "share nearer to training than any reference",
            "",
            float(closer.mean()),
            1 / (len(R) + 1),
            None,
            _within(float(closer.mean()), resampled),
            alike=(0.0, _largest_share(len(G), len(R))),
        )

    def _median_ratios(self, nearest: Array) -> Array:
        order = np.argsort(nearest)
        G, R = (
            nearest[order][(np.cumsum(w[:, order], axis=1) < 0.5).sum(axis=1)]
            for w in self.design.bootstrap
        )
        smallest = _COPY * R.mean()  # the logarithm of an exact copy's distance
        return np.log(np.maximum(G, smallest) / R)


def _around(ratio: float, log_ratios: Array) -> tuple[float, float]:
    factor = float(np.exp(_NORMAL * log_ratios.std(ddof=1)))
    return ratio / factor, ratio * factor


def _within(share: float, resampled: Array) -> tuple[float, float]:
    reach = _NORMAL * float(resampled.std(ddof=1))
    return max(0.0, share - reach), min(1.0, share + reach)


def _largest_share(N: int, M: int) -> float:
    """The largest j/N that N maps of the law of M others exceed with probability 0.025 or less."""
    exceeded = np.cumprod((N - np.arange(N)) / (N + M - np.arange(N)))  # by the first, second, …
    return float((exceeded > _TAIL).sum()) / N
