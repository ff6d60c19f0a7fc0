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

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

from spherediff._linear import conjugate_gradients
from spherediff.malliavin.sde import SDE, Path
from spherediff.malliavin.weights import require_euler, require_regular
from spherediff.streams import NormalSource, Randomness, open_source

_PATHS_AT_ONCE = 64
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
_MAX_ITERATIONS = 200

# Paths × steps × (d + m) of one part: some hundreds of MB for the derivatives in float64.
_LARGEST_PART = 1 << 21


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
        return jacrev(lambda xi: _end(sde.step, x0, times, root, xi))(xi).flatten(1)

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

    everywhere = (path.states[0], path.times, root, path.noise)
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

    Nothing of size d² is formed, and the paths are taken in parts, so that memory stays bounded in
    their number.  The conditional mean given X_T is the same as that of the exact weight; the
    probes add variance only.

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
    return estimate(
        lambda part: _Autodiff(sde, part),
        path,
        generator=generator,
        probes=probes,
        tolerance=_TOLERANCE[path.end.dtype] if tolerance is None else tolerance,
    )


class Derivatives(Protocol):
    """Derivatives of X_T = Φ(ξ) along directions, for N paths at once.

    Directions of the noise have the shape (steps, N, m), those of the state (N, d).
    """

    def along(self, p: Tensor) -> Tensor:
        """J p."""
        ...

    def transpose(self, y: Tensor) -> Tensor:
        """Jᵀ y."""
        ...

    def bend(self, p: Tensor) -> Tensor:
        """∂²Φ[p, p]."""
        ...

    def gradient(self, w: Tensor, p: Tensor) -> Tensor:
        """∇_ξ⟨w, ∂Φ[p]⟩."""
        ...


def estimate(
    derivatives: Callable[[Path], Derivatives],
    path: Path,
    *,
    generator: Randomness,
    probes: int,
    tolerance: float,
) -> Tensor:
    """The estimated weight from any way to differentiate the path; see :func:`estimated_weight`."""
    require_euler(path)
    n, count, m = path.increments.shape
    source = open_source(generator, count)
    signs = [(_signs(source, path.end.shape[1]), _signs(source, n * m)) for _ in range(probes)]
    size = max(1, _LARGEST_PART // (n * (path.end.shape[1] + m)))
    weights = []
    for k, part in enumerate(path.split(size)):
        here = slice(k * size, (k + 1) * size)
        probe = [(y[here], z[here].view(-1, n, m).movedim(1, 0)) for y, z in signs]
        weights.append(_estimate(derivatives(part), part, probe, tolerance))
    return torch.cat(weights)


def _estimate(
    at: Derivatives, path: Path, probes: list[tuple[Tensor, Tensor]], tolerance: float
) -> Tensor:
    def solve(b: Tensor) -> Tensor:
        """B b."""
        found = conjugate_gradients(
            lambda y: at.along(at.transpose(y)), b, tolerance, _MAX_ITERATIONS
        )
        if bool((~(found.residual <= 10 * tolerance)).any()):
            raise ValueError(
                "the Malliavin covariance is singular or nearly so: conjugate gradients left a"
                f" relative residual of {float(found.residual.max()):.1e} after"
                f" {found.iterations} iterations; use coordinates in which the noise is white,"
                " or add noise where there is none"
            )
        return found.solution

    total = at.along(path.noise)
    for signs in probes:
        y, z = (2 * sign.to(total) - 1 for sign in signs)
        twist = at.along(at.gradient(solve(y), at.transpose(y)))
        projected = at.transpose(solve(at.along(z)))
        total = total + (twist + at.bend(projected) - at.bend(z)) / len(probes)
    return solve(total)


class _Autodiff:
    """Derivatives by ``torch.func``."""

    def __init__(self, sde: SDE, path: Path) -> None:
        root, step = path.steps.sqrt(), vmap(sde.step)

        def phi(xi: Tensor) -> Tensor:
            return _end(step, path.states[0], path.times, root, xi)

        self._phi, self._xi = phi, path.noise
        self._back = vjp(phi, self._xi)[1]

    def along(self, p: Tensor) -> Tensor:
        return self._derivative(p)(self._xi)

    def transpose(self, y: Tensor) -> Tensor:
        return self._back(y)[0]

    def bend(self, p: Tensor) -> Tensor:
        return jvp(self._derivative(p), (self._xi,), (p,))[1]

    def gradient(self, w: Tensor, p: Tensor) -> Tensor:
        return vjp(self._derivative(p), self._xi)[1](w)[0]

    def _derivative(self, p: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda xi: jvp(self._phi, (xi,), (p,))[1]


def _end(
    step: Callable[..., Tensor], x0: Tensor, times: Tensor, root: Tensor, xi: Tensor
) -> Tensor:
    """Φ(ξ), of one path or of many, as ``step`` takes one or many."""
    x = x0
    for t, r, noise in zip(times[:-1], root, xi, strict=True):
        x = step(t, r.square(), x, r[..., None] * noise)
    return x


def _signs(source: NormalSource, count: int) -> Tensor:
    """Whether a random sign is positive, (N, count): a byte each, for many are kept."""
    return source.normal((count,), torch.float32) > 0
