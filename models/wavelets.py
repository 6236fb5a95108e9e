"""MEGA, called `wavelets`: a wavelet transform, a learned graph over the channels per band, a spatial bottleneck."""

import torch
from torch import nn

from models.autoencoder import Autoencoder
from models.graph import DynamicGraph
from models.wavelet_transform import WaveletTransform

# Pooling and unpooling are stored divided by this, so that they learn as many times faster than the convolutions. Adam
# moves all weights by steps of one size, which leaves these two far from the best linear code when the rest is done.
_PROJECTION_GAIN = 10.0


class _Level(nn.Module):
    """Autoencoder of the band or bands of one level of the transform.

    Maps are laid out (batch, channels, maps, times): one-dimensional convolutions take them as batch x channels rows,
    and the graph as one matrix per window, without a copy.

    Parameters
    ----------
    n_planes : int
        1, the detail; 2 at the deepest level, detail and approximation.
    n_filters : int
        Maps of the temporal encoder.
    n_nodes : int
        Nodes of the latent map: what remains of the channels.
    """

    def __init__(self, n_channels, n_planes, n_filters, n_nodes, graph_settings):
        super().__init__()
        activation = nn.LeakyReLU(0.2, inplace=True)
        self.encoder = nn.Sequential(nn.Conv1d(n_planes, n_filters, 5, padding=2), activation)
        self.graph = DynamicGraph(n_channels, n_filters, **graph_settings)
        self.mix = nn.Sequential(nn.Conv1d(n_filters, n_filters, 1), activation, nn.Conv1d(n_filters, n_planes, 1))
        # Pooling starts as a random projection and unpooling as its transpose: a linear spatial code from the start,
        # which the convolutions then correct.
        pool = torch.linalg.qr(torch.randn(n_channels, n_channels))[0][:n_nodes]
        self.pool = nn.Parameter(pool / _PROJECTION_GAIN)
        self.unpool = nn.Parameter(pool.T / _PROJECTION_GAIN)
        self.pool.no_decay = self.unpool.no_decay = True  # a projection has no size to shrink
        self.decoder = nn.Sequential(
            nn.Conv1d(n_planes, n_filters, 5, padding=2), activation, nn.Conv1d(n_filters, n_planes, 5, padding=2)
        )
        with torch.no_grad():
            self.decoder[-1].weight.mul_(0.1)
            for correction in (self.mix[-1], self.decoder[-1]):
                correction.bias.zero_()

    def latent(self, planes):
        """(batch, n_channels, n_planes, n_times) to (batch, n_nodes, n_planes, n_times)."""
        maps = _each_row(self.encoder, planes)  # (batch, n_channels, n_filters, n_times)
        maps = _across(self.graph(maps.mean(dim=-1)), maps)
        return _across(_PROJECTION_GAIN * self.pool, planes + _each_row(self.mix, maps))

    def decode(self, latent):
        """(batch, n_nodes, n_planes, n_times) to (batch, n_channels, n_planes, n_times)."""
        return _across(_PROJECTION_GAIN * self.unpool, latent + _each_row(self.decoder, latent))


def _each_row(network, planes):
    """Apply a network of one-dimensional convolutions to every row of (batch, rows, maps, times)."""
    return network(planes.flatten(0, 1)).unflatten(0, planes.shape[:2])


def _across(weights, planes):
    """Weighted sums over the rows of (batch, rows, maps, times); weights (new rows, rows), or one such per window."""
    return (weights @ planes.flatten(2)).unflatten(2, planes.shape[2:])


class Wavelets(Autoencoder):
    """Multiscale wavelet graph autoencoder.

    A wavelet transform splits the window into bands. At each level the detail (at the deepest, with the approximation)
    goes through a temporal encoder, a graph convolution over the channels, and a pooling of the channels to a few
    nodes: the latent map. Decoders bring the bands back, and the inverse transform of the reconstructed bands is the
    reconstructed signal, so nothing goes around the latent maps.

    Parameters
    ----------
    n_channels, n_times : int
        Size of a window.
    filters : list of int
        Maps of the temporal encoder, one number per level: its length is the number of levels. Original: [32, 32, 32].
    pywt_family : str
        Wavelet, by PyWavelets' name. Original: 'db5'.
    pywt_mode : str
        Continuation of the window at its ends, by PyWavelets' name and with its default. `params.py` takes
        'periodization', whose bands have exactly n_times / 2^k values (rounded up).
    embedding_size, top_k, graph_alpha
        Of the learned graph, see `DynamicGraph`. Original: 64, 20, 3.
    latent_nodes : int
        Nodes of the deepest latent map, halved from level to level towards the finest: slow bands hold most of the
        signal's power. Never more than a quarter of the channels, so that there is a bottleneck whatever
        their number (from four on).

    Notes
    -----
    From the paper: the transform inside the network, a graph over the variables learned per scale and made dynamic, a
    loss over signal and bands. From the original code: 3 levels, the filters, db5, embeddings of 64, top-k 20, alpha
    3, graph convolutions of depth 1, five pairs of reconstruction and target. This project's: the latent maps. The
    original's have as many values per band as the band times its filters; a network can copy any input through them.
    Here the channels are pooled to nodes instead, 16, 32 and 64 of 274 by default, so that white noise cannot pass.
    Also this project's: the linear path through pooling and unpooling that the convolutions correct, how the content
    makes the graph dynamic, and the two planes of the deepest level.

    References
    ----------
    Wang, Shao, Bai, Deng and Lin, "Multiscale wavelet graph autoencoder for multivariate time-series anomaly
    detection", IEEE Transactions on Instrumentation and Measurement 72, 2023, doi 10.1109/TIM.2022.3223142.
    """

    def __init__(
        self,
        n_channels: int,
        n_times: int,
        filters: tuple[int, ...] = (32, 32, 32),
        pywt_family: str = 'db5',
        pywt_mode: str = 'symmetric',
        embedding_size: int = 64,
        top_k: int = 20,
        graph_alpha: float = 3.0,
        latent_nodes: int = 64,
    ):
        super().__init__()
        n_levels = len(filters)
        self.transform = WaveletTransform(pywt_family, n_levels, pywt_mode)
        graph_settings = {'embedding_size': embedding_size, 'top_k': top_k, 'alpha': graph_alpha}
        self.levels = nn.ModuleList()
        for level, n_filters in enumerate(filters, start=1):
            n_nodes = max(1, min(latent_nodes, n_channels // 4) >> (n_levels - level))
            n_planes = 1 if level < n_levels else 2
            self.levels.append(_Level(n_channels, n_planes, n_filters, n_nodes, graph_settings))

    def _planes(self, x):
        """X (batch, 1, channels, times) to one tensor (batch, channels, planes, time_k) per level."""
        *details, last_detail, approximation = self.transform(x[:, 0])
        return [detail[:, :, None] for detail in details] + [torch.stack([last_detail, approximation], dim=2)]

    def latent(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Latent maps of x (batch, 1, channels, times), one per level from the finest: (batch, nodes, planes, time_k)
        with 1 plane, at the deepest level 2.
        """
        pairs = zip(self.levels, self._planes(x), strict=True)
        with self.autocast(x):
            return [level.latent(planes).to(x.dtype) for level, planes in pairs]

    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(reconstruction, target) pairs of x (batch, 1, channels, times): the signal (batch, channels, times), the
        details from the finest level on and the approximation (batch, channels, time_k).
        """
        target = x if target is None else target
        pairs = zip(self.levels, self.latent(x), strict=True)
        with self.autocast(x):
            decoded = [level.decode(latent).to(x.dtype) for level, latent in pairs]
        # Both transforms are outside of the networks' arithmetic: what is compared is not rounded.
        bands = [planes[:, :, i] for planes in decoded for i in range(planes.shape[2])]
        signal = self.transform.inverse(bands, x.shape[-1])
        return list(zip([signal, *bands], [target[:, 0], *self.transform(target[:, 0])], strict=True))
