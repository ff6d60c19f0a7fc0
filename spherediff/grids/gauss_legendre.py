"""The Gauss–Legendre grid, by batched Legendre matrix products and real Fourier transforms.

With normalised associated Legendre functions λ_ℓm(θ) = Y_ℓ^m(θ, 0),

    v(θ_j, φ_k) = Σ_m [ A_m(θ_j) cos mφ_k + B_m(θ_j) sin mφ_k ],
    A_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,m},   B_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,−m},

c_0 = 1 and c_m = √2 for m > 0.  The nodes θ_j are the zeros of P_{L+1}(cos θ), so

    a = Sᵀ (w v),   w_jk = 2π/nlon · w_j,

with Gauss weights w_j is exact for band limits up to L.

The sums over ℓ are matrix products, one for each m, with all fields of the batch together.  The
sums over m are fast Fourier transforms, or for small band limits two more matrix products.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from spherediff import harmonics
from spherediff.grids.grid import Grid
from spherediff.grids.latlon import LatLon

# The tables hold (lmax+1)³ numbers: 68 MB in float32 at this band limit.  Above it, on the CPU,
# ducc0 transforms field by field without them.
_LARGEST_TABLE = 256

# Up to here the Fourier sums are matrix products too: more arithmetic than fast transforms, but
# none of the copies between layouts, which weigh more when the fields are small.
_LARGEST_MATRIX = 80

_ORDERS_PER_BLOCK = 24


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

    def __repr__(self) -> str:
        return f"GaussLegendre(lmax={self.max_lmax}, nlon={self.shape[1]})"

    @property
    def latitude(self) -> NDArray[np.float64]:
        return _latitudes(self.shape[0])

    @property
    def longitude(self) -> NDArray[np.float64]:
        return _longitudes(self.shape[1])

    @property
    def area_weights(self) -> Tensor:
        return self._weights.expand(self.shape).clone()

    @cached_property
    def _weights(self) -> Tensor:
        return torch.from_numpy(ducc0.misc.GL_weights(*self.shape))[:, None]

    @cached_property
    def _rectangle(self) -> LatLon:
        """The same points, for transforms of spin 1."""
        return LatLon(self.latitude, self.longitude)

    def _synthesis(self, a: Tensor, spin: int = 0) -> Tensor:
        if spin:
            return self._rectangle._synthesis(a, spin)
        *batch, n = a.shape
        if a.numel() == 0:
            return a.new_empty(*batch, *self.shape)
        engine = _engine(harmonics.band_limit(n), self.shape, a.dtype, a.device)
        return engine.synthesis(a.reshape(-1, n)).view(*batch, *self.shape)

    def _adjoint(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        if spin:
            return self._rectangle._adjoint(values, lmax, spin)
        batch, n = values.shape[:-2], harmonics.count(lmax)
        if values.numel() == 0:
            return values.new_empty(*batch, n)
        engine = _engine(lmax, self.shape, values.dtype, values.device)
        return engine.adjoint(values.reshape(-1, *self.shape)).view(*batch, n)

    def _analysis(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        if spin:
            return self._rectangle._analysis(values, lmax, spin)
        return self.adjoint(values * self._weights.to(values), lmax)


class _Engine(Protocol):
    """One way to compute the transforms of one band limit on one grid."""

    def synthesis(self, a: Tensor) -> Tensor:
        """Coefficients (field, n) to values (field, nlat, nlon)."""
        ...

    def adjoint(self, values: Tensor) -> Tensor:
        """Its transpose, (field, nlat, nlon) → (field, n)."""
        ...


@lru_cache(maxsize=16)
def _engine(lmax: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> _Engine:
    """The fastest engine that can do it."""
    aliased = 2 * lmax >= shape[1]
    if aliased or (device.type == "cpu" and lmax > _LARGEST_TABLE):
        return _Ducc(lmax, shape)
    if lmax <= _LARGEST_MATRIX and shape[1] % 2 == 0:
        return _Matrices(lmax, shape, dtype, device)
    return _FastFourier(lmax, shape, dtype, device)


class _Ducc:
    """By ducc0, field by field and without tables."""

    def __init__(self, lmax: int, shape: tuple[int, int]) -> None:
        self.lmax = lmax
        self.grid = LatLon(_latitudes(shape[0]), _longitudes(shape[1]))

    def synthesis(self, a: Tensor) -> Tensor:
        return self.grid._synthesis(a)

    def adjoint(self, values: Tensor) -> Tensor:
        return self.grid._adjoint(values, self.lmax)


class _Block(NamedTuple):
    """Orders that one batched product transforms, with all degrees from the lowest of them on.

    The places (m, ℓ) where ℓ < |m| are padding.  A few blocks have little of it, and yet few
    products.

    Attributes:
        rows: its rows among those of all orders.
        places: its places among those of all blocks.
        legendre: λ_ℓ|m|(θ_j), shape (m, ℓ, nlat), zero in the padding.
    """

    rows: slice
    places: slice
    legendre: Tensor

    def of(self, x: Tensor) -> Tensor:
        """The places of this block as matrices, (field, place) → (m, field, ℓ)."""
        orders, degrees, _ = self.legendre.shape
        return x[:, self.places].view(len(x), orders, degrees).transpose(0, 1)


def _blocks(
    lmax: int, nlat: int, orders: Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[list[_Block], Tensor, Tensor]:
    """Blocks for ``orders``, which grow roughly, and the degree and order of every place."""
    table = legendre(lmax, ducc0.misc.GL_thetas(nlat))
    blocks, degree, order, place = [], [], [], 0
    edges = torch.linspace(0, len(orders), max(1, len(orders) // _ORDERS_PER_BLOCK) + 1).int()
    for first, last in itertools.pairwise(edges.tolist()):
        m = orders[first:last]
        lowest = int(m.abs().min())
        values = table[m.abs(), lowest:].to(device, dtype)
        places = values[..., 0].numel()
        blocks.append(_Block(slice(first, last), slice(place, place + places), values))
        degree.append(torch.arange(lowest, lmax + 1).repeat(len(m)))
        order.append(m.repeat_interleave(lmax + 1 - lowest))
        place += places
    return blocks, torch.cat(degree), torch.cat(order)


def _exchange(degree: Tensor, order: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Flat index for each place, any in the padding, and the used place of each coefficient."""
    spread = torch.where(order.abs() <= degree, degree * (degree + 1) + order, 0)
    collect = torch.empty(int(used.sum()), dtype=torch.int64)
    collect[spread[used]] = used.nonzero()[:, 0]
    return spread.int(), collect.int()


class _Matrices:
    """By matrix products alone, with one row for each order −lmax ≤ m ≤ lmax.

    Half the longitudes are enough if their number is even, since with the sums E over even and O
    over odd orders

        v(φ) = E(φ) + O(φ),   v(φ + π) = E(φ) − O(φ).

    Even and odd orders alternate among the rows while |m| grows, so that either are every other
    row, and the orders of a block are close to one another.  Fields are the last axis on the way,
    which are more than latitudes where time counts.
    """

    def __init__(
        self, lmax: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        nlat, nlon = shape
        orders = _alternating_orders(lmax)
        self.nlat, self.rows = nlat, len(orders)
        self.even, self.odd = slice(lmax % 2, None, 2), slice(1 - lmax % 2, None, 2)
        waves = _waves(orders, nlon)[:, : nlon // 2].to(device, dtype)
        self.even_waves = waves[self.even].contiguous()
        self.odd_waves = waves[self.odd].contiguous()
        self.blocks, degree, order = _blocks(lmax, nlat, orders, dtype, device)
        spread, collect = _exchange(degree, order, order.abs() <= degree)
        self.spread, self.collect = spread.to(device), collect.to(device)

    def synthesis(self, a: Tensor) -> Tensor:
        fields = len(a)
        x = a.index_select(1, self.spread)
        rings = a.new_empty(self.rows, self.nlat, fields)
        for block in self.blocks:
            torch.bmm(block.legendre.mT, block.of(x).mT, out=rings[block.rows])
        rings = rings.view(self.rows, -1)
        even, odd = (
            (rings[rows].T @ waves).view(self.nlat, fields, -1).transpose(0, 1)
            for rows, waves in ((self.even, self.even_waves), (self.odd, self.odd_waves))
        )
        values = a.new_empty(fields, self.nlat, 2, even.shape[-1])
        torch.add(even, odd, out=values[:, :, 0])
        torch.sub(even, odd, out=values[:, :, 1])
        return values.view(fields, self.nlat, -1)

    def adjoint(self, values: Tensor) -> Tensor:
        fields = len(values)
        near, far = values.view(fields, self.nlat, 2, -1).transpose(0, 1).unbind(2)
        half = values.new_empty(near.shape)
        rings = values.new_empty(self.rows, self.nlat * fields)
        torch.add(near, far, out=half)
        torch.mm(self.even_waves, half.flatten(0, 1).T, out=rings[self.even])
        torch.sub(near, far, out=half)
        torch.mm(self.odd_waves, half.flatten(0, 1).T, out=rings[self.odd])
        rings = rings.view(self.rows, self.nlat, fields)
        x = values.new_empty(len(self.spread), fields)
        for block in self.blocks:
            orders, degrees, _ = block.legendre.shape
            out = x[block.places].view(orders, degrees, fields)
            torch.bmm(block.legendre, rings[block.rows], out=out)
        return x.index_select(0, self.collect).T.contiguous()


def _alternating_orders(lmax: int) -> Tensor:
    """−lmax ≤ m ≤ lmax, of alternating parity and roughly by |m|."""
    m = torch.arange(-lmax, lmax + 1)
    m = m[m.abs().argsort(stable=True)]
    orders = torch.empty_like(m)
    for parity in (0, 1):
        orders[(lmax + parity) % 2 :: 2] = m[m % 2 == parity]
    return orders


def _waves(orders: Tensor, nlon: int) -> Tensor:
    """√2 cos mφ_k, 1, √2 sin |m|φ_k for m > 0, = 0, < 0, float64, shape (m, nlon)."""
    m = orders[:, None]
    angle = 2 * math.pi / nlon * (m.abs() * torch.arange(nlon) % nlon).double()
    wave = torch.where(m < 0, torch.sin(angle), torch.cos(angle))
    return torch.where(m == 0, 1.0, math.sqrt(2) * wave)


class _FastFourier:
    """By Legendre products for 0 ≤ m ≤ lmax, cosine and sine parts together, and fast transforms.

    Synthesis scales the coefficients so that the Fourier coefficients of a real field come out,
    A_0 and (A_m − i B_m)/2; the adjoint those that come of Σ_k v_k e^{−imφ_k}.
    """

    def __init__(
        self, lmax: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.nlat, self.nlon = shape
        self.orders = lmax + 1
        self.blocks, degree, order = _blocks(lmax, self.nlat, torch.arange(lmax + 1), dtype, device)
        cosines, sines = order <= degree, (order <= degree) & (order > 0)
        spread, collect = _exchange(
            degree.repeat(2), torch.cat([order, -order]), torch.cat([cosines, sines])
        )
        self.spread, self.collect = spread.to(device), collect.to(device)
        m = harmonics.orders(lmax)
        sign = torch.where(m < 0, -1.0, 1.0).double()
        self.synthesis_factor = torch.where(m == 0, 1.0, sign * math.sqrt(0.5)).to(device, dtype)
        self.adjoint_factor = torch.where(m == 0, 1.0, sign * math.sqrt(2)).to(device, dtype)

    def synthesis(self, a: Tensor) -> Tensor:
        fields = len(a)
        x = (a * self.synthesis_factor).index_select(1, self.spread).view(2 * fields, -1)
        rings = a.new_empty(self.orders, 2 * fields, self.nlat)
        for block in self.blocks:
            torch.bmm(block.of(x), block.legendre, out=rings[block.rows])
        cosine, sine = rings.view(self.orders, fields, 2, self.nlat).permute(2, 1, 3, 0)
        spectrum = torch.complex(cosine, sine)  # (field, θ, m)
        return torch.fft.irfft(spectrum, n=self.nlon, norm="forward")

    def adjoint(self, values: Tensor) -> Tensor:
        fields = len(values)
        spectrum = torch.fft.rfft(values)
        # Two steps, each kind to the cache: orders first, then cosine and sine parts asunder.
        by_order = spectrum.new_empty(self.orders, fields, self.nlat)
        by_order.copy_(spectrum.permute(2, 0, 1)[: self.orders])
        rings = values.new_empty(self.orders, fields, 2, self.nlat)
        rings.copy_(torch.view_as_real(by_order).movedim(-1, -2))
        rings = rings.view(self.orders, 2 * fields, self.nlat)
        x = values.new_empty(2 * fields, len(self.spread) // 2)
        for block in self.blocks:
            block.of(x).copy_(torch.bmm(rings[block.rows], block.legendre.mT))
        a = x.view(fields, -1).index_select(1, self.collect)
        return a.mul_(self.adjoint_factor)


def _latitudes(nlat: int) -> NDArray[np.float64]:
    """Gauss latitudes in degrees, from north to south."""
    return 90.0 - np.degrees(ducc0.misc.GL_thetas(nlat))


def _longitudes(nlon: int) -> NDArray[np.float64]:
    return 360.0 * np.arange(nlon) / nlon


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
