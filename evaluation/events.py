"""Events: annotated spikes, merged detections, their matching, and sensitivity against false alarms."""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from evaluation.metrics import ratio


# ------------------------------------------------------------------------------------------- events
def pulse_lengths(labels_t: list[np.ndarray], expected: int) -> list[int]:
    """Samples of the pulse that marks a spike in the time labels of each patient.

    Parameters
    ----------
    labels_t : list of arrays (n_windows, window_length)
        One per patient.
    expected : int
        What the setting `pulse_width` makes. A spike between two samples marks one less.

    Returns
    -------
    list of int
        The shortest mark of the patient, as whoever made the windows chose it; `expected` where it has no whole mark,
        or longer ones while other patients have the marks expected: spikes less than a pulse apart.
    """
    shortest = [_shortest_pulse(of_patient) for of_patient in labels_t]
    as_expected = any(n in (expected - 1, expected) for n in shortest)
    return [n if n and (n < expected - 1 or not as_expected) else expected for n in shortest]


def _shortest_pulse(labels_t):
    """Samples of the shortest mark that no window's edge cuts off; None where there is none."""
    changes = np.diff((labels_t != 0).astype(np.int8), axis=1)
    rows, places = np.nonzero(changes)
    rises = changes[rows, places] == 1
    whole = rises[:-1] & ~rises[1:] & (rows[:-1] == rows[1:])
    return int(np.diff(places)[whole].min()) if whole.any() else None


def spikes_of_pulses(marked: np.ndarray, pulse: int) -> np.ndarray:
    """Samples of the spikes whose pulses, each of `pulse` samples, mark a stretch of signal.

    Parameters
    ----------
    marked : bool array (n_samples,)

    Returns
    -------
    int array
        A spike is the middle of its pulse; of an even number of samples, the first of the second half. A stretch longer
        than a pulse by two samples or more holds several spikes, closer together than a pulse: the first and the last
        of them are where its ends say, and as few as can mark it are spread evenly between. A stretch cut off at the
        start or the end of the signal has its spike where its whole end says.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(np.int8), [0]])))
    middle, spikes = pulse // 2, []
    for first, end in edges.reshape(-1, 2):
        length, last = end - first, max(end - pulse, 0)
        if length > pulse + 1:  # a spike between two samples marks one more or less than others
            n_spikes = -(-length // pulse)
            spikes += np.round(np.linspace(first + middle, last + middle, n_spikes)).astype(int).tolist()
        else:
            spikes.append(end - pulse + middle if first == 0 else first + middle)
    return np.maximum(np.asarray(spikes, dtype=np.int64), 0)


def annotated_spikes(
    table: pd.DataFrame, labels_t: np.ndarray, subwindows: pd.DataFrame, pulses: dict[int, int], subwindow_length: int
) -> pd.DataFrame:
    """Annotated spikes that mark at least one scored sub-window, from the windows' time labels.

    Parameters
    ----------
    table : DataFrame
        Id table of the windows.
    labels_t : uint8 array (n_windows, window_length)
    subwindows : DataFrame
        Their sub-windows, each of `subwindow_length` samples.
    pulses : dict
        Samples of the pulse that marks a spike, by subject, see `pulse_lengths`.

    Returns
    -------
    DataFrame
        subject, block, sample.
    """
    window_length = labels_t.shape[1]
    centres = dict(list(subwindows.groupby(['subject', 'block'])['timing']))
    rows = []
    windows = table.assign(row=np.arange(len(table)))
    for (subject, block), group in windows.groupby(['subject', 'block']):
        starts = np.round(group['timing'].to_numpy() - window_length / 2).astype(int)
        marked = np.zeros(starts.max() + window_length, dtype=bool)
        for start, row in zip(starts, group['row'], strict=True):
            marked[start : start + window_length] |= labels_t[row].astype(bool)
        # What a mark reaches beyond its spike, and back.
        before, after = (pulses[subject] - 1) // 2, pulses[subject] // 2
        near = np.zeros(len(marked) + pulses[subject], dtype=bool)
        for centre in centres[subject, block]:
            first = round(centre - subwindow_length / 2)
            near[max(first - after, 0) : first + subwindow_length + before] = True
        spikes = spikes_of_pulses(marked, pulses[subject])
        rows += [(subject, block, sample) for sample in spikes if near[sample]]
    return pd.DataFrame(rows, columns=['subject', 'block', 'sample']).astype(np.int64)


def merge_events(predictions: pd.DataFrame, subwindow_length: int) -> pd.DataFrame:
    """Merge neighbouring positive sub-windows (of `subwindow_length` samples) to events.

    Parameters
    ----------
    predictions : DataFrame
        In recording order, with subject, block, timing, pred, proba, `field` (global field power at its peak in the
        sub-window) and `peak` (the peak's sample in the block). Field power is compared between the sub-windows of an
        event: where windows are scaled one by one, each in its own unit.

    Returns
    -------
    DataFrame
        subject, block, onset and end (samples, end excluded), sample (the highest field peak), proba (the highest),
        and `uncertainty` of the sub-window with that probability, where the predictions have it.
    """
    positive = predictions[predictions['pred'] == 1]
    block = positive.groupby(['subject', 'block']).ngroup().to_numpy()
    timing, proba = positive['timing'].to_numpy(), positive['proba'].to_numpy()
    starts = _first_of_events(block, timing, subwindow_length)
    highest = positive.iloc[_first_highest(positive['field'].to_numpy(), starts)]
    surest = positive.iloc[_first_highest(proba, starts)]
    last = np.append(starts[1:], len(positive)) - 1 if len(starts) else starts
    return pd.DataFrame(
        {
            'subject': highest['subject'].to_numpy(),
            'block': highest['block'].to_numpy(),
            'onset': np.round(timing[starts] - subwindow_length / 2).astype(np.int64),
            'end': np.round(timing[last] + subwindow_length / 2).astype(np.int64),
            'sample': highest['peak'].to_numpy().astype(np.int64),
            **{name: surest[name].to_numpy() for name in ('proba', 'uncertainty') if name in surest},
        }
    )


def _first_of_events(block, timing, subwindow_length):
    """Indices at which events begin, of positive sub-windows in recording order; `block` tells their blocks apart."""
    new = (np.diff(block, prepend=-1) != 0) | (np.diff(timing, prepend=-np.inf) > subwindow_length + 0.5)
    return np.flatnonzero(new)


def _first_highest(field, starts):
    """Index of the highest value, the first of equal ones, in every stretch of `field` that begins at `starts`."""
    if not len(starts):
        return starts
    stretch = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(field)))
    highest = np.flatnonzero(field == np.maximum.reduceat(field, starts)[stretch])
    return highest[np.flatnonzero(np.diff(stretch[highest], prepend=-1))]


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
    allowed = distance[rows, columns] <= tolerance
    return rows[allowed], columns[allowed]


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
    predictions: pd.DataFrame, spikes: pd.DataFrame, subwindow_length: int, tolerance: float, sfreq: float
) -> pd.DataFrame:
    """Event sensitivity against false alarms per minute, from a threshold that nothing reaches downwards.

    Parameters
    ----------
    predictions : DataFrame
        See `merge_events`; its `pred` is not used.
    spikes : DataFrame
        subject, block, sample.
    subwindow_length, tolerance : numbers
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
    minutes, rows = len(predictions) * subwindow_length / sfreq / 60, []
    block, peaks, spikes_on_axis = _on_one_axis(predictions, spikes, tolerance)
    timing, field = predictions['timing'].to_numpy(), predictions['field'].to_numpy()
    for threshold in [np.nextafter(levels[0], 2), *levels[chosen]]:
        positive = np.flatnonzero(proba >= threshold)
        starts = _first_of_events(block[positive], timing[positive], subwindow_length)
        detected = peaks[positive[_first_highest(field[positive], starts)]]
        hits = count_hits(detected, spikes_on_axis, tolerance)
        rows.append((threshold, ratio(hits, len(spikes)), (len(detected) - hits) / minutes))
    return pd.DataFrame(rows, columns=['threshold', 'sensitivity', 'false alarms/min'])


def _on_one_axis(predictions, spikes, tolerance):
    """Number of the block of every sub-window, and peaks and spikes (in order) on one axis of samples.

    Blocks are so far apart on it that nothing of one matches anything of another.
    """
    names = ['subject', 'block']
    keys = pd.concat([predictions[names], spikes[names]])
    block = keys.groupby(names).ngroup().to_numpy()
    samples = np.concatenate([predictions['peak'], spikes['sample']]).astype(np.int64)
    axis = samples + block * (np.ptp(samples) + int(tolerance) + 1)
    n = len(predictions)
    return block[:n], axis[:n], np.sort(axis[n:])


def count_hits(detected: np.ndarray, annotated: np.ndarray, tolerance: float) -> int:
    """Number of pairs that `match` makes, of two sorted int arrays of samples.

    Every detection in turn takes the earliest annotation that is left: of points on a line, as many pairs as can be.
    """
    within = int(tolerance)  # distances are whole numbers
    first = np.searchsorted(annotated, detected - within, side='left')
    end = np.searchsorted(annotated, detected + within, side='right')
    near = end > first  # most detections are near no annotation
    hits = untaken = 0
    for lowest, limit in zip(first[near].tolist(), end[near].tolist(), strict=True):
        candidate = max(lowest, untaken)
        if candidate < limit:
            hits, untaken = hits + 1, candidate + 1
    return hits
