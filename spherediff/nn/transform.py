"""The spherical transform inside networks: positions first, channels last, all matrix products.

On the Gauss–Legendre grid with latitudes θ_i, quadrature weights q_i and longitudes φ_j = 2πj/N,

    synthesis   x(θ_i, φ_j) = Σ_m T_m(φ_j) Σ_ℓ P_ℓ^{|m|}(θ_i) a_{ℓm}
    analysis    a_{ℓm}      = Σ_i (2π/N) q_i P_ℓ^{|m|}(θ_i) Σ_j T_m(φ_j) x(θ_i, φ_j)

with T_0 = 1, T_m = √2 cos mφ, T_{−m} = √2 sin mφ and the orthonormal Legendre functions P_ℓ^m.
Analysis inverts synthesis when there are at least lmax + 1 latitudes and 2·lmax + 1 longitudes.
The slopes of a field eastward and poleward are two more sums.  Poleward is northward times the sine
of the latitude, so that a field mirrored in the equator has mirrored slopes.  With each degree in
units of the size of its slopes, 1/λ_ℓ = √(ℓ(ℓ + 1)/2), they are as large as the field:

    east        Σ_m T_m'(φ_j) Σ_ℓ λ_ℓ (P_ℓ^{|m|}/sin θ)(θ_i) a_{ℓm}
    poleward    √3 cos θ_i Σ_m T_m(φ_j) Σ_ℓ λ_ℓ (−dP_ℓ^{|m|}/dθ)(θ_i) a_{ℓm}
    sin θ dP_ℓ^m/dθ = ℓ cos θ P_ℓ^m − √((ℓ² − m²)(2ℓ + 1)/(2ℓ − 1)) P_{ℓ−1}^m

Values have the shape (nlat, nlon, K) with K = batch × channels, so that the pointwise layers of a
network act on contiguous memory.  Coefficients stand in a table (lmax + 1, 2·lmax + 1, K) of degree
and order, zero where |m| > ℓ: what depends on the degree alone then broadcasts.  Both steps are
batched matrix products.  The Fourier step is one too: at the sizes of a network it costs less than
the copies that an FFT along a middle axis needs.

The transforms stay in float32 under autocast: bfloat16 has too few digits for sums that cancel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, cast

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff._precision import full_precision
from spherediff.grids.gauss_legendre import legendre as legendre_functions

Array = NDArray[np.float64]


class _Tables(NamedTuple):
    fourier: Tensor  # (nlon, 2 lmax + 1), T_m(φ_j), m from −lmax to lmax
    fourier_slope: Tensor  # the same of T_m'
    legendre: Tensor  # (2 lmax + 1, nlat, lmax + 1), P_ℓ^{|m|}(θ_i)
    legendre_poleward: Tensor  # the same of −√3 cos θ λ_ℓ dP/dθ
    legendre_by_sine: Tensor  # the same of λ_ℓ P/sin θ
    quadrature: Tensor  # P times (2π/N) q_i
    flat: Tensor  # (n,), row of coefficient i in the table of (lmax + 1)(2 lmax + 1) rows


@lru_cache(maxsize=8)
def _tables(lmax: int, nlat: int, nlon: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    m, theta = np.arange(-lmax, lmax + 1), ducc0.misc.GL_thetas(nlat)
    angle = 2 * math.pi * np.arange(nlon)[:, None] * np.abs(m) / nlon
    sine, cosine = math.sqrt(2) * np.sin(angle), math.sqrt(2) * np.cos(angle)
    theta_last = legendre_functions(lmax, theta)[np.abs(m)]
    legendre = theta_last.transpose(1, 2).numpy()
    row = harmonics.degrees(lmax) * (2 * lmax + 1) + harmonics.orders(lmax) + lmax
    ell = np.arange(lmax + 1)
    unit = np.sqrt(2 / np.maximum(ell * (ell + 1), 1))  # λ_ℓ; ℓ = 0 has no slopes
    tables = [
        np.where(m == 0, 1.0, np.where(m > 0, cosine, sine)),
        np.abs(m) * np.where(m > 0, -sine, cosine),
        legendre,
        unit * math.sqrt(3) * np.cos(theta)[:, None] * _legendre_slope(legendre, theta, np.abs(m)),
        unit * legendre / np.sin(theta)[:, None],
        legendre * ducc0.misc.GL_weights(nlat, nlon)[:, None],
    ]
    return _Tables._make([*(torch.from_numpy(x).to(device, dtype) for x in tables), row.to(device)])


def _legendre_slope(legendre: Array, theta: Array, m: NDArray[np.intp]) -> Array:
    """−dP_ℓ^m/dθ, shape of P: (orders, nlat, lmax + 1)."""
    ell, m = np.arange(legendre.shape[-1]), m[:, None]
    ratio = (ell**2 - m**2).clip(0) * (2 * ell + 1) / np.abs(2 * ell - 1)
    below = np.pad(legendre, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    rise = np.sqrt(ratio)[:, None] * below - ell * np.cos(theta)[:, None] * legendre
    return rise / np.sin(theta)[:, None]


def _sum_harmonics(a: Tensor, legendre: Tensor, fourier: Tensor) -> Tensor:
    rings = torch.bmm(legendre, a.transpose(0, 1))  # (m, θ, K)
    return torch.matmul(fourier, rings.transpose(0, 1))  # (θ, φ, K)


def _project_harmonics(values: Tensor, legendre: Tensor, fourier: Tensor) -> Tensor:
    rings = torch.matmul(fourier.T, values)  # (θ, m, K)
    return torch.bmm(legendre.transpose(1, 2), rings.transpose(0, 1)).transpose(0, 1)  # (ℓ, m, K)


class _Synthesis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, legendre: Tensor, fourier: Tensor) -> Tensor:
        ctx.tables = legendre, fourier
        return _sum_harmonics(a, legendre, fourier)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return _project_harmonics(gradient, *ctx.tables), None, None


class _Analysis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, quadrature: Tensor, fourier: Tensor) -> Tensor:
        ctx.tables = quadrature, fourier
        return _project_harmonics(values, quadrature, fourier)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return _sum_harmonics(gradient, *ctx.tables), None, None


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Transform:
    """Synthesis and analysis of many fields at once on the grid of ``nlat`` × ``nlon`` points.

    Args:
        lmax: band limit of the coefficients.
        nlat: Gauss–Legendre latitudes, at least lmax + 1.
        nlon: equispaced longitudes from 0, at least 2·lmax + 1.

    Raises:
        ValueError: the grid is too coarse for analysis to invert synthesis.
    """

    def __init__(self, lmax: int, nlat: int, nlon: int) -> None:
        if nlat < lmax + 1 or nlon < 2 * lmax + 1:
            raise ValueError(
                f"lmax {lmax} needs a grid of at least {lmax + 1} x {2 * lmax + 1} points, "
                f"got {nlat} x {nlon}"
            )
        self.lmax, self.nlat, self.nlon = lmax, nlat, nlon

    def _tables(self, like: Tensor) -> _Tables:
        return _tables(self.lmax, self.nlat, self.nlon, like.dtype, like.device)

    def unpack(self, a: Tensor) -> Tensor:
        """Flat coefficients (n, K) to the table (lmax + 1, 2·lmax + 1, K)."""
        rows = (self.lmax + 1) * (2 * self.lmax + 1)
        table = a.new_zeros(rows, a.shape[-1]).index_copy(0, self._tables(a).flat, a)
        return table.view(self.lmax + 1, 2 * self.lmax + 1, -1)

    def pack(self, table: Tensor) -> Tensor:
        """The table (lmax + 1, 2·lmax + 1, K) to flat coefficients (n, K)."""
        return table.flatten(0, 1).index_select(0, self._tables(table).flat)

    @full_precision
    def synthesis(self, table: Tensor) -> Tensor:
        """Table (lmax + 1, 2·lmax + 1, K) to values (nlat, nlon, K); |m| > ℓ is not read."""
        table = _at_least_single(table)
        tables = self._tables(table)
        return cast(Tensor, _Synthesis.apply(table, tables.legendre, tables.fourier))

    @full_precision
    def slopes(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of :meth:`synthesis` eastward and poleward, degrees times λ_ℓ."""
        table = _at_least_single(table)
        tables = self._tables(table)
        east = _Synthesis.apply(table, tables.legendre_by_sine, tables.fourier_slope)
        poleward = _Synthesis.apply(table, tables.legendre_poleward, tables.fourier)
        return cast(Tensor, east), cast(Tensor, poleward)

    @full_precision
    def analysis(self, values: Tensor) -> Tensor:
        """Values (nlat, nlon, K) to the table (lmax + 1, 2·lmax + 1, K)."""
        values = _at_least_single(values)
        tables = self._tables(values)
        return cast(Tensor, _Analysis.apply(values, tables.quadrature, tables.fourier))

    def sin_latitude(self) -> Tensor:
        """sin(latitude) of every grid row, north to south, shape (nlat,), float64."""
        return torch.from_numpy(np.cos(ducc0.misc.GL_thetas(self.nlat)))
