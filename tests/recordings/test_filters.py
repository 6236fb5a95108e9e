"""Filters of recordings: the numbers of MNE's, and the time that many short parts take."""

import math

import mne
import numpy as np
import pytest

from recordings.channels import N_CHANNELS
from recordings.filters import extend, filter_seconds, preprocess, preprocess_parts, resample
from recordings.reading import read_recording

BAND = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None}
READING = BAND | {'bad_channels': [], 'trials': 'join'}


def filtered_by_mne(signal, *, raw_sfreq, sfreq, high_pass, low_pass, notch):
    """What `preprocess` promises, with MNE's filters on one part."""
    reach = math.ceil(2 * filter_seconds(high_pass) * sfreq)
    signal = extend(resample(signal, raw_sfreq, sfreq), reach, reach)
    signal = mne.filter.filter_data(signal, sfreq, high_pass, low_pass, verbose='error')
    if notch:
        signal = mne.filter.notch_filter(signal, sfreq, np.atleast_1d(notch), verbose='error')
    return signal[:, reach:-reach]


@pytest.mark.parametrize('n_samples', [1, 2, 5, 60, 1200, 4000])
@pytest.mark.parametrize('notch', [None, 50.0, [50.0, 60.0]])
def test_parts_are_filtered_as_mne_filters_them(n_samples, notch):
    signal = 1e-12 * (np.random.default_rng(0).normal(size=(3, n_samples)) + 50)
    filters = BAND | {'raw_sfreq': 300, 'notch': notch}
    expected = filtered_by_mne(signal, **filters)
    np.testing.assert_allclose(preprocess(signal, **filters), expected, rtol=0, atol=1e-21)


def test_parts_of_one_length_are_filtered_at_the_cost_of_one(monkeypatch):
    """Of 60 parts of 300 samples and 2 of another length; each comes out as it does alone."""
    rng = np.random.default_rng(0)
    lengths = [300] * 30 + [2999] + [300] * 30 + [7]
    parts = [1e-12 * (rng.normal(size=(50, n)) + 10) for n in lengths]
    filters = BAND | {'raw_sfreq': 300}
    alone = [preprocess(part, **filters) for part in parts]
    n_filtered = []
    monkeypatch.setattr(
        'recordings.filters.preprocess',
        lambda signal, **filters: n_filtered.append(len(signal)) or preprocess(signal, **filters),
    )
    for new, expected in zip(preprocess_parts(parts, lengths, **filters), alone, strict=True):
        np.testing.assert_allclose(new, expected, rtol=0, atol=1e-21)
    assert n_filtered == [300, 50, 7]  # a matrix for 60 parts, a part of many samples, a matrix of few


def test_a_recording_with_many_gaps_is_filtered_and_interpolated_once(make_fif, monkeypatch):
    rng = np.random.default_rng(0)
    signal = 1e-12 * rng.normal(size=(N_CHANNELS, 40 * 100))
    path = make_fif('gaps', signal, notes=[(100 * part / 300, 'EDGE boundary') for part in range(1, 40)])
    calls = []
    monkeypatch.setattr(
        'recordings.filters.preprocess', lambda *a, **k: calls.append('filtered') or preprocess(*a, **k)
    )
    monkeypatch.setattr(
        'recordings.reading.interpolate_channels', lambda signal, info, names: calls.append('interpolated') or signal
    )
    read_recording(path, **READING)
    apart = read_recording(path, **READING | {'trials': 'apart'})
    assert calls == ['filtered', 'interpolated'] * 2
    assert [block.name for block in apart] == [f'gaps_raw.fif [{i}]' for i in range(1, 41)]
