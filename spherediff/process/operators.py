"""Generators A = f(−Δ) of linear SPDEs: λ_ℓ = f(x), x = ℓ(ℓ+1) the eigenvalue of −Δ.

dX = −A X dτ + … damps degree ℓ at the rate λ_ℓ; where λ_ℓ < 0 the degree grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Operator(Protocol):
    """λ_ℓ as a function of the degree."""

    def __call__(self, degrees: Tensor) -> Tensor:
        """λ_ℓ in float64 at integer ``degrees``, same shape."""
        ...


def _laplacian(degrees: Tensor) -> Tensor:
    ell = degrees.to(torch.float64)
    return ell * (ell + 1)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")


@dataclass(frozen=True)
class Heat:
    """λ = κx, x = ℓ(ℓ+1): diffusion, which leaves the mean of the sphere (ℓ = 0) alone.

    Args:
        diffusivity: κ > 0.
    """

    diffusivity: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(diffusivity=self.diffusivity)

    def __call__(self, degrees: Tensor) -> Tensor:
        return self.diffusivity * _laplacian(degrees)


@dataclass(frozen=True)
class DampedHeat:
    """λ = c + κx: diffusion and damping.

    Args:
        diffusivity: κ > 0.
        damping: c > 0, the rate of the slowest mode.
    """

    diffusivity: float = 1.0
    damping: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(diffusivity=self.diffusivity, damping=self.damping)

    def __call__(self, degrees: Tensor) -> Tensor:
        return self.damping + self.diffusivity * _laplacian(degrees)


@dataclass(frozen=True)
class FractionalLaplacian:
    """λ = κxˢ: A = κ(−Δ)ˢ.

    Args:
        power: s > 0.
        diffusivity: κ > 0.
    """

    power: float = 0.5
    diffusivity: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(power=self.power, diffusivity=self.diffusivity)

    def __call__(self, degrees: Tensor) -> Tensor:
        return self.diffusivity * _laplacian(degrees) ** self.power


@dataclass(frozen=True)
class Biharmonic:
    """λ = εx²: A = εΔ².

    Args:
        stiffness: ε > 0.
    """

    stiffness: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(stiffness=self.stiffness)

    def __call__(self, degrees: Tensor) -> Tensor:
        return self.stiffness * _laplacian(degrees).square()


@dataclass(frozen=True)
class CahnHilliard:
    """λ = x(ε²x + 3ū² − 1): ∂u = Δ(u³ − u − ε²Δu) linearised about the constant ū.

    In the spinodal region, 3ū² < 1, the degrees with 0 < ε²x < 1 − 3ū² grow.

    Args:
        interface: ε > 0, the width of an interface in radians.
        mean: ū.
    """

    interface: float = 0.5
    mean: float = 0.0

    def __post_init__(self) -> None:
        _require_positive(interface=self.interface)
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")

    def __call__(self, degrees: Tensor) -> Tensor:
        x = _laplacian(degrees)
        return x * (self.interface**2 * x + 3 * self.mean**2 - 1)


@dataclass(frozen=True)
class SwiftHohenberg:
    """λ = (x/k² − 1)² − r: a pattern of wavenumber k, which grows for r > 0.

    Args:
        wavenumber: k > 0; degrees with ℓ(ℓ+1) ≈ k² are damped least.
        control: r.
    """

    wavenumber: float = 4.0
    control: float = -0.1

    def __post_init__(self) -> None:
        _require_positive(wavenumber=self.wavenumber)
        if not math.isfinite(self.control):
            raise ValueError(f"control must be finite, got {self.control}")

    def __call__(self, degrees: Tensor) -> Tensor:
        return (_laplacian(degrees) / self.wavenumber**2 - 1).square() - self.control


@dataclass(frozen=True)
class Polynomial:
    """λ = Σ_k c_k xᵏ.

    Args:
        coefficients: c_0, c_1, …; at least one.
    """

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.coefficients or not all(math.isfinite(c) for c in self.coefficients):
            raise ValueError(f"expected finite coefficients, got {self.coefficients}")

    def __call__(self, degrees: Tensor) -> Tensor:
        x = _laplacian(degrees)
        value = torch.zeros_like(x)
        for c in reversed(self.coefficients):
            value = value * x + c
        return value
