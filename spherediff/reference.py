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

from spherediff.process import ForwardProcess


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

    def angle(self, t: Tensor | float) -> Angle:
        """(cos ψ, sin ψ) at time t."""
        alpha, sigma = self.process.marginal(t)
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
        alpha, sigma = self.process.marginal(t)
        return (x - alpha * self.mean) / torch.hypot(alpha * self.std, sigma)

    def state(self, z: Tensor, t: Tensor | float) -> Tensor:
        """x = αμ + √V z, the inverse of :meth:`standardise`."""
        alpha, sigma = self.process.marginal(t)
        return alpha * self.mean + torch.hypot(alpha * self.std, sigma) * z

    def clean(self, y: Tensor) -> Tensor:
        """X_0 = μ + √v y."""
        return self.mean + self.std * y

    def estimate(self, residual: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """m = μ + √v (cos ψ z + sin ψ F)."""
        cos, sin = self.angle(t)
        return self.clean(cos * z + sin * residual)

    def residual(self, m: Tensor, z: Tensor, t: Tensor | float) -> Tensor:
        """F = ((m − μ)/√v − cos ψ z)/sin ψ, the inverse of :meth:`estimate`; v > 0, t > 0."""
        cos, sin = self.angle(t)
        return ((m - self.mean) / self.std - cos * z) / sin
