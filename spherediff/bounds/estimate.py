"""The terms of the bound for any law with a known density, by Monte Carlo with standard errors.

From draws x of μ_τ and log h_τ = log dμ_τ/dγ,

    KL(μ_τ|γ) = E log h_τ(X),    I(μ_τ|γ) = E‖D log h_τ(X)‖²_C,    D log h = C ∇log h.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from spherediff.bounds.terms import Estimate
from spherediff.denoise import Denoiser
from spherediff.process import ConstantRate, OrnsteinUhlenbeck


class Density(Protocol):
    """A denoiser that knows its own density: Gaussian, mixture, or an archive's."""

    process: OrnsteinUhlenbeck

    def log_density_ratio(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log h_t(x), shape (*batch,)."""
        ...

    def malliavin_gamma_score(self, x: Tensor, t: Tensor | float) -> Tensor:
        """D log h_t(x), shape of ``x``, t > 0."""
        ...


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
    denoiser: Denoiser, exact: Density, x0: Tensor, steps: int, *, generator: torch.Generator
) -> Estimate:
    """S = Σ_{k=1}^N h E‖s_θ − D log h_{kh}‖²_C(X_{kh}), the score term of the bound.

    Args:
        denoiser: the one that the sampler uses, on the process of ``exact``.
        exact: the law of the data.
        x0: draws from the data, shape (count, *event_shape).
        steps: N.
        generator: for the noise of X_{kh}.

    Raises:
        TypeError: a process with another schedule than ``ConstantRate``.
    """
    field = exact.process.field
    total = torch.zeros(len(x0), dtype=torch.float64)
    for h, t, x in _grid(exact, x0, steps, generator):
        with torch.no_grad():
            error = denoiser.malliavin_gamma_score(x, t) - exact.malliavin_gamma_score(x, t)
        total += h * field.inner(error, error).double().cpu()
    return _mean(total)


def path_entropy(exact: Density, x0: Tensor, steps: int, *, generator: torch.Generator) -> Estimate:
    """KL of the reversed path from the path of ``FrozenScore`` with the exact score.

    KL(μ|γ) − (2e^h − 2 − h) Σ_{k=1}^N I(μ_{kh}|γ); it lies between KL(μ | output) and the bound.
    Arguments as in :func:`score_error`.

    Raises:
        TypeError: a process with another schedule than ``ConstantRate``.
    """
    field = exact.process.field
    total = exact.log_density_ratio(x0, 0.0).double().cpu()
    for h, t, x in _grid(exact, x0, steps, generator):
        D = exact.malliavin_gamma_score(x, t)
        total = total - (2 * math.expm1(h) - h) * field.inner(D, D).double().cpu()
    return _mean(total)


def _grid(
    exact: Density, x0: Tensor, steps: int, generator: torch.Generator
) -> Iterator[tuple[float, float, Tensor]]:
    """(h, t_k, X_{kh}) along one path of the forward process, k = 1 … N."""
    schedule = exact.process.schedule
    if not isinstance(schedule, ConstantRate):
        raise TypeError(
            "the bound speaks of steps that are even in the process's own time: expected the "
            f"schedule ConstantRate(T), got {schedule!r}"
        )
    h, x = schedule.horizon / steps, x0
    for k in range(1, steps + 1):
        x = exact.process.transition(x, (k - 1) / steps, k / steps, generator=generator)
        yield h, k / steps, x


def _mean(values: Tensor) -> Estimate:
    if len(values) < 2:
        raise ValueError(f"expected at least two draws for a standard error, got {len(values)}")
    values = values.double()
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))
