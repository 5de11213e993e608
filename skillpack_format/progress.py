"""How long work tells its caller where it is, and how it uses threads. The library itself has no terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Progress = Callable[[str, int, int], None]  # (what is being done, bytes done, bytes in all)

Job = TypeVar("Job")
Done = TypeVar("Done")


def silent(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


def in_order(work: Callable[[Job], Done], jobs: Iterable[Job], threads: int) -> Iterator[tuple[Job, Done]]:
    """``work(job)`` for every job, results in the order of the jobs, at most ``threads`` + 1 jobs in memory.

    The first exception ends it: jobs already running finish, the others are never started.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Job, Future[Done]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, pool.submit(work, job)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
