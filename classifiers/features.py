"""What tells a spike from other signal in a masked window: power, time course and field at the residual's peak."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from classifiers.durations import duration_features
from classifiers.filtered import FilteredWindows, at_samples, unit

# Samples around the peak at which time courses are read: at 150 Hz, 0.3 s either side, which holds the slow wave.
_AROUND = np.arange(-45, 46, 3)
_AROUND_FIELD = np.array([-45, -30, -20, -14, -10, -6, -3, 0, 3, 6, 10, 14, 20, 30, 45])
_BEYOND = 12
_IN_RESIDUAL = np.arange(-_BEYOND, _BEYOND + 1, 2)
N_POWERS = 13  # the first features are logs of power
FEATURES_VERSION = 3  # 1 had none of durations, 2 not the score of `threshold`
N_COURSE = len(_AROUND)  # samples of a time course


def spike_features(windows: FilteredWindows) -> torch.Tensor:
    """Features of every sub-window at the peak of its residual.

    The field of the residual at its peak is the pattern whose time course is followed in the signal around it. So the
    features do not depend on where in the head a spike comes from, nor on its polarity.

    Returns
    -------
    tensor (batch * n_subwindows, n_features)
        On the device of the windows.
    """
    signal, masked, residuals, power, peak, pattern, course, _, shape, margin = windows
    n_components, n_masked = masked.shape[1], masked.shape[-1]
    height = power.amax(dim=-1)  # (batch, n_subwindows)
    typical = torch.quantile(signal.square().mean(dim=1), 0.5, dim=1)[:, None]  # power of the window
    inside = power[..., margin : n_masked - margin]

    # Time courses (batch, n_subwindows, times) of the pattern in the whole window and in the masked segment.
    course = course / n_components**0.5
    masked_course = torch.einsum('bsf,bfst->bst', pattern, masked) / n_components**0.5
    at = _in_window(peak, shape, margin)[..., None]
    polarity = _read(course, at).sign()
    size = (height + 1e-12).sqrt()[..., None]
    outside = nn.functional.pad(masked_course, (_BEYOND, _BEYOND))
    channels = unit(at_samples(residuals, peak)).abs()
    powers = [
        _log(height),
        _log((height + 1e-12) / (typical + 1e-12)),
        _log(power.mean(dim=-1)),
        _log(inside.mean(dim=-1)),
        _log(inside.amax(dim=-1)),
    ]
    alone = [
        peak - margin,
        (peak - (n_masked - 1) / 2).abs(),
        # How much of the residual the pattern holds, and how few channels the pattern.
        masked_course.square().sum(dim=-1) / (masked.square().mean(dim=1).sum(dim=-1) + 1e-12),
        channels.amax(dim=-1),
        (channels**4).sum(dim=-1),
    ]
    field = _read(_field(signal, shape), at + _samples(_AROUND_FIELD, peak)).sqrt()
    duration_powers, durations = duration_features(windows)
    features = [
        torch.stack(powers, dim=-1),
        duration_powers,
        torch.stack(alone, dim=-1),
        _read(course, at + _samples(_AROUND, peak)) * polarity / size,
        _read(outside, peak[..., None] + _BEYOND + _samples(_IN_RESIDUAL, peak)) / size,
        (field / (typical[..., None] + 1e-12).sqrt() + 1e-6).log(),
        durations,
    ]
    return torch.cat(features, dim=-1).flatten(0, 1)


def fingerprints(windows: FilteredWindows) -> torch.Tensor:
    """What tells whether two sub-windows look alike: field at the residual's peak, and its course in the signal around.

    Returns
    -------
    tensor (batch * n_subwindows, n_components + N_COURSE)
        Filtered field, of the sign that the signal has at the peak, and its course, positive there; each of length 1.
    """
    course = windows.course
    at = _in_window(windows.peak, windows.shape, windows.margin)[..., None]
    around = unit(_read(course, at + _samples(_AROUND, at)))
    return (torch.cat([windows.pattern, around], dim=-1) * _read(course, at).sign()).flatten(0, 1)


def append_relative_power(features: np.ndarray, blocks: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Append the features of power less their median over the block: what is large in one recording is not in another.

    Parameters
    ----------
    features : array (n, n_features)
        From `spike_features`.
    blocks : array (n,)
        What tells the recordings apart, such as numbers of (subject, block).
    reference : bool array (n,), optional
        The rows that the medians are taken of; all where not given.
    """
    return np.concatenate([features, subtract_block_median(features[:, :N_POWERS], blocks, reference)], axis=1)


def subtract_block_median(values: np.ndarray, blocks: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Values (n, ...) less the median of those of their block; arguments as in `append_relative_power`."""
    blocks, rows = np.asarray(blocks), slice(None) if reference is None else reference
    medians = pd.DataFrame(values[rows]).groupby(blocks[rows]).median()
    return values - medians.loc[blocks].to_numpy().reshape(values.shape)


def _in_window(peak, shape, margin):
    """The sample of the window, of samples (batch, n_subwindows) of what was masked."""
    border, n_subwindows, subwindow_length = shape
    return border - margin + subwindow_length * torch.arange(n_subwindows, device=peak.device) + peak


def _field(signal, shape):
    """Mean power over the components (batch, components, times), repeated to (batch, n_subwindows, times)."""
    return signal.square().mean(dim=1)[:, None].expand(-1, shape[1], -1)


def _log(power):
    """Logarithm of a power, finite for 0."""
    return (power + 1e-12).log()


def _samples(offsets, like):
    """Numbers of samples as a tensor beside another."""
    return torch.as_tensor(offsets, device=like.device)


def _read(courses, at):
    """Values of time courses (..., times) at samples (..., n), those beyond an end read at the end."""
    return courses.gather(-1, at.clamp(0, courses.shape[-1] - 1))
