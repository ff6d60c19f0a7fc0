"""Every format, every way to name the axes, and a clear error for everything else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import healpy
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from spherediff import data
from spherediff.grids import HEALPix, LatLon

LATITUDE = np.linspace(-90, 90, 7)
LONGITUDE = 20 + 30.0 * np.arange(12)


def archive(n: int = 5, seed: int = 0, **names: str) -> xr.Dataset:
    """A float32 archive on a 7 × 12 grid with non-CF or other axis names."""
    time, lat, lon = (names.get(k, k) for k in ("time", "lat", "lon"))
    rng = np.random.default_rng(seed)
    fields = {
        name: ((time, lat, lon), rng.standard_normal((n, 7, 12)).astype(np.float32), attrs)
        for name, attrs in {
            "u": {"units": "m s-1", "long_name": "zonal wind"},
            "v": {"units": "m s-1"},
        }.items()
    }
    dates = pd.date_range("2001-01-15", periods=n, freq="D")
    return xr.Dataset(fields, {time: dates, lat: LATITUDE, lon: LONGITUDE})


def healpix(n: int = 3, nside: int = 4, **attrs: object) -> xr.Dataset:
    values = np.random.default_rng(1).standard_normal((n, 12 * nside**2))
    dates = pd.date_range("2001-01-15", periods=n)
    return xr.Dataset({"t": (("time", "cell"), values, {"units": "K"})}, {"time": dates}, attrs)


def same(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert found.u.dims == ("time", "latitude", "longitude")
    np.testing.assert_array_equal(found.u.values, expected.u.values)
    assert found.u.attrs["units"] == "m s-1"
    assert found.u.attrs["long_name"] == "zonal wind"
    assert (found.time.values == expected.time.values).all()
    assert isinstance(data.grid_of(found), LatLon)


@pytest.mark.parametrize("kind", ["h5netcdf", "scipy", "zarr"])
def test_formats(tmp_path, kind):
    ds = archive()
    path = tmp_path / "archive.dat"  # the name must not matter
    if kind == "zarr":
        ds.to_zarr(path, consolidated=False)
    else:
        ds.to_netcdf(path, engine=kind)
    found = data.open(path)
    same(found, ds)
    assert list(found.data_vars) == ["u", "v"]
    assert found.u.chunks is not None
    assert list(data.open(str(path), "v").data_vars) == ["v"]
    assert list(data.open(path, ["v", "u"]).data_vars) == ["v", "u"]


@pytest.mark.parametrize(
    ("lat", "lon"),
    [("LAT", "LON"), ("Latitude", "Longitude"), ("y", "x"), ("FNOCY", "FNOCX"), ("nav_lat", "lon")],
)
def test_axes_by_name(lat, lon):
    ds = archive(lat=lat, lon=lon)
    same(data.normalise(ds), ds)


@pytest.mark.parametrize(
    ("y", "x"),
    [
        ({"standard_name": "latitude"}, {"standard_name": "longitude"}),
        ({"units": "degrees_north"}, {"units": "degrees_east"}),
        ({"units": "degree_N"}, {"units": "degree_E"}),
        ({"axis": "Y"}, {"axis": "X"}),
    ],
)
def test_axes_by_attributes(y, x):
    ds = archive(lat="a", lon="b")
    ds.a.attrs, ds.b.attrs = y, x
    same(data.normalise(ds), ds)


def test_attributes_go_before_names():
    """Axes that are called the other way round."""
    ds = archive(lat="x", lon="y")
    ds.x.attrs, ds.y.attrs = {"units": "degrees_north"}, {"units": "degrees_east"}
    same(data.normalise(ds), ds)


def test_normal_form_is_a_fixed_point_and_transposes():
    ds = archive()
    once = data.normalise(ds.transpose("lon", "time", "lat"))
    same(once, ds)
    xr.testing.assert_identical(data.normalise(once).compute(), once.compute())


def test_split_variables_become_coordinates():
    ds = archive().assign(test=("time", [0, 0, 0, 1, 1]), area=("lat", np.ones(7)))
    ds["bounds"] = (("time", "nv"), np.zeros((5, 2)))
    found = data.normalise(ds)
    assert list(found.data_vars) == ["u", "v"]
    assert set(found.coords) == {"time", "test", "latitude", "longitude"}
    assert found.isel(time=found.test == 0).sizes["time"] == 3


def test_members_and_years_are_stacked_to_samples():
    values = np.random.default_rng(2).standard_normal((2, 3, 7, 12))
    ds = xr.Dataset(
        {"tas": (("member", "year", "lat", "lon"), values)},
        {"member": [57, 59], "year": [1890, 1891, 1892], "lat": LATITUDE, "lon": LONGITUDE},
    )
    found = data.normalise(ds)
    assert found.tas.dims == ("sample", "latitude", "longitude")
    np.testing.assert_array_equal(found.tas.values, values.reshape(6, 7, 12))
    assert found.member.values.tolist() == [57, 57, 57, 59, 59, 59]
    assert found.year.values.tolist() == [1890, 1891, 1892] * 2
    assert found.isel(sample=found.member == 59).sizes["sample"] == 3
    one = data.normalise(ds.isel(member=0))
    assert one.tas.dims[0] == "sample"
    assert one.year.values.tolist() == [1890, 1891, 1892]


def test_stacked_dates_stay_dates():
    ds = xr.concat([archive(3, seed) for seed in (0, 1)], dim="member")
    found = data.normalise(ds)
    assert found.sizes["sample"] == 6
    assert (found.time.values[3:] == ds.time.values).all()
    np.testing.assert_array_equal(found.u.values[4], ds.u.values[1, 1])


def test_single_map():
    found = data.normalise(archive().isel(time=0))
    assert found.u.shape == (1, 7, 12)
    assert data.normalise(archive().isel(time=0, drop=True)).u.dims[0] == "sample"


def test_level_must_be_chosen():
    levels = xr.concat([archive(), archive(seed=1)], dim=pd.Index([850.0, 500.0], name="lev"))
    with pytest.raises(ValueError, match=r"dimension lev \(850.0, 500.0\).*select=\{'lev'"):
        data.normalise(levels)
    same(data.normalise(levels, select={"lev": 850}), archive())
    same(data.normalise(levels.isel(lev=[0])), archive())
    with pytest.raises(ValueError, match="cannot select lev = 700: there are 850.0, 500.0"):
        data.normalise(levels, select={"lev": 700})
    with pytest.raises(ValueError, match="cannot select plev.*dimensions are"):
        data.normalise(levels, select={"plev": 700})
    with pytest.raises(ValueError, match="dimension band .*rename it to 'sample'"):
        data.normalise(levels.rename(lev="band"))


def test_several_files_are_joined(tmp_path):
    paths = []
    for k in range(3):
        paths.append(tmp_path / f"{k}.nc")
        part = archive(seed=k)
        part = part.assign_coords(time=part.time + np.timedelta64(10 * k, "D"))
        part.to_netcdf(paths[-1], engine="h5netcdf")
    found = data.open(paths)
    assert found.u.shape == (15, 7, 12)
    np.testing.assert_array_equal(found.u.values[5:10], archive(seed=1).u.values)
    with pytest.raises(ValueError, match="at least one file"):
        data.open([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_vars("v"), "variables differ: u v, and u;"),
        (lambda ds: ds.assign(u=ds.u.assign_attrs(units="knot")), "u in 'm s-1', .* u in 'knot'"),
        (
            lambda ds: ds.drop_vars("time").rename(time="member"),
            "dimensions differ: time .*, and sample ",
        ),
        (lambda ds: ds.isel(lat=slice(None, None, -1)), r"grids differ: \[-90\..*, and \[ 90\."),
    ],
)
def test_files_that_differ_are_not_joined(tmp_path, change, message):
    paths = [tmp_path / "a.nc", tmp_path / "b.nc"]
    archive().to_netcdf(paths[0], engine="h5netcdf")
    change(archive()).to_netcdf(paths[1], engine="h5netcdf")
    with pytest.raises(ValueError, match=rf"cannot join \S*a\.nc and \S*b\.nc, .*{message}"):
        data.open(paths)


def test_files_of_other_orderings_are_not_joined(tmp_path):
    for nest, name in ((False, "ring"), (True, "nested")):
        healpix(ordering=name).to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        healpy.write_map(tmp_path / f"{name}.fits", np.arange(192.0), nest=nest, dtype=np.float32)
    for suffix in ("nc", "fits"):
        with pytest.raises(ValueError, match="nside 4, ring, and HEALPix of nside 4, nested"):
            data.open([tmp_path / f"ring.{suffix}", tmp_path / f"nested.{suffix}"])


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "standard"])
def test_calendars(tmp_path, calendar):
    pytest.importorskip("cftime")
    ds = archive()
    dates = xr.date_range("2001-01-28", periods=5, calendar=calendar, use_cftime=True)
    ds.assign_coords(time=dates).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    time = data.open(tmp_path / "a.nc").time
    assert time.dt.month.values.tolist() == ([1, 1, 1, 2, 2] if calendar == "360_day" else
                                             [1, 1, 1, 1, 2])  # fmt: skip


def test_times_that_are_no_dates_stay_numbers_with_a_warning(tmp_path):
    ds = archive().assign_coords(time=("time", np.arange(5.0), {"units": "moons since the flood"}))
    ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.warns(UserWarning, match="stay numbers"):
        found = data.open(tmp_path / "a.nc")
    assert found.time.values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("attrs", "ordering"),
    [
        ({"healpix_order": "nest"}, "nested"),
        ({"ORDERING": "RING"}, "ring"),
        ({"indexing_scheme": "nested"}, "nested"),
    ],
)
def test_healpix_in_netcdf(tmp_path, attrs, ordering):
    ds = healpix(**attrs)
    ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    found = data.open(tmp_path / "a.nc")
    grid = data.grid_of(found)
    assert isinstance(grid, HEALPix)
    assert (grid.nside, grid.ordering) == (4, ordering)
    np.testing.assert_array_equal(found.t.values, ds.t.values)
    xr.testing.assert_identical(data.normalise(found).compute(), found.compute())


def test_healpix_ordering_from_the_grid_mapping():
    ds = healpix().rename(cell="values")
    ds.t.attrs["grid_mapping"] = "mapping"
    ds["mapping"] = ((), 0, {"grid_mapping_name": "healpix", "healpix_order": "nested"})
    grid = data.grid_of(data.normalise(ds))
    assert isinstance(grid, HEALPix)
    assert grid.ordering == "nested"


def test_healpix_errors():
    with pytest.raises(ValueError, match="do not say whether.*ordering='ring'"):
        data.normalise(healpix())
    with pytest.raises(ValueError, match="say 'spiral'"):
        data.normalise(healpix(ordering="spiral"))
    found = data.normalise(healpix(), ordering="nested")
    assert found.crs.attrs["healpix_order"] == "nested"
    with pytest.raises(ValueError, match="100 values, which is not 12 nside²"):
        data.normalise(healpix().isel(cell=slice(100)), ordering="ring")
    shuffled = healpix(ordering="ring").assign_coords(cell=np.arange(192)[::-1])
    with pytest.raises(ValueError, match="sortby"):
        data.normalise(shuffled)
    odd = xr.Dataset({"t": ("cell", np.zeros(12 * 9))}, attrs={"ordering": "nested"})
    with pytest.raises(ValueError, match="power of two"):
        data.grid_of(data.normalise(odd))


@pytest.mark.parametrize("nest", [False, True])
@pytest.mark.parametrize("name", ["sky.fits", "sky.fits.gz"])
def test_healpix_fits(tmp_path, nest, name):
    maps = np.random.default_rng(3).standard_normal((3, 192)).astype(np.float32)
    maps[1, 5] = healpy.UNSEEN
    healpy.write_map(
        tmp_path / name, maps, nest=nest, dtype=np.float32,
        column_names=["I", "Q", "U"], column_units=["uK", "uK", None],
    )  # fmt: skip
    found = data.open(tmp_path / name)
    assert list(found.data_vars) == ["I", "Q", "U"]
    assert found.I.attrs["units"] == "uK"
    assert found.I.dims == ("sample", "cell")
    grid = data.grid_of(found)
    assert isinstance(grid, HEALPix)
    assert grid.ordering == ("nested" if nest else "ring")
    np.testing.assert_array_equal(found.I.values[0], maps[0])
    assert np.isnan(found.Q.values[0, 5])
    assert np.isfinite(np.delete(found.Q.values[0], 5)).all()
    assert data.open([tmp_path / name] * 2, "I").sizes["sample"] == 2


def test_partial_sky_fits(tmp_path):
    sky = np.full(3072, healpy.UNSEEN)
    sky[1010:1020] = np.arange(10)
    healpy.write_map(tmp_path / "a.fits", sky, partial=True, dtype=np.float32)
    values = data.open(tmp_path / "a.fits").to_dataarray().values.squeeze()
    assert np.isnan(values).sum() == 3062
    np.testing.assert_array_equal(values[1010:1020], np.arange(10))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*nowhere.nc"):
        data.open(tmp_path / "nowhere.nc")
    with pytest.raises(FileNotFoundError):
        data.read_coefficients(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("kind", ["h5netcdf", "scipy", "fits"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95])
def test_truncated_file(tmp_path, kind, fraction):
    path = tmp_path / "whole"
    if kind == "fits":
        healpy.write_map(str(path), np.zeros(12 * 64**2), dtype=np.float32)
    else:
        archive(200).to_netcdf(path, engine=kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError, match="cannot read .*truncated or corrupted"):
        data.open(path)


def test_corrupted_file(tmp_path):
    path = tmp_path / "a.nc"
    archive(200).to_netcdf(path, engine="h5netcdf")
    content = bytearray(path.read_bytes())
    content[8:400] = b"\x55" * 392
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read .*NetCDF 4.*corrupted"):
        data.open(path)


def test_corrupted_values_are_found_when_read(tmp_path):
    path = tmp_path / "a.nc"
    ds = archive(200)
    ds.to_netcdf(path, engine="h5netcdf", encoding={"u": {"zlib": True}})
    content = bytearray(path.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 2000] = b"\x55" * 2000
    path.write_bytes(content)
    with pytest.raises(OSError, match="cannot read the values of u: the file is damaged"):
        data.Encoder.fit(data.open(path), "u", lmax=2)


def test_unknown_formats(tmp_path):
    path = tmp_path / "a.nc"
    path.write_text("hello, world")
    with pytest.raises(ValueError, match="starts with b'hello, w': expected NetCDF"):
        data.open(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        data.open(path)
    with pytest.raises(ValueError, match="no Zarr store"):
        data.open(tmp_path)
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read .* as Zarr"):
        data.open(tmp_path)


def test_grib_needs_cfgrib(tmp_path, monkeypatch):
    path = tmp_path / "a.grib"
    path.write_bytes(b"GRIB" + bytes(100))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cfgrib" else found(name)
    )
    with pytest.raises(ImportError, match=r"pip install 'spherediff\[grib\]'"):
        data.open(path)


def test_grib(tmp_path):
    eccodes = pytest.importorskip("eccodes")
    pytest.importorskip("cfgrib")
    path = tmp_path / "a.grib"
    values = write_grib(eccodes, path)
    found = data.open(path)
    (name,) = found.data_vars
    assert found[name].dims == ("time", "latitude", "longitude")
    np.testing.assert_allclose(found[name].values, values, atol=0.01)
    assert found[name].attrs["units"] == "K"
    assert data.grid_of(found).max_lmax == 8


def write_grib(eccodes, path: Path) -> np.ndarray:
    """Two days of 2 m temperature on a 20-degree grid."""
    values = 280 + np.random.default_rng(4).standard_normal((2, 10, 18))
    with path.open("wb") as file:
        for day, field in enumerate(values):
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            keys = {
                "Ni": 18, "Nj": 10, "shortName": "2t", "dataDate": 20010101 + day,
                "latitudeOfFirstGridPointInDegrees": 90.0,
                "latitudeOfLastGridPointInDegrees": -90.0,
                "longitudeOfFirstGridPointInDegrees": 0.0,
                "longitudeOfLastGridPointInDegrees": 340.0,
                "iDirectionIncrementInDegrees": 20.0, "jDirectionIncrementInDegrees": 20.0,
                "bitsPerValue": 16,
            }  # fmt: skip
            for key, value in keys.items():
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, field.ravel())
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)
    return values


def test_wrong_variable_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no variable w; there are u\(time, lat, lon\), v\("):
        data.normalise(archive(), ["u", "w"])
    with pytest.raises(ValueError, match="no variable"):
        data.normalise(archive(), [])
    with pytest.raises(ValueError, match=r"s\(time\): no dimension is recognised"):
        data.normalise(archive().assign(s=("time", np.zeros(5))), "s")


def test_no_sphere():
    with pytest.raises(ValueError, match=r"no variable lies on a sphere; there are a\(i, j\).*ren"):
        data.normalise(xr.Dataset({"a": (("i", "j"), np.zeros((3, 4)))}))
    with pytest.raises(ValueError, match="no coordinate values"):
        data.normalise(xr.Dataset({"a": (("lat", "lon"), np.zeros((3, 4)))}))
    with pytest.raises(ValueError, match="there are no variables"):
        data.normalise(xr.Dataset())
    curvilinear = xr.Dataset(
        {"a": (("y", "x"), np.zeros((3, 4)))}, {"lat": (("y", "x"), np.zeros((3, 4)))}
    )
    with pytest.raises(ValueError, match="curvilinear"):
        data.normalise(curvilinear)


def test_different_grids_or_samples():
    ds = archive()
    other = ds.u.rename(lat="lat_2").assign_coords(lat_2=("lat_2", LATITUDE, {"axis": "Y"}))
    mixed = ds.assign(w=other)
    with pytest.raises(ValueError, match="different grids .*w on lat_2 × lon.*variables="):
        data.normalise(mixed)
    assert list(data.normalise(mixed, "w").data_vars) == ["w"]
    static = ds.assign(height=ds.u.isel(time=0, drop=True))
    assert list(data.normalise(static).data_vars) == ["u", "v"]
    with pytest.raises(ValueError, match="different samples"):
        data.normalise(static, ["u", "height"])


def test_fill():
    ds = archive()
    ds.u.values[1, 2, 3] = np.nan
    ds.u.values[2, 0, 0] = np.inf
    ds.v.values[:, 4, 4] = np.nan
    normal = data.normalise(ds)
    by_number = data.fill(normal, 7.0)
    assert by_number.u.values[1, 2, 3] == by_number.u.values[2, 0, 0] == 7
    assert by_number.u.attrs == normal.u.attrs
    assert np.isfinite(by_number.to_dataarray().values).all()
    mean = data.fill(normal, "mean")
    others = np.delete(ds.u.values[:, 2, 3], 1)
    assert mean.u.values[1, 2, 3] == pytest.approx(others.mean(), rel=1e-5)
    weights = data.grid_of(normal).area_weights.numpy().copy()
    weights[4, 4] = 0
    point_means = np.nan_to_num(ds.v.values.mean(0, dtype=np.float64))
    expected = (weights * point_means).sum() / weights.sum()
    np.testing.assert_allclose(mean.v.values[:, 4, 4], expected, rtol=1e-5)
    assert mean.v.attrs == normal.v.attrs
    for wrong in ("median", np.nan):
        with pytest.raises(ValueError, match="to fill with"):
            data.fill(normal, wrong)
