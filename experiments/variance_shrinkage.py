"""How strongly should the variance of a coefficient be shrunk towards its degree's mean?

    python experiments/variance_shrinkage.py ARCHIVE.nc

ARCHIVE.nc holds daily maps of `pr` in mm/day with a variable `test(time)`; the years it marks are
left alone.  Of the others the first 780 maps are drawn from to estimate variances, and the last 184
judge them: printed is the change of the negative Gaussian log-likelihood per coefficient, in nats,
against no shrinkage, for each number of maps N and weight ν₀ of the degree's mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from spherediff import data, harmonics

WEIGHTS = (0, 5, 10, 20, 40, 80)
SIZES = (30, 60, 120, 390, 780)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    archive = data.open(parser.parse_args().archive, variables=["pr"])
    years = archive.isel(time=archive["test"].values == 0)
    fitted, judging = years.isel(time=slice(780)), years.isel(time=slice(790, None))
    encoder = data.Encoder.fit(
        fitted, lmax=31, transform={"pr": data.Log1p(0.5)}, climatology=data.Harmonics(3)
    )
    x, held_out = (encoder.encode(part).double()[:, 0] for part in (fitted, judging))
    print(f"{'N':>5s}" + "".join(f"{f'ν₀ = {weight}':>12s}" for weight in WEIGHTS))
    for N in SIZES:
        chosen = x[torch.linspace(0, len(x) - 1, N).long()]
        mean, variance = chosen.mean(0), chosen.var(0)
        of_degree = harmonics.expand(harmonics.degree_spectrum(variance.sqrt()))
        losses = []
        for weight in WEIGHTS:
            v = (N * variance + weight * of_degree) / (N + weight)
            losses.append(float((0.5 * (v.log() + (held_out - mean).square() / v)).mean()))
        print(f"{N:5d}" + "".join(f"{loss - losses[0]:12.5f}" for loss in losses))


if __name__ == "__main__":
    main()
