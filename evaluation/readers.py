"""Agreement between readings of the same blocks: two experts, or a detector and an expert."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from evaluation.events import event_shares, match_events
from evaluation.intervals import draw_patients

FIGURES = ('sensitivity', 'precision', 'F1', 'false alarms/min', 'kappa', 'timing difference (ms)')
_COUNTS = ['spikes', 'events', 'hits', 'minutes', 'tn', 'fp', 'fn', 'tp']


class Grid(NamedTuple):
    """The sub-windows that are compared.

    Attributes
    ----------
    subwindows : DataFrame
        subject, block, timing (centre, in samples of the block), in order.
    subwindow_length : int
        In samples at `sfreq` Hz.
    half_pulse : int
        A spike marks the sub-windows that it is at most so many samples from, as `labels_t` does.
    sfreq : float
    """

    subwindows: pd.DataFrame
    subwindow_length: int
    half_pulse: int
    sfreq: float


class Reading(NamedTuple):
    """What a reader, or a detector, says of the sub-windows of a grid.

    Attributes
    ----------
    spikes : DataFrame
        subject, block, sample; only those that mark a sub-window.
    called : int array (n,)
        1 in sub-windows with a spike.
    """

    spikes: pd.DataFrame
    called: np.ndarray


def read_on(grid: Grid, spikes: pd.DataFrame) -> Reading:
    """The reading of spikes (subject, block, sample), of blocks of the grid or of others."""
    called = np.zeros(len(grid.subwindows), dtype=np.int64)
    of_block = grid.subwindows.groupby(['subject', 'block']).indices
    marks = np.zeros(len(spikes), dtype=bool)
    centres, reach = grid.subwindows['timing'].to_numpy(), grid.subwindow_length / 2 + grid.half_pulse
    samples = spikes['sample'].to_numpy()
    for block, rows in spikes.groupby(['subject', 'block']).indices.items():
        if block not in of_block:
            continue
        # A marked sample lies in [centre - length / 2, centre + length / 2), half a sample in from either end.
        offset = samples[rows, None] + 0.5 - centres[of_block[block]]
        near = np.abs(offset) < reach
        called[of_block[block]] |= near.any(axis=0)
        marks[rows] = near.any(axis=1)
    return Reading(spikes[marks].reset_index(drop=True), called)


def agreed(a: pd.DataFrame, b: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """The spikes that two readings share, halfway between both; `tolerance` in samples."""
    pairs, _ = match_events(a, b, tolerance)
    pairs = pairs[pairs['hit'] == 1]
    sample = np.round(pairs['sample'] - pairs['error'] / 2).astype(np.int64)
    return pairs[['subject', 'block']].assign(sample=sample).reset_index(drop=True)


def agreement(
    candidate: Reading, reference: Reading, grid: Grid, tolerance: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Count, patient by patient, how a reading agrees with another.

    Parameters
    ----------
    candidate, reference : Reading
        `candidate` is scored as detections are, `reference` as annotations.
    tolerance : float
        Largest distance of two marks of the same spike, in s.

    Returns
    -------
    patients : DataFrame
        One row per patient: subject, counts of events and of sub-windows, `FIGURES`.
    differences : DataFrame
        subject and `ms` (candidate minus reference) of every pair.
    """
    events, spikes = match_events(candidate.spikes, reference.spikes, tolerance * grid.sfreq)
    subject = grid.subwindows['subject'].to_numpy()
    rows = []
    for number in np.unique(subject):
        of_events, of_spikes = (table[table['subject'] == number] for table in (events, spikes))
        mine = subject == number
        called, true = candidate.called[mine] == 1, reference.called[mine] == 1
        rows.append(
            {
                'subject': number,
                'spikes': len(of_spikes),
                'events': len(of_events),
                'hits': int(of_events['hit'].sum()),
                'minutes': mine.sum() * grid.subwindow_length / grid.sfreq / 60,
                **{name: int(np.count_nonzero(cell)) for name, cell in _cells(called, true).items()},
            }
        )
    patients = pd.DataFrame(rows)
    hits = events[events['hit'] == 1]
    differences = pd.DataFrame({'subject': hits['subject'], 'ms': 1000 * hits['error'] / grid.sfreq})
    timing = differences['ms'].abs().groupby(differences['subject']).median().reindex(patients['subject'])
    shares = pd.DataFrame(figures(patients))
    return patients.join(shares).assign(**{FIGURES[-1]: timing.to_numpy()}), differences


def _cells(called, true):
    return {'tn': ~called & ~true, 'fp': called & ~true, 'fn': ~called & true, 'tp': called & true}


def figures(counts: pd.DataFrame | dict) -> dict:
    """`FIGURES`, but for the last, of the counts in a table (or of arrays)."""
    shares = event_shares(counts)
    tn, fp, fn, tp = (np.asarray(counts[name], float) for name in _COUNTS[4:])
    n = tn + fp + fn + tp
    by_chance = ((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp)) / n**2
    with np.errstate(invalid='ignore', divide='ignore'):
        kappa = ((tp + tn) / n - by_chance) / (1 - by_chance)  # Cohen's
    names = ('event sensitivity', 'event precision', 'event F1', 'false alarms/min')
    return dict(zip(FIGURES, (*(shares[name] for name in names), kappa), strict=False))


def pooled(patients: pd.DataFrame, differences: pd.DataFrame, n_draws: int, seed: int) -> pd.DataFrame:
    """Figures of all patients with 95 % bootstrap intervals over them; NaN with fewer than two patients.

    Parameters
    ----------
    patients, differences : DataFrame
        From `agreement`.

    Returns
    -------
    DataFrame
        One row per figure: value, low, high.
    """
    counts = patients[_COUNTS].to_numpy(dtype=float)
    ones = np.ones((1, len(patients)), dtype=int)
    weights = np.concatenate([ones, draw_patients(len(patients), n_draws, seed)])
    values = pd.DataFrame(figures(dict(zip(_COUNTS, (weights @ counts).T, strict=True))))
    of_patient = [differences.loc[differences['subject'] == number, 'ms'].abs() for number in patients['subject']]
    values[FIGURES[-1]] = [_weighted_median(of_patient, draw) for draw in weights]
    table = pd.DataFrame({'value': values.iloc[0]})
    interval = values.iloc[1:].quantile([0.025, 0.975]) * (1 if len(patients) > 1 else np.nan)
    return table.assign(low=interval.iloc[0], high=interval.iloc[1]).rename_axis('figure')


def _weighted_median(groups, weights):
    repeated = [group for group, weight in zip(groups, weights, strict=True) for _ in range(weight)]
    together = np.concatenate([[], *repeated])
    return float(np.median(together)) if len(together) else np.nan
