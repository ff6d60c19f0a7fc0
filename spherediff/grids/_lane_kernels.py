"""The steps of :mod:`spherediff.grids._lanes`, compiled at their first use.

Arrays of rows are flat, with ``LANES`` numbers a row: those of m, or of the north, in the first
``half`` lanes, and of −m, or of the south, in as many after them.

A kernel takes the number of rings and longitudes; ``half``, and where each coefficient of the first
field is among the rows; how many degrees there are of each order and parity, λ_ℓm(θ), folds and
parts, see :class:`spherediff.grids._lanes._Fourier`, and waves; and memory for rows of
coefficients, of E and O on some rings, of A and B on these, of A and B folded on one of them, and
of P and Q, and for longitudes of each field.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]
Tables = tuple[NDArray[np.uintp], Values, NDArray[np.uintp], NDArray[np.uintp]]
Memory = tuple[Values, ...]
Index = np.uintp  # never negative, so that no index is looked at twice

FIELDS = 32  # in a group
LANES = Index(2 * FIELDS)
RINGS = 4  # of one hemisphere, at a time
_RUN = Index(128)  # coefficients that are brought into lanes before those of the next field
_TILE = Index(32)  # longitudes that are brought out of lanes before those of the next field

_0, _1, _2, _4 = (Index(n) for n in (0, 1, 2, 4))

# No assumptions on NaN: they belong in the lanes of their field.
_compiled = numba.njit(fastmath={"contract"}, nogil=True, error_model="numpy")


@_compiled
def synthesise(
    a: Values,
    values: Values,
    nlat: np.uintp,
    nlon: np.uintp,
    half: np.uintp,
    place: NDArray[np.uintp],
    tables: Tables,
    waves: Values,
    memory: Memory,
) -> None:
    """Coefficients of some fields to their values on the grid."""
    degrees, legendre, folds, parts = tables
    x, sums, rings, folded, quarters, longitudes = memory
    lanes, north, evens = _2 * half, (nlat + _1) // _2, parts[0, 3]
    orders, of_ring = Index(len(degrees)), Index(2 * len(degrees) + 1)
    x[:], rings[:], folded[:] = 0, 0, 0  # where nothing is written, but zeros read
    _spread(a, place, x)
    entry = _0
    for first in range(_0, north, Index(RINGS)):
        count = min(Index(RINGS), (north - first + _1) // _2 * _2)
        at = _0
        for m in range(orders):
            for parity in range(_2):
                n, to = degrees[m, parity], parity * count
                _multiply(lanes, legendre, entry, _1, count, count, n, x, at, sums, to, True)
                at += n
                entry += n * count
            for t in range(count):
                for sine in range(min(m + _1, _2)):
                    i, j = t * LANES + sine * half, (t + count) * LANES + sine * half
                    to = (t * of_ring + sine * orders + m) * LANES
                    _butterfly(half, sums, i, j, rings, to, to + half)
        for ring in range(first, min(first + count, north)):
            at, below, south = (ring - first) * of_ring, _0, nlat - _1 - ring
            for i in range(len(folds)):
                a_m, other = (at + folds[i, 0]) * LANES, (at + folds[i, 1]) * LANES
                to, difference = folds[i, 2] * LANES, folds[i, 3] * LANES
                _butterfly(lanes, rings, a_m, other, folded, to, difference)
            for i in range(len(parts)):
                row, width, to, n = parts[i]
                _multiply(lanes, waves, below, width, _1, n, width, folded, row, quarters, to, True)
                below += n * width
            _unfold(quarters, longitudes, values, nlon, evens, Index(ring), _0)
            if south > ring:
                _unfold(quarters, longitudes, values, nlon, evens, south, half)


@_compiled
def project(
    values: Values,
    a: Values,
    nlat: np.uintp,
    nlon: np.uintp,
    half: np.uintp,
    place: NDArray[np.uintp],
    tables: Tables,
    waves: Values,
    memory: Memory,
) -> None:
    """Its transpose."""
    degrees, legendre, folds, parts = tables
    x, sums, rings, folded, quarters, longitudes = memory
    lanes, north, evens = _2 * half, (nlat + _1) // _2, parts[0, 3]
    orders, of_ring = Index(len(degrees)), Index(2 * len(degrees) + 1)
    x[:], rings[:], quarters[:] = 0, 0, 0
    entry = _0
    for first in range(_0, north, Index(RINGS)):
        count = min(Index(RINGS), (north - first + _1) // _2 * _2)
        for ring in range(first, min(first + count, north)):
            at, below, south = (ring - first) * of_ring, _0, nlat - _1 - ring
            if south == ring:  # the equator
                quarters[:] = 0
            else:
                _fold(values, longitudes, quarters, nlon, evens, south, half)
            _fold(values, longitudes, quarters, nlon, evens, Index(ring), _0)
            for i in range(len(parts)):
                row, width, to, n = parts[i]
                _multiply(lanes, waves, below, _1, width, width, n, quarters, to, folded, row, True)
                below += n * width
            for i in range(len(folds)):
                a_m, other = (at + folds[i, 0]) * LANES, (at + folds[i, 1]) * LANES
                to, difference = folds[i, 2] * LANES, folds[i, 3] * LANES
                _butterfly(lanes, folded, to, difference, rings, a_m, other)
        to = _0
        for m in range(orders):
            for t in range(count):
                for sine in range(min(m + _1, _2)):
                    at = (t * of_ring + sine * orders + m) * LANES
                    i, j = t * LANES + sine * half, (t + count) * LANES + sine * half
                    _butterfly(half, rings, at, at + half, sums, i, j)
            for parity in range(_2):
                n, at = degrees[m, parity], parity * count
                _multiply(lanes, legendre, entry, count, _1, n, count, sums, at, x, to, False)
                to += n
                entry += n * count
    _collect(x, place, a)


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
    anew: bool,
) -> None:
    """y_p += Σ_q M_pq x_q for all lanes, or from zero on.

    M is at ``entry``, its rows ``down`` and its columns ``right`` apart, an even number of either;
    x_0 is row ``at`` and y_0 row ``to``.  Two rows and four columns at a time keep the processor
    busy.
    """
    for row in range(_0, rows, _2):
        i, j, u = entry + row * down, at * LANES, (to + row) * LANES
        if anew:
            for lane in range(lanes):
                y[u + lane] = y[u + lane + LANES] = 0
        for _ in range(columns // _4):
            a, b = matrix[i], matrix[i + right]
            c, d = matrix[i + _2 * right], matrix[i + _2 * right + right]
            k = i + down
            e, f = matrix[k], matrix[k + right]
            g, h = matrix[k + _2 * right], matrix[k + _2 * right + right]
            for lane in range(lanes):
                p, q = x[j + lane], x[j + lane + LANES]
                r, s = x[j + lane + LANES + LANES], x[j + lane + LANES + LANES + LANES]
                upper = y[u + lane] + a * p + b * q + c * r + d * s
                lower = y[u + lane + LANES] + e * p + f * q + g * r + h * s
                y[u + lane] = upper
                y[u + lane + LANES] = lower
            i += _4 * right
            j += _4 * LANES
        if columns % _4:
            a, b, k = matrix[i], matrix[i + right], i + down
            e, f = matrix[k], matrix[k + right]
            for lane in range(lanes):
                p, q = x[j + lane], x[j + lane + LANES]
                upper = y[u + lane] + a * p + b * q
                lower = y[u + lane + LANES] + e * p + f * q
                y[u + lane] = upper
                y[u + lane + LANES] = lower


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
def _spread(a: Values, place: NDArray[np.uintp], x: Values) -> None:
    """Coefficients of each field into its lanes."""
    for start in range(_0, Index(a.shape[1]), _RUN):
        stop = min(start + _RUN, Index(a.shape[1]))
        for field in range(Index(len(a))):
            for i in range(start, stop):
                x[place[i] + field] = a[field, i]


@_compiled
def _collect(x: Values, place: NDArray[np.uintp], a: Values) -> None:
    """Its transpose, the coefficients of each field out of its lanes."""
    for start in range(_0, Index(a.shape[1]), _RUN):
        stop = min(start + _RUN, Index(a.shape[1]))
        for field in range(Index(len(a))):
            for i in range(start, stop):
                a[field, i] = x[place[i] + field]


@_compiled
def _unfold(
    quarters: Values,
    longitudes: Values,
    values: Values,
    nlon: np.uintp,
    evens: np.uintp,
    ring: np.uintp,
    lane: np.uintp,
) -> None:
    """P and Q to the values on a ring of each field, whole rings at a time.

    Even k have the first rows of a part, ``evens`` with what fills them up; odd k have the others.
    """
    fields, count, middle = Index(len(values)), nlon // _4 + _1, nlon // _2
    part = Index(len(quarters)) // _4
    for start in range(_0, count, _TILE):
        for field in range(fields):
            v = field * (nlon + _1)
            for k in range(start, min(start + _TILE, count)):
                i = (k // _2 + k % _2 * evens) * LANES + lane + field
                even, odd = quarters[i], quarters[i + part]
                p, p_mirrored = even + odd, even - odd
                even, odd = quarters[i + _2 * part], quarters[i + _2 * part + part]
                q, q_mirrored = even + odd, odd - even
                longitudes[v + k] = p + q
                longitudes[v + nlon - k] = p - q
                longitudes[v + middle - k] = p_mirrored + q_mirrored
                longitudes[v + middle + k] = p_mirrored - q_mirrored
    for field in range(fields):
        v, to = field * (nlon + _1), ring * nlon
        for k in range(nlon):
            values[field, to + k] = longitudes[v + k]


@_compiled
def _fold(
    values: Values,
    longitudes: Values,
    quarters: Values,
    nlon: np.uintp,
    evens: np.uintp,
    ring: np.uintp,
    lane: np.uintp,
) -> None:
    """Its transpose, but for longitudes that are their own mirror images and count twice."""
    fields, count, middle = Index(len(values)), nlon // _4 + _1, nlon // _2
    part = Index(len(quarters)) // _4
    for field in range(fields):
        v, at = field * (nlon + _1), ring * nlon
        for k in range(nlon):
            longitudes[v + k] = values[field, at + k]
        longitudes[v + nlon] = values[field, at]
    for start in range(_0, count, _TILE):
        for field in range(fields):
            v = field * (nlon + _1)
            for k in range(start, min(start + _TILE, count)):
                i = (k // _2 + k % _2 * evens) * LANES + lane + field
                east, west = longitudes[v + k], longitudes[v + nlon - k]
                p, q = east + west, east - west
                east, west = longitudes[v + middle - k], longitudes[v + middle + k]
                p_mirrored, q_mirrored = east + west, east - west
                quarters[i] = p + p_mirrored
                quarters[i + part] = p - p_mirrored
                quarters[i + _2 * part] = q - q_mirrored
                quarters[i + _2 * part + part] = q + q_mirrored
