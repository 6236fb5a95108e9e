"""What tells a recording from every other, whatever its name."""

import hashlib
from pathlib import Path

import numpy as np

from recordings.data_raw import read_data_raw
from recordings.opening import open_recording
from utils import DataError

SEGMENT = 300  # samples of a segment of which the hash is taken


def identify(path: Path) -> dict:
    """What tells a recording, or a data_raw file, from every other.

    Returns
    -------
    dict
        path : str, resolved; acquired : str or None, time of acquisition; channels : int; samples : list of int, per
        block; sha256 : str, of the samples at beginning, middle and end.

    Raises
    ------
    DataError
        The samples cannot be read.
    """
    if path.suffix == '.pkl':
        signals = read_data_raw(path)['meg']
        channels, acquired, lengths = len(signals[0]), None, [signal.shape[1] for signal in signals]
        segments = [signal[:, columns] for signal in signals for columns in _segments(signal.shape[1])]
    else:
        with open_recording(path) as raw:
            channels, acquired, lengths = len(raw.ch_names), raw.info['meas_date'], [raw.n_times]
            try:
                segments = [raw[:, columns][0] for columns in _segments(raw.n_times)]
            except Exception as fault:  # a damaged file can raise anything at all
                raise DataError(f'{path}: MNE cannot read its samples ({type(fault).__name__}: {fault})') from fault
    digest = hashlib.sha256()
    for segment in segments:
        digest.update(np.ascontiguousarray(segment).data)
    return {
        'path': str(path.resolve()),
        'acquired': acquired and acquired.isoformat(),
        'channels': channels,
        'samples': lengths,
        'sha256': digest.hexdigest(),
    }


def _segments(n_samples: int) -> list[slice]:
    """The segments at beginning, middle and end of a recording; in a short one they overlap."""
    starts = [0, max(0, n_samples - SEGMENT) // 2, max(0, n_samples - SEGMENT)]
    return [slice(start, min(start + SEGMENT, n_samples)) for start in starts]
