"""Coefficients themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from spherediff import harmonics
from spherediff.observe.operator import Operator, selection


class Coefficients(Operator):
    """Selected coefficients themselves.

    Args:
        selected: true for those observed, shape ``event_shape``; the numbers are in the order of
            ``x[selected]``.
        event_shape: shape of a state, (n,) or (channels, n).

    Raises:
        TypeError: ``selected`` is not boolean.
        ValueError: its shape is not ``event_shape``, or it has no true entry.
    """

    def __init__(self, selected: Tensor | np.ndarray, event_shape: Sequence[int]) -> None:
        index = selection(selected, tuple(event_shape), "selection")
        super().__init__(event_shape, len(index))
        self._index = index

    @classmethod
    def up_to(cls, lmax: int, event_shape: Sequence[int]) -> Coefficients:
        """All degrees ℓ ≤ ``lmax`` of every channel.

        Raises:
            ValueError: ``lmax`` is negative or above the band limit of the state.
        """
        shape = tuple(event_shape)
        limit = harmonics.band_limit(shape[-1])
        if not 0 <= lmax <= limit:
            raise ValueError(f"expected lmax from 0 to {limit}, that of the state, got {lmax}")
        return cls((harmonics.degrees(limit) <= lmax).expand(shape), shape)

    @classmethod
    def channels(cls, channels: Iterable[int], event_shape: Sequence[int]) -> Coefficients:
        """All coefficients of some channels, in rising order of channel.

        Raises:
            ValueError: states without a channel axis, or no such channel.
        """
        shape, wanted = tuple(event_shape), sorted(set(channels))
        if len(shape) != 2 or not all(0 <= c < shape[0] for c in wanted):
            raise ValueError(
                f"expected states of shape (channels, n) and channels among them, got {shape} and "
                f"channels {wanted}"
            )
        selected = torch.zeros(shape, dtype=torch.bool)
        selected[wanted] = True
        return cls(selected, shape)

    def _apply(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.event_shape)).index_select(-1, self._index.to(x.device))

    def _transpose(self, y: Tensor) -> Tensor:
        flat = y.new_zeros(*y.shape[:-1], math.prod(self.event_shape))
        flat = flat.index_copy(-1, self._index.to(y.device), y)
        return flat.unflatten(-1, self.event_shape)
