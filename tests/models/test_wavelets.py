"""The wavelet transform inside the network, against PyWavelets; the learned graph."""

import warnings

import numpy as np
import pytest
import pywt
import torch

from models import build_model
from models.autoencoder import latent_rows
from models.graph import DynamicGraph, _largest
from models.wavelet_transform import MODES, WaveletTransform


def signal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize('mode', MODES)
def test_every_wavelet_equals_pywavelets_and_its_inverse_is_exact(mode):
    for wavelet in pywt.wavelist(kind='discrete'):
        for n_times, n_levels in ((300, 3), (41, 2)):
            x = signal(2, 3, n_times)
            transform = WaveletTransform(wavelet, n_levels, mode)
            bands = transform(torch.from_numpy(x.astype(np.float32)))
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # PyWavelets warns of windows short for their wavelet
                approximation, *details = pywt.wavedec(x, wavelet, mode=mode, level=n_levels)
            expected = [*reversed(details), approximation]
            assert transform.band_lengths(n_times) == [band.shape[-1] for band in expected]
            for band, wanted in zip(bands, expected, strict=True):
                np.testing.assert_allclose(band, wanted, rtol=0, atol=1e-5, err_msg=f'{wavelet} {n_times}')
            back = transform.inverse(bands, n_times).numpy()
            # PyWavelets' own filters of the discrete Meyer wavelet are cut off: it does not give the signal back.
            exact = x if wavelet != 'dmey' else pywt.waverec([approximation, *details], wavelet, mode=mode)
            np.testing.assert_allclose(back, exact[..., :n_times], rtol=0, atol=1e-5, err_msg=f'{wavelet} {n_times}')


@pytest.mark.parametrize('n_times', [1, 2, 3, 7, 8, 30, 299, 301])
def test_the_inverse_is_exact_for_any_length(n_times):
    x = torch.from_numpy(signal(4, n_times)).double()
    for mode in MODES:
        transform = WaveletTransform('db5', 3, mode).double()
        torch.testing.assert_close(transform.inverse(transform(x), n_times), x, rtol=0, atol=1e-6)


def test_the_transform_has_gradients_and_unknown_names_are_refused():
    transform = WaveletTransform('db3', 2, 'periodization').double()
    x = torch.from_numpy(signal(2, 10)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: tuple(transform(v)), x)
    assert torch.autograd.gradcheck(lambda v: transform.inverse(transform(v), 10), x)
    assert list(transform.parameters()) == []
    assert transform.state_dict() == {}
    with pytest.raises(ValueError, match='no wavelet mode'):
        WaveletTransform('db3', 2, 'mirror')
    with pytest.raises(ValueError, match='db99'):
        WaveletTransform('db99', 2)


def test_the_pairs_are_the_signal_and_its_bands():
    x = signal(2, 1, 9, 60).astype(np.float32)
    model = build_model('wavelets', 9, 60, filters=[4, 4, 4], pywt_family='db2', latent_nodes=4)
    targets = [target.numpy() for _, target in model(torch.from_numpy(x))]
    approximation, *details = pywt.wavedec(x[:, 0], 'db2', level=3)
    for band, wanted in zip(targets, [x[:, 0], *reversed(details), approximation], strict=True):
        np.testing.assert_allclose(band, wanted, atol=1e-5)
    # The reconstructed signal is the inverse transform of the reconstructed bands.
    signal_back, *bands = [output.detach().numpy() for output, _ in model(torch.from_numpy(x))]
    again = pywt.waverec([bands[-1], *reversed(bands[:-1])], 'db2')
    np.testing.assert_allclose(signal_back, again[..., :60], atol=1e-5)


def test_the_graph_keeps_the_strongest_neighbours_and_follows_the_content():
    torch.manual_seed(0)
    graph = DynamicGraph(30, 4, embedding_size=8, top_k=5, alpha=3.0)
    content = torch.rand(2, 30, 4)
    weights = graph.weights(content)
    assert weights.shape == (2, 30, 30)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 30))
    assert (weights >= 0).all()
    others = weights - torch.diag_embed(weights.diagonal(dim1=1, dim2=2))
    assert ((others > 0).sum(dim=-1) <= 5).all()
    # The edges kept are the strongest of those a graph without the limit has, and none is cut short by the tanh.
    dense = DynamicGraph(30, 4, embedding_size=8, top_k=29, alpha=3.0)
    dense.load_state_dict(graph.state_dict())
    everyone = dense.weights(content)
    everyone = everyone / everyone.diagonal(dim1=1, dim2=2)[..., None]
    relative = others / weights.diagonal(dim1=1, dim2=2)[..., None]
    without_self = everyone - torch.eye(30)
    torch.testing.assert_close(relative.sort(dim=-1).values[..., -5:], without_self.sort(dim=-1).values[..., -5:])
    assert 0.01 < relative[relative > 0].median() < 0.9
    assert not (((others > 0) & (others.transpose(1, 2) > 0)).any())  # an edge goes one way
    assert not torch.allclose(weights[0], weights[1])  # dynamic
    torch.testing.assert_close(graph.weights(content * 1e3), weights)  # whatever the unit
    maps = torch.rand(2, 30, 7, 4)
    torch.testing.assert_close(graph(content, maps), torch.einsum('bij,bjtf->bitf', weights, maps))
    for n_channels in (1, 3):  # fewer than neighbours
        small = DynamicGraph(n_channels, 4, embedding_size=8, top_k=20, alpha=3.0)
        assert small.weights(torch.rand(1, n_channels, 4)).shape == (1, n_channels, n_channels)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_neighbours_are_those_of_the_largest_products(dtype):
    """Of both signs, with zeros, and of any size; NaN are somewhere among the channels."""
    rng = np.random.default_rng(0)
    products = rng.standard_normal((3, 274, 274)) * np.array([1e-6, 1, 1e6])[:, None, None]
    products[:, :, :200] = -np.abs(products[:, :, :200])
    products[rng.random(products.shape) < 0.02] = 0
    found = _largest(torch.from_numpy(products).to(dtype), 20).numpy()
    values, expected = np.take_along_axis(products, found, axis=-1), np.sort(products, axis=-1)[..., -20:]
    np.testing.assert_allclose(np.sort(values, axis=-1), expected, rtol=1e-4)
    assert all(len(set(row)) == 20 for row in found.reshape(-1, 20))
    lost = _largest(torch.full((1, 274), torch.nan, dtype=dtype), 20)
    assert ((lost >= 0) & (lost < 274)).all()


@pytest.mark.parametrize(
    ('n_channels', 'n_times', 'settings'),
    [
        (1, 40, {}),
        (19, 30, {'filters': [8]}),
        (306, 150, {'filters': [4, 4, 4, 4], 'pywt_family': 'bior2.2'}),
        (12, 8, {'pywt_family': 'coif5', 'pywt_mode': 'periodization'}),
    ],
)
def test_other_sizes_and_levels(n_channels, n_times, settings):
    model = build_model('wavelets', n_channels, n_times, **settings).eval()
    x = torch.from_numpy(signal(2, 1, n_channels, n_times).astype(np.float32))
    with torch.no_grad():
        pairs = model(x)
        cards = model.error_cards(x)
    n_levels = len(settings.get('filters', (32, 32, 32)))
    assert len(pairs) == n_levels + 2
    assert cards.shape == (2, n_levels + 2, n_channels, n_times)
    assert torch.isfinite(cards).all()
    nodes = [z.shape[1] for z in model.latent(x)]
    assert nodes == [max(1, min(64, n_channels // 4) >> k) for k in reversed(range(n_levels))]


def test_the_originals_latent_maps_hold_every_channel_and_all_of_it_comes_through_the_graph():
    torch.manual_seed(0)
    model = build_model('wavelets', 12, 64, filters=[3, 5], pywt_family='haar', latent_nodes=None, top_k=3).eval()
    x = torch.from_numpy(signal(2, 1, 12, 64).astype(np.float32))
    with torch.no_grad():
        latents, pairs = model.latent(x), model(x)
        assert [tuple(latent.shape) for latent in latents] == [(2, 3, 12, 32), (2, 5, 12, 16)]
        assert [tuple(output.shape) for output, _ in pairs] == [tuple(target.shape) for _, target in pairs]
        for level in model.levels:  # with all channels alike as neighbours, all have one latent map
            level.graph.forward = lambda content, maps: maps.mean(dim=1, keepdim=True).expand_as(maps)
        for latent in model.latent(x):
            torch.testing.assert_close(latent, latent[:, :, :1].expand_as(latent))
    assert latent_rows(latents[0]).shape == (2, 36, 32)  # small maps stay as they are
    many = torch.randn(1, 8, 200, 4)
    torch.testing.assert_close(latent_rows(many), many.mean(dim=1))


def test_white_noise_does_not_pass_a_network_that_has_learnt_signals():
    """Windows of four sources that all channels see, and noise of the same power in each channel."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(32, 4))
    sources = rng.normal(size=(48, 4, 64)).cumsum(axis=-1)
    windows = torch.from_numpy((mixing @ (sources / sources.std())).astype(np.float32))[:, None]
    noise = windows.std() * torch.randn(16, 1, 32, 64)
    model = build_model('wavelets', 32, 64, filters=[4, 4], pywt_family='haar', pywt_mode='periodization')
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss = sum((output - target).square().mean() for output, target in model(windows[:32]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        shares = [(model.error_cards(x)[:, 0].mean() / x.square().mean()).item() for x in (windows[32:], noise)]
    # Eight nodes of 32 and four of 32 in the finer band: at most a quarter of the noise's power fits through.
    assert shares[0] < 0.1
    assert shares[1] > 0.7
