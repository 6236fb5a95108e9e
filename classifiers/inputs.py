"""What the classifiers read of an autoencoder: error cards, statistics, features."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from classifiers.filtered import spatial_filters
from classifiers.subwindows import SubwindowShape
from models.autoencoder import Autoencoder, latent_rows
from timeseries_dataset import prefetched
from utils import to_device

# --------------------------------------------------------------------------- what the classifiers read
N_FILTERS = 60  # spatial filters of the features and of the score


class Masking(NamedTuple):
    """What is needed, with masking, to read what a sub-window's context does not predict.

    Attributes
    ----------
    margin : int
        Samples masked on either side of a sub-window: half a pulse, so that a spike is masked whole.
    filters : float32 tensor (n_filters, channels) or None
        Spatial filters of the training windows, where the classifier reads them; on the device of the windows.
    features : str
        What is read: 'residual', of the autoencoder; 'spectrum', what the spectrum of the block itself does not
        predict; or 'signal', the signal itself, where nothing is masked.
    """

    margin: int
    filters: torch.Tensor | None = None
    features: str = 'residual'

    def read(
        self, model: Autoencoder, x: torch.Tensor, shape: SubwindowShape, levels: list[int] | None = None
    ) -> torch.Tensor:
        """What is read of windows x, laid out as `Autoencoder.masked_residuals`.

        Of 'spectrum' the signal: what is known of blocks is in `spectral.BlockSpectra`.
        """
        if self.features == 'residual':
            return model.masked_residuals(x, shape, self.margin, levels)
        return shape.stretches(x, self.margin)


def error_cards(errors: torch.Tensor, shape: SubwindowShape) -> torch.Tensor:
    """The original's error cards: errors cut to the inner part of the window, each plane z-scored there.

    Parameters
    ----------
    errors : tensor (batch, pairs, channels, times)
        Of the pairs that are read.

    Returns
    -------
    tensor (batch * n_subwindows, pairs, channels, subwindow_length)
    """
    inner = slice(shape.border, shape.border + shape.n_subwindows * shape.subwindow_length)
    cards = zscore_planes(errors[..., inner])
    return SubwindowShape(0, shape.n_subwindows, shape.subwindow_length).cut(cards)


def zscore_planes(cards: torch.Tensor) -> torch.Tensor:
    """Scale every plane of error cards (batch, pairs, channels, times) to mean 0, std 1; flat planes become zeros."""
    std, mean = torch.std_mean(cards, dim=(2, 3), correction=0, keepdim=True)
    return (cards - mean) / torch.where(std > 0, std, 1.0)


def error_statistics(errors: torch.Tensor, shape: SubwindowShape) -> torch.Tensor:
    """Statistics per channel (batch * n_subwindows, n_features) of errors (batch, pairs, channels, times).

    Per pair: the logarithms of the mean and of the maximum over time of every channel, then deciles of both over the
    channels, which say the same wherever in the head a spike is.
    """
    errors = shape.cut(errors)  # (batch * n_subwindows, pairs, channels, subwindow_length)
    per_channel = torch.stack([errors.mean(dim=-1), errors.amax(dim=-1)], dim=-2).clamp(min=1e-30).log()
    deciles = torch.quantile(per_channel, torch.linspace(0, 1, 11, device=errors.device), dim=-1).movedim(0, -1)
    return torch.cat([per_channel, deciles], dim=-1).flatten(1)


def mean_error(errors: torch.Tensor, shape: SubwindowShape) -> torch.Tensor:
    """Logarithm of the mean error over pairs, channels and samples (batch * n_subwindows, 1), see `error_cards`."""
    return shape.cut(errors).mean(dim=(1, 2, 3)).clamp(min=1e-30).log()[:, None]


def latent_statistics(latents: list[torch.Tensor], window_length: int, shape: SubwindowShape) -> torch.Tensor:
    """Mean and log std over time of every row of the latent maps (batch * n_subwindows, n_features).

    A map (batch, ..., times / 2^k) is first brought back to the window's `window_length` samples by nearest neighbour.
    """
    features = []
    for latent in latents:
        column = torch.arange(window_length, device=latent.device) * latent.shape[-1] // window_length
        rows = shape.cut(latent_rows(latent)[..., column])  # (batch * n_subwindows, rows, subwindow_length)
        std, mean = torch.std_mean(rows, dim=-1, correction=0)
        features += [mean, std.clamp(min=1e-6).log()]
    return torch.cat(features, dim=1)


def masked_cards(residuals: torch.Tensor, shape: SubwindowShape, margin: int) -> torch.Tensor:
    """Error cards as `error_cards` gives, of masked residuals.

    Parameters
    ----------
    residuals : tensor (batch, pairs, channels, n_subwindows, subwindow_length + 2 margin)
        Of the pairs that are read.
    """
    cards = residuals[..., margin : margin + shape.subwindow_length].square().flatten(-2)
    return SubwindowShape(0, shape.n_subwindows, shape.subwindow_length).cut(zscore_planes(cards))


def window_errors(model: Autoencoder, x: torch.Tensor, shape: SubwindowShape, masking: Masking | None) -> torch.Tensor:
    """Squared errors of whole windows (batch, n_pairs, channels, times), for pictures.

    With masking, those of the sub-windows, masked in turn; NaN outside them.
    """
    if masking is None:
        return model.error_cards(x)
    cards = model.masked_error_cards(x, shape, masking.margin).flatten(-2)
    outside = (shape.border, x.shape[-1] - shape.border - cards.shape[-1])
    return nn.functional.pad(cards, outside, value=torch.nan)


def masking_margin(shape: SubwindowShape, pulse_width: float, sfreq: float) -> int:
    """Samples to mask on either side of a sub-window: half a pulse, but at least one sample must stay at the ends."""
    return min(round(pulse_width / 2 * sfreq), shape.border - 1)


def measure_filters(
    autoencoder: Autoencoder, loader: DataLoader, shape: SubwindowShape, masking: Masking, device: torch.device
) -> torch.Tensor:
    """Spatial filters (N_FILTERS, channels) of a loader's windows, float32, see `filtered.spatial_filters`.

    With features='signal' or 'spectrum' the signal takes the place of the residual: its components get a variance of 1.
    """
    autoencoder.eval()
    signal, residual, n_windows = np.zeros(()), np.zeros(()), 0
    with torch.no_grad():
        for x, _ in tqdm(
            prefetched(loader), desc='filters', total=len(loader), leave=False, disable=None, unit='batch'
        ):
            x = to_device(x, device)
            residuals = masking.read(autoencoder, x, shape, levels=[0])[:, 0]
            signal = signal + len(x) * _covariance(x[:, 0])
            residual = residual + len(x) * _covariance(residuals)
            n_windows += len(x)
    filters = spatial_filters(signal / n_windows, residual / n_windows, N_FILTERS)
    return torch.from_numpy(filters.astype(np.float32)).to(device)


def _covariance(maps):
    """Mean product of channels (channels, channels), float64, of maps (batch, channels, ...)."""
    rows = maps.movedim(1, 0).flatten(1).double()
    return (rows @ rows.T / rows.shape[1]).cpu().numpy()
