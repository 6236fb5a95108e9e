"""MEGA, called `wavelets`: a wavelet transform, a learned graph over the channels per band, a spatial bottleneck."""

import torch
from torch import nn

from models.autoencoder import Autoencoder
from models.convolution import each_sample, from_planes, to_planes
from models.graph import DynamicGraph
from models.wavelet_transform import WaveletTransform

# Pooling and unpooling are stored divided by this, so that they learn as many times faster than the convolutions. Adam
# moves all weights by steps of one size, which leaves these two far from the best linear code when the rest is done.
_PROJECTION_GAIN = 10.0


class _Level(nn.Module):
    """Autoencoder of the band or bands of one level of the transform.

    Maps are laid out (batch, channels, times, maps), so that convolutions are products of long matrices with small
    ones, and the graph is one matrix product per window, without a copy.

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
        # The layers hold the weights under the names of the checkpoints; `latent` and `decode` compute with them.
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
        """(batch, n_channels, n_times, n_planes) to (batch, n_nodes, n_times, n_planes)."""
        maps = from_planes(planes, *self.encoder)  # (batch, n_channels, n_times, n_filters)
        # Divided after the sum: the gradient of a mean would be written out for every sample.
        maps = _across(self.graph(maps.sum(dim=2) / maps.shape[2]), maps)
        first, activation, second = self.mix
        correction = each_sample(each_sample(maps, first, activation), second)
        return _across(_PROJECTION_GAIN * self.pool, planes + correction)

    def decode(self, latent):
        """(batch, n_nodes, n_times, n_planes) to (batch, n_channels, n_times, n_planes)."""
        *first, second = self.decoder
        correction = to_planes(from_planes(latent, *first), second)
        return _across(_PROJECTION_GAIN * self.unpool, latent + correction)


def _across(weights, planes):
    """Weighted sums over the rows of (batch, rows, times, maps); weights (new rows, rows), or one such per window."""
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

    def latent(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Latent maps of x (batch, 1, channels, times), one per level from the finest.

        (batch, nodes, planes, time_k) each, with 1 plane, at the deepest level 2.
        """
        return [latent.transpose(2, 3) for latent in self._latent(self.transform(x[:, 0]))]

    def _latent(self, bands):
        """Latent maps (batch, nodes, time_k, planes) of the bands, each (batch, channels, time_k)."""
        *details, last_detail, approximation = bands
        planes = [detail[..., None] for detail in details] + [torch.stack([last_detail, approximation], dim=-1)]
        with self.autocast(approximation):
            maps = [level.latent(of_level) for level, of_level in zip(self.levels, planes, strict=True)]
        return [latent.to(approximation.dtype) for latent in maps]

    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(reconstruction, target) pairs of x (batch, 1, channels, times).

        The signal (batch, channels, times), then the details from the finest level on and the approximation (batch,
        channels, time_k).
        """
        seen = self.transform(x[:, 0])
        if target is None:
            wanted = [x[:, 0], *seen]
        else:
            wanted = [target[:, 0], *self.transform(target[:, 0])]
        latents = self._latent(seen)
        with self.autocast(x):
            decoded = [level.decode(latent).to(x.dtype) for level, latent in zip(self.levels, latents, strict=True)]
        # Both transforms are outside of the networks' arithmetic: what is compared is not rounded.
        bands = [band for planes in decoded for band in planes.unbind(dim=-1)]
        signal = self.transform.inverse(bands, x.shape[-1])
        return list(zip([signal, *bands], wanted, strict=True))
