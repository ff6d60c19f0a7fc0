"""What is told on average over rotations about the axis, against averages over rotated places."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from spherediff import zonal
from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre, HEALPix, Points
from spherediff.harmonics import count, expand, orders
from spherediff.kriging import Kriging
from spherediff.observe import (
    Coefficients,
    Filtered,
    Means,
    Observation,
    Operator,
    Stacked,
    Values,
    gaussian_beam,
)
from spherediff.spectra import WhittleMatern
from spherediff.zonal import Rings, ZonalInverse

LMAX = 7
SHAPE = (count(LMAX),)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(turn: float = 0.0) -> Points:
    rng = np.random.default_rng(1)
    latitude, longitude = np.degrees(np.arcsin(rng.uniform(-1, 1, 23))), rng.uniform(0, 360, 23)
    return Points(latitude, (longitude + turn) % 360)


def information(operator: Operator, weight: Tensor) -> Tensor:
    """HᵀwH, shape (n, n)."""
    return operator.adjoint(weight * operator(torch.eye(SHAPE[0], dtype=torch.float64)))


def turned(weight: Tensor, gain: Tensor) -> Tensor:
    """The average of information over rotations, exact with more of them than 2·lmax."""
    turns = np.arange(2 * LMAX + 1) * 360 / (2 * LMAX + 1)
    seen = [Filtered(Values(places(turn), SHAPE), gain) for turn in turns]
    return torch.stack([information(operator, weight) for operator in seen]).mean(0)


@pytest.mark.parametrize("L", [0, 3, LMAX])
def test_inverse_is_that_of_the_average_over_rotations(L: int) -> None:
    weight, gain = normal(23).exp(), 1 + normal(LMAX + 1, seed=1).square()
    std, beyond = normal(LMAX + 1, seed=2).exp(), 1 + normal(*SHAPE, seed=3).square()
    rings = Filtered(Values(places(), SHAPE), gain).rings(weight)
    assert rings is not None
    P = ZonalInverse(rings, std[: L + 1], beyond)
    r, R, known = normal(2, 3, *SHAPE, seed=4), expand(std), count(L)
    A = torch.eye(SHAPE[0]).double() + R[:, None] * turned(weight, gain) * R
    expected = torch.linalg.solve(A[:known, :known], r[..., :known, None])[..., 0]
    torch.testing.assert_close(P(r)[..., :known], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(P(r)[..., known:], (r / beyond)[..., known:])
    inverse = torch.linalg.inv(A[:known, :known])
    assert math.isclose(P.claims, known - float(inverse.trace()), rel_tol=1e-9)
    # so that the orders are told apart: no average over all rotations
    m = torch.as_tensor(orders(L)).abs()
    assert L == 0 or (A[:known, :known] * (m[:, None] != m)).abs().max() < 1e-9


def test_places_of_maps_are_those_of_their_pixels() -> None:
    weight = normal(3072).exp()
    for grid in (HEALPix(4), GaussLegendre(9)):
        mask = np.random.default_rng(0).random(grid.shape) > 0.4
        seen = Values(grid, SHAPE, mask=mask)
        w = weight[: seen.size]
        everywhere = np.broadcast_to(
            grid.latitude if mask.ndim == 1 else grid.latitude[:, None], mask.shape
        )
        expected = Rings.of(everywhere[mask], w, LMAX)
        (found,) = seen.rings(w) or []
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert math.isclose(float(found.weight.sum()), float(w.sum()), rel_tol=1e-12)


def test_parts_of_an_observation_add_up() -> None:
    weight, gain = normal(46).exp(), gaussian_beam(0.4, LMAX)
    parts = [Values(places(), SHAPE), Filtered(Values(places(50), SHAPE), gain)]
    std, beyond = torch.ones(LMAX + 1).double(), torch.ones(SHAPE[0]).double()
    P = ZonalInverse(Stacked(parts).rings(weight) or [], std, beyond)
    told = turned(weight[:23], torch.ones(LMAX + 1).double()) + turned(weight[23:], gain)
    r = normal(*SHAPE, seed=4)
    expected = torch.linalg.solve(torch.eye(SHAPE[0]).double() + told, r)
    torch.testing.assert_close(P(r), expected, rtol=1e-9, atol=1e-9)


def test_what_is_no_value_at_a_place_has_no_rings() -> None:
    grid = GaussLegendre(LMAX)
    means = Means(grid, torch.ones(1, *grid.shape), SHAPE)
    others = [means, Coefficients.up_to(2, SHAPE), Stacked([Values(places(), SHAPE), means])]
    for operator in [*others, Values(places(), (2, *SHAPE), 1)]:
        assert operator.rings(torch.ones(operator.size)) is None


def test_many_latitudes_are_rounded_to_few(monkeypatch: pytest.MonkeyPatch) -> None:
    latitude, weight = np.linspace(-90, 90, 1001), normal(1001).exp()
    exact = Rings.of(latitude, weight, LMAX)
    assert len(exact.weight) == 1001
    monkeypatch.setattr(zonal, "_FINEST", 500)
    rounded = Rings.of(latitude, weight, LMAX)
    assert len(rounded.weight) == 501
    std = torch.ones(LMAX + 1).double()
    for a, b in zip(rounded.information(std), exact.information(std), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * float(weight.sum()))


@pytest.mark.parametrize("largest", [255, 15])
@pytest.mark.parametrize("noise", [1e-1, 1e-3])
def test_gaps_about_the_axis_take_few_iterations_at_any_noise(
    noise: float, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than by the diagonal, five times so if all degrees are told apart by latitude."""
    monkeypatch.setattr("spherediff.kriging._ZONAL", largest)
    monkeypatch.setattr("spherediff.kriging._PATIENCE", (10_000, 10_000))
    field = GaussianField(WhittleMatern(1.0, 1.5, 0.8), 20, dtype=torch.float64)
    grid = HEALPix(16)
    seen = (np.abs(grid.latitude) > 8) & (np.abs(grid.latitude) < 75)
    H = Values(grid, field.event_shape, mask=seen)
    std = noise * torch.exp(0.3 * normal(H.size, seed=5))
    observation = Observation(H, H(field.sample(generator=torch.Generator())) + std, std)
    found = Kriging(observation, field, tolerance=1e-5)
    A = (
        H.adjoint(H(torch.eye(441).double()) / std.square())
        + field.variance_per_coefficient.reciprocal().diag()
    )
    error = found.mean - torch.linalg.solve(A, H.adjoint(observation.values / std.square()))
    assert float(error @ A @ error) < 1e-8  # in posterior standard deviations, squared
    monkeypatch.setattr(Values, "rings", Operator.rings)
    diagonal = Kriging(observation, field, tolerance=1e-5)
    assert diagonal.residual < 1e-5
    assert found.iterations < (0.2 if largest > 20 else 0.5) * diagonal.iterations


def test_few_stations_are_not_taken_for_rings() -> None:
    field = GaussianField(WhittleMatern(1.0, 1.5, 0.8), 20, dtype=torch.float64)
    H = Values(places(), field.event_shape)
    found = Kriging(Observation(H, normal(23), 0.01), field)
    assert found.residual <= found.tolerance
    assert found.iterations <= 25
