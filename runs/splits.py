"""Who is trained on, validated and tested: patients, or blocks, split into parts."""

from pathlib import Path

import numpy as np
import pandas as pd

from timeseries_dataset import PARTS
from utils import DataError


def split_units(units: list, n_spikes: list[int], shares: dict[str, float], seed: int) -> dict:
    """Split units (patients, or blocks) into parts, at least one unit with spikes in each part.

    Units with spikes and units without are split separately, so that every part gets its share of both. Of few units
    without spikes, the last part gets the first one, then the part before it: they show false alarms.

    Parameters
    ----------
    units : list
    n_spikes : list of int
        Number of spikes of every unit.
    shares : dict
        Part to its fraction of the units; the first part gets the remainder.
    seed : int

    Returns
    -------
    dict
        Unit to part.
    """
    rng = np.random.default_rng(seed)
    remainder_part, *fraction_parts = shares
    parts = {}
    for spiking in (True, False):
        group = [unit for unit, n in zip(units, n_spikes, strict=True) if (n > 0) == spiking]
        order = [group[i] for i in rng.permutation(len(group))]
        for number, part in enumerate(reversed(fraction_parts)):
            # One unit with spikes is reserved for each of the parts that come after this one.
            available = len(order) - spiking * (len(fraction_parts) - number)
            n_units = min(max(round(shares[part] * len(group)), 1), max(available, 0))
            parts |= dict.fromkeys(order[len(order) - n_units :], part)
            order = order[: len(order) - n_units]
        parts |= dict.fromkeys(order, remainder_part)
    return parts


def fold_units(units: list, n_spikes: list[int], n_splits: int, seed: int) -> list[list]:
    """Distribute units (patients) over `n_splits` folds with about as many spikes each; -1 makes a fold of every unit.

    Units are sorted by their number of spikes, and `n_splits` neighbours go to different folds, in random order.
    """
    if n_splits == -1:
        return [[unit] for unit in units]
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(units))
    order = sorted(shuffled, key=lambda i: -n_spikes[i])
    folds = [[] for _ in range(n_splits)]
    for start in range(0, len(order), n_splits):
        for unit, fold in zip(order[start : start + n_splits], rng.permutation(n_splits), strict=False):
            folds[fold].append(units[unit])
    return folds


def spike_counts(table: pd.DataFrame) -> pd.Series:
    """Number of windows with a spike of every patient of an id table."""
    return table.groupby('subject')['label'].sum()


def split_folds(table: pd.DataFrame, *, n_splits: int, validation_fraction: float, seed: int) -> list[pd.DataFrame]:
    """Split the patients for every fold of a cross-validation: every patient is in the test part of one fold.

    Parameters
    ----------
    table : DataFrame
        The classifier's id table.
    n_splits : int
        Number of folds; -1 for as many as patients.
    validation_fraction : float
        Fraction of a fold's patients outside the test part that are validated on.
    seed : int

    Returns
    -------
    list of DataFrame
        One per fold: subject, part, one row per patient.

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
        untested = counts.drop(tested)
        n_spiking = (untested > 0).sum()
        if n_spiking < 2:
            raise DataError(
                f'path_extracted_data: fold {number} of n_splits = {n_splits} leaves {n_spiking} patients '
                'with spikes to train and validate on: two are needed; use more patients or more folds'
            )
        shares = {'train': 1 - validation_fraction, 'validation': validation_fraction}
        parts = split_units(list(untested.index), list(untested), shares, seed) | dict.fromkeys(tested, 'test')
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
    trainable: set[tuple[int, int]] | None = None,
) -> tuple[pd.DataFrame, str]:
    """Split the blocks of the classifier's id table into training, validation and test.

    Parameters
    ----------
    table : DataFrame
        The classifier's id table, of the windows to validate and test on.
    split, validation_fraction, test_fraction, seed
        The settings of these names.
    fixed : dict
        To the part that is given: patients, for a split by patient, or (subject, block) pairs, for a split by block.
    closed : tuple of str
        Parts that get no patients but those in `fixed`. Where all three are closed, the patients left are 'unused'.
    trainable : set, optional
        The (subject, block) pairs that have windows to train on; all of the table where not given.

    Returns
    -------
    blocks : DataFrame
        subject, block, part.
    split_by : str
        'patient' or 'block': what is kept apart.

    Raises
    ------
    DataError
        Too few patients, or blocks, with spikes for one in each part.
    """
    blocks = table.groupby(['subject', 'block'], as_index=False)['label'].sum()
    counts = spike_counts(table)
    split_by = split
    if split == 'auto' and fixed:
        split_by = 'patient' if set(fixed) & set(counts.index) else 'block'
    elif split == 'auto':
        split_by = 'patient' if (counts > 0).sum() >= len(PARTS) else 'block'
    fractions = {
        'train': 1 - validation_fraction - test_fraction,
        'validation': validation_fraction,
        'test': test_fraction,
    }
    if split_by == 'patient':
        fixed_patients = {subject: part for subject, part in fixed.items() if subject in counts.index}
        shares = {part: share for part, share in fractions.items() if part not in closed}
        blocks['part'] = blocks['subject'].map(split_patients(counts, shares, seed, fixed_patients))
    else:
        blocks['part'] = split_blocks(blocks, fractions, seed, fixed, trainable)
    return blocks[['subject', 'block', 'part']], split_by


def split_patients(counts: pd.Series, shares: dict[str, float], seed: int, fixed: dict) -> dict:
    """Split patients into parts.

    Parameters
    ----------
    counts : Series
        From `spike_counts`.
    shares : dict
        Part to its fraction, of the parts that are open; without any, patients outside `fixed` are 'unused'.
    fixed : dict
        Patients to the part that is given.

    Returns
    -------
    dict
        Patient to part.

    Raises
    ------
    DataError
        Too few patients with spikes for one in each part.
    """
    free = counts.drop(list(fixed))
    if not fixed and (free > 0).sum() < len(shares):
        raise DataError(
            f"path_extracted_data: {(free > 0).sum()} patients with spikes: split='patient' needs three, one "
            "each for training, validation and test; split='block' splits the blocks of each patient"
        )
    if not shares:
        return dict.fromkeys(free.index, 'unused') | fixed
    shares = {part: share / sum(shares.values()) for part, share in shares.items()}
    return split_units(list(free.index), list(free), shares, seed) | fixed


def split_blocks(
    blocks: pd.DataFrame, fractions: dict[str, float], seed: int, fixed: dict, trainable: set[tuple[int, int]] | None
) -> list[str]:
    """Split blocks into parts.

    Blocks that are not trained on are shared between the other parts, so that all blocks for training are split alike.

    Parameters
    ----------
    blocks : DataFrame
        subject, block, and in `label` the number of windows with a spike.
    fractions : dict
        Part to its fraction.
    fixed : dict
        (subject, block) pairs to the part that is given.
    trainable : set or None
        The pairs that have windows to train on; None for all.

    Returns
    -------
    list of str
        Part of every row of `blocks`.

    Raises
    ------
    DataError
        Too few blocks with spikes for one in each part.
    """
    columns = blocks[['subject', 'block', 'label']]
    n_spikes = {(subject, block): n for subject, block, n in columns.itertuples(index=False)}
    trainable = set(n_spikes) if trainable is None else trainable
    n_spiking = sum(n_spikes[pair] > 0 for pair in n_spikes if pair in trainable)
    if n_spiking < len(PARTS):
        raise DataError(
            f'path_extracted_data: {n_spiking} blocks with spikes: three are needed, one '
            'each for training, validation and test; use more patients, or a larger nb_best_blocks'
        )
    parts = fixed
    for shares in (fractions, {part: fractions[part] for part in PARTS[1:]}):
        units = [pair for pair in n_spikes if pair not in fixed and (pair in trainable) == ('train' in shares)]
        whole = sum(shares.values())
        shares = {part: share / whole for part, share in shares.items()}
        parts = parts | split_units(units, [n_spikes[pair] for pair in units], shares, seed)
    return [parts[pair] for pair in n_spikes]


def listed_patients(name: str, patients: list[int] | str | None) -> list[int] | None:
    """Read the patients of the setting `name`: a list, or a text file with one number per line; None stays None.

    Raises
    ------
    DataError
        The file is missing, or has a line that is no number.
    """
    if not isinstance(patients, str):
        return None if patients is None else list(patients)
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

    Parameters
    ----------
    table : DataFrame
        An id table.
    parts : DataFrame
        subject and part; with by='block', block too.
    by : str
        'patient' or 'block': what is kept apart.
    otherwise : str
        Part of patients, or blocks, that are not in `parts`, because only the autoencoder's directory has them.
    """
    keys = ['subject'] if by == 'patient' else ['subject', 'block']
    joined = table.merge(parts[[*keys, 'part']].drop_duplicates(), on=keys, how='left')
    return joined.assign(part=joined['part'].fillna(otherwise))


def balance(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Keep as many spike-free training windows as there are with a spike.

    They are drawn at random. The rest gets the part 'unused'. Validation and test do not change.
    """
    training = table['part'] == 'train'
    spike_free = np.flatnonzero(training & (table['label'] == 0))
    n_spiking = int((training & (table['label'] > 0)).sum())
    dropped = np.random.default_rng(seed).permutation(spike_free)[n_spiking:]
    parts = table['part'].to_numpy(dtype=object, copy=True)
    parts[dropped] = 'unused'
    return table.assign(part=parts)
