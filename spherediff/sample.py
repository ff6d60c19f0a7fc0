"""Reverse samplers: from noise to fields, over any denoiser and any forward process.

The reverse of dX = −λX dτ + √q dW and its probability flow are, with τ running backwards,

    dY = (λY + q∇log p(Y)) dτ + √q dW,    dY = (λY + ½q∇log p(Y)) dτ,    Y_0 ~ γ;

for Greco's process (arXiv 2505.13189) λY + q∇log p = −Y + 2 D log h.  In terms of the denoiser m
both have an exact linear part, which holds coefficient by coefficient for any α and σ with α/σ
falling: processes that are not Markov have a Markov twin with the same law at every time.  Between
two times t > s, with h = λ_s − λ_t > 0 the gain in λ = log(α/σ), m held at D:

    flow   x_s = (σ_s/σ_t) x_t + α_s (1 − e^{−h}) D,
    SDE    x_s = e^{−h} (σ_s/σ_t) x_t + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) ξ.

D = m(x_t, t) gives order one.  The multistep rule D = m_t + (h/2h₋)(m_t − m₋), with the previous
m₋ and step h₋, gives order two for one evaluation a step (Lu et al. 2022, arXiv 2211.01095).

All samplers step evenly in the schedule's log noise level, for Greco's process −λ itself; where
degrees turn into noise at different times h differs between them, and the schedule sees to it that
no h is large for a degree in passage.  They arrive at the data by Heun's rule
for the flow in the variable σ/α, whose slope is known to vanish at the end: with
d(x/α)/d(σ/α) = (x/α − m)/(σ/α), the last step to σ = 0 is x_0 = ½(m + x/α).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff.denoise import Denoiser
from spherediff.process import LinearProcess
from spherediff.streams import NormalSource, Randomness, open_source


class Sampler:
    """A way to integrate the reverse process.

    Args:
        denoiser: m(x, t); any :class:`~spherediff.denoise.Denoiser`.
        steps: number of steps, evenly spaced in log noise level.  If not given, ``default_steps``
            for every ten units of the schedule's span, at least once: they keep the variance of
            every mode of a Gaussian target within 1 % of its limit, for ratios of data to noise
            variance between 10⁻³ and 10².

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
        progress: bool = False,
    ) -> Tensor:
        """Draw fields.

        Sample k does not depend on the batch that it is drawn in.

        Args:
            shape: batch shape.
            generator: a CPU generator, or a sequence of them, one a sample.
            progress: show a progress bar with the time that remains.

        Returns:
            Coefficients, shape (*shape, *event_shape).
        """
        noise = open_source(generator, math.prod(shape))
        x = self.process.field.sample(shape, generator=noise)
        steps = list(pairwise(self.times))
        memory: Memory = None
        for t, s in tqdm(steps, desc=type(self).__name__, disable=not progress):
            x, memory = self.step(x, t, s, noise, memory)
        return self._arrive(x)

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """One step from time t to s < t; ``memory`` is what the last step passed on."""
        raise NotImplementedError

    def _arrive(self, x: Tensor) -> Tensor:
        t = self.times[-1]
        return 0.5 * (self.denoiser(x, t) + x / self.process.alpha(t))

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
    """Probability flow by the exponential Heun rule: D = ½(m_t + m̃_s), m̃_s at the Euler point.

    Two evaluations a step.
    """

    order = 2
    default_steps = 96

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        alpha_s, sigma_s = self.process.marginal(s)
        kept = sigma_s / self.process.sigma(t)
        gain = -alpha_s * torch.expm1(-self.process.log_snr_gain(t, s))
        m_t = self.denoiser(x, t)
        m_s = self.denoiser(kept * x + gain * m_t, s)
        return kept * x + gain * 0.5 * (m_t + m_s), None


class Multistep(Sampler):
    """What the two-step rules share: D = m_t + (h/2h₋)(m_t − m₋)."""

    order = 2

    def extrapolate(
        self, x: Tensor, t: float, s: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        """D, the step's h = λ_s − λ_t (broadcasting against ``x``), and the memory to pass on."""
        h = self.process.log_snr_gain(t, s)
        m = self.denoiser(x, t)
        if memory is None:
            return m, h, (m, h)
        previous, h_previous = memory
        return m + h / (2 * h_previous) * (m - previous), h, (m, h)


class ProbabilityFlow(Multistep):
    """Probability flow by the two-step multistep rule, one evaluation a step.

    x_s = (σ_s/σ_t) x_t + α_s(1 − e^{−h}) D.
    """

    default_steps = 64

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        D, h, memory = self.extrapolate(x, t, s, memory)
        alpha_s, sigma_s = self.process.marginal(s)
        kept = sigma_s / self.process.sigma(t)
        return kept * x - alpha_s * torch.expm1(-h) * D, memory


class ReverseSDE(Multistep):
    """Reverse SDE by the two-step multistep rule, second order in law, one evaluation a step.

    x_s = e^{−h}(σ_s/σ_t) x_t + α_s(1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) ξ.
    """

    default_steps = 96

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        D, h, memory = self.extrapolate(x, t, s, memory)
        alpha_s, sigma_s = self.process.marginal(s)
        kept = torch.exp(-h) * sigma_s / self.process.sigma(t)
        fresh = -torch.expm1(-2 * h)
        spread = sigma_s * fresh.sqrt()
        return kept * x + alpha_s * fresh * D + spread * self._white(x, noise), memory
