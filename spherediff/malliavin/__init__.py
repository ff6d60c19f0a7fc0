"""Malliavin calculus of nonlinear SDEs: paths, their variations, and Skorokhod weights."""

from spherediff.malliavin.conditional import conditional_expectation as conditional_expectation
from spherediff.malliavin.linear import LinearSDE as LinearSDE
from spherediff.malliavin.sde import SDE as SDE
from spherediff.malliavin.sde import Path as Path
from spherediff.malliavin.sde import euler_maruyama as euler_maruyama
from spherediff.malliavin.sde import milstein as milstein
from spherediff.malliavin.twin import autodiff_weight as autodiff_weight
from spherediff.malliavin.twin import estimated_weight as estimated_weight
from spherediff.malliavin.weights import bismut_elworthy_li_weight as bismut_elworthy_li_weight
from spherediff.malliavin.weights import discrete_weight as discrete_weight
from spherediff.malliavin.weights import malliavin_covariance as malliavin_covariance
from spherediff.malliavin.weights import variation_weight as variation_weight
