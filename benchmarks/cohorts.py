"""Simulated cohorts to try detectors on: patients of three simulations, their windows, annotations and true spikes.

What is found on one simulation may be a property of that simulation. So every third patient comes from
simulate_data_raw.py, and the others from two more, with other fields, other background and other spikes.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from classifiers.subwindows import SubwindowShape, subwindow_shape
from data_processing import cut_block, time_labels
from recordings.channels import N_CHANNELS, ctf275_info
from recordings.scaling import scale_window
from recordings.simulation import BORDER, band_pass, draw_times, hann, simulate_patient
from recordings.window_settings import WindowSettings
from timeseries_dataset import PARTS
from utils import SettingError

SIMULATIONS = ('first', 'second', 'third')
SPIKE_RATE = 5.0  # per minute: 2 to 3 % of the sub-windows hold a part of a spike

# The second and the third simulation.
N_SOURCES = 60
SPIKE_DISTANCE = 0.6  # s, least distance between two spikes
BACKGROUND_STD = 3e-13  # tesla


class CohortSize(NamedTuple):
    """How many patients train, validate and test, and what is recorded of each."""

    train: int
    validation: int
    test: int
    n_blocks: int
    block_seconds: float


class Part(NamedTuple):
    """The windows of some patients of a cohort, in recording order.

    Attributes
    ----------
    windows : float32 array (n, 274, n_times)
    signals : list of float32 arrays (274, n_samples)
        The blocks, scaled as the windows are.
    annotated, truth : int arrays (n * n_subwindows,)
        Whether a sub-window holds a part of a spike: to the annotation, in fact.
    block, simulation : int arrays (n * n_subwindows,)
        `simulation` counts `SIMULATIONS`.
    gain : float32 array (n,)
        The std of a window's block over that of the patient: windows times this are scaled by the patient.
    places : DataFrame
        subject, block, timing, field and peak of every sub-window, see `evaluation.merge_events`.
    spikes : DataFrame
        subject, block and sample of the true spikes that lie in a sub-window.
    """

    windows: np.ndarray
    signals: list[np.ndarray]
    annotated: np.ndarray
    truth: np.ndarray
    block: np.ndarray
    simulation: np.ndarray
    gain: np.ndarray
    places: pd.DataFrame
    spikes: pd.DataFrame


class Cohort(NamedTuple):
    """Three sets of patients, and how their windows are cut."""

    train: Part
    validation: Part
    test: Part
    sub: SubwindowShape
    margin: int


def simulate_cohort(snr: float, seed: int, size: CohortSize, settings: SimpleNamespace) -> Cohort:
    """Simulate patients who differ in rate and strength of their spikes, in other transients and in annotation.

    Raises
    ------
    SettingError
        Sub-windows that do not fill the inner part of a window.
    """
    made_with = dataclasses.replace(
        WindowSettings.of_run(settings, normal_only=False), standardize='block', reject_artefacts=False
    )
    shape = made_with.shape
    sub = subwindow_shape(shape.window_length, shape.border, round(settings.subwindow_size * settings.sfreq))
    if sub.n_subwindows * sub.subwindow_length != shape.hop:
        raise SettingError(f'subwindow_size = {settings.subwindow_size} leaves a rest of the inner part of a window')
    made, subject = [], 0
    for part in PARTS:
        rows = {name: [] for name in Part._fields}
        for _ in range(getattr(size, part)):
            simulation, subject = subject % len(SIMULATIONS), subject + 1
            rng = np.random.default_rng([seed, subject, 1])
            options = {
                'subject': subject,
                'n_blocks': size.n_blocks,
                'block_seconds': size.block_seconds,
                'spike_rate': SPIKE_RATE * rng.lognormal(0, 0.2),
                'snr': snr * rng.lognormal(0, 0.25),
                'distractor_rate': rng.uniform(1, 7),
                'annotation_jitter': rng.uniform(0.005, 0.025),
                'annotation_missed': rng.uniform(0.05, 0.3),
                'sfreq': settings.sfreq,
                'seed': seed,
            }
            if simulation == 0:
                data, truth = simulate_patient(**options, spike_free=False)
            else:
                data, truth = other_patient(**options, rhythmic=simulation == 2)
            spread = np.sqrt(np.mean([signal.var() for signal in data['meg']]))
            for block, (signal, events) in enumerate(zip(data['meg'], data['events'], strict=True)):
                cut, _ = cut_block(signal, events, made_with)
                windows = cut.windows
                n = len(windows) * sub.n_subwindows
                samples = truth.loc[truth['block'] == block, 'sample'].to_numpy()
                samples = samples[(samples >= sub.border) & (samples < sub.border + n * sub.subwindow_length)]
                for name, marked in (
                    ('annotated', cut.labels_t),
                    ('truth', time_labels(len(windows), samples, shape)),
                ):
                    inner = marked[:, sub.border : sub.border + sub.n_subwindows * sub.subwindow_length]
                    rows[name].append(inner.reshape(-1, sub.subwindow_length).any(axis=1).astype(int))
                first = sub.border + sub.subwindow_length * np.arange(n)
                field = in_subwindows(windows, sub).std(axis=1)
                place = {'timing': first + sub.subwindow_length / 2, 'field': field.max(axis=1)}
                place['peak'] = first + field.argmax(axis=1)
                rows['places'].append(pd.DataFrame({'subject': subject, 'block': block} | place))
                rows['spikes'].append(pd.DataFrame({'subject': subject, 'block': block, 'sample': samples}))
                rows['windows'].append(windows)
                rows['signals'].append(((signal - signal.mean()) / signal.std()).astype(np.float32))
                rows['block'].append(np.full(n, subject * size.n_blocks + block))
                rows['simulation'].append(np.full(n, simulation))
                rows['gain'].append(np.full(len(windows), signal.std() / spread, dtype=np.float32))
        join = {'signals': list} | dict.fromkeys(('places', 'spikes'), functools.partial(pd.concat, ignore_index=True))
        made.append(Part(**{name: join.get(name, np.concatenate)(values) for name, values in rows.items()}))
    return Cohort(*made, sub, shape.half_pulse)


def rescaled(cohort: Cohort, scaling: str) -> Cohort:
    """The cohort with windows scaled otherwise than by their block; `places` stay.

    By themselves ('window'), or by their patient ('patient': the std of all blocks about their means).
    """

    def of(part):
        if scaling == 'window':
            return part._replace(windows=np.stack([scale_window(window).astype(np.float32) for window in part.windows]))
        return part._replace(windows=part.windows * part.gain[:, None, None])

    return cohort._replace(**{name: of(getattr(cohort, name)) for name in PARTS})


def in_subwindows(windows: np.ndarray, sub: SubwindowShape) -> np.ndarray:
    """(n * n_subwindows, 274, n_times): the sub-windows of windows (n, 274, times) as they are."""
    inner = windows[..., sub.border : sub.border + sub.n_subwindows * sub.subwindow_length]
    pieces = inner.reshape(len(inner), N_CHANNELS, sub.n_subwindows, sub.subwindow_length)
    return pieces.swapaxes(1, 2).reshape(-1, N_CHANNELS, sub.subwindow_length)


def hidden_stretches(windows: np.ndarray, cohort: Cohort) -> np.ndarray:
    """The stretches of windows (n, 274, n_times) that masking would hide: (n, 274, n_subwindows, n_hidden)."""
    starts = [
        cohort.sub.border + k * cohort.sub.subwindow_length - cohort.margin for k in range(cohort.sub.n_subwindows)
    ]
    n_hidden = cohort.sub.subwindow_length + 2 * cohort.margin
    return np.stack([windows[..., start : start + n_hidden] for start in starts], axis=2)


# ------------------------------------------------------------------------- the second and the third simulation
def other_patient(
    *, subject, n_blocks, block_seconds, spike_rate, snr, distractor_rate, annotation_jitter, annotation_missed,
    sfreq, seed, rhythmic,
):  # fmt: skip
    """Simulate a patient; arguments and result are those of `simulate_data_raw.simulate_patient`, but for `rhythmic`.

    Fields are two blobs of opposite sign on the helmet, with sensor noise of a strength of its own per channel.

    The second simulation: the background is a sum of resonances between 3 and 30 Hz, which wax and wane, over random
    walks. Spikes have one to three phases, some run in pairs, half of the foci have no slow wave. Other transients are
    damped oscillations and jumps of a single channel.

    The third (`rhythmic`): few strong rhythms, a third of them near 10 Hz, so regular that the context predicts much
    of them, and a heart that beats in every channel. Spikes rise steeply and fall slowly, into a slow wave of either
    sign. Other transients are slow, like blinks.
    """
    rng = np.random.default_rng([seed, subject, 2])
    places = np.array([channel['loc'][:3] for channel in ctf275_info(sfreq)['chs']])
    n_times = round(block_seconds * sfreq)
    times = np.arange(n_times) / sfreq
    fields = draw_fields(rng, places, N_SOURCES)
    strength = rng.lognormal(0, 1.0 if rhythmic else 0.6, N_SOURCES)
    frequency = rng.uniform(3, 30, N_SOURCES)
    damping = rng.uniform(0.9, 0.985, N_SOURCES)
    walks = 1.0
    if rhythmic:
        frequency[: N_SOURCES // 3] = rng.normal(10, 0.8, N_SOURCES // 3)
        damping, walks = rng.uniform(0.985, 0.998, N_SOURCES), 0.3
    sensor = rng.uniform(0.1, 0.3) * rng.lognormal(0, 0.3, (len(places), 1))
    foci = [(draw_fields(rng, places, 1)[:, 0], draw_morphology(rng, rhythmic)) for _ in range(rng.integers(1, 4))]
    heart = draw_fields(rng, places, 1) * rng.uniform(0.2, 0.5)
    place = {'rng': rng, 'seconds': block_seconds, 'distance': SPIKE_DISTANCE, 'border': BORDER}

    data, rows = {'meg': [], 'events': [], 'reannot': [], 'file': []}, []
    for block in range(n_blocks):
        background = fields @ (strength[:, None] * resonances(rng, frequency / sfreq, damping, walks, n_times))
        background /= background.std()
        if rhythmic:
            background += heart * heartbeats(rng, times)
        background = band_pass(background + sensor * rng.standard_normal(background.shape), sfreq)
        courses = np.zeros((len(foci), n_times))
        starts = draw_times(rate=spike_rate * rng.gamma(4, 1 / 4), **place)
        for start in starts:
            focus = rng.integers(len(foci))
            courses[focus] += rng.lognormal(0, 0.3) * spike(foci[focus][1], times - start)
        spikes = np.stack([field for field, _ in foci], axis=1) @ band_pass(courses, sfreq)
        near = np.round(starts * sfreq).astype(np.int64)[:, None] + np.arange(-8, 9)
        power = spikes.std(axis=0)[near]
        peaks = near[np.arange(len(near)), power.argmax(axis=1)]
        gain = snr * background.std() / power.max(axis=1).mean() if len(peaks) else 0.0
        signal = background + gain * spikes
        for start in draw_times(rate=distractor_rate, **place):
            height = snr * background.std() * rng.lognormal(0, 0.4)
            field, course = transient(rng, places, times - start, rhythmic)
            signal += height * np.outer(field, band_pass(course[None], sfreq))
        seen = peaks[rng.random(len(peaks)) >= annotation_missed]
        annotated = np.round(seen + rng.normal(0, annotation_jitter * sfreq, len(seen))).astype(np.int64)
        data['meg'].append((BACKGROUND_STD * signal).astype(np.float32))
        data['events'].append(np.unique(annotated.clip(0, n_times - 1)))
        data['reannot'].append(np.array([], dtype=np.int64))
        data['file'].append(f'other_{subject:03d}_block_{block:02d}.ds')
        rows += [(subject, block, peak, BACKGROUND_STD * gain * np.abs(spikes[:, peak]).max()) for peak in peaks]
    return data, pd.DataFrame(rows, columns=['subject', 'block', 'sample', 'amplitude'])


def draw_fields(rng, places, n_fields):
    """Fields (n_channels, n_fields) of std 1 over channels: two blobs of opposite sign a few centimetres apart."""
    fields = []
    for _ in range(n_fields):
        middle = places[rng.integers(len(places))]
        apart = rng.normal(size=3)
        apart *= rng.uniform(0.02, 0.04) / np.linalg.norm(apart)
        blobs = [np.exp(-np.square(places - middle - sign * apart).sum(axis=1) / 2 / 0.035**2) for sign in (1, -1)]
        fields.append(blobs[0] - blobs[1])
    return np.stack(fields, axis=1) / np.std(fields, axis=1)


def resonances(rng, frequency, damping, walks, n_times):
    """Time courses (n_sources, n_times) of std 1: resonances, and a slow random walk of about `walks` of their std."""
    courses = []
    for f, radius in zip(frequency, damping, strict=True):
        ringing = lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * f), radius**2], rng.standard_normal(n_times))
        walk = lfilter([1], [1, -0.98], rng.standard_normal(n_times))
        knots = np.arange(0, n_times + 600, 600)
        waxing = np.interp(np.arange(n_times), knots, rng.lognormal(0, 0.6, len(knots)))
        course = ringing / ringing.std() * waxing + walks * rng.uniform(0.5, 1.5) * walk / walk.std()
        courses.append(course / course.std())
    return np.array(courses)


def heartbeats(rng, times):
    """A time course of height 1 in every beat, 60 to 80 times a minute, not quite regular."""
    intervals = rng.uniform(0.75, 1.0) * rng.normal(1, 0.03, round(2 * times[-1]) + 2)
    beats = intervals.cumsum()
    course = np.zeros_like(times)
    for beat in beats[beats < times[-1]]:
        course += hann(times - beat, 0.06) - 0.3 * hann(times - beat - 0.04, 0.05)
        course += 0.25 * hann(times - beat - 0.25, 0.15)
    return course


def draw_morphology(rng, rhythmic):
    """How the spikes of a focus look.

    Duration (s), number of phases, whether in pairs, height of the slow wave; and which part of the duration is the
    rise, where the spike is not as steep on either side.
    """
    if rhythmic:
        slow = rng.choice([-1, 1]) * rng.uniform(0.2, 0.7)
        return {'duration': rng.uniform(0.06, 0.1), 'phases': 1, 'pair': False, 'slow': slow, 'rise': 0.3}
    return {
        'duration': rng.uniform(0.04, 0.09),
        'phases': rng.integers(1, 4),
        'pair': rng.random() < 0.3,
        'slow': rng.choice([0.0, rng.uniform(0.3, 0.8)]),
        'rise': 0.5,
    }


def spike(morphology, t):
    """A spike around t = 0 (s), of height 1."""
    width, rise = morphology['duration'], morphology['rise']
    wave = np.where(t < 0, hann(t, 2 * rise * width), hann(t, 2 * (1 - rise) * width))
    for phase in range(1, morphology['phases']):
        wave = wave - 0.6 / phase * hann(t - (1.5 - phase) * width, width)
    if morphology['pair']:
        wave = wave + 0.7 * hann(t - 1.8 * width, width)
    return wave - morphology['slow'] * hann(t - 0.2 - width, 0.25)


def transient(rng, places, t, rhythmic):
    """Field (n_channels,) and time course of a transient that is no spike.

    A slow wave; or a damped oscillation, or a jump of one channel.
    """
    if rhythmic:
        return draw_fields(rng, places, 1)[:, 0], hann(t, rng.uniform(0.2, 0.4))
    if rng.random() < 0.7:
        decay = np.where(t > 0, np.exp(-t.clip(0) / rng.uniform(0.08, 0.2)), 0)
        return draw_fields(rng, places, 1)[:, 0], decay * np.sin(2 * np.pi * rng.uniform(5, 15) * t)
    field = np.zeros(len(places))
    field[rng.integers(len(places))] = 8.0
    return field, ((t > 0) & (t < 0.5)).astype(float)
