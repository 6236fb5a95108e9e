"""What a reviewer sees and changes: events as annotations of MNE's browser, and what became of each."""

import mne
import numpy as np
import pandas as pd

from recordings.bad_segments import is_bad_label
from recordings.layout import Note
from recordings.reading import Recording
from reports.recording_detections import bad_seconds

HALF_WIDTH = 0.05  # s of an annotation on either side of its event, so that it can be clicked on
APART = 1e-4  # s between the onsets of two annotations, by which MNE's browser tells them apart
SHOWN_BAD = 'BAD_marked'  # segments that are marked bad already
COLUMNS = ['time', 'label', 'proba', 'cluster']
TYPES = {'time': float, 'proba': float, 'cluster': int}


# ----------------------------------------------------------------------------------------------- signal
def on_timeline(block: Recording) -> mne.io.RawArray:
    """Lay a block on the time of its recording, with zeros in gaps, and add the field power as a channel.

    Parameters
    ----------
    block : Recording
        All of a recording.

    Returns
    -------
    mne.io.RawArray
        `field power`, the std over channels in T, and the 274 channels by region, both sides of each in turn.
    """
    sfreq = block.info['sfreq']
    lengths = block.layout.lengths(sfreq)
    starts = [round(start * sfreq / block.layout.sfreq) for start, _ in block.layout.parts]
    order = sorted(range(len(block.meg)), key=lambda row: _region(block.info['ch_names'][row]))
    signal = np.zeros((1 + len(order), starts[-1] + lengths[-1]))
    offset = 0
    for start, length in zip(starts, lengths, strict=True):
        part = block.meg[:, offset : offset + length]
        signal[0, start : start + length] = part.std(axis=0)
        signal[1:, start : start + length] = part[order]
        offset += length
    names = [block.info['ch_names'][row] for row in order]
    info = mne.create_info(['field power', *names], sfreq, ['misc', *['mag'] * len(names)])
    for ch, row in zip(info['chs'][1:], order, strict=True):
        ch.update({key: block.info['chs'][row][key] for key in ('loc', 'coil_type', 'coord_frame', 'unit')})
    return mne.io.RawArray(signal, info, copy=None, verbose='error')


def _region(name):
    """By what channels of CTF are sorted: frontal to occipital; left, middle, right; number."""
    return 'FCPTO'.index(name[2]), 'LZR'.index(name[1]), name


# ----------------------------------------------------------------------------------------------- events
def events_of_notes(notes: list[Note]) -> pd.DataFrame:
    """Events among annotations, in order of time: all but bad segments.

    Returns
    -------
    DataFrame
        time (s from the first sample of the recording), label, proba (NaN where not known), cluster (0 where none).
    """
    rows = [
        (note.onset, note.label, (note.extras or {}).get('proba', np.nan), (note.extras or {}).get('cluster', 0))
        for note in notes
        if not is_bad_label(note.label)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS).astype(TYPES)
    return table.sort_values('time', ignore_index=True, kind='stable')


def with_markers(detections: pd.DataFrame, markers: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Put detections and an expert's markers together: a marker near a detection takes its place.

    Parameters
    ----------
    detections, markers : DataFrame
        From `events_of_notes`.
    tolerance : float
        Largest distance, in s.

    Returns
    -------
    DataFrame
        Of the same columns, in order of time. A marker gets the probability and group of the nearest detection.
    """
    markers, replaced = markers.copy(), set()
    for row, time in enumerate(markers['time']):
        distance = (detections['time'] - time).abs()
        near = distance[distance <= tolerance].drop(index=list(replaced), errors='ignore')
        if len(near):
            replaced.add(near.idxmin())
            markers.loc[row, ['proba', 'cluster']] = detections.loc[near.idxmin(), ['proba', 'cluster']].tolist()
    together = [detections.drop(index=list(replaced)), markers.astype(detections.dtypes)]
    return pd.concat(together).sort_values('time', ignore_index=True, kind='stable')


def shown_label(label: str, cluster: int) -> str:
    """What the browser calls an event: its label, and the number of its group behind it."""
    return label if not cluster or label.endswith(f'_{cluster}') else f'{label}_{cluster}'


def shown_annotations(events: pd.DataFrame, block: Recording) -> mne.Annotations:
    """Annotations for the browser: an event in the middle of each, and the segments that are marked bad.

    Parameters
    ----------
    events : DataFrame
        From `events_of_notes`.
    block : Recording
        All of the recording.

    Returns
    -------
    mne.Annotations
        With proba and cluster of each event as extras.
    """
    onsets = np.maximum(events['time'].to_numpy() - HALF_WIDTH, 0)
    for i in range(1, len(onsets)):
        onsets[i] = max(onsets[i], onsets[i - 1] + APART)
    ends = events['time'].to_numpy() + HALF_WIDTH
    labels = [shown_label(*event) for event in zip(events['label'], events['cluster'], strict=True)]
    extras = [
        {'cluster': cluster} | ({} if np.isnan(proba) else {'proba': proba})
        for proba, cluster in zip(events['proba'].tolist(), events['cluster'].tolist(), strict=True)
    ]
    annotations = mne.Annotations(onsets, ends - onsets, labels, extras=extras)
    for onset, end in bad_seconds([block]):
        annotations.append(onset, end - onset, SHOWN_BAD)
    return annotations


def order_of_review(events: pd.DataFrame, order: str, threshold: float) -> pd.DataFrame:
    """Events in the order in which they are worth a look.

    Parameters
    ----------
    events : DataFrame
        From `events_of_notes`.
    order : str
        The setting `review_order`.
    threshold : float
        Of the detections.

    Returns
    -------
    DataFrame
        The same rows. Events without a probability come last, but for order 'time'.
    """
    if order == 'time':
        return events
    proba = events['proba'].clip(1e-6, 1 - 1e-6)
    distance = np.log(proba / (1 - proba)) - np.log(threshold / (1 - threshold))
    key = distance.abs() if order == 'doubt' else -proba
    return events.iloc[np.argsort(key.to_numpy(), kind='stable')]


# ------------------------------------------------------------------------------------------ corrections
def corrected_events(
    before: pd.DataFrame, annotations: mne.Annotations, raw: mne.io.BaseRaw
) -> tuple[pd.DataFrame, list[Note]]:
    """Find out what a reviewer has kept, renamed, deleted and added.

    An event is kept, at its own time, if an annotation of its label still covers it. It is renamed if one of another
    label does. An annotation that covers no event adds one, at the peak of the field power within.

    Parameters
    ----------
    before : DataFrame
        From `events_of_notes`.
    annotations : mne.Annotations
        As the reviewer left them.
    raw : mne.io.BaseRaw
        From `on_timeline`.

    Returns
    -------
    corrected : DataFrame
        The columns of `events_of_notes`, and change ('kept', 'renamed', 'deleted', 'added') and label_before.
    bad : list of Note
        Segments that the reviewer marked bad.
    """
    onsets, ends = annotations.onset, annotations.onset + annotations.duration
    labels = np.array(annotations.description, dtype=object)
    known = {shown_label(*pair): pair for pair in zip(before['label'], before['cluster'].tolist(), strict=True)}
    is_bad = np.array([is_bad_label(label) for label in labels], dtype=bool)
    rows, used = [], is_bad.copy()
    for event in before.itertuples():
        covers = ~is_bad & (onsets <= event.time + APART) & (event.time - APART <= ends)
        same = np.flatnonzero(covers & (labels == shown_label(event.label, event.cluster)))
        used[same[:1]] = True
        rows.append([event.time, event.label, event.proba, event.cluster, 'kept' if len(same) else '', event.label])
    for row in rows:
        covers = ~used & (onsets <= row[0] + APART) & (row[0] - APART <= ends)
        if not row[4] and covers.any():
            nearest = np.flatnonzero(covers)[np.argmin(abs((onsets + ends)[covers] / 2 - row[0]))]
            used[nearest] = True
            row[1], row[3] = known.get(labels[nearest], (labels[nearest], 0))
            row[4] = 'renamed'
        row[4] = row[4] or 'deleted'
    for i in np.flatnonzero(~used):
        time = _peak(raw, onsets[i], ends[i])
        rows.append([time, *_with_proba(known.get(labels[i], (labels[i], 0))), 'added', ''])
    bad = [
        Note(str(labels[i]), float(onsets[i]), float(ends[i] - onsets[i]))
        for i in np.flatnonzero(is_bad & (labels != SHOWN_BAD))
    ]
    corrected = pd.DataFrame(rows, columns=[*COLUMNS, 'change', 'label_before']).astype(TYPES)
    return corrected.sort_values('time', ignore_index=True, kind='stable'), bad


def _with_proba(label_and_cluster):
    label, cluster = label_and_cluster
    return label, np.nan, cluster


def _peak(raw, onset, end):
    """Time of the highest field power between two times, in s."""
    sfreq = raw.info['sfreq']
    first = min(max(0, round(onset * sfreq)), raw.n_times - 1)
    power = raw.get_data(picks='misc', start=first, stop=max(first + 1, round(end * sfreq) + 1))[0]
    return (first + int(power.argmax())) / sfreq
