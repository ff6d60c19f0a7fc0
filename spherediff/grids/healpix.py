"""HEALPix maps: synthesis by ducc0, analysis by conjugate gradients.

The pixels of one ring are equidistant and the rings come in mirrored pairs, but no exact
quadrature belongs to them.  The analysis is the pseudo-inverse, the solution of the normal
equations

    (SᵀS) a = Sᵀ v,

by conjugate gradients.  SᵀS is close to npix/4π times the identity as long as lmax ≤ 2·nside,
where it is well conditioned; above that the analysis is refused.
"""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import Any, NamedTuple

import ducc0
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherediff._linear import conjugate_gradients, linear
from spherediff.grids import _packed
from spherediff.grids.grid import Grid

_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
_MAX_ITERATIONS = 100

# Numbers of rings × orders that are held at once: more are no faster, but take more memory.
_LARGEST_SUMS = 2_200_000

# Bytes of them: glibc returns blocks from 32 MiB on to the system at once, and every call would
# have all their pages mapped anew.
_LARGEST_BLOCK = 30_000_000


class Solution(NamedTuple):
    """Coefficients by least squares, and how well they solve the normal equations.

    Attributes:
        coefficients: shape (..., (lmax+1)²).
        residual: ‖Sᵀ(v − S a)‖ / ‖Sᵀ v‖ of each field, shape (...).
        iterations: number of iterations of conjugate gradients.
    """

    coefficients: Tensor
    residual: Tensor
    iterations: int


class HEALPix(Grid):
    """HEALPix pixels; ``shape`` is (12 nside²,) and ``max_lmax`` is 2·nside.

    Args:
        nside: resolution parameter, at least 1; a power of two when nested.
        ordering: ``"ring"`` or ``"nested"``.

    Raises:
        ValueError: ``nside`` or ``ordering`` is none of these.
    """

    def __init__(self, nside: int, ordering: str = "ring") -> None:
        if nside < 1:
            raise ValueError(f"nside must be at least 1, got {nside}")
        if ordering not in ("ring", "nested"):
            raise ValueError(f"ordering must be 'ring' or 'nested', got {ordering!r}")
        if ordering == "nested" and nside & (nside - 1):
            raise ValueError(
                f"nested ordering needs an nside that is a power of two, got {nside};"
                " use ordering='ring'"
            )
        self.nside = nside
        self.ordering = ordering
        self.shape = (12 * nside**2,)
        self.max_lmax = 2 * nside
        self._rings = ducc0.healpix.Healpix_Base(nside, "RING").sht_info()

    def __repr__(self) -> str:
        return f"HEALPix(nside={self.nside}, ordering={self.ordering!r})"

    @cached_property
    def _angles(self) -> NDArray[np.float64]:
        scheme = "RING" if self.ordering == "ring" else "NEST"
        return ducc0.healpix.Healpix_Base(self.nside, scheme).pix2ang(np.arange(self.shape[0]))

    @property
    def latitude(self) -> NDArray[np.float64]:
        return 90.0 - np.degrees(self._angles[:, 0])

    @property
    def longitude(self) -> NDArray[np.float64]:
        return np.degrees(self._angles[:, 1])

    @property
    def area_weights(self) -> Tensor:
        npix = self.shape[0]
        return torch.full((npix,), 4 * math.pi / npix, dtype=torch.float64)

    @cached_property
    def _ring_of_nested(self) -> Tensor:
        base = ducc0.healpix.Healpix_Base(self.nside, "NEST")
        return torch.from_numpy(base.nest2ring(np.arange(self.shape[0])))

    @cached_property
    def _nested_of_ring(self) -> Tensor:
        base = ducc0.healpix.Healpix_Base(self.nside, "NEST")
        return torch.from_numpy(base.ring2nest(np.arange(self.shape[0])))

    def _synthesis(self, a: Tensor, spin: int = 0) -> Tensor:
        packed, lmax = _packed.pack(a), _packed.band_limit(a)
        maps = _packed.empty_maps(packed, self.shape)
        alm, out = (_packed.components(x, spin) for x in (packed, maps))
        for rings in self._ring_bands(lmax, (1 + spin) * packed.itemsize):
            ducc0.sht.synthesis(alm=alm, map=out, **rings, **_options(lmax, spin))
        values = _packed.from_maps(maps, a, self.shape)
        if self.ordering == "nested":
            values = values.index_select(-1, self._ring_of_nested.to(values.device))
        return values

    def _ring_bands(self, lmax: int, itemsize: int) -> list[dict[str, NDArray[Any]]]:
        """The rings in a few parts, mirrored pairs together, which share their Legendre functions.

        ducc0 holds Σ_ℓ λ_ℓm(θ) a_ℓm for all rings and orders of a call.
        """
        count = len(self._rings["theta"])
        largest = min(_LARGEST_SUMS, _LARGEST_BLOCK / itemsize)
        parts = math.ceil(count * (lmax + 1) / largest)
        northern = np.array_split(np.arange((count + 1) // 2), parts)
        bands = [np.union1d(north, count - 1 - north) for north in northern if len(north)]
        return [{key: column[band] for key, column in self._rings.items()} for band in bands]

    def _adjoint(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        if self.ordering == "nested":
            values = values.index_select(-1, self._nested_of_ring.to(values.device))
        maps = _packed.to_maps(values, self.shape)
        packed = _packed.empty(maps, lmax)
        field, out = (_packed.components(x, spin) for x in (maps, packed))
        ducc0.sht.adjoint_synthesis(map=field, alm=out, **self._rings, **_options(lmax, spin))
        return _packed.unpack(packed, values, 1)

    def analysis(
        self,
        values: Tensor,
        lmax: int,
        *,
        tolerance: float | None = None,
        max_iterations: int = _MAX_ITERATIONS,
    ) -> Tensor:
        """Least-squares coefficients: (..., npix) → (..., (lmax+1)²).

        Args:
            values: shape (..., npix), float32 or float64, all finite.
            lmax: band limit of the result, at most 2·nside.
            tolerance: relative residual at which the iteration stops; by default 10⁻¹³ in
                float64 and 10⁻⁶ in float32.
            max_iterations: largest number of iterations.

        Warns:
            UserWarning: the tolerance was not reached; the message has the residual.

        Raises:
            TypeError: ``values`` is not float32 or float64.
            ValueError: the trailing axis is not npix; ``lmax`` is negative or larger than
                2·nside; ``values`` holds NaN or infinities.
        """
        return self.solve(
            values, lmax, tolerance=tolerance, max_iterations=max_iterations
        ).coefficients

    def solve(
        self,
        values: Tensor,
        lmax: int,
        *,
        tolerance: float | None = None,
        max_iterations: int = _MAX_ITERATIONS,
    ) -> Solution:
        """As :meth:`analysis`, with the residual of each field and the number of iterations."""
        return self._least_squares(
            self._analysable(values, lmax), lmax, 0, tolerance, max_iterations
        )

    def _analysis(self, values: Tensor, lmax: int, spin: int = 0) -> Tensor:
        return self._least_squares(values, lmax, spin, None, _MAX_ITERATIONS).coefficients

    def _least_squares(
        self, values: Tensor, lmax: int, spin: int, tolerance: float | None, max_iterations: int
    ) -> Solution:
        """(SᵀS)⁻¹ Sᵀ v of checked values, with spin 1 for both components together."""
        tolerance = _TOLERANCE[values.dtype] if tolerance is None else tolerance
        pixel_area = 4 * math.pi / self.shape[0]
        kind = "vector analysis" if spin else "analysis"
        reports: list[Solution] = []

        def synthesis(a: Tensor) -> Tensor:
            return self._synthesis(a, spin)

        def adjoint(v: Tensor) -> Tensor:
            return self._adjoint(v, lmax, spin)

        def normal(x: Tensor) -> Tensor:
            return _unknowns(adjoint(synthesis(_whole(x, spin))), spin)

        def inverse(b: Tensor) -> Tensor:
            b = _unknowns(b, spin)
            found = conjugate_gradients(normal, b, tolerance, max_iterations, scale=pixel_area)
            if found.iterations == max_iterations and bool(
                (~(found.residual <= 2 * tolerance)).any()  # rounding adds to it at the end
            ):
                warnings.warn(
                    f"{self!r} {kind} at lmax = {lmax} did not converge: relative residual"
                    f" {float(found.residual.max()):.1e} after {max_iterations} iterations,"
                    f" tolerance {tolerance:.1e}",
                    stacklevel=2,
                )
            solution = Solution(_whole(found.solution, spin), found.residual, found.iterations)
            reports.append(solution)
            return solution.coefficients

        coefficients = linear(linear(values, adjoint, synthesis), inverse, inverse)
        return Solution(coefficients, reports[0].residual, reports[0].iterations)


def _options(lmax: int, spin: int) -> dict[str, Any]:
    return {"lmax": lmax, "spin": spin, "theta_interpol": True, "nthreads": _packed.threads()}


def _unknowns(a: Tensor, spin: int) -> Tensor:
    """What one system solves for: with spin 1 the degrees from 1 on, since S ignores degree 0."""
    return a[..., 1:].flatten(-2) if spin else a


def _whole(x: Tensor, spin: int) -> Tensor:
    """The transpose of :func:`_unknowns`: coefficients with zeros at degree 0."""
    return torch.nn.functional.pad(x.unflatten(-1, (2, -1)), (1, 0)) if spin else x
