"""Networks on spherical-harmonic coefficients."""

from spherediff.nn.operator import OperatorConfig, SpectralConvolution, SphericalOperator

__all__ = ["OperatorConfig", "SpectralConvolution", "SphericalOperator"]
