"""Pairs of variables that are vector fields: encoded by their divergent and rotational parts."""

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

from spherediff import data, harmonics, vector
from spherediff.data import Constant, Encoder, Log1p, Monthly, NoClimatology, Quantile
from spherediff.grids import GaussLegendre, Grid, HEALPix, LatLon, Points
from spherediff.model import Model
from spherediff.nn import OperatorConfig
from spherediff.vector import VectorTransform

LMAX = 7
REGULAR = LatLon(np.linspace(-90, 90, 19), 20 + 15.0 * np.arange(24))
GRIDS = [REGULAR, GaussLegendre(9), HEALPix(4), HEALPix(4, "nested")]
WIND = (("u", "v"),)


def coefficients(count: int, lmax: int = LMAX) -> torch.Tensor:
    """Of t, E and B: divergence a third of the rotation, beside a mean circulation."""
    generator = torch.Generator().manual_seed(lmax)
    a = torch.randn(count, 3, (lmax + 1) ** 2, generator=generator, dtype=torch.float64)
    a = a / (1 + harmonics.degrees(lmax)) * torch.tensor([3.0, 2.0, 6.0])[:, None]
    a[:, 1:, 0] = 0
    a[:, 2, 2] -= 20
    a[:, 0, 0] += 280 * math.sqrt(4 * math.pi)
    return a


def archive(grid: Grid, count: int = 36, lmax: int = LMAX) -> xr.Dataset:
    """Maps of u, t and v, in that order."""
    a = coefficients(count, lmax)
    t = grid.synthesis(a[:, 0]).numpy()
    u, v = VectorTransform(grid).synthesis(a[:, 1:]).numpy().swapaxes(0, 1)
    dates = xr.Variable("time", pd.date_range("1990-01-15", periods=count, freq="MS"))
    if isinstance(grid, HEALPix):
        dims: tuple[str, ...] = ("time", "cell")
        coords = {"time": dates}
    else:
        dims = ("time", "lat", "lon")
        coords = {"time": dates, "lat": grid.latitude, "lon": grid.longitude}
    fields = {
        "u": (dims, u, {"units": "m s-1", "standard_name": "eastward_wind"}),
        "t": (dims, t, {"units": "K"}),
        "v": (dims, v, {"units": "m s-1", "standard_name": "northward_wind"}),
    }
    attrs = {"ordering": grid.ordering} if isinstance(grid, HEALPix) else {}
    return xr.Dataset(fields, coords, attrs)


ORDER = [1, 0, 2]  # E in the place of u, B in that of v


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("climatology", [NoClimatology(), Constant(), Monthly()])
def test_round_trip(grid, climatology):
    ds = archive(grid)
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=climatology, vectors=WIND)
    x = encoder.encode(ds, torch.float64)
    assert x.shape == (36, 3, 64)
    time = ds.time if climatology.columns() > 1 else None
    expected = coefficients(36)[:, ORDER]
    np.testing.assert_allclose(encoder.restore(x, time), expected, rtol=1e-9, atol=1e-8)
    back = encoder.decode(x, grid, time)
    for name in ("u", "t", "v"):  # decoded maps are float32
        np.testing.assert_allclose(back[name].values, ds[name].values, rtol=3e-7, atol=1e-6)
        assert back[name].attrs["units"] == ds[name].attrs["units"]
    assert back.u.attrs["standard_name"] == "eastward_wind"


def test_scale_is_that_of_each_part():
    ds = archive(REGULAR)
    encoder = Encoder.fit(ds, lmax=LMAX, vectors=WIND)
    a = coefficients(36)[:, ORDER]
    scale = ((a - a.mean(0)).square().sum(-1).mean(0) / (4 * math.pi)).sqrt()
    torch.testing.assert_close(encoder.scale, scale, rtol=1e-8, atol=0)
    # By Parseval the two parts have the variance of the two components.
    area = REGULAR.area_weights.numpy() / (4 * math.pi)
    variance = sum(float((area * ds[n].values.var(0)).sum()) for n in "uv")
    assert float(encoder.scale[[0, 2]].square().sum()) == pytest.approx(variance, rel=1e-9)


def test_scalars_beside_a_vector_field_are_encoded_as_ever():
    ds = archive(REGULAR)
    mixed = Encoder.fit(ds, lmax=LMAX, vectors=WIND, transform={"t": Log1p(100.0)})
    alone = Encoder.fit(ds, "t", lmax=LMAX, transform={"t": Log1p(100.0)})
    torch.testing.assert_close(mixed.encode(ds)[:, 1], alone.encode(ds)[:, 0], rtol=1e-6, atol=1e-6)
    only = Encoder.fit(ds, ["v", "u"], lmax=LMAX, vectors=WIND)
    assert only.names == ("v", "u")
    torch.testing.assert_close(only.encode(ds), mixed.encode(ds)[:, [2, 0]])


@pytest.mark.parametrize(("chunks", "others"), [(5, 5), (5, 8), (36, 7), (4, None), (None, 4)])
def test_chunks_do_not_matter(chunks, others):
    ds = archive(REGULAR)
    whole = Encoder.fit(ds, lmax=LMAX, vectors=WIND)
    expected = whole.encode(ds, torch.float64)
    if chunks:
        ds["u"] = ds.u.chunk(time=chunks)
    if others:
        ds["v"] = ds.v.chunk(time=others)
    encoder = Encoder.fit(ds, lmax=LMAX, vectors=WIND)
    torch.testing.assert_close(encoder.scale, whole.scale, rtol=1e-12, atol=0)
    torch.testing.assert_close(encoder.encode(ds, torch.float64), expected)


def test_truncated_variance_is_that_of_both_components(caplog):
    """Coefficients beyond lmax are counted exactly, for the two components together."""
    ds = archive(GaussLegendre(11), 20)
    power = coefficients(20).numpy().var(axis=0)[ORDER]
    beyond, total = power[:, 25:].sum(-1), power.sum(-1)
    wind = beyond[[0, 2]].sum() / total[[0, 2]].sum()
    with caplog.at_level(logging.INFO, logger="spherediff.data"):
        encoder = Encoder.fit(ds, lmax=4, vectors=WIND)
    np.testing.assert_allclose(encoder.truncated, [wind, beyond[1] / total[1], wind], rtol=1e-6)
    assert "u: 0." in caplog.text
    assert "of the variance is beyond lmax = 4" in caplog.text
    assert float(Encoder.fit(ds, lmax=LMAX, vectors=WIND).truncated.max()) < 1e-12


def test_a_flow_across_the_poles_needs_no_higher_degrees():
    """As scalars, u and v of the same flow lose variance at any band limit."""
    ds = archive(REGULAR)
    lost = Encoder.fit(ds, ["u", "v"], lmax=LMAX).truncated
    assert float(lost.min()) > 0.01
    assert float(Encoder.fit(ds, ["u", "v"], lmax=LMAX, vectors=WIND).truncated.max()) < 1e-12


def test_decoded_wind_is_one_vector_at_the_pole():
    encoder = Encoder.fit(archive(REGULAR), lmax=LMAX, vectors=WIND)
    x = torch.randn(4, 3, 64, generator=torch.Generator().manual_seed(2))
    maps = encoder.decode(x, REGULAR)
    longitude = np.radians(REGULAR.longitude)
    u, v = maps.u.values[:, -1].astype(float), maps.v.values[:, -1].astype(float)
    wind = np.stack(
        [
            -np.sin(longitude) * u - np.cos(longitude) * v,
            np.cos(longitude) * u - np.sin(longitude) * v,
        ]
    )
    assert np.hypot(u, v).min() > 0.1
    np.testing.assert_allclose(wind, np.broadcast_to(wind[..., :1], wind.shape), atol=1e-5)
    stations = encoder.decode(x, Points([90.0, 10.0], [REGULAR.longitude[3], 5.0]))
    np.testing.assert_allclose(stations.u.values[:, 0], u[:, 3], atol=1e-5)
    np.testing.assert_allclose(stations.v.values[:, 0], v[:, 3], atol=1e-5)


def test_vorticity_from_an_encoder():
    ds = archive(REGULAR)
    encoder = Encoder.fit(ds, lmax=LMAX, vectors=WIND)
    both = [encoder.names.index(name) for name in WIND[0]]
    a = encoder.restore(encoder.encode(ds, torch.float64))[:, both]
    torch.testing.assert_close(
        vector.vorticity(a), vector.vorticity(coefficients(36)[:, 1:]), rtol=1e-8, atol=1e-14
    )


def test_vector_fields_keep_their_amplitude():
    ds = archive(REGULAR)
    east = 1 + 0.8 * np.cos(np.radians(ds.lon))
    ds["t"] = (ds.t - ds.t.mean("time")) * east + ds.t.mean("time")
    local = Encoder.fit(ds, lmax=LMAX, vectors=WIND, amplitude_degree=4)
    alone = Encoder.fit(ds, "t", lmax=LMAX, amplitude_degree=4)
    assert torch.equal(local.amplitude.log_std[1], alone.amplitude.log_std[0])
    assert not local.amplitude.log_std[[0, 2]].any()
    x = local.encode(ds, torch.float64)
    plain = Encoder.fit(ds, lmax=LMAX, vectors=WIND)
    torch.testing.assert_close(local.restore(x), plain.restore(plain.encode(ds, torch.float64)))
    winds = Encoder.fit(ds, ["u", "v"], lmax=LMAX, vectors=WIND, amplitude_degree=4)
    torch.testing.assert_close(winds.encode(ds, torch.float64), x[:, [0, 2]])


def test_state_round_trip_is_exact():
    ds = archive(REGULAR)
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=Monthly(), vectors=WIND)
    config, tensors = encoder.state()
    again = Encoder.from_state(json.loads(json.dumps(config)), load(save(tensors)))
    assert again.vectors == WIND
    assert again.channels == encoder.channels
    x = encoder.encode(ds)
    assert torch.equal(again.encode(ds), x)
    maps = encoder.decode(x, HEALPix(4), ds.time)
    xr.testing.assert_identical(again.decode(x, HEALPix(4), ds.time), maps)
    scalar = dict(config)
    del scalar["vectors"]  # as written before there were vector fields
    assert Encoder.from_state(scalar, tensors).vectors == ()
    with pytest.raises(ValueError, match="eastward and the northward component of each vector"):
        Encoder.from_state(config | {"vectors": [["u"]]}, tensors)


def test_a_generator_of_winds(tmp_path):
    """An empty degree 0 is neither learnt nor drawn; names, units and parts survive the file."""
    ds = archive(REGULAR)
    encoder = Encoder.fit(ds, ["u", "v"], lmax=LMAX, vectors=WIND)
    network = OperatorConfig(4, 2, width=4, blocks=1, hidden=4, lifts=1, positional=1)
    model = Model.build(encoder, encoder.encode(ds), network=network)
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    x = loaded.sample(64, generator=torch.Generator().manual_seed(0), steps=8)
    assert torch.isfinite(x).all()
    assert float(x[..., 0].abs().max()) < 1e-6
    # The untrained model draws the archive's Gaussian: a standard error is about 4 %.
    power = x.square().sum(-1).mean(0) / (4 * math.pi)
    assert power.tolist() == pytest.approx([1.0, 1.0], rel=0.2)
    maps = loaded.encoder.decode(x, REGULAR)
    assert maps.v.attrs["standard_name"] == "northward_wind"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"variables": ["u", "t"]}, "v is a component .*, but the variables are u, t: add"),
        (None, {"vectors": (("u", "w"),)}, "w is a component of a vector field, but"),
        (None, {"vectors": ("u", "v")}, "expected the names of the eastward and .* got 'u'"),
        (None, {"vectors": (("u", "t", "v"),)}, r"got \('u', 't', 'v'\)"),
        (None, {"vectors": (("u", "v"), ("t", "v"))}, "v is given twice"),
        (None, {"vectors": (("u", "u"),)}, "u is given twice"),
        (None, {"transform": {"u": Log1p()}}, "u: Log1p cannot transform one component of a vec"),
        (None, {"transform": {"v": Quantile()}}, "v: Quantile cannot transform one component"),
        ("units", {}, "u is in 'm s-1' and v in 'knot', .* the same units"),
        (None, {"vectors": (("v", "u"),)}, "v is 'northward_wind' and u 'eastward.*exchange"),
        (None, {"lmax": 0}, "no degree 0"),
    ],
)
def test_pairs_that_are_no_vector_field(change, options, message):
    ds = archive(REGULAR, 4)
    if change == "units":
        ds["v"] = ds.v.assign_attrs(units="knot")
    with pytest.raises(ValueError, match=message):
        Encoder.fit(ds, **{"lmax": 3, "vectors": WIND} | options)


def test_missing_values_of_either_component():
    for name in ("u", "v"):
        ds = archive(REGULAR)
        ds[name].values[7, 3, 4:6] = np.nan
        with pytest.raises(
            ValueError, match=f"{name} has 2 missing .* in 1 of 36 samples, first in"
        ):
            Encoder.fit(ds, lmax=LMAX, vectors=WIND)


@pytest.mark.parametrize(
    ("part", "message"),
    [(1, "the divergent part of u, v is zero"), (2, "the rotational part of u, v is zero")],
)
def test_wind_with_one_part_only(part, message):
    a = coefficients(6)[:, 1:]
    a[:, part - 1] = 0
    ds = archive(REGULAR, 6)
    ds.u.values[:], ds.v.values[:] = VectorTransform(REGULAR).synthesis(a).numpy().swapaxes(0, 1)
    with pytest.raises(ValueError, match=message):
        Encoder.fit(ds, lmax=LMAX, vectors=WIND)


def test_navy_winds():
    """The observed winds, to the degrees the bundled example uses."""
    ds = data.load("navy-winds").compute()
    pair = (("UWND", "VWND"),)
    train = ds.isel(time=ds.test == 0)
    encoder = Encoder.fit(train, lmax=31, climatology=Monthly(), vectors=pair)
    x = encoder.encode(ds, torch.float64)
    grid = data.grid_of(data.normalise(ds))
    decoded = encoder.decode(x, grid, ds.time)
    # float32 maps of winds up to 25 m/s, anomalies of 1 m/s
    assert float((encoder.encode(decoded, torch.float64) - x).abs().max()) < 1e-6
    area = grid.area_weights.numpy() / (4 * math.pi)

    def mean_square(what):
        return sum(
            float((area * np.square(what[n].values.astype(float)).mean(0)).sum()) for n in pair[0]
        )

    wind = {n: ds[n] for n in pair[0]}
    lost = mean_square({n: decoded[n] - wind[n] for n in wind}) / mean_square(wind)
    assert 0.01 < lost < 0.04
    assert encoder.truncated.tolist() == pytest.approx([0.053, 0.053], abs=5e-4)
    # Monthly surface winds are mostly rotational.
    assert float(encoder.scale[0] / encoder.scale[1]) == pytest.approx(0.44, abs=0.01)
