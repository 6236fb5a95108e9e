"""Pickles: read without executing anything in them, and written whole or not at all."""

import os
import pickle
from pathlib import Path
from typing import Any

from recordings.pickled_objects import ObjectBuilder
from recordings.unpickler import Limits, Unpickler
from utils import DataError, writing

BUFFER = 2**13  # bytes; larger contents are read past it, straight to their place


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
        with path.open('rb', buffering=BUFFER) as stream:
            limits = Limits(os.fstat(stream.fileno()).st_size)
            return Unpickler(stream, limits, ObjectBuilder(limits).makers()).load()
    except DataError as fault:
        raise DataError(f'{path}: {fault}; if you trust it, save it again as plain arrays') from fault
    except MemoryError as fault:
        raise DataError(
            f'{path}: not a whole pickle, or one that takes more memory than there is; make it again'
        ) from fault
    except Exception as fault:  # a damaged pickle can raise anything at all
        raise DataError(f'{path}: not a whole pickle ({_said(fault)}); make it again') from fault


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
