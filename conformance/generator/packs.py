"""A whole pack from a random generator, with its base and the result that every reader must make of them.

The results are the oracle's, in exact rationals; nothing here is known by way of a reader. Some packs are valid by the
documents and must be refused in their arithmetic (an overflow, a source that is not finite); their ``codes`` say so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from conformance import assemble as oracle
from conformance.assemble import WIDTH, Component, Entry, Tensor
from conformance.assembler.draft import Change, Content, Files, Layout, Model, assembled, chunked, contents_of, made_of
from conformance.assembler.edits import encoded

from . import components, numbers, zstd

CLASSES = ("embedding", "head", "attention", "mlp", "expert", "router", "norm", "bias", "other")
FILES = (
    "README.md", "added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
    "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "vocab.json", "vocab.txt",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Made:
    """A generated pack. ``codes`` is empty where it must be accepted."""

    model: Model
    files: Files
    layout: Change
    codes: tuple[str, ...]

    @cached_property
    def contents(self) -> list[Content]:
        return contents_of(self.model)

    @cached_property
    def documents(self) -> tuple[bytes, bytes]:
        """MANIFEST and STORAGE."""
        return encoded(self.files.manifest), encoded(self.files.storage)

    def listing(self) -> str:
        """What a reader that accepts has made: a line for every tensor of the result, then one for every side file."""
        lines = [
            f"{name} {t.dtype} {','.join(map(str, t.shape))} {hashlib.sha256(t.data).hexdigest()}"
            for name, t in sorted(self.model.results.items())
        ]
        lines += [f"file {n} {hashlib.sha256(data).hexdigest()}" for n, data in sorted(self.model.files.items())]
        return "\n".join(lines)


def generated(rng: Random) -> Made:
    """A pack from ``rng``."""
    model, codes = _model(rng)
    layout = _layout(rng)
    return Made(model, assembled(model, [layout]), layout, codes)


def _layout(rng: Random) -> Change:
    """How the file of the base is laid out: any way that safetensors allows."""
    layout: dict[str, object] = {}
    if rng.random() < 0.3:
        layout = {"order": rng.choice(["ascending", "descending"]), "spaces": 8 * rng.randrange(3)}
        if rng.random() < 0.5:
            layout["metadata"] = {"format": "pt", "note": numbers.text(rng)}
    return Change(layout=layout)


def _model(rng: Random) -> tuple[Model, tuple[str, ...]]:
    base = {name: _tensor(rng) for name in _names(rng, rng.choice([0, 1, 1, 2, 3]))}
    entries, given, codes = _entries(rng, base)
    files = {name: _file(rng) for name in rng.sample(FILES, rng.choice([0, 0, 0, 1, 1, 2]))}
    metadata = {
        f"{rng.choice(['', 'a', 'z', 'Ab', '__proto__', '0', '10', '9'])}": numbers.text(rng)
        for _ in range(rng.randrange(3))
    }
    model = Model(base, entries, "raw", 1 << rng.choice([12, 12, 12, 13, 16, 24]), metadata, files, given=given)
    if rng.random() < 0.25:
        model.layout = _heads(rng)
    _store(rng, model)
    return model, codes


def _names(rng: Random, count: int) -> list[str]:
    return list(dict.fromkeys(numbers.name(rng) for _ in range(count)))


def _tensor(rng: Random, dtype: str = "", shape: list[int] | None = None) -> Tensor:
    dtype = dtype or (rng.choice(numbers.FLOATS) if rng.random() < 0.6 else rng.choice(numbers.DTYPES))
    shape = numbers.shape(rng, dtype) if shape is None else shape
    count = oracle.numel(shape)
    if dtype in numbers.FLOATS and rng.random() < 0.9:
        return Tensor(dtype, shape, numbers.finites(rng, dtype, count))
    return Tensor(dtype, shape, numbers.patterns(rng, dtype, count))


def _file(rng: Random) -> bytes:
    draw = rng.random()
    if draw < 0.1:
        return b""
    if draw < 0.14:
        return numbers.compressible(rng, rng.choice([4095, 4096, 4097, 8192, 9000]))
    return numbers.compressible(rng, rng.randint(1, 300))


def _heads(rng: Random) -> Layout:
    """A layout by its form only: no reader asked here uses one."""
    names = {f"{numbers.stem(rng)}.safetensors" for _ in range(rng.choice([1, 1, 2, 3]))}
    heads = {name: _file(rng) for name in names}
    has_index = len(heads) > 1 or rng.random() < 0.5
    return Layout(heads, (f"{numbers.stem(rng)}.safetensors.index.json", _file(rng)) if has_index else None)


# ------------------------------------------------------------------------------------------------ entries


def _entries(rng: Random, base: dict[str, Tensor]) -> tuple[list[Entry], dict[str, Tensor], tuple[str, ...]]:
    """Entries for some tensors of the base and some new ones, their results, and the codes where they have none."""
    found: list[Entry] = []
    given: dict[str, Tensor] = {}
    codes: list[str] = []
    new = [name for name in _names(rng, rng.choice([0, 0, 1, 1])) if name not in base]
    for name in [*(name for name in base if rng.random() < 0.85), *new]:
        before = base.get(name)
        if before is not None and rng.random() < 0.1:
            found.append(_entry(rng, name, None, None))
            continue
        result, parts, code = _changed(rng, before)
        if before is not None and result == before:
            continue  # unchanged tensors are not listed
        given[name] = result
        codes += [code] if code else []
        found.append(_entry(rng, name, parts, result))
    found += _aliases(rng, base, found, given)
    return found, given, tuple(codes)


def _entry(
    rng: Random, name: str, parts: list[Component] | None, result: Tensor | None, alias: str | None = None
) -> Entry:
    kind = None if result is None else (result.dtype, list(result.shape))
    stats: dict[str, Any] | None = None
    if rng.random() < 0.2:
        words = {"energy": 4, "error": 4, "norm": 4, "projection": 4, "spectrum": 16}
        stats = {word: rng.randbytes(size) for word, size in words.items() if rng.random() < 0.4}
        stats |= {"changed": rng.choice([0, 5, (1 << 64) - 1])} if rng.random() < 0.7 else {}
    module = numbers.name(rng) if rng.random() < 0.5 else ""
    return Entry(name, rng.choice(CLASSES), module, parts, kind, alias, stats)


def _changed(rng: Random, before: Tensor | None) -> tuple[Tensor, list[Component], str]:
    """A result, the components that make it, and the code where they must be refused."""
    dtype, shape = _kind(rng, before)
    for _ in range(8):
        parts = _components(rng, before, dtype, shape)
        try:
            return _make(before, dtype, shape, parts), parts, ""
        except oracle.Overflow:
            code = "payload.overflow"
        except oracle.NonFinite:
            code = "payload.nonfinite"
        if rng.random() < 0.1:
            count = oracle.numel(shape) * WIDTH[dtype][0] // 8
            return Tensor(dtype, shape, rng.randbytes(count)), parts, code
    return _changed(rng, before)


def _kind(rng: Random, before: Tensor | None) -> tuple[str, list[int]]:
    """The kind of a result: that of the base, with other rows, in another dtype, or another one altogether."""
    draw = rng.random()
    if before is None or draw < 0.1:
        made = _tensor(rng)
        return made.dtype, made.shape
    dtype, shape = before.dtype, list(before.shape)
    if draw < 0.35 and dtype in numbers.FLOATS:
        dtype = rng.choice(numbers.FLOATS)
    if 0.25 < draw < 0.45 and shape:
        rows = max(0, shape[0] + rng.randint(-2, 3))
        if rows * oracle.numel(shape[1:]) * WIDTH[dtype][0] % 8 == 0:
            shape[0] = rows
    return dtype, shape


def _components(rng: Random, before: Tensor | None, dtype: str, shape: list[int]) -> list[Component]:
    if oracle.numel(shape) == 0:
        return []
    may_be_none = (
        before is not None
        and oracle.is_compatible(before, dtype, shape)
        and (before.dtype, before.shape) != (dtype, shape)
    )
    return [] if may_be_none and rng.random() < 0.2 else components.listed(rng, dtype, shape)


def _make(before: Tensor | None, dtype: str, shape: list[int], parts: list[Component]) -> Tensor:
    return made_of(before, Entry("", "other", "", parts, (dtype, shape)))


def _aliases(rng: Random, base: dict[str, Tensor], entries: list[Entry], given: dict[str, Tensor]) -> list[Entry]:
    """Now and then a name for a tensor of the result, listed or not."""
    listed = {entry.name for entry in entries}
    targets = [*given, *(name for name in base if name not in listed)]
    if not targets or rng.random() > 0.2:
        return []
    target = rng.choice(targets)
    result = given.get(target) or base[target]
    name = rng.choice(_names(rng, 3))
    if name in listed or (name in base and base[name] == result) or name == target:
        return []
    return [_entry(rng, name, None, result, target)]


# ------------------------------------------------------------------------------------------------ storing


def _store(rng: Random, model: Model) -> None:
    """A codec for every segment, and frames for chunks that are longer than them."""
    for index, content in enumerate(contents_of(model)):
        if rng.random() < 0.5:
            continue
        model.codecs[index] = "zstd"
        for k, chunk in enumerate(chunked(content, model.chunk_bytes)):
            model.frames[index, k] = chunk
            if len(chunk) >= 12 and rng.random() < 0.9:
                frame = zstd.compressed(rng, chunk)
                model.frames[index, k] = frame if len(frame) < len(chunk) else chunk
