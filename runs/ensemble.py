"""A run or a whole cross-validation that is applied to recordings: its folds, their common threshold, its record."""

import json
from pathlib import Path

from classification import Ensemble, TrainedRun
from runs.applied_settings import OF_THE_RUN, compensation_of_run
from runs.run_directory import RunDirectory, git_revision, load_params
from system.files import sha256
from utils import DataError


def members_of(run: RunDirectory) -> list[RunDirectory]:
    """The folds of a finished cross-validation, or another run itself.

    Raises
    ------
    DataError
        A fold, or a checkpoint of it, is missing.
    """
    if run.checkpoint('best').is_file() or not run.folds:
        return [run]
    classifier = load_params(run)['settings']['classifier']
    n_folds = len(run.results.read_text().splitlines()) - 1 if run.results.is_file() else 0
    numbers = [int(fold.path.name.removeprefix('fold_')) for fold in run.folds]
    lacking = [number for number in range(1, n_folds + 1) if number not in numbers]
    for number, fold in zip(numbers, run.folds, strict=True):
        if not (fold.finished and fold.checkpoint('best').is_file() and fold.checkpoint('best', classifier).is_file()):
            lacking.append(number)
    if lacking or not n_folds:
        raise DataError(
            f'{run.path}: fold {", ".join(map(str, sorted(lacking)))} of the cross-validation is missing or not whole; '
            f'restore it, or take one fold, such as {run.name}/fold_{numbers[0]}'
        )
    return run.folds


def ensemble_of(run: RunDirectory, members: list[TrainedRun]) -> Ensemble:
    """The folds of a cross-validation together, with the threshold that its pooled tests have chosen.

    Raises
    ------
    DataError
        metrics.json has no such threshold.
    """
    try:
        decision = json.loads(run.metrics.read_text())['ensemble']
        return Ensemble(members, {'threshold': float(decision['threshold']), 'policy': decision['policy']})
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataError(
            f'{run.metrics}: no threshold for all folds together, as of an earlier version; take one of the folds, '
            f'such as {run.name}/fold_1'
        ) from fault


def unseen_by(seen: list[dict[str, str]], known_by: set[str]) -> list[int]:
    """Which of the members, counted from 0, have not seen a recording; all where every one has.

    Parameters
    ----------
    seen : list of dict
        Of every member, from `seen_by_run`.
    known_by : set of str
        What tells the recording: hashes of its samples, and the path of its data_raw file.
    """
    unseen = [number for number, of_member in enumerate(seen) if not known_by & set(of_member)]
    return unseen or list(range(len(seen)))


def describe_run(
    run: RunDirectory, settings: dict, checkpoints: list[tuple[Path, Path]], loaded: list[TrainedRun]
) -> dict:
    """What detections.json says of the run: its code, checkpoints, settings and calibration, of every fold."""
    calibrations, second_looks = (
        [trained.decision.get(name) for trained in loaded] for name in ('calibration', 'second look')
    )
    first = members_of(run)[0]  # a fold knows all patients
    return {
        'code revision': git_revision(),
        'run': str(run.path),
        'code revision of the run': json.loads(run.params.read_text()).get('git revision'),
        'checkpoints': {str(path.relative_to(run.path)): sha256(path) for paths in checkpoints for path in paths},
        'model': settings['model'],
        'classifier': settings['classifier'],
        'settings': {name: settings[name] for name in (*OF_THE_RUN, 'bad_channels')},
        'compensation of the run': sorted(compensation_of_run(first, settings['path_raw_data'])),
        'calibration': calibrations[0] if first is run else calibrations,
        'second look': second_looks[0] if first is run else second_looks,
    }
