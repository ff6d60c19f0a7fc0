"""The φ⁴ field on the sphere and its stochastic quantisation, an Allen–Cahn equation.

With γ = N(0, C) and the double well V(φ) = ∫ (g/4 φ⁴ − r/2 φ²) dΩ,

    dμ ∝ e^{−V} dγ,        dX = −(X + C∇V(X)) dt + √2 dW^C,

the second being reversible for the first.  In the whitened coordinates z = C^{−1/2}x

    U(z) = ½|z|² + V(C^{1/2}z),        dz = −∇U(z) dt + √2 dB,        ∇U = z + C^{1/2}∇V,

so that the noise is as strong in every direction and μ has the density e^{−U}.  φ⁴ has degree
4·lmax; it is summed on a Gauss–Legendre grid that is exact for that degree, so that V and ∇V are
those of the band-limited field itself, and invariant under all rotations.

Euler's rule for z has the variance 1/(1 − h/2) in every mode where V = 0: however small the step,
a law singular to γ as lmax → ∞.  The rule

    z' = (1 − h) z − h C^{1/2}∇V + √(h(2 − h)) ξ,        h = 1 − e^{−Δt},

leaves γ as it is.  It is Euler's rule too, on the clock that adds up h instead of Δt and with the
diffusion √(2 − h) on each step; so the weights of this package are exact for it.  Followed by
Metropolis' test it draws from μ without bias, with a step that need not shrink as lmax grows
(Cotter et al. 2013, arXiv 1202.0709, the proposal "pCNL").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff.gaussian import GaussianField
from spherediff.grids import GaussLegendre
from spherediff.malliavin.sde import SDE
from spherediff.streams import Randomness, open_source

_AHEAD = 16  # steps whose noise is drawn at once: a draw of a stream has a price of its own


class Clocked(NamedTuple):
    """An equation on a clock of its own, for :func:`~spherediff.malliavin.euler_maruyama`.

    Attributes:
        sde: the equation on the clock.
        clock: readings at the times asked for, float64, shape (steps + 1,).
        sigma: its diffusion on each step, float64, shape (steps,).
    """

    sde: SDE
    clock: Tensor
    sigma: Tensor


class Draws(NamedTuple):
    """States of independent Metropolis chains.

    Attributes:
        states: whitened coefficients, one state from each chain, shape (chains, n).
        acceptance: share of proposals accepted.
        trace: V along the chains, shape (steps + 1, chains).
    """

    states: Tensor
    acceptance: float
    trace: Tensor


class Phi4:
    """The measure dμ ∝ e^{−V} dγ and the dynamics that leave it as it is, whitened.

    States z have shape (..., n); the field is ``field.color(z)``.

    Args:
        field: γ, of one channel, with C_ℓ > 0.
        quartic: g ≥ 0.
        quadratic: r; the wells of V lie at ±√(r/g) if r > 0.

    Raises:
        ValueError: several channels, a degree without variance, g negative, or g = 0 and
            r C_ℓ ≥ 1 for some degree, since then e^{−V} cannot be normalised.
    """

    def __init__(self, field: GaussianField, quartic: float, quadratic: float = 0.0) -> None:
        if len(field.event_shape) != 1 or not bool((field.degree_variance > 0).all()):
            raise ValueError("expected a field of one channel with C_ℓ > 0 at every degree")
        if not (math.isfinite(quartic) and math.isfinite(quadratic) and quartic >= 0):
            raise ValueError(f"expected finite g ≥ 0 and r, got {quartic} and {quadratic}")
        if quartic == 0 and quadratic * float(field.degree_variance.max()) >= 1:
            raise ValueError(
                f"without the quartic term e^{{−V}} has no finite mass where r C_ℓ ≥ 1; here"
                f" r C_ℓ reaches {quadratic * float(field.degree_variance.max()):.3g}"
            )
        self.field, self.quartic, self.quadratic = field, quartic, quadratic
        self.grid = GaussLegendre(2 * field.lmax)
        self._area = self.grid.area_weights

    def potential(self, z: Tensor) -> Tensor:
        """V(C^{1/2}z), shape (...)."""
        x = self._color(z)
        quartic = (self._area.to(z) * self.grid.synthesis(x).pow(4)).sum((-2, -1))
        return self.quartic / 4 * quartic - self.quadratic / 2 * x.square().sum(-1)

    def energy(self, z: Tensor) -> Tensor:
        """U(z) = ½|z|² + V, minus the log-density of μ but for a constant, shape (...)."""
        return 0.5 * z.square().sum(-1) + self.potential(z)

    def gradient(self, z: Tensor) -> Tensor:
        """C^{1/2}∇V(C^{1/2}z), shape of ``z``."""
        x = self._color(z)
        cubic = self._area.to(z) * self.grid.synthesis(x).pow(3)
        force = self.quartic * self.grid.adjoint(cubic, self.field.lmax) - self.quadratic * x
        return self._color(force)

    def curvature(self, z: Tensor) -> Curvature:
        """∇²U and ∂³U at states (N, n)."""
        return Curvature(self, self.grid.synthesis(self._color(z)))

    def score(self, z: Tensor) -> Tensor:
        """−∇U(z), the score of μ, shape of ``z``."""
        return -z - self.gradient(z)

    def sde(self) -> SDE:
        """dz = −∇U(z) dt + √2 dB."""
        return SDE(lambda t, z: self.score(z), math.sqrt(2))  # noqa: ARG005

    def clocked(self, times: Tensor) -> Clocked:
        """The equation on the clock on which Euler's rule leaves γ as it is.

        Args:
            times: increasing times, shape (steps + 1,).

        Raises:
            ValueError: times of another shape, or not increasing.
        """
        times = times.double()
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
            raise ValueError(f"expected increasing times (steps + 1,), got {tuple(times.shape)}")
        h = -torch.expm1(-times.diff())
        clock = torch.cat([torch.zeros(1, dtype=torch.float64), h.cumsum(0)])
        middle, strength = clock[:-1] + h / 2, (2 - h).sqrt()

        def diffusion(t: Tensor) -> Tensor:
            within = (t - middle.to(t)).abs() <= 0.51 * h.to(t)
            # the first of two neighbours that claim a reading is the earlier step
            latest = within & ~torch.cat([within[1:], torch.zeros_like(within[:1])])
            return (latest * strength.to(t)).sum()

        return Clocked(SDE(lambda t, z: self.score(z), diffusion), clock, strength)  # noqa: ARG005

    @torch.no_grad()
    def sample(
        self,
        chains: int,
        *,
        generator: Randomness,
        steps: int = 300,
        step: float = 0.2,
        progress: bool = False,
    ) -> Draws:
        """Draw from μ by independent Metropolis-corrected chains started from zero.

        V is even, so each step ends by changing the sign of the field or not, at random: the two
        phases of a double well are visited as often.  Every fourth step is an eighth as long, for
        states so far out that V rejects all longer ones.

        Args:
            chains: number of chains, of which the last states are kept.
            generator: a CPU generator, or a sequence of them, one a chain.
            steps: steps of each chain.
            step: h ∈ (0, 1] of the proposal.
            progress: show a progress bar.

        Raises:
            ValueError: ``step`` outside (0, 1], or no step.
        """
        if not 0 < step <= 1 or steps < 1:
            raise ValueError(f"expected 0 < step ≤ 1 and steps ≥ 1, got {step} and {steps}")
        noise = open_source(generator, chains)
        shape, dtype, device = self.field.event_shape, self.field.dtype, self.field.device
        z = torch.zeros(chains, *shape, dtype=dtype, device=device)
        V, dV = self.potential(z), self.gradient(z)
        trace, accepted = [V], 0.0
        ahead = z
        for k in tqdm(range(steps), desc="Metropolis", disable=not progress):
            h = step if k % 4 else step / 8
            if k % _AHEAD == 0:
                ahead = noise.normal((_AHEAD * (shape[0] + 2),), dtype).to(device)
                ahead = ahead.view(chains, _AHEAD, -1)
            white, coins = ahead[:, k % _AHEAD, :-2], ahead[:, k % _AHEAD, -2:]
            new = (1 - h) * z - h * dV + math.sqrt(h * (2 - h)) * white
            new_V, new_dV = self._potential_and_gradient(new)
            log_ratio = _log_ratio(z, V, dV, new, new_V, new_dV, h)
            accept = log_ratio > torch.special.log_ndtr(coins[:, 0])
            z = torch.where(accept[:, None], new, z)
            V = torch.where(accept, new_V, V)
            dV = torch.where(accept[:, None], new_dV, dV)
            sign = coins[:, 1:].sign()
            z, dV = sign * z, sign * dV
            trace.append(V)
            accepted += float(accept.double().mean()) / steps
        return Draws(z, accepted, torch.stack(trace))

    def _potential_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """V and C^{1/2}∇V for the price of the second."""
        x = self._color(z)
        values = self.grid.synthesis(x)
        cubic = self._area.to(z) * values * values * values
        quadratic = self.quadratic * x
        force = self.quartic * self.grid.adjoint(cubic, self.field.lmax) - quadratic
        V = self.quartic / 4 * (cubic * values).sum((-2, -1)) - 0.5 * (quadratic * x).sum(-1)
        return V, self._color(force)

    def _project(self, values: Tensor) -> Tensor:
        """C^{1/2} times the coefficients of a field given on the grid."""
        return self._color(self.grid.adjoint(self._area.to(values) * values, self.field.lmax))

    def _color(self, z: Tensor) -> Tensor:
        return z * self.field.std_per_coefficient.to(z)


class Curvature:
    """Second and third derivatives of U at fixed states, two transforms each.

    Args:
        phi4: the measure.
        values: φ on its grid at the states, shape (N, *grid.shape).
    """

    def __init__(self, phi4: Phi4, values: Tensor) -> None:
        self._phi4, self._values = phi4, values
        self._curve = 3 * phi4.quartic * values.square()

    def second(self, u: Tensor) -> Tensor:
        """∇²U u = u + C^{1/2}(3gφ² − r)C^{1/2}u, shape (N, n)."""
        x = self._phi4._color(u)
        curved = self._phi4._project(self._curve * self._phi4.grid.synthesis(x))
        return u + curved - self._phi4.quadratic * self._phi4._color(x)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """∂³U[u, v] = 6g C^{1/2}(φ · C^{1/2}u · C^{1/2}v), shape (N, n)."""
        a, b = (self._phi4.grid.synthesis(self._phi4._color(one)) for one in (u, v))
        return self._phi4._project(6 * self._phi4.quartic * self._values * a * b)


def _log_ratio(
    z: Tensor, V: Tensor, dV: Tensor, new: Tensor, new_V: Tensor, new_dV: Tensor, h: float
) -> Tensor:
    """log of μ(z')q(z|z')/μ(z)q(z'|z), in terms that stay finite as lmax → ∞, shape (chains,).

    With q(z'|z) = N(z'; (1 − h)z − h∇V, h(2 − h)) the parts that V does not enter cancel, and
    log(e^{½|z|²}q(z'|z)) = −[⟨z' − (1 − h)z, ∇V⟩ + h|∇V|²/2]/(2 − h) + a symmetric term.
    """

    def forward(start: Tensor, slope: Tensor, end: Tensor) -> Tensor:
        moved = ((end - (1 - h) * start) * slope).sum(-1)
        return -(moved + 0.5 * h * slope.square().sum(-1)) / (2 - h)

    return V - new_V + forward(new, new_dV, z) - forward(z, dV, new)


def effective_sample_size(trace: Tensor) -> float:
    """Effective number of independent states among those of stationary chains.

    The integrated autocorrelation time is τ = 1 + 2Σρ_k, summed until the first pair of lags with
    a negative sum (Geyer 1992).

    Args:
        trace: a statistic along chains, shape (steps, chains).

    Raises:
        ValueError: fewer than four steps.
    """
    if trace.ndim != 2 or len(trace) < 4:
        raise ValueError(f"expected (steps, chains) with steps ≥ 4, got {tuple(trace.shape)}")
    x = (trace - trace.mean()).double()
    lags = len(x)
    spectrum = torch.fft.rfft(x, 2 * lags, dim=0).abs().square()
    covariance = torch.fft.irfft(spectrum, dim=0)[:lags].mean(1)
    rho = covariance / torch.arange(lags, 0, -1) / (covariance[0] / lags)
    pairs = rho[: lags - lags % 2].view(-1, 2).sum(1)
    negative = (pairs <= 0).nonzero()
    last = int(negative[0]) if len(negative) else len(pairs)
    return trace.numel() / float(2 * pairs[:last].sum() - 1)
