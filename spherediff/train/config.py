"""How to train, and what it came to."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: number of optimiser steps.
        batch: fields in each.
        learning_rate: peak of the schedule, see :func:`learning_rate`.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW, on the matrices of layers alone.
        clip: largest norm of a gradient.
        ema: decay of the running average of the weights, once it has warmed up.
        log_noise_mean, log_noise_std: law of log(σ/α) in training, clipped to the process's range.
        levels: log(σ/α) at which held-out fields are judged.
        held_out_maps: at most so many held-out fields are used.
        evaluate_every: steps between judgements on held-out fields.
        patience: stop after so many judgements without a new best.
        checkpoint_every: steps between checkpoints.
        label_dropout: share of a mini-batch's fields, at random, that are learnt without their
            label, under the null label 0; of no meaning to fields without labels.
        log_every: steps between lines of metrics.
        mixed_precision: the network multiplies in bfloat16 where the device does so faster, which
            are graphics cards and processors with instructions for it.
        seed: of mini-batches, dropped labels, noise levels and noise.
    """

    steps: int = 2400
    batch: int = 16
    learning_rate: float = 6e-3
    warmup: int = 50
    weight_decay: float = 0.3
    clip: float = 1.0
    ema: float = 0.995
    log_noise_mean: float = -0.3
    log_noise_std: float = 1.2
    levels: tuple[float, ...] = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)
    held_out_maps: int = 64
    evaluate_every: int = 100
    patience: int = 5
    checkpoint_every: int = 100
    label_dropout: float = 0.1
    log_every: int = 10
    mixed_precision: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        counts = "steps batch held_out_maps evaluate_every patience checkpoint_every log_every"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "log_noise_std"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must lie in [0, 1], got {self.label_dropout}")
        if self.warmup < 0 or self.weight_decay < 0:
            raise ValueError("warmup and weight_decay must not be negative")
        if not self.levels:
            raise ValueError("expected at least one noise level to judge held-out fields at")


@dataclass(frozen=True)
class TrainResult:
    """What training came to.

    Attributes:
        step: last step taken.
        best: held-out loss of the weights now in the denoiser; 1 is the Gaussian emulator.
        best_step: the step they come from.
        stopped_early: whether ``patience`` ended the training.
    """

    step: int
    best: float
    best_step: int
    stopped_early: bool


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of step k = 1, …, K: linear over the warm-up, then ½(1 + cos π k/K) of the peak."""
    warm = min(1.0, step / config.warmup) if config.warmup else 1.0
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def ema_decay(step: int, config: TrainConfig) -> float:
    """Decay at step k: (1 + k)/(10 + k), so that early weights are forgotten, at most ``ema``."""
    return min(config.ema, (1 + step) / (10 + step))
