"""Reading pickles: what is stored comes back; nothing else is built, whatever bytes a file holds."""

import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pickle_attacks import ATTACKS, CONTENT

from recordings.pickles import read_pickle

ROOT = Path(__file__).parents[2]
OLD = sorted((ROOT / 'tests' / 'data').glob('*.pkl'))


def assert_same(read, wanted):
    """Compare type, layout and content of everything that a pickle may hold."""
    assert type(read) is type(wanted)
    if isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(read, wanted)
        assert type(read.index) is type(wanted.index)
        assert_same([column.tolist() for _, column in read.items()], [column.tolist() for _, column in wanted.items()])
    elif isinstance(wanted, pd.Series):
        pd.testing.assert_series_equal(read, wanted)
    elif isinstance(wanted, pd.Index):
        pd.testing.assert_index_equal(read, wanted)
    elif isinstance(wanted, np.ndarray):
        assert (read.dtype, read.shape, read.strides) == (wanted.dtype, wanted.shape, wanted.strides)
        assert read.flags.writeable == wanted.flags.writeable
        assert_same(read.tolist(), wanted.tolist())
    elif isinstance(wanted, dict):
        assert_same([*read.items()], [*wanted.items()])
    elif isinstance(wanted, list | tuple):
        assert len(read) == len(wanted)
        for found_item, wanted_item in zip(read, wanted, strict=True):
            assert_same(found_item, wanted_item)
    else:
        assert read == wanted or (read != read and wanted != wanted)


# ----------------------------------------------------------------------------------- what a pickle may hold
CUBE = np.arange(24.0).reshape(2, 3, 4)
OBJECTS = np.array([[1, 'a'], [None, [2]]], dtype=object)
NESTED = np.empty(2, dtype=object)
NESTED[:] = [OBJECTS, np.zeros(3)]
VALUES = {
    'numbers': [0, -1, 255, 70_000, -(2**31), 2**31, 10**30, -(10**30), 1.5, float('nan'), 1 + 2j, True, None],
    'runs of numbers': [[1.5] * 3000, list(range(-70_000, 70_000, 7)), [0.5, 7, None, True, -300_000] * 2000],
    'texts': ['', 'é' * 300, 'a\nb\\u0041\0"\'', '\U0001f9e0', b'', b'x', bytes(range(256)) * 2],
    'containers': [
        {'a': {1, 2.5}, (1, 'b'): frozenset('ab'), 7: ()},
        (1, 2, 3, 4),
        OrderedDict(b=1),
        slice(1, None, 2),
    ],
    'scalars': [
        np.float64(1.5),
        np.int16(-3),
        np.str_('abc'),
        np.str_(''),
        np.bool_(True),
        np.bytes_(b'q'),
        np.float16(2),
    ],
    'layouts': [
        CUBE,
        CUBE.T,
        CUBE.transpose(1, 0, 2),
        CUBE[:, ::2],
        np.array(3.0),
        np.zeros((0, 274)),
        np.ones((274, 0)),
    ],
    'types': [CUBE.astype(kind) for kind in ('b1', 'u1', '<i2', '>i4', 'f4', '>f8', 'S4', 'U5', '>U5')],
    'large': [np.arange(3000, dtype=kind) for kind in ('i2', '>f8')],
    'read-only': np.frombuffer(bytes(8000)),
    'objects': [OBJECTS, OBJECTS.T, NESTED],
    'frame': pd.DataFrame({'meg': [CUBE[0], CUBE[1]], 'events': [[1], []], 'file': ['a', 'b']}),
    'frame of blocks': pd.DataFrame({'a': [1, 2], 'b': [1.5, 2], 'c': ['x', None], 'd': [3, 4], 'e': [True, False]})[
        ['d', 'b', 'e', 'a', 'c']
    ],
    'frame of blocks at odd places': pd.DataFrame({'a': [1], 'b': [2], 'c': [1.5], 'd': [3]}),
    'frame of numbers': pd.DataFrame(CUBE[0]).rename_axis(columns='time', index='channel'),
    'frames without rows or columns': [pd.DataFrame({'a': []}), pd.DataFrame(index=range(3)), pd.DataFrame()],
    'columns of one name': pd.DataFrame([[1, 2.5]], columns=['a', 'a'], index=[7]),
    'series': [pd.Series([1.5, 2], name='x'), pd.Series([[1], 2], index=['u', 'v']), pd.Series(['a', None])],
    'indices': [
        pd.Index(['a', 'b'], name='n'),
        pd.Index([1, 'a'], dtype=object),
        pd.RangeIndex(1, 9, 2),
        pd.Index([2.5]),
    ],
}


@pytest.mark.parametrize('value', VALUES.values(), ids=VALUES)
def test_what_is_written_comes_back(write_raw, value):
    # At protocol 0 and 1 pandas writes a frame by a call of its class, which is refused.
    for protocol in range(2 if 'pandas' in str(pickle.dumps(value)) else 0, 6):
        written = pickle.dumps(value, protocol=protocol)
        read = read_pickle(write_raw(written))
        assert_same(read, pickle.loads(written))
    again = pickle.dumps(read)  # as re-annotating writes it
    assert_same(read_pickle(write_raw(again)), pickle.loads(again))


def test_what_is_shared_stays_shared(write_raw):
    signal = np.ones(3)
    read = read_pickle(write_raw(pickle.dumps([signal, [signal], {'x': signal}])))
    assert read[0] is read[1][0] is read[2]['x']


@pytest.mark.filterwarnings('ignore:numpy.core:DeprecationWarning')
@pytest.mark.parametrize('path', OLD, ids=lambda path: path.stem)
def test_what_older_versions_wrote_comes_back(path):
    assert_same(read_pickle(path), pickle.loads(path.read_bytes()))


# ------------------------------------------------------------------------------------------------ attacks
def run_child(code, *words):
    """Run some code in a process of its own, in the repository's folder; return what it printed."""
    command = [sys.executable, '-c', code, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert (ended.returncode, ended.stderr) == (0, '')
    return ended.stdout.splitlines()


READ_ALL = """
import sys
from pathlib import Path
import numpy as np
import pandas as pd
from recordings.data_raw import read_data_raw
from utils import DataError
peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) * 1024
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print('read', read_data_raw(path))
    except DataError as fault:
        message = str(fault)
        assert message.startswith(f'{path}: ') and len(message) < 600 and message.isprintable(), message
        print('refused')
assert len(pd.Index([1, 2])) == 2
print(peak() - before)
"""


def test_attacks_are_refused_within_the_memory_that_a_file_explains(tmp_path):
    attacks = ATTACKS | CONTENT
    for i, content in enumerate(attacks.values()):
        (tmp_path / f'{i:03d}.pkl').write_bytes(content)
    *outcomes, peak = run_child(READ_ALL, tmp_path)
    assert dict(zip(attacks, outcomes, strict=True)) == dict.fromkeys(attacks, 'refused')
    assert int(peak) < 100 * max(map(len, attacks.values()))


MUTATE = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, 'tests/recordings')
from recordings.data_raw import annotated_spikes, content_warnings, read_data_raw
from pickle_attacks import SEEDS, mutated
from utils import DataError
seed, n_mutations, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
rng = np.random.default_rng(seed)
seeds = [*SEEDS, *(file.read_bytes() for file in sorted(Path('tests/data').glob('*.pkl')))]
n_read = 0
for _ in range(n_mutations):
    path.write_bytes(mutated(seeds, rng))
    try:
        data = read_data_raw(path)
        content_warnings(data, 150)
        annotated_spikes(data)
        n_read += 1
    except DataError as fault:
        assert str(fault).isprintable(), str(fault)
print(n_read)
"""


def test_mutated_pickles_are_an_error_or_still_a_patient(tmp_path):
    [n_read] = run_child(MUTATE, 0, 2000, tmp_path / 'mutated.pkl')
    assert 100 < int(n_read) < 1900
