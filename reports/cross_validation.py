"""Pooling the folds of a cross-validation."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from evaluation.metrics import MAIN_METRICS
from reports.run_results import TestResult, evaluate, write_results
from runs.context import RunContext
from runs.networks import choose_threshold
from runs.run_directory import RunDirectory, load_params
from runs.split_data import SplitData
from saving_functions import load_predictions
from training.checkpoints import load_checkpoint
from utils import DataError


def read_fold(run: RunDirectory, split: SplitData, settings: SimpleNamespace) -> TestResult:
    """Read the result of a finished fold from its directory.

    Parameters
    ----------
    run : RunDirectory
        Of the fold.
    split : SplitData
        Of the fold.
    settings : namespace

    Raises
    ------
    DataError
        The fold was tested on windows that differ from those of the split.
    """
    predictions = load_predictions(run)
    columns = ['subject', 'block', 'timing', 'test']
    tested_on = split.subwindows['test'].sort_values(columns[:3], ignore_index=True)[columns]
    if not predictions[columns].equals(tested_on):
        raise DataError(f'{run.predictions}: of windows that have changed since; restore them, or remove {run.path}')
    evaluation = evaluate(predictions, split.spikes['test'], settings)
    decision = load_checkpoint(run.checkpoint('best', settings.classifier))['decision']
    return TestResult(run, evaluation, decision, split.tested_on, load_params(run)['split'])


def pool_folds(run: RunDirectory, folds: list[TestResult], context: RunContext) -> None:
    """Pool the tests of all folds, and write their common tables, pictures and page."""
    predictions = pd.concat([fold.evaluation.predictions for fold in folds])
    spikes = pd.concat([fold.evaluation.spikes for fold in folds]).drop(columns='hit')
    predictions = predictions.sort_values(['subject', 'block', 'timing'], ignore_index=True)
    rows = [fold.evaluation.result | {'fold': number, 'threshold': fold.decision['threshold']}
            for number, fold in enumerate(folds, start=1)]  # fmt: skip
    for row in rows:
        undefined = [name for name in MAIN_METRICS if np.isnan(row[name])]
        if undefined:
            print(f'warning: fold {row["fold"]}: undefined, and left out of means: {", ".join(undefined)}')
    by_fold = 'its own in every fold'
    decision = {'threshold': None, 'policy': folds[0].decision['policy'], 'calibration': by_fold, 'reached': by_fold}
    decision |= {'ensemble': choose_threshold(predictions, spikes, context.settings, 'pooled tests of the folds')}
    evaluation = evaluate(predictions, spikes, context.settings)
    result = TestResult(run, evaluation, decision, folds[0].tested_on, folds[0].split)
    write_results(result, rows, context, summary=True)
