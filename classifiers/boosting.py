"""Classifiers `hgb` and `latent`: gradient-boosted trees."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss

from training.checkpoints import load_checkpoint, save_checkpoint

_N_FORESTS = 3


@dataclasses.dataclass(kw_only=True)
class BoostedTrees:
    """scikit-learn's histogram gradient boosting, stopped at the number of trees that is best on validation.

    Three times from other random numbers, the log odds averaged: every split looks at a third of the features, drawn
    anew, so that forests differ and their mean is better than each. The trees are kept as plain arrays, so that a
    checkpoint holds numbers only and no pickled objects.

    Attributes
    ----------
    trees : dict of arrays
        The nodes of all trees one after the other: `feature`, `threshold` (left where the feature is at most this),
        `left` and `right` (the node's children; the node itself for a leaf), `value` (what a leaf adds to the log odds;
        0 for other nodes); `roots`, the first node of every tree; `baseline`, the log odds before any tree.
    """

    seed: int

    def fit(self, train_set, validation_set, checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train on `Examples`; nothing is written and there is no history."""
        forests = [
            HistGradientBoostingClassifier(
                max_iter=200,
                learning_rate=0.05,
                max_leaf_nodes=15,
                max_features=0.3,
                l2_regularization=1.0,
                early_stopping=False,
                random_state=(_N_FORESTS * self.seed + number) % 2**32,
            ).fit(*train_set)
            for number in range(_N_FORESTS)
        ]
        labels = validation_set.labels
        stages = zip(*(forest.staged_decision_function(validation_set.inputs) for forest in forests), strict=True)
        losses = [log_loss(labels, expit(np.mean(scores, axis=0)), labels=[0, 1]) for scores in stages]
        n_trees = int(np.argmin(losses)) + 1
        n, n_spikes = len(train_set.labels), int(train_set.labels.sum())
        print(f'  {n} training sub-windows, {n_spikes} with a spike; {_N_FORESTS} x {n_trees} trees')
        nodes = [predictor.nodes for forest in forests for (predictor,) in forest._predictors[:n_trees]]
        roots = np.cumsum([0] + [len(tree) for tree in nodes[:-1]])
        itself = [np.arange(len(tree)) for tree in nodes]

        def children(side):
            return [np.where(tree['is_leaf'], own, tree[side]) + root
                    for tree, own, root in zip(nodes, itself, roots, strict=True)]  # fmt: skip

        self.trees = {
            'feature': np.concatenate([tree['feature_idx'] for tree in nodes]).astype(np.int64),
            'threshold': np.concatenate([tree['num_threshold'] for tree in nodes]),
            'left': np.concatenate(children('left')),
            'right': np.concatenate(children('right')),
            'value': np.concatenate([np.where(tree['is_leaf'], tree['value'] / _N_FORESTS, 0.0) for tree in nodes]),
            'roots': roots,
            'baseline': np.asarray(forests[0]._baseline_prediction, dtype=np.float64).reshape(1),
        }
        return []

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        """Probability of a spike (n,), float64, of features (n, n_features)."""
        trees, rows = self.trees, np.arange(len(inputs))
        score = np.full(len(inputs), trees['baseline'][0])
        for root in trees['roots']:
            node = np.full(len(inputs), root)
            while True:
                smaller = inputs[rows, trees['feature'][node]] <= trees['threshold'][node]
                below = np.where(smaller, trees['left'][node], trees['right'][node])
                if (below == node).all():
                    break
                node = below
            score += trees['value'][node]
        return expit(score)

    def save(self, path: str | Path, beside: dict) -> None:
        """Write the trees, and what belongs to them, such as the decision (calibration and threshold)."""
        trees = {name: torch.from_numpy(array) for name, array in self.trees.items()}
        save_checkpoint(path, {'trees': trees} | beside)

    def load(self, path: str | Path) -> 'BoostedTrees':
        """Take over the trees of a checkpoint."""
        self.trees = {name: array.numpy() for name, array in load_checkpoint(path)['trees'].items()}
        return self
