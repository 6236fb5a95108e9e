"""Durations of a transient: a spike is both brief and long at one time and of one field, a rhythm is one of both."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from classifiers.filtered import FilteredWindows, unit

# Widths of the brief and of the long wave, from zero to zero of their peak, in samples: at 150 Hz, 27 and 120 ms.
_WIDTHS = (4.0, 18.0)
_REACH = 36  # samples on either side of a wave's peak, where both are over
_SHARE_OF_RESIDUAL = 0.25
_WEIGHT_OF_MEDIAN = 0.25
_OFFSETS = (-40, -25, -15, -10, 10, 15, 25, 40)  # samples from the peak at which classifiers read the power too
_LEAST = 0.01  # of the typical power, so that no logarithm is infinite


class Peaks(NamedTuple):
    """What there is where a sub-window is most brief and long at once.

    Attributes
    ----------
    height : tensor (batch, n_subwindows)
        Three quarters of the logarithm of the least product of the signal, and one quarter of that of the residual.
    signal, residual : tensors (batch, n_subwindows, 3)
        Power of the brief field, that of the long one, and their product; in units of typical power in the window.
    neighbours : tensor (batch, n_subwindows, 16)
        Both powers of the signal before and after.
    quantiles : tensor (batch, n_subwindows, 2)
        Logarithms of median and 90 % quantile of the power that the peak's field has in the window, over its level.
    position : tensor (batch, n_subwindows)
        Samples of the peak since the start of what is masked.
    """

    height: torch.Tensor
    signal: torch.Tensor
    residual: torch.Tensor
    neighbours: torch.Tensor
    quantiles: torch.Tensor
    position: torch.Tensor


def duration_score(windows: FilteredWindows) -> torch.Tensor:
    """How much of a sub-window is brief and long at once: no annotation needed.

    The signal is filtered by a brief and by a long wave, and each is divided by its typical power in the window. A
    spike has a sharp peak on a wide foot, so that it stands out in both, with one field and one sign. A blink stands
    out in the long one, muscle in the brief one, an alpha wave in neither as much, and two of them at one time have two
    fields. So what counts is the least of three: the power of the brief field, that of the long one, and their product.
    The same is taken of the residual, where what the context predicts is left out. The score has

    - three quarters of the logarithm for the signal, one quarter of that for the residual, where their sum is largest
      in the sub-window and the margins masked with it;
    - less a quarter of the logarithm of the median power of the peak's field in the window: what is always there, such
      as the heart or alpha, is no spike.

    Returns
    -------
    tensor (batch * n_subwindows, 1)
        On the device of the windows.
    """
    return _score(find_peaks(windows)).flatten()[:, None]


def duration_features(windows: FilteredWindows) -> tuple[torch.Tensor, torch.Tensor]:
    """What classifiers read of the durations.

    Returns
    -------
    powers : tensor (batch, n_subwindows, 8)
        Logarithms of power: the score of `duration_score`, height, of the signal and of the residual.
    others : tensor (batch, n_subwindows, 21)
        Whether the brief and the long field are the same (cosine), in signal and residual; median and 90 %
        quantile of the power of the peak's field; the place of the peak; the logarithms of power around it.
    """
    peaks = find_peaks(windows)
    both = torch.stack([peaks.signal, peaks.residual], dim=-2)  # (batch, n_subwindows, 2, 3)
    cosines = both[..., 2] / (both[..., 0] * both[..., 1] + 1e-9).sqrt()
    powers = torch.cat([torch.stack([_score(peaks), peaks.height], dim=-1), _log(both).flatten(-2)], dim=-1)
    position = (peaks.position - windows.margin)[..., None].to(windows.signal.dtype)
    return powers, torch.cat([cosines, peaks.quantiles, position, _log(peaks.neighbours)], dim=-1)


def find_peaks(windows: FilteredWindows) -> Peaks:
    """Where every sub-window, with the margins masked with it, is most brief and long at once; see `duration_score`."""
    border, n_subwindows, subwindow_length = windows.shape
    # Components between both extremes: scaled as in the signal, and to residuals of one variance.
    scale = windows.norms.rsqrt()
    signal, masked = scale * windows.signal, scale[:, None] * windows.masked
    bands = brief_and_long(signal)  # (batch, components, 2, times)
    typical = torch.quantile(bands.square().sum(dim=1), 0.5, dim=-1).clamp(min=1e-20).sqrt()[:, None, :, None]
    bands = bands / typical
    products = _products(bands)  # (batch, 3, times)
    # (batch, n_subwindows, 3, n_masked)
    masked_products = _products(brief_and_long(masked.transpose(1, 2)) / typical[:, None])

    first = border - windows.margin + subwindow_length * torch.arange(n_subwindows, device=signal.device)
    in_segments = first[:, None] + torch.arange(masked.shape[-1], device=signal.device)  # (n_subwindows, n_masked)
    of_signal = _log(products.amin(dim=1))[:, in_segments]
    of_residual = _log(masked_products.amin(dim=2))
    both = (1 - _SHARE_OF_RESIDUAL) * of_signal + _SHARE_OF_RESIDUAL * of_residual
    height, position = both.max(dim=-1)  # (batch, n_subwindows)
    at = first + position

    pattern = _read(bands.sum(dim=2), at)  # (batch, n_subwindows, components)
    course = unit(pattern) @ signal  # (batch, n_subwindows, times)
    shares = torch.tensor([0.5, 0.9], dtype=signal.dtype, device=signal.device)
    level = torch.quantile(signal.square().sum(dim=1), 0.5, dim=-1)[:, None, None]
    powers = torch.quantile(course.square(), shares, dim=-1).movedim(0, -1) / (level + 1e-20)
    neighbours = [_read(products[:, :2], (at + offset).clamp(0, signal.shape[-1] - 1)) for offset in _OFFSETS]
    of_masked = masked_products.gather(3, position[..., None, None].expand(-1, -1, 3, 1))[..., 0]
    return Peaks(height, _read(products, at), of_masked, torch.cat(neighbours, dim=-1), (powers + 1e-4).log(), position)


def _score(peaks):
    """Heights less a part of the median power of their fields: (batch, n_subwindows)."""
    return peaks.height - _WEIGHT_OF_MEDIAN * peaks.quantiles[..., 0]


def brief_and_long(courses: torch.Tensor) -> torch.Tensor:
    """Time courses (..., times) filtered by the brief and by the long wave: (..., 2, times).

    The waves are second derivatives of Gaussians (Ricker wavelets) of norm 1: a peak between two troughs, whose
    output peaks where the signal does. Beyond the ends the courses count as zero.
    """
    t = torch.arange(-_REACH, _REACH + 1, dtype=courses.dtype, device=courses.device)
    t = t / (torch.tensor(_WIDTHS, dtype=courses.dtype, device=courses.device)[:, None] / 2)
    waves = (1 - t.square()) * torch.exp(-t.square() / 2)
    waves = waves - waves.mean(dim=1, keepdim=True)
    waves = waves / waves.norm(dim=1, keepdim=True)
    # As a product with a matrix of the shifted waves, several times as fast as convolving single courses.
    times = torch.arange(courses.shape[-1], device=courses.device)
    offsets = (times[:, None] - times).clamp(-_REACH - 1, _REACH + 1)  # beyond a wave's ends it is zero
    matrix = F.pad(waves, (1, 1))[:, offsets + _REACH + 1]  # (2, times, times)
    return (courses @ matrix.movedim(0, 1).flatten(1)).unflatten(-1, (2, courses.shape[-1]))


def _products(bands):
    """Power of the brief field, of the long one, and their product.

    (..., components, 2, times) to (..., 3, times).
    """
    brief, long = bands.unbind(dim=-2)
    return torch.stack([product.sum(dim=-2) for product in (brief * brief, long * long, brief * long)], dim=-2)


def _read(courses, at):
    """Values (batch, n_subwindows, rows) of time courses (batch, rows, times) at samples (batch, n_subwindows)."""
    return courses.gather(2, at[:, None].expand(-1, courses.shape[1], -1)).transpose(1, 2)


def _log(power):
    """Logarithm of a power in units of the typical one; a product of fields of opposite sign counts as none."""
    return power.clamp(min=_LEAST).log()
