"""The bundled archive and coastlines, against figures of the files they were made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spherediff import data
from spherediff.grids import GaussLegendre
from spherediff.model import Model

HALF_STEP = 0.1  # m/s, the largest rounding error


@pytest.fixture(scope="module")
def winds():
    return data.load("navy-winds").compute()


def test_shape_and_metadata(winds):
    assert dict(winds.sizes) == {"time": 132, "latitude": 73, "longitude": 144}
    assert winds.UWND.attrs["units"] == winds.VWND.attrs["units"] == "m s-1"
    assert winds.UWND.attrs["standard_name"] == "eastward_wind"
    assert winds.VWND.attrs["standard_name"] == "northward_wind"
    assert "public domain" in winds.attrs["license"]
    assert "ferret-datasets" in winds.attrs["source"]
    assert (winds.time.dt.month.values.reshape(11, 12) == np.arange(1, 13)).all()
    assert winds.time.dt.year.values[[0, -1]].tolist() == [1982, 1992]
    assert winds.test.values.tolist() == [0] * 108 + [1] * 24
    assert winds.UWND.dtype == np.float32
    grid = data.grid_of(winds)
    assert (grid.geometry, grid.max_lmax) == ("CC", 71)


# From the source: mean, standard deviation, least and largest value of all 132 × 73 × 144.
# The error of the mean of 1.4 million values rounded to 0.2 is about 0.058/√1.4e6 = 5e-5.
@pytest.mark.parametrize(
    ("name", "mean", "std", "least", "largest"),
    [
        ("UWND", 0.026498687, 4.488410424, -25.547892, 18.545),
        ("VWND", -0.072924860, 2.640891492, -21.138525, 20.838402),
    ],
)
def test_statistics(winds, name, mean, std, least, largest):
    values = winds[name].values.astype(np.float64)
    assert values.mean() == pytest.approx(mean, abs=4e-4)
    # Rounding adds 0.2²/12 to the variance.
    assert values.var() == pytest.approx(std**2 + 0.2**2 / 12, rel=1e-4)
    assert values.min() == pytest.approx(least, abs=HALF_STEP)
    assert values.max() == pytest.approx(largest, abs=HALF_STEP)


def test_values(winds):
    """June 1982 at 15° S, 20 … 30° E, and at the south pole, from the source."""
    expected = [-6.025943, -5.619795, -5.055492, -4.0657787, -3.3491395]
    np.testing.assert_allclose(winds.UWND.values[5, 30, :5], expected, atol=HALF_STEP + 1e-5)
    expected = [0.31606558, 1.0508196, 3.0443032, 1.5740165, 0.43946722]
    np.testing.assert_allclose(winds.VWND.values[5, 30, :5], expected, atol=HALF_STEP + 1e-5)
    assert winds.latitude.values[[0, 30, -1]].tolist() == [-90, -15, 90]
    assert winds.longitude.values[[0, -1]].tolist() == [20, 377.5]


def test_encodes(winds):
    train = winds.isel(time=winds.test == 0)
    encoder = data.Encoder.fit(train, lmax=31, climatology=data.Monthly())
    x = encoder.encode(winds)
    assert x.shape == (132, 2, 1024)
    assert float(encoder.truncated.max()) < 0.1
    decoded = encoder.decode(x, data.grid_of(winds), winds.time)
    loss = np.sqrt(np.square(decoded.UWND.values - winds.UWND.values).mean())
    assert loss < 0.7  # m/s: what degrees 32 to 71 hold


def test_unknown_name():
    with pytest.raises(ValueError, match="no bundled archive 'era5'; there is navy-winds"):
        data.load("era5")


def test_coastlines():
    lines = data.coastlines()
    assert len(lines) > 50
    for line in lines:
        assert line.ndim == 2
        assert line.shape[1] == 2
        assert len(line) >= 2
        assert np.abs(line[:, 0]).max() <= 180
        assert np.abs(line[:, 1]).max() <= 90
        # No streak across the map: at high latitudes alone a simplified step spans many degrees.
        assert (np.abs(np.diff(line[:, 0])) * np.cos(np.radians(line[1:, 1]))).max() < 6


# Capes, and how near the coastline passes (degrees; the relief has 20 minutes).
@pytest.mark.parametrize(
    ("lon", "lat"),
    [
        (18.47, -34.36),  # Good Hope
        (-5.6, 36.0),  # Gibraltar
        (-81.33, -4.68),  # Pariñas
        (142.53, -10.69),  # York
        (77.55, 8.08),  # Comorin
        (-0.97, 51.5 - 0.8),  # Selsey Bill
    ],
)
def test_coast_passes_the_capes(lon, lat):
    assert min(_distance(line, lon, lat) for line in data.coastlines()) < 0.6


def _distance(line: np.ndarray, lon: float, lat: float) -> float:
    # To the segments: simplified lines have few vertices.
    stretch = np.array([np.cos(np.radians(lat)), 1])
    start, end = line[:-1] * stretch, line[1:] * stretch
    at = np.array([lon, lat]) * stretch
    along = ((at - start) * (end - start)).sum(1) / np.maximum(np.square(end - start).sum(1), 1e-12)
    nearest = start + np.clip(along, 0, 1)[:, None] * (end - start)
    return float(np.linalg.norm(nearest - at, axis=1).min())


def test_the_bundled_model_draws_weather_of_a_day():
    folder = data.models()["speedy-daily"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "seed 0" in card
    assert "Licence" in card
    model = Model.load("speedy-daily")
    assert model.encoder.names == ("tas", "u250", "pr")
    generator = torch.Generator().manual_seed(0)
    x = model.sample(4, generator=generator, time="2001-07-15", steps=12)
    weather = model.encoder.decode(x, GaussLegendre(31), "2001-07-15")
    assert weather.pr.attrs["units"] == "mm day-1"
    assert float(weather.pr.min()) == 0  # dry somewhere, and nowhere less
    assert 270 < float(weather.tas.mean()) < 300
    # the westerlies of the southern winter are strong, the summer tropics are calm
    zonal = weather.u250.mean((weather.u250.dims[0], weather.u250.dims[2]))
    latitude = zonal[zonal.dims[0]]
    assert float(zonal[(latitude < -25) & (latitude > -45)].mean()) > 20
    assert abs(float(zonal[abs(latitude) < 5].mean())) < 15
