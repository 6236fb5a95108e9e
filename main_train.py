"""Train an autoencoder on normal windows, then train, validate and test a spike classifier on its errors.

    python main_train.py [MODE] [MODEL] [name=value ...]
    python main_train.py compare RUN_A RUN_B [name=value ...]

MODE   auto: train and validate the autoencoder, then train, validate and test the classifier (default)
       ft: the same, starting from the autoencoder and the classifier of run model_nb, with a smaller learning rate
       clf: the classifier only, on the autoencoder of run model_nb
       cv: auto for every fold of a cross-validation over patients
       compare: paired difference of two finished runs, given by name (AE1D_3) or path
MODEL  AE1D, AE2D, AE1D_smaller, AE2D_smaller or wavelets (default: the setting model)

SIGTERM, SIGUSR1 and Ctrl-C end a run after the current step, with exit status 75. The same command with model_nb=N,
the run's number, resumes it and gives the same results, also after SIGKILL. A Slurm job that is started again resumes
by itself. Several GPUs: torchrun --nproc-per-node=N main_train.py ...; batch_size is then per GPU.

Reads   path_extracted_data[0] and [1]: the windows made by create_windows_ae.py and create_windows_clf.py
Writes  path_writing_data/<MODEL>_<nb>/: params.json, checkpoints, loss curves, predictions and results CSVs,
        metrics.json (the last), figures/, report.html; with cv a sub-directory fold_<k> each. A row of
        path_writing_data/summary.csv. compare writes path_writing_data/compare_<RUN_A>_<RUN_B>.csv.
"""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Generator
from types import SimpleNamespace

import torch

from classifiers.subwindows import with_peaks
from evaluation.metrics import with_predictions
from evaluation.operating_point import calibrate
from reports.cross_validation import pool_folds, read_fold
from reports.run_figures import plot_windows
from reports.run_results import TestResult, evaluate, write_comparison, write_results
from runs.context import RunContext
from runs.network_settings import subwindow_shape_of
from runs.networks import (
    choose_decision,
    look_again,
    make_reader,
    read_copies,
    save_classifier,
    train_autoencoder,
    train_classifier,
)
from runs.resume import UnfinishedRun, check_begun, unfinished_run
from runs.run_directory import RunDirectory, run_of_number, save_params
from runs.settings import check_settings, read_command
from runs.source import open_source
from runs.split_data import SplitData, split_data, windows_of_part
from runs.split_record import split_record
from runs.window_sets import open_window_sets
from saving_functions import plot_losses, save_peaks
from system.interruption import Interrupted, interruptible
from system.memory import keep_freed_memory
from timeseries_dataset import PARTS
from training.distributed import Processes, init_distributed
from utils import SettingError, choose_device, choose_precision, run_script, set_seed

MODES = ('auto', 'ft', 'clf', 'cv', 'compare')


def main(words: list[str]) -> None:
    """Read the command line and run the mode it names.

    Raises
    ------
    SettingError
        The command line is not understood.
    """
    positional, settings = read_command(words, n_positional=3)
    command = shlex.join(['python', 'main_train.py', *words])
    mode = positional[0] if positional else 'auto'
    if mode not in MODES:
        raise SettingError(f'mode {mode!r}: must be one of {", ".join(MODES)}; python main_train.py [MODE] [MODEL]')
    if mode == 'compare':
        if len(positional) != 3:
            raise SettingError('compare takes two finished runs: python main_train.py compare RUN_A RUN_B')
        write_comparison(*positional[1:], settings)
        return
    if len(positional) > 2:
        raise SettingError(f'unexpected argument {positional[2]!r}: settings are given as name=value')
    if len(positional) == 2:
        settings.model = positional[1]
    check_settings(vars(settings))
    if settings.fold is not None and (mode != 'cv' or settings.model_nb is None):
        raise SettingError(f'fold = {settings.fold}: needs mode cv, and model_nb, the number that all folds share')
    with contextlib.ExitStack() as stack:
        processes = init_distributed()
        if not processes.is_main:  # every process would print the same
            sys.stdout = stack.enter_context(open(os.devnull, 'w', errors='replace'))
            stack.callback(setattr, sys, 'stdout', sys.__stdout__)
        stack.enter_context(interruptible())
        start_or_resume(mode, words, command, settings, processes)


# ------------------------------------------------------------------------------------------- the story
def train_and_test(run: RunDirectory, split: SplitData, context: RunContext) -> None:
    """Train both networks, choose the decision threshold, test, and write the results."""
    settings, device = context.settings, context.device
    record = save_or_check_params(run, split, context)

    set_seed(settings.seed)
    print(f'\nautoencoder {settings.model}')
    autoencoder, ae_history = train_autoencoder(run, split, context)
    if not context.processes.is_main:
        return  # the other processes only help to train the autoencoder

    set_seed(settings.seed)  # the classifier is the same whether the autoencoder is trained now or loaded
    print(f'\nclassifier {settings.classifier}')
    reader = make_reader(autoencoder, split, settings, device)
    data = {part: reader.read(windows_of_part(split, part, settings, device), split.blocks(part)) for part in PARTS}
    copies = read_copies(reader, split, settings)
    classifier, clf_history = train_classifier(run, split, autoencoder, data, copies, context)

    scores = {part: classifier.predict_proba(data[part].inputs) for part in ('validation', 'test')}
    look = None
    if settings.second_look and data['test'].fingerprints is not None:
        scores, look = look_again(scores, data, split)
    tables = {part: with_peaks(split.subwindows[part], data[part].peaks, split.shape) for part in scores}
    decision = choose_decision(scores['validation'], tables['validation'], split, settings)
    decision['second look'] = look
    save_classifier(run, classifier, decision, reader.masking, settings.classifier)

    proba = calibrate(decision['calibration'], scores['test'])
    predictions = with_predictions(tables['test'], proba, decision['threshold'])
    evaluation = evaluate(predictions, split.spikes['test'], settings)
    result = TestResult(run, evaluation, decision, split.tested_on, record)
    plot_losses(run, {settings.model: ae_history, settings.classifier: clf_history}, settings.early_stop_on)
    plot_windows(result, reader, split, data['test'].errors, settings)
    if context.mode == 'cv':
        save_peaks(run, evaluation.predictions)  # for pooling the folds
    write_results(result, [evaluation.result], context, summary=context.mode != 'cv')


def save_or_check_params(run: RunDirectory, split: SplitData, context: RunContext) -> dict:
    """Write params.json, or check that a resumed run has the same windows; return the record of the split.

    Processes beside the main one need none.
    """
    if not context.processes.is_main:
        return {}
    record = split_record(context.mode, split, context.source, context.settings)
    if run.params.is_file():
        check_begun(run, record, context.saved, context.processes)
    else:
        save_params(run, context.command, context.saved, record, mode=context.mode, processes=context.processes.size)
    return record


# ------------------------------------------------------------------------------------- the bookkeeping
def start_or_resume(mode: str, words: list[str], command: str, settings: SimpleNamespace, processes: Processes) -> None:
    """Start a new run, or resume an unfinished one, and finish it.

    Raises
    ------
    SettingError
        The settings do not fit the run or the machine's memory.
    Interrupted
        A signal ended the run, which can be resumed.
    """
    started = time.perf_counter()
    unfinished = UnfinishedRun(*processes.on_main_process(lambda: unfinished_run(mode, words, command, settings)))
    if unfinished.finished:
        return
    vars(settings).update(unfinished.settings)
    source = None
    if mode in ('ft', 'clf'):
        source = open_source(mode, settings, unfinished.source_nb if unfinished.path else settings.model_nb)
    device = choose_device(settings.device)
    settings.precision = choose_precision(settings.precision, device)
    if settings.keep_memory and device.type == 'cpu':
        keep_freed_memory()
    shape = subwindow_shape_of(settings)
    splits = split_data(open_window_sets(settings), mode, source, settings, shape)
    if settings.fold is not None and settings.fold > len(splits):
        raise SettingError(f'fold = {settings.fold}: n_splits = {settings.n_splits} makes the folds 1 to {len(splits)}')
    number = None if source else settings.model_nb
    path = unfinished.path or processes.on_main_process(lambda: str(run_of_number(settings, number).path))
    run = RunDirectory(path)
    print(f'{run.name}: in {run.path}, on {device}' + (', resumed' if unfinished.path else ''))
    saved = vars(settings) | {'model_nb': run.number, 'device': str(device), 'fold': None}
    context = RunContext(mode, command, source, settings, saved, device, processes)
    with explained_faults(run, device):
        if mode == 'cv':
            train_folds(run, splits, context)
        else:
            train_alone(run, splits[0], context)
    print(f'results in {run.path}, after {time.perf_counter() - started:.0f} s')


@contextlib.contextmanager
def explained_faults(run: RunDirectory, device: torch.device) -> Generator[None]:
    """Give lack of memory a message with a way out, and an interruption the command that resumes the run.

    Raises
    ------
    SettingError
        The memory is too small.
    Interrupted
        A signal ended the run.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as fault:
        raise SettingError(
            f'{device} has too little memory: lower batch_size or classifier_batch_size, or take fewer levels, blocks '
            'or patients'
        ) from fault
    except Interrupted as fault:
        way_out = f'model_nb={run.number} goes on with the run' if run.params.is_file() else 'nothing was saved yet'
        raise Interrupted(f'{fault}: {way_out}') from fault


def train_alone(run: RunDirectory, split: SplitData, context: RunContext) -> None:
    """Train and test in the directory of a run or fold, while no other job may use it."""
    with run.reserved() if context.processes.is_main else contextlib.nullcontext():
        train_and_test(run, split, context)


def train_folds(run: RunDirectory, splits: list[SplitData], context: RunContext) -> None:
    """Train and test the unfinished folds of a cross-validation, and pool their tests.

    With the setting `fold`, only that fold is trained: other jobs may train the other folds at the same time.
    """
    processes, fold_number = context.processes, context.settings.fold
    all_folds = fold_number is None
    with run.reserved() if processes.is_main and all_folds else contextlib.nullcontext():
        if processes.is_main and not run.params.is_file():
            save_params(run, context.command, context.saved, {}, mode='cv', processes=processes.size)
        for number, split in enumerate(splits, start=1):
            if fold_number in (None, number):
                print(f'\nfold {number} of {len(splits)}')
                train_fold(run, number, split, context)
        if processes.is_main and all_folds:
            results = [read_fold(run.fold(k), split, context.settings) for k, split in enumerate(splits, start=1)]
            pool_folds(run, results, context)


def train_fold(run: RunDirectory, number: int, split: SplitData, context: RunContext) -> None:
    """Train and test a fold, unless it is finished."""
    path = context.processes.on_main_process(lambda: str(run.fold(number).path))
    fold = RunDirectory(path, run.name)
    if context.processes.on_main_process(lambda: fold.finished):
        print('  finished before')
    else:
        train_alone(fold, split, context)


if __name__ == '__main__':
    run_script(main, __doc__)
