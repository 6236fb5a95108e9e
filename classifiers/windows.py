"""Classifiers `finetuned` and `raw`: networks that read whole windows and score all their sub-windows in one pass."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from classifiers.augmentation import CHANGES, add_noise, shift_windows
from classifiers.network import NetworkClassifier
from classifiers.subwindows import SubwindowShape
from models.autoencoder import Autoencoder
from models.detector import SpikeDetector, WindowSFCN
from models.network import Network
from timeseries_dataset import WindowSource, batches
from training.checkpoints import checkpoint_saver
from training.losses import spike_loss

# Windows that the components of the channels are measured on, at most, spread evenly over those of training.
_N_MEASURED = 256


class ChangedWindows(Dataset):
    """Batches of windows (batch, 1, channels, times) with random changes, the same in every epoch of a number.

    Parameters
    ----------
    windows : WindowSource
    changes : list of callables
        What is changed in every batch, such as those of `augmentation.CHANGES`.
    seed : int
    """

    def __init__(self, windows: WindowSource, changes: Sequence[Callable], seed: int):
        self.windows, self.changes, self.seed, self.epoch = windows, changes, seed, 0

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def preloaded(self) -> torch.Tensor | None:
        """The windows, where they are held."""
        return getattr(self.windows, 'preloaded', None)

    def changed(self, indices: list[int]) -> tuple[torch.Tensor, np.random.Generator]:
        """Windows of these indices, and where their random numbers go on."""
        x, _ = self.windows.__getitems__(indices)
        rng = np.random.default_rng([self.seed, self.epoch, int(indices[0])])
        for change in self.changes:
            x = change(x, rng)
        return x, rng


class LabelledWindows(ChangedWindows):
    """Batches of (windows, labels of their sub-windows), (batch, n_subwindows) float32.

    A label is 1 for a spike, 0 for others, and -1 for others that a spike lies less than a sub-window from.

    Parameters
    ----------
    windows, changes, seed
        See `ChangedWindows`.
    labels_t : uint8 array (n_windows, times)
        1 at the samples of a spike.
    shape : SubwindowShape
    shifted : bool
        Whether windows are moved by a few samples too.
    """

    def __init__(
        self,
        windows: WindowSource,
        labels_t: np.ndarray,
        shape: SubwindowShape,
        changes: Sequence[Callable] = (),
        shifted: bool = False,
        seed: int = 0,
    ):
        super().__init__(windows, changes, seed)
        self.labels_t, self.shape, self.shifted = torch.from_numpy(labels_t), shape, shifted

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole batch at once."""
        x, rng = self.changed(indices)
        labels_t = self.labels_t[indices]
        if self.shifted:
            x, labels_t = shift_windows(x, labels_t, self.shape.border, rng)
        reach = self.shape.subwindow_length
        around = F.max_pool1d(labels_t[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0]
        labels, near = (subwindow_labels(marks, self.shape) for marks in (labels_t, around))
        return x, 2 * labels - near


class PseudoLabelledWindows(ChangedWindows):
    """Batches of (windows, their pseudo-labels): float32 (n_windows, n_subwindows), between 0 and 1."""

    def __init__(self, windows: WindowSource, labels: np.ndarray, changes: Sequence[Callable] = (), seed: int = 0):
        super().__init__(windows, changes, seed)
        self.labels = torch.from_numpy(labels)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole batch at once."""
        return self.changed(indices)[0], self.labels[indices]


def subwindow_labels(labels_t: torch.Tensor, shape: SubwindowShape) -> torch.Tensor:
    """Labels (n_windows, n_subwindows), float32, of time labels (n_windows, times): 1 where a marked sample lies."""
    return shape.cut(labels_t).amax(dim=-1).view(len(labels_t), -1).float()


@dataclasses.dataclass(kw_only=True)
class WindowClassifier(NetworkClassifier):
    """A network on whole windows.

    It reads a dataset of windows, such as `WindowDataset`, and its examples have time labels (n_windows, times).

    Attributes
    ----------
    shape : SubwindowShape
    preload, classifier_augmentation, augmentation, augmentation_fraction, hard_negatives
        The settings of these names.
    """

    shape: SubwindowShape
    preload: str | bool
    classifier_augmentation: list[str]
    augmentation: float
    augmentation_fraction: float
    hard_negatives: float

    def _labels(self, examples):
        return subwindow_labels(torch.from_numpy(examples.labels), self.shape).numpy().ravel()

    def _batch_size(self):
        return max(2, self.classifier_batch_size // self.shape.n_subwindows)

    def _labelled(self, examples, *, training):
        examples.inputs.hold(self.preload, self.device)
        changes, shifted = (self._changes(), 'shift' in self.classifier_augmentation) if training else ((), False)
        return LabelledWindows(examples.inputs, examples.labels, self.shape, changes, shifted, self.seed)

    def _changes(self):
        """What is changed at random in training windows, but for shifts, which change labels too."""
        noise = functools.partial(add_noise, std=self.augmentation, fraction=self.augmentation_fraction)
        return [change for name, change in (CHANGES | {'noise': noise}).items() if name in self.classifier_augmentation]

    def _batches(self, inputs):
        return (x for x, _ in batches(inputs, batch_size=self._batch_size()))

    def _describe_windows(self, train_set):
        n_channels = train_set.inputs.__getitems__([0])[0].shape[2]
        return {'shape': tuple(self.shape), 'n_channels': n_channels, 'width': self.classifier_width}

    def _loss(self, positive_weight, scores):
        return spike_loss(self.classifier_loss, positive_weight, self.focal_gamma, scores, self.hard_negatives)

    def _on_device(self, network: Network) -> Network:
        network.precision = self.precision
        return network.to(self.device)


@dataclasses.dataclass(kw_only=True)
class RawClassifier(WindowClassifier):
    """The group's network on the signal itself, cut into sub-windows: what a spike detector is without autoencoder."""

    name = 'raw'

    def _describe(self, train_set):
        return self._describe_windows(train_set)

    def _build(self, description):
        return self._on_device(WindowSFCN(**description))


@dataclasses.dataclass(kw_only=True)
class FinetunedClassifier(WindowClassifier):
    """A detector whose encoder is an autoencoder's, trained end to end.

    Attributes
    ----------
    autoencoder : Autoencoder
        That it starts from: trained, or new.
    encoder : str
        'pretrained' trains it further, 'frozen' leaves it as it is, 'scratch' trains it from where it starts.
    head_rate : float
        Learning rate of all that is new, as a multiple of the encoder's.
    pretraining_epochs : int
        Most epochs on pseudo-labels; validation chooses which is kept, as in training.
    pseudo_labelled : Examples or None
        Windows and their pseudo-labels (n_windows, n_subwindows), float32, which a new network learns first, see
        `pseudo_labels`.
    """

    autoencoder: Autoencoder
    encoder: str
    head_rate: float
    pretraining_epochs: int
    pseudo_labelled: Any

    name = 'finetuned'

    def _describe(self, train_set):
        return self._describe_windows(train_set) | {'new_encoder': self.encoder == 'scratch'}

    def _build(self, description):
        network = SpikeDetector(copy.deepcopy(self.autoencoder), **description)
        network.autoencoder.requires_grad_(self.encoder != 'frozen')
        # What the fields are made of learns as slowly as the encoder: the head is what few labels are enough for.
        slow = ('components', 'corrections') + ('autoencoder.',) * (self.encoder != 'scratch')
        for name, parameter in network.named_parameters():
            if not name.startswith(slow):
                parameter.rate = self.head_rate  # ty: ignore[missing-attribute]
        return self._on_device(network)

    def _prepare(self, train_set, validation, positive_weight, path):
        self._measure_components(train_set)
        if self.pseudo_labelled is None:
            return False
        windows, labels = self.pseudo_labelled
        windows.hold(self.preload, self.device)
        save_last = checkpoint_saver(lambda which: path, self.description)
        print(f'  pseudo-labels of {len(windows)} windows:')
        self._train(
            PseudoLabelledWindows(windows, labels, self._changes(), self.seed),
            validation,
            positive_weight,
            num_epochs=self.pretraining_epochs,
            save=lambda which, state: save_last(which, state) if which == 'last' else None,
            resume=(lambda which: path) if path.is_file() else None,
        )
        windows.hold(False, self.device)  # lets them go
        print('  annotations:')
        return True

    def _measure_components(self, train_set):
        assert isinstance(self.network, SpikeDetector)
        spread = np.unique(np.linspace(0, len(train_set.inputs) - 1, _N_MEASURED).astype(int)).tolist()
        size = self._batch_size()
        chosen = (spread[first : first + size] for first in range(0, len(spread), size))
        self.network.measure_components(train_set.inputs.__getitems__(rows)[0].to(self.device) for rows in chosen)
