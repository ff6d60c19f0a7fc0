"""How far from an exact Gaussian law is each sampler's output, for a number of steps?

    python experiments/sampler_law.py

With a Gaussian denoiser every sampler is linear, mode by mode: fed with unit impulses in place of
noise it returns its response to each draw, and the sum of their squares is the variance of its
output, exactly.  Printed is the largest relative error of that variance over sixteen modes whose
ratios of data to noise variance run from 10⁻³ to 10², with the default schedule; in the first
column also for data with the noise's own law at the range log(σ/α) = −4 … 4.
"""

from __future__ import annotations

from functools import partial

import torch

import spherediff as sd
from spherediff.sample import Sampler

SAMPLERS = {
    "EulerMaruyama": sd.EulerMaruyama,
    "Bridge, eta = 1": sd.Bridge,
    "Bridge, eta = 0": partial(sd.Bridge, eta=0.0),
    "Heun": sd.Heun,
    "ProbabilityFlow": sd.ProbabilityFlow,
    "ReverseSDE": sd.ReverseSDE,
}
STEPS = (24, 64, 128)


def largest_error(kind: type[Sampler], steps: int | None, denoiser: sd.GaussianDenoiser) -> str:
    sampler = kind(denoiser, steps)
    _, variance = sd.bounds.output_law(sampler)
    error = variance / denoiser.covariance.variance - 1
    return f"{100 * float(error[error.abs().argmax()]):+.2f} %"


def target(ratios: torch.Tensor, schedule: sd.LogSNR) -> sd.GaussianDenoiser:
    noise = sd.GaussianField(sd.Tabulated([1.0] * 4), 3, dtype=torch.float64)
    return sd.GaussianDenoiser(sd.OrnsteinUhlenbeck(noise, schedule), ratios)


def main() -> None:
    same = target(torch.ones(16, dtype=torch.float64), sd.LogSNR(4.0, -4.0))
    wide = target(torch.logspace(-3, 2, 16, dtype=torch.float64), sd.LogSNR())
    columns = [f"same law, {n}" for n in STEPS[:2]] + [f"wide, {n}" for n in STEPS]
    print(f"{'sampler':18s}" + "".join(f"{c:>15s}" for c in [*columns, "wide, default"]))
    for name, kind in SAMPLERS.items():
        cells = [largest_error(kind, n, same) for n in STEPS[:2]]
        cells += [largest_error(kind, n, wide) for n in STEPS]
        steps = kind(wide).steps
        cells.append(f"{largest_error(kind, None, wide)} ({steps})")
        print(f"{name:18s}" + "".join(f"{cell:>15s}" for cell in cells))


if __name__ == "__main__":
    main()
