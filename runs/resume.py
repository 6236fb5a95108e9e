"""Resuming a run that was interrupted: finding it, and checking that it still fits."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from runs.run_directory import RunDirectory, load_params, run_of_job
from training.distributed import Processes
from utils import DataError, SettingError, write_json

# Settings that may change while a run is unfinished: those that do not change its results, and those that name it.
FREE_SETTINGS = (
    'path_writing_data',
    'device',
    'preload',
    'keep_memory',
    'num_workers',
    'n_jobs',
    'model_nb',
    'resume',
    'fold',
)


class UnfinishedRun(NamedTuple):
    """The unfinished run that a command resumes, in values that JSON can hold.

    Attributes
    ----------
    path : str or None
        Of the run directory; None where there is no such run.
    settings : dict
        The settings that the run keeps.
    source_nb : int or None
        Number of its source run.
    finished : bool
        Whether nothing is left to do.
    """

    path: str | None
    settings: dict
    source_nb: int | None
    finished: bool


NO_RUN = UnfinishedRun(None, {}, None, finished=False)


def unfinished_run(mode: str, words: list[str], command: str, settings: SimpleNamespace) -> UnfinishedRun:
    """Find the unfinished run that a command resumes, if there is one.

    Parameters
    ----------
    mode : str
    words : list of str
        The command line after the script's name.
    command : str
        The command as params.json holds it.
    settings : namespace

    Raises
    ------
    SettingError
        The run was begun in another mode, with other settings, or may not be resumed.
    """
    run = None
    if settings.model_nb is not None:
        run = RunDirectory(Path(settings.path_writing_data) / f'{settings.model}_{settings.model_nb}')
    # A job that Slurm starts again says model_nb=None again, or the number of its source.
    restarted = run_of_job(settings.path_writing_data, settings.model, command) if settings.resume else None
    run = restarted or run
    if run is None or not run.params.is_file():
        return NO_RUN  # no run, or the empty directory of a process that was killed at its start
    fold = run.path / f'fold_{settings.fold}'
    if (run.finished and restarted) or (settings.fold is not None and RunDirectory(fold, run.name).finished):
        print(f'{run.name}: finished before, in {run.path}')
        return UnfinishedRun(str(run.path), {}, None, finished=True)
    if run.finished and settings.fold is not None:
        raise SettingError(f'model_nb = {run.number}: {run.path} is finished, no fold can join it: take another number')
    if run.finished:
        return NO_RUN  # the source of ft and clf; the other modes cannot make its directory again
    if not settings.resume and (settings.fold is None or fold.is_dir()):
        raise SettingError(f'model_nb = {run.number}: {run.path} is unfinished: take another number, or resume=True')
    begun = load_params(run)
    if begun['mode'] != mode:
        raise SettingError(
            f'model_nb = {run.number}: {run.path} is unfinished, of mode {begun["mode"]}: finish it with python '
            f'main_train.py {begun["mode"]} {settings.model} model_nb={run.number}, or take another run'
        )
    source = begun['split'].get('started from')
    source_nb = int(source.rpartition('_')[2]) if source else None
    return UnfinishedRun(str(run.path), settings_begun_with(run, begun, words, settings), source_nb, finished=False)


def settings_begun_with(run: RunDirectory, begun: dict, words: list[str], settings: SimpleNamespace) -> dict:
    """The settings that an unfinished run keeps; prints a warning of those that differ now.

    Parameters
    ----------
    run : RunDirectory
    begun : dict
        From `load_params`.
    words : list of str
        The command line after the script's name.
    settings : namespace
        Of now.

    Returns
    -------
    dict
        The settings that the run was begun with, without those that may change.

    Raises
    ------
    SettingError
        The command line names a setting with a value that differs.
    """
    now = json.loads(json.dumps(vars(settings)))
    in_words = {word.partition('=')[0] for word in words}
    begun_with = {name: value for name, value in begun['settings'].items() if name in now and name not in FREE_SETTINGS}
    for name, value in begun_with.items():
        if value != now[name] and name in in_words:
            raise SettingError(
                f'{name} = {now[name]!r}: run {run.name} was begun with {value!r}: leave the word out to finish the '
                'run with it, or take another model_nb'
            )
        if value != now[name] and now[name] != 'auto':  # 'auto' accepts every value
            print(f'warning: {name} = {now[name]!r} now, but run {run.name} was begun with {value!r}, which is used')
    added = [name for name in now if name not in begun['settings'] and name not in FREE_SETTINGS]
    if added:
        print(
            f'warning: run {run.name} was begun by a version without {", ".join(added)}: the values of now are used; '
            'another model_nb begins anew'
        )
    if begun['threads'] != torch.get_num_threads():
        print(
            f'warning: run {run.name} was begun with {begun["threads"]} threads, now there are '
            f'{torch.get_num_threads()}: its metrics may differ in the last digits (OMP_NUM_THREADS)'
        )
    return begun_with


def check_begun(run: RunDirectory, split: dict, settings: dict, processes: Processes) -> None:
    """Check that a resumed run has the windows and the number of processes that it was begun with.

    Settings that the version did not have that it was begun by are added to its params.json.

    Parameters
    ----------
    run : RunDirectory
    split : dict
        From `split_record`.
    settings : dict
        All that the run has.
    processes : Processes

    Raises
    ------
    DataError
        The windows, or their parts, have changed.
    SettingError
        The number of processes has changed.
    """
    begun, now = load_params(run), json.loads(json.dumps(split))
    if begun['split'] != {name: value for name, value in now.items() if name in begun['split']}:
        raise DataError(
            f'{run.params}: the windows, or who is in which part, have changed since the run was begun: restore them, '
            'or take another model_nb'
        )
    if begun['processes'] != processes.size:
        raise SettingError(
            f'model_nb = {run.number}: {run.path} was begun by {begun["processes"]} processes (torchrun), not '
            f'{processes.size}: take as many, or another model_nb'
        )
    content = json.loads(run.params.read_text())
    if settings.keys() - content['settings'].keys():
        write_json(run.params, content | {'settings': settings | content['settings']})
