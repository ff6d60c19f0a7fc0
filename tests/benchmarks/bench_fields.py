"""Gaussian maps a second, draw and synthesis, beside ``healpy.synfast``; and peak memory.

Both sides make a map of the same field (Whittle–Matérn, lmax = 3·nside − 1), alternately and in one
process, and each ratio is the median over the pairs.  ``synfast`` computes in float64, it has no
other precision; spherediff in its default float32, and for comparison in float64.  Memory is the
growth of the resident set over that after the imports, each side in a process of its own.

    python tests/benchmarks/bench_fields.py
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import healpy as hp
import numpy as np
import torch
from bench_transforms import describe_machine

import spherediff as sd

SPECTRUM = sd.WhittleMatern(std=1.0, smoothness=1.0, correlation_length=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nside", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--pairs", type=int, default=5, help="paired runs of each comparison")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worker", choices=["time", "ours", "synfast"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "time":
        print_ratios(arguments.nside[0], arguments.pairs)
    elif arguments.worker:
        print(peak_growth(arguments.worker, arguments.nside[0]))
    else:
        print_table(arguments.nside, arguments.threads, arguments.pairs)


def print_table(nsides: list[int], threads: list[int], pairs: int) -> None:
    describe_machine(max(threads))
    print(f"{'nside':>6s}{'threads':>8s}{'synfast':>10s}{'float32':>10s}{'float64':>10s}", end="")
    print(f"{'ratio 32':>10s}{'ratio 64':>10s}{'target':>8s}")
    for nside in nsides:
        for count in threads:
            target = {(1024, 1): "2.2", (1024, 2): "1.9"}.get((nside, count), "")
            row = worker("time", nside, count, pairs if nside < 2048 else 2)
            print(f"{nside:6d}{count:8d}{row}{target:>8s}", flush=True)
    print(f"\n{'nside':>6s}{'synfast MiB':>14s}{'ours MiB':>11s}{'ratio':>8s}{'target':>8s}")
    for nside in nsides:
        theirs, ours = (float(worker(side, nside, 1, 1)) for side in ("synfast", "ours"))
        target = "0.6" if nside == 1024 else ""
        print(f"{nside:6d}{theirs:14.0f}{ours:11.0f}{ours / theirs:8.2f}{target:>8s}", flush=True)


def worker(kind: str, nside: int, threads: int, pairs: int) -> str:
    """Run one measurement in a fresh process with a fixed number of threads."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--worker", kind, "--nside", str(nside)]
    result = subprocess.run(
        [*command, "--pairs", str(pairs)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return result.stdout.rstrip("\n")


def print_ratios(nside: int, pairs: int) -> None:
    spectrum = SPECTRUM(torch.arange(3 * nside)).numpy()
    grid, generator = sd.HEALPix(nside), torch.Generator().manual_seed(0)
    fields = [
        sd.GaussianField(SPECTRUM, 3 * nside - 1, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    np.random.seed(0)  # noqa: NPY002 - synfast draws from the global state
    times: list[list[float]] = [[], [], []]
    for _ in range(pairs + 1):
        times[0].append(timed(lambda: hp.synfast(spectrum, nside)))
        for k, field in enumerate(fields):
            times[k + 1].append(
                timed(lambda f=field: grid.synthesis(f.sample(generator=generator)))
            )
    times = [column[1:] for column in times]  # the first round warms up
    medians = [statistics.median(column) for column in times]
    ratios = [
        statistics.median(a / b for a, b in zip(times[0], column, strict=True))
        for column in times[1:]
    ]
    print("".join(f"{m:9.3f}s" for m in medians), "".join(f"{r:9.2f}x" for r in ratios), sep="")


def peak_growth(side: str, nside: int) -> float:
    """Growth of the peak resident set by one map, MiB."""
    before = peak()
    if side == "ours":
        field = sd.GaussianField(SPECTRUM, 3 * nside - 1)
        sd.HEALPix(nside).synthesis(field.sample(generator=torch.Generator().manual_seed(0)))
    else:
        hp.synfast(SPECTRUM(torch.arange(3 * nside)).numpy(), nside)
    return peak() - before


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
