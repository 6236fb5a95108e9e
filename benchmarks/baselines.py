"""What a user would pick instead of the autoencoder: detectors of spikes, from field power to networks."""

import numpy as np
import pandas as pd
import torch
from cohorts import Cohort, in_subwindows, masked_segments
from sklearn.ensemble import IsolationForest
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.optim.lr_scheduler import OneCycleLR

from classifiers.durations import duration_score
from classifiers.features import subtract_block_median
from classifiers.filtered import filter_windows
from classifiers.inputs import N_FILTERS
from models.sfcn import SFCN
from recordings.channels import N_CHANNELS
from timeseries_dataset import PARTS
from training.losses import spike_loss
from utils import set_seed

N_KEPT = 20  # components of PCA
CONTEXT = 75  # samples on either side from which the ridge predictor predicts
EPOCHS, RATE, WIDTH, NETWORK_BATCH = 8, 1e-3, 8, 64  # of the networks


def baselines(cohort: Cohort, seed: int):
    """Yield the name and {part: scores} of every detector; the parts are validation and test."""
    raw = {name: in_subwindows(getattr(cohort, name).windows, cohort.sub) for name in PARTS}
    tested = ('validation', 'test')
    labels = cohort.train.annotated

    yield 'field power, peak over median', {name: field_peak(raw[name], getattr(cohort, name)) for name in tested}
    features = {name: classic_features(raw[name]) for name in raw}
    forest = IsolationForest(n_estimators=200, random_state=seed).fit(features['train'])
    yield 'isolation forest', {name: -forest.score_samples(features[name]) for name in tested}
    ann = feature_network(features['train'], labels, seed)
    yield 'feature network', {name: ann.predict_proba(features[name])[:, 1] for name in tested}

    components = components_of(cohort)
    yield 'PCA reconstruction error', {name: pca_error(raw[name], components[:, :N_KEPT]) for name in tested}
    errors, _ = ridge_errors(cohort, components, 0)
    for how, measure in (('mean', np.mean), ('peak', np.max)):
        yield (
            f'ridge predictor, {how}',
            {name: np.log(measure(np.square(errors[name]).mean(axis=1), axis=1)) for name in tested},
        )


def networks(cohort: Cohort, seed: int, device: torch.device):
    """The group's network trained on raw sub-windows; yields as `baselines`."""
    raw = {name: in_subwindows(getattr(cohort, name).windows, cohort.sub) for name in PARTS}
    yield 'SFCN on raw windows', sfcn_on(raw, cohort, seed, device)


def raw_with_margins(cohort):
    """The sub-windows of every part with their margins, (n * n_subwindows, 274, n_masked)."""
    raw = {}
    for name in PARTS:
        segments = masked_segments(getattr(cohort, name).windows, cohort).swapaxes(1, 2)
        raw[name] = segments.reshape(-1, N_CHANNELS, segments.shape[3])
    return raw


def with_margins(cohort: Cohort):
    """Detectors that see the margins too.

    A sub-window counts as a spike's up to the margin beyond it, which those of `baselines` do not see. These do, as
    masking does, and the ridge predictor gets the very score of the classifier `threshold`.

    Yields
    ------
    str, dict
        As `baselines`.
    """
    tested = ('validation', 'test')
    raw = raw_with_margins(cohort)
    yield 'field power, with margins', {name: field_peak(raw[name], getattr(cohort, name)) for name in tested}

    components = components_of(cohort)
    errors, scales = ridge_errors(cohort, components, cohort.margin)
    same, scores = np.eye(components.shape[1], dtype=np.float32), {}
    for name in tested:
        part = getattr(cohort, name)
        n_components, n_masked = errors[name].shape[1:]
        residual_windows = (
            errors[name].reshape(len(part.windows), cohort.sub.n_subwindows, n_components, n_masked).swapaxes(1, 2)
        )
        arrays = (components.T @ part.windows / scales, residual_windows, same)
        tensors = (torch.from_numpy(array.astype(np.float32)) for array in arrays)
        score = duration_score(filter_windows(*tensors, cohort.sub, cohort.margin))[:, 0]
        scores[name] = subtract_block_median(score.numpy(), part.block)
    yield 'ridge predictor, with margins and the score of threshold', scores


def sfcn_on(maps: dict, cohort: Cohort, seed: int, device: torch.device, flip: bool = True) -> dict:
    """Scores {part: (n,)} by the group's network on maps {part: (n, channels, times)}, such as raw sub-windows."""
    return network_on(maps, lambda: SFCN(1, *maps['train'].shape[1:], width=WIDTH), cohort, seed, device, flip)


def network_on(maps, make, cohort, seed, device, flip=True):
    """Scores by the network that `make` gives, trained on maps; the seed decides its weights and its training."""
    set_seed(seed)
    network = make()
    train_network(network, maps['train'], cohort.train.annotated, seed, device, flip)
    return {part: network_scores(network, maps[part], device) for part in ('validation', 'test')}


def components_of(cohort):
    """The strongest principal components (channels, N_FILTERS) of training windows, the strongest first."""
    covariance = covariance_of(cohort.train.windows[..., ::3])
    return np.linalg.eigh(covariance)[1][:, : -N_FILTERS - 1 : -1].astype(np.float32)


def field_peak(raw, part):
    """Largest global field power (std over channels) in a sub-window over the median of its block."""
    power = np.log(raw.std(axis=1))
    typical = pd.Series(np.median(power, axis=1)).groupby(part.block).transform('median').to_numpy()
    return power.max(axis=1) - typical


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
    network = MLPClassifier((32,), alpha=1.0, random_state=seed)
    return make_pipeline(StandardScaler(), network).fit(features[rows], labels[rows])


def pca_error(raw, components):
    """Squared error of each sub-window behind the strongest principal components over channels."""
    return np.square(raw).sum(axis=(1, 2)) - np.square(components.T @ raw).sum(axis=(1, 2))


def ridge_errors(cohort, components, margin):
    """Predict each sub-window of each principal component from its context, by ridge regression.

    The context are the `CONTEXT` samples before and after the sub-window with `margin` samples on either side.

    Returns
    -------
    dict, array
        The errors (n * n_subwindows, components, n_times + 2 margin) of every part, each component scaled to errors of
        variance 1 in training; and by what they were divided (components, 1).
    """
    n_masked = cohort.sub.subwindow_length + 2 * margin

    def stretches(part):
        pieces = []
        for signal in part.signals:
            series = np.pad(components.T @ signal, ((0, 0), (CONTEXT, CONTEXT + n_masked)), mode='edge')
            hop = cohort.sub.n_subwindows * cohort.sub.subwindow_length
            n = ((signal.shape[1] - part.windows.shape[2]) // hop + 1) * cohort.sub.n_subwindows
            starts = cohort.sub.border - margin + cohort.sub.subwindow_length * np.arange(n)
            cut = np.lib.stride_tricks.sliding_window_view(series, n_masked + 2 * CONTEXT, axis=1)[:, starts]
            pieces.append(cut.swapaxes(0, 1))
        cut = np.concatenate(pieces)
        return np.concatenate([cut[..., :CONTEXT], cut[..., -CONTEXT:]], axis=2), cut[..., CONTEXT:-CONTEXT]

    context, wanted = stretches(cohort.train)
    weights = []
    for i in range(components.shape[1]):
        gram = context[:, i].T @ context[:, i]
        gram += 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram), dtype=gram.dtype)
        weights.append(np.linalg.solve(gram, context[:, i].T @ wanted[:, i]))

    errors = {}
    for name in PARTS:
        context, wanted = stretches(getattr(cohort, name))
        errors[name] = wanted - np.einsum('nic,ich->nih', context, np.stack(weights), optimize=True)
    scales = np.sqrt(np.square(errors['train']).mean(axis=(0, 2)))[:, None]
    return {name: error / scales for name, error in errors.items()}, scales


def train_network(network, raw, labels, seed, device, flip):
    """Train on sub-windows, spikes weighted so that both kinds count alike; with `flip`, either polarity alike."""
    network.to(device).train()
    rng = np.random.default_rng(seed)
    n_batches = len(raw) // NETWORK_BATCH
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2)
    scheduler = OneCycleLR(optimizer, 3 * RATE, total_steps=EPOCHS * n_batches)
    loss = spike_loss('bce', (1 - labels.mean()) / labels.mean(), focal_gamma=0.0)
    for _ in range(EPOCHS):
        for chosen in np.array_split(rng.permutation(len(raw))[: n_batches * NETWORK_BATCH], n_batches):
            sign = rng.choice([-1, 1], (len(chosen), 1, 1)).astype(np.float32) if flip else np.float32(1)
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


def covariance_of(windows):
    """Covariance over channels (channels, channels) of windows (n, channels, times)."""
    rows = windows.swapaxes(0, 1).reshape(windows.shape[1], -1)
    return (rows @ rows.T / rows.shape[1]).astype(np.float64)
