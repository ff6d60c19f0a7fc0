"""Values of a field on a grid, and of the components of a vector field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spherediff.grids import Grid
from spherediff.observe.operator import Operator, selection
from spherediff.vector import VectorTransform
from spherediff.zonal import Places


class OnGrid(Operator):
    """Something of the values of one channel on a grid."""

    def __init__(self, grid: Grid, event_shape: Sequence[int], channel: int, size: int) -> None:
        super().__init__(event_shape, size)
        channels = math.prod(self.event_shape[:-1])
        if not 0 <= channel < channels:
            raise ValueError(
                f"expected a channel from 0 to {channels - 1} of states of shape "
                f"{self.event_shape}, got {channel}"
            )
        self.grid, self.channel = grid, channel

    def _values(self, x: Tensor) -> Tensor:
        """S_c x, the axes of the grid flattened."""
        one = x if len(self.event_shape) == 1 else x[..., self.channel, :]
        return self.grid.synthesis(one).flatten(-len(self.grid.shape))

    def _values_transpose(self, flat: Tensor) -> Tensor:
        """S_cᵀ of flattened values."""
        one = self.grid.adjoint(flat.unflatten(-1, self.grid.shape), self.lmax)
        if len(self.event_shape) == 1:
            return one
        x = one.new_zeros(*one.shape[:-1], *self.event_shape)
        x[..., self.channel, :] = one
        return x


class Values(OnGrid):
    """Values of one channel on a grid: stations, masked maps.

    Args:
        grid: where the field is observed.
        event_shape: shape of a state, (n,) or (channels, n).
        channel: which channel.
        mask: true where the value is observed, shape ``grid.shape``; everywhere if not given.
            The numbers are in the order of ``values[mask]``.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: a mask of another shape or without a true entry, or no such channel.
    """

    def __init__(
        self,
        grid: Grid,
        event_shape: Sequence[int],
        channel: int = 0,
        mask: Tensor | np.ndarray | None = None,
    ) -> None:
        if mask is None:
            mask = np.ones(grid.shape, dtype=bool)
        index = selection(mask, grid.shape, "mask")
        super().__init__(grid, event_shape, channel, len(index))
        self._index = index

    def places(self, weight: Tensor) -> list[Places] | None:
        if len(self.event_shape) > 1:
            return None
        latitude, longitude, index = self.grid.latitude, self.grid.longitude, self._index.numpy()
        if len(self.grid.shape) == 2:
            nlat, nlon = self.grid.shape
            latitude, longitude = latitude.repeat(nlon), np.tile(longitude, nlat)
        one = torch.ones(self.lmax + 1, dtype=torch.float64)
        return [Places(latitude[index], longitude[index], weight.double(), one)]

    def _apply(self, x: Tensor) -> Tensor:
        return self._values(x).index_select(-1, self._index.to(x.device))

    def _transpose(self, y: Tensor) -> Tensor:
        flat = y.new_zeros(*y.shape[:-1], math.prod(self.grid.shape))
        return self._values_transpose(flat.index_copy(-1, self._index.to(y.device), y))


class Component(Operator):
    """Values of one component of a vector field on a grid (:mod:`spherediff.vector`).

    Args:
        grid: where the field is observed.
        event_shape: shape of a state, (channels, n).
        channels: those of E and of B.
        component: 0 for the eastward one, 1 for the northward one.
        mask: true where it is observed, shape ``grid.shape``; everywhere if not given.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: a mask of another shape or without a true entry, no such channels or component.
    """

    def __init__(
        self,
        grid: Grid,
        event_shape: Sequence[int],
        channels: tuple[int, int],
        component: int,
        mask: Tensor | np.ndarray | None = None,
    ) -> None:
        if mask is None:
            mask = np.ones(grid.shape, dtype=bool)
        index = selection(mask, grid.shape, "mask")
        super().__init__(event_shape, len(index))
        count = self.event_shape[0] if len(self.event_shape) == 2 else 0
        if not all(0 <= c < count for c in channels) or component not in (0, 1):
            raise ValueError(
                f"expected two channels of states of shape {self.event_shape} and component 0 or "
                f"1, got channels {channels} and component {component}"
            )
        self.channels, self.component = list(channels), component
        self._transform, self._index = VectorTransform(grid), index

    def _apply(self, x: Tensor) -> Tensor:
        values = self._transform.synthesis(x[..., self.channels, :])
        flat = values.flatten(-len(self._transform.grid.shape))[..., self.component, :]
        return flat.index_select(-1, self._index.to(x.device))

    def _transpose(self, y: Tensor) -> Tensor:
        shape = self._transform.grid.shape
        flat = y.new_zeros(*y.shape[:-1], 2, math.prod(shape))
        flat[..., self.component, self._index.to(y.device)] = y
        x = y.new_zeros(*y.shape[:-1], *self.event_shape)
        x[..., self.channels, :] = self._transform.adjoint(flat.unflatten(-1, shape), self.lmax)
        return x
