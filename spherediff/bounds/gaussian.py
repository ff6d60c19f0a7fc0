"""Gaussian data: every term of the bound in closed form, degree by degree.

Let μ = N(m, S) and γ = N(0, C) with S, C isotropic, r_ℓ = S_ℓ/C_ℓ and b_ℓ² = Σ_m m²_{ℓm}/C_ℓ.
Then X_τ has r_ℓ(τ) − 1 = e^{−2τ}(r_ℓ − 1) and b_ℓ²(τ) = e^{−2τ} b_ℓ², and

    KL(μ|γ) = Σ (2ℓ+1) ½(r − 1 − log r) + ½ b²,
    I(μ|γ)  = Σ (2ℓ+1) (r − 1)²/r + b²,

so both are finite exactly when Feldman–Hájek's Σ(2ℓ+1)(r_ℓ − 1)² is and m ∈ H_C.  Here τ ↦ I is
convex, which halves the last term of the bound: KL(path) − KL(μ_T|γ) ≤ ½ h I(μ|γ), and no smaller
constant will do (r → 0, h ≪ r).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spherediff.bounds.terms import EntropicBound, entropic_bound
from spherediff.denoise import GaussianDenoiser
from spherediff.gaussian import GaussianField, check_coefficients
from spherediff.harmonics import sum_orders
from spherediff.process import OrnsteinUhlenbeck, Schedule


class GaussianTarget:
    """Data N(m, S) seen from the noise N(0, C).

    Results by degree are float64 of shape (lmax+1,) or (channels, lmax+1); their ``cumsum(-1)``
    are the sums up to every band limit.

    Args:
        noise: γ.
        data: N(0, S), with the event shape of ``noise``.
        mean: m, shape ``noise.event_shape``; zero if not given.

    Attributes:
        excess: r_ℓ − 1.
        shift: b_ℓ² = Σ_m m²_{ℓm}/C_ℓ.
        multiplicity: 2ℓ + 1.

    Raises:
        ValueError: shapes that differ, or a degree without noise or data variance: the two laws
            are then singular to one another.
    """

    def __init__(
        self, noise: GaussianField, data: GaussianField, mean: Tensor | None = None
    ) -> None:
        if noise.event_shape != data.event_shape:
            raise ValueError(
                f"expected noise and data of one shape, got {noise.event_shape} and "
                f"{data.event_shape}"
            )
        for name, field in (("noise", noise), ("data", data)):
            if (field.degree_variance <= 0).any():
                ell = int(torch.nonzero(field.degree_variance <= 0)[0, -1])
                raise ValueError(
                    f"expected positive variances, but the {name} has none at degree {ell}, so "
                    "that data and noise are singular to one another"
                )
        self.noise, self.data = noise.to(dtype=torch.float64), data.to(dtype=torch.float64)
        self.mean = torch.zeros(noise.event_shape, dtype=torch.float64)
        if mean is not None:
            check_coefficients(noise, mean, "mean")
            self.mean = mean.double()
        self.excess = data.degree_variance / noise.degree_variance - 1
        self.shift = sum_orders(self.noise.whiten(self.mean).square())
        self.multiplicity = 2 * torch.arange(noise.lmax + 1, dtype=torch.float64) + 1

    def marginal(self, tau: float = 0.0) -> tuple[Tensor, Tensor]:
        """(r_ℓ(τ) − 1, b_ℓ²(τ)) of the noised data."""
        decay = math.exp(-2 * tau)
        return decay * self.excess, decay * self.shift

    def relative_entropy(self, tau: float = 0.0) -> Tensor:
        """KL(μ_τ|γ) by degree, in nats."""
        excess, shift = self.marginal(tau)
        return 0.5 * (self.multiplicity * (excess - excess.log1p()) + shift)

    def fisher_information(self, tau: float = 0.0) -> Tensor:
        """I(μ_τ|γ) = E‖D log dμ_τ/dγ‖²_C by degree."""
        excess, shift = self.marginal(tau)
        return self.multiplicity * excess.square() / (1 + excess) + shift

    def path_entropy(self, horizon: float, steps: int) -> Tensor:
        """KL of the reversed path from the path of ``FrozenScore`` with the exact score, by degree.

        KL(μ|γ) − (2e^h − 2 − h) Σ_{k=1}^N I(μ_{kh}|γ).
        """
        h = horizon / steps
        information = sum(self.fisher_information(k * h) for k in range(1, steps + 1))
        return self.relative_entropy() - (2 * math.expm1(h) - h) * information

    def score_error(self, score: GaussianTarget, tau: float) -> Tensor:
        """E‖D log h'_τ − D log h_τ‖²_C at X_τ by degree, with h' from another Gaussian ``score``.

        Σ_m r(1/r − 1/r')² + (b' − b)²/r'², all at time τ.

        Raises:
            ValueError: ``score`` refers to another noise.
        """
        if not torch.equal(score.noise.degree_variance, self.noise.degree_variance):
            raise ValueError("expected a score with respect to the same noise")
        r, r_score = 1 + self.marginal(tau)[0], 1 + score.marginal(tau)[0]
        apart = sum_orders(self.noise.whiten(score.mean - self.mean).square())
        spread = self.multiplicity * (r_score - r).square() / (r * r_score.square())
        return spread + math.exp(-2 * tau) * apart / r_score.square()

    def bound(
        self, horizon: float, steps: int, score: GaussianTarget | None = None
    ) -> EntropicBound:
        """The bound on KL(μ | output), summed over the degrees.

        Args:
            horizon: T.
            steps: N.
            score: the Gaussian whose score the sampler uses; the data's own if not given.
        """
        h = horizon / steps
        error = 0.0
        if score is not None:
            errors = (self.score_error(score, k * h).sum() for k in range(1, steps + 1))
            error = h * float(sum(errors))
        entropy, fisher = self.relative_entropy().sum(), self.fisher_information().sum()
        return entropic_bound(float(entropy), float(fisher), horizon, steps, error)

    def denoiser(self, schedule: Schedule | None = None) -> GaussianDenoiser:
        """The exact denoiser of this data."""
        process = OrnsteinUhlenbeck(self.noise, schedule)
        return GaussianDenoiser(process, self.data.variance_per_coefficient, mean=self.mean)
