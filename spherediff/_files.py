"""Files are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def require_writable(path: str | os.PathLike[str]) -> Path:
    """Check, before long work begins, that the file ``path`` can be written.

    Creates the missing parent directories.

    Raises:
        IsADirectoryError: ``path`` is a directory.
        PermissionError: the directory that will hold ``path`` cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; choose another output path")
    return require_writable_tree(path)


def require_writable_tree(path: Path) -> Path:
    """:func:`require_writable` of a directory that is written as a whole.

    Raises:
        PermissionError: the directory that will hold ``path`` cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise PermissionError(
            f"cannot write {path}: {error.strerror or error}; choose another output path"
        ) from error
    return path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, else remove it.

    The temporary name keeps the suffix, since writers choose their format by it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write what JSON can hold, for people to read too."""
    with atomic_write(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
