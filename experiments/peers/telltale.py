"""What gives draws away: the classifier of maps with one kind of feature at a time.

    python experiments/peers/telltale.py ARCHIVES --output OUT --archive pr [--method spherediff]

OUT holds draws that ``run.py`` has made.  For each kind of feature the AUC between draws and test
maps by these features alone, the same between as many training maps, the last of them, and test
maps, and the feature that is furthest off: the difference of its means in standard deviations of
the test maps, with that of the training maps beside it.  Archives of one variable.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import archives
import numpy as np
import torch
from store import Entry

from spherediff.metrics import classifier
from spherediff.metrics.features import Features
from spherediff.metrics.resampling import Members, Sets


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="ARCHIVES")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--archive", choices=("pr", "tas", "u250"), default="pr")
    parser.add_argument("--method", default="spherediff")
    return parser.parse_args()


def area_under_curve(x: np.ndarray, first: Members, second: Members) -> float:
    each = (np.ones((1, len(members))) for members in (first, second))
    return float(classifier.area_under_curve(*classifier.wins(x, first, second), *each)[0])


def main() -> None:
    options = arguments()
    split = archives.load(options.archive, options.folder)
    drawn = Entry(options.output, options.archive, options.method).read()
    sets = Sets((len(drawn), len(split.test), len(split.known)))
    pool = torch.cat([drawn, split.test, split.known])[:, 0].double()
    kinds = classifier.of_map(Features(pool, sets))
    generated, test, training = sets.generated, sets.reference, sets.training[-len(split.test) :]
    print(f"{'':27s}  draws  training  furthest off: of draws, of training maps")
    for name, x in (kinds | {"all": np.concatenate([*kinds.values()], axis=1)}).items():
        told = [area_under_curve(x, members, test) for members in (generated, training)]
        shifts = [
            (x[members].mean(0) - x[test].mean(0)) / x[test].std(0)
            for members in (generated, training)
        ]
        k = int(np.abs(shifts[0]).argmax())
        off = f"feature {k}: {shifts[0][k]:+.2f}, {shifts[1][k]:+.2f}"
        print(f"{name:27s}  {told[0]:5.2f}  {told[1]:8.2f}  {off}")


if __name__ == "__main__":
    main()
