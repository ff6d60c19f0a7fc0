"""What is minimised, and what held-out fields are judged by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spherediff.denoise import NeuralDenoiser
from spherediff.train.config import TrainConfig


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

    def spread(self, count: int) -> Fields:
        """So many of them, evenly from the first to the last."""
        return self.at(torch.linspace(0, len(self.x) - 1, count).round().long())

    def split(self, size: int) -> list[Fields]:
        """All of them in parts of so many, the last of what is left."""
        return [self.at(slice(k, k + size)) for k in range(0, len(self.x), size)]


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
