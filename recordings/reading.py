"""Opening recordings with MNE, and reading them as signals of CTF-275, resampled and filtered."""

import contextlib
import math
import os
import struct
import tempfile
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np
from mne.io.constants import FIFF

from recordings.channels import (
    LEAST_CTF,
    LEAST_OTHER,
    N_CHANNELS,
    channel_names,
    has_position,
    interpolate_channels,
    map_to_ctf275,
    placed_info,
    plain_name,
)
from recordings.filters import preprocess_parts
from recordings.layout import Layout, Note
from recordings.marker_files import MARKER_FILE, as_text, read_marker_file
from utils import DataError, SettingError

HELMET = (0.01, 0.6)  # m, least and largest span of a system's sensors in each direction
HIGHEST_RATE = 1e6  # Hz, which no recording reaches


class Recording(NamedTuple):
    """A block, ready for the windows.

    Attributes
    ----------
    name : str
        As in `file` of data_raw.
    meg : array (274, n_samples), float32
        In tesla, at the rate asked for, channels in the order of `ctf275_info`.
    layout : Layout
    info : mne.Info
        The 274 channels where they were in this recording, and where the head was.
    facts : dict
        What was found and done, for the report: system, compensation, interpolated channels, ...
    raw_spans : dict of arrays (n_parts,)
        Maximum - minimum, before any filter, of every good channel in each continuous part of the whole recording
        that has two samples or more.
    """

    name: str
    meg: np.ndarray
    layout: Layout
    info: mne.Info
    facts: dict
    raw_spans: dict[str, np.ndarray] = types.MappingProxyType({})


@contextlib.contextmanager
def open_recording(path: str | Path) -> Iterator[mne.io.BaseRaw]:
    """Open a recording with MNE, samples unread.

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
            if path.resolve().suffix == '.ds':
                check_ctf_files(path)
                # MNE hangs on a faulty marker file and stops at an unknown bad channel: show it the other files only.
                links = Path(directory) / path.resolve().name
                links.mkdir()
                for file in path.resolve().iterdir():
                    if file.name not in (MARKER_FILE, 'BadChannels', 'bad.segments'):
                        (links / file.name).symlink_to(file)
                raw = mne.io.read_raw_ctf(links, verbose='error')
            elif path.is_dir() or path.name.startswith('c,rf'):
                pdf = next(path.glob('c,rf*'), path) if path.is_dir() else path
                head_shape = 'hs_file' if (pdf.parent / 'hs_file').exists() else None
                raw = mne.io.read_raw_bti(pdf, head_shape_fname=head_shape, verbose='error')
            else:
                raw = mne.io.read_raw(path, verbose='error')
        except DataError:
            raise
        except Exception as fault:  # a damaged file can raise anything at all
            raise DataError(f'{path}: MNE cannot read it ({type(fault).__name__}: {fault})') from fault
        yield raw


def ctf_header(path: Path) -> tuple[int, int, int, int]:
    """Samples per trial, channels, trials, and samples before the sync point, from the .res4 file of a .ds folder."""
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
    """Check that a .ds folder holds its header and as many samples as the header says."""
    if not path.is_dir():
        raise DataError(f'{path}: is no folder, as CTF recordings are; correct the path')
    stem = path.resolve().stem
    for suffix in ('res4', 'meg4'):
        if not (path / f'{stem}.{suffix}').is_file():
            raise DataError(f'{path}: holds no {stem}.{suffix}; copy the whole folder, under its own name')
    n_samples, n_channels, n_trials, _ = ctf_header(path)
    # A long recording goes on in .1_meg4, .2_meg4 and so on; each begins with a word of 8 bytes.
    held = sum(file.stat().st_size - 8 for file in [path / f'{stem}.meg4', *path.glob(f'{stem}.*_meg4')])
    expected = 4 * n_samples * n_channels * n_trials
    if held < expected:
        raise DataError(
            f'{path}: its .meg4 is cut off: {held} of {expected} bytes of {n_trials} trials; copy the folder again'
        )


def read_layout(raw: mne.io.BaseRaw, path: str | Path) -> Layout:
    """Find the continuous parts of an opened recording.

    The trials of a CTF recording are joined where the system clock runs on, and cut where it jumps or is absent; other
    recordings are cut where MNE marks skipped samples (BAD_ACQ_SKIP) or a joint (EDGE boundary).
    """
    path, n = Path(path), len(raw.times)
    sfreq = raw.info['sfreq']
    recorded = np.ones(n, dtype=bool)
    first = np.zeros(n, dtype=bool)  # first samples of continuous parts
    first[:1] = True
    trial = None
    if path.resolve().suffix == '.ds':
        n_samples, _, _, before_sync = ctf_header(path)
        trial = (n_samples, before_sync)
        clock = [name for name in raw.ch_names if name.startswith('SCLK01')]
        for start in range(n_samples, n, n_samples):
            step = np.diff(raw[clock[0], start - 1 : start + 1][0][0])[0] if clock else math.nan
            first[start] = not abs(step * sfreq - 1) < 0.5
    for note in raw.annotations:
        start = max(0, round((note['onset'] - raw.first_time) * sfreq))
        kind = note['description'].lower()
        if kind.startswith('bad_acq_skip'):
            recorded[start : start + round(note['duration'] * sfreq)] = False
        elif kind.startswith('edge') and start < n:
            first[start] = True
    before = np.concatenate([[False], recorded[:-1]])
    starts = np.flatnonzero(recorded & (first | ~before))
    ends = np.flatnonzero(recorded & np.concatenate([first[1:] | ~recorded[1:], [True]])) + 1
    parts = list(zip(starts.tolist(), ends.tolist(), strict=True))
    return Layout(path, sfreq, parts, trial, raw.first_time, raw.info['meas_date'])


def read_annotations(raw: mne.io.BaseRaw, layout: Layout, markers: str | Path | None = None) -> dict[str, np.ndarray]:
    """Read the markers of an opened recording: label to times in seconds from its first sample.

    Parameters
    ----------
    markers : path, optional
        A CTF marker file or MNE annotations (-annot.fif) to read instead of the recording's own.
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
    path : path, optional
        A file of annotations (-annot.fif) to read instead of the recording's own.
    """
    if path is not None:
        try:
            with mne.utils.use_log_level('error'):
                notes = mne.read_annotations(path)
        except Exception as fault:
            raise DataError(f'{path}: MNE cannot read it ({type(fault).__name__}: {fault})') from fault
        first_time = 0.0  # without a date, they count from the first sample
    else:
        notes, first_time = raw.annotations, layout.first_time
        if Path(raw.filenames[0]).name.endswith(('.fif', '.fif.gz')):
            with contextlib.suppress(OSError):  # there are none in the file
                notes = mne.read_annotations(raw.filenames[0])
    if notes.orig_time is not None:
        if layout.meas_date is None:
            raise DataError(f'{path}: its annotations have a date, but {layout.path} has none; take those made for it')
        first_time = layout.first_time + (layout.meas_date - notes.orig_time).total_seconds()
    durations = np.nan_to_num(notes.duration)
    return [
        Note(str(label), float(onset) - first_time, float(duration))
        for label, onset, duration in zip(notes.description, notes.onset, durations, strict=True)
    ]


def check_recording(raw: mne.io.BaseRaw, path: Path, *, low_pass: float, bad_channels: list[str]) -> bool:
    """Check an opened recording's channels and rate; return whether it is from a CTF-275.

    Raises
    ------
    DataError, SettingError
    """
    check_units(raw, path)
    picks = mne.pick_types(raw.info, meg=True, ref_meg=False, exclude=[])
    if not len(picks):
        raise DataError(f'{path}: no MEG channels in it')
    if not raw.info['sfreq'] <= HIGHEST_RATE:
        raise DataError(f'{path}: sampled at {raw.info["sfreq"]:g} Hz: its header is damaged; copy the recording again')
    if raw.info['sfreq'] < 2 * low_pass:
        raise DataError(
            f'{path}: sampled at {raw.info["sfreq"]:g} Hz, below the {2 * low_pass:g} Hz that low_pass = {low_pass:g} '
            'needs; leave out this recording'
        )
    known = set(raw.ch_names) | set(channel_names()) | {'MRP52'}
    for name in bad_channels:
        if name not in known and plain_name(name) not in known:
            raise SettingError(f'bad_channels: {path} has no channel {name!r}; correct the name')
    bad = bad_names(raw, path, bad_channels)
    good = {plain_name(raw.ch_names[i]) for i in picks if plain_name(raw.ch_names[i]) not in bad}
    n_ctf = len(good & set(channel_names()))
    if n_ctf < LEAST_CTF and len(good) < LEAST_OTHER:
        raise DataError(f'{path}: only {len(good)} good MEG channels; at least {LEAST_OTHER} are needed')
    if n_ctf < LEAST_CTF:
        check_positions([raw.info['chs'][i] for i in picks if plain_name(raw.ch_names[i]) in good], path)
    return n_ctf >= LEAST_CTF


def check_positions(chs: list[dict], path: Path) -> None:
    """Check that the header of another system says where its sensors are, without which they cannot be mapped.

    Raises
    ------
    DataError
    """
    nowhere = [ch['ch_name'] for ch in chs if not has_position(ch)]
    if nowhere:
        raise DataError(
            f'{path}: does not say where {len(nowhere)} of its {len(chs)} sensors are, such as {nowhere[0]}; export it '
            'with the positions of its sensors, or name these in bad_channels'
        )
    spans = np.ptp([ch['loc'][:3] for ch in chs], axis=0)
    if spans.min() < HELMET[0] or spans.max() > HELMET[1]:
        raise DataError(
            f'{path}: its sensors span {" x ".join(f"{span:.2g}" for span in spans)} m, which is no helmet; export it '
            'with the positions of its sensors, in metres'
        )


def check_units(raw: mne.io.BaseRaw, path: Path) -> None:
    """Refuse a recording with MEG channels that are neither in tesla nor in tesla per metre.

    Raises
    ------
    DataError
    """
    known = (FIFF.FIFF_UNIT_T, FIFF.FIFF_UNIT_T_M)
    other = [ch for ch in raw.info['chs'] if ch['kind'] == FIFF.FIFFV_MEG_CH and ch['unit'] not in known]
    if other:
        raise DataError(
            f'{path}: {len(other)} MEG channels, such as {other[0]["ch_name"]}, are not in tesla, but in the unit '
            f'{other[0]["unit"]}; export the recording in tesla'
        )


def bad_names(raw: mne.io.BaseRaw, path: Path, bad_channels: list[str]) -> set[str]:
    """Bad channels without suffix: those of the setting, of `info['bads']`, and of a CTF recording's BadChannels."""
    names = [*raw.info['bads'], *bad_channels]
    if (path / 'BadChannels').is_file():
        names += as_text((path / 'BadChannels').read_bytes()).split()
    return {plain_name(name) for name in names}


def block_layouts(path: Path, layout: Layout, trials: str) -> dict[str, Layout]:
    """Name in `file` to layout: one block per recording, or with `trials = 'apart'` one per continuous part."""
    name = path.resolve().name
    if trials == 'join' or len(layout.parts) == 1:
        return {name: layout}
    return {f'{name} [{i + 1}]': layout._replace(parts=[part]) for i, part in enumerate(layout.parts)}


def read_recording(
    path: str | Path,
    *,
    sfreq: float,
    high_pass: float,
    low_pass: float,
    notch: float | list[float] | None,
    bad_channels: list[str],
    trials: str,
) -> list[Recording]:
    """Read a recording and preprocess it, for training and for detection alike.

    Parameters
    ----------
    path : path
        CTF folder, FIF file, or another that MNE reads.
    sfreq, high_pass, low_pass, notch, bad_channels, trials
        The settings of these names.

    Returns
    -------
    list of Recording
        One block; with `trials = 'apart'`, one per continuous part.

    Raises
    ------
    DataError, SettingError
    """
    path = Path(path)
    filters = {'sfreq': sfreq, 'high_pass': high_pass, 'low_pass': low_pass, 'notch': notch}
    with open_recording(path) as raw:
        is_ctf275 = check_recording(raw, path, low_pass=low_pass, bad_channels=bad_channels)
        layout = read_layout(raw, path)
        source = mne.pick_info(raw.info, mne.pick_types(raw.info, meg=True, ref_meg=False, exclude=[]), verbose='error')
        names = [plain_name(name) for name in source['ch_names']]
        bad = [name for name in names if name in bad_names(raw, path, bad_channels)]
        source['bads'] = [ch for ch, name in zip(source['ch_names'], names, strict=True) if name in bad]
        spans = []
        parts = noting_spans((read_part(raw, path, source, start, stop) for start, stop in layout.parts), spans)
        lengths = [stop - start for start, stop in layout.parts]
        signals = list(preprocess_parts(parts, lengths, raw_sfreq=layout.sfreq, **filters))
        compensation = raw.compensation_grade
    raw_spans = {
        name: np.array(spans_of_channel)
        for name, *spans_of_channel in zip(names, *spans, strict=True)
        if name not in bad and (not is_ctf275 or name in channel_names())
    }

    signal = np.hstack(signals)
    if is_ctf275:
        info = placed_info(source['chs'], source['dev_head_t'], sfreq)
        bad = [channel for channel in info['ch_names'] if channel not in names or channel in bad]
        full = np.zeros((N_CHANNELS, signal.shape[1]))
        for row, channel in enumerate(info['ch_names']):
            if channel not in bad:
                full[row] = signal[names.index(channel)]
        meg = interpolate_channels(full, info, bad)
    else:
        meg, info = map_to_ctf275(signal, source, sfreq)
    layouts = block_layouts(path, layout, trials)
    ends = np.cumsum([block_layout.lengths(sfreq).sum() for block_layout in layouts.values()])
    block_signals = np.split(meg.astype(np.float32), ends[:-1], axis=1)
    blocks = []
    for (name, block_layout), block_signal in zip(layouts.items(), block_signals, strict=True):
        lengths = np.diff(block_layout.parts) / layout.sfreq
        facts = {
            'file': name,
            'seconds': float(lengths.sum()),
            'sampling_rate': layout.sfreq,
            'continuous_parts': len(lengths),
            'shortest_part': float(lengths.min()),
            'system': 'CTF-275' if is_ctf275 else f'{len(names)} channels of another system, mapped to CTF-275',
            'compensation': compensation,
            'interpolated': bad if is_ctf275 else [],
            'left_out': [] if is_ctf275 else bad,
        }
        blocks.append(Recording(name, block_signal, block_layout, info, facts, raw_spans))
    return blocks


def noting_spans(parts: Iterable[np.ndarray], spans: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Hand on parts (n_channels, n_samples), and note maximum - minimum of every channel in those of two samples on."""
    for part in parts:
        if part.shape[1] > 1:
            spans.append(np.ptp(part, axis=1))
        yield part


def read_part(raw: mne.io.BaseRaw, path: Path, source: mne.Info, start: int, stop: int) -> np.ndarray:
    """Samples `start` to `stop` of the channels of `source`, in tesla; a bad channel that is not finite becomes 0."""
    try:
        signal = raw.get_data(picks=source['ch_names'], start=start, stop=stop, verbose='error')
    except Exception as fault:  # a damaged file can raise anything at all
        raise DataError(f'{path}: MNE cannot read its samples ({type(fault).__name__}: {fault})') from fault
    for row, name in zip(signal, source['ch_names'], strict=True):
        if not np.isfinite(row.sum()):
            if name not in source['bads']:
                raise DataError(f'{path}: {name} holds NaN or infinity; name it in bad_channels')
            row[:] = 0
    return signal
