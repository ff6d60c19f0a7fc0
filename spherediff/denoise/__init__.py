"""Denoisers m(x, t) = E[X_0 | X_t = x] and the Malliavin–Gamma score.

Let X_t = α X_0 + σ ε, α and σ diagonal, have the law h_t γ.  Mode by mode the score is a
conditional expectation:

    ∂_i log p_t(x) = (α_i m_i − x_i)/σ_i²,
    D log h_t(x) = C∇log p_t(x) + x = (e^{−τ} m − e^{−2τ} x)/(1 − e^{−2τ})   (in H_C),

the last form being the Malliavin–Gamma score of Greco's process (arXiv 2505.13189).  So a model
is a denoiser; here are the exact ones, the learned one, and guidance by labels.
"""

from spherediff.denoise.base import Denoiser, ResidualDenoiser
from spherediff.denoise.chaos import ChaosDenoiser
from spherediff.denoise.empirical import EmpiricalDenoiser
from spherediff.denoise.gaussian import GaussianDenoiser
from spherediff.denoise.guided import Conditional, GuidedDenoiser
from spherediff.denoise.mixture import MixtureDenoiser
from spherediff.denoise.neural import NeuralDenoiser

__all__ = [
    "ChaosDenoiser",
    "Conditional",
    "Denoiser",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "GuidedDenoiser",
    "MixtureDenoiser",
    "NeuralDenoiser",
    "ResidualDenoiser",
]
