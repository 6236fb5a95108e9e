"""The classifiers that read whole windows: learning, checkpoints, going on, and what the encoder is."""

import numpy as np
import pytest
import torch
from common import at_call
from scipy.special import logit
from sklearn.metrics import roc_auc_score
from test_classification import SETTINGS
from torch.utils.data import Dataset

import loop
from classifiers.augmentation import CHANGES, add_noise, shift_windows
from classifiers.features import N_COURSE
from classifiers.pseudo_labels import pseudo_labels
from classifiers.second_look import Recordings
from classifiers.specs import CLASSIFIERS, Examples
from classifiers.stacked import FeaturesAndWindows
from classifiers.subwindows import subwindow_shape
from classifiers.windows import FinetunedClassifier, LabelledWindows, subwindow_labels
from evaluation.operating_point import calibrate, fit_calibration
from models import build_model
from models.detector import SpikeDetector, field_similarity
from recordings.channels import channel_names
from system.interruption import Interrupted
from training.checkpoints import load_checkpoint
from training.losses import spike_loss
from utils import set_seed

SHAPE = subwindow_shape(88, 4, 20)
N_CHANNELS = 16
MORE = {
    'shape': SHAPE,
    'preload': False,
    'encoder': 'pretrained',
    'head_rate': 2.0,
    'pretraining_epochs': 3,
    'pseudo_labelled': None,
    'classifier_augmentation': [],
    'augmentation': 0.2,
    'augmentation_fraction': 1.0,
    'hard_negatives': 1.0,
}


class Windows(Dataset):
    """Noise with a brief field, of a random place and sign, in a third of the windows."""

    epoch = 0

    def __init__(self, n=60, seed=0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(n, 1, N_CHANNELS, 88)).astype(np.float32)
        self.labels_t = np.zeros((n, 88), dtype=np.uint8)
        for window in range(0, n, 3):
            sample = rng.integers(10, 78)
            field = rng.normal(size=(N_CHANNELS, 1))
            self.x[window, 0] += 4 * field * np.hanning(13)[np.clip(np.arange(88) - sample + 6, 0, 12)]
            self.labels_t[window, sample - 3 : sample + 4] = 1

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        x = torch.from_numpy(self.x[indices])
        return x, x

    def hold(self, preload, device):
        """Windows in memory stay there."""


def examples(**options):
    windows = Windows(**options)
    return Examples(windows, windows.labels_t)


def autoencoder(name='AE1D'):
    set_seed(1)
    settings = {'filters': [2, 2], 'latent_nodes': 4, 'embedding_size': 4} if name == 'wavelets' else {'width': 1}
    return build_model(name, N_CHANNELS, 88, **settings)


def make(name, model='AE1D', **changes):
    spec, settings = CLASSIFIERS[name], SETTINGS | MORE | {'autoencoder': autoencoder(model)} | changes
    return spec.make(**{key: settings[key] for key in spec.settings})


def fitted(name, folder, **changes):
    set_seed(0)
    classifier = make(name, **changes)
    history = classifier.fit(examples(), examples(seed=1), lambda which: folder / f'{which}_{name}.pth')
    return classifier, history


@pytest.mark.parametrize('name', ['finetuned', 'raw'])
def test_a_network_on_windows_finds_spikes_and_survives_its_checkpoint(name, tmp_path):
    classifier, history = fitted(name, tmp_path, classifier_num_epochs=8, classifier_n_epochs_stop=8)
    assert len(history) == 8
    test = examples(seed=2)
    labels = subwindow_labels(torch.from_numpy(test.labels), SHAPE).numpy().ravel()
    proba = classifier.predict_proba(test.inputs)
    assert proba.shape == labels.shape == (240,)
    assert proba.dtype == np.float64
    assert roc_auc_score(labels, proba) > 0.85
    classifier.save(tmp_path / 'saved.pth', {'decision': {'threshold': 0.25}})
    again = make(name).load(tmp_path / 'saved.pth')
    np.testing.assert_array_equal(again.predict_proba(test.inputs), proba)
    assert load_checkpoint(tmp_path / 'saved.pth')['decision'] == {'threshold': 0.25}


@pytest.mark.parametrize('name', ['finetuned', 'raw'])
def test_a_training_that_goes_on_ends_as_if_it_had_not_stopped(name, tmp_path):
    for part in ('whole', 'parts'):
        (tmp_path / part).mkdir()
    whole, _ = fitted(name, tmp_path / 'whole', classifier_num_epochs=3)
    fitted(name, tmp_path / 'parts', classifier_num_epochs=1)
    parts, history = fitted(name, tmp_path / 'parts', classifier_num_epochs=3)
    assert [epoch['epoch'] for epoch in history] == [1, 2, 3]
    for expected, weights in zip(whole.network.state_dict().values(), parts.network.state_dict().values(), strict=True):
        assert torch.equal(expected, weights)


@pytest.mark.parametrize('at', [2, 3, 4])
def test_a_training_that_is_interrupted_ends_as_if_it_had_not_been(at, tmp_path, monkeypatch):
    """In the last epoch on pseudo-labels, before the first on annotations, in it: at each validation."""
    soft = np.random.default_rng(0).random((30, SHAPE.n_subwindows), dtype=np.float32)
    trainings = []
    for folder in ('whole', 'parts'):
        (tmp_path / folder).mkdir()
        first = {'pseudo_labelled': Examples(Windows(n=30), soft), 'pretraining_epochs': 2, 'classifier_num_epochs': 2}
        first |= {'classifier_learning_rate': 0.1}  # so that the first may be the best
        if folder == 'parts':
            with monkeypatch.context() as patch:
                at_call(loop, 'validate', at, interrupt, patch)
                with pytest.raises(Interrupted):
                    fitted('finetuned', tmp_path / folder, **first)
            if (tmp_path / folder / 'last_finetuned.pth').is_file():
                first['pseudo_labelled'] = None
        trainings.append(fitted('finetuned', tmp_path / folder, **first))
        assert not (tmp_path / folder / 'pretraining_finetuned.pth').exists()
    (whole, history), (parts, history_of_parts) = trainings
    assert [epoch['epoch'] for epoch in history] == [epoch['epoch'] for epoch in history_of_parts] == [0, 1, 2]
    for expected, weights in zip(whole.network.state_dict().values(), parts.network.state_dict().values(), strict=True):
        assert torch.equal(expected, weights)


def interrupt():
    raise Interrupted('a signal')


@pytest.mark.parametrize('model', ['AE1D', 'AE2D_smaller', 'wavelets'])
@pytest.mark.parametrize('encoder', ['pretrained', 'frozen', 'scratch'])
def test_the_encoder_is_the_autoencoders_and_learns_as_the_setting_says(model, encoder, tmp_path):
    """The autoencoder itself stays; a frozen encoder equals it, and the others learn at their rate."""
    started_from = autoencoder(model).state_dict()
    classifier, _ = fitted('finetuned', tmp_path, model=model, encoder=encoder, classifier_num_epochs=1)
    assert all(torch.equal(value, classifier.autoencoder.state_dict()[key]) for key, value in started_from.items())
    learned = classifier.network.autoencoder.state_dict()
    changed = {key for key, value in started_from.items() if not torch.equal(value, learned[key])}
    assert bool(changed) == (encoder != 'frozen')
    assert any('running' in key for key in changed) == (encoder == 'scratch' and model != 'wavelets')
    rates = {getattr(parameter, 'rate', 1.0) for parameter in classifier.network.autoencoder.parameters()}
    assert rates == {2.0 if encoder == 'scratch' else 1.0}


def test_a_window_is_scored_in_one_pass_whatever_is_beside_it():
    model = SpikeDetector(autoencoder(), tuple(SHAPE), N_CHANNELS, 4).eval()
    x = torch.from_numpy(Windows().x[:6])
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(window[None]) for window in x])
    assert together.shape == (6, SHAPE.n_subwindows)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_similarity_of_fields_by_loops_and_whatever_their_place():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(2, 5, 7)) for _ in range(2))
    similarity = field_similarity(torch.from_numpy(a), torch.from_numpy(b), 3).numpy()
    for window, row, t in np.ndindex(2, 7, 7):
        at = min(max(t + row - 3, 0), 6)
        assert similarity[window, row, t] == pytest.approx(a[window, :, t] @ b[window, :, at] / 5)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    rotated = field_similarity(torch.from_numpy(-rotation @ a), torch.from_numpy(-rotation @ b), 3).numpy()
    np.testing.assert_allclose(rotated, similarity, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('change', sorted(CHANGES))
def test_a_change_keeps_what_a_label_depends_on(change):
    """Every window has the same field power but for its gain, and another batch draws other changes."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 1, 274, 6)).astype(np.float32))
    changed = CHANGES[change](x, np.random.default_rng(1))
    assert changed.shape == x.shape
    assert not torch.equal(changed, CHANGES[change](x, np.random.default_rng(2)))
    if change == 'channels':
        assert ((changed == x) | (changed == 0)).all()
        assert (changed == 0).float().mean() == pytest.approx(0.1, abs=0.02)
        assert torch.equal((changed == 0).any(dim=3), (changed == 0).all(dim=3))
        return
    gain = changed.square().sum(dim=(1, 2, 3)).sqrt() / x.square().sum(dim=(1, 2, 3)).sqrt()
    same = torch.isclose(changed / gain[:, None, None, None], x).all(dim=(1, 2, 3))
    assert torch.allclose(gain.log().mean(), torch.zeros(()), atol=0.1)
    assert same.all() if change == 'amplitude' else 5 < same.sum() < 35
    if change == 'mirror':
        left, right = (channel_names().index(name) for name in ('MLC11', 'MRC11'))
        assert torch.equal(changed[~same][:, :, left], x[~same][:, :, right])


def test_noise_comes_on_a_fraction_of_the_windows():
    x = torch.zeros(200, 1, 30, 10)
    noisy = add_noise(x, np.random.default_rng(0), 0.2, 0.3)
    std = noisy.std(dim=(1, 2, 3))
    assert (std > 0).float().mean() == pytest.approx(0.3, abs=0.1)
    torch.testing.assert_close(std[std > 0], torch.full_like(std[std > 0], 0.2), rtol=0.2, atol=0)


def test_labels_move_with_their_window():
    windows = Windows()
    x, labels_t = torch.from_numpy(windows.x), torch.from_numpy(windows.labels_t)
    moved, labels = shift_windows(x, labels_t, 4, np.random.default_rng(0))
    shifts = set()
    for window in range(0, 60, 3):
        [shift] = [s for s in range(-4, 5) if torch.equal(moved[window, ..., 8:-8], x[window, ..., 8 + s : 80 + s])]
        assert torch.equal(labels[window, 8:-8], labels_t[window, 8 + shift : 80 + shift])
        shifts.add(shift)
    assert len(shifts) > 4


def test_changes_are_those_of_the_epoch_and_none_are_made_in_validation(tmp_path):
    classifier = make('raw', classifier_augmentation=['sign', 'shift'])
    training, validation = (classifier._labelled(examples(), training=part) for part in (True, False))
    batch = training.__getitems__([3, 4])
    assert all(torch.equal(a, b) for a, b in zip(batch, training.__getitems__([3, 4]), strict=True))
    training.epoch = 1
    assert not torch.equal(batch[0], training.__getitems__([3, 4])[0])
    assert torch.equal(validation.__getitems__([3, 4])[0], torch.from_numpy(Windows().x[[3, 4]]))


def test_hard_negatives_are_far_from_annotations_and_count_as_often_as_the_setting_says():
    windows = Windows(n=4)
    labels_t = np.zeros((4, 88), dtype=np.uint8)
    labels_t[0, 30] = 1  # in the second of the sub-windows 4-23, 24-43, 44-63, 64-83
    labels_t[1, 45] = 1
    labels_t[2, 3] = 1
    _, labels = LabelledWindows(windows, labels_t, SHAPE).__getitems__([0, 1, 2, 3])
    assert labels.tolist() == [[-1, 1, -1, 0], [0, -1, 1, -1], [-1, 0, 0, 0], [0, 0, 0, 0]]
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 4)))
    loss = spike_loss('bce', 10.0, 2.0, hard_negatives=5.0)(lambda x: logits, None, labels.double())
    total = 0.0
    for value, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        weight = 10 if label == 1 else 5 if label == 0 and value > 0 else 1
        total += weight * np.logaddexp(0, -value if label == 1 else value)
    assert loss.item() == pytest.approx(total / 16)
    pseudo = torch.tensor([[0.25]], dtype=torch.float64)
    loss = spike_loss('bce', 9.0, 2.0, hard_negatives=5.0)(lambda x: torch.tensor([[2.0]]).double(), None, pseudo)
    assert loss.item() == pytest.approx(3 * (0.25 * np.logaddexp(0, -2) + 0.75 * np.logaddexp(0, 2)))


def test_trees_and_network_are_stacked_by_their_log_odds(tmp_path):
    def both(**options):
        windows = Windows(**options)
        labels = subwindow_labels(torch.from_numpy(windows.labels_t), SHAPE).numpy().ravel()
        features = labels[:, None] + np.random.default_rng(7).normal(size=(len(labels), 3))
        return Examples(FeaturesAndWindows(features.astype(np.float32), windows), windows.labels_t), labels

    set_seed(0)
    classifier = make('stacked', classifier_num_epochs=2)
    (train, _), (validation, of_validation), (test, labels) = both(), both(seed=1), both(seed=2)
    history = classifier.fit(train, validation, lambda which: tmp_path / f'{which}.pth')
    assert len(history) == 2

    def alone(inputs):
        return [
            classifier.trees.predict_proba(inputs.features),
            FinetunedClassifier.predict_proba(classifier, inputs.windows),
        ]

    log_odds = []
    for of_fitting, score in zip(alone(validation.inputs), alone(test.inputs), strict=True):
        calibrated = calibrate(fit_calibration('temperature', of_fitting, of_validation), score)
        log_odds.append(logit(calibrated.clip(1e-12, 1 - 1e-12)))
    proba = classifier.predict_proba(test.inputs)
    np.testing.assert_allclose(logit(proba), np.mean(log_odds, axis=0), rtol=1e-6)
    assert roc_auc_score(labels, proba) > 0.7
    classifier.save(tmp_path / 'saved.pth', {'decision': {'threshold': 0.25}})
    np.testing.assert_array_equal(make('stacked').load(tmp_path / 'saved.pth').predict_proba(test.inputs), proba)


def test_pseudo_labels_rise_with_the_score_and_with_what_recurs():
    """Of noise, the highest few are taken for spikes; of two with one score, the one that others are like."""
    rng = np.random.default_rng(0)
    n = 2000
    scores = rng.normal(size=n)
    fingerprints = rng.normal(size=(n, 40 + N_COURSE)).astype(np.float32)
    scores[::100] = 4.0  # twenty of one score; every second of them has one field and course
    fingerprints[::200] = fingerprints[0]
    field, course = np.split(fingerprints, [-N_COURSE], axis=1)
    for part in (field, course):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    recordings = Recordings(np.hstack([field, course]), np.zeros(n), np.arange(n), np.ones(n, dtype=bool))
    labels = pseudo_labels(scores, recordings)
    assert ((labels > 0) & (labels < 1)).all()
    assert (labels > 0.5).mean() == pytest.approx(0.015, abs=0.001)
    assert labels[::200].min() > labels[100::200].max() > np.quantile(labels, 0.98)
    alone = recordings._replace(fingerprints=np.zeros_like(recordings.fingerprints))  # nothing is like anything
    order = np.argsort(scores)
    assert (np.diff(pseudo_labels(scores, alone)[order]) >= 0).all()


def test_a_new_network_learns_the_pseudo_labels_first(tmp_path):
    """It finds what they mark, for which two annotated windows are not enough."""
    windows = Windows(n=90, seed=3)
    labels = subwindow_labels(torch.from_numpy(windows.labels_t), SHAPE).numpy()
    soft = np.where(labels > 0, 0.9, 0.02).astype(np.float32)
    few = {'classifier_num_epochs': 1, 'pretraining_epochs': 6, 'classifier_n_epochs_stop': 6}
    test = examples(seed=2)
    truth = subwindow_labels(torch.from_numpy(test.labels), SHAPE).numpy().ravel()
    areas = {}
    for name, pseudo_labelled in (('pretrained', Examples(windows, soft)), ('new', None)):
        (tmp_path / name).mkdir()
        set_seed(0)
        classifier = make('finetuned', pseudo_labelled=pseudo_labelled, **few)
        history = classifier.fit(examples(n=6), examples(seed=1), lambda which, name=name: tmp_path / name / which)
        assert [epoch['epoch'] for epoch in history] == ([0, 1] if pseudo_labelled else [1])
        areas[name] = roc_auc_score(truth, classifier.predict_proba(test.inputs))
    assert areas['pretrained'] > areas['new'] + 0.08
