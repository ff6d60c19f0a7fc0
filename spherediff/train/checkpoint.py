"""The state of a training run, whole, in one file.

A checkpoint holds the raw weights, their running average, the best average so far, AdamW's moments,
the state of the generator and the counters: with the same state the same steps follow.  It also
holds the identity of the run (network, process, archive, configuration), and refuses another.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spherediff import _tensors, harmonics
from spherediff.denoise import NeuralDenoiser

CHECKPOINT = "checkpoint.safetensors"
_FORMAT = 3
_ROUNDING = 1e-5  # of a tensor's norm
_ROWS = 1024  # at a time in double precision


@dataclass
class TrainingState:
    """All that a checkpoint holds: with the same state the same steps follow."""

    network: nn.Module
    average: nn.Module
    best_weights: dict[str, Tensor]
    optimiser: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0
    best: float = math.inf
    best_step: int = 0
    losses: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, network: nn.Module, weight_decay: float, seed: int) -> TrainingState:
        """The state before the first step."""
        average = copy.deepcopy(network).requires_grad_(False)
        return cls(
            network=network,
            average=average,
            best_weights=snapshot(average),
            optimiser=torch.optim.AdamW(
                _decay_groups(network, weight_decay), lr=0.0, betas=(0.9, 0.99)
            ),
            generator=torch.Generator().manual_seed(seed),
        )

    def save(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """Write the checkpoint; ``identity`` is what :meth:`restore` will insist on."""
        tensors = {"generator": self.generator.get_state()}
        groups = {"raw": self.network.state_dict(), "average": self.average.state_dict()}
        groups["best"] = self.best_weights
        optimiser = self.optimiser.state_dict()
        for name, index in _indices(optimiser).items():
            groups[f"adam/{name}"] = optimiser["state"].get(index, {})
        for group, members in groups.items():
            tensors |= {f"{group}/{name}": tensor for name, tensor in members.items()}
        header = {
            "format": _FORMAT,
            "identity": identity,
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "losses": self.losses,
        }
        _tensors.write(directory / CHECKPOINT, tensors, header)

    def restore(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """Take over the checkpoint in ``directory``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or belongs to another training.
        """
        header, tensors = _tensors.read(directory / CHECKPOINT, "checkpoint")
        _check_identity(header, identity, directory / CHECKPOINT)
        device = next(self.network.parameters()).device

        def group(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(f"{prefix}/"): tensor.to(device)
                for name, tensor in tensors.items()
                if name.startswith(f"{prefix}/")
            }

        self.network.load_state_dict(group("raw"))
        self.average.load_state_dict(group("average"))
        self.best_weights = group("best")
        optimiser = self.optimiser.state_dict()
        optimiser["state"] = {
            index: {key: value.cpu() if key == "step" else value for key, value in moments.items()}
            for name, index in _indices(optimiser).items()
            if (moments := group(f"adam/{name}"))
        }
        self.optimiser.load_state_dict(optimiser)
        self.generator.set_state(tensors["generator"])
        self.step, self.losses = header["step"], header["losses"]
        self.best, self.best_step = header["best"], header["best_step"]


def _decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: weight decay acts on the matrices of layers, and on nothing else.

    What a layer multiplies by is called ``weight`` and has two axes or more.  Biases, gains about
    one, fields that are learned and embeddings of labels keep the size that the data ask for.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in network.named_parameters():
        multiplies = name.rpartition(".")[2] == "weight" and parameter.ndim > 1
        groups[0 if multiplies else 1]["params"].append((name, parameter))
    return [group for group in groups if group["params"]]


def _indices(optimiser: Mapping[str, Any]) -> dict[str, int]:
    """By the names of parameters, the numbers that the optimiser's state knows them by."""
    return {
        name: index
        for group in optimiser["param_groups"]
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights by name."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def identity_of(
    denoiser: NeuralDenoiser, archive: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    """What has to be the same for a checkpoint to make sense, as JSON returns it."""
    moments = {"mean": denoiser.mean, "variance": denoiser.covariance.variance}
    moments["noise"] = denoiser.process.field.degree_variance
    shapes = {name: list(p.shape) for name, p in denoiser.network.named_parameters()}
    identity = _settings_of(denoiser, config) | {
        "network": shapes,
        "schedule": repr(denoiser.process.schedule),
        "process": {name: fingerprint(x) for name, x in moments.items()},
        "archive": {name: fingerprint(x) for name, x in archive.items()},
    }
    return json.loads(json.dumps(identity))


def require_same_settings(
    directory: Path, denoiser: NeuralDenoiser, config: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint of other settings before anything else is made for it.

    Raises:
        FileNotFoundError: there is no checkpoint in ``directory``.
        ValueError: it is damaged, or of another lmax, number of channels or configuration.
    """
    path = directory / CHECKPOINT
    header, _ = _tensors.read(path, "checkpoint")
    _check_settings(header, json.loads(json.dumps(_settings_of(denoiser, config))), path)


def _settings_of(denoiser: NeuralDenoiser, config: Mapping[str, Any]) -> dict[str, Any]:
    """What of the identity is chosen, not made."""
    channels, n = denoiser.process.event_shape
    return {"lmax": harmonics.band_limit(n), "channels": channels, "config": dict(config)}


def fingerprint(x: Tensor) -> list[float]:
    """Two numbers that tell a tensor (N, …) from others: ‖x‖, and Σ_ij sin(i) x_ij cos(j).

    Unlike those of a digest they hardly change with the number of threads, or the machine, that
    made the tensor.
    """
    rows = x.detach().cpu().flatten(1)
    i, j = (torch.arange(1.0, 1 + size, dtype=torch.float64) for size in rows.shape)
    square = mixed = 0.0
    for some, weights in zip(rows.split(_ROWS), i.sin().split(_ROWS), strict=True):
        square += float(some.double().square().sum())
        mixed += float(weights @ some.double() @ j.cos())
    return [math.sqrt(square), mixed]


def _check_settings(header: dict[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"the checkpoint {path} has format {header.get('format')}, expected {_FORMAT}: "
            "it was written by another version of spherediff"
        )
    stored = header["identity"]
    for name in ("lmax", "channels"):
        if stored[name] != settings[name]:
            raise ValueError(
                f"the checkpoint {path} has {name} {stored[name]}, this training {settings[name]}"
            )
    if stored["config"] != settings["config"]:
        differing = ", ".join(
            f"{key} was {stored['config'].get(key)} and is {value}"
            for key, value in settings["config"].items()
            if stored["config"].get(key) != value
        )
        raise ValueError(
            f"the checkpoint {path} belongs to another configuration ({differing}); "
            "resume with the same one or start in another directory"
        )


def _check_identity(header: dict[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    _check_settings(header, identity, path)
    stored = header["identity"]
    for name, same in (
        ("network", stored["network"] == identity["network"]),
        ("schedule", stored["schedule"] == identity["schedule"]),
        ("process", _alike(stored["process"], identity["process"])),
        ("archive", _alike(stored["archive"], identity["archive"])),
    ):
        if not same:
            raise ValueError(
                f"the checkpoint {path} belongs to another {name}; "
                "resume with the same one or start in another directory"
            )


def _alike(stored: Mapping[str, list[float]], found: Mapping[str, list[float]]) -> bool:
    """Whether fingerprints are those of the same tensors, up to how a machine rounds."""
    return stored.keys() == found.keys() and all(
        abs(a - b) <= _ROUNDING * stored[name][0]
        for name in stored
        for a, b in zip(stored[name], found[name], strict=True)
    )
