"""Cost and variance of the Skorokhod weights against dimension, steps and time.

    python experiments/malliavin_weights.py --directory OUT

The equation is dX = (sin WX − X/2) dt + σ dB with a dense random W, started at one point; σ is 1
(additive noise) or 1 + 0.3 sin x_i (multiplicative).  Printed are

* seconds for 1000 paths, scaled from 50 where one path is dear, and growth of the peak memory, each
  in a process of its own;
* the mean square of a component of the weight times the variance of that component of X_T.  It
  is 1 for a Gaussian law, where the weight is a function of the noise with nothing to average, and
  what is above 1 is what a regression has to average over;
* the correlation of each formula with the discrete weight, path by path.

The figure weights.png shows cost against dimension and variance against time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from spherediff import malliavin
from spherediff._files import atomic_write

SMALL = {
    "variation": malliavin.variation_weight,
    "Bismut–Elworthy–Li": malliavin.bismut_elworthy_li_weight,
    "discrete": malliavin.discrete_weight,
    "autodiff": malliavin.autodiff_weight,
}
ESTIMATED = "estimated"
DIMENSIONS = {
    "variation": (1, 2, 4, 8, 16),
    "Bismut–Elworthy–Li": (1, 2, 4, 8, 16),
    "discrete": (1, 2, 4, 8, 16),
    "autodiff": (1, 2, 4),
    ESTIMATED: (1, 4, 16, 64, 256, 1024),
}
STEPS, HORIZONS = (16, 64, 256), (0.01, 0.1, 1.0, 4.0)
STYLE = {
    "variation": ("#0072B2", "o"),
    "Bismut–Elworthy–Li": ("#D55E00", "s"),
    "discrete": ("#009E73", "^"),
    "autodiff": ("#E69F00", "v"),
    ESTIMATED: ("#CC79A7", "D"),
}
Case = tuple[str, bool, int, int, float, int]


def equation(d: int, additive: bool) -> malliavin.SDE:
    W = torch.randn(d, d, generator=torch.Generator().manual_seed(d)) / d**0.5
    return malliavin.SDE(
        lambda t, x: torch.sin(W @ x) - 0.5 * x,
        1.0 if additive else (lambda t, x: 1 + 0.3 * torch.sin(x)),
    )


def measure(case: Case) -> dict[str, float]:
    """One weight in a fresh process: seconds and memory for ``count`` paths, and its variance."""
    name, additive, d, steps, horizon, count = case
    torch.set_num_threads(1)
    sde, generator = equation(d, additive), torch.Generator().manual_seed(0)
    x0 = torch.linspace(-1, 1, d).expand(count, d)

    def weight(paths: int) -> tuple[torch.Tensor, torch.Tensor]:
        path = malliavin.euler_maruyama(
            sde, x0[:paths], torch.linspace(0, horizon, steps + 1), generator=generator
        )
        if name == ESTIMATED:
            return malliavin.estimated_weight(sde, path, generator=generator), path.end
        return SMALL[name](sde, path), path.end

    weight(2)  # what the first call loads is not the weight's
    before, start = peak(), time.perf_counter()
    delta, end = weight(count)
    seconds = time.perf_counter() - start
    size = delta.square().mean(0) * end.var(0)
    return {
        "seconds": seconds * 1000 / count,
        "megabytes": peak() - before,
        "size": float(size.mean()),
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(cases: list[Case], directory: Path) -> dict[Case, dict[str, float]]:
    """Measure what the folder does not hold yet; an interrupted run goes on where it was."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "malliavin_weights.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    context = multiprocessing.get_context("spawn")
    for case in tqdm(cases, desc="weights"):
        key = json.dumps(case)
        if key in known:
            continue
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            known[key] = pool.submit(measure, case).result()
        with atomic_write(file) as path:
            path.write_text(json.dumps(known, indent=1))
    return {case: known[json.dumps(case)] for case in cases}


def paths_for(name: str, d: int) -> int:
    return 50 if name == "autodiff" or d >= 256 else 1000


def by_dimension(quick: bool) -> list[Case]:
    return [
        (name, additive, d, 32, 1.0, paths_for(name, d))
        for additive in (True, False)
        for name, dimensions in DIMENSIONS.items()
        for d in dimensions
        if d <= (4 if quick else 1024)
    ]


def by_steps(quick: bool) -> list[Case]:
    names = [n for n in DIMENSIONS if n != "autodiff"]
    return [(n, False, 2, steps, 1.0, 1000) for n in names for steps in STEPS[: 2 if quick else 3]]


def by_horizon(quick: bool) -> list[Case]:
    names = [n for n in DIMENSIONS if n != "autodiff"]
    return [
        (name, additive, 2, 64, T, 1000 if quick else 2000)
        for additive in (True, False)
        for name in names
        for T in HORIZONS
    ]


def table(title: str, found: dict[Case, dict[str, float]], column: int, quantity: str) -> None:
    """Rows: weight and noise; columns: the values of one entry of the cases."""
    values = sorted({case[column] for case in found})
    print(f"\n{title}\n{'':32s}" + "".join(f"{v:>10g}" for v in values))
    for name, additive in dict.fromkeys((case[0], case[1]) for case in found):
        row = {c[column]: r[quantity] for c, r in found.items() if (c[0], c[1]) == (name, additive)}
        label = f"{name}, {'additive' if additive else 'multiplicative'}"
        cells = (f"{row[v]:>10.3g}" if v in row else f"{'—':>10s}" for v in values)
        print(f"{label:32s}" + "".join(cells))


def correlations() -> None:
    """Correlation with the discrete weight over 2000 paths of two components."""
    print("\ncorrelation with the discrete weight (d = 2, T = 1)")
    print(f"{'':32s}" + "".join(f"{n:>12d}" for n in STEPS))
    for additive in (True, False):
        for name in ("variation", "Bismut–Elworthy–Li"):
            cells = (f"{correlation(name, additive, n):12.5f}" for n in STEPS)
            label = f"{name}, {'additive' if additive else 'multiplicative'}"
            print(f"{label:32s}" + "".join(cells))


def correlation(name: str, additive: bool, steps: int) -> float:
    sde, generator = equation(2, additive), torch.Generator().manual_seed(0)
    x0 = torch.linspace(-1, 1, 2).expand(2000, 2)
    path = malliavin.euler_maruyama(sde, x0, torch.linspace(0, 1, steps + 1), generator=generator)
    pair = [SMALL[kind](sde, path).flatten() for kind in (name, "discrete")]
    return float(torch.corrcoef(torch.stack(pair))[0, 1])


def draw(
    by_d: dict[Case, dict[str, float]], by_T: dict[Case, dict[str, float]], file: Path
) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for name, (color, marker) in STYLE.items():
        for axes, found, column, quantity in (
            (left, by_d, 2, "seconds"),
            (right, by_T, 4, "size"),
        ):
            points = [(c[column], r[quantity]) for c, r in found.items() if c[:2] == (name, False)]
            if points:
                x, y = zip(*points, strict=True)
                axes.loglog(x, y, color=color, marker=marker, label=name)
    left.set(xlabel="dimension d", ylabel="seconds for 1000 paths", title="Cost, 32 steps")
    right.set(
        xlabel="time T",
        ylabel="E δ² · Var X",
        title="Size of the weight (1: a Gaussian law), d = 2",
    )
    for axes in (left, right):
        axes.grid(color="0.9")
    left.legend(frameon=False)
    with atomic_write(file) as path:
        figure.savefig(path, dpi=150, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("malliavin-weights"))
    parser.add_argument("--quick", action="store_true", help="small dimensions and few paths")
    arguments = parser.parse_args()
    print(
        f"machine   {platform.processor() or platform.machine()}, {os.cpu_count()} cores, one used"
    )
    print(f"versions  python {platform.python_version()} · torch {version('torch')}")
    dimension, steps, horizon = (f(arguments.quick) for f in (by_dimension, by_steps, by_horizon))
    found = run([*dimension, *steps, *horizon], arguments.directory)
    by_d, by_n, by_T = ({c: found[c] for c in cases} for cases in (dimension, steps, horizon))
    table("seconds for 1000 paths against d (32 steps, T = 1)", by_d, 2, "seconds")
    table("growth of the peak memory in MB against d", by_d, 2, "megabytes")
    table("mean square × variance against d", by_d, 2, "size")
    table("seconds for 1000 paths against the steps (d = 2, T = 1)", by_n, 3, "seconds")
    table("mean square × variance against the steps (d = 2, T = 1)", by_n, 3, "size")
    table("mean square × variance against T (d = 2, 64 steps)", by_T, 4, "size")
    correlations()
    draw(by_d, by_T, arguments.directory / "weights.png")


if __name__ == "__main__":
    main()
