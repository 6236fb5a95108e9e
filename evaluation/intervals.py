"""Metrics per patient and pooled, with bootstrap intervals over patients; two runs compared."""

import functools

import numpy as np
import pandas as pd

from evaluation.events import event_shares, match_events, merge_events, sensitivity_curve
from evaluation.metrics import MAIN_METRICS, subwindow_metrics
from utils import DataError

_COUNTS = ['tn', 'fp', 'fn', 'tp', 'spikes', 'events', 'hits', 'minutes']


# -------------------------------------------------------------------- patients, intervals, two runs
class Evaluation:
    """Everything that is said of a table of predictions.

    Parameters
    ----------
    predictions : DataFrame
        In recording order, see `with_predictions` and `merge_events`.
    spikes : DataFrame
        The annotated spikes: subject, block, sample.
    subwindow_length : int
        Length of a sub-window, in samples at `sfreq` Hz.
    tolerance : float
        Greatest distance of a detection from its spike, in s.
    batch_size : int
        See `figures`.

    Attributes
    ----------
    events, spikes : DataFrames
        With `hit`, see `match_events`.
    patients : DataFrame
        One row per patient: subject, the counts, and every figure.
    result : dict
        The figures of all patients pooled.
    """

    def __init__(self, predictions, spikes, *, subwindow_length, tolerance, sfreq, batch_size):
        self.predictions = predictions
        self.sfreq, self.subwindow_length, self.tolerance = sfreq, subwindow_length, tolerance
        self.events, self.spikes = match_events(merge_events(predictions, subwindow_length), spikes, tolerance * sfreq)
        rows = []
        for subject, of_patient in predictions.groupby('subject'):
            events, spikes = (t[t['subject'] == subject] for t in (self.events, self.spikes))
            counts = {
                'spikes': len(spikes),
                'events': len(events),
                'hits': int(events['hit'].sum()),
                'minutes': len(of_patient) * subwindow_length / sfreq / 60,
                'blocks': of_patient['block'].nunique(),
            }
            rows.append(
                {
                    'subject': subject,
                    **subwindow_metrics(of_patient, batch_size),
                    **counts,
                    **_plain(event_shares(counts)),
                }
            )
        self.patients = pd.DataFrame(rows)
        self.result = subwindow_metrics(predictions, batch_size)
        totals = self.patients[['spikes', 'events', 'hits', 'minutes', 'blocks']].sum()
        errors = 1000 * self.events['error'].dropna() / sfreq
        low, middle, high = errors.quantile([0.25, 0.5, 0.75])
        self.result |= {
            **{name: int(totals[name]) for name in ('spikes', 'events', 'hits', 'blocks')},
            'minutes': float(totals['minutes']),
            **_plain(event_shares(totals)),
            'timing error median (ms)': float(middle),
            'timing error interquartile range (ms)': float(high - low),
        }

    @functools.cached_property
    def curve(self) -> pd.DataFrame:
        """See `sensitivity_curve`."""
        within = self.tolerance * self.sfreq
        return sensitivity_curve(self.predictions, self.spikes, self.subwindow_length, within, self.sfreq)

    def means(self) -> dict:
        """Mean of every main figure over the patients for whom it is defined."""
        return {name: float(self.patients[name].mean()) for name in MAIN_METRICS}


def _plain(shares):
    return {name: float(value) for name, value in shares.items()}


def bootstrap(predictions: pd.DataFrame, patients: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """The main figures of resampled patients.

    Parameters
    ----------
    predictions : DataFrame
        subject, test, proba.
    patients : DataFrame
        One row per subject in order, with the counts of `Evaluation.patients`.
    weights : int array (n_draws, n_patients)
        How often each patient was drawn.

    Returns
    -------
    DataFrame
        One row per draw.
    """
    matrices = np.array(patients['confusion matrix'].tolist()).reshape(-1, 4)
    counts = np.column_stack([matrices, patients[_COUNTS[4:]].to_numpy()])
    totals = dict(zip(_COUNTS, (weights @ counts).T, strict=True))
    tn, fp, fn, tp = (totals[name] for name in _COUNTS[:4])
    ranked = predictions.sort_values('proba', ascending=False, kind='stable')
    proba, test = ranked['proba'].to_numpy(), ranked['test'].to_numpy()
    patient = np.searchsorted(patients['subject'].to_numpy(), ranked['subject'].to_numpy())
    areas = [_areas(proba, test, draw[patient]) for draw in weights]
    with np.errstate(invalid='ignore', divide='ignore'):
        values = {
            'PR-AUC': [area[0] for area in areas],
            'ROC-AUC': [area[1] for area in areas],
            'f1-score': np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            'sensitivity': tp / (tp + fn),
            'specificity': tn / (tn + fp),
            **event_shares(totals),
        }
    return pd.DataFrame(values)


def _areas(proba, test, weight):
    """PR-AUC and ROC-AUC of rows from the highest probability down, each counted `weight` times.

    The definitions are scikit-learn's.
    """
    last_of_value = np.append(np.diff(proba) != 0, True)
    tp, fp = (np.cumsum(weight * is_it)[last_of_value] for is_it in (test, 1 - test))
    if tp[-1] == 0 or fp[-1] == 0:
        return np.nan, np.nan
    called = tp + fp
    precision = np.divide(tp, called, out=np.zeros(len(tp)), where=called > 0)
    recall, false_rate = np.append(0, tp / tp[-1]), np.append(0, fp / fp[-1])
    return np.sum(np.diff(recall) * precision), np.trapezoid(recall, false_rate)


def draw_patients(n_patients: int, n_draws: int, seed: int) -> np.ndarray:
    """How often each patient comes up in samples of as many patients with replacement (n_draws, n_patients)."""
    return np.random.default_rng(seed).multinomial(n_patients, np.full(n_patients, 1 / n_patients), n_draws)


def intervals(evaluation: Evaluation, n_draws: int, seed: int) -> dict[str, list[float]]:
    """95 % bootstrap interval over patients of every main figure; NaN with fewer than two patients.

    Draws in which a figure is undefined are left out of its interval.
    """
    n_patients = len(evaluation.patients)
    if n_patients < 2:
        return {name: [np.nan, np.nan] for name in MAIN_METRICS}
    draws = bootstrap(evaluation.predictions, evaluation.patients, draw_patients(n_patients, n_draws, seed))
    return {name: draws[name].quantile([0.025, 0.975]).tolist() for name in MAIN_METRICS}


def compare(a: tuple, b: tuple, n_draws: int, seed: int) -> pd.DataFrame:
    """Paired difference of two runs on the patients that both tested, with a bootstrap interval over them.

    Parameters
    ----------
    a, b : tuples
        (predictions, patients) of each run, see `bootstrap`.

    Returns
    -------
    DataFrame
        One row per main figure: A, B, difference (B - A), low and high (95 %).

    Raises
    ------
    DataError
        No patient in common, or their sub-windows or labels differ.
    """
    common = sorted(set(a[1]['subject']) & set(b[1]['subject']))
    if not common:
        raise DataError('the two runs have no test patient in common: nothing can be compared')
    kept = []
    for predictions, patients in (a, b):
        predictions = predictions[predictions['subject'].isin(common)].reset_index(drop=True)
        patients = patients[patients['subject'].isin(common)].sort_values('subject', ignore_index=True)
        kept.append((predictions, patients))
    names = ['subject', 'block', 'timing', 'test']
    if not kept[0][0][names].equals(kept[1][0][names]):
        raise DataError('the two runs tested other sub-windows, or other labels, of their common patients')
    if not kept[0][1]['spikes'].equals(kept[1][1]['spikes']):
        raise DataError('the two runs counted other spikes in their common patients: compare runs of one pulse_width')
    once = np.ones((1, len(common)), dtype=int)
    pooled = [bootstrap(*one, once).iloc[0] for one in kept]
    weights = draw_patients(len(common), n_draws, seed)
    draws = bootstrap(*kept[1], weights) - bootstrap(*kept[0], weights)
    table = pd.DataFrame({'A': pooled[0], 'B': pooled[1], 'difference': pooled[1] - pooled[0]})
    interval = draws.quantile([0.025, 0.975]) if len(common) > 1 else draws.quantile([0.025, 0.975]) * np.nan
    table['low'], table['high'] = interval.iloc[0], interval.iloc[1]
    return table.rename_axis('figure')
