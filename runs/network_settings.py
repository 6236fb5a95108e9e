"""What the settings say of the networks: loss weights, levels and sub-windows."""

from types import SimpleNamespace

from classification import CLASSIFIERS
from classifiers.subwindows import SubwindowShape, subwindow_shape
from models.sfcn import SFCN
from utils import SettingError


def loss_weights(settings: SimpleNamespace) -> list[float]:
    """Weight of each (reconstruction, target) pair of the model: a..e for wavelets, otherwise 1 for the only one."""
    if settings.model != 'wavelets':
        return [1.0]
    details = [settings.b, settings.c, settings.d]
    n_levels = len(settings.filters)
    details = details[:n_levels] + details[-1:] * (n_levels - len(details))
    return [settings.a, *details, settings.e]


def subwindow_shape_of(settings: SimpleNamespace) -> SubwindowShape:
    """How the settings cut a window into sub-windows.

    Raises
    ------
    SettingError
        No sub-window fits, or the loss has no term.
    """
    n_pairs = len(loss_weights(settings))
    if settings.levels != 'all' and max(settings.levels) >= n_pairs:
        raise SettingError(f'levels = {settings.levels}: {settings.model} has the levels 0 to {n_pairs - 1}')
    if sum(loss_weights(settings)) == 0:
        raise SettingError('a, b, c, d and e: all that have an effect are 0; give at least one loss term a weight')
    window_length = round(settings.window_size * settings.sfreq)
    border = round(settings.spike_spacing_from_border * settings.sfreq)
    if round(settings.subwindow_size * settings.sfreq) == 0:
        raise SettingError(f'subwindow_size = {settings.subwindow_size} is less than a sample: make it longer')
    if settings.balanced and settings.classifier == 'threshold':
        raise SettingError("balanced=True chooses by annotations, which classifier='threshold' does without: set False")
    shape = subwindow_shape(window_length, border, round(settings.subwindow_size * settings.sfreq))
    n_inner = window_length - 2 * border
    if shape.n_subwindows == 0:
        raise SettingError(
            f'subwindow_size = {settings.subwindow_size} does not fit into the inner part of a window, window_size - '
            f'2 x spike_spacing_from_border = {n_inner / settings.sfreq:g} s: make one of the three fit'
        )
    if settings.classifier == 'sfcn' and shape.subwindow_length < SFCN.least_times:
        raise SettingError(
            f'subwindow_size = {settings.subwindow_size} is {shape.subwindow_length} samples at '
            f'sfreq = {settings.sfreq}: the classifier sfcn needs at least {SFCN.least_times}'
        )
    if settings.masking and settings.standardize != 'block':
        print(
            f"warning: masking={settings.masking!r} is meant for standardize='block': with standardize="
            f'{settings.standardize!r} each window is scaled with its hidden samples, so that its scale tells of them'
        )
    if settings.masking and border == 0:
        raise SettingError(
            f'masking={settings.masking!r} needs signal around the inner part of a window: set '
            'spike_spacing_from_border above 0, or masking=None'
        )
    if settings.masking and settings.balanced and CLASSIFIERS[settings.classifier].relative_to_block:
        print(
            f'warning: balanced=True leaves out windows that classifier={settings.classifier!r} compares each with, '
            'with masking'
        )
    not_judged = n_inner - shape.n_subwindows * shape.subwindow_length
    if not_judged:
        print(
            f'warning: the last {not_judged} of the {n_inner} inner samples of every window are not judged: the inner '
            'part is no multiple of subwindow_size'
        )
    return shape


def level_names(settings: SimpleNamespace) -> list[str]:
    """Names of the (reconstruction, target) pairs of the model."""
    if settings.model != 'wavelets':
        return ['signal']
    n_levels = len(settings.filters)
    details = [f'detail {k}: {settings.sfreq / 2 ** (k + 1):.3g}-{settings.sfreq / 2**k:.3g} Hz'
               for k in range(1, n_levels + 1)]  # fmt: skip
    return ['signal', *details, f'approximation: below {settings.sfreq / 2 ** (n_levels + 1):.3g} Hz']
