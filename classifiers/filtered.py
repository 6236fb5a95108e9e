"""Masked windows through spatial filters, once for all that is read of them: features, score, fingerprints."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn


class FilteredWindows(NamedTuple):
    """A batch of windows and of what their context does not predict, filtered.

    Attributes
    ----------
    signal : tensor (batch, components, times)
        The filtered windows.
    masked : tensor (batch, components, n_subwindows, n_masked)
        The filtered residuals.
    residuals : tensor (batch, channels, n_subwindows, n_masked)
        From `masked_residuals`, of the signal; n_masked = subwindow_length + 2 margin.
    power : tensor (batch, n_subwindows, n_masked)
        Of the filtered residuals: the mean over the components, averaged over 3 samples.
    peak : int tensor (batch, n_subwindows)
        Its largest sample.
    pattern : tensor (batch, n_subwindows, components)
        The filtered residual at the peak, of length 1.
    course : tensor (batch, n_subwindows, times)
        Time course of the pattern in the filtered window.
    norms : tensor (components, 1)
        Of the filters.
    shape : (border, n_subwindows, subwindow_length)
        The sub-windows, in samples.
    margin : int
    """

    signal: torch.Tensor
    masked: torch.Tensor
    residuals: torch.Tensor
    power: torch.Tensor
    peak: torch.Tensor
    pattern: torch.Tensor
    course: torch.Tensor
    norms: torch.Tensor
    shape: tuple[int, int, int]
    margin: int


def filter_windows(
    x: torch.Tensor, residuals: torch.Tensor, filters: torch.Tensor, shape: tuple[int, int, int], margin: int
) -> FilteredWindows:
    """Windows x (batch, channels, times) and their residuals through filters (components, channels).

    The filters are those of `spatial_filters`, of the type of the windows and on their device.
    """
    masked = (filters @ residuals.flatten(2)).unflatten(2, residuals.shape[2:])
    power = nn.functional.pad(masked.square().mean(dim=1), (1, 1))
    power = (power[..., :-2] + power[..., 1:-1] + power[..., 2:]) / 3
    peak = power.argmax(dim=-1)
    signal, pattern = filters @ x, unit(at_samples(masked, peak))
    norms = filters.norm(dim=1, keepdim=True)
    return FilteredWindows(signal, masked, residuals, power, peak, pattern, pattern @ signal, norms, shape, margin)


def spatial_filters(covariance: np.ndarray, residual_covariance: np.ndarray, n_components: int) -> np.ndarray:
    """Filters (n_components, channels): principal components of the signal, each scaled to a residual of variance 1.

    A spike of a weak source then weighs as much as the residual of a strong rhythm.

    Parameters
    ----------
    covariance, residual_covariance : arrays (channels, channels)
        Of windows, and of what their context does not predict.
    n_components : int
        The strongest ones; at most the number of channels.
    """
    _, vectors = np.linalg.eigh(covariance)
    filters = vectors[:, ::-1][:, :n_components].T
    variance = np.einsum('ic,cd,id->i', filters, residual_covariance, filters)
    return filters / np.sqrt(np.maximum(variance, 1e-12 * variance.max() + 1e-30))[:, None]


def at_samples(maps: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Values (batch, n_subwindows, rows) of maps (batch, rows, n_subwindows, n_masked) at samples of the segments."""
    at = samples[:, None, :, None].expand(-1, maps.shape[1], -1, 1)
    return maps.gather(-1, at)[..., 0].transpose(1, 2)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors along the last axis, scaled to length 1; zeros stay zeros."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-12)
