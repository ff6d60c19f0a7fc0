"""What all forward processes share: X_t = α_ℓ(t) X_0 + σ_ℓ(t) ε, diagonal in the degree.

With rates λ_ℓ, noise power q_ℓ and process time τ(t),

    α_ℓ = e^{−λ_ℓ τ},    σ_ℓ² = q_ℓ V_ℓ(τ),

where V_ℓ is the variance that noise of unit power has gathered.  Modes that do not forget their
start bias the reverse run, which begins with noise alone: with S_ℓ the variance of the data and

    share_ℓ = α_ℓ(1)² S_ℓ / (α_ℓ(1)² S_ℓ + σ_ℓ(1)²),

exact samplers lose the part share_ℓ of the variance of a Gaussian mode along the probability flow
and share_ℓ² along the reverse SDE.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from spherediff.gaussian import GaussianField, check_coefficients
from spherediff.harmonics import count, expand
from spherediff.process.direction import Direction, cameron_martin
from spherediff.process.operators import Operator
from spherediff.process.schedule import Paced, Schedule
from spherediff.spectra import Spectrum, Tabulated
from spherediff.streams import Randomness, open_source

_GROWTH = 40.0  # e^{40} squared still fits float32


class ForwardProcess(ABC):
    """A process with Gaussian transitions from its start, as denoisers and samplers use it.

    A time ``t`` is a float or a tensor that broadcasts against the leading axes of a state, that
    is, all but the coefficient axis: shape (), (batch,), or (batch, 1) with channels.

    Args:
        field: γ, the law that reverse runs start from and the reference measure of densities.
        schedule: the time change.
        rates: λ_ℓ, float64, shape (lmax+1,), or (1,) if all degrees decay alike.
        power: q_ℓ, float64, shape (lmax+1,) or (channels, lmax+1).

    Attributes:
        event_shape: shape of one state, (n,) or (channels, n).
    """

    def __init__(
        self, field: GaussianField, schedule: Schedule, rates: Tensor, power: Tensor
    ) -> None:
        self.field, self.schedule = field, schedule
        self.event_shape = field.event_shape
        self._rates, self._power = rates, power
        self._amplitude = self._place(power.sqrt())

    @abstractmethod
    def _gathered(self, tau: Tensor) -> Tensor:
        """V_ℓ(τ), shape (*tau.shape, degrees), for τ of shape (...)."""

    def alpha(self, t: Tensor | float) -> Tensor:
        """α(t), broadcasting against a state; (*t.shape, 1) if all degrees decay alike."""
        return self._place(self._decay(self._tau(t)))

    def sigma(self, t: Tensor | float) -> Tensor:
        """σ_i(t), broadcasting against a state."""
        return self._noise_std(self._tau(t))

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(α(t), σ(t)), both broadcasting against a state."""
        tau = self._tau(t)
        return self._place(self._decay(tau)), self._noise_std(tau)

    def log_snr_gain(self, t: Tensor | float, s: Tensor | float) -> Tensor:
        """h_i = log(α/σ)(s) − log(α/σ)(t), positive for s < t, broadcasting against a state.

        It is formed from logarithms, so that it stays finite where α underflows.
        """
        return self._place(self._level(self._tau(t)) - self._level(self._tau(s)))

    def log_noise(self, t: Tensor | float) -> Tensor:
        """The schedule's log noise level at time t; float64, shape of ``t``."""
        return self.schedule.log_noise(float64(t))

    def time_of(self, log_noise: Tensor | float) -> Tensor:
        """Time t of a log noise level; float64."""
        return self.schedule.time_of(float64(log_noise))

    def noised(
        self,
        x0: Tensor,
        t: Tensor | float,
        *,
        generator: Randomness,
    ) -> Tensor:
        """Draw X_t given clean fields X_0 = ``x0``, shape (*batch, *event_shape).

        Where several times meet one field, each has noise of its own.
        """
        check_coefficients(self.field, x0, "noised")
        alpha, sigma = self.marginal(t)
        mean = alpha * x0
        return mean + sigma * self._white(mean, generator)

    def cameron_martin(self, h: Tensor, t: Tensor | float) -> Direction:
        """Partial sums of Σ h_i²/σ_i(t)², by degree, of a direction h of shape (..., n).

        Raises:
            ValueError: h has power where there is no noise, or the process has channels.
        """
        check_coefficients(self.field, h, "direction")
        if len(self.event_shape) != 1:
            raise ValueError("a direction of a process with channels: take one channel at a time")
        return cameron_martin(self._noise_variance(self._tau(t)).to(h.device), h)

    def terminal_share(self, variance: Tensor) -> Tensor:
        """Part of the variance at t = 1 that is still signal, for data of variance S_ℓ.

        Args:
            variance: S_ℓ, shape (lmax+1,) or (channels, lmax+1).

        Returns:
            share_ℓ in [0, 1], float64, shape of ``variance``.
        """
        tau = self._tau(1.0).cpu()
        signal = self._decay(tau).square() * variance.double().cpu()
        return signal / (signal + self._noise_variance(tau))

    def require_forgotten(self, variance: Tensor, most: float = 0.01) -> None:
        """Check that no degree keeps more than a share ``most`` of signal at the noise end.

        Raises:
            ValueError: naming the worst degree, its share, and how many others there are.
        """
        share = self.terminal_share(variance)
        worst = share.reshape(-1, share.shape[-1]).amax(0)
        if (worst > most).any():
            ell = int(worst.argmax())
            raise ValueError(
                f"degree {ell} keeps {100 * float(worst[ell]):.3g} % of its signal at the noise "
                f"end, and {int((worst > most).sum())} degree(s) more than {100 * most:g} %: "
                "reverse runs start without it. Raise the horizon, or the noise of these degrees "
                "if they are not damped"
            )

    def _tau(self, t: Tensor | float) -> Tensor:
        return self.schedule.tau(float64(t))

    def _decay(self, tau: Tensor) -> Tensor:
        return torch.exp(-self._rates.to(tau.device) * tau[..., None])

    def _noise_variance(self, tau: Tensor) -> Tensor:
        return self._power.to(tau.device) * self._gathered(tau)

    def _noise_std(self, tau: Tensor) -> Tensor:
        """√(q V) of each coefficient, in the precision of states."""
        return self._place(self._gathered(tau).sqrt()) * self._amplitude

    def _level(self, tau: Tensor) -> Tensor:
        """½ log V + λτ, that is log(σ/α) up to a constant."""
        return 0.5 * self._gathered(tau).log() + self._rates.to(tau.device) * tau[..., None]

    def _place(self, per_degree: Tensor) -> Tensor:
        placed = per_degree.to(self.field.device, self.field.dtype)
        return placed if placed.shape[-1] == 1 else expand(placed)

    def _white(self, x: Tensor, generator: Randomness) -> Tensor:
        batch = x.shape[: x.ndim - len(self.event_shape)]
        source = open_source(generator, batch.numel())
        white = source.normal(self.event_shape, self.field.dtype).to(self.field.device)
        return white.reshape(*batch, *self.event_shape)


def spde(
    gathered: Callable[[Tensor, Tensor], Tensor],
    operator: Operator,
    noise: Spectrum,
    lmax: int,
    horizon: float,
    *,
    description: str,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> tuple[GaussianField, Schedule, Tensor, Tensor]:
    """Terminal noise, pace, λ_ℓ and q_ℓ of dX = −A X dτ + Q^{1/2} dN up to the horizon.

    Args:
        gathered: V_ℓ(τ) of the driving noise N as a function of (rates, tau).
        operator: λ_ℓ.
        noise: q_ℓ.
        lmax: band limit.
        horizon: T.
        description: tells this process from any other.
        dtype: of states.
        device: of states.
    """
    count(lmax)
    degrees = torch.arange(lmax + 1)
    rates, power = operator(degrees).double(), noise(degrees).double()
    if not (torch.isfinite(rates).all() and torch.isfinite(power).all()):
        raise ValueError(f"the operator and the noise must be finite up to lmax={lmax}")
    require_noise(power)
    growth = -float(rates.min()) * horizon
    if growth > _GROWTH:
        raise ValueError(
            f"degree {int(rates.argmin())} grows by a factor e^{growth:.3g} up to the horizon "
            f"{horizon}; at most e^{_GROWTH:g} is allowed. Lower the horizon"
        )

    def level(tau: Tensor) -> Tensor:
        return 0.5 * gathered(rates, tau).log() + rates * tau[..., None]

    end = torch.tensor(horizon, dtype=torch.float64)
    terminal = gathered(rates, end)
    reference = 0.5 * terminal.log() + (rates * end).clamp(max=0)
    schedule = Paced(level, reference, horizon, description)
    field = GaussianField(Tabulated(power * terminal), lmax, dtype=dtype, device=device)
    return field, schedule, rates, power


def require_noise(power: Tensor) -> None:
    """Raise ValueError unless every degree has noise."""
    if (power <= 0).any():
        ell = int(torch.nonzero(power <= 0)[0, -1])
        raise ValueError(
            f"the noise must excite every mode, but C_ℓ = 0 at degree {ell}; "
            "raise it above zero or lower lmax"
        )


def float64(t: Tensor | float) -> Tensor:
    """``t`` as a tensor in double precision."""
    return torch.as_tensor(t, dtype=torch.float64)
