"""The results of a tested run: tables, pictures, the page, its row of the summary, and lines on the screen."""

import shlex
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd

from evaluation.intervals import Evaluation, compare, intervals
from evaluation.metrics import MAIN_METRICS
from reports.model_card import write_model_card
from reports.run_page import RunFacts, write_report
from runs.context import RunContext
from runs.run_directory import RunDirectory, find_run
from saving_functions import load_tested, plot_metrics, save_comparison, save_evaluation, save_summary_row
from utils import DataError, write_json


class TestResult(NamedTuple):
    """A tested run, or fold.

    Attributes
    ----------
    run : RunDirectory
    evaluation : Evaluation
    decision : dict
        Threshold, calibration, policy and what it reached on validation.
    tested_on : str
        Description of the test set.
    split : dict
        Who was in which part, see `runs.split_record.split_record`.
    """

    run: RunDirectory
    evaluation: Evaluation
    decision: dict
    tested_on: str
    split: dict


def evaluate(predictions: pd.DataFrame, spikes: pd.DataFrame, settings: SimpleNamespace) -> Evaluation:
    """Evaluate the predictions of sub-windows against the annotated spikes, by the settings."""
    return Evaluation(
        predictions,
        spikes,
        subwindow_length=round(settings.subwindow_size * settings.sfreq),
        tolerance=settings.tolerance,
        sfreq=settings.sfreq,
        batch_size=settings.classifier_batch_size,
    )


def write_results(result: TestResult, rows: list[dict], context: RunContext, *, summary: bool) -> None:
    """Write tables, pictures of the metrics, and the page of a run or fold; print the main metrics.

    Parameters
    ----------
    result : TestResult
    rows : list of dict
        Metrics, one row per fold.
    context : RunContext
    summary : bool
        Whether summary.csv gets a row.
    """
    run, evaluation, settings = result.run, result.evaluation, context.settings
    interval = intervals(evaluation, settings.bootstrap_samples, settings.seed)
    metrics = {
        'tested on': result.tested_on,
        'test patients': evaluation.patients['subject'].tolist(),
        'test blocks': describe_blocks(settings.nb_best_blocks_test),
        'chosen by annotations': chosen_by_annotations(settings),
        'threshold': result.decision['threshold'],
        'threshold policy': result.decision['policy'],
        'reached on validation': result.decision['reached'],
        'calibration': result.decision['calibration'],
        **({'ensemble': result.decision['ensemble']} if 'ensemble' in result.decision else {}),
        'test': evaluation.result,
        'intervals': interval,
        'means over patients': evaluation.means(),
        **({'folds': fold_summary(rows)} if len(rows) > 1 else {}),
    }
    save_evaluation(run, evaluation, rows)
    plot_metrics(run, evaluation)
    facts = describe_training(context.mode, result.split, settings) | describe_test(result, settings)
    words = [f'{name}={value!r}' for name, value in vars(settings).items() if name != 'model']
    full_command = shlex.join(['python', 'main_train.py', context.mode, settings.model, *words])
    write_report(run, RunFacts(context.command, full_command, context.saved, facts), metrics, evaluation, rows)
    write_model_card(run, facts, metrics, evaluation, result.split)
    if summary:
        save_summary_row(settings.path_writing_data, summary_row(result, context.mode, settings))
    write_json(run.metrics, metrics)  # last: a run with this file is finished
    print_metrics(result, interval, facts)


def describe_test(result: TestResult, settings: SimpleNamespace) -> dict[str, str]:
    """What the page says about the test."""
    subjects = ', '.join(map(str, result.evaluation.patients['subject']))
    threshold = result.decision['threshold']
    value = 'its own in every fold' if threshold is None else f'{threshold:.4f}'
    return {
        'classifier': f'{settings.classifier}, {settings.subwindow_size:g} s sub-windows',
        'tested on': f'{result.tested_on}: {subjects}',
        'recordings': describe_recordings(result.evaluation.result, settings),
        'chosen by annotations': chosen_by_annotations(settings),
        'threshold': f'{result.decision["policy"]}: {value}; reached there: {result.decision["reached"]}',
        'events': f'neighbouring positive sub-windows, at the peak of the field power; found within '
        f'{settings.tolerance:g} s of an annotated spike, one to one',
    }


def describe_recordings(values: dict, settings: SimpleNamespace) -> str:
    """Blocks and minutes of a test, whose metrics are in `values`."""
    blocks = describe_blocks(settings.nb_best_blocks_test)
    return f'{values["blocks"]} blocks, {values["minutes"]:.1f} min: {blocks} of each patient'


def describe_blocks(nb_best_blocks: int) -> str:
    """Which blocks of a patient a set of windows has."""
    return f'the {nb_best_blocks} blocks with the most annotated spikes' if nb_best_blocks else 'all blocks'


def chosen_by_annotations(settings: SimpleNamespace) -> str:
    """What the annotations chose before any training."""
    if settings.nb_best_blocks_test:
        return (
            f'{describe_blocks(settings.nb_best_blocks_test)} of validation and test patients: recordings as a whole '
            'have fewer spikes, so that precision is lower there (nb_best_blocks_test=0 tests on all)'
        )
    if settings.nb_best_blocks:
        return f'{describe_blocks(settings.nb_best_blocks)} of training patients; nothing of the others'
    return 'nothing'


def print_metrics(result: TestResult, interval: dict, facts: dict[str, str]) -> None:
    """Print the main metrics of a test with their intervals."""
    values = result.evaluation.result
    print(f'\ntest on {result.tested_on}: {values["spike sub-windows"]} of {values["sub-windows"]} sub-windows with a '
          f'spike, {values["spikes"]} spikes')  # fmt: skip
    print(f'  in {facts["recordings"]}')
    print(f'  threshold: {facts["threshold"]}')
    chance = {'PR-AUC': values['PR-AUC of chance'], 'ROC-AUC': 0.5}
    for name in MAIN_METRICS:
        by_chance = f'   chance {chance[name]:.3f}' if name in chance else ''
        low, high = interval[name]
        print(f'  {name:18} {values[name]:.3f}  [{low:.3f}, {high:.3f}]{by_chance}')


def fold_summary(rows: list[dict]) -> dict:
    """Mean and standard deviation over the folds of every main metric, where it is defined."""
    table = pd.DataFrame(rows)[list(MAIN_METRICS)]
    return {name: {'mean': table[name].mean(), 'std': table[name].std(), 'folds': int(table[name].count())}
            for name in MAIN_METRICS}  # fmt: skip


def describe_training(mode: str, split: dict, settings: SimpleNamespace) -> dict[str, str]:
    """What the page says about how the networks were trained; `split` as in `TestResult`."""
    if split['autoencoder saw annotations']:
        training = 'on windows without annotated spikes'
    elif settings.classifier != 'threshold':
        training = 'on all windows, without annotations; the classifier was trained on annotations'
    else:
        blocks = f' the {settings.nb_best_blocks} blocks of each training patient,' if settings.nb_best_blocks else ''
        training = (
            'on all windows. No spike annotation was used in training: the size of the error is compared with a '
            f'threshold. Annotations chose{blocks} who is trained, validated and tested on (unless listed), and, on '
            'validation patients, the threshold and the calibration.'
        )
    task = 'to predict masked segments' if settings.masking else 'to reconstruct what it sees'
    facts = {'autoencoder': f'{settings.model}, trained {task} {training}'}
    if settings.recipe == 'original':
        facts['recipe'] = "the original's choices"
    if split['started from']:
        facts['started from'] = f'run {split["started from"]}' + (
            ', trained further' if mode == 'ft' else ', whose autoencoder is used unchanged'
        )
    return facts


def summary_row(result: TestResult, mode: str, settings: SimpleNamespace) -> dict:
    """The run's row of summary.csv."""
    metrics = result.evaluation.result
    return {
        'run': result.run.name,
        'mode': mode,
        'model': settings.model,
        'classifier': settings.classifier,
        'seed': settings.seed,
        'training patients': '' if mode == 'cv' else ' '.join(map(str, result.split['train'])),
        'test patients': ' '.join(map(str, result.evaluation.patients['subject'])),
        'tested on': result.tested_on,
        'threshold policy': result.decision['policy'],
        **{name: metrics[name] for name in MAIN_METRICS},
    }


def write_comparison(name_a: str, name_b: str, settings: SimpleNamespace) -> None:
    """Paired difference of two finished runs, printed and written as a table."""
    runs = [find_run(settings.path_writing_data, name) for name in (name_a, name_b)]
    try:
        table = compare(*map(load_tested, runs), settings.bootstrap_samples, settings.seed)
    except (KeyError, TypeError, ValueError) as fault:
        tables = ', '.join(str(path) for run in runs for path in (run.predictions, run.patients))
        raise DataError(f'one of {tables} is damaged ({type(fault).__name__}: {fault}); restore it') from fault
    path = save_comparison(settings.path_writing_data, *runs, table)
    print(table.to_string(float_format='{:.3f}'.format))
    print(f'B - A with its 95 % bootstrap interval over the patients that both tested; in {path}')
