"""Channels of coefficients, and the variables of an archive that they stand for.

A scalar variable is one channel: the coefficients of its transformed maps.  Two variables that are
the eastward and the northward component of a vector field share two channels, in the place of the
first the coefficients E of its divergent part, in the place of the second the coefficients B of its
rotational part (:mod:`spherediff.vector`), in the units of the components.  By Parseval the two
together, and only together, have the variance of the two components.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff.data.archive import sample_dimension
from spherediff.data.maps import blocks
from spherediff.data.transforms import Identity, Transform
from spherediff.grids import Grid
from spherediff.vector import VectorTransform

Pair = tuple[str, str]


class Analysed(NamedTuple):
    """A batch of samples of one scalar variable, or of one vector field.

    Attributes:
        samples: which samples of the archive.
        channel: its channel, or the list of its two.
        maps: transformed, shape (samples, *grid.shape) or (samples, 2, *grid.shape).
        coefficients: shape (samples, n) or (samples, 2, n).
        transform: between the two.
    """

    samples: slice
    channel: int | list[int]
    maps: NDArray[np.float64]
    coefficients: Tensor
    transform: Grid | VectorTransform


@dataclass(frozen=True)
class Channels:
    """What each channel stands for.

    Attributes:
        names: the variables, one for each channel.
        transforms: the pointwise transform of each; Identity for those of vector fields.
        vectors: the eastward and the northward component of each vector field.
    """

    names: tuple[str, ...]
    transforms: tuple[Transform, ...]
    vectors: tuple[Pair, ...] = ()

    @property
    def scalars(self) -> list[int]:
        """The channels of scalar variables."""
        components = set(itertools.chain(*self.vectors))
        return [c for c, name in enumerate(self.names) if name not in components]

    @property
    def labels(self) -> tuple[str, ...]:
        """What the coefficients of each channel belong to, in words."""
        labels = list(self.names)
        for eastward, northward in self.vectors:
            of = f"part of {eastward}, {northward}"
            labels[self.names.index(eastward)] = f"the divergent {of}"
            labels[self.names.index(northward)] = f"the rotational {of}"
        return tuple(labels)

    def pooled(self, power: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean squares of the channels (channels,), those of a vector field added up for both."""
        total = power.copy()
        for both in self._of_vectors():
            total[both] = power[both].sum()
        return total

    def analyses(self, ds: xr.Dataset, grid: Grid, lmax: int) -> Iterator[Analysed]:
        """Coefficients of all samples and channels, batch by batch.

        Args:
            ds: an archive in normal form with all variables.
            grid: on which it lies.
            lmax: band limit.

        Raises:
            ValueError: missing or infinite values, or values out of the range of a transform.
        """
        for c in self.scalars:
            for samples, maps in blocks(ds, self.names[c], self.transforms[c]):
                a = grid.analysis(torch.from_numpy(maps), lmax)
                yield Analysed(samples, c, maps, a, grid)
        for both in self._of_vectors():
            transform = VectorTransform(grid)
            for samples, maps in _vector_blocks(ds, [self.names[c] for c in both]):
                a = transform.analysis(torch.from_numpy(maps), lmax)
                yield Analysed(samples, both, maps, a, transform)

    def analysed_with_residual(
        self, ds: xr.Dataset, grid: Grid, lmax: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Coefficients (samples, channels, n) and the variance that lmax leaves out (channels,).

        The latter is the variance over samples of map − synthesis(analysis(map)), averaged over the
        sphere; of a vector field that of each component.  Arguments as for :meth:`analyses`.
        """
        count = ds.sizes[sample_dimension(ds)]
        coefficients = np.empty((count, len(self.names), harmonics.count(lmax)))
        total, squares = np.zeros((2, len(self.names), *grid.shape))
        for samples, channel, maps, a, transform in self.analyses(ds, grid, lmax):
            residual = maps - transform.synthesis(a).numpy()
            total[channel] += residual.sum(0)
            squares[channel] += np.square(residual).sum(0)
            coefficients[samples, channel] = a.numpy()
        variance = np.maximum(squares / count - np.square(total / count), 0)
        weights = grid.area_weights.numpy() / (4 * math.pi)
        return coefficients, (weights * variance).reshape(len(self.names), -1).sum(-1)

    def maps(self, a: Tensor, grid: Grid) -> NDArray[np.float64]:
        """Values in physical units, shape (samples, channels, *grid.shape).

        Args:
            a: coefficients in transformed units, float64, shape (samples, channels, n).
            grid: where to evaluate them.
        """
        values = np.empty((*a.shape[:2], *grid.shape))
        for c in self.scalars:
            values[:, c] = self.transforms[c].inverse(grid.synthesis(a[:, c]).numpy())
        for both in self._of_vectors():
            values[:, both] = VectorTransform(grid).synthesis(a[:, both]).numpy()
        return values

    def _of_vectors(self) -> list[list[int]]:
        return [[self.names.index(name) for name in pair] for pair in self.vectors]


def pairs(vectors: Iterable[Sequence[str]]) -> tuple[Pair, ...]:
    """Pairs of names, each of an eastward and a northward component.

    Raises:
        ValueError: something else than two names.
    """
    found: list[Pair] = []
    for vector in vectors:
        match vector:
            case [str(eastward), str(northward)]:
                found.append((eastward, northward))
            case _:
                raise ValueError(
                    "expected the names of the eastward and the northward component of each vector"
                    f' field, as in (("u", "v"),), got {vector!r}'
                )
    return tuple(found)


def require_vectors(channels: Channels, ds: xr.Dataset) -> None:
    """Refuse variables that cannot be the components of a vector field.

    Raises:
        ValueError: a component that is missing, is one twice, or has a transform; components with
            different units or, by their standard names, exchanged.
    """
    components = list(itertools.chain(*channels.vectors))
    for name in components:
        if name not in channels.names:
            raise ValueError(
                f"{name} is a component of a vector field, but the variables are"
                f" {', '.join(channels.names)}: add it to them"
            )
        if components.count(name) > 1:
            raise ValueError(f"{name} is given twice as a component of vector fields")
        transform = channels.transforms[channels.names.index(name)]
        if transform != Identity():
            raise ValueError(
                f"{name}: {type(transform).__name__} cannot transform one component of a vector"
                " field, which depends on the direction of the axes: leave its transform out, or"
                " encode the components as scalars"
            )
    for eastward, northward in channels.vectors:
        first, second = (ds[name].attrs for name in (eastward, northward))
        units = first.get("units", "1"), second.get("units", "1")
        if units[0] != units[1]:
            raise ValueError(
                f"{eastward} is in {units[0]!r} and {northward} in {units[1]!r}, but the components"
                " of a vector field have the same units: convert one and set its units attribute"
            )
        kinds = str(first.get("standard_name", "")), str(second.get("standard_name", ""))
        if "northward" in kinds[0] or "eastward" in kinds[1]:
            raise ValueError(
                f"expected an eastward and a northward component, but {eastward} is {kinds[0]!r}"
                f" and {northward} {kinds[1]!r} by their standard names: exchange them"
            )


def _vector_blocks(
    ds: xr.Dataset, names: Sequence[str]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Both components, (samples, 2, *shape), a batch of samples at a time."""
    dim = sample_dimension(ds)
    sizes = {ds[name].variable.chunksizes.get(dim) for name in names}
    if len(sizes) > 1:
        ds = ds.chunk({dim: next(filter(None, sizes))})
    components = (blocks(ds, name, Identity()) for name in names)
    for (samples, u), (_, v) in zip(*components, strict=True):
        yield samples, np.stack([u, v], 1)
