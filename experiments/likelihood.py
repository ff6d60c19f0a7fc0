"""How many bits does a model need for maps that it has not seen?

    python experiments/likelihood.py speedy-daily.nc [--model speedy-daily] [--maps 8]
        [--steps 64] [--probes 4]

The archive has a variable `test(time)` that is 1 on the maps that were neither trained nor tuned
on; `--maps` of them, evenly spread, are encoded to standardised anomalies.  Printed are the bits
per coefficient (`spherediff.likelihood.bits_per_coefficient`) under

    isotropic Gaussian    γ, noise with the archive's degree spectrum,
    Gaussian reference    the model's mean, variances and leading correlations, in closed form,
    model, by denoising   a lower bound on the density of its reverse SDE,
    model, by its flow    the law of its probability flow, with an estimated trace,

and the gain over the Gaussian reference in nats per map.  The bound is the evidence lower bound
(Kingma et al. 2021, arXiv 2107.00630), which is sharp for the reference, so that the gain is

    Σ_i ∫ E[G_i² − (G_i − F_i)²] cot ψ_i dψ_i,    G = (y − cos ψ z)/sin ψ,

the part of the error of the best linear denoiser that the network takes away.  Standard errors are
over maps; those of the model include what is drawn, noise and signs, which is independent from map
to map.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spherediff import data
from spherediff.covariance import Covariance
from spherediff.denoise import GaussianDenoiser, NeuralDenoiser
from spherediff.likelihood import Hutchinson, bits_per_coefficient, log_density_ratio
from spherediff.model import Model
from spherediff.process import ConstantRate, OrnsteinUhlenbeck


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", default="speedy-daily", help="name or directory")
    parser.add_argument("--maps", type=int, default=8)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def reference_log_ratio(denoiser: NeuralDenoiser, x: Tensor) -> Tensor:
    """log dN(μ, S)/dγ(x) of the model's reference, float64."""
    field = denoiser.process.field.to(dtype=torch.float64)
    S = Covariance(denoiser.covariance.diagonal.double(), denoiser.covariance.factor.double())
    clean = OrnsteinUhlenbeck(field, ConstantRate())  # at t = 0 it has no noise at all
    reference = GaussianDenoiser(clean, covariance=S, mean=denoiser.mean.double())
    return reference.log_density_ratio(x.double(), 0.0)


@torch.no_grad()
def denoising_gain(denoiser: NeuralDenoiser, x: Tensor, steps: int, seed: int) -> Tensor:
    """Lower bound of log p(x) − log dN(μ, S)(x), midpoints of even steps in log noise; float64."""
    process, reference = denoiser.process, denoiser.reference
    generator = torch.Generator().manual_seed(seed)
    y = reference.standardise_clean(x)
    low, high = process.schedule.log_snr_range
    width = (high - low) / steps
    gain = torch.zeros(len(x), dtype=torch.float64)
    for k in range(steps):
        t = float(process.time_of(-high + (k + 0.5) * width))
        z = reference.standardise(process.noised(x, t, generator=generator), t)
        cos, sin = reference.angle(t)
        G, F = (y - cos * z) / sin, denoiser.residual(z, t)
        integrand = cos.square() * (G.square() - (G - F).square())  # cot ψ dψ = cos² ψ d log(σ/α)
        gain += width * integrand.double().sum((1, 2))
    return gain


def mean_and_error(values: Tensor) -> str:
    return f"{float(values.mean()):.4f} ± {float(values.std()) / len(values) ** 0.5:.4f}"


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    model = Model.load(options.model)
    archive = data.open(options.archive, list(model.encoder.names))
    test = archive.isel(time=archive.test.values == 1)
    chosen = np.linspace(0, test.sizes["time"] - 1, options.maps).round().astype(int)
    test = test.isel(time=chosen)
    x = model.encoder.encode(test)
    denoiser = model.denoiser.eval().given(model.labels.encode(test, len(x)))
    trace = Hutchinson(options.probes, torch.Generator().manual_seed(options.seed))
    began = time.perf_counter()
    of_model = log_density_ratio(denoiser, x, options.steps, trace=trace)
    seconds = time.perf_counter() - began
    of_reference = reference_log_ratio(denoiser, x)
    bound = of_reference + denoising_gain(denoiser, x, options.steps, options.seed + 1)
    ratios = {
        "isotropic Gaussian": torch.zeros(len(x), dtype=torch.float64),
        "Gaussian reference": of_reference,
        "model, by denoising": bound,
        "model, by its flow": of_model,
    }
    print(f"{len(x)} maps of {x[0].numel()} coefficients, {options.steps} steps, ", end="")
    print(f"{options.probes} probes, {seconds:.0f} s")
    print(f"{'law':20s}{'bits per coefficient':>24s}{'gain, nats per map':>28s}")
    for name, ratio in ratios.items():
        bits = mean_and_error(bits_per_coefficient(denoiser.process.field, x, ratio))
        print(f"{name:20s}{bits:>24s}{mean_and_error(ratio - of_reference):>28s}")


if __name__ == "__main__":
    main()
