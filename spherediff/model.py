"""A generator of maps: encoder and labels of an archive, and the denoiser that knows its law.

The noise γ = N(0, C) has the archive's own degree spectrum, channel by channel,

    C_ℓ = N⁻¹ Σ_k (2ℓ+1)⁻¹ Σ_m x²_{k,ℓm},

so that signal and noise have the same smoothness.  The preconditioning needs the variance of every
coefficient, which a short archive knows badly (:func:`~spherediff.covariance.shrunk_variance`), and
their correlations, which it knows worse (:meth:`~spherediff.covariance.Covariance.principal`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spherediff import _model_file, harmonics
from spherediff._config import from_config, to_config
from spherediff._system import physical_memory
from spherediff.calibrate import calibrate
from spherediff.covariance import Covariance, shrunk_variance
from spherediff.data import Encoder, Labels, observations
from spherediff.data.amplitude import with_local_variance
from spherediff.data.readings import Reading
from spherediff.data.static import amplitude_fields, static_fields
from spherediff.denoise import Denoiser, GuidedDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.nn import OperatorConfig, SphericalOperator
from spherediff.observe import Dense, Observation
from spherediff.posterior import PseudoinverseGuidance, Referenced, posterior_reference
from spherediff.process import ConstantRate, LogSNR, OrnsteinUhlenbeck, Schedule
from spherediff.sample import ProbabilityFlow, Sampler
from spherediff.spectra import Tabulated
from spherediff.train import (
    Fields,
    TrainConfig,
    TrainResult,
    fold,
    require_same_settings,
    train,
)

_SCHEDULES = (LogSNR, ConstantRate)
_PARTS = 5
_MATRICES = 10  # modes × modes, float64, at once when a model is built
_PRIOR = 64  # draws, which what is read of cells is compared with
_DENSE = 2**26  # numbers in a matrix of observations that is made to save time
_SMALLEST = 1e-6  # of a coefficient's variance, relative to its degree's or the whole spectrum's


class Model:
    """An encoder, a denoiser of the fields that it makes, and the labels that it is told.

    Args:
        encoder: maps ↔ coefficients.
        denoiser: over a process whose noise is a :class:`~spherediff.gaussian.GaussianField`, with
            a :class:`~spherediff.nn.SphericalOperator` as network.
        labels: what the network is told of each field.

    Raises:
        ValueError: the denoiser has another lmax or number of channels than the encoder, or
            expects another number of conditions than the labels have.
    """

    network: SphericalOperator

    def __init__(
        self, encoder: Encoder, denoiser: NeuralDenoiser, labels: Labels = Labels()
    ) -> None:
        expected = (len(encoder.names), harmonics.count(encoder.lmax))
        if tuple(denoiser.process.event_shape) != expected:
            channels, n = denoiser.process.event_shape
            raise ValueError(
                f"the encoder makes {expected[0]} channel(s) at lmax {encoder.lmax}, the denoiser "
                f"expects {channels} at lmax {harmonics.band_limit(n)}"
            )
        assert isinstance(denoiser.network, SphericalOperator)
        if labels.size != denoiser.network.config.conditions:
            raise ValueError(
                f"the labels ({', '.join(labels.names) or 'none'}) are {labels.size} numbers, but"
                f" the network expects {denoiser.network.config.conditions} conditions"
            )
        self.encoder, self.denoiser, self.labels = encoder, denoiser, labels
        self.network = denoiser.network

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        fields: Tensor | Fields,
        *,
        labels: Labels | None = None,
        network: OperatorConfig | None = None,
        schedule: LogSNR | ConstantRate = LogSNR(),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Model:
        """An untrained model: the Gaussian emulator, with the archive's leading correlations.

        Args:
            encoder: what made the coefficients.
            fields: those to train on, shape (N, channels, n), or with their labels.
            labels: what the network is told; by default the season if the climatology varies with
                the time of the year, else nothing.
            network: size of the network; for the encoder's lmax and channels if not given.  Its
                conditions follow from the labels, its static fields from the archive
                (:mod:`spherediff.data.static`).  With a smaller lmax it learns the lower
                degrees, and the higher ones stay Gaussian.
            schedule: of the forward process.
            seed: of the network's first weights.
            device: where to train.

        Raises:
            ValueError: fewer than two fields, fields without variance, shapes that do not fit, or
                more modes than this machine has memory for.
        """
        expected = (len(encoder.names), harmonics.count(encoder.lmax))
        coefficients, condition = Fields.of(fields)
        if coefficients.ndim != 3 or tuple(coefficients.shape[1:]) != expected:
            raise ValueError(
                f"expected coefficients of shape (N, {expected[0]}, {expected[1]}), "
                f"got {tuple(coefficients.shape)}"
            )
        mean, variance, spectrum = archive_moments(coefficients)
        labels = Labels.seasonal(encoder.climatology) if labels is None else labels
        network = network or OperatorConfig(encoder.lmax, len(encoder.names))
        _require_memory(network)
        static = static_fields(encoder, coefficients, condition, network.lmax)
        network = replace(network, conditions=labels.size, static=len(static))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            operator = SphericalOperator(**network.to_dict())
        operator.start_from(static, amplitude_fields(encoder, network.lmax))
        covariance = _correlated(encoder, coefficients, variance, network.lmax)
        operator = operator.to(device)
        denoiser = _denoiser(operator, schedule, mean, covariance, spectrum, device)
        return cls(encoder, denoiser, labels)

    def learner(self) -> NeuralDenoiser:
        """The denoiser of the degrees that the network knows; it shares the network.

        Its fields are the first (L+1)² coefficients of the model's, L the network's lmax.  It has
        the model's calibration, as a copy.
        """
        whole, n = self.denoiser.covariance, harmonics.count(self.network.config.lmax)
        covariance = Covariance(whole.diagonal[:, :n], whole.factor[..., :n])
        learner = self._learner(self.denoiser.mean[:, :n], covariance)
        learner.calibration.load_state_dict(self.denoiser.calibration.state_dict())
        return learner

    def learners(self, coefficients: Tensor, *, progress: bool = False) -> list[NeuralDenoiser]:
        """The learner with a reference from all but the k-th fifth of the fields, for each k.

        The modes of each take time as the cube of channels · n.

        Args:
            coefficients: the training fields of the degrees that the network knows, (N, channels,
                n), at least ten.
            progress: show a progress bar.

        Raises:
            ValueError: fewer fields, or fields of another shape.
        """
        N, lmax = len(coefficients), self.network.config.lmax
        if N < 2 * _PARTS or coefficients.shape[-1] != harmonics.count(lmax):
            raise ValueError(
                f"expected at least {2 * _PARTS} fields up to the network's lmax {lmax}, got shape "
                f"{tuple(coefficients.shape)}"
            )
        learners = []
        for k in tqdm(range(_PARTS), desc="preparing", leave=False, disable=not progress):
            part = fold(N, k, _PARTS)
            others = torch.cat([coefficients[: part.start], coefficients[part.stop :]])
            mean, variance, _ = archive_moments(others)
            covariance = _correlated(self.encoder, others, variance, lmax)
            learners.append(self._learner(mean, covariance))
        return learners

    def train(
        self,
        known: Tensor | Fields,
        held_out: Tensor | Fields,
        config: TrainConfig | None = None,
        directory: str | os.PathLike[str] = "training",
        *,
        resume: bool = False,
        progress: bool = True,
    ) -> TrainResult:
        """Train the network, by cross-fitting, and calibrate it on the held-out fields.

        Args:
            known: those that the model was built from, shape (N, channels, n), N at least ten, or
                with their labels.
            held_out: fields to stop early by and to calibrate on, shape (M, channels, n).
            config: how to train.
            directory: where metrics and checkpoints go.
            resume: go on from the checkpoint in ``directory`` instead of starting afresh.
            progress: show a progress bar.

        Raises:
            ValueError: fewer than ten fields, or what :func:`spherediff.train.train` refuses,
                which says what else is raised.
        """
        learner, lmax = self.learner(), self.network.config.lmax
        config, directory = config or TrainConfig(), Path(directory)
        if resume:
            require_same_settings(directory, learner, asdict(config))
        known, held_out = (
            fields._replace(x=harmonics.resize(fields.x, lmax))
            for fields in map(Fields.of, (known, held_out))
        )
        learners = self.learners(known.x, progress=progress)
        result = train(
            learner,
            known,
            held_out,
            config,
            directory,
            learners=learners,
            resume=resume,
            progress=progress,
        )
        amplitude = self.encoder.amplitude
        calibrate(
            learner, known, held_out, learners=learners, amplitude=amplitude, progress=progress
        )
        self.denoiser.calibration.load_state_dict(learner.calibration.state_dict())
        return result

    def _learner(self, mean: Tensor, covariance: Covariance) -> NeuralDenoiser:
        field, schedule = self.denoiser.process.field, self.denoiser.process.schedule
        spectrum = field.degree_variance[..., : self.network.config.lmax + 1]
        return _denoiser(self.network, schedule, mean, covariance, spectrum, field.device)

    def sample(
        self,
        count: int,
        *,
        generator: torch.Generator,
        time: Any = None,
        labels: Mapping[str, Any] | None = None,
        guidance: float = 1.0,
        given: Observation | None = None,
        sampler: type[Sampler] = ProbabilityFlow,
        steps: int | None = None,
        batch: int = 16,
        progress: bool = False,
    ) -> Tensor:
        """Draw standardised anomalies; ``encoder.decode`` makes maps of them.

        Args:
            count: number of fields.
            generator: a CPU generator; field k is the same whatever ``count`` and ``batch``.
            time: date of each, or one for all, as for ``encoder.decode``; needed if the network
                is told the season.
            labels: the other labels by name, one value for all or one for each field, as for
                ``labels.encode``.
            guidance: weight w of the labels, see :class:`~spherediff.denoise.GuidedDenoiser`: 1
                for the law that they say, more to exaggerate them, 0 to ignore them, in which case
                none is needed.
            given: observations of the standardised anomalies, such as those that :meth:`observe`
                makes of a file, all fields being drawn given these: by
                :class:`~spherediff.posterior.PseudoinverseGuidance`, starting from the Gaussian
                posterior.
            sampler: class of the reverse sampler.
            steps: its number of steps; its own default if not given.
            batch: fields drawn at once.  A CPU is slower with more: large blocks of memory are
                taken from the system, and zeroed, in every layer.  A GPU is faster.
            progress: show a progress bar.

        Returns:
            Shape (count, channels, n), on the denoiser's device.

        Raises:
            ValueError: less than one field; what ``labels.encode`` and the sampler refuse;
                guidance without labels.
        """
        if count < 1 or batch < 1:
            raise ValueError(f"count and batch must be at least 1, got {count} and {batch}")
        if guidance != 1 and not self.labels.size:
            raise ValueError(f"guidance {guidance:g} needs labels, but the model is told nothing")
        parts = self._told(count, time, labels or {}, guidance).split(batch)
        denoisers: list[Denoiser]
        denoisers = [GuidedDenoiser(self.denoiser, told, guidance) for told in parts]
        steps = sampler(denoisers[0], steps=steps).steps  # refused before long work, not after
        if given is not None:
            denoisers = self._conditioned(denoisers, given)
        integrators = [sampler(denoiser, steps=steps) for denoiser in denoisers]
        with sampler.progress_bar(sum(one.steps for one in integrators), progress) as bar:
            draws = [
                integrator.sample((len(told),), generator=generator, progress=bar)
                for integrator, told in zip(integrators, parts, strict=True)
            ]
        return torch.cat(draws)

    def observe(self, readings: Sequence[Reading], time: Any = None) -> Observation:
        """What was read, as an observation of the standardised anomalies, to draw fields given it.

        Args:
            readings: of files, by :func:`spherediff.data.observations.read`, at least one.
            time: the date to which they belong; needed if the climatology varies with it.

        Raises:
            ValueError: what :func:`spherediff.data.observations.observe` refuses.
        """
        reference, generator = self.denoiser.reference, torch.Generator().manual_seed(0)
        noise = torch.randn(_PRIOR, *self.denoiser.process.event_shape, generator=generator)
        prior = reference.clean(noise.to(self.denoiser.mean))
        return observations.observe(readings, self.encoder, time, prior)

    def _conditioned(self, denoisers: list[Denoiser], given: Observation) -> list[Denoiser]:
        """Denoisers of the fields given observations, from the Gaussian posterior."""
        if given.values.numel() * math.prod(given.operator.event_shape) < _DENSE:
            given = Observation(Dense.of(given.operator), given.values, given.noise_std)
        start = posterior_reference(self.denoiser.reference, given)
        return [Referenced(PseudoinverseGuidance(one, given), start) for one in denoisers]

    def _told(self, count: int, time: Any, labels: Mapping[str, Any], guidance: float) -> Tensor:
        """Labels of ``count`` fields; the null label where the guidance ignores them."""
        if guidance == 0:
            return torch.zeros(count, self.labels.size)
        dates = {} if time is None else {"time": time}
        return self.labels.encode(dates | dict(labels), count)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``model.json`` and the weights it names; a model there before is replaced.

        Whatever happens the directory holds one whole model, the old or the new.

        Raises:
            PermissionError: the directory cannot be written.
        """
        encoder_config, encoder_tensors = self.encoder.state()
        denoiser, process = self.denoiser, self.denoiser.process
        tensors = {
            "mean": denoiser.mean,
            "variance": denoiser.covariance.diagonal,
            "factor": _halved(denoiser.covariance.factor),
            "spectrum": process.field.degree_variance,
        }
        tensors |= _model_file.marked(encoder_tensors, "encoder")
        tensors |= _model_file.marked(self.network.state_dict(), "network")
        tensors |= _model_file.marked(denoiser.calibration.state_dict(), "calibration")
        description = {
            "network": self.network.config.to_dict(),
            "schedule": to_config(process.schedule),
            "encoder": encoder_config,
            "labels": self.labels.to_config(),
        }
        _model_file.write(directory, description, tensors)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: torch.device | str = "cpu") -> Model:
        """The model that :meth:`save` wrote, or one of those that come with the package.

        Args:
            directory: where it is, or the name of a bundled model, such as ``"speedy-daily"``.
            device: where to put the network.

        Raises:
            FileNotFoundError: there is no model.
            ValueError: a damaged file, another format, or parts that do not fit together.
        """
        config = _model_file.find(directory)
        description, tensors = _model_file.read(config)
        with _model_file.undamaged(config):
            network = OperatorConfig(**description["network"])
            schedule = from_config(description["schedule"], _SCHEDULES, "schedule")
            labels = Labels.from_config(description["labels"])
            encoder_tensors = _model_file.group(tensors, "encoder")
            encoder = Encoder.from_state(description["encoder"], encoder_tensors)
        found = (network.channels, network.lmax)
        if found[0] != len(encoder.names) or found[1] > encoder.lmax:
            raise ValueError(
                f"the model {config} has a network for {found[0]} channel(s) at lmax {found[1]}, "
                f"but an encoder for {len(encoder.names)} at lmax {encoder.lmax}"
            )
        operator = SphericalOperator(**network.to_dict())
        denoiser = _denoiser(
            operator.to(device),
            schedule,
            tensors["mean"],
            Covariance(tensors["variance"], tensors["factor"]),
            tensors["spectrum"],
            device,
        )
        try:
            operator.load_state_dict(_model_file.group(tensors, "network"))
            denoiser.calibration.load_state_dict(_model_file.group(tensors, "calibration"))
        except RuntimeError as error:
            raise ValueError(
                f"the weights of {config} belong to another network: {error}"
            ) from error
        return cls(encoder, denoiser, labels)


def archive_moments(coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, shrunk variance (both (channels, n)) and degree spectrum (channels, lmax + 1), float64.

    Args:
        coefficients: the training fields, shape (N, channels, n).

    Raises:
        ValueError: fewer than two fields, values not finite, or a channel without variance.
    """
    N = len(coefficients)
    if N < 2:
        raise ValueError(f"expected at least two training fields, got {N}")
    x = coefficients.double()
    if not torch.isfinite(x).all():
        raise ValueError(f"{int((~torch.isfinite(x)).sum())} coefficients are not finite")
    mean, variance = x.mean(0), shrunk_variance(x)
    if (variance.sum(-1) <= 0).any():
        raise ValueError(
            f"channel {int((variance.sum(-1) <= 0).nonzero()[0])} is constant: nothing to learn"
        )
    spectrum = harmonics.degree_spectrum(x).mean(0)
    spectrum = spectrum.maximum(_SMALLEST**2 * spectrum.amax(-1, keepdim=True))
    return mean, variance.maximum(_SMALLEST * harmonics.expand(spectrum)), spectrum


def _require_memory(network: OperatorConfig) -> None:
    modes = network.channels * harmonics.count(network.lmax)
    needed, there = _MATRICES * 8 * modes**2, physical_memory()
    if needed > there:
        raise ValueError(
            f"{network.channels} channel(s) to degree {network.lmax} have {modes} modes, whose "
            f"correlations take {needed / 1e9:.0f} GB, and this machine has {there / 1e9:.0f}: let "
            "the network learn fewer degrees (--network-lmax), the others stay Gaussian"
        )


def _correlated(encoder: Encoder, x: Tensor, variance: Tensor, lmax: int) -> Covariance:
    """Variances of all degrees, correlations of those up to ``lmax``, which the network knows.

    Fields that are not divided by their local amplitude have their local variances.
    """
    n = harmonics.count(lmax)
    low = Covariance.principal(x[..., :n], variance[:, :n])
    undivided = [c for c in encoder.channels.scalars if not encoder.amplitude.log_std[c].any()]
    low = with_local_variance(low, x[..., :n], undivided)
    diagonal = torch.cat([low.diagonal, variance[:, n:]], -1)
    return Covariance(diagonal, torch.nn.functional.pad(low.factor, (0, variance.shape[1] - n)))


def _denoiser(
    operator: SphericalOperator,
    schedule: Schedule,
    mean: Tensor,
    covariance: Covariance,
    spectrum: Tensor,
    device: torch.device | str,
) -> NeuralDenoiser:
    lmax = spectrum.shape[-1] - 1
    field = GaussianField(Tabulated(spectrum), lmax, dtype=torch.float32, device=device)
    process, unit = OrnsteinUhlenbeck(field, schedule), torch.ones(len(mean), 1)  # as encoded
    known = harmonics.count(operator.config.lmax)
    return NeuralDenoiser(process, operator, mean, covariance, unit=unit, known=known)


def _halved(x: Tensor) -> Tensor:
    """In half precision if nothing is lost by it."""
    half = x.half()
    return half if torch.equal(half.to(x), x) else x
