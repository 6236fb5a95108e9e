"""What every script shares: errors and signals that end it, whole-or-nothing files, safe pickles, device, seed."""

import contextlib
import json
import math
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent


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
