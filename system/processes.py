"""Work spread over several processes, which end with the process that starts them."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor


@contextlib.contextmanager
def process_map(n_jobs: int) -> Generator[Callable]:
    """Give a function that works like `map`, in `n_jobs` processes, or in this one where `n_jobs` is 1.

    Parameters
    ----------
    n_jobs : int
        Number of processes.

    Yields
    ------
    callable
        `map`, whose results come in the order of the items. In several processes it raises
        `concurrent.futures.process.BrokenProcessPool` when one of them is killed.
    """
    if n_jobs == 1:
        yield map
        return
    pool = ProcessPoolExecutor(n_jobs, multiprocessing.get_context('spawn'), _follow_parent)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent():
    """Leave Ctrl-C to the parent; end when it is killed, instead of waiting for its orders for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait():
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
