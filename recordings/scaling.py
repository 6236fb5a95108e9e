"""Scaling of windows: by the statistics of their block, by their own, or not at all."""

import numpy as np

from recordings.window_settings import WindowSettings


class BlockScaling:
    """Scale the windows of a block one at a time.

    Parameters
    ----------
    signal : array (n_channels, n_samples)
        The block, in tesla.
    settings : WindowSettings
        Of these, `standardize`, `reject_artefacts` and `artefact_threshold`.
    """

    def __init__(self, signal: np.ndarray, settings: WindowSettings):
        self.signal, self.settings = signal, settings
        by_block = settings.standardize == 'block'
        self.deviations = np.empty(signal.shape if by_block else (0, 0), '<f4')
        self.offset = self.mean = self.std = np.nan
        if by_block or settings.reject_artefacts:
            self.offset, self.mean, self.std = block_statistics(signal, self.deviations if by_block else None)

    def has_artefact(self, samples: slice) -> bool:
        """Whether artefacts are rejected, and a sample lies more than `artefact_threshold` stds from the mean."""
        if not self.settings.reject_artefacts:
            return False
        window = self.signal[:, samples]
        distance = max(window.max() - self.mean, self.mean - window.min())
        return distance > self.settings.artefact_threshold * self.std

    def scale_into(self, out: np.ndarray, samples: slice) -> bool:
        """Write a scaled window into `out`, float32 (n_channels, n_times); return whether it has no variance."""
        window, standardize = self.signal[:, samples], self.settings.standardize
        # Equality of the extremes, because the rounding of a mean can leave a constant window a tiny variance. For most
        # windows, two of their samples already differ.
        flat = window[0, 0] == window[-1, -1] and window.max() == window.min()
        if flat and standardize is not False:
            out[:] = 0
        elif standardize == 'block':
            scale(self.deviations[:, samples], self.offset, self.mean, self.std, out=out)
        else:
            out[:] = window if standardize is False else scale_window(window)
        return bool(flat)


def block_statistics(signal: np.ndarray, deviations: np.ndarray | None = None) -> tuple[float, float, float]:
    """Offset, mean and standard deviation of a block over all channels and samples, in float64, reading it once.

    Parameters
    ----------
    signal : array (n_channels, n_samples)
        The block.
    deviations : float32 array (n_channels, n_samples), optional
        Receives signal - offset, from which `scale` goes on.

    Returns
    -------
    offset, mean, std : float
        The offset is a value near the mean: sums about it lose no digits, nor do deviations from it as float32.
    """
    offset = signal[:, :100].mean(dtype=np.float64)
    deviation, total, square = np.empty(signal.shape[1]), 0.0, 0.0
    for k, row in enumerate(signal):
        np.subtract(row, offset, out=deviation)
        total += deviation.sum()
        square += np.einsum('i,i->', deviation, deviation)  # a BLAS product would keep every core busy to no gain
        if deviations is not None:
            deviations[k] = deviation
    mean = total / signal.size
    return offset, offset + mean, np.sqrt(max(square / signal.size - mean**2, 0.0))


def scale(deviations: np.ndarray, offset: float, mean: float, std: float, out: np.ndarray | None = None) -> np.ndarray:
    """(signal - mean) / std as float32, of deviations = signal - offset as float32; zeros where std is 0."""
    if std == 0:
        return np.multiply(deviations, np.float32(0), out=out)
    scaled = np.multiply(deviations, np.float32(1 / std), out=out)
    scaled -= np.float32((mean - offset) / std)
    return scaled


def scale_window(window: np.ndarray) -> np.ndarray:
    """Scale a window (n_channels, n_times) by its own mean and standard deviation, computed in float64."""
    window = window.astype(np.float64)
    window -= window.mean()
    window /= window.std()
    return window
