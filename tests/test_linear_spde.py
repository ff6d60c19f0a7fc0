"""Linear SPDEs: exact laws, samplers degree by degree, logarithmic derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from spherediff.bounds import output_law
from spherediff.covariance import Covariance
from spherediff.denoise import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.harmonics import count, degrees, expand
from spherediff.process import (
    Biharmonic,
    CahnHilliard,
    ConstantRate,
    DampedHeat,
    FractionalLaplacian,
    FractionalOrnsteinUhlenbeck,
    Heat,
    LinearSPDE,
    Operator,
    OrnsteinUhlenbeck,
    Polynomial,
    SwiftHohenberg,
    cameron_martin,
)
from spherediff.process.base import ForwardProcess
from spherediff.sample import Bridge, EulerMaruyama, Heun, ProbabilityFlow, ReverseSDE, Sampler
from spherediff.spectra import PowerLaw, Tabulated, WhittleMatern

NOISE = WhittleMatern(1.0, 1.0, 0.5)
# operator and horizon; degree 0 of three of them is not damped, two have growing degrees
CASES: dict[str, tuple[Operator, float]] = {
    "heat": (Heat(0.1), 2.0),
    "damped heat": (DampedHeat(0.05, 1.0), 5.0),
    "fractional Laplacian": (FractionalLaplacian(0.5, 1.0), 5.0),
    "biharmonic": (Biharmonic(0.01), 2.0),
    "Cahn–Hilliard": (CahnHilliard(0.3), 1.0),
    "Swift–Hohenberg": (SwiftHohenberg(4.0, 0.2), 8.0),
    "polynomial": (Polynomial((1.0, 0.0, 1e-3)), 5.0),
}


def make(name: str, lmax: int = 7) -> LinearSPDE:
    operator, horizon = CASES[name]
    return LinearSPDE(operator, NOISE, lmax, horizon, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Normals:
    """Standard normal draws for a whole batch at once."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.generator = samples, torch.Generator().manual_seed(seed)

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(self.samples, *event_shape, generator=self.generator, dtype=dtype)


def test_operators_by_hand() -> None:
    """λ at ℓ = 3, x = 12, and the signs that matter."""
    three = torch.tensor([3])
    expected = {
        Heat(0.5): 6.0,
        DampedHeat(0.5, 0.25): 6.25,
        FractionalLaplacian(0.5, 2.0): 2 * math.sqrt(12),
        Biharmonic(0.1): 14.4,
        CahnHilliard(0.5, 0.1): 12 * (0.25 * 12 + 0.03 - 1),
        SwiftHohenberg(2.0, 0.3): 4.0 - 0.3,
        Polynomial((1.0, -2.0, 3.0)): 1 - 24 + 432,
    }
    for operator, value in expected.items():
        assert float(operator(three)) == pytest.approx(value, rel=1e-14)
    rates = CahnHilliard(0.3)(torch.arange(5))
    assert rates[0] == 0
    assert rates[1] < 0 < rates[4]


@pytest.mark.parametrize("name", CASES)
def test_marginals_solve_the_moment_equations(name: str) -> None:
    """α and σ² against an ODE solver for α' = −λα, (σ²)' = −2λσ² + q, degree by degree."""
    process, (operator, _) = make(name), CASES[name]
    t = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    tau = process.schedule.tau(t).numpy()
    alpha, sigma = process.marginal(t)
    ell = torch.arange(8)
    rates, power = operator(ell).numpy(), NOISE(ell).numpy()
    zonal = (ell * ell + ell).numpy()  # m = 0

    def drift(_: float, y: np.ndarray) -> np.ndarray:
        return np.concatenate([-rates * y[:8], -2 * rates * y[8:] + power])

    start = np.concatenate([np.ones(8), np.zeros(8)])
    found = integrate.solve_ivp(
        drift, (0, tau[-1]), start, t_eval=tau, method="DOP853", rtol=1e-12, atol=1e-16
    ).y
    np.testing.assert_allclose(alpha[:, zonal], found[:8].T, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(sigma.square()[:, zonal], found[8:].T, rtol=1e-7)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lmax", [7, 127])
def test_chapman_kolmogorov(name: str, lmax: int) -> None:
    """The kernels from 0 to s and from s to t compose to that from 0 to t, for every degree."""
    process = make(name, lmax)
    alpha, variance = process._decay, process._noise_variance
    first, second = (torch.tensor(v, dtype=torch.float64) for v in (0.07, 0.4))
    torch.testing.assert_close(
        alpha(first) * alpha(second), alpha(first + second), rtol=1e-12, atol=0
    )
    composed = alpha(second).square() * variance(first) + variance(second)
    torch.testing.assert_close(composed, variance(first + second), rtol=1e-12, atol=0)


def test_drawn_transitions_have_the_law_of_the_marginals() -> None:
    process, N = make("Cahn–Hilliard", 3), 4000
    x0 = torch.full((N, 16), 1.7, dtype=torch.float64)
    source = Normals(N, 0)
    middle = process.noised(x0, 0.5, generator=source)
    end = process.transition(middle, 0.5, 0.9, generator=source)
    for x, t in ((middle, 0.5), (end, 0.9)):
        alpha, sigma = process.marginal(t)
        z = (x - alpha * x0) / sigma
        tail = 1e-3 / 32  # mean and variance of 16 modes, false-alarm rate 1e-3 for each set
        assert (z.mean(0).abs() * N**0.5).max() < stats.norm.isf(tail)
        chi2 = z.square().sum(0)
        assert stats.chi2.ppf(tail, N) < chi2.min()
        assert chi2.max() < stats.chi2.isf(tail, N)
    with pytest.raises(ValueError, match="expected s ≤ t"):
        process.transition(end, 0.5, 0.4, generator=source)


def test_growth_and_the_undamped_limit() -> None:
    """σ² is analytic in λ: small rates of either sign join at q τ."""
    noise, horizon = Tabulated([2.0]), 3.0
    spread = [
        float(LinearSPDE(Polynomial((rate,)), noise, 0, horizon).sigma(1.0))
        for rate in (-1e-9, 0.0, 1e-9)
    ]
    assert spread == pytest.approx([math.sqrt(6.0)] * 3, rel=1e-7)
    growing = LinearSPDE(Polynomial((-0.7,)), noise, 0, horizon, dtype=torch.float64)
    assert float(growing.sigma(1.0)) ** 2 == pytest.approx(2 * math.expm1(4.2) / 1.4)


def test_ornstein_uhlenbeck_is_the_case_of_equal_rates() -> None:
    C = PowerLaw(1.3, 3.0)
    greco = OrnsteinUhlenbeck(GaussianField(C, 5, dtype=torch.float64), ConstantRate(5.0))
    ell = torch.arange(6)
    spde = LinearSPDE(Polynomial((1.0,)), Tabulated(2 * C(ell)), 5, 5.0, dtype=torch.float64)
    for tau in (0.01, 0.5, 3.0):
        time = torch.tensor(tau, dtype=torch.float64)
        a, b = greco.marginal(greco.schedule.time(time)), spde.marginal(spde.schedule.time(time))
        torch.testing.assert_close(a[0].expand(36), b[0])
        torch.testing.assert_close(a[1], b[1])
    # and its pace is that of evenly spaced log-SNR, from −5 at the data end
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    log_noise = 0.5 * torch.log(torch.expm1(2 * spde.schedule.tau(t)))
    torch.testing.assert_close(log_noise, torch.linspace(-5, 5, 11).double(), rtol=0, atol=1e-3)
    assert spde.schedule.span == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_pace(name: str) -> None:
    process = make(name, 31)
    schedule = process.schedule
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.tau(t)), t, rtol=0, atol=1e-12)
    step = torch.autograd.functional.jvp(schedule.tau, t, torch.ones_like(t))[1]
    torch.testing.assert_close(schedule.rate(t), step)
    # no degree in passage moves by more than span/N, and one always moves that far
    N = 400
    times = torch.linspace(0, 1, N + 1, dtype=torch.float64)
    u = process._level(schedule.tau(times))
    u = u - u[-1] + (process._rates * schedule.tau(times)[-1]).clamp(min=0)
    gain, centre = u.diff(dim=0), 0.5 * (u[1:] + u[:-1])
    passing = torch.where(centre.abs() <= 5, gain, 0).amax(1)
    assert passing.max() <= schedule.span / N * 1.1
    assert float(u[0].max()) == pytest.approx(-5, abs=1e-9)


def target(process: ForwardProcess) -> GaussianDenoiser:
    """Ratios of data to noise variance from 10⁻³ to 10² over the degrees."""
    ell = torch.arange(process.field.lmax + 1)
    scale = process.field.degree_variance / process._decay(process._tau(1.0)).square().clamp(min=1)
    ratio = 10 ** (5 * ((3 * ell) % (len(ell))) / (len(ell) - 1) - 3.0)
    return GaussianDenoiser(process, expand(scale * ratio))


def limits(denoiser: GaussianDenoiser) -> dict[str, torch.Tensor]:
    """Output variance of flow and reverse SDE for infinitely many steps."""
    process, S = denoiser.process, denoiser.covariance.diagonal
    (a0, s0), (a1, s1) = process.marginal(0.0), process.marginal(1.0)
    V0, V1 = a0**2 * S + s0**2, a1**2 * S + s1**2
    arrival = 0.5 * (a0 * S / V0 + 1 / a0)
    rho = a1 / a0 * V0 / V1  # regression of X at the data end on X at the noise end
    return {
        "flow": arrival**2 * s1**2 * V0 / V1,
        "SDE": arrival**2 * (V0 + rho**2 * (s1**2 - V1)),
    }


@pytest.mark.parametrize("name", CASES)
def test_default_steps_keep_every_degree_within_one_percent(name: str) -> None:
    denoiser = target(make(name))
    for kind, limit in ((ProbabilityFlow, "flow"), (ReverseSDE, "SDE")):
        error = output_law(kind(denoiser))[1] / limits(denoiser)[limit] - 1
        assert error.abs().max() < 0.01


@pytest.mark.parametrize("name", CASES)
def test_bias_of_degrees_that_do_not_forget(name: str) -> None:
    """The limits lose share_ℓ of the variance (flow) and share_ℓ² (SDE), as documented."""
    process = make(name)
    denoiser = target(process)
    S = denoiser.covariance.diagonal
    share = expand(process.terminal_share(S[_zonal()]))
    a0, s0 = process.marginal(0.0)
    end = (0.5 * (a0 * S / (a0**2 * S + s0**2) + 1 / a0)) ** 2 * (a0**2 * S + s0**2)
    assert (end / S - 1).abs().max() < 0.02  # what stopping at α(0) < 1 costs
    torch.testing.assert_close(limits(denoiser)["flow"], end * (1 - share))
    torch.testing.assert_close(limits(denoiser)["SDE"], end * (1 - share**2), rtol=1e-5, atol=0)


def _zonal() -> torch.Tensor:
    ell = torch.arange(8)
    return ell * ell + ell


KINDS: dict[str, tuple[Callable[..., Sampler], str]] = {
    "Euler–Maruyama": (EulerMaruyama, "SDE"),
    "reverse bridge": (Bridge, "SDE"),
    "exponential Euler": (lambda denoiser, steps: Bridge(denoiser, steps, eta=0.0), "flow"),
    "Heun": (Heun, "flow"),
    "probability flow": (ProbabilityFlow, "flow"),
    "reverse SDE": (ReverseSDE, "SDE"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Swift–Hohenberg"])
def test_order_of_convergence(kind: str, name: str) -> None:
    make_sampler, limit = KINDS[kind]
    denoiser = target(make(name, 3))
    order = make_sampler(denoiser, 2).order
    steps = np.array([200, 300, 450] if order == 1 else [100, 150, 225])
    errors = [
        float(
            (output_law(make_sampler(denoiser, int(n)))[1] / limits(denoiser)[limit] - 1)
            .square()
            .mean()
            .sqrt()
        )
        for n in steps
    ]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15)


def test_stiff_degrees() -> None:
    """At lmax 127 the biharmonic operator underflows α; exact samplers do not mind, Euler does."""
    process = make("biharmonic", 127)
    assert (process.alpha(1.0)[-1] == 0).all()
    denoiser = GaussianDenoiser(process, process.field.variance_per_coefficient)
    x = ReverseSDE(denoiser, 24).sample((1,), generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(x).all()
    with pytest.raises(ValueError, match="unstable above 2"):
        EulerMaruyama(denoiser, 100).sample((1,), generator=torch.Generator().manual_seed(0))


def test_terminal_share_names_what_is_kept() -> None:
    process = make("Swift–Hohenberg")
    S = torch.ones(8, dtype=torch.float64)
    (alpha, sigma), zonal = process.marginal(1.0), _zonal()
    expected = (alpha**2 / (alpha**2 + sigma**2))[zonal]
    torch.testing.assert_close(process.terminal_share(S), expected)
    worst = int(expected.argmax())
    with pytest.raises(ValueError, match=rf"degree {worst} keeps .* Raise the horizon"):
        process.require_forgotten(S)
    make("damped heat").require_forgotten(S, 1e-3)


def mixture(process: ForwardProcess, rank: int = 0) -> MixtureDenoiser:
    """Three components; the noise end of the process sets the scale of each coefficient."""
    n = process.event_shape[-1]
    alpha, _ = process.marginal(1.0)
    std = process.field.std_per_coefficient / alpha.clamp(min=1)
    parts = []
    for k in range(3):
        covariance = Covariance(
            std**2 * (0.2 + normal(n, seed=k).square()), std * normal(rank, n, seed=7 + k)
        )
        mean = std * normal(n, seed=20 + k) * (1.0 + degrees(process.field.lmax)) ** -1.5
        parts.append(GaussianDenoiser(process, covariance=covariance, mean=mean))
    return MixtureDenoiser(parts, [0.5, 0.3, 0.2])


def log_density(denoiser: MixtureDenoiser, x: torch.Tensor, tau: float) -> torch.Tensor:
    """log p_t(x) from the SPDE's own formulas, written without the package's α, σ or solvers."""
    operator, noise = denoiser.process.operator, denoiser.process.noise  # type: ignore[attr-defined]
    ell = degrees(denoiser.process.field.lmax)
    rate, q = operator(ell), noise(ell)
    still = rate == 0
    divisor = torch.where(still, 1, 2 * rate)
    spread = torch.where(still, q * tau, q * (1 - torch.exp(-2 * rate * tau)) / divisor)
    decay = torch.exp(-rate * tau)
    logs = []
    for weight, part in zip(denoiser.log_weights, denoiser.components, strict=True):
        centred = x - decay * part.mean
        V = decay**2 * part.covariance.diagonal + spread
        U = part.covariance.factor * decay
        if len(U):
            law = torch.distributions.LowRankMultivariateNormal(decay * part.mean, U.T, V)
            logs.append(weight + law.log_prob(x))
        else:
            logs.append(weight - 0.5 * (centred**2 / V + torch.log(2 * math.pi * V)).sum(-1))
    return torch.stack(logs).logsumexp(0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("lmax", "rank"), [(7, 0), (7, 3), (31, 0), (127, 0)])
def test_logarithmic_derivative_is_that_of_a_mixture(name: str, lmax: int, rank: int) -> None:
    """β_h against autograd of the log-density, 64 to 16,384 modes; relative error ≤ 1e-10."""
    process = make(name, lmax)
    denoiser = mixture(process, rank)
    for t in (0.35, 0.8):
        tau = float(process.schedule.tau(torch.tensor(t, dtype=torch.float64)))
        alpha, sigma = process.marginal(t)
        mean = denoiser.components[1].mean
        x = alpha * mean + (
            sigma**2 + alpha**2 * denoiser.components[1].covariance.variance
        ).sqrt() * (normal(4, count(lmax), seed=3))
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(denoiser, x, tau).sum(), x)
        # a direction inside the Cameron–Martin space at every lmax
        h = sigma * normal(count(lmax), seed=5) * (1.0 + degrees(lmax)) ** -2.0
        assert bool(process.cameron_martin(h, t).inside)
        expected = (gradient * h).sum(-1)
        found = denoiser.logarithmic_derivative(x.detach(), t, h)
        scale = (gradient * h).square().sum(-1).sqrt()
        assert ((found - expected).abs() / scale).max() <= 1e-10


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lmax", [7, 127])
def test_integration_by_parts(name: str, lmax: int) -> None:
    """E[∂_hφ(X_t)] = −E[φ(X_t) β_h(X_t)] by Monte Carlo, false-alarm rate 1e-4 each.

    φ(x) = sin⟨g, x⟩ + ⟨g, x⟩, both expectations over the same draws of X_t.
    """
    N = 4000 if lmax == 7 else 200
    process = make(name, lmax)
    denoiser = mixture(process)
    t, rng = 0.6, np.random.default_rng(4)
    which = rng.choice(3, size=N, p=np.exp(denoiser.log_weights))
    parts = denoiser.components
    mean = torch.stack([part.mean for part in parts])[which]
    std = torch.stack([part.covariance.variance for part in parts])[which].sqrt()
    x0 = mean + std * normal(N, count(lmax), seed=1)
    x = process.noised(x0, t, generator=Normals(N, 2))
    _, sigma = process.marginal(t)
    h = sigma * (1.0 + degrees(lmax)) ** -2.0 * normal(count(lmax), seed=5)
    g = h / x.var(0)
    g = g / (x @ g).std()
    projection = x @ g
    left = (torch.cos(projection) + 1) * (g @ h)
    right = (torch.sin(projection) + projection) * denoiser.logarithmic_derivative(x, t, h)
    difference = left + right
    z = float(difference.mean() / (difference.std() / N**0.5))
    assert abs(z) < stats.norm.isf(1e-4 / 2)
    wrong = left + 0.5 * right  # the test sees a wrong coefficient
    assert abs(float(wrong.mean() / (wrong.std() / N**0.5))) > stats.norm.isf(1e-4 / 2)


def test_directions_inside_and_outside() -> None:
    process = make("damped heat", 127)
    sigma = process.sigma(0.5)
    ell = degrees(127)
    xi = normal(count(127), seed=1)
    # Σ_{ℓ}(2ℓ+1)(1+ℓ)^{−2p} converges for p > 1
    for p, inside in ((0.0, False), (0.9, False), (1.1, True), (2.0, True)):
        direction = process.cameron_martin(sigma * xi * (1.0 + ell) ** -p, 0.5)
        assert bool(direction.inside) is inside
        assert float(direction.tail_exponent) == pytest.approx(1 - 2 * p, abs=0.2)
    direction = process.cameron_martin(sigma * xi, 0.5)
    torch.testing.assert_close(
        direction.partial_sums, xi.square().cumsum(0)[(torch.arange(128) + 1) ** 2 - 1]
    )
    # a draw of the noise itself lies outside, almost surely
    assert not process.cameron_martin(process.field.sample(generator=seeded()), 0.5).inside
    band_limited = torch.zeros(count(127), dtype=torch.float64)
    band_limited[:9] = 1.0
    assert process.cameron_martin(band_limited, 0.5).inside
    variance = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    h = torch.zeros(9, dtype=torch.float64)
    h[6] = 1.0
    assert float(cameron_martin(variance, h).partial_sums[-1]) == 1.0
    h[2] = 1e-8
    with pytest.raises(ValueError, match="power in degree 1, where there is no noise"):
        cameron_martin(variance, h)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_same_denoisers_and_samplers_serve_channels() -> None:
    table = torch.stack([NOISE(torch.arange(4)), 3 * NOISE(torch.arange(4))])
    process = LinearSPDE(DampedHeat(0.1, 1.0), Tabulated(table), 3, 5.0, dtype=torch.float64)
    data = normal(5, 2, 16, seed=4)
    network = torch.nn.Module()
    network.forward = lambda u, *_: 0.1 * u  # type: ignore[method-assign]
    variance = process.field.variance_per_coefficient
    for denoiser in (
        EmpiricalDenoiser(process, data),
        NeuralDenoiser(process, network, torch.zeros(2, 16), variance),
        GaussianDenoiser(process, covariance=Covariance.shrunk(data)),
    ):
        x = ReverseSDE(denoiser, 40).sample((3,), generator=seeded())
        assert x.shape == (3, 2, 16)
        t = torch.tensor([[0.2], [0.5], [0.9]], dtype=torch.float64)
        together = denoiser(x, t)
        alone = torch.stack([denoiser(x[k], float(t[k])) for k in range(3)])
        torch.testing.assert_close(together, alone)
    drawn = ReverseSDE(EmpiricalDenoiser(process, data), 300).sample((4,), generator=seeded())
    nearest = (drawn[:, None] - data).square().sum((-1, -2)).amin(1)
    assert nearest.max() < 1e-2 * data.square().sum((-1, -2)).mean()


def test_low_rank_covariances_know_degrees() -> None:
    """The denoiser against dense Bayes, α different in every degree."""
    process = make("fractional Laplacian", 3)
    covariance = Covariance(torch.rand(16).double() + 0.1, normal(3, 16))
    denoiser = GaussianDenoiser(process, covariance=covariance, mean=normal(16, seed=2))
    S = covariance.factor.T @ covariance.factor + covariance.diagonal.diag()
    x = normal(4, 16, seed=9)
    for t in (0.3, 0.7):
        alpha, sigma = process.marginal(t)
        V = alpha[:, None] * S * alpha + (sigma**2).diag()
        residual = torch.linalg.solve(V, (x - alpha * denoiser.mean).T)
        expected = denoiser.mean + ((S * alpha) @ residual).T
        torch.testing.assert_close(denoiser(x, t), expected)
        law = torch.distributions.MultivariateNormal(alpha * denoiser.mean, V)
        noise = torch.distributions.Normal(0, process.field.std_per_coefficient)
        ratio = law.log_prob(x) - noise.log_prob(x).sum(-1)
        torch.testing.assert_close(denoiser.log_density_ratio(x, t), ratio)


def test_errors() -> None:
    with pytest.raises(ValueError, match="C_ℓ = 0 at degree 2"):
        LinearSPDE(Heat(), Tabulated([1.0, 1.0, 0.0]), 2, 1.0)
    with pytest.raises(ValueError, match="horizon must be positive"):
        LinearSPDE(Heat(), NOISE, 3, 0.0)
    with pytest.raises(ValueError, match="grows by a factor"):
        LinearSPDE(Polynomial((-5.0,)), NOISE, 3, 10.0)
    with pytest.raises(ValueError, match="does not fall any more after"):
        FractionalOrnsteinUhlenbeck(Polynomial((-1.0,)), NOISE, 3, 30.0, 0.3)
    for wrong in (
        lambda: Heat(0.0),
        lambda: DampedHeat(1.0, -1.0),
        lambda: FractionalLaplacian(0.0),
        lambda: Biharmonic(math.inf),
        lambda: CahnHilliard(-0.1),
    ):
        with pytest.raises(ValueError, match="must be positive and finite"):
            wrong()
    with pytest.raises(ValueError, match="must be finite"):
        CahnHilliard(0.1, math.nan)
    with pytest.raises(ValueError, match="must be finite"):
        SwiftHohenberg(2.0, math.nan)
    with pytest.raises(ValueError, match="finite coefficients"):
        Polynomial(())
    with pytest.raises(ValueError, match="finite up to lmax"):
        LinearSPDE(Polynomial((1e308, 1e308)), NOISE, 3, 1.0)
    process = make("heat")
    with pytest.raises(ValueError, match="direction: expected coefficients"):
        process.cameron_martin(torch.ones(9), 0.5)
