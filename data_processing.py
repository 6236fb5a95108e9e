"""From data_raw_NNN.pkl to windows: reading and checking recordings, choosing blocks, cutting and scaling windows."""

import contextlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mne
import numpy as np
import pandas as pd
from tqdm import tqdm

from utils import DataError, SettingError, read_pickle, write_json, writing

N_CHANNELS = 274  # CTF-275 without MRP52
KEYS = ('meg', 'events', 'reannot', 'file')
LABEL_FILES = ('labels', 'blocks', 'timing', 'labels_t')


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
        data = {key: list(data[key]) for key in data.columns}
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
        raise DataError(f'{path}: no block in it')
    signals = [_checked_signal(path, block, signal) for block, signal in enumerate(data['meg'])]
    spikes = {
        key: [_checked_spikes(path, key, i, times, signals[i].shape[1]) for i, times in enumerate(data[key])]
        for key in ('events', 'reannot')
    }
    return {'meg': signals, **spikes, 'file': [str(name) for name in data['file']]}


def _length(path, key, entries):
    if isinstance(entries, str | bytes) or not hasattr(entries, '__len__'):
        raise DataError(f'{path}: {key!r} is a {type(entries).__name__}, not a list with one entry per block')
    return len(entries)


def _checked_signal(path, block, signal):
    try:
        signal = np.asarray(signal)
    except ValueError as fault:
        raise DataError(f'{path}: block {block}: channels of unequal length; meg[i] is channels x samples') from fault
    if signal.dtype.kind not in 'fiu' or signal.ndim != 2:
        raise DataError(
            f'{path}: block {block}: meg holds {signal.dtype} of {signal.ndim} dimensions, '
            'not numbers of channels x samples'
        )
    if signal.shape[0] != N_CHANNELS:
        turned = ' (it looks transposed)' if signal.shape[1] == N_CHANNELS else ''
        raise DataError(
            f'{path}: block {block}: {signal.shape[0]} channels, not {N_CHANNELS} (CTF-275 without MRP52){turned}'
        )
    if signal.shape[1] == 0:
        raise DataError(f'{path}: block {block}: no sample in it; leave out that block')
    finite = np.isfinite(signal)
    if not finite.all():
        raise DataError(
            f'{path}: block {block}: {np.count_nonzero(~finite)} samples are NaN or infinite; '
            'interpolate or leave out that block'
        )
    return signal


def _checked_spikes(path, key, block, times, n_samples):
    where = f'{path}: block {block}: {key}'
    try:
        times = np.asarray([] if times is None else times, dtype=np.float64)
    except (ValueError, TypeError) as fault:
        raise DataError(f'{where} are not numbers; they must be samples of the block') from fault
    if times.ndim != 1:
        raise DataError(f'{where} have {times.ndim} dimensions; they must be a list of samples')
    outside = ~((times >= 0) & (times < n_samples))
    if outside.any():
        raise DataError(
            f'{where} hold {times[outside][0]:g}, outside the block of {n_samples} samples; '
            'they must be counted from the start of the block'
        )
    return times


def annotated_spikes(data: dict[str, list]) -> list[np.ndarray]:
    """The annotation of each block, in samples: `reannot` where it is not empty, else `events`."""
    return [new if len(new) else old for old, new in zip(data['events'], data['reannot'], strict=True)]


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

    Returns
    -------
    BlockWindows, BlockCounts
    """
    n_windows = max(0, (signal.shape[1] - shape.n_times) // shape.hop + 1)
    starts = np.arange(n_windows) * shape.hop
    labels_t = time_labels(n_windows, spikes, shape)
    inner = (starts[:, None] + shape.border <= spikes) & (spikes < starts[:, None] + shape.n_times - shape.border)
    chosen = ~labels_t.any(axis=1) if normal_only else np.ones(n_windows, dtype=bool)

    # (n_windows, n_channels, n_times), a view that copies nothing
    if n_windows:
        cut = np.lib.stride_tricks.sliding_window_view(signal, shape.n_times, axis=1)[:, :: shape.hop]
    else:
        cut = np.empty((signal.shape[0], 0, shape.n_times))
    needs_block = standardize == 'block' or reject_artefacts
    mean, std = (signal.mean(dtype=np.float64), signal.std(dtype=np.float64)) if needs_block else (None, None)
    clean = np.ones(n_windows, dtype=bool)
    if reject_artefacts and n_windows:
        highest = cut.max(axis=(0, 2)).astype(np.float64) - mean
        lowest = mean - cut.min(axis=(0, 2)).astype(np.float64)
        clean = np.maximum(highest, lowest) <= artefact_threshold * std
    kept = np.flatnonzero(chosen & clean)

    windows = cut[:, kept].transpose(1, 0, 2).astype(np.float64)
    windows, n_flat = scale_windows(windows, standardize, mean, std)
    covered = inner[kept].any(axis=0)
    counts = BlockCounts(
        kept=len(kept),
        with_artefact=int(np.count_nonzero(chosen & ~clean)),
        with_spike=int(np.count_nonzero(~chosen)),
        flat=n_flat,
        annotated=len(spikes),
        covered=int(np.count_nonzero(covered)),
        dropped=int(np.count_nonzero(inner.any(axis=0) & ~covered)),
    )
    cut_windows = BlockWindows(
        windows.astype('<f4'),
        inner[kept].any(axis=1).astype(np.int64),
        starts[kept] + shape.n_times / 2,
        labels_t[kept],
    )
    return cut_windows, counts


def scale_windows(
    windows: np.ndarray, standardize: str | bool, block_mean: float | None, block_std: float | None
) -> tuple[np.ndarray, int]:
    """Scale windows (n, channels, times; float64, changed in place) as `standardize` says; count the flat ones.

    A window of zero variance becomes zeros, except where the windows stay in tesla.
    """
    # Equality of the extremes, because the rounding of a mean can leave a constant window a tiny variance.
    flat = windows.max(axis=(1, 2)) == windows.min(axis=(1, 2)) if len(windows) else np.zeros(0, dtype=bool)
    if standardize == 'block':
        windows -= block_mean
        windows /= block_std if block_std > 0 else 1.0
    elif standardize in ('window', True):
        windows -= windows.mean(axis=(1, 2), keepdims=True)
        std = windows.std(axis=(1, 2), keepdims=True)
        windows /= np.where(flat[:, None, None], 1.0, std)
    if standardize is not False:
        windows[flat] = 0
    return windows, int(flat.sum())


def window_stem(directory: str | Path, number: int, nb_best_blocks: int) -> Path:
    """What the names of a patient's five window files begin with."""
    return Path(directory) / f'data_raw_{number:03d}_b{nb_best_blocks}'


def write_patient_windows(stem: Path, blocks: Iterator[tuple[int, BlockWindows]], settings: dict) -> None:
    """Write the five files of a patient, all of them or none, one block's windows in memory at a time.

    Parameters
    ----------
    stem : path
        From `window_stem`.
    blocks : iterator
        Index of the block in data['meg'], and its windows.
    settings : dict
        What the windows were made with, for `<stem>_settings.json`, by which readers refuse windows made otherwise.
    """
    columns = {name: [] for name in LABEL_FILES}
    try:
        with contextlib.ExitStack() as files:
            # Files are renamed in the opposite order when the block ends. Readers find a patient by its windows file:
            # it goes before the others are touched and comes back last, so they never see half of a set.
            binary = files.enter_context(writing(f'{stem}_windows_bi'))
            pickles = {name: files.enter_context(writing(f'{stem}_{name}.pkl')) for name in LABEL_FILES}
            with binary.open('wb') as stream:
                for block, cut in blocks:
                    cut.windows.tofile(stream)
                    columns['labels'].append(cut.labels)
                    columns['blocks'].append(np.full(len(cut.labels), block, dtype=np.int64))
                    columns['timing'].append(cut.timing)
                    columns['labels_t'].append(cut.labels_t)
            for name, path in pickles.items():
                path.write_bytes(pickle.dumps(np.concatenate(columns[name]), protocol=4))
            remove_patient_windows(stem)
            write_json(f'{stem}_settings.json', settings)
    except BaseException:
        if not Path(f'{stem}_windows_bi').exists():
            remove_patient_windows(stem)
        raise


def remove_patient_windows(stem: Path) -> None:
    """Remove the window files of a patient, the windows themselves first, if they are there."""
    for name in ('windows_bi', *(f'{name}.pkl' for name in LABEL_FILES), 'settings.json'):
        path = Path(f'{stem}_{name}')
        if path.is_file():
            path.unlink()


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
) -> None:
    """Make the window files of every patient chosen, and print for each what was kept and dropped.

    Parameters
    ----------
    directory : path
        Receives the five files per patient.
    normal_only : bool
        True for the autoencoder's set, False for the classifier's.
    patient, nb_best_blocks, ..., artefact_threshold
        The settings of these names.

    Raises
    ------
    DataError
        From `find_data_raw` and `read_data_raw`; files of earlier patients stay, whole.
    """
    durations = {
        'window_size': window_size,
        'spike_spacing_from_border': spike_spacing_from_border,
        'pulse_width': pulse_width,
        'sfreq': sfreq,
    }
    shape = window_shape(**durations)
    n_written = 0
    for number, path in tqdm(find_data_raw(path_raw_data, patient).items(), desc='patients', disable=None):
        stem = window_stem(directory, number, nb_best_blocks)
        data = read_data_raw(path)
        spikes = annotated_spikes(data)
        if not include_spike_free and not any(map(len, spikes)):
            remove_patient_windows(stem)  # of an earlier run, when it had spikes
            tqdm.write(f'patient {number:03d}: skipped, no spike annotated (include_spike_free=True keeps it)')
            continue
        chosen = best_blocks([len(times) for times in spikes], nb_best_blocks)
        counts = []

        def cut_blocks(data=data, spikes=spikes, chosen=chosen, counts=counts):
            for block in chosen:
                cut, block_counts = cut_block(
                    data['meg'][block],
                    spikes[block],
                    shape,
                    normal_only=normal_only,
                    standardize=standardize,
                    reject_artefacts=reject_artefacts,
                    artefact_threshold=artefact_threshold,
                )
                counts.append(block_counts)
                yield block, cut

        write_patient_windows(stem, cut_blocks(), durations | {'standardize': standardize})
        total = BlockCounts(*map(sum, zip(*counts, strict=True)))
        tqdm.write(f'patient {number:03d}: {_summary(total, chosen, normal_only)}')
        if total.kept:
            n_written += 1
        else:
            remove_patient_windows(stem)
            tqdm.write(f'patient {number:03d}: nothing written, no window of {shape.n_times} samples was kept')
    tqdm.write(f'windows of {n_written} patients in {directory}')


def _summary(total, chosen, normal_only):
    dropped = [f'{total.with_artefact} with artefacts'] + [f'{total.with_spike} with spikes'] * normal_only
    flat = f', {total.flat} without variance' if total.flat else ''
    outside = total.annotated - total.covered - total.dropped
    return (
        f'blocks {", ".join(map(str, chosen))}: windows kept {total.kept}, dropped '
        f'{total.with_artefact + total.with_spike} ({", ".join(dropped)}){flat}; spikes annotated {total.annotated}, '
        f'covered {total.covered}, dropped {total.dropped}, in the margins of the block {outside}'
    )
