"""Asks a reader every case of the corpus and judges its answers.

    python -m conformance.runner [options] -- COMMAND ...

The command is an adapter (PROTOCOL.md). It is started once, and again after a crash or a hang. What it writes is hashed
here; what it says about itself is believed only for the ops it declares.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import queue
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from conformance import build
from conformance.assembler.suite import CLASSES, rendering_digest

OUTCOMES = ("pass", "wrong", "wrong-class", "memory", "reads", "crash", "hang", "unsupported")
HELLO_S = 60.0  # a reader may load a lot before it answers for the first time
LINE_BYTES = 1 << 28  # no answer is longer
SHARD, INDEX = ".safetensors", ".safetensors.index.json"
STDERR_BYTES = 2000  # kept of what an adapter says before a crash


class CrashError(Exception):
    """The adapter went away, or answered what is no answer."""


class HangError(Exception):
    """The adapter did not answer in time."""


@dataclass(frozen=True)
class Result:
    """How one case ended."""

    area: str
    case: str
    op: str
    verdict: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """How a reader did."""

    reader: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    is_partial: bool = False  # only some of the cases were asked

    @property
    def failures(self) -> list[Result]:
        declared = self.reader["ops"]
        return [r for r in self.results if r.outcome != "pass" and (r.outcome != "unsupported" or r.op in declared)]

    @property
    def is_passed(self) -> bool:
        return bool(self.results) and not self.failures

    @property
    def verdict(self) -> str:
        """One line: who, and whether it conforms."""
        ops = ", ".join(self.reader["ops"])
        if self.is_partial:
            passed = sum(each.outcome == "pass" for each in self.results)
            said = f"passes {passed} of the {len(self.results)} cases asked"
        else:
            said = f"{'conforms' if self.is_passed else 'does not conform'} in {ops}"
        return printable(f"{self.reader['name']} {self.reader['version']} {said}")

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows: how many cases of each area ended how."""
        shown = [o for o in OUTCOMES if o == "pass" or any(r.outcome == o for r in self.results)]
        rows = []
        for area in dict.fromkeys(r.area for r in self.results):
            counts = Counter(r.outcome for r in self.results if r.area == area)
            rows.append([area, str(sum(counts.values())), *(str(counts[o] or "") for o in shown)])
        total = Counter(r.outcome for r in self.results)
        rows.append(["all", str(len(self.results)), *(str(total[o] or "") for o in shown)])
        return ["area", "cases", *shown], rows

    def plain(self) -> dict[str, Any]:
        counts = Counter(r.outcome for r in self.results)
        return {
            "schema_version": 1,
            "reader": self.reader,
            "passed": self.is_passed,
            "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
            "results": [
                {"area": r.area, "case": r.case, "op": r.op, "verdict": r.verdict, "outcome": r.outcome,
                 "detail": r.detail, "seconds": round(r.seconds, 4)}
                for r in self.results
            ],
        }  # fmt: skip

    def junit(self) -> bytes:
        """The report as JUnit XML."""
        suite = Xml.Element("testsuite", name="skillpack conformance", tests=str(len(self.results)))
        suite.set("failures", str(len(self.failures)))
        for each in self.results:
            case = Xml.SubElement(suite, "testcase", classname=each.area, name=each.case, time=f"{each.seconds:.4f}")
            if each in self.failures:
                Xml.SubElement(case, "failure", type=each.outcome, message=printable(each.detail))
            elif each.outcome == "unsupported":
                Xml.SubElement(case, "skipped")
        return Xml.tostring(suite, encoding="utf-8", xml_declaration=True)


def printable(text: str, limit: int = 300) -> str:
    """``text`` as printable ASCII: it may come from a hostile file by way of a reader."""
    safe = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text[:limit])
    return safe[:limit]


# ------------------------------------------------------------------------------------------------ the adapter


class Adapter:
    """The adapter's process: requests in, answers out, under limits."""

    def __init__(self, command: Sequence[str], memory_mb: int = 0) -> None:
        self.command = list(command)
        self.memory_mb = memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        self._said = b""
        self._next_id = 0
        self.reader: dict[str, Any] = {}

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(CrashError, HangError, subprocess.TimeoutExpired):
            if self._process is not None and self._process.poll() is None:
                self.ask({"op": "stop"}, 5.0)
                self._process.wait(5.0)
        self.kill()

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to ``request``."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._next_id += 1
        line = json.dumps({"id": self._next_id, **request}) + "\n"
        try:
            self._process.stdin.write(line.encode("ascii"))
            self._process.stdin.flush()
            answer = self._answers.get(timeout=seconds)
        except OSError:
            raise self._crash("it closed its standard input") from None
        except queue.Empty:
            self.kill()
            raise HangError(f"no answer in {seconds:g} s") from None
        if answer is None:
            raise self._crash("it ended")
        return self._parsed(answer)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise self._crash(f"no JSON: {line[:80]!r}") from None
        if not isinstance(answer, dict) or answer.get("id") != self._next_id:
            raise self._crash(f"no answer to request {self._next_id}: {line[:80]!r}")
        if not isinstance(answer.get("ok"), bool) and not isinstance(answer.get("unsupported"), str):
            raise self._crash(f"neither ok nor unsupported: {line[:80]!r}")
        return answer

    def kill(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()

    def peak_mb(self, reset: bool = False) -> float | None:
        """Peak resident memory since the last reset, where the system tells."""
        if self._process is None:
            return None
        folder = Path(f"/proc/{self._process.pid}")
        try:
            if reset:
                (folder / "clear_refs").write_text("5")
            text = (folder / "status").read_text()
        except OSError:
            return None
        found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")]
        return int(found[0]) / 1024 if found else None

    def bytes_read(self) -> int | None:
        """Bytes read so far by system calls, where the system tells."""
        if self._process is None:
            return None
        try:
            text = Path(f"/proc/{self._process.pid}/io").read_text()
        except OSError:
            return None
        return int(text.partition("rchar:")[2].split()[0])

    def start(self) -> None:
        """Start the adapter where it is not running, and hear what it says about itself."""
        if self._process is not None:
            return
        self._answers = queue.Queue()
        self._said = b""
        bound = self._bound if self.memory_mb else None
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=bound,  # noqa: PLW1509 - no thread of ours holds a lock then, and only setrlimit runs
            )
        except OSError as found:
            raise CrashError(f"cannot be started: {found}") from found
        for work in (self._read_answers, self._read_errors):
            threading.Thread(target=work, args=(self._process, self._answers), daemon=True).start()
        answer = self.ask({"op": "hello"}, HELLO_S)
        if answer.get("ok") is not True or answer.get("protocol") != 1 or not isinstance(answer.get("ops"), list):
            raise self._crash(f"hello was answered with {printable(json.dumps(answer))}")
        self.reader = {key: answer.get(key) for key in ("name", "version", "language", "protocol", "ops", "codecs")}

    def _bound(self) -> None:
        limit = self.memory_mb << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def _crash(self, what: str) -> CrashError:
        status = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                status = self._process.wait(1.0)
        self.kill()
        said = self._said.decode("utf-8", "replace").strip().splitlines()
        last = f"; it said: {said[-1]}" if said else ""
        return CrashError(f"{what}{f', exit status {status}' if status is not None else ''}{last}")

    @staticmethod
    def _read_answers(process: subprocess.Popen[bytes], answers: queue.Queue[bytes | None]) -> None:
        assert process.stdout is not None
        with suppress(OSError, ValueError):
            for line in iter(lambda: process.stdout.readline(LINE_BYTES), b""):  # type: ignore[union-attr]
                answers.put(line)
        answers.put(None)

    def _read_errors(self, process: subprocess.Popen[bytes], _: object) -> None:
        assert process.stderr is not None
        with suppress(OSError, ValueError):
            for line in process.stderr:
                self._said = (self._said + line)[-STDERR_BYTES:]


# ------------------------------------------------------------------------------------------------ judging


def judge(case: dict[str, Any], answer: dict[str, Any], out: Path) -> tuple[str, str]:
    """Outcome and detail of an answer."""
    if "unsupported" in answer:
        return "unsupported", str(answer["unsupported"])
    expect = case["expect"]
    if expect["verdict"] == "reject" or (expect["verdict"] == "either" and not answer["ok"]):
        return _judge_refusal(expect, answer, out)
    if not answer["ok"]:
        return "wrong", f"refused with {answer.get('code')}: {answer.get('message')}"
    fault = _output_fault(case, answer, out)
    return ("wrong", fault) if fault else ("pass", "")


def _judge_refusal(expect: dict[str, Any], answer: dict[str, Any], out: Path) -> tuple[str, str]:
    if answer["ok"]:
        return "wrong", f"accepted; expected {' or '.join(expect['codes'])}"
    code, of_class = answer.get("code"), answer.get("class")
    if os.path.lexists(out):
        return "wrong", f"refused with {code}, but wrote a result"
    if code not in expect["codes"] or of_class != CLASSES.get(str(code).partition(".")[0]):
        return "wrong-class", f"{of_class} {code}; expected {' or '.join(expect['codes'])}: {answer.get('message')}"
    return "pass", ""


def _output_fault(case: dict[str, Any], answer: dict[str, Any], out: Path) -> str:
    """What is wrong with what was made; nothing where it is right."""
    expect = case["expect"]
    if case["op"] == "inspect":
        if answer.get("pack_id") != expect["pack_id"]:
            return f"pack_id {answer.get('pack_id')}; expected {expect['pack_id']}"
        wrong = [key for key in ("manifest", "storage") if rendering_digest(answer.get(key)) != expect[key]]
        return f"the rendering of {' and '.join(wrong)} differs" if wrong else ""
    if case["op"] == "folder":
        return _folder_fault(expect, out)
    if "outputs" not in expect:
        return ""
    if not out.is_file():
        return "nothing was written"
    if case["op"] == "apply":
        return _result_fault(expect["outputs"], [out.read_bytes()])
    (due,) = expect["outputs"]
    kind = (answer.get("dtype"), answer.get("shape"))
    if kind != (due["dtype"], due["shape"]):
        return f"{kind[0]} {kind[1]}; expected {due['dtype']} {due['shape']}"
    data = out.read_bytes()
    return "" if hashlib.sha256(data).hexdigest() == due["sha256"] else f"other bytes: {data[:32].hex()}"


def _folder_fault(expect: dict[str, Any], out: Path) -> str:
    """What is wrong with a folder; nothing where the files due are there and no others that hold or list tensors."""
    if out.is_symlink() or not out.is_dir():
        return "no folder was written"
    found = {path.name: path for path in sorted(out.iterdir())}
    for name, path in found.items():
        if path.is_symlink() or not path.is_file():
            return f"{name} is no file"
    for due in expect["files"]:
        if due["name"] not in found:
            return f"{due['name']} is missing; the folder holds {list(found)}"
        data = found[due["name"]].read_bytes()
        if (len(data), hashlib.sha256(data).hexdigest()) != (due["bytes"], due["sha256"]):
            return f"{due['name']} has other bytes: {len(data)}, which begin with {data[:32].hex()}"
    if "outputs" in expect:
        return _result_fault(expect["outputs"], [p.read_bytes() for n, p in found.items() if n.endswith(SHARD)])
    mixed = {name for name in found if name.endswith((SHARD, INDEX))} - {due["name"] for due in expect["files"]}
    return f"{sorted(mixed)} beside the files of the layout" if mixed else ""


def _result_fault(outputs: list[dict[str, Any]], files: Sequence[bytes]) -> str:
    """What is wrong with a result in one or more safetensors files."""
    made: dict[str, tuple[str, list[int], bytes]] = {}
    try:
        for data in files:
            tensors = dict(_tensors(data))
            if made.keys() & tensors.keys():
                return f"tensors twice: {sorted(made.keys() & tensors.keys())}"
            made |= tensors
    except (ValueError, KeyError, TypeError, struct.error) as found:
        return f"the output is no safetensors file: {found!r}"
    if set(made) != {due["name"] for due in outputs}:
        return f"tensors {sorted(made)}; expected {[due['name'] for due in outputs]}"
    for due in outputs:
        dtype, shape, held = made[due["name"]]
        if (dtype, shape) != (due["dtype"], due["shape"]):
            return f"{due['name']} is {dtype} {shape}; expected {due['dtype']} {due['shape']}"
        if hashlib.sha256(held).hexdigest() != due["sha256"]:
            return f"{due['name']} has other bytes: {held[:32].hex()}"
    return ""


def _tensors(data: bytes) -> Iterator[tuple[str, tuple[str, list[int], bytes]]]:
    """name -> dtype, shape, bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    start = 8 + length
    for name, each in header.items():
        if name != "__metadata__":
            first, end = each["data_offsets"]
            if not 0 <= first <= end <= len(data) - start:
                raise ValueError(f"{name} lies outside of the file")
            yield name, (each["dtype"], each["shape"], data[start + first : start + end])


# ------------------------------------------------------------------------------------------------ the run


def load_cases(patterns: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """(area, case) of every case file, or of those whose id or area matches a pattern."""
    found = []
    for path in sorted(build.CASES.rglob("*.json")):
        names = (path.stem, path.parent.name)
        if not patterns or any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns):
            found.append((path.parent.name, json.loads(path.read_bytes())))
    order = [area for area, _ in build.AREAS]
    return sorted(found, key=lambda each: order.index(each[0]) if each[0] in order else len(order))


def request_of(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """The request that asks ``case``."""
    paths = {kind: str(build.input_path(kind, each["sha256"])) for kind, each in case["inputs"].items()}
    if case["op"] == "folder":
        packs = [paths[kind] for kind in ("before", "pack") if kind in paths]
        return {"op": "folder", "packs": packs, "base": str(base_folder(out)), "out": str(out), **case["args"]}
    wants_out = {"out": str(out)} if case["op"] in ("decode", "slice", "apply") else {}
    return {"op": case["op"], **paths, **case["args"], **wants_out}


def base_folder(out: Path) -> Path:
    """The folder that holds the base of the op ``folder``."""
    return out.with_name(f"{out.name}-base")


def _fill_base(folder: Path, case: dict[str, Any]) -> None:
    folder.mkdir()
    shutil.copyfile(build.input_path("base", case["inputs"]["base"]["sha256"]), folder / "model.safetensors")
    (folder / "config.json").write_bytes(b"{}")


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def ask(adapter: Adapter, area: str, case: dict[str, Any], out: Path, time_factor: float) -> Result:
    """One case, from request to outcome."""
    begun = time.monotonic()
    op, budgets = case["op"], case["budgets"]
    try:
        adapter.start()
        if op == "folder":
            _fill_base(base_folder(out), case)
        before, read_before = adapter.peak_mb(reset=True), adapter.bytes_read()
        answer = adapter.ask(request_of(case, out), budgets["wall_s"] * time_factor)
    except CrashError as found:
        outcome, detail = "crash", str(found)
    except HangError as found:
        outcome, detail = "hang", str(found)
    else:
        outcome, detail = judge(case, answer, out)
        after = adapter.peak_mb()
        if outcome == "pass" and before is not None and after is not None and after - before > budgets["rss_mb"]:
            outcome, detail = "memory", f"{after - before:.0f} MB more; the case allows {budgets['rss_mb']}"
        read_after = adapter.bytes_read()
        if outcome == "pass" and "read_bytes" in budgets and read_before is not None and read_after is not None:
            outcome, detail = _reading(read_after - read_before, budgets["read_bytes"])
    for path in (out, base_folder(out)):
        _clear(path)
    detail = detail.replace(f"{build.CACHE}{os.sep}", "")
    return Result(area, case["id"], op, case["expect"]["verdict"], outcome, printable(detail), time.monotonic() - begun)


def _reading(read: int, allowed: int) -> tuple[str, str]:
    return ("pass", "") if read <= allowed else ("reads", f"{read} bytes read; the case allows {allowed}")


def run(
    command: Sequence[str],
    patterns: Sequence[str] = (),
    memory_mb: int = 0,
    time_factor: float = 1.0,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Ask the adapter ``command`` every case. CrashError where it does not even answer hello."""
    build.ensure_inputs()
    with tempfile.TemporaryDirectory(prefix="skillpack-conformance-") as folder, Adapter(command, memory_mb) as adapter:
        adapter.start()
        report = Report(adapter.reader, is_partial=bool(patterns))
        for number, (area, case) in enumerate(load_cases(patterns)):
            if case["op"] in adapter.reader["ops"]:
                result = ask(adapter, area, case, Path(folder, f"out-{number}"), time_factor)
            else:
                result = Result(area, case["id"], case["op"], case["expect"]["verdict"], "unsupported")
            report.results.append(result)
            on_result(result)
    return report


def write_reports(report: Report, json_path: str | None, junit_path: str | None) -> None:
    """The files asked for."""
    if json_path:
        Path(json_path).write_text(json.dumps(report.plain(), indent=1) + "\n")
    if junit_path:
        Path(junit_path).write_bytes(report.junit())


def show(report: Report, shown: int = 50) -> None:
    """The report in plain text."""
    headers, rows = report.table()
    widths = [max(len(row[k]) for row in [headers, *rows]) for k in range(len(headers))]
    for row in [headers, *rows]:
        print("  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))))
    for each in report.failures[:shown]:
        print(f"{each.outcome:<12}{each.case} ({each.op}): {each.detail}")
    if len(report.failures) > shown:
        print(f"... and {len(report.failures) - shown} more; --json lists all")
    print(report.verdict)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m conformance.runner",
        usage="%(prog)s [options] -- COMMAND ...",
        description=__doc__.split("\n", 1)[0],
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--junit", metavar="FILE", help="write the report as JUnit XML")
    parser.add_argument("--only", metavar="PATTERN", action="append", default=[], help="cases or areas that match")
    parser.add_argument("--memory", metavar="MB", type=int, default=0, help="address space of the adapter (RLIMIT_AS)")
    parser.add_argument("--time", metavar="FACTOR", type=float, default=1.0, help="multiply the time of every case")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every case")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the adapter, after --")
    found = parser.parse_args(arguments)
    command = found.command[1:] if found.command[:1] == ["--"] else found.command
    if not command:
        parser.error("the adapter's command is missing")
    line: Callable[[Result], None] = lambda r: print(f"{r.outcome:<12}{r.case} {r.detail}", flush=True)  # noqa: E731
    try:
        report = run(command, found.only, found.memory, found.time, line if found.verbose else lambda result: None)
    except (CrashError, HangError) as failure:
        print(f"the adapter does not work: {failure}", file=sys.stderr)
        return 2
    write_reports(report, found.json, found.junit)
    show(report)
    return 0 if report.is_passed else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
