"""The steps of the product on the windows of a cohort: autoencoder, residuals, features, classifiers, second look."""

import contextlib
import io
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from baselines import covariance_of
from cohorts import Cohort, Part, in_subwindows, masked_segments
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset

from classifiers.boosting import BoostedTrees
from classifiers.durations import duration_score
from classifiers.features import append_relative_power, fingerprints, spike_features, subtract_block_median
from classifiers.filtered import FilteredWindows, filter_windows, spatial_filters
from classifiers.forest import RandomForest
from classifiers.inputs import N_FILTERS, zscore_planes
from classifiers.pseudo_labels import pseudo_labels
from classifiers.second_look import Recordings, fit_second_look, second_look
from classifiers.specs import CLASSIFIERS, Examples
from classifiers.spectral import BlockSpectra
from classifiers.subwindows import SubwindowShape
from classifiers.threshold import MeanError
from evaluation.operating_point import calibrate, fit_calibration
from models import build_model
from recordings.channels import N_CHANNELS
from timeseries_dataset import PARTS
from training.losses import masked_loss, reconstruction_loss
from utils import set_seed

SNR = {'easy': 5.0, 'medium': 3.0, 'hard': 2.0}
BATCH = 16
# Of the network `finetuned`.
NETWORK_WIDTH, NETWORK_BATCH = 32, 16
PRETRAINING_STEPS = 750  # on pseudo-labels, about; 6 epochs at least


class Recipe(NamedTuple):
    """An autoencoder: its name and settings where they are not the original's, epochs, and its largest rate."""

    model: dict
    epochs: int
    rate: float


NARROW = Recipe({'name': 'AE1D', 'width': 2}, 5, 2e-3)
ORIGINAL = Recipe({'name': 'AE1D'}, 20, 1e-3)


def of_cohorts(function: Callable, jobs: Iterable[tuple], n_jobs: int) -> Iterator[Any]:
    """Yield what a function makes of the arguments of each cohort, in their order; `n_jobs` of them at a time."""
    if n_jobs == 1:
        yield from (function(*job) for job in jobs)
        return
    with ProcessPoolExecutor(n_jobs, multiprocessing.get_context('spawn')) as pool:
        yield from pool.map(_on_one_thread, ((function, job) for job in jobs))


def _on_one_thread(call: tuple[Callable, tuple]) -> Any:
    """Call a function in a process beside others."""
    function, arguments = call
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        return function(*arguments)


def train_autoencoder(cohort: Cohort, recipe: Recipe, seed: int, device: torch.device, masked: bool = True):
    """Train the autoencoder on all windows of the training patients: it needs no annotation."""
    set_seed(seed)
    model = build_model(n_channels=N_CHANNELS, n_times=cohort.train.windows.shape[2], **recipe.model).to(device)
    with torch.no_grad():
        n_pairs = len(model.eval()(torch.zeros(1, 1, *cohort.train.windows.shape[1:], device=device)))
    model.train()
    n_batches, weights = len(cohort.train.windows) // BATCH, [1.0] * n_pairs
    loss = masked_loss('mse', weights, cohort.sub, cohort.margin) if masked else reconstruction_loss('mse', weights)
    optimizer = torch.optim.Adam(model.parameters(), recipe.rate)
    scheduler = OneCycleLR(optimizer, recipe.rate, total_steps=recipe.epochs * n_batches, pct_start=0.2)
    for _ in range(recipe.epochs):
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
    """What the context does not predict of the signal, by part: (n, 274, n_subwindows, n_masked)."""

    def extract(x):
        return model.masked_residuals(x, cohort.sub, cohort.margin, levels=[0])[:, 0]

    return {name: batched(extract, getattr(cohort, name), device) for name in PARTS}


def plain_residuals_of(model, cohort, device):
    """What a plain autoencoder does not reconstruct, laid out as `residuals_of`."""

    def extract(x):
        output, target = model(x)[0]
        return (target - output).reshape(len(x), N_CHANNELS, -1)

    return {name: masked_segments(batched(extract, getattr(cohort, name), device), cohort) for name in PARTS}


def as_residuals(cohort):
    """The signal itself, laid out as `residuals_of`."""
    return {name: masked_segments(getattr(cohort, name).windows, cohort) for name in PARTS}


def spectral_residuals_of(cohort):
    """What the spectrum of each block does not predict of the signal, laid out as `residuals_of`."""
    filters, residuals = torch.from_numpy(filters_of(cohort, as_residuals(cohort))), {}
    for name in PARTS:
        part = getattr(cohort, name)
        x, blocks = torch.from_numpy(part.windows)[:, None], part.block[:: cohort.sub.n_subwindows]
        batches = [slice(first, first + BATCH) for first in range(0, len(x), BATCH)]
        every = np.ones(len(x), dtype=bool)
        spectra = BlockSpectra(filters, cohort.sub, cohort.margin, blocks, (x[rows] for rows in batches), every)
        residuals[name] = torch.cat([spectra.residuals(x[rows], rows)[:, 0] for rows in batches]).numpy()
    return residuals


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
        features[name] = spike_features(filtered(cohort, name, residuals, filters)).numpy()
    return features


def filtered(cohort, name, residuals, filters):
    """`FilteredWindows` of a part."""
    arrays = map(torch.from_numpy, (getattr(cohort, name).windows, residuals[name], filters))
    return filter_windows(*arrays, cohort.sub, cohort.margin)


def relative_to_blocks(features, cohort):
    """With the features of power beside those of their block."""
    return {name: append_relative_power(values, getattr(cohort, name).block) for name, values in features.items()}


def on_residuals(cohort, residuals, seed):
    """Scores on the features of residuals: the classifier `forest`."""
    return forest(relative_to_blocks(features_of(cohort, residuals), cohort), cohort, seed)


def forest(features, cohort, seed, labels=None):
    """Scores by extremely randomised trees on features: `forest`; labels are as annotated if not given."""
    return learn(RandomForest(seed=seed), features, cohort, labels)


def trees(features, cohort, seed, labels=None):
    """Scores by gradient-boosted trees on features: `hgb`; labels are as annotated if not given."""
    return learn(BoostedTrees(seed=seed), features, cohort, labels)


def learn(classifier, features, cohort, labels):
    """{part: scores} of a classifier."""
    with contextlib.redirect_stdout(io.StringIO()):
        classifier.fit(
            Examples(features['train'], cohort.train.annotated if labels is None else labels),
            Examples(features['validation'], cohort.validation.annotated),
            None,
        )
    return {name: classifier.predict_proba(features[name]) for name in ('validation', 'test')}


def peaks(cohort, residuals):
    """Scores by the residual alone: the classifier `threshold`."""
    filters = filters_of(cohort, residuals)
    scores, classifier = {}, MeanError()
    for name in PARTS:
        score = duration_score(filtered(cohort, name, residuals, filters)).numpy()
        scores[name] = subtract_block_median(score, getattr(cohort, name).block)
    with contextlib.redirect_stdout(io.StringIO()):
        classifier.fit(Examples(scores['train'], cohort.train.annotated), None, None)
    return {name: classifier.predict_proba(scores[name]) for name in ('validation', 'test')}


def recordings_of(cohort: Cohort, residuals: dict) -> dict[str, Recordings]:
    """What the second look knows of validation and test, from `residuals_of` or `as_residuals`."""
    filters = filters_of(cohort, residuals)
    return {
        name: recordings_of_part(getattr(cohort, name), filtered(cohort, name, residuals, filters), cohort.sub)
        for name in ('validation', 'test')
    }


def recordings_of_part(part: Part, windows: FilteredWindows, sub: SubwindowShape) -> Recordings:
    """What the second look knows of the filtered windows of a part."""
    timing = part.places['timing'].to_numpy() / sub.subwindow_length
    return Recordings(fingerprints(windows).numpy(), part.block, timing, np.ones(len(timing), dtype=bool))


def looked_again(scores: dict, cohort: Cohort, recordings: dict[str, Recordings]) -> dict:
    """Scores of validation and test after the second look; fitted on the annotations of validation.

    Parameters
    ----------
    scores : dict of arrays (n,)
        Of a detector, between 0 and 1, by part.
    recordings : dict
        See `recordings_of`.
    """
    look = fit_second_look(scores['validation'], recordings['validation'], cohort.validation.annotated)
    return {name: second_look(look, scores[name], recordings[name]) for name in scores}


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


# ------------------------------------------------------------------------------ networks on whole windows
def pseudo_labelled(cohort: Cohort, residuals: dict) -> Examples:
    """The training windows with pseudo-labels of their residuals."""
    windows = filtered(cohort, 'train', residuals, filters_of(cohort, residuals))
    scores = subtract_block_median(duration_score(windows).numpy(), cohort.train.block)[:, 0]
    labels = pseudo_labels(scores, recordings_of_part(cohort.train, windows, cohort.sub))
    return Examples(ArrayWindows(cohort.train.windows), labels.reshape(-1, cohort.sub.n_subwindows).astype(np.float32))


def finetuned(
    cohort: Cohort,
    autoencoder,
    encoder: str,
    pretraining: Examples | None,
    epochs: int,
    seed: int,
    settings: SimpleNamespace,
    device: torch.device,
) -> dict:
    """{part: scores} by the network `finetuned` on an autoencoder, which may learn pseudo-labels first.

    Unlike in the product, no epoch without progress stops it; the best on validation is kept, as there.
    """
    set_seed(seed)
    n_windows = 0 if pretraining is None else len(pretraining.labels)
    arguments = vars(settings) | {
        'device': device,
        'precision': 'float32',
        'seed': seed,
        'shape': cohort.sub,
        'preload': False,
        'autoencoder': autoencoder.to(device),
        'encoder': encoder,
        'pseudo_labelled': pretraining,
        'pretraining_epochs': max(6, PRETRAINING_STEPS * NETWORK_BATCH // max(n_windows, 1)),
        'classifier_width': NETWORK_WIDTH,
        'classifier_num_epochs': epochs,
        'classifier_n_epochs_stop': 10_000,
        'early_stop_on': 'pr_auc',
        'classifier_batch_size': NETWORK_BATCH * cohort.sub.n_subwindows,
        'positive_weight': 10.0,
        # Of a cohort only the labels of sub-windows are kept, which cannot be shifted.
        'classifier_augmentation': [name for name in settings.classifier_augmentation if name != 'shift'],
    }
    spec = CLASSIFIERS['finetuned']
    detector = spec.make(**{name: arguments[name] for name in spec.settings})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        detector.fit(
            examples(cohort.train, cohort),
            examples(cohort.validation, cohort),
            lambda which: Path(folder) / f'{which}.pth',
        )
    return {
        part: detector.predict_proba(ArrayWindows(getattr(cohort, part).windows)) for part in ('validation', 'test')
    }


def stacked(scores: list[dict], cohort: Cohort) -> dict:
    """{part: scores} of the mean log odds of detectors, each calibrated on the annotations of validation."""
    log_odds = []
    for of_detector in scores:
        calibration = fit_calibration('temperature', of_detector['validation'], cohort.validation.annotated)
        proba = {part: calibrate(calibration, values).clip(1e-12, 1 - 1e-12) for part, values in of_detector.items()}
        log_odds.append({part: logit(values) for part, values in proba.items()})
    return {part: expit(np.mean([of[part] for of in log_odds], axis=0)) for part in ('validation', 'test')}


class ArrayWindows(Dataset):
    """Batches of (input, target) windows of an array (n, 274, times)."""

    epoch = 0

    def __init__(self, windows: np.ndarray):
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole batch at once."""
        x = torch.from_numpy(self.windows[indices])[:, None]
        return x, x

    def hold(self, preload: str | bool, device: torch.device) -> None:
        """Windows in memory stay there."""


def examples(part: Part, cohort: Cohort) -> Examples:
    """Windows of a part, and time labels that mark every annotated sub-window whole."""
    border, n_subwindows, length = cohort.sub
    labels_t = np.zeros((len(part.windows), part.windows.shape[2]), dtype=np.uint8)
    inner = part.annotated.reshape(-1, n_subwindows).repeat(length, axis=1)
    labels_t[:, border : border + inner.shape[1]] = inner
    return Examples(ArrayWindows(part.windows), labels_t)
