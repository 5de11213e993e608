"""How long work reports, and how it uses threads."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from builders import refused

from skillpack_format.progress import Budget, Meter, as_done, in_order, silent


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


@pytest.mark.parametrize("run", [in_order, as_done])
def test_a_thread_that_cannot_be_started_is_said_in_words(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python raises where the system refuses: the second thread, while the first has its work."""
    start, begun = threading.Thread.start, []

    def start_one(thread: threading.Thread) -> None:
        begun.append(thread)
        if len(begun) > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    may_end, done = threading.Event(), []

    def work(job: str) -> None:
        may_end.wait(0.2)
        done.append(job)

    caught = refused("resource.memory", list, run(work, ["a", "b", "c"], 2))
    assert caught.where == "b"
    assert "fewer than 2 threads" in caught.message
    assert "c" not in done


@pytest.mark.parametrize("run", [in_order, as_done])
def test_another_error_of_starting_passes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("threads can only be started once")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="only be started once"):
        list(run(lambda job: job, ["a"], 2))


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


@pytest.mark.parametrize("threads", [1, 3])
def test_every_job_is_done_once_in_whatever_order(threads: int) -> None:
    def work(job: int) -> int:
        time.sleep(0.001 * (job % 3))
        return job * job

    assert sorted(as_done(work, range(20), threads)) == [(k, k * k) for k in range(20)]


def test_a_long_job_holds_up_no_thread_but_its_own() -> None:
    others = threading.Event()
    finished: list[int] = []

    def work(job: int) -> None:
        if job == 0:
            assert others.wait(10)
        finished.append(job)
        if len(finished) == 19:
            others.set()

    assert [job for job, _ in as_done(work, range(20), 2)][-1] == 0


def test_the_first_exception_ends_it_in_whatever_order() -> None:
    done: list[int] = []

    def work(job: int) -> None:
        if job == 2:
            raise KeyError(job)
        done.append(job)
        time.sleep(0.001)

    with pytest.raises(KeyError):
        list(as_done(work, range(1000), 2))
    assert len(done) < 1000


@pytest.mark.parametrize("threads", [0, -1])
def test_refuses_fewer_than_one_thread_in_whatever_order(threads: int) -> None:
    refused("usage.argument", list, as_done(str, [1], threads))


def test_a_meter_counts_what_all_threads_have_done() -> None:
    seen: list[tuple[str, int, int]] = []
    meter = Meter("making", 100, lambda *step: seen.append(step))
    list(as_done(meter.add, [5] * 20, 4))
    assert seen == [("making", 5 * k, 100) for k in range(1, 21)]


def test_jobs_hold_no_more_memory_together_than_the_budget() -> None:
    budget, held, most = Budget(10), [0], [0]
    guard = threading.Lock()

    def work(nbytes: int) -> None:
        with budget.hold(nbytes):
            with guard:
                held[0] += nbytes
                most[0] = max(most[0], held[0])
            time.sleep(0.001)
            with guard:
                held[0] -= nbytes

    list(as_done(work, [4, 5, 6, 1, 9, 2, 3] * 5, 6))
    assert most[0] <= 10
    assert held[0] == 0


def test_a_job_that_needs_more_than_the_budget_runs_alone() -> None:
    budget = Budget(10)
    with budget.hold(50):
        pass
    with budget.hold(10):
        pass


def test_a_job_that_fails_gives_its_memory_back() -> None:
    budget = Budget(10)
    with pytest.raises(KeyError), budget.hold(10):
        raise KeyError
    with budget.hold(10):
        pass
