"""Measure one pair: every method's files and their function error. What peers gave is kept; SkillPack is always new.

A peer's points are used again while the pair and the modules that made them are the same, byte for byte.

    python -m benchmarks.size.measure PAIR [--again]
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.results import report
from benchmarks.size import ours
from benchmarks.size.bounds import bytes_by_exponent, with_noise
from benchmarks.size.change import Candidate, Change
from benchmarks.size.curves import Point
from benchmarks.size.functions import Function, function_of
from benchmarks.size.measured import CALIBRATED, LOW_RANK, MERGEKIT, NAME, Measured
from benchmarks.size.pairs import MEASURED, PAIRS, Pair
from benchmarks.size.peers import bands, deltatensors, lossless, lowrank, onebit
from benchmarks.size.peers.environment import Absent, Environment

HERE: Final = Path(__file__).parent
SOURCES: Final = {path.relative_to(HERE).as_posix(): path.read_bytes() for path in HERE.rglob("*.py")}  # as they run
SHARED_SOURCES: Final = ("functions.py", "causal.py", "change.py", "peers/packing.py", "peers/environment.py")


Named = tuple[str, Candidate]  # a method's name and one of its files


class Bench:
    """What the families of methods are run with."""

    def __init__(self, pair: Pair, *, again: bool, only_ours: bool) -> None:
        self.pair, self.again, self.only_ours = pair, again, only_ours
        self.folder = MEASURED / pair.name
        self.work = self.folder / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.change = Change(pair)
        self.function: Function = function_of(pair)
        self.function.prepare(self.change.base, self.change.tuned)
        self.environment = Environment()
        tuned_bytes = pair.tuned_file().stat().st_size
        self.measured = Measured(pair.name, pair.dtype, pair.reached(), tuned_bytes)
        self.measured.when = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC, {report.commit()}"
        self.measured.weights_changed = _share_changed(self.change)
        self.measured.noise_harm = self.function.error(with_noise(self.change))
        self.measured.by_exponent = bytes_by_exponent(self.change) if pair.dtype == "bf16" else None
        digest = hashlib.sha256(pair.base_file().read_bytes() + pair.tuned_file().read_bytes())
        self.key = digest.hexdigest()

    def family(self, name: str, sources: Sequence[str], work: Callable[[], Iterable[Named]]) -> None:
        """Points of a family of lossy peers, kept or measured."""

        def measure() -> dict[str, Any]:
            curves: dict[str, list[dict[str, Any]]] = {}
            for method, candidate in work():
                error = self.function.error(candidate.tensors)
                point = Point(candidate.label, candidate.nbytes, error)
                print(f"{self.pair.name} {method} {point.label}: {point.nbytes:,} bytes, error {error:.3g}", flush=True)
                curves.setdefault(method, []).append(asdict(point))
            return curves

        for method, points in self._kept(name, sources, measure).items():
            self.measured.curves[method] = [Point(**point) for point in points]

    def exact(self, method: Callable[[Change, Path, Environment], lossless.Exact]) -> None:
        """One lossless peer."""

        def measure() -> dict[str, Any]:
            found = method(self.change, self.work, self.environment)
            print(f"{self.pair.name} {found.method}: {found.nbytes:,} bytes", flush=True)
            return {found.method: found.nbytes}

        self.measured.exact.update(self._kept(method.__name__, ("peers/lossless.py",), measure))

    def ours(self) -> None:
        """SkillPack, lossy and lossless."""
        exact = ours.lossless(self.change, self.work)
        self.measured.exact[NAME] = exact.candidate.nbytes
        print(f"{self.pair.name} {NAME} lossless: {exact.candidate.nbytes:,} bytes", flush=True)
        self._note(exact)
        weights = ours.calibration(self.change, self.function, self.work).weights
        for name, measured in ((NAME, {}), (CALIBRATED, weights)):
            points = []
            for packed in ours.packs(self.change, self.work, measured):
                error = self.function.error(packed.candidate.tensors)
                point = Point(packed.candidate.label, packed.candidate.nbytes, error)
                print(f"{self.pair.name} {name} {point.label}: {point.nbytes:,} bytes, error {error:.3g}", flush=True)
                points.append(point)
                if name == NAME:
                    self._note(packed)
            points.append(Point("lossless", exact.candidate.nbytes, 0.0))
            self.measured.curves[name] = points

    def _note(self, packed: ours.Packed) -> None:
        entropy = packed.entropy
        self.measured.entropy.append(
            {
                "label": packed.candidate.label,
                "nbytes": entropy.file_bytes,
                "entropy": entropy.entropy_bytes,
                "header": entropy.header_bytes,
                "convert_seconds": packed.convert_seconds,
                "apply_seconds": packed.apply_seconds,
            }
        )

    def _kept(self, name: str, sources: Sequence[str], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What an earlier run measured on the same bytes with the same code, or what this one does."""
        self.measured.families += 1
        path = self.folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
        key = _digest_of(self.key, [*SHARED_SOURCES, *sources])
        if path.exists() and not self.again:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["key"] == key:
                self.measured.kept += 1
                found: dict[str, Any] = kept["found"]
                return found
        if self.only_ours:
            self.measured.absent[name] = "not measured, by --only-ours"
            return {}
        start = time.perf_counter()
        try:
            found = measure()
        except Absent as why:
            self.measured.absent[name] = str(why)
            print(f"{self.pair.name} {name} is left out: {why}", flush=True)
            return {}
        seconds = time.perf_counter() - start
        path.write_text(json.dumps({"key": key, "seconds": seconds, "found": found}, indent=1), encoding="utf-8")
        return found


def measure(pair: Pair, *, again: bool = False, only_ours: bool = False) -> Path:
    """Measure one pair with everything; the file that holds what was found."""
    torch.set_num_threads(1)
    bench = Bench(pair, again=again, only_ours=only_ours)
    change, function, work, environment = bench.change, bench.function, bench.work, bench.environment
    bench.ours()
    _low_rank(bench)
    name = "BitDelta, embeddings {} (clean-room)"
    bench.family("BitDelta", ("peers/onebit.py",), lambda: _variants(name, onebit.candidates(change, function)))
    for calibrated, how in ((False, "nearest"), (True, "GPTQ")):
        bench.family(
            f"bands, {how}",
            ("peers/bands.py", "peers/gptq.py"),
            lambda calibrated=calibrated, how=how: _variants(  # type: ignore[misc]
                f"SVD in 8/4/2 bits, {how}, embeddings {{}} (GraftLLM, clean-room)",
                bands.candidates(change, function, calibrated=calibrated),
            ),
        )
    sources = ("peers/deltatensors.py", "peers/deltatensors_inside.py")
    peer = "deltatensors 0.2.0 {}"
    bench.family("deltatensors", sources, lambda: _variants(peer, deltatensors.candidates(change, work, environment)))
    for method in lossless.METHODS:
        bench.exact(method)
    shutil.rmtree(work, ignore_errors=True)
    path = MEASURED / f"{pair.name}.json"
    bench.measured.save(path)
    return path


def _low_rank(bench: Bench) -> None:
    """Truncated SVD in bfloat16, in all its forms; a method's name begins with LOW_RANK or mergekit's."""
    change, work, environment = bench.change, bench.work, bench.environment
    for embeddings in ("whole", "low rank"):
        name = f"{LOW_RANK}, embeddings {embeddings} (clean-room)"
        bench.family(
            name,
            ("peers/lowrank.py",),
            lambda name=name, embeddings=embeddings: _named(name, lowrank.clean_room(change, embeddings=embeddings)),  # type: ignore[misc]
        )
    for embed_lora in (False, True):
        name = MERGEKIT + (" --embed-lora" if embed_lora else "") + " + PEFT"
        bench.family(
            name,
            ("peers/lowrank.py", "peers/merge_inside.py"),
            lambda name=name, embed_lora=embed_lora: _named(  # type: ignore[misc]
                name, lowrank.mergekit(change, work, environment, embed_lora=embed_lora)
            ),
        )


def _named(name: str, candidates: Iterable[Candidate]) -> Iterable[Named]:
    return ((name, candidate) for candidate in candidates)


def _variants(pattern: str, candidates: Iterable[tuple[str, Candidate]]) -> Iterable[Named]:
    return ((pattern.format(variant), candidate) for variant, candidate in candidates)


def _share_changed(change: Change) -> float:
    """The share of all elements that differ."""
    changed = sum(int((value != change.base[name]).sum()) for name, value in change.tuned.items())
    return changed / sum(value.numel() for value in change.tuned.values())


def _digest_of(key: str, sources: Sequence[str]) -> str:
    digest = hashlib.sha256(key.encode())
    for source in sources:
        digest.update(SOURCES[source])
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one pair that has been made."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.size.measure", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("pair", choices=[pair.name for pair in PAIRS])
    parser.add_argument("--again", action="store_true", help="measure peers anew, whatever an earlier run kept")
    parser.add_argument("--only-ours", action="store_true", help="SkillPack alone, for a quick look")
    options = parser.parse_args(arguments)
    pair = next(pair for pair in PAIRS if pair.name == options.pair)
    print(measure(pair, again=options.again, only_ours=options.only_ours))
    return 0


if __name__ == "__main__":
    sys.exit(main())
