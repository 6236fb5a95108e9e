"""Signals that end a script: at once, or after the step under way."""

import contextlib
import signal
from collections.abc import Generator


class Interrupted(BaseException):
    """A signal has ended a script that can go on from there: status 75. No `except Exception` catches it."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP has ended a script that cannot go on from there; its argument is the signal."""


# Exit status of what should be tried again (EX_TEMPFAIL of sysexits.h), by which job scripts know an interrupted run.
INTERRUPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class _Request:
    """What this process knows of a signal that asks it to end."""

    by: str | None = None  # name of the signal
    is_deferred = False


_request = _Request()


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """Within this block, the signals that end a script raise `Interrupted`.

    They are SIGTERM, SIGUSR1 (Slurm's warning before the time limit), SIGINT (Ctrl-C) and SIGHUP (a closed terminal).
    """

    def handle(number, frame):
        _request.by = signal.Signals(number).name
        if not _request.is_deferred:
            check_interruption()

    _request.by, _request.is_deferred = None, False
    ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else []  # as nohup asks
    earlier = {number: signal.signal(number, handle) for number in SIGNALS if number not in ignored}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def finishing_steps() -> Generator[None]:
    """Within this block a signal waits: `check_interruption` raises it, or the end of the block."""
    _request.is_deferred = True
    try:
        yield
    finally:
        _request.is_deferred = False
    check_interruption()


def asked_to_end() -> bool:
    """Whether a signal has asked the script to end."""
    return _request.by is not None


def check_interruption() -> None:
    """Raise `Interrupted` if a signal has asked the script to end.

    Raises
    ------
    Interrupted
        Its argument is the name of the signal.
    """
    if asked_to_end():
        raise Interrupted(_request.by)


@contextlib.contextmanager
def terminable() -> Generator[None]:
    """Within this block SIGTERM and SIGHUP raise `Terminated`, so that temporary files are removed on the way out."""

    def handle(number, frame):
        raise Terminated(signal.Signals(number))

    # What is ignored, as by nohup, stays ignored.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
