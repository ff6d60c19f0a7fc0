"""The φ⁴ field: its derivatives, its dynamics and its sampler against laws that are known."""

from __future__ import annotations

import math

import ducc0
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.func import grad, hessian, jacfwd, vmap

from spherediff import harmonics
from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre
from spherediff.malliavin import Path, discrete_weight, estimated_weight, euler_maruyama
from spherediff.malliavin.langevin import langevin_weight
from spherediff.malliavin.phi4 import Phi4, effective_sample_size
from spherediff.spectra import WhittleMatern


def phi4(lmax: int, g: float, r: float, dtype: torch.dtype = torch.float64) -> Phi4:
    return Phi4(GaussianField(WhittleMatern(0.7, 2.0, 1.5), lmax, dtype=dtype), g, r)


def states(model: Phi4, count: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *model.field.event_shape)
    return scale * torch.randn(shape, dtype=model.field.dtype, generator=generator)


def graded(T: float, steps: int) -> torch.Tensor:
    return T * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2


# ---- energy and its derivatives


@pytest.mark.parametrize(("A", "B"), [(0.3, 1.1), (-0.7, 0.4)])
def test_potential_of_a_dipole_in_closed_form(A: float, B: float) -> None:
    """φ = A + B cos θ: ∫φ⁴ = 4π(A⁴ + 2A²B² + B⁴/5), ∫φ² = 4π(A² + B²/3)."""
    model = phi4(1, 1.3, 0.6)
    root = math.sqrt(4 * math.pi)
    x = torch.tensor([A * root, 0, B * root / math.sqrt(3), 0], dtype=torch.float64)
    quartic = 4 * math.pi * (A**4 + 2 * A**2 * B**2 + B**4 / 5)
    quadratic = 4 * math.pi * (A**2 + B**2 / 3)
    expected = 1.3 / 4 * quartic - 0.6 / 2 * quadratic
    assert float(model.potential(model.field.whiten(x))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lmax", [0, 2, 5])
def test_potential_is_dealiased(lmax: int) -> None:
    """A much finer quadrature gives the same; the grid of the band limit alone does not."""
    model = phi4(lmax, 1.0, 0.0)
    z = states(model, 3, 0)

    def by_quadrature(grid: GaussLegendre) -> torch.Tensor:
        values = grid.synthesis(model.field.color(z))
        return 0.25 * (grid.area_weights * values**4).sum((-2, -1))

    torch.testing.assert_close(
        model.potential(z), by_quadrature(GaussLegendre(5 * lmax + 7)), rtol=1e-12, atol=0
    )
    if lmax:
        aliased = by_quadrature(GaussLegendre(lmax, 2 * lmax + 2))
        assert float((aliased / model.potential(z) - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("lmax", [0, 1, 3])
def test_derivatives_are_those_of_the_energy(lmax: int) -> None:
    model = phi4(lmax, 1.7, 2.3)
    z, u, v = (states(model, 3, seed) for seed in range(3))
    torch.testing.assert_close(model.score(z), -vmap(grad(model.energy))(z))
    curvature = model.curvature(z)
    second = vmap(hessian(model.energy))(z)
    torch.testing.assert_close(curvature.second(u), torch.einsum("pij,pj->pi", second, u))
    if lmax < 3:
        third = vmap(jacfwd(hessian(model.energy)))(z)
        bent = torch.einsum("pijk,pj,pk->pi", third, u, v)
        torch.testing.assert_close(curvature.third(u, v), bent)


def test_energy_is_invariant_under_rotations() -> None:
    model = phi4(6, 1.0, 0.5)
    z = states(model, 4, 3)

    def rotated(a: torch.Tensor) -> torch.Tensor:
        alm = harmonics.to_healpy(a).numpy()
        turned = [ducc0.sht.rotate_alm(one, 6, 0.4, 1.1, -2.0) for one in alm]
        return harmonics.from_healpy(torch.from_numpy(np.array(turned)))

    assert float((rotated(z) - z).abs().max()) > 0.5
    torch.testing.assert_close(model.energy(rotated(z)), model.energy(z), rtol=1e-11, atol=0)
    torch.testing.assert_close(
        model.gradient(rotated(z)), rotated(model.gradient(z)), rtol=1e-10, atol=1e-10
    )


# ---- dynamics


def test_linear_dynamics_have_no_error_and_their_weight_no_variance() -> None:
    """V = 0: X_T − e^{−T}x has variance 1 − e^{−2T}, and the weight of it is itself over that.

    256 modes, in which the two estimators are exact for every probe.
    """
    model = phi4(15, 0.0, 0.0)
    z = states(model, 2, 4)
    T = 0.9
    sde, clock, sigma = model.clocked(graded(T, 2))
    path = euler_maruyama(sde, z, clock, generator=torch.Generator().manual_seed(5))
    decays = (1 - path.steps).flip(0).cumprod(0).flip(0)[1:].mean(1)  # of the noise of each step
    decays = torch.cat([decays, torch.ones(1, dtype=torch.float64)])
    response = decays.square() * sigma.square() * path.steps[:, 0]
    assert float(response.sum()) == pytest.approx(1 - math.exp(-2 * T), rel=1e-12)
    expected = (path.end - math.exp(-T) * z) / (1 - math.exp(-2 * T))
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        swept = langevin_weight(path, sigma, model.curvature, generator=generator, tolerance=1e-9)
        torch.testing.assert_close(swept, expected, rtol=1e-9, atol=1e-9)
    general = estimated_weight(sde, path, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(general, expected, rtol=1e-7, atol=1e-7)


def nonlinear_path(
    lmax: int, count: int, *, same: bool, steps: int = 3
) -> tuple[Phi4, torch.Tensor, Path]:
    model = phi4(lmax, 1.5, 0.7)
    sde, clock, sigma = model.clocked(graded(0.8, steps))
    z = states(model, 1 if same else count, 6, 1.5)
    path = euler_maruyama(sde, z, clock, generator=torch.Generator().manual_seed(7))
    if same:
        states_, noise = (x.repeat_interleave(count, 1) for x in (path.states, path.increments))
        path = Path(path.times.expand(-1, count), states_, noise, path.scheme)
    return model, sigma, path


def test_sweeps_are_the_general_estimator_probe_by_probe() -> None:
    model, sigma, path = nonlinear_path(2, 5, same=False, steps=2)
    sde = model.clocked(graded(0.8, 2)).sde
    swept, general = (
        langevin_weight(
            path,
            sigma,
            model.curvature,
            generator=torch.Generator().manual_seed(8),
            tolerance=1e-10,
        ),
        estimated_weight(sde, path, generator=torch.Generator().manual_seed(8)),
    )
    torch.testing.assert_close(swept, general, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("lmax", [0, 1, 2])
def test_estimate_is_unbiased_for_the_discrete_weight(lmax: int) -> None:
    """2000 probes of one path; χ² of the d z-scores with a false alarm once in 10⁴ runs."""
    model, sigma, path = nonlinear_path(lmax, 2000, same=True)
    d = path.end.shape[1]
    (one, *_) = path.split(1)
    exact = discrete_weight(model.clocked(graded(0.8, 3)).sde, one)[0]
    found = langevin_weight(
        path, sigma, model.curvature, generator=torch.Generator().manual_seed(9), tolerance=1e-6
    )
    mean, error = found.mean(0), found.std(0) / math.sqrt(len(found))
    covariance = (torch.cov(found.T) / len(found)).reshape(d, d)
    difference = mean - exact
    chi2 = float(difference @ torch.linalg.solve(covariance, difference))
    assert chi2 < stats.chi2.ppf(1 - 1e-4, d)
    assert float(error.max()) < 0.03 * float(exact.norm())


def test_weights_integrate_by_parts_in_256_modes() -> None:
    """E ∂_k f(X_T) = E f(X_T)δ_k, f = sin x_k: χ² of 256 z-scores, false alarm once in 10⁴."""
    model = phi4(15, 1.5, 0.7, torch.float32)
    sde, clock, sigma = model.clocked(graded(0.8, 3))
    path = euler_maruyama(
        sde, states(model, 600, 10, 1.3), clock, generator=torch.Generator().manual_seed(11)
    )
    generator = torch.Generator().manual_seed(12)
    weight = torch.cat(
        [
            langevin_weight(part, sigma, model.curvature, generator=generator)
            for part in path.split(150)
        ]
    )
    assert float((weight - path.end).norm() / weight.norm()) > 0.1  # far from the linear case

    def statistic(weight: torch.Tensor) -> float:
        gap = path.end.cos() - path.end.sin() * weight
        return float((gap.mean(0) / gap.std(0)).square().sum() * len(gap))

    limit = stats.chi2.ppf(1 - 1e-4, 256)
    assert statistic(weight) < limit
    assert statistic(0.9 * weight) > 2 * limit


# ---- the invariant law


def one_mode_cdf(model: Phi4) -> tuple[np.ndarray, np.ndarray]:
    z = np.linspace(-8, 8, 4001)
    energy = model.energy(torch.from_numpy(z)[:, None]).numpy()
    cdf = integrate.cumulative_simpson(np.exp(energy.min() - energy), x=z, initial=0)
    return z, cdf / cdf[-1]


@pytest.mark.parametrize(("g", "r"), [(0.0, 0.0), (2.0, 0.0), (4.0, 4.0)])
def test_metropolis_chains_have_the_law_of_one_mode(g: float, r: float) -> None:
    """Kolmogorov–Smirnov on 3000 independent chains, false alarm once in 10⁴."""
    model = phi4(0, g, r)
    draws = model.sample(3000, generator=torch.Generator().manual_seed(13), steps=64, step=0.4)
    z, cdf = one_mode_cdf(model)

    def pvalue(scale: float) -> float:
        x = scale * draws.states[:, 0].numpy()
        return stats.kstest(x, lambda x: np.interp(x, z, cdf)).pvalue

    assert pvalue(1.0) > 1e-4
    assert pvalue(1.2) < 1e-4


def test_dynamics_reach_the_law_of_one_mode() -> None:
    """Kolmogorov–Smirnov on 2000 paths with small steps, false alarm once in 10⁴."""
    model = phi4(0, 2.0, 1.0)
    sde, clock, _ = model.clocked(torch.linspace(0, 3, 151))
    path = euler_maruyama(
        sde, states(model, 2000, 14, 0.1), clock, generator=torch.Generator().manual_seed(15)
    )
    z, cdf = one_mode_cdf(model)
    test = stats.kstest(path.end[:, 0].numpy(), lambda x: np.interp(x, z, cdf))
    assert test.pvalue > 1e-4


def test_metropolis_chains_integrate_by_parts() -> None:
    """E 𝓛f = 0 for f = −cos z_k and ½z_k², all k at lmax 4; false alarm once in 10⁴ each."""
    model = phi4(4, 3.0, 3.0)
    draws = model.sample(1000, generator=torch.Generator().manual_seed(16), steps=128, step=0.15)
    z = draws.states
    assert 0.4 < draws.acceptance < 0.98

    def statistics(score: torch.Tensor) -> list[float]:
        generators = (z.cos() + z.sin() * score, 1 + z * score)
        out = []
        for gap in generators:
            covariance = torch.cov(gap.T) / len(gap)
            out.append(float(gap.mean(0) @ torch.linalg.solve(covariance, gap.mean(0))))
        return out

    limit = stats.chi2.ppf(1 - 1e-4, 25)
    assert max(statistics(model.score(z))) < limit
    assert min(statistics(phi4(4, 3.0, 2.0).score(z))) > limit


def test_chain_k_is_the_same_in_every_batch() -> None:
    model = phi4(2, 2.0, 1.0)
    many, few = (
        model.sample(n, generator=torch.Generator().manual_seed(17), steps=20) for n in (6, 2)
    )
    torch.testing.assert_close(many.states[:2], few.states, rtol=1e-9, atol=1e-12)


def test_effective_sample_size_of_an_autoregression() -> None:
    """Autocorrelation time (1 + ρ)/(1 − ρ) = 4 at ρ = 0.6; 400 000 states give it to 2 %."""
    noise = torch.randn(2000, 200, generator=torch.Generator().manual_seed(18))
    x = [noise[0]]
    for e in noise[1:]:
        x.append(0.6 * x[-1] + 0.8 * e)
    trace = torch.stack(x)
    assert trace.numel() / effective_sample_size(trace) == pytest.approx(4.0, rel=0.05)


# ---- input that makes no sense


def test_errors_say_what_was_expected() -> None:
    field = GaussianField(WhittleMatern(2.0, 2.0, 1.5), 1)
    with pytest.raises(ValueError, match="g ≥ 0"):
        Phi4(field, -1.0)
    with pytest.raises(ValueError, match="no finite mass"):
        Phi4(field, 0.0, 10.0)
    model = Phi4(field, 1.0)
    with pytest.raises(ValueError, match="increasing times"):
        model.clocked(torch.tensor([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="step"):
        model.sample(1, generator=torch.Generator(), step=1.5)
    with pytest.raises(ValueError, match="steps ≥ 4"):
        effective_sample_size(torch.zeros(2, 3))
