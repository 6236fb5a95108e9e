"""How good is it? Figures of sub-windows and of events, per patient and pooled, with intervals; two runs compared."""

import functools

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

from utils import DataError, SettingError

PREDICTION_COLUMNS = ['subject', 'block', 'timing', 'true', 'test', 'pred', 'proba']
# What intervals are given for, summary.csv holds and two runs are compared by.
MAIN_FIGURES = [
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
_COUNTS = ['tn', 'fp', 'fn', 'tp', 'spikes', 'events', 'hits', 'minutes']


def with_predictions(table: pd.DataFrame, proba: np.ndarray, threshold: float) -> pd.DataFrame:
    """Add the columns `proba`, `pred` (1 from the threshold on) and `true` (1 where pred is the label `test`) to a
    table of sub-windows, in recording order."""
    predictions = table.assign(proba=proba, pred=(proba >= threshold).astype(np.int64))
    predictions['true'] = (predictions['pred'] == predictions['test']).astype(np.int64)
    return predictions.sort_values(['subject', 'block', 'timing'], ignore_index=True)


# -------------------------------------------------------------------------------------- sub-windows
def figures(predictions: pd.DataFrame, batch_size: int) -> dict:
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
        'PR-AUC of chance': _ratio(test.sum(), len(test)),
        'Brier score': float(brier_score_loss(test, proba)) if len(test) else np.nan,
        'calibration error': calibration_error(test, proba),
        **batchwise(test, pred, batch_size),
        'sub-windows': len(test),
        'spike sub-windows': int(test.sum()),
    }


def _shares(tn, fp, fn, tp):
    return {
        'accuracy': _ratio(tp + tn, tn + fp + fn + tp),
        'f1-score': _ratio(2 * tp, 2 * tp + fp + fn) if tp + fn else np.nan,
        'specificity': _ratio(tn, tn + fp),
        'sensitivity': _ratio(tp, tp + fn),
        'confusion matrix': [[int(tn), int(fp)], [int(fn), int(tp)]],
        'precision': _ratio(tp, tp + fp) if tp + fn else np.nan,
    }


def _ratio(part, whole):
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
    """Sub-windows, their mean probability and their share of spikes, in (up to) ten bins between the deciles of the
    probability; equal probabilities stay together."""
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
    """Expected calibration error: |mean probability - share of spikes| in the bins of `calibration_bins`, averaged over
    the sub-windows (Naeini et al., AAAI 2015, with bins of about equal size)."""
    bins = calibration_bins(test, proba)
    gaps = (bins['mean probability'] - bins['share of spikes']).abs() * bins['sub-windows']
    return _ratio(gaps.sum(), len(test))


# ------------------------------------------------------------------------------------------- events
def spikes_of_pulses(marked: np.ndarray, half_pulse: int) -> np.ndarray:
    """Samples of the spikes whose pulses of 2 half_pulse + 1 samples mark a stretch of signal.

    Parameters
    ----------
    marked : bool array (n_samples,)

    Returns
    -------
    int array
        A stretch longer than one pulse holds several spikes, closer together than a pulse: the first and the last of
        them are where its ends say, and as few as can mark it are spread evenly between. A stretch cut off at the
        start or the end of the signal has its spike where its whole end says.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(np.int8), [0]])))
    width, spikes = 2 * half_pulse + 1, []
    for first, end in edges.reshape(-1, 2):
        n_spikes = -(-(end - first) // width)
        if n_spikes > 1:
            spikes += np.round(np.linspace(first + half_pulse, end - 1 - half_pulse, n_spikes)).astype(int).tolist()
        else:
            spikes.append(end - 1 - half_pulse if first == 0 else first + half_pulse)
    return np.asarray(spikes, dtype=np.int64)


def _shortest_pulse(labels_t):
    """Samples of the shortest mark that no window's edge cuts off; None where there is none."""
    changes = np.diff(labels_t.astype(np.int8), axis=1)
    rows, places = np.nonzero(changes)
    rises = changes[rows, places] == 1
    whole = rises[:-1] & ~rises[1:] & (rows[:-1] == rows[1:])
    return int(np.diff(places)[whole].min()) if whole.any() else None


def annotated_spikes(table: pd.DataFrame, labels_t: np.ndarray, subwindows: pd.DataFrame, half_pulse: int, n_sub_times):
    """Annotated spikes that mark at least one judged sub-window, from the windows' time labels.

    Parameters
    ----------
    table : DataFrame
        Id table of the windows.
    labels_t : uint8 array (n_windows, n_times)
    subwindows : DataFrame
        Their sub-windows, each of `n_sub_times` samples.

    Returns
    -------
    DataFrame
        subject, block, sample.

    Raises
    ------
    SettingError
        The marks are shorter or longer than `half_pulse` says: the windows were made with another pulse_width.
    """
    n_times = labels_t.shape[1]
    shortest = _shortest_pulse(labels_t)
    if shortest is not None and shortest != 2 * half_pulse + 1:
        raise SettingError(
            f'pulse_width: it makes marks of {2 * half_pulse + 1} samples, but those of the windows have {shortest}: '
            'set it to what the windows were made with'
        )
    judged = dict(list(subwindows.groupby(['subject', 'block'])['timing']))
    rows = []
    windows = table.assign(row=np.arange(len(table)))
    for (subject, block), group in windows.groupby(['subject', 'block']):
        starts = np.round(group['timing'].to_numpy() - n_times / 2).astype(int)
        marked = np.zeros(starts.max() + n_times, dtype=bool)
        for start, row in zip(starts, group['row'], strict=True):
            marked[start : start + n_times] |= labels_t[row].astype(bool)
        near = np.zeros(len(marked) + half_pulse, dtype=bool)
        for centre in judged[subject, block]:
            first = round(centre - n_sub_times / 2)
            near[max(first - half_pulse, 0) : first + n_sub_times + half_pulse] = True
        spikes = spikes_of_pulses(marked, half_pulse)
        rows += [(subject, block, sample) for sample in spikes if near[sample]]
    return pd.DataFrame(rows, columns=['subject', 'block', 'sample']).astype(np.int64)


def merge_events(predictions: pd.DataFrame, n_times: int) -> pd.DataFrame:
    """Merge neighbouring positive sub-windows (of `n_times` samples) to events.

    Parameters
    ----------
    predictions : DataFrame
        In recording order, with subject, block, timing, pred, proba, `field` (global field power at its peak in the
        sub-window) and `peak` (the peak's sample in the block). Field power is compared between the sub-windows of an
        event: where windows are scaled one by one, each in its own unit.

    Returns
    -------
    DataFrame
        subject, block, onset and end (samples, end excluded), sample (the highest field peak), proba (the highest).
    """
    positive = predictions[predictions['pred'] == 1]
    new = (positive[['subject', 'block']].diff() != 0).any(axis=1) | (positive['timing'].diff() > n_times + 0.5)
    groups = positive.groupby(new.cumsum().to_numpy(), sort=False)
    highest = positive.loc[groups['field'].idxmax()]
    return pd.DataFrame(
        {
            'subject': highest['subject'].to_numpy(),
            'block': highest['block'].to_numpy(),
            'onset': np.round(groups['timing'].min().to_numpy() - n_times / 2).astype(np.int64),
            'end': np.round(groups['timing'].max().to_numpy() + n_times / 2).astype(np.int64),
            'sample': highest['peak'].to_numpy().astype(np.int64),
            'proba': groups['proba'].max().to_numpy(),
        }
    )


def match(detected: np.ndarray, annotated: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Pair detections and annotations one to one within `tolerance`: as many pairs as can be, of least total distance.

    Parameters
    ----------
    detected, annotated : arrays of times
        In the unit of `tolerance`.

    Returns
    -------
    two int arrays
        Indices of the paired detections and of their annotations.
    """
    distance = np.abs(np.subtract.outer(np.asarray(detected, float), np.asarray(annotated, float)))
    # A forbidden pair costs more than all allowed ones together, so that none is taken where it can be avoided.
    forbidden = tolerance * (min(distance.shape) + 1) + 1
    rows, columns = linear_sum_assignment(np.where(distance <= tolerance, distance, forbidden))
    kept = distance[rows, columns] <= tolerance
    return rows[kept], columns[kept]


def match_events(events: pd.DataFrame, spikes: pd.DataFrame, tolerance: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Match the events of every block to its annotated spikes, see `match`; tolerance in samples.

    Returns
    -------
    events, spikes : DataFrames
        With the columns `hit` (1 where matched) and, for events, `error` (event minus spike in samples, else NaN).
    """
    events = events.reset_index(drop=True).assign(hit=0, error=np.nan)
    spikes = spikes.reset_index(drop=True).assign(hit=0)
    of_block = spikes.groupby(['subject', 'block']).indices
    for block, detected in events.groupby(['subject', 'block']).indices.items():
        annotated = of_block.get(block, np.zeros(0, dtype=int))
        times = events['sample'].to_numpy()[detected], spikes['sample'].to_numpy()[annotated]
        i, j = match(*times, tolerance)
        events.loc[detected[i], 'hit'] = spikes.loc[annotated[j], 'hit'] = 1
        events.loc[detected[i], 'error'] = (times[0][i] - times[1][j]).astype(float)
    return events, spikes


def event_shares(counts: pd.Series | dict) -> dict:
    """Figures of events from the counts `spikes`, `events`, `hits` and `minutes` (numbers or arrays of them).

    Without spikes, sensitivity, precision and F1 are NaN; without detections, precision is.
    """
    spikes, events, hits, minutes = (
        np.asarray(counts[name], float) for name in ('spikes', 'events', 'hits', 'minutes')
    )
    with np.errstate(invalid='ignore', divide='ignore'):
        return {
            'event sensitivity': np.where(spikes > 0, hits / spikes, np.nan),
            'event precision': np.where((spikes > 0) & (events > 0), hits / events, np.nan),
            'event F1': np.where(spikes > 0, 2 * hits / (spikes + events), np.nan),
            'false alarms/min': (events - hits) / minutes,
        }


def sensitivity_curve(
    predictions: pd.DataFrame, spikes: pd.DataFrame, n_times: int, tolerance: float, sfreq: float
) -> pd.DataFrame:
    """Event sensitivity against false alarms per minute, from a threshold that nothing reaches downwards.

    Parameters
    ----------
    predictions : DataFrame
        See `merge_events`; its `pred` is not used.
    spikes : DataFrame
        subject, block, sample.
    n_times, tolerance : numbers
        Length of a sub-window and greatest distance of a match, in samples at `sfreq` Hz.

    Returns
    -------
    DataFrame
        threshold, sensitivity, false alarms/min, at up to 100 thresholds spread over the distinct probabilities of
        the upper half of the sub-windows.
    """
    proba = predictions['proba'].to_numpy()
    levels = np.unique(proba[proba >= np.median(proba)])[::-1]
    # Close together at the top, where operating points lie.
    chosen = np.unique(np.round(np.geomspace(1, len(levels), 100)).astype(int)) - 1
    minutes, rows = len(predictions) * n_times / sfreq / 60, []
    for threshold in [np.nextafter(levels[0], 2), *levels[chosen]]:
        events = merge_events(predictions.assign(pred=(proba >= threshold).astype(int)), n_times)
        events, _ = match_events(events, spikes, tolerance)
        hits = events['hit'].sum()
        rows.append((threshold, _ratio(hits, len(spikes)), (len(events) - hits) / minutes))
    return pd.DataFrame(rows, columns=['threshold', 'sensitivity', 'false alarms/min'])


# -------------------------------------------------------------------- patients, intervals, two runs
class Evaluation:
    """Everything that is said of a table of predictions.

    Parameters
    ----------
    predictions : DataFrame
        In recording order, see `with_predictions` and `merge_events`.
    spikes : DataFrame
        The annotated spikes: subject, block, sample.
    n_times : int
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

    def __init__(self, predictions, spikes, *, n_times, tolerance, sfreq, batch_size):
        self.predictions = predictions
        self.sfreq, self.n_times, self.tolerance = sfreq, n_times, tolerance
        self.events, self.spikes = match_events(merge_events(predictions, n_times), spikes, tolerance * sfreq)
        rows = []
        for subject, of_patient in predictions.groupby('subject'):
            events, spikes = (t[t['subject'] == subject] for t in (self.events, self.spikes))
            counts = {
                'spikes': len(spikes),
                'events': len(events),
                'hits': int(events['hit'].sum()),
                'minutes': len(of_patient) * n_times / sfreq / 60,
            }
            rows.append(
                {'subject': subject, **figures(of_patient, batch_size), **counts, **_plain(event_shares(counts))}
            )
        self.patients = pd.DataFrame(rows)
        self.result = figures(predictions, batch_size)
        totals = self.patients[['spikes', 'events', 'hits', 'minutes']].sum()
        errors = 1000 * self.events['error'].dropna() / sfreq
        low, middle, high = errors.quantile([0.25, 0.5, 0.75])
        self.result |= {
            **{name: int(totals[name]) for name in ('spikes', 'events', 'hits')},
            'minutes': float(totals['minutes']),
            **_plain(event_shares(totals)),
            'timing error median (ms)': float(middle),
            'timing error interquartile range (ms)': float(high - low),
        }

    @functools.cached_property
    def curve(self) -> pd.DataFrame:
        """See `sensitivity_curve`."""
        within = self.tolerance * self.sfreq
        return sensitivity_curve(self.predictions, self.spikes, self.n_times, within, self.sfreq)

    def means(self) -> dict:
        """Mean of every main figure over the patients for whom it is defined."""
        return {name: float(self.patients[name].mean()) for name in MAIN_FIGURES}


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
    """PR-AUC and ROC-AUC of rows from the highest probability down, each counted `weight` times; the definitions are
    scikit-learn's."""
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
        return {name: [np.nan, np.nan] for name in MAIN_FIGURES}
    draws = bootstrap(evaluation.predictions, evaluation.patients, draw_patients(n_patients, n_draws, seed))
    return {name: draws[name].quantile([0.025, 0.975]).tolist() for name in MAIN_FIGURES}


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
