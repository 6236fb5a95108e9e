"""Spike detectors on whole windows: on an autoencoder's encoder, and the group's network on every sub-window."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from models.autoencoder import Autoencoder, latent_rows
from models.network import Network
from models.sfcn import SFCN

_N_COMPONENTS = 60  # strongest ones that rows, of channels or of latent maps, are reduced to
_STEP = 2  # samples that the head sees as one: at 150 Hz, it works at 75 Hz
_REACH = 22  # steps of the longest lag: at 150 Hz 0.3 s, which holds the slow wave
_LEAST = 1e-6
_N_HEADS = 3  # from other random numbers each: with few labels they differ, and their mean is better than each


class WindowSFCN(SFCN):
    """The group's network on every sub-window of a window, see `SFCN`.

    Parameters
    ----------
    shape : (border, n_subwindows, subwindow_length)
        The sub-windows, in samples.
    n_channels, width : int
    """

    def __init__(self, shape: tuple[int, int, int], n_channels: int = 274, width: int = 32):
        super().__init__(1, n_channels, shape[2], width)
        self.shape = shape

    def forward(self, cards: torch.Tensor) -> torch.Tensor:
        """Logits (batch, n_subwindows) of windows (batch, 1, channels, times)."""
        border, n_subwindows, length = self.shape
        inner = cards[..., border : border + n_subwindows * length].unflatten(-1, (n_subwindows, length))
        return super().forward(inner.movedim(-2, 1).flatten(0, 1)).view(len(cards), n_subwindows)


class SpikeDetector(Network):
    """Spikes found by how the field at each time is like the fields around it.

    The channels are reduced to components, which the latent maps of an autoencoder correct. The similarity of the
    components of two times, `field_similarity`, is the same wherever in the head a source lies and whatever its
    polarity: what a small head learns of it from a few patients holds for spikes elsewhere. A head is convolutions
    along time, to one logit per step; a sub-window has the largest of its steps, softly. Three heads learn by
    themselves.

    Parameters
    ----------
    autoencoder : Autoencoder
        Whose encoder is part of the detector.
    shape : (border, n_subwindows, subwindow_length)
        The sub-windows, in samples.
    n_channels : int
    width : int
        Maps of a head.
    new_encoder : bool
        Whether the autoencoder is not trained yet. One that is keeps the statistics of its batch norms.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        shape: tuple[int, int, int],
        n_channels: int = 274,
        width: int = 32,
        *,
        new_encoder: bool = False,
    ):
        super().__init__()
        self.autoencoder, self.shape, self.new_encoder = autoencoder, shape, new_encoder
        window = torch.zeros(1, 1, n_channels, 2 * shape[0] + shape[1] * shape[2])
        autoencoder.eval()  # or else batch norm would count the zeros
        with torch.no_grad():
            _, latents = self._rows(window.to(next(autoencoder.parameters()).device))
        n_components = min(_N_COMPONENTS, n_channels)
        # What both are at first, see `measure_components`. Corrections start from nothing: a detector that sees the
        # signal alone, which is better than one whose latent maps are not yet of use.
        self.components = nn.Parameter(torch.randn(n_components, n_channels) / n_channels**0.5)
        self.corrections = nn.Parameter(torch.zeros(n_components, latents.shape[1]))
        self.register_buffer('latent_scale', torch.ones(latents.shape[1], 1))
        n_maps = 2 * (2 * _REACH + 1) + 2
        self.normalise = nn.BatchNorm1d(n_maps)
        maps = _N_HEADS * width
        self.heads = nn.Sequential(
            *_layer(n_maps, maps, 1),
            *_layer(maps, maps, 5, groups=_N_HEADS),
            *_layer(maps, maps, 5, groups=_N_HEADS, dilation=2),
        )
        self.output = nn.Conv1d(maps, _N_HEADS, 1, groups=_N_HEADS)
        self.sharpness = nn.Parameter(torch.zeros(_N_HEADS, 1))

    def train(self, mode: bool = True) -> 'SpikeDetector':
        """Set training or evaluation mode."""
        super().train(mode)
        if not self.new_encoder:
            self.autoencoder.eval()
        return self

    def measure_components(self, windows: Iterable[torch.Tensor]) -> None:
        """Start with the strongest principal components of batches of windows, each of variance 1."""
        covariance, power, n_steps = torch.zeros(()), torch.zeros(()), 0
        self.eval()
        with torch.no_grad():
            for x in windows:
                channels, latents = (rows.double().movedim(1, 0).flatten(1) for rows in self._rows(x))
                covariance, power = covariance + channels @ channels.T, power + latents.square().sum(dim=1)
                n_steps += channels.shape[1]
            variances, vectors = torch.linalg.eigh(covariance / n_steps)
            strongest = slice(-len(self.components), None)
            scale = variances[strongest].clamp(min=1e-6 * variances[-1]).sqrt()
            self.components.copy_((vectors[:, strongest] / scale).T)
            self.latent_scale.copy_((power / n_steps).sqrt().clamp(min=1e-6)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, n_subwindows) of windows (batch, 1, channels, times).

        In training those of each head, (heads, batch, n_subwindows).
        """
        border, n_subwindows, length = self.shape
        steps = self.output(self.heads(self.normalise(self._maps(x))))  # (batch, heads, steps)
        # Every sample has the logit of its step.
        inner = steps.repeat_interleave(_STEP, dim=2)[..., border : border + n_subwindows * length]
        sharpness = F.softplus(self.sharpness)
        pooled = torch.logsumexp(sharpness[..., None] * inner.unflatten(2, (n_subwindows, length)), dim=-1)
        logits = (pooled - math.log(length)) / sharpness
        return logits.movedim(1, 0) if self.training else logits.mean(dim=1)

    def _rows(self, x):
        """Channels, and rows of the latent maps, of x (batch, 1, channels, times): (batch, rows, steps) each."""
        n_steps = -(-x.shape[-1] // _STEP)
        latents = [latent_rows(latent) for latent in self.autoencoder.latent(x)]
        latents = [
            latent if latent.shape[-1] == n_steps else F.interpolate(latent, size=n_steps, mode='linear')
            for latent in latents
        ]
        return F.avg_pool1d(x[:, 0], _STEP, ceil_mode=True), torch.cat(latents, dim=1)

    def _maps(self, x):
        """What the head reads (batch, maps, steps)."""
        channels, latents = self._rows(x)
        fields = self.components @ channels + self.corrections @ (latents / self.latent_scale)
        products = field_similarity(fields, fields, _REACH)
        power = products[:, _REACH : _REACH + 1] + _LEAST
        around = F.pad(power, (_REACH, _REACH), mode='replicate').unfold(2, 2 * _REACH + 1, 1)[:, 0].transpose(1, 2)
        typical = power.median(dim=-1, keepdim=True).values
        # The course of the field at each time in the signal around, relative to its height and to that of the signal
        # there; the height, and the height relative to the window.
        courses = [(products / power).clamp(-3, 3), products / (power * around).sqrt()]
        return torch.cat([*courses, power.log(), (power / typical).log()], dim=1)


def _layer(n_in, n_out, kernel, groups=1, dilation=1):
    padding = dilation * (kernel // 2)
    return [
        nn.Conv1d(n_in, n_out, kernel, padding=padding, dilation=dilation, groups=groups),
        nn.BatchNorm1d(n_out),
        nn.LeakyReLU(0.1),
        nn.Dropout(0.3),
    ]


def field_similarity(a: torch.Tensor, b: torch.Tensor, reach: int) -> torch.Tensor:
    """How like the field of `a` at one time is to those of `b` around it: mean products over the components.

    Parameters
    ----------
    a, b : tensors (batch, components, times)
    reach : int
        Longest lag.

    Returns
    -------
    tensor (batch, 2 reach + 1, times)
        Row l, column t: of `a` at t with `b` at t + l - reach; beyond an end, `b` is what it is there.
    """
    products = a.transpose(1, 2) @ F.pad(b, (reach, reach), mode='replicate') / a.shape[1]
    # Laid into rows that are longer by one, row t moves t to the left: column l becomes the time t + l. A gather would
    # do the same, but its gradients are slow to add up where results must be the same from run to run.
    n_windows, n_times, width = products.shape
    moved = F.pad(products.flatten(1), (0, n_times)).view(n_windows, n_times, width + 1)
    return moved[..., : 2 * reach + 1].transpose(1, 2)
