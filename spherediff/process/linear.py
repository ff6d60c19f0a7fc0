"""Linear SPDEs dX = −A X dτ + Q^{1/2} dW with A = f(−Δ): Markov, and exact in every degree.

    X_t = e^{−λ_ℓ τ} X_0 + σ_ℓ ε,    σ_ℓ² = q_ℓ V(τ),    V = (1 − e^{−2λ_ℓ τ})/(2λ_ℓ)

(arXiv 2508.20316), with V → τ as λ_ℓ → 0.  For λ_ℓ > 0 there is the invariant variance q_ℓ/2λ_ℓ; a
degree with λ_ℓ ≤ 0 has none, and forgets its start only relative to its own noise.

Greco's Ornstein–Uhlenbeck process (arXiv 2505.13189) is the case λ = 1, q = 2C, reversible for
γ = N(0, C), from which its reverse runs start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spherediff.gaussian import GaussianField, check_coefficients
from spherediff.process.base import ForwardProcess, float64, require_noise, spde
from spherediff.process.operators import Operator
from spherediff.process.schedule import LogSNR, Schedule
from spherediff.spectra import Spectrum
from spherediff.streams import Randomness


def markov_variance(rates: Tensor, tau: Tensor) -> Tensor:
    """V = (1 − e^{−2λτ})/(2λ), the variance that white noise of unit power gathers.

    Args:
        rates: λ of any sign, shape (degrees,).
        tau: τ ≥ 0, shape (...).

    Returns:
        Shape (..., degrees).
    """
    tau = tau[..., None]
    still = rates == 0
    twice = 2 * torch.where(still, 1, rates)
    return torch.where(still, tau, -torch.expm1(-twice * tau) / twice)


class LinearProcess(ForwardProcess):
    """A Markov process of independent modes, dX = −λ X dτ + √q dW."""

    def _gathered(self, tau: Tensor) -> Tensor:
        return markov_variance(self._rates.to(tau.device), tau)

    @property
    def damping(self) -> Tensor:
        """λ_i, broadcasting against a state."""
        return self._place(self._rates)

    @property
    def diffusion(self) -> Tensor:
        """q_i, broadcasting against a state."""
        return self._amplitude.square()

    def rate(self, t: Tensor | float) -> Tensor:
        """β(t) = dτ/dt, shape (*t.shape, 1)."""
        return self.schedule.rate(float64(t))[..., None].to(self.field.device, self.field.dtype)

    def transition(
        self,
        x: Tensor,
        s: Tensor | float,
        t: Tensor | float,
        *,
        generator: Randomness,
    ) -> Tensor:
        """Draw X_t given X_s = ``x`` at times s ≤ t, exactly.

        X_t | X_s ~ N(e^{−λΔ} X_s, q V(Δ)), Δ = τ(t) − τ(s).

        Raises:
            ValueError: s > t.
        """
        check_coefficients(self.field, x, "transition")
        elapsed = self._tau(t) - self._tau(s)
        if (elapsed < 0).any():
            raise ValueError(f"expected s ≤ t, got s={s}, t={t}")
        alpha = self._place(self._decay(elapsed))
        mean = alpha * x
        return mean + self._noise_std(elapsed) * self._white(mean, generator)


class OrnsteinUhlenbeck(LinearProcess):
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
        require_noise(field.degree_variance)
        one = torch.ones(1, dtype=torch.float64)
        super().__init__(field, schedule or LogSNR(), one, 2 * field.degree_variance)


class LinearSPDE(LinearProcess):
    """dX = −A X dτ + Q^{1/2} dW on the sphere, A = f(−Δ), up to the horizon τ = T.

    Reverse runs start from ``field`` = N(0, σ_ℓ(1)²), the noise gathered by the horizon.  What a
    degree still knows of its start then is lost: see :meth:`terminal_share`, and
    :meth:`require_forgotten` to make sure.  Damped degrees forget as e^{−2λ_ℓ T}; a degree with
    λ_ℓ = 0 keeps S/(S + q_ℓ T), a growing one at least S/(S + q_ℓ/2|λ_ℓ|), whatever the horizon.

    Time runs at the pace of :class:`~spherediff.process.Paced`, since degrees turn into noise at
    different times.

    Args:
        operator: λ_ℓ, e.g. :class:`~spherediff.process.DampedHeat`.
        noise: q_ℓ > 0, the power of the noise per unit of process time, e.g. a
            :class:`~spherediff.spectra.WhittleMatern`; with channels from a
            :class:`~spherediff.spectra.Tabulated`.
        lmax: band limit.
        horizon: T > 0, in units of process time.
        dtype: float32 or float64; torch's default if not given.
        device: where states live; the CPU if not given.

    Raises:
        ValueError: no noise at some degree, a horizon that is not positive, a degree that grows
            beyond e⁴⁰.
    """

    def __init__(
        self,
        operator: Operator,
        noise: Spectrum,
        lmax: int,
        horizon: float,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.operator, self.noise = operator, noise
        super().__init__(
            *spde(
                markov_variance,
                operator,
                noise,
                lmax,
                horizon,
                description=f"{operator}",
                dtype=dtype,
                device=device,
            )
        )
