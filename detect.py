"""Apply a trained run to recordings and leave detections that a reviewer can open.

    python detect.py RUN REC [REC ...] [name=value ...]

Reads   RUN, a finished run: its name in path_writing_data (AE1D_3) or its path; and recordings: CTF folders (.ds),
        FIF files, what else MNE reads, or data_raw_NNN.pkl, of which every block counts as a recording.
Writes  beside each recording, or in the folder `output`, <recording>_detections/ with
        detections.csv      onset, duration, probas, bad (1 in a segment marked bad): an event per row
        probabilities.csv   the probability of every sub-window (200 ms)
        MarkerFile.mrk      CTF recordings: the recording's own classes and the class marker_name
        <recording>-annot.fif   the same events as annotations of MNE
        report.html         a page with pictures: surest events, their average, where it may come from
        detections.json     what all this was made with
        The recording is not touched, unless markers_into_recording=True. What a person has changed in the folder or
        added to it is kept.
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
from recordings.marker_files import MARKER_FILE, check_replaceable, write_marker_file
from recordings.planning import plan_recordings
from recordings.reading import Recording
from reports.detection_files import (
    bad_segment_warnings,
    print_result,
    recording_warnings,
    without_bad_segments,
    write_all,
)
from reports.detection_page import seconds_of_events
from reports.detections_folder import check_is_of, identify, publishing
from runs.applied_settings import FILTERS, OF_THE_RUN, PREPROCESSING, compensation_of_run, settings_of_run
from runs.run_directory import find_run, git_revision
from runs.settings import read_command
from system.files import sha256
from utils import DataError, SettingError, choose_device, choose_precision, run_script, set_seed


# ------------------------------------------------------------------------------------------ the script
def main(words: list[str]) -> None:
    """Detect in every recording that the command line names."""
    positional, settings = read_command(words, n_positional=len(words))
    if len(positional) < 2:
        raise SettingError('usage: python detect.py RUN REC [REC ...] [name=value ...]')
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    run = find_run(settings.path_writing_data, positional[0])
    if not run.checkpoint('best').is_file() and (run.path / 'fold_1').is_dir():
        raise DataError(f'{run.path}: a cross-validation; take one of its folds, such as {run.name}/fold_1')
    of_run = settings_of_run(run, vars(settings))
    checkpoints = run.checkpoint('best'), run.checkpoint('best', of_run['classifier'])
    trained = load_run(of_run, *checkpoints, device, precision)
    bad_channels = [settings.bad_channels] if isinstance(settings.bad_channels, str) else settings.bad_channels
    of_run['bad_channels'] = bad_channels
    folders = plan(positional[1:], of_run, settings.output, settings.markers_into_recording)
    made_with = {
        'command': shlex.join(['python', 'detect.py', *words]),
        'code revision': git_revision(),
        'run': str(run.path),
        'code revision of the run': json.loads(run.params.read_text()).get('git revision'),
        'checkpoints': {path.name: sha256(path) for path in checkpoints},
        'model': of_run['model'],
        'classifier': of_run['classifier'],
        'settings': {name: of_run[name] for name in (*OF_THE_RUN, 'bad_channels')},
        'compensation of the run': sorted(compensation_of_run(run, of_run['path_raw_data'])),
        **{name: trained.decision[name] for name in ('threshold', 'policy', 'calibration')},
    }
    print(f'{run.name}: threshold {trained.decision["threshold"]:.4f}, {trained.decision["policy"]}; on {device}')
    set_seed(of_run['seed'])
    for path, folder in folders.items():
        detect_in(path, folder, trained, made_with, settings)


def detect_in(path: Path, folder: Path, trained: TrainedRun, made_with: dict, settings: SimpleNamespace) -> None:
    """Read a recording, or a data_raw file, score it and publish what was found.

    Parameters
    ----------
    made_with : dict
        What detections.json says of the run.
    """
    sfreq, window_length = trained.settings['sfreq'], trained.window_length
    marker = {'name': settings.marker_name, 'color': settings.marker_color}
    started = time.perf_counter()
    identity = identify(path)
    for name, unit_folder, blocks in read_units(path, folder, trained.settings, window_length):
        read = time.perf_counter()
        found = [score_block(trained, block.meg, block.layout.lengths(sfreq).tolist()) for block in blocks]
        scored = time.perf_counter()
        warnings = recording_warnings(blocks, set(made_with['compensation of the run']), window_length)
        warnings += bad_segment_warnings(blocks, found, settings.drop_bad_segments)
        if settings.drop_bad_segments:
            found = [without_bad_segments(of_block, block) for of_block, block in zip(found, blocks, strict=True)]
        for warning in warnings:
            print(f'warning: {name}: {warning}')
        with publishing(unit_folder, path, identity) as staging:
            described = made_with | {'identity': identity, 'warnings': warnings}
            write_all(name, staging, blocks, found, described, marker)
        if settings.markers_into_recording and blocks[0].layout.trial:
            onsets = seconds_of_events(blocks, found)['onset'].to_numpy()
            backup = write_marker_file(path / MARKER_FILE, onsets, blocks[0].layout, **marker)
            kept = f', the file before kept as {backup.name}' if backup else ''
            print(f'{path / MARKER_FILE}: class {marker["name"]} written{kept}')
        written = time.perf_counter()
        print_result(name, unit_folder, blocks, found, [read - started, scored - read, written - scored])
        started = time.perf_counter()


# ------------------------------------------------------------------------------------------ recordings
def plan(words: list[str], settings: dict, output: str | None, markers_into_recording: bool) -> dict[Path, Path]:
    """Check every recording and where its detections go, before the first is read: recording to folder.

    Raises
    ------
    DataError, SettingError
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
            raise SettingError(
                f'{path}: its detections would go into {folder} too; give it a command or output of its own'
            )
        if path.suffix != '.pkl':
            [planned] = plan_recordings([str(path)], **reading)
            files[path] = planned.files
            if markers_into_recording and path.resolve().suffix == '.ds':
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
    """Refuse a data_raw file that was filtered or sampled otherwise than the run's, as far as is noted beside it."""
    made_with = read_record(path).get('settings', {})
    for name in FILTERS:
        if name in made_with and made_with[name] != settings[name]:
            raise DataError(
                f'{path}: made with {name} = {made_with[name]!r}, but the run with {settings[name]!r}; make it again '
                f'with {name}={settings[name]!r}'
            )


def check_folder(folder: Path, path: Path) -> None:
    """Check that the detections of a recording can go into a folder: it can be replaced, and is of no other."""
    if folder.exists():
        check_writable(folder)
    check_writable(next(place for place in folder.resolve().parents if place.exists()))
    check_is_of(folder, path)


def check_writable(folder: Path) -> None:
    """Check that files can be made in a folder."""
    if not folder.is_dir():
        raise DataError(f'{folder}: is no folder; move it away or give output=')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f'{folder}: cannot be written; give output= a folder of yours')


def read_units(
    path: Path, folder: Path, settings: dict, window_length: int
) -> Iterator[tuple[str, Path, list[Recording]]]:
    """Read what has detections of its own: a recording, or every block of a data_raw file.

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


if __name__ == '__main__':
    run_script(main, __doc__)
