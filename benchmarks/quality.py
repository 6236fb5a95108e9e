"""Which detector is right on patients it has never seen? The autoencoder and classifier beside the usual choices.

    python benchmarks/quality.py [SIZE] [EEG] [n_jobs=2] [name=value ...]

Simulates cohorts of patients of five kinds (`kinds.py`: other backgrounds, spikes and transients in each; two of them
hold recorded EEG and recorded spikes), with misplaced and missing annotations. Every detector is trained on the
annotations of some patients, gets its threshold from others of that kind, and is tested on the simulated truth of those
left. The table gives the mean over kinds, the worst kind, and the kinds held out: those at which nobody looked before
features and scores were chosen. A second table makes each choice on all kinds but one, and reports it on that one.

SIZE is `small` (the default: narrow autoencoders, an hour on two cores), `short` (a fifth of that), `full`
(for a GPU: more patients and the original's widths) or `tiny` (does it run?), see `SIZES`. EEG is a folder of EDF
files, of two people or more, for the kind 'eeg'. Writes quality.csv, quality_cohorts.csv, quality_choices.csv,
quality.png and quality_scores.png (what spikes and others score) into path_writing_data. `n_jobs` cohorts are taken at
a time, with one thread each.
"""

import contextlib
import functools
import io
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from baselines import baselines, covariance_of, networks, sfcn_on, with_margins
from cohorts import Cohort, CohortSize, Part, chosen_size, in_subwindows, masked_segments, rescaled, simulate_cohort
from kinds import EEG, KINDS, present
from quality_table import (
    PRODUCT,
    PRODUCT_UNSUPERVISED,
    SUPERVISED,
    UNSUPERVISED,
    figures_by_cohort,
    leave_one_kind_out,
    plot,
    plot_scores,
    pr_auc,
    summarise,
)
from threadpoolctl import threadpool_limits
from torch.optim.lr_scheduler import OneCycleLR

from classifiers.boosting import BoostedTrees
from classifiers.copies import COPIES
from classifiers.durations import duration_score
from classifiers.features import (
    N_POWERS,
    append_relative_power,
    fingerprints,
    spike_features,
    subtract_block_median,
)
from classifiers.filtered import filter_windows, spatial_filters
from classifiers.forest import RandomForest
from classifiers.inputs import N_FILTERS, error_cards, error_statistics, mean_error, zscore_planes
from classifiers.second_look import Recordings, fit_second_look, second_look
from classifiers.specs import Examples
from classifiers.threshold import MeanError
from models import build_model
from recordings.channels import N_CHANNELS
from runs.settings import read_command
from timeseries_dataset import PARTS
from training.losses import masked_loss, reconstruction_loss
from utils import choose_device, run_script, set_seed, writing

SNR = {'easy': 5.0, 'medium': 3.0, 'hard': 2.0}


class Size(NamedTuple):
    """How much is simulated and trained.

    Attributes
    ----------
    cohorts : dict
        How many of each kind, by signal-to-noise ratio, see `SNR`.
    networks, retrained : int
        How many of each kind, at the middle ratio, on which networks are trained on raw windows, and variants are
        tried that train another autoencoder: both take longer than all else.
    patients : CohortSize
    model : dict
        The autoencoder: its name, and settings of params.py where they are not the original's.
    epochs : int
        Of training of an autoencoder.
    rate : float
        Its largest learning rate.
    """

    cohorts: dict[str, int]
    networks: int
    retrained: int
    patients: CohortSize
    model: dict
    epochs: int
    rate: float


NARROW = {'name': 'AE1D', 'width': 2}
SIZES = {
    'tiny': Size({'medium': 1}, 1, 1, CohortSize(2, 2, 2, 1, 40), NARROW, epochs=2, rate=2e-3),
    'short': Size({'medium': 1}, 0, 0, CohortSize(5, 2, 3, 2, 60), NARROW, epochs=5, rate=2e-3),
    'small': Size({'medium': 2, 'easy': 1, 'hard': 1}, 1, 0, CohortSize(6, 2, 4, 2, 60), NARROW, epochs=5, rate=2e-3),
    'full': Size(
        {'medium': 6, 'easy': 6, 'hard': 6}, 6, 6, CohortSize(30, 6, 12, 4, 180), {'name': 'AE1D'}, epochs=20, rate=1e-3
    ),
}
BATCH = 16
BOOSTED = 'masked errors + hgb'


def main(words: list[str]) -> None:
    """Run every detector on every cohort, and write the table and the picture."""
    positional, settings = read_command(words, n_positional=2)
    name, eeg = positional + ['small', str(EEG)][len(positional) :]
    size = chosen_size(SIZES, name)
    kinds = present(eeg=eeg)
    jobs = [
        (difficulty, kind, number, size, eeg, settings)
        for difficulty, n_cohorts in size.cohorts.items()
        for number in range(n_cohorts)
        for kind in kinds
    ]
    if settings.n_jobs > 1:
        with ProcessPoolExecutor(settings.n_jobs, multiprocessing.get_context('spawn')) as pool:
            results = list(pool.map(on_one_thread, jobs))
    else:
        results = [scores_of_cohort(*job) for job in jobs]
    figures = figures_by_cohort([score for scores in results for score in scores], settings)
    directory = Path(settings.path_writing_data)
    for name, table in (
        ('quality_cohorts', figures),
        ('quality', summarise(figures)),
        ('quality_choices', leave_one_kind_out(figures)),
    ):
        if name != 'quality_cohorts':
            print(table.to_string(index=False, float_format='{:.3f}'.format))
        with writing(directory / f'{name}.csv') as temporary:
            table.to_csv(temporary, index=False)
    plot(figures, directory / 'quality.png', list(size.cohorts))
    shown = [score for scores in results for score in scores if score['difficulty'] == 'medium']
    plot_scores(shown, directory / 'quality_scores.png')


def on_one_thread(job: tuple) -> list:
    """`scores_of_cohort` in a process beside others."""
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        return scores_of_cohort(*job)


def scores_of_cohort(
    difficulty: str, kind: str, number: int, size: Size, eeg: str | Path, settings: SimpleNamespace
) -> list[dict]:
    """The scores of every detector on a cohort, with what they are measured by."""
    started = time.perf_counter()
    seed = settings.seed + 1000 * KINDS.index(kind) + number
    set_seed(seed)
    device = choose_device(settings.device)
    cohort = simulate_cohort(SNR[difficulty], seed, size.patients, settings, kind, eeg)
    key = {name: getattr(cohort, name)._replace(windows=None, signals=None) for name in ('validation', 'test')}
    autoencoder = train_autoencoder(cohort, size.model, size, seed, device)
    residuals = residuals_of(autoencoder, cohort, device)
    tried = [detect(cohort, autoencoder, residuals, seed, device)]
    if difficulty == 'medium' and number < size.networks:
        tried.append(networks(cohort, seed, device))
    if difficulty == 'medium' and number < size.retrained:
        tried.append(retrained(cohort, size, seed, device))
        for name in ('mirror', 'both'):
            [copied] = with_copies(cohort, autoencoder, residuals, name, seed, device, (forest,))
            tried.append([(f'{SUPERVISED}, copies {name}', copied)])
    scores = []
    for name, outputs in itertools.chain(*tried):
        scores.append(
            {'difficulty': difficulty, 'kind': kind, 'seed': seed, 'detector': name, 'outputs': outputs, 'key': key}
        )
        seconds = time.perf_counter() - started
        print(f'{difficulty:8s} {kind:10s} {seed} {name:56s} {pr_auc(outputs, key):.3f} {seconds:6.0f} s', flush=True)
    return scores


# ----------------------------------------------------------------------------------------------- the detectors
def detect(cohort: Cohort, autoencoder, residuals: dict, seed: int, device: torch.device):
    """Yield the name and {part: scores} of every detector; the parts are validation and test."""
    yield from baselines(cohort, seed)
    yield from with_margins(cohort)
    # The same of the signal itself: what the autoencoder adds is seen beside it.
    signal = as_residuals(cohort)
    signal_features, features = features_of(cohort, signal), features_of(cohort, residuals)
    of_signal = forest(relative_to_blocks(signal_features, cohort), cohort, seed)
    yield 'no autoencoder: signal + forest', of_signal
    yield 'no autoencoder: signal + forest, second look', looked_again(of_signal, cohort, signal)
    yield 'no autoencoder: signal + threshold', peaks(cohort, signal)
    relative = relative_to_blocks(features, cohort)
    supervised, boosted = (learned(relative, cohort, seed) for learned in (forest, trees))
    yield SUPERVISED, supervised
    yield f'{SUPERVISED}, second look', looked_again(supervised, cohort, residuals)
    yield BOOSTED, boosted
    copied, boosted = with_copies(cohort, autoencoder, residuals, 'sign', seed, device, (forest, trees))
    yield PRODUCT, looked_again(copied, cohort, residuals)
    yield f'{BOOSTED}, copies, second look', looked_again(boosted, cohort, residuals)
    unsupervised = peaks(cohort, residuals)
    yield UNSUPERVISED, unsupervised
    yield PRODUCT_UNSUPERVISED, looked_again(unsupervised, cohort, residuals)
    power = {name: values[:, :N_POWERS] for name, values in features.items()}
    yield 'masked errors, power alone + forest', forest(power, cohort, seed)
    yield 'masked errors, no block median + forest', forest(features, cohort, seed)
    both = {name: np.concatenate([features[name], signal_features[name]], axis=1) for name in PARTS}
    yield 'masked errors and signal + forest', forest(relative_to_blocks(both, cohort), cohort, seed)


def retrained(cohort: Cohort, size: Size, seed: int, device: torch.device):
    """Yield the name and {part: scores} of variants that need another autoencoder."""
    plain = train_autoencoder(cohort, size.model, size, seed, device, masked=False)
    cards = {name: values[:, 0] for name, values in per_subwindow(plain, cohort, error_cards, device).items()}
    yield 'plain errors, error cards + SFCN', sfcn_on(cards, cohort, seed, device, flip=False)
    statistics = per_subwindow(plain, cohort, error_statistics, device)
    yield 'plain errors, statistics + forest', forest(statistics, cohort, seed)
    score = per_subwindow(plain, cohort, mean_error, device)
    yield 'plain errors, mean + threshold', {name: values[:, 0] for name, values in score.items()}
    unreconstructed = plain_residuals_of(plain, cohort, device)
    yield 'plain errors + forest', on_residuals(cohort, unreconstructed, seed)
    yield 'plain errors + threshold', peaks(cohort, unreconstructed)
    for scaling in ('window', 'patient'):
        scaled = rescaled(cohort, scaling)
        residuals = residuals_of(train_autoencoder(scaled, size.model, size, seed, device), scaled, device)
        yield f'windows scaled by {scaling}, masked errors + forest', on_residuals(scaled, residuals, seed)
        yield f'windows scaled by {scaling}, masked errors + threshold', peaks(scaled, residuals)


def with_copies(
    cohort: Cohort,
    autoencoder,
    residuals: dict,
    name: str,
    seed: int,
    device: torch.device,
    learners: Sequence[Callable],
) -> list[dict]:
    """{part: scores} by `forest` or `trees`, which also learn from changed training windows, see `copies.COPIES`."""
    features = relative_to_blocks(features_of(cohort, residuals), cohort)
    filters, train = torch.from_numpy(filters_of(cohort, residuals)), cohort.train

    def read(x):
        of_x = autoencoder.masked_residuals(x, cohort.sub, cohort.margin, levels=[0])[:, 0].cpu()
        return spike_features(filter_windows(x[:, 0].cpu(), of_x, filters, cohort.sub, cohort.margin))

    copies = [
        append_relative_power(batched(functools.partial(read_changed, read, change), train, device), train.block)
        for change in COPIES[name]
    ]
    more = np.concatenate([features['train'], *copies])
    labels = np.tile(train.annotated, 1 + len(copies))
    return [learned(features | {'train': more}, cohort, seed, labels) for learned in learners]


def read_changed(read, change, x):
    """What is read of changed windows."""
    return read(change(x))


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


def looked_again(scores: dict, cohort: Cohort, residuals: dict) -> dict:
    """Scores of validation and test after the second look; fitted on the annotations of validation.

    Parameters
    ----------
    scores : dict of arrays (n,)
        Of a detector, between 0 and 1, by part.
    residuals : dict of arrays (n_windows, 274, n_subwindows, n_masked)
        From `residuals_of` or `as_residuals`.
    """
    filters = filters_of(cohort, residuals)
    recordings = {name: recordings_of(cohort, name, filtered(cohort, name, residuals, filters)) for name in scores}
    look = fit_second_look(scores['validation'], recordings['validation'], cohort.validation.annotated)
    return {name: second_look(look, scores[name], recordings[name]) for name in scores}


def recordings_of(cohort, name, windows):
    """What the second look knows of the `FilteredWindows` of a part."""
    part = getattr(cohort, name)
    timing = part.places['timing'].to_numpy() / cohort.sub.subwindow_length
    return Recordings(fingerprints(windows).numpy(), part.block, timing, np.ones(len(timing), dtype=bool))


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


if __name__ == '__main__':
    run_script(main, __doc__)
