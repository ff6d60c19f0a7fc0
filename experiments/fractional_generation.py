"""Does it matter whether the noise has memory?  Winds from fractional noise, H = 0.3, 0.5, 0.8.

    python experiments/fractional_generation.py [ARCHIVE] --directory OUT [--lmax 15] [--steps 200]

ARCHIVE is the bundled `navy-winds` if not given, or a file with a variable `test(time)` that is 1
on the maps that nothing is fitted to.  What is learnt are standardised anomalies from two harmonics
of the year.  The forward process is dX = −A X dτ + Q^{1/2} dB^H with A = 1 − Δ/50 and Q chosen such
that the noise ends with the archive's own spectrum for every H; Greco's process with that noise is
the comparison.  All are reversed by ReverseSDE, which uses the laws at single times only, once with
the exact Gaussian denoiser of the shrunk covariance and once with a network trained for a short
time, the same network, budget and seed for each.

Printed: steps of the sampler, held-out loss (1 is the best Gaussian denoiser without correlations),
RMS of log(Ĉ_ℓ/C_ℓ) over ℓ ≥ 1 between samples and test maps, and their energy distance with the
noise floor, which is that of as many training maps, and the ratio of both.  OUT/fractional.png has
the figure.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from spherediff import data, metrics, plot
from spherediff.covariance import Covariance
from spherediff.denoise import Denoiser, GaussianDenoiser, NeuralDenoiser
from spherediff.gaussian import GaussianField
from spherediff.harmonics import degree_spectrum
from spherediff.nn import SphericalOperator
from spherediff.process import (
    DampedHeat,
    ForwardProcess,
    FractionalOrnsteinUhlenbeck,
    OrnsteinUhlenbeck,
    fractional_variance,
)
from spherediff.sample import ReverseSDE
from spherediff.spectra import Tabulated
from spherediff.train import TrainConfig, train

HURST = (0.3, 0.5, 0.8)
HORIZON = 5.0
OPERATOR = DampedHeat(diffusivity=0.02, damping=1.0)
SAMPLES = 64


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Winds from fractional noise.")
    parser.add_argument("archive", nargs="?", default="navy-winds")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--lmax", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def prepare(archive: xr.Dataset, lmax: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, held-out and test anomalies, shape (maps, channels, n)."""
    seen = archive.isel(time=archive["test"].values == 0)
    cut = round(8 / 9 * seen.sizes["time"])
    encoder = data.Encoder.fit(seen.isel(time=slice(cut)), lmax=lmax, climatology=data.Harmonics(2))
    test = archive.isel(time=archive["test"].values == 1)
    parts = (seen.isel(time=slice(cut)), seen.isel(time=slice(cut, None)), test)
    first, held_out, last = (encoder.encode(part) for part in parts)
    return first, held_out, last


def fractional(spectrum: Tensor, hurst: float, lmax: int) -> FractionalOrnsteinUhlenbeck:
    """Noise that ends with the spectrum of the archive."""
    gathered = fractional_variance(
        OPERATOR(torch.arange(lmax + 1)), torch.tensor(HORIZON, dtype=torch.float64), hurst
    )
    return FractionalOrnsteinUhlenbeck(
        OPERATOR, Tabulated(spectrum / gathered), lmax, HORIZON, hurst
    )


def trained(
    process: ForwardProcess, first: Tensor, held_out: Tensor, config: TrainConfig
) -> tuple[NeuralDenoiser, float]:
    torch.manual_seed(config.seed)
    channels, n = process.event_shape
    network = SphericalOperator(
        math.isqrt(n) - 1, channels, width=16, blocks=1, hidden=32, slopes=0
    )
    denoiser = NeuralDenoiser(process, network, first.mean(0), first.var(0))
    with tempfile.TemporaryDirectory() as folder:
        result = train(denoiser, first, held_out, config, Path(folder))
    return denoiser, result.best


def spectral_distance(samples: Tensor, reference: Tensor) -> float:
    """RMS of the logarithm of the ratio of spectra, over channels and degrees from one."""
    ratio = degree_spectrum(samples).mean(0) / degree_spectrum(reference).mean(0)
    return float(ratio[:, 1:].log().square().mean().sqrt())


def score(samples: Tensor, test: Tensor, first: Tensor) -> str:
    card = metrics.scorecard(
        samples, test, first, resamples=100, generator=torch.Generator().manual_seed(0)
    )
    row = card.row("energy distance", "all")
    low, high = row.interval
    return (
        f"{spectral_distance(samples, test):9.3f}"
        f"{row.value:12.4f}{row.floor:12.4f}{row.ratio:9.3f} ({low:.3f}–{high:.3f})"
    )


def figure(drawn: dict[str, Tensor], test: Tensor, lmax: int) -> Figure:
    shown, (left, right) = plt.subplots(1, 2, figsize=(11, 4.3), layout="constrained")
    tau = torch.logspace(-4, math.log10(HORIZON), 300, dtype=torch.float64)
    rates = OPERATOR(torch.arange(lmax + 1))
    colours = dict(zip(HURST, ("#D55E00", "#009E73", "#CC79A7"), strict=True))
    for hurst in HURST:
        share = fractional_variance(rates, tau, hurst)
        share = share / fractional_variance(rates, tau[-1], hurst)
        for degree, style in ((0, "-"), (lmax, "--")):
            left.loglog(
                tau,
                share[:, degree] * torch.exp(2 * rates[degree] * tau),
                style,
                color=colours[hurst],
                label=f"H = {hurst}, ℓ = {degree}",
            )
    left.set_ylim(1e-5, 1e5)
    left.set_xlabel("process time τ")
    left.set_ylabel("noise over signal, σ²/(α² C)")
    left.set_title("When each degree turns into noise")
    left.legend(fontsize="small")
    sets = {"test months": test[:, 0]} | {name: x[:, 0] for name, x in drawn.items()}
    plot.degree_spectrum(sets, ax=right, title="Zonal wind, standardised anomalies")
    right.set_ylim(bottom=right.get_ylim()[0] / 4)  # room for the legend
    return shown


def main() -> None:
    options = arguments()
    options.directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    known = Path(options.archive).exists()
    archive = data.open(options.archive) if known else data.load(options.archive)
    first, held_out, test = prepare(archive, options.lmax)
    spectrum = degree_spectrum(first).mean(0).double()
    processes: dict[str, ForwardProcess] = {
        f"H = {H}": fractional(spectrum, H, options.lmax) for H in HURST
    }
    field = GaussianField(Tabulated(spectrum), options.lmax)
    processes["Greco's process"] = OrnsteinUhlenbeck(field)
    covariance = Covariance.shrunk(first)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{version('torch')}, Python {platform.python_version()}; {len(first)} maps to learn from, "
        f"{len(test)} to compare with, lmax {options.lmax}, {SAMPLES} samples"
    )
    print(f"{'process':18s}{'denoiser':10s}{'steps':>6s}{'loss':>8s}{'spectra':>9s}", end="")
    print(f"{'energy':>12s}{'floor':>12s}{'ratio':>9s}")
    config = TrainConfig(
        steps=options.steps, batch=12, learning_rate=5e-3, evaluate_every=40, seed=options.seed
    )
    drawn: dict[str, Tensor] = {}
    for name, process in processes.items():
        network, loss = trained(process, first, held_out, config)
        denoisers: dict[str, tuple[Denoiser, str]] = {
            "Gaussian": (GaussianDenoiser(process, covariance=covariance, mean=first.mean(0)), "–"),
            "network": (network, f"{loss:.4f}"),
        }
        for kind, (denoiser, shown_loss) in denoisers.items():
            sampler = ReverseSDE(denoiser)
            x = sampler.sample(
                (SAMPLES,), generator=torch.Generator().manual_seed(1), progress=True
            )
            print(
                f"{name:18s}{kind:10s}{sampler.steps:6d}{shown_loss:>8s}{score(x, test, first)}",
                flush=True,
            )
            if kind == "network" and name.startswith("H"):
                drawn[name] = x
    rng = np.random.default_rng(0)
    archive_maps = first[rng.integers(len(first), size=SAMPLES)]
    print(f"{'training maps':34s}{'':8s}{spectral_distance(archive_maps, test):9.3f}")
    path = options.directory / "fractional.png"
    figure(drawn, test, options.lmax).savefig(path, dpi=130)
    print(f"{time.monotonic() - began:.0f} s; figure in {path}")


if __name__ == "__main__":
    main()
