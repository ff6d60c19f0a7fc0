"""Random streams: draws that do not depend on the batch or on the band limit.

A ``torch.Generator`` gives each sample of a batch a 126-bit key.  From then on sample k draws from
its own stream, and draw j of a stream starts anew from (key, j), whatever its length.  So

* sample k is the same in every batch that reaches it, and
* the first (L+1)² numbers of draw j are the same for every band limit lmax ≥ L,

which makes resolution studies and restarts exact.  Draws are made on the CPU in blocks (in
parallel), then moved, so that CPU and CUDA see the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 16

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class NormalSource(Protocol):
    """Whatever hands out standard normal draws, one event for each of its samples."""

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Standard normal draws of shape (samples, *event_shape), the caller's own to write on."""
        ...


Randomness = torch.Generator | Sequence[torch.Generator] | NormalSource


def open_source(generator: Randomness, count: int) -> NormalSource:
    """Streams for ``count`` samples from a generator or from one a sample; a source stays itself.

    Raises:
        TypeError: ``generator`` is no generator, sequence of generators or source.
    """
    if isinstance(generator, torch.Generator | Sequence):
        return Streams(generator, count)
    if not hasattr(generator, "normal"):
        raise TypeError(
            f"expected a torch.Generator or a sequence of them, got {type(generator).__name__}"
        )
    return generator


class Streams:
    """Independent random streams, one for each sample of a batch.

    Args:
        generator: a CPU generator, from which ``count`` keys are drawn one after the other, or a
            sequence of ``count`` CPU generators, one for each sample.
        count: number of samples.

    Raises:
        TypeError: ``generator`` is neither.
        ValueError: a generator lives on another device than the CPU, or their number is not
            ``count``.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator], count: int) -> None:
        if isinstance(generator, torch.Generator):
            self.keys = _keys(generator, count)
        else:
            generators = list(generator)
            if len(generators) != count:
                raise ValueError(
                    f"expected one generator or {count}, one a sample, got {len(generators)}"
                )
            self.keys = [key for g in generators for key in _keys(g, 1)]
        self.draws = 0

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Next draw of every stream.

        Args:
            event_shape: shape of one sample, (n,) or (channels, n); each row of n is a draw.
            dtype: float32 or float64.

        Returns:
            Standard normal tensor of shape (count, *event_shape) on the CPU.
        """
        n = event_shape[-1]
        rows = math.prod(event_shape[:-1])
        # numpy asks for huge pages, torch does not: long draws spare thousands of page faults.
        values = np.empty((len(self.keys), rows, n), dtype=_NUMPY[dtype])
        tasks = [
            (values[k, row, start : start + _BLOCK], key, (self.draws + row, start // _BLOCK))
            for k, key in enumerate(self.keys)
            for row in range(rows)
            for start in range(0, n, _BLOCK)
        ]
        self.draws += rows
        if n > _BLOCK:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(_fill, tasks))
        else:
            for task in tasks:
                _fill(task)
        return torch.from_numpy(values).reshape(len(self.keys), *event_shape)


@dataclass(frozen=True)
class PlainDraws:
    """A :class:`NormalSource` that draws for all samples at once.

    Quicker than a stream for each, where a sample need not be the same in every batch.

    Args:
        generator: a CPU generator.
        count: number of samples.
    """

    generator: torch.Generator
    count: int

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Standard normal draws of shape (count, *event_shape)."""
        return torch.randn(self.count, *event_shape, dtype=dtype, generator=self.generator)


def _keys(generator: torch.Generator, count: int) -> list[tuple[int, int]]:
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"expected a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != "cpu":
        raise ValueError(
            f"expected a generator on the CPU, found one on {generator.device}: draws are made on "
            "the CPU and moved, so that every device sees the same numbers; "
            "use torch.Generator().manual_seed(seed)"
        )
    words = torch.empty(count, 2, dtype=torch.int64).random_(generator=generator)
    return [(first, second) for first, second in words.tolist()]


def _fill(task: tuple[np.ndarray, tuple[int, int], tuple[int, int]]) -> None:
    out, key, place = task
    bits = np.random.SFC64(np.random.SeedSequence(key, spawn_key=place))
    np.random.Generator(bits).standard_normal(out=out, dtype=out.dtype.type)
