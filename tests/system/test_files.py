"""Files stay whole, and what they were to others, when processes die, meet, or are sent a signal."""

import os
import signal
import stat
import sys
import threading

import pytest
from common import default_signals, in_child, kill, names

from system.files import back_up, locked, replacing, staging_folder
from utils import DataError, run_script, writing


def write_and(act, path):
    with writing(path) as temporary:
        temporary.write_text('half')
        act()


# ------------------------------------------------------------------------------------------- temporary files
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    path = tmp_path / 'data_raw_001.pkl'
    path.write_text('before')
    assert in_child(lambda: write_and(kill, path)) == -signal.SIGKILL
    assert path.read_text() == 'before'
    [left] = [name for name in names(tmp_path) if name != path.name]
    with writing(tmp_path / 'data_raw_0011.pkl') as temporary:
        temporary.write_text('of another file')
    assert left in names(tmp_path)
    with writing(path) as temporary:
        assert left not in names(tmp_path)
        temporary.write_text('after')
    assert path.read_text() == 'after'
    assert names(tmp_path) == [path.name, 'data_raw_0011.pkl']


def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    path = tmp_path / 'x.csv'
    with writing(path) as first:
        first.write_text('first')
        assert in_child(lambda: path.write_text('early') and write_and(lambda: None, path)) == 0
        assert first.exists()
    assert path.read_text() == 'first'
    assert names(tmp_path) == ['x.csv']


@pytest.mark.parametrize('mode', [0o600, 0o640, 0o444])
def test_mode_owner_and_link_stay(tmp_path, mode):
    path, link = tmp_path / 'elsewhere' / 'x.csv', tmp_path / 'x.csv'
    path.parent.mkdir()
    path.write_text('before')
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    owner = path.stat().st_uid, path.stat().st_gid
    link.symlink_to(path)
    with writing(link) as temporary:
        temporary.write_text('after')
    assert link.is_symlink()
    assert path.read_text() == 'after'
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    assert names(tmp_path) == ['elsewhere', 'x.csv']
    assert names(path.parent) == ['x.csv']


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    umask = os.umask(0o027)
    try:
        with writing(tmp_path / 'x.csv') as temporary:
            temporary.write_text('')
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / 'x.csv').stat().st_mode) == 0o640


def test_content_and_name_are_on_the_disk_before_the_block_is_left(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr('system.files.sync', lambda path: steps.append(path.name))
    replace = os.replace
    monkeypatch.setattr(os, 'replace', lambda old, new: (steps.append('rename'), replace(old, new)))
    with replacing(tmp_path / 'x.csv') as temporary:
        temporary.write_text('')
    assert steps == [temporary.name, 'rename', tmp_path.name]


def test_a_full_disk_names_the_file_that_the_user_knows(tmp_path, monkeypatch):
    path = tmp_path / 'x.csv'
    path.write_text('before')

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(DataError, match=rf'^{path}: cannot be written \(No space left'), writing(path) as temporary:
        temporary.write_text('after')
    assert path.read_text() == 'before'
    assert names(tmp_path) == ['x.csv']


@pytest.mark.parametrize(
    ('number', 'status', 'words'),
    [
        (signal.SIGTERM, 143, 'error: ended by SIGTERM'),
        (signal.SIGHUP, 129, 'error: ended by SIGHUP'),
        (signal.SIGINT, 130, 'error: interrupted'),
    ],
)
def test_a_signal_leaves_no_temporary_file(tmp_path, number, status, words):
    path, faults = tmp_path / 'x.csv', tmp_path / 'faults'

    def main(_):
        with staging_folder(tmp_path / 'folder') as staging:
            (staging / 'y.csv').write_text('half')
            write_and(lambda: os.kill(os.getpid(), number), path)

    def script():
        default_signals()
        sys.argv, sys.stderr = ['script'], faults.open('w')
        run_script(main, '')

    assert in_child(script) == status
    assert faults.read_text() == words + '\n'
    assert names(tmp_path) == ['faults']


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path):
    def script():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        sys.argv = ['script']
        run_script(lambda _: write_and(lambda: os.kill(os.getpid(), signal.SIGHUP), tmp_path / 'x.csv'), '')

    assert in_child(script) == 0
    assert names(tmp_path) == ['x.csv']


# ----------------------------------------------------------------------------------------- locks and folders
def test_a_lock_lets_one_process_in_and_a_killed_one_holds_nothing(tmp_path):
    path = tmp_path / 'counter'
    path.write_text('0')

    def count():
        for _ in range(100):
            with locked(path):
                path.write_text(str(int(path.read_text()) + 1))

    def die():
        with locked(path):
            kill()

    assert in_child(die) == -signal.SIGKILL
    threads = [threading.Thread(target=lambda: in_child(count)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == '300'
    assert names(tmp_path) == ['counter']


def test_a_lock_can_be_asked_for_without_waiting(tmp_path):
    with locked(tmp_path / 'x'), pytest.raises(BlockingIOError), locked(tmp_path / 'x', wait=False):
        pass


def test_a_staging_folder_is_emptied_of_what_a_killed_process_left(tmp_path):
    def die():
        with staging_folder(tmp_path / 'x') as staging:
            (staging / 'left').mkdir()
            (staging / 'left' / 'behind').write_text('')
            kill()

    assert in_child(die) == -signal.SIGKILL
    with staging_folder(tmp_path / 'x') as staging:
        assert names(staging) == []
    assert names(tmp_path) == []


# --------------------------------------------------------------------------------------------------- backups
@pytest.mark.parametrize('links', [True, False])
def test_backups_take_the_next_free_name(tmp_path, monkeypatch, links):
    if not links:  # as on some file systems

        def refuse(*arguments, **keywords):
            raise OSError(1, 'Operation not permitted')

        monkeypatch.setattr(os, 'link', refuse)
    path = tmp_path / 'MarkerFile.mrk'
    path.write_text('one')
    path.chmod(0o600)
    (tmp_path / 'MarkerFile.mrk.1').symlink_to('nowhere')
    assert back_up(path).name == 'MarkerFile.mrk.2'
    assert back_up(path).name == 'MarkerFile.mrk.3'
    assert (tmp_path / 'MarkerFile.mrk.2').read_text() == 'one'
    assert stat.S_IMODE((tmp_path / 'MarkerFile.mrk.2').stat().st_mode) == 0o600
    assert (tmp_path / 'MarkerFile.mrk.1').is_symlink()
