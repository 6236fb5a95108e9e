"""Recordings that are read some channels at a time, because all of them at once would take too much memory."""

import tracemalloc

import numpy as np
import pytest

from recordings.channels import N_CHANNELS
from recordings.reading import read_recording

READING = {'sfreq': 150, 'high_pass': 0.5, 'low_pass': 50.0, 'notch': None, 'bad_channels': [], 'trials': 'join'}


@pytest.fixture
def _no_interpolation(monkeypatch):
    """MNE takes seconds for it."""
    monkeypatch.setattr('recordings.reading.interpolate_channels', lambda signal, info, names: signal)


def noise(n_samples, n_channels=N_CHANNELS):
    return 1e-12 * np.random.default_rng(0).normal(size=(n_channels, n_samples))


@pytest.mark.parametrize('trials', ['join', 'apart'])
@pytest.mark.usefixtures('_no_interpolation')
def test_channels_in_groups_give_the_numbers_of_all_at_once(make_fif, monkeypatch, trials):
    path = make_fif('long', noise(3000), notes=[(3.0, 'EDGE boundary'), (3.0 + 1 / 300, 'EDGE boundary')])
    whole = read_recording(path, **READING | {'trials': trials, 'bad_channels': ['MLC11']})
    monkeypatch.setattr('recordings.reading.LARGEST_PIECE', 50_000)
    grouped = read_recording(path, **READING | {'trials': trials, 'bad_channels': ['MLC11']})
    assert len(whole) == len(grouped) == (1 if trials == 'join' else 3)
    for expected, recording in zip(whole, grouped, strict=True):
        np.testing.assert_array_equal(expected.meg, recording.meg)
        assert expected.facts == recording.facts
        assert expected.raw_spans.keys() == recording.raw_spans.keys()
        for name, spans in expected.raw_spans.items():
            np.testing.assert_array_equal(spans, recording.raw_spans[name])


@pytest.mark.usefixtures('_no_interpolation')
def test_memory_does_not_grow_with_the_raw_samples(make_fif, monkeypatch):
    """But for what remains of them, an eighth here, three times."""
    monkeypatch.setattr('recordings.reading.LARGEST_PIECE', 2**18)
    monkeypatch.setattr('recordings.filters.rows_at_a_time', lambda n_rows, n: (slice(i, i + 1) for i in range(n_rows)))
    peaks = []
    for seconds in (10, 40):
        path = make_fif(f'long{seconds}', noise(1200 * seconds).astype(np.float32), sfreq=1200.0)
        tracemalloc.start()
        read_recording(path, **READING)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    n_bytes = 30 * 150 * N_CHANNELS * 8
    assert peaks[1] - peaks[0] < 3 * n_bytes + 2**21 * 8
