"""The Gauss–Legendre grid, by batched Legendre matrix products and real Fourier transforms.

With normalised associated Legendre functions λ_ℓm(θ) = Y_ℓ^m(θ, 0),

    v(θ_j, φ_k) = Σ_m [ A_m(θ_j) cos mφ_k + B_m(θ_j) sin mφ_k ],
    A_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,m},   B_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,−m},

c_0 = 1 and c_m = √2 for m > 0.  The nodes θ_j are the zeros of P_{L+1}(cos θ), so

    a = Sᵀ (w v),   w_jk = 2π/nlon · w_j,

with Gauss weights w_j is exact for band limits up to L.

The sums over ℓ are matrix products, one for each m, with all fields of the batch as rows.  The sums
over m are fast Fourier transforms, or for small band limits one more matrix product.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property, lru_cache
from typing import NamedTuple

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from spherediff import harmonics
from spherediff._linear import linear
from spherediff.grids.grid import Grid
from spherediff.grids.latlon import LatLon

# The tables hold (lmax+1)³ numbers: 68 MB in float32 at this band limit.  Above it, on the CPU,
# ducc0 transforms field by field without them.
_LARGEST_TABLE = 256

# Up to here the Fourier sums are matrix products too: more arithmetic than fast transforms, but
# none of the copies between layouts, which weigh more when the fields are small.
_LARGEST_MATRIX = 48

_ORDERS_PER_BLOCK = 32


class GaussLegendre(Grid):
    """lmax + 1 Gauss latitudes from north to south times equidistant longitudes from 0 eastward.

    Args:
        lmax: band limit up to which the analysis is exact.
        nlon: number of longitudes, at least 2·lmax + 1; by default the first even number from
            2·(lmax + 1) on that suits the fast Fourier transform.

    Raises:
        ValueError: ``lmax`` is negative or ``nlon`` is too small.
    """

    def __init__(self, lmax: int, nlon: int | None = None) -> None:
        if lmax < 0:
            raise ValueError(f"lmax must be at least 0, got {lmax}")
        if nlon is None:
            nlon = 2 * int(next_fast_len(lmax + 1))  # pyright: ignore[reportArgumentType]
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
        lmax = harmonics.band_limit(a.shape[-1])
        if self._by_ducc(lmax, a.device):
            return self._ducc._synthesis(a)
        nlat, nlon = self.shape
        fields = a.numel() // a.shape[-1]
        if fields == 0:
            return a.new_empty(*a.shape[:-1], nlat, nlon)
        if lmax <= _LARGEST_MATRIX:
            matrices = _matrices(lmax, self.shape, a.dtype, a.device)
            values = matrices.synthesis(a.reshape(fields, -1), matrices.legendre)
            return values.view(*a.shape[:-1], nlat, nlon)
        table, plan = self._tables(lmax, a)
        scaled = a.reshape(fields, a.shape[-1]) * plan.synthesis_factor
        x = scaled.index_select(-1, plan.spread).view(2 * fields, -1)
        rings = a.new_empty(lmax + 1, 2 * fields, nlat)
        for block in plan.blocks:
            legendre = table[block.orders, block.orders.start :]
            torch.bmm(block.of(x, lmax), legendre, out=rings[block.orders])
        cosine, sine = rings.view(lmax + 1, fields, 2, nlat).permute(2, 1, 3, 0)
        spectrum = torch.complex(cosine, sine)  # (field, θ, m)
        values = torch.fft.irfft(spectrum, n=nlon, norm="forward")
        return values.view(*a.shape[:-1], nlat, nlon)

    def _adjoint(self, values: Tensor, lmax: int) -> Tensor:
        if self._by_ducc(lmax, values.device):
            return self._ducc._adjoint(values, lmax)
        if lmax <= _LARGEST_MATRIX:
            matrices = _matrices(lmax, self.shape, values.dtype, values.device)
            return self._by_matrices(values, matrices, matrices.legendre)
        return self._to_coefficients(values, lmax, *self._tables(lmax, values))

    def _quadrature(self, values: Tensor, lmax: int) -> Tensor:
        if self._by_ducc(lmax, values.device):
            return self._ducc._quadrature(values, lmax)
        if lmax <= _LARGEST_MATRIX:
            matrices = _matrices(lmax, self.shape, values.dtype, values.device)
            return self._by_matrices(values, matrices, matrices.weighted)
        _, plan = self._tables(lmax, values)
        weighted = _weighted_table(lmax, self.shape, values.dtype, values.device)
        return self._to_coefficients(values, lmax, weighted, plan)

    def _to_coefficients(self, values: Tensor, lmax: int, table: Tensor, plan: _Plan) -> Tensor:
        nlat, nlon = self.shape
        fields = values.numel() // (nlat * nlon)
        if fields == 0:
            return values.new_empty(*values.shape[:-2], (lmax + 1) ** 2)
        spectrum = torch.fft.rfft(values.reshape(fields, nlat, nlon))
        # Two steps, each kind to the cache: orders first, then cosine and sine parts asunder.
        by_order = spectrum.new_empty(lmax + 1, fields, nlat)
        by_order.copy_(spectrum.permute(2, 0, 1)[: lmax + 1])
        rings = values.new_empty(lmax + 1, fields, 2, nlat)
        rings.copy_(torch.view_as_real(by_order).movedim(-1, -2))
        rings = rings.view(lmax + 1, 2 * fields, nlat)
        x = values.new_empty(2 * fields, len(plan.spread) // 2)
        for block in plan.blocks:
            legendre = table[block.orders, block.orders.start :]
            block.of(x, lmax).copy_(torch.bmm(rings[block.orders], legendre.transpose(1, 2)))
        x = x.view(fields, len(plan.spread))
        a = x.index_select(-1, plan.collect).mul_(plan.adjoint_factor)
        return a.view(*values.shape[:-2], a.shape[-1])

    def _by_matrices(self, values: Tensor, matrices: _Matrices, legendre: Tensor) -> Tensor:
        if values.numel() == 0:
            return values.new_empty(*values.shape[:-2], len(matrices.collect))
        a = matrices.adjoint(values.reshape(-1, *self.shape), legendre)
        return a.view(*values.shape[:-2], a.shape[-1])

    def _adjoint_quadrature(self, a: Tensor) -> Tensor:
        return self._synthesis(a) * self.area_weights.to(a)

    def _analysis(self, values: Tensor, lmax: int) -> Tensor:
        return linear(values, lambda v: self._quadrature(v, lmax), self._adjoint_quadrature)

    def _tables(self, lmax: int, like: Tensor) -> tuple[Tensor, _Plan]:
        return (
            _legendre_table(lmax, self.shape[0], like.dtype, like.device),
            _plan(lmax, like.dtype, like.device),
        )

    def _by_ducc(self, lmax: int, device: torch.device) -> bool:
        aliased = 2 * lmax >= self.shape[1]
        return aliased or (device.type == "cpu" and lmax > _LARGEST_TABLE)

    @cached_property
    def _ducc(self) -> LatLon:
        return LatLon(self.latitude, self.longitude)


class _Matrices(NamedTuple):
    """A transform as two matrix products, with one row for each order −lmax ≤ m ≤ lmax.

    Attributes:
        legendre: λ_ℓ|m|(θ_j), shape (m, ℓ, nlat), zero where ℓ < |m|.
        weighted: the same times the quadrature weight w_jk.
        fourier: √2 cos mφ_k, 1, √2 sin |m|φ_k for m > 0, = 0, < 0, shape (m, nlon).
        spread: flat index for the places (m, ℓ); any index where ℓ < |m|.
        collect: place of each coefficient.
    """

    legendre: Tensor
    weighted: Tensor
    fourier: Tensor
    spread: Tensor
    collect: Tensor

    def synthesis(self, a: Tensor, legendre: Tensor) -> Tensor:
        """Values (field, nlat, nlon) of coefficients (field, n)."""
        orders, degrees, nlat = legendre.shape
        x = a.index_select(-1, self.spread).view(len(a), orders, degrees)
        rings = torch.bmm(x.transpose(0, 1), legendre)  # (m, field, θ)
        return (rings.view(orders, -1).T @ self.fourier).view(len(a), nlat, -1)

    def adjoint(self, values: Tensor, legendre: Tensor) -> Tensor:
        """Transpose of :meth:`synthesis`, (field, nlat, nlon) → (field, n)."""
        fields, nlat, nlon = values.shape
        rings = self.fourier @ values.reshape(-1, nlon).T
        x = torch.bmm(rings.view(-1, fields, nlat), legendre.transpose(1, 2))  # (m, field, ℓ)
        return x.transpose(0, 1).reshape(fields, -1).index_select(-1, self.collect)


@lru_cache(maxsize=16)
def _matrices(
    lmax: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> _Matrices:
    nlat, nlon = shape
    m, ell = torch.arange(-lmax, lmax + 1)[:, None], torch.arange(lmax + 1)
    table = legendre(lmax, ducc0.misc.GL_thetas(nlat))[m[:, 0].abs()]
    weights = torch.from_numpy(ducc0.misc.GL_weights(nlat, nlon))
    angle = 2 * math.pi / nlon * (m.abs() * torch.arange(nlon) % nlon).double()
    wave = torch.where(m < 0, torch.sin(angle), torch.cos(angle))
    fourier = torch.where(m == 0, 1.0, math.sqrt(2) * wave)
    spread = torch.where(ell >= m.abs(), ell * (ell + 1) + m, 0).flatten().int()
    collect = (harmonics.orders(lmax) + lmax) * (lmax + 1) + harmonics.degrees(lmax)
    return _Matrices(
        table.to(device, dtype),
        (table * weights).to(device, dtype),
        fourier.to(device, dtype),
        spread.to(device),
        collect.int().to(device),
    )


class _Block(NamedTuple):
    """A range of orders and its places: (m, ℓ), ℓ from the lowest order of the range.

    The places where ℓ < m are padding.  A few blocks have little of it, and yet few products.
    """

    orders: slice
    places: slice

    def of(self, x: Tensor, lmax: int) -> Tensor:
        """The places of this block as matrices, shape (m, row, ℓ)."""
        first, last = self.orders.start, self.orders.stop
        return x[:, self.places].view(len(x), last - first, lmax + 1 - first).transpose(0, 1)


class _Plan(NamedTuple):
    """What carries flat coefficients to the blocks and back.

    Attributes:
        blocks: the blocks, which cover all orders.
        spread: flat index for the places of all blocks, those of the cosines and then those of
            the sines; any index in the padding, since the table is 0 there.
        collect: place of each coefficient.
        synthesis_factor: of each coefficient, shape (n,), so that the Fourier coefficients of
            a real field come out, A_0 and (A_m − i B_m)/2.
        adjoint_factor: likewise for the way back, where Σ_k v_k e^{−imφ_k} comes in.
    """

    blocks: list[_Block]
    spread: Tensor
    collect: Tensor
    synthesis_factor: Tensor
    adjoint_factor: Tensor


@lru_cache(maxsize=32)
def _plan(lmax: int, dtype: torch.dtype, device: torch.device) -> _Plan:
    degree, order = harmonics.degrees(lmax), harmonics.orders(lmax)
    blocks, spread, collect = [], [], torch.empty(len(degree), dtype=torch.int64)
    places = 0
    edges = torch.linspace(0, lmax + 1, max(1, (lmax + 1) // _ORDERS_PER_BLOCK) + 1).int().tolist()
    for first, last in itertools.pairwise(edges):
        ell, m = torch.arange(first, lmax + 1), torch.arange(first, last)[:, None]
        centre = ell * (ell + 1)
        index = torch.stack([centre + m, centre - m])
        spread.append(torch.where(ell >= m, index, 0).flatten(1))
        here = (order.abs() >= first) & (order.abs() < last)
        collect[here] = (places + (order.abs() - first) * len(ell) + degree - first)[here]
        blocks.append(_Block(slice(first, last), slice(places, places + index[0].numel())))
        places += index[0].numel()
    collect += places * (order < 0)
    sign = torch.where(order < 0, -1.0, 1.0).to(torch.float64)
    zonal = order == 0
    return _Plan(
        blocks,
        torch.cat(spread, dim=1).flatten().int().to(device),
        collect.int().to(device),
        torch.where(zonal, 1.0, sign * math.sqrt(0.5)).to(device, dtype),
        torch.where(zonal, 1.0, sign * math.sqrt(2)).to(device, dtype),
    )


@lru_cache(maxsize=16)
def _legendre_table(lmax: int, nlat: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """λ_ℓm(θ_j), shape (m, ℓ, nlat)."""
    return legendre(lmax, ducc0.misc.GL_thetas(nlat)).to(device, dtype)


@lru_cache(maxsize=16)
def _weighted_table(
    lmax: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """λ_ℓm(θ_j) times the quadrature weight w_jk, shape (m, ℓ, nlat)."""
    nlat, nlon = shape
    table = legendre(lmax, ducc0.misc.GL_thetas(nlat))
    return (table * torch.from_numpy(ducc0.misc.GL_weights(nlat, nlon))).to(device, dtype)


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
