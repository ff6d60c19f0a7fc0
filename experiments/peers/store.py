"""Where draws, records and scorecards lie, and what is recorded of a machine.

OUT/ARCHIVE/METHOD.safetensors    the draws: standardised anomalies (count, channels, n)
OUT/ARCHIVE/METHOD.json           how they were made; written last, so it marks them complete
OUT/ARCHIVE/METHOD.card.json      their scorecard
OUT/table.json, OUT/table.md      everything together
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spherediff._files import atomic_write

_PACKAGES = ("spherediff", "torch", "numpy", "scipy", "ducc0", "scikit-learn", "azula")


@dataclass(frozen=True)
class Entry:
    """One method on one archive.

    Attributes:
        output: folder of all results.
        archive, method: their names.
    """

    output: Path
    archive: str
    method: str

    @property
    def draws(self) -> Path:
        return self._path(".safetensors")

    @property
    def record(self) -> Path:
        return self._path(".json")

    @property
    def card(self) -> Path:
        return self._path(".card.json")

    def is_drawn(self) -> bool:
        """Whether the draws are complete."""
        return self.record.exists()

    def write(self, x: Tensor, record: dict[str, Any]) -> None:
        """Keep draws and their record."""
        with atomic_write(self.draws) as temporary:
            save_file({"coefficients": x.float().contiguous()}, temporary)
        write_json(self.record, record)

    def read(self) -> Tensor:
        """The draws."""
        return load_file(self.draws)["coefficients"]

    def digest(self) -> str:
        """Of the draws: tells which ones a scorecard belongs to."""
        return hashlib.sha256(self.draws.read_bytes()).hexdigest()[:16]

    def _path(self, suffix: str) -> Path:
        return self.output / self.archive / f"{self.method}{suffix}"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The content of :func:`write_json`."""
    return json.loads(path.read_text("utf-8"))


def environment() -> dict[str, Any]:
    """Command, machine, load and versions."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The name that Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
