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
    precision_recall, roc = weighted_areas(predictions, patients['subject'].to_numpy(), weights)
    with np.errstate(invalid='ignore', divide='ignore'):
        values = {
            'PR-AUC': precision_recall,
            'ROC-AUC': roc,
            'f1-score': np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan),
            'sensitivity': tp / (tp + fn),
            'specificity': tn / (tn + fp),
            **event_shares(totals),
        }
    return pd.DataFrame(values)


def weighted_areas(
    predictions: pd.DataFrame, subjects: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """PR-AUC and ROC-AUC of resampled patients, by scikit-learn's definitions; NaN without spikes or without others.

    Both areas are sums over the spike sub-windows. So counts are needed at the probabilities of these alone, once for
    every patient; a draw is their product with the weights.

    Parameters
    ----------
    predictions : DataFrame
        subject, test, proba.
    subjects : array (n_patients,)
        In order.
    weights : int array (n_draws, n_patients)

    Returns
    -------
    two arrays (n_draws,)
    """
    proba, is_spike = predictions['proba'].to_numpy(), predictions['test'].to_numpy() == 1
    patient = np.searchsorted(subjects, predictions['subject'].to_numpy())
    values = np.unique(proba[is_spike])

    def counts(of, side):
        """Rows by the number of values below their probability, or up to it, and by patient."""
        table = np.zeros((len(values) + 1, len(subjects)))
        np.add.at(table, (np.searchsorted(values, proba[of], side=side), patient[of]), 1)
        return table

    spikes = counts(is_spike, 'left')[:-1]  # with a probability of exactly each value
    below_or_equal, below = (counts(~is_spike, side).cumsum(axis=0) for side in ('left', 'right'))
    areas = [_areas(spikes @ draws, below_or_equal @ draws, below @ draws)
             for draws in np.array_split(weights.T, max(1, len(weights) // 50), axis=1)]  # fmt: skip
    precision_recall, roc = zip(*areas, strict=True)
    return np.concatenate(precision_recall), np.concatenate(roc)


def _areas(spikes, below_or_equal, below):
    """Areas of draws: spikes (n_values, n_draws) of each probability, others (n_values + 1, n_draws) up to it, below.

    The last row of the others counts them all.
    """
    n_spikes, n_others = spikes.sum(axis=0), below[-1]
    hits = spikes[::-1].cumsum(axis=0)[::-1]
    alarms = n_others - below[:-1]
    with np.errstate(invalid='ignore', divide='ignore'):
        precision = np.where(hits > 0, hits / (hits + alarms), 0)
        precision_recall = np.where(n_others > 0, (spikes * precision).sum(axis=0) / n_spikes, np.nan)
        roc = (spikes * (below[:-1] + below_or_equal[:-1])).sum(axis=0) / (2 * n_spikes * n_others)
    return precision_recall, roc


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
    runs = []
    for predictions, patients in (a, b):
        predictions = predictions[predictions['subject'].isin(common)].reset_index(drop=True)
        patients = patients[patients['subject'].isin(common)].sort_values('subject', ignore_index=True)
        runs.append((predictions, patients))
    names = ['subject', 'block', 'timing', 'test']
    if not runs[0][0][names].equals(runs[1][0][names]):
        raise DataError('the two runs tested other sub-windows, or other labels, of their common patients')
    if not runs[0][1]['spikes'].equals(runs[1][1]['spikes']):
        raise DataError('the two runs counted other spikes in their common patients: compare runs of one pulse_width')
    unweighted = np.ones((1, len(common)), dtype=int)
    pooled = [bootstrap(*run, unweighted).iloc[0] for run in runs]
    weights = draw_patients(len(common), n_draws, seed)
    draws = bootstrap(*runs[1], weights) - bootstrap(*runs[0], weights)
    table = pd.DataFrame({'A': pooled[0], 'B': pooled[1], 'difference': pooled[1] - pooled[0]})
    interval = draws.quantile([0.025, 0.975]) if len(common) > 1 else draws.quantile([0.025, 0.975]) * np.nan
    table['low'], table['high'] = interval.iloc[0], interval.iloc[1]
    return table.rename_axis('figure')
