"""The exact denoiser of Gaussian data."""

from __future__ import annotations

import torch
from torch import Tensor

from spherediff.covariance import Covariance
from spherediff.denoise.base import Denoiser, require_finite
from spherediff.gaussian import check_coefficients
from spherediff.process import ForwardProcess


class GaussianDenoiser(Denoiser):
    """Data N(μ, S): m = μ + Sα(αSα + σ²)⁻¹(x − αμ).

    Args:
        process: the forward process.
        variance: variance per coefficient, shape (n,) or (channels, n); or
        covariance: a diagonal plus low-rank :class:`~spherediff.covariance.Covariance`.
        mean: μ, shape of one event; zero if not given.

    Raises:
        TypeError: not exactly one of ``variance`` and ``covariance``.
        ValueError: shapes that do not fit the process, or numbers that are not finite.
    """

    def __init__(
        self,
        process: ForwardProcess,
        variance: Tensor | None = None,
        *,
        covariance: Covariance | None = None,
        mean: Tensor | None = None,
    ) -> None:
        if (variance is None) == (covariance is None):
            raise TypeError("give exactly one of variance and covariance")
        self.process = process
        place = {"device": process.field.device, "dtype": process.field.dtype}
        if covariance is None:
            assert variance is not None
            check_coefficients(process.field, variance, "variance")
            covariance = Covariance(variance.to(**place).expand(process.event_shape))
        if covariance.event_shape != process.event_shape:
            raise ValueError(
                f"expected a covariance of fields of shape {process.event_shape}, "
                f"got {covariance.event_shape}"
            )
        self.covariance = Covariance(covariance.diagonal.to(**place), covariance.factor.to(**place))
        self.mean = torch.zeros(process.event_shape, **place) if mean is None else mean.to(**place)
        check_coefficients(process.field, self.mean, "mean")
        require_finite(self.mean, "mean")

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t) = μ + Sα(αSα + σ²)⁻¹(x − αμ)."""
        check_coefficients(self.process.field, x, "denoiser")
        alpha, sigma = self.process.marginal(t)
        residual = self.covariance.solve(alpha, sigma.square(), x - alpha * self.mean)
        return self.mean + self.covariance.matmul(alpha * residual)

    def log_density_ratio(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log h_t(x) = log dN(αμ, αSα + σ²)/dN(0, C)(x), shape (*batch,).

        At t = 0 it is that of the data, all of whose variances must then be positive.  Densities
        are taken with respect to γ, so the difference of two such numbers has a limit as lmax → ∞
        where the measures are equivalent.
        """
        field = self.process.field
        alpha, sigma = self.process.marginal(t)
        axes = tuple(range(-len(field.event_shape), 0))
        centred = x - alpha * self.mean
        residual = self.covariance.solve(alpha, sigma.square(), centred)
        log_det = self.covariance.log_det(alpha, sigma.square())
        log_det = log_det - field.variance_per_coefficient.log().sum()
        quadratic = (centred * residual).sum(axes) - field.whiten(x).square().sum(axes)
        return -0.5 * (quadratic + log_det)
