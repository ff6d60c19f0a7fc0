"""Directions of differentiation: which shifts a Gaussian noise can feel.

The law of X_t = αX_0 + ξ, ξ ~ N(0, Σ) with Σ = diag σ_ℓ², has a logarithmic derivative along h if
h lies in the Cameron–Martin space of the noise, ‖h‖² = Σ_i h_i²/σ_ℓ² < ∞ (arXiv 2508.20316).  Of a
direction known up to a band limit only the partial sums by degree can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spherediff.harmonics import band_limit, sum_orders


@dataclass(frozen=True)
class Direction:
    """Cameron–Martin partial sums of a direction.

    Attributes:
        partial_sums: Σ_{ℓ≤L} Σ_m h_i²/σ_ℓ² for each L, float64, shape (..., lmax+1).
        tail_exponent: slope of the logarithm of the term of degree ℓ against log ℓ, by least
            squares over the upper half of the degrees where the term is not zero; −∞ if fewer than
            two are not.  Shape (...).
    """

    partial_sums: Tensor
    tail_exponent: Tensor

    @property
    def inside(self) -> Tensor:
        """Whether the sum converges if the terms go on like ℓᵖ with this exponent: p < −1."""
        return self.tail_exponent < -1


def cameron_martin(variance: Tensor, h: Tensor) -> Direction:
    """Partial sums of ‖h‖² for noise of variance σ_ℓ² per degree.

    Args:
        variance: σ_ℓ², shape (lmax+1,).
        h: coefficients of the direction, shape (..., n).

    Raises:
        ValueError: h has power in a degree that has no noise: no logarithmic derivative exists.
    """
    power = sum_orders(h.double().square())
    if power.shape[-1] != variance.shape[-1]:
        raise ValueError(
            f"expected a direction of lmax {variance.shape[-1] - 1}, "
            f"found lmax {band_limit(h.shape[-1])}"
        )
    silent = (variance == 0) & (power > 0)
    if silent.any():
        ell = int(torch.nonzero(silent)[0, -1])
        raise ValueError(
            f"the direction has power in degree {ell}, where there is no noise: it lies outside "
            "the Cameron–Martin space, and the law has no logarithmic derivative along it"
        )
    terms = torch.where(power > 0, power / variance, 0)
    return Direction(terms.cumsum(-1), _tail_exponent(terms))


def _tail_exponent(terms: Tensor) -> Tensor:
    first = max(1, terms.shape[-1] // 2)
    tail = terms[..., first:]
    used = (tail > 0).double()
    count = used.sum(-1, keepdim=True)
    log_ell = torch.arange(first, terms.shape[-1], dtype=torch.float64, device=terms.device).log()
    log_tail = torch.where(tail > 0, tail, 1).log()
    x = used * (log_ell - (used * log_ell).sum(-1, keepdim=True) / count.clamp(min=1))
    slope = (x * log_tail).sum(-1) / x.square().sum(-1)
    return torch.where(count[..., 0] >= 2, slope, -torch.inf)
