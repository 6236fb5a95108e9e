"""SFCN: the group's convolutional spike classifier."""

import torch
from torch import nn

from models.autoencoder import ConvolutionStack, SameConv2d
from models.network import Network


class SFCN(Network):
    """Small fully convolutional network that gives one logit per sub-window.

    Parameters
    ----------
    n_planes : int
        Input planes: one per (reconstruction, target) pair of the autoencoder.
    n_channels, n_times : int
        Size of a plane; 274 x 30 for 200 ms sub-windows. Both at least 16, because four poolings halve them.
    width : int
        Maps after the first convolution, doubled three times. Original: 32.

    References
    ----------
    The layers are those of the group's original code: four 5 x 5 convolutions, each with batch norm, LeakyReLU and
    2 x 2 max pooling; a 1 x 1 convolution to 64 maps; 2 x 2 average pooling; dropout 0.5; one linear unit.
    """

    least_times = 16

    def __init__(self, n_planes: int = 1, n_channels: int = 274, n_times: int = 30, width: int = 32):
        super().__init__()
        layers, n_in = [], n_planes
        for n_out in (width, 2 * width, 4 * width, 8 * width):
            activation = nn.LeakyReLU(inplace=True)
            layers += [SameConv2d(n_in, n_out, 5), nn.BatchNorm2d(n_out), activation, nn.MaxPool2d(2)]
            n_in = n_out
        n_latent = 2 * width
        # 30 samples are one after four poolings: the average pooling must round up to leave anything.
        layers += [nn.Conv2d(n_in, n_latent, 1), nn.AvgPool2d(2, ceil_mode=True)]
        self.features = ConvolutionStack(*layers)
        rows, columns = (-(-(n // 16) // 2) for n in (n_channels, n_times))
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(n_latent * rows * columns, 1)

    def forward(self, cards: torch.Tensor) -> torch.Tensor:
        """Logits (batch,) of error cards (batch, n_planes, n_channels, n_times)."""
        with self.autocast(cards):
            maps = self.features(cards)  # (batch, 64, 9, 1) for 274 x 30
        return self.output(self.dropout(maps.to(cards.dtype).flatten(1)))[:, 0]
