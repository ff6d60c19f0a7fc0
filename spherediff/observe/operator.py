"""A linear map of states with its exact transpose, and what is asked of its arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spherediff import harmonics
from spherediff._linear import linear
from spherediff.zonal import Places


class Operator(ABC):
    """A linear map H of states and its exact transpose.

    Both are differentiable any number of times, also under ``torch.func``, batched over leading
    axes, in float32 and float64.

    Args:
        event_shape: shape of a state, (n,) or (channels, n) with n = (lmax+1)².
        size: m, number of numbers observed.

    Raises:
        ValueError: the shape has neither one nor two axes, or n is no square.
    """

    def __init__(self, event_shape: Sequence[int], size: int) -> None:
        self.event_shape = tuple(event_shape)
        self.size = size
        if len(self.event_shape) not in (1, 2):
            raise ValueError(
                f"expected states of shape (n,) or (channels, n), got {self.event_shape}"
            )
        self.lmax = harmonics.band_limit(self.event_shape[-1])

    @abstractmethod
    def _apply(self, x: Tensor) -> Tensor:
        """H on plain tensors: (*batch, *event_shape) → (*batch, m)."""

    @abstractmethod
    def _transpose(self, y: Tensor) -> Tensor:
        """Hᵀ on plain tensors: (*batch, m) → (*batch, *event_shape)."""

    def places(self, weight: Tensor) -> list[Places] | None:
        """The places that it gives values at, of a single field, with weights of shape (m,).

        None if it gives something else than values of a field, or of a smoothed one.
        """
        return None

    def __call__(self, x: Tensor) -> Tensor:
        """H x: (*batch, *event_shape) → (*batch, m).

        Raises:
            TypeError: ``x`` is not float32 or float64.
            ValueError: its trailing axes are not ``event_shape``.
        """
        require(x, self.event_shape, "coefficients")
        return linear(x, self._apply, self._transpose)

    def adjoint(self, y: Tensor) -> Tensor:
        """Hᵀ y: (*batch, m) → (*batch, *event_shape).

        Raises:
            TypeError: ``y`` is not float32 or float64.
            ValueError: its last axis is not m.
        """
        require(y, (self.size,), "observed numbers")
        return linear(y, self._transpose, self._apply)


def selection(mask: Tensor | np.ndarray, shape: tuple[int, ...], what: str) -> Tensor:
    """Flat indices of the true entries."""
    chosen = torch.as_tensor(mask)
    if chosen.dtype != torch.bool:
        raise TypeError(f"expected a boolean {what}, got {chosen.dtype}")
    if tuple(chosen.shape) != shape:
        raise ValueError(f"expected a {what} of shape {shape}, got {tuple(chosen.shape)}")
    if not chosen.any():
        raise ValueError(f"the {what} has no true entry: nothing is observed")
    return torch.nonzero(chosen.flatten())[:, 0]


def require(x: Tensor, trailing: tuple[int, ...], what: str, batch: bool = True) -> None:
    """Refuse tensors of another dtype or shape; leading axes are a batch if there may be one.

    Raises:
        TypeError: neither float32 nor float64.
        ValueError: other trailing axes.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected float32 or float64 {what}, got {x.dtype}; convert them first")
    found = tuple(x.shape[x.ndim - len(trailing) :]) if batch else tuple(x.shape)
    if found != trailing:
        shape = f"(..., {', '.join(map(str, trailing))})" if batch else f"{trailing}"
        raise ValueError(f"expected {what} of shape {shape}, got {tuple(x.shape)}")


def require_none(bad: Tensor, requirement: str, remedy: str) -> None:
    """Refuse numbers some of which are bad, with how many they are.

    Raises:
        ValueError: one is.
    """
    if bad.any():
        raise ValueError(f"{requirement}; {int(bad.sum())} of {bad.numel()} are not: {remedy}")
