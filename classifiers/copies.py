"""Copies of training windows that keep their labels: of the opposite sign, and of the mirrored helmet.

The sign of a spike depends on the direction of its source, and its side on the patient. Neither tells whether it is a
spike, so a copy is one more example of a label that an expert has given once.
"""

import functools
from collections.abc import Callable

import torch

from recordings.channels import channel_names


@functools.cache
def mirrored_channels() -> list[int]:
    """Place of every channel's twin on the other side of the helmet (274,).

    The channels of the midline are their own twins, and so is MLP52, whose twin is not among the 274.
    """
    sides = {'L': 'R', 'R': 'L', 'Z': 'Z'}
    indices = {name: index for index, name in enumerate(channel_names())}
    return [indices.get(f'M{sides[name[1]]}{name[2:]}', index) for name, index in indices.items()]


def flip_sign(x: torch.Tensor) -> torch.Tensor:
    """Windows (batch, 1, 274, times) of the opposite sign."""
    return -x


def mirror_helmet(x: torch.Tensor) -> torch.Tensor:
    """Windows (batch, 1, 274, times) as the mirrored head would give them, but for their sign."""
    return x[:, :, mirrored_channels()]


def mirror_and_flip(x: torch.Tensor) -> torch.Tensor:
    """Windows (batch, 1, 274, times) mirrored, and of the opposite sign."""
    return flip_sign(mirror_helmet(x))


# The setting `copies`: what makes the copies that are trained on beside the windows as they are.
COPIES: dict[str | None, tuple[Callable[[torch.Tensor], torch.Tensor], ...]] = {
    None: (),
    'sign': (flip_sign,),
    'mirror': (mirror_helmet,),
    'both': (flip_sign, mirror_helmet, mirror_and_flip),
}
