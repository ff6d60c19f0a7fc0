"""Dataclasses as JSON-able configurations: {"kind": name of the class, field: value, …}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

T = TypeVar("T")


def to_config(part: Any) -> dict[str, Any]:
    """What :func:`from_config` makes the same dataclass from; JSON keeps it exactly."""
    return {"kind": type(part).__name__, **asdict(part)}


def from_config(config: Mapping[str, Any], kinds: tuple[type[T], ...], what: str) -> T:
    """The dataclass of :func:`to_config`, before or after a passage through JSON.

    Args:
        config: its configuration.
        kinds: the classes that it may be of; their sequences are tuples.
        what: a word for them, for the message.

    Raises:
        ValueError: it is of no such class, or does not say of which.
    """
    if "kind" not in config:
        raise ValueError(f"'kind' is missing in the {what}")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    kind = options.pop("kind")
    for known in kinds:
        if known.__name__ == kind:
            return known(**options)
    names = [known.__name__ for known in kinds]
    raise ValueError(f"unknown {what} {kind!r}; there are {names}")
