"""Interpolation of absent channels: one matrix for all recordings of a helmet."""

import functools

import mne
import numpy as np

from recordings import channels
from recordings.channels import N_CHANNELS, ctf275_info, interpolate_channels, sphere_centre


def test_interpolating_nothing_copies_nothing():
    signal = np.ones((N_CHANNELS, 5))
    assert interpolate_channels(signal, ctf275_info(150), []) is signal


def test_recordings_of_one_helmet_share_an_interpolation_whatever_the_head_does(monkeypatch):
    made = []

    def interpolate(raw, **chosen):
        made.append(raw.info['bads'])
        raw._data[raw.ch_names.index('MLC11')] = 0.5

    monkeypatch.setattr(mne.io.RawArray, 'interpolate_bads', interpolate)
    monkeypatch.setattr(channels, '_interpolation', functools.cache(channels._interpolation.__wrapped__))
    here, turned, other = (ctf275_info(150) for _ in range(3))
    turned['dev_head_t'] = mne.Transform('meg', 'head', mne.transforms.rotation(0.1))
    other['chs'][5]['loc'][0] += 1e-3
    for info, n_made in ((here, 1), (turned, 1), (other, 2), (here, 2)):
        signal = interpolate_channels(np.ones((N_CHANNELS, 5)), info, ['MLC11'])
        assert signal[info['ch_names'].index('MLC11')].tolist() == [N_CHANNELS / 2] * 5
        assert len(made) == n_made


def test_the_interpolation_is_mnes_wherever_the_head_is():
    signal, names, info = (
        np.random.default_rng(0).standard_normal((N_CHANNELS, 4)),
        ['MRF66', 'MRO52'],
        ctf275_info(150),
    )
    moved = mne.transforms.rotation(0.2, 0.3, 0.1) @ mne.transforms.translation(0.01, 0.005, 0.04)
    info['dev_head_t'] = mne.Transform('meg', 'head', moved)
    raw = mne.io.RawArray(signal.copy(), info.copy(), verbose='error')
    raw.info['bads'] = names
    raw.interpolate_bads(origin=sphere_centre(info), mode='fast', verbose='error')
    np.testing.assert_allclose(interpolate_channels(signal, info, names), raw.get_data(), atol=1e-10)
