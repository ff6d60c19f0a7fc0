"""Files that are written whole, with units and provenance, and read back by us and by others."""

from __future__ import annotations

import healpy
import numpy as np
import pytest
import torch
import xarray as xr
from astropy.io import fits

from spherediff import data
from spherediff.data import Encoder
from spherediff.grids import GaussLegendre, HEALPix

PROVENANCE = {"command": "spherediff generate – 3", "version": "0.1.0", "seed": 7, "quick": True}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    winds = data.load("navy-winds").isel(time=slice(0, 12))
    return Encoder.fit(winds, lmax=7, climatology=data.Constant())


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("grid", [GaussLegendre(7), HEALPix(4, "nested")], ids=repr)
def test_maps_come_back(tmp_path, encoder, x, suffix, grid):
    maps = encoder.decode(x, grid, ["2001-01-15", "2001-01-15", "2001-02-15"])
    path = data.write(maps, tmp_path / "new" / f"a{suffix}", PROVENANCE)
    found = data.open(path)
    assert found.UWND.dims == maps.UWND.dims
    np.testing.assert_array_equal(found.UWND.values, maps.UWND.values)
    np.testing.assert_array_equal(found.time.values, maps.time.values)
    assert found.UWND.attrs == maps.UWND.attrs
    assert found.attrs["seed"] == 7
    assert found.attrs["quick"] == "True"
    assert found.attrs["command"] == PROVENANCE["command"]
    torch.testing.assert_close(encoder.encode(found), x, rtol=1e-4, atol=1e-5)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_netcdf_is_cf_and_compressed(tmp_path, encoder):
    maps = encoder.decode(torch.zeros(20, 2, 64), GaussLegendre(31))
    path = data.write(maps, tmp_path / "a.nc", PROVENANCE)
    assert path.stat().st_size < maps.nbytes / 3
    raw = xr.open_dataset(path, engine="h5netcdf")
    assert raw.attrs["Conventions"] == "CF-1.10"
    assert raw.UWND.dtype == np.float32
    assert raw.UWND.attrs["standard_name"] == "eastward_wind"
    assert "_FillValue" not in raw.latitude.encoding
    raw.close()


def test_rewriting_a_bundled_archive_does_not_round_again(tmp_path):
    winds = data.load("navy-winds").isel(time=slice(0, 2)) * 1.01
    data.write(winds, tmp_path / "a.nc")
    found = data.open(tmp_path / "a.nc")
    np.testing.assert_array_equal(found.UWND.values, winds.UWND.values)


@pytest.mark.parametrize("grid", [HEALPix(4), HEALPix(8, "nested"), HEALPix(12)], ids=repr)
def test_fits_is_read_by_healpy(tmp_path, encoder, x, grid):
    maps = encoder.decode(x, grid)
    path = data.write(maps, tmp_path / "a.fits", PROVENANCE)
    found, header = healpy.read_map(path, field=None, nest=None, h=True, dtype=np.float32)
    assert found.shape == (6, *grid.shape)
    np.testing.assert_array_equal(found[2], maps.UWND.values[1])
    np.testing.assert_array_equal(found[5], maps.VWND.values[2])
    header = dict(header)
    assert header["ORDERING"] == ("NESTED" if grid.ordering == "nested" else "RING")
    assert header["TTYPE3"] == "UWND_2"
    assert header["TUNIT3"] == "m s-1"
    history = str(fits.getheader(path, 1)["HISTORY"])
    assert "seed: 7" in history
    assert "version: 0.1.0" in history
    assert "command: spherediff generate ? 3" in history
    ours = data.open(path)
    np.testing.assert_array_equal(ours.VWND_3.values[0], maps.VWND.values[2])


def test_fits_of_one_sample_and_of_missing_values(tmp_path, encoder, x):
    maps = encoder.decode(x, HEALPix(4)).isel(sample=0)
    maps.UWND.values[5] = np.nan
    found = data.open(data.write(maps, tmp_path / "a.fits"))
    assert list(found.data_vars) == ["UWND", "VWND"]
    assert np.isnan(found.UWND.values[0]).sum() == 1


def test_coefficients(tmp_path, x):
    path = data.write(x, tmp_path / "a.safetensors", PROVENANCE)
    found, attrs = data.read_coefficients(path)
    assert torch.equal(found, x)
    assert attrs == {key: str(value) for key, value in PROVENANCE.items()}
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated or corrupted"):
        data.read_coefficients(path)


def test_overwriting(tmp_path, encoder, x):
    for suffix in (".nc", ".zarr", ".fits"):
        for k in (0, 1):
            maps = encoder.decode(x[k : k + 1], HEALPix(4))
            path = data.write(maps, tmp_path / f"a{suffix}")
            found = data.open(path).UWND.values
            np.testing.assert_array_equal(found, maps.UWND.values)


def test_failure_leaves_the_old_file(tmp_path, encoder, x):
    path = data.write(encoder.decode(x, HEALPix(4)), tmp_path / "a.fits")
    before = path.read_bytes()
    too_many = encoder.decode(torch.zeros(500, 2, 64), HEALPix(1))
    with pytest.raises(ValueError, match="500 samples of 2 variables do not fit into the 999"):
        data.write(too_many, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.fits"]


def test_errors(tmp_path, encoder, x):
    maps = encoder.decode(x, GaussLegendre(7))
    with pytest.raises(ValueError, match="maps are written to .nc, .zarr, .fits, got"):
        data.write(maps, tmp_path / "a.csv")
    with pytest.raises(ValueError, match="FITS files hold HEALPix maps"):
        data.write(maps, tmp_path / "a.fits")
    with pytest.raises(ValueError, match="coefficients are written to .safetensors"):
        data.write(x, tmp_path / "a.nc")
    with pytest.raises(ValueError, match="not a square"):
        data.write(x[..., :60], tmp_path / "a.safetensors")
    with pytest.raises(TypeError, match="xarray.Dataset or a torch.Tensor, got ndarray"):
        data.write(np.zeros(3), tmp_path / "a.nc")  # type: ignore[arg-type]
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "precious").write_text("")
    with pytest.raises(ValueError, match="no Zarr store, so it is not replaced"):
        data.write(maps, tmp_path / "b.zarr")
    (tmp_path / "c.zarr").write_text("")
    with pytest.raises(ValueError, match="no Zarr store, so it is not replaced"):
        data.write(maps, tmp_path / "c.zarr")
    (tmp_path / "d.nc").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder; choose another"):
        data.write(maps, tmp_path / "d.nc")
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot write"):
        data.write(maps, tmp_path / "file" / "a.nc")
