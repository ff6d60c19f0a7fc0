"""The local amplitude of anomalies, a = K x: storms are stronger over the storm tracks.

K multiplies a field by a smooth positive map σ and keeps the degrees up to lmax.  With S the
synthesis on a Gauss–Legendre grid, W its quadrature weights and b the coefficients of log σ up to
a degree of resolution,

    K = SᵀWσS,    σ = exp(Σ_i b_i Y_i),    b_0 = 0,

a symmetric positive definite matrix with eigenvalues between min σ and max σ, the identity if σ is
resolved to degree 0.  So K⁻¹ exists for every field, and conjugate gradients find it.  What is
left, x = K⁻¹a, has about the same variance everywhere.

Whether that brings a Gaussian with independent coefficients closer to the archive depends on the
variable: rain and temperature vary by an amplitude of their own from place to place, while a
meandering jet varies by its gradients, and its coefficients are nearer to independence as they are.
So σ is resolved to the degree under which maps that had no part in it are likeliest,

    log p(a) = −½ Σ_i [(x_i − μ_i)²/v_i + log 2πv_i] − log det K.

What remains of it is kept in the covariance.  Shrinking correlations makes the local variance
diag(S Cov Sᵀ) more even than the archive's, although this is known far better than any correlation.
:func:`with_local_variance` gives it back: rows of the factor U are multiplied by the smooth map
√(archive's/own local variance), and coefficients then scaled to their variances, a few times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spherediff import harmonics
from spherediff._linear import conjugate_gradients
from spherediff.covariance import Covariance, shrunk_variance
from spherediff.grids import GaussLegendre, Grid

_TOLERANCE = 1e-12
_ITERATIONS = 10_000
_SMALLEST = 1e-3  # of a local standard deviation, relative to the largest
_MATCHINGS = 3  # each leaves less than a third of the difference
_KEPT = 1e-3  # of D, by which S stays invertible as D + UᵀU
_ROWS = 256  # fields evaluated at once
_JUDGED = 5  # the last fifth of the maps judges
_JUDGED_LMAX = 31  # by degrees up to this one: matrices of at most 1024² numbers


class Amplitude:
    """K for each channel, acting on coefficients of shape (samples, channels, n).

    Args:
        log_std: b, shape (channels, (degree+1)²); b_0 = 0.
    """

    def __init__(self, log_std: Tensor) -> None:
        self.log_std = log_std.double().contiguous()

    @classmethod
    def fit(cls, anomalies: Tensor, degree: int) -> Amplitude:
        """The map of local standard deviations, its logarithm smoothed to ``degree``.

        Args:
            anomalies: float64, shape (samples, channels, n).
            degree: resolution, from 0 (the same everywhere) to the band limit.

        Raises:
            ValueError: a degree outside that range.
        """
        lmax = harmonics.band_limit(anomalies.shape[-1])
        if not 0 <= degree <= lmax:
            raise ValueError(
                f"the local amplitude must be resolved to a degree from 0 to lmax = {lmax}, "
                f"got {degree}"
            )
        grid = GaussLegendre(lmax)
        mean = grid.synthesis(anomalies.mean(0))
        square = torch.zeros_like(mean)
        for a in anomalies:
            square += (grid.synthesis(a) - mean).square()
        std = (square / len(anomalies)).sqrt()
        log_std = std.maximum(_SMALLEST * std.amax((-2, -1), keepdim=True)).log()
        b = harmonics.resize(grid.analysis(log_std, lmax), degree)
        b[:, 0] = 0
        return cls(b)

    @classmethod
    def likeliest(cls, anomalies: Tensor, degree: int) -> Amplitude:
        """For each channel the map of :meth:`fit` that held-out maps speak for.

        σ is resolved to ``degree``, to a half or a quarter of it, or is one everywhere, whichever
        makes the last fifth of the maps likeliest given the others; then it is fitted to all maps.

        Args:
            anomalies: float64, shape (samples, channels, n), in the order of time.
            degree: the highest degree of resolution.

        Raises:
            ValueError: a degree outside the range from 0 to the band limit.
        """
        finest = cls.fit(anomalies, degree)
        if degree == 0:
            return finest
        lmax = min(harmonics.band_limit(anomalies.shape[-1]), _JUDGED_LMAX)
        judged = harmonics.resize(anomalies, lmax)
        candidates = sorted({0, degree // 4, degree // 2, degree})
        resolved = [
            max(candidates, key=lambda d: _held_out_log_likelihood(a, min(d, lmax)))
            for a in judged.split(1, dim=1)
        ]
        known = harmonics.degrees(degree)
        return cls(finest.log_std * (known <= torch.tensor(resolved)[:, None]))

    def multiply(self, x: Tensor) -> Tensor:
        """K x, float64, shape of ``x``."""
        if self._is_identity:
            return x.double()
        grid, sigma = self._on_grid(harmonics.band_limit(x.shape[-1]))
        return self._multiply(x.double(), grid, sigma)

    def divide(self, a: Tensor) -> Tensor:
        """K⁻¹ a, float64, shape of ``a``."""
        if self._is_identity:
            return a.double()
        grid, sigma = self._on_grid(harmonics.band_limit(a.shape[-1]))
        return conjugate_gradients(
            lambda x: self._multiply(x, grid, sigma), a.double(), _TOLERANCE, _ITERATIONS, 1.0
        ).solution

    @property
    def _is_identity(self) -> bool:
        return not self.log_std.any()

    def map(self, grid: Grid) -> Tensor:
        """σ on a grid, shape (channels, *grid.shape)."""
        return grid.synthesis(self.log_std).exp()

    def _on_grid(self, lmax: int) -> tuple[GaussLegendre, Tensor]:
        # fine enough that the product of two fields up to lmax with σ to its degree is exact
        degree = harmonics.band_limit(self.log_std.shape[-1])
        grid = GaussLegendre(lmax + math.ceil(degree / 2))
        return grid, self.map(grid) * grid.area_weights

    def _multiply(self, x: Tensor, grid: GaussLegendre, weighted_sigma: Tensor) -> Tensor:
        lmax = harmonics.band_limit(x.shape[-1])
        return grid.adjoint(weighted_sigma * grid.synthesis(x), lmax)


def with_local_variance(covariance: Covariance, x: Tensor, channels: Sequence[int]) -> Covariance:
    """A covariance with the local variances of fields, smoothed to half the band limit.

    What D has in the channels, but for a thousandth, becomes rows of U, (1, 0, …), (0, 1, 0, …), …
    times √D, so that their variance is multiplied too.

    Args:
        covariance: D + UᵀU of fields (channels, n).
        x: the fields, shape (samples, channels, n).
        channels: those to change; the variances of all coefficients stay as they are.
    """
    if not channels:
        return covariance
    lmax = harmonics.band_limit(x.shape[-1])
    grid = GaussLegendre(lmax)
    wanted = grid.synthesis(x.double()).var(0).log()
    variance, chosen = covariance.variance, torch.zeros(x.shape[1], 1, dtype=torch.float64)
    chosen[list(channels)] = 1
    moved = (1 - _KEPT) * chosen * covariance.diagonal.double()
    own = torch.diag(moved.sqrt().flatten())
    factor = torch.cat([covariance.factor.flatten(1), own[own.any(1)]])
    factor = torch.linalg.qr(factor, mode="r").R.unflatten(1, variance.shape)
    covariance = Covariance(covariance.diagonal - moved, factor)
    for _ in range(_MATCHINGS):
        excess = wanted - local_variance(covariance, grid).log()
        b = 0.5 * chosen * harmonics.resize(grid.analysis(excess, lmax), lmax // 2)
        b[:, 0] = 0
        factor = Amplitude(b).multiply(covariance.factor)
        scale = (variance / (covariance.diagonal + factor.square().sum(0))).sqrt()
        covariance = Covariance(scale.square() * covariance.diagonal, scale * factor)
    return covariance


def local_variance(covariance: Covariance, grid: GaussLegendre) -> Tensor:
    """Variance of the field at every point of a grid, shape (channels, nlat, nlon), float64."""
    n = covariance.diagonal.shape[-1]
    D, eye = covariance.diagonal.double(), torch.eye(n, dtype=torch.float64)
    total = torch.zeros(len(D), *grid.shape, dtype=torch.float64)
    for part in torch.arange(n).split(_ROWS):
        total += torch.tensordot(D[:, part], grid.synthesis(eye[part]).square(), 1)
    for U in covariance.factor.split(_ROWS):
        total += grid.synthesis(U.double()).square().sum(0)
    return total


def _held_out_log_likelihood(a: Tensor, degree: int) -> float:
    """Mean of log p over the last maps, up to a constant; μ, v and K from the others."""
    cut = len(a) - len(a) // _JUDGED
    K = Amplitude.fit(a[:cut], degree)
    x = K.divide(a)
    v = shrunk_variance(x[:cut])
    surprise = (x[cut:] - x[:cut].mean(0)).square() / v + v.log()
    eye = torch.eye(a.shape[-1], dtype=torch.float64)
    log_det = torch.linalg.slogdet(K.multiply(eye[:, None])[:, 0]).logabsdet
    return float(-0.5 * surprise.sum((-2, -1)).mean() - log_det)
