"""How long work reports, and how it uses threads."""

from __future__ import annotations

import threading
import time

import pytest
from builders import refused

from skillpack_format.progress import in_order, silent


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_results_come_in_the_order_of_the_jobs(threads: int, count: int) -> None:
    def work(job: int) -> int:
        time.sleep(0.001 * (job % 3))
        return job * job

    assert list(in_order(work, range(count), threads)) == [(k, k * k) for k in range(count)]


def test_no_more_than_threads_and_one_jobs_are_taken() -> None:
    taken = 0

    def jobs() -> object:
        nonlocal taken
        for k in range(50):
            taken += 1
            yield k

    for position, _ in enumerate(in_order(lambda job: job, jobs(), 3)):
        assert taken <= position + 4


def test_the_first_exception_ends_it() -> None:
    done = []

    def work(job: int) -> int:
        if job == 2:
            raise KeyError(job)
        done.append(job)
        return job

    found = in_order(work, range(100), 1)
    assert [next(found), next(found)] == [(0, 0), (1, 1)]
    with pytest.raises(KeyError):
        next(found)
    assert max(done) < 5


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize("found", [MemoryError(), OutOfMemoryError("CUDA")], ids=["host", "device"])
def test_too_little_memory_is_said_in_words(found: Exception) -> None:
    def work(job: str) -> None:
        raise found

    caught = refused("resource.memory", list, in_order(work, ["m.w"], 3))
    assert caught.where == "m.w"
    assert caught.__cause__ is found


def test_another_runtime_error_passes() -> None:
    def work(job: str) -> None:
        raise RuntimeError("no torch")

    with pytest.raises(RuntimeError, match="no torch"):
        list(in_order(work, ["m.w"], 1))


def test_a_caller_that_stops_leaves_the_rest_undone() -> None:
    started = []
    found = in_order(started.append, range(100), 2)
    next(found)
    found.close()
    assert len(started) < 10


def test_jobs_run_on_other_threads() -> None:
    names = {name for _, name in in_order(lambda _: threading.current_thread().name, range(4), 2)}
    assert threading.current_thread().name not in names


@pytest.mark.parametrize("threads", [0, -1])
def test_refuses_to_work_without_a_thread(threads: int) -> None:
    refused("usage.argument", list, in_order(str, [1], threads))


def test_silence_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent("reading", 1, 2)
    assert capsys.readouterr() == ("", "")
