"""What detect.py checks before it reads the first recording: recordings, and the folders of their detections."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from recordings.checks import check_split
from recordings.data_raw import read_record
from recordings.identity import identify
from recordings.marker_files import MARKER_FILE, check_replaceable
from recordings.planning import input_hash, is_annotation, plan_recordings
from reports.detections_folder import RECORD, check_is_of
from runs.applied_settings import FILTERS
from utils import DataError, SettingError


class DetectionPlan(NamedTuple):
    """A recording, or data_raw file, to detect spikes in.

    Attributes
    ----------
    path : Path
        The recording.
    markers : Path or None
        What is read instead of its own markers.
    folder : Path
        Where its detections go.
    identity : dict
        From `identify`.
    samples : set of str
        SHA-256 of the recordings' samples, as data_raw_NNN.json has them.
    input : str
        SHA-256 of what is read of it.
    """

    path: Path
    markers: Path | None
    folder: Path
    identity: dict
    samples: set[str]
    input: str


def plan_detections(
    recordings: list[tuple[Path, Path | None]], settings: dict, output: str | None, into_recording: bool
) -> list[DetectionPlan]:
    """Check every recording, and the folder of its detections, before the first recording is read.

    Parameters
    ----------
    recordings : list of (Path, Path or None)
        Recordings, or data_raw files, and what is read instead of their own markers.
    settings : dict
        Of the run.
    output : str or None
        The setting of this name.
    into_recording : bool
        Whether markers are written into CTF recordings too.

    Returns
    -------
    list of DetectionPlan

    Raises
    ------
    DataError
        A recording is missing or cannot be used, or a folder cannot be written.
    SettingError
        A path is no recording, or its detections would have no folder of their own.
    """
    reading = {name: settings[name] for name in ('sfreq', 'window_size', 'low_pass', 'trials', 'bad_channels')}
    plans, folders, files = [], set(), {}
    for path, markers in recordings:
        if is_annotation(path.name):
            raise SettingError(f'{path}: an annotation, not a recording')
        if not path.exists():
            raise DataError(f'{path}: no such recording; correct the path')
        folder = Path(output or path.absolute().parent) / f'{path.resolve().stem}_detections'
        if any(parent.suffix == '.ds' for parent in folder.absolute().parents):
            raise SettingError(f'output = {output!r}: lies in a CTF recording, which is not written to; take another')
        if folder in folders:
            raise SettingError(f'{path}: its detections would go into {folder} too; give it an output of its own')
        folders.add(folder)
        if path.suffix == '.pkl':
            plans.append(_plan_data_raw(path, folder, settings))
            continue
        planned = plan_recordings([str(path), *([str(markers)] if markers else [])], **reading)
        files[path] = planned[0].files
        if into_recording and path.resolve().suffix == '.ds':
            check_replaceable(path / MARKER_FILE)
            check_writable((path / MARKER_FILE).resolve().parent)
        identity = identify(path)
        check_folder(folder, path, identity)
        samples = identity['sha256']
        plans.append(DetectionPlan(path, markers, folder, identity, {samples}, input_hash(planned, samples)))
    check_split(files)
    return plans


def _plan_data_raw(path, folder, settings):
    """Plan a data_raw file."""
    if not path.is_file():
        raise DataError(f'{path}: is no file; correct the path')
    check_filters_of(path, settings)
    identity, record = identify(path), read_record(path)
    check_folder(folder, path, identity)
    samples = {recording.get('sha256') for recording in record.get('recordings', [])} - {None}
    return DetectionPlan(path, None, folder, identity, samples, input_hash([], identity['sha256'], record))


def is_made(folder: Path, made_from: str) -> bool:
    """Whether a folder holds all files of the detections in a recording, made from the input of this hash."""
    record = folder / RECORD
    if not record.is_file():
        return False
    content = json.loads(record.read_text())
    return content.get('input') == made_from and all((folder / name).exists() for name in content['files'])


def seen_warnings(samples: set[str], seen: dict[str, str]) -> list[str]:
    """Warn of recordings that the run has seen in training or validation; `seen` is from `seen_by_run`."""
    files = sorted({seen[digest] for digest in samples if digest in seen})
    return [
        f'the run has seen this recording: it is in {file}; its detections say nothing about new patients'
        for file in files
    ]


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


def check_folder(folder: Path, path: Path, identity: dict) -> None:
    """Check that a folder can be written, or replaced, and holds no detections of another recording than `path`."""
    if folder.exists():
        check_writable(folder)
    check_writable(next(parent for parent in folder.resolve().parents if parent.exists()))
    check_is_of(folder, path, identity)


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
