"""Windows of many patients: made once, in parallel, whole or not at all, from files that may hold anything."""

import contextlib
import functools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from common import WINDOWS, make_window_files
from hypothesis import given
from hypothesis import strategies as st

from recordings.channels import N_CHANNELS
from recordings.data_raw import read_data_raw
from recordings.window_files import WINDOW_FILES, staging_folder_of
from tests.data.make_old_pickles import content as old_content
from timeseries_dataset import WindowDataset, batches, id_table, open_directory, place_of_windows
from utils import DataError, SettingError

OPTIONS = WINDOWS | {'normal_only': False}
MADE_WITH = {name: OPTIONS[name] for name in ('sfreq', 'window_size', 'standardize')}


@pytest.fixture
def make(tmp_path, capsys):
    """Make the windows of tmp_path/raw in tmp_path/out; return what was said."""

    def run(**changes):
        make_window_files(tmp_path / 'raw', tmp_path / 'out', **OPTIONS | changes)
        return capsys.readouterr().out

    return run


# ------------------------------------------------------------------------------------ what a pickle may hold
class Call:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def doubled(levels):
    """A list of two that are the same list of two, and so on: few bytes, 2**levels numbers."""
    entry = [1.0, 1.0]
    for _ in range(levels):
        entry = [entry, entry]
    return entry


def patient_with(**changes):
    return pickle.dumps({'meg': [[[0.0]] * 274], 'events': [[]], 'reannot': [[]], 'file': ['a.ds']} | changes)


def nested_key(depth):
    """A tuple in a tuple in a tuple, as the key of a dict: Python hashes it by as many nested calls."""
    return b'\x80\x04})' + b'\x85' * depth + b'K\x01s.'


BOMBS = {
    'memo index of 2**28': b'\x80\x04]r\xff\xff\xff\x0f.',
    'memo index of 2**31': b'\x80\x04]r\xff\xff\xff\x7f.',
    'bytes of 2**62': b'\x80\x04\x8e' + (2**62).to_bytes(8, 'little') + b'.',
    'text of 2**33': b'\x80\x04\x8d' + (2**33).to_bytes(8, 'little') + b'.',
    'array of 10**10': pickle.dumps(Call(np.ndarray, (10**10,))),
    'frame of 10**9': pickle.dumps(Call(pd.DataFrame, 0.0, pd.RangeIndex(10**9), ['meg'])),
    'set of 10**9': pickle.dumps(Call(set, pd.RangeIndex(10**9))),
    'lists 10 000 deep': b'\x80\x04' + b']' * 10_000 + b'a' * 9_999 + b'.',
    'a key 10 000 deep': nested_key(10_000),
    'signals 10 000 deep': patient_with().replace(b'.', b'', 0),
    'signals doubled 40 times': patient_with(meg=[doubled(40)]),
    'channels doubled 40 times': patient_with(meg=[[doubled(40) for _ in range(274)]]),
    'events doubled 40 times': patient_with(meg=[[[0.0] for _ in range(274)]], events=[doubled(40)]),
    'names doubled 40 times': patient_with(meg=[[[0.0] for _ in range(274)]], file=[doubled(40)]),
    'the same channel 274 times': patient_with(meg=[[[0.0] * 1000] * 274]),
    'empty': b'',
}


def test_no_pickle_takes_long_or_fills_the_memory(tmp_path):
    for i, content in enumerate(BOMBS.values()):
        (tmp_path / f'{i}.pkl').write_bytes(content)
    code = """
import sys, time
from pathlib import Path
from recordings.data_raw import read_data_raw
from utils import DataError
peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1e3
before = peak()
for i in range(int(sys.argv[2])):
    start = time.perf_counter()
    try:
        read_data_raw(Path(sys.argv[1]) / f'{i}.pkl')
        print('read')
    except DataError as fault:
        print(len(str(fault)) < 1000, peak() - before < 400, time.perf_counter() - start < 30)
"""
    command = [sys.executable, '-c', code, str(tmp_path), str(len(BOMBS))]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=120)
    assert (ended.returncode, ended.stderr) == (0, '')
    assert dict(zip(BOMBS, ended.stdout.splitlines(), strict=True)) == dict.fromkeys(BOMBS, 'True True True')


SMALL = {key: entries[:1] for key, entries in old_content().items()}
WHOLE = pickle.dumps(SMALL)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_a_damaged_file_is_a_clear_error_or_still_a_patient(tmp_path_factory, changes, in_words):
    damaged = bytearray(WHOLE)
    for position, value in changes:
        # The structure is in the first and last bytes, the signal in between.
        damaged[position % 400 if in_words else position] = value
    path = tmp_path_factory.getbasetemp() / 'damaged.pkl'
    path.write_bytes(damaged)
    with contextlib.suppress(DataError):  # any other exception fails the test
        assert [len(signal) for signal in read_data_raw(path)['meg']] == [N_CHANNELS]


@pytest.mark.parametrize('path', sorted((Path(__file__).parent / 'data').glob('*.pkl')), ids=lambda path: path.stem)
def test_files_written_by_numpy_1_and_pandas_2(path):
    read, expected = read_data_raw(path), old_content()
    for key in ('meg', 'events', 'reannot'):
        for value, wanted in zip(read[key], expected[key], strict=True):
            np.testing.assert_array_equal(value, wanted)
    assert read['file'] == expected['file']


def test_integer_signals_and_lists_of_lists_give_the_windows_of_arrays(recordings, write_raw, make, tmp_path):
    data = recordings(lengths=(720,), events=((300,),))
    counts = np.round(data['meg'][0] / 1e-15).astype(np.int16)
    made = []
    for signal in (counts, counts.tolist(), tuple(map(list, counts)), counts.astype('>f8'), np.asfortranarray(counts)):
        write_raw(data | {'meg': [signal], 'events': [[300]]})
        output = make(standardize='block')
        assert 'warning' in output  # no tesla
        made.append((tmp_path / 'out' / 'data_raw_001_b3_windows_bi').read_bytes())
    assert len(set(made)) == 1


# ------------------------------------------------------------------------------------- checks of the content
def set_block(key, block, value):
    def spoil(data):
        data[key][block] = value(data[key][block]) if callable(value) else value

    return spoil


def fewer_names(data):
    data['file'].pop()


def flat(signal):
    signal[[2, 5]] = 3e-13
    return signal


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (set_block('meg', 1, lambda signal: signal[:270]), 'block 1: 270 channels, not 274 .* as block 0: interpolate'),
        (
            fewer_names,
            r'lists of unequal length \(meg 2, events 2, reannot 2, file 1\); each needs one entry per block',
        ),
        (set_block('file', 0, ['a', 'b']), 'block 0: file holds a list, not the name'),
        (set_block('events', 0, [[3], [4]]), 'block 0: events hold not numbers; they must be a list of samples'),
        (lambda data: data.update(meg=np.array(3.0)), "'meg' is a ndarray, not a list"),
    ],
)
def test_content_that_cannot_be_used(recordings, write_raw, spoil, words):
    data = recordings()
    spoil(data)
    path = write_raw(data)
    with pytest.raises(DataError, match=words):
        read_data_raw(path)


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (
            set_block('events', 1, np.array([1.5, 5.9])),
            'block 1 (6 s): all events are below the duration in seconds; if they are seconds, multiply by sfreq = 150',
        ),
        (
            set_block('reannot', 0, np.array([500, 500])),
            'block 0: reannot hold a spike more than once; each is counted',
        ),
        (set_block('events', 1, np.array([650, 400])), 'block 1: events are not in order of time; they are used in'),
        (set_block('meg', 0, flat), 'block 0 (MLC13, MLC16): flat channels; interpolate them, or leave out that block'),
        (
            lambda data: data.update(meg=[signal * 1e15 for signal in data['meg']]),
            'meg spans 1.9e+03 (median over channels of maximum - minimum), where tesla would span',
        ),
    ],
)
def test_odd_content_is_used_with_a_warning(recordings, write_raw, make, tmp_path, spoil, words):
    data = recordings()
    assert 'warning' not in (write_raw(data), make())[1]
    spoil(data)
    path = write_raw(data)
    output = make()
    assert output.startswith(f'warning: {path}: {words}')
    assert output.count('warning') == 1
    assert len(list((tmp_path / 'out').iterdir())) == 6


def test_a_spike_annotated_twice_counts_once(recordings, write_raw, make):
    write_raw(recordings(events=((300, 300, 300), (650, 400))))
    assert 'blocks 1: windows kept 3' in make(nb_best_blocks=1)


# ------------------------------------------------------------------------------------------ made before or not
def test_windows_are_made_once_for_the_same_settings_and_input(recordings, write_raw, make, tmp_path):
    data = recordings()
    path = write_raw(data)
    binary = tmp_path / 'out' / 'data_raw_001_b3_windows_bi'
    labels = tmp_path / 'out' / 'data_raw_001_b3_labels.pkl'

    def made_again(**changes):
        output = make(**changes)
        assert 'windows of 1 patients' in output
        assert ('patient 001: kept, made before' in output) == ('patient 001: blocks' not in output)
        return 'made before' not in output

    assert made_again()
    inode = binary.stat().st_ino
    assert not made_again()
    assert binary.stat().st_ino == inode
    path.touch()
    assert not made_again()  # other times, same content

    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data['events'][0][0] += 1
    write_raw(data)
    os.utime(path, ns=times)  # an annotation changed by something that sets back the time
    assert made_again()
    assert not made_again()

    assert made_again(standardize='window')
    assert not made_again(standardize=True)  # another name of it
    assert made_again(artefact_threshold=5.0, reject_artefacts=True)
    assert made_again()
    assert not made_again(artefact_threshold=5.0)  # which has no effect without reject_artefacts
    assert not made_again(include_spike_free=True)
    assert made_again(overwrite=True)
    for spoiled in (labels, binary, labels.with_name('data_raw_001_b3_settings.json')):
        spoiled.write_bytes(spoiled.read_bytes()[:-5])
        assert made_again()
    labels.unlink()
    assert made_again()


def test_every_reader_checks_what_is_written_beside_the_windows(recordings, write_raw, make, tmp_path):
    write_raw(recordings())
    make()
    sidecar = tmp_path / 'out' / 'data_raw_001_b3_settings.json'
    written = json.loads(sidecar.read_text())
    assert (written['sfreq'], written['n_times'], written['n_windows']) == (150, 300, 5)
    assert written['channels'][0] == 'MLC11'
    assert len(written['channels']) == N_CHANNELS
    assert written['counts']['annotated'] == 3
    assert written['input']['name'] == 'data_raw_001.pkl'
    [patient_windows] = open_directory(sidecar.parent, 3, False, MADE_WITH)
    assert len(patient_windows.windows) == 5
    for changes, words in (
        ({'n_windows': 4}, 'speaks of n_windows = 4, not 5'),
        ({'n_times': 301}, 'speaks of n_times = 301'),
        ({'channels': written['channels'][::-1]}, 'speaks of other channels'),
    ):
        sidecar.write_text(json.dumps(written | changes))
        with pytest.raises(DataError, match=words):
            open_directory(sidecar.parent, 3, False, MADE_WITH)


# --------------------------------------------------------------------------------------- several at a time
def test_several_jobs_make_the_same_and_say_the_same_as_one(recordings, write_raw, run_script, paths, tmp_path):
    for number in (1, 2, 3):
        write_raw(recordings(events=((300,), (400, 650)) if number != 2 else ((), ()), seed=number), number)
    seen = []
    for n_jobs in (1, 2):
        ended = run_script('create_windows_clf.py', *paths, f'n_jobs={n_jobs}', 'overwrite=True')
        assert (ended.returncode, ended.stderr) == (0, '')
        files = sorted((tmp_path / 'windows_clf').iterdir())
        assert len(files) == 2 * 6 + 3 * 6  # patients to train on, and all of them for the test
        seen.append((ended.stdout, [(file.name, file.read_bytes()) for file in files]))
    assert seen[0] == seen[1]

    path = write_raw(b'not a pickle', number=2)
    ended = run_script('create_windows_clf.py', *paths, 'n_jobs=2', 'overwrite=True')
    assert ended.returncode == 1
    assert ended.stderr.startswith(f'error: {path}: not a whole pickle')
    assert ended.stderr.count('\n') == 1
    assert 'patient 001: blocks' in ended.stdout
    assert [(file.name, file.read_bytes()) for file in sorted((tmp_path / 'windows_clf').iterdir())] == seen[0][1]


def test_two_runs_cannot_make_the_same_windows_at_once(recordings, write_raw, make, tmp_path):
    write_raw(recordings())
    make()
    with (
        staging_folder_of(tmp_path / 'out' / 'data_raw_001_b3'),
        pytest.raises(DataError, match='another run is making'),
    ):
        make(overwrite=True)
    make(overwrite=True)
    assert len(list((tmp_path / 'out').iterdir())) == 6


# -------------------------------------------------------------------------------------------- killed at any moment
def whole_sets(directory):
    """Numbers of the patients that readers find, each opened and checked."""
    if not any(directory.glob('*_windows_bi')):
        return []
    return [patient_windows.subject for patient_windows in open_directory(directory, 3, False, MADE_WITH)]


class Killed(BaseException):
    pass


@pytest.mark.parametrize('before', [False, True], ids=['first time', 'made anew'])
def test_a_run_killed_at_any_step_shows_readers_a_whole_set_or_none(
    recordings, write_raw, make, tmp_path, monkeypatch, before
):
    write_raw(recordings())
    directory = tmp_path / 'out'
    n_steps = len(WINDOW_FILES) * (1 + before)
    for step in range(n_steps):
        if before:
            make(standardize='window')
        replace, calls = os.replace, []

        def killed_before_step(old, new, step=step, replace=replace, calls=calls):
            calls.append(new)
            if len(calls) > step:
                raise Killed
            replace(old, new)

        with monkeypatch.context() as patch:
            patch.setattr('os.replace', killed_before_step)
            for clears_up in ('data_processing.remove_patient_windows', 'shutil.rmtree'):  # not when killed
                patch.setattr(clears_up, lambda *args, **kwargs: None)
            with pytest.raises(Killed):
                make()
        names = {file.name for file in directory.iterdir() if not file.name.startswith('.')}
        if 'data_raw_001_b3_windows_bi' in names:
            assert before
            assert step == 0
            assert len(names) == 6
            assert len(open_directory(directory, 3, False, MADE_WITH | {'standardize': 'window'})) == 1
        assert 'patient 001: blocks' in make()  # made anew, as it was not finished
        assert len(open_directory(directory, 3, False, MADE_WITH)) == 1
        assert len(list(directory.iterdir())) == 6
        if not before:
            for file in directory.iterdir():
                file.unlink()


def test_killing_a_run_at_random_moments(recordings, write_raw, make, tmp_path):
    numbers = list(range(1, 7))
    for number in numbers:
        write_raw(recordings(lengths=(4000,), events=((1500,),), seed=number), number)
    directory = tmp_path / 'out'
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['data_processing'])
    arguments = OPTIONS | {'path_raw_data': tmp_path / 'raw', 'directory': directory, 'overwrite': True}
    rng = np.random.default_rng(0)
    for n_whole in range(6):
        run = context.Process(target=functools.partial(make_window_files, **arguments))
        run.start()
        while run.is_alive() and len(list(directory.glob('*_windows_bi'))) < n_whole:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.06))  # about as long as one patient takes
        run.kill()
        run.join()
        assert len(whole_sets(directory)) >= n_whole
        for file in directory.glob('data_raw*'):
            file.unlink()
    output = make(n_jobs=1)
    assert output.count('blocks 0: windows kept') == len(numbers)
    assert whole_sets(directory) == numbers
    assert len(list(directory.iterdir())) == 6 * len(numbers)  # nothing is left of the killed runs


# ------------------------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize('zscore', [False, True])
def test_batches_do_not_depend_on_preload_or_workers(recordings, write_raw, make, tmp_path, zscore):
    for number in (1, 2):
        data = recordings(seed=number)
        data['meg'][0][:, :300] = 1e-13  # a window without variance
        write_raw(data, number)
    make(standardize=False)
    patients = open_directory(tmp_path / 'out', 3, False, MADE_WITH | {'standardize': False})
    table = id_table(patients).iloc[1:]
    seen = []
    for preload, workers in ((False, 0), (True, 0), ('auto', 2), (False, 2)):
        dataset = WindowDataset(patients, table, zscore=zscore, noise=0.2, seed=5, preload=preload)
        assert (dataset.preloaded is None) == (preload is False)
        loader = batches(dataset, batch_size=4, shuffle=True, seed=5, num_workers=workers)  # the last is of one window
        dataset.epoch = 1
        seen.append([torch.stack(batch) for batch in loader])
    assert [batch.shape[1] for batch in seen[0]] == [4, 4, 1]
    for of_loader in seen[1:]:
        assert all(torch.equal(batch, expected) for batch, expected in zip(of_loader, seen[0], strict=True))
    clean = WindowDataset(patients, table, zscore=zscore, preload=True).preloaded.double()
    stored = torch.from_numpy(np.concatenate([patient_windows.windows for patient_windows in patients])[1:]).double()
    if zscore:
        std, mean = torch.std_mean(stored, dim=(1, 2), correction=0, keepdim=True)
        is_flat = stored.amax((1, 2)) == stored.amin((1, 2))
        stored = torch.where(is_flat[:, None, None], 0.0, (stored - mean) / std)
    assert is_flat.any() if zscore else True
    torch.testing.assert_close(clean, stored, rtol=1e-5, atol=1e-5)


def test_windows_are_held_where_they_fit(monkeypatch):
    free = {'cuda': 100, 'cpu': 1000}
    monkeypatch.setattr('timeseries_dataset.free_memory', lambda of_device: free[of_device.type])
    gpu, cpu = torch.device('cuda'), torch.device('cpu')
    assert place_of_windows(25, 'auto', gpu) == gpu
    assert place_of_windows(26, 'auto', gpu) == cpu
    assert place_of_windows(251, 'auto', gpu) is None
    assert place_of_windows(251, 'auto', cpu) is None
    assert place_of_windows(100, True, gpu) == gpu
    assert place_of_windows(1, False, gpu) is None
    with pytest.raises(SettingError, match=r'preload = True: the windows take .* cuda has .* left: set preload to'):
        place_of_windows(101, True, gpu)
