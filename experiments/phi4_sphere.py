"""Generate φ⁴ fields in their ordered phase by reversing a nonlinear equation on the sphere.

    python experiments/phi4_sphere.py --directory phi4-output

The data are draws of the φ⁴ measure dμ ∝ e^{−V} dγ deep in its double well: domains of either sign.
The forward equation is the stochastic quantisation of *another* φ⁴ measure, with one well: its
drift is cubic, its transition densities are unknown, and so its score can be learnt from Malliavin
weights only.  The steps are

1. data, held-out data and draws of the forward equation's invariant law, by Metropolis chains;
2. pairs (X_t, −δ) at every time of a graded grid, kept on disk: a second run goes on from there;
3. the score by least squares on −δ, over random rotations and changes of sign;
4. the reverse equation from draws of the invariant law;
5. two-sample tests against held-out data, beside a second set of data (the floor) and the Gaussian
   field of the same mean spectrum.

Prints the tables and draws ``phi4-maps.png`` and ``phi4-laws.png`` into the directory.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path as FilePath

import ducc0
import matplotlib as mpl
import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

import spherediff as sd
from spherediff import _tensors, harmonics
from spherediff._files import atomic_write, require_writable
from spherediff.malliavin import estimated_weight, euler_maruyama
from spherediff.malliavin.langevin import langevin_weight
from spherediff.malliavin.phi4 import Phi4, effective_sample_size
from spherediff.malliavin.regression import Examples, Reference, ScoreRegression, fit_score
from spherediff.nn import SphericalOperator

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"held-out": "0.55", "generated": "#0072b2", "Gaussian": "#d55e00"}


@dataclass(frozen=True)
class Settings:
    """What the run depends on; a set of examples belongs to one of these.

    Attributes:
        lmax: band limit.
        archive: data that the score is learnt from.
        count: held-out data, second set of data, and fields generated.
        chain: Metropolis steps of each draw.
        examples: pairs (X_t, −δ) at each of the times.
        horizon: T.
        knots: number of times.
        training: steps of the optimiser.
        batch: examples in each.
        degrees, width: of the network.
        reverse: steps between two knots on the way back.
        seed: of everything.
    """

    lmax: int = 15
    archive: int = 1500
    count: int = 750
    chain: int = 400
    examples: int = 320
    horizon: float = 1.2
    knots: int = 16
    training: int = 1500
    batch: int = 128
    degrees: int = 7
    width: int = 16
    reverse: int = 4
    seed: int = 1

    @property
    def times(self) -> Tensor:
        """0 = t_0 < … < t_knots = T, t_k ∝ k^{3/2}."""
        return self.horizon * torch.linspace(0, 1, self.knots + 1, dtype=torch.float64) ** 1.5

    @property
    def of_data(self) -> dict[str, float]:
        """What examples depend on."""
        training = ("training", "batch", "degrees", "width", "reverse")
        return {name: value for name, value in asdict(self).items() if name not in training}


QUICK = Settings(
    archive=256, count=128, chain=150, examples=48, knots=8, training=150, width=8, reverse=2
)


class Rotations:
    """Random rotations, reflections and changes of sign of coefficients, all at once.

    A rotation by Euler angles is Z(α)Y(β)Z(γ), and Y(β) = J⁻¹Z(β)J with one fixed matrix J.
    """

    def __init__(self, lmax: int, generator: torch.Generator) -> None:
        n = harmonics.count(lmax)
        self.orders, self.degrees = harmonics.orders(lmax), harmonics.degrees(lmax)
        self.mirror = self.degrees * (self.degrees + 1) - self.orders
        alm = harmonics.to_healpy(torch.eye(n, dtype=torch.float64)).numpy()
        # Z(π/2)Y(π/2)Z(−π/2): about the x axis, which brings y to z
        turned = [
            ducc0.sht.rotate_alm(row, lmax, -math.pi / 2, math.pi / 2, math.pi / 2) for row in alm
        ]
        self.J = harmonics.from_healpy(torch.from_numpy(np.array(turned))).float()  # row: image
        self.generator = generator

    def __call__(self, *fields: Tensor) -> list[Tensor]:
        """The same random motion of each of several sets of fields, shape (N, n)."""
        N = len(fields[0])
        u = torch.rand(N, 5, generator=self.generator)
        alpha, gamma = (2 * math.pi * u[:, i : i + 1] for i in (0, 1))
        beta = torch.acos(2 * u[:, 2:3] - 1)
        sign = torch.where(u[:, 3:4] < 0.5, -1.0, 1.0)
        parity = torch.where((u[:, 4:5] < 0.5) & (self.degrees % 2 == 1), -1.0, 1.0)

        def move(a: Tensor) -> Tensor:
            tilted = self._spin(self._spin(a, gamma) @ self.J, beta) @ self.J.T
            return sign * parity * self._spin(tilted, alpha)

        return [move(a) for a in fields]

    def _spin(self, a: Tensor, angle: Tensor) -> Tensor:
        """Rotation about the axis: (m, −m) turn by mα."""
        phase = self.orders * angle
        return phase.cos() * a - phase.sin() * a[:, self.mirror]


class FieldNetwork(nn.Module):
    """F(z, log t): a spherical operator on low degrees that sees the field and the drift.

    Above those degrees F is zero, that is, the score the linear fit: regressing the targets on z
    and the drift explains less than one per cent of F there.

    Args:
        phi4: of the forward equation.
        reference: what the states were divided by.
        states: some of them, from which the size of the drift is measured.
        degrees: highest degree of the operator.
        width: of the operator.
    """

    size: Tensor

    def __init__(
        self, phi4: Phi4, reference: Reference, states: Tensor, degrees: int, width: int
    ) -> None:
        super().__init__()
        self.phi4, self._reference = phi4, [reference]  # a list, so that it is no submodule
        spectrum = harmonics.degree_spectrum(phi4.gradient(states)).mean(0)
        self.register_buffer("size", harmonics.expand(spectrum.sqrt()))
        self.kept = harmonics.count(degrees)
        self.operator = SphericalOperator(
            degrees,
            2,
            width=width,
            blocks=2,
            hidden=2 * width,
            slopes=0,
            positional=0,
            oversampling=1.5,
        )

    def forward(self, z: Tensor, log_time: Tensor) -> Tensor:
        std = self._reference[0](log_time.exp())[1]
        drift = self.phi4.gradient(z * std) / self.size
        z, drift = z[:, : self.kept], drift[:, : self.kept]
        # far out the drift confines because it is cubic: what is added to it must not be
        bounded = drift * (1 + drift.square().mean(1, keepdim=True) / 9).rsqrt()
        low = torch.stack([z, bounded], 1)
        return harmonics.resize(self.operator(low, low, log_time)[:, 0], self.phi4.field.lmax)


def measures(settings: Settings) -> tuple[Phi4, Phi4]:
    """The measure of the data and that of the forward equation, with one γ."""
    field = sd.GaussianField(sd.WhittleMatern(0.7, 2.0, 1.5), settings.lmax)
    return Phi4(field, 8.0, 8.0), Phi4(field, 0.5)


def draw(
    phi4: Phi4, count: int, settings: Settings, seed: int, name: str, step: float, file: FilePath
) -> Tensor:
    """Draws of a measure, with what shows that the chains have forgotten their start."""
    header = {"g": phi4.quartic, "r": phi4.quadratic, "count": count, "h": step, "draw": seed}
    header |= {"lmax": settings.lmax, "chain": settings.chain, "seed": settings.seed}
    stored = _stored(file, header)
    if stored is not None:
        print(f"{name}: from {file.name}, {virial(phi4, stored['z'])}")
        return stored["z"]
    generator = torch.Generator().manual_seed(settings.seed * 1000 + seed)
    parts, traces, accepted = [], [], []
    sizes = [len(part) for part in torch.arange(count).split(250)]
    for size in tqdm(sizes, desc=f"Metropolis, {name}"):
        draws = phi4.sample(size, generator=generator, steps=settings.chain, step=step)
        parts.append(draws.states)
        traces.append(draws.trace[settings.chain // 2 :])
        accepted.append(draws.acceptance)
    trace = torch.cat(traces, 1)
    tau = trace.numel() / effective_sample_size(trace)
    z = torch.cat(parts)
    _tensors.write(file, {"z": z}, header)
    print(
        f"{name}: {count} chains of {settings.chain} steps, {np.mean(accepted):.0%} accepted,"
        f" autocorrelation time of V {tau:.0f} steps, {virial(phi4, z)}"
    )
    return z


def virial(phi4: Phi4, z: Tensor) -> str:
    """E z·∇U = n, by integration by parts: the mean over n and its z-score."""
    ratio = -(z * phi4.score(z)).sum(-1) / z.shape[-1]
    error = float(ratio.std() / math.sqrt(len(z)))
    return f"E z·∇U/n = {float(ratio.mean()):.4f} ± {error:.4f}"


def examples(
    phi4: Phi4, archive: Tensor, settings: Settings, rotate: Rotations, directory: FilePath
) -> Examples:
    """Pairs (X_t, −δ) at each time of the grid, from files where there are some already."""
    clocked = phi4.clocked(settings.times)
    sets = []
    for k in tqdm(range(1, settings.knots + 1), desc="weights"):
        file = directory / f"examples-{k:02d}.safetensors"
        header = {"time": k, **settings.of_data}
        tensors = _stored(file, header)
        if tensors is None:
            generator = torch.Generator().manual_seed(settings.seed * 1000 + 100 + k)
            chosen = torch.randint(len(archive), (settings.examples,), generator=generator)
            (x0,) = rotate(archive[chosen])
            states, targets = [], []
            for part in x0.split(128):
                path = euler_maruyama(
                    clocked.sde, part, clocked.clock[: k + 1], generator=generator
                )
                states.append(path.end)
                targets.append(
                    -langevin_weight(path, clocked.sigma[:k], phi4.curvature, generator=generator)
                )
            tensors = {"states": torch.cat(states), "targets": torch.cat(targets)}
            _tensors.write(file, tensors, header)
        sets.append(tensors)
    times = settings.times[1:].float().repeat_interleave(settings.examples)
    return Examples(
        times, torch.cat([s["states"] for s in sets]), torch.cat([s["targets"] for s in sets])
    )


def _stored(file: FilePath, header: dict[str, float]) -> dict[str, Tensor] | None:
    if not file.is_file():
        return None
    found, tensors = _tensors.read(file, "set of examples")
    return tensors if found == header else None


def relative(phi4: Phi4, data: Examples) -> Examples:
    """The targets relative to e^{−V}: of ∇log p_t + C^{1/2}∇V in place of ∇log p_t."""
    return Examples(data.times, data.states, data.targets + phi4.gradient(data.states))


def reference(
    phi4: Phi4, archive: Tensor, data: Examples, settings: Settings, generator: torch.Generator
) -> Reference:
    """The best linear fit of ∇log p_t + C^{1/2}∇V at each time, and what it leaves.

    Its slope follows by integration by parts, −(1 − E z·C^{1/2}∇V)/E z² degree by degree.
    """
    clocked = phi4.clocked(settings.times)
    states = euler_maruyama(clocked.sde, archive, clocked.clock, generator=generator).states[1:]
    variance = harmonics.degree_spectrum(states).mean(1)
    multiplicity = 2 * torch.arange(settings.lmax + 1) + 1
    drift = torch.stack([phi4.gradient(z) for z in states])
    product = harmonics.sum_orders(states * drift).mean(1) / multiplicity
    std = harmonics.expand(variance.sqrt())
    slope = harmonics.expand(-(1 - product) / variance.sqrt())
    shape = (settings.knots, settings.examples, -1)
    left = data.targets.view(shape) - (slope / std)[:, None] * data.states.view(shape)
    scale = harmonics.expand(harmonics.degree_spectrum(left).mean(1).sqrt())
    times = settings.times[1:].log().float()
    return Reference(times, torch.zeros_like(std), std, slope, scale)


def train(
    model: ScoreRegression, data: Examples, rotate: Rotations, settings: Settings, file: FilePath
) -> None:
    """Least squares over random motions of the examples; from a file if there is one already."""
    tensors = _stored(file, asdict(settings))
    if tensors is not None:
        model.load_state_dict(tensors)
        return

    def batch(count: int) -> Examples:
        chosen = data[torch.randint(len(data), (count,), generator=rotate.generator)]
        return Examples(chosen.times, *rotate(chosen.states, chosen.targets))

    losses = fit_score(
        model,
        batch,
        steps=settings.training,
        batch=settings.batch,
        generator=rotate.generator,
        progress=True,
    )
    tenth = max(1, len(losses) // 10)
    first, last = np.mean(losses[:tenth]), np.mean(losses[-tenth:])
    print(f"loss (1 for the linear fit) {first:.4f} at first, {last:.4f} at last")
    _tensors.write(file, model.state_dict(), asdict(settings))


@torch.no_grad()
def reverse(
    phi4: Phi4, model: ScoreRegression, z: Tensor, settings: Settings, generator: torch.Generator
) -> Tensor:
    """dY = (∇U + 2∇log p) dτ + √2 dB from T to t_1 by Heun's rule, then the flow to 0.

    With the score relative to e^{−V} the drift is z − C^{1/2}∇V + 2(∇log p + C^{1/2}∇V): its cubic
    part confines, as that of the forward equation does, wherever the network has seen no states.
    """

    def relative_score(z: Tensor, t: Tensor) -> Tensor:
        return model(z, t.expand(len(z)))

    def slope(z: Tensor, t: Tensor) -> Tensor:
        return z - phi4.gradient(z) + 2 * relative_score(z, t)

    knots = settings.times[1:].flip(0).tolist()
    fine = [torch.linspace(*pair, settings.reverse + 1)[1:] for pair in pairwise(knots)]
    times = torch.cat([torch.tensor(knots[:1]), *fine])
    for t, s in tqdm(list(pairwise(times)), desc="reverse"):
        h = t - s
        noise = torch.randn(z.shape, generator=generator) * (2 * h).sqrt()
        here = slope(z, t)
        z = z + 0.5 * h * (here + slope(z + h * here + noise, s)) + noise
    if not bool(z.isfinite().all()):
        raise ValueError("reversed paths are not finite; train longer or take more steps")
    return z + times[-1] * (z + relative_score(z, times[-1]))


def energy_test(
    x: Tensor, y: Tensor, draws: int, generator: torch.Generator
) -> tuple[float, float]:
    """Energy distance of two sets of fields and the p-value of exchanging them at random."""
    both = torch.cat([x, y]).double()
    D = torch.cdist(both, both)
    orders = [torch.arange(len(both))]
    orders += [torch.randperm(len(both), generator=generator) for _ in range(draws)]
    p = torch.zeros(1 + draws, len(both), dtype=torch.float64)
    p.scatter_(1, torch.stack(orders)[:, : len(x)], 1.0)
    q = 1 - p
    # means over pairs of different fields
    across = ((p @ D) * q).sum(1) / (len(x) * len(y))
    within_p = ((p @ D) * p).sum(1) / (len(x) * (len(x) - 1))
    within_q = ((q @ D) * q).sum(1) / (len(y) * (len(y) - 1))
    distance = (2 * across - within_p - within_q) / within_q
    return float(distance[0]), float((distance >= distance[0]).double().mean())


@dataclass(frozen=True)
class Functionals:
    """Numbers of each field that tell the phases from a Gaussian field.

    Attributes:
        mean: average over the sphere.
        strength: average of φ².
        action: V of the data's measure.
        positive: share of the sphere where φ > 0.
        values: φ on a grid, shape (N, nlat, nlon).
    """

    mean: Tensor
    strength: Tensor
    action: Tensor
    positive: Tensor
    values: Tensor

    @classmethod
    def of(cls, phi4: Phi4, z: Tensor) -> Functionals:
        grid = sd.GaussLegendre(phi4.field.lmax)
        share = grid.area_weights.float() / (4 * math.pi)
        v = grid.synthesis(phi4.field.color(z))

        def average(values: Tensor) -> Tensor:
            return (share * values).sum((-2, -1))

        return cls(average(v), average(v.square()), phi4.potential(z), average((v > 0).float()), v)

    @property
    def square(self) -> Tensor:
        """φ² at all places, in the norm of L², shape (N, places)."""
        area = sd.GaussLegendre(self.values.shape[-2] - 1).area_weights.float()
        return (area.sqrt() * self.values.square()).flatten(1)

    @property
    def kurtosis(self) -> float:
        """E φ⁴/(E φ²)² over all places."""
        share = sd.GaussLegendre(self.values.shape[-2] - 1).area_weights.float()
        fourth, second = ((share * self.values**k).sum() for k in (4, 2))
        return float(fourth / second**2 * share.sum() * len(self.values))


def scorecard(
    phi4: Phi4, held_out: Tensor, sets: dict[str, Tensor], generator: torch.Generator
) -> None:
    """One column for each set of fields against the held-out data."""
    field = phi4.field
    truth = Functionals.of(phi4, held_out)
    rows: dict[str, list[str]] = {}

    def put(row: str, value: str) -> None:
        rows.setdefault(row, []).append(value)

    for z in sets.values():
        found = Functionals.of(phi4, z)
        for name, x, y in (
            ("z", z, held_out),
            ("φ", field.color(z), field.color(held_out)),
            ("φ²", found.square, truth.square),
        ):
            distance, p = energy_test(x, y, 500, generator)
            put(f"energy distance of {name}, p", f"{distance:.5f}, {p:.3f}")
        for name in ("mean", "strength", "action", "positive"):
            test = stats.ks_2samp(getattr(found, name).numpy(), getattr(truth, name).numpy())
            put(f"{name}: Kolmogorov–Smirnov D, p", f"{test.statistic:.3f}, {test.pvalue:.2g}")  # pyright: ignore[reportAttributeAccessIssue]
        put(f"kurtosis of φ at a place (held-out {truth.kurtosis:.3f})", f"{found.kurtosis:.3f}")
        ratio = harmonics.degree_spectrum(z).mean(0) / harmonics.degree_spectrum(held_out).mean(0)
        for low, high in ((0, 0), (1, 1), (2, 3), (4, 7), (8, field.lmax)):
            put(f"power ratio, ℓ = {low}…{high}", f"{float(ratio[low : high + 1].mean()):.3f}")
        put("E z·∇U/n", virial(phi4, z).split("= ")[1])
    width = max(map(len, rows)) + 2
    print(" " * width + "".join(f"{name:>20s}" for name in sets))
    for name, cells in rows.items():
        print(f"{name:{width}s}" + "".join(f"{cell:>20s}" for cell in cells))


def figures(phi4: Phi4, sets: dict[str, Tensor], directory: FilePath) -> None:
    """Maps of each set, and the laws of four functionals."""
    grid = sd.GaussLegendre(45)
    maps, titles = [], []
    for name, z in sets.items():
        a = harmonics.resize(phi4.field.color(z[:4]), 45)
        maps += list(grid.synthesis(a))
        titles += [name] * 4
    panels = sd.plot.panels(
        maps, grid=grid, titles=titles, columns=4, units="φ", vmin=-1.8, vmax=1.8, graticule=None
    )
    with atomic_write(directory / "phi4-maps.png") as file:
        panels.figure.savefig(file, dpi=110)  # pyright: ignore[reportAttributeAccessIssue]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    kinds = {name: Functionals.of(phi4, z) for name, z in sets.items()}
    share = sd.GaussLegendre(phi4.field.lmax).area_weights.numpy()
    panels_of = (
        ("values", "φ at a place"),
        ("mean", "average of φ over the sphere"),
        ("positive", "share of the sphere where φ > 0"),
        ("action", "V(φ)"),
    )
    for ax, (name, label) in zip(axes.flat, panels_of, strict=True):
        values = {k: getattr(f, name).numpy() for k, f in kinds.items()}
        everything = np.concatenate([v.ravel() for v in values.values()])
        # the Gaussian fields have a long tail of V
        low, high = np.quantile(everything, [0.0005, 0.96 if name == "action" else 0.9995])
        edges = np.linspace(low, high, 61 if name == "values" else 31)
        for kind, v in values.items():
            weights = np.broadcast_to(share, v.shape) if name == "values" else np.ones(v.shape)
            density, _ = np.histogram(v, edges, weights=weights, density=True)
            filled = kind == "held-out"
            ax.stairs(
                density,
                edges,
                fill=filled,
                color="0.8" if filled else COLOURS[kind],
                linewidth=1.6,
                linestyle="--" if kind == "Gaussian" else "-",
                label=kind,
            )
        ax.set(xlabel=label, ylabel="density")
    axes[1, 1].legend(frameon=False)
    with atomic_write(directory / "phi4-laws.png") as file:
        figure.savefig(file, dpi=130)
    plt.close("all")


def weight_costs(phi4: Phi4, archive: Tensor, settings: Settings) -> None:
    """Time of a thousand weights by the general estimator and by the sweeps."""
    clocked = phi4.clocked(settings.times)
    k = settings.knots // 2
    generator = torch.Generator().manual_seed(settings.seed)
    path = euler_maruyama(clocked.sde, archive[:32], clocked.clock[: k + 1], generator=generator)
    results = []
    for weight in (
        lambda g: estimated_weight(clocked.sde, path, generator=g, tolerance=1e-3),
        lambda g: langevin_weight(path, clocked.sigma[:k], phi4.curvature, generator=g),
    ):
        start = time.process_time()
        value = weight(torch.Generator().manual_seed(7))
        results.append((value, time.process_time() - start))
    (a, slow), (b, fast) = results
    print(
        f"weights of 1000 paths of {k} steps in {a.shape[1]} modes:"
        f" estimated_weight {slow / 0.032:.0f} s, langevin_weight {fast / 0.032:.0f} s of"
        f" processor time; relative difference {float((a - b).norm() / a.norm()):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--directory", type=FilePath, default=FilePath("phi4-output"))
    parser.add_argument("--quick", action="store_true", help="small sets, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else Settings()
    directory = arguments.directory
    require_writable(directory / "examples-01.safetensors")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(settings.seed)
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} thread(s), Python"
        f" {platform.python_version()}, torch {torch.__version__}; {settings}"
    )
    start = time.time()

    def elapsed() -> str:
        return f"[{time.time() - start:.0f} s, {time.process_time():.0f} s of processor time]"

    target, forward = measures(settings)
    archive, held_out, second, noise = (
        draw(phi4, count, settings, seed, name, step, directory / f"draws-{seed}.safetensors")
        for seed, (phi4, count, name, step) in enumerate(
            (
                (target, settings.archive, "archive", 0.08),
                (target, settings.count, "held-out data", 0.08),
                (target, settings.count, "second set", 0.08),
                (forward, settings.count, "invariant law", 0.3),
            )
        )
    )
    print(elapsed())
    generator = torch.Generator().manual_seed(settings.seed)
    rotate = Rotations(settings.lmax, generator)
    weight_costs(forward, archive, settings)
    data = relative(forward, examples(forward, archive, settings, rotate, directory))
    print(f"{len(data)} examples {elapsed()}")
    baseline = reference(forward, archive, data, settings, generator)
    network = FieldNetwork(forward, baseline, data.states[::8], settings.degrees, settings.width)
    model = ScoreRegression(network, baseline)

    train(model, data, rotate, settings, directory / "score.safetensors")
    print(f"score {elapsed()}")
    generated = reverse(forward, model, noise, settings, generator)
    print(f"generated {elapsed()}")
    std = harmonics.expand(harmonics.degree_spectrum(archive).mean(0).sqrt())
    gaussian = std * torch.randn(generated.shape, generator=generator)
    scorecard(
        target,
        held_out,
        {"generated": generated, "Gaussian": gaussian, "data (floor)": second},
        generator,
    )
    _tensors.write(directory / "generated.safetensors", {"z": generated}, asdict(settings))
    figures(target, {"held-out": held_out, "generated": generated, "Gaussian": gaussian}, directory)
    print(f"figures in {directory} {elapsed()}")


if __name__ == "__main__":
    main()
