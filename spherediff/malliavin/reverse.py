"""The reverse of a nonlinear diffusion, and samplers for it.

The time reversal of dX = b dt + σ dB with a = σσᵀ and the score s = ∇log p_t is, in the reversed
time τ = T − t (Anderson 1982; Haussmann & Pardoux 1986),

    dY = (−b + ∇·a + a s) dτ + σ dB̄,      (∇·a)_i = Σ_j ∂_j a_ij,

and the flow with the same marginals, without noise,

    dY = (−b + ½∇·a + ½ a s) dτ.

Three schemes, for a grid of times that falls from T, each from its own law at the first:

* Euler–Maruyama, of weak order 1;
* Heun's scheme in Stratonovich form, in which the drift loses ½Σ_l ∂σ_l σ_l: of weak order 2 if σ
  is constant and 1 if it depends on the state, two scores a step;
* Heun's scheme for the flow, of order 2 for every σ, two scores a step.

a itself is formed for its divergence alone, where σ depends on the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import jacfwd, vmap
from tqdm.auto import tqdm

from spherediff.malliavin.sde import SDE
from spherediff.streams import NormalSource, Randomness, open_source

Score = Callable[[Tensor, Tensor], Tensor]


def geometric_times(start: float, end: float, steps: int, *, dtype: torch.dtype) -> Tensor:
    """Times from ``start`` down to ``end`` in a constant ratio, shape (steps + 1,).

    Raises:
        ValueError: not 0 < end < start, or no step.
    """
    if not 0 < end < start or steps < 1:
        raise ValueError(f"expected 0 < end < start and a step, got {end}, {start}, {steps}")
    share = torch.linspace(0, 1, steps + 1, dtype=dtype)
    return start * (end / start) ** share


def power_times(
    start: float, end: float, steps: int, *, power: float = 3.0, dtype: torch.dtype
) -> Tensor:
    """Times from ``start`` to ``end`` ≥ 0 with t^{1/power} equally spaced, shape (steps + 1,).

    Raises:
        ValueError: not 0 ≤ end < start, or no step.
    """
    if not 0 <= end < start or steps < 1:
        raise ValueError(f"expected 0 ≤ end < start and a step, got {end}, {start}, {steps}")
    high, low = start ** (1 / power), end ** (1 / power)
    return torch.linspace(high, low, steps + 1, dtype=dtype).clamp_min(0) ** power


def reverse_euler_maruyama(
    sde: SDE,
    score: Score,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness,
    progress: bool = False,
) -> Tensor:
    """Y + (−b + ∇·a + a s) h + σ ΔB.

    Args:
        sde: the forward equation.
        score: ∇log p_t of states (N, d) and times (N,), shape (N, d).
        x: draws from the law at ``times[0]``, shape (N, d).
        times: falling, shape (n+1,).
        generator: of the noise.
        progress: show a bar with the time left.

    Returns:
        Draws from the law at ``times[-1]``, shape (N, d).

    Raises:
        ValueError: times do not fall, or states leave the finite numbers.
    """
    m = sde.noise_dimension(times[0].to(x), x[0])
    source = open_source(generator, len(x))
    for t, h in _steps(x, times, progress):
        drift = (
            -sde.drift(t, x) + divergence(sde, t, x) + covariance_product(sde, t, x, score(x, t))
        )
        x = x + h * drift + noise_product(sde, t, x, _increment(source, m, h, x))
    return _finite(x)


def reverse_heun(
    sde: SDE,
    score: Score,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness,
    progress: bool = False,
) -> Tensor:
    """Y' = Y + f(Y)h + σ(Y)ΔB, then Y + ½(f(Y) + f(Y'))h + ½(σ(Y) + σ(Y'))ΔB.

    f = −b + ∇·a + a s − ½Σ_l ∂σ_l σ_l.  Arguments, result and errors as for
    :func:`reverse_euler_maruyama`; the last time must be one at which the score exists.
    """
    m = sde.noise_dimension(times[0].to(x), x[0])
    source = open_source(generator, len(x))

    def slope(t: Tensor, x: Tensor) -> Tensor:
        drift = -sde.drift(t, x) + covariance_product(sde, t, x, score(x, t))
        return drift + divergence(sde, t, x) - 0.5 * stratonovich(sde, t, x)

    for t, h in _steps(x, times, progress):
        dB = _increment(source, m, h, x)
        here, noise = slope(t, x), noise_product(sde, t, x, dB)
        ahead = x + h * here + noise
        noise = 0.5 * (noise + noise_product(sde, t - h, ahead, dB))
        x = x + 0.5 * h * (here + slope(t - h, ahead)) + noise
    return _finite(x)


def probability_flow(
    sde: SDE, score: Score, x: Tensor, times: Tensor, *, progress: bool = False
) -> Tensor:
    """Heun's scheme for dY = (−b + ½∇·a + ½ a s) dτ.

    Arguments, result and errors as for :func:`reverse_euler_maruyama`; the last time must be one
    at which the score exists.
    """

    def slope(t: Tensor, x: Tensor) -> Tensor:
        half = divergence(sde, t, x) + covariance_product(sde, t, x, score(x, t))
        return -sde.drift(t, x) + 0.5 * half

    for t, h in _steps(x, times, progress):
        here = slope(t, x)
        x = x + 0.5 * h * (here + slope(t - h, x + h * here))
    return _finite(x)


def noise_product(sde: SDE, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """σ(t, x) v at times (N,), states (N, d) and directions (N, m), shape (N, d)."""
    return vmap(sde.noise)(t, x, v)


def covariance_product(sde: SDE, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """a(t, x) v = σσᵀv at times (N,), states (N, d) and directions (N, d), shape (N, d)."""
    return vmap(sde.noise)(t, x, vmap(sde.pull)(t, x, v))


def divergence(sde: SDE, t: Tensor, x: Tensor) -> Tensor:
    """(∇·a)_i = Σ_j ∂_j a_ij at times (N,) and states (N, d), shape (N, d)."""
    if sde.additive:
        return torch.zeros_like(x)

    def covariance(t: Tensor, x: Tensor) -> Tensor:
        sigma = sde.matrix(t, x)
        return sigma @ sigma.mT

    return torch.einsum("pijj->pi", vmap(jacfwd(covariance, 1))(t, x))


def stratonovich(sde: SDE, t: Tensor, x: Tensor) -> Tensor:
    """Σ_l ∂σ_l σ_l: twice Itô's drift less Stratonovich's; shape (N, d)."""
    if sde.additive:
        return torch.zeros_like(x)
    slope = vmap(jacfwd(sde.matrix, 1))(t, x)
    return torch.einsum("pilk,pkl->pi", slope, sde.diffusion(t, x))


def _steps(x: Tensor, times: Tensor, progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Each time, shape (N,), with the length of its step, shape ()."""
    times = times.to(x)
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError("expected at least two falling times, shape (n+1,)")
    pairs = zip(times[:-1], -times.diff(), strict=True)
    for t, h in tqdm(list(pairs), desc="reverse", leave=False, disable=not progress):
        yield t.expand(len(x)), h


def _increment(source: NormalSource, m: int, h: Tensor, x: Tensor) -> Tensor:
    return h.sqrt() * source.normal((m,), x.dtype).to(x.device)


def _finite(x: Tensor) -> Tensor:
    bad = int((~x.isfinite().all(-1)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(x)} reversed paths are not finite; take more steps, or a score that"
            " grows less"
        )
    return x
