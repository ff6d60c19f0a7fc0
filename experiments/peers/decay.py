"""How much weight decay: the loss on validation maps, archive by archive.

    python experiments/peers/decay.py ARCHIVES [--archives u250] [--decays 0.01 0.3]
        [--steps 2500] [--seed 1] [--threads 1]

ARCHIVES is the folder with speedy-daily.nc and tas-annual-ensemble.nc.  The package's model is
trained with each decay, from the same weights and with the same mini-batches and noise; the
loss is that of the best weights, 1 being the Gaussian emulator's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import archives
import torch
from archives import Split
from emulators import untrained

from spherediff.train import TrainConfig, TrainResult, train


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="ARCHIVES")
    parser.add_argument("--archives", nargs="+", choices=archives.NAMES, default=("u250",))
    parser.add_argument("--decays", nargs="+", type=float, default=(0.01, 0.3))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def trained(split: Split, config: TrainConfig) -> TrainResult:
    """What training with this configuration comes to."""
    model, known, judged = untrained(split, *split.tuning, config.seed)
    learners = model.learners(known.x)
    with tempfile.TemporaryDirectory() as directory:
        return train(model.denoiser, known, judged, config, directory, learners=learners)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    archives.require(options.archives, options.folder)
    print("| archive | steps | " + " | ".join(f"{decay:g}" for decay in options.decays) + " |")
    print("|---|--:|" + "--:|" * len(options.decays))
    for name in options.archives:
        split = archives.load(name, options.folder)
        configs = (
            TrainConfig(options.steps, seed=options.seed, weight_decay=decay)
            for decay in options.decays
        )
        cells = [f"{trained(split, config).best:.4f}" for config in configs]
        print(f"| {name} | {options.steps} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
