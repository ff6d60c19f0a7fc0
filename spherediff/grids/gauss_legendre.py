"""The Gauss–Legendre grid, by batched Legendre matrix products and real Fourier transforms.

With normalised associated Legendre functions λ_ℓm(θ) = Y_ℓ^m(θ, 0),

    v(θ_j, φ_k) = Σ_m [ A_m(θ_j) cos mφ_k + B_m(θ_j) sin mφ_k ],
    A_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,m},   B_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,−m},

c_0 = 1 and c_m = √2 for m > 0.  The nodes θ_j are the zeros of P_{L+1}(cos θ), so

    a = Sᵀ (w v),   w_jk = 2π/nlon · w_j,

with Gauss weights w_j is exact for band limits up to L.

The sums over ℓ are matrix products, one for each m, with all fields of the batch together.  The
sums over m are fast Fourier transforms, or at low band limits products as well.
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
from spherediff.grids._fourier import project_waves, sum_waves
from spherediff.grids._lanes import Lanes
from spherediff.grids._legendre import legendre
from spherediff.grids.grid import Grid
from spherediff.grids.latlon import LatLon

# The tables hold about (lmax+1)³/3 numbers: 23 MB in float32 at this band limit.  Above it, on the
# CPU, ducc0 transforms field by field without them.
_LARGEST_TABLE = 256

# Up to here Fourier sums by products are as fast as fast Fourier transforms.
_LARGEST_LANES = 192

# Up to here one field alone is faster in lanes; above, a fourth as many as lmax is beyond it are.
_ALONE = 32

_ORDERS_PER_BLOCK = 24

# At a time, so that what lies between the steps stays near the processor.
_FIELDS = 128


class GaussLegendre(Grid):
    """lmax + 1 Gauss latitudes from north to south times equidistant longitudes from 0 eastward.

    On the CPU, fields up to lmax 32, and many together up to 192, are transformed by kernels that
    are compiled at their first use in a process, which takes a few seconds for each precision.

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
        self.shape: tuple[int, int] = (lmax + 1, nlon)

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
        fields, n = math.prod(a.shape[:-1]), a.shape[-1]
        if fields == 0:
            return a.new_empty(*a.shape[:-1], *self.shape)
        lmax = harmonics.band_limit(n)
        return _engine(fields, lmax, self.shape, a.dtype, a.device).synthesis(a)

    def _adjoint(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        if spin:
            return self._rectangle._adjoint(values, lmax, spin)
        fields = math.prod(values.shape[:-2])
        if fields == 0:
            return values.new_empty(*values.shape[:-2], harmonics.count(lmax))
        return _engine(fields, lmax, self.shape, values.dtype, values.device).adjoint(values)

    def _analysis(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        if spin:
            return self._rectangle._analysis(values, lmax, spin)
        return self.adjoint(values * self._weights.to(values), lmax)


class _Engine(Protocol):
    """One way to compute the transforms of one band limit on one grid."""

    def synthesis(self, a: Tensor) -> Tensor:
        """Coefficients (..., n) to values (..., nlat, nlon)."""
        ...

    def adjoint(self, values: Tensor) -> Tensor:
        """Its transpose, (..., nlat, nlon) → (..., n)."""
        ...


def _engine(
    fields: int, lmax: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> _Engine:
    """The fastest that can do it."""
    cpu, nlon = device.type == "cpu", shape[1]
    if 2 * lmax >= nlon or (cpu and lmax > _LARGEST_TABLE):
        return _ducc(lmax, shape)
    if cpu and nlon % 2 == 0 and lmax <= min(_LARGEST_LANES, _ALONE + 4 * fields):
        return _lanes(lmax, shape, dtype)
    return _products(lmax, shape, dtype, device)


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
    """Orders m that one batched product transforms, with the degrees of one parity of ℓ − m.

    Place (m, k) is for the degree m + 2k, or m + 2k + 1.  Those beyond the band limit are padding:
    a few blocks have little of it, and yet few products.

    Attributes:
        places: its places among those of all blocks.
        legendre: λ_ℓm(θ_j), by √2 where m > 0, shape (m, k, θ), zero in the padding.
    """

    places: slice
    legendre: Tensor

    def of(self, x: Tensor) -> Tensor:
        """What stands at its places, (row, place) → (m, row, k)."""
        orders, degrees, _ = self.legendre.shape
        return x[:, self.places].view(len(x), orders, degrees).transpose(0, 1)

    def project(self, rings: Tensor, x: Tensor) -> None:
        """Write twice the sums over latitude, of (m, row, θ), to its places in (place, row)."""
        orders, degrees, _ = self.legendre.shape
        out = x[self.places].view(orders, degrees, -1)
        torch.baddbmm(out, self.legendre, rings.mT, beta=0, alpha=2, out=out)


class _Blocks(NamedTuple):
    """Blocks of the same orders: their rows, and degrees for which λ is even and odd about 0°."""

    rows: slice
    even: _Block
    odd: _Block


class _Products:
    """By matrix products with half the Legendre functions, and real Fourier transforms.

    λ_ℓm is even about the equator where ℓ − m is even, and odd where it is odd, so that sums E
    over the former and O over the latter on one hemisphere are enough:

        A_m(θ) = E_m(θ) + O_m(θ),   A_m(π − θ) = E_m(θ) − O_m(θ).

    Rows 2m and 2m + 1 are of the orders m and −m, which have the same matrices; order 0 has row 1
    alone, and row 0 does not enter the Fourier sums.
    """

    def __init__(
        self, lmax: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.nlat, self.nlon = shape
        self.north, self.south = (self.nlat + 1) // 2, self.nlat // 2
        self.rows = 2 * (lmax + 1)
        table = legendre(lmax, ducc0.misc.GL_thetas(self.nlat)[: self.north])
        table[1:] /= math.sqrt(2)
        self.blocks, degree, order = [], [], []
        for first, last in itertools.pairwise(_edges(lmax)):
            m = torch.arange(first, last)[:, None]
            even = m + 2 * torch.arange((lmax - first) // 2 + 1)
            pair = []
            for ell in (even, even + 1):
                values = table[m, ell.clamp(max=lmax)] * (ell <= lmax)[..., None]
                place = sum(map(len, degree))
                pair.append(_Block(slice(place, place + ell.numel()), values.to(device, dtype)))
                degree.append(ell.flatten())
                order.append(m.expand_as(ell).flatten())
            self.blocks.append(_Blocks(slice(2 * first, 2 * last), *pair))
        spread, collect = _exchange(lmax, torch.cat(degree), torch.cat(order))
        self.spread, self.collect = spread.to(device), collect.to(device)

    def synthesis(self, a: Tensor) -> Tensor:
        fields = a.reshape(-1, a.shape[-1])
        values = a.new_empty(len(fields), self.nlat, self.nlon)
        for some, out in zip(fields.split(_FIELDS), values.split(_FIELDS), strict=True):
            self._synthesise(some, out)
        return values.view(*a.shape[:-1], self.nlat, self.nlon)

    def adjoint(self, values: Tensor) -> Tensor:
        fields = values.reshape(-1, self.nlat, self.nlon)
        a = values.new_empty(len(fields), len(self.collect))
        for some, out in zip(fields.split(_FIELDS), a.split(_FIELDS), strict=True):
            self._project(some, out)
        return a.view(*values.shape[:-2], -1)

    def _synthesise(self, a: Tensor, values: Tensor) -> None:
        x = a.new_empty(2, len(a), self.spread.shape[1])
        torch.index_select(a, 1, self.spread[0], out=x[0])
        torch.index_select(a, 1, self.spread[1], out=x[1])
        x = x.flatten(0, 1)
        rings = self._rings(values)
        rings[:, self.rows :].zero_()
        north, south = rings[0], rings[1]
        for rows, even, odd in self.blocks:
            sums = _by_order(north[rows])
            torch.bmm(even.of(x), even.legendre, out=sums)
            odd_sums = torch.bmm(odd.of(x), odd.legendre)
            torch.sub(sums, odd_sums, out=_by_order(south[rows]))
            sums += odd_sums
        values = values.permute(2, 0, 1)
        sum_waves(north[1:], values[..., : self.north])
        sum_waves(south[1:, :, : self.south], values[..., self.north :], mirrored=True)

    def _project(self, values: Tensor, a: Tensor) -> None:
        rings = self._rings(values)
        north, south = rings[0], rings[1]
        values = values.permute(2, 0, 1)
        project_waves(values[..., : self.north], north[1:])
        project_waves(values[..., self.north :], south[1:, :, : self.south], mirrored=True)
        rings[:, 1].mul_(0.5)
        if self.north > self.south:  # the equator
            south[..., -1].zero_()
        x = values.new_empty(self.spread.shape[1], 2 * len(a))
        for rows, even, odd in self.blocks:
            near, far = _by_order(north[rows]), _by_order(south[rows])
            odd.project(near - far, x)
            near += far
            even.project(near, x)
        a.copy_(x.view(-1, len(a)).index_select(0, self.collect).T)

    def _rings(self, values: Tensor) -> Tensor:
        """Room for A_m and B_m on both hemispheres, poles first, (2, row, field, θ)."""
        return values.new_empty(2, self.nlon + 1, len(values), self.north)


_ducc = lru_cache(maxsize=8)(_Ducc)
_lanes = lru_cache(maxsize=8)(Lanes)
_products = lru_cache(maxsize=8)(_Products)


def _edges(lmax: int) -> list[int]:
    """First orders of the blocks, and lmax + 1."""
    blocks = max(1, round((lmax + 1) / _ORDERS_PER_BLOCK))
    return torch.linspace(0, lmax + 1, blocks + 1).int().tolist()


def _by_order(rows: Tensor) -> Tensor:
    """Rows of m and −m together, (row, field, θ) → (m, sign and field, θ)."""
    return rows.view(len(rows) // 2, -1, rows.shape[-1])


def _exchange(lmax: int, degree: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Which coefficient goes where, given the degree and order m ≥ 0 of every place.

    Returns:
        Flat index for m and −m at each place, shape (2, places), any in the padding; and the place
        of each coefficient among (place, sign).
    """
    signed = torch.stack([order, -order])
    used = (degree <= lmax).expand_as(signed)
    spread = torch.where(used, degree * (degree + 1) + signed, 0)
    places = torch.arange(signed.numel()).view(-1, 2).T
    collect = torch.empty(harmonics.count(lmax), dtype=torch.int64)
    for index, place, there in zip(spread, places, used, strict=True):  # order 0 is of row 1
        collect[index[there]] = place[there]
    return spread.int(), collect.int()


def _latitudes(nlat: int) -> NDArray[np.float64]:
    """Gauss latitudes in degrees, from north to south."""
    return 90.0 - np.degrees(ducc0.misc.GL_thetas(nlat))


def _longitudes(nlon: int) -> NDArray[np.float64]:
    return 360.0 * np.arange(nlon) / nlon
