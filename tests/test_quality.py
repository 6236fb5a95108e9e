"""The simulated cohorts and the table of benchmarks/quality.py."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))

import kinds
import quality_table
from cohorts import Part
from kinds import EEG, KINDS, kind_patient, people_of, present, share_people

from recordings.scenes import PatientSettings
from runs.settings import read_command
from utils import DataError

PATIENT = PatientSettings(
    subject=2,
    n_blocks=2,
    block_seconds=40,
    spike_rate=12.0,
    snr=6.0,
    distractor_rate=0.0,
    annotation_jitter=0.0,
    annotation_missed=0.0,
    sfreq=150,
    seed=0,
)


@pytest.mark.parametrize('kind', KINDS[1:])
def test_every_kind_has_its_spikes_where_it_says(kind):
    if kind not in present():
        pytest.skip(f'no recordings for the kind {kind}')
    eeg = share_people(EEG, 0, 150)['train'] if kind == 'eeg' else None
    data, truth = kind_patient(kind, eeg, PATIENT)
    again, _ = kind_patient(kind, eeg, PATIENT)
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


def test_nobody_is_in_the_training_and_in_the_test(tmp_path, monkeypatch):
    """Files of one person stay together; here, a recording is its own name."""
    names = {'S001R01.edf', 'S001R02.EDF', 'S002R01.edf', 'S003R01.edf'}
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(kinds, 'read_eeg', lambda path, sfreq: path.name)
    assert {person: len(paths) for person, paths in people_of(tmp_path).items()} == {'S001': 2, 'S002': 1, 'S003': 1}
    for seed in range(5):
        shared = {part: set(recordings) for part, recordings in share_people(tmp_path, seed, 150).items()}
        assert shared['train'] | shared['test'] == names
        assert shared['train'] == shared['validation']
        assert not {name[:4] for name in shared['test']} & {name[:4] for name in shared['train']}


def test_kinds_without_recordings_are_left_out_with_a_line(tmp_path, capsys):
    assert 'eeg' not in present(eeg=tmp_path)
    assert f"kind 'eeg' is left out: {tmp_path} has no EDF files of two people" in capsys.readouterr().out
    with pytest.raises(DataError, match='EDF files of 0 people'):
        share_people(tmp_path, 0, 150)


def scores(detectors, kind, seed):
    """What `scores_of_cohort` gives for {name: scores of the sub-windows of three patients}."""
    rng = np.random.default_rng(seed)
    truth = (np.arange(300) % 10 == 3).astype(int)  # apart, since neighbours make one event
    patient = np.repeat([10, 11, 12], 100)
    timing = np.tile(15 + 30 * np.arange(100), 3)
    places = pd.DataFrame({'subject': patient, 'block': 0, 'timing': timing, 'field': 1.0, 'peak': timing})
    spikes = places.loc[truth == 1, ['subject', 'block', 'peak']].rename(columns={'peak': 'sample'})
    part = Part(None, None, truth, truth, patient, np.full(300, kind), None, places, spikes)
    key = {'validation': part, 'test': part}
    cohort = {'difficulty': 'medium', 'kind': kind, 'seed': seed, 'key': key}
    return [
        cohort | {'detector': name, 'outputs': dict.fromkeys(key, score(truth, rng))}
        for name, score in detectors.items()
    ]


def test_the_table_tells_the_right_detector_from_chance():
    _, settings = read_command([])
    detectors = {
        'chance': lambda truth, rng: rng.random(len(truth)),
        quality_table.PRODUCT: lambda truth, rng: truth + rng.random(len(truth)) / 2,
        quality_table.PRODUCT_UNSUPERVISED: lambda truth, rng: -(truth + rng.random(len(truth)) / 2),
    }
    cohorts = [scores(detectors, kind, seed) for seed, kind in enumerate(('resonances', 'eeg', 'recorded'))]
    figures = quality_table.figures_by_cohort([score for cohort in cohorts for score in cohort], settings)
    table = quality_table.summarise(figures).set_index('detector')
    right, chance = table.loc[quality_table.PRODUCT], table.loc['chance']
    names = ['PR-AUC', 'ROC-AUC', 'F1', 'PR low', 'PR high', 'worst', 'held out', 'PR-AUC, resonances']
    np.testing.assert_allclose(right[names].to_numpy(dtype=float), 1)
    assert right['sensitivity at 1 FA/min'] == pytest.approx(1)
    assert chance['PR-AUC'] == pytest.approx(chance['positive'], abs=0.1)
    assert chance['forest - this low'] > 0.5 > right['forest - this high'] == right['forest - this low'] == 0
    assert table.loc[quality_table.PRODUCT_UNSUPERVISED, 'ROC-AUC'] == 0


def test_every_kind_counts_alike_and_the_worst_is_named():
    """`recorded` has two cohorts, the others one; a table by hand."""
    rows = [('eeg', 0.2), ('dipoles', 0.8), ('recorded', 0.4), ('recorded', 0.6)]
    figures = pd.DataFrame(
        [
            {'difficulty': 'medium', 'kind': kind, 'seed': seed, 'detector': detector, 'PR-AUC': value - less}
            for seed, (kind, value) in enumerate(rows)
            for detector, less in (
                (quality_table.PRODUCT, 0.0), (quality_table.PRODUCT_UNSUPERVISED, 0.1), ('no autoencoder', 0.05)
            )
        ]
    )  # fmt: skip
    row = quality_table.summarise(figures).set_index('detector').loc[quality_table.PRODUCT]
    np.testing.assert_allclose(row[['PR-AUC', 'worst', 'held out']].to_numpy(dtype=float), [0.5, 0.2, 0.35])
    assert row['worst kind'] == 'eeg'
    np.testing.assert_allclose(row[['threshold - this', 'threshold - this low']].to_numpy(dtype=float), -0.1)


def test_a_choice_is_reported_on_the_kind_that_nobody_looked_at():
    """One way is best on two kinds of three: left out, either of these is given to the other way."""
    ours, theirs = quality_table.CHOICES['what `forest` sees'][:2]
    values = {ours: [0.7, 0.7, 0.1], theirs: [0.6, 0.6, 0.5]}
    figures = pd.DataFrame(
        [
            {'difficulty': 'medium', 'kind': kind, 'seed': 0, 'detector': way, 'PR-AUC': value}
            for way in values
            for kind, value in zip(KINDS, values[way], strict=False)
        ]
    )
    table = quality_table.leave_one_kind_out(figures)
    table = table[table['choice'] == 'what `forest` sees'].set_index('held out')
    assert table['chosen on the others'].to_dict() == {'dipoles': theirs, 'resonances': theirs, 'rhythms': ours}
    assert table['PR-AUC'].to_dict() == {'dipoles': 0.6, 'resonances': 0.6, 'rhythms': 0.1}
    assert table['its PR-AUC'].to_dict() == {'dipoles': 0.7, 'resonances': 0.7, 'rhythms': 0.5}


def test_intervals_are_students_t_over_the_values_that_are_there():
    values = pd.Series([0.5, 0.7, np.nan, 0.6])
    mean, low, high = quality_table.mean_and_interval(values)
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # two degrees of freedom
    np.testing.assert_allclose([mean, low, high], [0.6, 0.6 - half, 0.6 + half])
    mean, low, high = quality_table.mean_and_interval(pd.Series([0.5]))
    assert mean == 0.5
    assert np.isnan([low, high]).all()


def test_an_unknown_size_is_named(run_script):
    ended = run_script('benchmarks/quality.py', 'huge')
    assert ended.returncode == 2
    assert ended.stderr == "error: unknown size 'huge': one of tiny, short, small, full\n"
