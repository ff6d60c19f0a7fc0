"""Wiener chaos against quadrature and autograd, and samplers on a law that is not Gaussian."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from spherediff.chaos import Chaos, ChaosDensity, Index, divergence, hermite, lower_bound
from spherediff.denoise import ChaosDenoiser
from spherediff.gaussian import GaussianField
from spherediff.process import (
    DampedHeat,
    FractionalOrnsteinUhlenbeck,
    LinearSPDE,
    OrnsteinUhlenbeck,
)
from spherediff.sample import Heun, ProbabilityFlow, ReverseSDE, Sampler
from spherediff.spectra import PowerLaw, Tabulated

F_TERMS: dict[Index, float] = {
    (): 0.4,
    ((0, 1),): 0.7,
    ((2, 3),): -0.3,
    ((0, 2), (2, 1)): 0.5,
    ((0, 1), (2, 1), (5, 2)): 0.2,
}
G_TERMS: dict[Index, float] = {
    ((0, 1),): -0.2,
    ((0, 2), (2, 1)): 0.9,
    ((2, 3),): 0.6,
    ((5, 4),): 1.1,
    ((0, 1), (2, 1), (5, 2)): -0.8,
}
ROOT: dict[Index, float] = {(): 1.0, ((1, 1), (2, 1)): 0.6, ((3, 2),): -0.4, ((1, 1),): 0.3}


def field(lmax: int = 3) -> GaussianField:
    return GaussianField(PowerLaw(1.3, 3.0), lmax, dtype=torch.float64)


def quadrature(modes: list[int], nodes: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Points x and weights that integrate polynomials in ``modes`` against γ exactly."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    x = torch.zeros(nodes ** len(modes), 16, dtype=torch.float64)
    x[:, modes] = torch.tensor(list(itertools.product(z, repeat=len(modes))))
    weights = torch.tensor(list(itertools.product(w / w.sum(), repeat=len(modes)))).prod(1)
    return field().color(x), weights


def test_hermite_products_are_orthonormal() -> None:
    z, w = np.polynomial.hermite_e.hermegauss(20)
    table = hermite(torch.from_numpy(z), 9)
    gram = table.T @ (torch.from_numpy(w / w.sum())[:, None] * table)
    torch.testing.assert_close(gram, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-11)
    he4 = (z**4 - 6 * z**2 + 3) / math.sqrt(24)
    np.testing.assert_allclose(table[:, 4], he4, atol=1e-10)


def test_inner_products_products_and_the_dirichlet_form_by_quadrature() -> None:
    F, G = Chaos(field(), F_TERMS), Chaos(field(), G_TERMS)
    x, w = quadrature([0, 2, 5])
    assert F.inner(G) == pytest.approx(float(w @ (F(x) * G(x))), rel=1e-11)
    torch.testing.assert_close((F * G)(x), F(x) * G(x), rtol=1e-10, atol=1e-8)
    torch.testing.assert_close((F + G)(x), F(x) + G(x))
    exact = F.dirichlet(G)
    assert exact == pytest.approx(float(w @ F.gamma(G, x)), rel=1e-11)  # ∫Γ(F, G)dγ
    assert exact == pytest.approx(-float(w @ (F(x) * G.generator()(x))), rel=1e-11)  # −∫F𝓛G dγ
    assert exact == pytest.approx(
        sum(_order(a) * c * G_TERMS.get(a, 0) for a, c in F_TERMS.items())
    )


def _order(index: Index) -> int:
    return sum(n for _, n in index)


def test_gamma_derivative_and_generator_are_those_of_autograd() -> None:
    F, G = Chaos(field(), F_TERMS), Chaos(field(), G_TERMS)
    x = field().sample((4,), generator=torch.Generator().manual_seed(0))
    C = field().variance_per_coefficient

    def gradients(H: Chaos) -> torch.Tensor:
        return torch.func.jacrev(H)(x).diagonal(dim1=0, dim2=1).T

    dF, dG = gradients(F), gradients(G)
    torch.testing.assert_close(F.malliavin_derivative(x), C * dF)
    torch.testing.assert_close(F.gamma(G, x), (C * dF * dG).sum(-1))
    for k in range(4):
        hessian = torch.func.hessian(F)(x[k])
        expected = (C * hessian.diagonal()).sum() - x[k] @ dF[k]  # Σ C_ℓ ∂²F − x·∇F
        torch.testing.assert_close(F.generator()(x[k]), expected)


def test_divergence_is_the_adjoint_of_the_derivative() -> None:
    F = Chaos(field(), F_TERMS)
    u = {0: Chaos(field(), G_TERMS), 2: Chaos(field(), F_TERMS) * F, 5: Chaos(field(), {(): 2.0})}
    x, w = quadrature([0, 2, 5])
    pairing = torch.stack([F.derivative(i)(x) * u_i(x) for i, u_i in u.items()]).sum(0)
    delta = divergence(u)
    assert float(w @ pairing) == pytest.approx(F.inner(delta), rel=1e-11)
    # pointwise: δ(u) = Σ z_i u_i − ∂_{z_i} u_i
    z = field().whiten(x)
    direct = torch.stack([z[:, i] * u_i(x) - u_i.derivative(i)(x) for i, u_i in u.items()]).sum(0)
    torch.testing.assert_close(delta(x), direct, rtol=1e-9, atol=1e-7)
    # δD = −𝓛
    back = divergence({i: F.derivative(i) for i in F.modes})
    expected = F.generator().terms
    assert all(c == pytest.approx(-expected[a], abs=1e-12) for a, c in back.terms.items())


@pytest.mark.parametrize("t", [0.05, 0.4, 1.5])
def test_semigroup_is_mehlers_integral(t: float) -> None:
    """P_tF(x) = ∫F(e^{−t}x + √(1 − e^{−2t}) y) γ(dy)."""
    F = Chaos(field(), F_TERMS)
    y, w = quadrature([0, 2, 5])
    for x in field().sample((3,), generator=torch.Generator().manual_seed(1)):
        mehler = w @ F(math.exp(-t) * x + math.sqrt(1 - math.exp(-2 * t)) * y)
        torch.testing.assert_close(F.semigroup(t)(x), mehler, rtol=1e-10, atol=1e-10)


def test_lower_bounds_are_exact() -> None:
    one = Chaos(field(), {(): 1.0, ((3, 4),): 0.5, ((3, 1),): 0.2})
    z = torch.linspace(-6, 6, 400_001, dtype=torch.float64)
    assert lower_bound(one) == pytest.approx(float(one.value(z[:, None]).min()), abs=1e-8)
    quadratic: dict[Index, float] = {
        (): 1.0, ((1, 2),): 0.3, ((2, 2),): 0.2, ((1, 1), (2, 1)): 0.25, ((1, 1),): 0.1,
    }  # fmt: skip
    z = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    plane = torch.cartesian_prod(z, z)
    assert lower_bound(Chaos(field(), quadratic)) == pytest.approx(
        float(Chaos(field(), quadratic).value(plane).min()), abs=1e-5
    )
    both = Chaos(field(), quadratic) + one + Chaos(field(), {(): -1.0})
    separate = lower_bound(Chaos(field(), quadratic)) + lower_bound(one) - 1
    assert lower_bound(both) == pytest.approx(separate)
    assert lower_bound(Chaos(field(), {((3, 3),): 0.1})) == -math.inf
    assert lower_bound(Chaos(field(), {((3, 4),): -0.1})) == -math.inf
    assert lower_bound(Chaos(field(), {((1, 1), (2, 1)): 0.1})) == -math.inf


def test_what_is_no_density_is_refused() -> None:
    assert ChaosDensity(Chaos(field(), {(): 1.0, ((0, 4),): math.sqrt(24) / 6 - 1e-6}))
    with pytest.raises(ValueError, match="falls to -"):
        ChaosDensity(Chaos(field(), {(): 1.0, ((0, 4),): math.sqrt(24) / 6 + 1e-3}))
    with pytest.raises(ValueError, match="constant term 1, got 0.5"):
        ChaosDensity(Chaos(field(), {(): 0.5}))
    with pytest.raises(ValueError, match="coupling the coefficients"):
        ChaosDensity(Chaos(field(), {(): 1.0, ((0, 2), (1, 2)): 0.1}))
    root = Chaos(field(), ROOT)
    with pytest.raises(ValueError, match="do not add up"):
        ChaosDensity(ChaosDensity.squared(root).expansion, [root])
    with pytest.raises(ValueError, match="expected pairs"):
        Chaos(field(), {((16, 1),): 1.0})
    with pytest.raises(ValueError, match="occurs twice"):
        Chaos(field(), {((1, 1), (1, 2)): 1.0})
    with pytest.raises(ValueError, match="C_ℓ > 0"):
        Chaos(GaussianField(Tabulated([1.0, 0.0]), 1), {((2, 1),): 1.0})


def density() -> ChaosDensity:
    return ChaosDensity.squared(Chaos(field(), ROOT))


def test_exact_draws_have_the_moments_of_the_density() -> None:
    """E[H_a] = c_a under h_0γ, for all the terms of the square; false-alarm rate 1e-3."""
    N = 20_000
    h = density()
    x = h.sample((N,), generator=Normals(N, 3))
    assert moments_p(h, x) > 1e-3
    # the same numbers at a higher band limit, and γ itself where h_0 says nothing
    wide = ChaosDensity.squared(Chaos(field(5), ROOT))
    more = wide.sample((5,), generator=torch.Generator().manual_seed(3))
    again = h.sample((5,), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(more[:, :16], again)
    assert stats.kstest(field().whiten(x)[:, 9].numpy(), "norm").pvalue > 1e-3
    # one marginal against its distribution function by quadrature
    marginal = {a: c for a, c in h.expansion.terms.items() if all(i == 3 for i, _ in a)}
    f = Chaos(field(), marginal)
    z = field().whiten(x)[:, 3].numpy()
    grid = np.linspace(-9, 9, 20_001)
    p = stats.norm.pdf(grid) * f.value(torch.from_numpy(grid)[:, None]).numpy()
    cdf = integrate.cumulative_simpson(p, x=grid, initial=0)
    assert stats.kstest(z, lambda v: np.interp(v, grid, cdf)).pvalue > 1e-3


def moments_p(h: ChaosDensity, x: torch.Tensor) -> float:
    """Bonferroni p-value of E[H_a] = c_a over the terms a of h."""
    worst = 1.0
    for index, c in h.expansion.terms.items():
        if index:
            values = Chaos(h.field, {index: 1.0})(x)
            z = (values.mean() - c) / (values.std() / len(x) ** 0.5)
            worst = min(worst, float(2 * stats.norm.sf(abs(float(z)))))
    return worst * (len(h.expansion.terms) - 1)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_score_of_greco_s_process(t: float) -> None:
    """D log h_t by autograd of log P_t h_0, and from the denoiser."""
    h = density()
    process = OrnsteinUhlenbeck(field())
    tau = float(process.schedule.tau(torch.tensor(t, dtype=torch.float64)))
    x = field().sample((6,), generator=torch.Generator().manual_seed(5)).requires_grad_()
    later = h.noised(tau)
    log_h = later(x).log()
    (gradient,) = torch.autograd.grad(log_h.sum(), x)
    expected = field().variance_per_coefficient * gradient
    x = x.detach()
    torch.testing.assert_close(later.malliavin_gamma_score(x), expected, rtol=1e-10, atol=1e-12)
    denoiser = ChaosDenoiser(process, h)
    torch.testing.assert_close(denoiser.log_density_ratio(x, t), log_h.detach())
    found = denoiser.malliavin_gamma_score(x, t)
    assert (found - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))


class Normals:
    """Standard normal draws for a whole batch at once."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.generator = samples, torch.Generator().manual_seed(seed)

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(self.samples, *event_shape, generator=self.generator, dtype=dtype)


def processes() -> list:
    noise = PowerLaw(0.8, 2.5)
    return [
        OrnsteinUhlenbeck(GaussianField(noise, 3, dtype=torch.float64)),
        LinearSPDE(DampedHeat(0.2, 1.0), noise, 3, 5.0, dtype=torch.float64),
        FractionalOrnsteinUhlenbeck(DampedHeat(0.2, 1.0), noise, 3, 5.0, 0.3, dtype=torch.float64),
    ]


@pytest.mark.parametrize("process", processes(), ids=lambda p: type(p).__name__)
def test_denoiser_for_any_process(process) -> None:
    """Noise other than γ: score by autograd, and Bayes' rule by quadrature over one mode."""
    denoiser = ChaosDenoiser(process, density())
    x = field().sample((5,), generator=torch.Generator().manual_seed(6)).requires_grad_()
    for t in (0.3, 0.7):
        log_h = denoiser.log_density_ratio(x, t)
        (gradient,) = torch.autograd.grad(log_h.sum(), x)
        expected = process.field.variance_per_coefficient * gradient
        torch.testing.assert_close(
            denoiser.malliavin_gamma_score(x.detach(), t), expected, rtol=1e-9, atol=1e-9
        )
    one = ChaosDensity(Chaos(field(), {(): 1.0, ((5, 4),): 0.6, ((5, 2),): 0.1}))
    denoiser, C = ChaosDenoiser(process, one), float(field().variance_per_coefficient[5])
    grid = np.linspace(-9, 9, 40_001) * math.sqrt(C)
    prior = (
        stats.norm.pdf(grid, 0, math.sqrt(C))
        * one.expansion.value(torch.from_numpy(grid / math.sqrt(C))[:, None]).numpy()
    )
    for t, value in ((0.4, 0.3), (0.6, -0.8)):
        alpha, sigma = (float(v.expand(16)[5]) for v in process.marginal(t))
        p = prior * stats.norm.pdf(value, alpha * grid, sigma)
        x = torch.zeros(1, 16, dtype=torch.float64)
        x[0, 5] = value
        mean = integrate.simpson(p * grid) / integrate.simpson(p)
        assert float(denoiser(x, t)[0, 5]) == pytest.approx(mean, rel=1e-8)


@pytest.mark.parametrize("kind", [Heun, ProbabilityFlow, ReverseSDE])
def test_samplers_draw_the_non_gaussian_law(kind: type[Sampler]) -> None:
    """Moments E[H_a] of 4,000 samples, false-alarm rate 1e-3; γ itself is told apart."""
    h = density()
    sampler = kind(ChaosDenoiser(OrnsteinUhlenbeck(field()), h))
    x = sampler.sample((4000,), generator=Normals(4000, 8))
    assert moments_p(h, x) > 1e-3
    noise = field().sample((4000,), generator=Normals(4000, 8))
    assert moments_p(h, noise) < 1e-12


def test_channels_and_errors() -> None:
    two = GaussianField(Tabulated(torch.ones(2, 3)), 2, dtype=torch.float64)
    h = ChaosDensity(Chaos(two, {(): 1.0, ((12, 2),): 0.5, ((12, 4),): 0.3}))
    process = OrnsteinUhlenbeck(two)
    t = torch.tensor([[0.2], [0.6]], dtype=torch.float64)
    x = h.sample((2,), generator=torch.Generator().manual_seed(0))
    m = ChaosDenoiser(process, h)(x, t)
    torch.testing.assert_close(m[1], ChaosDenoiser(process, h)(x[1], 0.6))
    torch.testing.assert_close(m[0, 0], process.alpha(0.2) * x[0, 0])
    assert h.malliavin_gamma_score(x).shape == x.shape
    with pytest.raises(ValueError, match="density of fields of shape"):
        ChaosDenoiser(OrnsteinUhlenbeck(field()), h)
    with pytest.raises(ValueError, match="at least one component"):
        divergence({})
    with pytest.raises(ValueError, match="root vanishes"):
        ChaosDensity.squared(Chaos(two, {(): 0.0}))
