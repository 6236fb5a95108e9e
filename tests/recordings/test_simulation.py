"""The simulator: the channels it places, and patients that hold what they claim."""

import numpy as np
import pytest

from recordings.channels import N_CHANNELS, ctf275_info
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient

PATIENT = PatientSettings(
    subject=2,
    n_blocks=2,
    block_seconds=30,
    spike_rate=20.0,
    snr=3.0,
    distractor_rate=4.0,
    annotation_jitter=0.01,
    annotation_missed=0.2,
    sfreq=150,
    seed=0,
)


@pytest.fixture(scope='module')
def patient():
    return simulate_patient(PATIENT)


def test_the_channels_are_those_of_the_contract():
    info = ctf275_info(150)
    names = info['ch_names']
    assert len(names) == N_CHANNELS
    assert names == sorted(names)
    assert (names[0], names[-1]) == ('MLC11', 'MZP01')
    assert 'MRP52' not in names


def test_the_mirrored_channel_is_the_reflection_of_its_twin():
    info = ctf275_info(150)
    loc = {name: info['chs'][info['ch_names'].index(name)]['loc'].reshape(4, 3) for name in ('MLO42', 'MRO42')}
    np.testing.assert_allclose(loc['MLO42'][0], loc['MRO42'][0] * [-1, 1, 1])
    np.testing.assert_allclose(loc['MLO42'][3], loc['MRO42'][3] * [-1, 1, 1])  # the coil's normal
    assert np.linalg.det(loc['MLO42'][1:]) == pytest.approx(1, abs=1e-3)


def test_a_patient_is_as_real_ones_are(patient):
    data, truth = patient
    assert list(data) == ['meg', 'events', 'reannot', 'file']
    for signal in data['meg']:
        assert signal.shape == (N_CHANNELS, 30 * 150)
        assert 1e-13 < signal.std() < 1e-12
        power = np.abs(np.fft.rfft(signal)) ** 2
        frequency = np.fft.rfftfreq(signal.shape[1], 1 / 150)
        assert power[:, (frequency > 56) | (frequency < 0.1)].sum() < 0.01 * power.sum()
    assert truth['amplitude'].between(2e-13, 2e-11).all()
    for block, events in enumerate(data['events']):
        peaks = truth.loc[truth['block'] == block, 'sample'].to_numpy()
        assert len(events) <= len(peaks)
        distance = np.abs(events[:, None] - peaks).min(axis=1)
        assert distance.max() <= 5 * 0.01 * 150  # 5 standard deviations of the jitter


def test_the_snr_is_what_was_asked_for():
    """The noise-free spikes are the difference of two simulations that differ in nothing but the snr."""
    stronger, _ = simulate_patient(PATIENT._replace(snr=6.0, distractor_rate=0.0))
    weaker, truth = simulate_patient(PATIENT._replace(distractor_rate=0.0))
    spike_std, background = [], []
    for block, (a, b) in enumerate(zip(weaker['meg'], stronger['meg'], strict=True)):
        field = b.astype(np.float64) - a
        peaks = truth.loc[truth['block'] == block, 'sample'].to_numpy()
        background.append(a - field)
        spike_std += field[:, peaks].std(axis=0).tolist()
    assert np.mean(spike_std) / np.concatenate(background, axis=1).std() == pytest.approx(3.0, rel=1e-3)


def test_the_same_seed_gives_the_same_bytes(patient):
    data, truth = patient
    again, truth_again = simulate_patient(PATIENT)
    another_seed, _ = simulate_patient(PATIENT._replace(seed=1))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(data['meg'], again['meg'], strict=True))
    assert truth.equals(truth_again)
    assert data['meg'][0].tobytes() != another_seed['meg'][0].tobytes()


def test_a_patient_without_spikes():
    data, truth = simulate_patient(PATIENT._replace(spike_rate=0.0))
    assert len(truth) == 0
    assert not any(map(len, data['events']))


def test_a_simulation_does_not_mix_with_other_recordings(run_script, paths, write_raw, recordings):
    path = write_raw(recordings())
    before = path.read_bytes()
    ended = run_script('simulate_data_raw.py', *paths, 'simulated_patients=2')
    assert ended.returncode == 2
    assert 'holds data_raw_001.pkl, which this simulation would not make' in ended.stderr
    assert path.read_bytes() == before
