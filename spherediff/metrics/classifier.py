"""Can a classifier tell the sets apart?  The two-sample test of Lopez-Paz & Oquab (2017).

A logistic regression with weight decay on standardised features learns on four fifths of the maps
to tell P from Q and scores the last fifth, so that every map has a score from a classifier which
did not know it.  Blocks of successive maps stay in one fold.  With scores s,

    AUC = Pr(s(X) > s(Y)) + Pr(s(X) = s(Y))/2    for X ~ P and Y ~ Q of the same fold:

0.5 if the sets are alike, 1 if every map can be told.  By chance it may be below 0.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spherediff.metrics.features import Features, JointFeatures
from spherediff.metrics.resampling import BLOCK, Members

Array = NDArray[np.float64]

_FOLDS = 5
_INVERSE_DECAY = 0.01
_SMALLEST = 1e-12
_REGIONAL = np.array([0.05, 0.5, 0.95])
_GRADIENT = np.array([0.1, 0.5, 0.9, 0.99])


def of_coefficients(features: Features | JointFeatures) -> Array:
    """Logarithm of the power of each degree, principal components and their squares."""
    power = [_log(one.power[:, 1:] / one.power[one.sets.real].mean()) for one in features.channels]
    scores = features.scores
    return np.concatenate([*power, scores, np.square(scores)], axis=1)


def of_maps(features: Features | JointFeatures) -> Array:
    """Quantiles by region and of gradients, log-variance and shape of bands, extremes."""
    return np.concatenate([x for one in features.channels for x in of_map(one).values()], axis=1)


def of_map(one: Features) -> dict[str, Array]:
    """The kinds of features of one field, each of shape (maps, features)."""
    first, second, third, fourth = one.bands
    variance = np.maximum(second - np.square(first), _SMALLEST)
    quantiles = one.regional.map_quantiles(_REGIONAL)
    slopes = one.gradient.map_quantiles(_GRADIENT)
    return {
        "quantiles by region": quantiles.reshape(one.sets.total, -1),
        "quantiles of the gradient": slopes.reshape(one.sets.total, -1),
        "log-variance of bands": _log(variance),
        "skewness of bands": third / variance**1.5,
        "kurtosis of bands": fourth / np.square(variance),
        "mean and extremes": one.extremes,
    }


def _log(x: Array) -> Array:
    return np.log(np.maximum(x, _SMALLEST))


def wins(x: Array, first: Members, second: Members) -> tuple[Array, Array]:
    """Which map of the first set outscores which of the second, among those of one fold.

    Args:
        x: features, shape (maps, features).
        first: the maps of P, successive ones side by side.
        second: the maps of Q.

    Returns:
        [s(x_i) > s(y_j)] + [s(x_i) = s(y_j)]/2 and 1 where both are in one fold, else 0; both of
        shape (first, second).
    """
    folds = [np.arange(len(members)) // BLOCK % _FOLDS for members in (first, second)]
    fold = np.concatenate(folds)
    features = np.concatenate([x[first], x[second]])
    label = np.arange(len(fold)) < len(first)
    score = np.empty(len(fold))
    for k in range(min(_FOLDS, int(fold.max()) + 1)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_INVERSE_DECAY, max_iter=1000))
        model.fit(features[fold != k], label[fold != k])
        score[fold == k] = model.decision_function(features[fold == k])
    one, other = score[label][:, None], score[~label]
    together = (folds[0][:, None] == folds[1]).astype(np.float64)
    return together * ((one > other) + 0.5 * (one == other)), together


def area_under_curve(won: Array, together: Array, p: Array, q: Array) -> Array:
    """AUC from :func:`wins`; weights of shape (pairs, first) and (pairs, second) → (pairs,).

    Without any two maps of one fold, as small resamples may have, nothing is told: 0.5.
    """
    total = ((p @ together) * q).sum(axis=1)
    half = np.full(len(p), 0.5)
    return np.divide(((p @ won) * q).sum(axis=1), total, out=half, where=total > 0)
