"""Pointwise transforms: exact inverses, ranges, and normal scores."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from spherediff._config import to_config
from spherediff.data import Identity, Log1p, Quantile, SquareRoot
from spherediff.data.transforms import transform_from_config

AMOUNTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=50).map(np.array)
ANYTHING = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50).map(np.array)


@cache
def fitted(lower: float | None = None, knots: int = 65) -> Quantile:
    x = np.random.default_rng(0).gamma(0.7, 3.0, 20_000)
    return Quantile(knots, lower).fit(x, np.ones_like(x))


@given(AMOUNTS, st.floats(1e-2, 1e3))
def test_log1p_inverts(x, scale):
    transform = Log1p(scale)
    np.testing.assert_allclose(transform.inverse(transform.forward(x)), x, rtol=1e-12, atol=1e-12)


@given(AMOUNTS)
def test_square_root_inverts(x):
    np.testing.assert_allclose(
        SquareRoot().inverse(SquareRoot().forward(x)), x, rtol=1e-14, atol=1e-300
    )


@given(ANYTHING)
def test_quantile_inverts_both_ways_tails_included(x):
    transform = fitted()
    np.testing.assert_allclose(transform.inverse(transform.forward(x)), x, rtol=1e-9, atol=1e-9)
    y = x / 100
    np.testing.assert_allclose(transform.forward(transform.inverse(y)), y, rtol=1e-9, atol=1e-9)


@given(ANYTHING)
def test_quantile_is_strictly_increasing(x):
    x = np.unique(np.round(x, 3))
    assert (np.diff(fitted().forward(x)) > 0).all()


def test_values_of_log1p_and_square_root():
    x = np.array([0.0, 1.0, 4.0])
    np.testing.assert_allclose(Log1p(2.0).forward(x), np.log([1, 1.5, 3]))
    np.testing.assert_allclose(SquareRoot().forward(x), [0, 1, 2])
    assert Identity().forward(x) is x


def test_inverse_stays_in_the_range():
    y = np.array([-3.0, -1e-9, 0.0, 1.0])
    assert (Log1p(0.5).inverse(y)[:3] == 0).all()
    assert (SquareRoot().inverse(y)[:3] == 0).all()
    rain = fitted(lower=0.0)
    assert rain.inverse(np.array([-20.0]))[0] == 0
    assert fitted().inverse(np.array([-20.0]))[0] < 0


def test_quantile_makes_normal_scores():
    x = np.random.default_rng(1).lognormal(0.0, 1.0, 200_000)
    y = Quantile(257).fit(x, np.ones_like(x)).forward(x)
    # Kolmogorov distance: interpolation between 257 knots leaves far less than 0.005.
    assert stats.kstest(y, "norm").statistic < 0.005
    # and the transform is log x itself up to that interpolation
    inner = np.abs(np.log(x)) < 2
    assert np.abs(y - np.log(x))[inner].max() < 0.05


def test_quantile_respects_weights():
    x = np.array([0.0] * 100 + list(np.linspace(1, 2, 100)))
    light = Quantile(33).fit(x, np.r_[np.full(100, 1e-6), np.ones(100)])
    # Without the light values the median is 1.5.
    assert abs(light.forward(np.array([1.5]))[0]) < 0.05


def test_quantile_puts_an_atom_at_the_middle_of_its_scores():
    rng = np.random.default_rng(2)
    x = np.where(rng.uniform(size=100_000) < 0.5, 0.0, rng.exponential(size=100_000))
    transform = Quantile(257, lower=0.0).fit(x, np.ones_like(x))
    at_zero = transform.forward(np.zeros(1))[0]
    lowest = stats.norm.ppf(min(0.5 / 257, 16 / 100_000))
    # The mean score of the knots between the lowest one and the median.
    assert at_zero == pytest.approx(lowest / 2, abs=0.05)
    assert transform.inverse(np.array([at_zero]))[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("transform", [Identity(), Log1p(0.3), SquareRoot(), fitted(lower=0.0)])
def test_config_survives_json_exactly(transform):
    config = json.loads(json.dumps(to_config(transform)))
    assert transform_from_config(config) == transform


def test_errors():
    with pytest.raises(ValueError, match="positive finite scale, got 0"):
        Log1p(0.0)
    with pytest.raises(ValueError, match="2 of 3 are .least -2.*clip"):
        SquareRoot().forward(np.array([-1.0, -2.0, 3.0]))
    with pytest.raises(ValueError, match="Log1p needs values that are not negative"):
        Log1p().forward(np.array([-1e-3]))
    with pytest.raises(ValueError, match="at least 8 knots"):
        Quantile(4)
    with pytest.raises(ValueError, match="all the same"):
        Quantile().fit(np.ones(100), np.ones(100))
    with pytest.raises(ValueError, match="strictly increasing"):
        Quantile(x=(0.0, 0.0), y=(0.0, 1.0))
    with pytest.raises(RuntimeError, match="no table"):
        Quantile().forward(np.ones(1))
    with pytest.raises(ValueError, match="unknown transform 'Box'.*Log1p"):
        transform_from_config({"kind": "Box"})


def test_quantile_of_few_symmetric_values_is_symmetric():
    """Each value counts half below itself, so the middle one has the score 0."""
    y = Quantile(9).fit(np.arange(9.0), np.ones(9)).forward(np.arange(9.0))
    np.testing.assert_allclose(y, -y[::-1], atol=1e-12)
