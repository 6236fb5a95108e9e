"""Pseudo-labels: what a network can learn of spikes from windows without annotations.

The score of `threshold` needs none. Its highest values are spikes more often than not, above all where they recur in
their recording. A network that has learnt to give them finds what they have in common.
"""

import numpy as np
from scipy.special import expit, logit

from classifiers.second_look import Recordings, companions

_SHARE = 0.015  # of sub-windows that are taken for spikes: half of those that hold a part of one where spikes are many
_DOUBTFUL = 0.05  # share of sub-windows that get more than next to nothing
# Of the log odds of a sub-window and of its companions: about what `fit_second_look` found on simulated patients.
_WEIGHTS = np.array([0.65, 2.0, 4.0])
_STEEPNESS = 1.5


def pseudo_labels(scores: np.ndarray, recordings: Recordings) -> np.ndarray:
    """How likely sub-windows hold a spike, by a score alone.

    Parameters
    ----------
    scores : array (n,)
        Such as `duration_score` over the median of its block.
    recordings : Recordings
        What tells which of them recur.

    Returns
    -------
    float64 array (n,)
        Between 0 and 1; above one half for a share of `_SHARE`.
    """
    doubtful, likely = np.quantile(scores, [1 - _DOUBTFUL, 1 - _SHARE])
    proba = expit(3 * (scores - likely) / max(likely - doubtful, 1e-9))
    inputs = np.column_stack([logit(proba.clip(1e-6, 1 - 1e-6)), companions(proba, recordings)])
    log_odds = inputs @ _WEIGHTS
    return expit(_STEEPNESS * (log_odds - np.quantile(log_odds, 1 - _SHARE)))
