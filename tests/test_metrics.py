"""The statistics against independent formulas, known answers and their stated false-alarm rate."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from spherediff import GaussianField, Tabulated, WhittleMatern, harmonics, metrics
from spherediff.grids import GaussLegendre

LMAX = 6
N, M = 40, 30


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(count, seed, lmax=LMAX, std=1.0):
    field = GaussianField(WhittleMatern(std, 1.0, 0.8), lmax, dtype=torch.float64)
    return field.sample((count,), generator=seeded(seed))


def weights(first=N, second=M):
    p = np.r_[np.full(first, 1 / first), np.zeros(second)]
    q = np.r_[np.zeros(first), np.full(second, 1 / second)]
    return p, q


@pytest.fixture(scope="module")
def pool():
    return metrics.Pool.of(torch.cat([gaussian(N, 1), 0.5 + 2 * gaussian(M, 2)]))


def test_mean_of_a_constant_shift():
    shift = torch.zeros(harmonics.count(LMAX), dtype=torch.float64)
    shift[0] = 0.7 * math.sqrt(4 * math.pi)
    x = gaussian(N, 1)
    pool = metrics.Pool.of(torch.cat([x + shift, x]))
    assert metrics.mean_rmse(pool, *weights(N, N)) == pytest.approx(0.7, rel=1e-12)


def test_mean_of_a_shift_by_a_harmonic():
    shift = torch.zeros(harmonics.count(LMAX), dtype=torch.float64)
    shift[7] = 0.3  # an orthonormal harmonic has the mean square 1/4π
    x = gaussian(N, 1)
    pool = metrics.Pool.of(torch.cat([x + shift, x]))
    expected = 0.3 / math.sqrt(4 * math.pi)
    assert metrics.mean_rmse(pool, *weights(N, N)) == pytest.approx(expected, rel=1e-12)


def test_scaling_changes_the_spread_alone():
    x = gaussian(N, 1)
    x = x - x.mean(0)
    pool = metrics.Pool.of(torch.cat([1.25 * x, x]))
    p, q = weights(N, N)
    assert metrics.spread_error(pool, p, q) == pytest.approx(0.25, rel=1e-10)
    assert metrics.variance_ratio(pool, p, q) == pytest.approx(1.25**2, rel=1e-12)
    assert metrics.mean_rmse(pool, p, q) < 1e-12
    assert metrics.skewness_rmse(pool, p, q) < 1e-10


def test_spread_and_skewness_agree_with_scipy(pool):
    a, b = pool.values[:N], pool.values[N:]
    spread = a.std(0, ddof=1) / b.std(0, ddof=1) - 1
    skewness = stats.skew(a) - stats.skew(b)
    p, q = weights()
    expected = math.sqrt((pool.area * spread**2).sum())
    assert metrics.spread_error(pool, p, q) == pytest.approx(expected, rel=1e-12)
    expected = math.sqrt((pool.area * skewness**2).sum())
    assert metrics.skewness_rmse(pool, p, q) == pytest.approx(expected, rel=1e-10)


def test_skewness_of_chi_square_fields():
    # One coefficient of the constant function: (z² − 1)/√2 at every place, of skewness √8.  The
    # skewness of 200,000 draws has a standard deviation of about 0.04.
    z = torch.randn(200_000, 2, generator=seeded(3), dtype=torch.float64)
    chi = (z[:, :1].square() - 1) / math.sqrt(2)
    pool = metrics.Pool.of(torch.cat([chi, z[:, 1:]]))
    p, q = weights(200_000, 200_000)
    assert metrics.skewness_rmse(pool, p, q) == pytest.approx(math.sqrt(8), abs=0.2)


def test_wasserstein_agrees_with_scipy(pool):
    a, b = pool.values[:N], pool.values[N:]
    distance = [
        stats.wasserstein_distance(x, y) / y.std(ddof=1) for x, y in zip(a.T, b.T, strict=True)
    ]
    expected = (pool.area * distance).sum()
    assert metrics.wasserstein(pool, *weights()) == pytest.approx(expected, rel=1e-12)


def test_wasserstein_of_a_shift():
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    pool = metrics.Pool.of(torch.cat([x + 0.3, x]))
    expected = 0.3 / x.std().item()
    assert metrics.wasserstein(pool, *weights(50, 50)) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_by_a_double_loop(pool):
    maps, grid = pool.values, GaussLegendre(LMAX)
    area = grid.area_weights.numpy().ravel() / (4 * math.pi)

    def mean_distance(first, second):
        pairs = [(i, j) for i in first for j in second if i != j]
        squares = [((maps[i] - maps[j]) ** 2 * area).sum() for i, j in pairs]
        return np.sqrt(squares).mean()

    P, Q = range(N), range(N, N + M)
    between, within_p, within_q = (mean_distance(*s) for s in ((P, Q), (P, P), (Q, Q)))
    expected = (2 * between - within_p - within_q) / within_q
    assert metrics.energy_distance(pool, *weights()) == pytest.approx(expected, rel=1e-10)


def test_energy_distance_is_unbiased():
    # The mean over 200 pairs of sets of one law is zero within four standard errors: one false
    # alarm in 16,000.
    values = []
    for seed in range(200):
        pool = metrics.Pool.of(gaussian(16, seed, lmax=3))
        values.append(metrics.energy_distance(pool, *weights(8, 8)))
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)


def test_variance_ratio_by_octaves():
    factor = torch.tensor([1.0, 1, 2, 2, 3, 3, 3], dtype=torch.float64)
    x = gaussian(N, 1)
    pool = metrics.Pool.of(torch.cat([x * harmonics.expand(factor), x]))
    p, q = weights(N, N)
    assert metrics.octaves(LMAX) == [(1, 1), (2, 3), (4, 6)]
    for (lowest, highest), expected in zip(metrics.octaves(LMAX), (1, 4, 9), strict=True):
        ratio = metrics.variance_ratio(pool, p, q, lowest, highest)
        assert ratio == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("lmax", "last"), [(0, None), (1, (1, 1)), (7, (4, 7)), (8, (8, 8))])
def test_octaves_end_at_lmax(lmax, last):
    assert metrics.octaves(lmax)[-1:] == ([last] if last else [])


def field_pair(count, seed):
    """Two channels, the second correlated with the first."""
    field = GaussianField(Tabulated([[1.0, 0.5, 0.2, 0.1]] * 2), 3, dtype=torch.float64)
    x = field.sample((count,), generator=seeded(seed))
    x[:, 1] += x[:, 0]
    return x


def test_rows_of_one_law_are_alike_at_the_stated_rate():
    # Each row of 60 comparisons of sets of one law is alike with probability 0.95.  Fewer than 49
    # alike have probability 2e-5 for each of the 9 statistics.
    alike = {}
    for seed in range(60):
        samples, reference = field_pair(24, 2 * seed)[:, :1], field_pair(20, 2 * seed + 1)[:, :1]
        for row in metrics.compare(samples, reference, draws=80, generator=seeded(seed)):
            alike.setdefault(row.statistic, []).append(row.alike)
    assert all(sum(values) >= 49 for values in alike.values()), {
        name: sum(values) for name, values in alike.items()
    }


def test_new_samples_of_the_training_law_lie_within_the_floor_at_the_stated_rate():
    # As above; a law learnt from 60 maps differs a little from that of the samples, and the floor,
    # which counts that twice, is generous to distances and exact to ratios up to terms of 20/60.
    alike = {}
    for seed in range(60):
        sets = [field_pair(n, 3 * seed + k)[:, :1] for k, n in enumerate((20, 16, 60))]
        for row in metrics.compare(*sets, draws=80, generator=seeded(seed)):
            alike.setdefault(row.statistic, []).append(row.alike)
    assert all(sum(values) >= 47 for values in alike.values()), {
        name: sum(values) for name, values in alike.items()
    }


@pytest.mark.parametrize(
    ("change", "statistic"),
    [
        (lambda x: x + 1.0, "mean map"),
        (lambda x: 1.5 * x, "standard-deviation map"),
        (lambda x: 1.5 * x, "variance ratio, all degrees"),
        (lambda x: x + 1.0, "local marginals"),
        (lambda x: 1.5 * x, "fields, energy distance"),
    ],
)
def test_a_difference_is_found(change, statistic):
    samples, reference = change(field_pair(60, 1)), field_pair(60, 2)
    training = field_pair(80, 3)
    rows = metrics.compare(samples, reference, training, draws=80, generator=seeded(0))
    found = [row for row in rows if row.statistic.startswith(statistic)]
    assert len(found) >= 2
    assert not any(row.alike for row in found)


def test_lost_dependence_between_channels_shows_in_the_joint_row_alone():
    samples = field_pair(400, 1)
    samples[:, 1] = samples[torch.randperm(400, generator=seeded(9)), 1]
    rows = metrics.compare(samples, field_pair(400, 2), draws=80, generator=seeded(0))
    joint = rows[-1]
    assert joint.variable == "all"
    assert not joint.alike
    assert all(row.alike for row in rows[:-1] if row.statistic == joint.statistic)


def test_jackknife_error_of_the_variance_ratio():
    # Var(s²_P/s²_Q) ≈ 2/(N − 1) + 2/(M − 1) for Gaussian numbers; the jackknife estimates it from
    # 2 × 10 blocks, a χ² with about 18 degrees of freedom: within a factor of two except once in
    # 1,000 or so.
    x = torch.randn(400, 1, 1, generator=seeded(1), dtype=torch.float64)
    rows = metrics.compare(x[:200], x[200:], draws=5, generator=seeded(0))
    ratio = next(row for row in rows if row.statistic == "variance ratio, all degrees")
    expected = ratio.value * math.sqrt(4 / 199)
    assert expected / 2 < ratio.error < 2 * expected


def test_units_and_names():
    rows = metrics.compare(
        field_pair(8, 1), field_pair(8, 2), names=("u", "v"), units=("m/s", "K"), draws=5,
        generator=seeded(0),
    )  # fmt: skip
    assert [row.variable for row in rows if row.units] == ["u", "v"]
    assert [row.units for row in rows if row.units] == ["m/s", "K"]


def test_same_seed_same_rows():
    a, b = (
        metrics.compare(field_pair(8, 1), field_pair(8, 2), draws=5, generator=seeded(4))
        for _ in range(2)
    )
    assert a == b


@pytest.mark.parametrize(
    ("samples", "reference", "message"),
    [
        (field_pair(3, 1), field_pair(8, 2), "at least four samples"),
        (field_pair(8, 1), field_pair(8, 2)[:, :, :9], r"alike in all sets, got \(8, 2, 9\)"),
        (field_pair(8, 1) * torch.nan, field_pair(8, 2), "coefficients of the samples are not"),
        (field_pair(8, 1), torch.zeros(8, 2, 16), "channel 0: the maps of the reference are all"),
    ],
)
def test_bad_input(samples, reference, message):
    with pytest.raises(ValueError, match=message):
        metrics.compare(samples, reference, generator=seeded(0))
