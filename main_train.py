"""Train an autoencoder on normal windows, then train, validate and test a spike classifier on its errors.

    python main_train.py [MODE] [MODEL] [name=value ...]

MODE   auto: train and validate the autoencoder, then train, validate and test the classifier (default)
MODEL  AE1D, AE2D, AE1D_smaller, AE2D_smaller or wavelets (default: the setting model)

Reads   path_extracted_data[0] and [1]: the windows made by create_windows_ae.py and create_windows_clf.py
Writes  path_writing_data/<MODEL>_<nb>/: params.json, checkpoints, loss curves, predictions and results CSVs,
        metrics.json, figures/, report.html
"""

import shlex
import time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from classification import (
    CardDataset,
    SubwindowShape,
    best_f1_threshold,
    figures,
    make_cards,
    predict_proba,
    spike_loss,
    subwindow_shape,
    subwindow_table,
    with_predictions,
)
from data_processing import N_CHANNELS
from loop import make_optimizer, reconstruction_loss, train
from models import AUTOENCODERS, SFCN, build_model
from saving_functions import (
    RunDirectory,
    checkpoint_saver,
    new_run_directory,
    plot_losses,
    plot_test,
    save_params,
    save_predictions,
    save_results,
    save_threshold,
    write_report,
)
from timeseries_dataset import (
    PARTS,
    PatientWindows,
    WindowDataset,
    batches,
    id_table,
    open_directory,
    split_windows,
    with_parts,
)
from utils import DataError, SettingError, check_settings, choose_device, read_command, run_script, set_seed, write_json

MODES = ('auto',)


def main(words: list[str]) -> None:
    """Read the command line and run the mode it names."""
    positional, settings = read_command(words, n_positional=2)
    mode, settings.model = (positional + ['auto', settings.model][len(positional) :])[:2]
    if mode not in MODES:
        raise SettingError(f'mode {mode!r}: must be one of {", ".join(MODES)}; python main_train.py [MODE] [MODEL]')
    check_settings(vars(settings))
    command = shlex.join(['python', 'main_train.py', *words])
    auto(settings, command)


def auto(settings: SimpleNamespace, command: str) -> None:
    """Train and validate the autoencoder, then train, validate and test the classifier."""
    started = time.perf_counter()
    set_seed(settings.seed)
    device = choose_device(settings.device)
    data = prepare(settings)

    run = new_run_directory(settings.path_writing_data, settings.model, settings.model_nb)
    settings.model_nb, settings.device = run.number, str(device)
    save_params(run, command, vars(settings))
    print(f'{run.name}: in {run.path}, on {device}')
    print_split(data)
    try:
        print(f'\nautoencoder {settings.model}')
        autoencoder, ae_history = train_autoencoder(run, data, settings, device)
        print(f'\nclassifier {settings.classifier}')
        cards = {part: cards_of_part(autoencoder, data, part, settings, device) for part in PARTS}
        network, clf_history = train_classifier(run, cards, settings, device)
        plot_losses(run, {settings.model: ae_history, settings.classifier: clf_history})
        test(run, command, data, network, cards, settings, device)
    except torch.OutOfMemoryError as fault:
        run.discard_without_checkpoint()
        raise SettingError(f'{device} has too little memory: lower batch_size or classifier_batch_size') from fault
    except BaseException:
        run.discard_without_checkpoint()
        raise
    print(f'results in {run.path}, after {time.perf_counter() - started:.0f} s')


# --------------------------------------------------------------------------------------------- the data
class Data(NamedTuple):
    """The windows of a run, shared out.

    Attributes
    ----------
    ae_patients, clf_patients : lists of PatientWindows
        Of the autoencoder's and the classifier's directory.
    ae_table, clf_table : DataFrames
        Their id tables with the column `part`.
    split_by : str
        'patient' or 'block': what is kept apart.
    subwindows : dict of DataFrames
        The sub-windows of the classifier's windows, by part.
    shape : SubwindowShape
    """

    ae_patients: list[PatientWindows]
    clf_patients: list[PatientWindows]
    ae_table: pd.DataFrame
    clf_table: pd.DataFrame
    split_by: str
    subwindows: dict[str, pd.DataFrame]
    shape: SubwindowShape

    @property
    def tested_on(self) -> str:
        """What the test set is, in words."""
        return 'patients not seen in training' if self.split_by == 'patient' else 'other blocks of the SAME patients'


def prepare(settings: SimpleNamespace) -> Data:
    """Open the windows, share them out, and check that every part has what it needs.

    Raises
    ------
    DataError, SettingError
        Before anything is trained or written.
    """
    shape = subwindows_of(settings)
    if sum(loss_weights(settings)) == 0:
        raise SettingError('a, b, c, d and e: all that have an effect are 0; give at least one loss term a weight')
    names = ('sfreq', 'window_size', 'spike_spacing_from_border', 'pulse_width', 'standardize')
    made_with = {name: getattr(settings, name) for name in names}
    ae_patients, clf_patients = (
        open_directory(directory, settings.nb_best_blocks, settings.patient, made_with)
        for directory in settings.path_extracted_data
    )
    for one in ae_patients:
        if one.labels_t.any():
            raise DataError(
                f'{one.path}: holds windows with spikes, which the autoencoder must not learn: '
                'path_extracted_data[0] is for the windows of create_windows_ae.py'
            )
    clf_table = id_table(clf_patients)
    parts, split_by = split_windows(
        clf_table,
        split=settings.split,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
    )
    ae_table = with_parts(id_table(ae_patients), parts, split_by)
    clf_table = with_parts(clf_table, parts, split_by)
    for part in ('train', 'validation'):
        if not (ae_table['part'] == part).any():
            raise DataError(
                f'{settings.path_extracted_data[0]}: no window without spikes for the {part} part; '
                'make the windows of more patients, or set nb_best_blocks higher'
            )
    subwindows = {}
    for part in PARTS:
        rows = clf_table[clf_table['part'] == part]
        labels_t = np.stack([clf_patients[p].labels_t[w] for p, w in zip(rows['patient'], rows['window'], strict=True)])
        subwindows[part] = subwindow_table(rows, labels_t, labels_t.shape[1], shape)
        n_spikes = subwindows[part]['test'].sum()
        if part != 'test' and not 0 < n_spikes < len(subwindows[part]):
            raise DataError(
                f'{settings.path_extracted_data[1]}: the {part} part has {n_spikes} spikes in '
                f'{len(subwindows[part])} sub-windows; use more patients, or another seed'
            )
    return Data(ae_patients, clf_patients, ae_table, clf_table, split_by, subwindows, shape)


def subwindows_of(settings: SimpleNamespace) -> SubwindowShape:
    """How the settings cut a window into sub-windows.

    Raises
    ------
    SettingError
        No sub-window fits, or it is too short for the classifier.
    """
    n_times = round(settings.window_size * settings.sfreq)
    border = round(settings.spike_spacing_from_border * settings.sfreq)
    shape = subwindow_shape(n_times, border, round(settings.subwindow_size * settings.sfreq))
    n_inner = n_times - 2 * border
    if shape.n_sub == 0:
        raise SettingError(
            f'subwindow_size = {settings.subwindow_size} does not fit into the inner part of a window, window_size - '
            f'2 x spike_spacing_from_border = {n_inner / settings.sfreq:g} s: make one of the three fit'
        )
    if shape.n_times < SFCN.least_times:
        raise SettingError(
            f'subwindow_size = {settings.subwindow_size} is {shape.n_times} samples at sfreq = {settings.sfreq}: '
            f'the classifier sfcn needs at least {SFCN.least_times}'
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
        subjects = ', '.join(map(str, sorted(set(rows['subject']))))
        normal = f'{(data.ae_table["part"] == part).sum():6d} normal windows,' if part != 'test' else ' ' * 22
        print(f'  {part:11}{normal} {len(rows):6d} windows, {rows["label"].sum():5d} with a spike, patients {subjects}')
    if data.split_by == 'block':
        print('  split by block: the test shares its patients with the training and says nothing on new patients')


def zscored(standardize: str | bool) -> bool:
    """Whether the Dataset z-scores each window: not where the windows were scaled by block to keep amplitudes."""
    return standardize != 'block'


# --------------------------------------------------------------------------------------- the autoencoder
def train_autoencoder(
    run: RunDirectory, data: Data, settings: SimpleNamespace, device: torch.device
) -> tuple[torch.nn.Module, list[dict]]:
    """Train the autoencoder on the normal windows of the training part; return it at its best epoch."""
    n_times = data.ae_patients[0].windows.shape[2]
    chosen = {name: getattr(settings, name) for name in AUTOENCODERS[settings.model][1]}
    model = build_model(settings.model, N_CHANNELS, n_times, **chosen).to(device)
    loaders = {}
    for part, noise in (('train', settings.augmentation), ('validation', 0.0)):
        dataset = WindowDataset(
            data.ae_patients,
            data.ae_table[data.ae_table['part'] == part],
            zscore=zscored(settings.standardize),
            noise=noise,
            seed=settings.seed,
            preload=settings.preload,
            device=device,
        )
        loaders[part] = batches(
            dataset,
            batch_size=settings.batch_size,
            shuffle=part == 'train',
            seed=settings.seed,
            num_workers=settings.num_workers,
        )
    optimizer, scheduler = make_optimizer(
        model,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        stepLR=settings.stepLR,
        gammaLR=settings.gammaLR,
    )
    description = {'name': settings.model, 'n_channels': N_CHANNELS, 'n_times': n_times, 'settings': chosen}
    history = train(
        model,
        loaders['train'],
        loaders['validation'],
        reconstruction_loss(settings.criterion, loss_weights(settings)),
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=settings.num_epochs,
        n_epochs_stop=settings.n_epochs_stop,
        device=device,
        save=checkpoint_saver(run.checkpoint, description),
    )
    return model, history


def loss_weights(settings: SimpleNamespace) -> list[float]:
    """Weight of each (reconstruction, target) pair of the model: a..e for wavelets, otherwise 1 for the only one."""
    if settings.model != 'wavelets':
        return [1.0]
    details = [settings.b, settings.c, settings.d]
    n_levels = len(settings.filters)
    details = details[:n_levels] + details[-1:] * (n_levels - len(details))
    return [settings.a, *details, settings.e]


# ---------------------------------------------------------------------------------------- the classifier
def cards_of_part(
    autoencoder: torch.nn.Module, data: Data, part: str, settings: SimpleNamespace, device: torch.device
) -> CardDataset:
    """Error cards of the sub-windows of one part, with their labels."""
    dataset = WindowDataset(
        data.clf_patients, data.clf_table[data.clf_table['part'] == part], zscore=zscored(settings.standardize)
    )
    loader = batches(dataset, batch_size=settings.batch_size, num_workers=settings.num_workers)
    cards = make_cards(autoencoder, loader, data.shape, device)
    return CardDataset(cards, data.subwindows[part]['test'].to_numpy())


def train_classifier(
    run: RunDirectory, cards: dict[str, CardDataset], settings: SimpleNamespace, device: torch.device
) -> tuple[torch.nn.Module, list[dict]]:
    """Train the SFCN on the error cards of the training part; return it at its best epoch."""
    n_cards, n_spikes = len(cards['train']), int(cards['train'].labels.sum())
    weight = settings.positive_weight
    if weight is None:
        weight = (n_cards - n_spikes) / n_spikes
    print(f'  {n_cards} training sub-windows, {n_spikes} with a spike, each weighted {weight:.1f}')
    _, n_planes, n_channels, n_times = cards['train'].cards.shape
    chosen = {
        'n_planes': n_planes,
        'n_channels': n_channels,
        'n_times': n_times,
        'width': settings.classifier_width,
    }
    network = SFCN(**chosen).to(device)
    optimizer, scheduler = make_optimizer(
        network,
        optimizer=settings.optimizer,
        learning_rate=settings.classifier_learning_rate,
        weight_decay=settings.weight_decay,
        stepLR=settings.stepLR,
        gammaLR=settings.gammaLR,
    )
    size = settings.classifier_batch_size
    history = train(
        network,
        batches(cards['train'], batch_size=size, shuffle=True, seed=settings.seed),
        batches(cards['validation'], batch_size=size),
        spike_loss(weight),
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=settings.classifier_num_epochs,
        n_epochs_stop=settings.classifier_n_epochs_stop,
        device=device,
        save=checkpoint_saver(
            lambda which: run.checkpoint(which, settings.classifier),
            {'name': settings.classifier, 'settings': chosen},
        ),
    )
    return network, history


def test(
    run: RunDirectory,
    command: str,
    data: Data,
    network: torch.nn.Module,
    cards: dict[str, CardDataset],
    settings: SimpleNamespace,
    device: torch.device,
) -> None:
    """Choose the threshold on the validation part, test on the test part, and write and print what came out."""
    proba = {
        part: predict_proba(network, batches(cards[part], batch_size=settings.classifier_batch_size), device)
        for part in ('validation', 'test')
    }
    threshold = best_f1_threshold(data.subwindows['validation']['test'].to_numpy(), proba['validation'])
    save_threshold(run.checkpoint('best', settings.classifier), threshold)
    predictions = {part: with_predictions(data.subwindows[part], proba[part], threshold) for part in proba}
    result = figures(predictions['test'])
    subjects = sorted(set(predictions['test']['subject'].tolist()))

    save_predictions(run, predictions['test'])
    save_results(run, [result])
    plot_test(run, predictions['test'], result)
    metrics = {
        'tested on': data.tested_on,
        'test patients': subjects,
        'threshold': threshold,
        'threshold policy': 'best F1 on the validation set',
        'test': result,
        'validation': figures(predictions['validation']),
    }
    write_json(run.metrics, metrics)
    summary = {
        'autoencoder': f'{settings.model}, trained on windows without annotated spikes',
        'classifier': f'{settings.classifier} on its error cards, {settings.subwindow_size:g} s sub-windows',
        'tested on': f'{data.tested_on}: {", ".join(map(str, subjects))}',
        'threshold': f'{threshold:.4f}, the best F1 on the validation set',
    }
    write_report(run, command, vars(settings), summary, [result])

    print(
        f'\ntest on {data.tested_on}: {result["spike sub-windows"]} of {result["sub-windows"]} sub-windows with a spike'
    )
    print(f'  threshold {threshold:.4f} (best F1 on validation)')
    chance = {'PR-AUC': result['PR-AUC of chance'], 'ROC-AUC': 0.5}
    for name in ('PR-AUC', 'ROC-AUC', 'f1-score', 'precision', 'sensitivity', 'specificity', 'accuracy'):
        beside = f'   chance {chance[name]:.3f}' if name in chance else ''
        print(f'  {name:12} {result[name]:.3f}{beside}')


if __name__ == '__main__':
    run_script(main, __doc__)
