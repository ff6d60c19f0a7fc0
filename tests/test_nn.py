"""Networks on coefficients: exact transforms, symmetry, gradients, and the zero start."""

from __future__ import annotations

import json
import math

import healpy
import numpy as np
import pytest
import torch
from torch import Tensor

from spherediff import harmonics
from spherediff.denoise import GaussianDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre, HEALPix
from spherediff.nn import OperatorConfig, SpectralConvolution, SphericalOperator
from spherediff.nn.operator import _low_passes
from spherediff.nn.transform import Transform
from spherediff.process import OrnsteinUhlenbeck
from spherediff.spectra import Tabulated

TINY = {"width": 6, "blocks": 2, "hidden": 8, "lifts": 2, "positional": 2, "embedding": 8}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trained_like(lmax: int, channels: int, seed: int = 0, **options) -> SphericalOperator:
    """An operator whose every weight is random, in float64, as after training."""
    operator = SphericalOperator(lmax, channels, **(TINY | options)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in operator.named_parameters():
            size = 1 if name.endswith("bias") else max(weight.shape[-1], 1)
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(noise / math.sqrt(size))
    return operator


def rotate(a: Tensor, psi: float, theta: float, phi: float) -> Tensor:
    """Rotate real coefficients (..., n) by healpy's Euler angles."""
    flat = harmonics.to_healpy(a).reshape(-1, harmonics.to_healpy(a).shape[-1]).numpy().copy()
    for alm in flat:
        healpy.rotate_alm(alm, psi, theta, phi)
    return harmonics.from_healpy(torch.from_numpy(flat)).reshape(a.shape)


def as_table(transform: Transform, a: Tensor) -> Tensor:
    """(B, K, n) to (lmax + 1, 2 lmax + 1, B, K)."""
    table = transform.unpack(a.permute(2, 0, 1).flatten(1))
    return table.unflatten(2, a.shape[:2])


def as_flat(transform: Transform, table: Tensor) -> Tensor:
    return transform.pack(table.flatten(2)).unflatten(1, table.shape[2:]).permute(1, 2, 0)


@pytest.mark.parametrize("lmax", [0, 1, 5, 16])
def test_transform_agrees_with_the_gauss_legendre_grid(lmax: int) -> None:
    transform = Transform(lmax, lmax + 1, 2 * lmax + 2)
    a = normal(3, harmonics.count(lmax))
    values = transform.synthesis(transform.unpack(a.T)).permute(2, 0, 1)
    expected = GaussLegendre(lmax, nlon=2 * lmax + 2).synthesis(a)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("nlat", "nlon"), [(8, 15), (8, 16), (11, 22)])
def test_analysis_inverts_synthesis(nlat: int, nlon: int) -> None:
    transform = Transform(7, nlat, nlon)
    a = normal(64, 3)
    found = transform.pack(transform.analysis(transform.synthesis(transform.unpack(a))))
    torch.testing.assert_close(found, a, rtol=0, atol=1e-12)


def test_table_holds_each_coefficient_at_its_degree_and_order() -> None:
    table = Transform(3, 4, 8).unpack(torch.arange(16.0)[:, None] + 1)[:, :, 0]
    for ell in range(4):
        for column, m in enumerate([0, 1, -1, 2, -2, 3, -3]):
            expected = ell * ell + ell + m + 1 if abs(m) <= ell else 0
            assert table[ell, column] == expected


@pytest.mark.parametrize(("nlat", "nlon"), [(7, 16), (8, 14)])
def test_too_coarse_a_grid_is_refused(nlat: int, nlon: int) -> None:
    with pytest.raises(ValueError, match="at least 8 x 15 points"):
        Transform(7, nlat, nlon)


def test_transforms_stay_in_single_precision_under_autocast() -> None:
    transform = Transform(7, 8, 16)
    table = transform.unpack(normal(64, 5, dtype=torch.float32))
    expected = transform.synthesis(table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = transform.synthesis(table)
        back = transform.analysis(found)
    assert torch.equal(found, expected)
    torch.testing.assert_close(back, table, rtol=0, atol=1e-5)


def test_operator_runs_in_mixed_precision() -> None:
    operator = trained_like(5, 2).float()
    u, w = normal(2, 3, 2, 36, dtype=torch.float32)
    log_noise = torch.tensor([-1.0, 0.0, 1.0])
    expected = operator(u, w, log_noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = operator(u, w, log_noise)
    found.square().sum().backward()
    # bfloat16 has 8 bits: errors of about 1 % of the output's size
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()
    assert all(torch.isfinite(p.grad).all() for p in operator.parameters())


@pytest.mark.parametrize("lmax", [1, 6, 15])
def test_slopes_agree_with_healpy(lmax: int) -> None:
    """Times the sine of the colatitude they are of degrees up to lmax + 1, and known everywhere."""
    nlat, nside = lmax + 2 + lmax % 2, 2 * (lmax + 1)  # even: no ring is on the equator
    grid, transform = GaussLegendre(nlat - 1), Transform(lmax, nlat, 2 * nlat)
    sine = transform.sin_latitude()[:, None]
    cosine = (1 - sine**2).sqrt()
    a = normal(2, harmonics.count(lmax))
    east, poleward = transform.slopes(transform.unpack(a.T))
    found = east, poleward / (math.sqrt(3) * sine[:, None])
    theta, _ = healpy.pix2ang(nside, range(healpy.nside2npix(nside)))
    ell = np.arange(lmax + 1)
    unit = np.sqrt(2 / np.maximum(ell * (ell + 1), 1))
    for k, alm in enumerate(harmonics.to_healpy(a).numpy()):
        _, south, east = healpy.alm2map_der1(healpy.almxfl(alm, unit), nside, lmax=lmax)
        for slope, expected in zip(found, (east, -south), strict=True):
            at_pixels = HEALPix(nside).synthesis(grid.analysis(slope[..., k] * cosine, lmax + 1))
            oracle = torch.from_numpy(expected * np.sin(theta))
            torch.testing.assert_close(at_pixels, oracle, rtol=0, atol=1e-12 * (lmax + 1) ** 2)


@pytest.mark.parametrize("lmax", [1, 7, 31])
def test_slopes_are_as_large_as_the_field(lmax: int) -> None:
    transform = Transform(lmax, lmax + 1, 2 * lmax + 2)
    a = normal(2000, harmonics.count(lmax))
    area = GaussLegendre(lmax, nlon=2 * lmax + 2).area_weights[..., None] / (4 * math.pi)
    power = a[:, 1:].square().sum(1).mean() / (4 * math.pi)
    for slope in transform.slopes(transform.unpack(a.T)):
        mean = (area * slope.square()).sum() / 2000
        assert mean.item() == pytest.approx(power.item(), rel=0.1 / math.sqrt(lmax))


def test_transform_gradients() -> None:
    transform = Transform(3, 4, 8)
    a = normal(16, 2).requires_grad_()
    values = normal(4, 8, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: transform.slopes(transform.unpack(a)), a)
    assert torch.autograd.gradcheck(lambda a: transform.synthesis(transform.unpack(a)), a)
    assert torch.autograd.gradcheck(lambda v: transform.pack(transform.analysis(v)), values)


def matrices(convolution: SpectralConvolution) -> Tensor:
    """R_ℓ, (lmax + 1, inputs, outputs)."""
    return convolution.by_octave(convolution.weight).detach()


def test_spectral_convolution_multiplies_each_degree_by_its_matrix() -> None:
    lmax = 4
    transform, convolution = Transform(lmax, 5, 10), SpectralConvolution(lmax, 3, 2).double()
    a, matrix = normal(2, 3, harmonics.count(lmax)), matrices(convolution)
    found = as_flat(transform, convolution(as_table(transform, a)))
    for i, ell in enumerate(harmonics.degrees(lmax).tolist()):
        torch.testing.assert_close(found[:, :, i], a[:, :, i] @ matrix[ell])


def test_spectral_convolution_is_piecewise_linear_between_octaves() -> None:
    convolution = SpectralConvolution(9, 2, 3).double()
    matrix, weight = matrices(convolution), convolution.weight.detach()
    assert len(weight) == 5
    torch.testing.assert_close(matrix[[0, 1, 3, 7, 9]], weight)
    for ell, lower, upper, share in [(2, 1, 2, 1 / 2), (4, 2, 3, 1 / 4), (8, 3, 4, 1 / 2)]:
        expected = torch.lerp(weight[lower], weight[upper], share)
        torch.testing.assert_close(matrix[ell], expected)


def test_spectral_convolution_commutes_with_every_rotation() -> None:
    lmax = 6
    transform, convolution = Transform(lmax, 7, 14), SpectralConvolution(lmax, 2, 2).double()
    a = normal(1, 2, harmonics.count(lmax))

    def convolve(a: Tensor) -> Tensor:
        return as_flat(transform, convolution(as_table(transform, a))).detach()

    for angles in [(0.7, 0.0, 0.0), (0.3, 1.1, -0.4)]:
        before, after = convolve(rotate(a, *angles)), rotate(convolve(a), *angles)
        torch.testing.assert_close(before, after, rtol=0, atol=1e-11)
    # a weight that depends on the order does not commute: the test can fail
    uneven = 1 + 0.1 * harmonics.orders(lmax)
    difference = rotate(a, 0.3, 1.1, -0.4) * uneven - rotate(a * uneven, 0.3, 1.1, -0.4)
    assert difference.abs().max() > 0.05


def test_operator_commutes_with_rotations_about_the_axis_unless_places_matter() -> None:
    lmax, points = 5, 12
    operator = trained_like(lmax, 2, oversampling=1.0)
    u, w = normal(2, 3, 2, harmonics.count(lmax))
    log_noise = torch.tensor([-1.0, 0.0, 2.0]).double()
    angle = 2 * math.pi * 5 / points  # a whole number of grid spacings

    def asymmetry() -> float:
        turned = operator(*(rotate(fields, angle, 0, 0) for fields in (u, w)), log_noise)
        expected = rotate(operator(u, w, log_noise).detach(), angle, 0, 0)
        return (turned - expected).abs().max().item()

    with torch.no_grad():
        assert asymmetry() > 1e-2
        operator.positional.zero_()
        assert asymmetry() < 1e-11


def test_operator_commutes_with_the_mirror_in_the_equator_unless_places_matter() -> None:
    lmax = 5
    operator = trained_like(lmax, 2)
    u, w = normal(2, 3, 2, harmonics.count(lmax))
    log_noise = torch.tensor([-1.0, 0.0, 2.0]).double()
    parity = (-1.0) ** (harmonics.degrees(lmax) + harmonics.orders(lmax))

    def asymmetry() -> float:
        mirrored = operator(parity * u, parity * w, log_noise)
        return (mirrored - parity * operator(u, w, log_noise)).abs().max().item()

    with torch.no_grad():
        assert asymmetry() > 1e-2
        operator.place.weight.zero_()
        assert asymmetry() < 1e-11


def test_slopes_alone_tell_directions_apart() -> None:
    u, w = normal(2, 2, 1, harmonics.count(4)) / 4
    log_noise, angles = torch.zeros(2).double(), (0.3, 1.1, -0.4)

    def asymmetry(slopes: int) -> float:
        operator = trained_like(4, 1, slopes=slopes, oversampling=6)
        with torch.no_grad():
            operator.place.weight.zero_()
            turned = operator(*(rotate(fields, *angles) for fields in (u, w)), log_noise)
            expected = rotate(operator(u, w, log_noise), *angles)
        return ((turned - expected).norm() / expected.norm()).item()

    assert asymmetry(0) < 1e-3
    assert asymmetry(3) > 0.1


def test_gains_of_places_multiply_the_positional_fields() -> None:
    operator = trained_like(4, 2, static=2, conditions=3)
    u, w = normal(2, 2, 2, 25)
    log_noise, condition = torch.zeros(2).double(), normal(2, 3, seed=1)

    def response() -> Tensor:
        return operator(u, w, log_noise, condition)

    with torch.no_grad():
        operator.place_gain.weight.zero_()
        operator.place_gain.bias.zero_()
        plain = response()
        operator.place_gain.bias.fill_(1.5)
        by_gain = response()
        operator.place_gain.bias.zero_()
        operator.place.weight.mul_(2.5)
        torch.testing.assert_close(by_gain, response(), rtol=0, atol=1e-12)
        assert (by_gain - plain).abs().max() > 1e-3

        # a gain of the last field alone, that depends on the condition alone
        operator.place_gain.weight[-1] = 1.0
        moved = (response() - by_gain).abs().amax((1, 2))
        assert (moved > 1e-6).all()
        assert not math.isclose(*moved.tolist(), rel_tol=1e-3)


def test_known_fields_come_last_among_the_positional_ones() -> None:
    operator = trained_like(3, 1, positional=2, static=2)
    learned, static = operator.positional[:, :2].clone(), normal(2, 16, seed=5)
    operator.start_from(static, torch.zeros(1, 16))
    assert torch.equal(operator.positional, torch.cat([learned, static.T], 1))


def test_the_estimate_enters_times_the_amplitude() -> None:
    """Weights that see the product alone make of σ w what those of w alone make of the product."""
    lmax, channels = 3, 2
    operator = trained_like(2 * lmax, channels)
    grid = GaussLegendre(2 * lmax)
    sigma, w = (
        harmonics.resize(x, 2 * lmax) for x in (normal(2, 16, seed=8), normal(1, 2, 16, seed=9))
    )
    operator.start_from(normal(0, 49), sigma)
    direct, product = operator.sloping - channels, operator.lift.weight.shape[1] - channels
    u, log_noise = torch.zeros(1, channels, 49).double(), torch.zeros(1).double()
    with torch.no_grad():
        operator.lift_gain.mean.fill_(1)
        operator.lift_gain.layer.weight.zero_()
        operator.lift_gain.layer.bias.zero_()
        operator.lift.weight[:, :direct] = 0
        kept = operator.lift.weight[:, direct : direct + channels].clone()
        operator.lift.weight[:, direct:] = 0
        operator.lift.weight[:, product:] = kept
        found = operator(u, w, log_noise)
        operator.lift.weight[:, product:] = 0
        operator.lift.weight[:, direct : direct + channels] = kept
        larger = grid.analysis(grid.synthesis(sigma) * grid.synthesis(w), 2 * lmax)
        expected = operator(u, larger, log_noise)
    torch.testing.assert_close(found, expected)


def test_operator_converges_as_the_grid_is_refined() -> None:
    u, w = normal(2, 2, 1, harmonics.count(4)) / 4
    log_noise = torch.zeros(2).double()
    coarse, fine, finest = (
        trained_like(4, 1, oversampling=factor)(u, w, log_noise) for factor in (1, 4, 6)
    )
    assert (fine - finest).abs().max() < 0.03 * (coarse - finest).abs().max()


def test_fields_of_a_batch_do_not_touch_each_other() -> None:
    operator = trained_like(4, 2)
    u, w = normal(2, 3, 2, 25)
    log_noise = torch.tensor([-2.0, 0.5, 1.0]).double()
    together = operator(u, w, log_noise)
    alone = torch.cat([operator(*(one[k : k + 1] for one in (u, w, log_noise))) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    other_noise = operator(u, w, log_noise + 0.5)
    assert (together - other_noise).abs().min(-1).values.max() > 1e-6
    other_estimate = operator(u, 2 * w, log_noise)
    assert (together - other_estimate).abs().min(-1).values.max() > 1e-6


def test_operator_gradients() -> None:
    operator = trained_like(2, 1, width=3, blocks=1, hidden=3, positional=1, embedding=3)
    u, w = (normal(2, 1, 9, seed=k).requires_grad_() for k in (0, 2))
    log_noise = normal(2, seed=1).requires_grad_()
    names = [name for name, _ in operator.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in operator.parameters()]

    def evaluate(u: Tensor, w: Tensor, log_noise: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(operator, named, (u, w, log_noise))

    assert torch.autograd.gradcheck(evaluate, (u, w, log_noise, *weights), fast_mode=True)
    assert torch.autograd.gradcheck(lambda u, w: operator(u, w, log_noise.detach()), (u, w))


def test_untrained_network_is_exactly_the_wiener_filter() -> None:
    lmax, channels = 6, 2
    spectrum = torch.tensor([[1.0], [4.0]]) / (1 + torch.arange(lmax + 1.0)) ** 3
    process = OrnsteinUhlenbeck(GaussianField(Tabulated(spectrum), lmax, dtype=torch.float64))
    mean = normal(channels, harmonics.count(lmax))
    variance = normal(channels, harmonics.count(lmax), seed=1).square() + 0.01
    operator = SphericalOperator(lmax, channels, **TINY).double()
    untrained = NeuralDenoiser(process, operator, mean, variance)
    wiener = GaussianDenoiser(process, variance, mean=mean)
    x = normal(4, channels, harmonics.count(lmax), seed=2)
    for log_noise in (-3.0, 0.0, 3.0):
        t = process.time_of(torch.full((4, 1), log_noise))
        torch.testing.assert_close(untrained(x, t), wiener(x, t), rtol=1e-12, atol=1e-12)
    assert torch.equal(untrained.residual(x, t), torch.zeros_like(x))


@pytest.mark.parametrize("lmax", [0, 3, 15])
def test_low_passes_have_unit_output_variance(lmax: int) -> None:
    gain = _low_passes(lmax, 4)
    per_coefficient = harmonics.expand(gain.T.contiguous()).square().sum(-1) / (4 * math.pi)
    torch.testing.assert_close(per_coefficient, torch.ones(4), rtol=1e-5, atol=0)
    assert torch.equal(gain[:, 0], gain[:1, 0].expand(lmax + 1))


def test_configuration_survives_json_and_rebuilds_the_operator() -> None:
    operator = trained_like(3, 2, oversampling=1.5)
    options = json.loads(json.dumps(operator.config.to_dict()))
    rebuilt = SphericalOperator(**options).double()
    rebuilt.load_state_dict(operator.state_dict())
    u, w = normal(2, 2, 2, 16)
    assert rebuilt.config == operator.config
    assert torch.equal(rebuilt(u, w, normal(2)), operator(u, w, normal(2)))


@pytest.mark.parametrize("shape", [(2, 16), (2, 1, 16), (2, 2, 9), (2, 2, 2, 16)])
def test_fields_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 channels, 16 coefficients of lmax 3"):
        SphericalOperator(3, 2, **TINY)(torch.zeros(shape), torch.zeros(shape), torch.zeros(2))


def test_an_estimate_of_other_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="linear estimate has shape"):
        SphericalOperator(3, 2, **TINY)(
            torch.zeros(2, 2, 16), torch.zeros(2, 2, 25), torch.zeros(2)
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"lmax": -1},
        {"channels": 0},
        {"width": 0},
        {"slopes": -1},
        {"positional": -1},
        {"static": -1},
        {"oversampling": 0.5},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OperatorConfig(**({"lmax": 3, "channels": 1} | wrong))


def test_degrees_above_the_networks_own_are_neither_read_nor_changed() -> None:
    operator = SphericalOperator(3, 2, **TINY)
    with torch.no_grad():
        operator.project.weight.normal_(std=0.3)
    (u, w), log_noise = normal(2, 2, 2, 36).float(), torch.zeros(2)
    F = operator(u, w, log_noise)
    assert torch.equal(F[..., :16], operator(u[..., :16], w[..., :16], log_noise))
    assert not F[..., 16:].any()
