"""Regular latitude–longitude grids: recognition, exactness, orientation, refusals."""

import ducc0
import numpy as np
import pytest
import torch

from spherediff.grids import LatLon, Points


def colatitudes(geometry, n):
    """Written out apart from the package: the colatitudes each geometry stands for, degrees."""
    i = np.arange(n)
    return {
        "GL": lambda: np.degrees(np.arccos(np.polynomial.legendre.leggauss(n)[0][::-1])),
        "CC": lambda: np.linspace(0, 180, n),
        "F1": lambda: (i + 0.5) * 180 / n,
        "MW": lambda: (2 * i + 1) * 180 / (2 * n - 1),
        "MWflip": lambda: 2 * i * 180 / (2 * n - 1),
        "DH": lambda: i * 180 / n,
        "F2": lambda: (i + 1) * 180 / (n + 1),
    }[geometry]()


GEOMETRIES = {"GL": 11, "CC": 10, "F1": 11, "MW": 11, "MWflip": 11, "DH": 5, "F2": 5}


def draw(*shape, lmax):
    generator = torch.Generator().manual_seed(lmax)
    return torch.randn(*shape, (lmax + 1) ** 2, generator=generator, dtype=torch.float64)


def relative(x, y):
    return float((x - y).norm() / y.norm())


def at_points(grid, a):
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    points = Points(latitude.ravel(), longitude.ravel())
    return points.synthesis(a).view(*a.shape[:-1], *grid.shape)


@pytest.mark.parametrize(("geometry", "largest"), GEOMETRIES.items())
@pytest.mark.parametrize(
    "longitude",
    [
        np.arange(24) * 15.0,
        20 + np.arange(24) * 15.0,
        -180 + np.arange(24) * 15.0,
        (180 + np.arange(24) * 15.0) % 360,
        7 - np.arange(24) * 15.0,
        np.linspace(0, 360, 25),
        np.linspace(180, -180, 25),
        np.arange(23) * 360 / 23,
    ],
    ids=["0", "20", "-180", "wrapped", "westward", "repeated", "repeated westward", "odd"],
)
def test_geometry_is_recognised_and_exact(geometry, largest, longitude):
    north_up = 90 - colatitudes(geometry, 12)
    mirrored = {"MW": "MWflip", "MWflip": "MW"}.get(geometry, geometry)
    for latitude, name in ((north_up, geometry), (north_up[::-1], geometry)):
        grid = LatLon(latitude, longitude)
        assert grid.geometry == name
        assert grid.max_lmax == min(largest, 11)
        a = draw(2, lmax=grid.max_lmax)
        values = grid.synthesis(a)
        assert relative(values, at_points(grid, a)) < 2e-12
        assert relative(grid.analysis(values, grid.max_lmax), a) < 1e-12
        single = grid.analysis(values.float(), grid.max_lmax).double()
        assert relative(single, a) < 1e-5
    if geometry != "DH":  # a grid that ends on the south pole, a full step from the north pole
        assert LatLon(-north_up[::-1], longitude).geometry == mirrored


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_round_trip_at_high_band_limits(geometry):
    n = 257 if geometry == "CC" else 256
    grid = LatLon(90 - colatitudes(geometry, n), np.arange(512) * 360 / 512)
    a = draw(lmax=grid.max_lmax)
    values = grid.synthesis(a)
    assert relative(grid.analysis(values, grid.max_lmax), a) < 1e-12
    assert relative(grid.analysis(values.float(), grid.max_lmax).double(), a) < 1e-5


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("n", [12, 41])
def test_analysis_at_a_lower_band_limit_is_the_projection(geometry, n):
    # No degree above the one asked for may fall upon those below.
    grid = LatLon(90 - colatitudes(geometry, n), np.arange(2 * n) * 180 / n)
    a = draw(2, lmax=grid.max_lmax)
    values = grid.synthesis(a)
    for lmax in range(grid.max_lmax + 1):
        projected = grid.analysis(values, lmax)
        assert relative(projected, a[..., : (lmax + 1) ** 2]) < 1e-11


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("lmax", [0, 3])
def test_gradient_of_analysis(geometry, lmax):
    grid = LatLon(90 - colatitudes(geometry, 12), np.linspace(180, -180, 25))
    v = torch.randn(*grid.shape, dtype=torch.float64, requires_grad=True)
    b = torch.randn((lmax + 1) ** 2, dtype=torch.float64)
    grid.analysis(v, lmax).backward(b)
    w = torch.randn(*grid.shape, dtype=torch.float64)
    assert float((v.grad * w).sum()) == pytest.approx(float((b * grid.analysis(w, lmax)).sum()))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_area_weights_integrate_the_harmonics(geometry):
    grid = LatLon(90 - colatitudes(geometry, 12), np.linspace(0, 360, 25))
    assert float(grid.area_weights.sum()) == pytest.approx(4 * np.pi, rel=1e-12)
    a = draw(lmax=grid.max_lmax)
    integral = (grid.area_weights * grid.synthesis(a)).sum()
    assert float(integral) == pytest.approx(float(a[0]) * np.sqrt(4 * np.pi), abs=1e-12)


@pytest.mark.parametrize(
    ("latitude", "longitude", "shape", "geometry", "largest"),
    [
        (np.linspace(-90, 90, 73), 20 + 2.5 * np.arange(144), (73, 144), "CC", 71),
        (90 - colatitudes("GL", 48), 3.75 * np.arange(96), (48, 96), "GL", 47),
        (90 - colatitudes("GL", 64), 2.8125 * np.arange(128), (64, 128), "GL", 63),
        (np.arange(-89.75, 90, 0.5), np.arange(-179.75, 180, 0.5), (360, 720), "F1", 359),
        (np.linspace(90, -90, 721), np.arange(1440) * 0.25, (721, 1440), "CC", 719),
    ],
)
@pytest.mark.parametrize("stored", [np.float32, lambda x: np.round(x, 3), np.float64])
def test_common_grids_as_files_store_them(latitude, longitude, shape, geometry, largest, stored):
    grid = LatLon(stored(latitude), stored(longitude))
    assert (grid.shape, grid.geometry, grid.max_lmax) == (shape, geometry, largest)


def test_rounded_coordinates_stand_for_the_nominal_grid():
    latitude = 90 - colatitudes("GL", 48)
    longitude = 3.75 * np.arange(96)
    a = draw(lmax=47)
    exact = LatLon(latitude, longitude).synthesis(a)
    rounded = LatLon(np.round(latitude, 3), longitude.astype(np.float32))
    assert torch.equal(rounded.synthesis(a), exact)


def test_a_repeated_column_is_filled_ignored_and_transposed():
    latitude = np.linspace(90, -90, 9)
    once, twice = LatLon(latitude, np.arange(16) * 22.5), LatLon(latitude, np.arange(17) * 22.5)
    a = draw(lmax=7)
    values = twice.synthesis(a)
    assert torch.equal(values[:, :-1], once.synthesis(a))
    assert torch.equal(values[:, -1], values[:, 0])
    spoilt = values.clone()
    spoilt[:, -1] = 1e3
    torch.testing.assert_close(twice.analysis(spoilt, 7), a)
    v = torch.randn(9, 17, dtype=torch.float64)
    assert float((values * v).sum()) == pytest.approx(float((a * twice.adjoint(v, 7)).sum()))


def test_too_few_longitudes_limit_the_degree():
    grid = LatLon(np.linspace(90, -90, 20), np.arange(12) * 30.0)
    assert grid.max_lmax == 5
    with pytest.raises(ValueError, match="largest lmax it supports is 5"):
        grid.analysis(torch.zeros(20, 12), 6)


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        (np.linspace(30, 60, 31), np.arange(360.0), "31 latitudes from 60 to 30 degrees are not"),
        (np.linspace(-60, 60, 25), np.arange(36) * 10.0, "regular global grid"),
        (np.array([90, 50, 30, 0, -30, -50, -90.0]), np.arange(36) * 10.0, "regular global grid"),
        (np.linspace(-90, 90, 19), np.arange(18) * 10.0, "around the full circle"),
        (np.linspace(-90, 90, 19), np.array([0, 50, 120, 200, 300.0]), "around the full circle"),
        (np.linspace(-90, 90, 19), np.arange(40) * 10.0, "around the full circle"),
        (np.linspace(-90, 100, 20), np.arange(36) * 10.0, r"within \[-90, 90\]"),
        (np.array([-90, np.nan, 90.0]), np.arange(36) * 10.0, "1 of 3 values of latitude"),
        (np.linspace(-90, 90, 19), np.full(36, np.inf), "36 of 36 values of longitude"),
        (np.zeros((3, 4)), np.arange(36) * 10.0, "one-dimensional"),
        (np.linspace(-90, 90, 19), [], "non-empty"),
        (np.zeros(5), np.arange(36) * 10.0, "regular global grid"),
        (np.linspace(-90, 90, 19), np.zeros(36), "around the full circle"),
    ],
)
def test_other_grids_are_refused(latitude, longitude, message):
    with pytest.raises(ValueError, match=message):
        LatLon(latitude, longitude)


def test_deviations_beyond_rounding_are_refused():
    latitude = np.linspace(90, -90, 19)
    latitude[7] += 0.5  # 5 % of the step
    with pytest.raises(ValueError, match="regular global grid"):
        LatLon(latitude, np.arange(36) * 10.0)


def test_gauss_latitudes_of_two_libraries_agree():
    np.testing.assert_allclose(colatitudes("GL", 64), np.degrees(ducc0.misc.GL_thetas(64)))


def test_regular_grids_have_both_poles_and_start_at_greenwich():
    grid = LatLon.regular(7.5)
    assert grid.geometry == "CC"
    np.testing.assert_allclose(grid.latitude, np.arange(-90, 91, 7.5))
    np.testing.assert_allclose(grid.longitude, np.arange(0, 360, 7.5))
    for spacing in (7.0, 0.0, -1.0, 180.0):
        with pytest.raises(ValueError, match="divides 180"):
            LatLon.regular(spacing)
