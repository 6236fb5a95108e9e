"""Whatever ends a script, one line on stderr says what and where, and the exit status is the contract's."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import create_windows_ae
from data_processing import best_blocks
from system.faults import describe
from utils import ROOT, run_script


def huge_array():
    np.empty(2**55)


def huge_tensor():
    torch.empty(2**55, dtype=torch.uint8)


def endless_recursion():
    endless_recursion()


def gpu_out_of_memory():
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual')


def killed_reader():
    raise RuntimeError('DataLoader worker (pid 4711) is killed by signal: Killed. ')


def peer_has_ended():
    raise torch.distributed.DistNetworkError('Failed to recv, got 0 bytes. Connection was likely closed.')


def closed_reader():
    raise BrokenPipeError(32, 'Broken pipe')


def odd_words():
    raise ValueError('first line\nsecond line of caf\udce9')


@pytest.mark.parametrize(
    ('act', 'status', 'words'),
    [
        (lambda: best_blocks(None, 3), 1, 'has no len() in data_processing.py:'),
        (odd_words, 1, 'unexpected ValueError: first line in '),
        (endless_recursion, 1, 'unexpected RecursionError: maximum recursion depth exceeded in '),
        (huge_array, 2, 'too little memory (MemoryError: Unable to allocate 256. PiB'),
        (huge_tensor, 2, 'too little memory (RuntimeError: [enforce fail'),
        (gpu_out_of_memory, 2, "or patients or device='cpu'"),
        (killed_reader, 2, 'set num_workers lower'),
        (peer_has_ended, 1, 'another process of this run has ended'),
        (closed_reader, 1, 'standard output: its reader has ended'),
        (lambda: (ROOT / 'nowhere').read_text(), 1, f'{ROOT}/nowhere: No such file or directory'),
    ],
)
def test_any_fault_ends_in_one_line(monkeypatch, capsys, act, status, words):
    monkeypatch.setattr(create_windows_ae, 'create_windows', lambda *_, **__: act())
    monkeypatch.setattr('sys.argv', ['create_windows_ae.py'])
    with pytest.raises(SystemExit) as ended:
        run_script(create_windows_ae.main, '')
    stderr = capsys.readouterr().err
    assert ended.value.code == status
    assert stderr.startswith('error: ')
    assert stderr.count('\n') == 1
    assert words in stderr
    assert ('report this line' in stderr) == ('unexpected' in stderr)


def test_the_traceback_is_shown_on_request(monkeypatch, capsys):
    monkeypatch.setattr(create_windows_ae, 'create_windows', lambda *_, **__: best_blocks(None, 3))
    monkeypatch.setattr('sys.argv', ['create_windows_ae.py'])
    for wanted in ('1', '0'):
        monkeypatch.setenv('MEG_DEBUG', wanted)
        with pytest.raises(SystemExit):
            run_script(create_windows_ae.main, '')
        stderr = capsys.readouterr().err
        assert ('Traceback (most recent call last)' in stderr) == (wanted == '1')
        assert stderr.splitlines()[-1].startswith('error: unexpected TypeError')


class Faulty(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return best_blocks(None, index)


def test_faults_of_worker_processes_are_placed_where_they_arose():
    with ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as pool:
        fault = pool.submit(best_blocks, None, 3).exception()
    assert 'in data_processing.py:' in describe(fault, ROOT)[0]
    with pytest.raises(TypeError) as raised:
        list(DataLoader(Faulty(), num_workers=1, multiprocessing_context='fork'))
    message, status = describe(raised.value, ROOT)
    assert status == 1
    assert 'unexpected TypeError' in message
    assert 'in data_processing.py:' in message


def test_an_output_that_takes_nothing():
    command = [sys.executable, ROOT / 'create_windows_ae.py', '--help']
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open('/dev/full', 'w') as full, os.fdopen(write_end, 'w') as unread:
        for output, words in ((unread, 'standard output: its reader has ended'), (full, 'No space left on device')):
            ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=300)
            assert (ended.returncode, ended.stderr.count('\n')) == (1, 1)
            assert words in ended.stderr
    closed = f'{sys.executable} {ROOT / "create_windows_ae.py"} seeed=3 >&- 2>/dev/full'
    assert subprocess.run(closed, shell=True, timeout=300).returncode == 2
