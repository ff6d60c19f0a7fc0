"""The weight in many dimensions for Langevin equations dz = −∇U(z) dt + σ(t) dB.

It is :func:`~spherediff.malliavin.estimated_weight`, with the derivatives of X_T = Φ(ξ) written
out.  The step z_{n+1} = z_n − h∇U(z_n) + s_n ξ_n, s_n = σ√h, has the symmetric Jacobian
A_n = 1 − h∇²U(z_n), so that with J = ∂Φ and H_n = ∂³U(z_n)

    J p             δ_{n+1} = A_n δ_n + s_n p_n
    Jᵀ y            λ_n = A_n λ_{n+1} from λ_N = y;  (Jᵀy)_n = s_n λ_{n+1}
    ∂²Φ[p, p]       η_{n+1} = A_n η_n − h H_n[δ_n, δ_n]
    ∇_ξ⟨w, J p⟩     μ_n = A_n μ_{n+1} − h H_n[λ_{n+1}, δ_n] from μ_N = 0, λ that of w;  s_n μ_{n+1}

and what ∇²U and ∂³U need of the state is computed once for the path instead of in every product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from spherediff.malliavin.sde import Path
from spherediff.malliavin.twin import estimate
from spherediff.streams import Randomness


class Curvature(Protocol):
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
    curvature: Callable[[Tensor], Curvature],
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
    sigma = torch.as_tensor(sigma).to(path.end)
    return estimate(
        lambda part: _Sweeps(part, sigma, curvature),
        path,
        generator=generator,
        probes=probes,
        tolerance=tolerance,
    )


class _Sweeps:
    """Derivatives of the path along directions, by sweeps forth and back over its steps."""

    def __init__(self, path: Path, sigma: Tensor, curvature: Callable[[Tensor], Curvature]) -> None:
        self.h = path.steps[..., None]
        self.s = sigma.view(-1, 1, 1) * self.h.sqrt()
        self.at = [curvature(state) for state in path.states[:-1]]

    def along(self, p: Tensor) -> Tensor:
        return self._forth(p)[-1]

    def transpose(self, y: Tensor) -> Tensor:
        return self.s * self._back(y)

    def bend(self, p: Tensor) -> Tensor:
        delta = self._forth(p)
        eta = torch.zeros_like(delta[0])
        for n in range(1, len(self.at)):
            eta = self._step(n, eta) - self.h[n] * self.at[n].third(delta[n], delta[n])
        return eta

    def gradient(self, w: Tensor, p: Tensor) -> Tensor:
        delta, after = self._forth(p), self._back(w)
        mu = [torch.zeros_like(w)]
        for n in range(len(self.at) - 1, 0, -1):
            mu.append(self._step(n, mu[-1]) - self.h[n] * self.at[n].third(after[n], delta[n]))
        return self.s * torch.stack(mu[::-1])

    def _step(self, n: int, u: Tensor) -> Tensor:
        """A_n u."""
        return u - self.h[n] * self.at[n].second(u)

    def _forth(self, p: Tensor) -> list[Tensor]:
        """δ_0 = 0, …, δ_N of a direction p, shape (steps, N, d)."""
        delta = [torch.zeros_like(p[0]), self.s[0] * p[0]]
        for n in range(1, len(self.at)):
            delta.append(self._step(n, delta[-1]) + self.s[n] * p[n])
        return delta

    def _back(self, y: Tensor) -> Tensor:
        """λ_1, …, λ_N = y."""
        after = [y]
        for n in range(len(self.at) - 1, 0, -1):
            after.append(self._step(n, after[-1]))
        return torch.stack(after[::-1])
