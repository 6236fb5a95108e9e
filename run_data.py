"""What a run is trained, validated and tested on: windows shared out to parts, and the run that it starts from."""

import hashlib
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from classification import CLASSIFIERS, SubwindowShape, subwindow_shape, subwindow_table
from evaluation import annotated_spikes
from loop import load_checkpoint
from models import AUTOENCODERS
from models.sfcn import SFCN
from saving_functions import RunDirectory, find_run, load_params
from settings import ORIGINAL, check_settings
from timeseries_dataset import (
    PARTS,
    PatientWindows,
    WindowDataset,
    balance,
    batches,
    id_table,
    listed_patients,
    open_directory,
    split_folds,
    split_windows,
    with_parts,
)
from utils import DataError, SettingError

WINDOW_SETTINGS = ('sfreq', 'window_size', 'spike_spacing_from_border', 'pulse_width', 'standardize')


class Data(NamedTuple):
    """The windows of a run, shared out.

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

    def patients_of(self, part: str) -> list[int]:
        """The patients of a part, in order; the autoencoder's training may have others besides."""
        return sorted(set(self.clf_table.loc[self.clf_table['part'] == part, 'subject'].tolist()))


def open_windows(settings: SimpleNamespace) -> tuple[list[PatientWindows], list[PatientWindows]]:
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
    for one in ae_patients:
        if one.labels_t.any():
            raise DataError(
                f'{one.path}: holds windows with spikes, which the autoencoder must not learn: '
                'path_extracted_data[0] is for the windows of create_windows_ae.py'
            )
    return ae_patients, clf_patients


def shared_out(
    opened, mode: str, source: 'Source | None', settings: SimpleNamespace, shape: SubwindowShape
) -> list[Data]:
    """The windows, shared out to training, validation and test: one `Data`, or with `cv` one per fold.

    Raises
    ------
    DataError, SettingError
        A part lacks what it needs, before anything is trained or written.
    """
    table = id_table(opened[1])
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
    fixed = source.fixed(mode, set(table['subject'])) if source else {}
    fixed = {unit: part if part not in closed or unit in lists[part] else 'unused' for unit, part in fixed.items()}
    for part in closed:
        for subject in lists[part]:
            if subject not in set(table['subject']):
                raise DataError(f'{part} part: no windows of patient {subject}; make them, or take it off the list')
            if fixed.get(subject, part) not in (part, 'unused'):
                of_run = f' of run {source.run.name}' if source else ''
                raise SettingError(
                    f'patient {subject} cannot be in the {part} part: it is in the {fixed[subject]} part{of_run}'
                )
            fixed[subject] = part
    fractions = {'validation_fraction': settings.validation_fraction, 'seed': settings.seed}
    if mode == 'cv':
        folds, by = split_folds(table, n_splits=settings.n_splits, **fractions), 'patient'
    else:
        parts, by = split_windows(
            table,
            split=settings.split,
            test_fraction=settings.test_fraction,
            fixed=fixed,
            closed=closed,
            **fractions,
        )
        folds = [parts]
    tested_on = 'patients not seen in training' if by == 'patient' else 'other blocks of the SAME patients'
    kept_blocks = any(isinstance(unit, tuple) for unit in fixed)
    if source and by == 'block' and not kept_blocks and set(table['subject']) & source.seen:
        tested_on += f', which run {source.run.name} was trained on'
    otherwise = 'unused' if len(closed) == len(PARTS) else 'train'
    shared = []
    for parts in folds:
        lacking = set(PARTS) - set(parts['part'])
        if lacking and source:
            raise DataError(
                f'{opened[1][0].path.parent}: no patient for the {" and ".join(sorted(lacking))} part: run '
                f'{source.run.name} was trained on patients {", ".join(map(str, sorted(source.seen)))}; add others'
            )
        shared.append(with_data(opened, table, parts, by, otherwise, tested_on, settings, shape))
    for data in shared:
        print_split(data)
    return shared


def with_data(opened, table, parts, by, otherwise, tested_on, settings, shape) -> Data:
    """The windows with one share-out of the patients, checked."""
    ae_patients, clf_patients = opened
    ae_table = with_parts(id_table(ae_patients), parts, by, otherwise)
    clf_table = with_parts(table, parts, by)
    if settings.balanced:
        clf_table = balance(clf_table, settings.seed)
    for part in ('train', 'validation'):
        if not (ae_table['part'] == part).any():
            raise DataError(
                f'{ae_patients[0].path.parent}: no window without spikes for the {part} part; '
                'make the windows of more patients, or set nb_best_blocks higher'
            )
    half_pulse = round(settings.pulse_width / 2 * settings.sfreq)
    subwindows, spikes = {}, {}
    for part in PARTS:
        rows = clf_table[clf_table['part'] == part]
        if rows.empty:
            raise DataError(f'{clf_patients[0].path.parent}: no window for the {part} part; use more patients')
        labels_t = np.stack([clf_patients[p].labels_t[w] for p, w in zip(rows['patient'], rows['window'], strict=True)])
        subwindows[part] = subwindow_table(rows, labels_t, shape)
        spikes[part] = annotated_spikes(rows, labels_t, subwindows[part], half_pulse, shape.n_times)
        n_spikes = subwindows[part]['test'].sum()
        learns = part == 'validation' or (part == 'train' and settings.classifier != 'threshold')
        if learns and not 0 < n_spikes < len(subwindows[part]):
            raise DataError(
                f'{clf_patients[0].path.parent}: the {part} part has {n_spikes} spikes in '
                f'{len(subwindows[part])} sub-windows; use more patients, or another seed'
            )
    return Data(ae_patients, clf_patients, ae_table, clf_table, by, tested_on, subwindows, spikes, shape)


def loss_weights(settings: SimpleNamespace) -> list[float]:
    """Weight of each (reconstruction, target) pair of the model: a..e for wavelets, otherwise 1 for the only one."""
    if settings.model != 'wavelets':
        return [1.0]
    details = [settings.b, settings.c, settings.d]
    n_levels = len(settings.filters)
    details = details[:n_levels] + details[-1:] * (n_levels - len(details))
    return [settings.a, *details, settings.e]


def subwindows_of(settings: SimpleNamespace) -> SubwindowShape:
    """How the settings cut a window into sub-windows.

    Raises
    ------
    SettingError
        No sub-window fits, or the loss has no term.
    """
    n_pairs = len(loss_weights(settings))
    if settings.levels != 'all' and max(settings.levels) >= n_pairs:
        raise SettingError(f'levels = {settings.levels}: {settings.model} has the levels 0 to {n_pairs - 1}')
    if sum(loss_weights(settings)) == 0:
        raise SettingError('a, b, c, d and e: all that have an effect are 0; give at least one loss term a weight')
    n_times = round(settings.window_size * settings.sfreq)
    border = round(settings.spike_spacing_from_border * settings.sfreq)
    if round(settings.subwindow_size * settings.sfreq) == 0:
        raise SettingError(f'subwindow_size = {settings.subwindow_size} is less than a sample: make it longer')
    if settings.balanced and settings.classifier == 'threshold':
        raise SettingError("balanced=True chooses by annotations, which classifier='threshold' does without: set False")
    shape = subwindow_shape(n_times, border, round(settings.subwindow_size * settings.sfreq))
    n_inner = n_times - 2 * border
    if shape.n_sub == 0:
        raise SettingError(
            f'subwindow_size = {settings.subwindow_size} does not fit into the inner part of a window, window_size - '
            f'2 x spike_spacing_from_border = {n_inner / settings.sfreq:g} s: make one of the three fit'
        )
    if settings.classifier == 'sfcn' and shape.n_times < SFCN.least_times:
        raise SettingError(
            f'subwindow_size = {settings.subwindow_size} is {shape.n_times} samples at sfreq = {settings.sfreq}: '
            f'the classifier sfcn needs at least {SFCN.least_times}'
        )
    if settings.masking and settings.standardize != 'block':
        print(
            f"warning: masking={settings.masking!r} is meant for standardize='block': with standardize="
            f'{settings.standardize!r} each window is scaled with its hidden samples, so that its scale tells of them'
        )
    if settings.masking and border == 0:
        raise SettingError(
            f'masking={settings.masking!r} needs signal around the inner part of a window: set '
            'spike_spacing_from_border above 0, or masking=None'
        )
    if settings.masking and settings.balanced and CLASSIFIERS[settings.classifier].beside:
        print(
            f'warning: balanced=True leaves out windows that classifier={settings.classifier!r} compares each with, '
            'with masking'
        )
    not_judged = n_inner - shape.n_sub * shape.n_times
    if not_judged:
        print(
            f'warning: the last {not_judged} of the {n_inner} inner samples of every window are not judged: the inner '
            'part is no multiple of subwindow_size'
        )
    return shape


def print_split(data: Data) -> None:
    """Say what is trained, validated and tested on."""
    for part in PARTS:
        rows = data.clf_table[data.clf_table['part'] == part]
        subjects = ', '.join(map(str, data.patients_of(part)))
        normal = f'{(data.ae_table["part"] == part).sum():6d} windows,' if part != 'test' else ' ' * 15
        print(f'  {part:11} autoencoder {normal} classifier {len(rows):6d} windows, {rows["label"].sum():5d} with a '
              f'spike, patients {subjects}')  # fmt: skip
        if not data.subwindows[part]['test'].any():
            print(f'warning: the {part} part has no spikes: its sensitivity and areas are undefined (NaN)')
    if 'SAME' in data.tested_on:
        print('  split by block: the test shares its patients with the training and says nothing on new patients')


def windows_of_part(data: Data, part: str, settings: SimpleNamespace) -> torch.utils.data.DataLoader:
    """The classifier's windows of one part, in recording order."""
    rows = data.clf_table[data.clf_table['part'] == part]
    dataset = WindowDataset(data.clf_patients, rows, zscore=zscored(settings.standardize))
    return batches(dataset, batch_size=settings.batch_size, num_workers=settings.num_workers)


def zscored(standardize: str | bool) -> bool:
    """Whether the Dataset z-scores each window: not where the windows were scaled by block to keep amplitudes."""
    return standardize != 'block'


# ---------------------------------------------------------------------------------------- the source run
class Source(NamedTuple):
    """The finished run that `ft` and `clf` start from.

    Attributes
    ----------
    run : RunDirectory
    autoencoder : dict
        Its best checkpoint.
    split : dict
        Who was in which part there, see `split_of`.
    """

    run: RunDirectory
    autoencoder: dict
    split: dict

    @property
    def seen(self) -> set[int]:
        """Patients that the run, or one that it started from, was trained or validated on."""
        return {*self.split['train'], *self.split['validation'], *self.split['seen before']}

    def fixed(self, mode: str, subjects: set[int]) -> dict:
        """Parts that patients keep, so that nothing is tested on what has been seen; blocks, where the run was split
        by block and there are no other patients."""
        if self.split['by'] == 'block' and subjects <= {subject for subject, _, _ in self.split['blocks']}:
            return {(subject, block): part for subject, block, part in self.split['blocks']}
        parts = dict.fromkeys(self.seen, 'train')
        if self.split['by'] == 'patient':
            # Where ft gets none of the patients seen, those of the old test are free to be trained on.
            kept = PARTS if mode == 'clf' or self.seen & subjects else ()
            parts |= {subject: part for part in kept for subject in self.split[part]}
        return {subject: part for subject, part in parts.items() if subject in subjects}


def split_of(mode: str, data: Data, source: Source | None, settings: SimpleNamespace) -> dict:
    """What params.json says of the split: the patients of each part, what was kept apart and, where that was blocks,
    their parts; patients seen by earlier runs; and whether annotations chose the autoencoder's windows."""
    only_ae = set(data.ae_table.loc[data.ae_table['part'] == 'train', 'subject'].tolist())
    blocks = data.clf_table[['subject', 'block', 'part']].drop_duplicates() if data.split_by == 'block' else None
    annotated = settings.classifier != 'threshold'
    if source:
        annotated = source.split['autoencoder saw annotations'] or (annotated and mode == 'ft')
    return {
        'by': data.split_by,
        **{part: data.patients_of(part) for part in PARTS},
        'train': sorted(only_ae | set(data.patients_of('train'))),
        'blocks': [] if blocks is None else blocks.values.tolist(),
        'started from': source.run.name if source else None,
        'seen before': sorted(source.seen) if source else [],
        'autoencoder saw annotations': annotated,
        'windows': windows_digest(data),
    }


def windows_digest(data: Data) -> str:
    """What tells whether the windows, their labels and parts are still the same: SHA-256 of their tables."""
    digest = hashlib.sha256()
    for table in (data.ae_table, data.clf_table, *data.subwindows.values()):
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def open_source(mode: str, settings: SimpleNamespace, model_nb: int | None) -> Source:
    """Open run `model_nb`, and take over the settings that must match; says which differ from params.py."""
    if model_nb is None:
        raise SettingError(f'model_nb: mode {mode} starts from a finished run: give its number')
    run = find_run(settings.path_writing_data, f'{settings.model}_{model_nb}')
    params = load_params(run)
    must_match = [*WINDOW_SETTINGS, 'subwindow_size', 'masking', *AUTOENCODERS[settings.model][1]]
    if mode == 'ft':
        must_match += ['classifier', 'levels', 'classifier_width', 'optimizer']
    for name in must_match:
        if name not in params['settings']:
            raise DataError(f'{run.params}: lacks the setting {name}: made by another version; train the run again')
        saved = params['settings'][name]
        if saved != getattr(settings, name):
            print(f'warning: {name} = {getattr(settings, name)!r} now, but run {run.name} has {saved!r}, which is used')
            setattr(settings, name, saved)
    check_settings(vars(settings))
    if settings.recipe == 'original' and any(getattr(settings, name) != value for name, value in ORIGINAL.items()):
        raise SettingError(f"recipe='original': run {run.name} was made otherwise; set recipe='current'")
    return Source(run, load_checkpoint(run.checkpoint('best')), params['split'])
