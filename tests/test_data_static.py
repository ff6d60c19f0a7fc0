"""Static fields against moments taken place by place on the grid."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from torch import Tensor

from spherediff import harmonics
from spherediff.data import Encoder, Harmonics, Labels, NoClimatology
from spherediff.data.amplitude import Amplitude
from spherediff.data.static import amplitude_fields, static_fields
from spherediff.grids import GaussLegendre

LMAX, COUNT = 6, 150
GRID = GaussLegendre(LMAX)
NAMES = ("f", "g")


def archive() -> xr.Dataset:
    """Skewed fields with a yearly cycle whose spread differs from place to place."""
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.exponential(size=(COUNT, 2, harmonics.count(LMAX))) - 1)
    a = a / (1 + harmonics.degrees(LMAX))
    time = np.datetime64("2001-01-01", "ns") + np.arange(COUNT) * np.timedelta64(5, "D")
    season = np.cos(2 * np.pi * np.arange(COUNT) / 73)[:, None, None, None]
    maps = GRID.synthesis(a).numpy() + season * np.sin(np.radians(GRID.latitude))[:, None]
    return xr.Dataset(
        {name: (("time", "lat", "lon"), maps[:, c]) for c, name in enumerate(NAMES)},
        coords={
            "time": time,
            "lat": ("lat", GRID.latitude, {"units": "degrees_north"}),
            "lon": ("lon", GRID.longitude, {"units": "degrees_east"}),
        },
    )


def normalised(values: np.ndarray, lmax: int) -> Tensor:
    """Coefficients without mean, of mean square one."""
    a = harmonics.resize(GRID.analysis(torch.from_numpy(values), LMAX), lmax)
    a[..., 0] = 0
    return a / (a.square().sum(-1, keepdim=True) / (4 * math.pi)).sqrt()


@pytest.mark.parametrize("lmax", [3, LMAX])
def test_static_fields_are_the_moments_of_each_place(lmax: int) -> None:
    ds = archive()
    encoder = Encoder.fit(
        ds, lmax=LMAX, climatology=Harmonics(1), amplitude_degree=4
    )  # all of which has to be undone
    told = Labels.seasonal(encoder.climatology).encode(ds, COUNT)  # 1 and four waves of the year
    found = static_fields(encoder, encoder.encode(ds), told, lmax).double()

    design = Harmonics(1).design(ds.time, COUNT)
    expected = []
    for name in NAMES:
        y = ds[name].values.reshape(COUNT, -1)
        beta = np.linalg.lstsq(design, y, rcond=None)[0]
        rest = y - design @ beta
        moments = np.log(rest.std(0)), scipy.stats.skew(rest)
        turns = np.linalg.lstsq(told, (rest / rest.std(0)) ** 2, rcond=None)[0][1:]
        rows = [*(beta / rest.std(0)), *beta, *moments, *turns]
        expected.append(normalised(np.reshape(rows, (12, *GRID.shape)), lmax))
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("lmax", [3, LMAX])
def test_amplitudes_are_what_the_encoder_divides_by(lmax: int) -> None:
    encoder = Encoder.fit(archive(), lmax=LMAX, climatology=Harmonics(1), amplitude_degree=4)
    found = amplitude_fields(encoder, lmax)
    sigma = GRID.analysis(encoder.amplitude.map(GRID), LMAX)
    torch.testing.assert_close(found.double(), harmonics.resize(sigma, lmax), rtol=0, atol=1e-6)
    one = amplitude_fields(replace(encoder, amplitude=Amplitude(torch.zeros(2, 1))), lmax)
    torch.testing.assert_close(GRID.synthesis(one), torch.ones(2, *GRID.shape))


def test_what_is_the_same_everywhere_is_left_out() -> None:
    ds = archive()
    encoder = Encoder.fit(ds, lmax=LMAX, climatology=NoClimatology())
    assert len(static_fields(encoder, encoder.encode(ds), torch.ones(COUNT, 1), LMAX)) == 2 * 2
