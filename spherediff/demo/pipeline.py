"""From the archive to samples, figures and a scorecard."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spherediff import data, metrics, report
from spherediff._files import atomic_write, require_writable, write_json
from spherediff._system import say
from spherediff.demo.figures import Drawing, draw_all
from spherediff.demo.ready import Ready, prepare, trained
from spherediff.demo.settings import FULL, QUICK
from spherediff.grids import HEALPix, LatLon
from spherediff.train import RUN, TrainResult

_ARCHIVE = "navy-winds"
_SHOWN_OF_EACH = ("spectrum by octave", "local marginals")
_SHOWN_OF_BOTH = ("energy distance", "correlations", "classifier", "distance to the nearest")


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
    say("[1/5] archive: monthly surface winds of the world, observed, 1982–92")
    archive = data.load(_ARCHIVE)
    ready = prepare(archive, settings)
    say(f"[2/5] training on {len(ready.train.x)} months, {len(ready.held_out.x)} held out")
    model, result = trained(ready, settings, output / "model", seed)
    write_json(output / "model" / RUN, record | {"archive": [_ARCHIVE]} | ready.spans)
    say(f"[3/5] drawing {settings.samples} samples of zonal and meridional wind")
    generator = torch.Generator().manual_seed(seed)
    months = 1 + np.random.default_rng([seed, 1]).integers(12, size=settings.samples)
    dates = np.array([f"2001-{month:02d}-15" for month in months], "datetime64[ns]")
    x = model.sample(
        settings.samples, generator=generator, time=dates, steps=settings.steps, progress=True
    )
    grid = LatLon.regular(settings.spacing)
    maps = model.encoder.decode(x, grid, dates)
    data.write(maps, output / "samples.nc", record)
    marked = record | {"month": " ".join(map(str, months))}
    healpix = model.encoder.decode(x, HEALPix(settings.nside), dates)
    data.write(healpix, output / "samples.fits", marked)
    say("[4/5] figures")
    draw_all(Drawing(archive, ready, x, maps, months, grid, settings.columns, output, record))
    say("[5/5] scorecard of the samples against the test months\n")
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
    say(_summary(result, ready, card, [row for row in card.rows if _shown(row)]))
    say(_farewell(output, quick, time.monotonic() - began))


def _shown(row: metrics.Row) -> bool:
    return row.statistic.startswith(_SHOWN_OF_BOTH if row.variable == "all" else _SHOWN_OF_EACH)


def _summary(
    result: TrainResult, ready: Ready, card: metrics.Scorecard, rows: Sequence[metrics.Row]
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
