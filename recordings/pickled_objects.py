"""Arrays and frames from the parts that a pickle holds of them, each part checked before NumPy or pandas sees it."""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pandas as pd

from recordings.unpickler import Limits, Name, Pending, Record, check_key, parts_of, refused

OBJECT = np.dtype(object)
# What building one object counts for, in bytes: half of what a file allows to the smallest that pandas writes.
FRAME, BLOCK, INDEX = 250, 75, 20
MAX_DIMS = 32
COLUMN_KINDS = 'biufO'
EMPTY_LENGTH = 2**16  # of an axis that takes no bytes, beyond the size of the file


class ObjectBuilder:
    """Builds what a pickle asks for by name.

    Parameters
    ----------
    limits : Limits
        Those of the file.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.outer_arrays = {}  # arrays of objects that hold arrays of objects, by id

    def makers(self) -> dict[str, Callable]:
        """Every name that a pickle of arrays, frames and plain values uses, and what builds it, for `Unpickler`."""
        return self._plain_makers() | self._numpy_makers() | self._pandas_makers()

    def _plain_makers(self):
        makers = {'_codecs.encode': self.latin1_bytes, 'collections.OrderedDict': lambda: OrderedDict()}
        for package in ('builtins', '__builtin__'):
            makers |= {
                f'{package}.bytes': lambda: b'',
                f'{package}.complex': _complex,
                f'{package}.set': self.set_of,
                f'{package}.frozenset': lambda items: frozenset(self.set_of(items)),
                f'{package}.slice': _slice,
            }
        return makers

    def _numpy_makers(self):
        makers = {'numpy.dtype': self.dtype, 'numpy.ndarray': _no_call}
        for package in ('numpy.core', 'numpy._core'):
            makers |= {
                f'{package}.multiarray._reconstruct': self.array,
                f'{package}.multiarray.scalar': self.scalar,
                f'{package}.numeric._frombuffer': self.array_of_buffer,
            }
        return makers

    def _pandas_makers(self):
        makers = {
            'pandas._libs.arrays.__pyx_unpickle_NDArrayBacked': self.string_array,
            'pandas._libs.internals._unpickle_block': self.block,
            'pandas.core.internals.managers.BlockManager': partial(Record, 'BlockManager'),
            'pandas.core.internals.managers.SingleBlockManager': lambda: Pending(_single_manager),
            'pandas.core.indexes.base._new_Index': self.index,
        }
        # pandas 2 names the modules, pandas 3 the package.
        for module, name, make in (
            ('core.frame', 'DataFrame', lambda: Pending(self.frame)),
            ('core.series', 'Series', lambda: Pending(self.series)),
            ('core.indexes.base', 'Index', _no_call),
            ('core.indexes.range', 'RangeIndex', _no_call),
            ('core.arrays.string_', 'StringDtype', _string_dtype),
        ):
            makers |= {f'pandas.{name}': make, f'pandas.{module}.{name}': make}
        for module in ('arrays', 'core.arrays.string_'):
            makers[f'pandas.{module}.StringArray'] = _no_call
        return makers

    # ---------------------------------------------------------------------------------------- bytes and sets
    def latin1_bytes(self, text: str, encoding: str) -> bytes:
        """In place of _codecs.encode, by which Python writes bytes at protocol 2."""
        if type(text) is not str or encoding != 'latin1':
            raise UnpicklingError('bytes that Python did not write')
        self.limits.charge(len(text))
        return text.encode('latin1')

    def set_of(self, items: list) -> set:
        """In place of set(), by which Python writes a set at protocol 2."""
        if type(items) is not list:
            raise UnpicklingError(f'a set of a {type(items).__name__}')
        self.limits.charge(len(items))
        self.limits.check_keys(items)
        return set(items)

    # ------------------------------------------------------------------------------------------------ arrays
    def dtype(self, text: str, *_align_and_copy: int) -> Pending:
        """In place of numpy.dtype: booleans, numbers, text of a fixed length, or objects."""
        found = re.fullmatch('(?:b1|[iuf][0-9]{1,2}|([SU])([0-9]{1,9})|O[48])', text) if type(text) is str else None
        if not found:
            raise refused(f'an array of type {text if type(text) is str else type(text).__name__}')
        if found[2] and int(found[2]) > self.limits.size:
            raise UnpicklingError('items larger than the file')
        return Pending(partial(_finished_dtype, np.dtype('O' if text[0] == 'O' else text)))

    def array(self, kind: Name, shape: tuple, _: bytes) -> Pending:
        """In place of _reconstruct, by which NumPy makes the empty array that the state then fills."""
        if type(kind) is not Name or kind != 'numpy.ndarray' or shape != (0,):
            raise UnpicklingError('an array that NumPy did not write')
        return Pending(self._filled_array)

    def _filled_array(self, state):
        _, shape, dtype, fortran_order, content = state
        n_items = self._n_items(shape, dtype)
        if dtype == OBJECT:
            if type(content) is not list or len(content) != n_items:
                raise UnpicklingError('an array of objects without its list of objects')
            self.limits.charge(n_items)
        else:
            self._check_content(content, dtype, n_items)
        # NumPy's own setter takes large content as it is, without a copy; every part of the state is checked above.
        array = np.ndarray((0,), dtype)
        array.__setstate__((1, shape, dtype, bool(fortran_order), content))
        if dtype == OBJECT:
            self._check_nesting(array, content)
        return array

    def array_of_buffer(
        self, content: bytes | Record, dtype: np.dtype, shape: tuple, order: str, axes: tuple | None = None
    ) -> np.ndarray:
        """In place of _frombuffer, by which NumPy writes arrays at protocol 5, read-only ones as bytes."""
        writable = type(content) is Record and content.kind == 'bytearray'
        [content] = content.parts if writable else [content]
        if type(content) is not bytes:
            raise UnpicklingError(f'an array out of a {type(content).__name__}')
        array = self._filled_array((1, shape, dtype.newbyteorder('='), order == 'F', content)).view(dtype)
        if order == 'K':
            if type(axes) is not tuple or len(axes) > MAX_DIMS or any(type(axis) is not int for axis in axes):
                raise UnpicklingError('an array whose axes do not fit')
            array = array.transpose(axes)
        if not writable:
            array.flags.writeable = False
        return array

    def scalar(self, dtype: np.dtype, content: bytes) -> np.generic:
        """In place of NumPy's scalar."""
        self._n_items((), dtype)
        self._check_content(content, dtype, 1)
        return np.ndarray((), dtype, content)[()]

    def _n_items(self, shape, dtype):
        """Number of items of a shape, which is checked."""
        if not isinstance(dtype, np.dtype) or type(shape) is not tuple or len(shape) > MAX_DIMS:
            raise UnpicklingError('an array without type or shape')
        if any(type(length) is not int or not 0 <= length <= self.limits.size + EMPTY_LENGTH for length in shape):
            raise UnpicklingError('an array of a shape that does not fit')
        return math.prod(shape)

    def _check_content(self, content, dtype, n_items):
        if dtype == OBJECT or type(content) is not bytes:
            raise UnpicklingError(f'an array of type {dtype} out of a {type(content).__name__}')
        if len(content) != n_items * dtype.itemsize or (n_items > 1 and not dtype.itemsize):
            raise UnpicklingError(f'an array of {n_items} items of type {dtype} out of {len(content)} bytes')
        if dtype.kind == 'b' and content.strip(b'\0\1'):
            raise UnpicklingError('truth values other than 0 and 1')
        self.limits.charge(len(content))

    def _check_nesting(self, array, items):
        """Arrays of objects may be two deep: Python frees the inner ones by calls as deep as they are nested."""
        inner = [item for item in items if type(item) is np.ndarray and item.dtype == OBJECT]
        if any(id(item) in self.outer_arrays for item in inner):
            raise UnpicklingError('arrays of objects more than two deep')
        if inner:
            self.outer_arrays[id(array)] = array

    # ------------------------------------------------------------------------------------------------ frames
    def string_array(self, kind: Name, _checksum: int, _state: None) -> Pending:
        """In place of the function by which pandas makes an empty array of strings."""
        if type(kind) is not Name or not kind.endswith('.StringArray'):
            raise UnpicklingError('an array that pandas did not write')
        return Pending(self._filled_string_array)

    def _filled_string_array(self, state):
        dtype, values = state[:2]
        if type(dtype) is not pd.StringDtype or not _is_array(values, 'O', 1):
            raise UnpicklingError('an array of strings without type or strings')
        self.limits.charge(BLOCK + values.size)
        if not all(value is None or isinstance(value, str | float) for value in values):
            raise UnpicklingError('an array of strings that holds something else')
        return pd.array(values, dtype=dtype)

    def block(self, values: Any, places: slice | np.ndarray, n_dims: int) -> Record:
        """In place of the function by which pandas makes the columns of one type."""
        if type(values) is not pd.arrays.StringArray and not (n_dims == 2 and _is_array(values, COLUMN_KINDS, 2)):
            raise UnpicklingError('columns of a frame that pandas did not write')
        return Record('Block', values, places)

    def index(self, kind: Name, state: dict) -> pd.Index:
        """In place of the function by which pandas makes an index."""
        self.limits.charge(INDEX)
        check_key(_entry(state, 'name'))
        if kind.endswith('.RangeIndex'):
            start, stop, step = (int(state[key]) for key in ('start', 'stop', 'step'))
            if max(abs(start), abs(stop), abs(step)) > self.limits.size + EMPTY_LENGTH:
                raise UnpicklingError('an index longer than the file')
            return pd.RangeIndex(start, stop, step, name=state['name'])
        values = state['data']
        if type(values) is not pd.arrays.StringArray and not _is_array(values, COLUMN_KINDS, 1):
            raise UnpicklingError('an index that pandas did not write')
        if values.dtype == OBJECT:
            self.limits.charge(values.size)
            self.limits.check_keys(list(values))
        return pd.Index(values, dtype=values.dtype, name=state['name'])

    def frame(self, state: dict) -> pd.DataFrame:
        """Build a frame: its blocks side by side, their columns in the order that their places say."""
        blocks, (columns, index) = parts_of(_entry(state, '_mgr'), 'BlockManager')
        if not isinstance(columns, pd.Index) or not isinstance(index, pd.Index):
            raise UnpicklingError('a frame without columns or rows')
        self.limits.charge(FRAME + len(columns) + len(index))
        parts, places = [pd.DataFrame(index=range(len(index)))], [np.zeros(0, dtype=np.int64)]
        for block in blocks:
            values, where = parts_of(block, 'Block')
            if len(values.T) != len(index):
                raise UnpicklingError('a frame whose columns differ in length from its index')
            self.limits.charge(BLOCK + values.size)
            # pandas 3 would take objects that are all strings for its own type of strings: name the type.
            parts.append(pd.DataFrame(values.T, dtype=values.dtype, copy=False))
            places.append(_column_places(where, parts[-1].shape[1], len(columns)))
        order = np.argsort(np.concatenate(places))
        if not np.array_equal(np.concatenate(places)[order], np.arange(len(columns))):
            raise UnpicklingError('a frame whose blocks do not fit its columns')
        frame = parts[1] if len(parts) == 2 else pd.concat(parts, axis=1, ignore_index=True)
        if not np.array_equal(order, np.arange(len(columns))):
            frame = frame.iloc[:, order]
        frame.columns, frame.index = columns, index
        return frame

    def series(self, state: dict) -> pd.Series:
        """Build a series."""
        self.limits.charge(FRAME)
        check_key(_entry(state, '_name'))
        values, index = parts_of(_entry(state, '_mgr'), 'SingleBlockManager')
        self.limits.charge(values.size)
        return pd.Series(values, index=index, dtype=values.dtype, name=state['_name'], copy=False)


def _no_call(*_):
    raise UnpicklingError('a call of a class that is only named by what pandas and NumPy write')


def _entry(state, key):
    """An entry of a dict, and of nothing else: a frame would look it up in its own way."""
    if type(state) is not dict:
        raise UnpicklingError(f'a {type(state).__name__} as a state')
    return state[key]


def _is_array(values, kinds, n_dims):
    return type(values) is np.ndarray and values.dtype.kind in kinds and values.ndim == n_dims


def _complex(real, imaginary):
    if type(real) is not float or type(imaginary) is not float:
        raise UnpicklingError('a complex number that Python did not write')
    return complex(real, imaginary)


def _slice(*ends):
    if len(ends) != 3 or any(end is not None and type(end) is not int for end in ends):
        raise UnpicklingError('a slice of something else than numbers')
    return slice(*ends)


def _finished_dtype(dtype, state):
    _, byte_order, _, _, _, item_size = state[:6]
    if byte_order not in ('<', '>', '=', '|') or item_size not in (-1, dtype.itemsize):
        raise UnpicklingError(f'an array type {dtype} that NumPy did not write')
    return dtype if byte_order == '|' else dtype.newbyteorder(byte_order)


def _string_dtype(*storage_and_missing):
    """Pandas 3 writes how strings are stored and what stands for a missing one; pandas 2 the first, as a state."""
    if not storage_and_missing:
        return Pending(lambda state: _string_dtype_of(_entry(state, 'storage'), pd.NA))
    return _string_dtype_of(*storage_and_missing)


def _string_dtype_of(storage, missing):
    if storage != 'python' or not (missing is pd.NA or (type(missing) is float and math.isnan(missing))):
        raise UnpicklingError('an array of strings stored in another way')
    return pd.StringDtype('python', na_value=missing)


def _single_manager(state):
    """The values and the index of a series."""
    content = _entry(state[3], '0.14.1')
    [index], [block] = _entry(content, 'axes'), _entry(content, 'blocks')
    values = _entry(block, 'values')
    if type(values) is not pd.arrays.StringArray and not _is_array(values, COLUMN_KINDS, 1):
        raise UnpicklingError('a series that pandas did not write')
    if not isinstance(index, pd.Index) or len(values) != len(index):
        raise UnpicklingError('a series that differs in length from its index')
    return Record('SingleBlockManager', values, index)


def _column_places(where, n_places, n_columns):
    """Positions of a block's columns in the frame."""
    if isinstance(where, slice):
        where = range(n_columns)[where]
    elif not _is_array(where, 'i', 1):
        raise UnpicklingError('a frame whose blocks have no place')
    if len(where) != n_places:
        raise UnpicklingError('a frame whose blocks do not fit their places')
    return np.array(where, dtype=np.int64)
