"""The layers of the library: every import, lazy ones included, goes to a lower layer; nothing else is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "skillpack_format"
ROOT = "skillpack_format"
THIRD_PARTY = {
    "numpy",
    "msgpack",
    "zstandard",
    "safetensors",
    "jsonschema",
    "threadpoolctl",
    "torch",
    "transformers",
    "model_signing",
    "cryptography",
}

# From the ground up. A module may import what stands on a lower line, and on its own line what comes before it.
ORDER = """
lazy_numpy closing problems errors limits
dtypes names side_files fields wire digest bits codes arithmetic native groups
linalg slicing sources locks output_files output_paths durable journal progress storage
manifest
encodings._base codecs._base
encodings.* codecs.* stores.header stores.zip_records stores.tensor_pickles
stores.heads stores.safetensors_files stores.shards stores.torch_archives
catalog container
signatures
contents classes recipes sensitivity calibration planning listing
making
encoders
importers._base importers._adapter_config importers.matching
importers.*
coding surveying translating
records reader writer
ops.inspection ops.chain ops.folders ops.application ops.slices
ops.validation ops.chunks ops.carried ops.plans ops.conversion ops.importing
devices torch_bridge
loaded.undo loaded.slots loaded.lending loaded.probing loaded.factored loaded.stepping loaded.making loaded.unmaking
loaded.changes
loaded.attaching
loaded.unmerged
opening
__init__
"""
TYPING_ONLY = {"typing_extensions", "_typeshed"}


def names_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {names_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
ONLY = {  # a third-party package -> the modules that may import it
    "torch": {"devices", "torch_bridge", *(name for name in MODULES if name.startswith("loaded."))},
    "transformers": {"loaded.probing"},
    "zstandard": {"codecs.zstd"},
    "msgpack": {"wire"},
    "jsonschema": {"ops.validation"},
    "safetensors": {"stores.shards"},
    "threadpoolctl": {"ops.application", "ops.conversion"},
    "model_signing": {"signatures"},
    "cryptography": {"signatures"},
}
DOORS = {name for name in MODULES if name.endswith(".__init__")}


def places() -> dict[str, tuple[int, int]]:
    """Every module's line, and its place on the line."""
    found: dict[str, tuple[int, int]] = {}
    for line, words in enumerate(ORDER.strip().splitlines()):
        for place, word in enumerate(words.split()):
            if not word.endswith(".*"):
                found[word] = (line, place)
                continue
            room = word[:-1]
            for name in MODULES:
                if name.startswith(room) and name not in found and "_base" not in name and name not in DOORS:
                    found[name] = (line, place)
    return found


PLACES = places()


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names imported anywhere in a module, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.name, node.lineno) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name their module in full"
            for each in node.names:
                yield f"{node.module}.{each.name}", node.lineno


def own(name: str) -> str | None:
    """The module of this package that an import leads to."""
    if not name.startswith(f"{ROOT}."):
        return None
    rest = name.removeprefix(f"{ROOT}.")
    while rest and rest not in MODULES:
        if f"{rest}.__init__" in MODULES:
            return f"{rest}.__init__"
        rest = rest.rpartition(".")[0]
    return rest or None


def edges(name: str) -> set[str]:
    return {target for each, _ in imports(MODULES[name]) if (target := own(each)) is not None}


def test_every_module_has_its_layer() -> None:
    assert set(MODULES) - DOORS == set(PLACES)


@pytest.mark.parametrize("name", sorted(PLACES))
def test_imports_lead_downwards(name: str) -> None:
    line, place = PLACES[name]
    for target in edges(name):
        if target in DOORS:
            assert name == "catalog", f"{name} looks into {target}; only catalog does"
            continue
        below, before = PLACES[target]
        assert below < line or (below == line and before < place), f"{name} imports {target}, which is not below it"


@pytest.mark.parametrize("name", ["peft", "graftllm", "bitdelta", "wdelta"])
def test_importers_do_not_import_each_other(name: str) -> None:
    kinds = {f"importers.{each}" for each in ("peft", "graftllm", "bitdelta", "wdelta")}
    assert edges(f"importers.{name}") & kinds == set()


@pytest.mark.parametrize("room", ["encodings", "codecs"])
def test_modules_of_a_room_do_not_import_each_other(room: str) -> None:
    for name in MODULES:
        if name.startswith(f"{room}.") and name not in DOORS:
            assert [
                t for t in edges(name) if t.startswith(("encodings.", "codecs.", "stores.")) and t != f"{room}._base"
            ] == []


@pytest.mark.parametrize("name", sorted(DOORS))
def test_the_door_of_a_room_holds_words_only(name: str) -> None:
    body = MODULES[name].body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_only_the_standard_library_and_named_packages(name: str) -> None:
    for each, line in imports(MODULES[name]):
        top = each.partition(".")[0]
        if top == ROOT or top in sys.stdlib_module_names:
            continue
        if top in TYPING_ONLY:
            assert is_for_typing(MODULES[name], line), f"{name}:{line} imports {each} at run time"
            continue
        assert top in THIRD_PARTY, f"{name}:{line} imports {each}"
        assert name in ONLY.get(top, {name}), f"{name}:{line} imports {each}; only {ONLY.get(top)} may"


def is_for_typing(tree: ast.Module, line: int) -> bool:
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return any(block.lineno < line <= (block.end_lineno or 0) for block in blocks)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_star_imported(name: str) -> None:
    assert [line for each, line in imports(MODULES[name]) if each.endswith(".*")] == []


def test_nothing_imports_the_door_to_torch_but_the_opening_and_the_room_behind_it() -> None:
    found = {name for name in MODULES if "torch_bridge" in edges(name)}
    room = {f"loaded.{each}" for each in ("attaching", "factored", "making", "probing", "stepping", "unmaking")}
    assert found == room | {"opening"}


def test_nothing_imports_the_room_of_loaded_models_but_the_facade() -> None:
    outside = [name for name in MODULES if not name.startswith("loaded.")]
    assert [name for name in outside if any(each.startswith("loaded.") for each in edges(name))] == ["__init__"]


def test_only_the_catalog_and_what_writes_components_knows_single_encodings() -> None:
    def knows(name: str) -> bool:
        return any(
            target.startswith(("encodings.", "codecs.")) and "_base" not in target and target not in DOORS
            for target in edges(name)
        )

    assert [name for name in MODULES if knows(name)] == ["encoders", "importers._base", "translating"]


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in edges(name):
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_library_has_no_mouth_and_no_exit(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "input", "exit", "quit", "sys.exit", "eval", "exec", "breakpoint"), (
                f"line {node.lineno}"
            )


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_caught_blindly(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ExceptHandler):
            kind = ast.unparse(node.type) if node.type else "everything"
            rethrows = any(isinstance(each, ast.Raise) and each.exc is None for each in ast.walk(node))
            assert kind not in ("everything", "Exception", "BaseException") or rethrows, f"line {node.lineno}"
