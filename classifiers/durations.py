"""Durations of a transient: a spike has power at all of them at one time and with one field, a rhythm at one alone."""

import torch
from torch.nn import functional as F

# Widths of the waves that are looked for, from zero to zero of their peak, in samples: at 150 Hz, 25 to 113 ms.
_WIDTHS = (3.75, 5.6, 8.4, 12.2, 17.0)
_REACH = 34  # samples on either side of a wave's peak, where the longest is over
_SHARE_OF_RESIDUAL = 0.25
_LEAST = 0.01  # of the typical power, so that the logarithm of no agreement is finite


def duration_score(
    x: torch.Tensor, residuals: torch.Tensor, filters: torch.Tensor, shape: tuple[int, int, int], margin: int
) -> torch.Tensor:
    """How much of a sub-window is alike at all durations: no annotation needed.

    The signal is filtered by brief waves of five durations (`duration_bands`), each in units of its typical power in
    the window. An alpha wave then stands out at some durations, muscle at the short ones and a blink at the long ones,
    but a spike at all. So what counts is the least power of all durations, and the least product of the fields of two
    of them: background that stands out at two durations by chance has two fields. The same is taken of the residual,
    in which what the context predicts is left out. The score is the largest value of a sub-window and the margins
    masked with it: three quarters of the logarithm for the signal, one quarter of that for the residual.

    Parameters
    ----------
    x, residuals, filters, shape, margin
        As `features.spike_features` takes them.

    Returns
    -------
    tensor (batch * n_subwindows,)
        On the device of x.
    """
    border, n_subwindows, subwindow_length = shape
    # Components between both extremes: scaled as in the signal, and to residuals of one variance.
    filters = filters / filters.norm(dim=1, keepdim=True).sqrt()
    signal = duration_bands(filters @ x)  # (batch, components, durations, times)
    typical = torch.quantile(signal.square().sum(dim=1), 0.5, dim=-1).clamp(min=1e-20)  # (batch, durations)
    masked = duration_bands((filters @ residuals.flatten(2)).unflatten(2, residuals.shape[2:]).transpose(1, 2))
    first = border - margin + subwindow_length * torch.arange(n_subwindows, device=x.device)
    at = first[:, None] + torch.arange(residuals.shape[-1], device=x.device)  # (n_subwindows, n_masked)
    in_signal = _agreement(signal / typical.sqrt()[:, None, :, None])[:, at]
    in_residual = _agreement((masked / typical.sqrt()[:, None, None, :, None]).flatten(0, 1)).view_as(in_signal)
    score = (1 - _SHARE_OF_RESIDUAL) * in_signal + _SHARE_OF_RESIDUAL * in_residual
    return score.amax(dim=-1).flatten()


def duration_bands(courses: torch.Tensor) -> torch.Tensor:
    """Time courses (..., times) filtered by a wave of every duration: (..., durations, times).

    The waves are second derivatives of Gaussians (Ricker wavelets) of norm 1: a peak between two troughs, whose
    output peaks where the signal does. Beyond the ends the courses count as zero.
    """
    t = torch.arange(-_REACH, _REACH + 1, dtype=courses.dtype, device=courses.device)
    t = t / (torch.tensor(_WIDTHS, dtype=courses.dtype, device=courses.device)[:, None] / 2)
    waves = (1 - t.square()) * torch.exp(-t.square() / 2)
    waves = waves - waves.mean(dim=1, keepdim=True)
    waves = waves / waves.norm(dim=1, keepdim=True)
    rows = F.conv1d(courses.reshape(-1, 1, courses.shape[-1]), waves[:, None], padding=_REACH)
    return rows.view(*courses.shape[:-1], *rows.shape[1:])


def _agreement(bands):
    """Logarithm of the least product of the fields of two durations, or of one with itself.

    (batch, components, durations, times) to (batch, times).
    """
    products = torch.einsum('bcit,bcjt->bijt', bands, bands).flatten(1, 2)
    return products.amin(dim=1).clamp(min=_LEAST).log()
