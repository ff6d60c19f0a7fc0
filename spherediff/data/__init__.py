"""Archives of global maps: files to coefficients and back.

ds = spherediff.data.load("navy-winds")             # or open("file.nc")
train = ds.isel(time=ds.test == 0)
encoder = Encoder.fit(train, lmax=31, climatology=Monthly())
x = encoder.encode_training(train)                  # (samples, channels, (lmax+1)²)
labels = Labels.fit(train, {"year": Scalar}, climatology=Monthly())
c = labels.encode(train, len(x))                    # (samples, size), what a network is told
maps = encoder.decode(x, grid, time=train.time)     # xarray.Dataset in physical units
write(maps, "maps.nc", {"command": "…"})
"""

from spherediff.data.archive import grid_of, normalise, sample_dimension, span
from spherediff.data.bundled import coastlines, load, models
from spherediff.data.climatology import Constant, Harmonics, Monthly, NoClimatology
from spherediff.data.encoder import Encoder
from spherediff.data.labels import Category, Labels, Scalar, Season
from spherediff.data.read import fill, open, read_coefficients
from spherediff.data.transforms import Identity, Log1p, Quantile, SquareRoot
from spherediff.data.write import write

__all__ = [
    "Category",
    "Constant",
    "Encoder",
    "Harmonics",
    "Identity",
    "Labels",
    "Log1p",
    "Monthly",
    "NoClimatology",
    "Quantile",
    "Scalar",
    "Season",
    "SquareRoot",
    "coastlines",
    "fill",
    "grid_of",
    "load",
    "models",
    "normalise",
    "open",
    "read_coefficients",
    "sample_dimension",
    "span",
    "write",
]
