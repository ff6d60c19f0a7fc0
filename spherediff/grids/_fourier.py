"""Fourier sums over equidistant longitudes, in real numbers and along the first axis.

Rows belong to the orders 0, 1, −1, 2, −2, … (:func:`orders`), and with φ_k = 2πk/N

    v_k = r_0 + 2 Σ_{m>0} (r_m cos mφ_k + r_{−m} sin mφ_k).

There are N rows, as many as longitudes; those of orders that a field does not have are zero, and
m = N/2 is always one of these.  The other axes may lie in memory in any order, so that no copy is
needed to bring them in another one.

On the CPU ducc0 transforms; other devices multiply by a matrix if N is small, which takes one pass
over the memory, and else use torch.fft, which takes several.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.floating[Any]]

_LARGEST_PRODUCT = 256


def orders(lmax: int) -> Tensor:
    """0, 1, −1, …, lmax, −lmax: the order of each row."""
    m = torch.arange(1, lmax + 1)
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.stack([m, -m], 1).flatten()])


def sum_waves(rows: Tensor, values: Tensor, *, mirrored: bool = False) -> None:
    """Write v into ``values``.

    Args:
        rows: shape (N, …).
        values: of the same shape; it must not overlap ``rows``.
        mirrored: whether ``values`` runs along its last axis against ``rows``.
    """
    if rows.is_cpu:
        out = values.numpy()[..., :: -1 if mirrored else 1]
        _transform(rows.numpy(), out, real2hermitian=False, forward=True)
    else:
        sums = _sums(rows)
        values.copy_(sums.flip(-1) if mirrored else sums)


def project_waves(values: Tensor, rows: Tensor, *, mirrored: bool = False) -> None:
    """Write r_m = Σ_k v_k cos mφ_k and r_{−m} = Σ_k v_k sin mφ_k into ``rows``.

    Twice that, or once for m = 0, is the transpose of :func:`sum_waves`.
    """
    if rows.is_cpu:
        x = values.numpy()[..., :: -1 if mirrored else 1]
        _transform(x, rows.numpy(), real2hermitian=True, forward=False)
    else:
        rows.copy_(_projections(values.flip(-1) if mirrored else values))


def _sums(rows: Tensor) -> Tensor:
    n = len(rows)
    if n <= _LARGEST_PRODUCT:
        waves = 2 * _waves(n, rows.dtype, rows.device)
        waves[0] = 1
        return torch.tensordot(waves.T, rows, dims=1)
    cosines, sines = rows.new_zeros(2, n // 2 + 1, *rows.shape[1:])
    cosines[0], cosines[1:] = rows[0], rows[1::2]
    sines[1 : (n + 1) // 2] = rows[2::2]
    return torch.fft.irfft(torch.complex(cosines, -sines), n=n, dim=0, norm="forward")


def _projections(values: Tensor) -> Tensor:
    n = len(values)
    if n <= _LARGEST_PRODUCT:
        return torch.tensordot(_waves(n, values.dtype, values.device), values, dims=1)
    spectrum, rows = torch.fft.rfft(values, dim=0), torch.empty_like(values)
    rows[0], rows[1::2] = spectrum[0].real, spectrum[1:].real
    rows[2::2] = -spectrum[1 : (n + 1) // 2].imag
    return rows


def _transform(x: Values, out: Values, *, real2hermitian: bool, forward: bool) -> None:
    """FFTPACK's order of real Fourier coefficients, with e^{+imφ} where others have e^{−imφ}."""
    if x.size == 0:
        return
    ducc0.fft.r2r_fftpack(
        x,
        axes=(0,),
        real2hermitian=real2hermitian,
        forward=forward,
        out=out,
        nthreads=torch.get_num_threads(),
    )


@lru_cache(maxsize=8)
def _waves(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """cos mφ_k and sin |m|φ_k in the rows of m ≥ 0 and m < 0, shape (n, n)."""
    m = orders(n // 2)[:n, None]
    angle = 2 * math.pi / n * (m.abs() * torch.arange(n) % n).double()
    return torch.where(m < 0, torch.sin(angle), torch.cos(angle)).to(device, dtype)
