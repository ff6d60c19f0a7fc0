"""Training a denoiser: least squares on the conditional expectation, in units of what is unknown.

E‖m_θ(X_t, t) − X_0‖² is minimised by the conditional expectation m in every norm, coefficient by
coefficient; the norm only says which errors a finite network should spend itself on.  With the
preconditioning m = w + √p ⊙ F of :class:`~spherediff.denoise.NeuralDenoiser` the loss is

    L(θ) = E_t E ‖F_θ − (X_0 − w)/√p‖²/n,      log(σ_t/α_t) ~ N(P_mean, P_std²),

the mean over coefficients of the squared error divided by p_i, the error variance of the best
linear denoiser.  This is EDM's unit-weight loss (Karras et al. 2022, arXiv 2206.00364, §5) carried
to a Hilbert space: at every noise level and every degree an untrained network (F = 0, the Gaussian
emulator) scores 1.  The Kullback–Leibler integrand ‖s_θ − D log h_t‖²_C of the entropic bound is
the same sum of squares with the further weights α²p_iC_ℓ/σ_i⁴, which grow without bound as σ → 0;
unit weights and a log-normal law of the noise level spend the network's effort where there is
something left to learn, in the middle, as EDM does.

Labels, on which the law of a field may depend, are withheld from a random share of the fields, so
that the network also learns the law without them (Ho & Salimans 2022, arXiv 2207.12598).

Held-out fields are judged by the same error at fixed noise levels and with fixed noise, as a
fraction of the error of F = 0: 1 is the Gaussian emulator, less is better.

A reference with many parameters, such as the directions of the leading correlations, fits the
fields it was estimated from better than others: in these directions they vary more, in all others
less, and a network would learn to undo what is not there in new fields.  So each part of the
archive is learnt under a reference estimated from the other parts (cross-fitting); what is learnt,
F as a function of standardised fields, then serves under the reference of the whole archive.

Randomness comes from one explicit generator whose state is part of a checkpoint, so on the CPU
(with the same machine, versions and number of threads) a run that was killed and resumed gives the
same bits as one that was not.
"""

from spherediff.train.batches import fold
from spherediff.train.checkpoint import CHECKPOINT, require_same_settings
from spherediff.train.config import TrainConfig, TrainResult, ema_decay, learning_rate
from spherediff.train.loop import train
from spherediff.train.objective import (
    Fields,
    conditioned,
    held_out_loss,
    residual_error,
    residual_target,
)
from spherediff.train.record import METRICS, RUN

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "RUN",
    "Fields",
    "TrainConfig",
    "TrainResult",
    "conditioned",
    "ema_decay",
    "fold",
    "held_out_loss",
    "learning_rate",
    "require_same_settings",
    "residual_error",
    "residual_target",
    "train",
]
