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
and order, zero where |m| > ℓ: what depends on the degree alone then broadcasts.  The orders are
0, 1, −1, 2, −2, …  The sums over ℓ are batched matrix products, those over m Fourier transforms.

The transforms stay in float32 under autocast: bfloat16 has too few digits for sums that cancel.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff._linear import linear
from spherediff._precision import full_precision
from spherediff.grids._fourier import orders, project_waves, sum_waves
from spherediff.grids._legendre import legendre as legendre_functions

Array = NDArray[np.float64]

_BLOCKS = 3  # of orders: half of all degrees and orders are zero, and with these a third of a half


class _Block(NamedTuple):
    """Orders that one batched product transforms, with all degrees from the lowest of them on.

    Attributes:
        rows: its orders on the grid.
        columns: the orders of the coefficients that they come of.
        degrees: from the lowest that is not zero on.
        legendre: shape (m, nlat, ℓ).
    """

    rows: slice
    columns: slice
    degrees: slice
    legendre: Tensor

    def of(self, table: Tensor) -> Tensor:
        """Its coefficients, (m, ℓ, K)."""
        return table[self.degrees, self.columns].transpose(0, 1)


class _Sum(NamedTuple):
    """A sum over degrees and orders, and its transpose; one of those that the module defines."""

    blocks: list[_Block]
    nlon: int

    def __call__(self, table: Tensor) -> Tensor:
        """Table (lmax + 1, 2·lmax + 1, K) to values (nlat, nlon, K)."""
        nlat, fields = self.blocks[0].legendre.shape[1], table.shape[-1]
        rings = table.new_empty(self.nlon, nlat, fields)
        for block in self.blocks:
            torch.bmm(block.legendre, block.of(table), out=rings[block.rows])
        rings[table.shape[1] :] = 0
        values = table.new_empty(nlat, self.nlon, fields)
        sum_waves(rings, values.transpose(0, 1))
        return values

    def transpose(self, values: Tensor) -> Tensor:
        """Values (nlat, nlon, K) to a table (lmax + 1, 2·lmax + 1, K), zero where |m| > ℓ."""
        rings = values.new_empty(self.nlon, len(values), values.shape[-1])
        project_waves(values.transpose(0, 1), rings)
        rings[0] /= 2
        lmax = self.blocks[0].legendre.shape[-1] - 1
        table = values.new_empty(lmax + 1, 2 * lmax + 1, values.shape[-1])
        for block in self.blocks:
            table[: block.degrees.start, block.columns] = 0
            out = block.of(table)
            torch.baddbmm(out, block.legendre.mT, rings[block.rows], beta=0, alpha=2, out=out)
        return table


class _Tables(NamedTuple):
    values: _Sum
    east: _Sum
    poleward: _Sum
    quadrature: _Sum  # its transpose is the analysis
    flat: Tensor  # (n,), row of coefficient i in the table of (lmax + 1)(2 lmax + 1) rows


@lru_cache(maxsize=8)
def _tables(lmax: int, nlat: int, nlon: int, dtype: torch.dtype, device: torch.device) -> _Tables:
    theta = ducc0.misc.GL_thetas(nlat)
    m = orders(lmax).numpy()
    legendre = legendre_functions(lmax, theta).transpose(1, 2).numpy()[np.abs(m)]
    legendre[1:] /= math.sqrt(2)  # Fourier sums have a factor of 2 where m is not 0
    ell = np.arange(lmax + 1)
    unit = np.sqrt(2 / np.maximum(ell * (ell + 1), 1))  # λ_ℓ; ℓ = 0 has no slopes
    rise = _legendre_slope(legendre, theta, np.abs(m))
    # d/dφ (a cos mφ + b sin mφ) = m b cos mφ − m a sin mφ: the columns of m and −m change places
    turn = m[:, None, None] * unit / np.sin(theta)[:, None]
    weights = ducc0.misc.GL_weights(nlat, nlon)[:, None]

    def of(table: Array, *, exchanged: bool = False) -> _Sum:
        return _Sum(_blocks(torch.from_numpy(table).to(device, dtype), exchanged), nlon)

    column = torch.empty(2 * lmax + 1, dtype=torch.int64)
    column[lmax + orders(lmax)] = torch.arange(2 * lmax + 1)
    flat = harmonics.degrees(lmax) * (2 * lmax + 1) + column[lmax + harmonics.orders(lmax)]
    return _Tables(
        of(legendre),
        of(turn * legendre, exchanged=True),
        of(unit * math.sqrt(3) * np.cos(theta)[:, None] * rise),
        of(weights * legendre),
        flat.to(device),
    )


def _blocks(legendre: Tensor, exchanged: bool) -> list[_Block]:
    """Blocks of orders (m, nlat, ℓ) in the order of rows; see :class:`_Block`.

    Args:
        legendre: the matrix of every order.
        exchanged: whether rows of m come of the coefficients of −m.
    """
    lmax = legendre.shape[-1] - 1
    edges = torch.linspace(0, lmax + 1, min(_BLOCKS, lmax + 1) + 1).int().tolist()
    blocks = []
    for first, last in itertools.pairwise(edges):
        start, stop = max(2 * first - 1, 0), 2 * last - 1
        whole = slice(start, stop)
        pairs = [(whole, whole)]
        if exchanged:
            cosines, sines = slice(max(start, 1), stop, 2), slice(max(start, 1) + 1, stop, 2)
            pairs = [(cosines, sines), (sines, cosines)]
            if start == 0:
                pairs.append((slice(0, 1), slice(0, 1)))
        blocks += [
            _Block(rows, columns, slice(first, None), legendre[rows, :, first:].contiguous())
            for rows, columns in pairs
        ]
    return blocks


def _legendre_slope(legendre: Array, theta: Array, m: NDArray[np.intp]) -> Array:
    """−dP_ℓ^m/dθ, shape of P: (orders, nlat, lmax + 1)."""
    ell, m = np.arange(legendre.shape[-1]), m[:, None]
    ratio = (ell**2 - m**2).clip(0) * (2 * ell + 1) / np.abs(2 * ell - 1)
    below = np.pad(legendre, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    rise = np.sqrt(ratio)[:, None] * below - ell * np.cos(theta)[:, None] * legendre
    return rise / np.sin(theta)[:, None]


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
        values = self._tables(table).values
        return linear(table, values, values.transpose)

    @full_precision
    def slopes(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of :meth:`synthesis` eastward and poleward, degrees times λ_ℓ."""
        table = _at_least_single(table)
        east, poleward = self._tables(table).east, self._tables(table).poleward
        return linear(table, east, east.transpose), linear(table, poleward, poleward.transpose)

    @full_precision
    def analysis(self, values: Tensor) -> Tensor:
        """Values (nlat, nlon, K) to the table (lmax + 1, 2·lmax + 1, K)."""
        values = _at_least_single(values)
        quadrature = self._tables(values).quadrature
        return linear(values, quadrature.transpose, quadrature)

    def sin_latitude(self) -> Tensor:
        """sin(latitude) of every grid row, north to south, shape (nlat,), float64."""
        return torch.from_numpy(np.cos(ducc0.misc.GL_thetas(self.nlat)))
