"""Opening recordings with MNE: their continuous parts and their markers, before any sample is read."""

import contextlib
import math
import os
import struct
import tempfile
from collections.abc import Generator
from pathlib import Path

import mne
import numpy as np

from recordings.bids import EVENTS, read_events
from recordings.layout import Layout, Note
from recordings.marker_files import MARKER_FILE, read_marker_file
from utils import DataError

HIGHEST_RATE = 1e6  # Hz, which no recording reaches


@contextlib.contextmanager
def open_recording(path: str | Path) -> Generator[mne.io.BaseRaw]:
    """Open a recording with MNE, without reading its samples.

    Parameters
    ----------
    path : path
        CTF folder (.ds), BTi/4D folder or file, FIF file, or another that MNE reads.

    Yields
    ------
    mne.io.BaseRaw
        The recording, whose samples can be read within the block.

    Raises
    ------
    DataError
        Names the recording and what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f'{path}: no such recording; correct the path')
    with tempfile.TemporaryDirectory() as directory:
        try:
            raw = _open_with_mne(path, Path(directory))
        except DataError:
            raise
        except Exception as fault:  # a damaged file can raise anything at all
            raise DataError(f'{path}: MNE cannot read it ({type(fault).__name__}: {fault})') from fault
        yield raw


def _open_with_mne(path, directory):
    """Open a recording by the function of MNE for its system; `directory` is an empty folder."""
    if path.resolve().suffix == '.ds':
        check_ctf_files(path)
        # MNE hangs on a faulty marker file or a pipe, and stops at an unknown bad channel: show it the others.
        links = directory / path.resolve().name
        links.mkdir()
        for file in path.resolve().iterdir():
            if file.is_file() and file.name not in (MARKER_FILE, 'BadChannels', 'bad.segments'):
                (links / file.name).symlink_to(file)
        return mne.io.read_raw_ctf(links, verbose='error')
    if path.is_dir() or path.name.startswith('c,rf'):
        pdf = next(path.glob('c,rf*'), None) if path.is_dir() else path
        if pdf is None:
            inside = sorted([*path.glob('*.ds'), *path.glob('*.fif'), *path.glob('*/c,rf*')])
            hint = f'name the recordings in it, such as {inside[0]}' if inside else 'correct the path'
            raise DataError(f'{path}: a folder that is no recording (CTF: .ds; BTi: with a file c,rf...); {hint}')
        head_shape = 'hs_file' if (pdf.parent / 'hs_file').exists() else None
        return mne.io.read_raw_bti(pdf, head_shape_fname=head_shape, verbose='error')
    if not path.is_file():
        raise DataError(f'{path}: is neither a file nor a folder; correct the path')
    return mne.io.read_raw(path, verbose='error')


def ctf_header(path: Path) -> tuple[int, int, int, int]:
    """Read the sizes of a CTF recording from the .res4 file of its .ds folder.

    Returns
    -------
    n_samples, n_channels, n_trials, before_sync : int
        Samples per trial, channels, trials, and samples before the sync point of a trial.

    Raises
    ------
    DataError
        The file is cut off, or its numbers cannot be.
    """
    with (path / f'{path.resolve().stem}.res4').open('rb') as stream:
        header = stream.read(1320)
    if len(header) < 1320:
        raise DataError(f'{path}: its .res4 file is cut off; copy the folder again')
    n_samples, n_channels, rate, _, n_trials, before_sync = struct.unpack('>ihxxddhxxi', header[1288:])
    if min(n_samples, n_channels, n_trials) < 1 or not 0 < rate <= HIGHEST_RATE:
        raise DataError(
            f'{path}: its .res4 file says {n_trials} trials of {n_samples} samples, {n_channels} channels and {rate:g} '
            'Hz; copy the folder again'
        )
    return n_samples, n_channels, n_trials, before_sync


def check_ctf_files(path: Path) -> None:
    """Check that a .ds folder holds its header and as many samples as the header says.

    Raises
    ------
    DataError
        A file is absent or cut off.
    """
    if not path.is_dir():
        raise DataError(f'{path}: is no folder, as CTF recordings are; correct the path')
    stem = path.resolve().stem
    for suffix in ('res4', 'meg4'):
        if not (path / f'{stem}.{suffix}').is_file():
            raise DataError(f'{path}: holds no {stem}.{suffix}; copy the whole folder, under its own name')
    n_samples, n_channels, n_trials, _ = ctf_header(path)
    # A long recording goes on in .1_meg4, .2_meg4 and so on; each begins with a word of 8 bytes.
    n_bytes = sum(file.stat().st_size - 8 for file in [path / f'{stem}.meg4', *path.glob(f'{stem}.*_meg4')])
    expected = 4 * n_samples * n_channels * n_trials
    if n_bytes < expected:
        raise DataError(
            f'{path}: its .meg4 is cut off: {n_bytes} of {expected} bytes of {n_trials} trials; copy the folder again'
        )


def read_layout(raw: mne.io.BaseRaw, path: str | Path) -> Layout:
    """Find the continuous parts of an opened recording.

    The trials of a CTF recording are joined where the system clock runs on, and cut where it jumps or is absent; other
    recordings are cut where MNE marks skipped samples (BAD_ACQ_SKIP) or a joint (EDGE boundary).

    Returns
    -------
    Layout
        Of all the recording.
    """
    path, n = Path(path), len(raw.times)
    sfreq = raw.info['sfreq']
    recorded = np.ones(n, dtype=bool)
    begins_part = np.zeros(n, dtype=bool)
    begins_part[:1] = True
    trial = None
    if path.resolve().suffix == '.ds':
        n_samples, _, _, before_sync = ctf_header(path)
        trial = (n_samples, before_sync)
        clock = [name for name in raw.ch_names if name.startswith('SCLK01')]
        for start in range(n_samples, n, n_samples):
            step = np.diff(raw[clock[0], start - 1 : start + 1][0][0])[0] if clock else math.nan
            begins_part[start] = not abs(step * sfreq - 1) < 0.5
    for note in raw.annotations:
        start = max(0, round((note['onset'] - raw.first_time) * sfreq))
        kind = note['description'].lower()
        if kind.startswith('bad_acq_skip'):
            recorded[start : start + round(note['duration'] * sfreq)] = False
        elif kind.startswith('edge') and start < n:
            begins_part[start] = True
    previous_recorded = np.concatenate([[False], recorded[:-1]])
    starts = np.flatnonzero(recorded & (begins_part | ~previous_recorded))
    ends = np.flatnonzero(recorded & np.concatenate([begins_part[1:] | ~recorded[1:], [True]])) + 1
    parts = list(zip(starts.tolist(), ends.tolist(), strict=True))
    return Layout(path, sfreq, parts, trial, raw.first_time, raw.info['meas_date'])


def read_annotations(raw: mne.io.BaseRaw, layout: Layout, markers: str | Path | None = None) -> dict[str, np.ndarray]:
    """Read the markers of an opened recording.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        From `open_recording`.
    layout : Layout
        Of all the recording.
    markers : path, optional
        A CTF marker file, MNE annotations (-annot.fif) or events of BIDS (_events.tsv) to read instead of the
        recording's own.

    Returns
    -------
    dict of float arrays (n_markers,)
        Label to times, in s from the first sample of the recording.

    Raises
    ------
    DataError
        A file of markers is faulty, or belongs to another kind of recording.
    """
    if markers is None and layout.trial and os.path.lexists(layout.path / MARKER_FILE):
        markers = layout.path / MARKER_FILE
    if markers is not None and Path(markers).suffix == '.mrk':
        if layout.trial is None:
            raise DataError(f'{markers}: a CTF marker file, but {layout.path} is no CTF recording')
        n_samples, before_sync = layout.trial
        times = {}
        for marker_class in read_marker_file(markers)[1]:
            seconds = [(trial * n_samples + before_sync) / layout.sfreq + time for trial, time in marker_class.markers]
            times[marker_class.name] = np.concatenate([times.get(marker_class.name, []), seconds])
        return times
    notes = read_notes(raw, layout, markers)
    return {
        label: np.array([note.onset for note in notes if note.label == label])
        for label in dict.fromkeys(note.label for note in notes)
    }


def read_notes(raw: mne.io.BaseRaw, layout: Layout, path: str | Path | None = None) -> list[Note]:
    """Read annotations of MNE, those outside of the recorded samples too, which MNE leaves out of `raw.annotations`.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        From `open_recording`.
    layout : Layout
        Of all the recording.
    path : path, optional
        A file of annotations (-annot.fif, or _events.tsv of BIDS) to read instead of the recording's own.

    Returns
    -------
    list of Note

    Raises
    ------
    DataError
        The file cannot be read, or has a date that the recording lacks.
    """
    if path is not None and Path(path).name.endswith(EVENTS):
        return read_events(path)
    if path is not None:
        try:
            with mne.utils.use_log_level('error'):
                notes = mne.read_annotations(path)
        except Exception as fault:
            raise DataError(f'{path}: MNE cannot read it ({type(fault).__name__}: {fault})') from fault
        first_time = 0.0  # without a date, they count from the first sample
    else:
        notes, first_time = raw.annotations, layout.first_time
        [file, *_] = raw.filenames
        if file is not None and Path(file).name.endswith(('.fif', '.fif.gz')):
            with contextlib.suppress(OSError):  # there are none in the file
                notes = mne.read_annotations(file)
    if notes.orig_time is not None:
        if layout.meas_date is None:
            raise DataError(f'{path}: its annotations have a date, but {layout.path} has none; take those made for it')
        first_time = layout.first_time + (layout.meas_date - notes.orig_time).total_seconds()
    durations = np.nan_to_num(notes.duration)
    return [
        Note(str(label), float(onset) - first_time, float(duration), extras)
        for label, onset, duration, extras in zip(notes.description, notes.onset, durations, notes.extras, strict=True)
    ]
