"""The weight in many dimensions for Langevin equations dz = −∇U(z) dt + σ(t) dB.

It is that of :func:`~spherediff.malliavin.estimated_weight`, probe by probe: with X_T = Φ(ξ),
J = ∂Φ and B = (JJᵀ)⁻¹ by conjugate gradients,

    δ(u) = B (Jξ + E_y[J∇_ξ⟨By, ∂Φ[Jᵀy]⟩] + E_z[∂²Φ[Πz, Πz] − ∂²Φ[z, z]]),   Π = JᵀBJ.

But the derivatives are written out.  The step z_{n+1} = z_n − h∇U(z_n) + s_n ξ_n, s_n = σ√h, has
the symmetric Jacobian A_n = 1 − h∇²U(z_n), so that with H_n = ∂³U(z_n)

    J p          δ_{n+1} = A_n δ_n + s_n p_n
    Jᵀ y         λ_n = A_n λ_{n+1} from λ_N = y;  (Jᵀy)_n = s_n λ_{n+1}
    ∂²Φ[p, p]    η_{n+1} = A_n η_n − h H_n[δ_n, δ_n]
    ∇_ξ⟨w, ∂Φ[p]⟩   μ_n = A_n μ_{n+1} − h H_n[λ_{n+1}, δ_n] from μ_N = 0;  s_n μ_{n+1}

and what ∇²U and ∂³U need of the state is computed once for the path instead of in every product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from spherediff._linear import conjugate_gradients
from spherediff.malliavin.sde import Path
from spherediff.malliavin.weights import require_euler
from spherediff.streams import NormalSource, Randomness, open_source

_MAX_ITERATIONS = 200


class Derivatives(Protocol):
    """Second and third derivatives of U at fixed states of N paths."""

    def second(self, u: Tensor) -> Tensor:
        """∇²U u, shape (N, d)."""
        ...

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """∂³U[u, v], shape (N, d)."""
        ...


def langevin_weight(
    path: Path,
    sigma: Tensor | float,
    curvature: Callable[[Tensor], Derivatives],
    *,
    generator: Randomness,
    probes: int = 1,
    tolerance: float = 1e-3,
) -> Tensor:
    """An unbiased estimate of δ(u_k) for a Langevin equation, shape (N, d).

    Args:
        path: paths of the equation by :func:`~spherediff.malliavin.sde.euler_maruyama`.
        sigma: σ, a number or one for each step, shape (steps,).
        curvature: derivatives of U at states (N, d).
        generator: for the probes.
        probes: number of probes averaged.
        tolerance: relative residual of the conjugate gradients.

    Raises:
        ValueError: another scheme made the path, or conjugate gradients do not converge.
    """
    require_euler(path)
    sweeps = _Sweeps(path, sigma, curvature)
    xi = path.increments / path.steps.sqrt()[..., None]
    source = open_source(generator, len(path.end))

    def solve(b: Tensor) -> Tensor:
        """B b."""
        gram = lambda y: sweeps.forward(sweeps.backward(y))[-1]  # noqa: E731
        solution = conjugate_gradients(gram, b, tolerance, _MAX_ITERATIONS, sweeps.scale)
        if bool((solution.residual > 10 * tolerance).any()):
            raise ValueError(
                "the Malliavin covariance is singular or nearly so: conjugate gradients left a"
                f" relative residual of {float(solution.residual.max()):.1e}"
            )
        return solution.solution

    total = sweeps.forward(xi)[-1]
    for _ in range(probes):
        y = _signs(source, path.end)
        z = _signs(source, xi.movedim(1, 0)).movedim(0, 1)
        gradient = sweeps.gradient(solve(y), sweeps.forward(sweeps.backward(y)))
        along = sweeps.forward(z)
        projected = sweeps.forward(sweeps.backward(solve(along[-1])))
        bend = sweeps.bend(projected) - sweeps.bend(along)
        total = total + (sweeps.forward(gradient)[-1] + bend) / probes
    return solve(total)


class _Sweeps:
    """Derivatives of the path along directions, by sweeps forth and back over its steps."""

    def __init__(
        self, path: Path, sigma: Tensor | float, curvature: Callable[[Tensor], Derivatives]
    ) -> None:
        self.h = path.steps[..., None]
        self.s = torch.as_tensor(sigma).to(self.h).view(-1, 1, 1) * self.h.sqrt()
        self.at = [curvature(state) for state in path.states[:-1]]
        variance = self.s.square().sum(0)
        self.scale = 1.0 / float(variance.mean())

    def step(self, n: int, u: Tensor) -> Tensor:
        """A_n u."""
        return u - self.h[n] * self.at[n].second(u)

    def forward(self, p: Tensor) -> list[Tensor]:
        """δ_n for a direction p, shape (steps, N, d); the last of them is J p."""
        states = [torch.zeros_like(p[0])]
        for n in range(len(self.at)):
            moved = self.s[n] * p[n]
            states.append(self.step(n, states[-1]) + moved if n else moved)
        return states

    def backward(self, y: Tensor) -> Tensor:
        """Jᵀy, shape (steps, N, d)."""
        return self.s * self._adjoint(y)

    def _adjoint(self, y: Tensor) -> Tensor:
        """λ_{n+1}, n = 0, …, steps − 1."""
        states = [y]
        for n in range(len(self.at) - 1, 0, -1):
            states.append(self.step(n, states[-1]))
        return torch.stack(states[::-1])

    def bend(self, along: list[Tensor]) -> Tensor:
        """∂²Φ[p, p] from the δ_n of p."""
        eta = torch.zeros_like(along[0])
        for n in range(1, len(self.at)):
            eta = self.step(n, eta) - self.h[n] * self.at[n].third(along[n], along[n])
        return eta

    def gradient(self, w: Tensor, along: list[Tensor]) -> Tensor:
        """∇_ξ⟨w, ∂Φ[p]⟩ from the δ_n of p, shape (steps, N, d)."""
        adjoint = self._adjoint(w)
        states = [torch.zeros_like(w)]
        for n in range(len(self.at) - 1, 0, -1):
            curved = self.at[n].third(adjoint[n], along[n])
            states.append(self.step(n, states[-1]) - self.h[n] * curved)
        return self.s * torch.stack(states[::-1])


def _signs(source: NormalSource, like: Tensor) -> Tensor:
    """Rademacher numbers, the shape of ``like``, whose first axis is that of the paths."""
    normal = source.normal((like[0].numel(),), like.dtype)
    return normal.sign().to(like.device).view(like.shape)
