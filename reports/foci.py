"""Foci: the events of a recording grouped by field and time course, and the average and the dipole of each group.

Two events of one focus have the same field and course but for amplitude, sign and noise. Their correlation is taken
after whitening by the background, and corrected for what noise takes away from it (Spearman's correction for
attenuation): so one threshold does for weak and strong spikes, and for quiet and noisy recordings.
"""

from typing import NamedTuple

import numpy as np
from sklearn.cluster import AgglomerativeClustering

from reports.dipole import Dipole, fit_dipoles, interpolated_channels
from reports.recording_detections import RecordingDetections, in_bad_segments

AROUND = 0.2  # half the length of an average, in s; the background begins as far from an event
SEARCH = 0.05  # half the segment of an average that is searched for its peak, in s
HALF, SHIFT = 0.053, 0.053  # half the course that is compared, and the largest shift of two events, in s
RIDGE = 1.0  # added to the background's variances before whitening, in units of their mean
# Chosen, like the others, on simulated patients of other seeds and signal-to-noise ratios than benchmarks/foci.py.
LEAST_CORRELATION = 0.4  # mean over the pairs of two groups, for these to be one
LEAST_SHARE = 0.5  # of signal in the power of an event: what a noisier one counts as, or noise would resemble noise
# A spike spreads from its source within 10 to 40 ms. So the dipole is fitted on the rise, where the field's std is this
# share of that at the peak; chosen as said in benchmarks/README.md.
RISE = 0.8
LONGEST_RISE = 0.053  # before the peak, in s
LARGEST = 3000  # events are compared pair by pair: beyond this number, the surest of them


class Grouping(NamedTuple):
    """The groups of events, and how each event lies in its group.

    Attributes
    ----------
    labels : int array (n_events,)
        From 1 on, the largest group first; 0 for an event that is like no other.
    signs : int array (n_events,)
        1, or -1 for the opposite polarity of the group's most typical event.
    shifts : int array (n_events,)
        Samples from the event to where its course is that of the most typical event.
    """

    labels: np.ndarray
    signs: np.ndarray
    shifts: np.ndarray


class Focus(NamedTuple):
    """A group of events.

    Attributes
    ----------
    number : int
        The `cluster` of its events.
    n_events : int
    proba : float
        Mean probability.
    average, spread : array (274, n_times)
        Mean and std of its aligned events in tesla, within AROUND.
    peak : int
        Sample of the average at which the field is largest.
    dipole : Dipole
        Of the field on the rise to the peak, see `on_the_rise`.
    """

    number: int
    n_events: int
    proba: float
    average: np.ndarray
    spread: np.ndarray
    peak: int
    dipole: Dipole


def find_foci(detections: RecordingDetections) -> tuple[RecordingDetections, list[Focus]]:
    """Group the events of a recording, and describe each group.

    Returns
    -------
    detections : RecordingDetections
        With the column `cluster` of its events, see `Grouping.labels`.
    foci : list of Focus
        The largest group first.
    """
    events, info = detections.events, detections.blocks[0].info
    sfreq = info['sfreq']
    half, shift, reach = (round(seconds * sfreq) for seconds in (HALF, SHIFT, AROUND))
    surest = events['proba'].nlargest(LARGEST).index.sort_values()
    epochs = cut_epochs(detections, surest, reach + shift)
    noise = background_covariance(detections, reach)
    grouping = group_events(epochs, noise, half=half, shift=shift)
    clusters = events.assign(cluster=0)['cluster']
    clusters[surest] = grouping.labels
    averages, numbers = [], range(1, grouping.labels.max(initial=0) + 1)
    for number in numbers:
        aligned = align(epochs, grouping, number, reach)
        averages.append((aligned.mean(axis=0), aligned.std(axis=0)))
    search = slice(reach - round(SEARCH * sfreq), reach + round(SEARCH * sfreq) + 1)
    peaks = [search.start + int(average[:, search].std(axis=0).argmax()) for average, _ in averages]
    counts = np.array([(grouping.labels == number).sum() for number in numbers])
    longest = round(LONGEST_RISE * sfreq)
    fields = np.array([on_the_rise(average, peak, longest) for (average, _), peak in zip(averages, peaks, strict=True)])
    dipoles = fit_dipoles(fields, info, interpolated_channels(detections.blocks), with_ridge(noise), counts)
    foci = [
        Focus(number, int(count), float(events.loc[clusters == number, 'proba'].mean()), *average, peak, dipole)
        for number, count, average, peak, dipole in zip(numbers, counts, averages, peaks, dipoles, strict=True)
    ]
    return detections._replace(events=events.assign(cluster=clusters)), foci


def on_the_rise(average: np.ndarray, peak: int, longest: int) -> np.ndarray:
    """The field (274,) of an average (274, n_times) when its power last is RISE of that at the peak.

    Between two samples it is interpolated. Where there is no such time within `longest` samples, it is the field at the
    first of them.
    """
    power = average.std(axis=0)
    start, level = max(peak - longest, 0), RISE * power[peak]
    below = np.flatnonzero(power[start:peak] <= level)
    if not len(below):
        return average[:, start]
    last = start + below[-1]
    share = (level - power[last]) / max(power[last + 1] - power[last], 1e-30)
    return average[:, last] + min(share, 1) * (average[:, last + 1] - average[:, last])


# ------------------------------------------------------------------------------------------------ signals
def cut_epochs(detections: RecordingDetections, rows: np.ndarray, reach: int) -> np.ndarray:
    """The signal around events; beyond an end of a continuous part, the sample at this end.

    Parameters
    ----------
    rows : array (n_events,)
        Of `detections.events`.
    reach : int
        Samples before and after an event.

    Returns
    -------
    float32 array (n_events, 274, 2 * reach + 1)
        In tesla.
    """
    epochs = np.zeros((len(rows), len(detections.blocks[0].info['ch_names']), 2 * reach + 1), dtype=np.float32)
    sfreq = detections.blocks[0].info['sfreq']
    for epoch, event in zip(epochs, detections.events.loc[rows].itertuples(), strict=True):
        block = detections.blocks[event.block]
        ends = np.cumsum(block.layout.lengths(sfreq))
        first = ends[event.part - 1] if event.part else 0
        columns = np.clip(event.sample + np.arange(-reach, reach + 1), first, ends[event.part] - 1)
        epoch[:] = block.meg[:, columns]
    return epochs


def background_covariance(detections: RecordingDetections, reach: int) -> np.ndarray:
    """Covariance (274, 274) in T^2 of the signal more than `reach` samples from any event and outside bad segments.

    Of all signal, where events leave fewer samples than there are channels.
    """
    quiet, everything = np.zeros(()), np.zeros(())
    n_quiet, n_samples = 0, 0
    for number, block in enumerate(detections.blocks):
        length = block.meg.shape[1]
        is_quiet = ~in_bad_segments(block, np.arange(length))
        for sample in detections.events.loc[detections.events['block'] == number, 'sample']:
            is_quiet[max(sample - reach, 0) : sample + reach + 1] = False
        for start in range(0, length, 10_000):  # in float64, an hour at once would take a gigabyte
            signal = block.meg[:, start : start + 10_000].astype(np.float64)
            everything = everything + signal @ signal.T
            signal = signal[:, is_quiet[start : start + 10_000]]
            quiet = quiet + signal @ signal.T
        n_quiet, n_samples = n_quiet + is_quiet.sum(), n_samples + length
    return quiet / n_quiet if n_quiet >= len(quiet) else everything / n_samples


def with_ridge(covariance: np.ndarray) -> np.ndarray:
    """A covariance (n, n) with RIDGE of its mean variance added to every variance."""
    return covariance + RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


# ----------------------------------------------------------------------------------------------- grouping
def group_events(epochs: np.ndarray, noise: np.ndarray, *, half: int, shift: int) -> Grouping:
    """Group events by field and course, whatever their amplitude and sign.

    Agglomerative clustering with average linkage, on the correlation of the whitened courses of two events, the
    largest over shifts, corrected for attenuation by noise.

    Parameters
    ----------
    epochs : array (n_events, n_channels, n_times)
        An event is in the middle.
    noise : array (n_channels, n_channels)
        Covariance of the background, in the unit of the epochs squared.
    half, shift : int
        Samples on either side of an event that are compared, and of the largest shift.
    """
    n_events = len(epochs)
    alone = Grouping(*np.zeros((3, n_events), dtype=np.int64))
    if n_events < 2 or not np.trace(noise) > 0:
        return alone
    values, vectors = np.linalg.eigh(with_ridge(noise))
    white = ((vectors / np.sqrt(values)) @ vectors.T).astype(np.float32) @ epochs
    power_of_noise = np.trace(np.linalg.solve(with_ridge(noise), noise)) * (2 * half + 1)
    courses = unit_courses(white, half, 0)
    correlation = np.zeros((n_events, n_events), dtype=np.float32)
    for samples in range(-shift, shift + 1):
        np.maximum(correlation, np.abs(courses @ unit_courses(white, half, samples).T), out=correlation)
    middle = white[:, :, white.shape[2] // 2 - half : white.shape[2] // 2 + half + 1]
    power = np.square(middle).sum(axis=(1, 2), dtype=np.float64)
    share = np.clip(1 - power_of_noise / np.maximum(power, 1e-30), LEAST_SHARE, 1)
    likeness = np.maximum(correlation, correlation.T) / np.sqrt(np.outer(share, share))
    clusters = AgglomerativeClustering(
        n_clusters=None, metric='precomputed', linkage='average', distance_threshold=1 - LEAST_CORRELATION
    ).fit_predict(1 - np.minimum(likeness, 1))
    return _ordered(clusters, likeness, white, half, shift)


def unit_courses(white: np.ndarray, half: int, samples: int) -> np.ndarray:
    """Fields and courses within `half` samples of events moved by `samples`, of length 1: (n_events, n_values)."""
    middle = white.shape[2] // 2 + samples
    courses = white[:, :, middle - half : middle + half + 1].reshape(len(white), -1)
    return courses / np.maximum(np.linalg.norm(courses, axis=1, keepdims=True), 1e-30)


def _ordered(clusters, likeness, white, half, shift):
    """Number the groups by size, then time, and align each to its most typical event."""
    groups = [np.flatnonzero(clusters == label) for label in np.unique(clusters)]
    groups = sorted((rows for rows in groups if len(rows) > 1), key=lambda rows: (-len(rows), rows[0]))
    labels, signs, shifts = np.zeros((3, len(clusters)), dtype=np.int64)
    for number, rows in enumerate(groups, start=1):
        typical = rows[likeness[np.ix_(rows, rows)].sum(axis=1).argmax()]
        course = unit_courses(white[typical : typical + 1], half, 0)[0]
        by_shift = [unit_courses(white[rows], half, samples) @ course for samples in range(-shift, shift + 1)]
        correlation = np.array(by_shift)  # (n_shifts, n_rows)
        best = np.abs(correlation).argmax(axis=0)
        labels[rows], shifts[rows] = number, best - shift
        signs[rows] = np.where(correlation[best, np.arange(len(rows))] < 0, -1, 1)
    return Grouping(labels, signs, shifts)


def align(epochs: np.ndarray, grouping: Grouping, number: int, reach: int) -> np.ndarray:
    """The epochs of a group in one polarity and at one time: (n_events, n_channels, 2 * reach + 1), float64."""
    rows = np.flatnonzero(grouping.labels == number)
    middle = epochs.shape[2] // 2
    return np.array(
        [
            grouping.signs[row] * epochs[row, :, start - reach : start + reach + 1].astype(np.float64)
            for row, start in zip(rows, middle + grouping.shifts[rows], strict=True)
        ]
    )
