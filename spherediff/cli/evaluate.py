"""``spherediff evaluate``: generated maps against maps that nobody was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from spherediff._system import say
from spherediff.cli.common import (
    ArchiveOptions,
    Invocation,
    parse_climatology,
    parse_transforms,
    seeded,
)

if TYPE_CHECKING:
    import xarray as xr

_MUCH_LARGER = 1.5
Variables = arg(metavar="VARIABLE=RULE", help_behavior_hint="")


@dataclass(frozen=True)
class Evaluate:
    """Can generated maps be told from an archive?  A scorecard with its noise floor.

    Give as reference maps that the model was not trained on, and as --training those that it was:
    every distance of the generated maps from the reference is then divided by that of as many
    training maps, the noise floor.  A ratio of 1 means: as close as other real maps are.  If a
    variable test(time) of the reference marks its test samples, these are the reference and the
    others are the training maps.  As many generated maps as there are in the reference are best.
    With a yearly cycle, compare anomalies: --climatology, fitted to the training maps, is removed
    from all.  Fields such as rain, that a few storms would decide, are compared by a transform.

    For example:
      spherediff evaluate samples.nc navy-winds --climatology monthly
      spherediff evaluate samples.nc test.nc --training train.nc --lmax 31 --output card.json
      spherediff evaluate rain.nc daily.nc --transform pr=sqrt --climatology harmonics:3

    Attributes:
        samples: file of generated maps, NetCDF, Zarr or FITS.
        reference: file of maps to compare with, or a bundled archive (navy-winds).
        training: files or bundled archive that the model was trained on.
        lmax: compare up to this degree; by default what the samples were generated with, or the
            highest that all grids support.
        transform: compare transformed values, such as pr=sqrt, pr=log1p:0.5 or pr=quantile:0.
        climatology: removed from all maps: none, constant, monthly, or harmonics:K of the year.
        resamples: of the bootstrap behind the intervals.
        seed: of all random draws.
        output: JSON file for the scorecard, besides printing it.
    """

    samples: Annotated[Positional[str], arg(metavar="SAMPLES")]
    reference: Annotated[Positional[str], arg(metavar="REFERENCE")]
    training: tuple[str, ...] = ()
    lmax: int | None = None
    transform: Annotated[tuple[str, ...], Variables] = ()
    climatology: str = "none"
    resamples: int = 100
    seed: int = 0
    output: Path | None = None
    options: Annotated[ArchiveOptions, arg(name="")] = ArchiveOptions()

    def run(self, invocation: Invocation) -> None:
        """Open, bring to coefficients, compare, print."""
        from spherediff import metrics, report
        from spherediff._files import atomic_write, require_writable
        from spherediff.data import Encoder, grid_of

        climatology = parse_climatology(self.climatology)
        transforms = parse_transforms(self.transform)
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
            transform=transforms,
            climatology=climatology,
        )
        coefficients = [fitted.anomalies(fitted.encode(ds)) for ds in sets]
        say(_counts([len(x) for x in coefficients], lmax))
        card = metrics.scorecard(
            *coefficients,
            names=fitted.names,
            units=fitted.transformed_units,
            resamples=self.resamples,
            generator=seeded(self.seed),
            progress=True,
        )
        say(report.table(card.rows))
        say(report.explanation(card))
        if self.output is not None:
            with atomic_write(self.output) as temporary:
                temporary.write_text(
                    report.to_json(card, invocation.record(self.seed)), encoding="utf-8"
                )

    def _reference(self, variables: list[str]) -> tuple[xr.Dataset, xr.Dataset | None]:
        from dataclasses import replace

        from spherediff.data import sample_dimension

        options = replace(self.options, variables=tuple(variables))
        reference = _by_time(options.open((self.reference,)))
        training = _by_time(options.open(self.training)) if self.training else None
        sample = sample_dimension(reference)
        if training is None and "test" in reference.coords and reference["test"].dims == (sample,):
            marked = reference["test"].values != 0
            if marked.any() and not marked.all():
                return (
                    reference.isel({sample: marked.nonzero()[0]}),
                    reference.isel({sample: (~marked).nonzero()[0]}),
                )
        return reference, training


def _by_time(ds: xr.Dataset) -> xr.Dataset:
    """Successive maps side by side: blocks of them are resampled together."""
    ordered = "time" not in ds.indexes or ds.indexes["time"].is_monotonic_increasing
    return ds if ordered else ds.sortby("time")


def _counts(sizes: list[int], lmax: int) -> str:
    """What is compared, and a hint if the sets differ much in size."""
    names = ("samples", "maps of the reference", "training maps")
    text = ", ".join(f"{size} {name}" for size, name in zip(sizes, names, strict=False))
    text += f"; degrees up to {lmax}"
    small, large = sorted(sizes[:2])
    if large > _MUCH_LARGER * small:
        text += (
            f"\nnote: as many samples as maps of the reference, {sizes[1]}, would show most;"
            " floors are for sets of the sizes given"
        )
    return text
