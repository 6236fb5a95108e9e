"""MEGA, called `wavelets`: a wavelet transform, a learned graph over the channels per band, a spatial bottleneck."""

from typing import Any

import torch
from torch import nn

from models.autoencoder import Autoencoder, upsample_to
from models.convolution import each_sample, from_planes, to_planes
from models.graph import DynamicGraph
from models.wavelet_transform import WaveletTransform

# Pooling and unpooling are stored divided by this, so that they learn as many times faster than the convolutions. Adam
# moves all weights by steps of one size, which leaves these two far from the best linear code when the rest is done.
_PROJECTION_GAIN = 10.0
_ENCODER_REACH, _DECODER_REACH = 2, 4  # of one and of two kernels of five samples
_ALL = slice(None)


class _Level(nn.Module):
    """Autoencoder of the band or bands of one level of the transform.

    Maps are laid out (batch, channels, times, maps), so that convolutions are products of long matrices with small
    ones, and the graph reads the maps of a channel as one row, without a copy.

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

    def latent(self, planes, maps, content):
        """Latent map (batch, n_nodes, times, n_planes) of planes and of what `encoder` makes of them.

        The content (batch, n_channels, n_filters) is the mean of the maps over the whole window.
        """
        maps = self.graph(content, maps)
        first, activation, second = self.mix
        correction = each_sample(each_sample(maps, first, activation), second)
        return _across(_PROJECTION_GAIN * self.pool, planes + correction)

    def decode(self, latent, part=_ALL):
        """(batch, n_nodes, n_times, n_planes) to (batch, n_channels, times of the part, n_planes)."""
        *first, second = self.decoder
        correction = to_planes(from_planes(latent, *first), second)
        return _across(_PROJECTION_GAIN * self.unpool, (latent + correction)[:, :, part])


class _FullLevel(nn.Module):
    """The same with the original's latent map: every channel keeps all its maps.

    All that the map holds has gone through the graph.
    """

    def __init__(self, n_channels, n_planes, n_filters, graph_settings):
        super().__init__()
        activation = nn.LeakyReLU(0.2, inplace=True)
        self.encoder = nn.Sequential(nn.Conv1d(n_planes, n_filters, 5, padding=2), activation)
        self.graph = DynamicGraph(n_channels, n_filters, **graph_settings)
        self.mix = nn.Sequential(nn.Conv1d(n_filters, n_filters, 1), activation)
        self.decoder = nn.Sequential(
            nn.Conv1d(n_filters, n_filters, 1), activation, nn.Conv1d(n_filters, n_planes, 5, padding=2)
        )

    def latent(self, planes, maps, content):
        """As `_Level.latent`; (batch, n_channels, times, n_filters)."""
        return each_sample(self.graph(content, maps), *self.mix)

    def decode(self, latent, part=_ALL):
        """(batch, n_channels, n_times, n_filters) to (batch, n_channels, times of the part, n_planes)."""
        *first, second = self.decoder
        return to_planes(each_sample(latent, *first), second)[:, :, part]


def _encode(level, planes):
    """Maps (batch, n_channels, n_times, n_filters) of planes (batch, n_channels, n_times, n_planes)."""
    return from_planes(planes, *level.encoder)


def _reconstruct(level, planes, maps, total, changed, wanted):
    """What becomes of planes (batch, n_channels, n_times, n_planes) of a level at the times [first, last) of `wanted`.

    `maps` are those of planes that differ from these at the times [first, last) of `changed` alone, and `total` is
    their sum over time.
    """
    n_times = planes.shape[2]
    changed, decoded = _widened(changed, _ENCODER_REACH, n_times), _widened(wanted, _DECODER_REACH, n_times)
    begin, end = min(changed[0], decoded[0]), max(changed[1], decoded[1])
    seen = _widened((begin, end), _ENCODER_REACH, n_times)
    new = _encode(level, planes[:, :, slice(*seen)])[:, :, begin - seen[0] : end - seen[0]]
    before, after = maps[:, :, slice(*changed)], new[:, :, changed[0] - begin : changed[1] - begin]
    content = (total + (after - before).sum(dim=2, dtype=total.dtype)) / n_times
    latent = level.latent(planes[:, :, slice(*decoded)], new[:, :, decoded[0] - begin : decoded[1] - begin], content)
    return level.decode(latent.to(planes.dtype), slice(wanted[0] - decoded[0], wanted[1] - decoded[0])).to(planes.dtype)


def _widened(span, reach, n_times):
    return max(span[0] - reach, 0), min(span[1] + reach, n_times)


def _across(weights, planes):
    """Weighted sums over the rows of (batch, rows, times, maps); weights (new rows, rows)."""
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
        their number (from four on). None, the original: no pooling, every channel keeps the maps of all filters.

    Notes
    -----
    From the paper: the transform inside the network, a graph over the variables learned per scale and made dynamic, a
    loss over signal and bands. From the original code: 3 levels, the filters, db5, embeddings of 64, top-k 20, alpha
    3, graph convolutions of depth 1, five pairs of reconstruction and target. This project's: the latent maps. The
    original's have as many values per band as the band times its filters; a network can copy any input through them,
    white noise too; `latent_nodes=None` gives these. Here the channels are pooled to nodes instead, 16, 32 and 64 of
    274 by default, so that white noise cannot pass. Also this project's: the linear path through pooling and unpooling
    that the convolutions correct, how the content makes the graph dynamic, and the two planes of the deepest level.

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
        latent_nodes: int | None = 64,
    ):
        super().__init__()
        n_levels = len(filters)
        self.transform = WaveletTransform(pywt_family, n_levels, pywt_mode)
        graph_settings = {'embedding_size': embedding_size, 'top_k': top_k, 'alpha': graph_alpha}
        self.pooled = latent_nodes is not None
        self.levels = nn.ModuleList()
        for level, n_filters in enumerate(filters, start=1):
            n_planes = 1 if level < n_levels else 2
            if latent_nodes is None:
                self.levels.append(_FullLevel(n_channels, n_planes, n_filters, graph_settings))
                continue
            n_nodes = max(1, min(latent_nodes, n_channels // 4) >> (n_levels - level))
            self.levels.append(_Level(n_channels, n_planes, n_filters, n_nodes, graph_settings))

    def latent(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Latent maps of x (batch, 1, channels, times), one per level from the finest.

        (batch, nodes, planes, time_k) each, with 1 plane, at the deepest level 2; without pooling (batch, filters,
        channels, time_k).
        """
        latents = self._latent(self.transform(x[:, 0]))
        if self.pooled:
            return [latent.transpose(2, 3) for latent in latents]
        return [latent.permute(0, 3, 1, 2) for latent in latents]

    def _latent(self, bands):
        """Latent maps of the bands, each (batch, channels, time_k).

        (batch, nodes, time_k, planes) each, without pooling (batch, channels, time_k, filters).
        """
        latents = []
        with self.autocast(bands[0]):
            for level, planes in zip(self.levels, _planes_of(bands), strict=True):
                maps = _encode(level, planes)
                # Divided after the sum: the gradient of a mean would be written out for every sample.
                latents.append(level.latent(planes, maps, maps.sum(dim=2) / maps.shape[2]))
        return [latent.to(bands[0].dtype) for latent in latents]

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

    def prepare(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Bands of x (batch, 1, channels, times), the temporal encoders' maps of them, and the maps' sums over time."""
        bands = self.transform(x[:, 0])
        with self.autocast(x):
            maps = [_encode(level, planes) for level, planes in zip(self.levels, _planes_of(bands), strict=True)]
        return bands, maps, [of_level.sum(dim=2, dtype=x.dtype) for of_level in maps]

    def residuals_within(
        self, seen: torch.Tensor, x: torch.Tensor, span: tuple[int, int], levels: list[int] | None, prepared: Any
    ) -> list[torch.Tensor]:
        """As `Autoencoder.residuals_within`; of each band, only what reaches the span is reconstructed."""
        (bands_before, maps, totals), n_times, part = prepared, x.shape[-1], slice(*span)
        levels = list(range(len(bands_before) + 1)) if levels is None else levels
        moved = self.transform.forward_of_part((seen - x)[:, 0, :, part], span, n_times)
        bands = [band + change for band, change in zip(bands_before, moved, strict=True)]
        changed = _of_levels(self.transform.values_moved(span, n_times))
        spans = self._spans_behind(span, n_times, levels)
        decoded: list[torch.Tensor] = []
        with self.autocast(x):
            for of_level in zip(self.levels, _planes_of(bands), maps, totals, changed, spans, strict=True):
                decoded += _reconstruct(*of_level).unbind(dim=-1)
        spans = [*spans, spans[-1]]  # of the approximation too
        residuals = []
        for level in levels:
            if level == 0:
                residuals.append(x[:, 0, :, part] - self.transform.inverse_of_part(decoded, spans, span, n_times))
            else:
                band, first = bands_before[level - 1], spans[level - 1][0]
                shown = _nearest(band.shape[-1], n_times)[part]
                residuals.append(band[..., shown] - decoded[level - 1][..., shown - first])
        return residuals

    def _spans_behind(self, span, n_times, levels):
        """Values (first, last) of the bands of each network level that pairs in a span of samples are made of."""
        n_values = self.transform.band_lengths(n_times)
        behind = [[] for _ in n_values]
        if 0 in levels:
            behind = [list(bounds) for bounds in self.transform.values_behind(span, n_times)]
        for level, bounds in enumerate(behind, start=1):
            if level in levels:
                shown = _nearest(n_values[level - 1], n_times)[slice(*span)]
                bounds += [int(shown[0]), int(shown[-1]) + 1]
        return _of_levels(behind)


def _of_levels(bounds_of_bands):
    """Spans (first, last) of the network levels, of bounds in the bands: all of a level lie in its span."""
    *details, last_detail, approximation = map(list, bounds_of_bands)
    return [(min(bounds), max(bounds)) if bounds else (0, 0) for bounds in (*details, last_detail + approximation)]


def _planes_of(bands):
    """Planes (batch, channels, time_k, planes) of each network level: the details, the last with the approximation."""
    *details, last_detail, approximation = bands
    return [detail[..., None] for detail in details] + [torch.stack([last_detail, approximation], dim=-1)]


def _nearest(n_values, n_times):
    """Which of a band's values stands for each sample of a window, see `upsample_to`."""
    return upsample_to(torch.arange(n_values, dtype=torch.float32)[None, None], n_times)[0, 0].long()
