"""Durations of a transient: a spike is both brief and long at one time and of one field, a rhythm is one of both."""

import torch
from torch.nn import functional as F

# Widths of the brief and of the long wave, from zero to zero of their peak, in samples: at 150 Hz, 27 and 120 ms.
_WIDTHS = (4.0, 18.0)
_REACH = 36  # samples on either side of a wave's peak, where both are over
_SHARE_OF_RESIDUAL = 0.25
_WEIGHT_OF_USUAL = 0.25
_LEAST = 0.01  # of the typical power, so that no logarithm is infinite


def duration_score(
    x: torch.Tensor, residuals: torch.Tensor, filters: torch.Tensor, shape: tuple[int, int, int], margin: int
) -> torch.Tensor:
    """How much of a sub-window is brief and long at once: no annotation needed.

    The signal is filtered by a brief and by a long wave, and each is divided by its typical power in the window. A
    spike has a sharp peak on a wide foot, so that it stands out in both, with one field and one sign. A blink stands
    out in the long one, muscle in the brief one, an alpha wave in neither as much, and two of them at one time have two
    fields. So what counts is the least of three: the power of the brief field, that of the long one, and their product.
    The same is taken of the residual, where what the context predicts is left out. The score has

    - three quarters of the logarithm for the signal, one quarter of that for the residual, where their sum is largest
      in the sub-window and the margins masked with it;
    - less a quarter of the logarithm of the usual power of the peak's field in the window: what is always there, such
      as the heart or alpha, is no spike.

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
    signal = filters @ x  # (batch, components, times)
    masked = (filters @ residuals.flatten(2)).unflatten(2, residuals.shape[2:]).transpose(1, 2)
    bands = brief_and_long(signal)  # (batch, components, 2, times)
    typical = torch.quantile(bands.square().sum(dim=1), 0.5, dim=-1).clamp(min=1e-20).sqrt()[:, None, :, None]
    bands = bands / typical
    masked = brief_and_long(masked) / typical[:, None]  # (batch, n_subwindows, components, 2, n_masked)

    first = border - margin + subwindow_length * torch.arange(n_subwindows, device=x.device)
    at = first[:, None] + torch.arange(residuals.shape[-1], device=x.device)  # (n_subwindows, n_masked)
    in_both = (1 - _SHARE_OF_RESIDUAL) * _least_product(bands)[:, at] + _SHARE_OF_RESIDUAL * _least_product(masked)
    height, peak = in_both.max(dim=-1)  # (batch, n_subwindows)

    fields = bands.sum(dim=2)  # (batch, components, times)
    pattern = fields.gather(2, (first + peak)[:, None].expand(-1, fields.shape[1], -1)).transpose(1, 2)
    course = pattern / (pattern.norm(dim=-1, keepdim=True) + 1e-12) @ signal  # (batch, n_subwindows, times)
    usual = torch.quantile(course.square(), 0.5, dim=-1)
    level = torch.quantile(signal.square().sum(dim=1), 0.5, dim=-1)[:, None]
    usual = (usual / (level + 1e-20) + 1e-4).log()
    return (height - _WEIGHT_OF_USUAL * usual).flatten()


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
    rows = F.conv1d(courses.reshape(-1, 1, courses.shape[-1]), waves[:, None], padding=_REACH)
    return rows.view(*courses.shape[:-1], *rows.shape[1:])


def _least_product(bands):
    """Logarithm of the least of: power of the brief field, of the long one, and their product.

    (..., components, 2, times) to (..., times).
    """
    brief, long = bands.unbind(dim=-2)
    products = torch.stack([brief.square(), long.square(), brief * long]).sum(dim=-2)
    return products.amin(dim=0).clamp(min=_LEAST).log()
