"""Pickles: read without executing anything in them, and written whole or not at all."""

import contextlib
import os
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils import DataError, writing


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
