"""Encoding and decoding: exact on band-limited maps, lazily, and back from the stored state."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from safetensors.torch import load, save

from spherediff import data, harmonics
from spherediff.data import Constant, Encoder, Harmonics, Log1p, Monthly, NoClimatology
from spherediff.grids import GaussLegendre, Grid, HEALPix, LatLon, Points

LMAX = 7
REGULAR = LatLon(np.linspace(-90, 90, 19), 20 + 15.0 * np.arange(24))
GRIDS = [REGULAR, GaussLegendre(9), HEALPix(4), HEALPix(4, "nested")]


def coefficients(count: int, lmax: int = LMAX, channels: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, channels, (lmax + 1) ** 2, generator=generator, dtype=torch.float64)
    a = a / (1 + harmonics.degrees(lmax)) * torch.tensor([3.0, 0.02])[:channels, None]
    a[..., 0] += torch.tensor([280.0, -1.0])[:channels] * math.sqrt(4 * math.pi)
    return a


def archive(grid: Grid, count: int = 36, **options: int) -> xr.Dataset:
    """Maps of random band-limited fields of two variables, float64."""
    values = grid.synthesis(coefficients(count, **options)).numpy()
    names = ("t", "q")[: values.shape[1]]
    units = {"t": "K", "q": "kg kg-1"}
    dates = xr.Variable("time", pd.date_range("1990-01-15", periods=count, freq="MS"))
    if isinstance(grid, HEALPix):
        dims: tuple[str, ...] = ("time", "cell")
        coords = {"time": dates}
    else:
        dims = ("time", "lat", "lon")
        coords = {"time": dates, "lat": grid.latitude, "lon": grid.longitude}
    fields = {n: (dims, values[:, c], {"units": units[n]}) for c, n in enumerate(names)}
    attrs = {"ordering": grid.ordering} if isinstance(grid, HEALPix) else {}
    return xr.Dataset(fields, coords, attrs)


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("climatology", [NoClimatology(), Constant(), Monthly(), Harmonics(2)])
def test_round_trip(grid, climatology):
    ds = archive(grid)
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=climatology)
    x = encoder.encode(ds, torch.float64)
    assert x.shape == (36, 2, 64)
    time = ds.time if climatology.columns() > 1 else None
    back = encoder.decode(x, grid, time)
    for name in ("t", "q"):  # decoded maps are float32
        np.testing.assert_allclose(back[name].values, ds[name].values, rtol=3e-7, atol=1e-8)
        assert back[name].attrs["units"] == ds[name].attrs["units"]
    np.testing.assert_allclose(encoder.restore(x, time), coefficients(36), rtol=1e-9, atol=1e-9)


def test_standardised_anomalies_against_numpy():
    ds = archive(REGULAR)
    a = coefficients(36).numpy()
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=Monthly())
    anomalies = np.empty_like(a)
    month = ds.time.dt.month.values
    for m in range(1, 13):
        anomalies[month == m] = a[month == m] - a[month == m].mean(0)
    scale = np.sqrt((anomalies**2).sum(-1).mean(0) / (4 * math.pi))
    np.testing.assert_allclose(encoder.scale, scale, rtol=1e-8)
    x = encoder.encode(ds, torch.float64).numpy()
    np.testing.assert_allclose(x, anomalies / scale[:, None], atol=1e-7)
    assert encoder.encode(ds).dtype == torch.float32
    np.testing.assert_allclose(encoder.encode(ds), x, atol=1e-6)
    # The area mean of the pointwise variance is 1 by construction.
    maps = REGULAR.synthesis(torch.from_numpy(x)).square().mean(0)
    area = REGULAR.area_weights / (4 * math.pi)
    np.testing.assert_allclose((maps * area).sum((-2, -1)), 1, rtol=1e-6)


def test_fitted_to_training_samples_only():
    ds = data.normalise(archive(REGULAR))
    train = ds.isel(time=slice(0, 24))
    encoder = Encoder.fit(train, lmax=LMAX)
    np.testing.assert_allclose(
        encoder.cycle[0], coefficients(36)[:24].mean(0), rtol=1e-8, atol=1e-8
    )
    x = encoder.encode(ds, torch.float64)
    assert x.shape[0] == 36
    torch.testing.assert_close(x[:24], encoder.encode(train, torch.float64))


@pytest.mark.parametrize("climatology", [NoClimatology(), Constant(), Harmonics(2), Monthly()])
def test_training_samples_get_back_the_variance_that_the_cycle_took(climatology):
    count, ds = 24, archive(REGULAR, 24)
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=climatology)
    x = encoder.encode_training(ds, torch.float64)
    std = torch.tensor([3.0, 0.02])[:, None] / (1 + harmonics.degrees(LMAX))
    variance = (encoder.anomalies(x) / std).var(0)
    freedom = (count - max(1, climatology.columns())) * variance.numel()
    assert abs(float(variance.mean()) - 1) < 4 * math.sqrt(2 / freedom)  # false alarms: 6e-5 each
    plain = encoder.encode(ds, torch.float64)
    torch.testing.assert_close(x / x[0, 0, 0], plain / plain[0, 0, 0])


def test_variables_are_chosen_and_ordered():
    ds = archive(REGULAR)
    both = Encoder.fit(ds, ["q", "t"], lmax=LMAX)
    assert both.names == ("q", "t")
    assert both.units == ("kg kg-1", "K")
    one = Encoder.fit(ds, "q", lmax=LMAX)
    torch.testing.assert_close(one.encode(ds)[:, 0], both.encode(ds)[:, 0])


@pytest.mark.parametrize("chunk", [1, 5, 36])
def test_chunks_do_not_matter(chunk):
    ds = archive(REGULAR)
    whole = Encoder.fit(ds, lmax=LMAX, climatology=Harmonics(1))
    chunked = ds.chunk(time=chunk)
    encoder = Encoder.fit(chunked, lmax=LMAX, climatology=Harmonics(1))
    torch.testing.assert_close(encoder.scale, whole.scale, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        encoder.encode(chunked, torch.float64), whole.encode(ds, torch.float64)
    )


def test_maps_are_never_all_in_memory(tmp_path, monkeypatch):
    """Every read asks for at most one chunk of one variable."""
    archive(REGULAR).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    ds = data.open(tmp_path / "a.nc").chunk(time=4)
    sizes = []
    values = xr.DataArray.values.fget
    assert values is not None
    monkeypatch.setattr(
        xr.DataArray, "values", property(lambda da: (sizes.append(da.size), values(da))[1])
    )
    Encoder.fit(ds, lmax=LMAX).encode(ds)
    assert max(sizes) == 4 * 19 * 24


def test_other_grid_same_coefficients():
    encoder = Encoder.fit(archive(REGULAR), lmax=LMAX)
    torch.testing.assert_close(
        encoder.encode(archive(GaussLegendre(8)), torch.float64),
        encoder.encode(archive(HEALPix(8)), torch.float64),
        rtol=1e-6,
        atol=1e-7,
    )


def rain(count: int = 24) -> xr.Dataset:
    """exp of a smooth field: not band-limited, above 0."""
    ds = archive(REGULAR, count, lmax=3, channels=1)
    values = 2 * np.exp(0.5 * (ds.t.values - 280))
    return ds.assign(pr=(ds.t.dims, values, {"units": "mm day-1"}))[["pr"]]


def test_transform_acts_before_the_analysis():
    ds = rain()
    encoder = Encoder.fit(ds, lmax=8, transform={"pr": Log1p(0.5)})
    expected = REGULAR.analysis(torch.log1p(torch.from_numpy(ds.pr.values) / 0.5), 8)
    restored = encoder.restore(encoder.encode(ds, torch.float64))
    torch.testing.assert_close(restored[:, 0], expected, rtol=1e-9, atol=1e-9)
    decoded = encoder.decode(encoder.encode(ds, torch.float64), REGULAR)
    expected = 0.5 * np.expm1(np.maximum(REGULAR.synthesis(expected).numpy(), 0))
    np.testing.assert_allclose(decoded.pr.values, expected, rtol=1e-5, atol=1e-6)
    assert decoded.pr.attrs["units"] == "mm day-1"


def test_quantile_is_fitted_and_decoded_values_stay_in_range():
    ds = rain()
    encoder = Encoder.fit(ds, lmax=8, transform={"pr": data.Quantile(65, lower=0.0)})
    fitted = encoder.transforms[0]
    assert isinstance(fitted, data.Quantile)
    assert len(fitted.x) > 30
    scores = fitted.forward(ds.pr.values)
    area = REGULAR.area_weights.numpy() / (4 * math.pi)
    assert abs((scores * area).sum((1, 2)).mean()) < 0.02
    assert ((scores**2 * area).sum((1, 2)).mean()) == pytest.approx(1, abs=0.05)
    wild = 10 * torch.randn(4, 1, 81, generator=torch.Generator().manual_seed(0))
    assert float(encoder.decode(wild, REGULAR).pr.min()) == 0


def test_truncated_variance(caplog):
    """Coefficients beyond lmax are counted exactly."""
    ds = archive(GaussLegendre(11), 20)
    a = coefficients(20).numpy()
    power = a.var(axis=0)
    beyond = power[:, 25:].sum(-1) / power.sum(-1)
    with caplog.at_level(logging.INFO, logger="spherediff.data"):
        encoder = Encoder.fit(ds, lmax=4)
    np.testing.assert_allclose(encoder.truncated, beyond, rtol=1e-6)
    assert {r.levelname for r in caplog.records} == {"WARNING"}
    assert "of the variance is beyond lmax = 4" in caplog.text
    assert float(Encoder.fit(ds, lmax=LMAX).truncated.max()) < 1e-12


@pytest.mark.parametrize("climatology", [NoClimatology(), Constant(), Monthly(), Harmonics(2)])
def test_state_round_trip_is_exact(climatology):
    ds = archive(REGULAR)
    ds["q"] = ds.q + 3  # above 0, for the quantiles' sake
    transform = {"t": data.Log1p(100.0), "q": data.Quantile(33, lower=0.0)}
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=climatology, transform=transform)
    config, tensors = encoder.state()
    again = Encoder.from_state(json.loads(json.dumps(config)), load(save(tensors)))
    for name in ("names", "attrs", "transforms", "lmax", "climatology", "units"):
        assert getattr(again, name) == getattr(encoder, name)
    x = encoder.encode(ds)
    assert torch.equal(again.encode(ds), x)
    maps = encoder.decode(x, HEALPix(4), ds.time)
    xr.testing.assert_identical(again.decode(x, HEALPix(4), ds.time), maps)


def test_state_errors():
    config, tensors = Encoder.fit(archive(REGULAR), lmax=3).state()
    with pytest.raises(ValueError, match="format 2, got 3"):
        Encoder.from_state(config | {"format": 3}, tensors)
    with pytest.raises(ValueError, match="lacks lmax, scale"):
        Encoder.from_state(
            {k: v for k, v in config.items() if k != "lmax"},
            {k: v for k, v in tensors.items() if k != "scale"},
        )
    with pytest.raises(ValueError, match=r"expected a climatology of shape \(1, 2, 25\)"):
        Encoder.from_state(config | {"lmax": 4}, tensors)


def test_decode_metadata():
    encoder = Encoder.fit(archive(REGULAR), lmax=LMAX)
    x = torch.zeros(3, 2, 64)
    maps = encoder.decode(x, GaussLegendre(7))
    assert maps.t.dims == ("sample", "latitude", "longitude")
    assert maps.latitude.attrs["units"] == "degrees_north"
    assert maps.longitude.attrs["standard_name"] == "longitude"
    assert maps.attrs["Conventions"].startswith("CF")
    assert maps.t.dtype == np.float32
    pixels = encoder.decode(x, HEALPix(8, "nested"))
    assert pixels.t.dims == ("sample", "cell")
    assert pixels.crs.attrs["healpix_nside"] == 8
    assert pixels.t.attrs["grid_mapping"] == "crs"
    grid = data.grid_of(data.normalise(pixels))
    assert isinstance(grid, HEALPix)
    assert grid.ordering == "nested"
    stations = encoder.decode(x, Points([10.0, 20.0], [5.0, 6.0]))
    assert stations.t.dims == ("sample", "point")
    assert stations.latitude.values.tolist() == [10, 20]


def test_decode_dates():
    ds = archive(REGULAR)
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=Monthly())
    x = torch.zeros(12, 2, 64)
    along = encoder.decode(x, REGULAR, ds.time[:12])
    assert along.t.dims[0] == "time"
    texts = [str(t)[:10] for t in ds.time.values[:12]]
    for time in (texts, ds.time.values[:12], list(pd.to_datetime(texts).to_pydatetime())):
        maps = encoder.decode(x, REGULAR, time)
        assert maps.t.dims[0] == "sample"
        np.testing.assert_array_equal(maps.t.values, along.t.values)
        assert maps.time.dt.month.values.tolist() == ds.time.dt.month.values[:12].tolist()
    july = encoder.decode(x, REGULAR, "2050-07-16")
    month = list(ds.time.dt.month.values[:12]).index(7)
    np.testing.assert_array_equal(july.t.values[3], along.t.values[month])
    with pytest.raises(ValueError, match="Monthly needs the date of every sample"):
        encoder.decode(x, REGULAR)
    with pytest.raises(ValueError, match="one date for each of 12 samples"):
        encoder.decode(x, REGULAR, texts[:5])


def test_decode_shape():
    encoder = Encoder.fit(archive(REGULAR), lmax=LMAX)
    for shape in ((2, 64), (3, 1, 64), (3, 2, 49)):
        with pytest.raises(ValueError, match=r"expected anomalies of shape \(samples, 2, 64\)"):
            encoder.decode(torch.zeros(shape), REGULAR)


def test_missing_and_infinite_values():
    ds = archive(REGULAR)
    ds.q.values[7, 3, 4:6] = np.nan
    ds.q.values[20, 0, 0] = np.inf
    message = (
        "q has 2 missing and 1 infinite values among 16416 .*in 2 of 36 samples, first in sample 7"
        ".*spherediff.data.fill"
    )
    for transform in ({}, {"q": data.Quantile()}):
        with pytest.raises(ValueError, match=message):
            Encoder.fit(ds, lmax=LMAX, transform=transform)
    filled = data.fill(data.normalise(ds), "mean")
    assert torch.isfinite(Encoder.fit(filled, lmax=LMAX).encode(filled)).all()
    with pytest.raises(ValueError, match=message):
        Encoder.fit(filled, lmax=LMAX).encode(ds)


@pytest.mark.parametrize(
    ("value", "what"), [(0.0, "t is zero everywhere"), (281.3, "t is constant")]
)
def test_zero_or_constant_field(value, what):
    ds = archive(REGULAR)
    ds["t"] = ds.t * 0 + value
    with pytest.raises(ValueError, match=what):
        Encoder.fit(ds, lmax=LMAX)


def test_constant_field_without_climatology_and_quantile():
    ds = archive(REGULAR)
    ds["q"] = ds.q * 0 + 1
    with pytest.raises(ValueError, match="q: Quantile cannot be fitted"):
        Encoder.fit(ds, lmax=LMAX, transform={"q": data.Quantile()})


def test_other_bad_input():
    ds = archive(REGULAR)
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        Encoder.fit(ds.isel(time=[0]), lmax=3)
    with pytest.raises(ValueError, match="lmax ≤ 11, the largest that LatLon.*supports, got 12"):
        Encoder.fit(ds, lmax=12)
    with pytest.raises(ValueError, match="lmax ≤ 8, the largest that HEALPix.*got 9"):
        Encoder.fit(archive(HEALPix(4)), lmax=9)
    with pytest.raises(ValueError, match="no variable w; there are t"):
        Encoder.fit(ds, ["w"], lmax=3)
    with pytest.raises(ValueError, match="transform is given for w, but the variables are t, q"):
        Encoder.fit(ds, lmax=3, transform={"w": Log1p()})
    with pytest.raises(ValueError, match="q: Log1p needs values that are not negative"):
        Encoder.fit(ds, lmax=3, transform={"q": Log1p()})
    with pytest.raises(ValueError, match="do not determine the 12"):
        Encoder.fit(ds.isel(time=slice(6)), lmax=3, climatology=Monthly())
    with pytest.raises(ValueError, match="Monthly needs the date"):
        Encoder.fit(ds.rename(time="year").drop_vars("year"), lmax=3, climatology=Monthly())
    encoder = Encoder.fit(ds, lmax=3)
    with pytest.raises(ValueError, match="no variable q; there are t"):
        encoder.encode(ds[["t"]])
    celsius = ds.assign(t=ds.t.assign_attrs(units="degC"))
    with pytest.raises(ValueError, match="t is in 'degC', but the encoder was fitted in 'K'"):
        encoder.encode(celsius)
    with pytest.raises(ValueError, match="largest that"):
        encoder.encode(archive(LatLon([-45.0, 45.0], [0.0, 90.0, 180.0, 270.0]), 3))


@pytest.mark.parametrize(
    ("part", "what"),
    [({"lat": slice(0, 9)}, "latitudes"), ({"lon": slice(0, 12)}, "longitudes")],
)
def test_regional_and_irregular_grids(part, what):
    ds = archive(REGULAR)
    with pytest.raises(ValueError, match=what):
        Encoder.fit(ds.isel(part), lmax=2)
    irregular = ds.isel(lat=[0, 1, 2, 4, 7, 9, 11, 14, 16, 17, 18])
    with pytest.raises(ValueError, match="not those of a regular global grid"):
        Encoder.fit(irregular, lmax=2)


def test_local_amplitude_is_divided_out_and_multiplied_back():
    ds = archive(REGULAR)
    east = 1 + 0.8 * np.cos(np.radians(ds.lon))  # ten times more variable on one side
    ds["t"] = (ds.t - ds.t.mean("time")) * east + ds.t.mean("time")
    plain, local = (Encoder.fit(ds, lmax=LMAX, amplitude_degree=k) for k in (0, 4))
    x = local.encode(ds, torch.float64)
    torch.testing.assert_close(local.restore(x), plain.restore(plain.encode(ds, torch.float64)))
    torch.testing.assert_close(local.standardise(local.anomalies(x)), x, rtol=1e-8, atol=1e-8)
    assert x.square().sum(-1).mean(0).tolist() == pytest.approx([4 * math.pi] * 2)

    def unevenness(encoder):
        maps = GaussLegendre(LMAX).synthesis(encoder.encode(ds, torch.float64))
        return maps.std(0).log().std(dim=(-2, -1))

    assert unevenness(local)[0] < 0.4 * unevenness(plain)[0]
