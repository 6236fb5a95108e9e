"""Apply a trained run to recordings and leave detections that a reviewer can open.

    python detect.py RUN REC [REC ...] [name=value ...]

Reads   RUN, a finished run: its name in path_writing_data (AE1D_3) or its path; and recordings: CTF folders (.ds),
        FIF files, what else MNE reads, or data_raw_NNN.pkl, of which every block counts as a recording.
Writes  beside each recording, or in the folder `output`, <recording>_detections/ with
        detections.csv      onset, duration, probas: an event per row
        probabilities.csv   the probability of every sub-window (200 ms)
        MarkerFile.mrk      CTF recordings: the recording's own classes and the class marker_name
        <recording>-annot.fif   the same events as annotations of MNE
        report.html         a page with pictures: surest events, their average, where it may come from
        detections.json     what all this was made with
        The recording is not touched, unless markers_into_recording=True.
"""

import hashlib
import html
import json
import math
import os
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from classification import SubwindowShape, TrainedRun, field_peaks, gather, load_run
from create_data_raw import plan_recordings, read_record
from data_processing import block_statistics, ctf275_info, read_data_raw, scale, scale_window
from evaluation import merge_events
from marker_files import MARKER_FILE, read_marker_file, write_marker_file
from recordings import Layout, Recording, check_filters, read_recording, sphere_centre
from run_data import WINDOW_SETTINGS, zscored
from saving_functions import BLUE, GREY, ORANGE, RunDirectory, find_run, git_revision, html_table, load_params
from settings import check_settings, read_command
from timeseries_dataset import PARTS, PatientWindows, WindowDataset, batches, id_table
from utils import DataError, SettingError, choose_device, choose_precision, run_script, set_seed, write_json, writing

FILTERS = ('sfreq', 'high_pass', 'low_pass', 'notch')
PREPROCESSING = (*FILTERS, 'trials')
# Settings that say how signal becomes sub-windows: those of the run are used, whatever params.py says.
OF_THE_RUN = (*PREPROCESSING, *(name for name in WINDOW_SETTINGS if name not in PREPROCESSING), 'subwindow_size')
# Windows at once in memory, and in the networks: on a CPU more are no faster, a GPU takes them all.
CHUNK, BATCH = 64, {'cpu': 8, 'cuda': 64}
AROUND, SEARCH = 0.2, 0.05  # half of the average, and of the stretch in which its peak is looked for, in s
N_SHOWN = 9  # surest events on the page


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
    made_with = {
        'command': shlex.join(['python', 'detect.py', *words]),
        'code revision': git_revision(),
        'run': str(run.path),
        'code revision of the run': json.loads(run.params.read_text()).get('git revision'),
        'checkpoints': {path.name: sha256(path) for path in best},
        'model': of_run['model'],
        'classifier': of_run['classifier'],
        'settings': {name: of_run[name] for name in OF_THE_RUN} | {'bad_channels': bad_channels},
        **{name: trained.decision[name] for name in ('threshold', 'policy', 'calibration')},
    }
    marker = {'name': settings.marker_name, 'color': settings.marker_color}
    print(f'{run.name}: threshold {trained.decision["threshold"]:.4f}, {trained.decision["policy"]}; on {device}')
    set_seed(of_run['seed'])
    for path, folder in folders.items():
        started = time.perf_counter()
        for name, sub, blocks in read_units(path, folder, of_run, bad_channels):
            read = time.perf_counter()
            found = [judge_block(trained, block) for block in blocks]
            judged = time.perf_counter()
            write_all(name, sub, blocks, found, made_with, marker)
            if settings.markers_into_recording and blocks[0].layout.trial:
                onsets = seconds_of_events(blocks, found)['onset'].to_numpy()
                backup = write_marker_file(path / MARKER_FILE, onsets, blocks[0].layout, **marker)
                print(f'{path / MARKER_FILE}: class {marker["name"]} written'
                      + (f', the file before kept as {backup.name}' if backup else ''))  # fmt: skip
            ended = time.perf_counter()
            n_times = round(of_run['window_size'] * of_run['sfreq'])
            print_result(name, sub, blocks, found, n_times, [read - started, judged - read, ended - judged])
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
    for number in sorted({number for part in PARTS for number in params['split'].get(part, ())}):
        path = Path(settings['path_raw_data']) / f'data_raw_{number:03d}.pkl'
        made_with = read_record(path).get('settings', {})
        for name in PREPROCESSING:
            if name in made_with and recorded.setdefault(name, made_with[name]) != made_with[name]:
                raise DataError(
                    f'{path}: made with {name} = {made_with[name]!r}, others of run {run.name} with '
                    f'{recorded[name]!r}: no recording can be preprocessed as all of them; make them again'
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
    folders = {}
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
            plan_recordings([str(path)], bad_channels=bad_channels, **reading)
            if markers_into_recording and path.resolve().suffix == '.ds':
                check_writable(path)
        elif not path.is_file():
            raise DataError(f'{path}: no such recording; correct the path')
        check_folder(folder, path.resolve().name)
        folders[path] = folder
    return folders


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
        yield path.resolve().name, folder, read_recording(path, bad_channels=bad_channels, **reading)
        return
    record = read_record(path)
    made_with = record.get('settings', {})
    for name in FILTERS:
        if name in made_with and made_with[name] != settings[name]:
            raise DataError(
                f'{path}: made with {name} = {made_with[name]!r}, but the run with {settings[name]!r}; make it again so'
            )
    data, sfreq = read_data_raw(path), settings['sfreq']
    known = {one['file']: one['interpolated'] for one in record.get('recordings', [])}
    n_times = round(settings['window_size'] * sfreq)
    if max(signal.shape[1] for signal in data['meg']) < n_times:
        raise DataError(f'{path}: every block is shorter than a window of {n_times} samples')
    for block, (signal, name) in enumerate(zip(data['meg'], data['file'], strict=True)):
        n_samples = signal.shape[1]
        if n_samples < n_times:
            print(f'warning: {path}: block {block} ({name}) is shorter than a window and left out')
            continue
        layout = Layout(path, sfreq, [(0, n_samples)], None, 0.0, None)
        facts = {
            'file': name,
            'seconds': n_samples / sfreq,
            'sampling_rate': sfreq,
            'system': 'a block of data_raw, which does not say where its recording had gaps',
            'compensation': None,
            'interpolated': known.get(name, []),
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


class Found(NamedTuple):
    """What a run says of a block.

    Attributes
    ----------
    subwindows : DataFrame
        In order, tiling the block: part, onset, end (samples of the block, end excluded), proba, pred.
    events : DataFrame
        sample (the highest peak of the field power), part and proba (the highest) of every event.
    """

    subwindows: pd.DataFrame
    events: pd.DataFrame


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


def seconds_of_events(blocks: list[Recording], found: list[Found]) -> pd.DataFrame:
    """Events of all blocks of a recording: onset (s from its first sample) and proba."""
    tables = [
        pd.DataFrame(
            {
                'onset': block.layout.to_seconds(one.events['sample'], block.info['sfreq']),
                'proba': one.events['proba'].to_numpy(),
            }
        )
        for block, one in zip(blocks, found, strict=True)
    ]
    return pd.concat(tables, ignore_index=True).sort_values('onset', ignore_index=True)


def seconds_of_subwindows(blocks: list[Recording], found: list[Found]) -> pd.DataFrame:
    """Sub-windows of all blocks of a recording: onset, duration (s), proba, pred."""
    tables = [
        pd.DataFrame(
            {
                'onset': block.layout.to_seconds(one.subwindows['onset'], block.info['sfreq']),
                'duration': (one.subwindows['end'] - one.subwindows['onset']) / block.info['sfreq'],
                'proba': one.subwindows['proba'],
                'pred': one.subwindows['pred'],
            }
        )
        for block, one in zip(blocks, found, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


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
    write_detections(folder / 'detections.csv', onsets, np.zeros(len(onsets)), events['proba'].to_numpy())
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
            **made_with,
            'system': facts['system'],
            'compensation': facts['compensation'],
            'interpolated channels': sorted({ch for block in blocks for ch in block.facts['interpolated']}),
            'sampling rate': layout.sfreq,
            'continuous parts': sum(len(block.layout.parts) for block in blocks),
            'minutes': minutes,
            'detections': len(events),
            'detections per minute': len(events) / minutes,
            'marker': marker['name'],
            'dipole': dipole,
            'units': {
                'onset, duration': 's, onset from the first sample of the recording, at the peak of the field power',
                'sampling rate, high_pass, low_pass, notch': 'Hz',
                'position': 'm',
                'moment': 'A m',
                'signal': 'T',
                'threshold, proba': 'probability',
            },
        },
    )


def print_result(name, folder, blocks, found, n_times, seconds):
    """Say how much was found, and how long reading, judging and writing took."""
    recorded = sum(block.facts['seconds'] for block in blocks)
    n_events = sum(len(one.events) for one in found)
    read, judged, written = seconds
    interpolated = sorted({ch for block in blocks for ch in block.facts['interpolated']})
    print(
        f'{name}: {n_events} detections in {recorded / 60:.2f} min ({60 * n_events / recorded:.1f} per minute); '
        f'interpolated: {", ".join(interpolated) or "none"}; in {folder}\n'
        f'  {recorded / sum(seconds):.1f} times faster than real time: reading {read:.1f} s, detection {judged:.1f} s, '
        f'writing {written:.1f} s'
    )
    shortest = min(block.layout.lengths(block.info['sfreq']).min() for block in blocks)
    if shortest < n_times:
        print(f'warning: {name}: continuous parts shorter than a window are judged with mirror images of themselves')


# ------------------------------------------------------------------------------------------ review files
def write_detections(path: str | Path, onsets: np.ndarray, durations: np.ndarray, probas: np.ndarray) -> None:
    """Write detections.csv, one row per event: `onset` and `duration` in s, as MNE's browser counts, and `probas`."""
    table = pd.DataFrame({'onset': onsets, 'duration': durations, 'probas': probas})
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


# ---------------------------------------------------------------------------------- where spikes come from
class Source(NamedTuple):
    """A single equivalent dipole.

    Attributes
    ----------
    sample : int
        Sample of the average at which it was fitted.
    topography : array (274,)
        Field there, in tesla.
    position, orientation : array (3,)
        In metres, and of length 1: x to the right, y to the front, z up, in head coordinates where the recording has
        the head's position, else in those of the helmet.
    moment : float
        In A m.
    goodness : float
        Share of the field's power that the dipole explains, from 0 to 1.
    """

    sample: int
    topography: np.ndarray
    position: np.ndarray
    orientation: np.ndarray
    moment: float
    goodness: float


def average_events(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], before: int, after: int
) -> tuple[np.ndarray | None, int]:
    """Average the signal around events.

    Parameters
    ----------
    blocks : iterable of (array (274, n_samples), array (n_events,))
        Signal in tesla, and events in samples of it.
    before, after : int
        Samples before and after an event; events nearer to an end of their block are left out.

    Returns
    -------
    average : array (274, before + after + 1), or None without any event
    n_events : int
        Events averaged.
    """
    total, n_events = 0.0, 0
    for signal, events in blocks:
        for event in np.asarray(events, dtype=np.int64):
            if before <= event < signal.shape[1] - after:
                total = total + signal[:, event - before : event + after + 1].astype(np.float64)
                n_events += 1
    return (total / n_events, n_events) if n_events else (None, 0)


def fit_source(average: np.ndarray, info: mne.Info, interpolated: list[str], *, search: slice) -> Source:
    """Fit a single equivalent dipole to an average of events, at its peak, with MNE and a spherical head.

    Parameters
    ----------
    average : array (274, n_samples)
        In tesla.
    info : mne.Info
        Where the channels and the head were; the centre of the sphere is that of the sensors.
    interpolated : list of str
        Channels that say nothing of their own and are left out of the fit.
    search : slice
        Samples in which the peak, the largest std over channels, is looked for.
    """
    sample = int(np.arange(average.shape[1])[search][average[:, search].std(axis=0).argmax()])
    topography = average[:, sample]
    evoked = mne.EvokedArray(topography[:, None], info.copy(), verbose='error')
    evoked.info['bads'] = list(interpolated)
    sphere = mne.make_sphere_model(r0=sphere_centre(info), head_radius=None, verbose='error')
    dipole, _ = mne.fit_dipole(evoked, mne.make_ad_hoc_cov(info, verbose='error'), sphere, verbose='error')
    return Source(sample, topography, dipole.pos[0], dipole.ori[0], float(dipole.amplitude[0]), dipole.gof[0] / 100)


def locate(blocks: list[Recording], found: list[Found]) -> tuple[Source | None, np.ndarray | None, int]:
    """Average all events of a recording, and fit a dipole; None without any event.

    Returns
    -------
    source, average (274, n_samples), n_events
        See `average_events` and `fit_source`.
    """
    sfreq = blocks[0].info['sfreq']
    reach, search = round(AROUND * sfreq), round(SEARCH * sfreq)
    average, n_events = average_events(signals_of_parts(blocks, found), reach, reach)
    if average is None:
        return None, None, 0
    interpolated = sorted({ch for block in blocks for ch in block.facts['interpolated']})
    around_peak = slice(reach - search, reach + search + 1)
    return fit_source(average, blocks[0].info, interpolated, search=around_peak), average, n_events


def signals_of_parts(blocks: list[Recording], found: list[Found]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Signal of every continuous part, and its events in samples of it."""
    for block, one in zip(blocks, found, strict=True):
        ends = np.cumsum(block.layout.lengths(block.info['sfreq']))
        for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            yield block.meg[:, start:end], one.events.loc[one.events['part'] == part, 'sample'].to_numpy() - start


def coordinates(info: mne.Info) -> str:
    """What positions count from, in words."""
    axes = 'x to the right, y to the front, z up'
    if np.allclose(info['dev_head_t']['trans'], np.eye(4)):
        return f'of the helmet, {axes}: where the head was in it is not known'
    return f'of the head, by its fiducial points, {axes}'


# ---------------------------------------------------------------------------------------------- the page
SPHERE = (
    'A single dipole in a sphere laid through the sensors, fitted at the peak of the average of all detections. It '
    'says where one small patch of cortex would have to be to give this field. It knows neither the shape of the head '
    'nor an MRI, takes all detections for spikes of one focus, and misleads where several regions are active at once: '
    'a hint where to look, not a localisation to operate by.'
)


def write_report(name, folder, blocks, found, made_with, source, average, n_averaged) -> None:
    """Write report.html: what was done, counts, the surest events, their average and its dipole."""
    events = seconds_of_events(blocks, found)
    info, facts, layout = blocks[0].info, blocks[0].facts, blocks[0].layout
    minutes = sum(block.facts['seconds'] for block in blocks) / 60
    interpolated = sorted({ch for block in blocks for ch in block.facts['interpolated']})
    summary = {
        'recording': name,
        'recorded': f'{minutes:.2f} min at {layout.sfreq:g} Hz, '
        f'{sum(len(block.layout.parts) for block in blocks)} continuous parts; {facts["system"]}',
        'interpolated channels': ', '.join(interpolated) or 'none',
        'run': made_with['run'],
        'networks': f'{made_with["model"]}, classifier {made_with["classifier"]}',
        'threshold': f'{made_with["threshold"]:.4f}: {made_with["policy"]}',
        'detections': f'{len(events)}, {len(events) / minutes:.2f} per minute',
        'time of a detection': 'the peak of the field power, in seconds from the first sample',
        'coverage': 'every sample; at the ends of continuous parts, windows are completed by mirror images; no window '
        'shows both sides of a gap',
        'what it is': "candidates found by a machine: each needs an expert's eye",
    }
    report = mne.Report(title=f'Detections: {name}', verbose=False)
    report.add_html(html_table(pd.Series(summary).to_frame('')), title='Summary')
    add_picture(report, plot_probability(blocks, found, made_with['threshold']), 'Probability over time',
                'Of every sub-window; triangles are detections.')  # fmt: skip
    if len(events):
        add_picture(report, plot_surest(blocks, found), 'Surest events',
                    'All channels around the detections of highest probability, and their field power.')  # fmt: skip
    else:
        report.add_html('<p>No sub-window reaches the threshold.</p>', title='Surest events')
    if source:
        x, y, z = 1000 * source.position
        fit = {
            'events averaged': n_averaged,
            'position': f'x {x:.1f}, y {y:.1f}, z {z:.1f} mm',
            'coordinates': coordinates(info),
            'orientation': ', '.join(
                f'{axis} {part:.2f}' for axis, part in zip('xyz', source.orientation, strict=True)
            ),
            'moment': f'{1e9 * source.moment:.1f} nA m',
            'goodness of fit': f"{source.goodness:.1%} of the field's power"
            + (': low, one dipole does not describe this field' if source.goodness < 0.8 else ''),
        }
        add_picture(
            report, plot_source(source, average, info), 'Average of the events and its dipole', html.escape(SPHERE)
        )
        report.add_html(html_table(pd.Series(fit).to_frame('')), title='Dipole')
    settings = pd.Series(made_with['settings'], dtype=object).map(repr)
    report.add_html(html_table(settings.to_frame('')), title='Settings of preprocessing and windows')
    report.add_html(f'<pre>{html.escape(made_with["command"])}</pre>', title='Command')
    with writing(folder / 'report.html') as temporary:
        report.save(temporary, open_browser=False, overwrite=True, verbose=False)


def add_picture(report: mne.Report, figure: Figure, title: str, caption: str) -> None:
    """Put a figure on the page and close it."""
    report.add_figure(figure, title=title, caption=caption, image_format='png')
    plt.close(figure)


def plot_probability(blocks: list[Recording], found: list[Found], threshold: float) -> Figure:
    """Probability of every sub-window over the recording, threshold and detections."""
    subwindows, events = seconds_of_subwindows(blocks, found), seconds_of_events(blocks, found)
    figure, axis = plt.subplots(figsize=(10, 3), layout='constrained')
    left = subwindows['onset'].to_numpy()
    right = left + subwindows['duration'].to_numpy()
    axis.hlines(subwindows['proba'], left, right, color=BLUE)
    axis.fill_between(
        np.column_stack([left, right]).ravel(), np.repeat(subwindows['proba'], 2), color=BLUE, alpha=0.3, linewidth=0
    )
    axis.axhline(threshold, color=GREY, linestyle=':', label=f'threshold {threshold:.3f}')
    axis.plot(events['onset'], events['proba'], 'v', color=ORANGE, label=f'{len(events)} detections')
    axis.set(xlabel='time in the recording (s)', ylabel='probability', ylim=(0, 1.05), xlim=(left[0], right[-1]))
    axis.legend(loc='upper right')
    return figure


def draw_channels(axis: Axes, times: np.ndarray, signal: np.ndarray) -> None:
    """Draw all channels (n_channels, n_times) and their field power."""
    # One line with gaps is drawn much faster than a line per channel.
    lines = np.pad(signal, ((0, 0), (0, 1)), constant_values=np.nan).ravel()
    axis.plot(np.tile(np.append(times, np.nan), len(signal)), lines, color=GREY, linewidth=0.3, alpha=0.5)
    axis.plot(times, signal.std(axis=0), color=BLUE, linewidth=2, label='field power')
    axis.margins(x=0)


def plot_surest(blocks: list[Recording], found: list[Found]) -> Figure:
    """All channels and the field power around the surest events."""
    sfreq = blocks[0].info['sfreq']
    reach = round(2 * AROUND * sfreq)
    shown = []
    for block, one in zip(blocks, found, strict=True):
        ends = np.cumsum(block.layout.lengths(sfreq))
        for event in one.events.nlargest(N_SHOWN, 'proba').itertuples():
            start = ends[event.part] - block.layout.lengths(sfreq)[event.part]
            first, last = max(event.sample - reach, start), min(event.sample + reach + 1, ends[event.part])
            [seconds] = block.layout.to_seconds([event.sample], sfreq)
            times = (np.arange(first, last) - event.sample) / sfreq
            shown.append((event.proba, seconds, times, 1e15 * block.meg[:, first:last]))
    shown = sorted(shown, key=lambda one: -one[0])[:N_SHOWN]
    n_columns = min(3, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(3.6 * n_columns, 0.4 + 2.4 * n_rows), squeeze=False, layout='constrained'
    )
    for axis, (proba, seconds, times, signal) in zip(axes.flat, shown, strict=False):
        draw_channels(axis, times, signal)
        axis.axvline(0, color='black', linestyle=':')
        axis.set_title(f'{seconds:.3f} s, probability {proba:.2f}', fontsize=10)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel('field (fT)')
    for axis in axes[-1]:
        axis.set_xlabel('time (s)')
    axes[0, 0].legend(fontsize=7, loc='upper left')
    return figure


def plot_source(source: Source, average: np.ndarray, info: mne.Info) -> Figure:
    """Average of the events, its field at the peak, and the dipole among the sensors from three sides."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.5), layout='constrained', gridspec_kw={'width_ratios': (1, 1, 1)})
    times = (np.arange(average.shape[1]) - average.shape[1] // 2) / info['sfreq']
    traces, field, words = axes[0]
    draw_channels(traces, times, 1e15 * average)
    traces.axvline(times[source.sample], color=ORANGE, label='peak')
    traces.set(xlabel='time (s)', ylabel='field (fT)', title='average')
    traces.legend(fontsize=7, loc='upper left')
    image, _ = mne.viz.plot_topomap(1e15 * source.topography, info, axes=field, show=False)
    field.set_title('at the peak (fT)')
    figure.colorbar(image, ax=field, shrink=0.7)
    words.set_axis_off()
    x, y, z = 1000 * source.position
    words.text(
        0, 0.5, f'x {x:.0f} mm (right)\ny {y:.0f} mm (front)\nz {z:.0f} mm (up)\n\n'
        f'moment {1e9 * source.moment:.0f} nA m\ngoodness of fit {source.goodness:.0%}', va='center', fontsize=12,
    )  # fmt: skip
    sensors = np.array([ch['loc'][:3] for ch in info['chs']])
    sensors = 1000 * mne.transforms.apply_trans(info['dev_head_t'], sensors)
    for axis, (across, up), side in zip(
        axes[1], ((0, 1), (0, 2), (1, 2)), ('above', 'the back', 'the right'), strict=True
    ):
        axis.plot(*sensors[:, [across, up]].T, '.', color=GREY, markersize=3)
        place, arrow = 1000 * source.position[[across, up]], 30 * source.orientation[[across, up]]
        axis.plot(*place, 'o', color=ORANGE)
        axis.annotate('', place + arrow, place, arrowprops={'color': ORANGE, 'width': 2, 'headwidth': 8})
        axis.set_aspect('equal')
        axis.set(xlabel=f'{"xyz"[across]} (mm)', ylabel=f'{"xyz"[up]} (mm)', title=f'from {side}')
    return figure


if __name__ == '__main__':
    run_script(main, __doc__)
