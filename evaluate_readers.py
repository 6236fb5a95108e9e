"""Compare two readings of the same blocks, and a trained run with both of them.

    python evaluate_readers.py [RUN] [READING READING] [name=value ...]

RUN      a finished run: its name in path_writing_data (AE1D_3) or its path. Only what it has tested is compared.
READING  events or reannot: of the data_raw files (the default: both); FILE.csv: subject, block or file, and sample (at
         sfreq) or onset (s), a row per spike, or without a time where a block has none; a recording, or a folder of
         recordings (.ds): their own markers with spike_labels, or with other labels after a colon (patient4:jj_*)

Reads   path_raw_data/data_raw_NNN.pkl
Writes  path_writing_data/readers/, or readers_<RUN>/: agreement.csv (every pair, pooled, with 95 % intervals over
        patients), patients.csv, agreement.png
"""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from evaluation.readers import Grid, Reading, agreed, agreement, pooled, read_on
from recordings.readings import OF_DATA_RAW, ExpertReading, read_blocks, read_both, read_markers, read_table
from reports.readers import print_agreement, save_agreement
from runs.run_directory import find_run
from runs.settings import read_command
from saving_functions import load_detections
from utils import DataError, SettingError, run_script


def main(words: list[str]) -> None:
    """Compare the readings that the command line names.

    Raises
    ------
    DataError
        A reading or the run cannot be used.
    SettingError
        The command line is not understood.
    """
    positional, settings = read_command(words, n_positional=3)
    names = positional[-2:] if len(positional) >= 2 else list(OF_DATA_RAW)
    run = find_run(settings.path_writing_data, positional[0]) if len(positional) in (1, 3) else None
    blocks, of_data_raw = read_blocks(settings.path_raw_data, settings.patient)
    a, b = (of_data_raw[name] if name in of_data_raw else read_reading(name, blocks, settings) for name in names)
    both_read = read_both(a, b)
    compared = blocks[[block in both_read for block in zip(blocks['subject'], blocks['block'], strict=True)]]
    left_out = len(blocks) - len(compared)
    print(f'{a.name} and {b.name}: {len(compared)} blocks read by both' + f', {left_out} left out' * (left_out > 0))

    tested, detected = load_detections(run) if run else (None, None)
    grid = grid_of(compared, tested, settings)
    readings = {reading.name: read_on(grid, reading.spikes) for reading in (a, b)}
    tolerance = settings.tolerance * settings.sfreq
    both = read_on(grid, agreed(*(reading.spikes for reading in readings.values()), tolerance))
    pairs = [(b.name, a.name), (a.name, b.name)]
    if run is not None and tested is not None and detected is not None:
        readings |= {'both': both, run.name: reading_of_run(tested, detected, grid)}
        pairs += [(run.name, a.name), (run.name, b.name), (run.name, 'both')]
    results, patients = [], []
    for candidate, reference in pairs:
        table, differences = agreement(readings[candidate], readings[reference], grid, settings.tolerance)
        result = pooled(table, differences, settings.bootstrap_samples, settings.seed).reset_index()
        results.append(pd.DataFrame({'found': candidate, 'against': reference, **result}))
        patients.append(pd.DataFrame({'found': candidate, 'against': reference, **table}))
    folder = Path(settings.path_writing_data) / (f'readers_{run.name}' if run else 'readers')
    save_agreement(folder, pd.concat(results), pd.concat(patients))
    print_agreement(pd.concat(results), pd.concat(patients))
    print(f'in {folder}')


def read_reading(word: str, blocks: pd.DataFrame, settings: SimpleNamespace) -> ExpertReading:
    """The reading that a word names: a table, or the markers of recordings.

    Raises
    ------
    SettingError
        There is no such file.
    """
    path, _, labels = (word, '', '') if Path(word).exists() else word.rpartition(':')
    if not path or not Path(path).exists():
        raise SettingError(f'{word}: no reading; name events, reannot, a table (.csv), or recordings with markers')
    if path.endswith('.csv'):
        return read_table(Path(path), blocks, settings.sfreq)
    names = ('sfreq', 'window_size', 'low_pass', 'trials')
    read_with = {name: getattr(settings, name) for name in names} | {'bad_channels': []}
    exclude = [] if labels else settings.spike_labels_exclude
    reading = read_markers(Path(path), labels or settings.spike_labels, exclude, blocks, read_with)
    return reading._replace(name=f'{reading.name}:{labels}') if labels else reading


def grid_of(compared: pd.DataFrame, tested: pd.DataFrame | None, settings: SimpleNamespace) -> Grid:
    """The sub-windows to compare: those that a run has tested, or else all of the blocks.

    Raises
    ------
    DataError
        The run has tested none of the blocks.
    """
    length = round(settings.subwindow_size * settings.sfreq)
    if tested is None:
        numbers = compared.loc[compared.index.repeat(compared['n_samples'] // length), ['subject', 'block']]
        timing = (numbers.groupby(['subject', 'block']).cumcount() + 0.5) * length
        subwindows = numbers.assign(timing=timing).reset_index(drop=True)
    else:
        subwindows = tested.merge(compared[['subject', 'block']], on=['subject', 'block'])[
            ['subject', 'block', 'timing']
        ]
        if subwindows.empty:
            raise DataError('the run has tested no block that both have read; name another run, or other readings')
    return Grid(
        subwindows[['subject', 'block', 'timing']],
        length,
        round(settings.pulse_width / 2 * settings.sfreq),
        settings.sfreq,
    )


def reading_of_run(tested: pd.DataFrame, detected: pd.DataFrame, grid: Grid) -> Reading:
    """The detections of a run as a reading of the grid."""
    keys = ['subject', 'block', 'timing']
    called = grid.subwindows.merge(tested[[*keys, 'pred']], on=keys, how='left')['pred'].to_numpy()
    compared = grid.subwindows[['subject', 'block']].drop_duplicates()
    return Reading(detected.merge(compared, on=['subject', 'block'])[['subject', 'block', 'sample']], called)


if __name__ == '__main__':
    run_script(main, __doc__)
