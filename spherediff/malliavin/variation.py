"""First and second variation along simulated paths.

The Euler–Maruyama path is a chain of maps f_n(x) = x + b h + σ ΔB.  With A_n = ∂f_n and
H_n = ∂²f_n at X_n, the derivatives of X_n with respect to the starting point,

    Y_{n+1} = A_n Y_n,                      Y_0 = 1,
    Z_{n+1} = A_n Z_n + H_n[Y_n, Y_n],      Z_0 = 0,

are the Euler rule for the first and second variation equations (arXiv 2507.05550, section 3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

from spherediff.malliavin.sde import SDE, Path


class Linearisation(NamedTuple):
    """Derivatives of the steps of a path; n steps of N paths in R^d with m Brownian motions.

    Attributes:
        A: ∂f_n, shape (n, N, d, d).
        H: ∂²f_n, shape (n, N, d, d, d), the first axis of the last three being that of the value.
        sigma: σ(t_n, X_n), shape (n, N, d, m).
        dsigma: ∂σ, shape (n, N, d, m, d), the last axis being that of the state; None where σ
            does not depend on it.
    """

    A: Tensor
    H: Tensor
    sigma: Tensor
    dsigma: Tensor | None


def linearise(sde: SDE, path: Path) -> Linearisation:
    """Derivatives of the Euler–Maruyama steps at the states of ``path``."""
    t, h, x, dB = path.times[:-1], path.steps, path.states[:-1], path.increments
    everywhere = (vmap(vmap(function)) for function in (jacfwd(sde.step, 2), hessian(sde.step, 2)))
    A, H = (function(t, h, x, dB) for function in everywhere)
    dsigma = None if sde.additive else vmap(vmap(jacfwd(sde.matrix, 1)))(t, x)
    return Linearisation(A, H, vmap(vmap(sde.matrix))(t, x), dsigma)


def first_variation(linear: Linearisation) -> Tensor:
    """Y_n = ∂X_n/∂x, shape (n+1, N, d, d)."""
    A = linear.A
    Y = [torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(A.shape[1:])]
    for step in A:
        Y.append(step @ Y[-1])
    return torch.stack(Y)


def second_variation(linear: Linearisation, Y: Tensor) -> Tensor:
    """Z_n[i, j, k] = ∂²X_i/∂x_j∂x_k, shape (n+1, N, d, d, d)."""
    Z = [torch.zeros_like(linear.H[0])]
    for A, H, y in zip(linear.A, linear.H, Y[:-1], strict=True):
        bent = torch.einsum("piab,paj,pbk->pijk", H, y, y)
        Z.append(torch.einsum("pia,pajk->pijk", A, Z[-1]) + bent)
    return torch.stack(Z)
