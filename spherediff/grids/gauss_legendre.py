"""The Gauss–Legendre grid, by batched Legendre matrix products and real Fourier transforms.

With normalised associated Legendre functions λ_ℓm(θ) = Y_ℓ^m(θ, 0),

    v(θ_j, φ_k) = Σ_m [ A_m(θ_j) cos mφ_k + B_m(θ_j) sin mφ_k ],
    A_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,m},   B_m(θ_j) = c_m Σ_ℓ λ_ℓm(θ_j) a_{ℓ,−m},

c_0 = 1 and c_m = √2 for m > 0.  The nodes θ_j are the zeros of P_{L+1}(cos θ), so

    a = Sᵀ (w v),   w_jk = 2π/nlon · w_j,

with Gauss weights w_j is exact for band limits up to L.

The sums over ℓ are matrix products, one for each m, with all fields of the batch together.  The
sums over m are fast Fourier transforms.
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
from spherediff.grids.grid import Grid
from spherediff.grids.latlon import LatLon

# The tables hold about (lmax+1)³/3 numbers: 23 MB in float32 at this band limit.  Above it, on the
# CPU, ducc0 transforms field by field without them.
_LARGEST_TABLE = 256

_ORDERS_PER_BLOCK = 24

# At a time, so that what lies between the steps stays near the processor.
_FIELDS = 128

# Numbers in the room of a transform that is kept for the next: above, making it costs nothing.
_KEPT = 2**20


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
    return _Products(lmax, shape, dtype, device)


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


class _Blocks(NamedTuple):
    """Blocks of the same orders: their rows, and degrees for which λ is even and odd about 0°."""

    rows: slice
    even: _Block
    odd: _Block


class _Views(NamedTuple):
    """What belongs to the orders of one pair of blocks, in a room.

    Attributes:
        coefficients: of even and odd ℓ − m, each (m, row, k).
        projections: of even and odd ℓ − m, each (m, k, row), in the same memory.
        north, south, odd: sums over degrees on the hemispheres, and of odd ℓ − m; (m, row, θ).
    """

    coefficients: tuple[Tensor, Tensor]
    projections: tuple[Tensor, Tensor]
    north: Tensor
    south: Tensor
    odd: Tensor


class _Room:
    """Memory of the steps of a transform, and views of it.

    To make them anew costs as much as all numbers do at low band limits.

    Attributes:
        numbers: how many there are.
        spread: coefficients of m and −m at all places, each (field, place).
        collected: projections, (place and sign, field).
        waves: A_m and B_m on each hemisphere, poles first, (nlon, field, θ).
        zonal, beyond: of these on both, m = 0 and orders that the fields do not have.
        equator: on the south, which does not have it.
        blocks: views for each pair of blocks.
    """

    def __init__(self, engine: _Products, fields: int) -> None:
        table, places = engine.blocks[0].even.legendre, len(engine.plus)
        x = table.new_empty(2 * fields * places)
        rings = table.new_empty(2, engine.nlon + 1, fields, engine.north)
        self.numbers = x.numel() + rings.numel()
        self.spread = x.view(2, fields, places).unbind()
        self.collected = x.view(2 * places, fields)
        north, south = rings
        self.waves = north[1:], south[1:, :, : engine.south]
        self.zonal, self.beyond = rings[:, 1], rings[:, engine.rows :]
        self.equator = south[..., engine.south :]
        self.blocks = []
        for rows, *pair in engine.blocks:
            near, far = _by_order(north[rows]), _by_order(south[rows])
            given = [x.view(-1, places)[:, block.places] for block in pair]
            taken = [x.view(places, -1)[block.places] for block in pair]
            sizes = [block.legendre.shape[:2] for block in pair]
            coefficients = [
                v.unflatten(1, n).transpose(0, 1) for v, n in zip(given, sizes, strict=True)
            ]
            projections = [v.unflatten(0, n) for v, n in zip(taken, sizes, strict=True)]
            views = _Views(
                tuple(coefficients), tuple(projections), near, far, torch.empty_like(near)
            )
            self.blocks.append(views)


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
        self.plus, self.minus = spread.to(device)
        self.collect = collect.to(device)
        self._spare: dict[int, _Room] = {}

    def synthesis(self, a: Tensor) -> Tensor:
        values = a.new_empty(len(a), self.nlat, self.nlon)
        for part, out in zip(a.split(_FIELDS), values.split(_FIELDS), strict=True):
            room = self._room(len(part))
            self._synthesise(part, out, room)
            self._keep(len(part), room)
        return values

    def adjoint(self, values: Tensor) -> Tensor:
        a = values.new_empty(len(values), len(self.collect))
        for part, out in zip(values.split(_FIELDS), a.split(_FIELDS), strict=True):
            room = self._room(len(part))
            self._project(part, out, room)
            self._keep(len(part), room)
        return a

    def _synthesise(self, a: Tensor, values: Tensor, room: _Room) -> None:
        torch.index_select(a, 1, self.plus, out=room.spread[0])
        torch.index_select(a, 1, self.minus, out=room.spread[1])
        room.beyond.zero_()
        for (_, even, odd), at in zip(self.blocks, room.blocks, strict=True):
            torch.bmm(at.coefficients[0], even.legendre, out=at.north)
            torch.bmm(at.coefficients[1], odd.legendre, out=at.odd)
            torch.sub(at.north, at.odd, out=at.south)
            at.north.add_(at.odd)
        values = values.permute(2, 0, 1)
        sum_waves(room.waves[0], values[..., : self.north])
        sum_waves(room.waves[1], values[..., self.north :], mirrored=True)

    def _project(self, values: Tensor, a: Tensor, room: _Room) -> None:
        values = values.permute(2, 0, 1)
        project_waves(values[..., : self.north], room.waves[0])
        project_waves(values[..., self.north :], room.waves[1], mirrored=True)
        room.zonal.mul_(0.5)
        room.equator.zero_()
        for (_, even, odd), at in zip(self.blocks, room.blocks, strict=True):
            torch.sub(at.north, at.south, out=at.odd)
            at.north.add_(at.south)
            for block, sums, x in zip((even, odd), (at.north, at.odd), at.projections, strict=True):
                torch.baddbmm(x, block.legendre, sums.mT, beta=0, alpha=2, out=x)
        a.copy_(room.collected.index_select(0, self.collect).T)

    def _room(self, fields: int) -> _Room:
        """The one that was kept, for this thread alone, or another."""
        kept = self._spare.pop(fields, None)
        if kept is not None:
            return kept
        with torch.inference_mode(False):  # else it could be of use in that mode alone
            return _Room(self, fields)

    def _keep(self, fields: int, room: _Room) -> None:
        """For the next transform of as many fields, unless another may begin before this ends."""
        if room.collected.is_cpu and room.numbers <= _KEPT:
            self._spare = {fields: room}


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
