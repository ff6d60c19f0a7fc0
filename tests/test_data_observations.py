"""Observations in files: the linear map to what a model draws, the errors, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cftime
import healpy
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from spherediff import harmonics
from spherediff.data import Encoder, Harmonics, Log1p
from spherediff.data.cells import Cells, of_healpix, of_rectangle
from spherediff.data.observations import observe, read, representativeness
from spherediff.data.readings import Reading
from spherediff.grids import GaussLegendre, HEALPix, LatLon, Points

LMAX = 6
GRID = GaussLegendre(8)
STATIONS = Points([51.5, -33.9, 0.0, 89.0], [359.9, 18.4, -160.0, 12.0])


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Temperature, rain with a logarithm and a local amplitude, and winds as a vector field."""
    generator = torch.Generator().manual_seed(0)
    count = 120
    a = torch.randn(count, 4, harmonics.count(LMAX), generator=generator, dtype=torch.float64)
    a = a / (1 + harmonics.degrees(LMAX))
    t, pr, u, v = GRID.synthesis(a).numpy().swapaxes(0, 1)
    uneven = 1 + 0.7 * np.cos(np.radians(GRID.longitude))
    time = pd.date_range("1990-01-01", periods=count, freq="30D")
    season = 8 * np.cos(2 * np.pi * np.arange(count) / 12.175)[:, None, None]
    fields = {
        "t": (280 + season + 3 * t * uneven, "K"),
        "pr": (np.expm1(1.5 + np.tanh(pr)), "mm/day"),
        "u": (5 + 2 * u, "m/s"),
        "v": (2 * v, "m/s"),
    }
    ds = xr.Dataset(
        {
            name: (("time", "lat", "lon"), values, {"units": unit})
            for name, (values, unit) in fields.items()
        },
        {"time": time, "lat": GRID.latitude, "lon": GRID.longitude},
    )
    return Encoder.fit(
        ds,
        ["t", "pr", "u", "v"],
        lmax=LMAX,
        transform={"pr": Log1p(1.0)},
        climatology=Harmonics(1),
        amplitude_degree=2,
        vectors=(("u", "v"),),
    )


def draws(encoder: Encoder, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    n = harmonics.count(LMAX)
    x = torch.randn(count, 4, n, generator=generator, dtype=torch.float64)
    x = x / (1 + harmonics.degrees(LMAX))
    x[:, 2:, 0] = 0  # a vector field has no degree 0
    return x


DATE = np.datetime64("2001-07-15", "ns")


def known(encoder: Encoder, x: torch.Tensor, grid: Any, error: float | None) -> list[Reading]:
    """Exact readings of one decoded draw."""
    dates = xr.DataArray(np.full(len(x), DATE), dims="sample")
    maps = encoder.channels.maps(encoder.restore(x, dates), grid)[0]
    return [
        Reading(name, grid, values, None if error is None else np.full(grid.shape, error))
        for name, values in zip(encoder.names, maps, strict=True)
    ]


@pytest.mark.parametrize("grid", [STATIONS, HEALPix(4), LatLon(GRID.latitude, GRID.longitude)])
def test_observation_of_a_draw_is_explained_by_it(encoder: Encoder, grid: Any) -> None:
    """H'x = y for what decoding x gives, whatever transform, amplitude, season and vector field."""
    assert encoder.amplitude.log_std[0].any()
    x = draws(encoder)
    observation = observe(known(encoder, x, grid, 0.1), encoder, DATE)
    found = observation.operator(x[:1])[0]
    torch.testing.assert_close(found, observation.values, rtol=0, atol=1e-9)
    assert observation.operator.size == 4 * math.prod(grid.shape)
    other = observation.operator(x[1:2])[0]
    assert (other - observation.values).abs().median() > 0.1


def test_operator_and_its_transpose_agree(encoder: Encoder) -> None:
    operator = observe(known(encoder, draws(encoder), STATIONS, 0.1), encoder, DATE).operator
    x, y = draws(encoder), torch.randn(3, 16, dtype=torch.float64)
    left, right = (operator(x) * y).sum(), (x * operator.adjoint(y)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-12)
    single = operator(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), operator(x), rtol=0, atol=1e-5)


def test_errors_go_through_the_transform_and_add_what_the_model_does_not_resolve(
    encoder: Encoder,
) -> None:
    x = draws(encoder)
    readings = known(encoder, x, STATIONS, 0.5)
    std = observe(readings, encoder, DATE).noise_std.reshape(4, 4).numpy()
    beyond = representativeness(encoder).numpy()
    np.testing.assert_allclose(std[0], np.hypot(0.5, beyond[0]))
    spread = np.log1p(readings[1].values + 0.5) - np.log1p(readings[1].values)
    np.testing.assert_allclose(std[1], np.hypot(spread, beyond[1]))
    unknown = observe(known(encoder, x, STATIONS, None), encoder, DATE).noise_std.reshape(4, 4)
    expected = np.hypot(0.05 * encoder.scale.numpy(), beyond)
    np.testing.assert_allclose(unknown[:, 0], expected)


def test_representativeness_is_the_variance_beyond_lmax() -> None:
    """Against the residual maps of an archive with degrees up to 12, encoded to 6."""
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(400, harmonics.count(12), generator=generator, dtype=torch.float64)
    grid = GaussLegendre(12)
    maps = grid.synthesis(a)
    ds = xr.Dataset(
        {"t": (("sample", "lat", "lon"), maps.numpy())},
        {"lat": grid.latitude, "lon": grid.longitude},
    )
    lost = a[:, harmonics.count(6) :].var(0, correction=0).sum() / (4 * math.pi)
    for degree in (0, 3):
        encoder = Encoder.fit(ds, lmax=6, amplitude_degree=degree)
        assert float(representativeness(encoder)[0]) == pytest.approx(math.sqrt(lost), rel=0.02)


# --- means over cells -------------------------------------------------------------------------

COARSE = [
    (np.arange(80.0, -81.0, -20.0), np.arange(5.0, 360.0, 30.0)),  # from 90 to 90
    (np.linspace(-90, 90, 7), np.arange(-180.0, 180.0, 45.0)),  # poles
    (GaussLegendre(3).latitude, GaussLegendre(3).longitude),
    (np.array([10.0, 40.0, 70.0]), np.array([100.0, 60.0, 20.0])),  # of a part of the sphere
]


def brute_force(latitude: Any, longitude: Any, f: Any, caps: bool, count: int = 600) -> Any:
    """Means of f(latitude, longitude) over cells, by very many points, weighted by area."""
    share = (np.arange(count) + 0.5) / count
    step, width = abs(latitude[1] - latitude[0]), abs(longitude[1] - longitude[0])
    between = sorted((latitude[1:] + latitude[:-1]) / 2)
    outer = [2 * min(latitude) - between[0], 2 * max(latitude) - between[-1]]
    outer = [np.sign(v) * 90 if abs(v) > 90 - 0.3 * step else v for v in outer]
    edges = np.array([outer[0], *between, outer[1]])
    out = np.empty((len(latitude), len(longitude)))
    for i, y in enumerate(latitude):
        south = np.searchsorted(edges, y, side="right") - 1
        south = min(south, len(edges) - 2)
        lat = edges[south] + (edges[south + 1] - edges[south]) * share
        for k, x in enumerate(longitude):
            lon = 360 * share if caps and abs(y) == 90 else x + width * (share - 0.5)
            rows = f(lat[:, None], lon[None, :]).mean(1)
            out[i, k] = np.average(rows, weights=np.cos(np.radians(lat)))
    return out


def smooth(lat: Any, lon: Any) -> Any:
    """Of degree 6."""
    y, x = np.radians(lat), np.radians(lon)
    return np.sin(y) ** 2 + np.cos(y) ** 6 * np.cos(6 * x) + np.sin(y) * np.cos(y) * np.sin(x)


@pytest.mark.parametrize(("latitude", "longitude"), COARSE)
@pytest.mark.parametrize("caps", [False, True])
def test_nodes_give_the_mean_over_each_cell(latitude: Any, longitude: Any, caps: bool) -> None:
    cells = of_rectangle(latitude, longitude, 12, caps)
    assert cells is not None
    values = smooth(cells.nodes.latitude, cells.nodes.longitude).reshape(cells.weights.shape)
    found = (values * cells.weights).sum(1)
    expected = brute_force(latitude, longitude, smooth, caps)
    np.testing.assert_allclose(found, expected.ravel(), atol=2e-6)
    np.testing.assert_allclose(cells.weights.sum(1), 1)


def test_quadrature_is_exact_for_every_harmonic_up_to_the_model_s() -> None:
    """sin mφ and cos mφ times P_ℓ^m, against twice as many nodes."""
    latitude, longitude = COARSE[0]
    once, twice = (of_rectangle(latitude, longitude, lmax, True) for lmax in (7, 28))
    assert once is not None
    assert twice is not None
    assert once.weights.shape[1] < twice.weights.shape[1]
    eye = torch.eye(harmonics.count(7), dtype=torch.float64)
    found, expected = (
        np.einsum("kq,ikq->ik", c.weights, c.nodes.synthesis(eye).reshape(64, *c.weights.shape))
        for c in (once, twice)
    )
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("nside", "ordering"), [(2, "ring"), (2, "nested"), (3, "ring")])
def test_nested_pixels_give_the_mean_over_each_pixel(nside: int, ordering: Any) -> None:
    cells = of_healpix(HEALPix(nside, ordering), 12)
    assert cells is not None
    found = (smooth(cells.nodes.latitude, cells.nodes.longitude)).reshape(cells.weights.shape)
    fine = HEALPix(nside * 64)
    nest = ordering == "nested"
    angles = np.radians(90 - fine.latitude), np.radians(fine.longitude)
    pixel = healpy.ang2pix(nside, *angles, nest=nest)
    total = np.bincount(pixel, smooth(fine.latitude, fine.longitude), 12 * nside**2)
    np.testing.assert_allclose(
        (found * cells.weights).sum(1), total / np.bincount(pixel), atol=0.01
    )


def test_maps_as_fine_as_the_model_are_read_at_points() -> None:
    assert of_rectangle(GRID.latitude, GRID.longitude, LMAX, True) is None
    assert of_rectangle(GRID.latitude[:1], GRID.longitude, 99, True) is None
    assert of_healpix(HEALPix(4), LMAX) is None
    assert of_healpix(HEALPix(4), 4 * LMAX) is not None


def averages(encoder: Encoder, x: torch.Tensor, cells: Cells, unresolved: Any = None) -> Any:
    """Means over cells of the maps of a draw, (variables, cells), in physical units."""
    dates = xr.DataArray(np.full(len(x), DATE), dims="sample")
    a = encoder.restore(x, dates)
    maps = encoder.channels.maps(a, cells.nodes)[0]
    if unresolved is not None:
        values = cells.nodes.synthesis(a[0, 1]).numpy() + unresolved
        maps[1] = encoder.transforms[1].inverse(values)
    return (maps.reshape(4, *cells.weights.shape) * cells.weights).sum(-1)


def cell_readings(encoder: Encoder, values: Any, axes: Any, error: float) -> list[Reading]:
    grid = LatLon(*axes)
    found = []
    for name, v in zip(encoder.names, values, strict=True):
        cells = of_rectangle(axes[0], axes[1], LMAX, name in ("t", "pr"))
        field, std = v.reshape(grid.shape), np.full(grid.shape, error)
        found.append(Reading(name, grid, field, std, cells=cells))
    return found


def test_a_coarse_map_is_observed_as_means_over_its_cells(encoder: Encoder) -> None:
    """H'x = y for temperature and winds, although values at the points differ by far more."""
    axes = COARSE[0][0], np.arange(0.0, 360.0, 40.0)
    cells = of_rectangle(*axes, LMAX, False)
    assert cells is not None
    x = draws(encoder)
    prior = torch.zeros(2, 4, harmonics.count(LMAX), dtype=torch.float64)
    readings = cell_readings(encoder, averages(encoder, x, cells), axes, 0.1)
    readings[0].values[3, 4] = np.nan
    observation = observe([readings[i] for i in (0, 2, 3)], encoder, DATE)
    assert observation.operator.size == 3 * 81 - 1
    found = observation.operator(x[:1])[0]
    torch.testing.assert_close(found, observation.values, rtol=0, atol=1e-6)
    beyond = representativeness(encoder)[torch.tensor([0] * 80 + [2] * 81 + [3] * 81)]
    left = math.pi / (LMAX * math.radians(40))
    torch.testing.assert_close(observation.noise_std, (0.1**2 + (left * beyond) ** 2).sqrt())
    points = [Reading(r.variable, r.grid, r.values, r.error) for r in readings]
    wrong = observe([points[i] for i in (0, 2, 3)], encoder, DATE)
    assert (wrong.operator(x[:1])[0] - wrong.values).square().mean().sqrt() > 0.2
    y = torch.randn(observation.operator.size, dtype=torch.float64)
    left = (observation.operator(x) * y).sum()
    assert float(left) == pytest.approx(
        float((x * observation.operator.adjoint(y)).sum()), rel=1e-10
    )
    with pytest.raises(ValueError, match="pr has the transform Log1p.*Model.observe"):
        observe(readings, encoder, DATE)
    assert observe(readings, encoder, DATE, prior).operator.size == 4 * 81 - 1


def test_means_of_a_transformed_variable_are_unbiased_over_the_prior(encoder: Encoder) -> None:
    """The mean over 400 draws of y − Hx, rain being averaged in mm, within 4.5 standard errors.

    False alarm for 81 cells: 6e-4.  Without b it is off by dozens of them.
    """
    axes = COARSE[0][0], np.arange(0.0, 360.0, 40.0)
    cells = of_rectangle(*axes, LMAX, True)
    assert cells is not None
    n, rng = harmonics.count(LMAX), np.random.default_rng(3)
    generator = torch.Generator().manual_seed(3)
    scale = 3 / (1 + harmonics.degrees(LMAX))
    prior = scale * torch.randn(4000, 4, n, generator=generator, dtype=torch.float64)
    x = scale * torch.randn(400, 4, n, generator=generator, dtype=torch.float64)
    unresolved = float(representativeness(encoder)[1])
    readings = cell_readings(encoder, averages(encoder, x[:1], cells), axes, 0.0)[1:2]
    observation = observe(readings, encoder, DATE, prior)
    Hx = observation.operator(x).numpy()
    y = np.empty_like(Hx)
    transform = encoder.transforms[1]
    offset = np.log1p(readings[0].values).ravel() - observation.values.numpy()
    for k in range(len(x)):
        noise = unresolved * rng.standard_normal(cells.weights.size)
        y[k] = transform.forward(averages(encoder, x[k : k + 1], cells, noise)[1]) - offset
    error = (y - Hx).mean(0) / ((y - Hx).std(0) / 20)
    assert np.abs(error).max() < 4.5 * math.sqrt(1.1)
    without = observe(readings, encoder, DATE, prior[:1] * 0)
    shift = (without.values - observation.values).numpy() / ((y - Hx).std(0) / 20)
    assert np.median(np.abs(shift)) > 12
    expected = np.hypot(1e-3 * float(encoder.scale[1]), unresolved)
    np.testing.assert_allclose(observation.noise_std.numpy(), expected)


def test_files_say_whether_values_are_means_over_cells(encoder: Encoder, tmp_path: Path) -> None:
    latitude, longitude = COARSE[0][0], np.arange(0.0, 360.0, 40.0)
    field = np.full((9, 9), 280.0)

    def cells_of(name: str, lat: Any, lon: Any, values: Any, **attrs: str) -> Cells | None:
        variable = (("lat", "lon"), values, {"units": "K"} | attrs)
        ds = xr.Dataset({"t": variable}, {"lat": lat, "lon": lon})
        ds.to_netcdf(tmp_path / name)
        return read(tmp_path / name, encoder)[0].cells

    assert cells_of("a.nc", latitude, longitude, field) is not None
    assert cells_of("b.nc", latitude, longitude, field, cell_methods="area: mean") is not None
    assert cells_of("c.nc", latitude, longitude, field, cell_methods="time: area: point") is None
    assert cells_of("d.nc", latitude[:4], longitude[:4] / 2, field[:4, :4]) is None
    part = cells_of("e.nc", [0.0, 50.0], [20.0, 70.0, 120.0], field[:2, :3])
    assert part is not None
    assert len(part.weights) == 6
    fine = np.full(GRID.shape, 280.0)
    assert cells_of("f.nc", GRID.latitude, GRID.longitude, fine) is None
    healpy.write_map(tmp_path / "g.fits", np.full(12, 280.0), column_names=["t"], dtype="f8")
    coarse = read(tmp_path / "g.fits", encoder)[0].cells
    assert coarse is not None
    assert len(coarse.weights) == 12


def stations(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "stations.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_stations(tmp_path: Path, encoder: Encoder) -> None:
    path = stations(
        tmp_path,
        "name, lat, lon, t [K], t_error, pr, date\n"
        "London, 51.5, -0.1, 290.5, 0.5, 2.0, 2001-07-15\n"
        "Cape Town, -33.9, 18.4, 286.0, 0.3, , 2001-07-15\n",
    )
    t, pr = read(path, encoder)
    assert (t.variable, pr.variable) == ("t", "pr")
    np.testing.assert_allclose(t.values, [290.5, 286.0])
    assert t.error is not None
    np.testing.assert_allclose(t.error, [0.5, 0.3])
    np.testing.assert_allclose(t.grid.latitude, [51.5, -33.9])
    np.testing.assert_allclose(t.grid.longitude, [-0.1, 18.4])
    assert pr.error is None
    np.testing.assert_array_equal(np.isfinite(pr.values), [True, False])
    assert t.date == DATE
    assert observe([t, pr], encoder, t.date).operator.size == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lat,lon,t\n91,0,280\n", r"1 stations have a latitude outside \[-90, 90\].*line 2"),
        ("lat,lon,t\n0,0,280\n9,400,280\n", "longitude outside .*line 3"),
        ("lat,lon,t\n0,,280\n", "have no coordinates: line 2"),
        ("lat,lon,t\n1,2,280\n3,4,281\n1,362,9\n", "outside"),
        ("lat,lon,t\n1,2,warm\n", "1 entries of t are no numbers, the first 'warm' in line 2"),
        ("lat,lon,t\n1,2,inf\n", "t has 1 infinite values"),
        ("lat,lon,t,pr\n1,2,280,\n", "pr has no value at all"),
        ("lat,lon,t,t_error\n1,2,280,-1\n", "t has 1 values whose standard error"),
        ("lat,lon,t,t_error\n1,2,280,\n", "t has 1 values whose standard error"),
        ("lat,lon,t [degC]\n1,2,7\n", "t is in 'degC', but the model is in 'K'"),
        ("lat,lon,rain\n1,2,7\n", "none of the model's variables t, pr, u, v: its columns are"),
        ("x,lon,t\n1,2,7\n", "expected a column latitude; there are x, lon, t"),
        ("lat,lon,t,time\n1,2,7,2001-01-01\n3,4,5,2001-01-02\n", "readings of 2 dates"),
        ("lat,lon,t\n10,20,295,3\n", r"csv, line 2: expected 3 fields .*, found 4"),
        ("lat,lon,t\n10,20,295\n10,21\n", r"csv, line 3: expected 3 fields .*, found 2"),
        ("lat,lon,t\n\n1,2,280\n\n1,3,warm\n", "'warm' in line 5"),
        ("lat,lon,t,t [K]\n1,2,280,281\n", "two columns are headed t: leave one out"),
        ("lat,latitude,lon,t\n1,1,2,280\n", "columns latitude and lat say the same"),
        ("lat,lon,t,pr_error\n1,2,280,1\n", "csv: pr_error is the standard error of pr, which is"),
        ("lat,lon,t,t_error [mK]\n1,2,280,1\n", "csv: t_error is in 'mK', but the model is in 'K'"),
        ("lat,lon,t,time\n1,2,280,7\n", "csv, line 2: expected a date .* 2001-07-15, found 7"),
        ("lat,lon,t,time\n1,2,280,15/07/2001\n", "csv, line 2: .* found 15/07/2001"),
        ("lat,lon,t,time\n1,2,280,2001-02-30\n", "csv, line 2: .* found 2001-02-30"),
        ("", "csv is empty: expected a heading with latitude"),
        ("lat,lon,t\n", "csv has no rows below its heading"),
        ('lat,lon,t\n1,2,280\n1,3,"280\n', "csv: .* could not read it after line 2"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, encoder: Encoder, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(stations(tmp_path, text), encoder)


@pytest.mark.parametrize("heading", ["t [K],t_error [K]", "T (kelvin),T_Error", "t,t_error ( K )"])
def test_headings_with_units_and_errors(tmp_path: Path, encoder: Encoder, heading: str) -> None:
    (reading,) = read(stations(tmp_path, f"Lat [deg],LON,{heading}\n1,2,280,0.5\n"), encoder)
    assert (reading.variable, reading.values.item()) == ("t", 280)
    assert reading.error is not None
    assert reading.error.item() == 0.5


def test_spellings_of_units(tmp_path: Path, encoder: Encoder) -> None:
    """The model has m/s and mm/day."""
    text = "lat,lon,u [m s-1],pr (mm day-1)\n1,2,3,4\n"
    u, pr = read(stations(tmp_path, text), encoder)
    assert (u.variable, pr.variable) == ("u", "pr")


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2001-07-15", "2001-07-15"),
        ("20010715", "2001-07-15"),
        ("1500-07-15", "1500-07-15"),
        ("2001-07-15T23:00-02:00", "2001-07-16T01:00"),
    ],
)
def test_dates_of_tables(tmp_path: Path, encoder: Encoder, text: str, date: str) -> None:
    (reading,) = read(stations(tmp_path, f"lat,lon,t,time\n1,2,280,{text}\n1,3,280,\n"), encoder)
    assert reading.date == np.datetime64(date, "s")


def test_files_that_are_tables(tmp_path: Path, encoder: Encoder) -> None:
    text = "lat,lon,t\n1,2,280\n"
    for name in ("stations.CSV", "stations.txt"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read(tmp_path / name, encoder)[0].values == [280]
    path = tmp_path / "latin.csv"
    path.write_bytes("name,lat,lon,t\nZürich,47,8,280\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv: expected a table in UTF-8"):
        read(path, encoder)


def test_a_value_outside_the_domain_of_its_transform(tmp_path: Path, encoder: Encoder) -> None:
    readings = read(stations(tmp_path, "lat,lon,pr\n1,2,\n1,3,2\n1,4,-9999\n"), encoder)
    with pytest.raises(ValueError, match="csv, line 4: expected pr not below 0, found -9999, as"):
        observe(readings, encoder, DATE)
    with pytest.raises(ValueError, match="needs the date"):
        observe(read(stations(tmp_path, "lat,lon,t\n1,2,3\n"), encoder), encoder)
    with pytest.raises(ValueError, match="at least one reading"):
        observe([], encoder, DATE)
    with pytest.raises(FileNotFoundError, match="no file"):
        read(tmp_path / "nothing.csv", encoder)


@pytest.mark.parametrize(
    "rows",
    [
        ["1,2,280", "3,4,281", "1,-358,279"],
        ["1,2,280", "1,2,280"],
        ["1,0,280", "1,-1e-7,280"],
        ["90,0,280", "90,120,280"],
    ],
)
def test_places_that_are_given_twice(tmp_path: Path, encoder: Encoder, rows: list[str]) -> None:
    """In one file or in two."""
    path = stations(tmp_path, "lat,lon,t\n" + "\n".join(rows))
    message = rf"csv, line 2 and .*csv, line {len(rows) + 1}: 2 readings of t, .* more than once"
    with pytest.raises(ValueError, match=message):
        observe(read(path, encoder), encoder, DATE)
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("lat,lon,t\n" + "\n".join(rows[:-1]))
    other.write_text(f"lat,lon,t\n{rows[-1]}\n")
    with pytest.raises(ValueError, match=r"one.csv, line 2 and .*other.csv, line 2: 2 readings"):
        observe([*read(one, encoder), *read(other, encoder)], encoder, DATE)


def test_readings_that_differ_though_their_places_do_not(tmp_path: Path, encoder: Encoder) -> None:
    """Winds at a pole along two meridians, two variables, a point of a coarse map."""
    text = "lat,lon,u,t,pr\n90,0,5,280,\n90,120,5,,2\n40,0,,280,\n"
    coarse = LatLon([60.0, 20.0, -20.0, -60.0], np.arange(0.0, 360.0, 40.0))
    assert 0 <= coarse.max_lmax < LMAX
    table = read(stations(tmp_path, text), encoder)
    observation = observe(
        [*table, Reading("t", coarse, np.full((4, 9), 280.0), None)], encoder, DATE
    )
    assert observation.operator.size == 5 + 36


def test_a_map_with_poles_and_a_closing_meridian(tmp_path: Path, encoder: Encoder) -> None:
    latitude, longitude = np.linspace(-90, 90, 13), np.arange(0.0, 361.0, 15.0)
    t = np.full((13, 25), 280.0)
    t[0, :2] = np.nan
    t[0, 2:] += np.tile([1.0, -1.0, 0.0], 8)[:23]
    t[0, -1] = np.nan  # as on the first meridian
    for rows in (slice(None), slice(0, 5)):  # all of the sphere, or a part
        ds = xr.Dataset(
            {
                "t": (("lat", "lon"), t[rows], {"units": "K"}),
                "u": (("lat", "lon"), 0 * t[rows] + 5),
            },
            {"lat": latitude[rows], "lon": longitude},
        )
        ds.to_netcdf(tmp_path / "map.nc", engine="h5netcdf")
        readings = read(tmp_path / "map.nc", encoder)
        values = {one.variable: one.values.reshape(-1, 24) for one in readings}
        np.testing.assert_array_equal(np.isnan(values["t"][0]), np.arange(24) > 0)
        assert values["t"][0, 0] == pytest.approx(280, abs=0.1)
        assert np.isfinite(values["u"][0]).sum() == 22  # of a wind, as they are
        assert np.isfinite(values["t"][1:3]).all()
        observe(readings, encoder, DATE)
    different = ds.copy(deep=True)
    different["t"][2, -1] = 281
    different.to_netcdf(tmp_path / "different.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"at latitude -75, longitude 0 and .*longitude 360: "):
        observe(read(tmp_path / "different.nc", encoder), encoder, DATE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t\n1,2,22", r"line 2: expected t between 2\d\d.* and 3\d\d.* K, found 22, more than 10"),
        ("t\n1,2,280\n1,3,-9999", "line 3: .*found -9999, .* as are 1 of 2 values: are the units"),
        ("u\n1,2,300", "line 2: expected u between -.* m/s, found 300"),
        ("pr\n1,2,90000", "line 2: expected pr between 0 and .* mm/day, found 90000"),
    ],
)
def test_values_that_are_hardly_possible(
    tmp_path: Path, encoder: Encoder, text: str, message: str
) -> None:
    readings = read(stations(tmp_path, f"lat,lon,{text}\n"), encoder)
    with pytest.raises(ValueError, match=rf"stations\.csv, {message}"):
        observe(readings, encoder, DATE)


def test_a_value_far_away_with_an_error_as_large(tmp_path: Path, encoder: Encoder) -> None:
    readings = read(stations(tmp_path, "lat,lon,t,t_error\n1,2,22,50\n"), encoder)
    assert observe(readings, encoder, DATE).operator.size == 1


def test_a_masked_healpix_map(tmp_path: Path, encoder: Encoder) -> None:
    values = np.linspace(270, 280, 192)
    values[10:50] = healpy.UNSEEN
    path = tmp_path / "masked.fits"
    healpy.write_map(path, values, column_names=["t"], column_units="K", dtype=np.float64)
    (reading,) = read(path, encoder)
    assert isinstance(reading.grid, HEALPix)
    assert observe([reading], encoder, DATE).operator.size == 152
    np.testing.assert_allclose(reading.values[50:], values[50:])


def test_a_regional_map_with_errors_and_gaps(tmp_path: Path, encoder: Encoder) -> None:
    lat, lon = np.arange(40.0, 60.0, 5.0), np.arange(-10.0, 30.0, 10.0)
    t = np.full((4, 4), 285.0)
    t[1, 2] = np.nan
    error = np.where(np.isnan(t), np.nan, 0.25)
    ds = xr.Dataset(
        {"t": (("lat", "lon"), t, {"units": "K"}), "t_error": (("lat", "lon"), error)},
        {"lat": lat, "lon": lon, "time": DATE},
    )
    ds.to_netcdf(tmp_path / "region.nc", engine="h5netcdf")
    (reading,) = read(tmp_path / "region.nc", encoder)
    assert reading.date == DATE
    observation = observe([reading], encoder, reading.date)
    assert observation.operator.size == 15
    expected = np.hypot(0.25, float(representativeness(encoder)[0]))
    np.testing.assert_allclose(observation.noise_std, expected)
    index = 1 * 4 + 2
    assert reading.grid.latitude[index] == 45
    assert np.isnan(reading.values[index])
    two = xr.concat([ds, ds.assign_coords(time=DATE + np.timedelta64(1, "D"))], "time")
    two.to_netcdf(tmp_path / "two.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="holds 2 maps; expected one"):
        read(tmp_path / "two.nc", encoder)


def region(path: Path, error: Any = None, **coordinates: Any) -> Path:
    """Temperature on a part of the sphere, in a file."""
    axes = {"lat": np.arange(40.0, 60.0, 5.0), "lon": np.arange(-10.0, 30.0, 10.0), "time": DATE}
    ds = xr.Dataset({"t": (("lat", "lon"), np.full((4, 4), 285.0), {"units": "K"})}, axes)
    ds = ds.assign_coords(coordinates)
    if error is not None:
        ds["t_error"] = error
    ds.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.parametrize(
    "error",
    [0.5, xr.DataArray([0.5, 0.5, 0.5, 0.5], dims="lat"), xr.DataArray(0.5, attrs={"units": "K"})],
)
def test_errors_of_a_map_that_are_the_same_for_many_values(
    tmp_path: Path, encoder: Encoder, error: Any
) -> None:
    (reading,) = read(region(tmp_path / "map.nc", error), encoder)
    np.testing.assert_array_equal(reading.error, np.full(16, 0.5))


@pytest.mark.parametrize(
    ("error", "coordinates", "message"),
    [
        (xr.DataArray(5.0, attrs={"units": "mK"}), {}, "t_error is in 'mK', but the model is"),
        (None, {"time": 7}, r"found 7 \(numbers need units"),
        (
            None,
            {"time": cftime.datetime(2001, 2, 30, calendar="360_day")},
            r"found 2001-02-30 .*360_day calendar",
        ),
        (None, {"lat": [80.0, 85.0, 90.0, 95.0]}, "latitudes must lie within"),
    ],
)
def test_maps_that_are_refused(
    tmp_path: Path, encoder: Encoder, error: Any, coordinates: dict[str, Any], message: str
) -> None:
    path = region(tmp_path / "map.nc", error, **coordinates)
    with pytest.raises(ValueError, match=rf"map\.nc: .*{message}"):
        read(path, encoder)


def test_a_healpix_map_without_units(tmp_path: Path, encoder: Encoder) -> None:
    path = tmp_path / "map.fits"
    healpy.write_map(path, np.full(12, 280.0), column_names=["t"], dtype=np.float64)
    assert read(path, encoder)[0].values.shape == (12,)
