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

import mne
import numpy as np
import pandas as pd

from bad_segments import recorded_segments
from classification import Detections, load_run, score_block
from create_data_raw import plan_recordings
from data_raw import channel_names, ctf275_info, read_data_raw, read_record, record_warnings
from detect_report import (
    bad_seconds,
    coordinates,
    in_bad_segments,
    interpolated_channels,
    locate,
    seconds_of_events,
    seconds_of_subwindows,
    write_report,
)
from detections_folder import check_is_of, identify, output_hashes, publishing
from files import sha256
from marker_files import MARKER_FILE, check_replaceable, write_marker_file
from recording_checks import block_warnings, check_split, read_checked, training_warnings
from recordings import Layout, Recording, check_filters
from saving_functions import RunDirectory, find_run, git_revision, load_params
from settings import check_settings, read_command
from timeseries_dataset import PARTS, WINDOW_SETTINGS
from utils import DataError, SettingError, choose_device, choose_precision, run_script, set_seed, write_json, writing

FILTERS = ('sfreq', 'high_pass', 'low_pass', 'notch')
PREPROCESSING = (*FILTERS, 'trials')
# Settings that say how signal becomes sub-windows: those of the run are used, whatever params.py says.
OF_THE_RUN = (*PREPROCESSING, *(name for name in WINDOW_SETTINGS if name not in PREPROCESSING), 'subwindow_size')


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
    best = run.checkpoint('best'), run.checkpoint('best', of_run['classifier'])
    trained = load_run(of_run, *best, device, precision)
    bad_channels = [settings.bad_channels] if isinstance(settings.bad_channels, str) else settings.bad_channels
    folders = plan(positional[1:], of_run, bad_channels, settings.output, settings.markers_into_recording)
    trained_on = compensation_of_run(run, of_run['path_raw_data'])
    made_with = {
        'command': shlex.join(['python', 'detect.py', *words]),
        'code revision': git_revision(),
        'run': str(run.path),
        'code revision of the run': json.loads(run.params.read_text()).get('git revision'),
        'checkpoints': {path.name: sha256(path) for path in best},
        'model': of_run['model'],
        'classifier': of_run['classifier'],
        'settings': {name: of_run[name] for name in OF_THE_RUN} | {'bad_channels': bad_channels},
        'compensation of the run': sorted(trained_on),
        **{name: trained.decision[name] for name in ('threshold', 'policy', 'calibration')},
    }
    marker = {'name': settings.marker_name, 'color': settings.marker_color}
    print(f'{run.name}: threshold {trained.decision["threshold"]:.4f}, {trained.decision["policy"]}; on {device}')
    set_seed(of_run['seed'])
    n_times = round(of_run['window_size'] * of_run['sfreq'])
    for path, folder in folders.items():
        started = time.perf_counter()
        identity = identify(path)
        for name, sub, blocks in read_units(path, folder, of_run, bad_channels):
            read = time.perf_counter()
            found = [
                score_block(trained, block.meg, block.layout.lengths(of_run['sfreq']).tolist()) for block in blocks
            ]
            judged = time.perf_counter()
            warnings = recording_warnings(blocks, trained_on, n_times)
            warnings += bad_segment_warnings(blocks, found, settings.drop_bad_segments)
            if settings.drop_bad_segments:
                found = [without_bad_segments(one, block) for one, block in zip(found, blocks, strict=True)]
            for warning in warnings:
                print(f'warning: {name}: {warning}')
            described = made_with | {'identity': identity, 'warnings': warnings}
            with publishing(sub, path, identity) as staging:
                write_all(name, staging, blocks, found, described, marker)
            if settings.markers_into_recording and blocks[0].layout.trial:
                onsets = seconds_of_events(blocks, found)['onset'].to_numpy()
                backup = write_marker_file(path / MARKER_FILE, onsets, blocks[0].layout, **marker)
                print(f'{path / MARKER_FILE}: class {marker["name"]} written'
                      + (f', the file before kept as {backup.name}' if backup else ''))  # fmt: skip
            ended = time.perf_counter()
            print_result(name, sub, blocks, found, [read - started, judged - read, ended - judged])
            started = time.perf_counter()


def settings_of_run(run: RunDirectory, now: dict) -> dict:
    """The settings of a run, by which its data were made; says which are others now.

    How its recordings were preprocessed is taken from the data_raw_NNN.json of its patients, where there are any.

    Raises
    ------
    DataError
        params.json is missing or damaged, or the patients were preprocessed in different ways.
    """
    params = load_params(run)
    saved = params['settings']
    unsaid = [name for name in OF_THE_RUN if name not in saved]
    if unsaid:
        print(f'warning: run {run.name} does not say its {", ".join(unsaid)}: those of params.py are used')
    settings = now | saved
    recorded = {}
    for path, record in records_of_run(params, settings['path_raw_data']):
        made_with = record.get('settings', {})
        for name in PREPROCESSING:
            if name in made_with and recorded.setdefault(name, made_with[name]) != made_with[name]:
                raise DataError(
                    f'{path}: made with {name} = {made_with[name]!r}, others of run {run.name} with '
                    f'{recorded[name]!r}: no recording can be preprocessed as all of them; make them again'
                )
    if 'sfreq' in saved and recorded.get('sfreq', saved['sfreq']) != saved['sfreq']:
        raise DataError(
            f'{run.params}: trained with sfreq = {settings["sfreq"]!r}, but the data_raw files of its patients in '
            f'{settings["path_raw_data"]} are made with {recorded["sfreq"]!r} now; make them again with '
            f'sfreq={settings["sfreq"]!r}, or train the run again'
        )
    settings |= recorded
    try:
        check_settings({name: settings[name] for name in now})
        check_filters(**{name: settings[name] for name in FILTERS})
    except SettingError as fault:
        raise DataError(f'{run.params}: {fault}') from fault
    for name in OF_THE_RUN:
        if settings[name] != now[name]:
            print(f'warning: {name} = {now[name]!r} now, but run {run.name} has {settings[name]!r}, which is used')
    return settings


def records_of_run(params: dict, path_raw_data: str) -> list[tuple[Path, dict]]:
    """The data_raw files of a run's patients, and what was noted beside them when they were made, if anything."""
    numbers = sorted({number for part in PARTS for number in params['split'].get(part, ())})
    paths = [Path(path_raw_data) / f'data_raw_{number:03d}.pkl' for number in numbers]
    return [(path, read_record(path)) for path in paths]


def compensation_of_run(run: RunDirectory, path_raw_data: str) -> set[int]:
    """Compensation grades of the recordings of a run's patients, as far as they are noted."""
    records = [record for _, record in records_of_run(load_params(run), path_raw_data)]
    grades = {one.get('compensation') for record in records for one in record.get('recordings', [])}
    return grades - {None}


# ------------------------------------------------------------------------------------------ recordings
def plan(
    words: list[str], settings: dict, bad_channels: list[str], output: str | None, markers_into_recording: bool
) -> dict[Path, Path]:
    """Check every recording and where its detections go, before the first is read: recording to folder.

    Raises
    ------
    DataError, SettingError
    """
    reading = {name: settings[name] for name in ('sfreq', 'window_size', 'low_pass', 'trials')}
    folders, files = {}, {}
    for path in map(Path, words):
        if path.suffix == '.mrk' or path.name.endswith(('-annot.fif', '-annot.fif.gz')):
            raise SettingError(f'{path}: an annotation, not a recording')
        folder = Path(output or path.absolute().parent) / f'{path.resolve().stem}_detections'
        if any(parent.suffix == '.ds' for parent in folder.absolute().parents):
            raise SettingError(f'output = {output!r}: lies in a CTF recording, which is not written to; take another')
        if path in folders or folder in folders.values():
            raise SettingError(
                f'{path}: its detections would go into {folder} too; give it a command or output of its own'
            )
        if path.suffix != '.pkl':
            [planned] = plan_recordings([str(path)], bad_channels=bad_channels, **reading)
            files[path] = planned.files
            if markers_into_recording and path.resolve().suffix == '.ds':
                check_replaceable(path / MARKER_FILE)
                check_writable((path / MARKER_FILE).resolve().parent)
        elif not path.is_file():
            raise DataError(f'{path}: no such recording; correct the path')
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
    path: Path, folder: Path, settings: dict, bad_channels: list[str]
) -> Iterator[tuple[str, Path, list[Recording]]]:
    """Read what has detections of its own: a recording, or every block of a data_raw file.

    Yields
    ------
    name, folder for the detections, blocks
    """
    if path.suffix != '.pkl':
        reading = {name: settings[name] for name in PREPROCESSING}
        yield path.resolve().name, folder, read_checked(path, bad_channels=bad_channels, **reading)
        return
    record = read_record(path)
    data, sfreq = read_data_raw(path), settings['sfreq']
    noted = {one['file']: one for one in record.get('recordings', [])}
    bad_segments = recorded_segments(record, data['file'])
    ctf275 = set(channel_names())  # data_raw made of another system may list channels of that system
    n_times = round(settings['window_size'] * sfreq)
    if max(signal.shape[1] for signal in data['meg']) < n_times:
        raise DataError(f'{path}: every block is shorter than a window of {n_times} samples')
    for block, (signal, name) in enumerate(zip(data['meg'], data['file'], strict=True)):
        n_samples = signal.shape[1]
        if n_samples < n_times:
            print(f'warning: {path}: block {block} ({name}) is shorter than a window and left out')
            continue
        layout = Layout(path, sfreq, [(0, n_samples)], None, 0.0, None)
        known = noted.get(name, {})
        facts = {
            'file': name,
            'seconds': n_samples / sfreq,
            'sampling_rate': sfreq,
            'system': 'a block of data_raw, which does not say where its recording had gaps',
            'compensation': known.get('compensation'),
            'interpolated': [channel for channel in known.get('interpolated', []) if channel in ctf275],
            'bad_segments': bad_segments[block],
            'warnings': record_warnings(record, data['file']) + known.get('warnings', []) + block_warnings(signal),
        }
        yield (
            f'{path.name}, block {block} ({name})',
            folder / f'block_{block:02d}',
            [Recording(name, signal, layout, ctf275_info(sfreq), facts)],
        )


def without_bad_segments(found: Detections, block: Recording) -> Detections:
    """What was found in a block, without the events in segments marked bad."""
    return found._replace(events=found.events[~in_bad_segments(block, found.events['sample'])])


def recording_warnings(blocks: list[Recording], trained_on: set[int], n_times: int) -> list[str]:
    """What is wrong with a recording, also beside the compensation grades and windows that the run was trained on."""
    warnings = [warning for block in blocks for warning in block.facts['warnings']]
    warnings += training_warnings(blocks[0].facts['compensation'], trained_on)
    if min(block.layout.lengths(block.info['sfreq']).min() for block in blocks) < n_times:
        warnings.append('continuous parts shorter than a window are judged with mirror images of themselves')
    return list(dict.fromkeys(warnings))


def bad_segment_warnings(blocks: list[Recording], found: list[Detections], drop: bool) -> list[str]:
    """Detections in segments marked bad, and what becomes of them: dropped, or marked."""
    n_bad = seconds_of_events(blocks, found)['bad'].sum()
    if not n_bad:
        return []
    fate = 'left out' if drop else 'marked in the column bad'
    return [f'{n_bad} detections lie in segments marked bad and are {fate} (drop_bad_segments)']


# ------------------------------------------------------------------------------------------ what is left
def write_all(name: str, folder: Path, blocks: list[Recording], found: list[Detections], made_with: dict, marker: dict):
    """Write the detections of a recording, detections.json last.

    Parameters
    ----------
    made_with : dict
        What detections.json says of the run.
    marker : dict
        name and color of the class of markers.
    """
    layout, facts = blocks[0].layout, blocks[0].facts
    events, subwindows = seconds_of_events(blocks, found), seconds_of_subwindows(blocks, found)
    onsets = events['onset'].to_numpy()
    with writing(folder / 'probabilities.csv') as temporary:
        subwindows.round({'onset': 6, 'duration': 6}).to_csv(temporary, index=False)
    zeros = np.zeros(len(onsets))
    write_detections(folder / 'detections.csv', onsets, zeros, events['proba'].to_numpy(), events['bad'].to_numpy())
    stem = layout.path.resolve().stem if layout.path.suffix != '.pkl' else folder.name
    write_annotations(folder / f'{stem}-annot.fif', onsets, np.zeros(len(onsets)), marker['name'], layout)
    if layout.trial:
        own = layout.path / MARKER_FILE
        write_marker_file(folder / MARKER_FILE, onsets, layout, source=own if own.exists() else None, **marker)
    minutes = sum(block.facts['seconds'] for block in blocks) / 60
    source, average, n_averaged = locate(blocks, found)
    write_report(name, folder, blocks, found, made_with, source, average, n_averaged)
    dipole = None
    if source:
        dipole = {
            'events averaged': n_averaged,
            'position': source.position,
            'orientation': source.orientation,
            'moment': source.moment,
            'goodness of fit': source.goodness,
            'coordinates': coordinates(blocks[0].info),
        }
    write_json(
        folder / 'detections.json',
        {
            'recording': layout.path.resolve().name,
            'files': output_hashes(folder),
            'block': None if layout.path.suffix != '.pkl' else facts['file'],
            'warnings': made_with['warnings'],
            **made_with,
            'system': facts['system'],
            'compensation': facts['compensation'],
            'interpolated channels': interpolated_channels(blocks),
            'sampling rate': layout.sfreq,
            'continuous parts': sum(len(block.layout.parts) for block in blocks),
            'minutes': minutes,
            'detections': len(events),
            'detections per minute': len(events) / minutes,
            'detections in bad segments': events['bad'].sum(),
            'bad segments': bad_seconds(blocks),
            'marker': marker['name'],
            'dipole': dipole,
            'units': {
                'bad segments': 's from the first sample of the recording: onset, end',
                'onset, duration': 's, onset from the first sample of the recording, at the peak of the field power',
                'sampling rate, high_pass, low_pass, notch': 'Hz',
                'position': 'm',
                'moment': 'A m',
                'signal': 'T',
                'threshold, proba': 'probability',
            },
        },
    )


def print_result(name, folder, blocks, found, seconds):
    """Say how much was found, and how long reading, judging and writing took."""
    recorded = sum(block.facts['seconds'] for block in blocks)
    n_events = sum(len(one.events) for one in found)
    read, judged, written = seconds
    interpolated = interpolated_channels(blocks)
    print(
        f'{name}: {n_events} detections in {recorded / 60:.2f} min ({60 * n_events / recorded:.1f} per minute); '
        f'interpolated: {", ".join(interpolated) or "none"}; in {folder}\n'
        f'  {recorded / sum(seconds):.1f} times faster than real time: reading {read:.1f} s, detection {judged:.1f} s, '
        f'writing {written:.1f} s'
    )


# ------------------------------------------------------------------------------------------ review files
def write_detections(
    path: str | Path, onsets: np.ndarray, durations: np.ndarray, probas: np.ndarray, bad: np.ndarray | None = None
) -> None:
    """Write detections.csv, one row per event: `onset` and `duration` in s, as MNE's browser counts, and `probas`; and
    where `bad` is given, 1 for events in segments marked bad."""
    table = pd.DataFrame({'onset': onsets, 'duration': durations, 'probas': probas})
    if bad is not None:
        table['bad'] = np.asarray(bad, dtype=np.int64)
    with writing(path) as temporary:
        table.to_csv(temporary, index=False, float_format='%.6f')


def write_annotations(path: str | Path, onsets: np.ndarray, durations: np.ndarray, label: str, layout: Layout) -> None:
    """Write MNE annotations (a name that ends in -annot.fif), to set on the recording or to add to its own.

    `onsets` are in s from the recording's first sample, as MNE's browser counts.
    """
    # Annotations with a date count from that date, those without from the first sample.
    start = layout.first_time if layout.meas_date else 0.0
    notes = mne.Annotations(np.asarray(onsets) + start, durations, label, orig_time=layout.meas_date)
    with writing(path) as temporary:
        notes.save(temporary, overwrite=True, verbose='error')


if __name__ == '__main__':
    run_script(main, __doc__)
