"""Climatologies against direct means and normal equations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from spherediff._config import from_config, to_config
from spherediff.data import Constant, Harmonics, Monthly, NoClimatology
from spherediff.data.climatology import (
    KINDS,
    fit,
    is_dates,
    years,
)


def monthly(n: int) -> xr.DataArray:
    return xr.DataArray(pd.date_range("1990-01-15", periods=n, freq="MS"), dims="time")


def test_constant_is_the_mean():
    y = np.random.default_rng(0).standard_normal((20, 5)) + 3
    design = Constant().design(None, 20)
    np.testing.assert_allclose((design @ fit(design, y))[0], y.mean(0), rtol=1e-13)


def test_none_removes_nothing():
    design = NoClimatology().design(None, 4)
    beta = fit(design, np.ones((4, 3)))
    assert beta.shape == (0, 3)
    assert (design @ beta == 0).all()


def test_monthly_is_twelve_means():
    time = monthly(40)
    y = np.random.default_rng(1).standard_normal((40, 3))
    beta = fit(Monthly().design(time, 40), y)
    for month in range(1, 13):
        expected = y[time.dt.month.values == month].mean(0)
        np.testing.assert_allclose(beta[month - 1], expected, atol=1e-13)


def test_harmonics_recover_a_yearly_cycle():
    time = xr.DataArray(np.datetime64("1999-03-01") + np.arange(900) * np.timedelta64(2, "D"))
    days = (time.values - np.datetime64("2000-01-01")) / np.timedelta64(1, "D")
    phase = 2 * np.pi * days / 365.2425
    y = (2 + 3 * np.cos(phase) - np.sin(phase) + 0.5 * np.cos(2 * phase))[:, None]
    beta = fit(Harmonics(2).design(time, 900), y)
    np.testing.assert_allclose(beta[:, 0], [2, 3, 0.5, -1, 0], atol=1e-10)


def test_harmonics_are_least_squares():
    time = monthly(60)
    design = Harmonics(3).design(time, 60)
    y = np.random.default_rng(2).standard_normal((60, 4))
    normal = np.linalg.solve(design.T @ design, design.T @ y)
    np.testing.assert_allclose(fit(design, y), normal, atol=1e-11)


@pytest.mark.parametrize(
    ("calendar", "length"),
    [("noleap", 365), ("360_day", 360), ("all_leap", 366), ("standard", 365.2425)],
)
def test_years_of_other_calendars(calendar, length):
    cftime = pytest.importorskip("cftime")
    dates = np.array(
        [
            cftime.datetime(2000, 1, 1, calendar=calendar),
            cftime.datetime(2001, 1, 1, 12, calendar=calendar),
            cftime.datetime(1999, 12, 30, calendar=calendar),
        ]
    )
    days = [0, (366 if calendar == "standard" else length) + 0.5, -2]
    if calendar == "360_day":
        days[2] = -1
    assert is_dates(dates)
    np.testing.assert_allclose(years(xr.DataArray(dates, dims="time")), np.array(days) / length)


def test_monthly_with_cftime():
    pytest.importorskip("cftime")
    dates = xr.date_range("2000-01-01", periods=24, freq="MS", calendar="noleap", use_cftime=True)
    design = Monthly().design(xr.DataArray(dates, dims="time"), 24)
    np.testing.assert_array_equal(design, np.tile(np.eye(12), (2, 1)))


@pytest.mark.parametrize("model", [NoClimatology(), Constant(), Monthly(), Harmonics(5)])
def test_config_and_columns(model):
    assert from_config(to_config(model), KINDS, "climatology") == model
    assert model.design(monthly(30), 30).shape == (30, model.columns())


def test_errors():
    with pytest.raises(ValueError, match="at least one harmonic"):
        Harmonics(0)
    with pytest.raises(ValueError, match="Monthly needs the date of every sample"):
        Monthly().design(None, 3)
    with pytest.raises(ValueError, match="Harmonics needs dates, but.*int64"):
        Harmonics().design(xr.DataArray(np.arange(3)), 3)
    with pytest.raises(ValueError, match=r"columns without a sample: \[1, 8, 9, 10, 11, 12\]"):
        fit(Monthly().design(monthly(6), 6), np.ones((6, 1)))
    with pytest.raises(ValueError, match="12 different times.*do not determine the 13"):
        fit(Harmonics(6).design(monthly(12), 12), np.ones((12, 1)))
    with pytest.raises(ValueError, match="unknown climatology"):
        from_config({"kind": "Weekly"}, KINDS, "climatology")
