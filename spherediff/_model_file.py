"""Models on disk: ``model.json``, which says what they are, and the tensors that it names.

The tensors' file is named by its content and ``model.json`` is renamed into place last, so that
whatever happens a directory holds one whole model, the old or the new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from spherediff import _tensors
from spherediff._files import require_writable, write_json
from spherediff.data import bundled

CONFIG = "model.json"
_FORMAT = 11
_KIND = "model"


def write(
    directory: str | os.PathLike[str], description: dict[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a model; one that was there before is replaced.

    Raises:
        PermissionError: the directory cannot be written.
    """
    config = Path(directory) / CONFIG
    require_writable(config)
    weights = config.with_name(f"weights-{_tensors.digest(tensors)[:16]}.safetensors")
    _tensors.write(weights, tensors, {"kind": _KIND, "format": _FORMAT})
    head = {"format": _FORMAT, "spherediff": version("spherediff"), "weights": weights.name}
    write_json(config, head | description)
    for other in config.parent.glob("weights-*.safetensors"):
        if other != weights:
            other.unlink()


def find(directory: str | os.PathLike[str]) -> Path:
    """The ``model.json`` in a directory, or of the model that comes with the package by that name.

    Raises:
        FileNotFoundError: there is none.
    """
    config = Path(directory) / CONFIG
    if not config.exists():
        config = bundled.models().get(str(directory), Path(directory)) / CONFIG
    if not config.is_file():
        raise FileNotFoundError(
            f"expected a model directory with {CONFIG}, found none at {config.parent}, and no "
            f"bundled model has that name; there is {', '.join(bundled.models()) or 'none'}"
        )
    return config


def read(config: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a model.

    Args:
        config: what :func:`find` found.

    Raises:
        FileNotFoundError: the tensors are not there.
        ValueError: a damaged file, another format, or a part that is missing.
    """
    with undamaged(config):
        description = json.loads(config.read_text(encoding="utf-8"))
        found = description["format"]
    if found != _FORMAT:
        raise ValueError(f"{config} has format {found}, this version of spherediff reads {_FORMAT}")
    parts = ("weights", "network", "schedule", "encoder", "labels")
    missing = [k for k in parts if k not in description]
    if missing:
        raise ValueError(f"{config} lacks {', '.join(missing)}; restore it or train again")
    with undamaged(config):
        weights = config.with_name(description["weights"])
    _, tensors = _tensors.read(weights, _KIND)
    return description, tensors


def marked(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors of one part, under its name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part: the inverse of :func:`marked`."""
    mark = f"{prefix}/"
    return {k.removeprefix(mark): v for k, v in tensors.items() if k.startswith(mark)}


@contextmanager
def undamaged(config: Path) -> Iterator[None]:
    """Whatever fails inside is the fault of this file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{config} is truncated or corrupted ({reason}); restore it or train again"
        ) from error
