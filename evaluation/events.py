"""Events: annotated spikes, merged detections, their matching, and sensitivity against false alarms."""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from evaluation.metrics import _ratio
from utils import SettingError


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
