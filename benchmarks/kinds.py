"""Five kinds of simulated patients: each has a background, spikes and other transients of its own.

| kind | background | spikes | other transients |
|---|---|---|---|
| `dipoles` | simulate_data_raw.py: 300 dipoles of 1 / f, alpha, heart, blinks, muscle | drawn | drawn |
| `resonances` | blobs on the helmet: resonances of 3 to 30 Hz, random walks | of one to three phases | damped |
| `rhythms` | blobs on the helmet: few regular rhythms, a large heart | steep rise, slow fall | slow, arches |
| `eeg` | dipoles driven by recorded EEG, heart, noise | as `dipoles` | as `dipoles` |
| `recorded` | 150 dipoles, each of a 1 / f of its own that waxes and wanes, artefacts | as recorded | as `dipoles` |

The last two need recordings that are not part of the project: a folder of EDF files of EEG at rest, and an array of
spikes recorded with MEG. Where they are absent, `present` says so and leaves the kind out.
"""

import functools
import re
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mne
import numpy as np
import pandas as pd
from helmet_kinds import other_patient
from threadpoolctl import threadpool_limits

from recordings.channels import ctf275_info
from recordings.scenes import PatientSettings, Scene, band_pass, record_patient
from recordings.simulation import (
    coloured_noise,
    draw_distractors,
    draw_foci,
    draw_focus,
    draw_rhythms,
    simulate_artefacts,
    simulate_head,
    simulate_patient,
    unit,
)
from timeseries_dataset import PARTS
from utils import DataError

SHARED = Path(__file__).resolve().parents[2] / 'shared'
EEG = SHARED / 'eeg'
WAVEFORMS = SHARED / 'waveforms' / 'spikes.npy'
WAVEFORMS_SFREQ = 1000  # Hz

N_DIPOLES = 150  # of the background of the last two kinds
N_GROUPS = 3  # of dipoles that are driven by the same stretch of EEG
SEAM = 1.0  # s over which the end of an EEG recording fades into its beginning
KINDS = ('dipoles', 'resonances', 'rhythms', 'eeg', 'recorded')


def present(kinds: Iterable[str] = KINDS, eeg: str | Path = EEG) -> list[str]:
    """Those of some kinds that can be simulated here; a line is printed about each other one."""
    absent = {}
    if len(people_of(eeg)) < 2:
        absent['eeg'] = f'{eeg} has no EDF files of two people'
    if not WAVEFORMS.exists():
        absent['recorded'] = f'there is no {WAVEFORMS}'
    for kind in kinds:
        if kind in absent:
            print(f'kind {kind!r} is left out: {absent[kind]}')
    return [kind for kind in kinds if kind not in absent]


def kind_patient(
    kind: str, eeg: list[np.ndarray] | None, settings: PatientSettings
) -> tuple[dict[str, list], pd.DataFrame]:
    """Simulate a patient of a kind; the results are those of `recordings.simulation.simulate_patient`.

    `eeg` drives the kind 'eeg': recordings, each (n_channels, n_samples), of people of one part of the cohort.
    """
    if kind == 'dipoles':
        return simulate_patient(settings)
    if kind in ('resonances', 'rhythms'):
        return other_patient(settings, rhythmic=kind == 'rhythms')
    return head_patient(settings, eeg if kind == 'eeg' else None)


@threadpool_limits.wrap(limits=1)
def head_patient(settings: PatientSettings, eeg: list[np.ndarray] | None) -> tuple[dict[str, list], pd.DataFrame]:
    """Simulate a patient of the kind 'eeg', or of the kind 'recorded' where there is no `eeg`; see `kind_patient`."""
    rng, sfreq = np.random.default_rng([settings.seed, settings.subject, 4 if eeg is None else 3]), settings.sfreq
    head, rhythms = simulate_head(rng=rng, info=ctf275_info(sfreq)), draw_rhythms(rng)
    chosen = rng.permutation(head['cortex'].shape[1])[:N_DIPOLES]
    if eeg is None:
        background = recorded_kind_background(rng, head, chosen, rhythms, sfreq)
        foci = recorded_foci(rng, head)
    else:
        background = eeg_background(rng, head, chosen, rhythms, sfreq, eeg[rng.integers(len(eeg))])
        foci, _ = draw_foci(rng, head, None)
    scene = Scene(background, foci, draw_distractors(rng, head))
    return record_patient(scene, settings, rng)


# -------------------------------------------------------------------------------- driven by recorded EEG
def people_of(folder: str | Path) -> dict[str, list[Path]]:
    """EDF files below a folder by person: the name up to the end of its first number, `S001` of `S001R01.edf`."""
    people = {}
    for path in sorted(Path(folder).rglob('*.[eE][dD][fF]')):
        name = path.relative_to(folder).as_posix()
        people.setdefault(re.match(r'\D*\d*', name).group(), []).append(path)
    return people


def share_people(folder: str | Path, seed: int, sfreq: float) -> dict[str, list[np.ndarray]]:
    """EEG by part of a cohort: a third of the people, at least one, are in the test and in no other part.

    Raises
    ------
    DataError
        Fewer than two people.
    """
    people = people_of(folder)
    if len(people) < 2:
        raise DataError(f'{folder}: EDF files of {len(people)} people; the test needs other people than the training')
    names = np.random.default_rng([seed, 5]).permutation(sorted(people))
    n_test = max(len(names) // 3, 1)
    tested, others = (
        [read_eeg(path, sfreq) for name in chosen for path in people[name]]
        for chosen in (names[:n_test], names[n_test:])
    )
    return {part: tested if part == 'test' else others for part in PARTS}


@functools.cache
def read_eeg(path: Path, sfreq: float) -> np.ndarray:
    """EEG of a file at `sfreq` Hz, 0.5-50 Hz or as far as it was recorded; (n_channels, n_samples), std 1 each.

    Referenced to the mean of all channels, so that no time course is in all of them; the end fades into the beginning.
    """
    raw = mne.io.read_raw(path, preload=True, verbose='error').pick('eeg').resample(sfreq, verbose='error')
    signal = raw.get_data()
    signal = band_pass(signal - signal.mean(axis=0), sfreq)
    n = round(SEAM * sfreq)
    fading = np.linspace(0, 1, n)
    signal[:, :n] = signal[:, :n] * np.sqrt(fading) + signal[:, -n:] * np.sqrt(1 - fading)
    signal = signal[:, :-n]
    return (signal / signal.std(axis=1, keepdims=True).clip(1e-12)).astype(np.float32)


def eeg_background(rng, head, chosen, rhythms, sfreq, recording):
    """The background of a patient of the kind 'eeg', as a `Scene` has it.

    Every dipole follows the difference or sum of two channels, other ones in every patient. Dipoles of a group follow
    the same stretch of the recording, so that blinks and alpha come at one time in many places, as they were recorded;
    groups and blocks begin at random places of it. Heart and sensor noise are added: EEG has none as MEG has.
    """
    groups = np.array_split(np.arange(len(chosen)), N_GROUPS)
    first, second = rng.integers(len(recording), size=(2, len(chosen)))
    share = rng.uniform(-0.7, 0.7, (len(chosen), 1))
    strengths = unit(rhythms['strengths'][chosen][None])
    quiet = rhythms | {'blink_rate': 0, 'muscle_rate': 0}  # as recorded

    def background(n_times):
        courses = np.empty((len(chosen), n_times))
        for rows in groups:
            stretch = recording.take(rng.integers(recording.shape[1]) + np.arange(n_times), axis=1, mode='wrap')
            courses[rows] = stretch[first[rows]] + share[rows] * stretch[second[rows]]
        signal = (head['cortex'][:, chosen] * strengths) @ courses
        artefacts = simulate_artefacts(rng=rng, head=head, rhythms=quiet, n_times=n_times, sfreq=sfreq)
        return rhythms['brain'] * signal / signal.std() + artefacts

    return background


# ------------------------------------------------------------------------------------ with recorded spikes
def recorded_kind_background(rng, head, chosen, rhythms, sfreq):
    """The background of a patient of the kind 'recorded', as a `Scene` has it.

    Every dipole has a spectrum of its own, 1 / f^(0.6 to 1.6), and waxes and wanes; those at the back have alpha.
    """
    n_dipoles = len(chosen)
    exponents = rng.uniform(0.6, 1.6, (n_dipoles, 1))
    at_back = head['positions'][chosen, 1] < -0.03
    alpha_height = at_back * rng.uniform(0.2, 1.5) * rng.lognormal(0, 0.5, n_dipoles)
    strengths = unit(rhythms['strengths'][chosen][None])

    def background(n_times):
        frequencies = np.fft.rfftfreq(n_times, 1 / sfreq).clip(0.5)
        spectra = np.fft.rfft(rng.standard_normal((n_dipoles, n_times))) * frequencies ** (-exponents / 2)
        courses = np.fft.irfft(spectra, n_times)
        courses /= courses.std(axis=1, keepdims=True)
        series = {'rng': rng, 'n_rows': n_dipoles, 'n_times': n_times, 'sfreq': sfreq}
        alpha = coloured_noise(
            gain=lambda f: np.exp(-0.5 * ((f - rhythms['alpha_frequency']) / 0.5) ** 2), **series
        )  # fmt: skip
        courses += alpha_height[:, None] * alpha
        courses *= np.exp(0.4 * coloured_noise(gain=lambda f: np.exp(-0.5 * (f / 0.3) ** 2), **series))
        signal = (head['cortex'][:, chosen] * strengths) @ courses
        artefacts = simulate_artefacts(rng=rng, head=head, rhythms=rhythms, n_times=n_times, sfreq=sfreq)
        return rhythms['brain'] * signal / signal.std() + artefacts

    return background


def recorded_foci(rng, head):
    """One or two foci, as a `Scene` has them, with spikes as they were recorded, a little longer or shorter."""
    foci = []
    for _ in range(rng.integers(1, 3)):
        focus = draw_focus(rng=rng, head=head)
        waveform = rng.choice(np.load(WAVEFORMS))
        peak = np.abs(waveform).argmax()
        since_peak = rng.uniform(0.8, 1.25) * (np.arange(len(waveform)) - peak) / WAVEFORMS_SFREQ
        wave = functools.partial(recorded_wave, rng, focus, since_peak, waveform / waveform[peak])
        foci.append((head['foci'][:, focus['sources']], wave))
    return foci


def recorded_wave(rng, focus, since_peak, waveform, times):
    """A spike as it was recorded in the two sources of a focus, (2, n_times), its peak in the first at 0 s."""
    t = np.stack([times, times - focus['lag']]) * rng.lognormal(0, 0.05)
    return rng.lognormal(0, 0.45) * np.interp(t, since_peak, waveform, left=0, right=0) * [[1], [focus['spread']]]
