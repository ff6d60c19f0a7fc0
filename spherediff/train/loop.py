"""The steps of training, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from spherediff import harmonics
from spherediff._files import require_writable
from spherediff._precision import multiplies_bfloat16
from spherediff._system import deferred_interrupt, keep_freed_memory
from spherediff.denoise import NeuralDenoiser
from spherediff.train.batches import draw_log_noise, drop_labels, mini_batch
from spherediff.train.checkpoint import CHECKPOINT, TrainingState, identity_of, snapshot
from spherediff.train.config import TrainConfig, TrainResult, ema_decay, learning_rate
from spherediff.train.objective import Fields, conditioned, held_out_loss, residual_error
from spherediff.train.record import METRICS, append, drop_after


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
    archive |= {f"learner {k}": one.covariance.variance for k, one in enumerate(learners)}
    identity = identity_of(denoiser, archive, asdict(config))
    state = TrainingState.start(denoiser.network, config.weight_decay, config.seed)
    if resume:
        state.restore(directory, identity)
    elif (directory / CHECKPOINT).exists():
        raise ValueError(
            f"{directory / CHECKPOINT} holds an earlier training; resume it (resume=True, "
            "--resume), choose another directory or delete the file"
        )
    drop_after(state.step, directory / METRICS)
    keep_freed_memory()
    judge = NeuralDenoiser(
        denoiser.process, state.average, denoiser.mean, denoiser.covariance, unit=denoiser.unit
    )
    with (
        deferred_interrupt() as interrupted,
        tqdm(total=config.steps, initial=state.step, desc="training", disable=not progress) as bar,
    ):
        if not resume:  # what training has to beat, since the best weights are kept
            append({"step": 0} | _judge(judge, state, held_out, config), directory / METRICS)
        while state.step < config.steps and not _out_of_patience(state, config):
            record = _take_step(learners or [denoiser], state, data, config, directory)
            if state.step % config.evaluate_every == 0 or state.step == config.steps:
                record |= _judge(judge, state, held_out, config)
            if len(record) > 1:
                append(record, directory / METRICS)
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
    denoiser, chosen = mini_batch(learners, data, config.batch, state.generator)
    chosen = drop_labels(chosen, config.label_dropout, state.generator)
    log_noise = draw_log_noise(denoiser, config, state.generator)
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
    average(state.average, state.network, ema_decay(step, config))
    state.step = step
    state.losses.append(loss.item())
    if all(step % every for every in (config.log_every, config.evaluate_every, config.steps)):
        return {"step": step}
    mean_loss = math.fsum(state.losses) / len(state.losses)
    state.losses = []
    return {"step": step, "loss": mean_loss, "learning_rate": rate, "gradient": norm.item()}


@torch.no_grad()
def average(mean: nn.Module, network: nn.Module, decay: float) -> None:
    """θ̄ ← d θ̄ + (1 − d) θ."""
    for kept, weight in zip(mean.parameters(), network.parameters(), strict=True):
        kept.lerp_(weight, 1 - decay)


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
