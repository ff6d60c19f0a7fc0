"""Training of a network within a budget of time, as diffusion models usually are trained.

AdamW with gradient clipping; the rate of learning falls by a cosine over the *time* of the budget,

    r(τ) = r_max min(1, τ/τ_w) ½(1 + cos π τ),    τ = elapsed/budget;

an average of the weights, θ̄ ← d θ̄ + (1 − d) θ with d = min(d_max, (1 + k)/(10 + k)), is judged on
the validation maps at even intervals of time, and the best one is kept.  Judgements count against
the budget.

Time is processor time per thread: what a clock on the wall shows when nothing else runs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from spherediff.train.loop import average as averaged

Loss = Callable[[nn.Module, Tensor], Tensor]

_JUDGEMENTS = 20


@dataclass(frozen=True)
class Budget:
    """How to train.

    Attributes:
        seconds: of :func:`clock`.
        batch: maps in each step.
        learning_rate: the largest.
        warmup: part of the time, τ_w.
        weight_decay: of AdamW.
        clip: largest norm of a gradient.
        ema: d_max.
        seed: of batches and noise.
    """

    seconds: float
    seed: int
    batch: int = 32
    learning_rate: float = 3e-3
    warmup: float = 0.02
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.995

    def rate(self, elapsed: float) -> float:
        """Rate of learning after so many seconds."""
        part = min(1.0, elapsed / self.seconds)
        return (
            self.learning_rate * min(1.0, part / self.warmup) * 0.5 * (1 + math.cos(math.pi * part))
        )

    def decay(self, step: int) -> float:
        """Decay of the average at step k."""
        return min(self.ema, (1 + step) / (10 + step))


def clock() -> float:
    """Seconds of processor time per thread."""
    return time.process_time() / torch.get_num_threads()


def train_within(
    budget: Budget, network: nn.Module, loss: Loss, training: Tensor, validation: Tensor
) -> dict[str, Any]:
    """Train ``network`` in place; at the end it holds the best averaged weights.

    Args:
        budget: time and options.
        network: to be trained.
        loss: of a network on a batch of maps, a scalar; draws its noise from torch's generator.
        training: maps, whatever ``loss`` takes.
        validation: maps to judge by, with noise that never changes.

    Returns:
        ``steps``, ``parameters``, and ``validation``: [seconds, step, loss] of each judgement.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    start = clock()
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=budget.weight_decay)
    best, best_weights = math.inf, copy.deepcopy(average.state_dict())
    judgements: list[list[float]] = []
    step, elapsed = 0, 0.0
    with torch.random.fork_rng(devices=[]), _bar(budget.seconds) as bar:
        torch.manual_seed(budget.seed)
        while elapsed < budget.seconds:
            batch = training[torch.randint(len(training), (budget.batch,))]
            _step(network, optimiser, loss(network, batch), budget, elapsed)
            step += 1
            averaged(average, network, budget.decay(step))
            elapsed = clock() - start
            if elapsed >= (len(judgements) + 1) / _JUDGEMENTS * budget.seconds:
                error = judge(average, loss, validation, budget.batch)
                judgements.append([round(elapsed, 1), step, error])
                if error < best:
                    best, best_weights = error, copy.deepcopy(average.state_dict())
                bar.set_postfix(step=step, validation=f"{error:.4f}")
                elapsed = clock() - start
            bar.update(min(elapsed, budget.seconds) - bar.n)
    network.load_state_dict(best_weights)
    parameters = sum(p.numel() for p in network.parameters())
    return {"steps": step, "parameters": parameters, "validation": judgements}


@torch.no_grad()
def judge(network: nn.Module, loss: Loss, validation: Tensor, batch: int) -> float:
    """Mean loss over two passes through the validation maps, with the same noise every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        parts = [(len(maps), loss(network, maps)) for maps in [*validation.split(batch)] * 2]
    return sum(size * float(value) for size, value in parts) / (2 * len(validation))


def _step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    value: Tensor,
    budget: Budget,
    elapsed: float,
) -> None:
    if not math.isfinite(value.item()):
        raise FloatingPointError(f"the loss is {value.item()} after {elapsed:.0f} s of training")
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    nn.utils.clip_grad_norm_(network.parameters(), budget.clip)
    for group in optimiser.param_groups:
        group["lr"] = budget.rate(elapsed)
    optimiser.step()


def _bar(seconds: float) -> tqdm:
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    return tqdm(total=seconds, desc="training", bar_format=layout)
