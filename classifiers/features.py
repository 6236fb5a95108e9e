"""What tells a spike from other signal in a masked window: power, time course and field at the residual's peak."""

import numpy as np
import pandas as pd

# Samples around the peak at which time courses are read: at 150 Hz, 0.3 s either side, which holds the slow wave.
_AROUND = np.arange(-45, 46, 3)
_AROUND_FIELD = np.array([-45, -30, -20, -14, -10, -6, -3, 0, 3, 6, 10, 14, 20, 30, 45])
_IN_RESIDUAL = np.arange(-12, 13, 2)
N_POWERS = 5  # the first features are logs of power
# Samples beside the peak where a spike is over, or passes through zero, and how much power there counts against it.
_BESIDE = np.concatenate([np.arange(-15, -4), np.arange(5, 16)])  # at 150 Hz, 33 to 100 ms on either side
_WEIGHT_BESIDE = 0.75


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


def peak_score(
    x: np.ndarray, residuals: np.ndarray, filters: np.ndarray, shape: tuple[int, int, int], margin: int
) -> np.ndarray:
    """How large and how brief the residual of a sub-window is: no annotation needed.

    The logarithm of the largest power of the residual in the sub-window and the margins masked with it, less 0.75 times
    that of the signal's mean power 33 to 100 ms (at 150 Hz) before and after. A spike is over within 100 ms: a rhythm
    that swells, or a slow wave, has as much power beside its peak.

    Parameters
    ----------
    x, residuals, filters, shape, margin
        As `spike_features` takes them.

    Returns
    -------
    float32 array (batch * n_subwindows,)
    """
    power = _power(_filtered(residuals, filters))  # (batch, n_subwindows, n_masked)
    at = _in_window(power.argmax(axis=-1), shape, margin)
    beside = _read(_field(filters @ x, shape), at[..., None] + _BESIDE).mean(axis=-1)
    score = np.log(power.max(axis=-1) + 1e-12) - _WEIGHT_BESIDE * np.log(beside + 1e-12)
    return score.ravel().astype(np.float32)


def spike_features(
    x: np.ndarray, residuals: np.ndarray, filters: np.ndarray, shape: tuple[int, int, int], margin: int
) -> np.ndarray:
    """Features of every sub-window at the peak of its residual.

    The field of the residual at its peak is the pattern whose time course is followed in the signal around it. So the
    features do not depend on where in the head a spike comes from, nor on its polarity.

    Parameters
    ----------
    x : array (batch, channels, times)
    residuals : array (batch, channels, n_subwindows, subwindow_length + 2 margin)
        From `masked_residuals`, of the signal.
    filters : array (n_components, channels)
        From `spatial_filters`.
    shape : (border, n_subwindows, subwindow_length)
        The sub-windows, in samples.
    margin : int

    Returns
    -------
    float32 array (batch * n_subwindows, n_features)
    """
    n_subwindows, batch = shape[1], len(x)
    signal = filters @ x  # (batch, components, times)
    masked = _filtered(residuals, filters)  # (batch, n_subwindows, components, n_masked)
    n_components, n_masked = masked.shape[2:]
    power = _power(masked)
    peak = power.argmax(axis=-1)  # (batch, n_subwindows)
    height = power.max(axis=-1)
    typical = np.median(np.square(signal).mean(axis=1), axis=1)[:, None]  # power of the window
    inside = power[..., margin : n_masked - margin]

    pattern = np.take_along_axis(masked, peak[..., None, None], axis=-1)[..., 0]  # (batch, n_subwindows, components)
    pattern /= np.linalg.norm(pattern, axis=-1, keepdims=True) + 1e-12
    # Time courses (batch, n_subwindows, times) of the pattern in the whole window and in the masked segment.
    course = pattern @ signal / np.sqrt(n_components)
    masked_course = (pattern[:, :, None] @ masked)[:, :, 0] / np.sqrt(n_components)
    at = _in_window(peak, shape, margin)
    polarity = np.sign(_read(course, at[..., None]))
    size = np.sqrt(height + 1e-12)[..., None]
    field = np.sqrt(_field(signal, shape))
    outside = np.pad(masked_course, ((0, 0), (0, 0), (12, 12)))
    channels = np.abs(np.take_along_axis(residuals.swapaxes(1, 2), peak[..., None, None], axis=-1)[..., 0])
    channels = channels / (np.linalg.norm(channels, axis=-1, keepdims=True) + 1e-12)
    alone = [
        np.log(height + 1e-12),
        np.log((height + 1e-12) / (typical + 1e-12)),
        np.log(power.mean(axis=-1) + 1e-12),
        np.log(inside.mean(axis=-1) + 1e-12),
        np.log(inside.max(axis=-1) + 1e-12),
        peak - margin,
        np.abs(peak - (n_masked - 1) / 2),
        # How much of the residual the pattern holds, and how few channels the pattern.
        np.square(masked_course).sum(axis=-1) / (np.square(masked).mean(axis=2).sum(axis=-1) + 1e-12),
        channels.max(axis=-1),
        (channels**4).sum(axis=-1),
    ]
    features = [
        np.stack(alone, axis=-1),
        _read(course, at[..., None] + _AROUND) * polarity / size,
        _read(outside, peak[..., None] + 12 + _IN_RESIDUAL) / size,
        np.log(_read(field, at[..., None] + _AROUND_FIELD) / np.sqrt(typical[..., None] + 1e-12) + 1e-6),
    ]
    return np.concatenate(features, axis=-1).reshape(batch * n_subwindows, -1).astype(np.float32)


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


def _filtered(residuals, filters):
    """Residuals (batch, channels, n_subwindows, n_masked) to (batch, n_subwindows, components, n_masked)."""
    return np.matmul(filters, residuals.swapaxes(1, 2))


def _in_window(peak, shape, margin):
    """The sample of the window, of samples (batch, n_subwindows) of what was masked."""
    border, n_subwindows, subwindow_length = shape
    return border + subwindow_length * np.arange(n_subwindows) - margin + peak


def _field(signal, shape):
    """Mean power over the components (batch, components, times), repeated to (batch, n_subwindows, times)."""
    return np.square(signal).mean(axis=1)[:, None].repeat(shape[1], axis=1)


def _power(masked):
    """Mean power over the components, averaged over 3 samples.

    (batch, n_subwindows, components, times) to (batch, n_subwindows, times).
    """
    power = np.pad(np.square(masked).mean(axis=2), ((0, 0), (0, 0), (1, 1)))
    return (power[..., :-2] + power[..., 1:-1] + power[..., 2:]) / 3


def _read(courses, at):
    """Values of time courses (..., times) at samples (..., n), those beyond an end read at the end."""
    return np.take_along_axis(courses, at.clip(0, courses.shape[-1] - 1), axis=-1)
