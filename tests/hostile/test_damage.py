"""Damage: every bit flip, truncation, lost byte and extra byte of small packs is refused, by name and in words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import (
    EXAMPLES,
    layout_plan,
    mixed_plan,
    put_together,
    read_everything,
    squeezable_plan,
    stored_header,
    take_apart,
    tiny_plan,
    write_pack,
)

from skillpack_format import validate
from skillpack_format.errors import SkillPackError
from skillpack_format.problems import CODES

PLANS = {
    **{f"{name}-raw": (lambda name=name: tiny_plan(name), "raw") for name in EXAMPLES},
    **{f"{name}-zstd": (lambda name=name: squeezable_plan(name), "zstd") for name in EXAMPLES},
    "mixed": (mixed_plan, "raw"),
    "layout": (layout_plan, "raw"),
}


@pytest.fixture(scope="module", params=PLANS)
def pack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build, codec = PLANS[request.param]
    path = write_pack(tmp_path_factory.mktemp("packs") / "p.skp", build(), codec=codec)
    assert validate(path, deep=True).is_valid
    assert path.stat().st_size < 3000
    return path


def require_words(found: SkillPackError) -> None:
    text = str(found)
    assert found.code in CODES
    assert text.endswith(f"[{found.code}]")
    assert len(text) <= 500
    assert re.fullmatch(r"[ -~]+", text)


def require_refused(path: Path, what: str, *, by_validate: bool = True) -> None:
    try:
        read_everything(path)
    except SkillPackError as found:
        require_words(found)
    else:
        raise AssertionError(f"accepted: {what}")
    if not by_validate:
        return
    report = validate(path, deep=True)
    assert not report.is_valid, f"valid: {what}"
    assert report.exit_status in (4, 6), what
    assert all(problem.code in CODES for problem in report.problems)


def variants(pack: Path, harms: Iterator[tuple[str, bytes]]) -> None:
    path = pack.with_name("harmed.skp")
    for what, blob in harms:
        path.write_bytes(blob)
        require_refused(path, what)


def test_packs_of_zstd_hold_frames_and_others_do_not(pack: Path) -> None:
    parts = take_apart(pack)
    is_zstd = parts.storage["segments"][0]["codec"] == "zstd"
    assert (b"\x28\xb5\x2f\xfd" in parts.data) == is_zstd
    assert stored_header(pack.read_bytes())[:4] == b"\x28\xb5\x2f\xfd"


def test_the_surgery_of_these_tests_gives_back_a_valid_pack(pack: Path) -> None:
    blob = pack.read_bytes()
    assert put_together(take_apart(pack), header=stored_header(blob)) == blob


def test_refuses_every_bit_flip(pack: Path) -> None:
    blob = pack.read_bytes()
    data_at = len(blob) - len(take_apart(pack).data)
    path = pack.with_name("flipped.skp")
    path.write_bytes(blob)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for bit in range(8 * len(blob)):
            at = bit // 8
            os.pwrite(descriptor, bytes([blob[at] ^ (1 << bit % 8)]), at)
            # the validator collects what the reader raises: in DATA, where it also asks the schema, one bit a byte
            once = at < data_at or bit % 8 == at % 8
            require_refused(path, f"bit {bit % 8} of byte {at} flipped", by_validate=once)
            os.pwrite(descriptor, blob[at : at + 1], at)
    finally:
        os.close(descriptor)
    assert validate(path, deep=True).is_valid


def test_refuses_every_truncation(pack: Path) -> None:
    blob = pack.read_bytes()
    variants(pack, ((f"the first {length} bytes", blob[:length]) for length in range(len(blob))))


def test_refuses_every_lost_byte(pack: Path) -> None:
    blob = pack.read_bytes()
    variants(pack, ((f"without byte {at}", blob[:at] + blob[at + 1 :]) for at in range(len(blob))))


def test_refuses_every_extra_byte(pack: Path) -> None:
    blob = pack.read_bytes()
    variants(pack, ((f"a byte before {at}", blob[:at] + b"\0" + blob[at:]) for at in range(len(blob) + 1)))


def zeroed(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes(min(64, len(blob) - at)) + blob[at + 64 :]


@pytest.mark.parametrize(
    "harm",
    [zeroed, lambda blob, at: blob[:at] + b"\xff" * min(64, len(blob) - at) + blob[at + 64 :]],
    ids=["zeros", "ones"],
)
def test_refuses_every_torn_block(pack: Path, harm: Callable[[bytes, int], bytes]) -> None:
    blob = pack.read_bytes()
    harmed = ((f"block {at}", harm(blob, at)) for at in range(0, len(blob), 64))
    variants(pack, ((what, each) for what, each in harmed if each != blob))


@pytest.mark.parametrize(
    "tail", [b"\0", bytes(4096), b"PK\x05\x06" + bytes(18), None], ids=["a zero", "a page", "a zip", "itself"]
)
def test_refuses_anything_appended(pack: Path, tail: bytes | None) -> None:
    blob = pack.read_bytes()
    variants(pack, iter([("appended", blob + (blob if tail is None else tail))]))
