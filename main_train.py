"""Train an autoencoder on normal windows, then train, validate and test a spike classifier on its errors.

    python main_train.py [MODE] [MODEL] [name=value ...]
    python main_train.py compare RUN_A RUN_B [name=value ...]

MODE   auto: train and validate the autoencoder, then train, validate and test the classifier (default)
       ft: the same, starting from the autoencoder and the classifier of run model_nb, with a smaller learning rate
       clf: the classifier only, on the autoencoder of run model_nb
       cv: auto for every fold of a cross-validation over patients
       compare: paired difference of two finished runs, given by name (AE1D_3) or path
MODEL  AE1D, AE2D, AE1D_smaller, AE2D_smaller or wavelets (default: the setting model)

SIGTERM, SIGUSR1 and Ctrl-C end a run after the step under way, with exit status 75. The same command with model_nb=N,
the run's number, goes on with it as if nothing had happened, also after SIGKILL. A Slurm job that is started again goes
on by itself. Several GPUs: torchrun --nproc-per-node=N main_train.py ...; batch_size is then that of each.

Reads   path_extracted_data[0] and [1]: the windows made by create_windows_ae.py and create_windows_clf.py
Writes  path_writing_data/<MODEL>_<nb>/: params.json, checkpoints, loss curves, predictions and results CSVs,
        metrics.json (the last), figures/, report.html; with cv a sub-directory fold_<k> each. A row of
        path_writing_data/summary.csv. compare writes path_writing_data/compare_<RUN_A>_<RUN_B>.csv.
"""

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score

from classification import (
    CLASSIFIERS,
    Examples,
    Hidden,
    beside_their_block,
    best_f1_threshold,
    calibrate,
    classifier_inputs,
    field_peaks,
    fit_calibration,
    gather,
    hidden_margin,
    levels_of,
    measure_filters,
    threshold_from_curve,
)
from data_raw import N_CHANNELS
from evaluation import MAIN_FIGURES, Evaluation, compare, intervals, sensitivity_curve, with_predictions
from loop import (
    Processes,
    checkpoint_saver,
    load_checkpoint,
    make_optimizer,
    masked_loss,
    reconstruction_loss,
    resume_optimizer,
    started_together,
    train,
)
from models import AUTOENCODERS, build_model
from run_data import (
    Data,
    Source,
    loss_weights,
    open_source,
    open_windows,
    shared_out,
    split_of,
    subwindows_of,
    windows_of_part,
    zscored,
)
from run_pictures import show_errors
from saving_functions import (
    RunDirectory,
    find_run,
    load_params,
    load_predictions,
    load_tested,
    new_run_directory,
    plot_figures,
    plot_losses,
    run_of_job,
    save_comparison,
    save_evaluation,
    save_params,
    save_peaks,
    save_summary_row,
    write_report,
)
from settings import check_settings, read_command
from timeseries_dataset import PARTS, WindowDataset, batches
from utils import (
    DataError,
    Interrupted,
    SettingError,
    choose_device,
    choose_precision,
    interruptible,
    run_script,
    set_seed,
    write_json,
    writing,
)

MODES = ('auto', 'ft', 'clf', 'cv', 'compare')

# What may change while a run is unfinished, because it does not change what comes out; and what it is called by.
FREE_SETTINGS = (
    'path_writing_data',
    'device',
    'preload',
    'num_workers',
    'n_jobs',
    'model_nb',
    'resume',
    'fold',
)

# Steps of training from which on compiling it, a minute's work, takes less time than it saves.
WORTH_COMPILING = 500

# Most training windows that the spatial filters are measured on.
N_MEASURED = 256


def main(words: list[str]) -> None:
    """Read the command line and run the mode it names."""
    positional, settings = read_command(words, n_positional=3)
    command = shlex.join(['python', 'main_train.py', *words])
    mode = positional[0] if positional else 'auto'
    if mode not in MODES:
        raise SettingError(f'mode {mode!r}: must be one of {", ".join(MODES)}; python main_train.py [MODE] [MODEL]')
    if mode == 'compare':
        if len(positional) != 3:
            raise SettingError('compare takes two finished runs: python main_train.py compare RUN_A RUN_B')
        compare_runs(*positional[1:], settings)
        return
    if len(positional) > 2:
        raise SettingError(f'unexpected argument {positional[2]!r}: settings are given as name=value')
    if len(positional) == 2:
        settings.model = positional[1]
    check_settings(vars(settings))
    if settings.fold is not None and (mode != 'cv' or settings.model_nb is None):
        raise SettingError(f'fold = {settings.fold}: needs mode cv, and model_nb, the number that all folds share')
    with contextlib.ExitStack() as stack:
        processes = started_together()
        if not processes.first:  # it would say the same
            sys.stdout = stack.enter_context(open(os.devnull, 'w', errors='replace'))
            stack.callback(setattr, sys, 'stdout', sys.__stdout__)
        stack.enter_context(interruptible())
        train_run(mode, words, command, settings, processes)


def train_run(mode: str, words: list[str], command: str, settings: SimpleNamespace, processes: Processes) -> None:
    """Begin a run, or go on with one, and finish it; of several processes, the others only train the autoencoder."""
    started = time.perf_counter()
    path, taken, source_nb = processes.once(lambda: unfinished_run(mode, words, command, settings))
    for name, value in taken.items():
        setattr(settings, name, value)
    if path == 'finished':
        return
    continued = RunDirectory(path) if path else None
    source = None
    if mode in ('ft', 'clf'):
        source = open_source(mode, settings, settings.model_nb if source_nb is None else source_nb)
    device = choose_device(settings.device)
    settings.precision = choose_precision(settings.precision, device)
    shape = subwindows_of(settings)
    folds = shared_out(open_windows(settings), mode, source, settings, shape)
    if settings.fold is not None and settings.fold > len(folds):
        raise SettingError(f'fold = {settings.fold}: n_splits = {settings.n_splits} makes the folds 1 to {len(folds)}')

    fold_alone = settings.fold is not None

    def make():
        number = None if source else settings.model_nb
        # A process that was killed before it wrote anything leaves a directory without any file but hidden ones.
        directory = Path(settings.path_writing_data) / f'{settings.model}_{number}'
        empty = settings.resume and all(path.name.startswith('.') for path in directory.glob('*'))
        shared = number is not None and (fold_alone or empty)
        return str(new_run_directory(settings.path_writing_data, settings.model, number, shared=shared).path)

    run = continued or RunDirectory(processes.once(make))
    saved = vars(settings) | {'model_nb': run.number, 'device': str(device), 'fold': None}
    print(f'{run.name}: in {run.path}, on {device}' + (', going on' if continued else ''))
    job = Job(mode, command, source, settings, saved, device, processes)
    try:
        with contextlib.ExitStack() as stack:
            if processes.first and not fold_alone:
                stack.enter_context(run.held())
                stack.enter_context(kept_if_of_use(run))
            if mode != 'cv':
                train_and_test(run, folds[0], job)
            elif processes.first and not run.params.is_file():
                save_params(run, command, saved, {}, mode=mode, processes=processes.size)
            for fold, data in enumerate(folds if mode == 'cv' else [], start=1):
                if settings.fold in (None, fold):
                    train_fold(run, fold, len(folds), data, job)
            if mode == 'cv' and processes.first and not fold_alone:
                gather_folds(run, [tested_fold(run.fold(k), data, job) for k, data in enumerate(folds, start=1)], job)
    except (torch.OutOfMemoryError, MemoryError) as fault:
        raise SettingError(
            f'{device} has too little memory: lower batch_size or classifier_batch_size, or take fewer levels, blocks '
            'or patients'
        ) from fault
    except Interrupted as fault:
        way_out = f'model_nb={run.number} goes on with the run' if run.params.is_file() else 'nothing was saved yet'
        raise Interrupted(f'{fault}: {way_out}') from fault
    print(f'results in {run.path}, after {time.perf_counter() - started:.0f} s')


class Job(NamedTuple):
    """What a call of this script is to do, the same for every fold.

    Attributes
    ----------
    mode, command : str
    source : Source or None
    settings : namespace
    saved : dict
        The settings as params.json holds them.
    device : torch.device
    processes : Processes
    """

    mode: str
    command: str
    source: Source | None
    settings: SimpleNamespace
    saved: dict
    device: torch.device
    processes: Processes


@contextlib.contextmanager
def kept_if_of_use(run: RunDirectory) -> Iterator[None]:
    """Within this block, a fault removes the run or fold if it was begun here and nothing was trained yet. For use only
    while it is held: another process may be working in it otherwise."""
    begun_here = not any(run.path.glob('[!.]*'))
    try:
        yield
    except BaseException:
        if begun_here:
            run.discard_without_checkpoint()
        raise


def unfinished_run(mode: str, words: list[str], command: str, settings: SimpleNamespace) -> tuple:
    """The unfinished run that a command goes on with, if there is one.

    Returns
    -------
    path : str or None
        Of the run directory; 'finished' where nothing is left to do.
    taken : dict
        Its settings, in the place of those that are said now.
    source_nb : int or None
        Number of the run that it started from.

    Raises
    ------
    SettingError
        It was begun in another way.
    """
    run = None
    if settings.model_nb is not None:
        run = RunDirectory(Path(settings.path_writing_data) / f'{settings.model}_{settings.model_nb}')
    # A job that Slurm starts again says model_nb=None again, or the number of its source.
    restarted = run_of_job(settings.path_writing_data, settings.model, command) if settings.resume else None
    run = restarted or run
    if run is None or not run.params.is_file():
        return None, {}, None  # nothing, or the empty directory of a process that was killed at once
    fold = run.path / f'fold_{settings.fold}'
    if (run.finished and restarted) or (settings.fold is not None and RunDirectory(fold, run.name).finished):
        print(f'{run.name}: finished before, in {run.path}')
        return 'finished', {}, None
    if run.finished and settings.fold is not None:
        raise SettingError(f'model_nb = {run.number}: {run.path} is finished, no fold can join it: take another number')
    if run.finished:
        return None, {}, None  # the source of ft and clf; the others cannot make its directory again
    if not settings.resume and (settings.fold is None or fold.is_dir()):
        raise SettingError(f'model_nb = {run.number}: {run.path} is unfinished: take another number, or resume=True')
    begun = load_params(run)
    if begun['mode'] != mode:
        raise SettingError(
            f'model_nb = {run.number}: {run.path} is unfinished, of mode {begun["mode"]}: finish it with python '
            f'main_train.py {begun["mode"]} {settings.model} model_nb={run.number}, or take another run'
        )
    now, said = json.loads(json.dumps(vars(settings))), {word.partition('=')[0] for word in words}
    taken = {name: value for name, value in begun['settings'].items() if name in now and name not in FREE_SETTINGS}
    for name, value in taken.items():
        if value != now[name] and name in said:
            raise SettingError(
                f'{name} = {now[name]!r}: run {run.name} was begun with {value!r}: leave the word out to finish it so, '
                'or take another model_nb'
            )
        if value != now[name] and now[name] != 'auto':  # which leaves it open
            print(f'warning: {name} = {now[name]!r} now, but run {run.name} was begun with {value!r}, which is used')
    if begun['threads'] != torch.get_num_threads():
        print(
            f'warning: run {run.name} was begun with {begun["threads"]} threads, now there are '
            f'{torch.get_num_threads()}: its figures may differ in the last digits (OMP_NUM_THREADS)'
        )
    started_from = begun['split'].get('started from')
    return str(run.path), taken, started_from and int(started_from.rpartition('_')[2])


# --------------------------------------------------------------------------------------- the autoencoder
def train_autoencoder(run: RunDirectory, data: Data, job: Job) -> tuple[torch.nn.Module, list[dict]]:
    """Train the autoencoder, train that of the source further (ft), or take it as it is (clf). Goes on with a training
    that was interrupted.

    Returns
    -------
    The model at its best epoch, and the history of its training.
    """
    source, settings, device, processes = job.source, job.settings, job.device, job.processes
    n_times = data.clf_patients[0].windows.shape[2]
    chosen = {name: getattr(settings, name) for name in AUTOENCODERS[settings.model][1]}
    model = build_model(settings.model, N_CHANNELS, n_times, **chosen).to(device)
    model.precision = settings.precision
    if source:
        try:
            model.load_state_dict(source.autoencoder['model_state_dict'])
        except (KeyError, RuntimeError) as fault:
            raise DataError(f'{source.run.checkpoint("best")}: no weights of this model in it ({fault})') from fault
    if job.mode == 'clf':
        for which in ('best', 'last') if processes.first else ():
            with writing(run.checkpoint(which)) as temporary:
                shutil.copyfile(source.run.checkpoint(which), temporary)
        return model, load_checkpoint(source.run.checkpoint('last'))['history']
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
            rank=processes.rank,
            size=processes.size,
        )
    optimizer, scheduler = make_optimizer(
        model,
        learning_rate=settings.learning_rate * (settings.fine_tuning_rate if source else 1),
        **{name: getattr(settings, name) for name in
           ('optimizer', 'weight_decay', 'scheduler', 'stepLR', 'gammaLR', 'plateau_patience')},
    )  # fmt: skip
    if source:
        resume_optimizer(optimizer, source.autoencoder['optimizer_state_dict'])
    description = {'name': settings.model, 'n_channels': N_CHANNELS, 'n_times': n_times, 'settings': chosen}
    loss = reconstruction_loss(settings.criterion, loss_weights(settings))
    if settings.masking:
        margin = hidden_margin(data.shape, settings.pulse_width, settings.sfreq)
        loss = masked_loss(settings.criterion, loss_weights(settings), data.shape, margin)
    n_steps = settings.num_epochs * (len(loaders['train'].dataset) // settings.batch_size)
    # Of several processes, the parts of a batch are too many shapes, and batch norm is another.
    fast = device.type == 'cuda' and settings.precision == 'bfloat16' and processes.size == 1
    if fast and n_steps >= WORTH_COMPILING:
        model.compile_training((settings.batch_size, 1, N_CHANNELS, n_times))
    interrupted = processes.once(run.checkpoint('last').is_file)
    save = checkpoint_saver(run.checkpoint, description)
    history = train(
        model,
        loaders['train'],
        loaders['validation'],
        loss,
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=settings.num_epochs,
        n_epochs_stop=settings.n_epochs_stop,
        device=device,
        save=save if processes.first else lambda which, state: None,
        validate_first=source is not None,
        state=load_checkpoint(run.checkpoint('last')) if interrupted else None,
        processes=processes,
    )
    return model, history


# ---------------------------------------------------------------------------------------- the classifier
def make_classifier(settings: SimpleNamespace, device: torch.device):
    """The classifier that the settings name, not yet trained."""
    taken = vars(settings) | {'device': device}
    kind = CLASSIFIERS[settings.classifier]
    return kind.make(**{name: taken[name] for name in kind.settings})


def measure_hidden(autoencoder, data: Data, settings, device) -> Hidden | None:
    """What masking needs beside the autoencoder; filters are measured on windows that it was trained on."""
    if not settings.masking:
        return None
    margin = hidden_margin(data.shape, settings.pulse_width, settings.sfreq)
    if not CLASSIFIERS[settings.classifier].needs_filters:
        return Hidden(margin)
    rows = data.ae_table[data.ae_table['part'] == 'train']
    chosen = np.unique(np.linspace(0, len(rows) - 1, N_MEASURED).astype(int))
    some = WindowDataset(data.ae_patients, rows.iloc[chosen], zscore=zscored(settings.standardize))
    loader = batches(some, batch_size=settings.batch_size)
    return Hidden(margin, measure_filters(autoencoder, loader, data.shape, margin, device))


def train_classifier(run, autoencoder, data: Data, hidden: Hidden | None, job: Job):
    """Train the classifier on the sub-windows of the training part.

    Returns
    -------
    The classifier, its history, and the inputs of the validation and test parts.
    """
    settings, device = job.settings, job.device
    examples = {}
    levels = levels_of(settings.levels, len(loss_weights(settings)))
    for part in PARTS:
        loader = windows_of_part(data, part, settings)
        inputs = classifier_inputs(autoencoder, loader, settings.classifier, data.shape, levels, hidden, device)
        blocks = data.subwindows[part].groupby(['subject', 'block']).ngroup().to_numpy()
        inputs = beside_their_block(settings.classifier, inputs, blocks, hidden)
        examples[part] = Examples(inputs, data.subwindows[part]['test'].to_numpy())
    classifier = make_classifier(settings, device)
    if job.mode == 'ft' and settings.classifier == 'sfcn':
        classifier.classifier_learning_rate *= settings.fine_tuning_rate
        classifier.load(job.source.run.checkpoint('best', 'sfcn'))
    elif job.mode == 'ft':
        print(f'  {settings.classifier} cannot be trained further: it is trained anew on these patients')
    history = classifier.fit(
        examples['train'], examples['validation'], lambda which: run.checkpoint(which, settings.classifier)
    )
    return classifier, history, {part: examples[part].inputs for part in ('validation', 'test')}


def decide(
    run, classifier, inputs: dict[str, np.ndarray], autoencoder, data: Data, hidden: Hidden | None, settings, device
):
    """Calibrate and choose the threshold on validation, store both with the classifier, and apply them to the test.

    Returns
    -------
    predictions : DataFrame
        Of the test part, in recording order, see `evaluation.merge_events`.
    decision : dict
        calibration, threshold, policy and what it reached on validation: what the checkpoint holds under 'decision'.
    """
    tables = {}
    for part in ('validation', 'test'):
        extract = lambda model, x: field_peaks(x, data.shape)  # noqa: E731
        field, peak = gather(autoencoder, windows_of_part(data, part, settings), extract, device, 'field').T
        field = field.astype(np.float64)  # which a table gives back as it was
        table = data.subwindows[part]
        first = table['timing'].to_numpy() - data.shape.n_times / 2
        tables[part] = table.assign(field=field, peak=np.round(first + peak).astype(np.int64))
    score = {part: classifier.predict_proba(inputs[part]) for part in inputs}
    labels = data.subwindows['validation']['test'].to_numpy()
    calibration = fit_calibration(settings.calibration, score['validation'], labels)
    proba = {part: calibrate(calibration, score[part]) for part in score}
    if settings.threshold_policy == 'f1':
        threshold, asked = best_f1_threshold(labels, proba['validation']), 'best F1 of the sub-windows'
        reached = f'F1 {f1_score(labels, proba["validation"] >= threshold):.2f}'
    else:
        validation = with_predictions(tables['validation'], proba['validation'], 0.5)
        tolerance = settings.tolerance * settings.sfreq
        curve = sensitivity_curve(validation, data.spikes['validation'], data.shape.n_times, tolerance, settings.sfreq)
        limits = {name: getattr(settings, name) for name in ('target_sensitivity', 'false_alarm_budget')}
        threshold, asked, reached = threshold_from_curve(curve, settings.threshold_policy, **limits)
    decision = {
        'calibration': calibration,
        'threshold': threshold,
        'policy': f'{asked} on the validation set',
        'reached': reached,
    }
    beside = {'decision': decision}
    if hidden:
        filters = None if hidden.filters is None else torch.from_numpy(hidden.filters)
        beside |= {'margin': hidden.margin, 'filters': filters}
    classifier.save(run.checkpoint('best', settings.classifier), beside)
    return with_predictions(tables['test'], proba['test'], threshold), decision


# -------------------------------------------------------------------------------------- train and test
class Tested(NamedTuple):
    """What a finished run, or fold, leaves for the summary above it."""

    run: RunDirectory
    evaluation: Evaluation
    decision: dict
    tested_on: str
    split: dict


def train_and_test(run: RunDirectory, data: Data, job: Job) -> None:
    """Train both networks, test, and write everything into the run's directory; go on with what is there."""
    mode, settings, device = job.mode, job.settings, job.device
    split = split_of(mode, data, job.source, settings)
    if job.processes.first and run.params.is_file():
        check_begun(run, split, job.processes)
    elif job.processes.first:
        save_params(run, job.command, job.saved, split, mode=mode, processes=job.processes.size)
    set_seed(settings.seed)
    print(f'\nautoencoder {settings.model}')
    autoencoder, ae_history = train_autoencoder(run, data, job)
    if not job.processes.first:
        return
    set_seed(settings.seed)  # again, because an autoencoder that was trained before has taken no random numbers
    print(f'\nclassifier {settings.classifier}')
    hidden = measure_hidden(autoencoder, data, settings, device)
    classifier, clf_history, inputs = train_classifier(run, autoencoder, data, hidden, job)
    predictions, decision = decide(run, classifier, inputs, autoencoder, data, hidden, settings, device)
    evaluation = evaluate(predictions, data.spikes['test'], settings)
    tested = Tested(run, evaluation, decision, data.tested_on, split)
    histories = {settings.model: ae_history, settings.classifier: clf_history}
    plot_losses(run, {name: history for name, history in histories.items() if history})
    show_errors(run, evaluation, decision['threshold'], autoencoder, data, hidden, settings, device)
    if mode == 'cv':
        save_peaks(run, predictions)
    write_out(tested, [evaluation.result], job, summary=mode != 'cv')


def check_begun(run: RunDirectory, split: dict, processes: Processes) -> None:
    """Make sure that a run goes on with the windows and the number of processes that it was begun with."""
    begun = load_params(run)
    if begun['split'] != json.loads(json.dumps(split)):
        raise DataError(
            f'{run.params}: the windows, or who is in which part, have changed since the run was begun: put them back, '
            'or take another model_nb'
        )
    if begun['processes'] != processes.size:
        raise SettingError(
            f'model_nb = {run.number}: {run.path} was begun by {begun["processes"]} processes (torchrun), not '
            f'{processes.size}: take as many, or another model_nb'
        )


def train_fold(top: RunDirectory, fold: int, n_folds: int, data: Data, job: Job) -> None:
    """Train and test a fold of a cross-validation, if that is not done."""
    print(f'\nfold {fold} of {n_folds}')
    run = RunDirectory(job.processes.once(lambda: str(top.fold(fold).path)), top.name)
    if job.processes.once(lambda: run.finished):
        print('  finished before')
        return
    with contextlib.ExitStack() as stack:
        if job.processes.first:
            stack.enter_context(run.held())
            stack.enter_context(kept_if_of_use(run))
        train_and_test(run, data, job)


def tested_fold(run: RunDirectory, data: Data, job: Job) -> Tested:
    """What a finished fold leaves, from its directory.

    Raises
    ------
    DataError
        It was tested on other windows.
    """
    predictions = load_predictions(run)
    columns = ['subject', 'block', 'timing', 'test']
    tested_on = data.subwindows['test'].sort_values(columns[:3], ignore_index=True)[columns]
    if not predictions[columns].equals(tested_on):
        raise DataError(f'{run.predictions}: of other windows; put them back, or remove {run.path}')
    evaluation = evaluate(predictions, data.spikes['test'], job.settings)
    decision = load_checkpoint(run.checkpoint('best', job.settings.classifier))['decision']
    return Tested(run, evaluation, decision, data.tested_on, load_params(run)['split'])


def evaluate(predictions: pd.DataFrame, spikes: pd.DataFrame, settings: SimpleNamespace) -> Evaluation:
    """The evaluation of predictions by the settings."""
    return Evaluation(
        predictions,
        spikes,
        n_times=round(settings.subwindow_size * settings.sfreq),
        tolerance=settings.tolerance,
        sfreq=settings.sfreq,
        batch_size=settings.classifier_batch_size,
    )


def write_out(tested: Tested, rows: list[dict], job: Job, *, summary: bool) -> None:
    """Write tables, pictures of the figures, and the report of a run or fold; print the main figures."""
    run, evaluation, mode, settings = tested.run, tested.evaluation, job.mode, job.settings
    result = evaluation.result
    interval = intervals(evaluation, settings.bootstrap_samples, settings.seed)
    metrics = {
        'tested on': tested.tested_on,
        'test patients': evaluation.patients['subject'].tolist(),
        'threshold': tested.decision['threshold'],
        'threshold policy': tested.decision['policy'],
        'reached on validation': tested.decision['reached'],
        'calibration': tested.decision['calibration'],
        'test': result,
        'intervals': interval,
        'means over patients': evaluation.means(),
        **({'folds': fold_summary(rows)} if len(rows) > 1 else {}),
    }
    save_evaluation(run, evaluation, rows)
    plot_figures(run, evaluation)
    subjects = ', '.join(map(str, metrics['test patients']))
    facts = facts_of(mode, tested.split, settings) | {
        'classifier': f'{settings.classifier}, {settings.subwindow_size:g} s sub-windows',
        'tested on': f'{tested.tested_on}: {subjects}',
        'threshold': f'{tested.decision["policy"]}: '
        + ('its own in every fold' if tested.decision['threshold'] is None else f'{tested.decision["threshold"]:.4f}')
        + f'; reached there: {tested.decision["reached"]}',
        'events': f'neighbouring positive sub-windows, at the peak of the field power; found within '
        f'{settings.tolerance:g} s of an annotated spike, one to one',
    }
    words = [f'{name}={value!r}' for name, value in vars(settings).items() if name != 'model']
    whole = shlex.join(['python', 'main_train.py', mode, settings.model, *words])
    write_report(run, (job.command, whole), job.saved, facts, metrics, evaluation, rows)
    if summary:
        save_summary_row(settings.path_writing_data, summary_row(tested, mode, settings))
    write_json(run.metrics, metrics)  # last: a run with this file is finished

    print(f'\ntest on {tested.tested_on}: {result["spike sub-windows"]} of {result["sub-windows"]} sub-windows with a '
          f'spike, {result["spikes"]} spikes in {result["minutes"]:.1f} min')  # fmt: skip
    print(f'  threshold: {facts["threshold"]}')
    chance = {'PR-AUC': result['PR-AUC of chance'], 'ROC-AUC': 0.5}
    for name in MAIN_FIGURES:
        beside = f'   chance {chance[name]:.3f}' if name in chance else ''
        low, high = interval[name]
        print(f'  {name:18} {result[name]:.3f}  [{low:.3f}, {high:.3f}]{beside}')


def fold_summary(rows: list[dict]) -> dict:
    """Mean and standard deviation over the folds of every main figure, where it is defined."""
    table = pd.DataFrame(rows)[list(MAIN_FIGURES)]
    return {name: {'mean': table[name].mean(), 'std': table[name].std(), 'folds': int(table[name].count())}
            for name in MAIN_FIGURES}  # fmt: skip


def gather_folds(run: RunDirectory, folds: list[Tested], job: Job) -> None:
    """Pool the tests of all folds, and write tables, pictures and the report above them."""
    predictions = pd.concat([fold.evaluation.predictions for fold in folds])
    spikes = pd.concat([fold.evaluation.spikes for fold in folds]).drop(columns='hit')
    predictions = predictions.sort_values(['subject', 'block', 'timing'], ignore_index=True)
    rows = [fold.evaluation.result | {'fold': number, 'threshold': fold.decision['threshold']}
            for number, fold in enumerate(folds, start=1)]  # fmt: skip
    for row in rows:
        undefined = [name for name in MAIN_FIGURES if np.isnan(row[name])]
        if undefined:
            print(f'warning: fold {row["fold"]}: undefined, and left out of means: {", ".join(undefined)}')
    own = 'its own in every fold'
    decision = {'threshold': None, 'policy': folds[0].decision['policy'], 'calibration': own, 'reached': own}
    tested = Tested(run, evaluate(predictions, spikes, job.settings), decision, folds[0].tested_on, folds[0].split)
    write_out(tested, rows, job, summary=True)


def facts_of(mode: str, split: dict, settings: SimpleNamespace) -> dict[str, str]:
    """What the report says about how the networks were trained; `split` as in `split_of`."""
    if split['autoencoder saw annotations']:
        training = 'on windows without annotated spikes'
    elif settings.classifier != 'threshold':
        training = 'on all windows, without annotations; the classifier was trained on annotations'
    else:
        blocks = f' the {settings.nb_best_blocks} blocks of each patient,' if settings.nb_best_blocks else ''
        training = (
            'on all windows. No spike annotation was used in training: the size of the error is compared with a '
            f'threshold. Annotations chose{blocks} who is trained, validated and tested on (unless listed), and, on '
            'validation patients, the threshold and the calibration.'
        )
    task = 'to foretell hidden stretches' if settings.masking else 'to reconstruct what it sees'
    facts = {'autoencoder': f'{settings.model}, trained {task} {training}'}
    if settings.recipe == 'original':
        facts['recipe'] = "the original's choices"
    if split['started from']:
        facts['started from'] = f'run {split["started from"]}' + (
            ', trained further' if mode == 'ft' else ', whose autoencoder was taken as it is'
        )
    return facts


def summary_row(tested: Tested, mode: str, settings: SimpleNamespace) -> dict:
    """The run's row of summary.csv."""
    result = tested.evaluation.result
    return {
        'run': tested.run.name,
        'mode': mode,
        'model': settings.model,
        'classifier': settings.classifier,
        'seed': settings.seed,
        'training patients': '' if mode == 'cv' else ' '.join(map(str, tested.split['train'])),
        'test patients': ' '.join(map(str, tested.evaluation.patients['subject'])),
        'tested on': tested.tested_on,
        'threshold policy': tested.decision['policy'],
        **{name: result[name] for name in MAIN_FIGURES},
    }


# ------------------------------------------------------------------------------------------- comparison
def compare_runs(name_a: str, name_b: str, settings: SimpleNamespace) -> None:
    """Paired difference of two finished runs, printed and written as a table."""
    runs = [find_run(settings.path_writing_data, name) for name in (name_a, name_b)]
    table = compare(*map(load_tested, runs), settings.bootstrap_samples, settings.seed)
    path = save_comparison(settings.path_writing_data, *runs, table)
    print(table.to_string(float_format='{:.3f}'.format))
    print(f'B - A with its 95 % bootstrap interval over the patients that both tested; in {path}')


if __name__ == '__main__':
    run_script(main, __doc__)
