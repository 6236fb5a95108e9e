"""From data_raw_NNN.pkl to windows: reading and checking recordings, choosing blocks, cutting and scaling windows."""

import contextlib
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import BinaryIO, NamedTuple

import mne
import numpy as np
import pandas as pd
from tqdm import tqdm

from pickles import read_pickle
from utils import DataError, SettingError

N_CHANNELS = 274  # CTF-275 without MRP52
AT_A_TIME = 4  # windows in memory before they are written: they stay in the processor's cache
KEYS = ('meg', 'events', 'reannot', 'file')
LABEL_FILES = ('labels', 'blocks', 'timing', 'labels_t')
# What follows the stem in the names of a patient's files, in the order in which they get these names.
WINDOW_FILES = (*(f'{name}.pkl' for name in LABEL_FILES), 'settings.json', 'windows_bi')
WINDOWS_VERSION = 1  # raised when the same settings and input come to give other windows
TESLA = (1e-14, 1e-8)  # what a channel of brain signal can span, maximum - minimum; usual are 1e-12 to 1e-10


class WindowShape(NamedTuple):
    """The lengths of a window, in samples.

    Attributes
    ----------
    n_times : int
        Length of a window (T).
    border : int
        Outer part on either side in which no spike is labelled.
    half_pulse : int
        Largest distance of a marked sample from its spike (h).
    """

    n_times: int
    border: int
    half_pulse: int

    @property
    def hop(self) -> int:
        """Distance between the starts of neighbouring windows, which is the length of the inner part."""
        return self.n_times - 2 * self.border


def window_shape(
    *, window_size: float, spike_spacing_from_border: float, pulse_width: float, sfreq: float
) -> WindowShape:
    """Turn durations in seconds into a `WindowShape` in samples at `sfreq` Hz.

    Raises
    ------
    SettingError
        The two borders leave nothing of the window.
    """
    shape = WindowShape(
        round(window_size * sfreq), round(spike_spacing_from_border * sfreq), round(pulse_width / 2 * sfreq)
    )
    if shape.hop <= 0:
        raise SettingError(
            f'spike_spacing_from_border = {spike_spacing_from_border} leaves nothing of window_size = {window_size}: '
            'make it less than half of window_size'
        )
    return shape


def ctf275_info(sfreq: float) -> mne.Info:
    """Describe the 274 channels (CTF-275 without MRP52) of a recording, in CTF order.

    Parameters
    ----------
    sfreq : float
        Sampling frequency, in Hz.

    Returns
    -------
    info : mne.Info
        Channel names without run suffix, positions in metres in device coordinates (x to the right, y to the front,
        z up), no compensation. The device and head coordinates coincide.
    """
    canonical = mne.channels.read_meg_canonical_info('ctf275')
    channels = {channel['ch_name'].split('-')[0]: channel for channel in canonical['chs']}
    del channels['MRP52']
    # MNE's table lacks MLO42: reflect its right-hand twin in the plane x = 0. `loc` holds the position, then the axes
    # ex, ey and ez (the coil's normal); a reflected frame is left-handed, so ey is turned round.
    loc = channels['MRO42']['loc'].reshape(4, 3) * [-1, 1, 1]
    loc[2] *= -1
    channels['MLO42'] = dict(channels['MRO42'], loc=loc.ravel())
    names = sorted(channels)
    info = mne.create_info(names, sfreq, 'mag')
    for channel, name in zip(info['chs'], names, strict=True):
        channel.update({key: channels[name][key] for key in ('loc', 'coil_type', 'coord_frame', 'unit')})
    info['dev_head_t'] = mne.Transform('meg', 'head')
    return info


@functools.cache
def channel_names() -> list[str]:
    """Names of the 274 channels of every block and window, in order."""
    return ctf275_info(150.0)['ch_names']


# -------------------------------------------------------------------------------------------- data_raw
def chosen_patients(files: dict[int, Path], patient: int | list[int] | bool, directory: str | Path) -> dict[int, Path]:
    """Keep the files of the patients asked for (a number, a list, or False for all), in order of their numbers.

    Raises
    ------
    DataError
        A patient that was asked for has no file.
    """
    if patient is False:
        return dict(sorted(files.items()))
    numbers = [patient] if isinstance(patient, int) else patient
    for number in numbers:
        if number not in files:
            raise DataError(f'{directory}: no file of patient {number} (setting patient); found {sorted(files)}')
    return {number: files[number] for number in sorted(set(numbers))}


def find_data_raw(directory: str | Path, patient: int | list[int] | bool = False) -> dict[int, Path]:
    """Find data_raw_NNN.pkl in a directory: patient number to path.

    Raises
    ------
    DataError
        No such directory, no such file in it, two files of one patient, or a patient asked for is not there.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f'{directory}: no such directory (setting path_raw_data)')
    files = {}
    for path in sorted(directory.iterdir()):
        name = re.fullmatch(r'data_raw_(\d+)\.pkl', path.name)
        if name and files.setdefault(int(name[1]), path) != path:
            raise DataError(f'{path}: a second file of patient {int(name[1])} beside {files[int(name[1])].name}')
    if not files:
        raise DataError(f'{directory}: no data_raw_NNN.pkl in it (setting path_raw_data)')
    return chosen_patients(files, patient, directory)


def read_data_raw(path: str | Path) -> dict[str, list]:
    """Read and check the recordings of a patient.

    Parameters
    ----------
    path : path
        A pickled dict, or pandas DataFrame, of equally long lists, one entry per block.

    Returns
    -------
    dict
        `meg`: arrays (274, n_samples), tesla, as they were stored; `events`, `reannot`: float arrays of spike
        times, in samples of the block; `file`: names.

    Raises
    ------
    DataError
        Names the file, the block and the fault.
    """
    data = read_pickle(path)
    if isinstance(data, pd.DataFrame):
        try:
            data = {key: list(data[key]) for key in KEYS if key in data.columns}
        except Exception as fault:  # a damaged frame can raise anything at all
            raise DataError(f'{path}: a damaged DataFrame ({type(fault).__name__}); make it again') from fault
    if not isinstance(data, dict):
        raise DataError(f'{path}: holds a {type(data).__name__}, not a dict or DataFrame with {", ".join(KEYS)}')
    for key in KEYS:
        if key not in data:
            raise DataError(f'{path}: the key {key!r} is missing; it must hold {", ".join(KEYS)}')
    lengths = {key: _length(path, key, data[key]) for key in KEYS}
    if len(set(lengths.values())) > 1:
        counts = ', '.join(f'{key} {n}' for key, n in lengths.items())
        raise DataError(f'{path}: lists of unequal length ({counts}); each needs one entry per block')
    if lengths['meg'] == 0:
        raise DataError(f'{path}: no block in it; leave out this patient, or make the file again')
    signals = list(data.pop('meg'))
    for block in range(len(signals)):
        signals[block] = _checked_signal(path, block, signals[block])  # lists take more memory than arrays: let go
    _check_channels(path, signals)
    spikes = {
        key: [_checked_spikes(path, key, i, times, signals[i].shape[1]) for i, times in enumerate(data[key])]
        for key in ('events', 'reannot')
    }
    for block, name in enumerate(data['file']):
        if isinstance(name, list | tuple | dict | set | np.ndarray):
            raise DataError(f'{path}: block {block}: file holds a {type(name).__name__}, not the name of a recording')
    return {'meg': signals, **spikes, 'file': [str(name) for name in data['file']]}


def _length(path, key, entries):
    if not isinstance(entries, list | tuple | np.ndarray | pd.Series) or getattr(entries, 'ndim', 1) == 0:
        raise DataError(f'{path}: {key!r} is a {type(entries).__name__}, not a list with one entry per block')
    if len(entries) > 9999:
        raise DataError(f'{path}: {key!r} has {len(entries)} entries; it needs one per block')
    return len(entries)


def as_numbers(values: np.ndarray | list, n_dims: int) -> np.ndarray:
    """Turn a list (of lists) of numbers into an array of 1 or 2 dimensions; an array stays as it is.

    Lists are read level by level. NumPy alone would follow any nesting, and a few bytes of a pickle can nest a list
    into more numbers than any memory holds.

    Raises
    ------
    ValueError
        Says what else it is.
    """
    if isinstance(values, pd.DataFrame | pd.Series):
        try:
            values = values.to_numpy()
        except Exception as fault:  # a damaged frame can raise anything at all
            raise ValueError(f'a damaged {type(values).__name__}') from fault
    if isinstance(values, list | tuple):
        if n_dims == 1:
            try:
                return np.fromiter(values, np.float64, len(values))
            except (TypeError, ValueError, OverflowError) as fault:
                raise ValueError('not numbers') from fault
        if len({len(row) if hasattr(row, '__len__') else 1 for row in values}) > 1:
            raise ValueError('rows of unequal length')
        if len({id(row) for row in values}) < len(values):
            raise ValueError('the same list several times')
        return np.stack([as_numbers(row, 1) for row in values]) if values else np.empty((0, 0))
    if not isinstance(values, np.ndarray):
        raise ValueError(f'a {type(values).__name__}')
    if values.dtype.kind not in 'biuf' or values.ndim != n_dims:
        raise ValueError(f'{values.dtype} of {values.ndim} dimensions')
    return values


def _checked_signal(path, block, signal):
    where = f'{path}: block {block}'
    try:
        signal = as_numbers(signal, 2)
    except ValueError as fault:
        raise DataError(f'{where}: meg holds {fault}; it must be numbers of channels x samples') from fault
    if signal.shape[1] == 0:
        raise DataError(f'{where}: no sample in it; leave out that block')
    if not np.isfinite(channel_extremes(signal)).all():
        raise DataError(
            f'{where}: {np.count_nonzero(~np.isfinite(signal))} samples are NaN or infinite; '
            'interpolate or leave out that block'
        )
    return signal


def _check_channels(path, signals):
    counts = [len(meg) for meg in signals]
    for block, meg in enumerate(signals):
        n_channels, n_samples = meg.shape
        if n_channels == N_CHANNELS:
            continue
        needed = f'not {N_CHANNELS} (CTF-275 without MRP52)'
        if n_samples == N_CHANNELS:
            needed += ' (it looks transposed)'
        elif N_CHANNELS in counts:
            needed += f' as block {counts.index(N_CHANNELS)}: interpolate the missing ones, or leave out that block'
        else:
            needed += ': make the file again with these channels'
        raise DataError(f'{path}: block {block}: {n_channels} channels, {needed}')


def _checked_spikes(path, key, block, times, n_samples):
    where = f'{path}: block {block}: {key}'
    try:
        times = as_numbers([] if times is None else times, 1).astype(np.float64)
    except ValueError as fault:
        raise DataError(f'{where} hold {fault}; they must be a list of samples of the block') from fault
    outside = ~((times >= 0) & (times < n_samples))
    if outside.any():
        raise DataError(
            f'{where} hold {times[outside][0]:g}, outside the block of {n_samples} samples; '
            'they must be counted from the start of the block'
        )
    return times


def content_warnings(data: dict[str, list], sfreq: float) -> list[str]:
    """What is odd about the content of a data_raw file, though it can be used, and what to do about it.

    Parameters
    ----------
    data : dict
        From `read_data_raw`.
    sfreq : float
        Sampling rate, in Hz.
    """
    found = {}  # advice to blocks

    def warn(advice, block, detail=''):
        found.setdefault(advice, []).append(f'{block}{detail}')

    spans = []
    for block, meg in enumerate(data['meg']):
        span = np.diff(channel_extremes(meg).astype(np.float64))[:, 0]
        spans.append(np.median(span))
        flat = [channel_names()[channel] for channel in np.flatnonzero(span == 0)]
        if flat:
            names = ', '.join(flat[:5]) + f' and {len(flat) - 5} more' * (len(flat) > 5)
            warn('flat channels; interpolate them, or leave out that block', block, f' ({names})')
        seconds = meg.shape[1] / sfreq
        for key in ('events', 'reannot'):
            times = data[key][block]
            if len(times) and times.max() < seconds:
                advice = (
                    f'all {key} are below the duration in seconds; if they are seconds, multiply by sfreq = {sfreq:g}'
                )
                warn(advice, block, f' ({seconds:g} s)')
            if len(np.unique(times)) < len(times):
                warn(f'{key} hold a spike more than once; each is counted once; remove the others', block)
            if (np.diff(times) < 0).any():
                warn(
                    f'{key} are not in order of time; they are used in order; sort them if they belong to blocks', block
                )
    warnings = [f'block {", ".join(blocks)}: {advice}' for advice, blocks in found.items()]
    span = np.median(spans)
    if span and not TESLA[0] <= span <= TESLA[1]:
        warnings.append(
            f'meg spans {span:.2g} (median over channels of maximum - minimum), where tesla would span about 1e-12 to '
            '1e-10; if it is in femtotesla, multiply it by 1e-15, if in picotesla, by 1e-12'
        )
    return warnings


def annotated_spikes(data: dict[str, list]) -> list[np.ndarray]:
    """The annotation of each block, in samples: `reannot` where it is not empty, else `events`; each spike once."""
    pairs = zip(data['events'], data['reannot'], strict=True)
    return [np.unique(new if len(new) else old) for old, new in pairs]


def best_blocks(n_spikes: list[int], nb_best_blocks: int) -> list[int]:
    """Indices of the `nb_best_blocks` blocks with the most spikes (ties: the earlier; 0: all), in recording order."""
    by_spikes = sorted(range(len(n_spikes)), key=lambda block: -n_spikes[block])  # stable: ties keep their order
    return sorted(by_spikes[: nb_best_blocks or None])


# --------------------------------------------------------------------------------------------- windows
class BlockWindows(NamedTuple):
    """The windows of one block: `windows` float32 (n, channels, n_times), and per window what the pickles hold."""

    windows: np.ndarray
    labels: np.ndarray
    timing: np.ndarray
    labels_t: np.ndarray


class BlockCounts(NamedTuple):
    """What became of the windows and spikes of one block, and summed, of one patient."""

    kept: int
    with_artefact: int
    with_spike: int
    flat: int
    annotated: int
    covered: int
    dropped: int


def time_labels(n_windows: int, spikes: np.ndarray, shape: WindowShape) -> np.ndarray:
    """uint8 (n_windows, n_times): 1 at samples at most `half_pulse` from a spike; window k starts at k hop."""
    samples = np.arange(n_windows)[:, None] * shape.hop + np.arange(shape.n_times)
    ordered = np.sort(spikes)
    # A sample is marked if any spike lies in [sample - half_pulse, sample + half_pulse].
    first = np.searchsorted(ordered, samples - shape.half_pulse, side='left')
    after = np.searchsorted(ordered, samples + shape.half_pulse, side='right')
    return (after > first).astype(np.uint8)


def cut_block(
    signal: np.ndarray,
    spikes: np.ndarray,
    shape: WindowShape,
    *,
    normal_only: bool,
    standardize: str | bool,
    reject_artefacts: bool,
    artefact_threshold: float,
    stream: BinaryIO | None = None,
) -> tuple[BlockWindows, BlockCounts]:
    """Cut one block into windows.

    Parameters
    ----------
    signal : array (n_channels, n_samples)
        In tesla.
    spikes : array (n_spikes,)
        Annotated spikes, in samples of the block.
    normal_only : bool
        Keep only windows without a marked sample (the autoencoder's set).
    standardize, reject_artefacts, artefact_threshold
        The settings of these names.
    stream : binary file, optional
        Where the windows are written, a few at a time, instead of being returned.

    Returns
    -------
    BlockWindows, BlockCounts
    """
    n_windows = max(0, (signal.shape[1] - shape.n_times) // shape.hop + 1)
    starts = np.arange(n_windows) * shape.hop
    labels_t = time_labels(n_windows, spikes, shape)
    inner = (starts[:, None] + shape.border <= spikes) & (spikes < starts[:, None] + shape.n_times - shape.border)
    chosen = ~labels_t.any(axis=1) if normal_only else np.ones(n_windows, dtype=bool)

    needs_block = standardize == 'block' or reject_artefacts
    deviations = np.empty(signal.shape, '<f4') if standardize == 'block' else None
    offset, mean, std = block_statistics(signal, deviations) if needs_block else (None, None, None)
    room = AT_A_TIME if stream else np.count_nonzero(chosen)
    windows = np.empty((room, len(signal), shape.n_times), '<f4')
    kept, n_flat = [], 0
    for k in np.flatnonzero(chosen):  # one by one, so that the work of each stays in the processor's cache
        samples = slice(starts[k], starts[k] + shape.n_times)
        window = signal[:, samples]
        if reject_artefacts and max(window.max() - mean, mean - window.min()) > artefact_threshold * std:
            continue
        # Equality of the extremes, because the rounding of a mean can leave a constant window a tiny variance. Most
        # windows are told by two of their samples.
        flat = window[0, 0] == window[-1, -1] and window.max() == window.min()
        place = windows[len(kept) % room]
        if flat and standardize is not False:
            place[:] = 0
        elif standardize == 'block':
            scale(deviations[:, samples], offset, mean, std, out=place)
        else:
            place[:] = window if standardize is False else scale_window(window)
        kept.append(k)
        if stream and len(kept) % room == 0:
            stream.write(windows.data)
        n_flat += int(flat)
    if stream:
        stream.write(windows[: len(kept) % room].data)
    kept = np.array(kept, dtype=np.int64)
    covered = inner[kept].any(axis=0)
    counts = BlockCounts(
        kept=len(kept),
        with_artefact=int(np.count_nonzero(chosen)) - len(kept),
        with_spike=int(np.count_nonzero(~chosen)),
        flat=n_flat,
        annotated=len(spikes),
        covered=int(np.count_nonzero(covered)),
        dropped=int(np.count_nonzero(inner.any(axis=0) & ~covered)),
    )
    cut_windows = BlockWindows(
        windows[: 0 if stream else len(kept)],
        inner[kept].any(axis=1).astype(np.int64),
        starts[kept] + shape.n_times / 2,
        labels_t[kept],
    )
    return cut_windows, counts


def block_statistics(signal: np.ndarray, deviations: np.ndarray | None = None) -> tuple[float, float, float]:
    """Offset, mean and standard deviation of a block over all channels and samples, in float64, reading it once.

    Parameters
    ----------
    signal : array (channels, samples)
    deviations : float32 array (channels, samples), optional
        Receives signal - offset, from which `scale` goes on.

    Returns
    -------
    offset, mean, std : floats
        The offset is a value near the mean: sums about it lose no digits, nor do deviations from it as float32.
    """
    offset = signal[:, :100].mean(dtype=np.float64)
    deviation, total, square = np.empty(signal.shape[1]), 0.0, 0.0
    for k, row in enumerate(signal):
        np.subtract(row, offset, out=deviation)
        total += deviation.sum()
        square += np.einsum('i,i->', deviation, deviation)  # a BLAS product would keep every core busy to no gain
        if deviations is not None:
            deviations[k] = deviation
    mean = total / signal.size
    return offset, offset + mean, np.sqrt(max(square / signal.size - mean**2, 0.0))


def scale(deviations: np.ndarray, offset: float, mean: float, std: float, out: np.ndarray | None = None) -> np.ndarray:
    """(signal - mean) / std as float32, of deviations = signal - offset as float32; zeros where std is 0."""
    if std == 0:
        return np.multiply(deviations, np.float32(0), out=out)
    scaled = np.multiply(deviations, np.float32(1 / std), out=out)
    scaled -= np.float32((mean - offset) / std)
    return scaled


def channel_extremes(signal: np.ndarray) -> np.ndarray:
    """Lowest and highest value of every channel, (n_channels, 2), reading the block once."""
    return np.array([(row.min(), row.max()) for row in signal])


def scale_window(window: np.ndarray) -> np.ndarray:
    """Scale a window (channels, times) by its own mean and standard deviation, computed in float64."""
    window = window.astype(np.float64)
    window -= window.mean()
    window /= window.std()
    return window


def window_stem(directory: str | Path, number: int, nb_best_blocks: int) -> Path:
    """What the names of a patient's five window files begin with."""
    return Path(directory) / f'data_raw_{number:03d}_b{nb_best_blocks}'


@contextlib.contextmanager
def making(stem: Path) -> Iterator[Path]:
    """Give a hidden folder for the files of a patient while they are made, for this process alone.

    What a killed run left in it is removed at the beginning, and all of it at the end.

    Raises
    ------
    DataError
        Another run is making the same windows, or the folder cannot be written.
    """
    folder = stem.with_name(f'.{stem.name}.tmp')
    try:
        locked = _locked(folder, stem)
        try:
            for left in folder.iterdir():
                left.unlink()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(locked)
    except OSError as fault:
        # A full disk or a folder without permission: name the file the user knows, not the temporary one.
        name = Path(fault.filename2 or fault.filename or 'windows_bi').name
        name = name if name.startswith(stem.name) else f'{stem.name}_{name}'
        raise DataError(
            f'{stem.with_name(name)}: cannot be written ({fault.strerror or fault}); mend the disk or the path'
        ) from fault


def _locked(folder, stem):
    """Make a folder if need be, and lock it; return its descriptor, whose end, however it comes, frees the folder."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            os.close(descriptor)
            raise DataError(f'{stem}_windows_bi: another run is making these windows now; wait for its end') from fault
        except OSError:  # a file system without locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)  # of a folder that another run has just removed


def write_patient_windows(
    folder: Path, chosen: list[int], cut: Callable[[int, BinaryIO], tuple[BlockWindows, BlockCounts]]
) -> BlockCounts:
    """Write the windows and the four pickles of a patient into a folder, a few windows in memory at a time.

    Parameters
    ----------
    folder : path
        From `making`.
    chosen : list of int
        Indices of the blocks in data['meg'].
    cut : callable
        Cuts the block of an index, as `cut_block`, and writes its windows to a file.

    Returns
    -------
    BlockCounts
        Sums over the blocks.
    """
    columns = {name: [] for name in LABEL_FILES}
    counts = []
    with (folder / 'windows_bi').open('wb') as stream:
        for block in chosen:
            cut_windows, block_counts = cut(block, stream)
            columns['labels'].append(cut_windows.labels)
            columns['blocks'].append(np.full(len(cut_windows.labels), block, dtype=np.int64))
            columns['timing'].append(cut_windows.timing)
            columns['labels_t'].append(cut_windows.labels_t)
            counts.append(block_counts)
    for name, column in columns.items():
        (folder / f'{name}.pkl').write_bytes(pickle.dumps(np.concatenate(column), protocol=4))
    return BlockCounts(*map(sum, zip(*counts, strict=True)))


def publish(folder: Path, stem: Path) -> None:
    """Give the finished files of a patient their names: the six in `folder`, or none of them where that fails.

    No file system renames several files at once. Readers find a patient by its windows: an earlier set loses them
    first, the new set gets them last, both by a rename, so that readers see all of a set or nothing. A process killed
    among these renames (about a tenth of a millisecond) leaves files without windows, which the next run makes anew.
    """
    names = {name: f'{stem}_{name}' for name in WINDOW_FILES}
    # An earlier set is put aside, not written over, and removed later: both would take longer than all the renames.
    moves = [(path, str(folder / f'earlier_{name}')) for name, path in reversed(names.items()) if os.path.isfile(path)]
    moves += [(str(folder / name), path) for name, path in names.items()]
    try:
        for old, new in moves:
            os.replace(old, new)
    except BaseException:
        remove_patient_windows(stem)
        raise


def remove_patient_windows(stem: Path) -> None:
    """Remove the window files of a patient, the windows themselves first, if they are there."""
    for name in reversed(WINDOW_FILES):
        path = Path(f'{stem}_{name}')
        if path.is_file():
            path.unlink()


# ------------------------------------------------------------------------------------ made before or not
def input_stamp(path: Path) -> dict:
    """What tells whether a file is still the same: size, times and SHA-256 of its content."""
    with path.open('rb') as stream:
        status = os.fstat(stream.fileno())
        digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    return _times(status) | {'sha256': digest}


def _times(status):
    # The change time too: unlike the modification time, it cannot be set back.
    return {'size': status.st_size, 'mtime_ns': status.st_mtime_ns, 'ctime_ns': status.st_ctime_ns}


def is_same_input(stamp: dict, path: Path) -> bool:
    """Whether a file is the one that was stamped; its content is read only where its size or times have changed."""
    times = _times(path.stat())
    if all(stamp.get(name) == time for name, time in times.items()):
        return True
    return stamp.get('size') == times['size'] and stamp.get('sha256') == input_stamp(path)['sha256']


def is_made(stem: Path, made_with: dict, path: Path) -> bool:
    """Whether the files of a patient are complete and were made with these settings from this data_raw file."""
    try:
        sidecar = json.loads(Path(f'{stem}_settings.json').read_text())
        sizes = {name: Path(f'{stem}_{name}').stat().st_size for name in sidecar['sizes']}
        return (
            sidecar['sizes'] == sizes
            and {name: sidecar[name] for name in made_with} == made_with
            and is_same_input(sidecar['input'], path)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


# ------------------------------------------------------------------------------------------ all patients
def create_windows(
    *,
    path_raw_data: str,
    directory: str,
    normal_only: bool,
    patient: int | list[int] | bool,
    nb_best_blocks: int,
    include_spike_free: bool,
    sfreq: float,
    window_size: float,
    spike_spacing_from_border: float,
    pulse_width: float,
    standardize: str | bool,
    reject_artefacts: bool,
    artefact_threshold: float,
    n_jobs: int = 1,
    overwrite: bool = False,
) -> None:
    """Make the window files of every patient chosen, and print for each what was kept and dropped.

    Parameters
    ----------
    directory : path
        Receives the five files per patient.
    normal_only : bool
        True for the autoencoder's set, False for the classifier's.
    patient, nb_best_blocks, ..., overwrite
        The settings of these names.

    Raises
    ------
    DataError
        From `find_data_raw` and `read_data_raw`; finished files of other patients stay, whole.
    """
    shape = window_shape(
        window_size=window_size,
        spike_spacing_from_border=spike_spacing_from_border,
        pulse_width=pulse_width,
        sfreq=sfreq,
    )
    made_with = {
        'version': WINDOWS_VERSION,
        'normal_only': normal_only,
        'nb_best_blocks': nb_best_blocks,
        'sfreq': sfreq,
        'window_size': window_size,
        'spike_spacing_from_border': spike_spacing_from_border,
        'pulse_width': pulse_width,
        'standardize': 'window' if standardize is True else standardize,
        'reject_artefacts': reject_artefacts,
        'artefact_threshold': artefact_threshold if reject_artefacts else None,
    }
    make = functools.partial(
        _make_patient,
        directory=directory,
        shape=shape,
        made_with=made_with,
        include_spike_free=include_spike_free,
        overwrite=overwrite,
    )
    files = find_data_raw(path_raw_data, patient)
    n_complete = 0
    with contextlib.ExitStack() as stack:
        made = (
            _made_in_parallel(make, files, min(n_jobs, len(files)), stack) if n_jobs > 1 else map(make, files.items())
        )
        for messages, complete in tqdm(made, desc='patients', total=len(files), disable=None):
            for message in messages:
                tqdm.write(message)
            n_complete += complete
    tqdm.write(f'windows of {n_complete} patients in {directory}')


def _made_in_parallel(make, files, n_jobs, stack):
    """The same results in the same order, from `n_jobs` processes."""
    pool = ProcessPoolExecutor(n_jobs, multiprocessing.get_context('spawn'), _follow_parent)
    stack.callback(pool.shutdown, cancel_futures=True)
    try:
        yield from pool.map(make, files.items())
    except BrokenProcessPool as fault:
        raise DataError('a process was killed, as when the memory is used up: set n_jobs lower') from fault


def _follow_parent():
    """Leave Ctrl-C to the parent; end when it is killed, instead of waiting for its orders for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _make_patient(numbered, *, directory, shape, made_with, include_spike_free, overwrite):
    """Make the files of one patient (number, path); return the lines to print, and whether its files are there."""
    number, path = numbered
    name = f'patient {number:03d}'
    stem = window_stem(directory, number, made_with['nb_best_blocks'])
    if not overwrite and is_made(stem, made_with, path):
        annotated = json.loads(Path(f'{stem}_settings.json').read_text())['counts']['annotated']
        if annotated or include_spike_free:
            return [
                f'{name}: kept, made before with these settings from this file (overwrite=True makes it again)'
            ], True
    stamp = input_stamp(path)
    data = read_data_raw(path)
    messages = [f'warning: {path}: {warning}' for warning in content_warnings(data, made_with['sfreq'])]
    spikes = annotated_spikes(data)
    if not include_spike_free and not any(map(len, spikes)):
        remove_patient_windows(stem)  # of an earlier run, when it had spikes
        return [*messages, f'{name}: skipped, no spike annotated (include_spike_free=True keeps it)'], False
    chosen = best_blocks([len(times) for times in spikes], made_with['nb_best_blocks'])
    options = {key: made_with[key] for key in ('normal_only', 'standardize', 'reject_artefacts', 'artefact_threshold')}

    def cut(block, stream):
        return cut_block(data['meg'][block], spikes[block], shape, stream=stream, **options)

    with making(stem) as folder:
        total = write_patient_windows(folder, chosen, cut)
        messages.append(f'{name}: {_summary(total, chosen, made_with["normal_only"])}')
        if not total.kept:
            remove_patient_windows(stem)
            messages.append(f'{name}: nothing written, no window of {shape.n_times} samples was kept')
            return messages, False
        sidecar = made_with | {
            'channels': channel_names(),
            'n_windows': total.kept,
            'n_times': shape.n_times,
            'counts': total._asdict(),
            'input': {'name': path.name} | stamp,
            'sizes': {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        }
        (folder / 'settings.json').write_text(json.dumps(sidecar, indent=2) + '\n')
        publish(folder, stem)
    return messages, True


def _summary(total, chosen, normal_only):
    dropped = [f'{total.with_artefact} with artefacts'] + [f'{total.with_spike} with spikes'] * normal_only
    flat = f', {total.flat} without variance' if total.flat else ''
    outside = total.annotated - total.covered - total.dropped
    return (
        f'blocks {", ".join(map(str, chosen))}: windows kept {total.kept}, dropped '
        f'{total.with_artefact + total.with_spike} ({", ".join(dropped)}){flat}; spikes annotated {total.annotated}, '
        f'covered {total.covered}, dropped {total.dropped}, in the margins of the block {outside}'
    )
