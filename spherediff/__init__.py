"""Infinite-dimensional random-field diffusion on the sphere.

Spherical harmonics give the Cameron–Martin space of Whittle–Matérn noise, an Ornstein–Uhlenbeck
process turns fields into that noise, the Malliavin–Gamma score is a conditional expectation, and a
reverse sampler turns noise into fields.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spherediff import (
        bounds,
        chaos,
        data,
        harmonics,
        kriging,
        likelihood,
        malliavin,
        metrics,
        model,
        nn,
        observe,
        plot,
        posterior,
        process,
        train,
        twisted,
        vector,
    )
    from spherediff.chaos import Chaos, ChaosDensity
    from spherediff.covariance import Covariance
    from spherediff.denoise import (
        ChaosDenoiser,
        Denoiser,
        EmpiricalDenoiser,
        GaussianDenoiser,
        MixtureDenoiser,
        NeuralDenoiser,
    )
    from spherediff.gaussian import GaussianField, MultivariateGaussianField
    from spherediff.grids import GaussLegendre, Grid, HEALPix, LatLon, Points
    from spherediff.kriging import Kriging
    from spherediff.model import Model
    from spherediff.observe import Observation
    from spherediff.process import (
        ConstantRate,
        FractionalOrnsteinUhlenbeck,
        LinearSPDE,
        LogSNR,
        OrnsteinUhlenbeck,
    )
    from spherediff.sample import Bridge, EulerMaruyama, Heun, ProbabilityFlow, ReverseSDE
    from spherediff.spectra import PowerLaw, Tabulated, WhittleMatern
    from spherediff.vector import VectorTransform

__version__ = version("spherediff")

# Each name is loaded on first use: torch, matplotlib and xarray take seconds, `--help` must not.
_MODULES = (
    "bounds",
    "chaos",
    "data",
    "harmonics",
    "kriging",
    "likelihood",
    "malliavin",
    "metrics",
    "model",
    "nn",
    "observe",
    "plot",
    "posterior",
    "process",
    "train",
    "twisted",
    "vector",
)
_HOME = {
    "Bridge": "sample",
    "Chaos": "chaos",
    "ChaosDenoiser": "denoise",
    "ChaosDensity": "chaos",
    "ConstantRate": "process",
    "Covariance": "covariance",
    "Denoiser": "denoise",
    "EmpiricalDenoiser": "denoise",
    "EulerMaruyama": "sample",
    "FractionalOrnsteinUhlenbeck": "process",
    "GaussLegendre": "grids",
    "GaussianDenoiser": "denoise",
    "GaussianField": "gaussian",
    "Grid": "grids",
    "HEALPix": "grids",
    "Heun": "sample",
    "Kriging": "kriging",
    "LatLon": "grids",
    "LinearSPDE": "process",
    "LogSNR": "process",
    "MixtureDenoiser": "denoise",
    "Model": "model",
    "MultivariateGaussianField": "gaussian",
    "NeuralDenoiser": "denoise",
    "Observation": "observe",
    "OrnsteinUhlenbeck": "process",
    "Points": "grids",
    "PowerLaw": "spectra",
    "ProbabilityFlow": "sample",
    "ReverseSDE": "sample",
    "Tabulated": "spectra",
    "VectorTransform": "vector",
    "WhittleMatern": "spectra",
}

__all__ = [
    "Bridge",
    "Chaos",
    "ChaosDenoiser",
    "ChaosDensity",
    "ConstantRate",
    "Covariance",
    "Denoiser",
    "EmpiricalDenoiser",
    "EulerMaruyama",
    "FractionalOrnsteinUhlenbeck",
    "GaussLegendre",
    "GaussianDenoiser",
    "GaussianField",
    "Grid",
    "HEALPix",
    "Heun",
    "Kriging",
    "LatLon",
    "LinearSPDE",
    "LogSNR",
    "MixtureDenoiser",
    "Model",
    "MultivariateGaussianField",
    "NeuralDenoiser",
    "Observation",
    "OrnsteinUhlenbeck",
    "Points",
    "PowerLaw",
    "ProbabilityFlow",
    "ReverseSDE",
    "Tabulated",
    "VectorTransform",
    "WhittleMatern",
    "bounds",
    "chaos",
    "data",
    "harmonics",
    "kriging",
    "likelihood",
    "malliavin",
    "metrics",
    "model",
    "nn",
    "observe",
    "plot",
    "posterior",
    "process",
    "train",
    "twisted",
    "vector",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
