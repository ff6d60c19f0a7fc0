"""Forward processes: how a field is turned into noise.

Greco's process (arXiv 2505.13189) is the Ornstein–Uhlenbeck SDE dX = −X dτ + √2 dW^C, reversible
for γ = N(0, C), run under a time change τ(t), t ∈ [0, 1].  Its transition is exact,

    X_t = α(t) X_0 + σ(t) ⊙ ε,   α(t) = e^{−τ(t)},   σ_i(t) = √(1 − e^{−2τ(t)}) √C_ℓ,

with ε white.  Everything downstream uses α and σ only, coefficient by coefficient.  The
log signal-to-noise ratio relative to the noise field is λ = log(α/s), s = √(1 − α²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spherediff.gaussian import GaussianField, check_coefficients
from spherediff.streams import Randomness


class Schedule(Protocol):
    """A time change t ∈ [0, 1] → τ, increasing; all functions in float64."""

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """(lowest, highest) λ = log(α/s) between which reverse samplers run."""
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
    highest_log_snr: float = 5.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.horizon) and self.horizon > 0):
            raise ValueError(f"horizon must be positive and finite, got {self.horizon}")
        low, high = self.log_snr_range
        if not (math.isfinite(high) and high > low):
            raise ValueError(f"highest_log_snr must exceed {low:.3g}, got {high}")

    @property
    def log_snr_range(self) -> tuple[float, float]:
        return -0.5 * math.log(math.expm1(2 * self.horizon)), self.highest_log_snr

    def tau(self, t: Tensor) -> Tensor:
        return self.horizon * t

    def time(self, tau: Tensor) -> Tensor:
        return tau / self.horizon

    def rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.horizon)


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

    high: float = 5.0
    low: float = -5.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high) and math.isfinite(self.low) and self.high > self.low):
            raise ValueError(f"expected finite high > low, got high={self.high}, low={self.low}")

    @property
    def log_snr_range(self) -> tuple[float, float]:
        return self.low, self.high

    def tau(self, t: Tensor) -> Tensor:
        return 0.5 * torch.nn.functional.softplus(-2 * self._log_snr(t))

    def time(self, tau: Tensor) -> Tensor:
        log_snr = -0.5 * torch.log(torch.expm1(2 * tau))
        return (self.high - log_snr) / (self.high - self.low)

    def rate(self, t: Tensor) -> Tensor:
        return (self.high - self.low) * torch.sigmoid(-2 * self._log_snr(t))

    def _log_snr(self, t: Tensor) -> Tensor:
        return self.high + (self.low - self.high) * t


class OrnsteinUhlenbeck:
    """Greco's process dX = −X dτ + √2 dW^C under a time change.

    X_t = α(t) X_0 + σ(t) ε with α(t) = e^{−τ(t)} and σ_i(t) = √(1 − e^{−2τ(t)}) √C_ℓ.

    A time ``t`` is a float or a tensor that broadcasts against the leading axes of a state, that
    is, all but the coefficient axis: shape (), (batch,), or (batch, 1) with channels.

    Args:
        field: the noise γ = N(0, C); every mode must have C_ℓ > 0.
        schedule: the time change; evenly spaced log-SNR if not given.

    Raises:
        ValueError: the noise leaves a mode untouched (C_ℓ = 0).
    """

    def __init__(self, field: GaussianField, schedule: Schedule | None = None) -> None:
        if (field.degree_variance <= 0).any():
            ell = int(torch.nonzero(field.degree_variance <= 0)[0, -1])
            raise ValueError(
                f"the noise must excite every mode, but C_ℓ = 0 at degree {ell}; "
                "raise it above zero or lower lmax"
            )
        self.field = field
        self.schedule: Schedule = schedule or LogSNR()
        self.event_shape = field.event_shape
        self._std = field.std_per_coefficient

    def alpha(self, t: Tensor | float) -> Tensor:
        """α(t), shape (*t.shape, 1)."""
        return self._signal_and_noise(t)[0]

    def sigma(self, t: Tensor | float) -> Tensor:
        """σ_i(t), broadcasting against a state."""
        return self._signal_and_noise(t)[1] * self._std

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(α(t), σ(t)), both broadcasting against a state."""
        alpha, scale = self._signal_and_noise(t)
        return alpha, scale * self._std

    def rate(self, t: Tensor | float) -> Tensor:
        """β(t) = dτ/dt, shape (*t.shape, 1)."""
        return self.schedule.rate(_float64(t))[..., None].to(self.field.device, self.field.dtype)

    def log_noise(self, t: Tensor | float) -> Tensor:
        """log(s/α) = −λ, relative to the noise field's own size; float64, shape of ``t``."""
        return 0.5 * torch.log(torch.expm1(2 * self.schedule.tau(_float64(t))))

    def time_of(self, log_noise: Tensor | float) -> Tensor:
        """Time t at which log(s/α) equals ``log_noise``; float64."""
        tau = 0.5 * torch.nn.functional.softplus(2 * _float64(log_noise), threshold=50)
        return self.schedule.time(tau)

    def noised(
        self,
        x0: Tensor,
        t: Tensor | float,
        *,
        generator: Randomness,
    ) -> Tensor:
        """Draw X_t given clean fields X_0 = ``x0``, shape (*batch, *event_shape)."""
        check_coefficients(self.field, x0, "noised")
        alpha, scale = self._signal_and_noise(t)
        return alpha * x0 + scale * self._noise(x0, generator)

    def transition(
        self,
        x: Tensor,
        s: Tensor | float,
        t: Tensor | float,
        *,
        generator: Randomness,
    ) -> Tensor:
        """Draw X_t given X_s = ``x`` at times s ≤ t, exactly.

        X_t | X_s ~ N(e^{−Δ} X_s, (1 − e^{−2Δ}) C), Δ = τ(t) − τ(s).

        Raises:
            ValueError: s > t.
        """
        check_coefficients(self.field, x, "transition")
        elapsed = self.schedule.tau(_float64(t)) - self.schedule.tau(_float64(s))
        if (elapsed < 0).any():
            raise ValueError(f"expected s ≤ t, got s={s}, t={t}")
        alpha, scale = self._decay(elapsed)
        return alpha * x + scale * self._noise(x, generator)

    def _noise(self, x: Tensor, generator: Randomness) -> Tensor:
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return self.field.sample(batch, generator=generator)

    def _signal_and_noise(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        return self._decay(self.schedule.tau(_float64(t)))

    def _decay(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.exp(-tau)[..., None]
        scale = torch.sqrt(-torch.expm1(-2 * tau))[..., None]
        place = {"device": self.field.device, "dtype": self.field.dtype}
        return alpha.to(**place), scale.to(**place)


def _float64(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)
