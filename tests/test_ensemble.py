"""detect.py with a whole cross-validation: mean and spread over the folds, and who has seen whom."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from common import NO_DIPOLE, PICTURES, clear_patient

import detect
import main_train
from classification import Ensemble, load_run, score_subwindows
from evaluation.operating_point import best_f1_threshold
from recordings.pickles import write_pickle
from runs.ensemble import members_of, unseen_by
from runs.run_directory import RunDirectory, load_params
from utils import DataError, write_json

N_PATIENTS = 5
TRAINING = {
    'masking': None,
    'classifier': 'hgb',
    'width': 1,
    'batch_size': 32,
    'num_epochs': 1,
    'bootstrap_samples': 20,
    'n_splits': 2,
    'seed': 1,
}


@pytest.fixture(scope='module')
def study(tmp_path_factory, make_windows):
    """Five patients, the last of whom has no windows, and a cross-validation of two folds on the others."""
    folder = tmp_path_factory.mktemp('study')
    for subject in range(1, N_PATIENTS + 1):
        data = clear_patient(subject, block_seconds=60, n_blocks=1, spike_rate=10.0)
        write_pickle(folder / 'raw' / f'data_raw_{subject:03d}.pkl', data)
    (folder / 'raw' / 'data_raw_005.pkl').rename(folder / 'new.pkl')
    make_windows(folder / 'raw', folder, nb_best_blocks=3)
    windows = [str(folder / 'windows_ae'), str(folder / 'windows_clf')]
    words = [
        f'path_raw_data={folder / "raw"}',
        f'path_extracted_data={windows}',
        f'path_writing_data={folder / "results"}',
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module, name in PICTURES:
            patch.setattr(module, name, lambda *_: None)
        main_train.main(['cv', 'AE1D_smaller', *words, *(f'{name}={value}' for name, value in TRAINING.items())])
    return folder, words, RunDirectory(folder / 'results' / 'AE1D_smaller_1')


@pytest.fixture
def apply(study, tmp_path, monkeypatch):
    """Run detect.py on a data_raw file; gives the folder of the detections in its first block."""
    _, words, _ = study
    monkeypatch.setattr('reports.detection_files.write_report', lambda *_: None)
    monkeypatch.setattr('reports.foci.fit_dipoles', lambda fields, *rest: [NO_DIPOLE] * len(fields))

    def detected(path, run='AE1D_smaller_1'):
        detect.main([run, str(path), *words, f'output={tmp_path}'])
        return tmp_path / f'{path.stem}_detections' / 'block_00'

    return detected


def scores_of_folds(run, path):
    """Sub-windows of the block of a data_raw file by every fold."""
    settings = load_params(run)['settings']
    [meg] = pd.read_pickle(path)['meg']
    loaded = [
        load_run(settings, fold.checkpoint('best'), fold.checkpoint('best', 'hgb'), torch.device('cpu'))
        for fold in run.folds
    ]
    return [score_subwindows(trained, meg, [meg.shape[1]]) for trained in loaded]


def test_a_new_recording_gets_mean_and_spread_of_all_folds(study, apply):
    folder, _, run = study
    detections = apply(folder / 'new.pkl')
    probas = np.stack([table['proba'] for table in scores_of_folds(run, folder / 'new.pkl')])
    table = pd.read_csv(detections / 'probabilities.csv')
    np.testing.assert_allclose(table['proba'], probas.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(table['uncertainty'], probas.std(axis=0, ddof=1), atol=1e-9)
    assert probas.std(axis=0).max() > 0

    predictions = pd.read_csv(run.predictions)
    threshold = best_f1_threshold(predictions['test'].to_numpy(), predictions['proba'].to_numpy())
    record = json.loads((detections / 'detections.json').read_text())
    assert record['threshold'] == pytest.approx(threshold)
    assert record['policy'] == 'best F1 of the sub-windows on the pooled tests of the folds'
    assert sorted(record['checkpoints'])[0] == 'fold_1/best_AE1D_smaller_1.pth'
    assert len(record['calibration']) == 2
    assert (table['pred'] == (table['proba'] >= threshold)).all()

    events = pd.read_csv(detections / 'detections.csv')
    assert list(events)[:3] == ['onset', 'duration', 'probas']
    for event in events.itertuples():  # each has the spread of its surest sub-window
        [row] = np.flatnonzero(np.isclose(table['proba'], event.probas, atol=1e-6))[:1]
        assert event.uncertainty == pytest.approx(table['uncertainty'][row], abs=1e-6)


def test_a_patient_of_the_study_is_scored_by_the_folds_that_have_not_seen_him(study, apply, capsys):
    folder, _, run = study
    for number, fold in enumerate(run.folds):
        subject = load_params(fold)['split']['test'][0]
        path = folder / 'raw' / f'data_raw_{subject:03d}.pkl'
        detections = apply(path)
        table = pd.read_csv(detections / 'probabilities.csv')
        np.testing.assert_allclose(table['proba'], scores_of_folds(run, path)[number]['proba'], atol=1e-9)
        assert table['uncertainty'].isna().all()
        assert f'only fold {number + 1}, which has not seen it, counts' in capsys.readouterr().out
        # As the test of that fold has it, where both score.
        tested = pd.read_csv(run.predictions)
        tested = tested[tested['subject'] == subject].set_index('timing')['proba']
        centre = np.round((table['onset'] + table['duration'] / 2) * 150, 3)
        both = table.assign(centre=centre)[centre.isin(tested.index)]
        assert len(both) == len(tested)
        np.testing.assert_allclose(both['proba'], tested.loc[both['centre']], rtol=1e-4, atol=1e-6)


def test_a_single_fold_still_can_be_named(study, apply):
    folder, _, run = study
    detections = apply(folder / 'new.pkl', 'AE1D_smaller_1/fold_2')
    table = pd.read_csv(detections / 'probabilities.csv')
    np.testing.assert_allclose(table['proba'], scores_of_folds(run, folder / 'new.pkl')[1]['proba'], atol=1e-9)
    assert 'uncertainty' not in table


def test_a_cross_validation_that_is_not_whole_is_refused(study, tmp_path):
    _, _, run = study
    copy = RunDirectory(shutil.copytree(run.path, tmp_path / run.name))
    metrics = json.loads(copy.metrics.read_text())
    write_json(copy.metrics, {name: value for name, value in metrics.items() if name != 'ensemble'})
    words = [f'path_writing_data={tmp_path}']
    with pytest.raises(DataError, match='no threshold for all folds together, as of an earlier version'):
        detect.main([run.name, str(tmp_path / 'any.pkl'), *words])
    copy.folds[0].checkpoint('best', 'hgb').unlink()
    with pytest.raises(DataError, match=r'fold 1 of the cross-validation is missing .*/fold_1'):
        members_of(copy)
    shutil.rmtree(copy.folds[1].path)
    with pytest.raises(DataError, match='fold 1, 2 of the cross-validation is missing'):
        members_of(copy)


def test_who_has_seen_a_recording():
    seen = [{'a': 'x', 'b': 'x'}, {'b': 'x'}, {}]
    assert unseen_by(seen, {'a'}) == [1, 2]
    assert unseen_by(seen, {'c'}) == [0, 1, 2]
    assert unseen_by(seen[:2], {'b'}) == [0, 1]  # every fold has: they warn of it
    assert Ensemble([], {'threshold': 0.5, 'policy': ''}).members == []
