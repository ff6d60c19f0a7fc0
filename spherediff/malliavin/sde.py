"""Stochastic differential equations dX = b(t, X) dt + Σ_l σ_l(t, X) dB^l and their paths.

Coefficients are functions of one state, x ∈ R^d; all paths are computed at once by
``torch.func.vmap``, and all derivatives are those of ``torch.func``.  Euler–Maruyama,

    X_{n+1} = X_n + b(t_n, X_n) h_n + σ(t_n, X_n) ΔB_n,

has strong order ½ (1 if σ does not depend on the state) and weak order 1.  Milstein adds

    ½ Σ_{jl} (∂σ_l σ_j)(X_n) (ΔB^j ΔB^l − δ_{jl} h_n),

and has strong order 1 wherever the noise commutes, ∂σ_l σ_j = ∂σ_j σ_l, which it checks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from spherediff.streams import Randomness, open_source

Drift = Callable[[Tensor, Tensor], Tensor]
Diffusion = Callable[[Tensor, Tensor], Tensor] | Callable[[Tensor], Tensor] | Tensor | float


class SDE:
    """dX = b(t, X) dt + σ(t, X) dB.

    Whether σ depends on the state is read from its signature: a function of t alone, a tensor or
    a number does not, a function of (t, x) does.

    Args:
        drift: b(t, x) of a time () and a state (d,), shape (d,); differentiable twice.
        diffusion: σ(t, x) or σ(t) or a constant.  Shape () means σ times the identity, (d,) a
            diagonal matrix, (d, m) a matrix with m Brownian motions; differentiable twice.

    Raises:
        TypeError: a coefficient takes other arguments than these.
    """

    def __init__(self, drift: Drift, diffusion: Diffusion) -> None:
        if _arity(drift, "drift") != 2:
            raise TypeError("expected drift(t, x), a function of two arguments")
        self._drift = drift
        if not callable(diffusion):
            diffusion = _constant(diffusion)
        arity = _arity(diffusion, "diffusion")
        if arity not in (1, 2):
            raise TypeError(f"expected diffusion(t, x) or diffusion(t), got {arity} arguments")
        self.additive = arity == 1
        self._diffusion: Callable[..., Tensor] = diffusion

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """b at times (N,) and states (N, d), shape (N, d)."""
        return vmap(self._drift)(t, x)

    def diffusion(self, t: Tensor, x: Tensor) -> Tensor:
        """The matrix σ at times (N,) and states (N, d), shape (N, d, m)."""
        return vmap(self.matrix)(t, x)

    def matrix(self, t: Tensor, x: Tensor) -> Tensor:
        """The matrix σ at one time () and one state (d,), shape (d, m)."""
        sigma = self._sigma(t, x)
        if sigma.ndim == 0:
            return sigma * torch.eye(len(x), dtype=x.dtype, device=x.device)
        return torch.diag(sigma) if sigma.ndim == 1 else sigma

    def step(self, t: Tensor, h: Tensor, x: Tensor, dB: Tensor) -> Tensor:
        """One Euler–Maruyama step of one state: x + b h + σ ΔB, shape (d,)."""
        return x + self._drift(t, x) * h + self.noise(t, x, dB)

    def noise(self, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """σ v at one time (), one state (d,) and one direction (m,), shape (d,)."""
        sigma = self._sigma(t, x)
        return sigma @ v if sigma.ndim == 2 else sigma * v

    def pull(self, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """σᵀ v at one time (), one state (d,) and one direction (d,), shape (m,)."""
        sigma = self._sigma(t, x)
        return sigma.mT @ v if sigma.ndim == 2 else sigma * v

    def noise_dimension(self, t: Tensor, x: Tensor) -> int:
        """Number m of Brownian motions, found from the shapes of the coefficients at one state.

        Raises:
            ValueError: the coefficients do not have the shapes that they should.
        """
        d = x.shape[-1]
        drift, sigma = self._drift(t, x), self._sigma(t, x)
        if drift.shape != (d,):
            raise ValueError(f"expected a drift of shape ({d},), got {tuple(drift.shape)}")
        if sigma.ndim > 2 or (sigma.ndim > 0 and len(sigma) != d):
            raise ValueError(
                f"expected a diffusion of shape (), ({d},) or ({d}, m), got {tuple(sigma.shape)}"
            )
        return sigma.shape[1] if sigma.ndim == 2 else d

    def _sigma(self, t: Tensor, x: Tensor) -> Tensor:
        """σ in the shape in which it was given."""
        return self._diffusion(t) if self.additive else self._diffusion(t, x)


@dataclass(frozen=True)
class Path:
    """Simulated paths with the noise that drove them.

    Attributes:
        times: t_0 < … < t_n, shape (n+1, N); each path may have its own.
        states: X at these times, shape (n+1, N, d).
        increments: ΔB, shape (n, N, m).
        scheme: the rule that made them.
    """

    times: Tensor
    states: Tensor
    increments: Tensor
    scheme: Literal["euler-maruyama", "milstein"]

    @property
    def steps(self) -> Tensor:
        """h_n = t_{n+1} − t_n, shape (n, N)."""
        return self.times.diff(dim=0)

    @property
    def noise(self) -> Tensor:
        """ξ = ΔB/√h, standard normal, shape (n, N, m)."""
        return self.increments / self.steps.sqrt()[..., None]

    @property
    def end(self) -> Tensor:
        """X_T, shape (N, d)."""
        return self.states[-1]

    def split(self, size: int) -> list[Path]:
        """The same paths in parts of at most ``size``."""
        parts = (part.split(size, dim=1) for part in (self.times, self.states, self.increments))
        return [Path(t, x, dB, self.scheme) for t, x, dB in zip(*parts, strict=True)]


def euler_maruyama(sde: SDE, x0: Tensor, times: Tensor, *, generator: Randomness) -> Path:
    """Simulate by Euler–Maruyama.

    Path k does not depend on how many others are drawn with it.

    Args:
        sde: the equation.
        x0: starting points, shape (N, d), float32 or float64.
        times: increasing times, shape (n+1,), or (n+1, N) where each path has its own.
        generator: a CPU generator, or a sequence of them, one a path.

    Raises:
        ValueError: shapes do not fit, times do not increase, or a path leaves the finite numbers
            (the message says when).
    """
    return _simulate(sde, x0, times, generator, "euler-maruyama")


def milstein(sde: SDE, x0: Tensor, times: Tensor, *, generator: Randomness) -> Path:
    """Simulate by Milstein's scheme; arguments as for :func:`euler_maruyama`.

    Raises:
        ValueError: also where the noise does not commute, since that needs iterated integrals.
    """
    return _simulate(sde, x0, times, generator, "milstein")


def _simulate(
    sde: SDE,
    x0: Tensor,
    times: Tensor,
    generator: Randomness,
    scheme: Literal["euler-maruyama", "milstein"],
) -> Path:
    times = _checked_times(x0, times)
    m = sde.noise_dimension(times[0, 0], x0[0])
    n, count = len(times) - 1, len(x0)
    steps = times.diff(dim=0)
    white = open_source(generator, count).normal((n * m,), x0.dtype).to(x0.device)
    increments = white.view(count, n, m).movedim(0, 1) * steps.sqrt()[..., None]
    advance: Callable[..., Tensor] = _milstein_step(sde) if scheme == "milstein" else vmap(sde.step)
    states = [x0]
    for t, h, dB in zip(times[:-1], steps, increments, strict=True):
        states.append(advance(t, h, states[-1], dB))
    path = Path(times, torch.stack(states), increments, scheme)
    _require_finite(path)
    return path


def _milstein_step(sde: SDE) -> Callable[..., Tensor]:
    if sde.additive:
        return vmap(sde.step)

    def iterated(t: Tensor, h: Tensor, x: Tensor, dB: Tensor) -> tuple[Tensor, Tensor]:
        """½ Σ (∂σ_l σ_j)(ΔB^j ΔB^l − δ h), and how far the noise is from commuting."""
        slope = torch.einsum("ilk,kj->ilj", jacfwd(sde.matrix, 1)(t, x), sde.matrix(t, x))
        square = torch.outer(dB, dB) - h * torch.eye(len(dB), dtype=x.dtype, device=x.device)
        asymmetry = (slope - slope.mT).abs().amax() / (slope.abs().amax() + 1e-30)
        return 0.5 * (slope * square).sum((1, 2)), asymmetry

    def advance(t: Tensor, h: Tensor, x: Tensor, dB: Tensor) -> Tensor:
        correction, asymmetry = vmap(iterated)(t, h, x, dB)
        if bool((asymmetry > 1e3 * torch.finfo(x.dtype).eps).any()):
            raise ValueError(
                "Milstein's scheme expects commuting noise, ∂σ_l σ_j = ∂σ_j σ_l, which does not"
                f" hold at t = {float(t[asymmetry.argmax()]):.4g}; use euler_maruyama"
            )
        return vmap(sde.step)(t, h, x, dB) + correction

    return advance


def _checked_times(x0: Tensor, times: Tensor) -> Tensor:
    """Times as (n+1, N), at the precision and on the device of the states."""
    if x0.ndim != 2 or not x0.dtype.is_floating_point or not len(x0):
        raise ValueError(f"expected starting points of shape (N, d), got {tuple(x0.shape)}")
    times = times.to(x0)
    if times.ndim == 1:
        times = times[:, None].expand(-1, len(x0))
    if times.ndim != 2 or times.shape[1] != len(x0) or len(times) < 2:
        raise ValueError(
            f"expected times of shape (n+1,) or (n+1, {len(x0)}) with n ≥ 1,"
            f" got {tuple(times.shape)}"
        )
    if not bool((times.diff(dim=0) > 0).all()):
        raise ValueError("expected increasing times")
    return times


def _require_finite(path: Path) -> None:
    finite = path.states.isfinite().all(-1)
    if bool(finite.all()):
        return
    step, which = (int(i) for i in torch.nonzero(~finite)[0])
    raise ValueError(
        f"{int((~finite).any(0).sum())} of {finite.shape[1]} paths are not finite;"
        f" the first at t = {float(path.times[step, which]):.4g} (path {which}, step {step});"
        " take smaller steps, or coefficients that grow less"
    )


def _constant(value: Tensor | float) -> Callable[[Tensor], Tensor]:
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)

    def constant(t: Tensor) -> Tensor:
        return tensor.to(t)

    return constant


def _arity(function: Callable[..., Tensor], name: str) -> int:
    """Number of positional arguments that a coefficient must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"cannot read the arguments of the {name}; wrap it in a function of (t, x)"
        ) from error
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise TypeError(f"the {name} takes *args; wrap it in a function of (t, x) or (t)")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)
