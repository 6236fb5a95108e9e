"""From a trained autoencoder to tested spikes: error cards, sub-windows, the SFCN, its threshold, the figures."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm


class SubwindowShape(NamedTuple):
    """How the inner part of a window is cut, in samples: from `border`, `n_sub` pieces of `n_times`."""

    border: int
    n_sub: int
    n_times: int


def subwindow_shape(n_times: int, border: int, subwindow: int) -> SubwindowShape:
    """Cut the inner part of a window of `n_times` samples into as many whole pieces of `subwindow` as fit."""
    return SubwindowShape(border, (n_times - 2 * border) // subwindow, subwindow)


# ---------------------------------------------------------------------------------------- sub-windows
def subwindow_table(table: pd.DataFrame, labels_t: np.ndarray, n_window: int, shape: SubwindowShape) -> pd.DataFrame:
    """One row per sub-window, window after window.

    Parameters
    ----------
    table : DataFrame
        Rows of the id table, one per window.
    labels_t : uint8 array (n_windows, n_window)
        Their marked samples.
    n_window : int
        Length of a window in samples.

    Returns
    -------
    DataFrame
        subject, block, timing (centre of the sub-window, in samples of the block), test (1 where a marked sample
        lies in the sub-window).
    """
    first = shape.border
    inner = labels_t[:, first : first + shape.n_sub * shape.n_times]
    test = inner.reshape(len(table), shape.n_sub, shape.n_times).any(axis=2)
    centre = first + shape.n_times * (np.arange(shape.n_sub) + 0.5)  # from the window's start
    start = table['timing'].to_numpy()[:, None] - n_window / 2
    return pd.DataFrame(
        {
            'subject': np.repeat(table['subject'].to_numpy(), shape.n_sub),
            'block': np.repeat(table['block'].to_numpy(), shape.n_sub),
            'timing': (start + centre).ravel(),
            'test': test.ravel().astype(np.int64),
        }
    )


def make_cards(model: nn.Module, loader: DataLoader, shape: SubwindowShape, device: torch.device) -> np.ndarray:
    """Error cards of a loader's windows: cut to the inner part, z-scored as in the original, cut into sub-windows.

    Parameters
    ----------
    model : autoencoder
    loader : DataLoader
        Of (input, target) windows, without noise.

    Returns
    -------
    float32 array (n_windows * n_sub, n_pairs, n_channels, shape.n_times)
        In the loader's order.
    """
    model.eval()
    inner = slice(shape.border, shape.border + shape.n_sub * shape.n_times)
    cards = []
    with torch.no_grad():
        for x, _ in tqdm(loader, desc='error cards', leave=False, disable=None, unit='batch'):
            card = zscore_planes(model.error_cards(x.to(device))[..., inner])
            # (batch, pairs, channels, n_sub, times) to (batch * n_sub, pairs, channels, times)
            pieces = card.unflatten(-1, (shape.n_sub, shape.n_times)).permute(0, 3, 1, 2, 4)
            cards.append(pieces.flatten(0, 1).cpu().numpy())
    return np.concatenate(cards)


def zscore_planes(cards: torch.Tensor) -> torch.Tensor:
    """Scale every plane of error cards (batch, pairs, channels, times) to mean 0, std 1; flat planes become zeros."""
    std, mean = torch.std_mean(cards, dim=(2, 3), correction=0, keepdim=True)
    return (cards - mean) / torch.where(std > 0, std, 1.0)


class CardDataset(Dataset):
    """Batches of (cards, labels): float32 (batch, planes, channels, times) and (batch,)."""

    def __init__(self, cards: np.ndarray, labels: np.ndarray):
        self.cards, self.labels, self.epoch = cards, labels.astype(np.float32), 0

    def __len__(self) -> int:
        return len(self.cards)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole batch at once."""
        return torch.from_numpy(self.cards[indices]), torch.from_numpy(self.labels[indices])


# ------------------------------------------------------------------------------------------ the network
def spike_loss(positive_weight: float):
    """Loss of the classifier: cross-entropy on logits, spikes weighted `positive_weight` times as much as others."""

    def loss(network, cards, labels):
        weight = torch.tensor(positive_weight, device=labels.device)
        return F.binary_cross_entropy_with_logits(network(cards), labels, pos_weight=weight)

    return loss


def predict_proba(network: nn.Module, loader: DataLoader, device: torch.device) -> np.ndarray:
    """Probability of a spike (n,), float64, for the cards of a loader in its order."""
    network.eval()
    with torch.no_grad():
        logits = [network(cards.to(device)).cpu() for cards, _ in loader]
    return torch.sigmoid(torch.cat(logits).double()).numpy()


# ------------------------------------------------------------------------------------- threshold, figures
def best_f1_threshold(test: np.ndarray, proba: np.ndarray) -> float:
    """The probability from which on calling a spike gives the best F1 (the lowest such, to call no fewer)."""
    precision, recall, thresholds = precision_recall_curve(test, proba)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(f1[:-1])])  # the last point of the curve has no threshold


def with_predictions(table: pd.DataFrame, proba: np.ndarray, threshold: float) -> pd.DataFrame:
    """The predictions table of the contract: subject, block, timing, true, test, pred, proba; in recording order.

    `true` is 1 where the prediction was right, `test` the label.
    """
    predictions = table.assign(proba=proba, pred=(proba >= threshold).astype(np.int64))
    predictions['true'] = (predictions['pred'] == predictions['test']).astype(np.int64)
    columns = ['subject', 'block', 'timing', 'true', 'test', 'pred', 'proba']
    return predictions[columns].sort_values(['subject', 'block', 'timing'], ignore_index=True)


def figures(predictions: pd.DataFrame) -> dict:
    """Test figures of a predictions table; what is undefined, for want of spikes or of anything else, is NaN."""
    test, pred, proba = (predictions[name].to_numpy() for name in ('test', 'pred', 'proba'))
    (tn, fp), (fn, tp) = confusion_matrix(test, pred, labels=[0, 1])
    both = 0 < test.sum() < len(test)
    return {
        'accuracy': _ratio(tp + tn, len(test)),
        'f1-score': _ratio(2 * tp, 2 * tp + fp + fn),
        'specificity': _ratio(tn, tn + fp),
        'sensitivity': _ratio(tp, tp + fn),
        'confusion matrix': [[int(tn), int(fp)], [int(fn), int(tp)]],
        'precision': _ratio(tp, tp + fp),
        'ROC-AUC': float(roc_auc_score(test, proba)) if both else float('nan'),
        'PR-AUC': float(average_precision_score(test, proba)) if both else float('nan'),
        'PR-AUC of chance': _ratio(test.sum(), len(test)),
        'sub-windows': len(test),
        'spike sub-windows': int(test.sum()),
    }


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float('nan')
