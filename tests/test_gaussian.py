"""Gaussian fields: their law, their Cameron–Martin geometry, their equivalence."""

from __future__ import annotations

import math

import ducc0
import numpy as np
import pytest
import torch
from scipy import special, stats

from spherediff.gaussian import GaussianField, MultivariateGaussianField
from spherediff.grids import Points
from spherediff.harmonics import degree_spectrum, expand, from_healpy, to_healpy
from spherediff.spectra import PowerLaw, Tabulated, WhittleMatern


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(lmax: int = 20, spectrum: object = None) -> GaussianField:
    return GaussianField(spectrum or WhittleMatern(1.5, 1.0, 0.5), lmax, dtype=torch.float64)  # type: ignore[arg-type]


def two_sided_p(chi2: np.ndarray, dof: np.ndarray | int) -> np.ndarray:
    return 2 * np.minimum(stats.chi2.cdf(chi2, dof), stats.chi2.sf(chi2, dof))


def test_degree_spectra_are_chi_squared_at_every_degree() -> None:
    field, N = make(40), 200
    spectra = degree_spectrum(field.sample((N,), generator=seeded(3))).mean(0)
    dof = N * (2 * np.arange(41) + 1)
    p = two_sided_p(dof * (spectra / field.degree_variance).numpy(), dof)
    assert p.min() > 1e-3 / 41  # false-alarm rate 1e-3 over all degrees


def test_pointwise_variance_is_flat_in_latitude_and_as_stated() -> None:
    field, N = make(16), 4000
    latitude = np.linspace(-90, 90, 19)
    values = Points(latitude, np.linspace(0, 350, 19)).synthesis(
        field.sample((N,), generator=seeded(4))
    )
    chi2 = values.square().sum(0).numpy() / float(field.variance)
    assert two_sided_p(chi2, N).min() > 1e-3 / 19


def test_rotated_coefficients_have_the_same_law() -> None:
    field, N = make(8), 3000
    x = field.sample((N,), generator=seeded(5))
    rotated = np.stack(
        [ducc0.sht.rotate_alm(alm, 8, 0.4, 1.1, -0.7) for alm in to_healpy(x).numpy()]
    )
    y = from_healpy(torch.from_numpy(rotated))
    assert (y - x).abs().max() > 0.1
    chi2 = (y.square().sum(0) / field.variance_per_coefficient).numpy()
    assert two_sided_p(chi2, N).min() > 1e-3 / 81


def test_covariance_of_two_points_is_the_correlation_function() -> None:
    field, N = make(24), 4000
    angle = np.array([0.0, 0.2, 0.5, 1.2, 2.5])
    sites = Points(np.rad2deg(0.3 - angle[:4]), np.full(4, 77.0))  # along a meridian
    values = sites.synthesis(field.sample((N,), generator=seeded(6)))
    correlation = np.corrcoef(values.T.numpy())[0]
    expected = field.correlation(angle[:4]).numpy()
    # Fisher's z-transform, four standard errors each
    assert np.abs(np.arctanh(correlation[1:]) - np.arctanh(expected[1:])).max() < 4 / math.sqrt(N)


def test_correlation_equals_an_independent_legendre_sum() -> None:
    field = make(60)
    angle = np.linspace(0, math.pi, 13)
    ell = np.arange(61)
    weight = (2 * ell + 1) * field.degree_variance.numpy()
    table = special.eval_legendre(ell, np.cos(angle)[:, None])
    np.testing.assert_allclose(
        field.correlation(angle), table @ weight / weight.sum(), rtol=0, atol=1e-13
    )
    assert float(field.variance) == pytest.approx(weight.sum() / (4 * math.pi), rel=1e-13)


@pytest.mark.parametrize(("low", "high"), [(3, 10), (15, 300)])
def test_low_degrees_are_the_same_at_every_band_limit_and_batch(low: int, high: int) -> None:
    coarse = make(low).sample((5,), generator=seeded(7))
    fine = make(high).sample((2,), generator=seeded(7))
    assert torch.equal(coarse[:2], fine[:, : (low + 1) ** 2])


def test_cameron_martin_geometry() -> None:
    field = make(6)
    g, h, x = field.sample((3, 4), generator=seeded(8))
    C = field.variance_per_coefficient
    torch.testing.assert_close(field.inner(g, h), (g * h / C).sum(-1))
    torch.testing.assert_close(field.norm(h), (h.square() / C).sum(-1).sqrt())
    torch.testing.assert_close(field.color(field.whiten(x)), x)
    log_density = torch.distributions.Normal(0, C.sqrt()).log_prob
    expected = log_density(x - h).sum(-1) - log_density(x).sum(-1)
    torch.testing.assert_close(field.log_density_shift(h, x), expected)


def test_directions_without_noise_lie_outside_the_cameron_martin_space() -> None:
    field = make(2, Tabulated([0.0, 1.0, 4.0]))
    h = torch.ones(9, dtype=torch.float64)
    assert field.norm(h) == math.inf
    h[0] = 0
    assert float(field.norm(h)) == pytest.approx(math.sqrt(3 / 1 + 5 / 4))
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(field.inner(h, h), h)
    expected = torch.tensor([0.0] + 3 * [2.0] + 5 * [0.5], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_relative_entropy_of_fields_without_some_degree() -> None:
    without, whole = make(2, Tabulated([0.0, 1.0, 4.0])), make(2, Tabulated([1.0, 1.0, 8.0]))
    assert not without.relative_entropy(without).any()
    assert without.relative_entropy(whole).tolist() == 3 * [math.inf]
    assert whole.relative_entropy(without).tolist() == 3 * [math.inf]


def test_feldman_hajek_sums_and_relative_entropy() -> None:
    lmax = 2000
    base = make(lmax, PowerLaw(1.0, 4.0))
    ell = torch.arange(lmax + 1)
    # S/C = 1 + 1/(1+ℓ)^q: the sum Σ(2ℓ+1)(1+ℓ)^{−2q} converges iff q > 1
    near = make(lmax, Tabulated(base.degree_variance * (1 + (1.0 + ell) ** -1.5)))
    far = make(lmax, Tabulated(base.degree_variance * (1 + (1.0 + ell) ** -0.75)))
    sums = base.equivalence(near)
    torch.testing.assert_close(sums, ((2 * ell + 1) * (1.0 + ell.double()) ** -3).cumsum(0))
    entropy, divergent = base.relative_entropy(near), base.relative_entropy(far)
    # equal tails halve for the convergent case (O(1/ℓ)) and grow like ℓ^{1/2} for the other
    assert (entropy[2000] - entropy[1000]) / (entropy[1000] - entropy[500]) < 0.55
    assert (divergent[2000] - divergent[1000]) / (divergent[1000] - divergent[500]) > 1.35
    p = torch.distributions.Normal(0, near.variance_per_coefficient[:100].sqrt())
    q = torch.distributions.Normal(0, base.variance_per_coefficient[:100].sqrt())
    torch.testing.assert_close(entropy[9], torch.distributions.kl_divergence(p, q).sum())


def test_independent_channels_have_their_own_spectra() -> None:
    C = torch.stack([PowerLaw(1.0, 3.0)(torch.arange(6)), PowerLaw(9.0, 2.5)(torch.arange(6))])
    field = GaussianField(Tabulated(C), 5, dtype=torch.float64)
    assert field.event_shape == (2, 36)
    x = field.sample((2000,), generator=seeded(9))
    chi2 = (x.square().sum(0) / expand(C)).numpy().ravel()
    assert two_sided_p(chi2, 2000).min() > 1e-3 / 72
    assert field.inner(x, x).shape == (2000,)


def correlated() -> MultivariateGaussianField:
    a, b = PowerLaw(1.0, 3.0)(torch.arange(8)), PowerLaw(4.0, 2.5)(torch.arange(8))
    cross = -0.8 * (a * b).sqrt()
    C = torch.stack([torch.stack([a, cross], -1), torch.stack([cross, b], -1)], -2)
    return MultivariateGaussianField(C, dtype=torch.float64)


def test_correlated_channels_have_the_stated_matrix_spectrum() -> None:
    field, N = correlated(), 3000
    x = field.sample((N,), generator=seeded(10))
    assert x.shape == (N, 2, 64)
    # each ℓ: N(2ℓ+1) draws of a bivariate normal; whitened cross products are N(0, 1/n)
    z = field.whiten(x)
    torch.testing.assert_close(field.color(z), x)
    np.testing.assert_allclose(field.norm(x) ** 2, z.square().sum((1, 2)), rtol=1e-10)
    ell = expand(torch.arange(8.0)).long()
    for degree in range(8):
        pair = x[:, :, ell == degree].transpose(0, 1).reshape(2, -1)
        sample = pair @ pair.T / pair.shape[1]
        L = torch.linalg.cholesky(field.cross_spectrum[degree])
        white = torch.linalg.solve_triangular(L, sample, upper=False)
        white = torch.linalg.solve_triangular(L, white.T, upper=False)
        error = (white - torch.eye(2)) * math.sqrt(pair.shape[1] / 2)
        assert error.abs().max() < 4.5  # 24 nearly normal numbers: false-alarm rate below 1e-3


def test_correlated_equivalence_reduces_to_the_scalar_case() -> None:
    field = correlated()
    assert field.equivalence(field).abs().max() < 1e-20
    doubled = MultivariateGaussianField(2 * field.cross_spectrum, dtype=torch.float64)
    # S = 2C: ‖I‖²_F = 2 for two channels
    torch.testing.assert_close(
        field.equivalence(doubled), (2.0 * (2 * torch.arange(8) + 1)).double().cumsum(0)
    )
    assert field.marginal(1).degree_variance.tolist() == field.cross_spectrum[:, 1, 1].tolist()
    multiplicity = (2 * torch.arange(8) + 1).double()
    expected = torch.einsum("l,lab->ab", multiplicity, field.cross_spectrum) / (4 * math.pi)
    torch.testing.assert_close(field.variance, expected)


def test_float32_and_moves() -> None:
    field = GaussianField(WhittleMatern(1.0, 1.0, 0.3), 5)
    assert field.sample((), generator=seeded()).dtype == torch.float32
    assert field.to(dtype=torch.float64).sample((), generator=seeded()).dtype == torch.float64


@pytest.mark.parametrize("field", [make(7), correlated()], ids=["one", "correlated"])
def test_fields_of_another_shape_are_refused(field: GaussianField) -> None:
    x = torch.zeros(field.event_shape, dtype=torch.float64)
    for other in (x[..., :1], x[..., :9], x.new_zeros(())):
        for method in (field.color, field.whiten, field.norm):
            with pytest.raises(ValueError, match="expected coefficients of shape.*for lmax 7"):
                method(other)
        for method in (field.inner, field.log_density_shift):
            for pair in ((x, other), (other, x)):
                with pytest.raises(ValueError, match="expected coefficients of shape"):
                    method(*pair)


def test_errors() -> None:
    with pytest.raises(ValueError, match="lmax 5.*lmax 6"):
        make(5).equivalence(make(6))
    with pytest.raises(ValueError, match="degree 1 has eigenvalues"):
        MultivariateGaussianField(torch.tensor([[[1.0, 0], [0, 1]], [[1.0, 2], [2, 1]]]))
    with pytest.raises(ValueError, match="symmetric"):
        MultivariateGaussianField(torch.tensor([[[1.0, 0.5], [0, 1]]]))
    with pytest.raises(ValueError, match="expected C_ℓ of shape"):
        MultivariateGaussianField(torch.ones(3, 2))
    with pytest.raises(ValueError, match="finite and not negative"):
        make(3, lambda ell: 1 - ell.double())
    with pytest.raises(ValueError, match="lmax must be at least 0"):
        make(-1)
