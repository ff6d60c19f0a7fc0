"""The law of a sampler's output: exactly, without Monte Carlo.

With the denoiser of a Gaussian whose covariance is diagonal every sampler is an affine map of its
draws, coefficient by coefficient.  Fed with silence it returns the mean of its output; fed with a
unit impulse in place of draw j, the response to that draw.  The squares of the responses add up to
the variance of the output.  For isotropic data all orders of a degree are alike, so one
coefficient a degree is enough.

For a single coefficient with any law the density of the output follows by quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spherediff.bounds.gaussian import GaussianTarget
from spherediff.denoise import Denoiser, GaussianDenoiser, MixtureDenoiser
from spherediff.gaussian import GaussianField
from spherediff.harmonics import count, expand, sum_orders
from spherediff.process import ConstantRate, OrnsteinUhlenbeck, Schedule
from spherediff.sample import Memory, Sampler
from spherediff.spectra import Tabulated
from spherediff.streams import NormalSource

_ELEMENTS_AT_ONCE = 2**20


def own_pace(process: object) -> tuple[OrnsteinUhlenbeck, float]:
    """Greco's process and its horizon T, if it runs at its own pace.

    Raises:
        TypeError: another process than ``OrnsteinUhlenbeck`` under ``ConstantRate``.
    """
    schedule = getattr(process, "schedule", None)
    if not (isinstance(process, OrnsteinUhlenbeck) and isinstance(schedule, ConstantRate)):
        raise TypeError(
            "the bound speaks of steps that are even in the own time of Greco's process: expected "
            "OrnsteinUhlenbeck(field, ConstantRate(T)), got "
            f"{type(process).__name__} under {schedule!r}"
        )
    return process, schedule.horizon


class FrozenScore(Sampler):
    """The scheme of the theorem: the reverse SDE with the score held during each step.

    N steps of size h = T/N in the process's own time, from T down to 0, each integrated exactly,

        x ← e^{−h} x + 2(1 − e^{−h}) D log h(x) + √(1 − e^{−2h}) ξ,  ξ ~ γ

    (Conforti, Durmus & Gentiloni Silveri 2023, arXiv 2308.12240).  The score is never evaluated at
    the data end, so the scheme stops at 0 itself and not before.

    Args:
        denoiser: m(x, t) of a process with the schedule ``ConstantRate(T)``.
        steps: N.

    Raises:
        ValueError: fewer than two steps.
        TypeError: another process than ``OrnsteinUhlenbeck`` under ``ConstantRate``.
    """

    order = 1
    default_steps = 1000

    def __init__(self, denoiser: Denoiser, steps: int | None = None) -> None:
        super().__init__(denoiser, steps)
        _, self.horizon = own_pace(denoiser.process)
        self.step_size = self.horizon / self.steps

    @property
    def times(self) -> list[float]:
        """1, 1 − 1/N, …, 0."""
        return [1 - k / self.steps for k in range(self.steps)] + [0.0]

    def step(
        self, x: Tensor, t: float, s: float, noise: NormalSource, memory: Memory
    ) -> tuple[Tensor, Memory]:
        fresh = self.process.field.color(self._white(x, noise))
        spread = math.sqrt(-math.expm1(-2 * self.step_size))
        return self.predicted(x, t) + spread * fresh, None

    def predicted(self, x: Tensor, t: float) -> Tensor:
        """Mean of the next state, given the state ``x`` at time ``t``."""
        decay = math.exp(-self.step_size)
        return decay * x + 2 * (1 - decay) * self.denoiser.malliavin_gamma_score(x, t)

    def _arrive(self, x: Tensor) -> Tensor:
        return x


class _Impulses:
    """Draw ``first`` + j is one for sample j and zero for the others; every other draw is zero."""

    def __init__(self, first: int, samples: int) -> None:
        self.first, self.samples, self.drawn = first, samples, 0

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        out = torch.zeros(self.samples, *event_shape, dtype=dtype)
        if self.first <= self.drawn < self.first + self.samples:
            out[self.drawn - self.first] = 1
        self.drawn += 1
        return out


def output_law(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Mean and variance of each coefficient of a sampler's output, exactly.

    The output is Gaussian with independent coefficients.

    Args:
        sampler: any sampler over a :class:`~spherediff.denoise.GaussianDenoiser` with a diagonal
            covariance.

    Returns:
        Mean and variance, shape ``event_shape``.

    Raises:
        TypeError: another denoiser.
        ValueError: a covariance that is not diagonal.
    """
    if not isinstance(sampler.denoiser, GaussianDenoiser):
        raise TypeError(
            "expected the denoiser of a Gaussian, whose samplers are linear, got "
            f"{type(sampler.denoiser).__name__}"
        )
    if len(sampler.denoiser.covariance.factor):
        raise ValueError("expected a diagonal covariance: impulses excite all coefficients at once")
    silence = _Impulses(first=-1, samples=1)
    mean = sampler.sample((1,), generator=silence)[0]
    variance = torch.zeros_like(mean)
    at_once = max(1, _ELEMENTS_AT_ONCE // mean.numel())
    for first in range(0, silence.drawn, at_once):
        samples = min(at_once, silence.drawn - first)
        responses = sampler.sample((samples,), generator=_Impulses(first, samples)) - mean
        variance += responses.square().sum(0)
    return mean, variance


def output_entropy(
    target: GaussianTarget,
    sampler: Callable[[GaussianDenoiser], Sampler],
    schedule: Schedule | None = None,
    score: GaussianTarget | None = None,
) -> Tensor:
    """KL(data | law of the sampler's output) by degree, exactly, in nats.

    Args:
        target: the data.
        sampler: makes the sampler from a denoiser, such as ``lambda d: ReverseSDE(d, steps=64)``.
        schedule: of the process; evenly spaced log-SNR if not given.
        score: the Gaussian whose denoiser the sampler uses; the data's own if not given.

    Returns:
        float64, shape (lmax+1,) or (channels, lmax+1).
    """
    used = target if score is None else score
    gain, ratio = _response(used.excess.flatten(), sampler, schedule)
    gain, ratio = (v.reshape(target.excess.shape) for v in (gain, ratio))
    # data against output: variance ratio S/v and squared distance of the means over v
    excess = (1 + target.excess) / ratio - 1
    missing = target.noise.whiten(target.mean - expand(gain) * used.mean)
    return 0.5 * (
        target.multiplicity * (excess - excess.log1p()) + sum_orders(missing.square()) / ratio
    )


def _response(
    excess: Tensor, sampler: Callable[[GaussianDenoiser], Sampler], schedule: Schedule | None
) -> tuple[Tensor, Tensor]:
    """Output mean for the mean one, and variance, of whitened modes with r − 1 = ``excess``."""
    lmax = math.ceil(math.sqrt(len(excess))) - 1
    white = GaussianField(Tabulated([1.0] * (lmax + 1)), lmax, dtype=torch.float64)
    ratio = torch.ones(count(lmax), dtype=torch.float64)
    ratio[: len(excess)] += excess
    denoiser = GaussianDenoiser(
        OrnsteinUhlenbeck(white, schedule), ratio, mean=torch.ones_like(ratio)
    )
    mean, variance = output_law(sampler(denoiser))
    return mean[: len(excess)], variance[: len(excess)]


def one_mode_entropy(
    sampler: FrozenScore,
    data: GaussianDenoiser | MixtureDenoiser | None = None,
    points: int = 2001,
    extent: float = 9.0,
) -> float:
    """KL(data | output) in nats for a law of one coefficient (lmax = 0), by quadrature.

    The density of the state is carried from step to step on an even grid over ±``extent`` standard
    deviations of the noise; the trapezoidal rule is spectrally accurate as long as the spacing
    stays well below √(1 − e^{−2h}).

    Args:
        sampler: over any denoiser.
        data: the exact denoiser of the data; the sampler's own if not given.
        points: of the grid.
        extent: of the grid; beyond it there must be no mass.

    Raises:
        ValueError: more than one coefficient, or a grid too coarse for the step.
        TypeError: a denoiser without a density.
    """
    law, field = data or sampler.denoiser, sampler.process.field
    if not isinstance(law, MixtureDenoiser | GaussianDenoiser):
        raise TypeError(f"expected a Gaussian or a mixture, got {type(law).__name__}")
    if field.event_shape != (1,):
        raise ValueError(f"expected one coefficient, lmax = 0, got {field.event_shape}")
    spread = math.sqrt(-math.expm1(-2 * sampler.step_size))
    z = torch.linspace(-extent, extent, points, dtype=torch.float64)
    width = 2 * extent / (points - 1)
    if 2 * width > spread:
        raise ValueError(
            f"{points} points are too few for steps of {sampler.step_size:.3g}; take at least "
            f"{math.ceil(4 * extent / spread) + 1}"
        )
    x = field.color(z[:, None])
    gauss = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    density = gauss
    for t in sampler.times[:-1]:
        centre = field.whiten(sampler.predicted(x, t))[:, 0]
        kernel = torch.exp(-0.5 * ((z[:, None] - centre) / spread).square())
        density = kernel @ density * width / (spread * math.sqrt(2 * math.pi))
    wanted = gauss * law.log_density_ratio(x, 0.0).exp()
    inside = wanted > 1e-300
    ratio = wanted[inside] / density[inside]
    return float((wanted[inside] * ratio.log()).sum() * width)
