"""Temporary files, locks, staging folders and backups: what keeps files whole when processes meet or die."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np


# ------------------------------------------------------------------------------------------------- files
@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a temporary file beside `path`, which replaces it when the block ends and is removed when the block fails.

    A link stays a link to the file that is replaced. The new file has the mode of the earlier one and, where this user
    may give it away, its owner. What killed processes left of `path` is removed.

    Yields
    ------
    Path
        The temporary file, empty.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary, descriptor = _new_temporary(target)
    try:
        mode = _take_over_owner(target, temporary)
        yield temporary
        sync(temporary)
        temporary.chmod(mode)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _new_temporary(target):
    """Make a file beside `target`, locked as long as its descriptor is open; return its path and its descriptor."""
    # Its name ends in that of the target, because matplotlib, MNE and others choose a format by it.
    while True:
        descriptor, name = tempfile.mkstemp(prefix='.', suffix=f'.tmp.{target.name}', dir=target.parent)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process removes it as a leftover
            os.close(descriptor)
            continue
        except OSError:  # a file system without locks, where nobody removes leftovers
            return Path(name), descriptor
        if os.fstat(descriptor).st_nlink:
            return Path(name), descriptor
        os.close(descriptor)


def _remove_leftovers(target):
    """Remove temporary files of `target` that no process holds any more."""
    for leftover in target.parent.glob(f'.*.tmp.{glob.escape(target.name)}'):
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(descriptor)


def _take_over_owner(target, temporary):
    """Give `temporary` owner and access lists of `target`, as far as this user may; return the mode for it."""
    if not target.exists():
        # mkstemp makes private files; results are for the group, as the umask says.
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
    status = target.stat()
    for owner in ((-1, status.st_gid), (status.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.chown(temporary, *owner)
    shutil.copystat(target, temporary)
    temporary.chmod(0o600)
    return stat.S_IMODE(status.st_mode)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk, as far as the file system can.

    What is on the disk outlasts a power cut.

    Raises
    ------
    OSError
        The disk is full, or fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as fault:
        if fault.errno not in (errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def json_text(content: Any) -> str:
    """Indented JSON, NaN as null, which every reader knows."""
    return json.dumps(_without_nan(content), indent=2, default=_plain) + '\n'


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return None
    return value


# ------------------------------------------------------------------------------------- locks and folders
@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Generator[None]:
    """Within this block, keep out other processes that ask for the same lock.

    The lock is a hidden file `.<name>.lock` beside `path`, removed at the end. The system frees that of a killed
    process.

    Raises
    ------
    BlockingIOError
        Another process has the lock, and `wait` is False.
    OSError
        The lock cannot be made there; names `path`.
    """
    lock = path.with_name(f'.{path.name}.lock')
    how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened for writing, because network file systems do not lock what is only read.
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as fault:
            raise OSError(fault.errno, fault.strerror, str(path)) from fault
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError as fault:
            print(f'warning: {path}: no locks on this file system ({fault.strerror}): one job at a time, please')
            break
        except BaseException:  # a signal while it waits
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # of a lock that another process has just removed
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def staging_folder(path: Path, *, wait: bool = True) -> Generator[Path]:
    """Give an empty hidden folder `.<name>.tmp` beside `path`, for this process alone.

    What a killed process left in it is removed at the beginning, and all of it at the end.

    Yields
    ------
    Path
        The folder.

    Raises
    ------
    BlockingIOError
        Another process uses it, and `wait` is False.
    OSError
        It cannot be made.
    """
    staging = path.with_name(f'.{path.name}.tmp')
    with locked(path, wait=wait):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename a finished folder to `folder`, and remove the earlier folder of that name, if there is one.

    No file system of every kind exchanges two folders in one step. A process killed between the two renames here leaves
    the earlier folder under a hidden name, from which `restore_folder` brings it back.
    """
    earlier = folder.with_name(f'.{folder.name}.old')
    try:
        if folder.exists():
            shutil.copymode(folder, new)
            os.rename(folder, earlier)
        os.rename(new, folder)
    except BaseException:
        restore_folder(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Clean up behind a process that was killed in `replace_folder`."""
    earlier = folder.with_name(f'.{folder.name}.old')
    if earlier.exists() and folder.exists():
        shutil.rmtree(earlier)
    elif earlier.exists():
        os.rename(earlier, folder)


# ----------------------------------------------------------------------------------------------- backups
def back_up(path: Path) -> Path:
    """Give a file a second name, the next free one of `<name>.1`, `<name>.2`, ...

    Two processes never use the same name.

    Returns
    -------
    Path
        The new name.
    """
    while True:
        backup = free_name(path)
        try:
            link_or_copy(path, backup)
        except FileExistsError:
            continue
        return backup


def free_name(*paths: Path) -> Path:
    """The first path with a number behind its name (`<name>.1`, `<name>.2`, ...) that none of the paths has yet."""
    number = 1
    while any(os.path.lexists(f'{path}.{number}') for path in paths):
        number += 1
    return paths[0].with_name(f'{paths[0].name}.{number}')


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file, or a link, a second name; copy it where the file system has no hard links.

    Raises
    ------
    FileExistsError
        `target` exists.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
            return
        with open(source, 'rb') as old, open(target, 'xb') as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())
        shutil.copystat(source, target)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()
