"""Asks the library, ``mini`` and ``js`` about generated and damaged packs and compares what they say.

    python -m conformance.differential --packs 20000 --seed 1            # ends with 1 where they differ
    python -m conformance.differential --packs 2000000 --seed 1 --report conformance/DIFFERENTIAL.md

Every chunk of packs has a random generator of its own, seeded with ``seed/chunk``: ``--first`` and ``--packs`` name the
same packs again. What differs is kept in ``--keep`` as files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from conformance import assemble as oracle
from conformance.assembler.suite import rendering_digest
from conformance.generator.packs import Made, generated

from . import library, mini, mutants
from .asked import LIMITS, OPERATIONS, Answer, Question
from .judging import DIFFER, agreement, stages_of

FAMILIES, MUTANTS = 8, 48  # generated packs of a chunk, and mutants of each
CHUNK = FAMILIES * (MUTANTS + 2)
SLOW_S = 20.0  # of this process, so that a busy machine is not taken for a slow reader
BATCH_S = 1800.0  # of the clock, for a whole batch in Node
JS = Path(__file__).with_name("js.mjs")


@dataclass(frozen=True)
class Asked:
    """A question, where it comes from, and the right answer where it is known without a reader."""

    question: Question
    kind: str
    is_lax: bool = False
    right: Answer | None = None
    codes: tuple[str, ...] = ()  # a generated pack that must be refused


@dataclass
class Tally:
    """What a chunk came to."""

    packs: int = 0
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    differing: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.packs += other.packs
        self.counts += other.counts
        self.differing += other.differing


def questions(seed: str, chunk: int) -> list[Asked]:
    """The questions of one chunk."""
    rng = Random(f"{seed}/{chunk}")
    families = [generated(rng) for _ in range(FAMILIES)]
    found: list[Asked] = []
    for made in families:
        found += straight(made)
        for _ in range(MUTANTS):
            each = mutants.mutant(rng, made, families)
            (op,) = rng.choices(list(OPERATIONS), list(OPERATIONS.values()))
            found.append(Asked(Question(op, each.pack, each.base), each.kind, each.is_lax))
    return found


def straight(made: Made) -> list[Asked]:
    """A generated pack as it is, and what must come of it."""
    files = made.files
    shown = {
        "pack_id": files.pack_id,
        "manifest": oracle.rendered(files.manifest),
        "storage": oracle.rendered(files.storage),
    }
    right = None if made.codes else Answer("", made.listing())
    return [
        Asked(Question("apply", files.pack, files.base), "generated", False, right, made.codes),
        Asked(Question("inspect", files.pack, files.base), "generated", False, Answer("", rendering_digest(shown))),
    ]


class Node:
    """The process of the JavaScript reader."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, asked: Sequence[Asked]) -> None:
        """Hand over a batch."""
        if self._process is None:
            self._process = subprocess.Popen([_node(), str(JS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        blob, places, bases = bytearray(), [], {}
        for each in asked:
            question = each.question
            if question.base not in bases:
                bases[question.base] = (len(bases), len(blob), len(blob) + len(question.base))
                blob += question.base
            places.append([question.op, bases[question.base][0], len(blob), len(blob) + len(question.pack)])
            blob += question.pack
        about = {"limits": LIMITS, "size": len(blob), "bases": [[a, b] for _, a, b in bases.values()], "packs": places}
        head = json.dumps(about).encode("ascii")
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack("<I", len(head)) + head + blob)
        self._process.stdin.flush()

    def answers(self, count: int) -> list[Answer]:
        """The answers to the batch; a process that does not answer is ended."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        line, deadline = b"", time.monotonic() + BATCH_S
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(process.stdout.fileno(), 1 << 20) if ready else b""
            if not piece:
                process.kill()
                process.wait()
                self._process = None
                return [Answer("crash" if ready else "slow", "")] * count
            line += piece
        return [Answer(code, made) for code, made in json.loads(line)]


def _node() -> str:
    found = shutil.which("node")
    if found is None:
        raise SystemExit("node is not installed; it runs the reader js")
    return found


class SlowError(Exception):
    """A reader of this process takes too long."""


def _too_slow(signum: int, frame: object) -> None:
    raise SlowError


def ask(reader: Any, question: Question) -> Answer:
    """The answer of a reader of this process, whatever happens in it."""
    signal.setitimer(signal.ITIMER_PROF, SLOW_S)
    try:
        return reader.answer(question)  # type: ignore[no-any-return]
    except SlowError:
        return Answer("slow", "")
    except Exception as found:  # noqa: BLE001 - any exception is what we are looking for
        return Answer("crash", repr(found)[:300])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Worker:
    """One process that asks all three readers about whole chunks."""

    def __init__(self, seed: str, folder: Path) -> None:
        self.seed = seed
        self.node = Node()
        self.readers = {library.NAME: library.Reader(folder), mini.NAME: mini.Reader()}
        signal.signal(signal.SIGPROF, _too_slow)
        warnings.simplefilter("error")  # a warning on a stranger's file is a fault too

    def chunk(self, number: int) -> Tally:
        asked = questions(self.seed, number)
        self.node.begin(asked)
        found = {name: [ask(reader, each.question) for each in asked] for name, reader in self.readers.items()}
        found["js"] = self.node.answers(len(asked))
        for reader in self.readers.values():
            reader.forget()
        tally = Tally()
        for k, each in enumerate(asked):
            tally_one(tally, each, {name: answers[k] for name, answers in found.items()}, f"{self.seed}/{number}#{k}")
        return tally


def tally_one(tally: Tally, asked: Asked, answers: dict[str, Answer], place: str) -> None:
    """Count one question, and keep it where the answers differ or are wrong."""
    compared = answers if asked.right is None else {**answers, "oracle": asked.right}
    found = agreement(compared, asked.is_lax)
    codes = {each.code for each in answers.values()}
    if asked.codes and not codes <= {"payload.overflow", "payload.nonfinite"}:
        found = DIFFER
    if codes & {"crash", "slow"}:
        found = DIFFER
    first = answers[library.NAME].code
    tally.packs += 1
    tally.counts["agreement", found] += 1
    tally.counts[
        "verdict", "refused" if first else "accepted", "generated" if asked.kind == "generated" else "mutated"
    ] += 1
    tally.counts["operation", asked.question.op] += 1
    for kind in asked.kind.split("+"):
        tally.counts["mutation", kind] += 1
    if first:
        tally.counts["code", str(min(stages_of(first), default=99)), first] += 1
    if found == DIFFER:
        told = {name: [each.code, each.made] for name, each in compared.items()}
        tally.differing.append(
            {"place": place, "op": asked.question.op, "kind": asked.kind, "answers": told,
             "pack": asked.question.pack.hex(), "base": asked.question.base.hex()}
        )  # fmt: skip


_WORKER: list[Worker] = []


def _start(seed: str, folder: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    own = Path(folder) / str(os.getpid())
    own.mkdir()
    _WORKER.append(Worker(seed, own))


def _chunk(number: int) -> Tally:
    return _WORKER[0].chunk(number)


def run(seed: str, first: int, chunks: int, workers: int) -> Iterator[Tally]:
    """The tallies of chunks, as they come."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder in memory where there is one; a fresh name below it
    with tempfile.TemporaryDirectory("", "skillpack-differential-", memory if memory.is_dir() else None) as folder:
        numbers = range(first, first + chunks)
        if workers == 1:
            _start(seed, folder)
            yield from map(_chunk, numbers)
            return
        with get_context("fork").Pool(workers, _start, (seed, folder)) as pool:
            yield from pool.imap(_chunk, numbers)  # in order, so that a run that is stopped has a beginning of them


def keep(folder: Path, differing: Sequence[dict[str, Any]]) -> None:
    """Packs that readers differ about, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in differing:
        path = folder / each["place"].replace("/", "-").replace("#", "-")
        path.with_suffix(".skp").write_bytes(bytes.fromhex(each["pack"]))
        path.with_suffix(".safetensors").write_bytes(bytes.fromhex(each["base"]))
        path.with_suffix(".json").write_text(
            json.dumps({k: v for k, v in each.items() if k not in ("pack", "base")}, indent=1)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.differential", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--packs", type=int, default=10 * CHUNK, help=f"how many, rounded up to chunks of {CHUNK}")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--first", type=int, default=0, help="number of the first chunk")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=0, help="stop after the chunk under way then; 0 for never")
    parser.add_argument("--keep", type=Path, help="a folder for packs that readers differ about")
    parser.add_argument("--report", type=Path, help="write the result as a page")
    asked = parser.parse_args(arguments)
    chunks = -(-asked.packs // CHUNK)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has told a background job to ignore it
        signal.signal(number, signal.default_int_handler)
    total, begun, shown = Tally(), time.monotonic(), 0
    for done, tally in enumerate(_until_interrupted(run(asked.seed, asked.first, chunks, asked.workers)), 1):
        total.add(tally)
        if asked.keep:
            keep(asked.keep, tally.differing)
        for each in tally.differing:
            shown += 1
            if shown <= 40:
                print(
                    each["place"],
                    each["op"],
                    each["kind"],
                    {k: v[0] or v[1][:80] for k, v in each["answers"].items()},
                    flush=True,
                )
        if done % 50 == 0:
            print(
                f"{total.packs} packs, {total.packs / (time.monotonic() - begun):.0f}/s, {len(total.differing)} differ",
                flush=True,
            )
        if asked.seconds and time.monotonic() - begun > asked.seconds:
            break
    seconds = time.monotonic() - begun
    text = page(total, seconds, asked)
    print(text)
    if asked.report:
        asked.report.write_text(text, encoding="utf-8")
    return int(bool(total.differing))


def _until_interrupted(tallies: Iterator[Tally]) -> Iterator[Tally]:
    """Those that come before SIGINT, which ends a run and not its report."""
    try:
        yield from tallies
    except KeyboardInterrupt:
        print("stopped")


def page(total: Tally, seconds: float, asked: argparse.Namespace) -> str:
    """The result as Markdown."""
    command = f"python -m conformance.differential --packs {total.packs} --seed {asked.seed}"
    lines = [
        "# The differential run",
        "",
        f"    {command}{f' --first {asked.first}' if asked.first else ''}",
        "",
        f"{total.packs} packs in {seconds / 60:.0f} minutes, {asked.workers} workers, "
        f"Python {platform.python_version()}; {len(total.differing)} on which the library, `mini` and `js` differ.",
    ]
    titles = {
        "agreement": ("answers", "packs"), "verdict": ("verdict, origin", "packs"), "operation": ("operation", "packs"),
        "mutation": ("mutation", "packs"), "code": ("stage and code of the library", "packs"),
    }  # fmt: skip
    for title, headers in titles.items():
        rows = sorted((key[1:], count) for key, count in total.counts.items() if key[0] == title)
        if title == "code":
            rows.sort(key=lambda row: (int(row[0][0]), row[0][1]))
        lines += ["", f"| {headers[0]} | {headers[1]} |", "|---|--:|"]
        lines += [f"| {', '.join(key).replace('99, ', '- , ')} | {count} |" for key, count in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
