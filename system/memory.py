"""What the allocator does with memory that is given back."""

import contextlib
import ctypes

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
