"""The scorecard where the answer is known: each fault is caught by the rows that should."""

import math
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from spherediff import GaussianField, WhittleMatern, harmonics, metrics, plot, report
from spherediff.grids import GaussLegendre
from spherediff.metrics.judge import _largest_share

LMAX = 8
N = 120
SPECTRA = {"spectrum by octave", "gradient", "increments over 5°", "classifier AUC, coefficients"}
SHAPES = {"skewness map", "skewness by band", "0.1 %", "99.9 %", "local marginals", "maximum",
          "minimum", "classifier AUC, maps"}  # fmt: skip
MEMORY = {"distance to the nearest training map", "share nearer to training"}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(count, seed, lmax=LMAX, channels=1):
    field = GaussianField(WhittleMatern(1.0, 1.0, 0.5), lmax, dtype=torch.float64)
    return field.sample((count, channels), generator=seeded(seed))


def skewed(count, seed):
    """x + 0.4 (x² − 1) of a Gaussian field, band-limited again."""
    grid = GaussLegendre(2 * LMAX)
    x = grid.synthesis(gaussian(count, seed))
    return grid.analysis(x + 0.4 * (x.square() - 1), LMAX)


def surrogate(archive, count, seed):
    """Gaussian maps with the mean and the covariance of an archive."""
    flat = archive.flatten(1)
    centred = (flat - flat.mean(0)) / math.sqrt(len(flat) - 1)
    noise = torch.randn(count, len(flat), generator=seeded(seed), dtype=flat.dtype)
    return (flat.mean(0) + noise @ centred).view(count, *archive.shape[1:])


def card(generated, reference, training=None, **options):
    options = {"resamples": 40, "generator": seeded(0)} | options
    return metrics.scorecard(generated, reference, training, **options)


def differing(scores, names):
    return {name for name in names if scores.row(name).differs}


@pytest.fixture(scope="module")
def archive():
    """Reference and training maps of a skewed law."""
    return skewed(N, 1), skewed(3 * N, 2)


def test_a_wrong_spectrum_is_caught_by_spectra_and_texture_and_not_by_shape():
    tilt = harmonics.expand(torch.where(torch.arange(LMAX + 1) >= 4, 1.3, 0.9).double())
    scores = card(gaussian(N, 3) * tilt, gaussian(N, 1), gaussian(3 * N, 2))
    assert differing(scores, SPECTRA) == SPECTRA
    # Skewness and excess kurtosis of Gaussian fields are zero whatever their spectrum.
    assert not differing(scores, {"mean map", "skewness by band", "excess kurtosis by band"})
    assert not differing(scores, MEMORY)
    octaves = scores.row("spectrum by octave").detail
    assert octaves["degree 1"] < 0 < octaves["degrees 4–7"]


def test_a_gaussian_surrogate_is_caught_by_shape_and_not_by_what_it_was_given(archive):
    reference, training = archive
    scores = card(surrogate(training, N, 4), reference, training)
    assert differing(scores, SHAPES) == SHAPES
    assert not differing(scores, {"spectrum by octave", "mean map", "log standard-deviation map"})
    assert not differing(scores, MEMORY)


def test_a_wrong_sign_of_the_skewness_is_caught(archive):
    reference, training = archive
    mirrored = 2 * training.mean(0) - skewed(N, 3)  # same mean and covariance
    scores = card(mirrored, reference, training)
    assert differing(scores, SHAPES) == SHAPES
    assert not differing(scores, {"spectrum by octave", "log standard-deviation map"})


def test_copies_of_the_training_set_are_caught_by_memorisation_alone(archive):
    reference, training = archive
    copied = training[torch.randperm(len(training), generator=seeded(4))[:N]]
    scores = card(copied, reference, training)
    assert {row.statistic for row in scores.rows if row.group == 10 and row.differs} == {
        "distance to the nearest training map",
        "share nearer to training than any reference",
    }
    assert scores.row("share").value == 1.0
    others = [row for row in scores.rows if row.group < 10]
    # 27 rows at a false-alarm rate of about 3 %; they are correlated
    assert sum(row.differs for row in others) <= 3


def test_nearly_copied_maps_are_caught(archive):
    reference, training = archive
    blurred = training[:N] + 0.3 * gaussian(N, 7)
    assert differing(card(blurred, reference, training), MEMORY) == MEMORY


def test_rows_of_one_law_differ_at_the_stated_rate():
    # Measured over 60 scorecards, a row differs with probability 0.03, one scorecard of 29 rows
    # has 0.8 that do with a standard deviation of 1.3.  More than 21 in eight scorecards
    # are four standard deviations away.  The mean ratio has a standard error of about 0.04.
    count, ratios = 0, []
    for seed in range(8):
        x = gaussian(150, seed, lmax=3)
        x = x + 0.3 * x.square()
        scores = card(x[:30], x[30:60], x[60:], resamples=30)
        count += sum(row.differs for row in scores.rows)
        ratios.append(scores.row("local marginals").ratio)
    assert count <= 21
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.15)


def test_without_training_maps_exchanges_are_the_floor():
    # Measured over 150 scorecards, rows differ with probability 0.016: 0.4 of 27, in clusters,
    # since rows depend on one another.  More than 14 in six scorecards are about four standard
    # deviations away.
    count = 0
    for seed in range(6):
        x = gaussian(60, seed, lmax=3)
        scores = card(x[:30], x[30:], resamples=20)
        assert not any(row.group == 10 for row in scores.rows)
        count += sum(row.differs for row in scores.rows)
    assert count <= 14
    scores = card(1.6 * gaussian(80, 1), gaussian(80, 2))
    assert differing(scores, SPECTRA - {"classifier AUC, coefficients"})
    assert scores.row("log standard-deviation map").differs


def test_lost_dependence_between_channels_shows_in_joint_rows_alone():
    def pair(count, seed):
        x = gaussian(count, seed, lmax=3, channels=2)
        x[:, 1] += 2 * x[:, 0]
        return x

    generated = pair(N, 1)
    generated[:, 1] = generated[torch.randperm(N, generator=seeded(9)), 1]
    scores = card(generated, pair(N, 2), pair(3 * N, 3), names=("u", "v"), units=("m/s", "K"))
    assert {row.variable for row in scores.rows} == {"u", "v", "all"}
    joint = {"principal components", "correlations", "classifier AUC, coefficients"}
    assert differing_of("all", scores, joint) == joint
    for variable in ("u", "v"):
        assert not differing_of(variable, scores, joint)
    assert scores.row("maximum", "v").units == "K"
    assert {row.group for row in scores.rows if row.variable == "all"} == {4, 5, 8, 9, 10}


def differing_of(variable, scores, names):
    return {name for name in names if scores.row(name, variable).differs}


def test_a_floor_of_correlated_maps_grows_with_that_of_the_reference():
    # Every map twice in succession: as few independent maps as half as many, and the mean map of
    # either set √2 times as uncertain, within some 10 % for 60 maps of 16 coefficients.
    def twice(count, seed):
        return gaussian(count, seed, lmax=3).repeat_interleave(2, dim=0)

    def floor(reference, training):
        scores = card(gaussian(60, 1, lmax=3), reference, training, resamples=2)
        return scores.row("mean map").floor

    single = floor(gaussian(60, 2, lmax=3), gaussian(300, 3, lmax=3))
    double = floor(twice(30, 2), twice(150, 3))
    assert double / single == pytest.approx(math.sqrt(2), rel=0.25)


@pytest.mark.parametrize(
    "generated",
    [
        gaussian(1, 1, lmax=3).repeat(20, 1, 1),
        torch.zeros(20, 1, 16),
        1e6 * gaussian(20, 1, lmax=3),
    ],
    ids=["one map", "zero", "huge"],
)
def test_hopeless_maps_have_finite_scores(generated):
    reference, training = (
        harmonics.resize(gaussian(n, n, lmax=3), 7) for n in (30, 60)
    )  # no power in the last octave
    scores = card(harmonics.resize(generated, 7), reference, training, resamples=5)
    numbers = [[row.value, row.floor, *row.interval] for row in scores.rows]
    assert np.isfinite(numbers).all()
    assert sum(row.differs for row in scores.rows) > 15


def test_same_seed_same_scorecard(archive):
    reference, training = (x[:40] for x in archive)
    first, second = (card(reference, training, resamples=5) for _ in range(2))
    assert first == second


def test_the_largest_share_by_enumeration():
    # Of N + M exchangeable maps, the j closest are all generated ones.
    rng = np.random.default_rng(0)
    closest = rng.permuted(np.tile(np.arange(12) < 6, (20_000, 1)), axis=1)
    runs = np.where(closest.all(1), 12, closest.argmin(1))
    limit = _largest_share(6, 6) * 6
    assert (runs > limit).mean() < 0.03  # standard error 0.001 about at most 0.025
    assert (runs > limit - 1).mean() > 0.025


@pytest.mark.parametrize(
    ("generated", "reference", "options", "message"),
    [
        (gaussian(9, 1), gaussian(20, 2), {}, "at least 10 generated"),
        (gaussian(20, 1), gaussian(20, 2, lmax=4), {}, r"alike in all sets, got \(20, 1, 25\)"),
        (gaussian(20, 1) * torch.nan, gaussian(20, 2), {}, "of the generated maps are not finite"),
        (torch.zeros(20, 1, 81), torch.zeros(20, 1, 81), {}, "channel 0: the real maps are all"),
        (gaussian(20, 1, lmax=0), gaussian(20, 2, lmax=0), {}, "lmax ≥ 1"),
        (gaussian(20, 1), gaussian(20, 2), {"names": ("u", "v")}, "expected 1 names and units"),
        (gaussian(20, 1), gaussian(20, 2), {"resamples": 1}, "resamples must be at least 2"),
    ],
)
def test_bad_input(generated, reference, options, message):
    with pytest.raises(ValueError, match=message):
        card(generated, reference, **options)


# ---- as text, as JSON, as a figure ----


@pytest.fixture(scope="module")
def scores(archive):
    reference, training = archive
    return card(surrogate(training, N, 4), reference, training, names=("rain",), units=("mm",))


def test_the_table_marks_what_differs(scores):
    lines = report.table(scores.rows).splitlines()
    assert lines[0].split() == ["value", "floor", "ratio", "95", "%", "interval"]
    assert lines[1] == "rain"
    for row, line in zip(scores.rows, lines[2:], strict=True):
        assert row.statistic in line
        assert line.endswith("*") == row.differs
    assert any("maximum of a map, W1 [mm]" in line for line in lines)
    text = report.explanation(scores)
    assert f"{sum(row.differs for row in scores.rows)} of 29 rows" in text


def test_json_keeps_everything(scores):
    text = report.to_json(scores, {"seed": 3})
    assert '"seed": 3' in text
    assert "Infinity" not in text
    again = report.from_json(text)
    assert [asdict(row) for row in again.rows] == [asdict(row) for row in scores.rows]
    assert (again.sizes, again.lmax, again.resamples) == ((N, N, 3 * N), LMAX, 40)
    with pytest.raises(ValueError, match="evaluate --output"):
        report.from_json('{"rows": 3}')


def test_a_row_that_is_not_there(scores):
    with pytest.raises(KeyError, match="no row 'nonsense' of any variable"):
        scores.row("nonsense")


def test_the_figure_shows_every_ratio(scores):
    shown = [row for row in scores.rows if row.ratio is not None and row.group < 10]
    drawn = plot.scorecard({"surrogate": scores, "again": scores}, "rain")
    try:
        assert list(drawn.lines) == ["surrogate", "again"]
        np.testing.assert_allclose(
            drawn.lines["surrogate"].get_xdata(), [row.ratio for row in shown]
        )
        assert [label.get_text() for label in drawn.ax.get_yticklabels()] == [
            row.statistic for row in shown
        ]
        assert drawn.ax.get_xscale() == "log"
    finally:
        plt.close("all")
    with pytest.raises(ValueError, match="no rows of wind"):
        plot.scorecard(scores, "wind")
