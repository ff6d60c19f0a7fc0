"""What each part of the model is worth: one change at a time, judged on validation maps.

    python experiments/peers/ablations.py ARCHIVES --output OUT [--archive pr] [--steps 500]
        [--threads 1] [--variants …]

Every variant is trained with as many steps, by the package's own training, and calibrated; it draws
one map for each date of the validation maps, which the scorecard then compares with these; test
years are never looked at.  The first variant also goes through every sampler at several numbers of
steps.
OUT/variants.md and OUT/samplers.md hold the tables, OUT/noise.png fidelity against the smoothness
of the noise; what OUT has already is kept.

| variant | what is changed |
|---|---|
| default | nothing: the package's model |
| independent | variances of coefficients, no correlations, in the reference |
| isotropic | a reference with the archive's degree spectrum alone: F = 0 is an isotropic field |
| amplitude 0 | no local amplitude |
| no season | the network is not told the time of the year |
| no slopes | convolutions that are alike in all directions |
| degrees apart | a matrix and gains of its own for each degree, not for each octave |
| no estimate | the network sees the preconditioned coefficients alone |
| divided only | the network sees the estimate in units of the local amplitude alone |
| no static fields | no fields that start as the climatology, spread and skewness of each place |
| no places | no positional fields at all |
| rotated | training maps in four positions about the axis, as if longitude did not matter |
| KL weight | errors weighed by cos²ψ as in the entropic bound, log σ/α spread as a uniform law |
| spectral | a network on coefficients without a grid, 15 times as many steps, which take as long |
| U-Net | convolutions on the grid, padded over the poles |
| noise k | degree spectrum of the noise times (1 + ℓ)^k: rougher for k > 0, smoother for k < 0 |
| uncalibrated | the network of the default without its calibration |
| mixture | no network: four Gaussians with shrunk covariances, by k-means |
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import archives
import matplotlib.pyplot as plt
import networks
import torch
from archives import Split
from emulators import learn, untrained
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from store import environment, read_json, write_json
from torch import Tensor, nn

from spherediff import harmonics
from spherediff._files import atomic_write, require_writable
from spherediff._system import keep_freed_memory
from spherediff.covariance import Covariance
from spherediff.data import Encoder, Labels
from spherediff.denoise import GaussianDenoiser, MixtureDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.metrics import Scorecard, scorecard
from spherediff.model import Model
from spherediff.nn import SphericalOperator
from spherediff.process import OrnsteinUhlenbeck
from spherediff.reference import Reference
from spherediff.sample import Bridge, Heun, ProbabilityFlow, ReverseSDE, Sampler
from spherediff.spectra import Tabulated
from spherediff.train import Fields, TrainConfig, TrainResult, conditioned, fold

STEPS_DRAWN, DRAWN_AT_ONCE = 48, 16
WIDE = {"log_noise_mean": 0.0, "log_noise_std": 8 / math.sqrt(12)}  # of a uniform law on (−4, 4)
SAMPLERS = (ProbabilityFlow, Heun, ReverseSDE, Bridge)
STEPS = (8, 16, 32, 64)
COMPONENTS, DIRECTIONS = 4, 10  # of the mixture, and leading directions for k-means
SHOWN = {
    "spectrum by octave, log ratio": "spectrum",
    "log standard-deviation map": "std map",
    "skewness map": "skewness map",
    "local marginals, W1": "marginals",
    "gradient, W1": "gradient",
}

Correlations = Callable[[NeuralDenoiser], Covariance]
Network = Callable[[Tensor, Tensor, int], nn.Module]  # of static fields, amplitudes, conditions


def correlated(denoiser: NeuralDenoiser) -> Covariance:
    """The package's."""
    return denoiser.covariance


def independent(denoiser: NeuralDenoiser) -> Covariance:
    return Covariance(denoiser.covariance.variance)


def isotropic(denoiser: NeuralDenoiser) -> Covariance:
    return Covariance(harmonics.expand(denoiser.process.field.degree_variance))


def operator(static: Tensor, amplitude: Tensor, conditions: int, **options: int) -> nn.Module:
    network = sized(static, amplitude, conditions, static=len(static), **options)
    network.start_from(static, amplitude)
    return network


def operator_without_estimate(static: Tensor, amplitude: Tensor, conditions: int) -> nn.Module:
    return networks.WithoutEstimate(operator(static, amplitude, conditions))


def operator_on_divided_fields(static: Tensor, amplitude: Tensor, conditions: int) -> nn.Module:
    network = operator(static, amplitude, conditions)
    network.amplitude.zero_()
    return network


def operator_of_degrees_apart(static: Tensor, amplitude: Tensor, conditions: int) -> nn.Module:
    return networks.degrees_apart(operator(static, amplitude, conditions))


def sized(_: Tensor, amplitude: Tensor, conditions: int, **options: int) -> SphericalOperator:
    """An operator up to the degree of the amplitudes, which does not know them."""
    lmax = harmonics.band_limit(amplitude.shape[-1])
    return SphericalOperator(lmax, len(amplitude), conditions=conditions, **options)


class Entropic(NeuralDenoiser):
    """F and its target by cosψ: squares are weighed by α²p/σ² = cos²ψ, mode by mode, as is the
    integrand of the Kullback–Leibler bound by log σ/α.
    """

    @property
    def reference(self) -> Reference:
        weighed = copy.copy(self._reference)
        weighed.residual = lambda m, z, t: self._cos(t) * self._reference.residual(m, z, t)
        return weighed

    def residual(self, z: Tensor, t: Tensor | float) -> Tensor:
        return self._cos(t) * super().residual(z, t)

    def _cos(self, t: Tensor | float) -> Tensor:
        return self._reference.angle(t).cos


@dataclass(frozen=True)
class Variant:
    """The model with one thing changed."""

    amplitude_degree: int = 23
    season: bool = True
    rotations: int = 1
    correlations: Correlations = correlated
    network: Network = operator
    noise_exponent: float = 0.0
    learner: type[NeuralDenoiser] = NeuralDenoiser
    training: Mapping[str, float] = field(default_factory=dict)
    steps: int = 1  # for each one of the others

    def of(
        self, denoiser: NeuralDenoiser, network: nn.Module, kind: type[NeuralDenoiser]
    ) -> NeuralDenoiser:
        """The package's denoiser, changed."""
        process = denoiser.process
        spectrum = process.field.degree_variance
        noise = spectrum * (1 + torch.arange(spectrum.shape[-1])) ** self.noise_exponent
        noise = noise * (spectrum.sum(-1) / noise.sum(-1))[:, None]
        rough = GaussianField(Tabulated(noise), process.field.lmax, dtype=torch.float32)
        return kind(
            OrnsteinUhlenbeck(rough, process.schedule),
            network,
            denoiser.mean,
            self.correlations(denoiser),
            unit=denoiser.unit,
        )


VARIANTS = {
    "default": Variant(),
    "independent": Variant(correlations=independent),
    "isotropic": Variant(correlations=isotropic),
    "amplitude 0": Variant(amplitude_degree=0),
    "no season": Variant(season=False),
    "no slopes": Variant(network=partial(operator, slopes=0)),
    "degrees apart": Variant(network=operator_of_degrees_apart),
    "no estimate": Variant(network=operator_without_estimate),
    "divided only": Variant(network=operator_on_divided_fields),
    "no static fields": Variant(network=sized),
    "no places": Variant(network=partial(sized, positional=0)),
    "rotated": Variant(rotations=4),
    "KL weight": Variant(learner=Entropic, training=WIDE),
    "spectral": Variant(network=networks.SpectralNetwork, steps=15, training={"patience": 75}),
    "U-Net": Variant(network=networks.SphericalUNet),
} | {f"noise {k:+g}": Variant(noise_exponent=k) for k in (-2.0, -1.0, 1.0, 2.0)}
DEFAULT, UNCALIBRATED, MIXTURE = "default", "uncalibrated", "mixture"
WEIGHTS = f"{DEFAULT}.safetensors"
NAMES = (DEFAULT, UNCALIBRATED, *list(VARIANTS)[1:], MIXTURE)


class Ablation:
    """A variant on an archive.

    Attributes:
        encoder: of the fields that it draws.
        denoiser: of its network.
        learners: with references from the other parts, for cross-fitting.
        known: fields to learn from.
        judged: fields to stop by and to calibrate on.
    """

    def __init__(self, variant: Variant, split: Split, seed: int) -> None:
        self.variant = variant
        if not variant.season:
            time = {name: dates for name, dates in split.known_told.items() if name == "time"}
            split = replace(split, labels=Labels(), known_told=time)
        model, known, self.judged = untrained(split, *split.tuning, seed, variant.amplitude_degree)
        self.encoder = model.encoder
        learners = model.learners(known.x)
        network = changed(model, variant.network, seed)
        self.denoiser = variant.of(model.denoiser, network, NeuralDenoiser)
        self.learners = [variant.of(one, network, variant.learner) for one in learners]
        self.known = in_positions(known, variant.rotations, len(learners))

    def train(self, steps: int, seed: int) -> TrainResult:
        """Train and calibrate."""
        config = TrainConfig(steps=steps * self.variant.steps, seed=seed, **self.variant.training)
        amplitude = self.encoder.amplitude
        return learn(self.denoiser, self.learners, self.known, self.judged, amplitude, config)

    def draw(self, kind: type[Sampler], steps: int, seed: int) -> Tensor:
        """A map for each date of the validation maps."""
        generator = torch.Generator().manual_seed(seed)
        told = self.judged.split(DRAWN_AT_ONCE)
        samplers = [kind(conditioned(self.denoiser, part), steps=steps) for part in told]
        with kind.progress_bar(sum(one.steps for one in samplers), True) as bar:
            draws = [
                one.sample((len(part.x),), generator=generator, progress=bar)
                for one, part in zip(samplers, told, strict=True)
            ]
        return torch.cat(draws)


def changed(model: Model, make: Network, seed: int) -> nn.Module:
    """Another network of what the model's knows beforehand, from the same seed."""
    static = model.network.positional.detach()[:, model.network.config.positional :].T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(static, model.network.amplitude.T, model.labels.size)


def in_positions(fields: Fields, count: int, parts: int) -> Fields:
    """Fields turned about the axis to so many positions, those of a part together."""
    if count == 1:
        return fields
    fields = fields.at(slice(len(fields.x) // parts * parts))
    turned = [
        Fields(rotated(part.x, 2 * math.pi * k / count), part.condition)
        for part in (fields.at(fold(len(fields.x), k, parts)) for k in range(parts))
        for k in range(count)
    ]
    return Fields(*map(torch.cat, zip(*turned, strict=True)))


def rotated(x: Tensor, angle: float) -> Tensor:
    """Fields turned about the axis: a_m' = cos(mφ) a_m − sin(mφ) a_{−m}."""
    lmax = harmonics.band_limit(x.shape[-1])
    degree, order = harmonics.degrees(lmax), harmonics.orders(lmax)
    partner = x[..., degree**2 + degree - order]
    return torch.cos(order * angle) * x - torch.sin(order * angle) * partner


def mixture(split: Split, seed: int) -> tuple[Encoder, MixtureDenoiser]:
    """Four Gaussians: clusters in the space of the leading principal components."""
    model, known, _ = untrained(split, *split.tuning, seed)
    x, process = known.x, model.denoiser.process
    flat = (x - x.mean(0)).flatten(1)
    scores = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:DIRECTIONS].T
    label = torch.from_numpy(
        KMeans(COMPONENTS, n_init=10, random_state=seed).fit_predict(scores.numpy())
    )
    members = [x[label == k] for k in range(COMPONENTS)]
    components = [
        GaussianDenoiser(process, covariance=Covariance.shrunk(one), mean=one.mean(0))
        for one in members
    ]
    return model.encoder, MixtureDenoiser(components, [len(one) / len(x) for one in members])


def judged(split: Split, encoder: Encoder, draws: Tensor) -> dict[str, Any]:
    """The scorecard against validation maps, as JSON holds it."""
    training, validation = split.tuning
    card: Scorecard = scorecard(
        encoder.anomalies(draws),
        *(split.encoder.anomalies(x) for x in (validation, training)),
        names=encoder.names,
        resamples=50,
        generator=torch.Generator().manual_seed(7),
    )
    return {
        "differs": sum(row.differs for row in card.rows),
        "rows": [asdict(row) | {"differs": row.differs} for row in card.rows],
    }


def run_variant(name: str, split: Split, options: argparse.Namespace) -> dict[str, Any]:
    """Train, draw, judge."""
    record: dict[str, Any] = {"variant": name, **environment()}
    seed = options.seed + 1
    if name == MIXTURE:
        encoder, denoiser = mixture(split, options.seed)
        generator = torch.Generator().manual_seed(seed)
        sampler = ProbabilityFlow(denoiser, steps=STEPS_DRAWN)
        x = sampler.sample((len(split.validation),), generator=generator, progress=True)
        return record | judged(split, encoder, x)
    if name == UNCALIBRATED:
        ablation = trained_default(split, options)
        ablation.denoiser.calibration.reset()
    else:
        ablation = Ablation(VARIANTS[name], split, options.seed)
        record |= {"training": asdict(ablation.train(options.steps, options.seed))}
    if name == DEFAULT:
        save_file(ablation.denoiser.state_dict(), options.output / WEIGHTS)
    x = ablation.draw(ProbabilityFlow, STEPS_DRAWN, seed)
    return record | judged(split, ablation.encoder, x)


def trained_default(split: Split, options: argparse.Namespace) -> Ablation:
    """The first variant as it was kept."""
    ablation = Ablation(VARIANTS[DEFAULT], split, options.seed)
    ablation.denoiser.load_state_dict(load_file(options.output / WEIGHTS))
    return ablation


def run_samplers(split: Split, options: argparse.Namespace) -> dict[str, Any]:
    """The default network through every sampler at every number of steps."""
    ablation, cards = trained_default(split, options), {}
    for kind in SAMPLERS:
        for steps in STEPS:
            print(f"{kind.__name__}, {steps} steps", flush=True)
            x = ablation.draw(kind, steps, options.seed + 1)
            cards[f"{kind.__name__} {steps}"] = judged(split, ablation.encoder, x)
    return {"cards": cards, **environment()}


def line(name: str, card: dict[str, Any], lead: str) -> str:
    rows = {row["statistic"]: row for row in card["rows"]}
    cells = [f"{rows[statistic]['ratio']:.2f}" for statistic in SHOWN]
    aucs = [f"{r['value']:.2f}" for r in card["rows"] if r["statistic"].startswith("classifier")]
    return f"| {name} | {lead} | {card['differs']} | {' | '.join(cells + aucs)} |"


def table(lines: list[str], first: str, lead: str) -> str:
    heads = [*SHOWN.values(), "AUC coefficients", "AUC maps"]
    head = f"| {first} | {lead} | rows that differ | {' | '.join(heads)} |"
    return "\n".join([head, "|---" * (len(heads) + 3) + "|", *lines, ""])


def write_tables(output: Path) -> None:
    """Everything that is there."""
    names = [name for name in NAMES if (output / f"{name}.json").exists()]
    cards = {name: read_json(output / f"{name}.json") for name in names}
    losses = {
        name: f"{card['training']['best']:.3f}" if "training" in card else ""
        for name, card in cards.items()
    }
    lines = [line(name, card, losses[name]) for name, card in cards.items()]
    with atomic_write(output / "variants.md") as temporary:
        temporary.write_text(table(lines, "variant", "loss"), "utf-8")
    if (output / "samplers.json").exists():
        found = read_json(output / "samplers.json")["cards"]
        lines = []
        for key, card in found.items():
            sampler, number = key.split(" ")
            lines.append(line(sampler, card, number))
        with atomic_write(output / "samplers.md") as temporary:
            temporary.write_text(table(lines, "sampler", "steps"), "utf-8")
    figure(cards, output / "noise.png")


def figure(cards: dict[str, Any], path: Path) -> None:
    """Fidelity against the smoothness of the noise."""
    exponents = {"default": 0.0} | {
        name: variant.noise_exponent
        for name, variant in VARIANTS.items()
        if variant.noise_exponent and name in cards
    }
    if len(exponents) < 3 or "default" not in cards:
        return
    order = sorted(exponents, key=lambda name: exponents[name])
    plt.style.use("tableau-colorblind10")
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for (statistic, label), marker in zip(SHOWN.items(), "osD^v", strict=True):
        rows = [next(r for r in cards[n]["rows"] if r["statistic"] == statistic) for n in order]
        axes[0].plot(
            [exponents[n] for n in order], [r["ratio"] for r in rows], f"{marker}-", label=label
        )
    axes[0].axhline(1, color="black", lw=0.8)
    axes[0].set(ylabel="distance / noise floor", yscale="log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which("{x:g}")
    axes[0].legend(fontsize=8)
    for what, marker in (("coefficients", "o"), ("maps", "s")):
        rows = [
            next(r for r in cards[n]["rows"] if r["statistic"] == f"classifier AUC, {what}")
            for n in order
        ]
        axes[1].plot(
            [exponents[n] for n in order], [r["value"] for r in rows], f"{marker}-", label=what
        )
    axes[1].axhline(0.5, color="black", lw=0.8)
    axes[1].set(ylabel="classifier AUC")
    axes[1].legend(fontsize=8, title="classifier on")
    for ax in axes:
        ax.set_xlabel("k: noise spectrum = archive's × (1 + ℓ)^k")
        ax.set_xticks([exponents[n] for n in order])
    fig.suptitle("Noise smoother (k < 0) and rougher (k > 0) than the data")
    with atomic_write(path) as temporary:
        fig.savefig(temporary, format="png", dpi=150)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="ARCHIVES")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--archive", default="pr", choices=archives.NAMES)
    parser.add_argument("--steps", type=int, default=500, help="of training, each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--without-samplers", action="store_true")
    options = parser.parse_args()
    archives.require([options.archive], options.folder)
    require_writable(options.output / "variants.md")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    split = archives.load(options.archive, options.folder)
    for k, name in enumerate(options.variants):
        path = options.output / f"{name}.json"
        if not path.exists():
            print(f"{name}: variant {k + 1} of {len(options.variants)}", flush=True)
            write_json(path, run_variant(name, split, options))
    if not (options.output / "samplers.json").exists() and not options.without_samplers:
        write_json(options.output / "samplers.json", run_samplers(split, options))
    write_tables(options.output)


if __name__ == "__main__":
    main()
