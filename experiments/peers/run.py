"""The peers' table: every method on every archive, with one budget, judged by one scorecard.

    python experiments/peers/run.py ARCHIVES --output OUT [--archives pr tas …] [--methods …]
        [--seconds 900] [--threads 2] [--seed 0]

ARCHIVES is the folder with speedy-daily.nc and tas-annual-ensemble.nc; the winds come with the
package.  Each method is trained for the same processor time per thread (wall-clock time when
nothing else runs), draws as many maps as the archive has test maps, and is scored against them;
OUT/table.md and OUT/table.json hold the result.  What OUT already has is kept, so that a run that
was stopped goes on with the next method: delete the files of a method to have it trained again.

| method | what |
|---|---|
| isotropic | isotropic Gaussian field with the archive's spectrum |
| gaussian | full-covariance Gaussian, shrunk |
| bootstrap | known maps again |
| pixel | U-Net, white noise on the grid, EDM preconditioning (azula) |
| functional | Fourier neural operator, Matérn noise, no preconditioning |
| earthsampler | HEALPix U-Net with EarthSampler's own training, in an environment of its own |
| spherediff | this package |

`pip install 'spherediff[bench]'` brings what the peers need.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import archives
import score
import torch
from archives import Split
from methods import METHODS
from store import Entry, environment

from spherediff._files import require_writable
from spherediff._system import keep_freed_memory

SECONDS = 900.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="ARCHIVES")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--archives", nargs="+", choices=archives.NAMES, default=archives.NAMES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of training, each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=100, help="of the scorecard's bootstrap")
    return parser.parse_args()


def check(options: argparse.Namespace) -> None:
    """Before hours of work begin; raises ValueError, FileNotFoundError, ImportError or OSError."""
    if options.seconds <= 0 or options.threads < 1:
        raise ValueError("seconds and threads must be positive")
    archives.require(options.archives, options.folder)
    for archive in options.archives:
        require_writable(Entry(options.output, archive, options.methods[0]).record)
    for name in options.methods:
        METHODS[name].prepare()


def draw(entry: Entry, split: Split, seconds: float, seed: int) -> None:
    """Train one method on one archive, draw, and keep the draws."""
    before: dict[str, Any] = environment()
    method = METHODS[entry.method]
    emulator = method.make(split)
    known = split.tuning if method.budgeted else (split.training, split.validation)
    clock = time.perf_counter(), time.process_time()
    learnt = emulator.fit(*known, seconds, seed)
    took = time.perf_counter() - clock[0], time.process_time() - clock[1]
    clock = time.perf_counter(), time.process_time()
    x = emulator.sample(len(split.test), seed + 1)
    if x.shape != split.test.shape or not torch.isfinite(x).all():
        raise RuntimeError(f"{entry.method} drew {tuple(x.shape)}, or values that are not finite")
    record = {
        "archive": entry.archive,
        "method": entry.method,
        "seed": seed,
        "budget_seconds": seconds,
        "training": {"seconds": took[0], "cpu_seconds": took[1]} | learnt,
        "drawing": {
            "maps": len(x),
            "seconds": time.perf_counter() - clock[0],
            "cpu_seconds": time.process_time() - clock[1],
        },
        "load_after": environment()["load"],
        **before,
    }
    entry.write(x, record)


def main() -> None:
    options = arguments()
    check(options)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the package's own training does: the same for all
    entries = [
        Entry(options.output, archive, method)
        for archive in options.archives
        for method in options.methods
    ]
    todo = [entry for entry in entries if not entry.is_drawn()]
    print(f"{len(entries)} results, {len(entries) - len(todo)} of them already there")
    for archive in options.archives:
        own = [entry for entry in todo if entry.archive == archive]
        split = archives.load(archive, options.folder) if own else None
        for entry in own:
            assert split is not None
            left = todo[todo.index(entry) :]
            print(f"{archive}, {entry.method}: {remaining(left, options.seconds)}", flush=True)
            draw(entry, split, options.seconds, options.seed)
    score.score(options.folder, options.output, entries, options.resamples)


def remaining(todo: list[Entry], seconds: float) -> str:
    """How many are to be drawn, and about how long their training takes."""
    trained = sum(METHODS[entry.method].budgeted for entry in todo)
    minutes = trained * seconds / 60
    return f"{len(todo)} to go, with about {minutes:.0f} min of training and as much for drawing"


if __name__ == "__main__":
    main()
