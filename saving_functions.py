"""Everything a run leaves behind: its directory, params.json, checkpoints, tables, pictures and the report."""

import html
import importlib.metadata
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use('Agg')  # batch jobs have no screen

import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import precision_recall_curve, roc_curve

from utils import ROOT, DataError, SettingError, write_json, writing

PACKAGES = ('torch', 'numpy', 'scipy', 'mne', 'pywavelets', 'scikit-learn', 'pandas', 'matplotlib')
# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREY = '#0072B2', '#E69F00', '#666666'


class RunDirectory:
    """The directory `path_writing_data`/<MODEL>_<nb> of one run, and the names of the files in it.

    Parameters
    ----------
    path : path
        An existing run directory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = self.path.name
        self.number = int(self.name.rpartition('_')[2])
        self.params = self.path / 'params.json'
        self.losses = self.path / f'{self.name}.png'
        self.predictions = self.path / f'{self.name}_cvpredictions.csv'
        self.results = self.path / f'{self.name}_cvresults.csv'
        self.metrics = self.path / 'metrics.json'
        self.report = self.path / 'report.html'
        self.figures = self.path / 'figures'

    def checkpoint(self, which: str, network: str | None = None) -> Path:
        """Path of the 'best' or 'last' checkpoint of the autoencoder, or of the classifier `network`."""
        name = self.name if network is None else f'{network}_{self.number}'
        return self.path / f'{which}_{name}.pth'

    def discard_without_checkpoint(self) -> None:
        """Remove the directory of a run that failed before its first epoch ended, so that its number is free again."""
        if not any(self.path.glob('*.pth')):
            shutil.rmtree(self.path)


def new_run_directory(path_writing_data: str | Path, model: str, model_nb: int | None) -> RunDirectory:
    """Make the directory of a new run: number `model_nb`, or where None the number after the last one there.

    Making a directory succeeds for one process only, so two jobs never get the same number.

    Raises
    ------
    SettingError
        The run `model_nb` exists.
    """
    parent = Path(path_writing_data)
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(m[1]) for m in (re.fullmatch(rf'{model}_(\d+)', path.name) for path in parent.iterdir()) if m]
    number = model_nb if model_nb is not None else max(numbers, default=0) + 1
    while True:
        path = parent / f'{model}_{number}'
        try:
            path.mkdir()
        except FileExistsError as fault:
            if model_nb is not None:
                raise SettingError(f'model_nb = {model_nb}: {path} exists; take another number, or None') from fault
            number += 1
        else:
            return RunDirectory(path)


def save_params(run: RunDirectory, command: str, settings: dict) -> None:
    """Write params.json: the command, every effective setting, the versions of the packages, the git revision."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    write_json(
        run.params,
        {
            'command': command,
            'settings': settings,
            'threads': torch.get_num_threads(),
            'versions': {'python': sys.version.split()[0], **versions},
            'git revision': _git_revision(),
        },
    )


def _git_revision():
    """The commit of the code, marked where files differ from it; None outside a git checkout."""
    git = ['git', '-C', str(ROOT)]
    try:
        revision = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, 'status', '--porcelain'], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + (' with local changes' if changed.stdout.strip() else '')


# ----------------------------------------------------------------------------------------- checkpoints
def checkpoint_saver(path_of: Callable[[str], Path], description: dict) -> Callable[[str, dict], None]:
    """Callback for `loop.train` that writes 'best' and 'last' checkpoints.

    Parameters
    ----------
    path_of : callable
        From 'best' or 'last' to the path.
    description : dict
        What is needed to build the network again; stored under 'network'.
    """

    def save(which, state):
        _save_checkpoint(path_of(which), state | {'network': description})

    return save


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint, weights and plain values only.

    Raises
    ------
    DataError
        The file is missing or is not a checkpoint.
    """
    if not Path(path).is_file():
        raise DataError(f'{path}: no such file')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as fault:  # a damaged file can raise anything at all
        raise DataError(f'{path}: not a checkpoint of this project ({type(fault).__name__})') from fault


def save_threshold(path: str | Path, threshold: float) -> None:
    """Add the decision threshold to the classifier's checkpoint, so that whoever uses the run applies the same."""
    _save_checkpoint(path, load_checkpoint(path) | {'threshold': threshold})


def _save_checkpoint(path, state):
    content = io.BytesIO()  # on a full disk, torch.save to a file ends in an error of its own that says nothing
    torch.save(state, content)
    with writing(path) as temporary:
        temporary.write_bytes(content.getvalue())


# ----------------------------------------------------------------------------------------------- tables
def save_predictions(run: RunDirectory, predictions: pd.DataFrame) -> None:
    """Write the predictions of the tested sub-windows, one row each."""
    with writing(run.predictions) as temporary:
        predictions.to_csv(temporary, index=False)


def save_results(run: RunDirectory, rows: list[dict]) -> None:
    """Write the test figures, one row per fold."""
    with writing(run.results) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


# --------------------------------------------------------------------------------------------- pictures
def _save_figure(figure, path):
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def plot_losses(run: RunDirectory, histories: dict[str, list[dict]]) -> None:
    """Training and validation loss by epoch, one panel per network, the best epoch marked, the rate below."""
    figure, axes = plt.subplots(
        2, len(histories), figsize=(5 * len(histories), 5), sharex='col', squeeze=False, height_ratios=(3, 1),
        layout='constrained',
    )  # fmt: skip
    for (losses, rates), (name, history) in zip(axes.T, histories.items(), strict=True):
        table = pd.DataFrame(history).set_index('epoch')
        best = table['validation loss'].idxmin()
        losses.plot(table['training loss'], color=BLUE, marker='.', label='training')
        losses.plot(table['validation loss'], color=ORANGE, marker='.', label='validation')
        losses.axvline(best, color=GREY, linestyle=':', label=f'best epoch: {best}')
        losses.set(title=name, ylabel='loss')
        losses.legend()
        rates.plot(table['learning rate'], color=GREY, marker='.')
        rates.set(xlabel='epoch', ylabel='learning rate', ylim=(0, None))
        rates.xaxis.get_major_locator().set_params(integer=True)
    _save_figure(figure, run.losses)


def plot_test(run: RunDirectory, predictions: pd.DataFrame, figures: dict) -> None:
    """ROC, precision-recall and confusion matrix of the test set, each a picture in the run's figures/.

    The two curves are left out where the test set lacks spikes or lacks anything else.
    """
    test, proba = predictions['test'].to_numpy(), predictions['proba'].to_numpy()
    if np.isfinite(figures['ROC-AUC']):
        false_rate, true_rate, _ = roc_curve(test, proba)
        figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
        axis.plot(false_rate, true_rate, color=BLUE, label=f'classifier, area {figures["ROC-AUC"]:.3f}')
        axis.plot([0, 1], [0, 1], color=GREY, linestyle=':', label='chance, area 0.5')
        axis.plot(1 - figures['specificity'], figures['sensitivity'], 'o', color=ORANGE, label='threshold')
        axis.set(xlabel='1 - specificity', ylabel='sensitivity', title='ROC, test sub-windows')
        axis.legend(loc='lower right')
        _save_figure(figure, run.figures / 'roc.png')

        precision, recall, _ = precision_recall_curve(test, proba)
        chance = figures['PR-AUC of chance']
        figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
        axis.plot(recall, precision, color=BLUE, label=f'classifier, area {figures["PR-AUC"]:.3f}')
        axis.axhline(chance, color=GREY, linestyle=':', label=f'chance, area {chance:.3f}')
        if np.isfinite(figures['precision']):
            axis.plot(figures['sensitivity'], figures['precision'], 'o', color=ORANGE, label='threshold')
        axis.set(xlabel='sensitivity (recall)', ylabel='precision', title='Precision and recall, test sub-windows')
        axis.set_ylim(0, 1.02)
        axis.legend(loc='upper right')
        _save_figure(figure, run.figures / 'precision_recall.png')

    matrix = np.asarray(figures['confusion matrix'])
    figure, axis = plt.subplots(figsize=(4, 4), layout='constrained')
    # Shares of each row: with 3 % of spikes, counts would leave one square dark and three white.
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap='Blues', vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        colour = 'white' if share[row, column] > 0.5 else 'black'
        axis.text(column, row, f'{count}\n{share[row, column]:.1%}', ha='center', va='center', color=colour)
    axis.set_xticks([0, 1], ['nothing', 'spike'])
    axis.set_yticks([0, 1], ['nothing', 'spike'])
    axis.set(xlabel='predicted', ylabel='annotated', title='Test sub-windows')
    _save_figure(figure, run.figures / 'confusion_matrix.png')


# ----------------------------------------------------------------------------------------------- report
def write_report(run: RunDirectory, command: str, settings: dict, summary: dict[str, str], results: list[dict]) -> None:
    """Write report.html, one self-contained page: command, summary, test figures, pictures, settings.

    Parameters
    ----------
    summary : dict
        Short facts about the run, name to text.
    results : list of dict
        The rows of the results table.
    """
    report = mne.Report(title=f'{run.name}: spike detection in MEG', verbose=False)
    report.add_html(f'<pre>{html.escape(command)}</pre>', title='Command')
    report.add_html(_html_table(pd.Series(summary).to_frame('')), title='Summary')
    report.add_html(_html_table(pd.DataFrame(results).T), title='Figures on the test set')
    for path in [run.losses, *sorted(run.figures.glob('*.png'))]:
        report.add_image(path, title='loss curves' if path == run.losses else path.stem.replace('_', ' '))
    report.add_html(_html_table(pd.Series(settings, dtype=object).map(repr).to_frame('')), title='Settings')
    with writing(run.report) as temporary:
        report.save(temporary, open_browser=False, overwrite=True, verbose=False)


def _html_table(table):
    return table.to_html(header=table.shape[1] > 1, classes='table table-sm', border=0, float_format='{:.3f}'.format)
