"""Which detector is right on patients it has never seen? The autoencoder and classifier beside the usual choices.

    python benchmarks/quality.py [SIZE] [n_jobs=2] [name=value ...]

Simulates cohorts of patients at three signal-to-noise ratios, with misplaced and missing annotations; the patients of a
cohort come from three simulations, of other spikes and other background each. Every detector is trained on the
annotations of some patients, gets its threshold from others, and is tested on the simulated truth of those left. In the
first cohorts at the middle ratio, variants of the autoencoder and classifier show what each part of them brings.

SIZE is `small` (the default: narrow autoencoders, an hour on two cores), `full` (for a GPU: more patients and the
original's widths) or `tiny` (does it run?), see `SIZES`. Prints the table and writes quality.csv and quality.png into
path_writing_data. `n_jobs` cohorts are taken at a time, with one thread each.
"""

import contextlib
import io
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
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
from baselines import baselines, covariance_of, sfcn_on, with_margins
from cohorts import Cohort, CohortSize, Part, hidden_stretches, in_subwindows, rescaled, simulate_cohort
from kinds import present
from scipy.stats import t as student_t
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from threadpoolctl import threadpool_limits
from torch.optim.lr_scheduler import OneCycleLR

from classifiers.boosting import BoostedTrees
from classifiers.features import (
    N_POWERS,
    append_relative_power,
    peak_score,
    spatial_filters,
    spike_features,
    subtract_block_median,
)
from classifiers.inputs import N_FILTERS, error_cards, error_statistics, mean_error, zscore_planes
from classifiers.specs import Examples
from evaluation.events import sensitivity_curve
from evaluation.operating_point import best_f1_threshold
from models import build_model
from recordings.channels import N_CHANNELS
from runs.settings import read_command
from timeseries_dataset import PARTS
from training.losses import masked_loss, reconstruction_loss
from utils import SettingError, choose_device, run_script, set_seed, writing

SNR = {'easy': 5.0, 'medium': 3.0, 'hard': 2.0}


class Size(NamedTuple):
    """How much is simulated and trained.

    Attributes
    ----------
    cohorts : int
        At each signal-to-noise ratio.
    ablated : int
        Of the middle ratio, cohorts on which variants are tried.
    patients : CohortSize
    model : dict
        The autoencoder: its name, and settings of params.py where they are not the original's.
    epochs : int
        Of training of an autoencoder.
    rate : float
        Its largest learning rate.
    """

    cohorts: int
    ablated: int
    patients: CohortSize
    model: dict
    epochs: int
    rate: float


NARROW = {'name': 'AE1D', 'width': 2}
SIZES = {
    'tiny': Size(2, 1, CohortSize(3, 3, 3, 1, 40), NARROW, epochs=2, rate=2e-3),
    'small': Size(5, 3, CohortSize(6, 3, 6, 2, 60), NARROW, epochs=5, rate=2e-3),
    'full': Size(6, 6, CohortSize(30, 6, 12, 4, 180), {'name': 'AE1D'}, epochs=20, rate=1e-3),
}
BATCH = 16
# The detectors of this project in the table; what the others are compared with.
SUPERVISED, UNSUPERVISED = 'masked errors + hgb', 'masked errors + threshold (no annotation)'


def main(words: list[str]) -> None:
    """Run every detector on every cohort, and write the table and the picture."""
    positional, settings = read_command(words, n_positional=1)
    size = SIZES.get(*positional or ['small'])
    if size is None:
        raise SettingError(f'unknown size {positional[0]!r}: one of {", ".join(SIZES)}')
    # Those at medium, which take longest, first.
    difficulties = sorted(SNR, key=lambda difficulty: difficulty != 'medium')
    jobs = [(difficulty, cohort, size, settings) for difficulty in difficulties for cohort in range(size.cohorts)]
    if settings.n_jobs > 1:
        with ProcessPoolExecutor(settings.n_jobs, multiprocessing.get_context('spawn')) as pool:
            results = list(pool.map(on_one_thread, jobs))
    else:
        results = [scores_of_cohort(*job) for job in jobs]
    table = summarise([score for scores in results for score in scores], settings)
    print(table.to_string(index=False, float_format='{:.3f}'.format))
    directory = Path(settings.path_writing_data)
    with writing(directory / 'quality.csv') as temporary:
        table.to_csv(temporary, index=False)
    plot(table, directory / 'quality.png')


def on_one_thread(job: tuple) -> list:
    """`scores_of_cohort` in a process beside others."""
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        return scores_of_cohort(*job)


def scores_of_cohort(difficulty: str, number: int, size: Size, settings: SimpleNamespace) -> list[dict]:
    """The scores of every detector on a cohort, with what they are measured by."""
    started = time.perf_counter()
    seed = settings.seed + number
    set_seed(seed)
    device = choose_device(settings.device)
    cohort = simulate_cohort(SNR[difficulty], seed, size.patients, settings, present())
    key = {name: getattr(cohort, name)._replace(windows=None, signals=None) for name in ('validation', 'test')}
    autoencoder = train_autoencoder(cohort, size.model, size, seed, device)
    residuals = residuals_of(autoencoder, cohort, device)
    scores = []
    for name, found in detect(cohort, residuals, seed, device):
        scores.append({'difficulty': difficulty, 'seed': seed, 'detector': name, 'found': found, 'key': key})
        print_score(difficulty, seed, name, found, key, started)
    if difficulty == 'medium' and number < size.ablated:
        for name, found in ablation(cohort, residuals, seed, size, device):
            scores.append({'difficulty': 'ablation', 'seed': seed, 'detector': name, 'found': found, 'key': key})
            print_score('ablation', seed, name, found, key, started)
    return scores


# ----------------------------------------------------------------------------------------------- the detectors
def detect(cohort: Cohort, residuals: dict, seed: int, device: torch.device):
    """Yield the name and {part: scores} of every detector; the parts are validation and test."""
    yield from baselines(cohort, seed, device)
    # The same of the signal itself: what the autoencoder adds is seen beside it.
    signal = as_residuals(cohort)
    yield 'no autoencoder: signal + hgb', boosted(cohort, signal, seed)
    yield 'no autoencoder: signal + threshold', peaks(cohort, signal)
    yield SUPERVISED, boosted(cohort, residuals, seed)
    yield UNSUPERVISED, peaks(cohort, residuals)


def ablation(cohort: Cohort, residuals: dict, seed: int, size: Size, device: torch.device):
    """Yield the name and {part: scores} of variants of the autoencoder and the classifier."""
    plain = train_autoencoder(cohort, size.model, size, seed, device, masked=False)
    cards = {name: values[:, 0] for name, values in per_subwindow(plain, cohort, error_cards, device).items()}
    yield 'plain errors, error cards + SFCN', sfcn_on(cards, cohort, seed, device, flip=False)
    statistics = per_subwindow(plain, cohort, error_statistics, device)
    yield 'plain errors, statistics + hgb', trees(statistics, cohort, seed)
    score = per_subwindow(plain, cohort, mean_error, device)
    yield 'plain errors, mean + threshold', {name: values[:, 0] for name, values in score.items()}
    unreconstructed = plain_residuals_of(plain, cohort, device)
    yield 'plain errors + hgb', boosted(cohort, unreconstructed, seed)
    yield 'plain errors + threshold', peaks(cohort, unreconstructed)
    cards = cards_of_residuals(cohort, residuals)
    yield 'masked errors, error cards + SFCN', sfcn_on(cards, cohort, seed, device, flip=False)
    features = features_of(cohort, residuals)
    power = {name: values[:, :N_POWERS] for name, values in features.items()}
    yield 'masked errors, power alone + hgb', trees(power, cohort, seed)
    yield 'masked errors, no block median + hgb', trees(features, cohort, seed)
    both = {name: np.concatenate([features[name], more], axis=1)
            for name, more in features_of(cohort, as_residuals(cohort)).items()}  # fmt: skip
    yield 'masked errors and signal + hgb', trees(relative_to_blocks(both, cohort), cohort, seed)
    yield from with_margins(cohort, seed, device)
    for scaling in ('window', 'patient'):
        scaled = rescaled(cohort, scaling)
        residuals = residuals_of(train_autoencoder(scaled, size.model, size, seed, device), scaled, device)
        yield f'windows scaled by {scaling}, masked errors + hgb', boosted(scaled, residuals, seed)
        yield f'windows scaled by {scaling}, masked errors + threshold', peaks(scaled, residuals)


# ------------------------------------------------------------------------------- autoencoder and classifier
def train_autoencoder(
    cohort: Cohort, described: dict, size: Size, seed: int, device: torch.device, masked: bool = True
):  # fmt: skip
    """Train the autoencoder on all windows of the training patients: it needs no annotation."""
    set_seed(seed)
    model = build_model(n_channels=N_CHANNELS, n_times=cohort.train.windows.shape[2], **described).to(device)
    with torch.no_grad():
        n_pairs = len(model.eval()(torch.zeros(1, 1, *cohort.train.windows.shape[1:], device=device)))
    model.train()
    n_batches, weights = len(cohort.train.windows) // BATCH, [1.0] * n_pairs
    loss = masked_loss('mse', weights, cohort.sub, cohort.margin) if masked else reconstruction_loss('mse', weights)
    optimizer = torch.optim.Adam(model.parameters(), size.rate)
    scheduler = OneCycleLR(optimizer, size.rate, total_steps=size.epochs * n_batches, pct_start=0.2)
    for _ in range(size.epochs):
        for chosen in torch.randperm(len(cohort.train.windows))[: n_batches * BATCH].reshape(-1, BATCH):
            x = torch.from_numpy(cohort.train.windows[chosen.numpy()])[:, None].to(device)
            value = loss(model, x, x)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            scheduler.step()
    return model.eval()


def batched(function, part: Part, device: torch.device) -> np.ndarray:
    """What a function makes of the windows (batch, 1, 274, n_times) of a part, batch by batch."""
    with torch.no_grad():
        pieces = [
            function(torch.from_numpy(x)[:, None].to(device)).cpu()
            for x in np.array_split(part.windows, -(-len(part.windows) // BATCH))
        ]
    return torch.cat(pieces).numpy()


def residuals_of(model, cohort, device):
    """What the context does not predict of the signal, by part: (n, 274, n_subwindows, n_hidden)."""

    def extract(x):
        return model.masked_residuals(x, cohort.sub, cohort.margin, levels=[0])[:, 0]

    return {name: batched(extract, getattr(cohort, name), device) for name in PARTS}


def plain_residuals_of(model, cohort, device):
    """What a plain autoencoder does not reconstruct, laid out as `residuals_of`."""

    def extract(x):
        output, target = model(x)[0]
        return (target - output).reshape(len(x), N_CHANNELS, -1)

    return {name: hidden_stretches(batched(extract, getattr(cohort, name), device), cohort) for name in PARTS}


def as_residuals(cohort):
    """The signal itself, laid out as `residuals_of`."""
    return {name: hidden_stretches(getattr(cohort, name).windows, cohort) for name in PARTS}


def filters_of(cohort, residuals):
    """The spatial filters, from training windows and residuals."""
    covariance = covariance_of(cohort.train.windows[..., ::3])
    residual_windows = covariance_of(residuals['train'].reshape(len(residuals['train']), N_CHANNELS, -1)[..., ::3])
    return spatial_filters(covariance, residual_windows, N_FILTERS).astype(np.float32)


def features_of(cohort, residuals):
    """Features at the peak of the residual, by part."""
    filters = filters_of(cohort, residuals)
    features = {}
    for name in PARTS:
        arrays = map(torch.from_numpy, (getattr(cohort, name).windows, residuals[name], filters))
        features[name] = spike_features(*arrays, cohort.sub, cohort.margin).numpy()
    return features


def relative_to_blocks(features, cohort):
    """With the features of power beside those of their block."""
    return {name: append_relative_power(values, getattr(cohort, name).block) for name, values in features.items()}


def boosted(cohort, residuals, seed):
    """Scores by gradient-boosted trees on the features of residuals: the classifier `hgb`."""
    return trees(relative_to_blocks(features_of(cohort, residuals), cohort), cohort, seed)


def trees(features, cohort, seed):
    """Scores by gradient-boosted trees on features: the classifier `hgb`."""
    judge = BoostedTrees(seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        judge.fit(
            Examples(features['train'], cohort.train.annotated),
            Examples(features['validation'], cohort.validation.annotated),
            None,
        )
    return {name: judge.predict_proba(features[name]) for name in ('validation', 'test')}


def peaks(cohort, residuals):
    """Scores by the residual alone: the classifier `threshold`."""
    filters = filters_of(cohort, residuals)
    scores = {}
    for name in ('validation', 'test'):
        part = getattr(cohort, name)
        arrays = map(torch.from_numpy, (part.windows, residuals[name], filters))
        scores[name] = subtract_block_median(peak_score(*arrays, cohort.sub, cohort.margin).numpy(), part.block)
    return scores


def per_subwindow(model, cohort, inputs, device):
    """What a classifier without masking sees of the signal, by part: `inputs` as `error_cards`."""

    def extract(x):
        return inputs(model.error_cards(x, levels=[0]), cohort.sub)

    return {name: batched(extract, getattr(cohort, name), device) for name in PARTS}


def cards_of_residuals(cohort, residuals):
    """Error cards (n * n_subwindows, 274, n_times) of masked residuals, by part."""
    inside = slice(cohort.margin, cohort.margin + cohort.sub.subwindow_length)
    cards = {}
    for name, values in residuals.items():
        whole = zscore_planes(torch.from_numpy(values[..., inside]).square().flatten(-2)[:, None])[:, 0]
        cards[name] = in_subwindows(whole.numpy(), cohort.sub._replace(border=0))
    return cards


# ----------------------------------------------------------------------------------------------- the table
def print_score(difficulty, seed, name, found, key, started):
    """A line on a detector as soon as it is known, with the seconds since the cohort's start."""
    seconds = time.perf_counter() - started
    print(f'{difficulty:8s} {seed} {name:56s} {pr_auc(found, key):.3f} {seconds:6.0f} s', flush=True)


def pr_auc(found, key):
    """Area under the precision-recall curve on the truth of the test patients."""
    return average_precision_score(key['test'].truth, found['test'])


def figures_of(score: dict, settings: SimpleNamespace) -> dict:
    """The figures of a detector on the test patients of a cohort, and on those of either simulation."""
    found, key = score['found'], score['key']
    test = key['test']
    threshold = best_f1_threshold(key['validation'].annotated, found['validation'])
    # Ranks, because the curve wants distinct values between 0 and 1.
    proba = pd.Series(found['test']).rank(method='max').to_numpy() / (len(test.truth) + 1)
    tolerance = settings.tolerance * settings.sfreq
    n_times = round(settings.subwindow_size * settings.sfreq)
    curve = sensitivity_curve(test.places.assign(proba=proba), test.spikes, n_times, tolerance, settings.sfreq)
    # Far below, events grow together and false alarms seem to fall.
    within = ~(curve['false alarms/min'] > 1).cummax()
    figures = {
        'PR-AUC': pr_auc(found, key),
        'ROC-AUC': roc_auc_score(test.truth, found['test']),
        'F1': f1_score(test.truth, found['test'] >= threshold),
        'sensitivity at 1 FA/min': curve.loc[within, 'sensitivity'].max(),
        'positive': test.truth.mean(),
    }
    for name in np.unique(test.kind):
        rows = test.kind == name
        figures[f'PR-AUC, {name}'] = average_precision_score(test.truth[rows], found['test'][rows])
    return figures


def summarise(scores: list[dict], settings: SimpleNamespace) -> pd.DataFrame:
    """One row per difficulty and detector: means over cohorts, and 95 % intervals of PR-AUC.

    Cohorts are independent: other patients, other random numbers in every training. So the intervals are Student's t
    over cohorts, and hold what both contribute. The differences are those of the two detectors of this project minus
    the row's, in the same cohorts.
    """
    figures = pd.DataFrame(
        [{name: score[name] for name in ('difficulty', 'seed', 'detector')} | figures_of(score, settings)
         for score in scores]
    )  # fmt: skip
    pr_aucs = figures.pivot(index=['difficulty', 'detector'], columns='seed', values='PR-AUC')
    rows = []
    for (difficulty, detector), group in figures.groupby(['difficulty', 'detector'], sort=False):
        values = pr_aucs.loc[(difficulty, detector)]
        row = {'difficulty': difficulty, 'detector': detector, 'cohorts': len(group)}
        row |= group.drop(columns=['difficulty', 'detector', 'seed']).mean().to_dict()
        _, row['PR low'], row['PR high'] = mean_and_interval(values)
        for key, name in (('hgb', SUPERVISED), ('threshold', UNSUPERVISED)):
            ours = pr_aucs.loc[('medium' if difficulty == 'ablation' else difficulty, name)]
            names = (f'{key} - this', f'{key} - this low', f'{key} - this high')
            row |= dict(zip(names, mean_and_interval(ours - values), strict=True))
        rows.append(row | {f'PR-AUC, cohort {seed}': value for seed, value in values.items()})
    return pd.DataFrame(rows)


def mean_and_interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean of the values that are there, and the ends of its 95 % interval (Student's t)."""
    values = values.dropna()
    half = student_t.ppf(0.975, len(values) - 1) * values.std() / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return values.mean(), values.mean() - half, values.mean() + half


def plot(table: pd.DataFrame, path: Path) -> None:
    """PR-AUC of every detector with its interval, a panel per difficulty and one of the variants."""
    figure, axes = plt.subplots(2, 2, figsize=(15, 10), layout='constrained')
    for axis, (difficulty, rows) in zip(axes.flat, table.groupby('difficulty', sort=False), strict=True):
        whiskers = [rows['PR-AUC'] - rows['PR low'], rows['PR high'] - rows['PR-AUC']]
        colours = ['#0072B2' if name in (SUPERVISED, UNSUPERVISED) else '#999999' for name in rows['detector']]
        axis.barh(rows['detector'], rows['PR-AUC'], xerr=np.clip(whiskers, 0, None), color=colours)
        axis.axvline(rows['positive'].mean(), color='black', linestyle=':')
        title = f'{difficulty}: signal-to-noise {SNR[difficulty]:g}' if difficulty in SNR else 'variants, at medium'
        axis.set(title=title, xlabel='PR-AUC (dotted: chance)', xlim=(0, 1))
        axis.invert_yaxis()
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


if __name__ == '__main__':
    run_script(main, __doc__)
