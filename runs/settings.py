"""The settings of a run: what each may be, and reading them from params.py and from the command line."""

import ast
import difflib
import importlib
import itertools
import math
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pywt

from utils import ROOT, SettingError

LONGEST_WINDOW = 100_000  # samples; of 274 channels, 110 MB
_OVERRIDE = re.compile(r'[A-Za-z_]\w*=')


class Rule(NamedTuple):
    """What a setting may be: a test of its value, and the same in words."""

    accepts: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    # No setting needs more than 1e9: sizes in samples stay countable, and infinity is out.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _number(low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> Rule:
    """A number from `low` to `high`, and larger than `above`."""
    bounds = []
    if above > -math.inf:
        bounds.append(f'above {above:g}')
    if low > -math.inf:
        bounds.append(f'at least {low:g}')
    if high < math.inf:
        bounds.append(f'at most {high:.12g}')
    return Rule(
        lambda value: _is_number(value) and low <= value <= high and above < value,
        f'a number {" and ".join(bounds)}',
    )


def _integer(low: int, high: int = 2**32 - 1) -> Rule:
    bounds = f'at least {low}' + f' and at most {high}' * (high < 2**32 - 1)
    return Rule(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, f'an integer of {bounds}'
    )


def _choice(*values: Any) -> Rule:
    # repr tells True from 1 and 1 from 1.0, which == does not.
    allowed = [repr(value) for value in values]
    return Rule(lambda value: repr(value) in allowed, 'one of ' + ', '.join(allowed))


def _or_none(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.accepts(value), f'{rule.words}, or None')


def _is_path(value: Any) -> bool:
    """Whether a value can be the path of a file."""
    try:
        return isinstance(value, str) and value != '' and b'\0' not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


_PATH = Rule(_is_path, 'a path in quotes, without null characters')
_TWO_PATHS = Rule(
    lambda v: isinstance(v, list | tuple) and len(v) == 2 and all(_PATH.accepts(p) for p in v),
    'a list of two paths, [autoencoder directory, classifier directory]',
)
_PATIENTS = Rule(
    lambda v: (
        v is False
        or _integer(0).accepts(v)
        or (isinstance(v, list | tuple) and len(v) > 0 and all(_integer(0).accepts(p) for p in v))
    ),
    'a patient number, a list of them, or False for all',
)
_LISTED = Rule(
    lambda v: v is None or _is_path(v) or (isinstance(v, list | tuple) and _PATIENTS.accepts(v)),
    'a list of patient numbers, the path of a text file with one per line, or None',
)
_LEVELS = Rule(
    lambda v: (
        v == 'all'
        or (isinstance(v, list | tuple) and all(_integer(0).accepts(n) for n in v) and len(v) == len(set(v)) > 0)
    ),
    "'all', or a list of different numbers from 0 on",
)
_NAMES = Rule(
    lambda v: isinstance(v, str) or (isinstance(v, list | tuple) and all(isinstance(n, str) for n in v)),
    'a name or a list of names',
)
_WORD = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r'[!-~]+', v) is not None, 'a word without spaces or accents'
)
_FREQUENCIES = Rule(
    lambda v: (
        all(_number(above=0).accepts(f) for f in v) and len(v) > 0
        if isinstance(v, list | tuple)
        else _number(above=0).accepts(v)
    ),
    'a number above 0 or a list of them',
)
_FILTERS = Rule(
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(_integer(1).accepts(n) for n in v),
    'a list of integers of at least 1, one per level',
)
_WAVELET = Rule(
    lambda v: v in pywt.wavelist(kind='discrete'),
    "a discrete wavelet of PyWavelets, such as 'db5', 'haar' or 'bior2.2'",
)
_CHANGES = Rule(
    lambda v: (
        isinstance(v, list | tuple)
        and all(n in ('sign', 'mirror', 'amplitude', 'shift', 'channels', 'noise') for n in v)
    ),
    "a list of 'sign', 'mirror', 'amplitude', 'shift', 'channels' and 'noise', or an empty one",
)
_DEVICE = Rule(
    lambda v: isinstance(v, str) and (v in ('auto', 'cpu', 'cuda') or re.fullmatch(r'cuda:[0-9]{1,3}', v) is not None),
    "'auto', 'cpu', 'cuda' or 'cuda:N'",
)

RULES = {
    'path_raw_data': _PATH,
    'path_extracted_data': _TWO_PATHS,
    'path_writing_data': _PATH,
    'patient': _PATIENTS,
    'nb_best_blocks': _integer(0),
    'nb_best_blocks_test': _integer(0),
    'include_spike_free': _choice(True, False),
    'high_pass': _number(0.01),
    'low_pass': _number(above=0),
    'notch': _or_none(_FREQUENCIES),
    'bad_channels': _NAMES,
    'trials': _choice('join', 'apart'),
    'spike_labels': _NAMES,
    'spike_labels_exclude': _NAMES,
    'reannot_labels': _or_none(_NAMES),
    'recipe': _choice('current', 'original'),
    'sfreq': _number(above=0, high=10_000),
    'window_size': _number(above=0),
    'spike_spacing_from_border': _number(0),
    'pulse_width': _number(0),
    'standardize': _choice('window', 'block', True, False),
    'reject_artefacts': _choice(True, False),
    'artefact_threshold': _number(above=0),
    'overwrite': _choice(True, False),
    'split': _choice('auto', 'patient', 'block'),
    'validation_fraction': _number(above=0, high=0.9),
    'test_fraction': _number(above=0, high=0.9),
    'training_patients': _LISTED,
    'validation_patients': _LISTED,
    'test_patients': _LISTED,
    'n_splits': Rule(lambda v: v == -1 or _integer(2).accepts(v), 'an integer of at least 2, or -1'),
    'fold': _or_none(_integer(1)),
    'balanced': _choice(True, False),
    'model': _choice('AE1D', 'AE2D', 'AE1D_smaller', 'AE2D_smaller', 'wavelets'),
    'model_nb': _or_none(_integer(0)),
    'resume': _choice(True, False),
    'masking': _choice('context', None),
    'width': _integer(1),
    'filters': _FILTERS,
    'pywt_family': _WAVELET,
    'pywt_mode': _choice('periodization', 'symmetric', 'reflect', 'periodic', 'constant', 'zero'),
    'embedding_size': _integer(1),
    'top_k': _integer(1),
    'graph_alpha': _number(above=0),
    'latent_nodes': _or_none(_integer(1)),
    'a': _number(0),
    'b': _number(0),
    'c': _number(0),
    'd': _number(0),
    'e': _number(0),
    'batch_size': _integer(1),
    'augmentation': _number(0),
    'augmentation_fraction': _number(0, 1),
    'criterion': _choice('mse', 'mae'),
    'optimizer': _choice('adam', 'adamw', 'sgd'),
    'learning_rate': _number(above=0),
    'weight_decay': _number(0),
    'scheduler': _choice('step', 'plateau'),
    'stepLR': _integer(1),
    'gammaLR': _number(above=0, high=1),
    'plateau_patience': _integer(0),
    'fine_tuning_rate': _number(above=0, high=1),
    'num_epochs': _integer(1),
    'n_epochs_stop': _integer(1),
    'classifier': _choice('sfcn', 'forest', 'hgb', 'svm', 'latent', 'threshold', 'finetuned', 'raw', 'stacked'),
    'encoder': _choice('pretrained', 'scratch', 'frozen'),
    'head_rate': _number(above=0),
    'pretraining_epochs': _integer(0),
    'second_look': _choice(True, False),
    'classifier_augmentation': _CHANGES,
    'hard_negatives': _number(1),
    'features': _choice('residual', 'spectrum', 'signal'),
    'copies': _choice(None, 'sign', 'mirror', 'both'),
    'levels': _LEVELS,
    'subwindow_size': _number(above=0),
    'classifier_width': _integer(1),
    'classifier_batch_size': _integer(2),
    'classifier_learning_rate': _number(above=0),
    'classifier_optimizer': _choice('adam', 'adamw', 'sgd'),
    'classifier_weight_decay': _number(0),
    'classifier_loss': _choice('bce', 'focal'),
    'focal_gamma': _number(0),
    'classifier_num_epochs': _integer(1),
    'classifier_n_epochs_stop': _integer(1),
    'early_stop_on': _choice('loss', 'pr_auc'),
    'positive_weight': _or_none(_number(above=0)),
    'calibration': _choice('temperature', 'isotonic'),
    'threshold_policy': _choice('f1', 'sensitivity', 'false_alarms'),
    'target_sensitivity': _number(above=0, high=1),
    'false_alarm_budget': _number(0),
    'tolerance': _number(0),
    'bootstrap_samples': _integer(1, 1_000_000),
    'output': _or_none(_PATH),
    'bids_derivatives': _or_none(_PATH),
    'drop_bad_segments': _choice(True, False),
    'marker_name': _WORD,
    'marker_color': _WORD,
    'markers_per_cluster': _choice(True, False),
    'markers_into_recording': _choice(True, False),
    'review_order': _choice('doubt', 'certainty', 'time'),
    'reviewer': _or_none(Rule(lambda v: isinstance(v, str) and v.strip() != '', 'a name')),
    'seed': _integer(0),
    'device': _DEVICE,
    'precision': _choice('auto', 'float32', 'bfloat16'),
    'n_jobs': _integer(1),
    'num_workers': _integer(0, 1000),
    'preload': _choice('auto', True, False),
    'keep_memory': _choice(True, False),
    'simulated_patients': _integer(1, 9999),
    'simulated_spike_free': _integer(0, 9999),
    'simulated_blocks': _integer(1, 9999),
    'simulated_seconds': _number(20),
    'simulated_spike_rate': _number(0),
    'simulated_distractor_rate': _number(0),
    'simulated_snr': _number(above=0),
    'annotation_jitter': _number(0),
    'annotation_missed': _number(0, 1),
}

# The settings that recipe='original' replaces.
ORIGINAL = {
    'standardize': 'window',
    'masking': None,
    'classifier': 'sfcn',
    'second_look': False,
    'copies': None,
    'levels': 'all',
    'window_size': 2.0,
    'spike_spacing_from_border': 0.3,
    'subwindow_size': 0.2,
    'latent_nodes': None,
    **dict.fromkeys('abcde', 1.0),
    'augmentation': 0.2,
    'augmentation_fraction': 0.5,
    'criterion': 'mse',
    'classifier_loss': 'bce',
    'positive_weight': 35.0,
}


def _nearest(name: str) -> str:
    """The settings whose names are most similar, as part of a message."""
    near = difflib.get_close_matches(name, RULES, n=3, cutoff=0.4)
    return f'nearest: {", ".join(near)}' if near else 'params.py lists them all'


def _settings_of_params() -> dict[str, Any]:
    """The settings of params.py, with absolute paths; no name may be unknown and none may be missing."""
    try:
        params = importlib.import_module('params')
    except (Exception, SystemExit) as fault:
        raise SettingError(f'params.py cannot be read: {fault}') from fault
    assigned = {
        name: value
        for name, value in vars(params).items()
        if not name.startswith('_') and not isinstance(value, types.ModuleType)
    }
    for name in assigned:
        if name not in RULES:
            raise SettingError(f'params.py: unknown setting {name} ({_nearest(name)})')
    missing = [name for name in RULES if name not in assigned]
    if missing:
        raise SettingError(f'params.py: the setting {missing[0]} is missing: restore its line')
    return {name: _from_folder(name, value, ROOT) for name, value in assigned.items()}


def _from_folder(name: str, value: Any, folder: Path) -> Any:
    """The value of a setting with absolute paths; relative ones start at `folder`."""
    if not (name.startswith('path_') or name in ('output', 'bids_derivatives')):
        return value
    if isinstance(value, list | tuple):
        return [_from_folder(name, path, folder) for path in value]
    if not _is_path(value):
        return value  # its rule refuses it
    try:
        return str(folder / Path(value).expanduser())
    except RuntimeError as fault:
        raise SettingError(f'{name} = {value!r}: no home folder of that user; write the path in full') from fault


def check_settings(settings: dict[str, Any]) -> None:
    """Check every value by its rule, then the rules between settings.

    Parameters
    ----------
    settings : dict
        Any settings of params.py by name; those of the rules between settings must be among them.

    Raises
    ------
    SettingError
        A value, or a combination of values, is not allowed.
    """
    for name, value in settings.items():
        if not RULES[name].accepts(value):
            raise SettingError(f'{name} = {value!r}: must be {RULES[name].words}')
    s = types.SimpleNamespace(**settings)
    window_length, border = round(s.window_size * s.sfreq), round(s.spike_spacing_from_border * s.sfreq)
    if not 1 <= window_length <= LONGEST_WINDOW:
        raise SettingError(
            f'window_size = {s.window_size} and sfreq = {s.sfreq} make windows of {window_length} samples: make it 1 '
            f'to {LONGEST_WINDOW}'
        )
    if window_length - 2 * border <= 0:
        raise SettingError(
            f'spike_spacing_from_border = {s.spike_spacing_from_border} leaves nothing of window_size = '
            f'{s.window_size}: make it less than half of window_size'
        )
    if s.path_extracted_data[0] == s.path_extracted_data[1]:
        raise SettingError(
            'path_extracted_data: the two directories are the same; the windows would overwrite each other'
        )
    if s.validation_fraction + s.test_fraction >= 1:
        raise SettingError(
            f'validation_fraction = {s.validation_fraction} and test_fraction = {s.test_fraction} leave nothing for '
            'training: make their sum less than 1'
        )
    if s.simulated_spike_free > s.simulated_patients:
        raise SettingError(
            f'simulated_spike_free = {s.simulated_spike_free} is more than simulated_patients = '
            f'{s.simulated_patients}: lower it'
        )


def _parse_override(word: str) -> tuple[str, Any]:
    """Name and value of a word `name=value`; a value that Python cannot read is text."""
    name, _, text = word.partition('=')
    if not _OVERRIDE.match(word):
        raise SettingError(f'argument {word!r}: settings are given as name=value, after all other words')
    if name not in RULES:
        raise SettingError(f'unknown setting {name} ({_nearest(name)})')
    try:
        # Bytes of a path that are not UTF-8 come as lone surrogates, which Python reads only as escapes.
        return name, ast.literal_eval(text.encode('utf-8', 'backslashreplace').decode())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if re.match(r'[\[(]([^\])]*$|.*[\])]$|.*,)', text):
            raise SettingError(
                f'{word}: a list that Python cannot read; put names in quotes, and the word in quotes of the other '
                f"""kind, such as "{name}=['A', 'B']\""""
            ) from None
        return name, text


def read_command(words: list[str], *, n_positional: int = 0) -> tuple[list[str], types.SimpleNamespace]:
    """Split a command line into positional words and settings: params.py, overridden by the `name=value` words.

    Parameters
    ----------
    words : list of str
        The command line after the script's name.
    n_positional : int
        Largest number of positional words that the script takes.

    Returns
    -------
    positional : list of str
    settings : namespace

    Raises
    ------
    SettingError
        Unknown name, wrong type or value, a word too many, or settings that contradict each other.
    """
    positional = list(itertools.takewhile(lambda word: not _OVERRIDE.match(word), words))
    words = words[len(positional) :]
    if len(positional) > n_positional:
        raise SettingError(f'unexpected argument {positional[n_positional]!r}: settings are given as name=value')
    for word in positional:
        if not _is_path(word):
            raise SettingError(f'argument {word!r}: must not be empty nor hold null characters')
    settings = _settings_of_params()
    for word in words:
        name, value = _parse_override(word)
        settings[name] = _from_folder(name, value, Path.cwd())
    check_settings(settings)
    if settings['recipe'] == 'original':
        changed = {name: value for name, value in ORIGINAL.items() if settings[name] != value}
        print(f"recipe='original': {', '.join(f'{name}={value!r}' for name, value in changed.items()) or 'as set'}")
        settings |= changed
        check_settings(settings)
    return positional, types.SimpleNamespace(**settings)
