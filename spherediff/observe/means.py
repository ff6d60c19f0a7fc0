"""Weighted means: over the area of a grid, and of as many numbers each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spherediff.grids import Grid
from spherediff.observe.operator import Operator, require_none
from spherediff.observe.values import OnGrid


class Means(OnGrid):
    """Weighted area means of one channel, of regions for example.

    Args:
        grid: where the weights are given; its quadrature is used.
        weights: weights ≥ 0, shape (m, *grid.shape), 0 and 1 for plain regions.  They are
            multiplied by ``grid.area_weights`` and scaled to sum to one each.
        event_shape: shape of a state, (n,) or (channels, n).
        channel: which channel.

    Raises:
        ValueError: weights of another shape, negative, not finite or all zero, a grid without
            quadrature, or no such channel.
    """

    def __init__(
        self, grid: Grid, weights: Tensor | np.ndarray, event_shape: Sequence[int], channel: int = 0
    ) -> None:
        w = torch.as_tensor(weights).double()
        if w.ndim == 0 or len(w) == 0 or tuple(w.shape[1:]) != grid.shape:
            raise ValueError(
                f"expected weights of shape (m, {', '.join(map(str, grid.shape))}) on {grid!r}, "
                f"got {tuple(w.shape)}"
            )
        bad = int((~(torch.isfinite(w) & (w >= 0))).sum())
        if bad:
            raise ValueError(
                f"weights must be finite and not negative; {bad} of {w.numel()} are not"
            )
        w = (w * grid.area_weights.to(w.device)).flatten(1)
        total = w.sum(1, keepdim=True)
        if (total == 0).any():
            empty = torch.nonzero(total[:, 0] == 0)[:, 0].tolist()
            raise ValueError(f"the weights of regions {empty} are zero everywhere: leave them out")
        super().__init__(grid, event_shape, channel, len(w))
        self._weights = w / total

    def _apply(self, x: Tensor) -> Tensor:
        return self._values(x) @ self._weights.to(x).T

    def _transpose(self, y: Tensor) -> Tensor:
        return self._values_transpose(y @ self._weights.to(y))


class Averaged(Operator):
    """Weighted sums of numbers that another operator gives, as many in each.

    Args:
        operator: H', which gives those of one sum after those of the other.
        weights: w, shape (m, number in a sum).

    Raises:
        ValueError: other weights than H' has numbers, or some that are not finite.
    """

    def __init__(self, operator: Operator, weights: Tensor | np.ndarray) -> None:
        w = torch.as_tensor(weights).double()
        if w.ndim != 2 or w.numel() != operator.size:
            raise ValueError(
                f"expected weights of shape (m, q) with m·q = {operator.size}, as many as there "
                f"are numbers, got {tuple(w.shape)}"
            )
        require_none(~torch.isfinite(w), "the weights must be finite", "leave such sums out")
        super().__init__(operator.event_shape, len(w))
        self.operator, self.weights = operator, w

    def _apply(self, x: Tensor) -> Tensor:
        values = self.operator(x).unflatten(-1, self.weights.shape)
        return torch.einsum("kq,...kq->...k", self.weights.to(values), values)

    def _transpose(self, y: Tensor) -> Tensor:
        return self.operator.adjoint((y[..., None] * self.weights.to(y)).flatten(-2))
