"""Finds out which autoencoder, how wide and how long trained, helps `forest` and `hgb` most for its cost.

    python benchmarks/which_autoencoder.py [small | tiny] [n_jobs=2] [name=value ...]

Trains every autoencoder of `TRIED` on the windows of the training patients of simulated cohorts, without labels, and
`forest` and `hgb` (`trees` here) on what its masked reconstruction leaves of each sub-window, with the annotations.
Beside them, both on the signal itself, and on what two predictions without a network leave: ridge regression of each
principal component on its context, learnt from the training patients, and the best linear prediction for the spectrum
of the block itself, which knows no other patient. Writes one row per cohort and autoencoder into which_autoencoder.csv
in path_writing_data: the residual's share of the signal's variance on test patients, PR-AUC on their simulated truth
with and without the second look, and seconds of training. `n_jobs` cohorts are taken at a time, with one thread each;
an hour per cohort.
"""

import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from baselines import components_of, ridge_errors
from cohort_steps import (
    SNR,
    Recipe,
    as_residuals,
    features_of,
    forest,
    looked_again,
    of_cohorts,
    recordings_of,
    relative_to_blocks,
    residuals_of,
    spectral_residuals_of,
    train_autoencoder,
    trees,
)
from cohorts import CohortSize, chosen_size, simulate_cohort
from kinds import present
from quality_table import mean_and_interval, pr_auc

from runs.settings import read_command
from utils import choose_device, run_script, writing

MEGA = {'name': 'wavelets', 'pywt_mode': 'periodization', 'filters': (8, 8, 8)}
# Name, settings, epochs, largest learning rate.
TRIED = [
    ('AE1D (2), 5 epochs', {'name': 'AE1D', 'width': 2}, 5, 2e-3),
    ('AE1D (2), 20 epochs', {'name': 'AE1D', 'width': 2}, 20, 2e-3),
    ('AE1D (8), 5 epochs', {'name': 'AE1D', 'width': 8}, 5, 2e-3),
    ('AE1D_smaller (4), 5 epochs', {'name': 'AE1D_smaller', 'width': 4}, 5, 2e-3),
    ('AE2D (2), 5 epochs', {'name': 'AE2D', 'width': 2}, 5, 2e-3),
    ('wavelets (8), 5 epochs', MEGA, 5, 2e-3),
    ('wavelets (8), 20 epochs', MEGA, 20, 2e-3),
    ('wavelets (8), full latent maps, 5 epochs', MEGA | {'latent_nodes': None}, 5, 2e-3),
    ('wavelets (32), 5 epochs', MEGA | {'filters': (32, 32, 32)}, 5, 1e-3),
]
SIGNAL = 'none: the signal itself'  # what the others are compared with
# Kinds, cohorts of each, patients: training, validation, test, blocks of each, seconds of a block.
SIZES = {
    'tiny': (('dipoles',), 1, CohortSize(2, 2, 2, 1, 40)),
    'small': (('recorded', 'eeg', 'dipoles'), 3, CohortSize(24, 4, 8, 1, 60)),
}


def main(words: list[str]) -> None:
    """Train every autoencoder on every cohort, and print and write the table."""
    positional, settings = read_command(words, n_positional=1)
    kinds, n_cohorts, patients = chosen_size(SIZES, *positional)
    seeds = range(settings.seed, settings.seed + n_cohorts)
    jobs = [(kind, seed, patients, settings) for seed in seeds for kind in present(kinds)]
    table = pd.DataFrame(itertools.chain(*of_cohorts(rows_of_cohort, jobs, settings.n_jobs)))
    print(summarise(table).to_string(float_format='{:.3f}'.format))
    with writing(Path(settings.path_writing_data) / 'which_autoencoder.csv') as temporary:
        table.to_csv(temporary, index=False, float_format='%.4f')


def rows_of_cohort(kind: str, seed: int, patients: CohortSize, settings) -> list[dict]:
    """Figures of `forest` on the signal itself, and on the residual of every autoencoder."""
    device = choose_device(settings.device)
    cohort = simulate_cohort(SNR['medium'], seed, patients, settings, kind)
    key, rows, signal = {'test': cohort.test}, [], as_residuals(cohort)
    components, total = components_of(cohort), np.mean(signal['test'] ** 2)

    def add(name, residuals, **figures):
        features, recordings = features_of(cohort, residuals), recordings_of(cohort, residuals)
        features = relative_to_blocks(features, cohort)
        for learned in (forest, trees):
            scores = learned(features, cohort, seed)
            figures[learned.__name__] = pr_auc(scores, key)
            figures[f'{learned.__name__}, second look'] = pr_auc(looked_again(scores, cohort, recordings), key)
        figures['variance left'] = np.mean(residuals['test'] ** 2) / total
        rows.append({'kind': kind, 'seed': seed, 'autoencoder': name} | figures)
        print(kind, seed, name, {figure: round(float(value), 3) for figure, value in figures.items()}, flush=True)

    add(SIGNAL, signal)
    errors, scale = ridge_errors(cohort, components, cohort.margin)
    add('none: ridge regression', with_errors(signal, components, {name: scale * of for name, of in errors.items()}))
    add('none: spectrum of the block itself', spectral_residuals_of(cohort))
    for name, model, epochs, rate in TRIED:
        started = time.perf_counter()
        autoencoder = train_autoencoder(cohort, Recipe(model, epochs, rate), seed, device)
        seconds = time.perf_counter() - started
        residuals = residuals_of(autoencoder, cohort, device)
        add(name, residuals, **{'training s': seconds})
    return rows


def with_errors(signal: dict, components: np.ndarray, errors: dict) -> dict:
    """The signal with the errors of its principal components in their place, laid out as `residuals_of`.

    Errors are (n * n_subwindows, components, n_masked) by part.
    """
    residuals = {}
    for name, masked in signal.items():
        by_component = np.einsum('fc,nfst->ncst', components, masked, optimize=True)
        left = errors[name].reshape(len(masked), masked.shape[2], -1, masked.shape[3]).swapaxes(1, 2)
        residuals[name] = masked - np.einsum('fc,ncst->nfst', components, by_component - left, optimize=True)
    return residuals


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over cohorts of every figure, and the differences of PR-AUC to the signal itself with their intervals."""
    table = table.assign(cohort=table['kind'] + table['seed'].astype(str))
    means = table.groupby('autoencoder', sort=False)[['variance left', 'training s']].mean()
    for name in ('forest', 'forest, second look', 'trees', 'trees, second look'):
        by_cohort = table.pivot(index='cohort', columns='autoencoder', values=name)
        means[name] = by_cohort.mean()
        for autoencoder in means.index:
            ahead = by_cohort[autoencoder] - by_cohort[SIGNAL]
            means.loc[autoencoder, [f'{name} ahead', f'{name} low', f'{name} high']] = mean_and_interval(ahead)
    return means


if __name__ == '__main__':
    run_script(main, __doc__)
