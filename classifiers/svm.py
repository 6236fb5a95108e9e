"""Classifier `svm`: a support vector machine."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from classifiers.subwindows import most_rows
from training.checkpoints import load_checkpoint, save_checkpoint

_N_COMPONENTS = 30
# The time of a support vector machine grows with the square of the rows: beyond so many, spikes are kept and the others
# drawn.
_MOST_ROWS = 20_000
# Rows whose kernel is held at a time: with 10 000 support vectors, 80 MB.
_ROWS_AT_A_TIME = 1000


@dataclasses.dataclass(kw_only=True)
class SupportVectors:
    """A balanced support vector machine with a Gaussian kernel on the principal components of scaled features.

    Attributes
    ----------
    machine : dict of arrays
        `mean` and `scale` (n_features,), `components` (n_components, n_features), `vectors` (n_vectors,
        n_components), `weights` (n_vectors,), `intercept` and `gamma` (1,).
    """

    seed: int

    def fit(self, train_set, validation_set, checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train on `Examples`; nothing is written and there is no history."""
        inputs, labels = train_set
        chosen = most_rows(labels, _MOST_ROWS, np.random.default_rng(self.seed))
        inputs, labels = inputs[chosen].astype(np.float64), labels[chosen]
        scaler = StandardScaler().fit(inputs)
        pca = PCA(min(_N_COMPONENTS, *inputs.shape), random_state=self.seed).fit(scaler.transform(inputs))
        # Features are centred already, so that the components alone give the scores.
        scores = scaler.transform(inputs) @ pca.components_.T
        gamma = 1 / (scores.shape[1] * scores.var())
        model = SVC(kernel='rbf', gamma=gamma, class_weight='balanced', random_state=self.seed).fit(scores, labels)
        print(f'  {len(labels)} training sub-windows, {int(labels.sum())} with a spike; {len(model.support_)} vectors')
        self.machine = {
            'mean': scaler.mean_,
            'scale': scaler.scale_,
            'components': pca.components_,
            'vectors': model.support_vectors_,
            'weights': model.dual_coef_[0],
            'intercept': model.intercept_,
            'gamma': np.array([gamma]),
        }
        return []

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        """Score between 0 and 1 (n,), float64: the logistic function of the distance from the decision surface."""
        m = self.machine
        scores = (inputs - m['mean']) / m['scale'] @ m['components'].T
        distance = np.empty(len(scores))
        for start in range(0, len(scores), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            distance[rows] = rbf_kernel(scores[rows], m['vectors'], m['gamma'][0]) @ m['weights']
        return expit(distance + m['intercept'][0])

    def save(self, path: str | Path, extra: dict) -> None:
        """Write the machine, and what belongs to it, such as the decision (calibration and threshold)."""
        machine = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in self.machine.items()}
        save_checkpoint(path, {'machine': machine} | extra)

    def load(self, path: str | Path) -> 'SupportVectors':
        """Take over the machine of a checkpoint."""
        self.machine = {name: array.numpy() for name, array in load_checkpoint(path)['machine'].items()}
        return self
