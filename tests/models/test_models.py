"""One table for all autoencoders; a model that is not in it fails."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from models import AUTOENCODERS, build_model
from models.autoencoder import Autoencoder, mask_segment, upsample_to
from models.sfcn import SFCN

# Name: parameters at full size (AE1D and AE2D: REFERENCE figures; the others recorded), latent maps of 274 x 300.
TABLE = {
    'AE1D': (435_846, [(1, 274, 75)]),
    'AE2D': (2_167_686, [(1, 274, 75)]),
    'AE1D_smaller': (435_846, [(1, 274, 19)]),
    'AE2D_smaller': (2_167_686, [(1, 274, 19)]),
    'wavelets': (203_304, [(16, 1, 154), (32, 1, 81), (64, 2, 45)]),
}
WAVELETS = {'filters': [4, 4, 4], 'pywt_family': 'haar', 'embedding_size': 8, 'top_k': 3, 'latent_nodes': 6}
SMALL = {name: WAVELETS if name == 'wavelets' else {'width': 2} for name in TABLE}
NAMES = sorted(AUTOENCODERS)


def small(name, n_channels=12, n_times=40, seed=0):
    torch.manual_seed(seed)
    return build_model(name, n_channels, n_times, **SMALL[name])


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_model_is_in_the_table():
    assert sorted(TABLE) == sorted(SMALL) == NAMES
    with pytest.raises(ValueError, match="no model 'AE3D': one of AE1D"):
        build_model('AE3D')
    with pytest.raises(TypeError, match='widht'):
        build_model('AE1D', widht=3)


@pytest.mark.parametrize('name', NAMES)
def test_parameters_and_latent_of_the_full_size(name):
    parameters, latent = TABLE[name]
    model = build_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.no_grad():
        maps = model.latent(noise(1, 1, 274, 300))
    assert [tuple(latent_map.shape[1:]) for latent_map in maps] == latent


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(('batch', 'n_channels', 'n_times'), [(3, 12, 40), (1, 12, 40), (2, 7, 41), (2, 9, 30)])
def test_shapes_of_the_output(name, batch, n_channels, n_times):
    x, target = noise(batch, 1, n_channels, n_times), noise(batch, 1, n_channels, n_times, seed=2)
    for training in (True, False):
        model = small(name, n_channels, n_times).train(training)
        pairs = model(x, target)
        for output, wanted in pairs:
            assert output.shape == wanted.shape
        assert pairs[0][0].numel() == x.numel()
        assert torch.equal(pairs[0][1].reshape(x.shape), target)
        assert torch.equal(model(x)[0][1].reshape(x.shape), x)
        for (_, band), (_, again) in zip(pairs, model(target), strict=True):
            assert torch.equal(band, again)
    cards = model.error_cards(x)
    assert cards.shape == (batch, len(pairs), n_channels, n_times)
    assert (cards >= 0).all()
    for plane, (output, wanted) in enumerate(model(x)):
        error = ((output - wanted) ** 2).reshape(batch, n_channels, -1)
        nearest = [t * error.shape[-1] // n_times for t in range(n_times)]
        torch.testing.assert_close(cards[:, plane], error[..., nearest])


@pytest.mark.parametrize('name', NAMES)
def test_a_window_is_reconstructed_alone_as_in_a_batch(name):
    model = small(name).eval()
    x = noise(4, 1, 12, 40)
    with torch.no_grad():
        together = model.error_cards(x)
        alone = torch.cat([model.error_cards(window[None]) for window in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_latent_values_of_the_default_pipeline_are_those_of_the_readme():
    latent = build_model('wavelets', pywt_mode='periodization').latent(noise(1, 1, 274, 300))
    assert sum(z.numel() for z in latent) == 16 * 150 + 32 * 75 + 64 * 2 * 38 == 9664


def test_the_graph_at_full_size_learns():
    """Its weights are neither all nor nothing, and the gradient of the embeddings is no rounding error."""
    model = build_model('wavelets', filters=[4, 4, 4], pywt_mode='periodization')
    x = noise(2, 1, 274, 300)
    sum((output - wanted).square().mean() for output, wanted in model(x)).backward()
    for level in model.levels:
        maps = torch.rand(2, 274, 4)
        weights = level.graph.weights(maps)
        others = 1 - weights.diagonal(dim1=1, dim2=2) / weights.sum(dim=-1)
        assert 0.2 < others.mean() < 0.94  # 20 saturated edges would be 20/21
        for embedding in (level.graph.source, level.graph.target):
            assert embedding.no_decay
            assert embedding.grad.abs().mean() > 1e-9


@pytest.mark.parametrize('name', NAMES)
def test_weights_depend_on_the_seed_alone(name):
    model, again, another_seed = small(name), small(name), small(name, seed=1)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (model, again, another_seed)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize('name', NAMES)
def test_gradients_reach_every_parameter(name):
    model = small(name)
    x = noise(3, 1, 12, 40)
    sum((output - wanted).square().mean() for output, wanted in model(x)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        # Batch norm removes the mean: the bias of the convolution before it has a gradient of rounding errors only.
        assert torch.isfinite(parameter.grad).all(), parameter_name
        if not parameter_name.endswith('bias'):
            assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize('name', NAMES)
def test_float64_equals_float32(name):
    model = small(name).eval()
    x = noise(2, 1, 12, 40)
    with torch.no_grad():
        single = model(x)[0][0]
        double = model.double()(x.double())[0][0]
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_a_checkpoint_rebuilds_the_model(name, tmp_path):
    model = small(name).eval()
    torch.save({'settings': SMALL[name], 'weights': model.state_dict()}, tmp_path / 'model.pth')
    state = torch.load(tmp_path / 'model.pth', weights_only=True)
    again = build_model(name, 12, 40, **state['settings']).eval()
    again.load_state_dict(state['weights'])
    x = noise(2, 1, 12, 40)
    with torch.no_grad():
        assert torch.equal(model.error_cards(x), again.error_cards(x))


@pytest.mark.parametrize('name', NAMES)
def test_nothing_goes_around_the_latent_maps(name):
    """The reconstruction moves in no more directions than there are latent values, fewer than the input has."""
    model = small(name, 10, 32).double().eval()
    x = noise(1, 1, 10, 32).double()
    n_latent = sum(z.numel() for z in model.latent(x))
    assert n_latent < x.numel()
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v.reshape(1, 1, 10, 32))[0][0].flatten(), x.flatten())
    assert 0 < torch.linalg.matrix_rank(jacobian, rtol=1e-9) <= n_latent


def test_the_layers_of_ae1d_are_in_the_order_of_the_original():
    """A checkpoint of the original, whatever its names, loads in order: weights and batch norms of the ten stages."""
    maps = [1, 32, 64, 128, 256, 1, 256, 128, 64, 32, 1]
    shapes = [tuple(tensor.shape) for tensor in build_model('AE1D').state_dict().values()]
    expected = []
    for n_in, n_out in itertools.pairwise(maps):
        expected += [(n_out, n_in, 1, 5), (n_out,), (n_out,), (n_out,), (n_out,), (n_out,), ()]
    assert shapes == expected


@pytest.mark.parametrize('name', ['AE1D', 'AE2D', 'AE1D_smaller', 'AE2D_smaller'])
def test_upsampling_within_the_convolution_equals_the_plain_layers(name):
    """The same weights in plain layers: convolution, batch norm, LeakyReLU, max pooling, nearest-neighbour doubling."""
    kernel, n_poolings = (1 if '1D' in name else 5, 5), 4 if 'smaller' in name else 2
    maps = [1, 2, 4, 8, 16]

    def stage(n_in, n_out, activation=True):
        layers = [nn.Conv2d(n_in, n_out, kernel, padding='same'), nn.BatchNorm2d(n_out)]
        return layers + [nn.LeakyReLU(0.2)] * activation

    encoder, decoder = [], []
    for layer in range(4):
        encoder += stage(maps[layer], maps[layer + 1]) + [nn.MaxPool2d((1, 2))] * (layer < n_poolings)
    encoder += stage(16, 1, activation=False)
    for layer, (n_in, n_out) in enumerate([(1, 16), (16, 8), (8, 4), (4, 2), (2, 1)]):
        decoder += [nn.Upsample(scale_factor=(1, 2))] * (0 < layer <= n_poolings)
        decoder += stage(n_in, n_out, activation=layer < 4)
    plain = nn.Sequential(*encoder, *decoder)
    model = small(name, 12, 48)
    weights = zip(plain.state_dict(), model.state_dict().values(), strict=True)
    plain.load_state_dict({name: tensor.clone() for name, tensor in weights})
    x = noise(2, 1, 12, 48)
    for training in (True, False):
        plain.train(training), model.train(training)
        torch.testing.assert_close(model(x)[0][0], plain(x), rtol=1e-4, atol=1e-5)


def test_ae1d_codes_each_channel_on_its_own_and_ae2d_does_not():
    x = noise(1, 1, 12, 40)
    changed = x.clone()
    changed[:, :, 5] += 1
    for name, alone in (('AE1D', True), ('AE2D', False)):
        model = small(name).eval()
        with torch.no_grad():
            difference = (model(x)[0][0] - model(changed)[0][0]).abs().amax(dim=(0, 1, 3))
        touched = torch.nonzero(difference).flatten().tolist()
        assert (touched == [5]) == alone
        assert 5 in touched


def test_every_model_has_error_cards():
    assert all(issubclass(kind, Autoencoder) for kind, _ in AUTOENCODERS.values())


def test_error_cards_repeat_the_errors_of_short_bands():
    class Bands(Autoencoder):
        def forward(self, x, target=None):
            band = x[:, 0, :, ::4]
            return [(x, x + 1), (band, torch.zeros_like(band))]

    x = torch.arange(8.0).reshape(1, 1, 1, 8)
    cards = Bands().error_cards(x)
    np.testing.assert_array_equal(cards[0, 0, 0], np.ones(8))
    np.testing.assert_array_equal(cards[0, 1, 0], [0, 0, 0, 0, 16, 16, 16, 16])


@pytest.mark.parametrize(('first', 'last'), [(3, 7), (0, 4), (5, 9), (4, 5), (1, 8), (3, 3)])
def test_a_masked_segment_is_a_straight_line(first, last):
    x = noise(2, 1, 3, 9)
    # In the first window the segment is masked, in the second another sample.
    masked = mask_segment(x, torch.tensor([first, 2]), torch.tensor([last, 3]))
    for channel in range(3):
        expected = x[0, 0, channel].numpy().copy()
        seen = [t for t in range(9) if not first <= t < last]
        expected[first:last] = np.interp(np.arange(first, last), seen, expected[seen])
        np.testing.assert_allclose(masked[0, 0, channel], expected, atol=1e-6)
    assert torch.equal(masked[1, ..., [0, 1, 3, 4, 5, 6, 7, 8]], x[1, ..., [0, 1, 3, 4, 5, 6, 7, 8]])
    torch.testing.assert_close(masked[1, ..., 2], x[1, ..., [1, 3]].mean(dim=-1))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('margin', [0, 3])
def test_nothing_leads_from_a_masked_segment_to_its_reconstruction(name, margin):
    """What is masked moves its residual by as much as itself: the reconstruction stays. What is around it does not."""
    model = small(name).eval()
    x, shape = noise(2, 1, 12, 40), (8, 3, 8)
    with torch.no_grad():
        before = model.masked_residuals(x, shape, margin)
        assert before.shape == (2, 5 if name == 'wavelets' else 1, 12, 3, 8 + 2 * margin)
        for k in range(3):
            first, last = 8 + 8 * k - margin, 16 + 8 * k + margin
            changed = x.clone()
            changed[..., first:last] += 10 * noise(2, 1, 12, last - first, seed=3)
            after = model.masked_residuals(changed, shape, margin)
            moved = after[:, 0, :, k] - before[:, 0, :, k]
            torch.testing.assert_close(moved, (changed - x)[:, 0, :, first:last], rtol=1e-4, atol=1e-4)
            # The bands' targets move, their reconstructions do not.
            bounds = torch.full((2,), first), torch.full((2,), last)
            for (of_changed, _), (expected, _) in zip(
                model(mask_segment(x, *bounds)), model(mask_segment(changed, *bounds)), strict=True
            ):
                assert torch.equal(of_changed, expected)
            # Both sides count.
            for outside in (first - 1, last):
                around = x.clone()
                around[..., outside] += 10
                assert not torch.equal(model.masked_residuals(around, shape, margin)[:, 0, :, k], before[:, 0, :, k])
        torch.testing.assert_close(
            model.masked_error_cards(x, shape), model.masked_residuals(x, shape).square(), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ('name', 'settings'),
    [(name, {}) for name in NAMES]
    + [('wavelets', {'pywt_family': family, 'pywt_mode': 'periodization'}) for family in ('db5', 'haar')]
    + [('wavelets', {'latent_nodes': None})],
)
@pytest.mark.parametrize(
    ('n_times', 'shape', 'margin'),
    [(150, (20, 5, 20), 8), (121, (1, 1, 90), 0), (90, (72, 1, 17), 1), (57, (8, 7, 5), 3), (30, (0, 15, 2), 0)],
)
def test_residuals_are_those_of_whole_windows(name, settings, n_times, shape, margin):
    """Only what reaches a masked segment is computed, and the layers of evaluation are those of training."""
    torch.manual_seed(0)
    model = build_model(name, 12, n_times, **SMALL[name] | settings)
    for seed in range(3):
        model.train()(noise(4, 1, 12, n_times, seed=seed))  # running means and variances that are not 0 and 1
    model.eval()
    x = noise(2, 1, 12, n_times)
    for levels in ([0], None) if name != 'wavelets' else ([0], None, [2], [4, 0], [3]):
        with torch.no_grad():
            residuals = model.masked_residuals(x, shape, margin, levels)
            for k in range(shape[1]):
                first = shape[0] + k * shape[2] - margin
                last = first + shape[2] + 2 * margin
                seen = mask_segment(x, torch.full((2,), first), torch.full((2,), last))
                pairs = plain_pairs(model, seen, x)
                whole = [upsample_to(target - output, n_times) for output, target in pairs]
                expected = [whole[level][..., first:last] for level in levels or range(len(whole))]
                torch.testing.assert_close(residuals[:, :, :, k], torch.stack(expected, dim=1), rtol=1e-4, atol=1e-5)


def plain_pairs(model, seen, x):
    """(reconstruction, target) pairs by whole layers: batch norm on its own, with the running means and variances."""
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    pairs = model(seen, x)
    model.eval()
    return pairs


@pytest.mark.parametrize('name', NAMES)
def test_the_context_reaches_every_masked_sample_of_a_default_window(name):
    """200 ms and a margin of 8 samples masked: no sample is so far from its context that nothing can be predicted."""
    settings = SMALL[name] | ({'pywt_family': 'db5', 'pywt_mode': 'periodization'} if name == 'wavelets' else {})
    model = build_model(name, 8, 300, **settings).double()
    x = noise(1, 1, 8, 300).double().requires_grad_()
    for middle in (118, 135, 151):
        (slope,) = torch.autograd.grad(
            model(mask_segment(x, torch.tensor([112]), torch.tensor([158])))[0][0].reshape(8, 300)[:, middle].sum(), x
        )
        reached = torch.nonzero(slope[0, 0].abs().amax(dim=0)).flatten()
        reached = reached[(reached < 112) | (reached >= 158)]
        assert reached.min() < 111
        assert reached.max() > 158


def test_the_classifier_gives_a_logit_per_card():
    torch.manual_seed(0)
    network = SFCN().eval()
    cards = noise(3, 1, 274, 30)
    logits = network(cards)
    assert logits.shape == (3,)
    assert torch.equal(logits, network(cards))  # dropout is off
    assert (logits < 0).any() or (logits > 1).any()  # no sigmoid
    assert SFCN(5, 16, 16, width=2)(noise(2, 5, 16, 16)).shape == (2,)
