"""How long work tells its caller where it is, and how it uses threads. The library itself has no terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

from skillpack_format.errors import error

if TYPE_CHECKING:
    from concurrent.futures import Future

Progress = Callable[[str, int, int], None]  # (what is being done, bytes done, bytes in all)

Job = TypeVar("Job")
Done = TypeVar("Done")


def silent(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


def in_order(work: Callable[[Job], Done], jobs: Iterable[Job], threads: int) -> Generator[tuple[Job, Done], None, None]:
    """``work(job)`` for every job, results in the order of the jobs, at most ``threads`` + 1 jobs in memory.

    The first exception ends it: jobs already running finish, the others are never started. Out of memory, on the host
    or on a GPU, becomes resource.memory.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - inspect names this module and starts no thread

    if threads < 1:
        raise error("usage.argument", "", f"threads is {threads}, at least one is needed")

    def run(job: Job) -> Done:
        try:
            return work(job)
        except (MemoryError, RuntimeError) as found:
            # torch's own OutOfMemoryError is a RuntimeError; told by its name, for torch is not imported here
            if not isinstance(found, MemoryError) and type(found).__name__ != "OutOfMemoryError":
                raise
            message = f"too little memory; fewer than {threads} threads hold fewer tensors at a time"
            raise error("resource.memory", str(job), message) from found

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Job, Future[Done]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, pool.submit(run, job)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
