"""Recordings: opening them with MNE, and reading them as signals of CTF-275, resampled and filtered."""

import contextlib
import datetime
import functools
import math
import re
import struct
import tempfile
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np
import scipy.signal
from mne.io.constants import FIFF
from scipy.fft import next_fast_len
from scipy.spatial.transform import Rotation

from data_raw import N_CHANNELS, channel_names, ctf275_info
from marker_files import MARKER_FILE, as_text, read_marker_file
from utils import DataError, SettingError

LEAST_CTF = 200  # good channels of CTF-275 below which a recording is not taken for one (CTF-151 has 151)
LEAST_OTHER = 60  # good MEG channels of another system that can stand for 274
NOTCH_SECONDS = 6.6  # length of MNE's notch filters
LARGEST_MATRIX = 1_000_000  # numbers of a matrix that takes less time than filtering


# ------------------------------------------------------------------------------------------ recordings
class Layout(NamedTuple):
    """Where a block's samples lie in its recording. Times of a recording are seconds from its first sample, which is
    what MNE's browser shows, whatever `first_samp`.

    Attributes
    ----------
    path : Path
    sfreq : float
        Sampling rate of the recording, in Hz.
    parts : list of (start, stop)
        Continuous parts, in samples of the recording.
    trial : (int, int) or None
        CTF: samples per trial, and samples before its sync point, from which marker files count.
    first_time : float
        MNE's time of the first sample, in s from `meas_date`: FIF files can begin later than their clock.
    meas_date : datetime or None
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
        """Times in the recording of samples of the block at `sfreq` Hz."""
        samples = np.asarray(samples, dtype=np.float64)
        offsets = np.concatenate([[0], np.cumsum(self.lengths(sfreq))[:-1]])
        part = np.searchsorted(offsets, samples, side='right') - 1
        starts = np.array([start for start, _ in self.parts])
        return starts[part] / self.sfreq + (samples - offsets[part]) / sfreq

    def to_samples(self, seconds: np.ndarray, sfreq: float) -> np.ndarray:
        """Nearest samples of the block at `sfreq` Hz, in order, of times in the recording; those outside left out."""
        recorded = np.rint(np.asarray(seconds, dtype=np.float64) * self.sfreq)
        lengths = self.lengths(sfreq)
        found = []
        for (start, stop), length, offset in zip(self.parts, lengths, np.cumsum(lengths) - lengths, strict=True):
            inside = recorded[(start <= recorded) & (recorded < stop)] - start
            found.append(offset + np.minimum(np.rint(inside * sfreq / self.sfreq), length - 1))
        return np.sort(np.concatenate(found)).astype(np.int64)


class Note(NamedTuple):
    """An annotation of MNE: its label, and its onset (s from the recording's first sample) and duration in s."""

    label: str
    onset: float
    duration: float


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
    n_samples, n_channels, _, _, n_trials, before_sync = struct.unpack('>ihxxddhxxi', header[1288:])
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
    if markers is None and layout.trial and (layout.path / MARKER_FILE).exists():
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


# ---------------------------------------------------------------------------------------------- channels
def sphere_centre(info: mne.Info) -> np.ndarray:
    """Centre of the sphere nearest to the MEG sensors, in metres in head coordinates: about that of the head."""
    picks = mne.pick_types(info, meg=True, ref_meg=False, exclude=[])
    sensors = np.array([info['chs'][i]['loc'][:3] for i in picks])
    # |p|^2 = 2 p.c + constant
    system = np.column_stack([2 * sensors, np.ones(len(sensors))])
    centre = np.linalg.lstsq(system, (sensors**2).sum(axis=1))[0][:3]
    return mne.transforms.apply_trans(info['dev_head_t'], centre)


def plain_name(name: str) -> str:
    """A CTF channel's name without the suffix of its run."""
    return re.sub(r'^(M[LRZ][CFOPT][0-9]{2})-.*', r'\1', name)


def placed_info(chs: list[dict], dev_head_t: mne.Transform | None, sfreq: float) -> mne.Info:
    """`ctf275_info` with the channels where a recording's header puts them.

    Channels that the header lacks lie where the usual CTF-275 has them, moved as a whole to fit the others (in a real
    header, the others then lie 1.1 mm off on average).
    """
    info = ctf275_info(sfreq)
    found = {plain_name(ch['ch_name']): ch for ch in chs}
    usual = {ch['ch_name']: ch['loc'].reshape(4, 3).copy() for ch in info['chs']}
    placed = [
        name for name in usual if name in found and np.isfinite(found[name]['loc']).all() and found[name]['loc'].any()
    ]
    if len(placed) >= LEAST_CTF:
        there = np.array([found[name]['loc'][:3] for name in placed])
        here = np.array([usual[name][0] for name in placed])
        turn, _ = Rotation.align_vectors(there - there.mean(axis=0), here - here.mean(axis=0))
        for ch in info['chs']:
            if ch['ch_name'] in placed:
                ch['loc'] = found[ch['ch_name']]['loc'].copy()
            else:
                loc = turn.apply(usual[ch['ch_name']])
                loc[0] += there.mean(axis=0) - turn.apply(here.mean(axis=0))
                ch['loc'] = loc.ravel()
        if dev_head_t is not None:
            info['dev_head_t'] = dev_head_t
    return info


def interpolate_channels(signal: np.ndarray, info: mne.Info, names: list[str]) -> np.ndarray:
    """Replace channels by what the others say of them (MNE's minimum-norm interpolation); (274, n_samples), tesla."""
    if not names:
        return signal
    raw = mne.io.RawArray(signal, info.copy(), verbose='error')
    raw.info['bads'] = list(names)
    # 'fast' is twice as fast and gives the same to 1e-4.
    raw.interpolate_bads(origin=sphere_centre(info), mode='fast', verbose='error')
    return raw.get_data()


def map_to_ctf275(signal: np.ndarray, info: mne.Info, sfreq: float) -> tuple[np.ndarray, mne.Info]:
    """Map the good MEG channels of another system to CTF-275 with MNE's `interpolate_to`.

    Parameters
    ----------
    signal : array (n_channels, n_samples)
        In tesla (planar gradiometers: tesla per metre).
    info : mne.Info
        Of these channels; `bads` are left out.

    Returns
    -------
    signal : array (274, n_samples)
    info : mne.Info
        With the head where it was.
    """
    info = info.copy()
    with info._unlock():
        info.update(sfreq=sfreq, comps=[], lowpass=sfreq / 2, highpass=0.0)
        info['dev_head_t'] = info['dev_head_t'] or mne.Transform('meg', 'head')
    to = ctf275_info(sfreq)
    # Each system counts from another point of its helmet: let the centres of the helmets coincide.
    in_head = sphere_centre(info)
    shift = sphere_centre(to) - mne.transforms.apply_trans(np.linalg.inv(info['dev_head_t']['trans']), in_head)
    for ch in info['chs']:
        ch['loc'][:3] += shift
    trans = info['dev_head_t']['trans'].copy()
    trans[:3, 3] -= trans[:3, :3] @ shift
    info['dev_head_t'] = to['dev_head_t'] = mne.Transform('meg', 'head', trans)
    with mne.utils.use_log_level('error'):
        raw = mne.io.RawArray(signal, info).interpolate_to('ctf275', origin=in_head, mode='fast')
    rows = {plain_name(name): row for name, row in zip(raw.ch_names, raw.get_data(), strict=True)}
    absent = [name for name in to['ch_names'] if name not in rows]  # MNE's table lacks MLO42
    mapped = np.array([rows.get(name, np.zeros(signal.shape[1])) for name in to['ch_names']])
    return interpolate_channels(mapped, to, absent), to


# ---------------------------------------------------------------------------------------------- signals
def extend(signal: np.ndarray, before: int, after: int) -> np.ndarray:
    """Continue a signal (..., n_samples) beyond its ends by its mirror images.

    Against filtering what really went on, the error at the ends is half of that of the point reflections that MNE
    uses, and in a part shorter than its filter, which MNE continues with zeros, far less still.
    """
    n = signal.shape[-1]
    return signal[..., np.pad(np.arange(n), (before, after), mode='reflect' if n > 1 else 'edge')]


def filter_seconds(high_pass: float) -> float:
    """Length of MNE's high-pass filter: 3.3 / width of its transition band."""
    return 3.3 / min(max(0.25 * high_pass, 2), high_pass)


def resample(signal: np.ndarray, sfreq: float, new_sfreq: float) -> np.ndarray:
    """Resample (n_channels, n_samples) from `sfreq` to `new_sfreq` Hz; sample i stays at i / new_sfreq seconds."""
    # A whole number of periods of both rates, so that no sample drifts; 1200 to 150 Hz: 8 samples become 1.
    ratio = Fraction(sfreq / new_sfreq).limit_denominator(1000)
    down, up = ratio.numerator, ratio.denominator
    n = signal.shape[1]
    n_new = max(1, round(n * new_sfreq / sfreq))
    if down == up and n_new == n:
        return signal.copy()
    before = down * math.ceil(sfreq / down)  # 1 s at least
    total = down * next_fast_len(math.ceil((n + 2 * before) / down))
    resampled, kept = np.empty((len(signal), n_new)), np.arange(n_new)
    for rows in rows_at_a_time(len(signal), total):
        extended = extend(signal[rows], before, total - n - before)
        # The transform takes the end for a neighbour of the beginning: take out the line between them meanwhile.
        first, slope = extended[:, :1], (extended[:, -1:] - extended[:, :1]) / (total - 1)
        new = scipy.signal.resample(extended - first - slope * np.arange(total), total // down * up, axis=1)
        resampled[rows] = new[:, before // down * up + kept] + first + slope * (before + kept * down / up)
    return resampled


def rows_at_a_time(n_rows: int, n_samples: int) -> Iterator[slice]:
    """Cut the rows of an array into pieces of about 8 MB, or of one row, so that work on them takes little memory."""
    step = max(1, 2**20 // n_samples)
    return (slice(first, first + step) for first in range(0, n_rows, step))


@functools.lru_cache(1)
def impulse_response(*, sfreq: float, high_pass: float, low_pass: float, notch: tuple[float, ...] | None) -> np.ndarray:
    """What MNE's band-pass and notch filters make of a unit impulse in its middle: (2 * reach + 1,)."""
    band_pass = mne.filter.create_filter(None, sfreq, high_pass, low_pass, verbose='error')
    reach = len(band_pass) // 2
    if notch is None:
        return band_pass
    reach += math.ceil(NOTCH_SECONDS / 2 * sfreq) + 2  # MNE mirrors the ends, which must not matter
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
    """Resample and filter one continuous part, (n_channels, n_samples), without delay."""
    signal = resample(signal, raw_sfreq, sfreq)
    frequencies = None if notch is None else tuple(np.atleast_1d(notch).tolist())
    response = impulse_response(sfreq=sfreq, high_pass=high_pass, low_pass=low_pass, notch=frequencies)
    reach = len(response) // 2
    for rows in rows_at_a_time(len(signal), signal.shape[1] + len(response)):
        signal[rows] = scipy.signal.oaconvolve(extend(signal[rows], reach, reach), response[None], mode='valid', axes=1)
    return signal


def preprocess_parts(parts: Iterable[np.ndarray], lengths: list[int], **filters) -> Iterator[np.ndarray]:
    """Preprocess the continuous parts of a recording, each on its own.

    Short parts of one length share a matrix: what `preprocess`, which is linear, makes of each single sample.

    Parameters
    ----------
    parts : iterable of arrays (n_channels, n_samples)
    lengths : list of int
        Their n_samples.
    **filters
        As `preprocess` takes them.
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
    """
    if not high_pass < low_pass < sfreq / 2:
        raise SettingError(
            f'high_pass = {high_pass}, low_pass = {low_pass}: must rise, and stay below half of sfreq = {sfreq}'
        )
    for frequency in np.atleast_1d([] if notch is None else notch):
        if frequency > sfreq / 2 - 2:
            raise SettingError(f'notch = {notch}: must be 2 Hz or more below half of sfreq = {sfreq}; there is no more')


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
    return n_ctf >= LEAST_CTF


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
