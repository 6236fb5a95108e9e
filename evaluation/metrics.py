"""Metrics of sub-windows: areas, shares, calibration."""

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

PREDICTION_COLUMNS = ['subject', 'block', 'timing', 'true', 'test', 'pred', 'proba']
# What intervals are given for, summary.csv holds and two runs are compared by.
MAIN_METRICS = [
    'PR-AUC',
    'ROC-AUC',
    'f1-score',
    'sensitivity',
    'specificity',
    'event sensitivity',
    'event precision',
    'event F1',
    'false alarms/min',
]


def with_predictions(table: pd.DataFrame, proba: np.ndarray, threshold: float) -> pd.DataFrame:
    """Add predictions to a table of sub-windows.

    Parameters
    ----------
    table : DataFrame
        subject, block, timing and test (the label) of every sub-window.
    proba : array (n,)
    threshold : float

    Returns
    -------
    DataFrame
        In recording order, with `proba`, `pred` (1 from the threshold on) and `true` (1 where pred is the label).
    """
    predictions = table.assign(proba=proba, pred=(proba >= threshold).astype(np.int64))
    predictions['true'] = (predictions['pred'] == predictions['test']).astype(np.int64)
    return predictions.sort_values(['subject', 'block', 'timing'], ignore_index=True)


# -------------------------------------------------------------------------------------- sub-windows
def subwindow_metrics(predictions: pd.DataFrame, batch_size: int) -> dict:
    """Figures of a table of sub-windows; what is undefined, for want of spikes or of anything else, is NaN.

    Without spikes, sensitivity, precision and F1 are NaN: they could only be 0, however few the false alarms.

    Parameters
    ----------
    predictions : DataFrame
        With the columns test, pred and proba.
    batch_size : int
        Rows per batch of the original's recall_m, precision_m and f1_m, which are means over batches.
    """
    test, pred, proba = (predictions[name].to_numpy() for name in ('test', 'pred', 'proba'))
    (tn, fp), (fn, tp) = confusion_matrix(test, pred, labels=[0, 1])
    both = 0 < test.sum() < len(test)
    return {
        **_shares(tn, fp, fn, tp),
        'ROC-AUC': float(roc_auc_score(test, proba)) if both else np.nan,
        'PR-AUC': float(average_precision_score(test, proba)) if both else np.nan,
        'PR-AUC of chance': ratio(test.sum(), len(test)),
        'Brier score': float(brier_score_loss(test, proba)) if len(test) else np.nan,
        'calibration error': calibration_error(test, proba),
        **batchwise(test, pred, batch_size),
        'sub-windows': len(test),
        'spike sub-windows': int(test.sum()),
    }


def _shares(tn, fp, fn, tp):
    return {
        'accuracy': ratio(tp + tn, tn + fp + fn + tp),
        'f1-score': ratio(2 * tp, 2 * tp + fp + fn) if tp + fn else np.nan,
        'specificity': ratio(tn, tn + fp),
        'sensitivity': ratio(tp, tp + fn),
        'confusion matrix': [[int(tn), int(fp)], [int(fn), int(tp)]],
        'precision': ratio(tp, tp + fp) if tp + fn else np.nan,
    }


def ratio(part: float, whole: float) -> float:
    """Part of a whole; NaN where there is no whole."""
    return float(part / whole) if whole else np.nan


def batchwise(test: np.ndarray, pred: np.ndarray, batch_size: int, epsilon: float = 1e-7) -> dict:
    """The original's recall_m, precision_m and f1_m: of each batch, with an epsilon below, averaged over the batches.

    They count a batch without spikes as 0; the other figures do not. `pred` stands for its rounded probabilities.
    """
    rows = []
    for first in range(0, len(test), batch_size):
        labels, calls = test[first : first + batch_size], pred[first : first + batch_size]
        hits = (labels * calls).sum()
        recall, precision = hits / (labels.sum() + epsilon), hits / (calls.sum() + epsilon)
        rows.append((recall, precision, 2 * precision * recall / (precision + recall + epsilon)))
    means = np.mean(rows, axis=0) if rows else [np.nan] * 3
    return dict(zip(('recall_m', 'precision_m', 'f1_m'), map(float, means), strict=True))


def calibration_bins(test: np.ndarray, proba: np.ndarray) -> pd.DataFrame:
    """Sub-windows, mean probability and share of spikes, in up to ten bins between the deciles of the probability.

    Equal probabilities stay together.
    """
    edges = np.unique(np.quantile(proba, np.arange(1, 10) / 10))
    bins = pd.DataFrame({'proba': proba, 'test': test}).groupby(np.searchsorted(edges, proba, side='right'))
    return pd.DataFrame(
        {
            'sub-windows': bins.size(),
            'mean probability': bins['proba'].mean(),
            'share of spikes': bins['test'].mean(),
        }
    ).reset_index(drop=True)


def calibration_error(test: np.ndarray, proba: np.ndarray) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015), with bins of about equal size.

    It is |mean probability - share of spikes| in the bins of `calibration_bins`, averaged over the sub-windows.
    """
    bins = calibration_bins(test, proba)
    gaps = (bins['mean probability'] - bins['share of spikes']).abs() * bins['sub-windows']
    return ratio(gaps.sum(), len(test))
