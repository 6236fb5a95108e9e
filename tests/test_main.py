"""The whole road, as a user takes it: simulate, make windows, train, look at what came out."""

import json

import numpy as np
import pandas as pd
import pytest

from recordings.data_raw import read_data_raw

SIMULATION = [
    'simulated_patients=5',
    'simulated_spike_free=1',
    'simulated_blocks=2',
    'simulated_seconds=40',
    'simulated_spike_rate=20',
    'simulated_snr=8',
    'simulated_distractor_rate=1',
]
TRAINING = [
    'masking=None',
    'classifier=sfcn',
    'width=2',
    'batch_size=16',
    'num_epochs=3',
    'classifier_width=4',
    'classifier_batch_size=32',
    'classifier_learning_rate=1e-3',
    'classifier_num_epochs=6',
]


@pytest.fixture(scope='module')
def demo(tmp_path_factory, run_script):
    """A tiny simulation, its windows, and one finished run."""
    folder = tmp_path_factory.mktemp('demo')
    words = [
        f'path_raw_data={folder / "raw"}',
        f'path_extracted_data={[str(folder / "ae"), str(folder / "clf")]}',
        f'path_writing_data={folder / "results"}',
        *SIMULATION,
        *TRAINING,
    ]
    outputs = {}
    for script, positional in [
        ('simulate_data_raw.py', []),
        ('create_windows_ae.py', []),
        ('create_windows_clf.py', []),
        ('main_train.py', ['auto', 'AE1D']),
    ]:
        ended = run_script(script, *positional, *words)
        assert (ended.returncode, ended.stderr) == (0, ''), ended.stderr
        outputs[script] = ended.stdout
    return folder, words, outputs


def test_simulated_patients_and_their_truth(demo):
    folder, _, _ = demo
    truth = pd.read_csv(folder / 'raw' / 'truth.csv')
    assert list(truth) == ['subject', 'block', 'sample', 'amplitude', 'focus', 'x', 'y', 'z']
    assert set(truth['subject']) == {1, 2, 3, 4}  # the fifth has no spike
    assert read_data_raw(folder / 'raw' / 'data_raw_005.pkl')['events'][0].size == 0


def test_the_run_directory_is_complete(demo):
    folder, _, _ = demo
    run = folder / 'results' / 'AE1D_1'
    assert {str(path.relative_to(run)) for path in run.rglob('*') if path.is_file()} == {
        'params.json',
        'metrics.json',
        'report.html',
        'model_card.md',
        'best_AE1D_1.pth',
        'last_AE1D_1.pth',
        'best_sfcn_1.pth',
        'last_sfcn_1.pth',
        'AE1D_1.png',
        'losses.csv',
        'AE1D_1_cvpredictions.csv',
        'AE1D_1_cvresults.csv',
        'AE1D_1_patients.csv',
        'AE1D_1_events.csv',
        'figures/events.csv',
        'figures/calibration.csv',
        *(
            f'figures/{name}.png'
            for name in (
                'roc',
                'precision_recall',
                'calibration',
                'events',
                'confusion_matrix',
                'patients',
                'error_maps',
                'contrast',
                'latent',
                'traces',
                'topographies',
            )
        ),
    }
    params = json.loads((run / 'params.json').read_text())
    assert params['settings']['width'] == 2
    assert params['settings']['model'] == 'AE1D'
    assert params['versions']['torch']
    assert 'main_train.py auto AE1D' in params['command']
    report = (run / 'report.html').read_text()
    for words in ('main_train.py auto AE1D', 'PR-AUC', 'patients not seen in training', 'confusion matrix', 'gammaLR'):
        assert words in report


def test_the_predictions_are_of_unseen_patients_in_recording_order_and_agree_with_the_results(demo):
    folder, _, outputs = demo
    run = folder / 'results' / 'AE1D_1'
    predictions = pd.read_csv(run / 'AE1D_1_cvpredictions.csv')
    assert list(predictions) == ['subject', 'block', 'timing', 'true', 'test', 'pred', 'proba']
    assert predictions.equals(predictions.sort_values(['subject', 'block', 'timing']))
    metrics = json.loads((run / 'metrics.json').read_text())
    assert set(predictions['subject']) == set(metrics['test patients'])
    assert len(metrics['test patients']) == 2  # the second is patient 5, who has no spike
    assert metrics['test patients'][1] == 5
    assert metrics['tested on'] == 'patients not seen in training'
    assert ((predictions['test'] == predictions['pred']) == predictions['true'].astype(bool)).all()
    assert ((predictions['proba'] >= metrics['threshold']) == predictions['pred'].astype(bool)).all()

    # Sub-windows tile the block from 45 samples on; a label is a spike's pulse of 8 samples either side.
    events = {
        subject: read_data_raw(folder / 'raw' / f'data_raw_{subject:03d}.pkl')['events']
        for subject in metrics['test patients']
    }
    for (subject, block), rows in predictions.groupby(['subject', 'block']):
        assert rows['timing'].tolist() == [60.0 + 30 * k for k in range(len(rows))]
        first = rows['timing'].to_numpy()[:, None] - 15
        near = (events[subject][block] >= first - 8) & (events[subject][block] <= first + 29 + 8)
        np.testing.assert_array_equal(rows['test'], near.any(axis=1))

    results = pd.read_csv(run / 'AE1D_1_cvresults.csv')
    assert list(results)[:5] == ['accuracy', 'f1-score', 'specificity', 'sensitivity', 'confusion matrix']
    assert results['accuracy'][0] == pytest.approx(predictions['true'].mean())
    assert f'PR-AUC             {results["PR-AUC"][0]:.3f}' in outputs['main_train.py']


def test_the_test_beats_chance_clearly(demo):
    folder, _, _ = demo
    metrics = json.loads((folder / 'results' / 'AE1D_1' / 'metrics.json').read_text())
    assert metrics['test']['PR-AUC'] > 4 * metrics['test']['PR-AUC of chance']
    assert metrics['test']['ROC-AUC'] > 0.75


def test_the_same_seed_gives_the_same_csvs_and_another_seed_others(demo, run_script):
    folder, words, _ = demo
    first = folder / 'results' / 'AE1D_1'
    again = run_script('main_train.py', 'auto', 'AE1D', *words, 'num_workers=1')
    assert again.returncode == 0, again.stderr
    another_seed = run_script('main_train.py', 'auto', 'AE1D', *words, 'seed=1', 'model_nb=7')
    assert another_seed.returncode == 0, another_seed.stderr
    for table in ('cvpredictions', 'cvresults'):
        csv = (first / f'AE1D_1_{table}.csv').read_bytes()
        assert csv == (folder / 'results' / 'AE1D_2' / f'AE1D_2_{table}.csv').read_bytes()
        assert csv != (folder / 'results' / 'AE1D_7' / f'AE1D_7_{table}.csv').read_bytes()

    same_number = run_script('main_train.py', 'auto', 'AE1D', *words, 'model_nb=7')
    assert same_number.returncode == 2
    assert same_number.stderr.startswith('error: model_nb = 7: ')
    assert same_number.stderr.count('\n') == 1
