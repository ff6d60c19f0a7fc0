"""What observed places tell of a field, on average over rotations about an axis.

Values at places with colatitudes θ_j and weights w_j, of a field whose degrees were multiplied by
b_ℓ, tell of its coefficients

    HᵀwH = Σ_j w_j b_ℓ Y_{ℓm}(θ_j, φ_j) b_ℓ' Y_{ℓ'm'}(θ_j, φ_j),

which, averaged over rotations about the axis, is a matrix of degrees for each order,

    B_m = Σ_j w_j b_ℓ λ_ℓm(θ_j) b_ℓ' λ_ℓ'm(θ_j),

the same for cosine and sine.  Hidden caps about the poles and bands along the equator are seen by
it as they are, so that 1 + RᵀBR, R = diag(√C_ℓ), which is inverted order by order, preconditions
maps with such gaps at any noise level.  Oh, Spergel & Hinshaw (1999, arXiv astro-ph/9805339) do so
for the low degrees, and leave the others to the diagonal.

A gap may lie about another axis, as that of the Galaxy does on a map of equatorial coordinates.
The axis is taken that most of what is told is alike all about: with u_j = s_j/(1 + s_j), s_j the
signal over the noise of as many values as there are for each u_{ℓm}, and
u_{ℓm} = 4π/m Σ_j u_j Y_{ℓm}(x_j), the direction n of most

    E(n) = Σ_ℓ 4π/(2ℓ+1) (Σ_m u_{ℓm} Y_{ℓm}(n))²,

the power of u that is alike all about n, unless the pole is as good.  Coefficients are then turned
there and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ducc0
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from torch import Tensor

from spherediff import harmonics
from spherediff.grids import HEALPix, Points, _packed
from spherediff.grids._legendre import legendre

_FINEST = 2048  # parts of the meridian that places are told apart by
_AT_ONCE = 128  # latitudes
_SEEN = 32  # degree up to which an axis is looked for
_ADVANTAGE = 0.1  # of E over the pole's, a hundredth of the sphere hidden
_SCATTER = 4  # standard deviations, about, of E at places at random

Array = NDArray[np.float64]


class Rings(NamedTuple):
    """Observed places by their latitude.

    Attributes:
        colatitude: θ in radians, float64, shape (K,).
        weight: Σ w_j of the places at each, shape (K,).
        gain: b_ℓ, shape (lmax+1,).
    """

    colatitude: Tensor
    weight: Tensor
    gain: Tensor

    @classmethod
    def of(cls, latitude: ArrayLike, weight: Tensor, lmax: int) -> Rings:
        """Of values at places: latitudes in degrees, shape (m,), and weights, shape (m,)."""
        degrees = np.asarray(latitude, dtype=np.float64)
        if len(np.unique(degrees)) > _FINEST:
            degrees = (degrees * _FINEST / 180).round() * (180 / _FINEST)
        rings, ring = np.unique(degrees, return_inverse=True)
        total = torch.zeros(len(rings), dtype=torch.float64)
        total.index_add_(0, torch.from_numpy(ring), weight.double().cpu())
        one = torch.ones(lmax + 1, dtype=torch.float64)
        return cls(torch.from_numpy(np.radians(90 - rings)), total, one)

    def information(self, std: Tensor) -> list[Tensor]:
        """R B_m R, (L+1−m, L+1−m), for m = 0 … L ≤ lmax; R = diag(std), std of shape (L+1,)."""
        L = len(std) - 1
        found = [std.new_zeros(L + 1 - m, L + 1 - m) for m in range(L + 1)]
        scale = (std * self.gain[: L + 1])[:, None]
        parts = zip(self.colatitude.split(_AT_ONCE), self.weight.split(_AT_ONCE), strict=True)
        for theta, weight in parts:
            table = legendre(L, theta.numpy()) * weight.sqrt()
            for m, block in enumerate(found):
                root = scale[m:] * table[m, m:]
                block.addmm_(root, root.T)
        return found


class Axis(NamedTuple):
    """A direction that places are told apart by, latitude and longitude in degrees."""

    latitude: float
    longitude: float

    def colatitude(self, latitude: Array, longitude: Array) -> Array:
        """Of places in coordinates of which this is the pole, in degrees."""
        return np.degrees(np.arccos(np.clip(_unit(latitude, longitude) @ _unit(*self), -1, 1)))

    def to_pole(self, a: Tensor) -> Tensor:
        """Coefficients of a field to those of the field with this axis turned to the pole."""
        theta, phi = np.radians([90 - self.latitude, self.longitude])
        return _rotated(a, (-phi, -theta, 0.0))

    def from_pole(self, a: Tensor) -> Tensor:
        """The inverse of :meth:`to_pole`, and its transpose."""
        theta, phi = np.radians([90 - self.latitude, self.longitude])
        return _rotated(a, (0.0, theta, phi))


POLE = Axis(90.0, 0.0)


class Places(NamedTuple):
    """Observed places.

    Attributes:
        latitude: in degrees, shape (m,).
        longitude: in degrees, shape (m,).
        weight: w_j, float64, shape (m,).
        gain: b_ℓ, shape (lmax+1,).
    """

    latitude: Array
    longitude: Array
    weight: Tensor
    gain: Tensor

    def about(self, axis: Axis) -> Rings:
        """By their distance from an axis."""
        latitude = self.latitude
        if axis != POLE:
            latitude = 90 - axis.colatitude(latitude, self.longitude)
        return Rings.of(latitude, self.weight, len(self.gain) - 1)._replace(gain=self.gain)


def axis_of(places: Sequence[Places], std: Tensor) -> Axis:
    """That by whose rotations what places tell of a field varies least, the pole if it does.

    Args:
        places: what is observed, at least one.
        std: √C_ℓ of the field, float64, shape (L+1,).
    """
    told = _told(places, std.cpu())
    count = sum(len(some.weight) for some in places)
    wanted = _ADVANTAGE + 4 * np.pi * _SCATTER * _SEEN / count
    least = _alike(told, POLE) + wanted
    if float(told[1:].square().sum()) < least:
        return POLE
    candidates = HEALPix(16)
    best = int(_power(told, candidates.latitude, candidates.longitude).argmax())
    start = np.array([candidates.latitude[best], candidates.longitude[best]])
    simplex = start + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-9}
    found = minimize(
        lambda x: -_alike(told, _within(x)), start, method="Nelder-Mead", options=options
    )
    return _within(found.x) if -found.fun > least else POLE


def _told(places: Sequence[Places], std: Tensor) -> Tensor:
    """u_{ℓm}, shape ((_SEEN+1)²,)."""
    count = sum(len(some.weight) for some in places)
    total = torch.zeros(harmonics.count(_SEEN), dtype=torch.float64)
    for latitude, longitude, weight, gain in places:
        ell = torch.arange(len(std), dtype=torch.float64)
        variance = ((2 * ell + 1) * (std * gain[: len(std)]).square()).sum() / (4 * np.pi)
        signal = weight.cpu() * variance * max(1.0, count / len(total))
        total += Points(latitude, longitude).adjoint(signal / (1 + signal), _SEEN)
    return total * (4 * np.pi / count)


def _power(told: Tensor, latitude: Array, longitude: Array) -> Tensor:
    """E at directions in degrees, (K,) → (K,)."""
    ell = harmonics.degrees(_SEEN)
    parts = torch.stack([told * (ell == k) / np.sqrt(2 * k + 1) for k in range(1, _SEEN + 1)])
    return 4 * np.pi * Points(latitude, longitude).synthesis(parts).square().sum(0)


def _alike(told: Tensor, axis: Axis) -> float:
    return float(_power(told, np.array([axis.latitude]), np.array([axis.longitude])))


def _within(x: Array) -> Axis:
    """The direction of a latitude that may have passed a pole, and a longitude."""
    X, Y, Z = _unit(x[0], x[1])
    return Axis(
        float(np.degrees(np.arctan2(Z, np.hypot(X, Y)))), float(np.degrees(np.arctan2(Y, X)))
    )


def _unit(latitude: ArrayLike, longitude: ArrayLike) -> Array:
    """(…) → (…, 3)."""
    lat, lon = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)


def _rotated(a: Tensor, angles: tuple[float, float, float]) -> Tensor:
    """Coefficients (*batch, n) of fields turned by ducc0's ψ, ϑ, φ, about z, y and z again."""
    packed, lmax = _packed.pack(a), _packed.band_limit(a)
    turned = np.empty_like(packed)
    for row, out in zip(packed[:, 0], turned[:, 0], strict=True):
        out[:] = ducc0.sht.rotate_alm(row, lmax, *angles)
    return _packed.unpack(turned, a, 1)


class ZonalInverse:
    """(1 + RᵀBR)⁻¹, acting on white noise (*batch, n).

    Degrees beyond the L of ``std`` are told of each by itself, by the diagonal t.

    Args:
        rings: what is observed, at least one.
        std: √C_ℓ, float64, shape (L+1,).
        beyond: 1 + C_ℓt of every coefficient, shape (n,); counts above degree L.
        axis: that the rings are about.
    """

    def __init__(
        self, rings: Sequence[Rings], std: Tensor, beyond: Tensor, axis: Axis = POLE
    ) -> None:
        L = len(std) - 1
        told = zip(*(some.information(std.cpu()) for some in rings), strict=True)
        self._inverse = [_inverse_of_one_plus(torch.stack(parts).sum(0)).to(std) for parts in told]
        self._index = [_of_order(m, L).to(std.device) for m in range(L + 1)]
        self._beyond, self._known, self._axis = beyond, harmonics.count(L), axis

    @property
    def claims(self) -> float:
        """How many numbers it takes to be determined up to degree L, tr(1 − P⁻¹)."""
        pairs = zip(self._index, self._inverse, strict=True)
        return sum(len(index) * float((1 - P.diagonal()).sum()) for index, P in pairs)

    def __call__(self, r: Tensor) -> Tensor:
        z, known = r / self._beyond, r[..., : self._known]
        z[..., : self._known] = (
            self._solve(known)
            if self._axis == POLE
            else self._axis.from_pole(self._solve(self._axis.to_pole(known)))
        )
        return z

    def _solve(self, r: Tensor) -> Tensor:
        z = torch.empty_like(r)
        for index, inverse in zip(self._index, self._inverse, strict=True):
            z[..., index] = r[..., index] @ inverse
        return z


def _of_order(m: int, L: int) -> Tensor:
    """Where coefficients of orders m and −m stand, (1 or 2, L+1−m)."""
    ell = torch.arange(m, L + 1)
    return torch.stack([ell * (ell + 1) + order for order in sorted({m, -m})])


def _inverse_of_one_plus(A: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(A + torch.eye(len(A)).to(A)))
