"""Recordings of noise, written as a scanner would."""

import mne
import numpy as np

from recordings.channels import N_CHANNELS, ctf275_info

NAMES = ctf275_info(150)['ch_names']
SFREQ = 300.0


def brain(n_samples, n_channels=N_CHANNELS, seed=0):
    """Noise of the size of brain signal, in tesla."""
    return 1e-12 * np.random.default_rng(seed).normal(size=(n_channels, n_samples))


def write_fif(path, signal, notes=(), *, info=None, change=None):
    """Write a FIF recording with annotations (onset, duration, label), also outside of its samples."""
    raw = mne.io.RawArray(signal, info or ctf275_info(SFREQ), first_samp=900, verbose='error')
    raw.set_meas_date(1.0e9)
    for onset, duration, label in notes:
        raw.annotations.append(raw.first_time + onset, duration, label)
    for ch in raw.info['chs']:
        ch.update(change or {})
    raw.save(path, verbose='error')
    return path


def sensors(n_samples, seed=0):
    """Signals of all 274 channels by name."""
    return dict(zip(NAMES, brain(n_samples, seed=seed), strict=True))
