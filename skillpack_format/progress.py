"""How long work tells its caller where it is, and how it uses threads and memory. The library has no terminal."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from skillpack_format.errors import error

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

Progress = Callable[[str, int, int], None]  # (what is being done, bytes done, bytes in all)

Job = TypeVar("Job")
Done = TypeVar("Done")


def silent(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


class Meter:
    """Bytes that many threads have done, told to one callback, one call at a time."""

    def __init__(self, what: str, total: int, progress: Progress) -> None:
        self._what = what
        self._total = total
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            self._progress(self._what, self._done, self._total)


class Budget:
    """Bytes of memory that jobs may hold together. A job that needs more than all of them runs alone."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        """Wait until ``nbytes`` are free, and hold them while the block runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + nbytes <= self._nbytes)
            self._held += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= nbytes
                self._changed.notify_all()


def in_order(work: Callable[[Job], Done], jobs: Iterable[Job], threads: int) -> Generator[tuple[Job, Done], None, None]:
    """``work(job)`` for every job, results in the order of the jobs, at most ``threads`` + 1 jobs in memory.

    The first exception ends it: jobs already running finish, the others are never started. Out of memory, on the host
    or on a GPU, becomes resource.memory.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - inspect names this module and starts no thread

    _require_threads(threads)
    if threads == 1:  # nothing to hand to another thread, and nothing that could wait for one
        yield from ((job, _run(work, job, threads)) for job in jobs)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Job, Future[Done]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, _submit(pool, work, job, threads)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def as_done(work: Callable[[Job], Done], jobs: Iterable[Job], threads: int) -> Iterator[tuple[Job, Done]]:
    """As ``in_order``, for jobs that leave little behind: results as they come, no thread waiting for another."""
    from concurrent.futures import ThreadPoolExecutor, as_completed  # noqa: PLC0415 - as above

    _require_threads(threads)
    if threads == 1:  # as above
        yield from ((job, _run(work, job, threads)) for job in jobs)
        return
    with ThreadPoolExecutor(threads) as pool:
        running: dict[Future[Done], Job] = {}
        try:
            for job in jobs:
                running[_submit(pool, work, job, threads)] = job
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            for future in running:
                future.cancel()


def _require_threads(threads: int) -> None:
    if threads < 1:
        raise error("usage.argument", "", f"threads is {threads}, at least one is needed")


def _submit(pool: Executor, work: Callable[[Job], Done], job: Job, threads: int) -> Future[Done]:
    try:
        return pool.submit(_run, work, job, threads)
    except RuntimeError as found:
        if not is_no_thread(found):
            raise
        message = f"the system gives no memory for another thread; fewer than {threads} threads need less"
        raise error("resource.memory", str(job), message) from found


def is_no_thread(found: BaseException) -> bool:
    """Whether Python could not start a thread, for which it has no exception of its own."""
    return isinstance(found, RuntimeError) and str(found) == "can't start new thread"


def _run(work: Callable[[Job], Done], job: Job, threads: int) -> Done:
    try:
        return work(job)
    except (MemoryError, RuntimeError) as found:
        # torch's own OutOfMemoryError is a RuntimeError; told by its name, for torch is not imported here
        if not isinstance(found, MemoryError) and type(found).__name__ != "OutOfMemoryError":
            raise
        message = f"too little memory; fewer than {threads} threads hold fewer tensors at a time"
        raise error("resource.memory", str(job), message) from found
