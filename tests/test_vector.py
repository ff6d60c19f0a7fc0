"""Vector fields: the vector harmonics themselves, poles, adjoints, round trips, derivatives."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from spherediff import harmonics, vector
from spherediff.grids import GaussLegendre, HEALPix, LatLon, Points
from spherediff.vector import VectorTransform

RNG = np.random.default_rng(7)
LATITUDE, LONGITUDE = np.degrees(np.arcsin(RNG.uniform(-1, 1, 37))), RNG.uniform(-200, 400, 37)

GRIDS = {
    "gauss-legendre": GaussLegendre(7),
    "gauss-legendre odd": GaussLegendre(7, nlon=17),
    "healpix": HEALPix(4),
    "healpix nested": HEALPix(4, ordering="nested"),
    "healpix nside 3": HEALPix(3),
    "latlon": LatLon(np.linspace(90, -90, 10), np.arange(20) * 18.0),
    "latlon repeated": LatLon(np.linspace(-90, 90, 10), np.linspace(-180, 180, 21)),
    "latlon westward": LatLon(np.linspace(-90, 90, 10), 13 - np.arange(20) * 18.0),
    "points": Points(LATITUDE, LONGITUDE),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
invertible = pytest.mark.parametrize(
    "grid", [g for k, g in GRIDS.items() if k != "points"], ids=[k for k in GRIDS if k != "points"]
)


def draw(*shape, lmax, dtype=torch.float64):
    generator = torch.Generator().manual_seed(lmax)
    a = torch.randn(*shape, 2, (lmax + 1) ** 2, generator=generator, dtype=dtype)
    a[..., 0] = 0
    return a


def draw_values(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def relative(x, y):
    return float((x - y).norm() / y.norm())


def positions(grid):
    """Colatitude and longitude of every point, radians, in the shape of the values."""
    if len(grid.shape) == 2:
        latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    else:
        latitude, longitude = grid.latitude, grid.longitude
    return np.radians(90 - latitude), np.radians(longitude)


def basis(grid):
    """Cartesian unit vectors to the east and to the north, each (3, *shape)."""
    theta, phi = positions(grid)
    east = np.stack([-np.sin(phi), np.cos(phi), 0 * phi])
    north = np.stack([-np.cos(theta) * np.cos(phi), -np.cos(theta) * np.sin(phi), np.sin(theta)])
    return torch.from_numpy(east), torch.from_numpy(north)


def cartesian(grid, values):
    """(..., 2, *shape) to (..., 3, *shape)."""
    east, north = basis(grid)
    u, v = values.unbind(-1 - len(grid.shape))
    axis = -len(grid.shape)
    return u.unsqueeze(axis - 1) * east + v.unsqueeze(axis - 1) * north


def gradients(lmax, theta, phi):
    """∂_θ and ∂_φ/sin θ of scipy's harmonics, real ones, each ((lmax+1)², *shape); not at poles."""
    along_theta, along_phi = [], []
    for ell in range(lmax + 1):
        for m in range(-ell, ell + 1):
            _, derivative = sph_harm_y(ell, abs(m), theta, phi, diff_n=1)
            part = derivative.imag if m < 0 else derivative.real
            part = part if m == 0 else np.sqrt(2) * part
            along_theta.append(part[..., 0])
            along_phi.append(part[..., 1] / np.sin(theta))
    return np.stack(along_theta), np.stack(along_phi)


def root(lmax):
    ell = harmonics.degrees(lmax).double()
    return (ell * (ell + 1)).sqrt()


@every_grid
@pytest.mark.parametrize("lmax", [1, 6])
def test_synthesis_is_the_sum_over_vector_harmonics(grid, lmax):
    """k × ∇ψ + ∇χ with scipy's derivatives, at all points but the poles."""
    a = draw(2, lmax=lmax)
    a[..., 0] = 17  # degree 0 is ignored
    theta, phi = positions(grid)
    inside = torch.from_numpy(np.sin(theta) > 1e-6)
    chi, psi = (a[..., 1:] / root(lmax)[1:]).unbind(-2)
    t, p = (torch.from_numpy(g[1:]) for g in gradients(lmax, np.where(inside, theta, 1.0), phi))
    u = torch.tensordot(chi, p, 1) + torch.tensordot(psi, t, 1)
    v = -torch.tensordot(chi, t, 1) + torch.tensordot(psi, p, 1)
    expected = torch.stack([u, v], 1)[..., inside]
    values = VectorTransform(grid).synthesis(a)
    assert values.shape == (2, 2, *grid.shape)
    assert relative(values[..., inside], expected) < 2e-12
    single = VectorTransform(grid).synthesis(a.float())
    assert single.dtype == torch.float32
    assert relative(single[..., inside].double(), expected) < 5e-6


@pytest.mark.parametrize(("lmax", "nlat"), [(5, 9), (24, 31), (40, 41)])
def test_solid_body_rotation(lmax, nlat):
    """u = U cos φ is ψ = −U sin φ: nothing but B_{1,0} = −U√(8π/3), and ζ = 2U sin φ/R."""
    grid, speed = GaussLegendre(nlat - 1), 40.0
    latitude = torch.from_numpy(np.radians(grid.latitude))[:, None].expand(grid.shape)
    values = torch.stack([speed * latitude.cos(), torch.zeros(grid.shape).double()])
    a = VectorTransform(grid).analysis(values, lmax)
    expected = torch.zeros(2, (lmax + 1) ** 2, dtype=torch.float64)
    expected[1, 2] = -speed * math.sqrt(8 * math.pi / 3)
    torch.testing.assert_close(a, expected, rtol=1e-13, atol=2e-12)
    zeta = grid.synthesis(vector.vorticity(a, 6.4e6))
    torch.testing.assert_close(zeta, 2 * speed / 6.4e6 * latitude.sin(), rtol=0, atol=1e-16)
    psi = grid.synthesis(vector.stream_function(a, 6.4e6))
    torch.testing.assert_close(psi, -speed * 6.4e6 * latitude.sin(), rtol=0, atol=1e-4)
    assert float(vector.divergence(a).abs().max()) < 1e-17
    assert float(vector.velocity_potential(a).abs().max()) < 1e-4


@pytest.mark.parametrize("lmax", [1, 8, 40])
def test_parseval(lmax):
    """∫ u² + v² = Σ E² + B² by Gauss–Legendre quadrature, and E and B are orthogonal."""
    grid = GaussLegendre(lmax)
    a = draw(2, lmax=lmax)
    fields = VectorTransform(grid).synthesis(a)
    energy = (grid.area_weights * fields.square()).sum((1, 2, 3))
    torch.testing.assert_close(energy, a.square().sum((1, 2)), rtol=1e-12, atol=0)
    inner = (grid.area_weights * fields[0] * fields[1]).sum()
    torch.testing.assert_close(inner, (a[0] * a[1]).sum(), rtol=1e-10, atol=1e-10)


def test_addition_theorem():
    """Σ_m of the outer products of a degree's harmonics is (2ℓ+1)/8π, at the poles too."""
    lmax, points = 9, Points([-90.0, 90.0, 90.0, *LATITUDE[:5]], [0.0, 10.0, 200.0, *LONGITUDE[:5]])
    n = harmonics.count(lmax)
    for component in (0, 1):
        unit = torch.zeros(n, 2, n, dtype=torch.float64)
        unit[:, component] = torch.eye(n)
        fields = VectorTransform(points).synthesis(unit)
        outer = torch.einsum("iap,ibp->ipab", fields, fields)
        for ell in range(1, lmax + 1):
            total = outer[ell**2 : (ell + 1) ** 2].sum(0)
            expected = (2 * ell + 1) / (8 * math.pi) * torch.eye(2).double()
            torch.testing.assert_close(total, expected.expand_as(total), rtol=0, atol=1e-11)


def differences(points, step, evaluate):
    """Central differences of fourth order along φ and λ of what ``evaluate`` gives at points."""

    def moved(north, east):
        north, east = np.degrees(north), np.degrees(east)
        return evaluate(Points(points.latitude + north, points.longitude + east))

    return tuple(
        (8 * (moved(*there) - moved(*(-there))) - moved(*(2 * there)) + moved(*(-2 * there)))
        / (12 * step)
        for there in (step * np.eye(2)[0], step * np.eye(2)[1])
    )


@pytest.mark.parametrize("radius", [1.0, 250.0])
def test_potentials_vorticity_and_divergence_against_finite_differences(radius):
    """In physical units; the wind from ψ and χ, then ζ and δ from the wind."""
    lmax = 6
    points = Points(0.9 * LATITUDE, LONGITUDE)
    cos = torch.from_numpy(np.cos(np.radians(points.latitude)))
    a = draw(lmax=lmax)
    u, v = VectorTransform(points).synthesis(a)
    psi, chi = vector.stream_function(a, radius), vector.velocity_potential(a, radius)
    psi_north, psi_east = differences(points, 1e-3, lambda p: p.synthesis(psi))
    chi_north, chi_east = differences(points, 1e-3, lambda p: p.synthesis(chi))
    # the fourth-order error is about (ℓ h)⁴/30 ≈ 4e-11, rounding 1e-12 of the largest
    assert relative((chi_east / cos - psi_north) / radius, u) < 1e-9
    assert relative((chi_north + psi_east / cos) / radius, v) < 1e-9

    def wind(p):
        u, v = VectorTransform(p).synthesis(a)
        cos = torch.from_numpy(np.cos(np.radians(p.latitude)))
        return torch.stack([u, v, u * cos, v * cos])

    north, east = differences(points, 1e-3, wind)
    zeta, delta = (points.synthesis(f(a, radius)) for f in (vector.vorticity, vector.divergence))
    assert relative((east[1] - north[2]) / (cos * radius), zeta) < 1e-9
    assert relative((east[0] + north[3]) / (cos * radius), delta) < 1e-9


@pytest.mark.parametrize("lmax", [1, 20])
def test_vorticity_is_the_laplacian_of_the_stream_function(lmax):
    a = draw(3, lmax=lmax)
    ell = harmonics.degrees(lmax).double()
    laplacian = -ell * (ell + 1) / 9.0
    torch.testing.assert_close(vector.vorticity(a, 3.0), laplacian * vector.stream_function(a, 3.0))
    torch.testing.assert_close(
        vector.divergence(a, 3.0), laplacian * vector.velocity_potential(a, 3.0)
    )
    assert vector.vorticity(a.float()).dtype == torch.float32
    assert vector.stream_function(a).shape == (3, (lmax + 1) ** 2)


POLAR = LatLon(np.linspace(-90, 90, 19), 20 + 10.0 * np.arange(36))


def test_wind_at_a_pole_is_one_vector():
    a = draw(5, lmax=17)
    whole = cartesian(POLAR, VectorTransform(POLAR).synthesis(a))
    for row, latitude in ((0, -90.0), (-1, 90.0)):
        at_pole = whole[..., row, :]
        assert float(at_pole.abs().max()) > 0.1  # nothing vanishes there
        assert float((at_pole - at_pole[..., :1]).abs().max()) < 1e-12
        beside = Points([latitude * (1 - 1e-9)], [77.0])
        near = cartesian(beside, VectorTransform(beside).synthesis(a))
        torch.testing.assert_close(near[..., 0], at_pole[..., 0], rtol=0, atol=1e-5)


def test_componentwise_analysis_loses_the_wind_at_a_pole():
    """u and v of a flow across the poles are no band-limited scalars; E and B are exact."""
    a = draw(4, lmax=17)
    a[0] = 0
    a[0, 1, 3] = 1.0  # solid-body rotation about an axis in the equatorial plane
    transform = VectorTransform(POLAR)
    values = transform.synthesis(a)
    wind = cartesian(POLAR, values)[..., [0, -1], :]
    speed = wind[..., 0].norm(dim=-2)  # (field, pole)
    assert float(speed.min()) > 0.1
    for lmax in (5, 11, 17):
        both = transform.synthesis(transform.analysis(values[0], lmax))
        assert relative(both, values[0]) < 1e-13
        scalar = POLAR.synthesis(POLAR.analysis(values, lmax))
        assert relative(scalar[0], values[0]) > 0.3
        found = cartesian(POLAR, scalar)[..., [0, -1], :]
        # components are the same on every meridian, so their vectors cancel: no wind is left
        assert float((found.mean(-1).norm(dim=-2) / speed).max()) < 1e-13
        assert float((found - wind)[0].norm(dim=0).min()) > 0.99 * float(speed[0].max())
        assert float((found.norm(dim=1).mean(-1) / speed)[1:].min()) > 0.01  # no one vector


def test_cartesian_components_are_scalars_of_one_degree_more():
    lmax, grid = 6, GaussLegendre(12)
    xyz = cartesian(grid, VectorTransform(grid).synthesis(draw(lmax=lmax)))
    spectrum = harmonics.degree_spectrum(grid.analysis(xyz, 12))
    assert float(spectrum[:, lmax + 2 :].max()) < 1e-28
    assert float(spectrum[:, lmax + 1].min()) > 1e-3


def test_turning_the_sphere_turns_both_potentials_as_scalars():
    """The coefficients of ψ(Q⁻¹p) and χ(Q⁻¹p) are those of the wind Q V(Q⁻¹p)."""
    lmax, grid = 8, GaussLegendre(8)
    Q = Rotation.from_rotvec([0.4, -1.1, 2.0]).as_matrix()
    theta, phi = (x.ravel() for x in positions(grid))
    p = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    x, y, z = Q.T @ p
    back = Points(np.degrees(np.arcsin(z)), np.degrees(np.arctan2(y, x)))
    a = draw(lmax=lmax)
    turned = grid.analysis(back.synthesis(a).view(2, *grid.shape), lmax)
    here = cartesian(grid, VectorTransform(grid).synthesis(turned)).flatten(-2)
    there = cartesian(back, VectorTransform(back).synthesis(a))
    assert relative(here, torch.from_numpy(Q) @ there) < 1e-11
    # not so for u and v as scalars, or with one of the two reflected
    turned[1] *= -1
    wrong = cartesian(grid, VectorTransform(grid).synthesis(turned)).flatten(-2)
    assert relative(wrong, torch.from_numpy(Q) @ there) > 0.5


@invertible
def test_analysis_inverts_synthesis_at_the_largest_band_limit(grid):
    transform = VectorTransform(grid)
    assert transform.max_lmax == grid.max_lmax
    a = draw(2, lmax=grid.max_lmax)
    values = transform.synthesis(a)
    found = transform.analysis(values, grid.max_lmax)
    assert relative(found, a) < 1e-12
    assert not found[..., 0].any()
    single = transform.analysis(values.float(), grid.max_lmax)
    assert single.dtype == torch.float32
    assert relative(single.double(), a) < 1e-5


def colatitudes(geometry, n):
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


every_geometry = pytest.mark.parametrize("geometry", ["GL", "CC", "F1", "MW", "MWflip", "DH", "F2"])


@every_geometry
@pytest.mark.parametrize("n", [12, 60])
@pytest.mark.parametrize("offset", [0.0, -173.0])
def test_regular_grids_are_exact_at_every_band_limit(geometry, n, offset):
    """No degree above the one asked for may fall upon those below."""
    grid = LatLon(90 - colatitudes(geometry, n), offset + np.arange(2 * n) * 180 / n)
    assert grid.geometry == geometry
    transform = VectorTransform(grid)
    a = draw(2, lmax=grid.max_lmax)
    values = transform.synthesis(a)
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    scattered = VectorTransform(Points(latitude.ravel(), longitude.ravel()))
    assert relative(scattered.synthesis(a).view(values.shape), values) < 2e-12
    for lmax in {1, 2, 3, grid.max_lmax // 2, grid.max_lmax - 1, grid.max_lmax}:
        projected = transform.analysis(values, lmax)
        assert relative(projected, a[..., : (lmax + 1) ** 2]) < 1e-11
    assert relative(transform.analysis(values, grid.max_lmax), a) < 1e-12


@every_geometry
def test_gradient_of_analysis(geometry):
    grid = LatLon(90 - colatitudes(geometry, 12), np.linspace(180, -180, 25))
    v = draw_values(2, *grid.shape).requires_grad_()
    b, w = draw_values(2, 16, seed=1), draw_values(2, *grid.shape, seed=2)
    VectorTransform(grid).analysis(v, 3).backward(b)
    assert v.grad is not None
    expected = float((b * VectorTransform(grid).analysis(w, 3)).sum())
    assert float((v.grad * w).sum()) == pytest.approx(expected)


@pytest.mark.parametrize("nside", [1, 8, 32])
def test_healpix_round_trip_at_twice_nside(nside):
    transform = VectorTransform(HEALPix(nside))
    a = draw(lmax=2 * nside)
    assert relative(transform.analysis(transform.synthesis(a), 2 * nside), a) < 1e-10


def test_healpix_analysis_is_least_squares(monkeypatch):
    transform = VectorTransform(HEALPix(4))
    values, n = draw_values(*transform.shape), harmonics.count(8)
    unit = torch.eye(2 * n, dtype=torch.float64).view(2 * n, 2, n)
    kept = (unit[..., 0] == 0).all(-1)  # degree 0 is empty
    matrix = transform.synthesis(unit[kept]).flatten(1).T
    expected = torch.linalg.lstsq(matrix, values.flatten()[:, None]).solution[:, 0]
    assert relative(transform.analysis(values, 8).flatten()[kept], expected) < 1e-11
    monkeypatch.setattr("spherediff.grids.healpix._MAX_ITERATIONS", 2)
    with pytest.warns(UserWarning, match="vector analysis at lmax = 8 did not conv.* after 2 iter"):
        transform.analysis(values, 8)


@pytest.mark.parametrize("sums", [1, 300])
def test_healpix_by_bands_of_rings_is_the_same(monkeypatch, sums):
    transform = VectorTransform(HEALPix(8))
    a = draw(2, lmax=23)
    at_once = transform.synthesis(a)
    monkeypatch.setattr("spherediff.grids.healpix._LARGEST_SUMS", sums)
    assert relative(transform.synthesis(a), at_once) < 1e-12


@every_grid
@pytest.mark.parametrize("lmax", [1, 5, 30])
def test_adjoint_is_the_transpose(grid, lmax):
    # lmax 30 is beyond what most of these grids can resolve: the transpose holds there too.
    transform = VectorTransform(grid)
    a, v = draw(3, lmax=lmax), draw_values(3, *transform.shape)
    a[..., 0] = 5
    values = transform.synthesis(a)
    difference = (values * v).sum() - (a * transform.adjoint(v, lmax)).sum()
    assert abs(float(difference)) < 1e-12 * float(values.norm() * v.norm())


@every_grid
def test_transforms_are_differentiable(grid):
    lmax, transform = 2, VectorTransform(grid)
    a = draw(2, lmax=lmax).requires_grad_()
    assert torch.autograd.gradcheck(transform.synthesis, a, fast_mode=True)
    assert torch.autograd.gradgradcheck(transform.synthesis, a, fast_mode=True)
    v = draw_values(2, *transform.shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transform.adjoint(x, lmax), v, fast_mode=True)
    if grid.max_lmax >= lmax:
        assert torch.autograd.gradcheck(lambda x: transform.analysis(x, lmax), v, fast_mode=True)
        assert torch.autograd.gradgradcheck(
            lambda x: transform.analysis(x, lmax), v, fast_mode=True
        )


def test_maps_of_coefficients_are_differentiable():
    a = draw(2, lmax=2).requires_grad_()
    for f in (
        vector.vorticity,
        vector.divergence,
        vector.stream_function,
        vector.velocity_potential,
    ):
        assert torch.autograd.gradcheck(lambda x, f=f: f(x, 2.0), a)


@every_grid
def test_forward_mode_and_vmap(grid):
    transform = VectorTransform(grid)
    a, tangent = draw(3, lmax=3), draw_values(3, 2, 16)
    derivative = torch.func.jvp(transform.synthesis, (a,), (tangent,))[1]
    torch.testing.assert_close(derivative, transform.synthesis(tangent))
    torch.testing.assert_close(torch.func.vmap(transform.synthesis)(a), transform.synthesis(a))
    if grid.max_lmax >= 3:
        v = transform.synthesis(a)
        torch.testing.assert_close(torch.func.vmap(lambda x: transform.analysis(x, 3))(v), a)


@every_grid
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,)])
def test_leading_axes_are_batch_axes(grid, batch):
    transform = VectorTransform(grid)
    a = draw(*batch, lmax=3)
    values = transform.synthesis(a)
    assert values.shape == (*batch, 2, *grid.shape)
    assert transform.adjoint(values, 3).shape == a.shape
    for index in np.ndindex(*batch):
        torch.testing.assert_close(
            values[index], transform.synthesis(a[index]), rtol=1e-12, atol=1e-13
        )
    if grid.max_lmax >= 3:
        torch.testing.assert_close(transform.analysis(values, 3), a)


@every_grid
def test_strided_input(grid):
    transform = VectorTransform(grid)
    a = draw(4, lmax=3)
    strided = torch.stack([a, a], dim=-1)[::2, ..., 0]
    torch.testing.assert_close(transform.synthesis(strided), transform.synthesis(a[::2]))
    v = transform.synthesis(a)
    strided = torch.stack([v, v], dim=-1)[..., 0]
    torch.testing.assert_close(transform.adjoint(strided, 3), transform.adjoint(v, 3))


@every_grid
def test_bad_arguments_are_refused(grid):
    transform = VectorTransform(grid)
    v = torch.zeros(transform.shape)
    with pytest.raises(ValueError, match="not a square"):
        transform.synthesis(torch.zeros(2, 5))
    for shape in ((4,), (3, 4), ()):
        with pytest.raises(ValueError, match=r"E and B of a vector field, shape \(..., 2, "):
            transform.synthesis(torch.zeros(shape))
    with pytest.raises(ValueError, match="no degree 0: expected lmax of at least 1, got 0"):
        transform.synthesis(torch.zeros(2, 1))
    with pytest.raises(TypeError, match="float32 or float64 coefficients, got torch.int64"):
        transform.synthesis(torch.zeros(2, 4, dtype=torch.int64))
    for method in (transform.adjoint, transform.analysis):
        with pytest.raises(TypeError, match="torch.float16"):
            method(v.half(), 2)
        with pytest.raises(ValueError, match="expected values of shape"):
            method(v[..., 1:], 2)
        with pytest.raises(ValueError, match="eastward and northward components of shape"):
            method(v[:1], 2)
        with pytest.raises(ValueError, match="eastward and northward components of shape"):
            method(v[0], 2)
        with pytest.raises(ValueError, match="no degree 0"):
            method(v, 0)


@invertible
def test_analysis_refuses_too_high_a_band_limit_and_missing_values(grid):
    transform = VectorTransform(grid)
    v = torch.zeros(3, *transform.shape)
    with pytest.raises(ValueError, match=f"the largest lmax it supports is {grid.max_lmax}"):
        transform.analysis(v, grid.max_lmax + 1)
    v.view(-1)[[1, 5, 6]] = torch.nan
    with pytest.raises(ValueError, match="3 NaN and 0 infinite entries among"):
        transform.analysis(v, 2)


def test_points_have_no_analysis_and_other_grids_no_transform():
    transform = VectorTransform(GRIDS["points"])
    with pytest.raises(ValueError, match="no analysis: values at scattered points"):
        transform.analysis(torch.zeros(transform.shape), 2)
    other: Any = object()
    with pytest.raises(TypeError, match="expected HEALPix, .* got object: there are no vector"):
        VectorTransform(other)


def test_coefficient_maps_refuse_scalars():
    for f in (vector.vorticity, vector.stream_function):
        with pytest.raises(ValueError, match="E and B of a vector field"):
            f(torch.zeros(9))
