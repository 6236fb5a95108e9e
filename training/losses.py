"""Losses: of reconstruction, of masked segments, and of the spike classifier."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.autoencoder import mask_segment, upsample_to
from utils import to_device

CRITERIA = {'mse': nn.MSELoss, 'mae': nn.L1Loss}

# Gives the mean loss of a batch (input, target) and takes (network, input, target). Where several processes share the
# batch, it takes `part` besides, see `Batches.part`, and gives this part's share of the mean over the whole batch.
Loss = Callable[..., torch.Tensor]


def reconstruction_loss(criterion: str, weights: list[float]) -> Loss:
    """Loss of an autoencoder: the criterion between each reconstruction and its target, summed with weights.

    Parameters
    ----------
    criterion : str
        One of `CRITERIA`.
    weights : list of float
        One per (reconstruction, target) pair; divided by their sum.
    """
    compare = CRITERIA[criterion](reduction='sum')
    shares = [weight / sum(weights) for weight in weights]

    def loss(model, x, target, part=None):
        n_windows = len(x) if part is None else part[2]
        total = 0.0
        for share, (reconstruction, wanted) in zip(shares, model(x, target), strict=True):
            total = total + share * compare(reconstruction, wanted) / (n_windows * math.prod(wanted.shape[1:]))
        return total

    return loss


def masked_loss(criterion: str, weights: list[float], shape: tuple[int, int, int], margin: int = 0) -> Loss:
    """Loss of an autoencoder that reconstructs a masked segment of each window from what lies around it.

    The criterion is taken where the input is masked, and summed over the pairs with weights.

    Parameters
    ----------
    criterion : str
        One of `CRITERIA`.
    weights : list of float
        One per (reconstruction, target) pair; divided by their sum.
    shape : (border, n_subwindows, subwindow_length)
        The sub-windows that are scored, in samples: from `border` on, `n_subwindows` of `subwindow_length`.
    margin : int
        Samples that are masked on either side of them, at most `border`.

    Notes
    -----
    In training, a segment of half to twice the scored length is masked anywhere in the inner part of each window, from
    torch's random numbers. In evaluation the windows of a batch take turns with the sub-windows.
    """
    compare = CRITERIA[criterion](reduction='none')
    shares = [weight / sum(weights) for weight in weights]
    border, n_subwindows, subwindow_length = shape
    begin, end = border - margin, border + n_subwindows * subwindow_length + margin
    masked_length = subwindow_length + 2 * margin

    def loss(model, x, target, part=None):
        # Drawn for the whole batch, whatever part of it this is.
        mine, n_windows = (slice(None), len(x)) if part is None else (slice(*part[:2]), part[2])
        if model.training:
            length = torch.randint(max(masked_length // 2, 1), min(2 * masked_length, end - begin) + 1, (n_windows,))
            first = begin + (torch.rand(n_windows) * (end - begin - length + 1)).long()
        else:
            length = torch.full((n_windows,), masked_length)
            first = begin + torch.arange(n_windows) % n_subwindows * subwindow_length
        n_masked, length, first = int(length.sum()), length[mine], first[mine]
        first, last = to_device(torch.stack([first, first + length]), x.device)
        pairs = model(mask_segment(x, first, last), target)
        times = torch.arange(x.shape[-1], device=x.device)
        masked = (times >= first[:, None]) & (times < last[:, None])  # (batch, times)
        total = 0.0
        for share, (reconstruction, wanted) in zip(shares, pairs, strict=True):
            errors = compare(reconstruction, wanted).flatten(1, -2).mean(dim=1, keepdim=True)  # (batch, 1, time_k)
            total = total + share * (upsample_to(errors, x.shape[-1])[:, 0] * masked).sum() / n_masked
        return total

    return loss


class ValidationScores:
    """Collects the scores of a classifier on its way through the batches of a validation."""

    def __init__(self):
        self.logits: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep those of a batch, of any shape."""
        self.logits.append(logits.detach().flatten())
        self.labels.append(labels.flatten())

    def take(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Labels (n,), scores between 0 and 1 (n,), and rows of a batch; what is collected next is of the next one."""
        labels, logits = torch.cat(self.labels), torch.cat(self.logits)
        batch_size = len(self.labels[0])
        self.__init__()
        return labels.cpu().numpy().astype(np.int64), torch.sigmoid(logits.cpu().double()).numpy(), batch_size


def spike_loss(
    classifier_loss: str,
    positive_weight: float,
    focal_gamma: float,
    scores: ValidationScores | None = None,
    hard_negatives: float = 1.0,
) -> Loss:
    """Loss of the classifier (network, cards, labels), from logits.

    A label is 1 for a spike and 0 for others; below 0 for others within reach of an annotation. A pseudo-label lies
    between 0 and 1.

    Parameters
    ----------
    classifier_loss : str
        'bce': cross-entropy. 'focal': the same times (1 - probability of the right answer) ** focal_gamma, which turns
        to what is not yet learnt (Lin et al., ICCV 2017).
    positive_weight : float
        A spike counts as much as so many others; a pseudo-label in between, by how near it is to 1.
    scores : ValidationScores, optional
        Gets those of every batch in evaluation mode.
    hard_negatives : float
        So does one of label 0 that the network takes for a spike, as if it were drawn so many times.
    """

    def loss(network, cards, labels):
        logits = network(cards)
        labels = labels.expand_as(logits)  # of several heads in training
        spikes = labels.clamp(min=0)
        if scores is not None and not network.training:
            scores.add(logits, spikes)
        losses = F.binary_cross_entropy_with_logits(logits, spikes, reduction='none')
        if classifier_loss == 'focal':
            losses = losses * (1 - torch.exp(-losses)) ** focal_gamma
        weights = 1 + (positive_weight - 1) * spikes
        return (losses * torch.where((labels == 0) & (logits > 0), hard_negatives, weights)).mean()

    return loss
