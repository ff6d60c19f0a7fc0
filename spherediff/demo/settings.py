"""Sizes of the demonstration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Size of the demonstration.

    Attributes:
        lmax: band limit of model and samples.
        amplitude_degree: degree to which the map of local standard deviations is resolved.
        network: options of the network.
        training: how to train.
        samples: how many to draw.
        steps: of the sampler.
        nside: of the HEALPix file.
        spacing: of the latitude–longitude file, degrees.
        resamples: of the bootstrap behind the intervals of the scorecard.
        columns: maps side by side in a figure.
    """

    lmax: int = 31
    amplitude_degree: int = 10
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 64
    steps: int = 64
    nside: int = 32
    spacing: float = 2.5
    resamples: int = 100
    columns: int = 3


FULL = Settings(
    network={"width": 24, "blocks": 2, "hidden": 48},
    training={
        "steps": 500,
        "batch": 16,
        "learning_rate": 5e-3,
        "ema": 0.98,
        "log_noise_mean": 0.0,  # what eight years can teach shows at high noise
        "log_noise_std": 1.5,
        "evaluate_every": 40,
        "checkpoint_every": 40,
        "patience": 4,
    },
)
QUICK = Settings(
    lmax=11,
    network={"width": 8, "blocks": 1, "hidden": 16, "lifts": 2, "positional": 2},
    training={
        "steps": 40,
        "batch": 8,
        "evaluate_every": 20,
        "checkpoint_every": 20,
        "held_out_maps": 12,
    },
    samples=16,
    steps=32,
    nside=8,
    spacing=5.0,
    resamples=20,
    columns=1,
)
