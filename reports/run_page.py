"""The page of a run, read from the top: summary, pictures in the order of the questions, figures, settings."""

import html
from typing import NamedTuple

import mne
import pandas as pd

from evaluation.intervals import Evaluation
from evaluation.metrics import MAIN_METRICS
from reports.run_summary import summary_sentences
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
    'losses': 'Losses, figures of the validation (of a network as classifier), and learning rate, epoch by epoch.',
    'latent': 'What the autoencoder keeps of the signal, seen along its two main directions (left) and along the one '
    'that best separates spikes on training patients (right).',
    'patients': 'The same metrics patient by patient.',
    'precision_recall': 'Precision against the share of spike sub-windows found, for every threshold.',
    'roc': 'Share of spike sub-windows found against share of others called spikes, for every threshold.',
    'topographies': 'Where over the helmet the error lies at detected events.',
    'traces': 'The surest detections that are annotated, the surest that are not, and spikes that were missed.',
}


# The pictures in the order of the questions that they answer.
QUESTIONS = {
    'Does it find them?': ('events', 'patients', 'precision_recall', 'roc', 'confusion_matrix', 'calibration'),
    'What does it find wrongly?': ('traces',),
    'Where?': ('topographies', 'error_maps'),
    'How did it train?': ('losses', 'contrast', 'latent'),
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
    """Write report.html, one self-contained page: summary, pictures, figures, patients, settings, command.

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
    sentences = ''.join(f'<li>{html.escape(sentence)}</li>' for sentence in summary_sentences(metrics, evaluation))
    report.add_html(f'<ul>{sentences}</ul>', title='Summary')
    add_pictures(report, run)
    report.add_html(html_table(pd.Series(described.facts).to_frame('')), title='How it was made and tested')
    report.add_html(html_table(main_metrics(metrics, evaluation)), title='Main metrics on the test set')
    shown = ['subject', 'spikes', 'blocks', 'minutes', *MAIN_METRICS]
    report.add_html(html_table(evaluation.patients[shown].set_index('subject')), title='Patients')
    report.add_html(html_table(pd.DataFrame(rows).T), title='All metrics')
    settings = pd.Series(described.settings, dtype=object).map(repr)
    report.add_html(html_table(settings.to_frame('')), title='Settings')
    add_commands(report, described)
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
    """Put the pictures of a run on the page, under the questions that they answer; a pooled run has no loss curves."""
    pictures = {path.stem: path for path in sorted(run.figures.glob('*.png'))}
    if run.losses.is_file():
        pictures['losses'] = run.losses
    others = [name for name in pictures if name not in sum(QUESTIONS.values(), ())]
    for question, names in (QUESTIONS | {'Other pictures': others}).items():
        for name in names:
            if name in pictures:
                title, caption = name.replace('_', ' '), CAPTIONS.get(name)
                report.add_image(pictures[name], title=f'{question} {title}', caption=caption, section=question)


def html_table(table: pd.DataFrame) -> str:
    """HTML of a table; the names of the columns are shown where there are several."""
    page = table.to_html(header=table.shape[1] > 1, classes='table table-sm', border=0, float_format='{:.3f}'.format)
    return printable(page)


def printable(text: str) -> str:
    """Text that a page can hold: bytes of a file name that are not UTF-8 become escapes, as on the console."""
    return text.encode('utf-8', 'backslashreplace').decode()
