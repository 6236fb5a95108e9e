"""The page of a run: command, facts, metrics, pictures, patients, settings."""

import html
from typing import NamedTuple

import mne
import pandas as pd

from evaluation.intervals import Evaluation
from evaluation.metrics import MAIN_METRICS
from runs.run_directory import RunDirectory
from utils import writing

CAPTIONS = {
    'calibration': 'Of the sub-windows given a probability p, a share p should hold a spike.',
    'confusion_matrix': 'Sub-windows by annotation and decision, with shares of each row.',
    'contrast': 'How much worse the autoencoder reconstructs signal around annotated spikes, per band; with masking, '
    'signal that was masked.',
    'error_maps': 'Where and when the reconstruction fails, with the annotation and the probability below. With '
    'masking, every scored sub-window was masked in turn, and nothing is shown outside them.',
    'events': 'Spikes found against false alarms, for every threshold.',
    'latent': 'What the autoencoder keeps of the signal, seen along its two main directions (left) and along the one '
    'that best separates spikes on training patients (right).',
    'patients': 'The same metrics patient by patient.',
    'precision_recall': 'Precision against the share of spike sub-windows found, for every threshold.',
    'roc': 'Share of spike sub-windows found against share of others called spikes, for every threshold.',
    'topographies': 'Where over the helmet the error lies at detected events.',
    'traces': 'The surest detections that are annotated, the surest that are not, and spikes that were missed.',
}


class RunFacts(NamedTuple):
    """What the page says of a run besides its evaluation.

    Attributes
    ----------
    command : str
        As it was typed.
    full_command : str
        With every setting: it repeats the run whatever params.py says.
    settings : dict
    facts : dict
        Short facts, name to text.
    """

    command: str
    full_command: str
    settings: dict
    facts: dict[str, str]


def write_report(
    run: RunDirectory, described: RunFacts, metrics: dict, evaluation: Evaluation, rows: list[dict]
) -> None:
    """Write report.html, one self-contained page: command, facts, metrics, pictures, patients, settings.

    Parameters
    ----------
    run : RunDirectory
    described : RunFacts
    metrics : dict
        The content of metrics.json.
    evaluation : Evaluation
    rows : list of dict
        The rows of the results table, one per fold.
    """
    report = mne.Report(title=f'{run.name}: spike detection in MEG', verbose=False)
    add_commands(report, described)
    report.add_html(html_table(pd.Series(described.facts).to_frame('')), title='Summary')
    report.add_html(html_table(main_metrics(metrics, evaluation)), title='Main metrics on the test set')
    report.add_html(html_table(pd.DataFrame(rows).T), title='All metrics')
    shown = ['subject', 'spikes', 'blocks', 'minutes', *MAIN_METRICS]
    report.add_html(html_table(evaluation.patients[shown].set_index('subject')), title='Patients')
    add_pictures(report, run)
    settings = pd.Series(described.settings, dtype=object).map(repr)
    report.add_html(html_table(settings.to_frame('')), title='Settings')
    with writing(run.report) as temporary:
        report.save(temporary, open_browser=False, overwrite=True, verbose=False)


def add_commands(report: mne.Report, described: RunFacts) -> None:
    """Put the command on the page: as it was typed, and folded away with every setting."""
    typed, full = (html.escape(printable(command)) for command in (described.command, described.full_command))
    report.add_html(
        f'<pre>{typed}</pre><details><summary>with every setting, whatever params.py says</summary>'
        f'<pre style="white-space: pre-wrap">{full}</pre></details>',
        title='Command',
    )


def main_metrics(metrics: dict, evaluation: Evaluation) -> pd.DataFrame:
    """Table of the main metrics: pooled, with intervals, and means over patients and, of several, folds."""
    intervals = {name: '{:.3f} to {:.3f}'.format(*metrics['intervals'][name]) for name in MAIN_METRICS}
    table = pd.DataFrame(
        {
            'pooled': {name: evaluation.result[name] for name in MAIN_METRICS},
            '95 % interval over patients': intervals,
            'mean over patients': metrics['means over patients'],
        }
    )
    if 'folds' in metrics:
        table['mean ± std over folds'] = {
            name: f'{fold_metric["mean"]:.3f} ± {fold_metric["std"]:.3f}'
            for name, fold_metric in metrics['folds'].items()
        }
    return table


def add_pictures(report: mne.Report, run: RunDirectory) -> None:
    """Put the pictures of a run on the page: its loss curves, which a pooled run has not, and its figures."""
    if run.losses.is_file():
        report.add_image(run.losses, title='loss curves')
    for path in sorted(run.figures.glob('*.png')):
        report.add_image(path, title=path.stem.replace('_', ' '), caption=CAPTIONS.get(path.stem))


def html_table(table: pd.DataFrame) -> str:
    """HTML of a table; the names of the columns are shown where there are several."""
    page = table.to_html(header=table.shape[1] > 1, classes='table table-sm', border=0, float_format='{:.3f}'.format)
    return printable(page)


def printable(text: str) -> str:
    """Text that a page can hold: bytes of a file name that are not UTF-8 become escapes, as on the console."""
    return text.encode('utf-8', 'backslashreplace').decode()
