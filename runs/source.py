"""The finished run that the modes ft and clf start from."""

from types import SimpleNamespace
from typing import NamedTuple

from models import AUTOENCODERS
from runs.run_directory import RunDirectory, find_run, load_params
from runs.settings import ORIGINAL, check_settings
from timeseries_dataset import PARTS, WINDOW_SETTINGS
from training.checkpoints import is_of_training, load_checkpoint
from utils import DataError, SettingError


class Source(NamedTuple):
    """The finished run that `ft` and `clf` start from.

    Attributes
    ----------
    run : RunDirectory
    autoencoder : dict
        Its best checkpoint.
    split : dict
        Who was in which part there, see `runs.split_record.split_record`.
    history : list of dict
        Of the autoencoder's training, for `clf`, which keeps it; see `loop.train`.
    """

    run: RunDirectory
    autoencoder: dict
    split: dict
    history: list[dict]

    @property
    def seen(self) -> set[int]:
        """Patients that the run, or one that it started from, was trained or validated on."""
        return {*self.split['train'], *self.split['validation'], *self.split['seen before']}

    def fixed(self, mode: str, subjects: set[int]) -> dict:
        """Parts that patients keep, so that no run is tested on patients it has seen.

        Blocks keep theirs instead, if the run was split by block and there are no new patients.

        Parameters
        ----------
        mode : str
        subjects : set of int
            The patients of the new run.

        Returns
        -------
        dict
            Patient, or (subject, block), to part.
        """
        if self.split['by'] == 'block' and subjects <= {subject for subject, _, _ in self.split['blocks']}:
            return {(subject, block): part for subject, block, part in self.split['blocks']}
        parts = dict.fromkeys(self.seen, 'train')
        if self.split['by'] == 'patient':
            # If ft gets none of the patients seen, it may train on those of the old test.
            kept_parts = PARTS if mode == 'clf' or self.seen & subjects else ()
            parts |= {subject: part for part in kept_parts for subject in self.split[part]}
        return {subject: part for subject, part in parts.items() if subject in subjects}


def open_source(mode: str, settings: SimpleNamespace, model_nb: int | None) -> Source:
    """Open run `model_nb`, and take over the settings that must match; print a warning of those that differ.

    Raises
    ------
    DataError
        The run is missing, unfinished or damaged, or was made by another version.
    SettingError
        No number is given, or the settings of the run do not fit those of now.
    """
    if model_nb is None:
        raise SettingError(f'model_nb: mode {mode} starts from a finished run: give its number')
    run = find_run(settings.path_writing_data, f'{settings.model}_{model_nb}')
    params = load_params(run)
    must_match = [*WINDOW_SETTINGS, 'subwindow_size', 'masking', *AUTOENCODERS[settings.model][1]]
    if mode == 'ft':
        must_match += ['classifier', 'encoder', 'levels', 'classifier_width', 'optimizer', 'classifier_optimizer']
    for name in must_match:
        if name not in params['settings']:
            raise DataError(f'{run.params}: lacks the setting {name}: made by another version; train the run again')
        saved = params['settings'][name]
        if saved != getattr(settings, name):
            print(f'warning: {name} = {getattr(settings, name)!r} now, but run {run.name} has {saved!r}, which is used')
            setattr(settings, name, saved)
    check_settings(vars(settings))
    if settings.recipe == 'original' and any(getattr(settings, name) != value for name, value in ORIGINAL.items()):
        raise SettingError(f"recipe='original': run {run.name} was made otherwise; set recipe='current'")
    autoencoder, history = load_checkpoint(run.checkpoint('best')), []
    if mode == 'clf':
        history = load_checkpoint(run.checkpoint('last')).get('history', [])
        if not is_of_training(autoencoder, history):
            raise DataError(
                f'{run.checkpoint("last")}: not of the training of {run.checkpoint("best").name}: restore it, or take '
                'another run'
            )
    else:  # or else the classifier lacks after hours of training
        path = run.checkpoint('best', settings.classifier)
        if 'decision' not in load_checkpoint(path):
            raise DataError(f'{path}: not a {settings.classifier} of this project: restore it, or take another run')
    return Source(run, autoencoder, params['split'], history)
