"""Which windows and events of a tested run the pictures show, see `window_pictures`."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from classification import SubwindowReader, gather
from classifiers.inputs import latent_statistics, window_errors
from evaluation.intervals import Evaluation
from recordings.channels import channel_names, ctf275_info
from reports.run_results import TestResult
from reports.window_pictures import (
    ErrorMap,
    EventExample,
    plot_contrast,
    plot_error_maps,
    plot_latent,
    plot_topographies,
    plot_traces,
)
from runs.network_settings import level_names
from runs.split_data import SplitData
from timeseries_dataset import WindowDataset, batches, zscored

N_ERROR_MAPS = 3
N_LATENT_WINDOWS = 300  # most windows of a part whose latent maps are shown
N_EXAMPLES = 3  # per kind: found, false alarm, missed


class WindowView(NamedTuple):
    """A test window with its signal and errors.

    Attributes
    ----------
    row, start : int
        Row among the test windows, and first sample in the block.
    signal : array (channels, times)
    errors : array (n_pairs, channels, times)
    """

    row: int
    start: int
    signal: np.ndarray
    errors: np.ndarray


class TestWindows:
    """The test windows, looked up by the samples of their block.

    Parameters
    ----------
    reader : SubwindowReader
    split : SplitData
    standardize
        The setting of this name.
    """

    __test__ = False  # not a test, whatever pytest thinks of its name

    def __init__(self, reader: SubwindowReader, split: SplitData, standardize: str | bool):
        self.reader, self.window_length = reader, split.window_length
        self.rows = split.clf_table[split.clf_table['part'] == 'test'].reset_index(drop=True)
        self.dataset = WindowDataset(split.clf_patients, self.rows, zscore=zscored(standardize))

    def nearest(self, subject: int, block: int, sample: int) -> WindowView:
        """The window whose centre is nearest to a sample of a block."""
        of_block = self.rows[(self.rows['subject'] == subject) & (self.rows['block'] == block)]
        row = (of_block['timing'] - sample).abs().idxmin()
        x = self.dataset.__getitems__([row])[0]
        reader = self.reader
        with torch.no_grad():
            errors = window_errors(reader.autoencoder.eval(), x.to(reader.device), reader.shape, reader.masking)
        start = round(self.rows['timing'][row] - self.window_length / 2)
        return WindowView(row, start, x[0, 0].numpy(), errors.cpu().numpy()[0])


def plot_windows(
    result: TestResult,
    reader: SubwindowReader,
    split: SplitData,
    errors: np.ndarray | None,
    settings: SimpleNamespace,
) -> None:
    """Draw errors with labels, contrast, latent maps, topographies, and traces of hits, false alarms and misses.

    Parameters
    ----------
    result : TestResult
    reader : SubwindowReader
    split : SplitData
    errors : array (n_windows, n_levels, n_inner) or None
        Of the test part, from `SubwindowReader.read`.
    settings : namespace
    """
    windows, labels_t = TestWindows(reader, split, settings.standardize), split.labels_t('test')
    if len(result.evaluation.spikes):
        maps = error_maps(result.evaluation, windows, labels_t, settings.sfreq)
        plot_error_maps(result.run, maps, channel_names(), settings.sfreq, result.decision['threshold'])
    if errors is not None:
        inner = labels_t[:, split.shape.border :][:, : errors.shape[2]]
        names = level_names(settings)
        plot_contrast(result.run, errors, inner.astype(bool), [names[level] for level in reader.levels])
    plot_latent(result.run, *latent_examples(reader, split, settings))
    examples = example_events(result.evaluation, windows, settings.sfreq)
    plot_traces(result.run, examples, settings.sfreq)
    detected = [example for example in examples if example.kind != 'missed']
    plot_topographies(result.run, detected, ctf275_info(settings.sfreq), split.shape.subwindow_length // 4)


def error_maps(evaluation: Evaluation, windows: TestWindows, labels_t: np.ndarray, sfreq: float) -> list[ErrorMap]:
    """Errors of up to `N_ERROR_MAPS` windows with spikes; `labels_t` (n_windows, window_length) of the test windows."""
    predictions, spikes = evaluation.predictions, evaluation.spikes
    maps, rows = [], set()
    for _, spike in spikes.iloc[np.unique(np.linspace(0, len(spikes) - 1, 12).astype(int))].iterrows():
        view = windows.nearest(*spike[['subject', 'block', 'sample']])
        if view.row in rows or len(maps) == N_ERROR_MAPS:
            continue
        rows.add(view.row)
        inside = predictions[
            (predictions['subject'] == spike['subject'])
            & (predictions['block'] == spike['block'])
            & predictions['timing'].between(view.start, view.start + windows.window_length)
        ]
        title = f'patient {spike["subject"]}, block {spike["block"]}, {view.start / sfreq:.1f} s'
        centres, proba = inside['timing'].to_numpy() - view.start, inside['proba'].to_numpy()
        maps.append(ErrorMap(title, view.errors[0], labels_t[view.row], centres, proba))
    return maps


def latent_examples(reader: SubwindowReader, split: SplitData, settings: SimpleNamespace) -> tuple[dict, dict]:
    """Latent statistics and labels of sub-windows of training and test, for `plot_latent`."""

    def read(model, x, rows):
        return {'latent': latent_statistics(model.latent(x), x.shape[-1], reader.shape)}

    latents, labels = {}, {}
    for part in ('train', 'test'):
        rows = split.clf_table[split.clf_table['part'] == part]
        indices = np.unique(np.linspace(0, len(rows) - 1, N_LATENT_WINDOWS).astype(int))
        dataset = WindowDataset(split.clf_patients, rows.iloc[indices], zscore=zscored(settings.standardize))
        loader = batches(dataset, batch_size=settings.batch_size)
        latents[part] = gather(reader.autoencoder, loader, read, reader.device, 'latent')['latent']
        labels[part] = split.labels(part).reshape(-1, split.shape.n_subwindows)[indices].ravel()
    return latents, labels


def example_events(evaluation: Evaluation, windows: TestWindows, sfreq: float) -> list[EventExample]:
    """The surest hits and false alarms, and misses, up to `N_EXAMPLES` of each kind."""
    events, spikes = evaluation.events.sort_values('proba', ascending=False), evaluation.spikes
    tables: dict[str, pd.DataFrame] = {
        'found': events[events['hit'] == 1],
        'false alarm': events[events['hit'] == 0],
        'missed': spikes[spikes['hit'] == 0],
    }
    examples = []
    for kind, table in tables.items():
        for _, event in table.head(N_EXAMPLES).iterrows():
            subject, block, sample = event[['subject', 'block', 'sample']].astype(int)
            view = windows.nearest(subject, block, sample)
            of_block = spikes[(spikes['subject'] == subject) & (spikes['block'] == block)]
            annotated = (of_block['sample'] - view.start).tolist()
            title = f'{kind}: patient {subject}, block {block}, {sample / sfreq:.2f} s'
            sample_in_window = sample - view.start
            examples.append(EventExample(kind, title, view.signal, view.errors[0], sample_in_window, annotated))
    return examples
