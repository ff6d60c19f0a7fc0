"""``spherediff plot``: figures of maps, spectra and training runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from spherediff._system import say
from spherediff.cli.common import ArchiveOptions, Invocation

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """Draw the maps of any file, their spectra or moments, or the training curve of a model.

    For example, six maps side by side; one hemisphere; spectra of an archive; a model's training:
      spherediff plot samples.nc --variables UWND --maps 0 1 2 3 4 5 --output maps.png
      spherediff plot sky.fits --projection orthographic --center 0 60 --maps 0 --output sky.png
      spherediff plot navy-winds --kind spectrum --output spectrum.png
      spherediff plot winds-model --output training.png

    Attributes:
        path: files of maps, a bundled archive (navy-winds), or a model's folder.
        output: picture to write: .png, .pdf or .svg.
        kind: maps; spectrum (variance by degree); or moments (mean, standard deviation and
            skewness at every place).
        maps: which maps, counted from 0.
        projection: mollweide (whole sphere) or orthographic (the half that faces --center).
        center: longitude and latitude of the middle, degrees; Mollweide uses the longitude alone.
        coastlines: draw the coastlines of the Earth.
        columns: maps in a row.
        lmax: of the spectrum; by default the highest that the grid supports.
        dpi: dots per inch of a .png.
    """

    path: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PATH", help_behavior_hint="(required)")
    ]
    output: Path
    kind: Literal["maps", "spectrum", "moments"] = "maps"
    maps: tuple[int, ...] = (0, 1, 2, 3)
    projection: Literal["mollweide", "orthographic"] = "mollweide"
    center: tuple[float, float] = (0.0, 0.0)
    coastlines: bool = False
    columns: int = 2
    lmax: int | None = None
    dpi: int = 150
    options: Annotated[ArchiveOptions, arg(name="")] = ArchiveOptions()

    def run(self, invocation: Invocation) -> None:
        """Open, draw, save."""
        import matplotlib as mpl

        from spherediff._files import require_writable

        if self.output.suffix not in (".png", ".pdf", ".svg"):
            raise ValueError(f"cannot draw to {self.output}: expected .png, .pdf or .svg")
        if self.columns < 1 or not self.maps:
            raise ValueError(
                "expected at least one of --maps, and --columns at least 1, got"
                f" {len(self.maps)} and {self.columns}"
            )
        require_writable(self.output)
        mpl.use("Agg")
        figures = self._figures()
        for name, figure in figures.items():
            path = self.output
            if len(figures) > 1:
                path = path.with_name(f"{path.stem}-{name}{path.suffix}")
            save_figure(figure, path, invocation, self.dpi)
            say(f"wrote {path}")

    def _figures(self) -> dict[str, Figure]:
        """One figure, or one for each variable by its name."""
        from spherediff.train import METRICS

        if len(self.path) == 1 and (Path(self.path[0]) / METRICS).is_file():
            from spherediff import plot

            curves = plot.training_curve(
                Path(self.path[0]) / METRICS,
                reference={"Gaussian emulator": 1.0},
                ylabel="denoising loss / Gaussian emulator's",
            )
            return {"training": figure_of(curves.ax)}
        ds = self.options.open(self.path)
        return {str(name): self._figure(ds, str(name)) for name in ds.data_vars}

    def _figure(self, ds: xr.Dataset, name: str) -> Figure:
        from spherediff import plot
        from spherediff.data import grid_of, sample_dimension

        sample, field, grid = sample_dimension(ds), ds[name], grid_of(ds)
        units, label = str(field.attrs.get("units", "")), str(field.attrs.get("long_name", name))
        common: dict[str, Any] = {"units": units, "coastlines": self.coastlines}
        if self.kind == "spectrum":
            import torch

            values = torch.from_numpy(field.values.astype("float64"))
            a = grid.analysis(values, grid.max_lmax if self.lmax is None else self.lmax)
            return figure_of(plot.degree_spectrum({name: a}, title=label, units=units).ax)
        if self.kind == "moments":
            drawn = plot.moments(
                {label: field.values}, grid, longitude=self.center[0], graticule=30.0, **common
            )
            return drawn.figure  # type: ignore[return-value]
        chosen = self._chosen(ds.sizes[sample])
        values = field.isel({sample: chosen}).values
        titles = [title(ds, k, label) for k in chosen]
        if self.projection == "orthographic":
            return self._orthographic(values, titles, grid, common)
        drawn = plot.panels(
            list(values),
            grid=grid,
            titles=titles,
            columns=self.columns,
            longitude=self.center[0],
            **common,
        )
        return drawn.figure  # type: ignore[return-value]

    def _chosen(self, count: int) -> list[int]:
        beyond = [k for k in self.maps if not 0 <= k < count]
        if beyond and self.maps != Plot.maps:
            raise ValueError(f"--maps {beyond[0]}: there are {count} maps, 0 to {count - 1}")
        return [k for k in self.maps if k < count]

    def _orthographic(
        self, values: Any, titles: list[str], grid: Any, common: dict[str, Any]
    ) -> Figure:
        import math

        import matplotlib.pyplot as plt

        from spherediff import plot
        from spherediff.plot import projection
        from spherediff.plot.maps import ColourScale

        columns = min(self.columns, len(titles))
        rows = math.ceil(len(titles) / columns)
        figure, axes = plt.subplots(
            rows, columns, squeeze=False, figsize=(4.5 * columns, 4.8 * rows), layout="constrained"
        )
        norm = ColourScale.of([projection.field(one, grid)[0] for one in values]).norm
        for unused in axes.flat[len(titles) :]:
            unused.remove()
        for ax, one, text in zip(axes.flat, values, titles, strict=False):
            plot.orthographic(
                one,
                grid=grid,
                ax=ax,
                longitude=self.center[0],
                latitude=self.center[1],
                title=text,
                vmin=norm.vmin,
                vmax=norm.vmax,
                **common,
            )
        return figure


def title(ds: xr.Dataset, k: int, label: str) -> str:
    """Name of a map: its date if it has one, else its number."""
    from spherediff.data import sample_dimension

    if "time" in ds.coords and ds["time"].dims == (sample_dimension(ds),):
        return f"{label}, {str(ds['time'].values[k])[:10]}"
    return label if ds.sizes[sample_dimension(ds)] == 1 else f"{label}, {k}"


def figure_of(ax: Any) -> Figure:
    """The figure that holds these axes."""
    return ax.get_figure()


def save_figure(figure: Figure, path: Path, invocation: Invocation, dpi: int = 150) -> None:
    """Write a picture whole or not at all, with its provenance, and close it."""
    import matplotlib.pyplot as plt

    from spherediff._files import atomic_write

    record = invocation.record()
    note = "; ".join(f"{key}: {value}" for key, value in record.items())
    field = {".png": "Comment", ".pdf": "Subject", ".svg": "Description"}[path.suffix]
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata={field: note})
    plt.close(figure)
