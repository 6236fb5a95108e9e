"""The windows of a patient as they lie on disk: where they are, opening the five files, and what is wrong with them."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recordings.channels import N_CHANNELS, channel_names
from recordings.data_raw import as_numbers, chosen_patients
from recordings.pickles import read_pickle
from recordings.window_files import LABEL_FILES, is_known_finite, window_stem
from utils import DataError, SettingError

MOST_BLOCKS, LONGEST_BLOCK = 10_000, 100_000_000  # of a patient; samples, a week at 150 Hz


class PatientWindows(NamedTuple):
    """The windows of one patient as they lie on disk.

    Attributes
    ----------
    subject : int
    path : Path
        The file of the windows.
    windows : memmap (n_windows, 274, n_times), float32
    labels, blocks, timing : arrays (n_windows,)
    labels_t : uint8 array (n_windows, n_times)
    """

    subject: int
    path: Path
    windows: np.ndarray
    labels: np.ndarray
    blocks: np.ndarray
    timing: np.ndarray
    labels_t: np.ndarray


def window_paths(directory: str | Path) -> dict[int, dict[int, Path]]:
    """Files of windows in a directory, by the number of blocks in their suffix b<nb_best_blocks> and by patient.

    Raises
    ------
    DataError
        No such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f'{directory}: no such directory (setting path_extracted_data); run the create_windows scripts')
    paths = {}
    for path in sorted(directory.glob('data_raw_*_b*_windows_bi')):
        name = re.fullmatch(r'data_raw_(\d+)_b(\d+)_windows_bi', path.name)
        if name:
            paths.setdefault(int(name[2]), {})[int(name[1])] = path
    return paths


def find_windows(directory: str | Path, nb_best_blocks: int, patient: int | list[int] | bool = False) -> list[int]:
    """Numbers of the patients with windows of suffix b<nb_best_blocks> in a directory.

    Raises
    ------
    DataError
        No such directory, no such windows in it, or a patient asked for has none.
    """
    directory, paths = Path(directory), window_paths(directory)
    if nb_best_blocks not in paths:
        others = f'; found nb_best_blocks = {", ".join(map(str, sorted(paths)))}' if paths else ''
        raise DataError(
            f'{directory}: no data_raw_NNN_b{nb_best_blocks}_windows_bi in it{others}; run the create_windows scripts'
        )
    return list(chosen_patients(paths[nb_best_blocks], patient, directory))


def open_windows(directory: str | Path, subject: int, nb_best_blocks: int) -> PatientWindows:
    """Open the five files of a patient: the windows as a memory map, the labels in memory.

    Raises
    ------
    DataError
        A file is missing, truncated, or of another length than the others.
    """
    stem = window_stem(directory, subject, nb_best_blocks)
    path = Path(f'{stem}_windows_bi')
    columns = {}
    for name in LABEL_FILES:
        column_path = Path(f'{stem}_{name}.pkl')
        try:
            column = as_numbers(read_pickle(column_path), 2 if name == 'labels_t' else 1)
        except ValueError as fault:
            raise DataError(
                f'{column_path}: holds {fault}, not an array of the expected dimensions; make it again'
            ) from fault
        if len(column) != len(columns.get('labels', column)):
            raise DataError(
                f'{column_path}: {len(column)} windows, but {stem.name}_labels.pkl has {len(columns["labels"])}; '
                'make the windows of this patient again'
            )
        columns[name] = column
    if not path.is_file():
        raise DataError(f'{path}: no such file; make the windows of this patient again')
    n_windows, n_times = columns['labels_t'].shape
    expected, size = n_windows * N_CHANNELS * n_times * 4, path.stat().st_size
    if size != expected or size == 0:
        raise DataError(
            f'{path}: {size} bytes, but {n_windows} windows of {N_CHANNELS} channels x {n_times} samples take '
            f'{expected}: truncated, or of another patient; make the windows of this patient again'
        )
    windows = np.memmap(path, dtype='<f4', mode='r', shape=(n_windows, N_CHANNELS, n_times))
    return PatientWindows(subject, path, windows, **columns)


def check_windows(opened: PatientWindows, made_with: dict) -> None:
    """Check windows: made with the settings of this run, labels that windows can have, finite numbers.

    Parameters
    ----------
    opened : PatientWindows
    made_with : dict
        As `timeseries_dataset.open_directory` takes it.

    Raises
    ------
    DataError
        A file holds what no windows have, or a window holds NaN or infinite values.
    SettingError
        The windows were made with other settings.
    """
    n_times, expected = opened.windows.shape[2], round(made_with['window_size'] * made_with['sfreq'])
    if n_times != expected:
        raise SettingError(
            f'{opened.path}: windows of {n_times} samples, but window_size x sfreq is {expected}: set window_size and '
            'sfreq to those the windows were made with, or make the windows again'
        )
    _check_settings(opened, made_with)
    _check_labels(opened)
    _check_finite(opened)


def _check_settings(opened, made_with):
    """Compare windows with what is written beside them: the settings of this run, and what the files must hold."""
    path = opened.path
    sidecar = path.with_name(path.name.removesuffix('windows_bi') + 'settings.json')
    if not sidecar.is_file():
        return
    n_windows, _, n_times = opened.windows.shape
    holds = {'n_windows': n_windows, 'n_times': n_times, 'channels': channel_names()}
    try:
        written = json.loads(sidecar.read_text())
        different = [name for name, value in made_with.items() if _same_name(written[name]) != _same_name(value)]
        not_held = [name for name, value in holds.items() if written[name] != value]
    except (ValueError, KeyError, TypeError) as fault:
        raise DataError(f'{sidecar}: not the settings of windows; make the windows of this patient again') from fault
    for name in different:
        raise SettingError(
            f'{path}: made with {name} = {written[name]!r}, but {name} is {made_with[name]!r} now: restore the '
            'setting, or make the windows again'
        )
    for name in not_held:
        what = 'other channels' if name == 'channels' else f'{name} = {written[name]!r}, not {holds[name]}'
        raise DataError(f'{sidecar}: speaks of {what}: of another set; make the windows of this patient again')


def _same_name(value):
    """standardize=True is another name of 'window'."""
    return 'window' if value is True else value


def _check_labels(opened):
    """Refuse what no windows have in their four pickles."""
    first = np.round(opened.timing - opened.windows.shape[2] / 2)  # NaN where the timing is
    faults = {
        'labels': ~np.isin(opened.labels, (0, 1)),
        'blocks': ~((opened.blocks >= 0) & (opened.blocks < MOST_BLOCKS) & (opened.blocks == np.round(opened.blocks))),
        'timing': ~((first >= 0) & (first < LONGEST_BLOCK)),
        'labels_t': ~np.isin(opened.labels_t, (0, 1)).all(axis=1),
    }
    for name, wrong in faults.items():
        if wrong.any():
            path = opened.path.with_name(opened.path.name.replace('windows_bi', f'{name}.pkl'))
            value = getattr(opened, name)[np.argmax(wrong)]
            what = 'what is neither 0 nor 1' if name == 'labels_t' else f'{value:g}'
            raise DataError(f'{path}: window {np.argmax(wrong)} has {what}; make the windows of this patient again')


def _check_finite(opened):
    """Look for NaN in windows that were not checked when they were written, as those of the original code."""
    if is_known_finite(str(opened.path).removesuffix('_windows_bi')):
        return
    for first in range(0, len(opened.windows), 64):
        finite = np.isfinite(opened.windows[first : first + 64]).all(axis=(1, 2))
        if not finite.all():
            raise DataError(
                f'{opened.path}: window {first + np.argmin(finite)} holds NaN or infinite values; make the windows of '
                'this patient again'
            )
