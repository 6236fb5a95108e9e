"""The windows of a run, split into training, validation and test, with the sub-windows and spikes of each part."""

import hashlib
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from classifiers.subwindows import SubwindowShape, subwindow_table
from evaluation.events import annotated_spikes, pulse_lengths
from runs.source import Source
from runs.splits import balance, listed_patients, split_folds, split_windows, with_parts
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
    warn_of_pulses(clf_patients, settings)
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


def pulses_of(patients: list[PatientWindows], settings: SimpleNamespace) -> dict[int, int]:
    """Samples of the pulse that marks a spike in `labels_t`, by patient: windows may be made by other scripts."""
    expected = 2 * round(settings.pulse_width / 2 * settings.sfreq) + 1
    lengths = pulse_lengths([patient_windows.labels_t for patient_windows in patients], expected)
    return {patient_windows.subject: length for patient_windows, length in zip(patients, lengths, strict=True)}


def warn_of_pulses(patients: list[PatientWindows], settings: SimpleNamespace) -> None:
    """Say which patients' marks are not as long as `pulse_width` says."""
    expected = 2 * round(settings.pulse_width / 2 * settings.sfreq) + 1
    others = {subject: pulse for subject, pulse in pulses_of(patients, settings).items() if pulse != expected}
    if others:
        print(
            f'warning: pulse_width = {settings.pulse_width} makes marks of {expected} samples, but those of patients '
            f'{", ".join(map(str, others))} have {", ".join(map(str, sorted(set(others.values()))))}, which is used'
        )


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
    their parts; patients seen by earlier runs; and whether annotations chose the autoencoder's windows.
    """
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
