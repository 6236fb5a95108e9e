"""Classifier `threshold`: a score as detector, nothing is learned from annotations."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import expit

from training.checkpoints import load_checkpoint, save_checkpoint
from utils import DataError

# Of the score with masking; 1 was the peak of the residual alone, 2 the peak and what is beside it.
_VERSION = 3


@dataclasses.dataclass(kw_only=True)
class MeanError:
    """The score of a sub-window in robust standard deviations above the median.

    The score is the logarithm of the mean error, or with masking `durations.duration_score` over its median in the
    block.

    Attributes
    ----------
    median, spread : floats
        Of the training sub-windows, whatever their labels; spread is the interquartile range of the scores over 1.349,
        which is the standard deviation where they are normal.
    """

    def fit(self, train_set, validation_set, checkpoint: Callable[[str], Path]) -> list[dict]:
        """Measure median and spread of the training `Examples`; their labels are not looked at."""
        low, median, high = np.quantile(train_set.inputs[:, 0], [0.25, 0.5, 0.75])
        self.median, self.spread = float(median), float(max((high - low) / 1.349, 1e-6))
        print(f'  {len(train_set.inputs)} training sub-windows, annotations not used')
        return []

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        """Score between 0 and 1 (n,), float64, of scores (n, 1); only its order means anything.

        A tenth of the distance goes into the logistic function, so that no error, however large, reaches 1.
        """
        return expit((inputs[:, 0].astype(np.float64) - self.median) / self.spread / 10)

    def save(self, path: str | Path, extra: dict) -> None:
        """Write median and spread, and what belongs to them, such as the decision (calibration and threshold)."""
        save_checkpoint(path, {'version': _VERSION, 'median': self.median, 'spread': self.spread} | extra)

    def load(self, path: str | Path) -> 'MeanError':
        """Take over median and spread of a checkpoint.

        Raises
        ------
        DataError
            They are those of an earlier score.
        """
        state = load_checkpoint(path)
        if state.get('version') != _VERSION:
            raise DataError(f'{path}: the score of `threshold` has changed since; train the classifier again')
        self.median, self.spread = state['median'], state['spread']
        return self
