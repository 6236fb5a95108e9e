"""The simulated cohorts and the table of benchmarks/quality.py."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))

import quality
from cohorts import Part, other_patient

from runs.settings import read_command

OPTIONS = {
    'subject': 2,
    'n_blocks': 2,
    'block_seconds': 40,
    'spike_rate': 12.0,
    'snr': 6.0,
    'distractor_rate': 0.0,
    'annotation_jitter': 0.0,
    'annotation_missed': 0.0,
    'sfreq': 150,
    'seed': 0,
}


@pytest.mark.parametrize('rhythmic', [False, True])
def test_the_other_simulations_have_their_spikes_where_they_say(rhythmic):
    data, truth = other_patient(**OPTIONS, rhythmic=rhythmic)
    again, _ = other_patient(**OPTIONS, rhythmic=rhythmic)
    assert len(truth) > 5
    for block, meg in enumerate(data['meg']):
        assert meg.shape == (274, 6000)
        assert meg.dtype == np.float32
        np.testing.assert_array_equal(meg, again['meg'][block])
        peaks = truth.loc[truth['block'] == block, 'sample'].to_numpy()
        np.testing.assert_array_equal(data['events'][block], peaks)
        power = meg.std(axis=0)
        near = np.abs(np.arange(6000)[:, None] - peaks).min(axis=1) <= 2
        assert np.median(power[near]) > 3 * np.median(power)


def scores(detectors, seed):
    """What `scores_of_cohort` gives for {name: scores of the sub-windows of three patients}."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(300) % 10 == 3).astype(int)  # apart, since neighbours make one event
    patient = np.repeat([10, 11, 12], 100)
    timing = np.tile(15 + 30 * np.arange(100), 3)
    places = pd.DataFrame({'subject': patient, 'block': 0, 'timing': timing, 'field': 1.0, 'peak': timing})
    spikes = places.loc[truth == 1, ['subject', 'block', 'peak']].rename(columns={'peak': 'sample'})
    part = Part(None, None, truth, truth, patient, patient - 10, None, places, spikes)
    key = {'validation': part, 'test': part}
    found = {name: score(truth, rng) for name, score in detectors.items()}
    return [
        {'difficulty': 'medium', 'seed': seed, 'detector': name, 'key': key, 'found': dict.fromkeys(key, values)}
        for name, values in found.items()
    ]


def test_the_table_tells_the_right_detector_from_chance():
    _, settings = read_command([])
    detectors = {
        'chance': lambda truth, rng: rng.random(len(truth)),
        quality.SUPERVISED: lambda truth, rng: truth + rng.random(len(truth)) / 2,
        quality.UNSUPERVISED: lambda truth, rng: -(truth + rng.random(len(truth)) / 2),
    }
    table = quality.summarise([score for seed in range(4) for score in scores(detectors, seed)], settings)
    table = table.set_index('detector')
    right, chance = table.loc[quality.SUPERVISED], table.loc['chance']
    names = ['PR-AUC', 'ROC-AUC', 'F1', 'PR low', 'PR high', 'PR-AUC, second', 'PR-AUC, cohort 1']
    np.testing.assert_allclose(right[names].to_numpy(dtype=float), 1)
    assert right['sensitivity at 1 FA/min'] == pytest.approx(1)
    assert chance['PR-AUC'] == pytest.approx(chance['positive'], abs=0.1)
    assert chance['hgb - this low'] > 0.5 > right['hgb - this high'] == right['hgb - this low'] == 0
    assert table.loc[quality.UNSUPERVISED, 'ROC-AUC'] == 0


def test_intervals_are_students_t_over_the_cohorts_that_are_there():
    values = pd.Series([0.5, 0.7, np.nan, 0.6])
    mean, low, high = quality.mean_and_interval(values)
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # two degrees of freedom
    np.testing.assert_allclose([mean, low, high], [0.6, 0.6 - half, 0.6 + half])
    mean, low, high = quality.mean_and_interval(pd.Series([0.5]))
    assert mean == 0.5
    assert np.isnan([low, high]).all()


def test_an_unknown_size_is_named(run_script):
    ended = run_script('benchmarks/quality.py', 'huge')
    assert ended.returncode == 2
    assert ended.stderr == "error: unknown size 'huge': one of tiny, small, full\n"
