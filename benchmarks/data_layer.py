"""Speed of making and loading windows, and memory that making them takes.

    python benchmarks/data_layer.py [name=value ...]

Makes a patient of 15 blocks of 3 minutes (0.9 GB; 5 GB of disk in all, removed at the end) and measures, against each
other in this one run, medians of REPEATS rounds in which every way has its turn:

writing   cutting and writing all windows, block by block, against `ndarray.tofile` of the same bytes and against
          appending every block to one growing array, as the original code did
memory    the peak of a process that makes the windows of 1, 5 and 15 blocks beyond one that only reads the pickle
loading   batches against a bare `memmap[indices]` and against opening the window file and unpickling the time labels
          for every item, as the original code did

Prints the tables. Takes about 5 minutes on 2 cores.
"""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from data_processing import create_windows, cut_block
from data_processing import write_patient_windows as write_windows
from recordings.channels import N_CHANNELS
from recordings.data_raw import read_data_raw
from recordings.pickles import write_pickle
from recordings.window_files import staging_folder_of
from recordings.window_settings import WindowSettings
from runs.settings import read_command
from timeseries_dataset import WindowDataset, id_table, open_directory
from utils import run_script

N_BLOCKS, SECONDS, SPIKES = 15, 180, 20
REPEATS = 7
BATCH = 200

# What a process of its own does for the table of memory: its peak resident memory, in kB, goes to stdout. (getrusage
# would give the peak of the process that started it, where that is higher.)
PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from data_processing import create_windows
from recordings.pickles import read_pickle
from recordings.window_settings import WindowSettings
{work}
print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])
"""


def main(words: list[str]) -> None:
    """Make the patient, run the three parts and print their tables."""
    _, settings = read_command(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / 'raw' / 'data_raw_001.pkl'
        write_pickle(raw, recordings(settings))
        for measure in (measure_writing, measure_memory, measure_loading):
            table = pd.DataFrame(measure(raw, settings))
            print(table.to_string(index=False, float_format='{:.4g}'.format), end='\n\n', flush=True)


def recordings(settings: SimpleNamespace) -> dict[str, list]:
    """The content of a data_raw file: noise, with spikes at random times."""
    rng = np.random.default_rng(settings.seed)
    n_samples = round(SECONDS * settings.sfreq)
    return {
        'meg': [rng.normal(0, 3e-13, (N_CHANNELS, n_samples)) for _ in range(N_BLOCKS)],
        'events': [np.sort(rng.choice(n_samples, SPIKES, replace=False)) for _ in range(N_BLOCKS)],
        'reannot': [[] for _ in range(N_BLOCKS)],
        'file': [f'block_{block:02d}.ds' for block in range(N_BLOCKS)],
    }


def medians(ways: dict[str, Callable], written: Path | None = None) -> tuple[dict, dict]:
    """Median seconds, and seconds of processor, of each way.

    Every round gives each its turn, so that a slow moment strikes all alike. What a way leaves in the folder `written`
    is removed after its turn, and is not there for the next to wait for.
    """
    measured = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            way()
            measured[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
            if written is not None:
                shutil.rmtree(written)
                written.mkdir()
                os.sync()
    median = {name: np.median(pairs, axis=0) for name, pairs in measured.items()}
    return {name: pair[0] for name, pair in median.items()}, {name: pair[1] for name, pair in median.items()}


# Arguments of `create_windows`.
PATIENTS = {'patient': False, 'include_spike_free': False, 'overwrite': True}


def window_settings(settings: SimpleNamespace, nb_best_blocks: int = 0) -> WindowSettings:
    """Settings of the windows of the patient's best blocks, by default of all."""
    made_with = WindowSettings.of_run(settings, normal_only=False)
    return dataclasses.replace(made_with, nb_best_blocks=nb_best_blocks, reject_artefacts=False)


# ------------------------------------------------------------------------------------------------ writing
def measure_writing(raw: Path, settings: SimpleNamespace) -> list[dict]:
    """Seconds to cut and write the windows of all blocks, in three ways, and of the whole script."""
    made_with = window_settings(settings)
    data = read_data_raw(raw)
    out = raw.parent.parent / 'out'
    out.mkdir()

    def cut(block, stream=None):
        return cut_block(data['meg'][block], data['events'][block], made_with, stream=stream)

    blocks = range(len(data['meg']))
    same_bytes = np.concatenate([cut(block)[0].windows for block in blocks])

    def tofile():
        same_bytes.tofile(out / 'tofile')

    def block_by_block():
        with staging_folder_of(out / 'data_raw_001_b0') as folder:
            write_windows(folder, blocks, cut)
            (folder / 'windows_bi').replace(out / 'streamed')

    def growing_array():
        grown = np.empty((0, N_CHANNELS, made_with.shape.window_length), '<f4')
        for block in blocks:
            grown = np.concatenate([grown, cut(block)[0].windows])
        grown.tofile(out / 'grown')

    def script():
        create_windows(raw.parent, out, made_with, **PATIENTS)

    ways = {
        'ndarray.tofile': tofile,
        'cut and written block by block': block_by_block,
        'cut, appended to a growing array, written': growing_array,
        'create_windows: stamp, read, check, cut, write': script,
    }
    seconds, processor = medians(ways, out)
    reference = next(iter(ways))
    return [
        {
            'way': way,
            's': seconds[way],
            'ratio to tofile': seconds[way] / seconds[reference],
            'processor s': processor[way],
            'ratio to tofile of these': processor[way] / processor[reference],
            'MB/s': same_bytes.nbytes / 1e6 / seconds[way],
        }
        for way in ways
    ]


# ------------------------------------------------------------------------------------------------- memory
def measure_memory(raw: Path, settings: SimpleNamespace) -> list[dict]:
    """Peak resident MB of processes that read the pickle, and that make the windows of some of its blocks."""
    works = {'reading the pickle': f'read_pickle({str(raw)!r})'}
    for n_blocks in (1, 5, 15):
        folders = (str(raw.parent), str(raw.parent.parent / 'memory'))
        made_with = window_settings(settings, n_blocks)
        works[f'windows of {n_blocks} blocks'] = f'create_windows(*{folders!r}, {made_with!r}, **{PATIENTS!r})'
    rows = []
    for what, work in works.items():
        code = PEAK.format(root=str(Path(__file__).resolve().parents[1]), work=work)
        ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
        peak = int(ended.stdout.split()[-1]) * 1024 / 1e6
        rows.append({'process': what, 'peak MB': peak, 'beyond reading': peak - (rows[0]['peak MB'] if rows else peak)})
    return rows


# ------------------------------------------------------------------------------------------------ loading
def measure_loading(raw: Path, settings: SimpleNamespace) -> list[dict]:
    """Windows per second of random batches, in several ways."""
    folder = raw.parent.parent
    create_windows(folder / 'raw', folder / 'windows', window_settings(settings), **PATIENTS)
    durations = {'sfreq': settings.sfreq, 'window_size': settings.window_size}
    patients = open_directory(folder / 'windows', 0, False, durations)
    [opened], table = patients, id_table(patients)
    labels = folder / 'windows' / 'data_raw_001_b0_labels_t.pkl'
    order = np.random.default_rng(settings.seed).permutation(len(table))
    batches = [order[i : i + BATCH].tolist() for i in range(0, len(order), BATCH)]

    def item_by_item():
        for indices in batches:
            items = []
            for index in indices:
                window = np.array(np.memmap(opened.path, '<f4', 'r', shape=opened.windows.shape)[index])
                items.append((window, pickle.loads(labels.read_bytes())[index]))
            np.stack([window for window, _ in items])

    def bare():
        for indices in batches:
            opened.windows[indices]

    def from_dataset(**chosen):
        dataset = WindowDataset(patients, table, **chosen)

        def load():
            for indices in batches:
                dataset.__getitems__(indices)

        return load

    ways = {
        'one open and one unpickle per item': item_by_item,
        'bare memmap[indices]': bare,
        'from the files': from_dataset(zscore=False),
        'from the files, z-scored': from_dataset(zscore=True),
        'from the files, z-scored, with noise': from_dataset(zscore=True, noise=0.2),
        'preloaded in memory': from_dataset(zscore=False, preload=True),
        'preloaded in memory, z-scored': from_dataset(zscore=True, preload=True),
    }
    bare()  # the files are in the page cache for all
    seconds, _ = medians(ways)
    slow, copy = list(ways)[:2]
    return [
        {
            'batches': way,
            'windows/s': len(table) / duration,
            'times item by item': seconds[slow] / duration,
            'of a bare copy': seconds[copy] / duration,
        }
        for way, duration in seconds.items()
    ]


if __name__ == '__main__':
    run_script(main, __doc__)
