"""One map on one matplotlib axes.

Colours are read by everyone: viridis for one-sided values, and the red–blue diverging map, white
at the centre and equally long on both sides, for values of both signs.  Missing values are grey,
the outside of the sphere is transparent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.image import AxesImage
from matplotlib.patches import Ellipse
from numpy.typing import ArrayLike
from torch import Tensor

from spherediff import data
from spherediff.grids import Grid
from spherediff.plot import projection
from spherediff.plot.projection import Array, Projector

_MISSING = "#b3b3b3"
_BOTH_SIGNS = 0.1
"""Values count as two-sided when the smaller side reaches this fraction of the larger."""

_FAR_OUT = 2.0
"""Times further from the median than all but a thousandth of the values on its side."""

_DARK = 0.3
"""Relative luminance of a colour below which black lines do not show."""

Lines = bool | Sequence[ArrayLike]
"""``True`` for the bundled coastlines, or arrays (points, 2) of longitude, latitude in degrees."""


@dataclass(frozen=True)
class Map:
    """The artists of one map."""

    ax: Axes
    image: AxesImage
    colorbar: Colorbar | None
    graticule: LineCollection | None
    coastlines: LineCollection | None


@dataclass(frozen=True)
class ColourScale:
    """Values to colours, the same for every map it is given to."""

    norm: Normalize
    cmap: Colormap
    extend: Literal["neither", "both", "min", "max"]
    ink: str
    """Of lines: black, or white where the colour of the middle value is dark."""

    @classmethod
    def of(
        cls,
        values: Sequence[Array],
        *,
        cmap: str | Colormap | None = None,
        vmin: float | None = None,
        vmax: float | None = None,
        center: float | None = None,
    ) -> ColourScale:
        """The scale that holds all of ``values``, NaN aside; see :func:`mollweide`."""
        low = min(float(np.nanmin(v)) for v in values)
        high = max(float(np.nanmax(v)) for v in values)
        least, middle, greatest = _typical_range(values, low, high)
        left = least if vmin is None else vmin
        right = greatest if vmax is None else vmax
        if left == right and (vmin is None or vmax is None):
            margin = 0.5 * (abs(left) or 1.0)
            left = left - margin if vmin is None else vmin
            right = right + margin if vmax is None else vmax
        if not left < right:
            raise ValueError(
                f"expected vmin < vmax, got vmin={left:g} and vmax={right:g};"
                f" the values lie in [{low:g}, {high:g}]"
            )
        if center is None and cmap is None and _takes_both_signs(left, right):
            center = 0.0
        if center is None:
            norm = Normalize(left, right)
        else:
            norm = _centred(center, left, right, vmin, vmax)
        if cmap is None:
            cmap = "viridis" if center is None else "RdBu_r"
        colours = matplotlib.colormaps[cmap] if isinstance(cmap, str) else cmap
        red, green, blue, _ = colours(norm(middle))
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < _DARK
        below, above = low < float(norm.vmin or 0), high > float(norm.vmax or 0)
        extend = "both" if below and above else "min" if below else "max" if above else "neither"
        return cls(norm, colours, extend, "white" if dark else "black")

    def colorbar(self, axes: Axes | Sequence[Axes], units: str, length: float = 0.7) -> Colorbar:
        """A horizontal bar below ``axes``, ``length`` of their width, labelled with the units."""
        first = axes if isinstance(axes, Axes) else axes[0]
        return first.figure.colorbar(
            ScalarMappable(self.norm, self.cmap),
            ax=axes,
            orientation="horizontal",
            label=units,
            extend=self.extend,
            shrink=length,
            aspect=40,
            pad=0.04,
        )


def _typical_range(values: Sequence[Array], low: float, high: float) -> tuple[float, float, float]:
    """The whole range, or where it ends far out, as of rain, that of all but 0.1 % on that side.

    Returns:
        The least value, the median and the greatest value.
    """
    inner = np.concatenate([np.ravel(v) for v in values])
    few, median, most = np.nanquantile(inner, (0.001, 0.5, 0.999))
    if 0 < _FAR_OUT * (median - few) < median - low:
        low = float(few)
    if 0 < _FAR_OUT * (most - median) < high - median:
        high = float(most)
    return low, float(median), high


def _takes_both_signs(low: float, high: float) -> bool:
    return low < 0 < high and min(-low, high) >= _BOTH_SIGNS * max(-low, high)


def _centred(
    center: float, left: float, right: float, vmin: float | None, vmax: float | None
) -> Normalize:
    """Symmetric about ``center``, unless both limits are asked for."""
    if vmin is not None and vmax is not None:
        if not vmin < center < vmax:
            raise ValueError(
                f"expected vmin < center < vmax, got vmin={vmin:g}, center={center:g},"
                f" vmax={vmax:g}"
            )
        return TwoSlopeNorm(center, vmin, vmax)
    asked = vmin if vmin is not None else vmax
    reach = max(right - center, center - left) if asked is None else abs(asked - center)
    if reach == 0 or (vmin is not None and vmin > center) or (vmax is not None and vmax < center):
        raise ValueError(
            f"expected vmin < center < vmax, got center={center:g} and the limit {asked}"
        )
    return Normalize(center - reach, center + reach)


def draw(
    ax: Axes,
    projector: Projector,
    values: Array,
    grid: Grid,
    scale: ColourScale,
    *,
    title: str = "",
    coastlines: Lines = False,
    graticule: float | None = None,
    bar_label: str | None = None,
) -> Map:
    """Draw one checked map (:func:`projection.field`); no ``bar_label``, no colour bar."""
    pixels, extent = projection.raster(projector, values, grid)
    half_width = projection.half_width(projector)
    sphere = Ellipse((0, 0), 2 * half_width, 2, facecolor=_MISSING, edgecolor="none", zorder=0)
    ax.add_patch(sphere)
    image = ax.imshow(
        pixels, cmap=scale.cmap, norm=scale.norm, origin="lower", extent=extent, zorder=1
    )
    image.set_clip_path(sphere)
    grid_lines = (
        None
        if graticule is None
        else _lines(ax, projection.graticule(projector, graticule), 0.4, scale.ink, 0.3)
    )
    if isinstance(coastlines, bool):
        coastlines = data.coastlines() if coastlines else ()
    coast = (
        _lines(ax, projection.lines(projector, coastlines), 0.6, scale.ink, 0.8)
        if len(coastlines)
        else None
    )
    ax.add_patch(
        Ellipse((0, 0), 2 * half_width, 2, fill=False, edgecolor="0.2", linewidth=0.8, zorder=3)
    )
    ax.set(
        aspect="equal",
        xlim=(-1.01 * half_width, 1.01 * half_width),
        ylim=(-1.02, 1.02),
        xticks=[],
        yticks=[],
        title=title,
    )
    ax.spines[:].set_visible(False)
    ax.patch.set_visible(False)
    bar = None if bar_label is None else scale.colorbar(ax, bar_label)
    return Map(ax, image, bar, grid_lines, coast)


def _lines(
    ax: Axes, pieces: Sequence[Array], width: float, colour: str, alpha: float
) -> LineCollection:
    collection = LineCollection(
        list(pieces), linewidths=width, colors=colour, alpha=alpha, zorder=2
    )
    ax.add_collection(collection, autolim=False)
    return collection


def mollweide(
    values: Tensor | ArrayLike,
    *,
    grid: Grid | None = None,
    ax: Axes | None = None,
    longitude: float = 0.0,
    title: str = "",
    units: str = "",
    cmap: str | Colormap | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    center: float | None = None,
    coastlines: Lines = False,
    graticule: float | None = 30.0,
    colorbar: bool = True,
) -> Map:
    """The whole sphere in Mollweide's equal-area projection; east is to the right.

    Without ``cmap`` and ``center``, values that take both signs (the smaller side at least a tenth
    of the larger) get a diverging scale symmetric about zero, all others a sequential one.

    Args:
        values: one map, shape ``grid.shape``: HEALPix values are drawn pixel by pixel,
            latitude–longitude values by bilinear interpolation.  Missing values (NaN, masked, and
            healpy's UNSEEN on HEALPix) are grey; so are the points interpolated from one.
        grid: where the values are; ``None`` for a HEALPix map in ring order.
        ax: plain axes to draw on; ``None`` makes a new pyplot figure.
        longitude: of the centre, degrees.
        title: above the map.
        units: of the values, below the colour bar.
        cmap: a matplotlib colour map or its name.
        vmin: lower limit of the colour scale; by default the least value, or where that is more
            than twice as far from the median as 99.9 % of the values below it, the end of these.
            An arrow on the colour bar marks values beyond a limit.
        vmax: upper limit of the colour scale; by default the greatest value, or likewise.
        center: value of the middle colour.  The scale is symmetric about it, unless both limits
            are given.
        coastlines: ``True`` for the bundled ones, or lines of your own.
        graticule: spacing of meridians and parallels in degrees; ``None`` for none.
        colorbar: whether to draw one.

    Returns:
        The artists.

    Raises:
        TypeError: complex values, or a grid of points.
        ValueError: values that are empty, infinite, all missing or of another shape than the
            grid's; limits out of order.
    """
    array, grid = projection.field(values, grid)
    scale = ColourScale.of([array], cmap=cmap, vmin=vmin, vmax=vmax, center=center)
    projector = projection.mollweide_projector(longitude)
    if ax is None:
        _, ax = plt.subplots(figsize=(7.5, 4.6), layout="compressed")
    return draw(
        ax,
        projector,
        array,
        grid,
        scale,
        title=title,
        coastlines=coastlines,
        graticule=graticule,
        bar_label=units if colorbar else None,
    )


def orthographic(
    values: Tensor | ArrayLike,
    *,
    grid: Grid | None = None,
    ax: Axes | None = None,
    longitude: float = 0.0,
    latitude: float = 0.0,
    title: str = "",
    units: str = "",
    cmap: str | Colormap | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    center: float | None = None,
    coastlines: Lines = False,
    graticule: float | None = 30.0,
    colorbar: bool = True,
) -> Map:
    """Half the sphere as seen from far above a place; north is up, east to the right.

    The place in the middle is at ``longitude`` and ``latitude``, in degrees; all other arguments
    are those of :func:`mollweide`.  The default colour limits are those of the whole map, so that
    two views of it agree.

    Returns:
        The artists.

    Raises:
        TypeError, ValueError: as :func:`mollweide`; ``latitude`` outside [−90, 90].
    """
    array, grid = projection.field(values, grid)
    scale = ColourScale.of([array], cmap=cmap, vmin=vmin, vmax=vmax, center=center)
    projector = projection.orthographic_projector(longitude, latitude)
    if ax is None:
        _, ax = plt.subplots(figsize=(5.0, 5.6), layout="compressed")
    return draw(
        ax,
        projector,
        array,
        grid,
        scale,
        title=title,
        coastlines=coastlines,
        graticule=graticule,
        bar_label=units if colorbar else None,
    )
