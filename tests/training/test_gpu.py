"""What only a GPU can show: `pytest -k cuda` where there is one; and devices without one."""

import contextlib

import numpy as np
import pytest
import torch
from common import OPTIMIZER, Pairs
from small_networks import CPU, NAMES, SHAPE, fit, losses_of, rhythms, small

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
from classifiers.spectral import BlockSpectra
from classifiers.subwindows import field_peaks
from loop import validate
from models.sfcn import SFCN
from recordings.patient_windows import PatientWindows
from timeseries_dataset import WindowDataset, batches, id_table
from training.losses import spike_loss
from utils import choose_precision, set_seed


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


def test_cuda_leaves_of_the_spectrum_of_blocks_what_the_cpu_does(gpu):
    x, filters, blocks = rhythms(6), torch.eye(12)[:5], np.array([1, 1, 1, 0, 0, 0])
    rows, left = slice(1, 5), {}
    for device in (CPU, gpu):
        windows = (part.to(device) for part in x.split(4))
        spectra = BlockSpectra(filters.to(device), SHAPE, 2, blocks, windows, np.ones(6, dtype=bool))
        left[device] = spectra.residuals(x[rows].to(device), rows)
    assert left[gpu].is_cuda
    torch.testing.assert_close(left[gpu].cpu(), left[CPU], rtol=1e-3, atol=1e-4)


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
