"""Sub-windows, what the classifiers see of them, and the classifiers."""

import numpy as np
import pandas as pd
import pytest
import torch
from common import Pairs
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import ExtraTreeClassifier
from torch import nn

from classification import SubwindowReader
from classifiers import boosting, forest, svm
from classifiers.copies import mirrored_channels
from classifiers.filtered import spatial_filters
from classifiers.inputs import (
    Masking,
    error_cards,
    error_statistics,
    masked_cards,
    mean_error,
    measure_filters,
    window_errors,
    zscore_planes,
)
from classifiers.specs import CLASSIFIERS, ClassifierSpec, Examples
from classifiers.subwindows import field_peaks, most_rows, subwindow_shape, subwindow_table
from evaluation.metrics import batchwise
from loop import best_epoch
from models.autoencoder import Autoencoder
from recordings.channels import channel_names, ctf275_info
from timeseries_dataset import batches
from training.checkpoints import load_checkpoint, save_checkpoint
from training.losses import spike_loss
from utils import DataError, set_seed

CPU = torch.device('cpu')
SHAPE = subwindow_shape(40, 4, 10)
SETTINGS = {
    'device': CPU,
    'precision': 'float32',
    'seed': 0,
    'classifier_width': 4,
    'classifier_batch_size': 16,
    'classifier_learning_rate': 1e-2,
    'classifier_num_epochs': 6,
    'classifier_n_epochs_stop': 6,
    'classifier_loss': 'bce',
    'focal_gamma': 2.0,
    'positive_weight': 3.0,
    'classifier_optimizer': 'adam',
    'classifier_weight_decay': 0.0,
    'early_stop_on': 'loss',
    'scheduler': 'step',
    'stepLR': 50,
    'gammaLR': 0.8,
    'plateau_patience': 5,
}


def windows(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 1, 8, 40)).astype(np.float32))


class Zero(Autoencoder):
    """Its errors are the squared window and four times that; its latent maps the window by twos, and by fours."""

    def forward(self, x, target=None):
        target = x if target is None else target
        return [(torch.zeros_like(x), target), (torch.zeros_like(x), 2 * target)]

    def latent(self, x):
        return [x[..., ::2], x[:, 0, :3, ::4]]


def read(x, spec, *, levels=(0, 1), masking=None):
    """What is read of the sub-windows of x through the autoencoder `Zero`."""
    reader = SubwindowReader(Zero(), spec, SHAPE, list(levels), masking, CPU)
    return reader.read(batches(Pairs(x), batch_size=2))


def seen(inputs, x, levels=(0, 1)):
    return read(x, ClassifierSpec(None, inputs), levels=levels).inputs


def pieces(x):
    """The sub-windows one by one: (row, signal (8, 10))."""
    for window in range(len(x)):
        for piece in range(3):
            yield 3 * window + piece, x[window, 0, :, 4 + 10 * piece : 14 + 10 * piece].double().numpy()


# ---------------------------------------------------------------------------------------- sub-windows
@given(st.integers(1, 12), st.integers(0, 5), st.integers(1, 7), st.integers(0, 6), st.integers(0, 1000))
def test_subwindows_equal_a_second_implementation(n_subwindows, border, length, rest, seed):
    n_window = n_subwindows * length + min(rest, length - 1) + 2 * border
    shape = subwindow_shape(n_window, border, length)
    assert shape.n_subwindows == n_subwindows
    rng = np.random.default_rng(seed)
    labels_t = (rng.random((3, n_window)) < 0.1).astype(np.uint8)
    starts = [0, 10, 4]
    rows = pd.DataFrame({'subject': [4, 4, 9], 'block': [0, 2, 1], 'timing': [s + n_window / 2 for s in starts]})
    expected, cut = [], []
    for window in range(3):
        for piece in range(n_subwindows):
            first = border + piece * length
            label = int(any(labels_t[window, first + t] for t in range(length)))
            centre = starts[window] + first + length / 2
            expected.append((rows['subject'][window], rows['block'][window], centre, label))
            cut.append(labels_t[window, first : first + length])
    table = subwindow_table(rows, labels_t, shape)
    assert list(table.itertuples(index=False, name=None)) == expected
    np.testing.assert_array_equal(shape.cut(torch.from_numpy(labels_t)), cut)


def test_error_cards_are_cut_where_the_labels_are_and_zscored_over_the_inner_window():
    x = windows(5)
    cards = seen(error_cards, x)
    assert cards.shape == (15, 2, 8, 10)
    for row, piece in pieces(x):
        error = x[row // 3, 0, :, 4:34].double().numpy() ** 2
        for plane in range(2):
            expected = (piece**2 - error.mean()) / error.std()
            np.testing.assert_allclose(cards[row, plane], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(seen(error_cards, x, levels=[1]), cards[:, 1:])
    assert not zscore_planes(torch.ones(1, 1, 4, 4)).any()


def test_errors_of_masked_sub_windows_where_masking_changes_nothing():
    """The reconstruction is zero whatever is masked: cards are the plain ones, and every masked segment is itself."""
    x, masking = windows(5), Masking(margin=2)
    masked = read(x, ClassifierSpec(None, error_cards, masked_cards), masking=masking)
    second = read(x, ClassifierSpec(None, error_cards, masked_cards), levels=[1], masking=masking)
    np.testing.assert_array_equal(second.inputs, masked.inputs[:, 1:])
    np.testing.assert_array_equal(second.errors, masked.errors[:, 1:])
    plain = read(x, ClassifierSpec(None, error_cards))
    np.testing.assert_array_equal(masked.inputs, plain.inputs)
    np.testing.assert_allclose(masked.errors, plain.errors, rtol=1e-6)
    np.testing.assert_allclose(plain.errors[:, 0], x[:, 0, :, 4:34].square().mean(dim=1), rtol=1e-6)
    np.testing.assert_array_equal(plain.peaks, field_peaks(x, SHAPE))
    errors, plain = window_errors(Zero(), x, SHAPE, masking), window_errors(Zero(), x, SHAPE, None)
    assert torch.equal(errors[..., 4:34], plain[..., 4:34])
    assert errors[..., :4].isnan().all()
    assert errors[..., 34:].isnan().all()

    filters = measure_filters(Zero(), batches(Pairs(x), batch_size=2), SHAPE, masking, CPU)
    signal = x[:, 0].double().numpy()
    stretches = [signal[..., first - 2 : first + 12] for first in (4, 14, 24)]
    each = [np.concatenate(list(part), axis=1) for part in (signal, np.concatenate(stretches, axis=2))]
    expected = spatial_filters(*(rows @ rows.T / rows.shape[1] for rows in each), 8)
    np.testing.assert_allclose(filters.abs(), np.abs(expected), rtol=1e-4, atol=1e-5)


def test_the_signal_is_read_in_the_place_of_the_residual():
    """Of an autoencoder that reconstructs zero, the residual is the signal."""
    x, filters = windows(5), torch.eye(8)
    of_residual, of_signal = (
        read(x, CLASSIFIERS['hgb'], levels=[0], masking=Masking(2, filters, features))
        for features in ('residual', 'signal')
    )
    np.testing.assert_array_equal(of_signal.inputs, of_residual.inputs)
    np.testing.assert_array_equal(of_signal.fingerprints, of_residual.fingerprints)
    assert of_residual.errors is not None
    assert of_signal.errors is None


def test_copies_are_read_as_changed_windows():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 1, 274, 40)).astype(np.float32))
    reader = SubwindowReader(Zero(), CLASSIFIERS['latent'], SHAPE, [0], None, CPU)
    loader, blocks = batches(Pairs(x), batch_size=2), np.zeros(9)
    of_copies = reader.read_copies(loader, blocks, 'both')
    changed = [-x, x[:, :, mirrored_channels()], -x[:, :, mirrored_channels()]]
    for inputs, copy in zip(of_copies, changed, strict=True):
        np.testing.assert_array_equal(inputs, reader.read(batches(Pairs(copy), batch_size=2)).inputs)
    assert reader.read_copies(loader, blocks, None) == []


def test_the_mirrored_helmet_is_where_its_channels_are():
    places = np.array([channel['loc'][:3] for channel in ctf275_info(150)['chs']])
    twins, names = np.array(mirrored_channels()), channel_names()
    np.testing.assert_array_equal(twins[twins], np.arange(274))
    distance = np.linalg.norm(places * [-1, 1, 1] - places[twins], axis=1)
    assert [names[k] for k in np.flatnonzero(distance > 0.002)] == ['MLP52']


def test_statistics_of_the_errors():
    x = windows(3)
    statistics, mean = seen(error_statistics, x), seen(mean_error, x)
    assert statistics.shape == (9, 2 * 2 * (8 + 11))
    for row, piece in pieces(x):
        expected = []
        for gain in (1, 4):
            for per_channel in ((gain * piece**2).mean(axis=1), (gain * piece**2).max(axis=1)):
                logs = np.log(per_channel)
                expected += [*logs, *np.quantile(logs, np.arange(11) / 10)]
        np.testing.assert_allclose(statistics[row], expected, rtol=1e-4, atol=1e-4)
        assert mean[row, 0] == pytest.approx(np.log(2.5 * (piece**2).mean()), rel=1e-4, abs=1e-5)


def test_statistics_of_the_latent_maps():
    x = windows(3)
    statistics = seen(None, x)
    assert statistics.shape == (9, 2 * (8 + 3))
    for row, _ in pieces(x):
        expected = []
        for step, channels in ((2, 8), (4, 3)):
            first = 4 + 10 * (row % 3)
            places = [t // step * step for t in range(first, first + 10)]
            piece = x[row // 3, 0, :channels].double().numpy()[:, places]
            expected += [*piece.mean(axis=1), *np.log(piece.std(axis=1))]
        np.testing.assert_allclose(statistics[row], expected, rtol=1e-3, atol=1e-4)


def test_field_peaks():
    x = windows(2)
    peaks = field_peaks(x, SHAPE)
    for row, piece in pieces(x):
        power = piece.std(axis=0)
        assert peaks[row, 0] == pytest.approx(power.max(), rel=1e-5)
        assert peaks[row, 1] == power.argmax()


# ---------------------------------------------------------------------------------------- classifiers
def examples(name, n=160, seed=0):
    """Examples of the kind the classifier takes, a quarter of them spikes: a raised part."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 4 == 0).astype(int)
    shape = {'sfcn': (n, 1, 16, 16), 'threshold': (n, 1)}.get(name, (n, 12))
    inputs = rng.normal(size=shape).astype(np.float32)
    spiking = inputs[labels == 1]
    spiking[..., : shape[-1] // 4 + 1] += 1.5
    inputs[labels == 1] = spiking
    return Examples(inputs, labels)


def fitted(name, folder, **changes):
    kind = CLASSIFIERS[name]
    set_seed(0)
    classifier = kind.make(**{key: value for key, value in (SETTINGS | changes).items() if key in kind.settings})
    history = classifier.fit(examples(name), examples(name, seed=1), lambda which: folder / f'{which}_{name}.pth')
    return classifier, history


@pytest.mark.parametrize('name', sorted(name for name, spec in CLASSIFIERS.items() if not spec.reads_windows))
def test_every_classifier_finds_what_is_there_and_survives_its_checkpoint(name, tmp_path):
    classifier, history = fitted(name, tmp_path)
    assert bool(history) == (name == 'sfcn')
    test = examples(name, seed=2)
    proba = classifier.predict_proba(test.inputs)
    assert proba.shape == (160,)
    assert proba.dtype == np.float64
    assert ((proba >= 0) & (proba <= 1)).all()
    assert roc_auc_score(test.labels, proba) > 0.75

    decision = {'calibration': {'method': 'temperature', 'temperature': 2.0, 'offset': -1.0}, 'threshold': 0.25}
    path = tmp_path / 'saved.pth'
    classifier.save(path, {'decision': decision})
    assert torch.load(path, weights_only=True)['decision'] == decision
    kind = CLASSIFIERS[name]
    again = kind.make(**{key: SETTINGS[key] for key in kind.settings}).load(path)
    np.testing.assert_array_equal(again.predict_proba(test.inputs), proba)
    np.testing.assert_array_equal(fitted(name, tmp_path)[0].predict_proba(test.inputs), proba)  # the seed decides


def test_the_trees_are_the_same_with_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(boosting, '_MOST_TREES', 3)
    probas = []
    for n_threads in (1, 2):
        monkeypatch.setitem(boosting._PARAMETERS, 'num_threads', n_threads)
        classifier = CLASSIFIERS['hgb'].make(seed=0)
        classifier.fit(examples('hgb', n=2000), examples('hgb', seed=1), None)
        probas.append(classifier.predict_proba(examples('hgb', seed=2).inputs))
    np.testing.assert_array_equal(*probas)


def test_the_trees_are_those_of_least_loss_on_validation(tmp_path, monkeypatch):
    """Three forests, whose log odds are averaged."""
    monkeypatch.setitem(boosting._PARAMETERS, 'learning_rate', 1.0)
    monkeypatch.setattr(boosting, '_MOST_TREES', 50)
    classifier, _ = fitted('hgb', tmp_path)
    validation = examples('hgb', seed=1)
    for booster in classifier.forests:
        n_trees = booster.num_trees()
        assert 1 < n_trees < 50
        losses = [log_loss(validation.labels, booster.predict(validation.inputs, num_iteration=n))
                  for n in range(1, n_trees + 1)]  # fmt: skip
        assert np.argmin(losses) == n_trees - 1
    inputs = examples('hgb', n=400, seed=3).inputs
    scores = [booster.predict(inputs, raw_score=True) for booster in classifier.forests]
    assert len({tuple(score) for score in scores}) == 3
    expected = 1 / (1 + np.exp(-np.mean(scores, axis=0)))
    np.testing.assert_allclose(classifier.predict_proba(inputs), expected, rtol=1e-12)


@pytest.mark.parametrize(('n_rows', 'n_spikes'), [(160, 40), (100, 40), (50, 25)])
def test_the_stored_forest_is_scikit_learns(tmp_path, monkeypatch, n_rows, n_spikes):
    """On all rows or on those that are drawn, of which at most half are spikes; drawn anew for every second tree."""
    monkeypatch.setattr(forest, '_N_DRAWS', 2)
    monkeypatch.setattr(forest, '_TREES_OF_A_DRAW', 2)
    monkeypatch.setattr(forest, '_MOST_ROWS', n_rows)
    classifier, _ = fitted('forest', tmp_path)
    (inputs, labels), test = examples('forest'), examples('forest', n=1500, seed=3).inputs
    expected, rng = [], np.random.default_rng(0)
    for _ in range(2):
        rows = most_rows(labels, n_rows, rng)
        assert (len(np.unique(rows)), labels[rows].sum()) == (n_rows, n_spikes)
        for _ in range(2):
            tree = ExtraTreeClassifier(
                max_features='sqrt', min_samples_leaf=3, class_weight='balanced', random_state=int(rng.integers(2**31))
            )
            expected.append(tree.fit(inputs[rows], labels[rows]).predict_proba(test)[:, 1])
    expected.append(np.full(len(test), 0.5))  # so that no output is 0 or 1
    np.testing.assert_allclose(classifier.predict_proba(test), np.mean(expected, axis=0), rtol=1e-6)
    assert classifier.predict_proba(test[:0]).shape == (0,)


def test_a_forest_of_nothing_to_tell_apart_has_trees_of_one_leaf(tmp_path):
    same = examples('forest')._replace(inputs=np.ones((160, 12), dtype=np.float32))
    classifier = CLASSIFIERS['forest'].make(seed=0)
    classifier.fit(same, same, None)
    assert classifier.predict_proba(same.inputs).tolist() == [0.5] * 160


@pytest.mark.parametrize(
    ('name', 'state', 'message'),
    [
        ('hgb', {'trees': {'roots': torch.zeros(3)}}, 'trees of an earlier version; train the classifier again'),
        ('hgb', {'forests': ['a format of the future']}, 'no trees of LightGBM.*train the classifier again'),
        ('forest', {'forests': ['boosted']}, 'trees of an earlier version; train the classifier again'),
    ],
)
def test_trees_that_cannot_be_read_are_refused(name, state, message, tmp_path):
    save_checkpoint(tmp_path / 'best.pth', state)
    with pytest.raises(DataError, match=rf'best\.pth: {message}'):
        CLASSIFIERS[name].make(seed=0).load(tmp_path / 'best.pth')


@pytest.mark.parametrize('seed', [2**31, 2**32 - 1])
@pytest.mark.parametrize('name', ['forest', 'hgb'])
def test_any_seed_of_the_settings_is_one_of_the_trees(name, seed):
    few = examples(name, n=60)
    classifier = CLASSIFIERS[name].make(seed=seed)
    classifier.fit(few, few, None)
    assert classifier.predict_proba(few.inputs).shape == (60,)


def test_a_threshold_of_an_earlier_score_is_refused(tmp_path):
    path = tmp_path / 'best.pth'
    save_checkpoint(path, {'median': 0.0, 'spread': 1.0})
    with pytest.raises(DataError, match='the score of `threshold` has changed'):
        CLASSIFIERS['threshold'].make().load(path)


def test_the_stored_machine_is_scikit_learns(tmp_path):
    """Twelve features stay twelve: the rotation to principal components changes no distance."""
    classifier, _ = fitted('svm', tmp_path)
    train_set, inputs = examples('svm'), examples('svm', seed=3).inputs
    scaled = StandardScaler().fit_transform(train_set.inputs)
    model = make_pipeline(StandardScaler(), SVC(gamma=1 / (12 * scaled.var()), class_weight='balanced'))
    expected = model.fit(train_set.inputs.astype(np.float64), train_set.labels).decision_function(inputs)
    proba = classifier.predict_proba(inputs)
    np.testing.assert_allclose(np.log(proba / (1 - proba)), expected, atol=0.02)


def test_the_machine_predicts_slice_by_slice(tmp_path, monkeypatch):
    classifier, _ = fitted('svm', tmp_path)
    inputs = examples('svm', n=250, seed=3).inputs
    whole = classifier.predict_proba(inputs)
    monkeypatch.setattr(svm, '_ROWS_AT_A_TIME', 32)
    np.testing.assert_allclose(classifier.predict_proba(inputs), whole, rtol=1e-12)


def test_the_mean_error_does_not_look_at_labels(tmp_path):
    inputs, labels = examples('threshold')
    detector = CLASSIFIERS['threshold'].make()
    detector.fit(Examples(inputs, labels), None, None)
    proba = detector.predict_proba(inputs)
    detector.fit(Examples(inputs, 1 - labels), None, None)
    np.testing.assert_array_equal(detector.predict_proba(inputs), proba)


def test_the_output_starts_at_the_log_odds_of_a_spike(tmp_path):
    classifier, _ = fitted('sfcn', tmp_path, classifier_learning_rate=1e-9, classifier_num_epochs=1)
    assert classifier.network.output.bias.item() == pytest.approx(np.log(40 / 120), abs=1e-5)


@pytest.mark.parametrize('early_stop_on', ['loss', 'pr_auc'])
def test_the_figures_of_an_epoch_are_those_of_the_network_that_is_kept(tmp_path, early_stop_on):
    classifier, history = fitted('sfcn', tmp_path, early_stop_on=early_stop_on)
    inputs, labels = examples('sfcn', seed=1)
    proba = classifier.predict_proba(inputs)
    best = history[best_epoch(history, early_stop_on) - 1]
    assert best['PR-AUC'] == pytest.approx(average_precision_score(labels, proba))
    assert best['recall at 0.5'] == pytest.approx((proba[labels == 1] >= 0.5).mean())
    assert best['f1_m'] == pytest.approx(batchwise(labels, np.round(proba), SETTINGS['classifier_batch_size'])['f1_m'])


@pytest.mark.parametrize('decay', [0.0, 0.3])
def test_a_networks_optimizer_and_weight_decay_are_its_own(tmp_path, decay):
    fitted('sfcn', tmp_path, classifier_num_epochs=1, classifier_optimizer='sgd', classifier_weight_decay=decay)
    state = load_checkpoint(tmp_path / 'last_sfcn.pth')['optimizer_state_dict']
    assert {group['weight_decay'] for group in state['param_groups']} == {decay}
    assert not state['state']  # moments, which Adam would have


def test_the_sfcn_trains_on_from_a_checkpoint(tmp_path):
    classifier, history = fitted('sfcn', tmp_path, classifier_num_epochs=3)
    classifier.save(tmp_path / 'saved.pth', {})
    kind = CLASSIFIERS['sfcn']
    again = kind.make(**SETTINGS | {'classifier_learning_rate': 1e-5}).load(tmp_path / 'saved.pth')
    further = again.fit(examples('sfcn'), examples('sfcn', seed=1), lambda which: tmp_path / f'{which}_further.pth')
    assert further[0]['epoch'] == 0
    assert further[0]['validation loss'] == pytest.approx(min(h['validation loss'] for h in history), rel=1e-6)
    steps = load_checkpoint(tmp_path / 'last_further.pth')['optimizer_state_dict']['state'][0]['step']
    assert steps > 10 * SETTINGS['classifier_num_epochs']  # 10 a epoch, on top of those of the first training


def test_the_losses_of_the_group_by_hand():
    logits, labels = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-logits.numpy()))
    right, weight = np.array([p[0], 1 - p[1], p[2]]), np.array([35, 1, 35])
    network = nn.Flatten(0)
    bce = spike_loss('bce', 35.0, 2.0)(network, logits, labels)
    assert bce.item() == pytest.approx(np.mean(-weight * np.log(right)), rel=1e-5)
    focal = spike_loss('focal', 35.0, 2.0)(network, logits, labels)
    assert focal.item() == pytest.approx(np.mean(-weight * (1 - right) ** 2 * np.log(right)), rel=1e-4)
