"""The networks of a run: training the autoencoder, reading sub-windows through it, training the classifier."""

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from classification import BATCH_SIZE, SubwindowData, SubwindowReader, levels_read
from classifiers.features import FEATURES_VERSION
from classifiers.inputs import Masking, masking_margin, measure_filters
from classifiers.network import NetworkClassifier
from classifiers.pseudo_labels import pseudo_labels
from classifiers.second_look import fit_second_look, second_look
from classifiers.specs import CLASSIFIERS, Classifier, Examples, load_classifier
from classifiers.subwindows import subwindow_table
from evaluation.events import sensitivity_curve
from evaluation.metrics import with_predictions
from evaluation.operating_point import best_f1_threshold, calibrate, fit_calibration, threshold_from_curve
from loop import Loss, make_optimizer, resume_optimizer, train
from models import AUTOENCODERS, build_model
from models.autoencoder import Autoencoder
from recordings.channels import N_CHANNELS
from runs.context import RunContext
from runs.network_settings import loss_weights
from runs.run_directory import RunDirectory
from runs.source import Source
from runs.split_data import SplitData, windows_of_part
from timeseries_dataset import WindowDataset, batches, zscored
from training.checkpoints import checkpoint_saver
from training.epoch_log import epoch_logger
from training.losses import masked_loss, reconstruction_loss
from utils import DataError, writing

# From this number of training steps on, compiling, which takes a minute, saves more time than it takes.
WORTH_COMPILING = 500

N_FILTER_WINDOWS = 256  # most training windows that the spatial filters are measured on


def train_autoencoder(run: RunDirectory, split: SplitData, context: RunContext) -> tuple[Autoencoder, list[dict]]:
    """Train the autoencoder, train that of the source further (ft), or copy that of the source (clf).

    A training that was interrupted continues from its last checkpoint.

    Returns
    -------
    model : Autoencoder
        With the weights of its best epoch.
    history : list of dict
        One per epoch, see `loop.train`.
    """
    source, settings, device, processes = context.source, context.settings, context.device, context.processes
    description = describe_autoencoder(split, settings)
    model = build_autoencoder(description, context)
    if context.mode == 'clf':
        assert source is not None  # `open_source` has opened it
        if processes.is_main:
            copy_checkpoints(source.run, run)
        return model, source.history
    train_loader, validation_loader = (autoencoder_loader(split, part, context) for part in ('train', 'validation'))
    optimizer, scheduler = autoencoder_optimizer(model, context)
    compile_long_training(model, split, context)
    interrupted = processes.on_main_process(run.checkpoint('last').is_file)
    history = train(
        model,
        train_loader,
        validation_loader,
        autoencoder_loss(split, settings),
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=settings.num_epochs,
        n_epochs_stop=settings.n_epochs_stop,
        device=device,
        save=checkpoint_saver(run.checkpoint, description) if processes.is_main else lambda which, state: None,
        log=epoch_logger(run.path, settings.model) if processes.is_main else lambda history: None,
        validate_first=source is not None,
        resume=run.checkpoint if interrupted else None,
        processes=processes,
    )
    return model, history


def describe_autoencoder(split: SplitData, settings: SimpleNamespace) -> dict:
    """What builds the autoencoder of the settings again: name, size of its windows, and the settings that it takes."""
    return {
        'name': settings.model,
        'n_channels': N_CHANNELS,
        'n_times': split.window_length,
        'settings': {name: getattr(settings, name) for name in AUTOENCODERS[settings.model][1]},
    }


def build_autoencoder(description: dict, context: RunContext) -> Autoencoder:
    """Build an autoencoder on the device, with the weights of the source where there is one."""
    model = build_model(
        description['name'], description['n_channels'], description['n_times'], **description['settings']
    ).to(context.device)
    model.precision = context.settings.precision
    if context.source:
        load_source_weights(model, context.source)
    return model


def autoencoder_optimizer(model: Autoencoder, context: RunContext) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Optimizer and schedule of the autoencoder; with a source, in its state and with the rate of fine-tuning."""
    source, settings = context.source, context.settings
    names = ('optimizer', 'weight_decay', 'scheduler', 'stepLR', 'gammaLR', 'plateau_patience')
    optimizer, scheduler = make_optimizer(
        model,
        learning_rate=settings.learning_rate * (settings.fine_tuning_rate if source else 1),
        **{name: getattr(settings, name) for name in names},
    )
    if source:
        resume_optimizer(optimizer, source.autoencoder['optimizer_state_dict'])
    return optimizer, scheduler


def compile_long_training(model: Autoencoder, split: SplitData, context: RunContext) -> None:
    """Compile the training of a model on a GPU, where it is long enough to save time."""
    settings, on_gpu = context.settings, context.device.type == 'cuda'
    n_windows = int((split.ae_table['part'] == 'train').sum())
    n_steps = settings.num_epochs * (n_windows // settings.batch_size)
    # Several processes would compile for too many sizes of their parts of a batch, and for another batch norm.
    compilable = on_gpu and settings.precision == 'bfloat16' and context.processes.size == 1
    if compilable and n_steps >= WORTH_COMPILING:
        model.compile_training((settings.batch_size, 1, N_CHANNELS, split.window_length))


def load_source_weights(model: Autoencoder, source: Source) -> None:
    """Load the weights of the source's autoencoder into a model.

    Raises
    ------
    DataError
        The weights do not fit the model.
    """
    try:
        model.load_state_dict(source.autoencoder['model_state_dict'])
    except (KeyError, RuntimeError) as fault:
        raise DataError(
            f'{source.run.checkpoint("best")}: no weights of this model in it ({type(fault).__name__}): restore the '
            'file, or take another run'
        ) from fault


def copy_checkpoints(source: RunDirectory, run: RunDirectory) -> None:
    """Copy the autoencoder's checkpoints from the run `source` to `run`."""
    for which in ('best', 'last'):
        with writing(run.checkpoint(which)) as temporary:
            shutil.copyfile(source.checkpoint(which), temporary)


def autoencoder_loader(split: SplitData, part: str, context: RunContext) -> DataLoader:
    """Loader of the autoencoder's windows of a part; those of the training part are shuffled and have noise."""
    settings, processes = context.settings, context.processes
    dataset = WindowDataset(
        split.ae_patients,
        split.ae_table[split.ae_table['part'] == part],
        zscore=zscored(settings.standardize),
        noise=settings.augmentation if part == 'train' else 0.0,
        noisy_fraction=settings.augmentation_fraction,
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


def autoencoder_loss(split: SplitData, settings: SimpleNamespace) -> Loss:
    """The loss that the settings name, plain or masked."""
    weights = loss_weights(settings)
    if not settings.masking:
        return reconstruction_loss(settings.criterion, weights)
    margin = masking_margin(split.shape, settings.pulse_width, settings.sfreq)
    return masked_loss(settings.criterion, weights, split.shape, margin)


def make_reader(
    autoencoder: Autoencoder, split: SplitData, settings: SimpleNamespace, device: torch.device
) -> SubwindowReader:
    """Make what reads sub-windows for the classifier.

    With masking, the spatial filters that the classifier or the second look needs are measured on the autoencoder's
    training windows. What reads whole windows has no residuals: the second look then takes the signal.
    """
    spec, masking = CLASSIFIERS[settings.classifier], None
    if settings.masking:
        of_others = 'signal' if spec.reads_windows else 'residual'
        features = settings.features if spec.needs_filters else of_others
        with_filters = spec.needs_filters or (spec.reads_windows and settings.second_look)
        masking = make_masking(autoencoder, split, settings, device, features, with_filters)
    levels = levels_read(spec, settings.levels, len(loss_weights(settings)), settings.masking)
    return SubwindowReader(autoencoder, spec, split.shape, levels, masking, device)


def make_masking(
    autoencoder: Autoencoder,
    split: SplitData,
    settings: SimpleNamespace,
    device: torch.device,
    features: str,
    with_filters: bool = True,
) -> Masking:
    """What reads residuals ('residual' or 'spectrum') or the signal in their place ('signal'), see `Masking`."""
    masking = Masking(masking_margin(split.shape, settings.pulse_width, settings.sfreq), features=features)
    if not with_filters:
        return masking
    loader = filter_windows(split, settings, device)
    return masking._replace(filters=measure_filters(autoencoder, loader, split.shape, masking, device))


def filter_windows(split: SplitData, settings: SimpleNamespace, device: torch.device) -> DataLoader:
    """Loader of at most `N_FILTER_WINDOWS` training windows of the autoencoder, spread evenly over them."""
    rows = split.ae_table[split.ae_table['part'] == 'train']
    indices = np.unique(np.linspace(0, len(rows) - 1, N_FILTER_WINDOWS).astype(int))
    dataset = WindowDataset(split.ae_patients, rows.iloc[indices], zscore=zscored(settings.standardize))
    return batches(dataset, batch_size=BATCH_SIZE[device.type])


def train_classifier(
    run: RunDirectory,
    split: SplitData,
    autoencoder: Autoencoder,
    data: dict[str, SubwindowData],
    copies: list[np.ndarray],
    context: RunContext,
) -> tuple[Classifier, list[dict]]:
    """Train the classifier of the settings on the training sub-windows; the validation ones stop a network.

    Parameters
    ----------
    autoencoder : Autoencoder
        Trained; a classifier whose encoder it is does not change it.
    data : dict of SubwindowData
        By part, 'train' and 'validation' at least.
    copies : list of arrays (n, ...)
        Further inputs of the training part, with the same labels each, see `read_copies`.

    Returns
    -------
    classifier : Classifier
    history : list of dict
        One per epoch of a network; empty for others.
    """
    settings = context.settings
    spec = CLASSIFIERS[settings.classifier]
    if settings.encoder == 'scratch' and 'autoencoder' in spec.settings:
        autoencoder = build_autoencoder(describe_autoencoder(split, settings), context._replace(source=None))
    is_new = context.mode != 'ft' and not run.checkpoint('last', settings.classifier).is_file()
    pseudo_labelled = None
    if 'pseudo_labelled' in spec.settings and is_new:
        pseudo_labelled = pseudo_labelled_windows(split, autoencoder, settings, context.device)
    arguments = vars(settings) | {
        'device': context.device,
        'shape': split.shape,
        'autoencoder': autoencoder,
        'pseudo_labelled': pseudo_labelled,
    }
    classifier = spec.make(**{name: arguments[name] for name in spec.settings})
    if context.mode == 'ft' and isinstance(classifier, NetworkClassifier):
        assert context.source is not None  # `open_source` has opened it
        classifier.classifier_learning_rate *= settings.fine_tuning_rate
        load_classifier(classifier, context.source.run.checkpoint('best', settings.classifier), settings.classifier)
    elif context.mode == 'ft':
        print(f'  {settings.classifier} cannot be trained further: a new one is trained on these patients')
    labels = split.labels_t if spec.reads_windows else split.labels
    examples = {part: Examples(data[part].inputs, labels(part)) for part in ('train', 'validation')}
    if copies:
        inputs = np.concatenate([examples['train'].inputs, *copies])
        examples['train'] = Examples(inputs, np.tile(examples['train'].labels, 1 + len(copies)))
    history = classifier.fit(
        examples['train'], examples['validation'], lambda which: run.checkpoint(which, settings.classifier)
    )
    return classifier, history


def pseudo_labelled_windows(
    split: SplitData, autoencoder: Autoencoder, settings: SimpleNamespace, device: torch.device
) -> Examples | None:
    """What a network learns before it sees annotations: training windows, with pseudo-labels from masked errors.

    Beside the classifier's windows, those of patients that the autoencoder alone learns from, who may not be annotated
    yet.

    Returns
    -------
    Examples or None
        The windows, a `WindowDataset`, and float32 labels (n_windows, n_subwindows), see `pseudo_labels`; None where
        the settings want none of it.
    """
    if not settings.pretraining_epochs or not settings.masking or settings.encoder == 'scratch':
        return None
    annotated = split.clf_table[split.clf_table['part'] == 'train']
    others = split.ae_table[split.ae_table['part'] == 'train']
    others = others[~others['subject'].isin(annotated['subject'])]
    rows = pd.concat([annotated, others.assign(patient=others['patient'] + len(split.clf_patients))], ignore_index=True)
    windows = WindowDataset([*split.clf_patients, *split.ae_patients], rows, zscore=zscored(settings.standardize))
    table = subwindow_table(rows, np.zeros((len(rows), split.window_length), dtype=np.uint8), split.shape)
    masking = make_masking(autoencoder, split, settings, device, settings.features)
    reader = SubwindowReader(autoencoder, CLASSIFIERS['threshold'], split.shape, [0], masking, device)
    blocks = table.groupby(['subject', 'block']).ngroup().to_numpy()
    loader = batches(windows, batch_size=BATCH_SIZE[device.type], num_workers=settings.num_workers)
    read = reader.read(loader, blocks)
    timing = table['timing'].to_numpy() / split.shape.subwindow_length
    labels = pseudo_labels(read.inputs[:, 0], read.recordings(timing))
    return Examples(windows, labels.reshape(-1, split.shape.n_subwindows).astype(np.float32))


def read_copies(reader: SubwindowReader, split: SplitData, settings: SimpleNamespace) -> list[np.ndarray]:
    """Inputs of the copies of training windows by the setting `copies`; none where the classifier takes none."""
    if not reader.spec.takes_copies:
        return []
    return reader.read_copies(
        windows_of_part(split, 'train', settings, reader.device), split.blocks('train'), settings.copies
    )


def look_again(
    scores: dict[str, np.ndarray], data: dict[str, SubwindowData], split: SplitData
) -> tuple[dict[str, np.ndarray], dict]:
    """Scores of validation and test that know what recurs in a recording, and what was fitted on validation for it.

    Parameters
    ----------
    scores : dict of arrays (n,)
        The classifier's output, for 'validation' and 'test'.
    data : dict of SubwindowData
        With fingerprints.
    """
    timing = {part: split.subwindows[part]['timing'].to_numpy() / split.shape.subwindow_length for part in scores}
    recordings = {part: data[part].recordings(timing[part]) for part in scores}
    look = fit_second_look(scores['validation'], recordings['validation'], split.labels('validation'))
    score, best, alike = look['weights']
    print(f'  second look: log odds x {score:.2f} + best companion x {best:.2f} + ten most alike x {alike:.2f}')
    return {part: second_look(look, scores[part], recordings[part]) for part in scores}, look


def choose_decision(scores: np.ndarray, table: pd.DataFrame, split: SplitData, settings: SimpleNamespace) -> dict:
    """Calibrate the scores and choose the threshold on the validation part.

    Parameters
    ----------
    scores : array (n,)
        The classifier's output for the sub-windows of the validation part.
    table : DataFrame
        These sub-windows with the peaks of the field power, see `evaluation.events.merge_events`.

    Returns
    -------
    dict
        The content of the checkpoint's 'decision': calibration, threshold, policy, and in 'reached' what the
        threshold reaches on validation.
    """
    labels = table['test'].to_numpy()
    calibration = fit_calibration(settings.calibration, scores, labels)
    predictions = with_predictions(table, calibrate(calibration, scores), 0.5)
    return {
        'calibration': calibration,
        **choose_threshold(predictions, split.spikes['validation'], settings, 'validation set'),
    }


def choose_threshold(predictions: pd.DataFrame, spikes: pd.DataFrame, settings: SimpleNamespace, on: str) -> dict:
    """Choose the threshold of calibrated probabilities by the policy of the settings.

    Parameters
    ----------
    predictions, spikes : DataFrame
        See `sensitivity_curve`.
    on : str
        What they are, for the report.

    Returns
    -------
    dict
        threshold, policy and reached, see `choose_decision`.
    """
    labels, proba = predictions['test'].to_numpy(), predictions['proba'].to_numpy()
    if settings.threshold_policy == 'f1':
        threshold, chosen_by = best_f1_threshold(labels, proba), 'best F1 of the sub-windows'
        reached = f'F1 {f1_score(labels, proba >= threshold):.2f}'
    else:
        tolerance = settings.tolerance * settings.sfreq
        subwindow_length = round(settings.subwindow_size * settings.sfreq)
        curve = sensitivity_curve(predictions, spikes, subwindow_length, tolerance, settings.sfreq)
        limits = {name: getattr(settings, name) for name in ('target_sensitivity', 'false_alarm_budget')}
        threshold, chosen_by, reached = threshold_from_curve(curve, settings.threshold_policy, **limits)
    return {'threshold': threshold, 'policy': f'{chosen_by} on the {on}', 'reached': reached}


def save_classifier(
    run: RunDirectory, classifier: Classifier, decision: dict, masking: Masking | None, name: str
) -> None:
    """Write the checkpoint of the classifier `name`: what it learned, the decision, and what masking needs."""
    content: dict[str, Any] = {'decision': decision}
    if masking:
        filters = None if masking.filters is None else masking.filters.cpu()
        content |= {'margin': masking.margin, 'filters': filters, 'features': masking.features}
        content['features_version'] = FEATURES_VERSION
    classifier.save(run.checkpoint('best', name), content)
