"""SFCN: the group's convolutional spike classifier on error cards, and its training."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from loop import checkpoint_saver, load_checkpoint, make_optimizer, resume_optimizer, save_checkpoint, train
from models.network import Network
from timeseries_dataset import batches, place_of_windows
from utils import without_waiting


class SFCN(Network):
    """Small fully convolutional network that gives one logit per sub-window.

    Parameters
    ----------
    n_planes : int
        Input planes: one per (reconstruction, target) pair of the autoencoder.
    n_channels, n_times : int
        Size of a plane; 274 x 30 for 200 ms sub-windows. Both at least 16, because four poolings halve them.
    width : int
        Maps after the first convolution, doubled three times. Original: 32.

    References
    ----------
    The layers are those of the group's original code: four 5 x 5 convolutions, each with batch norm, LeakyReLU and
    2 x 2 max pooling; a 1 x 1 convolution to 64 maps; 2 x 2 average pooling; dropout 0.5; one linear unit.
    """

    least_times = 16

    def __init__(self, n_planes: int = 1, n_channels: int = 274, n_times: int = 30, width: int = 32):
        super().__init__()
        layers, n_in = [], n_planes
        for n_out in (width, 2 * width, 4 * width, 8 * width):
            layers += [
                nn.Conv2d(n_in, n_out, 5, padding=2),
                nn.BatchNorm2d(n_out),
                nn.LeakyReLU(),
                nn.MaxPool2d(2),
            ]
            n_in = n_out
        n_latent = 2 * width
        # 30 samples are one after four poolings: the average pooling must round up to leave anything.
        layers += [nn.Conv2d(n_in, n_latent, 1), nn.AvgPool2d(2, ceil_mode=True)]
        self.features = nn.Sequential(*layers)
        rows, columns = (-(-(n // 16) // 2) for n in (n_channels, n_times))
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(n_latent * rows * columns, 1)

    def forward(self, cards: torch.Tensor) -> torch.Tensor:
        """Logits (batch,) of error cards (batch, n_planes, n_channels, n_times)."""
        with self.arithmetic(cards):
            maps = self.features(cards)  # (batch, 64, 9, 1) for 274 x 30
        return self.output(self.dropout(maps.to(cards.dtype).flatten(1)))[:, 0]


class CardDataset(Dataset):
    """Batches of (cards, labels): float32 (batch, planes, channels, times) and (batch,).

    Attributes
    ----------
    held : tensor or None
        The cards on the GPU that trains, where they take at most a quarter of its free memory.
    """

    def __init__(self, cards: np.ndarray, labels: np.ndarray, device: torch.device):
        self.cards, self.labels, self.epoch = cards, labels.astype(np.float32), 0
        self.held = None
        if device.type == 'cuda' and place_of_windows(cards.nbytes, 'auto', device) == device:
            self.held, self.held_labels = (torch.from_numpy(array).to(device) for array in (cards, self.labels))

    def __len__(self) -> int:
        return len(self.cards)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole batch at once."""
        if self.held is not None:
            rows = without_waiting(torch.as_tensor(indices), self.held.device)
            return self.held[rows], self.held_labels[rows]
        return torch.from_numpy(self.cards[indices]), torch.from_numpy(self.labels[indices])


def spike_loss(classifier_loss: str, positive_weight: float, focal_gamma: float):
    """Loss of the classifier (network, cards, labels), from logits.

    Parameters
    ----------
    classifier_loss : str
        'bce': cross-entropy. 'focal': the same times (1 - probability of the right answer) ** focal_gamma, which turns
        to what is not yet learnt (Lin et al., ICCV 2017).
    positive_weight : float
        A spike counts as much as so many others.
    """

    def loss(network, cards, labels):
        logits = network(cards)
        each = F.binary_cross_entropy_with_logits(logits, labels, reduction='none')
        if classifier_loss == 'focal':
            each = each * (1 - torch.exp(-each)) ** focal_gamma
        return (each * torch.where(labels > 0, positive_weight, 1.0)).mean()

    return loss


@dataclasses.dataclass(kw_only=True)
class SfcnClassifier:
    """Classifier of error cards (n, planes, channels, times) by an SFCN; the settings are those of params.py."""

    device: torch.device
    precision: str
    seed: int
    classifier_width: int
    classifier_batch_size: int
    classifier_learning_rate: float
    classifier_num_epochs: int
    classifier_n_epochs_stop: int
    classifier_loss: str
    focal_gamma: float
    positive_weight: float | None
    optimizer: str
    weight_decay: float
    scheduler: str
    stepLR: int
    gammaLR: float
    plateau_patience: int

    def __post_init__(self):
        self.network, self.state = None, None

    def fit(self, train_set, validation_set, checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train on `Examples`, from a loaded state where there is one, and keep the best epoch on validation.

        Parameters
        ----------
        checkpoint : callable
            From 'best' or 'last' to the path of the checkpoint to leave. Where 'last' is there, of a training that was
            interrupted, it goes on.

        Returns
        -------
        list of dict
            One per epoch, see `loop.train`.
        """
        labels = train_set.labels
        n_spikes, n_others = int(labels.sum()), int((1 - labels).sum())
        weight = n_others / n_spikes if self.positive_weight is None else self.positive_weight
        print(f'  {len(labels)} training sub-windows, {n_spikes} with a spike, each weighted {weight:.1f}')
        if self.network is None:
            self._build(*train_set.inputs.shape[1:])
            with torch.no_grad():
                self.network.output.bias.fill_(math.log(n_spikes / n_others))
        optimizer, scheduler = make_optimizer(
            self.network,
            optimizer=self.optimizer,
            learning_rate=self.classifier_learning_rate,
            weight_decay=self.weight_decay,
            scheduler=self.scheduler,
            stepLR=self.stepLR,
            gammaLR=self.gammaLR,
            plateau_patience=self.plateau_patience,
        )
        if self.state:
            resume_optimizer(optimizer, self.state['optimizer_state_dict'])
        interrupted = checkpoint('last').is_file()
        size = self.classifier_batch_size
        history = train(
            self.network,
            batches(CardDataset(*train_set, self.device), batch_size=size, shuffle=True, seed=self.seed),
            batches(CardDataset(*validation_set, self.device), batch_size=size),
            spike_loss(self.classifier_loss, weight, self.focal_gamma),
            optimizer=optimizer,
            scheduler=scheduler,
            num_epochs=self.classifier_num_epochs,
            n_epochs_stop=self.classifier_n_epochs_stop,
            device=self.device,
            save=checkpoint_saver(checkpoint, self.description),
            validate_first=self.state is not None,
            state=load_checkpoint(checkpoint('last')) if interrupted else None,
        )
        self.state = load_checkpoint(checkpoint('best'))
        return history

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        """Score between 0 and 1 (n,), float64, of cards (n, planes, channels, times)."""
        self.network.eval()
        size = self.classifier_batch_size
        with torch.no_grad():
            logits = [
                self.network(torch.from_numpy(inputs[first : first + size]).to(self.device))
                for first in range(0, len(inputs), size)
            ]
        return torch.sigmoid(torch.cat(logits).cpu().double()).numpy()

    def save(self, path: str | Path, beside: dict) -> None:
        """Write the best epoch's checkpoint, and what belongs to it, such as the decision (threshold, calibration)."""
        save_checkpoint(path, self.state | beside)

    def load(self, path: str | Path) -> 'SfcnClassifier':
        """Take over the network and the optimizer's state of a checkpoint."""
        self.state = load_checkpoint(path)
        self._build(**self.state['network'])
        self.network.load_state_dict(self.state['model_state_dict'])
        return self

    def _build(self, n_planes, n_channels, n_times, width=None):
        self.description = {
            'n_planes': n_planes,
            'n_channels': n_channels,
            'n_times': n_times,
            'width': width or self.classifier_width,
        }
        # Channels last in memory: on a CPU 1.7 times as fast forwards, 1.3 times in training.
        self.network = SFCN(**self.description).to(self.device, memory_format=torch.channels_last)
        self.network.precision = self.precision
