"""Scorecards of everything that was drawn, and the table of the peers.

    python experiments/peers/score.py ARCHIVES --output OUT [--resamples 100] [--threads 2]

`run.py` does this at its end; alone, it scores what there is, as while others are being trained.
Anomalies are compared in transformed units, without the yearly cycle.  A scorecard is computed
anew only if the draws are others or were resampled another number of times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import archives
import torch
from archives import Split
from methods import METHODS
from store import Entry, environment, read_json, write_json
from tqdm.auto import tqdm

from spherediff.data import Identity
from spherediff.metrics import scorecard

MEMORISATION = 10  # group of the scorecard's rows
_SEED = 7  # of the scorecard: the same resamples for all methods

_LEGEND = """\
Distance of generated to held-out maps, divided by that of equally many training maps to the same
held-out maps: 1 is as close as other real maps are; in brackets the 95 % interval. Rows of
classifiers and of the share of copies have no ratio: their value. An asterisk marks what differs
significantly from real maps; bold type the closest method, where distances are compared.
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="ARCHIVES")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def drawn(output: Path) -> list[Entry]:
    """Everything in the folder that is complete, in the order of the table."""
    entries = [Entry(output, archive, name) for archive in archives.NAMES for name in METHODS]
    return [entry for entry in entries if entry.is_drawn()]


def score(folder: Path, output: Path, entries: Iterable[Entry], resamples: int) -> None:
    """Scorecards of ``entries`` and the table of all that was ever scored in ``output``."""
    todo = [entry for entry in entries if not _is_scored(entry, resamples)]
    for archive in dict.fromkeys(entry.archive for entry in todo):
        split = archives.load(archive, folder)
        for entry in tqdm([e for e in todo if e.archive == archive], desc=f"scoring {archive}"):
            write_json(entry.card, card_of(entry, split, resamples))
    write_table(output, [entry for entry in drawn(output) if entry.card.exists()])


def _is_scored(entry: Entry, resamples: int) -> bool:
    if not entry.card.exists():
        return False
    card = read_json(entry.card)
    return card["draws"] == entry.digest() and card["resamples"] == resamples


def card_of(entry: Entry, split: Split, resamples: int) -> dict[str, Any]:
    """The scorecard of one method, as JSON holds it."""
    encoder = split.encoder
    units = [
        unit if transform == Identity() else "1"
        for unit, transform in zip(encoder.units, encoder.transforms, strict=True)
    ]
    card = scorecard(
        *(encoder.anomalies(x) for x in (entry.read(), split.test, split.known)),
        names=encoder.names,
        units=units,
        resamples=resamples,
        generator=torch.Generator().manual_seed(_SEED),
        progress=True,
    )
    rows = [asdict(row) | {"differs": bool(row.differs)} for row in card.rows]
    for row in rows:
        del row["alike"]  # may be infinite, which JSON cannot hold; ``differs`` says it
    return {
        "draws": entry.digest(),
        "resamples": resamples,
        "sizes": card.sizes,
        "lmax": card.lmax,
        "rows": rows,
        **environment(),
    }


def write_table(output: Path, entries: Sequence[Entry]) -> None:
    """table.json and table.md of these results."""
    tables: dict[str, dict[str, Any]] = {}
    for entry in entries:
        result = {"record": read_json(entry.record), "card": read_json(entry.card)}
        tables.setdefault(entry.archive, {})[entry.method] = result
    write_json(output / "table.json", tables)
    parts = [archive_table(archive, results) for archive, results in tables.items()]
    text = "\n".join(["# Peers on the same bench\n", _LEGEND, *parts])
    (output / "table.md").write_text(text, "utf-8")


def archive_table(archive: str, results: dict[str, Any]) -> str:
    """A table in Markdown: a line for each row of the scorecard, a column for each method."""
    methods = list(results)
    N, M, T = next(iter(results.values()))["card"]["sizes"]
    lines = [
        f"## {archive}\n",
        f"{N} generated, {M} held-out, {T} training maps.\n",
        _line(["variable", "statistic", *methods]),
        _line(["---"] * (2 + len(methods))),
        _line(["", "steps", *(_steps(results[method]["record"]) for method in methods)]),
    ]
    columns = [results[method]["card"]["rows"] for method in methods]
    for rows in zip(*columns, strict=True):
        cells = [_cell(row, bold=row is _closest(rows)) for row in rows]
        lines.append(_line([rows[0]["variable"], rows[0]["statistic"], *cells]))
    differing = [f"{sum(row['differs'] for row in rows)} of {len(rows)}" for rows in columns]
    lines.append(_line(["", "rows that differ", *differing]))
    return "\n".join(lines) + "\n"


def _steps(record: dict[str, Any]) -> str:
    training = record["training"]
    steps = training.get("steps")
    return "" if steps is None else f"{steps} in {training['seconds'] / 60:.1f} min"


def _closest(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the closest maps; as to copies of training maps, less is not closer."""
    return None if rows[0]["group"] == MEMORISATION else min(rows, key=lambda row: row["value"])


def _cell(row: dict[str, Any], bold: bool) -> str:
    number = row["value"] if row["ratio"] is None else row["ratio"]
    low, high = row["interval"]
    text = f"{number:.2f}"
    text = f"**{text}**" if bold else text
    return f"{text}{'*' if row['differs'] else ''} ({low:.2f}–{high:.2f})"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    entries = drawn(options.output)
    if not entries:
        raise FileNotFoundError(f"nothing was drawn in {options.output}: run run.py first")
    score(options.folder, options.output, entries, options.resamples)


if __name__ == "__main__":
    main()
