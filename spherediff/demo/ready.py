"""The archive made ready to learn from, and what is learnt from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from spherediff import data
from spherediff._system import say
from spherediff.demo.settings import Settings
from spherediff.model import Model
from spherediff.nn import OperatorConfig
from spherediff.train import CHECKPOINT, Fields, TrainConfig, TrainResult

_TRAIN, _HELD_OUT = slice(0, 96), slice(96, 108)


@dataclass(frozen=True)
class Ready:
    """The archive as standardised anomalies, shape (months, 2, n), by purpose.

    Attributes:
        spans: what was learnt from and what was held out, in words.
    """

    encoder: data.Encoder
    labels: data.Labels
    train: Fields
    held_out: Fields
    test: Fields
    spans: dict[str, str]


def prepare(archive: xr.Dataset, settings: Settings) -> Ready:
    """Encoder and labels of the months to learn from, and all months encoded."""
    seen = archive.isel(time=archive["test"].values == 0)
    encoder = data.Encoder.fit(
        seen.isel(time=_TRAIN),
        lmax=settings.lmax,
        climatology=data.Harmonics(2),
        amplitude_degree=settings.amplitude_degree,
    )
    parts = (
        seen.isel(time=_TRAIN),
        seen.isel(time=_HELD_OUT),
        archive.isel(time=archive["test"].values == 1),
    )
    labels = data.Labels.seasonal(encoder.climatology)
    encoded = (encoder.encode_training(parts[0]), *map(encoder.encode, parts[1:]))
    told = (labels.encode(ds, ds.sizes["time"]) for ds in parts)
    spans = {name: data.span(ds) for name, ds in zip(("training", "held_out"), parts, strict=False)}
    train, held_out, test = map(Fields, encoded, told)
    return Ready(encoder, labels, train, held_out, test, spans)


def trained(ready: Ready, settings: Settings, folder: Path, seed: int) -> tuple[Model, TrainResult]:
    """A model, from the checkpoint in ``folder`` if there is one, saved there."""
    config = TrainConfig(**settings.training, seed=seed)
    encoder = ready.encoder
    network = OperatorConfig(settings.lmax, len(encoder.names), **settings.network)
    model = Model.build(encoder, ready.train, labels=ready.labels, network=network, seed=seed)
    resume = (folder / CHECKPOINT).exists()
    if resume:
        say("      going on from the checkpoint of an earlier run")
    result = model.train(ready.train, ready.held_out, config, folder, resume=resume)
    model.save(folder)
    return model, result
