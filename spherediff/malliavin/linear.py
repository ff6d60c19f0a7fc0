"""Linear SDEs dX = (A(t) X + a(t)) dt + B(t) dB, where everything is known.

The propagator Y' = A Y, Y_0 = 1, gives the Malliavin covariance

    γ_T = Y_T C_T Y_Tᵀ,   C_T = ∫₀ᵀ Y_s⁻¹B Bᵀ Y_s⁻ᵀ ds,

and the Fokker–Planck equation the mean and covariance of a Gaussian law,

    m' = A m + a,   Σ' = A Σ + Σ Aᵀ + B Bᵀ,

so that Σ_T = Y_T Σ_0 Y_Tᵀ + γ_T and the score is −Σ_T⁻¹(y − m_T) (arXiv 2503.16917, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from spherediff.malliavin.sde import SDE

Coefficient = Callable[[Tensor], Tensor]

_RTOL, _ATOL = 1e-13, 1e-15


class Moments(NamedTuple):
    """A Gaussian law: mean (d,) and covariance (d, d), float64."""

    mean: Tensor
    covariance: Tensor


class LinearSDE(SDE):
    """dX = (A(t) X + a(t)) dt + B(t) dB.

    Args:
        A: function of a time () with values of shape (d, d).
        B: likewise, shape (d, m).
        a: likewise, shape (d,); zero if not given.
    """

    def __init__(self, A: Coefficient, B: Coefficient, a: Coefficient | None = None) -> None:
        self.A, self.B = A, B
        self.a = a or (lambda t: torch.zeros_like(A(t)[:, 0]))
        super().__init__(lambda t, x: self.A(t) @ x + self.a(t), B)

    def propagator(self, T: float) -> Tensor:
        """Y_T, shape (d, d), float64."""
        return self._variation(T)[0]

    def malliavin_covariance(self, T: float) -> Tensor:
        """γ_T = Y_T C_T Y_Tᵀ, shape (d, d), float64; it does not depend on the path."""
        Y, C = self._variation(T)
        return Y @ C @ Y.T

    def moments(self, T: float, mean: Tensor, covariance: Tensor) -> Moments:
        """Law at time T of a process that starts from N(mean, covariance), by Fokker–Planck.

        Args:
            T: time, positive.
            mean: m_0, shape (d,).
            covariance: Σ_0, shape (d, d); zero for a fixed start.
        """
        d = len(mean)

        def rate(t: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
            A, B, a = (self._at(f, t) for f in (self.A, self.B, self.a))
            m, S = state[:d], state[d:].reshape(d, d)
            return np.concatenate([A @ m + a, (A @ S + S @ A.T + B @ B.T).ravel()])

        start = np.concatenate([mean.double().numpy(), covariance.double().numpy().ravel()])
        end = _integrate(rate, T, start)
        return Moments(torch.from_numpy(end[:d]), torch.from_numpy(end[d:].reshape(d, d)))

    def score(self, y: Tensor, T: float, mean: Tensor, covariance: Tensor) -> Tensor:
        """∇log p_T(y) = −(Y_T Σ_0 Y_Tᵀ + γ_T)⁻¹(y − m_T), shape (..., d), float64.

        Args:
            y: points, shape (..., d).
            T: time, positive.
            mean: m_0, shape (d,).
            covariance: Σ_0, shape (d, d); zero for a fixed start.

        Raises:
            ValueError: the covariance at T is singular.
        """
        Y, C = self._variation(T)
        spread = Y @ (covariance.double() + C) @ Y.T
        if torch.linalg.matrix_rank(spread, hermitian=True) < len(spread):
            raise ValueError(
                f"the law at T = {T} has a singular covariance (rank"
                f" {int(torch.linalg.matrix_rank(spread, hermitian=True))} of {len(spread)}):"
                " the noise does not reach every direction, so there is no score"
            )
        m = self.moments(T, mean, covariance).mean
        return -torch.linalg.solve(spread, (y.double() - m)[..., None])[..., 0]

    def _variation(self, T: float) -> tuple[Tensor, Tensor]:
        """Y_T and C_T."""
        d = len(self._at(self.A, 0.0))

        def rate(t: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
            Y = state[: d * d].reshape(d, d)
            V = np.linalg.solve(Y, self._at(self.B, t))
            return np.concatenate([(self._at(self.A, t) @ Y).ravel(), (V @ V.T).ravel()])

        end = _integrate(rate, T, np.concatenate([np.eye(d).ravel(), np.zeros(d * d)]))
        Y, C = torch.from_numpy(end).reshape(2, d, d)
        return Y, C

    @staticmethod
    def _at(coefficient: Coefficient, t: float) -> NDArray[np.float64]:
        return coefficient(torch.tensor(t, dtype=torch.float64)).double().numpy()


def _integrate(
    rate: Callable[[float, NDArray[np.float64]], NDArray[np.float64]],
    T: float,
    start: NDArray[np.float64],
) -> NDArray[np.float64]:
    if not T > 0:
        raise ValueError(f"expected a positive time T, got {T}")
    solution = solve_ivp(rate, (0.0, T), start, method="DOP853", rtol=_RTOL, atol=_ATOL)
    if not solution.success:
        raise ValueError(
            f"the moment equations could not be solved up to T = {T}: {solution.message}"
        )
    return solution.y[:, -1].copy()
