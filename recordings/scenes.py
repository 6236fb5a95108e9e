"""Recording a simulated patient: from a `Scene` to blocks with spikes, other transients and annotations.

A scene is what a block without transients is, and what spikes and other transients are, wherever they come from.
"""

from collections.abc import Callable
from typing import NamedTuple

import mne
import numpy as np
import pandas as pd

SPIKE_DISTANCE = 0.5  # s, least distance between the peaks of two spikes
BORDER = 1.0  # s without spikes at both ends of a block
# s around the first peak of the first source, where the peak of the whole field is looked for: a spike whose second
# peak or wave is the highest has its peak there.
PEAK_SEARCH = 0.1


class PatientSettings(NamedTuple):
    """What is recorded of a simulated patient, and how.

    Attributes
    ----------
    subject : int
        Number of the patient; the random draws depend on it and on `seed` alone.
    n_blocks : int
        Number of blocks.
    block_seconds : float
        Duration of a block; the band-pass filter needs 7 s.
    spike_rate, distractor_rate : float
        Mean number of spikes, and of other sharp transients, per minute.
    snr : float
        Mean over spikes of the std over channels of the spike's field at its peak, divided by the std over channels
        and samples of the background (brain, artefacts, noise).
    annotation_jitter : float
        Std of the annotation's error, in seconds.
    annotation_missed : float
        Share of the spikes that the annotation misses.
    sfreq : float
        Sampling frequency, in Hz.
    seed : int
        The setting of this name.
    """

    subject: int
    n_blocks: int
    block_seconds: float
    spike_rate: float
    snr: float
    distractor_rate: float
    annotation_jitter: float
    annotation_missed: float
    sfreq: float
    seed: int


class Scene(NamedTuple):
    """What the blocks of a patient are made of; each function draws anew at every call.

    Attributes
    ----------
    background : function
        n_times -> unfiltered signal (n_channels, n_times) without spikes, in tesla.
    foci : list of pairs
        Fields (n_channels, n_sources) of std 1 over channels, and a function: times in s -> courses
        (n_sources, n_times) of a spike with a height of about 1 at 0 s.
    distractor : function
        times in s -> field (n_channels,) and course (n_times,) of a transient around 0 s that is no spike.
    """

    background: Callable[[int], np.ndarray]
    foci: list[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]
    distractor: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def band_pass(x: np.ndarray, sfreq: float) -> np.ndarray:
    """Filter x, (n_rows, n_times) at `sfreq` Hz, between 0.5 and 50 Hz without delay."""
    return mne.filter.filter_data(x, sfreq, 0.5, 50, verbose='error')


def draw_times(*, rng: np.random.Generator, rate: float, seconds: float, distance: float, border: float) -> np.ndarray:
    """Draw Poisson-like times in s: `rate` per minute, at least `distance` apart and `border` from both ends."""
    room = max(seconds - 2 * border, 0)
    count = min(rng.poisson(rate * seconds / 60), int(room / distance))
    return border + np.sort(rng.uniform(0, room - count * distance, count)) + distance * np.arange(count)


class _Block(NamedTuple):
    """What is drawn of a block, before its transients get their height.

    Attributes
    ----------
    background : float32 array (n_channels, n_times)
        In tesla.
    courses : array (n_sources, n_times)
        Of the sources of all foci.
    distractor_fields : array (n_channels, n_distractors)
    distractor_courses : array (n_distractors, n_times)
    peaks : int array (n_spikes,)
        Samples.
    stds : array (n_spikes,)
        Std over channels of each spike's field at its peak.
    foci : list of int
        Number of each spike's focus, from 1 on.
    """

    background: np.ndarray
    courses: np.ndarray
    distractor_fields: np.ndarray
    distractor_courses: np.ndarray
    peaks: np.ndarray
    stds: np.ndarray
    foci: list[int]


def record_patient(
    scene: Scene, settings: PatientSettings, rng: np.random.Generator
) -> tuple[dict[str, list], pd.DataFrame]:
    """Make the recordings of a patient from a scene; the results are those of `simulate_patient`.

    The truth does not say where the foci are.
    """
    blocks = [_draw_block(scene, settings, rng) for _ in range(settings.n_blocks)]
    background_std = np.sqrt(np.mean([block.background.var() for block in blocks]))
    stds = np.concatenate([block.stds for block in blocks])
    gain = settings.snr * background_std / np.mean(stds) if len(stds) else 0

    subject, spike_fields = settings.subject, _spike_fields(scene)
    data = {'meg': [], 'events': [], 'reannot': [], 'file': []}
    rows = []
    for number, block in enumerate(blocks):
        field = gain * spike_fields @ block.courses
        distractor_field = settings.snr * background_std * block.distractor_fields @ block.distractor_courses
        data['meg'].append((block.background + field + distractor_field).astype(np.float32))
        data['events'].append(_annotate(block, settings, rng))
        data['reannot'].append(np.array([], dtype=np.int64))
        data['file'].append(f'sim_{subject:03d}_block_{number:02d}.ds')
        amplitudes = np.abs(field[:, block.peaks]).max(axis=0, initial=0)
        rows += [(subject, number, *spike) for spike in zip(block.peaks, amplitudes, block.foci, strict=True)]
    integers = dict.fromkeys(['subject', 'block', 'sample', 'focus'], np.int64)
    types = dict.fromkeys(['subject', 'block', 'sample', 'amplitude', 'focus'], np.float64) | integers
    return data, pd.DataFrame(rows, columns=list(types)).astype(types)


def _spike_fields(scene):
    """Fields (n_channels, n_sources) of the sources of all foci."""
    return np.concatenate([fields for fields, _ in scene.foci], axis=1)


def _draw_block(scene, settings, rng):
    """Draw the background, the spikes and the other transients of a block."""
    sfreq, spike_fields = settings.sfreq, _spike_fields(scene)
    rows_of = np.split(np.arange(spike_fields.shape[1]), np.cumsum([fields.shape[1] for fields, _ in scene.foci])[:-1])
    n_times = round(settings.block_seconds * sfreq)
    times = np.arange(n_times) / sfreq
    spacing = {
        'rng': rng,
        'seconds': settings.block_seconds,
        'distance': SPIKE_DISTANCE + 2 * PEAK_SEARCH,
        'border': BORDER + PEAK_SEARCH,
    }
    background = band_pass(scene.background(n_times), sfreq).astype(np.float32)

    # Blocks differ in their number of spikes: the rate of each is drawn around `spike_rate`.
    starts = draw_times(rate=settings.spike_rate * rng.gamma(4, 1 / 4), **spacing)
    sources, foci = np.zeros((len(spike_fields.T), n_times)), []
    for start in starts:
        focus = rng.integers(len(scene.foci))
        foci.append(focus + 1)
        sources[rows_of[focus]] += scene.foci[focus][1](times - start)
    transients = [scene.distractor(times - start) for start in draw_times(rate=settings.distractor_rate, **spacing)]
    courses = np.concatenate([sources, *(course[None] for _, course in transients)])
    sources, waves = np.split(band_pass(courses, sfreq), [len(sources)])
    fields = np.reshape([field for field, _ in transients], (-1, len(spike_fields))).T

    # Other sources, peaks and waves of a spike, and the filter, move the peak: look for it in the filtered field.
    reach = np.arange(2 * round(PEAK_SEARCH * sfreq) + 1) - round(PEAK_SEARCH * sfreq)
    near = np.round(starts * sfreq).astype(np.int64)[:, None] + reach
    std = np.tensordot(spike_fields, sources[:, near], axes=1).std(axis=0)
    peaks = near[np.arange(len(near)), std.argmax(axis=1)]
    return _Block(background, sources, fields, waves, peaks, std.max(axis=1), foci)


def _annotate(block, settings, rng):
    """Samples at which an annotator who misses spikes, and errs in time, marks those of a block."""
    noticed = block.peaks[rng.random(len(block.peaks)) >= settings.annotation_missed]
    errors = rng.normal(0, settings.annotation_jitter * settings.sfreq, len(noticed))
    annotated = np.round(noticed + errors).astype(np.int64)
    return np.unique(annotated[(annotated >= 0) & (annotated < block.background.shape[1])])
