"""The exact denoiser of a law of finite Wiener chaos."""

from __future__ import annotations

from torch import Tensor

from spherediff.chaos import ChaosDensity
from spherediff.denoise.base import Denoiser
from spherediff.gaussian import check_coefficients
from spherediff.process import ForwardProcess


class ChaosDenoiser(Denoiser):
    """A finite-chaos law h_0γ, γ = N(0, C) and h_0 = 1 + Σ c_a H_a: exact and not Gaussian.

    With V = α²C + σ² and the correlation ρ = α√(C/V) of X_0 and X_t under γ, Mehler's formula
    gives the law of X_t as F_t N(0, V), and m from its score:

        F_t(x) = 1 + Σ ρ^a c_a H_a(x/√V),    m = αC/V ⊙ x + σ²√C/V ⊙ ρ⁻¹∇_z F_t/F_t.

    For Greco's process with noise γ, V = C and F_t = Σ e^{−n_a τ} c_a H_a.

    Args:
        process: the forward process; its noise need not be γ.
        density: h_0 over γ.

    Raises:
        ValueError: the density's fields have another shape than those of the process.
    """

    def __init__(self, process: ForwardProcess, density: ChaosDensity) -> None:
        if density.field.event_shape != process.event_shape:
            raise ValueError(
                f"expected a density of fields of shape {process.event_shape}, "
                f"got {density.field.event_shape}"
            )
        self.process, self.density = process, density
        variance = density.field.variance_per_coefficient
        self.variance = variance.to(process.field.device, process.field.dtype)

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """m(x, t)."""
        alpha, sigma, total = self._marginal(x, t)
        F = self.density.expansion
        z, correlation = self._standardised(x, alpha, total)
        slope = F.gradient(z, correlation) / F.value(z, correlation)[..., None]
        m = (alpha * self.variance / total * x).flatten(-self._events)
        pull = (sigma.square() * self.variance.sqrt() / total).expand_as(x).flatten(-self._events)
        m[..., F.modes] += pull[..., F.modes] * slope.to(x)
        return m.reshape(x.shape)

    def log_density_ratio(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log h_t(x) = log F_t + log dN(0, V)/dN(0, C')(x), C' that of the process's ``field``."""
        alpha, _, total = self._marginal(x, t)
        reference = self.process.field.variance_per_coefficient
        gaussian = x.square() / reference - x.square() / total + (reference / total).log()
        axes = tuple(range(-self._events, 0))
        factor = self.density.expansion.value(*self._standardised(x, alpha, total))
        return factor.log().to(x) + 0.5 * gaussian.sum(axes)

    def _marginal(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        check_coefficients(self.process.field, x, "denoiser")
        alpha, sigma = self.process.marginal(t)
        return alpha, sigma, alpha.square() * self.variance + sigma.square()

    def _standardised(self, x: Tensor, alpha: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """x/√V and ρ at the modes of the density, float64."""
        modes = self.density.expansion.modes
        correlation = (alpha * (self.variance / total).sqrt()).expand_as(x)
        z, r = ((v.flatten(-self._events))[..., modes] for v in (x / total.sqrt(), correlation))
        return z.double(), r.double()

    @property
    def _events(self) -> int:
        return len(self.process.event_shape)
