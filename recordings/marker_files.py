"""CTF marker files (MarkerFile.mrk): reading them, and writing a class of markers into one."""

import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from system.files import back_up, locked
from utils import DataError, write_faults, writing

if TYPE_CHECKING:
    from recordings.layout import Layout


MARKER_FILE = 'MarkerFile.mrk'
CLASS_START = b'CLASSGROUPID:'  # first line of each class of a marker file
MARKER_TITLE = b'NUMBER OF MARKERS:'
CLASS_TITLE = b'NUMBER OF CLASSES:'  # the same in a file of trial classes


class MarkerClass(NamedTuple):
    """A class of a CTF marker file: its name, (trial, seconds from the sync point) per marker, and its bytes."""

    name: str
    markers: list[tuple[int, float]]
    content: bytes


def read_marker_file(path: str | Path) -> tuple[bytes, list[MarkerClass]]:
    """Read a CTF marker file, whatever its line ends (MNE's reader hangs or gives NaN on a faulty one).

    Returns
    -------
    head : bytes
        The lines before the first class.
    classes : list of MarkerClass
        In the order of the file.

    Raises
    ------
    DataError
        The file is absent or cut off, its counts are wrong, or a time is not written with a decimal point.
    """
    if not Path(path).is_file():
        raise DataError(f'{path}: no such file, or a link to nothing; restore it, or remove the link')
    head, blocks = _split_classes(path, MARKER_TITLE)
    return b''.join(head), [_marker_class(path, block) for block in blocks]


def read_class_file(path: str | Path) -> dict[str, list[int]]:
    """Read the classes of trials of a CTF recording (ClassFile.cls).

    Returns
    -------
    dict of lists of int
        Name to trial numbers, counted from 0.

    Raises
    ------
    DataError
        The file is cut off, or its counts are wrong.
    """
    if not Path(path).read_bytes().strip():
        return {}
    classes = {}
    for lines in _split_classes(path, CLASS_TITLE)[1]:
        name, rows = _class_rows(path, lines, b'TRIALS')
        for row in rows:
            if not re.fullmatch(rb'\s*\+?\d{1,9}\s*', row):
                raise DataError(f'{path}: class {name!r}: {as_text(row.strip())!r} is no trial number; correct it')
        classes[name] = [*classes.get(name, []), *map(int, rows)]
    return classes


def _split_classes(path, title):
    """Lines before the first class, and those of every class, whose number stands below the title."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line.rstrip() == CLASS_START]
    head = lines[: starts[0]] if starts else lines
    n_classes = _marker_field(path, head, title, number=True)
    if n_classes != len(starts):
        raise DataError(
            f'{path}: {title.decode().rstrip(":")} is {n_classes}, but {len(starts)} classes follow; the file is cut '
            'off, or correct the number'
        )
    return head, [lines[start:stop] for start, stop in itertools.pairwise([*starts, len(lines)])]


def _marker_field(path, lines, title, *, number=False):
    """The line after the title, as text or as a number."""
    stripped = [line.rstrip() for line in lines]
    if title not in stripped[:-1]:
        raise DataError(f'{path}: no line {title.decode()!r} with a value below; this is not a whole CTF file')
    value = stripped[stripped.index(title) + 1].strip()
    if number and not re.fullmatch(rb'\+?[0-9]{1,9}', value):
        raise DataError(f'{path}: {title.decode()} {as_text(value)!r} is no number; correct it')
    return int(value) if number else as_text(value)


def _class_rows(path, lines, what):
    """Name of a class, and the lines of its list of samples or trials."""
    name = _marker_field(path, lines, b'NAME:')
    count = b'NUMBER OF ' + what + b':'
    n_rows = _marker_field(path, lines, count, number=True)
    _marker_field(path, lines, b'LIST OF ' + what + b':')
    start = [line.rstrip() for line in lines].index(b'LIST OF ' + what + b':') + 2
    rows = list(itertools.takewhile(bytes.strip, lines[start:]))
    if len(rows) != n_rows:
        raise DataError(
            f'{path}: class {name!r}: {as_text(count[:-1])} is {n_rows}, but {len(rows)} follow; the file is cut off, '
            'or correct the number'
        )
    return name, rows


def _marker_class(path, lines):
    name, rows = _class_rows(path, lines, b'SAMPLES')
    markers = []
    for row in rows:
        match = re.fullmatch(rb'\s*(\+?\d{1,9})\s+([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*', row)
        if not match:
            raise DataError(
                f'{path}: class {name!r}: {as_text(row.strip())!r} is no trial number and time in seconds; write times '
                'as plain numbers with a decimal point'
            )
        markers.append((int(match[1]), float(match[2])))
    return MarkerClass(name, markers, b''.join(lines))


def as_text(content: bytes) -> str:
    """Text of a CTF file: UTF-8, or else Latin-1."""
    try:
        return content.decode('utf-8')
    except UnicodeDecodeError:
        return content.decode('latin-1')


class NewClass(NamedTuple):
    """A class to write: its name, its colour, and the onsets of its markers in s from the recording's first sample."""

    name: str
    color: str
    onsets: np.ndarray


def write_marker_file(
    path: str | Path, onsets: np.ndarray, layout: 'Layout', *, name: str, color: str, source: str | Path | None = None
) -> Path | None:
    """Write one class of markers into a CTF marker file, as `write_marker_classes` does with several."""
    return write_marker_classes(path, [NewClass(name, color, onsets)], layout, source=source)


def write_marker_classes(
    path: str | Path, new: list[NewClass], layout: 'Layout', *, source: str | Path | None = None
) -> Path | None:
    """Write classes of markers into a CTF marker file.

    The other classes of an existing file stay byte for byte; a class of the same name is replaced in its place. What
    an earlier call wrote as <name>_<number>, with a name of `new`, goes unless it is in `new` again. The existing file
    is kept under the next free name MarkerFile.mrk.1, .2, ... Where `path` is a link, all this happens to the file that
    it points to. No other process that calls this function can change the file meanwhile.

    Parameters
    ----------
    path : path
        The marker file to write.
    new : list of NewClass
    layout : Layout
        Of the CTF recording.
    source : path, optional
        Marker file whose other classes are copied, instead of those of `path`.

    Returns
    -------
    Path or None
        The backup, if there was a file.

    Raises
    ------
    DataError
        The existing file is faulty or cannot be replaced (nothing is written), or the recording is no CTF recording.
    """
    if layout.trial is None:
        raise DataError(f'{layout.path}: no CTF recording; its detections are in the CSV and -annot.fif files')
    check_replaceable(path)
    path = Path(path).resolve()
    backup = None
    with write_faults(path), locked(path):
        existing = source or (path if path.exists() else None)
        content = _with_classes(existing, new, layout)
        with writing(path) as temporary:
            temporary.write_bytes(content)
            if path.exists():
                backup = back_up(path)
    return backup


def check_replaceable(path: str | Path) -> None:
    """Check that a marker file can be replaced.

    Raises
    ------
    DataError
        It is a link to nothing, or belongs to another user or group.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise DataError(f'{path}: a link to {path.resolve()}, which is not there; restore that file or remove the link')
    status = path.stat() if path.exists() else None
    groups = {os.getegid(), *os.getgroups()}
    if status and os.geteuid() and (status.st_uid != os.geteuid() or status.st_gid not in groups):
        raise DataError(
            f'{path}: belongs to another user or group, and would no longer if this script wrote it; let its owner run '
            'this, or leave out markers_into_recording'
        )


def _with_classes(existing, new, layout):
    """Content of a marker file, or where None of a new one, with classes added to it or replaced in it."""
    if existing is None:
        head = b'PATH OF DATASET:\n' + os.fsencode(layout.path.resolve()) + b'\n\n\n' + MARKER_TITLE + b'\n0\n\n\n'
        classes = []
    else:
        head, classes = read_marker_file(existing)
    names = [new_class.name for new_class in new]
    numbered = re.compile('|'.join(re.escape(name) + '_[0-9]+' for name in names))
    classes = [c for c in classes if c.name in names or not numbered.fullmatch(c.name)]
    end = head.splitlines(keepends=True)[0].lstrip(head.splitlines()[0])
    numbers = [_class_number(marker_class) for marker_class in classes]
    contents = [marker_class.content for marker_class in classes]
    for name, color, onsets in new:
        own = next((i for i, marker_class in enumerate(classes) if marker_class.name == name), len(contents))
        if own == len(contents):
            numbers.append(max(numbers, default=0) + 1)
        contents[own : own + 1] = [_class_content(name, color, numbers[own], onsets, layout).replace(b'\n', end)]
        before = contents[own - 1] if own else head
        if not before.endswith((b'\n', b'\r')):
            contents[own] = end + contents[own]
    lines = head.splitlines(keepends=True)
    count = [line.rstrip() for line in lines].index(MARKER_TITLE) + 1
    lines[count] = lines[count].replace(lines[count].strip(), str(len(contents)).encode())
    return b''.join(lines) + b''.join(contents)


def _class_number(marker_class: MarkerClass) -> int:
    words = [line.strip() for line in marker_class.content.splitlines()]
    number = words[words.index(b'CLASSID:') + 1] if b'CLASSID:' in words[:-1] else b''
    return int(number) if re.fullmatch(rb'\+?[0-9]{1,9}', number) else 0


def _class_content(name: str, color: str, number: int, onsets: np.ndarray, layout: 'Layout') -> bytes:
    assert layout.trial is not None  # write_marker_file refuses other recordings
    n_samples, before_sync = layout.trial
    trials, samples = np.divmod(np.rint(np.sort(onsets) * layout.sfreq).astype(np.int64), n_samples)
    rows = [
        f'{trial:20d}\t\t\t\t{(sample - before_sync) / layout.sfreq:+20.12f}\n'
        for trial, sample in zip(trials, samples, strict=True)
    ]
    return (
        f'CLASSGROUPID:\n3\nNAME:\n{name}\nCOMMENT:\n\nCOLOR:\n{color}\nEDITABLE:\nYes\nCLASSID:\n{number}\n'
        f'NUMBER OF SAMPLES:\n{len(rows)}\nLIST OF SAMPLES:\nTRIAL NUMBER\t\tTIME FROM SYNC POINT (in seconds)\n'
        f'{"".join(rows)}\n\n'
    ).encode()
