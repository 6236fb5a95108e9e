"""Which detector is right on patients it has never seen? The autoencoder and classifier beside the usual choices.

    python benchmarks/quality.py [SIZE] [EEG] [n_jobs=2] [name=value ...]

Simulates cohorts of patients of five kinds (`kinds.py`: other backgrounds, spikes and transients in each; two of them
hold recorded EEG and recorded spikes), with misplaced and missing annotations. Every detector is trained on the
annotations of some patients, gets its threshold from others of that kind, and is tested on the simulated truth of those
left. The table gives the mean over kinds, the worst kind, and the kinds held out: those at which nobody looked before
features and scores were chosen. A second table makes each choice on all kinds but one, and reports it on that one.

SIZE is `small` (the default: narrow networks, an hour on two cores), `short` (a fifth of that), `full`
(for a GPU: more patients and the original's widths) or `tiny` (does it run?), see `SIZES`. EEG is a folder of EDF
files, of two people or more, for the kind 'eeg'. Writes quality.csv, quality_cohorts.csv, quality_choices.csv,
quality.png and quality_scores.png (what spikes and others score) into path_writing_data. `n_jobs` cohorts are taken at
a time, with one thread each.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from baselines import baselines, networks, sfcn_on, with_margins
from cohort_steps import (
    NARROW,
    ORIGINAL,
    SNR,
    Recipe,
    as_residuals,
    batched,
    features_of,
    filtered,
    filters_of,
    finetuned,
    forest,
    looked_again,
    of_cohorts,
    on_residuals,
    peaks,
    per_subwindow,
    plain_residuals_of,
    pseudo_labelled,
    recordings_of,
    relative_to_blocks,
    residuals_of,
    spectral_residuals_of,
    stacked,
    train_autoencoder,
    trees,
)
from cohorts import Cohort, CohortSize, chosen_size, rescaled, simulate_cohort
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

from classifiers.copies import COPIES
from classifiers.features import (
    N_POWERS,
    append_relative_power,
    spike_features,
)
from classifiers.filtered import filter_windows
from classifiers.inputs import error_cards, error_statistics, mean_error
from runs.settings import read_command
from timeseries_dataset import PARTS
from utils import choose_device, run_script, set_seed, writing


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
    autoencoder : Recipe
    detector_epochs : int
        Of the network `finetuned`.
    """

    cohorts: dict[str, int]
    networks: int
    retrained: int
    patients: CohortSize
    autoencoder: Recipe
    detector_epochs: int


SIZES = {
    'tiny': Size({'medium': 1}, 1, 1, CohortSize(2, 2, 2, 1, 40), NARROW._replace(epochs=2), 2),
    'short': Size({'medium': 1}, 0, 0, CohortSize(5, 2, 3, 2, 60), NARROW, 30),
    'small': Size({'medium': 2, 'easy': 1, 'hard': 1}, 1, 0, CohortSize(6, 2, 4, 2, 60), NARROW, 30),
    'full': Size({'medium': 6, 'easy': 6, 'hard': 6}, 6, 6, CohortSize(30, 6, 12, 4, 180), ORIGINAL, 30),
}
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
    results = list(of_cohorts(scores_of_cohort, jobs, settings.n_jobs))
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
    autoencoder = train_autoencoder(cohort, size.autoencoder, seed, device)
    residuals = residuals_of(autoencoder, cohort, device)
    tried = [detect(cohort, autoencoder, residuals, seed, device)]
    tried.append(with_spectrum(cohort, seed))
    tried.append(with_network(cohort, autoencoder, residuals, size.detector_epochs, seed, settings, device))
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
    yield 'no autoencoder: signal + forest, second look', looked_again(of_signal, cohort, recordings_of(cohort, signal))
    yield 'no autoencoder: signal + threshold', peaks(cohort, signal)
    relative, recordings = relative_to_blocks(features, cohort), recordings_of(cohort, residuals)
    supervised, boosted = (learned(relative, cohort, seed) for learned in (forest, trees))
    yield SUPERVISED, supervised
    yield f'{SUPERVISED}, second look', looked_again(supervised, cohort, recordings)
    yield BOOSTED, boosted
    copied, boosted = with_copies(cohort, autoencoder, residuals, 'sign', seed, device, (forest, trees))
    yield PRODUCT, looked_again(copied, cohort, recordings)
    yield f'{BOOSTED}, copies, second look', looked_again(boosted, cohort, recordings)
    unsupervised = peaks(cohort, residuals)
    yield UNSUPERVISED, unsupervised
    yield PRODUCT_UNSUPERVISED, looked_again(unsupervised, cohort, recordings)
    power = {name: values[:, :N_POWERS] for name, values in features.items()}
    yield 'masked errors, power alone + forest', forest(power, cohort, seed)
    yield 'masked errors, no block median + forest', forest(features, cohort, seed)
    both = {name: np.concatenate([features[name], signal_features[name]], axis=1) for name in PARTS}
    yield 'masked errors and signal + forest', forest(relative_to_blocks(both, cohort), cohort, seed)


def with_spectrum(cohort, seed):
    """Yield the name and {part: scores} of detectors on what the spectrum of each block does not predict."""
    residuals = spectral_residuals_of(cohort)
    features = relative_to_blocks(features_of(cohort, residuals), cohort)
    recordings, scores = recordings_of(cohort, residuals), forest(features, cohort, seed)
    yield 'no autoencoder: spectrum + forest', scores
    yield 'no autoencoder: spectrum + forest, second look', looked_again(scores, cohort, recordings)
    train = cohort.train
    flipped = cohort._replace(train=train._replace(windows=-train.windows))
    # A linear prediction of the opposite signal leaves the opposite.
    of_flipped = filtered(flipped, 'train', {'train': -residuals['train']}, filters_of(cohort, residuals))
    copy = spike_features(of_flipped).numpy()
    more = np.concatenate([features['train'], append_relative_power(copy, train.block)])
    copied = forest(features | {'train': more}, cohort, seed, np.tile(train.annotated, 2))
    yield 'no autoencoder: spectrum + forest, copies, second look', looked_again(copied, cohort, recordings)
    unsupervised = peaks(cohort, residuals)
    yield 'no autoencoder: spectrum + threshold', unsupervised
    yield 'no autoencoder: spectrum + threshold, second look', looked_again(unsupervised, cohort, recordings)


def with_network(cohort, autoencoder, residuals, epochs, seed, settings, device):
    """Yield the name and {part: scores} of the network `finetuned`, after pseudo-labels, and of `stacked`."""
    pretraining, recordings = pseudo_labelled(cohort, residuals), recordings_of(cohort, residuals)
    network = finetuned(cohort, autoencoder, 'frozen', pretraining, epochs, seed, settings, device)
    yield 'finetuned, frozen', network
    yield 'finetuned, frozen, second look', looked_again(network, cohort, recordings)
    both = stacked([on_residuals(cohort, residuals, seed), network], cohort)
    yield 'masked errors + stacked, frozen', both
    yield 'masked errors + stacked, frozen, second look', looked_again(both, cohort, recordings)


def retrained(cohort: Cohort, size: Size, seed: int, device: torch.device):
    """Yield the name and {part: scores} of variants that need another autoencoder."""
    plain = train_autoencoder(cohort, size.autoencoder, seed, device, masked=False)
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
        residuals = residuals_of(train_autoencoder(scaled, size.autoencoder, seed, device), scaled, device)
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


if __name__ == '__main__':
    run_script(main, __doc__)
