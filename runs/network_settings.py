"""What the settings say of the networks: loss weights, levels and sub-windows."""

from types import SimpleNamespace

from classifiers.specs import CLASSIFIERS
from classifiers.subwindows import SubwindowShape, subwindow_shape
from models.sfcn import SFCN
from utils import SettingError


def loss_weights(settings: SimpleNamespace) -> list[float]:
    """Weight of each (reconstruction, target) pair of the model: a to e for wavelets, 1 for the one pair of others."""
    if settings.model != 'wavelets':
        return [1.0]
    details = [settings.b, settings.c, settings.d]
    n_levels = len(settings.filters)
    details = details[:n_levels] + details[-1:] * (n_levels - len(details))
    return [settings.a, *details, settings.e]


def subwindow_shape_of(settings: SimpleNamespace) -> SubwindowShape:
    """How the settings cut a window into sub-windows.

    Prints a warning where a combination of settings is of little use.

    Raises
    ------
    SettingError
        No sub-window fits, the loss has no term, or the classifier or the masking cannot work with the settings.
    """
    check_loss_terms(settings)
    window_length = round(settings.window_size * settings.sfreq)
    border = round(settings.spike_spacing_from_border * settings.sfreq)
    subwindow_length = round(settings.subwindow_size * settings.sfreq)
    if subwindow_length == 0:
        raise SettingError(f'subwindow_size = {settings.subwindow_size} is less than a sample: make it longer')
    shape = subwindow_shape(window_length, border, subwindow_length)
    inner_length = window_length - 2 * border
    check_classifier(shape, inner_length, settings)
    check_masking(border, settings)
    n_uncovered = inner_length - shape.n_subwindows * shape.subwindow_length
    if n_uncovered:
        print(
            f'warning: the last {n_uncovered} of the {inner_length} inner samples of every window are in no '
            'sub-window and are not scored: the inner part is no multiple of subwindow_size'
        )
    return shape


def check_loss_terms(settings: SimpleNamespace) -> None:
    """Check that the model has the levels that are named, and its loss a term.

    Raises
    ------
    SettingError
        A level is too high, or all weights are 0.
    """
    weights = loss_weights(settings)
    if settings.levels != 'all' and max(settings.levels) >= len(weights):
        raise SettingError(f'levels = {settings.levels}: {settings.model} has the levels 0 to {len(weights) - 1}')
    if sum(weights) == 0:
        raise SettingError('a, b, c, d and e: all that have an effect are 0; give at least one loss term a weight')


def check_classifier(shape: SubwindowShape, inner_length: int, settings: SimpleNamespace) -> None:
    """Check that the classifier can work with the sub-windows.

    Parameters
    ----------
    inner_length : int
        Samples of a window without its borders.

    Raises
    ------
    SettingError
        No sub-window fits into a window, the sub-windows are too short for the network, or the unsupervised
        classifier would learn from windows that annotations choose.
    """
    if settings.balanced and settings.classifier == 'threshold':
        raise SettingError("balanced=True chooses by annotations, which classifier='threshold' does without: set False")
    if shape.n_subwindows == 0:
        raise SettingError(
            f'subwindow_size = {settings.subwindow_size} does not fit into the inner part of a window, window_size - '
            f'2 x spike_spacing_from_border = {inner_length / settings.sfreq:g} s: make one of the three fit'
        )
    if settings.classifier in ('sfcn', 'raw') and shape.subwindow_length < SFCN.least_times:
        raise SettingError(
            f'subwindow_size = {settings.subwindow_size} is {shape.subwindow_length} samples at '
            f'sfreq = {settings.sfreq}: the classifier {settings.classifier} needs at least {SFCN.least_times}'
        )


def check_masking(border: int, settings: SimpleNamespace) -> None:
    """Check that masking can work with the settings; print a warning where it loses by them.

    Parameters
    ----------
    border : int
        Samples of a window on either side of its inner part.

    Raises
    ------
    SettingError
        There is no signal to predict from around the inner part.
    """
    spec = CLASSIFIERS[settings.classifier]
    reads_features = spec.relative_to_block or 'pseudo_labelled' in spec.settings
    if settings.features != 'residual' and not (settings.masking and reads_features):
        print(
            f'warning: features={settings.features!r} changes nothing with masking={settings.masking!r} and '
            f'classifier={settings.classifier!r}'
        )
    if not settings.masking:
        return
    if settings.standardize != 'block':
        print(
            f"warning: masking={settings.masking!r} is meant for standardize='block': with standardize="
            f'{settings.standardize!r} the scale of each window depends on its masked samples and gives hints of them'
        )
    if border == 0:
        raise SettingError(
            f'masking={settings.masking!r} needs signal around the inner part of a window: set '
            'spike_spacing_from_border above 0, or masking=None'
        )
    pretrained = 'pseudo_labelled' in spec.settings and settings.pretraining_epochs and settings.encoder != 'scratch'
    if settings.balanced and (spec.relative_to_block or pretrained):
        print(
            f'warning: balanced=True leaves out windows with which classifier={settings.classifier!r}, under masking, '
            'compares every other window of the block'
        )


def level_names(settings: SimpleNamespace) -> list[str]:
    """Names of the (reconstruction, target) pairs of the model."""
    if settings.model != 'wavelets':
        return ['signal']
    n_levels = len(settings.filters)
    details = [f'detail {k}: {settings.sfreq / 2 ** (k + 1):.3g}-{settings.sfreq / 2**k:.3g} Hz'
               for k in range(1, n_levels + 1)]  # fmt: skip
    return ['signal', *details, f'approximation: below {settings.sfreq / 2 ** (n_levels + 1):.3g} Hz']
