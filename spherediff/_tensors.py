"""Tensors and a JSON header in one checked file: safetensors, never pickle.

The file appears whole or not at all (atomic rename), and a SHA-256 of the tensors in its header
tells a damaged file from a good one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spherediff._files import atomic_write

_HEADER, _CHECKSUM = "spherediff", "sha256"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON-able ``header`` to ``path``."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_HEADER: json.dumps(dict(header)), _CHECKSUM: digest(stored)}
    with atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; save_file shuts all others out
        save_file(stored, temporary, metadata=metadata)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())


def read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that :func:`write` made.

    Args:
        path: the file.
        kind: what it is called in messages, e.g. "checkpoint".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged, or was not written by this package.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a {kind} at {path}, found none")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, kind, str(error)) from error
    if _HEADER not in metadata or _CHECKSUM not in metadata:
        raise ValueError(f"{path} is a safetensors file but no {kind} of spherediff")
    if digest(tensors) != metadata[_CHECKSUM]:
        raise _damaged(path, kind, "its checksum does not match")
    try:
        return json.loads(metadata[_HEADER]), tensors
    except ValueError as error:
        raise _damaged(path, kind, str(error)) from error


def _damaged(path: Path, kind: str, reason: str) -> ValueError:
    return ValueError(
        f"the {kind} {path} is truncated or corrupted ({reason}); restore it from a copy or delete"
        " it and start again"
    )
