"""Operators made of others: filtered, several at once, or as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spherediff import harmonics
from spherediff.observe.operator import Operator, require_none
from spherediff.zonal import Places

_ROWS = 64  # of a matrix made at once


class Filtered(Operator):
    """An operator after multiplication by b_ℓ of each degree: a beam, a smoothing.

    Args:
        operator: what is observed of the filtered field.
        gain: b_ℓ, shape (lmax+1,), or (channels, lmax+1) for one of each channel.

    Raises:
        ValueError: another shape, or a gain that is not finite.
    """

    def __init__(self, operator: Operator, gain: Tensor | np.ndarray) -> None:
        super().__init__(operator.event_shape, operator.size)
        b = torch.as_tensor(gain).double()
        per_channel = (*self.event_shape[:-1], self.lmax + 1)
        if tuple(b.shape) not in ((self.lmax + 1,), per_channel):
            raise ValueError(
                f"expected a gain of shape {(self.lmax + 1,)} or {per_channel} for states of shape "
                f"{self.event_shape}, got {tuple(b.shape)}"
            )
        if not torch.isfinite(b).all():
            bad = int((~torch.isfinite(b)).sum())
            raise ValueError(f"the gain must be finite; {bad} of {b.numel()} numbers are not")
        self.operator, self.gain = operator, b

    def places(self, weight: Tensor) -> list[Places] | None:
        found = self.operator.places(weight)
        return found and [some._replace(gain=some.gain * self.gain) for some in found]

    def _apply(self, x: Tensor) -> Tensor:
        return self.operator(harmonics.expand(self.gain.to(x)) * x)

    def _transpose(self, y: Tensor) -> Tensor:
        return harmonics.expand(self.gain.to(y)) * self.operator.adjoint(y)


class Stacked(Operator):
    """Several operators at once, their numbers one after the other.

    Args:
        operators: at least one, all for states of the same shape.

    Raises:
        ValueError: none, or states of different shapes.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        shapes = sorted({operator.event_shape for operator in operators})
        if len(shapes) != 1:
            raise ValueError(
                "expected at least one operator, all for states of the same shape; found shapes "
                f"{shapes}"
            )
        super().__init__(shapes[0], sum(operator.size for operator in operators))
        self.operators = tuple(operators)

    def places(self, weight: Tensor) -> list[Places] | None:
        parts = weight.split([operator.size for operator in self.operators])
        pairs = zip(self.operators, parts, strict=True)
        found = [operator.places(part) for operator, part in pairs]
        return None if None in found else [one for some in found if some for one in some]

    def _apply(self, x: Tensor) -> Tensor:
        return torch.cat([operator(x) for operator in self.operators], -1)

    def _transpose(self, y: Tensor) -> Tensor:
        parts = y.split([operator.size for operator in self.operators], -1)
        x = self.operators[0].adjoint(parts[0])
        for operator, part in zip(self.operators[1:], parts[1:], strict=True):
            x = x + operator.adjoint(part)
        return x


class Dense(Operator):
    """An operator as a matrix: quicker than others where it is applied again and again.

    Args:
        matrix: H, shape (m, size of a state); m·n numbers are kept, float64.
        event_shape: shape of a state, (n,) or (channels, n).

    Raises:
        ValueError: a matrix of another shape, or numbers that are not finite.
    """

    def __init__(self, matrix: Tensor | np.ndarray, event_shape: Sequence[int]) -> None:
        H = torch.as_tensor(matrix).double()
        if H.ndim != 2 or H.shape[1] != math.prod(event_shape):
            raise ValueError(
                f"expected a matrix of shape (m, {math.prod(event_shape)}) for states of shape "
                f"{tuple(event_shape)}, got {tuple(H.shape)}"
            )
        require_none(~torch.isfinite(H), "the matrix must be finite", "leave such rows out")
        super().__init__(event_shape, len(H))
        self.matrix = H

    @classmethod
    def of(cls, operator: Operator) -> Dense:
        """The matrix of another operator of moderate size."""
        rows = [operator.adjoint(part) for part in torch.eye(operator.size).double().split(_ROWS)]
        return cls(torch.cat(rows).flatten(1), operator.event_shape)

    def _apply(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.event_shape)) @ self.matrix.to(x).T

    def _transpose(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).unflatten(-1, self.event_shape)


def gaussian_beam(fwhm: float, lmax: int) -> Tensor:
    """Gain b_ℓ = exp(−ℓ(ℓ+1) s²/2) of a Gaussian beam, s = fwhm/√(8 log 2).

    Args:
        fwhm: full width at half maximum in radians, ≥ 0.
        lmax: largest degree.

    Returns:
        float64, shape (lmax+1,).

    Raises:
        ValueError: a negative or infinite width, or a negative ``lmax``.
    """
    if not 0 <= fwhm < math.inf:
        raise ValueError(f"expected a beam width of at least 0 radians, got {fwhm}")
    harmonics.count(lmax)
    ell = torch.arange(lmax + 1, dtype=torch.float64)
    return torch.exp(-ell * (ell + 1) * fwhm**2 / (16 * math.log(2)))
