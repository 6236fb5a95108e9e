"""Precision, compiled training, and what only a GPU can show: `pytest -k cuda` where there is one."""

import contextlib

import numpy as np
import pytest
import torch
from common import OPTIMIZER

import loop
from classifiers.durations import duration_score
from classifiers.features import fingerprints, spike_features
from classifiers.filtered import filter_windows
from classifiers.inputs import (
    error_cards,
    error_statistics,
    latent_statistics,
    masked_cards,
    mean_error,
)
from classifiers.sfcn import CardDataset, SfcnClassifier
from classifiers.specs import Examples
from classifiers.subwindows import SubwindowShape, field_peaks
from loop import make_optimizer, train, validate
from models import AUTOENCODERS, build_model
from models.sfcn import SFCN
from recordings.patient_windows import PatientWindows
from timeseries_dataset import WindowDataset, batches, id_table
from training.losses import masked_loss, reconstruction_loss, spike_loss
from utils import SettingError, choose_precision, set_seed

CPU = torch.device('cpu')
SHAPE = SubwindowShape(12, 3, 8)
SMALL = {'filters': [4, 4, 4], 'pywt_mode': 'periodization', 'embedding_size': 8, 'top_k': 3, 'latent_nodes': 6}
NAMES = sorted(AUTOENCODERS)


def small(name, precision='float32', seed=0):
    torch.manual_seed(seed)
    model = build_model(name, 12, 48, **(SMALL if name == 'wavelets' else {'width': 4}))
    model.precision = precision
    return model


def rhythms(n, seed=0):
    """Windows (n, 1, 12, 48) of a rhythm in any phase, with a little noise."""
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * (np.arange(48) / 16 + rng.random((n, 1, 1, 1)))
    x = np.cos(phase) * np.linspace(0.5, 1.5, 12)[:, None] + 0.1 * rng.normal(size=(n, 1, 12, 48))
    return torch.from_numpy(x.astype(np.float32))


def losses_of(name):
    weights = [1.0] * (5 if name == 'wavelets' else 1)
    return {'plain': reconstruction_loss('mse', weights), 'masked': masked_loss('mse', weights, SHAPE, 2)}


# -------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize(
    ('name', 'capability', 'chosen'),
    [
        ('auto', (9, 0), 'bfloat16'),
        ('auto', (8, 0), 'bfloat16'),
        ('auto', (7, 5), 'float32'),
        ('float32', (9, 0), 'float32'),
        ('bfloat16', (8, 6), 'bfloat16'),
    ],
)
def test_precision_goes_by_what_the_gpu_can(monkeypatch, name, capability, chosen):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        assert choose_precision(name, torch.device('cuda')) == chosen
        assert torch.get_float32_matmul_precision() == 'highest'  # what stays float32 is exact
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def test_precision_on_the_cpu_is_float32_unless_asked_for(monkeypatch):
    assert [choose_precision(name, CPU) for name in ('auto', 'float32', 'bfloat16')] == [
        'float32',
        'float32',
        'bfloat16',
    ]
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'Old GPU')
    with pytest.raises(SettingError, match=r"precision = 'bfloat16': Old GPU does not have it; precision='auto' takes"):
        choose_precision('bfloat16', torch.device('cuda:1'))


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_is_for_the_layers_alone(name):
    """Its outputs are float32 and near those of float32; targets are not rounded; gradients and weights are float32."""
    x, target = rhythms(4), rhythms(4, seed=1)
    exact, rounded = (small(name, precision).eval() for precision in ('float32', 'bfloat16'))
    for (output, wanted), (near, same) in zip(exact(x, target), rounded(x, target), strict=True):
        assert near.dtype == torch.float32
        assert not torch.equal(near, output)
        assert (near - output).abs().max() < 0.05 * output.std() + 1e-3
        assert torch.equal(same, wanted)
    assert rounded.latent(x)[0].dtype == torch.float32
    for loss in losses_of(name).values():
        value = loss(rounded, x, target)
        assert value.dtype == torch.float32
        value.backward()
    assert {p.grad.dtype for p in rounded.parameters()} == {torch.float32}
    assert exact.state_dict().keys() == rounded.state_dict().keys()


def test_the_neighbours_in_the_graph_are_chosen_in_float32():
    graph = small('wavelets').levels[0].graph
    content = torch.rand(3, 12, 4)
    with torch.autocast('cpu', torch.bfloat16):
        under_autocast = graph.weights(content)
    assert torch.equal(under_autocast, graph.weights(content))


def fit(model, x, loss, epochs, save=lambda which, state: None, device=CPU, batch_size=4, rate=1e-2):
    optimizer, scheduler = make_optimizer(model, **OPTIMIZER | {'learning_rate': rate, 'weight_decay': 5e-4})
    return train(
        model,
        batches(Pairs(x), batch_size=batch_size, shuffle=True, seed=0),
        batches(Pairs(x[:8]), batch_size=batch_size),
        loss,
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=epochs,
        n_epochs_stop=100,
        device=device,
        save=save,
    )


class Pairs(torch.utils.data.Dataset):
    """(input, target) windows from memory, with the interface of WindowDataset."""

    epoch = 0

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        return self.x[indices], self.x[indices]


def test_training_in_bfloat16_ends_where_training_in_float32_does():
    x, ends = rhythms(24), {}
    for precision in ('float32', 'bfloat16'):
        set_seed(0)
        history = fit(small('wavelets', precision), x, losses_of('wavelets')['masked'], 15, batch_size=8, rate=2e-3)
        ends[precision] = history[-1]['validation loss']
        assert history[-1]['training loss'] < 0.7 * history[0]['training loss']
    assert ends['bfloat16'] != ends['float32']
    assert ends['bfloat16'] == pytest.approx(ends['float32'], rel=0.02)


def test_training_in_float32_is_the_plain_loop_bit_for_bit():
    """A plain loop over the same batches, written out here, gives the same losses and weights."""
    x = rhythms(10)
    loss = losses_of('wavelets')['plain']
    set_seed(0)
    model = small('wavelets')
    history = fit(model, x, loss, 2)
    set_seed(0)
    again = small('wavelets')
    optimizer = torch.optim.Adam(
        [{'params': [p for p in again.parameters() if not getattr(p, 'no_decay', False)]},
         {'params': [p for p in again.parameters() if getattr(p, 'no_decay', False)], 'weight_decay': 0.0}],
        lr=1e-2, weight_decay=5e-4,
    )  # fmt: skip
    best = np.inf
    for epoch in (1, 2):
        order, total = np.random.default_rng([0, epoch]).permutation(10), 0.0
        for first in range(0, 10, 4):
            batch = x[order[first : first + 4]]
            value = loss(again.train(), batch, batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item() * len(batch)
        assert history[epoch - 1]['training loss'] == total / 10
        with torch.no_grad():
            value = np.mean([loss(again.eval(), batch, batch).item() for batch in x[:8].split(4)])
        assert history[epoch - 1]['validation loss'] == value
        if value < best:
            best, weights = value, {key: tensor.clone() for key, tensor in again.state_dict().items()}
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[key])


def test_a_loss_that_is_not_finite_between_two_looks_is_never_saved(monkeypatch):
    """As on a GPU, the loss is looked at every so many batches: here at the end of an epoch only."""
    saved, seen = [], []
    loss = losses_of('AE1D')['plain']

    def nan_once(model, x, target):
        seen.append(len(seen) + 1)
        return loss(model, x, target) * (float('nan') if len(seen) == 4 else 1)

    monkeypatch.setitem(loop.LOOK_EVERY, 'cpu', 1000)
    with pytest.raises(SettingError, match='epoch 1: the loss is nan: lower learning_rate'):
        fit(small('AE1D'), rhythms(24), nan_once, 3, lambda which, state: saved.append(which))
    assert seen == [1, 2, 3, 4, 5, 6]  # the epoch's end is the first look
    assert saved == []


# ---------------------------------------------------------------------------------------------- compiling
def test_compiled_training_is_for_whole_batches_and_leaves_the_checkpoints_as_they_are(monkeypatch, capsys):
    calls = []

    def compile_nothing(forward, dynamic):
        def compiled(x, *more):
            calls.append(len(x))
            return forward(x, *more)

        return compiled

    monkeypatch.setattr(torch, 'compile', compile_nothing)
    model, states = small('AE1D'), []
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.compile_training((4, 1, 12, 48))
    assert capsys.readouterr().out.startswith('  compiled for batches of 4 in ')
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert all(p.grad is None for p in model.parameters())
    calls.clear()
    fit(model, rhythms(10), losses_of('AE1D')['plain'], 1, lambda which, state: states.append(state))
    assert calls == [4, 4]  # neither the last batch of 2, nor validation
    assert states[0]['model_state_dict'].keys() == before.keys()


def test_without_a_compiler_training_runs_uncompiled_and_says_so_once(monkeypatch, capsys):
    def fail(forward, dynamic):
        raise RuntimeError('Failed to find C compiler.\nPlease specify one.')

    monkeypatch.setattr(torch, 'compile', fail)
    model = small('AE1D')
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.compile_training((4, 1, 12, 48))
    output = capsys.readouterr().out
    assert output == (
        'warning: torch.compile does not work here (RuntimeError: Failed to find C compiler.): training runs without '
        'it, slower\n'
    )
    assert model.compiled is None
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
    fit(model, rhythms(8), losses_of('AE1D')['plain'], 1)


def test_the_compiler_takes_the_network_as_one_graph():
    """Traced whole, and differentiated: what is left to a GPU's compiler is to make kernels of it."""
    model = small('wavelets', 'bfloat16').train()
    x = rhythms(4)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, dynamic=False, fullgraph=True, backend='aot_eager')
    model(x)
    tensors = {}
    for which, forward in (('compiled', compiled), ('eager', model.forward)):
        model.zero_grad()
        outputs = [output for output, _ in forward(x, x.clone())]
        tensors[which] = [output.detach().clone() for output in outputs]
        sum(output.square().mean() for output in outputs).backward()
        tensors[which] += [p.grad.clone() for p in model.parameters()]
    for by_compiled, by_eager in zip(tensors['compiled'], tensors['eager'], strict=True):
        torch.testing.assert_close(by_compiled, by_eager, rtol=0.02, atol=1e-4)
    torch._dynamo.reset()


# --------------------------------------------------------------------------------- devices, without a GPU
@pytest.fixture
def elsewhere(monkeypatch):
    """A device that is not the CPU: its tensors have shapes and no content.

    As on a GPU, an operation that mixes it with the CPU fails; and so does one that waits for a value.
    """
    monkeypatch.setattr(torch, 'autocast', lambda *more, **named: contextlib.nullcontext())
    device = torch.device('meta')
    there, here = torch.ones(3, device=device), torch.ones(3)
    for mixed in (lambda: there + here, lambda: torch.where(there > 0, here, there)):
        with pytest.raises(RuntimeError, match='device cpu is not on the expected device meta'):
            mixed()
    with pytest.raises(RuntimeError, match=r'item\(\) cannot be called on meta tensors'):
        there.sum().item()
    return device


@pytest.mark.parametrize('name', NAMES)
def test_nothing_is_on_another_device_and_nothing_waits(elsewhere, name):
    """Losses, with their gradients, and what the classifiers see, as far as it is computed on the GPU."""
    filters = torch.ones(5, 12, device=elsewhere)

    def filtered(m, x):
        return filter_windows(x[:, 0], m.masked_residuals(x, SHAPE, 2, [0])[:, 0], filters, SHAPE, 2)

    inputs = [
        lambda m, x: error_cards(m.error_cards(x), SHAPE),
        lambda m, x: error_statistics(m.error_cards(x), SHAPE),
        lambda m, x: latent_statistics(m.latent(x), x.shape[-1], SHAPE),
        lambda m, x: mean_error(m.error_cards(x), SHAPE),
        lambda m, x: masked_cards(m.masked_residuals(x, SHAPE, 2), SHAPE, 2),
        lambda m, x: spike_features(filtered(m, x)),
        lambda m, x: duration_score(filtered(m, x)),
        lambda m, x: fingerprints(filtered(m, x)),
        lambda m, x: field_peaks(x, SHAPE),
    ]
    model, x = small(name).to(elsewhere), rhythms(4).to(elsewhere)
    for training in (True, False):
        for loss in losses_of(name).values():
            value = loss(model.train(training), x, x.clone())
            assert value.device == elsewhere
            value.backward()
    assert all(p.grad.device == elsewhere for p in model.parameters())
    for function in inputs:
        assert function(model, x).device == elsewhere


@pytest.mark.parametrize('kind', ['bce', 'focal'])
def test_the_classifier_stays_on_its_device(elsewhere, kind):
    network = SFCN(2, 16, 16, width=2).to(elsewhere)
    cards, labels = torch.zeros(3, 2, 16, 16, device=elsewhere), torch.ones(3, device=elsewhere)
    assert spike_loss(kind, 35.0, 2.0)(network, cards, labels).device == elsewhere


# ------------------------------------------------------------------------------------------- on a real GPU
@pytest.fixture
def gpu():
    """The GPU; without one, the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip('no CUDA GPU')
    set_seed(0)
    yield torch.device('cuda')
    choose_precision('auto', torch.device('cuda'))


@pytest.mark.parametrize('name', NAMES)
def test_cuda_gives_the_outputs_of_the_cpu(gpu, name):
    x, expected = rhythms(4), {}
    for precision, tolerance in (('float32', 1e-4), ('bfloat16', 0.05)):
        if choose_precision(precision if precision == 'float32' else 'auto', gpu) != precision:
            continue
        model = small(name, 'float32').eval()
        with torch.no_grad():
            expected = model(x), model.masked_error_cards(x, SHAPE, 2)
            model.to(gpu).precision = precision
            on_gpu = model(x.to(gpu)), model.masked_error_cards(x.to(gpu), SHAPE, 2)
        for (output, wanted), (near, same) in zip(expected[0], on_gpu[0], strict=True):
            assert (near.cpu() - output).square().mean().sqrt() < tolerance * output.std()
            torch.testing.assert_close(same.cpu(), wanted, rtol=1e-5, atol=1e-5)
        far = (on_gpu[1].cpu() - expected[1]).square().mean().sqrt()
        assert far < 2 * tolerance * expected[1].square().mean().sqrt()


def gradients(model, name, x):
    """Loss and gradients of one batch, with the same segments masked whatever the device."""
    torch.manual_seed(5)
    value = losses_of(name)['masked'](model.train(), x, x)
    value.backward()
    return value.item(), torch.cat([p.grad.flatten().cpu() for p in model.parameters()])


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # PyTorch's compiler uses what PyTorch gives up
@pytest.mark.parametrize(('name', 'compiled'), [*((name, False) for name in NAMES), ('AE1D', True), ('wavelets', True)])
def test_cuda_gives_the_gradients_of_the_cpu(gpu, name, compiled):
    """On a CPU, bfloat16 is up to 12 % off in these gradients (the deepest network) and 0.5 % in the loss."""
    x = rhythms(8)
    expected, wanted = gradients(small(name), name, x)
    for precision, tolerance in (('float32', 1e-3), ('bfloat16', 0.2)):
        if choose_precision(precision if precision == 'float32' else 'auto', gpu) != precision:
            continue
        model = small(name, precision).to(gpu)
        if compiled:
            model.compile_training(x.shape)
            assert model.compiled
        value, gradient = gradients(model, name, x.to(gpu))
        assert value == pytest.approx(expected, rel=tolerance / 10)
        assert (gradient - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize('name', NAMES)
def test_cuda_training_ends_where_the_cpu_s_does(gpu, name):
    """In bfloat16 where the GPU has it, and the checkpoint is one of the CPU.

    Few steps, and small ones: on a CPU, a thousandth of change in the weights at the start, or bfloat16, moves the
    end by 2.5 %. With larger steps the paths part, and their ends tell nothing about the device.
    """
    x, losses, keys = rhythms(24), {}, {}
    for device in (CPU, gpu):
        set_seed(0)
        model, states = small(name, choose_precision('auto', device)).to(device), {}
        before = validate(model, batches(Pairs(x), batch_size=8), losses_of(name)['masked'], device)
        loss = losses_of(name)['masked']
        fit(model, x, loss, 10, lambda which, state, to=states: to.update({which: state}), device, 8, 1e-3)
        keys[device.type] = list(states['last']['model_state_dict'])
        again = small(name)
        again.load_state_dict({key: tensor.cpu() for key, tensor in states['last']['model_state_dict'].items()})
        losses[device.type] = validate(again, batches(Pairs(x), batch_size=8), loss, CPU)
        assert losses[device.type] < 0.95 * before
    assert keys['cuda'] == keys['cpu']
    assert losses['cuda'] == pytest.approx(losses['cpu'], rel=0.06)


def held_windows(n=20):
    windows = np.random.default_rng(0).normal(size=(n, 12, 48)).astype(np.float32)
    none = np.zeros(n, dtype=np.int64)
    return windows, PatientWindows(0, 'windows', windows, none, none, none, np.zeros((n, 0), dtype=np.uint8))


def test_cuda_holds_the_windows_and_gathers_the_batches_of_the_cpu(gpu):
    opened = held_windows()[1]
    for zscore in (False, True):
        there, here = (
            WindowDataset([opened], id_table([opened]), zscore=zscore, preload=True, device=device)
            for device in (gpu, CPU)
        )
        assert there.preloaded.is_cuda
        for (x, target), (expected, _) in zip(
            batches(there, batch_size=8, shuffle=True, seed=3),
            batches(here, batch_size=8, shuffle=True, seed=3),
            strict=True,
        ):
            assert x.is_cuda
            assert torch.equal(x.cpu(), expected)
            assert torch.equal(x, target)


def test_cuda_draws_the_noise_of_windows_that_it_holds(gpu):
    windows, opened = held_windows(200)
    dataset = WindowDataset([opened], id_table([opened]), zscore=False, noise=0.2, seed=1, preload=True, device=gpu)
    noisy, clean = dataset.__getitems__(list(range(200)))
    assert noisy.is_cuda
    assert torch.equal(clean[:, 0].cpu(), torch.from_numpy(windows))
    assert (noisy - clean).std().item() == pytest.approx(0.2, rel=0.02)
    assert torch.equal(dataset.__getitems__(list(range(200)))[0], noisy)
    dataset.epoch = 1
    assert not torch.equal(dataset.__getitems__(list(range(200)))[0], noisy)


def test_cuda_draws_the_noise_of_windows_that_the_machine_holds(gpu):
    opened = held_windows(200)[1]
    noise = {'zscore': False, 'noise': 0.2, 'seed': 1, 'device': gpu}
    held, read = (WindowDataset([opened], id_table([opened]), preload=preload, **noise) for preload in (True, False))
    for (noisy, clean), (expected, _) in zip(batches(read, batch_size=64), batches(held, batch_size=64), strict=True):
        assert noisy.is_cuda
        assert torch.equal(noisy, expected)
        assert (noisy - clean).std().item() == pytest.approx(0.2, rel=0.02)
    assert not any(x.is_cuda for x, _ in batches(read, batch_size=64, num_workers=1))


def test_cuda_holds_the_cards_of_the_classifier(gpu, tmp_path):
    """They stay on the GPU while they fit, and the classifier learns from them what it would on the CPU."""
    rng = np.random.default_rng(0)
    labels = (rng.random(60) < 0.3).astype(np.int64)
    cards = (rng.normal(size=(60, 1, 16, 16)) + labels[:, None, None, None]).astype(np.float32)
    dataset = CardDataset(cards, labels, gpu)
    batch, of = dataset.__getitems__([3, 1, 3])
    assert batch.is_cuda
    assert np.array_equal(batch.cpu().numpy(), cards[[3, 1, 3]])
    assert of.tolist() == labels[[3, 1, 3]].tolist()
    classifier = SfcnClassifier(
        device=gpu, precision=choose_precision('auto', gpu), seed=0, classifier_width=4, classifier_batch_size=20,
        classifier_learning_rate=1e-2, classifier_num_epochs=10, classifier_n_epochs_stop=10, classifier_loss='bce',
        focal_gamma=2.0, positive_weight=None, classifier_optimizer='adam', classifier_weight_decay=0.0,
        early_stop_on='loss',
        **{key: OPTIMIZER[key] for key in ('scheduler', 'stepLR', 'gammaLR', 'plateau_patience')},
    )  # fmt: skip
    classifier.fit(Examples(cards, labels), Examples(cards, labels), lambda which: tmp_path / f'{which}.pth')
    proba = classifier.predict_proba(cards)
    assert proba[labels == 1].mean() > proba[labels == 0].mean() + 0.3
