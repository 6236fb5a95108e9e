"""Pickles that attack their reader, put together opcode by opcode; each is small."""

import functools
import itertools
import pickle
import pickletools

import numpy as np
import pandas as pd

FIRST_KEY = 100


# ------------------------------------------------------------------------------------------------ opcodes
def value(content):
    """The opcodes of a plain value."""
    return pickle.dumps(content, protocol=2)[2:-1]


def tuple_of(*parts):
    return b'(' + b''.join(parts) + b't'


def list_of(*parts):
    return b'](' + b''.join(parts) + b'e'


def name(full):
    module, _, attribute = full.rpartition('.')
    return f'c{module}\n{attribute}\n'.encode()


def call(full, *parts):
    return name(full) + tuple_of(*parts) + b'R'


def remember(key, part):
    """Store a part in the memo, behind what `value` stores there, and nothing on the stack."""
    return part + b'r' + (FIRST_KEY + key).to_bytes(4, 'little') + b'0'


def recall(key):
    return b'j' + (FIRST_KEY + key).to_bytes(4, 'little')


# --------------------------------------------------------------------------------------- arrays and frames
RECONSTRUCT, SCALAR, FROMBUFFER = (
    f'numpy._core.{name}' for name in ('multiarray._reconstruct', 'multiarray.scalar', 'numeric._frombuffer')
)
MANAGER = 'pandas.core.internals.managers.BlockManager'


def dtype(text, *, subtype=b'N', fields=b'NN', size=-1, flags=0):
    """An array type with a state of its own."""
    state = tuple_of(value(3), value('|'), subtype, fields, value(size), value(1), value(flags))
    return call('numpy.dtype', *map(value, (text, False, True))) + state + b'b'


OBJECTS = dtype('O8', flags=63)


def field(kind, offset):
    return value(('a',)) + b'}' + value('a') + tuple_of(kind, value(offset)) + b's'


def array(shape, kind, content):
    empty = call(RECONSTRUCT, name('numpy.ndarray'), value((0,)), value(b'b'))
    return empty + tuple_of(value(1), value(shape), kind, value(False), content) + b'b'


def numbers(*shape):
    return array(shape, dtype('f8'), value(bytes(8 * int(np.prod(shape)))))


def places(start, stop):
    return call('builtins.slice', *map(value, (start, stop, 1)))


def range_index(n_items):
    state = {'name': None, 'start': 0, 'stop': n_items, 'step': 1}
    return call('pandas.core.indexes.base._new_Index', name('pandas.RangeIndex'), value(state))


def text_index(*texts):
    state = b'}(' + value('data') + array((len(texts),), OBJECTS, value(list(texts))) + value('name') + b'Nu'
    return call('pandas.core.indexes.base._new_Index', name('pandas.Index'), state)


def block(values, where, n_dims=2):
    return call('pandas._libs.internals._unpickle_block', values, where, value(n_dims))


def frame(*blocks, columns=None, n_rows=2):
    """A frame of the four columns of a data_raw file, if no others are given."""
    axes = list_of(columns or text_index('meg', 'events', 'reannot', 'file'), range_index(n_rows))
    manager = call(MANAGER, tuple_of(*blocks), axes)
    rest = value({'_typ': 'dataframe', '_metadata': [], 'attrs': {}, '_flags': {'allows_duplicate_labels': True}})
    return name('pandas.DataFrame') + b')\x81' + rest + value('_mgr') + manager + b'sb'


# --------------------------------------------------------------------------- what is refused, one by one
POINTER = b'\xef\xbe\xad\xde\0\0\0\0'
COLUMNS, ALL = numbers(4, 2), places(0, 4)
FAR = array((4,), dtype('i8'), value((np.arange(4) + 10**9).tobytes()))
HOLLOW = dtype('O8')  # whose flags say that its items are no objects
ARRAYS = {
    'objects by scalar': call(SCALAR, HOLLOW, value(POINTER)),
    'objects by _frombuffer': call(FROMBUFFER, value(POINTER), HOLLOW, value((1,)), value('C')),
    'objects by the state of an array': array((1,), HOLLOW, value(POINTER)),
    'objects from a text': array((8,), HOLLOW, value('12345678')),
    'void with an object field': call(SCALAR, dtype('V8', fields=field(HOLLOW, 0), size=8), value(POINTER)),
    'negative item size': array((1,), dtype('S5', size=-8), value(b'12345')),
    'huge item size': array((1,), dtype('S5', size=2**62), value(b'12345')),
    'S0 with 10**15 items': array((10**15,), dtype('S0', size=0), value(b'')),
    'a field beyond its item': call(SCALAR, dtype('V8', fields=field(dtype('f8'), 10**6), size=8), value(POINTER)),
    'a subarray': call(SCALAR, dtype('V8', subtype=tuple_of(dtype('f8'), value((10**6,))), size=8), value(POINTER)),
    'more items than bytes': array((3,), dtype('f8'), value(bytes(16))),
    'negative lengths': array((-1, -2), dtype('f8'), value(bytes(16))),
    'lengths that overflow': array((2**33, 2**33, 0), dtype('f8'), value(b'')),
    'a million dimensions': array((1,) * 10**6, dtype('f8'), value(bytes(8))),
    'truth values of 7': array((3,), dtype('b1'), value(b'\1\7\0')),
    'times': array((1,), dtype('M8', size=8), value(bytes(8))),
    'another class of array': call(RECONSTRUCT, name('numpy.matrix'), value((0,)), value(b'b')),
    'an empty array of 10**10': call(RECONSTRUCT, name('numpy.ndarray'), value((10**10,)), value(b'b')),
    'axes that do not fit': call(FROMBUFFER, value(bytes(8)), dtype('f8'), value((1, 1)), value('K'), value((0, 5))),
}
FRAMES = {
    'a block far behind': frame(block(COLUMNS, places(10**9, 10**9 + 4))),
    'a block far before': frame(block(COLUMNS, places(-(10**9), -(10**9) + 4))),
    'a block at an array of far places': frame(block(COLUMNS, FAR)),
    'a block of more columns than places': frame(block(numbers(5, 2), ALL)),
    'a block of fewer columns than places': frame(block(numbers(3, 2), ALL)),
    'two blocks at the same places': frame(block(COLUMNS, ALL), block(COLUMNS, ALL)),
    'places without a block': frame(block(numbers(3, 2), places(0, 3))),
    'a longer index': frame(block(COLUMNS, ALL), n_rows=10**4),
    'an index of 10**12': frame(columns=range_index(0), n_rows=10**12),
    'a block of one dimension': frame(block(numbers(2), ALL, 1)),
    'a block of one dimension that says two': frame(block(numbers(2), ALL)),
    'a block of three dimensions': frame(block(numbers(4, 2, 1), ALL, 3)),
    'a block of three dimensions that says two': frame(block(numbers(4, 2, 1), ALL)),
    'a block of a list': frame(block(value([1, 2]), ALL)),
    'items of no bytes': frame(block(array((4, 10**8), dtype('S0', size=0), value(b'')), ALL), n_rows=10**8),
    'a manager in place of a block': frame(call(MANAGER, value([1, 2]), ALL)),
    'a block in place of a manager': name('pandas.DataFrame') + b')\x81}' + value('_mgr') + block(COLUMNS, ALL) + b'sb',
    'a frame as the state of an index': call(
        'pandas.core.indexes.base._new_Index', name('pandas.Index'), frame(block(COLUMNS, ALL))
    ),
    "a series of a frame's manager": name('pandas.Series')
    + b')\x81}('
    + value('_mgr')
    + call(MANAGER, value([1, 2]), range_index(2))
    + value('_name')
    + b'Nub',
    'a slice of slices': call('builtins.slice', places(0, 1), value(1), value(1)),
}
CALLS = {
    'a command': b"cos\nsystem\n(S'true'\ntR",
    'BUILD on a class': name('pandas.Index') + value((None, {'__len__': 5})) + b'b',
    'BUILD on a function': name(RECONSTRUCT) + value({'__doc__': 'x'}) + b'b',
    'BUILD on an array': numbers(2) + value((1, (10**9,), None, False, b'')) + b'b',
    'BUILD on a list': value([]) + value({'append': 1}) + b'b',
    'items for an array': numbers(2) + b'(K\x01e',
    'items for a class': name('pandas.Index') + b'(K\x01K\x02u',
    'items for a tuple': b')(K\x01\x90',
    'a class as a value': list_of(name('numpy.ndarray')),
    'a class deep in tuples': list_of(tuple_of(tuple_of(name('numpy.ndarray')))),
    'a class as all': name('pandas.DataFrame'),
    'an array without its state': list_of(call(RECONSTRUCT, name('numpy.ndarray'), value((0,)), value(b'b'))),
    'an array that holds itself': remember(0, call(RECONSTRUCT, name('numpy.ndarray'), value((0,)), value(b'b')))
    + recall(0)
    + tuple_of(value(1), value((1,)), OBJECTS, value(False), list_of(recall(0)))
    + b'b',
    'a call of a text': value('os.system') + tuple_of(value('true')) + b'R',
    'a call of an array': numbers(2) + b')R',
    'a call of a class that is only a name': call('pandas.Index', numbers(2)),
    'a call with an array': name('numpy.dtype') + numbers(2) + b'R',
    'a module': name('numpy.ma'),
    'an attribute of a class': value('pandas') + value('Index.map') + b'\x93',
    'a name that is a number': value(1) + value(2) + b'\x93',
    'INST': b'(' + value('true') + b'ios\nsystem\n',
    'OBJ': b'(' + name('numpy.ndarray') + value((5,)) + b'o',
    'NEWOBJ_EX': name('pandas.DataFrame') + b')}\x92',
    'EXT1': b'\x82\x01',
    'PERSID': b'Pos.system\n',
    'NEXT_BUFFER': b'\x97',
}


# ----------------------------------------------------------------------- what is small, and grows or nests
def repeated(part, times, before=b'', after=b''):
    """A list of `times` items, each of which refers to the same part."""
    return remember(0, part) + list_of((before + recall(0) + after) * times)


def nested_arrays(depth):
    parts = remember(1, name(RECONSTRUCT)) + remember(2, tuple_of(name('numpy.ndarray'), value((0,)), value(b'b')))
    parts += remember(3, OBJECTS) + remember(4, value((1,))) + remember(5, b'N')
    level = recall(1) + recall(2) + b'R' + tuple_of(b'K\1', recall(4), recall(3), b'\x89', list_of(recall(5))) + b'b'
    return parts + remember(5, level) * depth + recall(5)


def equal_hashes(n_numbers):
    """Numbers whose hash is 0."""
    return [k * (2**61 - 1) for k in range(1, n_numbers + 1)]


def doubled(levels):
    """A list of two that are the same list of two, and so on: few opcodes, 2**levels items."""
    return remember(6, value([1])) + remember(6, list_of(recall(6) * 2)) * levels + recall(6)


MEGABYTE = value('x' * 10**6)
EMPTY_STATE = list_of(b'N' * 10**5)
GROWING = {
    'memo index of 2**31': b']r\xff\xff\xff\x7f',
    'tuples 300 000 deep': b')' + b'\x85' * 300_000,
    'a key 300 000 deep': b'})' + b'\x85' * 300_000 + b'Ns',
    'lists 300 000 deep': b']' * 300_000 + b'a' * 299_999,
    'arrays of objects 20 000 deep': nested_arrays(20_000),
    'keys of equal hash': b'}(' + b''.join(value(key) + b'N' for key in equal_hashes(60_000)) + b'u',
    'a set of equal hash': b'\x8f(' + b''.join(map(value, equal_hashes(60_000))) + b'\x90',
    'memo keys of equal hash': b'N' + b''.join(f'p{key}\n'.encode() for key in equal_hashes(60_000)),
    'a number of 10**6 digits': b'I' + b'1' * 10**6 + b'\n',
    'a float of 10**6 digits': b'F0.' + b'1' * 10**6 + b'\n',
    'axes that take 2**40 steps to compare': call(
        FROMBUFFER, value(bytes(8)), dtype('f8'), value((1, 1)), value('K'), tuple_of(doubled(40), doubled(40))
    ),
    'a state of 10**4 frames of 10**5 columns': remember(
        1,
        frame(block(numbers(10**5, 0), places(0, 10**5)), columns=range_index(10**5), n_rows=0).split(b')\x81')[1][:-1],
    )
    + remember(2, name('pandas.DataFrame'))
    + list_of((recall(2) + b')\x81' + recall(1) + b'b') * 10**4),
    'a text made bytes 10**4 times': repeated(
        tuple_of(MEGABYTE, value('latin1')), 10**4, before=name('_codecs.encode'), after=b'R'
    ),
    'bytes of 10**4 arrays': remember(1, call('_codecs.encode', MEGABYTE, value('latin1')))
    + remember(2, dtype('S1000000', size=10**6))
    + remember(3, tuple_of(recall(2), recall(1)))
    + remember(4, name(SCALAR))
    + list_of((recall(4) + recall(3) + b'R') * 10**4),
    'a list of 10**4 arrays': remember(1, EMPTY_STATE)
    + remember(2, tuple_of(value(1), value((10**5,)), OBJECTS, b'\x89', recall(1)))
    + remember(3, tuple_of(name('numpy.ndarray'), value((0,)), value(b'b')))
    + remember(4, name(RECONSTRUCT))
    + list_of((recall(4) + recall(3) + b'R' + recall(2) + b'b') * 10**4),
    'a list of 10**4 sets': repeated(tuple_of(EMPTY_STATE), 10**4, before=name('builtins.set'), after=b'R'),
    'a state of 20 000 frames': remember(
        1, frame(*[block(numbers(1, 2), places(i, i + 1)) for i in range(4)]).split(b')\x81')[1][:-1]
    )
    + remember(2, name('pandas.DataFrame'))
    + list_of((recall(2) + b')\x81' + recall(1) + b'b') * 20_000),
}
ATTACKS = {what: b'\x80\x04' + opcodes + b'.' for what, opcodes in (ARRAYS | FRAMES | CALLS | GROWING).items()}


# --------------------------------------------------------------------------------- content of a data_raw file
def data_raw(n_blocks=1, **changes):
    """A patient's file with some entries changed, one per block or the same for every block."""
    entries = {'meg': np.ones((274, 2)), 'events': [], 'reannot': [], 'file': 'a.ds'}
    lists = {key: [entry] * n_blocks for key, entry in entries.items()}
    return pickle.dumps(lists | changes)


def rows(n_samples):
    return [[1.5] * n_samples for _ in range(274)]


SHARED_ROWS = rows(400)
CONTENT = {
    'one list of signals 2000 times': data_raw(2000, meg=[SHARED_ROWS] * 2000),
    'lists of the same signals': data_raw(500, meg=[list(SHARED_ROWS) for _ in range(500)]),
    'one array of signals 9000 times': data_raw(9000, meg=[np.ones((274, 400))] * 9000),
    'one list of events 400 times': data_raw(
        400, meg=[np.ones((274, 2)) for _ in range(400)], events=[[1.0] * 10_000] * 400
    ),
    'one long text as a million events': data_raw(events=[['1' * 10**6] * 10**6]),
    'signals of 1e300': data_raw(meg=[np.full((274, 2), -1e300)]),
    'a name of 5001 digits': data_raw(file=[10**5000]),
    'a frame as a name': data_raw(file=[pd.DataFrame({'a': [1]})]),
    'a slice as a name': data_raw(file=[slice(0, 1)]),
    'half a character as a name': data_raw(file=['\ud800']),
    'a name of 5000 characters': data_raw(file=['a' * 5000]),
    'two columns of one name': pickle.dumps(
        pd.DataFrame([['a'] * 5], columns=['meg', 'events', 'reannot', 'file', 'meg'])
    ),
    'numbers that are arrays': data_raw(meg=[[[np.array(1.0)] * 2 for _ in range(273)] + [np.array(1.0)]]),
}


# --------------------------------------------------------------------------------------------- real ones, damaged
SMALL = {'meg': [np.ones((274, 3))], 'events': [[1]], 'reannot': [np.array([2])], 'file': ['a.ds']}
SEEDS = [pickle.dumps(form(SMALL), protocol=protocol) for form in (dict, pd.DataFrame) for protocol in (2, 4, 5)]


@functools.cache
def opcodes_of(content):
    starts = [start for _, _, start in pickletools.genops(content)]
    return [content[start:end] for start, end in itertools.pairwise([*starts, len(content)])]


def mutated(seeds, rng):
    """One of some pickles with bytes changed, or with opcodes left out, doubled, exchanged or taken from another."""

    def pick(items):
        return items[rng.integers(len(items))]

    content = pick(seeds)
    if rng.random() < 0.3:
        content = bytearray(content)
        for _ in range(rng.integers(1, 5)):
            content[rng.integers(len(content))] = rng.integers(256)
        return bytes(content)
    opcodes = list(opcodes_of(content))
    for _ in range(rng.integers(1, 4)):
        at, size = rng.integers(len(opcodes)), rng.integers(1, 30)
        source = pick([[], opcodes, opcodes_of(pick(seeds))])
        start = rng.integers(len(source) + 1)
        opcodes[at : at + rng.integers(3)] = source[start : start + size]
    return b''.join(opcodes)
