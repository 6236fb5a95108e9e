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
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from classification import TrainedRun, load_run, score_block
from recordings.checks import read_checked, read_data_raw_blocks
from recordings.identity import identify
from recordings.marker_files import MARKER_FILE, write_marker_file
from recordings.reading import Recording
from reports.detection_files import bad_segment_warnings, print_result, recording_warnings, write_all
from reports.detection_planning import plan_folders
from reports.detections_folder import publishing
from reports.recording_detections import RecordingDetections, detections_of_recording, without_bad_segments
from runs.applied_settings import OF_THE_RUN, PREPROCESSING, compensation_of_run, settings_of_run
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
