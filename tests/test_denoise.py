"""Denoisers against dense Bayes, quadrature and autograd of the log-density ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from spherediff.covariance import Covariance
from spherediff.denoise import (
    Denoiser,
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    NeuralDenoiser,
)
from spherediff.gaussian import GaussianField
from spherediff.harmonics import count
from spherediff.process import ConstantRate, LogSNR, OrnsteinUhlenbeck
from spherediff.spectra import PowerLaw, Tabulated


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_process(lmax: int, channels: int = 0) -> OrnsteinUhlenbeck:
    C = PowerLaw(1.5, 2.5)(torch.arange(lmax + 1))
    table = torch.stack([C * (k + 1) for k in range(channels)]) if channels else C
    return OrnsteinUhlenbeck(GaussianField(Tabulated(table), lmax, dtype=torch.float64), LogSNR())


def gaussian(process: OrnsteinUhlenbeck, rank: int, seed: int = 0) -> GaussianDenoiser:
    event = process.event_shape
    C = process.field.variance_per_coefficient
    covariance = Covariance(
        C * (0.2 + normal(*event, seed=seed).square()),
        C.sqrt() * normal(rank, *event, seed=seed + 1),
    )
    return GaussianDenoiser(process, covariance=covariance, mean=normal(*event, seed=seed + 2))


def mixture(process: OrnsteinUhlenbeck) -> MixtureDenoiser:
    parts = [gaussian(process, rank, seed) for rank, seed in ((0, 10), (2, 20), (0, 30))]
    return MixtureDenoiser(parts, [0.5, 0.2, 0.3])


def empirical(process: OrnsteinUhlenbeck) -> EmpiricalDenoiser:
    return EmpiricalDenoiser(process, normal(6, *process.event_shape, seed=40))


MAKERS = {
    "diagonal": lambda p: gaussian(p, 0),
    "low rank": lambda p: gaussian(p, 4),
    "mixture": mixture,
    "empirical": empirical,
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("lmax", "channels"), [(2, 0), (7, 0), (3, 2)])
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_malliavin_gamma_score_is_the_gradient_of_log_h(
    maker: str, lmax: int, channels: int, t: float
) -> None:
    process = make_process(lmax, channels)
    denoiser = MAKERS[maker](process)
    x = normal(5, *process.event_shape, seed=3).requires_grad_()
    log_h = denoiser.log_density_ratio(x, t)
    assert log_h.shape == (5,)
    (gradient,) = torch.autograd.grad(log_h.sum(), x)
    expected = process.field.variance_per_coefficient * gradient  # (Df)_i = C_ℓ ∂_i f
    found = denoiser.malliavin_gamma_score(x.detach(), t)
    assert (found - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))
    # Greco's form, with e^{−τ} and 1 − e^{−2τ} written out
    tau = process.schedule.tau(torch.tensor(t, dtype=torch.float64))
    m = denoiser(x.detach(), t)
    greco = (torch.exp(-tau) * m - torch.exp(-2 * tau) * x.detach()) / (1 - torch.exp(-2 * tau))
    torch.testing.assert_close(found, greco, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 3])
def test_gaussian_denoiser_equals_dense_bayes(rank: int) -> None:
    process = make_process(3, 2)
    denoiser = gaussian(process, rank)
    n = 32
    S = denoiser.covariance.matmul(torch.eye(n, dtype=torch.float64).reshape(n, 2, 16)).reshape(
        n, n
    )
    x = normal(4, 2, 16, seed=9)
    for t in (0.1, 0.6):
        alpha, sigma = process.marginal(t)
        V = alpha**2 * S + sigma.square().flatten().diag()
        centred = (x - alpha * denoiser.mean).flatten(1)
        expected = denoiser.mean.flatten() + alpha * torch.linalg.solve(V, centred.T).T @ S
        torch.testing.assert_close(denoiser(x, t).flatten(1), expected)
        law = torch.distributions.MultivariateNormal((alpha * denoiser.mean).flatten(), V)
        noise = torch.distributions.Normal(0, process.field.std_per_coefficient)
        ratio = law.log_prob(x.flatten(1)) - noise.log_prob(x).sum((1, 2))
        torch.testing.assert_close(denoiser.log_density_ratio(x, t), ratio)


def test_a_time_for_each_sample() -> None:
    process = make_process(3, 2)
    t = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    x = normal(3, 2, 16, seed=4)
    for maker in MAKERS.values():
        denoiser = maker(process)
        together = denoiser(x, t[:, None])
        alone = torch.stack([denoiser(x[k : k + 1], float(t[k]))[0] for k in range(3)])
        torch.testing.assert_close(together, alone)


def test_mixture_equals_quadrature_over_the_prior() -> None:
    """One mode: E[X_0|X_t = x] = ∫ x_0 p(x_0) N(x; αx_0, σ²) dx_0 / ∫ p(x_0) N(…) dx_0."""
    process = make_process(0)
    means, variances, weights = (-2.0, 0.5, 3.0), (0.2, 1.0, 0.4), (0.2, 0.5, 0.3)
    parts = [
        GaussianDenoiser(process, torch.tensor([v]), mean=torch.tensor([mu]))
        for mu, v in zip(means, variances, strict=True)
    ]
    denoiser = MixtureDenoiser(parts, weights)
    grid = np.linspace(-8, 9, 20_001)
    for t in (0.3, 0.5, 0.65):
        alpha, sigma = (float(v) for v in process.marginal(t))
        for x in (-1.5, 0.1, 2.0):
            prior = sum(
                w * stats.norm.pdf(grid, mu, math.sqrt(v))
                for w, mu, v in zip(weights, means, variances, strict=True)
            )
            p = prior * stats.norm.pdf(x, alpha * grid, sigma)
            mean = integrate.simpson(p * grid) / integrate.simpson(p)
            found = denoiser(torch.tensor([[x]], dtype=torch.float64), t)
            assert float(found) == pytest.approx(mean, abs=1e-6)


def test_mixture_stays_finite_far_from_its_components() -> None:
    process = make_process(7)
    x = 1e3 * normal(2, 64)
    assert torch.isfinite(mixture(process)(x, 0.05)).all()


@pytest.mark.parametrize("elements", [1, 400, 1 << 20])
def test_empirical_denoiser_is_a_softmax_whatever_the_chunk(elements: int) -> None:
    process = make_process(3)
    data = normal(50, 16, seed=2)
    denoiser = EmpiricalDenoiser(process, data, chunk_elements=elements)
    x = normal(3, 16, seed=5)
    for t in (0.05, 0.3, 0.9):
        alpha, sigma = process.marginal(t)
        logits = -0.5 * ((x[:, None] - alpha * data) / sigma).square().sum(-1)
        torch.testing.assert_close(denoiser(x, t), logits.softmax(-1) @ data)
        log_p = torch.distributions.Normal(alpha * data, sigma).log_prob(x[:, None]).sum(-1)
        noise = torch.distributions.Normal(0, process.field.std_per_coefficient).log_prob(x)
        expected = log_p.logsumexp(-1) - math.log(50) - noise.sum(-1)
        torch.testing.assert_close(denoiser.log_density_ratio(x, t), expected)


class Constant(torch.nn.Module):
    """A network whose output is known."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen: list[torch.Tensor] = []

    def forward(self, u: torch.Tensor, w: torch.Tensor, log_noise: torch.Tensor) -> torch.Tensor:
        self.seen = [u, w, log_noise]
        return torch.full_like(u, self.value)


def test_preconditioning_is_exact_for_gaussian_data() -> None:
    process = make_process(4, 2)
    v = process.field.variance_per_coefficient * (0.1 + normal(2, 25).square())
    mean = normal(2, 25, seed=1)
    network = Constant(0.0)
    neural = NeuralDenoiser(process, network, mean, v)
    t = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)[:, None]
    x = normal(3, 2, 25, seed=2)
    linear = GaussianDenoiser(process, v, mean=mean)
    torch.testing.assert_close(neural(x, t), linear(x, t))
    torch.testing.assert_close(network.seen[2], process.log_noise(t)[:, 0])
    # the network sees the linear estimate in units of the data's pointwise standard deviation
    unit = (v.sum(-1, keepdim=True) / (4 * math.pi)).sqrt()
    torch.testing.assert_close(network.seen[1], (linear(x, t) - mean) / unit)
    NeuralDenoiser(process, network, mean, v, unit=torch.tensor([[2.0], [3.0]]))(x, t)
    by_channel = (linear(x, t) - mean) / torch.tensor([[2.0], [3.0]])
    torch.testing.assert_close(network.seen[1], by_channel)

    # Var(X_0 − w) for w = μ + g(X_t − αμ): (1 − gα)²v + g²σ², which √p must square to
    network.value = 1.0
    alpha, sigma = process.marginal(t)
    g = linear(1 + alpha * mean, t) - mean
    error = (1 - g * alpha).square() * v + (g * sigma).square()
    torch.testing.assert_close((neural(x, t) - linear(x, t)).square(), error)
    # and the input of the network has unit variance: Var X_t = α²v + σ²
    scale = network.seen[0] / (x - alpha * mean)
    torch.testing.assert_close(scale.square() * (alpha**2 * v + sigma**2), torch.ones_like(x))


def test_neural_denoiser_takes_any_leading_axes() -> None:
    process = make_process(2, 1)
    neural = NeuralDenoiser(process, Constant(0.3), torch.zeros(1, 9), torch.ones(1, 9))
    x = normal(2, 3, 1, 9)
    assert neural(x, 0.4).shape == x.shape
    torch.testing.assert_close(neural(x, 0.4)[1], neural(x[1], 0.4))


def test_a_mode_without_variance_returns_its_mean() -> None:
    process = make_process(1, 1)
    variance = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    neural = NeuralDenoiser(process, Constant(1.0), torch.full((1, 4), 5.0), variance)
    assert (neural(normal(3, 1, 4), 0.5)[..., 0] == 5).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    process, good = make_process(2, 1), torch.ones(1, 9)
    spoilt = torch.cat([good[:, :8], torch.tensor([[bad]])], -1)
    with pytest.raises(ValueError, match="archive: expected finite coefficients, found 1 of 18"):
        EmpiricalDenoiser(process, torch.stack([good, spoilt]))
    with pytest.raises(ValueError, match="variances must be finite"):
        GaussianDenoiser(process, spoilt)
    with pytest.raises(ValueError, match="mean: expected finite coefficients, found 1 of 9"):
        GaussianDenoiser(process, good, mean=spoilt)
    with pytest.raises(ValueError, match="mean: expected finite coefficients, found 1 of 9"):
        NeuralDenoiser(process, Constant(0.0), spoilt, good)


def test_no_fields_have_no_estimates() -> None:
    process = make_process(2)
    none = torch.zeros(0, 9, dtype=torch.float64)
    for maker in MAKERS.values():
        assert maker(process)(none, 0.5).shape == (0, 9)


def test_errors() -> None:
    process = make_process(2)
    with pytest.raises(TypeError, match="exactly one of variance and covariance"):
        GaussianDenoiser(process)
    with pytest.raises(ValueError, match="for lmax 2, found.*lmax 3"):
        GaussianDenoiser(process, torch.ones(16))
    with pytest.raises(ValueError, match="for lmax 2, found.*lmax 1"):
        gaussian(process, 0)(torch.ones(4), 0.5)
    with pytest.raises(ValueError, match="one process object"):
        MixtureDenoiser([gaussian(process, 0), gaussian(make_process(2), 0)])
    with pytest.raises(ValueError, match="positive weights"):
        MixtureDenoiser([gaussian(process, 0)], [0.0])
    with pytest.raises(ValueError, match="at least one component"):
        MixtureDenoiser([])
    with pytest.raises(ValueError, match="N ≥ 1"):
        EmpiricalDenoiser(process, torch.zeros(0, 9))
    with pytest.raises(ValueError, match="process with channels"):
        NeuralDenoiser(process, Constant(0.0), torch.zeros(1, 9), torch.ones(1, 9))
    with pytest.raises(ValueError, match="expected variance of shape"):
        NeuralDenoiser(make_process(2, 1), Constant(0.0), torch.zeros(1, 9), torch.ones(2, 9))
    with pytest.raises(ValueError, match="not negative"):
        NeuralDenoiser(make_process(2, 1), Constant(0.0), torch.zeros(1, 9), -torch.ones(1, 9))


def test_low_degrees_of_the_score_do_not_depend_on_the_band_limit() -> None:
    def score(lmax: int) -> torch.Tensor:
        noise = GaussianField(PowerLaw(1.0, 3.0), lmax, dtype=torch.float64)
        data = GaussianField(PowerLaw(2.0, 3.2), lmax, dtype=torch.float64)
        process = OrnsteinUhlenbeck(noise, ConstantRate())
        denoiser: Denoiser = GaussianDenoiser(process, data.variance_per_coefficient)
        return denoiser.malliavin_gamma_score(normal(count(9))[: count(lmax)], 0.5)

    torch.testing.assert_close(score(9)[: count(4)], score(4))
