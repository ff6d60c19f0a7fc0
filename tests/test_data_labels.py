"""Labels: the numbers that a network is told, against their formulas, and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr

from spherediff import data
from spherediff.data import (
    Category,
    Constant,
    Harmonics,
    Labels,
    Monthly,
    NoClimatology,
    Scalar,
    Season,
)

YEARS = [1950, 1950, 1960, 1990, 1990, 1990]
DATES = np.array(
    ["1950-01-01", "1950-04-11", "1960-07-01", "1990-02-28", "1990-07-10", "1990-12-31"],
    "datetime64[ns]",
)
REGIMES = ["wet", "dry", "dry", "wet", "wet", "dry"]


@pytest.fixture
def ds() -> xr.Dataset:
    """Nothing but what varies along the samples."""
    return xr.Dataset(
        coords={
            "time": ("time", DATES),
            "member": ("time", np.array([3, 1, 3, 2, 2, 1], np.int16)),
            "regime": ("time", REGIMES),
            "forcing": ("time", np.array([0.1, 0.4, 0.2, 0.4, 0.9, 0.1], np.float32)),
        }
    )


def season(dates: np.ndarray, harmonics: int) -> np.ndarray:
    days = (dates - np.datetime64("2000-01-01")) / np.timedelta64(1, "D")
    k = np.arange(1, harmonics + 1) * 2 * np.pi * days[:, None] / 365.2425
    return np.concatenate([np.cos(k), np.sin(k)], axis=1)


# --- values -----------------------------------------------------------------------------------


def test_a_label_is_one_and_then_its_parts(ds) -> None:
    kinds = {"year": Scalar, "member": Category, "regime": Category, "forcing": Scalar}
    labels = Labels.fit(ds, kinds, climatology=Harmonics(1))
    assert labels.names == ("time", "year", "member", "regime", "forcing")
    assert labels.size == 1 + 4 + 1 + 3 + 2 + 1
    c = labels.encode(ds, 6)
    assert c.dtype == torch.float32
    assert c.shape == (6, 12)
    # the mean of the years is 1971 2/3, and 6 times their variance 2 · 1950² + 1960² + 3 · 1990²
    # − 6 · 1971.67² = 2083.3
    year = (np.array(YEARS) - (1971 + 2 / 3)) / np.sqrt((2083 + 1 / 3) / 6)
    member = np.eye(3)[[2, 0, 2, 1, 1, 0]]
    regime = np.array([[0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]])
    # forcings: mean 2.1/6 = 0.35, mean square 1.19/6
    forcing = (np.array([0.1, 0.4, 0.2, 0.4, 0.9, 0.1]) - 0.35) / np.sqrt(1.19 / 6 - 0.35**2)
    expected = [np.ones((6, 1)), season(DATES, 2), year[:, None], member, regime, forcing[:, None]]
    np.testing.assert_allclose(c, np.concatenate(expected, axis=1), atol=2e-6)


@pytest.mark.parametrize("harmonics", [1, 2, 3])
def test_season_tells_harmonics_of_the_year(harmonics) -> None:
    labels = Labels((Season(harmonics),))
    c = labels.encode({"time": DATES}, 6)
    assert (c[:, 0] == 1).all()
    np.testing.assert_allclose(c[:, 1:], season(DATES, harmonics), atol=1e-5)
    one = labels.encode({"time": "2001-07-15"}, 1)
    assert torch.equal(labels.encode({"time": "2001-07-15"}, 3), one.repeat(3, 1))


def test_other_calendars_have_their_own_year() -> None:
    time = xr.date_range("1999-01-01", periods=3, freq="90D", calendar="360_day", use_cftime=True)
    c = Labels((Season(1),)).encode({"time": np.asarray(time)}, 3)
    expected = [[1, 1, 0], [1, 0, 1], [1, -1, 0]]  # quarters of a year of 360 days
    np.testing.assert_allclose(c, expected, atol=1e-6)


def test_year_and_month_come_from_the_dates_unless_they_are_there(ds) -> None:
    labels = Labels.fit(ds, {"year": Scalar, "month": Category})
    year, month = labels.parts
    assert isinstance(year, Scalar)
    assert isinstance(month, Category)
    assert (year.low, year.high) == (1950, 1990)
    assert month.values == (1, 2, 4, 7, 12)
    from_dates = labels.encode(ds, 6)
    given = labels.encode({"year": YEARS, "month": [1, 4, 7, 2, 7, 12]}, 6)
    assert torch.equal(from_dates, given)
    renamed = ds.assign_coords(year=("time", np.arange(6.0)))
    own = labels.encode(renamed.assign_coords(year=("time", [1990] * 6)), 6)
    assert torch.equal(own, labels.encode({"year": 1990, "time": DATES}, 6))
    other = Labels.fit(renamed, {"year": Scalar}).parts[0]
    assert isinstance(other, Scalar)
    assert (other.low, other.high) == (0, 5)


def test_one_value_for_all_or_one_a_sample_in_numbers_or_words(ds) -> None:
    labels = Labels.fit(ds, {"forcing": Scalar, "member": Category})
    expected = labels.encode({"forcing": [0.5, 0.5], "member": [2, 2]}, 2)
    for member in (2, 2.0, "2", np.int8(2), b"2", ["2", "2"]):
        for forcing in (0.5, "0.5", np.float32(0.5), np.array(["0.5", "0.5"])):
            assert torch.equal(labels.encode({"forcing": forcing, "member": member}, 2), expected)


def test_nothing_told_is_no_number(ds) -> None:
    for labels in (Labels(), Labels.seasonal(Constant()), Labels.fit(ds, {})):
        assert labels.size == 0
        assert labels.encode(ds, 6).shape == (6, 0)
        assert labels.encode({}, 3).shape == (3, 0)


def test_a_yearly_cycle_makes_the_season_a_label(ds) -> None:
    for climatology in (Monthly(), Harmonics(1), Harmonics(3)):
        assert Labels.seasonal(climatology) == Labels((Season(2),))
        assert Labels.fit(ds, {"year": Scalar}, climatology=climatology).names == ("time", "year")
    assert Labels.seasonal(NoClimatology()) == Labels()


def test_an_ensemble_in_normal_form_has_labels_for_every_sample() -> None:
    years, members = np.arange(1990, 1994), np.array([7, 5])
    ds = xr.Dataset(
        {"t": (("member", "year", "lat", "lon"), np.zeros((2, 4, 3, 4)))},
        {
            "member": members,
            "year": years,
            "lat": [-60.0, 0.0, 60.0],
            "lon": [0.0, 90.0, 180.0, 270.0],
            "forcing": ("year", [1.0, 2.0, 4.0, 8.0]),
        },
    )
    ds = data.normalise(ds)
    kinds = {"member": Category, "year": Scalar, "forcing": Scalar}
    labels = Labels.fit(ds, kinds)
    c = labels.encode(ds, 8).reshape(2, 4, 5)
    assert torch.equal(c[..., 1:3], torch.tensor([[0.0, 1], [1, 0]])[:, None].expand(2, 4, 2))
    # years −3, −1, 1, 3 over √5; forcings less 3.75 over √(85/4 − 3.75²)
    scaled = torch.tensor([-3.0, -1, 1, 3]) / 5**0.5
    torch.testing.assert_close(c[..., 3], scaled.expand(2, 4))
    forcing = (torch.tensor([1.0, 2, 4, 8]) - 3.75) / (85 / 4 - 3.75**2) ** 0.5
    torch.testing.assert_close(c[..., 4], forcing.expand(2, 4))


def test_labels_pass_through_json(ds) -> None:
    kinds = {"year": Scalar, "member": Category, "regime": Category, "forcing": Scalar}
    labels = Labels.fit(ds, kinds, climatology=Monthly())
    again = Labels.from_config(json.loads(json.dumps(labels.to_config())))
    assert again == labels
    assert torch.equal(again.encode(ds, 6), labels.encode(ds, 6))
    assert Labels.from_config(Labels().to_config()) == Labels()
    with pytest.raises(ValueError, match=r"unknown label 'Weather'; there are \['Season', "):
        Labels.from_config([{"kind": "Weather"}])


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"member": 1, "forcing": 0.2}, "the season needs the date of every sample"),
        ({"time": DATES[:2], "member": 1, "forcing": 0.2}, "one date for each of 6 samples"),
        ({"time": 5.0, "member": 1, "forcing": 0.2}, "the season needs dates, but time holds"),
        ({"time": DATES, "forcing": 0.2}, "member has no value: give member, one of 1, 2, 3; "),
        (
            {"time": DATES, "member": 1},
            "forcing has no value: give forcing, a number that was between 0.1 and 0.9",
        ),
        ({"time": DATES, "member": 4, "forcing": 0.2}, "member = 4 is not known: .* 1, 2, 3$"),
        ({"time": DATES, "member": 1.5, "forcing": 0.2}, "whole numbers for the category member"),
        ({"time": DATES, "member": [1, 2], "forcing": 0.2}, r"each of 6 samples, got shape \(2,\)"),
        ({"time": DATES, "member": 1, "forcing": "much"}, "a number for forcing, got 'much'"),
        ({"time": DATES, "member": 1, "forcing": np.nan}, "forcing has 6 missing or infinite"),
        (
            {"time": DATES, "member": 1, "forcing": 0.2, "region": "sea"},
            "not told region; it is told time, member, forcing",
        ),
    ],
)
def test_values_that_cannot_be_told(ds, values, message) -> None:
    labels = Labels.fit(ds, {"member": Category, "forcing": Scalar}, climatology=Harmonics(1))
    with pytest.raises(ValueError, match=message):
        labels.encode(values, 6)


@pytest.mark.parametrize(
    ("name", "kind", "values", "message"),
    [
        ("storm", Scalar, None, "storm has no value; there is time, member, regime, forcing"),
        ("a", Scalar, [2.0] * 6, "a is 2 in every training sample"),
        ("a", Scalar, [1.0, 2, 3, 4, 5, np.inf], "a has 1 missing or infinite values"),
        ("time", Scalar, None, "expected a number for time"),
        ("regime", Scalar, None, "expected a number for regime, got 'wet'"),
        ("a", Category, [1] * 6, "1 different value"),
        ("a", Category, list(range(6)), "6 different value.* in 6 training samples"),
        ("forcing", Category, None, "whole numbers .* is a scalar"),
        ("a", Category, [1.0, 1, 2, 2, np.nan, 1], "got nan"),
    ],
)
def test_labels_that_cannot_be_fitted(ds, name, kind, values, message) -> None:
    if values is not None:
        ds = ds.assign_coords({name: ("time", values)})
    with pytest.raises(ValueError, match=message):
        Labels.fit(ds, {name: kind})


def test_two_labels_of_one_name_and_no_harmonics_are_refused() -> None:
    with pytest.raises(ValueError, match="different names, got time, time"):
        Labels((Season(1), Season(2)))
    with pytest.raises(ValueError, match="at least one harmonic"):
        Season(0)


def test_far_from_the_training_samples_there_is_a_warning(ds) -> None:
    labels = Labels.fit(ds, {"year": Scalar})
    std = np.std(YEARS)  # 18.6
    labels.encode({"year": [1950 - 18.5, 1990 + 18.5]}, 2)
    with pytest.warns(UserWarning, match="year = 2008.7 is far .* from 1950 to 1990"):
        c = labels.encode({"year": [1970, 2008.7]}, 2)
    assert c[1, 1] == pytest.approx((2008.7 - np.mean(YEARS)) / std)
    with pytest.warns(UserWarning, match="year = 1931.2 is far"):
        labels.encode({"year": 1931.2}, 2)
