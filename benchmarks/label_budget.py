"""What labels are worth, and what the autoencoder brings where they are few.

    python benchmarks/label_budget.py [SIZE] [n_jobs=2] [name=value ...]

In a clinic recordings are many and annotations few. So the autoencoder is trained on the windows of all training
patients, without labels, and the detectors on the labels of the first 1, 3, 6, ... of them. The network `finetuned`
learns pseudo-labels of all of them first. Each detector is then tested on the simulated truth of patients whom nothing
has seen; those of validation stop the networks.

SIZE is `small` (the default: narrow networks with a frozen encoder, 48 patients, three hours on two cores), `full` (for
a GPU: every network, the original's widths), `tiny` (every network but those on raw windows, six patients, half an
hour) or `trees` (up to 24 patients of all kinds, no network as classifier: an hour), see `SIZES`. Prints the table and
the paired differences, and writes label_budget.csv, label_budget_differences.csv and label_budget.png into
path_writing_data. `n_jobs` cohorts are taken at a time, with one thread each.
"""

import functools
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl

mpl.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from baselines import network_on, sfcn_on
from cohort_steps import (
    NARROW,
    ORIGINAL,
    SNR,
    Recipe,
    as_residuals,
    features_of,
    finetuned,
    forest,
    looked_again,
    of_cohorts,
    peaks,
    pseudo_labelled,
    recordings_of,
    relative_to_blocks,
    residuals_of,
    stacked,
    train_autoencoder,
    trees,
)
from cohorts import Cohort, CohortSize, Part, chosen_size, in_subwindows, simulate_cohort
from kinds import KINDS, present
from peers import EMSNet
from quality_table import mean_and_interval
from sklearn.metrics import average_precision_score

from classifiers.specs import Examples
from evaluation.events import sensitivity_curve
from models import build_model
from recordings.channels import N_CHANNELS
from runs.settings import read_command
from timeseries_dataset import PARTS
from utils import choose_device, run_script, set_seed, writing


class Budget(NamedTuple):
    """How much is simulated and trained.

    Attributes
    ----------
    kinds : tuple of str
        Of simulated patients, see `kinds.KINDS`; a cohort is of one kind.
    seeds : int
        Cohorts of each kind.
    budgets : tuple of int
        Numbers of training patients whose labels are used.
    patients : CohortSize
    autoencoder : Recipe
    detector_epochs : int
        Of the network `finetuned`, at the largest budget.
    networks : tuple of str
        Which are trained too: of `NETWORKS`, and those on 'raw' windows, which take longest.
    """

    kinds: tuple[str, ...]
    seeds: int
    budgets: tuple[int, ...]
    patients: CohortSize
    autoencoder: Recipe
    detector_epochs: int
    networks: tuple[str, ...]


# What the network `finetuned` starts from: its encoder, and what its pseudo-labels are of.
NETWORKS = {
    'finetuned, scratch': ('scratch', None),
    'finetuned, pretrained': ('pretrained', 'residuals'),
    'finetuned, encoder alone': ('pretrained', None),
    'finetuned, frozen': ('frozen', 'residuals'),
    'finetuned, frozen encoder alone': ('frozen', None),
    'finetuned, pseudo-labels of the signal': ('frozen', 'signal'),
}
HELD_OUT = ('recorded', 'eeg')  # the network was made by looking at the other kinds
THREE = (*HELD_OUT, 'dipoles')
FROZEN = ('finetuned, frozen', 'finetuned, frozen encoder alone')
SIZES = {
    'tiny': Budget(HELD_OUT, 1, (1, 3, 6), CohortSize(6, 2, 5, 1, 60), NARROW, 10, tuple(NETWORKS)),
    'trees': Budget(KINDS, 2, (1, 3, 6, 12, 24), CohortSize(24, 4, 8, 1, 60), NARROW, 0, ()),
    'small': Budget(THREE, 3, (1, 3, 6, 12, 24, 48), CohortSize(48, 4, 12, 1, 60), NARROW, 8, FROZEN),
    'full': Budget(THREE, 3, (1, 3, 6, 12, 24, 48), CohortSize(48, 6, 12, 3, 180), ORIGINAL, 60, (*NETWORKS, 'raw')),
}
MOST_EPOCHS = 60  # of the network
REFERENCE = 'forest on residuals'  # what the others are compared with
STACKED = {'stacked': 'finetuned, frozen', 'stacked, annotations alone': 'finetuned, frozen encoder alone'}

SECOND_LOOK = ', second look'
LOOKED_AGAIN = {  # and what the fields are taken from
    'threshold (no labels)': 'residuals',
    REFERENCE: 'residuals',
    'hgb on residuals': 'residuals',
    'forest on signal': 'signal',
    'stacked': 'residuals',
}


def main(words: list[str]) -> None:
    """Run every detector on every cohort and budget, and write the tables and the picture."""
    positional, settings = read_command(words, n_positional=1)
    size = chosen_size(SIZES, *positional)
    rows = []
    seeds = range(settings.seed, settings.seed + size.seeds)
    jobs = [(kind, seed, size, settings) for seed in seeds for kind in present(size.kinds)]
    for of_cohort in of_cohorts(rows_of_cohort, jobs, settings.n_jobs):
        rows += of_cohort
        write_results(pd.DataFrame(rows), Path(settings.path_writing_data))  # of all cohorts so far


def write_results(figures: pd.DataFrame, directory: Path) -> None:
    """Print the tables, and write them and the picture."""
    table = figures.groupby(['kind', 'detector', 'patients'], sort=False)[['PR-AUC', 'sensitivity at 1 FA/min']].mean()
    differences = paired_differences(figures)
    for result in (table, differences):
        print(result.to_string(float_format='{:.3f}'.format))
    for name, result in (('label_budget.csv', figures), ('label_budget_differences.csv', differences.reset_index())):
        with writing(directory / name) as temporary:
            result.to_csv(temporary, index=False, float_format='%.4f')
    plot(figures, directory / 'label_budget.png')


def rows_of_cohort(kind: str, seed: int, size: Budget, settings: SimpleNamespace) -> list[dict]:
    """Figures of every detector on a cohort of a kind, one row per budget and test patient."""
    started, device = time.perf_counter(), choose_device(settings.device)
    set_seed(seed)
    cohort = simulate_cohort(SNR['medium'], seed, size.patients, settings, kind)
    autoencoder = train_autoencoder(cohort, size.autoencoder, seed, device)
    residuals = residuals_of(autoencoder, cohort, device)
    sources = {'residuals': residuals, 'signal': as_residuals(cohort)}
    features = {name: relative_to_blocks(features_of(cohort, of), cohort) for name, of in sources.items()}
    pretraining = {name: pseudo_labelled(cohort, of) for name, of in sources.items() if size.networks}
    recordings = {name: recordings_of(cohort, of) for name, of in sources.items()}
    threshold = peaks(cohort, residuals)
    rows = []
    for n_patients in size.budgets:
        labelled = first_patients(cohort, n_patients)
        if not labelled.train.annotated.any():
            print(f'{kind} {seed} {n_patients}: no annotated spike, left out', flush=True)
            continue
        outputs = {'threshold (no labels)': threshold}
        for name, values in features.items():
            of_budget = values | {'train': values['train'][: len(labelled.train.annotated)]}
            outputs[f'forest on {name}'] = forest(of_budget, labelled, seed)
            outputs[f'hgb on {name}'] = trees(of_budget, labelled, seed)
        # With few patients, more epochs: about as many steps, as far as `MOST_EPOCHS` allows.
        epochs = min(MOST_EPOCHS, size.detector_epochs * size.budgets[-1] // n_patients)
        outputs |= dict(networks(labelled, pretraining, autoencoder, seed, epochs, size, settings, device))
        for name, network in STACKED.items():
            if network in outputs:
                outputs[name] = stacked([outputs[REFERENCE], outputs[network]], cohort)
        for name, source in LOOKED_AGAIN.items():
            if name in outputs:
                outputs[name + SECOND_LOOK] = looked_again(outputs[name], cohort, recordings[source])
        for detector, scores in outputs.items():
            whole = {'kind': kind, 'seed': seed, 'detector': detector, 'patients': n_patients}
            rows += [whole | figures for figures in figures_of_patients(scores['test'], cohort, settings)]
            mean = np.nanmean([row['PR-AUC'] for row in rows[-size.patients.test :]])
            print(
                f'{kind} {seed} {n_patients} {detector}: {mean:.3f}, {time.perf_counter() - started:.0f} s', flush=True
            )
    return rows


def networks(
    cohort: Cohort,
    pretraining: dict[str, Examples],
    autoencoder,
    seed: int,
    epochs: int,
    size: Budget,
    settings: SimpleNamespace,
    device: torch.device,
):
    """Yield the name and {part: scores} of the networks."""
    if 'raw' in size.networks:
        raw = {name: in_subwindows(getattr(cohort, name).windows, cohort.sub) for name in PARTS}
        yield 'SFCN on raw windows', sfcn_on(raw, cohort, seed, device)
        make = functools.partial(EMSNet, *raw['train'].shape[1:])
        yield 'EMS-Net on raw windows', network_on(raw, make, cohort, seed, device)
    for name, (encoder, source) in NETWORKS.items():
        if name not in size.networks:
            continue
        set_seed(seed)
        start = autoencoder
        if encoder == 'scratch':
            start = build_model(n_channels=N_CHANNELS, n_times=cohort.train.windows.shape[2], **size.autoencoder.model)
        yield name, finetuned(cohort, start, encoder, pretraining.get(source), epochs, seed, settings, device)


def first_patients(cohort: Cohort, n_patients: int) -> Cohort:
    """The cohort with the first so many training patients alone."""
    train = cohort.train
    subjects = train.places['subject'].unique()[:n_patients]
    n = int(train.places['subject'].isin(subjects).sum())  # in recording order: the first rows
    n_windows, n_blocks = n // cohort.sub.n_subwindows, len(np.unique(train.block[:n]))
    cut = {
        'windows': n_windows,
        'gain': n_windows,
        'signals': n_blocks,
        'spikes': train.spikes['subject'].isin(subjects),
    }
    rows = {name: getattr(train, name)[: cut.get(name, n)] for name in Part._fields if name != 'spikes'}
    return cohort._replace(train=Part(**rows, spikes=train.spikes[cut['spikes']]))


def figures_of_patients(scores: np.ndarray, cohort: Cohort, settings: SimpleNamespace) -> list[dict]:
    """PR-AUC, and event sensitivity at one false alarm per minute, of every test patient, against the truth."""
    test, rows = cohort.test, []
    for subject in test.places['subject'].unique():
        mine = (test.places['subject'] == subject).to_numpy()
        places = test.places[mine].assign(test=test.truth[mine], proba=scores[mine], pred=1)
        spikes = test.spikes[test.spikes['subject'] == subject]
        tolerance = settings.tolerance * settings.sfreq
        curve = sensitivity_curve(places, spikes, cohort.sub.subwindow_length, tolerance, settings.sfreq)
        within = curve['false alarms/min'] <= 1
        rows.append(
            {
                'subject': subject,
                'PR-AUC': average_precision_score(test.truth[mine], scores[mine]) if test.truth[mine].any() else np.nan,
                'sensitivity at 1 FA/min': curve.loc[within, 'sensitivity'].max(),
            }
        )
    return rows


def paired_differences(figures: pd.DataFrame) -> pd.DataFrame:
    """PR-AUC of detectors less that of others, most of them of `REFERENCE`, over the same test patients.

    With the 95 % interval over patients, and that over cohorts (NaN of one), whose patients share a training.
    """
    by_detector = figures.pivot(index=['kind', 'seed', 'patients', 'subject'], columns='detector', values='PR-AUC')
    pairs = [('finetuned, pretrained', name) for name in NETWORKS if name != 'finetuned, pretrained']
    pairs += [
        ('finetuned, frozen', name) for name in NETWORKS if name not in ('finetuned, pretrained', 'finetuned, frozen')
    ]
    pairs.append(('stacked', 'stacked, annotations alone'))
    pairs += [(f'{name} on residuals', f'{name} on signal') for name in ('forest', 'hgb')]
    pairs = [pair for pair in pairs if set(pair) <= set(by_detector)]
    pairs += [(name, REFERENCE) for name in by_detector if name != REFERENCE]
    rows = []
    for name, against in pairs:
        ahead = by_detector[name] - by_detector[against]
        for n_patients, of_patients in ahead.groupby('patients'):
            mean, low, high = mean_and_interval(of_patients)
            row = {'difference': f'{name} - {against}', 'patients': n_patients, 'mean': mean, 'low': low, 'high': high}
            _, row['cohorts low'], row['cohorts high'] = mean_and_interval(of_patients.groupby(['kind', 'seed']).mean())
            rows.append(row)
    return pd.DataFrame(rows).set_index(['difference', 'patients'])


def plot(figures: pd.DataFrame, path: Path) -> None:
    """Both figures of every detector against the number of labelled patients, of the cohorts that have all budgets."""
    n_budgets = figures.groupby(['kind', 'seed'])['patients'].transform('nunique')
    figures = figures[n_budgets == n_budgets.max()]
    alone = figures['detector'].str.removesuffix(SECOND_LOOK)
    colours = {detector: f'C{number}' for number, detector in enumerate(alone.unique())}
    names, ticks = ('PR-AUC', 'sensitivity at 1 FA/min'), sorted(figures['patients'].unique())
    figure, axes = plt.subplots(2, len(names), figsize=(13, 9), layout='constrained', sharex=True, sharey='col')
    for again, row in zip((False, True), axes, strict=True):
        shown = figures[figures['detector'].str.endswith(SECOND_LOOK) == again]
        for axis, name in zip(row, names, strict=True):
            for detector, rows in shown.groupby('detector', sort=False):
                means, label = rows.groupby('patients')[name].mean(), detector.removesuffix(SECOND_LOOK)
                style = '--' if 'signal' in label or 'alone' in label or 'no labels' in label else '-'
                axis.plot(means.index, means, style, marker='o', label=label, color=colours[label])
            axis.set_xscale('log')
            axis.set_xticks(ticks, ticks)
            axis.minorticks_off()
            axis.set(ylabel=name + SECOND_LOOK * again, xlabel='training patients with labels' * again)
    axes[0, 0].legend(fontsize='small')
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


if __name__ == '__main__':
    run_script(main, __doc__)
