"""Posterior denoisers and samplers, tested against dense linear algebra.

For Gaussian data everything is known: E[X_0 | X_t, y] and the law of X_0 given y by kriging.  A
sampler is then affine in its noise, so that impulses in place of noise give the mean and the
covariance of its output, exactly.  A mixture's posterior is the mixture of its kriged components,
weighted by their evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from scipy import stats

from spherediff.covariance import Covariance
from spherediff.denoise import GaussianDenoiser, MixtureDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.grids import Points
from spherediff.nn import SphericalOperator
from spherediff.observe import Coefficients, Dense, Observation, Values
from spherediff.posterior import (
    MomentMatching,
    PosteriorDenoiser,
    PseudoinverseGuidance,
    Referenced,
    posterior_reference,
)
from spherediff.process import ForwardProcess, LinearSPDE, OrnsteinUhlenbeck
from spherediff.process.operators import DampedHeat
from spherediff.reference import CorrelatedReference, Reference
from spherediff.sample import Heun, ProbabilityFlow, ReverseSDE, Sampler
from spherediff.spectra import Tabulated
from spherediff.twisted import TwistedSampler

TIMES = [0.03, 0.4, 0.95]
EXACT = {"tolerance": 1e-13, "max_iterations": 300}


class Law(NamedTuple):
    """N(mean, covariance) of flattened states."""

    mean: torch.Tensor
    covariance: torch.Tensor


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_process(kind: str, lmax: int = 2) -> ForwardProcess:
    """Ornstein–Uhlenbeck with one or two channels, or rates of their own for all degrees."""
    if kind == "SPDE":
        noise = Tabulated([1.0, 0.5, 0.3, 0.2][: lmax + 1])
        return LinearSPDE(DampedHeat(0.3, 1.0), noise, lmax, 5.0, dtype=torch.float64)
    C = 1 / (1.0 + torch.arange(lmax + 1)) ** 2
    spectrum = Tabulated(C if kind == "one channel" else torch.stack([C, 2 * C]))
    return OrnsteinUhlenbeck(GaussianField(spectrum, lmax, dtype=torch.float64))


PROCESSES = ["one channel", "two channels", "SPDE"]


def make_gaussian(
    process: ForwardProcess, correlated: bool = True, seed: int = 0
) -> GaussianDenoiser:
    """Data of another law than the noise, with a mean."""
    event, C = process.event_shape, process.field.variance_per_coefficient
    diagonal = C * (0.2 + normal(*event, seed=seed + 1).square())
    factor = 0.4 * normal(2, *event, seed=seed + 2) * C.sqrt()
    covariance = Covariance(diagonal, factor) if correlated else Covariance(diagonal)
    mean = normal(*event, seed=seed + 3) * C.sqrt()
    return GaussianDenoiser(process, covariance=covariance, mean=mean)


def law_of(denoiser: GaussianDenoiser) -> Law:
    S = denoiser.covariance
    U = S.factor.flatten(1)
    return Law(denoiser.mean.flatten(), torch.diag(S.diagonal.flatten()) + U.T @ U)


def observe(
    process: ForwardProcess, noise_std: torch.Tensor | float, size: int = 5, seed: int = 20
) -> Observation:
    """Numbers of the size of the field, not drawn from any of the laws here."""
    event = process.event_shape
    scale = process.field.std_per_coefficient.flatten()
    H = normal(size, scale.numel(), seed=seed) / scale.numel() ** 0.5
    return Observation(Dense(H, event), H @ (scale * normal(scale.numel(), seed=9)), noise_std)


def dense(observation: Observation) -> torch.Tensor:
    event = observation.operator.event_shape
    n = math.prod(event)
    return observation.operator(torch.eye(n, dtype=torch.float64).reshape(n, *event)).T


def kriging(law: Law, H: torch.Tensor, y: torch.Tensor, variance: torch.Tensor) -> Law:
    """In information form, which keeps what little variance accurate observations leave."""
    precision = torch.linalg.inv(law.covariance) + (H.T / variance) @ H
    covariance = torch.linalg.inv(precision)
    shift = covariance @ (H.T @ ((y - H @ law.mean) / variance))
    return Law(law.mean + shift, covariance)


def kriged(law: Law, observation: Observation) -> Law:
    return kriging(law, dense(observation), observation.values, observation.noise_variance)


def log_evidence(law: Law, observation: Observation) -> float:
    H = dense(observation)
    A = H @ law.covariance @ H.T + torch.diag(observation.noise_variance)
    y = torch.distributions.MultivariateNormal(H @ law.mean, A)
    return float(y.log_prob(observation.values))


def exact_mean(law: Law, observation: Observation, x: torch.Tensor, t: float, p: ForwardProcess):
    """E[X_0 | X_t, y]: X_t is one more observation, αX_0 with errors of variance σ²."""
    n = law.mean.numel()
    alpha, sigma = (v.expand(p.event_shape).flatten() for v in p.marginal(t))
    H = torch.cat([dense(observation), torch.diag(alpha)])
    variance = torch.cat([observation.noise_variance, sigma.square()])
    means = [
        kriging(law, H, torch.cat([observation.values, row]), variance).mean
        for row in x.reshape(-1, n)
    ]
    return torch.stack(means).reshape(x.shape)


NOISE = {
    "negligible": 1e-3,
    "small": 0.1,
    "dominating": 1e2,
    "all of them": torch.logspace(-3, 2, 5, dtype=torch.float64),
}


# --- the denoisers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("noise", NOISE)
def test_moment_matching_is_exact_for_gaussian_data(kind: str, noise: str) -> None:
    process = make_process(kind)
    denoiser = make_gaussian(process)
    observation = observe(process, NOISE[noise])
    posterior = MomentMatching(denoiser, observation, **EXACT)
    for t in TIMES:
        alpha, sigma = process.marginal(t)
        x = alpha * denoiser.mean + sigma * normal(3, *process.event_shape, seed=4)
        expected = exact_mean(law_of(denoiser), observation, x, t, process)
        torch.testing.assert_close(posterior(x, t), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("noise", ["negligible", "all of them"])
def test_pseudoinverse_guidance_is_exact_for_the_law_of_the_reference(
    kind: str, noise: str
) -> None:
    process = make_process(kind)
    denoiser = make_gaussian(process, correlated=kind != "SPDE")
    S = denoiser.covariance
    reference = (
        Reference(process, denoiser.mean, S.diagonal)
        if kind == "SPDE"
        else CorrelatedReference(process, denoiser.mean, S)
    )
    observation = observe(process, NOISE[noise])
    posterior = PseudoinverseGuidance(Referenced(denoiser, reference), observation, **EXACT)
    otherwise = PseudoinverseGuidance(denoiser, observation, **EXACT)  # its reference is γ
    x = normal(3, *process.event_shape, seed=4)
    for t in TIMES:
        expected = exact_mean(law_of(denoiser), observation, x, t, process)
        torch.testing.assert_close(posterior(x, t), expected, rtol=1e-8, atol=1e-9)
    assert (otherwise(x, 0.4) - posterior(x, 0.4)).abs().max() > 0.01


def make_mixture(process: ForwardProcess, weights: Sequence[float] = (0.6, 0.4)) -> MixtureDenoiser:
    """Two components, 1.8 standard deviations of the noise apart in every coefficient."""
    C = process.field.variance_per_coefficient
    return MixtureDenoiser(
        [
            GaussianDenoiser(process, 0.3 * C, mean=0.9 * C.sqrt()),
            GaussianDenoiser(process, 0.6 * C, mean=-0.9 * C.sqrt()),
        ],
        weights,
    )


def mixture_posterior(denoiser: MixtureDenoiser, observation: Observation) -> MixtureDenoiser:
    """The exact law given y, again a mixture, and so the exact E[X_0 | X_t, y]."""
    laws = [law_of(component) for component in denoiser.components]
    event, n = denoiser.process.event_shape, laws[0].mean.numel()
    log_weights = torch.tensor(denoiser.log_weights) + torch.tensor(
        [log_evidence(law, observation) for law in laws]
    )
    components = []
    for mean, S in (kriged(law, observation) for law in laws):
        U = torch.linalg.cholesky(S).T.reshape(n, *event)
        covariance = Covariance(torch.zeros(event, dtype=torch.float64), U)
        components.append(
            GaussianDenoiser(denoiser.process, covariance=covariance, mean=mean.reshape(event))
        )
    return MixtureDenoiser(components, log_weights.softmax(0).tolist())


def mixture_moments(denoiser: MixtureDenoiser) -> Law:
    weights = torch.tensor(denoiser.log_weights, dtype=torch.float64).exp()
    means, covariances = zip(*(law_of(c) for c in denoiser.components), strict=True)
    mean = weights @ torch.stack(means)
    spread = torch.stack(means) - mean
    total = torch.stack(covariances) + spread[:, :, None] * spread[:, None]
    return Law(mean, torch.einsum("k,kij->ij", weights, total))


def conditional_covariance(denoiser: MixtureDenoiser, x: torch.Tensor, t: float) -> torch.Tensor:
    """Cov[X_0 | X_t = x] of a mixture with diagonal components, by the law of total covariance."""
    alpha, sigma = (v.expand(x.shape).flatten() for v in denoiser.process.marginal(t))
    r = denoiser._log_joint(x, t).softmax(0)
    means = torch.stack([c(x, t).flatten() for c in denoiser.components])
    variances = torch.stack([c.covariance.variance.flatten() for c in denoiser.components])
    p = variances * sigma.square() / (alpha.square() * variances + sigma.square())
    spread = means - r @ means
    return torch.diag(r @ p) + torch.einsum("k,ki,kj->ij", r, spread, spread)


@pytest.mark.parametrize("kind", PROCESSES)
def test_formulas_for_a_mixture(kind: str) -> None:
    """With V from the law of total covariance, which does not use Tweedie's formula."""
    process = make_process(kind)
    denoiser = make_mixture(process)
    observation = observe(process, 0.3)
    H, R = dense(observation), torch.diag(observation.noise_variance)
    C = process.field.variance_per_coefficient
    for t in TIMES:
        alpha, sigma = process.marginal(t)
        x = 0.1 * alpha * C.sqrt() + sigma * normal(*process.event_shape, seed=5)
        V = conditional_covariance(denoiser, x, t)
        P = torch.diag((C * sigma.square() / (alpha.square() * C + sigma.square())).flatten())
        m = denoiser(x, t).flatten()
        for scheme, inner in ((MomentMatching, V), (PseudoinverseGuidance, P)):
            A = H @ inner @ H.T + R
            innovation = observation.values - H @ m
            u = torch.linalg.solve(A, innovation)
            posterior = scheme(denoiser, observation, **EXACT)
            expected = (m + V @ H.T @ u).reshape(x.shape)
            torch.testing.assert_close(posterior(x, t), expected, rtol=1e-6, atol=1e-8)
            guided = posterior.guide(posterior.reference.standardise(x, t), t)
            torch.testing.assert_close(guided.misfit, innovation @ u, rtol=1e-6, atol=0)


def make_network(process: ForwardProcess) -> NeuralDenoiser:
    """With large random weights, far from any conditional expectation."""
    network = SphericalOperator(2, 2, width=4, blocks=1, hidden=4).double()
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, seed=k))
    return NeuralDenoiser(
        process, network, torch.zeros(2, 9).double(), make_gaussian(process).covariance
    )


def test_where_a_network_has_no_covariance_the_reference_stands_in() -> None:
    """At the noise end tan ψ is near 100, and V = √P (1 + tan ψ J) √P not positive definite."""
    process = make_process("two channels")
    denoiser, observation = make_network(process), observe(process, 0.3)
    z, t = normal(4, 2, 9, seed=6), 0.98
    matching, pseudo = (
        scheme(denoiser, observation).guide(z, t)
        for scheme in (MomentMatching, PseudoinverseGuidance)
    )
    white = torch.eye(18, dtype=torch.float64).reshape(18, 1, 2, 9)
    K = torch.stack([w + matching.curvature(w.expand(z.shape)) for w in white]).flatten(-2)
    K = K.movedim(0, -1)
    assert (torch.linalg.eigvalsh(K + K.mT)[:, 0] < 0).all()
    assert torch.isfinite(matching.posterior).all()
    same = (matching.misfit - pseudo.misfit).abs() < 1e-12 * pseudo.misfit
    assert same.any()


def test_guidance_of_a_network_by_its_dense_jacobian() -> None:
    """The Jacobian of a network is not symmetric: m + Vᵀ Hᵀ A⁻¹ (y − Hm), in coefficients."""
    process = make_process("two channels")
    denoiser, observation = make_network(process), observe(process, 0.3)
    S = denoiser.covariance
    posterior = PseudoinverseGuidance(denoiser, observation, **EXACT)
    H, R = dense(observation), torch.diag(observation.noise_variance)
    x, t = normal(2, 9, seed=6), 0.4
    jacobian = torch.autograd.functional.jacobian(lambda x: denoiser(x, t), x).reshape(18, 18)
    alpha, sigma = (v.expand(x.shape).flatten() for v in process.marginal(t))
    dense_S = law_of(GaussianDenoiser(process, covariance=S)).covariance
    gain = dense_S @ torch.linalg.inv(alpha.square() * dense_S + torch.diag(sigma.square()))
    P = dense_S - alpha.square() * gain @ dense_S
    m = denoiser(x, t).detach().flatten()
    u = torch.linalg.solve(H @ P @ H.T + R, observation.values - H @ m)
    expected = m + sigma.square() / alpha * (jacobian.T @ (H.T @ u))
    with torch.no_grad():
        found = posterior(x, t)
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-8, atol=1e-10)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in denoiser.parameters())


@pytest.mark.parametrize("scheme", [MomentMatching, PseudoinverseGuidance])
def test_single_precision_up_to_both_ends(scheme: type[PosteriorDenoiser]) -> None:
    """F_y is of order one there, and X_0 accurate to rounding."""
    fields = [
        GaussianField(Tabulated([1.0, 0.1, 1e-3]), 2, dtype=d)
        for d in (torch.float32, torch.float64)
    ]
    single, double = (make_mixture(OrnsteinUhlenbeck(field)) for field in fields)
    for noise in (1e-3, 1.0):
        observation = observe(double.process, noise)
        z = normal(4, 9, seed=7)
        for t in (0.0, 0.5, 1.0):
            found = scheme(single, observation).residual(z.float(), t)
            exact = scheme(double, observation, **EXACT).residual(z, t)
            assert found.dtype == torch.float32
            error = single.reference.angle(t).sin * (found - exact)
            assert error.abs().max() < 2e-3 * exact.abs().max()


def test_a_time_for_each_state() -> None:
    process = make_process("SPDE")
    posterior = MomentMatching(make_mixture(process), observe(process, 0.1), **EXACT)
    x, t = normal(3, 9, seed=8), torch.tensor(TIMES, dtype=torch.float64)
    together = posterior(x, t)
    for k in range(3):
        torch.testing.assert_close(together[k], posterior(x[k], TIMES[k]))


# --- the law of Gaussian samples -----------------------------------------------------------------


class Impulses:
    """Sample 0 sees no noise; each of the others sees one coefficient of one draw."""

    def __init__(self, draws: int, n: int) -> None:
        self.draws, self.n, self.drawn = draws, n, 0

    def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        out = torch.zeros(1 + self.draws * self.n, self.n, dtype=dtype)
        first = 1 + self.drawn * self.n
        out[first : first + self.n] = torch.eye(self.n, dtype=dtype)
        self.drawn += 1
        return out.unflatten(-1, event_shape)


def output_law(sampler: Sampler) -> Law:
    n = math.prod(sampler.process.event_shape)
    draws = 1 + sampler.steps * isinstance(sampler, ReverseSDE)
    samples = sampler.sample((1 + draws * n,), generator=Impulses(draws, n)).flatten(1)
    response = samples[1:] - samples[0]
    return Law(samples[0], response.T @ response)


def errors(found: Law, exact: Law) -> tuple[float, float]:
    """Of mean and covariance in units of the exact posterior: ‖·‖∞ after whitening."""
    inverse = torch.linalg.inv(torch.linalg.cholesky(exact.covariance))
    excess = inverse @ (found.covariance - exact.covariance) @ inverse.T
    return float((inverse @ (found.mean - exact.mean)).abs().max()), float(excess.abs().max())


@pytest.mark.parametrize(
    ("sampler", "steps"), [(ProbabilityFlow, 24), (ReverseSDE, 24), (Heun, 12)]
)
def test_output_law_converges_to_kriging_at_second_order(
    sampler: type[Sampler], steps: int
) -> None:
    process = make_process("one channel")
    denoiser = make_gaussian(process)
    observation = observe(process, 0.3, size=4)
    posterior = MomentMatching(denoiser, observation, tolerance=1e-11)
    exact = kriged(law_of(denoiser), observation)
    coarse, fine = (errors(output_law(sampler(posterior, n)), exact)[1] for n in (steps, 2 * steps))
    assert fine < 0.02
    assert coarse / fine > 2 ** (sampler.order - 0.35)


def test_output_law_with_rates_of_their_own_in_each_degree() -> None:
    process = make_process("SPDE")
    denoiser = make_gaussian(process)
    observation = observe(process, 0.3, size=4)
    posterior = MomentMatching(denoiser, observation, tolerance=1e-11)
    mean, covariance = errors(
        output_law(ProbabilityFlow(posterior, 64)), kriged(law_of(denoiser), observation)
    )
    assert mean < 0.02
    assert covariance < 0.02


@pytest.mark.parametrize("kind", ["one channel", "two channels"])
@pytest.mark.parametrize("noise", NOISE)
def test_posterior_reference_is_kriging(kind: str, noise: str) -> None:
    process = make_process(kind)
    denoiser = make_gaussian(process)
    S, n = denoiser.covariance, math.prod(process.event_shape)
    observation = observe(process, NOISE[noise])
    for prior in (
        CorrelatedReference(process, denoiser.mean, S),
        Reference(process, denoiser.mean, S.variance),
    ):
        covariance = S if isinstance(prior, CorrelatedReference) else Covariance(S.variance)
        law = law_of(GaussianDenoiser(process, covariance=covariance, mean=denoiser.mean))
        found = posterior_reference(prior, observation)
        white = torch.eye(n, dtype=torch.float64).reshape(n, *process.event_shape)
        rows = found.coefficients(found.std * white).flatten(1)
        mean, excess = errors(Law(found.mean.flatten(), rows.T @ rows), kriged(law, observation))
        assert mean < 1e-5
        assert excess < 1e-4


@pytest.mark.parametrize("sampler", [Heun, ProbabilityFlow, ReverseSDE])
@pytest.mark.parametrize("noise", ["negligible", "all of them"])
def test_samplers_are_exact_in_three_steps_from_the_posterior_reference(
    sampler: type[Sampler], noise: str
) -> None:
    """What is left is the noise end, where the law has forgotten all but e^{−5} of its mean."""
    process = make_process("one channel")
    denoiser = make_gaussian(process)
    observation = observe(process, NOISE[noise])
    prior = CorrelatedReference(process, denoiser.mean, denoiser.covariance)
    posterior = Referenced(
        MomentMatching(denoiser, observation, **EXACT), posterior_reference(prior, observation)
    )
    exact = kriged(law_of(denoiser), observation)
    mean, covariance = errors(output_law(sampler(posterior, 3)), exact)
    size = float((exact.mean / process.field.std_per_coefficient).norm())
    assert mean < 1.1 * math.exp(-5) * size
    assert covariance < 5 * math.exp(-10)


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [MomentMatching, PseudoinverseGuidance])
def test_observations_that_say_nothing_leave_the_prior(scheme: type[PosteriorDenoiser]) -> None:
    process = make_process("two channels")
    denoiser = make_mixture(process)
    posterior = scheme(denoiser, observe(process, 1e6))
    prior, conditioned = (
        ProbabilityFlow(d, 12).sample((4,), generator=torch.Generator().manual_seed(1))
        for d in (denoiser, posterior)
    )
    torch.testing.assert_close(conditioned, prior, rtol=1e-9, atol=1e-9)


def test_observing_everything_returns_the_data() -> None:
    process = make_process("one channel")
    denoiser = make_mixture(process)
    everything = Coefficients.up_to(2, process.event_shape)
    scale = process.field.std_per_coefficient
    data = scale * normal(9, seed=2)
    observation = Observation(everything, data, 1e-6)
    posterior = MomentMatching(denoiser, observation)
    generator = torch.Generator().manual_seed(1)
    x = ProbabilityFlow(posterior, 48).sample((4,), generator=generator)
    # the noise below the last level of the schedule, of which the last step leaves a half
    assert ((x - data) / scale).abs().max() < math.exp(-5) * 3
    close = Referenced(posterior, posterior_reference(denoiser.reference, observation))
    x = ProbabilityFlow(close, 12).sample((4,), generator=generator)
    assert (x - data).abs().max() < 6e-6
    x = TwistedSampler(denoiser, observation, particles=8, steps=12).sample(generator=generator)[0]
    assert (x - data).abs().max() < 6e-6


# --- twisted sequential Monte Carlo --------------------------------------------------------------


def within(values: torch.Tensor, exact: torch.Tensor, alarm: float = 1e-4) -> bool:
    """Whether means over independent runs, shape (runs, k), agree with the exact numbers.

    Student's t of each of the k, with Bonferroni's correction: false alarms at the rate ``alarm``.
    """
    runs, k = values.shape
    t = (values.mean(0) - exact) / (values.std(0) / math.sqrt(runs))
    return bool((t.abs() < stats.t.ppf(1 - alarm / (2 * k), runs - 1)).all())


def moments(x: torch.Tensor, exact: Law) -> torch.Tensor:
    """Whitened mean and variances of one run's draws: (0, 1) if exact."""
    inverse = torch.linalg.inv(torch.linalg.cholesky(exact.covariance))
    white = (x.flatten(1) - exact.mean) @ inverse.T
    return torch.cat([white.mean(0), white.square().mean(0)])


@pytest.mark.parametrize("kind", ["two channels", "SPDE"])
def test_twisted_sampler_for_the_law_of_the_reference(kind: str) -> None:
    """The bridge is exact for that law, so a few steps are enough for the moments and p(y)."""
    process = make_process(kind, lmax=1)
    gaussian = make_gaussian(process, correlated=kind != "SPDE")
    S = gaussian.covariance
    reference = (
        Reference(process, gaussian.mean, S.diagonal)
        if kind == "SPDE"
        else CorrelatedReference(process, gaussian.mean, S)
    )
    denoiser = Referenced(gaussian, reference)
    observation = observe(process, 0.3, size=3)
    exact = kriged(law_of(gaussian), observation)
    sampler = TwistedSampler(denoiser, observation, particles=2000, steps=6, tolerance=1e-8)
    runs = [sampler.sample(generator=torch.Generator().manual_seed(k)) for k in range(8)]
    n = len(exact.mean)
    expected = torch.cat([torch.zeros(n), torch.ones(n)]).double()
    assert within(torch.stack([moments(run.samples, exact) for run in runs]), expected)
    evidence = math.exp(log_evidence(law_of(gaussian), observation))
    estimates = torch.tensor([[math.exp(run.log_evidence)] for run in runs])
    assert within(estimates, torch.tensor([evidence]))
    assert estimates.std() < 0.2 * evidence


def share(x: torch.Tensor, mixture: MixtureDenoiser) -> torch.Tensor:
    """Mean responsibility of the first component for draws x: its weight, if they are exact."""
    log_joint = torch.stack(
        [
            weight + torch.distributions.MultivariateNormal(*law_of(c)).log_prob(x.flatten(1))
            for weight, c in zip(mixture.log_weights, mixture.components, strict=True)
        ]
    )
    return log_joint.softmax(0)[0].mean()


def mixture_problem() -> tuple[Referenced, Observation, MixtureDenoiser]:
    """A mixture whose reference has its mean and covariance, observed, and the exact posterior."""
    process = make_process("one channel", lmax=1)
    mixture = make_mixture(process)
    mean, S = mixture_moments(mixture)
    factor = Covariance(torch.zeros_like(mean), torch.linalg.cholesky(S).T)
    denoiser = Referenced(mixture, CorrelatedReference(process, mean, factor))
    observation = observe(process, 0.2, size=2)
    return denoiser, observation, mixture_posterior(mixture, observation)


def mixture_log_evidence(mixture: MixtureDenoiser, observation: Observation) -> float:
    laws = [log_evidence(law_of(component), observation) for component in mixture.components]
    return float(torch.logsumexp(torch.tensor(mixture.log_weights) + torch.tensor(laws), 0))


def test_twisted_sampler_finds_the_posterior_of_a_mixture_where_guidance_is_biased() -> None:
    denoiser, observation, exact = mixture_problem()
    law, weight = mixture_moments(exact), math.exp(exact.log_weights[0])
    expected = torch.tensor([weight] + [0.0] * 4 + [1.0] * 4, dtype=torch.float64)

    def statistics(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([share(x, exact)[None], moments(x, law)])

    sampler = TwistedSampler(denoiser, observation, particles=3000, steps=32)
    runs = [sampler.sample(generator=torch.Generator().manual_seed(k)) for k in range(6)]
    assert within(torch.stack([statistics(run.samples) for run in runs]), expected)
    # and the test has the power to see the bias of moment matching
    guided = ProbabilityFlow(MomentMatching(denoiser, observation), 24)
    x = guided.sample((6000,), generator=torch.Generator().manual_seed(0))
    biased = torch.stack([statistics(part) for part in x.split(1000)])
    assert not within(biased, expected)
    assert abs(float(biased[:, 0].mean()) - weight) > 0.04


def test_evidence_converges_at_second_order_in_the_steps() -> None:
    denoiser, observation, _ = mixture_problem()
    assert isinstance(denoiser.denoiser, MixtureDenoiser)
    exact = mixture_log_evidence(denoiser.denoiser, observation)
    error = {}
    for steps in (16, 32):
        sampler = TwistedSampler(denoiser, observation, particles=10_000, steps=steps)
        drawn = sampler.sample(generator=torch.Generator().manual_seed(5))
        error[steps] = abs(drawn.log_evidence - exact)
        assert drawn.effective_sizes.shape == (steps + 1,)
        assert (drawn.effective_sizes > 1000).all()
    assert error[16] > 2.2 * error[32]  # Monte-Carlo errors are near 0.01
    assert error[32] < 0.12


def test_twisted_draws_are_reproducible_and_follow_the_generator() -> None:
    denoiser, observation, _ = mixture_problem()
    sampler = TwistedSampler(denoiser, observation, particles=16, steps=4)
    first, again, other = (
        sampler.sample(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.samples, again.samples)
    assert first.log_evidence == again.log_evidence
    assert not torch.equal(first.samples, other.samples)


# --- with grids, and errors ----------------------------------------------------------------------


def test_stations_of_one_channel_inform_the_other() -> None:
    process = make_process("two channels")
    denoiser = make_gaussian(process)
    stations = Values(
        Points([-60.0, 0.0, 45.0], [10.0, 120.0, 250.0]), process.event_shape, channel=1
    )
    observation = Observation(stations, torch.tensor([1.0, -2.0, 0.5]).double(), 0.05)
    posterior = MomentMatching(denoiser, observation, **EXACT)
    x = normal(2, *process.event_shape, seed=4)
    expected = exact_mean(law_of(denoiser), observation, x, 0.4, process)
    torch.testing.assert_close(posterior(x, 0.4), expected, rtol=1e-8, atol=1e-9)
    assert (expected[:, 0] - denoiser(x, 0.4)[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("scheme", [MomentMatching, PseudoinverseGuidance])
def test_degrees_that_are_pure_noise(scheme: type[PosteriorDenoiser]) -> None:
    """Their α underflows single precision, and all that is known of them is the reference's law."""
    process = LinearSPDE(
        DampedHeat(20.0, 1.0), Tabulated([2.0, 40.0, 120.0]), 2, 5.0, dtype=torch.float32
    )
    C = process.field.variance_per_coefficient
    denoiser = GaussianDenoiser(process, C, mean=0.5 * C.sqrt())
    prior = Referenced(denoiser, Reference(process, denoiser.mean, C))
    assert (process.alpha(1.0)[1:] == 0).all()
    observation = observe(process, 0.1)
    found = scheme(prior, observation, tolerance=1e-6)(torch.zeros(2, 9), 1.0)
    law = Law(denoiser.mean.double(), torch.diag(C.double()))
    expected = kriging(
        law, dense(observation), observation.values.double(), observation.noise_variance.double()
    ).mean
    # x = 0 says a little of degree 0: it lowers the mean by e^{−10} of it
    torch.testing.assert_close(found.double(), expected.expand(2, 9), rtol=1e-3, atol=1e-3)


def test_many_coefficients_are_solved_without_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a few thousand there is no preconditioner; the answer is the same."""
    process = make_process("two channels")
    observation = observe(process, 0.03)
    z = torch.randn(5, *process.event_shape, dtype=torch.float64)
    for scheme in (MomentMatching, PseudoinverseGuidance):
        found = scheme(make_mixture(process), observation, tolerance=1e-10).residual(z, 0.4)
        with monkeypatch.context() as patch:
            patch.setattr("spherediff.posterior._DENSE", 0)
            plain = scheme(make_mixture(process), observation, tolerance=1e-10, max_iterations=999)
            torch.testing.assert_close(plain.residual(z, 0.4), found, rtol=1e-6, atol=1e-6)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    process = make_process("one channel")
    denoiser = make_mixture(process)
    with pytest.raises(
        ValueError, match=r"states of shape \(9,\), those of the denoiser, got \(4,"
    ):
        MomentMatching(denoiser, observe(make_process("one channel", 1), 0.1))
    with pytest.raises(ValueError, match="at least 2 particles, got 1"):
        TwistedSampler(denoiser, observe(process, 0.1), particles=1)
    with pytest.raises(TypeError, match="each at a rate of its own"):
        posterior_reference(make_mixture(make_process("SPDE")).reference, observe(process, 0.1))
    monkeypatch.setattr("spherediff.posterior._DENSE", 0)
    hurried = MomentMatching(denoiser, observe(process, 1e-3), max_iterations=1)
    with pytest.warns(UserWarning, match="MomentMatching did not converge: relative residual"):
        hurried(normal(2, 9), 0.4)
