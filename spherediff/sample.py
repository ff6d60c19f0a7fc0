"""Reverse samplers: from noise to fields, over any denoiser and any forward process.

The reverse of dX = −λX dτ + √q dW and its probability flow are, with τ running backwards,

    dY = (λY + q∇log p(Y)) dτ + √q dW,    dY = (λY + ½q∇log p(Y)) dτ,    Y_0 ~ γ;

for Greco's process (arXiv 2505.13189) λY + q∇log p = −Y + 2 D log h.  Both are
integrated in the angle ψ between signal and noise of :mod:`spherediff.reference`, coefficient by
coefficient, for any α and σ with α/σ falling: processes that are not Markov have a Markov twin with
the same law at every time.  With z = (x − αμ)/√V and the residual F of the denoiser,

    flow   dz = −F dψ,
    SDE    dz = (z tan ψ − 2F) dψ + √(2 tan ψ) dW,

ψ falling, so that between two times t > s, with h = log(α/σ)(s) − log(α/σ)(t) > 0 and F held at D,

    flow   z_s = z_t + (ψ_t − ψ_s) D,
    SDE    z_s = √(1 − b²) z_t + 2 cos ψ_s b²/(sin ψ_t + sin ψ_s) D + b ξ,

where b² = sin²ψ_t (1 − e^{−2h}).

For data of the reference's own law D = 0 and both are exact in any number of steps; for any
denoiser, what is close to the reference, as high degrees are, is kept at any number of steps.

D = F_t gives order one.  The multistep rule D = F_t + (h/2h₋)(F_t − F₋), with the previous F₋ and
step h₋, gives order two for one evaluation a step, as in Lu et al. (2022, arXiv 2211.01095).  To
extrapolate in h rather than in ψ halves the error or better (experiments/sampler_law.py).

All samplers step evenly in the schedule's log noise level, for Greco's process log(s/α) itself;
where degrees turn into noise at different times h differs between them, and the schedule sees to it
that no h is large for a degree in passage.  F vanishes at the data end, ψ = 0; so the last step,
from ψ to 0, is Heun's rule with one known slope: y = z + ½ψF, X_0 = μ + √v y.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NoReturn

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff.denoise import Denoiser
from spherediff.process import LinearProcess
from spherediff.streams import NormalSource, Randomness, open_source


class Sampler(ABC):
    """A way to integrate the reverse process.

    Args:
        denoiser: m(x, t); any :class:`~spherediff.denoise.Denoiser`.
        steps: number of steps, evenly spaced in log noise level.  If not given, ``default_steps``
            for every ten units of the schedule's span, at least once: they keep the variance of
            every mode of a Gaussian target within 1 % of its limit, for ratios of data to noise
            variance between 10⁻³ and 10².  For others the default schedule begins or ends too
            early, whatever the number of steps: choose noise that is closer to the data, or a
            longer schedule; or, where the data vary less, let samplers follow the data's own
            variances, ``posterior.Referenced(denoiser, Reference(process, mean, variance))``.

    Attributes:
        order: order of convergence of the output law in the step size.

    Raises:
        ValueError: fewer than two steps.
    """

    order: ClassVar[int]
    default_steps: ClassVar[int]

    def __init__(self, denoiser: Denoiser, steps: int | None = None) -> None:
        self.denoiser, self.process = denoiser, denoiser.process
        if steps is None:
            steps = round(self.default_steps * max(1.0, self.process.schedule.span / 10))
        if steps < 2:
            raise ValueError(f"expected at least 2 steps, got {steps}")
        self.steps = steps

    @property
    def times(self) -> list[float]:
        """The steps + 1 times visited, from the noise end to the data end."""
        low, high = self.process.schedule.log_snr_range
        log_noise = torch.linspace(-low, -high, self.steps + 1, dtype=torch.float64)
        return self.process.time_of(log_noise).tolist()

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        *,
        generator: Randomness,
        progress: bool | tqdm[NoReturn] = False,
    ) -> Tensor:
        """Draw fields.

        Sample k does not depend on the batch that it is drawn in.

        Args:
            shape: batch shape.
            generator: a CPU generator, or a sequence of them, one a sample.
            progress: show a progress bar with the time that remains; or a bar that is there
                already, to be moved on by one for each step.

        Returns:
            Coefficients, shape (*shape, *event_shape).
        """
        if 0 in shape:  # no network need know what to make of no fields
            return self.process.field.sample(shape, generator=generator)
        if isinstance(progress, bool):
            with self.progress_bar(self.steps, progress) as bar:
                return self.sample(shape, generator=generator, progress=bar)
        noise = open_source(generator, math.prod(shape))
        x = self.process.field.sample(shape, generator=noise)
        memory: Memory = None
        for t, s in pairwise(self.times):
            x, memory = self.step(x, t, s, noise, memory)
            progress.update()
        return self._arrive(x)

    @classmethod
    def progress_bar(cls, steps: int, shown: bool) -> tqdm[NoReturn]:
        """A bar of that many steps, for one call of :meth:`sample` or more."""
        return tqdm(total=steps, desc=cls.__name__, disable=not shown)

    @abstractmethod
    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """One step from time t to s < t; ``memory`` is what the last step passed on."""

    def _arrive(self, x: Tensor) -> Tensor:
        t, reference = self.times[-1], self.denoiser.reference
        z, angle = reference.standardise(x, t), reference.angle(t)
        psi = torch.atan2(angle.sin, angle.cos)
        return reference.clean(z + 0.5 * psi * self.denoiser.residual(z, t))

    def _white(self, x: Tensor, noise: NormalSource) -> Tensor:
        """The next white noise of every sample, shape of ``x``."""
        return noise.normal(self.process.event_shape, x.dtype).to(x.device).reshape(x.shape)


Memory = tuple[Tensor, Tensor] | None


class EulerMaruyama(Sampler):
    """Reverse SDE by the Euler–Maruyama rule, x ← x + Δ(λx + q∇log p) + √(qΔ) ξ, ξ white.

    Δ is the step in process time τ.  Plain, and slow to converge: for comparison.

    Raises:
        TypeError: the process is not Markov, so that it has no SDE to discretise.
        ValueError: fewer than two steps, or on sampling steps so long that the rule is unstable,
            λΔ > 2.
    """

    order = 1
    default_steps = 2000

    def __init__(self, denoiser: Denoiser, steps: int | None = None) -> None:
        super().__init__(denoiser, steps)
        if not isinstance(self.process, LinearProcess):
            raise TypeError(
                f"EulerMaruyama discretises the SDE of a Markov process, and "
                f"{type(self.process).__name__} is none; ReverseSDE, Bridge, Heun and "
                "ProbabilityFlow use its laws at single times only"
            )
        self.markov = self.process

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        tau = self.process.schedule.tau(torch.tensor([t, s], dtype=torch.float64))
        delta = float(tau[0] - tau[1])
        stiffness = delta * float(self.markov.damping.max())
        if stiffness > 2:
            raise ValueError(
                f"{self.steps} steps are too few for the Euler–Maruyama rule: λΔ = {stiffness:.3g} "
                "in the most damped degree, unstable above 2; take more steps, or ReverseSDE, "
                "which is exact in the linear part"
            )
        q = self.markov.diffusion
        drift = self.markov.damping * x + q * self.denoiser.score(x, t)
        return x + delta * drift + (delta * q).sqrt() * self._white(x, noise), None


class Bridge(Sampler):
    """First-order exponential family between flow and SDE (Song et al. 2020, arXiv 2010.02502).

    Given x_t and X_0 = m, the process at s is a Gaussian bridge of variance b² = σ_s²(1 − e^{−2h}).
    A share η of its standard deviation is drawn afresh:

        x_s = α_s m + √(σ_s² − η²b²)·(x_t − α_t m)/σ_t + η b ξ.

    η = 1 is the reverse SDE by its exact bridge, η = 0 the probability flow by the exponential
    Euler rule.

    Args:
        denoiser: m(x, t).
        steps: number of steps.
        eta: η ∈ [0, 1].

    Raises:
        ValueError: η outside [0, 1], or fewer than two steps.
    """

    order = 1
    default_steps = 1500

    def __init__(self, denoiser: Denoiser, steps: int | None = None, eta: float = 1.0) -> None:
        super().__init__(denoiser, steps)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        self.eta = eta

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.process.marginal(t), self.process.marginal(s)
        m = self.denoiser(x, t)
        fresh = self.eta * (-torch.expm1(-2 * self.process.log_snr_gain(t, s))).sqrt()
        kept = sigma_s / sigma_t * (1 - fresh.square()).sqrt()
        x = alpha_s * m + kept * (x - alpha_t * m)
        if self.eta > 0:
            x = x + sigma_s * fresh * self._white(x, noise)
        return x, None


class Heun(Sampler):
    """Probability flow by Heun's rule in ψ: D = ½(F_t + F̃_s), F̃_s at the Euler point.

    Two evaluations a step.
    """

    order = 2
    default_steps = 64

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        reference, F = self.denoiser.reference, self.denoiser.residual
        z, turn = reference.standardise(x, t), reference.turn(t, s)
        F_t = F(z, t)
        F_s = F(z + turn * F_t, s)
        return reference.state(z + turn * 0.5 * (F_t + F_s), s), None


class Multistep(Sampler):
    """What the two-step rules share: D = F_t + (h/2h₋)(F_t − F₋)."""

    order = 2

    def extrapolate(
        self, z: Tensor, t: float, s: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        """D, h = log(α/σ)(s) − log(α/σ)(t) (broadcasting against ``z``), the memory to pass on."""
        h = self.process.log_snr_gain(t, s)
        F = self.denoiser.residual(z, t)
        if memory is None:
            return F, h, (F, h)
        previous, h_previous = memory
        return F + h / (2 * h_previous) * (F - previous), h, (F, h)


class ProbabilityFlow(Multistep):
    """Probability flow by the two-step multistep rule, one evaluation a step.

    z_s = z_t + (ψ_t − ψ_s) D.
    """

    default_steps = 64

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        reference = self.denoiser.reference
        z = reference.standardise(x, t)
        D, _, memory = self.extrapolate(z, t, s, memory)
        return reference.state(z + reference.turn(t, s) * D, s), memory


class ReverseSDE(Multistep):
    """Reverse SDE by the two-step multistep rule, second order in law, one evaluation a step.

    z_s = √(1 − b²) z_t + 2 cos ψ_s b²/(sin ψ_t + sin ψ_s) D + b ξ.
    """

    default_steps = 96

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        reference = self.denoiser.reference
        z = reference.standardise(x, t)
        D, h, memory = self.extrapolate(z, t, s, memory)
        here, there = reference.angle(t), reference.angle(s)
        fresh = -here.sin.square() * torch.expm1(-2 * h)
        drift = 2 * there.cos * fresh / (here.sin + there.sin) * D
        z = (1 - fresh).sqrt() * z + drift + fresh.sqrt() * self._white(x, noise)
        return reference.state(z, s), memory
