"""Samplers, tested on their output law and its order of convergence.

With a Gaussian denoiser every sampler is linear, mode by mode.  Fed with unit impulses instead of
noise (sample j sees draw j equal to one and all others zero), it returns its response to each
draw, so the variance of its output is the sum of squares over the batch: the exact law of the
code that ships, without Monte-Carlo error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from spherediff import harmonics
from spherediff.covariance import Covariance
from spherediff.denoise import Denoiser, GaussianDenoiser, MixtureDenoiser
from spherediff.gaussian import GaussianField, MultivariateGaussianField
from spherediff.posterior import Referenced
from spherediff.process import ConstantRate, LogSNR, OrnsteinUhlenbeck, Schedule
from spherediff.reference import Reference
from spherediff.sample import (
    Bridge,
    EulerMaruyama,
    Heun,
    Multistep,
    ProbabilityFlow,
    ReverseSDE,
    Sampler,
)
from spherediff.spectra import PowerLaw, Tabulated

# sixteen modes whose ratios of data to noise variance span the documented range
RATIOS = torch.logspace(-3, 2, 16, dtype=torch.float64)
KINDS: dict[str, Callable[..., Sampler]] = {
    "Euler–Maruyama": EulerMaruyama,
    "reverse bridge": Bridge,
    "half bridge": lambda denoiser, steps=None: Bridge(denoiser, steps, eta=0.5),
    "exponential Euler": lambda denoiser, steps=None: Bridge(denoiser, steps, eta=0.0),
    "Heun": Heun,
    "probability flow": ProbabilityFlow,
    "reverse SDE": ReverseSDE,
}


class Impulses:
    """Draw j is one for sample j and zero for all others."""

    def __init__(self, draws: int) -> None:
        self.count, self.drawn = draws, 0

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        out = torch.zeros(self.count, *event_shape, dtype=dtype)
        out[self.drawn] = 1
        self.drawn += 1
        return out


def gaussian_target(schedule: Schedule | None = None) -> GaussianDenoiser:
    noise = GaussianField(Tabulated([0.7] * 4), 3, dtype=torch.float64)
    process = OrnsteinUhlenbeck(noise, schedule)
    return GaussianDenoiser(process, 0.7 * RATIOS)


def output_variance(sampler: Sampler) -> torch.Tensor:
    draws = sampler.steps + 1
    return sampler.sample((draws,), generator=Impulses(draws)).square().sum(0)


def relative_error(sampler: Sampler) -> torch.Tensor:
    return output_variance(sampler) / (0.7 * RATIOS) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [LogSNR(), ConstantRate()])
def test_default_steps_keep_the_gaussian_law_within_one_percent(
    kind: str, schedule: Schedule
) -> None:
    assert relative_error(KINDS[kind](gaussian_target(schedule))).abs().max() < 0.01


def arrival_factor(gain: float, alpha: float, s: float) -> float:
    """y = z + ½ψF for m = gain · x and the reference γ: z = x/√C, F = (m/√C − αz)/s."""
    return 1 + 0.5 * math.atan2(s, alpha) * (gain - alpha) / s


def arrival_factors(alpha: float, S: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    s = math.sqrt(1 - alpha**2)
    return torch.stack([torch.tensor(arrival_factor(float(g), alpha, s)) for g in alpha * S / V])


def flow_limit(schedule: LogSNR) -> torch.Tensor:
    """Output variance for infinitely many steps of the flow, then the arrival."""
    denoiser = gaussian_target(schedule)
    S, C = 0.7 * RATIOS, 0.7
    alpha0, alpha1 = (float(denoiser.process.alpha(t)) for t in (0.0, 1.0))
    V0 = alpha0**2 * S + (1 - alpha0**2) * C
    V1 = alpha1**2 * S + (1 - alpha1**2) * C
    arrival = arrival_factors(alpha0, S, V0)
    return arrival**2 * C * V0 / V1  # the flow scales each mode by √(V0/V1)


def sde_limit(schedule: LogSNR) -> torch.Tensor:
    """The same for the reverse SDE, which forgets its start: Var = V0 + ρ²(C − V1)."""
    denoiser = gaussian_target(schedule)
    S, C = 0.7 * RATIOS, 0.7
    alpha0, alpha1 = (float(denoiser.process.alpha(t)) for t in (0.0, 1.0))
    V0 = alpha0**2 * S + (1 - alpha0**2) * C
    V1 = alpha1**2 * S + (1 - alpha1**2) * C
    # E[Y_0|Y_1] of the exact reversal: the regression of X_0 on X_1 under the forward process
    rho = (alpha1 / alpha0) * V0 / V1
    arrival = arrival_factors(alpha0, S, V0)
    return arrival**2 * (V0 + rho**2 * (C - V1))


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_convergence_and_limit(kind: str) -> None:
    schedule = LogSNR(3.0, -3.0)
    limit = (
        flow_limit(schedule)
        if kind in ("exponential Euler", "Heun", "probability flow")
        else (sde_limit(schedule))
    )
    if kind == "half bridge":  # between the two, with a limit of its own: extrapolate to h = 0
        coarse, fine = (
            output_variance(KINDS[kind](gaussian_target(schedule), n)) for n in (600, 1200)
        )
        limit = 2 * fine - coarse
    sampler = KINDS[kind](gaussian_target(schedule), 2)
    steps = np.array([160, 240, 360] if sampler.order == 1 else [60, 90, 135])
    errors = np.array(
        [
            float(
                (output_variance(KINDS[kind](gaussian_target(schedule), int(n))) / limit - 1)
                .square()
                .mean()
                .sqrt()
            )
            for n in steps
        ]
    )
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(sampler.order, abs=0.12)
    assert errors[-1] < (0.05 if sampler.order == 1 else 0.02)


@pytest.mark.parametrize("kind", ["reverse bridge", "exponential Euler", "probability flow"])
def test_code_equals_an_independent_scalar_recursion(kind: str) -> None:
    schedule, steps, C = LogSNR(2.0, -4.0), 11, 0.7
    sampler = KINDS[kind](gaussian_target(schedule), steps)
    log_snr = np.linspace(schedule.low, schedule.high, steps + 1)
    alpha, s = 1 / np.sqrt(1 + np.exp(-2 * log_snr)), 1 / np.sqrt(1 + np.exp(2 * log_snr))
    expected = []
    for S in 0.7 * RATIOS.numpy():
        gain = alpha * S / (alpha**2 * S + s**2 * C)  # m = gain · x
        response, variance, previous = 1.0, C, None
        for k in range(steps):
            h = log_snr[k + 1] - log_snr[k]
            if kind == "reverse bridge":
                decay = math.exp(-h) * s[k + 1] / s[k]
                pull = alpha[k + 1] * (1 - math.exp(-2 * h)) * gain[k]
                fresh = s[k + 1] ** 2 * (1 - math.exp(-2 * h)) * C
                variance = (decay + pull) ** 2 * variance + fresh
                continue
            F = (gain[k] - alpha[k]) / s[k] * response  # of z = x/√C, the reference being γ
            turn = math.atan2(s[k], alpha[k]) - math.atan2(s[k + 1], alpha[k + 1])
            if kind == "exponential Euler":  # x ← (s'/s)x + α'(1 − e^{−h})m
                pull = alpha[k + 1] * (1 - math.exp(-h)) * gain[k]
                response = s[k + 1] / s[k] * response + pull * response
                continue
            D = F if previous is None else 1.5 * F - 0.5 * previous  # the steps are even
            previous = F
            response = response + turn * D
        arrival = arrival_factor(gain[-1], alpha[-1], s[-1])
        expected.append(arrival**2 * (variance if kind == "reverse bridge" else response**2 * C))
    np.testing.assert_allclose(output_variance(sampler), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_means_are_kept(kind: str) -> None:
    process = OrnsteinUhlenbeck(
        GaussianField(Tabulated(torch.ones(4)), 3, dtype=torch.float64), LogSNR()
    )
    mean = torch.linspace(-2, 2, 16, dtype=torch.float64)
    denoiser = GaussianDenoiser(process, RATIOS, mean=mean)

    class Silent:
        def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(1, *event_shape, dtype=dtype)

    x = KINDS[kind](denoiser).sample((1,), generator=Silent())[0]
    # the noise end forgets α(1)√(S/C) of the mean, at most e^{−5}·10 of it
    bound = 0.01 * mean.abs() + math.exp(-5) * RATIOS.sqrt() * mean.abs() + 1e-9
    assert ((x - mean).abs() <= bound).all()


def mixture_denoiser(lmax: int = 3, weights: Sequence[float] = (0.7, 0.3)) -> MixtureDenoiser:
    noise = GaussianField(PowerLaw(1.0, 3.0), lmax, dtype=torch.float64)
    process = OrnsteinUhlenbeck(noise, LogSNR())
    C = noise.variance_per_coefficient
    sign = torch.ones_like(C)
    sign[::2] = -1
    return MixtureDenoiser(
        [
            GaussianDenoiser(process, 0.3 * C, mean=0.8 * sign * C.sqrt()),
            GaussianDenoiser(process, 0.8 * C, mean=-1.2 * sign * C.sqrt()),
        ],
        weights,
    )


def draw_mixture(denoiser: MixtureDenoiser, count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    weights = np.exp(denoiser.log_weights)
    which = rng.choice(len(weights), size=count, p=weights / weights.sum())
    mean = torch.stack([c.mean for c in denoiser.components])[which]
    std = torch.stack([c.covariance.variance for c in denoiser.components])[which].sqrt()
    return mean + std * torch.from_numpy(rng.standard_normal(mean.shape))


def energy_test_p(x: torch.Tensor, y: torch.Tensor, permutations: int, seed: int) -> float:
    """p-value of the two-sample energy test (Székely & Rizzo 2004) by permutation."""
    pooled = torch.cat([x, y])
    distance = torch.cdist(pooled, pooled)
    n, generator = len(x), torch.Generator().manual_seed(seed)

    def statistic(order: torch.Tensor) -> float:
        label = torch.full((len(pooled),), -1 / len(y), dtype=torch.float64)
        label[order[:n]] = 1 / n
        return float(-label @ distance @ label)

    observed = statistic(torch.arange(len(pooled)))
    null = [
        statistic(torch.randperm(len(pooled), generator=generator)) for _ in range(permutations)
    ]
    return (1 + sum(value >= observed for value in null)) / (1 + permutations)


@pytest.mark.parametrize("kind", ["Heun", "probability flow", "reverse SDE"])
def test_mixture_samples_pass_a_two_sample_test(kind: str) -> None:
    denoiser = mixture_denoiser()
    scale = denoiser.process.field.std_per_coefficient
    generator = torch.Generator().manual_seed(2)
    x = KINDS[kind](denoiser).sample((600,), generator=generator) / scale
    y = draw_mixture(denoiser, 600, seed=3) / scale
    assert energy_test_p(x, y, 999, seed=4) > 1e-3  # the false-alarm rate
    # and the test has the power to see wrong weights
    wrong = KINDS[kind](mixture_denoiser(weights=(0.5, 0.5))).sample(
        (600,), generator=torch.Generator().manual_seed(2)
    )
    assert energy_test_p(wrong / scale, y, 999, seed=4) == 1e-3
    # the share of the first component, told apart by its sign pattern, is binomial
    mean = denoiser.components[0].mean / scale
    share = int(((x @ mean) > 0).sum())
    exact = float(((draw_mixture(denoiser, 200_000, seed=5) / scale) @ mean > 0).double().mean())
    assert stats.binomtest(share, 600, exact).pvalue > 1e-3


def output_entropy(data: Callable[[torch.Tensor], torch.Tensor], lmax: int) -> float:
    """KL(output law ‖ γ) in nats for a Gaussian target, from the exact output variance.

    The flow takes 1024 steps, since its error in the variance, e, adds e²/4 for every mode.
    """
    noise = GaussianField(PowerLaw(1.0, 4.0), lmax, dtype=torch.float64)
    table = noise.degree_variance * data(torch.arange(lmax + 1))
    target = GaussianField(Tabulated(table), lmax, dtype=torch.float64)
    denoiser = GaussianDenoiser(OrnsteinUhlenbeck(noise), target.variance_per_coefficient)
    sampler = ProbabilityFlow(denoiser, 1024)
    r = sampler.sample((1,), generator=Impulses(1))[0].square() / noise.variance_per_coefficient
    return float((0.5 * (r - 1 - r.log())).sum())


def test_entropy_of_samples_converges_exactly_when_feldman_hajek_holds() -> None:
    """KL of the samples to γ as lmax doubles: bounded for r = 1 + O(ℓ^{−2}), ∝ lmax² for r = 2."""
    limits = (32, 64, 128)

    def equivalent(ell: torch.Tensor) -> torch.Tensor:
        return 1 + 3 * (1.0 + ell) ** -2

    def singular(ell: torch.Tensor) -> torch.Tensor:
        return torch.full(ell.shape, 2.0)

    held = [output_entropy(equivalent, lmax) for lmax in limits]
    failed = [output_entropy(singular, lmax) for lmax in limits]
    exact = 0.5 * sum(
        (2 * ell + 1) * (r - 1 - math.log(r))
        for ell in range(20_000)
        for r in [1 + 3 * (1.0 + ell) ** -2]
    )
    assert held[2] == pytest.approx(exact, rel=0.02)
    assert (held[2] - held[1]) < 0.5 * (held[1] - held[0])
    # one mode's share is ½(1 − log 2)
    for lmax, entropy in zip(limits, failed, strict=True):
        assert entropy == pytest.approx(0.5 * (1 - math.log(2)) * (lmax + 1) ** 2, rel=0.02)


@pytest.mark.parametrize("kind", ["reverse bridge", "probability flow", "reverse SDE"])
def test_samples_do_not_depend_on_the_batch_or_on_the_band_limit(kind: str) -> None:
    def draw(lmax: int, batch: int) -> torch.Tensor:
        noise = GaussianField(PowerLaw(1.0, 3.0), lmax, dtype=torch.float64)
        data = GaussianField(PowerLaw(2.0, 3.5), lmax, dtype=torch.float64)
        denoiser = GaussianDenoiser(OrnsteinUhlenbeck(noise), data.variance_per_coefficient)
        generator = torch.Generator().manual_seed(11)
        return KINDS[kind](denoiser, 8).sample((batch,), generator=generator)

    torch.testing.assert_close(draw(4, 5)[:2], draw(9, 2)[:, :25], rtol=1e-12, atol=1e-14)


def test_one_generator_a_sample() -> None:
    sampler = ReverseSDE(gaussian_target(), 8)
    seeds = [torch.Generator().manual_seed(k) for k in (3, 4)]
    both = sampler.sample((2,), generator=seeds)
    alone = sampler.sample((1,), generator=[torch.Generator().manual_seed(4)])
    torch.testing.assert_close(both[1:], alone)


def test_channels_no_grad_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    C = torch.stack([PowerLaw(1.0, 3.0)(torch.arange(5)), PowerLaw(4.0, 3.0)(torch.arange(5))])
    process = OrnsteinUhlenbeck(GaussianField(Tabulated(C), 4, dtype=torch.float64))
    weight = torch.nn.Parameter(torch.ones(2, 25, dtype=torch.float64))

    class Learned(Denoiser):
        def __init__(self) -> None:
            self.process = process

        def __call__(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
            return weight * x

    generator = torch.Generator().manual_seed(0)
    x = ProbabilityFlow(Learned(), 4).sample((3,), generator=generator, progress=True)
    assert x.shape == (3, 2, 25)
    assert not x.requires_grad
    assert "ProbabilityFlow: 100%" in capsys.readouterr().err


def test_data_that_vary_much_less_than_the_noise_need_a_reference_of_their_own() -> None:
    noise = GaussianField(Tabulated([1.0] * 4), 3, dtype=torch.float64)
    process = OrnsteinUhlenbeck(noise)
    variance = torch.full((16,), 1e-5, dtype=torch.float64)
    denoiser = GaussianDenoiser(process, variance)
    assert (output_variance(ProbabilityFlow(denoiser)) / variance - 1).min() > 0.5
    near = Referenced(denoiser, Reference(process, denoiser.mean, variance))
    torch.testing.assert_close(output_variance(ProbabilityFlow(near)), variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_batch_is_drawn_without_the_denoiser(kind: str, shape: tuple[int, ...]) -> None:
    class OfSome(GaussianDenoiser):
        def __call__(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
            raise AssertionError("called for no fields")

    noise = GaussianField(PowerLaw(1.0, 3.0), 2, dtype=torch.float64)
    denoiser = OfSome(OrnsteinUhlenbeck(noise), noise.variance_per_coefficient)
    x = KINDS[kind](denoiser, 8).sample(shape, generator=torch.Generator())
    assert x.shape == (*shape, 9)
    assert x.dtype == torch.float64


def test_every_sampler_states_its_order() -> None:
    for kind in (EulerMaruyama, Bridge, Heun, ProbabilityFlow, ReverseSDE):
        assert kind.order in (1, 2)
    assert issubclass(ProbabilityFlow, Multistep)


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 2 steps"):
        Heun(gaussian_target(), 1)
    with pytest.raises(ValueError, match="eta must lie in"):
        Bridge(gaussian_target(), eta=1.5)
    with pytest.raises(TypeError, match="expected a torch.Generator"):
        Heun(gaussian_target()).sample((2,), generator=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one generator or 3"):
        Heun(gaussian_target()).sample((3,), generator=[torch.Generator()])


def test_noise_correlated_across_channels_is_white_in_whitened_channels() -> None:
    """Noise and data with matrix spectra C and S: draws have S, at every degree.

    y = L_ℓ⁻¹x has white noise and the covariance L⁻¹SL⁻ᵀ at each order; 3000 draws, false alarm
    1 in 10⁴ for all of the 5·3 numbers together.
    """
    lmax, count = 4, 3000
    ell = torch.arange(lmax + 1, dtype=torch.float64)[:, None, None]
    C = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64) / (1 + ell) ** 2
    S = torch.tensor([[0.8, -0.3], [-0.3, 0.4]], dtype=torch.float64) / (1 + ell) ** 3
    noise = MultivariateGaussianField(C, dtype=torch.float64)
    flat = Tabulated(torch.ones(2, lmax + 1, dtype=torch.float64))
    white = GaussianField(flat, lmax, dtype=torch.float64)
    root = torch.linalg.cholesky(S)
    n = white.event_shape[1]
    factor = torch.zeros(2 * n, 2, n, dtype=torch.float64)
    for i, degree in enumerate(harmonics.degrees(lmax)):
        factor[2 * i, :, i], factor[2 * i + 1, :, i] = root[degree].T
    factor = noise.whiten(factor)
    covariance = Covariance(torch.full((2, n), 1e-12, dtype=torch.float64), factor)
    denoiser = GaussianDenoiser(OrnsteinUhlenbeck(white), covariance=covariance)
    generator = torch.Generator().manual_seed(0)
    x = noise.color(ProbabilityFlow(denoiser).sample((count,), generator=generator))
    products = torch.einsum("kcn,kdn->ncd", x, x) / count
    for degree in range(lmax + 1):
        found = products[degree**2 : (degree + 1) ** 2].mean(0)
        size = S[degree].diagonal().outer(S[degree].diagonal())
        error = ((S[degree].square() + size) / (count * (2 * degree + 1))).sqrt()
        assert ((found - S[degree]).abs() < 4.6 * error + 0.01 * size.sqrt()).all()
