"""Writing maps and coefficients, whole or not at all, with their provenance.

.nc            NetCDF 4 with CF metadata, compressed float32
.zarr          the same as a Zarr folder
.fits          HEALPix FITS that ``healpy.read_map`` reads, a column for each map
.safetensors   coefficients
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import healpy
import numpy as np
import xarray as xr
from safetensors.torch import save_file
from torch import Tensor

from spherediff import harmonics
from spherediff._files import atomic_write, require_writable, require_writable_tree
from spherediff.data.archive import sample_dimension

_MAP_SUFFIXES = (".nc", ".zarr", ".fits")
_MAX_COLUMNS = 999  # of a FITS table


def write(
    data: xr.Dataset | Tensor,
    path: str | os.PathLike[str],
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write maps or coefficients; the suffix of ``path`` says how.  Replaces what is there.

    Args:
        data: maps in normal form, as :meth:`Encoder.decode` makes them, for ``.nc``, ``.zarr``
            and ``.fits`` (HEALPix only); coefficients (..., (lmax+1)²) for ``.safetensors``.
        path: where to; missing folders are made.
        attrs: what to record with them: command, version, seed.

    Returns:
        The path.

    Raises:
        IsADirectoryError: the path is a folder, other than of Zarr.
        PermissionError: the path cannot be written.
        TypeError: ``data`` is neither.
        ValueError: the suffix is none of these or does not suit the data, the maps do not fit
            into a FITS table, or a Zarr store would replace something else.
    """
    path = Path(path)
    attrs = {key: _plain(value) for key, value in (attrs or {}).items()}
    _require_suffix(data, path)
    _require_free(path)
    with atomic_write(path) as temporary:
        if isinstance(data, Tensor):
            _write_coefficients(data, temporary, attrs)
        elif path.suffix == ".fits":
            _write_fits(data, temporary, attrs)
        elif path.suffix == ".zarr":
            _prepared(data, attrs).to_zarr(temporary, mode="w", consolidated=False)
            if path.is_dir():  # a folder cannot be renamed onto another one
                shutil.rmtree(path)
        else:
            encoding = {n: {"zlib": True, "complevel": 4} for n in data.data_vars}
            _prepared(data, attrs).to_netcdf(temporary, engine="h5netcdf", encoding=encoding)
    return path


def require_room(path: Path, samples: int, variables: int) -> None:
    """Check, before long work begins, that :func:`write` will be able to write its result.

    Args:
        path: where to, with a suffix that suits.
        samples: how many.
        variables: of each.

    Raises:
        IsADirectoryError: ``path`` is a folder, other than of Zarr.
        PermissionError: it cannot be written.
        ValueError: a Zarr store would replace something else, or the maps do not fit into a FITS
            table.
    """
    _require_free(path)
    if path.suffix == ".fits":
        _require_columns(samples, variables)


def _require_suffix(data: xr.Dataset | Tensor, path: Path) -> None:
    if isinstance(data, Tensor):
        if path.suffix != ".safetensors":
            raise ValueError(f"coefficients are written to .safetensors, got {path}")
        harmonics.band_limit(data.shape[-1])
        return
    if not isinstance(data, xr.Dataset):
        raise TypeError(f"expected an xarray.Dataset or a torch.Tensor, got {type(data).__name__}")
    if path.suffix not in _MAP_SUFFIXES:
        raise ValueError(f"maps are written to {', '.join(_MAP_SUFFIXES)}, got {path}")
    if path.suffix == ".fits" and "cell" not in data.dims:
        raise ValueError(
            "FITS files hold HEALPix maps: decode the coefficients on a HEALPix grid, or write to"
            " .nc or .zarr"
        )


def _require_free(path: Path) -> None:
    if path.suffix != ".zarr":
        require_writable(path)
        return
    store = any((path / name).exists() for name in ("zarr.json", ".zgroup"))
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not (store or empty):
        raise ValueError(f"{path} is there but no Zarr store, so it is not replaced")
    require_writable_tree(path)


def _require_columns(samples: int, variables: int) -> None:
    if samples * variables > _MAX_COLUMNS:
        raise ValueError(
            f"{samples} samples of {variables} variables do not fit into the {_MAX_COLUMNS}"
            " columns of a FITS table: write fewer, or write to .nc or .zarr"
        )


def _plain(value: Any) -> str | float | np.number:
    """What every format can store as an attribute."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return value
    return str(value)


def _card(text: str) -> str:
    """FITS headers are one line of ASCII."""
    return " ".join(text.split()).encode("ascii", "replace").decode()


def _prepared(ds: xr.Dataset, attrs: dict[str, Any]) -> xr.Dataset:
    """float32 fields without the packing of the file they came from, and the attributes."""
    fields = {name: field.astype(np.float32) for name, field in ds.data_vars.items()}
    prepared = ds.assign(fields).drop_encoding().assign_attrs({"Conventions": "CF-1.10"} | attrs)
    for variable in prepared.coords.values():
        if variable.dtype.kind == "f":
            variable.encoding["_FillValue"] = None  # CF: coordinates have no missing values
    return prepared


def _write_coefficients(a: Tensor, path: Path, attrs: dict[str, Any]) -> None:
    metadata = {key: str(value) for key, value in attrs.items()}
    save_file({"coefficients": a.detach().cpu().contiguous()}, path, metadata=metadata)


def _write_fits(ds: xr.Dataset, path: Path, attrs: dict[str, Any]) -> None:
    """A column for each sample of each variable, named UWND_1, UWND_2, …, sample by sample."""
    sample = sample_dimension(ds)
    ds = ds if sample in ds.dims else ds.expand_dims(sample)
    count = ds.sizes[sample]
    _require_columns(count, len(ds.data_vars))
    maps, names, units = [], [], []
    for k in range(count):
        for name, field in ds.data_vars.items():
            values = field.isel({sample: k}).values
            maps.append(np.where(np.isfinite(values), values, healpy.UNSEEN))
            names.append(str(name) if count == 1 else f"{name}_{k + 1}")
            units.append(str(field.attrs.get("units", "")))
    header = [("HISTORY", _card(f"{key}: {value}")) for key, value in attrs.items()]
    healpy.write_map(
        path,
        maps,
        nest=ds["crs"].attrs["healpix_order"] == "nested",
        dtype=np.float32,
        fits_IDL=False,  # rows of 1024 pixels do not exist for every nside
        column_names=names,
        column_units=units,
        extra_header=header,
        overwrite=True,
    )
