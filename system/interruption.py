"""Signals that end a script: at once, or after the step under way."""

import contextlib
import signal
from collections.abc import Iterator


class Interrupted(BaseException):
    """A signal has ended the script, which can go on where it was: status 75. No `except Exception` catches it."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP has ended a script that cannot go on where it was; its argument is the signal."""


# Exit status of what should be tried again (EX_TEMPFAIL of sysexits.h), by which job scripts know an interrupted run.
INTERRUPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_asked = {'by': None, 'deferred': False}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within this block SIGTERM, SIGUSR1 (Slurm's warning before the time limit), SIGINT (Ctrl-C) and SIGHUP (a closed
    terminal) raise `Interrupted`.
    """

    def handle(number, frame):
        _asked['by'] = signal.Signals(number).name
        if not _asked['deferred']:
            check_interruption()

    _asked.update(by=None, deferred=False)
    ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else []  # as nohup asks
    earlier = {one: signal.signal(one, handle) for one in SIGNALS if one not in ignored}
    try:
        yield
    finally:
        for one, handler in earlier.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def finishing_steps() -> Iterator[None]:
    """Within this block a signal waits: `check_interruption` raises it, or the end of the block."""
    _asked['deferred'] = True
    try:
        yield
    finally:
        _asked['deferred'] = False
    check_interruption()


def asked_to_end() -> bool:
    """Whether a signal has asked the script to end."""
    return _asked['by'] is not None


def check_interruption() -> None:
    """Raise `Interrupted` if a signal has asked the script to end."""
    if asked_to_end():
        raise Interrupted(_asked['by'])


@contextlib.contextmanager
def terminable() -> Iterator[None]:
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
