"""data_raw_NNN.pkl: finding, reading and checking it, and the spikes it holds."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from recordings.channels import N_CHANNELS, channel_names
from recordings.pickles import read_pickle
from utils import DataError

KEYS = ('meg', 'events', 'reannot', 'file')
TESLA = (1e-14, 1e-8)  # what a channel of brain signal can span, maximum - minimum; usual are 1e-12 to 1e-10
LARGEST = 1e15  # a sample beyond it is no magnetic field: this is one tesla, in femtotesla
MAX_NAME = 4096  # characters of a recording's name, as of a path


# ----------------------------------------------------------------------------------------------- files
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


def read_record(path: Path) -> dict:
    """What was noted beside a data_raw file when it was made; empty where nothing was."""
    record = path.with_suffix('.json')
    if not record.exists():
        return {}
    try:
        content = json.loads(record.read_text())
        whole = isinstance(content['settings'], dict) and all(
            {'file', 'interpolated'} <= set(recording) for recording in content['recordings']
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise DataError(f'{record}: not what create_data_raw.py writes; move it and {path.name} away')
    return content


def check_rate(path: Path, sfreq: float) -> None:
    """Refuse a data_raw file that was made at another sampling rate than `sfreq`, as far as is noted beside it.

    Raises
    ------
    DataError
    """
    made_at = read_record(path).get('settings', {}).get('sfreq', sfreq)
    if made_at != sfreq:
        raise DataError(
            f'{path}: made at sfreq = {made_at!r}, but sfreq is {sfreq!r} now; set sfreq={made_at!r}, or make the file '
            f'again with sfreq={sfreq!r}'
        )


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
    path = Path(path)
    data = read_pickle(path)
    if isinstance(data, pd.DataFrame):
        data = _columns(path, data)
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
    n_numbers = 0
    for block in range(len(signals)):
        signals[block] = _checked_signal(path, block, signals[block])  # lists take more memory than arrays: let go
        n_numbers = _counted(path, 'meg', n_numbers + signals[block].size)
    _check_channels(path, signals)
    spikes = {'events': [], 'reannot': []}
    for key, checked in spikes.items():
        n_numbers = 0
        for block, times in enumerate(data[key]):
            checked.append(_checked_spikes(path, key, block, times, signals[block].shape[1]))
            n_numbers = _counted(path, key, n_numbers + len(checked[-1]))
    return {'meg': signals, **spikes, 'file': [_checked_name(path, i, name) for i, name in enumerate(data['file'])]}


def _columns(path, frame):
    """The columns of a frame that a data_raw file needs, as lists."""
    names = list(frame.columns)
    for key in KEYS:
        if names.count(key) > 1:
            raise DataError(f'{path}: {names.count(key)} columns named {key!r}; leave one of them')
    return {key: list(frame.iloc[:, names.index(key)]) for key in KEYS if key in names}


def _counted(path, key, n_numbers):
    """Refuse more numbers than the file has bytes: it refers to the same ones over and over."""
    if n_numbers > path.stat().st_size:
        raise DataError(f'{path}: {key!r} holds the same numbers many times over; make the file again')
    return n_numbers


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
        values = values.to_numpy()
    if isinstance(values, list | tuple):
        if n_dims == 1:
            if any(issubclass(kind, str | bytes) for kind in set(map(type, values))):
                raise ValueError('texts')  # which NumPy would read as numbers, however long
            try:
                return np.fromiter(values, np.float64, len(values))
            except (TypeError, ValueError, OverflowError) as fault:
                raise ValueError('not numbers') from fault
        if len({len(row) if hasattr(row, '__len__') and getattr(row, 'ndim', 1) else 1 for row in values}) > 1:
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
    extremes = channel_extremes(signal)
    if not np.isfinite(extremes).all():
        raise DataError(
            f'{where}: {np.count_nonzero(~np.isfinite(signal))} samples are NaN or infinite; '
            'interpolate or leave out that block'
        )
    largest = max((abs(float(value)) for value in extremes.flat), default=0.0)
    if largest > LARGEST:
        raise DataError(f'{where}: meg holds {largest:g}, which is no magnetic field; make the file again in tesla')
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


def _checked_name(path, block, name):
    where = f'{path}: block {block}: file holds'
    if not isinstance(name, str | bytes | int | float | np.generic | None):
        raise DataError(f'{where} a {type(name).__name__}, not the name of a recording')
    try:
        name = str(name)  # of a number, limited by Python to some thousand digits
        if len(name) > MAX_NAME:
            raise ValueError(f'{len(name)} characters')
        name.encode()
    except ValueError as fault:
        raise DataError(f'{where} no name of a recording ({fault})') from fault
    return name


def channel_extremes(signal: np.ndarray) -> np.ndarray:
    """Lowest and highest value of every channel, (n_channels, 2), reading the block once."""
    return np.array([(row.min(), row.max()) for row in signal])


def flat_channels(spans: np.ndarray) -> np.ndarray:
    """Which channels are flat, of maximum - minimum of each: those that change a million times less than others do.

    A filtered constant still changes by the rounding of its numbers. The others are those with the largest changes, but
    for a tenth, which may be broken.
    """
    return spans <= 1e-6 * np.quantile(spans, 0.9)


def in_tesla(span: float) -> bool:
    """Whether a channel of brain signal in tesla can span this much (maximum - minimum)."""
    return TESLA[0] <= span <= TESLA[1]


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
        flat = [channel_names()[channel] for channel in np.flatnonzero(flat_channels(span))]
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
    if span and not in_tesla(span):
        warnings.append(
            f'meg spans {span:.2g} (median over channels of maximum - minimum), where tesla would span about 1e-12 to '
            '1e-10; if it is in femtotesla, multiply it by 1e-15, if in picotesla, by 1e-12'
        )
    return warnings


def record_warnings(record: dict, names: list[str]) -> list[str]:
    """A record (data_raw_NNN.json) that speaks of other blocks than its data_raw file holds, which has `names`."""
    noted = [recording['file'] for recording in record.get('recordings', [])]
    if not noted or noted == names:
        return []
    return [
        f'its .json speaks of {len(noted)} blocks ({noted[0]}, ...), but it holds {len(names)} ({names[0]}, ...): bad '
        'segments are known of blocks whose name is in both only'
    ]


def annotated_spikes(data: dict[str, list]) -> list[np.ndarray]:
    """The annotation of each block, in samples: `reannot` where it is not empty, else `events`; each spike once."""
    pairs = zip(data['events'], data['reannot'], strict=True)
    return [np.unique(new if len(new) else old) for old, new in pairs]
