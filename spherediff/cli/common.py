"""What the commands share: provenance, options that name an archive or a grid, plain output."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from torch import Tensor

    from spherediff.data import Encoder
    from spherediff.data.climatology import Climatology
    from spherediff.data.transforms import Transform
    from spherediff.grids import Grid

_SPACINGS = (5.0, 3.0, 2.5, 2.0, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25, 0.125)
_VALUES_AT_ONCE = 2**24

Many = arg(help_behavior_hint="(default: all)")


@dataclass(frozen=True)
class Invocation:
    """The command line that is being run.

    Attributes:
        arguments: all after the program's name.
    """

    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["spherediff", *self.arguments])

    def record(self, seed: int | None = None, **more: Any) -> dict[str, Any]:
        """What every output keeps of how it was made."""
        seeded = {} if seed is None else {"seed": seed}
        return {
            "command": self.command,
            "spherediff_version": version("spherediff"),
            **seeded,
            **more,
        }


@dataclass(frozen=True)
class ArchiveOptions:
    """What to take from an archive.

    Attributes:
        variables: names of the fields to use.
        select: one value of each dimension besides space and samples, such as lev=850.
        ordering: of HEALPix pixels, for files that do not say it themselves.
        fill: replace missing values by this number (units of the field), or by "mean", the mean
            of the other samples there; without it, missing values are an error.
    """

    variables: Annotated[tuple[str, ...], Many] = ()
    select: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    ordering: Literal["ring", "nested"] | None = None
    fill: str | None = None

    def open(self, paths: tuple[str, ...]) -> xr.Dataset:
        """Open a bundled archive by name, or files.

        Raises:
            FileNotFoundError: neither a file nor a bundled archive.
            ValueError: no path, or what the archive lacks.
        """
        from spherediff import data

        if not paths:
            raise ValueError("expected an archive: a bundled name or the path of a file")
        variables = self.variables or None
        options: dict[str, Any] = {"select": _pairs(self.select), "ordering": self.ordering}
        if len(paths) == 1 and not Path(paths[0]).exists():
            ds = data.normalise(_load(paths[0]), variables, **options)
        elif all(".fits" in Path(path).suffixes for path in paths):
            ds = _gather(data.open(list(paths), **options))
            ds = data.normalise(ds, variables)
        else:
            ds = data.open(list(paths), variables, **options)
        if self.fill is None:
            return ds
        return data.fill(ds, self.fill if self.fill == "mean" else number(self.fill, "--fill"))


def _load(name: str) -> xr.Dataset:
    from spherediff import data

    try:
        return data.load(name)
    except ValueError as error:
        raise FileNotFoundError(f"there is no file {name}, and {error}") from error


def _gather(ds: xr.Dataset) -> xr.Dataset:
    """Columns UWND_1, UWND_2, … of a FITS file as samples of one variable."""
    import xarray as xr

    columns: dict[str, dict[int, xr.DataArray]] = {}
    for column, field in ds.data_vars.items():
        name, _, number = str(column).rpartition("_")
        if not (name and number.isdigit()):
            return ds
        columns.setdefault(name, {})[int(number)] = field.rename(name)
    if ds.sizes["sample"] > 1 or len({tuple(sorted(numbers)) for numbers in columns.values()}) > 1:
        return ds
    fields = {
        name: xr.concat([numbers[k] for k in sorted(numbers)], dim="sample", coords="minimal")
        for name, numbers in columns.items()
    }
    return xr.Dataset(fields, attrs=ds.attrs)


def _pairs(texts: tuple[str, ...]) -> dict[str, Any]:
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise ValueError(f"expected --select name=value, as in lev=850, got {text!r}")
        pairs[name] = number(value) if _is_number(value) else value
    return pairs


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def number(text: str, option: str = "") -> float:
    """A number as typed after an option.

    Raises:
        ValueError: it is none.
    """
    if not _is_number(text):
        raise ValueError(f"{option} expects a number, got {text!r}")
    return float(text)


def split_off(ds: xr.Dataset, held_out: float) -> tuple[xr.Dataset, xr.Dataset]:
    """Training samples and the last ones, in the order of time, never mixed.

    Samples that a coordinate ``test`` marks are left out of both.

    Args:
        ds: an archive in normal form.
        held_out: a fraction below 1, or a number of samples.

    Raises:
        ValueError: nothing would be left to train on, or to hold out.
    """
    from spherediff.data import sample_dimension

    sample = sample_dimension(ds)
    if "test" in ds.coords and ds["test"].dims == (sample,):
        ds = ds.isel({sample: (ds["test"].values == 0).nonzero()[0]})
    ds = _in_order_of_time(ds, sample)
    total = ds.sizes[sample]
    count = math.ceil(held_out * total) if held_out < 1 else int(held_out)
    if held_out <= 0 or (held_out >= 1 and held_out != count) or not 1 <= count <= total - 2:
        raise ValueError(
            f"--held-out must be a fraction between 0 and 1 or a number of samples that leaves at"
            f" least two of {total} to train on, got {held_out:g}"
        )
    return ds.isel({sample: slice(0, total - count)}), ds.isel({sample: slice(total - count, None)})


def _in_order_of_time(ds: xr.Dataset, sample: str) -> xr.Dataset:
    """Sorted by dates, else by years, so that of an ensemble all members are split alike."""
    import numpy as np

    for name in ("time", "year"):
        if name in ds.coords and ds[name].dims == (sample,):
            order = np.argsort(ds[name].values, kind="stable")
            return ds if (np.diff(order) == 1).all() else ds.isel({sample: order})
    return ds


def parse_climatology(text: str) -> Climatology:
    """``none``, ``constant``, ``monthly`` or ``harmonics:K``."""
    from spherediff.data import Constant, Harmonics, Monthly, NoClimatology

    plain: dict[str, Climatology] = {
        "none": NoClimatology(),
        "constant": Constant(),
        "monthly": Monthly(),
        "harmonics": Harmonics(),
    }
    name, _, number = text.lower().partition(":")
    if name == "harmonics" and number.isdigit():
        return Harmonics(int(number))
    if name not in plain or number:
        raise ValueError(
            f"unknown climatology {text!r}: expected none, constant, monthly or harmonics:3"
        )
    return plain[name]


def parse_transforms(texts: tuple[str, ...]) -> dict[str, Transform]:
    """``VARIABLE=sqrt``, ``VARIABLE=log1p:SCALE`` or ``VARIABLE=quantile``, also with a minimum."""
    from spherediff.data import Log1p, Quantile, SquareRoot

    transforms: dict[str, Transform] = {}
    for text in texts:
        variable, _, rule = text.partition("=")
        kind, _, parameter = rule.lower().partition(":")
        value = number(parameter, f"--transform {text}") if parameter else None
        if kind == "log1p":
            transforms[variable] = Log1p() if value is None else Log1p(value)
        elif kind == "quantile":
            transforms[variable] = Quantile(lower=value)
        elif kind == "sqrt" and value is None:
            transforms[variable] = SquareRoot()
        else:
            raise ValueError(
                f"unknown transform {text!r}: expected VARIABLE=log1p:SCALE, VARIABLE=sqrt or"
                " VARIABLE=quantile:MINIMUM"
            )
    return transforms


@dataclass(frozen=True)
class GridOptions:
    """Where to evaluate fields.

    Attributes:
        nside: HEALPix resolution, 12·nside² pixels; by default, for .fits, the first power of two
            with 2·nside ≥ lmax.
        grid: spacing of a latitude-longitude grid with poles in degrees, such as 2.5, or "gauss"
            for the Gauss-Legendre grid of lmax; by default, for .nc and .zarr, a spacing that
            resolves lmax twice over.
    """

    nside: int | None = None
    grid: str | None = None

    def resolve(self, path: Path, lmax: int) -> Grid | None:
        """The grid for this output; None for coefficients (.safetensors).

        Raises:
            ValueError: both options, an option without use, or one that cannot be understood.
        """
        from spherediff.grids import GaussLegendre, HEALPix

        if self.nside is not None and self.grid is not None:
            raise ValueError("--nside and --grid exclude each other: give one of them")
        if path.suffix == ".safetensors":
            if self.nside is not None or self.grid is not None:
                raise ValueError(f"{path} holds coefficients, which need no --nside or --grid")
            return None
        if path.suffix not in (".nc", ".zarr", ".fits"):
            raise ValueError(
                f"cannot write {path}: expected a name that ends in .nc, .zarr or .fits for maps,"
                " or in .safetensors for coefficients"
            )
        if path.suffix == ".fits" and self.grid is not None:
            raise ValueError("a FITS file holds HEALPix maps: give --nside, or write to .nc")
        if self.nside is not None:
            return HEALPix(self.nside)
        if path.suffix == ".fits":
            return HEALPix(2 ** max(0, math.ceil(math.log2(max(lmax, 1) / 2))))
        if self.grid == "gauss":
            return GaussLegendre(lmax)
        return _regular(lmax) if self.grid is None else _spaced(number(self.grid, "--grid"))


def _regular(lmax: int) -> Grid:
    return _spaced(next((s for s in _SPACINGS if 180 / s >= 2 * (lmax + 1)), _SPACINGS[-1]))


def _spaced(spacing: float) -> Grid:
    from spherediff.grids import LatLon

    try:
        return LatLon.regular(spacing)
    except ValueError as error:
        raise ValueError(f"--grid: {error}") from error


def decode(encoder: Encoder, x: Tensor, grid: Grid, time: np.ndarray | None) -> xr.Dataset:
    """Maps on a grid, a few at a time so that memory holds them once, with a progress bar."""
    import xarray as xr
    from tqdm.auto import tqdm

    size = max(1, _VALUES_AT_ONCE // (x.shape[1] * math.prod(grid.shape)))
    starts = tqdm(range(0, len(x), size), desc="maps", leave=False, disable=len(x) <= size)
    parts = [
        encoder.decode(x[k : k + size], grid, None if time is None else time[k : k + size])
        for k in starts
    ]
    return parts[0] if len(parts) == 1 else xr.concat(parts, dim="sample", coords="minimal")


def describe_channels(encoder: Encoder) -> dict[str, str]:
    """What a file of coefficients keeps of its channels.

    ``variables``, ``channels`` (the parts of vector fields by their names), ``transforms`` (JSON;
    :func:`spherediff.data.transforms.transform_from_config` makes each of them again) and
    ``units``, empty where a transform leaves none.
    """
    from spherediff._config import to_config

    return {
        "variables": " ".join(encoder.names),
        "channels": "; ".join(encoder.channels.labels),
        "transforms": json.dumps([to_config(one) for one in encoder.transforms]),
        "units": ", ".join(encoder.transformed_units),
    }


def parse_sampler(name: str) -> Any:
    """A class of :mod:`spherediff.sample` by its name on the command line."""
    from spherediff import sample

    samplers = {"flow": sample.ProbabilityFlow, "sde": sample.ReverseSDE, "heun": sample.Heun}
    return samplers[name]


def seeded(seed: int) -> Any:
    """A generator on the CPU.

    Raises:
        ValueError: a negative seed.
    """
    import torch

    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    return torch.Generator().manual_seed(seed)


def device(name: str) -> Any:
    """The device to compute on; ``auto`` is CUDA where there is one.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot compute on --device {name}: {error}") from error
    return found
