"""``spherediff sample``: new maps from a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from spherediff.cli.common import (
    GridOptions,
    Invocation,
    decode,
    device,
    parse_sampler,
    random_dates,
    say,
    seeded,
)


@dataclass(frozen=True)
class Sample:
    """Draw new maps from a trained model, in physical units.

    Where the model's archive has a yearly cycle, every sample belongs to a month, drawn at random
    from --months and recorded in the output (the year has no meaning).  Sample k is the same
    whatever the count.

    For example, daily weather from the bundled model; 64 maps on a 2.5° grid; January on HEALPix;
    and the coefficients:
      spherediff sample --model speedy-daily --output weather.nc
      spherediff sample --model winds-model --count 64 --grid 2.5 --output samples.nc
      spherediff sample --model winds-model --months 1 --nside 64 --output january.fits
      spherediff sample --model winds-model --count 1000 --output samples.safetensors

    Attributes:
        model: folder that spherediff train wrote, or a model that comes with the package
            (speedy-daily).
        output: file to write: .nc or .zarr (latitude-longitude or HEALPix maps), .fits (HEALPix),
            .safetensors (coefficients).
        count: number of samples.
        seed: of the random draws.
        sampler: flow (probability flow, a two-step rule), sde (reverse stochastic equation), or
            heun (probability flow, two evaluations a step).
        steps: of the sampler; by default as many as keep a Gaussian law within 1 %.
        months: calendar months to draw from, 1 to 12.
        batch: samples drawn at once; only memory and speed depend on it.
        device: cpu, cuda, cuda:1, …; auto takes CUDA where there is one.
        grid: where to evaluate the samples.
    """

    model: Path
    output: Path
    count: int = 16
    seed: int = 0
    sampler: Literal["flow", "sde", "heun"] = "flow"
    steps: int | None = None
    months: tuple[int, ...] = tuple(range(1, 13))
    batch: int = 64
    device: str = "auto"
    grid: Annotated[GridOptions, arg(name="")] = GridOptions()

    def run(self, invocation: Invocation) -> None:
        """Load, draw, evaluate, write."""
        from spherediff import data
        from spherediff._files import require_writable
        from spherediff.data.climatology import needs_dates
        from spherediff.model import Model

        where, generator = device(self.device), seeded(self.seed)
        model = Model.load(self.model, where)
        encoder = model.encoder
        grid = self.grid.resolve(self.output, encoder.lmax)
        dated = needs_dates(encoder.climatology)
        time = random_dates(self.count, self.months, self.seed) if dated else None
        require_writable(self.output)
        x = model.sample(
            self.count,
            generator=generator,
            time=time,
            sampler=parse_sampler(self.sampler),
            steps=self.steps,
            batch=self.batch,
            progress=True,
        )
        record = invocation.record(self.seed, lmax=encoder.lmax)
        if time is not None:
            record["months"] = " ".join(str(month)[5:7] for month in time)
        if grid is None:
            record |= {"variables": " ".join(encoder.names), "units": ", ".join(encoder.units)}
            data.write(encoder.restore(x, time).float(), self.output, record)
        else:
            data.write(decode(encoder, x, grid, time), self.output, record)
        say(f"wrote {self.count} samples of {', '.join(encoder.names)} to {self.output}")
