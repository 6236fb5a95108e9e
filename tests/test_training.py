"""The training loop, checkpoints, and the classifier's parts."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import Dataset

from classification import (
    best_f1_threshold,
    figures,
    make_cards,
    spike_loss,
    subwindow_shape,
    subwindow_table,
    with_predictions,
    zscore_planes,
)
from loop import make_optimizer, masked_loss, reconstruction_loss, train, validate
from main_train import loss_weights
from models import SFCN, build_model
from models.autoencoder import Autoencoder
from saving_functions import (
    checkpoint_saver,
    load_checkpoint,
    new_run_directory,
    save_threshold,
)
from timeseries_dataset import batches
from utils import DataError, SettingError, set_seed

CPU = torch.device('cpu')


class Pairs(Dataset):
    """(input, target) windows from memory, with the interface of WindowDataset."""

    epoch = 0

    def __init__(self, x, target=None):
        self.x, self.target = x, x if target is None else target

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        return self.x[indices], self.target[indices]


def windows(n, seed=0):
    """Smooth random windows (n, 1, 8, 40) of two sources that all channels see."""
    rng = np.random.default_rng(seed)
    walks = rng.normal(size=(8, 2)) @ rng.normal(size=(n, 1, 2, 40)).cumsum(axis=-1)
    return torch.from_numpy((walks / walks.std()).astype(np.float32))


def fit(
    model, dataset, *, epochs, rate=1e-2, patience=100, save=lambda which, state: None, batch_size=4, weights=(1.0,)
):
    optimizer, scheduler = make_optimizer(
        model, optimizer='adam', learning_rate=rate, weight_decay=0.0, stepLR=50, gammaLR=0.8
    )
    return train(
        model,
        batches(dataset, batch_size=batch_size, shuffle=True, seed=0),
        batches(dataset, batch_size=batch_size),
        reconstruction_loss('mse', weights),
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=epochs,
        n_epochs_stop=patience,
        device=CPU,
        save=save,
    )


@pytest.mark.parametrize('name', ['AE1D', 'AE2D', 'wavelets'])
def test_a_few_windows_are_learnt_by_heart(name):
    set_seed(0)
    settings = {'filters': [8, 8], 'pywt_family': 'haar'} if name == 'wavelets' else {'width': 8}
    model = build_model(name, 8, 40, **settings)
    weights = [1.0] * len(model(windows(1)))
    history = fit(model, Pairs(windows(8)), epochs=60, weights=weights)
    assert history[-1]['training loss'] < history[0]['training loss'] / 10


class Seen(Autoencoder):
    """Reconstructs its input as it is, in a signal and a band, and remembers it."""

    def forward(self, x, target=None):
        self.x = x
        return [(x[:, 0], target[:, 0]), (x[:, 0, :, ::2], target[:, 0, :, ::2])]


def test_the_masked_loss_is_the_error_where_the_input_was_hidden():
    """By brute force, from what the network saw: the hidden samples are those in which its input is not the target."""
    torch.manual_seed(0)
    model, x, lengths, firsts = Seen(), torch.randn(40, 1, 3, 60), [], []
    for criterion in ('mse', 'mae'):
        loss = masked_loss(criterion, [3.0, 1.0], (10, 4, 10), margin=2)
        for _ in range(20):
            value = loss(model, x, x)
            difference = (model.x - x)[:, 0]  # (batch, channels, times)
            hidden = (difference != 0).any(dim=1)
            errors = difference.square() if criterion == 'mse' else difference.abs()
            signal = errors.transpose(1, 2)[hidden].mean()
            band = errors[..., ::2].repeat_interleave(2, dim=-1).transpose(1, 2)[hidden].mean()
            assert value.item() == pytest.approx((0.75 * signal + 0.25 * band).item(), rel=1e-5)
            assert not hidden[:, :8].any()
            assert not hidden[:, 52:].any()
            lengths += hidden.sum(dim=1).tolist()
            firsts += hidden.int().argmax(dim=1).tolist()
    assert (min(lengths), max(lengths)) == (7, 28)
    assert set(range(8, 52 - 7)) <= set(firsts)  # every place, the last ones for short stretches only


def test_validation_hides_the_sub_windows_in_turn():
    model, x = Seen().eval(), torch.randn(9, 1, 3, 60, generator=torch.Generator().manual_seed(0))
    masked_loss('mse', [1.0, 1.0], (10, 4, 10), margin=2)(model, x, x)
    for window, hidden in enumerate((model.x != x)[:, 0].any(dim=1)):
        first = 10 + 10 * (window % 4)
        assert torch.nonzero(hidden).flatten().tolist() == list(range(first - 2, first + 12))


@pytest.mark.parametrize('name', ['AE1D', 'AE2D', 'AE1D_smaller', 'AE2D_smaller', 'wavelets'])
def test_every_architecture_learns_to_foretell_hidden_signal(name):
    """Half a cycle of a rhythm is hidden: the line through it leaves more error than the network does."""
    set_seed(0)
    settings = {'filters': [8, 8, 8], 'pywt_mode': 'periodization'} if name == 'wavelets' else {'width': 4}
    model, shape = build_model(name, 6, 48, **settings), (12, 3, 8)
    phase = 2 * np.pi * (np.arange(48) / 16 + np.random.default_rng(0).random((16, 1, 1, 1)))
    x = torch.from_numpy((np.cos(phase) * np.linspace(0.5, 1.5, 6)[:, None]).astype(np.float32))
    loss = masked_loss('mse', [1.0] * len(model(x)), shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        value = loss(model, x, x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        error = model.eval().masked_error_cards(x, shape)[:, 0].mean()
    line = np.mean([straight_line_error(x, 12 + 8 * k, 20 + 8 * k) for k in range(3)])
    assert error < 0.5 * line


def straight_line_error(x, first, last):
    """Mean squared error of NumPy's interpolation over the samples [first, last)."""
    seen = [t for t in range(x.shape[-1]) if not first <= t < last]
    hidden = np.arange(first, last)
    errors = [np.interp(hidden, seen, row[seen]) - row[hidden] for row in x.numpy().reshape(-1, x.shape[-1])]
    return np.square(errors).mean()


def test_the_best_epoch_is_kept_and_training_stops_after_it(tmp_path):
    """The validation loss is scripted: it falls to epoch 3 and then rises."""
    set_seed(0)
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.25, 9.0, 9.0])

    def scripted(model, x, target):
        value = reconstruction_loss('mse', [1.0])(model, x, target)
        return value if model.training else value * 0 + next(losses)

    saved = []
    model = build_model('AE1D', 8, 40, width=2)
    optimizer, scheduler = make_optimizer(
        model, optimizer='sgd', learning_rate=0.1, weight_decay=0.0, stepLR=2, gammaLR=0.5
    )
    history = train(
        model,
        batches(Pairs(windows(4)), batch_size=4),
        batches(Pairs(windows(4)), batch_size=4),
        scripted,
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=50,
        n_epochs_stop=2,
        device=CPU,
        save=lambda which, state: saved.append(
            (which, state['epoch'], {k: v.clone() for k, v in state['model_state_dict'].items()})
        ),
    )
    assert [epoch['validation loss'] for epoch in history] == [5.0, 4.0, 3.0, 3.5, 3.25]
    assert [epoch['learning rate'] for epoch in history] == [0.1, 0.1, 0.05, 0.05, 0.025]
    assert [(which, epoch) for which, epoch, _ in saved if which == 'best'] == [('best', 1), ('best', 2), ('best', 3)]
    assert [epoch for which, epoch, _ in saved if which == 'last'] == [1, 2, 3, 4, 5]
    best = next(weights for which, epoch, weights in saved if (which, epoch) == ('best', 3))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, best[name])


def test_a_loss_that_is_not_finite_stops_the_run():
    model = build_model('AE1D', 8, 40, width=2)
    with pytest.raises(SettingError, match=r'epoch 1: the loss is .*: lower learning_rate'):
        fit(model, Pairs(windows(8) * 1e30), epochs=2)


def test_the_noise_is_not_in_the_target():
    """The loss compares with the clean target: a model that returns its input is charged for the noise."""

    class Copy(Autoencoder):
        def forward(self, x, target=None):
            return [(x, x if target is None else target)]

    clean = windows(4)
    noise = 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    loss = validate(Copy(), batches(Pairs(clean + noise, clean), batch_size=4), reconstruction_loss('mse', [1.0]), CPU)
    assert loss == pytest.approx(noise.square().mean().item(), rel=1e-5)


def test_every_weight_of_the_loss_takes_effect():
    """The loss of wavelets is the weighted mean of the five mean squared errors, computed here one by one."""
    set_seed(0)
    model = build_model('wavelets', 8, 40, filters=[2, 2, 2], pywt_family='haar').eval()
    x = windows(3)
    with torch.no_grad():
        errors = [float(np.mean((output - wanted).numpy() ** 2)) for output, wanted in model(x)]
        assert len(errors) == 5
        for weights in ([1, 1, 1, 1, 1], [3, 0, 0, 0, 0], [0, 1, 0, 2, 0], [1, 2, 3, 4, 5]):
            expected = np.dot(weights, errors) / sum(weights)
            assert reconstruction_loss('mse', weights)(model, x, None).item() == pytest.approx(expected, rel=1e-5)
    settings = SimpleNamespace(model='wavelets', filters=[2, 2, 2], a=1, b=2, c=3, d=4, e=5)
    assert loss_weights(settings) == [1, 2, 3, 4, 5]
    settings.filters = [2]
    assert loss_weights(settings) == [1, 2, 5]
    settings.filters = [2] * 5
    assert loss_weights(settings) == [1, 2, 3, 4, 4, 4, 5]


def test_validation_averages_over_windows_not_batches():
    x = windows(5)
    model = build_model('AE1D', 8, 40, width=2).eval()
    whole = validate(model, batches(Pairs(x), batch_size=5), reconstruction_loss('mse', [1.0]), CPU)
    pieces = validate(model, batches(Pairs(x), batch_size=2), reconstruction_loss('mse', [1.0]), CPU)
    assert pieces == pytest.approx(whole, rel=1e-5)


def test_a_checkpoint_gives_the_same_outputs(tmp_path):
    set_seed(0)
    model = build_model('AE1D', 8, 40, width=2)
    description = {'name': 'AE1D', 'n_channels': 8, 'n_times': 40, 'settings': {'width': 2}}
    run = new_run_directory(tmp_path, 'AE1D', None)
    fit(model, Pairs(windows(8)), epochs=3, save=checkpoint_saver(run.checkpoint, description))
    assert {path.name for path in run.path.iterdir()} == {'best_AE1D_1.pth', 'last_AE1D_1.pth'}
    state = load_checkpoint(run.checkpoint('best'))
    original = (
        'epoch',
        'model_state_dict',
        'optimizer_state_dict',
        'training loss',
        'validation loss',
        'learning rate',
    )
    assert set(original) <= set(state)
    network = state['network']
    again = build_model(network['name'], network['n_channels'], network['n_times'], **network['settings'])
    again.load_state_dict(state['model_state_dict'])
    x = windows(3, seed=9)
    with torch.no_grad():
        assert torch.equal(model.eval()(x)[0][0], again.eval()(x)[0][0])

    save_threshold(run.checkpoint('best'), 0.25)
    assert load_checkpoint(run.checkpoint('best'))['threshold'] == 0.25
    run.checkpoint('best').write_bytes(b'no checkpoint')
    with pytest.raises(DataError, match=r'best_AE1D_1\.pth: not a checkpoint'):
        load_checkpoint(run.checkpoint('best'))


def test_run_numbers(tmp_path):
    assert new_run_directory(tmp_path, 'AE1D', None).name == 'AE1D_1'
    assert new_run_directory(tmp_path, 'AE1D', 7).name == 'AE1D_7'
    assert new_run_directory(tmp_path, 'AE1D', None).name == 'AE1D_8'
    assert new_run_directory(tmp_path, 'AE2D', None).name == 'AE2D_1'
    with pytest.raises(SettingError, match=r'model_nb = 7: .*AE1D_7 exists'):
        new_run_directory(tmp_path, 'AE1D', 7)


# ---------------------------------------------------------------------------------------- sub-windows
@given(st.integers(1, 12), st.integers(0, 5), st.integers(1, 7), st.integers(0, 6), st.integers(0, 1000))
def test_subwindows_equal_a_second_implementation(n_sub, border, length, rest, seed):
    n_window = n_sub * length + min(rest, length - 1) + 2 * border
    shape = subwindow_shape(n_window, border, length)
    assert shape.n_sub == n_sub
    rng = np.random.default_rng(seed)
    labels_t = (rng.random((3, n_window)) < 0.1).astype(np.uint8)
    starts = [0, 10, 4]
    rows = pd.DataFrame({'subject': [4, 4, 9], 'block': [0, 2, 1], 'timing': [s + n_window / 2 for s in starts]})
    expected = []
    for window in range(3):
        for piece in range(n_sub):
            first = border + piece * length
            label = int(any(labels_t[window, first + t] for t in range(length)))
            centre = starts[window] + first + length / 2
            expected.append((rows['subject'][window], rows['block'][window], centre, label))
    table = subwindow_table(rows, labels_t, n_window, shape)
    assert list(table.itertuples(index=False, name=None)) == expected


def test_cards_are_cut_where_the_labels_are():
    """A model whose error is the window itself: the cards must hold the samples of their sub-windows."""

    class Zero(Autoencoder):
        def forward(self, x, target=None):
            return [(torch.zeros_like(x), x), (torch.zeros_like(x), 2 * x)]

    x = windows(5)
    shape = subwindow_shape(40, 4, 10)
    cards = make_cards(Zero(), batches(Pairs(x), batch_size=2), shape, CPU)
    assert cards.shape == (5 * 3, 2, 8, 10)
    for window in range(5):
        for piece in range(3):
            error = x[window, 0, :, 4:34].double().numpy() ** 2
            expected = ((error - error.mean()) / error.std())[:, 10 * piece : 10 * piece + 10]
            np.testing.assert_allclose(cards[3 * window + piece, 0], expected, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(cards[3 * window + piece, 1], expected, rtol=1e-3, atol=1e-5)


def test_the_original_card_scaling_is_a_zscore_of_each_plane():
    cards = windows(6).reshape(3, 2, 8, 40) ** 2
    scaled = zscore_planes(cards).double()
    torch.testing.assert_close(scaled.mean(dim=(2, 3)), torch.zeros(3, 2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(dim=(2, 3), correction=0), torch.ones(3, 2).double(), atol=1e-4, rtol=0)
    assert not zscore_planes(torch.ones(1, 1, 4, 4)).any()


def test_the_loss_of_the_classifier_is_weighted_and_takes_logits():
    network = nn.Flatten(0)
    logits = torch.tensor([2.0, -1.0, 0.5])
    labels = torch.tensor([1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-logits.numpy()))
    expected = np.mean([-35 * np.log(p[0]), -np.log(1 - p[1]), -35 * np.log(p[2])])
    assert spike_loss(35.0)(network, logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_the_classifier_learns_a_few_cards_by_heart():
    set_seed(0)
    cards = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 1, 16, 16)).astype(np.float32))
    labels = torch.tensor([1.0, 0, 0] * 4)
    network = SFCN(1, 16, 16, width=4)
    optimizer, scheduler = make_optimizer(
        network, optimizer='adam', learning_rate=1e-2, weight_decay=0.0, stepLR=50, gammaLR=0.8
    )
    loss = spike_loss(2.0)
    history = train(
        network,
        batches(Pairs(cards, labels), batch_size=6, shuffle=True),
        batches(Pairs(cards, labels), batch_size=12),
        loss,
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=60,
        n_epochs_stop=60,
        device=CPU,
        save=lambda which, state: None,
    )
    assert min(h['validation loss'] for h in history) < history[0]['validation loss'] / 10


# -------------------------------------------------------------------------------- threshold and figures
scored = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=2, max_size=40).filter(
    lambda rows: any(label for label, _ in rows)
)


@given(scored)
def test_the_threshold_has_the_best_f1_of_all(rows):
    test, proba = np.array([label for label, _ in rows]), np.array([p / 10 for _, p in rows])
    threshold = best_f1_threshold(test, proba)
    best = max(f1_score(test, proba >= t) for t in np.unique(proba))
    assert f1_score(test, proba >= threshold) == pytest.approx(best, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10)), min_size=1, max_size=40))
def test_figures_by_counting(rows):
    table = pd.DataFrame(rows, columns=['test', 'p']).assign(subject=3, block=0)
    table['timing'] = np.arange(len(rows))[::-1] * 30.0
    predictions = with_predictions(table, table.pop('p').to_numpy() / 10, threshold=0.5)
    assert predictions['timing'].is_monotonic_increasing
    assert list(predictions) == ['subject', 'block', 'timing', 'true', 'test', 'pred', 'proba']
    counts = {(t, p): 0 for t in (0, 1) for p in (0, 1)}
    for t, p in rows:
        counts[t, int(p >= 5)] += 1
    found = figures(predictions)
    tp, tn, fp, fn = counts[1, 1], counts[0, 0], counts[0, 1], counts[1, 0]
    assert found['confusion matrix'] == [[tn, fp], [fn, tp]]
    assert predictions['true'].sum() == tp + tn

    def same(name, part, whole):
        expected = part / whole if whole else math.nan
        assert found[name] == pytest.approx(expected, nan_ok=True)

    same('accuracy', tp + tn, len(rows))
    same('sensitivity', tp, tp + fn)
    same('specificity', tn, tn + fp)
    same('precision', tp, tp + fp)
    same('f1-score', 2 * tp, 2 * tp + fp + fn)
    same('PR-AUC of chance', tp + fn, len(rows))
    # ROC-AUC: the share of (spike, other) pairs in the right order, ties one half
    pairs = [(a > b) + 0.5 * (a == b) for x, a in rows for y, b in rows if x == 1 and y == 0]
    same('ROC-AUC', sum(pairs), len(pairs))
    assert math.isnan(found['PR-AUC']) == (len(pairs) == 0)
