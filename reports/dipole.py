"""Where the spikes of a recording may come from: average of the events and a dipole."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import mne
import numpy as np

from recordings.channels import sphere_centre
from recordings.reading import Recording
from reports.recording_detections import RecordingDetections

AROUND, SEARCH = 0.2, 0.05  # half the length of the average, and of the segment searched for its peak, in s


class Dipole(NamedTuple):
    """A single equivalent dipole.

    Attributes
    ----------
    sample : int
        Sample of the average at which it was fitted.
    topography : array (274,)
        Field there, in tesla.
    position, orientation : array (3,)
        In metres, and of length 1: x to the right, y to the front, z up. In head coordinates where the recording has
        the head's position, otherwise in those of the helmet.
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


class DipoleFit(NamedTuple):
    """The average of the events of a recording, and the dipole fitted to it.

    Attributes
    ----------
    dipole : Dipole
    average : array (274, n_samples)
        In tesla.
    n_events : int
        Events averaged.
    """

    dipole: Dipole
    average: np.ndarray
    n_events: int


def average_events(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], before: int, after: int
) -> tuple[np.ndarray | None, int]:
    """Average the signal around events.

    Parameters
    ----------
    blocks : iterable of (array (274, n_samples), array (n_events,))
        Signal in tesla, and events in samples of it.
    before, after : int
        Samples before and after an event. Events nearer to an end of their block are left out.

    Returns
    -------
    average : array (274, before + after + 1), or None without any event
    n_events : int
        Events averaged.
    """
    total, n_events = np.zeros(()), 0
    for signal, events in blocks:
        for event in np.asarray(events, dtype=np.int64):
            if before <= event < signal.shape[1] - after:
                total = total + signal[:, event - before : event + after + 1].astype(np.float64)
                n_events += 1
    return (total / n_events if n_events else None), n_events


def fit_source(average: np.ndarray, info: mne.Info, interpolated: list[str], *, search: slice) -> Dipole:
    """Fit a single equivalent dipole in a spherical head to the peak of an average of events, with MNE.

    Parameters
    ----------
    average : array (274, n_samples)
        In tesla.
    info : mne.Info
        Positions of the channels and of the head. The centre of the sphere is that of the sensors.
    interpolated : list of str
        Channels that are left out of the fit, because they measure nothing of their own.
    search : slice
        Samples that are searched for the peak, the largest std over channels.
    """
    sample = int(np.arange(average.shape[1])[search][average[:, search].std(axis=0).argmax()])
    topography = average[:, sample]
    evoked = mne.EvokedArray(topography[:, None], info.copy(), verbose='error')
    evoked.info['bads'] = list(interpolated)
    sphere = mne.make_sphere_model(r0=sphere_centre(info), head_radius=None, verbose='error')
    dipole, _ = mne.fit_dipole(evoked, mne.make_ad_hoc_cov(info, verbose='error'), sphere, verbose='error')
    return Dipole(sample, topography, dipole.pos[0], dipole.ori[0], float(dipole.amplitude[0]), dipole.gof[0] / 100)


def locate(detections: RecordingDetections) -> DipoleFit | None:
    """Average all events of a recording, and fit a dipole; None without any event."""
    info = detections.blocks[0].info
    reach, search = round(AROUND * info['sfreq']), round(SEARCH * info['sfreq'])
    average, n_events = average_events(signals_of_parts(detections), reach, reach)
    if average is None:
        return None
    around_peak = slice(reach - search, reach + search + 1)
    dipole = fit_source(average, info, interpolated_channels(detections.blocks), search=around_peak)
    return DipoleFit(dipole, average, n_events)


def interpolated_channels(blocks: list[Recording]) -> list[str]:
    """Names of the channels that were interpolated in any of the blocks."""
    return sorted({channel for block in blocks for channel in block.facts['interpolated']})


def signals_of_parts(detections: RecordingDetections) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give the signal of every continuous part, and the events in it.

    Yields
    ------
    signal : array (274, n_samples)
        In tesla.
    events : int array (n_events,)
        In samples of the part.
    """
    for block, (_, events) in zip(detections.blocks, detections.by_block, strict=True):
        ends = np.cumsum(block.layout.lengths(block.info['sfreq']))
        for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            yield block.meg[:, start:end], events.loc[events['part'] == part, 'sample'].to_numpy() - start


def coordinates(info: mne.Info) -> str:
    """Description of the origin and the axes that positions refer to."""
    axes = 'x to the right, y to the front, z up'
    if np.allclose(info['dev_head_t']['trans'], np.eye(4)):
        return f'of the helmet, {axes}: where the head was in it is not known'
    return f'of the head, by its fiducial points, {axes}'
