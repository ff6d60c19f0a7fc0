"""The metrics of a training run, a JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spherediff._files import atomic_write

METRICS = "metrics.jsonl"
RUN = "run.json"


def append(record: Mapping[str, Any], path: Path) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(record)) + "\n")


def drop_after(step: int, path: Path) -> None:
    """Keep the lines up to ``step``: later ones, perhaps half written, will be written again."""
    kept = []
    if path.exists() and step > 0:
        for line in path.read_text(encoding="utf-8").splitlines():
            if _step_of(line) > step:
                break
            kept.append(line + "\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
