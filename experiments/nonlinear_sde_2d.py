"""Do nonlinear forward equations generate as well as ordinary score matching?

    python experiments/nonlinear_sde_2d.py --directory DIRECTORY [--quick] [--seeds N]

Four sets in the plane; three forward equations with the same network, optimiser, number of steps
and of evaluations of the score:

    OU        dX = −X dt + √2 dB, denoising score matching with its closed form and as many
              draws as training takes;
    Langevin  dX = −2 tanh X dt + √2 dB, nonlinear drift, regression on the Skorokhod weights of a
              fixed pool of paths;
    Student   dX = −X dt + √(2c(X)) dB, diffusion that depends on the state, the same.

Energy distance and sliced Wasserstein-1 distance to held-out draws, over seeds, beside two
independent sets of data.  A run whose result is in the directory is not made again.
"""

from __future__ import annotations

import json
import math
import platform
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from tqdm.auto import tqdm

from spherediff._files import atomic_write, require_writable
from spherediff.malliavin import SDE
from spherediff.malliavin.processes import Langevin, StudentDiffusion, log_cosh
from spherediff.malliavin.regression import (
    Examples,
    Perceptron,
    Reference,
    ScoreRegression,
    fit_score,
    log_uniform_times,
    score_targets,
)
from spherediff.malliavin.reverse import power_times, reverse_heun
from spherediff.streams import PlainDraws

SMALLEST, LARGEST = 1e-3, 4.0
HELD_OUT = 1_000_003


@dataclass(frozen=True)
class Budget:
    pool: int = 49_152
    steps: int = 1200
    batch: int = 256
    learning_rate: float = 5e-3
    width: int = 96
    samples: int = 2500
    reverse_steps: int = 40  # two scores each


QUICK = Budget(pool=4096, steps=200, samples=1000, reverse_steps=20)


# ---- data ----


def eight_gaussians(count: int, generator: torch.Generator) -> Tensor:
    angle = torch.randint(8, (count,), generator=generator) * math.pi / 4
    centre = torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.08 * torch.randn(count, 2, generator=generator)


def checkerboard(count: int, generator: torch.Generator) -> Tensor:
    column = torch.randint(4, (count,), generator=generator)
    row = 2 * torch.randint(2, (count,), generator=generator) + column % 2
    return torch.stack([column, row], 1) + torch.rand(count, 2, generator=generator)


def swiss_roll(count: int, generator: torch.Generator) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=generator))
    roll = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return roll + 0.5 * torch.randn(count, 2, generator=generator)


def two_moons(count: int, generator: torch.Generator) -> Tensor:
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.randint(2, (count,), generator=generator)
    side = 1.0 - 2.0 * upper
    moon = torch.stack([upper + side * angle.cos(), 0.5 * upper + side * angle.sin()], 1)
    return moon + 0.08 * torch.randn(count, 2, generator=generator)


SETS = {
    "eight Gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "Swiss roll": swiss_roll,
    "two moons": two_moons,
}


@cache
def moments(name: str) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(SETS[name](200_000, torch.Generator().manual_seed(0)), 0)
    return mean, std


def data(name: str, count: int, generator: torch.Generator) -> Tensor:
    """Draws of mean 0 and variance 1 in each coordinate."""
    mean, std = moments(name)
    return (SETS[name](count, generator) - mean) / std


# ---- forward equations ----


class OrnsteinUhlenbeck:
    sde = SDE(lambda t, x: -x, math.sqrt(2))

    def examples(self, x0: Tensor, t: Tensor, generator: torch.Generator) -> Examples:
        alpha = torch.exp(-t)[:, None]
        sigma = (1 - alpha.square()).sqrt()
        noise = torch.randn(x0.shape, generator=generator)
        return Examples(t, alpha * x0 + sigma * noise, -noise / sigma)

    def invariant(self, count: int, d: int, *, generator: torch.Generator) -> Tensor:
        return torch.randn(count, d, generator=generator)


def unit_frame(x: Tensor, t: Tensor) -> Tensor:
    return torch.ones_like(x)


METHODS = {
    "OU": (OrnsteinUhlenbeck, lambda process: unit_frame),
    "Langevin": (lambda: Langevin(log_cosh), lambda process: unit_frame),
    "Student": (lambda: StudentDiffusion(10.0), lambda process: process.frame),
    "Langevin, raw weight": (lambda: Langevin(log_cosh), lambda process: unit_frame),
}
LEARNED = ("OU", "Langevin", "Student")
ABLATED = "eight Gaussians"


def pool(process, name: str, count: int, generator: torch.Generator) -> Examples:
    x0 = data(name, count, generator)
    t = log_uniform_times(count, SMALLEST, LARGEST, generator=generator)
    if isinstance(process, OrnsteinUhlenbeck):
        return process.examples(x0, t, generator)
    return score_targets(process.sde, x0, t, steps=8, largest_step=0.05, generator=generator)


# ---- distances ----


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ without bias; it may be negative."""
    within = sum(torch.cdist(s, s).sum() / (len(s) * (len(s) - 1)) for s in (x, y))
    return float(2 * torch.cdist(x, y).mean() - within)


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Mean over 128 fixed directions of the Wasserstein-1 distance of the projections."""
    angle = math.pi * (torch.arange(128) + 0.5) / 128
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean())


# ---- one run ----


def run(name: str, method: str, seed: int, budget: Budget) -> dict:
    start = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    make, frame_of = METHODS[method]
    process = make()
    frame = frame_of(process)
    count = budget.steps * budget.batch if method == "OU" else budget.pool
    examples = pool(process, name, count, generator)
    prepared = time.process_time()
    raw = method.endswith("raw weight")
    reference = Reference.identity(2) if raw else Reference.fit(examples, frame=frame)
    network = Perceptron(2, width=budget.width, generator=generator)
    model = ScoreRegression(network, reference, frame)
    losses = fit_score(model, examples, steps=budget.steps, batch=budget.batch, generator=generator)
    trained = time.process_time()
    times = power_times(LARGEST, SMALLEST, budget.reverse_steps, dtype=torch.float32)
    x = process.invariant(budget.samples, 2, generator=generator)
    noise = PlainDraws(generator, budget.samples)
    with torch.no_grad():
        samples = reverse_heun(process.sde, model, x, times, generator=noise)
    sampled = time.process_time()
    held_out = data(name, budget.samples, torch.Generator().manual_seed(HELD_OUT))
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "energy": energy_distance(samples, held_out),
        "wasserstein": sliced_wasserstein(samples, held_out),
        "loss": float(np.mean(losses[-len(losses) // 10 :])),
        "cpu": [prepared - start, trained - prepared, sampled - trained],
        "samples": samples.round(decimals=4).tolist() if seed == 0 else None,
    }


def floor(name: str, seed: int, budget: Budget) -> dict:
    x = data(name, budget.samples, torch.Generator().manual_seed(seed))
    y = data(name, budget.samples, torch.Generator().manual_seed(HELD_OUT))
    kept = x.round(decimals=4).tolist() if seed == 0 else None
    energy, wasserstein = energy_distance(x, y), sliced_wasserstein(x, y)
    return {"energy": energy, "wasserstein": wasserstein, "cpu": [0, 0, 0], "samples": kept}


def stored(directory: Path, name: str, method: str, seed: int, budget: Budget) -> dict:
    slug = "-".join(f"{name} {method} {seed} {budget.steps}".lower().replace(",", "").split())
    path = directory / "runs" / f"{slug}.json"
    if path.exists():
        return json.loads(path.read_text())
    make = floor if method == "data" else lambda *args: run(args[0], method, *args[1:])
    try:
        result = make(name, seed, budget)
    except ValueError as error:  # a sampler that leaves the finite numbers is a result too
        result = {"energy": math.inf, "wasserstein": math.inf, "failed": str(error)}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result))
    return result


# ---- table and figure ----


def cell(values: list[float], factor: float) -> str:
    return f"{factor * np.mean(values):.1f} ± {factor * np.std(values, ddof=1):.1f}"


def table(results: dict[tuple[str, str, int], dict], seeds: int) -> str:
    lines = [
        "| set | method | energy distance × 10⁴ | sliced W₁ × 10³ | paths, training, sampling: s |",
        "|---|---|---|---|---|",
    ]
    for name, method in dict.fromkeys((name, method) for name, method, _ in results):
        rows = [results[name, method, seed] for seed in range(seeds)]
        cost = np.mean([row.get("cpu", [math.nan] * 3) for row in rows], 0)
        spent = "" if method == "data" else ", ".join(f"{c:.1f}" for c in cost)
        energy = cell([row["energy"] for row in rows], 1e4)
        wasserstein = cell([row["wasserstein"] for row in rows], 1e3)
        lines.append(f"| {name} | {method} | {energy} | {wasserstein} | {spent} |")
    return "\n".join(lines)


def figure(results: dict[tuple[str, str, int], dict]) -> plt.Figure:
    columns = ("data", *LEARNED)
    size = (2.2 * len(columns), 2.2 * len(SETS))
    fig, axes = plt.subplots(len(SETS), len(columns), figsize=size, layout="constrained")
    for row, name in zip(axes, SETS, strict=True):
        for axis, method in zip(row, columns, strict=True):
            samples = np.array(results[name, method, 0].get("samples") or np.empty((0, 2)))
            color = "0.35" if method == "data" else "C0"
            axis.plot(*samples.T, ".", markersize=1.3, alpha=0.5, color=color, rasterized=True)
            axis.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
            if name == next(iter(SETS)):
                axis.set_title(method)
        row[0].set_ylabel(name)
    return fig


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True, help="where runs and figure go")
    parser.add_argument("--quick", action="store_true", help="a small budget, to see that it runs")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    directory, budget = arguments.directory, QUICK if arguments.quick else Budget()
    require_writable(directory / "runs" / "any")
    seeds = range(arguments.seeds)
    cases = [(n, m, s) for s, n, m in product(seeds, SETS, ("data", *LEARNED))]
    cases += [(ABLATED, "Langevin, raw weight", s) for s in seeds]
    results = {
        case: stored(directory, *case, budget) for case in tqdm(cases, desc="runs", unit="run")
    }
    print(table(results, arguments.seeds))
    print(f"\n{arguments.seeds} seeds, {budget}")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, one thread, {versions}, matplotlib {mpl.__version__}")
    with atomic_write(directory / "nonlinear_2d.png") as path:
        figure(results).savefig(path, dpi=110)


if __name__ == "__main__":
    main()
