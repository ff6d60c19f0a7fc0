"""Is a Gaussian random field on the sphere isotropic?  Ours beside torch-harmonics' generator.

Each generator draws N fields with a Matérn-like spectrum.  The pointwise variance of an isotropic
field does not depend on latitude, and coefficients of one degree all have the same variance.  Both
are tested by χ² with N degrees of freedom for each latitude or order, and shown as z-scores: of
about 32 standard normal numbers the largest lies below 4 in all but one run of 500.

    python tests/benchmarks/bench_isotropy.py
"""

from __future__ import annotations

import argparse
import math

import torch
from bench_transforms import describe_machine

import spherediff as sd
from spherediff import harmonics

NLAT, FIELDS = 32, 4000


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    describe_machine(torch.get_num_threads())
    grid = sd.GaussLegendre(NLAT - 1)
    print(f"{FIELDS} fields on a {NLAT} × {grid.shape[1]} Gauss–Legendre grid")
    print(f"{'':18s}{'largest |z|':>14s}{'at latitude':>14s}{'variance of m = 0':>20s}")
    spectrum = sd.WhittleMatern(std=1.0, smoothness=1.0, correlation_length=0.5)
    field = sd.GaussianField(spectrum, NLAT - 1, dtype=torch.float64)
    ours = field.sample((FIELDS,), generator=torch.Generator().manual_seed(0))
    report("spherediff", grid, ours)
    theirs = torch_harmonics_fields()
    if theirs is None:
        print("torch-harmonics   not installed: pip install '.[bench]'")
    else:
        report("torch-harmonics", grid, theirs)


def torch_harmonics_fields() -> torch.Tensor | None:
    """Coefficients of fields by torch-harmonics, drawn on its equiangular grid."""
    try:
        from torch_harmonics.random_fields import GaussianRandomFieldS2
    except ImportError:
        return None
    torch.manual_seed(0)
    nlat = 2 * NLAT
    peer = GaussianRandomFieldS2(nlat, alpha=2.0, tau=3.0, dtype=torch.float64)
    maps = peer(FIELDS)
    # its rings lie at Clenshaw–Curtis latitudes, north to south
    latitude, longitude = 90 - torch.arange(nlat) * 180 / (nlat - 1), torch.arange(2 * nlat)
    grid = sd.LatLon(latitude.numpy(), longitude.numpy() * 180 / nlat)
    return grid.analysis(maps, NLAT - 1)


def report(name: str, grid: sd.GaussLegendre, a: torch.Tensor) -> None:
    """One latitude of one meridian a number, each the sum of squares of independent draws."""
    values = grid.synthesis(a)[:, :, 0]
    weight = 2 * torch.arange(grid.shape[0], dtype=torch.float64) + 1
    expected = (harmonics.degree_spectrum(a).mean(0) * weight).sum() / (4 * math.pi)
    z = (values.square().sum(0) / expected - FIELDS) / math.sqrt(2 * FIELDS)
    worst = int(z.abs().argmax())
    order, ell = harmonics.orders(NLAT - 1), harmonics.degrees(NLAT - 1)
    inner = (ell > 0) & (ell < NLAT - 1)
    power = a.square().mean(0)
    ratio = (power[inner & (order == 0)] / harmonics.degree_spectrum(a).mean(0)[1:-1]).mean()
    print(f"{name:18s}{float(z.abs().max()):14.1f}{grid.latitude[worst]:14.1f}", end="")
    print(f"{float(ratio):13.2f} of C_ℓ")


if __name__ == "__main__":
    main()
