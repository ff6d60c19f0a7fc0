"""Reading the maps of an archive, batch by batch, so that few are in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spherediff.data.archive import sample_dimension
from spherediff.data.transforms import Quantile, Transform
from spherediff.grids import Grid

BATCH = 64  # samples transformed at once
_QUANTILE_VALUES = 2_000_000  # values a Quantile is fitted to, from evenly spaced samples


def _sample_slices(ds: xr.Dataset, name: str) -> Iterator[slice]:
    """The dask chunks of the samples, so that no stored chunk is read twice."""
    dim = sample_dimension(ds)
    sizes = ds[name].variable.chunksizes.get(dim, (ds.sizes[dim],))
    stop = 0
    for size in sizes:
        start, stop = stop, stop + size
        yield slice(start, stop)


def blocks(
    ds: xr.Dataset, name: str, transform: Transform
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Transformed maps of one variable, a batch of samples at a time."""
    dim = sample_dimension(ds)
    for part in _sample_slices(ds, name):
        values = _read(ds[name].isel({dim: part}))
        if not np.isfinite(values).all():
            raise ValueError(_missing(ds, name))
        for k in range(0, len(values), BATCH):
            batch = values[k : k + BATCH]
            start = part.start + k
            yield slice(start, start + len(batch)), _forward(transform, batch, name)


def _forward(transform: Transform, values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(transform.forward(values), np.float64)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _read(field: xr.DataArray) -> NDArray[np.float64]:
    """Values in memory, float64.

    Raises:
        OSError: the file turns out to be damaged where these values lie.
    """
    try:
        return np.asarray(field.values, np.float64)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"cannot read the values of {field.name}: the file is damaged: {error}"
        ) from error


def _missing(ds: xr.Dataset, name: str) -> str:
    """Message that counts what is missing in a variable, and says what to do."""
    dim = sample_dimension(ds)
    nan = infinite = affected = 0
    first = None
    for part in _sample_slices(ds, name):
        values = _read(ds[name].isel({dim: part})).reshape(part.stop - part.start, -1)
        nan += int(np.isnan(values).sum())
        infinite += int(np.isinf(values).sum())
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        affected += len(bad)
        if first is None and len(bad):
            first = part.start + int(bad[0])
    total = math.prod(ds[name].shape)
    return (
        f"{name} has {nan} missing and {infinite} infinite values among {total}"
        f" ({(nan + infinite) / total:.2g}), in {affected} of {ds.sizes[dim]} samples, first in"
        f" sample {first}; a spherical-harmonic analysis needs every value. Fill them with"
        " spherediff.data.fill(ds, value), where value is a number in the variable's units or"
        " 'mean' for the mean of the other samples, or leave these samples out"
    )


def fitted(field: xr.DataArray, transform: Transform, grid: Grid) -> Transform:
    """The transform, a Quantile with its table made from evenly spaced samples."""
    if not isinstance(transform, Quantile) or transform.x:
        return transform
    ds = field.to_dataset()
    dim = sample_dimension(ds)
    count = min(ds.sizes[dim], max(1, _QUANTILE_VALUES // math.prod(grid.shape)))
    chosen = np.unique(np.linspace(0, ds.sizes[dim] - 1, count).round().astype(int))
    values = _read(field.isel({dim: chosen}))
    if not np.isfinite(values).all():
        raise ValueError(_missing(ds, str(field.name)))
    weights = np.broadcast_to(grid.area_weights.numpy(), values.shape)
    try:
        return transform.fit(values, weights)
    except ValueError as error:
        raise ValueError(f"{field.name}: {error}") from error
