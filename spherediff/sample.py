"""Reverse samplers: from noise to fields, over any denoiser.

The reverse of Greco's process and its probability flow are (arXiv 2505.13189)

    dY = (−Y + 2 D log h(Y)) dτ + √2 dW^C,    dY = D log h(Y) dτ,    Y_0 ~ γ,

with τ running backwards.  In terms of the denoiser m both have an exact linear part.  Between two
times t > s, with h = λ_s − λ_t > 0 the gain in λ = log(α/σ), m held at D:

    flow   x_s = (σ_s/σ_t) x_t + α_s (1 − e^{−h}) D,
    SDE    x_s = e^{−h} (σ_s/σ_t) x_t + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) ξ.

D = m(x_t, t) gives order one.  The multistep rule D = m_t + (h/2h₋)(m_t − m₋), with the previous
m₋ and step h₋, gives order two for one evaluation a step (Lu et al. 2022, arXiv 2211.01095).

All samplers step evenly in λ over the schedule's range.  They arrive at the data by Heun's rule
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
from spherediff.streams import NormalSource, Randomness, open_source


class Sampler:
    """A way to integrate the reverse process.

    Args:
        denoiser: m(x, t); any :class:`~spherediff.denoise.Denoiser`.
        steps: number of steps, evenly spaced in λ; ``default_steps`` if not given, which keep the
            variance of every mode of a Gaussian target within 1 % under the default schedule, for
            ratios of data to noise variance between 10⁻³ and 10².

    Attributes:
        order: order of convergence of the output law in the step size.

    Raises:
        ValueError: fewer than two steps.
    """

    order: ClassVar[int]
    default_steps: ClassVar[int]

    def __init__(self, denoiser: Denoiser, steps: int | None = None) -> None:
        steps = self.default_steps if steps is None else steps
        if steps < 2:
            raise ValueError(f"expected at least 2 steps, got {steps}")
        self.denoiser, self.steps = denoiser, steps
        self.process = denoiser.process

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
    """Reverse SDE by the Euler–Maruyama rule, x ← x + Δ(−x + 2 D log h) + √(2Δ) ξ, ξ ~ γ.

    Δ is the step in process time τ.  Plain, and slow to converge: for comparison.
    """

    order = 1
    default_steps = 2000

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        tau = self.process.schedule.tau(torch.tensor([t, s], dtype=torch.float64))
        delta = float(tau[0] - tau[1])
        drift = 2 * self.denoiser.malliavin_gamma_score(x, t) - x
        fresh = self.process.field.color(self._white(x, noise))
        return x + delta * drift + math.sqrt(2 * delta) * fresh, None


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
        decay = (sigma_s * alpha_t) / (sigma_t * alpha_s)  # e^{−h}
        fresh = self.eta * (1 - decay.square()).sqrt()
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
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.process.marginal(t), self.process.marginal(s)
        kept = sigma_s / sigma_t
        gain = alpha_s - alpha_t * kept  # α_s(1 − e^{−h})
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
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.process.marginal(t), self.process.marginal(s)
        h = torch.log((alpha_s * sigma_t) / (alpha_t * sigma_s))
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
