"""The classifiers by name: their class, what each reads, and its settings."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from classifiers.boosting import BoostedTrees
from classifiers.durations import duration_score
from classifiers.features import append_relative_power, spike_features, subtract_block_median
from classifiers.forest import RandomForest
from classifiers.inputs import error_cards, error_statistics, masked_cards, mean_error
from classifiers.sfcn import SfcnClassifier
from classifiers.stacked import StackedClassifier
from classifiers.svm import SupportVectors
from classifiers.threshold import MeanError
from classifiers.windows import FinetunedClassifier, RawClassifier
from utils import DataError


class Classifier(Protocol):
    """What every classifier can do."""

    def fit(self, train_set: 'Examples', validation_set: 'Examples', checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train, and return the history of a network's training; `checkpoint` gives the paths of 'best' and 'last'."""
        ...

    def predict_proba(self, inputs: Any) -> np.ndarray:
        """Score between 0 and 1 of every sub-window (n,), of inputs (n, ...) or of a dataset of windows."""
        ...

    def save(self, path: str | Path, extra: dict) -> None:
        """Write what it has learned, and `extra`, what belongs to it, such as the decision."""
        ...

    def load(self, path: str | Path) -> 'Classifier':
        """Take over what was saved."""
        ...


class ClassifierSpec(NamedTuple):
    """A classifier: its class, what it reads of the autoencoder, and the settings it takes.

    Attributes
    ----------
    make : callable
        Its class.
    inputs : callable or None
        From errors of the pairs that it reads to its inputs, as `error_cards`; None for the latent maps, or for whole
        windows.
    masked_inputs : callable or None
        The same with masking: from `FilteredWindows` where it needs filters, as `spike_features`, or else from masked
        residuals, as `masked_cards`; None where masking makes no difference.
    relative_to_block : callable or None
        With masking, what compares the inputs (n, ...) with those of their block: see `features.append_relative_power`.
    reads_windows : bool
        Whether it reads whole windows as they are: instead of something of every sub-window, or beside `inputs`.
    takes_copies : bool
        Whether the setting `copies` adds to its training.
    settings : tuple of str
        The settings of params.py that it takes; networks also take the `device`, those on whole windows the `shape` of
        the sub-windows, and `finetuned` and `stacked` the `autoencoder` and
        windows with pseudo-labels.
    """

    make: Callable[..., Classifier]
    inputs: Callable[..., torch.Tensor] | None
    masked_inputs: Callable[..., torch.Tensor] | None = None
    relative_to_block: Callable[..., np.ndarray] | None = None
    reads_windows: bool = False
    takes_copies: bool = False
    settings: tuple[str, ...] = ('seed',)

    @property
    def needs_filters(self) -> bool:
        """Whether, with masking, it reads the spatial filters: what is compared with its block is filtered."""
        return self.relative_to_block is not None


def _fields(classifier):
    return tuple(field.name for field in dataclasses.fields(classifier))


CLASSIFIERS = {
    'sfcn': ClassifierSpec(SfcnClassifier, error_cards, masked_cards, settings=_fields(SfcnClassifier)),
    'hgb': ClassifierSpec(BoostedTrees, error_statistics, spike_features, append_relative_power, takes_copies=True),
    'forest': ClassifierSpec(RandomForest, error_statistics, spike_features, append_relative_power, takes_copies=True),
    'svm': ClassifierSpec(SupportVectors, error_statistics, spike_features, append_relative_power, takes_copies=True),
    'latent': ClassifierSpec(BoostedTrees, None, takes_copies=True),
    'threshold': ClassifierSpec(MeanError, mean_error, duration_score, subtract_block_median, settings=()),
    'finetuned': ClassifierSpec(FinetunedClassifier, None, reads_windows=True, settings=_fields(FinetunedClassifier)),
    'stacked': ClassifierSpec(
        StackedClassifier,
        error_statistics,
        spike_features,
        append_relative_power,
        reads_windows=True,
        settings=_fields(StackedClassifier),
    ),
    'raw': ClassifierSpec(RawClassifier, None, reads_windows=True, settings=_fields(RawClassifier)),
}


def load_classifier(classifier: Classifier, path: Path, name: str) -> Classifier:
    """A classifier with what a checkpoint of the classifier `name` holds.

    Raises
    ------
    DataError
        The checkpoint is missing, damaged, or of another classifier.
    OutOfMemoryError
        Of the device.
    MemoryError
        Of the machine.
    """
    try:
        return classifier.load(path)
    except (DataError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as fault:  # a damaged file can raise anything at all
        raise DataError(f'{path}: not a {name} of this project ({type(fault).__name__}); restore the file') from fault


class Examples(NamedTuple):
    """Sub-windows as a classifier sees them.

    Attributes
    ----------
    inputs : float32 array (n, ...)
        Or a dataset of windows, of a classifier that reads these, or `FeaturesAndWindows`.
    labels : int array (n,)
        1 where an annotated spike is; with whole windows, the time labels (n_windows, times), or their pseudo-labels.
    """

    inputs: Any
    labels: np.ndarray
