"""A Gaussian law that a forward process carries along, and the angle between signal and noise.

Let the reference N(μ, v) have independent coefficients.  Under X_t = αX_0 + σε, with V = α²v + σ²,

    ψ = arctan(σ/(√v α)) ∈ [0, π/2],    z = (x − αμ)/√V = cos ψ y + sin ψ ε,    y = (X_0 − μ)/√v,

coefficient by coefficient: noising turns clean fields (ψ = 0) into noise (ψ = π/2).  Given z, the
best linear denoiser of data with the reference's moments is w = μ + √v cos ψ z, its error variance
p = v sin²ψ, and every denoiser can be written with a residual F,

    m = w + √p F = μ + √v (cos ψ z + sin ψ F).

For data of the reference's own law F = 0.  The probability flow is a rotation driven by F alone,

    dz/dψ = −F,

so a rule for it is exact for the reference in any number of steps.  For one scale for all
coefficients this is the parametrisation of EDM (Karras et al. 2022, arXiv 2206.00364, Table 1) and
of TrigFlow (Lu & Song 2024, arXiv 2410.11081), carried here to a Hilbert space: every degree has
its own angle, and F is of the same size in all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spherediff._precision import full_precision
from spherediff.covariance import Covariance
from spherediff.process import ForwardProcess, OrnsteinUhlenbeck


class Angle(NamedTuple):
    """cos ψ and sin ψ of every coefficient, broadcasting against a state."""

    cos: Tensor
    sin: Tensor


class Reference:
    """N(μ, v), carried along by a forward process.

    Args:
        process: the forward process.
        mean: μ, broadcasting against one event.
        variance: v ≥ 0, shape of one event.
    """

    def __init__(self, process: ForwardProcess, mean: Tensor, variance: Tensor) -> None:
        self.process, self.mean, self.std = process, mean, variance.sqrt()

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(α, σ) of the modes in which the reference is independent."""
        return self.process.marginal(t)

    def modes(self, x: Tensor) -> Tensor:
        """Coefficients to modes."""
        return x

    def coefficients(self, y: Tensor) -> Tensor:
        """Modes to coefficients, the inverse of :meth:`modes`."""
        return y

    def mixed(self, z: Tensor) -> Tensor:
        """Standardised modes to fields of coefficients for a network to see, an isometry."""
        return z

    def unmixed(self, fields: Tensor) -> Tensor:
        """The inverse of :meth:`mixed`."""
        return fields

    def angle(self, t: Tensor | float) -> Angle:
        """(cos ψ, sin ψ) at time t."""
        alpha, sigma = self.marginal(t)
        total = torch.hypot(alpha * self.std, sigma)
        return Angle(alpha * self.std / total, sigma / total)

    def turn(self, t: float, s: float) -> Tensor:
        """ψ(t) − ψ(s) ≥ 0 for s < t, without cancellation at either end."""
        here, there = self.angle(t), self.angle(s)
        gain = -torch.expm1(-self.process.log_snr_gain(t, s))  # 1 − tan ψ(s)/tan ψ(t)
        sine = here.sin * there.cos * gain
        return torch.atan2(sine, here.cos * there.cos + here.sin * there.sin)

    def standardise(self, x: Tensor, t: Tensor | float) -> Tensor:
        """z = (x − αμ)/√V."""
        alpha, sigma = self.marginal(t)
        return self.modes(x - alpha * self.mean) / torch.hypot(alpha * self.std, sigma)

    def state(self, z: Tensor, t: Tensor | float) -> Tensor:
        """x = αμ + √V z, the inverse of :meth:`standardise`."""
        alpha, sigma = self.marginal(t)
        return alpha * self.mean + self.coefficients(torch.hypot(alpha * self.std, sigma) * z)

    def clean(self, y: Tensor) -> Tensor:
        """X_0 = μ + √v y."""
        return self.mean + self.coefficients(self.std * y)

    def standardise_clean(self, x: Tensor) -> Tensor:
        """y = (X_0 − μ)/√v, the inverse of :meth:`clean`; v > 0."""
        return self.modes(x - self.mean) / self.std

    def linear(self, z: Tensor, t: Tensor | float) -> Tensor:
        """w − μ = √v cos ψ z, what the best linear denoiser makes of z."""
        return self.coefficients(self.angle(t).cos * self.std * z)

    def estimate(self, residual: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """m = μ + √v (cos ψ z + sin ψ F)."""
        cos, sin = self.angle(t)
        return self.clean(cos * z + sin * residual)

    def residual(self, m: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """F = ((m − μ)/√v − cos ψ z)/sin ψ, the inverse of :meth:`estimate`; v > 0, t > 0."""
        cos, sin = self.angle(t)
        return (self.standardise_clean(m) - cos * z) / sin


class CorrelatedReference(Reference):
    """N(μ, S) with correlated coefficients, carried along by a process with one α and noise sγ.

    In units of γ = N(0, C) the noise is white whatever the basis, so that

        C^{−1/2} S C^{−1/2} = E diag(r) Eᵀ,    modes Eᵀ C^{−1/2} (x − αμ),

    makes signal and noise independent at once: everything above holds mode by mode, with v = r and
    σ = s.  A network sees the fields E z, so that it acts on coefficients: all that E does there is
    to apply functions of a symmetric matrix, E f(r) Eᵀ.

    Args:
        process: the forward process.
        mean: μ, shape of one event.
        covariance: S, positive definite.

    Raises:
        TypeError: a process whose degrees decay each at a rate of its own.
    """

    def __init__(self, process: ForwardProcess, mean: Tensor, covariance: Covariance) -> None:
        if not isinstance(process, OrnsteinUhlenbeck):
            raise TypeError(
                f"{type(process).__name__} noises its degrees each at a rate of its own, and no "
                "basis makes signal and noise independent at once: use OrnsteinUhlenbeck, or a "
                "variance per coefficient"
            )
        self.noise_std = process.field.std_per_coefficient
        unit = self.noise_std.double().flatten()
        r = covariance.diagonal.double().flatten() / unit.square()
        U = covariance.factor.double().flatten(1)
        self.correlated = U.any(0).nonzero()[:, 0]  # the others are modes by themselves
        U = U[:, self.correlated] / unit[self.correlated]
        r[self.correlated], basis = torch.linalg.eigh(torch.diag(r[self.correlated]) + U.T @ U)
        self.basis = basis.to(mean)
        super().__init__(process, mean, r.clamp_min(0).to(mean).reshape(mean.shape))

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.process.marginal(t)
        return alpha, (sigma / self.noise_std)[..., :1]

    def modes(self, x: Tensor) -> Tensor:
        return self.unmixed(x / self.noise_std)

    def coefficients(self, y: Tensor) -> Tensor:
        return self.noise_std * self.mixed(y)

    def mixed(self, z: Tensor) -> Tensor:
        return self._rotated(z, self.basis.T)

    def unmixed(self, fields: Tensor) -> Tensor:
        return self._rotated(fields, self.basis)

    @full_precision
    def _rotated(self, x: Tensor, matrix: Tensor) -> Tensor:
        flat = x.flatten(-self.mean.ndim).clone()
        flat[..., self.correlated] = flat[..., self.correlated] @ matrix
        return flat.unflatten(-1, self.mean.shape)
