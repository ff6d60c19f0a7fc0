"""Figures show the right value at the right place, on the scale they state."""

from __future__ import annotations

import io
import json
import warnings

import healpy
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import chi2, skew

from spherediff import data, plot
from spherediff.grids import GaussLegendre, HEALPix, LatLon, Points

PLACES = [(0.0, 0.0), (60.0, 20.0), (-100.0, -50.0), (150.0, 75.0), (-30.0, 89.0), (10.0, -89.0)]
CYCLED_LONGITUDE = 20 + 2.5 * np.arange(144)


@pytest.fixture
def ax():
    figure = Figure(figsize=(6, 4))
    yield figure.subplots()
    figure.canvas.draw()


@pytest.fixture(autouse=True)
def no_global_state():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def unit(longitude, latitude):
    lon, lat = np.radians(longitude), np.radians(latitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def dipole(grid, longitude, latitude):
    """Cosine of the angle to a direction: 1 there, −1 on the far side."""
    if isinstance(grid, HEALPix):
        points = unit(*healpy.pix2ang(grid.nside, np.arange(grid.shape[0]), lonlat=True))
        if grid.ordering == "nested":
            points = points[healpy.nest2ring(grid.nside, np.arange(grid.shape[0]))]
    else:
        points = unit(*np.meshgrid(grid.longitude, grid.latitude))
    return points @ unit(longitude, latitude)


def read(image, x, y):
    """The raster's value at a point of the plane."""
    pixels = image.get_array()
    left, right, bottom, top = image.get_extent()
    row = int((y - bottom) / (top - bottom) * pixels.shape[0])
    column = int((x - left) / (right - left) * pixels.shape[1])
    return pixels[row, column]


def mollweide_xy(longitude, latitude):
    """Mollweide's projection by Newton's method, independent of healpy's table."""
    lat = np.radians(latitude)
    a = lat
    for _ in range(200):
        a -= 0.5 * (2 * a + np.sin(2 * a) - np.pi * np.sin(lat)) / (2 + 2 * np.cos(2 * a))
    return 2 / 180 * longitude * np.cos(a), np.sin(a)


GRIDS = [
    HEALPix(64),
    HEALPix(64, "nested"),
    GaussLegendre(47),
    LatLon(np.linspace(90, -90, 73), CYCLED_LONGITUDE),
    LatLon(np.linspace(-90, 90, 73), np.r_[CYCLED_LONGITUDE, 380.0]),
    LatLon(-88.75 + 2.5 * np.arange(72), -178.75 + 2.5 * np.arange(144)),
]


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("direction", PLACES[1:3])
def test_mollweide_shows_each_direction_where_it_is(grid, direction):
    """The raster is off by the pixel, 1° at nside 64, or by the interpolation."""
    values = dipole(grid, *direction)
    drawn = plot.mollweide(values, grid=grid, ax=Figure().subplots(), colorbar=False)
    for place in PLACES:
        expected = unit(*place) @ unit(*direction)
        assert read(drawn.image, *mollweide_xy(*place)) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("center", PLACES[1:4])
def test_orthographic_shows_each_direction_where_it_is(center, ax):
    grid = GRIDS[2]
    drawn = plot.orthographic(
        dipole(grid, 60.0, 20.0), grid=grid, ax=ax, longitude=center[0], latitude=center[1]
    )
    towards = unit(*center)
    east = np.array([-np.sin(np.radians(center[0])), np.cos(np.radians(center[0])), 0.0])
    north = np.cross(towards, east)
    for x, y in [(0, 0), (0.7, 0), (-0.7, 0), (0, 0.7), (0.3, -0.6)]:
        point = x * east + y * north + np.sqrt(1 - x**2 - y**2) * towards
        assert read(drawn.image, x, y) == pytest.approx(point @ unit(60.0, 20.0), abs=0.02)


def test_east_is_right_and_north_is_up(ax):
    drawn = plot.mollweide(dipole(HEALPix(32), 90.0, 0.0), ax=ax)
    assert read(drawn.image, 1.0, 0.0) > 0.9
    assert read(drawn.image, -1.0, 0.0) < -0.9
    north = plot.mollweide(dipole(HEALPix(32), 0.0, 90.0), ax=ax, colorbar=False)
    assert read(north.image, 0.0, 0.95) > 0.9
    # The picture itself, not only its data, since an origin could flip it.
    canvas = Figure(figsize=(6, 3))
    plot.mollweide(
        dipole(HEALPix(32), 0.0, 90.0),
        ax=canvas.add_axes((0, 0, 1, 1)),
        cmap="gray",
        colorbar=False,
        graticule=None,
    )
    canvas.savefig(buffer := io.BytesIO(), format="rgba", dpi=50)
    picture = np.frombuffer(buffer.getvalue(), np.uint8).reshape(150, 300, 4)
    assert picture[30, 150, 0] > 180
    assert picture[120, 150, 0] < 80


def test_the_centre_moves_with_its_longitude(ax):
    drawn = plot.mollweide(dipole(HEALPix(32), 150.0, 0.0), ax=ax, longitude=150.0)
    assert read(drawn.image, 0.0, 0.0) > 0.99


def test_a_torch_map_needs_no_grid_and_none_is_open_afterwards(ax):
    before = plt.get_fignums()
    drawn = plot.mollweide(
        torch.arange(48.0).requires_grad_(), ax=ax, title="pixels", units="K", coastlines=False
    )
    assert plt.get_fignums() == before
    assert drawn.ax is ax
    assert ax.get_title() == "pixels"
    assert drawn.colorbar.ax.get_xlabel() == "K"
    plot.orthographic(torch.arange(48.0))
    assert len(plt.get_fignums()) == len(before) + 1


def test_outside_is_transparent_and_missing_is_grey():
    values = dipole(HEALPix(2), 0.0, 0.0)
    values[healpy.ang2pix(2, 100.0, 5.0, lonlat=True)] = np.nan
    values[healpy.ang2pix(2, -100.0, 5.0, lonlat=True)] = healpy.UNSEEN
    figure = Figure(figsize=(8, 4), facecolor="none")
    drawn = plot.mollweide(
        values, ax=figure.add_axes((0, 0, 1, 1)), colorbar=False, graticule=None, center=0
    )
    assert drawn.image.get_clim()[1] <= 1
    figure.savefig(buffer := io.BytesIO(), format="rgba", dpi=100)
    picture = np.frombuffer(buffer.getvalue(), np.uint8).reshape(400, 800, 4)
    grey = [int(matplotlib.colors.to_rgb("#b3b3b3")[0] * 255 + 0.5)] * 3 + [255]
    for lon in (100.0, -100.0):
        x, y = mollweide_xy(lon, 5.0)
        row, column = round((0.5 - y / 2.04) * 400), round((0.5 + x / 4.04) * 800)
        np.testing.assert_allclose(picture[row, column], grey, atol=2)
    assert picture[5, 5, 3] == 0


def test_missing_values_of_a_regular_grid_stay_local(ax):
    grid = GRIDS[3]
    values = np.ma.masked_array(dipole(grid, 0.0, 0.0), mask=False)
    values[36, 10] = np.ma.masked
    drawn = plot.mollweide(values, grid=grid, ax=ax)
    assert np.ma.is_masked(read(drawn.image, *mollweide_xy(45.0, 0.0)))
    assert not np.ma.is_masked(read(drawn.image, *mollweide_xy(50.1, 0.0)))
    values[0] = np.ma.masked
    assert plot.mollweide(values, grid=grid, ax=ax).image is not None


def test_both_signs_are_centred_on_zero_and_one_sign_is_sequential(ax):
    signed = plot.mollweide(np.linspace(-1.0, 3.0, 48), ax=ax, colorbar=False)
    assert signed.image.get_clim() == (-3, 3)
    assert signed.image.get_cmap().name == "RdBu_r"
    single = plot.mollweide(np.linspace(-0.01, 3.0, 48), ax=ax, colorbar=False)
    assert single.image.get_clim() == (-0.01, 3)
    assert single.image.get_cmap().name == "viridis"
    centred = plot.mollweide(np.linspace(270, 300, 48), ax=ax, center=273, colorbar=False)
    assert centred.image.get_clim() == (246, 300)
    skewed = plot.mollweide(np.linspace(-1, 9, 48), ax=ax, vmin=-2, vmax=8, colorbar=False)
    assert skewed.image.get_clim() == (-2, 8)
    assert float(skewed.image.norm(0.0)) == 0.5
    half = plot.mollweide(np.linspace(-1, 9, 48), ax=ax, vmax=5, center=0)
    assert half.image.get_clim() == (-5, 5)
    assert half.colorbar.extend == "max"
    own = plot.mollweide(np.linspace(-1.0, 3.0, 48), ax=ax, cmap="cividis", colorbar=False)
    assert own.image.get_clim() == (-1, 3)


def test_a_few_values_far_out_do_not_take_the_whole_scale(ax):
    values = np.linspace(0, 1, 12 * 32**2)
    values[:5] = 40.0  # 0.04 % of the map
    drawn = plot.mollweide(values, ax=ax)
    assert drawn.image.get_clim() == (values.min(), pytest.approx(1.0, abs=0.001))
    assert drawn.colorbar.extend == "max"
    asked = plot.mollweide(values, ax=ax, vmax=40, colorbar=False)
    assert asked.image.get_clim() == (values.min(), 40)
    mirrored = plot.mollweide(-values, ax=ax)
    assert mirrored.image.get_clim() == (pytest.approx(-1.0, abs=0.001), -values.min())
    assert mirrored.colorbar.extend == "min"
    values[:5] = 1.4  # within twice the reach of the others
    assert plot.mollweide(values, ax=ax, colorbar=False).image.get_clim()[1] == 1.4
    values[:] = 0
    values[7] = 1  # nothing else to see
    assert plot.mollweide(values, ax=ax, colorbar=False).image.get_clim() == (0, 1)


def test_constant_maps_have_a_scale(ax):
    assert plot.mollweide(np.full(12, 3.0), ax=ax).image.get_clim() == (1.5, 4.5)
    assert plot.mollweide(np.zeros(12), ax=ax).image.get_clim() == (-0.5, 0.5)


@pytest.mark.parametrize("longitude", [0.0, 180.0, 77.0])
def test_lines_do_not_streak_across_the_map(longitude, ax):
    """A step of 1° is 4/360 wide at the equator, and at most 0.15, next to a pole."""
    circles = [
        unit_circle(pole) for pole in [(0, 90), (0, 0), (40, 30), (123, 10), (-70, 80), (200, -5)]
    ]
    drawn = plot.mollweide(
        torch.arange(48.0), ax=ax, longitude=longitude, coastlines=circles, graticule=15
    )
    for collection in (drawn.coastlines, drawn.graticule):
        for piece in collection.get_segments():
            assert np.hypot(*np.diff(piece, axis=0).T).max() < 0.15
    total = sum(len(piece) for piece in drawn.coastlines.get_segments())
    assert total >= 361 * len(circles) - 4


def unit_circle(pole):
    """The great circle about a pole, in steps of 1°, as longitude and latitude."""
    axis = unit(*pole)
    first = np.cross(axis, [0.3, 0.5, 0.8])
    first /= np.linalg.norm(first)
    angle = np.radians(np.arange(361))[:, None]
    points = np.cos(angle) * first + np.sin(angle) * np.cross(axis, first)
    return np.stack(healpy.vec2ang(points, lonlat=True), axis=-1)


def test_lines_behind_the_globe_are_hidden(ax):
    drawn = plot.orthographic(
        torch.arange(48.0), ax=ax, longitude=30, latitude=40, coastlines=[unit_circle((80, 10))]
    )
    pieces = drawn.coastlines.get_segments()
    assert 180 <= sum(map(len, pieces)) <= 182
    for piece in pieces:
        assert np.hypot(*piece.T).max() <= 1
        assert np.hypot(*np.diff(piece, axis=0).T).max() < 0.02


def test_a_line_is_where_the_values_are(ax):
    line = np.stack([np.linspace(-100, 120, 200), np.linspace(-60, 70, 200)], axis=-1)
    drawn = plot.mollweide(torch.arange(48.0), ax=ax, coastlines=[line])
    (piece,) = drawn.coastlines.get_segments()
    expected = np.array([mollweide_xy(*point) for point in line])
    np.testing.assert_allclose(piece, expected, atol=1e-3)


def test_bundled_coastlines_stay_on_the_map(ax):
    drawn = plot.mollweide(torch.arange(48.0), ax=ax, longitude=150.0, coastlines=True)
    assert sum(map(len, drawn.coastlines.get_segments())) > 0.95 * sum(map(len, data.coastlines()))
    for piece in drawn.coastlines.get_segments():
        assert np.hypot(*np.diff(piece, axis=0).T).max() < 0.2


@pytest.mark.parametrize(
    ("values", "cmap", "ink"),
    [
        (torch.arange(48.0), None, 0.0),  # mostly the middle of viridis
        (torch.arange(48.0) ** 6, None, 1.0),  # mostly its dark end
        (torch.arange(48.0) ** 6, "YlGnBu", 0.0),
        (torch.linspace(-1, 1, 48), None, 0.0),
    ],
)
def test_lines_show_on_what_most_of_a_map_is(ax, values, cmap, ink):
    drawn = plot.mollweide(values, ax=ax, coastlines=True, cmap=cmap)
    assert set(drawn.coastlines.get_colors()[:, :3].flat) == {ink}
    assert set(drawn.graticule.get_colors()[:, :3].flat) == {ink}


def test_panels_share_one_scale_and_one_bar():
    figure = Figure(figsize=(8, 6), layout="compressed")
    maps = torch.stack([torch.linspace(0, k, 48) for k in (1.0, 2.0, 7.0)])
    drawn = plot.panels(maps, titles=["a", "b", "c"], columns=2, units="mm/day", figure=figure)
    assert [m.image.get_clim() for m in drawn.maps] == [(0, 7)] * 3
    assert [m.ax.get_title() for m in drawn.maps] == ["a", "b", "c"]
    assert len(drawn.colorbars) == 1
    assert drawn.colorbars[0].ax.get_xlabel() == "mm/day"
    assert (drawn.colorbars[0].vmin, drawn.colorbars[0].vmax) == (0, 7)
    assert len(figure.axes) == 4
    assert not plt.get_fignums()
    figure.canvas.draw()


def test_compare_puts_the_archive_above_the_samples():
    drawn = plot.compare(torch.zeros(3, 48), torch.ones(3, 48), units="K")
    tops = [m.ax.get_position().y0 for m in drawn.maps]
    assert min(tops[:3]) > max(tops[3:])
    assert [m.image.get_array().max() for m in drawn.maps] == [0, 0, 0, 1, 1, 1]
    assert {m.image.get_clim() for m in drawn.maps} == {(0, 1)}
    assert [drawn.maps[k].ax.get_ylabel() for k in (0, 3)] == ["archive", "samples"]


def test_moments_are_those_of_scipy():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 48, generator=generator, dtype=torch.float64).exp()
    values[:, 7] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = plot.moments(values, units="m/s", figure=Figure(layout="compressed"))
    expected = values.numpy()
    pixel = healpy.ang2pix(2, 5.0, 3.0, lonlat=True)
    mean, spread, skewness = (read(m.image, *mollweide_xy(5.0, 3.0)) for m in drawn.maps)
    assert mean == pytest.approx(expected[:, pixel].mean())
    assert spread == pytest.approx(expected[:, pixel].std(ddof=1))
    assert skewness == pytest.approx(skew(expected[:, pixel]))
    lon, lat = healpy.pix2ang(2, 7, lonlat=True)
    where = mollweide_xy((lon + 180) % 360 - 180, lat)
    assert np.ma.is_masked(read(drawn.maps[2].image, *where))
    assert [bar.ax.get_xlabel() for bar in drawn.colorbars] == ["m/s", "m/s", "no unit"]


def test_moments_of_two_sets_share_the_scale_of_each_column():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 48, generator=generator)
    drawn = plot.moments({"archive": x, "samples": 3 * x}, figure=Figure(layout="compressed"))
    assert len(drawn.maps) == 6
    assert len(drawn.colorbars) == 3
    for above, below in zip(drawn.maps[:3], drawn.maps[3:], strict=True):
        assert above.image.get_clim() == below.image.get_clim()


def isotropic(spectrum, count, generator):
    ell = torch.arange(len(spectrum)).repeat_interleave(2 * torch.arange(len(spectrum)) + 1)
    noise = torch.randn(count, len(ell), generator=generator, dtype=torch.float64)
    return noise * spectrum[ell].sqrt()


def band(curves, name):
    """Lower and upper edge of a shaded area at its abscissae."""
    vertices = curves.areas[name].get_paths()[0].vertices
    x = np.unique(vertices[:, 0])
    return x, *np.array(
        [(v.min(), v.max()) for v in (vertices[vertices[:, 0] == u, 1] for u in x)]
    ).T


def test_spectrum_and_interval_are_the_formulae(ax):
    spectrum = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    a = spectrum.repeat_interleave(torch.tensor([1, 3, 5, 7])).sqrt().expand(4, 16)
    drawn = plot.degree_spectrum(
        {"archive": a}, theory={"model": lambda ell: 1.0 / (ell + 1.0)}, ax=ax, units="K"
    )
    ell = np.array([1, 2, 3])
    weight = (2 * ell + 1) / (4 * np.pi)
    np.testing.assert_allclose(drawn.lines["archive"].get_xdata(), ell)
    np.testing.assert_allclose(drawn.lines["archive"].get_ydata(), weight * spectrum[1:].numpy())
    np.testing.assert_allclose(drawn.lines["model"].get_ydata(), weight / (ell + 1))
    x, low, high = band(drawn, "archive")
    freedom = 4 * (2 * ell + 1)
    np.testing.assert_array_equal(x, ell)
    power = weight * spectrum[1:].numpy() * freedom
    np.testing.assert_allclose(low, power / chi2(freedom).ppf(0.975))
    np.testing.assert_allclose(high, power / chi2(freedom).ppf(0.025))
    assert "K²" in ax.get_ylabel()


def test_interval_holds_the_true_spectrum_19_times_in_20():
    """Binomial(1000, 0.95): outside 950 ± 28 (4 standard deviations) once in 16 000 seeds."""
    generator = torch.Generator().manual_seed(1)
    spectrum = (torch.arange(101, dtype=torch.float64) + 1) ** -2.0
    held = 0
    for _ in range(10):
        drawn = plot.degree_spectrum(isotropic(spectrum, 3, generator), ax=Figure().subplots())
        x, low, high = band(drawn, "mean")
        truth = (2 * x + 1) / (4 * np.pi) * spectrum[1:].numpy()
        held += int(((low <= truth) & (truth <= high)).sum())
    assert abs(held - 950) <= 28


def test_marginals_are_densities_weighted_by_area(ax):
    """z = sin(latitude) is uniform on [−1, 1] over the sphere, whatever the grid."""
    grid = GaussLegendre(63)
    z = np.broadcast_to(np.sin(np.radians(grid.latitude))[:, None], grid.shape)
    drawn = plot.marginals(np.stack([z, z]), z, grid=grid, ax=ax, units="m")
    densities, edges, _ = drawn.areas["archive"].get_data()
    assert (densities * np.diff(edges)).sum() == pytest.approx(1)
    assert (densities * np.diff(edges))[:40].sum() == pytest.approx(0.5, abs=0.02)
    quarter = edges[:-1] >= 0.5
    assert (densities * np.diff(edges))[quarter].sum() == pytest.approx(0.25, abs=0.02)
    assert ax.get_xlabel() == "value [m]"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["archive", "samples"]


def test_training_curve_reads_records_and_files(tmp_path, ax):
    records = [{"step": k, "loss": 1.0 / (k + 1), "learning_rate": 1e-3} for k in range(10)]
    records[4]["held_out"] = 0.5
    records[9]["held_out"] = None
    records += [{"step": 8, "loss": 0.25}]
    drawn = plot.training_curve(records, reference={"Gaussian": 0.7}, ax=ax)
    assert drawn.lines["training"].get_ydata()[8] == 0.25
    assert list(drawn.lines["held-out"].get_xdata()) == [4]
    assert list(drawn.lines["Gaussian"].get_ydata()) == [0.7, 0.7]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    again = plot.training_curve(path, ax=ax)
    np.testing.assert_array_equal(
        again.lines["training"].get_xydata(), drawn.lines["training"].get_xydata()
    )
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    with pytest.raises(ValueError, match=r"line 2.*JSON"):
        plot.training_curve(path)


GL = GaussLegendre(7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.mollweide(torch.zeros(50)), r"12·nside².*\(50,\).*grid="),
        (lambda: plot.mollweide(torch.zeros(2, 48)), "one map at a time"),
        (lambda: plot.mollweide(torch.zeros(48), grid=GL), r"\(8, .*got \(48,\)"),
        (lambda: plot.mollweide(torch.zeros(0)), "empty"),
        (lambda: plot.mollweide(torch.full((48,), torch.nan)), "only NaN"),
        (lambda: plot.mollweide(torch.full((48,), torch.inf)), "48 of 48 values are infinite"),
        (lambda: plot.mollweide(torch.arange(48), vmin=2, vmax=2), "vmin < vmax"),
        (lambda: plot.mollweide(torch.arange(48), vmin=60), r"vmin < vmax.*\[0, 47\]"),
        (lambda: plot.mollweide(torch.arange(48), vmin=1, vmax=2, center=5), "center"),
        (lambda: plot.mollweide(torch.arange(48), vmin=9, center=5), "center"),
        (lambda: plot.mollweide(torch.arange(48), graticule=0), "graticule"),
        (lambda: plot.mollweide(torch.arange(48), coastlines=[np.zeros(4)]), "points, 2"),
        (lambda: plot.orthographic(torch.arange(48), latitude=91), "latitude"),
        (lambda: plot.panels([]), "at least one map"),
        (lambda: plot.panels(torch.zeros(2, 48), titles=["a"]), "2 titles"),
        (lambda: plot.panels(torch.zeros(2, 48), columns=0), "column"),
        (lambda: plot.compare(torch.zeros(2, 48), torch.zeros(3, 48)), "equal length"),
        (lambda: plot.moments(torch.zeros(2, 48)), "three maps"),
        (lambda: plot.moments({}), "at least one set"),
        (lambda: plot.degree_spectrum({}), "at least one set"),
        (lambda: plot.degree_spectrum(torch.zeros(2, 3, 16)), "one channel"),
        (lambda: plot.degree_spectrum(torch.zeros(2, 15)), "not a square"),
        (lambda: plot.degree_spectrum(torch.zeros(2, 1)), "lmax"),
        (lambda: plot.degree_spectrum(torch.zeros(2, 16)), "no power"),
        (lambda: plot.degree_spectrum(torch.full((2, 16), torch.nan)), "not finite"),
        (lambda: plot.marginals(torch.zeros(3, 5), torch.zeros(8, 15), grid=GL), "archive"),
        (lambda: plot.marginals(torch.zeros(3), torch.full((3,), torch.nan)), "samples.*NaN"),
        (lambda: plot.training_curve([]), "at least one record"),
        (lambda: plot.training_curve([{"step": 1}]), "step and loss"),
    ],
)
def test_bad_input_is_refused_before_a_figure_exists(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="complex"):
        plot.mollweide(torch.zeros(48, dtype=torch.complex64))
    with pytest.raises(TypeError, match="Points"):
        plot.mollweide(torch.zeros(2), grid=Points([0.0, 1.0], [0.0, 1.0]))
    with pytest.raises(FileNotFoundError):
        plot.training_curve("no-such-file.jsonl")
