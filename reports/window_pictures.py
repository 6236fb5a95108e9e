"""Pictures of single windows and errors: error maps, contrast, latent maps, traces and topographies of events."""

from typing import NamedTuple

import matplotlib.pyplot as plt
import mne
import numpy as np
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from runs.run_directory import RunDirectory
from saving_functions import BLUE, GREY, ORANGE, draw_channels, save_figure


class ErrorMap(NamedTuple):
    """The errors of a window with spikes, its labels and probabilities.

    Attributes
    ----------
    title : str
    errors : array (channels, times)
        Squared errors.
    labels : array (times,)
        1 around annotated spikes.
    centres, proba : array (n_subwindows,)
        Centres, in samples of the window, and probabilities of the sub-windows.
    """

    title: str
    errors: np.ndarray
    labels: np.ndarray
    centres: np.ndarray
    proba: np.ndarray


class EventExample(NamedTuple):
    """An event or a missed spike, and the window around it.

    Attributes
    ----------
    kind, title : str
        The kind is 'found', 'false alarm' or 'missed'.
    signal, errors : array (channels, times)
        Of the window.
    sample : int
        Of the event, or of the missed spike, in the window.
    spikes : list of int
        Samples of annotated spikes in the window.
    """

    kind: str
    title: str
    signal: np.ndarray
    errors: np.ndarray
    sample: int
    spikes: list[int]


def plot_error_maps(run: RunDirectory, maps: list[ErrorMap], names: list[str], sfreq: float, threshold: float) -> None:
    """Draw the errors of windows with spikes, channels grouped by region, above labels and probability.

    Parameters
    ----------
    run : RunDirectory
    maps : list of ErrorMap
    names : list of str
        CTF names of the channels. The second and third letters are side and lobe.
    sfreq : float
        In Hz.
    threshold : float
    """
    # Left and right by lobe; the few channels of the midline together.
    regions = np.array(['Z' if name[1] == 'Z' else name[1:3] for name in names])
    region_names = list(dict.fromkeys(regions.tolist()))
    borders = np.flatnonzero(regions[1:] != regions[:-1]) + 1
    centres = [np.flatnonzero(regions == region).mean() for region in region_names]
    figure, axes = plt.subplots(
        2, len(maps), figsize=(4.5 * len(maps), 6), sharex='col', squeeze=False, height_ratios=(4, 1),
        layout='constrained',
    )  # fmt: skip
    top = np.nanquantile(np.concatenate([error_map.errors.ravel() for error_map in maps]), 0.995)
    for (above, below), error_map in zip(axes.T, maps, strict=True):
        end = len(error_map.labels) / sfreq
        above.imshow(error_map.errors, aspect='auto', cmap='viridis', vmin=0, vmax=top, extent=(0, end, len(names), 0))
        for border in borders:
            above.axhline(border, color='white', linewidth=0.5)
        above.set_yticks(centres, region_names)
        above.set_title(error_map.title, fontsize=10)
        times = np.arange(len(error_map.labels)) / sfreq
        below.fill_between(times, error_map.labels, color=ORANGE, alpha=0.6, label='annotated')
        below.step(error_map.centres / sfreq, error_map.proba, where='mid', color=BLUE, label='probability')
        below.axhline(threshold, color=GREY, linestyle=':', label='threshold')
        below.set(xlabel='time in the window (s)', ylim=(0, 1.05))
    axes[0, 0].set_ylabel('channels by region')
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
    # All maps have the same scale.
    figure.colorbar(axes[0, -1].images[0], ax=axes[0], label='squared error (scaled units)')
    save_figure(figure, run.figures / 'error_maps.png')


def plot_contrast(run: RunDirectory, errors: np.ndarray, around: np.ndarray, names: list[str]) -> None:
    """Draw the mean error around spikes next to the mean error elsewhere, per band.

    Parameters
    ----------
    run : RunDirectory
    errors : array (n_windows, n_pairs, times)
        Squared errors averaged over channels.
    around : bool array (n_windows, times)
        The samples that annotated spikes mark.
    names : list of str
        Of the (reconstruction, target) pairs.
    """
    if not around.any():
        return
    by_sample = errors.swapaxes(0, 1)
    spikes, elsewhere = by_sample[:, around].mean(axis=1), by_sample[:, ~around].mean(axis=1)
    figure, axis = plt.subplots(figsize=(3 + 1.3 * len(names), 4), layout='constrained')
    positions = np.arange(len(names))
    axis.bar(positions - 0.2, elsewhere, 0.4, color=GREY, label='elsewhere')
    bars = axis.bar(positions + 0.2, spikes, 0.4, color=BLUE, label='around annotated spikes')
    axis.bar_label(bars, [f'x {ratio:.2f}' for ratio in spikes / elsewhere])
    axis.set_xticks(positions, [name.replace(': ', '\n') for name in names])
    axis.set(yscale='log', ylabel='mean squared error (scaled units)', title='Contrast, test windows')
    axis.set_ylim(0.5 * elsewhere.min(), 2 * spikes.max())
    figure.legend(loc='outside lower center', ncols=2)
    save_figure(figure, run.figures / 'contrast.png')


def plot_latent(run: RunDirectory, latents: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    """Draw test sub-windows along the main directions of the latent statistics of training sub-windows.

    The directions are the first two principal components and the linear discriminant.

    Parameters
    ----------
    run : RunDirectory
    latents : dict of array (n, n_features)
        'train' and 'test'.
    labels : dict of array (n,)
        'train' and 'test'.
    """
    if len(set(labels['train'])) < 2:
        return
    mean, std = latents['train'].mean(axis=0), latents['train'].std(axis=0) + 1e-9
    train, test = ((latents[part] - mean) / std for part in ('train', 'test'))
    pca = PCA(2).fit(train)
    # Shrinkage: there are about as many features as sub-windows.
    lda = LinearDiscriminantAnalysis(solver='lsqr', shrinkage='auto').fit(train, labels['train'])
    components, discriminant = pca.transform(test), lda.decision_function(test)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout='constrained')
    for label, name, colour, size in ((0, 'no spike', GREY, 6), (1, 'annotated spike', ORANGE, 16)):
        rows = labels['test'] == label
        legend = f'{name} ({rows.sum()})'
        left.scatter(*components[rows].T, s=size, color=colour, label=legend, alpha=0.6, linewidth=0)
        if rows.any():
            right.hist(
                discriminant[rows], bins=40, density=True, histtype='step', color=colour, label=name, linewidth=2
            )
    shares = pca.explained_variance_ratio_
    left.set(xlabel=f'component 1 ({shares[0]:.0%})', ylabel=f'component 2 ({shares[1]:.0%})', title='Latent maps: PCA')
    left.legend()
    right.set(xlabel='linear discriminant', ylabel='density', title='Latent maps: LDA')
    right.legend()
    save_figure(figure, run.figures / 'latent.png')


def plot_traces(run: RunDirectory, examples: list[EventExample], sfreq: float) -> None:
    """Draw the signal around hits, false alarms and misses, a column per kind."""
    kinds = list(dict.fromkeys(example.kind for example in examples))
    if not kinds:
        return
    figure, axes = plt.subplots(3, len(kinds), figsize=(5 * len(kinds), 8), squeeze=False, layout='constrained')
    for column, kind in zip(axes.T, kinds, strict=True):
        of_kind = [example for example in examples if example.kind == kind]
        for axis, example in zip(column, of_kind, strict=False):
            draw_example(axis, example, sfreq)
        for axis in column[len(of_kind) :]:
            axis.set_axis_off()
        column[len(of_kind) - 1].set_xlabel('time (s)')
    for axis in axes[:, 0]:
        axis.set_ylabel('field (scaled units)')
    save_figure(figure, run.figures / 'traces.png')


def draw_example(axis: Axes, example: EventExample, sfreq: float) -> None:
    """Draw the signal within 0.4 s of an event, with the annotated spikes and the detection."""
    reach, sample = round(0.4 * sfreq), example.sample
    start, end = max(sample - reach, 0), sample + reach
    times = (np.arange(example.signal.shape[1]) - sample)[start:end] / sfreq
    draw_channels(axis, times, example.signal[:, start:end])
    for spike in example.spikes:
        if start <= spike < end:
            axis.axvline((spike - sample) / sfreq, color=ORANGE, linewidth=2, label='annotated')
    if example.kind != 'missed':
        axis.axvline(0, color='black', linestyle=':', label='detected')
    axis.set_title(example.title, fontsize=10)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=7, loc='upper left')


def plot_topographies(run: RunDirectory, examples: list[EventExample], info: mne.Info, half: int) -> None:
    """Draw the error over the helmet at detected events, averaged over `half` samples on either side."""
    if not examples:
        return
    figure, axes = plt.subplots(1, len(examples), figsize=(2.6 * len(examples), 3), squeeze=False, layout='constrained')
    for axis, example in zip(axes[0], examples, strict=True):
        around = slice(max(example.sample - half, 0), example.sample + half + 1)
        error = np.nanmean(example.errors[:, around], axis=1)
        image, _ = mne.viz.plot_topomap(error, info, axes=axis, show=False, cmap='viridis', vlim=(0, error.max()))
        title = example.title.replace(f'{example.kind}: ', f'{example.kind}\n').replace(', block', ',\nblock')
        axis.set_title(title, fontsize=8)
        figure.colorbar(image, ax=axis, shrink=0.6, format='%.1f')
    figure.suptitle('Squared error at detected events (scaled units)', fontsize=10)
    save_figure(figure, run.figures / 'topographies.png')
