"""What is tested is what is used: detect.py's probabilities on whole patients are those of main_train.py's test."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from common import PICTURES, clear_patient

import main_train
import timeseries_dataset
from classification import load_run, score_subwindows
from classifiers.specs import CLASSIFIERS
from recordings.data_raw import read_data_raw
from recordings.pickles import write_pickle
from runs.run_directory import RunDirectory, load_params

SPIKE_FREE = 4
TESTED = [3, SPIKE_FREE]
TRAINING = {
    'width': 1,
    'batch_size': 32,
    'num_epochs': 1,
    'classifier_width': 1,
    'classifier_num_epochs': 1,
    'bootstrap_samples': 5,
    'training_patients': [1],
    'validation_patients': [2],
    'test_patients': TESTED,
}
# With masking, latent maps and the signal itself are read as without.
CASES = [(name, masking) for masking in (None, 'context') for name, spec in CLASSIFIERS.items()
         if masking is None or spec.masked_inputs]  # fmt: skip


@pytest.fixture(scope='module')
def study(tmp_path_factory, make_windows):
    """Four patients of two blocks, one of which is for training, and the words of runs on them."""
    folder = tmp_path_factory.mktemp('study')
    for subject in (1, 2, *TESTED):
        data = clear_patient(subject, n_blocks=2, block_seconds=14, spike_rate=25.0 * (subject != SPIKE_FREE))
        write_pickle(folder / 'raw' / f'data_raw_{subject:03d}.pkl', data)
    make_windows(folder / 'raw', folder, nb_best_blocks=1)
    windows = [str(folder / 'windows_ae'), str(folder / 'windows_clf')]
    words = [f'path_extracted_data={windows}', f'path_writing_data={folder / "results"}', 'nb_best_blocks=1']
    return folder, [*words, *(f'{name}={value}' for name, value in TRAINING.items())]


@pytest.fixture(scope='module')
def run(study):
    """Train a classifier on the one autoencoder of its masking; gives the run."""
    folder, words = study
    run_of = {None: 1, 'context': 2}

    def trained(number, mode, classifier, masking, *more):
        with pytest.MonkeyPatch.context() as patch:
            for module, name in PICTURES:
                patch.setattr(module, name, lambda *_: None)
            more = (f'classifier={classifier}', f'masking={masking}', f'model_nb={number}', *more)
            main_train.main([mode, 'AE1D_smaller', *words, *more])

    for masking, number in run_of.items():
        trained(number, 'auto', 'hgb', masking)

    def on_its_autoencoder(classifier, masking, *more):
        if classifier != 'hgb' or more:
            trained(run_of[masking], 'clf', classifier, masking, *more)
        numbers = {int(path.name.rpartition('_')[2]) for path in Path(folder / 'results').glob('AE1D_smaller_*')}
        number = run_of[masking] if classifier == 'hgb' and not more else max(numbers)
        return RunDirectory(folder / 'results' / f'AE1D_smaller_{number}')

    return on_its_autoencoder


def check_same_numbers(folder, run):
    """Compare the predictions of the test with the scores of whole blocks."""
    params = load_params(run)['settings']
    classifier = params['classifier']
    trained = load_run(params, run.checkpoint('best'), run.checkpoint('best', classifier), torch.device('cpu'))
    predictions = pd.read_csv(run.predictions)
    assert sorted(predictions['subject'].unique()) == TESTED
    for subject in TESTED:
        blocks = read_data_raw(folder / 'raw' / f'data_raw_{subject:03d}.pkl')['meg']
        for block, meg in enumerate(blocks):
            scored = score_subwindows(trained, meg, [meg.shape[1]])
            tested = predictions[(predictions['subject'] == subject) & (predictions['block'] == block)]
            both = tested.merge(scored[['timing', 'proba']], on='timing', suffixes=('', '_detected'))
            assert len(both) == len(tested) >= 60  # all of the test; detection has the ends of the block besides
            np.testing.assert_allclose(both['proba_detected'], both['proba'], rtol=1e-4, atol=1e-7)
            assert (both['pred'] == (both['proba_detected'] >= trained.decision['threshold'])).mean() > 0.99


@pytest.mark.parametrize(('classifier', 'masking'), CASES)
def test_a_patient_is_scored_as_in_the_test(study, run, classifier, masking):
    check_same_numbers(study[0], run(classifier, masking))


def test_a_patient_is_scored_as_in_the_test_without_a_second_look(study, run):
    check_same_numbers(study[0], run('hgb', 'context', 'second_look=False'))


def test_cards_in_a_file_are_trained_on_and_scored(study, run, monkeypatch):
    monkeypatch.setattr(timeseries_dataset, 'LARGEST_IN_MEMORY', 0)
    check_same_numbers(study[0], run('sfcn', 'context'))
