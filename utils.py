"""What every script shares: errors and exit status, whole-or-nothing files, device, precision, seed."""

import contextlib
import os
import random
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from system.faults import describe
from system.files import json_text, replacing
from system.interruption import INTERRUPTED, Interrupted, Terminated, terminable
from system.output import flush_output, prepare_output

if TYPE_CHECKING:
    import torch


ROOT = Path(__file__).resolve().parent


class DataError(Exception):
    """The data is at fault: the script ends with status 1."""


class SettingError(Exception):
    """The command or a setting is at fault: the script ends with status 2."""


def run_script(main: Callable[[list[str]], None], description: str) -> None:
    """Run a script's main function and end the process with an exit status.

    The status is 0 done, 1 data at fault, 2 command or setting at fault, 75 interrupted (the script can go on), or
    128 + n ended by signal n. The environment variable MEG_DEBUG=1 shows the traceback of what ended the script.

    Parameters
    ----------
    main : callable
        Takes the words of the command line.
    description : str
        What --help prints.
    """
    words = sys.argv[1:]
    prepare_output()
    try:
        if {'-h', '--help'} & set(words):
            print(description.strip())
        else:
            with terminable():
                main(words)
        flush_output()
    except (Exception, KeyboardInterrupt, Interrupted, Terminated) as fault:
        if os.environ.get('MEG_DEBUG', '0') not in ('', '0'):
            traceback.print_exc()
        message, status = _ending(fault)
    else:
        sys.exit(0)
    with contextlib.suppress(OSError):
        flush_output()
    with contextlib.suppress(OSError):
        print('error: ' + ' '.join(message.split()), file=sys.stderr)
    sys.exit(status)


def _ending(fault: Exception | KeyboardInterrupt | Interrupted | Terminated) -> tuple[str, int]:
    """The line about what ended a script, and its exit status."""
    if isinstance(fault, DataError | SettingError):
        return str(fault), 2 if isinstance(fault, SettingError) else 1
    if isinstance(fault, Interrupted):
        return f'interrupted by {fault}', INTERRUPTED
    if isinstance(fault, Terminated):
        [number] = fault.args
        return f'ended by {number.name}', 128 + number
    if isinstance(fault, KeyboardInterrupt):
        return 'interrupted', 130
    return describe(fault, ROOT)


# ---------------------------------------------------------------------------------------------- files
@contextlib.contextmanager
def write_faults(path: str | os.PathLike) -> Generator[None]:
    """Within this block, a full disk or a folder without permission is a fault of `path`.

    The user knows that name, but not the name of a temporary file.

    Raises
    ------
    DataError
        The system refuses to write.
    """
    try:
        yield
    except OSError as fault:
        raise DataError(
            f'{path}: cannot be written ({fault.strerror or fault}); free some disk space or correct the path'
        ) from fault


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Generator[Path]:
    """Give a temporary file that replaces `path` when the block ends and is removed when it fails, see `replacing`."""
    with write_faults(path), replacing(Path(path)) as temporary:
        yield temporary


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all; NaN becomes null, which every reader knows."""
    with writing(path) as temporary:
        temporary.write_text(json_text(content))


# ------------------------------------------------------------------------------- machine and randomness
def choose_device(name: str) -> 'torch.device':
    """Turn the setting `device` into a torch device: for 'auto' a GPU where there is one.

    Returns
    -------
    torch.device

    Raises
    ------
    SettingError
        The setting names a GPU that this machine does not have.
    """
    import torch  # here, because the windows scripts do not need it and should start at once

    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if 'LOCAL_RANK' in os.environ and name != 'cpu':  # started by torchrun: each process takes a GPU of its own
        if ':' in name:
            raise SettingError(f"device = {name!r}: several processes need a GPU each: set 'auto', 'cuda' or 'cpu'")
        name = f'cuda:{os.environ["LOCAL_RANK"]}'
    number = int(name.partition(':')[2] or 0)
    if name != 'cpu' and number >= torch.cuda.device_count():
        raise SettingError(f"device = {name!r}: no such GPU on this machine; device='auto' takes what there is")
    if name.startswith('cuda'):
        torch.cuda.set_device(number)  # the one that 'cuda' without a number then means
    # On the CPU, PyTorch asks for huge pages if told to before its first large tensor: training an AE1D of width 4 in
    # batches of 32 took 30 ms a window with them and 62 ms without, because the kernel clears every new page.
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    return torch.device(name)


def choose_precision(name: str, device: 'torch.device') -> str:
    """Turn the setting `precision` into 'float32' or 'bfloat16', and have a GPU compute all else accordingly.

    'auto' is 'bfloat16' on a GPU that has it (compute capability 8.0), otherwise 'float32'. What stays float32 is not
    rounded to TF32 either: the wavelet transform is exact, and bfloat16 has all that takes time.

    Returns
    -------
    str

    Raises
    ------
    SettingError
        The GPU has no bfloat16.
    """
    import torch

    if device.type != 'cuda':
        return 'float32' if name == 'auto' else name
    able = torch.cuda.get_device_capability(device) >= (8, 0)
    if name == 'bfloat16' and not able:
        raise SettingError(
            f"precision = 'bfloat16': {torch.cuda.get_device_name(device)} does not have it; precision='auto' takes "
            'what there is'
        )
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    return 'bfloat16' if able and name != 'float32' else 'float32'


def to_device(values: 'torch.Tensor', device: 'torch.device') -> 'torch.Tensor':
    """Copy to a device what is not there yet; a GPU goes on computing meanwhile."""
    if device.type == 'cuda' and values.device.type == 'cpu':
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch; without a GPU, have torch use deterministic algorithms only."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # The same CSVs from the same seed are promised for the CPU; on a GPU these algorithms would cost speed. Filling new
    # memory helps to find mistakes, not to repeat a run.
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # ty: ignore[missing-attribute]
