"""Fractional noise: dX = −λ X dτ + √q dB^H, 0 < H < 1, diagonal in the degree.

B^H has covariance R(s, t) = ½(s^{2H} + t^{2H} − |t − s|^{2H}).  X_τ is Gaussian given X_0, with
α = e^{−λτ} and σ² = q V, V = Var ∫₀^τ e^{−λ(τ−u)} dB^H_u.  Integration by parts gives

    V = τ^{2H} ½ [M(2H, 2H+1, −λτ) + e^{−2λτ} M(2H, 2H+1, λτ)]
      = H [γ(2H, λτ) λ^{−2H} + e^{−2λτ} ∫₀^τ e^{λw} w^{2H−1} dw]              (λ > 0),

M Kummer's function and γ the incomplete Gamma function: two positive terms, for every H and λ.
H = ½ is white noise, V = (1 − e^{−2λτ})/(2λ).  The inverse signal-to-noise ratio has the derivative

    d(σ²/α²)/dτ = 2Hq e^{λτ} [τ^{2H−1} + λ e^{λτ} ∫₀^τ e^{−λw} w^{2H−1} dw] > 0   for λ ≥ 0.

For H ≠ ½ the process is not Markov.  Reverse runs need no more than its laws at single times: the
Markov diffusion dY = (α'/α) Y dτ + g dW with g² = α² d(σ²/α²)/dτ ≥ 0 has, from the same start, the
same law at every time, and this is the process that samplers in terms of α and σ reverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy import special
from torch import Tensor

from spherediff.process.base import ForwardProcess, spde
from spherediff.process.operators import Operator
from spherediff.spectra import Spectrum
from spherediff.streams import Randomness, open_source

_SMALL = 1e-8  # M is linear up to rounding below
_LARGE = 500.0  # e^{−x} vanishes against one above


def fractional_variance(rates: Tensor, tau: Tensor, hurst: float) -> Tensor:
    """V = Var ∫₀^τ e^{−λ(τ−u)} dB^H_u.

    Args:
        rates: λ of any sign, shape (degrees,).
        tau: τ ≥ 0, shape (...).
        hurst: H, 0 < H < 1.

    Returns:
        float64, shape (..., degrees), on the device of ``tau``.
    """
    _require_hurst(hurst)
    time = tau.detach().cpu().double().numpy()[..., None]
    x = rates.detach().cpu().double().numpy() * time
    size = np.abs(x)
    a = 2 * hurst
    # M(a, a+1, −x) = a x^{−a} γ(a, x), and Kummer: M(a, a+1, x) = e^x M(1, a+1, −x)
    safe = np.maximum(size, _SMALL)
    lower = special.gammainc(a, safe) * np.exp(special.gammaln(a + 1) - a * np.log(safe))
    falling = np.where(size < _SMALL, 1 - a / (a + 1) * size, lower)
    rising = special.hyp1f1(a, a + 1, np.minimum(size, _LARGE)) * (size <= _LARGE)
    bracket = np.where(
        x >= 0,
        falling + np.exp(-2 * size) * rising,
        rising + np.exp(2 * np.maximum(-x, 0)) * falling,
    )
    return torch.from_numpy(0.5 * time**a * bracket).to(tau.device)


class FractionalOrnsteinUhlenbeck(ForwardProcess):
    """dX = −A X dτ + Q^{1/2} dB^H on the sphere, A = f(−Δ), up to the horizon τ = T.

    Each coefficient is driven by a fractional Brownian motion of its own, of power q_ℓ: noise with
    memory in time.  Denoisers and the samplers that know α and σ only take it like any other
    process; what needs the Markov property (:class:`~spherediff.sample.EulerMaruyama`, transitions
    between two times) refuses it.  Reverse runs start from ``field`` = N(0, σ_ℓ(1)²), as for
    :class:`~spherediff.process.LinearSPDE`, and time runs at the pace of
    :class:`~spherediff.process.Paced`.

    Args:
        operator: λ_ℓ; ``Polynomial((1.0,))`` for one rate in all degrees.
        noise: q_ℓ > 0.
        lmax: band limit.
        horizon: T > 0.
        hurst: H, 0 < H < 1: rougher noise than white below ½, with long memory above.
        dtype: float32 or float64; torch's default if not given.
        device: where states live; the CPU if not given.

    Raises:
        ValueError: H outside (0, 1), no noise at some degree, a horizon that is not positive, or
            a degree whose signal-to-noise ratio rises again (λ_ℓ < 0 with H < ½).
    """

    def __init__(
        self,
        operator: Operator,
        noise: Spectrum,
        lmax: int,
        horizon: float,
        hurst: float,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _require_hurst(hurst)
        self.operator, self.noise, self.hurst = operator, noise, hurst
        super().__init__(
            *spde(
                partial(fractional_variance, hurst=hurst),
                operator,
                noise,
                lmax,
                horizon,
                description=f"{operator}, hurst={hurst}",
                dtype=dtype,
                device=device,
            )
        )

    def _gathered(self, tau: Tensor) -> Tensor:
        return fractional_variance(self._rates, tau, self.hurst)


def fractional_noise(
    hurst: float,
    steps: int,
    shape: Sequence[int] = (),
    *,
    step: float = 1.0,
    generator: Randomness,
) -> Tensor:
    """Increments B^H_{(k+1)δ} − B^H_{kδ}, k < steps, exactly (Davies & Harte 1987).

    Their covariance r_0 = δ^{2H}, r_j = ½δ^{2H}((j+1)^{2H} − 2j^{2H} + (j−1)^{2H}) is embedded in a
    circulant matrix of twice the size, whose eigenvalues, an FFT of its first row, are not negative
    for any H; white noise times their roots, transformed back, has that covariance.

    Args:
        hurst: H, 0 < H < 1.
        steps: number of increments.
        shape: batch shape.
        step: δ.
        generator: a CPU generator, or one a path.

    Returns:
        float64, shape (*shape, steps).

    Raises:
        ValueError: H outside (0, 1), fewer than one step, or δ ≤ 0.
    """
    _require_hurst(hurst)
    if steps < 1 or not step > 0:
        raise ValueError(f"expected steps ≥ 1 and step > 0, got {steps} and {step}")
    lag = torch.arange(steps + 1, dtype=torch.float64)
    power = 2 * hurst
    r = 0.5 * step**power * ((lag + 1) ** power - 2 * lag**power + (lag - 1).abs() ** power)
    row = torch.cat([r, r[1:-1].flip(0)])
    eigenvalues = torch.fft.fft(row).real.clamp(min=0)
    white = open_source(generator, math.prod(shape)).normal((2, len(row)), torch.float64)
    spectral = (eigenvalues / len(row)).sqrt() * torch.complex(white[:, 0], white[:, 1])
    return torch.fft.fft(spectral).real[:, :steps].reshape(*shape, steps)


def _require_hurst(hurst: float) -> None:
    if not 0 < hurst < 1:
        raise ValueError(f"expected 0 < H < 1, got {hurst}")
