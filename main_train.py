"""Train an autoencoder on normal windows, then train, validate and test a spike classifier on its errors.

    python main_train.py [MODE] [MODEL] [name=value ...]

MODE   auto: train and validate the autoencoder, then train, validate and test the classifier (default)
MODEL  AE1D or AE2D (default: the setting model)

Reads   path_extracted_data[0] and [1]: the windows made by create_windows_ae.py and create_windows_clf.py
Writes  path_writing_data/<MODEL>_<nb>/: params.json, checkpoints, loss curves, predictions and results CSVs,
        metrics.json, figures/, report.html
"""

import shlex
import time
from types import SimpleNamespace

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
    n_times = round(settings.window_size * settings.sfreq)
    ae_patients, clf_patients = (
        open_directory(directory, settings.nb_best_blocks, settings.patient, n_times)
        for directory in settings.path_extracted_data
    )
    ae_table, clf_table, split_by = split_tables(ae_patients, clf_patients, settings)

    run = new_run_directory(settings.path_writing_data, settings.model, settings.model_nb)
    save_params(run, command, vars(settings))
    print(f'{run.name}: in {run.path}, on {device}')
    print_split(ae_table, clf_table, split_by)

    print(f'\nautoencoder {settings.model}')
    autoencoder, ae_history = train_autoencoder(run, ae_patients, ae_table, settings, device)

    print(f'\nclassifier {settings.classifier}')
    border = round(settings.spike_spacing_from_border * settings.sfreq)
    shape = subwindow_shape(n_times, border, round(settings.subwindow_size * settings.sfreq))
    not_judged = n_times - 2 * border - shape.n_sub * shape.n_times
    if not_judged:
        print(f'  warning: {not_judged} of the {n_times - 2 * border} inner samples of every window are not judged, ')
        print('  because the inner part is no multiple of subwindow_size')
    tables, cards = cards_of_parts(autoencoder, clf_patients, clf_table, shape, settings, device)
    network, clf_history = train_classifier(run, cards, tables, settings, device)
    proba = {
        part: predict_proba(network, batches(cards[part], batch_size=settings.classifier_batch_size), device)
        for part in ('validation', 'test')
    }
    threshold = best_f1_threshold(tables['validation']['test'].to_numpy(), proba['validation'])
    save_threshold(run.checkpoint('best', settings.classifier), threshold)

    predictions = with_predictions(tables['test'], proba['test'], threshold)
    test_figures = figures(predictions)
    validation_figures = figures(with_predictions(tables['validation'], proba['validation'], threshold))
    save_predictions(run, predictions)
    save_results(run, [test_figures])
    plot_losses(run, {settings.model: ae_history, settings.classifier: clf_history})
    plot_test(run, predictions, test_figures)
    test_on = 'patients not seen in training' if split_by == 'patient' else 'other blocks of the SAME patients'
    write_json(
        run.metrics,
        {
            'tested on': test_on,
            'test patients': sorted(set(tables['test']['subject'])),
            'threshold': threshold,
            'threshold policy': 'best F1 on the validation set',
            'test': test_figures,
            'validation': validation_figures,
            'autoencoder': {'best validation loss': min(h['validation loss'] for h in ae_history)},
        },
    )
    summary = {
        'autoencoder': f'{settings.model}, trained on windows without annotated spikes',
        'classifier': f'{settings.classifier} on its error cards, {settings.subwindow_size:g} s sub-windows',
        'tested on': f'{test_on}: {", ".join(map(str, sorted(set(tables["test"]["subject"]))))}',
        'threshold': f'{threshold:.4f}, the best F1 on the validation set',
    }
    write_report(run, command, vars(settings), summary, [test_figures])

    print(f'\ntest on {test_on}: {test_figures["spike sub-windows"]} of {len(predictions)} sub-windows with a spike')
    print(f'  threshold {threshold:.4f} (best F1 on validation)')
    for name in ('PR-AUC', 'ROC-AUC', 'f1-score', 'precision', 'sensitivity', 'specificity', 'accuracy'):
        chance = {'PR-AUC': f'   chance {test_figures["PR-AUC of chance"]:.3f}', 'ROC-AUC': '   chance 0.500'}
        print(f'  {name:12} {test_figures[name]:.3f}{chance.get(name, "")}')
    print(f'results in {run.path}, after {time.perf_counter() - started:.0f} s')


def split_tables(
    ae_patients: list[PatientWindows], clf_patients: list[PatientWindows], settings: SimpleNamespace
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Id tables of both sets with one and the same split, and what was kept apart, 'patient' or 'block'."""
    clf_table = id_table(clf_patients)
    parts, by = split_windows(
        clf_table,
        split=settings.split,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
    )
    ae_table, clf_table = with_parts(id_table(ae_patients), parts, by), with_parts(clf_table, parts, by)
    for part in ('train', 'validation'):
        if not (ae_table['part'] == part).any():
            raise DataError(
                f'{settings.path_extracted_data[0]}: no window without spikes for the {part} part; '
                'make the windows of more patients, or set nb_best_blocks higher'
            )
    return ae_table, clf_table, by


def print_split(ae_table: pd.DataFrame, clf_table: pd.DataFrame, split_by: str) -> None:
    """Say what is trained, validated and tested on."""
    for part in PARTS:
        normal, rows = ae_table[ae_table['part'] == part], clf_table[clf_table['part'] == part]
        subjects = ', '.join(map(str, sorted(set(rows['subject']))))
        normal = f'{len(normal):6d} normal windows,' if part != 'test' else ' ' * 22
        print(f'  {part:11}{normal} {len(rows):6d} windows, {rows["label"].sum():5d} with a spike, patients {subjects}')
    if split_by == 'block':
        print('  split by block: the test shares its patients with the training and says nothing on new patients')


def train_autoencoder(
    run: RunDirectory,
    patients: list[PatientWindows],
    table: pd.DataFrame,
    settings: SimpleNamespace,
    device: torch.device,
) -> tuple[torch.nn.Module, list[dict]]:
    """Train the autoencoder on the normal windows of the training part; return it at its best epoch."""
    n_times = patients[0].windows.shape[2]
    chosen = {name: getattr(settings, name) for name in AUTOENCODERS[settings.model][1]}
    model = build_model(settings.model, N_CHANNELS, n_times, **chosen).to(device)
    loaders = {}
    for part, noise in (('train', settings.augmentation), ('validation', 0.0)):
        dataset = WindowDataset(
            patients,
            table[table['part'] == part],
            zscore=zscored(settings.standardize),
            noise=noise,
            seed=settings.seed,
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
        reconstruction_loss(settings.criterion),
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=settings.num_epochs,
        n_epochs_stop=settings.n_epochs_stop,
        device=device,
        save=checkpoint_saver(run.checkpoint, description),
    )
    return model, history


def zscored(standardize: str | bool) -> bool:
    """Whether the Dataset z-scores each window: not where the windows were scaled by block to keep amplitudes."""
    return standardize != 'block'


def cards_of_parts(
    autoencoder: torch.nn.Module,
    patients: list[PatientWindows],
    table: pd.DataFrame,
    shape: SubwindowShape,
    settings: SimpleNamespace,
    device: torch.device,
) -> tuple[dict[str, pd.DataFrame], dict[str, CardDataset]]:
    """Sub-window tables and error cards of the training, validation and test part.

    Raises
    ------
    DataError
        The training or the validation part has no spike in any sub-window.
    """
    tables, cards = {}, {}
    for part in PARTS:
        rows = table[table['part'] == part]
        labels_t = np.stack([patients[p].labels_t[w] for p, w in zip(rows['patient'], rows['window'], strict=True)])
        tables[part] = subwindow_table(rows, labels_t, labels_t.shape[1], shape)
        if part != 'test' and not 0 < tables[part]['test'].sum() < len(tables[part]):
            raise DataError(
                f'{settings.path_extracted_data[1]}: the {part} part has {tables[part]["test"].sum()} spikes in '
                f'{len(tables[part])} sub-windows: use more patients, or another seed'
            )
        dataset = WindowDataset(patients, rows, zscore=zscored(settings.standardize))
        loader = batches(dataset, batch_size=settings.batch_size, num_workers=settings.num_workers)
        made = make_cards(autoencoder, loader, shape, device)
        cards[part] = CardDataset(made, tables[part]['test'].to_numpy())
    return tables, cards


def train_classifier(
    run: RunDirectory,
    cards: dict[str, CardDataset],
    tables: dict[str, pd.DataFrame],
    settings: SimpleNamespace,
    device: torch.device,
) -> tuple[torch.nn.Module, list[dict]]:
    """Train the SFCN on the error cards of the training part; return it at its best epoch."""
    n_spikes = tables['train']['test'].sum()
    weight = settings.positive_weight
    if weight is None:
        weight = float((len(tables['train']) - n_spikes) / n_spikes)
    print(f'  {len(tables["train"])} training sub-windows, {n_spikes} with a spike, each weighted {weight:.1f}')
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


if __name__ == '__main__':
    run_script(main, __doc__)
