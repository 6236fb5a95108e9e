"""Which recordings and events are worth an expert's next half hour."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recordings.opening import open_recording, read_annotations, read_layout
from recordings.planning import chosen_labels
from reports.detections_folder import RECORD
from reports.review_files import LOG
from utils import DataError, writing

HALF_HOUR = 60  # events, at 30 s each
CLOSEST = 1e-3  # of a probability to 0 and 1: no event is more surprising than that
MERGED = 0.3  # s within which sub-windows are one event
COLUMNS = ['rank', 'recording', 'onset', 'proba', 'annotated', 'reason', 'bits']


class Candidates(NamedTuple):
    """Events of a recording to look at: `table` has onset, proba, annotated, reason and bits."""

    recording: str
    table: pd.DataFrame


def rank_events(folder: Path, patterns: tuple, tolerance: float) -> pd.DataFrame:
    """Rank the recordings below a folder, and the events in each.

    An event counts by its bits. Where the recording has spike markers, these are the bits of surprise: -log2 of the
    probability that the run gives to what the expert said. Elsewhere they are the entropy of the probability. A
    recording counts by the sum over its best half hour of events. Recordings that have been reviewed are left out.

    Parameters
    ----------
    folder : Path
        With folders of detections at any depth.
    patterns : (str or list of str, str or list of str)
        The settings spike_labels and spike_labels_exclude.
    tolerance : float
        The setting of this name, in s.

    Returns
    -------
    DataFrame
        The columns COLUMNS: recordings from the best on, and the events of each from the best on.

    Raises
    ------
    DataError
        There are no detections below the folder.
    """
    records = sorted(folder.rglob(f'*_detections/{RECORD}'))
    if not records:
        raise DataError(f'{folder}: no detections (*_detections/{RECORD}) in it; first run detect.py')
    ranked = []
    for record in records:
        if (record.parent / LOG).exists():
            print(f'{record.parent}: reviewed already, left out')
            continue
        content = json.loads(record.read_text())
        recording = Path(content['identity']['path'] if content.get('identity') else content['recording'])
        spikes = _expert_spikes(recording, patterns)
        probabilities = pd.read_csv(record.parent / 'probabilities.csv')
        table = candidates(probabilities, spikes, tolerance).head(HALF_HOUR)
        ranked.append((table['bits'].sum(), str(recording), table))
    ranked.sort(key=lambda row: (-row[0], row[1]))
    tables = [
        table.assign(rank=rank, recording=recording) for rank, (_, recording, table) in enumerate(ranked, start=1)
    ]
    return pd.concat([pd.DataFrame(columns=COLUMNS), *tables])[COLUMNS]


def _expert_spikes(recording, patterns):
    """Times of the spikes that an expert has marked in a recording, in s; None where there are none or it is away."""
    if not recording.exists() or recording.suffix == '.pkl':
        return None
    with open_recording(recording) as raw:
        markers = read_annotations(raw, read_layout(raw, recording))
    labels = chosen_labels(list(markers), *patterns)
    return np.sort(np.concatenate([markers[label] for label in labels])) if labels else None


def candidates(probabilities: pd.DataFrame, spikes: np.ndarray | None, tolerance: float) -> pd.DataFrame:
    """Events of a recording that an expert could look at, from the most to the least worth it.

    Parameters
    ----------
    probabilities : DataFrame
        probabilities.csv: onset, duration and proba of sub-windows that tile the recording.
    spikes : array (n,) or None
        An expert's spikes, in s; None where nobody has marked any.
    tolerance : float
        Largest distance of a spike from the sub-windows that find it, in s.

    Returns
    -------
    DataFrame
        onset (s), proba, annotated (1, 0, or NaN where nobody has marked spikes), reason, bits. Of sub-windows that
        follow each other within 0.3 s, the one with the most bits.
    """
    onset = probabilities['onset'].to_numpy()
    end = onset + probabilities['duration'].to_numpy()
    proba = probabilities['proba'].clip(CLOSEST, 1 - CLOSEST).to_numpy()
    if spikes is None:
        bits = -proba * np.log2(proba) - (1 - proba) * np.log2(1 - proba)
        annotated, reason = np.full(len(proba), np.nan), np.full(len(proba), 'uncertain', dtype=object)
    else:
        holds = ((spikes >= onset[:, None]) & (spikes < end[:, None])).any(axis=1)
        near = ((spikes >= onset[:, None] - tolerance) & (spikes < end[:, None] + tolerance)).any(axis=1)
        best = _highest_near(proba, onset, end, tolerance)
        # A spike is found by any sub-window near it; a sub-window beside a spike says nothing new.
        bits = np.where(holds, -np.log2(best), np.where(near, 0.0, -np.log2(1 - proba)))
        annotated, reason = holds.astype(float), np.where(holds, 'marked, but improbable', 'probable, but not marked')
    table = pd.DataFrame(
        {'onset': onset, 'proba': probabilities['proba'], 'annotated': annotated, 'reason': reason, 'bits': bits}
    ).sort_values(['bits', 'onset'], ascending=[False, True])
    return _apart(table[table['bits'] > 0], MERGED)


def _highest_near(proba, onset, end, tolerance):
    """Highest probability of the sub-windows within `tolerance` of each sub-window."""
    first = np.searchsorted(end, onset - tolerance, side='right')
    stop = np.searchsorted(onset, end + tolerance, side='left')
    return np.array([proba[a:b].max() for a, b in zip(first, stop, strict=True)])


def _apart(table, seconds):
    """Rows in order, without those within `seconds` of an earlier row."""
    rows: list[int] = []
    onsets = table['onset'].to_numpy()
    for i, onset in enumerate(onsets):
        if not np.any(abs(onsets[rows] - onset) <= seconds):
            rows.append(i)
        if len(rows) == HALF_HOUR:
            break
    return table.iloc[rows].reset_index(drop=True)


def write_ranking(path: Path, ranking: pd.DataFrame) -> None:
    """Write the ranking as CSV, and print the best recordings."""
    with writing(path) as temporary:
        ranking.to_csv(temporary, index=False, float_format='%.4f')
    for rank, rows in list(ranking.groupby('rank'))[:10]:
        reasons = ', '.join(f'{n} {reason}' for reason, n in rows['reason'].value_counts().items())
        print(f'{rank:4d}  {rows["bits"].sum():7.1f} bits  {rows["recording"].iloc[0]}: {reasons}')
    print(f'{path}: {len(ranking)} events of {ranking["rank"].nunique()} recordings')
