"""Write the data_raw files of this folder: small ones, as NumPy 1 and pandas 2 write them.

    pip install numpy==1.26.4 pandas==2.2.3 && python tests/data/make_old_pickles.py

Each is one patient of two blocks of 4 and 5 samples; `content` says what they hold.
"""

import pickle
from pathlib import Path

import numpy as np


def content(as_lists=False):
    """The data_raw dict that the files hold: integer signals, an annotation, a re-annotation."""
    signals = [np.arange(274 * n, dtype=np.int16).reshape(274, n) % 97 - 48 for n in (4, 5)]
    return {
        'meg': [signal.tolist() if as_lists else signal for signal in signals],
        'events': [[1, 3], []] if as_lists else [np.array([1, 3]), np.zeros(0, dtype=np.int64)],
        'reannot': [[], [2.0]] if as_lists else [np.zeros(0), np.array([2.0])],
        'file': ['a.ds', 'b.ds'],
    }


def main():
    """Write them beside this file."""
    import pandas as pd

    folder = Path(__file__).parent
    for protocol in (2, 3, 4, 5):
        (folder / f'numpy1_protocol{protocol}.pkl').write_bytes(pickle.dumps(content(), protocol=protocol))
        for name, as_lists in (('arrays', False), ('lists', True)):
            frame = pd.DataFrame(content(as_lists))
            (folder / f'pandas2_{name}_protocol{protocol}.pkl').write_bytes(pickle.dumps(frame, protocol=protocol))


if __name__ == '__main__':
    main()
