"""What observed places tell of a field, on average over rotations about the axis.

Values at places with colatitudes θ_j and weights w_j, of a field whose degrees were multiplied by
b_ℓ, tell of its coefficients

    HᵀwH = Σ_j w_j b_ℓ Y_{ℓm}(θ_j, φ_j) b_ℓ' Y_{ℓ'm'}(θ_j, φ_j),

which, averaged over rotations about the axis, is a matrix of degrees for each order,

    B_m = Σ_j w_j b_ℓ λ_ℓm(θ_j) b_ℓ' λ_ℓ'm(θ_j),

the same for cosine and sine.  Hidden caps about the poles and bands along the equator are seen by
it as they are, so that 1 + RᵀBR, R = diag(√C_ℓ), which is inverted order by order, preconditions
maps with such gaps at any noise level.  Oh, Spergel & Hinshaw (1999, arXiv astro-ph/9805339) do so
for the low degrees, and leave the others to the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from spherediff import harmonics
from spherediff.grids.gauss_legendre import legendre

_FINEST = 2048  # parts of the meridian that places are told apart by
_AT_ONCE = 128  # latitudes


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


class ZonalInverse:
    """(1 + RᵀBR)⁻¹, acting on white noise (*batch, n).

    Degrees beyond the L of ``std`` are told of each by itself, by the diagonal t.

    Args:
        rings: what is observed, at least one.
        std: √C_ℓ, float64, shape (L+1,).
        beyond: 1 + C_ℓt of every coefficient, shape (n,); counts above degree L.
    """

    def __init__(self, rings: Sequence[Rings], std: Tensor, beyond: Tensor) -> None:
        L = len(std) - 1
        told = zip(*(some.information(std.cpu()) for some in rings), strict=True)
        self._inverse = [_inverse_of_one_plus(torch.stack(parts).sum(0)).to(std) for parts in told]
        self._index = [_of_order(m, L).to(std.device) for m in range(L + 1)]
        self._beyond, self._known = beyond, harmonics.count(L)

    @property
    def claims(self) -> float:
        """How many numbers it takes to be determined up to degree L, tr(1 − P⁻¹)."""
        pairs = zip(self._index, self._inverse, strict=True)
        return sum(len(index) * float((1 - P.diagonal()).sum()) for index, P in pairs)

    def __call__(self, r: Tensor) -> Tensor:
        z = r / self._beyond
        for index, inverse in zip(self._index, self._inverse, strict=True):
            z[..., index] = r[..., index] @ inverse
        return z


def _of_order(m: int, L: int) -> Tensor:
    """Where coefficients of orders m and −m stand, (1 or 2, L+1−m)."""
    ell = torch.arange(m, L + 1)
    return torch.stack([ell * (ell + 1) + order for order in sorted({m, -m})])


def _inverse_of_one_plus(A: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(A + torch.eye(len(A)).to(A)))
