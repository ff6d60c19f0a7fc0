"""Does a small network beat the best Gaussian denoiser on daily precipitation?

    python experiments/denoising_pr.py ARCHIVE.nc --directory OUT [--steps 2400] [--threads 2]

ARCHIVE.nc holds daily maps of `pr` in mm/day with a variable `test(time)` that is 1 on the years
that are neither trained nor tuned on.  Recipe: log1p(pr/0.5 mm), anomalies from three harmonics of
the year, lmax 31, noise with the archive's degree spectrum, preconditioning by mean, variances and
leading correlations.  The last tenth of the training years serves for early stopping.

On the test years it prints E‖m(X_t, t) − X_0‖² at several noise levels, relative to the diagonal
Wiener filter, in L² and in the preconditioned norm of the training loss; then statistics of maps
drawn by a 30-step probability flow.  Results go to OUT/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spherediff import data
from spherediff.covariance import Covariance
from spherediff.denoise import Denoiser, GaussianDenoiser, NeuralDenoiser
from spherediff.grids import GaussLegendre
from spherediff.model import Model
from spherediff.nn import OperatorConfig
from spherediff.train import Fields, TrainConfig, conditioned

LMAX = 31
LEVELS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)
FLOW_STEPS = 30

Told = Callable[[Fields], Denoiser]  # the denoiser under the conditions of these fields


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


@torch.no_grad()
def errors(of: Told, judge: NeuralDenoiser, test: Fields, level: float) -> tuple:
    """Squared errors in L² and in units of p, summed over two draws of the noise; same for all."""
    process = judge.process
    generator = torch.Generator().manual_seed(2)
    plain = weighted = 0.0
    for part in 2 * test.split(64):
        t = process.time_of(torch.full((1, 1), level))
        x = process.noised(part.x, t, generator=generator)
        error_std = judge.reference.std * judge.reference.angle(t).sin
        error = of(part)(x, t) - part.x
        plain += error.double().square().sum().item()
        weighted += (judge.reference.modes(error) / error_std).double().square().sum().item()
    return plain, weighted


def denoising_table(denoisers: dict[str, Told], judge: NeuralDenoiser, test: Fields) -> dict:
    table = {name: {"l2": [], "preconditioned": []} for name in denoisers}
    for level in LEVELS:
        found = {name: errors(of, judge, test, level) for name, of in denoisers.items()}
        for name, (plain, weighted) in found.items():
            table[name]["l2"].append(plain / found["diagonal Gaussian"][0])
            table[name]["preconditioned"].append(weighted / found["diagonal Gaussian"][1])
    return table


def gaussian_draws(covariance: Covariance, mean: Tensor, count: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    own = torch.randn(count, *covariance.event_shape, generator=g) * covariance.diagonal.sqrt()
    shared = torch.randn(count, len(covariance.factor), generator=g)
    return mean + own + (shared @ covariance.factor.flatten(1)).view(own.shape)


def map_statistics(maps: np.ndarray, reference: np.ndarray, weight: np.ndarray) -> dict:
    """Area-weighted distances of maps (N, nlat, nlon) to reference maps."""

    def moments(x):
        centred = x - x.mean(0)
        std = np.maximum(centred.std(0), 1e-6)  # it may never rain somewhere
        return std, (centred**3).mean(0) / std**3

    def rms(x):
        return float(np.sqrt((weight * x**2).sum() / weight.sum()))

    (std, skew), (std_r, skew_r) = moments(maps), moments(reference)
    quantiles = (np.arange(200) + 0.5) / 200
    w1 = np.abs(np.quantile(maps, quantiles, axis=0) - np.quantile(reference, quantiles, axis=0))
    return {
        "std / std - 1": rms(std / std_r - 1),
        "skewness": rms(skew - skew_r),
        "W1 / local std": float((weight * w1.mean(0) / std_r).sum() / weight.sum()),
    }


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    archive = data.open(options.archive, variables=["pr"])
    training, test = (archive.isel(time=archive.test.values == k) for k in (0, 1))
    encoder = data.Encoder.fit(
        training, ["pr"], lmax=LMAX, transform={"pr": data.Log1p(0.5)},
        climatology=data.Harmonics(3),
    )  # fmt: skip
    labels = data.Labels.seasonal(encoder.climatology)
    fields, test_fields = encoder.encode(training), encoder.encode(test)
    told, test_told = (labels.encode(ds, ds.sizes["time"]) for ds in (training, test))
    cut = len(fields) * 9 // 10
    config = TrainConfig(steps=options.steps, seed=options.seed)
    network = OperatorConfig(LMAX, 1)
    known, held_out = (Fields(fields[k], told[k]) for k in (slice(cut), slice(cut, None)))
    model = Model.build(
        encoder, known, labels=labels, network=network, seed=options.seed, device=options.device
    )
    process = model.denoiser.process
    started = time.perf_counter(), time.process_time()
    result = model.train(known, held_out, config, options.directory, resume=options.resume)
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    model.save(options.directory / "model")

    covariance = Covariance.shrunk(fields)
    judge = model.denoiser
    place = judge.mean
    diagonal = GaussianDenoiser(process, judge.covariance.variance, mean=judge.mean)
    full = GaussianDenoiser(process, covariance=covariance, mean=fields.mean(0).to(place))
    denoisers: dict[str, Told] = {
        "diagonal Gaussian": lambda _: diagonal,
        "full covariance": lambda _: full,
        "network": partial(conditioned, judge),
    }
    table = denoising_table(denoisers, judge, Fields(test_fields.to(place), test_told))
    print(f"\ntest years, {len(test_fields)} maps: error relative to the diagonal Wiener filter")
    print(f"{'log(sigma/alpha)':32}" + "".join(f"{level:8.1f}" for level in LEVELS) + "    mean")
    for name, rows in table.items():
        for norm, row in rows.items():
            line = "".join(f"{value:8.3f}" for value in [*row, sum(row) / len(row)])
            print(f"{name + ', ' + norm:32}{line}")

    grid = GaussLegendre(LMAX)
    weight = np.asarray(grid.area_weights)
    count = len(test_fields)
    generator = torch.Generator().manual_seed(3)
    draws = {
        "training maps": fields[
            torch.randperm(len(fields), generator=torch.Generator().manual_seed(4))[:count]
        ],
        "full-covariance Gaussian": gaussian_draws(covariance, fields.mean(0), count, 5),
        "network": model.sample(
            count, generator=generator, time=test.time, steps=FLOW_STEPS, progress=True
        ).cpu(),
    }

    def maps(x):
        rain = encoder.decode(x, grid, time=test.time)["pr"].values.astype(np.float64)
        return np.log1p(rain / 0.5)  # in mm/day a few storms would decide everything

    reference = maps(test_fields)
    statistics = {name: map_statistics(maps(x), reference, weight) for name, x in draws.items()}
    print(f"\n{count} maps of log(1 + pr/0.5 mm) against the test years (lmax {LMAX})")
    print(f"{'':28}" + "".join(f"{key:>16}" for key in statistics["network"]))
    for name, row in statistics.items():
        print(f"{name:28}" + "".join(f"{value:16.3f}" for value in row.values()))

    setting = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} thread(s), "
        f"load {os.getloadavg()[0]:.1f}",
        "versions": {name: version(name) for name in ("spherediff", "torch", "numpy", "ducc0")},
        "python": platform.python_version(),
        "training": {**asdict(result), "seconds": seconds[0], "cpu_seconds": seconds[1]},
        "parameters": sum(p.numel() for p in model.denoiser.network.parameters()),
        "config": asdict(config),
        "network": network.to_dict(),
    }
    print("\n" + json.dumps(setting, indent=2))
    results = {"levels": LEVELS, "denoising": table, "maps": statistics, **setting}
    (options.directory / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
