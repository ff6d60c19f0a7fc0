"""Twisted sequential Monte Carlo: posterior sampling that is exact with many particles.

The prior's reverse process runs in steps t → s by Gaussian transitions that have the mean and the
covariance of z_s given z_t, the latter up to K²/4.  With the residual F and its Jacobian J at z_t
(:mod:`spherediff.reference`), h = log(α/σ)(s) − log(α/σ)(t) and g = 1 − e^{−2h},

    z_s = √(1 − b²) z_t + b (k F + (1 + ½K) ξ),    b² = g sin²ψ_t,    k = √g cos ψ_s,

ξ white, K = k J tan ψ_t k, and at the data end X_0 ~ N(m, P).  Without K this is the first-order
:class:`~spherediff.sample.Bridge` with the variance that is optimal for the reference (Bao et al.
2022, arXiv 2201.06503); with it the law is second order in the steps.  For the reference's own law
F = 0, and all steps are exact.

Particles are proposed as :class:`~spherediff.posterior.PseudoinverseGuidance` would move them, ξ
having the mean δ = k (F_y − F), and weighted by

    w_s = w_t · e^{−ξ·δ + ½‖δ‖²} · p̃(y | z_s)/p̃(y | z_t),    p̃ = N(y; Hm, H P Hᵀ + R),

whose determinant is one number for all (Wu et al. 2023, arXiv 2306.17775).  The last step needs no
weight: N(m, P) given y is drawn from exactly.  So the target is p(x_0) p(y | x_0), with p the law
of the prior's steps, whatever the quality of p̃: a poor one costs effective particles.  Resampling
is systematic, when the effective number falls below half of the particles.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from spherediff.denoise import Denoiser
from spherediff.observe import Observation
from spherediff.posterior import Guided, PseudoinverseGuidance, Sensitivity
from spherediff.sample import Bridge
from spherediff.streams import PlainDraws

_COLUMNS = 64  # of a matrix in data space that are made at once


class TwistedDraws(NamedTuple):
    """What :class:`TwistedSampler` returns.

    Attributes:
        samples: equally weighted draws, shape (particles, *event_shape); those with a common
            ancestor are dependent.
        effective_sizes: effective number of particles at each time visited, before resampling,
            float64, shape (steps + 1,).
        log_evidence: estimate of log p(y) in nats; p(y) itself is estimated without bias, up to
            the discretisation of the prior's reverse process.
    """

    samples: Tensor
    effective_sizes: Tensor
    log_evidence: float


class TwistedSampler:
    """Twisted sequential Monte Carlo with the steps and weights of this module.

    Args:
        denoiser: m(x, t) of the prior.
        observation: H, y and √R.
        particles: number of particles.
        steps: number of steps.
        tolerance: of the linear systems, see :class:`PseudoinverseGuidance`.
        max_iterations: of the linear systems.

    Raises:
        ValueError: fewer than two particles or steps, or observations of states of another shape.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        observation: Observation,
        *,
        particles: int = 256,
        steps: int = 256,
        tolerance: float = 1e-4,
        max_iterations: int = 100,
    ) -> None:
        if particles < 2:
            raise ValueError(f"expected at least 2 particles, got {particles}")
        self.posterior = PseudoinverseGuidance(
            denoiser, observation, tolerance=tolerance, max_iterations=max_iterations
        )
        self.process, self.observation = denoiser.process, observation
        self.particles, self.times = particles, Bridge(denoiser, steps).times

    @torch.no_grad()
    def sample(self, *, generator: torch.Generator) -> TwistedDraws:
        """Draw from the posterior.

        Args:
            generator: a CPU generator.
        """
        noise, reference = PlainDraws(generator, self.particles), self.posterior.reference
        x = self.process.field.sample((self.particles,), generator=noise)
        z = reference.standardise(x, self.times[0])
        guided = self.posterior.guide(z, self.times[0])
        log_weights, log_evidence = -0.5 * guided.misfit, 0.0
        sizes = [_effective_size(log_weights)]
        for t, s in pairwise(self.times):
            if sizes[-1] < 0.5 * self.particles:
                log_evidence += _log_mean(log_weights)
                chosen = _systematic(log_weights, generator)
                z = z[chosen]
                guided = self.posterior.guide(z, t)
                log_weights = torch.zeros_like(log_weights)
            z, log_ratio = self._propose(z, guided, t, s, self._white(z, noise))
            previous, guided = guided, self.posterior.guide(z, s)
            log_weights = log_weights + log_ratio + 0.5 * (previous.misfit - guided.misfit)
            sizes.append(_effective_size(log_weights))
        log_evidence += _log_mean(log_weights) + self._log_normaliser()
        chosen = _systematic(log_weights, generator)
        samples = self._arrive(z[chosen], guided.prior[chosen], noise)
        return TwistedDraws(samples, torch.tensor(sizes, dtype=torch.float64), log_evidence)

    def _propose(
        self, z: Tensor, guided: Guided, t: float, s: float, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """z_s and log p(ξ)/q(ξ), for ξ = ``noise`` + δ."""
        here, there = (self.posterior.reference.angle(time) for time in (t, s))
        g = -torch.expm1(-2 * self.process.log_snr_gain(t, s))
        b, k = here.sin * g.sqrt(), there.cos * g.sqrt()
        delta = k * (guided.posterior - guided.prior)
        xi = noise + delta
        K_xi = k * guided.curvature(k * xi)
        moved = (1 - b.square()).sqrt() * z + b * (k * guided.prior + xi + 0.5 * K_xi)
        xi, delta = xi.double(), delta.double()
        return moved, (delta * (0.5 * delta - xi)).flatten(1).sum(1)

    def _arrive(self, z: Tensor, F: Tensor, noise: PlainDraws) -> Tensor:
        """X_0 ~ N(m, P) given y: a draw of N(m, P), moved by its own innovation."""
        t, reference = self.times[-1], self.posterior.reference
        xi = self._white(z, noise)
        L = Sensitivity(reference, self.observation, t, z)
        eta = noise.normal((self.observation.operator.size,), z.dtype).to(z)
        innovation = L.innovation(reference.estimate(F + xi, z, t)) - eta
        u = self.posterior.explain_by_reference(innovation, L)
        return reference.estimate(F + xi + L.adjoint(u), z, t)

    def _log_normaliser(self) -> float:
        """−½ log det 2πA at the last time, A = √R (1 + LLᵀ) √R."""
        m, noise_std = self.observation.operator.size, self.observation.noise_std.double()
        rows = []
        for unit in torch.eye(m).to(self.process.field.variance_per_coefficient).split(_COLUMNS):
            like = unit.new_zeros(len(unit), *self.process.event_shape)
            L = Sensitivity(self.posterior.reference, self.observation, self.times[-1], like)
            rows.append((unit + L(L.adjoint(unit))).double())
        log_det = torch.linalg.slogdet(torch.cat(rows)).logabsdet + 2 * noise_std.log().sum()
        return -0.5 * (float(log_det) + m * math.log(2 * math.pi))

    def _white(self, like: Tensor, noise: PlainDraws) -> Tensor:
        return noise.normal(self.process.event_shape, like.dtype).to(like)


def _effective_size(log_weights: Tensor) -> float:
    """(Σ w)²/Σ w²."""
    return float(1 / log_weights.softmax(0).square().sum())


def _log_mean(log_weights: Tensor) -> float:
    """log N⁻¹ Σ w."""
    return float(log_weights.logsumexp(0)) - math.log(len(log_weights))


def _systematic(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic resampling: particle k is chosen ⌊N w_k⌋ or ⌈N w_k⌉ times, N w_k on average."""
    N = len(log_weights)
    offset = torch.rand((), dtype=torch.float64, generator=generator).to(log_weights.device)
    points = (torch.arange(N, device=log_weights.device) + offset) / N
    edges = log_weights.softmax(0).cumsum(0)
    return torch.searchsorted(edges, points).clamp_max(N - 1)
