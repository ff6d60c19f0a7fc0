"""Fields on points of the sphere: the three linear maps every grid has.

With points p_j and the real orthonormal harmonics Y_i of :mod:`spherediff.harmonics`,

    synthesis   v_j = Σ_i Y_i(p_j) a_i          v = S a
    adjoint     b_i = Σ_j Y_i(p_j) v_j          b = Sᵀ v
    analysis    a   = S⁺ v                      S⁺ S = 1 up to the band limit of the grid

All three are batched over the leading axes, work in float32 and float64, and are differentiable:
the backward of synthesis is the adjoint, and conversely.

Transforms made by ducc0 run on the CPU; a tensor on another device is moved there and the
result is moved back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff._linear import linear


class Grid(ABC):
    """A set of points on the sphere on which band-limited fields are evaluated.

    Attributes:
        shape: shape of the values of one field.
        max_lmax: the largest band limit that :meth:`analysis` recovers; −1 if there is none.
    """

    shape: tuple[int, ...]
    max_lmax: int

    @property
    @abstractmethod
    def latitude(self) -> NDArray[np.float64]:
        """Latitudes in degrees: of every point, or the axis of a product grid."""

    @property
    @abstractmethod
    def longitude(self) -> NDArray[np.float64]:
        """Longitudes in degrees: of every point, or the axis of a product grid."""

    @property
    @abstractmethod
    def area_weights(self) -> Tensor:
        """Quadrature weights of ``shape`` in steradian, float64, with sum 4π."""

    @abstractmethod
    def _synthesis(self, a: Tensor, spin: int = 0) -> Tensor:
        """S on plain tensors: (..., n) → (..., *shape).

        With spin 1, here and below, the map of :mod:`spherediff.vector` between E and B, shape
        (..., 2, n), and ducc0's V_θ and V_φ, shape (..., 2, *shape).
        """

    @abstractmethod
    def _adjoint(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        """Sᵀ on plain tensors: (..., *shape) → (..., n)."""

    @abstractmethod
    def _analysis(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        """S⁺, differentiable, of values that have been checked."""

    def synthesis(self, a: Tensor) -> Tensor:
        """Values of the field with coefficients ``a``: (..., n) → (..., *shape).

        Args:
            a: real coefficients, shape (..., (lmax+1)²), float32 or float64.

        Raises:
            TypeError: ``a`` is not float32 or float64.
            ValueError: the last axis is not (lmax+1)² long.
        """
        _require_floating(a, "coefficients")
        if a.ndim == 0:
            raise ValueError("expected coefficients of shape (..., (lmax+1)²), got a scalar")
        lmax = harmonics.band_limit(a.shape[-1])
        return linear(a, self._synthesis, lambda values: self._adjoint(values, lmax))

    def adjoint(self, values: Tensor, lmax: int) -> Tensor:
        """Transpose of :meth:`synthesis`: (..., *shape) → (..., (lmax+1)²).

        Args:
            values: shape (..., *shape), float32 or float64.
            lmax: band limit of the result, at least 0; no upper limit.

        Raises:
            TypeError: ``values`` is not float32 or float64.
            ValueError: the trailing axes are not ``shape``, or ``lmax`` is negative.
        """
        self._require_values(values, lmax)
        return linear(values, lambda v: self._adjoint(v, lmax), self._synthesis)

    def analysis(self, values: Tensor, lmax: int) -> Tensor:
        """Coefficients of the field with these values: (..., *shape) → (..., (lmax+1)²).

        Args:
            values: shape (..., *shape), float32 or float64, all finite.
            lmax: band limit of the result, at most ``max_lmax``.

        Raises:
            TypeError: ``values`` is not float32 or float64.
            ValueError: the trailing axes are not ``shape``; ``lmax`` is negative or larger
                than ``max_lmax``; ``values`` holds NaN or infinities.
        """
        return self._analysis(self._analysable(values, lmax), lmax)

    def _analysable(self, values: Tensor, lmax: int) -> Tensor:
        """The values, checked as :meth:`analysis` promises."""
        self._require_values(values, lmax)
        if lmax > self.max_lmax:
            raise ValueError(
                f"lmax = {lmax} is too high for {self!r}: the largest lmax it supports is"
                f" {self.max_lmax}; ask for at most that, or give values on a finer grid"
            )
        return linear(values, _finite, _identity)

    def _require_values(self, values: Tensor, lmax: int) -> None:
        _require_floating(values, "values")
        if tuple(values.shape[values.ndim - len(self.shape) :]) != self.shape:
            raise ValueError(
                f"expected values of shape (..., {', '.join(map(str, self.shape))}) on"
                f" {self!r}, got {tuple(values.shape)}"
            )
        if lmax < 0:
            raise ValueError(f"lmax must be at least 0, got {lmax}")


def _require_floating(x: Tensor, what: str) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected float32 or float64 {what}, got {x.dtype}; convert them first")


def _finite(values: Tensor) -> Tensor:
    """The values themselves, unless some are NaN or infinite: then say how many.

    A sum is not finite as soon as one term is not, and costs one pass without a temporary;
    only then are the values looked at one by one, since finite values may overflow in the sum.

    Raises:
        ValueError: some value is NaN or infinite.
    """
    if not torch.isfinite(values.sum()):
        missing = int(torch.isnan(values).sum())
        infinite = int(torch.isinf(values).sum())
        if missing or infinite:
            raise ValueError(
                f"values hold {missing} NaN and {infinite} infinite entries among"
                f" {values.numel()}; a transform needs them all: fill or drop the fields concerned"
            )
    return values.view_as(values)


def _identity(values: Tensor) -> Tensor:
    return values.view_as(values)
