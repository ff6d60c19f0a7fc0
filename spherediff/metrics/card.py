"""The scorecard: how far generated maps are from an archive, beside how far other real maps are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff import harmonics
from spherediff.metrics import classifier, statistics
from spherediff.metrics.features import Features, JointFeatures
from spherediff.metrics.judge import Judge, Row
from spherediff.metrics.resampling import Sets
from spherediff.metrics.statistics import Statistic

_SMALLEST_SET = 10

_Step = Callable[[Judge, Any, str], Iterator[Row]]  # features of one field, or of all


def _distances(build: Callable[[Any], Statistic]) -> _Step:
    return lambda judge, features, name: judge.distances(build(features), name)


def _classifier_on_coefficients(judge: Judge, features: Any, name: str) -> Iterator[Row]:
    return judge.classifier(classifier.of_coefficients(features), "coefficients", name)


def _classifier_on_maps(judge: Judge, features: Any, name: str) -> Iterator[Row]:
    return judge.classifier(classifier.of_maps(features), "maps", name)


def _memorisation(judge: Judge, features: Any, name: str) -> Iterator[Row]:
    return judge.memorisation(features.to_training, name)


_OF_EITHER: tuple[_Step, ...] = (_classifier_on_coefficients, _classifier_on_maps)
_OF_FIELD: tuple[_Step, ...] = (
    _distances(statistics.spectrum),
    _distances(statistics.shapes),
    _distances(statistics.marginals),
    _distances(statistics.quantiles),
    _distances(statistics.energy),
    _distances(statistics.sliced),
    _distances(statistics.texture),
    _distances(statistics.bands),
    _distances(statistics.summaries),
    _distances(statistics.correlations),
    *_OF_EITHER,
)
_OF_ALL: tuple[_Step, ...] = (
    _distances(statistics.energy),
    _distances(statistics.sliced),
    _distances(statistics.correlations),
    *_OF_EITHER,
)


@dataclass(frozen=True)
class Scorecard:
    """All comparisons of one set of generated maps.

    Attributes:
        rows: channel by channel, then those of all channels together.
        sizes: numbers of generated, reference and training maps; the last may be 0.
        lmax: degrees up to this one were compared.
        resamples: of the bootstrap.
    """

    rows: tuple[Row, ...]
    sizes: tuple[int, int, int]
    lmax: int
    resamples: int

    def row(self, statistic: str, variable: str | None = None) -> Row:
        """The first row whose statistic begins so, of one variable or of any.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.statistic.startswith(statistic) and variable in (None, row.variable):
                return row
        raise KeyError(f"no row {statistic!r} of {variable or 'any variable'}")


def scorecard(
    generated: Tensor,
    reference: Tensor,
    training: Tensor | None = None,
    *,
    names: Sequence[str] = (),
    units: Sequence[str] = (),
    resamples: int = 100,
    generator: torch.Generator,
    progress: bool = False,
) -> Scorecard:
    """Everything that tells generated maps from an archive, each beside its noise floor.

    Fields with a yearly cycle should be compared by their anomalies, or the cycle, which a
    climatology reproduces, hides everything else.  Generated and reference sets of one size are
    best.  Without training maps the floor is the mean distance when blocks of maps are exchanged
    at random between the generated and the reference set, local units are those of both sets, and
    there are no rows of memorisation.

    All distances between maps are kept: memory grows with the square of their number, 16 bytes for
    each pair and channel.

    Args:
        generated: coefficients, shape (N, channels, (lmax+1)²).
        reference: the same of M maps that no one was trained on, in order of time.
        training: the maps the generator learnt from, in order of time.
        names: of the channels, in the rows.
        units: of the channels.
        resamples: of the bootstrap behind the intervals.
        generator: of all random draws.
        progress: whether to show a bar.

    Raises:
        ValueError: fewer than ten maps, lmax = 0, other shapes, values that are not finite, real
            maps that do not vary somewhere, or fewer than two resamples.
    """
    maps = {"generated": generated, "reference": reference}
    maps |= {} if training is None else {"training": training}
    _check(maps)
    channels = generated.shape[1]
    names = tuple(names) or tuple(f"channel {c}" for c in range(channels))
    units = tuple(units) or ("",) * channels
    if len(names) != channels or len(units) != channels:
        raise ValueError(f"expected {channels} names and units, got {names} and {units}")
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    sets = Sets((len(generated), len(reference), 0 if training is None else len(training)))
    pool = torch.cat([x.detach().cpu().double() for x in maps.values()])
    fields = [Features(pool[:, c].contiguous(), sets, units[c]) for c in range(channels)]
    for name, one in zip(names, fields, strict=True):
        if not (one.physical[sets.real].std(axis=0) > 0).all():
            raise ValueError(f"{name}: the real maps are all alike at some place")
    judge = Judge.draw(sets, resamples, generator)
    memory = () if training is None else (_memorisation,)
    work: list[tuple[Any, str, _Step]] = [
        (one, name, step)
        for one, name in zip(fields, names, strict=True)
        for step in (*_OF_FIELD, *memory)
    ]
    if channels > 1:
        joint = JointFeatures(tuple(fields))
        work += [(joint, "all", step) for step in (*_OF_ALL, *memory)]
    bar = tqdm(work, desc="scorecard", leave=False, disable=not progress)
    rows = tuple(row for features, name, step in bar for row in step(judge, features, name))
    return Scorecard(rows, sets.sizes, fields[0].lmax, resamples)


def _check(sets: dict[str, Tensor]) -> None:
    shape = next(iter(sets.values())).shape[1:]
    for name, maps in sets.items():
        if maps.ndim != 3 or len(maps) < _SMALLEST_SET or maps.shape[1:] != shape:
            raise ValueError(
                f"expected at least {_SMALLEST_SET} {name} maps of shape (maps, channels,"
                f" (lmax+1)²), alike in all sets, got {tuple(maps.shape)} beside"
                f" (…, {', '.join(map(str, shape))})"
            )
        if bad := int((~torch.isfinite(maps)).sum()):
            raise ValueError(
                f"{bad} of {maps.numel()} coefficients of the {name} maps are not finite"
            )
    if harmonics.band_limit(shape[-1]) < 1:
        raise ValueError("expected fields of lmax ≥ 1, got constants")
