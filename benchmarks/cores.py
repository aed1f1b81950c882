"""Processes that have a core each, so that two measurements at a time do not disturb one another."""

import concurrent.futures
import multiprocessing
import os
from multiprocessing.queues import Queue


def pool_on_cores(num_workers: int) -> concurrent.futures.ProcessPoolExecutor:
    """A pool of fresh processes, each pinned to a core of its own where the system can pin (Linux).

    Args:
        num_workers: How many at a time; at most the number of cores, or several share one.
    """
    context = multiprocessing.get_context("spawn")
    if not hasattr(os, "sched_setaffinity"):
        return concurrent.futures.ProcessPoolExecutor(num_workers, context)
    cores = sorted(os.sched_getaffinity(0))
    free: Queue[int] = context.Queue()
    for worker in range(num_workers):
        free.put(cores[worker % len(cores)])
    return concurrent.futures.ProcessPoolExecutor(num_workers, context, _pin, (free,))


def _pin(free: "Queue[int]") -> None:
    os.sched_setaffinity(0, {free.get()})
