"""Processes that have a core each, so that two measurements at a time do not disturb one another."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing.queues import Queue


@contextlib.contextmanager
def pool_on_cores(num_workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of fresh processes, each pinned to a core of its own where the system can pin (Linux).

    An error in the `with` block ends the processes, whatever they do: else it would show after hours, when all are done. So does the
    end of the process that made them, however it came: else they would train on, beside those that resume their work.

    Args:
        num_workers: How many at a time; at most the number of cores, or several share one.
    """
    context = multiprocessing.get_context("spawn")
    free: Queue[int] = context.Queue()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for worker in range(num_workers):
        if cores:
            free.put(cores[worker % len(cores)])
    others = set(multiprocessing.active_children())
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, _begin, (free if cores else None,)) as pool:
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _begin(free: "Queue[int] | None") -> None:
    if free is not None:
        os.sched_setaffinity(0, {free.get()})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # Not `sys.exit`, which ends this thread alone.
        os._exit(1)
