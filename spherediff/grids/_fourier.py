"""Fourier sums over equidistant longitudes, in real numbers and along the first axis.

Rows belong to the orders 0, 1, −1, 2, −2, … (:func:`orders`), and with φ_k = 2πk/N

    v_k = r_0 + 2 Σ_{m>0} (r_m cos mφ_k + r_{−m} sin mφ_k).

There are N rows, as many as longitudes; those of orders that a field does not have are zero.  The
other axes may lie in memory in any order, so that no copy is needed to bring them in another one.
"""

from __future__ import annotations

from typing import Any

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.floating[Any]]


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
        sums = torch.fft.irfft(_spectrum(rows), n=len(rows), dim=0, norm="forward")
        values.copy_(sums.flip(-1) if mirrored else sums)


def project_waves(values: Tensor, rows: Tensor, *, mirrored: bool = False) -> None:
    """Write r_m = Σ_k v_k cos mφ_k and r_{−m} = Σ_k v_k sin mφ_k into ``rows``.

    Twice that, or once for m = 0, is the transpose of :func:`sum_waves`.
    """
    if rows.is_cpu:
        x = values.numpy()[..., :: -1 if mirrored else 1]
        _transform(x, rows.numpy(), real2hermitian=True, forward=False)
    else:
        sums = torch.fft.rfft(values, dim=0)
        _write_spectrum(sums.flip(-1) if mirrored else sums, rows)


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


def _spectrum(rows: Tensor) -> Tensor:
    """Rows as the complex coefficients r_m − i r_{−m} of 0 ≤ m ≤ N/2."""
    sines = torch.zeros_like(rows[: len(rows) // 2 + 1])
    cosines = sines.clone()
    cosines[0], cosines[1:] = rows[0], rows[1::2]
    paired = rows[2::2]
    sines[1 : len(paired) + 1] = -paired
    return torch.complex(cosines, sines)


def _write_spectrum(spectrum: Tensor, rows: Tensor) -> None:
    """The opposite of :func:`_spectrum`."""
    rows[0], rows[1::2] = spectrum[0].real, spectrum[1:].real
    paired = rows[2::2]
    paired.copy_(-spectrum[1 : len(paired) + 1].imag)
