"""The settings that decide which windows a data_raw file gives."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import NamedTuple

from utils import SettingError

WINDOWS_VERSION = 1  # raised when the same settings and input come to give other windows


class WindowShape(NamedTuple):
    """The lengths of a window, in samples.

    Attributes
    ----------
    window_length : int
        Length of a window (T).
    border : int
        Outer part on either side in which no spike is labelled.
    half_pulse : int
        Largest distance of a marked sample from its spike (h).
    """

    window_length: int
    border: int
    half_pulse: int

    @property
    def hop(self) -> int:
        """Distance between the starts of neighbouring windows, which is the length of the inner part."""
        return self.window_length - 2 * self.border


def window_shape(
    *, window_size: float, spike_spacing_from_border: float, pulse_width: float, sfreq: float
) -> WindowShape:
    """Turn durations in seconds into a `WindowShape` in samples at `sfreq` Hz.

    Returns
    -------
    WindowShape

    Raises
    ------
    SettingError
        The two borders leave nothing of the window.
    """
    shape = WindowShape(
        round(window_size * sfreq), round(spike_spacing_from_border * sfreq), round(pulse_width / 2 * sfreq)
    )
    if shape.hop <= 0:
        raise SettingError(
            f'spike_spacing_from_border = {spike_spacing_from_border} leaves nothing of window_size = {window_size}: '
            'make it less than half of window_size'
        )
    return shape


@dataclasses.dataclass(frozen=True)
class WindowSettings:
    """All settings that decide which windows a data_raw file gives.

    Attributes
    ----------
    normal_only : bool
        True for the autoencoder's set: only windows without a marked sample. False for the classifier's set.
    nb_best_blocks, sfreq, ..., artefact_threshold
        The settings of these names.

    Raises
    ------
    SettingError
        The two borders leave nothing of the window.
    """

    normal_only: bool
    nb_best_blocks: int
    sfreq: float
    window_size: float
    spike_spacing_from_border: float
    pulse_width: float
    standardize: str | bool
    reject_artefacts: bool
    artefact_threshold: float

    def __post_init__(self):
        _ = self.shape  # which refuses durations that do not fit

    @classmethod
    def of_run(cls, settings: SimpleNamespace, *, normal_only: bool) -> 'WindowSettings':
        """Take them from the settings of a script."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != 'normal_only']
        return cls(normal_only, **{name: getattr(settings, name) for name in names})

    @functools.cached_property
    def shape(self) -> WindowShape:
        """The lengths of a window in samples, see `window_shape`."""
        return window_shape(
            window_size=self.window_size,
            spike_spacing_from_border=self.spike_spacing_from_border,
            pulse_width=self.pulse_width,
            sfreq=self.sfreq,
        )

    def stored(self) -> dict:
        """As the sidecar of window files stores them: equal for settings that give the same windows."""
        return {
            'version': WINDOWS_VERSION,
            **dataclasses.asdict(self),
            'standardize': 'window' if self.standardize is True else self.standardize,
            'artefact_threshold': self.artefact_threshold if self.reject_artefacts else None,
        }
