"""Going on with a run that was interrupted: finding it, and checking that it still fits."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from runs.run_directory import RunDirectory, load_params, run_of_job
from training.distributed import Processes
from utils import DataError, SettingError

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


def unfinished_run(mode: str, words: list[str], command: str, settings: SimpleNamespace) -> tuple:
    """The unfinished run that a command goes on with, if there is one.

    Returns
    -------
    path : str or None
        Of the run directory; 'finished' where nothing is left to do.
    begun_with : dict
        Its settings, in the place of those of now.
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
    begun_with = settings_begun_with(run, begun, words, settings)
    started_from = begun['split'].get('started from')
    return str(run.path), begun_with, started_from and int(started_from.rpartition('_')[2])


def settings_begun_with(run: RunDirectory, begun: dict, words: list[str], settings: SimpleNamespace) -> dict:
    """The settings that an unfinished run was begun with, but those that may change; prints which differ now.

    Parameters
    ----------
    begun : dict
        From `load_params`.
    words : list of str
        The command line, whose settings may not differ.

    Raises
    ------
    SettingError
        The command line names another value.
    """
    now = json.loads(json.dumps(vars(settings)))
    in_words = {word.partition('=')[0] for word in words}
    begun_with = {name: value for name, value in begun['settings'].items() if name in now and name not in FREE_SETTINGS}
    for name, value in begun_with.items():
        if value != now[name] and name in in_words:
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
    return begun_with


def check_begun(run: RunDirectory, split: dict, processes: Processes) -> None:
    """Make sure that a run goes on with the windows and the number of processes that it was begun with."""
    begun = load_params(run)
    if begun['split'] != json.loads(json.dumps(split)):
        raise DataError(
            f'{run.params}: the windows, or who is in which part, have changed since the run was begun: restore them, '
            'or take another model_nb'
        )
    if begun['processes'] != processes.size:
        raise SettingError(
            f'model_nb = {run.number}: {run.path} was begun by {begun["processes"]} processes (torchrun), not '
            f'{processes.size}: take as many, or another model_nb'
        )
