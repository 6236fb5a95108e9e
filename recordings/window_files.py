"""The window files of a patient: their names, written whole or not at all, and whether they are up to date."""

import contextlib
import hashlib
import json
import os
from collections.abc import Generator
from pathlib import Path

from recordings.channels import channel_names
from system.files import staging_folder
from utils import DataError

LABEL_FILES = ('labels', 'blocks', 'timing', 'labels_t')
# What follows the stem in the names of a patient's files, in the order in which they get these names.
WINDOW_FILES = (*(f'{name}.pkl' for name in LABEL_FILES), 'settings.json', 'windows_bi')


def window_stem(directory: str | Path, number: int, nb_best_blocks: int) -> Path:
    """What the names of a patient's five window files begin with."""
    return Path(directory) / f'data_raw_{number:03d}_b{nb_best_blocks}'


@contextlib.contextmanager
def staging_folder_of(stem: Path) -> Generator[Path]:
    """Give a hidden folder for the files of a patient while they are made, for this process alone.

    What a killed run left in it is removed at the beginning, and all of it at the end.

    Yields
    ------
    Path
        The empty folder.

    Raises
    ------
    DataError
        Another run is making the same windows, or the folder cannot be written.
    """
    try:
        with staging_folder(stem, wait=False) as folder:
            yield folder
    except BlockingIOError as fault:
        raise DataError(f'{stem}_windows_bi: another run is making these windows now; wait for its end') from fault
    except OSError as fault:
        # A full disk or a folder without permission: name the file the user knows, not the temporary one.
        name = Path(fault.filename2 or fault.filename or 'windows_bi').name
        name = name if name.startswith(stem.name) else f'{stem.name}_{name}'
        raise DataError(
            f'{stem.with_name(name)}: cannot be written ({fault.strerror or fault}); free some disk space or correct '
            'the path'
        ) from fault


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


# ----------------------------------------------------------------------------------------- the sidecar
def read_sidecar(stem: str | Path) -> dict:
    """What is stored with a patient's windows: their settings, counts and input, and the sizes of their files.

    Returns
    -------
    dict
        Content of the JSON file.

    Raises
    ------
    OSError
        There is none, as in windows of the original code.
    ValueError
        It is damaged.
    """
    return json.loads(Path(f'{stem}_settings.json').read_text())


def write_sidecar(folder: Path, content: dict) -> None:
    """Write settings.json into a folder of five finished files: `content`, their channels, and their sizes."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    content = content | {'channels': channel_names(), 'sizes': sizes}
    (folder / 'settings.json').write_text(json.dumps(content, indent=2) + '\n')


def is_known_finite(stem: str | Path) -> bool:
    """Whether every window of a patient was checked for NaN and infinite values when it was written."""
    try:
        return read_sidecar(stem).get('finite') is True
    except (OSError, ValueError, AttributeError):
        return False


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
        sidecar = read_sidecar(stem)
        sizes = {name: Path(f'{stem}_{name}').stat().st_size for name in sidecar['sizes']}
        return (
            sidecar['sizes'] == sizes
            and {name: sidecar[name] for name in made_with} == made_with
            and is_same_input(sidecar['input'], path)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
