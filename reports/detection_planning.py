"""What detect.py checks before it reads the first recording: recordings, and the folders of their detections."""

import os
from pathlib import Path

from recordings.checks import check_split
from recordings.data_raw import read_record
from recordings.marker_files import MARKER_FILE, check_replaceable
from recordings.planning import plan_recordings
from reports.detections_folder import check_is_of
from runs.applied_settings import FILTERS
from utils import DataError, SettingError


def plan_folders(words: list[str], settings: dict, output: str | None, into_recording: bool) -> dict[Path, Path]:
    """Check every recording, and the folder of its detections, before the first recording is read.

    Parameters
    ----------
    words : list of str
        Paths of the recordings.
    settings : dict
        Of the run.
    output : str or None
        The setting of this name.
    into_recording : bool
        Whether markers are written into CTF recordings too.

    Returns
    -------
    dict
        Recording to folder.

    Raises
    ------
    DataError
        A recording is missing or cannot be used, or a folder cannot be written.
    SettingError
        A path is no recording, or its detections would have no folder of their own.
    """
    reading = {name: settings[name] for name in ('sfreq', 'window_size', 'low_pass', 'trials', 'bad_channels')}
    folders, files = {}, {}
    for path in map(Path, words):
        if path.suffix == '.mrk' or path.name.endswith(('-annot.fif', '-annot.fif.gz')):
            raise SettingError(f'{path}: an annotation, not a recording')
        if not path.exists():
            raise DataError(f'{path}: no such recording; correct the path')
        folder = Path(output or path.absolute().parent) / f'{path.resolve().stem}_detections'
        if any(parent.suffix == '.ds' for parent in folder.absolute().parents):
            raise SettingError(f'output = {output!r}: lies in a CTF recording, which is not written to; take another')
        if path in folders or folder in folders.values():
            raise SettingError(f'{path}: its detections would go into {folder} too; give it an output of its own')
        if path.suffix != '.pkl':
            [planned] = plan_recordings([str(path)], **reading)
            files[path] = planned.files
            if into_recording and path.resolve().suffix == '.ds':
                check_replaceable(path / MARKER_FILE)
                check_writable((path / MARKER_FILE).resolve().parent)
        elif not path.is_file():
            raise DataError(f'{path}: is no file; correct the path')
        else:
            check_filters_of(path, settings)
        check_folder(folder, path)
        folders[path] = folder
    check_split(files)
    return folders


def check_filters_of(path: Path, settings: dict) -> None:
    """Check that a data_raw file was filtered and sampled like those of the run, as far as its record says.

    Raises
    ------
    DataError
        A setting differs.
    """
    made_with = read_record(path).get('settings', {})
    for name in FILTERS:
        if name in made_with and made_with[name] != settings[name]:
            raise DataError(
                f'{path}: made with {name} = {made_with[name]!r}, but the run with {settings[name]!r}; make it again '
                f'with {name}={settings[name]!r}'
            )


def check_folder(folder: Path, path: Path) -> None:
    """Check that a folder can be written, or replaced, and holds no detections of another recording than `path`."""
    if folder.exists():
        check_writable(folder)
    check_writable(next(parent for parent in folder.resolve().parents if parent.exists()))
    check_is_of(folder, path)


def check_writable(folder: Path) -> None:
    """Check that files can be made in a folder.

    Raises
    ------
    DataError
        It is no folder, or may not be written to.
    """
    if not folder.is_dir():
        raise DataError(f'{folder}: is no folder; move it away or give output=')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f'{folder}: cannot be written; give output= a folder of yours')
