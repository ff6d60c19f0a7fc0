"""Tables of stations: lines of text with a heading, fields apart by commas.

Columns ``latitude`` and ``longitude`` (or ``lat`` and ``lon``) in degrees, one for each variable,
headed ``name``, ``name [units]`` or ``name (units)``, its standard error as ``name_error``, and the
date as ``time`` or ``date``; others are left alone.  Case does not matter.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spherediff.data.encoder import Encoder
from spherediff.data.readings import Reading, date_of, errors_of, require_units, variable_of
from spherediff.grids import Points

_HEADING = re.compile(r"([^\[(]+?)\s*[\[(]([^\])]*)[\])]")
_MISSING = ("", "na", "n/a", "nan", "null", "none")
_SHOWN = 5  # lines named in an error


@dataclass(frozen=True, eq=False)
class _Table:
    """Columns of text.

    Attributes:
        path: of the file.
        headings: names as they are written, without units, by these in lower case.
        units: of those that have any, by the same.
        columns: entries by the same.
        lines: of the file, one for each row.
    """

    path: Path
    headings: dict[str, str]
    units: dict[str, str]
    columns: dict[str, list[str]]
    lines: NDArray[np.int64]

    def find(self, *names: str) -> str | None:
        """The one of these names that is a heading.

        Raises:
            ValueError: several are.
        """
        found = [name for name in names if name in self.headings]
        if len(found) > 1:
            raise ValueError(
                f"{self.path}: the columns {' and '.join(found)} say the same: leave one out"
            )
        return next(iter(found), None)

    def coordinate(self, *names: str) -> NDArray[np.float64]:
        """Numbers of the column of one of these names.

        Raises:
            ValueError: none or several of them; entries that are no numbers.
        """
        name = self.find(*names)
        if name is None:
            raise ValueError(
                f"{self.path}: expected a column {names[0]}; there are "
                f"{', '.join(self.headings.values())}"
            )
        return self.numbers(name)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as numbers, NaN where nothing is known.

        Raises:
            ValueError: other entries.
        """
        entries = np.array(self.columns[name], object)
        known = np.array([entry.lower() not in _MISSING for entry in entries])
        numbers = np.full(len(entries), np.nan)
        numbers[known] = pd.to_numeric(entries[known], errors="coerce")
        wrong = np.flatnonzero(np.isnan(numbers) & known)
        if len(wrong):
            raise ValueError(
                f"{self.path}: {len(wrong)} entries of {self.headings[name]} are no numbers, the "
                f"first {entries[wrong[0]]!r} in line {self.lines[wrong[0]]}"
            )
        return numbers

    def date(self) -> np.datetime64 | None:
        """The date of all rows, None without.

        Raises:
            ValueError: several dates, or entries that are none.
        """
        name = self.find("time", "date")
        if name is None:
            return None
        entries = dict(zip(reversed(self.columns[name]), reversed(self.lines), strict=True))
        dates = {
            date_of(entry, f"{self.path}, line {line}")
            for entry, line in entries.items()
            if entry.lower() not in _MISSING
        }
        if len(dates) != 1:
            raise ValueError(
                f"{self.path} has readings of {len(dates)} dates; expected one, as all of them are"
                " to belong to the same map"
            )
        return dates.pop()

    def require(self, good: NDArray[np.bool_], what: str) -> None:
        """Refuse rows.

        Raises:
            ValueError: one is not good.
        """
        bad = self.lines[~good]
        if len(bad):
            lines = ", ".join(map(str, bad[:_SHOWN])) + ("…" if len(bad) > _SHOWN else "")
            raise ValueError(f"{self.path}: {len(bad)} stations {what}: line {lines}")


def read_table(path: Path, encoder: Encoder) -> list[Reading]:
    """What a table of stations knows of the encoder's variables.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no table, or one of other columns, units, coordinates or dates than expected.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    table = _parse(path)
    latitude = table.coordinate("latitude", "lat")
    longitude = table.coordinate("longitude", "lon")
    table.require(np.isfinite(latitude) & np.isfinite(longitude), "have no coordinates")
    table.require(np.abs(latitude) <= 90, "have a latitude outside [-90, 90] degrees")
    table.require(np.abs(longitude) <= 360, "have a longitude outside [-360, 360] degrees")
    grid, date = Points(latitude, longitude), table.date()
    errors = errors_of(table.headings.values(), path)
    readings = []
    for name, heading in table.headings.items():
        variable = variable_of(heading, encoder)
        if variable is None:
            continue
        require_units(encoder, variable, table.units.get(name), path, heading)
        values, spread = table.numbers(name), None
        if name in errors:
            error = errors[name].lower()
            require_units(encoder, variable, table.units.get(error), path, errors[name])
            spread = table.numbers(error)
        readings.append(Reading(variable, grid, values, spread, date, str(path), table.lines))
    if not readings:
        raise ValueError(
            f"{path} knows none of the model's variables {', '.join(encoder.names)}: its columns "
            f"are {', '.join(table.headings.values())}"
        )
    return readings


def _parse(path: Path) -> _Table:
    """Headings and fields of a file, whose rows are all as long as its heading.

    Raises:
        ValueError: they are not, or there are none; a heading twice; no UTF-8.
    """
    rows, lines = _rows(path)
    if len(rows) < 2:
        what = "has no rows below its heading" if rows else "is empty"
        raise ValueError(
            f"{path} {what}: expected a heading with latitude, longitude and variables, and a line"
            " for each station"
        )
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{path}, line {line}: expected {len(rows[0])} fields as in the heading, found "
                f"{len(row)}: a comma too many or too few?"
            )
    headings, units, columns = {}, {}, {}
    for text, *entries in zip(*rows, strict=True):
        match = _HEADING.fullmatch(text)
        heading = match[1] if match else text
        if heading and heading.lower() in headings:
            raise ValueError(f"{path}: two columns are headed {heading}: leave one out")
        headings[heading.lower()], columns[heading.lower()] = heading, entries
        if match:
            units[heading.lower()] = match[2].strip()
    return _Table(path, headings, units, columns, np.array(lines[1:]))


def _rows(path: Path) -> tuple[list[list[str]], list[int]]:
    """Fields and line of each row that is not blank."""
    rows, lines = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            for row in reader:
                fields = [field.strip() for field in row]
                if any(fields):
                    rows.append(fields)
                    lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path}: expected a table in UTF-8 with commas between the fields, but could not read "
            f"it after line {lines[-1] if lines else 0} ({error}): save it as CSV in UTF-8"
        ) from error
    return rows, lines
