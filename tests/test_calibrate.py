"""Calibration: the tables, their regression against closed forms, and the law of the draws."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spherediff import calibrate as calibrating
from spherediff import harmonics
from spherediff.balance import Octaves, _beyond_noise, _Turning, balance
from spherediff.calibrate import calibrate
from spherediff.calibration import Calibration
from spherediff.covariance import Covariance
from spherediff.data.amplitude import Amplitude
from spherediff.denoise import NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.process import LogSNR, OrnsteinUhlenbeck
from spherediff.sample import ProbabilityFlow
from spherediff.spectra import Tabulated
from spherediff.train import Fields, conditioned, residual_target

LMAX, CHANNELS = 7, 2
SIZES = torch.tensor([1, 3, 12, 48, 64])  # of the groups of 2·64 modes


def denoiser_of(network: nn.Module, variance: Tensor | None = None) -> NeuralDenoiser:
    """Over a field with unit coefficients as noise, and as reference if not given, float64."""
    C = torch.ones(CHANNELS, LMAX + 1, dtype=torch.float64)
    field = GaussianField(Tabulated(C), LMAX, dtype=torch.float64)
    variance = field.variance_per_coefficient if variance is None else variance
    process = OrnsteinUhlenbeck(field, LogSNR(16.0, -16.0))
    return NeuralDenoiser(process, network, torch.zeros_like(variance), variance)


def angle(log_noise: Tensor | float) -> tuple[Tensor, Tensor]:
    """cos ψ and sin ψ, tan ψ = σ/α."""
    psi = torch.as_tensor(log_noise, dtype=torch.float64).exp().arctan()
    return psi.cos(), psi.sin()


def shuffled_variances(seed: int) -> Tensor:
    """Of 128 modes, each nine tenths of the one before, in no order."""
    order = torch.randperm(CHANNELS * 64, generator=torch.Generator().manual_seed(seed))
    return 0.9 ** order.double().view(CHANNELS, 64)


def regress(denoiser: NeuralDenoiser, x: Tensor) -> None:
    """The first half of calibrating, on held-out fields."""
    denoiser.calibration.reset()
    generator = torch.Generator().manual_seed(0)
    calibrating._regress(denoiser, Fields.of(x), generator, progress=False)


class Silent(nn.Module):
    """F = 0."""

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        return torch.zeros_like(u)


# --- the tables -------------------------------------------------------------------------------


def test_groups_go_by_the_strength_of_modes() -> None:
    variance = shuffled_variances(0)
    calibration = Calibration(variance.sqrt())
    assert calibration.group.flatten().bincount().tolist() == SIZES.tolist()
    strongest = [float(variance[calibration.group == g].min()) for g in range(4)]
    weakest = [float(variance[calibration.group == g].max()) for g in range(1, 5)]
    assert all(low > high for low, high in zip(strongest, weakest, strict=True))
    assert calibration.a.shape == calibration.b.shape == (7, 5)
    assert calibration.a.dtype == torch.float64


def corrected(calibration: Calibration, F: Tensor, z: Tensor, log_noise: Tensor) -> Tensor:
    return calibration.modes(calibration.fields(F, z, log_noise), z, log_noise)


def test_no_correction_changes_no_bit() -> None:
    calibration = Calibration(torch.rand(CHANNELS, 64, generator=torch.Generator().manual_seed(0)))
    F, z = torch.randn(2, 5, CHANNELS, 64, generator=torch.Generator().manual_seed(0))
    s = torch.linspace(-9, 9, 5)
    assert torch.equal(corrected(calibration, F, z, s), F)
    for table in calibration.state_dict().values():
        table.fill_(3.0)
        assert not torch.equal(corrected(calibration, F, z, s), F)
        calibration.reset()
        assert torch.equal(corrected(calibration, F, z, s), F)


def test_tables_are_interpolated_between_knots_and_constant_beyond() -> None:
    generator = torch.Generator().manual_seed(1)
    calibration = Calibration(shuffled_variances(1))
    for table in calibration.state_dict().values():
        table.copy_(torch.randn(table.shape, generator=generator))
    s = torch.tensor([-7.0, -3.0, -2.75, -0.4, 0.0, 1.5, 2.999, 3.0, 40.0], dtype=torch.float64)
    F, z = torch.randn(2, 3, len(s), CHANNELS, 64, generator=generator, dtype=torch.float64)
    found = corrected(calibration, F, z, s.expand(3, -1))
    knots = calibration.knots.numpy()
    for c in range(CHANNELS):
        for i, ell in enumerate(harmonics.degrees(LMAX)):
            g = int(calibration.group[c, i])
            tables = (
                calibration.a[:, g],
                calibration.b[:, g],
                calibration.c[:, c, ell],
                calibration.d[:, c, i],
            )
            at_a, at_b, at_c, at_d = (
                torch.from_numpy(np.interp(s.numpy(), knots, table.numpy())) for table in tables
            )
            Fi, zi = F[..., c, i], z[..., c, i]
            expected = at_a * (calibration.e[c] * Fi + at_c * zi + at_d) + at_b * zi
            torch.testing.assert_close(found[..., c, i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("table", ["b", "c"])
def test_a_denoiser_corrects_the_modes_that_its_network_knows(table) -> None:
    whole = denoiser_of(Silent())
    denoiser = NeuralDenoiser(
        whole.process, Silent(), whole.mean, whole.covariance.diagonal, known=16
    )
    getattr(denoiser.calibration, table).fill_(0.25)
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(3, 4, CHANNELS, 64, generator=generator, dtype=torch.float64)
    F = denoiser.residual(z, 0.3)
    torch.testing.assert_close(F[..., :16], 0.25 * z[..., :16])
    assert not F[..., 16:].any()


def test_modes_are_corrected_as_modes_and_fields_as_fields() -> None:
    """F = 0 becomes E (a Eᵀ (cu + d) + b Eᵀ u), S = E diag(r) Eᵀ the covariance of u."""
    generator = torch.Generator().manual_seed(14)
    diagonal = 0.3 + torch.rand(CHANNELS, 64, generator=generator, dtype=torch.float64)
    factor = torch.randn(3, CHANNELS, 64, generator=generator, dtype=torch.float64)
    whole = denoiser_of(Silent())
    denoiser = NeuralDenoiser(whole.process, Silent(), whole.mean, Covariance(diagonal, factor))
    calibration, reference = denoiser.calibration, denoiser.reference
    for table in calibration.state_dict().values():
        table.copy_(torch.randn(table.shape[1:], generator=generator).expand_as(table))
    z = torch.randn(5, CHANNELS, 64, generator=generator, dtype=torch.float64)
    found = reference.mixed(denoiser.residual(z, 0.5)).flatten(1)
    U = factor.flatten(1)
    E = torch.linalg.eigh(torch.diag(diagonal.flatten()) + U.T @ U).eigenvectors.flip(1)
    group = torch.arange(5).repeat_interleave(SIZES)  # the strongest first
    a, b = calibration.a[0, group], calibration.b[0, group]
    c = calibration.c[0][:, harmonics.degrees(LMAX)].flatten()
    u = reference.mixed(z).flatten(1)
    expected = ((c * u + calibration.d[0].flatten()) @ E * a + u @ E * b) @ E.T
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# --- the regression ---------------------------------------------------------------------------


def test_regression_is_that_of_each_group_weighted_by_variance() -> None:
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(3, 20, CHANNELS, 64, generator=generator, dtype=torch.float64)
    v[0] += 0.2 * v[1]
    v[2] += 0.9 * v[0] + 0.02 * v[1]
    variance = shuffled_variances(3)
    denoiser = denoiser_of(Silent(), variance)
    a, b = calibrating._regression(calibrating._of_groups(denoiser, *v))
    weighted = v * (variance / variance.mean()).sqrt()
    for g in range(len(SIZES)):
        F, z, T = weighted[..., denoiser.calibration.group == g].flatten(1).numpy()
        beta = np.linalg.lstsq(z[:, None], F, rcond=None)[0][0]
        rest = np.append(F - beta * z, 1 / 0.1)  # a prior observation of T = rest, a = 1
        gain = np.linalg.lstsq(rest[:, None], np.append(T, 1 / 0.1), rcond=None)[0][0]
        np.testing.assert_allclose(a[g], gain, rtol=1e-10)
        np.testing.assert_allclose(b[g], -gain * beta, rtol=1e-10)


class Leaning(nn.Module):
    """F = c(s) z, c linear between the knots: it would change the variance of every draw."""

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        lean = 0.1 + 0.02 * log_noise.clamp(-3, 3)[:, None, None]
        return lean * u


@pytest.mark.parametrize("r", [0.7, 1.3])
def test_draws_get_the_variance_of_the_reference_whatever_that_of_the_held_out_fields(r) -> None:
    denoiser = denoiser_of(Leaning())
    start = denoiser.process.field.sample((4,), generator=torch.Generator().manual_seed(5))
    spoilt = ProbabilityFlow(denoiser, steps=16).sample(
        (4,), generator=torch.Generator().manual_seed(5)
    )
    assert float((spoilt / start).mean()) > 1.1
    generator = torch.Generator().manual_seed(4)
    x = math.sqrt(r) * torch.randn(20, CHANNELS, 64, generator=generator, dtype=torch.float64)
    calibrate(denoiser, x - x.mean(0), x)
    lean = 0.1 + 0.02 * denoiser.calibration.knots
    expected = -lean[:, None].expand_as(denoiser.calibration.b)
    torch.testing.assert_close(denoiser.calibration.b, expected, rtol=1e-6, atol=0)
    assert denoiser.calibration.c.abs().max() < 1e-7
    drawn = ProbabilityFlow(denoiser, steps=16).sample(
        (4,), generator=torch.Generator().manual_seed(5)
    )
    torch.testing.assert_close(drawn, start, rtol=1e-5, atol=1e-5)  # γ is the reference here


def test_the_strongest_mode_of_correlated_fields_is_corrected_by_itself() -> None:
    """The network leans by a half towards what is not the mean of all coefficients."""

    class LeaningInWeakModes(nn.Module):
        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
            return (u - u.mean(-1, keepdim=True)) / 2

    n = 64
    C = torch.ones(1, LMAX + 1, dtype=torch.float64)
    process = OrnsteinUhlenbeck(GaussianField(Tabulated(C), LMAX, dtype=torch.float64))
    diagonal = torch.full((1, n), 0.02, dtype=torch.float64)
    factor = torch.ones(1, 1, n, dtype=torch.float64)
    denoiser = NeuralDenoiser(
        process, LeaningInWeakModes(), torch.zeros_like(diagonal), Covariance(diagonal, factor)
    )
    generator = torch.Generator().manual_seed(13)
    y = torch.randn(20, 1, 1, generator=generator, dtype=torch.float64)
    e = torch.randn(20, 1, n, generator=generator, dtype=torch.float64)
    regress(denoiser, factor[0] * y + math.sqrt(0.02) * e)
    expected = torch.tensor([0.0, -0.5, -0.5, -0.5], dtype=torch.float64).expand(7, -1)
    torch.testing.assert_close(denoiser.calibration.b, expected, rtol=0, atol=1e-9)
    ones = torch.ones_like(denoiser.calibration.a)
    torch.testing.assert_close(denoiser.calibration.a, ones, rtol=0, atol=1e-9)


class SignsMistaken(nn.Module):
    """F/1.25 + 0.1 z for independent coefficients ±1: E[y | z] = tanh(z cos ψ/sin² ψ)."""

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        cos, sin = (v[:, None, None] for v in angle(log_noise))
        F = ((u * cos / sin**2).tanh() - cos * u) / sin
        return F / 1.25 + 0.1 * u


def signs(count: int, seed: int) -> Tensor:
    uniform = torch.rand(count, CHANNELS, 64, generator=torch.Generator().manual_seed(seed))
    return (uniform < 0.5).double() * 2 - 1


def test_a_residual_too_small_by_a_quarter_and_leaning_is_put_right() -> None:
    count, denoiser = 1500, denoiser_of(SignsMistaken())
    regress(denoiser, signs(count, 6))
    for knot, size in ((-1, 0.957), (0, 0.317)):  # √E F², by quadrature
        k = int((denoiser.calibration.knots == knot).nonzero())
        power = count * SIZES * size**2  # of F in a group
        shown = power / 1.25**2  # what the network gives of it
        expected = (1.25 * shown + 0.1**-2) / (shown + 0.1**-2)
        error = (1 / power).sqrt() * 1.25  # T has unit variance
        assert ((denoiser.calibration.a[k] - expected).abs() < 5 * error).all()  # false: 9e-6
        beta = -denoiser.calibration.b[k] / denoiser.calibration.a[k]
        weight = count * SIZES
        assert ((beta - 0.1).abs() < 5 * size / weight.sqrt()).all()


def test_calibrated_residuals_obey_the_identities_of_a_conditional_expectation() -> None:
    """On other fields, E[F (T − F)] = 0 = E[z F], within five standard errors."""
    denoiser = denoiser_of(SignsMistaken())
    worst = []
    for fit in (False, True):
        if fit:
            regress(denoiser, signs(1500, 7))
        generator = torch.Generator().manual_seed(8)
        z, t, T = residual_target(
            denoiser, signs(1500, 9), torch.zeros(1500, dtype=torch.float64), generator
        )
        F = denoiser.residual(z, t).detach()
        products = torch.stack([v[..., 4:].mean((1, 2)) for v in (F * (T - F), z * F)])
        worst.append((products.mean(1) / products.std(1) * math.sqrt(1500)).abs())
    assert (worst[0] > 9).all()
    assert (worst[1] < 5 * math.sqrt(2)).all()  # as many fields in the fit: their error too; 1e-6


# --- the law of the draws ---------------------------------------------------------------------

UPPER = (harmonics.degrees(LMAX) >= 4).long()  # degrees 0–3 and 4–7
OCTAVE = UPPER + (harmonics.degrees(LMAX) > 0)  # degrees 0, 1–3 and 4–7


def octave_power(x: Tensor) -> Tensor:
    """Mean power of the coefficients of degrees 0–3 and 4–7 of each channel."""
    power = x.square().mean(0)
    return torch.stack([power[:, o == UPPER].mean(1) for o in (0, 1)])


class Growing(nn.Module):
    """F = z (1 + tanh² z)/5 makes every draw larger, the more so the larger it is already.

    What is too much at the last levels depends on what was taken off at those before.
    """

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        return 0.2 * u * (1 + u.tanh().square())


def test_draws_of_a_calibrated_network_have_the_variance_of_the_reference() -> None:
    """Although its F is not linear, and the held-out fields have another variance.

    Octaves of 1600 coefficients or more, of the same noise before and after the flow.
    """
    denoiser = denoiser_of(Growing())

    def growth() -> Tensor:
        generators = [torch.Generator().manual_seed(21) for _ in range(2)]
        x = ProbabilityFlow(denoiser, steps=48).sample((100,), generator=generators[0])
        start = denoiser.process.field.sample((100,), generator=generators[1])
        return octave_power(x) / octave_power(start)

    assert (growth() > 1.3).all()
    generator = torch.Generator().manual_seed(20)
    x = 3 * torch.randn(8, CHANNELS, 64, generator=generator, dtype=torch.float64)
    regress(denoiser, x)
    alone = (growth() - 1).abs()
    calibrate(denoiser, x - x.mean(0), x)
    assert (growth() - 1).abs().max() < 0.03
    assert alone.max() > 0.04


def test_an_octave_keeps_its_power_though_strong_coefficients_gain_and_weak_ones_lose() -> None:
    """To as many of them, were they equal, nothing would be wrong: 1.16 times the power."""
    strong = torch.arange(64) % 2 == 0

    class Uneven(nn.Module):
        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
            return 0.1 * torch.where(strong, u, -u)

    variance = torch.where(strong, 1.0, 0.5).double().expand(CHANNELS, 64)
    denoiser = denoiser_of(Uneven(), variance)
    generator = torch.Generator().manual_seed(23)
    known = Fields.of(torch.zeros(8, CHANNELS, 64, dtype=torch.float64))  # only their number counts
    balance(denoiser, known, (), None, generator, progress=False)
    x = ProbabilityFlow(denoiser, steps=48).sample((400,), generator=generator)
    for o in range(3):  # of 2, 30 and 96 coefficients
        power, expected = (v[..., o == OCTAVE].sum((-1, -2)) for v in (x.square(), variance))
        error = float((power / expected).mean() - 1)
        assert abs(error) < 0.02 + 4 * float((power / expected).std()) / 20  # false alarm: 1.3e-4


def of_unequal_octaves(count: int, seed: int) -> Tensor:
    """Fields with the variances 0.7 and 1.4 in degrees 0–3 and 4–7."""
    std = torch.tensor([0.7, 1.4], dtype=torch.float64).sqrt()[UPPER]
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(count, CHANNELS, 64, generator=generator, dtype=torch.float64)


def test_draws_have_the_power_of_known_fields_that_had_no_part_in_the_reference() -> None:
    """The reference has variance one, and F leans besides, by an amount that depends on z."""
    denoiser = denoiser_of(Growing())
    x = of_unequal_octaves(500, 30)
    generator = torch.Generator().manual_seed(31)
    for learners in ((), (denoiser,), (denoiser, denoiser)):
        denoiser.calibration.reset()
        balance(denoiser, Fields.of(x), learners, None, generator, progress=False)
        drawn = ProbabilityFlow(denoiser, steps=48).sample((1000,), generator=generator)
        wanted = octave_power(x) if learners else torch.ones(2, CHANNELS, dtype=torch.float64)
        error = (octave_power(drawn) / wanted - 1).abs()
        # 16 and 48 coefficients of 1000 draws and of 256 that were balanced: 0.025 and 0.014
        assert error[0].max() < 0.09
        assert error[1].max() < 0.05


def test_power_is_that_of_maps_with_the_amplitude_multiplied_back() -> None:
    """Fields vary threefold where the amplitude is large, which the reference does not know."""
    log_std = torch.zeros(CHANNELS, 9, dtype=torch.float64)
    log_std[:, 6] = 1.5  # of Y_20: large at the poles
    K = Amplitude(log_std)
    generator = torch.Generator().manual_seed(32)
    x = torch.randn(400, CHANNELS, 64, generator=generator, dtype=torch.float64)
    x = K.multiply(x)
    x = x / x.square().mean((0, 2), keepdim=True).sqrt()
    denoiser = denoiser_of(Silent(), x.square().mean(0))
    ratios = {}
    for name, amplitude in (("without", None), ("with", K)):
        denoiser.calibration.reset()
        balance(denoiser, Fields.of(x), (denoiser,), amplitude, generator, progress=False)
        drawn = ProbabilityFlow(denoiser, steps=48).sample((1000,), generator=generator)
        ratios[name] = octave_power(K.multiply(drawn)) / octave_power(K.multiply(x))
    assert (ratios["without"][1] - 1).abs().min() > 0.1
    assert (ratios["with"][1] - 1).abs().max() < 0.05
    assert (ratios["with"][0] - 1).abs().max() < 0.09


def test_modes_count_when_they_turn(monkeypatch) -> None:
    """The few strong modes of known fields vary more than the reference says, half the power.

    Were modes to count alike whether they turn or not, draws would have 2 % too little power.
    """
    strong = torch.arange(64) % 10 == 0
    variance = torch.where(strong, 10.0, 1.0).double().expand(CHANNELS, 64)
    generator = torch.Generator().manual_seed(35)
    x = torch.randn(16000, CHANNELS, 64, generator=generator, dtype=torch.float64)
    x = (torch.where(strong, 1.6, 1.0) * variance).sqrt() * x
    denoiser = denoiser_of(Silent(), variance)
    monkeypatch.setattr("spherediff.balance._DRAWS", 4000)
    balance(denoiser, Fields.of(x), (denoiser,), None, generator, progress=False)
    drawn = ProbabilityFlow(denoiser, steps=48).sample((16000,), generator=generator)
    error = float((octave_power(drawn) / octave_power(x))[1].mean() - 1)
    assert abs(error) < 0.012  # noise 0.0035


@pytest.mark.parametrize("log_noise", [-1.0, 0.5])
def test_what_known_fields_call_for_is_their_mean_over_noise(log_noise) -> None:
    """E⟨z, ρT⟩ under a reference with correlations, from freshly noised fields; false: 1e-5."""
    generator = torch.Generator().manual_seed(33)
    diagonal = 0.3 + torch.rand(CHANNELS, 64, generator=generator, dtype=torch.float64)
    factor = torch.randn(3, CHANNELS, 64, generator=generator, dtype=torch.float64)
    whole = denoiser_of(Silent())
    denoiser = NeuralDenoiser(
        whole.process, Silent(), whole.mean + 0.3, Covariance(diagonal, factor)
    )
    log_std = 0.5 * torch.randn(CHANNELS, 9, generator=generator, dtype=torch.float64)
    octaves = Octaves(denoiser, Amplitude(log_std))
    x = of_unequal_octaves(10, 34)
    t = denoiser.process.time_of(torch.tensor(log_noise, dtype=torch.float64))
    called_for = _Turning(denoiser, x, octaves).at(t)
    sums = []
    for _ in range(400):
        level = torch.full((10,), log_noise, dtype=torch.float64)
        z, _, T = residual_target(denoiser, x, level, generator)
        rate = torch.prod(torch.stack(denoiser.reference.angle(t)), 0)  # cos ψ sin ψ
        fields = [octaves.fields(denoiser.reference, v) for v in (z, rate * T)]
        sums.append(octaves.sums((fields[0] * fields[1]).sum(0)))
    found = torch.stack(sums)
    error = found.std(0) / math.sqrt(len(found))
    assert called_for.shape == (CHANNELS, 3)  # degrees 0, 1–3 and 4–7
    assert ((called_for - found.mean(0)).abs() < 5 * error).all()
    assert (called_for.abs() > 15 * error).any()


class Astray(nn.Module):
    """F = tanh²(z)/5 + g(s) pulls every coefficient of degrees 4 to 7 of one channel one way."""

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        pull = 0.2 * u.tanh().square() + 0.2 - 0.05 * log_noise.clamp(-3, 3)[:, None, None]
        one = torch.zeros_like(u)
        one[..., 0, 16:] = 1
        return pull * one


@pytest.mark.parametrize("correlated", [False, True])
def test_draws_have_the_mean_of_known_fields(correlated) -> None:
    """Which is half a standard deviation in the second channel, though the reference says zero."""
    variance = torch.full((CHANNELS, 64), 1.5, dtype=torch.float64)
    covariance = Covariance(variance)
    if correlated:
        generator = torch.Generator().manual_seed(40)
        factor = torch.randn(4, CHANNELS, 64, generator=generator, dtype=torch.float64)
        covariance = Covariance(variance, factor)
    whole = denoiser_of(Silent())
    denoiser = NeuralDenoiser(whole.process, Astray(), whole.mean, covariance)
    shift = torch.zeros(CHANNELS, 64, dtype=torch.float64)
    shift[1] = 0.5 * 1.5**0.5
    known = Fields.of(shift + torch.tensor([-1.0, 1.0]).double()[:, None, None] * torch.ones(64))
    generator = torch.Generator().manual_seed(41)

    def drawn() -> Tensor:
        x = ProbabilityFlow(denoiser, steps=48).sample((2000,), generator=generator)
        reference = denoiser.reference
        off = reference.modes(x - shift) / reference.std
        return off.mean(0).square().mean(-1) * 2000  # 1 if there is noise alone, by channel

    assert drawn().min() > 50
    balance(denoiser, known, (), None, generator, progress=False)
    # the noise of 256 draws, less what is known of it, is what 2000 can show
    assert drawn().max() < 5


def test_a_mean_that_is_right_is_left_alone() -> None:
    """By 2e-5 here; by 6e-4 if noise were not shrunk, and 1e-3 if that of z were taken for F's."""
    denoiser = denoiser_of(Growing())
    known = Fields.of(torch.zeros(8, CHANNELS, 64, dtype=torch.float64))
    generator = torch.Generator().manual_seed(42)
    balance(denoiser, known, (), None, generator, progress=False)
    assert float(denoiser.calibration.d.square().sum(-1).max()) < 2e-4


def test_means_are_shrunk_by_the_share_of_likely_noise_in_their_group() -> None:
    """1 + 2√2 times that of one mode, 1 + 2√(2/3) times that of three: 0.383 of 1, 13.2 of 25."""
    group = torch.tensor([[0, 1, 1], [1, 2, 2]])
    mean = torch.tensor([[0.1, 3.0, 0.0, 7.0], [4.0, 0.1, -0.1, 7.0]], dtype=torch.float64)
    variance = torch.tensor([[0.001, 2.0, 2.5, 1.0], [0.5, 0.2, 0.2, 1.0]], dtype=torch.float64)
    one, three = 1 - 0.1 * (1 + 8**0.5), 1 - 0.2 * (1 + 2 * (2 / 3) ** 0.5)
    expected = torch.zeros_like(mean)
    expected[0, 0], expected[0, 1], expected[1, 0] = 0.1 * one, 3 * three, 4 * three
    torch.testing.assert_close(_beyond_noise(mean, variance, group), expected)
    nothing = torch.zeros_like(mean)
    assert not _beyond_noise(nothing, nothing, group).any()


def test_the_noise_of_single_modes_is_seldom_taken_for_a_mean() -> None:
    """P(χ²_1 > 1 + 2√2) = 0.0504 of 10000, give or take 0.0022; a third if noise is its mean."""
    noise = torch.randn(1, 10000, generator=torch.Generator().manual_seed(43), dtype=torch.float64)
    found = _beyond_noise(noise, torch.ones_like(noise), torch.arange(10000)[None])
    assert float((found != 0).double().mean()) == pytest.approx(0.0504, abs=0.01)


# --- its use ----------------------------------------------------------------------------------


def test_calibration_is_fitted_under_the_conditions_of_the_fields() -> None:
    class Told(nn.Module):
        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor, condition: Tensor) -> Tensor:
            return condition[..., None].expand_as(u)

    denoiser = denoiser_of(Told())
    generator = torch.Generator().manual_seed(10)
    side = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    fields = Fields(side[..., None].expand(-1, CHANNELS, 64).clone(), side)
    calibrate(denoiser, fields, fields)
    # T = sin ψ y − cos ψ ε: all that is told of it is sin ψ y, y the condition itself, less b z
    knot = int((denoiser.calibration.knots == 3).nonzero())
    total = denoiser.calibration.a[knot, 4] + denoiser.calibration.b[knot, 4] * angle(3.0)[0]
    assert float(total) == pytest.approx(float(angle(3.0)[1]), abs=0.02)
    assert conditioned(denoiser, Fields.of(fields.x)) is denoiser


def test_draws_are_balanced_under_the_conditions_of_known_fields() -> None:
    """The network leans by a tenth of the condition, which is 0 for the held-out fields."""

    class Told(nn.Module):
        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor, condition: Tensor) -> Tensor:
            return 0.1 * condition[..., None] * u

    denoiser = denoiser_of(Told())
    generator = torch.Generator().manual_seed(15)
    x = torch.randn(20, CHANNELS, 64, generator=generator, dtype=torch.float64)
    held_out = Fields(x, torch.zeros(20, 1, dtype=torch.float64))
    for condition in (1.0, 2.0):
        known = Fields(x - x.mean(0), torch.full((20, 1), condition, dtype=torch.float64))
        calibrate(denoiser, known, held_out)
        assert denoiser.calibration.b.abs().max() < 1e-12
        expected = torch.full_like(denoiser.calibration.c, -0.1 * condition)
        torch.testing.assert_close(denoiser.calibration.c, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("count", [5, 128, 600])
def test_conditions_of_the_flow_are_spread_evenly_over_the_known_fields(count) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor, condition: Tensor) -> Tensor:
            seen.append(condition.flatten())
            return torch.zeros_like(u)

    side = torch.arange(count, dtype=torch.float64)[:, None]
    known = Fields(torch.zeros(count, CHANNELS, 64, dtype=torch.float64), side)
    generator = torch.Generator().manual_seed(0)
    balance(denoiser_of(Spy()), known, (), None, generator, progress=False)
    told = torch.cat(seen).unique(return_counts=True)
    assert told[0][[0, -1]].tolist() == [0, count - 1]
    assert len(told[0]) == min(count, 256)
    assert told[0].diff().max() <= max(1, math.ceil(count / 127))
    assert told[1].max() <= 2 * told[1].min()


def test_fitting_twice_gives_the_same_bits() -> None:
    denoiser, fields = denoiser_of(SignsMistaken()), signs(50, 11)
    calibrate(denoiser, fields, fields)
    first = copy.deepcopy(denoiser.calibration)
    calibrate(denoiser, fields, fields)
    for name in "abcd":
        assert torch.equal(getattr(denoiser.calibration, name), getattr(first, name))
    calibrate(denoiser, fields, fields, seed=1)
    for name in "abcd":
        assert not torch.equal(getattr(denoiser.calibration, name), getattr(first, name))


def test_knots_beyond_the_range_of_the_process_take_its_ends() -> None:
    seen = []

    class Spy(SignsMistaken):
        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
            seen.append(float(log_noise[0]))
            return super().forward(u, w, log_noise)

    network = Spy()
    wide = denoiser_of(network)
    process = OrnsteinUhlenbeck(wide.process.field, LogSNR(2.0, -1.5))
    narrow = NeuralDenoiser(process, network, wide.mean, wide.covariance)
    regress(narrow, signs(8, 12))
    assert seen[::2] == pytest.approx([-2, -2, -1, 0, 1, 1.5, 1.5], abs=1e-5)
