"""The command line: a thin layer over the package.

Every command is a frozen dataclass whose fields are its options and whose ``run`` does the work;
heavy libraries are imported there, so that ``--help`` is quick.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from spherediff.cli.common import Invocation
from spherediff.cli.demo import Demo
from spherediff.cli.evaluate import Evaluate
from spherediff.cli.generate import Generate
from spherediff.cli.info import Info
from spherediff.cli.plot import Plot
from spherediff.cli.sample import Sample
from spherediff.cli.train import Train

_COMMANDS = {
    kind.__name__.lower(): kind for kind in (Demo, Train, Sample, Evaluate, Plot, Info, Generate)
}
_DESCRIPTION = """New global maps like those of an archive, and Gaussian fields on the sphere.

From an archive to new maps and a verdict on them:
  spherediff info navy-winds
  spherediff train navy-winds --lmax 31 --climatology monthly --output winds-model
  spherediff sample --model winds-model --count 64 --output samples.nc
  spherediff evaluate samples.nc navy-winds --climatology monthly
  spherediff plot samples.nc --output samples.png

All of it at once, and noise alone:
  spherediff demo
  spherediff generate --lmax 127 --correlation-length 0.3 --output noise.fits

Each command has a --help of its own."""
_USER_ERRORS = (ValueError, KeyError, OSError, ImportError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line after the program's name; that of the process if not given.

    Returns:
        The exit code: 0, 2 for an error of the user's, 130 after Ctrl-C, 141 if whatever reads the
        output stops early.
    """
    try:
        return _run(tuple(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:
        # The reader of our output, such as head, has seen enough; nothing is left to flush to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: tuple[str, ...]) -> int:
    command = tyro.cli(
        _union(arguments[:1]),
        prog="spherediff",
        description=_DESCRIPTION,
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )
    logging.basicConfig(format="spherediff: %(message)s")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            command.run(Invocation(arguments))
        except BrokenPipeError:
            raise
        except _USER_ERRORS as error:
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            return _fail(f"spherediff: error: {text}", 2)
        except KeyboardInterrupt as interrupt:
            return _fail(f"spherediff: {interrupt or 'interrupted'}", 130)
    return 0


def _union(first: Sequence[str]) -> Any:
    """All commands; the examples are shown in the help of the one that is called alone."""

    def described(name: str, kind: type) -> Any:
        text = inspect.cleandoc(kind.__doc__ or "").split("\nAttributes:")[0].strip()
        full = name in first
        return Annotated[
            kind,
            tyro.conf.subcommand(name, description=text if full else text.splitlines()[0]),
        ]

    return Union[tuple(described(name, kind) for name, kind in _COMMANDS.items())]  # noqa: UP007


def _fail(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code


def _show_warning(message: Any, *_: Any) -> None:
    sys.stderr.write(f"spherediff: warning: {message}\n")
