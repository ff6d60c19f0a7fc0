"""From an archive to new maps in a few minutes: the path of ``spherediff demo``.

The bundled archive holds 132 months of observed surface winds, 1982–92.  Of these

    1–96      train: yearly cycle, standard deviation and network are fitted to them,
    97–108    are held out: their denoising loss ends the training,
    109–132   test: the samples are compared with them, and nothing is fitted to them.

What is learnt is the law of the anomalies, the winds less their yearly cycle.  The cycle is the
mean and two harmonics of the year: on the held-out months twelve monthly means, each from eight
values, leave larger anomalies.  Everything is deterministic in the seed.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from spherediff import data, metrics, plot, report
from spherediff._files import atomic_write, require_writable, write_json
from spherediff.grids import Grid, HEALPix, LatLon
from spherediff.model import Model
from spherediff.nn import OperatorConfig
from spherediff.train import CHECKPOINT, METRICS, RUN, Fields, TrainConfig, TrainResult

_ARCHIVE = "navy-winds"
_TRAIN, _HELD_OUT = slice(0, 96), slice(96, 108)
_SHOWN_OF_EACH = ("spectrum by octave", "local marginals")
_SHOWN_OF_BOTH = ("energy distance", "correlations", "classifier", "distance to the nearest")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


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


def run(
    output: Path, *, quick: bool = False, seed: int = 0, record: Mapping[str, Any] | None = None
) -> None:
    """Train, sample, write, draw and compare.

    Goes on from the last checkpoint if an earlier run into the same folder was interrupted.

    Args:
        output: folder for everything.
        quick: low resolution and few steps.
        seed: of the training and of the samples.
        record: what the files keep of how they were made.

    Raises:
        PermissionError: the folder cannot be written.
        ValueError: the folder holds the training of other settings.
        KeyboardInterrupt: after the checkpoint was written.
    """
    began = time.monotonic()
    settings = QUICK if quick else FULL
    record = dict(record or {}) | {"lmax": settings.lmax}
    require_writable(output / "samples.nc")
    _say("[1/5] archive: monthly surface winds of the world, observed, 1982–92")
    archive = data.load(_ARCHIVE)
    ready = _prepare(archive, settings)
    _say(f"[2/5] training on {len(ready.train.x)} months, {len(ready.held_out.x)} held out")
    model, result = _trained(ready, settings, output / "model", seed)
    write_json(output / "model" / RUN, record | {"archive": [_ARCHIVE]})
    _say(f"[3/5] drawing {settings.samples} samples of zonal and meridional wind")
    generator = torch.Generator().manual_seed(seed)
    months = 1 + np.random.default_rng([seed, 1]).integers(12, size=settings.samples)
    dates = np.array([f"2001-{month:02d}-15" for month in months], "datetime64[ns]")
    x = model.sample(
        settings.samples, generator=generator, time=dates, steps=settings.steps, progress=True
    )
    spaced = round(180 / settings.spacing)
    grid = LatLon(np.linspace(-90, 90, spaced + 1), np.arange(2 * spaced) * settings.spacing)
    maps = model.encoder.decode(x, grid, dates)
    data.write(maps, output / "samples.nc", record)
    marked = record | {"month": " ".join(map(str, months))}
    healpix = model.encoder.decode(x, HEALPix(settings.nside), dates)
    data.write(healpix, output / "samples.fits", marked)
    _say("[4/5] figures")
    _draw(_Drawing(archive, ready, x, maps, months, grid, settings.columns, output, record))
    _say("[5/5] scorecard of the samples against the test months\n")
    card = metrics.scorecard(
        *(ready.encoder.anomalies(a) for a in (x, ready.test.x, ready.train.x)),
        names=ready.encoder.names,
        units=ready.encoder.units,
        resamples=settings.resamples,
        generator=torch.Generator().manual_seed(seed),
        progress=True,
    )
    with atomic_write(output / "scorecard.json") as temporary:
        temporary.write_text(report.to_json(card, record), encoding="utf-8")
    with atomic_write(output / "scorecard.txt") as temporary:
        temporary.write_text(_summary(result, ready, card, card.rows) + "\n", encoding="utf-8")
    _say(_summary(result, ready, card, [row for row in card.rows if _shown(row)]))
    _say(_farewell(output, quick, time.monotonic() - began))


@dataclass(frozen=True)
class _Ready:
    """The archive as standardised anomalies, shape (months, 2, n), by purpose."""

    encoder: data.Encoder
    labels: data.Labels
    train: Fields
    held_out: Fields
    test: Fields


def _prepare(archive: xr.Dataset, settings: Settings) -> _Ready:
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
    return _Ready(encoder, labels, *map(Fields, encoded, told))


def _trained(
    ready: _Ready, settings: Settings, folder: Path, seed: int
) -> tuple[Model, TrainResult]:
    config = TrainConfig(**settings.training, seed=seed)
    encoder = ready.encoder
    network = OperatorConfig(settings.lmax, len(encoder.names), **settings.network)
    model = Model.build(encoder, ready.train.x, labels=ready.labels, network=network, seed=seed)
    resume = (folder / CHECKPOINT).exists()
    if resume:
        _say("      going on from the checkpoint of an earlier run")
    result = model.train(ready.train, ready.held_out, config, folder, resume=resume)
    model.save(folder)
    return model, result


def _shown(row: metrics.Row) -> bool:
    return row.statistic.startswith(_SHOWN_OF_BOTH if row.variable == "all" else _SHOWN_OF_EACH)


def _summary(
    result: TrainResult, ready: _Ready, card: metrics.Scorecard, rows: Sequence[metrics.Row]
) -> str:
    verdict = (
        f"held-out denoising loss: {result.best:.4f} of the Gaussian emulator's (step"
        f" {result.best_step} of {result.step}; 1 means that the network adds nothing to a"
        " Gaussian field with the archive's means, variances and correlations)"
    )
    heading = (
        f"anomalies, samples against {len(ready.test.x)} test months that nothing was fitted to"
    )
    return "\n".join([verdict, "", heading, report.table(rows), "", report.explanation(card)])


def _farewell(output: Path, quick: bool, seconds: float) -> str:
    again = "--quick " if quick else ""
    return f"""
Done in {seconds:.0f} s.  Everything is in {output}:
  samples.nc                 winds in m/s on a latitude-longitude grid (xarray.open_dataset)
  samples.fits               the same on HEALPix (healpy.read_map)
  maps-*.png                 archive beside samples, full fields and anomalies
  spectra.png  moments-*.png  marginals.png  training.png
  scorecard.txt  scorecard.json   all comparisons; above are the main ones
  model/                     the trained model, its checkpoint and metrics.jsonl

Next:
  spherediff sample --model {output}/model --count 1000 --where month=1 --output januaries.nc
  spherediff info {output}/model
  spherediff demo {again}--output {output}      # goes on where an interrupted run stopped"""


@dataclass(frozen=True)
class _Drawing:
    """All that the figures show."""

    archive: xr.Dataset
    ready: _Ready
    samples: Tensor
    maps: xr.Dataset
    months: np.ndarray
    grid: Grid
    columns: int
    output: Path
    record: Mapping[str, Any]


def _draw(given: _Drawing) -> None:
    """All figures, on a backend that needs no display; the reader's own is left as it was."""
    backend = mpl.get_backend()
    mpl.use("Agg")
    try:
        for channel, name in enumerate(given.ready.encoder.names):
            _save(_maps(given, channel, anomalies=False), f"maps-{name}.png", given)
            _save(_maps(given, channel, anomalies=True), f"maps-{name}-anomalies.png", given)
            _save(_moments(given, channel), f"moments-{name}.png", given)
        _save(_spectra(given), "spectra.png", given)
        _save(_marginals(given), "marginals.png", given)
        _save(_training(given), "training.png", given)
    finally:
        mpl.use(backend)


def _save(figure: Any, name: str, given: _Drawing) -> None:
    note = "; ".join(f"{key}: {value}" for key, value in given.record.items())
    with atomic_write(given.output / name) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Comment": note})
    plt.close(figure)


def _label(given: _Drawing, channel: int) -> str:
    encoder = given.ready.encoder
    return encoder.attrs[channel].get("long_name", encoder.names[channel]).lower()


def _units(given: _Drawing, channel: int) -> str:
    """Units as one prints them: m s⁻¹ for m s-1."""
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    parts = given.ready.encoder.units[channel].split()
    return " ".join(
        re.sub(r"-?\d+$", lambda m: m[0].translate(superscript), part) for part in parts
    )


def _anomaly_maps(given: _Drawing, x: Tensor, channel: int) -> Tensor:
    return given.grid.synthesis(given.ready.encoder.anomalies(x)[:, channel])


def _maps(given: _Drawing, channel: int, *, anomalies: bool) -> Figure:
    """Test months above samples of the same calendar months."""
    encoder = given.ready.encoder
    dates = given.archive["time"][given.archive["test"].values == 1]
    pairs = _same_months(dates.dt.month.values, given.months, given.columns)
    observed, drawn = (list(side) for side in zip(*pairs, strict=True))
    if anomalies:
        above = _anomaly_maps(given, given.ready.test.x[observed], channel)
        below = _anomaly_maps(given, given.samples[drawn], channel)
    else:
        fields = encoder.decode(given.ready.test.x[observed], given.grid, dates[observed])
        above = torch.from_numpy(fields[encoder.names[channel]].values)
        below = torch.from_numpy(given.maps[encoder.names[channel]].values[drawn])
    when = [f"{_MONTHS[int(dates[k].dt.month) - 1]} {int(dates[k].dt.year)}" for k in observed]
    names = [f"sample {k + 1}, {_MONTHS[int(given.months[k]) - 1]}" for k in drawn]
    quantity = _label(given, channel) + (" anomaly" if anomalies else "")
    panels = plot.panels(
        [*above, *below],
        grid=given.grid,
        titles=[f"observed, {text}" for text in when] + names,
        columns=given.columns,
        units=f"{quantity}, {_units(given, channel)}",
        center=0.0,
        coastlines=True,
        graticule=None,
        longitude=180.0,
    )
    return panels.figure  # type: ignore[return-value]


def _same_months(observed: np.ndarray, drawn: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Pairs (test month, sample) of one calendar month, spread over the year."""
    both = sorted(set(observed.tolist()) & set(drawn.tolist()))
    chosen = [both[k * len(both) // count] for k in range(count)]
    return [(int((observed == month).argmax()), int((drawn == month).argmax())) for month in chosen]


def _moments(given: _Drawing, channel: int) -> Figure:
    ready = given.ready
    observed = torch.cat([part.x for part in (ready.train, ready.held_out, ready.test)])
    sets = {
        f"{len(observed)} observed": _anomaly_maps(given, observed, channel),
        f"{len(given.samples)} samples": _anomaly_maps(given, given.samples, channel),
    }
    drawn = plot.moments(
        sets,
        given.grid,
        units=f"{_label(given, channel)} anomaly, {_units(given, channel)}",
        coastlines=True,
        longitude=180.0,
    )
    return drawn.figure  # type: ignore[return-value]


def _per_channel(draw: Callable[[int, Any], None], given: _Drawing) -> Figure:
    count = len(given.ready.encoder.names)
    figure, axes = plt.subplots(
        1, count, figsize=(6.2 * count, 4.4), squeeze=False, layout="constrained"
    )
    for channel, ax in enumerate(axes[0]):
        draw(channel, ax)
    return figure


def _spectra(given: _Drawing) -> Figure:
    encoder, ready = given.ready.encoder, given.ready

    def draw(channel: int, ax: Any) -> None:
        sets = {"training": ready.train.x, "test": ready.test.x, "samples": given.samples}
        plot.degree_spectrum(
            {name: encoder.anomalies(x)[:, channel] for name, x in sets.items()},
            ax=ax,
            title=f"{_label(given, channel)} anomaly",
            units=_units(given, channel),
        )

    return _per_channel(draw, given)


def _marginals(given: _Drawing) -> Figure:
    encoder, ready = given.ready.encoder, given.ready
    observed = encoder.decode(
        torch.cat([part.x for part in (ready.train, ready.held_out, ready.test)]),
        given.grid,
        given.archive["time"],
    )

    def draw(channel: int, ax: Any) -> None:
        name = encoder.names[channel]
        plot.marginals(
            observed[name].values,
            given.maps[name].values,
            grid=given.grid,
            ax=ax,
            units=_units(given, channel),
            quantity=_label(given, channel),
        )

    return _per_channel(draw, given)


def _training(given: _Drawing) -> Figure:
    curves = plot.training_curve(
        given.output / "model" / METRICS,
        reference={"Gaussian emulator": 1.0},
        ylabel="denoising loss / Gaussian emulator's",
    )
    return curves.ax.get_figure()  # type: ignore[return-value]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
