"""Finds out which autoencoder, how wide and how long trained, helps `hgb` most for its cost.

    python benchmarks/which_autoencoder.py [small | tiny] [name=value ...]

Trains every autoencoder of `TRIED` on the windows of the training patients of simulated cohorts, without labels, and
`hgb` on what its masked reconstruction leaves of each sub-window, with the annotations. Beside them, `hgb` on the
signal itself, which needs no autoencoder. Writes one row per cohort and autoencoder into which_autoencoder.csv in
path_writing_data: the residual's share of the signal's variance on test patients, PR-AUC on their simulated truth with
and without the second look, seconds of training and of reading 100 windows (one thread).
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
from cohorts import CohortSize, simulate_cohort
from kinds import present
from quality import (
    SNR,
    Size,
    as_residuals,
    boosted,
    filters_of,
    residuals_of,
    train_autoencoder,
)
from quality_table import mean_and_interval, pr_auc
from second_looks import looked_again

from runs.settings import read_command
from utils import SettingError, choose_device, run_script, writing

WIDE = {'name': 'wavelets', 'pywt_mode': 'periodization'}
# Name, settings, epochs, largest learning rate. The first is what the others are compared with.
TRIED = [
    ('AE1D (2)', {'name': 'AE1D', 'width': 2}, 5, 2e-3),
    ('AE1D (2), 15 epochs', {'name': 'AE1D', 'width': 2}, 15, 2e-3),
    ('AE1D (8)', {'name': 'AE1D', 'width': 8}, 5, 2e-3),
    ('AE1D_smaller (8)', {'name': 'AE1D_smaller', 'width': 8}, 5, 2e-3),
    ('AE2D (2)', {'name': 'AE2D', 'width': 2}, 5, 2e-3),
    ('wavelets (8)', WIDE | {'filters': (8, 8, 8)}, 5, 2e-3),
    ('wavelets (8), 15 epochs', WIDE | {'filters': (8, 8, 8)}, 15, 2e-3),
    ('wavelets (8), sym5', WIDE | {'filters': (8, 8, 8), 'pywt_family': 'sym5'}, 5, 2e-3),
    ('wavelets (8), full latent maps', WIDE | {'filters': (8, 8, 8), 'latent_nodes': None}, 5, 2e-3),
    ('wavelets (32)', WIDE | {'filters': (32, 32, 32)}, 5, 1e-3),
]
# Kinds, cohorts of each, patients: training, validation, test, blocks of each, seconds of a block.
SIZES = {
    'tiny': (('dipoles',), 1, CohortSize(2, 2, 2, 1, 40)),
    'small': (('dipoles', 'eeg', 'recorded'), 2, CohortSize(5, 3, 5, 1, 60)),
}


def main(words: list[str]) -> None:
    """Train every autoencoder on every cohort, and print and write the table."""
    positional, settings = read_command(words, n_positional=1)
    chosen = SIZES.get(*positional or ['small'])
    if chosen is None:
        raise SettingError(f'unknown size {positional[0]!r}: one of {", ".join(SIZES)}')
    kinds, n_cohorts, patients = chosen
    rows = []
    for seed in range(settings.seed, settings.seed + n_cohorts):
        for kind in present(kinds):
            rows += rows_of_cohort(kind, seed, patients, settings)
    table = pd.DataFrame(rows)
    print(summarise(table).to_string(float_format='{:.3f}'.format))
    with writing(Path(settings.path_writing_data) / 'which_autoencoder.csv') as temporary:
        table.to_csv(temporary, index=False, float_format='%.4f')


def rows_of_cohort(kind: str, seed: int, patients: CohortSize, settings) -> list[dict]:
    """Figures of `hgb` on the signal itself, and on the residual of every autoencoder."""
    device = choose_device(settings.device)
    cohort = simulate_cohort(SNR['medium'], seed, patients, settings, kind)
    key, rows, signal = {'test': cohort.test}, [], as_residuals(cohort)
    total = np.mean(signal['test'] ** 2)

    def add(name, residuals, **figures):
        scores = boosted(cohort, residuals, seed)
        again = looked_again(scores, cohort, residuals, filters_of(cohort, residuals))
        figures |= {'PR-AUC': pr_auc(scores, key), 'second look': pr_auc(again, key)}
        figures['variance left'] = np.mean(residuals['test'] ** 2) / total
        rows.append({'kind': kind, 'seed': seed, 'autoencoder': name} | figures)
        print(kind, seed, name, {figure: round(float(value), 3) for figure, value in figures.items()}, flush=True)

    add('none: the signal itself', signal)
    for name, model, epochs, rate in TRIED:
        size = Size({}, 0, 0, patients, model, epochs, rate)
        started = time.perf_counter()
        autoencoder = train_autoencoder(cohort, model, size, seed, device)
        trained = time.perf_counter()
        with torch.inference_mode():
            autoencoder.masked_residuals(
                torch.from_numpy(cohort.test.windows[:8])[:, None].to(device), cohort.sub, cohort.margin, levels=[0]
            )
        trained_to_read = time.perf_counter() - trained
        residuals = residuals_of(autoencoder, cohort, device)
        add(name, residuals, **{'training s': trained - started, '100 windows s': 12.5 * trained_to_read})
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over cohorts of every figure, and the difference of PR-AUC to the first autoencoder with its interval."""
    table = table.assign(cohort=table['kind'] + table['seed'].astype(str))
    means = table.groupby('autoencoder', sort=False)[['variance left', 'training s', '100 windows s']].mean()
    for name in ('PR-AUC', 'second look'):
        by_cohort = table.pivot(index='cohort', columns='autoencoder', values=name)
        means[name] = by_cohort.mean()
        for autoencoder in means.index:
            ahead = by_cohort[autoencoder] - by_cohort[TRIED[0][0]]
            means.loc[autoencoder, [f'{name} ahead', 'low', 'high']] = mean_and_interval(ahead)
    return means


if __name__ == '__main__':
    run_script(main, __doc__)
