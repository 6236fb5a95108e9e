"""The training loop, the schedules, and checkpoints."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from common import OPTIMIZER, Pairs

from loop import make_optimizer, resume_optimizer, train, validate
from models import build_model
from models.autoencoder import Autoencoder
from runs.network_settings import loss_weights
from runs.run_directory import new_run_directory
from timeseries_dataset import batches
from training.checkpoints import checkpoint_saver, load_checkpoint, save_checkpoint
from training.losses import masked_loss, reconstruction_loss
from utils import DataError, SettingError, set_seed

CPU = torch.device('cpu')


def windows(n, seed=0):
    """Smooth random windows (n, 1, 8, 40) of two sources that all channels see."""
    rng = np.random.default_rng(seed)
    walks = rng.normal(size=(8, 2)) @ rng.normal(size=(n, 1, 2, 40)).cumsum(axis=-1)
    return torch.from_numpy((walks / walks.std()).astype(np.float32))


def fit(
    model, dataset, *, epochs, patience=100, save=lambda which, state: None, batch_size=4, weights=(1.0,), started=None
):
    optimizer, scheduler = make_optimizer(model, **OPTIMIZER)
    if started:
        resume_optimizer(optimizer, started)
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
        validate_first=started is not None,
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


def test_the_masked_loss_is_the_error_where_the_input_was_masked():
    """By brute force, from what the network saw: the masked samples are those in which its input is not the target."""
    torch.manual_seed(0)
    model, x, lengths, firsts = Seen(), torch.randn(40, 1, 3, 60), [], []
    for criterion in ('mse', 'mae'):
        loss = masked_loss(criterion, [3.0, 1.0], (10, 4, 10), margin=2)
        for _ in range(20):
            value = loss(model, x, x)
            difference = (model.x - x)[:, 0]  # (batch, channels, times)
            masked = (difference != 0).any(dim=1)
            errors = difference.square() if criterion == 'mse' else difference.abs()
            signal = errors.transpose(1, 2)[masked].mean()
            band = errors[..., ::2].repeat_interleave(2, dim=-1).transpose(1, 2)[masked].mean()
            assert value.item() == pytest.approx((0.75 * signal + 0.25 * band).item(), rel=1e-5)
            assert not masked[:, :8].any()
            assert not masked[:, 52:].any()
            lengths += masked.sum(dim=1).tolist()
            firsts += masked.int().argmax(dim=1).tolist()
    assert (min(lengths), max(lengths)) == (7, 28)
    assert set(range(8, 52 - 7)) <= set(firsts)  # every place, the last ones for short stretches only


def test_validation_masks_the_sub_windows_in_turn():
    model, x = Seen().eval(), torch.randn(9, 1, 3, 60, generator=torch.Generator().manual_seed(0))
    masked_loss('mse', [1.0, 1.0], (10, 4, 10), margin=2)(model, x, x)
    for window, masked in enumerate((model.x != x)[:, 0].any(dim=1)):
        first = 10 + 10 * (window % 4)
        assert torch.nonzero(masked).flatten().tolist() == list(range(first - 2, first + 12))


@pytest.mark.parametrize('name', ['AE1D', 'AE2D', 'AE1D_smaller', 'AE2D_smaller', 'wavelets'])
def test_every_architecture_learns_to_predict_masked_signal(name):
    """Half a cycle of a rhythm is masked: the line through it leaves more error than the network does."""
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
    masked = np.arange(first, last)
    errors = [np.interp(masked, seen, row[seen]) - row[masked] for row in x.numpy().reshape(-1, x.shape[-1])]
    return np.square(errors).mean()


@pytest.mark.parametrize(
    ('scheduler', 'rates'),
    [('step', [0.1, 0.1, 0.05, 0.05, 0.025]), ('plateau', [0.1, 0.1, 0.1, 0.1, 0.05])],
)
def test_the_best_epoch_is_kept_and_training_stops_after_it(scheduler, rates):
    """The validation loss is scripted: it falls to epoch 3 and then rises."""
    set_seed(0)
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.25, 9.0, 9.0])

    def scripted(model, x, target):
        value = reconstruction_loss('mse', [1.0])(model, x, target)
        return value if model.training else value * 0 + next(losses)

    saved = []
    model = build_model('AE1D', 8, 40, width=2)
    changes = {'optimizer': 'sgd', 'learning_rate': 0.1, 'scheduler': scheduler, 'stepLR': 2, 'gammaLR': 0.5}
    optimizer, schedule = make_optimizer(model, **OPTIMIZER | changes | {'plateau_patience': 0})
    history = train(
        model,
        batches(Pairs(windows(4)), batch_size=4),
        batches(Pairs(windows(4)), batch_size=4),
        scripted,
        optimizer=optimizer,
        scheduler=schedule,
        num_epochs=50,
        n_epochs_stop=2,
        device=CPU,
        save=lambda which, state: saved.append(
            (which, state['epoch'], {k: v.clone() for k, v in state['model_state_dict'].items()})
        ),
    )
    assert [epoch['validation loss'] for epoch in history] == [5.0, 4.0, 3.0, 3.5, 3.25]
    assert [epoch['learning rate'] for epoch in history] == rates
    assert [(which, epoch) for which, epoch, _ in saved if which == 'best'] == [('best', 1), ('best', 2), ('best', 3)]
    assert [epoch for which, epoch, _ in saved if which == 'last'] == [1, 2, 3, 4, 5]
    best = next(weights for which, epoch, weights in saved if (which, epoch) == ('best', 3))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, best[name])


def test_the_best_epoch_may_be_that_of_the_largest_area():
    """The loss falls all the time, the scripted PR-AUC only rises to epoch 2."""
    set_seed(0)
    losses, areas, saved = iter([5.0, 4.0, 3.0, 2.0]), iter([0.2, 0.6, 0.5, 0.6]), []

    def scripted(model, x, target):
        value = reconstruction_loss('mse', [1.0])(model, x, target)
        return value if model.training else value * 0 + next(losses)

    model = build_model('AE1D', 8, 40, width=2)
    optimizer, schedule = make_optimizer(model, **OPTIMIZER)
    history = train(
        model,
        batches(Pairs(windows(4)), batch_size=4),
        batches(Pairs(windows(4)), batch_size=4),
        scripted,
        optimizer=optimizer,
        scheduler=schedule,
        num_epochs=50,
        n_epochs_stop=2,
        device=CPU,
        save=lambda which, state: saved.append((which, state['epoch'])),
        measure=lambda earlier: {'PR-AUC': next(areas), 'earlier': len(earlier)},
        early_stop_on='pr_auc',
    )
    figures = [(of_epoch['PR-AUC'], of_epoch['earlier']) for of_epoch in history]
    assert figures == [
        (0.2, 0),
        (0.6, 1),
        (0.5, 2),
        (0.6, 3),
    ]
    assert [epoch for which, epoch in saved if which == 'best'] == [1, 2]


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

    run.checkpoint('best').write_bytes(b'no checkpoint')
    with pytest.raises(DataError, match=r'best_AE1D_1\.pth: not a checkpoint'):
        load_checkpoint(run.checkpoint('best'))


def test_a_changed_byte_of_a_checkpoint_is_seen(tmp_path):
    path = tmp_path / 'best.pth'
    save_checkpoint(path, {'weights': torch.zeros(1000), 'text': 1000 * 'tree '})
    whole = path.read_bytes()
    for offset in (whole.index(b'tree ') + 2500, whole.index(bytes(2000)) + 1000):
        path.write_bytes(whole[:offset] + b'?' + whole[offset + 1 :])
        with pytest.raises(DataError, match=r'best\.pth: not a checkpoint .* is damaged'):
            load_checkpoint(path)


def test_run_numbers(tmp_path):
    assert new_run_directory(tmp_path, 'AE1D', None).name == 'AE1D_1'
    assert new_run_directory(tmp_path, 'AE1D', 7).name == 'AE1D_7'
    assert new_run_directory(tmp_path, 'AE1D', None).name == 'AE1D_8'
    assert new_run_directory(tmp_path, 'AE2D', None).name == 'AE2D_1'
    with pytest.raises(SettingError, match=r'model_nb = 7: .*AE1D_7 exists'):
        new_run_directory(tmp_path, 'AE1D', 7)


def test_training_further_starts_from_the_saved_weights_and_optimizer():
    set_seed(0)
    model = build_model('AE1D', 8, 40, width=2)
    states = {}
    fit(model, Pairs(windows(8)), epochs=3, save=lambda which, state: states.update({which: state}))
    best = states['best']
    again = build_model('AE1D', 8, 40, width=2)
    again.load_state_dict(best['model_state_dict'])
    optimizer, _ = make_optimizer(again, **OPTIMIZER | {'learning_rate': 1e-4})
    resume_optimizer(optimizer, best['optimizer_state_dict'])
    assert optimizer.param_groups[0]['lr'] == 1e-4
    moments = optimizer.state_dict()['state'][0]
    torch.testing.assert_close(moments['exp_avg'], best['optimizer_state_dict']['state'][0]['exp_avg'], rtol=0, atol=0)

    history = fit(again, Pairs(windows(8)), epochs=1, started=best['optimizer_state_dict'])
    assert [epoch['epoch'] for epoch in history] == [0, 1]
    assert history[0]['validation loss'] == pytest.approx(best['validation loss'], rel=1e-6)


def test_a_model_that_gets_worse_keeps_the_weights_it_started_from():
    set_seed(0)
    model = build_model('AE1D', 8, 40, width=2)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer, _ = make_optimizer(model, **OPTIMIZER)
    rising = iter([1.0, 2.0, 3.0])

    def scripted(model, x, target):
        value = reconstruction_loss('mse', [1.0])(model, x, target)
        return value if model.training else value * 0 + next(rising)

    history = train(
        model,
        *[batches(Pairs(windows(4)), batch_size=4)] * 2,
        scripted,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 50),
        num_epochs=2,
        n_epochs_stop=9,
        device=CPU,
        save=lambda which, state: None,
        validate_first=True,
    )
    assert len(history) == 3
    assert all(torch.equal(weight, start[name]) for name, weight in model.state_dict().items())
