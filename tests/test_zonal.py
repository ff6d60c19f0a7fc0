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
from spherediff.zonal import POLE, Axis, Rings, ZonalInverse, axis_of

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
    seen = Filtered(Values(places(), SHAPE), gain).places(weight)
    assert seen is not None
    rings = [some.about(POLE) for some in seen]
    P = ZonalInverse(rings, std[: L + 1], beyond)
    r, R, known = normal(2, 3, *SHAPE, seed=4), expand(std), count(L)
    A = torch.eye(SHAPE[0]).double() + R[:, None] * turned(weight, gain) * R
    expected = torch.linalg.solve(A[:known, :known], r[..., :known, None])[..., 0]
    torch.testing.assert_close(P(r)[..., :known], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(P(r)[..., known:], (r / beyond)[..., known:])
    inverse = torch.linalg.inv(A[:known, :known])
    assert math.isclose(P.claims, known - float(inverse.trace()), rel_tol=1e-9)
    # so that the orders are told apart: no average over all rotations
    m = orders(L).abs()
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
        (found,) = seen.places(w) or []
        for a, b in zip(found.about(POLE), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        x = normal(*SHAPE)
        there = Points(found.latitude, found.longitude).synthesis(x)
        torch.testing.assert_close(there, seen(x), rtol=0, atol=1e-9)


def test_parts_of_an_observation_add_up() -> None:
    weight, gain = normal(46).exp(), gaussian_beam(0.4, LMAX)
    parts = [Values(places(), SHAPE), Filtered(Values(places(50), SHAPE), gain)]
    std, beyond = torch.ones(LMAX + 1).double(), torch.ones(SHAPE[0]).double()
    seen = Stacked(parts).places(weight) or []
    P = ZonalInverse([some.about(POLE) for some in seen], std, beyond)
    told = turned(weight[:23], torch.ones(LMAX + 1).double()) + turned(weight[23:], gain)
    r = normal(*SHAPE, seed=4)
    expected = torch.linalg.solve(torch.eye(SHAPE[0]).double() + told, r)
    torch.testing.assert_close(P(r), expected, rtol=1e-9, atol=1e-9)


def test_what_is_no_value_at_a_place_has_no_places() -> None:
    grid = GaussLegendre(LMAX)
    means = Means(grid, torch.ones(1, *grid.shape), SHAPE)
    others = [means, Coefficients.up_to(2, SHAPE), Stacked([Values(places(), SHAPE), means])]
    for operator in [*others, Values(places(), (2, *SHAPE), 1)]:
        assert operator.places(torch.ones(operator.size)) is None


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


def test_an_axis_is_turned_to_the_pole() -> None:
    axis, x = Axis(-35.0, 110.0), normal(2, 3, *SHAPE)
    turned = axis.to_pole(x)
    torch.testing.assert_close(axis.from_pole(turned), x, rtol=0, atol=1e-12)
    torch.testing.assert_close((turned * turned[0, 0]).sum(-1), (x * x[0, 0]).sum(-1))
    there = Points(np.array([axis.latitude]), np.array([axis.longitude])).synthesis(x)
    pole = Points(np.array([90.0]), np.array([0.0])).synthesis(turned)
    torch.testing.assert_close(pole, there, rtol=0, atol=1e-9)
    # a field that depends on the distance from the axis alone is one of order zero
    heap = Points(np.array([axis.latitude]), np.array([axis.longitude])).adjoint(
        torch.ones(1).double(), LMAX
    )
    expected = torch.where(orders(LMAX) == 0, axis.to_pole(heap), 0)
    torch.testing.assert_close(axis.to_pole(heap), expected, rtol=0, atol=1e-9)
    latitude, longitude = np.array([-35.0, 35.0, 55.0, -90.0]), np.array([110.0, 290.0, 110.0, 0.0])
    found = axis.colatitude(latitude, longitude)
    np.testing.assert_allclose(found, [0, 180, 90, 55], atol=1e-5)


def test_inverse_about_an_axis_is_that_of_the_average_over_its_rotations() -> None:
    axis, weight = Axis(40.0, 200.0), normal(23).exp()
    std, beyond = normal(LMAX + 1, seed=2).exp(), torch.ones(SHAPE[0]).double()
    (seen,) = Values(places(), SHAPE).places(weight) or []
    P = ZonalInverse([seen.about(axis)], std, beyond, axis)
    there = axis.to_pole(torch.eye(SHAPE[0]).double()).T
    T, R = information(Values(places(), SHAPE), weight), expand(std)
    turns = np.arange(2 * LMAX + 1) * 2 * math.pi / (2 * LMAX + 1)
    T, total = there @ T @ there.T, torch.zeros_like(T)
    m = orders(LMAX)
    opposite = torch.arange(SHAPE[0]) - 2 * m  # of order −m
    for angle in turns:
        turn = torch.zeros_like(T)
        turn[range(len(m)), range(len(m))] = torch.cos(m * angle).to(T)
        turn[range(len(m)), opposite] += torch.sin(m * angle).to(T)
        total += turn @ T @ turn.T / len(turns)
    A = torch.eye(SHAPE[0]).double() + R[:, None] * (there.T @ total @ there) * R
    r = normal(2, *SHAPE, seed=4)
    torch.testing.assert_close(P(r), torch.linalg.solve(A, r.T).T, rtol=1e-7, atol=1e-7)


def band(axis: Axis, width: float, nside: int = 16) -> np.ndarray:
    """Where a HEALPix map is seen that a band across an axis hides."""
    grid = HEALPix(nside)
    return np.abs(axis.colatitude(grid.latitude, grid.longitude) - 90) > width


@pytest.mark.parametrize("noise", [1e-3, 0.3])
def test_the_axis_of_a_band_is_found_whatever_the_noise_varies_by(noise: float) -> None:
    axis, grid = Axis(30.0, 35.0), HEALPix(32)
    shape, std = (count(63),), torch.ones(64).double() / 8
    for width in (6.0, 20.0):
        H = Values(grid, shape, mask=band(axis, width, 32))
        error = noise * (1 + 0.5 * torch.sin(torch.arange(H.size) * 7 / H.size).double())
        found = axis_of(H.places(error**-2) or [], std)
        distance = float(axis.colatitude(*(np.array([x]) for x in found))[0])
        assert min(distance, 180 - distance) < 0.3


def test_the_pole_is_kept_where_no_axis_is_better() -> None:
    grid, shape, std = HEALPix(32), (count(63),), torch.ones(64).double() / 8
    rng = np.random.default_rng(0)
    scattered = Points(np.degrees(np.arcsin(rng.uniform(-1, 1, 3000))), rng.uniform(0, 360, 3000))
    along = np.sin(np.radians(grid.longitude))
    for H, error in (
        (Values(grid, shape), torch.from_numpy(0.01 * np.exp(0.5 * along))),
        (Values(grid, shape, mask=band(POLE, 10, 32)), 0.01),
        (Values(scattered, shape), 0.01),
        (Values(places(), shape), 0.01),
        (Values(GaussLegendre(63), shape), 0.1),
    ):
        weight = (torch.ones(H.size).double() * error) ** -2
        assert axis_of(H.places(weight) or [], std) == POLE


def test_many_draws_of_an_accurate_map_with_a_gap_take_no_more_iterations_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The numbers told most are taken together after few iterations for many systems at once."""
    monkeypatch.setattr("spherediff.kriging._PATIENCE", (10, 10_000))
    monkeypatch.setattr("spherediff.kriging._TOGETHER", 144)
    field, grid = GaussianField(WhittleMatern(1.0, 1.5, 0.8), 20, dtype=torch.float64), HEALPix(16)
    H = Values(grid, field.event_shape, mask=band(Axis(30.0, 35.0), 12))
    kriging = Kriging(Observation(H, normal(H.size), 1e-3), field)
    one, many = (kriging._solve(normal(k, count(20), seed=k)) for k in (1, 30))
    assert one.iterations > 10
    assert many.iterations < 1.5 * one.iterations


@pytest.mark.parametrize("axis", [POLE, Axis(30.0, 35.0)])
@pytest.mark.parametrize("largest", [255, 15])
@pytest.mark.parametrize("noise", [1e-1, 1e-3])
def test_gaps_about_an_axis_take_few_iterations_at_any_noise(
    noise: float, largest: int, axis: Axis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than by the diagonal, five times so if all degrees are told apart by latitude."""
    monkeypatch.setattr("spherediff.kriging._ZONAL", largest)
    monkeypatch.setattr("spherediff.kriging._PATIENCE", (10_000, 10_000))
    field = GaussianField(WhittleMatern(1.0, 1.5, 0.8), 20, dtype=torch.float64)
    grid = HEALPix(16)
    distance = axis.colatitude(grid.latitude, grid.longitude)
    seen = (np.abs(distance - 90) > 12) & (distance < 160)
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
    monkeypatch.setattr(Values, "places", Operator.places)
    diagonal = Kriging(observation, field, tolerance=1e-5)
    assert diagonal.residual < 1e-5
    assert found.iterations < (0.2 if largest > 20 else 0.5) * diagonal.iterations


def test_few_stations_are_not_taken_for_rings() -> None:
    field = GaussianField(WhittleMatern(1.0, 1.5, 0.8), 20, dtype=torch.float64)
    H = Values(places(), field.event_shape)
    found = Kriging(Observation(H, normal(23), 0.01), field)
    assert found.residual <= found.tolerance
    assert found.iterations <= 25
