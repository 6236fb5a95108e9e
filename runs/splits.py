"""Who is trained on, validated and tested: patients, or blocks, split into parts."""

from pathlib import Path

import numpy as np
import pandas as pd

from timeseries_dataset import PARTS
from utils import DataError


def split_units(units: list, n_spikes: list[int], shares: dict[str, float], seed: int) -> dict:
    """Share units (patients, or blocks) out to parts, at least one unit with spikes to each part.

    Units with and without spikes are shared out apart, so that every part gets its share of both.

    Parameters
    ----------
    units, n_spikes : lists
        What is shared out, and how many spikes each holds.
    shares : dict
        Part to its fraction; the first part gets what the others leave.

    Returns
    -------
    dict
        Unit to part.
    """
    rng = np.random.default_rng(seed)
    rest, *others = shares
    parts = {}
    for spiking in (True, False):
        group = [unit for unit, n in zip(units, n_spikes, strict=True) if (n > 0) == spiking]
        order = [group[i] for i in rng.permutation(len(group))]
        least = int(spiking)
        for number, part in enumerate(reversed(others)):
            # One unit with spikes stays for each of the parts that come after this one.
            left = len(order) - least * (len(others) - number)
            n_units = min(max(round(shares[part] * len(group)), least), max(left, 0))
            parts |= dict.fromkeys(order[len(order) - n_units :], part)
            order = order[: len(order) - n_units]
        parts |= dict.fromkeys(order, rest)
    return parts


def fold_units(units: list, n_spikes: list[int], n_splits: int, seed: int) -> list[list]:
    """Deal units (patients) to `n_splits` folds with about as many spikes each; -1 makes a fold of every unit.

    Units are sorted by their spikes, and every `n_splits` neighbours go to different folds, in random order.
    """
    if n_splits == -1:
        return [[unit] for unit in units]
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(units))
    order = sorted(shuffled, key=lambda i: -n_spikes[i])
    folds = [[] for _ in range(n_splits)]
    for first in range(0, len(order), n_splits):
        for unit, fold in zip(order[first : first + n_splits], rng.permutation(n_splits), strict=False):
            folds[fold].append(units[unit])
    return folds


def spike_counts(table: pd.DataFrame) -> pd.Series:
    """Windows with a spike of every patient of an id table."""
    return table.groupby('subject')['label'].sum()


def split_folds(table: pd.DataFrame, *, n_splits: int, validation_fraction: float, seed: int) -> list[pd.DataFrame]:
    """Parts of every fold of a cross-validation over patients: each patient is in the test of one fold.

    Parameters
    ----------
    table : DataFrame
        The classifier's id table.
    n_splits : int
        Number of folds; -1 for as many as patients.

    Returns
    -------
    list of DataFrames
        subject, part, one row per patient.

    Raises
    ------
    DataError
        Too few patients for so many folds, or too few with spikes to train and to validate in some fold.
    """
    counts = spike_counts(table)
    if n_splits > len(counts):
        raise DataError(f'path_extracted_data: {len(counts)} patients are too few for n_splits = {n_splits} folds')
    folds = []
    for number, tested in enumerate(fold_units(list(counts.index), list(counts), n_splits, seed), start=1):
        others = counts.drop(tested)
        if (others > 0).sum() < 2:
            raise DataError(
                f'path_extracted_data: fold {number} of n_splits = {n_splits} leaves {(others > 0).sum()} patients '
                'with spikes to train and validate on: two are needed; use more patients or more folds'
            )
        shares = {'train': 1 - validation_fraction, 'validation': validation_fraction}
        parts = split_units(list(others.index), list(others), shares, seed) | dict.fromkeys(tested, 'test')
        folds.append(pd.DataFrame(parts.items(), columns=['subject', 'part']).sort_values('subject', ignore_index=True))
    return folds


def split_windows(
    table: pd.DataFrame,
    *,
    split: str,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    fixed: dict[int | tuple[int, int], str],
    closed: tuple[str, ...] = (),
) -> tuple[pd.DataFrame, str]:
    """Part of every (subject, block) of the classifier's id table.

    Parameters
    ----------
    fixed : dict
        Patients whose part is given, for a split by patient, or (subject, block) pairs, for one by block.
    closed : tuple of parts
        Parts that get the patients given and no more. Where all three are closed, other patients are 'unused'.

    Returns
    -------
    DataFrame
        subject, block, part.
    str
        'patient' or 'block': what was kept apart.

    Raises
    ------
    DataError
        Too few patients, or blocks, with spikes to have one in each part.
    """
    blocks = table.groupby(['subject', 'block'], as_index=False)['label'].sum()
    counts = spike_counts(table)
    pairs = list(blocks[['subject', 'block']].itertuples(index=False, name=None))
    by = split
    if split == 'auto' and fixed:
        by = 'patient' if set(fixed) & set(counts.index) else 'block'
    elif split == 'auto':
        by = 'patient' if (counts > 0).sum() >= len(PARTS) else 'block'
    fractions = {'train': 1 - validation_fraction - test_fraction, 'validation': validation_fraction}
    fractions['test'] = test_fraction
    if by == 'patient':
        fixed = {subject: part for subject, part in fixed.items() if subject in counts.index}
        shares = {part: share for part, share in fractions.items() if part not in closed}
        others = counts.drop(list(fixed))
        if not fixed and (others > 0).sum() < len(shares):
            raise DataError(
                f"path_extracted_data: {(others > 0).sum()} patients with spikes: split='patient' needs three, one "
                "each for training, validation and test; split='block' shares out the blocks of each patient"
            )
        if shares:
            shares = {part: share / sum(shares.values()) for part, share in shares.items()}
            parts = split_units(list(others.index), list(others), shares, seed)
        else:
            parts = dict.fromkeys(others.index, 'unused')
        blocks['part'] = blocks['subject'].map(parts | fixed)
    else:
        if (blocks['label'] > 0).sum() < len(PARTS):
            raise DataError(
                f'path_extracted_data: {(blocks["label"] > 0).sum()} blocks with spikes: three are needed, one '
                'each for training, validation and test; use more patients, or a larger nb_best_blocks'
            )
        others = blocks[[pair not in fixed for pair in pairs]]
        units = list(others[['subject', 'block']].itertuples(index=False, name=None))
        parts = split_units(units, list(others['label']), fractions, seed) | fixed
        blocks['part'] = [parts[pair] for pair in pairs]
    return blocks[['subject', 'block', 'part']], by


def listed_patients(name: str, patients: list[int] | str | None) -> list[int] | None:
    """Patients of the setting `name`: a list, or a text file with one number per line; None stays None.

    Raises
    ------
    DataError
        The file is missing or holds something else.
    """
    if not isinstance(patients, str):
        return patients if patients is None else list(patients)
    if not Path(patients).is_file():
        raise DataError(f'{name} = {patients!r}: cannot be read (no such text file); correct the path')
    try:
        return [int(line) for line in Path(patients).read_text().split('\n') if line.strip()]
    except OSError as fault:
        raise DataError(f'{name} = {patients!r}: cannot be read ({fault.strerror})') from fault
    except ValueError as fault:
        raise DataError(f'{patients} (setting {name}): one patient number per line, nothing else: {fault}') from fault


def with_parts(table: pd.DataFrame, parts: pd.DataFrame, by: str, otherwise: str = PARTS[0]) -> pd.DataFrame:
    """Add the column `part` to an id table.

    Patients (or, with by='block', blocks) that `parts` does not hold, because only the autoencoder's set has them, get
    the part `otherwise`.
    """
    keys = ['subject'] if by == 'patient' else ['subject', 'block']
    joined = table.merge(parts[[*keys, 'part']].drop_duplicates(), on=keys, how='left')
    return joined.assign(part=joined['part'].fillna(otherwise))


def balance(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Keep as many spike-free training windows as there are with a spike, drawn at random; the others get the part
    'unused'. Validation and test stay as they are.
    """
    training = table['part'] == 'train'
    spike_free = np.flatnonzero(training & (table['label'] == 0))
    n_spiking = int((training & (table['label'] > 0)).sum())
    dropped = np.random.default_rng(seed).permutation(spike_free)[n_spiking:]
    parts = table['part'].to_numpy(dtype=object, copy=True)
    parts[dropped] = 'unused'
    return table.assign(part=parts)
