"""The archives on the bench, split, as standardised anomalies of coefficients at lmax 31.

    x = (a − Σ_j D_j(t) β_j)/s      a: analysis of the transformed map, β: yearly cycle, s: scale

Every method is handed the same x and returns draws in the same units.  The maps that a method may
see are the training maps and the validation maps, which are for stopping and tuning.  Yearly cycle
and scale are fitted to both together.  Test maps are for the final table alone.

| name | variables | yearly cycle | validation | test |
|---|---|---|---|---|
| pr | log(1 + pr/0.5 mm), daily | 3 harmonics | last tenth of the rest | years 9, 10 |
| tas, u250 | of the daily archive | 3 harmonics | the same | the same |
| daily | tas, u250, √pr jointly | 3 harmonics | the same | the same |
| ensemble | annual tas of a model's ensemble | constant | one member | one member |
| winds | UWND, VWND, bundled | monthly means | last tenth of the rest | last 24 months |

Members of the ensemble share their forcing, so that it is split by member and never by year.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from spherediff import data
from spherediff.data import climatology

LMAX = 31
DAILY = "speedy-daily.nc"
ENSEMBLE = "tas-annual-ensemble.nc"

Parts = tuple[xr.Dataset, xr.Dataset, xr.Dataset]


@dataclass(frozen=True)
class Split:
    """An archive as the methods see it.

    Attributes:
        name: of the archive.
        encoder: made of training and validation maps.
        training, validation, test: standardised anomalies, each (N, channels, n), float32, in the
            order of time (the ensemble: of members, then years).
        labels: what a method that can be told something is told of each map: the time of the
            year where there is a yearly cycle, and of the ensemble the year, for its forcing.
        known_told, test_told: that of ``known`` and of ``test``, by name.
    """

    name: str
    encoder: data.Encoder
    training: Tensor
    validation: Tensor
    test: Tensor
    labels: data.Labels
    known_told: Mapping[str, xr.DataArray]
    test_told: Mapping[str, xr.DataArray]

    @property
    def known(self) -> Tensor:
        """Training and validation maps, in this order."""
        return torch.cat([self.training, self.validation])

    @property
    def tuning(self) -> tuple[Tensor, Tensor]:
        """Training and validation maps as anomalies from the cycle of the training maps alone.

        About the cycle of all of them a validation map is a combination of training maps: of
        monthly means of nine years, say, less the sum of the other eight anomalies of its month.
        """
        design = self.encoder.climatology.design(self.known_told.get("time"), len(self.known))
        first, x = len(self.training), self.known.double().flatten(1)
        cycle = design @ climatology.fit(design[:first], x[:first].numpy())
        anomalies = (x - torch.from_numpy(cycle)).view_as(self.known).float()
        return anomalies[:first], anomalies[first:]


@dataclass(frozen=True)
class _Recipe:
    file: str | None
    variables: tuple[str, ...]
    climatology: data.Constant | data.Harmonics | data.Monthly
    split: Callable[[xr.Dataset], Parts]
    transform: Mapping[str, data.Log1p | data.SquareRoot] = field(default_factory=dict)
    told: Mapping[str, type[data.Scalar]] = field(default_factory=dict)


def _by_flag(ds: xr.Dataset) -> Parts:
    """By the variable ``test``; the last tenth of the rest validates."""
    rest = ds.isel(time=ds.test.values == 0)
    cut = rest.sizes["time"] * 9 // 10
    return (
        rest.isel(time=slice(cut)),
        rest.isel(time=slice(cut, None)),
        ds.isel(time=ds.test.values == 1),
    )


def _by_member(ds: xr.Dataset) -> Parts:
    """All members but two train, the last but one validates, the last one tests."""
    *training, validation, test = np.unique(ds.member.values)
    return (
        ds.isel(sample=np.isin(ds.member.values, training)),
        ds.isel(sample=ds.member.values == validation),
        ds.isel(sample=ds.member.values == test),
    )


_RECIPES = {
    "pr": _Recipe(DAILY, ("pr",), data.Harmonics(3), _by_flag, {"pr": data.Log1p(0.5)}),
    "tas": _Recipe(DAILY, ("tas",), data.Harmonics(3), _by_flag),
    "u250": _Recipe(DAILY, ("u250",), data.Harmonics(3), _by_flag),
    "daily": _Recipe(
        DAILY, ("tas", "u250", "pr"), data.Harmonics(3), _by_flag, {"pr": data.SquareRoot()}
    ),
    "ensemble": _Recipe(
        ENSEMBLE, ("tas",), data.Constant(), _by_member, told={"year": data.Scalar}
    ),
    "winds": _Recipe(None, ("UWND", "VWND"), data.Monthly(), _by_flag),
}
NAMES = tuple(_RECIPES)


def load(name: str, folder: str | Path | None = None) -> Split:
    """An archive of :data:`NAMES`.

    Args:
        name: of the archive.
        folder: where the files of the daily archive and of the ensemble are; the winds come with
            the package.

    Raises:
        ValueError: no such archive, or it needs a folder.
        FileNotFoundError: the file is not in the folder.
    """
    recipe = _recipe(name)
    training, validation, test = recipe.split(_open(name, recipe, folder))
    known = _joined([training, validation])
    encoder = data.Encoder.fit(
        known,
        recipe.variables,
        lmax=LMAX,
        transform=recipe.transform,
        climatology=recipe.climatology,
    )
    labels = data.Labels.fit(known, recipe.told, climatology=recipe.climatology)
    x = encoder.encode(known)
    cut = training.sizes[data.sample_dimension(training)]
    return Split(
        name,
        encoder,
        x[:cut],
        x[cut:],
        encoder.encode(test),
        labels,
        {name: known[name] for name in labels.names},
        {name: test[name] for name in labels.names},
    )


def require(names: Sequence[str], folder: str | Path | None) -> None:
    """Check that the files of these archives are there; raises as :func:`load`."""
    for name in names:
        _path(name, _recipe(name), folder)


def _recipe(name: str) -> _Recipe:
    if name not in _RECIPES:
        raise ValueError(f"no archive {name!r}; there are {', '.join(NAMES)}")
    return _RECIPES[name]


def _path(name: str, recipe: _Recipe, folder: str | Path | None) -> Path | None:
    if recipe.file is None:
        return None
    if folder is None:
        raise ValueError(f"the archive {name} is read from {recipe.file}: name its folder")
    path = Path(folder) / recipe.file
    if not path.is_file():
        raise FileNotFoundError(f"the archive {name} is read from {recipe.file}: no {path}")
    return path


def _open(name: str, recipe: _Recipe, folder: str | Path | None) -> xr.Dataset:
    path = _path(name, recipe, folder)
    if path is None:
        return data.load("navy-winds")
    return data.open(path, recipe.variables)


def _joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    dim = data.sample_dimension(parts[0])
    return xr.concat(parts, dim=dim, data_vars="minimal", coords="minimal", compat="override",
                     join="override")  # fmt: skip
