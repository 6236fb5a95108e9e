"""From window files to batches: the windows of all patients of a run, their id table, the Datasets and loaders."""

import math
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from recordings.patient_windows import PatientWindows, check_windows, find_windows, open_windows
from recordings.scaling import block_statistics, scale, scale_window
from system.interruption import SIGNALS
from system.memory import free_memory
from utils import SettingError, to_device

PARTS = ('train', 'validation', 'test')
LARGEST_IN_MEMORY = 2**30  # bytes of an array that grows with the study
# Settings that windows must have been made with, to be trained on or detected in.
WINDOW_SETTINGS = ('sfreq', 'window_size', 'spike_spacing_from_border', 'pulse_width', 'standardize')


def open_directory(
    directory: str | Path, nb_best_blocks: int, patient: int | list[int] | bool, made_with: dict
) -> list[PatientWindows]:
    """Open the windows of every patient chosen, and check them: finite numbers, made with the settings of this run.

    Parameters
    ----------
    made_with : dict
        Settings that the windows must have been made with: `sfreq`, `window_size` and any more. Windows of the
        original code do not say what they were made with: of them only the length is known and checked.

    Raises
    ------
    DataError
        As `find_windows`, `open_windows` and `check_windows`.
    SettingError
        The windows were made with other settings.
    """
    numbers = find_windows(directory, nb_best_blocks, patient)
    opened = [open_windows(directory, number, nb_best_blocks) for number in numbers]
    for patient_windows in opened:
        check_windows(patient_windows, made_with)
    return opened


def id_table(patients: list[PatientWindows]) -> pd.DataFrame:
    """One row per window of all patients.

    Parameters
    ----------
    patients : list of PatientWindows

    Returns
    -------
    DataFrame
        subject, window (row in the patient's file), block, timing, label, and `patient`, the position in `patients`.
    """
    return pd.concat(
        [
            pd.DataFrame(
                {
                    'subject': patient_windows.subject,
                    'window': np.arange(len(patient_windows.labels)),
                    'block': patient_windows.blocks,
                    'timing': patient_windows.timing,
                    'label': patient_windows.labels,
                    'patient': position,
                }
            )
            for position, patient_windows in enumerate(patients)
        ],
        ignore_index=True,
    )


# ------------------------------------------------------------------------------------------ the batches
def place_of_windows(n_bytes: int, preload: str | bool, device: torch.device) -> torch.device | None:
    """Where windows that take `n_bytes` as float32 are held: on the device, in memory, or (None) not at all.

    Parameters
    ----------
    preload : 'auto' or bool
        The setting of this name.
    device : torch.device
        The one that trains.

    Raises
    ------
    SettingError
        They do not fit, with preload = True.
    """
    if preload is True:
        if n_bytes > (free := free_memory(device)):
            raise SettingError(
                f'preload = True: the windows take {n_bytes / 1e9:.1f} GB, but {device} has {free / 1e9:.1f} GB left: '
                "set preload to 'auto', or use fewer patients"
            )
        return device
    if preload == 'auto':
        processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))  # of torchrun, which share the machine's memory
        for location in (device, torch.device('cpu')):
            if n_bytes * (processes if location.type == 'cpu' else 1) <= free_memory(location) / 4:
                return location
    return None


def empty_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array to be filled: in memory, or beyond `LARGEST_IN_MEMORY` in a file without a name.

    The file lies in the folder for temporary files (TMPDIR), goes with the process, and is read through the system's
    cache, which takes only memory that nothing else needs.

    Raises
    ------
    SettingError
        The folder has no room for the file.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes <= LARGEST_IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, 'posix_fallocate'):  # or else a full disk would end the process when the array is filled
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            file.truncate(n_bytes)
            return np.memmap(file, dtype, 'r+', shape=shape)
    except OSError as fault:
        raise SettingError(
            f'TMPDIR: the folder for temporary files cannot hold {n_bytes / 1e9:.1f} GB that the classifier reads '
            f'({fault.strerror or fault}); let TMPDIR name a folder on a larger disk, or take fewer patients or '
            'shorter recordings'
        ) from fault


def zscored(standardize: str | bool) -> bool:
    """Whether the Dataset z-scores each window: not where the windows were scaled by block to keep amplitudes."""
    return standardize != 'block'


class WindowDataset(Dataset):
    """Batches of (input, target) windows, each (batch, 1, 274, n_times) float32.

    Parameters
    ----------
    patients : list of PatientWindows
    table : DataFrame
        The rows of their id table to serve; index i of this Dataset is row i.
    zscore : bool
        Scale each window by its own mean and std over channels and samples (windows without variance become zeros).
    noise : float
        Std of the Gaussian noise added to the input; the target stays clean.
    noisy_fraction : float
        Share of the windows that get noise, drawn anew in every epoch.
    seed : int
        Seed of the noise.
    preload : 'auto' or bool
        The setting of this name; by default every batch is read from the files.
    device : torch.device
        The one that trains.

    Attributes
    ----------
    preloaded : tensor (n_windows, 274, n_times) or None
        The windows, where they are held.
    """

    def __init__(
        self,
        patients: list[PatientWindows],
        table: pd.DataFrame,
        *,
        zscore: bool,
        noise: float = 0.0,
        noisy_fraction: float = 1.0,
        seed: int = 0,
        preload: str | bool = False,
        device: torch.device | str = 'cpu',
    ):
        self.files = [np.asarray(patient_windows.windows) for patient_windows in patients]
        self.patient = table['patient'].to_numpy()
        self.window = table['window'].to_numpy()
        self.noise, self.noisy_fraction = noise, noisy_fraction
        self.seed = seed
        self.epoch = 0
        self.scale = self._scale() if zscore else None
        self.preloaded: torch.Tensor | None = None
        self.hold(preload, torch.device(device))

    def __len__(self) -> int:
        return len(self.window)

    def hold(self, preload: str | bool, device: torch.device) -> None:
        """Load the windows to where the setting `preload` has them for the device, see `place_of_windows`."""
        self.device, self.preloaded = device, None  # what is held now makes room
        shape = (len(self), *self.files[0].shape[1:])
        location = place_of_windows(4 * math.prod(shape), preload, device)
        self.preloaded = None if location is None else torch.empty(shape, device=location)
        if self.preloaded is not None:
            for first in range(0, len(self), 256):
                indices = np.arange(first, min(first + 256, len(self)))
                self.preloaded[first : first + 256] = torch.from_numpy(self._read(indices))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noisy, clean = self.__getitems__([index])
        return noisy[0], clean[0]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole batch at once, where the windows are held, or else from the files."""
        if self.preloaded is None:
            clean = torch.from_numpy(self._read(np.asarray(indices, dtype=np.int64)))
        elif self.preloaded.is_cuda:
            clean = self.preloaded[to_device(torch.as_tensor(indices, dtype=torch.int64), self.preloaded.device)]
        else:
            clean = torch.from_numpy(self.preloaded.numpy()[indices])  # one thread, which other work does not hold up
        clean = clean[:, None]
        if not self.noise:
            return clean, clean
        if get_worker_info() is None:  # a GPU draws noise faster than the machine, and the windows are sent once
            clean = to_device(clean, self.device)
        # Streams of their own, not one for all: on a CPU the noise is then the same whoever reads the batch, and in
        # whatever pieces. On a GPU, where a stream per window would cost more than its numbers, one per batch.
        noisy = torch.empty_like(clean)
        whole = [slice(None)] if clean.is_cuda else [slice(i, i + 1) for i in range(len(clean))]
        for rows, first in zip(whole, indices, strict=False):
            stream = np.random.SeedSequence([self.seed, self.epoch, int(first)]).generate_state(1)
            generator = torch.Generator(clean.device).manual_seed(int(stream[0]))
            torch.randn(noisy[rows].shape, generator=generator, device=clean.device, out=noisy[rows])
            if self.noisy_fraction < 1:
                drawn = torch.rand(len(noisy[rows]), generator=generator, device=clean.device)
                noisy[rows] *= (drawn < self.noisy_fraction)[:, None, None, None]
        return noisy.mul_(self.noise).add_(clean), clean

    def _read(self, indices):
        """Windows from the files, in the order of the files, each read and scaled straight into its place."""
        batch = np.empty((len(indices), *self.files[0].shape[1:]), dtype=np.float32)
        for i in np.lexsort((self.window[indices], self.patient[indices])):
            row = indices[i]
            stored = self.files[self.patient[row]][self.window[row]]
            if self.scale is None:
                batch[i] = stored
            else:
                mean, factor = self.scale[row]
                np.subtract(stored, mean, out=batch[i])
                batch[i] *= factor
        return batch

    def _scale(self):
        """Mean and 1 / std of every window, once: (n_windows, 2) float32, computed in float64."""
        scale = np.zeros((len(self), 2), dtype=np.float32)
        for row in np.lexsort((self.window, self.patient)):
            stored = self.files[self.patient[row]][self.window[row]]
            if stored.min() < stored.max():  # or else zeros, whatever the rounding of the mean
                scale[row] = stored.mean(dtype=np.float64), 1 / stored.std(dtype=np.float64)
            else:
                scale[row] = stored[0, 0], 0
        return scale


class RecordingWindows(Dataset):
    """Batches of (input, target) windows of a block in memory, scaled as the window files are.

    Parameters
    ----------
    meg : array (274, n_samples)
        In tesla.
    samples : int array (n_windows, n_times)
        Sample of the block that each window shows at each of its samples.
    standardize
        The setting of this name.
    """

    epoch = 0

    def __init__(self, meg: np.ndarray, samples: np.ndarray, standardize: str | bool):
        self.samples, self.standardize = samples, standardize
        self.signal = meg
        if standardize == 'block':
            deviations = np.empty(meg.shape, '<f4')
            self.signal = scale(deviations, *block_statistics(meg, deviations))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole batch at once."""
        batch = np.empty((len(indices), len(self.signal), self.samples.shape[1]), dtype=np.float32)
        for window, index in zip(batch, indices, strict=True):
            cut = self.signal[:, self.samples[index]]
            if self.standardize is not False and cut.min() == cut.max():
                window[:] = 0
            else:
                window[:] = cut if self.standardize in ('block', False) else scale_window(cut)
        x = torch.from_numpy(batch)[:, None]
        return x, x


class WindowSource(Protocol):
    """A dataset of batches: with a length, whole batches at once, and the epoch that is under way."""

    epoch: int

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of these indices."""
        ...


class ShuffledEveryEpoch(Sampler):
    """A new order of range(len(dataset)) every epoch, from the seed and the dataset's epoch alone."""

    def __init__(self, dataset: WindowSource, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.dataset.epoch])
        return iter(rng.permutation(len(self.dataset)).tolist())


class Batches(Sampler):
    """Batches of an order of indices; of several processes, each gets its part of the same batches.

    Parameters
    ----------
    order : sequence of int, or ShuffledEveryEpoch
    batch_size : int
        Of one process: together, `size` processes take batches of `size` times as many.
    rank, size : int
        Which of how many processes this is.

    Attributes
    ----------
    first_batch : int
        The batch to begin with, when an interrupted epoch goes on.
    """

    def __init__(self, order: Sequence[int] | ShuffledEveryEpoch, batch_size: int, rank: int = 0, size: int = 1):
        self.order, self.whole = order, batch_size * size
        self.rank, self.size = rank, size
        self.first_batch = 0

    def __len__(self) -> int:
        return -(-len(self.order) // self.whole)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for number in range(self.first_batch, len(self)):
            begin, end, _ = self.part(number)
            yield order[number * self.whole + begin : number * self.whole + end]

    def part(self, number: int) -> tuple[int, int, int]:
        """Which windows of batch `number` are this process's: begin, end (excluded), and size of the whole batch."""
        total = min(self.whole, len(self.order) - number * self.whole)
        return self.rank * total // self.size, (self.rank + 1) * total // self.size, total


def batches(
    dataset: WindowSource,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    size: int = 1,
) -> DataLoader:
    """Loader of whole batches from a dataset with `__getitems__`, see `Batches`; the last of an epoch may be smaller.

    Windows held on a GPU are gathered there by the main process: `num_workers` has no effect on them.
    """
    preloaded = getattr(dataset, 'preloaded', None)
    on_gpu = preloaded is not None and preloaded.is_cuda
    order = ShuffledEveryEpoch(dataset, seed) if shuffle else range(len(dataset))
    return DataLoader(
        dataset,  # ty: ignore[invalid-argument-type]
        batch_sampler=Batches(order, batch_size, rank, size),
        collate_fn=_as_it_is,  # __getitems__ gives whole batches
        num_workers=0 if on_gpu else num_workers,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # or else every epoch would take a number from the stream of the training
    )


def prefetched(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of a loader; a thread reads the next one while the caller is busy with a batch."""
    with ThreadPoolExecutor(1) as thread:
        left = iter(loader)
        upcoming = thread.submit(lambda: next(left, None))
        while (batch := upcoming.result()) is not None:
            upcoming = thread.submit(lambda: next(left, None))
            yield batch


def _as_it_is(batch):
    return batch


def _leave_signals(worker):
    """Leave to the main process the signals that end a script, which all its processes get."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
