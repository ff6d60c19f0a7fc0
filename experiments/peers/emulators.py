"""Methods that need no network, and ours.

All see standardised anomalies x of shape (N, channels, n) and draw in the same units.

    isotropic   x_{ℓm} ~ N(0, C_ℓ), C_ℓ = (N(2ℓ+1))⁻¹ Σ_{k,m} x_{k,ℓm} x_{k,ℓm}ᵀ
    gaussian    x ~ N(x̄, S), S the sample covariance with shrunk correlations
    bootstrap   x one of the known maps
    spherediff  the package's own model and training

What does not tune itself on validation maps uses them as training maps.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from archives import Split
from torch import Tensor
from training import clock

from spherediff import harmonics
from spherediff.calibrate import calibrate
from spherediff.covariance import Covariance
from spherediff.data import Encoder
from spherediff.data.amplitude import Amplitude
from spherediff.data.climatology import inflation
from spherediff.denoise import NeuralDenoiser
from spherediff.gaussian import MultivariateGaussianField
from spherediff.model import Model
from spherediff.train import Fields, TrainConfig, TrainResult, train

_CALIBRATION = 43  # times that of a judgement


class Emulator(Protocol):
    """Something that learns the law of an archive."""

    def fit(
        self, training: Tensor, validation: Tensor, seconds: float, seed: int
    ) -> dict[str, Any]:
        """Learn from maps (N, channels, n).

        Args:
            training: to learn from.
            validation: to stop or tune by.
            seconds: budget of :func:`training.clock`.
            seed: of all randomness.

        Returns:
            What is worth recording, JSON-able; ``steps`` where there are any.
        """
        ...

    def sample(self, count: int, seed: int) -> Tensor:
        """Draw maps, (count, channels, n)."""
        ...


class IsotropicGaussian:
    """An isotropic Gaussian field with the archive's spectra and cross spectra (``synfast``)."""

    def fit(
        self, training: Tensor, validation: Tensor, seconds: float, seed: int
    ) -> dict[str, Any]:
        self.field = MultivariateGaussianField(
            cross_spectrum(torch.cat([training, validation])), dtype=torch.float32
        )
        return {}

    def sample(self, count: int, seed: int) -> Tensor:
        return self.field.sample((count,), generator=torch.Generator().manual_seed(seed))


class FullGaussian:
    """A Gaussian with the archive's covariance, correlations shrunk (Schäfer & Strimmer 2005)."""

    def fit(
        self, training: Tensor, validation: Tensor, seconds: float, seed: int
    ) -> dict[str, Any]:
        known = torch.cat([training, validation])
        self.mean, self.covariance = known.mean(0), Covariance.shrunk(known)
        return {"rank": len(self.covariance.factor)}

    def sample(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        D, U = self.covariance.diagonal, self.covariance.factor
        local = torch.randn(count, *D.shape, generator=generator)
        shared = torch.randn(count, len(U), generator=generator)
        return self.mean + D.sqrt() * local + torch.tensordot(shared, U, dims=1)


class Bootstrap:
    """The known maps again, drawn with replacement: the perfect memoriser."""

    def fit(
        self, training: Tensor, validation: Tensor, seconds: float, seed: int
    ) -> dict[str, Any]:
        self.known = torch.cat([training, validation])
        return {}

    def sample(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return self.known[torch.randint(len(self.known), (count,), generator=generator)]


class SphereDiff:
    """The package's model as it comes: its defaults, with as many steps as the time allows.

    Like ``spherediff train`` it divides anomalies by their local amplitude and is told the time of
    the year, of the ensemble the year.  The schedule of the learning rate wants the number of steps
    beforehand, so the speed is measured first, at the expense of the budget.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def fit(
        self, training: Tensor, validation: Tensor, seconds: float, seed: int
    ) -> dict[str, Any]:
        start = clock()
        self.model, known, judged = untrained(self.split, training, validation, seed)
        learners = self.model.learners(known.x)
        step, judgement = self._speed(known, judged, seed)
        every = TrainConfig().evaluate_every
        left = seconds - (clock() - start) - (1 + _CALIBRATION) * judgement
        config = TrainConfig(steps=max(1, int(left / (step + judgement / every))), seed=seed)
        amplitude = self.model.encoder.amplitude
        result = learn(self.model.denoiser, learners, known, judged, amplitude, config)
        parameters = sum(p.numel() for p in self.model.network.parameters())
        return {"steps": result.step, "parameters": parameters, "validation": asdict(result)}

    def sample(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        told = self.split.test_told
        x = self.model.sample(count, generator=generator, labels=told, progress=True)
        return self.split.encoder.standardise(self.model.encoder.anomalies(x)).float()

    def _speed(self, known: Fields, judged: Fields, seed: int) -> tuple[float, float]:
        """Seconds of a step, and of a judgement on the validation maps.

        A run of k steps takes k steps and two judgements, one before and one after them.
        """
        few, many = 3, 33
        untrained = copy.deepcopy(self.model.network.state_dict())
        took = [_seconds_of_run(self.model, known, judged, steps, seed) for steps in (1, few, many)]
        self.model.network.load_state_dict(untrained)
        step = max((took[2] - took[1]) / (many - few), 1e-4)  # the first also fills caches
        return step, max((took[1] - few * step) / 2, 0.0)


def learn(
    denoiser: NeuralDenoiser,
    learners: Sequence[NeuralDenoiser],
    known: Fields,
    judged: Fields,
    amplitude: Amplitude,
    config: TrainConfig,
) -> TrainResult:
    """Train by cross-fitting, see :func:`spherediff.train.train`, and calibrate."""
    with tempfile.TemporaryDirectory() as directory:
        result = train(denoiser, known, judged, config, directory, learners=learners)
    calibrate(denoiser, known, judged, learners=learners, amplitude=amplitude)
    return result


def untrained(
    split: Split, training: Tensor, validation: Tensor, seed: int, amplitude_degree: int = 23
) -> tuple[Model, Fields, Fields]:
    """The package's model before its training, and its fields to train on and to stop by."""
    encoder = locally_scaled(split.encoder, training, amplitude_degree)
    told = split.labels.encode(split.known_told, len(training) + len(validation))
    given_back = inflation(split.encoder.climatology, len(training))  # the cycle is fitted to these
    known, judged = (
        (factor * encoder.standardise(split.encoder.anomalies(x))).float()
        for factor, x in ((given_back, training), (1.0, validation))
    )
    fields = Fields(known, told[: len(known)])
    model = Model.build(encoder, fields, labels=split.labels, seed=seed)
    return model, fields, Fields(judged, told[len(known) :])


def locally_scaled(encoder: Encoder, x: Tensor, degree: int) -> Encoder:
    """The encoder with the local amplitude of these maps, which it has encoded."""
    anomalies = encoder.anomalies(x)
    amplitude = Amplitude.likeliest(anomalies, min(degree, encoder.lmax))
    power = amplitude.divide(anomalies).square().sum(-1).mean(0)
    return replace(encoder, amplitude=amplitude, scale=(power / (4 * math.pi)).sqrt())


def _seconds_of_run(model: Model, known: Fields, judged: Fields, steps: int, seed: int) -> float:
    start = clock()
    with tempfile.TemporaryDirectory() as directory:
        config = TrainConfig(steps=steps, seed=seed)
        train(model.denoiser, known, judged, config, directory, progress=False)
    return clock() - start


def cross_spectrum(x: Tensor) -> Tensor:
    """C_ℓ^{cd} = (N(2ℓ+1))⁻¹ Σ_{k,m} x^c x^d, float64, shape (lmax + 1, channels, channels)."""
    x = x.double()
    lmax = harmonics.band_limit(x.shape[-1])
    products = torch.einsum("kcn,kdn->ncd", x, x) / len(x)
    degree = harmonics.degrees(lmax)
    total = products.new_zeros(lmax + 1, *products.shape[1:]).index_add(0, degree, products)
    return total / (2 * torch.arange(lmax + 1) + 1)[:, None, None]
