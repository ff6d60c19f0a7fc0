"""Steps of training in single and in mixed precision, and what comes before the first.

    python tests/benchmarks/bench_training.py [--pairs 10] [--threads 1]

A step is one of the optimiser on a mini-batch of 16 fields up to degree 31, by the network that a
model has by default for one variable and by that of `speedy-daily` for three.  Runs alternate, and
ratios are medians over the pairs.  Before the first there are seven references, of the model and
for cross-fitting, each of which takes about as long as building a model: of one of the bundled
winds, by lmax.
"""

from __future__ import annotations

import argparse

import torch
from bench_transforms import compare, describe_machine, seconds

from spherediff import harmonics
from spherediff._precision import multiplies_bfloat16
from spherediff._system import keep_freed_memory
from spherediff.data import Encoder, Monthly, load
from spherediff.model import Model
from spherediff.nn import OperatorConfig, SphericalOperator

BATCH = 16
LMAX = 31, 47, 63


def networks() -> dict[str, OperatorConfig]:
    """The bundled model's, and what one variable of its archive has by default."""
    joint = Model.load("speedy-daily").network.config
    static = joint.static // joint.channels
    one = OperatorConfig(joint.lmax, 1, static=static, conditions=joint.conditions)
    return {"one variable": one, "speedy-daily": joint}


class Step:
    """One step after another of the same network."""

    def __init__(self, config: OperatorConfig, mixed: bool) -> None:
        torch.manual_seed(0)
        self.network, self.mixed = SphericalOperator(**config.to_dict()), mixed
        self.optimiser = torch.optim.AdamW(self.network.parameters())
        shape = 3, BATCH, config.channels, harmonics.count(config.lmax)
        self.u, self.w, self.target = torch.randn(shape)
        self.log_noise, self.told = torch.randn(BATCH), torch.randn(BATCH, config.conditions)

    def __call__(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mixed):
            F = self.network(self.u, self.w, self.log_noise, self.told)
        self.optimiser.zero_grad()
        (F - self.target).square().mean().backward()
        self.optimiser.step()


def building(lmax: int) -> float:
    """Seconds that a model takes to be built."""
    ds = load("navy-winds")
    encoder = Encoder.fit(ds, "UWND", lmax=lmax, climatology=Monthly())
    fields = encoder.encode(ds)
    return seconds(lambda: Model.build(encoder, fields))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10, help="paired runs of each comparison")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    describe_machine(options.threads)
    if not multiplies_bfloat16(torch.device("cpu")):
        print("this processor has no instructions for bfloat16, which training then does not use\n")
    print(f"{'':52s}{'float32':>10s}{'mixed':>10s}{'ratio':>8s}")
    for name, config in networks().items():
        compare(
            f"a step of training, {name}", Step(config, False), Step(config, True), options.pairs
        )
    print()
    for lmax in LMAX:
        modes = harmonics.count(lmax)
        print(f"{f'a model of {modes} modes, lmax {lmax}':52s}{building(lmax):9.2f}s", flush=True)


if __name__ == "__main__":
    main()
