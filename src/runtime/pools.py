"""Threads that work for a generator."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

__all__ = ["thread_pool"]


@contextlib.contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool for a block within a generator. What isn't begun at the block's end is cancelled; its threads are waited
    for, but not where the generator is closed: the garbage collector may close it while a thread starts, and no other
    thread can end then.
    """
    pool, waits = ThreadPoolExecutor(threads), True
    try:
        yield pool
    except GeneratorExit:
        waits = False
        raise
    finally:
        pool.shutdown(waits, cancel_futures=True)
