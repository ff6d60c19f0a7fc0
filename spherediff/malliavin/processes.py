"""Nonlinear diffusions with a known invariant law, to start their reversal from.

*Langevin* in a sum of one-dimensional potentials, dX = −∇U(X) dt + √2 dB, U(x) = Σ u(x_i), is
reversible for π ∝ e^{−U}; draws are by the inverse of a tabulated distribution function.

*Student's diffusion* (of the Pearson family: Forman & Sørensen 2008), coordinate by coordinate

    dX = −X dt + √(2c(X)) dB,   c(x) = b₀ + b₂x²,   b₂ = 1/(ν − 1),

is reversible for π ∝ c^{−1−1/(2b₂)}, since (cπ)' = −xπ: Student's t with ν degrees of freedom and
variance b₀(ν − 1)/(ν − 2).  Its noise is the stronger the further out, its tails are heavy.
Both forget their start at the rate of their spectral gap: 1 for Student's diffusion (ν > 2), the
eigenvalue of x itself, and for Langevin with u = 2 log cosh, whose ground-state transform is the
Pöschl–Teller operator −∂² + 1 − 2 sech².
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.func import grad, vmap

from spherediff.malliavin.sde import SDE

_TABLE = 20_001
_NEGLIGIBLE = 45.0  # e^{−45} is 3·10⁻²⁰ of the highest density


def log_cosh(x: Tensor) -> Tensor:
    """2 log cosh x: quadratic near 0 and linear far out; its law is a logistic one of scale ½."""
    return 2 * (x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - math.log(2))


class Langevin:
    """dX = −∇U dt + √2 dB in U(x) = Σ u(x_i).

    Args:
        potential: u of a number, twice differentiable; e^{−u} must be integrable.
        reach: the table of the law covers [−reach, reach].

    Raises:
        ValueError: e^{−u} is not negligible at ±reach.
    """

    def __init__(self, potential: Callable[[Tensor], Tensor], *, reach: float = 60.0) -> None:
        slope = grad(potential)
        root = torch.tensor(math.sqrt(2), dtype=torch.float64)
        self.sde = SDE(lambda t, x: -vmap(slope)(x), root)  # noqa: ARG005
        self._slope = slope
        self._points = reach * torch.linspace(-1, 1, _TABLE, dtype=torch.float64) ** 3
        u = vmap(potential)(self._points)
        if float(torch.minimum(u[0], u[-1]) - u.min()) < _NEGLIGIBLE:
            raise ValueError(
                f"the invariant law does not end within ±{reach:g}; expected a potential that"
                f" rises by {_NEGLIGIBLE:g} there, or a larger reach"
            )
        mass = torch.cumulative_trapezoid(torch.exp(u.min() - u), self._points)
        self._distribution = torch.cat([mass.new_zeros(1), mass / mass[-1]])

    def invariant_score(self, x: Tensor) -> Tensor:
        """∇log π at states (N, d), shape (N, d)."""
        return -vmap(vmap(self._slope))(x)

    def invariant(
        self, count: int, d: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Independent draws from π, shape (count, d), exact up to the table."""
        uniform = torch.rand(count, d, dtype=torch.float64, generator=generator)
        right = torch.searchsorted(self._distribution, uniform).clamp(1, _TABLE - 1)
        low, high = self._distribution[right - 1], self._distribution[right]
        share = (uniform - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.lerp(self._points[right - 1], self._points[right], share).to(dtype)


class StudentDiffusion:
    """dX = −X dt + √(2(b₀ + b₂X²)) dB.

    Args:
        degrees_of_freedom: ν > 2 of the invariant law.
        variance: of the invariant law.

    Raises:
        ValueError: ν ≤ 2, where there is no variance, or the variance is not positive.
    """

    def __init__(self, degrees_of_freedom: float = 10.0, variance: float = 1.0) -> None:
        if degrees_of_freedom <= 2 or variance <= 0:
            raise ValueError(
                "expected more than two degrees of freedom and a positive variance, got"
                f" {degrees_of_freedom} and {variance}"
            )
        self.degrees_of_freedom = degrees_of_freedom
        self.b0 = variance * (degrees_of_freedom - 2) / (degrees_of_freedom - 1)
        self.b2 = 1 / (degrees_of_freedom - 1)
        self.sde = SDE(lambda t, x: -x, lambda t, x: self.frame(x, t))  # noqa: ARG005

    def frame(self, x: Tensor, t: Tensor) -> Tensor:
        """√(2c(x)), the diagonal of σ."""
        return (2 * (self.b0 + self.b2 * x.square())).sqrt()

    def invariant_score(self, x: Tensor) -> Tensor:
        """∇log π at states (N, d), shape (N, d)."""
        return -(1 + 2 * self.b2) * x / (self.b0 + self.b2 * x.square())

    def invariant(
        self, count: int, d: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Independent draws from π, shape (count, d), by the inverse distribution function."""
        nu = self.degrees_of_freedom
        uniform = torch.rand(count, d, dtype=torch.float64, generator=generator)
        uniform = uniform.clamp_min(torch.finfo(torch.float64).eps)
        student = torch.from_numpy(stdtrit(nu, uniform.numpy()))
        return (math.sqrt(self.b0 * (nu - 1) / nu) * student).to(dtype)
