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


def _convolution(n_in: int, n_out: int, kernel: tuple[int, int], *, activation: bool) -> list[nn.Module]:
    layers = [nn.Conv2d(n_in, n_out, kernel, padding='same'), nn.BatchNorm2d(n_out)]
    return layers + [nn.LeakyReLU(0.2, inplace=True)] * activation


class ConvolutionalAutoencoder(Autoencoder):
    """The family of AE1D and AE2D: five convolutions down to one map, five back up.

    Parameters
    ----------
    n_channels, n_times : int
        Size of a window; the network is convolutional and takes others too.
    kernel : tuple of int
        Size of every kernel, in channels and samples.
    width : int
        Maps after the first convolution, doubled three times. Original: 32.

    Notes
    -----
    Time is halved twice by max pooling and doubled twice by repeating samples, so the latent map is
    (1, n_channels, n_times / 4). A window whose length is no multiple of 4 is continued by its last sample, and its
    reconstruction cut back.
    """

    pooling = 4

    def __init__(self, n_channels: int, n_times: int, *, kernel: tuple[int, int], width: int):
        super().__init__()
        w1, w2, w3, w4 = width, 2 * width, 4 * width, 8 * width
        self.encoder = nn.Sequential(
            *_convolution(1, w1, kernel, activation=True),
            nn.MaxPool2d((1, 2)),
            *_convolution(w1, w2, kernel, activation=True),
            nn.MaxPool2d((1, 2)),
            *_convolution(w2, w3, kernel, activation=True),
            *_convolution(w3, w4, kernel, activation=True),
            *_convolution(w4, 1, kernel, activation=False),
        )
        self.decoder = nn.Sequential(
            *_convolution(1, w4, kernel, activation=True),
            nn.Upsample(scale_factor=(1, 2)),
            *_convolution(w4, w3, kernel, activation=True),
            nn.Upsample(scale_factor=(1, 2)),
            *_convolution(w3, w2, kernel, activation=True),
            *_convolution(w2, w1, kernel, activation=True),
            *_convolution(w1, 1, kernel, activation=False),
        )
        # The same numbers in another order in memory: 1.4 times as fast on the CPU, and what GPUs convolve fastest.
        self.to(memory_format=torch.channels_last)

    def latent(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Latent maps of x (batch, 1, channels, times): one, (batch, 1, channels, ceil(times / 4))."""
        missing = -x.shape[-1] % self.pooling
        if missing:
            x = F.pad(x, (0, missing, 0, 0), mode='replicate')
        return [self.encoder(x)]

    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One (reconstruction, target) pair, each (batch, 1, channels, times); the target is x where not given."""
        reconstruction = self.decoder(self.latent(x)[0])[..., : x.shape[-1]]
        return [(reconstruction, x if target is None else target)]
