"""Which detector is right on patients it has never seen? The autoencoder and classifier beside the usual choices.

    python benchmarks/quality.py [n_jobs=2] [name=value ...]

Simulates cohorts of patients at three signal-to-noise ratios, with misplaced and missing annotations; every other
patient comes from a second simulation, of other spikes and other background. Every detector is trained on the
annotations of some patients, gets its threshold from others, and is tested on the simulated truth of those left. At the
middle ratio, variants of the autoencoder and classifier show what each part of them brings. Prints the table and writes
quality.csv and quality.png into path_writing_data. `n_jobs` cohorts are taken at a time, with one thread each.
"""

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl

mpl.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from baselines import baselines, covariance_of, network_scores, train_network
from cohorts import PATIENTS, Cohort, Part, hidden_stretches, in_subwindows, simulate_cohort
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from threadpoolctl import threadpool_limits
from torch.optim.lr_scheduler import OneCycleLR

from classification import (
    N_FILTERS,
    N_STRONGEST,
    best_f1_threshold,
    error_cards,
    error_statistics,
    mean_error,
    zscore_planes,
)
from data_raw import N_CHANNELS
from evaluation import sensitivity_curve
from loop import masked_loss, reconstruction_loss
from models import build_model
from models.features import beside_block, less_block_median, peak_score, spatial_filters, spike_features
from models.sfcn import SFCN
from settings import read_command
from utils import choose_device, run_script, set_seed, writing

N_SEEDS = 3
SNR = {'easy': 5.0, 'medium': 3.0, 'hard': 2.0}
# Narrow and short, as two cores can afford.
MODEL = {'name': 'AE1D', 'width': 2}
OTHER_MODEL = {'name': 'wavelets', 'filters': [8, 8, 8], 'pywt_mode': 'periodization'}
EPOCHS, RATE, BATCH = 6, 2e-3, 16
N_RESAMPLES = 1000
# The detectors of this project in the table; what the others are compared with.
SUPERVISED, UNSUPERVISED = 'masked errors + hgb', 'masked errors + threshold (no annotation)'


def main(words: list[str]) -> None:
    """Run every detector on every cohort, and write the table and the picture."""
    _, settings = read_command(words)
    seeds = range(settings.seed, settings.seed + N_SEEDS)
    # Those at medium, which take longest, first.
    difficulties = sorted(SNR, key=lambda difficulty: difficulty != 'medium')
    jobs = [(difficulty, seed, settings) for difficulty in difficulties for seed in seeds]
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


def scores_of_cohort(difficulty: str, seed: int, settings: SimpleNamespace) -> list[dict]:
    """The scores of every detector on a cohort, with what they are measured by."""
    started = time.perf_counter()
    set_seed(seed)
    device = choose_device(settings.device)
    cohort = simulate_cohort(SNR[difficulty], seed, settings)
    key = {name: getattr(cohort, name)._replace(windows=None, signals=None) for name in ('validation', 'test')}
    autoencoder = train_autoencoder(cohort, device)
    residuals = residuals_of(autoencoder, cohort, device)
    scores = []
    for name, found in detect(cohort, residuals, seed, device):
        scores.append({'difficulty': difficulty, 'seed': seed, 'detector': name, 'found': found, 'key': key})
        print(f'{difficulty} {seed} {name:44s} {pr_auc(found, key):.3f}', flush=True)
    if difficulty == 'medium':
        for name, found in ablation(cohort, residuals, seed, settings, device):
            scores.append({'difficulty': 'ablation', 'seed': seed, 'detector': name, 'found': found, 'key': key})
            print(f'ablation {seed} {name:44s} {pr_auc(found, key):.3f}', flush=True)
    print(f'  {difficulty} {seed}: {time.perf_counter() - started:.0f} s', flush=True)
    return scores


# ----------------------------------------------------------------------------------------------- the detectors
def detect(cohort: Cohort, residuals: dict, seed: int, device: torch.device):
    """Yield the name and {part: scores} of every detector; the parts are validation and test."""
    yield from baselines(cohort, seed, device)
    # The features of the signal itself: what the autoencoder adds to them is seen beside them.
    yield 'no autoencoder: signal + hgb', boosted(cohort, as_residuals(cohort), seed)
    yield SUPERVISED, boosted(cohort, residuals, seed)
    yield UNSUPERVISED, peaks(cohort, residuals)


def ablation(cohort: Cohort, residuals: dict, seed: int, settings: SimpleNamespace, device: torch.device):
    """Yield the name and {part: scores} of variants of the autoencoder and the classifier."""
    plain = train_autoencoder(cohort, device, masked=False)
    cards = per_subwindow(plain, cohort, error_cards, device)
    yield 'plain errors, error cards + SFCN', sfcn(cards, cohort, seed, device)
    statistics = per_subwindow(plain, cohort, error_statistics, device)
    yield 'plain errors, statistics + hgb', trees(statistics, cohort, seed)
    score = per_subwindow(plain, cohort, mean_error, device)
    yield 'plain errors, mean + threshold', {name: values[:, 0] for name, values in score.items()}
    unreconstructed = plain_residuals_of(plain, cohort, device)
    yield 'plain errors + hgb', boosted(cohort, unreconstructed, seed)
    yield 'plain errors + threshold', peaks(cohort, unreconstructed)
    yield 'masked errors, error cards + SFCN', sfcn(cards_of_residuals(cohort, residuals), cohort, seed, device)
    features = features_of(cohort, residuals)
    power = {name: values[:, :5] for name, values in features.items()}
    yield 'masked errors, power alone + hgb', trees(power, cohort, seed)
    yield 'masked errors, no block median + hgb', trees(features, cohort, seed)
    both = {name: np.concatenate([features[name], more], axis=1)
            for name, more in features_of(cohort, as_residuals(cohort)).items()}  # fmt: skip
    yield 'masked errors and signal + hgb', trees(beside_blocks(both, cohort), cohort, seed)
    other = residuals_of(train_autoencoder(cohort, device, OTHER_MODEL), cohort, device)
    yield f'{OTHER_MODEL["name"]}, masked errors + hgb', boosted(cohort, other, seed)
    yield f'{OTHER_MODEL["name"]}, masked errors + threshold', peaks(cohort, other)
    for scaling in ('window', 'patient'):
        scaled = simulate_cohort(SNR['medium'], seed, settings, scaling)
        residuals = residuals_of(train_autoencoder(scaled, device), scaled, device)
        yield f'windows scaled by {scaling}, masked errors + hgb', boosted(scaled, residuals, seed)
        yield f'windows scaled by {scaling}, masked errors + threshold', peaks(scaled, residuals)


# ------------------------------------------------------------------------------- autoencoder and classifier
def train_autoencoder(cohort: Cohort, device: torch.device, described: dict = MODEL, masked: bool = True):
    """Train the autoencoder on all windows of the training patients: it needs no annotation."""
    model = build_model(n_channels=N_CHANNELS, n_times=cohort.train.windows.shape[2], **described).to(device).train()
    n_batches = len(cohort.train.windows) // BATCH
    weights = [1.0] * len(model(torch.zeros(2, 1, *cohort.train.windows.shape[1:], device=device)))
    loss = masked_loss('mse', weights, cohort.sub, cohort.margin) if masked else reconstruction_loss('mse', weights)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    scheduler = OneCycleLR(optimizer, RATE, total_steps=EPOCHS * n_batches, pct_start=0.2)
    for _ in range(EPOCHS):
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
    """What the context does not foretell of the signal, by part: (n, 274, n_sub, n_hidden)."""

    def extract(x):
        return model.masked_residuals(x, cohort.sub, cohort.margin)[:, 0]

    return {name: batched(extract, getattr(cohort, name), device) for name in PATIENTS}


def plain_residuals_of(model, cohort, device):
    """What a plain autoencoder does not reconstruct, laid out as `residuals_of`."""

    def extract(x):
        output, target = model(x)[0]
        return (target - output).reshape(len(x), N_CHANNELS, -1)

    return {name: hidden_stretches(batched(extract, getattr(cohort, name), device), cohort) for name in PATIENTS}


def as_residuals(cohort):
    """The signal itself, laid out as `residuals_of`."""
    return {name: hidden_stretches(getattr(cohort, name).windows, cohort) for name in PATIENTS}


def filters_of(cohort, residuals):
    """The spatial filters, from training windows and residuals."""
    covariance = covariance_of(cohort.train.windows[..., ::3])
    unforeseen = covariance_of(residuals['train'].reshape(len(residuals['train']), N_CHANNELS, -1)[..., ::3])
    return spatial_filters(covariance, unforeseen, N_FILTERS).astype(np.float32)


def features_of(cohort, residuals):
    """Features at the peak of the residual, by part."""
    filters = filters_of(cohort, residuals)
    return {
        name: spike_features(getattr(cohort, name).windows, residuals[name], filters, cohort.sub, cohort.margin)
        for name in PATIENTS
    }


def beside_blocks(features, cohort):
    """With the features of power beside those of their block."""
    return {name: beside_block(values, getattr(cohort, name).block) for name, values in features.items()}


def boosted(cohort, residuals, seed):
    """Scores by gradient-boosted trees on the features of residuals: the classifier `hgb`."""
    return trees(beside_blocks(features_of(cohort, residuals), cohort), cohort, seed)


def trees(features, cohort, seed):
    """Scores by gradient-boosted trees, three times with other random numbers."""
    proba = dict.fromkeys(('validation', 'test'), 0.0)
    for tree_seed in range(3 * seed, 3 * seed + 3):
        fitted = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=15, l2_regularization=1.0,
            max_features=0.5, early_stopping=False, random_state=tree_seed,
        ).fit(features['train'], cohort.train.annotated)  # fmt: skip
        proba = {name: value + fitted.decision_function(features[name]) for name, value in proba.items()}
    return proba


def peaks(cohort, residuals):
    """Scores by the power of the residual alone: the classifier `threshold`."""
    filters = filters_of(cohort, residuals)[:N_STRONGEST]
    return {
        name: less_block_median(peak_score(residuals[name], filters), getattr(cohort, name).block)
        for name in ('validation', 'test')
    }


def per_subwindow(model, cohort, inputs, device):
    """What a classifier without masking sees of the signal, by part: `inputs` as `classification.Inputs`."""

    def extract(x):
        return inputs(model, x, cohort.sub, [0])

    return {name: batched(extract, getattr(cohort, name), device) for name in PATIENTS}


def cards_of_residuals(cohort, residuals):
    """Error cards (n * n_sub, 1, 274, n_times) of masked residuals, by part."""
    inside = slice(cohort.margin, cohort.margin + cohort.sub.n_times)
    cards = {}
    for name, values in residuals.items():
        whole = zscore_planes(torch.from_numpy(values[..., inside]).square().flatten(-2)[:, None])[:, 0]
        cards[name] = in_subwindows(whole.numpy(), cohort.sub._replace(border=0))[:, None]
    return cards


def sfcn(cards, cohort, seed, device):
    """Scores by the SFCN on error cards: the classifier `sfcn`."""
    cards = {name: values[:, 0] for name, values in cards.items()}
    network = SFCN(1, N_CHANNELS, cohort.sub.n_times, width=8)
    train_network(network, cards['train'], cohort.train.annotated, seed, device, flip=False)
    return {name: network_scores(network, cards[name], device) for name in ('validation', 'test')}


# ----------------------------------------------------------------------------------------------- the table
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
    figures = {
        'PR-AUC': pr_auc(found, key),
        'ROC-AUC': roc_auc_score(test.truth, found['test']),
        'F1': f1_score(test.truth, found['test'] >= threshold),
        'sensitivity at 1 FA/min': curve.loc[curve['false alarms/min'] <= 1, 'sensitivity'].max(),
        'positive': test.truth.mean(),
    }
    for name, rows in (('PR-AUC, first simulation', test.patient % 2 == 1), ('PR-AUC, second', test.patient % 2 == 0)):
        figures[name] = average_precision_score(test.truth[rows], found['test'][rows])
    return figures


def summarise(scores: list[dict], settings: SimpleNamespace) -> pd.DataFrame:
    """One row per difficulty and detector: means over seeds, and 95 % intervals over seeds and patients.

    The differences are those of the two detectors of this project minus the row's, on the same draws.
    """
    rows = []
    for difficulty in [*SNR, 'ablation']:
        of_difficulty = [score for score in scores if score['difficulty'] == difficulty]
        names = list(dict.fromkeys(score['detector'] for score in of_difficulty))
        groups = {name: [score for score in of_difficulty if score['detector'] == name] for name in names}
        drawn = {name: resampled(group) for name, group in groups.items()}
        compared = {'hgb': SUPERVISED, 'threshold': UNSUPERVISED}
        cohorts = 'medium' if difficulty == 'ablation' else difficulty
        ours = {
            key: resampled([s for s in scores if s['difficulty'] == cohorts and s['detector'] == name])
            for key, name in compared.items()
        }
        for name, group in groups.items():
            row = {'difficulty': difficulty, 'detector': name}
            row |= pd.DataFrame([figures_of(score, settings) for score in group]).mean().to_dict()
            row['PR low'], row['PR high'] = np.quantile(drawn[name], [0.025, 0.975])
            for key, values in ours.items():
                row[f'{key} - this low'], row[f'{key} - this high'] = np.quantile(values - drawn[name], [0.025, 0.975])
            rows.append(row)
    return pd.DataFrame(rows)


def resampled(group: list[dict]) -> np.ndarray:
    """PR-AUC (N_RESAMPLES,), mean over drawn seeds, on as many test patients drawn with replacement from both
    simulations alike; the same draws for everyone."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(N_RESAMPLES):
        drawn = []
        for run in rng.integers(len(group), size=len(group)):
            test, found = group[run]['key']['test'], group[run]['found']['test']
            patients = np.unique(test.patient)
            chosen = [
                one for kind in (0, 1) for one in rng.choice(patients[patients % 2 == kind], sum(patients % 2 == kind))
            ]
            rows = np.concatenate([np.flatnonzero(test.patient == one) for one in chosen])
            drawn.append(average_precision_score(test.truth[rows], found[rows]))
        values.append(np.mean(drawn))
    return np.array(values)


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
