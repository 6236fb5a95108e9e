"""The message about an unexpected error: what it is, where in the code, and the way out."""

import errno
import re
import traceback
from pathlib import Path

REPORT = 'this is a fault of the program: report this line, see "Reporting a fault" in README.md'
LOWER = (
    'lower n_jobs, num_workers, batch_size, classifier_batch_size or width, or take fewer or shorter recordings, '
    'blocks or patients'
)
OUT_OF_MEMORY = "out of memory|can't allocate memory|not enough memory"
WORKER_KILLED = r'DataLoader worker .* (is killed|exited unexpectedly)|insufficient shared memory'
PEER_ENDED = 'Connection closed by peer|Connection reset by peer|Connection was likely closed|recvValue failed'


def describe(fault: Exception, root: Path) -> tuple[str, int]:
    """Say in one line what ended a script, and give its exit status.

    Parameters
    ----------
    fault : Exception
        Not an error of this project: those have messages of their own.
    root : Path
        Folder of the code.

    Returns
    -------
    message : str
    status : int
        1 where the data, the machine or the program is at fault; 2 where a setting is.
    """
    text = str(fault)
    if isinstance(fault, BrokenPipeError) and fault.filename is None:
        return 'standard output: its reader has ended (broken pipe); write it to a file, or read all of it', 1
    if isinstance(fault, MemoryError) or getattr(fault, 'errno', None) == errno.ENOMEM:
        return f'too little memory ({_name_and_message(fault)}): {LOWER}', 2
    if isinstance(fault, OSError):
        return f'{fault.filename or f"input or output, in {place_in_code(fault, root)}"}: {fault.strerror or fault}', 1
    if isinstance(fault, RuntimeError):  # as PyTorch raises for all of these
        if re.search(OUT_OF_MEMORY, text, re.IGNORECASE):
            on_cpu = " or device='cpu'" if 'CUDA' in text else ''
            return f'too little memory ({_name_and_message(fault)}): {LOWER}{on_cpu}', 2
        if re.search(WORKER_KILLED, text):
            return 'a process that reads batches was killed, as when the memory is used up: set num_workers lower', 2
        if re.search(PEER_ENDED, text):
            return 'another process of this run has ended: see what it says', 1
    return f'unexpected {_name_and_message(fault)} in {place_in_code(fault, root)}; {REPORT}', 1


def _name_and_message(fault):
    """Name of an exception, and the beginning of its message."""
    message = str(fault).strip().split('\n', 1)[0]
    return type(fault).__name__ + (f': {message[:200]}' if message else '')


def place_in_code(fault: BaseException, root: Path) -> str:
    """Where in this project's code a fault came up, as file:line, in this process or in a worker of it."""
    cause = fault.__cause__
    if cause is not None and cause.__traceback__ is None:  # a worker's, which comes as text
        trace = str(cause)
    else:
        trace = ''.join(traceback.format_exception(fault))
    frames = re.findall(rf'File "{re.escape(str(root))}/((?!\.venv/)[^"]+)", line (\d+)', trace)
    return ':'.join(frames[-1]) if frames else 'its libraries'
