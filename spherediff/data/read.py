"""Opening archives: NetCDF, Zarr, GRIB and HEALPix FITS through xarray, lazily.

The format is told by the first bytes of the file, not by its name, and the result is in the
normal form of :mod:`spherediff.data.archive`.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array
import healpy
import numpy as np
import xarray as xr
from astropy.io import fits
from dask.delayed import delayed
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spherediff.data.archive import grid_of, normalise, sample_dimension, spatial_dimensions

PathLike = str | os.PathLike[str]


def open(
    path: PathLike | Sequence[PathLike],
    variables: str | Sequence[str] | None = None,
    *,
    select: Mapping[str, Any] | None = None,
    ordering: str | None = None,
) -> xr.Dataset:
    """Open an archive of global maps, without reading the maps.

    Args:
        path: a NetCDF (3 or 4), GRIB or HEALPix FITS file or a Zarr folder; several of them are
            joined along the samples.  The maps of one FITS file are variables with one sample.
        variables: names of the fields to keep, in order; by default all that lie on a sphere, in
            the order of the file (Zarr: of their names).
        select: value of each dimension besides space and samples, such as ``{"lev": 850}``.
        ordering: "ring" or "nested", for HEALPix data that do not say so themselves.

    Returns:
        A dataset in the normal form of :mod:`spherediff.data.archive`: fields
        (time, latitude, longitude), (sample, …) or (…, cell), chunked with dask.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: GRIB without ``cfgrib``.
        ValueError: the format is unknown, the file is truncated or corrupted, or it holds no
            global fields; see :func:`normalise`.  Or several files that differ in variables,
            units, dimensions or grids.
    """
    if isinstance(path, str | os.PathLike):
        ds = open_stored(Path(path))
        return normalise(ds, variables, select=select, ordering=ordering)
    parts = [open(p, variables, select=select, ordering=ordering) for p in path]
    if not parts:
        raise ValueError("expected at least one file, got an empty list of paths")
    for other, part in zip(path[1:], parts[1:], strict=True):
        _require_alike(path[0], parts[0], other, part)
    return xr.concat(
        parts, dim=sample_dimension(parts[0]), join="exact", coords="minimal", compat="override",
        data_vars="minimal", combine_attrs="override",
    )  # fmt: skip


def _require_alike(first: PathLike, one: xr.Dataset, second: PathLike, other: xr.Dataset) -> None:
    """Refuse to join files whose values do not mean the same.

    Raises:
        ValueError: they differ.
    """
    for what, describe in _SHARED.items():
        found, expected = describe(other), describe(one)
        if found != expected:
            raise ValueError(
                f"cannot join {first} and {second}, whose {what} differ: {expected}, and {found};"
                " bring them to the same first, or choose what they share by variables="
            )


def _variables(ds: xr.Dataset) -> str:
    return " ".join(sorted(map(str, ds.data_vars)))


def _units(ds: xr.Dataset) -> str:
    names = sorted(map(str, ds.data_vars))
    return ", ".join(f"{name} in {ds[name].attrs.get('units', '1')!r}" for name in names)


def _dimensions(ds: xr.Dataset) -> str:
    return " × ".join((sample_dimension(ds), *spatial_dimensions(ds)))


def _grid(ds: xr.Dataset) -> str:
    if "cell" in ds.dims:
        attrs = ds["crs"].attrs
        return f"HEALPix of nside {attrs['healpix_nside']}, {attrs['healpix_order']}"
    axes = (ds[name].values.astype(float) for name in spatial_dimensions(ds))
    return " × ".join(np.array2string(axis, threshold=4, edgeitems=2) for axis in axes)


_SHARED = {"variables": _variables, "units": _units, "dimensions": _dimensions, "grids": _grid}


def fill(ds: xr.Dataset, value: float | str) -> xr.Dataset:
    """Replace missing and infinite values, lazily; nothing else in the package ever does.

    Args:
        ds: a dataset in normal form.
        value: a number in the units of the fields, or "mean": the mean of the other samples at
            the point, and where a point has no value in any sample, the mean of these means over
            the sphere.

    Raises:
        ValueError: ``value`` is neither.
    """
    if isinstance(value, str):
        if value != "mean":
            raise ValueError(f"expected a number or 'mean' to fill with, got {value!r}")
        return ds.map(lambda field: _fill_mean(ds, field), keep_attrs=True)
    if not np.isfinite(value):
        raise ValueError(f"expected a finite number to fill with, got {value}")
    return ds.map(lambda field: field.where(np.isfinite(field), value), keep_attrs=True)


def _fill_mean(ds: xr.Dataset, field: xr.DataArray) -> xr.DataArray:
    valid = field.where(np.isfinite(field))
    mean = valid.mean(sample_dimension(ds))
    weights = xr.DataArray(grid_of(ds).area_weights.numpy(), dims=spatial_dimensions(ds))
    return valid.fillna(mean.fillna(mean.weighted(weights).mean())).assign_attrs(field.attrs)


def read_coefficients(path: PathLike) -> tuple[Tensor, dict[str, str]]:
    """Coefficients and attributes written by :func:`spherediff.data.write`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupted or holds something else.
    """
    _require_existing(Path(path))
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("coefficients"), dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"{path} holds no coefficients in safetensors format, or is truncated or corrupted:"
            f" {error}"
        ) from error


def _require_existing(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")


def open_stored(path: Path) -> xr.Dataset:
    """One file as it is, before it is brought into the normal form.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: GRIB without ``cfgrib``.
        ValueError: the format is unknown, or the file is truncated or corrupted.
    """
    _require_existing(path)
    kind = _format(path)
    if kind == "cfgrib" and importlib.util.find_spec("cfgrib") is None:
        raise ImportError(
            f"{path} is a GRIB file, which needs cfgrib: pip install 'spherediff[grib]'"
        )
    try:
        return _read_fits(path) if kind == "fits" else _read_xarray(path, kind)
    except PermissionError:
        raise
    # Every backend has exceptions of its own for a damaged file.
    except Exception as error:
        raise ValueError(
            f"cannot read {path} as {_NAMES[kind]}, so it is probably truncated or corrupted:"
            f" {type(error).__name__}: {error}"
        ) from error


_NAMES = {
    "h5netcdf": "NetCDF 4 (HDF5)",
    "scipy": "NetCDF 3",
    "zarr": "Zarr",
    "cfgrib": "GRIB",
    "fits": "HEALPix FITS",
}


def _format(path: Path) -> str:
    """The xarray engine for a file, or "fits".

    Raises:
        ValueError: none of the known formats.
    """
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
            return "zarr"
        raise ValueError(
            f"the folder {path} is no Zarr store: it has neither zarr.json nor .zgroup"
        )
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return "h5netcdf"
    if start[:4] in (b"CDF\x01", b"CDF\x02"):
        return "scipy"
    if start[:4] == b"GRIB":
        return "cfgrib"
    if start[:6] == b"SIMPLE" or (start[:2] == b"\x1f\x8b" and ".fits" in path.suffixes):
        return "fits"
    what = "is empty" if not start else f"starts with {start!r}"
    raise ValueError(
        f"{path} {what}: expected NetCDF 3 or 4, GRIB, HEALPix FITS or a Zarr folder; it may be"
        " another format, or damaged"
    )


def _read_xarray(path: Path, engine: str) -> xr.Dataset:
    # No index file beside a GRIB file; all metadata of a local Zarr store, consolidated or not.
    options = {"cfgrib": {"indexpath": ""}, "zarr": {"consolidated": False}}.get(engine)
    raw = xr.open_dataset(path, engine=engine, decode_cf=False, backend_kwargs=options)
    if engine == "scipy":
        _require_complete(raw, path)
    try:
        ds = xr.decode_cf(raw, decode_timedelta=False)
    except (ValueError, OverflowError) as error:
        warnings.warn(f"the times of {path} stay numbers: {error}", stacklevel=4)
        ds = xr.decode_cf(raw, decode_times=False, decode_timedelta=False)
    # The folders of a Zarr store have no order of their own.
    return ds[sorted(map(str, ds.data_vars))] if engine == "zarr" else ds


def _require_complete(raw: xr.Dataset, path: Path) -> None:
    """NetCDF 3 has no checksum: compare the size of the file with that of its arrays.

    Raises:
        OSError: the file is shorter.
    """
    expected, found = raw.nbytes, path.stat().st_size
    if found < expected:
        raise OSError(f"the arrays have {expected} bytes, the file only {found}")


def _read_fits(path: Path) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*truncated.*")
        with fits.open(path) as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
            if not tables:
                raise OSError("there is no binary table in the file")
            header: dict[str, Any] = dict(tables[0].header)
            columns: Any = list(tables[0].columns)  # pyright: ignore[reportArgumentType]
    if str(header.get("INDXSCHM", "IMPLICIT")).strip() == "EXPLICIT":
        columns = columns[1:]  # the first one numbers the pixels
    names = [str(column.name) for column in columns]
    units = [{"units": str(column.unit)} if column.unit else {} for column in columns]
    nside = int(header["NSIDE"])
    attrs = {"ordering": str(header["ORDERING"]).strip()} if "ORDERING" in header else {}
    fields = {
        _unique(name, names[:k]): xr.Variable(
            "cell", _lazy_map(path, k, nside), unit | {"long_name": name}
        )
        for k, (name, unit) in enumerate(zip(names, units, strict=True))
    }
    return xr.Dataset(fields, attrs=attrs)


def _unique(name: str, before: list[str]) -> str:
    return f"{name}_{before.count(name) + 1}" if name in before else name


def _lazy_map(path: Path, field: int, nside: int) -> dask.array.Array:
    values = delayed(_read_map, pure=True)(path, field)
    return dask.array.from_delayed(values, (12 * nside**2,), np.float64)


def _read_map(path: Path, field: int) -> np.ndarray:
    """One map in the ordering of the file; UNSEEN and masked values are missing."""
    nest: Any = None  # the ordering of the file, which healpy's annotation leaves out
    values = np.asarray(healpy.read_map(path, field=field, nest=nest, dtype=np.float64))
    return np.where(np.isclose(values, healpy.UNSEEN, rtol=1e-5, atol=0), np.nan, values)
