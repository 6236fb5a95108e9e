"""Simulated patients with epilepsy, recorded with a 275-channel CTF MEG.

A patient is a `scenes.Scene`: sources in a spherical head, their rhythms, foci and other transients.
"""

import functools
from collections.abc import Callable
from typing import Any

import mne
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from recordings.channels import ctf275_info, sphere_centre
from recordings.scenes import PatientSettings, Scene, draw_times, record_patient
from recordings.transients import (
    DISTRACTORS,
    distractor_course,
    distractor_sources,
    draw_morphology,
    hann,
    spike_course,
)

N_CORTEX = 300  # cortical dipoles of the background
N_FOCI = 200  # dipoles that may be the source of spikes


def simulate_head(*, rng: np.random.Generator, info: mne.Info) -> dict[str, np.ndarray]:
    """Draw the sources in a patient's head and compute their fields in a spherical conductor.

    Returns
    -------
    dict of arrays
        `positions` of the cortical dipoles, (N_CORTEX, 3), and `foci_positions`, (N_FOCI, 3), of sources of spikes, in
        metres from the centre of the head: superficial ones and, down to 3.5 cm from the centre, mesial ones. The
        fields of `cortex`, `foci`, `eyes`, `heart`, `left_muscle`, `right_muscle`, each (n_channels, n_dipoles), with
        a std of 1 over channels. And the `centre` of the head, (3,), in metres in the coordinates of the helmet.
    """
    # The head lies a few millimetres off the centre of the helmet.
    centre = sphere_centre(info) + rng.normal(0, 0.003, 3)

    upwards = unit(rng.normal(size=(8 * (N_CORTEX + N_FOCI), 3)))
    upwards = upwards[upwards[:, 2] > -0.2][: N_CORTEX + N_FOCI]
    muscle = rng.normal([0.07, 0.01, -0.04], [0.003, 0.025, 0.01], (10, 3))
    sources = {
        'cortex': upwards[:N_CORTEX] * rng.uniform(0.06, 0.08, (N_CORTEX, 1)),
        'eyes': np.array([[-0.03, 0.075, -0.025], [0.03, 0.075, -0.025]]),
        'heart': np.array([[0, -0.02, -0.08]]),  # as low as the sphere allows
        'left_muscle': muscle * [-1, 1, 1],
        'right_muscle': muscle,
        'foci': upwards[N_CORTEX:] * rng.uniform(0.035, 0.08, (N_FOCI, 1)),
    }
    positions = np.concatenate(list(sources.values()))
    orientations = rng.normal(size=positions.shape)
    orientations[N_CORTEX : N_CORTEX + 2] = [1, 0, 0]  # both eyes alike
    # A radial dipole in a sphere has no field: keep the tangential part.
    radial = unit(positions)
    orientations = unit(orientations - (orientations * radial).sum(axis=1, keepdims=True) * radial)

    source_space = mne.setup_volume_source_space(
        pos={'rr': centre + positions, 'nn': orientations}, sphere_units='m', verbose='error'
    )
    sphere = mne.make_sphere_model(r0=centre, head_radius=None, verbose='error')
    forward = mne.make_forward_solution(info, trans=None, src=source_space, bem=sphere, eeg=False, verbose='error')
    leadfield = forward['sol']['data'].reshape(len(info['chs']), len(positions), 3)
    fields = np.einsum('cdx,dx->cd', leadfield, orientations)
    fields /= fields.std(axis=0)
    ends = np.cumsum([len(dipoles) for dipoles in sources.values()])[:-1]
    fields_of = dict(zip(sources, np.split(fields, ends, axis=1), strict=True))
    return {**fields_of, 'positions': sources['cortex'], 'foci_positions': sources['foci'], 'centre': centre}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors, the rows of an array (n_vectors, n_dims), to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def coloured_noise(
    *,
    rng: np.random.Generator,
    n_rows: int,
    n_times: int,
    sfreq: float,
    gain: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Draw Gaussian noise, (n_rows, n_times), of variance 1, with amplitude spectrum gain(frequencies in Hz)."""
    spectrum = gain(np.fft.rfftfreq(n_times, 1 / sfreq)).astype(np.float32)
    white = rng.standard_normal((n_rows, n_times), dtype=np.float32)
    noise = np.fft.irfft(np.fft.rfft(white) * spectrum, n_times)
    return noise / noise.std(axis=1, keepdims=True)


def draw_rhythms(rng: np.random.Generator) -> dict[str, Any]:
    """Draw the features of a patient's background; amplitudes are a std over channels in tesla, rates per minute."""
    return {
        'brain': rng.uniform(2e-13, 3.5e-13),
        'strengths': rng.lognormal(0, 0.8, N_CORTEX),  # a few strong dipoles among many weak ones
        'waxing': rng.uniform(0.2, 0.6),  # std of the logarithm of a dipole's amplitude over seconds
        'exponent': rng.uniform(0.8, 1.4),  # of the power spectrum, 1 / f^exponent
        'alpha': rng.uniform(5e-14, 3e-13),
        'alpha_frequency': rng.uniform(8.5, 11.5),  # Hz
        # From hardly visible to as high as spikes: it depends on how the heart lies.
        'heart': rng.lognormal(np.log(1.5e-13), 0.6),
        'heart_rate': rng.uniform(55, 80),
        'blink': rng.uniform(4e-13, 8e-13),
        'blink_rate': rng.uniform(2, 8),
        'muscle': rng.uniform(1e-13, 3e-13),
        'muscle_rate': rng.uniform(0.5, 2),
        'noise': rng.uniform(3e-14, 5e-14),  # about 5 fT per root Hz
    }


def simulate_background(
    *, rng: np.random.Generator, head: dict[str, np.ndarray], rhythms: dict[str, Any], n_times: int, sfreq: float
) -> np.ndarray:
    """Simulate a block without spikes, unfiltered: brain, artefacts, noise; (n_channels, n_times), in tesla."""
    series = {'rng': rng, 'n_times': n_times, 'sfreq': sfreq}

    brain = coloured_noise(n_rows=N_CORTEX, gain=lambda f: np.maximum(f, 0.3) ** (-rhythms['exponent'] / 2), **series)
    brain *= np.exp(
        rhythms['waxing'] * coloured_noise(n_rows=N_CORTEX, gain=lambda f: np.exp(-0.5 * (f / 0.2) ** 2), **series)
    )
    background = rhythms['brain'] * (head['cortex'] * unit(rhythms['strengths'][None])) @ brain

    # Alpha comes in bursts over the back of the head, where a slow noise is positive.
    back = np.argsort(head['positions'][:, 1])[:12]
    alpha = coloured_noise(
        n_rows=len(back), gain=lambda f: np.exp(-0.5 * ((f - rhythms['alpha_frequency']) / 0.7) ** 2), **series
    )
    bursts = coloured_noise(n_rows=1, gain=lambda f: np.exp(-0.5 * (f / 0.3) ** 2), **series).clip(0)
    background += rhythms['alpha'] / np.sqrt(len(back)) * head['cortex'][:, back] @ (alpha * bursts)
    return background + simulate_artefacts(head=head, rhythms=rhythms, **series)


def simulate_artefacts(
    *, rng: np.random.Generator, head: dict[str, np.ndarray], rhythms: dict[str, Any], n_times: int, sfreq: float
) -> np.ndarray:
    """Simulate what in a block is not of the brain: heart, blinks, muscles, sensor noise; as `simulate_background`."""
    seconds, times = n_times / sfreq, np.arange(n_times) / sfreq
    beats = np.cumsum(rng.normal(60 / rhythms['heart_rate'], 0.04, int(2 * seconds) + 1))
    heart = np.zeros(n_times)
    heart[(beats[beats < seconds] * sfreq).astype(int)] = 1
    t = np.arange(-0.5, 0.5, 1 / sfreq)
    qrs_and_t = hann(t, 0.05) - 0.4 * hann(t - 0.035, 0.05) + 0.2 * hann(t - 0.25, 0.16)
    artefacts = rhythms['heart'] * head['heart'] * np.convolve(heart, qrs_and_t)[:n_times]

    blinks = np.zeros(n_times)
    for blink in draw_times(rng=rng, rate=rhythms['blink_rate'], seconds=seconds, distance=0.5, border=0):
        blinks += rng.lognormal(0, 0.3) * hann(times - blink, rng.uniform(0.2, 0.4))
    artefacts += rhythms['blink'] * head['eyes'].mean(axis=1, keepdims=True) * blinks

    for muscle in (head['left_muscle'], head['right_muscle']):
        contraction = np.zeros(n_times)
        for burst in draw_times(rng=rng, rate=rhythms['muscle_rate'], seconds=seconds, distance=1, border=0):
            contraction += rng.lognormal(0, 0.5) * hann(times - burst, rng.uniform(0.3, 2))
        fibres = coloured_noise(
            rng=rng, n_rows=muscle.shape[1], gain=lambda f: (f > 20) & (f < 50), n_times=n_times, sfreq=sfreq
        )
        artefacts += rhythms['muscle'] / np.sqrt(len(fibres)) * muscle @ (fibres * contraction)
    return artefacts + rhythms['noise'] * rng.standard_normal(artefacts.shape, dtype=np.float32)


def draw_focus(*, rng: np.random.Generator, head: dict[str, np.ndarray]) -> dict[str, Any]:
    """Draw a focus: its two sources (indices of `foci`), the second one's height and delay, and the spikes' shape."""
    distances = np.linalg.norm(head['foci_positions'][:, None] - head['foci_positions'], axis=2)
    neighbours = (distances > 0.01) & (distances < 0.03)
    source = rng.choice(np.flatnonzero(neighbours.any(axis=1)))
    return {
        'sources': [source, rng.choice(np.flatnonzero(neighbours[source]))],
        'spread': rng.uniform(0.3, 0.9),  # height of the second source's wave
        'lag': rng.uniform(0.01, 0.04),  # s
        'shape': draw_morphology(rng),
    }


def spike_wave(*, rng: np.random.Generator, focus: dict[str, Any], times: np.ndarray) -> np.ndarray:
    """Draw a spike of a focus in its two sources, (2, n_times); the first peak of the first is at 0 s.

    Its height is within .4 to 2.5 of the focus's in 19 of 20 spikes: from barely visible to obvious.
    """
    t = np.stack([times, times - focus['lag']])
    return rng.lognormal(0, 0.45) * spike_course(rng, focus['shape'], t) * [[1], [focus['spread']]]


def draw_foci(
    rng: np.random.Generator, head: dict[str, np.ndarray], n_foci: int | None
) -> tuple[list[tuple[np.ndarray, Callable]], np.ndarray]:
    """Draw the foci of a patient, one or two for None, as a `Scene` has them; and where their first sources are.

    Positions (n_foci, 3) are in metres in the coordinates of the helmet.
    """
    n_drawn = rng.integers(1, 3)
    foci = [draw_focus(rng=rng, head=head) for _ in range(n_foci or n_drawn)]
    scene: list[tuple[np.ndarray, Callable]] = [
        (head['foci'][:, focus['sources']], functools.partial(_spike_at, rng, focus)) for focus in foci
    ]
    return scene, head['centre'] + head['foci_positions'][[focus['sources'][0] for focus in foci]]


def _spike_at(rng, focus, times):
    return spike_wave(rng=rng, focus=focus, times=times)


def draw_distractors(rng: np.random.Generator, head: dict[str, np.ndarray]) -> Callable:
    """Draw which transients a patient has, how often and from where; gives the `distractor` of a `Scene`."""
    fields = {
        name: head['cortex'][:, dipoles].sum(axis=1)
        for name, dipoles in distractor_sources(rng, head['positions']).items()
    }
    fields['saccade'] = head['eyes'] @ [1, rng.uniform(0.5, 1)]
    fields['twitch'] = rng.choice([*head['left_muscle'].T, *head['right_muscle'].T])
    shares = rng.dirichlet(np.full(len(DISTRACTORS), 0.7))  # a patient has some of them often, others hardly ever

    def draw(times):
        name = rng.choice(DISTRACTORS, p=shares)
        field = fields[name] / fields[name].std()
        return field, rng.lognormal(0, 0.4) * distractor_course(rng, name, times)

    return draw


@threadpool_limits.wrap(limits=1)  # the last bits of a matrix product depend on the number of threads
def simulate_patient(settings: PatientSettings, n_foci: int | None = None) -> tuple[dict[str, list], pd.DataFrame]:
    """Simulate the recordings of a patient.

    Parameters
    ----------
    settings : PatientSettings
    n_foci : int, optional
        Number of foci; one or two at random where not given.

    Returns
    -------
    data : dict of lists
        One entry per block: `meg`, float32, shape (274, n_times), tesla, 0.5-50 Hz; `events`, int64, the annotated
        spikes in samples; `reannot`, empty; `file`, a name.
    truth : pandas.DataFrame
        One row per spike: `subject`, `block`, `sample` of the peak of the field's power; `amplitude`, the largest
        absolute value over channels of the noise-free field there, in tesla; `focus`, its number from 1 on, and the
        position `x`, `y`, `z` of the focus' first source, in metres in the coordinates of the helmet.
    """
    rng = np.random.default_rng([settings.seed, settings.subject])
    head = simulate_head(rng=rng, info=ctf275_info(settings.sfreq))
    rhythms = draw_rhythms(rng)
    foci, positions = draw_foci(rng, head, n_foci)
    scene = Scene(
        background=lambda n_times: simulate_background(
            rng=rng, head=head, rhythms=rhythms, n_times=n_times, sfreq=settings.sfreq
        ),
        foci=foci,
        distractor=draw_distractors(rng, head),
    )
    data, truth = record_patient(scene, settings, rng)
    return data, truth.assign(**dict(zip('xyz', positions[truth['focus'] - 1].T, strict=True)))
