"""From scores to decisions: calibration of probabilities, and the threshold."""

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve

# ---------------------------------------------------------------------------- calibration, threshold
# Of the probability's log odds on the score's: above 0, so that calibration never turns the order of the scores round.
_LEAST_SLOPE = 1e-6


def fit_calibration(method: str, proba: np.ndarray, test: np.ndarray) -> dict:
    """Fit on validation what turns the classifier's scores into probabilities.

    Parameters
    ----------
    method : str
        'temperature': logit / temperature + offset, by logistic regression (Guo et al., ICML 2017; the offset takes
        back the weight of the spikes in the loss, as in Platt scaling). The order of the scores is kept. 'isotonic':
        the best rising steps.
    proba, test : arrays (n,)
        Scores between 0 and 1, and labels.

    Returns
    -------
    dict
        Plain numbers, for `calibrate`.
    """
    if method == 'isotonic':
        steps = IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip').fit(proba, test)
        return {'method': method, 'x': steps.X_thresholds_.tolist(), 'y': steps.y_thresholds_.tolist()}
    # The penalty is too weak to be seen, and keeps a perfectly separated validation set from an infinite slope.
    model = LogisticRegression(C=1e6, solver='newton-cholesky', tol=1e-10).fit(_logit(proba)[:, None], test)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope < _LEAST_SLOPE:  # the order of the scores is of no use: the share of spikes for all, in that order
        slope, offset = _LEAST_SLOPE, float(logit(np.mean(test)))
    return {'method': method, 'temperature': 1 / slope, 'offset': offset}


def calibrate(calibration: dict, proba: np.ndarray) -> np.ndarray:
    """Probabilities (n,) of scores (n,) by what `fit_calibration` found."""
    if calibration['method'] == 'isotonic':
        return np.interp(proba, calibration['x'], calibration['y'])
    return expit(_logit(proba) / calibration['temperature'] + calibration['offset'])


def _logit(proba):
    return logit(np.clip(np.asarray(proba, dtype=np.float64), 1e-12, 1 - 1e-12))


def best_f1_threshold(test: np.ndarray, proba: np.ndarray) -> float:
    """The probability from which on calling a spike gives the best F1 (the lowest such, to call no fewer).

    Halfway to the next lower probability, so that the last digits of a probability decide nothing.
    """
    precision, recall, thresholds = precision_recall_curve(test, proba)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = thresholds[np.argmax(f1[:-1])]  # the last point of the curve has no threshold
    lower = proba[proba < best]
    return float((best + lower.max()) / 2 if len(lower) else best)


def threshold_from_curve(
    curve: pd.DataFrame, policy: str, *, target_sensitivity: float, false_alarm_budget: float
) -> tuple[float, str, str]:
    """Threshold by what it does to events.

    Parameters
    ----------
    curve : DataFrame
        threshold, sensitivity and 'false alarms/min' on validation, from the highest threshold down.
    policy : str
        'sensitivity': the highest threshold that reaches `target_sensitivity` (the lowest of the curve where none
        does). 'false_alarms': the lowest that no more than `false_alarm_budget` false alarms per minute come with, at
        it and at every higher one (far below it, events grow together and false alarms seem to fall).

    Returns
    -------
    threshold : float
    target, reached : str
        What is aimed at, and what the threshold does on validation.
    """
    if policy == 'sensitivity':
        reached = curve['sensitivity'] >= target_sensitivity
        row = reached.idxmax() if reached.any() else curve.index[-1]
    else:
        over = curve['false alarms/min'] > false_alarm_budget
        row = over.idxmax() - 1 if over.any() else curve.index[-1]
    target = {
        'sensitivity': f'event sensitivity of at least {target_sensitivity:g}',
        'false_alarms': f'at most {false_alarm_budget:g} false alarms per minute',
    }[policy]
    threshold, sensitivity, alarms = curve.loc[row, ['threshold', 'sensitivity', 'false alarms/min']]
    return float(threshold), target, f'event sensitivity {sensitivity:.2f} at {alarms:.2f} false alarms per minute'
