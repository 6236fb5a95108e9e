"""From data_raw_NNN.pkl to windows: choosing blocks, cutting and scaling windows, all patients."""

import functools
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from recordings.bad_segments import recorded_segments, touches
from recordings.data_raw import (
    annotated_spikes,
    check_rate,
    content_warnings,
    find_data_raw,
    read_data_raw,
    read_record,
    record_warnings,
)
from recordings.scaling import BlockScaling
from recordings.window_files import (
    LABEL_FILES,
    input_stamp,
    is_made,
    publish,
    read_sidecar,
    remove_patient_windows,
    staging_folder_of,
    window_stem,
    write_sidecar,
)
from recordings.window_settings import WindowSettings, WindowShape
from system.processes import process_map
from utils import DataError

AT_A_TIME = 4  # windows in memory before they are written: they stay in the processor's cache


def best_blocks(n_spikes: list[int], nb_best_blocks: int) -> list[int]:
    """Indices of the `nb_best_blocks` blocks with the most spikes (ties: the earlier; 0: all), in recording order."""
    by_spikes = sorted(range(len(n_spikes)), key=lambda block: -n_spikes[block])  # stable: ties keep their order
    return sorted(by_spikes[: nb_best_blocks or None])


# ------------------------------------------------------------------------------------- windows of a block
class BlockWindows(NamedTuple):
    """The windows of one block, and what the pickles hold of each.

    Attributes
    ----------
    windows : float32 array (n_windows, n_channels, window_length)
        Without windows where they are written to a file instead.
    labels : int64 array (n_windows,)
        1 where a spike lies in the inner part of the window.
    timing : float64 array (n_windows,)
        Centres of the windows, in samples of the block.
    labels_t : uint8 array (n_windows, window_length)
        1 at samples near a spike.
    """

    windows: np.ndarray
    labels: np.ndarray
    timing: np.ndarray
    labels_t: np.ndarray


class BlockCounts(NamedTuple):
    """What became of the windows and spikes of one block, and summed, of one patient.

    Attributes
    ----------
    kept, with_artefact, with_spike, bad : int
        Windows kept, and windows left out: for an artefact, for a marked sample, for a bad segment.
    flat : int
        Windows kept that have no variance.
    annotated, covered, dropped : int
        Spikes annotated, in the inner part of a window kept, and of windows left out only.
    """

    kept: int
    with_artefact: int
    with_spike: int
    bad: int
    flat: int
    annotated: int
    covered: int
    dropped: int


def time_labels(n_windows: int, spikes: np.ndarray, shape: WindowShape) -> np.ndarray:
    """Mark the samples near a spike.

    Parameters
    ----------
    n_windows : int
        Window k starts at sample k * hop of the block.
    spikes : array (n_spikes,)
        In samples of the block, in any order.
    shape : WindowShape
        Lengths of a window.

    Returns
    -------
    uint8 array (n_windows, window_length)
        1 at samples at most `half_pulse` from a spike.
    """
    samples = np.arange(n_windows)[:, None] * shape.hop + np.arange(shape.window_length)
    ordered = np.sort(spikes)
    # A sample is marked if any spike lies in [sample - half_pulse, sample + half_pulse].
    n_before = np.searchsorted(ordered, samples - shape.half_pulse, side='left')
    n_up_to = np.searchsorted(ordered, samples + shape.half_pulse, side='right')
    return (n_up_to > n_before).astype(np.uint8)


def cut_block(
    signal: np.ndarray,
    spikes: np.ndarray,
    settings: WindowSettings,
    *,
    bad_segments: Sequence[Sequence[int]] = (),
    stream: BinaryIO | None = None,
    name: str = 'block',
) -> tuple[BlockWindows, BlockCounts]:
    """Cut one block into windows.

    Parameters
    ----------
    signal : array (n_channels, n_samples)
        In tesla.
    spikes : array (n_spikes,)
        Annotated spikes, in samples of the block.
    settings : WindowSettings
        What the windows are made with.
    bad_segments : sequence of [start, end (excluded)]
        In samples of the block. Windows that touch one are left out.
    stream : binary file, optional
        Receives the windows, a few at a time. They are not returned then.
    name : str
        What messages call the block.

    Returns
    -------
    windows : BlockWindows
    counts : BlockCounts

    Raises
    ------
    DataError
        A scaled window holds NaN or infinite values.
    """
    shape = settings.shape
    n_windows = max(0, (signal.shape[1] - shape.window_length) // shape.hop + 1)
    starts = np.arange(n_windows) * shape.hop
    labels_t = time_labels(n_windows, spikes, shape)
    inner = (starts[:, None] + shape.border <= spikes) & (spikes < starts[:, None] + shape.window_length - shape.border)
    good = ~touches(starts, starts + shape.window_length, bad_segments)
    chosen = good & ~labels_t.any(axis=1) if settings.normal_only else good

    windows, indices, n_flat = _scaled_windows(signal, starts, np.flatnonzero(chosen), settings, stream, name)
    covered = inner[indices].any(axis=0)
    counts = BlockCounts(
        kept=len(indices),
        with_artefact=int(np.count_nonzero(chosen)) - len(indices),
        with_spike=int(np.count_nonzero(good & ~chosen)),
        bad=int(np.count_nonzero(~good)),
        flat=n_flat,
        annotated=len(spikes),
        covered=int(np.count_nonzero(covered)),
        dropped=int(np.count_nonzero(inner.any(axis=0) & ~covered)),
    )
    labels = inner[indices].any(axis=1).astype(np.int64)
    return BlockWindows(windows, labels, starts[indices] + shape.window_length / 2, labels_t[indices]), counts


def _scaled_windows(signal, starts, chosen, settings, stream, name):
    """Scale the chosen windows; return them unless there is a stream, their indices, and the number of flat ones."""
    length = settings.shape.window_length
    scaling = BlockScaling(signal, settings)
    capacity = AT_A_TIME if stream else len(chosen)
    buffer = np.empty((capacity, len(signal), length), '<f4')
    indices, n_flat = [], 0
    with np.errstate(all='ignore'):  # what is not finite is refused below, with the name of its block
        for k in chosen:  # one by one, so that the work of each stays in the processor's cache
            samples = slice(starts[k], starts[k] + length)
            if scaling.has_artefact(samples):
                continue
            window = buffer[len(indices) % capacity]
            n_flat += scaling.scale_into(window, samples)
            # A sum that is finite has finite terms, and takes a third of the time.
            if not np.isfinite(window.sum()) and not np.isfinite(window).all():
                raise DataError(
                    f'{name}: samples {samples.start} to {samples.stop} are NaN or infinite when scaled with '
                    f'standardize = {settings.standardize!r}; leave out that block, or make the file again in tesla'
                )
            indices.append(k)
            if stream and len(indices) % capacity == 0:
                stream.write(buffer.data)
    if stream:
        stream.write(buffer[: len(indices) % capacity].data)
    return buffer[: 0 if stream else len(indices)], np.array(indices, dtype=np.int64), n_flat


# ------------------------------------------------------------------------------------------ all patients
def write_patient_windows(
    folder: Path, blocks: Iterable[int], cut: Callable[[int, BinaryIO], tuple[BlockWindows, BlockCounts]]
) -> BlockCounts:
    """Write the windows and the four pickles of a patient into a folder, a few windows in memory at a time.

    Parameters
    ----------
    folder : Path
        From `staging_folder_of`.
    blocks : iterable of int
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
        for block in blocks:
            cut_windows, block_counts = cut(block, stream)
            columns['labels'].append(cut_windows.labels)
            columns['blocks'].append(np.full(len(cut_windows.labels), block, dtype=np.int64))
            columns['timing'].append(cut_windows.timing)
            columns['labels_t'].append(cut_windows.labels_t)
            counts.append(block_counts)
    for name, column in columns.items():
        (folder / f'{name}.pkl').write_bytes(pickle.dumps(np.concatenate(column), protocol=4))
    return BlockCounts(*map(sum, zip(*counts, strict=True)))


def create_windows(
    path_raw_data: str | Path,
    directory: str | Path,
    settings: WindowSettings,
    *,
    patient: int | list[int] | bool,
    include_spike_free: bool,
    n_jobs: int = 1,
    overwrite: bool = False,
) -> None:
    """Make the window files of every patient chosen, and print for each what was kept and dropped.

    Parameters
    ----------
    path_raw_data : path
        Folder of the data_raw files.
    directory : path
        Receives the six files per patient.
    settings : WindowSettings
        What the windows are made with.
    patient, include_spike_free, n_jobs, overwrite
        The settings of these names.

    Raises
    ------
    DataError
        A data_raw file is absent or faulty, or files cannot be written. Finished files of other patients stay, whole.
    """
    files = find_data_raw(path_raw_data, patient)
    for path in files.values():
        check_rate(path, settings.sfreq)
    make_patient = functools.partial(
        _make_patient,
        directory=directory,
        settings=settings,
        include_spike_free=include_spike_free,
        overwrite=overwrite,
    )
    n_complete = 0
    try:
        with process_map(min(n_jobs, len(files))) as map_patients:
            results = map_patients(make_patient, files.items())
            for messages, is_complete in tqdm(results, desc='patients', total=len(files), disable=None):
                for message in messages:
                    tqdm.write(message)
                n_complete += is_complete
    except BrokenProcessPool as fault:
        raise DataError('a process was killed, as when the memory is used up: set n_jobs lower') from fault
    tqdm.write(f'windows of {n_complete} patients in {directory}')


def _make_patient(numbered, *, directory, settings, include_spike_free, overwrite):
    """Make the files of one patient (number, path); return the lines to print, and whether its files are there."""
    number, path = numbered
    name = f'patient {number:03d}'
    stem = window_stem(directory, number, settings.nb_best_blocks)
    record = read_record(path)
    segments = [recording.get('bad_segments', []) for recording in record.get('recordings', [])]
    stored = settings.stored() | {'bad_segments': segments}
    is_current = not overwrite and is_made(stem, stored, path)
    if is_current and (include_spike_free or read_sidecar(stem)['counts']['annotated']):
        return [f'{name}: kept, made before with these settings from this file (overwrite=True makes it again)'], True
    stamp = input_stamp(path)
    data = read_data_raw(path)
    warnings = content_warnings(data, settings.sfreq) + record_warnings(record, data['file'])
    messages = [f'warning: {path}: {warning}' for warning in warnings]
    spikes = annotated_spikes(data)
    if not include_spike_free and not any(map(len, spikes)):
        remove_patient_windows(stem)  # of an earlier run, when it had spikes
        return [*messages, f'{name}: skipped, no spike annotated (include_spike_free=True keeps it)'], False
    chosen = best_blocks([len(times) for times in spikes], settings.nb_best_blocks)
    bad_segments = recorded_segments(record, data['file'])

    def cut(block, stream):
        return cut_block(
            data['meg'][block],
            spikes[block],
            settings,
            bad_segments=bad_segments[block],
            stream=stream,
            name=f'{path}: block {block} ({data["file"][block]})',
        )

    with staging_folder_of(stem) as folder:
        counts = write_patient_windows(folder, chosen, cut)
        messages.append(f'{name}: {_summary(counts, chosen, settings.normal_only)}')
        if not counts.kept:
            remove_patient_windows(stem)
            n_times = settings.shape.window_length
            return [*messages, f'{name}: nothing written, no window of {n_times} samples was kept'], False
        made = {'n_windows': counts.kept, 'n_times': settings.shape.window_length, 'counts': counts._asdict()}
        write_sidecar(folder, stored | made | {'finite': True, 'input': {'name': path.name} | stamp})
        publish(folder, stem)
    return messages, True


def _summary(counts, chosen, normal_only):
    dropped = [f'{counts.with_artefact} with artefacts']
    if normal_only:
        dropped.append(f'{counts.with_spike} with spikes')
    if counts.bad:
        dropped.append(f'{counts.bad} in bad segments')
    flat = f', {counts.flat} without variance' if counts.flat else ''
    n_dropped = counts.with_artefact + counts.with_spike + counts.bad
    outside = counts.annotated - counts.covered - counts.dropped
    return (
        f'blocks {", ".join(map(str, chosen))}: windows kept {counts.kept}, dropped {n_dropped} ({", ".join(dropped)})'
        f'{flat}; spikes annotated {counts.annotated}, covered {counts.covered}, dropped {counts.dropped}, in the '
        f'margins of the block {outside}'
    )
