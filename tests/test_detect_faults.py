"""detect.py on a whole study, and what it says of runs, recordings and folders that do not fit."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from common import write_fif

from classification import load_run
from recordings.channels import N_CHANNELS
from recordings.pickles import write_pickle
from reports import detection_planning
from training.checkpoints import load_checkpoint, save_checkpoint
from utils import DataError, SettingError, write_json


# ------------------------------------------------------------------------------------------- a whole study
@pytest.fixture
def study(trained, tmp_path):
    """A table of two patients, with two and one recordings of their own."""
    for number in range(3):
        shutil.copyfile(trained.recordings[number], tmp_path / f'rec{number}_raw.fif')
    table = tmp_path / 'cohort.csv'
    table.write_text('patient,recording\n1,rec0_raw.fif\n1,rec1_raw.fif\n5,rec2_raw.fif\n')
    return table


def results(printed):
    """Number, result and reason of every patient in the table at the end."""
    return re.findall(r'^ +(\d+)  (made|skipped|refused) +(.*)$', printed, re.MULTILINE)


def test_a_study_is_detected_in_and_then_skipped_until_something_changes(trained, apply, study, capsys):
    apply(study, output=study.parent / 'out')
    first = results(capsys.readouterr().out)
    assert [row[:2] for row in first] == [('1', 'made'), ('5', 'made')]
    folders = [study.parent / 'out' / '001' / f'rec{i}_raw_detections' for i in (0, 1)]
    folders.append(study.parent / 'out' / '005' / 'rec2_raw_detections')
    n_events = [len(pd.read_csv(folder / 'detections.csv')) for folder in folders]
    assert f'{n_events[0] + n_events[1]} detections in 2 recordings' in first[0][2]
    alone = study.parent / 'alone'
    apply(study.parent / 'rec2_raw.fif', output=alone)
    for name in ('detections.csv', 'probabilities.csv'):
        assert (alone / 'rec2_raw_detections' / name).read_bytes() == (folders[2] / name).read_bytes()
    capsys.readouterr()
    apply(study, output=study.parent / 'out')
    assert [row[1] for row in results(capsys.readouterr().out)] == ['skipped', 'skipped']
    (folders[1] / 'detections.csv').unlink()
    apply(study, output=study.parent / 'out')
    made, skipped = results(capsys.readouterr().out)
    assert made[1:] == ('made', f'{n_events[1]} detections in 1 recordings; 1 made before')
    assert skipped[1] == 'skipped'
    for change in ({'marker_name': 'mine'}, {'marker_name': 'mine', 'overwrite': True}):
        apply(study, output=study.parent / 'out', patient=5, **change)
        assert [row[:2] for row in results(capsys.readouterr().out)] == [('5', 'made')]


def test_one_faulty_patient_does_not_stop_the_detection_in_others(apply, study, capsys):
    (study.parent / 'rec1_raw.fif').unlink()
    with pytest.raises(DataError, match=r'1 of 2 patients refused \(1\): the table above says why'):
        apply(study)
    refused, made = results(capsys.readouterr().out)
    assert 'rec1_raw.fif: no such recording' in refused[2]
    assert made[1] == 'made'
    assert not (study.parent / 'rec0_raw_detections').exists()
    assert (study.parent / 'rec2_raw_detections' / 'detections.json').is_file()


def test_a_recording_that_the_run_was_trained_on_is_said(trained, apply, tmp_path, capsys):
    apply(trained.recordings[1], output=tmp_path)
    warning = 'the run has seen this recording: it is in data_raw_001.pkl, of a patient of its training'
    assert f'warning: run1_raw.fif: {warning}' in capsys.readouterr().out
    assert warning in json.loads((tmp_path / 'run1_raw_detections' / 'detections.json').read_text())['warnings'][0]
    write_fif(tmp_path / 'new_raw.fif', trained.meg[1][:, ::-1], [])
    apply(tmp_path / 'new_raw.fif')
    assert 'has seen' not in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- bad input
def test_a_classifier_of_earlier_features_is_refused(trained, tmp_path):
    settings = json.loads(trained.run.params.read_text())['settings']
    state = load_checkpoint(trained.run.checkpoint('best', 'forest'))
    del state['features_version']
    save_checkpoint(tmp_path / 'earlier.pth', state)
    with pytest.raises(DataError, match=r'earlier\.pth: the features of `forest` have changed since; train .* again'):
        load_run(settings, trained.run.checkpoint('best'), tmp_path / 'earlier.pth', torch.device('cpu'))


@pytest.fixture
def spoiled(trained, tmp_path):
    """A copy of the run in which one thing was changed."""

    def make(change):
        run = tmp_path / 'AE1D_smaller_1'
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(trained.run.path, run)
        change(run)
        return run

    return make


def other_setting(name, value):
    def change(run):
        params = json.loads((run / 'params.json').read_text())
        params['settings'][name] = value
        write_json(run / 'params.json', params)

    return change


def only_folds(run):
    (run / 'fold_1').mkdir()
    (run / 'best_AE1D_smaller_1.pth').unlink()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (other_setting('window_size', 1.0), r'best_AE1D_smaller_1\.pth: trained on windows of 300 samples.*= 150'),
        (other_setting('window_size', 'long'), r"params\.json: window_size = 'long'"),
        (other_setting('low_pass', 80.0), None),  # what data_raw_001.json says counts
        (lambda run: (run / 'params.json').unlink(), r'params\.json: not the settings of a run'),
        (lambda run: (run / 'metrics.json').unlink(), 'not finished, metrics.json is missing'),
        (lambda run: (run / 'best_AE1D_smaller_1.pth').unlink(), r'best_AE1D_smaller_1\.pth: no such file'),
        (lambda run: (run / 'best_forest_1.pth').unlink(), r'best_forest_1\.pth: no such file'),
        (lambda run: (run / 'best_forest_1.pth').write_bytes(b'x'), r'best_forest_1\.pth: not a checkpoint'),
        (
            lambda run: shutil.copyfile(run / 'best_forest_1.pth', run / 'best_AE1D_smaller_1.pth'),
            r'best_AE1D_smaller_1\.pth: not an autoencoder',
        ),
        (
            lambda run: shutil.copyfile(run / 'best_AE1D_smaller_1.pth', run / 'best_forest_1.pth'),
            r'best_forest_1\.pth: not a forest',
        ),
        (only_folds, 'fold 1 of the cross-validation is missing .* take one fold, such as AE1D_smaller_1/fold_1'),
    ],
)
def test_faults_of_a_run(trained, spoiled, apply, tmp_path, change, message):
    run = spoiled(change)
    if message is None:
        apply(trained.recordings[0], run=run, output=tmp_path / 'out')
        record = json.loads((tmp_path / 'out' / 'run0_raw_detections' / 'detections.json').read_text())
        assert record['settings']['low_pass'] == 50
        return
    with pytest.raises(DataError, match=message):
        apply(trained.recordings[0], run=run, output=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_settings_of_the_run_count_and_differences_are_said(trained, apply, tmp_path, capsys):
    apply(trained.recordings[3], output=tmp_path, window_size=1.0, standardize='window', low_pass=40)
    output = capsys.readouterr().out
    for words in (
        'window_size = 1.0 now, but run AE1D_smaller_1 has 2.0',
        "standardize = 'window' now",
        'low_pass = 40',
    ):
        assert f'warning: {words}' in output
    with_others = (tmp_path / 'run3_raw_detections' / 'probabilities.csv').read_bytes()
    apply(trained.recordings[3], output=tmp_path)
    assert (tmp_path / 'run3_raw_detections' / 'probabilities.csv').read_bytes() == with_others


def test_a_fold_of_a_cross_validation_is_a_run(trained, apply, tmp_path):
    fold = tmp_path / 'AE1D_smaller_1' / 'fold_2'
    shutil.copytree(trained.run.path, fold)
    apply(trained.recordings[3], run='AE1D_smaller_1/fold_2', path_writing_data=tmp_path, output=tmp_path)
    assert (tmp_path / 'run3_raw_detections' / 'detections.csv').is_file()


def test_faults_of_recordings_and_folders(trained, apply, tmp_path):
    fif, out = trained.recordings[0], tmp_path / 'out'
    write_fif(tmp_path / 'short_raw.fif', np.zeros((N_CHANNELS, 299)), [])
    with pytest.raises(DataError, match=r'short_raw\.fif: is 1\.99 s long, shorter than a window'):
        apply(fif, tmp_path / 'short_raw.fif', output=out)
    with pytest.raises(DataError, match=r'none_raw\.fif: no such recording'):
        apply(tmp_path / 'none_raw.fif', output=out)
    with pytest.raises(DataError, match=r'data_raw_003\.pkl: no such recording'):
        apply(tmp_path / 'data_raw_003.pkl', output=out)
    with pytest.raises(SettingError, match=r'go into .* too'):
        apply(fif, fif, output=out)
    with pytest.raises(SettingError, match='an annotation, not a recording'):
        apply(fif, tmp_path / 'x-annot.fif', output=out)
    with pytest.raises(SettingError, match='lies in a CTF recording'):
        apply(fif, output=tmp_path / 'patient.ds')
    write_pickle(
        tmp_path / 'data_raw_004.pkl',
        {'meg': [np.zeros((N_CHANNELS, 299))], 'events': [[]], 'reannot': [[]], 'file': ['x']},
    )
    with pytest.raises(DataError, match=r'data_raw_004\.pkl: every block is shorter than a window of 300 samples'):
        apply(tmp_path / 'data_raw_004.pkl', output=out)
    with pytest.raises(SettingError, match='usage'):
        apply()
    with pytest.raises(SettingError, match="marker_name = 'my spike': must be a word"):
        apply(fif, output=out, marker_name='my spike')
    with pytest.raises(DataError, match='AE1D_7: no such run'):
        apply(fif, run='AE1D_7', output=out)
    assert not out.exists()
    out.write_text('a file in its place')
    with pytest.raises(DataError, match='out: is no folder'):
        apply(fif, output=out)
    assert out.read_text() == 'a file in its place'
    out.unlink()
    (out / 'run0_raw_detections').mkdir(parents=True)
    write_json(out / 'run0_raw_detections' / 'detections.json', {'recording': 'run0_raw.ds'})
    with pytest.raises(DataError, match=r'holds the detections of run0_raw\.ds'):
        apply(fif, output=out)


def test_a_folder_that_is_read_only(trained, apply, tmp_path, monkeypatch):
    """As any user but root sees it."""
    monkeypatch.setattr(detection_planning.os, 'access', lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(DataError, match=r'cannot be written; give output= a folder of yours'):
        apply(trained.recordings[0], output=tmp_path / 'new')
    assert list(tmp_path.iterdir()) == []


def test_data_raw_made_otherwise_is_refused(trained, apply, tmp_path):
    path = tmp_path / 'data_raw_001.pkl'
    shutil.copyfile(trained.folder / 'raw' / path.name, path)
    record = json.loads((trained.folder / 'raw' / 'data_raw_001.json').read_text())
    record['settings']['low_pass'] = 40.0
    write_json(path.with_suffix('.json'), record)
    with pytest.raises(DataError, match=r'data_raw_001\.pkl: made with low_pass = 40\.0, but the run with 50'):
        apply(path)
