"""Standard output and standard error of a script."""

import os
import sys


def prepare_output() -> None:
    """Let names of files be printed whatever bytes they hold, and scripts run whose output was closed (`>&-`)."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name) or open(os.devnull, 'w')  # noqa: SIM115, to the end
        stream.reconfigure(errors='backslashreplace')
        setattr(sys, name, stream)


def flush_output() -> None:
    """Write out what was printed, or drop it where that fails, because Python would try again at its end.

    Raises
    ------
    OSError
        It cannot be written, as when the reader of a pipe has ended.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
