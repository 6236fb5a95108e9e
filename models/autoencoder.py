"""What every autoencoder shares: the error cards, and the convolutional family of AE1D and AE2D."""

import torch
from torch import nn
from torch.nn import functional as F


class Autoencoder(nn.Module):
    """An autoencoder whose forward gives a list of (reconstruction, target) pairs."""

    def error_cards(self, x: torch.Tensor) -> torch.Tensor:
        """Squared reconstruction errors.

        Parameters
        ----------
        x : tensor (batch, 1, channels, times)

        Returns
        -------
        tensor (batch, n_pairs, channels, times)
            Pairs of another length are brought back to `times` by nearest neighbour.
        """
        batch, _, channels, times = x.shape
        errors = [(output - target).square().reshape(batch, channels, -1) for output, target in self(x)]
        errors = [e if e.shape[-1] == times else F.interpolate(e, size=times, mode='nearest') for e in errors]
        return torch.stack(errors, dim=1)


class UpsampledConv2d(nn.Conv2d):
    """`padding='same'` convolution of what nearest-neighbour upsampling by 2 along time makes of its input.

    Two neighbouring outputs see the same three inputs, each with some of the five weights added up. So three products
    with doubled outputs do the work of two times five, and the upsampled maps are never made. The weights are those
    of the plain convolution.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(batch, in, channels, times) to (batch, out, channels, 2 x times)."""
        w = self.weight  # (out, in, rows, 5)
        # u[2i], u[2i + 1] = v[i]: output 2i sees u[2i - 2 .. 2i + 2] = v[i-1], v[i-1], v[i], v[i], v[i+1].
        even = torch.stack([w[..., 0] + w[..., 1], w[..., 2] + w[..., 3], w[..., 4]], dim=-1)
        odd = torch.stack([w[..., 0], w[..., 1] + w[..., 2], w[..., 3] + w[..., 4]], dim=-1)
        both = torch.cat([even, odd]).to(memory_format=torch.channels_last)
        maps = F.conv2d(maps, both, torch.cat([self.bias, self.bias]), padding=(w.shape[2] // 2, 1))
        # (batch, 2 x out, channels, times), even outputs first, to (batch, out, channels, times, 2)
        maps = maps.unflatten(1, (2, -1)).permute(0, 2, 3, 4, 1)
        return maps.flatten(3).contiguous(memory_format=torch.channels_last)


def _convolution(n_in, n_out, kernel, *, activation=True, upsampled=False):
    kind = UpsampledConv2d if upsampled else nn.Conv2d
    layers = [kind(n_in, n_out, kernel, padding='same'), nn.BatchNorm2d(n_out)]
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
        maps = [1, width, 2 * width, 4 * width, 8 * width]
        encoder, decoder = [], []
        for layer in range(4):
            encoder += _convolution(maps[layer], maps[layer + 1], kernel)
            encoder += [nn.MaxPool2d((1, 2))] * (layer < n_poolings)
        encoder += _convolution(maps[4], 1, kernel, activation=False)
        maps = [1, 8 * width, 4 * width, 2 * width, width]
        for layer in range(4):
            decoder += _convolution(maps[layer], maps[layer + 1], kernel, upsampled=0 < layer <= n_poolings)
        decoder += _convolution(width, 1, kernel, activation=False, upsampled=n_poolings == 4)
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        # The same numbers in another order in memory, which CPUs and GPUs convolve faster.
        self.to(memory_format=torch.channels_last)

    def latent(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Latent maps of x (batch, 1, channels, times): one, (batch, 1, channels, times / 2^n_poolings
        rounded up)."""
        missing = -x.shape[-1] % self.reduction
        if missing:
            x = F.pad(x, (0, missing, 0, 0), mode='replicate')
        return [self.encoder(x)]

    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One (reconstruction, target) pair, each (batch, 1, channels, times); the target is x where not given."""
        reconstruction = self.decoder(self.latent(x)[0])[..., : x.shape[-1]]
        return [(reconstruction, x if target is None else target)]
