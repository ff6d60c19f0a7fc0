"""Every grid: the harmonics themselves, adjoints, round trips, derivatives, batches, devices."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import healpy as hp
import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from spherediff import harmonics
from spherediff.grids import GaussLegendre, HEALPix, LatLon, Points, _lanes, gauss_legendre

RNG = np.random.default_rng(5)
LATITUDE, LONGITUDE = np.degrees(np.arcsin(RNG.uniform(-1, 1, 37))), RNG.uniform(-200, 400, 37)

GRIDS = {
    "gauss-legendre": GaussLegendre(7),
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
    return torch.randn(*shape, (lmax + 1) ** 2, generator=generator, dtype=dtype)


def relative(x, y):
    return float((x - y).norm() / y.norm())


def positions(grid):
    """Colatitude and longitude of every point, radians, in the shape of the values."""
    if len(grid.shape) == 2:
        latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    else:
        latitude, longitude = grid.latitude, grid.longitude
    return np.radians(90 - latitude), np.radians(longitude)


def real_harmonics(lmax, theta, phi):
    """Y_i from scipy's complex ones: √2 Re Y_ℓ^m for m > 0 and √2 Im Y_ℓ^{|m|} for m < 0."""
    rows = []
    for ell in range(lmax + 1):
        for m in range(-ell, ell + 1):
            y = sph_harm_y(ell, abs(m), theta, phi)
            rows.append(y.real if m == 0 else np.sqrt(2) * (y.real if m > 0 else y.imag))
    return torch.from_numpy(np.stack(rows))


@every_grid
def test_synthesis_is_the_sum_over_real_harmonics(grid):
    a = draw(2, lmax=6)
    matrix = real_harmonics(6, *positions(grid))
    expected = torch.tensordot(a, matrix, dims=1)
    assert relative(grid.synthesis(a), expected) < 2e-12
    assert relative(grid.synthesis(a.float()).double(), expected) < 5e-6


@every_grid
@pytest.mark.parametrize("lmax", [0, 1, 5, 30])
def test_adjoint_is_the_transpose(grid, lmax):
    # lmax 30 is beyond what most of these grids can resolve: the transpose holds there too.
    a, v = draw(3, lmax=lmax), torch.randn(3, *grid.shape, dtype=torch.float64)
    left = (grid.synthesis(a) * v).sum()
    right = (a * grid.adjoint(v, lmax)).sum()
    scale = float(grid.synthesis(a).norm() * v.norm())
    assert abs(float(left - right)) < 1e-12 * scale


@invertible
def test_analysis_inverts_synthesis_at_the_largest_band_limit(grid):
    a = draw(2, lmax=grid.max_lmax)
    values = grid.synthesis(a)
    assert relative(grid.analysis(values, grid.max_lmax), a) < 1e-12
    single = grid.analysis(values.float(), grid.max_lmax)
    assert single.dtype == torch.float32
    assert relative(single.double(), a) < 1e-5


@invertible
def test_area_weights_integrate(grid):
    assert grid.area_weights.shape == grid.shape
    assert float(grid.area_weights.sum()) == pytest.approx(4 * np.pi, rel=1e-12)
    assert float(grid.area_weights.min()) >= 0


@every_grid
def test_transforms_are_differentiable(grid):
    lmax = 2
    a = draw(2, lmax=lmax).requires_grad_()
    assert torch.autograd.gradcheck(grid.synthesis, a, fast_mode=True)
    assert torch.autograd.gradgradcheck(grid.synthesis, a, fast_mode=True)
    v = torch.randn(2, *grid.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: grid.adjoint(x, lmax), v, fast_mode=True)
    if grid.max_lmax >= lmax:
        assert torch.autograd.gradcheck(lambda x: grid.analysis(x, lmax), v, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x: grid.analysis(x, lmax), v, fast_mode=True)


@every_grid
def test_gradient_of_synthesis_is_the_adjoint(grid):
    a = draw(lmax=4).requires_grad_()
    v = torch.randn(*grid.shape, dtype=torch.float64)
    grid.synthesis(a).backward(v)
    assert torch.equal(a.grad, grid.adjoint(v, 4))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use of it
@every_grid
def test_forward_mode_and_vmap(grid):
    a, tangent = draw(3, lmax=3), torch.randn(3, 16, dtype=torch.float64)
    _, derivative = torch.func.jvp(grid.synthesis, (a,), (tangent,))
    torch.testing.assert_close(derivative, grid.synthesis(tangent))
    torch.testing.assert_close(torch.func.vmap(grid.synthesis)(a), grid.synthesis(a))
    if grid.max_lmax >= 3:
        v = grid.synthesis(a)
        torch.testing.assert_close(torch.func.vmap(lambda x: grid.analysis(x, 3))(v), a)


@every_grid
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,)])
def test_leading_axes_are_batch_axes(grid, batch):
    a = draw(*batch, lmax=3)
    values = grid.synthesis(a)
    assert values.shape == (*batch, *grid.shape)
    b = grid.adjoint(values, 3)
    assert b.shape == a.shape
    for index in np.ndindex(*batch):
        torch.testing.assert_close(values[index], grid.synthesis(a[index]), rtol=1e-12, atol=1e-13)
    if grid.max_lmax >= 3:
        assert grid.analysis(values, 3).shape == a.shape


@every_grid
def test_strided_input(grid):
    a = draw(4, lmax=3)
    strided = torch.stack([a, a], dim=-1)[::2, :, 0]
    torch.testing.assert_close(grid.synthesis(strided), grid.synthesis(a[::2]))
    v = grid.synthesis(a)
    strided = torch.stack([v, v], dim=-1)[..., 0]
    torch.testing.assert_close(grid.adjoint(strided, 3), grid.adjoint(v, 3))


@every_grid
def test_bad_arguments_are_refused(grid):
    v = torch.zeros(grid.shape)
    with pytest.raises(ValueError, match="not a square"):
        grid.synthesis(torch.zeros(5))
    with pytest.raises(ValueError, match="scalar"):
        grid.synthesis(torch.tensor(1.0))
    with pytest.raises(TypeError, match="float32 or float64 coefficients, got torch.int64"):
        grid.synthesis(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TypeError, match="torch.float16"):
        grid.adjoint(v.half(), 2)
    with pytest.raises(ValueError, match="expected values of shape"):
        grid.adjoint(v[..., 1:], 2)
    with pytest.raises(ValueError, match="at least 0"):
        grid.adjoint(v, -1)


@invertible
def test_analysis_refuses_too_high_a_band_limit_and_missing_values(grid):
    v = torch.zeros(2, *grid.shape)
    with pytest.raises(ValueError, match=f"the largest lmax it supports is {grid.max_lmax}"):
        grid.analysis(v, grid.max_lmax + 1)
    with pytest.raises(ValueError, match="expected values of shape"):
        grid.analysis(v[..., 1:], 2)
    v.view(-1)[[1, 5, 6]] = torch.nan
    v.view(-1)[3] = -torch.inf
    with pytest.raises(ValueError, match="3 NaN and 1 infinite entries among"):
        grid.analysis(v, 2)


def test_large_finite_values_are_not_taken_for_missing_ones():
    grid = GaussLegendre(3)
    values = torch.full(grid.shape, 3e37)
    assert not torch.isfinite(values.double().sum().float() * 10)
    assert torch.isfinite(grid.analysis(values, 0)).all()


@pytest.mark.parametrize("lmax", [1, 31, 64, 129, 255, 300])
def test_gauss_legendre_round_trip(lmax):
    # 300 is beyond the largest Legendre table, and goes through ducc0.
    grid = GaussLegendre(lmax)
    a = draw(1, lmax=lmax)
    values = grid.synthesis(a)
    assert relative(grid.analysis(values, lmax), a) < 1e-12
    assert relative(grid.analysis(values.float(), lmax), a.float()) < 1e-5


@pytest.mark.parametrize("lmax", [0, 1, 40, 100])
def test_gauss_legendre_agrees_with_ducc(lmax):
    grid = GaussLegendre(lmax)
    other = LatLon(grid.latitude, grid.longitude)
    assert other.geometry == "GL"
    a = draw(3, lmax=lmax)
    values = grid.synthesis(a)
    assert relative(values, other.synthesis(a)) < 1e-12
    assert relative(grid.adjoint(values, lmax), other.adjoint(values, lmax)) < 1e-12
    torch.testing.assert_close(grid.area_weights, other.area_weights, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("lmax", "extra"), [(0, 0), (1, 2), (2, 0), (9, 4), (50, 0), (95, 3)])
@pytest.mark.parametrize("odd", [0, 1])
def test_products_of_gauss_legendre_agree_with_ducc(lmax, extra, odd):
    shape = (lmax + 1 + extra, 2 * (lmax + 1 + extra) + odd)
    ducc = gauss_legendre._Ducc(lmax, shape)
    for dtype, accuracy in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        a = draw(3, lmax=lmax, dtype=dtype)
        transform = gauss_legendre._Products(lmax, shape, dtype, torch.device("cpu"))
        values = transform.synthesis(a)
        assert values.dtype == dtype
        assert relative(values.double(), ducc.synthesis(a.double())) < accuracy
        back = transform.adjoint(values).double()
        assert relative(back, ducc.adjoint(values.double())) < accuracy


@pytest.mark.parametrize(("nlon", "lmax"), [(21, 10), (22, 10), (64, 10), (21, 4), (21, 17)])
def test_gauss_legendre_with_other_longitudes_and_band_limits(nlon, lmax):
    grid = GaussLegendre(10, nlon=nlon)
    a = draw(2, lmax=lmax)
    matrix = real_harmonics(lmax, *positions(grid))
    assert relative(grid.synthesis(a), torch.tensordot(a, matrix, dims=1)) < 1e-12
    if lmax <= 10:
        assert relative(grid.analysis(grid.synthesis(a), lmax), a) < 1e-13


# nlat beyond lmax + 1, a ring at the equator and none, halves of the circle with an even and an odd
# number of longitudes, orders that have a partner and not; part of a group of fields, one and more.
@pytest.mark.parametrize(
    ("lmax", "shape"),
    [
        (0, (1, 2)),
        (1, (2, 4)),
        (2, (5, 6)),
        (9, (11, 48)),
        (16, (17, 36)),
        (17, (18, 46)),
        (31, (32, 64)),
        (64, (70, 132)),
    ],
)
@pytest.mark.parametrize("fields", [1, 32, 75])
def test_lanes_of_gauss_legendre_agree_with_ducc(lmax, shape, fields):
    ducc = gauss_legendre._Ducc(lmax, shape)
    for dtype, accuracy in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        a = draw(fields, lmax=lmax, dtype=dtype)
        transform = _lanes.Lanes(lmax, shape, dtype)
        values = transform.synthesis(a)
        assert values.dtype == dtype
        assert relative(values.double(), ducc.synthesis(a.double())) < accuracy
        back = transform.adjoint(values).double()
        assert relative(back, ducc.adjoint(values.double())) < accuracy


@pytest.mark.parametrize(("lmax", "shape"), [(0, (1, 2)), (6, (7, 14)), (12, (14, 34))])
def test_lanes_take_memory_as_they_find_it(lmax, shape):
    transform, a = _lanes.Lanes(lmax, shape, torch.float64), draw(40, lmax=lmax)
    values = transform.synthesis(a)
    b = transform.adjoint(values)
    (memory,) = transform._spare
    for found in (np.nan, np.inf, 1e300):
        for rows in memory:
            rows.fill(found)
        assert torch.equal(transform.synthesis(a), values)
        for rows in memory:
            rows.fill(found)
        assert torch.equal(transform.adjoint(values), b)


@pytest.mark.parametrize(
    ("lmax", "fields", "nlon", "engine"),
    [
        (32, 1, 66, _lanes.Lanes),
        (33, 1, 68, _lanes.Lanes),
        (64, 8, 132, _lanes.Lanes),
        (64, 7, 132, gauss_legendre._Products),
        (64, 8, 131, gauss_legendre._Products),
        (192, 40, 390, _lanes.Lanes),
        (193, 99, 390, gauss_legendre._Products),
        (257, 99, 528, gauss_legendre._Ducc),
        (4, 99, 8, gauss_legendre._Ducc),
    ],
)
def test_gauss_legendre_takes_the_fastest_engine_that_can_do_it(lmax, fields, nlon, engine):
    chosen = gauss_legendre._engine(
        fields, lmax, (lmax + 1, nlon), torch.float32, torch.device("cpu")
    )
    assert type(chosen) is engine


@pytest.mark.parametrize("lmax", [7, 8], ids=["no ring at the equator", "one"])
def test_nothing_is_left_of_an_earlier_transform(lmax):
    """Its memory serves the next one: of NaN, of the transpose, of another number."""
    grid, a = GaussLegendre(8), draw(35, lmax=lmax)
    v = grid.synthesis(a)
    b = grid.adjoint(v, lmax)
    missing = torch.full_like(v, torch.nan)
    for _ in range(2):
        assert grid.adjoint(missing, lmax).isnan().all()
        assert torch.equal(grid.synthesis(a), v)
        assert grid.synthesis(torch.full_like(a, torch.nan)).isnan().all()
        assert torch.equal(grid.adjoint(v, lmax), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_field_does_not_see_the_others_of_its_group(dtype):
    grid, a = GaussLegendre(20), draw(40, lmax=20, dtype=dtype)
    values = grid.synthesis(a)
    b = grid.adjoint(values, 20)
    for some in (slice(5), slice(3, 16), slice(20, 40)):
        assert torch.equal(grid.synthesis(a[some]), values[some])
        assert torch.equal(grid.adjoint(values[some], 20), b[some])
    missing = torch.arange(40) % 10 == 9
    a[missing], values[33] = torch.nan, torch.inf
    assert torch.equal(grid.synthesis(a).isnan().flatten(1).any(1), missing)
    b[33] = torch.nan
    assert torch.equal(grid.adjoint(values, 20).isfinite().all(1), b.isfinite().all(1))


def test_a_transform_in_inference_mode_leaves_others_their_gradient():
    grid, a = GaussLegendre(7), draw(3, lmax=7)
    with torch.inference_mode():
        expected = grid.synthesis(a)
    leaf = a.clone().requires_grad_()
    values = grid.synthesis(leaf)
    values.backward(values.detach())
    assert torch.equal(values, expected)
    with torch.inference_mode():
        assert torch.equal(grid.adjoint(values.detach(), 7), leaf.grad)


def test_threads_do_not_meet_in_one_transform():
    grid, fields = GaussLegendre(15), [draw(4, lmax=15) * k for k in range(1, 5)]
    expected = [grid.synthesis(a) for a in fields]

    def agrees(k):
        return all(torch.equal(grid.synthesis(fields[k]), expected[k]) for _ in range(300))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(agrees, range(4)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_threads_of_a_transform_are_those_of_its_process(set_threads):
    set_threads(2)
    grid, a = GaussLegendre(32), draw(200, lmax=32)
    _lanes._pool.cache_clear()
    values = grid.synthesis(a)
    assert _lanes._pool.cache_info().currsize == 1
    child = os.fork()
    if child == 0:  # no test runner's clean-up there
        os._exit(0 if torch.equal(grid.synthesis(a), values) else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_gauss_legendre_refuses_impossible_sizes():
    with pytest.raises(ValueError, match="needs at least 21 longitudes"):
        GaussLegendre(10, nlon=20)
    with pytest.raises(ValueError, match="at least 0"):
        GaussLegendre(-1)


@pytest.mark.parametrize("nside", [8, 16, 32, 64])
def test_healpix_round_trip_at_twice_nside(nside):
    grid = HEALPix(nside)
    a = draw(lmax=2 * nside)
    solution = grid.solve(grid.synthesis(a), 2 * nside)
    assert relative(solution.coefficients, a) < 1e-10
    assert float(solution.residual) < 1e-12
    assert 0 < solution.iterations < 30
    assert torch.equal(grid.analysis(grid.synthesis(a), 2 * nside), solution.coefficients)


def test_healpix_analysis_is_least_squares():
    grid = HEALPix(4)
    values = torch.randn(grid.shape, dtype=torch.float64)
    matrix = real_harmonics(8, *positions(grid)).T
    expected = torch.linalg.lstsq(matrix, values[:, None]).solution[:, 0]
    assert relative(grid.analysis(values, 8), expected) < 1e-11


def test_healpix_says_when_it_does_not_converge():
    grid = HEALPix(8)
    values = torch.randn(2, *grid.shape, dtype=torch.float64)
    with pytest.warns(UserWarning, match="did not converge: relative residual .* after 2 iter"):
        grid.analysis(values, 16, max_iterations=2)
    loose = grid.solve(values, 16, tolerance=1e-3)
    assert loose.residual.shape == (2,)
    assert 0 < float(loose.residual.max()) < 1e-3
    assert loose.iterations < grid.solve(values, 16).iterations
    assert not grid.analysis(torch.zeros(grid.shape), 16).any()


@pytest.mark.parametrize("exponent", [-110, 60, 100])
def test_healpix_analysis_is_the_same_in_any_units(exponent):
    # units by powers of two round alike; squares of such values leave the range of float32
    grid = HEALPix(4)
    values = grid.synthesis(draw(2, lmax=8, dtype=torch.float32))
    plain, scaled = grid.solve(values, 8), grid.solve(2.0**exponent * values, 8)
    assert relative(scaled.coefficients.double() / 2.0**exponent, plain.coefficients) < 1e-6
    torch.testing.assert_close(scaled.residual, plain.residual)


def test_healpix_analysis_that_overflows_did_not_converge():
    grid = HEALPix(4)
    with pytest.warns(UserWarning, match="did not converge: relative residual nan"):
        solution = grid.solve(torch.full(grid.shape, 3e38), 8)
    assert solution.residual.isnan()


@pytest.mark.parametrize(("nside", "lmax"), [(1, 2), (16, 32), (32, 95)])
def test_healpix_agrees_with_healpy(nside, lmax):
    a = draw(lmax=lmax)
    grid = HEALPix(nside)
    expected = torch.from_numpy(hp.alm2map(harmonics.to_healpy(a).numpy(), nside, lmax=lmax))
    assert relative(grid.synthesis(a), expected) < 1e-12
    assert relative(grid.synthesis(a.float()).double(), expected) < 1e-5
    nested = HEALPix(nside, ordering="nested").synthesis(a)
    reordered = hp.reorder(expected.numpy(), r2n=True)
    assert relative(nested, torch.from_numpy(reordered)) < 1e-12


def test_healpix_adjoint_agrees_with_a_single_pass_of_map2alm():
    grid = HEALPix(16)
    values = torch.randn(grid.shape, dtype=torch.float64)
    alm = hp.map2alm(values.numpy(), lmax=32, iter=0, use_pixel_weights=False)
    expected = harmonics.from_healpy(torch.from_numpy(alm))
    assert relative(grid.adjoint(values, 32) * 4 * np.pi / len(values), expected) < 1e-12


def test_healpix_analysis_agrees_with_iterated_map2alm():
    grid = HEALPix(16)
    a = draw(lmax=24)
    alm = hp.map2alm(grid.synthesis(a).numpy(), lmax=24, iter=10)
    assert (
        relative(grid.analysis(grid.synthesis(a), 24), harmonics.from_healpy(torch.from_numpy(alm)))
        < 1e-10
    )


@pytest.mark.parametrize("ordering", ["ring", "nested"])
def test_healpix_positions_are_those_of_healpy(ordering):
    grid = HEALPix(8, ordering=ordering)
    longitude, latitude = hp.pix2ang(8, np.arange(768), nest=ordering == "nested", lonlat=True)
    np.testing.assert_allclose(grid.latitude, latitude, atol=1e-12)
    np.testing.assert_allclose(grid.longitude, longitude, atol=1e-12)


def test_healpix_refuses_impossible_arguments():
    with pytest.raises(ValueError, match="power of two, got 12"):
        HEALPix(12, ordering="nested")
    with pytest.raises(ValueError, match="at least 1"):
        HEALPix(0)
    with pytest.raises(ValueError, match="'ring' or 'nested', got 'NESTED'"):
        HEALPix(4, ordering="NESTED")
    with pytest.raises(TypeError, match="nside"):
        HEALPix(4.0)


def test_points_have_no_analysis():
    grid = GRIDS["points"]
    with pytest.raises(ValueError, match="no analysis: values at scattered points"):
        grid.analysis(torch.zeros(grid.shape), 2)
    with pytest.raises(ValueError, match="no area weights"):
        _ = grid.area_weights


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ([0.0, 90.5], [0.0, 0.0], r"within \[-90, 90\] degrees, found 90.5"),
        ([0.0], [0.0, 1.0], "as many latitudes as longitudes"),
        ([], [], "non-empty"),
        ([[0.0]], [[0.0]], "one-dimensional"),
        ([0.0, np.nan], [0.0, 1.0], "1 of 2 values of latitude are NaN"),
        ([0.0], [np.inf], "1 of 1 values of longitude"),
    ],
)
def test_points_refuse_bad_positions(latitude, longitude, message):
    with pytest.raises(ValueError, match=message):
        Points(latitude, longitude)


def test_a_turn_about_the_axis_rotates_each_pair_of_orders():
    turn = np.radians(33.0)
    a = draw(lmax=12)
    m = harmonics.orders(12)
    pair = torch.arange(169) - 2 * m  # the coefficient of the opposite order
    rotated = (m.double() * turn).cos() * a - (m.double() * turn).sin() * a[pair]
    here = Points(LATITUDE, LONGITUDE).synthesis(a)
    there = Points(LATITUDE, LONGITUDE + 33.0).synthesis(rotated)
    assert relative(there, here) < 1e-12


@pytest.mark.parametrize("grid", [HEALPix(16), GaussLegendre(40)], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(grid, set_threads):
    a = draw(300, lmax=40)
    set_threads(2)
    two = grid.synthesis(a)
    set_threads(1)
    assert torch.equal(grid.synthesis(a), two)


@pytest.mark.parametrize("sums", [1, 300, 2000])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_healpix_synthesis_by_bands_of_rings_is_the_same(monkeypatch, dtype, accuracy, sums):
    grid = HEALPix(16)
    a = draw(2, lmax=47, dtype=dtype)
    at_once = grid.synthesis(a)
    assert len(grid._ring_bands(47, itemsize=16)) == 1
    monkeypatch.setattr("spherediff.grids.healpix._LARGEST_SUMS", sums)
    assert len(grid._ring_bands(47, itemsize=16)) > 1
    assert relative(grid.synthesis(a), at_once) < accuracy
    nested = HEALPix(16, ordering="nested").synthesis(a[0])
    expected = torch.from_numpy(hp.reorder(at_once[0].numpy(), r2n=True))
    assert relative(nested, expected) < accuracy
