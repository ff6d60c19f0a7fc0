"""Arbitrary points, by ducc0's interpolating transform.

The synthesis is exact to a prescribed tolerance: 3·10⁻¹³ in float64 and 2·10⁻⁶ in float32,
relative to the root mean square of the field, the smallest ducc0 offers.
"""

from __future__ import annotations

from typing import Any

import ducc0
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from spherediff.grids import _packed
from spherediff.grids.grid import Grid

_EPSILON = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 3e-13}


class Points(Grid):
    """Points on the sphere, stations for example; values there, but no analysis.

    Args:
        latitude: degrees north, shape (npoints,), within [−90, 90].
        longitude: degrees east, shape (npoints,), any number of turns.

    Raises:
        ValueError: the two differ in shape, are empty or not one-dimensional, are not finite,
            or a latitude is out of range.
    """

    max_lmax = -1

    def __init__(self, latitude: ArrayLike, longitude: ArrayLike) -> None:
        self._latitude = degrees_axis(latitude, "latitude")
        self._longitude = degrees_axis(longitude, "longitude")
        if self._latitude.shape != self._longitude.shape:
            raise ValueError(
                "expected as many latitudes as longitudes, got"
                f" {len(self._latitude)} and {len(self._longitude)}"
            )
        require_latitudes(self._latitude)
        self.shape = self._latitude.shape
        colatitude = np.radians(90.0 - self._latitude)
        self._locations = np.stack([colatitude, np.radians(self._longitude % 360.0)], axis=-1)

    def __repr__(self) -> str:
        return f"Points({self.shape[0]} points)"

    @property
    def latitude(self) -> NDArray[np.float64]:
        return self._latitude

    @property
    def longitude(self) -> NDArray[np.float64]:
        return self._longitude

    @property
    def area_weights(self) -> Tensor:
        """Arbitrary points carry no quadrature.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self!r} are no quadrature nodes: they have no area weights")

    def _synthesis(self, a: Tensor, spin: int = 0) -> Tensor:
        packed, lmax = _packed.pack(a), _packed.band_limit(a)
        values = _packed.empty_maps(packed, self.shape)
        pairs = (_packed.components(x, spin) for x in (packed, values))
        for alm, out in zip(*pairs, strict=True):
            ducc0.sht.synthesis_general(alm=alm, map=out, **self._options(lmax, spin, values.dtype))
        return _packed.from_maps(values, a, self.shape)

    def _adjoint(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        maps = _packed.to_maps(values, self.shape)
        packed = _packed.empty(maps, lmax)
        pairs = (_packed.components(x, spin) for x in (maps, packed))
        for v, out in zip(*pairs, strict=True):
            ducc0.sht.adjoint_synthesis_general(
                map=v, alm=out, **self._options(lmax, spin, maps.dtype)
            )
        return _packed.unpack(packed, values, 1)

    def _options(self, lmax: int, spin: int, dtype: np.dtype) -> dict[str, Any]:
        return {
            "lmax": lmax,
            "spin": spin,
            "loc": self._locations,
            "epsilon": _EPSILON[dtype],
            "nthreads": _packed.threads(),
        }

    def _analysable(self, values: Tensor, lmax: int) -> Tensor:
        self._require_values(values, lmax)
        raise ValueError(
            f"{self!r} have no analysis: values at scattered points do not determine a field;"
            " use adjoint for the transpose of synthesis, or condition a Gaussian field on them"
        )

    def _analysis(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        raise NotImplementedError


def degrees_axis(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """A one-dimensional, non-empty, finite array of degrees.

    Raises:
        ValueError: it is not.
    """
    axis = np.array(values, dtype=np.float64)
    if axis.ndim != 1 or axis.size == 0:
        raise ValueError(f"expected a one-dimensional, non-empty {what}, got shape {axis.shape}")
    if not np.isfinite(axis).all():
        count = int(np.count_nonzero(~np.isfinite(axis)))
        raise ValueError(f"{count} of {axis.size} values of {what} are NaN or infinite")
    axis.setflags(write=False)
    return axis


def require_latitudes(latitude: NDArray[np.float64]) -> None:
    """Refuse latitudes outside [−90, 90], with a margin for rounding in files.

    Raises:
        ValueError: one is outside.
    """
    worst = float(np.abs(latitude).max())
    if worst > 90.0 + 1e-3:
        raise ValueError(f"latitudes must lie within [-90, 90] degrees, found {worst:g} in size")
