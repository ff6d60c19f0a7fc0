"""``spherediff sample``: new maps from a trained model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from spherediff._system import say
from spherediff.cli.common import (
    GridOptions,
    Invocation,
    decode,
    describe_channels,
    device,
    number,
    parse_sampler,
    seeded,
)

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from spherediff.data.observations import Reading
    from spherediff.model import Model

_YEAR = 2001  # of dates whose year has no meaning; no leap year


@dataclass(frozen=True)
class Sample:
    r"""Draw new maps from a trained model, in physical units.

    Where the model's archive has a yearly cycle, every sample belongs to a month; and a model that
    was trained with labels (spherediff train --label) is told one of each.  --where says which;
    of several values, or of all months, one is drawn at random for each sample and recorded in the
    output.  Unless the model is told the year, that of the dates has no meaning.  Sample k is the
    same whatever the count.

    --given draws maps that agree with what is known of one map: a table of stations (.csv with
    columns latitude, longitude, and the variables by name), or a map with missing values or of low
    resolution (NetCDF, FITS, …).  Standard errors are read from VARIABLE_error, else taken as 5 %
    of the variable's standard deviation.  The date is that of the file, or --where month= year=.

    For example, daily weather from the bundled model; 64 maps on a 2.5° grid; January on HEALPix;
    the coefficients; Julys of a model that is told the year, these years exaggerated; and weather
    that agrees with stations:
      spherediff sample --model speedy-daily --output weather.nc
      spherediff sample --model winds-model --count 64 --grid 2.5 --output samples.nc
      spherediff sample --model winds-model --where month=1 --nside 64 --output january.fits
      spherediff sample --model winds-model --count 1000 --output samples.safetensors
      spherediff sample --model ensemble-model --where month=7 year=1950,1951 --guidance 2 \
          --output julys.nc
      spherediff sample --model speedy-daily --given stations.csv --where month=7 --output maps.nc

    Attributes:
        model: folder that spherediff train wrote, or a model that comes with the package
            (speedy-daily).
        output: file to write: .nc or .zarr (latitude-longitude or HEALPix maps), .fits (HEALPix),
            .safetensors (coefficients of the transformed variables).
        count: number of samples.
        seed: of the random draws.
        sampler: flow (probability flow, a two-step rule), sde (reverse stochastic equation), or
            heun (probability flow, two evaluations a step).
        steps: of the sampler; by default as many as keep a Gaussian law within 1 %.
        where: values of labels, one or several after commas: month=12,1,2, year=1950, or any
            name that the model was trained with.
        given: files with observations, all of the same date.
        guidance: weight of the labels: 1 for the law of maps with these labels, above 1 for maps
            that show more of what is typical of them and vary less, 0 for maps whatever the label.
        batch: samples drawn at once; only memory and speed depend on it. A GPU is fast with more.
        device: cpu, cuda, cuda:1, …; auto takes CUDA where there is one.
        grid: where to evaluate the samples.
    """

    model: Path
    output: Path
    count: int = 16
    seed: int = 0
    sampler: Literal["flow", "sde", "heun"] = "flow"
    steps: int | None = None
    where: Annotated[
        tuple[str, ...], arg(metavar="NAME=VALUES", help_behavior_hint="(default: all months)")
    ] = ()
    given: Annotated[
        tuple[Path, ...] | None, arg(metavar="FILE", help_behavior_hint="(default: nothing)")
    ] = None
    guidance: float = 1.0
    batch: int = 16
    device: str = "auto"
    grid: Annotated[GridOptions, arg(name="")] = GridOptions()

    def run(self, invocation: Invocation) -> None:
        """Load, draw, evaluate, write."""
        from spherediff import data
        from spherediff.data import observations
        from spherediff.data.write import require_room
        from spherediff.model import Model

        if self.given == ():
            raise ValueError("--given expects at least one file with observations, got none")
        where, generator = device(self.device), seeded(self.seed)
        model = Model.load(self.model, where)
        encoder = model.encoder
        grid = self.grid.resolve(self.output, encoder.lmax)
        readings = [
            reading for path in self.given or () for reading in observations.read(path, encoder)
        ]
        date = _date_of(readings)
        values = self._draw_labels(model, date)
        time = _dates(values) if _dated(model) else None
        if time is not None and date is not None:
            time[:] = date
        told = {name: values[name] for name in model.labels.names if name in values}
        require_room(self.output, self.count, len(encoder.names))
        given = None
        if readings:
            given = model.observe(readings, None if time is None else time[0])
            say(f"{given.operator.size} observations; the Gaussian posterior first …")
        x = model.sample(
            self.count,
            generator=generator,
            time=time,
            labels=told,
            guidance=self.guidance,
            given=given,
            sampler=parse_sampler(self.sampler),
            steps=self.steps,
            batch=self.batch,
            progress=True,
        )
        record = invocation.record(self.seed, lmax=encoder.lmax)
        record |= {name: " ".join(map(str, drawn)) for name, drawn in values.items()}
        if grid is None:
            record |= describe_channels(encoder)
            data.write(encoder.restore(x, time).float(), self.output, record)
        else:
            maps = decode(encoder, x, grid, time)
            data.write(maps.assign_coords(_coordinates(told)), self.output, record)
        say(f"wrote {self.count} samples of {', '.join(encoder.names)} to {self.output}")

    def _draw_labels(self, model: Model, date: np.datetime64 | None) -> dict[str, np.ndarray]:
        """A value for each sample by name, as text; ``date`` is that of observations.

        Every name has a random stream of its own, so that neither the fields nor the values of
        another name depend on it.
        """
        import numpy as np

        choices = self._choices(model, date)
        return {
            name: np.random.default_rng([self.seed, *name.encode()]).choice(texts, size=self.count)
            for name, texts in choices.items()
        }

    def _choices(self, model: Model, date: np.datetime64 | None) -> dict[str, list[str]]:
        choices = {}
        for text in self.where:
            name, _, values = text.partition("=")
            if not name or "" in values.split(",") or name in choices:
                raise ValueError(
                    f"expected --where NAME=VALUE or NAME=VALUE,VALUE, each name once, got {text!r}"
                )
            choices[name] = values.split(",")
        labels = {part.name: part for part in model.labels.parts if part.name != "time"}
        known = {"month": "month, from 1 to 12"} if _dated(model) else {}
        known |= {name: str(part) for name, part in labels.items() if name not in known}
        unknown = [name for name in choices if name not in known]
        if unknown:
            told = "; ".join(known.values()) or "nothing that one could choose"
            raise ValueError(f"--where {unknown[0]}: the model is told {told}")
        if _dated(model):
            choices["month"] = _months(choices.get("month", [str(k) for k in range(1, 13)]))
            for text in choices.get("year", ()):
                number(text, "--where year")
        if date is not None:
            choices |= {
                name: _of_date(date, name, choices.get(name))
                for name in ("month", "year")
                if name in known
            }
        elif self.given and len(choices.get("month", ())) > 1:
            raise ValueError(
                "--given: the observations belong to one time of the year, but the files have no "
                "date: say --where month=1, …, 12, or add a column or coordinate time"
            )
        missing = [name for name in labels if name not in choices]
        if missing and self.guidance != 0:
            raise ValueError(
                f"--where {missing[0]}=… is missing: the model is told {known[missing[0]]}"
                " (--guidance 0 draws maps whatever the label)"
            )
        return choices


def _date_of(readings: list[Reading]) -> np.datetime64 | None:
    """The one date of all readings that have one."""
    dates = {one.date for one in readings if one.date is not None}
    if len(dates) > 1:
        found = ", ".join(sorted(map(str, dates)))
        raise ValueError(f"--given expects observations of one date, found {found}")
    return next(iter(dates), None)


def _of_date(date: np.datetime64, name: str, texts: list[str] | None) -> list[str]:
    """The month or the year to which observations belong, of those chosen, if any are."""
    own = getattr(date.item(), name)
    if texts is None:
        return [str(own)]
    agreeing = [text for text in texts if math.floor(number(text, f"--where {name}")) == own]
    if not agreeing:
        raise ValueError(f"--where {name}={','.join(texts)}, but the observations are of {date}")
    return agreeing


def _dated(model: Model) -> bool:
    from spherediff.data.climatology import needs_dates

    return needs_dates(model.encoder.climatology) or "time" in model.labels.names


def _months(texts: list[str]) -> list[str]:
    if not all(text.isdigit() and 1 <= int(text) <= 12 for text in texts):
        raise ValueError(f"--where month expects numbers from 1 to 12, got {', '.join(texts)}")
    return [str(int(text)) for text in texts]


def _dates(values: dict[str, np.ndarray]) -> np.ndarray:
    """Middles of the months, of the years where they are told."""
    import numpy as np

    months = values["month"].astype(int)
    years = values.get("year", np.full(len(months), _YEAR)).astype(float)
    since_1970 = 12 * (np.floor(years).astype(int) - 1970) + months - 1
    days = since_1970.astype("datetime64[M]").astype("datetime64[D]") + 14
    return days.astype("datetime64[s]")


def _coordinates(told: dict[str, np.ndarray]) -> dict[str, xr.Variable]:
    """Labels along the samples, numbers where all of them are."""
    import xarray as xr

    coordinates = {}
    for name, texts in told.items():
        try:
            values = texts.astype(float)
        except ValueError:
            values = texts
        coordinates[name] = xr.Variable("sample", values)
    return coordinates
