"""What every script shares: settings, errors that end a script, whole-or-nothing files, safe pickles, device, seed."""

import ast
import contextlib
import difflib
import importlib
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pywt

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent
_OVERRIDE = re.compile(r'[A-Za-z_]\w*=')


class DataError(Exception):
    """The data is at fault: the script ends with status 1."""


class SettingError(Exception):
    """The command or a setting is at fault: the script ends with status 2."""


class Interrupted(BaseException):
    """A signal has ended the script, which can go on where it was: status 75. No `except Exception` catches it."""


# Exit status of what should be tried again (EX_TEMPFAIL of sysexits.h), by which job scripts know an interrupted run.
INTERRUPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_asked = {'by': None, 'deferred': False}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within this block SIGTERM, SIGUSR1 (Slurm's warning before the time limit) and SIGINT (Ctrl-C) raise
    `Interrupted`."""

    def handle(number, frame):
        _asked['by'] = signal.Signals(number).name
        if not _asked['deferred']:
            check_interruption()

    _asked.update(by=None, deferred=False)
    earlier = {one: signal.signal(one, handle) for one in SIGNALS}
    try:
        yield
    finally:
        for one, handler in earlier.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def finishing_steps() -> Iterator[None]:
    """Within this block a signal waits: `check_interruption` raises it, or the end of the block."""
    _asked['deferred'] = True
    try:
        yield
    finally:
        _asked['deferred'] = False
    check_interruption()


def asked_to_end() -> bool:
    """Whether a signal has asked the script to end."""
    return _asked['by'] is not None


def check_interruption() -> None:
    """Raise `Interrupted` if a signal has asked the script to end."""
    if asked_to_end():
        raise Interrupted(_asked['by'])


# ------------------------------------------------------------------------------------------- settings
class Rule(NamedTuple):
    """What a setting may be: a test of its value, and the same in words."""

    accepts: Callable[[Any], bool]
    words: str


def _number(low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> Rule:
    def accepts(value):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # No setting needs more: sizes in samples stay countable, and infinity is out.
        return is_number and low <= value <= high and above < value and abs(value) < 1e9

    bounds = [f'above {above:g}'] * (above > -math.inf) + [f'at least {low:g}'] * (low > -math.inf)
    bounds += [f'at most {high:g}'] * (high < math.inf)
    return Rule(accepts, ' '.join(['a number', ' and '.join(bounds)]))


def _integer(low: int) -> Rule:
    return Rule(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v < 2**32, f'an integer of at least {low}'
    )


def _choice(*values: Any) -> Rule:
    # repr tells True from 1 and 1 from 1.0, which == does not.
    allowed = [repr(value) for value in values]
    return Rule(lambda value: repr(value) in allowed, 'one of ' + ', '.join(allowed))


def _or_none(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.accepts(value), f'{rule.words}, or None')


_PATH = Rule(lambda v: isinstance(v, str) and v != '', 'a path')
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
    lambda v: v is None or (isinstance(v, str) and v != '') or (isinstance(v, list | tuple) and _PATIENTS.accepts(v)),
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
    lambda v: all(_number(above=0).accepts(f) for f in (v if isinstance(v, list | tuple) else [v])),
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
    'include_spike_free': _choice(True, False),
    'high_pass': _number(above=0),
    'low_pass': _number(above=0),
    'notch': _or_none(_FREQUENCIES),
    'bad_channels': _NAMES,
    'trials': _choice('join', 'apart'),
    'spike_labels': _NAMES,
    'spike_labels_exclude': _NAMES,
    'reannot_labels': _or_none(_NAMES),
    'recipe': _choice('current', 'original'),
    'sfreq': _number(above=0),
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
    'latent_nodes': _integer(1),
    'a': _number(0),
    'b': _number(0),
    'c': _number(0),
    'd': _number(0),
    'e': _number(0),
    'batch_size': _integer(1),
    'augmentation': _number(0),
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
    'classifier': _choice('sfcn', 'hgb', 'svm', 'latent', 'threshold'),
    'levels': _LEVELS,
    'subwindow_size': _number(above=0),
    'classifier_width': _integer(1),
    'classifier_batch_size': _integer(2),
    'classifier_learning_rate': _number(above=0),
    'classifier_loss': _choice('bce', 'focal'),
    'focal_gamma': _number(0),
    'classifier_num_epochs': _integer(1),
    'classifier_n_epochs_stop': _integer(1),
    'positive_weight': _or_none(_number(above=0)),
    'calibration': _choice('temperature', 'isotonic'),
    'threshold_policy': _choice('f1', 'sensitivity', 'false_alarms'),
    'target_sensitivity': _number(above=0, high=1),
    'false_alarm_budget': _number(0),
    'tolerance': _number(0),
    'bootstrap_samples': _integer(1),
    'output': _or_none(_PATH),
    'marker_name': _WORD,
    'marker_color': _WORD,
    'markers_into_recording': _choice(True, False),
    'seed': _integer(0),
    'device': _DEVICE,
    'precision': _choice('auto', 'float32', 'bfloat16'),
    'n_jobs': _integer(1),
    'num_workers': _integer(0),
    'preload': _choice('auto', True, False),
    'simulated_patients': _integer(1),
    'simulated_spike_free': _integer(0),
    'simulated_blocks': _integer(1),
    'simulated_seconds': _number(20),
    'simulated_spike_rate': _number(0),
    'simulated_distractor_rate': _number(0),
    'simulated_snr': _number(above=0),
    'annotation_jitter': _number(0),
    'annotation_missed': _number(0, 1),
}

# What recipe='original' takes, whatever the other settings say.
ORIGINAL = {
    'standardize': 'window',
    'masking': None,
    'classifier': 'sfcn',
    'levels': 'all',
    'window_size': 2.0,
    'spike_spacing_from_border': 0.3,
    'subwindow_size': 0.2,
    **dict.fromkeys('abcde', 1.0),
    'augmentation': 0.2,
    'criterion': 'mse',
    'classifier_loss': 'bce',
    'positive_weight': 35.0,
}


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, RULES, n=3, cutoff=0.4)
    return f'nearest: {", ".join(near)}' if near else 'params.py lists them all'


def _settings_of_params() -> dict[str, Any]:
    """The assignments of params.py, paths made absolute; every name must be known and every known name there."""
    try:
        params = importlib.import_module('params')
    except (Exception, SystemExit) as fault:
        raise SettingError(f'params.py cannot be read: {fault}') from fault
    found = {
        name: value
        for name, value in vars(params).items()
        if not name.startswith('_') and not isinstance(value, types.ModuleType)
    }
    for name in found:
        if name not in RULES:
            raise SettingError(f'params.py: unknown setting {name} ({_nearest(name)})')
    missing = [name for name in RULES if name not in found]
    if missing:
        raise SettingError(f'params.py: the setting {missing[0]} is missing: put its line back')
    return {name: _from_folder(value, ROOT) if _holds_paths(name) else value for name, value in found.items()}


def _holds_paths(name: str) -> bool:
    return name.startswith('path_') or name == 'output'


def _from_folder(paths: Any, folder: Path) -> Any:
    if isinstance(paths, list | tuple):
        return [_from_folder(path, folder) for path in paths]
    return str(folder / Path(paths).expanduser()) if isinstance(paths, str) and paths else paths


def check_settings(settings: dict[str, Any]) -> None:
    """Check every value by its rule, then the rules between settings.

    Raises
    ------
    SettingError
        Names the setting or settings, the value found and the way out.
    """
    for name, value in settings.items():
        if not RULES[name].accepts(value):
            raise SettingError(f'{name} = {value!r}: must be {RULES[name].words}')
    s = types.SimpleNamespace(**settings)
    window, border = round(s.window_size * s.sfreq), round(s.spike_spacing_from_border * s.sfreq)
    if window - 2 * border <= 0:
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


def read_command(words: list[str], *, n_positional: int = 0) -> tuple[list[str], types.SimpleNamespace]:
    """Split a command line into positional words and settings: params.py, overridden by the `name=value` words.

    Parameters
    ----------
    words : list of str
        The command line after the script's name.
    n_positional : int
        Most positional words the script takes.

    Raises
    ------
    SettingError
        Unknown name, wrong type or value, a word too many, or settings that contradict each other.
    """
    positional = list(itertools.takewhile(lambda word: not _OVERRIDE.match(word), words))
    words = words[len(positional) :]
    if len(positional) > n_positional:
        raise SettingError(f'unexpected argument {positional[n_positional]!r}: settings are given as name=value')
    settings = _settings_of_params()
    for word in words:
        name, _, text = word.partition('=')
        if not _OVERRIDE.match(word):
            raise SettingError(f'argument {word!r}: settings are given as name=value, after all other words')
        if name not in RULES:
            raise SettingError(f'unknown setting {name} ({_nearest(name)})')
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text
        settings[name] = _from_folder(value, Path.cwd()) if _holds_paths(name) else value
    check_settings(settings)
    if settings['recipe'] == 'original':
        changed = {name: value for name, value in ORIGINAL.items() if settings[name] != value}
        print(f"recipe='original': {', '.join(f'{name}={value!r}' for name, value in changed.items()) or 'as set'}")
        settings |= changed
        check_settings(settings)
    return positional, types.SimpleNamespace(**settings)


def run_script(main: Callable[[list[str]], None], description: str) -> None:
    """Run a script's main and end the process with the contract's exit status: 0 done, 1 data, 2 command or setting;
    75 interrupted, and can go on."""
    words = sys.argv[1:]
    if {'-h', '--help'} & set(words):
        print(description.strip())
        sys.exit(0)
    try:
        main(words)
    except (DataError, SettingError) as fault:
        message, status = str(fault), 2 if isinstance(fault, SettingError) else 1
    except OSError as fault:
        message, status = f'{fault.filename or "input or output"}: {fault.strerror or fault}', 1
    except KeyboardInterrupt:
        message, status = 'interrupted', 130
    except Interrupted as fault:
        message, status = f'interrupted by {fault}', INTERRUPTED
    else:
        sys.exit(0)
    print('error: ' + ' '.join(message.split()), file=sys.stderr)
    sys.exit(status)


# ---------------------------------------------------------------------------------------------- files
@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends, remove it when it fails."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays, because matplotlib and others choose a format by it.
        handle, name = tempfile.mkstemp(prefix='.', suffix=f'.tmp{path.suffix}', dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes private files; results are for the group, as the umask says.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as fault:
        # A full disk or a folder without permission: name the file the user knows, not the temporary one.
        raise DataError(f'{path}: cannot be written ({fault.strerror or fault}); mend the disk or the path') from fault
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all; NaN becomes null, which every reader knows."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(_without_nan(content), indent=2, default=_plain) + '\n')


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return None
    return value


# -------------------------------------------------------------------------------------------- pickles
def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, by which Python writes bytes at protocol 2."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'text encoding {encoding!r}')
    return text.encode('latin1')


_NDARRAY = 'numpy.ndarray'


def _empty_array(subtype: str, shape: tuple, dtype: Any) -> np.ndarray:
    """Stand in for NumPy's _reconstruct, which makes the empty array that the pickled state then fills."""
    if subtype is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError('an array that NumPy did not write')
    return np.ndarray((0,), dtype)


def _no_bytes(*content: Any) -> bytes:
    """Stand in for bytes(), by which Python writes empty bytes at protocol 2; bytes(n) would allocate n."""
    if content:
        raise pickle.UnpicklingError('bytes of a given length')
    return b''


def _set(items: list) -> set:
    """Stand in for set(), by which Python writes a set at protocol 2; set(range) would fill the memory."""
    if type(items) is not list:
        raise pickle.UnpicklingError(f'a set of a {type(items).__name__}')
    return set(items)


# numpy.ndarray is a word here, which only `_empty_array` understands: called, it would allocate any size.
_STAND_INS = {'_codecs.encode': _latin1_bytes, 'numpy.ndarray': _NDARRAY}
for _package in ('builtins', '__builtin__'):
    _STAND_INS |= {f'{_package}.bytes': _no_bytes, f'{_package}.set': _set}
    _STAND_INS[f'{_package}.frozenset'] = lambda items: frozenset(_set(items))
for _package in ('numpy.core', 'numpy._core'):
    _STAND_INS[f'{_package}.multiarray._reconstruct'] = _empty_array
_ALLOWED = {
    *(f'{package}.{name}' for package in ('builtins', '__builtin__') for name in ('complex', 'slice')),
    'collections.OrderedDict',
    'numpy.dtype',
    *(f'{p}.{name}' for p in ('numpy.core', 'numpy._core') for name in ('multiarray.scalar', 'numeric._frombuffer')),
    *(f'pandas.{name}' for name in ('DataFrame', 'Series', 'Index', 'RangeIndex', 'StringDtype')),
    *(f'pandas.arrays.{name}' for name in ('StringArray', 'NumpyExtensionArray')),
    'pandas.core.frame.DataFrame',
    'pandas.core.series.Series',
    'pandas.core.indexes.base.Index',
    'pandas.core.indexes.base._new_Index',
    'pandas.core.indexes.range.RangeIndex',
    'pandas.core.internals.managers.BlockManager',
    'pandas.core.internals.managers.SingleBlockManager',
    'pandas.core.arrays.string_.StringDtype',
    'pandas.core.arrays.string_.StringArray',
    'pandas._libs.internals._unpickle_block',
    'pandas._libs.arrays.__pyx_unpickle_NDArrayBacked',
}


class _SafeUnpickler(pickle.Unpickler):
    """Build containers, numbers, strings, NumPy arrays and pandas frames, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        full = f'{module}.{name}'
        if full in _STAND_INS:
            return _STAND_INS[full]
        if full not in _ALLOWED:
            raise DataError(f'the pickle asks for {full}, which is no container, number, string, array or frame')
        return super().find_class(module.replace('numpy.core', 'numpy._core'), name)


def read_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle of containers, numbers, strings, NumPy arrays and pandas frames; nothing in it is executed.

    Raises
    ------
    DataError
        The file is missing, is not a whole pickle, or holds another type (named in the message).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f'{path}: no such file; make it again, or correct the path')
    try:
        with path.open('rb') as stream, _limited_memory(os.fstat(stream.fileno()).st_size):
            return _SafeUnpickler(stream).load()
    except DataError as fault:
        raise DataError(f'{path}: {fault}; if you trust it, save it again as plain arrays') from fault
    except MemoryError as fault:
        raise DataError(
            f'{path}: not a whole pickle, or one that takes more memory than there is; make it again'
        ) from fault
    except Exception as fault:  # a damaged pickle can raise anything at all
        raise DataError(f'{path}: not a whole pickle ({_said(fault)}); make it again') from fault


@contextlib.contextmanager
def _limited_memory(size: int) -> Iterator[None]:
    """Keep a damaged pickle of `size` bytes from taking all memory: a few of its bytes can ask for any amount."""
    try:
        in_use = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux: no limit
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # Lists take most: one of numbers 4 to 12 times its pickle, one of empty lists 40 times.
    limit = in_use + 40 * size + 2**28
    for known in (soft, hard):
        limit = limit if known == resource.RLIM_INFINITY else min(limit, known)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _said(fault: Exception) -> str:
    """Name and words of an exception, which may hold anything that a pickle held."""
    try:
        return f'{type(fault).__name__}: {str(fault)[:200]}'
    except Exception:
        return type(fault).__name__


def write_pickle(path: str | os.PathLike, content: Any) -> None:
    """Write a pickle (protocol 4), whole or not at all."""
    with writing(path) as temporary, temporary.open('wb') as stream:
        pickle.dump(content, stream, protocol=4)


# ------------------------------------------------------------------------------- machine and randomness
def choose_device(name: str) -> 'torch.device':
    """Turn the setting `device` into a torch device: for 'auto' a GPU where there is one.

    Raises
    ------
    SettingError
        A GPU was asked for and there is none of that number.
    """
    import torch  # here, because the windows scripts do not need it and should start at once

    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if 'LOCAL_RANK' in os.environ and name != 'cpu':  # started by torchrun: each process takes a GPU of its own
        if ':' in name:
            raise SettingError(f"device = {name!r}: several processes need a GPU each: set 'auto', 'cuda' or 'cpu'")
        name = f'cuda:{os.environ["LOCAL_RANK"]}'
    number = int(name.partition(':')[2] or 0)
    if name != 'cpu' and number >= torch.cuda.device_count():
        raise SettingError(f"device = {name!r}: no such GPU on this machine; device='auto' takes what there is")
    if name.startswith('cuda'):
        torch.cuda.set_device(number)  # what asks for no device in particular means this one
    # On the CPU, PyTorch asks for huge pages if told to before its first large tensor: training an AE1D of width 4 in
    # batches of 32 took 30 ms a window with them and 62 ms without, because the kernel clears every new page.
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    return torch.device(name)


def choose_precision(name: str, device: 'torch.device') -> str:
    """Turn the setting `precision` into 'float32' or 'bfloat16', and have a GPU compute all else accordingly.

    'auto' is 'bfloat16' on a GPU that has it (compute capability 8.0), otherwise 'float32'. What stays float32 is not
    rounded to TF32 either: the wavelet transform is exact, and bfloat16 has all that takes time.

    Raises
    ------
    SettingError
        The GPU has no bfloat16.
    """
    import torch

    if device.type != 'cuda':
        return 'float32' if name == 'auto' else name
    able = torch.cuda.get_device_capability(device) >= (8, 0)
    if name == 'bfloat16' and not able:
        raise SettingError(
            f"precision = 'bfloat16': {torch.cuda.get_device_name(device)} does not have it; precision='auto' takes "
            'what there is'
        )
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    return 'bfloat16' if able and name != 'float32' else 'float32'


def without_waiting(values: 'torch.Tensor', device: 'torch.device') -> 'torch.Tensor':
    """Copy from the machine's memory to a device; a GPU goes on computing meanwhile."""
    if device.type == 'cuda':
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch; without a GPU, have torch use deterministic algorithms only."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # The same CSVs from the same seed are promised for the CPU; on a GPU these algorithms would cost speed. Filling new
    # memory helps to find mistakes, not to repeat a run.
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False
