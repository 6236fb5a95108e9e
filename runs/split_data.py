"""The windows of a run, split into training, validation and test, with the sub-windows and spikes of each part."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from classification import BATCH_SIZE
from classifiers.subwindows import SubwindowShape, subwindow_table
from evaluation.events import annotated_spikes
from recordings.patient_windows import PatientWindows
from runs.source import Source
from runs.splits import balance, listed_patients, split_folds, split_windows, with_parts
from runs.window_sets import WindowSets, pulses_of
from timeseries_dataset import PARTS, WindowDataset, batches, id_table, zscored
from utils import DataError, SettingError


class SplitData(NamedTuple):
    """The windows of a run, split into parts.

    Attributes
    ----------
    ae_patients, clf_patients : list of PatientWindows
        See `WindowSets.autoencoder` and `WindowSets.classifier`.
    ae_table, clf_table : DataFrame
        Their id tables with the column `part`; of the classifier's, the rows that have one.
    split_by : str
        'patient' or 'block': what is kept apart.
    tested_on : str
        Description of the test set.
    subwindows : dict of DataFrame
        The sub-windows of the classifier's windows, by part, see `subwindow_table`.
    spikes : dict of DataFrame
        The annotated spikes in them, by part, see `annotated_spikes`.
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
        """The patients of a part of the classifier's windows, in order."""
        return sorted(set(self.clf_table.loc[self.clf_table['part'] == part, 'subject'].tolist()))

    def labels(self, part: str) -> np.ndarray:
        """Labels (n_subwindows,) of a part, 1 where a sub-window has a spike."""
        return self.subwindows[part]['test'].to_numpy()

    def blocks(self, part: str) -> np.ndarray:
        """Number (n_subwindows,) that tells the (subject, block) of every sub-window of a part."""
        return self.subwindows[part].groupby(['subject', 'block']).ngroup().to_numpy()

    def labels_t(self, part: str) -> np.ndarray:
        """Time labels (n_windows, window_length) of the classifier's windows of a part."""
        return _labels_t(self.clf_patients, self.clf_table[self.clf_table['part'] == part])


def _labels_t(patients: list[PatientWindows], rows: pd.DataFrame) -> np.ndarray:
    """Time labels (n_windows, window_length) of the windows in rows of an id table."""
    indices = zip(rows['patient'], rows['window'], strict=True)
    return np.stack([patients[patient].labels_t[window] for patient, window in indices])


def split_data(
    opened: WindowSets,
    mode: str,
    source: Source | None,
    settings: SimpleNamespace,
    shape: SubwindowShape,
) -> list[SplitData]:
    """Split the windows into training, validation and test, before anything is trained or written.

    Parameters
    ----------
    opened : WindowSets
        From `open_window_sets`.
    mode : str
    source : Source or None
        The run that is the starting point.
    settings : namespace
    shape : SubwindowShape

    Returns
    -------
    list of SplitData
        One; with mode cv, one per fold.

    Raises
    ------
    DataError
        A part lacks the patients, windows or spikes that it needs.
    """
    ae_patients, clf_patients = opened.autoencoder, opened.classifier
    ae_ids, training_ids, test_ids = (id_table(patients) for patients in opened)
    fixed, closed = fixed_parts(test_ids, mode, source, settings)
    parts_by_fold, split_by = parts_of_folds((training_ids, test_ids), mode, fixed, closed, settings)
    tested_on = describe_test_set(test_ids, split_by, fixed, source)
    otherwise = 'unused' if len(closed) == len(PARTS) else 'train'
    splits = []
    for parts in parts_by_fold:
        if source:
            check_source_leaves_patients(clf_patients, parts, source)
        ae_table = with_parts(ae_ids, parts, split_by, otherwise)
        clf_table = classifier_table(opened, parts, split_by)
        if settings.balanced:
            clf_table = balance(clf_table, settings.seed)
        check_autoencoder_parts(ae_patients, ae_table)
        subwindows, spikes = label_parts(clf_patients, clf_table, settings, shape)
        splits.append(
            SplitData(ae_patients, clf_patients, ae_table, clf_table, split_by, tested_on, subwindows, spikes, shape)
        )
    for split in splits:
        print_split(split)
    return splits


def classifier_table(opened: WindowSets, parts: pd.DataFrame, split_by: str) -> pd.DataFrame:
    """Id table of `WindowSets.classifier` with the column `part`: each part with the windows that are meant for it."""
    table = with_parts(id_table(opened.classifier), parts, split_by)
    if opened.testing is opened.training:
        return table
    for_training = table['patient'] < len(opened.training)
    return table[for_training == (table['part'] == 'train')].reset_index(drop=True)


def parts_of_folds(
    tables: tuple[pd.DataFrame, pd.DataFrame],
    mode: str,
    fixed: dict,
    closed: tuple[str, ...],
    settings: SimpleNamespace,
) -> tuple[list[pd.DataFrame], str]:
    """Parts of the patients or blocks of every fold, one outside mode cv, and what is kept apart.

    Parameters
    ----------
    tables : (DataFrame, DataFrame)
        Id tables of the windows for training, and of those for validation and test.
    fixed, closed
        From `fixed_parts`.

    Returns
    -------
    folds : list of DataFrame
        See `split_folds` and `split_windows`.
    split_by : str
        'patient' or 'block'.
    """
    fractions = {'validation_fraction': settings.validation_fraction, 'seed': settings.seed}
    if mode == 'cv':
        return split_folds(tables[1], n_splits=settings.n_splits, **fractions), 'patient'
    parts, split_by = split_windows(
        tables[1],
        split=settings.split,
        test_fraction=settings.test_fraction,
        fixed=fixed,
        closed=closed,
        trainable=set(tables[0][['subject', 'block']].itertuples(index=False, name=None)),
        **fractions,
    )
    return [parts], split_by


def describe_test_set(table: pd.DataFrame, split_by: str, fixed: dict, source: Source | None) -> str:
    """Description of the test set: how far it is from what was trained on."""
    if split_by == 'patient':
        return 'patients not seen in training'
    tested_on = 'other blocks of the SAME patients'
    keeps_blocks = any(isinstance(unit, tuple) for unit in fixed)
    if source and not keeps_blocks and set(table['subject']) & source.seen:
        tested_on += f', which run {source.run.name} was trained on'
    return tested_on


def check_source_leaves_patients(patients: list[PatientWindows], parts: pd.DataFrame, source: Source) -> None:
    """Check that every part has patients, although those of the source run keep their parts.

    Raises
    ------
    DataError
        A part has none.
    """
    lacking = set(PARTS) - set(parts['part'])
    if lacking:
        raise DataError(
            f'{patients[0].path.parent}: no patient for the {" and ".join(sorted(lacking))} part: run '
            f'{source.run.name} was trained on patients {", ".join(map(str, sorted(source.seen)))}; add others'
        )


def fixed_parts(
    table: pd.DataFrame, mode: str, source: Source | None, settings: SimpleNamespace
) -> tuple[dict, tuple[str, ...]]:
    """Parts that the settings and the source run give to patients, or to blocks.

    Parameters
    ----------
    table : DataFrame
        The classifier's id table.

    Returns
    -------
    fixed : dict
        Patient, or (subject, block), to part.
    closed : tuple of str
        The parts that get no patients but those in `fixed`.

    Raises
    ------
    DataError
        A listed patient has no windows.
    SettingError
        A listed patient belongs to another part, or patients are listed where lists have no meaning.
    """
    subjects = set(table['subject'])
    candidates = {
        'train': listed_patients('training_patients', settings.training_patients),
        'validation': listed_patients('validation_patients', settings.validation_patients),
        'test': listed_patients('test_patients', settings.test_patients),
    }
    lists = {part: patients for part, patients in candidates.items() if patients is not None}
    if lists and (mode == 'cv' or settings.split == 'block'):
        raise SettingError(
            'training_patients, validation_patients and test_patients have no meaning with mode cv or '
            "split='block': set them to None"
        )
    fixed = source.fixed(mode, subjects) if source else {}
    fixed = {unit: part if unit in lists.get(part, [unit]) else 'unused' for unit, part in fixed.items()}
    for part, patients in lists.items():
        for subject in patients:
            if subject not in subjects:
                raise DataError(f'{part} part: no windows of patient {subject}; make them, or take it off the list')
            if fixed.get(subject, part) not in (part, 'unused'):
                of_run = f' of run {source.run.name}' if source else ''
                raise SettingError(
                    f'patient {subject} cannot be in the {part} part: it is in the {fixed[subject]} part{of_run}'
                )
            fixed[subject] = part
    return fixed, tuple(lists)


def check_autoencoder_parts(patients: list[PatientWindows], table: pd.DataFrame) -> None:
    """Check that the autoencoder has windows to train and to validate on.

    Raises
    ------
    DataError
        The training or the validation part has none.
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

    Parameters
    ----------
    patients : list of PatientWindows
    table : DataFrame
        Their id table with the column `part`.

    Returns
    -------
    subwindows, spikes : dict of DataFrame
        By part, see `subwindow_table` and `annotated_spikes`.

    Raises
    ------
    DataError
        A part has no window, or a part that is learned from has sub-windows of one label only.
    """
    pulses = pulses_of(patients, settings)
    subwindows, spikes = {}, {}
    for part in PARTS:
        rows = table[table['part'] == part]
        if rows.empty:
            raise DataError(f'{patients[0].path.parent}: no window for the {part} part; use more patients')
        labels_t = _labels_t(patients, rows)
        subwindows[part] = subwindow_table(rows, labels_t, shape)
        spikes[part] = annotated_spikes(rows, labels_t, subwindows[part], pulses, shape.subwindow_length)
        n_spikes = subwindows[part]['test'].sum()
        needs_both = part == 'validation' or (part == 'train' and settings.classifier != 'threshold')
        if needs_both and not 0 < n_spikes < len(subwindows[part]):
            raise DataError(
                f'{patients[0].path.parent}: the {part} part has {n_spikes} spikes in '
                f'{len(subwindows[part])} sub-windows; use more patients, or another seed'
            )
    return subwindows, spikes


def print_split(split: SplitData) -> None:
    """Print the number of windows and the patients of every part."""
    for part in PARTS:
        rows = split.clf_table[split.clf_table['part'] == part]
        subjects = ', '.join(map(str, split.patients_of(part)))
        normal = f'{(split.ae_table["part"] == part).sum():6d} windows,' if part != 'test' else ' ' * 15
        print(f'  {part:11} autoencoder {normal} classifier {len(rows):6d} windows, {rows["label"].sum():5d} with a '
              f'spike, patients {subjects}')  # fmt: skip
        if not split.subwindows[part]['test'].any():
            print(f'warning: the {part} part has no spikes: its sensitivity and areas are undefined (NaN)')
    if 'SAME' in split.tested_on:
        print('  split by block: the test shares its patients with the training and says nothing about new patients')


def windows_of_part(split: SplitData, part: str, settings: SimpleNamespace, device: torch.device) -> DataLoader:
    """Loader of the classifier's windows of a part, in recording order."""
    rows = split.clf_table[split.clf_table['part'] == part]
    dataset = WindowDataset(split.clf_patients, rows, zscore=zscored(settings.standardize))
    return batches(dataset, batch_size=BATCH_SIZE[device.type], num_workers=settings.num_workers)
