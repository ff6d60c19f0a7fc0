"""Schedules: the time change t ∈ [0, 1] → τ, process time, and the pace of reverse samplers.

Samplers step evenly in one number, the log noise level, which a schedule gives as a function of t.
Where all modes decay alike (the Ornstein–Uhlenbeck process) it is log(s/α), α = e^{−τ},
s² = 1 − e^{−2τ}.  Where they do not, degree ℓ has its own level u_ℓ = log(σ_ℓ/α_ℓ) − log c_ℓ,
relative to a scale c_ℓ of the noise, and passes from clean to noise at its own time:
:class:`Paced` runs just so fast that no mode in passage is rushed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_HIGH = 5.0  # log signal-to-noise ratio at the data end
_KNOTS = 4097
_ROUNDING = 1e-11


class Schedule(Protocol):
    """A time change t ∈ [0, 1] → τ, increasing; all functions in float64."""

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """(lowest, highest) λ = −log_noise between which reverse samplers run."""
        ...

    @property
    def span(self) -> float:
        """Largest change of log(σ/α) that a mode in passage can see over a whole run.

        A sampler of N steps moves no such mode by more than span/N at once.
        """
        ...

    def tau(self, t: Tensor) -> Tensor:
        """Process time τ(t)."""
        ...

    def time(self, tau: Tensor) -> Tensor:
        """Inverse of :meth:`tau`."""
        ...

    def rate(self, t: Tensor) -> Tensor:
        """dτ/dt."""
        ...

    def log_noise(self, t: Tensor) -> Tensor:
        """The log noise level at time t, increasing."""
        ...

    def time_of(self, log_noise: Tensor) -> Tensor:
        """Inverse of :meth:`log_noise`."""
        ...


@dataclass(frozen=True)
class ConstantRate:
    """τ(t) = T t: the process runs at its own pace up to the horizon T.

    α(t) = e^{−Tt}, s(t)² = 1 − e^{−2Tt}.

    Args:
        horizon: T > 0; the initialisation error of the reverse process decays as e^{−2T}.
        highest_log_snr: λ at which reverse samplers leave the SDE for the data end, since
            λ → ∞ as t → 0.

    Raises:
        ValueError: T ≤ 0, or the highest λ not above that of the horizon.
    """

    horizon: float = 5.0
    highest_log_snr: float = _HIGH

    def __post_init__(self) -> None:
        if not (math.isfinite(self.horizon) and self.horizon > 0):
            raise ValueError(f"horizon must be positive and finite, got {self.horizon}")
        low, high = self.log_snr_range
        if not (math.isfinite(high) and high > low):
            raise ValueError(f"highest_log_snr must exceed {low:.3g}, got {high}")

    @property
    def log_snr_range(self) -> tuple[float, float]:
        return -0.5 * math.log(math.expm1(2 * self.horizon)), self.highest_log_snr

    @property
    def span(self) -> float:
        low, high = self.log_snr_range
        return high - low

    def tau(self, t: Tensor) -> Tensor:
        return self.horizon * t

    def time(self, tau: Tensor) -> Tensor:
        return tau / self.horizon

    def rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.horizon)

    def log_noise(self, t: Tensor) -> Tensor:
        return 0.5 * torch.log(torch.expm1(2 * self.tau(t)))

    def time_of(self, log_noise: Tensor) -> Tensor:
        return self.time(0.5 * torch.nn.functional.softplus(2 * log_noise, threshold=50))


@dataclass(frozen=True)
class LogSNR:
    """λ(t) = high + (low − high) t: the log signal-to-noise ratio is spaced evenly.

    α(t)² = 1/(1 + e^{−2λ}), s(t)² = 1/(1 + e^{2λ}), τ(t) = ½ log(1 + e^{−2λ}).

    The range has to resolve every mode of the data: with r = S_ℓ/C_ℓ the ratio of data to noise
    variance, the noise end biases the variance of a mode by α(1)²(r − 1), the data end by about
    e^{−4·high}/(4r²).

    Args:
        high: λ at t = 0, the data end.
        low: λ at t = 1, the noise end.

    Raises:
        ValueError: not high > low, or not finite.
    """

    high: float = _HIGH
    low: float = -5.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high) and math.isfinite(self.low) and self.high > self.low):
            raise ValueError(f"expected finite high > low, got high={self.high}, low={self.low}")

    @property
    def log_snr_range(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def span(self) -> float:
        return self.high - self.low

    def tau(self, t: Tensor) -> Tensor:
        return 0.5 * torch.nn.functional.softplus(2 * self.log_noise(t))

    def time(self, tau: Tensor) -> Tensor:
        return self.time_of(0.5 * torch.log(torch.expm1(2 * tau)))

    def rate(self, t: Tensor) -> Tensor:
        return self.span * torch.sigmoid(2 * self.log_noise(t))

    def log_noise(self, t: Tensor) -> Tensor:
        return -self.high + self.span * t

    def time_of(self, log_noise: Tensor) -> Tensor:
        return (self.high + log_noise) / self.span


class Paced:
    """A pace for modes that turn into noise at different times.

    Let u_ℓ(τ) = log(σ_ℓ/α_ℓ) − log c_ℓ, increasing in τ, with c_ℓ² = σ_ℓ(T)²/max(1, α_ℓ(T)²) the
    size of the terminal noise (of σ²/α² for modes that grow).  A mode is in passage while u_ℓ lies
    between −5 and 5; outside, what a step can spoil dies away like the weight w.  The schedule runs
    from the time τ₀ at which the first mode reaches u = −5 up to T, with

        w(u) = min(1, e^{−2(abs u − 5)}),    dt/d log τ = K⁻¹ max_ℓ w(u_ℓ) du_ℓ/d log τ,

    so that N even steps in t move no mode in passage by more than K/N (``span``/N).  If all modes
    decay alike and T = 5, it is the schedule of evenly spaced log-SNR.

    Args:
        level: log(σ_ℓ/α_ℓ) as a function of process times (k,), shape (k, degrees); float64.
        reference: log c_ℓ, shape (degrees,).
        horizon: T > 0.
        description: tells this pace from any other.

    Raises:
        ValueError: T not positive and finite, or a mode whose signal-to-noise ratio does not fall.
    """

    def __init__(
        self,
        level: Callable[[Tensor], Tensor],
        reference: Tensor,
        horizon: float,
        description: str = "",
    ) -> None:
        if not (math.isfinite(horizon) and horizon > 0):
            raise ValueError(f"horizon must be positive and finite, got {horizon}")
        self.horizon, self.description = horizon, description
        first = _first_passage(level, reference, horizon)
        log_tau = torch.linspace(first, math.log(horizon), _KNOTS, dtype=torch.float64)
        u = level(log_tau.exp()) - reference
        gain = u.diff(dim=0)
        weight = torch.exp(-2 * (0.5 * (u[1:] + u[:-1]).abs() - _HIGH).clamp(min=0))
        pace = (weight * gain).amax(1)
        rising = (gain < -_ROUNDING).any(1) | (pace <= 0)
        if rising.any():
            step = int(torch.nonzero(rising)[0])
            raise ValueError(
                f"the signal-to-noise ratio of degree {int(gain[step].argmin())} does not fall any "
                f"more after process time {math.exp(log_tau[step]):.3g}: lower the horizon"
            )
        clock = torch.cat([pace.new_zeros(1), pace.cumsum(0)])
        self.span = float(clock[-1])
        self._t, self._log_tau = clock / clock[-1], log_tau

    def __repr__(self) -> str:
        return f"Paced(horizon={self.horizon}, span={self.span:.3f}, {self.description})"

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """(−5, 5): the level that stands for all modes, an even measure of t."""
        return -_HIGH, _HIGH

    def tau(self, t: Tensor) -> Tensor:
        return _interpolate(t, self._t, self._log_tau)[0].exp()

    def time(self, tau: Tensor) -> Tensor:
        return _interpolate(tau.log(), self._log_tau, self._t)[0]

    def rate(self, t: Tensor) -> Tensor:
        log_tau, slope = _interpolate(t, self._t, self._log_tau)
        return slope * log_tau.exp()

    def log_noise(self, t: Tensor) -> Tensor:
        return 2 * _HIGH * t - _HIGH

    def time_of(self, log_noise: Tensor) -> Tensor:
        return (log_noise + _HIGH) / (2 * _HIGH)


def _first_passage(level: Callable[[Tensor], Tensor], reference: Tensor, horizon: float) -> float:
    """log τ₀, the last time at which every u_ℓ ≤ −5, by bisection."""

    def noisiest(log_tau: float) -> float:
        tau = torch.tensor([math.exp(log_tau)], dtype=torch.float64)
        return float((level(tau) - reference).max())

    low, high = math.log(horizon) - 600.0, math.log(horizon)
    if noisiest(low) > -_HIGH:
        raise ValueError("no mode is clean even after e⁻⁶⁰⁰ of the horizon; take a larger H")
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if noisiest(middle) > -_HIGH else (middle, high)
    return low


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Piecewise linear interpolation and its slope."""
    knots, values = knots.to(x.device), values.to(x.device)
    k = torch.searchsorted(knots, x.detach().contiguous(), right=True).clamp(1, len(knots) - 1) - 1
    slope = (values[k + 1] - values[k]) / (knots[k + 1] - knots[k])
    return values[k] + slope * (x - knots[k]), slope
