"""Log-densities of a model's law by the probability flow, relative to γ = N(0, C).

In the standardised modes z and the angle ψ of :mod:`spherediff.reference` the probability flow of a
denoiser with the residual F is dz_i = −F_i dψ_i, each mode with an angle of its own, all of them
functions of t.  The density q of z changes along it by minus the divergence of its velocity (Chen
et al. 2018, arXiv 1806.07366, Theorem 1; Song et al. 2021, arXiv 2011.13456, equation 39),

    d log q(z) = Σ_i ∂_iF_i dψ_i,

so that from the data, ψ = 0 and z = y = (X_0 − μ)/√v, to the noise end T

    log q_0(y) = log q_T(z_T) − ∫ Σ_i ∂_iF_i dψ_i.

Taking q_T = N(0, 1), the noised reference, the Jacobian of y ↦ X_0, and dividing by γ,

    log dp/dγ(x) = ½‖C^{−1/2}x‖² − ½‖z_T‖² − ½ Σ_i log r_i − ∫ Σ_i ∂_iF_i dψ_i,

where r_i is the variance of mode i of the reference in units of the noise, v_i/C_i if its
coefficients are independent.  Factors 2π and all units have cancelled, and what is left has a limit
as lmax → ∞ where p and γ are equivalent.  For F = 0 it is log dN(μ, v)/dγ in any number of steps.

z is carried by Heun's rule in ψ and the integral by the trapezoid rule at the states it visits:
second order.  With the default steps a mode whose variance lies between a tenth and ten times the
reference's has a mean error below 10⁻³ nats, 3·10⁻⁵ within a factor of two.

The times are those of the samplers, the other way round, with the same convention at the data end:
F = tan ψ (z + ∇log q) vanishes at ψ = 0, so the first step, from there to the first angle ψ₀, is a
step of the same rules with F = ∂F = 0 behind it.  Its error does not fall with the number of steps
but with the schedule's highest log-SNR; for smooth densities it is of order ψ₀⁴, F being odd in ψ,
with ψ₀ ≈ e^{−5}/√r by default.

**What law this is.**  It is that of the flow that starts from N(0, 1) in z at the noise end.  An
exact denoiser's flow carries the law q_T of cos ψ_T y + sin ψ_T ε instead, so that the result is
too small on average over the data, by

    E[log p − result] = KL(q_T | N(0, 1)) ≤ max_i cos²ψ_{T,i} · KL(p | N(μ, v)),

with cos²ψ_T ≈ e^{−10} r by default.  For a single state the error is log dq_T/dN(0, 1) at z_T, of
order cos ψ_T where the reference has another mean than the data, cos²ψ_T where it has another
covariance, cos³ψ_T else.  Samplers start from γ itself, whose law of z differs from N(0, 1) by
terms of order cos ψ_T in the mean and cos²ψ_T in the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from spherediff.denoise import Denoiser
from spherediff.gaussian import GaussianField, check_coefficients
from spherediff.reference import Reference
from spherediff.sample import Heun
from spherediff.streams import Randomness, open_source

Residual = Callable[[Tensor], Tensor]


class Trace(Protocol):
    """A way to find Σ_i w_i ∂_iF_i."""

    def opened(self, count: int) -> Trace:
        """The same with random streams for ``count`` states."""
        ...

    def __call__(self, F: Residual, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """F(z) and Σ_i w_i ∂_iF_i(z).

        Args:
            F: acts on each state by itself.
            z: states, shape (*batch, *event_shape).
            weight: w, shape ``event_shape``.

        Returns:
            F(z), shape of ``z``, and the sum, float64, shape (*batch,).
        """
        ...


@dataclass(frozen=True)
class Exact:
    """The trace itself, one backward pass for each coefficient: for small band limits."""

    def opened(self, count: int) -> Exact:
        """Nothing here is random."""
        return self

    def __call__(self, F: Residual, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """F(z) and Σ_i w_i ∂_iF_i."""
        value, form = _linearised(F, z, weight)
        basis = torch.eye(weight.numel(), dtype=z.dtype, device=z.device)
        entries = [form(e.view(weight.shape).expand_as(z)) for e in basis]
        return value, torch.stack(entries).sum(0)


@dataclass(frozen=True)
class Hutchinson:
    """An unbiased estimate, the mean of ⟨e, diag(w) ∂F e⟩ over independent random signs e.

    With B = diag(w) ∂F its variance is Σ_{i<j} (B_ij + B_ji)² / probes: none if F acts mode by
    mode.  Every state has its own signs, at every time new ones, so that errors average out over
    steps and over a batch (Hutchinson 1990; Grathwohl et al. 2019, arXiv 1810.01367).

    Args:
        probes: number of vectors e for each state and time, one backward pass each.
        generator: of the signs; a state's do not depend on the batch it comes in.

    Raises:
        ValueError: fewer than one probe.
    """

    probes: int
    generator: Randomness

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"expected at least one probe, got {self.probes}")

    def opened(self, count: int) -> Hutchinson:
        """The same with one stream of signs for each of ``count`` states."""
        return replace(self, generator=open_source(self.generator, count))

    def __call__(self, F: Residual, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """F(z) and an estimate of Σ_i w_i ∂_iF_i."""
        value, form = _linearised(F, z, weight)
        batch = z.shape[: z.ndim - weight.ndim]
        source = open_source(self.generator, batch.numel())
        signs = [source.normal(weight.shape, z.dtype).sign() for _ in range(self.probes)]
        estimates = [form(e.reshape(z.shape).to(z.device)) for e in signs]
        return value, torch.stack(estimates).mean(0)


@torch.no_grad()
def log_density_ratio(
    denoiser: Denoiser, x: Tensor, steps: int | None = None, *, trace: Trace
) -> Tensor:
    """log dp/dγ(x) of a denoiser's law p, in nats; γ = N(0, C) is the process's ``field``.

    Args:
        denoiser: m(x, t); its law must have a density, which an archive's empirical law has not.
        x: clean fields, shape (*batch, *event_shape).
        steps: number of steps, evenly spaced in log noise level; as many as ``Heun`` takes if not
            given.
        trace: :class:`Exact`, or :class:`Hutchinson` for large band limits.

    Returns:
        float64, shape (*batch,).

    Raises:
        ValueError: fields of another shape, fewer than two steps, or a reference without variance
            in some mode.
    """
    process, reference = denoiser.process, denoiser.reference
    check_coefficients(process.field, x, "log_density_ratio")
    _require_density(reference)
    times = Heun(denoiser, steps).times[::-1]
    psi = reference.angle(times[0])
    first = torch.atan2(psi.sin, psi.cos)
    turns = [first, *(reference.turn(t, s) for s, t in pairwise(times)), torch.zeros_like(first)]

    events = len(process.event_shape)
    trace = trace.opened(x.shape[: x.ndim - events].numel())
    z = reference.standardise_clean(x)
    F, integral = torch.zeros_like(z), _sum(torch.zeros_like(z), events)
    for t, (turn, following) in zip(times, pairwise(turns), strict=True):
        F_ahead = denoiser.residual(z - turn * F, t)
        z = z - 0.5 * turn * (F + F_ahead)
        F, part = trace(lambda z, t=t: denoiser.residual(z, t), z, 0.5 * (turn + following))
        integral = integral + part

    quadratic = _sum(process.field.whiten(x).double().square() - z.double().square(), events)
    return 0.5 * quadratic - _log_scale(reference, times[-1]) - integral


def bits_per_coefficient(field: GaussianField, x: Tensor, log_ratio: Tensor | float) -> Tensor:
    """−n⁻¹ log₂ p(x), p a density on coefficients with respect to Lebesgue measure.

    To tell x to a precision δ in every coefficient takes −log₂ δ bits more for each of them.  p(x)
    is dp/dγ(x) times the density of γ, so that ``log_ratio = 0`` gives the bits of γ itself.  The
    measure is the same in every orthonormal basis, but has units: those of ``x``.  For the
    standardised anomalies of an :class:`~spherediff.data.Encoder` one unit is the standard
    deviation of its channel, and another encoder has other bits; differences between laws of the
    same ``x`` are free of units.

    Args:
        field: γ, with C_ℓ > 0.
        x: fields, shape (*batch, *event_shape), n coefficients each, over all channels.
        log_ratio: log dp/dγ(x), shape (*batch,), in nats.

    Returns:
        float64, shape (*batch,).

    Raises:
        ValueError: fields of another shape.
    """
    check_coefficients(field, x, "bits_per_coefficient")
    events = len(field.event_shape)
    scale = math.sqrt(2 * math.pi) * field.std_per_coefficient.double()
    log_gamma = -_sum(0.5 * field.whiten(x).double().square() + scale.log(), events)
    return -(log_ratio + log_gamma) / (scale.numel() * math.log(2))


def _linearised(
    F: Residual, z: Tensor, weight: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """F(z) and the quadratic form e ↦ ⟨e, diag(w) ∂F(z) e⟩ of every state."""
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        value = F(point) + 0 * point  # a residual that ignores z has a derivative too

    def form(e: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(value, point, weight * e, retain_graph=True)
        return _sum(pulled.double() * e, weight.ndim)

    return value.detach(), form


def _log_scale(reference: Reference, t: float) -> Tensor:
    """½ Σ log r, the Jacobian of y ↦ C^{−1/2}X_0.

    Signal and noise being independent, modes are noised by σ_mode where coefficients are by σ, at
    every t > 0: so their map has the determinant Π σ/σ_mode.
    """
    _, sigma_mode = reference.marginal(t)
    field, sigma = reference.process.field, reference.process.sigma(t)
    noise = (sigma_mode.double() / sigma.double()) * field.std_per_coefficient.double()
    return (reference.std.double() / noise).log().sum()


def _require_density(reference: Reference) -> None:
    without = int((~(reference.std > 0)).sum())
    if without:
        raise ValueError(
            f"expected a reference with variance in every mode, found {without} without: the law "
            "has no density there; leave these coefficients out or give them some variance"
        )


def _sum(values: Tensor, events: int) -> Tensor:
    """Sum over the event, in float64."""
    return values.double().sum(tuple(range(-events, 0)))
