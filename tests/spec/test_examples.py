"""The packs and worked examples that stand in the specification, taken from its text and decoded by the library.

They were assembled by ``conformance/assemble.py``, which shares no code with the library and computes with exact
rationals, so text, assembler and library must agree bit for bit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import skillpack_format as skp
from skillpack_format import contents, making, wire
from skillpack_format.arithmetic import NUMPY_BENCH
from skillpack_format.catalog import ENCODINGS
from skillpack_format.container import read_header
from skillpack_format.digest import TensorKind
from skillpack_format.dtypes import dtype_named
from skillpack_format.limits import DEFAULT_LIMITS
from skillpack_format.making import Change
from skillpack_format.ops.inspection import render
from skillpack_format.stores.safetensors_files import open_checkpoint

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "spec"
FENCE = re.compile(r"^```(\w+) (\w+)=([\w-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> dict[tuple[str, str, str], str]:
    """Every fenced block with a label: (language, label, name) -> text."""
    return {match.group(1, 2, 3): match.group(4) for match in FENCE.finditer(page.read_text())}


def from_hex(text: str) -> bytes:
    return bytes.fromhex(re.sub(r"#.*", "", text))


PACKS = blocks(SPEC / "examples.md")
PACK_NAMES = sorted({name for _, label, name in PACKS if label == "pack"})


def worked_examples() -> Iterator[Any]:
    for page in sorted((SPEC / "encodings").glob("*.md")):
        found = blocks(page)
        for language, label, name in found:
            if (language, label) == ("json", "example"):
                yield pytest.param(json.loads(found[language, label, name]), found["hex", "example", name], id=name)


@pytest.fixture(params=PACK_NAMES)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """A pack of examples.md as files: its name, the pack, the base."""
    base, pack = tmp_path / "base.safetensors", tmp_path / "example.skp"
    base.write_bytes(from_hex(PACKS["hex", "base", request.param]))
    pack.write_bytes(from_hex(PACKS["hex", "pack", request.param]))
    return request.param, pack, base


def test_there_are_at_least_three_example_packs() -> None:
    assert len(PACK_NAMES) >= 3


def test_every_encoding_has_a_worked_example() -> None:
    assert {param.values[0]["component"]["encoding"] for param in worked_examples()} == set(ENCODINGS)


def test_an_example_pack_is_valid_and_has_its_pack_id(example: tuple[str, Path, Path]) -> None:
    name, pack, base = example
    report = skp.validate(pack, base=base, deep=True)
    assert report.problems == ()
    assert report.pack_id == PACKS["text", "pack_id", name].strip()


def test_an_example_pack_makes_its_result(example: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, pack, base = example
    skp.apply(base, [pack], tmp_path / "out.safetensors")
    with open_checkpoint(tmp_path / "out.safetensors") as made:
        found = [
            {"name": s.name, "dtype": s.dtype.name, "shape": list(s.shape), "hex": made.read(s.name).hex()}
            for s in made.specs.values()
        ]
    assert found == json.loads(PACKS["json", "result", name])["tensors"]


def test_an_example_pack_has_its_json_rendering(example: tuple[str, Path, Path]) -> None:
    name, pack, _ = example
    data = pack.read_bytes()
    header = read_header(lambda at, count: data[at : at + count], len(data), DEFAULT_LIMITS)
    for document, stored in (("manifest", header.manifest), ("storage", header.storage)):
        rendering = render(wire.read(stored, DEFAULT_LIMITS, document))
        assert rendering == json.loads(PACKS["json", document, name])
        schema = json.loads((SPEC / "schema" / f"{document}.schema.json").read_text())
        jsonschema.Draft202012Validator(schema).validate(rendering)


@pytest.mark.parametrize(("example", "content_hex"), list(worked_examples()))
def test_a_worked_example_decodes_to_its_result(example: dict[str, Any], content_hex: str) -> None:
    kind = TensorKind(example["tensor"]["dtype"], tuple(example["tensor"]["shape"]))
    component = dict(example["component"])
    encoding = ENCODINGS[component.pop("encoding")]
    digest = component.pop("sha256")
    target = contents.target_of(kind)
    params = encoding.parse(component, target, "example")
    specs = encoding.parts(params, target)
    assert [(s.name, s.width, s.count) for s in specs] == [
        (p["name"], p["width"], p["count"]) for p in example["parts"]
    ]
    parts = {p["name"]: np.frombuffer(bytes.fromhex(p["items"]), f"<u{p['width']}") for p in example["parts"]}
    stored = contents.store([parts[s.name] for s in specs], [s.width for s in specs], "raw", 4096)
    assert b"".join(stored.chunks) == bytes.fromhex(example["content"]) == from_hex(content_hex)
    assert stored.sha256.hex() == digest
    opened: Any = encoding.open(params, target, parts, "example")
    change = Change([opened], None) if encoding.adds(params) else Change([], opened)
    start = making.Start(
        np.frombuffer(bytes.fromhex(example["start"]), dtype_named(kind.dtype).bit_pattern), target.dtype
    )
    made = making.make(start, kind, change, NUMPY_BENCH, "example")
    assert made.tobytes().hex() == example["result"]


def test_the_assembler_finds_its_own_blocks_in_the_text() -> None:
    script = ROOT / "conformance" / "assemble.py"
    subprocess.run([sys.executable, script, "--check"], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["manifest.schema.json", "storage.schema.json"])
def test_the_shipped_schema_is_the_one_of_the_specification(name: str) -> None:
    shipped = Path(skp.__file__).parent / "schema" / name
    assert shipped.read_bytes() == (SPEC / "schema" / name).read_bytes()
