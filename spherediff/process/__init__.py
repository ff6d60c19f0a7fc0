"""Forward processes: how a field is turned into noise.

All are Gaussian given their start, and diagonal in the degree:

    X_t = α_ℓ(t) X_0 + σ_ℓ(t) ε,   ε white,

and all that denoisers and samplers use of them is α_ℓ and σ_ℓ.

* :class:`OrnsteinUhlenbeck`, dX = −X dτ + √2 dW^C, Greco's process (arXiv 2505.13189);
* :class:`LinearSPDE`, dX = −A X dτ + Q^{1/2} dW with A = f(−Δ) (arXiv 2508.20316);
* :class:`FractionalOrnsteinUhlenbeck`, dX = −A X dτ + Q^{1/2} dB^H, not Markov unless H = ½.
"""

from spherediff.process.base import ForwardProcess
from spherediff.process.direction import Direction, cameron_martin
from spherediff.process.fractional import (
    FractionalOrnsteinUhlenbeck,
    fractional_noise,
    fractional_variance,
)
from spherediff.process.linear import LinearProcess, LinearSPDE, OrnsteinUhlenbeck
from spherediff.process.operators import (
    Biharmonic,
    CahnHilliard,
    DampedHeat,
    FractionalLaplacian,
    Heat,
    Operator,
    Polynomial,
    SwiftHohenberg,
)
from spherediff.process.schedule import ConstantRate, LogSNR, Paced, Schedule

__all__ = [
    "Biharmonic",
    "CahnHilliard",
    "ConstantRate",
    "DampedHeat",
    "Direction",
    "ForwardProcess",
    "FractionalLaplacian",
    "FractionalOrnsteinUhlenbeck",
    "Heat",
    "LinearProcess",
    "LinearSPDE",
    "LogSNR",
    "Operator",
    "OrnsteinUhlenbeck",
    "Paced",
    "Polynomial",
    "Schedule",
    "SwiftHohenberg",
    "cameron_martin",
    "fractional_noise",
    "fractional_variance",
]
