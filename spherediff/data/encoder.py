"""From maps in physical units to standardised anomalies of coefficients, and back.

For each variable (channel) c, with its pointwise transform T_c, climatology β, local amplitude K_c
and scale s_c,

    encode   a = analysis(T_c(map)),  x = K_c⁻¹(a − Σ_j D_j(t) β_j) / s_c
    decode   a = s_c K_c x + Σ_j D_j(t) β_j,  map = T_c⁻¹(synthesis(a))

Two variables may be the components of a vector field; their channels are then its divergent and its
rotational part, with T the identity and K = 1 (:mod:`spherediff.data.channels`).
K multiplies by a smooth map of the local standard deviation (:mod:`spherediff.data.amplitude`),
the identity unless asked for.  s_c is the standard deviation of what is left over the training
samples and the sphere: by Parseval s_c² = (1/N) Σ_samples (1/4π) Σ_i (s_c x_i)².  It does not
depend on the degree, so that the spectrum keeps its shape.  D are the columns of
:mod:`spherediff.data.climatology`.

Maps are read, transformed and analysed chunk by chunk in float64; only coefficients are kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from spherediff import harmonics
from spherediff._config import from_config, to_config
from spherediff.data import climatology as climatologies
from spherediff.data.amplitude import Amplitude
from spherediff.data.archive import (
    grid_coordinates,
    grid_of,
    normalise,
    sample_dimension,
)
from spherediff.data.channels import Channels, Pair, pairs, require_vectors
from spherediff.data.climatology import Climatology, Constant
from spherediff.data.maps import BATCH, fitted
from spherediff.data.transforms import Identity, Transform, transform_from_config
from spherediff.grids import Grid

_LOG = logging.getLogger(__name__)

_FORMAT = 2
_MUCH_LOST = 0.05  # fraction of variance beyond lmax that deserves a warning
_KEPT_ATTRS = ("units", "long_name", "standard_name")


@dataclass(frozen=True)
class Encoder:
    """Maps ↔ standardised anomalies of coefficients, shape (samples, channels, (lmax+1)²).

    Made by :meth:`fit` or :meth:`from_state`.

    Attributes:
        names: the variables, one for each channel.
        attrs: ``units``, ``long_name`` and ``standard_name`` of each, where the archive has them.
        transforms: the pointwise transform of each.
        lmax: band limit.
        climatology: the model of the yearly cycle.
        cycle: its coefficients β, in transformed units, float64 (columns, channels, n).
        amplitude: K, with σ of geometric mean one.
        scale: s_c in transformed units, float64 (channels,).
        truncated: fraction of the training samples' variance (about the time mean, in transformed
            units, averaged over the sphere) that lies beyond lmax and is lost; float64
            (channels,); of a vector field that of its two components together, twice.
        vectors: the eastward and the northward component of each vector field.
    """

    names: tuple[str, ...]
    attrs: tuple[dict[str, str], ...]
    transforms: tuple[Transform, ...]
    lmax: int
    climatology: Climatology
    cycle: Tensor
    amplitude: Amplitude
    scale: Tensor
    truncated: Tensor
    vectors: tuple[Pair, ...] = ()

    @classmethod
    def fit(
        cls,
        ds: xr.Dataset,
        variables: str | Sequence[str] | None = None,
        *,
        lmax: int,
        transform: Mapping[str, Transform] | None = None,
        climatology: Climatology = Constant(),
        amplitude_degree: int = 0,
        vectors: Sequence[Sequence[str]] = (),
    ) -> Encoder:
        """Fit transforms, climatology and scale to training samples.

        Args:
            ds: the training samples, and only these.
            variables: the channels, in order; by default all fields of ``ds``.
            lmax: band limit, at most what the grid supports.
            transform: pointwise transform by variable; Identity for the others.
            climatology: what to remove from each coefficient.
            amplitude_degree: highest degree to which the map of the local standard deviation is
                resolved, in channels where that makes held-out samples likelier; 0 for the same
                everywhere; vector fields keep theirs.
            vectors: pairs of variables that are the eastward and the northward component of a
                vector field, ``(("u", "v"),)``; their channels are the coefficients of its
                divergent (E) and of its rotational part (B).

        Raises:
            ValueError: the grid is regional or irregular or too coarse for ``lmax``; a variable
                is missing, constant, or has missing or infinite values; fewer than two samples;
                no dates for a climatology that needs them, or too few samples for it; a vector
                field whose components are not both there, differ in units or have a transform.
        """
        ds = normalise(ds, variables)
        names = _names(ds, variables)
        grid = grid_of(ds)
        count = ds.sizes[sample_dimension(ds)]
        if count < 2:
            raise ValueError(f"fitting needs at least two samples, got {count}")
        _require_band_limit(grid, lmax)
        design = climatology.design(_times(ds), count)
        unfitted = Channels(names, _transforms(names, transform or {}), pairs(vectors))
        require_vectors(unfitted, ds)
        transforms = tuple(
            fitted(ds[name], one, grid)
            for name, one in zip(names, unfitted.transforms, strict=True)
        )
        channels = replace(unfitted, transforms=transforms)
        a, lost = channels.analysed_with_residual(ds, grid, lmax)
        cycle = climatologies.fit(design, a.reshape(count, -1)).reshape(-1, *a.shape[1:])
        anomalies = a - np.einsum("sk,kcn->scn", design, cycle)
        _require_variability(channels, anomalies, a, climatology)
        amplitude = _amplitude(torch.from_numpy(anomalies), channels.scalars, amplitude_degree)
        x = amplitude.divide(torch.from_numpy(anomalies))
        scale = (x.square().sum(-1).mean(0) / (4 * math.pi)).sqrt()
        kept = a.var(axis=0).sum(-1) / (4 * math.pi)
        truncated = channels.pooled(lost) / channels.pooled(lost + kept)
        for name, fraction in zip(names, truncated, strict=True):
            level = logging.WARNING if fraction > _MUCH_LOST else logging.INFO
            _LOG.log(level, "%s: %.2g of the variance is beyond lmax = %d", name, fraction, lmax)
        return cls(
            names,
            tuple(_kept_attrs(ds[name]) for name in names),
            transforms,
            lmax,
            climatology,
            torch.from_numpy(cycle),
            amplitude,
            scale,
            torch.from_numpy(truncated),
            channels.vectors,
        )

    @property
    def channels(self) -> Channels:
        """Which variables, and which parts of vector fields, the channels are."""
        return Channels(self.names, self.transforms, self.vectors)

    @property
    def units(self) -> tuple[str, ...]:
        """Physical units of each channel; "1" where the archive gives none."""
        return tuple(attrs.get("units", "1") for attrs in self.attrs)

    @property
    def transformed_units(self) -> tuple[str, ...]:
        """Units of the coefficients of each channel; "" where a transform leaves none."""
        plain = (isinstance(transform, Identity) for transform in self.transforms)
        return tuple(u if known else "" for u, known in zip(self.units, plain, strict=True))

    def encode(self, ds: xr.Dataset, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standardised anomalies of an archive, chunk by chunk.

        Args:
            ds: an archive with the encoder's variables and units, on any grid that supports lmax.
            dtype: of the result.

        Returns:
            Shape (samples, channels, (lmax+1)²).

        Raises:
            ValueError: as for :meth:`fit`, or units differ from those of the training samples.
        """
        ds = normalise(ds, list(self.names))
        self._require_units(ds)
        grid = grid_of(ds)
        _require_band_limit(grid, self.lmax)
        times, count = _times(ds), ds.sizes[sample_dimension(ds)]
        design = torch.from_numpy(self.climatology.design(times, count))
        anomalies = torch.empty(
            count, len(self.names), harmonics.count(self.lmax), dtype=torch.float64
        )
        for part in self.channels.analyses(ds, grid, self.lmax):
            cycle = torch.tensordot(design[part.samples], self.cycle[:, part.channel], 1)
            anomalies[part.samples, part.channel] = part.coefficients - cycle
        return self.standardise(anomalies).to(dtype)

    def encode_training(self, ds: xr.Dataset, dtype: torch.dtype = torch.float32) -> Tensor:
        """:meth:`encode` of the samples that the encoder was fitted to, to learn from.

        Anomalies from a cycle that was fitted to them vary less than others do, which matters for
        short archives: they are multiplied by :func:`~spherediff.data.climatology.inflation`.
        """
        x = self.encode(ds, dtype)
        return climatologies.inflation(self.climatology, len(x)) * x

    def standardise(self, anomalies: Tensor) -> Tensor:
        """x = K⁻¹ a/s for anomalies in transformed units, shape (samples, channels, n); float64."""
        parts = [self.amplitude.divide(part) for part in anomalies.split(BATCH)]
        return torch.cat(parts) / self.scale[:, None]

    def anomalies(self, x: Tensor) -> Tensor:
        """s K x in transformed units, float64 on the CPU: :meth:`standardise` undone."""
        return self.amplitude.multiply(x.detach().cpu().double() * self.scale[:, None])

    def decode(self, x: Tensor, grid: Grid, time: Any = None) -> xr.Dataset:
        """Maps in physical units on ``grid``, with CF metadata.

        Args:
            x: standardised anomalies, shape (samples, channels, (lmax+1)²).
            grid: where to evaluate them: any grid, or Points.
            time: date of each sample, or one for all (datetime64, cftime, ISO text, or a
                DataArray such as ``ds.time``, whose dimension the result then has); needed if the
                climatology varies with the time of the year.

        Returns:
            float32 fields (sample, …) with a coordinate ``time`` where it is given.  Log1p and
            SquareRoot give no value below 0.

        Raises:
            ValueError: the shape of ``x`` is another, or dates are missing or too few.
        """
        dates = None if time is None else climatologies.dates_of(time, len(x))
        sample = "sample" if dates is None else str(dates.dims[0])
        a = self.restore(x, dates)
        values = np.empty((len(self.names), len(a), *grid.shape), np.float32)
        for k in range(0, len(a), BATCH):
            maps = self.channels.maps(a[k : k + BATCH], grid)
            values[:, k : k + BATCH] = maps.swapaxes(0, 1)
        dims, coords = grid_coordinates(grid)
        mapping = {"grid_mapping": "crs"} if "crs" in coords else {}
        fields = {
            name: xr.Variable((sample, *dims), field, attrs | {"units": units} | mapping)
            for name, field, attrs, units in zip(
                self.names, values, self.attrs, self.units, strict=True
            )
        }
        dated = {} if dates is None else {"time": dates.variable}
        return xr.Dataset(fields, coords | dated, {"Conventions": "CF-1.10"})

    def restore(self, x: Tensor, time: Any = None) -> Tensor:
        """Coefficients in transformed units, before synthesis; arguments as :meth:`decode`.

        Returns:
            float64 tensor on the CPU, shape (samples, channels, (lmax+1)²).
        """
        expected = (len(self.names), harmonics.count(self.lmax))
        if x.ndim != 3 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"expected anomalies of shape (samples, {expected[0]}, {expected[1]}) for"
                f" {', '.join(self.names)} at lmax = {self.lmax}, got {tuple(x.shape)}"
            )
        dates = None if time is None else climatologies.dates_of(time, len(x))
        return self.anomalies(x) + self.climatology_at(dates, len(x))

    def climatology_at(self, time: xr.DataArray | None, count: int) -> Tensor:
        """Climatology Σ_j D_j(t) β_j of ``count`` samples, float64 (count, channels, n)."""
        design = torch.from_numpy(self.climatology.design(time, count))
        return torch.einsum("sk,kcn->scn", design, self.cycle)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A JSON-able configuration and tensors, from which :meth:`from_state` makes the same."""
        channels = [
            {"name": name, "attrs": dict(attrs), "transform": to_config(transform)}
            for name, attrs, transform in zip(self.names, self.attrs, self.transforms, strict=True)
        ]
        config = {
            "format": _FORMAT,
            "lmax": self.lmax,
            "channels": channels,
            "climatology": to_config(self.climatology),
            "vectors": [list(pair) for pair in self.vectors],
        }
        tensors = {"cycle": self.cycle, "log_std": self.amplitude.log_std}
        return config, tensors | {"scale": self.scale, "truncated": self.truncated}

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Encoder:
        """The encoder of :meth:`state`, also after a passage through JSON and safetensors.

        Raises:
            ValueError: another format, a missing entry or a tensor of another shape.
        """
        if config.get("format") != _FORMAT:
            raise ValueError(f"expected an encoder of format {_FORMAT}, got {config.get('format')}")
        missing = [k for k in ("lmax", "channels", "climatology") if k not in config]
        missing += [k for k in ("cycle", "log_std", "scale", "truncated") if k not in tensors]
        if missing:
            raise ValueError(f"the encoder's state lacks {', '.join(missing)}")
        channels = config["channels"]
        climatology = from_config(config["climatology"], climatologies.KINDS, "climatology")
        shape = (climatology.columns(), len(channels), harmonics.count(config["lmax"]))
        cycle = tensors["cycle"]
        if tuple(cycle.shape) != shape or tuple(tensors["scale"].shape) != shape[1:2]:
            raise ValueError(f"expected a climatology of shape {shape}, got {tuple(cycle.shape)}")
        return cls(
            tuple(c["name"] for c in channels),
            tuple(dict(c["attrs"]) for c in channels),
            tuple(transform_from_config(c["transform"]) for c in channels),
            config["lmax"],
            climatology,
            cycle.double(),
            Amplitude(tensors["log_std"]),
            tensors["scale"].double(),
            tensors["truncated"].double(),
            pairs(config.get("vectors", ())),
        )

    def _require_units(self, ds: xr.Dataset) -> None:
        for name, expected in zip(self.names, self.units, strict=True):
            found = ds[name].attrs.get("units", "1")
            if found != expected:
                raise ValueError(
                    f"{name} is in {found!r}, but the encoder was fitted in {expected!r}: convert"
                    " it and set its units attribute"
                )


def _names(ds: xr.Dataset, variables: str | Sequence[str] | None) -> tuple[str, ...]:
    if variables is None:
        return tuple(str(name) for name in ds.data_vars)
    return (variables,) if isinstance(variables, str) else tuple(variables)


def _transforms(
    names: tuple[str, ...], transform: Mapping[str, Transform]
) -> tuple[Transform, ...]:
    unknown = [name for name in transform if name not in names]
    if unknown:
        raise ValueError(
            f"a transform is given for {', '.join(unknown)}, but the variables are"
            f" {', '.join(names)}"
        )
    return tuple(transform.get(name, Identity()) for name in names)


def _kept_attrs(field: xr.DataArray) -> dict[str, str]:
    return {key: str(field.attrs[key]) for key in _KEPT_ATTRS if key in field.attrs}


def _times(ds: xr.Dataset) -> xr.DataArray | None:
    """Dates of the samples; None where the dataset has none."""
    return ds["time"] if "time" in ds.coords and ds["time"].ndim == 1 else None


def _require_band_limit(grid: Grid, lmax: int) -> None:
    if not 0 <= lmax <= grid.max_lmax:
        raise ValueError(
            f"expected 0 ≤ lmax ≤ {grid.max_lmax}, the largest that {grid!r} supports, got {lmax}"
        )


def _amplitude(anomalies: Tensor, scalars: list[int], degree: int) -> Amplitude:
    """That of the scalar channels; one everywhere for the parts of vector fields."""
    if not scalars:
        return Amplitude(torch.zeros(anomalies.shape[1], 1))
    found = Amplitude.likeliest(anomalies[:, scalars], degree).log_std
    log_std = found.new_zeros(anomalies.shape[1], found.shape[-1])
    log_std[scalars] = found
    return Amplitude(log_std)


def _require_variability(
    channels: Channels,
    anomalies: NDArray[np.float64],
    a: NDArray[np.float64],
    climatology: Climatology,
) -> None:
    """Refuse a channel without variance, of a vector field beside that of its other part."""
    scale, magnitude = (
        np.sqrt(np.square(v).sum(-1).mean(0) / (4 * math.pi)) for v in (anomalies, a)
    )
    whole = np.sqrt(channels.pooled(np.square(magnitude)))
    for label, s, size, total in zip(channels.labels, scale, magnitude, whole, strict=True):
        if s <= 1e-9 * total or not np.isfinite(s):
            zero = size <= 1e-9 * total
            what = "zero everywhere" if zero else "constant after removing the climatology"
            raise ValueError(
                f"{label} is {what} ({climatology!r}) in the training samples: there is nothing to"
                " learn; leave the variable out (of a vector field encode the potential of the"
                " other part as a scalar), or give more samples"
            )
