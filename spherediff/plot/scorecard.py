"""Scorecards: ratios to the noise floor with their intervals, of one generator or of several."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from spherediff.metrics import Row, Scorecard
from spherediff.plot.curves import COLOURS, Curves
from spherediff.plot.projection import Array

_MARKERS = ("o", "s", "D", "^", "v", "P")
_MEMORISATION = 10  # the group of rows where a ratio above one is no fault
_SPREAD = 0.6  # of the height of a row, over all generators


def scorecard(
    cards: Scorecard | Mapping[str, Scorecard],
    variable: str | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Curves:
    """Ratio of every distance to its noise floor, with intervals, on a logarithmic axis.

    A filled marker is significantly above one, an open one is not.  AUCs and memorisation, whose
    scales are others, are left to the table.

    Args:
        cards: a scorecard, or those of several generators by their names.
        variable: of the rows; by default that of the first row.
        ax: axes to draw on; ``None`` makes a new pyplot figure.
        title: above the diagram.

    Returns:
        The artists, one line of markers for each generator.

    Raises:
        ValueError: no scorecard, no rows of ``variable``, or scorecards with different rows.
    """
    named = cards if isinstance(cards, Mapping) else {"": cards}
    if not named:
        raise ValueError("expected at least one scorecard, got none")
    first = next(iter(named.values()))
    variable = first.rows[0].variable if variable is None else variable
    chosen = {name: _ratios(card, variable) for name, card in named.items()}
    names = _common_names(chosen, variable)
    groups = [row.group for row in _ratios(first, variable)]
    if ax is None:
        ax = plt.subplots(figsize=(8.5, 1.2 + 0.24 * len(names)), layout="constrained")[1]
    place = np.arange(len(names), dtype=float)
    shifts = np.linspace(-0.5, 0.5, len(chosen) + 2)[1:-1] * _SPREAD
    ax.axvline(1.0, color="0.45", linewidth=1.0, zorder=0)
    for boundary in np.flatnonzero(np.diff(groups)):
        ax.axhline(boundary + 0.5, color="0.88", linewidth=0.8, zorder=0)
    styles = zip(chosen.items(), shifts, cycle(COLOURS), cycle(_MARKERS))
    lines = {
        name: _dots(ax, rows, place + shift, color=colour, marker=marker, label=name)
        for (name, rows), shift, colour, marker in styles
    }
    ax.set(xscale="log", xlabel="ratio to the noise floor (1: as other real maps)", title=title)
    ax.set_yticks(place, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, axis="x", alpha=0.3)
    if len(chosen) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside: intervals fill the axes
    return Curves(ax, lines, {})


def _ratios(card: Scorecard, variable: str) -> list[Row]:
    return [
        row
        for row in card.rows
        if row.variable == variable and row.ratio is not None and row.group < _MEMORISATION
    ]


def _common_names(chosen: Mapping[str, list[Row]], variable: str) -> list[str]:
    names: list[str] = []
    for name, rows in chosen.items():
        if not rows:
            raise ValueError(f"the scorecard {name} has no rows of {variable}")
        found = [row.statistic for row in rows]
        if names and found != names:
            raise ValueError(f"the rows of {name} are not those of {next(iter(chosen))}")
        names = found
    return names


def _dots(ax: Axes, rows: list[Row], place: Array, **style: Any) -> Line2D:
    """Intervals, and above them markers that are filled where the row differs."""
    ratio = np.array([row.ratio for row in rows], dtype=float)
    low, high = np.array([row.interval for row in rows]).T
    ax.hlines(place, low, high, color=style["color"], linewidth=1.2)
    (line,) = ax.plot(ratio, place, linestyle="", markersize=5, markerfacecolor="white", **style)
    differs = np.array([row.differs for row in rows])
    ax.plot(
        ratio[differs], place[differs], linestyle="", markersize=5,
        color=style["color"], marker=style["marker"],
    )  # fmt: skip
    return line
