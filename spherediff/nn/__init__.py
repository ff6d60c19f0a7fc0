"""Networks on spherical-harmonic coefficients."""

from spherediff.nn.calibration import Calibration
from spherediff.nn.operator import OperatorConfig, SpectralConvolution, SphericalOperator

__all__ = ["Calibration", "OperatorConfig", "SpectralConvolution", "SphericalOperator"]
