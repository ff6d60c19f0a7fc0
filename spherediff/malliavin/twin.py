"""The discrete weight by automatic differentiation, in few dimensions and in many.

The Euler–Maruyama path is a function X_T = Φ(ξ) of standard normal numbers.  With J = ∂Φ/∂ξ and
u_k = Jᵀ(JJᵀ)⁻¹e_k,

    δ(u_k) = u_k·ξ − tr ∂u_k/∂ξ.

In few dimensions the Jacobian and the trace are taken as they stand.  In many, with B = (JJᵀ)⁻¹
applied by conjugate gradients and Rademacher probes z ∈ R^{nm}, y ∈ R^d,

    δ(u) = B (Jξ + E_y[J∇_ξ⟨By, ∂Φ[Jᵀy]⟩] + E_z[∂²Φ[Πz, Πz] − ∂²Φ[z, z]]),   Π = JᵀBJ,

for all k at once: a few derivatives along directions, and no matrix is ever formed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

from spherediff._linear import conjugate_gradients
from spherediff.malliavin.sde import SDE, Path
from spherediff.malliavin.weights import require_euler, require_regular
from spherediff.streams import Randomness, open_source

_PATHS_AT_ONCE = 64
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
_MAX_ITERATIONS = 200


def autodiff_weight(sde: SDE, path: Path) -> Tensor:
    """δ(u_k) with exact Jacobian and trace, shape (N, d).

    Cost grows as (steps·m)·d paths; :func:`~spherediff.malliavin.weights.discrete_weight` is the
    same number by a recursion.

    Args:
        sde: the equation that made the path.
        path: paths by :func:`~spherediff.malliavin.sde.euler_maruyama`.

    Raises:
        ValueError: another scheme made the path, or the covariance JJᵀ is singular.
    """
    require_euler(path)
    root = path.steps.sqrt()

    def jacobian(x0: Tensor, times: Tensor, root: Tensor, xi: Tensor) -> Tensor:
        return jacrev(lambda xi: _end(sde, x0, times, root, xi))(xi).flatten(1)

    def covariance(x0: Tensor, times: Tensor, root: Tensor, xi: Tensor) -> Tensor:
        J = jacobian(x0, times, root, xi)
        return J @ J.T

    def weight(x0: Tensor, times: Tensor, root: Tensor, xi: Tensor) -> Tensor:
        def field(xi: Tensor) -> Tensor:
            J = jacobian(x0, times, root, xi)
            # not by linalg.solve, whose forward mode errs under vmap (torch 2.13)
            return (torch.linalg.inv(J @ J.T) @ J).T.reshape(*xi.shape, -1)

        trace = torch.einsum("slksl->k", jacfwd(field)(xi))
        return torch.einsum("slk,sl->k", field(xi), xi) - trace

    everywhere = (path.states[0], path.times, root, path.increments / root[..., None])
    places = (0, 1, 1, 1)
    require_regular(vmap(covariance, places, chunk_size=_PATHS_AT_ONCE)(*everywhere))
    return vmap(weight, places, chunk_size=_PATHS_AT_ONCE)(*everywhere)


def estimated_weight(
    sde: SDE,
    path: Path,
    *,
    generator: Randomness,
    probes: int = 1,
    tolerance: float | None = None,
) -> Tensor:
    """An unbiased estimate of δ(u_k) in many dimensions, shape (N, d).

    Memory is linear in paths × steps × (d + m); nothing of size d² is formed.  The conditional
    mean given X_T is the same as that of the exact weight; the probes add variance only.

    Args:
        sde: the equation that made the path; best in coordinates in which the noise is about
            equally strong in every direction, as whitened coefficients are.
        path: paths by :func:`~spherediff.malliavin.sde.euler_maruyama`.
        generator: for the probes.
        probes: number of probes averaged.
        tolerance: relative residual of the conjugate gradients; by default 10⁻⁹ in float64 and
            10⁻⁴ in float32.

    Raises:
        ValueError: another scheme made the path, or conjugate gradients do not converge, which
            means that the covariance JJᵀ is singular or nearly so.
    """
    require_euler(path)
    root = path.steps.sqrt()
    xi = path.increments / root[..., None]
    x0, dtype = path.states[0], xi.dtype
    tolerance = _TOLERANCE[dtype] if tolerance is None else tolerance
    step = vmap(sde.step)

    def phi(xi: Tensor) -> Tensor:
        x = x0
        for t, r, noise in zip(path.times[:-1], root, xi, strict=True):
            x = step(t, r.square(), x, r[:, None] * noise)
        return x

    def along(direction: Tensor) -> Tensor:
        """J p."""
        return jvp(phi, (xi,), (direction,))[1]

    def bend(p: Tensor) -> Tensor:
        """∂²Φ[p, p]."""
        return jvp(lambda xi: jvp(phi, (xi,), (p,))[1], (xi,), (p,))[1]

    back = vjp(phi, xi)[1]

    def transpose(y: Tensor) -> Tensor:
        """Jᵀ y."""
        return back(y)[0]

    def solve(b: Tensor) -> Tensor:
        """B b."""
        solution = conjugate_gradients(lambda y: along(transpose(y)), b, tolerance, _MAX_ITERATIONS)
        if bool((solution.residual > 10 * tolerance).any()):
            raise ValueError(
                "the Malliavin covariance is singular or nearly so: conjugate gradients left a"
                f" relative residual of {float(solution.residual.max()):.1e} after"
                f" {solution.iterations} iterations; use coordinates in which the noise is white,"
                " or add noise where there is none"
            )
        return solution.solution

    total = along(xi)
    signs = open_source(generator, len(x0))
    for _ in range(probes):
        y = _signs(signs, x0)
        z = _signs(signs, xi.movedim(1, 0)).movedim(0, 1)
        p, By = transpose(y), solve(y)
        gradient = vjp(lambda xi, p=p: jvp(phi, (xi,), (p,))[1], xi)[1](By)[0]
        projected = transpose(solve(along(z)))
        total = total + (along(gradient) + bend(projected) - bend(z)) / probes
    return solve(total)


def _end(sde: SDE, x0: Tensor, times: Tensor, root: Tensor, xi: Tensor) -> Tensor:
    """Φ of one path."""
    x = x0
    for t, r, noise in zip(times[:-1], root, xi, strict=True):
        x = sde.step(t, r.square(), x, r * noise)
    return x


def _signs(source: Randomness, like: Tensor) -> Tensor:
    """Rademacher numbers, the shape of ``like``, whose first axis is that of the paths."""
    normal = open_source(source, len(like)).normal((like[0].numel(),), like.dtype)
    return normal.sign().to(like.device).view(like.shape)
