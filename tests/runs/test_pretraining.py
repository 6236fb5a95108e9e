"""What a network learns before annotations: the windows of all training patients, of unannotated ones too."""

import numpy as np
import pandas as pd
import pytest
import torch
from common import WINDOWS, make_window_files

from models import build_model
from runs.network_settings import subwindow_shape_of
from runs.networks import pseudo_labelled_windows
from runs.settings import read_command
from runs.split_data import split_data
from runs.window_sets import open_window_sets

UNANNOTATED, SPIKE = 4, 270  # who has one spike, at this sample of the first block


@pytest.fixture
def split_of(recordings, write_raw, make_windows, paths, tmp_path):
    """The split of three annotated patients and of one whom only the autoencoder has; its settings."""

    def make(*words):
        for number in (1, 2, 3):
            write_raw(recordings(seed=number), number)
        make_windows(tmp_path / 'raw', tmp_path, nb_best_blocks=0)
        unannotated = recordings(events=((), ()), seed=UNANNOTATED)
        field = np.random.default_rng(0).normal(0, 6e-12, 274)
        unannotated['meg'][0][:, SPIKE - 4 : SPIKE + 5] += field[:, None] * np.hanning(9)
        path = write_raw(unannotated, UNANNOTATED)
        every_window = WINDOWS | {'nb_best_blocks': 0, 'include_spike_free': True, 'patient': UNANNOTATED}
        make_window_files(path.parent, tmp_path / 'windows_ae', normal_only=True, **every_window)
        _, settings = read_command(
            [*paths, 'nb_best_blocks=0', 'nb_best_blocks_test=0', 'classifier=finetuned', *words]
        )
        [split] = split_data(open_window_sets(settings), 'auto', None, settings, subwindow_shape_of(settings))
        return split, settings

    return make


def pseudo_labelled(split, settings, seed=0):
    torch.manual_seed(seed)
    autoencoder = build_model('AE1D', 274, split.window_length, width=1).eval()
    return pseudo_labelled_windows(split, autoencoder, settings, torch.device('cpu'))


@pytest.mark.parametrize('words', [[], ['split=block'], ['balanced=True']])
def test_pseudo_labels_are_of_every_training_window_once(split_of, words):
    split, settings = split_of(*words)
    windows, labels = pseudo_labelled(split, settings)
    training = split.clf_table[split.clf_table['part'] == 'train']
    unannotated = split.ae_table[(split.ae_table['subject'] == UNANNOTATED) & (split.ae_table['part'] == 'train')]
    assert len(unannotated)
    assert len(windows) == len(training) + len(unannotated)
    assert labels.shape == (len(windows), split.shape.n_subwindows)
    assert labels.dtype == np.float32
    assert ((labels > 0) & (labels < 1)).all()
    window, subwindow = np.unravel_index(labels.argmax(), labels.shape)
    row = pd.concat([training, unannotated]).iloc[window]
    start = row['timing'] - 150 + split.shape.border + subwindow * split.shape.subwindow_length
    assert (row['subject'], row['block']) == (UNANNOTATED, 0)
    assert start <= SPIKE < start + split.shape.subwindow_length
    served = windows.__getitems__(list(range(len(windows))))[0][:, 0].numpy()
    expected = [split.clf_patients[row.patient].windows[row.window] for row in training.itertuples()]
    expected += [split.ae_patients[row.patient].windows[row.window] for row in unannotated.itertuples()]
    np.testing.assert_array_equal(served, expected)


@pytest.mark.parametrize('words', [['encoder=scratch'], ['pretraining_epochs=0'], ['masking=None']])
def test_without_pretraining_there_are_none(split_of, words):
    assert pseudo_labelled(*split_of(*words)) is None


@pytest.mark.parametrize(('listed', 'subjects'), [([1, 2, 3, 4], {1, 2, 3, 4}), ([1, 2, 3], {1, 2, 3})])
def test_the_setting_patient_lists_those_whom_nobody_has_annotated_too(split_of, listed, subjects):
    split, _ = split_of(f'patient={listed}')
    assert set(split.ae_table['subject']) == subjects
    assert set(split.clf_table['subject']) == {1, 2, 3}


def test_pseudo_labels_of_the_signal_do_not_depend_on_the_autoencoder(split_of):
    split, settings = split_of('features=signal')
    of_signal, of_another = (pseudo_labelled(split, settings, seed)[1] for seed in (0, 1))
    np.testing.assert_array_equal(of_signal, of_another)
    settings.features = 'spectrum'
    of_spectrum, of_another = (pseudo_labelled(split, settings, seed)[1] for seed in (0, 1))
    np.testing.assert_array_equal(of_spectrum, of_another)
    assert not np.array_equal(of_spectrum, of_signal)
    settings.features = 'residual'
    assert not np.array_equal(*(pseudo_labelled(split, settings, seed)[1] for seed in (0, 1)))
