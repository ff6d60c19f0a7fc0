"""Likelihoods by the probability flow, against closed forms and the Jacobian of the flow itself.

With the noise end at log(σ/α) = 12 and the data end at −5 what the two ends leave is below 10⁻⁴,
and all the rest of the error is the steps': of second order, and removed by a Richardson step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from spherediff.chaos import Chaos, ChaosDensity
from spherediff.covariance import Covariance
from spherediff.denoise import (
    ChaosDenoiser,
    Denoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    NeuralDenoiser,
)
from spherediff.gaussian import GaussianField
from spherediff.harmonics import count, degrees
from spherediff.likelihood import (
    Exact,
    Hutchinson,
    Trace,
    bits_per_coefficient,
    log_density_ratio,
)
from spherediff.nn import SphericalOperator
from spherediff.process import (
    ConstantRate,
    DampedHeat,
    ForwardProcess,
    FractionalLaplacian,
    FractionalOrnsteinUhlenbeck,
    LinearSPDE,
    LogSNR,
    Operator,
    OrnsteinUhlenbeck,
    Schedule,
)
from spherediff.reference import CorrelatedReference, Reference
from spherediff.sample import Heun
from spherediff.spectra import PowerLaw, Spectrum, Tabulated
from spherediff.streams import PlainDraws, Randomness

WIDE = ConstantRate(horizon=12.0, highest_log_snr=5.0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(lmax: int) -> GaussianField:
    return GaussianField(PowerLaw(0.7, 2.5), lmax, dtype=torch.float64)


def process(lmax: int, schedule: Schedule = WIDE) -> OrnsteinUhlenbeck:
    return OrnsteinUhlenbeck(noise(lmax), schedule)


def by_mode() -> Hutchinson:
    """Exact at one pass where F acts mode by mode."""
    return Hutchinson(1, seeded())


class Silent(torch.nn.Module):
    def forward(self, u: torch.Tensor, w: torch.Tensor, log_noise: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(u)


def rms(error: torch.Tensor) -> float:
    return float(error.square().mean().sqrt())


def extrapolated(found: Callable[[int], torch.Tensor], steps: int) -> torch.Tensor:
    """What a rule of second order tends to, from ``steps`` and twice as many."""
    return (4 * found(2 * steps) - found(steps)) / 3


def require_second_order(
    found: Callable[[int], torch.Tensor], exact: torch.Tensor, steps: int
) -> None:
    """Order two at steps, 3/2 steps and 9/4 steps, and nothing left behind it."""
    counts = [steps, steps * 3 // 2, steps * 9 // 4]
    values = [found(n) for n in counts]
    errors = [rms(value - exact) for value in values]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.15)
    ratio = (counts[2] / counts[1]) ** 2
    left = rms((ratio * values[2] - values[1]) / (ratio - 1) - exact)
    assert left < 0.1 * errors[-1]


def own_rates(
    operator: Operator, spectrum: Spectrum, lmax: int, horizon: float, hurst: float
) -> ForwardProcess:
    """A linear SPDE, driven by fractional noise unless H = ½."""
    if hurst == 0.5:
        return LinearSPDE(operator, spectrum, lmax, horizon, dtype=torch.float64)
    return FractionalOrnsteinUhlenbeck(
        operator, spectrum, lmax, horizon, hurst=hurst, dtype=torch.float64
    )


# --- exact where F = 0 ------------------------------------------------------------------------


def channels(lmax: int = 3) -> GaussianField:
    spectrum = torch.tensor([[1.0], [0.3]]) / (1.0 + torch.arange(lmax + 1)) ** 3
    return GaussianField(Tabulated(spectrum), lmax, dtype=torch.float64)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("trace", [Exact(), Hutchinson(2, seeded())])
def test_without_a_residual_it_is_the_reference_in_two_steps(rank: int, trace: Trace) -> None:
    ou = OrnsteinUhlenbeck(channels(), ConstantRate())
    mean = normal(2, 16)
    S = Covariance(0.05 + normal(2, 16, seed=1).square(), 0.3 * normal(rank, 2, 16, seed=2))
    x = normal(4, 3, 2, 16, seed=3)
    expected = GaussianDenoiser(ou, covariance=S, mean=mean).log_density_ratio(x, 0.0)
    found = log_density_ratio(NeuralDenoiser(ou, Silent(), mean, S), x, 2, trace=trace)
    assert found.shape == (4, 3)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("operator", [DampedHeat(0.05, 1.0), FractionalLaplacian(0.5, 1.0)])
@pytest.mark.parametrize("hurst", [0.5, 0.7])
def test_so_it_is_where_every_degree_decays_at_its_own_rate(
    operator: Operator, hurst: float
) -> None:
    spectrum = Tabulated(torch.tensor([[1.0], [0.3]]) / (1.0 + torch.arange(4)) ** 2)
    spde = own_rates(operator, spectrum, 3, 2.0, hurst)
    mean, v, x = normal(2, 16), 0.05 + normal(2, 16, seed=1).square(), normal(5, 2, 16, seed=3)
    at_once = OrnsteinUhlenbeck(spde.field, ConstantRate())
    expected = GaussianDenoiser(at_once, v, mean=mean).log_density_ratio(x, 0.0)
    found = log_density_ratio(NeuralDenoiser(spde, Silent(), mean, v), x, 2, trace=Exact())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


# --- closed forms -----------------------------------------------------------------------------


def gaussian(lmax: int = 2, schedule: Schedule = WIDE, rank: int = 0) -> GaussianDenoiser:
    """Ratios of data to noise variance from 0.1 to 5; modes with correlations for rank > 0."""
    ou = process(lmax, schedule)
    C, n = ou.field.variance_per_coefficient, count(lmax)
    S = Covariance(
        C * torch.logspace(-1, 0.7, n, dtype=torch.float64),
        C.sqrt() * 0.7 * normal(rank, n, seed=6),
    )
    return GaussianDenoiser(ou, covariance=S, mean=C.sqrt() * normal(n, seed=7))


def draws(denoiser: GaussianDenoiser, size: int, seed: int = 8) -> torch.Tensor:
    S = denoiser.covariance
    own = S.diagonal.sqrt() * normal(size, *S.event_shape, seed=seed)
    shared = normal(size, len(S.factor), seed=seed + 100) @ S.factor.flatten(1)
    return denoiser.mean + own + shared.view(own.shape)


def mixture(ou: ForwardProcess) -> MixtureDenoiser:
    """Two lumps two standard deviations of the noise apart, of different spread."""
    C = ou.field.variance_per_coefficient
    shift = C.sqrt() * torch.linspace(1.2, -0.4, C.shape[-1], dtype=torch.float64)
    parts = [GaussianDenoiser(ou, s * C, mean=k * shift) for s, k in [(0.5, 1), (0.3, -1)]]
    return MixtureDenoiser(parts, [0.6, 0.4])


def chaotic(ou: OrnsteinUhlenbeck) -> ChaosDenoiser:
    root = Chaos(ou.field, {(): 1.0, ((1, 1),): 0.5, ((0, 1), (2, 1)): 0.4, ((3, 2),): 0.2})
    return ChaosDenoiser(ou, ChaosDensity.squared(root))


CLOSED: dict[str, tuple[Callable[[], Denoiser], Trace]] = {
    "Gaussian": (gaussian, by_mode()),
    "correlated Gaussian": (lambda: gaussian(1, rank=2), Exact()),
    "mixture": (lambda: mixture(process(1)), Exact()),
    "chaos": (lambda: chaotic(process(1)), Exact()),
}


@pytest.mark.parametrize("kind", CLOSED)
def test_convergence_to_the_closed_form(kind: str) -> None:
    denoiser, trace = CLOSED[kind][0](), CLOSED[kind][1]
    x = 1.3 * denoiser.process.field.sample((6,), generator=seeded(4))
    exact = denoiser.log_density_ratio(x, 0.0)  # pyright: ignore[reportAttributeAccessIssue]
    require_second_order(lambda n: log_density_ratio(denoiser, x, n, trace=trace), exact, 24)


class Referred(Denoiser):
    """A denoiser under another reference than its own."""

    def __init__(self, denoiser: Denoiser, reference: Reference) -> None:
        self.denoiser, self.process, self._reference = denoiser, denoiser.process, reference

    def __call__(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        return self.denoiser(x, t)

    @property
    def reference(self) -> Reference:
        return self._reference


@pytest.mark.parametrize("correlated", [False, True])
def test_the_law_does_not_depend_on_the_reference(correlated: bool) -> None:
    denoiser = mixture(process(1))
    C = denoiser.process.field.variance_per_coefficient
    S = Covariance(0.4 * C, 0.6 * C.sqrt() * normal(2, 4, seed=9))
    mean = 0.3 * C.sqrt() * normal(4, seed=10)
    reference = (
        CorrelatedReference(denoiser.process, mean, S)
        if correlated
        else Reference(denoiser.process, mean, S.variance)
    )
    other = Referred(denoiser, reference)
    x = denoiser.process.field.sample((6,), generator=seeded(4))
    exact = denoiser.log_density_ratio(x, 0.0)
    require_second_order(lambda n: log_density_ratio(other, x, n, trace=Exact()), exact, 24)


@pytest.mark.parametrize("hurst", [0.5, 0.7])
def test_convergence_where_every_degree_decays_at_its_own_rate(hurst: float) -> None:
    spde = own_rates(DampedHeat(0.3, 1.0), PowerLaw(0.7, 2.2), 1, 12.0, hurst)
    x = spde.field.sample((6,), generator=seeded(4))
    exact = mixture(OrnsteinUhlenbeck(spde.field, WIDE)).log_density_ratio(x, 0.0)
    denoiser = mixture(spde)
    require_second_order(lambda n: log_density_ratio(denoiser, x, n, trace=Exact()), exact, 24)


# --- the two ends -----------------------------------------------------------------------------


def one_mode(schedule: Schedule, variance: float, mean: float) -> GaussianDenoiser:
    """N(mean, variance) under noise of variance one, a reference that knows neither."""
    field = GaussianField(Tabulated([1.0]), 0, dtype=torch.float64)
    return GaussianDenoiser(
        OrnsteinUhlenbeck(field, schedule),
        torch.tensor([variance], dtype=torch.float64),
        mean=torch.tensor([mean], dtype=torch.float64),
    )


def test_what_the_noise_end_leaves_out() -> None:
    """log q_T/dN(0, 1) at z_T, on average KL(q_T|N(0, 1)) and below cos²ψ_T KL(p|N(0, 1)).

    Averages by Gauss–Hermite quadrature, exact: all is quadratic in x.
    """
    S, mean, low = 2.5, 0.7, -1.0
    denoiser = one_mode(LogSNR(6.0, low), S, mean)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    white = torch.from_numpy(nodes)[:, None]
    x = mean + math.sqrt(S) * white
    found = extrapolated(lambda n: log_density_ratio(denoiser, x, n, trace=Exact()), 60)
    exact = one_mode(WIDE, S, mean).log_density_ratio(x, 0.0)
    cos2 = 1 / (1 + math.exp(-2 * low))
    m_T, V_T = math.sqrt(cos2) * mean, cos2 * S + 1 - cos2
    z_T = (m_T + math.sqrt(V_T) * white)[:, 0]
    missed = 0.5 * (z_T.square() - white[:, 0].square() - math.log(V_T))
    torch.testing.assert_close(exact - found, missed, rtol=0, atol=2e-5)

    def entropy(variance: float, mean: float) -> float:
        return 0.5 * (variance + mean**2 - 1 - math.log(variance))

    lost = float((torch.from_numpy(weights) * (exact - found)).sum() / weights.sum())
    assert lost == pytest.approx(entropy(V_T, m_T), abs=2e-5)
    assert 0.02 < lost < cos2 * entropy(S, mean)


def test_what_the_data_end_leaves_out_is_of_fourth_order_in_its_angle() -> None:
    highs = np.array([1.0, 1.5, 2.0])
    x = torch.tensor([[-1.0], [0.4], [1.5]], dtype=torch.float64)
    exact = one_mode(WIDE, 2.0, 0.0).log_density_ratio(x, 0.0)
    errors = []
    for high in highs:
        denoiser = one_mode(LogSNR(float(high), -8.0), 2.0, 0.0)
        found = extrapolated(lambda n, d=denoiser: log_density_ratio(d, x, n, trace=Exact()), 50)
        errors.append(rms(found - exact))
    assert -np.polyfit(highs, np.log(errors), 1)[0] == pytest.approx(4, abs=0.3)


# --- resolution -------------------------------------------------------------------------------


def test_the_density_has_a_limit_in_resolution_and_so_has_its_error() -> None:
    """Equivalent measures, S_ℓ/C_ℓ − 1 = 2(ℓ+1)⁻³: Feldman and Hájek's sum converges."""
    values, errors = [], []
    for lmax in (4, 8, 16, 32):
        ou = process(lmax)
        S = ou.field.variance_per_coefficient * (1 + 2 / (degrees(lmax) + 1.0) ** 3)
        denoiser = GaussianDenoiser(ou, S)
        x = S.sqrt() * ou.field.whiten(ou.field.sample((8,), generator=seeded(5)))
        values.append(log_density_ratio(denoiser, x, 60, trace=by_mode()))
        errors.append(values[-1] - denoiser.log_density_ratio(x, 0.0))
    assert all(rms(error) < 0.01 for error in errors)
    for found in (values, errors):
        increments = [rms(finer - coarser) for coarser, finer in pairwise(found)]
        assert increments[2] < 0.3 * increments[0]


# --- the estimated trace ----------------------------------------------------------------------


@pytest.mark.parametrize("probes", [1, 5])
def test_hutchinson_mean_and_variance(probes: int) -> None:
    """Both within 4.5 standard errors over 1000 states; false alarm 7·10⁻⁶ each."""
    size, shape = 1000, (2, 3)
    A, w = normal(6, 6, seed=1), normal(*shape, seed=2).square()

    def F(z: torch.Tensor) -> torch.Tensor:
        return (z.flatten(1) @ A.T).unflatten(1, shape)

    z = normal(size, *shape, seed=3)
    value, found = Hutchinson(probes, seeded(11))(F, z, w)
    torch.testing.assert_close(value, F(z))
    exact = (w.flatten() * A.diagonal()).sum()
    torch.testing.assert_close(Exact()(F, z, w)[1], exact.expand(size))
    B = w.flatten()[:, None] * A
    variance = float((B + B.T).tril(-1).square().sum()) / probes
    assert abs(float(found.mean() - exact)) < 4.5 * math.sqrt(variance / size)
    squares = (found - exact).square()
    assert abs(float(squares.mean()) - variance) < 4.5 * float(squares.std()) / math.sqrt(size)


def test_hutchinson_is_unbiased_along_the_flow() -> None:
    """Copies of one field differ by their signs alone; 4.5 standard errors."""
    denoiser = gaussian(1, rank=2)
    x = draws(denoiser, 1)
    exact = log_density_ratio(denoiser, x, 8, trace=Exact())
    found = log_density_ratio(denoiser, x.expand(600, -1), 8, trace=Hutchinson(2, seeded(12)))
    assert float(found.std()) > 0.01
    assert abs(float(found.mean() - exact)) < 4.5 * float(found.std()) / math.sqrt(600)


def test_signs_do_not_depend_on_the_batch() -> None:
    denoiser = gaussian(1, rank=2)
    x = draws(denoiser, 5)

    def found(x: torch.Tensor, generator: Randomness) -> torch.Tensor:
        return log_density_ratio(denoiser, x, 4, trace=Hutchinson(2, generator))

    whole = found(x, seeded(3))
    one = seeded(3)
    parts = torch.cat([found(x[:2], one), found(x[2:], one)])
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)
    assert rms(found(x, seeded(4)) - whole) > 1e-3
    own = [seeded(k) for k in range(5)]
    alone = found(x[3], [seeded(3)])
    torch.testing.assert_close(alone, found(x, own)[3], rtol=1e-13, atol=1e-13)


# --- networks ---------------------------------------------------------------------------------


def network(lmax: int, fields: int, std: float, dtype: torch.dtype) -> torch.nn.Module:
    """With weights as they start for ``std`` 0, moved at random otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        operator = SphericalOperator(lmax, fields, width=8, blocks=1, hidden=8, embedding=8)
        with torch.no_grad():
            for weight in operator.parameters():
                weight.add_(std * torch.randn_like(weight))
    return operator.to(dtype)


def test_it_is_the_jacobian_of_the_flow_for_any_network() -> None:
    """A sampler's steps from z_T to X_0, differentiated: log N(z_T) − log|∂X_0/∂z_T| − log γ.

    The two rules are different at a finite number of steps, and their difference of second order.
    """
    field = GaussianField(Tabulated([[0.7, 0.2]]), 1, dtype=torch.float64)
    ou = OrnsteinUhlenbeck(field, LogSNR(8.0, -5.0))
    S = Covariance(0.2 + normal(1, 4, seed=1).square(), 0.5 * normal(1, 1, 4, seed=2))
    denoiser = NeuralDenoiser(ou, network(1, 1, 0.2, torch.float64), normal(1, 4, seed=3), S)
    z_T, unused = normal(1, 4, seed=4), PlainDraws(seeded(), 0)

    def difference(steps: int) -> float:
        sampler = Heun(denoiser, steps)

        def flow(z: torch.Tensor) -> torch.Tensor:
            x = denoiser.reference.state(z, 1.0)
            for t, s in pairwise(sampler.times):
                x, _ = sampler.step(x, t, s, unused, None)
            return sampler._arrive(x)

        x = flow(z_T).detach()
        jacobian = torch.autograd.functional.jacobian(flow, z_T).reshape(4, 4)
        expected = (
            0.5 * (field.whiten(x).square() - z_T.square()).sum()
            + field.std_per_coefficient.log().sum()
            - torch.linalg.slogdet(jacobian).logabsdet
        )
        return float(log_density_ratio(denoiser, x, steps, trace=Exact()) - expected)

    coarse, fine = difference(64), difference(128)
    assert 1e-5 < abs(coarse) < 0.1
    assert coarse / fine == pytest.approx(4, rel=0.15)


def spherical(std: float, dtype: torch.dtype = torch.float32) -> NeuralDenoiser:
    """Two channels at lmax 3, the reference correlated."""
    ou = OrnsteinUhlenbeck(channels().to(dtype=dtype))
    S = Covariance(0.05 + normal(2, 16, seed=1).square(), 0.3 * normal(3, 2, 16, seed=2))
    return NeuralDenoiser(ou, network(3, 2, std, dtype), normal(2, 16), S)


def test_an_untrained_network_is_its_gaussian_reference() -> None:
    denoiser = spherical(0.0)
    x = normal(3, 2, 16, seed=5).float()
    clean = OrnsteinUhlenbeck(channels(), ConstantRate())
    reference = GaussianDenoiser(
        clean,
        covariance=Covariance(
            0.05 + normal(2, 16, seed=1).square(), 0.3 * normal(3, 2, 16, seed=2)
        ),
        mean=normal(2, 16),
    )
    found = log_density_ratio(denoiser, x, 4, trace=Hutchinson(1, seeded()))
    assert found.dtype == torch.float64
    expected = reference.log_density_ratio(x.double(), 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)  # single precision of x and S


def test_a_network_in_single_precision() -> None:
    denoiser, x = spherical(0.1), normal(3, 2, 16, seed=5).float()
    exact = log_density_ratio(denoiser, x, 6, trace=Exact())
    double = log_density_ratio(spherical(0.1, torch.float64), x.double(), 6, trace=Exact())
    torch.testing.assert_close(exact, double, rtol=1e-4, atol=1e-3)
    untrained = log_density_ratio(spherical(0.0), x, 2, trace=Exact())
    assert rms(exact - untrained) > 0.1
    assert all(weight.grad is None for weight in denoiser.network.parameters())
    copies = x[:1].expand(100, -1, -1)
    found = log_density_ratio(denoiser, copies, 6, trace=Hutchinson(1, seeded(13)))
    assert abs(float(found.mean() - exact[0])) < 4.5 * float(found.std()) / 10


# --- bits, errors -----------------------------------------------------------------------------


def test_bits_are_minus_the_log_density_of_every_coefficient() -> None:
    field = channels()
    x = field.sample((5,), generator=seeded(1))
    logpdf = stats.norm.logpdf(x.numpy(), scale=field.std_per_coefficient.numpy())
    expected = -logpdf.mean((1, 2)) / math.log(2)
    torch.testing.assert_close(bits_per_coefficient(field, x, 0.0), torch.from_numpy(expected))
    ratio = normal(5)
    gain = bits_per_coefficient(field, x, 0.0) - bits_per_coefficient(field, x, ratio)
    torch.testing.assert_close(gain, ratio / 32 / math.log(2))


def test_bits_of_a_law_with_known_entropy() -> None:
    """E bits = ½ log₂(2πe v̄), v̄ the geometric mean variance; χ² with 4.5 standard errors."""
    denoiser = GaussianDenoiser(process(3), process(3).field.variance_per_coefficient * 1.5)
    v = denoiser.covariance.variance
    x = draws(denoiser, 2000)
    bits = bits_per_coefficient(denoiser.process.field, x, denoiser.log_density_ratio(x, 0.0))
    entropy = 0.5 * float((2 * math.pi * math.e * v).log2().mean())
    error = math.sqrt(0.5 / 16 / 2000) / math.log(2)
    assert abs(float(bits.mean()) - entropy) < 4.5 * error


def test_errors() -> None:
    denoiser = gaussian()
    with pytest.raises(ValueError, match=r"log_density_ratio: expected coefficients of shape"):
        log_density_ratio(denoiser, normal(3, 4), trace=Exact())
    with pytest.raises(ValueError, match=r"bits_per_coefficient: expected coefficients of shape"):
        bits_per_coefficient(denoiser.process.field, normal(3, 4), 0.0)
    with pytest.raises(ValueError, match="at least one probe, got 0"):
        Hutchinson(0, seeded())
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        log_density_ratio(denoiser, normal(3, 9), 1, trace=Exact())
    flat = denoiser.process.field.variance_per_coefficient.clone()
    flat[2:4] = 0
    degenerate = Referred(denoiser, Reference(denoiser.process, denoiser.mean, flat))
    with pytest.raises(ValueError, match="variance in every mode, found 2 without"):
        log_density_ratio(degenerate, normal(3, 9), trace=Exact())
