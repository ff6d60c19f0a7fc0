"""Calibration: the tables, their least squares against closed forms, and the law of the draws."""

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


# --- the least squares ------------------------------------------------------------------------


def test_least_squares_are_those_of_the_fields_and_two_prior_observations() -> None:
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(3, 20, CHANNELS, 64, generator=generator, dtype=torch.float64)
    v[2] += 0.9 * v[0] + 0.02 * v[1]
    moments = harmonics.sum_orders(torch.einsum("ibcn,jbcn->cijn", v, v)).movedim(-1, 1)
    a, b = calibrating._least_squares(moments)
    octave = OCTAVES[harmonics.degrees(LMAX)]
    for c in range(CHANNELS):
        for o in range(4):
            F, z, T = v[:, :, c, octave == o].flatten(1).numpy()
            rows = np.vstack([np.stack([F, z], 1), np.diag([1 / 0.1, 1 / 0.03])])
            expected = np.linalg.lstsq(rows, np.append(T, [1 / 0.1, 0.0]), rcond=None)[0]
            for found, value in zip((a, b), expected, strict=True):
                np.testing.assert_allclose(found[c, o == OCTAVES], value, rtol=1e-10)


@pytest.mark.parametrize("r", [0.7, 1.3])
def test_a_wrong_variance_of_the_reference_is_found_and_put_right(r: float) -> None:
    """Data N(0, r), reference N(0, 1): E[T | z] = b z, b = cos ψ sin ψ (r − 1)/(r cos² + sin²)."""
    count = 1500
    network = SphericalOperator(LMAX, CHANNELS, **TINY).double()
    denoiser = denoiser_of(network)
    generator = torch.Generator().manual_seed(4)
    x = math.sqrt(r) * torch.randn(count, CHANNELS, 64, generator=generator, dtype=torch.float64)
    calibrate(denoiser, network.calibration, x)
    cos, sin = angle(network.calibration.knots)
    variance_z, variance_T = r * cos**2 + sin**2, r * sin**2 + cos**2
    truth = cos * sin * (r - 1) / variance_z
    orders = torch.tensor([1, 3, 12, 48])[OCTAVES]
    weight = count * orders * variance_z[:, None, None]
    expected = truth[:, None, None] * weight / (weight + 0.03**-2)
    error = (variance_T[:, None, None] / weight).sqrt()
    # 112 values; no more than the maps' own error, although their noise is drawn twice
    assert ((network.calibration.b - expected).abs() < 5 * error).all()  # false alarms: 6e-5
    assert torch.equal(network.calibration.a, torch.ones_like(network.calibration.a))

    # the flow is then linear, and in degrees known well the draws get the variance of the data
    network.calibration.b.copy_(truth[:, None, None].expand_as(network.calibration.b))
    start = torch.Generator().manual_seed(5)
    x = ProbabilityFlow(denoiser, steps=64).sample((4,), generator=start)
    network.calibration.reset()
    plain = ProbabilityFlow(denoiser, steps=64).sample((4,), generator=start.manual_seed(5))
    factor = (x / plain).square()
    torch.testing.assert_close(factor, torch.full_like(factor, r), rtol=0.01, atol=0)  # tables


def test_modes_count_as_they_do_in_the_fields() -> None:
    """One mode has nearly all variance, and many others nine times what the reference gives them.

    Coefficients are x = √v u y + √d e, u uniform; among all modes of unit variance under the
    reference, the many would ask for b of almost ½·8/(½·9 + ½).
    """
    count, n = 1500, 64
    v, d, r = float(n), 0.02, 9.0
    network = SphericalOperator(LMAX, 1, **TINY).double()
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
    e = e - e.mean(-1, keepdim=True)  # orthogonal to u
    calibrate(denoiser, network.calibration, factor[0] * y + math.sqrt(r * d) * e)
    for knot in (-2, -1, 0, 1):
        k = int((network.calibration.knots == knot).nonzero())
        noise = math.exp(2 * knot)
        strong, weak = v + d, d  # of the modes of the reference
        cos_sin, spread, weight = 0.0, 0.0, 0.0
        for variance, ratio, share in ((strong, strong**-1 * v, 1 / n), (weak, r, 1 - 1 / n)):
            cos, sin = (torch.tensor(c) for c in _angle_of(variance, noise))
            cos_sin += float(share * variance * cos * sin * (ratio - 1))
            spread += float(share * variance * (ratio * cos**2 + sin**2))
            weight += share * variance
        moments = count * torch.tensor([1, 3, 12, 48])[OCTAVES] / weight
        expected = cos_sin * moments / (spread * moments + 0.03**-2)
        found = network.calibration.b[k, 0]
        # the one mode's own sampling error, cos ψ sin ψ √(2/N) with cos ψ sin ψ ≤ ½
        assert ((found - expected).abs() < 5 * 0.5 * math.sqrt(2 / count)).all()  # 1e-5 in all
        assert (found < 0.15).all()


def _angle_of(variance: float, noise: float) -> tuple[float, float]:
    psi = math.atan(math.sqrt(noise / variance))
    return math.cos(psi), math.sin(psi)


class SignsOverconfident(nn.Module):
    """1.25⁻¹ F for independent coefficients ±1: E[y | z] = tanh(z cos ψ/sin² ψ)."""

    def __init__(self) -> None:
        super().__init__()
        self.calibration = Calibration(LMAX, CHANNELS)

    def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
        cos, sin = (v[:, None, None] for v in angle(log_noise))
        F = ((u * cos / sin**2).tanh() - cos * u) / sin
        return self.calibration(F / 1.25, u, log_noise)


def signs(count: int, seed: int) -> Tensor:
    uniform = torch.rand(count, CHANNELS, 64, generator=torch.Generator().manual_seed(seed))
    return (uniform < 0.5).double() * 2 - 1


def test_a_residual_too_small_by_a_quarter_is_found_and_put_right() -> None:
    count, network = 1500, SignsOverconfident()
    calibrate(denoiser_of(network), network.calibration, signs(count, 6))
    for knot, size in ((-1, 0.957), (0, 0.317)):  # √E F², by quadrature
        k = int((network.calibration.knots == knot).nonzero())
        power = count * torch.tensor([1, 3, 12, 48])[OCTAVES] * size**2  # of F in an octave
        shown = power / 1.25**2  # what the network gives of it
        expected = (1.25 * shown + 0.1**-2) / (shown + 0.1**-2)
        error = (1 / power).sqrt() * 1.25  # T has unit variance
        assert ((network.calibration.a[k] - expected).abs() < 5 * error).all()  # false: 9e-6
        weight = count * torch.tensor([1, 3, 12, 48])[OCTAVES]
        assert (network.calibration.b[k].abs() < 5 / weight.sqrt()).all()


def test_calibrated_residuals_obey_the_identities_of_a_conditional_expectation() -> None:
    """On other fields, E[F (T − F)] = 0 = E[z (T − F)], within five standard errors."""
    network = SignsOverconfident()
    denoiser = denoiser_of(network)
    worst = []
    for fit in (False, True):
        if fit:
            calibrate(denoiser, network.calibration, signs(1500, 7))
        generator = torch.Generator().manual_seed(8)
        z, t, T = residual_target(
            denoiser, signs(1500, 9), torch.zeros(1500, dtype=torch.float64), generator
        )
        F = denoiser.residual(z, t).detach()
        products = torch.stack([(v * (T - F))[..., 4:].mean((1, 2)) for v in (F, z)])
        worst.append(float((products.mean(1) / products.std(1) * math.sqrt(1500)).abs().max()))
    assert worst[0] > 20
    assert worst[1] < 5 * math.sqrt(2)  # as many fields in the fit: their error too; 1e-6 each


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
    network = SignsOverconfident()
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

    class Spy(SignsOverconfident):
        def forward(self, u: Tensor, w: Tensor, log_noise: Tensor) -> Tensor:
            seen.append(float(log_noise[0]))
            return super().forward(u, w, log_noise)

    network = Spy()
    wide = denoiser_of(network)
    process = OrnsteinUhlenbeck(wide.process.field, LogSNR(2.0, -1.5))
    narrow = NeuralDenoiser(process, network, wide.mean, wide.covariance)
    calibrate(narrow, network.calibration, signs(8, 12))
    assert seen[::2] == pytest.approx([-2, -2, -1, 0, 1, 1.5, 1.5], abs=1e-5)
