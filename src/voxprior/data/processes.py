"""Work on many cases in several processes, in order, in the memory that is free."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from voxprior.errors import Resumable

AHEAD = 4  # results per process that may wait for an earlier one
Item = TypeVar("Item")


def fitting(workers: int, need: int, free: int | None) -> int:
    """Lowers a number of workers to what fits into the free memory, each taking `need` bytes; at least one."""
    return workers if free is None else max(1, min(workers, free // need))


def spread(
    work: Callable[[Item], Any], items: Iterable[Item], workers: int, known: Callable[[Item], Any] = lambda _: None
) -> Iterator[tuple[Item, Any]]:
    """Yields (item, work(item)) in the order of the items, at most `AHEAD` results per process ahead of the caller.

    Args:
        work: can be pickled; a refusal that it raises comes out here.
        items: taken as they are needed.
        workers: processes; with 1 the work is done here.
        known: a result that need not be worked for, or None.

    Raises:
        Resumable: a process was killed, most likely because the memory was full.
    """
    if workers == 1:
        for item in items:
            found = known(item)
            yield item, work(item) if found is None else found
        return
    # Spawn: a forked child would inherit the thread pools of Blosc2 and ITK without their threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin) as pool:
        waiting: deque[tuple[Item, Any]] = deque()
        try:
            for item in items:
                found = known(item)
                waiting.append((item, pool.submit(work, item) if found is None else found))
                if len(waiting) >= AHEAD * workers:
                    yield _done(*waiting.popleft())
            while waiting:
                yield _done(*waiting.popleft())
        except BrokenProcessPool:
            raise Resumable(
                "a process was killed, most likely because the memory was full: run the same command again with fewer "
                "--workers, what is done is kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _done(item: Item, result: Any) -> tuple[Item, Any]:
    return item, result.result() if isinstance(result, Future) else result


def _begin() -> None:
    """Prepares a process: one thread for ITK, and an end when the one that started it has ended."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    # A process that waits for work does not notice that nobody is left who could give it any.
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
