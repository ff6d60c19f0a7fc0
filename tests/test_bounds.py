"""Entropic bounds against independent recursions, quadrature, and each of their sharp cases."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from spherediff.bounds import (
    Estimate,
    FrozenScore,
    GaussianTarget,
    entropic_bound,
    fisher_information,
    log_derivative,
    one_mode_entropy,
    output_entropy,
    output_law,
    path_entropy,
    plan,
    relative_entropy,
    score_error,
)
from spherediff.covariance import Covariance
from spherediff.denoise import Denoiser, GaussianDenoiser, MixtureDenoiser
from spherediff.gaussian import GaussianField
from spherediff.process import ConstantRate, LogSNR, OrnsteinUhlenbeck
from spherediff.sample import Bridge, EulerMaruyama, Heun, ProbabilityFlow, ReverseSDE
from spherediff.spectra import PowerLaw, Tabulated

F64 = torch.float64


class Bulk:
    """Normal draws for many samples at once, without a stream for each."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.generator = samples, torch.Generator().manual_seed(seed)

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(self.samples, *event_shape, dtype=dtype, generator=self.generator)


def field(table) -> GaussianField:
    return GaussianField(Tabulated(table), len(table) - 1, dtype=F64)


def modes(ratios, shift=0.0) -> GaussianTarget:
    """Data with the given ratios S/C by degree, and the mean ``shift``·√C in every m = 0."""
    noise = GaussianField(PowerLaw(2.0, 3.0), len(ratios) - 1, dtype=F64)
    data = field(noise.degree_variance * torch.as_tensor(ratios, dtype=F64))
    ell = torch.arange(len(ratios))
    mean = torch.zeros(noise.event_shape, dtype=F64)
    mean[ell * ell + ell] = shift * noise.degree_variance.sqrt()
    return GaussianTarget(noise, data, mean)


def suited(lmax: int, shift: float = 0.5) -> GaussianTarget:
    """r_ℓ = 1 + 3 (1+ℓ)^{−2}, equivalent to the noise, with a mean in H_C."""
    ell = torch.arange(lmax + 1, dtype=F64)
    target = modes(1 + 3 * (1 + ell) ** -2.0)
    mean = torch.zeros(target.noise.event_shape, dtype=F64)
    mean[:4] = shift * target.noise.std_per_coefficient[:4]
    return GaussianTarget(target.noise, target.data, mean)


def measured(target: GaussianTarget, horizon: float, steps: int, score=None) -> float:
    schedule = ConstantRate(horizon)
    return float(output_entropy(target, lambda d: FrozenScore(d, steps), schedule, score).sum())


def slope(x, y) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# ---- closed forms ----


@pytest.mark.parametrize("lmax", [0, 3, 12])
def test_entropy_and_fisher_information_equal_the_gaussian_formulas_with_matrices(lmax) -> None:
    target = suited(lmax)
    S, C = (f.variance_per_coefficient for f in (target.data, target.noise))
    data = torch.distributions.MultivariateNormal(target.mean, torch.diag(S))
    noise = torch.distributions.MultivariateNormal(torch.zeros_like(C), torch.diag(C))
    kl = torch.distributions.kl_divergence(data, noise)
    torch.testing.assert_close(target.relative_entropy().sum(), kl, rtol=1e-12, atol=1e-13)
    # D log dμ/dγ(x) = x − C S⁻¹(x − m) is affine: E‖·‖²_C = tr AᵀC⁻¹A S + ‖A m + CS⁻¹m‖²_C
    A = torch.diag(1 - C / S)
    expected = (A.T @ torch.diag(1 / C) @ A @ torch.diag(S)).trace()
    expected = expected + (target.mean.square() / C).sum()
    torch.testing.assert_close(target.fisher_information().sum(), expected, rtol=1e-12, atol=1e-13)


def test_without_a_mean_the_sums_are_those_of_the_field() -> None:
    target = suited(9, shift=0.0)
    torch.testing.assert_close(
        target.relative_entropy().cumsum(-1), target.noise.relative_entropy(target.data)
    )


def test_the_fisher_information_is_the_rate_of_loss_of_entropy() -> None:
    """de Bruijn: d/dτ KL(μ_τ|γ) = −I(μ_τ|γ), degree by degree."""
    target, eps = suited(6), 1e-4
    for tau in (0.3, 1.0):
        rate = (target.relative_entropy(tau - eps) - target.relative_entropy(tau + eps)) / (2 * eps)
        torch.testing.assert_close(rate, target.fisher_information(tau), rtol=1e-6, atol=1e-9)


def test_logarithmic_sobolev_inequality_is_an_equality_for_shifts_only() -> None:
    for target in (modes([0.2, 3.0]), suited(5)):
        assert float(target.relative_entropy().sum()) < 0.5 * float(
            target.fisher_information().sum()
        )
    shift = modes([1.0, 1.0], shift=1.5)
    torch.testing.assert_close(shift.relative_entropy(), 0.5 * shift.fisher_information())


def test_channels_are_summed_apart() -> None:
    noise = field([1.0, 0.5, 0.2])
    both = GaussianTarget(
        GaussianField(Tabulated([[1.0, 0.5, 0.2]] * 2), 2),
        GaussianField(Tabulated([[2.0, 0.5, 0.1], [1.0, 1.0, 0.2]]), 2),
    )
    for c, table in enumerate(([2.0, 0.5, 0.1], [1.0, 1.0, 0.2])):
        alone = GaussianTarget(noise, field(table))
        torch.testing.assert_close(both.fisher_information()[c], alone.fisher_information())
        torch.testing.assert_close(
            output_entropy(both, lambda d: ReverseSDE(d, 8))[c],
            output_entropy(alone, lambda d: ReverseSDE(d, 8)),
        )


# ---- the law of the output ----


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_frozen_score_equals_an_independent_scalar_recursion(steps: int) -> None:
    horizon, ratios, shift = 1.7, [0.05, 0.6, 1.0, 9.0], 0.8
    target, h = modes(ratios, shift), horizon / steps
    expected = []
    for r in ratios:
        mean, variance = 0.0, 1.0
        for k in range(steps, 0, -1):
            # in units of √C: X_τ ~ N(b, v), score of h = z − (z − b)/v
            b = math.exp(-k * h) * shift
            v = 1 + math.exp(-2 * k * h) * (r - 1)
            a, pull = math.exp(-h), 2 * (1 - math.exp(-h))
            mean = a * mean + pull * (mean - (mean - b) / v)
            variance = (a + pull * (1 - 1 / v)) ** 2 * variance + 1 - math.exp(-2 * h)
        expected.append((mean, variance))
    sampler = FrozenScore(target.denoiser(ConstantRate(horizon)), steps)
    mean, variance = output_law(sampler)
    ell = torch.arange(4)
    C = target.noise.degree_variance
    means, variances = torch.tensor(expected, dtype=F64).T
    torch.testing.assert_close(mean[ell * ell + ell], means * C.sqrt(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(variance[ell * ell + ell], variances * C, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "kind", [FrozenScore, EulerMaruyama, Bridge, Heun, ProbabilityFlow, ReverseSDE]
)
def test_one_mode_a_degree_gives_the_entropy_of_all_modes(kind) -> None:
    target, schedule, steps = suited(7), ConstantRate(2.0), 9
    mean, variance = output_law(kind(target.denoiser(schedule), steps))
    S = target.data.variance_per_coefficient
    ratio, missing = S / variance, (target.mean - mean).square() / variance
    expected = 0.5 * (ratio - 1 - ratio.log() + missing).sum()
    found = output_entropy(target, lambda d: kind(d, steps), schedule).sum()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_where_data_and_noise_agree_the_samplers_are_exact_and_bridge_is_not() -> None:
    alike = modes([1.0, 1.0])
    assert abs(measured(alike, 2.0, 5)) < 1e-14
    for kind in (Heun, ProbabilityFlow, ReverseSDE):
        assert abs(float(output_entropy(alike, lambda d, kind=kind: kind(d, 3)).sum())) < 1e-14
    assert float(output_entropy(alike, lambda d: Bridge(d, 96)).sum()) > 1e-3


def test_many_impulses_in_several_batches(monkeypatch) -> None:
    sampler = ReverseSDE(suited(3).denoiser(), 12)
    mean, variance = output_law(sampler)
    monkeypatch.setattr("spherediff.bounds.output._ELEMENTS_AT_ONCE", 5 * 16)
    for a, b in zip(output_law(sampler), (mean, variance), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_sampled_law_is_the_computed_law() -> None:
    """z-scores of 16 means and 16 variances below 4.5: one false alarm in about 5,000."""
    sampler = FrozenScore(modes([0.3, 2.0, 1.0, 0.7], 0.5).denoiser(ConstantRate(1.0)), 5)
    mean, variance = output_law(sampler)
    count = 20_000
    x = sampler.sample((count,), generator=Bulk(count, 1))
    z = (x.mean(0) - mean) / (variance / count).sqrt()
    w = (x.var(0) / variance - 1) / math.sqrt(2 / count)
    assert max(float(z.abs().max()), float(w.abs().max())) < 4.5


# ---- measured entropy ≤ entropy of the path ≤ bound ----


@pytest.mark.parametrize("lmax", [4, 15, 48])
@pytest.mark.parametrize("horizon", [0.4, 1.5, 4.0])
@pytest.mark.parametrize("steps", [4, 16, 64])
def test_measured_entropy_lies_below_that_of_the_path_and_below_the_bound(
    lmax: int, horizon: float, steps: int
) -> None:
    rough = torch.logspace(-2, 2, lmax + 1, dtype=F64)
    for target in (suited(lmax), modes(rough), modes(1 / (1 + rough), shift=0.3)):
        found = measured(target, horizon, steps)
        path = float(target.path_entropy(horizon, steps).sum())
        bound = target.bound(horizon, steps).total.value
        assert 0 < found <= path <= bound
        # for Gaussians the discretisation term is at most half of h I
        start = float(target.relative_entropy(horizon).sum())
        information = float(target.fisher_information().sum())
        assert path - start <= 0.5 * (horizon / steps) * information


def test_the_bound_holds_with_a_wrong_score() -> None:
    """Wrong variance, wrong mean, wrong both."""
    right = modes([0.5, 2.0, 1.0, 0.9], shift=0.4)
    for ratios, shift in (([1.0, 1.0, 1.3, 0.9], 0.4), ([0.5, 2.0, 1.0, 0.9], -0.2), ([2] * 4, 0)):
        wrong = modes(ratios, shift)
        for horizon, steps in ((0.5, 4), (2.0, 8), (4.0, 64)):
            found = measured(right, horizon, steps, score=wrong)
            bound = right.bound(horizon, steps, score=wrong)
            assert 0 < found <= bound.total.value
            assert bound.score.value > 0


def test_a_wrong_mean_is_where_the_score_term_is_needed_in_full() -> None:
    """Shifts by b against b': every error is deterministic, and the score term nearly sharp.

    With h → 0 and T → ∞ the output has the mean b' and the variance one, so that
    KL = ½(b' − b)², while S = ∫ e^{−2τ}(b' − b)² dτ = ½(b' − b)².
    """
    right, wrong = modes([1.0], 0.0), modes([1.0], 1.0)
    steps = 500
    found = measured(right, 5.0, steps, score=wrong)
    bound = right.bound(5.0, steps, score=wrong)
    assert found <= bound.total.value
    assert found == pytest.approx(0.5, rel=0.02)
    assert bound.score.value == pytest.approx(0.5, rel=0.02)
    assert found > 0.95 * bound.total.value


def test_initialisation_decays_as_exp_minus_2T_and_no_faster() -> None:
    """For a shift the law of X_T is e^{−T} b away: the first term of the bound is an equality."""
    target, horizons = modes([1.0, 1.0], shift=1.2), np.array([0.5, 1.0, 1.5, 2.0])
    start = [float(target.relative_entropy(T).sum()) for T in horizons]
    assert np.polyfit(horizons, np.log(start), 1)[0] == pytest.approx(-2, abs=1e-10)
    for T, value in zip(horizons, start, strict=True):
        assert target.bound(T, 10).initialisation.value == pytest.approx(value, rel=1e-12)
    # a centred Gaussian forgets at twice that rate: KL is quadratic in r − 1
    centred = modes([1.5, 0.7])
    late = [float(centred.relative_entropy(T).sum()) for T in horizons + 2]
    assert np.polyfit(horizons, np.log(late), 1)[0] == pytest.approx(-4, abs=0.02)


def test_measured_entropy_of_a_shift_decays_as_exp_minus_4T() -> None:
    """The reverse SDE forgets its start at the rate e^{−T} once more: mean missing e^{−2T} b."""
    target, horizons = modes([1.0], shift=1.0), np.array([0.5, 0.75, 1.0, 1.25])
    found = [measured(target, T, 300) for T in horizons]
    assert np.polyfit(horizons, np.log(found), 1)[0] == pytest.approx(-4, abs=0.1)
    assert found[0] == pytest.approx(0.5 * math.exp(-4 * horizons[0]), rel=0.02)


def test_the_flow_keeps_the_entropy_of_its_start_where_exp_minus_2T_is_sharp() -> None:
    """A flow is a bijection, so KL(data | output) = KL(μ_T|γ) = ½e^{−2T}b² for a shift by b."""
    target, horizons = modes([1.0], shift=1.0), np.array([1.0, 1.5, 2.0, 2.5])
    found = [
        float(output_entropy(target, lambda d: ProbabilityFlow(d, 100), ConstantRate(T)).sum())
        for T in horizons
    ]
    np.testing.assert_allclose(found, 0.5 * np.exp(-2 * horizons), rtol=0.02)
    assert np.polyfit(horizons, np.log(found), 1)[0] == pytest.approx(-2, abs=0.02)


def test_order_in_the_step() -> None:
    """The path's entropy and the bound are of order h; the output's own is of order h²."""
    target, horizon, steps = suited(8), 8.0, np.array([100, 200, 400])
    h = horizon / steps
    found = [measured(target, horizon, int(n)) for n in steps]
    start = float(target.relative_entropy(horizon).sum())
    path = [float(target.path_entropy(horizon, int(n)).sum()) - start for n in steps]
    assert slope(h, found) == pytest.approx(2, abs=0.15)
    assert slope(h, path) == pytest.approx(1, abs=0.1)


def test_discretisation_of_the_path_is_the_deficit_of_the_logarithmic_sobolev_inequality() -> None:
    """KL(path) − KL(μ_T|γ) = h(½I − KL) + O(h²) for T → ∞."""
    target, horizon, steps = modes([0.4, 2.5, 0.9], shift=0.7), 10.0, 20_000
    deficit = 0.5 * target.fisher_information().sum() - target.relative_entropy().sum()
    path = target.path_entropy(horizon, steps).sum()
    torch.testing.assert_close(path / (horizon / steps), deficit, rtol=2e-3, atol=0)


def test_one_half_is_the_sharp_constant_of_the_discretisation_for_gaussians() -> None:
    """(KL(path) − KL(μ_T|γ))/(h I) ≤ ½, and above 0.49 for r = 10⁻⁴ with h ≪ r."""
    shares = []
    for r in (1e-1, 1e-2, 1e-4):
        target, horizon = modes([r]), 0.05
        steps = math.ceil(horizon / (0.02 * r))
        path = float(target.path_entropy(horizon, steps) - target.relative_entropy(horizon))
        h_information = target.bound(horizon, steps).discretisation.value
        shares.append(path / h_information)
    assert max(shares) <= 0.5
    assert shares[-1] > 0.49


# ---- the limit lmax → ∞ ----


def test_entropy_of_the_output_converges_exactly_when_feldman_hajek_holds() -> None:
    limits = (32, 64, 128, 256)

    def series(ratio) -> list[float]:
        ell = torch.arange(limits[-1] + 1, dtype=F64)
        target = modes(ratio(ell))
        entropy = output_entropy(target, lambda d: FrozenScore(d, 50), ConstantRate(4.0))
        total = entropy.cumsum(0)
        return [float(total[limit]) for limit in limits]

    held = series(lambda ell: 1 + 3 * (1 + ell) ** -2)
    gains = np.diff(held)
    # the terms of the sum fall as ℓ·ℓ^{−4}, so each doubling of lmax gains a quarter
    assert gains[-1] / gains[-2] == pytest.approx(0.25, abs=0.03)
    assert gains[-1] < 1e-3 * held[-1]
    constant = series(lambda ell: torch.full_like(ell, 2.0))
    assert slope(limits[1:], constant[1:]) == pytest.approx(2, abs=0.05)
    rougher = series(lambda ell: (1 + ell) ** -1.0)
    assert slope(limits[1:], rougher[1:]) > 2


# ---- laws that are not Gaussian ----


def mixture(lmax: int, horizon: float) -> MixtureDenoiser:
    noise = GaussianField(PowerLaw(1.0, 3.0), lmax, dtype=F64)
    process = OrnsteinUhlenbeck(noise, ConstantRate(horizon))
    C = noise.variance_per_coefficient
    sign = torch.ones_like(C)
    sign[1:] = 0.1
    return MixtureDenoiser(
        [
            GaussianDenoiser(process, 0.4 * C, mean=1.2 * sign * C.sqrt()),
            GaussianDenoiser(process, 0.8 * C, mean=-1.5 * sign * C.sqrt()),
        ],
        (0.6, 0.4),
    )


def draws(target: MixtureDenoiser, count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    which = rng.choice(len(target.components), size=count, p=np.exp(target.log_weights))
    mean = torch.stack([c.mean for c in target.components])[which]
    std = torch.stack([c.covariance.variance for c in target.components])[which].sqrt()
    return mean + std * torch.from_numpy(rng.standard_normal(mean.shape))


def trapezoid(target: MixtureDenoiser) -> tuple[float, float]:
    """KL(μ|γ) and I(μ|γ) of one mode by quadrature and a finite difference."""
    field = target.process.field
    z = torch.linspace(-10, 10, 8001, dtype=F64)
    log_h = target.log_density_ratio(field.color(z[:, None]), 0.0)
    p = log_h.exp() * torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    (derivative,) = torch.gradient(log_h, spacing=(z,))
    width = float(z[1] - z[0])
    return float((p * log_h).sum()) * width, float((p * derivative**2).sum()) * width


def test_monte_carlo_agrees_with_quadrature_in_one_mode() -> None:
    """Three z-scores below 4: one false alarm in about 5,000."""
    target = mixture(0, 2.0)
    x = draws(target, 40_000, seed=1)
    entropy, fisher = trapezoid(target)
    path = path_entropy(target, x, 6, generator=Bulk(len(x), 2))
    h = 2.0 / 6
    # I at the grid from the same quadrature: the mixture at time τ is a mixture
    grid = 0.0
    for k in range(1, 7):
        decay = math.exp(-2 * k * h)
        later = mixture(0, 2.0)
        C = later.process.field.variance_per_coefficient
        for c in later.components:
            c.mean = c.mean * math.sqrt(decay)
            c.covariance = Covariance(decay * c.covariance.diagonal + (1 - decay) * C)
        grid += trapezoid(later)[1]
    expected = entropy - (2 * math.expm1(h) - h) * grid
    for estimate, exact in (
        (relative_entropy(target, x), entropy),
        (fisher_information(target, x), fisher),
        (path, expected),
    ):
        assert abs(estimate.value - exact) < 4 * estimate.error
        assert estimate.error < 0.03 * exact


def test_derivative_of_the_density_is_the_malliavin_gamma_score() -> None:
    target = mixture(4, 1.0)
    x = draws(target, 5, seed=3)
    torch.testing.assert_close(
        log_derivative(target, x, 0.4),
        target.malliavin_gamma_score(x, 0.4),
        rtol=1e-9,
        atol=1e-11,
    )


def test_the_increments_of_the_score_along_a_path_obey_the_identity_of_the_proof() -> None:
    """E‖Z_s − Z_r‖² = I_s − (2e^{s−r} − 1) I_r on paths of a mixture.

    The difference of the two sides has mean zero sample by sample: |z| < 4, one false alarm in
    16,000.  The bound I_s − I_r that the proof takes from it is told apart.
    """
    target = mixture(2, 2.0)
    process, inner = target.process, target.process.field.inner
    assert isinstance(process, OrnsteinUhlenbeck)
    x0 = draws(target, 20_000, seed=4)
    g = Bulk(len(x0), 5)
    late = process.transition(x0, 0.0, 0.15, generator=g)
    early = process.transition(late, 0.15, 0.4, generator=g)
    Zs, Zr = target.malliavin_gamma_score(late, 0.15), target.malliavin_gamma_score(early, 0.4)

    def z_score(factor: float) -> float:
        step = inner(Zs - Zr, Zs - Zr)
        difference = step - inner(Zs, Zs) + factor * inner(Zr, Zr)
        return abs(float(difference.mean() / difference.std())) * math.sqrt(len(difference))

    assert z_score(2 * math.exp(0.25 * 2.0) - 1) < 4
    assert z_score(1.0) > 20


@pytest.mark.parametrize(("horizon", "steps"), [(0.5, 5), (2.0, 10), (2.0, 80), (4.0, 40)])
def test_the_bound_holds_for_a_mixture_in_one_mode(horizon: float, steps: int) -> None:
    target = mixture(0, horizon)
    found = one_mode_entropy(FrozenScore(target, steps), points=501)
    entropy, fisher = trapezoid(target)
    bound = entropic_bound(entropy, fisher, horizon, steps).total.value
    x = draws(target, 4_000, seed=6)
    path = path_entropy(target, x, steps, generator=Bulk(len(x), 7))
    assert 0 < found <= path.value + 4 * path.error
    assert found <= bound
    assert path.value - 4 * path.error <= bound


def test_the_bound_holds_for_a_mixture_drawn_with_a_gaussian_score() -> None:
    """With the score of the Gaussian of equal moments the score term is what matters."""
    horizon, steps = 3.0, 150
    target = mixture(0, horizon)
    x = draws(target, 2_000, seed=10)
    z = torch.linspace(-10, 10, 8001, dtype=F64)[:, None]
    p = (target.log_density_ratio(z, 0.0) - 0.5 * z[:, 0] ** 2).softmax(0)[:, None]
    mean = (p * z).sum(0)
    emulator = GaussianDenoiser(target.process, (p * (z - mean) ** 2).sum(0), mean=mean)
    error = score_error(emulator, target, x, steps, generator=Bulk(len(x), 11))
    found = one_mode_entropy(FrozenScore(emulator, steps), target, points=501)
    bound = entropic_bound(*trapezoid(target), horizon, steps, error).total
    assert found <= bound.value
    assert found > 10 * one_mode_entropy(FrozenScore(target, steps), points=501)
    # with h → 0 and T → ∞, KL(μ | N) = S for the emulator N: Girsanov without a step
    exact = trapezoid(target)[0] - 0.5 * float(mean**2 + emulator.covariance.variance - 1)
    exact += 0.5 * float(emulator.covariance.variance.log())
    assert abs(error.value / exact - 1) < 0.1
    assert found == pytest.approx(exact, rel=0.1)


def test_quadrature_equals_the_recursion_for_a_gaussian() -> None:
    target = modes([0.5], shift=0.9)
    sampler = FrozenScore(target.denoiser(ConstantRate(1.5)), 12)
    expected = measured(target, 1.5, 12)
    assert one_mode_entropy(sampler, points=801) == pytest.approx(expected, rel=1e-8)


def test_score_error_by_monte_carlo_equals_the_closed_form() -> None:
    right, wrong = modes([0.5, 2.0, 1.0], shift=0.4), modes([0.8, 1.5, 1.1], shift=-0.3)
    horizon, steps = 2.0, 10
    schedule = ConstantRate(horizon)
    exact, used = right.denoiser(schedule), wrong.denoiser(schedule)
    x = right.data.sample((20_000,), generator=Bulk(20_000, 8)) + right.mean
    found = score_error(used, exact, x, steps, generator=Bulk(len(x), 9))
    closed = right.bound(horizon, steps, score=wrong).score.value
    assert abs(found.value - closed) < 4 * found.error
    assert found.error < 0.02 * closed
    none = score_error(exact, exact, x[:100], steps, generator=torch.Generator().manual_seed(9))
    assert none.value < 1e-20


# ---- the plan, and errors ----


@pytest.mark.parametrize("aim", [1e-3, 0.1, 5.0])
def test_plan_meets_its_aim_with_the_fewest_steps(aim: float) -> None:
    target = suited(20)
    K, information = (
        float(v.sum()) for v in (target.relative_entropy(), target.fisher_information())
    )
    asked = plan(aim, K, information)
    if aim > K:
        assert asked.steps == 0
        return
    assert target.bound(asked.horizon, asked.steps).total.value <= aim
    for horizon in np.linspace(0.2, 15, 400):
        fewer = int(0.99 * asked.steps) - 1
        assert target.bound(float(horizon), fewer).total.value > aim
    assert measured(target, 3.0, 200) < 0.1


def test_terms_and_their_errors() -> None:
    bound = entropic_bound(Estimate(2.0, 0.1), Estimate(4.0, 0.2), 1.0, 10, Estimate(0.1, 0.01))
    decay = math.exp(-2)
    assert bound.total.value == pytest.approx(2 * decay + (math.sqrt(0.1) + math.sqrt(0.4)) ** 2)

    # by finite differences of the total in each of its terms
    def total(K: float, information: float, S: float) -> float:
        return entropic_bound(K, information, 1.0, 10, S).total.value

    eps = 1e-6
    expected = sum(
        error * (total(*(np.add((2, 4, 0.1), eps * unit))) - total(2, 4, 0.1)) / eps
        for error, unit in zip((0.1, 0.2, 0.01), np.eye(3), strict=True)
    )
    assert bound.total.error == pytest.approx(expected, rel=1e-4)
    assert str(bound).startswith("at most 1.171 ± ")
    assert "start 0.2707 ± 0.014, score 0.1 ± 0.01, steps 0.4 ± 0.02" in str(bound)
    assert str(Estimate(1.5)) == "1.5"
    assert str(Estimate(1.5, 0.125)) == "1.5 ± 0.12"


def test_errors() -> None:
    noise = field([1.0, 0.5])
    with pytest.raises(ValueError, match="one shape"):
        GaussianTarget(noise, field([1.0, 0.5, 0.2]))
    with pytest.raises(ValueError, match="data has none at degree 1"):
        GaussianTarget(noise, field([1.0, 0.0]))
    with pytest.raises(ValueError, match="mean"):
        GaussianTarget(noise, noise, torch.zeros(9))
    target = GaussianTarget(noise, field([2.0, 0.5]))
    with pytest.raises(ValueError, match="same noise"):
        target.score_error(modes([1.0, 1.0]), 0.1)
    with pytest.raises(TypeError, match="ConstantRate"):
        FrozenScore(target.denoiser(LogSNR()), 4)
    with pytest.raises(ValueError, match="T > 0"):
        target.bound(-1.0, 4)
    with pytest.raises(ValueError, match="singular"):
        entropic_bound(math.inf, 1.0, 1.0, 4)
    with pytest.raises(ValueError, match="above zero"):
        plan(0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="one coefficient"):
        one_mode_entropy(FrozenScore(target.denoiser(ConstantRate(1.0)), 4))
    one = modes([2.0]).denoiser(ConstantRate(1.0))
    with pytest.raises(ValueError, match="at least 59"):
        one_mode_entropy(FrozenScore(one, 4), points=11)
    factor = torch.ones(1, 4, dtype=F64)
    tilted = GaussianDenoiser(
        OrnsteinUhlenbeck(noise), covariance=Covariance(torch.ones(4, dtype=F64), factor)
    )
    with pytest.raises(ValueError, match="diagonal covariance"):
        output_law(Heun(tilted))

    class Other(Denoiser):
        process = OrnsteinUhlenbeck(noise, ConstantRate(1.0))

        def __call__(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match="linear"):
        output_law(Heun(Other()))
    x = torch.zeros(1, 4, dtype=F64)
    with pytest.raises(ValueError, match="two draws"):
        relative_entropy(target.denoiser(ConstantRate(1.0)), x)
    with pytest.raises(TypeError, match="ConstantRate"):
        path_entropy(target.denoiser(), x, 4, generator=torch.Generator())
