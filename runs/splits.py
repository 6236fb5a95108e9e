"""Who is trained on, validated and tested: patients, or blocks, split into parts, and the windows of each part."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from classifiers.subwindows import SubwindowShape, subwindow_table
from evaluation.events import annotated_spikes
from runs.source import Source
from timeseries_dataset import (
    PARTS,
    WINDOW_SETTINGS,
    PatientWindows,
    WindowDataset,
    batches,
    id_table,
    open_directory,
    zscored,
)
from utils import DataError, SettingError


class SplitData(NamedTuple):
    """The windows of a run, split into parts.

    Attributes
    ----------
    ae_patients, clf_patients : lists of PatientWindows
        Of the autoencoder's and the classifier's directory.
    ae_table, clf_table : DataFrames
        Their id tables with the column `part`.
    split_by : str
        'patient' or 'block': what was kept apart.
    tested_on : str
        What the test set is, in words.
    subwindows : dict of DataFrames
        The sub-windows of the classifier's windows, by part.
    spikes : dict of DataFrames
        The annotated spikes in them, by part.
    shape : SubwindowShape
    """

    ae_patients: list[PatientWindows]
    clf_patients: list[PatientWindows]
    ae_table: pd.DataFrame
    clf_table: pd.DataFrame
    split_by: str
    tested_on: str
    subwindows: dict[str, pd.DataFrame]
    spikes: dict[str, pd.DataFrame]
    shape: SubwindowShape

    @property
    def window_length(self) -> int:
        """Samples of a window."""
        return self.clf_patients[0].windows.shape[2]

    def patients_of(self, part: str) -> list[int]:
        """The patients of a part, in order; the autoencoder's training may have others besides."""
        return sorted(set(self.clf_table.loc[self.clf_table['part'] == part, 'subject'].tolist()))

    def labels(self, part: str) -> np.ndarray:
        """Labels (n,) of the sub-windows of a part."""
        return self.subwindows[part]['test'].to_numpy()

    def blocks(self, part: str) -> np.ndarray:
        """A number (n,) for the (subject, block) of each sub-window of a part."""
        return self.subwindows[part].groupby(['subject', 'block']).ngroup().to_numpy()

    def labels_t(self, part: str) -> np.ndarray:
        """Time labels (n_windows, n_times) of the classifier's windows of a part."""
        return _labels_t(self.clf_patients, self.clf_table[self.clf_table['part'] == part])


def _labels_t(patients, rows):
    return np.stack([patients[p].labels_t[w] for p, w in zip(rows['patient'], rows['window'], strict=True)])


def open_window_sets(settings: SimpleNamespace) -> tuple[list[PatientWindows], list[PatientWindows]]:
    """Open the windows of the autoencoder and of the classifier.

    The unsupervised detector may not use annotations, so that its autoencoder learns from the classifier's windows,
    which are all there are.
    """
    made_with = {name: getattr(settings, name) for name in WINDOW_SETTINGS}
    ae_directory, clf_directory = settings.path_extracted_data
    clf_patients = open_directory(clf_directory, settings.nb_best_blocks, settings.patient, made_with)
    if settings.classifier == 'threshold':
        return clf_patients, clf_patients
    ae_patients = open_directory(ae_directory, settings.nb_best_blocks, settings.patient, made_with)
    for patient_windows in ae_patients:
        if patient_windows.labels_t.any():
            raise DataError(
                f'{patient_windows.path}: holds windows with spikes, which the autoencoder must not learn: '
                'path_extracted_data[0] is for the windows of create_windows_ae.py'
            )
    return ae_patients, clf_patients


def split_data(
    opened: tuple[list[PatientWindows], list[PatientWindows]],
    mode: str,
    source: Source | None,
    settings: SimpleNamespace,
    shape: SubwindowShape,
) -> list[SplitData]:
    """Split the windows into training, validation and test: one `SplitData`, or with `cv` one per fold.

    Parameters
    ----------
    opened : (list, list)
        From `open_window_sets`.

    Raises
    ------
    DataError, SettingError
        A part lacks what it needs, before anything is trained or written.
    """
    table = id_table(opened[1])
    fixed, closed = fixed_parts(table, mode, source, settings)
    fractions = {'validation_fraction': settings.validation_fraction, 'seed': settings.seed}
    if mode == 'cv':
        folds, split_by = split_folds(table, n_splits=settings.n_splits, **fractions), 'patient'
    else:
        parts, split_by = split_windows(
            table, split=settings.split, test_fraction=settings.test_fraction, fixed=fixed, closed=closed, **fractions
        )
        folds = [parts]
    tested_on = 'patients not seen in training' if split_by == 'patient' else 'other blocks of the SAME patients'
    kept_blocks = any(isinstance(unit, tuple) for unit in fixed)
    if source and split_by == 'block' and not kept_blocks and set(table['subject']) & source.seen:
        tested_on += f', which run {source.run.name} was trained on'
    otherwise = 'unused' if len(closed) == len(PARTS) else 'train'
    splits = []
    for parts in folds:
        lacking = set(PARTS) - set(parts['part'])
        if lacking and source:
            raise DataError(
                f'{opened[1][0].path.parent}: no patient for the {" and ".join(sorted(lacking))} part: run '
                f'{source.run.name} was trained on patients {", ".join(map(str, sorted(source.seen)))}; add others'
            )
        ae_table = with_parts(id_table(opened[0]), parts, split_by, otherwise)
        clf_table = with_parts(table, parts, split_by)
        if settings.balanced:
            clf_table = balance(clf_table, settings.seed)
        check_autoencoder_parts(opened[0], ae_table)
        subwindows, spikes = label_parts(opened[1], clf_table, settings, shape)
        splits.append(SplitData(*opened, ae_table, clf_table, split_by, tested_on, subwindows, spikes, shape))
    for split in splits:
        print_split(split)
    return splits


def fixed_parts(table: pd.DataFrame, mode: str, source: Source | None, settings: SimpleNamespace) -> tuple[dict, tuple]:
    """What the settings and the source run say of who is in which part.

    Returns
    -------
    fixed : dict
        Patient, or (patient, block), to part.
    closed : tuple of str
        The parts that get no others.

    Raises
    ------
    DataError, SettingError
        A listed patient has no windows, or belongs to another part.
    """
    subjects = set(table['subject'])
    lists = {
        'train': listed_patients('training_patients', settings.training_patients),
        'validation': listed_patients('validation_patients', settings.validation_patients),
        'test': listed_patients('test_patients', settings.test_patients),
    }
    closed = tuple(part for part, patients in lists.items() if patients is not None)
    if closed and (mode == 'cv' or settings.split == 'block'):
        raise SettingError(
            'training_patients, validation_patients and test_patients have no meaning with mode cv or '
            "split='block': set them to None"
        )
    fixed = source.fixed(mode, subjects) if source else {}
    fixed = {unit: part if part not in closed or unit in lists[part] else 'unused' for unit, part in fixed.items()}
    for part in closed:
        for subject in lists[part]:
            if subject not in subjects:
                raise DataError(f'{part} part: no windows of patient {subject}; make them, or take it off the list')
            if fixed.get(subject, part) not in (part, 'unused'):
                of_run = f' of run {source.run.name}' if source else ''
                raise SettingError(
                    f'patient {subject} cannot be in the {part} part: it is in the {fixed[subject]} part{of_run}'
                )
            fixed[subject] = part
    return fixed, closed


def check_autoencoder_parts(patients: list[PatientWindows], table: pd.DataFrame) -> None:
    """Check that the autoencoder has windows to train and to validate on.

    Raises
    ------
    DataError
    """
    for part in ('train', 'validation'):
        if not (table['part'] == part).any():
            raise DataError(
                f'{patients[0].path.parent}: no window without spikes for the {part} part; '
                'make the windows of more patients, or set nb_best_blocks higher'
            )


def label_parts(
    patients: list[PatientWindows], table: pd.DataFrame, settings: SimpleNamespace, shape: SubwindowShape
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Sub-windows and annotated spikes of every part of the classifier's windows.

    Raises
    ------
    DataError
        A part has no window, or training or validation has no spike or nothing else.
    """
    half_pulse = round(settings.pulse_width / 2 * settings.sfreq)
    subwindows, spikes = {}, {}
    for part in PARTS:
        rows = table[table['part'] == part]
        if rows.empty:
            raise DataError(f'{patients[0].path.parent}: no window for the {part} part; use more patients')
        labels_t = _labels_t(patients, rows)
        subwindows[part] = subwindow_table(rows, labels_t, shape)
        spikes[part] = annotated_spikes(rows, labels_t, subwindows[part], half_pulse, shape.n_times)
        n_spikes = subwindows[part]['test'].sum()
        learns = part == 'validation' or (part == 'train' and settings.classifier != 'threshold')
        if learns and not 0 < n_spikes < len(subwindows[part]):
            raise DataError(
                f'{patients[0].path.parent}: the {part} part has {n_spikes} spikes in '
                f'{len(subwindows[part])} sub-windows; use more patients, or another seed'
            )
    return subwindows, spikes


def print_split(split: SplitData) -> None:
    """Say what is trained, validated and tested on."""
    for part in PARTS:
        rows = split.clf_table[split.clf_table['part'] == part]
        subjects = ', '.join(map(str, split.patients_of(part)))
        normal = f'{(split.ae_table["part"] == part).sum():6d} windows,' if part != 'test' else ' ' * 15
        print(f'  {part:11} autoencoder {normal} classifier {len(rows):6d} windows, {rows["label"].sum():5d} with a '
              f'spike, patients {subjects}')  # fmt: skip
        if not split.subwindows[part]['test'].any():
            print(f'warning: the {part} part has no spikes: its sensitivity and areas are undefined (NaN)')
    if 'SAME' in split.tested_on:
        print('  split by block: the test shares its patients with the training and says nothing on new patients')


def windows_of_part(split: SplitData, part: str, settings: SimpleNamespace) -> torch.utils.data.DataLoader:
    """Loader of the classifier's windows of one part, in recording order."""
    rows = split.clf_table[split.clf_table['part'] == part]
    dataset = WindowDataset(split.clf_patients, rows, zscore=zscored(settings.standardize))
    return batches(dataset, batch_size=settings.batch_size, num_workers=settings.num_workers)


def split_record(mode: str, split: SplitData, source: Source | None, settings: SimpleNamespace) -> dict:
    """What params.json says of the split: the patients of each part, what was kept apart and, where that was blocks,
    their parts; patients seen by earlier runs; and whether annotations chose the autoencoder's windows."""
    only_ae = set(split.ae_table.loc[split.ae_table['part'] == 'train', 'subject'].tolist())
    blocks = split.clf_table[['subject', 'block', 'part']].drop_duplicates() if split.split_by == 'block' else None
    annotated = settings.classifier != 'threshold'
    if source:
        annotated = source.split['autoencoder saw annotations'] or (annotated and mode == 'ft')
    return {
        'by': split.split_by,
        **{part: split.patients_of(part) for part in PARTS},
        'train': sorted(only_ae | set(split.patients_of('train'))),
        'blocks': [] if blocks is None else blocks.values.tolist(),
        'started from': source.run.name if source else None,
        'seen before': sorted(source.seen) if source else [],
        'autoencoder saw annotations': annotated,
        'windows': windows_digest(split),
    }


def windows_digest(split: SplitData) -> str:
    """What tells whether the windows, their labels and parts are still the same: SHA-256 of their tables."""
    digest = hashlib.sha256()
    for table in (split.ae_table, split.clf_table, *split.subwindows.values()):
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------- who is in which part
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
    'unused'. Validation and test stay as they are."""
    training = table['part'] == 'train'
    spike_free = np.flatnonzero(training & (table['label'] == 0))
    n_spiking = int((training & (table['label'] > 0)).sum())
    dropped = np.random.default_rng(seed).permutation(spike_free)[n_spiking:]
    parts = table['part'].to_numpy(dtype=object, copy=True)
    parts[dropped] = 'unused'
    return table.assign(part=parts)
