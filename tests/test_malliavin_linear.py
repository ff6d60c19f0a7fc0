"""Linear SDEs: two routes to the covariance, the score, and the kernel estimator."""

from __future__ import annotations

import math

import pytest
import torch

from spherediff.malliavin import LinearSDE, conditional_expectation, euler_maruyama


def equation(d: int, m: int) -> LinearSDE:
    g = torch.Generator().manual_seed(10 * d + m)
    A, A1 = (0.6 * torch.randn(2, d, d, generator=g)).double()
    B, B1 = torch.randn(2, d, m, generator=g).double()
    a = torch.randn(d, generator=g).double()
    return LinearSDE(
        lambda t: A + A1 * torch.sin(3 * t), lambda t: B + t * B1, lambda t: a * torch.cos(t)
    )


@pytest.mark.parametrize(("d", "m"), [(1, 1), (2, 2), (4, 5), (8, 8)])
def test_malliavin_covariance_solves_fokker_planck(d, m):
    sde, start = equation(d, m), torch.zeros(d).double()
    moments = sde.moments(1.3, start, torch.zeros(d, d).double())
    gamma = sde.malliavin_covariance(1.3)
    assert torch.allclose(gamma, moments.covariance, rtol=1e-10, atol=1e-10)
    spread = torch.eye(d).double() + 0.3
    Y = sde.propagator(1.3)
    later = sde.moments(1.3, start, spread)
    assert torch.allclose(Y @ spread @ Y.T + gamma, later.covariance, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("d", "m"), [(1, 1), (3, 3), (8, 8)])
def test_score_is_the_gradient_of_the_log_density(d, m):
    sde = equation(d, m)
    mean, covariance = torch.linspace(-1, 1, d).double(), torch.eye(d).double() * 0.4
    law = torch.distributions.MultivariateNormal(*sde.moments(0.8, mean, covariance))
    y = torch.randn(6, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y.requires_grad_()
    expected = torch.autograd.grad(law.log_prob(y).sum(), y)[0]
    score = sde.score(y.detach(), 0.8, mean, covariance)
    assert torch.allclose(score, expected, rtol=1e-10, atol=1e-10)


def test_ornstein_uhlenbeck_in_closed_form():
    sde = LinearSDE(
        lambda t: torch.tensor([[-2.0]]).double(), lambda t: torch.tensor([[0.5]]).double()
    )
    variance = 0.25 * (1 - math.exp(-4 * 0.7)) / 4
    assert float(sde.malliavin_covariance(0.7)) == pytest.approx(variance, rel=1e-12)
    mean = sde.moments(0.7, torch.tensor([3.0]).double(), torch.zeros(1, 1).double()).mean
    assert float(mean) == pytest.approx(3 * math.exp(-1.4), rel=1e-12)


def test_paths_have_these_moments():
    # Euler–Maruyama with 400 steps; 4 + 2 numbers, |z| < 4.5 beside the bias of the step:
    # false-alarm rate 4e-5.
    sde = equation(2, 2)
    x0 = torch.tensor([[0.5, -0.5]]).double().expand(4000, 2)
    end = euler_maruyama(
        sde, x0, torch.linspace(0, 1, 401).double(), generator=torch.Generator().manual_seed(0)
    ).end
    mean, covariance = sde.moments(1.0, x0[0], torch.zeros(2, 2).double())
    scale = float(covariance.diagonal().max())
    assert torch.allclose(end.mean(0), mean, atol=4.5 * math.sqrt(scale / 4000) + 0.02)
    assert torch.allclose(
        torch.cov(end.T), covariance, atol=4.5 * scale * math.sqrt(2 / 4000) + 0.02 * scale
    )


def test_refusals():
    sde = LinearSDE(lambda t: -torch.eye(2).double(), lambda t: torch.ones(2, 1).double())
    with pytest.raises(ValueError, match="rank 1 of 2"):
        sde.score(torch.zeros(2), 1.0, torch.zeros(2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="positive time"):
        sde.propagator(0.0)


def test_local_planes_are_exact_for_planes():
    # A local linear fit reproduces linear functions whatever the bandwidth.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, dtype=torch.float64, generator=generator)
    values = torch.stack([2 * x[:, 0] - x[:, 1] + 1, x[:, 1]], 1)
    at = torch.tensor([[0.3, -0.2], [1.0, 0.5]]).double()
    estimate = conditional_expectation(values, x, at)
    assert torch.allclose(
        estimate.mean, torch.stack([2 * at[:, 0] - at[:, 1] + 1, at[:, 1]], 1), atol=1e-10
    )
    assert float(estimate.standard_error.max()) < 1e-10


def test_standard_error_covers():
    # y = x² + noise at 0 and 1 in 200 repeats: bias b² to first order; the z-scores have unit
    # variance within 4.5 of its standard error (2/200)^½.
    z = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        x, noise = torch.randn(2, 2000, 1, dtype=torch.float64, generator=generator)
        at = torch.tensor([[0.0], [1.0]]).double()
        estimate = conditional_expectation(x**2 + noise, x, at, bandwidth=0.1)
        z.append((estimate.mean - at**2 - 0.01) / estimate.standard_error)
    z = torch.stack(z)[..., 0]
    assert bool((z.mean(0).abs() < 4.5 / math.sqrt(200)).all())
    assert bool(((z.var(0) - 1).abs() < 4.5 * math.sqrt(2 / 200)).all())


def test_a_place_without_samples_is_refused():
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="more samples"):
        conditional_expectation(x, x, torch.tensor([[30.0]]))
    with pytest.raises(ValueError, match="expected values"):
        conditional_expectation(x, x, torch.zeros(2, 2))
