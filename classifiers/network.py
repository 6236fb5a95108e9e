"""What the classifiers that are networks share: training, applying, and their checkpoints."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from evaluation.epochs import epoch_metrics
from loop import make_optimizer, resume_optimizer, train
from models.network import Network
from timeseries_dataset import WindowSource, batches
from training.checkpoints import checkpoint_saver, load_checkpoint, save_checkpoint
from training.epoch_log import epoch_logger
from training.losses import Loss, ValidationScores, spike_loss
from utils import to_device


@dataclasses.dataclass(kw_only=True)
class NetworkClassifier(ABC):
    """A network as classifier; the settings are those of params.py.

    A classifier of this kind says how it makes its network and its batches.
    """

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
    classifier_optimizer: str
    classifier_weight_decay: float
    early_stop_on: str
    scheduler: str
    stepLR: int
    gammaLR: float
    plateau_patience: int

    name: ClassVar[str]  # of the classifier, in losses.csv

    def __post_init__(self):
        self.network: Network | None = None
        self.description: dict = {}  # what builds the network, see `_build`
        self.state: dict = {}

    def fit(self, train_set, validation_set, checkpoint: Callable[[str], Path]) -> list[dict]:
        """Train on `Examples`, from a loaded state where there is one, and keep the best epoch on validation.

        Parameters
        ----------
        checkpoint : callable
            From 'best' or 'last' to the path of the checkpoint to leave. Where 'last' is there, of a training that was
            interrupted, it goes on. 'pretraining' is there only until the end.

        Returns
        -------
        list of dict
            One per epoch, see `loop.train`.
        """
        labels = self._labels(train_set)
        n_spikes, n_others = int(labels.sum()), int((1 - labels).sum())
        weight = n_others / n_spikes if self.positive_weight is None else self.positive_weight
        print(f'  {len(labels)} training sub-windows, {n_spikes} with a spike, each weighted {weight:.1f}')
        interrupted, trained_further = checkpoint('last').is_file(), bool(self.state)
        validation = self._labelled(validation_set, training=False)
        if self.network is None:
            self.description = self._describe(train_set)
            self.network = self._build(self.description)
            with torch.no_grad():
                self.network.get_parameter('output.bias').fill_(math.log(n_spikes / n_others))
            if not interrupted:
                trained_further = self._prepare(train_set, validation, weight, checkpoint('pretraining'))
        history = self._train(
            self._labelled(train_set, training=True),
            validation,
            weight,
            num_epochs=self.classifier_num_epochs,
            save=checkpoint_saver(checkpoint, self.description),
            log=epoch_logger(checkpoint('last').parent, self.name),
            validate_first=trained_further,
            resume=checkpoint if interrupted else None,
        )
        self.state = load_checkpoint(checkpoint('best'))
        checkpoint('pretraining').unlink(missing_ok=True)
        return history

    def _train(self, windows: WindowSource, validation: WindowSource, positive_weight: float, **how) -> list[dict]:
        """Train the network on batches (input, labels), and keep the best epoch on validation; see `loop.train`."""
        network = self._trained()
        optimizer, scheduler = make_optimizer(
            network,
            optimizer=self.classifier_optimizer,
            learning_rate=self.classifier_learning_rate,
            weight_decay=self.classifier_weight_decay,
            scheduler=self.scheduler,
            stepLR=self.stepLR,
            gammaLR=self.gammaLR,
            plateau_patience=self.plateau_patience,
        )
        if self.state:
            resume_optimizer(optimizer, self.state['optimizer_state_dict'])
        size, scores = self._batch_size(), ValidationScores()
        return train(
            network,
            batches(windows, batch_size=size, shuffle=True, seed=self.seed),
            batches(validation, batch_size=size),
            self._loss(positive_weight, scores),
            optimizer=optimizer,
            scheduler=scheduler,
            n_epochs_stop=self.classifier_n_epochs_stop,
            device=self.device,
            measure=lambda earlier: epoch_metrics(*scores.take(), earlier),
            early_stop_on=self.early_stop_on,
            **how,
        )

    def predict_proba(self, inputs) -> np.ndarray:
        """Score between 0 and 1 of every sub-window (n,), float64, of what the classifier reads."""
        network = self._trained()
        network.eval()
        with torch.no_grad():
            logits = [network(to_device(x, self.device)).flatten() for x in self._batches(inputs)]
        return torch.sigmoid(torch.cat(logits).cpu().double()).numpy()

    def save(self, path: str | Path, extra: dict) -> None:
        """Write the best epoch's checkpoint, and what belongs to it, such as the decision (threshold, calibration)."""
        save_checkpoint(path, self.state | extra)

    def load(self, path: str | Path) -> 'NetworkClassifier':
        """Take over the network and the optimizer's state of a checkpoint."""
        self.state = load_checkpoint(path)
        self.description = self.state['network']
        self.network = self._build(self.description)
        self.network.load_state_dict(self.state['model_state_dict'])
        return self

    def _trained(self) -> Network:
        assert self.network is not None, 'neither trained nor loaded'
        return self.network

    # ------------------------------------------------------------------------ what differs between classifiers
    @abstractmethod
    def _labels(self, examples) -> np.ndarray:
        """Labels (n,) of the sub-windows."""

    def _loss(self, positive_weight: float, scores: ValidationScores) -> Loss:
        """Loss of a batch, in training and in validation, whose scores are collected."""
        return spike_loss(self.classifier_loss, positive_weight, self.focal_gamma, scores)

    @abstractmethod
    def _batch_size(self) -> int:
        """Rows of a batch."""

    @abstractmethod
    def _labelled(self, examples, *, training: bool) -> WindowSource:
        """Dataset of batches (input, labels)."""

    @abstractmethod
    def _batches(self, inputs):
        """Yield the batches of what is to be scored."""

    @abstractmethod
    def _describe(self, train_set) -> dict:
        """What builds a network for a training set."""

    def _prepare(self, train_set, validation: WindowSource, positive_weight: float, path: Path) -> bool:
        """Do what a new network needs before it is trained, and say whether it has learnt; by default nothing.

        `path` is that of a checkpoint, in case that it is interrupted.
        """
        return False

    @abstractmethod
    def _build(self, description: dict) -> Network:
        """The network of a description, on the device."""
