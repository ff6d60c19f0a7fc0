"""Fractional noise: variance against other formulas and simulation, and samplers over its laws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from spherediff.bounds import output_law
from spherediff.denoise import GaussianDenoiser
from spherediff.harmonics import expand
from spherediff.process import (
    CahnHilliard,
    DampedHeat,
    FractionalOrnsteinUhlenbeck,
    LinearSPDE,
    Polynomial,
    fractional_noise,
    fractional_variance,
)
from spherediff.process.linear import markov_variance
from spherediff.sample import Bridge, EulerMaruyama, Heun, ProbabilityFlow, ReverseSDE, Sampler
from spherediff.spectra import WhittleMatern

NOISE = WhittleMatern(1.0, 1.0, 0.5)


def variance(hurst: float, rate: float, tau: float) -> float:
    rates = torch.tensor([rate], dtype=torch.float64)
    return float(fractional_variance(rates, torch.tensor(tau, dtype=torch.float64), hurst))


def spectral(hurst: float, x: float) -> float:
    """V for λ = 1 as c_H ∫|f̂(ω)|² |ω|^{1−2H} dω, f = e^{−(x−s)} on [0, x]: no parts, no Kummer.

    |f̂|² = (1 + e^{−2x} − 2e^{−x} cos ωx)/(1 + ω²), c_H = Γ(2H+1) sin(πH)/2π.
    """
    with mpmath.workdps(20):
        H, x = mpmath.mpf(hurst), mpmath.mpf(x)
        c = mpmath.gamma(2 * H + 1) * mpmath.sin(mpmath.pi * H) / (2 * mpmath.pi)
        power = 1 - 2 * H

        still = mpmath.pi / (2 * mpmath.sin(mpmath.pi * H))  # ∫₀^∞ ω^{1−2H}/(1 + ω²)
        # v = ω^{2−2H} takes the singularity at zero away
        root, end = 1 / (2 - 2 * H), mpmath.pi / (2 * x)
        first = mpmath.quad(
            lambda v: root / (1 + v ** (2 * root)) * mpmath.cos(v**root * x), [0, end ** (1 / root)]
        )
        waves = first + mpmath.quadosc(
            lambda w: w**power / (1 + w * w) * mpmath.cos(w * x),
            [mpmath.pi / (2 * x), mpmath.inf],
            omega=x,
        )
        return float(2 * c * ((1 + mpmath.exp(-2 * x)) * still - 2 * mpmath.exp(-x) * waves))


@pytest.mark.parametrize(
    ("hurst", "x"), [(0.2, 1.0), (0.3, 0.2), (0.3, 6.0), (0.8, 1.0), (0.95, 0.2), (0.95, 6.0)]
)
def test_variance_against_the_spectral_integral(hurst: float, x: float) -> None:
    assert variance(hurst, 1.0, x) == pytest.approx(spectral(hurst, x), rel=1e-10)
    # V scales as λ^{−2H} at equal λτ
    assert variance(hurst, 4.0, x / 4) == pytest.approx(4 ** (-2 * hurst) * variance(hurst, 1.0, x))


@pytest.mark.parametrize("hurst", [0.01, 0.1, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("x", [1e-9, 1e-3, 0.5, 20.0, 200.0, 1e4, 1e7])
def test_variance_in_high_precision(hurst: float, x: float) -> None:
    """Integration by parts in its plain form, which cancels, with 60 digits."""
    with mpmath.workdps(60):
        a, T = 2 * mpmath.mpf(hurst), mpmath.mpf(x)
        lower = mpmath.gammainc(a + 1, 0, T)
        # e^{−2T} ∫₀ᵀ e^w w^a dw, by its large-T expansion where e^T is out of reach
        tail = mpmath.exp(-T) * T ** (a + 1) / (a + 1) * mpmath.hyp1f1(1, a + 2, -T)
        exact = T**a * mpmath.exp(-T) + lower / 2 - tail / 2
    if x < 1e4:
        assert variance(hurst, 1.0, x) == pytest.approx(float(exact), rel=1e-12)
    else:
        assert variance(hurst, 1.0, x) == pytest.approx(math.gamma(2 * hurst + 1) / 2, rel=1e-12)


def test_white_noise_is_the_case_of_one_half() -> None:
    rates = torch.tensor([-3.0, -0.2, -1e-9, 0.0, 1e-12, 1e-3, 1.0, 30.0, 1e4, 1e7]).double()
    tau = torch.logspace(-8, 1, 40, dtype=torch.float64)
    torch.testing.assert_close(
        fractional_variance(rates, tau, 0.5), markov_variance(rates, tau), rtol=1e-12, atol=0
    )
    args = (CahnHilliard(0.3), NOISE, 15, 1.0)
    half = FractionalOrnsteinUhlenbeck(*args, 0.5, dtype=torch.float64)
    white = LinearSPDE(*args, dtype=torch.float64)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    for a, b in zip(half.marginal(t), white.marginal(t), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


def test_limits_of_the_variance() -> None:
    assert variance(0.3, 0.0, 2.5) == pytest.approx(2.5**0.6)  # B^H itself
    assert variance(1 - 1e-12, 1.0, 2.0) == pytest.approx((1 - math.exp(-2)) ** 2)  # B = τ ξ
    # growing modes: σ²/α² = ∫∫ e^{λ(s+r)} dR, the same as a damped one run backwards
    for H in (0.5, 0.7):
        backwards = variance(H, -1.0, 2.0) * math.exp(-4.0)
        assert backwards == pytest.approx(variance(H, 1.0, 2.0), rel=1e-12)


@pytest.mark.parametrize("hurst", [0.05, 0.3, 0.5, 0.8])
def test_signal_to_noise_ratio_falls(hurst: float) -> None:
    tau = torch.logspace(-8, 2, 400, dtype=torch.float64)
    rates = torch.tensor([0.0, 0.1, 1.0, 7.0], dtype=torch.float64)
    level = fractional_variance(rates, tau, hurst).log() + 2 * rates * tau[:, None]
    assert (level.diff(dim=0) > 0).all()


def fgn_covariance(hurst: float, steps: int, step: float) -> np.ndarray:
    grid = step * np.arange(steps + 1)
    R = 0.5 * (
        grid[:, None] ** (2 * hurst)
        + grid ** (2 * hurst)
        - np.abs(grid[:, None] - grid) ** (2 * hurst)
    )
    return R[1:, 1:] - R[1:, :-1] - R[:-1, 1:] + R[:-1, :-1]


@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.5, 0.8, 0.95])
def test_fractional_noise_is_exact(hurst: float) -> None:
    """Fed with unit impulses the generator returns its matrix A, and AAᵀ is the covariance."""
    steps, step = 12, 0.3

    class Impulses:
        def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            size = math.prod(event_shape)
            return torch.eye(size, dtype=dtype).reshape(size, *event_shape)

    A = fractional_noise(hurst, steps, (4 * steps,), step=step, generator=Impulses())
    np.testing.assert_allclose(A.T @ A, fgn_covariance(hurst, steps, step), atol=1e-14)


def test_fractional_noise_by_whitening() -> None:
    """Draws whitened by the Cholesky factor are standard normal; false-alarm rate 1e-3."""
    x = fractional_noise(0.3, 50, (20, 10), generator=torch.Generator().manual_seed(0))
    assert x.shape == (20, 10, 50)
    L = np.linalg.cholesky(fgn_covariance(0.3, 50, 1.0))
    z = np.linalg.solve(L, x.reshape(-1, 50).numpy().T)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert fractional_noise(0.3, 1, generator=torch.Generator()).shape == (1,)


def midpoint_weights(rate: float, horizon: float, steps: int) -> np.ndarray:
    """X_T ≈ Σ_k e^{−λ(T − (k+½)δ)} ΔB_k."""
    delta = horizon / steps
    return np.exp(-rate * (horizon - delta * (np.arange(steps) + 0.5)))


@pytest.mark.parametrize(("hurst", "order"), [(0.3, 1.6), (0.5, 2.0), (0.8, 2.0)])
def test_fine_grids_converge_to_the_variance(hurst: float, order: float) -> None:
    """The midpoint rule's exact variance wᵀRw; its error falls with order min(2, 1 + 2H)."""
    rate, horizon = 1.3, 2.0
    exact = variance(hurst, rate, horizon)
    steps = np.array([128, 256, 512])
    errors = [
        abs(w @ fgn_covariance(hurst, n, horizon / n) @ w / exact - 1)
        for n in steps.tolist()
        for w in [midpoint_weights(rate, horizon, n)]
    ]
    assert errors[-1] < 2e-4
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.8])
def test_simulated_paths_have_the_variance(hurst: float) -> None:
    """20,000 paths of 256 steps; χ² test of the variance at two times, false-alarm rate 1e-3.

    The error of the midpoint rule, below 1e-3, is small beside the sampling error of 1e-2.
    """

    class Normals:
        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(1)

        def normal(self, event_shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            return torch.randn(20_000, *event_shape, generator=self.generator, dtype=dtype)

    rate, horizon, steps = 1.3, 2.0, 256
    increments = fractional_noise(
        hurst, steps, (20_000,), step=horizon / steps, generator=Normals()
    ).numpy()
    for used in (64, steps):
        time = horizon * used / steps
        x = increments[:, :used] @ midpoint_weights(rate, time, used)
        chi2 = (x**2).sum() / variance(hurst, rate, time)
        assert stats.chi2.ppf(2.5e-4, 20_000) < chi2 < stats.chi2.isf(2.5e-4, 20_000)
        assert not chi2 / 1.06 > stats.chi2.ppf(2.5e-4, 20_000)  # 6 % off would be seen


def target(hurst: float) -> GaussianDenoiser:
    process = FractionalOrnsteinUhlenbeck(
        DampedHeat(0.05, 1.0), NOISE, 5, 5.0, hurst, dtype=torch.float64
    )
    ratio = torch.logspace(-3, 2, 6, dtype=torch.float64)
    return GaussianDenoiser(process, expand(process.field.degree_variance * ratio))


def limit(denoiser: GaussianDenoiser, kind: type[Sampler]) -> torch.Tensor:
    process, S = denoiser.process, denoiser.covariance.diagonal
    (a0, s0), (a1, s1) = process.marginal(0.0), process.marginal(1.0)
    V0, V1 = a0**2 * S + s0**2, a1**2 * S + s1**2
    arrival = (0.5 * (a0 * S / V0 + 1 / a0)).square()
    if kind in (Heun, ProbabilityFlow):
        return arrival * s1**2 * V0 / V1
    return arrival * (V0 + (a1 / a0 * V0 / V1) ** 2 * (s1**2 - V1))


@pytest.mark.parametrize(
    ("hurst", "kind"),
    [(0.3, Heun), (0.3, ProbabilityFlow), (0.3, ReverseSDE), (0.8, ProbabilityFlow)],
)
def test_samplers_keep_the_law_of_every_degree(hurst: float, kind: type[Sampler]) -> None:
    """Within 1 % at the default steps; second order towards the exact reversal."""
    denoiser = target(hurst)
    exact = limit(denoiser, kind)
    assert (output_law(kind(denoiser))[1] / exact - 1).abs().max() < 0.01
    assert (exact / denoiser.covariance.diagonal - 1).abs().max() < 0.02
    steps = np.array([70, 100, 143])
    errors = [
        float((output_law(kind(denoiser, int(n)))[1] / exact - 1).square().mean().sqrt())
        for n in steps
    ]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.2)


def test_bridges_sample_it_too() -> None:
    denoiser = target(0.3)
    errors = [
        (output_law(Bridge(denoiser, n))[1] / limit(denoiser, Bridge) - 1).abs().max()
        for n in (200, 400)
    ]
    assert float(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)


def test_what_needs_the_markov_property_refuses() -> None:
    denoiser = target(0.3)
    with pytest.raises(TypeError, match="FractionalOrnsteinUhlenbeck is none; ReverseSDE"):
        EulerMaruyama(denoiser)
    assert not hasattr(denoiser.process, "transition")


def test_growing_modes() -> None:
    """Smooth noise can drive them; rough noise lets the signal return, which is refused."""
    assert FractionalOrnsteinUhlenbeck(CahnHilliard(0.3), NOISE, 5, 1.0, 0.7).schedule.span > 0
    with pytest.raises(ValueError, match="does not fall any more after"):
        FractionalOrnsteinUhlenbeck(Polynomial((-1.0,)), NOISE, 3, 10.0, 0.2)


def test_errors() -> None:
    for hurst in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="0 < H < 1"):
            FractionalOrnsteinUhlenbeck(DampedHeat(), NOISE, 3, 5.0, hurst)
    with pytest.raises(ValueError, match="steps ≥ 1"):
        fractional_noise(0.3, 0, generator=torch.Generator())
    with pytest.raises(ValueError, match="larger H"):
        FractionalOrnsteinUhlenbeck(DampedHeat(), NOISE, 3, 5.0, 0.005)
