"""Streams, pinned memory and promised room of torch devices; what needs a GPU is skipped where there is none."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is an extra")
devices = pytest.importorskip("skillpack_format.devices")

CPU = torch.device("cpu")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing of this ran on one")


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda", 0), marks=NEEDS_CUDA)], ids=str)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 50])
def test_what_is_sent_arrives_whatever_the_size_of_the_buffers(device: torch.device, size: int) -> None:
    way = devices.Staging(16)
    for dtype in (np.int8, np.uint8, np.int16, np.int64, np.float32):
        values = np.arange(size).astype(dtype)
        sent = way.send(values, device)
        assert sent.device == device
        assert np.array_equal(sent.cpu().numpy(), values)
        assert np.array_equal(way.receive(sent), values)


def test_what_is_sent_may_be_written_over_and_may_be_read_only() -> None:
    way, values = devices.Staging(16), np.arange(3.0)
    sent = way.send(values, CPU)
    values += 1
    assert sent.tolist() == [0.0, 1.0, 2.0]
    assert way.send(np.frombuffer(b"\1\2", np.uint8), CPU).tolist() == [1, 2]
    assert way.send(np.arange(6).reshape(2, 3).T, CPU).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_what_is_received_holds_until_the_next() -> None:
    way = devices.Staging(16)
    first = way.receive(torch.tensor([1, 2], dtype=torch.int32))
    assert first.tolist() == [1, 2]
    way.receive(torch.tensor([3, 4], dtype=torch.int32))
    assert first.tolist() == [3, 4]


def test_every_thread_has_buffers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_THREAD", threading.local())
    found = [devices.staging(), devices.staging()]
    thread = threading.Thread(target=lambda: found.append(devices.staging()))
    thread.start()
    thread.join()
    assert found[0] is found[1]
    assert found[2] is not found[0]


def test_a_lane_of_the_cpu_is_nothing_special() -> None:
    devices.settle(CPU)
    with devices.lane(CPU):
        made = torch.ones(3)
    devices.hand_over(made)
    assert made.sum() == 3


@NEEDS_CUDA
def test_lanes_of_a_gpu_wait_for_their_work() -> None:
    device = torch.device("cuda", 0)
    devices.settle(device)
    with devices.lane(device):
        made = torch.arange(1 << 20, device=device) * 3
    devices.hand_over(made)
    assert torch.equal(made.cpu(), torch.arange(1 << 20) * 3)


# ------------------------------------------------------------------------------------------------------ promised room


def test_the_device_with_most_memory_that_is_not_promised_is_taken() -> None:
    room = devices.Room([100, 90, 50])
    with room.hold(30) as first, room.hold(30) as second, room.hold(30) as third:
        assert (first, second, third) == (0, 1, 0)
        with room.hold(30) as fourth, room.hold(30) as fifth:
            assert (fourth, fifth) == (1, 2)
    with room.hold(60) as again:
        assert again == 0


def test_a_device_without_room_is_passed_over() -> None:
    room = devices.Room([100, 40])
    with room.hold(50) as first, room.hold(60) as second:
        assert (first, second) == (0, 1)  # the second has 40: too few, but nobody works there


def test_who_finds_no_room_waits_until_there_is_some() -> None:
    room, order = devices.Room([100]), []

    def later() -> None:
        with room.hold(60) as chosen:
            order.append(f"began on {chosen}")

    thread = threading.Thread(target=later)
    with room.hold(50):
        thread.start()
        time.sleep(0.05)
        order.append("the first ends")
    thread.join(10)
    assert order == ["the first ends", "began on 0"]


def test_what_fails_gives_its_room_back() -> None:
    room = devices.Room([10])
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), room.hold(10):
            raise ValueError("broken")


def test_many_threads_never_promise_more_than_there_is() -> None:
    room, lock, held, most = devices.Room([70, 50]), threading.Lock(), [0, 0], [0, 0]

    def work() -> None:
        for need in (10, 30, 20):
            with room.hold(need) as chosen:
                with lock:
                    held[chosen] += need
                    most[chosen] = max(most[chosen], held[chosen])
                time.sleep(0.001)
                with lock:
                    held[chosen] -= need

    threads = [threading.Thread(target=work) for _ in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most[0] <= 70
    assert most[1] <= 50
    assert min(most) > 0
