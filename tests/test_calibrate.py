"""Calibration: the tables, their regression against closed forms, and the law of the draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spherediff import calibrate as calibrating
from spherediff import harmonics
from spherediff.calibrate import calibrate
from spherediff.covariance import Covariance
from spherediff.denoise import NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.nn import Calibration, SphericalOperator
from spherediff.process import LogSNR, OrnsteinUhlenbeck
from spherediff.sample import ProbabilityFlow
from spherediff.spectra import Tabulated
from spherediff.train import Fields, conditioned, residual_target

LMAX, CHANNELS = 7, 2
OCTAVES = torch.tensor([0, 1, 2, 2, 3, 3, 3, 3])
TINY = {"width": 4, "blocks": 1, "hidden": 4, "lifts": 1, "positional": 0, "embedding": 4}


def denoiser_of(network: nn.Module, lmax: int = LMAX) -> NeuralDenoiser:
    """Over a field with unit coefficients as noise and reference, float64."""
    C = torch.ones(CHANNELS, lmax + 1, dtype=torch.float64)
    field = GaussianField(Tabulated(C), lmax, dtype=torch.float64)
    variance = field.variance_per_coefficient
    process = OrnsteinUhlenbeck(field, LogSNR(16.0, -16.0))
    return NeuralDenoiser(process, network, torch.zeros_like(variance), variance).double()


def angle(log_noise: Tensor | float) -> tuple[Tensor, Tensor]:
    """cos ψ and sin ψ, tan ψ = σ/α."""
    psi = torch.as_tensor(log_noise, dtype=torch.float64).exp().arctan()
    return psi.cos(), psi.sin()


def regress(denoiser: NeuralDenoiser, calibration: Calibration, x: Tensor) -> None:
    """The first half of calibrating, on held-out fields."""
    calibration.reset()
    generator = torch.Generator().manual_seed(0)
    calibrating._regress(denoiser, calibration, Fields.of(x), generator, progress=False)


# --- the tables -------------------------------------------------------------------------------


def test_no_correction_changes_no_bit() -> None:
    calibration = Calibration(LMAX, CHANNELS)
    F, u = torch.randn(2, 5, CHANNELS, 64, generator=torch.Generator().manual_seed(0))
    s = torch.linspace(-9, 9, 5)
    assert torch.equal(calibration(F, u, s), F)
    calibration.a.fill_(3.0)
    calibration.b.fill_(-2.0)
    assert not torch.equal(calibration(F, u, s), F)
    calibration.reset()
    assert torch.equal(calibration(F, u, s), F)


def test_tables_are_interpolated_between_knots_and_constant_beyond() -> None:
    generator = torch.Generator().manual_seed(1)
    calibration = Calibration(LMAX, CHANNELS).double()
    for table in (calibration.a, calibration.b):
        table.copy_(torch.randn(table.shape, generator=generator))
    s = torch.tensor([-7.0, -3.0, -2.75, -0.4, 0.0, 1.5, 2.999, 3.0, 40.0], dtype=torch.float64)
    shape = (len(s), CHANNELS, harmonics.count(LMAX))
    F, u = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    found = calibration(F, u, s)
    knots = calibration.knots.numpy()
    for i, ell in enumerate(harmonics.degrees(LMAX)):
        for c in range(CHANNELS):
            a, b = (
                torch.from_numpy(np.interp(s.numpy(), knots, table[:, c, ell].numpy()))
                for table in (calibration.a, calibration.b)
            )
            expected = a * F[:, c, i] + b * u[:, c, i]
            torch.testing.assert_close(found[:, c, i], expected, rtol=1e-12, atol=1e-12)


def test_an_operator_corrects_the_degrees_it_knows() -> None:
    network = SphericalOperator(3, CHANNELS, **TINY)
    network.calibration.b.fill_(0.25)
    u = torch.randn(4, CHANNELS, 64, generator=torch.Generator().manual_seed(2))
    F = network(u, u, torch.zeros(4))
    torch.testing.assert_close(F[..., :16], 0.25 * u[..., :16])  # untrained: F = 0 but for b
    assert not F[..., 16:].any()


# --- the regression ---------------------------------------------------------------------------


def test_regression_is_that_of_the_fields_of_each_octave() -> None:
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(3, 20, CHANNELS, 64, generator=generator, dtype=torch.float64)
    v[0] += 0.2 * v[1]
    v[2] += 0.9 * v[0] + 0.02 * v[1]
    denoiser = denoiser_of(SignsMistaken())
    a, b = calibrating._regression(calibrating._moments(denoiser, *v))
    octave = OCTAVES[harmonics.degrees(LMAX)]
    for c in range(CHANNELS):
        for o in range(4):
            F, z, T = v[:, :, c, octave == o].flatten(1).numpy()
            beta = np.linalg.lstsq(z[:, None], F, rcond=None)[0][0]
            rest = np.append(F - beta * z, 1 / 0.1)  # a prior observation of T = rest, a = 1
            gain = np.linalg.lstsq(rest[:, None], np.append(T, 1 / 0.1), rcond=None)[0][0]
            np.testing.assert_allclose(a[c, o == OCTAVES], gain, rtol=1e-10)
            np.testing.assert_allclose(b[c, o == OCTAVES], -gain * beta, rtol=1e-10)


class Leaning(nn.Module):
    """F = c(s) z, c linear between the knots: it would change the variance of every draw."""

    def __init__(self) -> None:
        super().__init__()
        self.calibration = Calibration(LMAX, CHANNELS)

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        lean = 0.1 + 0.02 * log_noise.clamp(-3, 3)[:, None, None]
        return self.calibration(lean * u, u, log_noise)


@pytest.mark.parametrize("r", [0.7, 1.3])
def test_draws_get_the_variance_of_the_reference_whatever_that_of_the_held_out_fields(r) -> None:
    network = Leaning()
    denoiser = denoiser_of(network)
    start = denoiser.process.field.sample((4,), generator=torch.Generator().manual_seed(5))
    spoilt = ProbabilityFlow(denoiser, steps=16).sample(
        (4,), generator=torch.Generator().manual_seed(5)
    )
    assert float((spoilt / start).mean()) > 1.1
    generator = torch.Generator().manual_seed(4)
    x = math.sqrt(r) * torch.randn(20, CHANNELS, 64, generator=generator, dtype=torch.float64)
    calibrate(denoiser, network.calibration, x)
    lean = 0.1 + 0.02 * network.calibration.knots
    expected = -lean[:, None, None].expand_as(network.calibration.b)
    torch.testing.assert_close(network.calibration.b, expected, rtol=1e-6, atol=0)
    drawn = ProbabilityFlow(denoiser, steps=16).sample(
        (4,), generator=torch.Generator().manual_seed(5)
    )
    torch.testing.assert_close(drawn, start, rtol=1e-5, atol=1e-5)  # γ is the reference here


def test_modes_count_as_they_do_in_the_fields() -> None:
    """One mode has nearly all variance; the network leans by a half in the many others alone.

    Coefficients are x = √v u y + √d e, u uniform.  All modes alike would make β ½·63/64.
    """
    count, n, v, d = 1500, 64, 64.0, 0.02

    class LeaningInWeakModes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calibration = Calibration(LMAX, 1)

        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
            return self.calibration((u - u.mean(-1, keepdim=True)) / 2, u, log_noise)

    network = LeaningInWeakModes()
    C = torch.ones(1, LMAX + 1, dtype=torch.float64)
    process = OrnsteinUhlenbeck(GaussianField(Tabulated(C), LMAX, dtype=torch.float64))
    diagonal = torch.full((1, n), d, dtype=torch.float64)
    factor = torch.full((1, 1, n), math.sqrt(v / n), dtype=torch.float64)
    denoiser = NeuralDenoiser(
        process, network, torch.zeros_like(diagonal), Covariance(diagonal, factor)
    )
    generator = torch.Generator().manual_seed(13)
    y = torch.randn(count, 1, 1, generator=generator, dtype=torch.float64)
    e = torch.randn(count, 1, n, generator=generator, dtype=torch.float64)
    regress(denoiser, network.calibration, factor[0] * y + math.sqrt(d) * e)
    beta = (-network.calibration.b / network.calibration.a)[..., 4:]  # 48 coefficients
    expected = 0.5 * (n - 1) * d / (v + n * d)  # z has unit variance in every mode
    # relative errors: of the one mode's variance, and of ⟨z_one F⟩, which is 0; five of both
    error = math.hypot(math.sqrt(2 / count), 0.5 * math.sqrt(d / 48 / count) / expected)
    assert (beta / expected - 1).abs().max() < 5 * error


class SignsMistaken(nn.Module):
    """F/1.25 + 0.1 z for independent coefficients ±1: E[y | z] = tanh(z cos ψ/sin² ψ)."""

    def __init__(self) -> None:
        super().__init__()
        self.calibration = Calibration(LMAX, CHANNELS)

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        cos, sin = (v[:, None, None] for v in angle(log_noise))
        F = ((u * cos / sin**2).tanh() - cos * u) / sin
        return self.calibration(F / 1.25 + 0.1 * u, u, log_noise)


def signs(count: int, seed: int) -> Tensor:
    uniform = torch.rand(count, CHANNELS, 64, generator=torch.Generator().manual_seed(seed))
    return (uniform < 0.5).double() * 2 - 1


def test_a_residual_too_small_by_a_quarter_and_leaning_is_put_right() -> None:
    count, network = 1500, SignsMistaken()
    regress(denoiser_of(network), network.calibration, signs(count, 6))
    for knot, size in ((-1, 0.957), (0, 0.317)):  # √E F², by quadrature
        k = int((network.calibration.knots == knot).nonzero())
        power = count * torch.tensor([1, 3, 12, 48])[OCTAVES] * size**2  # of F in an octave
        shown = power / 1.25**2  # what the network gives of it
        expected = (1.25 * shown + 0.1**-2) / (shown + 0.1**-2)
        error = (1 / power).sqrt() * 1.25  # T has unit variance
        assert ((network.calibration.a[k] - expected).abs() < 5 * error).all()  # false: 9e-6
        beta = -network.calibration.b[k] / network.calibration.a[k]
        weight = count * torch.tensor([1, 3, 12, 48])[OCTAVES]
        assert ((beta - 0.1).abs() < 5 * size / weight.sqrt()).all()


def test_calibrated_residuals_obey_the_identities_of_a_conditional_expectation() -> None:
    """On other fields, E[F (T − F)] = 0 = E[z F], within five standard errors."""
    network = SignsMistaken()
    denoiser = denoiser_of(network)
    worst = []
    for fit in (False, True):
        if fit:
            regress(denoiser, network.calibration, signs(1500, 7))
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


class Growing(nn.Module):
    """F = z (1 + tanh² z)/10 makes every draw larger, the more so the larger it is already."""

    def __init__(self) -> None:
        super().__init__()
        self.calibration = Calibration(LMAX, CHANNELS)

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        return self.calibration(0.1 * u * (1 + u.tanh().square()), u, log_noise)


def test_draws_of_a_calibrated_network_have_the_variance_of_the_reference() -> None:
    """Although its F is not linear, and the held-out fields have another variance.

    Octaves of 300 coefficients or more, of the same noise before and after the flow.
    """
    network = Growing()
    denoiser = denoiser_of(network)

    def growth() -> Tensor:
        generators = [torch.Generator().manual_seed(21) for _ in range(2)]
        x = ProbabilityFlow(denoiser, steps=48).sample((100,), generator=generators[0])
        start = denoiser.process.field.sample((100,), generator=generators[1])
        power = [v[..., 1:].square().sum(0) for v in (x, start)]
        octave = OCTAVES[harmonics.degrees(LMAX)][1:]
        p, q = (torch.stack([v[:, octave == o].sum(1) for o in (1, 2, 3)]) for v in power)
        return p / q

    assert (growth() > 1.3).all()
    generator = torch.Generator().manual_seed(20)
    x = 3 * torch.randn(8, CHANNELS, 64, generator=generator, dtype=torch.float64)
    regress(denoiser, network.calibration, x)
    alone = (growth() - 1).abs()
    calibrate(denoiser, network.calibration, x)
    assert (growth() - 1).abs().max() < 0.02
    assert alone.max() > 0.04


# --- its use ----------------------------------------------------------------------------------


def test_calibration_is_fitted_under_the_conditions_of_the_fields() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calibration = Calibration(LMAX, CHANNELS)

        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor, condition: Tensor) -> Tensor:
            return self.calibration(condition[..., None].expand_as(u), u, log_noise)

    network = Told()
    denoiser = denoiser_of(network)
    generator = torch.Generator().manual_seed(10)
    side = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    fields = Fields(side[..., None].expand(-1, CHANNELS, 64).clone(), side)
    calibrate(denoiser, network.calibration, fields)
    # T = sin ψ y − cos ψ ε: all that is told of it is sin ψ y, y the condition itself, less b z
    knot = int((network.calibration.knots == 3).nonzero())
    total = network.calibration.a[knot, 0, 7] + network.calibration.b[knot, 0, 7] * angle(3.0)[0]
    assert float(total) == pytest.approx(float(angle(3.0)[1]), abs=0.02)
    assert conditioned(denoiser, Fields.of(fields.x)) is denoiser


def test_fitting_twice_gives_the_same_bits() -> None:
    network = SignsMistaken()
    denoiser, fields = denoiser_of(network), signs(50, 11)
    calibrate(denoiser, network.calibration, fields)
    first = network.calibration.a.clone(), network.calibration.b.clone()
    calibrate(denoiser, network.calibration, fields)
    assert torch.equal(network.calibration.a, first[0])
    assert torch.equal(network.calibration.b, first[1])
    calibrate(denoiser, network.calibration, fields, seed=1)
    assert not torch.equal(network.calibration.b, first[1])


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
    regress(narrow, network.calibration, signs(8, 12))
    assert seen[::2] == pytest.approx([-2, -2, -1, 0, 1, 1.5, 1.5], abs=1e-5)
