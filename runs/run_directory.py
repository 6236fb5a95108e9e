"""The directory of a run: names, numbers, locks, params.json."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import torch

from runs.settings import RULES
from utils import ROOT, DataError, SettingError, write_json

# Settings that runs of earlier versions do not say, and the setting that had their part.
FORMERLY = {
    'nb_best_blocks_test': 'nb_best_blocks',
    'classifier_optimizer': 'optimizer',
    'classifier_weight_decay': 'weight_decay',
}
SPLIT_LISTS = ('train', 'validation', 'test', 'seen before')  # of params.json, that hold patients
PACKAGES = ('torch', 'numpy', 'scipy', 'mne', 'pywavelets', 'scikit-learn', 'lightgbm', 'pandas', 'matplotlib')


class RunDirectory:
    """The directory `path_writing_data`/<MODEL>_<nb> of one run, and the names of the files in it.

    Parameters
    ----------
    path : path
        An existing run directory, or that of a fold in it.
    name : str, optional
        <MODEL>_<nb>, if the directory has another name.
    """

    def __init__(self, path: str | Path, name: str | None = None):
        self.path = Path(path)
        self.name = name or self.path.name
        self.number = int(self.name.rpartition('_')[2])
        self.params = self.path / 'params.json'
        self.losses = self.path / f'{self.name}.png'
        self.predictions = self.path / f'{self.name}_cvpredictions.csv'
        self.results = self.path / f'{self.name}_cvresults.csv'
        self.patients = self.path / f'{self.name}_patients.csv'
        self.events = self.path / f'{self.name}_events.csv'
        self.metrics = self.path / 'metrics.json'
        self.peaks = self.path / 'peaks.csv'
        self.report = self.path / 'report.html'
        self.model_card = self.path / 'model_card.md'
        self.figures = self.path / 'figures'

    def checkpoint(self, which: str, network: str | None = None) -> Path:
        """Path of the checkpoint 'best', 'last', ... of the autoencoder, or of the classifier `network`."""
        name = self.name if network is None else f'{network}_{self.number}'
        return self.path / f'{which}_{name}.pth'

    def fold(self, number: int) -> 'RunDirectory':
        """The directory of fold `number` of a cross-validation, which is made if it does not exist."""
        path = self.path / f'fold_{number}'
        path.mkdir(exist_ok=True)
        return RunDirectory(path, self.name)

    @property
    def folds(self) -> list['RunDirectory']:
        """The folds of a cross-validation that are there, in order; none of another run."""
        numbers = sorted(int(path.name.removeprefix('fold_')) for path in self.path.glob('fold_*') if path.is_dir())
        return [RunDirectory(self.path / f'fold_{number}', self.name) for number in numbers]

    @property
    def finished(self) -> bool:
        """Whether the run is complete: metrics.json is written last."""
        return self.metrics.is_file()

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Keep other processes out of the directory within this block; the lock of a killed process is gone.

        Raises
        ------
        SettingError
            Another process has the lock.
        """
        # A file opened for writing, because network file systems do not lock directories.
        descriptor = os.open(self.path / '.lock', os.O_WRONLY | os.O_CREAT)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as fault:
                raise SettingError(
                    f'{self.path}: another process is working on this run; wait for its end, or take another number'
                ) from fault
            except OSError as fault:
                print(f'warning: {self.path}: no locks on this file system ({fault.strerror}): run one job at a time')
            yield
        finally:
            if self.finished:  # no process works on it again
                (self.path / '.lock').unlink(missing_ok=True)
            os.close(descriptor)

    @contextlib.contextmanager
    def reserved(self) -> Generator[None]:
        """Keep other processes out within this block, see `locked`.

        If the block fails, the directory is removed, unless it had files before or something is trained already.
        """
        with self.locked():
            begun_here = not any(self.path.glob('[!.]*'))
            try:
                yield
            except BaseException:
                if begun_here:
                    self.remove_if_untrained()
                raise

    def remove_if_untrained(self) -> None:
        """Remove the directory if it has no checkpoint, so that the run's number is free again."""
        if not any(self.path.rglob('*.pth')):
            shutil.rmtree(self.path)


def new_run_directory(
    path_writing_data: str | Path, model: str, model_nb: int | None, *, shared: bool = False
) -> RunDirectory:
    """Make the directory of a new run.

    Making a directory succeeds for one process only, so two jobs never get the same number.

    Parameters
    ----------
    path_writing_data : path
        Where the run directories are.
    model : str
    model_nb : int or None
        Number of the run; None takes the number after the highest.
    shared : bool
        Whether the directory may exist.

    Raises
    ------
    SettingError
        The run `model_nb` exists and is not shared.
    """
    parent = Path(path_writing_data)
    parent.mkdir(parents=True, exist_ok=True)
    number = model_nb if model_nb is not None else max(_numbers(parent, model), default=0) + 1
    while True:
        path = parent / f'{model}_{number}'
        try:
            path.mkdir(exist_ok=shared)
        except FileExistsError as fault:
            if model_nb is not None:
                raise SettingError(f'model_nb = {model_nb}: {path} exists; take another number, or None') from fault
            number += 1
        else:
            return RunDirectory(path)


def run_of_number(settings: SimpleNamespace, number: int | None) -> RunDirectory:
    """Make the directory of a new run, see `new_run_directory`.

    The directory may exist if other jobs train other folds in it. It may also exist if a process was killed before it
    wrote anything: then it has hidden files only.
    """
    directory = Path(settings.path_writing_data) / f'{settings.model}_{number}'
    empty = settings.resume and all(path.name.startswith('.') for path in directory.glob('*'))
    shared = number is not None and (settings.fold is not None or empty)
    return new_run_directory(settings.path_writing_data, settings.model, number, shared=shared)


def find_run(path_writing_data: str | Path, name: str) -> RunDirectory:
    """Find a finished run, or a fold of a run.

    Parameters
    ----------
    path_writing_data : path
        Where the run directories are.
    name : str
        Name there (AE1D_3, AE1D_3/fold_1), or any path.

    Raises
    ------
    DataError
        There is no such run, or it is not finished.
    """
    directories = [path for path in (Path(path_writing_data) / name, Path(name)) if path.is_dir()]
    if not directories:
        raise DataError(f'{Path(path_writing_data) / name}: no such run directory; train it or correct the name')
    path = directories[0].resolve()
    top = path.parent if re.fullmatch(r'fold_\d+', path.name) else path
    if not re.fullmatch(r'.+_\d+', top.name):
        raise DataError(f'{path}: not a run directory <MODEL>_<nb>')
    run = RunDirectory(path, top.name)
    if not run.finished:
        raise DataError(f'{path}: not finished, metrics.json is missing; finish it, or take another run')
    return run


def run_of_job(path_writing_data: str | Path, model: str, command: str) -> RunDirectory | None:
    """The run that this command began before Slurm started its job again, after preemption or on the job's request."""
    job = slurm_job()
    if job is None or os.environ.get('SLURM_RESTART_COUNT', '0') == '0':
        return None
    for number in _numbers(Path(path_writing_data), model):
        run = RunDirectory(Path(path_writing_data) / f'{model}_{number}')
        with contextlib.suppress(DataError):
            begun = load_params(run)
            if (begun['job'], begun['command']) == (job, command):
                return run
    return None


def _numbers(parent: Path, model: str) -> list[int]:
    """Numbers of the runs of a model, in order."""
    names = (re.fullmatch(rf'{model}_(\d+)', path.name) for path in parent.glob(f'{model}_*'))
    return sorted(int(name[1]) for name in names if name)


def slurm_job() -> str | None:
    """Number of this Slurm job, which it keeps when it is started again; None outside Slurm."""
    return os.environ.get('SLURM_JOB_ID')


def load_params(run: RunDirectory) -> dict:
    """Read params.json of a run.

    Raises
    ------
    DataError
        It is missing or damaged.
    """
    try:
        params = json.loads(run.params.read_text())
        needed = {name: dict(params[name]) for name in ('settings', 'split')}
        needed |= {name: params.get(name) for name in ('command', 'mode', 'threads', 'processes', 'job')}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise DataError(f'{run.params}: not the settings of a run ({type(fault).__name__}: {fault})') from fault
    needed['settings'] = (
        {name: needed['settings'][former] for name, former in FORMERLY.items() if former in needed['settings']}
        | {'early_stop_on': 'loss', 'pretraining_epochs': 0}
        | needed['settings']
    )
    for name, value in needed['settings'].items():
        if name in RULES and not RULES[name].accepts(value):
            raise DataError(f'{run.params}: {name} = {value!r}: must be {RULES[name].words}; restore the file')
    for part, patients in needed['split'].items():
        if part in SPLIT_LISTS and not (
            isinstance(patients, list) and all(type(patient) is int for patient in patients)
        ):
            raise DataError(f'{run.params}: split: {part} is no list of patient numbers; restore the file')
    return needed


def save_params(run: RunDirectory, command: str, settings: dict, split: dict, *, mode: str, processes: int = 1) -> None:
    """Write params.json, from which a run can be repeated and resumed.

    It holds the command, every effective setting, the split, the number of threads and processes, the versions of the
    packages, and the git revision.

    Parameters
    ----------
    run : RunDirectory
    command : str
    settings : dict
    split : dict
        From `split_record`; empty for the directory above the folds.
    mode : str
    processes : int
        Number of processes that train together.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    write_json(
        run.params,
        {
            'command': command,
            'mode': mode,
            'settings': settings,
            'split': split,
            'threads': torch.get_num_threads(),
            'processes': processes,
            'job': slurm_job(),
            'versions': {'python': sys.version.split()[0], **versions},
            'git revision': git_revision(),
        },
    )


def git_revision() -> str | None:
    """The commit of the code, marked where files differ from it; None outside a git checkout."""
    git = ['git', '-C', str(ROOT)]
    try:
        revision = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + (' with local changes' if changed.stdout.strip() else '')
