"""Where the spikes of a recording may come from: average of the events and a dipole."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import mne
import numpy as np

from classification import Detections
from recordings.channels import sphere_centre
from recordings.reading import Recording

AROUND, SEARCH = 0.2, 0.05  # half of the average, and of the stretch in which its peak is looked for, in s


# ---------------------------------------------------------------------------------- where spikes come from
class Dipole(NamedTuple):
    """A single equivalent dipole.

    Attributes
    ----------
    sample : int
        Sample of the average at which it was fitted.
    topography : array (274,)
        Field there, in tesla.
    position, orientation : array (3,)
        In metres, and of length 1: x to the right, y to the front, z up, in head coordinates where the recording has
        the head's position, else in those of the helmet.
    moment : float
        In A m.
    goodness : float
        Share of the field's power that the dipole explains, from 0 to 1.
    """

    sample: int
    topography: np.ndarray
    position: np.ndarray
    orientation: np.ndarray
    moment: float
    goodness: float


def average_events(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], before: int, after: int
) -> tuple[np.ndarray | None, int]:
    """Average the signal around events.

    Parameters
    ----------
    blocks : iterable of (array (274, n_samples), array (n_events,))
        Signal in tesla, and events in samples of it.
    before, after : int
        Samples before and after an event; events nearer to an end of their block are left out.

    Returns
    -------
    average : array (274, before + after + 1), or None without any event
    n_events : int
        Events averaged.
    """
    total, n_events = 0.0, 0
    for signal, events in blocks:
        for event in np.asarray(events, dtype=np.int64):
            if before <= event < signal.shape[1] - after:
                total = total + signal[:, event - before : event + after + 1].astype(np.float64)
                n_events += 1
    return (total / n_events, n_events) if n_events else (None, 0)


def fit_source(average: np.ndarray, info: mne.Info, interpolated: list[str], *, search: slice) -> Dipole:
    """Fit a single equivalent dipole to an average of events, at its peak, with MNE and a spherical head.

    Parameters
    ----------
    average : array (274, n_samples)
        In tesla.
    info : mne.Info
        Where the channels and the head were; the centre of the sphere is that of the sensors.
    interpolated : list of str
        Channels that say nothing of their own and are left out of the fit.
    search : slice
        Samples in which the peak, the largest std over channels, is looked for.
    """
    sample = int(np.arange(average.shape[1])[search][average[:, search].std(axis=0).argmax()])
    topography = average[:, sample]
    evoked = mne.EvokedArray(topography[:, None], info.copy(), verbose='error')
    evoked.info['bads'] = list(interpolated)
    sphere = mne.make_sphere_model(r0=sphere_centre(info), head_radius=None, verbose='error')
    dipole, _ = mne.fit_dipole(evoked, mne.make_ad_hoc_cov(info, verbose='error'), sphere, verbose='error')
    return Dipole(sample, topography, dipole.pos[0], dipole.ori[0], float(dipole.amplitude[0]), dipole.gof[0] / 100)


def locate(blocks: list[Recording], found: list[Detections]) -> tuple[Dipole | None, np.ndarray | None, int]:
    """Average all events of a recording, and fit a dipole; None without any event.

    Returns
    -------
    source, average (274, n_samples), n_events
        See `average_events` and `fit_source`.
    """
    sfreq = blocks[0].info['sfreq']
    reach, search = round(AROUND * sfreq), round(SEARCH * sfreq)
    average, n_events = average_events(signals_of_parts(blocks, found), reach, reach)
    if average is None:
        return None, None, 0
    around_peak = slice(reach - search, reach + search + 1)
    return fit_source(average, blocks[0].info, interpolated_channels(blocks), search=around_peak), average, n_events


def interpolated_channels(blocks: list[Recording]) -> list[str]:
    """Names of the channels that were interpolated in any of the blocks."""
    return sorted({channel for block in blocks for channel in block.facts['interpolated']})


def signals_of_parts(blocks: list[Recording], found: list[Detections]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Signal of every continuous part, and its events in samples of it."""
    for block, one in zip(blocks, found, strict=True):
        ends = np.cumsum(block.layout.lengths(block.info['sfreq']))
        for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            yield block.meg[:, start:end], one.events.loc[one.events['part'] == part, 'sample'].to_numpy() - start


def coordinates(info: mne.Info) -> str:
    """What positions count from, in words."""
    axes = 'x to the right, y to the front, z up'
    if np.allclose(info['dev_head_t']['trans'], np.eye(4)):
        return f'of the helmet, {axes}: where the head was in it is not known'
    return f'of the head, by its fiducial points, {axes}'
