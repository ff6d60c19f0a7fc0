"""Several maps in one figure, on shared colour scales.

The moments of N maps x_1, …, x_N at each place are the mean x̄, the standard deviation
s = (Σ(x_k − x̄)² / (N − 1))^{1/2} and the skewness g = m₃ / m₂^{3/2}, m_p = Σ(x_k − x̄)^p / N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, SubFigure
from numpy.typing import ArrayLike
from torch import Tensor

from spherediff.grids import Grid
from spherediff.plot import projection
from spherediff.plot.maps import ColourScale, Lines, Map, draw
from spherediff.plot.projection import Array


@dataclass(frozen=True)
class Panels:
    """The artists of several maps, row by row."""

    figure: Figure | SubFigure
    maps: tuple[Map, ...]
    colorbars: tuple[Colorbar, ...]


def _subplots(
    figure: Figure | SubFigure | None, rows: int, columns: int, title_height: float
) -> tuple[Figure | SubFigure, np.ndarray]:
    """Axes (rows, columns), in a new pyplot figure at most 10 inches wide if there is none."""
    if figure is None:
        width = min(10.0 / columns, 5.0)
        size = (columns * width, rows * (width / 2 + title_height) + 0.8)
        figure = plt.figure(figsize=size, layout="compressed")
    return figure, figure.subplots(rows, columns, squeeze=False)


def panels(
    values: Sequence[Tensor | ArrayLike] | Tensor | Array,
    *,
    grid: Grid | None = None,
    titles: Sequence[str] = (),
    columns: int = 2,
    figure: Figure | SubFigure | None = None,
    longitude: float = 0.0,
    units: str = "",
    cmap: str | Colormap | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    center: float | None = None,
    coastlines: Lines = False,
    graticule: float | None = 30.0,
) -> Panels:
    """Mollweide maps side by side with one colour scale and one colour bar.

    The colour scale is chosen as in :func:`~spherediff.plot.mollweide`, from all the maps together.

    Args:
        values: the maps, a sequence of arrays of shape ``grid.shape`` or one array with a leading
            axis.
        grid: where all the values are; ``None`` for HEALPix maps in ring order.
        titles: one for each map, or none at all.
        columns: maps in a row.
        figure: empty figure or subfigure to draw in; ``None`` makes a new pyplot figure.  Give
            your own ``layout="compressed"``.
        longitude: of the centre, degrees.
        units: of the values, below the colour bar.
        cmap: a matplotlib colour map or its name.
        vmin: lower limit of the colour scale.
        vmax: upper limit of the colour scale.
        center: value of the middle colour.
        coastlines: ``True`` for the bundled ones, or lines of your own.
        graticule: spacing of meridians and parallels in degrees; ``None`` for none.

    Returns:
        The artists.

    Raises:
        TypeError, ValueError: as :func:`~spherediff.plot.mollweide`; also no maps, fewer than one
            column, or as many titles as there are no maps.
    """
    fields = _fields(values, grid)
    if titles and len(titles) != len(fields):
        raise ValueError(f"expected {len(fields)} titles, one a map, or none; got {len(titles)}")
    if columns < 1:
        raise ValueError(f"expected at least one column, got {columns}")
    columns = min(columns, len(fields))
    scale = ColourScale.of(
        [array for array, _ in fields], cmap=cmap, vmin=vmin, vmax=vmax, center=center
    )
    projector = projection.mollweide_projector(longitude)
    figure, axes = _subplots(
        figure, math.ceil(len(fields) / columns), columns, 0.35 if titles else 0.1
    )
    for unused in axes.flat[len(fields) :]:
        unused.remove()
    used: list[Axes] = list(axes.flat[: len(fields)])
    maps = tuple(
        draw(
            ax,
            projector,
            array,
            where,
            scale,
            title=title,
            coastlines=coastlines,
            graticule=graticule,
        )
        for ax, (array, where), title in zip(
            used, fields, titles or [""] * len(fields), strict=True
        )
    )
    return Panels(figure, maps, (scale.colorbar(used, units, 0.7 if columns == 1 else 0.5),))


def _fields(
    values: Sequence[Tensor | ArrayLike] | Tensor | Array, grid: Grid | None
) -> list[tuple[Array, Grid]]:
    if len(values) == 0:
        raise ValueError("expected at least one map, got none")
    return [projection.field(one, grid) for one in values]


def compare(
    archive: Sequence[Tensor | ArrayLike] | Tensor | Array,
    samples: Sequence[Tensor | ArrayLike] | Tensor | Array,
    grid: Grid | None = None,
    *,
    labels: tuple[str, str] = ("archive", "samples"),
    figure: Figure | SubFigure | None = None,
    longitude: float = 0.0,
    units: str = "",
    cmap: str | Colormap | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    center: float | None = None,
    coastlines: Lines = False,
    graticule: float | None = None,
) -> Panels:
    """Maps of an archive in the upper row, samples in the lower, on one colour scale.

    ``archive`` and ``samples`` hold equally many maps, shape (maps, ``*grid.shape``); ``labels``
    name the two rows.  All other arguments are those of :func:`panels`.

    Returns:
        The artists.

    Raises:
        TypeError, ValueError: as :func:`panels`; also rows of different lengths.
    """
    if len(archive) != len(samples):
        raise ValueError(
            f"expected rows of equal length, got {len(archive)} maps of the archive and"
            f" {len(samples)} samples; choose as many of each"
        )
    drawn = panels(
        [*archive, *samples],
        grid=grid,
        columns=max(len(archive), 1),
        figure=figure,
        longitude=longitude,
        units=units,
        cmap=cmap,
        vmin=vmin,
        vmax=vmax,
        center=center,
        coastlines=coastlines,
        graticule=graticule,
    )
    for first, label in zip(drawn.maps[:: len(archive)], labels, strict=True):
        first.ax.set_ylabel(label)
    return drawn


def moments(
    values: Tensor | ArrayLike | Mapping[str, Tensor | ArrayLike],
    grid: Grid | None = None,
    *,
    figure: Figure | SubFigure | None = None,
    longitude: float = 0.0,
    units: str = "",
    coastlines: Lines = False,
    graticule: float | None = None,
) -> Panels:
    """Mean, standard deviation and skewness of maps at each place, in a row.

    Args:
        values: N ≥ 3 maps, shape (N, ``*grid.shape``), or several such sets by name, one row each,
            with a colour scale for each column.
        grid: where the values are; ``None`` for HEALPix maps in ring order.
        figure: empty figure or subfigure to draw in; ``None`` makes a new pyplot figure.
        longitude: of the centre, degrees.
        units: of the values; mean and standard deviation have them, the skewness has none.
        coastlines: ``True`` for the bundled ones, or lines of your own.
        graticule: spacing of meridians and parallels in degrees; ``None`` for none.

    Returns:
        The artists: three maps a row, three colour bars.  A place is grey where a map has no
        value; its skewness also where all maps agree.

    Raises:
        TypeError, ValueError: as :func:`~spherediff.plot.mollweide`; also fewer than three maps.
    """
    sets = values if isinstance(values, Mapping) else {"": values}
    if not sets:
        raise ValueError("expected at least one set of maps, got none")
    rows = [[projection.field(moment, grid) for moment in _moments(maps)] for maps in sets.values()]
    scales = [
        ColourScale.of([row[column][0] for row in rows], center=center)
        for column, center in enumerate((None, None, 0.0))
    ]
    projector = projection.mollweide_projector(longitude)
    figure, axes = _subplots(figure, len(rows), 3, 0.2)
    maps = tuple(
        draw(ax, projector, array, where, scale, coastlines=coastlines, graticule=graticule)
        for row_axes, row in zip(axes, rows, strict=True)
        for ax, (array, where), scale in zip(row_axes, row, scales, strict=True)
    )
    names = ("mean", "standard deviation", "skewness")
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name)
    for ax, label in zip(axes[:, 0], sets, strict=True):
        ax.set_ylabel(label)
    bars = tuple(
        scale.colorbar(list(column), label)
        for scale, column, label in zip(scales, axes.T, (units, units, "no unit"), strict=True)
    )
    return Panels(figure, maps, bars)


def _moments(maps: Tensor | ArrayLike) -> tuple[Array, Array, Array]:
    array = projection.as_array(maps)
    if array.ndim < 2 or len(array) < 3:
        raise ValueError(
            "expected at least three maps along the first axis, shape (maps, *grid.shape),"
            f" got shape {array.shape}"
        )
    mean = array.mean(axis=0)
    anomalies = array - mean
    second = (anomalies**2).mean(axis=0)
    # Equal maps differ from their rounded mean by an ulp or so: that is no spread.
    constant = second <= (1e-14 * mean) ** 2
    skewness = (anomalies**3).mean(axis=0) / np.where(constant, np.nan, second) ** 1.5
    return mean, np.sqrt(second * len(array) / (len(array) - 1)), skewness
