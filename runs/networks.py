"""The networks of a run: training the autoencoder, reading sub-windows through it, training the classifier."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score

from classification import CLASSIFIERS, Examples, SubwindowData, SubwindowReader, levels_of
from classifiers.inputs import Masking, masking_margin, measure_filters
from evaluation.events import sensitivity_curve
from evaluation.metrics import with_predictions
from evaluation.operating_point import best_f1_threshold, calibrate, fit_calibration, threshold_from_curve
from loop import make_optimizer, resume_optimizer, train
from models import AUTOENCODERS, build_model
from recordings.channels import N_CHANNELS
from runs.context import RunContext
from runs.network_settings import loss_weights
from runs.run_directory import RunDirectory
from runs.split_data import SplitData
from timeseries_dataset import WindowDataset, batches, zscored
from training.checkpoints import checkpoint_saver, load_checkpoint
from training.epoch_log import epoch_logger
from training.losses import masked_loss, reconstruction_loss
from utils import DataError, writing

# Steps of training from which on compiling it, a minute's work, takes less time than it saves.
WORTH_COMPILING = 500

N_FILTER_WINDOWS = 256  # most training windows that the spatial filters are measured on


def train_autoencoder(run: RunDirectory, split: SplitData, context: RunContext) -> tuple[torch.nn.Module, list[dict]]:
    """Train the autoencoder, train that of the source further (ft), or take it as it is (clf). Goes on with a training
    that was interrupted.

    Returns
    -------
    model : Module
        At its best epoch.
    history : list of dict
        One per epoch, see `loop.train`.
    """
    source, settings, device, processes = context.source, context.settings, context.device, context.processes
    window_length = split.window_length
    model_settings = {name: getattr(settings, name) for name in AUTOENCODERS[settings.model][1]}
    model = build_model(settings.model, N_CHANNELS, window_length, **model_settings).to(device)
    model.precision = settings.precision
    if source:
        load_source_weights(model, source)
    if context.mode == 'clf':
        if processes.is_main:
            copy_checkpoints(source.run, run)
        return model, load_checkpoint(source.run.checkpoint('last'))['history']
    loaders = {part: autoencoder_loader(split, part, context) for part in ('train', 'validation')}
    optimizer, scheduler = make_optimizer(
        model,
        learning_rate=settings.learning_rate * (settings.fine_tuning_rate if source else 1),
        **{name: getattr(settings, name) for name in
           ('optimizer', 'weight_decay', 'scheduler', 'stepLR', 'gammaLR', 'plateau_patience')},
    )  # fmt: skip
    if source:
        resume_optimizer(optimizer, source.autoencoder['optimizer_state_dict'])
    n_steps = settings.num_epochs * (len(loaders['train'].dataset) // settings.batch_size)
    # Of several processes, the parts of a batch are too many shapes, and batch norm is another.
    fast = device.type == 'cuda' and settings.precision == 'bfloat16' and processes.size == 1
    if fast and n_steps >= WORTH_COMPILING:
        model.compile_training((settings.batch_size, 1, N_CHANNELS, window_length))
    interrupted = processes.on_main_process(run.checkpoint('last').is_file)
    description = {
        'name': settings.model, 'n_channels': N_CHANNELS, 'n_times': window_length, 'settings': model_settings,
    }  # fmt: skip
    save = checkpoint_saver(run.checkpoint, description)
    history = train(
        model,
        loaders['train'],
        loaders['validation'],
        autoencoder_loss(split, settings),
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=settings.num_epochs,
        n_epochs_stop=settings.n_epochs_stop,
        device=device,
        save=save if processes.is_main else lambda which, state: None,
        log=epoch_logger(run.path, settings.model) if processes.is_main else lambda history: None,
        validate_first=source is not None,
        state=load_checkpoint(run.checkpoint('last')) if interrupted else None,
        processes=processes,
    )
    return model, history


def load_source_weights(model: torch.nn.Module, source) -> None:
    """Give a model the weights of the source's autoencoder.

    Raises
    ------
    DataError
        They are of another model.
    """
    try:
        model.load_state_dict(source.autoencoder['model_state_dict'])
    except (KeyError, RuntimeError) as fault:
        raise DataError(f'{source.run.checkpoint("best")}: no weights of this model in it ({fault})') from fault


def copy_checkpoints(source: RunDirectory, run: RunDirectory) -> None:
    """Copy the autoencoder's checkpoints of one run to another."""
    for which in ('best', 'last'):
        with writing(run.checkpoint(which)) as temporary:
            shutil.copyfile(source.checkpoint(which), temporary)


def autoencoder_loader(split: SplitData, part: str, context: RunContext) -> torch.utils.data.DataLoader:
    """Loader of the autoencoder's windows of a part: for training shuffled, and with noise."""
    settings, processes = context.settings, context.processes
    dataset = WindowDataset(
        split.ae_patients,
        split.ae_table[split.ae_table['part'] == part],
        zscore=zscored(settings.standardize),
        noise=settings.augmentation if part == 'train' else 0.0,
        seed=settings.seed,
        preload=settings.preload,
        device=context.device,
    )
    return batches(
        dataset,
        batch_size=settings.batch_size,
        shuffle=part == 'train',
        seed=settings.seed,
        num_workers=settings.num_workers,
        rank=processes.rank,
        size=processes.size,
    )


def autoencoder_loss(split: SplitData, settings: SimpleNamespace):
    """The loss that the settings name, plain or masked, see `loop.Loss`."""
    weights = loss_weights(settings)
    if not settings.masking:
        return reconstruction_loss(settings.criterion, weights)
    margin = masking_margin(split.shape, settings.pulse_width, settings.sfreq)
    return masked_loss(settings.criterion, weights, split.shape, margin)


def make_reader(
    autoencoder: torch.nn.Module, split: SplitData, settings: SimpleNamespace, device: torch.device
) -> SubwindowReader:
    """What reads sub-windows for the classifier; its filters are measured on the autoencoder's training windows."""
    spec, masking = CLASSIFIERS[settings.classifier], None
    if settings.masking:
        masking = Masking(masking_margin(split.shape, settings.pulse_width, settings.sfreq))
        if spec.needs_filters:
            rows = split.ae_table[split.ae_table['part'] == 'train']
            chosen = np.unique(np.linspace(0, len(rows) - 1, N_FILTER_WINDOWS).astype(int))
            dataset = WindowDataset(split.ae_patients, rows.iloc[chosen], zscore=zscored(settings.standardize))
            loader = batches(dataset, batch_size=settings.batch_size)
            filters = measure_filters(autoencoder, loader, split.shape, masking.margin, device)
            masking = masking._replace(filters=filters)
    levels = levels_of(settings.levels, len(loss_weights(settings)))
    return SubwindowReader(autoencoder, spec, split.shape, levels, masking, device)


def train_classifier(
    run: RunDirectory, split: SplitData, data: dict[str, SubwindowData], context: RunContext
) -> tuple[object, list[dict]]:
    """Train the classifier of the settings on the sub-windows of the training part, and stop it by validation.

    Returns
    -------
    classifier
        See `ClassifierSpec`.
    history : list of dict
        One per epoch of a network; empty for others.
    """
    settings = context.settings
    spec = CLASSIFIERS[settings.classifier]
    arguments = vars(settings) | {'device': context.device}
    classifier = spec.make(**{name: arguments[name] for name in spec.settings})
    if context.mode == 'ft' and settings.classifier == 'sfcn':
        classifier.classifier_learning_rate *= settings.fine_tuning_rate
        classifier.load(context.source.run.checkpoint('best', 'sfcn'))
    elif context.mode == 'ft':
        print(f'  {settings.classifier} cannot be trained further: it is trained anew on these patients')
    examples = {part: Examples(data[part].inputs, split.labels(part)) for part in ('train', 'validation')}
    history = classifier.fit(
        examples['train'], examples['validation'], lambda which: run.checkpoint(which, settings.classifier)
    )
    return classifier, history


def choose_decision(score: np.ndarray, table: pd.DataFrame, split: SplitData, settings: SimpleNamespace) -> dict:
    """Calibrate and choose the threshold on the validation part.

    Parameters
    ----------
    score : array (n,)
        Of its sub-windows.
    table : DataFrame
        Its sub-windows with the peaks of the field power, see `evaluation.merge_events`.

    Returns
    -------
    dict
        calibration, threshold, policy and what it reached on validation: what the checkpoint holds under 'decision'.
    """
    labels = table['test'].to_numpy()
    calibration = fit_calibration(settings.calibration, score, labels)
    proba = calibrate(calibration, score)
    if settings.threshold_policy == 'f1':
        threshold, asked_for = best_f1_threshold(labels, proba), 'best F1 of the sub-windows'
        reached = f'F1 {f1_score(labels, proba >= threshold):.2f}'
    else:
        predictions = with_predictions(table, proba, 0.5)
        tolerance = settings.tolerance * settings.sfreq
        spikes = split.spikes['validation']
        curve = sensitivity_curve(predictions, spikes, split.shape.subwindow_length, tolerance, settings.sfreq)
        limits = {name: getattr(settings, name) for name in ('target_sensitivity', 'false_alarm_budget')}
        threshold, asked_for, reached = threshold_from_curve(curve, settings.threshold_policy, **limits)
    policy = f'{asked_for} on the validation set'
    return {'calibration': calibration, 'threshold': threshold, 'policy': policy, 'reached': reached}


def save_classifier(run: RunDirectory, classifier, decision: dict, masking: Masking | None, name: str) -> None:
    """Write the classifier's checkpoint: what it learned, the decision, and what masking needs."""
    content = {'decision': decision}
    if masking:
        filters = None if masking.filters is None else torch.from_numpy(masking.filters)
        content |= {'margin': masking.margin, 'filters': filters}
    classifier.save(run.checkpoint('best', name), content)
