"""How much of a scorecard is chance: several sets of draws of one network, and sets of real maps.

    python experiments/peers/chance.py ARCHIVES --output OUT --archive u250 [--sets 8]
        [--seconds 900] [--threads 1] [--seed 0] [--resamples 100]

The package's model is trained once, as by ``run.py``, and draws SETS times as many maps as there
are test maps.  A set of real maps has for every test map one of the same date, give or take two
days, from another year, at random; the floor of its scorecard is that of the maps that it has not.
There are eight other years and two test years, so that each map stands in a quarter of the sets.

OUT/ARCHIVE.md has for each row of the scorecard the mean ratio of either kind, its range over the
sets, and how many are at most AIM; then how many rows of a set are.  What OUT has already is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import archives
import numpy as np
import torch
from archives import Split
from emulators import SphereDiff
from score import MEMORISATION, card_of
from store import Entry, environment, read_json, write_json
from torch import Tensor

from spherediff._files import atomic_write, require_writable
from spherediff._system import keep_freed_memory
from spherediff.model import Model

AIMS = {"tas": (1.15, 0.58), "u250": (1.15, 0.58), "pr": (1.25, 0.65)}  # ratios, AUC
DAYS = 3  # the archive has a map of each third day


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="ARCHIVES")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--archive", choices=AIMS, required=True)
    parser.add_argument("--sets", type=int, default=8, help="of either kind")
    parser.add_argument("--seconds", type=float, default=900.0, help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=100, help="of each scorecard")
    return parser.parse_args()


def emulator(split: Split, options: argparse.Namespace) -> SphereDiff:
    """The package's model, trained if it was not before."""
    found = SphereDiff(split)
    folder = options.output / options.archive / "model"
    if (folder / "model.json").exists():
        found.model = Model.load(folder)
    else:
        learnt = found.fit(*split.tuning, options.seconds, options.seed)
        write_json(folder.parent / "training.json", learnt | environment())
        found.model.save(folder)
    return found


def real_sets(split: Split, count: int, seed: int) -> list[Tensor]:
    """Which known maps make each set: for the dates of the test years those of other years."""
    slots, dates = (
        torch.from_numpy((told["time"].dt.dayofyear.values - 1) // DAYS)
        for told in (split.known_told, split.test_told)
    )
    generator = torch.Generator().manual_seed(seed)
    sets = torch.empty(count, len(dates), dtype=torch.int64)
    for date in dates.unique():
        places = torch.nonzero(dates == date).flatten()
        years = torch.nonzero(slots == date).flatten()
        rounds = -(-count * len(places) // len(years))
        order = [years[torch.randperm(len(years), generator=generator)] for _ in range(rounds)]
        sets[:, places] = torch.cat(order)[: count * len(places)].view(count, -1)
    return [*sets]


def without(split: Split, chosen: Tensor) -> Split:
    """The archive as if these maps were not among the known ones."""
    rest = torch.ones(len(split.known), dtype=torch.bool)
    rest[chosen] = False
    return replace(split, training=split.known[rest], validation=split.known[:0])


def judged(entry: Entry, split: Split, draw: Callable[[], Tensor], resamples: int) -> list[Any]:
    """The rows of a set's scorecard, drawn and scored if it was not before."""
    if not entry.is_drawn():
        entry.write(draw(), environment())
    if not entry.card.exists():
        write_json(entry.card, card_of(entry, split, resamples))
    return read_json(entry.card)["rows"]


def number(row: dict[str, Any]) -> float:
    """What a row is judged by: its ratio, or its value if it has none."""
    return row["value"] if row["ratio"] is None else row["ratio"]


def within(row: dict[str, Any], archive: str) -> bool:
    """Whether it is as near as the aim asks."""
    return number(row) <= AIMS[archive][row["ratio"] is None]


def table(archive: str, kinds: dict[str, list[list[Any]]]) -> str:
    """Rows of the scorecard by kind of set, in Markdown."""
    heads = [
        f"{name}{what}" for name in kinds for what in (", mean", ", range", ", within the aim")
    ]
    lines = [["statistic", *heads], ["---"] * (1 + len(heads))]
    first, *_ = (sets[0] for sets in kinds.values())
    rows = [k for k, row in enumerate(first) if row["group"] != MEMORISATION]
    for k in rows:
        cells = [first[k]["statistic"]]
        for sets in kinds.values():
            numbers = [number(one[k]) for one in sets]
            hits = sum(within(one[k], archive) for one in sets)
            cells += [f"{np.mean(numbers):.2f}", f"{min(numbers):.2f} to {max(numbers):.2f}"]
            cells += [f"{hits} of {len(sets)}"]
        lines.append(cells)
    summaries: dict[str, Callable[[list[Any]], int]] = {
        f"rows within the aim, of {len(rows)}": lambda one: sum(
            within(one[k], archive) for k in rows
        ),
        f"rows that differ, of {len(rows)}": lambda one: sum(one[k]["differs"] for k in rows),
    }
    for name, count in summaries.items():
        cells = [f"**{name}**"]
        for sets in kinds.values():
            counts = [count(one) for one in sets]
            cells += [f"{np.mean(counts):.1f}", f"{min(counts)} to {max(counts)}", ""]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    options = arguments()
    archives.require([options.archive], options.folder)
    path = options.output / f"{options.archive}.md"
    for file in (path, options.output / options.archive / "training.json"):
        require_writable(file)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    split = archives.load(options.archive, options.folder)
    chosen = real_sets(split, options.sets, options.seed)
    model = emulator(split, options)
    kinds: dict[str, list[list[Any]]] = {"draws": [], "real maps": []}
    for k in range(options.sets):
        print(f"set {k + 1} of {options.sets}", flush=True)
        kinds["draws"].append(
            judged(
                Entry(options.output, options.archive, f"draws-{k}"),
                split,
                lambda k=k: model.sample(len(split.test), options.seed + 1 + k),
                options.resamples,
            )
        )
        kinds["real maps"].append(
            judged(
                Entry(options.output, options.archive, f"real-{k}"),
                without(split, chosen[k]),
                lambda k=k: split.known[chosen[k]],
                options.resamples,
            )
        )
        with atomic_write(path) as temporary:
            temporary.write_text(table(options.archive, kinds), "utf-8")


if __name__ == "__main__":
    main()
