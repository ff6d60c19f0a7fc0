"""Gauss–Legendre transforms of many fields side by side, compiled.

All fields of a group take the same steps, each in lanes of its own: a row has for every field one
number of either sign of m, or of either hemisphere.  A step then is a product of a small matrix,
the same for all fields, with rows, and its innermost loop runs along the lanes.  The steps are
those of :mod:`spherediff.grids.gauss_legendre`, a few rings at a time, so that what lies between
two steps stays near the processor:

    E_m(θ), O_m(θ)           sums over ℓ with even and odd ℓ − m, on the northern hemisphere
    E_m(θ) ± O_m(θ)          = A_m or B_m at θ and at π − θ
    P_p(φ) = Σ_m A_m cos mφ
    Q_p(φ) = Σ_m B_m sin mφ  over m of one parity p, for φ from 0 to π/2

    v(φ), v(2π − φ) = P_0 + P_1 ± (Q_0 + Q_1),   v(π ∓ φ) = P_0 − P_1 ± (Q_1 − Q_0)

Of N longitudes φ_k = 2πk/N, where H = N/2 is even, cos (H − m)φ_k = ± cos mφ_k and
sin (H − m)φ_k = ∓ sin mφ_k for even and odd k, so that a P at one of these is a sum over half of
the orders, of A_m ± A_{H−m}, and a Q of B_m ∓ B_{H−m}.

The adjoint takes the steps backwards.  Products for Fourier sums as short as these, of a quarter
of the longitudes or an eighth, are at low band limits as fast as fast Fourier transforms.

Matrices are filled up with zeros to even numbers of rows and columns.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff.grids import _lane_kernels as kernels
from spherediff.grids._lane_kernels import FIELDS, LANES, RINGS, Index, Memory, Values
from spherediff.grids._legendre import legendre

_WIDTH = 8  # fields fill up lanes in steps of this, which processors take at once

# Products from which on a transform is worth more than one thread.
_WORTH = 2e6


class Lanes:
    """Synthesis and adjoint of one band limit on one grid, on the CPU.

    Args:
        lmax: band limit, at least 0.
        shape: nlat, and nlon, which is even and more than 2·lmax.
        dtype: of coefficients and values.
    """

    def __init__(self, lmax: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.shape, self.count = shape, harmonics.count(lmax)
        self._sizes = tuple(map(Index, shape))
        self._places = [_places(lmax, half) for half in range(_WIDTH, FIELDS + 1, _WIDTH)]
        table, fourier = _table(lmax, shape[0], dtype), _fourier(lmax, shape[1])
        degrees = np.array([_even(len(ell)) for ell in _degrees(lmax)], Index).reshape(-1, 2)
        self._tables = degrees, table, fourier.folds, fourier.parts
        self._waves = fourier.waves.astype(table.dtype)
        self._projections = fourier.projections.astype(table.dtype)
        rows = int(degrees.sum()), 2 * RINGS, RINGS * (2 * lmax + 3), *fourier.rows
        self._lengths = [*(n * int(LANES) for n in rows), FIELDS * (shape[1] + 1)]
        self._spare: list[Memory] = []

    def synthesis(self, a: Tensor) -> Tensor:
        """Coefficients (..., n) to values (..., nlat, nlon)."""
        values = a.new_empty(*a.shape[:-1], *self.shape)
        x, y = _fields(a, self.count), _fields(values, math.prod(self.shape))
        self._run(kernels.synthesise, x, y, self._waves)
        return values

    def adjoint(self, values: Tensor) -> Tensor:
        """Its transpose, (..., nlat, nlon) → (..., n)."""
        a = values.new_empty(*values.shape[:-2], self.count)
        x, y = _fields(values, math.prod(self.shape)), _fields(a, self.count)
        self._run(kernels.project, x, y, self._projections)
        return a

    def _run(self, kernel: Callable[..., None], x: Values, y: Values, waves: Values) -> None:
        """The kernel from x to y for each group of fields, in as many threads as torch has."""

        def one(first: int) -> None:
            here = slice(first, first + FIELDS)
            widths = -(-len(x[here]) // _WIDTH)
            lanes = Index(widths * _WIDTH), self._places[widths - 1]
            try:  # what another group has left, for this one alone
                memory = self._spare.pop()
            except IndexError:
                memory = tuple(np.empty(n, waves.dtype) for n in self._lengths)
            kernel(x[here], y[here], *self._sizes, *lanes, self._tables, waves, memory)
            self._spare.append(memory)

        groups, threads = range(0, len(x), FIELDS), torch.get_num_threads()
        if len(groups) == 1 or threads == 1 or self._tables[1].size * len(x) < _WORTH:
            for first in groups:
                one(first)
        else:
            list(_pool(threads, os.getpid()).map(one, groups))


def _fields(x: Tensor, n: int) -> Values:
    """Fields of n numbers each, (field, n), in the memory of x unless that is not contiguous."""
    return np.ascontiguousarray(x.numpy(force=True)).reshape(-1, n)


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Threads that wait for work; a process that was forked off has none of its parent's."""
    return ThreadPoolExecutor(threads)


def _even(count: int) -> int:
    """The next even number."""
    return count + count % 2


def _degrees(lmax: int) -> list[NDArray[np.int64]]:
    """ℓ of each order, with even and with odd ℓ − m."""
    return [np.arange(m + parity, lmax + 1, 2) for m in range(lmax + 1) for parity in (0, 1)]


def _places(lmax: int, half: int) -> NDArray[np.uintp]:
    """Where the rows have the coefficients of the first field, shape (n,)."""
    place, row = np.zeros(harmonics.count(lmax), Index), 0
    for i, ell in enumerate(_degrees(lmax)):
        here = (row + np.arange(len(ell))) * int(LANES)
        place[ell * (ell + 1) - i // 2] = here + half
        place[ell * (ell + 1) + i // 2] = here  # order 0 is here alone
        row += _even(len(ell))
    return place


def _filled(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """With zeros to even numbers of rows and columns."""
    return np.pad(matrix, [(0, n % 2) for n in matrix.shape])


def _table(lmax: int, nlat: int, dtype: torch.dtype) -> Values:
    """λ_ℓm(θ), by √2 where m > 0, (block of rings, row, θ) flattened."""
    values = legendre(lmax, ducc0.misc.GL_thetas(nlat)[: (nlat + 1) // 2])
    values[1:] *= math.sqrt(2)
    values = values.to(dtype).numpy()
    table = np.concatenate([_filled(values[i // 2, ell]) for i, ell in enumerate(_degrees(lmax))])
    return np.concatenate([table[:, t : t + RINGS].ravel() for t in range(0, len(table.T), RINGS)])


class _Fourier(NamedTuple):
    """How sums over orders are made.

    Attributes:
        folds: rows of two orders of a ring, and of their sum and their difference, shape (n, 4).
        parts: first row and number of these, and of the longitudes they make, shape (part, 4).
        waves: cosines or sines of each part, (longitude, order) flattened.
        projections: those of the adjoint, halved where φ_k is its own mirror image, which it meets
            twice.
        rows: how many of sums and differences, and of longitudes.
    """

    folds: NDArray[np.uintp]
    parts: NDArray[np.uintp]
    waves: NDArray[np.float64]
    projections: NDArray[np.float64]
    rows: tuple[int, int]


def _fourier(lmax: int, nlon: int) -> _Fourier:
    """Parts by cosine and sine, parity of m, and parity of k.

    The row of an order m of sines, on a ring, is lmax + 1 + m; that of one that is missing is the
    last, 2·lmax + 2.
    """
    middle, folding = nlon // 2, nlon % 4 == 0
    folds, parts, waves, projections = [], [], [], []
    row = longitude = 0
    for sine, parity in itertools.product((0, 1), repeat=2):
        m = np.arange(parity, min(lmax, middle // 2 if folding else lmax) + 1, 2)
        width, at = _even(len(m)), np.arange(row, row + len(m))
        partner = folding & (middle - m <= lmax) & (middle - m > m)
        other = np.where(partner, sine * (lmax + 1) + middle - m, 2 * lmax + 2)
        folds.append(np.stack([sine * (lmax + 1) + m, other, at, at + width], axis=1))
        for odd in (0, 1):
            k = np.arange(odd, nlon // 4 + 1, 2)
            wave = (np.sin if sine else np.cos)(2 * math.pi / nlon * (np.outer(k, m) % nlon))
            once = np.where((k == 0) | (4 * k == nlon), 0.5, 1.0)[:, None]
            waves.append(_filled(wave).ravel())
            projections.append(_filled(once * wave).ravel())
            parts.append((row + (odd != sine) * width, width, longitude, _even(len(k))))
            longitude += _even(len(k))
        row += 2 * width
    return _Fourier(
        np.concatenate(folds).astype(Index),
        np.array(parts, Index),
        np.concatenate(waves),
        np.concatenate(projections),
        (row, longitude),
    )
