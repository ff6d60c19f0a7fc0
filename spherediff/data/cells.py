"""Cells of coarse maps: what their values are means over.

The values of a map are taken to be those at its points where the map is so fine that a model of
degrees up to L hardly varies between them, by less than half a wave: spacing ≤ π/L.  A coarser map,
from another model, a reanalysis or an archive that was averaged, holds means over cells,

    (1/A_k) ∫ f dA over cell k,

unless it says that they are values at points (``cell_methods`` of the CF conventions, §7.3, with
the word "point").  Cells of latitude–longitude maps end midway between neighbouring coordinates,
and at a pole where the outermost is nearly as close; those of HEALPix maps are the pixels.

The integrals are sums over nodes: in latitude and longitude those of Gauss and Legendre, so many
that the quadrature is exact to 10⁻⁷ for degrees up to L; in HEALPix cells the centres of pixels
nested in them, so small that only degrees near L are wrong by a hundredth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import ducc0
import numpy as np
from numpy.typing import NDArray

from spherediff.grids import HEALPix, Points

_POLE = 1e-4  # degrees
_NEARLY = 0.3  # of the spacing, by which a cell may be larger to end at the pole


class Cells(NamedTuple):
    """Nodes of a quadrature for the mean over each cell.

    Attributes:
        nodes: those of one cell after those of the other, as many of each.
        weights: shape (cells, nodes of a cell), each row of sum one.
        extent: of the largest cell from side to side, radians.
    """

    nodes: Points
    weights: NDArray[np.float64]
    extent: float

    def of(self, chosen: NDArray[np.bool_]) -> Cells:
        """Some of the cells, a mask of shape (cells,)."""
        latitude, longitude = (
            axis.reshape(self.weights.shape)[chosen].ravel()
            for axis in (self.nodes.latitude, self.nodes.longitude)
        )
        return Cells(Points(latitude, longitude), self.weights[chosen], self.extent)


def of_rectangle(
    latitude: NDArray[np.float64], longitude: NDArray[np.float64], lmax: int, caps: bool
) -> Cells | None:
    """Cells of a map over latitudes × longitudes; None if its values are those at its points.

    Args:
        latitude: degrees, shape (nlat,), rising or falling.
        longitude: degrees, shape (nlon,), likewise.
        lmax: of the model.
        caps: a value at a pole is the mean over the whole cap around it.
    """
    if len(latitude) < 2 or len(longitude) < 2:
        return None
    south, north = np.sort(_edges(latitude), axis=1).T
    west, east = np.sort(_edges(longitude), axis=1).T
    size = math.radians(max((north - south).max(), (east - west).max()))
    if size * lmax <= math.pi:
        return None
    spacing = np.abs(np.diff(latitude)).max()
    south, north = (_to_pole(edge, spacing) for edge in (south, north))
    x, w = np.polynomial.legendre.leggauss(math.ceil(size * lmax / 2) + 4)
    parallels, meridians = (
        (high[:, None] + low[:, None] + x * (high - low)[:, None]) / 2
        for low, high in ((south, north), (west, east))
    )
    area = w * np.cos(np.radians(parallels))
    shape = len(latitude), len(longitude), len(x), len(x)
    lat, lon, weights = (
        np.broadcast_to(v, shape).copy()
        for v in (
            parallels[:, None, :, None],
            meridians[:, None, :],
            (area / area.sum(1, keepdims=True))[:, None, :, None] * w / 2,
        )
    )
    if caps:
        at_pole = np.abs(latitude) > 90 - _POLE
        lon[at_pole] = np.arange(len(x)) * 360 / len(x)
        weights[at_pole] = weights[at_pole].mean(-1, keepdims=True)
    cells = len(latitude) * len(longitude)
    return Cells(Points(lat.ravel(), lon.ravel()), weights.reshape(cells, -1), size)


def of_healpix(grid: HEALPix, lmax: int) -> Cells | None:
    """The pixels of a map; None if its values are those at the centres."""
    size = math.sqrt(math.pi / 3) / grid.nside
    if size * lmax <= math.pi:
        return None
    fine = grid.nside
    while fine < 2 * lmax:
        fine *= 2
    centres = ducc0.healpix.Healpix_Base(fine, "RING").pix2ang(np.arange(12 * fine**2))
    scheme = "RING" if grid.ordering == "ring" else "NEST"
    pixel = ducc0.healpix.Healpix_Base(grid.nside, scheme).ang2pix(centres)
    colatitude, longitude = np.degrees(centres[np.argsort(pixel, kind="stable")]).T
    nested = (fine // grid.nside) ** 2
    weights = np.full((grid.shape[0], nested), 1 / nested)
    return Cells(Points(90 - colatitude, longitude), weights, size)


def _edges(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each cell both, midway to its neighbours, shape (n, 2)."""
    middle = (axis[1:] + axis[:-1]) / 2
    first, last = 2 * axis[0] - middle[0], 2 * axis[-1] - middle[-1]
    edges = np.concatenate([[first], middle, [last]])
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _to_pole(edge: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """Edges in degrees, those near a pole or beyond it being put there."""
    return np.where(np.abs(edge) > 90 - _NEARLY * spacing, np.sign(edge) * 90, edge)
