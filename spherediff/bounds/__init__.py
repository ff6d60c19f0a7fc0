"""Entropic bounds: how far the law of a sampler's output is from the data, in nats.

The reverse of Greco's process dX = −X dτ + √2 dW^C is run over [0, T] in N steps of size h = T/N
with the score held at the start of each step (:class:`FrozenScore`).  For every law μ of the data
with a finite Fisher information relative to the noise γ (Greco 2025, arXiv 2505.13189; Conforti,
Durmus & Gentiloni Silveri 2023, arXiv 2308.12240)

    KL(μ | output) ≤ e^{−2T} KL(μ|γ) + (√S + √D)²,
    S = Σ_k h E‖s_θ − D log h_{kh}‖²_C(X_{kh}),    D = h I(μ|γ),
    I(μ|γ) = ∫ ‖D log dμ/dγ‖²_C dμ.

The bound follows from Girsanov's theorem, from the logarithmic Sobolev inequality of γ, and from
dZ = Z ds + martingale for Z_s = D log h_{T−s}(Y_s) along the reversed process, which gives
E‖Z_s − Z_r‖² = I_s − (2e^{s−r} − 1) I_r ≤ I_s − I_r for r ≤ s, with I_s the Fisher information at
time T − s: summed over the steps it telescopes to h I(μ|γ) with the constant one.  With the exact
score the same identity gives the entropy of the whole path, of which the output is a function,

    KL(path) = KL(μ|γ) − (2e^h − 2 − h) Σ_{k=1}^N I(μ_{kh}|γ),

since ∫ I(μ_τ|γ) dτ = KL(μ|γ) − KL(μ_T|γ).  So KL(μ|output) ≤ KL(path) ≤ bound.
"""

from spherediff.bounds.estimate import (
    Estimate,
    fisher_information,
    log_derivative,
    path_entropy,
    relative_entropy,
    score_error,
)
from spherediff.bounds.gaussian import GaussianTarget
from spherediff.bounds.output import FrozenScore, one_mode_entropy, output_entropy, output_law
from spherediff.bounds.terms import EntropicBound, Plan, entropic_bound, plan

__all__ = [
    "EntropicBound",
    "Estimate",
    "FrozenScore",
    "GaussianTarget",
    "Plan",
    "entropic_bound",
    "fisher_information",
    "log_derivative",
    "one_mode_entropy",
    "output_entropy",
    "output_law",
    "path_entropy",
    "plan",
    "relative_entropy",
    "score_error",
]
