"""Foci: events of one field and course are one group, whatever their size and sign; others stay alone."""

import numpy as np
import pandas as pd
import pytest
from common import recording_of
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from classification import Detections
from recordings.scenes import PatientSettings
from recordings.simulation import simulate_patient
from reports.foci import align, background_covariance, cut_epochs, find_foci, group_events, on_the_rise
from reports.recording_detections import detections_of_recording

N_CHANNELS, N_TIMES = 30, 41
REACH = {'half': 5, 'shift': 5}


def epochs_of(sources, amplitudes, delays, noise, seed=0):
    """Events (n, N_CHANNELS, N_TIMES) of sources, each a field and a course of its own, in white noise."""
    rng = np.random.default_rng(seed)
    fields = np.sqrt(N_CHANNELS) * np.linalg.qr(rng.normal(size=(N_CHANNELS, N_CHANNELS)))[0]  # unlike each other
    times = np.arange(N_TIMES) - N_TIMES // 2
    course = np.exp(-0.5 * ((times - np.asarray(delays)[:, None]) / 3) ** 2)
    clean = np.asarray(amplitudes)[:, None, None] * fields[sources][:, :, None] * course[:, None]
    return clean + noise * rng.normal(size=clean.shape)


def same_groups(a, b):
    return np.array_equal(np.equal.outer(a, a), np.equal.outer(b, b))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 100))
def test_groups_are_the_sources_whatever_size_sign_and_delay(sources, seed):
    rng = np.random.default_rng(seed)
    amplitudes = rng.uniform(0.5, 3, len(sources)) * rng.choice([-1, 1], len(sources))
    delays = rng.integers(-2, 3, len(sources))
    epochs = epochs_of(sources, amplitudes, delays, 0.05, seed)
    grouping = group_events(epochs, 0.05**2 * np.eye(N_CHANNELS), **REACH)
    counts = np.bincount(sources)[sources]
    assert same_groups(grouping.labels[counts > 1], np.array(sources)[counts > 1])
    np.testing.assert_array_equal(grouping.labels == 0, counts == 1)
    sizes = np.bincount(grouping.labels)[1:]
    assert (np.diff(sizes) <= 0).all()
    for number in range(1, len(sizes) + 1):
        rows = grouping.labels == number
        # Aligned, they are all the same but for amplitude and noise.
        aligned = align(epochs, grouping, number, 10).reshape(rows.sum(), -1)
        assert (np.corrcoef(aligned) > 0.95).all()
        assert np.ptp(delays[rows] - grouping.shifts[rows]) == 0
        assert np.ptp(np.sign(amplitudes[rows]) * grouping.signs[rows]) == 0


def test_one_threshold_does_for_weak_and_strong_events():
    """Without the correction for noise, the weak half would correlate with nothing."""
    sources = np.arange(40) % 2
    amplitudes = np.where(np.arange(40) < 20, 0.8, 8.0)
    epochs = epochs_of(sources, amplitudes, np.zeros(40), 1.0)
    grouping = group_events(epochs, np.eye(N_CHANNELS), **REACH)
    assert adjusted_rand_score(sources, grouping.labels) > 0.8
    noise = np.random.default_rng(1).normal(size=(40, N_CHANNELS, N_TIMES))
    by_chance = group_events(noise, np.eye(N_CHANNELS), **REACH).labels
    assert np.bincount(by_chance)[1:].max(initial=0) <= 2  # of 780 pairs, one or two
    assert (by_chance == 0).mean() > 0.8


def test_a_strong_rhythm_of_the_background_makes_no_group():
    rng = np.random.default_rng(0)
    rhythm = rng.normal(size=N_CHANNELS)
    epochs = epochs_of([0, 0, 0, 1, 1, 1], np.ones(6), np.zeros(6), 0.1)
    epochs += rhythm[:, None] * rng.normal(0, 1.5, (6, 1, 1))
    noise = 0.01 * np.eye(N_CHANNELS) + 2.25 * np.outer(rhythm, rhythm)
    assert same_groups(group_events(epochs, noise, **REACH).labels, np.array([1, 1, 1, 2, 2, 2]))


@pytest.mark.parametrize('n_events', [0, 1])
def test_without_a_second_event_nothing_is_a_group(n_events):
    grouping = group_events(np.ones((n_events, N_CHANNELS, N_TIMES)), np.eye(N_CHANNELS), **REACH)
    assert grouping.labels.tolist() == [0] * n_events
    silent = group_events(np.zeros((3, N_CHANNELS, N_TIMES)), np.zeros((N_CHANNELS, N_CHANNELS)), **REACH)
    assert silent.labels.tolist() == [0, 0, 0]


# --------------------------------------------------------------------------------------- whole recordings
def detections_at(blocks, samples, parts=None):
    """Detections of recordings: nothing but events, all of probability 0.9."""
    by_block = [
        Detections(
            pd.DataFrame({'part': 0, 'onset': [0], 'end': block.meg.shape[1], 'proba': 0.9, 'pred': 1}),
            pd.DataFrame({'sample': of_block, 'part': 0 if parts is None else parts, 'proba': 0.9}),
        )
        for block, of_block in zip(blocks, samples, strict=True)
    ]
    return detections_of_recording('x', blocks, by_block)


def test_epochs_end_where_a_continuous_part_does():
    meg = np.tile(np.arange(100.0), (274, 1))
    block = recording_of(meg, parts=[(0, 40), (60, 120)])
    detections = detections_at([block], [[2, 38, 41, 97]], [0, 0, 1, 1])
    epochs = cut_epochs(detections, detections.events.index, 5)
    expected = [
        np.clip(np.arange(s - 5, s + 6), *ends)
        for s, ends in zip([2, 38, 41, 97], [(0, 39)] * 2 + [(40, 99)] * 2, strict=True)
    ]
    np.testing.assert_array_equal(epochs[:, 7], expected)


def test_the_background_is_what_is_far_from_events_and_bad_segments():
    rng = np.random.default_rng(0)
    meg = rng.normal(size=(274, 12000)).astype(np.float32)
    block = recording_of(meg, bad_segments=[(11000, 11500)])
    quiet = np.ones(12000, dtype=bool)
    quiet[11000:11500] = False
    for event in (50, 6000, 11990):
        quiet[max(event - 30, 0) : event + 31] = False
    expected = meg[:, quiet].astype(np.float64) @ meg[:, quiet].T.astype(np.float64) / quiet.sum()
    detections = detections_at([block], [[50, 6000, 11990]])
    np.testing.assert_allclose(background_covariance(detections, 30), expected, rtol=1e-5, atol=1e-5)
    short = recording_of(meg[:, :300])
    whole = meg[:, :300].astype(np.float64)
    np.testing.assert_allclose(
        background_covariance(detections_at([short], [[150]]), 30), whole @ whole.T / 300, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('n_foci', [1, 2, 3])
def test_the_foci_of_a_simulated_patient_are_found(n_foci):
    """One patient of each kind; benchmarks/foci.py has twenty."""
    patient = PatientSettings(
        subject=1, n_blocks=1, block_seconds=90, spike_rate=20.0, snr=3.0, distractor_rate=4.0, annotation_jitter=0.0,
        annotation_missed=0.0, sfreq=150, seed=4,
    )  # fmt: skip
    data, truth = simulate_patient(patient, n_foci)
    blocks = [recording_of(meg) for meg in data['meg']]
    detections, foci = find_foci(detections_at(blocks, [truth['sample'].to_numpy()]))
    clusters, true = detections.events['cluster'].to_numpy(), truth['focus'].to_numpy()
    assert len(set(true)) == min(n_foci, 2)  # of three foci, one has no spike in this block
    alone = np.where(clusters == 0, -np.arange(len(clusters)), clusters)
    if n_foci > 1:
        assert adjusted_rand_score(true, alone) >= 0.8
    else:  # where there is one focus, the index is 0 as soon as one of its spikes is alone
        assert (clusters == 1).mean() >= 0.8
    assert [focus.n_events for focus in foci] == [(clusters == focus.number).sum() for focus in foci]
    assert all(focus.proba == pytest.approx(0.9) for focus in foci)
    for number in set(true):
        [focus] = [f for f in foci if f.number == np.bincount(clusters[true == number]).argmax()]
        [position] = np.unique(truth.loc[true == number, ['x', 'y', 'z']], axis=0)
        assert np.linalg.norm(focus.dipole.position - position) < 0.015


def test_the_dipole_is_fitted_on_the_rise():
    signs = np.array([1, -1, 1, -1])
    rising = np.concatenate([np.zeros(10), np.arange(11) / 10, np.zeros(20)])  # from sample 10 to the peak at 20
    np.testing.assert_allclose(on_the_rise(np.outer(signs, rising + 0.01), 20, 8), 0.8 * 1.01 * signs)
    step = np.outer(signs, np.arange(41) >= 20)  # from nothing to the peak
    np.testing.assert_allclose(on_the_rise(step, 20, 8), 0.8 * signs)
    level = np.ones((4, 41)) * signs[:, None]
    level[:, :12] *= 2  # nowhere near is it lower than at the peak
    np.testing.assert_array_equal(on_the_rise(level, 20, 9), level[:, 11])
    np.testing.assert_array_equal(on_the_rise(level, 1, 9), level[:, 0])
    assert not on_the_rise(np.zeros((4, 41)), 20, 9).any()
