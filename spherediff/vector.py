"""Vector fields on the sphere by stream function ψ and velocity potential χ.

With λ longitude, φ latitude and k the outward normal of the unit sphere, every tangent field is

    (u, v) = k × ∇ψ + ∇χ,    u = ∂_λχ/cos φ − ∂_φψ  eastward,    v = ∂_φχ + ∂_λψ/cos φ  northward.

Its coefficients are, in the layout of :mod:`spherediff.harmonics`,

    E_ℓm = √(ℓ(ℓ+1)) χ_ℓm,    B_ℓm = √(ℓ(ℓ+1)) ψ_ℓm,    ℓ ≥ 1,

those of the orthonormal vector harmonics ∇Y_i/√(ℓ(ℓ+1)) and k × ∇Y_i/√(ℓ(ℓ+1)) (Barrera, Estévez
& Giraldo 1985, Eur. J. Phys. 6, 287), or spin-1 harmonics, so that

    ∫ (u² + v²) = Σ_i E_i² + B_i².

E is the divergent part and B the rotational one: on a sphere of radius R the vorticity ζ = Δψ and
the divergence δ = Δχ have the coefficients −√(ℓ(ℓ+1)) B_ℓm/R and −√(ℓ(ℓ+1)) E_ℓm/R.  Degree 0 is
empty: synthesis ignores it and analysis sets it to zero.

u and v by themselves are no smooth scalar fields: at a pole one and the same wind has another u and
v on every meridian, and their scalar coefficients decay slowly.  E and B are free of that, and turn
like those of scalar fields when the sphere does.

All transforms are made by ducc0, whose pair (V_θ, V_φ) of spin 1 is (−v, u).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spherediff import harmonics
from spherediff._linear import linear
from spherediff.grids import Grid

EARTH_RADIUS = 6_371_008.8
"""Mean radius of the Earth, metres."""


class VectorTransform:
    """The three linear maps of a :class:`~spherediff.grids.Grid`, for vector fields on it.

    Coefficients have shape (..., 2, (lmax+1)²), E before B, and values (..., 2, *grid.shape), the
    eastward before the northward component.  Batched over the leading axes, in float32 and
    float64, and differentiable as the grids' own transforms are.

    Args:
        grid: where values are given or wanted.

    Attributes:
        grid: the same.
        shape: (2, *grid.shape), that of one field's values.
        max_lmax: the largest band limit that :meth:`analysis` recovers; −1 if there is none.

    Raises:
        TypeError: ``grid`` is none of :mod:`spherediff.grids`.
    """

    def __init__(self, grid: Grid) -> None:
        if not isinstance(grid, Grid):
            raise TypeError(
                f"expected HEALPix, GaussLegendre, LatLon or Points, got {type(grid).__name__}:"
                " there are no vector transforms for it"
            )
        self.grid = grid
        self.shape = (2, *grid.shape)
        self.max_lmax = grid.max_lmax

    def __repr__(self) -> str:
        return f"VectorTransform({self.grid!r})"

    def synthesis(self, a: Tensor) -> Tensor:
        """Values of the field with coefficients ``a``: (..., 2, n) → (..., 2, *grid.shape).

        Args:
            a: E and B, shape (..., 2, (lmax+1)²), lmax ≥ 1, float32 or float64.

        Raises:
            TypeError: ``a`` is not float32 or float64.
            ValueError: another shape.
        """
        lmax = _band_limit(a)
        return linear(a, self._synthesis, lambda values: self._adjoint(values, lmax))

    def adjoint(self, values: Tensor, lmax: int) -> Tensor:
        """Transpose of :meth:`synthesis`: (..., 2, *grid.shape) → (..., 2, (lmax+1)²).

        Args:
            values: u and v, shape (..., 2, *grid.shape), float32 or float64.
            lmax: band limit of the result, at least 1; no upper limit.

        Raises:
            TypeError: ``values`` is not float32 or float64.
            ValueError: another shape, or ``lmax`` below 1.
        """
        self._require_values(values, lmax)
        return linear(values, lambda v: self._adjoint(v, lmax), self._synthesis)

    def analysis(self, values: Tensor, lmax: int) -> Tensor:
        """Coefficients of the field with these values: (..., 2, *grid.shape) → (..., 2, n).

        Exact on fields of band limit up to ``max_lmax``; on HEALPix by least squares.

        Args:
            values: u and v, shape (..., 2, *grid.shape), float32 or float64, all finite.
            lmax: band limit of the result, from 1 to ``max_lmax``.

        Warns:
            UserWarning: on HEALPix, the iteration did not converge; the message has the residual.

        Raises:
            TypeError: ``values`` is not float32 or float64.
            ValueError: another shape; ``lmax`` out of range; ``values`` holds NaN or infinities.
        """
        self._require_values(values, lmax)
        values = self.grid._analysable(values, lmax)
        return self.grid._analysis(_to_ducc(values, self._axis), lmax, spin=1)

    def _synthesis(self, a: Tensor) -> Tensor:
        return _from_ducc(self.grid._synthesis(a, spin=1), self._axis)

    def _adjoint(self, values: Tensor, lmax: int) -> Tensor:
        return self.grid._adjoint(_to_ducc(values, self._axis), lmax, spin=1)

    @property
    def _axis(self) -> int:
        """Of the two components among the axes of values."""
        return -len(self.shape)

    def _require_values(self, values: Tensor, lmax: int) -> None:
        self.grid._require_values(values, lmax)
        if values.ndim < len(self.shape) or values.shape[self._axis] != 2:
            raise ValueError(
                f"expected eastward and northward components of shape (..., "
                f"{', '.join(map(str, self.shape))}) on {self.grid!r}, got {tuple(values.shape)}"
            )
        _require_degree_one(lmax)


def vorticity(a: Tensor, radius: float = EARTH_RADIUS) -> Tensor:
    """Coefficients of the relative vorticity ζ = k·∇×(u, v), of scalar fields.

    Args:
        a: E and B of a wind in m/s, shape (..., 2, n).
        radius: of the sphere, m.

    Returns:
        Shape (..., n), s⁻¹.

    Raises:
        TypeError: ``a`` is not float32 or float64.
        ValueError: another shape.
    """
    return -_root(a) * a[..., 1, :] / radius


def divergence(a: Tensor, radius: float = EARTH_RADIUS) -> Tensor:
    """Coefficients of the divergence δ = ∇·(u, v), s⁻¹; otherwise as :func:`vorticity`."""
    return -_root(a) * a[..., 0, :] / radius


def stream_function(a: Tensor, radius: float = EARTH_RADIUS) -> Tensor:
    """Coefficients of ψ, m²/s, with mean zero; otherwise as :func:`vorticity`."""
    return radius * _over_root(a, 1)


def velocity_potential(a: Tensor, radius: float = EARTH_RADIUS) -> Tensor:
    """Coefficients of χ, m²/s, with mean zero; otherwise as :func:`vorticity`."""
    return radius * _over_root(a, 0)


def _root(a: Tensor) -> Tensor:
    """√(ℓ(ℓ+1)) of every coefficient, the square root of the spectrum of −Δ."""
    ell = harmonics.degrees(_band_limit(a)).to(a)
    return (ell * (ell + 1)).sqrt()


def _over_root(a: Tensor, component: int) -> Tensor:
    root = _root(a)
    return torch.where(root > 0, a[..., component, :] / root.clamp_min(1), 0)


def _band_limit(a: Tensor) -> int:
    if a.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected float32 or float64 coefficients, got {a.dtype}; convert them")
    if a.ndim < 2 or a.shape[-2] != 2:
        raise ValueError(
            "expected coefficients E and B of a vector field, shape (..., 2, (lmax+1)²), got"
            f" {tuple(a.shape)}"
        )
    lmax = harmonics.band_limit(a.shape[-1])
    _require_degree_one(lmax)
    return lmax


def _require_degree_one(lmax: int) -> None:
    if lmax < 1:
        raise ValueError(f"a vector field has no degree 0: expected lmax of at least 1, got {lmax}")


def _from_ducc(values: Tensor, axis: int) -> Tensor:
    theta, phi = values.unbind(axis)
    return torch.stack([phi, -theta], axis)


def _to_ducc(values: Tensor, axis: int) -> Tensor:
    u, v = values.unbind(axis)
    return torch.stack([-v, u], axis)
