"""Where a block's samples lie in its recording."""

import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Where a block's samples lie in its recording.

    Times of a recording are seconds from its first sample, which is what MNE's browser shows, whatever `first_samp`.

    Attributes
    ----------
    path : Path
        The recording.
    sfreq : float
        Sampling rate of the recording, in Hz.
    parts : list of (start, stop)
        Continuous parts, in samples of the recording.
    trial : (int, int) or None
        CTF: samples per trial, and samples before its sync point, from which marker files count.
    first_time : float
        MNE's time of the first sample, in s from `meas_date`: FIF files can begin later than their clock.
    meas_date : datetime or None
        Date and time of the recording, if its header has one.
    """

    path: Path
    sfreq: float
    parts: list[tuple[int, int]]
    trial: tuple[int, int] | None
    first_time: float
    meas_date: datetime.datetime | None

    def lengths(self, sfreq: float) -> np.ndarray:
        """Samples of each part after resampling to `sfreq` Hz."""
        return np.array([max(1, round((stop - start) * sfreq / self.sfreq)) for start, stop in self.parts])

    def to_seconds(self, samples: np.ndarray, sfreq: float) -> np.ndarray:
        """Times in the recording, in s, of samples (n,) of the block at `sfreq` Hz."""
        samples = np.asarray(samples, dtype=np.float64)
        offsets = np.concatenate([[0], np.cumsum(self.lengths(sfreq))[:-1]])
        part = np.searchsorted(offsets, samples, side='right') - 1
        starts = np.array([start for start, _ in self.parts])
        return starts[part] / self.sfreq + (samples - offsets[part]) / sfreq

    def to_samples(self, seconds: np.ndarray, sfreq: float) -> np.ndarray:
        """Nearest samples of the block at `sfreq` Hz, in order, of times (n,) in the recording.

        Parameters
        ----------
        seconds : array (n,)
            Times from the first sample of the recording.
        sfreq : float
            Sampling rate of the block, in Hz.

        Returns
        -------
        int64 array (n_inside,)
            Times outside of the parts have no sample.
        """
        recorded = np.rint(np.asarray(seconds, dtype=np.float64) * self.sfreq)
        lengths = self.lengths(sfreq)
        samples = []
        for (start, stop), length, offset in zip(self.parts, lengths, np.cumsum(lengths) - lengths, strict=True):
            inside = recorded[(start <= recorded) & (recorded < stop)] - start
            samples.append(offset + np.minimum(np.rint(inside * sfreq / self.sfreq), length - 1))
        return np.sort(np.concatenate(samples)).astype(np.int64)


class Note(NamedTuple):
    """An annotation of MNE: label, onset (s from the recording's first sample) and duration in s, further facts."""

    label: str
    onset: float
    duration: float
    extras: dict | None = None
