"""What reading a pickle works with: limits of its file, and what stands for an object until it is built."""

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np

from utils import DataError

MAX_OTHER_KEYS = 5000  # keys that are not text, in a file: only the hash of text cannot be chosen by its writer
KEY_TYPES = str | bytes | int | float | complex | np.generic | None


class Limits:
    """How much a file of `size` bytes may still make its reader build."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = 4 * size + 2**16
        self.left_keys = MAX_OTHER_KEYS

    def charge(self, n_bytes: int) -> None:
        """Count bytes that are about to be built out of parts of the file, which it can refer to many times over.

        Raises
        ------
        UnpicklingError
            They are too many for its size.
        """
        self.left -= n_bytes
        if self.left < 0:
            raise UnpicklingError(f'it asks for more memory than its {self.size} bytes explain')

    def check_keys(self, keys: list) -> None:
        """Refuse keys of a dict, a set or an index that take long to hash or to compare.

        Raises
        ------
        UnpicklingError
            There are too many, or one is neither text nor a number.
        """
        others = [key for key in keys if type(key) is not str and type(key) is not bytes]
        self.left_keys -= len(others)
        if self.left_keys < 0:
            raise UnpicklingError(f'more than {MAX_OTHER_KEYS} keys that are not text')
        for key in others:
            check_key(key)


def check_key(key: Any) -> None:
    """Refuse what cannot be a key, or takes long to hash: a key is a text, a number, or a short tuple of them."""
    for part in key if type(key) is tuple and len(key) <= 8 else [key]:
        if not isinstance(part, KEY_TYPES):
            raise UnpicklingError(f'a key that holds a {type(part).__name__}')


# ------------------------------------------------------------------------------ what may stand for an object
class Name(str):
    """The full name of a known class or function."""


class Arguments(tuple):
    """A tuple that holds names or records: arguments of a call, no value."""


class Record:
    """Parts of an object, checked: neither a value nor callable."""

    __slots__ = ('kind', 'parts')

    def __init__(self, kind: str, *parts: Any) -> None:
        self.kind, self.parts = kind, parts


def parts_of(record: Record, kind: str) -> tuple:
    """The parts of a record, if it is of the kind."""
    if type(record) is not Record or record.kind != kind:
        raise UnpicklingError(f'a {type(record).__name__} in place of a {kind}')
    return record.parts


class Pending:
    """An object whose state comes next in the file; `build(state)` then gives what takes its place."""

    __slots__ = ('build', 'memo_keys')

    def __init__(self, build: Callable[[Any], Any]) -> None:
        self.build, self.memo_keys = build, []


def refused(name: str) -> DataError:
    """Give the error for a name that no pickle of data needs."""
    shown = name[:200].encode('unicode_escape').decode()
    return DataError(f'the pickle asks for {shown}, which is no container, number, string, array or frame')
