"""How far is a sampler's output from the data, and what does the bound say?

    python experiments/entropic_bounds.py --directory docs/images

Everything about Gaussian targets is exact: no Monte Carlo.  Draws the measured entropy against the
horizon (bounds-horizon.png), against the number of steps (bounds-steps.png) and against the band
limit, by noise (bounds-resolution.png) and by sampler (bounds-samplers.png).  Prints their numbers,
the orders measured by regression, and a table of the bound's terms for mixtures, with standard
errors.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

import spherediff as sd
from spherediff import bounds
from spherediff.sample import Sampler

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
BLACK = "0.15"

HORIZONS = np.array([0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6])
STEP = 0.005
STEPS = np.array([8, 16, 32, 64, 128, 256, 512, 1024])
LONG = 8.0
LIMITS = np.array([4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048])
DATA = sd.WhittleMatern(1.0, 1.5, 0.5)


# ---- targets ----


def suited_noise() -> sd.WhittleMatern:
    """Other correlation length than the data, same smoothness and τ: S_ℓ/C_ℓ − 1 = O(ℓ⁻²)."""
    return same_tau(DATA.smoothness, 0.4)


def same_tau(smoothness: float, correlation_length: float) -> sd.WhittleMatern:
    unit = sd.WhittleMatern(1.0, smoothness, correlation_length)
    return sd.WhittleMatern(unit.tau / DATA.tau, smoothness, correlation_length)


def target(noise: sd.WhittleMatern | sd.Tabulated, lmax: int) -> bounds.GaussianTarget:
    fields = [sd.GaussianField(spectrum, lmax, dtype=torch.float64) for spectrum in (noise, DATA)]
    return bounds.GaussianTarget(fields[0], fields[1])


def with_mean(plain: bounds.GaussianTarget) -> bounds.GaussianTarget:
    """A mean in H_C of norm four, on degrees 1 and 2."""
    mean = torch.zeros_like(plain.mean)
    mean[1:9] = plain.noise.std_per_coefficient[1:9] * np.sqrt(2)
    return bounds.GaussianTarget(plain.noise, plain.data, mean)


def white_per_pixel(lmax: int) -> sd.Tabulated:
    """Independent pixels of unit variance, as many as coefficients: C_ℓ = 4π/(L+1)²."""
    return sd.Tabulated([4 * np.pi / (lmax + 1) ** 2] * (lmax + 1))


def mixture(lmax: int, horizon: float) -> sd.MixtureDenoiser:
    noise = sd.GaussianField(DATA, lmax, dtype=torch.float64)
    process = sd.OrnsteinUhlenbeck(noise, sd.ConstantRate(horizon))
    C, std = noise.variance_per_coefficient, noise.std_per_coefficient
    mean = torch.zeros_like(C)
    mean[:4] = std[:4]
    narrow = 1 - 0.6 / (1 + torch.arange(len(C), dtype=torch.float64))
    return sd.MixtureDenoiser(
        [
            sd.GaussianDenoiser(process, narrow * C, mean=1.2 * mean),
            sd.GaussianDenoiser(process, C, mean=-1.5 * mean),
        ],
        (0.6, 0.4),
    )


def draw(law: sd.MixtureDenoiser, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(law.log_weights, dtype=torch.float64).exp()
    which = torch.multinomial(weights, count, replacement=True, generator=generator)
    mean = torch.stack([c.mean for c in law.components])[which]
    std = torch.stack([c.covariance.variance for c in law.components])[which].sqrt()
    return mean + std * torch.randn(mean.shape, dtype=torch.float64, generator=generator)


def emulator(law: sd.MixtureDenoiser) -> sd.GaussianDenoiser:
    """The Gaussian with the mean and the covariance of a mixture: diagonal plus rank one or two."""
    weights = torch.tensor(law.log_weights, dtype=torch.float64).exp()
    means = torch.stack([c.mean for c in law.components])
    mean = weights @ means
    diagonal = weights @ torch.stack([c.covariance.variance for c in law.components])
    factor = weights.sqrt()[:, None] * (means - mean)
    return sd.GaussianDenoiser(law.process, covariance=sd.Covariance(diagonal, factor), mean=mean)


# ---- measurements ----


def frozen(steps: int) -> Callable[[sd.GaussianDenoiser], Sampler]:
    return partial(bounds.FrozenScore, steps=steps)


def total(
    law: bounds.GaussianTarget,
    sampler: Callable[[sd.GaussianDenoiser], Sampler],
    schedule: sd.ConstantRate | sd.LogSNR,
) -> float:
    return float(bounds.output_entropy(law, sampler, schedule).sum())


def order(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def label(ax: Axes, x: float, y: float, text: str, colour: str, **options: object) -> None:
    style = {"fontsize": 10, "va": "center", "ha": "left"} | options
    ax.annotate(text, (x, y), color=colour, **style)  # type: ignore[arg-type]


def clean(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(which="major", color="0.92", linewidth=0.7)
    ax.set_axisbelow(True)


def save(directory: Path, name: str) -> None:
    plt.savefig(directory / name, dpi=160)
    plt.close()
    print(f"-> {directory / name}", flush=True)


def horizons(directory: Path) -> None:
    law = with_mean(target(suited_noise(), 32))
    rows = []
    for T in HORIZONS:
        steps, schedule = round(T / STEP), sd.ConstantRate(float(T), highest_log_snr=7.0)
        bound = law.bound(T, steps)
        rows.append(
            (
                total(law, frozen(steps), schedule),
                float(law.path_entropy(T, steps).sum()),
                bound.total.value,
                bound.initialisation.value,
                total(law, partial(sd.ProbabilityFlow, steps=600), schedule),
            )
        )
        print(f"T = {T:<5}" + "".join(f"{v:12.4g}" for v in rows[-1]), flush=True)
    found, path, bound, start, flow = np.array(rows).T
    late = (HORIZONS >= 1.5) & (HORIZONS <= 4)
    rate = np.polyfit(HORIZONS[late], np.log(flow[late]), 1)[0]
    print(f"flow, 1.5 ≤ T ≤ 4: KL ∝ exp({rate:.3f} T)")
    early = (HORIZONS >= 0.5) & (HORIZONS <= 1.75)
    rate = np.polyfit(HORIZONS[early], np.log(found[early]), 1)[0]
    print(f"reverse SDE, 0.5 ≤ T ≤ 1.75: KL ∝ exp({rate:.3f} T)")

    _, ax = plt.subplots(figsize=(7.4, 4.8), layout="constrained")
    ax.fill_between(HORIZONS, bound, bound.max() * 3, color="0.93", linewidth=0)
    ax.semilogy(HORIZONS, bound, color=BLACK, linewidth=2.2)
    ax.semilogy(HORIZONS, start, color=BLACK, linestyle=":", linewidth=1.4)
    ax.semilogy(HORIZONS, path, color=ORANGE, linewidth=1.8)
    ax.semilogy(HORIZONS, flow, color=GREEN, marker="s", markersize=4, linewidth=1.4)
    ax.semilogy(HORIZONS, found, color=BLUE, marker="o", markersize=5, linewidth=2)
    label(ax, 6.08, bound[-1], "bound", BLACK, weight="bold")
    label(ax, 6.08, path[-1], "reversed path,\nexact", ORANGE)
    label(ax, 6.08, found[-1], "output, exact", BLUE, weight="bold")
    label(ax, 6.08, flow[-1] / 1.4, "probability\nflow, exact", GREEN)
    label(ax, 6.08, start[-1] * 1.2, r"$e^{-2T}\,\mathrm{KL}(\mu|\gamma)$", BLACK)
    ax.set(
        xlabel="horizon $T$ of the process",
        ylabel="KL divergence from the data, nats",
        xlim=(0.1, 7.5),
        ylim=(flow.min() / 3, bound.max() * 1.6),
        title=f"Longer noising: the start is forgotten as $e^{{-2T}}$  ($h$ = {STEP}, 1089 modes)",
    )
    ax.set_xticks(range(1, 7))
    clean(ax)
    save(directory, "bounds-horizon.png")


def steps(directory: Path) -> None:
    law, schedule = with_mean(target(suited_noise(), 32)), sd.ConstantRate(LONG)
    wide = sd.LogSNR(8.0, -8.0)
    start = float(law.relative_entropy(LONG).sum())
    curves: dict[str, list[float]] = {"bound": [], "path": [], "output": []}
    shipped = {"ReverseSDE": sd.ReverseSDE, "ProbabilityFlow": sd.ProbabilityFlow}
    for N in STEPS.tolist():
        curves["bound"].append(law.bound(LONG, N).total.value)
        curves["path"].append(float(law.path_entropy(LONG, N).sum()))
        curves["output"].append(total(law, frozen(N), schedule))
        for name, kind in shipped.items():
            curves.setdefault(name, []).append(total(law, partial(kind, steps=N), wide))
        print(f"N = {N:<5}" + "".join(f"{k} {v[-1]:.3g}  " for k, v in curves.items()), flush=True)
    found = {name: np.array(values) for name, values in curves.items()}
    for name in ("bound", "path", "output", *shipped):
        values = found[name] - (start if name == "path" else 0)
        # the shipped samplers are soon as near as the range of their schedule lets them come
        keep = (STEPS >= 32) & (STEPS <= 256) if name in shipped else STEPS >= 128
        print(f"{name}: order {-order(STEPS[keep], values[keep]):.2f} in the step")

    one = np.array([(N, mixture_bound(N), mixture_output(N)) for N in STEPS[:-1].tolist()])
    print(f"mixture in one mode: order {-order(one[-4:, 0], one[-4:, 2]):.2f}")

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.4, 4.8), layout="constrained", width_ratios=(1.35, 1)
    )
    left.fill_between(STEPS, found["bound"], 1e3, color="0.93", linewidth=0)
    for name, colour, mark, width in (
        ("bound", BLACK, "", 2.2),
        ("path", ORANGE, "", 1.8),
        ("output", BLUE, "o", 2.0),
        ("ReverseSDE", VERMILION, "^", 1.4),
        ("ProbabilityFlow", GREEN, "s", 1.4),
    ):
        left.loglog(STEPS, found[name], color=colour, marker=mark, markersize=5, linewidth=width)
    for name, text, colour in (
        ("bound", "bound, order 1", BLACK),
        ("path", "reversed path, order 1", ORANGE),
        ("output", "output, order 2", BLUE),
    ):
        label(left, STEPS[-1] * 1.12, found[name][-1], text, colour)
    label(left, STEPS[-1] * 1.12, found["ReverseSDE"][-1], "ReverseSDE", VERMILION)
    label(left, STEPS[-1] * 1.12, found["ProbabilityFlow"][-1], "ProbabilityFlow", GREEN)
    label(left, 8, 1e-6, "as shipped, even in log-SNR:\norder 2 in law, 4 in KL", "0.3")
    left.set(
        xlabel="steps $N$",
        ylabel="KL divergence from the data, nats",
        title=f"Gaussian field, 1089 modes, $T$ = {LONG:g}",
        xlim=(7, 12000),
        ylim=(1e-8, 3e2),
    )
    right.fill_between(one[:, 0], one[:, 1], 1e3, color="0.93", linewidth=0)
    right.loglog(one[:, 0], one[:, 1], color=BLACK, linewidth=2.2)
    right.loglog(one[:, 0], one[:, 2], color=BLUE, marker="o", markersize=5, linewidth=2)
    label(right, one[-1, 0] * 1.15, one[-1, 1], "bound", BLACK)
    label(right, one[-1, 0] * 1.15, one[-1, 2], "output,\nexact", BLUE)
    right.set(xlabel="steps $N$", title="Mixture of two Gaussians, one mode", xlim=(7, 1500))
    right.set_ylim(one[-1, 2] / 4, one[0, 1] * 4)
    for ax in (left, right):
        ax.set_xticks(STEPS, [str(N) for N in STEPS])
        ax.minorticks_off()
        clean(ax)
    figure.suptitle("Shorter steps: always under the bound")
    save(directory, "bounds-steps.png")


def mixture_output(N: int) -> float:
    return bounds.one_mode_entropy(bounds.FrozenScore(mixture(0, LONG), N), points=1201)


def mixture_bound(N: int) -> float:
    law = mixture(0, LONG)
    z = torch.linspace(-10, 10, 8001, dtype=torch.float64)[:, None]
    x = law.process.field.color(z)
    log_h = law.log_density_ratio(x, 0.0)
    weight = (log_h - 0.5 * z[:, 0] ** 2).softmax(0)
    D = bounds.log_derivative(law, x)
    fisher = float(weight @ law.process.field.inner(D, D))
    return bounds.entropic_bound(float(weight @ log_h), fisher, LONG, N).total.value


NOISES = {
    "white noise in every pixel": (None, VERMILION, "s"),
    "noise rougher than the data": (1.0, PURPLE, "v"),
    "noise smoother than the data": (2.0, ORANGE, "^"),
    "noise that suits the data": (1.5, BLUE, "o"),
}
THEOREM = (200, 6.0)  # N and T
SAMPLERS = {
    "Bridge, 200 steps": (partial(sd.Bridge, steps=200), sd.LogSNR(), VERMILION, "^"),
    "ProbabilityFlow,\n64 steps (default)": (
        partial(sd.ProbabilityFlow, steps=64),
        sd.LogSNR(),
        GREEN,
        "s",
    ),
    "ReverseSDE,\n96 steps (default)": (
        partial(sd.ReverseSDE, steps=96),
        sd.LogSNR(),
        ORANGE,
        "v",
    ),
    "the theorem's scheme,\n200 steps": (
        frozen(THEOREM[0]),
        sd.ConstantRate(THEOREM[1]),
        BLUE,
        "o",
    ),
}


def resolutions(directory: Path) -> None:
    N, T = THEOREM
    schedule = sd.ConstantRate(T)
    _, ax = plt.subplots(figsize=(8.6, 5.6), layout="constrained")
    for name, (smoothness, colour, mark) in NOISES.items():
        suits = smoothness == DATA.smoothness
        noise = suited_noise() if suits else smoothness and same_std(smoothness)
        output = by_limit(noise, lambda law: bounds.output_entropy(law, frozen(N), schedule))
        bound = by_limit(
            noise,
            lambda law: (
                math.exp(-2 * T) * law.relative_entropy() + T / N * law.fisher_information()
            ),
        )
        report(name, output)
        report("its bound", bound)
        width, weight = (3.4, "bold") if suits else (1.8, "normal")
        ax.loglog(LIMITS, output, color=colour, marker=mark, markersize=6.5, linewidth=width)
        ax.loglog(LIMITS, bound, color=colour, linestyle=":", linewidth=1.4)
        series = r"$\sum(2\ell+1)(S_\ell/C_\ell-1)^2$ " + (
            r"$< \infty$" if suits else r"$= \infty$"
        )
        verdict = "converges" if suits else "diverges"
        spot = output[-1] * {VERMILION: 6, PURPLE: 0.6}.get(colour, 1)
        text = f"{name}: {verdict}\n{series if suits or smoothness is None else ''}".strip()
        label(ax, LIMITS[-1] * 1.2, spot, text, colour, weight=weight)
        if suits or noise is None:
            label(ax, LIMITS[-1] * 1.2, bound[-1], "its bound", colour)
    ax.set(
        ylabel="KL divergence of the output from the data, nats",
        xlim=(3.4, 9e5),
        ylim=(8e-6, 4e12),
    )
    ax.set_title(
        "Refine the grid without end: with noise that suits the data the error stays finite",
        weight="bold",
        fontsize=11.5,
    )
    resolution_axis(ax, loc="left")
    save(directory, "bounds-resolution.png")


def samplers(directory: Path) -> None:
    _, ax = plt.subplots(figsize=(7.4, 4.8), layout="constrained")
    for name, (sampler, schedule, colour, mark) in SAMPLERS.items():
        output = by_limit(
            suited_noise(), lambda law, s=sampler, t=schedule: bounds.output_entropy(law, s, t)
        )
        report(name, output)
        width = 3.2 if colour == BLUE else 1.8
        ax.loglog(LIMITS, output, color=colour, marker=mark, markersize=6, linewidth=width)
        shift = {VERMILION: 1, GREEN: 3, BLUE: 1, ORANGE: 0.3}[colour]
        label(ax, LIMITS[-1] * 1.25, output[-1] * shift, name, colour)
    ax.set(
        ylabel="KL divergence of the output from the data, nats",
        xlim=(3.4, 1.5e5),
        ylim=(1e-6, 1e4),
    )
    ax.set_title("Noise that suits the data, by sampler: who leaves $\\gamma$ as it is?")
    resolution_axis(ax, loc="left")
    save(directory, "bounds-samplers.png")


def resolution_axis(ax: Axes, loc: Literal["left", "center"]) -> None:
    ax.set_xticks(LIMITS, [str(L) for L in LIMITS], fontsize=9)
    ax.minorticks_off()
    ax.set_xlabel(r"resolution: band limit $\ell_{\max}$", loc=loc)
    clean(ax)
    ax.spines["bottom"].set_bounds(3.4, 2600)


def report(name: str, values: np.ndarray) -> None:
    name = name.replace("\n", " ")
    numbers = "".join(f"{v:10.3g}" for v in values)
    print(f"{name:>31}{numbers}  growth {growth(values):.2f}", flush=True)


def growth(values: np.ndarray) -> float:
    """Exponent of the growth with the band limit over the last two octaves."""
    return order(LIMITS[-3:], values[-3:])


def same_std(smoothness: float) -> sd.WhittleMatern:
    return sd.WhittleMatern(DATA.std, smoothness, DATA.correlation_length)


def by_limit(
    noise: sd.WhittleMatern | None, of: Callable[[bounds.GaussianTarget], torch.Tensor]
) -> np.ndarray:
    """Sums up to each band limit; white noise (None) differs from limit to limit."""
    if noise is not None:
        return of(target(noise, int(LIMITS[-1]))).cumsum(0)[LIMITS].numpy()
    return np.array([float(of(target(white_per_pixel(L), L)).sum()) for L in LIMITS.tolist()])


def mixtures(draws: int) -> None:
    T, N = 3.0, 60
    print(f"\nmixtures, T = {T:g}, N = {N}, {draws} draws")
    columns = ("KL(mu|gamma)", "I(mu|gamma)", "start", "score", "steps", "bound", "path", "output")
    print(f"{'':32s}" + "".join(f"{c:>20s}" for c in columns))
    for lmax in (0, 15):
        law = mixture(lmax, T)
        x = draw(law, draws, seed=1)
        entropy, fisher = bounds.relative_entropy(law, x), bounds.fisher_information(law, x)
        for name, used in (("exact score", law), ("score of its Gaussian", emulator(law))):
            generator = torch.Generator().manual_seed(2)
            exact = used is law
            score = (
                bounds.Estimate(0.0)
                if exact
                else bounds.score_error(used, law, x, N, generator=generator)
            )
            bound = bounds.entropic_bound(entropy, fisher, T, N, score)
            path = bounds.path_entropy(law, x, N, generator=generator) if exact else "-"
            output = (
                f"{bounds.one_mode_entropy(bounds.FrozenScore(used, N), law):.3g}"
                if lmax == 0
                else "-"
            )
            cells = (
                entropy,
                fisher,
                bound.initialisation,
                score if not exact else "0",
                bound.discretisation,
                bound.total,
                path,
                output,
            )
            head = f"{(lmax + 1) ** 2} modes, {name}"
            print(f"{head:32s}" + "".join(f"{cell!s:>20s}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Entropic bounds, measured: four figures and a table."
    )
    parser.add_argument("--directory", type=Path, default=Path("docs/images"))
    parser.add_argument("--draws", type=int, default=4000, help="for the table of mixtures")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("Agg")
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"spherediff {sd.__version__}\n"
    )
    print("by horizon: output, path, bound, start, flow")
    horizons(options.directory)
    print("\nby steps")
    steps(options.directory)
    print("\nby band limit: " + ", ".join(map(str, LIMITS)))
    resolutions(options.directory)
    samplers(options.directory)
    mixtures(options.draws)


if __name__ == "__main__":
    main()
