"""The data and models that come with the package.

experiments/build_bundled_data.py makes the data, experiments/train_bundled_model.py the models.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from spherediff.data.read import open

_FOLDER = Path(__file__).parent
_ARCHIVES = {"navy-winds": "navy-winds.nc"}


def load(name: str) -> xr.Dataset:
    """A bundled archive, in the normal form of :mod:`spherediff.data.archive`.

    ``"navy-winds"``: observed (analysed) monthly surface winds of the world 1982–92, zonal
    ``UWND`` and meridional ``VWND`` in m/s, 132 × 73 × 144 with both poles (exact to lmax 71).  The
    coordinate ``test`` is 1 in the last 24 months, which are kept for testing.  US Navy Fleet
    Numerical Oceanography Center through NOAA, public domain, from Debian's package
    ferret-datasets; rounded to 0.2 m/s.

    Raises:
        ValueError: no such archive.
    """
    if name not in _ARCHIVES:
        raise ValueError(f"no bundled archive {name!r}; there is {', '.join(_ARCHIVES)}")
    return open(_FOLDER / _ARCHIVES[name])


def models() -> dict[str, Path]:
    """Directories of the trained models that come with the package, by name."""
    return {path.name: path for path in sorted((_FOLDER / "models").glob("*")) if path.is_dir()}


def coastlines() -> list[NDArray[np.float64]]:
    """Coastlines of the world at a resolution of about 20 km.

    Returns:
        Polylines of shape (n, 2): longitude in [−180, 180] and latitude, degrees.  None crosses
        the 180th meridian: lines are cut there.
    """
    with np.load(_FOLDER / "coastlines.npz", allow_pickle=False) as file:
        points, starts = file["hundredths"] / 100.0, file["starts"]
    return np.split(points, starts[1:-1])
