"""The two kinds of simulated patients that share nothing with `recordings.simulation` but how blocks are recorded.

Fields are two blobs of opposite sign on the helmet, with sensor noise of a strength of its own per channel. Durations
and heights are those of the clinic, as `recordings.transients` has them with sources; the waveforms are other ones.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from scipy.signal import lfilter
from threadpoolctl import threadpool_limits

from recordings.channels import ctf275_info
from recordings.scenes import PatientSettings, Scene, record_patient
from recordings.transients import hann

N_SOURCES = 60
BACKGROUND_STD = 3e-13  # tesla


@threadpool_limits.wrap(limits=1)
def other_patient(settings: PatientSettings, rhythmic: bool) -> tuple[dict[str, list], pd.DataFrame]:
    """Simulate a patient; the results are those of `recordings.simulation.simulate_patient`.

    The kind 'resonances': the background is a sum of resonances between 3 and 30 Hz, which wax and wane, over random
    walks. Spikes have one to three phases. Other transients are damped oscillations, low sharp spikes and jumps of a
    single channel.

    The kind 'rhythms' (`rhythmic`): few strong rhythms, a third of them near 10 Hz, so regular that the context
    predicts much of them, and a heart that beats in every channel. Spikes rise steeply and fall slowly. Other
    transients are slow, like blinks, or bursts of arches, or sharp with an after-wave, from one place.
    """
    rng, sfreq = np.random.default_rng([settings.seed, settings.subject, 2]), settings.sfreq
    places = np.array([channel['loc'][:3] for channel in ctf275_info(sfreq)['chs']])
    fields = draw_fields(rng, places, N_SOURCES)
    strength = rng.lognormal(0, 1.0 if rhythmic else 0.6, N_SOURCES)
    frequency = rng.uniform(3, 30, N_SOURCES)
    damping = rng.uniform(0.9, 0.985, N_SOURCES)
    walks = 1.0
    if rhythmic:
        frequency[: N_SOURCES // 3] = rng.normal(10, 0.8, N_SOURCES // 3)
        damping, walks = rng.uniform(0.985, 0.998, N_SOURCES), 0.3
    sensor = rng.uniform(0.1, 0.3) * rng.lognormal(0, 0.3, (len(places), 1))
    heart = draw_fields(rng, places, 1) * rng.uniform(0.2, 1.2)
    sources = draw_fields(rng, places, 3)  # where most of the other transients come from

    def background(n_times):
        signal = fields @ (strength[:, None] * resonances(rng, frequency / sfreq, damping, walks, n_times))
        signal /= signal.std()
        if rhythmic:
            signal += heart * heartbeats(rng, np.arange(n_times) / sfreq)
        return BACKGROUND_STD * (signal + sensor * rng.standard_normal(signal.shape))

    def distractor(times):
        field = draw_fields(rng, places, 1)[:, 0] if rng.random() < 0.3 else sources[:, rng.integers(3)]
        field, course = transient(rng, field, times, rhythmic)
        return field, rng.lognormal(0, 0.4) * course

    def focus_wave(morphology):
        return lambda times: spike(rng, morphology, times)

    foci = [
        (draw_fields(rng, places, 2), focus_wave(draw_morphology(rng, rhythmic))) for _ in range(rng.integers(1, 4))
    ]
    return record_patient(Scene(background, foci, distractor), settings, rng)


def draw_fields(rng, places, n_fields):
    """Fields (n_channels, n_fields) of std 1 over channels: two blobs of opposite sign, 2 to 8 cm apart.

    A deep source has wide blobs far apart.
    """
    fields = []
    for _ in range(n_fields):
        middle = places[rng.integers(len(places))]
        apart = rng.normal(size=3)
        half, width = rng.uniform(0.01, 0.04), rng.uniform(0.025, 0.05)
        apart *= half / np.linalg.norm(apart)
        blobs = [np.exp(-np.square(places - middle - sign * apart).sum(axis=1) / 2 / width**2) for sign in (1, -1)]
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
    """How the spikes of a focus look: times in s, heights relative to the first peak's."""
    slow_height, slow_sign = rng.uniform(0.2, 0.9), rng.choice([-1, 1])
    width = rng.uniform(0.05, 0.2) if rhythmic else rng.choice([rng.uniform(0.02, 0.07), rng.uniform(0.07, 0.2)])
    interval = max(1.2 * width, 0.06)
    return {
        'width': width,
        'rise': rng.uniform(0.2, 0.35) if rhythmic else 0.5,  # share of the width before the peak
        'phases': 2 if rhythmic else rng.integers(1, 4),  # of alternating sign
        'members': min(rng.choice([1, 2, 4], p=[0.6, 0.25, 0.15]), 1 + int(0.25 / interval)),  # of a run, at most
        'interval': interval,
        'slow': rng.choice([0.0, slow_sign * slow_height]),
        'slow_width': rng.uniform(0.15, 0.4),
        'lag': rng.uniform(0.01, 0.04),  # of the second source
        'spread': rng.uniform(0.2, 0.8),  # its height
    }


def spike(rng, morphology, t):
    """A spike of a focus in two sources, (2, n_times); the first peak of the first at 0 s."""
    width, slow_width = (morphology[name] * rng.lognormal(0, 0.15) for name in ('width', 'slow_width'))
    rise, t = morphology['rise'], np.stack([t, t - morphology['lag']])
    n_members, wave, start = rng.integers(1, morphology['members'], endpoint=True), 0.0, 0.0
    for number in range(n_members):
        start = number * morphology['interval']
        rest = t - start
        peak = np.where(rest < 0, hann(rest, 2 * rise * width), hann(rest, 2 * (1 - rise) * width))
        wave = wave + 0.85**number * peak
    for phase in range(1, morphology['phases']):
        delay = phase * max(0.8 * width, 0.04)
        wave = wave + 0.7**phase * (-1) ** phase * hann(t - start - delay, 1.3 * delay / phase)
    wave = wave + morphology['slow'] * hann(t - start - width - slow_width / 2, slow_width)
    return rng.lognormal(0, 0.45) * wave * [[1], [morphology['spread']]]


def transient(rng, field, t, rhythmic):
    """Field (n_channels,) and time course of a transient that is no spike, see `other_patient`."""
    kind = rng.random()
    if rhythmic:
        if kind < 0.4:
            return field, hann(t, rng.uniform(0.2, 0.4))
        if kind < 0.7:
            phase = np.pi * rng.uniform(7, 12) * t
            return field, 1.5 * hann(t, rng.uniform(0.4, 1.5)) * (np.abs(np.cos(phase)) - 2 / np.pi)
        width = rng.uniform(0.08, 0.15)
        return field, hann(t, width) - 0.5 * hann(t - width, 2 * width)
    if kind < 0.5:
        decay = np.where(t > 0, np.exp(-t.clip(0) / rng.uniform(0.08, 0.2)), 0)
        return field, decay * np.sin(2 * np.pi * rng.uniform(5, 15) * t)
    if kind < 0.8:
        width = rng.uniform(0.02, 0.05)
        return field, 0.5 * (hann(t, width) - rng.uniform(0.4, 1) * hann(t - width, width))
    jump = np.zeros(len(field))
    jump[rng.integers(len(field))] = 8.0
    return jump, ((t > 0) & (t < 0.5)).astype(float)
