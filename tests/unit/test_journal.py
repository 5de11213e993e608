"""The journal: what is read back is what was added, whatever happened to the file between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from builders import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from skillpack_format import journal as journal_room
from skillpack_format.durable import RunInterruptedError
from skillpack_format.errors import error
from skillpack_format.journal import HEAD_BYTES, MAGIC, Journal, journal_of, key_of
from skillpack_format.locks import beside

KEYS = [key_of(index=index) for index in range(4)]


def written(path: Path, payloads: list[bytes]) -> bytes:
    path.unlink(missing_ok=True)
    with Journal(path) as journal:
        for key, payload in zip(KEYS, payloads, strict=False):
            journal.add(key, payload)
    return path.read_bytes()


def read(path: Path) -> list[bytes | None]:
    with Journal(path) as journal:
        return [journal.get(key) for key in KEYS]


def test_what_was_added_is_there_for_this_run_and_the_next(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal.get(KEYS[0]) is None
        journal.add(KEYS[0], b"one")
        journal.add(KEYS[1], b"")
        assert journal.get(KEYS[0]) == b"one"
        assert KEYS[1] in journal
        assert len(journal) == 2
    assert read(tmp_path / "j") == [b"one", b"", None, None]


def test_the_last_payload_of_a_key_counts(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.add(KEYS[0], b"one")
        journal.add(KEYS[0], b"two")
    assert read(tmp_path / "j")[0] == b"two"


def test_payloads_larger_than_a_block_of_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_room, "BLOCK_BYTES", 100)
    written(tmp_path / "j", [bytes(1000), b"x" * 99])
    assert read(tmp_path / "j")[:2] == [bytes(1000), b"x" * 99]


def test_every_truncation_keeps_the_records_before_it_and_can_be_written_on(tmp_path: Path) -> None:
    blob = written(tmp_path / "j", [b"aa", b"bb", b"cc"])
    ends = [len(MAGIC) + count * (HEAD_BYTES + 2) for count in range(4)]
    for length in range(len(blob) + 1):
        (tmp_path / "j").write_bytes(blob[:length])
        whole = max((k for k, end in enumerate(ends) if end <= length), default=0)
        assert read(tmp_path / "j")[:3] == [b"aa", b"bb", b"cc"][:whole] + [None] * (3 - whole)
        with Journal(tmp_path / "j") as journal:
            journal.add(KEYS[3], b"dd")
        assert read(tmp_path / "j")[3] == b"dd"


def test_every_flipped_bit_costs_its_record_and_those_after_and_never_changes_one(tmp_path: Path) -> None:
    blob = written(tmp_path / "j", [b"aa", b"bb", b"cc"])
    for bit in range(8 * len(blob)):
        harmed = bytearray(blob)
        harmed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "j").write_bytes(harmed)
        record = (bit // 8 - len(MAGIC)) // (HEAD_BYTES + 2)
        whole = max(record, 0)
        assert read(tmp_path / "j")[:3] == [b"aa", b"bb", b"cc"][:whole] + [None] * (3 - whole)


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_an_empty_journal(
    tmp_path_factory: pytest.TempPathFactory, blob: bytes, has_magic: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes((MAGIC if has_magic else b"") + blob)
    with Journal(path) as journal:
        assert len(journal) == 0
        journal.add(KEYS[0], b"x")
    assert read(path)[0] == b"x"


def test_a_claimed_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(MAGIC + KEYS[0] + (1 << 63).to_bytes(8, "little") + bytes(32))
    assert read(tmp_path / "j") == [None] * 4


def test_an_add_that_failed_leaves_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Journal(tmp_path / "j") as journal:
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]) and fail())
        refused("output.space", journal.add, KEYS[0], b"lost")
        monkeypatch.setattr(os, "write", write)
        journal.add(KEYS[1], b"kept")
    assert read(tmp_path / "j")[:2] == [None, b"kept"]


def fail() -> int:
    raise OSError(errno.ENOSPC, "full")


def test_a_journal_that_cannot_be_begun_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda *_: fail())
    refused("output.space", Journal, tmp_path / "j")
    assert os.listdir(tmp_path) == []


def test_a_journal_with_records_is_kept_when_it_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = written(tmp_path / "j", [b"one"])
    with monkeypatch.context() as full:
        full.setattr(os, "ftruncate", lambda *_: fail())
        refused("output.space", Journal, tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == blob


@pytest.mark.parametrize("nbytes", [1, 3])
def test_a_journal_that_is_cut_while_it_is_open_gives_no_part_of_a_payload(tmp_path: Path, nbytes: int) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.add(KEYS[0], b"one")
        os.truncate(tmp_path / "j", (tmp_path / "j").stat().st_size - nbytes)
        refused("integrity.source-changed", journal.get, KEYS[0])


def test_a_journal_that_is_not_ones_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    os.link(tmp_path / "precious", tmp_path / "j")
    refused("output.failed", Journal, tmp_path / "j")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_keys_depend_on_every_value_and_its_name() -> None:
    keys = [key_of(a=1, b="x"), key_of(a=2, b="x"), key_of(a=1, c="x"), key_of(a=1, b=b"x"), key_of(a=1, b=["x"])]
    assert len(set(keys)) == 5
    assert key_of(b="x", a=1) == keys[0]


# ---- journal_of: what stays, and what is said about it


def run(path: Path, failure: BaseException | None, *, adds: bool = True) -> None:
    with journal_of(path) as journal:
        if adds:
            journal.add(KEYS[0], b"one")
        if failure is not None:
            raise failure


def test_the_journal_of_work_that_is_done_goes(tmp_path: Path) -> None:
    run(tmp_path / "out", None)
    assert os.listdir(tmp_path) == []


def test_an_interruption_keeps_it_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError) as caught:
        run(tmp_path / "out", KeyboardInterrupt())
    assert caught.value.kept == beside(tmp_path / "out", "journal")
    with journal_of(tmp_path / "out") as journal:
        assert journal.get(KEYS[0]) == b"one"


@pytest.mark.parametrize("code", ["output.space", "input.failed", "resource.memory"])
def test_a_failure_of_the_machine_keeps_it_and_says_where(tmp_path: Path, code: str) -> None:
    found = refused(code, run, tmp_path / "out", error(code, "x", "failed"))
    assert (
        found.message == "failed; what is done is kept in .out.skillpack-journal, and the same command goes on from it"
    )
    assert beside(tmp_path / "out", "journal").exists()


def test_too_little_memory_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        run(tmp_path / "out", MemoryError())
    assert beside(tmp_path / "out", "journal").exists()


@pytest.mark.parametrize("failure", [error("checkpoint.header", "x", "wrong"), ValueError("bug")])
def test_wrong_inputs_keep_nothing(tmp_path: Path, failure: Exception) -> None:
    with pytest.raises(type(failure)) as caught:
        run(tmp_path / "out", failure)
    assert caught.value is failure
    assert os.listdir(tmp_path) == []


def test_nothing_done_keeps_nothing(tmp_path: Path) -> None:
    found = refused("output.space", run, tmp_path / "out", error("output.space", "x", "full"), adds=False)
    assert found.message == "full"
    assert os.listdir(tmp_path) == []
