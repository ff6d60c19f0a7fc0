"""Infinite-dimensional random-field diffusion on the sphere.

Spherical harmonics give the Cameron–Martin space of Whittle–Matérn noise, an Ornstein–Uhlenbeck
process turns fields into that noise, the Malliavin–Gamma score is a conditional expectation, and a
reverse sampler turns noise into fields.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from types import ModuleType

from spherediff import harmonics
from spherediff.covariance import Covariance
from spherediff.denoise import (
    Denoiser,
    EmpiricalDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    NeuralDenoiser,
)
from spherediff.gaussian import GaussianField, MultivariateGaussianField
from spherediff.grids import GaussLegendre, Grid, HEALPix, LatLon, Points
from spherediff.process import ConstantRate, LogSNR, OrnsteinUhlenbeck
from spherediff.sample import Bridge, EulerMaruyama, Heun, ProbabilityFlow, ReverseSDE
from spherediff.spectra import PowerLaw, Tabulated, WhittleMatern

__version__ = version("spherediff")

__all__ = [
    "Bridge",
    "ConstantRate",
    "Covariance",
    "Denoiser",
    "EmpiricalDenoiser",
    "EulerMaruyama",
    "GaussLegendre",
    "GaussianDenoiser",
    "GaussianField",
    "Grid",
    "HEALPix",
    "Heun",
    "LatLon",
    "LogSNR",
    "MixtureDenoiser",
    "MultivariateGaussianField",
    "NeuralDenoiser",
    "OrnsteinUhlenbeck",
    "Points",
    "PowerLaw",
    "ProbabilityFlow",
    "ReverseSDE",
    "Tabulated",
    "WhittleMatern",
    "harmonics",
]

# Loaded on first use: they bring in matplotlib and xarray, which sampling does not need.
_LAZY = ("data", "model", "nn", "plot", "train")


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
