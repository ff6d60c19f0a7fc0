"""What each part of the model is worth: one change at a time, judged on validation maps.

    python experiments/peers/ablations.py ARCHIVES --output OUT [--archive pr] [--seconds 160]
        [--threads 1] [--variants …]

Every variant is trained for the same processor time and draws one map for each date of the
validation maps, which the scorecard then compares with these; test years are never looked at.  The
network of the first variant also goes through every sampler at several numbers of steps.
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
| KL weight | log σ/α uniform and errors weighed by cos²ψ, the integrand of the entropic bound |
| spectral | a network on coefficients without a grid |
| U-Net | convolutions on the grid, padded over the poles |
| noise k | degree spectrum of the noise times (1 + ℓ)^k: rougher for k > 0, smoother for k < 0 |
| mixture | no network: four Gaussians with shrunk covariances, by k-means |
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import archives
import matplotlib.pyplot as plt
import networks
import torch
from archives import Split
from emulators import locally_scaled
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from store import environment, read_json, write_json
from torch import Tensor, nn
from training import Budget, train_within

from spherediff import harmonics
from spherediff._files import atomic_write, require_writable
from spherediff._system import keep_freed_memory
from spherediff.covariance import Covariance
from spherediff.data import Encoder, Labels
from spherediff.data.static import amplitude_fields, static_fields
from spherediff.denoise import Denoiser, GaussianDenoiser, MixtureDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.metrics import Scorecard, scorecard
from spherediff.model import archive_moments
from spherediff.nn import SphericalOperator
from spherediff.process import OrnsteinUhlenbeck
from spherediff.sample import Bridge, Heun, ProbabilityFlow, ReverseSDE, Sampler
from spherediff.spectra import Tabulated
from spherediff.train import residual_error
from spherediff.train.batches import spread_normal

PARTS = 5
LEARNING_RATE, BATCH = 6e-3, 16
STEPS_DRAWN = 48
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

Reference = Callable[[Tensor, Tensor, Tensor], Covariance]
Network = Callable[[Tensor, Tensor, int], nn.Module]  # of static fields, amplitudes, conditions


def correlated(x: Tensor, variance: Tensor, _: Tensor) -> Covariance:
    return Covariance.principal(x, variance)


def independent(_: Tensor, variance: Tensor, __: Tensor) -> Covariance:
    return Covariance(variance)


def isotropic(_: Tensor, __: Tensor, spectrum: Tensor) -> Covariance:
    return Covariance(harmonics.expand(spectrum))


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


def log_normal(count: int, _: tuple[float, float]) -> Tensor:
    """log σ/α as the package draws it in training."""
    return -0.3 + 1.2 * spread_normal(count).float()


def uniform(count: int, limits: tuple[float, float]) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(count)


def unit(_: NeuralDenoiser, log_noise: Tensor) -> Tensor:
    return torch.ones(len(log_noise), 1, 1)


def entropic(denoiser: NeuralDenoiser, log_noise: Tensor) -> Tensor:
    """α²p/σ² = cos²ψ, the integrand of the Kullback–Leibler bound by log σ/α, mode by mode."""
    t = denoiser.process.time_of(log_noise)[:, None]
    return denoiser.reference.angle(t).cos.square()


@dataclass(frozen=True)
class Variant:
    """The model with one thing changed."""

    amplitude_degree: int = 23
    season: bool = True
    rotations: int = 1
    reference: Reference = correlated
    network: Network = operator
    noise_exponent: float = 0.0
    noise_levels: Callable[[int, tuple[float, float]], Tensor] = log_normal
    weight: Callable[[NeuralDenoiser, Tensor], Tensor] = unit


VARIANTS = {
    "default": Variant(),
    "independent": Variant(reference=independent),
    "isotropic": Variant(reference=isotropic),
    "amplitude 0": Variant(amplitude_degree=0),
    "no season": Variant(season=False),
    "no slopes": Variant(network=partial(operator, slopes=0)),
    "degrees apart": Variant(network=operator_of_degrees_apart),
    "no estimate": Variant(network=operator_without_estimate),
    "divided only": Variant(network=operator_on_divided_fields),
    "no static fields": Variant(network=sized),
    "no places": Variant(network=partial(sized, positional=0)),
    "rotated": Variant(rotations=4),
    "KL weight": Variant(noise_levels=uniform, weight=entropic),
    "spectral": Variant(network=networks.SpectralNetwork),
    "U-Net": Variant(network=networks.SphericalUNet),
} | {f"noise {k:+g}": Variant(noise_exponent=k) for k in (-2.0, -1.0, 1.0, 2.0)}
MIXTURE = "mixture"


class Learning:
    """A variant on an archive: fields, references and the loss."""

    def __init__(self, variant: Variant, split: Split, seed: int) -> None:
        self.variant = variant
        self.encoder = locally_scaled(split.encoder, split.training, variant.amplitude_degree)
        plain = split.encoder
        training, validation = (
            self.encoder.standardise(plain.anomalies(x)).float()
            for x in (split.training, split.validation)
        )
        count = len(training) + len(validation)
        labels = split.labels if variant.season else Labels()
        season = labels.encode({name: split.known_told[name] for name in labels.names}, count)
        self.count = len(training)
        turned = [
            rotated(training, 2 * torch.pi * k / variant.rotations)
            for k in range(variant.rotations)
        ]
        self.x = torch.cat([*turned, validation])
        told = [season[: self.count]] * variant.rotations
        self.season = torch.cat([*told, season[self.count :]])
        self.known = self.count * variant.rotations
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lmax = harmonics.band_limit(training.shape[-1])
            unlabelled = training.new_zeros(len(training), 0)
            static = static_fields(self.encoder, training, unlabelled, lmax)
            amplitude = amplitude_fields(self.encoder, lmax)
            self.network = variant.network(static, amplitude, season.shape[1])
        self.denoiser = self._denoiser(training)
        edges = [self.count * k // PARTS for k in range(PARTS + 1)]
        self.parts = [slice(a, b) for a, b in pairwise(edges)]
        self.learners = [
            self._denoiser(torch.cat([training[: part.start], training[part.stop :]]))
            for part in self.parts
        ]

    def _denoiser(self, x: Tensor) -> NeuralDenoiser:
        mean, variance, spectrum = archive_moments(x)
        lmax = spectrum.shape[-1] - 1
        noise = spectrum * (1 + torch.arange(lmax + 1)) ** self.variant.noise_exponent
        noise = noise * (spectrum.sum(-1) / noise.sum(-1))[:, None]
        field = GaussianField(Tabulated(noise), lmax, dtype=torch.float32)
        covariance = self.variant.reference(x, variance, spectrum)
        return NeuralDenoiser(OrnsteinUhlenbeck(field), self.network, mean, covariance)

    def loss(self, network: nn.Module, indices: Tensor) -> Tensor:
        """Weighted mean square of F − T; validation maps come after the training maps."""
        if int(indices[0]) >= self.known:
            denoiser = self.denoiser
        else:
            k = int(indices[0]) % self.count * PARTS // self.count
            part = self.parts[k]
            within = part.start + indices % (part.stop - part.start)
            indices = indices // self.count * self.count + within
            denoiser = self.learners[k]
        denoiser.network = network
        low, high = denoiser.process.schedule.log_snr_range
        log_noise = self.variant.noise_levels(len(indices), (-high, -low)).clamp(-high, -low)
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        told = denoiser.given(self.season[indices]) if self.season.shape[1] else denoiser
        error, _ = residual_error(told, self.x[indices], log_noise, generator)
        return (self.variant.weight(denoiser, log_noise) * error.square()).mean()

    def train(self, seconds: float, seed: int) -> dict[str, Any]:
        """Train within the budget; the record of it."""
        budget = Budget(seconds, seed, batch=BATCH, learning_rate=LEARNING_RATE)
        training = torch.arange(self.known)
        validation = torch.arange(self.known, len(self.x))
        record = train_within(budget, self.network, self.loss, training, validation)
        self.denoiser.network = self.network
        return record

    def told(self) -> Denoiser:
        """The denoiser at the dates of the validation maps."""
        season = self.season[self.known :]
        return self.denoiser.given(season) if season.shape[1] else self.denoiser


def rotated(x: Tensor, angle: float) -> Tensor:
    """Fields turned about the axis: a_m' = cos(mφ) a_m − sin(mφ) a_{−m}."""
    lmax = harmonics.band_limit(x.shape[-1])
    degree, order = harmonics.degrees(lmax), harmonics.orders(lmax)
    partner = x[..., degree**2 + degree - order]
    return torch.cos(order * angle) * x - torch.sin(order * angle) * partner


def mixture(split: Split, seed: int) -> tuple[Encoder, MixtureDenoiser]:
    """Four Gaussians: clusters in the space of the leading principal components."""
    encoder = locally_scaled(split.encoder, split.training)
    x = encoder.standardise(split.encoder.anomalies(split.training)).float()
    _, _, spectrum = archive_moments(x)
    lmax = spectrum.shape[-1] - 1
    process = OrnsteinUhlenbeck(GaussianField(Tabulated(spectrum), lmax, dtype=torch.float32))
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
    return encoder, MixtureDenoiser(components, [len(one) / len(x) for one in members])


def judged(split: Split, encoder: Encoder, draws: Tensor) -> dict[str, Any]:
    """The scorecard against validation maps, as JSON holds it."""
    card: Scorecard = scorecard(
        encoder.anomalies(draws),
        *(split.encoder.anomalies(x) for x in (split.validation, split.training)),
        names=encoder.names,
        resamples=50,
        generator=torch.Generator().manual_seed(7),
    )
    return {
        "differs": sum(row.differs for row in card.rows),
        "rows": [asdict(row) | {"differs": row.differs} for row in card.rows],
    }


def draw(denoiser: Denoiser, count: int, kind: type[Sampler], steps: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return kind(denoiser, steps=steps).sample((count,), generator=generator, progress=True)


def run_variant(name: str, split: Split, options: argparse.Namespace) -> dict[str, Any]:
    """Train, draw, judge."""
    record: dict[str, Any] = {"variant": name, "budget_seconds": options.seconds, **environment()}
    count = len(split.validation)
    if name == MIXTURE:
        encoder, denoiser = mixture(split, options.seed)
    else:
        learning = Learning(VARIANTS[name], split, options.seed)
        record |= {"training": learning.train(options.seconds, options.seed)}
        encoder, denoiser = learning.encoder, learning.told()
        if name == "default":
            save_file(learning.network.state_dict(), options.output / "default.safetensors")
    x = draw(denoiser, count, ProbabilityFlow, STEPS_DRAWN, options.seed + 1)
    return record | judged(split, encoder, x)


def run_samplers(split: Split, options: argparse.Namespace) -> dict[str, Any]:
    """The default network through every sampler at every number of steps."""
    learning = Learning(VARIANTS["default"], split, options.seed)
    learning.network.load_state_dict(load_file(options.output / "default.safetensors"))
    cards = {}
    for kind in SAMPLERS:
        for steps in STEPS:
            print(f"{kind.__name__}, {steps} steps", flush=True)
            x = draw(learning.told(), len(split.validation), kind, steps, options.seed + 1)
            cards[f"{kind.__name__} {steps}"] = judged(split, learning.encoder, x)
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
    names = [name for name in [*VARIANTS, MIXTURE] if (output / f"{name}.json").exists()]
    cards = {name: read_json(output / f"{name}.json") for name in names}
    steps = {name: str(card.get("training", {}).get("steps", "")) for name, card in cards.items()}
    lines = [line(name, card, steps[name]) for name, card in cards.items()]
    with atomic_write(output / "variants.md") as temporary:
        temporary.write_text(table(lines, "variant", "steps"), "utf-8")
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
    parser.add_argument("--seconds", type=float, default=160.0, help="of training, each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, MIXTURE],
                        default=[*VARIANTS, MIXTURE])  # fmt: skip
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
