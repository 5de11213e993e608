"""``skillpack apply`` against ``cp -r`` with the same fsync, PEFT, mergekit, BitDelta's load and a plain torch script.

One run, side by side, in turns, on a checkpoint of 1.1 billion generated weights in BF16 with packs of about 1 % and
5 %: time, peak memory, bytes read and written, and how much of the time is the verification of digests. Then the bytes
that an eighth of a tensor reads. Ends with 1 when a target is missed.

    python -m benchmarks.apply [--layers 22] [--turns 3] [--out benchmarks/out/apply] [--no-peers]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import skillpack_format as skp
from benchmarks.apply import generated, peers
from benchmarks.apply.measured import FailedError, Measured, run
from benchmarks.results import report
from skillpack_format.stores.safetensors_files import open_checkpoint

COPY: Final = "cp -r base OUT && find OUT -exec sync {} +"
PACKS: Final = {"one": 98, "five": 550}  # name: components of a linear layer
LIMIT_COPY: Final = 1.5  # times the copy, digests counted separately
LIMIT_PEERS: Final = (3.0, 1 / 3)  # times as fast as PEFT and mergekit, with this share of their memory
MERGERS: Final = ("PEFT load, merge, save", "mergekit passthrough of base+adapter")
GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """One command over all turns, and the copy of the same turn each time."""

    name: str
    runs: list[Measured] = field(default_factory=list)
    copies: list[Measured] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(each.seconds for each in self.runs)

    @property
    def ratio(self) -> float:
        """Of the time to the copy's: the median of the ratios within a turn."""
        return statistics.median(a.seconds / b.seconds for a, b in zip(self.runs, self.copies, strict=True))

    @property
    def peak(self) -> int:
        return max(each.peak_bytes for each in self.runs)


def prepare(folder: Path, layers: int) -> None:
    """Base, packs and adapters, made once."""
    if (folder / "READY").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print("making the checkpoint and the packs, which takes some minutes", flush=True)
    generated.write_checkpoint(folder / "base", layers)
    for name, components in PACKS.items():
        generated.write_pack(folder / "base", folder / f"{name}.skp", components)
    peers.write_adapter(folder / "adapter", layers)
    peers.write_signs(folder / "signs.safetensors", layers)
    (folder / "READY").touch()


def commands(folder: Path, *, with_peers: bool) -> tuple[dict[str, tuple[str, ...]], str]:
    """Every command by its name, the copy first, and a remark on the peers."""
    skillpack = str(Path(sys.executable).with_name("skillpack"))
    found = {"cp -r, fsync": ("sh", "-c", COPY)}
    for name in PACKS:
        size = (folder / f"{name}.skp").stat().st_size / folder_bytes(folder / "base")
        found[f"skillpack apply, pack of {100 * size:.1f} %"] = (
            skillpack, "apply", "base", f"{name}.skp", "-o", "OUT", "-q",
        )  # fmt: skip
    if not with_peers:
        return found, "not run"
    python, remark = peers.install(folder.parent.parent / "peers")
    if python is None:
        return found, f"skipped: {remark}"
    for peer in peers.peers(
        python, folder / "base", folder / "adapter", folder / "signs.safetensors", folder / "m.yml"
    ):
        found[peer.name] = peer.command
    return found, remark


def measure(folder: Path, found: dict[str, tuple[str, ...]], turns: int) -> tuple[list[Row], list[str]]:
    """All commands in turns; one that fails is left out, with its reason."""
    rows = {name: Row(name) for name in found}
    failures: list[str] = []
    os.chdir(folder)
    for turn in range(turns):
        copy: Measured | None = None
        for name, command in found.items():
            if name not in rows:
                continue
            try:
                taken = run([word.replace("OUT", "made") for word in command])
            except FailedError as failure:
                failures.append(f"{name} failed: {str(failure).splitlines()[-1]}")
                del rows[name]
                continue
            finally:
                for left in ("made", "made.cache"):
                    shutil.rmtree(left, ignore_errors=True)
                os.sync()  # the next command must not wait for what this one left unwritten
            copy = copy or taken
            rows[name].runs.append(taken)
            rows[name].copies.append(copy)
            print(f"turn {turn + 1}: {name}: {taken.seconds:.1f} s", flush=True)
    return list(rows.values()), failures


def hashing(threads: int, turns: int) -> tuple[list[str], float]:
    """The smaller pack applied within one process with SHA-256 and without: as words, and the share that hashing takes.

    The share is of processor time, which a busy machine distorts less than time.
    """
    script = str(Path(peers.__file__).parent / "scripts" / "unhashed.py")
    command = [sys.executable, script, "base", "one.skp", "made", str(threads)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(turns)
    ]
    words = []
    for name in ("hashed", "unhashed"):
        wall, used = (statistics.median(each[name][k] for each in runs) for k in (0, 1))
        words.append(f"{wall:.2f} s ({used:.2f} s of processors)")
    return words, statistics.median(1 - each["unhashed"][1] / each["hashed"][1] for each in runs)


def slices(folder: Path) -> tuple[list[list[str]], bool]:
    """Bytes read for an eighth of some tensors, of rows and of columns, against an eighth of their bytes plus 1 MiB."""
    counted = 0
    real = os.preadv

    def counting(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal counted
        count = real(descriptor, buffers, offset)
        counted += count
        return count

    rows, good = [], True
    names = ["lm_head.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"]
    os.preadv = counting  # type: ignore[assignment]
    try:
        for pack in PACKS:
            with skp.open_applied(folder / "base", folder / f"{pack}.skp") as applied:
                for name in names:
                    m, n = applied.get_slice(name).get_shape()
                    limit = 2 * m * n // 8 + (1 << 20)
                    for what, index in (("rows", (slice(m // 8, m // 4),)), ("columns", (slice(None), slice(n // 8)))):
                        counted = 0
                        _ = applied.get_slice(name)[index]
                        good &= counted <= limit
                        rows.append([f"{pack}.skp", name, what, f"{counted:,}", f"{limit:,}", yes(counted <= limit)])
    finally:
        os.preadv = real
    return rows, good


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def yes(good: bool) -> str:
    return "yes" if good else "no"


def targets(rows: Sequence[Row], share: float, largest: int) -> list[list[str]]:
    """Each target, what was found, and whether it is met. ``share`` is what hashing takes."""
    ours = rows[1]
    without = ours.ratio * (1 - share)
    found = [["time without digests, of the copy's", f"{without:.2f}", f"{LIMIT_COPY}", yes(without <= LIMIT_COPY)]]
    found.append(["time with digests, of the copy's", f"{ours.ratio:.2f}", "", ""])
    peak, limit = max(each.peak for each in rows[1:3]), 2 * GIB + 3 * largest
    found.append(["peak memory, MiB", f"{peak >> 20:,}", f"{limit >> 20:,}", yes(peak <= limit)])
    for row in rows:
        if row.name in MERGERS:
            faster, share = row.seconds / ours.seconds, ours.peak / row.peak
            good = faster >= LIMIT_PEERS[0] and share <= LIMIT_PEERS[1]
            text = f"{faster:.1f}, {share:.2f}"
            found.append([f"times as fast as {row.name}; share of its memory", text, "3, 0.33", yes(good)])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.apply", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=generated.LAYERS, help="layers of the model (default: 22, 1.1 B)")
    parser.add_argument("--turns", type=int, default=3, help="runs of each command, in turns (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/apply"), help="where everything is made")
    parser.add_argument("--no-peers", action="store_true", help="leave PEFT, mergekit, BitDelta and torch out")
    options = parser.parse_args(arguments)
    folder = (options.out / f"layers-{options.layers}").resolve()
    prepare(folder, options.layers)
    found, remark = commands(folder, with_peers=not options.no_peers)
    load = os.getloadavg()[0]
    rows, failures = measure(folder, found, options.turns)
    threads = os.cpu_count() or 1
    words, share = hashing(threads, options.turns)
    with open_checkpoint(folder / "base") as checkpoint:
        largest = max(spec.nbytes for spec in checkpoint.specs.values())
    sliced, slices_good = slices(folder)
    met = targets(rows, share, largest)
    headers = ["command", "seconds", "of the copy", "processor s", "peak MiB", "read MB", "written MB"]
    table = [
        [
            row.name,
            f"{row.seconds:.2f}",
            f"{row.ratio:.2f}",
            f"{statistics.median(each.cpu_seconds for each in row.runs):.2f}",
            f"{row.peak >> 20:,}",
            f"{row.runs[-1].read_bytes / 1e6:,.0f}",
            f"{row.runs[-1].written_bytes / 1e6:,.0f}",
        ]
        for row in rows
    ]
    sections = [
        f"Base: {folder_bytes(folder / 'base'):,} bytes, {options.layers} layers of TinyLlama's shapes, BF16, "
        f"generated weights. {options.turns} turns; seconds are medians, ratios medians of the ratios within a turn. "
        f"Load average before the first turn: {load:.1f}. Peers: {remark}. Every command starts with warm caches; only "
        "the copy and skillpack force their output to disk. Bytes are those of read and write calls; what a program "
        "maps is not seen.",
        *failures,
        report.markdown(headers, table),
        f"The smaller pack applied within one process, {threads} threads: {words[0]}, without SHA-256 {words[1]}: "
        f"hashing takes {100 * share:.0f} % (`scripts/unhashed.py`).",
        "## Targets",
        report.markdown(["target", "found", "limit", "met"], met),
        "## An eighth of a tensor",
        report.markdown(["pack", "tensor", "eighth", "bytes read", "an eighth + 1 MiB", "met"], sliced),
    ]
    report.show("Applying", headers, table)
    report.show("Targets", ["target", "found", "limit", "met"], met)
    report.write("apply.md", "benchmarks.apply", "Applying", "\n\n".join(sections))
    return 0 if slices_good and all(row[-1] != "no" for row in met) else 1


if __name__ == "__main__":
    sys.exit(main())
