"""Training keeps to the blocks with the most spikes; validation and test see whole recordings."""

import json

import pandas as pd
import pytest

import create_windows_clf
from recordings.pickles import read_pickle
from recordings.window_files import window_stem
from reports.run_results import chosen_by_annotations, describe_recordings
from runs.network_settings import subwindow_shape_of
from runs.run_directory import RunDirectory, load_params
from runs.settings import read_command
from runs.split_data import split_data
from runs.splits import split_units, split_windows
from runs.window_sets import open_window_sets
from timeseries_dataset import PARTS
from utils import DataError

LENGTHS = (720, 930, 720)
EVENTS = ((100,), (100, 400, 600), ())  # of every patient but the last: block 1 is the best
SPIKE_FREE = 5


@pytest.fixture
def patients(recordings, write_raw, tmp_path):
    """The folder of the data_raw files of five patients, the last without spikes."""
    for number in range(1, SPIKE_FREE + 1):
        events = ((), (), ()) if number == SPIKE_FREE else EVENTS
        write_raw(recordings(lengths=LENGTHS, events=events, seed=number), number)
    return tmp_path / 'raw'


@pytest.fixture
def settings_of(patients, make_windows, paths, tmp_path):
    """The settings of a run on the patients' windows, with words of a command line; the windows are made."""

    def make(*words, nb_best_blocks=1):
        make_windows(patients, tmp_path, nb_best_blocks=nb_best_blocks)
        return read_command([*paths, f'nb_best_blocks={nb_best_blocks}', *words])[1]

    return make


def split(settings, mode='auto'):
    return split_data(open_window_sets(settings), mode, None, settings, subwindow_shape_of(settings))


def blocks_of(data, part):
    table = data.clf_table[data.clf_table['part'] == part]
    return set(table[['subject', 'block']].itertuples(index=False, name=None))


def test_the_classifiers_windows_are_made_for_training_and_for_the_test(patients, paths, tmp_path, capsys):
    create_windows_clf.main([*paths, 'nb_best_blocks=1'])
    folder = tmp_path / 'windows_clf'
    for number in range(1, SPIKE_FREE + 1):
        training, test = (window_stem(folder, number, n) for n in (1, 0))
        assert set(read_pickle(f'{test}_blocks.pkl')) == {0, 1, 2}
        assert window_stem(folder, number, 1).with_name(f'{training.name}_windows_bi').exists() == (number < SPIKE_FREE)
        if number < SPIKE_FREE:
            assert set(read_pickle(f'{training}_blocks.pkl')) == {1}
    capsys.readouterr()
    create_windows_clf.main([*paths, 'nb_best_blocks=0'])  # one set for both purposes, made as for training
    assert 'patient 005: skipped, no spike annotated' in capsys.readouterr().out


@pytest.mark.parametrize('mode', ['auto', 'cv'])
def test_training_has_the_best_blocks_and_the_test_all_of_them(settings_of, capsys, mode):
    settings = settings_of('n_splits=-1')
    splits = split(settings, mode)
    tested = set()
    for data in splits:
        subjects = {part: data.patients_of(part) for part in PARTS}
        assert blocks_of(data, 'train') == {(subject, 1) for subject in subjects['train']}
        for part in PARTS[1:]:
            assert blocks_of(data, part) == {(subject, block) for subject in subjects[part] for block in range(3)}
            spiking = [subject for subject in subjects[part] if subject != SPIKE_FREE]
            assert len(data.spikes[part]) == 4 * len(spiking)
        assert SPIKE_FREE not in subjects['train']
        # Every row of the table is a window of its patient, from the set that is meant for its part.
        for row in data.clf_table.itertuples():
            windows = data.clf_patients[row.patient]
            assert (windows.subject, windows.blocks[row.window]) == (row.subject, row.block)
            assert ('_b1_' in windows.path.name) == (row.part == 'train')
        tested |= set(subjects['test'])
    assert SPIKE_FREE in tested
    assert 'only for validation and test (include_spike_free = False): 5' in capsys.readouterr().out


def test_equal_settings_need_one_set_of_windows(settings_of, tmp_path):
    settings = settings_of('nb_best_blocks_test=1')
    for path in (tmp_path / 'windows_clf').glob('*_b0_*'):
        path.unlink()
    [data] = split(settings)
    for part in PARTS:
        assert blocks_of(data, part) == {(subject, 1) for subject in data.patients_of(part)}
    assert SPIKE_FREE not in data.clf_table['subject'].tolist()


def test_of_the_blocks_of_few_patients_those_without_training_windows_are_tested(settings_of):
    settings = settings_of('patient=[1, 2, 3, 4]', 'split=block')
    [data] = split(settings)
    training = blocks_of(data, 'train')
    assert training
    assert {block for _, block in training} == {1}
    assert training | blocks_of(data, 'validation') | blocks_of(data, 'test') == {
        (subject, block) for subject in range(1, 5) for block in range(3)
    }
    table = pd.DataFrame({'subject': 1, 'block': range(6), 'label': [3, 3, 3, 0, 1, 0]})
    options = {'validation_fraction': 0.25, 'test_fraction': 0.25, 'seed': 0, 'fixed': {}}
    parts, _ = split_windows(table, split='block', trainable={(1, 0), (1, 1), (1, 2)}, **options)
    assert sorted(parts['part'][:3]) == sorted(PARTS)
    assert 'train' not in parts['part'][3:].tolist()


@pytest.mark.parametrize(('n_units', 'expected'), [(1, ['test']), (2, ['test', 'validation']), (3, [*sorted(PARTS)])])
def test_of_few_units_without_spikes_the_test_gets_the_first(n_units, expected):
    shares = {'train': 0.5, 'validation': 0.25, 'test': 0.25}
    assert sorted(split_units(list(range(n_units)), [0] * n_units, shares, seed=1).values()) == expected


def test_windows_that_are_absent_are_named_with_the_command_that_makes_them(settings_of, tmp_path):
    settings = settings_of('patient=[1, 2, 3, 5]')
    assert {patient_windows.subject for patient_windows in open_window_sets(settings).testing} == {1, 2, 3, 5}
    folder = tmp_path / 'windows_clf'
    for path in folder.glob('data_raw_002_b1_*'):
        path.unlink()
    with pytest.raises(DataError, match=r'no data_raw_002_b1_windows_bi, for training: python create_windows_clf\.py'):
        open_window_sets(settings)
    for path in folder.glob('data_raw_003_b0_*'):
        path.unlink()
    command = r'python create_windows_clf\.py nb_best_blocks_test=0 makes them'
    with pytest.raises(DataError, match=rf'no data_raw_NNN_b0_windows_bi of patients 3, for .*{command}'):
        open_window_sets(settings)


def test_earlier_runs_were_tested_on_the_blocks_that_they_were_trained_on(tmp_path):
    run = RunDirectory(tmp_path / 'AE1D_1')
    run.path.mkdir()
    run.params.write_text(json.dumps({'settings': {'nb_best_blocks': 2}, 'split': {}}))
    assert load_params(run)['settings']['nb_best_blocks_test'] == 2
    run.params.write_text(json.dumps({'settings': {'nb_best_blocks': 2, 'nb_best_blocks_test': 0}, 'split': {}}))
    assert load_params(run)['settings']['nb_best_blocks_test'] == 0


def test_reports_say_what_annotations_have_chosen(paths):
    counts = {'blocks': 12, 'minutes': 36.0}
    by_default, best = (read_command([*paths, f'nb_best_blocks_test={n}'])[1] for n in (0, 3))
    assert describe_recordings(counts, by_default) == '12 blocks, 36.0 min: all blocks of each patient'
    assert chosen_by_annotations(by_default).endswith('of training patients; nothing of the others')
    assert 'the 3 blocks with the most annotated spikes of each patient' in describe_recordings(counts, best)
    assert 'precision is lower there' in chosen_by_annotations(best)
