"""Precision and compiled training."""

import numpy as np
import pytest
import torch
from small_networks import CPU, NAMES, fit, losses_of, rhythms, small

import loop
from utils import SettingError, choose_precision, set_seed


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
