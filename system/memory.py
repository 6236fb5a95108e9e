"""How much memory is free, and what the allocator does with memory that is given back."""

import contextlib
import ctypes
import os
from pathlib import Path

import torch

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # numbers of glibc's mallopt


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed for the next tensor, instead of giving it back to the system.

    For every large tensor the system would otherwise clear new pages, which takes up to half the time of a training
    step on a CPU. Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: torch.device) -> int:
    """Bytes that a run can still take: of a GPU, or of the machine, or of the job where the system limits it."""
    if device.type == 'cuda':
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        [line] = [line for line in Path('/proc/meminfo').read_text().splitlines() if line.startswith('MemAvailable')]
        free = int(line.split()[1]) * 1024
        groups = [line.split(':', 2)[1:] for line in Path('/proc/self/cgroup').read_text().splitlines()]
    except (OSError, ValueError):  # no Linux
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2
    # Batch systems limit the memory of a job by control groups, of version 2 (no controller named) or 1.
    for controller, group in groups:
        if controller not in ('', 'memory'):
            continue
        root, name = ('memory', 'memory.limit_in_bytes') if controller else ('', 'memory.max')
        group = Path('/sys/fs/cgroup', root, group.lstrip('/'))
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # no such limit, or 'max'
                free = min(free, int((folder / name).read_text()))
    return free
