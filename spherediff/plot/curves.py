"""Spectra, marginal distributions and the course of a training run.

Spectra are drawn as variance per degree, (2ℓ+1) C_ℓ / 4π: their sum over ℓ is the pointwise
variance, averaged over the sphere.  If N independent maps are isotropic and Gaussian, then

    N (2ℓ+1) Ĉ_ℓ / C_ℓ  ~  χ² with N (2ℓ+1) degrees of freedom,

Ĉ_ℓ their mean empirical spectrum, so with the quantiles q of that law the interval
[N(2ℓ+1) Ĉ_ℓ / q_{0.975}, N(2ℓ+1) Ĉ_ℓ / q_{0.025}] holds the true C_ℓ with probability 0.95.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike
from scipy.stats import chi2
from torch import Tensor

from spherediff import harmonics
from spherediff.grids import Grid
from spherediff.plot.projection import Array, as_array

# Okabe & Ito's palette, which people with any colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("--", ":", "-.")
_GREY = "0.45"
_BINS = 80


@dataclass(frozen=True)
class Curves:
    """The artists of a diagram: its curves and its shaded areas by their labels."""

    ax: Axes
    lines: dict[str, Line2D]
    areas: dict[str, Artist]


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(7.0, 4.5), layout="constrained")[1] if ax is None else ax


def degree_spectrum(
    coefficients: Tensor | Mapping[str, Tensor],
    *,
    theory: Callable[[Tensor], Tensor] | Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ax: Axes | None = None,
    title: str = "",
    units: str = "",
) -> Curves:
    """Variance per degree of sets of maps with 95 % intervals, and of spectra, from ℓ = 1 up.

    Args:
        coefficients: N maps, shape (N, (lmax+1)²), or several such sets by name.
        theory: a spectrum C_ℓ as a function of ℓ (e.g. ``WhittleMatern``), or several by name.
        ax: axes to draw on; ``None`` makes a new pyplot figure.
        title: above the diagram.
        units: of the field; the axis has their square.

    Returns:
        The artists.  The interval of a set holds the true spectrum with probability 0.95 at each
        degree if its maps are independent, isotropic and Gaussian; correlated or anisotropic maps
        need a wider one.

    Raises:
        ValueError: no maps, coefficients of another shape, not finite, with no power above
            degree 0, or with lmax = 0.
    """
    sets = coefficients if isinstance(coefficients, Mapping) else {"mean": coefficients}
    theories = theory if isinstance(theory, Mapping) else {"theory": theory} if theory else {}
    if not sets:
        raise ValueError("expected at least one set of coefficients, got none")
    spectra = {name: _mean_spectrum(name, a) for name, a in sets.items()}
    ax = _axes(ax)
    lines: dict[str, Line2D] = {}
    areas: dict[str, Artist] = {}
    for (name, (spectrum, count)), colour in zip(spectra.items(), cycle(COLOURS)):
        ell = np.arange(1, len(spectrum))
        weight = (2 * ell + 1) / (4 * math.pi)
        low, high = _interval(spectrum[1:], count)
        areas[name] = ax.fill_between(
            ell, weight * low, weight * high, color=colour, alpha=0.25, linewidth=0
        )
        (lines[name],) = ax.plot(
            ell,
            weight * spectrum[1:],
            color=colour,
            linewidth=1.4,
            label=f"{name} of {count} maps" if name == "mean" else f"{name}, {count} maps",
        )
    degrees = torch.arange(max(len(spectrum) for spectrum, _ in spectra.values()))
    weight = (2 * degrees.numpy() + 1) / (4 * math.pi)
    for (name, function), style in zip(theories.items(), cycle(_STYLES)):
        values = weight * as_array(function(degrees))
        (lines[name],) = ax.plot(
            degrees[1:], values[1:], style, color="black", linewidth=1.2, label=name
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(1, len(degrees) - 1) if len(degrees) > 2 else None,
        xlabel=r"degree $\ell$",
        ylabel=r"variance per degree, $(2\ell+1)\,C_\ell\,/\,4\pi$" + _power(units, "²"),
        title=title,
    )
    _plain_numbers(ax.xaxis, (1, 2, 5))
    ax.grid(True, which="major", alpha=0.3)
    band = Patch(color=_GREY, alpha=0.3, linewidth=0)
    handles = [*lines.values(), band]
    names = [str(line.get_label()) for line in lines.values()]
    ax.legend(handles, [*names, r"95 % interval, $\chi^2$ with $N(2\ell+1)$ degrees of freedom"])
    return Curves(ax, lines, areas)


def _plain_numbers(axis: Axis, digits: Sequence[float]) -> None:
    """Label a logarithmic axis at these leading digits by numbers such as 0.5 or 20."""
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _power(units: str, exponent: str) -> str:
    """Units to a power, in brackets after the name of what is drawn."""
    if not units:
        return ""
    return f" [{units}{exponent}]" if units.isalpha() else f" [({units}){exponent}]"


def _mean_spectrum(name: str, coefficients: Tensor) -> tuple[Array, int]:
    """Mean empirical spectrum Ĉ_ℓ (lmax+1,) and the number of maps."""
    a = torch.as_tensor(coefficients).detach().cpu().double()
    if a.ndim != 2 or len(a) == 0:
        raise ValueError(
            f"{name}: expected coefficients of shape (maps, (lmax+1)²) of one channel,"
            f" got {tuple(a.shape)}"
        )
    if harmonics.band_limit(a.shape[-1]) == 0:
        raise ValueError(f"{name}: expected lmax ≥ 1, got a single coefficient a map")
    spectrum = harmonics.degree_spectrum(a).mean(dim=0).numpy()
    if not np.isfinite(spectrum).all():
        raise ValueError(f"{name}: some coefficients are not finite; nothing to average")
    if not (spectrum[1:] > 0).any():
        raise ValueError(f"{name}: the maps have no power above degree 0, no logarithm to draw")
    return spectrum, len(a)


def _interval(spectrum: Array, count: int) -> tuple[Array, Array]:
    """95 % interval of C_ℓ, ℓ = 1, 2, …, from the mean Ĉ_ℓ of ``count`` maps."""
    freedom = count * (2 * np.arange(1, len(spectrum) + 1) + 1)
    return (
        freedom * spectrum / chi2.ppf(0.975, freedom),
        freedom * spectrum / chi2.ppf(0.025, freedom),
    )


def marginals(
    archive: Tensor | ArrayLike,
    samples: Tensor | ArrayLike,
    *,
    grid: Grid | None = None,
    ax: Axes | None = None,
    title: str = "",
    units: str = "",
    quantity: str = "value",
) -> Curves:
    """Density of the values of an archive and of samples over all places and maps.

    Args:
        archive: values of any number of maps, shape (..., ``*grid.shape``).  Missing values (NaN)
            are left out.
        samples: the same, of any number of samples.
        grid: weighs each value by its area; ``None`` weighs all alike, right for HEALPix.
        ax: axes to draw on; ``None`` makes a new pyplot figure.
        title: above the diagram.
        units: of the values.
        quantity: what the values are, named on the axis.

    Returns:
        The artists: both histograms have the same 80 bins from the least to the greatest value.

    Raises:
        TypeError: complex values.
        ValueError: empty, infinite or all-missing values, or of another shape than the grid's.
    """
    sets = {
        "archive": _weighted(archive, grid, "archive"),
        "samples": _weighted(samples, grid, "samples"),
    }
    edges = np.histogram_bin_edges(np.concatenate([v for v, _ in sets.values()]), _BINS)
    densities = {
        name: np.histogram(v, edges, weights=w, density=True)[0] for name, (v, w) in sets.items()
    }
    ax = _axes(ax)
    area = ax.stairs(densities["archive"], edges, fill=True, color="0.75", label="archive")
    (line,) = ax.step(
        edges,
        np.r_[densities["samples"], densities["samples"][-1]],
        where="post",
        color=COLOURS[0],
        linewidth=1.4,
        label="samples",
    )
    ax.set(
        xlabel=f"{quantity} [{units}]" if units else quantity,
        ylabel="density" + _power(units, "⁻¹"),
        xlim=(edges[0], edges[-1]),
        title=title,
    )
    ax.legend()
    return Curves(ax, {"samples": line}, {"archive": area})


def _weighted(values: Tensor | ArrayLike, grid: Grid | None, name: str) -> tuple[Array, Array]:
    """The values that are there and the area of each, both flat."""
    array = as_array(values)
    area = np.ones(())
    if grid is not None:
        shape = tuple(grid.shape)
        if array.shape[-len(shape) :] != shape:
            raise ValueError(f"{name}: expected values of shape (..., *{shape}), got {array.shape}")
        area = as_array(grid.area_weights)
    present = ~np.isnan(array)
    if not present.any():
        raise ValueError(f"{name}: expected at least one value that is not missing, got only NaN")
    return array[present], np.broadcast_to(area, array.shape)[present]


def training_curve(
    metrics: Sequence[Mapping[str, Any]] | str | os.PathLike[str],
    *,
    reference: float | Mapping[str, float] | None = None,
    ax: Axes | None = None,
    title: str = "",
    ylabel: str = "denoising loss",
) -> Curves:
    """Training and held-out loss by step.

    Args:
        metrics: records with ``step`` and ``loss``, ``held_out`` or both, as they were measured;
            or the path of a JSON-lines file of them.  Of records with the same step, which a
            resumed run leaves, the last counts.
        reference: held-out loss of another denoiser, e.g. the Gaussian one, or several by name.
        ax: axes to draw on; ``None`` makes a new pyplot figure.
        title: above the diagram.
        ylabel: of the loss.

    Returns:
        The artists.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no records, one without ``step`` or any loss, or a line that is no JSON.
    """
    records = _read(metrics) if isinstance(metrics, str | os.PathLike) else list(metrics)
    if not records:
        raise ValueError("expected at least one record with step and loss, got none")
    for record in records:
        if "step" not in record or not {"loss", "held_out"} & record.keys():
            raise ValueError(
                f"expected records with step and loss or held_out, got one with {sorted(record)}"
            )
    last = {int(record["step"]): record for record in records}
    by_step = {step: last[step] for step in sorted(last)}
    references = (
        reference
        if isinstance(reference, Mapping)
        else {}
        if reference is None
        else {"reference": reference}
    )
    ax = _axes(ax)
    lines: dict[str, Line2D] = {}
    losses = {s: r["loss"] for s, r in by_step.items() if r.get("loss") is not None}
    (lines["training"],) = ax.plot(
        list(losses),
        list(losses.values()),
        color="0.7",
        linewidth=0.9,
        label="training",
    )
    held_out = {s: r["held_out"] for s, r in by_step.items() if r.get("held_out") is not None}
    if held_out:
        (lines["held-out"],) = ax.plot(
            list(held_out),
            list(held_out.values()),
            "o-",
            color=COLOURS[0],
            markersize=3.5,
            linewidth=1.4,
            label="held-out",
        )
    for (name, level), style in zip(references.items(), cycle(_STYLES)):
        lines[name] = ax.axhline(level, color=COLOURS[1], linestyle=style, label=name)
    ax.set(xlabel="step", ylabel=ylabel, title=title)
    ax.grid(True, alpha=0.3)
    ax.legend()
    return Curves(ax, lines, {})


def _read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON record, got {line[:60]!r}; if the run is"
                " still writing or was killed there, remove the line"
            ) from error
    return records
