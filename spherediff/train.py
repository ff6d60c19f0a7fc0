"""Training a denoiser: least squares on the conditional expectation, in units of what is unknown.

E‖m_θ(X_t, t) − X_0‖² is minimised by the conditional expectation m in every norm, coefficient by
coefficient; the norm only says which errors a finite network should spend itself on.  With the
preconditioning m = w + √p ⊙ F of :class:`~spherediff.denoise.NeuralDenoiser` the loss is

    L(θ) = E_t E ‖F_θ − (X_0 − w)/√p‖²/n,      log(σ_t/α_t) ~ N(P_mean, P_std²),

the mean over coefficients of the squared error divided by p_i, the error variance of the best
linear denoiser.  This is EDM's unit-weight loss (Karras et al. 2022, arXiv 2206.00364, §5) carried
to a Hilbert space: at every noise level and every degree an untrained network (F = 0, the Gaussian
emulator) scores 1.  The Kullback–Leibler integrand ‖s_θ − D log h_t‖²_C of the entropic bound is
the same sum of squares with the further weights α²p_iC_ℓ/σ_i⁴, which grow without bound as σ → 0;
unit weights and a log-normal law of the noise level spend the network's effort where there is
something left to learn, in the middle, as EDM does.

Labels, on which the law of a field may depend, are withheld from a random share of the fields, so
that the network also learns the law without them (Ho & Salimans 2022, arXiv 2207.12598).

Held-out fields are judged by the same error at fixed noise levels and with fixed noise, as a
fraction of the error of F = 0: 1 is the Gaussian emulator, less is better.

A reference with many parameters, such as the directions of the leading correlations, fits the
fields it was estimated from better than others: in these directions they vary more, in all others
less, and a network would learn to undo what is not there in new fields.  So each part of the
archive is learnt under a reference estimated from the other parts (cross-fitting); what is learnt,
F as a function of standardised fields, then serves under the reference of the whole archive.

Randomness comes from one explicit generator whose state is part of a checkpoint, so on the CPU
(with the same machine, versions and number of threads) a run that was killed and resumed gives the
same bits as one that was not.
"""

from __future__ import annotations

import ctypes
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from spherediff import harmonics
from spherediff._files import atomic_write, require_writable
from spherediff._precision import multiplies_bfloat16
from spherediff.checkpoint import CHECKPOINT, TrainingState, identity_of, snapshot
from spherediff.denoise import NeuralDenoiser

METRICS = "metrics.jsonl"
RUN = "run.json"


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: number of optimiser steps.
        batch: fields in each.
        learning_rate: peak of the schedule, see :func:`learning_rate`.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW.
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
    weight_decay: float = 1e-2
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


def residual_target(
    denoiser: NeuralDenoiser, x0: Tensor, log_noise: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, t, T) of a freshly drawn X_t, with T = (X_0 − w)/√p, the target of the network.

    Args:
        denoiser: the preconditioned network.
        x0: clean fields, shape (B, channels, n).
        log_noise: log(σ/α) of each, shape (B,).
        generator: of the noise.
    """
    reference, t = denoiser.reference, denoiser.process.time_of(log_noise)[:, None]
    z = reference.standardise(denoiser.process.noised(x0, t, generator=generator), t)
    return z, t, reference.residual(x0, z, t)


def residual_error(
    denoiser: NeuralDenoiser, x0: Tensor, log_noise: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(F − T, T) at freshly drawn X_t, arguments as for :func:`residual_target`."""
    z, t, target = residual_target(denoiser, x0, log_noise, generator)
    return denoiser.residual(z, t).to(target.dtype) - target, target


class Fields(NamedTuple):
    """Fields and what their law depends on.

    Attributes:
        x: shape (N, channels, n).
        condition: shape (N, k), labels of :mod:`spherediff.data.labels` or the like; k = 0 if the
            law is always the same.
    """

    x: Tensor
    condition: Tensor

    @classmethod
    def of(cls, fields: Tensor | Fields) -> Fields:
        """The fields themselves, or plain ones without a condition."""
        return (
            fields if isinstance(fields, Fields) else cls(fields, fields.new_zeros(len(fields), 0))
        )

    def at(self, chosen: Tensor | slice) -> Fields:
        """Some of them."""
        return Fields(self.x[chosen], self.condition[chosen])


@torch.no_grad()
def held_out_loss(
    denoiser: NeuralDenoiser, held_out: Tensor | Fields, config: TrainConfig
) -> list[float]:
    """‖F − T‖²/‖T‖² on held-out fields at each of ``config.levels``; the noise never changes."""
    judged = Fields.of(held_out).at(slice(config.held_out_maps))
    generator = torch.Generator().manual_seed(config.seed + 1)
    ratios = []
    for level in config.levels:
        total = torch.zeros(2, dtype=torch.float64)
        for k in range(0, len(judged.x), config.batch):
            part = judged.at(slice(k, k + config.batch))
            x0, log_noise = part.x.to(denoiser.mean), torch.full((len(part.x),), level)
            error, target = residual_error(conditioned(denoiser, part), x0, log_noise, generator)
            total += torch.stack([error.square().sum(), target.square().sum()]).cpu()
        ratios.append(float(total[0] / total[1]))
    return ratios


def conditioned(denoiser: NeuralDenoiser, fields: Fields) -> NeuralDenoiser:
    """The denoiser under the conditions of these fields, if they have any."""
    return denoiser.given(fields.condition) if fields.condition.shape[1] else denoiser


def train(
    denoiser: NeuralDenoiser,
    data: Tensor | Fields,
    held_out: Tensor | Fields,
    config: TrainConfig | None = None,
    directory: str | Path = "training",
    *,
    learners: Sequence[NeuralDenoiser] = (),
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train the denoiser's network in place, on the device on which the denoiser is.

    At the end the network holds the averaged weights that were best on the held-out fields.  In
    ``directory`` there are ``metrics.jsonl`` (a JSON object a line: ``step``, ``loss``,
    ``learning_rate`` and ``gradient`` after each step, ``held_out`` and ``held_out_levels`` where
    measured; for step 0 only these two) and ``checkpoint.safetensors``.  Ctrl-C ends the step,
    writes a checkpoint and says how to resume.

    Args:
        denoiser: the preconditioned network.
        data: training fields, shape (N, channels, n), or with their conditions.
        held_out: fields to judge by and to stop early by, shape (M, channels, n); never trained on.
        config: how to train.
        directory: where metrics and checkpoints go.
        learners: denoisers with the same network and process, the k-th of K with a reference that
            has not seen the k-th K-th of the data; ``denoiser`` for all if there are none.
        resume: go on from the checkpoint in ``directory`` instead of starting afresh.
        progress: show a progress bar with the time left, the loss and the held-out loss.

    Raises:
        ValueError: fields that do not fit the denoiser or are not finite; a coefficient without
            variance; a damaged checkpoint, or one of another network, process, archive or
            configuration; training would overwrite a checkpoint (``resume`` is not set).
        FileNotFoundError: ``resume`` without a checkpoint.
        PermissionError: ``directory`` cannot be written.
        FloatingPointError: the loss or its gradient is no longer finite.
        KeyboardInterrupt: after the checkpoint was written.
    """
    config = config or TrainConfig()
    directory = Path(directory)
    data, held_out = Fields.of(data), Fields.of(held_out)
    _check_fields(denoiser, data, "training")
    _check_fields(denoiser, held_out, "held-out")
    if any(one.network is not denoiser.network for one in learners):
        raise ValueError("the learners must share the denoiser's network, or nothing is learnt")
    _check_levels(denoiser, config)
    require_writable(directory / CHECKPOINT)
    archive = {"data": data.x, "held_out": held_out.x}
    archive |= {"conditions": data.condition, "held_out_conditions": held_out.condition}
    archive |= {f"learner {k}": one.covariance.factor for k, one in enumerate(learners)}
    identity = identity_of(denoiser, archive, asdict(config))
    state = TrainingState.start(denoiser.network, config.weight_decay, config.seed)
    if resume:
        state.restore(directory, identity)
    elif (directory / CHECKPOINT).exists():
        raise ValueError(
            f"{directory / CHECKPOINT} holds an earlier training; resume it (resume=True, "
            "--resume), choose another directory or delete the file"
        )
    _drop_metrics_after(state.step, directory / METRICS)
    _keep_freed_memory()
    judge = NeuralDenoiser(
        denoiser.process, state.average, denoiser.mean, denoiser.covariance, unit=denoiser.unit
    )
    with (
        _deferred_interrupt() as interrupted,
        tqdm(total=config.steps, initial=state.step, desc="training", disable=not progress) as bar,
    ):
        if not resume:  # what training has to beat, since the best weights are kept
            _append({"step": 0} | _judge(judge, state, held_out, config), directory / METRICS)
        while state.step < config.steps and not _out_of_patience(state, config):
            record = _take_step(learners or [denoiser], state, data, config, directory)
            if state.step % config.evaluate_every == 0 or state.step == config.steps:
                record |= _judge(judge, state, held_out, config)
            if len(record) > 1:
                _append(record, directory / METRICS)
                shown = {k: f"{record[k]:.4f}" for k in ("loss", "held_out") if k in record}
                bar.set_postfix(shown)
            if interrupted or state.step % config.checkpoint_every == 0:
                state.save(directory, identity)
            if interrupted:
                raise KeyboardInterrupt(
                    f"stopped after step {state.step}; the checkpoint is in {directory}: "
                    "resume with resume=True (--resume)"
                )
            bar.update()
    state.save(directory, identity)
    denoiser.network.load_state_dict(state.best_weights)
    return TrainResult(state.step, state.best, state.best_step, state.step < config.steps)


def _take_step(
    learners: Sequence[NeuralDenoiser],
    state: TrainingState,
    data: Fields,
    config: TrainConfig,
    directory: Path,
) -> dict[str, Any]:
    """One step of the optimiser and the average; the line of metrics, ``step`` alone if not due."""
    step = state.step + 1
    parameters = list(state.network.parameters())
    device = parameters[0].device
    denoiser, chosen = _mini_batch(learners, data, config.batch, state.generator)
    chosen = _drop_labels(chosen, config.label_dropout, state.generator)
    log_noise = _draw_log_noise(denoiser, config, state.generator)
    mixed = config.mixed_precision and multiplies_bfloat16(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
        x0 = chosen.x.to(denoiser.mean)
        error, _ = residual_error(conditioned(denoiser, chosen), x0, log_noise, state.generator)
        loss = error.square().mean()
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, config.clip)
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise FloatingPointError(
            f"the loss is {loss.item()} and its gradient {norm.item()} at step {step}; the last "
            f"checkpoint in {directory} is kept: try a lower learning rate than "
            f"{config.learning_rate:g}"
        )
    rate = learning_rate(step, config)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.step()
    _average(state.average, state.network, ema_decay(step, config))
    state.step = step
    state.losses.append(loss.item())
    if all(step % every for every in (config.log_every, config.evaluate_every, config.steps)):
        return {"step": step}
    mean_loss = math.fsum(state.losses) / len(state.losses)
    state.losses = []
    return {"step": step, "loss": mean_loss, "learning_rate": rate, "gradient": norm.item()}


def _mini_batch(
    learners: Sequence[NeuralDenoiser], data: Fields, batch: int, generator: torch.Generator
) -> tuple[NeuralDenoiser, Fields]:
    """A learner at random, and fields of its part."""
    k = int(torch.randint(len(learners), (), generator=generator))
    first, last = (len(data.x) * j // len(learners) for j in (k, k + 1))
    return learners[k], data.at(torch.randint(first, last, (batch,), generator=generator))


def _drop_labels(fields: Fields, share: float, generator: torch.Generator) -> Fields:
    """The null label in place of a random share of the labels (arXiv 2207.12598, algorithm 1)."""
    if not fields.condition.shape[1]:
        return fields
    kept = torch.rand(len(fields.x), 1, generator=generator) >= share
    return fields._replace(condition=fields.condition * kept.to(fields.condition))


def _draw_log_noise(
    denoiser: NeuralDenoiser, config: TrainConfig, generator: torch.Generator
) -> Tensor:
    low, high = denoiser.process.schedule.log_snr_range
    draw = _spread_normal(config.batch, generator)
    return (config.log_noise_mean + config.log_noise_std * draw).clamp(-high, -low)


def _spread_normal(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers, one from each of ``count`` equally likely ranges, float64.

    As levels they let every mini-batch see all of them.
    """
    within = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.special.ndtri((torch.arange(count) + within) / count)


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """θ̄ ← d θ̄ + (1 − d) θ."""
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def _judge(
    judge: NeuralDenoiser, state: TrainingState, held_out: Fields, config: TrainConfig
) -> dict[str, Any]:
    levels = held_out_loss(judge, held_out, config)
    mean = math.fsum(levels) / len(levels)
    if mean < state.best:
        state.best, state.best_step = mean, state.step
        state.best_weights = snapshot(state.average)
    return {"held_out": mean, "held_out_levels": levels}


def _out_of_patience(state: TrainingState, config: TrainConfig) -> bool:
    return state.step - state.best_step >= config.patience * config.evaluate_every


def _check_fields(denoiser: NeuralDenoiser, given: Fields, name: str) -> None:
    channels, n = denoiser.process.event_shape
    fields, condition = given
    if condition.ndim != 2 or len(condition) != len(fields):
        raise ValueError(
            f"expected one condition for each of {len(fields)} {name} fields, shape "
            f"({len(fields)}, k), got {tuple(condition.shape)}"
        )
    if fields.ndim != 3 or len(fields) == 0 or tuple(fields.shape[1:]) != (channels, n):
        raise ValueError(
            f"expected {name} fields of shape (N >= 1, {channels}, {n}), that is {channels} "
            f"channel(s) at lmax {harmonics.band_limit(n)}, got {tuple(fields.shape)}"
        )
    bad = int((~torch.isfinite(fields)).sum())
    if bad:
        raise ValueError(f"{bad} of {fields.numel()} {name} coefficients are not finite")
    if not (denoiser.covariance.variance > 0).all():
        raise ValueError("every coefficient needs a positive variance; lower lmax or floor it")


def _check_levels(denoiser: NeuralDenoiser, config: TrainConfig) -> None:
    low, high = denoiser.process.schedule.log_snr_range
    if not all(-high <= level <= -low for level in config.levels):
        raise ValueError(
            f"the process covers log(σ/α) from {-high:g} to {-low:g}, but held-out fields are to "
            f"be judged at {config.levels}"
        )


def _append(record: Mapping[str, Any], path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(record)) + "\n")


def _drop_metrics_after(step: int, path: Path) -> None:
    """Keep the lines up to ``step``: later ones, perhaps half written, will be written again."""
    kept = []
    if path.exists() and step > 0:
        for line in path.read_text(encoding="utf-8").splitlines():
            if _step_of(line) > step:
                break
            kept.append(line + "\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Hold back the first Ctrl-C: the list it yields is no longer empty.  The second one strikes.

    A step that is broken off in the middle leaves weights and optimiser that no other run has.
    Signals reach the main thread alone; elsewhere the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.getsignal(signal.SIGINT)

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


def _keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system at every step.

    Fresh pages must be zeroed by the kernel: that is the larger part of an elementwise operation
    on activations of some megabytes.  Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # names and values of <malloc.h>
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, -1)
