"""``spherediff evaluate``: generated maps against maps that nobody was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from spherediff.cli.common import (
    ArchiveOptions,
    Invocation,
    parse_climatology,
    say,
    seeded,
)

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Evaluate:
    """Compare generated maps with a reference: a table of statistics with their sampling error.

    Give as reference maps that the model was not trained on, and as --training those that it was:
    the table then shows what as many training maps would score, the noise floor.  If a variable
    test(time) of the reference marks its test samples, these are the reference and the others
    are the training maps.  With a yearly cycle, compare anomalies: --climatology, fitted to the
    training maps, is removed from all.

    For example:
      spherediff evaluate samples.nc navy-winds --climatology monthly
      spherediff evaluate samples.nc test.nc --training train.nc --lmax 31 --output table.json

    Attributes:
        samples: file of generated maps, NetCDF, Zarr or FITS.
        reference: file of maps to compare with, or a bundled archive (navy-winds).
        training: files or bundled archive that the model was trained on.
        lmax: compare up to this degree; by default what the samples were generated with, or the
            highest that all grids support.
        climatology: removed from all maps: none, constant, monthly, or harmonics:K of the year.
        seed: of the random draws behind chance and noise floor.
        output: JSON file for the table, besides printing it.
    """

    samples: Annotated[Positional[str], arg(metavar="SAMPLES")]
    reference: Annotated[Positional[str], arg(metavar="REFERENCE")]
    training: tuple[str, ...] = ()
    lmax: int | None = None
    climatology: str = "none"
    seed: int = 0
    output: Path | None = None
    options: Annotated[ArchiveOptions, arg(name="")] = ArchiveOptions()

    def run(self, invocation: Invocation) -> None:
        """Open, bring to coefficients, compare, print."""
        from spherediff import metrics, report
        from spherediff._files import atomic_write, require_writable
        from spherediff.data import Encoder, grid_of

        climatology = parse_climatology(self.climatology)
        if self.output is not None:
            require_writable(self.output)
        samples = self.options.open((self.samples,))
        reference, training = self._reference(list(map(str, samples.data_vars)))
        if training is None and self.climatology != "none":
            raise ValueError(
                "--climatology needs maps to fit it to that are not the reference: give --training"
            )
        sets = [samples, reference] + ([] if training is None else [training])
        lmax = self.lmax
        if lmax is None:
            limits = [grid_of(ds).max_lmax for ds in sets]
            lmax = min([*limits, int(samples.attrs.get("lmax", min(limits)))])
        fitted = Encoder.fit(
            reference if training is None else training,
            list(map(str, samples.data_vars)),
            lmax=lmax,
            climatology=climatology,
        )
        scale = fitted.scale[:, None]
        coefficients = [fitted.encode(ds).double() * scale for ds in sets]
        rows = metrics.compare(
            *coefficients, names=fitted.names, units=fitted.units, generator=seeded(self.seed)
        )
        counts = f"{len(coefficients[0])} samples, {len(coefficients[1])} maps of the reference"
        counts += "" if training is None else f", {len(coefficients[2])} training maps"
        say(f"{counts}; degrees up to {lmax}")
        say(report.table(rows))
        say(report.explanation(rows))
        if self.output is not None:
            with atomic_write(self.output) as temporary:
                temporary.write_text(report.to_json(rows, invocation.record(self.seed, lmax=lmax)))

    def _reference(self, variables: list[str]) -> tuple[xr.Dataset, xr.Dataset | None]:
        from dataclasses import replace

        from spherediff.data import sample_dimension

        options = replace(self.options, variables=tuple(variables))
        reference = options.open((self.reference,))
        training = options.open(self.training) if self.training else None
        sample = sample_dimension(reference)
        if training is None and "test" in reference.coords and reference["test"].dims == (sample,):
            marked = reference["test"].values != 0
            if marked.any() and not marked.all():
                return (
                    reference.isel({sample: marked.nonzero()[0]}),
                    reference.isel({sample: (~marked).nonzero()[0]}),
                )
        return reference, training
