"""Kriging of a large masked map: time, iterations, accuracy and memory.

    python experiments/kriging_scale.py [--nside 96] [--lmax 255] [--noise 0.1 1 10] [--draws 2]
        [--tilt 0]

A Whittle–Matérn field is seen on a HEALPix map without a band about the equator, or about a great
circle that is tilted against it, with noise whose standard deviation varies over the sky by a
factor of about three, 10⁵ numbers in all.  Printed are, for each level of noise relative to the
field, the time to set up, to find the posterior mean and to draw constrained realisations, the
bound on the error, the largest memory that the process held above what it held before, and, as a
check of the law, the mean square of the true field about the mean in units of that of a draw: at
the observed and at the hidden pixels, it is about one.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import time

import numpy as np
import torch
from torch import Tensor

from spherediff import GaussianField, HEALPix, WhittleMatern
from spherediff.kriging import Kriging
from spherediff.observe import Observation, Values


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--nside", type=int, default=96)
    parser.add_argument("--lmax", type=int, default=255)
    parser.add_argument(
        "--hidden", type=float, default=5.5, help="degrees of latitude, either side"
    )
    parser.add_argument("--tilt", type=float, default=0.0, help="degrees, of the hidden band")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 1.0, 10.0])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--max-iterations", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def memory() -> float:
    """Largest resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spread(values: Tensor, where: np.ndarray) -> float:
    return float(values[..., torch.from_numpy(where)].square().mean())


def distance(grid: HEALPix, tilt: float) -> np.ndarray:
    """Degrees from a great circle that meets the equator at an angle of ``tilt`` degrees."""
    theta, phi, angle = np.radians([90 - grid.latitude, grid.longitude, 0 * grid.latitude + tilt])
    height = np.cos(theta) * np.cos(angle) + np.sin(theta) * np.cos(phi) * np.sin(angle)
    return np.degrees(np.arcsin(height))


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    field = GaussianField(WhittleMatern(1.0, 1.5, 0.3), options.lmax, dtype=torch.float64)
    grid = HEALPix(options.nside)
    seen = np.abs(distance(grid, options.tilt)) > options.hidden
    H = Values(grid, field.event_shape, mask=seen)
    n = field.event_shape[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads")
    print(
        f"{grid!r}, {H.size} of {grid.shape[0]} pixels observed, lmax {options.lmax}, {n} unknowns"
    )
    generator = torch.Generator().manual_seed(0)
    truth = field.sample((), generator=generator)
    error = torch.randn(H.size, generator=generator, dtype=torch.float64)
    pattern = torch.from_numpy(1 + 0.5 * np.sin(np.radians(2 * grid.longitude[seen])))
    H.adjoint(H(truth))
    start = memory()
    for level in options.noise:
        std = level * float(field.variance.sqrt()) * pattern
        clock = time.perf_counter()
        observation = Observation(H, H(truth) + std * error, std)
        kriging = Kriging(observation, field, max_iterations=options.max_iterations)
        ready = time.perf_counter()
        mean = kriging.mean
        found = time.perf_counter()
        draws = kriging.sample((options.draws,), generator=generator)
        done = time.perf_counter()
        departures = grid.synthesis(torch.stack([truth - mean, draws[0] - mean]))
        ratios = [spread(departures[0], k) / spread(departures[1], k) for k in (seen, ~seen)]
        print(
            f"noise {level:g}: set up {ready - clock:.1f} s, mean {found - ready:.1f} s in "
            f"{kriging.iterations} iterations ({1e3 * (found - ready) / kriging.iterations:.0f} ms "
            f"each), error at most {kriging.residual:.1e} posterior standard deviations; "
            f"{(done - found) / options.draws:.1f} s a draw; {memory() - start:.0f} MiB, "
            f"{(memory() - start) * 2**20 / (8 * (n + H.size)):.0f} vectors of {n} + {H.size}; "
            f"truth/draw about the mean {ratios[0]:.2f} observed, {ratios[1]:.2f} hidden; "
            f"residual std observed {math.sqrt(spread(departures[0], seen)):.2g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
