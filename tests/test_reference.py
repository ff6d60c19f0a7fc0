"""References: the angle and its inverses, and what is exact for data of the reference's own law."""

from __future__ import annotations

import math

import pytest
import torch

from spherediff.covariance import Covariance, nonlinear_shrinkage
from spherediff.denoise import GaussianDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.process import LinearSPDE, OrnsteinUhlenbeck
from spherediff.process.operators import DampedHeat
from spherediff.reference import CorrelatedReference, Reference
from spherediff.sample import Heun, ProbabilityFlow, ReverseSDE
from spherediff.spectra import Tabulated

TIMES = [0.02, 0.4, 0.97]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def process(lmax: int = 3, channels: int = 2) -> OrnsteinUhlenbeck:
    spectrum = (1 + torch.arange(channels)[:, None]) / (1.0 + torch.arange(lmax + 1)) ** 3
    return OrnsteinUhlenbeck(GaussianField(Tabulated(spectrum), lmax, dtype=torch.float64))


def covariance(shape: tuple[int, int], rank: int = 3, known: int | None = None) -> Covariance:
    factor = 0.3 * normal(rank, *shape, seed=1)
    if known is not None:
        factor[..., known:] = 0
    return Covariance(0.05 + normal(*shape, seed=2).square(), factor)


def references() -> list[Reference]:
    ou = process()
    mean, S = normal(*ou.event_shape), covariance(ou.event_shape)
    return [
        Reference(ou, mean, S.diagonal),
        CorrelatedReference(ou, mean, S),
        CorrelatedReference(ou, mean, covariance(ou.event_shape, known=9)),
    ]


class Silent(torch.nn.Module):
    def forward(self, u: torch.Tensor, w: torch.Tensor, log_noise: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(u)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("t", TIMES)
def test_inverses(kind: int, t: float) -> None:
    reference = references()[kind]
    x = normal(5, 2, 16, seed=3)
    z = reference.standardise(x, t)
    torch.testing.assert_close(reference.state(z, t), x)
    torch.testing.assert_close(reference.clean(reference.standardise_clean(x)), x)
    m = normal(5, 2, 16, seed=4)
    torch.testing.assert_close(reference.estimate(reference.residual(m, z, t), z, t), m)
    torch.testing.assert_close(reference.unmixed(reference.mixed(z)), z)
    torch.testing.assert_close(reference.mixed(z).norm(dim=(-2, -1)), z.norm(dim=(-2, -1)))
    cos, sin = reference.angle(t)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_turn_is_the_difference_of_angles(kind: int) -> None:
    reference = references()[kind]
    for t, s in [(0.9, 0.7), (0.5, 0.49), (1.0, 0.0)]:
        here, there = reference.angle(t), reference.angle(s)
        expected = torch.atan2(here.sin, here.cos) - torch.atan2(there.sin, there.cos)
        torch.testing.assert_close(reference.turn(t, s), expected)


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("t", TIMES)
def test_zero_residual_is_the_exact_gaussian_denoiser(kind: int, t: float) -> None:
    reference = references()[kind]
    ou, mean = reference.process, reference.mean
    S = covariance(ou.event_shape, known=None if kind == 1 else 9)
    x = normal(4, 2, 16, seed=5)
    exact = GaussianDenoiser(ou, covariance=S, mean=mean)
    torch.testing.assert_close(NeuralDenoiser(ou, Silent(), mean, S)(x, t), exact(x, t))


def test_standardised_states_are_white_and_so_is_what_the_network_sees() -> None:
    """Cov z = I exactly: modes carry α²E diag(r)Eᵀ + s² to the identity."""
    reference = references()[1]
    ou, S = reference.process, covariance((2, 16))
    for t in TIMES:
        alpha, sigma = ou.marginal(t)
        dense = torch.diag(S.diagonal.flatten()) + S.factor.flatten(1).T @ S.factor.flatten(1)
        V = alpha.square() * dense + torch.diag(sigma.square().flatten())
        rows = torch.linalg.cholesky(V).T.reshape(32, 2, 16)
        z = reference.standardise(rows + alpha * reference.mean, t).flatten(1)
        torch.testing.assert_close(z.T @ z, torch.eye(32, dtype=torch.float64))


@pytest.mark.parametrize("sampler", [Heun, ProbabilityFlow, ReverseSDE])
@pytest.mark.parametrize("kind", [0, 1])
def test_samplers_are_exact_for_the_reference_in_three_steps(sampler: type, kind: int) -> None:
    """Impulses instead of noise give the linear map from draws to output, and AAᵀ its law.

    What is left is the noise end: the run starts from γ, where the law has forgotten all but a
    share α(1)² = e^{−10} of r − 1.
    """
    ou = process(2)
    S = covariance(ou.event_shape)
    if kind == 0:
        S = Covariance(S.variance)
    denoiser = NeuralDenoiser(ou, Silent(), torch.zeros(2, 9, dtype=torch.float64), S)
    integrator = sampler(denoiser, steps=3)
    draws = 4 * 18

    class Impulses:
        drawn = 0

        def normal(self, event_shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            out = torch.zeros(draws, 18, dtype=dtype)
            out[self.drawn : self.drawn + 18] = torch.eye(18, dtype=dtype)
            self.drawn += 18
            return out.reshape(draws, *event_shape)

    A = integrator.sample((draws,), generator=Impulses()).flatten(1)
    dense = torch.diag(S.diagonal.flatten()) + S.factor.flatten(1).T @ S.factor.flatten(1)
    scale = dense.diagonal().sqrt()
    error = (A.T @ A - dense) / scale / scale[:, None]
    ratio = float((dense.diagonal() / ou.field.variance_per_coefficient.flatten()).max())
    assert error.abs().max() < 3 * math.exp(-10) * max(1.0, ratio)


def test_degrees_with_rates_of_their_own_are_refused() -> None:
    other = LinearSPDE(DampedHeat(), Tabulated([1.0] * 4), 3, 1.0, dtype=torch.float64)
    with pytest.raises(TypeError, match="each at a rate of its own"):
        CorrelatedReference(other, torch.zeros(16), covariance((1, 16)))


# --- shrinkage --------------------------------------------------------------------------------


def spiked(N: int, p: int, sizes: list[float], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    d = torch.ones(p, dtype=torch.float64)
    d[: len(sizes)] = torch.tensor(sizes, dtype=torch.float64)
    return normal(N, p, seed=seed) * d.sqrt(), d


@pytest.mark.parametrize(("N", "p", "cycle"), [(400, 100, 1), (300, 600, 1), (300, 600, 8)])
def test_nonlinear_shrinkage_finds_the_variance_along_sample_components(
    N: int, p: int, cycle: int
) -> None:
    """d_i estimates u_iᵀΣu_i; sample eigenvalues are off by factors, the spike least.

    Also if more than the mean, a cycle, was fitted and removed, in single precision as in archives.
    """
    z, d = spiked(N, p, [30.0, 12.0], seed=7)
    angle = 2 * math.pi * torch.arange(N, dtype=torch.float64)[:, None] * torch.arange(cycle) / N
    fitted = torch.linalg.qr(angle.cos()).Q
    z = (z - fitted @ (fitted.T @ z)).float().double()
    found, u = nonlinear_shrinkage(z)
    truth = (u.square() * d[:, None]).sum(0)
    null = p - u.shape[1]  # directions in which the sample does not vary share what is left
    truth = torch.cat([((d.sum() - truth.sum()) / max(null, 1)).expand(null), truth])
    sample = torch.linalg.eigvalsh(z.T @ z / (N - 1))
    assert (found - truth).square().mean() < 0.05 * (sample - truth).square().mean()
    assert found[-1] == pytest.approx(float(truth[-1]), rel=0.15)
    assert float(found.mean()) == pytest.approx(float(d.mean()), rel=0.05)


@pytest.mark.parametrize(("N", "p"), [(500, 60), (80, 200)])
def test_principal_is_likelier_on_fresh_samples_than_any_of_its_rivals(N: int, p: int) -> None:
    """A steep spectrum of eigenvalues: shrunk, sample and diagonal covariances against truth."""
    basis = torch.linalg.qr(normal(p, p, seed=12)).Q
    root = basis * torch.logspace(1, -1, p, dtype=torch.float64)
    x, fresh = normal(N, p, seed=13) @ root.T, normal(2000, p, seed=14) @ root.T
    v = x.var(0)

    def surprise(S: Covariance) -> float:
        one = torch.ones((), dtype=torch.float64)
        none = torch.zeros(1, p, dtype=torch.float64)
        quadratic = (fresh[:, None] * S.solve(one, none, fresh[:, None])).sum((-2, -1)).mean()
        return float(quadratic + S.log_det(one.expand(1, p), none))

    found = surprise(Covariance.principal(x[:, None], v[None]))
    assert found < surprise(Covariance.shrunk(x[:, None])) - 0.5
    assert found < surprise(Covariance(v[None])) - 10


def test_principal_leaves_coefficients_that_never_vary_alone() -> None:
    x = normal(50, 1, 20, seed=15)
    x[..., 3], x[..., 7] = 0, 2.5
    S = Covariance.principal(x, torch.ones(1, 20, dtype=torch.float64))
    assert not S.factor[..., [3, 7]].any()
    assert torch.isfinite(S.factor).all()
    torch.testing.assert_close(S.variance, torch.ones(1, 20, dtype=torch.float64))


def test_principal_keeps_variances_and_the_leading_correlations() -> None:
    N, p = 300, 400
    z, _ = spiked(N, p, [40.0], seed=8)
    rotation = torch.linalg.qr(normal(p, p, seed=9)).Q
    v = 0.5 + normal(p, seed=10).square()
    R = rotation @ torch.diag(torch.cat([z.new_tensor([40.0]), z.new_ones(p - 1)])) @ rotation.T
    std = R.diagonal().sqrt()
    x = (z @ rotation.T) / std * v.sqrt()
    S = Covariance.principal(x[:, None], v[None])
    torch.testing.assert_close(S.variance[0], v)
    u = rotation[:, 0] * std  # the direction in units of v, about
    u = u / u.norm()
    whitened = Covariance(S.diagonal / v, S.factor / v.sqrt())
    found = (u * whitened.matmul(u[None])[0]).sum()
    exact = u @ (R / std / std[:, None]) @ u
    assert float(found) == pytest.approx(float(exact), rel=0.2)
    # noise has no leading components: nothing is made of it
    empty = Covariance.principal(normal(N, 1, p, seed=11), torch.ones(1, p).double())
    assert float(empty.factor.square().sum()) < 0.05 * p


def test_principal_errors() -> None:
    with pytest.raises(ValueError, match="at least four samples to estimate correlations, got 3"):
        Covariance.principal(normal(3, 1, 30), torch.ones(1, 30))
