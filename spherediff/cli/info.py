"""``spherediff info``: what an archive or a model holds."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from spherediff._system import say
from spherediff.cli.common import ArchiveOptions, Invocation, parse_climatology

if TYPE_CHECKING:
    from torch import Tensor

    from spherediff.gaussian import GaussianField
    from spherediff.spectra import Spectrum


@dataclass(frozen=True)
class Info:
    """Say what an archive or a model holds.

    Of an archive: variables, units, grid, samples, time span, and for each variable the
    Whittle–Matérn spectrum that fits its anomalies best, with standard errors, and whether a noise
    suits them, degree by degree, with S_ℓ the archive's spectrum and C_ℓ that of the noise: the
    Feldman–Hájek sums Σ_{ℓ≤L}(2ℓ+1)(S_ℓ/C_ℓ − 1)², the KL divergence of the archive from the noise,
    and its Fisher information I.  If they level off as L grows the two Gaussian laws are
    equivalent; if they keep growing the laws are singular to one another.  KL and I say how far to
    run the diffusion and in how many steps.

    For example:
      spherediff info navy-winds --climatology monthly
      spherediff info navy-winds --climatology monthly --noise white --kl 0.01
      spherediff info daily.nc --variables pr --lmax 47 --noise 1.5:0.8:0.2
      spherediff info winds-model

    Attributes:
        path: files, a bundled archive (navy-winds), or a model's folder.
        lmax: band limit of the spectra; by default the highest that the grid supports, less degrees
            in which there is next to nothing.
        climatology: removed before the spectra: none, constant, monthly, or harmonics:K.
        noise: the one to judge: fit (the best Whittle–Matérn spectrum), white (independent
            pixels of the archive's variance), or a Whittle–Matérn spectrum as σ:ν:ρ, standard
            deviation, smoothness and correlation length in radians.
        kl: how close samples are to come to the archive, as a KL divergence in nats.
    """

    path: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PATH", help_behavior_hint="(required)")
    ]
    lmax: int | None = None
    climatology: str = "constant"
    noise: str = "fit"
    kl: float = 0.1
    options: Annotated[ArchiveOptions, arg(name="")] = ArchiveOptions()

    def run(self, invocation: Invocation) -> None:
        """Print."""
        from spherediff._model_file import CONFIG
        from spherediff.data.bundled import models
        from spherediff.train import METRICS

        folder = Path(self.path[0]) if len(self.path) == 1 else None
        if folder and not folder.exists():
            folder = models().get(self.path[0], folder)
        if folder and ((folder / CONFIG).exists() or (folder / METRICS).exists()):
            _describe_model(folder)
        else:
            self._describe_archive()

    def _describe_archive(self) -> None:
        from spherediff import harmonics
        from spherediff.data import Encoder, grid_of, sample_dimension, span

        climatology = parse_climatology(self.climatology)
        given = _parse_noise(self.noise)
        if not (math.isfinite(self.kl) and self.kl > 0):
            raise ValueError(f"--kl must be a number of nats above zero, got {self.kl:g}")
        ds = self.options.open(self.path)
        grid = grid_of(ds)
        lmax = grid.max_lmax if self.lmax is None else self.lmax
        say(f"grid        {grid!r}, exact up to lmax {grid.max_lmax}")
        say(f"holds       {span(ds)}")
        for name, field in ds.data_vars.items():
            attrs = field.attrs
            text = f"{attrs.get('long_name', '')} [{attrs.get('units', '1')}]".strip()
            say(f"variable    {name}: {text}")
        if ds.sizes[sample_dimension(ds)] < 2:
            return
        encoder = Encoder.fit(ds, lmax=lmax, climatology=climatology)
        x = encoder.anomalies(encoder.encode(ds))
        removed = "nothing removed" if self.climatology == "none" else f"{self.climatology} removed"
        for c, (name, units) in enumerate(zip(encoder.names, encoder.units, strict=True)):
            highest = _last_degree(x[:, c]) if self.lmax is None else lmax
            say(f"\n{name}, degrees 1 to {highest}, {removed}")
            if highest < lmax:
                say(f"  next to nothing      from degree {highest + 1} to {lmax}, left out below")
            say(f"  standard deviation   {float(encoder.scale[c]):.4g} {units}")
            say(f"  variance beyond lmax {100 * float(encoder.truncated[c]):.2g} %")
            self._describe_noise(harmonics.resize(x[:, c], highest), units, given)

    def _describe_noise(self, x: Tensor, units: str, given: Spectrum | None) -> None:
        """Fitted spectrum of mean-free anomalies (samples, n), and how the noise suits them."""
        import spherediff as sd
        from spherediff import harmonics

        lmax = harmonics.band_limit(x.shape[-1])
        if lmax < _FITTED:
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
        for one in caught if self.noise == "fit" else ():
            say(f"  note: {one.message}")
        spectrum = harmonics.degree_spectrum(x).mean(0)
        if self.noise == "white":
            given = sd.Tabulated(x[:, 1:].square().mean().expand(lmax + 1))
        noise = sd.GaussianField(given or fit.spectrum, lmax)
        # the anomalies have no mean over the sphere to speak of: degree 0 is left out
        spectrum[0] = noise.degree_variance[0]
        if not (spectrum > 0).all():
            say("  the archive has degrees without variance: any noise is singular to it")
            return
        data = sd.GaussianField(sd.Tabulated(spectrum), lmax)
        self._describe_bound(noise, data, len(x))

    def _describe_bound(self, noise: GaussianField, data: GaussianField, samples: int) -> None:
        """Sums over the degrees, and what the entropic bound asks for."""
        from spherediff.bounds import GaussianTarget, plan

        target, lmax = GaussianTarget(noise, data), noise.lmax
        entropy, fisher = target.relative_entropy(), target.fisher_information()
        degrees = sorted({lmax, *(2**k for k in range(1, lmax.bit_length()))})
        say(f"  the archive against {_NOISES.get(self.noise, f'noise {self.noise}')}")
        rows = (
            ("up to degree L", [str(L) for L in degrees]),
            ("Feldman–Hájek sum", _numbers(noise.equivalence(data)[degrees])),
            ("  by chance alone", _numbers(2 / samples * L for L in degrees)),
            ("KL in nats", _numbers(entropy.cumsum(0)[degrees])),
            ("Fisher information", _numbers(fisher.cumsum(0)[degrees])),
            ("  of this octave", _numbers(fisher.cumsum(0)[degrees].diff(prepend=fisher[:1]))),
        )
        for name, cells in rows:
            say(f"    {name:<19}" + "".join(f"{cell:>9}" for cell in cells))
        K, information = float(entropy.sum()), float(fisher.sum())
        asked = plan(self.kl, K, information)
        if asked.steps == 0:
            say(f"  the noise itself is within {self.kl:g} nats of the archive's Gaussian part")
            return
        say(
            f"  for {self.kl:g} nats the bound asks for T = {asked.horizon:.2f} and"
            f" {asked.steps:,} steps"
        )
        say("  what is not Gaussian in the archive, or not isotropic, comes on top")


_FITTED = 4  # degrees, at least, for a spectrum of three parameters
_CLIFF = 1e-4
_NOISES = {"fit": "the fitted noise", "white": "white noise of its variance"}


def _last_degree(x: Tensor) -> int:
    """The degree, from 4 on, after which the spectrum of (samples, n) falls off a cliff, or lmax.

    Maps that were truncated have no more than rounding errors there, which no noise can be fitted
    to: all further degrees have less than ten thousandth of its power.
    """
    from spherediff import harmonics

    spectrum = harmonics.degree_spectrum(x).mean(0)
    lmax = len(spectrum) - 1
    beyond = spectrum.flip(0).cummax(0).values.flip(0)
    cliffs = (beyond[1:] < _CLIFF * spectrum[:-1]).nonzero()[:, 0]
    return min((int(degree) for degree in cliffs if degree >= _FITTED), default=lmax)


def _numbers(values: Iterable[float] | Tensor) -> list[str]:
    return [f"{float(value):.3g}" for value in values]


def _parse_noise(text: str) -> Spectrum | None:
    """The spectrum of --noise σ:ν:ρ; none for one that depends on the archive."""
    import spherediff as sd

    if text in _NOISES:
        return None
    try:
        std, smoothness, length = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(
            f"unknown noise {text!r}: expected fit, white, or a Whittle–Matérn spectrum as"
            " STD:SMOOTHNESS:LENGTH, such as 1.5:0.8:0.2"
        ) from None
    return sd.WhittleMatern(std, smoothness, length)


def _describe_model(folder: Path) -> None:
    from spherediff._model_file import CONFIG
    from spherediff.model import Model
    from spherediff.train import CHECKPOINT, METRICS, RUN

    if (folder / RUN).exists():
        for key, value in json.loads((folder / RUN).read_text(encoding="utf-8")).items():
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            label = key.removesuffix("_version").replace("_", " ")
            say(f"{label:<12}{text}")
    if (folder / CONFIG).exists():
        model = Model.load(folder)
        encoder, network = model.encoder, model.network
        weights = sum(p.numel() for p in network.parameters())
        config = network.config.to_dict()
        for name, units, scale in zip(encoder.names, encoder.units, encoder.scale, strict=True):
            say(f"variable    {name} [{units}], standard deviation of anomalies {float(scale):.4g}")
        say(f"transforms  {', '.join(map(_short, encoder.transforms))}")
        say(f"climatology {encoder.climatology!r}")
        told = ", ".join(map(str, model.labels.parts))
        say(f"labels      {told or 'none'}")
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
