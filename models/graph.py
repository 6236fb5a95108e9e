"""A graph over the channels, learned from node embeddings and from what a band holds."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# Embeddings are stored divided by this: their gradients, small because a loss is a mean over all channels and samples,
# are then as many times larger, and not lost beside the constant that Adam adds to its divisor.
_EMBEDDING_GAIN = 30.0


class DynamicGraph(nn.Module):
    """Sparse directed graph over the channels, one for each window.

    Every channel has two learned embeddings, as source and as target. They are gated by what the band holds at that
    channel, so that the graph follows the signal. An edge's weight is the antisymmetric part of their products, so an
    edge goes one way; each channel keeps its `top_k` strongest.

    Parameters
    ----------
    n_channels : int
    n_features : int
        Maps from which the content of a channel is read.
    embedding_size : int
        Length of an embedding. Original: 64.
    top_k : int
        Neighbours kept per channel, all where there are fewer. Original: 20.
    alpha : float
        Steepness of the tanh that makes products of embeddings into weights. Original: 3.

    References
    ----------
    The construction from two embeddings, the tanh, its antisymmetric argument and the top-k follow Wu et al.,
    "Connecting the dots: multivariate time series forecasting with graph neural networks", KDD 2020, on which the
    published model builds. The gating by the content is this project's way to make the graph dynamic.
    """

    def __init__(self, n_channels: int, n_features: int, *, embedding_size: int, top_k: int, alpha: float):
        super().__init__()
        self.source = nn.Parameter(torch.randn(n_channels, embedding_size) / _EMBEDDING_GAIN)
        self.target = nn.Parameter(torch.randn(n_channels, embedding_size) / _EMBEDDING_GAIN)
        # Weight decay would outweigh the small gradients that reach the embeddings, and dissolve the graph.
        self.source.no_decay = self.target.no_decay = True
        self.to_source = nn.Linear(embedding_size, embedding_size)
        self.to_target = nn.Linear(embedding_size, embedding_size)
        self.gate = nn.Linear(n_features, embedding_size)
        self.top_k = min(top_k, n_channels - 1)
        self.alpha = alpha

    def forward(self, content: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Weighted sums of the channels of maps (batch, channels, ...), each over its neighbours and itself.

        The content (batch, channels, features) decides the graph. A CPU reads only the neighbours in float32, several
        times as fast as the product with a matrix of mostly zeros. In bfloat16, and on a GPU, the product is faster.
        """
        rows = maps.flatten(2)
        if maps.device.type != 'cpu' or maps.dtype != torch.float32:
            return (self.weights(content) @ rows).view(maps.shape)
        neighbours, weights = (of_channels.flatten(0, 1) for of_channels in self.neighbours(content))
        n_windows, n_channels = maps.shape[:2]
        window_starts = n_channels * torch.arange(n_windows, device=maps.device).repeat_interleave(n_channels)
        sums = F.embedding_bag(
            neighbours + window_starts[:, None],
            rows.flatten(0, 1),
            per_sample_weights=weights,
            mode='sum',
        )
        return sums.view(maps.shape)

    def weights(self, content: torch.Tensor) -> torch.Tensor:
        """Weights (batch, channels, channels) of a content (batch, channels, features); each row sums to 1."""
        neighbours, weights = self.neighbours(content)
        # Added, because a channel without enough positive weights can be among its own strongest, with a weight of 0.
        return weights.new_zeros(*weights.shape[:2], weights.shape[1]).scatter_add(-1, neighbours, weights)

    def neighbours(self, content: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Neighbours of every channel, itself the last, and their weights, which sum to 1.

        Always in float32: which neighbours are the strongest is not for the rounding of bfloat16 to decide.

        Parameters
        ----------
        content : tensor (batch, channels, features)

        Returns
        -------
        neighbours : int64 tensor (batch, channels, top_k + 1)
        weights : float32 tensor (batch, channels, top_k + 1)
        """
        with torch.autocast(content.device.type, enabled=False):
            return self._neighbours(content.to(self.source.dtype))

    def _neighbours(self, content):
        # Relative to the window's mean, so that the graph depends on where the signal is, not on its unit.
        size = content.abs().mean(dim=(1, 2), keepdim=True)
        gate = 1 + torch.tanh(self.gate(content / (size + 1e-12)))
        source = torch.tanh(self.to_source(_EMBEDDING_GAIN * self.source * gate))
        target = torch.tanh(self.to_target(_EMBEDDING_GAIN * self.target * gate))
        product = source @ target.transpose(1, 2)  # (batch, channels, channels)
        # The strongest arguments are the strongest weights: the tanh, which keeps their order, is for these alone.
        arguments = product - product.transpose(1, 2)
        strongest = _largest(arguments.detach(), self.top_k)
        # Divided by the embedding's length: the tanh would be flat otherwise, and no gradient reach the embeddings.
        weights = torch.relu(torch.tanh(self.alpha * arguments.gather(-1, strongest) / source.shape[-1]))
        itself = torch.arange(product.shape[-1], device=content.device)[:, None].expand(len(content), -1, 1)
        weights = F.pad(weights, (0, 1), value=1.0)
        return torch.cat([strongest, itself], dim=-1), weights / weights.sum(dim=-1, keepdim=True)


def _largest(values, k):
    """Where the k largest values of the last dimension are, in any order.

    The last bits of every value become those of its place, so that finding the values finds the places too, more than
    twice as fast. So values of 274 channels that differ by less than a ten thousandth may be ordered by place.
    """
    n = values.shape[-1]
    places = 2 ** (n - 1).bit_length() - 1
    placed = (values.float().view(torch.int32) & ~places) | torch.arange(n, dtype=torch.int32, device=values.device)
    placed = placed.view(torch.float32)
    if values.device.type != 'cpu' or torch.compiler.is_compiling():
        largest = torch.topk(placed, k, dim=-1, sorted=False).values
    else:  # NumPy is more than twice as fast
        largest = torch.from_numpy(np.partition(placed.numpy(), n - max(k, 1), axis=-1)[..., n - k :])
    return (largest.view(torch.int32) & places).long()
