"""The three terms of the entropic bound, and the horizon and steps that it asks for.

    KL(μ | output) ≤ e^{−2T} KL(μ|γ) + (√S + √(h I(μ|γ)))²

The mixed term 2√(S h I) is the price of Minkowski's inequality: at time s of step k the sampler's
drift errs by (s_θ − Z_k) + (Z_k − Z_s), and Girsanov's theorem asks for the mean square of the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import minimize_scalar


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, zero for a closed form."""

    value: float
    error: float = 0.0

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" ± {self.error:.2g}" if self.error else "")


@dataclass(frozen=True)
class EntropicBound:
    """The terms of the bound, in nats.

    Attributes:
        horizon: T, in the process's own time.
        steps: N; the step is h = T/N.
        initialisation: e^{−2T} KL(μ|γ), for starting from γ and not from the law of X_T.
        score: S = Σ_k h E‖s_θ − D log h_{kh}‖²_C, for the error of the score.
        discretisation: h I(μ|γ), for holding the score during a step.
    """

    horizon: float
    steps: int
    initialisation: Estimate
    score: Estimate
    discretisation: Estimate

    def __str__(self) -> str:
        return (
            f"at most {self.total} nats with T = {self.horizon:g}, N = {self.steps}: "
            f"start {self.initialisation}, score {self.score}, steps {self.discretisation}"
        )

    @property
    def total(self) -> Estimate:
        """e^{−2T} KL + (√S + √(hI))².

        The terms may come from the same draws, so their errors are added and not their squares.
        """
        S, D = self.score.value, self.discretisation.value
        value = self.initialisation.value + (math.sqrt(S) + math.sqrt(D)) ** 2
        error = self.initialisation.error
        # ∂(√S + √D)²/∂S = 1 + √(D/S)
        for term, other in ((self.score, self.discretisation), (self.discretisation, self.score)):
            if term.error:
                error += (1 + math.sqrt(other.value / term.value)) * term.error
        return Estimate(value, error)


def entropic_bound(
    entropy: Estimate | float,
    fisher: Estimate | float,
    horizon: float,
    steps: int,
    score: Estimate | float = 0.0,
) -> EntropicBound:
    """The bound on KL(μ | output) of :class:`~spherediff.bounds.FrozenScore`.

    Args:
        entropy: KL(μ|γ) in nats.
        fisher: I(μ|γ), in the Cameron–Martin norm.
        horizon: T.
        steps: N.
        score: S, the summed error of the score; zero for the exact score.

    Raises:
        ValueError: a negative or non-finite term, T ≤ 0, or N < 1.
    """
    _require_run(horizon, steps)
    K, information, S = (_estimate(v) for v in (entropy, fisher, score))
    decay, step = math.exp(-2 * horizon), horizon / steps
    return EntropicBound(
        horizon,
        steps,
        Estimate(decay * K.value, decay * K.error),
        S,
        Estimate(step * information.value, step * information.error),
    )


@dataclass(frozen=True)
class Plan:
    """A horizon T and a number of steps N = T/h."""

    horizon: float
    steps: int


def plan(target: float, entropy: float, fisher: float) -> Plan:
    """The fewest steps for which the bound with the exact score is at most ``target``.

    N = T I/(target − e^{−2T} KL) is minimised over T.  Noise that is already within ``target`` of
    the data asks for no step at all.

    Args:
        target: the KL divergence wanted, in nats.
        entropy: KL(μ|γ).
        fisher: I(μ|γ).

    Raises:
        ValueError: ``target`` not positive, or a negative or non-finite KL or I.
    """
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"expected a KL divergence above zero to aim at, got {target}")
    K, information = _estimate(entropy).value, _estimate(fisher).value
    if target >= K:
        return Plan(0.0, 0)
    shortest = 0.5 * math.log(K / target)

    def steps(horizon: float) -> float:
        return horizon * information / (target - K * math.exp(-2 * horizon))

    # at T = shortest + 10 the first term is e^{−20} of the target: more T gains nothing
    bounds = (shortest + 1e-9, shortest + 10)
    horizon = float(minimize_scalar(steps, bounds=bounds, method="bounded").x)  # type: ignore[attr-defined]
    return Plan(horizon, max(1, math.ceil(steps(horizon))))


def _estimate(value: Estimate | float) -> Estimate:
    estimate = value if isinstance(value, Estimate) else Estimate(float(value))
    if not (math.isfinite(estimate.value) and estimate.value >= 0):
        raise ValueError(
            f"expected finite terms that are not negative, got {estimate.value}: the bound says "
            "nothing where the data is singular to the noise"
        )
    return estimate


def _require_run(horizon: float, steps: int) -> None:
    if not (math.isfinite(horizon) and horizon > 0 and steps >= 1):
        raise ValueError(f"expected T > 0 and at least one step, got T={horizon}, N={steps}")
