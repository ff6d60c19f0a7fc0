"""The Gauss–Legendre grid, by batched Legendre matrix products and real Fourier sums.

With normalised associated Legendre functions λ_ℓm(θ) = Y_ℓ^m(θ, 0),

    v(θ_j, φ_k) = Σ_m [ A_m(θ_j) cos mφ_k + B_m(θ_j) sin mφ_k ],
    A_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,m},   B_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,−m},

c_0 = 1 and c_m = √2 for m > 0.  The nodes θ_j are the zeros of P_{L+1}(cos θ), so

    a = Sᵀ (w v),   w_jk = 2π/nlon · w_j,

with Gauss weights w_j is exact for band limits up to L.
"""

from __future__ import annotations

import math
from functools import lru_cache

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff.grids._linear import linear
from spherediff.grids.grid import Grid


class GaussLegendre(Grid):
    """lmax + 1 Gauss latitudes from north to south times equidistant longitudes from 0 eastward.

    Args:
        lmax: band limit up to which the analysis is exact.
        nlon: number of longitudes, at least 2·lmax + 1; by default 2·(lmax + 1).

    Raises:
        ValueError: ``lmax`` is negative or ``nlon`` is too small.
    """

    def __init__(self, lmax: int, nlon: int | None = None) -> None:
        if lmax < 0:
            raise ValueError(f"lmax must be at least 0, got {lmax}")
        if nlon is None:
            nlon = 2 * (lmax + 1)
        if nlon < 2 * lmax + 1:
            raise ValueError(
                f"lmax = {lmax} needs at least {2 * lmax + 1} longitudes, got nlon = {nlon}"
            )
        self.max_lmax = lmax
        self.shape = (lmax + 1, nlon)
        self._theta = ducc0.misc.GL_thetas(lmax + 1)

    def __repr__(self) -> str:
        return f"GaussLegendre(lmax={self.max_lmax}, nlon={self.shape[1]})"

    @property
    def latitude(self) -> NDArray[np.float64]:
        return 90.0 - np.degrees(self._theta)

    @property
    def longitude(self) -> NDArray[np.float64]:
        nlon = self.shape[1]
        return 360.0 * np.arange(nlon) / nlon

    @property
    def area_weights(self) -> Tensor:
        weights = torch.from_numpy(ducc0.misc.GL_weights(*self.shape))
        return weights[:, None].expand(self.shape).clone()

    def _synthesis(self, a: Tensor) -> Tensor:
        nlat, nlon = self.shape
        lmax = harmonics.band_limit(a.shape[-1])
        table = _legendre_table(lmax, nlat, False, a.dtype, a.device)
        x = a.reshape(-1, a.shape[-1]).index_select(-1, _spread_index(lmax, a.device))
        x = x.reshape(-1, 2, lmax + 1, lmax + 1)
        legendre = torch.empty(2, lmax + 1, len(x), nlat, dtype=a.dtype, device=a.device)
        for part in (0, 1):
            torch.bmm(x[:, part].transpose(0, 1), table, out=legendre[part])
        fourier = _fourier_table(lmax, nlon, a.dtype, a.device)
        values = legendre.reshape(2 * (lmax + 1), -1).T @ fourier
        return values.reshape(*a.shape[:-1], nlat, nlon)

    def _adjoint(self, values: Tensor, lmax: int) -> Tensor:
        return self._to_coefficients(values, lmax, weighted=False)

    def _quadrature(self, values: Tensor, lmax: int) -> Tensor:
        return self._to_coefficients(values, lmax, weighted=True)

    def _to_coefficients(self, values: Tensor, lmax: int, weighted: bool) -> Tensor:
        nlat, nlon = self.shape
        table = _legendre_table(lmax, nlat, weighted, values.dtype, values.device)
        fourier = _fourier_table(lmax, nlon, values.dtype, values.device)
        legendre = (fourier @ values.reshape(-1, nlon).T).reshape(2, lmax + 1, -1, nlat)
        x = torch.stack([torch.bmm(part, table.transpose(1, 2)) for part in legendre])
        x = x.permute(2, 0, 1, 3).flatten(1)
        a = x.index_select(-1, _collect_index(lmax, values.device))
        if weighted:
            a = a * (2 * math.pi / nlon)
        return a.reshape(*values.shape[:-2], a.shape[-1])

    def _adjoint_quadrature(self, a: Tensor) -> Tensor:
        weights = self.area_weights.to(a)
        return self._synthesis(a) * weights

    def _analysis(self, values: Tensor, lmax: int) -> Tensor:
        return linear(values, lambda v: self._quadrature(v, lmax), self._adjoint_quadrature)


@lru_cache(maxsize=16)
def _spread_index(lmax: int, device: torch.device) -> Tensor:
    """Flat index i(ℓ, ±m) for the rectangle (sign, m, ℓ); anything where ℓ < m."""
    ell = torch.arange(lmax + 1)
    m = ell[:, None]
    centre = ell * (ell + 1)
    index = torch.stack([centre + m, centre - m])
    return torch.where(ell >= m, index, 0).flatten().to(device)


@lru_cache(maxsize=16)
def _collect_index(lmax: int, device: torch.device) -> Tensor:
    """Position of coefficient i = (ℓ, m) in the rectangle (sign, |m|, ℓ)."""
    ell, m = harmonics.degrees(lmax), harmonics.orders(lmax)
    negative = (m < 0).long()
    return ((negative * (lmax + 1) + m.abs()) * (lmax + 1) + ell).to(device)


@lru_cache(maxsize=16)
def _fourier_table(lmax: int, nlon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """cos mφ_k, then sin mφ_k, m = 0 … lmax: shape (2 (lmax+1), nlon)."""
    # The argument is reduced to one turn in integers, so that no digit is lost at large m k.
    turns = torch.arange(lmax + 1)[:, None] * torch.arange(nlon) % nlon
    angle = turns.double() * (2 * math.pi / nlon)
    return torch.cat([angle.cos(), angle.sin()]).to(device, dtype)


@lru_cache(maxsize=16)
def _legendre_table(
    lmax: int, nlat: int, weighted: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """c_m λ_ℓm(θ_j), times the Gauss weight w_j if weighted: shape (m, ℓ, nlat)."""
    table = legendre(lmax, ducc0.misc.GL_thetas(nlat))
    table[1:] *= math.sqrt(2)
    if weighted:
        table *= torch.from_numpy(ducc0.misc.GL_weights(nlat, 1)) / (2 * math.pi)
    return table.to(device, dtype)


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
