"""The coefficient layout: real orthonormal spherical harmonics, degree after degree.

A real field f in L²(S²) is f = Σ_i a_i Y_i with the real orthonormal harmonics

    Y_{ℓ,0} = Y_ℓ^0,   Y_{ℓ,m} = √2 Re Y_ℓ^m,   Y_{ℓ,−m} = √2 Im Y_ℓ^m   (m > 0)

and the flat index i = ℓ² + ℓ + m, −ℓ ≤ m ≤ ℓ.  A band limit L has (L+1)² coefficients, the
projection to a lower band limit is a slice, and zero-padding embeds upwards.  In terms of
healpy's complex a_ℓm (m ≥ 0), with its phase convention,

    a_{ℓ,0} = Re a_ℓ0,   a_{ℓ,m} = √2 Re a_ℓm,   a_{ℓ,−m} = −√2 Im a_ℓm,

which is an isometry: Σ_i a_i² = ∫ f².
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def count(lmax: int) -> int:
    """Number of real coefficients of a field with band limit ``lmax``."""
    if lmax < 0:
        raise ValueError(f"lmax must be at least 0, got {lmax}")
    return (lmax + 1) ** 2


def band_limit(n: int) -> int:
    """Band limit of a field with ``n`` coefficients.

    Raises:
        ValueError: ``n`` is not a square (lmax + 1)².
    """
    lmax = math.isqrt(n) - 1
    if n < 1 or (lmax + 1) ** 2 != n:
        raise ValueError(
            f"expected (lmax + 1)² coefficients on the last axis, got {n}, which is not a square"
        )
    return lmax


def degrees(lmax: int) -> Tensor:
    """Degree ℓ of each coefficient, shape ((lmax+1)²,), int64."""
    ell = torch.arange(lmax + 1)
    return ell.repeat_interleave(2 * ell + 1, output_size=count(lmax))


def orders(lmax: int) -> Tensor:
    """Order m of each coefficient, −ℓ ≤ m ≤ ℓ, shape ((lmax+1)²,), int64."""
    ell = degrees(lmax)
    return torch.arange(count(lmax)) - ell * (ell + 1)


def expand(per_degree: Tensor) -> Tensor:
    """Repeat a value per degree for its 2ℓ+1 orders: (..., lmax+1) → (..., (lmax+1)²)."""
    lmax = per_degree.shape[-1] - 1
    repeats = 2 * torch.arange(lmax + 1, device=per_degree.device) + 1
    return per_degree.repeat_interleave(repeats, dim=-1, output_size=count(lmax))


def resize(a: Tensor, lmax: int) -> Tensor:
    """Project onto (slice) or embed into (zero-pad) the band limit ``lmax``.

    Args:
        a: coefficients, shape (..., n).
        lmax: the band limit of the result.

    Returns:
        Coefficients of shape (..., (lmax+1)²); a view when projecting.
    """
    n = a.shape[-1]
    band_limit(n)
    target = count(lmax)
    if target <= n:
        return a[..., :target]
    return torch.nn.functional.pad(a, (0, target - n))


def sum_orders(per_coefficient: Tensor) -> Tensor:
    """Sum over the orders of each degree: (..., (lmax+1)²) → (..., lmax+1)."""
    ell = degrees(band_limit(per_coefficient.shape[-1])).to(per_coefficient.device)
    total = per_coefficient.new_zeros(*per_coefficient.shape[:-1], int(ell[-1]) + 1)
    return total.index_add(-1, ell, per_coefficient)


def degree_spectrum(a: Tensor) -> Tensor:
    """Empirical spectrum Ĉ_ℓ = (2ℓ+1)⁻¹ Σ_m a²_{ℓm}, shape (..., lmax+1); healpy's ``alm2cl``."""
    total = sum_orders(a.square())
    return total / (2 * torch.arange(total.shape[-1], device=a.device) + 1)


@lru_cache(maxsize=4)
def _packed_index(lmax: int) -> Tensor:
    """Flat real index of (ℓ, m ≥ 0) in healpy's m-major order; int32 keeps it small."""
    ell = torch.arange(lmax + 1, dtype=torch.int32)
    return torch.cat([ell[m:] * (ell[m:] + 1) + m for m in range(lmax + 1)])


@lru_cache(maxsize=4)
def _packed_order(lmax: int) -> Tensor:
    m = torch.arange(lmax + 1, dtype=torch.int32)
    return m.repeat_interleave(lmax + 1 - m)


def to_healpy(a: Tensor) -> Tensor:
    """Real coefficients to healpy's packed complex a_ℓm.

    Args:
        a: real coefficients, shape (..., (lmax+1)²), float32 or float64.

    Returns:
        Complex tensor of shape (..., (lmax+1)(lmax+2)/2), m-major as healpy stores it.
    """
    lmax = band_limit(a.shape[-1])
    positive = _packed_index(lmax).to(a.device)
    negative = positive - 2 * _packed_order(lmax).to(a.device)
    packed = torch.empty(*a.shape[:-1], len(positive), 2, dtype=a.dtype, device=a.device)
    packed[..., 0] = a.index_select(-1, positive)
    packed[..., 1] = a.index_select(-1, negative)
    packed[..., 0].mul_(math.sqrt(0.5))
    packed[..., 1].mul_(-math.sqrt(0.5))
    packed[..., : lmax + 1, 0] = a.index_select(-1, positive[: lmax + 1])
    packed[..., : lmax + 1, 1] = 0
    return torch.view_as_complex(packed)


def from_healpy(alm: Tensor) -> Tensor:
    """healpy's packed complex a_ℓm to real coefficients; the inverse of :func:`to_healpy`.

    The imaginary part of the m = 0 entries, which no real field has, is ignored as healpy does.

    Args:
        alm: complex tensor, shape (..., (lmax+1)(lmax+2)/2).

    Raises:
        TypeError: ``alm`` is not complex.
        ValueError: the last axis is no triangular number (mmax = lmax is required).
    """
    if not alm.is_complex():
        raise TypeError(f"expected complex healpy coefficients, got {alm.dtype}")
    size = alm.shape[-1]
    lmax = (math.isqrt(8 * size + 1) - 3) // 2
    if size < 1 or (lmax + 1) * (lmax + 2) // 2 != size:
        raise ValueError(
            f"expected (lmax+1)(lmax+2)/2 packed coefficients with mmax = lmax, got {size}"
        )
    positive = _packed_index(lmax).to(alm.device)
    negative = positive - 2 * _packed_order(lmax).to(alm.device)
    parts = torch.view_as_real(alm)
    a = torch.empty(*alm.shape[:-1], count(lmax), dtype=parts.dtype, device=alm.device)
    a = a.index_copy(-1, negative.long(), parts[..., 1] * -math.sqrt(2))
    a = a.index_copy(-1, positive.long(), parts[..., 0] * math.sqrt(2))
    return a.index_copy(-1, positive[: lmax + 1].long(), parts[..., : lmax + 1, 0])
