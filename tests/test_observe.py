"""Observation operators: exact transposes, values against the grids, analytic means and beams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import healpy
import numpy as np
import pytest
import torch
from torch import Tensor

from spherediff.grids import GaussLegendre, HEALPix, LatLon, Points
from spherediff.harmonics import count, degrees
from spherediff.observe import (
    Averaged,
    Coefficients,
    Dense,
    Filtered,
    Means,
    Observation,
    Operator,
    Stacked,
    Values,
    gaussian_beam,
)

Y10_AT_POLE = math.sqrt(3 / (4 * math.pi))


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def stations(m: int, seed: int = 1) -> Points:
    rng = np.random.default_rng(seed)
    return Points(np.degrees(np.arcsin(rng.uniform(-1, 1, m))), rng.uniform(-180, 180, m))


def mask(shape: tuple[int, ...], seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.4


def zonal(lmax: int, ell: int) -> Tensor:
    x = torch.zeros(count(lmax), dtype=torch.float64)
    x[ell * (ell + 1)] = 1
    return x


def masked_healpix(lmax: int) -> Operator:
    return Values(HEALPix(4), (count(lmax),), mask=mask((192,)))


def masked_latlon(lmax: int) -> Operator:
    grid = LatLon(np.linspace(90, -90, 13), np.arange(0, 360, 15.0))
    return Values(grid, (3, count(lmax)), 1, torch.from_numpy(mask((13, 24))))


def regional_means(lmax: int) -> Operator:
    weights = np.random.default_rng(3).random((5, 8, 16))
    return Means(GaussLegendre(7), weights, (2, count(lmax)), 1)


def averaged(lmax: int) -> Operator:
    return Averaged(Values(stations(12), (2, count(lmax)), 1), normal(4, 3, seed=6))


def selected(lmax: int) -> Operator:
    return Coefficients(mask((2, count(lmax)), 4), (2, count(lmax)))


def filtered(lmax: int) -> Operator:
    gain = torch.stack([gaussian_beam(0.4, lmax), normal(lmax + 1, seed=5)])
    return Filtered(Values(stations(7), (2, count(lmax)), 1), gain)


def stacked(lmax: int) -> Operator:
    shape = (2, count(lmax))
    beam = Filtered(Values(stations(6), shape), gaussian_beam(0.3, lmax))
    return Stacked([beam, regional_means(lmax), Coefficients.up_to(1, shape), filtered(lmax)])


OPERATORS: dict[str, Callable[[int], Operator]] = {
    "stations": lambda lmax: Values(stations(9), (count(lmax),)),
    "masked HEALPix": masked_healpix,
    "masked latitude–longitude, channel 1 of 3": masked_latlon,
    "means": regional_means,
    "averaged": averaged,
    "coefficients": selected,
    "filtered": filtered,
    "stacked": stacked,
    "dense": lambda lmax: Dense.of(stacked(lmax)),
}


@pytest.mark.parametrize("lmax", [1, 6, 13])
@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_is_the_exact_transpose(name: str, lmax: int) -> None:
    H = OPERATORS[name](lmax)
    x, y = normal(3, *H.event_shape), normal(3, H.size, seed=9)
    Hx, Hty = H(x), H.adjoint(y)
    assert Hx.shape == y.shape
    assert Hty.shape == x.shape
    left, right = (Hx * y).sum(-1), (x * Hty).flatten(1).sum(1)
    scale = Hx.norm(dim=-1) * y.norm(dim=-1)
    assert ((left - right).abs() <= 1e-12 * scale).all()
    torch.testing.assert_close(H(x[1]), Hx[1])
    torch.testing.assert_close(H.adjoint(y[1]), Hty[1])


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_tangents_and_vmap(name: str) -> None:
    H = OPERATORS[name](2)
    x = normal(2, *H.event_shape).requires_grad_()
    y = normal(2, H.size, seed=9).requires_grad_()
    assert torch.autograd.gradcheck(H, (x,), fast_mode=True)
    assert torch.autograd.gradcheck(H.adjoint, (y,), fast_mode=True)
    tangent = normal(2, *H.event_shape, seed=3)
    x, y = x.detach(), y.detach()
    tangents = torch.func.jvp(H, (x,), (tangent,))
    torch.testing.assert_close(tangents, (H(x), H(tangent)))
    pullback = torch.func.vjp(H, x)[1]
    torch.testing.assert_close(pullback(y)[0], H.adjoint(y))
    torch.testing.assert_close(torch.func.vmap(H)(x), H(x))


@pytest.mark.parametrize("name", OPERATORS)
def test_single_precision_agrees_with_double(name: str) -> None:
    H = OPERATORS[name](6)
    x, y = normal(2, *H.event_shape), normal(2, H.size, seed=9)
    assert H(x.float()).dtype == H.adjoint(y.float()).dtype == torch.float32
    assert (H(x.float()) - H(x)).norm() < 1e-5 * H(x).norm()
    assert (H.adjoint(y.float()) - H.adjoint(y)).norm() < 1e-5 * H.adjoint(y).norm()


def test_values_are_those_of_the_grid_where_the_mask_is_true() -> None:
    x = normal(4, 3, count(6))
    H = masked_latlon(6)
    assert isinstance(H, Values)
    values = H.grid.synthesis(x[:, 1])
    chosen = torch.from_numpy(mask((13, 24)))
    assert torch.equal(H(x), values[:, chosen])
    everywhere = Values(H.grid, (3, count(6)), 2)
    assert everywhere.size == 13 * 24
    assert torch.equal(everywhere(x), H.grid.synthesis(x[:, 2]).flatten(1))


def test_coefficients_are_selected_in_order() -> None:
    x = normal(3, 2, 16)
    chosen = mask((2, 16))
    assert torch.equal(Coefficients(chosen, (2, 16))(x), x[:, torch.from_numpy(chosen)])
    low = Coefficients.up_to(1, (2, 16))
    assert torch.equal(low(x), torch.cat([x[:, 0, :4], x[:, 1, :4]], -1))
    assert torch.equal(Coefficients.up_to(2, (16,))(x[:, 1]), x[:, 1, :9])
    x = normal(3, 4, 9)
    others = Coefficients.channels([3, 1], (4, 9))
    assert torch.equal(others(x), torch.cat([x[:, 1], x[:, 3]], -1))


def test_means_of_a_constant_field_are_that_constant() -> None:
    x = torch.zeros(2, 25, dtype=torch.float64)
    x[1, 0] = 3.5 * math.sqrt(4 * math.pi)  # Y_00 = 1/√(4π)
    for grid in (
        GaussLegendre(6),
        HEALPix(3),
        LatLon(np.linspace(-80, 80, 9), np.arange(0, 360, 20)),
    ):
        weights = np.random.default_rng(0).random((4, *grid.shape))
        means = Means(grid, weights, (2, 25), 1)(x)
        torch.testing.assert_close(means, torch.full((4,), 3.5).double(), rtol=1e-13, atol=0)


def test_means_of_the_dipole_under_a_smooth_weight_are_exact() -> None:
    # c = sin(latitude), uniform on [−1, 1]: ⟨(1 + c)c⟩/⟨1 + c⟩ = 1/3
    grid = GaussLegendre(5)
    c = np.sin(np.radians(grid.latitude))[:, None] * np.ones(grid.shape)
    H = Means(grid, np.stack([1 + c, 1 - c, 1 + c**2]), (count(2),))
    x = torch.stack([zonal(2, 1), zonal(2, 2)])
    P2 = 0.5 * (3 * (1 / 3 + 1 / 5) - (1 + 1 / 3)) / (1 + 1 / 3)  # mean of (3c²−1)/2
    expected = torch.tensor([[1 / 3, -1 / 3, 0], [0, 0, P2]], dtype=torch.float64)
    at_pole = torch.tensor([[Y10_AT_POLE], [math.sqrt(5 / (4 * math.pi))]], dtype=torch.float64)
    torch.testing.assert_close(H(x), expected * at_pole, rtol=1e-13, atol=1e-15)


def test_means_of_the_dipole_over_hemispheres_converge_to_half_its_value_at_the_pole() -> None:
    def error(lmax: int) -> float:
        grid = GaussLegendre(lmax)  # lmax + 1 rings, none on the equator for odd lmax
        north = np.broadcast_to(grid.latitude[:, None] > 0, grid.shape)
        means = Means(grid, np.stack([north, ~north]), (4,))(zonal(1, 1)).numpy()
        assert means[0] == pytest.approx(-means[1], rel=1e-13)
        return abs(means[0] - Y10_AT_POLE / 2)

    # the rule for a kink at the equator is second order
    errors = [error(lmax) for lmax in (7, 15, 31, 63)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < 1e-4
    assert np.abs(orders[-2:] - 2).max() < 0.1


def test_filter_multiplies_degrees() -> None:
    x = normal(2, 2, count(5))
    H = Coefficients.up_to(5, (2, count(5)))
    gain = normal(2, 6, seed=1)
    ell = degrees(5)
    torch.testing.assert_close(Filtered(H, gain)(x), (gain[:, ell] * x).flatten(1))
    torch.testing.assert_close(Filtered(H, gain[0])(x), (gain[0][ell] * x).flatten(1))


def test_stack_is_the_concatenation_and_the_sum_of_transposes() -> None:
    H = stacked(4)
    assert isinstance(H, Stacked)
    x, y = normal(3, *H.event_shape), normal(3, H.size, seed=1)
    torch.testing.assert_close(H(x), torch.cat([part(x) for part in H.operators], -1))
    pieces = y.split([part.size for part in H.operators], -1)
    expected = sum(part.adjoint(p) for part, p in zip(H.operators, pieces, strict=True))
    torch.testing.assert_close(H.adjoint(y), expected)


def test_dense_gives_the_same_numbers() -> None:
    for size in (9, 150):  # made in one part and in several
        operator = Values(stations(size), (2, count(5)), 1)
        x, y = normal(4, 2, count(5)), normal(3, size)
        torch.testing.assert_close(Dense.of(operator)(x), operator(x))
        torch.testing.assert_close(Dense.of(operator).adjoint(y), operator.adjoint(y))


def test_averages_are_weighted_sums_of_as_many_values_each() -> None:
    w, x = normal(4, 3, seed=6), normal(5, 2, count(3))
    values = Values(stations(12), (2, count(3)), 1)(x)
    expected = torch.stack([values[:, 3 * k : 3 * k + 3] @ w[k] for k in range(4)], -1)
    torch.testing.assert_close(averaged(3)(x), expected)
    with pytest.raises(ValueError, match="m·q = 12.*got \\(5, 3\\)"):
        Averaged(Values(stations(12), (count(3),)), np.ones((5, 3)))
    with pytest.raises(ValueError, match="finite; 1 of 3 are not"):
        Averaged(Values(stations(3), (4,)), np.array([[1.0, np.nan, 0]]))


def test_matrices_that_do_not_fit_are_refused() -> None:
    for matrix in (np.ones((3, 9)), np.ones(18)):
        with pytest.raises(ValueError, match="expected a matrix of shape .m, 18. for states"):
            Dense(matrix, (2, 9))
    with pytest.raises(ValueError, match="the matrix must be finite; 2 of 36 are not"):
        Dense(np.where(np.arange(36).reshape(2, 18) < 2, np.nan, 1.0), (2, 9))


@pytest.mark.parametrize("fwhm", [0.0, 0.01, 0.3])
def test_beam_is_that_of_healpy(fwhm: float) -> None:
    np.testing.assert_allclose(gaussian_beam(fwhm, 60), healpy.gauss_beam(fwhm, 60), rtol=1e-13)


def test_beam_is_a_mean_over_the_point_spread_function() -> None:
    # on the sphere b_ℓ is the Legendre transform of the normalised beam; for a narrow one, flat
    lmax, fwhm = 40, 0.08
    b = gaussian_beam(fwhm, lmax)
    s = fwhm / math.sqrt(8 * math.log(2))
    cosine, w = np.polynomial.legendre.leggauss(2000)
    profile = np.exp(-(np.arccos(cosine) ** 2) / (2 * s**2))
    table = np.polynomial.legendre.legvander(cosine, lmax)
    transform = (w * profile) @ table / (w @ profile)
    assert np.abs(b.numpy() - transform).max() < s**2  # curvature of the sphere


def test_an_operator_of_ones_own() -> None:
    class Zonal(Operator):
        def __init__(self, event_shape: Sequence[int]) -> None:
            super().__init__(event_shape, math.isqrt(event_shape[-1]))

        def _apply(self, x: Tensor) -> Tensor:
            ell = torch.arange(self.size)
            return x[..., ell * (ell + 1)]

        def _transpose(self, y: Tensor) -> Tensor:
            x = y.new_zeros(*y.shape[:-1], *self.event_shape)
            ell = torch.arange(self.size)
            x[..., ell * (ell + 1)] = y
            return x

    H = Stacked([Zonal((16,)), Values(stations(3), (16,))])
    x = normal(2, 16).requires_grad_()
    assert H.size == 7
    assert torch.autograd.gradcheck(H, (x,), fast_mode=True)


def test_observation_expands_a_single_standard_deviation() -> None:
    H = Values(stations(3), (9,))
    seen = Observation(H, np.array([1.0, 2.0, 3.0], dtype=np.float32), 0.5)
    assert seen.noise_std.tolist() == [0.5] * 3
    assert seen.values.dtype == seen.noise_std.dtype == torch.float32
    assert seen.noise_variance.tolist() == [0.25] * 3
    several = Observation(H, normal(3), np.array([1.0, 2.0, 3.0]))
    assert several.noise_variance.tolist() == [1.0, 4.0, 9.0]
    with pytest.raises(AttributeError):
        several.values = normal(3)  # type: ignore[misc]


def test_errors_of_operators() -> None:
    H = Values(stations(3), (9,))
    with pytest.raises(ValueError, match=r"coefficients of shape \(..., 9\), got \(2, 16\)"):
        H(normal(2, 16))
    with pytest.raises(ValueError, match=r"observed numbers of shape \(..., 3\), got \(2, 4\)"):
        H.adjoint(normal(2, 4))
    with pytest.raises(TypeError, match="float32 or float64 coefficients, got torch.int64"):
        H(torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="not a square"):
        Values(stations(3), (10,))
    with pytest.raises(ValueError, match=r"shape \(n,\) or \(channels, n\)"):
        Values(stations(3), (2, 2, 9))
    with pytest.raises(ValueError, match="channel from 0 to 1"):
        Values(stations(3), (2, 9), channel=2)
    with pytest.raises(TypeError, match="boolean mask"):
        Values(stations(3), (9,), mask=np.ones(3))
    with pytest.raises(ValueError, match=r"mask of shape \(3,\), got \(4,\)"):
        Values(stations(3), (9,), mask=np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="no true entry"):
        Values(stations(3), (9,), mask=np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match=r"weights of shape \(m, 12\)"):
        Means(HEALPix(1), np.ones(12), (9,))
    with pytest.raises(ValueError, match="2 of 12 are not"):
        Means(HEALPix(1), np.array([[-1.0, math.nan, *[1.0] * 10]]), (9,))
    with pytest.raises(ValueError, match=r"regions \[1\]"):
        Means(HEALPix(1), np.stack([np.ones(12), np.zeros(12)]), (9,))
    with pytest.raises(ValueError, match="no area weights"):
        Means(stations(3), np.ones((1, 3)), (9,))
    with pytest.raises(ValueError, match=r"selection of shape \(2, 9\)"):
        Coefficients(np.ones(9, dtype=bool), (2, 9))
    with pytest.raises(ValueError, match="lmax from 0 to 2"):
        Coefficients.up_to(3, (9,))
    with pytest.raises(ValueError, match="channels among them"):
        Coefficients.channels([2], (2, 9))
    with pytest.raises(ValueError, match="channels among them"):
        Coefficients.channels([0], (9,))
    with pytest.raises(ValueError, match=r"gain of shape \(3,\) or \(2, 3\)"):
        Filtered(Values(stations(3), (2, 9)), np.ones(4))
    with pytest.raises(ValueError, match="1 of 3 numbers are not"):
        Filtered(H, np.array([1.0, math.inf, 1.0]))
    with pytest.raises(ValueError, match=r"found shapes \[\(9,\), \(16,\)\]"):
        Stacked([H, Values(stations(3), (16,))])
    with pytest.raises(ValueError, match=r"found shapes \[\]"):
        Stacked([])
    with pytest.raises(ValueError, match="at least 0 radians"):
        gaussian_beam(-0.1, 3)
    with pytest.raises(ValueError, match="lmax must be at least 0"):
        gaussian_beam(0.1, -1)


def test_errors_of_observations() -> None:
    H = Values(stations(4), (9,))
    with pytest.raises(ValueError, match=r"observed values of shape \(4,\), got \(2, 4\)"):
        Observation(H, normal(2, 4), 0.1)
    with pytest.raises(TypeError, match="float32 or float64 observed values"):
        Observation(H, torch.zeros(4, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match=r"noise_std of shape \(4,\), got \(3,\)"):
        Observation(H, normal(4), np.ones(3))
    with pytest.raises(ValueError, match="finite; 2 of 4 are not: leave them out"):
        Observation(H, np.array([1.0, math.nan, 2.0, math.inf]), 0.1)
    with pytest.raises(ValueError, match="positive and finite; 3 of 4 are not"):
        Observation(H, normal(4), np.array([1.0, 0.0, -1.0, math.nan]))
    with pytest.raises(ValueError, match="positive and finite; 1 of 1 are not"):
        Observation(H, normal(4), 0.0)
