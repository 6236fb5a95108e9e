"""A pickle, read opcode by opcode: plain values are built, and every name in the file stays a word.

Python's own unpickler calls what a file names, and a few bytes can make it take any amount of memory (a memo index of
2**31), any amount of time (keys of equal hash) or end the process (a key of nested tuples). This one calls only the
functions that it is given for a known name, and what it takes is in proportion to the size of the file.
"""

import codecs
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from io import BufferedReader
from pickle import UnpicklingError
from typing import Any

import numpy as np

from utils import DataError

MAX_OTHER_KEYS = 5000  # keys that are not text, in a file: only the hash of text cannot be chosen by its writer
KEY_TYPES = str | bytes | int | float | complex | np.generic | None
MAX_ARGUMENTS = 8
MAX_DIGITS = 5000  # of a number in decimal digits, whose reading takes the square of their number


class Limits:
    """What a file of `size` bytes may still make its reader build."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = 4 * size + 2**16
        self.left_keys = MAX_OTHER_KEYS

    def charge(self, n_bytes: int) -> None:
        """Count bytes that are about to be built out of parts of the file, which it can refer to many times over."""
        self.left -= n_bytes
        if self.left < 0:
            raise UnpicklingError(f'it asks for more memory than its {self.size} bytes explain')

    def check_keys(self, keys: list) -> None:
        """Refuse keys of a dict, a set or an index that may take long to hash or to compare."""
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


_OF_TUPLES = {Name, Record, Arguments}
_OF_DICTS = {Name, Arguments, Pending}  # the state of a frame is a dict with a record
_NO_VALUES = {Name, Record, Arguments, Pending}
_NOTHING = object()  # where the memo has no entry


def _refuse(kinds: set[type], values: list) -> None:
    if kinds.isdisjoint(map(type, values)):
        return
    for value in values:
        if type(value) is Name or type(value) is Record:
            raise refused(value if type(value) is Name else value.kind)
    raise UnpicklingError('an object that is not complete')


def refused(name: str) -> DataError:
    """The error for what no pickle of data needs."""
    shown = name[:200].encode('unicode_escape').decode()
    return DataError(f'the pickle asks for {shown}, which is no container, number, string, array or frame')


# ----------------------------------------------------------------------------------------------- the machine
class Unpickler:
    """Read one pickle of protocol 0 to 5.

    Parameters
    ----------
    stream : binary file, buffered
        Stands at the start of the pickle.
    limits : Limits
        For the size of the file.
    makers : dict
        Full names that the file may use: the function that is called with the arguments in their place. It gives a
        value, a `Record`, or a `Pending`.
    """

    def __init__(self, stream: BufferedReader, limits: Limits, makers: dict[str, Callable]) -> None:
        self.stream, self.limits, self.makers = stream, limits, makers
        self.names = {name: Name(name) for name in makers}
        self.stack, self.outer_stacks, self.memo = [], [], []

    def load(self) -> Any:
        """Read up to the end of the pickle and return what it holds.

        Raises
        ------
        DataError
            It asks for something else than plain values and known names.
        Exception
            It is damaged, which shows in many ways.
        """
        read = self.stream.read
        while (opcode := read(1)) != pickle.STOP:
            if opcode not in _OPCODES:
                raise UnpicklingError(f'opcode {opcode}' if opcode else 'it ends too early')
            _OPCODES[opcode](self)
        content = self.stack.pop()
        _refuse(_NO_VALUES, [content])
        return content

    def take(self, n_bytes: int) -> bytes:
        """The next bytes of the file."""
        # A length beyond the file's would be allocated before anything is read.
        content = self.stream.read(n_bytes) if n_bytes <= self.limits.size else b''
        if len(content) < n_bytes:
            raise UnpicklingError('it ends too early')
        return content

    def line(self) -> bytes:
        """The next line of the file, without its end."""
        line = self.stream.readline()
        if not line.endswith(b'\n'):
            raise UnpicklingError('it ends too early')
        return line[:-1]

    def decimal(self) -> bytes:
        """The next line of the file, which holds a number."""
        line = self.line()
        if len(line) > MAX_DIGITS:
            raise UnpicklingError(f'a number of {len(line)} digits')
        return line

    def number(self, n_bytes: int) -> int:
        """The next bytes of the file as a number without sign."""
        return int.from_bytes(self.take(n_bytes), 'little')

    def items_from_mark(self) -> list:
        """Take everything above the last mark from the stack."""
        items, self.stack = self.stack, self.outer_stacks.pop()
        return items

    def remember(self, key: int) -> None:
        """Put the top of the stack into the memo."""
        value = self.stack[-1]
        if key == len(self.memo):
            self.memo.append(value)
        elif 0 <= key <= self.limits.size:
            self.memo.extend([_NOTHING] * (key + 1 - len(self.memo)))
            self.memo[key] = value
        else:
            raise UnpicklingError('a memo of more entries than the file has bytes')
        if type(value) is Pending:
            value.memo_keys.append(key)

    def recall(self, key: int) -> None:
        """Put an entry of the memo onto the stack."""
        if not 0 <= key < len(self.memo) or self.memo[key] is _NOTHING:
            raise UnpicklingError('a memo entry that was not made')
        self.stack.append(self.memo[key])

    def push_name(self, module: str, name: str) -> None:
        """Put a known name onto the stack."""
        full = f'{module}.{name}'
        if full not in self.names:
            raise refused(full)
        self.stack.append(self.names[full])


# ------------------------------------------------------------------------------------------------ plain values
def _constant(value):
    return lambda machine: machine.stack.append(value)


def _counted(width, convert=bytes):
    """Bytes whose number stands before them, in `width` bytes."""

    def read(machine):
        machine.stack.append(convert(machine.take(machine.number(width))))

    return read


_RUN_OF_NUMBERS = re.compile(rb'(?:(?:G.{8})++|K.|M..|J.{4}|[N\x88\x89])*+', re.DOTALL)


def _number(layout):
    """A number of fixed size, and those that follow it."""
    size, unpack = struct.calcsize(layout), struct.Struct(layout).unpack

    def read(machine):
        machine.stack.append(unpack(machine.stream.read(size))[0])
        # Signals stored as lists are runs of millions of numbers. As many as are in the stream's buffer are left to
        # Python's own unpickler, which is faster and meets nothing else.
        run = _RUN_OF_NUMBERS.match(machine.stream.peek()).end()
        if run > 20:
            machine.stack += pickle.loads(pickle.MARK + machine.stream.read(run) + pickle.LIST + pickle.STOP)

    return read


def _text(content):
    return str(content, 'utf-8', 'surrogatepass')


def _python2_text(content):
    return str(content, 'ascii')


def _long(content):
    return int.from_bytes(content, 'little', signed=True)


def _decimal_int(machine):
    digits = machine.decimal()
    machine.stack.append({b'00': False, b'01': True}[digits] if digits in (b'00', b'01') else int(digits))


def _quoted(machine):
    quoted = machine.line()
    if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in (b'"', b"'"):
        raise UnpicklingError('a string without quotes')
    machine.stack.append(_python2_text(codecs.escape_decode(quoted[1:-1])[0]))


# -------------------------------------------------------------------------------------------- stack and memo
def _mark(machine):
    machine.outer_stacks.append(machine.stack)
    machine.stack = []


def _pop(machine):
    if machine.stack:
        del machine.stack[-1]
    else:
        machine.items_from_mark()


# ------------------------------------------------------------------------------------------------- containers
def _as_tuple(items):
    if Pending in map(type, items):
        raise UnpicklingError('an object that is not complete')
    return tuple(items) if _OF_TUPLES.isdisjoint(map(type, items)) else Arguments(items)


def _tuple(n_items):
    def build(machine):
        stack = machine.stack
        if len(stack) < n_items:
            raise UnpicklingError('a tuple without its items')
        stack[-n_items:] = [_as_tuple(stack[-n_items:])]

    return build


def _tuple_from_mark(machine):
    items = machine.items_from_mark()
    machine.stack.append(_as_tuple(items))


def _extend(machine, items):
    target = machine.stack[-1]
    if type(target) is not list:
        raise UnpicklingError(f'items for a {type(target).__name__}')
    _refuse(_NO_VALUES, items)
    target.extend(items)


def _update(machine, items):
    target, keys, values = machine.stack[-1], items[::2], items[1::2]
    if type(target) is not dict and type(target) is not OrderedDict:
        raise UnpicklingError(f'items for a {type(target).__name__}')
    machine.limits.check_keys(keys)
    _refuse(_OF_DICTS, items)
    target.update(zip(keys, values, strict=True))


def _add(machine):
    items = machine.items_from_mark()
    target = machine.stack[-1]
    if type(target) is not set:
        raise UnpicklingError(f'items for a {type(target).__name__}')
    _refuse(_NO_VALUES, items)
    machine.limits.check_keys(items)
    target.update(items)


def _frozenset(machine):
    items = machine.items_from_mark()
    _refuse(_NO_VALUES, items)
    machine.limits.check_keys(items)
    machine.stack.append(frozenset(items))


def _list(machine):
    items = machine.items_from_mark()
    machine.stack.append([])
    _extend(machine, items)


def _dict(machine):
    items = machine.items_from_mark()
    machine.stack.append({})
    _update(machine, items)


# -------------------------------------------------------------------------------------------- names and calls
def _global(machine):
    machine.push_name(machine.line().decode(), machine.line().decode())


def _stack_global(machine):
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise UnpicklingError('a name that is no string')
    machine.push_name(module, name)


def _call(machine):
    arguments, name = machine.stack.pop(), machine.stack.pop()
    if type(name) is not Name or type(arguments) not in (tuple, Arguments):
        raise UnpicklingError(f'a call of a {type(name).__name__} with a {type(arguments).__name__}')
    if len(arguments) > MAX_ARGUMENTS:
        raise UnpicklingError(f'a call with {len(arguments)} arguments')
    machine.stack.append(machine.makers[name](*arguments))


def _build(machine):
    state, target = machine.stack.pop(), machine.stack.pop()
    if type(target) is not Pending:
        raise UnpicklingError(f'a state for {target if type(target) is Name else f"a {type(target).__name__}"}')
    built = target.build(state)
    machine.stack.append(built)
    for key in target.memo_keys:
        machine.memo[key] = built


_OPCODES = {
    pickle.PROTO: lambda machine: machine.take(1),
    pickle.FRAME: lambda machine: machine.take(8),
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(True),
    pickle.NEWFALSE: _constant(False),
    pickle.INT: _decimal_int,
    pickle.BININT: _number('<i'),
    pickle.BININT1: _number('<B'),
    pickle.BININT2: _number('<H'),
    pickle.LONG: lambda machine: machine.stack.append(int(machine.decimal().removesuffix(b'L'))),
    pickle.LONG1: _counted(1, _long),
    pickle.LONG4: _counted(4, _long),
    pickle.FLOAT: lambda machine: machine.stack.append(float(machine.decimal())),
    pickle.BINFLOAT: _number('>d'),
    pickle.STRING: _quoted,
    pickle.BINSTRING: _counted(4, _python2_text),
    pickle.SHORT_BINSTRING: _counted(1, _python2_text),
    pickle.UNICODE: lambda machine: machine.stack.append(str(machine.line(), 'raw-unicode-escape')),
    pickle.BINUNICODE: _counted(4, _text),
    pickle.SHORT_BINUNICODE: _counted(1, _text),
    pickle.BINUNICODE8: _counted(8, _text),
    pickle.BINBYTES: _counted(4),
    pickle.SHORT_BINBYTES: _counted(1),
    pickle.BINBYTES8: _counted(8),
    pickle.BYTEARRAY8: _counted(8, partial(Record, 'bytearray')),
    pickle.MARK: _mark,
    pickle.POP: _pop,
    pickle.POP_MARK: lambda machine: machine.items_from_mark(),
    pickle.DUP: lambda machine: machine.stack.append(machine.stack[-1]),
    pickle.GET: lambda machine: machine.recall(int(machine.decimal())),
    pickle.BINGET: lambda machine: machine.recall(machine.number(1)),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.number(4)),
    pickle.PUT: lambda machine: machine.remember(int(machine.decimal())),
    pickle.BINPUT: lambda machine: machine.remember(machine.number(1)),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number(4)),
    pickle.MEMOIZE: lambda machine: machine.remember(len(machine.memo)),
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.TUPLE1: _tuple(1),
    pickle.TUPLE2: _tuple(2),
    pickle.TUPLE3: _tuple(3),
    pickle.TUPLE: _tuple_from_mark,
    pickle.EMPTY_LIST: lambda machine: machine.stack.append([]),
    pickle.LIST: _list,
    pickle.APPEND: lambda machine: _extend(machine, [machine.stack.pop()]),
    pickle.APPENDS: lambda machine: _extend(machine, machine.items_from_mark()),
    pickle.EMPTY_DICT: lambda machine: machine.stack.append({}),
    pickle.DICT: _dict,
    pickle.SETITEM: lambda machine: _update(machine, [machine.stack.pop(), machine.stack.pop()][::-1]),
    pickle.SETITEMS: lambda machine: _update(machine, machine.items_from_mark()),
    pickle.EMPTY_SET: lambda machine: machine.stack.append(set()),
    pickle.ADDITEMS: _add,
    pickle.FROZENSET: _frozenset,
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _call,
    pickle.NEWOBJ: _call,
    pickle.BUILD: _build,
}
