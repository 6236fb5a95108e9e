"""Resampling and filtering of continuous parts of a recording, without delay."""

import functools
import math
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction

import mne
import numpy as np
import scipy.signal
from scipy.fft import next_fast_len

from utils import SettingError

NOTCH_SECONDS = 6.6  # length of MNE's notch filters
NARROWEST_BAND = 0.01  # Hz, from passing to stopping, where filters take 330 s
LARGEST_MATRIX = 1_000_000  # numbers of a matrix that takes less time than filtering


# ---------------------------------------------------------------------------------------------- signals
def extend(signal: np.ndarray, before: int, after: int) -> np.ndarray:
    """Continue a signal beyond its ends by its mirror images.

    Compared with filtering the true continuation, the error at the ends is half of that of the point reflections that
    MNE uses. In a part shorter than its filter, which MNE continues with zeros, it is smaller still.

    Parameters
    ----------
    signal : array (..., n_samples)
        One continuous part.
    before, after : int
        Samples to add at either end.

    Returns
    -------
    array (..., before + n_samples + after)
    """
    n = signal.shape[-1]
    return signal[..., np.pad(np.arange(n), (before, after), mode='reflect' if n > 1 else 'edge')]


def filter_seconds(high_pass: float) -> float:
    """Length of MNE's high-pass filter: 3.3 / width of its transition band."""
    return 3.3 / min(max(0.25 * high_pass, 2), high_pass)


def resample(signal: np.ndarray, sfreq: float, new_sfreq: float) -> np.ndarray:
    """Resample (n_channels, n_samples) from `sfreq` to `new_sfreq` Hz; sample i stays at i / new_sfreq seconds."""
    # A whole number of periods of both rates, so that no sample drifts; 1200 to 150 Hz: 8 samples become 1.
    ratio = Fraction(max(sfreq, new_sfreq) / min(sfreq, new_sfreq)).limit_denominator(1000)
    down, up = ratio.as_integer_ratio() if sfreq > new_sfreq else ratio.as_integer_ratio()[::-1]
    n = signal.shape[1]
    n_new = max(1, round(n * new_sfreq / sfreq))
    if down == up and n_new == n:
        return signal.copy()
    before = down * math.ceil(sfreq / down)  # 1 s at least
    total = down * next_fast_len(math.ceil((n + 2 * before) / down))
    resampled, new_samples = np.empty((len(signal), n_new)), np.arange(n_new)
    for rows in rows_at_a_time(len(signal), total):
        extended = extend(signal[rows], before, total - n - before)
        # To the transform, the end is a neighbour of the beginning: subtract the line between them, and add it again.
        start, slope = extended[:, :1], (extended[:, -1:] - extended[:, :1]) / (total - 1)
        new = scipy.signal.resample(extended - start - slope * np.arange(total), total // down * up, axis=1)
        line = slope * (before + new_samples * down / up)
        resampled[rows] = new[:, before // down * up + new_samples] + start + line
    return resampled


def rows_at_a_time(n_rows: int, n_samples: int) -> Iterator[slice]:
    """Cut the rows of an array into pieces of about 8 MB, or of one row, so that work on them takes little memory."""
    step = max(1, 2**20 // n_samples)
    return (slice(row, row + step) for row in range(0, n_rows, step))


@functools.lru_cache(1)
def impulse_response(*, sfreq: float, high_pass: float, low_pass: float, notch: tuple[float, ...] | None) -> np.ndarray:
    """Response (2 * reach + 1,) of MNE's band-pass and notch filters to a unit impulse in the middle."""
    band_pass = mne.filter.create_filter(None, sfreq, high_pass, low_pass, verbose='error')
    reach = len(band_pass) // 2
    if notch is None:
        return band_pass
    reach += math.ceil(NOTCH_SECONDS / 2 * sfreq) + 2  # MNE mirrors the ends, which must not reach the response
    impulse = np.pad(band_pass, reach - len(band_pass) // 2)
    return mne.filter.notch_filter(impulse, sfreq, np.array(notch), verbose='error')


def preprocess(
    signal: np.ndarray,
    *,
    raw_sfreq: float,
    sfreq: float,
    high_pass: float,
    low_pass: float,
    notch: float | list[float] | None,
) -> np.ndarray:
    """Resample and filter one continuous part without delay.

    Parameters
    ----------
    signal : array (n_channels, n_samples)
        At `raw_sfreq` Hz.
    raw_sfreq : float
        Sampling rate of the recording, in Hz.
    sfreq, high_pass, low_pass, notch
        The settings of these names, in Hz.

    Returns
    -------
    array (n_channels, n_new_samples)
        At `sfreq` Hz.
    """
    signal = resample(signal, raw_sfreq, sfreq)
    response = impulse_response(sfreq=sfreq, high_pass=high_pass, low_pass=low_pass, notch=as_frequencies(notch))
    reach = len(response) // 2
    for rows in rows_at_a_time(len(signal), signal.shape[1] + len(response)):
        signal[rows] = scipy.signal.oaconvolve(extend(signal[rows], reach, reach), response[None], mode='valid', axes=1)
    return signal


def preprocess_parts(parts: Iterable[np.ndarray], lengths: list[int], **filters) -> Generator[np.ndarray]:
    """Preprocess the continuous parts of a recording, each on its own.

    Short parts of one length share a matrix: the result of `preprocess`, which is linear, for each single sample.

    Parameters
    ----------
    parts : iterable of arrays (n_channels, n_samples)
        At the sampling rate of the recording.
    lengths : list of int
        Their n_samples.
    **filters
        The keyword arguments of `preprocess`.

    Yields
    ------
    array (n_channels, n_new_samples)
        A part, resampled and filtered.
    """
    n_parts, matrices = Counter(lengths), {}
    for part in parts:
        n_channels, n = part.shape
        if n not in matrices:
            n_new = n * filters['sfreq'] / filters['raw_sfreq']
            is_faster = 2 * n < n_channels * n_parts[n] and n * n_new < LARGEST_MATRIX
            matrices[n] = preprocess(np.eye(n), **filters) if is_faster else None
        yield preprocess(part, **filters) if matrices[n] is None else part @ matrices[n]


def check_filters(*, sfreq: float, high_pass: float, low_pass: float, notch: float | list[float] | None) -> None:
    """Check that the settings of the filters go together.

    Raises
    ------
    SettingError
        Names the settings that do not.
    """
    if not high_pass < low_pass <= sfreq / 2 - NARROWEST_BAND:
        raise SettingError(
            f'high_pass = {high_pass}, low_pass = {low_pass}: must rise, and stay {NARROWEST_BAND} Hz or more below '
            f'half of sfreq = {sfreq}'
        )
    for frequency in np.atleast_1d([] if notch is None else notch):
        if not 1 <= frequency <= sfreq / 2 - 2:
            raise SettingError(f'notch = {notch}: must be 1 Hz or more, and 2 Hz or more below half of sfreq = {sfreq}')
    try:
        impulse_response(sfreq=sfreq, high_pass=high_pass, low_pass=low_pass, notch=as_frequencies(notch))
    except ValueError as fault:
        raise SettingError(
            f'high_pass = {high_pass}, low_pass = {low_pass}, notch = {notch}: MNE has no such filter ({fault}); set '
            'them further apart'
        ) from fault


def as_frequencies(notch: float | list[float] | None) -> tuple[float, ...] | None:
    """The setting `notch` as a tuple."""
    return None if notch is None else tuple(np.atleast_1d(notch).tolist())
