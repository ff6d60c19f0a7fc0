"""From values on a grid to a raster in the plane of a projection, and lines to go with it.

Mollweide (equal area): with the auxiliary angle 2A + sin 2A = π sin(lat),

    x = (2/π) lon cos A,   y = sin A,   x²/4 + y² ≤ 1.

Orthographic (the sphere from far away): x = cos(lat) sin(lon), y = sin(lat), x² + y² ≤ 1, where
lon and lat are counted from the centre of the view.  Both are healpy's, in the geographic
convention: north is up and east is to the **right** (sky maps have it to the left).
"""

from __future__ import annotations

from collections.abc import Sequence

import healpy
import numpy as np
from healpy.projector import MollweideProj, OrthographicProj
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from spherediff.grids import Grid, HEALPix

Array = NDArray[np.float64]
Projector = MollweideProj | OrthographicProj

_RASTER_HEIGHT = 500
"""Rows of a raster: 100 per inch in a map 5 inches high, more in a panel."""


def mollweide_projector(longitude: float) -> Projector:
    """Whole sphere, centred on ``longitude`` (degrees) at the equator."""
    return MollweideProj(rot=(longitude, 0.0, 0.0), flipconv="geo", xsize=2 * _RASTER_HEIGHT)


def orthographic_projector(longitude: float, latitude: float) -> Projector:
    """The half of the sphere facing ``longitude``, ``latitude`` (degrees).

    Raises:
        ValueError: the latitude is not in [−90, 90].
    """
    if not -90 <= latitude <= 90:
        raise ValueError(f"expected a latitude of the centre in [-90, 90] degrees, got {latitude}")
    return OrthographicProj(
        rot=(longitude, latitude, 0.0), flipconv="geo", half_sky=True, xsize=_RASTER_HEIGHT
    )


def half_width(projector: Projector) -> float:
    """Half the width of the map in the plane, where half its height is 1."""
    return float(projector.get_extent()[1])


def as_array(values: Tensor | ArrayLike) -> Array:
    """A float64 array of real values; masked entries become NaN (missing).

    Raises:
        TypeError: complex values.
        ValueError: no values, or infinite ones.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if np.iscomplexobj(values):
        raise TypeError("expected real values on a grid, got complex numbers")
    array = np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
    if array.size == 0:
        raise ValueError(f"expected values to plot, got an empty array of shape {array.shape}")
    if infinite := int(np.isinf(array).sum()):
        raise ValueError(
            f"{infinite} of {array.size} values are infinite; replace them, by NaN if missing"
        )
    return array


def field(values: Tensor | ArrayLike, grid: Grid | None) -> tuple[Array, Grid]:
    """One map and the grid it lives on, checked against each other.

    Args:
        values: shape ``grid.shape``.  NaN, and healpy's UNSEEN on a HEALPix grid, mean missing.
        grid: ``None`` for a HEALPix map in ring order, whose nside follows from its size.

    Raises:
        TypeError: the grid is a set of points and no map.
        ValueError: values of another shape, of no HEALPix size, infinite, or all missing.
    """
    array = as_array(values)
    if grid is None:
        if array.ndim != 1 or not healpy.isnpixok(array.size):
            raise ValueError(
                f"expected a HEALPix map of 12·nside² values in one axis, got shape {array.shape};"
                " pass grid= for values on another grid, and one map at a time"
            )
        grid = HEALPix(healpy.npix2nside(array.size))
    if not isinstance(grid, HEALPix) and len(grid.shape) != 2:
        raise TypeError(
            f"{type(grid).__name__} has no cells to fill a map with; draw values at points with"
            " ax.scatter, or synthesise them on a HEALPix or latitude-longitude grid"
        )
    if array.shape != tuple(grid.shape):
        raise ValueError(
            f"expected values of shape {tuple(grid.shape)} for {type(grid).__name__},"
            f" got {array.shape}; pass one map at a time"
        )
    if isinstance(grid, HEALPix):
        array = np.where(healpy.mask_bad(array), np.nan, array)
    if np.isnan(array).all():
        raise ValueError("expected at least one value that is not missing, got only NaN")
    return array, grid


def raster(
    projector: Projector, values: Array, grid: Grid
) -> tuple[np.ma.MaskedArray, tuple[float, float, float, float]]:
    """Values at the centres of the raster's cells, masked outside the sphere and where missing.

    Args:
        projector: the projection.
        values: one map, shape ``grid.shape``.
        grid: HEALPix (nearest pixel) or latitude–longitude (bilinear).

    Returns:
        The raster, south at row 0 and west at column 0, and its extent in the plane
        (left, right, bottom, top), the outer edges of the outermost cells.
    """
    x, y = projector.ij2xy()
    inside = ~np.ma.getmaskarray(x)
    x, y = np.ma.getdata(x), np.ma.getdata(y)
    longitude, latitude = projector.xy2ang(x[inside], y[inside], lonlat=True)
    image = np.full(x.shape, np.nan)
    if isinstance(grid, HEALPix):
        nested = grid.ordering == "nested"
        image[inside] = values[
            healpy.ang2pix(grid.nside, longitude, latitude, nest=nested, lonlat=True)
        ]
    else:
        image[inside] = _bilinear(values, grid)(np.stack([latitude, longitude % 360], axis=-1))
    right = x[0, -1] + (x[0, 1] - x[0, 0]) / 2
    top = y[-1, 0] + (y[1, 0] - y[0, 0]) / 2
    return np.ma.masked_invalid(image), (-right, right, -top, top)


def _bilinear(values: Array, grid: Grid) -> RegularGridInterpolator:
    """Interpolate in (latitude, longitude in [0, 360]), periodic and closed at both poles."""
    longitude, first = np.unique(np.asarray(grid.longitude) % 360, return_index=True)
    south_up = np.argsort(np.asarray(grid.latitude))
    latitude = np.asarray(grid.latitude)[south_up]
    values = values[south_up][:, first]
    if latitude[0] > -90:
        latitude = np.r_[-90.0, latitude]
        values = np.vstack([_pole(values[0], values.shape[1]), values])
    if latitude[-1] < 90:
        latitude = np.r_[latitude, 90.0]
        values = np.vstack([values, _pole(values[-1], values.shape[1])])
    longitude = np.r_[longitude[-1] - 360, longitude, longitude[0] + 360]
    values = np.hstack([values[:, -1:], values, values[:, :1]])
    return RegularGridInterpolator((latitude, longitude), values)


def _pole(nearest_row: Array, size: int) -> Array:
    """A row at the pole, where a scalar has one value: the mean of the nearest parallel."""
    present = nearest_row[~np.isnan(nearest_row)]
    return np.full(size, present.mean() if present.size else np.nan)


def lines(projector: Projector, paths: Sequence[ArrayLike]) -> list[Array]:
    """Lines on the sphere as lines in the plane, cut where they leave the map.

    Args:
        projector: the projection.
        paths: arrays of (longitude, latitude) in degrees, shape (points, 2).

    Returns:
        Arrays of (x, y), shape (points, 2): each path's visible pieces of two points or more.

    Raises:
        ValueError: a path of another shape.
    """
    pieces: list[Array] = []
    for points in paths:
        path = np.asarray(points, dtype=np.float64)
        if path.ndim != 2 or path.shape[1] != 2:
            raise ValueError(
                f"expected lines of shape (points, 2), longitude and latitude, got {path.shape}"
            )
        x, y = projector.ang2xy(path[:, 0], path[:, 1], lonlat=True)
        plane = np.stack([x, y], axis=-1)
        cuts = np.flatnonzero(_leaves_the_map(projector, plane)) + 1
        for piece in np.split(plane, cuts):
            visible = piece[~np.isnan(piece).any(axis=-1)]
            if len(visible) > 1:
                pieces.append(visible)
    return pieces


def _leaves_the_map(projector: Projector, plane: Array) -> NDArray[np.bool_]:
    """Whether the step from each point to the next passes the edge, shape (points − 1,).

    In Mollweide's plane x / (2√(1 − y²)) is the longitude from the centre in units of 180°, and a
    step that changes it by more than 180° is shorter round the back.  In the orthographic plane
    the far side is NaN.
    """
    x, y = plane.T
    hidden = np.isnan(x)
    if isinstance(projector, OrthographicProj):
        return hidden[1:] != hidden[:-1]
    half_turns = x / (2 * np.sqrt(np.maximum(1 - y**2, 1e-12)))
    return np.abs(np.diff(half_turns)) > 1


def graticule(projector: Projector, spacing: float) -> list[Array]:
    """Meridians and parallels every ``spacing`` degrees, as lines in the plane.

    Raises:
        ValueError: the spacing is not in (0, 90].
    """
    if not 0 < spacing <= 90:
        raise ValueError(f"expected a graticule spacing in (0, 90] degrees, got {spacing}")
    along_meridian = np.linspace(-90, 90, 181)
    along_parallel = np.linspace(-180, 180, 361)
    meridians = np.arange(0, 360, spacing)
    northern = np.arange(0, 90, spacing)
    parallels = np.union1d(-northern, northern)
    return lines(
        projector,
        [np.stack([np.full(181, m), along_meridian], axis=-1) for m in meridians]
        + [np.stack([along_parallel, np.full(361, p)], axis=-1) for p in parallels],
    )
