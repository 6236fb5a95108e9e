"""From data_raw_NNN.pkl to windows: choosing blocks, cutting and scaling windows, all patients."""

import contextlib
import functools
import json
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from recordings.bad_segments import recorded_segments, touches
from recordings.channels import channel_names
from recordings.data_raw import (
    annotated_spikes,
    check_rate,
    content_warnings,
    find_data_raw,
    read_data_raw,
    read_record,
    record_warnings,
)
from recordings.window_files import (
    LABEL_FILES,
    input_stamp,
    is_made,
    publish,
    remove_patient_windows,
    staging_folder_of,
    window_stem,
)
from utils import DataError, SettingError

AT_A_TIME = 4  # windows in memory before they are written: they stay in the processor's cache
WINDOWS_VERSION = 1  # raised when the same settings and input come to give other windows


class WindowShape(NamedTuple):
    """The lengths of a window, in samples.

    Attributes
    ----------
    window_length : int
        Length of a window (T).
    border : int
        Outer part on either side in which no spike is labelled.
    half_pulse : int
        Largest distance of a marked sample from its spike (h).
    """

    window_length: int
    border: int
    half_pulse: int

    @property
    def hop(self) -> int:
        """Distance between the starts of neighbouring windows, which is the length of the inner part."""
        return self.window_length - 2 * self.border


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
    bad: int
    flat: int
    annotated: int
    covered: int
    dropped: int


def time_labels(n_windows: int, spikes: np.ndarray, shape: WindowShape) -> np.ndarray:
    """uint8 (n_windows, n_times): 1 at samples at most `half_pulse` from a spike; window k starts at k hop."""
    samples = np.arange(n_windows)[:, None] * shape.hop + np.arange(shape.window_length)
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
    bad_segments: list[list[int]] = (),
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
    bad_segments : list of [first sample, end (excluded)]
        Windows that touch one are left out.
    stream : binary file, optional
        Where the windows are written, a few at a time, instead of being returned.

    Returns
    -------
    BlockWindows, BlockCounts
    """
    n_windows = max(0, (signal.shape[1] - shape.window_length) // shape.hop + 1)
    starts = np.arange(n_windows) * shape.hop
    labels_t = time_labels(n_windows, spikes, shape)
    inner = (starts[:, None] + shape.border <= spikes) & (spikes < starts[:, None] + shape.window_length - shape.border)
    good = ~touches(starts, starts + shape.window_length, bad_segments)
    chosen = good & ~labels_t.any(axis=1) if normal_only else good

    needs_block = standardize == 'block' or reject_artefacts
    deviations = np.empty(signal.shape, '<f4') if standardize == 'block' else None
    offset, mean, std = block_statistics(signal, deviations) if needs_block else (None, None, None)
    room = AT_A_TIME if stream else np.count_nonzero(chosen)
    windows = np.empty((room, len(signal), shape.window_length), '<f4')
    kept, n_flat = [], 0
    for k in np.flatnonzero(chosen):  # one by one, so that the work of each stays in the processor's cache
        samples = slice(starts[k], starts[k] + shape.window_length)
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
        with_spike=int(np.count_nonzero(good & ~chosen)),
        bad=int(np.count_nonzero(~good)),
        flat=n_flat,
        annotated=len(spikes),
        covered=int(np.count_nonzero(covered)),
        dropped=int(np.count_nonzero(inner.any(axis=0) & ~covered)),
    )
    cut_windows = BlockWindows(
        windows[: 0 if stream else len(kept)],
        inner[kept].any(axis=1).astype(np.int64),
        starts[kept] + shape.window_length / 2,
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


def scale_window(window: np.ndarray) -> np.ndarray:
    """Scale a window (channels, times) by its own mean and standard deviation, computed in float64."""
    window = window.astype(np.float64)
    window -= window.mean()
    window /= window.std()
    return window


def write_patient_windows(
    folder: Path, chosen: list[int], cut: Callable[[int, BinaryIO], tuple[BlockWindows, BlockCounts]]
) -> BlockCounts:
    """Write the windows and the four pickles of a patient into a folder, a few windows in memory at a time.

    Parameters
    ----------
    folder : path
        From `staging_folder_of`.
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
    for path in files.values():
        check_rate(path, sfreq)
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
    record = read_record(path)
    made_with = made_with | {'bad_segments': [one.get('bad_segments', []) for one in record.get('recordings', [])]}
    if not overwrite and is_made(stem, made_with, path):
        annotated = json.loads(Path(f'{stem}_settings.json').read_text())['counts']['annotated']
        if annotated or include_spike_free:
            return [
                f'{name}: kept, made before with these settings from this file (overwrite=True makes it again)'
            ], True
    stamp = input_stamp(path)
    data = read_data_raw(path)
    messages = [f'warning: {path}: {warning}' for warning in content_warnings(data, made_with['sfreq'])]
    messages += [f'warning: {path}: {warning}' for warning in record_warnings(record, data['file'])]
    bad_segments = recorded_segments(record, data['file'])
    spikes = annotated_spikes(data)
    if not include_spike_free and not any(map(len, spikes)):
        remove_patient_windows(stem)  # of an earlier run, when it had spikes
        return [*messages, f'{name}: skipped, no spike annotated (include_spike_free=True keeps it)'], False
    chosen = best_blocks([len(times) for times in spikes], made_with['nb_best_blocks'])
    options = {key: made_with[key] for key in ('normal_only', 'standardize', 'reject_artefacts', 'artefact_threshold')}

    def cut(block, stream):
        return cut_block(
            data['meg'][block], spikes[block], shape, bad_segments=bad_segments[block], stream=stream, **options
        )

    with staging_folder_of(stem) as folder:
        total = write_patient_windows(folder, chosen, cut)
        messages.append(f'{name}: {_summary(total, chosen, made_with["normal_only"])}')
        if not total.kept:
            remove_patient_windows(stem)
            messages.append(f'{name}: nothing written, no window of {shape.window_length} samples was kept')
            return messages, False
        sidecar = made_with | {
            'channels': channel_names(),
            'n_windows': total.kept,
            'n_times': shape.window_length,
            'counts': total._asdict(),
            'input': {'name': path.name} | stamp,
            'sizes': {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        }
        (folder / 'settings.json').write_text(json.dumps(sidecar, indent=2) + '\n')
        publish(folder, stem)
    return messages, True


def _summary(total, chosen, normal_only):
    dropped = [f'{total.with_artefact} with artefacts'] + [f'{total.with_spike} with spikes'] * normal_only
    dropped += [f'{total.bad} in bad segments'] * (total.bad > 0)
    flat = f', {total.flat} without variance' if total.flat else ''
    n_dropped = total.with_artefact + total.with_spike + total.bad
    outside = total.annotated - total.covered - total.dropped
    return (
        f'blocks {", ".join(map(str, chosen))}: windows kept {total.kept}, dropped {n_dropped} ({", ".join(dropped)})'
        f'{flat}; spikes annotated {total.annotated}, covered {total.covered}, dropped {total.dropped}, in the margins '
        f'of the block {outside}'
    )
