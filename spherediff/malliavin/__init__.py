"""Malliavin calculus of nonlinear SDEs: paths, their variations, Skorokhod weights, reversal."""

from spherediff.malliavin.conditional import Estimate, conditional_expectation
from spherediff.malliavin.langevin import langevin_weight
from spherediff.malliavin.linear import LinearSDE, Moments
from spherediff.malliavin.phi4 import Phi4
from spherediff.malliavin.sde import SDE, Path, euler_maruyama, milstein
from spherediff.malliavin.twin import autodiff_weight, estimated_weight
from spherediff.malliavin.variation import (
    Linearisation,
    first_variation,
    linearise,
    second_variation,
)
from spherediff.malliavin.weights import (
    bismut_elworthy_li_weight,
    discrete_weight,
    malliavin_covariance,
    variation_weight,
)

__all__ = [
    "SDE",
    "Estimate",
    "LinearSDE",
    "Linearisation",
    "Moments",
    "Path",
    "Phi4",
    "autodiff_weight",
    "bismut_elworthy_li_weight",
    "conditional_expectation",
    "discrete_weight",
    "estimated_weight",
    "euler_maruyama",
    "first_variation",
    "langevin_weight",
    "linearise",
    "malliavin_covariance",
    "milstein",
    "second_variation",
    "variation_weight",
]
