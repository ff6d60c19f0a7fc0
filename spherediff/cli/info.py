"""``spherediff info``: what an archive or a model holds."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from spherediff.cli.common import ArchiveOptions, Invocation, parse_climatology, say

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor


@dataclass(frozen=True)
class Info:
    """Say what an archive or a model holds.

    Of an archive: variables, units, grid, samples, time span, and for each variable the
    Whittle–Matérn spectrum that fits its anomalies best, with standard errors, and whether the
    noise of that spectrum suits them: the Feldman–Hájek sums Σ_{ℓ≤L}(2ℓ+1)(S_ℓ/C_ℓ − 1)² of the
    archive's spectrum S against the fitted C.  If these level off as L grows the two Gaussian laws
    are equivalent; if they keep growing the laws are singular to one another.

    For example:
      spherediff info navy-winds --climatology monthly
      spherediff info daily.nc --variables pr --lmax 47
      spherediff info winds-model

    Attributes:
        path: files, a bundled archive (navy-winds), or a model's folder.
        lmax: band limit of the spectra; by default the highest that the grid supports.
        climatology: removed before the spectra: none, constant, monthly, or harmonics:K.
    """

    path: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PATH", help_behavior_hint="(required)")
    ]
    lmax: int | None = None
    climatology: str = "constant"
    options: Annotated[ArchiveOptions, arg(name="")] = ArchiveOptions()

    def run(self, invocation: Invocation) -> None:
        """Print."""
        from spherediff.model import CONFIG
        from spherediff.train import METRICS

        folder = Path(self.path[0]) if len(self.path) == 1 else None
        if folder and ((folder / CONFIG).exists() or (folder / METRICS).exists()):
            _describe_model(folder)
        else:
            self._describe_archive()

    def _describe_archive(self) -> None:
        from spherediff.data import Encoder, grid_of, sample_dimension

        climatology = parse_climatology(self.climatology)
        ds = self.options.open(self.path)
        grid = grid_of(ds)
        lmax = grid.max_lmax if self.lmax is None else self.lmax
        say(f"grid        {grid!r}, exact up to lmax {grid.max_lmax}")
        say(f"samples     {ds.sizes[sample_dimension(ds)]}{_times(ds)}")
        for name, field in ds.data_vars.items():
            attrs = field.attrs
            text = f"{attrs.get('long_name', '')} [{attrs.get('units', '1')}]".strip()
            say(f"variable    {name}: {text}")
        if ds.sizes[sample_dimension(ds)] < 2:
            return
        encoder = Encoder.fit(ds, lmax=lmax, climatology=climatology)
        x = encoder.encode(ds).double() * encoder.scale[:, None]
        removed = "nothing removed" if self.climatology == "none" else f"{self.climatology} removed"
        for c, (name, units) in enumerate(zip(encoder.names, encoder.units, strict=True)):
            say(f"\n{name}, degrees 1 to {lmax}, {removed}")
            say(f"  standard deviation   {float(encoder.scale[c]):.4g} {units}")
            say(f"  variance beyond lmax {100 * float(encoder.truncated[c]):.2g} %")
            _describe_noise(x[:, c], units)


def _times(ds: xr.Dataset) -> str:
    if "time" not in ds.coords or ds["time"].ndim != 1:
        return ""
    values = ds["time"].values
    return f", {str(values.min())[:10]} to {str(values.max())[:10]}"


def _describe_noise(x: Tensor, units: str) -> None:
    """Fitted spectrum and Feldman–Hájek sums of mean-free anomalies (samples, n)."""
    import spherediff as sd
    from spherediff import harmonics

    lmax = harmonics.band_limit(x.shape[-1])
    if lmax < 4:
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = sd.WhittleMatern.fit(x)
    names = {
        "std": ("standard deviation σ", units),
        "smoothness": ("smoothness ν", ""),
        "correlation_length": ("correlation length ρ", "radians"),
    }
    say("  fitted Whittle–Matérn noise")
    for key, (label, unit) in names.items():
        value, error = getattr(fit.spectrum, key), fit.standard_errors[key]
        say(f"    {label:<21} {value:.4g} ± {error:.2g} {unit}".rstrip())
    spectrum = harmonics.degree_spectrum(x).mean(0)
    spectrum[0] = fit.spectrum(harmonics.degrees(0))[0]
    data = sd.GaussianField(sd.Tabulated(spectrum), lmax)
    noise = sd.GaussianField(fit.spectrum, lmax)
    sums = noise.equivalence(data)
    degrees = sorted({lmax, *(2**k for k in range(1, lmax.bit_length()))})
    say("  Feldman–Hájek sums of the archive against this noise, up to degree L")
    say("    L   " + "".join(f"{L:>10}" for L in degrees))
    say("    sum " + "".join(f"{float(sums[L]):>10.3g}" for L in degrees))
    for one in caught:
        say(f"  note: {one.message}")


def _describe_model(folder: Path) -> None:
    from spherediff.cli.train import RUN
    from spherediff.model import CONFIG, Model
    from spherediff.train import CHECKPOINT, METRICS

    if (folder / RUN).exists():
        for key, value in json.loads((folder / RUN).read_text()).items():
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            say(f"{key:<12}{text}")
    if (folder / CONFIG).exists():
        model = Model.load(folder)
        encoder, network = model.encoder, model.denoiser.network
        weights = sum(p.numel() for p in network.parameters())
        config: dict[str, Any] = network.config.to_dict()  # type: ignore[operator, union-attr]
        for name, units, scale in zip(encoder.names, encoder.units, encoder.scale, strict=True):
            say(f"variable    {name} [{units}], standard deviation of anomalies {float(scale):.4g}")
        say(f"transforms  {', '.join(map(_short, encoder.transforms))}")
        say(f"climatology {encoder.climatology!r}")
        say(f"network     {weights:,} weights: {', '.join(f'{k} {v}' for k, v in config.items())}")
        say(f"process     {model.denoiser.process.schedule!r}")
    else:
        say("model       none yet: the training is not finished")
    if (folder / METRICS).exists():
        lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        judged = [line for line in lines if "held_out" in line]
        say(f"training    {lines[-1]['step'] if lines else 0} steps")
        if judged:
            best = min(judged, key=lambda line: line["held_out"])
            say(
                f"held-out    {best['held_out']:.4f} of the Gaussian emulator's loss, at step"
                f" {best['step']}"
            )
    if (folder / CHECKPOINT).exists():
        say(f"checkpoint  {folder / CHECKPOINT}")


def _short(transform: Any) -> str:
    """A transform by its name; a table of quantiles is long."""
    return type(transform).__name__
