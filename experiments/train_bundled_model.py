"""Train the model `speedy-daily` that comes with the package, and write its card.

    python experiments/train_bundled_model.py speedy-daily.nc \
        --output spherediff/data/models/speedy-daily --work WORK [--steps 7000] [--threads 2]

The archive holds daily `tas`, `u250` and `pr` of a simplified general circulation model, with a
variable `test(time)` that is 1 in the years that are neither trained nor tuned on.  The last tenth
of the other maps judges the training.  At the end as many maps as there are test maps, of the same
days of the year, are drawn and scored against them.  WORK keeps checkpoints: a run that was stopped
goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from spherediff import data, metrics, report
from spherediff._files import atomic_write, require_writable
from spherediff.covariance import Covariance
from spherediff.denoise import NeuralDenoiser
from spherediff.model import Model
from spherediff.nn import OperatorConfig
from spherediff.train import CHECKPOINT, Fields, TrainConfig

VARIABLES = ("tas", "u250", "pr")
LMAX = 31
NETWORK = OperatorConfig(LMAX, len(VARIABLES), width=64, hidden=128, slopes=16)
FLOW_STEPS = 32

CARD = """\
# speedy-daily

Daily weather of a simplified general circulation model, drawn at random: air temperature at the
lowest level (`tas`, K), zonal wind near 250 hPa (`u250`, m/s) and precipitation (`pr`, mm/day),
jointly, for any day of the year, up to degree {lmax}.

```sh
spherediff sample --model speedy-daily --count 16 --output weather.nc
```

- **Data.** SPEEDY physics at T31 with eight levels, run with the Python package `jcm` 3.0.0
  (Apache-2.0) and climatological sea-surface temperature; instantaneous fields every third day,
  {training} maps of eight years to learn from, {validation} to judge by, {test} of the last two
  years for the scorecard below.
- **Rain** is learnt by its square root, and degrees beyond 31 are left out: draws have about the
  mean of such maps of the archive, 2.0 mm/day, where the archive itself has 2.75
  (`experiments/rain_transform.py`).
- **Not for** forecasts, or statements about the climate of the Earth: the model knows the one
  circulation model that it was trained on, and each day by itself.
- **Licence.** MIT, as the package.
- **Made by** `{command}`, seed {seed}, {steps} steps{took}, {parameters:,} weights;
  held-out denoising loss {loss:.4f} of the Gaussian emulator's (mean, variances and
  correlations).
- **On** {machine}.

## Scorecard

{test} draws of a {flow}-step probability flow for the days of the test years, anomalies from the
yearly cycle (`pr`: of the square root).

```
{table}

{explanation}
```
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def rounded(model: Model) -> Model:
    """With a factor of the covariance in half precision, which makes half the file."""
    known = model.denoiser
    covariance = Covariance(known.covariance.diagonal, known.covariance.factor.half().float())
    denoiser = NeuralDenoiser(known.process, known.network, known.mean, covariance, unit=known.unit)
    denoiser.calibration.load_state_dict(known.calibration.state_dict())
    return Model(model.encoder, denoiser, model.labels)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    require_writable(options.output / "README.md")
    archive = data.open(options.archive, VARIABLES)
    known, test = (archive.isel(time=archive.test.values == k) for k in (0, 1))
    cut = known.sizes["time"] * 9 // 10
    training, validation = known.isel(time=slice(cut)), known.isel(time=slice(cut, None))
    encoder = data.Encoder.fit(
        training, VARIABLES, lmax=LMAX, transform={"pr": data.SquareRoot()},
        climatology=data.Harmonics(3), amplitude_degree=23,
    )  # fmt: skip
    labels = data.Labels.seasonal(encoder.climatology)
    parts = (training, validation, test)
    encoded = (encoder.encode_training(training), *map(encoder.encode, parts[1:]))
    told = (labels.encode(ds, ds.sizes["time"]) for ds in parts)
    fields = list(map(Fields, encoded, told))
    model = Model.build(encoder, fields[0], labels=labels, network=NETWORK, seed=options.seed)
    began = time.perf_counter()
    config = TrainConfig(steps=options.steps, seed=options.seed)
    resume = (options.work / CHECKPOINT).exists()
    result = model.train(fields[0], fields[1], config, options.work, resume=resume)
    minutes = (time.perf_counter() - began) / 60
    took = "" if resume else f" in {minutes:.0f} min"  # of a part says nothing of the whole
    model = rounded(model)
    model.save(options.output)
    generator = torch.Generator().manual_seed(options.seed + 1)
    x = model.sample(
        len(fields[2].x), generator=generator, time=test.time, steps=FLOW_STEPS, progress=True
    )
    card = metrics.scorecard(
        *(encoder.anomalies(a) for a in (x, fields[2].x, fields[0].x)),
        names=VARIABLES,
        units=("K", "m/s", "√(mm/day)"),
        generator=torch.Generator().manual_seed(options.seed),
        progress=True,
    )
    command = shlex.join(["python", *sys.argv])
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch "
        f"{version('torch')}, load {os.getloadavg()[0]:.1f}"
    )
    text = CARD.format(
        lmax=LMAX, training=len(fields[0].x), validation=len(fields[1].x), test=len(fields[2].x),
        command=command, seed=options.seed, steps=result.step, took=took,
        parameters=sum(p.numel() for p in model.network.parameters()), loss=result.best,
        machine=machine, flow=FLOW_STEPS, table=report.table(card.rows),
        explanation=report.explanation(card),
    )  # fmt: skip
    with atomic_write(options.output / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    record = {"command": command, "machine": machine, "training": asdict(result)}
    with atomic_write(options.work / "scorecard.json") as temporary:
        temporary.write_text(report.to_json(card, record), encoding="utf-8")
    print(report.table(card.rows))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
