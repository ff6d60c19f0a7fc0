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
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spherediff._linear import linear


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
    return linear(per_degree, _repeat_orders, sum_orders)


def _repeat_orders(per_degree: Tensor) -> Tensor:
    # numpy's repeat needs no index as long as the result, torch's does
    values = per_degree.detach().cpu().numpy()
    repeats = 2 * np.arange(values.shape[-1]) + 1
    return torch.from_numpy(np.repeat(values, repeats, axis=-1)).to(per_degree.device)


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


def to_healpy(a: Tensor) -> Tensor:
    """Real coefficients to healpy's packed complex a_ℓm.

    Args:
        a: real coefficients, shape (..., (lmax+1)²), float32 or float64.

    Returns:
        Complex tensor of shape (..., (lmax+1)(lmax+2)/2), m-major as healpy stores it.
    """
    band_limit(a.shape[-1])
    scale = math.sqrt(0.5)
    return linear(a, lambda x: _pack(x, scale), lambda z: _unpack(z, scale))


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
    _packed_band_limit(alm.shape[-1])
    scale = math.sqrt(2)
    return linear(alm, lambda z: _unpack(z, scale), lambda x: _pack(x, scale))


def _packed_band_limit(size: int) -> int:
    lmax = (math.isqrt(8 * size + 1) - 3) // 2
    if size < 1 or (lmax + 1) * (lmax + 2) // 2 != size:
        raise ValueError(
            f"expected (lmax+1)(lmax+2)/2 packed coefficients with mmax = lmax, got {size}"
        )
    return lmax


# The work goes by blocks, so that indices and temporaries stay small beside a large field, and
# by groups of rows: many short rows at once are several times faster than one by one, while
# long rows are best taken singly and as vectors.  The indices of all blocks are kept while
# they are few, up to lmax 1250; of larger fields each would push out another before its turn.
_BLOCK = 2**16
_KEPT = 24


def _pack(a: Tensor, scale: float) -> Tensor:
    """a_{ℓ,0}, and scale·(a_{ℓ,m} − i a_{ℓ,−m}) for m > 0; the transpose of :func:`_unpack`."""
    lmax = band_limit(a.shape[-1])
    rows = a.reshape(-1, a.shape[-1])
    dtype = torch.complex64 if a.dtype == torch.float32 else torch.complex128
    packed = torch.empty(len(rows), _packed_start(lmax, lmax + 1), dtype=dtype, device=a.device)
    blocks = _order_blocks(lmax)
    index = _kept(_pack_index, blocks)
    for first, last in blocks:
        positive, negative = index(lmax, first, last, a.device)
        block = slice(_packed_start(lmax, first), _packed_start(lmax, last))
        for source, target in _row_groups(rows, packed):
            real = source.index_select(-1, positive).mul_(scale)
            imaginary = source.index_select(-1, negative).mul_(-scale)
            torch.complex(real, imaginary, out=target[..., block])
    packed[:, : lmax + 1] = rows.index_select(-1, _zonal_index(lmax, a.device))
    return packed.reshape(*a.shape[:-1], packed.shape[-1])


def _unpack(alm: Tensor, scale: float) -> Tensor:
    """Re a_ℓ0, and scale·Re a_ℓm, −scale·Im a_ℓm for m > 0; the transpose of :func:`_pack`."""
    lmax = _packed_band_limit(alm.shape[-1])
    rows = torch.view_as_real(alm.resolve_conj().contiguous()).reshape(-1, 2 * alm.shape[-1])
    a = torch.empty(len(rows), count(lmax), dtype=rows.dtype, device=alm.device)
    blocks = _degree_blocks(lmax)
    index = _kept(_unpack_index, blocks)
    for first, last in blocks:
        place, sign = index(lmax, first, last, alm.device)
        for source, target in _row_groups(rows, a):
            selected = source.index_select(-1, place)
            torch.mul(selected.mul_(scale), sign, out=target[..., first**2 : last**2])
    zonal = torch.arange(0, 2 * (lmax + 1), 2, device=alm.device)
    a[:, _zonal_index(lmax, alm.device)] = rows[:, zonal]
    return a.reshape(*alm.shape[:-1], a.shape[-1])


def _packed_start(lmax: int, m: int) -> int:
    """Position of the first entry of order m, which is (ℓ = m, m), in healpy's packing."""
    return m * (2 * lmax + 3 - m) // 2


@lru_cache(maxsize=16)
def _order_blocks(lmax: int) -> list[tuple[int, int]]:
    return _blocks([_packed_start(lmax, m) for m in range(lmax + 2)])


@lru_cache(maxsize=16)
def _degree_blocks(lmax: int) -> list[tuple[int, int]]:
    return _blocks([ell**2 for ell in range(lmax + 2)])


def _blocks(starts: list[int]) -> list[tuple[int, int]]:
    """Ranges first ≤ i < last with at most ``_BLOCK`` entries, or one i, that cover all."""
    blocks, first = [], 0
    for last in range(1, len(starts)):
        if last + 1 == len(starts) or starts[last + 1] - starts[first] > _BLOCK:
            blocks.append((first, last))
            first = last
    return blocks


def _kept(index: Any, blocks: list[tuple[int, int]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The indices of a block, from the cache if it has room for all of them."""
    return index if len(blocks) <= _KEPT else index.__wrapped__


def _row_groups(source: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = 4 * _BLOCK // source.shape[-1]
    if size <= 1:
        return zip(source, target, strict=True)
    return zip(source.split(size), target.split(size), strict=True)


@lru_cache(maxsize=8)
def _zonal_index(lmax: int, device: torch.device) -> Tensor:
    ell = torch.arange(lmax + 1, device=device)
    return ell * (ell + 1)


@lru_cache(maxsize=_KEPT)
def _pack_index(lmax: int, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat indices of (ℓ, m) and (ℓ, −m) for first ≤ m < last, m-major."""
    orders = torch.arange(first, last, dtype=torch.int32, device=device)
    m = orders.repeat_interleave(lmax + 1 - orders)
    start, stop = _packed_start(lmax, first), _packed_start(lmax, last)
    ell = torch.arange(start, stop, dtype=torch.int32, device=device)
    ell -= m * (2 * lmax + 1 - m) // 2
    centre = ell * (ell + 1)
    positive, negative = centre + m, centre - m
    return positive, negative


@lru_cache(maxsize=_KEPT)
def _unpack_index(lmax: int, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Place of (ℓ, m), first ≤ ℓ < last, among packed real parts, and its sign there."""
    ell = torch.arange(first, last, dtype=torch.int32, device=device)
    ell = ell.repeat_interleave(2 * ell + 1)
    m = torch.arange(first**2, last**2, dtype=torch.int32, device=device) - ell * (ell + 1)
    position = m.abs() * (2 * lmax + 1 - m.abs()) // 2 + ell
    return 2 * position + (m < 0), torch.where(m < 0, -1, 1).to(torch.int8)
