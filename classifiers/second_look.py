"""A second look within a recording: a candidate that recurs with one field and one course is likelier a spike.

A patient's spikes come from few foci, so they look alike. A companion counts by its own probability. The beats of a
heart recur too, and the luckiest of many is probable: therefore the mean over those most alike counts beside the best.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from classifiers.features import N_COURSE
from evaluation.operating_point import calibrate, fit_calibration

_APART = 2.5  # sub-windows: one spike reaches into two, and its slow wave into the next
_N_ALIKE = 10
_ROWS_AT_A_TIME = 500  # whose likeness to a whole recording is held at a time
_PENALTY = 1.0  # on squared weights of features of variance 1: only seen where validation has few spikes


class Recordings(NamedTuple):
    """What the second look knows of sub-windows, beside their scores.

    Attributes
    ----------
    fingerprints : float32 array (n, n_components + N_COURSE)
        See `features.fingerprints`.
    blocks : array (n,)
        What tells the recordings apart.
    timing : array (n,)
        Centres of the sub-windows, in sub-windows from the start of their block.
    reference : bool array (n,)
        The sub-windows that may be companions of others: one of those that show the same signal.
    """

    fingerprints: np.ndarray
    blocks: np.ndarray
    timing: np.ndarray
    reference: np.ndarray


def fit_second_look(scores: np.ndarray, recordings: Recordings, labels: np.ndarray) -> dict:
    """Fit on validation how much companions count beside a sub-window's own score.

    A logistic regression on the log odds of the calibrated score and on `companions`. No weight may be negative: a
    companion never speaks against a candidate, and a higher score never either.

    Parameters
    ----------
    scores, labels : arrays (n,)
        The classifier's output, and whether a spike is annotated.

    Returns
    -------
    dict
        Plain numbers, for `second_look`.
    """
    calibration = fit_calibration('temperature', scores, labels)
    inputs = _inputs(calibrate(calibration, scores), recordings)
    mean, std = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
    scaled = np.column_stack([(inputs - mean) / std, np.ones(len(inputs))])

    def loss(weights):
        log_odds, penalised = scaled @ weights, np.append(weights[:-1], 0)
        value = np.logaddexp(0, log_odds).sum() - log_odds[labels > 0].sum() + _PENALTY / 2 * penalised @ penalised
        return value, scaled.T @ (expit(log_odds) - labels) + _PENALTY * penalised

    start = np.array([1.0, 0.0, 0.0, logit(labels.mean())])
    bounds = [(1e-6, None), (0, None), (0, None), (None, None)]
    weights = minimize(loss, start, jac=True, bounds=bounds, method='L-BFGS-B').x
    of_inputs = weights[:-1] / std
    return {
        'calibration': calibration,
        'weights': of_inputs.tolist(),
        'offset': float(weights[-1] - of_inputs @ mean),
    }


def second_look(look: dict, scores: np.ndarray, recordings: Recordings) -> np.ndarray:
    """Probabilities (n,), float64, of scores (n,) by what `fit_second_look` found."""
    inputs = _inputs(calibrate(look['calibration'], scores), recordings)
    return expit(inputs @ look['weights'] + look['offset'])


def _inputs(proba, recordings):
    """Log odds of a sub-window, and its companions (n, 3)."""
    log_odds = logit(np.clip(proba, 1e-6, 1 - 1e-6))
    return np.column_stack([log_odds, companions(proba, recordings)])


def companions(proba: np.ndarray, recordings: Recordings) -> np.ndarray:
    """How probable and how alike the companions of every sub-window in its recording are.

    Likeness is that of the fields times that of the courses; each is the cosine, or 0 where it is negative.

    Returns
    -------
    float64 array (n, 2)
        Both between 0 (nothing is alike, or probable) and 1: the largest product of likeness and probability; the mean
        product of the ten that are most alike.
    """
    features = np.zeros((len(proba), 2))
    field, course = np.split(recordings.fingerprints, [-N_COURSE], axis=1)
    for block in np.unique(recordings.blocks):
        rows = np.flatnonzero(recordings.blocks == block)
        others = rows[recordings.reference[rows]]
        n_alike = min(_N_ALIKE, len(others))
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            these = rows[start : start + _ROWS_AT_A_TIME]
            alike = (field[these] @ field[others].T).clip(0) * (course[these] @ course[others].T).clip(0)
            alike[np.abs(recordings.timing[these, None] - recordings.timing[others]) < _APART] = 0
            products = alike * proba[others]
            most_alike = np.argpartition(alike, len(others) - n_alike, axis=1)[:, len(others) - n_alike :]
            of_most_alike = np.take_along_axis(products, most_alike, axis=1)
            features[these] = np.column_stack([products.max(axis=1), of_most_alike.sum(axis=1) / _N_ALIKE])
    return features
