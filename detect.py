"""Apply a trained run to recordings and write detections that a reviewer can open.

    python detect.py RUN REC [REC ...] [name=value ...]

Reads   RUN, a finished run: its name in path_writing_data (AE1D_3) or its path; and recordings: CTF folders (.ds),
        FIF files, other files that MNE reads, or data_raw_NNN.pkl, of which every block counts as a recording.
Writes  next to each recording, or in the folder `output`, <recording>_detections/ with
        detections.csv      onset, duration, probas, bad (1 in a segment marked bad): an event per row
        probabilities.csv   the probability of every sub-window (200 ms)
        MarkerFile.mrk      CTF recordings: the recording's own classes and the class marker_name
        <recording>-annot.fif   the same events as annotations of MNE
        report.html         a page with pictures: surest events, their average, where it may come from
        detections.json     the run, the settings and the recording that these files were made from
        The recording does not change, unless markers_into_recording=True. Files that a person has changed in the
        folder, or added to it, stay.
"""

import json
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from classification import TrainedRun, load_run, score_block
from recordings.checks import check_split, read_checked, read_data_raw_blocks
from recordings.data_raw import read_record
from recordings.identity import identify
from recordings.marker_files import MARKER_FILE, check_replaceable, write_marker_file
from recordings.planning import plan_recordings
from recordings.reading import Recording
from reports.detection_files import bad_segment_warnings, print_result, recording_warnings, write_all
from reports.detections_folder import check_is_of, publishing
from reports.recording_detections import RecordingDetections, detections_of_recording, without_bad_segments
from runs.applied_settings import FILTERS, OF_THE_RUN, PREPROCESSING, compensation_of_run, settings_of_run
from runs.run_directory import RunDirectory, find_run, git_revision
from runs.settings import read_command
from system.files import sha256
from utils import DataError, SettingError, choose_device, choose_precision, run_script, set_seed


# ------------------------------------------------------------------------------------------- the story
def main(words: list[str]) -> None:
    """Detect spikes in every recording that the command line names.

    Raises
    ------
    DataError
        The run or a recording cannot be used.
    SettingError
        The command line is not understood.
    """
    positional, settings = read_command(words, n_positional=len(words))
    if len(positional) < 2:
        raise SettingError('usage: python detect.py RUN REC [REC ...] [name=value ...]')
    device = choose_device(settings.device)
    run = find_run(settings.path_writing_data, positional[0])
    if not run.checkpoint('best').is_file() and (run.path / 'fold_1').is_dir():
        raise DataError(f'{run.path}: a cross-validation; take one of its folds, such as {run.name}/fold_1')
    run_settings = settings_of_run(run, vars(settings))
    checkpoints = run.checkpoint('best'), run.checkpoint('best', run_settings['classifier'])
    trained = load_run(run_settings, *checkpoints, device, choose_precision(settings.precision, device))
    bad_channels = [settings.bad_channels] if isinstance(settings.bad_channels, str) else settings.bad_channels
    run_settings['bad_channels'] = bad_channels
    folders = plan_folders(positional[1:], run_settings, settings.output, settings.markers_into_recording)
    made_with = describe_run(run, run_settings, checkpoints, trained.decision)
    made_with = {'command': shlex.join(['python', 'detect.py', *words])} | made_with
    print(f'{run.name}: threshold {trained.decision["threshold"]:.4f}, {trained.decision["policy"]}; on {device}')
    set_seed(run_settings['seed'])
    for path, folder in folders.items():
        detect_in(path, folder, trained, made_with, settings)


def detect_in(path: Path, folder: Path, trained: TrainedRun, made_with: dict, settings: SimpleNamespace) -> None:
    """Read a recording, or a data_raw file, score it and publish its detections.

    Parameters
    ----------
    path, folder : path
        The recording, and where its detections go.
    trained : TrainedRun
    made_with : dict
        From `describe_run`, and the command.
    settings : namespace
    """
    sfreq, window_length = trained.settings['sfreq'], trained.window_length
    marker = {'name': settings.marker_name, 'color': settings.marker_color}
    started = time.perf_counter()
    identity = identify(path)
    for name, unit_folder, blocks in read_units(path, folder, trained.settings, window_length):
        read = time.perf_counter()
        by_block = [score_block(trained, block.meg, block.layout.lengths(sfreq).tolist()) for block in blocks]
        scored = time.perf_counter()
        detections = detections_of_recording(name, blocks, by_block)
        warnings = recording_warnings(blocks, set(made_with['compensation of the run']), window_length)
        warnings += bad_segment_warnings(detections, settings.drop_bad_segments)
        if settings.drop_bad_segments:
            detections = without_bad_segments(detections)
        for warning in warnings:
            print(f'warning: {name}: {warning}')
        with publishing(unit_folder, path, identity) as staging:
            write_all(detections, staging, made_with | {'identity': identity, 'warnings': warnings}, marker)
        if settings.markers_into_recording and blocks[0].layout.trial:
            write_into_recording(path / MARKER_FILE, detections, marker)
        written = time.perf_counter()
        print_result(detections, unit_folder, (read - started, scored - read, written - scored))
        started = time.perf_counter()


# ---------------------------------------------------------------------------------------------- the run
def describe_run(run: RunDirectory, settings: dict, checkpoints: tuple[Path, Path], decision: dict) -> dict:
    """What detections.json says of the run: its code, checkpoints, settings and decision."""
    return {
        'code revision': git_revision(),
        'run': str(run.path),
        'code revision of the run': json.loads(run.params.read_text()).get('git revision'),
        'checkpoints': {path.name: sha256(path) for path in checkpoints},
        'model': settings['model'],
        'classifier': settings['classifier'],
        'settings': {name: settings[name] for name in (*OF_THE_RUN, 'bad_channels')},
        'compensation of the run': sorted(compensation_of_run(run, settings['path_raw_data'])),
        **{name: decision[name] for name in ('threshold', 'policy', 'calibration')},
    }


# ------------------------------------------------------------------------------------------ recordings
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


def read_units(
    path: Path, folder: Path, settings: dict, window_length: int
) -> Iterator[tuple[str, Path, list[Recording]]]:
    """Read the units that get detections of their own: a recording, or every block of a data_raw file.

    Yields
    ------
    name : str
    folder : Path
        For the detections.
    blocks : list of Recording
    """
    if path.suffix == '.pkl':
        for number, block in read_data_raw_blocks(path, settings['sfreq'], window_length):
            yield f'{path.name}, block {number} ({block.name})', folder / f'block_{number:02d}', [block]
    else:
        reading = {name: settings[name] for name in (*PREPROCESSING, 'bad_channels')}
        yield path.resolve().name, folder, read_checked(path, **reading)


def write_into_recording(path: Path, detections: RecordingDetections, marker: dict[str, str]) -> None:
    """Merge the detections into the marker file of a CTF recording, and print where the earlier file is."""
    onsets = detections.events['onset'].to_numpy()
    backup = write_marker_file(path, onsets, detections.blocks[0].layout, **marker)
    earlier = f', the file before kept as {backup.name}' if backup else ''
    print(f'{path}: class {marker["name"]} written{earlier}')


if __name__ == '__main__':
    run_script(main, __doc__)
