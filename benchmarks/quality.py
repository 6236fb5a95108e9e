"""Which detector is right on patients it has never seen? The autoencoder and classifier beside the usual choices.

    python benchmarks/quality.py [name=value ...]

Simulates cohorts of patients at three signal-to-noise ratios, with misplaced and missing annotations. Every detector
is trained on the annotations of some patients, gets its threshold from others, and is tested on the simulated truth of
those left. Prints the table and writes quality.csv and quality.png into path_writing_data.
"""

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
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from classification import best_f1_threshold, subwindow_shape
from data_processing import N_CHANNELS, cut_block, time_labels, window_shape
from loop import masked_loss
from models import build_model
from models.features import beside_block, less_block_median, peak_score, spatial_filters, spike_features
from models.sfcn import SFCN, spike_loss
from simulate_data_raw import simulate_patient
from utils import choose_device, read_command, run_script, set_seed, writing

# Patients of a cohort: the first so many train, the next validate, the last test.
PATIENTS = {'train': 6, 'validation': 2, 'test': 4}
N_BLOCKS, BLOCK_SECONDS = 2, 70
N_SEEDS = 3
SNR = {'easy': 5.0, 'medium': 3.0, 'hard': 2.0}
SPIKE_RATE = 5.0  # per minute: 2 to 3 % of the sub-windows hold a part of a spike
# Narrow and short, as two cores can afford.
MODEL = {'name': 'wavelets', 'filters': [8, 8, 8], 'pywt_mode': 'periodization'}
EPOCHS, RATE, BATCH = 8, 2e-3, 16
NETWORK_EPOCHS, NETWORK_RATE, NETWORK_WIDTH = 8, 1e-3, 8
CONTEXT = 75  # samples on either side from which the ridge predictor foretells
N_RESAMPLES = 300


def main(words: list[str]) -> None:
    """Run every detector on every cohort, and write the table and the picture."""
    _, settings = read_command(words)
    settings.device = choose_device(settings.device)
    scores = []
    for difficulty, snr in SNR.items():
        for seed in range(settings.seed, settings.seed + N_SEEDS):
            set_seed(seed)
            cohort = simulate_cohort(snr, seed, settings)
            for name, found in detect(cohort, seed, settings):
                scores.append((difficulty, seed, name, found, cohort))
                print(f'{difficulty} {seed} {name:36s} {pr_auc(found, cohort):.3f}', flush=True)
    table = summarise(scores)
    print(table.to_string(index=False, float_format='{:.3f}'.format))
    directory = Path(settings.path_writing_data)
    with writing(directory / 'quality.csv') as temporary:
        table.to_csv(temporary, index=False)
    plot(table, directory / 'quality.png')


# --------------------------------------------------------------------------------------------- the cohorts
class Part(NamedTuple):
    """The windows of some patients of a cohort, in recording order.

    Attributes
    ----------
    windows : float32 array (n, 274, n_times)
    signals : list of float32 arrays (274, n_samples)
        The blocks, scaled as the windows are.
    annotated, truth : int arrays (n * n_sub,)
        Whether a sub-window holds a part of a spike: to the annotation, in fact.
    block, patient : int arrays (n * n_sub,)
    """

    windows: np.ndarray
    signals: list[np.ndarray]
    annotated: np.ndarray
    truth: np.ndarray
    block: np.ndarray
    patient: np.ndarray


class Cohort(NamedTuple):
    """Three sets of patients, and how their windows are cut."""

    train: Part
    validation: Part
    test: Part
    sub: tuple
    margin: int


def simulate_cohort(snr: float, seed: int, settings: SimpleNamespace) -> Cohort:
    """Simulate patients who differ in rate and strength of their spikes, in other transients and in annotation."""
    shape = window_shape(
        window_size=settings.window_size,
        spike_spacing_from_border=settings.spike_spacing_from_border,
        pulse_width=settings.pulse_width,
        sfreq=settings.sfreq,
    )
    sub = subwindow_shape(shape.n_times, shape.border, round(settings.subwindow_size * settings.sfreq))
    made, subject = [], 0
    for n_patients in PATIENTS.values():
        rows = {name: [] for name in Part._fields}
        for _ in range(n_patients):
            subject += 1
            rng = np.random.default_rng([seed, subject, 1])
            data, truth = simulate_patient(
                subject=subject,
                n_blocks=N_BLOCKS,
                block_seconds=BLOCK_SECONDS,
                spike_rate=SPIKE_RATE * rng.lognormal(0, 0.2),
                snr=snr * rng.lognormal(0, 0.25),
                distractor_rate=rng.uniform(1, 7),
                annotation_jitter=rng.uniform(0.005, 0.025),
                annotation_missed=rng.uniform(0.05, 0.3),
                spike_free=False,
                sfreq=settings.sfreq,
                seed=seed,
            )
            for block, (signal, events) in enumerate(zip(data['meg'], data['events'], strict=True)):
                cut, _ = cut_block(
                    signal, events, shape,
                    normal_only=False, standardize='block', reject_artefacts=False, artefact_threshold=np.inf,
                )  # fmt: skip
                peaks = truth.loc[truth['block'] == block, 'sample'].to_numpy()
                true_t = time_labels(len(cut.windows), peaks, shape)
                n = len(cut.windows) * sub.n_sub
                rows['windows'].append(cut.windows)
                rows['signals'].append(((signal - signal.mean()) / signal.std()).astype(np.float32))
                for name, marked in (('annotated', cut.labels_t), ('truth', true_t)):
                    inner = marked[:, sub.border : sub.border + sub.n_sub * sub.n_times]
                    rows[name].append(inner.reshape(-1, sub.n_times).any(axis=1).astype(int))
                rows['block'].append(np.full(n, subject * N_BLOCKS + block))
                rows['patient'].append(np.full(n, subject))
        made.append(Part(**{name: v if name == 'signals' else np.concatenate(v) for name, v in rows.items()}))
    return Cohort(*made, sub, shape.half_pulse)


def subwindows(part: Part, sub: tuple) -> np.ndarray:
    """(n * n_sub, 274, n_times): the sub-windows as they are."""
    inner = part.windows[..., sub.border : sub.border + sub.n_sub * sub.n_times]
    pieces = inner.reshape(len(inner), N_CHANNELS, sub.n_sub, sub.n_times)
    return pieces.swapaxes(1, 2).reshape(-1, N_CHANNELS, sub.n_times)


# ------------------------------------------------------------------------------------------- the detectors
def detect(cohort: Cohort, seed: int, settings: SimpleNamespace):
    """Yield the name and {part: scores} of every detector; the parts are validation and test."""
    started = time.perf_counter()
    raw = {name: subwindows(getattr(cohort, name), cohort.sub) for name in PATIENTS}
    tested = ('validation', 'test')
    labels = cohort.train.annotated

    yield 'field power, peak over median', {name: field_peak(raw[name], getattr(cohort, name)) for name in tested}
    features = {name: classic_features(raw[name]) for name in raw}
    forest = IsolationForest(n_estimators=200, random_state=seed).fit(features['train'])
    yield 'isolation forest', {name: -forest.score_samples(features[name]) for name in tested}
    ann = feature_network(features['train'], labels, seed)
    yield 'feature network', {name: ann.predict_proba(features[name])[:, 1] for name in tested}

    covariance = _covariance(cohort.train.windows[..., ::3])
    yield 'PCA reconstruction error', {name: pca_error(raw[name], covariance, 20) for name in tested}
    for how, found in ridge_predictor(cohort, covariance, 20).items():
        yield f'ridge predictor, {how}', found

    for name, network in (
        ('SFCN on raw windows', SFCN(1, N_CHANNELS, cohort.sub.n_times, width=NETWORK_WIDTH)),
        ('EMS-Net on raw windows', EMSNet()),
    ):
        train_network(network, raw['train'], labels, seed, settings.device)
        yield name, {part: network_scores(network, raw[part], settings.device) for part in tested}

    # The features of the signal itself: what the autoencoder adds to them is seen beside them.
    shown = {}
    for name in PATIENTS:
        part = getattr(cohort, name)
        starts = [cohort.sub.border + k * cohort.sub.n_times - cohort.margin for k in range(cohort.sub.n_sub)]
        n_hidden = cohort.sub.n_times + 2 * cohort.margin
        shown[name] = np.stack([part.windows[..., start : start + n_hidden] for start in starts], axis=2)
    yield 'no autoencoder: signal + hgb', boosted(cohort, shown, covariance, seed)['hgb']
    del shown

    autoencoder = train_autoencoder(cohort, settings.device)
    residuals = {name: residuals_of(autoencoder, getattr(cohort, name), cohort, settings.device) for name in PATIENTS}
    for how, found in boosted(cohort, residuals, covariance, seed).items():
        yield f'{MODEL["name"]}, masked + {how}', found
    print(f'  cohort of {sum(PATIENTS.values())} patients in {time.perf_counter() - started:.0f} s', flush=True)


def field_peak(raw, part):
    """Largest global field power (std over channels) in a sub-window over the median of its block."""
    power = np.log(raw.std(axis=1))
    usual = pd.Series(np.median(power, axis=1)).groupby(part.block).transform('median').to_numpy()
    return power.max(axis=1) - usual


def classic_features(raw):
    """Peak-to-peak, steepest upslope, std and mean absolute slope of each channel, in logs."""
    slope = np.diff(raw, axis=2)
    shapes = (np.ptp(raw, axis=2), slope.max(axis=2), raw.std(axis=2), np.abs(slope).mean(axis=2))
    return np.log(np.concatenate(shapes, axis=1).clip(1e-6))


def feature_network(features, labels, seed):
    """A network of one hidden layer on the features, spikes repeated until there is one for every five others."""
    spikes = np.flatnonzero(labels)
    again = np.random.default_rng(seed).choice(spikes, len(labels) // 5)
    rows = np.concatenate([np.arange(len(labels)), again])
    network = MLPClassifier((32,), alpha=1.0, max_iter=60, early_stopping=True, random_state=seed)
    return make_pipeline(StandardScaler(), network).fit(features[rows], labels[rows])


def pca_error(raw, covariance, n_components):
    """Mean squared error of each sub-window behind the strongest principal components over channels."""
    components = np.linalg.eigh(covariance)[1][:, -n_components:].astype(np.float32)
    power = np.square(raw).sum(axis=(1, 2))
    return power - np.square(components.T @ raw).sum(axis=(1, 2))


def ridge_predictor(cohort, covariance, n_components):
    """Foretell each sub-window of each principal component from `CONTEXT` samples on either side.

    Gives its error with each component scaled to the same: the mean over the sub-window, and the largest.
    """
    components = np.linalg.eigh(covariance)[1][:, ::-1][:, :n_components].astype(np.float32)
    hidden = cohort.sub.n_times

    def stretches(part):
        pieces = []
        for signal in part.signals:
            series = np.pad(components.T @ signal, ((0, 0), (CONTEXT, CONTEXT + hidden)), mode='edge')
            n_window = part.windows.shape[2]
            hop = cohort.sub.n_sub * hidden
            n = ((signal.shape[1] - n_window) // hop + 1) * cohort.sub.n_sub
            starts = cohort.sub.border + hidden * np.arange(n)
            cut = np.lib.stride_tricks.sliding_window_view(series, hidden + 2 * CONTEXT, axis=1)[:, starts]
            pieces.append(cut.swapaxes(0, 1))
        cut = np.concatenate(pieces)
        return np.concatenate([cut[..., :CONTEXT], cut[..., -CONTEXT:]], axis=2), cut[..., CONTEXT:-CONTEXT]

    context, wanted = stretches(cohort.train)
    weights = []
    for i in range(n_components):
        gram = context[:, i].T @ context[:, i]
        gram += 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram), dtype=gram.dtype)
        weights.append(np.linalg.solve(gram, context[:, i].T @ wanted[:, i]))

    def power(part):
        context, wanted = stretches(part)
        return np.square(wanted - np.einsum('nic,ich->nih', context, np.stack(weights), optimize=True))

    usual = power(cohort.train).mean(axis=(0, 2))[:, None]
    errors = {name: (power(getattr(cohort, name)) / usual).mean(axis=1) for name in ('validation', 'test')}
    found = {}
    for how, measure in (('mean', np.mean), ('peak', np.max)):
        found[how] = {name: np.log(measure(error, axis=1)) for name, error in errors.items()}
    return found


class EMSNet(nn.Module):
    """A network after EMS-Net's idea: features of each channel, and of all channels together, weighed at the end.

    Built from a description of one sentence: one small 1D network, the same for every channel, makes the local
    features; a 2D network over channels and local features makes the global ones. Layers, widths and training are this
    project's, so that its figures are not those of the published network.

    References
    ----------
    Zheng et al., "EMS-Net: a deep learning method for autodetecting epileptic magnetoencephalography spikes", IEEE
    Transactions on Medical Imaging 39, 2020.
    """

    def __init__(self, width: int = 16):
        super().__init__()

        def stage(kind, norm, n_in, n_out, pool, stride=1):
            return [kind(n_in, n_out, 3, stride, 1), norm(n_out), nn.ReLU(), pool(2)]

        one = nn.Conv1d, nn.BatchNorm1d
        two = nn.Conv2d, nn.BatchNorm2d
        self.local = nn.Sequential(
            *stage(*one, 1, width, nn.MaxPool1d), *stage(*one, width, width, nn.MaxPool1d),
            *stage(*one, width, width, nn.AdaptiveMaxPool1d)[:-1], nn.AdaptiveMaxPool1d(1),
        )  # fmt: skip
        self.overall = nn.Sequential(
            *stage(*two, 1, width, nn.MaxPool2d, (2, 1)), *stage(*two, width, 2 * width, nn.MaxPool2d),
            *stage(*two, 2 * width, 2 * width, nn.MaxPool2d)[:-1], nn.AdaptiveMaxPool2d(1),
        )  # fmt: skip
        self.output = nn.Sequential(nn.Dropout(0.5), nn.Linear(3 * width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch,) of sub-windows (batch, 1, channels, times)."""
        local = self.local(x.flatten(0, 2)[:, None]).reshape(len(x), 1, x.shape[2], -1)
        return self.output(torch.cat([self.overall(local).flatten(1), local.amax(dim=(1, 2))], dim=1))[:, 0]


def train_network(network, raw, labels, seed, device):
    """Train on sub-windows, spikes weighted so that both kinds count alike, either polarity alike."""
    set_seed(seed)
    network.to(device).train()
    rng = np.random.default_rng(seed)
    n_batches = len(raw) // 64
    optimizer = torch.optim.AdamW(network.parameters(), NETWORK_RATE, weight_decay=1e-2)
    scheduler = OneCycleLR(optimizer, 3 * NETWORK_RATE, total_steps=NETWORK_EPOCHS * n_batches)
    loss = spike_loss('bce', (1 - labels.mean()) / labels.mean(), focal_gamma=0.0)
    for _ in range(NETWORK_EPOCHS):
        for chosen in np.array_split(rng.permutation(len(raw))[: n_batches * 64], n_batches):
            sign = rng.choice([-1, 1], (len(chosen), 1, 1)).astype(np.float32)
            x = torch.from_numpy(raw[chosen] * sign)[:, None].to(device)
            value = loss(network, x, torch.from_numpy(labels[chosen].astype(np.float32)).to(device))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            scheduler.step()


def network_scores(network, raw, device):
    """Logits of sub-windows."""
    network.eval()
    with torch.no_grad():
        logits = [network(torch.from_numpy(x)[:, None].to(device)).cpu() for x in np.array_split(raw, 16)]
    return torch.cat(logits).numpy()


# ------------------------------------------------------------------------------- autoencoder and classifier
def train_autoencoder(cohort, device):
    """Train the masked autoencoder on all windows of the training patients: it needs no annotation."""
    settings = dict(MODEL)
    model = build_model(settings.pop('name'), N_CHANNELS, cohort.train.windows.shape[2], **settings).to(device).train()
    n_batches = len(cohort.train.windows) // BATCH
    n_pairs = len(model(torch.zeros(2, 1, *cohort.train.windows.shape[1:], device=device)))
    loss = masked_loss('mse', [1.0] * n_pairs, cohort.sub, cohort.margin)
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


def residuals_of(model, part, cohort, device):
    """What the context does not foretell of the signal: (n, 274, n_sub, n_hidden)."""
    with torch.no_grad():
        pieces = [
            model.masked_residuals(torch.from_numpy(x)[:, None].to(device), cohort.sub, cohort.margin)[:, 0].cpu()
            for x in np.array_split(part.windows, -(-len(part.windows) // BATCH))
        ]
    return torch.cat(pieces).numpy()


def boosted(cohort, residuals, covariance, seed):
    """Scores by the power of the residual alone, and by gradient-boosted trees on its features."""
    unforeseen = _covariance(residuals['train'].reshape(len(residuals['train']), N_CHANNELS, -1)[..., ::3])
    filters = spatial_filters(covariance, unforeseen, 60).astype(np.float32)
    features, scores = {}, {}
    for name in PATIENTS:
        part = getattr(cohort, name)
        found = spike_features(part.windows, residuals[name], filters, cohort.sub, cohort.margin)
        features[name] = beside_block(found, part.block)
        # The strongest components alone: where no annotation says what matters, the weak ones are noise.
        power = peak_score(part.windows, residuals[name], filters[:20])
        scores[name] = less_block_median(power, part.block)
    proba = dict.fromkeys(('validation', 'test'), 0.0)
    for tree_seed in range(3 * seed, 3 * seed + 3):
        trees = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=15, l2_regularization=1.0,
            max_features=0.5, early_stopping=False, random_state=tree_seed,
        ).fit(features['train'], cohort.train.annotated)  # fmt: skip
        proba = {name: value + trees.decision_function(features[name]) for name, value in proba.items()}
    return {'hgb': proba, 'threshold (no annotation)': {name: scores[name] for name in proba}}


def _covariance(windows):
    """Covariance over channels (channels, channels) of windows (n, channels, times)."""
    rows = windows.swapaxes(0, 1).reshape(windows.shape[1], -1)
    return (rows @ rows.T / rows.shape[1]).astype(np.float64)


# ----------------------------------------------------------------------------------------------- the table
def pr_auc(found, cohort):
    """Area under the precision-recall curve on the truth of the test patients."""
    return average_precision_score(cohort.test.truth, found['test'])


def summarise(scores):
    """One row per difficulty and detector: means over seeds, and the 95 % interval over seeds and patients."""
    rows = []
    frame = pd.DataFrame(scores, columns=['difficulty', 'seed', 'detector', 'found', 'cohort'])
    for (difficulty, detector), group in frame.groupby(['difficulty', 'detector'], sort=False):
        figures = []
        for found, cohort in zip(group['found'], group['cohort'], strict=True):
            threshold = best_f1_threshold(cohort.validation.annotated, found['validation'])
            figures.append(
                {
                    'PR-AUC': pr_auc(found, cohort),
                    'ROC-AUC': roc_auc_score(cohort.test.truth, found['test']),
                    'F1': f1_score(cohort.test.truth, found['test'] >= threshold),
                    'positive': cohort.test.truth.mean(),
                }
            )
        low, high = np.quantile(_resampled(group), [0.025, 0.975])
        mean = pd.DataFrame(figures).mean().to_dict()
        rows.append({'difficulty': difficulty, 'detector': detector} | mean | {'PR low': low, 'PR high': high})
    return pd.DataFrame(rows)


def _resampled(group):
    """PR-AUC, mean over drawn seeds, on as many test patients drawn with replacement; the same draws for everyone."""
    rng = np.random.default_rng(0)
    runs = list(zip(group['found'], group['cohort'], strict=True))
    values = []
    for _ in range(N_RESAMPLES):
        drawn = []
        for run in rng.integers(len(runs), size=len(runs)):
            found, cohort = runs[run]
            patients = np.unique(cohort.test.patient)
            rows = [np.flatnonzero(cohort.test.patient == one) for one in rng.choice(patients, len(patients))]
            rows = np.concatenate(rows)
            drawn.append(average_precision_score(cohort.test.truth[rows], found['test'][rows]))
        values.append(np.mean(drawn))
    return values


def plot(table, path):
    """PR-AUC of every detector with its interval, one panel per difficulty."""
    figure, axes = plt.subplots(1, len(SNR), figsize=(13, 5), sharey=True, squeeze=False, layout='constrained')
    for axis, (difficulty, rows) in zip(axes[0], table.groupby('difficulty', sort=False), strict=True):
        whiskers = [rows['PR-AUC'] - rows['PR low'], rows['PR high'] - rows['PR-AUC']]
        colours = ['#0072B2' if 'masked' in name else '#999999' for name in rows['detector']]
        axis.barh(rows['detector'], rows['PR-AUC'], xerr=np.clip(whiskers, 0, None), color=colours)
        axis.axvline(rows['positive'].mean(), color='black', linestyle=':')
        axis.set(title=f'{difficulty}: signal-to-noise {SNR[difficulty]:g}', xlabel='PR-AUC', xlim=(0, 1))
    axes[0, 0].invert_yaxis()
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


if __name__ == '__main__':
    run_script(main, __doc__)
