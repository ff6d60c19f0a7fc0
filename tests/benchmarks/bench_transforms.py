"""Spherical transforms beside healpy and torch-harmonics: times, and ratios of paired runs.

Both sides of a comparison run alternately, and each ratio is the median over the pairs, so that
whatever else the machine does weighs on both alike.  Every comparison first checks that the two
sides compute the same thing.

    python tests/benchmarks/bench_transforms.py
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ducc0
import healpy as hp
import numpy as np
import torch

from spherediff import harmonics
from spherediff.grids import GaussLegendre, HEALPix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads for every library")
    parser.add_argument("--pairs", type=int, default=15, help="paired runs of each comparison")
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(arguments.threads):
        # healpy's OpenMP reads it once, when it is loaded
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    describe_machine(arguments.threads)
    print(f"{'':52s}{'theirs':>10s}{'ours':>10s}{'ratio':>8s}{'target':>8s}")
    healpix_synthesis(arguments.pairs)
    differentiable_synthesis(arguments.pairs)


def describe_machine(threads: int) -> None:
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.split(":")[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    print(f"machine   {models[0] if models else platform.processor()}, {os.cpu_count()} cores")
    packages = ("torch", "ducc0", "healpy", "torch-harmonics", "numpy", "numba")
    print("versions  python", platform.python_version(), *(f"· {p} {version(p)}" for p in packages))
    print(f"threads   {threads}\n")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def compare(
    name: str,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    pairs: int,
    target: float | None = None,
) -> None:
    for _ in range(3):
        theirs(), ours()
    times = [(seconds(theirs), seconds(ours)) for _ in range(pairs)]
    milliseconds = [1e3 * statistics.median(side) for side in zip(*times, strict=True)]
    ratio = statistics.median(a / b for a, b in times)
    aim = "" if target is None else f"{target:8.1f}"
    print(
        f"{name:52s}{milliseconds[0]:8.2f}ms{milliseconds[1]:8.2f}ms{ratio:8.2f}{aim}", flush=True
    )


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def healpix_synthesis(pairs: int, nside: int = 512, lmax: int = 1024) -> None:
    grid = HEALPix(nside)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn((lmax + 1) ** 2, generator=generator, dtype=torch.float64)
    # healpy has double precision alone, so it stands beside both of ours.
    alm = harmonics.to_healpy(a).numpy()
    expected = hp.alm2map(alm, nside, lmax=lmax)
    for dtype, target, tolerance in ((torch.float32, 2.0, 1e-5), (torch.float64, 1.6, 1e-11)):
        ours = a.to(dtype)
        error = np.linalg.norm(grid.synthesis(ours).numpy() - expected)
        assert error < tolerance * np.linalg.norm(expected)
        compare(
            f"HEALPix synthesis {nside}/{lmax}, {dtype}, healpy".replace("torch.", ""),
            lambda: hp.alm2map(alm, nside, lmax=lmax),
            lambda ours=ours: grid.synthesis(ours),
            pairs,
            target,
        )
        compare(
            f"  the same, {dtype}, bare ducc0 call".replace("torch.", ""),
            bare_ducc(nside, lmax, harmonics.to_healpy(ours).numpy()),
            lambda ours=ours: grid.synthesis(ours),
            pairs,
        )


def bare_ducc(nside: int, lmax: int, alm: np.ndarray) -> Callable[[], object]:
    """What ducc0 takes for one map by itself: coefficients packed, room for the map at hand."""
    rings = ducc0.healpix.Healpix_Base(nside, "RING").sht_info()
    room = np.empty((1, 12 * nside**2), np.float32 if alm.dtype == np.complex64 else np.float64)
    return lambda: ducc0.sht.synthesis(
        alm=alm[None],
        map=room,
        lmax=lmax,
        spin=0,
        theta_interpol=True,
        nthreads=torch.get_num_threads(),
        **rings,
    )


def differentiable_synthesis(pairs: int) -> None:
    if version("torch-harmonics") == "not installed":
        print(
            "torch-harmonics is not installed: pip install 'spherediff[bench]' to compare with it"
        )
        return
    a = torch.randn(32, 81)
    first = seconds(lambda: differentiate(GaussLegendre(8).synthesis, a, torch.randn(32, 9, 18)))
    print(f"{'GL synthesis and gradient, compiled at the first call':62s}{first:8.2f} s")
    aims = {32: 2.5, 64: 2.2, 128: 1.6}  # the others have grids of 2ᵏ longitudes
    for lmax in (31, 32, 63, 64, 127, 128):
        one_differentiable_synthesis(lmax, aims.get(lmax), pairs)
    one_differentiable_synthesis(1, None, pairs, batch=1)  # what calls cost without numbers


def one_differentiable_synthesis(
    lmax: int, target: float | None, pairs: int, batch: int = 32
) -> None:
    from torch_harmonics import InverseRealSHT

    grid = GaussLegendre(lmax)
    peer = InverseRealSHT(
        *grid.shape, lmax=lmax + 1, mmax=lmax + 1, grid="legendre-gauss", norm="ortho"
    ).float()
    a = torch.randn(batch, (lmax + 1) ** 2)
    square = square_coefficients(a, lmax)
    gradient = torch.randn(batch, *grid.shape)
    assert float((peer(square) - grid.synthesis(a)).norm() / grid.synthesis(a).norm()) < 1e-5
    compare(
        f"GL synthesis and gradient, {batch} × lmax {lmax}, torch-harmonics",
        lambda: differentiate(peer, square, gradient),
        lambda: differentiate(grid.synthesis, a, gradient),
        5 * pairs,
        target,
    )


def square_coefficients(a: torch.Tensor, lmax: int) -> torch.Tensor:
    """torch-harmonics' layout: complex, (..., degree, order ≥ 0), zero above the diagonal."""
    alm = harmonics.to_healpy(a)
    square = torch.zeros(*a.shape[:-1], lmax + 1, lmax + 1, dtype=alm.dtype)
    m, ell = np.triu_indices(lmax + 1)
    square[..., ell, m] = alm
    return square


def differentiate(
    synthesis: Callable[[torch.Tensor], torch.Tensor], a: torch.Tensor, gradient: torch.Tensor
) -> None:
    leaf = a.detach().requires_grad_()
    synthesis(leaf).backward(gradient)


if __name__ == "__main__":
    main()
