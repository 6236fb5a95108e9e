"""Classifier `stacked`: the trees of `forest` and the network `finetuned`, which err in different places, together."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import expit, logit

from classifiers.forest import RandomForest
from classifiers.windows import FinetunedClassifier, subwindow_labels
from evaluation.operating_point import calibrate, fit_calibration
from timeseries_dataset import WindowSource
from training.checkpoints import load_checkpoint

_LEAST = 1e-12  # of a probability, so that its log odds are finite


class FeaturesAndWindows(NamedTuple):
    """What both read of the same windows.

    Attributes
    ----------
    features : float32 array (n, n_features)
        Of the sub-windows, for the trees.
    windows : WindowSource
    """

    features: np.ndarray
    windows: WindowSource


@dataclasses.dataclass(kw_only=True)
class StackedClassifier(FinetunedClassifier):
    """The mean of the log odds of trees and network, each calibrated on validation.

    Attributes
    ----------
    trees : RandomForest
    calibrations : list of dict
        Of the trees and of the network.
    """

    name = 'stacked'

    def __post_init__(self):
        super().__post_init__()
        self.trees, self.calibrations = RandomForest(seed=self.seed), []

    def fit(self, train_set, validation_set, checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train on `Examples` of `FeaturesAndWindows` and time labels; gives the history of the network."""
        sets = train_set, validation_set
        labels = [subwindow_labels(torch.from_numpy(of.labels), self.shape).numpy().ravel().astype(int) for of in sets]
        self.trees.fit(*(of._replace(inputs=of.inputs.features, labels=y) for of, y in zip(sets, labels, strict=True)),
                       checkpoint)  # fmt: skip
        history = super().fit(*(of._replace(inputs=of.inputs.windows) for of in sets), checkpoint)
        scores = self._scores(validation_set.inputs)
        self.calibrations = [fit_calibration('temperature', score, labels[1]) for score in scores]
        return history

    def predict_proba(self, inputs: FeaturesAndWindows) -> np.ndarray:
        """Score between 0 and 1 of every sub-window (n,), float64."""
        both = zip(self.calibrations, self._scores(inputs), strict=True)
        proba = np.clip([calibrate(calibration, score) for calibration, score in both], _LEAST, 1 - _LEAST)
        return expit(logit(proba).mean(axis=0))

    def save(self, path: str | Path, extra: dict[str, Any]) -> None:
        """Write both, and what belongs to them, such as the decision (calibration and threshold)."""
        super().save(path, {'nodes': self.trees.tensors, 'calibrations': self.calibrations} | extra)

    def load(self, path: str | Path) -> 'StackedClassifier':
        """Take over both from a checkpoint."""
        super().load(path)
        self.trees.load(path)
        self.calibrations = load_checkpoint(path)['calibrations']
        return self

    def _scores(self, inputs):
        return self.trees.predict_proba(inputs.features), super().predict_proba(inputs.windows)
