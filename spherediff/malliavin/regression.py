"""Score regression: the score of any diffusion by least squares on its Skorokhod weight.

With δ the weight of a path from X_0 ~ data to X_t, E[−δ | X_t = x] = ∇log p_t(x), so

    s(·, t) = argmin_f E‖f(X_t, t) + δ‖²      (for a linear SDE: denoising score matching).

The raw target −δ has a variance of order 1/t, so the smallest times fill the gradient with noise.
Any two functions of (x, t) may be taken out without moving the conditional mean, a reference r
and a scale A:

    s(x, t) = c(x, t)⁻¹(r(x, t) + A(t) F(z, t)),   z = (x − m_t)/v_t,   F's target  A⁻¹(−c δ − r),

with c > 0 a diagonal frame (the diffusion coefficient, where it depends on the state).  All are
read off a pilot simulation, coordinate by coordinate: m_t and v_t are the mean and standard
deviation of X_t, r = β_t z/c the least-squares fit of the target (so that c² s, the reversed
drift, is linear in x), and A_t the standard deviation of what it leaves.  Integration by parts,
E[z ∂ log p_t] = −1/v_t, gives β_t = −1/(v_t E[(z/c)²]) whatever the law and without noise.  For
c = 1, r is the score of the Gaussian with the moments of X_t, and F = 0 that approximation.
The target of F has mean square 1 at every t.  This is the preconditioning of Karras et al.
(2022, arXiv 2206.00364, Table 1) with its constants measured in place of derived, so that it holds
for every process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from spherediff.malliavin.sde import SDE, Path, euler_maruyama
from spherediff.malliavin.weights import discrete_weight
from spherediff.streams import PlainDraws

Frame = Callable[[Tensor, Tensor], Tensor]
Weight = Callable[[SDE, Path], Tensor]


@dataclass(frozen=True)
class Examples:
    """Pairs to regress on.

    Attributes:
        times: t, shape (N,).
        states: X_t, shape (N, d).
        targets: with the conditional mean ∇log p_t(X_t), shape (N, d).
    """

    times: Tensor
    states: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, chosen: Tensor | slice) -> Examples:
        return Examples(self.times[chosen], self.states[chosen], self.targets[chosen])


def log_uniform_times(count: int, low: float, high: float, *, generator: torch.Generator) -> Tensor:
    """Horizons with a uniform logarithm, shape (count,): as many at small times as at large.

    Raises:
        ValueError: not 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"expected 0 < low < high, got {low} and {high}")
    share = torch.rand(count, generator=generator)
    return low * (high / low) ** share


def score_targets(
    sde: SDE,
    x0: Tensor,
    horizons: Tensor,
    *,
    steps: int = 8,
    largest_step: float = math.inf,
    generator: torch.Generator,
    weight: Weight = discrete_weight,
) -> Examples:
    """Paths from data, each to a time of its own, and their targets −δ.

    Args:
        sde: the forward equation, which starts at time 0.
        x0: data, shape (N, d).
        horizons: t > 0 of each path, shape (N,).
        steps: Euler–Maruyama steps of each path, of equal length.
        largest_step: a path whose steps would be longer has 2, 4, 8, … times as many.
        generator: of the noise.
        weight: δ from an equation and its paths; in many dimensions
            :func:`~spherediff.malliavin.twin.estimated_weight` with its generator bound.

    Returns:
        Examples in the order of the data.

    Raises:
        ValueError: shapes do not fit, a horizon is not positive, or a path or weight is singular.
    """
    if horizons.shape != (len(x0),) or not bool((horizons > 0).all()):
        raise ValueError(f"expected {len(x0)} positive horizons, one a path")
    doublings = (horizons / (steps * largest_step)).log2().ceil().clamp_min(0).long()
    states, targets = torch.empty_like(x0), torch.empty_like(x0)
    for doubling in doublings.unique().tolist():
        members = (doublings == doubling).nonzero()[:, 0]
        share = torch.linspace(0, 1, (steps << doubling) + 1, dtype=x0.dtype, device=x0.device)
        times = share[:, None] * horizons[members].to(x0)
        path = euler_maruyama(
            sde, x0[members], times, generator=PlainDraws(generator, len(members))
        )
        states[members], targets[members] = path.end, -weight(sde, path)
    return Examples(horizons.to(x0), states, targets)


def _no_frame(x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG001
    return torch.ones_like(x)


class Reference(nn.Module):
    """The functions m, v, β and A of time, linear in log t between knots and constant beyond.

    Args:
        log_times: increasing knots, shape (K,).
        mean, std: m and v at the knots, shape (K, d).
        slope: β, shape (K, d).
        scale: A, shape (K, d).
    """

    log_times: Tensor
    table: Tensor

    def __init__(
        self, log_times: Tensor, mean: Tensor, std: Tensor, slope: Tensor, scale: Tensor
    ) -> None:
        super().__init__()
        self.register_buffer("log_times", log_times)
        self.register_buffer("table", torch.stack([mean, std, slope, scale], 1))

    @classmethod
    def identity(cls, d: int) -> Reference:
        """No reference at all, F = s: the raw regression."""
        one, zero = torch.ones(1, d), torch.zeros(1, d)
        return cls(torch.zeros(1), zero, one, zero, one)

    @classmethod
    def fit(cls, examples: Examples, *, frame: Frame = _no_frame, knots: int = 24) -> Reference:
        """Moments of a pilot simulation in ``knots`` classes of equally many times.

        Args:
            examples: at least 100 a knot for constants good to some per cent.
            frame: c(x, t) of :class:`ScoreRegression`.
            knots: number of classes.

        Raises:
            ValueError: too few examples, or targets that are not finite.
        """
        if len(examples) < 20 * knots:
            raise ValueError(f"expected {20 * knots} examples or more, got {len(examples)}")
        if not bool(examples.targets.isfinite().all()):
            raise ValueError("the targets of the pilot simulation are not all finite")
        rows = []
        for members in examples.times.argsort().tensor_split(knots):
            part = examples[members]
            x, targets = part.states, part.targets
            c = frame(x, part.times)
            std, mean = torch.std_mean(x, 0)
            z = (x - mean) / std
            slope = -1 / (std * (z / c).square().mean(0))
            scale = (c * targets - slope * z / c).square().mean(0).sqrt()
            rows.append(torch.stack([mean, std, slope, scale]))
        centres = [t.log().mean() for t in examples.times.sort().values.tensor_split(knots)]
        return cls(torch.stack(centres), *torch.stack(rows).unbind(1))

    def forward(self, t: Tensor) -> Tensor:
        """m, v, β and A at times (N,), shape (4, N, d)."""
        knots, u = self.log_times, t.log()
        if len(knots) == 1:
            return self.table.expand(len(t), -1, -1).movedim(1, 0)
        right = torch.searchsorted(knots, u.contiguous()).clamp(1, len(knots) - 1)
        left = right - 1
        gap = (knots[right] - knots[left]).clamp_min(torch.finfo(knots.dtype).tiny)
        share = ((u - knots[left]) / gap).clamp(0, 1)
        rows = torch.lerp(self.table[left], self.table[right], share[:, None, None])
        return rows.movedim(1, 0)


class ScoreRegression(nn.Module):
    """s(x, t) = β_t z/c² + A_t F(z, log t)/c, z = (x − m_t)/v_t.

    Args:
        network: F, of z (N, d) and log t (N,), shape (N, d).
        reference: m, v, β and A.
        frame: c(x, t) > 0 of states (N, d) and times (N,), shape (N, d); by default 1.
    """

    def __init__(self, network: nn.Module, reference: Reference, frame: Frame = _no_frame) -> None:
        super().__init__()
        self.network = network
        self.reference = reference
        self.frame = frame

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The score at states (N, d) and times (N,), shape (N, d)."""
        mean, std, slope, scale = self.reference(t)
        z, c = (x - mean) / std, self.frame(x, t)
        return (slope * z / c + scale * self.network(z, t.log())) / c

    def loss(self, examples: Examples) -> Tensor:
        """E‖F − A⁻¹(−c δ − β z/c)‖²/d."""
        x, t = examples.states, examples.times
        mean, std, slope, scale = self.reference(t)
        z, c = (x - mean) / std, self.frame(x, t)
        target = (c * examples.targets - slope * z / c) / scale
        return (self.network(z, t.log()) - target).square().mean()


class Perceptron(nn.Module):
    """A plain network for few dimensions: F(z, log t) with SiLU layers.

    Sines and cosines of z and of log t stand beside them.  The last layer starts at zero, so the
    untrained score is that of the reference.

    Args:
        d: dimension of the state.
        width: of the hidden layers.
        depth: number of hidden layers.
        generator: of the initial weights.
    """

    slow: Tensor
    fast: Tensor

    def __init__(
        self, d: int, *, width: int = 128, depth: int = 3, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.register_buffer("slow", 2.0 ** torch.arange(-3, 2))
        self.register_buffer("fast", 2.0 ** torch.arange(0, 3))
        sizes = [7 * d + 1 + 2 * 5, *[width] * depth]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for layer in layers:
            bound = math.sqrt(3 / layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.out = nn.Linear(width, d)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor, log_time: Tensor) -> Tensor:
        phase = torch.cat([log_time[:, None] * self.slow, (z[..., None] * self.fast).flatten(1)], 1)
        h = torch.cat([z, log_time[:, None] / 4, phase.sin(), phase.cos()], 1)
        for layer in self.layers:
            h = nn.functional.silu(layer(h))
        return self.out(h)


def fit_score(
    model: ScoreRegression,
    examples: Examples | Callable[[int], Examples],
    *,
    steps: int,
    batch: int = 512,
    learning_rate: float = 5e-3,
    ema: float = 0.995,
    generator: torch.Generator,
    progress: bool = False,
) -> list[float]:
    """Train by Adam with a cosine schedule; leave the running average of the weights in ``model``.

    Args:
        model: its network is trained; reference and frame stay as they are.
        examples: a fixed set, or a function that makes as many new ones as asked.
        steps: of the optimiser.
        batch: examples in each.
        learning_rate: at the start; it falls to zero as ½(1 + cos).
        ema: decay of the running average of the weights.
        generator: that picks the mini-batches of a fixed set.
        progress: show a bar with the time left.

    Returns:
        The loss at each step.

    Raises:
        ValueError: the loss is not finite.
    """
    draw = examples if callable(examples) else _minibatches(examples, generator)
    optimiser = torch.optim.Adam(model.network.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: 0.5 * (1 + math.cos(math.pi * k / steps))
    )
    average = [p.detach().clone() for p in model.network.parameters()]
    losses = []
    for k in tqdm(range(steps), desc="score", leave=False, disable=not progress):
        loss = model.loss(draw(batch))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
        decay = min(ema, (1 + k) / (10 + k))
        with torch.no_grad():
            for mean, parameter in zip(average, model.network.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
    values = torch.stack(losses)
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"the loss is not finite from step {int((~values.isfinite()).nonzero()[0])} on;"
            " take a smaller learning rate or a larger smallest time"
        )
    with torch.no_grad():
        for parameter, mean in zip(model.network.parameters(), average, strict=True):
            parameter.copy_(mean)
    return values.tolist()


def _minibatches(examples: Examples, generator: torch.Generator) -> Callable[[int], Examples]:
    def draw(count: int) -> Examples:
        return examples[torch.randint(len(examples), (count,), generator=generator)]

    return draw
