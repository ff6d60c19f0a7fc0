"""What a file knows of one variable, and what headings, units and dates in it have to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from astropy.units import Unit, UnitBase
from numpy.typing import NDArray

from spherediff.data.cells import Cells
from spherediff.data.climatology import is_dates
from spherediff.data.encoder import Encoder
from spherediff.grids import Grid

_ERROR = "_error"


@dataclass(frozen=True, eq=False)
class Reading:
    """What is known of one variable.

    Attributes:
        variable: its name.
        grid: where.
        values: in the units of the encoder, NaN where nothing is known; shape ``grid.shape``.
        error: standard error in the same units; None if it is not known.
        date: to which it belongs, if the file says so.
        source: the file, for messages.
        lines: of a table, one for each value.
        cells: of a coarse map, of which the values are means; None for values at points.
    """

    variable: str
    grid: Grid
    values: NDArray[np.float64]
    error: NDArray[np.float64] | None
    date: Any = None
    source: str = "readings"
    lines: NDArray[np.int64] | None = None
    cells: Cells | None = None

    def place(self, k: int) -> str:
        """The file and where in it the k-th value is, or where on the sphere, for messages."""
        if self.lines is not None:
            return f"{self.source}, line {self.lines[k]}"
        latitude, longitude = (axis[k] for axis in coordinates(self.grid))
        return f"{self.source} at latitude {latitude:g}, longitude {longitude:g}"


def coordinates(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latitude and longitude of every value on a grid, in degrees, its axes flattened."""
    latitude, longitude = np.asarray(grid.latitude), np.asarray(grid.longitude)
    if len(grid.shape) == 1:
        return latitude, longitude
    return np.repeat(latitude, len(longitude)), np.tile(longitude, len(latitude))


def variable_of(name: str, encoder: Encoder) -> str | None:
    """The encoder's variable that a name in a file means, whatever its case."""
    alike = [one for one in encoder.names if one.lower() == name.lower()]
    return name if name in encoder.names else next(iter(alike), None)


def errors_of(names: Iterable[str], path: Path) -> dict[str, str]:
    """Names of standard errors, ``NAME_error``, by those of their variables in lower case.

    Raises:
        ValueError: one without its variable.
    """
    names = list(names)
    lower = {name.lower() for name in names}
    errors = {}
    for name in names:
        variable = name.lower().removesuffix(_ERROR)
        if variable == name.lower():
            continue
        if variable not in lower:
            raise ValueError(
                f"{path}: {name} is the standard error of {name[: -len(_ERROR)]}, which is not "
                f"there: there are {', '.join(names)}"
            )
        errors[variable] = name
    return errors


def require_units(encoder: Encoder, name: str, found: Any, path: Path, what: str) -> None:
    """Refuse other units than the encoder's; without any they are taken to be these.

    Raises:
        ValueError: other units.
    """
    expected = encoder.units[encoder.names.index(name)]
    if found is not None and str(found).strip() and _unit(str(found)) != _unit(expected):
        raise ValueError(
            f"{path}: {what} is in {str(found)!r}, but the model is in {expected!r}: convert it"
        )


def date_of(value: Any, where: str) -> np.datetime64:
    """A date of a file: ISO text, datetime64 or cftime.

    Args:
        value: what the file has.
        where: the place in the file, for messages.

    Raises:
        ValueError: no year, month and day, or none that the calendar knows.
    """
    if isinstance(value, np.datetime64) and not np.isnat(value):
        return value.astype("datetime64[s]")
    dated = isinstance(value, str) or is_dates(np.array([value], object))
    try:
        date = datetime.fromisoformat(str(value).strip() if dated else "")
    except ValueError as error:
        raise ValueError(
            f"{where}: expected a date with year, month and day, as in 2001-07-15, found {value}"
            f" ({_why_not_a_date(value, dated, error)})"
        ) from error
    if date.tzinfo is not None:
        date = date.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(date, "s")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file before messages that do not name it."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _why_not_a_date(value: Any, dated: bool, error: ValueError) -> str:
    if not dated:
        return "numbers need units such as 'days since 2000-01-01'"
    calendar = getattr(value, "calendar", "standard")
    return str(error) if calendar == "standard" else f"of the {calendar} calendar: {error}"


def _unit(text: str) -> UnitBase | str:
    """What units mean, however they are spelt; the text itself if that is not known."""
    for spelling in (text, text.capitalize()):
        try:
            return Unit(spelling)
        except ValueError:
            continue
    return text.strip()
