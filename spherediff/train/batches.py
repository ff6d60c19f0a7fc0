"""What a step of training sees: fields, labels and noise levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spherediff.denoise import NeuralDenoiser
from spherediff.train.config import TrainConfig
from spherediff.train.objective import Fields


def mini_batch(
    learners: Sequence[NeuralDenoiser], data: Fields, batch: int, generator: torch.Generator
) -> tuple[NeuralDenoiser, Fields]:
    """A learner at random, and fields of its part."""
    k = int(torch.randint(len(learners), (), generator=generator))
    part = fold(len(data.x), k, len(learners))
    return learners[k], data.at(torch.randint(part.start, part.stop, (batch,), generator=generator))


def fold(count: int, k: int, parts: int) -> slice:
    """Which of ``count`` fields are the k-th of so many parts."""
    return slice(count * k // parts, count * (k + 1) // parts)


def drop_labels(fields: Fields, share: float, generator: torch.Generator) -> Fields:
    """The null label in place of a random share of the labels (arXiv 2207.12598, algorithm 1)."""
    if not fields.condition.shape[1]:
        return fields
    kept = torch.rand(len(fields.x), 1, generator=generator) >= share
    return fields._replace(condition=fields.condition * kept.to(fields.condition))


def draw_log_noise(
    denoiser: NeuralDenoiser, config: TrainConfig, generator: torch.Generator
) -> Tensor:
    """log(σ/α) of each field of a mini-batch, shape (batch,), float64."""
    low, high = denoiser.process.schedule.log_snr_range
    draw = spread_normal(config.batch, generator)
    return (config.log_noise_mean + config.log_noise_std * draw).clamp(-high, -low)


def spread_normal(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers, one from each of ``count`` equally likely ranges, float64.

    As levels they let every mini-batch see all of them.
    """
    within = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.special.ndtri((torch.arange(count) + within) / count)
