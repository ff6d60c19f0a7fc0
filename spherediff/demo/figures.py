"""The figures of the demonstration: archive beside samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from spherediff import plot
from spherediff._files import atomic_write
from spherediff.demo.ready import Ready
from spherediff.grids import Grid
from spherediff.train import METRICS

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """All that the figures show."""

    archive: xr.Dataset
    ready: Ready
    samples: Tensor
    maps: xr.Dataset
    months: np.ndarray
    grid: Grid
    columns: int
    output: Path
    record: Mapping[str, Any]


def draw_all(given: Drawing) -> None:
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


def _save(figure: Any, name: str, given: Drawing) -> None:
    note = "; ".join(f"{key}: {value}" for key, value in given.record.items())
    with atomic_write(given.output / name) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Comment": note})
    plt.close(figure)


def _label(given: Drawing, channel: int) -> str:
    encoder = given.ready.encoder
    return encoder.attrs[channel].get("long_name", encoder.names[channel]).lower()


def _units(given: Drawing, channel: int) -> str:
    """Units as one prints them: m s⁻¹ for m s-1."""
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    parts = given.ready.encoder.units[channel].split()
    return " ".join(
        re.sub(r"-?\d+$", lambda m: m[0].translate(superscript), part) for part in parts
    )


def _anomaly_maps(given: Drawing, x: Tensor, channel: int) -> Tensor:
    return given.grid.synthesis(given.ready.encoder.anomalies(x)[:, channel])


def _maps(given: Drawing, channel: int, *, anomalies: bool) -> Figure:
    """Test months above samples of the same calendar months."""
    encoder = given.ready.encoder
    dates = given.archive["time"][given.archive["test"].values == 1]
    pairs = same_months(dates.dt.month.values, given.months, given.columns)
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


def same_months(observed: np.ndarray, drawn: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Pairs (test month, sample) of one calendar month, spread over the year."""
    both = sorted(set(observed.tolist()) & set(drawn.tolist()))
    chosen = [both[k * len(both) // count] for k in range(count)]
    return [(int((observed == month).argmax()), int((drawn == month).argmax())) for month in chosen]


def _moments(given: Drawing, channel: int) -> Figure:
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


def _per_channel(draw: Callable[[int, Any], None], given: Drawing) -> Figure:
    count = len(given.ready.encoder.names)
    figure, axes = plt.subplots(
        1, count, figsize=(6.2 * count, 4.4), squeeze=False, layout="constrained"
    )
    for channel, ax in enumerate(axes[0]):
        draw(channel, ax)
    return figure


def _spectra(given: Drawing) -> Figure:
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


def _marginals(given: Drawing) -> Figure:
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


def _training(given: Drawing) -> Figure:
    curves = plot.training_curve(
        given.output / "model" / METRICS,
        reference={"Gaussian emulator": 1.0},
        ylabel="denoising loss / Gaussian emulator's",
    )
    return curves.ax.get_figure()  # type: ignore[return-value]
