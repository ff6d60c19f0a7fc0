"""Regular latitude–longitude grids, with the exact quadrature that belongs to each.

A product of nlat latitudes and nlon equidistant longitudes.  In colatitude θ, north to south,
the latitudes are one of ducc0's geometries, i = 0 … n−1 with n = nlat:

    GL       roots of P_n(cos θ)         analysis exact to lmax = n − 1
    CC       θ_i = π i/(n−1)             n − 2     both poles
    F1       θ_i = π (i+½)/n             n − 1     half a step from the poles
    MW       θ_i = π (2i+1)/(2n−1)       n − 1     ends on the south pole
    MWflip   θ_i = 2π i/(2n−1)           n − 1     starts on the north pole
    DH       θ_i = π i/n                 ⌊n/2⌋ − 1   starts on the north pole, full last step
    F2       θ_i = π (i+1)/(n+1)         ⌊(n−1)/2⌋   a full step from the poles

and in every case lmax ≤ (nlon−1)/2.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import ducc0
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from spherediff._linear import linear
from spherediff.grids import _packed
from spherediff.grids.grid import Grid
from spherediff.grids.points import degrees_axis, require_latitudes

_TOLERANCE = 0.02  # of one grid step; files store float32 or a few decimals


class LatLon(Grid):
    """A global regular grid, recognised from its coordinates.

    Latitudes may run north or south, longitudes may start anywhere and run east or west, and
    the first meridian may be repeated a full turn later: such a column is filled by synthesis
    and ignored by analysis.  Coordinates that deviate from a regular grid by less than 2 % of
    its step, as those of files do, stand for that grid, and the transforms use its nominal
    colatitudes.

    Args:
        latitude: degrees north, shape (nlat,).
        longitude: degrees east, shape (nlon,).

    Attributes:
        geometry: name of the latitudes in the table above, seen from north to south.

    Raises:
        ValueError: the coordinates are not finite, not one-dimensional, out of range, or do
            not form a regular global grid.
    """

    def __init__(self, latitude: ArrayLike, longitude: ArrayLike) -> None:
        self._latitude = degrees_axis(latitude, "latitude")
        self._longitude = degrees_axis(longitude, "longitude")
        require_latitudes(self._latitude)
        self.shape = (len(self._latitude), len(self._longitude))
        self._south_up = bool(self._latitude[0] < self._latitude[-1])
        ordered = self._latitude[::-1] if self._south_up else self._latitude
        self.geometry = _recognise(90.0 - ordered)
        self._repeated, self._westward = _full_circle(self._longitude)
        self._nlon = len(self._longitude) - self._repeated
        start = self._longitude[self._nlon - 1] if self._westward else self._longitude[0]
        self._phi0 = math.radians(start % 360.0)
        self.max_lmax = min(_max_degree(self.geometry, self.shape[0]), (self._nlon - 1) // 2)

    @classmethod
    def regular(cls, spacing: float) -> LatLon:
        """From the south to the north pole and from 0° eastward, equally spaced in both.

        Args:
            spacing: degrees.

        Raises:
            ValueError: 180° are no multiple of it, from the second on.
        """
        rows = round(180 / spacing) if spacing > 0 else 0
        if rows < 2 or abs(rows * spacing - 180) > 1e-6:
            raise ValueError(
                f"expected a spacing in degrees that divides 180, at most 90, got {spacing:g}"
            )
        return cls(np.linspace(-90, 90, rows + 1), np.arange(2 * rows) * (180 / rows))

    def __repr__(self) -> str:
        return f"LatLon({self.shape[0]}×{self.shape[1]} {self.geometry})"

    @property
    def latitude(self) -> NDArray[np.float64]:
        return self._latitude

    @property
    def longitude(self) -> NDArray[np.float64]:
        return self._longitude

    @property
    def area_weights(self) -> Tensor:
        return self._weights.clone()

    @cached_property
    def _weights(self) -> Tensor:
        constant = torch.tensor([math.sqrt(4 * math.pi)], dtype=torch.float64)
        weights = self._arrange(self._adjoint_quadrature(constant))
        if not self._repeated:
            return weights
        ends = weights[:, :1] / 2
        return torch.cat([ends, weights[:, 1:-1], ends], dim=-1)

    def _arrange(self, values: Tensor) -> Tensor:
        """From north to south and eastward, without a repeated column, to the user's layout."""
        values = values.flip(self._reversed_axes)
        return torch.cat([values, values[..., :1]], dim=-1) if self._repeated else values

    def _restore(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`_arrange`, which ignores a repeated column."""
        return values[..., : self._nlon].flip(self._reversed_axes)

    def _arrange_transposed(self, values: Tensor) -> Tensor:
        if self._repeated:
            first = values[..., :1] + values[..., -1:]
            values = torch.cat([first, values[..., 1:-1]], dim=-1)
        return values.flip(self._reversed_axes)

    @property
    def _reversed_axes(self) -> list[int]:
        return [-2] * self._south_up + [-1] * self._westward

    def _synthesis(self, a: Tensor, spin: int = 0) -> Tensor:
        packed, lmax = _packed.pack(a), _packed.band_limit(a)
        maps = _packed.empty_maps(packed, self._rectangle)
        pairs = (_packed.components(x, spin) for x in (packed, maps))
        for alm, out in zip(*pairs, strict=True):
            ducc0.sht.synthesis_2d(alm=alm, map=out, lmax=lmax, **self._options(spin))
        return self._arrange(_packed.from_maps(maps, a, self._rectangle))

    def _adjoint(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        maps = _packed.to_maps(self._arrange_transposed(values), self._rectangle)
        packed = _packed.empty(maps, lmax)
        pairs = (_packed.components(x, spin) for x in (packed, maps))
        for out, field in zip(*pairs, strict=True):
            ducc0.sht.adjoint_synthesis_2d(alm=out, map=field, lmax=lmax, **self._options(spin))
        return _packed.unpack(packed, values, 2)

    def _analysis(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        return linear(
            self._restore(values),
            lambda v: self._quadrature(v, lmax, spin),
            lambda a: self._adjoint_quadrature(a, spin),
        )

    def _quadrature(self, values: Tensor, lmax: int, spin: int) -> Tensor:
        maps = _packed.to_maps(values, self._rectangle)
        orders, length = self._table_shape(lmax)
        table = np.empty_like(_packed.empty(maps, 0), shape=(len(maps), 1, orders * length))
        pairs = (_packed.components(x, spin) for x in (table, maps))
        for out, field in zip(*pairs, strict=True):
            ducc0.sht.analysis_2d(alm=out, map=field, **self._table_options(lmax, spin))
        m, ell = np.triu_indices(lmax + 1)
        return _packed.unpack(table[..., m * length + ell], values, 2)

    def _adjoint_quadrature(self, a: Tensor, spin: int = 0) -> Tensor:
        packed, lmax = _packed.pack(a), _packed.band_limit(a)
        orders, length = self._table_shape(lmax)
        table = np.zeros_like(packed, shape=(len(packed), 1, orders * length))
        m, ell = np.triu_indices(lmax + 1)
        table[..., m * length + ell] = packed
        maps = _packed.empty_maps(packed, self._rectangle)
        pairs = (_packed.components(x, spin) for x in (table, maps))
        for alm, out in zip(*pairs, strict=True):
            ducc0.sht.adjoint_analysis_2d(alm=alm, map=out, **self._table_options(lmax, spin))
        return _packed.from_maps(maps, a, self._rectangle)

    def _table_shape(self, lmax: int) -> tuple[int, int]:
        """Orders and degrees, m ≤ lmax and ℓ up to what the analysis has to work with.

        At a band limit below its largest, ducc0 thins out the colatitudes of these geometries,
        and higher degrees of the field would fall upon the lower ones.
        """
        thinned = self.geometry in ("CC", "F1", "MW", "MWflip")
        return lmax + 1, (self.max_lmax if thinned else lmax) + 1

    def _table_options(self, lmax: int, spin: int) -> dict[str, Any]:
        orders, length = self._table_shape(lmax)
        starts = np.arange(orders, dtype=np.uint64) * np.uint64(length)
        return {"lmax": length - 1, "mmax": lmax, "mstart": starts, **self._options(spin)}

    @property
    def _rectangle(self) -> tuple[int, int]:
        return self.shape[0], self._nlon

    def _options(self, spin: int) -> dict[str, Any]:
        return {
            "spin": spin,
            "geometry": self.geometry,
            "phi0": self._phi0,
            "nthreads": _packed.threads(),
        }


def _nominal_colatitudes(geometry: str, n: int) -> NDArray[np.float64]:
    """Colatitudes of one of ducc0's geometries, in degrees from north to south."""
    i = np.arange(n)
    match geometry:
        case "GL":
            return np.degrees(ducc0.misc.GL_thetas(n))
        case "CC":
            return 180 * i / max(n - 1, 1)
        case "F1":
            return 180 * (i + 0.5) / n
        case "MW":
            return 180 * (2 * i + 1) / (2 * n - 1)
        case "MWflip":
            return 360 * i / (2 * n - 1)
        case "DH":
            return 180 * i / n
        case "F2":
            return 180 * (i + 1) / (n + 1)
    raise AssertionError(geometry)


def _max_degree(geometry: str, n: int) -> int:
    """Largest degree the quadrature in colatitude is exact for."""
    match geometry:
        case "CC":
            return n - 2
        case "DH":
            return n // 2 - 1
        case "F2":
            return (n - 1) // 2
    return n - 1


def _recognise(colatitude: NDArray[np.float64]) -> str:
    """Name of the geometry whose colatitudes (degrees, north to south) these are.

    Raises:
        ValueError: they belong to none.
    """
    n = len(colatitude)
    step = 180 / n
    for geometry in ("GL", "CC", "F1", "MW", "MWflip", "DH", "F2"):
        deviation = np.abs(colatitude - _nominal_colatitudes(geometry, n)).max()
        if _max_degree(geometry, n) >= 0 and deviation <= _TOLERANCE * step:
            return geometry
    latitude = 90 - colatitude
    raise ValueError(
        f"the {n} latitudes from {latitude[0]:g} to {latitude[-1]:g} degrees are not those of a"
        " regular global grid (equidistant from pole to pole with or without the poles, or"
        " Gauss-Legendre), so no quadrature is exact on them: interpolate to such a grid first,"
        " or use Points for synthesis alone"
    )


def _full_circle(longitude: NDArray[np.float64]) -> tuple[bool, bool]:
    """Whether the first meridian is repeated at the end, and whether longitudes run west.

    Raises:
        ValueError: the longitudes are not equidistant on the full circle.
    """
    n = len(longitude)
    # Files may wrap from 359 to 0 or from 180 to −180 anywhere along the axis.
    steps = 180 - (180 - np.diff(longitude)) % 360
    westward = bool(steps.sum() < 0)
    for repeated in (False, True):
        step = 360 / max(n - repeated, 1) * (-1 if westward else 1)
        unwrapped = longitude[0] + np.concatenate([[0.0], np.cumsum(steps)])
        deviation = np.abs(unwrapped - longitude[0] - step * np.arange(n)).max()
        if deviation <= _TOLERANCE * abs(step) and n - repeated >= 1:
            return repeated, westward
    raise ValueError(
        f"the {n} longitudes from {longitude[0]:g} to {longitude[-1]:g} degrees are not"
        " equidistant around the full circle: the grid is regional or irregular; interpolate to"
        " a global regular grid first, or use Points for synthesis alone"
    )
