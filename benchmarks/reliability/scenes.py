"""What is put to the test: commands on tiny checkpoints, and what may lie at their output before and after.

A scene is prepared again for every fault: inputs are made once and must never change, the box holds the output alone.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file
from skillpack_tools.cli import skillpack

from benchmarks.reliability.shim import Shim

Tree = dict[str, tuple[int, bytes]]  # path within the output, "" for a file -> mode, content

SHAPES: Final = {
    "embed.weight": (8, 4),
    "layers.0.mlp.down_proj.weight": (4, 8),
    "layers.0.mlp.up_proj.weight": (8, 4),
    "layers.0.norm.weight": (4,),
    "lm_head.weight": (8, 4),
}
PATIENCE_SECONDS: Final = 120  # a command that takes longer waits for what never comes, and is killed
DOCUMENTED: Final = frozenset({0, 1, 2, 3, 4, 5, 6, 130, 141})  # spec/errors.md, without 70: an internal error is a bug


@dataclass(frozen=True)
class Scene:
    """A command, and what its output holds before it (``old``, None for nothing) and after an undisturbed run."""

    name: str
    arguments: tuple[str, ...]
    output: str
    prepare: Callable[[Path], None] = lambda box: None
    writes: bool = True
    old: Tree | None = None
    new: Tree | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (negative: the signal that killed it), what it said, the calls it made."""

    status: int
    said: str
    calls: list[str] = field(default_factory=list)


class Stage:
    """Inputs, a box for the output, and commands run in forks of this process, under the shim if there is one."""

    def __init__(self, root: Path) -> None:
        self.files = root / "files"
        self.inputs = self.files / "inputs"
        self.box = self.files / "box"
        self.said = root / "said"
        self.seen = root / "calls"
        self.shim = Shim() if Shim.is_loaded() else None
        self.inputs.mkdir(parents=True)
        make_inputs(self.inputs)
        for pack in ("a", "b"):
            tuned = "tuned" if pack == "a" else "other"
            self._make("convert", "--base", "base", "--tuned", tuned, "-o", f"{pack}.skp", "--lossless")
            self._make("convert", "--base", "base.safetensors", "--tuned", f"{tuned}.safetensors")
        self._signature = self.input_signature()
        self._warm_up()

    def _warm_up(self) -> None:
        """Run every command once in this process: what it imports late, each fork would import again."""
        os.chdir(self.box)
        for scene in _scenes(self.inputs, self.box):
            self.reset(scene)
            with suppress(SystemExit), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                skillpack.main(list(scene.arguments), prog_name="skillpack")
        gc.freeze()

    def scenes(self) -> list[Scene]:
        """Every scene, with what an undisturbed run makes of it."""
        found = []
        for scene in _scenes(self.inputs, self.box):
            self.reset(scene)
            old = tree(self.box / scene.output)
            ended = self.run(scene.arguments)
            assert ended.status == 0, (scene.name, ended.said)
            new = tree(self.box / scene.output)
            assert old != new or not scene.writes
            assert leftovers(self.box) == []
            found.append(replace(scene, old=old, new=new))
        return found + [self._stopped(scene) for scene in found if scene.writes and self.shim]

    def _stopped(self, scene: Scene) -> Scene:
        """The scene again, with what a run leaves that was killed just before it would have published."""
        self.reset(scene)
        calls = self.run(scene.arguments).calls
        self.reset(scene)
        assert self.run(scene.arguments, calls.index("rename"), "kill-before").status < 0
        saved = self.files.parent / f"stopped {len(list(self.files.parent.iterdir()))}"
        shutil.copytree(self.box, saved)
        return replace(scene, name=f"{scene.name}, resumed", prepare=lambda box: copy_into(saved, box))

    def reset(self, scene: Scene) -> None:
        """The box as it is before the command runs."""
        self.box.mkdir(exist_ok=True)
        for each in self.box.iterdir():
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        scene.prepare(self.box)

    def run(
        self,
        arguments: Sequence[str],
        nth: int = -1,
        mode: str = "count",
        number: int = 0,
        trace: int = -1,
        starve: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Run a command in a fork, its ``nth`` call going wrong, or with less of something once ``starve`` has run."""
        child = os.fork()
        if child == 0:
            self._be_child(arguments, nth, mode, number, trace, starve)
        _, status = os.waitpid(child, 0)
        calls = self.seen.read_text().split() if self.seen.exists() else []
        self.seen.unlink(missing_ok=True)
        return Ended(os.waitstatus_to_exitcode(status), self.said.read_text(), calls)

    def _be_child(
        self,
        arguments: Sequence[str],
        nth: int,
        mode: str,
        number: int,
        trace: int,
        starve: Callable[[], None],
    ) -> None:
        status = 71
        try:
            said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(self.box)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(PATIENCE_SECONDS)
            words = list(arguments)
            if self.shim:
                self.shim.arm(self.files, nth, mode, number, trace)
            try:
                starve()
                skillpack.main(words, prog_name="skillpack")
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 0
            finally:
                if self.shim:
                    self.shim.disarm()
            sys.stdout.flush()
            sys.stderr.flush()
            if self.shim and mode == "count":
                self.seen.write_text(" ".join(self.shim.calls()))
        finally:
            os._exit(status)

    def input_signature(self) -> list[tuple[str, int, int, int]]:
        """What would change if an input were written to."""
        paths = sorted(path for path in self.inputs.rglob("*"))
        stats = [(str(path), path.lstat()) for path in paths]
        return [(path, each.st_ino, each.st_size, each.st_mtime_ns) for path, each in stats]

    def inputs_are_untouched(self) -> bool:
        return self.input_signature() == self._signature

    def _make(self, *arguments: str) -> None:
        """Run a command on the inputs themselves; without -o, the pack is named after the tuned file."""
        words = [str(self.inputs / word) if "." in word or word in INPUTS else word for word in arguments]
        if "-o" not in words:
            tuned = Path(words[words.index("--tuned") + 1])
            words += ["-o", str(tuned.with_name(f"{tuned.stem}-file.skp")), "--lossless"]
        self.box.mkdir(exist_ok=True)
        ended = self.run(words)
        assert ended.status == 0, ended.said


INPUTS: Final = ("base", "tuned", "other")


def make_inputs(folder: Path) -> None:
    """Base and two fine-tunes, each as a folder of two shards and as one file."""
    random = np.random.default_rng(5)
    base = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    models = {"base": base}
    for name, step in (("tuned", 0.01), ("other", 0.3)):
        models[name] = {key: value + np.float32(step) * random.standard_normal(value.shape).astype(np.float32)
                        for key, value in base.items()}  # fmt: skip
        models[name]["layers.0.mlp.up_proj.weight"] = base["layers.0.mlp.up_proj.weight"]
    for name, tensors in models.items():
        write_folder(folder / name, tensors, note=name)
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})


def write_folder(folder: Path, tensors: dict[str, np.ndarray], note: str) -> None:
    """A checkpoint of two shards, their index, a side file and a folder of documents."""
    folder.mkdir()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file_name, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / file_name, metadata={"format": "pt"})
    weight_map = ",".join(f'"{name}":"{file_name}"' for file_name, members in shards.items() for name in members)
    (folder / "model.safetensors.index.json").write_text(f'{{"metadata":{{}},"weight_map":{{{weight_map}}}}}')
    (folder / "config.json").write_text(f'{{"note": "{note}"}}')
    (folder / "docs").mkdir()
    (folder / "docs" / "README.md").write_text("documents\n")


def tree(path: Path) -> Tree | None:
    """Everything at ``path``; None for nothing."""
    if not os.path.lexists(path):
        return None
    if not path.is_dir():
        return {"": (path.lstat().st_mode, path.read_bytes())}
    found: Tree = {"": (path.lstat().st_mode, b"")}
    for each in sorted(path.rglob("*")):
        found[str(each.relative_to(path))] = (each.lstat().st_mode, b"" if each.is_dir() else each.read_bytes())
    return found


def copy_into(saved: Path, box: Path) -> None:
    """Everything in ``saved``, permissions included."""
    shutil.copytree(saved, box, dirs_exist_ok=True)


def leftovers(box: Path) -> list[str]:
    """What working on an output has beside it."""
    return sorted(name for name in os.listdir(box) if ".skillpack-" in name)


def _scenes(inputs: Path, box: Path) -> list[Scene]:
    base, tuned, other = (str(inputs / name) for name in INPUTS)
    file, tuned_file = str(inputs / "base.safetensors"), str(inputs / "tuned.safetensors")
    pack, file_pack = str(inputs / "a.skp"), str(inputs / "tuned-file.skp")
    skp, folder, single = (str(box / name) for name in ("p.skp", "out", "out.safetensors"))
    one = ("--threads", "1", "-q")

    def old_pack(box: Path) -> None:
        shutil.copy(inputs / "b.skp", box / "p.skp")
        (box / "p.skp").chmod(0o640)

    def old_folder(box: Path) -> None:
        shutil.copytree(other, box / "out")
        (box / "out").chmod(0o750)

    def old_file(box: Path) -> None:
        shutil.copy(inputs / "other.safetensors", box / "out.safetensors")
        (box / "out.safetensors").chmod(0o600)

    convert = ("convert", "--base", base, "--tuned", tuned, "-o", skp, *one)
    return [
        Scene("convert --lossless", (*convert, "--lossless"), "p.skp"),
        Scene("convert --recipe standard", convert, "p.skp"),
        Scene("convert --force", (*convert, "--lossless", "--force"), "p.skp", old_pack),
        Scene(
            "convert a file",
            ("convert", "--base", file, "--tuned", tuned_file, "-o", skp, "--lossless", *one),
            "p.skp",
        ),
        Scene("apply to a folder", ("apply", base, pack, "-o", folder, *one), "out"),
        Scene("apply to a folder --force", ("apply", base, pack, "-o", folder, "--force", *one), "out", old_folder),
        Scene("apply to a file", ("apply", file, file_pack, "-o", single, *one), "out.safetensors"),
        Scene(
            "apply to a file --force",
            ("apply", file, file_pack, "-o", single, "--force", *one),
            "out.safetensors",
            old_file,
        ),
        Scene("validate", ("validate", pack, "--base", base, "--deep"), "none", writes=False),
        Scene("inspect", ("inspect", pack), "none", writes=False),
    ]
