"""Simulated patients with epilepsy, recorded with a 275-channel CTF MEG.

`simulate_patient` is longer than the other functions and has eleven arguments: each is a setting, and the order of its
random draws, which the same seed must repeat, is best read in one piece.
"""

from collections.abc import Callable
from typing import Any

import mne
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from recordings.channels import ctf275_info, sphere_centre

N_CORTEX = 300  # cortical dipoles of the background
SPIKE_DISTANCE = 0.5  # s, least distance between the peaks of two spikes
BORDER = 1.0  # s without spikes at both ends of a block
PEAK_SEARCH = 0.05  # s around the sharp peak of the first source, where the peak of the whole field is looked for


def simulate_head(*, rng: np.random.Generator, info: mne.Info) -> dict[str, np.ndarray]:
    """Draw the sources in a patient's head and compute their fields in a spherical conductor.

    Returns
    -------
    dict of arrays
        `positions` of the cortical dipoles, (N_CORTEX, 3), in metres from the centre of the head, and the fields of
        `cortex`, `eyes`, `heart`, `left_muscle`, `right_muscle`, each (n_channels, n_dipoles), with a std of 1 over
        channels.
    """
    # The head lies a few millimetres off the centre of the helmet.
    centre = sphere_centre(info) + rng.normal(0, 0.003, 3)

    upwards = unit(rng.normal(size=(8 * N_CORTEX, 3)))
    upwards = upwards[upwards[:, 2] > -0.2][:N_CORTEX]
    muscle = rng.normal([0.07, 0.01, -0.04], [0.003, 0.025, 0.01], (10, 3))
    sources = {
        'cortex': upwards * rng.uniform(0.06, 0.08, (N_CORTEX, 1)),
        'eyes': np.array([[-0.03, 0.075, -0.025], [0.03, 0.075, -0.025]]),
        'heart': np.array([[0, -0.02, -0.08]]),  # as low as the sphere allows
        'left_muscle': muscle * [-1, 1, 1],
        'right_muscle': muscle,
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
    return {**dict(zip(sources, np.split(fields, ends, axis=1), strict=True)), 'positions': sources['cortex']}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors, the rows of an array (n_vectors, n_dims), to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def hann(t: np.ndarray, width: float) -> np.ndarray:
    """A smooth bump of height 1 and total `width`, centred on t = 0, both in seconds; of the shape of `t`."""
    return np.where(np.abs(t) < width / 2, np.cos(np.pi * t / width) ** 2, 0)


def band_pass(x: np.ndarray, sfreq: float) -> np.ndarray:
    """Filter x, (n_rows, n_times) at `sfreq` Hz, between 0.5 and 50 Hz without delay."""
    return mne.filter.filter_data(x, sfreq, 0.5, 50, verbose='error')


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


def draw_times(*, rng: np.random.Generator, rate: float, seconds: float, distance: float, border: float) -> np.ndarray:
    """Draw Poisson-like times in s: `rate` per minute, at least `distance` apart and `border` from both ends."""
    room = max(seconds - 2 * border, 0)
    count = min(rng.poisson(rate * seconds / 60), int(room / distance))
    return border + np.sort(rng.uniform(0, room - count * distance, count)) + distance * np.arange(count)


def draw_rhythms(rng: np.random.Generator) -> dict[str, Any]:
    """Draw the features of a patient's background; amplitudes are a std over channels in tesla, rates per minute."""
    return {
        'brain': rng.uniform(2e-13, 3.5e-13),
        'strengths': rng.lognormal(0, 0.8, N_CORTEX),  # a few strong dipoles among many weak ones
        'exponent': rng.uniform(0.8, 1.4),  # of the power spectrum, 1 / f^exponent
        'alpha': rng.uniform(5e-14, 2e-13),
        'alpha_frequency': rng.uniform(8.5, 11.5),  # Hz
        'heart': rng.uniform(1e-13, 2e-13),
        'heart_rate': rng.uniform(55, 80),
        'blink': rng.uniform(4e-13, 8e-13),
        'blink_rate': rng.uniform(2, 8),
        'muscle': rng.uniform(1e-13, 3e-13),
        'muscle_rate': rng.uniform(0.5, 2),
        'noise': rng.uniform(3e-14, 5e-14),
    }


def simulate_background(
    *, rng: np.random.Generator, head: dict[str, np.ndarray], rhythms: dict[str, Any], n_times: int, sfreq: float
) -> np.ndarray:
    """Simulate a block without sharp transients, unfiltered: brain, artefacts, noise; (n_channels, n_times), tesla."""
    seconds, times = n_times / sfreq, np.arange(n_times) / sfreq
    series = {'rng': rng, 'n_times': n_times, 'sfreq': sfreq}

    brain = coloured_noise(n_rows=N_CORTEX, gain=lambda f: np.maximum(f, 0.3) ** (-rhythms['exponent'] / 2), **series)
    background = rhythms['brain'] * (head['cortex'] * unit(rhythms['strengths'][None])) @ brain

    # Alpha comes in bursts over the back of the head, where a slow noise is positive.
    back = np.argsort(head['positions'][:, 1])[:12]
    alpha = coloured_noise(
        n_rows=len(back), gain=lambda f: np.exp(-0.5 * ((f - rhythms['alpha_frequency']) / 0.7) ** 2), **series
    )
    bursts = coloured_noise(n_rows=1, gain=lambda f: np.exp(-0.5 * (f / 0.3) ** 2), **series).clip(0)
    background += rhythms['alpha'] / np.sqrt(len(back)) * head['cortex'][:, back] @ (alpha * bursts)

    beats = np.cumsum(rng.normal(60 / rhythms['heart_rate'], 0.04, int(2 * seconds) + 1))
    heart = np.zeros(n_times)
    heart[(beats[beats < seconds] * sfreq).astype(int)] = 1
    t = np.arange(-0.5, 0.5, 1 / sfreq)
    qrs_and_t = hann(t, 0.05) - 0.4 * hann(t - 0.035, 0.05) + 0.2 * hann(t - 0.25, 0.16)
    background += rhythms['heart'] * head['heart'] * np.convolve(heart, qrs_and_t)[:n_times]

    blinks = np.zeros(n_times)
    for blink in draw_times(rng=rng, rate=rhythms['blink_rate'], seconds=seconds, distance=0.5, border=0):
        blinks += rng.lognormal(0, 0.3) * hann(times - blink, rng.uniform(0.2, 0.4))
    background += rhythms['blink'] * head['eyes'].mean(axis=1, keepdims=True) * blinks

    for muscle in (head['left_muscle'], head['right_muscle']):
        contraction = np.zeros(n_times)
        for burst in draw_times(rng=rng, rate=rhythms['muscle_rate'], seconds=seconds, distance=1, border=0):
            contraction += rng.lognormal(0, 0.5) * hann(times - burst, rng.uniform(0.3, 2))
        fibres = coloured_noise(n_rows=muscle.shape[1], gain=lambda f: (f > 20) & (f < 50), **series)
        background += rhythms['muscle'] / np.sqrt(len(fibres)) * muscle @ (fibres * contraction)

    return background + rhythms['noise'] * rng.standard_normal(background.shape, dtype=np.float32)


def draw_focus(*, rng: np.random.Generator, head: dict[str, np.ndarray]) -> dict[str, Any]:
    """Draw a focus: its two sources (indices of cortical dipoles), the second one's delay, and the shape of a wave."""
    distances = np.linalg.norm(head['positions'][:, None] - head['positions'], axis=2)
    neighbours = (distances > 0.01) & (distances < 0.03)
    source = rng.choice(np.flatnonzero(neighbours.any(axis=1)))
    return {
        'sources': [source, rng.choice(np.flatnonzero(neighbours[source]))],
        'spread': rng.uniform(0.3, 0.7),  # height of the second source's wave
        'lag': rng.uniform(0.01, 0.03),  # s
        'duration': rng.uniform(0.045, 0.08),  # s, of the sharp transient
        'rise': rng.uniform(0.3, 0.5),  # share of the sharp phase before its peak
        'opposite': rng.uniform(0.2, 0.6),  # height of the second, opposite phase,
        'side': rng.choice([-1, 1]),  # which comes before or after the peak
        'slow': rng.uniform(0.3, 0.7),  # height of the slow wave
        'slow_duration': rng.uniform(0.17, 0.26),  # s
    }


def spike_wave(*, rng: np.random.Generator, focus: dict[str, Any], times: np.ndarray) -> np.ndarray:
    """Draw a spike and slow wave of a focus in its two sources, (2, n_times); sharp peak of the first at 0 s."""
    duration = np.clip(focus['duration'] * rng.lognormal(0, 0.12), 0.04, 0.09)
    slow_duration = np.clip(focus['slow_duration'] * rng.lognormal(0, 0.12), 0.15, 0.3)
    slow = focus['slow'] * rng.lognormal(0, 0.2)
    t = np.stack([times, times - focus['lag']])
    sharp = np.exp(-0.5 * (t / (0.3 * duration * np.where(t < 0, focus['rise'], 1 - focus['rise']))) ** 2)
    opposite = np.exp(-0.5 * ((t - 0.5 * focus['side'] * duration) / (0.12 * duration)) ** 2)
    after = hann(t - (duration + slow_duration) / 2, slow_duration)
    wave = sharp - focus['opposite'] * opposite - slow * after
    return rng.lognormal(0, 0.4) * wave * [[1], [focus['spread']]]


def distractor_wave(*, rng: np.random.Generator, t: np.ndarray) -> np.ndarray:
    """Draw a sharp transient without slow wave, peaking around t = 0 s: a narrow or broad phase, or oscillations."""
    height = rng.lognormal(0, 0.4)
    shape = rng.choice(['narrow', 'broad', 'oscillation'])
    if shape == 'narrow':
        return height * hann(t, rng.uniform(0.03, 0.08))
    if shape == 'broad':
        return height * hann(t, rng.uniform(0.08, 0.2))
    return height * hann(t, rng.uniform(0.15, 0.3)) * np.cos(2 * np.pi * rng.uniform(12, 25) * t)


@threadpool_limits.wrap(limits=1)  # the last bits of a matrix product depend on the number of threads
def simulate_patient(
    *,
    subject: int,
    n_blocks: int,
    block_seconds: float,
    spike_rate: float,
    snr: float,
    distractor_rate: float,
    annotation_jitter: float,
    annotation_missed: float,
    spike_free: bool,
    sfreq: float,
    seed: int,
) -> tuple[dict[str, list], pd.DataFrame]:
    """Simulate the recordings of a patient.

    Parameters
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
    spike_free : bool
        Whether the patient has no spike.
    sfreq : float
        Sampling frequency, in Hz.
    seed : int
        The setting of this name.

    Returns
    -------
    data : dict of lists
        One entry per block: `meg`, float32, shape (274, n_times), tesla, 0.5-50 Hz; `events`, int64, the annotated
        spikes in samples; `reannot`, empty; `file`, a name.
    truth : pandas.DataFrame
        One row per spike: `subject`, `block`, `sample` of the peak of the field's power, and `amplitude`, the largest
        absolute value over channels of the noise-free field there, in tesla.
    """
    rng = np.random.default_rng([seed, subject])
    head = simulate_head(rng=rng, info=ctf275_info(sfreq))
    rhythms = draw_rhythms(rng)
    foci = [draw_focus(rng=rng, head=head) for _ in range(rng.integers(1, 3))]
    spike_fields = head['cortex'][:, np.concatenate([focus['sources'] for focus in foci])]
    n_spike_sources = spike_fields.shape[1]
    n_times = round(block_seconds * sfreq)
    times = np.arange(n_times) / sfreq
    reach = np.arange(2 * round(PEAK_SEARCH * sfreq) + 1) - round(PEAK_SEARCH * sfreq)
    spacing = {
        'rng': rng,
        'seconds': block_seconds,
        'distance': SPIKE_DISTANCE + 2 * PEAK_SEARCH,
        'border': BORDER + PEAK_SEARCH,
    }

    backgrounds, spikes, distractors, peaks, spike_std = [], [], [], [], []
    for _ in range(n_blocks):
        background = simulate_background(rng=rng, head=head, rhythms=rhythms, n_times=n_times, sfreq=sfreq)
        backgrounds.append(band_pass(background, sfreq).astype(np.float32))

        # Blocks differ in their number of spikes: the rate of each is drawn around `spike_rate`.
        starts = draw_times(rate=0 if spike_free else spike_rate * rng.gamma(4, 1 / 4), **spacing)
        sources = np.zeros((n_spike_sources, n_times))
        for start in starts:
            focus = rng.integers(len(foci))
            sources[2 * focus : 2 * focus + 2] += spike_wave(rng=rng, focus=foci[focus], times=times - start)
        distractor_times = draw_times(rate=distractor_rate, **spacing)
        waves = [distractor_wave(rng=rng, t=times - start)[None] for start in distractor_times]
        sources, waves = np.split(band_pass(np.concatenate([sources, *waves]), sfreq), [n_spike_sources])
        spikes.append(sources)
        distractors.append((rng.integers(N_CORTEX, size=len(distractor_times)), waves))

        # The second source and the filter move the peak by a few samples: look for it in the filtered field.
        near = np.round(starts * sfreq).astype(np.int64)[:, None] + reach
        std = np.tensordot(spike_fields, sources[:, near], axes=1).std(axis=0)
        peaks.append(near[np.arange(len(near)), std.argmax(axis=1)])
        spike_std.extend(std.max(axis=1))

    background_std = np.sqrt(np.mean([background.var() for background in backgrounds]))
    gain = snr * background_std / np.mean(spike_std) if spike_std else 0

    data = {'meg': [], 'events': [], 'reannot': [], 'file': []}
    rows = []
    for block, (dipoles, waves) in enumerate(distractors):
        field = gain * spike_fields @ spikes[block]
        distractor_field = snr * background_std * head['cortex'][:, dipoles] @ waves
        noticed = peaks[block][rng.random(len(peaks[block])) >= annotation_missed]
        annotated = np.round(noticed + rng.normal(0, annotation_jitter * sfreq, len(noticed))).astype(np.int64)
        annotated = annotated[(annotated >= 0) & (annotated < n_times)]
        data['meg'].append((backgrounds[block] + field + distractor_field).astype(np.float32))
        data['events'].append(np.unique(annotated))
        data['reannot'].append(np.array([], dtype=np.int64))
        data['file'].append(f'sim_{subject:03d}_block_{block:02d}.ds')
        rows += [(subject, block, peak, np.abs(field[:, peak]).max()) for peak in peaks[block]]
    types = {'subject': np.int64, 'block': np.int64, 'sample': np.int64, 'amplitude': np.float64}
    return data, pd.DataFrame(rows, columns=list(types)).astype(types)
