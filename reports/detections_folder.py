"""The folder of a recording's detections: of one recording only, complete or absent, with reviewers' changes."""

import contextlib
import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from recordings.identity import identify
from system.files import free_name, link_or_copy, replace_folder, restore_folder, sha256, staging_folder
from utils import DataError, write_faults

RECORD = 'detections.json'
DATA = ('acquired', 'channels', 'samples', 'sha256')  # what of an identity stays when a recording is moved
WAYS_OUT = 'move it away or give output= another folder'


def check_is_of(folder: Path, path: Path, identity: dict | None = None) -> None:
    """Check that a folder holds no detections, or those of this recording.

    A recording is the same if it has the same path, whatever link leads to it, and the same data. It counts as moved
    if its data are the same and nothing is at its earlier path any more. Detections of earlier versions do not say
    where their recording was: a recording of the same name in the parent folder counts as theirs.

    Parameters
    ----------
    folder : path
        Of the recording. The folder of a data_raw file has a folder in it for every block.
    path : path
        The recording.
    identity : dict, optional
        From `identify`, which is called if it is needed.

    Raises
    ------
    DataError
        The folder holds the detections of another recording, or does not tell of which.
    """
    for record in [folder / RECORD, *sorted(folder.glob(f'block_*/{RECORD}'))]:
        if not record.exists():
            continue
        name, earlier = _read_identity(record)
        if name != path.resolve().name:
            raise DataError(f'{folder}: holds the detections of {earlier["path"] if earlier else name}; {WAYS_OUT}')
        if earlier is None:
            if folder.resolve().parent != path.resolve().parent:
                raise DataError(
                    f'{folder}: holds detections of an earlier version, which do not say of which {name}; {WAYS_OUT}'
                )
            continue
        identity = identity or identify(path)
        _check_identity(folder, path, earlier, identity)


def _read_identity(record: Path) -> tuple[str, dict | None]:
    """Name and identity of the recording that a detections.json is of; earlier versions have no identity."""
    try:
        content = json.loads(record.read_text())
        name, identity = content['recording'], content.get('identity')
        return name, None if identity is None else identity | {'path': str(identity['path'])}
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DataError(f'{record}: not from detect.py; {WAYS_OUT}') from fault


def _check_identity(folder: Path, path: Path, earlier: dict, identity: dict) -> None:
    """Check that two identities are of the same recording, which may have been moved."""
    earlier_path = earlier['path']
    same_data = all(earlier.get(key) == identity[key] for key in DATA)
    if earlier_path == identity['path']:
        if not same_data:
            raise DataError(
                f'{folder}: holds the detections of other data that were at {earlier_path} before; {WAYS_OUT}'
            )
    elif not same_data or (Path(earlier_path).exists() and not path.samefile(earlier_path)):
        raise DataError(f'{folder}: holds the detections of {earlier_path}, another recording; {WAYS_OUT}')


# ----------------------------------------------------------------- built next to the folder, then put in its place
@contextlib.contextmanager
def publishing(folder: Path, path: Path, identity: dict) -> Generator[Path]:
    """Give an empty folder to write detections into, which replaces `folder` when the block ends.

    Nothing changes if the block fails or the process is killed. Other files of the earlier folder move into the new
    one; so do outputs that were changed since they were written, under a free name such as MarkerFile.mrk.1.

    Parameters
    ----------
    folder : path
        Of the recording, or of a block of a data_raw file.
    path : path
        The recording.
    identity : dict
        From `identify`. It is checked again, because another process may have written meanwhile.

    Yields
    ------
    Path
        The folder to write into.

    Raises
    ------
    DataError
        From `check_is_of`, or the folder cannot be written.
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
        corrections = keep_corrections(target, new) if target.exists() else {}
        replace_folder(new, target)
    for name, backup in corrections.items():
        print(f'{folder / name}: changed since it was written, kept as {backup}')


def output_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a folder, by name, from which `keep_corrections` knows which were changed later."""
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def keep_corrections(earlier: Path, new: Path) -> dict[str, str]:
    """Bring the files that a person may have made or changed in an earlier folder of detections into the new one.

    Returns
    -------
    dict
        Name of every output that was changed since it was written, to its new name.
    """
    record = earlier / RECORD
    hashes = json.loads(record.read_text()).get('files', {}) if record.exists() else {}
    renamed = {}
    for path in sorted(earlier.iterdir()):
        target = new / path.name
        if path == record or _is_untouched(path, hashes.get(path.name), target):
            continue
        if target.exists():
            target = free_name(target, earlier / path.name)
            renamed[path.name] = target.name
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True, copy_function=_link_or_copy)
        else:
            link_or_copy(path, target)
    return renamed


def _link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """`link_or_copy` for `shutil.copytree`, which may give text for paths."""
    link_or_copy(Path(source), Path(target))


def _is_untouched(path: Path, recorded_hash: str | None, new: Path) -> bool:
    """Whether an output has the content that was recorded, or that of its successor `new`."""
    hashes = {recorded_hash, sha256(new) if new.is_file() else None} - {None}
    return bool(hashes) and path.is_file() and not path.is_symlink() and sha256(path) in hashes
