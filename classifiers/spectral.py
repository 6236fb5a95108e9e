"""What a recording's own spectrum predicts of a masked segment from its context: linear, and without a network."""

from collections.abc import Iterable

import numpy as np
import torch

from classifiers.subwindows import SubwindowShape

_WHITE = 1e-3  # of the power, added as white noise: no inverse is without bounds then


class BlockSpectra:
    """Predicts what is masked in windows from the spectrum that their block has in every component.

    A rhythm goes on in a gap of .3 s, at the frequency that it has in this patient, which no other patient can teach.

    Parameters
    ----------
    filters : tensor (components, channels)
        From `spatial_filters`: principal components, whatever their lengths.
    shape : SubwindowShape
    margin : int
        Samples masked on either side of a sub-window.
    blocks : array (n_windows,)
        What tells the blocks of the windows apart.
    windows : iterable of tensors (batch, 1, channels, times)
        All windows, in their order, from which the spectra are measured.
    counted : bool array (n_windows,)
        Those that are measured.
    """

    def __init__(
        self,
        filters: torch.Tensor,
        shape: SubwindowShape,
        margin: int,
        blocks: np.ndarray,
        windows: Iterable[torch.Tensor],
        counted: np.ndarray,
    ):
        self.directions = filters / filters.norm(dim=1, keepdim=True)  # orthonormal
        self.shape, self.margin = shape, margin
        self.blocks = np.unique(blocks, return_inverse=True)[1]
        self.autocovariances = self._measured(windows, counted)  # (blocks, components, times), float64
        self._latest = (-1, torch.zeros(()))  # predictors of one block: windows come block after block

    def _measured(self, windows, counted):
        first, total = 0, torch.zeros(())
        for x in windows:
            rows, first = slice(first, first + len(x)), first + len(x)
            of_windows = autocovariance(self.directions @ x[:, 0]).double().cpu()
            if not total.ndim:
                total = torch.zeros(self.blocks.max() + 1, *of_windows.shape[1:], dtype=torch.float64)
            weights = torch.from_numpy(counted[rows]).double()[:, None, None]
            total.index_add_(0, torch.from_numpy(self.blocks[rows]), weights * of_windows)
        return total

    def residuals(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """What the context does not predict of windows x (batch, 1, channels, times), which are these rows of all.

        Returns
        -------
        tensor (batch, 1, channels, n_subwindows, subwindow_length + 2 margin)
            As `Autoencoder.masked_residuals`. What the components do not hold counts as not predicted.
        """
        components = self.directions @ x[:, 0]
        masked = self.shape.stretches(components, self.margin)
        predicted = torch.empty_like(masked)
        for block in dict.fromkeys(self.blocks[rows].tolist()):
            of_block = torch.from_numpy(np.flatnonzero(self.blocks[rows] == block)).to(x.device)
            left = torch.einsum('ckmt,bct->bckm', self._predictors(block), components[of_block])
            predicted[of_block] = masked[of_block] - left
        back = (self.directions.T @ predicted.flatten(2)).unflatten(2, predicted.shape[2:])
        return (self.shape.stretches(x[:, 0], self.margin) - back)[:, None]

    def _predictors(self, block):
        if self._latest[0] != block:
            predictors = gap_predictors(self.autocovariances[block], self.shape, self.margin)
            self._latest = block, predictors.to(self.directions)
        return self._latest[1]


def autocovariance(courses: torch.Tensor) -> torch.Tensor:
    """Autocovariance of time courses (..., times) at the lags 0, 1, ...: (..., times); tapered by half a sine."""
    n = courses.shape[-1]
    taper = torch.sin(torch.pi * (torch.arange(n, device=courses.device) + 0.5) / n)
    tapered = (courses - courses.mean(dim=-1, keepdim=True)) * taper
    return torch.fft.irfft(torch.fft.rfft(tapered, 2 * n).abs().square())[..., :n]


def gap_predictors(autocovariances: torch.Tensor, shape: SubwindowShape, margin: int) -> torch.Tensor:
    """Linear maps from a window to what its context does not predict of each masked segment.

    Of a stationary signal with covariance C, that is inv(inv(C)[m, m]) inv(C)[m, :] times the window, for the samples m
    of a segment: the best linear prediction from all other samples, taken from what was there.

    Parameters
    ----------
    autocovariances : float64 tensor (components, times)
    shape, margin
        See `BlockSpectra`.

    Returns
    -------
    tensor (components, n_subwindows, subwindow_length + 2 margin, times)
    """
    times = autocovariances.shape[-1]
    samples, (border, n_subwindows, length) = torch.arange(times), shape
    predictors = torch.empty(len(autocovariances), n_subwindows, length + 2 * margin, times, dtype=torch.float64)
    for of_component, covariances in zip(predictors, autocovariances, strict=True):
        lags = covariances / covariances[0].clamp(min=torch.finfo(torch.float64).tiny)
        whole = lags[(samples[:, None] - samples).abs()] + _WHITE * torch.eye(times)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(whole))
        for k in range(n_subwindows):
            masked = slice(border + k * length - margin, border + (k + 1) * length + margin)
            of_component[k] = torch.linalg.solve(inverse[masked, masked], inverse[masked])
    return predictors
