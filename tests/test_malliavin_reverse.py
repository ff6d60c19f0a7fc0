"""Reversed nonlinear diffusions: their output law with exact scores, their order in the step."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy import stats

from spherediff.malliavin import SDE, euler_maruyama
from spherediff.malliavin.processes import Langevin, StudentDiffusion, log_cosh
from spherediff.malliavin.reverse import (
    covariance_product,
    divergence,
    geometric_times,
    noise_product,
    power_times,
    probability_flow,
    reverse_euler_maruyama,
    reverse_heun,
    stratonovich,
)
from spherediff.streams import PlainDraws

DOUBLE = torch.float64
# Kolmogorov–Smirnov tests below fail by chance once in 10⁴ seeds each; their seeds are fixed.
LEVEL = 1e-4


def order(steps, errors):
    """Slope of log error against log step length."""
    return -stats.linregress([math.log(n) for n in steps], [math.log(e) for e in errors]).slope


# ---- a linear SDE, where a sampler with the exact score is a linear map ----

A = torch.tensor([[-1.0, 0.7], [-0.4, -0.5]], dtype=DOUBLE)
S = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.8, -0.4]], dtype=DOUBLE)
START = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=DOUBLE)
LINEAR = SDE(lambda t, x: A @ x, lambda t: S)


def linear_covariance(t):
    """e^{At}Σ₀e^{Aᵀt} + ∫e^{As}SSᵀe^{Aᵀs}ds by Van Loan's block exponential."""
    block = torch.zeros(4, 4, dtype=DOUBLE)
    block[:2, :2], block[:2, 2:], block[2:, 2:] = -A, S @ S.T, A.T
    exponential = torch.linalg.matrix_exp(block * t)
    flow = exponential[2:, 2:].T
    return flow @ START @ flow.T + flow @ exponential[:2, 2:]


def linear_score(x, t):
    return -torch.linalg.solve(linear_covariance(float(t[0])), x.T).T


class Impulses:
    """Noise component l of draw k is one for one sample and zero for all others."""

    def __init__(self, skip, steps):
        self.count, self.next = skip + 3 * steps, skip

    def normal(self, event_shape, dtype):
        out = torch.zeros(self.count, *event_shape, dtype=dtype)
        for component in range(event_shape[0]):
            out[self.next, component] = 1
            self.next += 1
        return out


def output_covariance(sampler, times):
    steps = len(times) - 1
    x = torch.zeros(2 + 3 * steps, 2, dtype=DOUBLE)
    x[:2] = torch.linalg.cholesky(linear_covariance(float(times[0]))).T
    extra = {} if sampler is probability_flow else {"generator": Impulses(2, steps)}
    response = sampler(LINEAR, linear_score, x, times, **extra)
    return response.T @ response


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [(reverse_euler_maruyama, 1), (reverse_heun, 2), (probability_flow, 2)],
)
def test_order_in_law_on_a_linear_sde(sampler, expected):
    steps = [12, 24, 48, 96]
    exact = linear_covariance(0.1)
    errors = [
        float(
            (output_covariance(sampler, power_times(2.0, 0.1, n, dtype=DOUBLE)) - exact).norm()
            / exact.norm()
        )
        for n in steps
    ]
    assert order(steps, errors) == pytest.approx(expected, abs=0.2)
    assert errors[-1] < (0.06 if expected == 1 else 4e-3)


# ---- the sinh process, rotated: X = R sinh Z, Z_t ~ N(m, s + t) in each coordinate ----

ROTATION = torch.linalg.qr(
    torch.randn(3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
).Q
SINH = SDE(
    lambda t, x: x / 2,
    lambda t, x: ROTATION * torch.sqrt(1 + (ROTATION.T @ x).square()),
)
MEAN, VARIANCE = 0.4, 0.5


def sinh_score(x, t):
    y = x @ ROTATION
    root = torch.sqrt(1 + y.square())
    z = torch.asinh(y)
    return (-(z - MEAN) / ((VARIANCE + t[:, None]) * root) - y / root.square()) @ ROTATION.T


def test_flow_of_the_sinh_process_carries_quantiles_to_quantiles_with_order_two():
    z = torch.linspace(-1.5, 2, 8, dtype=DOUBLE)[:, None] * torch.tensor([1.0, -0.5, 0.7])
    exact = torch.sinh(MEAN + (z - MEAN) * math.sqrt(VARIANCE / (VARIANCE + 1.0))) @ ROTATION.T
    steps, errors = [12, 24, 48], []
    for n in steps:
        times = torch.linspace(1, 0, n + 1, dtype=DOUBLE)
        out = probability_flow(SINH, sinh_score, torch.sinh(z) @ ROTATION.T, times)
        errors.append(float((out - exact).norm() / exact.norm()))
    assert order(steps, errors) == pytest.approx(2, abs=0.2)
    assert errors[-1] < 3e-3


@dataclass
class GivenPath:
    """Increments of a fine Brownian path, gathered into fewer, longer steps."""

    fine: torch.Tensor
    horizon: float
    steps: int
    at: int = 0

    def normal(self, event_shape, dtype):
        group = len(self.fine) // self.steps
        out = self.fine[self.at * group : (self.at + 1) * group].sum(0)
        self.at += 1
        return out * math.sqrt(self.steps / self.horizon)


@pytest.mark.parametrize(
    ("sampler", "lowest"), [(reverse_euler_maruyama, 0.4), (reverse_heun, 0.9)]
)
def test_reversed_sinh_process_along_given_noise(sampler, lowest):
    """In z = asinh Rᵀx the reversed equation is linear: dZ = −(Z − m)/(s + t) dτ + dB̄."""
    count, fine, horizon = 300, 2048, 0.5
    generator = torch.Generator().manual_seed(0)
    shape = (fine, count, 3)
    dB = torch.randn(shape, dtype=DOUBLE, generator=generator) * math.sqrt(horizon / fine)
    spread = math.sqrt(VARIANCE + horizon)
    start = MEAN + spread * torch.randn(count, 3, dtype=DOUBLE, generator=generator)
    # d[(Z − m)/(s + t)] = dB̄/(s + t), a martingale
    middle = horizon * (1 - (torch.arange(fine, dtype=DOUBLE) + 0.5) / fine)
    sums = (dB / (VARIANCE + middle)[:, None, None]).sum(0)
    exact = torch.sinh(MEAN + VARIANCE * ((start - MEAN) / (VARIANCE + horizon) + sums))
    steps, errors = [8, 16, 32, 64], []
    for n in steps:
        times = torch.linspace(horizon, 0, n + 1, dtype=DOUBLE)
        source = GivenPath(dB, horizon, n)
        out = sampler(SINH, sinh_score, torch.sinh(start) @ ROTATION.T, times, generator=source)
        errors.append(float((out @ ROTATION - exact).abs().mean()))
    assert order(steps, errors) > lowest
    assert errors[-1] < 0.1


def test_products_and_derivatives_of_a_full_diffusion_matrix():
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 6, 3, dtype=DOUBLE, generator=generator)
    t = torch.zeros(6, dtype=DOUBLE)
    sigma = SINH.diffusion(t, x)
    assert torch.allclose(noise_product(SINH, t, x, v), (sigma @ v[..., None])[..., 0])
    assert torch.allclose(
        covariance_product(SINH, t, x, v), (sigma @ sigma.mT @ v[..., None])[..., 0]
    )
    # a = R diag(1 + y²) Rᵀ with y = Rᵀx: ∇·a = R 2y, and Σ ∂σ_l σ_l = R y
    assert torch.allclose(divergence(SINH, t, x), 2 * x)
    assert torch.allclose(stratonovich(SINH, t, x), x)


# ---- laws that stay, and laws that come back ----


@pytest.mark.parametrize(
    "process",
    [
        Langevin(log_cosh),
        Langevin(lambda x: x**4 / 4 - x**2, reach=12.0),
        StudentDiffusion(6.0, 0.7),
    ],
)
def test_reversible_flow_stands_still(process):
    x = process.invariant(50, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    t = torch.zeros(50, dtype=DOUBLE)
    s = process.invariant_score(x)
    half = divergence(process.sde, t, x) + covariance_product(process.sde, t, x, s)
    assert torch.allclose(process.sde.drift(t, x), 0.5 * half, atol=1e-10)


@pytest.mark.parametrize("sampler", [reverse_euler_maruyama, reverse_heun])
def test_double_well_in_equilibrium_stays(sampler):
    count, generator = 3000, torch.Generator().manual_seed(3)
    process = Langevin(lambda x: x**4 / 4 - x**2, reach=12.0)
    x = process.invariant(count, 2, generator=generator, dtype=DOUBLE)
    times = torch.linspace(1, 0, 51, dtype=DOUBLE)
    y = sampler(
        process.sde,
        lambda x, t: process.invariant_score(x),
        x,
        times,
        generator=PlainDraws(generator, count),
    )
    fresh = process.invariant(100_000, 1, generator=generator, dtype=DOUBLE)[:, 0]
    assert (y - x).abs().mean() > 0.3
    for k in range(2):
        assert stats.ks_2samp(y[:, k].numpy(), fresh.numpy()).pvalue > LEVEL


@pytest.mark.parametrize("sampler", [reverse_euler_maruyama, reverse_heun])
def test_tanh_drift_comes_back_to_its_data(sampler):
    """p_0 ∝ cosh(x)e^{−x²/2s} gives p_t ∝ cosh(x)e^{−x²/2(s+t)}, two normal laws at ±(s+t)."""
    count, s, generator = 4000, 1.0, torch.Generator().manual_seed(4)
    sde = SDE(lambda t, x: torch.tanh(x), 1.0)

    def law(t):
        sign = torch.randint(2, (count, 1), generator=generator) * 2 - 1
        noise = torch.randn(count, 1, dtype=DOUBLE, generator=generator)
        return sign * (s + t) + math.sqrt(s + t) * noise

    y = sampler(
        sde,
        lambda x, t: torch.tanh(x) - x / (s + t[:, None]),
        law(1.0),
        torch.linspace(1, 0, 51, dtype=DOUBLE),
        generator=PlainDraws(generator, count),
    )

    def distribution(x):
        return 0.5 * (stats.norm.cdf(x, s, math.sqrt(s)) + stats.norm.cdf(x, -s, math.sqrt(s)))

    assert stats.kstest(y[:, 0].numpy(), distribution).pvalue > LEVEL


@pytest.mark.parametrize(
    ("process", "law"),
    [
        (Langevin(log_cosh), stats.logistic(scale=0.5)),
        (StudentDiffusion(8.0, 1.5), stats.t(8, scale=math.sqrt(1.5 * 6 / 8))),
    ],
)
def test_invariant_laws(process, law):
    """Draws are quantiles of the law named, and simulated paths approach it."""
    count, generator = 4000, torch.Generator().manual_seed(6)
    draws = process.invariant(2000, 1, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    uniform = torch.rand(2000, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    assert draws[:, 0].numpy() == pytest.approx(law.ppf(uniform[:, 0].numpy()), abs=1e-3)
    x0 = torch.full((count, 1), 1.5, dtype=DOUBLE)
    times = torch.linspace(0, 5, 201, dtype=DOUBLE)
    path = euler_maruyama(process.sde, x0, times, generator=PlainDraws(generator, count))
    assert stats.kstest(path.end[:, 0].numpy(), law.cdf).pvalue > LEVEL
    assert stats.kstest(path.states[20, :, 0].numpy(), law.cdf).pvalue < 1e-6


def test_time_grids():
    times = geometric_times(4.0, 0.01, 8, dtype=DOUBLE)
    assert torch.allclose(times[1:] / times[:-1], torch.tensor(400 ** (-1 / 8), dtype=DOUBLE))
    assert float(times[-1]) == pytest.approx(0.01)
    times = power_times(4.0, 0.0, 8, power=2.0, dtype=DOUBLE)
    assert torch.allclose(times.sqrt().diff(), torch.tensor(-0.25, dtype=DOUBLE))
    assert float(times[-1]) == 0
    with pytest.raises(ValueError, match="0 < end < start"):
        geometric_times(1.0, 0.0, 8, dtype=DOUBLE)
    with pytest.raises(ValueError, match="0 ≤ end < start"):
        power_times(1.0, 2.0, 8, dtype=DOUBLE)


def test_errors():
    x = torch.zeros(3, 2)
    sde = SDE(lambda t, x: -x, 1.0)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="falling times"):
        probability_flow(sde, lambda x, t: -x, x, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="3 of 3 reversed paths are not finite"):
        reverse_euler_maruyama(
            sde,
            lambda x, t: x / 0,
            x,
            torch.tensor([1.0, 0.5]),
            generator=generator,
        )
    with pytest.raises(ValueError, match="does not end within"):
        Langevin(log_cosh, reach=5.0)
    with pytest.raises(ValueError, match="two degrees of freedom"):
        StudentDiffusion(2.0)
