"""``spherediff generate``: Gaussian random fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from spherediff._system import say
from spherediff.cli.common import GridOptions, Invocation, decode, describe_channels, seeded

if TYPE_CHECKING:
    from spherediff.data import Encoder
    from spherediff.spectra import Spectrum


@dataclass(frozen=True)
class Generate:
    """Draw Gaussian random fields on the sphere.

    The spectrum is Whittle–Matérn, C_ℓ = τ⁻² (κ² + ℓ(ℓ+1))^−(ν+1), unless --power-law or --table
    says otherwise.  The same seed gives the same low degrees at every lmax.

    For example, eight maps on HEALPix, the same on a 1° grid, and a sky from a table of C_ℓ:
      spherediff generate --lmax 127 --correlation-length 0.3 --output noise.fits
      spherediff generate --lmax 127 --correlation-length 0.3 --grid 1 --output noise.nc
      spherediff generate --lmax 767 --table cl.txt --nside 512 --count 1 --output sky.fits

    Attributes:
        output: file to write: .fits (HEALPix), .nc or .zarr (maps), .safetensors (coefficients).
        lmax: band limit, the highest degree ℓ; the finest detail is about 20,000 km / lmax.
        count: number of fields.
        seed: of the random draws.
        std: standard deviation σ at every place, in --units.
        smoothness: ν > 0; the fields are almost ν times differentiable.
        correlation_length: ρ > 0 in radians (1 radian is 6,371 km on the Earth); the correlation
            at this distance is about 0.1.
        power_law: A and p of C_ℓ = A (1+ℓ)^−p instead.
        table: text file instead, with C_ℓ from ℓ = 0 upwards in the last column of each line.
        name: of the variable in the output.
        units: of the field in the output; 1 for none.
        grid: where to evaluate the fields.
    """

    output: Path
    lmax: int = 127
    count: int = 8
    seed: int = 0
    std: float = 1.0
    smoothness: float = 1.5
    correlation_length: float = 0.3
    power_law: tuple[float, float] | None = None
    table: Path | None = None
    name: str = "field"
    units: str = "1"
    grid: Annotated[GridOptions, arg(name="")] = GridOptions()

    def run(self, invocation: Invocation) -> None:
        """Draw, evaluate, write."""
        import spherediff as sd
        from spherediff import data
        from spherediff.data.write import require_room

        if self.count < 1:
            raise ValueError(f"--count must be at least 1, got {self.count}")
        grid = self.grid.resolve(self.output, self.lmax)
        generator = seeded(self.seed)
        field = sd.GaussianField(self._spectrum(), self.lmax)
        require_room(self.output, self.count, 1)
        a = field.sample((self.count, 1), generator=generator)
        encoder, record = self._encoder(), invocation.record(self.seed, lmax=self.lmax)
        if grid is None:
            data.write(a, self.output, record | describe_channels(encoder))
        else:
            data.write(decode(encoder, a, grid, None), self.output, record)
        std = float(field.variance.sqrt())
        say(
            f"wrote {self.count} field{'s' if self.count > 1 else ''} with lmax {self.lmax} and a"
            f" standard deviation of {std:.4g} to {self.output}"
        )

    def _spectrum(self) -> Spectrum:
        import spherediff as sd

        if self.power_law is not None and self.table is not None:
            raise ValueError("--power-law and --table exclude each other: give one of them")
        if self.power_law is not None:
            return sd.PowerLaw(*self.power_law)
        if self.table is not None:
            return sd.Tabulated(_read_table(self.table, self.lmax))
        return sd.WhittleMatern(self.std, self.smoothness, self.correlation_length)

    def _encoder(self) -> Encoder:
        """Coefficients in physical units: nothing removed, nothing scaled."""
        import torch

        from spherediff import data, harmonics
        from spherediff.data.amplitude import Amplitude

        n = harmonics.count(self.lmax)
        return data.Encoder(
            (self.name,),
            ({"units": self.units, "long_name": "Gaussian random field"},),
            (data.Identity(),),
            self.lmax,
            data.NoClimatology(),
            torch.zeros(0, 1, n, dtype=torch.float64),
            Amplitude(torch.zeros(1, 1)),
            torch.ones(1, dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
        )


def _read_table(path: Path, lmax: int) -> list[float]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    rows = [line.replace(",", " ").split() for line in path.read_text().splitlines()]
    try:
        table = [float(row[-1]) for row in rows if row and not row[0].startswith("#")]
    except ValueError as error:
        raise ValueError(
            f"{path}: expected lines of numbers with C_ℓ in the last column: {error}"
        ) from error
    if len(table) <= lmax:
        raise ValueError(
            f"{path} has C_ℓ up to degree {len(table) - 1}, but --lmax is {lmax}: lower it to that"
        )
    return table
