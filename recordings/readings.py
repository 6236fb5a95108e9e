"""Readings of blocks by experts: of the data_raw files, of tables, and of the recordings' own markers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from recordings.data_raw import find_data_raw, read_data_raw
from recordings.planning import chosen_labels, plan_recordings
from utils import DataError, SettingError

OF_DATA_RAW = ('events', 'reannot')
_COLUMNS = ('subject', 'block', 'sample')


class ExpertReading(NamedTuple):
    """The spikes of a reader, and the blocks that were read.

    Attributes
    ----------
    name : str
    spikes : DataFrame
        subject, block, sample.
    blocks : set of (subject, block)
    """

    name: str
    spikes: pd.DataFrame
    blocks: set[tuple[int, int]]


def read_blocks(path_raw_data: str, patient: int | list[int] | bool) -> tuple[pd.DataFrame, dict[str, ExpertReading]]:
    """Blocks of the data_raw files, and the two readings in them.

    Returns
    -------
    blocks : DataFrame
        subject, block, file, n_samples.
    readings : dict of ExpertReading
        `events` has read every block, `reannot` those where it is not empty.

    Raises
    ------
    DataError
        A file is absent or faulty.
    """
    rows, spikes = [], {name: [] for name in OF_DATA_RAW}
    for subject, path in find_data_raw(path_raw_data, patient).items():
        data = read_data_raw(path)
        for block, (meg, file) in enumerate(zip(data['meg'], data['file'], strict=True)):
            rows.append((subject, block, file, meg.shape[1]))
            for name, marks in spikes.items():
                marks += [(subject, block, int(sample)) for sample in np.unique(np.round(data[name][block]))]
    blocks = pd.DataFrame(rows, columns=['subject', 'block', 'file', 'n_samples'])
    tables = {name: pd.DataFrame(marks, columns=list(_COLUMNS), dtype=np.int64) for name, marks in spikes.items()}
    every = set(zip(blocks['subject'], blocks['block'], strict=True))
    again = set(zip(tables['reannot']['subject'], tables['reannot']['block'], strict=True))
    return blocks, {
        'events': ExpertReading('events', tables['events'], every),
        'reannot': ExpertReading('reannot', tables['reannot'], again),
    }


def read_table(path: Path, blocks: pd.DataFrame, sfreq: float) -> ExpertReading:
    """Reading of a CSV: subject, and block or file; sample (at `sfreq`) or onset (s from the block's first sample).

    A row without a time says that a block was read and has no spike.

    Raises
    ------
    DataError
        It is no such table, or of blocks that are not there, or beyond their end.
    """
    try:
        table = pd.read_csv(path)
        if 'file' in table and 'block' not in table:
            # Recordings may have the same names in several patients; without a patient, the name alone must do.
            keys = ['subject', 'file'] if 'subject' in table else ['file']
            table = table.drop(columns='subject' if 'subject' not in keys else [], errors='ignore')
            named = blocks[['subject', 'block', 'file']]
            if named[named['file'].isin(table['file'])].duplicated(keys).any():
                raise DataError(f'{path}: several blocks have the name of a file; add the column subject')
            table = table.merge(named, on=keys, how='left')
        sample = table['sample'] if 'sample' in table else np.round(table['onset'] * sfreq)
        table = pd.DataFrame({'subject': table['subject'], 'block': table['block'], 'sample': sample}).astype(float)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataError(
            f'{path}: not a reading ({type(fault).__name__}: {fault}); it needs the columns subject, block (or file) '
            'and sample (or onset, in s)'
        ) from fault
    lengths = table.merge(blocks, on=['subject', 'block'], how='left')['n_samples']
    unknown = lengths.isna().to_numpy() | table[['subject', 'block']].isna().any(axis=1).to_numpy()
    if unknown.any():
        raise DataError(
            f'{path}: row {np.argmax(unknown) + 2}: of another recording, no such block in path_raw_data; correct the '
            'row, or make the data_raw file'
        )
    outside = ~(table['sample'].isna() | ((table['sample'] >= 0) & (table['sample'] < lengths.to_numpy())))
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(
            f'{path}: row {row + 2}: sample {table["sample"][row]:g} of a block of {lengths[row]:g}; take the reading '
            'of this recording, in samples at sfreq'
        )
    read = set(table[['subject', 'block']].astype(int).itertuples(index=False, name=None))
    spikes = table.dropna().astype(np.int64).drop_duplicates(ignore_index=True)
    return ExpertReading(path.stem, spikes, read)


def read_markers(
    path: Path, labels: str | Sequence[str], exclude: str | Sequence[str], blocks: pd.DataFrame, reading: dict
) -> ExpertReading:
    """Reading of the markers of recordings, which are matched to blocks by their names.

    Parameters
    ----------
    path : Path
        A recording, or a folder of CTF recordings (.ds).
    labels, exclude
        Patterns of labels, see `chosen_labels`.
    blocks : DataFrame
        From `read_blocks`.
    reading : dict
        The settings that `plan_recordings` takes.

    Raises
    ------
    DataError
        A recording is of no block, of several, or of another length; or the folder has none.
    """
    is_folder = path.is_dir() and path.suffix != '.ds'
    words = sorted(map(str, path.rglob('*.ds'))) if is_folder else [str(path)]
    if not words:
        raise DataError(f'{path}: no recording (.ds) in it; name a recording, or a table of spikes (.csv)')
    spikes, read = [], set()
    for plan in plan_recordings(words, **reading):
        wanted = chosen_labels(list(plan.labels), list(labels) if not isinstance(labels, str) else labels, exclude)
        times = np.concatenate([[], *(plan.labels[label] for label in wanted)])
        for name, layout in plan.blocks.items():
            subject, block = _block_of(plan.path, name, int(layout.lengths(reading['sfreq']).sum()), blocks)
            read.add((subject, block))
            spikes += [(subject, block, sample) for sample in np.unique(layout.to_samples(times, reading['sfreq']))]
    return ExpertReading(path.stem, pd.DataFrame(spikes, columns=list(_COLUMNS), dtype=np.int64), read)


def _block_of(path, name, n_samples, blocks):
    """The subject and block of a recording's block."""
    matching = blocks[blocks['file'] == name]
    if len(matching) != 1:
        several = (
            f'several blocks are named {name}' if len(matching) else f'of another recording, no block is named {name}'
        )
        raise DataError(f'{path}: {several} in path_raw_data; give the reading as a table with subject and block')
    row = matching.iloc[0]
    if row['n_samples'] != n_samples:
        raise DataError(
            f'{path}: {n_samples} samples, but block {row["block"]} of patient {row["subject"]} has '
            f'{row["n_samples"]}; take the recording that it was made from'
        )
    return int(row['subject']), int(row['block'])


def read_both(a: ExpertReading, b: ExpertReading) -> set[tuple[int, int]]:
    """The blocks that both have read.

    Raises
    ------
    DataError
        There is none.
    SettingError
        It is the same reading twice.
    """
    if a.name == b.name:
        raise SettingError(f'{a.name}: a reading cannot be compared with itself; name two')
    both = a.blocks & b.blocks
    if not both:
        raise DataError(f'{a.name} and {b.name}: no block was read by both; name two readings of the same blocks')
    return both
