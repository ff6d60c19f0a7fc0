"""Kriging against dense linear algebra, regression on correlation functions, and closed forms.

Errors are counted in posterior standard deviations, so a wrong coefficient is an error of order
one at every noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from spherediff._linear import conjugate_gradients
from spherediff.covariance import Covariance
from spherediff.gaussian import GaussianField, MultivariateGaussianField
from spherediff.grids import GaussLegendre, HEALPix, Points
from spherediff.harmonics import count, expand
from spherediff.kriging import Kriging, Prior
from spherediff.observe import (
    Coefficients,
    Dense,
    Filtered,
    Means,
    Observation,
    Operator,
    Stacked,
    Values,
    gaussian_beam,
)
from spherediff.spectra import PowerLaw, Tabulated, WhittleMatern
from spherediff.streams import Streams

TIGHT = 1e-5  # tolerance of the solver where it is compared with dense algebra
MATERN = WhittleMatern(1.0, 1.5, 0.8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def stations(m: int, seed: int = 1) -> Points:
    rng = np.random.default_rng(seed)
    return Points(np.degrees(np.arcsin(rng.uniform(-1, 1, m))), rng.uniform(-180, 180, m))


def isotropic(lmax: int) -> GaussianField:
    return GaussianField(MATERN, lmax, dtype=torch.float64)


def correlated(lmax: int) -> MultivariateGaussianField:
    ell = torch.arange(lmax + 1)
    a, b = PowerLaw(1.0, 3.0)(ell), PowerLaw(2.0, 2.5)(ell)
    cross = -0.8 * (a * b).sqrt()
    C = torch.stack([torch.stack([a, cross], -1), torch.stack([cross, b], -1)], -2)
    return MultivariateGaussianField(C, dtype=torch.float64)


def low_rank(lmax: int) -> Covariance:
    shape = (2, count(lmax))
    D = expand(MATERN(torch.arange(lmax + 1))) * normal(*shape, seed=3).exp()
    return Covariance(D, 0.5 * normal(6, *shape, seed=4) * D.sqrt())


PRIORS: dict[str, Callable[[int], Prior]] = {
    "isotropic": isotropic,
    "independent channels": lambda lmax: GaussianField(
        Tabulated(torch.stack([MATERN(torch.arange(lmax + 1)), torch.ones(lmax + 1)])), lmax
    ),
    "correlated channels": correlated,
    "diagonal plus low rank": low_rank,
}


def matrix(operator: Operator) -> Tensor:
    """H, shape (m, events)."""
    size = math.prod(operator.event_shape)
    return operator(torch.eye(size, dtype=torch.float64).reshape(size, *operator.event_shape)).T


def prior_matrix(prior: Prior) -> Tensor:
    """S, from what the priors are by definition."""
    if isinstance(prior, GaussianField):
        return expand(prior.degree_variance).flatten().diag()
    if isinstance(prior, MultivariateGaussianField):
        blocks = expand(prior.cross_spectrum.permute(1, 2, 0))  # (channels, channels, n)
        return torch.cat([torch.cat([C.diag() for C in row], 1) for row in blocks])
    flat = prior.factor.flatten(1)
    return prior.diagonal.flatten().diag() + flat.T @ flat


def textbook(observation: Observation, prior: Prior, mean: Tensor) -> tuple[Tensor, Tensor]:
    """μ + SHᵀ(HSHᵀ + N)⁻¹(y − Hμ) and S − SHᵀ(HSHᵀ + N)⁻¹HS."""
    H, S = matrix(observation.operator), prior_matrix(prior)
    K = H @ S @ H.T + observation.noise_variance.diag()
    gain = torch.linalg.solve(K, H @ S).T
    posterior = S - gain @ H @ S
    return mean.flatten() + gain @ (observation.values - H @ mean.flatten()), posterior


def observe(prior: Prior, noise: float, spread: float, operator: Operator | None = None):
    """Something seen of a field that is not typical of the prior."""
    shape = prior.event_shape
    lmax = math.isqrt(shape[-1]) - 1
    if operator is None:
        last = math.prod(shape[:-1]) - 1
        grid = GaussLegendre(7)
        cap = (grid.latitude > 40)[None, :, None] * np.ones((1, *grid.shape))
        beam = Filtered(Values(HEALPix(2), shape, mask=np.arange(48) > 9), gaussian_beam(0.5, lmax))
        operator = Stacked([Values(stations(9), shape, last), Means(grid, cap, shape), beam])
        operator = Dense.of(operator)
    std = noise * torch.exp(spread * normal(operator.size, seed=5))
    x = normal(*shape, seed=6)
    return Observation(operator, operator(x) + std * normal(operator.size, seed=7), std)


def assert_same(found: Tensor, expected: Tensor, scale: Tensor) -> None:
    error = (found - expected).abs() / scale
    assert float(error.max()) < 5e-5


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["homoscedastic", "heteroscedastic"])
@pytest.mark.parametrize("noise", [1e-3, 1e-1, 1.0, 1e2])
@pytest.mark.parametrize(("lmax", "name"), [*((4, name) for name in PRIORS), (9, "isotropic")])
def test_mean_and_covariance_equal_dense_algebra(
    name: str, lmax: int, noise: float, spread: float
) -> None:
    prior = PRIORS[name](lmax)
    seen = observe(prior, noise, spread)
    mu = normal(*prior.event_shape, seed=8)
    kriging = Kriging(seen, prior, mu, tolerance=TIGHT)
    mean, covariance = textbook(seen, prior, mu)
    std = covariance.diagonal().sqrt()
    assert_same(kriging.mean.flatten(), mean, std)
    unit = torch.eye(len(std), dtype=torch.float64).reshape(-1, *prior.event_shape)
    assert_same(kriging.covariance_matmul(unit).flatten(1), covariance, torch.outer(std, std))


def test_variance_of_means_stations_and_coefficients_equals_dense_algebra() -> None:
    prior = correlated(5)
    seen = observe(prior, 0.05, 0.5)
    regions = np.random.default_rng(1).random((3, *GaussLegendre(6).shape))
    G = Stacked(
        [
            Values(stations(5, seed=4), prior.event_shape, 1),
            Means(GaussLegendre(6), regions, prior.event_shape),
            Coefficients.up_to(1, prior.event_shape),
        ]
    )
    kriging = Kriging(seen, prior, tolerance=TIGHT)
    _, covariance = textbook(seen, prior, torch.zeros(prior.event_shape, dtype=torch.float64))
    expected = (matrix(G) @ covariance @ matrix(G).T).diagonal()
    assert_same(kriging.variance(G), expected, expected)


def points_regression(field: GaussianField, seen: Observation, at: Points) -> tuple[Tensor, Tensor]:
    """Gaussian-process regression with the correlation function: no harmonics at all."""
    assert isinstance(seen.operator, Values)

    def unit(points: Points) -> np.ndarray:
        lat, lon = np.radians(points.latitude), np.radians(points.longitude)
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)

    def covariance(p: Points, q: Points) -> Tensor:
        angle = np.arccos(np.clip(unit(p) @ unit(q).T, -1, 1))
        return field.variance * field.correlation(angle)

    sites = seen.operator.grid
    assert isinstance(sites, Points)
    cross = covariance(at, sites)
    K = covariance(sites, sites) + seen.noise_variance.diag()
    gain = torch.linalg.solve(K, cross.T).T
    return gain @ seen.values, covariance(at, at) - gain @ cross.T


def test_values_at_unobserved_points_are_those_of_regression_on_the_correlation_function() -> None:
    field = isotropic(12)
    seen = observe(field, 0.05, 0.7, Values(stations(20), field.event_shape))
    at = Points(np.array([80.0, 10.0, -35.0, -36.0]), np.array([0.0, 100.0, 200.0, 201.0]))
    mean, covariance = points_regression(field, seen, at)
    kriging = Kriging(seen, field, tolerance=TIGHT)
    G = Values(at, field.event_shape)
    assert_same(G(kriging.mean), mean, covariance.diagonal().sqrt())
    assert_same(kriging.variance(G), covariance.diagonal(), covariance.diagonal())
    quick = Observation(Dense.of(seen.operator), seen.values, seen.noise_std)
    draws = Dense.of(G)(Kriging(quick, field).sample((1500,), generator=seeded(11)))
    assert_law(draws, mean, covariance)


def assert_law(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Whitened draws are standard normal; three χ² tests, false-alarm rate 10⁻³ each."""
    factor = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(factor, (draws - mean).T, upper=False).T
    K, n = z.shape
    p_mean = stats.chi2.sf(K * float(z.mean(0).square().sum()), n)
    power = z.square().sum(0).numpy()
    p_variance = 2 * np.minimum(stats.chi2.cdf(power, K), stats.chi2.sf(power, K))
    # products of independent normals: Σ_k z_ki z_kj/√K is nearly N(0, 1), independent over pairs
    products = (z.T @ z / math.sqrt(K))[tuple(torch.triu_indices(n, n, 1))]
    p_products = stats.chi2.sf(float(products.square().sum()), len(products))
    assert p_mean > 1e-3
    assert p_variance.min() > 1e-3 / n
    assert p_products > 1e-3


@pytest.mark.parametrize("name", ["isotropic", "correlated channels", "diagonal plus low rank"])
@pytest.mark.parametrize("noise", [1e-2, 1.0])
def test_draws_have_the_conditional_law(name: str, noise: float) -> None:
    prior = PRIORS[name](2)
    operator = Dense.of(Values(stations(12), prior.event_shape))
    seen = observe(prior, noise, 0.7, operator)
    mu = normal(*prior.event_shape, seed=8)
    draws = Kriging(seen, prior, mu).sample((1500,), generator=seeded(12))
    assert_law(draws.flatten(1), *textbook(seen, prior, mu))


def test_one_channel_given_another_is_regression_degree_by_degree() -> None:
    prior = correlated(6)
    C = prior.cross_spectrum
    N = 0.3 * float(C[3, 1, 1])
    H = Coefficients.channels([1], prior.event_shape)
    y = normal(count(6))
    kriging = Kriging(Observation(H, y, math.sqrt(N)), prior, tolerance=TIGHT)
    slope, rest = C[:, :, 1] / (C[:, 1:, 1] + N), C[:, 0, 1].square() / (C[:, 1, 1] + N)
    std = expand(C[:, 0, 0] - rest).sqrt()
    assert_same(kriging.mean[0], expand(slope[:, 0]) * y, std)
    assert_same(kriging.mean[1], expand(slope[:, 1]) * y, std)
    unobserved = Coefficients.channels([0], prior.event_shape)
    assert_same(kriging.variance(unobserved), std.square(), std.square())


def test_noise_without_bounds_gives_back_the_prior() -> None:
    for prior in (isotropic(5), correlated(5)):
        mu = normal(*prior.event_shape, seed=8)
        seen = observe(prior, 1e8, 0.5)
        kriging = Kriging(seen, prior, mu)
        torch.testing.assert_close(kriging.mean, mu, rtol=0, atol=1e-6)
        drawn = kriging.sample((3,), generator=seeded(1))
        expected = mu + prior.sample((3,), generator=seeded(1))
        torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)
        x = normal(*prior.event_shape, seed=9)
        S = prior_matrix(prior)
        expected = (S @ x.flatten()).reshape(x.shape)
        torch.testing.assert_close(kriging.covariance_matmul(x), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", PRIORS)
def test_all_coefficients_observed_without_noise_come_back(name: str) -> None:
    prior = PRIORS[name](4)
    y = normal(*prior.event_shape)
    H = Coefficients.up_to(4, prior.event_shape)
    kriging = Kriging(Observation(H, H(y), 1e-5), prior)
    torch.testing.assert_close(kriging.mean, y, rtol=0, atol=1e-7)
    drawn = kriging.sample((4,), generator=seeded(2))
    assert 0.8e-5 < float((drawn - y).std()) < 1.2e-5


@pytest.mark.parametrize("name", PRIORS)
def test_the_preconditioner_is_exact_if_every_coefficient_is_observed(name: str) -> None:
    # HᵀN⁻¹H is then diagonal, in each degree of each channel a number
    prior = PRIORS[name](4)
    ell = torch.arange(5)
    per_degree = 0.2 + 0.1 * ell * torch.ones(math.prod(prior.event_shape[:-1]), 1)
    std = expand(per_degree.double()).flatten()
    H = Coefficients.up_to(4, prior.event_shape)
    kriging = Kriging(Observation(H, normal(H.size), std), prior, tolerance=TIGHT)
    assert kriging.residual <= TIGHT
    assert kriging.iterations == 1


def test_low_degrees_do_not_depend_on_the_band_limit_if_data_see_no_others() -> None:
    means, variances = [], []
    for lmax in (4, 6, 9):
        field = isotropic(lmax)
        gain = (torch.arange(lmax + 1) <= 4).double()
        H = Dense.of(Filtered(Values(stations(15), field.event_shape), gain))
        kriging = Kriging(Observation(H, normal(15), 0.1), field, tolerance=TIGHT)
        mean = kriging.mean
        means.append(mean[:25])
        variances.append(kriging.variance(Coefficients.up_to(4, field.event_shape)))
        assert (mean[25:] == 0).all()
        if lmax > 4:
            x = torch.zeros(count(lmax), dtype=torch.float64)
            x[30] = 1
            expected = field.variance_per_coefficient * x
            torch.testing.assert_close(kriging.covariance_matmul(x), expected)
    std = variances[0].sqrt()
    for mean, variance in zip(means[1:], variances[1:], strict=True):
        assert_same(mean, means[0], std)
        assert_same(variance, variances[0], variances[0])


def test_draws_do_not_depend_on_the_batch() -> None:
    prior = low_rank(4)
    kriging = Kriging(observe(prior, 0.1, 0.5), prior, tolerance=TIGHT)
    draws = kriging.sample((2, 3), generator=seeded(4))
    assert draws.shape == (2, 3, *prior.event_shape)
    draws = draws.flatten(0, 1)
    # each system is solved for itself: what is left is rounding, amplified by the iterations
    first = kriging.sample((2,), generator=seeded(4))
    torch.testing.assert_close(first, draws[:2], rtol=0, atol=1e-7)
    opened = kriging.sample((6,), generator=Streams(seeded(4), 6))
    torch.testing.assert_close(opened, draws, rtol=0, atol=1e-7)
    alone = kriging.sample(generator=seeded(4))
    torch.testing.assert_close(alone, draws[0], rtol=0, atol=1e-7)
    assert kriging.sample((0,), generator=seeded(4)).shape == (0, *prior.event_shape)


@pytest.mark.parametrize("tolerance", [1.0, 1e-2])
def test_residual_bounds_the_error_in_posterior_standard_deviations(
    tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spherediff.kriging._PATIENCE", (10_000, 10_000))  # or it is exact
    prior = isotropic(8)
    seen = observe(prior, 0.01, 1.0)
    kriging = Kriging(seen, prior, tolerance=tolerance)
    mean, covariance = textbook(seen, prior, torch.zeros(prior.event_shape, dtype=torch.float64))
    error = kriging.mean - mean
    size = math.sqrt(float(error @ torch.linalg.solve(covariance, error)))
    assert 1e-9 < size <= kriging.residual <= tolerance


@pytest.mark.parametrize("noise", [1e-3, 1.0])
def test_a_whole_map_takes_few_iterations_at_any_noise(noise: float) -> None:
    field = isotropic(12)
    whole = Kriging(observe(field, noise, 0.0, Values(HEALPix(8), field.event_shape)), field)
    assert whole.residual <= whole.tolerance
    assert whole.iterations <= 15
    uneven = Kriging(observe(field, noise, 0.5, Values(HEALPix(8), field.event_shape)), field)
    assert uneven.residual <= uneven.tolerance
    assert uneven.iterations <= 60


def test_a_few_stations_take_no_more_iterations_than_they_are() -> None:
    # HSHᵀ has rank m; a preconditioner for whole maps would make it full rank
    field = isotropic(20)
    seen = observe(field, 0.1, 0.3, Values(stations(15), field.event_shape))
    kriging = Kriging(seen, field)
    assert kriging.residual <= kriging.tolerance
    assert kriging.iterations <= 20


@pytest.mark.parametrize("together", [10, 10_000], ids=["some", "all"])
@pytest.mark.parametrize("name", PRIORS)
def test_systems_that_take_long_are_solved_by_what_is_told_most(
    name: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spherediff.kriging._PATIENCE", (3, 3))
    monkeypatch.setattr("spherediff.kriging._TOGETHER", together)
    prior = PRIORS[name](6)
    seen = observe(prior, 1e-2, 1.0)
    kriging = Kriging(seen, prior, tolerance=TIGHT)
    mean, covariance = textbook(seen, prior, torch.zeros(math.prod(prior.event_shape)).double())
    assert_same(kriging.mean.flatten(), mean, covariance.diagonal().sqrt())
    everything = Coefficients.up_to(6, prior.event_shape)
    assert_same(kriging.variance(everything), covariance.diagonal(), covariance.diagonal())
    if together > 10:
        assert 3 < kriging.iterations <= 6


def test_a_gap_in_an_accurate_map_takes_few_iterations_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spherediff.kriging._PATIENCE", (30, 30))
    field, grid = isotropic(20), HEALPix(16)
    latitude, longitude = np.radians(grid.latitude), np.radians(grid.longitude)
    x, y, z = np.cos(longitude), np.sin(longitude), np.tan(latitude)
    hidden = np.maximum.reduce([x, y, z]) * np.cos(latitude) > np.cos(0.6)  # three caps
    gap = Values(grid, field.event_shape, mask=~hidden)
    seen = observe(field, 1e-3, 0.2, gap)
    monkeypatch.setattr("spherediff.kriging._TOGETHER", 324)  # degrees up to 17
    found = Kriging(seen, field)
    assert found.residual <= found.tolerance
    monkeypatch.setattr("spherediff.kriging._PATIENCE", (10_000, 10_000))
    alone = Kriging(seen, field)
    assert alone.residual <= alone.tolerance
    assert found.iterations < 0.3 * alone.iterations


def test_single_precision_is_taken_and_solved_in_double() -> None:
    prior = GaussianField(MATERN, 4, dtype=torch.float32)
    seen = observe(isotropic(4), 0.1, 0.5)
    single = Observation(seen.operator, seen.values.float(), seen.noise_std.float())
    double = Kriging(seen, isotropic(4), tolerance=TIGHT)
    kriging = Kriging(single, prior, tolerance=TIGHT)
    assert kriging.mean.dtype == torch.float64
    torch.testing.assert_close(kriging.mean, double.mean, rtol=0, atol=1e-4)
    assert kriging.covariance_matmul(torch.ones(25)).dtype == torch.float64


def test_an_unreached_tolerance_is_an_error_that_says_how_far_it_is() -> None:
    field = isotropic(8)
    seen = observe(field, 1e-3, 1.0)
    kriging = Kriging(seen, field, max_iterations=3)
    for use in (
        lambda: kriging.mean,
        lambda: kriging.sample((2,), generator=seeded()),
        lambda: kriging.covariance_matmul(normal(81)),
    ):
        with pytest.raises(RuntimeError, match="after 3 iterations.*allow more than 3 iterations"):
            use()


def test_errors() -> None:
    field = isotropic(3)
    seen = observe(field, 0.1, 0.0, Values(stations(4), field.event_shape))
    with pytest.raises(TypeError, match="GaussianField.*as prior, got Tensor"):
        Kriging(seen, torch.ones(16))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fields of shape \(16,\).*got \(25,\)"):
        Kriging(seen, isotropic(4))
    with pytest.raises(ValueError, match=r"shape \(..., 16\), got \(25,\)"):
        Kriging(seen, field, normal(25))
    with pytest.raises(ValueError, match="expected one mean"):
        Kriging(seen, field, normal(2, 16))
    with pytest.raises(ValueError, match="1 of 16 coefficients are NaN"):
        Kriging(seen, field, torch.where(torch.arange(16) == 3, math.nan, 0.0))
    with pytest.raises(ValueError, match="positive tolerance"):
        Kriging(seen, field, tolerance=0.0)
    with pytest.raises(ValueError, match="positive tolerance"):
        Kriging(seen, field, max_iterations=0)
    kriging = Kriging(seen, field)
    with pytest.raises(ValueError, match=r"shape \(..., 16\), got \(2, 25\)"):
        kriging.covariance_matmul(normal(2, 25))
    with pytest.raises(
        ValueError, match=r"operator on fields of shape \(16,\), got one on \(25,\)"
    ):
        kriging.variance(Coefficients.up_to(1, (25,)))


def test_preconditioned_conjugate_gradients_solve_each_system_for_itself() -> None:
    n = 12
    Q = torch.linalg.qr(normal(n, n)).Q
    matrices = torch.stack([Q @ torch.logspace(0, p, n).double().diag() @ Q.T for p in (0, 2, 4)])
    b = normal(3, n, seed=1)
    expected = torch.linalg.solve(matrices, b)

    def product(k: slice) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.einsum("kij,kj->ki", matrices[k], x)

    diagonal = matrices.diagonal(dim1=1, dim2=2)
    found = conjugate_gradients(
        product(slice(3)), b, 1e-12, 200, preconditioner=lambda r: r / diagonal
    )
    torch.testing.assert_close(found.solution, expected, rtol=1e-7, atol=0)
    assert float(found.residual.max()) < 1e-11
    inverse = torch.linalg.inv(matrices)
    exact = conjugate_gradients(
        product(slice(3)),
        b,
        1e-9,
        9,
        preconditioner=lambda r: torch.einsum("kij,kj->ki", inverse, r),
    )
    assert exact.iterations == 1
    # loose and tight systems in one batch: each stops when it has its own tolerance
    tolerance = torch.tensor([[1e-1], [1e-3], [1e-1]], dtype=torch.float64)
    together = conjugate_gradients(product(slice(3)), b, tolerance, 200)
    for k in range(3):
        one = slice(k, k + 1)
        alone = conjugate_gradients(product(one), b[one], float(tolerance[k]), 200)
        torch.testing.assert_close(together.solution[one], alone.solution, rtol=1e-9, atol=1e-12)
        assert float(together.residual[k]) <= float(tolerance[k])
