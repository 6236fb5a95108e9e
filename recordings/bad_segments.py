"""Segments of a recording that an expert or the scanner's software marked as bad, and their samples in a block."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recordings.marker_files import as_text, read_class_file
from utils import DataError

if TYPE_CHECKING:
    from recordings.layout import Layout, Note


NOT_A_SEGMENT = 'bad_acq_skip'  # samples that were not recorded: they are cut out, not marked


def is_bad_label(label: str) -> bool:
    """Whether a label marks bad segments or trials: MNE and CTF let such names begin with BAD."""
    return label.lower().startswith('bad') and not label.lower().startswith(NOT_A_SEGMENT)


def read_bad_segments(layout: 'Layout', notes: list['Note']) -> np.ndarray:
    """Read the bad segments of a recording, from its annotations and, if it is from a CTF system, from its files.

    Parameters
    ----------
    layout : Layout
        Of all the recording. A CTF recording has its bad segments in `bad.segments` and its bad trials in the
        classes BAD... of `ClassFile.cls`.
    notes : list of Note
        Annotations; those whose label begins with BAD are bad segments.

    Returns
    -------
    array (n_segments, 2)
        Onset and end of each, in s from the first sample of the recording.

    Raises
    ------
    DataError
        A file is faulty.
    """
    segments = [(note.onset, note.onset + note.duration) for note in notes if is_bad_label(note.label)]
    if layout.trial:
        for name, read in (('bad.segments', _segments_of_file), ('ClassFile.cls', _bad_trials)):
            path = layout.path / name
            if path.is_symlink() and not path.exists():
                raise DataError(f'{path}: a link to nothing; restore the file, or remove the link')
            segments += read(path, layout) if path.exists() else []
    return np.array(sorted(segments), dtype=np.float64).reshape(-1, 2)


def _segments_of_file(path, layout):
    """Read lines of trial, start and end in s from the trial's sync point."""
    # CTF counts these trials from 1. MNE reads all as the first trial's.
    number = r'[+-]?\d{1,9}(?:\.\d*)?(?:[eE][+-]?\d{1,2})?'
    rows = []
    for line in as_text(path.read_bytes()).splitlines():
        if not line.strip():
            continue
        match = re.fullmatch(rf'\s*\+?(\d{{1,9}})(?:\.0*)?\s+({number})\s+({number})\s*', line)
        if not match or float(match[2]) > float(match[3]):
            raise DataError(
                f'{path}: {line.strip()!r} is no trial number, start and end in seconds; write them as plain numbers '
                'with a decimal point'
            )
        rows.append((int(match[1]), float(match[2]), float(match[3])))
    n_samples, before_sync = layout.trial
    first_trial = min([1, *(trial for trial, _, _ in rows)])  # a file with a trial 0 counts from 0
    syncs = [((trial - first_trial) * n_samples + before_sync) / layout.sfreq for trial, _, _ in rows]
    return [(sync + start, sync + end) for sync, (_, start, end) in zip(syncs, rows, strict=True)]


def _bad_trials(path, layout):
    seconds = layout.trial[0] / layout.sfreq
    trials = {trial for name, numbers in read_class_file(path).items() if is_bad_label(name) for trial in numbers}
    return [(trial * seconds, (trial + 1) * seconds) for trial in trials]


def segments_in_block(segments: np.ndarray, layout: 'Layout', sfreq: float) -> list[list[int]]:
    """Find the samples of bad segments within a block.

    Segments that overlap in the block, or follow each other without a sample between them, are joined.

    Parameters
    ----------
    segments : array (n_segments, 2)
        Onset and end of each, in s from the first sample of the recording.
    layout : Layout
        Of the block.
    sfreq : float
        Sampling rate of the block, in Hz.

    Returns
    -------
    list of [first sample, end (excluded)]
        In samples of the block, in order.
    """
    lengths = layout.lengths(sfreq)
    spans = []
    for (start, _), length, offset in zip(layout.parts, lengths, np.cumsum(lengths) - lengths, strict=True):
        first, end = samples_of_segments(segments - start / layout.sfreq, sfreq)
        inside = (end > 0) & (first < length)
        bounds = np.clip(np.column_stack([first, end])[inside], 0, length) + offset
        spans += bounds.astype(np.int64).tolist()
    joined = []
    for first, end in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1][1] = max(end, joined[-1][1])
        else:
            joined.append([first, end])
    return joined


def samples_of_segments(segments: np.ndarray, sfreq: float) -> tuple[np.ndarray, np.ndarray]:
    """First samples and ends (excluded) of segments (n_segments, 2) in s, each of a sample at least."""
    first = np.floor(segments[:, 0] * sfreq + 1e-6)  # a time that equals a sample's up to rounding is that sample
    return first, np.maximum(np.ceil(segments[:, 1] * sfreq - 1e-6), first + 1)


def touches(first: np.ndarray, end: np.ndarray, segments: Sequence[Sequence[int]]) -> np.ndarray:
    """Whether samples lie in bad segments, in part at least.

    Parameters
    ----------
    first, end : int array (n,)
        Each range of samples, from `first` to `end` (excluded).
    segments : sequence of [first sample, end (excluded)]
        In the same samples.

    Returns
    -------
    bool array (n,)
        Whether the range shares a sample with any segment.
    """
    bounds = np.array(segments, dtype=np.int64).reshape(-1, 2)
    return np.any((first[:, None] < bounds[:, 1]) & (end[:, None] > bounds[:, 0]), axis=1)


def recorded_segments(record: dict, names: list[str]) -> list[list[list[int]]]:
    """Look up the bad segments of every block of a data_raw file in its record.

    Parameters
    ----------
    record : dict
        From `read_record`.
    names : list of str
        Of the blocks in the data_raw file.

    Returns
    -------
    list of lists of [first sample, end (excluded)]
        One entry per block. Blocks that are not in the record have no segment; `record_warnings` names them.
    """
    by_name = {recording['file']: recording.get('bad_segments', []) for recording in record.get('recordings', [])}
    return [by_name.get(name, []) for name in names]
