"""Figures of the page on fidelity: real weather beside drawn weather.

    python experiments/fidelity_figures.py speedy-daily.nc --model MODEL --directory docs/images

Held-out days of the archive and as many draws for the same days of the year, three variables, on
one colour scale each: DIRECTORY/fidelity-VARIABLE.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from spherediff import data, plot
from spherediff.grids import LatLon
from spherediff.model import Model

DAYS = (10, 75, 140)  # of the test maps
FLOW_STEPS = 32
TITLES = {
    "tas": ("Air temperature near the surface: departure from the yearly cycle", "K"),
    "u250": ("Zonal wind near 250 hPa", "m s⁻¹"),
    "pr": ("Precipitation", "√(mm/day)"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--directory", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("Agg")
    model = Model.load(options.model)
    encoder = model.encoder
    archive = data.open(options.archive, encoder.names)
    test = archive.isel(time=archive.test.values == 1).isel(time=list(DAYS))
    generator = torch.Generator().manual_seed(1)
    drawn = model.sample(len(DAYS), generator=generator, time=test.time, steps=FLOW_STEPS)
    real = encoder.encode(test)
    grid = LatLon.regular(1.0)
    for channel, name in enumerate(encoder.names):
        sides = []
        for x in (real, drawn):
            a = encoder.anomalies(x) if name == "tas" else encoder.restore(x, test.time)
            values = grid.synthesis(a[:, channel])
            sides.append(values.clamp(min=0) if name == "pr" else values)
        title, units = TITLES[name]
        figure = plt.figure(figsize=(10, 4.6), layout="compressed")
        plot.compare(
            *sides,
            grid,
            labels=("circulation model", "spherediff"),
            figure=figure,
            units=units,
            coastlines=True,
            cmap="YlGnBu" if name == "pr" else None,
        )
        figure.suptitle(title)
        figure.savefig(options.directory / f"fidelity-{name}.png", dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    main()
