"""Tables of statistics as plain text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from spherediff.metrics import Row


def table(rows: Sequence[Row]) -> str:
    """Statistics of samples against a reference, one block a variable.

    The last column says where a value lies outside the interval that 95 % of equally good sets of
    maps would give: the noise floor if there is one, else chance.
    """
    floor = any(row.floor for row in rows)
    header = ["", "value", "± error", "chance", *(["training maps"] if floor else []), ""]
    lines = [header]
    previous = ""
    for row in rows:
        if row.variable != previous:
            lines.append([row.variable, *[""] * (len(header) - 1)])
            previous = row.variable
        lines.append(_cells(row, floor))
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k in (0, len(header) - 1) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def explanation(rows: Sequence[Row]) -> str:
    """What the columns of :func:`table` mean, and how many values lie outside."""
    outside = sum(not row.alike for row in rows)
    floor = any(row.floor for row in rows)
    text = [
        "± error: standard error (jackknife over blocks of successive maps).",
        "chance: holds 95 % of the values if maps are swapped between samples and reference.",
    ]
    if floor:
        text.append(
            "training maps: the same if maps of the training archive stand in for the samples"
            " (noise floor)."
        )
    text.append(
        f"{outside} of {len(rows)} values lie outside"
        f" {'the range of training maps' if floor else 'the range of chance'} (marked *);"
        f" about {max(1, round(0.05 * len(rows)))} would if the laws were the same."
    )
    return "\n".join(text)


def _cells(row: Row, floor: bool) -> list[str]:
    name = f"  {row.statistic}" + (f" [{row.units}]" if row.units else "")
    intervals = [_interval(row.chance)]
    if floor:
        intervals.append(_interval(row.floor) if row.floor else "")
    return [name, f"{row.value:.3f}", f"{row.error:.3f}", *intervals, "" if row.alike else "*"]


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"≤ {high:.3f}" if math.isinf(low) else f"{low:.3f}–{high:.3f}"


def to_json(rows: Sequence[Row], record: Mapping[str, Any]) -> str:
    """The same as JSON; the lower end of a one-sided interval is null."""

    def plain(interval: tuple[float, float] | None) -> list[float | None] | None:
        return interval and [None if math.isinf(end) else end for end in interval]

    table = [
        asdict(row) | {"chance": plain(row.chance), "floor": plain(row.floor), "alike": row.alike}
        for row in rows
    ]
    return json.dumps({**record, "rows": table}, indent=2, ensure_ascii=False) + "\n"
