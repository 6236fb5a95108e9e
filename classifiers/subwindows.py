"""Sub-windows: how windows are cut, how they tile a block, and the peaks of the field power in them."""

import math
from collections.abc import Iterable
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


def place_windows(lengths: Iterable[int], shape: SubwindowShape, window_length: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Lay windows over a block so that their sub-windows tile every continuous part of it.

    In each part the windows that fit lie as in training. Others, moved by whole sub-windows, score what these leave at
    both ends; what they show beyond the ends are mirror images. No window shows two parts.

    Parameters
    ----------
    lengths : iterable of int
        Samples of the continuous parts.
    window_length : int
        Samples of a window.

    Returns
    -------
    samples : int array (n_windows, window_length)
        Sample of the block that each window shows at each of its samples.
    table : DataFrame
        One row per sub-window, window after window: part; timing, its centre in samples of the part; onset and end in
        samples of the block, cut at the ends of the part; kept, False where another window scores it; reference, True
        in the windows that lie as in training.
    """
    samples, tables, offset = [], [], 0
    before = math.ceil(shape.border / shape.subwindow_length)  # sub-windows before the first window's first
    for part, length in enumerate(lengths):
        end = math.ceil((length - shape.border) / shape.subwindow_length)
        n_fit = max(0, (length - window_length) // (shape.n_subwindows * shape.subwindow_length) + 1)
        # Number of each window's first sub-window, which is its place in sub-windows too.
        firsts = [*range(0, n_fit * shape.n_subwindows, shape.n_subwindows), *range(-before, 0, shape.n_subwindows)]
        reached = max((first + shape.n_subwindows for first in firsts), default=0)
        while reached < end:
            firsts.append(min(reached, end - shape.n_subwindows))
            reached = firsts[-1] + shape.n_subwindows
        starts = np.array(firsts) * shape.subwindow_length
        margins = max(0, -starts.min()), max(0, starts.max() + window_length - length)
        shown = np.pad(np.arange(length), margins, mode='reflect' if length > 1 else 'edge')
        samples.append(offset + shown[starts[:, None] + margins[0] + np.arange(window_length)])

        number = (np.array(firsts)[:, None] + np.arange(shape.n_subwindows)).ravel()
        is_first = np.zeros(len(number), dtype=bool)
        is_first[np.unique(number, return_index=True)[1]] = True  # the first, so that training's windows come first
        onset = shape.border + number * shape.subwindow_length
        tables.append(
            pd.DataFrame(
                {
                    'part': part,
                    'timing': onset + shape.subwindow_length / 2,
                    'onset': offset + np.clip(onset, 0, length),
                    'end': offset + np.clip(onset + shape.subwindow_length, 0, length),
                    'kept': is_first & (-before <= number) & (number < end),
                    'reference': np.arange(len(number)) < n_fit * shape.n_subwindows,
                }
            )
        )
        offset += length
    return np.concatenate(samples), pd.concat(tables, ignore_index=True)


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
