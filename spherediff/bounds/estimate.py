"""The terms of the bound for any law with a known density, by Monte Carlo with standard errors.

From draws x of μ_τ and log h_τ = log dμ_τ/dγ,

    KL(μ_τ|γ) = E log h_τ(X),    I(μ_τ|γ) = E‖D log h_τ(X)‖²_C,    D log h = C ∇log h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spherediff.bounds.output import own_pace
from spherediff.bounds.terms import Estimate
from spherediff.denoise import Denoiser, EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser
from spherediff.streams import Randomness, open_source

# Denoisers that know their own density.
Density = GaussianDenoiser | MixtureDenoiser | EmpiricalDenoiser


def log_derivative(density: Density, x: Tensor, t: float = 0.0) -> Tensor:
    """D log h_t(x) = C ∇log h_t(x), from the density itself; shape of ``x``.

    Unlike the Malliavin–Gamma score of a denoiser it has a meaning at t = 0.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(density.log_density_ratio(point, t).sum(), point)
    return density.process.field.variance_per_coefficient * gradient


def relative_entropy(density: Density, x: Tensor, t: float = 0.0) -> Estimate:
    """KL(μ_t|γ) in nats from draws x of μ_t, shape (count, *event_shape)."""
    return _mean(density.log_density_ratio(x, t))


def fisher_information(density: Density, x: Tensor, t: float = 0.0) -> Estimate:
    """I(μ_t|γ) = E‖D log dμ_t/dγ‖²_C from draws x of μ_t, shape (count, *event_shape)."""
    D = log_derivative(density, x, t)
    return _mean(density.process.field.inner(D, D))


def score_error(
    denoiser: Denoiser, exact: Density, x0: Tensor, steps: int, *, generator: Randomness
) -> Estimate:
    """S = Σ_{k=1}^N h E‖s_θ − D log h_{kh}‖²_C(X_{kh}), the score term of the bound.

    Args:
        denoiser: the one that the sampler uses, on the process of ``exact``.
        exact: the law of the data.
        x0: draws from the data, shape (count, *event_shape).
        steps: N.
        generator: for the noise of X_{kh}.

    Raises:
        TypeError: another process than ``OrnsteinUhlenbeck`` under ``ConstantRate``.
    """
    process, horizon = own_pace(exact.process)
    source, x = open_source(generator, len(x0)), x0
    total = torch.zeros(len(x0), dtype=torch.float64)
    for k in range(1, steps + 1):
        t = k / steps
        x = process.transition(x, (k - 1) / steps, t, generator=source)
        with torch.no_grad():
            error = denoiser.malliavin_gamma_score(x, t) - exact.malliavin_gamma_score(x, t)
        total += horizon / steps * process.field.inner(error, error).double().cpu()
    return _mean(total)


def path_entropy(exact: Density, x0: Tensor, steps: int, *, generator: Randomness) -> Estimate:
    """KL of the reversed path from the path of ``FrozenScore`` with the exact score.

    By Girsanov's theorem KL(μ_T|γ) + Σ_k ∫ E‖Z_s − Z_{kh}‖² ds, s from (k−1)h to kh, with
    Z_s = D log h_s(X_s) on one forward path; the integral over s by three Gauss–Legendre nodes.
    It lies between KL(μ | output) and the bound.  Arguments as in :func:`score_error`.

    Raises:
        TypeError: another process than ``OrnsteinUhlenbeck`` under ``ConstantRate``.
    """
    process, horizon = own_pace(exact.process)
    source, x = open_source(generator, len(x0)), x0
    total = torch.zeros(len(x0), dtype=torch.float64)
    for k in range(1, steps + 1):
        within, t = [], (k - 1) / steps
        for node in _NODES:
            s = (k - 1 + node) / steps
            x = process.transition(x, t, s, generator=source)
            within.append(exact.malliavin_gamma_score(x, s))
            t = s
        x = process.transition(x, t, k / steps, generator=source)
        Z = exact.malliavin_gamma_score(x, k / steps)
        for weight, Z_s in zip(_WEIGHTS, within, strict=True):
            squared = process.field.inner(Z_s - Z, Z_s - Z).double().cpu()
            total += weight * horizon / steps * squared
    return _mean(total + exact.log_density_ratio(x, 1.0).double().cpu())


# of the three-point Gauss–Legendre rule on [0, 1]
_NODES = (0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15))
_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)


def _mean(values: Tensor) -> Estimate:
    if len(values) < 2:
        raise ValueError(f"expected at least two draws for a standard error, got {len(values)}")
    values = values.double()
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))
