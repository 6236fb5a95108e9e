"""Tables and pictures of a run."""

import contextlib
import fcntl
import io
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import mne
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import precision_recall_curve, roc_curve

from evaluation.intervals import Evaluation
from evaluation.metrics import PREDICTION_COLUMNS, calibration_bins
from runs.run_directory import RunDirectory
from utils import DataError, writing

mpl.use('Agg')  # batch jobs have no screen
# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREY = '#0072B2', '#E69F00', '#666666'


# ----------------------------------------------------------------------------------------------- tables
def _save_table(path, table):
    with writing(path) as temporary:
        table.to_csv(temporary, index=False)


def _read_tables(*paths, way_out):
    tables = []
    for path in paths:
        try:
            tables.append(pd.read_csv(path))
        except (OSError, ValueError) as fault:
            raise DataError(f'{path}: cannot be read as a table ({fault}); {way_out}') from fault
    return tables


def save_evaluation(run: RunDirectory, evaluation: Evaluation, rows: list[dict]) -> None:
    """Write predictions, results (one row per fold), patients, events, and the curves of the pictures."""
    _save_table(run.predictions, evaluation.predictions[PREDICTION_COLUMNS])
    _save_table(run.results, pd.DataFrame(rows))
    _save_table(run.patients, evaluation.patients)
    _save_table(run.events, evaluation.events)
    predictions = evaluation.predictions
    bins = calibration_bins(predictions['test'].to_numpy(), predictions['proba'].to_numpy())
    _save_table(run.figures / 'calibration.csv', bins)
    _save_table(run.figures / 'events.csv', evaluation.curve)


def save_peaks(run: RunDirectory, predictions: pd.DataFrame) -> None:
    """Write what, of the predictions of a fold, is not in their table, and what the summary above it needs."""
    _save_table(run.peaks, predictions[['field', 'peak']])


def load_predictions(run: RunDirectory) -> pd.DataFrame:
    """Predictions of a finished fold, number for number as they were, see `evaluation.merge_events`.

    Raises
    ------
    DataError
        A table is missing or damaged.
    """
    tables = _read_tables(run.predictions, run.peaks, way_out=f'remove {run.path} and train it again')
    return pd.concat(tables, axis=1)


def load_tested(run: RunDirectory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and patients of a finished run, as `evaluation.compare` takes them.

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


def save_comparison(path_writing_data: str | Path, a: RunDirectory, b: RunDirectory, table: pd.DataFrame) -> Path:
    """Write the comparison of two runs and return its path."""
    path = Path(path_writing_data) / f'compare_{a.name}_{b.name}.csv'
    _save_table(path, table.reset_index())
    return path


def save_summary_row(path_writing_data: str | Path, row: dict) -> None:
    """Append a run's row to summary.csv; jobs that end at once wait for each other.

    A table with other columns, of an older version, is kept as summary_old_<n>.csv. The very same row is not written
    again: a run that was killed right after it writes it twice.
    """
    path = Path(path_writing_data) / 'summary.csv'
    with path.with_name('.summary.lock').open('w') as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        table = pd.DataFrame([row])
        if path.is_file() and path.stat().st_size:
            found = path.read_text().split('\n', 1)[0]
            if found == ','.join(table.columns):
                earlier = pd.read_csv(path, dtype=str, keep_default_na=False)
                new = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str, keep_default_na=False)
                table = pd.concat([earlier, new]).drop_duplicates()
            else:
                number = len(list(path.parent.glob('summary_old_*.csv'))) + 1
                path.rename(path.with_name(f'summary_old_{number}.csv'))
        _save_table(path, table)


# --------------------------------------------------------------------------------------------- pictures
def _save_figure(figure, path):
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def plot_losses(run: RunDirectory, histories: dict[str, list[dict]]) -> None:
    """Training and validation loss by epoch, one panel per network, the best epoch marked, the rate below.

    Parameters
    ----------
    histories : dict
        Name to the history of its training, see `loop.train`; empty for a classifier that is no network.
    """
    histories = {name: history for name, history in histories.items() if history}
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


def plot_metrics(run: RunDirectory, evaluation: Evaluation) -> None:
    """ROC, precision-recall, calibration, confusion matrix, sensitivity against false alarms, and a bar per patient,
    each a picture in the run's figures/.

    Curves that are undefined, where the test set lacks spikes or lacks anything else, are left out.
    """
    predictions, result = evaluation.predictions, evaluation.result
    test, proba = predictions['test'].to_numpy(), predictions['proba'].to_numpy()
    if np.isfinite(result['ROC-AUC']):
        false_rate, true_rate, _ = roc_curve(test, proba)
        figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
        axis.plot(false_rate, true_rate, color=BLUE, label=f'classifier, area {result["ROC-AUC"]:.3f}')
        axis.plot([0, 1], [0, 1], color=GREY, linestyle=':', label='chance, area 0.5')
        axis.plot(1 - result['specificity'], result['sensitivity'], 'o', color=ORANGE, label='threshold')
        axis.set(xlabel='1 - specificity', ylabel='sensitivity', title='ROC, test sub-windows')
        axis.legend(loc='lower right')
        _save_figure(figure, run.figures / 'roc.png')

        precision, recall, _ = precision_recall_curve(test, proba)
        chance = result['PR-AUC of chance']
        figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
        axis.plot(recall, precision, color=BLUE, label=f'classifier, area {result["PR-AUC"]:.3f}')
        axis.axhline(chance, color=GREY, linestyle=':', label=f'chance, area {chance:.3f}')
        if np.isfinite(result['precision']):
            axis.plot(result['sensitivity'], result['precision'], 'o', color=ORANGE, label='threshold')
        axis.set(xlabel='sensitivity (recall)', ylabel='precision', title='Precision and recall, test sub-windows')
        axis.set_ylim(0, 1.02)
        axis.legend(loc='upper right')
        _save_figure(figure, run.figures / 'precision_recall.png')

        bins = calibration_bins(test, proba)
        figure, axis = plt.subplots(figsize=(4.5, 4.5), layout='constrained')
        top = max(0.05, 1.1 * bins[['mean probability', 'share of spikes']].to_numpy().max())
        axis.plot([0, top], [0, top], color=GREY, linestyle=':', label='perfectly calibrated')
        points = bins['mean probability'], bins['share of spikes']
        axis.plot(*points, color=BLUE, marker='o', label=f'error {result["calibration error"]:.3f}')
        axis.set(
            xlabel='mean probability in bin', ylabel='share of spikes in bin', title='Calibration, test sub-windows'
        )
        axis.legend(loc='upper left')
        _save_figure(figure, run.figures / 'calibration.png')

        figure, axis = plt.subplots(figsize=(5, 4.5), layout='constrained')
        curve = evaluation.curve.sort_values('threshold', ascending=False)
        axis.plot(curve['false alarms/min'], curve['sensitivity'], color=BLUE, marker='.', label='by threshold')
        axis.plot(result['false alarms/min'], result['event sensitivity'], 'o', color=ORANGE, label='threshold')
        axis.set(xlabel='false alarms per minute', ylabel='share of annotated spikes found', title='Test events')
        axis.set_ylim(0, 1.02)
        axis.legend(loc='lower right')
        _save_figure(figure, run.figures / 'events.png')

    matrix = np.asarray(result['confusion matrix'])
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

    patients = evaluation.patients
    figure, axes = plt.subplots(
        3, 1, figsize=(max(4.5, 0.5 * len(patients)), 6), sharex=True, layout='constrained'
    )  # fmt: skip
    names = patients['subject'].astype(str)
    for axis, name, colour in zip(
        axes, ('PR-AUC', 'event sensitivity', 'false alarms/min'), (BLUE, BLUE, ORANGE), strict=True
    ):
        axis.bar(names, patients[name].fillna(0), color=colour)
        for place in np.flatnonzero(patients[name].isna()):
            axis.text(place, 0, 'no spikes', rotation=90, ha='center', va='bottom', color=GREY)
        axis.set_ylabel(name)
        if name != 'false alarms/min':
            axis.set_ylim(0, 1)
    axes[-1].set_xlabel('test patient')
    _save_figure(figure, run.figures / 'patients.png')


def plot_error_maps(run: RunDirectory, maps: list[tuple], names: list[str], sfreq: float, threshold: float) -> None:
    """Errors of windows with spikes, channels grouped by region, above labels and probability.

    Parameters
    ----------
    maps : list of (title, errors, labels, (times, proba))
        Squared errors (channels, times), labels (times,), and the centres (samples) and probabilities of the
        sub-windows.
    names : list of str
        CTF names of the channels, of which the second and third letter are side and lobe.
    """
    # Left and right by lobe; the few channels of the midline together.
    regions = ['Z' if name[1] == 'Z' else name[1:3] for name in names]
    borders = [i for i in range(1, len(regions)) if regions[i] != regions[i - 1]]
    centres = [np.mean([i for i, region in enumerate(regions) if region == one]) for one in dict.fromkeys(regions)]
    figure, axes = plt.subplots(
        2,
        len(maps),
        figsize=(4.5 * len(maps), 6),
        sharex='col',
        squeeze=False,
        height_ratios=(4, 1),
        layout='constrained',
    )
    top = np.nanquantile(np.concatenate([errors.ravel() for _, errors, _, _ in maps]), 0.995)
    for (above, below), (title, errors, labels, (times, proba)) in zip(axes.T, maps, strict=True):
        end = len(labels) / sfreq
        image = above.imshow(errors, aspect='auto', cmap='viridis', vmin=0, vmax=top, extent=(0, end, len(names), 0))
        for border in borders:
            above.axhline(border, color='white', linewidth=0.5)
        above.set_yticks(centres, list(dict.fromkeys(regions)))
        above.set_title(title, fontsize=10)
        below.fill_between(np.arange(len(labels)) / sfreq, labels, color=ORANGE, alpha=0.6, label='annotated')
        below.step(np.asarray(times) / sfreq, proba, where='mid', color=BLUE, label='probability')
        below.axhline(threshold, color=GREY, linestyle=':', label='threshold')
        below.set(xlabel='time in the window (s)', ylim=(0, 1.05))
    axes[0, 0].set_ylabel('channels by region')
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
    figure.colorbar(image, ax=axes[0], label='squared error (scaled units)')
    _save_figure(figure, run.figures / 'error_maps.png')


def plot_contrast(run: RunDirectory, over_time: np.ndarray, around: np.ndarray, names: list[str]) -> None:
    """Mean error around spikes beside mean error elsewhere, per band.

    Parameters
    ----------
    over_time : array (n_windows, n_pairs, times)
        Squared errors averaged over channels.
    around : bool array (n_windows, times)
        The samples that annotated spikes mark.
    """
    if not around.any():
        return
    by_sample = over_time.swapaxes(0, 1)
    spikes, elsewhere = by_sample[:, around].mean(axis=1), by_sample[:, ~around].mean(axis=1)
    figure, axis = plt.subplots(figsize=(3 + 1.3 * len(names), 4), layout='constrained')
    places = np.arange(len(names))
    axis.bar(places - 0.2, elsewhere, 0.4, color=GREY, label='elsewhere')
    bars = axis.bar(places + 0.2, spikes, 0.4, color=BLUE, label='around annotated spikes')
    axis.bar_label(bars, [f'x {ratio:.2f}' for ratio in spikes / elsewhere])
    axis.set_xticks(places, [name.replace(': ', '\n') for name in names])
    axis.set(yscale='log', ylabel='mean squared error (scaled units)', title='Contrast, test windows')
    axis.set_ylim(0.5 * elsewhere.min(), 2 * spikes.max())
    figure.legend(loc='outside lower center', ncols=2)
    _save_figure(figure, run.figures / 'contrast.png')


def plot_latent(run: RunDirectory, latents: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    """First two principal components and linear discriminant of the latent statistics, fitted on training sub-windows
    and shown for test sub-windows.

    Parameters
    ----------
    latents, labels : dicts
        'train' and 'test': features (n, n_features) and labels (n,).
    """
    if len(set(labels['train'])) < 2:
        return
    mean, std = latents['train'].mean(axis=0), latents['train'].std(axis=0) + 1e-9
    train, test = ((latents[part] - mean) / std for part in ('train', 'test'))
    pca = PCA(2).fit(train)
    # Shrinkage: there are about as many features as sub-windows.
    lda = LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto').fit(train, labels['train'])
    scores, discriminant = pca.transform(test), lda.decision_function(test)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout='constrained')
    for label, name, colour, size in ((0, 'no spike', GREY, 6), (1, 'annotated spike', ORANGE, 16)):
        rows = labels['test'] == label
        left.scatter(*scores[rows].T, s=size, color=colour, label=f'{name} ({rows.sum()})', alpha=0.6, linewidth=0)
        if rows.any():
            right.hist(
                discriminant[rows], bins=40, density=True, histtype='step', color=colour, label=name, linewidth=2
            )
    shares = pca.explained_variance_ratio_
    left.set(xlabel=f'component 1 ({shares[0]:.0%})', ylabel=f'component 2 ({shares[1]:.0%})', title='Latent maps: PCA')
    left.legend()
    right.set(xlabel='linear discriminant', ylabel='density', title='Latent maps: LDA')
    right.legend()
    _save_figure(figure, run.figures / 'latent.png')


def draw_channels(axis: Axes, times: np.ndarray, signal: np.ndarray) -> None:
    """Draw all channels (n_channels, n_times) and their field power."""
    # One line with gaps is drawn much faster than a line per channel.
    lines = np.pad(signal, ((0, 0), (0, 1)), constant_values=np.nan).ravel()
    axis.plot(np.tile(np.append(times, np.nan), len(signal)), lines, color=GREY, linewidth=0.3, alpha=0.5)
    axis.plot(times, signal.std(axis=0), color=BLUE, linewidth=2, label='field power')
    axis.margins(x=0)


def plot_traces(run: RunDirectory, shown: list[tuple], sfreq: float) -> None:
    """Signals around hits, false alarms and misses, a column each.

    Parameters
    ----------
    shown : list of (kind, title, signal, errors, place, spikes)
        Signal (channels, times); the sample of the event (or missed spike) in it, and those of annotated spikes.
    """
    kinds = list(dict.fromkeys(one[0] for one in shown))
    if not kinds:
        return
    figure, axes = plt.subplots(3, len(kinds), figsize=(5 * len(kinds), 8), squeeze=False, layout='constrained')
    for column, kind in zip(axes.T, kinds, strict=True):
        of_kind = [one for one in shown if one[0] == kind]
        for axis, one in zip(column, of_kind, strict=False):
            _, title, signal, _, place, spikes = one
            first, last = max(place - round(0.4 * sfreq), 0), place + round(0.4 * sfreq)
            times = (np.arange(signal.shape[1]) - place)[first:last] / sfreq
            draw_channels(axis, times, signal[:, first:last])
            for spike in spikes:
                if first <= spike < last:
                    axis.axvline((spike - place) / sfreq, color=ORANGE, linewidth=2, label='annotated')
            if kind != 'missed':
                axis.axvline(0, color='black', linestyle=':', label='detected')
            axis.set_title(title, fontsize=10)
            handles, labels = axis.get_legend_handles_labels()
            unique = dict(zip(labels, handles, strict=True))
            axis.legend(unique.values(), unique.keys(), fontsize=7, loc='upper left')
        for axis in column[len(of_kind) :]:
            axis.set_axis_off()
        column[len(of_kind) - 1].set_xlabel('time (s)')
    for axis in axes[:, 0]:
        axis.set_ylabel('field (scaled units)')
    _save_figure(figure, run.figures / 'traces.png')


def plot_topographies(run: RunDirectory, shown: list[tuple], info: mne.Info, half: int) -> None:
    """Error over the helmet at detected events, averaged over `half` samples either side; `shown` as in
    `plot_traces`.
    """
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 3), squeeze=False, layout='constrained')
    for axis, (kind, title, _, errors, place, _) in zip(axes[0], shown, strict=True):
        error = np.nanmean(errors[:, max(place - half, 0) : place + half + 1], axis=1)
        image, _ = mne.viz.plot_topomap(error, info, axes=axis, show=False, cmap='viridis', vlim=(0, error.max()))
        axis.set_title(title.replace(f'{kind}: ', f'{kind}\n').replace(', block', ',\nblock'), fontsize=8)
        figure.colorbar(image, ax=axis, shrink=0.6, format='%.1f')
    figure.suptitle('Squared error at detected events (scaled units)', fontsize=10)
    _save_figure(figure, run.figures / 'topographies.png')
