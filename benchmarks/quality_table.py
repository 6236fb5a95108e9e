"""The tables of benchmarks/quality.py: figures of every detector by kind of cohort, and choices made without a kind."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl

mpl.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from kinds import KINDS
from scipy.special import logit
from scipy.stats import t as student_t
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from evaluation.events import sensitivity_curve
from evaluation.operating_point import best_f1_threshold
from utils import writing

# The detectors of this project in the table; what the others are compared with.
SUPERVISED, UNSUPERVISED = 'masked errors + forest', 'masked errors + threshold (no annotation)'
# As params.py has them: with the second look, and `forest` with copies.
PRODUCT, PRODUCT_UNSUPERVISED = f'{SUPERVISED}, copies, second look', f'{UNSUPERVISED}, second look'
# Kinds at which nobody looked before a feature, a score or a number of components was chosen. (That the trees are those
# of `forest` was chosen on other patients of all kinds.)
HELD_OUT = ('eeg', 'recorded')
# Ways between which a look at figures may choose. The first of each is this project's.
CHOICES = {
    'what `forest` sees': (
        SUPERVISED,
        'no autoencoder: signal + forest',
        'no autoencoder: spectrum + forest',
        'masked errors and signal + forest',
        'masked errors, power alone + forest',
        'masked errors, no block median + forest',
    ),
    'whose peak `threshold` scores': (
        UNSUPERVISED,
        'no autoencoder: signal + threshold',
        'no autoencoder: spectrum + threshold',
        'ridge predictor, with margins and the score of threshold',
    ),
    'without annotation, how to score': (
        UNSUPERVISED,
        'field power, peak over median',
        'field power, with margins',
        'ridge predictor, mean',
        'ridge predictor, peak',
        'PCA reconstruction error',
        'isolation forest',
    ),
    'with annotation, all detectors': (
        SUPERVISED,
        'masked errors + hgb',
        'feature network',
        'SFCN on raw windows',
    ),
}


def pr_auc(outputs: dict, key: dict) -> float:
    """Area under the precision-recall curve on the truth of the test patients."""
    return average_precision_score(key['test'].truth, outputs['test'])


def figures_of(score: dict, settings: SimpleNamespace) -> dict:
    """The figures of a detector on the test patients of a cohort."""
    outputs, key = score['outputs'], score['key']
    test = key['test']
    threshold = best_f1_threshold(key['validation'].annotated, outputs['validation'])
    # Ranks, because the curve wants distinct values between 0 and 1.
    proba = pd.Series(outputs['test']).rank(method='max').to_numpy() / (len(test.truth) + 1)
    tolerance = settings.tolerance * settings.sfreq
    n_times = round(settings.subwindow_size * settings.sfreq)
    curve = sensitivity_curve(test.places.assign(proba=proba), test.spikes, n_times, tolerance, settings.sfreq)
    # Far below, events grow together and false alarms seem to fall.
    within = ~(curve['false alarms/min'] > 1).cummax()
    return {
        'PR-AUC': pr_auc(outputs, key),
        'ROC-AUC': roc_auc_score(test.truth, outputs['test']),
        'F1': f1_score(test.truth, outputs['test'] >= threshold),
        'sensitivity at 1 FA/min': curve.loc[within, 'sensitivity'].max(),
        'positive': test.truth.mean(),
    }


def figures_by_cohort(scores: list[dict], settings: SimpleNamespace) -> pd.DataFrame:
    """One row per cohort and detector: difficulty, kind, seed, detector, and the figures of `figures_of`."""
    names = ('difficulty', 'kind', 'seed', 'detector')
    return pd.DataFrame([{name: score[name] for name in names} | figures_of(score, settings) for score in scores])


def summarise(figures: pd.DataFrame) -> pd.DataFrame:
    """One row per difficulty and detector: means over kinds, the worst kind, and 95 % intervals of PR-AUC.

    Parameters
    ----------
    figures : DataFrame
        Of `figures_by_cohort`.

    Returns
    -------
    DataFrame
        Every kind counts alike, whatever its number of cohorts. The intervals are Student's t over the kinds: they say
        what may be expected of another kind of recordings. `held out` is the mean of the kinds of `HELD_OUT`. The
        differences are those of the two detectors of this project, as params.py has them, minus the row's, in the same
        cohorts.
    """
    pr_aucs = figures.pivot(index=['difficulty', 'kind', 'seed'], columns='detector', values='PR-AUC')
    rows = []
    for (difficulty, detector), group in figures.groupby(['difficulty', 'detector'], sort=False):
        values = group.groupby('kind')['PR-AUC'].mean()
        row = {'difficulty': difficulty, 'detector': detector, 'cohorts': len(group)}
        row |= group.groupby('kind')[list(figures)[4:]].mean().mean().to_dict()
        _, row['PR low'], row['PR high'] = mean_and_interval(values)
        row |= {'worst': values.min(), 'worst kind': values.idxmin()}
        row['held out'] = values.reindex(HELD_OUT).mean()
        for key, name in (('forest', PRODUCT), ('threshold', PRODUCT_UNSUPERVISED)):
            names = (f'{key} - this', f'{key} - this low', f'{key} - this high')
            ahead = (pr_aucs[name] - pr_aucs[detector]).loc[difficulty].groupby('kind').mean()
            row |= dict(zip(names, mean_and_interval(ahead), strict=True))
        rows.append(row | {f'PR-AUC, {kind}': values[kind] for kind in KINDS if kind in values})
    return pd.DataFrame(rows)


def mean_and_interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean of the values that are there, and the ends of its 95 % interval (Student's t)."""
    values = values.dropna()
    half = student_t.ppf(0.975, len(values) - 1) * values.std() / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return values.mean(), values.mean() - half, values.mean() + half


def leave_one_kind_out(figures: pd.DataFrame) -> pd.DataFrame:
    """What a choice is worth where nobody looked: made on all kinds but one, and reported on that one.

    Returns
    -------
    DataFrame
        One row per difficulty, choice of `CHOICES` and kind: `chosen`, which has the highest mean PR-AUC on the other
        kinds; its PR-AUC on the kind `held out`; that of this project's way there; and the `best` one there, which only
        a look could have found.
    """
    rows = []
    for difficulty, group in figures.groupby('difficulty', sort=False):
        pr_aucs = group.pivot(index=['kind', 'seed'], columns='detector', values='PR-AUC')
        for choice, ways in CHOICES.items():
            # On the cohorts on which all of them were tried.
            table = pr_aucs[[way for way in ways if way in pr_aucs]].dropna().groupby('kind').mean().T
            if len(table) < 2 or len(table.columns) < 2:
                continue
            for kind in (kind for kind in KINDS if kind in table):
                chosen = table.drop(columns=kind).mean(axis=1).idxmax()
                rows.append(
                    {'difficulty': difficulty, 'choice': choice, 'held out': kind, 'chosen on the others': chosen}
                    | {'PR-AUC': table.loc[chosen, kind], "this project's": table.loc[ways[0], kind]}
                    | {'best there': table[kind].idxmax(), 'its PR-AUC': table[kind].max()}
                )
    return pd.DataFrame(rows)


def plot(figures: pd.DataFrame, path: Path, order: Sequence[str]) -> None:
    """PR-AUC of every detector on every kind, a panel per difficulty; a dot is a kind, the line the mean over them."""
    figure, axes = plt.subplots(1, len(order), figsize=(8 * len(order), 8), layout='constrained', squeeze=False)
    for axis, difficulty in zip(axes.flat, order, strict=True):
        pr_aucs = figures[figures['difficulty'] == difficulty].pivot_table('PR-AUC', 'detector', 'kind', 'mean')
        pr_aucs = pr_aucs.loc[pr_aucs.mean(axis=1).sort_values().index]
        for number, kind in enumerate(kind for kind in KINDS if kind in pr_aucs):
            marker = 'D' if kind in HELD_OUT else 'o'
            axis.plot(pr_aucs[kind], pr_aucs.index, marker, color=f'C{number}', label=kind, alpha=0.8)
        axis.plot(pr_aucs.mean(axis=1), pr_aucs.index, '|', color='black', markersize=20, label='mean')
        axis.set(title=difficulty, xlabel='PR-AUC (diamonds: kinds held out)', xlim=(0, 1))
        axis.grid(axis='y', alpha=0.3)
    axes[0, 0].legend()
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def plot_scores(scores: list[dict], path: Path) -> None:
    """Histograms of what spikes and other sub-windows of the test patients score, by detector and kind.

    Parameters
    ----------
    scores : list of dict
        Of `quality.scores_of_cohort`; only the detectors of this project are drawn.
    """
    detectors = (SUPERVISED, UNSUPERVISED)
    kinds = [kind for kind in KINDS if kind in {score['kind'] for score in scores}]
    size = (3 * len(kinds), 3 * len(detectors))
    figure, axes = plt.subplots(len(detectors), len(kinds), figsize=size, layout='constrained', squeeze=False)
    for row, detector in zip(axes, detectors, strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            of_kind = [score for score in scores if (score['kind'], score['detector']) == (kind, detector)]
            values = logit(np.concatenate([score['outputs']['test'] for score in of_kind]).clip(1e-6, 1 - 1e-6))
            spikes = np.concatenate([score['key']['test'].truth for score in of_kind]) > 0
            bins = np.linspace(values.min(), values.max(), 40)
            axis.hist(values[~spikes], bins, density=True, alpha=0.6, color='grey', label='others')
            axis.hist(values[spikes], bins, density=True, alpha=0.6, color='C1', label='spikes')
            axis.set(title=f'{kind}: {spikes.sum()} of {len(spikes)}', yscale='log', xlabel='log odds of the score')
        row[0].set_ylabel(f'{detector}\ndensity', fontsize=8)
    axes[0, 0].legend(fontsize=8)
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
