"""Waveforms of simulated epileptic spikes, and of transients that resemble them.

References
----------
.. [1] Kane et al., "A revised glossary of terms most commonly used by clinical electroencephalographers and updated
   proposal for the report format of the EEG findings", Clinical Neurophysiology Practice 2, 2017. Durations of spikes
   and sharp waves, polyspikes, slow waves; vertex waves, mu, wicket spikes, small sharp spikes, lambda waves.
.. [2] Sutherling and Barth, "Neocortical propagation in temporal spike foci on magnetoencephalography and
   electroencephalography", Annals of Neurology 25, 1989. Spikes spread within tens of milliseconds.
.. [3] Keren, Yuval-Greenberg and Deouell, "Saccadic spike potentials in gamma-band EEG", NeuroImage 49, 2010. The
   contraction of the eye muscles at the start of a saccade: 20 to 40 ms.
.. [4] Rayner, "Eye movements in reading and information processing", Psychological Bulletin 124, 1998. Saccades last
   20 to 60 ms, fixations 0.2 to 0.6 s.
"""

from typing import Any

import numpy as np

# Transients that are no spikes. Each comes from its own place: see `distractor_sources`.
DISTRACTORS = ('vertex', 'mu', 'wicket', 'small sharp', 'lambda', 'saccade', 'twitch')


def hann(t: np.ndarray, width: float) -> np.ndarray:
    """A smooth bump of height 1 and total `width`, centred on t = 0, both in seconds; of the shape of `t`."""
    return np.where(np.abs(t) < width / 2, np.cos(np.pi * t / width) ** 2, 0)


def draw_morphology(rng: np.random.Generator) -> dict[str, Any]:
    """Draw how the spikes of a focus look, from the whole range of the clinic; heights are relative to the peak's.

    A spike lasts 20 to 70 ms and a sharp wave 70 to 200 ms, from its start to its end. Both come alone, in pairs or as
    polyspikes, with a slow wave of 150 to 400 ms or without [1]_. In recordings, a wave of opposite sign, almost as
    high as the peak, follows after 75 to 90 ms; here the range is wider, so that two recordings do not decide it.
    """
    duration = rng.choice([rng.uniform(0.02, 0.07), rng.uniform(0.07, 0.2)])
    interval = max(rng.uniform(0.05, 0.1), 0.8 * duration)
    return {
        'duration': duration,  # s
        'rise': rng.uniform(0.3, 0.6),  # share of the duration before the peak
        'opposite': rng.uniform(0.2, 1.0),  # height of the wave of opposite sign
        'opposite_delay': max(rng.uniform(0.05, 0.12), 0.6 * duration),  # s from peak to peak
        'opposite_first': rng.random() < 0.2,  # it comes before the peak
        'slow': rng.choice([0.0, rng.choice([-1, 1]) * rng.uniform(0.3, 1.0)], p=[0.4, 0.6]),
        'slow_duration': rng.uniform(0.15, 0.4),  # s
        # At most, in one spike; what an expert marks as one does not last much longer than that.
        'peaks': min(rng.choice([1, 2, rng.integers(3, 6)], p=[0.6, 0.2, 0.2]), 1 + int(0.25 / interval)),
        'interval': interval,  # s between them
    }


def spike_course(rng: np.random.Generator, morphology: dict[str, Any], t: np.ndarray) -> np.ndarray:
    """Draw a spike of a focus, of the shape of `t` in seconds; its first peak, of height 1, is at t = 0.

    Spikes of a focus differ somewhat in durations (12 %) and heights (20 %), and in their number of peaks.
    """
    duration, delay, slow_duration = (
        morphology[name] * rng.lognormal(0, 0.12) for name in ('duration', 'opposite_delay', 'slow_duration')
    )
    opposite, slow = (morphology[name] * rng.lognormal(0, 0.2) for name in ('opposite', 'slow'))
    n_peaks = rng.integers(1, morphology['peaks'], endpoint=True)
    heights = [1, *rng.uniform(0.5, 0.9, n_peaks - 1)]
    last = morphology['interval'] * (n_peaks - 1)
    # A bell of this std is a duration wide where it leaves the baseline, and half a duration at half its height.
    std = duration / 2.35 * np.where(t < 0, morphology['rise'], 1 - morphology['rise'])
    course = np.exp(-0.5 * (t / std) ** 2)
    for number, height in enumerate(heights[1:], start=1):
        course += height * np.exp(-0.5 * ((t - morphology['interval'] * number) / (duration / 4.7)) ** 2)
    side = t + delay if morphology['opposite_first'] else t - last - delay
    course -= opposite * hann(side, 1.4 * delay)
    return course + slow * hann(t - last - delay - slow_duration / 2, slow_duration)


def distractor_sources(rng: np.random.Generator, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Draw where in a patient's head transients come from that are no spikes.

    Parameters
    ----------
    rng : Generator
    positions : array (n_dipoles, 3)
        Of cortical dipoles, in metres from the centre of the head: x to the right, y to the front, z up.

    Returns
    -------
    dict of int arrays
        One or two dipoles for each of the cortical `DISTRACTORS`: on the vertex, above either hand's area, in a
        temporal lobe, at the back. A patient's transients of a name always come from these.
    """
    regions = {
        'vertex': [(-0.01, 0, 0.075), (0.01, 0, 0.075)],
        'mu': [(rng.choice([-0.045, 0.045]), -0.01, 0.06)],
        'wicket': [(rng.choice([-0.07, 0.07]), 0.01, 0)],
        'small sharp': [(-0.065, 0.02, -0.01), (0.065, 0.02, -0.01)],
        'lambda': [(0, -0.075, 0.01)],
    }
    return {
        name: np.array([rng.choice(np.linalg.norm(positions - centre, axis=1).argsort()[:10]) for centre in centres])
        for name, centres in regions.items()
    }


def distractor_course(rng: np.random.Generator, name: str, t: np.ndarray) -> np.ndarray:
    """Draw a transient that is no spike, around t = 0 s; a spike of the same patient has a height of about 1.

    Parameters
    ----------
    rng : Generator
    name : str
        One of `DISTRACTORS`. 'vertex': a sharp transient of 100 to 200 ms and an after-wave. 'mu', 'wicket': arches at
        7 to 12 Hz, sharp on one side, for 0.3 to 1.5 s. 'small sharp': two phases in 20 to 50 ms, low. 'lambda': a
        broad wave at the back [1]_. 'saccade': the eye muscles' twitch [3]_, the eyes' turn and their return [4]_.
        'twitch': single fibres of a temporal muscle, 30 to 150 ms.
    t : array
        Seconds.
    """
    if name == 'vertex':
        width = rng.uniform(0.1, 0.2)
        return hann(t, width) - rng.uniform(0.3, 0.7) * hann(t - 0.8 * width, 1.2 * width)
    if name in ('mu', 'wicket'):
        phase = 2 * np.pi * rng.uniform(7, 12) * t
        return hann(t, rng.uniform(0.3, 1.5)) * (np.cos(phase) + 0.4 * np.cos(2 * phase)) / 1.4
    if name == 'small sharp':
        width = rng.uniform(0.02, 0.05)
        return 0.5 * (hann(t, width) - rng.uniform(0.3, 0.8) * hann(t - 0.7 * width, 1.2 * width))
    if name == 'lambda':
        return 0.7 * hann(t, rng.uniform(0.1, 0.25))
    if name == 'saccade':
        turn, fixation = rng.uniform(0.02, 0.06), rng.uniform(0.2, 0.6)
        eyes = np.clip(t / turn, 0, 1) - np.clip((t - fixation) / turn, 0, 1)
        return eyes + rng.uniform(0.2, 0.6) * (hann(t, 0.03) - hann(t - fixation, 0.03))
    return hann(t, rng.uniform(0.03, 0.15)) * np.cos(2 * np.pi * (rng.uniform(20, 45) * t + rng.random()))
