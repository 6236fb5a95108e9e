"""The modes of main_train.py on tiny windows, in this process."""

import json
import multiprocessing
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from common import clear_patient

import main_train
from classification import load_run
from evaluation.metrics import MAIN_METRICS
from models import build_model
from recordings.channels import N_CHANNELS
from recordings.pickles import read_pickle, write_pickle
from runs.run_directory import RunDirectory
from runs.settings import read_command
from runs.source import Source
from saving_functions import save_summary_row
from timeseries_dataset import WindowDataset, batches, id_table, open_directory
from training.checkpoints import load_checkpoint
from utils import DataError, SettingError, set_seed

N_PATIENTS, SPIKE_FREE = 6, 6
TRAINING = {
    'masking': None,
    'classifier': 'sfcn',
    'width': 1,
    'batch_size': 16,
    'num_epochs': 2,
    'classifier_width': 2,
    'classifier_batch_size': 64,
    'classifier_learning_rate': 1e-3,
    'classifier_num_epochs': 2,
    'pretraining_epochs': 1,
    'bootstrap_samples': 50,
    'include_spike_free': True,
}


@pytest.fixture(scope='module')
def windows(tmp_path_factory, make_windows):
    """Windows of six simulated patients, the last one without spikes: a folder with windows_ae and windows_clf."""
    folder = tmp_path_factory.mktemp('windows')
    for subject in range(1, N_PATIENTS + 1):
        data = clear_patient(subject, block_seconds=24, spike_rate=25.0 * (subject != SPIKE_FREE))
        write_pickle(folder / 'raw' / f'data_raw_{subject:03d}.pkl', data)
    make_windows(folder / 'raw', folder, include_spike_free=True)
    return folder


@pytest.fixture
def run(windows, tmp_path):
    """Run main_train.py with settings on the windows, results in tmp_path/results."""

    def with_settings(*positional, folder=windows, **settings):
        settings = TRAINING | {'path_writing_data': str(tmp_path / 'results')} | settings
        paths = [str(folder / 'windows_ae'), str(folder / 'windows_clf')]
        words = [f'{name}={value}' for name, value in settings.items()]
        main_train.main([*positional, f'path_extracted_data={paths}', *words])

    return with_settings


def tables(run):
    return [pd.read_csv(path) for path in (run.predictions, run.results, run.patients)]


def test_cross_validation_tests_every_patient_once_and_reports_what_is_undefined(run, tmp_path, capsys):
    run('cv', 'AE1D_smaller', classifier='threshold', n_splits=-1, num_epochs=1, patient=[1, 2, 3, SPIKE_FREE])
    top = RunDirectory(tmp_path / 'results' / 'AE1D_smaller_1')
    predictions, results, patients = tables(top)
    subjects = [1, 2, 3, SPIKE_FREE]
    assert sorted(predictions['subject'].unique()) == subjects
    assert predictions.equals(predictions.sort_values(['subject', 'block', 'timing'], ignore_index=True))
    assert results['fold'].tolist() == [1, 2, 3, 4]
    assert patients['subject'].tolist() == subjects
    folds = []
    for number, subject in enumerate(subjects, start=1):
        fold = RunDirectory(top.path / f'fold_{number}', top.name)
        assert fold.report.is_file()
        assert fold.checkpoint('best').is_file()
        assert fold.checkpoint('best', 'threshold').is_file()
        of_fold, row, _ = tables(fold)
        assert row['accuracy'][0] == results['accuracy'][number - 1]
        split = json.loads(fold.params.read_text())['split']
        assert split['test'] == [subject]
        assert not set(split['test']) & set(split['train'] + split['validation'])
        assert not set(split['train']) & set(split['validation'])
        folds.append(of_fold)
    assert predictions.equals(pd.concat(folds).sort_values(['subject', 'block', 'timing'], ignore_index=True))

    free = results.iloc[3]
    assert free[['PR-AUC', 'ROC-AUC', 'sensitivity', 'event sensitivity']].isna().all()
    assert free['false alarms/min'] >= 0
    metrics = json.loads(top.metrics.read_text())
    others = results['PR-AUC'].drop(3)
    assert metrics['folds']['PR-AUC'] == pytest.approx({'mean': others.mean(), 'std': others.std(), 'folds': 3})
    output = capsys.readouterr().out
    assert 'warning: fold 4: undefined, and left out of means: PR-AUC, ROC-AUC' in output
    assert 'warning: the test part has no spikes' in output
    summary = pd.read_csv(tmp_path / 'results' / 'summary.csv')
    assert summary[['run', 'mode', 'classifier']].values.tolist() == [['AE1D_smaller_1', 'cv', 'threshold']]
    assert list(summary)[-len(MAIN_METRICS) :] == MAIN_METRICS


def test_fine_tuning_starts_from_the_saved_weights_and_the_classifier_alone_keeps_them(run, tmp_path, capsys):
    run('auto', 'AE1D_smaller', threshold_policy='false_alarms', levels=[0])
    results = tmp_path / 'results'
    source = RunDirectory(results / 'AE1D_smaller_1')
    split = json.loads(source.params.read_text())['split']
    capsys.readouterr()

    # A rate so small that the autoencoder stays at its start: the classifier sees the cards it was trained on.
    run('ft', 'AE1D_smaller', model_nb=1, width=3, num_epochs=1, seed=5, fine_tuning_rate=1e-6)
    tuned = RunDirectory(results / 'AE1D_smaller_2')
    output = capsys.readouterr().out
    assert 'warning: width = 3 now, but run AE1D_smaller_1 has 1, which is used' in output
    assert "warning: levels = 'all' now, but run AE1D_smaller_1 has [0], which is used" in output
    for network in (None, 'sfcn'):
        saved, further = (
            load_checkpoint(source.checkpoint('best', network)),
            load_checkpoint(tuned.checkpoint('last', network)),
        )
        start = further['history'][0]
        assert start['epoch'] == 0
        assert start['validation loss'] == pytest.approx(saved['validation loss'], rel=1e-4)
        rate = 1e-3 if network == 'sfcn' else read_command([])[1].learning_rate
        assert further['learning rate'] == pytest.approx(1e-6 * rate)
        steps = [state['optimizer_state_dict']['state'][0]['step'] for state in (saved, further)]
        assert steps[1] > steps[0]
    # Another seed, but patients that the first run has seen stay where they were.
    further = json.loads(tuned.params.read_text())['split']
    assert set(split['train']) <= set(further['train'])
    assert set(split['validation']) <= set(further['validation'])
    assert not set(further['test']) & {*split['train'], *split['validation']}
    assert (further['started from'], further['seen before']) == (
        'AE1D_smaller_1',
        sorted(split['train'] + split['validation']),
    )

    run('clf', 'AE1D_smaller', model_nb=1, classifier='svm')
    reclassified = RunDirectory(results / 'AE1D_smaller_3')
    assert reclassified.checkpoint('best').read_bytes() == source.checkpoint('best').read_bytes()
    assert load_checkpoint(reclassified.checkpoint('best', 'svm'))['decision']['policy'].startswith('best F1')
    decision = load_checkpoint(source.checkpoint('best', 'sfcn'))['decision']
    assert json.loads(reclassified.params.read_text())['split']['test'] == split['test']
    assert decision['policy'] == 'at most 1 false alarms per minute on the validation set'

    main_train.main(['compare', 'AE1D_smaller_1', str(reclassified.path), f'path_writing_data={results}'])
    table = pd.read_csv(results / 'compare_AE1D_smaller_1_AE1D_smaller_3.csv', index_col='figure')
    for column, run_directory in (('A', source), ('B', reclassified)):
        assert table.loc['PR-AUC', column] == pytest.approx(tables(run_directory)[1]['PR-AUC'][0])
    assert table.loc['PR-AUC', 'difference'] == pytest.approx(table.loc['PR-AUC', 'B'] - table.loc['PR-AUC', 'A'])
    reclassified.metrics.unlink()
    with pytest.raises(DataError, match='AE1D_smaller_3: not finished'):
        main_train.main(['compare', 'AE1D_smaller_1', 'AE1D_smaller_3', f'path_writing_data={results}'])


@pytest.mark.parametrize(
    ('classifier', 'masking'),
    [('latent', None), ('sfcn', 'context'), ('hgb', 'context'), ('stacked', 'context'), ('raw', None)],
)
def test_predictions_come_again_from_the_run_directory_alone(run, windows, tmp_path, classifier, masking):
    patients = {'patient': [1, 2, 3, SPIKE_FREE], 'test_patients': [2, SPIKE_FREE]}
    run('auto', 'wavelets', classifier=classifier, masking=masking, filters=[2, 2], num_epochs=1, latent_nodes=8,
        subwindow_size=0.7, calibration='isotonic', copies='both', features='signal', **patients)  # fmt: skip
    finished = RunDirectory(tmp_path / 'results' / 'wavelets_1')
    assert 'No spike annotation was used' not in finished.report.read_text()
    predictions, results, _ = tables(finished)
    assert list(results)[:5] == ['accuracy', 'f1-score', 'specificity', 'sensitivity', 'confusion matrix']
    settings = json.loads(finished.params.read_text())['settings']
    again = load_run(
        settings, finished.checkpoint('best'), finished.checkpoint('best', classifier), torch.device('cpu')
    )
    opened = open_directory(windows / 'windows_clf', 3, [2, SPIKE_FREE], {'sfreq': 150, 'window_size': 2.0})
    rows = id_table(opened)
    blocks = np.repeat(rows.groupby(['subject', 'block']).ngroup(), again.reader.shape.n_subwindows)
    loader = batches(WindowDataset(opened, rows, zscore=False), batch_size=16)
    proba = again.score(again.reader.read(loader, blocks))
    assert sorted(predictions['subject'].unique()) == [2, SPIKE_FREE]
    np.testing.assert_allclose(predictions['proba'], proba, rtol=1e-12)
    assert (predictions['pred'] == (proba >= again.decision['threshold'])).all()
    # A block alone, as a recording is scored.
    alone = rows[(rows['subject'] == 2) & (rows['block'] == 1)]
    proba = again.score(again.reader.read(batches(WindowDataset(opened, alone, zscore=False), batch_size=8)))
    of_block = (predictions['subject'] == 2) & (predictions['block'] == 1)
    np.testing.assert_allclose(predictions['proba'][of_block], proba, rtol=1e-4, atol=1e-7)


def test_nothing_of_a_sub_window_reaches_its_own_reconstruction(windows):
    """From the stored windows on; z-scored one by one, of which masking warns, the scale would tell of it."""
    [opened] = open_directory(windows / 'windows_clf', 3, 2, {'sfreq': 150, 'window_size': 2.0})
    set_seed(0)
    model = build_model('AE1D_smaller', N_CHANNELS, 300, width=4).eval()
    changed = opened._replace(windows=np.array(opened.windows))
    changed.windows[:, :, 135:165] = 3 * changed.windows[:, :, 165:195]  # sub-window 3

    def predicted(patient_windows, zscore):
        x, _ = WindowDataset([patient_windows], id_table([patient_windows]), zscore=zscore).__getitems__([0, 5])
        with torch.no_grad():
            residuals = model.masked_residuals(x, (45, 7, 30), 8)[:, 0].numpy()
        return masked_segments(x[:, 0].numpy(), (45, 7, 30), 8) - residuals

    for zscore in (False, True):
        difference = np.abs(predicted(changed, zscore) - predicted(opened, zscore)).max(axis=(0, 1, 3))
        assert (difference[3] < 1e-5) != zscore
        assert (difference[[2, 4]] > 1e-4).all()


def masked_segments(x, shape, margin):
    starts = [shape[0] + k * shape[2] - margin for k in range(shape[1])]
    return np.stack([x[..., start : start + shape[2] + 2 * margin] for start in starts], axis=2)


@pytest.mark.parametrize('masking', [None, 'context'])
def test_the_unsupervised_detector_uses_no_annotation_in_training(run, windows, tmp_path, masking):
    """Other annotations of the training patients change neither the networks nor the order of the test."""
    patients = {'training_patients': [1, 2, 3], 'validation_patients': [4], 'test_patients': [5], 'masking': masking}
    run('auto', 'AE1D_smaller', classifier='threshold', **patients)
    unlabelled = tmp_path / 'other'
    shutil.copytree(windows / 'windows_clf', unlabelled / 'windows_clf')
    for subject in (1, 2, 3):
        for path in (unlabelled / 'windows_clf').glob(f'data_raw_{subject:03d}_b*_labels*.pkl'):
            write_pickle(path, read_pickle(path)[::-1].copy())
    # And it needs no windows_ae, whether patients are listed or not.
    run('auto', 'AE1D_smaller', classifier='threshold', folder=unlabelled, patient=[1, 2, 3, 4, 5], **patients)
    first, second = (RunDirectory(tmp_path / 'results' / f'AE1D_smaller_{nb}') for nb in (1, 2))
    assert first.predictions.read_bytes() == second.predictions.read_bytes()
    weights = [load_checkpoint(run_of.checkpoint('best'))['model_state_dict'] for run_of in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    report = first.report.read_text()
    assert 'No spike annotation was used in training' in report
    assert 'Annotations chose the 3 blocks of each training patient, who is trained' in report


def source(folder, **split):
    empty = {'by': 'patient', 'train': [], 'validation': [], 'test': [], 'blocks': [], 'seen before': []}
    return Source(RunDirectory(folder / 'AE1D_1'), {}, empty | split, [])


def test_nothing_that_a_chain_of_runs_has_seen_is_tested(tmp_path):
    chain = source(tmp_path, train=[8], validation=[9], test=[10], **{'seen before': [1, 2, 3]})
    parts = {1: 'train', 2: 'train', 3: 'train', 8: 'train', 9: 'validation'}
    assert chain.fixed('ft', set(range(1, 13))) == parts | {10: 'test'}
    assert chain.fixed('clf', set(range(1, 13))) == parts | {10: 'test'}
    assert chain.fixed('clf', {10, 11}) == {10: 'test'}
    assert chain.fixed('ft', {10, 11}) == {}

    pairs = [[1, 0, 'train'], [1, 1, 'validation'], [2, 0, 'test'], [2, 1, 'train']]
    by_block = source(tmp_path, by='block', train=[1, 2], validation=[1], test=[2], blocks=pairs)
    assert by_block.fixed('clf', {1, 2}) == {(s, b): part for s, b, part in pairs}
    assert by_block.fixed('clf', {1, 2, 5, 6}) == {1: 'train', 2: 'train'}


def test_what_does_not_fit_ends_before_anything_is_written(run, windows, tmp_path):
    with pytest.raises(SettingError, match=r'levels = .1.: AE1D has the levels 0 to 0'):
        run('auto', 'AE1D', levels=[1])
    with pytest.raises(SettingError, match='model_nb: mode ft starts from a finished run'):
        run('ft', 'AE1D')
    with pytest.raises(DataError, match='AE1D_4: no such run directory'):
        run('clf', 'AE1D', model_nb=4)
    with pytest.raises(DataError, match='no windows of patient 44'):
        run('auto', 'AE1D', test_patients=[44])
    with pytest.raises(SettingError, match='patient 2 cannot be in the test part: it is in the train part'):
        run('auto', 'AE1D', training_patients=[2], test_patients=[2])
    with pytest.raises(SettingError, match='no meaning with mode cv'):
        run('cv', 'AE1D', test_patients=[2])
    with pytest.raises(DataError, match='6 patients are too few for n_splits = 7'):
        run('cv', 'AE1D', n_splits=7)
    with pytest.raises(SettingError, match="masking='context' needs signal around the inner part"):
        run('auto', 'AE1D', masking='context', spike_spacing_from_border=0)
    with pytest.raises(SettingError, match="made with standardize = 'block', but standardize is 'window' now"):
        run('auto', 'AE1D', recipe='original')
    with pytest.raises(SettingError, match='balanced=True chooses by annotations'):
        run('auto', 'AE1D', classifier='threshold', balanced=True)
    with pytest.raises(SettingError, match=r'subwindow_size = 0\.003 is less than a sample'):
        run('auto', 'AE1D', subwindow_size=0.003)
    with pytest.raises(SettingError, match=r'levels = .*: must be'):
        run('auto', 'AE1D', levels=[[0]])
    with pytest.raises(SettingError, match='compare takes two finished runs'):
        run('compare', 'AE1D_1')
    assert not (tmp_path / 'results').exists()


def _append(arguments):
    folder, name = arguments
    save_summary_row(folder, {'run': name, 'PR-AUC': 0.5})


def test_jobs_that_end_at_once_all_get_their_row(tmp_path):
    with multiprocessing.get_context('fork').Pool(8) as pool:
        pool.map(_append, [(tmp_path, f'AE1D_{i}') for i in range(40)], chunksize=1)
    table = pd.read_csv(tmp_path / 'summary.csv')
    assert sorted(table['run']) == sorted(f'AE1D_{i}' for i in range(40))
    save_summary_row(tmp_path, {'run': 'AE1D_41', 'ROC-AUC': 0.5})
    assert len(pd.read_csv(tmp_path / 'summary_old_1.csv')) == 40
    assert pd.read_csv(tmp_path / 'summary.csv')['run'].tolist() == ['AE1D_41']


def test_the_report_renders_in_a_browser(run, tmp_path):
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('no Chromium found: the report is not rendered')
    run('auto', 'AE1D_smaller', classifier='threshold', num_epochs=1)
    report = tmp_path / 'results' / 'AE1D_smaller_1' / 'report.html'
    words = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--enable-logging=stderr',
        f'--user-data-dir={tmp_path / "b"}',
    ]
    ended = subprocess.run(
        [browser, *words, '--dump-dom', report.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert not [
        line for line in ended.stderr.splitlines() if 'CONSOLE' in line and ('Uncaught' in line or 'Error' in line)
    ]
    for words in ('Main metrics on the test set', 'precision recall', 'main_train.py auto AE1D_smaller', 'image/png'):
        assert words in ended.stdout
    assert Path(report).stat().st_size < 20e6
