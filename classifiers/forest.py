"""Classifier `forest`: extremely randomised trees on statistics of the errors."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.tree import ExtraTreeClassifier

from classifiers.subwindows import most_rows
from training.checkpoints import load_checkpoint, save_checkpoint
from utils import DataError

_N_DRAWS, _TREES_OF_A_DRAW = 20, 25  # 500 trees, of which 25 each are grown on the same rows
_MOST_ROWS = 20_000  # of a draw, see `most_rows`
_ROWS_AT_A_TIME = 1000  # whose place in all trees is held at once


@dataclasses.dataclass(kw_only=True)
class RandomForest:
    """The mean of many trees, each split at a random threshold of a few features drawn at random.

    Spikes weigh as much as all others together. As in Geurts, Ernst and Wehenkel, "Extremely randomized trees", Machine
    Learning 2006, as scikit-learn has them.

    Attributes
    ----------
    nodes : dict of arrays
        The nodes of all trees. `feature` (n_nodes,), -1 in a leaf, and `threshold`: up to it the way goes to the node
        `left`, beyond it to `right`. `share` (n_nodes,), of spikes. `roots` (n_trees,): where each tree begins.
    """

    seed: int

    def fit(self, train_set, validation_set, checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train on `Examples`; nothing is written and there is no history."""
        inputs, labels = train_set
        trees, rng = [], np.random.default_rng(self.seed)
        for _ in range(_N_DRAWS):
            rows = most_rows(labels, _MOST_ROWS, rng)
            drawn, labels_drawn = inputs[rows], labels[rows]
            for _ in range(_TREES_OF_A_DRAW):
                seed = int(rng.integers(2**31))
                tree = ExtraTreeClassifier(
                    max_features='sqrt', min_samples_leaf=3, class_weight='balanced', random_state=seed
                )
                trees.append(tree.fit(drawn, labels_drawn).tree_)
        counts = [tree.node_count for tree in trees]
        roots = np.cumsum([0, *counts[:-1]])

        def joined(name):
            return np.concatenate([getattr(tree, name) for tree in trees])

        first, weights = roots.repeat(counts), joined('value')[:, 0]
        self.nodes = {
            'feature': np.where(joined('children_left') < 0, -1, joined('feature')).astype(np.int32),
            'threshold': joined('threshold'),
            'left': (joined('children_left') + first).astype(np.int32),
            'right': (joined('children_right') + first).astype(np.int32),
            'share': (weights[:, 1] / weights.sum(axis=1)).astype(np.float32),
            'roots': roots.astype(np.int32),
        }
        n_spikes = int(labels.sum())
        print(
            f'  {len(labels)} training sub-windows, {n_spikes} with a spike; {sum(counts)} nodes of {len(trees)} trees'
        )
        return []

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        """Mean share of spikes (n,), float64, in the leaves where features (n, n_features) end.

        One more tree is counted with a half: what 500 trees take for impossible may well be one in a thousand.
        """
        nodes, inputs = self.nodes, np.asarray(inputs, dtype=np.float32)
        proba = np.empty(len(inputs))
        for start in range(0, len(inputs), _ROWS_AT_A_TIME):
            values = inputs[start : start + _ROWS_AT_A_TIME]
            at = np.tile(nodes['roots'], len(values))  # row after row, the node in every tree
            row = np.arange(len(values)).repeat(len(nodes['roots']))
            on_the_way = np.flatnonzero(nodes['feature'][at] >= 0)
            while len(on_the_way):
                node = at[on_the_way]
                beyond = values[row[on_the_way], nodes['feature'][node]] > nodes['threshold'][node]
                node = np.where(beyond, nodes['right'][node], nodes['left'][node])
                at[on_the_way] = node
                on_the_way = on_the_way[nodes['feature'][node] >= 0]
            proba[start : start + len(values)] = (
                nodes['share'][at].reshape(len(values), -1).sum(axis=1, dtype=np.float64)
            )
        return (proba + 0.5) / (len(nodes['roots']) + 1)

    def save(self, path: str | Path, extra: dict) -> None:
        """Write the trees, and what belongs to them, such as the decision (calibration and threshold)."""
        save_checkpoint(path, {'nodes': self.tensors} | extra)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The nodes, as a checkpoint holds them."""
        return {name: torch.from_numpy(values) for name, values in self.nodes.items()}

    def load(self, path: str | Path) -> 'RandomForest':
        """Take over the trees of a checkpoint.

        Raises
        ------
        DataError
            They are of an earlier version of this project: `stacked` had boosted ones.
        """
        state = load_checkpoint(path)
        if 'forests' in state:
            raise DataError(f'{path}: trees of an earlier version; train the classifier again (mode clf)')
        self.nodes = {name: values.numpy() for name, values in state['nodes'].items()}
        return self
