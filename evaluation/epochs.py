"""Figures of a classifier's validation at the end of an epoch."""

import numpy as np
from sklearn.metrics import average_precision_score

from evaluation.metrics import batchwise, ratio
from evaluation.operating_point import best_f1_threshold

EPOCH_METRICS = (
    'PR-AUC',
    'recall at 0.5',
    'precision at 0.5',
    'F1 at 0.5',
    'threshold',
    'recall',
    'precision',
    'F1',
    'recall_m',
    'precision_m',
    'f1_m',
)


def epoch_metrics(test: np.ndarray, proba: np.ndarray, batch_size: int, history: list[dict]) -> dict[str, float]:
    """Figures of the sub-windows of a validation.

    Parameters
    ----------
    test, proba : arrays (n,)
        Labels, of both kinds, and scores of the network, not calibrated.
    batch_size : int
        Of the group's recall_m, precision_m and f1_m, on rounded scores.
    history : list of dict
        The figures of earlier epochs.

    Returns
    -------
    dict
        `EPOCH_METRICS`. `threshold` is the best so far: that of the highest F1 of any threshold in any epoch up to this
        one; recall, precision and F1 are this epoch's at it.
    """
    at_half = _shares(test, proba >= 0.5)
    threshold = best_f1_threshold(test, proba)
    shares = _shares(test, proba >= threshold)
    best = max(history, key=lambda of_epoch: of_epoch['F1'], default=None)
    if best and best['F1'] >= shares['F1']:
        threshold = best['threshold']
        shares = _shares(test, proba >= threshold)
    return {
        'PR-AUC': float(average_precision_score(test, proba)),
        **{f'{name} at 0.5': share for name, share in at_half.items()},
        'threshold': threshold,
        **shares,
        **batchwise(test, np.round(proba), batch_size),
    }


def _shares(test, called):
    n_spikes, n_called, hits = (int(np.count_nonzero(rows)) for rows in (test, called, called & (test > 0)))
    return {
        'recall': ratio(hits, n_spikes),
        'precision': ratio(hits, n_called),
        'F1': ratio(2 * hits, n_spikes + n_called),
    }
