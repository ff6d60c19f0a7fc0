"""Spectra against independent series, planar limits and simulated fits."""

from __future__ import annotations

import math
import warnings

import mpmath
import numpy as np
import pytest
import torch
from scipy import special

from spherediff.gaussian import GaussianField
from spherediff.spectra import PowerLaw, Tabulated, WhittleMatern


@pytest.mark.parametrize(("nu", "rho"), [(0.25, 3.0), (0.5, 0.5), (1.5, 0.3), (3.0, 0.05)])
def test_std_is_that_of_the_untruncated_field(nu: float, rho: float) -> None:
    spectrum = WhittleMatern(2.5, nu, rho)
    kappa2, p = mpmath.mpf(spectrum.kappa) ** 2, mpmath.mpf(nu) + 1
    # independent: mpmath's own Euler–Maclaurin summation of the infinite series
    series = mpmath.nsum(
        lambda ell: (2 * ell + 1) * (kappa2 + ell * (ell + 1)) ** -p,
        [0, mpmath.inf],
        method="euler-maclaurin",
    )
    variance = float(series / (4 * mpmath.pi)) / spectrum.tau**2
    assert variance == pytest.approx(2.5**2, rel=1e-8)
    ell = torch.arange(50)
    expected = (spectrum.kappa**2 + ell.double() * (ell + 1)) ** -(nu + 1) / spectrum.tau**2
    torch.testing.assert_close(spectrum(ell), expected, rtol=1e-12, atol=0)


def test_a_smoothness_of_hundreds_is_the_limit_of_gaussian_spectra() -> None:
    # (1 + x/p)^{−p} → e^{−x}, with x = ℓ(ℓ+1)ρ²/8 and an error of x²/2p
    spectrum = WhittleMatern(1.0, 1e3, 0.3)
    ell = torch.arange(61)
    x = ell.double() * (ell + 1) * 0.3**2 / 8
    ratio = spectrum(ell) / spectrum(ell[:1]) * torch.exp(x)
    assert ((ratio.log() - x.square() / 2e3).abs() < 0.01 * (1 + x)).all()
    field = GaussianField(spectrum, 60, dtype=torch.float64)
    assert float(field.variance) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("nu", [1.0, 1.5, 2.5])
def test_short_correlation_lengths_tend_to_the_planar_matern_function(nu: float) -> None:
    def error(rho: float) -> float:
        lmax = math.ceil(200 / rho)
        field = GaussianField(WhittleMatern(1.0, nu, rho), lmax, dtype=torch.float64)
        angle = np.linspace(0.2, 3, 9) * rho
        z = math.sqrt(8 * nu) / rho * angle
        planar = 2 ** (1 - nu) / math.gamma(nu) * z**nu * special.kv(nu, z)
        return float(np.abs(field.correlation(angle).numpy() - planar).max())

    coarse, fine = error(0.2), error(0.05)
    assert coarse < 0.01
    # the error of curvature is O(ρ²); that of the band limit, (κ/lmax)^{2ν}, does not depend on ρ
    truncation = (math.sqrt(8 * nu) / 200) ** (2 * nu)
    assert fine < coarse / 8 + truncation


def test_power_law_and_table() -> None:
    ell = torch.arange(6)
    torch.testing.assert_close(PowerLaw(3.0, 2.5)(ell), 3.0 * (1 + ell.double()) ** -2.5)
    table = Tabulated(np.array([3.0, 2.0, 0.0]))
    assert table(torch.tensor([2, 0])).tolist() == [0.0, 3.0]


@pytest.mark.parametrize("truth", [WhittleMatern(1.3, 0.8, 0.5), WhittleMatern(0.2, 2.0, 0.25)])
def test_fit_recovers_the_parameters_with_calibrated_errors(truth: WhittleMatern) -> None:
    field = GaussianField(truth, 63, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    z = []
    for _ in range(40):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit = WhittleMatern.fit(field.sample((20,), generator=generator))
        z.append(
            [
                (getattr(fit.spectrum, name) - getattr(truth, name)) / error
                for name, error in fit.standard_errors.items()
            ]
        )
    scores = np.array(z)
    # 40 z-scores of each of 3 parameters: mean within ±4.5/√40 and variance within the matching
    # χ² bounds, a false-alarm rate below 1e-4 for each of the six numbers.
    assert np.abs(scores.mean(0)).max() < 4.5 / math.sqrt(40)
    assert ((scores.var(0) > 0.3) & (scores.var(0) < 2.2)).all()


def test_fit_warns_when_the_noise_is_smoother_than_the_data() -> None:
    # a smooth field plus a rough floor: no single Matérn spectrum follows it
    ell = torch.arange(64)
    table = WhittleMatern(1.0, 3.0, 1.0)(ell) + 1e-7 * (1 + ell) ** 0.5
    field = GaussianField(Tabulated(table), 63, dtype=torch.float64)
    x = field.sample((50,), generator=torch.Generator().manual_seed(0))
    with (
        pytest.warns(UserWarning, match="ends at a bound of its search, κ = 0.001:"),
        pytest.warns(UserWarning, match="smoother than the data"),
    ):
        fit = WhittleMatern.fit(x)
    assert fit.excess_slope > 4 * fit.excess_slope_error


def test_fit_to_a_spectral_cut_off_warns_that_it_ends_at_a_bound() -> None:
    ell = torch.arange(33)
    cut = torch.exp(-ell.double() * (ell + 1) / 200)
    field = GaussianField(Tabulated(cut), 32, dtype=torch.float64)
    x = field.sample((50,), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="ends at a bound of its search, ν = 1000:"):
        fit = WhittleMatern.fit(x)
    # four standard errors of the least known degree, 150 squares, and x²/2ν for the bound itself
    assert (fit.spectrum(ell)[1:] / cut[1:] - 1).abs().max() < 4 * math.sqrt(2 / 150)
    assert all(math.isfinite(error) for error in fit.standard_errors.values())


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match="smoothness must be positive.*trace-class"):
        WhittleMatern(1.0, 0.0, 0.3)
    with pytest.raises(ValueError, match="std must be positive"):
        WhittleMatern(-1.0, 1.0, 0.3)
    with pytest.raises(ValueError, match="correlation_length"):
        WhittleMatern(1.0, 1.0, math.nan)
    with pytest.raises(ValueError, match="exponent must exceed 2"):
        PowerLaw(1.0, 2.0)
    with pytest.raises(ValueError, match="amplitude"):
        PowerLaw(0.0, 3.0)
    with pytest.raises(ValueError, match="degree 1 has -2"):
        Tabulated([1.0, -2.0])
    with pytest.raises(ValueError, match="table ends at degree 1"):
        GaussianField(Tabulated([1.0, 1.0]), 2)
    with pytest.raises(ValueError, match="at least four degrees"):
        WhittleMatern.fit(torch.ones(3, 9))
    with pytest.raises(ValueError, match="lmin must be at least 0, got -1"):
        WhittleMatern.fit(torch.ones(3, 36), lmin=-1)
    with pytest.raises(ValueError, match="degree 2 has mean square 0"):
        WhittleMatern.fit(torch.tensor([1.0] * 4 + [0.0] * 5 + [1.0] * 27).expand(3, 36))
    for bad in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"degree 5 has mean square {bad}"):
            WhittleMatern.fit(torch.tensor([1.0] * 30 + [bad] + [1.0] * 18).expand(3, 49))
