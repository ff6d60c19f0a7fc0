"""Normalised associated Legendre functions."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def legendre(lmax: int, theta: NDArray[np.float64]) -> Tensor:
    """λ_ℓm(θ) = Y_ℓ^m(θ, 0), float64, shape (m, ℓ, len(theta)), zero where ℓ < m.

    The stable recurrence in ℓ at fixed m, for all m and θ at once:
    λ_ℓm = α_ℓm (cos θ λ_{ℓ−1,m} − λ_{ℓ−2,m} / α_{ℓ−1,m}), α_ℓm² = (4ℓ²−1)/(ℓ²−m²).
    """
    x = torch.from_numpy(np.cos(theta))
    s = torch.from_numpy(np.sin(theta))
    table = torch.zeros(lmax + 1, lmax + 1, len(theta), dtype=torch.float64)
    m = torch.arange(lmax + 1, dtype=torch.float64)
    # λ_mm = (−1)^m sqrt((2m+1)!! / (4π (2m)!!)) sin^m θ
    ratio = torch.cat([torch.ones(1, dtype=torch.float64), -((2 * m[1:] + 1) / (2 * m[1:])).sqrt()])
    sectoral = (ratio[:, None] * torch.where(m[:, None] > 0, s, 1.0)).cumprod(0)
    sectoral *= math.sqrt(1 / (4 * math.pi))
    table.diagonal(dim1=0, dim2=1).copy_(sectoral.T)
    previous = None
    for ell in range(1, lmax + 1):
        alpha = ((4 * ell**2 - 1) / (ell**2 - m[:ell] ** 2)).sqrt()[:, None]
        value = x * table[:ell, ell - 1]
        if previous is not None:
            value[: ell - 1] -= table[: ell - 1, ell - 2] / previous
        table[:ell, ell] = alpha * value
        previous = alpha
    return table
