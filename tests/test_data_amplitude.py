"""The local amplitude: K against dense linear algebra, its inverse, and what it is fitted to."""

from __future__ import annotations

import math

import pytest
import torch

from spherediff import harmonics
from spherediff.covariance import Covariance, shrunk_variance
from spherediff.data.amplitude import (
    Amplitude,
    _held_out_log_likelihood,
    local_variance,
    with_local_variance,
)
from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre
from spherediff.spectra import PowerLaw


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def amplitude(channels: int, degree: int, size: float = 0.3) -> Amplitude:
    b = size * normal(channels, harmonics.count(degree))
    b[:, 0] = 0
    return Amplitude(b)


@pytest.mark.parametrize(("lmax", "degree"), [(3, 1), (7, 3), (12, 4)])
def test_product_is_the_projection_of_sigma_times_the_field(lmax: int, degree: int) -> None:
    K = amplitude(2, degree)
    x = normal(3, 2, harmonics.count(lmax), seed=1)
    fine = GaussLegendre(lmax + 40)  # here the quadrature of exp(…) is exact to rounding
    sigma = fine.synthesis(K.log_std).exp()
    expected = fine.analysis(sigma * fine.synthesis(x), lmax)
    # the coarser grid of K truncates the tail of exp, which is small but not zero
    torch.testing.assert_close(K.multiply(x), expected, rtol=0, atol=2e-2 * float(x.abs().max()))
    # degree one of log σ and a field up to lmax: what is linear in b is exact
    small = Amplitude(1e-6 * K.log_std)
    slope = (small.multiply(x) - x) / 1e-6
    exact = fine.analysis(fine.synthesis(K.log_std) * fine.synthesis(x), lmax)
    torch.testing.assert_close(slope, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("lmax", "degree"), [(4, 2), (8, 8)])
def test_matrix_is_symmetric_with_eigenvalues_between_the_extremes_of_sigma(
    lmax: int, degree: int
) -> None:
    K = amplitude(1, degree)
    n = harmonics.count(lmax)
    matrix = K.multiply(torch.eye(n, dtype=torch.float64)[:, None])[:, 0]
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    sigma = K.map(GaussLegendre(lmax + math.ceil(degree / 2)))
    assert sigma.min() < eigenvalues.min() < eigenvalues.max() < sigma.max()
    a = normal(2, 1, n, seed=2)
    torch.testing.assert_close(K.divide(a), torch.linalg.solve(matrix, a[..., None])[..., 0])


def test_division_undoes_multiplication_channel_by_channel() -> None:
    K = amplitude(3, 5, size=0.5)
    x = normal(4, 3, harmonics.count(10), seed=3)
    torch.testing.assert_close(K.divide(K.multiply(x)), x, rtol=1e-9, atol=1e-10)
    second = Amplitude(K.log_std[1:2])
    torch.testing.assert_close(second.multiply(x[:, 1:2]), K.multiply(x)[:, 1:2])


def test_fit_finds_the_map_that_modulates_a_gaussian_field() -> None:
    lmax, degree, samples = 15, 2, 4000
    K = amplitude(1, degree)
    field = GaussianField(PowerLaw(1.0, 3.0), lmax, dtype=torch.float64)
    x = field.sample((samples, 1), generator=torch.Generator().manual_seed(4))
    found = Amplitude.fit(K.multiply(x), degree).log_std
    # a local log std has an error of 1/√(2·4000) = 0.011; a coefficient averages over the sphere,
    # √(4π) 0.011 at most = 0.04.  Truncation at lmax blurs σ a little more.
    torch.testing.assert_close(found, K.log_std, rtol=0, atol=0.06)
    assert float(K.log_std.abs().max()) > 0.3


def test_likeliest_follows_the_law_that_made_the_maps() -> None:
    """Channel by channel: amplitudes of degree 2 and 8, and fields modulated by their gradients."""
    lmax, samples = 12, 400
    b = torch.zeros(3, harmonics.count(8), dtype=torch.float64)
    b[0, 1:9] = 0.4 * normal(8)
    b[1, 1:] = 0.25 * normal(80, seed=1)
    generator = torch.Generator().manual_seed(5)
    field = GaussianField(PowerLaw(1.0, 2.2), lmax, dtype=torch.float64)
    x = Amplitude(b).multiply(field.sample((samples, 3), generator=generator))
    found = Amplitude.likeliest(x, 8).log_std
    resolved = [int(harmonics.degrees(8)[row.nonzero().max()]) if row.any() else 0 for row in found]
    assert resolved == [2, 8, 0]
    torch.testing.assert_close(found[1:2], Amplitude.fit(x[:, 1:2], 8).log_std)


def test_held_out_likelihood_is_that_of_the_dense_gaussian() -> None:
    lmax, samples = 5, 60
    x = amplitude(1, 2).multiply(normal(samples, 1, harmonics.count(lmax), seed=6))
    K = Amplitude.fit(x[:48], 2)
    matrix = K.multiply(torch.eye(36, dtype=torch.float64)[:, None])[:, 0]
    y = K.divide(x[:48])
    covariance = matrix @ torch.diag(shrunk_variance(y)[0]) @ matrix
    law = torch.distributions.MultivariateNormal(matrix @ y.mean(0)[0], covariance)
    expected = law.log_prob(x[48:, 0]).mean() + 18 * math.log(2 * math.pi)
    assert _held_out_log_likelihood(x, 2) == pytest.approx(float(expected))


def test_a_covariance_gets_the_local_variances_of_fields_and_keeps_its_own() -> None:
    """Fields three times more variable here than there, and a covariance that has shrunk that."""
    lmax, samples = 8, 120
    K = Amplitude(torch.zeros(2, 4, dtype=torch.float64))
    K.log_std[0, 1:] = torch.tensor([0.6, -0.4, 0.5])
    field = GaussianField(PowerLaw(1.0, 2.5), lmax, dtype=torch.float64)
    x = K.multiply(field.sample((samples, 2), generator=torch.Generator().manual_seed(7)))
    v = shrunk_variance(x)
    shrunk = Covariance.principal(x, v)
    found = with_local_variance(shrunk, x, [0])
    torch.testing.assert_close(found.variance, v)
    grid = GaussLegendre(lmax)
    dense = torch.diag(found.diagonal[0]) + found.factor[:, 0].T @ found.factor[:, 0]
    values = grid.synthesis(torch.eye(81, dtype=torch.float64)).flatten(1)
    expected = torch.einsum("ip,ij,jp->p", values, dense, values).reshape(grid.shape)
    torch.testing.assert_close(local_variance(found, grid)[0], expected)

    def error(covariance: Covariance, channel: int) -> float:
        difference = local_variance(covariance, grid)[channel].log()
        difference = grid.analysis(difference - grid.synthesis(x[:, channel]).var(0).log(), 4)
        return float(difference[1:].norm())

    assert error(shrunk, 0) > 0.5
    assert error(found, 0) < 0.2 * error(shrunk, 0)
    assert error(found, 1) == pytest.approx(error(shrunk, 1), rel=0.3)
    assert with_local_variance(shrunk, x, []) is shrunk
    # still invertible as D + UᵀU, also without noise
    one = torch.ones(found.event_shape, dtype=torch.float64)
    back = found.solve(one, 0 * one, found.matmul(x))
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)


def test_degree_zero_is_the_identity_and_a_degree_beyond_lmax_is_refused() -> None:
    x = normal(5, 1, harmonics.count(6))
    K = Amplitude.fit(x, 0)
    torch.testing.assert_close(K.multiply(x), x, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="from 0 to lmax = 6, got 7"):
        Amplitude.fit(x, 7)
