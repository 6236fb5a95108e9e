"""What every autoencoder shares: error cards, plain and of masked segments, and the family of AE1D and AE2D."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.network import Network

_MOST_LATENT_ROWS = 1024  # of a latent map; more are filters of the same channels


def mask_segment(x: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Mask the samples [first, last) of each window behind a straight line between the samples on either side.

    Nothing of what they held is left. A line, because a network then has no jump to undo, and needs no other sign that
    something is masked: no signal is straight over so many samples.

    Parameters
    ----------
    x : tensor (batch, 1, channels, times)
    first, last : integer tensors (batch,)
        At least one sample of each window must remain.
    """
    n_times = x.shape[-1]
    times = torch.arange(n_times, device=x.device)
    first, last = (bound.to(x.device)[:, None, None, None] for bound in (first, last))
    rows = (*x.shape[:-1], 1)
    # At the end of a window the line goes on level from the only side there is.
    before = torch.where(first > 0, first - 1, last).expand(rows)
    after = torch.where(last < n_times, last, first - 1).expand(rows)
    before, after = x.gather(-1, before), x.gather(-1, after)
    line = before + (after - before) * ((times - first + 1) / (last - first + 1))
    return torch.where((times >= first) & (times < last), line, x)


def upsample_to(values: torch.Tensor, n_times: int) -> torch.Tensor:
    """Bring values of a pair to (batch, channels, n_times), the short bands of `wavelets` by nearest neighbour."""
    values = values.flatten(1, -2)
    return values if values.shape[-1] == n_times else F.interpolate(values, size=n_times, mode='nearest')


def _chosen(pairs, levels):
    return pairs if levels is None else [pairs[level] for level in levels]


def latent_rows(latent: torch.Tensor) -> torch.Tensor:
    """Time courses (batch, rows, time_k) of a latent map (batch, ..., time_k).

    Of the original's maps of MEGA, which hold every channel once per filter, the mean over the filters.
    """
    if latent[0, ..., 0].numel() > _MOST_LATENT_ROWS:
        latent = latent.mean(dim=1)
    return latent.flatten(1, -2)


class Autoencoder(Network):
    """An autoencoder whose forward gives a list of (reconstruction, target) pairs."""

    def error_cards(self, x: torch.Tensor, levels: list[int] | None = None) -> torch.Tensor:
        """Squared reconstruction errors.

        Parameters
        ----------
        x : tensor (batch, 1, channels, times)
        levels : list of int, optional
            The pairs that are wanted; all where not given.

        Returns
        -------
        tensor (batch, n_pairs, channels, times)
            Pairs of another length are brought back to `times` by nearest neighbour.
        """
        errors = [(output - target).square() for output, target in _chosen(self(x), levels)]
        return torch.stack([upsample_to(error, x.shape[-1]) for error in errors], dim=1)

    def masked_residuals(
        self, x: torch.Tensor, shape: tuple[int, int, int], margin: int = 0, levels: list[int] | None = None
    ) -> torch.Tensor:
        """What the context does not predict: target minus reconstruction of every inner sub-window, masked in turn.

        A sub-window and `margin` samples on either side are masked together, which reconstructs them
        from the rest of the window.

        Parameters
        ----------
        x : tensor (batch, 1, channels, times)
        shape : (border, n_subwindows, subwindow_length)
            The sub-windows, in samples: from `border` on, `n_subwindows` of `subwindow_length`.
        margin : int
            At most `border`.
        levels : list of int, optional
            The pairs that are wanted; all where not given.

        Returns
        -------
        tensor (batch, n_pairs, channels, n_subwindows, subwindow_length + 2 margin)
            Signed. Pairs of another length are brought back to that of the window by nearest neighbour.
        """
        border, n_subwindows, subwindow_length = shape
        residuals, prepared = [], self.prepare(x)
        for k in range(n_subwindows):
            first = border + k * subwindow_length - margin
            last = first + subwindow_length + 2 * margin
            bounds = (torch.full((len(x),), bound, device=x.device) for bound in (first, last))
            of_pairs = self.residuals_within(mask_segment(x, *bounds), x, (first, last), levels, prepared)
            residuals.append(torch.stack(of_pairs, dim=1))
        return torch.stack(residuals, dim=3)

    def prepare(self, x: torch.Tensor) -> Any:
        """What `residuals_within` can use for every segment that is masked in x (batch, 1, channels, times)."""
        return None

    def residuals_within(
        self, seen: torch.Tensor, x: torch.Tensor, span: tuple[int, int], levels: list[int] | None, prepared: Any
    ) -> list[torch.Tensor]:
        """Target minus reconstruction of x in a span of samples, reconstructed from another input.

        Networks override it to compute only what the span's reconstruction depends on.

        Parameters
        ----------
        seen, x : tensors (batch, 1, channels, times)
            Input of the network, which differs from x in the span alone, and what it should give.
        span : (first, last)
            In samples, the last excluded.
        levels : list of int or None
            The pairs that are wanted; None for all.
        prepared
            From `prepare(x)`.

        Returns
        -------
        list of tensor (batch, channels, last - first)
        """
        pairs = _chosen(self(seen, x), levels)
        return [upsample_to(target - output, x.shape[-1])[..., slice(*span)] for output, target in pairs]

    def masked_error_cards(self, x: torch.Tensor, shape: tuple[int, int, int], margin: int = 0) -> torch.Tensor:
        """Squared errors of every inner sub-window, masked in turn.

        (batch, n_pairs, channels, n_subwindows, subwindow_length), see `masked_residuals`.
        """
        return self.masked_residuals(x, shape, margin)[..., margin : margin + shape[2]].square()


class SameConv2d(nn.Conv2d):
    """Convolution whose output is as large as its input, by its own weights or by others."""

    def convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(batch, in, channels, times) to (batch, out, channels, times)."""
        return F.conv2d(x, weight, bias, padding='same')

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The convolution by the layer's own weights."""
        return self.convolve(input, self.weight, self.get_parameter('bias'))


class UpsampledConv2d(SameConv2d):
    """`padding='same'` convolution of what nearest-neighbour upsampling by 2 along time makes of its input.

    Two neighbouring outputs see the same three inputs, each with some of the five weights added up. So three products
    with doubled outputs do the work of two times five, and the upsampled maps are never made. The weights are those
    of the plain convolution.
    """

    def convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(batch, in, channels, times) to (batch, out, channels, 2 x times)."""
        w = weight  # (out, in, rows, 5)
        # u[2i], u[2i + 1] = v[i]: output 2i sees u[2i - 2 .. 2i + 2] = v[i-1], v[i-1], v[i], v[i], v[i+1].
        even = torch.stack([w[..., 0] + w[..., 1], w[..., 2] + w[..., 3], w[..., 4]], dim=-1)
        odd = torch.stack([w[..., 0], w[..., 1] + w[..., 2], w[..., 3] + w[..., 4]], dim=-1)
        both = torch.cat([even, odd]).to(memory_format=torch.channels_last)
        maps = F.conv2d(x, both, bias.repeat(2), padding=(w.shape[2] // 2, 1))
        # (batch, 2 x out, channels, times), even outputs first, to (batch, out, channels, times, 2)
        maps = maps.unflatten(1, (2, -1)).permute(0, 2, 3, 4, 1)
        return maps.flatten(3).contiguous(memory_format=torch.channels_last)


class HalveTime(nn.Module):
    """Max pooling over two samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, maps, channels, times) to (batch, maps, channels, times / 2)."""
        return torch.maximum(x[..., ::2], x[..., 1::2])  # four to ten times as fast on a CPU as the pooling layer


class ConvolutionStack(nn.Sequential):
    """Convolutions, each followed by batch norm, and other layers; in evaluation the two are one convolution."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, channels, times) to (batch, out, channels, new times)."""
        if self.training:
            return super().forward(input)
        layers = iter(self)
        for layer in layers:
            input = layer.convolve(input, *_folded(layer, next(layers))) if hasattr(layer, 'convolve') else layer(input)
        return input


def _folded(convolution, norm):
    """Weights and bias that do the work of a convolution and the batch norm behind it, in evaluation."""
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return convolution.weight * gain[:, None, None, None], (convolution.bias - norm.running_mean) * gain + norm.bias


def _convolution(n_in, n_out, kernel, *, activation=True, upsampled=False):
    kind = UpsampledConv2d if upsampled else SameConv2d
    convolution = kind(n_in, n_out, kernel, padding='same')
    # Batch norm takes the bias out again, so that its gradient is zero but for rounding. Adam would make whole steps of
    # that, of another direction for every number of threads or processes, which the running means then lag behind.
    convolution.get_parameter('bias').register_hook(torch.zeros_like)
    layers = [convolution, nn.BatchNorm2d(n_out)]
    return layers + [nn.LeakyReLU(0.2, inplace=True)] * activation


class ConvolutionalAutoencoder(Autoencoder):
    """The family of AE1D and AE2D: five convolutions down to one map, five back up.

    Each convolution is followed by batch norm and, but for the fifth and the last, LeakyReLU(0.2).

    Parameters
    ----------
    n_channels, n_times : int
        Size of a window; the network is convolutional and takes others too.
    kernel : tuple of int
        Size of every kernel, in channels and samples.
    width : int
        Maps after the first convolution, doubled three times. Original: 32.
    n_poolings : int
        The first so many convolutions are followed by max pooling over two samples, and as many in the decoder by
        repeating every sample. Original: 2.

    Notes
    -----
    The latent map is (1, n_channels, n_times / 2^n_poolings). A window whose length is no multiple of that power is
    continued by its last sample, and its reconstruction cut back.
    """

    def __init__(self, n_channels: int, n_times: int, *, kernel: tuple[int, int], width: int, n_poolings: int):
        super().__init__()
        self.reduction = 2**n_poolings
        # Samples to either side that a latent value, and a reconstructed sample, depends on: two steps of each kernel
        # at the resolution that it works at, and what poolings and repetitions round up.
        finest_first = [2 ** min(layer, n_poolings) for layer in range(5)]
        coarsest_first = [self.reduction >> min(layer, n_poolings) for layer in range(5)]
        self.encoder_reach = 2 * sum(finest_first) + self.reduction - 1
        self.decoder_reach = 2 * sum(coarsest_first) + self.reduction - 1
        maps = [1, width, 2 * width, 4 * width, 8 * width]
        encoder, decoder = [], []
        for layer in range(4):
            encoder += _convolution(maps[layer], maps[layer + 1], kernel)
            encoder += [HalveTime()] * (layer < n_poolings)
        encoder += _convolution(maps[4], 1, kernel, activation=False)
        maps = [1, 8 * width, 4 * width, 2 * width, width]
        for layer in range(4):
            decoder += _convolution(maps[layer], maps[layer + 1], kernel, upsampled=0 < layer <= n_poolings)
        decoder += _convolution(width, 1, kernel, activation=False, upsampled=n_poolings == 4)
        self.encoder, self.decoder = ConvolutionStack(*encoder), ConvolutionStack(*decoder)
        # The same numbers in another order in memory, which CPUs and GPUs convolve faster.
        self.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]

    def latent(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The latent map of x (batch, 1, channels, times): (batch, 1, channels, times / 2^n_poolings rounded up)."""
        missing = -x.shape[-1] % self.reduction
        if missing:
            x = F.pad(x, (0, missing, 0, 0), mode='replicate')
        with self.autocast(x):
            return [self.encoder(x).to(x.dtype)]

    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One (reconstruction, target) pair, each (batch, 1, channels, times); the target is x where not given."""
        latent = self.latent(x)[0]
        with self.autocast(x):
            reconstruction = self.decoder(latent)[..., : x.shape[-1]].to(x.dtype)
        return [(reconstruction, x if target is None else target)]

    def residuals_within(
        self, seen: torch.Tensor, x: torch.Tensor, span: tuple[int, int], levels: list[int] | None, prepared: Any
    ) -> list[torch.Tensor]:
        """As `Autoencoder.residuals_within`; the layers see the part of the window that reaches the span."""
        decoded = self._widened(span, self.decoder_reach, x.shape[-1])
        encoded = self._widened(decoded, self.encoder_reach, x.shape[-1])
        begin, end = ((bound - encoded[0]) / self.reduction for bound in decoded)
        latent = self.latent(seen[..., slice(*encoded)])[0][..., int(begin) : math.ceil(end)]
        within = slice(span[0] - decoded[0], span[1] - decoded[0])
        with self.autocast(x):
            reconstruction = self.decoder(latent)[..., within].to(x.dtype)
        return [(x[..., slice(*span)] - reconstruction)[:, 0]]

    def _widened(self, span, reach, n_times):
        """A span with what reaches it on either side, in whole latent values, cut at the ends of the window."""
        first, last = max(span[0] - reach, 0), min(span[1] + reach, n_times)
        step = self.reduction
        return first // step * step, min(math.ceil(last / step) * step, n_times)
