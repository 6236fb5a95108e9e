"""Tables and pictures of a run; those of single windows are in reports/window_pictures.py."""

import contextlib
import fcntl
import io
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from evaluation.intervals import Evaluation
from evaluation.metrics import PREDICTION_COLUMNS, calibration_bins
from loop import best_epoch
from runs.run_directory import RunDirectory
from utils import DataError, writing

mpl.use('Agg')  # batch jobs have no screen
# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREY = '#0072B2', '#E69F00', '#666666'


# ----------------------------------------------------------------------------------------------- tables
def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, without its index."""
    with writing(path) as temporary:
        table.to_csv(temporary, index=False)


def _read_tables(*paths: Path, way_out: str) -> list[pd.DataFrame]:
    tables = []
    for path in paths:
        try:
            tables.append(pd.read_csv(path))
        except (OSError, ValueError) as fault:
            raise DataError(f'{path}: cannot be read as a table ({fault}); {way_out}') from fault
    return tables


def save_evaluation(run: RunDirectory, evaluation: Evaluation, rows: list[dict]) -> None:
    """Write the tables of predictions, results (one row per fold), patients, events, and the pictures' curves."""
    save_table(run.predictions, evaluation.predictions[PREDICTION_COLUMNS])
    save_table(run.results, pd.DataFrame(rows))
    save_table(run.patients, evaluation.patients)
    save_table(run.events, evaluation.events)
    predictions = evaluation.predictions
    bins = calibration_bins(predictions['test'].to_numpy(), predictions['proba'].to_numpy())
    save_table(run.figures / 'calibration.csv', bins)
    save_table(run.figures / 'events.csv', evaluation.curve)


def save_peaks(run: RunDirectory, predictions: pd.DataFrame) -> None:
    """Write the columns of a fold's predictions that pooling the folds needs and predictions.csv lacks."""
    save_table(run.peaks, predictions[['field', 'peak']])


def load_predictions(run: RunDirectory) -> pd.DataFrame:
    """Read the predictions of a finished fold, bit for bit, see `evaluation.events.merge_events`.

    Raises
    ------
    DataError
        A table is missing or damaged.
    """
    tables = _read_tables(run.predictions, run.peaks, way_out=f'remove {run.path} and train it again')
    return pd.concat(tables, axis=1)


def load_tested(run: RunDirectory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the predictions and patients of a finished run, for `evaluation.intervals.compare`.

    Returns
    -------
    predictions, patients : DataFrame

    Raises
    ------
    DataError
        A table is missing or damaged.
    """
    predictions, patients = _read_tables(run.predictions, run.patients, way_out='finish the run again')
    try:
        return predictions, patients.assign(**{'confusion matrix': patients['confusion matrix'].map(json.loads)})
    except (KeyError, TypeError, ValueError) as fault:
        raise DataError(f'{run.patients}: not the patients of a run ({fault}); finish the run again') from fault


def load_detections(run: RunDirectory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the tested sub-windows (with subject, block, timing, pred) and the events of a finished run.

    Raises
    ------
    DataError
        A table is missing or damaged.
    """
    tested, events = _read_tables(run.predictions, run.events, way_out='finish the run again')
    lacking = {'subject', 'block', 'timing', 'pred'} - set(tested) | {'subject', 'block', 'sample'} - set(events)
    if lacking:
        raise DataError(f'{run.predictions} or {run.events}: no column {sorted(lacking)[0]}; finish the run again')
    return tested, events


def save_comparison(path_writing_data: str | Path, a: RunDirectory, b: RunDirectory, table: pd.DataFrame) -> Path:
    """Write the comparison of two runs and return its path."""
    path = Path(path_writing_data) / f'compare_{a.name}_{b.name}.csv'
    save_table(path, table.reset_index())
    return path


def save_summary_row(path_writing_data: str | Path, row: dict) -> None:
    """Append a run's row to summary.csv; jobs that end at the same time wait for each other.

    A table with other columns, of an older version, is renamed summary_old_<n>.csv. An identical row is not written
    a second time: a run that was killed after writing its row comes here again.
    """
    path = Path(path_writing_data) / 'summary.csv'
    with path.with_name('.summary.lock').open('w') as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        table = pd.DataFrame([row])
        if path.is_file() and path.stat().st_size:
            header = path.read_text().split('\n', 1)[0]
            if header == ','.join(table.columns):
                earlier = pd.read_csv(path, dtype=str, keep_default_na=False)
                new = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str, keep_default_na=False)
                table = pd.concat([earlier, new]).drop_duplicates()
            else:
                number = len(list(path.parent.glob('summary_old_*.csv'))) + 1
                path.rename(path.with_name(f'summary_old_{number}.csv'))
        save_table(path, table)


# --------------------------------------------------------------------------------------------- pictures
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a picture and close it."""
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def plot_losses(run: RunDirectory, histories: dict[str, list[dict]], early_stop_on: str) -> None:
    """Draw losses, figures of the validation and learning rate by epoch, with the best epoch, a column per network.

    Parameters
    ----------
    run : RunDirectory
    histories : dict
        Name of a network to the history of its training, see `loop.train`. The history of a classifier that is no
        network is empty.
    early_stop_on : str
        The setting of this name, of those with figures of spikes.
    """
    histories = {name: history for name, history in histories.items() if history}
    figure, axes = plt.subplots(
        3, len(histories), figsize=(5 * len(histories), 7), sharex='col', squeeze=False, height_ratios=(3, 3, 1),
        layout='constrained',
    )  # fmt: skip
    for (losses, curves, rates), (name, history) in zip(axes.T, histories.items(), strict=True):
        table = pd.DataFrame(history).set_index('epoch')
        finds_spikes = 'PR-AUC' in table
        best = best_epoch(history, early_stop_on if finds_spikes else 'loss')
        plot_epoch_metrics(curves, table, best) if finds_spikes else curves.set_axis_off()
        losses.plot(table['training loss'], color=BLUE, marker='.', label='training')
        losses.plot(table['validation loss'], color=ORANGE, marker='.', label='validation')
        losses.axvline(best, color=GREY, linestyle=':', label=f'best epoch: {best}')
        losses.set(title=name, ylabel='loss')
        losses.legend()
        rates.plot(table['learning rate'], color=GREY, marker='.')
        rates.set(xlabel='epoch', ylabel='learning rate', ylim=(0, None))
        rates.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, run.losses)


def plot_epoch_metrics(axis: Axes, table: pd.DataFrame, best: int) -> None:
    """Draw figures of a classifier's validation by epoch (see `EPOCH_METRICS`), with the best epoch."""
    axis.plot(table['PR-AUC'], color=BLUE, linewidth=2, label='PR-AUC')
    for metric, style in (('F1', '-'), ('recall', '--'), ('precision', ':')):
        axis.plot(table[metric], color=ORANGE, linestyle=style, label=f'{metric}, best threshold so far')
        axis.plot(table[f'{metric} at 0.5'], color=GREY, linestyle=style, label=f'{metric} at 0.5')
    axis.axvline(best, color=GREY, linestyle=':')
    axis.set(ylabel='validation', ylim=(0, 1.02))
    axis.legend(fontsize='x-small', ncols=2)


def plot_metrics(run: RunDirectory, evaluation: Evaluation) -> None:
    """Draw the metrics of a test, each a picture in the run's figures/.

    Curves that are undefined, because the test set lacks sub-windows with or without spikes, are left out.
    """
    if np.isfinite(evaluation.result['ROC-AUC']):
        plot_roc(run, evaluation)
        plot_precision_recall(run, evaluation)
        plot_calibration(run, evaluation)
        plot_event_curve(run, evaluation)
    plot_confusion_matrix(run, evaluation)
    plot_patients(run, evaluation)


def _labels_and_probabilities(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and probabilities (n,) of the test sub-windows."""
    return evaluation.predictions['test'].to_numpy(), evaluation.predictions['proba'].to_numpy()


def plot_roc(run: RunDirectory, evaluation: Evaluation) -> None:
    """Draw the ROC curve of the sub-windows, with chance and the threshold."""
    result = evaluation.result
    false_rate, true_rate, _ = roc_curve(*_labels_and_probabilities(evaluation))
    figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
    axis.plot(false_rate, true_rate, color=BLUE, label=f'classifier, area {result["ROC-AUC"]:.3f}')
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=':', label='chance, area 0.5')
    axis.plot(1 - result['specificity'], result['sensitivity'], 'o', color=ORANGE, label='threshold')
    axis.set(xlabel='1 - specificity', ylabel='sensitivity', title='ROC, test sub-windows')
    axis.legend(loc='lower right')
    save_figure(figure, run.figures / 'roc.png')


def plot_precision_recall(run: RunDirectory, evaluation: Evaluation) -> None:
    """Draw the precision-recall curve of the sub-windows, with chance and the threshold."""
    result = evaluation.result
    precision, recall, _ = precision_recall_curve(*_labels_and_probabilities(evaluation))
    chance = result['PR-AUC of chance']
    figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
    axis.plot(recall, precision, color=BLUE, label=f'classifier, area {result["PR-AUC"]:.3f}')
    axis.axhline(chance, color=GREY, linestyle=':', label=f'chance, area {chance:.3f}')
    if np.isfinite(result['precision']):
        axis.plot(result['sensitivity'], result['precision'], 'o', color=ORANGE, label='threshold')
    axis.set(xlabel='sensitivity (recall)', ylabel='precision', title='Precision and recall, test sub-windows')
    axis.set_ylim(0, 1.02)
    figure.legend(loc='outside lower center', ncols=3, fontsize='small')  # inside it would hide the curve
    save_figure(figure, run.figures / 'precision_recall.png')


def plot_calibration(run: RunDirectory, evaluation: Evaluation) -> None:
    """Draw the share of spikes against the probability of the sub-windows, in bins."""
    bins = calibration_bins(*_labels_and_probabilities(evaluation))
    figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
    top = max(0.05, 1.1 * bins[['mean probability', 'share of spikes']].to_numpy().max())
    axis.plot([0, top], [0, top], color=GREY, linestyle=':', label='perfectly calibrated')
    error = evaluation.result['calibration error']
    axis.plot(bins['mean probability'], bins['share of spikes'], color=BLUE, marker='o', label=f'error {error:.3f}')
    axis.set(xlabel='mean probability in bin', ylabel='share of spikes in bin', title='Calibration, test sub-windows')
    axis.legend(loc='upper left')
    save_figure(figure, run.figures / 'calibration.png')


def plot_event_curve(run: RunDirectory, evaluation: Evaluation) -> None:
    """Draw the sensitivity to annotated spikes against false alarms per minute, for every threshold."""
    result, curve = evaluation.result, evaluation.curve.sort_values('threshold', ascending=False)
    figure, axis = plt.subplots(figsize=(5, 4.5), layout='constrained')
    axis.plot(curve['false alarms/min'], curve['sensitivity'], color=BLUE, marker='.', label='by threshold')
    axis.plot(result['false alarms/min'], result['event sensitivity'], 'o', color=ORANGE, label='threshold')
    axis.set(xlabel='false alarms per minute', ylabel='share of annotated spikes found', title='Test events')
    axis.set_ylim(0, 1.02)
    axis.legend(loc='lower right')
    save_figure(figure, run.figures / 'events.png')


def plot_confusion_matrix(run: RunDirectory, evaluation: Evaluation) -> None:
    """Draw the confusion matrix of the sub-windows, with counts and shares of each row."""
    matrix = np.asarray(evaluation.result['confusion matrix'])
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
    save_figure(figure, run.figures / 'confusion_matrix.png')


def plot_patients(run: RunDirectory, evaluation: Evaluation) -> None:
    """Draw a bar per test patient for three metrics; a metric that is undefined without spikes says so."""
    patients = evaluation.patients
    size = max(4.5, 0.5 * len(patients)), 6
    figure, axes = plt.subplots(3, 1, figsize=size, sharex=True, layout='constrained')
    names = patients['subject'].astype(str)
    colours = {'PR-AUC': BLUE, 'event sensitivity': BLUE, 'false alarms/min': ORANGE}
    for axis, (metric, colour) in zip(axes, colours.items(), strict=True):
        axis.bar(names, patients[metric].fillna(0), color=colour)
        for index in np.flatnonzero(patients[metric].isna()):
            axis.text(index, 0, 'no spikes', rotation=90, ha='center', va='bottom', color=GREY)
        axis.set_ylabel(metric)
        if metric != 'false alarms/min':
            axis.set_ylim(0, 1)
    axes[-1].set_xlabel('test patient')
    save_figure(figure, run.figures / 'patients.png')


def draw_channels(axis: Axes, times: np.ndarray, signal: np.ndarray) -> None:
    """Draw all channels of a signal (n_channels, n_times) at times (n_times,) in s, and their field power."""
    # One line with gaps is drawn much faster than a line per channel.
    lines = np.pad(signal, ((0, 0), (0, 1)), constant_values=np.nan).ravel()
    axis.plot(np.tile(np.append(times, np.nan), len(signal)), lines, color=GREY, linewidth=0.3, alpha=0.5)
    axis.plot(times, signal.std(axis=0), color=BLUE, linewidth=2, label='field power')
    axis.margins(x=0)
