"""Gauss–Legendre transforms of many fields side by side, compiled.

All fields of a group take the same steps, each in lanes of its own: a row has for every field one
number of either sign of m, or of either hemisphere.  A step then is a product of a small matrix,
the same for all fields, with rows, and its innermost loop runs along the lanes.  The steps are
those of :mod:`spherediff.grids.gauss_legendre`, a few rings at a time, so that what lies between
two steps stays near the processor:

    E_m(θ), O_m(θ)              sums over ℓ with even and odd ℓ − m, on the northern hemisphere
    E_m(θ) ± O_m(θ)             = A_m or B_m at θ and at π − θ
    P_p(φ) = Σ_m A_m cos mφ,
    Q_p(φ) = Σ_m B_m sin mφ     over m of one parity p, for φ from 0 to π/2

    v(φ), v(2π − φ) = P_0 + P_1 ± (Q_0 + Q_1),   v(π ∓ φ) = P_0 − P_1 ± (Q_1 − Q_0)

The adjoint takes them backwards.  Fourier sums are products too, for a quarter of the longitudes
and half of the orders at a time, which at low band limits is as fast as fast Fourier transforms.

Near the poles λ_ℓm vanishes for high orders; these are left out there.  Matrices are filled up with
zeros to multiples of four, rows with zeros that they meet.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import ducc0
import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff.grids._legendre import legendre

Values = NDArray[np.floating[Any]]
Index = np.uintp  # never negative, so that no index is looked at twice

FIELDS = 32  # in a group
_LANES = Index(2 * FIELDS)
_WIDTH = 8  # fields fill up lanes in steps of this, that processors take at once
_RINGS = 8  # at a time, of one hemisphere
_RUN = Index(64)  # coefficients that are brought into lanes before those of the next field
_TILE = Index(16)  # fields and longitudes that are brought out of lanes at a time

# λ below this part of the rounding error is none.
_NEGLIGIBLE = 1e-3

# Products from which on a transform is worth a thread of its own.
_THREAD = 1e6

_0, _1, _2, _4 = (Index(n) for n in (0, 1, 2, 4))

# No assumptions on NaN: they belong in the lanes of their field.
_compiled = numba.njit(fastmath={"contract"}, nogil=True, error_model="numpy")


class _Tables(NamedTuple):
    """What kernels know of a grid and a band limit.

    Attributes:
        place: row and sign of m of each coefficient, shape (2, n).
        degrees: rows of even and odd ℓ − m of each order, shape (m, 2).
        legendre: λ_ℓm(θ), by √2 where m > 0, (block of rings, row, θ) flattened.
        orders: how many do not vanish on each block of rings.
        slots: row of A_m and B_m among those of a ring, shape (2, m).
        parts: first row of cosines and sines of even and odd orders; how many for each block, and
            for all; shape (blocks + 2, 4).
    """

    place: NDArray[np.uintp]
    degrees: NDArray[np.uintp]
    legendre: Values
    orders: NDArray[np.uintp]
    slots: NDArray[np.uintp]
    parts: NDArray[np.uintp]


class Lanes:
    """Synthesis and adjoint of one band limit on one grid, on the CPU.

    Args:
        lmax: band limit, at least 0.
        shape: nlat, and nlon, which is even and more than 2·lmax.
        dtype: of coefficients and values.
    """

    def __init__(self, lmax: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.shape, self.count = shape, harmonics.count(lmax)
        self._tables = _tables(lmax, shape[0], dtype)
        self._waves, self._projections = _waves(lmax, shape[1], self._tables.legendre.dtype)
        self._spare: list[tuple[Values, ...]] = []

    def synthesis(self, a: Tensor) -> Tensor:
        """Coefficients (field, n) to values (field, nlat, nlon)."""
        values = a.new_empty(len(a), *self.shape)
        self._run(_synthesise, a, values, self._waves)
        return values

    def adjoint(self, values: Tensor) -> Tensor:
        """Its transpose, (field, nlat, nlon) → (field, n)."""
        a = values.new_empty(len(values), self.count)
        self._run(_project, values, a, self._projections)
        return a

    def _run(
        self, kernel: Callable[..., None], given: Tensor, taken: Tensor, waves: Values
    ) -> None:
        """The kernel for each group of fields, in as many threads as torch has."""
        x, y = given.detach().contiguous().flatten(1).numpy(), taken.flatten(1).numpy()

        def one(first: int) -> None:
            here = slice(first, first + FIELDS)
            half = Index(_WIDTH * -(-len(x[here]) // _WIDTH))
            memory = self._memory()
            kernel(x[here], y[here], *self.shape, half, *self._tables, waves, *memory)
            self._spare.append(memory)

        groups = range(0, len(x), FIELDS)
        work = self._tables.legendre.size * len(x)
        threads = min(torch.get_num_threads(), len(groups), max(1, int(work / _THREAD)))
        if threads == 1:
            for first in groups:
                one(first)
        else:
            list(_pool(threads, os.getpid()).map(one, groups))

    def _memory(self) -> tuple[Values, ...]:
        """What another group has left, for this one alone, or new.

        Rows of coefficients, of E and O on some rings, of A and B on these, of P and Q on one, and
        longitudes of some fields.
        """
        try:
            return self._spare.pop()
        except IndexError:
            nlon, parts = self.shape[1], self._tables.parts
            of_ring = int(parts[-1].sum()) + 1  # one for the sine of order 0
            counts = (
                int(self._tables.degrees.sum()),
                2 * _RINGS,
                _RINGS * of_ring,
                4 * _quarter(nlon),
            )
            lengths = [count * int(_LANES) for count in counts] + [int(_TILE) * (nlon + 1)]
            return tuple(np.zeros(n, self._tables.legendre.dtype) for n in lengths)


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Threads that wait for work; a process that was forked off has none of its parent's."""
    return ThreadPoolExecutor(threads)


def _fill(count: int) -> int:
    """The next multiple of four."""
    return 4 * -(-count // 4)


def _quarter(nlon: int) -> int:
    """Rows of longitudes from 0 to π/2."""
    return _fill(nlon // 4 + 1)


def _part_orders(lmax: int) -> list[NDArray[np.int64]]:
    """Orders of cosines, even and odd, and of sines."""
    return [np.arange(first, lmax + 1, 2) for first in (0, 1, 2, 1)]


def _tables(lmax: int, nlat: int, dtype: torch.dtype) -> _Tables:
    north = (nlat + 1) // 2
    values = legendre(lmax, ducc0.misc.GL_thetas(nlat)[:north])
    values[1:] *= math.sqrt(2)
    values = values.to(dtype).numpy()
    degrees = np.zeros((lmax + 1, 2), Index)
    place = np.zeros((2, harmonics.count(lmax)), Index)
    rows: list[Values] = []
    for m in range(lmax + 1):
        for parity in range(2):
            ell = np.arange(m + parity, lmax + 1, 2)
            degrees[m, parity] = _fill(len(ell))
            for sign in (1, 0):  # order 0 has one place for both
                index = ell * (ell + 1) + m * (1 - 2 * sign)
                place[0, index], place[1, index] = len(rows) + np.arange(len(ell)), sign
            rows.extend(values[m, ell])
            rows.extend([np.zeros(north, values.dtype)] * (_fill(len(ell)) - len(ell)))
    table = np.pad(np.stack(rows), ((0, 0), (0, _fill(north) - north)))
    blocks = range(0, north, _RINGS)
    ends = [min(t + _RINGS, north) - 1 for t in blocks]
    visible = np.abs(values).max(1) >= _NEGLIGIBLE * np.finfo(values.dtype).eps  # (m, θ)
    orders = [np.flatnonzero(visible[:, t])[-1] + 1 for t in ends]
    counts = [[_fill(len(m)) for m in _part_orders(top - 1)] for top in (*orders, lmax + 1)]
    starts = np.cumsum([0, *counts[-1]])
    slots = np.full((2, lmax + 1), starts[-1], Index)
    for part, m in enumerate(_part_orders(lmax)):
        slots[part // 2, m] = starts[part] + np.arange(len(m))
    return _Tables(
        place,
        degrees,
        np.concatenate([table[:, t : t + _RINGS].ravel() for t in blocks]),
        np.array(orders, Index),
        slots,
        np.array([starts[:-1], *counts], Index),
    )


def _waves(lmax: int, nlon: int, dtype: np.dtype[Any]) -> list[Values]:
    """cos mφ_k and sin mφ_k, (part, k, m) flattened, for synthesis and adjoint.

    Those of the adjoint are halved where φ_k is its own mirror image, which it meets twice.
    """
    k = np.arange(_quarter(nlon))
    once = np.where((k == 0) | (4 * k == nlon), 0.5, 1.0)
    tables = []
    for part, m in enumerate(_part_orders(lmax)):
        wave = (np.sin if part // 2 else np.cos)(2 * math.pi / nlon * (np.outer(k, m) % nlon))
        wave[k > nlon // 4] = 0
        tables.append(np.pad(wave, ((0, 0), (0, _fill(len(m)) - len(m)))))
    return [
        np.concatenate([(weight[:, None] * table).ravel() for table in tables]).astype(dtype)
        for weight in (np.ones_like(once), once)
    ]


@_compiled
def _synthesise(
    a: Values,
    values: Values,
    nlat: int,
    nlon: int,
    half: np.uintp,
    place: NDArray[np.uintp],
    degrees: NDArray[np.uintp],
    legendre: Values,
    orders: NDArray[np.uintp],
    slots: NDArray[np.uintp],
    parts: NDArray[np.uintp],
    waves: Values,
    x: Values,
    sums: Values,
    rings: Values,
    quarters: Values,
    longitudes: Values,
) -> None:
    lanes, quarter = _2 * half, Index(len(quarters)) // _LANES // _4
    ring_rows = Index(len(rings)) // _LANES // Index(_RINGS)
    x[:] = 0
    _spread(a, place, x, half)
    entry = _0
    for block in range(len(orders)):
        first = Index(block * _RINGS)
        count = min(Index(_RINGS), (Index((nlat + 1) // 2) - first + _4 - _1) // _4 * _4)
        rings[:] = 0
        at, below = _0, entry
        for m in range(orders[block]):
            sums[:] = 0
            for parity in range(_2):
                n = degrees[m, parity]
                _multiply(lanes, legendre, below, _1, count, count, n, x, at, sums, parity * count)
                at += n
                below += n * count
            for t in range(count):
                for sine in range(_2):
                    to = (t * ring_rows + slots[sine, m]) * _LANES
                    i, j = t * _LANES + sine * half, (t + count) * _LANES + sine * half
                    _butterfly(half, sums, i, j, rings, to, to + half)
        entry += Index(len(x)) // _LANES * count
        for t in range(count):
            ring, south = first + t, Index(nlat) - _1 - first - t
            if ring > south or south >= Index(nlat):
                break
            quarters[:] = 0
            below = _0
            for part in range(_4):
                n, width = parts[Index(block) + _1, part], parts[len(parts) - 1, part]
                at = t * ring_rows + parts[0, part]
                _multiply(
                    lanes, waves, below, width, _1, quarter, n, rings, at, quarters, part * quarter
                )
                below += width * quarter
            _unfold(quarters, longitudes, values, Index(nlon), ring, _0)
            if south > ring:
                _unfold(quarters, longitudes, values, Index(nlon), south, half)


@_compiled
def _project(
    values: Values,
    a: Values,
    nlat: int,
    nlon: int,
    half: np.uintp,
    place: NDArray[np.uintp],
    degrees: NDArray[np.uintp],
    legendre: Values,
    orders: NDArray[np.uintp],
    slots: NDArray[np.uintp],
    parts: NDArray[np.uintp],
    waves: Values,
    x: Values,
    sums: Values,
    rings: Values,
    quarters: Values,
    longitudes: Values,
) -> None:
    lanes, quarter = _2 * half, Index(len(quarters)) // _LANES // _4
    ring_rows = Index(len(rings)) // _LANES // Index(_RINGS)
    x[:] = 0
    entry = _0
    for block in range(len(orders)):
        first = Index(block * _RINGS)
        count = min(Index(_RINGS), (Index((nlat + 1) // 2) - first + _4 - _1) // _4 * _4)
        rings[:] = 0
        for t in range(count):
            ring, south = first + t, Index(nlat) - _1 - first - t
            if ring > south or south >= Index(nlat):
                break
            quarters[:] = 0
            _fold(values, longitudes, quarters, Index(nlon), ring, _0)
            if south > ring:
                _fold(values, longitudes, quarters, Index(nlon), south, half)
            below = _0
            for part in range(_4):
                n, width = parts[Index(block) + _1, part], parts[len(parts) - 1, part]
                to = t * ring_rows + parts[0, part]
                _multiply(
                    lanes, waves, below, _1, width, n, quarter, quarters, part * quarter, rings, to
                )
                below += width * quarter
        to, below = _0, entry
        for m in range(orders[block]):
            for t in range(count):
                for sine in range(_2):
                    at = (t * ring_rows + slots[sine, m]) * _LANES
                    i, j = t * _LANES + sine * half, (t + count) * _LANES + sine * half
                    _butterfly(half, rings, at, at + half, sums, i, j)
            for parity in range(_2):
                n = degrees[m, parity]
                _multiply(lanes, legendre, below, count, _1, n, count, sums, parity * count, x, to)
                to += n
                below += n * count
        entry += Index(len(x)) // _LANES * count
    _collect(x, place, a, half)


@_compiled
def _multiply(
    lanes: np.uintp,
    matrix: Values,
    entry: np.uintp,
    down: np.uintp,
    right: np.uintp,
    rows: np.uintp,
    columns: np.uintp,
    x: Values,
    at: np.uintp,
    y: Values,
    to: np.uintp,
) -> None:
    """y_p += Σ_q M_pq x_q for all lanes.

    M is at ``entry``, its rows ``down`` and its columns ``right`` apart, x_0 is row ``at`` and y_0
    row ``to``.  Two rows and four columns at a time keep the processor busy.
    """
    for row in range(_0, rows, _2):
        i, j, u = entry + row * down, at * _LANES, (to + row) * _LANES
        for _ in range(columns // _4):
            a, b = matrix[i], matrix[i + right]
            c, d = matrix[i + _2 * right], matrix[i + _2 * right + right]
            k = i + down
            e, f = matrix[k], matrix[k + right]
            g, h = matrix[k + _2 * right], matrix[k + _2 * right + right]
            for lane in range(lanes):
                p, q = x[j + lane], x[j + lane + _LANES]
                r, s = x[j + lane + _LANES + _LANES], x[j + lane + _LANES + _LANES + _LANES]
                upper = y[u + lane] + a * p + b * q + c * r + d * s
                lower = y[u + lane + _LANES] + e * p + f * q + g * r + h * s
                y[u + lane] = upper
                y[u + lane + _LANES] = lower
            i += _4 * right
            j += _4 * _LANES


@_compiled
def _butterfly(
    n: np.uintp, x: Values, i: np.uintp, j: np.uintp, y: Values, p: np.uintp, q: np.uintp
) -> None:
    """Sums and differences of n lanes."""
    for lane in range(n):
        left, right = x[i + lane], x[j + lane]
        y[p + lane] = left + right
        y[q + lane] = left - right


@_compiled
def _spread(a: Values, place: NDArray[np.uintp], x: Values, half: np.uintp) -> None:
    """Coefficients of each field into its lanes."""
    for start in range(_0, Index(a.shape[1]), _RUN):
        stop = min(start + _RUN, Index(a.shape[1]))
        for field in range(Index(len(a))):
            for i in range(start, stop):
                x[place[0, i] * _LANES + place[1, i] * half + field] = a[field, i]


@_compiled
def _collect(x: Values, place: NDArray[np.uintp], a: Values, half: np.uintp) -> None:
    """Its transpose, the coefficients of each field out of its lanes."""
    for start in range(_0, Index(a.shape[1]), _RUN):
        stop = min(start + _RUN, Index(a.shape[1]))
        for field in range(Index(len(a))):
            for i in range(start, stop):
                a[field, i] = x[place[0, i] * _LANES + place[1, i] * half + field]


@_compiled
def _unfold(
    quarters: Values,
    longitudes: Values,
    values: Values,
    nlon: np.uintp,
    ring: np.uintp,
    lane: np.uintp,
) -> None:
    """P and Q to the values on a ring of each field, whole rings at a time."""
    fields, count, middle = Index(len(values)), nlon // _4 + _1, nlon // _2
    part = Index(len(quarters)) // _4
    for start in range(_0, fields, _TILE):
        stop = min(start + _TILE, fields)
        for low in range(_0, count, _TILE):
            for field in range(start, stop):
                v = (field - start) * (nlon + _1)
                for k in range(low, min(low + _TILE, count)):
                    i = k * _LANES + lane + field
                    even, odd = quarters[i], quarters[i + part]
                    p, p_mirrored = even + odd, even - odd
                    even, odd = quarters[i + _2 * part], quarters[i + _2 * part + part]
                    q, q_mirrored = even + odd, odd - even
                    longitudes[v + k] = p + q
                    longitudes[v + nlon - k] = p - q
                    longitudes[v + middle - k] = p_mirrored + q_mirrored
                    longitudes[v + middle + k] = p_mirrored - q_mirrored
        for field in range(start, stop):
            v, to = (field - start) * (nlon + _1), ring * nlon
            for k in range(nlon):
                values[field, to + k] = longitudes[v + k]


@_compiled
def _fold(
    values: Values,
    longitudes: Values,
    quarters: Values,
    nlon: np.uintp,
    ring: np.uintp,
    lane: np.uintp,
) -> None:
    """Its transpose, but for longitudes that are their own mirror images and count twice."""
    fields, count, middle = Index(len(values)), nlon // _4 + _1, nlon // _2
    part = Index(len(quarters)) // _4
    for start in range(_0, fields, _TILE):
        stop = min(start + _TILE, fields)
        for field in range(start, stop):
            v, at = (field - start) * (nlon + _1), ring * nlon
            for k in range(nlon):
                longitudes[v + k] = values[field, at + k]
            longitudes[v + nlon] = values[field, at]
        for low in range(_0, count, _TILE):
            for field in range(start, stop):
                v = (field - start) * (nlon + _1)
                for k in range(low, min(low + _TILE, count)):
                    i = k * _LANES + lane + field
                    east, west = longitudes[v + k], longitudes[v + nlon - k]
                    p, q = east + west, east - west
                    east, west = longitudes[v + middle - k], longitudes[v + middle + k]
                    p_mirrored, q_mirrored = east + west, east - west
                    quarters[i] = p + p_mirrored
                    quarters[i + part] = p - p_mirrored
                    quarters[i + _2 * part] = q - q_mirrored
                    quarters[i + _2 * part + part] = q + q_mirrored
