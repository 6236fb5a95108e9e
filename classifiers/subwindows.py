"""Sub-windows: how windows are cut, their table, and the peaks of the field power in them."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch


class SubwindowShape(NamedTuple):
    """How the inner part of a window is cut, in samples: from `border`, `n_subwindows` pieces of `subwindow_length`."""

    border: int
    n_subwindows: int
    subwindow_length: int

    def cut(self, maps: torch.Tensor) -> torch.Tensor:
        """(batch, ..., times) to the sub-windows (batch * n_subwindows, ..., subwindow_length), window after window."""
        inner = maps[..., self.border : self.border + self.n_subwindows * self.subwindow_length]
        return inner.unflatten(-1, (self.n_subwindows, self.subwindow_length)).movedim(-2, 1).flatten(0, 1)

    def stretches(self, maps: torch.Tensor, margin: int) -> torch.Tensor:
        """(batch, ..., times) to (batch, ..., n_subwindows, subwindow_length + 2 margin), as what is masked."""
        first, length = self.border - margin, self.subwindow_length + 2 * margin
        return maps[..., first:].unfold(-1, length, self.subwindow_length)[..., : self.n_subwindows, :]


def subwindow_shape(window_length: int, border: int, subwindow_length: int) -> SubwindowShape:
    """Cut the inner part of a window into as many whole sub-windows as fit."""
    return SubwindowShape(border, (window_length - 2 * border) // subwindow_length, subwindow_length)


# ---------------------------------------------------------------------------------------- sub-windows
def subwindow_table(table: pd.DataFrame, labels_t: np.ndarray, shape: SubwindowShape) -> pd.DataFrame:
    """One row per sub-window, window after window.

    Parameters
    ----------
    table : DataFrame
        Rows of the id table, one per window.
    labels_t : uint8 array (n_windows, window_length)
        Their marked samples.

    Returns
    -------
    DataFrame
        subject, block, timing (centre of the sub-window, in samples of the block), test (1 where a marked sample
        lies in the sub-window).
    """
    first = shape.border
    inner = labels_t[:, first : first + shape.n_subwindows * shape.subwindow_length]
    test = inner.reshape(len(table), shape.n_subwindows, shape.subwindow_length).any(axis=2)
    centre = first + shape.subwindow_length * (np.arange(shape.n_subwindows) + 0.5)  # from the window's start
    start = table['timing'].to_numpy()[:, None] - labels_t.shape[1] / 2
    return pd.DataFrame(
        {
            'subject': np.repeat(table['subject'].to_numpy(), shape.n_subwindows),
            'block': np.repeat(table['block'].to_numpy(), shape.n_subwindows),
            'timing': (start + centre).ravel(),
            'test': test.ravel().astype(np.int64),
        }
    )


def field_peaks(x: torch.Tensor, shape: SubwindowShape) -> torch.Tensor:
    """Peak of the global field power (std over channels) in every sub-window of x (batch, 1, channels, times).

    Returns
    -------
    tensor (batch * n_subwindows, 2)
        The field power at its peak, and the peak's sample counted from the sub-window's first.
    """
    value, sample = shape.cut(x[:, 0].std(dim=1, correction=0)).max(dim=-1)
    return torch.stack([value, sample.to(value.dtype)], dim=1)


def with_peaks(table: pd.DataFrame, peaks: np.ndarray, shape: SubwindowShape) -> pd.DataFrame:
    """Add to a table of sub-windows the columns `field` and `peak` (in samples of the block) of `field_peaks`."""
    field, sample = peaks.T
    first = table['timing'].to_numpy() - shape.subwindow_length / 2
    # As float64, which a CSV gives back as it was.
    return table.assign(field=field.astype(np.float64), peak=np.round(first + sample).astype(np.int64))


def most_rows(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most so many rows of labels (n,), in their order: all spikes, up to half, and others drawn at random."""
    if len(labels) <= most:
        return np.arange(len(labels))
    spikes, others = (rng.permutation(np.flatnonzero(labels == label)) for label in (1, 0))
    spikes = spikes[: most // 2]
    return np.sort(np.concatenate([spikes, others[: most - len(spikes)]]))
