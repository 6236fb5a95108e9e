"""What may be changed in a training window without changing its labels."""

from collections.abc import Callable

import numpy as np
import torch

from classifiers.copies import mirrored_channels

_GAIN_STD = 0.2  # of the logarithm of the amplitude
_LONGEST_SHIFT = 7  # samples, at 150 Hz 47 ms; never more than the border of a window
_DROPPED = 0.1  # share of the channels


def flip_signs(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Half of the windows (batch, 1, channels, times) of the opposite sign, as of sources that point the other way."""
    return x * _each(rng.choice([-1.0, 1.0], len(x)), x)


def mirror_helmets(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Half of the windows (batch, 1, 274, times) as the mirrored head would give them, but for their sign."""
    mirrored = torch.from_numpy(rng.random(len(x)) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], x[:, :, mirrored_channels()], x)


def change_amplitudes(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Windows (batch, 1, channels, times) of another amplitude each, by 20 % on average."""
    return x * _each(np.exp(rng.normal(0, _GAIN_STD, len(x))), x)


def drop_channels(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Windows (batch, 1, channels, times) without a tenth of the channels each."""
    mask = rng.random((len(x), 1, x.shape[2], 1)) >= _DROPPED
    return x * torch.from_numpy(mask.astype(np.float32)).to(x.device)


def add_noise(x: torch.Tensor, rng: np.random.Generator, std: float, fraction: float) -> torch.Tensor:
    """A fraction of the windows (batch, 1, channels, times) with Gaussian noise of this std."""
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(x.device)
    return x + _each(std * (rng.random(len(x)) < fraction), x) * noise


# The setting `classifier_augmentation`, but for 'noise' and for 'shift', which moves the labels too.
CHANGES: dict[str, Callable[[torch.Tensor, np.random.Generator], torch.Tensor]] = {
    'sign': flip_signs,
    'mirror': mirror_helmets,
    'amplitude': change_amplitudes,
    'channels': drop_channels,
}


def shift_windows(
    x: torch.Tensor, labels_t: torch.Tensor, border: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (batch, 1, channels, times) and their time labels (batch, times), each moved by a few samples.

    What moves in at an end repeats the sample there: less than the border, which no sub-window sees.
    """
    longest, n_times = min(_LONGEST_SHIFT, border), x.shape[-1]
    shifts = torch.from_numpy(rng.integers(-longest, longest + 1, len(x)))
    at = (torch.arange(n_times) + shifts[:, None]).clamp(0, n_times - 1)
    return x.gather(-1, at.to(x.device)[:, None, None].expand_as(x)), labels_t.gather(-1, at)


def _each(values, x):
    """A factor for each window."""
    return torch.from_numpy(values.astype(np.float32)).to(x.device)[:, None, None, None]
