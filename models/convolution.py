"""Convolutions along time with few planes on one side, or a kernel of one sample, as matrix products.

The layers of PyTorch hold the weights. Its convolutions are made for many maps on both sides: one or two planes are
padded to eight or more, and the maps brought into another order in memory and back.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


def from_planes(planes: torch.Tensor, convolution: nn.Conv1d, activation: Callable) -> torch.Tensor:
    """Convolution of few planes, with zeros around them, and activation.

    Parameters
    ----------
    planes : tensor (batch, rows, times, planes)
    convolution : Conv1d
        From planes to maps.
    activation : callable
        May work in place.

    Returns
    -------
    tensor (batch, rows, times, maps)
    """
    weight = convolution.weight  # (maps, planes, taps)
    n_times, reach = planes.shape[2], weight.shape[2] - 1
    # One row of the product gives a block of neighbouring samples, from all that their kernels reach. Tensor cores take
    # eight numbers at a time: with so many the block's length is free, as long as blocks fill the window.
    block = max(length for length in range(1, 13) if n_times % length == 0)
    seen = -(-(block + reach) // 8) * 8
    shifted = torch.stack([F.pad(weight, (k, seen - reach - 1 - k)) for k in range(block)])
    # (block, maps, planes, seen) to (planes x seen, block x maps)
    matrix = shifted.permute(2, 3, 0, 1).flatten(2).flatten(0, 1).contiguous()
    padded = F.pad(planes, (0, 0, reach // 2, seen - block - reach // 2))
    around = padded.unfold(2, seen, block)  # (batch, rows, blocks, planes, seen)
    maps = torch.addmm(convolution.get_parameter('bias').repeat(block), around.flatten(3).flatten(0, 2), matrix)
    return activation(maps).view(*planes.shape[:3], len(weight))


def to_planes(maps: torch.Tensor, convolution: nn.Conv1d) -> torch.Tensor:
    """Convolution to few planes, with zeros around the maps.

    (batch, rows, times, maps) to (batch, rows, times, planes).
    """
    weight = convolution.weight  # (planes, maps, taps)
    n_planes, _, n_taps = weight.shape
    # What every sample gives to each of those around it, and then the sums.
    shares = F.linear(maps, weight.permute(2, 0, 1).flatten(0, 1))
    shares = F.pad(shares, (0, 0, n_taps // 2, n_taps // 2)).unflatten(3, (n_taps, n_planes))
    return sum(shares[:, :, k : k + maps.shape[2], k] for k in range(n_taps)) + convolution.bias


def each_sample(maps: torch.Tensor, convolution: nn.Conv1d, activation: Callable | None = None) -> torch.Tensor:
    """Convolution by a kernel of one sample, and activation.

    (batch, rows, times, maps) to (batch, rows, times, new maps).
    """
    mixed = torch.addmm(convolution.get_parameter('bias'), maps.flatten(0, 2), convolution.weight[:, :, 0].T)
    return (activation(mixed) if activation else mixed).view(*maps.shape[:3], convolution.out_channels)
