"""Scorecards as plain text and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from spherediff.metrics import Row, Scorecard

_HEADER = ("", "value", "floor", "ratio", "95 % interval", "")


def table(rows: Sequence[Row]) -> str:
    """One line a row, one block a variable; a star where the interval excludes what is alike."""
    lines: list[tuple[str, ...]] = [_HEADER]
    previous = ""
    for row in rows:
        if row.variable != previous:
            lines.append((row.variable, *[""] * (len(_HEADER) - 1)))
            previous = row.variable
        lines.append(_cells(row))
    widths = [max(len(line[k]) for line in lines) for k in range(len(_HEADER))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k in (0, len(_HEADER) - 1) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def explanation(card: Scorecard) -> str:
    """What the columns of :func:`table` mean, and how many rows differ."""
    others = (
        "as many training maps in the place of the generated ones"
        if card.sizes[2]
        else "blocks of maps exchanged at random between generated and reference"
    )
    marked = sum(row.differs for row in card.rows)
    return "\n".join(
        [
            f"floor: the same distance with {others}.",
            "ratio: value/floor; 1 means as close to the reference as other real maps are.  Its",
            f"interval is from {card.resamples} bootstrap resamples; without a ratio it is that of"
            " the value.",
            "AUC: 0.5 if a classifier cannot tell generated from reference, 1 if it always can.",
            f"{marked} of {len(card.rows)} rows are significantly worse than real maps (*); about"
            f" {max(1, round(0.03 * len(card.rows)))} would be for perfect ones.",
        ]
    )


def _cells(row: Row) -> tuple[str, ...]:
    name = f"  {row.group:2d} {row.statistic}" + (f" [{row.units}]" if row.units else "")
    low, high = row.interval
    return (
        name,
        _number(row.value),
        _number(row.floor),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        f"{low:.2f}–{high:.2f}",
        "*" if row.differs else "",
    )


def _number(x: float) -> str:
    return f"{x:.3f}" if x >= 0.01 or x == 0 else f"{x:.2g}"


def to_json(card: Scorecard, record: Mapping[str, Any]) -> str:
    """The whole scorecard with what is recorded of it; infinite ends of intervals are null."""
    rows = [
        asdict(row) | {"alike": [_finite(x) for x in row.alike], "differs": row.differs}
        for row in card.rows
    ]
    content = {"sizes": card.sizes, "lmax": card.lmax, "resamples": card.resamples, "rows": rows}
    return json.dumps({**record, **content}, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> Scorecard:
    """The scorecard of :func:`to_json`.

    Raises:
        ValueError: the text is no such JSON.
    """
    try:
        content = json.loads(text)
        rows = tuple(_row(entry) for entry in content["rows"])
        sizes = tuple(content["sizes"])
        return Scorecard(rows, sizes, content["lmax"], content["resamples"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected the JSON that `spherediff evaluate --output` writes: {error!r}"
        ) from error


def _row(entry: dict[str, Any]) -> Row:
    low, high = entry["interval"]
    best, worst = entry["alike"]
    plain = {key: value for key, value in entry.items() if key != "differs"}
    return Row(
        **plain | {"interval": (low, high), "alike": (best, math.inf if worst is None else worst)}
    )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
