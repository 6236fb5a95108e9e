"""The page of a run: command, facts, metrics, pictures, patients, settings."""

import html

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
    'signal that was hidden from it.',
    'error_maps': 'Where and when the reconstruction fails, with the annotation and the probability below. With '
    'masking, each judged sub-window was hidden in turn, and nothing is shown outside them.',
    'events': 'Spikes found against false alarms, for every threshold.',
    'latent': 'What the autoencoder keeps of the signal, seen from its two main directions (left) and from the one '
    'that best separates spikes on training patients (right).',
    'patients': 'The same figures patient by patient.',
    'precision_recall': 'Precision against the share of spike sub-windows found, for every threshold.',
    'roc': 'Share of spike sub-windows found against share of others called spikes, for every threshold.',
    'topographies': 'Where over the helmet the error lies at detected events.',
    'traces': 'The surest detections that are annotated, the surest that are not, and spikes that were missed.',
}


def write_report(
    run: RunDirectory,
    commands: tuple[str, str],
    settings: dict,
    facts: dict[str, str],
    metrics: dict,
    evaluation: Evaluation,
    rows: list[dict],
) -> None:
    """Write report.html, one self-contained page: command, facts, figures, pictures, patients, settings.

    Parameters
    ----------
    commands : (str, str)
        As it was typed, and with every setting, which repeats the run whatever params.py says.
    facts : dict
        Short facts about the run, name to text.
    metrics : dict
        The content of metrics.json.
    rows : list of dict
        The rows of the results table, one per fold.
    """
    result = evaluation.result
    main = pd.DataFrame(
        {
            'pooled': {name: result[name] for name in MAIN_METRICS},
            '95 % interval over patients': {
                name: '{:.3f} to {:.3f}'.format(*metrics['intervals'][name]) for name in MAIN_METRICS
            },
            'mean over patients': metrics['means over patients'],
        }
    )
    if 'folds' in metrics:
        folds = metrics['folds']
        main['mean ± std over folds'] = {name: f'{one["mean"]:.3f} ± {one["std"]:.3f}' for name, one in folds.items()}
    report = mne.Report(title=f'{run.name}: spike detection in MEG', verbose=False)
    typed, whole = (html.escape(printable(command)) for command in commands)
    report.add_html(
        f'<pre>{typed}</pre><details><summary>with every setting, whatever params.py says</summary>'
        f'<pre style="white-space: pre-wrap">{whole}</pre></details>',
        title='Command',
    )
    report.add_html(html_table(pd.Series(facts).to_frame('')), title='Summary')
    report.add_html(html_table(main), title='Main figures on the test set')
    report.add_html(html_table(pd.DataFrame(rows).T), title='All figures')
    shown = ['subject', 'spikes', 'minutes', *MAIN_METRICS]
    report.add_html(html_table(evaluation.patients[shown].set_index('subject')), title='Patients')
    for path in [*[run.losses] * run.losses.is_file(), *sorted(run.figures.glob('*.png'))]:
        title = 'loss curves' if path == run.losses else path.stem.replace('_', ' ')
        report.add_image(path, title=title, caption=CAPTIONS.get(path.stem))
    report.add_html(html_table(pd.Series(settings, dtype=object).map(repr).to_frame('')), title='Settings')
    with writing(run.report) as temporary:
        report.save(temporary, open_browser=False, overwrite=True, verbose=False)


def html_table(table: pd.DataFrame) -> str:
    """A table for a page; the names of the columns are shown where there are several."""
    page = table.to_html(header=table.shape[1] > 1, classes='table table-sm', border=0, float_format='{:.3f}'.format)
    return printable(page)


def printable(text: str) -> str:
    """Text that a page can hold: bytes in the name of a file that are not UTF-8 become escapes, as on the console."""
    return text.encode('utf-8', 'backslashreplace').decode()
