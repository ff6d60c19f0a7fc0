"""Every distance of the scorecard against independent formulas and known answers."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from spherediff import GaussianField, Points, WhittleMatern, harmonics, metrics
from spherediff.grids import GaussLegendre
from spherediff.metrics import classifier, features, statistics
from spherediff.metrics.distributions import Histograms, Ordered
from spherediff.metrics.features import Features, JointFeatures
from spherediff.metrics.resampling import (
    BLOCK,
    Design,
    Sets,
    distinct_blocks,
    exchanged,
    moving_blocks,
)

LMAX = 6
N, M = 40, 30


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(count, seed, lmax=LMAX, std=1.0):
    field = GaussianField(WhittleMatern(std, 1.0, 0.8), lmax, dtype=torch.float64)
    return field.sample((count,), generator=seeded(seed))


def pool(first, second):
    return Features(torch.cat([first, second]), Sets((len(first), len(second), 0)))


def weights(first=N, second=M):
    sets = Sets((first, second, 0))
    return sets.weights(sets.generated), sets.weights(sets.reference)


def distances(build, given, first=N, second=M):
    """Value of each row at G against R."""
    p, q = weights(first, second)
    statistic = build(given)
    return dict(
        zip(statistic.names, statistic.distances(p[None], q[None])[:, 0].tolist(), strict=True)
    )


@pytest.fixture(scope="module")
def given():
    return pool(gaussian(N, 1), 0.5 + 2 * gaussian(M, 2))


def rms(x, area):
    return math.sqrt((area * np.square(x)).sum())


# ---- groups 1 to 3 ----


def test_spectrum_by_octave():
    factor = torch.tensor([1.0, 1, 2, 2, 3, 3, 3], dtype=torch.float64)
    x = gaussian(N, 1)
    found = distances(statistics.spectrum, pool(x * harmonics.expand(factor), x), N, N)
    logs = np.log(np.square([1.0, 2, 3]))
    assert found["spectrum by octave, log ratio"] == pytest.approx(rms(logs, 1 / 3))
    # the variance of a square is of fourth order
    assert found["variance of octave power, log ratio"] == pytest.approx(rms(2 * logs, 1 / 3))


def test_spectrum_detail_names_the_octave():
    factor = torch.tensor([1.0, 1, 1, 1, 2, 2, 2], dtype=torch.float64)
    x = gaussian(N, 1)
    statistic = statistics.spectrum(pool(x * harmonics.expand(factor), x))
    mean, _ = statistic.detail(*weights(N, N))
    expected = {"degree 1": 0.0, "degrees 2–3": 0.0, "degrees 4–6": math.log(4)}
    assert mean == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("lmax", "last"), [(0, None), (1, (1, 1)), (7, (4, 7)), (8, (8, 8))])
def test_octaves_end_at_lmax(lmax, last):
    assert metrics.octaves(lmax)[-1:] == ([last] if last else [])


def test_moment_maps_agree_with_scipy(given):
    a, b = given.values[:N], given.values[N:]
    found = distances(statistics.shapes, given)
    expected = {
        "mean map": a.mean(0) - b.mean(0),
        "log standard-deviation map": np.log(a.std(0, ddof=1) / b.std(0, ddof=1)),
        "skewness map": stats.skew(a) - stats.skew(b),
        "excess-kurtosis map": stats.kurtosis(a) - stats.kurtosis(b),
    }
    assert found == pytest.approx({k: rms(x, given.area) for k, x in expected.items()}, rel=1e-10)


def test_mean_of_a_constant_shift_is_in_local_standard_deviations():
    shift = torch.zeros(harmonics.count(LMAX), dtype=torch.float64)
    shift[0] = 0.7 * math.sqrt(4 * math.pi)
    x = gaussian(N, 1)
    given = pool(x + shift, x)
    found = distances(statistics.shapes, given, N, N)
    assert found["mean map"] == pytest.approx(
        rms(0.7 / given.physical.std(0), given.area), rel=1e-10
    )
    assert found["skewness map"] < 1e-9


def test_local_marginals_agree_with_scipy(given):
    pairs = zip(given.sparse[:N].T, given.sparse[N:].T, strict=True)
    apart = np.array([stats.wasserstein_distance(x, y) for x, y in pairs])
    found = distances(statistics.marginals, given)
    assert found["local marginals, W1"] == pytest.approx(given.sparse_area @ apart, rel=1e-10)


def test_wasserstein_with_unequal_weights_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, p, q = rng.normal(size=30), rng.random(30), rng.random(30)
    p, q = p / p.sum(), q / q.sum()
    expected = stats.wasserstein_distance(x, x, p, q)
    assert Ordered.of(x[:, None]).wasserstein(p[None], q[None]) == pytest.approx(expected)


def test_histograms_agree_with_scipy():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(20, 300)), rng.standard_t(4, size=(20, 300)) * 2 + 0.5])
    area, group = rng.random(300) + 0.5, np.repeat([0, 1], 150)
    binned = Histograms.of(x, area, group)
    p, q = weights(20, 20)
    found = binned.wasserstein(p[None], q[None])[0]
    for k in (0, 1):
        u, v = x[:20, group == k], x[20:, group == k]
        w = np.tile(area[group == k], 20)
        exact = stats.wasserstein_distance(u.ravel(), v.ravel(), w, w)
        assert found[k] == pytest.approx(exact, rel=0.01)
    equal = Histograms.of(x, np.ones(300), group)
    levels = np.array([0.01, 0.5, 0.99])
    exact = np.quantile(x[:20, group == 1], levels)
    # a bin is 4 % of √(1 + x²) wide, and near a tail value the values lie about 0.05 apart
    assert equal.quantiles(p[None], levels)[0, 1] == pytest.approx(exact, abs=0.1)
    assert equal.map_quantiles(levels)[3, 0, 1] == pytest.approx(np.median(x[3, :150]), abs=0.1)


def test_quantiles_of_a_scaled_law():
    # Fields with twice the standard deviation have all quantiles twice as large; the pool is long
    # enough for its tails, 24 regions of 2,000 maps, and both sets have the same maps.
    x = gaussian(2000, 3)
    given = Features(torch.cat([2 * x, x]), Sets((2000, 2000, 0)))
    found = distances(statistics.quantiles, given, 2000, 2000)
    unit = math.sqrt(2 / 5)  # standard deviation of x in units of that of the pool
    for level, name in ((0.01, "1 %"), (0.99, "99 %"), (0.999, "99.9 %")):
        expected = abs(stats.norm.ppf(level)) * unit
        assert found[f"{name} quantile by region"] == pytest.approx(expected, rel=0.05)


# ---- groups 4 and 5 ----


def test_energy_distance_agrees_with_scoringrules(given):
    x = given.coefficients.numpy() / math.sqrt(4 * math.pi)  # then norms are root mean squares
    unit = np.sqrt(np.square(cdist(x, x)).mean())

    def mean_score(observed):
        """Σ_y (E‖X − y‖ − E‖X − X'‖/2)/n, X the generated maps."""
        return scoringrules.es_ensemble(observed, np.broadcast_to(x[:N], (len(observed), N, 49)))

    within_reference = cdist(x[N:], x[N:]).mean()
    expected = 2 * mean_score(x[N:]).mean() - within_reference
    found = distances(statistics.energy, given)["energy distance"]
    assert found == pytest.approx(math.sqrt(expected / unit), rel=1e-8)


def test_whitened_energy_distance_by_a_direct_sum(given):
    a = given.coefficients
    spectrum = harmonics.degree_spectrum(a - a.mean(0)).mean(0)
    white = (a / harmonics.expand(spectrum).sqrt()).numpy()
    D = cdist(white, white)
    square = 2 * D[:N, N:].mean() - D[:N, :N].mean() - D[N:, N:].mean()
    expected = math.sqrt(square / np.sqrt(np.square(D).mean()))
    found = distances(statistics.energy, given)["energy distance, whitened"]
    assert found == pytest.approx(expected, rel=1e-8)


def test_energy_distance_is_scipys_on_the_line():
    # Fields that differ in their mean alone are numbers.
    a = torch.zeros(N + M, 4, dtype=torch.float64)
    a[:, 0] = torch.randn(N + M, generator=seeded(1), dtype=torch.float64)
    x = a[:, 0].numpy()
    given = pool(a[:N], a[N:])
    expected = stats.energy_distance(x[:N], x[N:]) / (2 * x.var()) ** 0.25
    found = distances(statistics.energy, given)["energy distance"]
    assert found == pytest.approx(expected, rel=1e-8)


def test_principal_components_are_the_leading_ones():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    for count in (60, 5000):  # by the Gram matrix of maps, by that of coefficients
        x = rng.normal(size=(count, 8)) * 2.0 ** -np.arange(8) @ basis + 3
        scores = features.principal_components(x, np.arange(count))
        centred = x - x.mean(0)
        _, _, vectors = np.linalg.svd(centred, full_matrices=False)
        expected = centred @ vectors.T
        expected /= expected.std(0)
        np.testing.assert_allclose(np.abs(scores), np.abs(expected), atol=1e-6)


def test_sliced_distance_of_a_shift_along_one_component():
    shift = 0.5
    scores = np.random.default_rng(0).normal(size=(50, 1))
    scores = np.concatenate([scores + shift, scores])
    given = type("Given", (), {"scores": scores})
    found = distances(statistics.sliced, given, 50, 50)
    assert found["principal components, sliced W1"] == pytest.approx(shift)


# ---- groups 6 to 8 ----


def test_gradient_of_known_fields():
    grid = GaussLegendre(15)
    a = torch.zeros(2, 9, dtype=torch.float64)
    a[0, 2] = math.sqrt(4 * math.pi / 3)  # cos θ, with |∇f| = sin θ
    a[1, 8] = 1.0  # Y_22 = c sin²θ cos 2φ
    size = features.gradient_magnitude(a, grid).reshape(2, *grid.shape)
    sine = np.cos(np.radians(grid.latitude))[:, None]
    np.testing.assert_allclose(size[0], np.broadcast_to(sine, grid.shape), atol=1e-12)
    c = math.sqrt(15 / (16 * math.pi))
    phi = np.radians(grid.longitude)
    cosine = np.sqrt(1 - sine**2)
    expected = 2 * c * np.hypot(sine * cosine * np.cos(2 * phi), sine * np.sin(2 * phi))
    np.testing.assert_allclose(size[1], expected, atol=1e-12)


def test_mean_square_gradient_is_that_of_the_laplacian():
    a = gaussian(5, 1)
    grid = GaussLegendre(15)
    size = features.gradient_magnitude(a, grid)
    area = grid.area_weights.numpy().ravel()
    ell = harmonics.degrees(LMAX)
    expected = (a.square() * ell * (ell + 1)).sum(-1).numpy()
    np.testing.assert_allclose(np.square(size) @ area, expected, rtol=1e-10)


def test_pairs_have_their_separations():
    here, there = features.random_pairs()

    def vectors(points: Points):
        theta, phi = np.radians(90 - points.latitude), np.radians(points.longitude)
        return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])

    angle = np.degrees(np.arccos((vectors(here) * vectors(there)).sum(0)))
    np.testing.assert_allclose(angle.reshape(3, -1), [[5], [15], [45]] * np.ones(500), rtol=1e-6)


def test_windows_of_bands_are_a_partition():
    for lmax in (1, 2, 6, 31):
        windows = features.band_windows(lmax)
        np.testing.assert_allclose(np.square(windows[:, 1:]).sum(0), 1.0, atol=1e-12)
        assert (windows[:, 0] == 0).all()
        assert (windows.max(1) > 0.5).all()


def test_shape_of_bands_agrees_with_scipy(given):
    statistic = statistics.bands(given)
    skewness, kurtosis = statistic.detail(*weights())
    window = torch.from_numpy(features.band_windows(LMAX)[1])
    psi = given.grid.synthesis(given.coefficients * harmonics.expand(window)).flatten(1).numpy()
    psi = (psi - psi.mean(0)) / psi.std(0)

    def shape(x):
        w = given.area / len(x)
        centred = x - (x @ w).sum()
        m2, m3, m4 = ((centred**k @ w).sum() for k in (2, 3, 4))
        return m3 / m2**1.5, m4 / m2**2 - 3

    (s1, k1), (s2, k2) = shape(psi[:N]), shape(psi[N:])
    assert skewness["degrees about 2"] == pytest.approx(s1 - s2, rel=1e-8)
    assert kurtosis["degrees about 2"] == pytest.approx(k1 - k2, rel=1e-8)


def test_summaries_of_maps_agree_with_scipy(given):
    found = distances(statistics.summaries, given)
    x = given.physical
    threshold = np.quantile(x, 0.95, axis=0)
    numbers = {
        "area mean": x @ given.area,
        "maximum": x.max(1),
        "minimum": x.min(1),
        "area above local 95 %": (x > threshold) @ given.area,
    }
    for name, y in numbers.items():
        expected = stats.wasserstein_distance(y[:N], y[N:])
        assert found[f"{name} of a map, W1"] == pytest.approx(expected, rel=1e-9)


def test_area_mean_is_the_lowest_coefficient(given):
    expected = given.coefficients[:, 0].numpy() / math.sqrt(4 * math.pi)
    np.testing.assert_allclose(given.extremes[:, 0], expected, atol=1e-12)


def test_correlations_agree_with_numpy(given):
    pairs = np.triu_indices(24, 1)
    a, b = (np.corrcoef(given.means[k].T)[pairs] for k in (slice(0, N), slice(N, None)))
    found = distances(statistics.correlations, given)
    assert found["correlations of regional means"] == pytest.approx(
        np.sqrt(np.square(a - b).mean()), rel=1e-9
    )


def test_regions_have_equal_areas(given):
    areas = np.bincount(given.region, given.area)
    assert len(areas) == 24
    # belts of whole Gauss latitudes
    assert areas == pytest.approx(np.full(24, 1 / 24), rel=0.05)


def test_joint_features_average_the_channels():
    a, b = gaussian(N + M, 1), 100 * gaussian(N + M, 2)
    sets = Sets((N, M, 0))
    both = JointFeatures((Features(a, sets), Features(b, sets)))
    scaled = torch.cat([a / a.std(0).norm(), b / b.std(0).norm()], dim=1).numpy()
    expected = np.square(cdist(scaled, scaled))
    np.testing.assert_allclose(both.squared_distances, expected / expected.mean(), rtol=1e-8)
    assert both.means.shape == (N + M, 48)


def test_isotropic_rows_do_not_change_when_all_maps_are_rotated():
    # A quarter turn about the axis carries the nodes into nodes.
    m = harmonics.orders(LMAX).double()

    def turned(a, angle):
        flipped = harmonics.degrees(LMAX) * (harmonics.degrees(LMAX) + 1) - harmonics.orders(LMAX)
        return torch.cos(m * angle) * a + torch.sin(m * angle) * a[:, flipped]

    x, y = gaussian(N, 1), 2 * gaussian(M, 2)
    for build in (statistics.spectrum, statistics.energy, statistics.shapes, statistics.summaries):
        before = distances(build, pool(x, y))
        after = distances(build, pool(turned(x, math.pi / 2), turned(y, math.pi / 2)))
        assert after == pytest.approx(before, rel=1e-8)


# ---- groups 9 and 10 ----


def test_area_under_curve_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) + np.repeat([[0.6], [0.0]], 25, axis=0)
    won, together = classifier.wins(x, np.arange(25), np.arange(25, 50))
    ones = np.ones((1, 25))
    assert together.sum() == 5 * 25  # five folds of one block of each set
    found = classifier.area_under_curve(won, together, ones, ones)[0]
    # within the first fold, by hand
    test = np.r_[0:5, 25:30]
    train = np.setdiff1d(np.arange(50), test)
    centre, std = x[train].mean(0), x[train].std(0)
    model = LogisticRegression(C=0.01).fit((x[train] - centre) / std, train < 25)
    score = model.decision_function((x[test] - centre) / std)
    assert won[:5, :5].sum() / 25 == pytest.approx(roc_auc_score(test < 25, score))
    assert found == pytest.approx(won.sum() / 125)


def test_area_under_curve_of_sets_that_are_told_and_that_are_not():
    x = np.random.default_rng(0).normal(size=(400, 4))
    first, second = np.arange(200), np.arange(200, 400)
    ones = np.ones((1, 200))
    alike = classifier.area_under_curve(*classifier.wins(x, first, second), ones, ones)[0]
    # 5 folds of 40 × 40: the standard deviation of an AUC of 200 each is about 0.03
    assert alike == pytest.approx(0.5, abs=0.12)
    x[:200, 2] += 8
    told = classifier.area_under_curve(*classifier.wins(x, first, second), ones, ones)[0]
    assert told > 0.999


# ---- resampling ----


def test_blocks_are_successive_and_distinct():
    rng = np.random.default_rng(0)
    members = 100 + np.arange(63)
    drawn = distinct_blocks(members, 28, rng)
    assert len(drawn) == 28
    assert len(set(drawn)) == 28
    for k in range(0, 25, BLOCK):
        assert (np.diff(drawn[k : k + BLOCK]) == 1).all()
    boot = moving_blocks(members, 63, rng)
    assert len(boot) == 63
    assert set(boot) <= set(members)
    assert (np.diff(boot).reshape(-1)[: BLOCK - 1] == 1).all()
    assert len(distinct_blocks(members, 80, rng)) == 80


def test_exchanges_keep_every_map_once():
    first, second = exchanged(np.arange(12), np.arange(12, 29), np.random.default_rng(0))
    assert (len(first), len(second)) == (12, 17)
    assert set(first) | set(second) == set(range(29))


@pytest.mark.parametrize(("training", "parts"), [(0, 4), (15, 1), (90, 3), (900, 4)])
def test_design_of_pairs(training, parts):
    sets = Sets((20, 25, training))
    design = Design.draw(sets, 7, np.random.default_rng(0))
    assert design.parts == parts
    assert design.p.shape == (1 + 20 + 7 * (1 + parts), 45 + training)
    np.testing.assert_allclose(design.p.sum(1), 1.0)
    np.testing.assert_allclose(design.q.sum(1), 1.0)
    if training:
        basis = sets.basis
        assert not design.p[:, basis].any()  # T' is never what the basis was fitted to
        assert not design.q[:, :20].any()
    p, q = design.bootstrap
    assert p.shape == q.shape == (7, 45 + training)
    assert not p[:, 20:].any()
