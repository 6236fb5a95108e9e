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
        The recording is not touched, unless markers_into_recording=True.
"""

import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import mne
import numpy as np
import pandas as pd

from bad_segments import recorded_segments
from classification import SubwindowShape, TrainedRun, field_peaks, gather, load_run
from create_data_raw import plan_recordings
from data_processing import block_statistics, scale, scale_window
from data_raw import channel_names, ctf275_info, read_data_raw, read_record, record_warnings
from detect_report import (
    Found,
    bad_seconds,
    coordinates,
    in_bad_segments,
    interpolated_channels,
    locate,
    seconds_of_events,
    seconds_of_subwindows,
    write_report,
)
from evaluation import merge_events
from marker_files import MARKER_FILE, read_marker_file, write_marker_file
from recording_checks import block_warnings, check_split, read_checked, training_warnings
from recordings import Layout, Recording, check_filters
from run_data import WINDOW_SETTINGS, zscored
from saving_functions import RunDirectory, find_run, git_revision, load_params
from settings import check_settings, read_command
from timeseries_dataset import PARTS, PatientWindows, WindowDataset, batches, id_table
from utils import DataError, SettingError, choose_device, choose_precision, run_script, set_seed, write_json, writing

FILTERS = ('sfreq', 'high_pass', 'low_pass', 'notch')
PREPROCESSING = (*FILTERS, 'trials')
# Settings that say how signal becomes sub-windows: those of the run are used, whatever params.py says.
OF_THE_RUN = (*PREPROCESSING, *(name for name in WINDOW_SETTINGS if name not in PREPROCESSING), 'subwindow_size')
# Windows at once in memory, and in the networks: on a CPU more are no faster, a GPU takes them all.
CHUNK, BATCH = 64, {'cpu': 8, 'cuda': 64}


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
        for name, sub, blocks in read_units(path, folder, of_run, bad_channels):
            read = time.perf_counter()
            found = [judge_block(trained, block) for block in blocks]
            judged = time.perf_counter()
            warnings = recording_warnings(blocks, trained_on, n_times)
            warnings += bad_segment_warnings(blocks, found, settings.drop_bad_segments)
            if settings.drop_bad_segments:
                found = [without_bad_segments(one, block) for one, block in zip(found, blocks, strict=True)]
            for warning in warnings:
                print(f'warning: {name}: {warning}')
            write_all(name, sub, blocks, found, made_with | {'warnings': warnings}, marker)
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


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


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
                check_writable(path)
        elif not path.is_file():
            raise DataError(f'{path}: no such recording; correct the path')
        else:
            check_filters_of(path, settings)
        check_folder(folder, path.resolve().name)
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


def check_folder(folder: Path, name: str) -> None:
    """Check that the detections of a recording can go into a folder: it can be written, and is of no other."""
    check_writable(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
    for record in (folder / 'detections.json', folder / 'block_00' / 'detections.json'):
        if record.exists():
            try:
                other = json.loads(record.read_text())['recording']
            except (ValueError, KeyError, TypeError) as fault:
                raise DataError(f'{record}: not from detect.py; move it away or give output=') from fault
            if other != name:
                raise DataError(f'{folder}: holds the detections of {other}; move it away or give output=')
    if (folder / MARKER_FILE).exists():
        read_marker_file(folder / MARKER_FILE)


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


# ----------------------------------------------------------------------------------------- probabilities
def place_windows(lengths: Iterable[int], shape: SubwindowShape, n_times: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Lay windows over a block so that their sub-windows tile every continuous part of it.

    In each part the windows that fit lie as in training. Others, moved by whole sub-windows, judge what these leave at
    both ends; what they show beyond the ends are mirror images. No window shows two parts.

    Parameters
    ----------
    lengths : iterable of int
        Samples of the continuous parts.
    n_times : int
        Samples of a window.

    Returns
    -------
    samples : int array (n_windows, n_times)
        Sample of the block that each window shows at each of its samples.
    table : DataFrame
        One row per sub-window, window after window: part; timing, its centre in samples of the part; onset and end in
        samples of the block, cut at the ends of the part; kept, False where another window judges it; usual, True in
        the windows that lie as in training.
    """
    samples, tables, offset = [], [], 0
    before = math.ceil(shape.border / shape.n_times)  # sub-windows before the first window's first
    for part, length in enumerate(lengths):
        end = math.ceil((length - shape.border) / shape.n_times)
        n_fit = max(0, (length - n_times) // (shape.n_sub * shape.n_times) + 1)
        # Number of each window's first sub-window, which is its place in sub-windows too.
        firsts = [*range(0, n_fit * shape.n_sub, shape.n_sub), *range(-before, 0, shape.n_sub)]
        reached = max((first + shape.n_sub for first in firsts), default=0)
        while reached < end:
            firsts.append(min(reached, end - shape.n_sub))
            reached = firsts[-1] + shape.n_sub
        starts = np.array(firsts) * shape.n_times
        margins = max(0, -starts.min()), max(0, starts.max() + n_times - length)
        shown = np.pad(np.arange(length), margins, mode='reflect' if length > 1 else 'edge')
        samples.append(offset + shown[starts[:, None] + margins[0] + np.arange(n_times)])

        number = (np.array(firsts)[:, None] + np.arange(shape.n_sub)).ravel()
        kept = np.zeros(len(number), dtype=bool)
        kept[np.unique(number, return_index=True)[1]] = True  # the first, so that training's windows come first
        onset = shape.border + number * shape.n_times
        tables.append(
            pd.DataFrame(
                {
                    'part': part,
                    'timing': onset + shape.n_times / 2,
                    'onset': offset + np.clip(onset, 0, length),
                    'end': offset + np.clip(onset + shape.n_times, 0, length),
                    'kept': kept & (-before <= number) & (number < end),
                    'usual': np.arange(len(number)) < n_fit * shape.n_sub,
                }
            )
        )
        offset += length
    return np.concatenate(samples), pd.concat(tables, ignore_index=True)


def judge_block(trained: TrainedRun, block: Recording) -> Found:
    """Apply a run to every sample of a block, scaled as in training."""
    settings, shape = trained.settings, trained.shape
    signal, standardize, sfreq = block.meg, settings['standardize'], settings['sfreq']
    samples, table = place_windows(block.layout.lengths(sfreq).tolist(), shape, round(settings['window_size'] * sfreq))
    if standardize == 'block':
        deviations = np.empty(signal.shape, '<f4')
        signal = scale(deviations, *block_statistics(signal, deviations))
    batch_size = BATCH[trained.device.type]
    inputs, peaks = [], []
    for first in range(0, len(samples), CHUNK):
        shown = samples[first : first + CHUNK]
        windows = np.empty((len(shown), len(signal), samples.shape[1]), dtype='<f4')
        for window, columns in zip(windows, shown, strict=True):
            cut = signal[:, columns]
            if standardize is not False and cut.min() == cut.max():
                window[:] = 0
            else:
                window[:] = cut if standardize in ('block', False) else scale_window(cut)
        n, none = len(windows), np.zeros(len(windows), dtype=np.int64)
        one = PatientWindows(0, block.layout.path, windows, none, none, none, np.zeros((n, 0), dtype=np.uint8))
        loader = batches(WindowDataset([one], id_table([one]), zscore=zscored(standardize)), batch_size=batch_size)
        inputs.append(trained.inputs(loader))
        extract = lambda model, x: field_peaks(x, shape)  # noqa: E731
        peaks.append(gather(trained.autoencoder, loader, extract, trained.device, 'field'))
    field, peak = np.concatenate(peaks).T
    window, place = np.divmod(np.arange(len(table)), shape.n_sub)
    # A peak in a mirror image is that of the sample it shows.
    peak = samples[window, shape.border + place * shape.n_times + np.round(peak).astype(np.int64)]
    # A run with masking compares sub-windows with their block: with those that training would have, where there are
    # any.
    usual = table['usual'].to_numpy() | (not table['usual'].any())
    proba = trained.judge(np.concatenate(inputs), usual=usual)
    table = table.assign(proba=proba, field=field, peak=peak, pred=(proba >= trained.decision['threshold']).astype(int))
    table = table[table['kept']].sort_values(['part', 'timing'], ignore_index=True)
    events = merge_events(table.rename(columns={'part': 'block'}).assign(subject=0), shape.n_times)
    return Found(
        table[['part', 'onset', 'end', 'proba', 'pred']],
        events.rename(columns={'block': 'part'})[['sample', 'part', 'proba']],
    )


def without_bad_segments(found: Found, block: Recording) -> Found:
    """What was found in a block, without the events in segments marked bad."""
    return found._replace(events=found.events[~in_bad_segments(block, found.events['sample'])])


def recording_warnings(blocks: list[Recording], trained_on: set[int], n_times: int) -> list[str]:
    """What is wrong with a recording, also beside the compensation grades and windows that the run was trained on."""
    warnings = [warning for block in blocks for warning in block.facts['warnings']]
    warnings += training_warnings(blocks[0].facts['compensation'], trained_on)
    if min(block.layout.lengths(block.info['sfreq']).min() for block in blocks) < n_times:
        warnings.append('continuous parts shorter than a window are judged with mirror images of themselves')
    return list(dict.fromkeys(warnings))


def bad_segment_warnings(blocks: list[Recording], found: list[Found], drop: bool) -> list[str]:
    """Detections in segments marked bad, and what becomes of them: dropped, or marked."""
    n_bad = seconds_of_events(blocks, found)['bad'].sum()
    if not n_bad:
        return []
    fate = 'left out' if drop else 'marked in the column bad'
    return [f'{n_bad} detections lie in segments marked bad and are {fate} (drop_bad_segments)']


# ------------------------------------------------------------------------------------------ what is left
def write_all(name: str, folder: Path, blocks: list[Recording], found: list[Found], made_with: dict, marker: dict):
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
        # MNE insists on its ending, which the temporary name lacks.
        named = temporary.with_name(temporary.name + '-annot.fif')
        try:
            notes.save(named, verbose='error')
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


if __name__ == '__main__':
    run_script(main, __doc__)
