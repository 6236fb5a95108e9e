"""Classifiers `hgb` and `latent`: gradient-boosted trees on statistics of the errors, or of the latent maps."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import lightgbm
import numpy as np
from scipy.special import expit

from training.checkpoints import load_checkpoint, save_checkpoint
from utils import DataError

_N_FORESTS = 3
_MOST_TREES = 400
_PARAMETERS = {
    'objective': 'binary',
    'metric': 'binary_logloss',
    'learning_rate': 0.05,
    'num_leaves': 15,
    'lambda_l2': 1.0,
    # Every split looks at a third of the features, drawn anew, and at one random threshold of each.
    'feature_fraction_bynode': 0.3,
    'extra_trees': True,
    # The same trees bit for bit, also with another number of threads.
    'deterministic': True,
    'force_row_wise': True,
    'verbosity': -1,
}


@dataclasses.dataclass(kw_only=True)
class BoostedTrees:
    """LightGBM's gradient boosting, each forest stopped at the number of trees that is best on validation.

    Three times from other random numbers, the log odds averaged: features and thresholds of the splits are drawn at
    random, so that forests differ and their mean is better than each.

    Attributes
    ----------
    forests : list of lightgbm.Booster
        A checkpoint holds them in LightGBM's own text format, which later versions read.
    """

    seed: int

    def fit(self, train_set, validation_set, checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train on `Examples`; nothing is written and there is no history."""
        train = lightgbm.Dataset(*train_set)
        validation = train.create_valid(*validation_set)
        seeds = [(_N_FORESTS * self.seed + number) % 2**31 for number in range(_N_FORESTS)]
        self.forests = [_train_forest(train, validation, seed) for seed in seeds]
        n, n_spikes = len(train_set.labels), int(train_set.labels.sum())
        n_trees = ' + '.join(str(forest.num_trees()) for forest in self.forests)
        print(f'  {n} training sub-windows, {n_spikes} with a spike; {n_trees} trees')
        return []

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        """Probability of a spike (n,), float64, of features (n, n_features)."""
        return expit(np.mean([forest.predict(inputs, raw_score=True) for forest in self.forests], axis=0))

    def save(self, path: str | Path, extra: dict) -> None:
        """Write the forests, and what belongs to them, such as the decision (calibration and threshold)."""
        save_checkpoint(path, {'forests': [forest.model_to_string() for forest in self.forests]} | extra)

    def load(self, path: str | Path) -> 'BoostedTrees':
        """Take over the forests of a checkpoint.

        Raises
        ------
        DataError
            They are of an earlier version of this project, or of a later one of LightGBM.
        """
        state = load_checkpoint(path)
        if 'trees' in state:
            raise DataError(f'{path}: trees of an earlier version; train the classifier again (mode clf)')
        try:
            self.forests = [lightgbm.Booster(model_str=text) for text in state['forests']]
        except lightgbm.basic.LightGBMError as fault:
            raise DataError(
                f'{path}: no trees of LightGBM {lightgbm.__version__} ({fault}); train the classifier again (mode clf)'
            ) from fault
        return self


def _train_forest(train, validation, seed):
    """A forest of as many trees as have the least cross-entropy on validation."""
    losses, n_trees = {}, []
    forest = lightgbm.train(
        _PARAMETERS | {'seed': seed},
        train,
        num_boost_round=_MOST_TREES,
        valid_sets=[validation],
        valid_names=['validation'],
        # The trees are counted, because a round without any split worth while adds none.
        callbacks=[lightgbm.record_evaluation(losses), lambda state: n_trees.append(state.model.num_trees())],
    )
    best = n_trees[np.argmin(losses['validation']['binary_logloss'])]
    return lightgbm.Booster(model_str=forest.model_to_string(num_iteration=best))
