"""The folder of a recording's detections: of one recording only, published whole, what reviewers changed kept."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recordings.data_raw import read_data_raw
from recordings.opening import open_recording
from system.files import free_name, link_or_copy, replace_folder, restore_folder, sha256, staging_folder
from utils import DataError, write_faults

RECORD = 'detections.json'
DATA = ('acquired', 'channels', 'samples', 'sha256')  # what of an identity stays when a recording is moved


# ----------------------------------------------------------------------------------- which recording it is
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
        It cannot be read.
    """
    if path.suffix == '.pkl':
        signals = read_data_raw(path)['meg']
        channels, acquired, lengths = len(signals[0]), None, [signal.shape[1] for signal in signals]
        stretches = [signal[:, columns] for signal in signals for columns in _stretches(signal.shape[1])]
    else:
        with open_recording(path) as raw:
            channels, acquired, lengths = len(raw.ch_names), raw.info['meas_date'], [raw.n_times]
            try:
                stretches = [raw[:, columns][0] for columns in _stretches(raw.n_times)]
            except Exception as fault:  # a damaged file can raise anything at all
                raise DataError(f'{path}: MNE cannot read its samples ({type(fault).__name__}: {fault})') from fault
    digest = hashlib.sha256()
    for stretch in stretches:
        digest.update(np.ascontiguousarray(stretch))
    return {
        'path': str(path.resolve()),
        'acquired': acquired and acquired.isoformat(),
        'channels': channels,
        'samples': lengths,
        'sha256': digest.hexdigest(),
    }


def _stretches(n_samples, length=300):
    """Three stretches of a recording, which in short ones overlap."""
    starts = [0, max(0, n_samples - length) // 2, max(0, n_samples - length)]
    return [slice(start, min(start + length, n_samples)) for start in starts]


def check_is_of(folder: Path, path: Path, identity: dict | None = None) -> None:
    """Check that a folder holds no detections, or those of this recording.

    A recording is the same under the same path, whatever link leads to it, where its data are the same too. It is
    taken for moved where its data are the same and nothing is at its earlier path any more. Detections of earlier
    versions do not say where their recording was: they are taken for its own by its name, but only beside it.

    Parameters
    ----------
    folder : path
        Of the recording; that of a data_raw file has a folder in it for every block.
    identity : dict, optional
        From `identify`, which is called where it is needed.

    Raises
    ------
    DataError
        The folder holds the detections of another recording, or cannot be told to hold those of this one.
    """
    ways_out = 'move it away or give output= another folder'
    for record in [folder / RECORD, *sorted(folder.glob(f'block_*/{RECORD}'))]:
        if not record.exists():
            continue
        try:
            content = json.loads(record.read_text())
            name, known = content['recording'], content.get('identity')
            where = known and str(known['path'])
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise DataError(f'{record}: not from detect.py; {ways_out}') from fault
        if name != path.resolve().name:
            raise DataError(f'{folder}: holds the detections of {where or name}; {ways_out}')
        if known is None:
            if folder.resolve().parent != path.resolve().parent:
                raise DataError(
                    f'{folder}: holds detections of an earlier version, which do not say of which {name}; {ways_out}'
                )
            continue
        identity = identity or identify(path)
        same_data = all(known.get(key) == identity[key] for key in DATA)
        if where == identity['path'] and not same_data:
            raise DataError(f'{folder}: holds the detections of other data that were at {where} before; {ways_out}')
        is_there = Path(where).exists() and not path.samefile(where)
        if where != identity['path'] and (is_there or not same_data):
            raise DataError(f'{folder}: holds the detections of {where}, another recording; {ways_out}')


# ------------------------------------------------------------------------------------ built beside, published whole
@contextlib.contextmanager
def publishing(folder: Path, path: Path, identity: dict) -> Iterator[Path]:
    """Give an empty folder to write detections into, which takes the place of `folder` when the block ends.

    Nothing changes where the block fails or the process is killed. What else is in the earlier folder goes along; so
    does, under a free name such as MarkerFile.mrk.1, an output that was changed since it was written.

    Parameters
    ----------
    folder : path
        Of the recording, or of a block of a data_raw file.
    path, identity
        The recording, see `identify`. It is checked again, because another process may have written meanwhile.

    Raises
    ------
    DataError
        From `check_is_of`; or the folder cannot be written.
    """
    target = folder.resolve()
    with write_faults(folder), staging_folder(target) as staging:
        restore_folder(target)
        check_is_of(target.parent if path.suffix == '.pkl' else target, path, identity)
        new = staging / target.name  # of the same name, by which outputs and messages call it
        new.mkdir()
        try:
            yield new
        except DataError as fault:
            raise DataError(str(fault).replace(str(new), str(folder))) from fault
        kept = keep_corrections(target, new) if target.exists() else {}
        replace_folder(new, target)
    for name, backup in kept.items():
        print(f'{folder / name}: changed since it was written, kept as {backup}')


def output_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a folder, by name, for `keep_corrections` to see which were changed since."""
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def keep_corrections(earlier: Path, new: Path) -> dict[str, str]:
    """Bring what a person may have made or changed in an earlier folder of detections into the new one.

    Returns
    -------
    dict
        Name of an output that was changed since it was written, to the name it now has.
    """
    record = earlier / RECORD
    hashes = json.loads(record.read_text()).get('files', {}) if record.exists() else {}
    kept = {}
    for path in sorted(earlier.iterdir()):
        target = new / path.name
        if path == record or _is_untouched(path, hashes.get(path.name), target):
            continue
        if target.exists():
            target = free_name(target, earlier / path.name)
            kept[path.name] = target.name
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(path, target)
    return kept


def _is_untouched(path, known_hash, new):
    """Whether an output is as it was written, or as it is written now."""
    known = {known_hash, sha256(new) if new.is_file() else None} - {None}
    return bool(known) and path.is_file() and not path.is_symlink() and sha256(path) in known
