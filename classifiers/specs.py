"""The classifiers by name: their class, what each reads, and its settings."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from classifiers.boosting import BoostedTrees
from classifiers.features import append_relative_power, subtract_block_median
from classifiers.inputs import error_cards, error_statistics, masked_cards, masked_features, masked_peak, mean_error
from classifiers.sfcn import SfcnClassifier
from classifiers.svm import SupportVectors
from classifiers.threshold import MeanError


class Classifier(Protocol):
    """What every classifier can do."""

    def fit(self, train_set: 'Examples', validation_set: 'Examples', checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train, and return the history of a network's training; `checkpoint` gives the paths of 'best' and 'last'."""
        ...

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        """Score between 0 and 1 (n,) of inputs (n, ...)."""
        ...

    def save(self, path: str | Path, beside: dict) -> None:
        """Write what it has learned, and what belongs to it, such as the decision."""
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
        From errors of the pairs that it reads to its inputs, as `error_cards`; None for the latent maps.
    masked_inputs : callable or None
        The same from masked residuals, as `masked_cards`; None where masking makes no difference.
    relative_to_block : callable or None
        With masking, what compares the inputs (n, ...) with those of their block: see `features.append_relative`.
    settings : tuple of str
        The settings of params.py that it takes.
    """

    make: Callable[..., Classifier]
    inputs: Callable[..., torch.Tensor] | None
    masked_inputs: Callable[..., torch.Tensor] | None = None
    relative_to_block: Callable[..., np.ndarray] | None = None
    settings: tuple[str, ...] = ('seed',)

    @property
    def needs_filters(self) -> bool:
        """Whether, with masking, it reads the spatial filters: what is compared with its block is filtered."""
        return self.relative_to_block is not None


_SFCN_SETTINGS = tuple(field.name for field in dataclasses.fields(SfcnClassifier))
CLASSIFIERS = {
    'sfcn': ClassifierSpec(SfcnClassifier, error_cards, masked_cards, settings=_SFCN_SETTINGS),
    'hgb': ClassifierSpec(BoostedTrees, error_statistics, masked_features, append_relative_power),
    'svm': ClassifierSpec(SupportVectors, error_statistics, masked_features, append_relative_power),
    'latent': ClassifierSpec(BoostedTrees, None),
    'threshold': ClassifierSpec(MeanError, mean_error, masked_peak, subtract_block_median, settings=()),
}


class Examples(NamedTuple):
    """Sub-windows as a classifier sees them.

    Attributes
    ----------
    inputs : float32 array (n, ...)
    labels : int array (n,)
        1 where an annotated spike is.
    """

    inputs: np.ndarray
    labels: np.ndarray
