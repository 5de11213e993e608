"""MANIFEST: keys, types, values, shapes, components; every field of the document."""

from __future__ import annotations

from typing import Any

from conformance.assemble import WIDTH, Entry, Tensor
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import drop, insert, put, rename, swap
from conformance.assembler.suite import Suite

from .models import ENTRIES, dense, dense_add, q, raw, single, sparse, tensor

OF = "container-all-kinds-validate"
A, B, C, E, G, I = (ENTRIES[name] for name in ("a.bias", "b.weight", "c.weight", "e.ids", "g.up", "i.tied"))  # noqa: E741


def required(suite: Suite) -> None:
    places = (
        "base",
        "files",
        "format",
        "metadata",
        "result",
        "tensors",
        "base/count",
        "base/digest",
        "base/prints",
        "files/0/length",
        "files/0/name",
        "files/0/sha256",
        "result/count",
        "result/digest",
        f"tensors/{A}/class",
        f"tensors/{A}/module",
        f"tensors/{A}/name",
        f"tensors/{A}/base/dtype",
        f"tensors/{A}/base/sha256",
        f"tensors/{A}/base/shape",
        f"tensors/{A}/result/dtype",
        f"tensors/{A}/result/sha256",
        f"tensors/{A}/result/shape",
        f"tensors/{A}/components/0/encoding",
        f"tensors/{A}/components/0/sha256",
    )
    parameters = (
        *(f"tensors/{A}/components/0/{key}" for key in ("count", "dtype", "gaps", "index", "mode")),
        *(
            f"tensors/{B}/components/0/{key}"
            for key in ("packing", "slices", "slices/0/bits_u", "slices/0/bits_v", "slices/0/rank")
        ),
        *(f"tensors/{C}/components/0/{key}" for key in ("bits", "group", "packing", "scale")),
        *(f"tensors/{E}/components/0/{key}" for key in ("dtype", "mode")),
        *(
            f"tensors/{G}/components/0/{key}"
            for key in ("bands", "bands/0/code", "bands/0/rank", "group", "packing", "scale")
        ),
    )
    for path in (*places, *parameters):
        suite.reject(
            f"manifest-without-{_slug(path)}",
            f"MANIFEST without {path}",
            OF,
            Change(manifest=[drop(path)]),
            "manifest.missing-key",
            "manifest.missing-key",
        )


def unknown(suite: Suite) -> None:
    places = (
        "",
        "base",
        "result",
        "files/0",
        f"tensors/{A}",
        f"tensors/{A}/base",
        f"tensors/{A}/result",
        f"tensors/{C}/stats",
        f"tensors/{A}/components/0",
        f"tensors/{B}/components/0",
        f"tensors/{B}/components/0/slices/0",
        f"tensors/{B}/components/1",
        f"tensors/{C}/components/0",
        f"tensors/{E}/components/0",
        f"tensors/{G}/components/0",
        f"tensors/{G}/components/0/bands/0",
    )
    for path in places:
        suite.reject(
            f"manifest-unknown-in-{_slug(path) or 'top'}",
            f"A key more in {path or 'MANIFEST'}",
            OF,
            Change(manifest=[put(f"{path}/note".lstrip("/"), "hidden")]),
            "manifest.unknown-key",
            "manifest.unknown-key version.refuse",
            "No place to hide data.",
        )
    for path, to in (("metadata", "Metadata"), (f"tensors/{A}/class", "__class__"), ("format", "$schema")):
        suite.reject(
            f"manifest-renamed-{_slug(path)}",
            f"The key {path} is written {to}",
            OF,
            Change(manifest=[rename(path, to)]),
            "manifest.unknown-key manifest.missing-key",
            "manifest.unknown-key manifest.missing-key",
        )
    suite.reject(
        "manifest-parameter-of-another",
        "A sparse component with the key zero of blockq",
        OF,
        Change(manifest=[put(f"tensors/{A}/components/0/zero", 1)]),
        "manifest.unknown-key",
        "manifest.unknown-key",
    )


def typed(suite: Suite) -> None:
    integer, text, data, array, mapping = 1, "a", b"a", [], {}
    wrong: tuple[tuple[str, Any], ...] = (
        ("base", array),
        ("base/count", text),
        ("base/digest", "a" * 32),
        ("base/prints", "a" * 28),
        ("files", mapping),
        ("files/0", array),
        ("files/0/length", data),
        ("files/0/name", data),
        ("files/0/sha256", "a" * 32),
        ("format", data),
        ("metadata", array),
        ("metadata/license", data),
        ("metadata/license", integer),
        ("metadata/license", array),
        ("result", text),
        ("result/count", data),
        ("result/digest", array),
        ("tensors", mapping),
        (f"tensors/{A}", text),
        (f"tensors/{A}/name", data),
        (f"tensors/{A}/class", integer),
        (f"tensors/{A}/module", array),
        (f"tensors/{A}/base", array),
        (f"tensors/{A}/base/dtype", integer),
        (f"tensors/{A}/base/sha256", "a" * 32),
        (f"tensors/{A}/base/shape", integer),
        (f"tensors/{A}/base/shape", ["4"]),
        (f"tensors/{A}/result", text),
        (f"tensors/{A}/components", mapping),
        (f"tensors/{A}/components/0", array),
        (f"tensors/{A}/components/0/encoding", data),
        (f"tensors/{A}/components/0/sha256", "a" * 32),
        (f"tensors/{A}/components/0/count", text),
        (f"tensors/{A}/components/0/gaps", array),
        (f"tensors/{A}/components/0/index", integer),
        (f"tensors/{A}/components/0/mode", integer),
        (f"tensors/{A}/components/0/dtype", data),
        (f"tensors/{B}/components/0/slices", mapping),
        (f"tensors/{B}/components/0/slices/0", array),
        (f"tensors/{B}/components/0/slices/0/rank", text),
        (f"tensors/{B}/components/0/packing", integer),
        (f"tensors/{C}/components/0/bits", text),
        (f"tensors/{C}/components/0/group", data),
        (f"tensors/{C}/components/0/scale", integer),
        (f"tensors/{C}/components/0/zero", text),
        (f"tensors/{G}/components/0/bands", mapping),
        (f"tensors/{G}/components/0/bands/0", array),
        (f"tensors/{G}/components/0/bands/0/code", integer),
        (f"tensors/{I}/alias", data),
        (f"tensors/{C}/stats", array),
        (f"tensors/{C}/stats/changed", text),
        (f"tensors/{C}/stats/norm", integer),
        (f"tensors/{C}/stats/error", "abcd"),
    )
    names = {int: "an integer", str: "a str", bytes: "a bin", list: "an array", dict: "a map"}
    for path, value in wrong:
        kind = names[type(value)]
        suite.reject(
            f"manifest-type-{_slug(path)}-{kind.split()[1]}",
            f"{path} of MANIFEST is {kind}",
            OF,
            Change(manifest=[put(path, value)]),
            "manifest.type",
            "manifest.type",
        )


def values(suite: Suite) -> None:
    digest_places = (
        "base/digest",
        "result/digest",
        "files/0/sha256",
        f"tensors/{A}/base/sha256",
        f"tensors/{A}/result/sha256",
        f"tensors/{A}/components/0/sha256",
    )
    for path in digest_places:
        for length in (31, 33) if path in ("base/digest", f"tensors/{A}/result/sha256") else (0,):
            suite.reject(
                f"manifest-length-{_slug(path)}-{length}",
                f"{path} has {length} bytes",
                OF,
                Change(manifest=[put(path, bytes(length))]),
                "manifest.value",
                "manifest.value",
            )
    for length in (0, 27, 29, 24, 32):
        suite.reject(
            f"manifest-prints-{length}",
            f"The prints of 7 tensors have {length} bytes",
            OF,
            Change(manifest=[put("base/prints", bytes(length))]),
            "manifest.value",
            "manifest.value",
        )
    for key in ("energy", "error", "norm", "projection", "spectrum"):
        suite.reject(
            f"manifest-stats-{key}-3",
            f"The figure {key} has 3 bytes",
            OF,
            Change(manifest=[put(f"tensors/{C}/stats/{key}", bytes(3))]),
            "manifest.value",
            "manifest.value",
        )
    for k, text in enumerate(("skillpack/2", "skillpack/1.0", "Skillpack/1", "", "skillpack/1\n")):
        suite.reject(
            f"manifest-format-{k}",
            f"The format is {text!a}",
            OF,
            Change(manifest=[put("format", text)]),
            "manifest.value",
            "manifest.value/format",
        )
    for k, text in enumerate(("", "Attention", "attn", "other\n")):
        suite.reject(
            f"manifest-no-class-{k}",
            f"A class {text!a}",
            OF,
            Change(manifest=[put(f"tensors/{A}/class", text)]),
            "manifest.value",
            "manifest.value/class",
        )
    classes = ("embedding", "head", "attention", "mlp", "expert", "router", "norm", "bias", "other")
    for name in classes:
        entry = Entry("w", name, "", [dense("U8", b"\1")], ("U8", [1]))
        suite.accept(
            f"manifest-class-{name}",
            f"A tensor of the class {name}",
            Model({}, [entry]),
            "manifest.value/class document.informative",
            op="validate",
        )
    counts = (
        ("base/count", 6, "manifest.value", "base-count-prints", "base.count one below the prints"),
        ("result/count", 7, "manifest.value", "result-count-less", "result.count one too small"),
        ("result/count", 9, "manifest.value", "result-count-more", "result.count one too large"),
        ("result/count", 0, "manifest.value", "result-count-0", "result.count is 0"),
    )
    for path, value, code, name, title in counts:
        need = "manifest.value/result-count" if path.startswith("result") else "manifest.value"
        suite.reject(f"manifest-{name}", title, OF, Change(manifest=[put(path, value)]), code, need)
    suite.reject(
        "manifest-base-count-below",
        "base.count below the entries with base, prints and result.count to match",
        OF,
        Change(manifest=[put("base/count", 5), put("base/prints", bytes(20)), put("result/count", 6)]),
        "manifest.value",
        "manifest.value/base-count",
    )
    stats = Entry(
        "w",
        "other",
        "",
        [dense_add("F32", 1)],
        ("F32", [1]),
        stats={
            "changed": 1 << 60,
            "energy": b"\0\0\x80\xbf",
            "error": b"\xff" * 4,
            "norm": bytes.fromhex("0000c07f"),
            "projection": b"\0\0\x80\xff",
            "spectrum": b"\0\0\x80\xff" * 4,
        },
    )
    suite.accept(
        "manifest-stats-lies",
        "Figures that are impossible: NaN, infinity, more changes than elements",
        Model({"w": tensor("F32", [1], 1)}, [stats]),
        "document.informative",
        why="Figures are informative and never judged.",
    )


def entries(suite: Suite) -> None:
    plain = "encoding-plain"
    changed = single(dense_add("F32", 1, 2), "F32", [2], tensor("F32", [2], 1, 2))
    suite.accept(
        plain,
        "A tensor changed by one component",
        changed,
        "manifest.tensor manifest.tensor/unchanged "
        "manifest.components manifest.components/order manifest.components/arithmetic dense.add "
        "manifest.value/base-count manifest.value/result-count manifest.parameter manifest.parameter/dense-mode "
        "manifest.parameter/dense-dtype",
    )
    same = {"dtype": "F32", "sha256": changed.base["w"].plain()["sha256"], "shape": [2]}
    cases_: tuple[tuple[str, str, list[dict[str, Any]], str, str], ...] = (
        (
            "neither",
            "An entry with neither base nor result",
            [drop("tensors/0/base"), drop("tensors/0/result"), drop("tensors/0/components")],
            "manifest.tensor",
            "manifest.tensor",
        ),
        (
            "unchanged",
            "An entry whose result is its base",
            [put("tensors/0/result", same)],
            "manifest.tensor",
            "manifest.tensor/unchanged",
        ),
        (
            "no-components",
            "An entry with result, without components and alias",
            [drop("tensors/0/components")],
            "manifest.components",
            "manifest.components",
        ),
        (
            "none",
            "A changed entry of the same kind with no components",
            [put("tensors/0/components", [])],
            "manifest.components",
            "manifest.components/none",
        ),
        (
            "unknown-encoding",
            "An unknown encoding",
            [put("tensors/0/components/0/encoding", "dense2")],
            "unsupported.encoding",
            "unsupported.encoding version.refuse",
        ),
        (
            "unknown-encoding-keys",
            "An unknown encoding with keys of its own",
            [put("tensors/0/components/0", {"encoding": "x-later", "levels": [1, 2], "sha256": bytes(32)})],
            "unsupported.encoding",
            "unsupported.encoding version.private",
        ),
        (
            "empty-encoding",
            "The empty encoding",
            [put("tensors/0/components/0/encoding", "")],
            "unsupported.encoding",
            "unsupported.encoding",
        ),
        (
            "module-encoding",
            "An encoding named like a module of a program",
            [put("tensors/0/components/0/encoding", "os")],
            "unsupported.encoding",
            "unsupported.encoding safe.no-code",
        ),
    )
    for name, title, edits, code, requirement in cases_:
        suite.reject(f"entry-{name}", title, plain, Change(manifest=edits), code, requirement, op="validate")
    removed = "entry-removed"
    suite.accept(
        removed,
        "A tensor removed",
        Model({"a": raw("U8", [1], b"\1"), "w": raw("U8", [1], b"\2")}, [Entry("w", "other", "")]),
        "apply.removed manifest.components",
    )
    suite.reject(
        "entry-removed-with-components",
        "A removed tensor with components",
        removed,
        Change(manifest=[put("tensors/0/components", [])]),
        "manifest.components",
        "manifest.components",
        op="validate",
    )
    added = single(dense("U8", b"\1\2"), "U8", [2], None)
    suite.accept("entry-added", "A tensor added", added, "manifest.components/none dense.replace num.start")
    suite.reject(
        "entry-added-none",
        "An added tensor with elements and no components",
        "entry-added",
        Change(manifest=[put("tensors/0/components", [])]),
        "manifest.components",
        "manifest.components/none",
        op="validate",
    )
    empty = single([], "F32", [0, 4], None)
    suite.accept(
        "entry-added-empty",
        "A tensor without elements added",
        empty,
        "manifest.components/empty-tensor manifest.components/none",
    )
    component = {"dtype": "F32", "encoding": "dense", "mode": "replace", "sha256": bytes(32)}
    suite.reject(
        "entry-empty-with-component",
        "A tensor without elements with a component",
        "entry-added-empty",
        Change(manifest=[put("tensors/0/components", [component])]),
        "manifest.components",
        "manifest.components/empty-tensor",
        op="validate",
    )


def components(suite: Suite) -> None:
    base = tensor("F32", [2], 1, 2)
    add, put_back = dense_add("F32", 1, 2), dense("F32", tensor("F32", [2], 5, 6).data)
    orders = {
        "add-add": [add, dense_add("BF16", q(1, 2), q(-1, 4))],
        "add-replace": [add, put_back],
        "replace": [put_back],
        "add-add-replace": [add, dense_add("F16", 3, 4), put_back],
        "add-sparse-replace": [add, sparse("gap8", [1], "F32", tensor("F32", [1], 9).data)],
    }
    for name, parts in orders.items():
        suite.accept(
            f"components-{name}",
            f"Components in the order {name.replace('-', ', ')}",
            single(parts, "F32", [2], base),
            "manifest.components/order num.order dense.add dense.replace",
            with_base=True,
        )
    suite.reject(
        "components-exchanged",
        "A rewriting component before an additive one",
        "components-add-replace",
        Change(manifest=[swap("tensors/0/components", 0, 1)]),
        "manifest.components",
        "manifest.components/order",
        op="validate",
    )
    again = {"dtype": "F32", "encoding": "dense", "mode": "replace", "sha256": bytes(32)}
    suite.reject(
        "components-two-rewriting",
        "Two rewriting components",
        "components-replace",
        Change(manifest=[insert("tensors/0/components/1", again)]),
        "manifest.components",
        "manifest.components/order",
        op="validate",
    )
    suite.reject(
        "components-sparse-replace-then-add",
        "A sparse replacement, then an addition",
        "components-add-sparse-replace",
        Change(manifest=[swap("tensors/0/components", 0, 1)]),
        "manifest.components",
        "manifest.components/order",
        op="validate",
    )
    for dtype in ("F64", "I32", "U8", "F8_E4M3", "BOOL"):
        width = WIDTH[dtype][0] // 8
        model = single(dense(dtype, bytes([1]) * (2 * width)), dtype, [2], blank(dtype, 2))
        suite.accept(
            f"components-{dtype.lower()}-replaced",
            f"A tensor of {dtype} replaced",
            model,
            "dense.replace manifest.components/arithmetic unsupported.dtype",
        )
        adding = {"dtype": "F32", "encoding": "dense", "mode": "add", "sha256": bytes(32)}
        suite.reject(
            f"components-{dtype.lower()}-added",
            f"An addition to a tensor of {dtype}",
            f"components-{dtype.lower()}-replaced",
            Change(manifest=[put("tensors/0/components/0", adding)]),
            "manifest.components",
            "manifest.components/arithmetic",
            op="validate",
        )


def blank(dtype: str, count: int) -> Tensor:
    """A tensor of zero bytes."""
    return raw(dtype, [count], bytes(WIDTH[dtype][0] // 8 * count))


def kinds(suite: Suite) -> None:
    """Every dtype, and shapes."""
    for dtype, (bits, _) in WIDTH.items():
        count = 8
        data = bytes([1, 0] * (count * bits // 16)) if dtype == "BOOL" else bytes(range(1, 1 + count * bits // 8))
        suite.accept(
            f"dtype-{dtype.lower()}",
            f"A tensor of {dtype} added, another carried over",
            Model(
                {"kept": raw(dtype, [count], bytes(count * bits // 8))},
                [Entry("w", "other", "", [dense(dtype, data)], (dtype, [count]))],
            ),
            "unsupported.dtype dense.replace manifest.shape payload.value manifest.parameter/dense-dtype "
            "apply.unchanged",
        )
    of = "dtype-f32"
    for name in ("F128", "f32", "", "float32", "F8_E4M3FN", "object", "V16", "U4"):
        suite.reject(
            f"dtype-unknown-{_slug(name) or 'empty'}{'-lower' if name == 'f32' else ''}",
            f"The dtype {name!r}",
            of,
            Change(manifest=[put("tensors/0/result/dtype", name), put("tensors/0/components/0/dtype", name)]),
            "unsupported.dtype",
            "unsupported.dtype version.refuse",
            op="validate",
        )
    for dtype, shape in (("F4", [3]), ("F4", [1, 1]), ("F6_E2M3", [2]), ("F6_E3M2", [3, 1]), ("F4", [])):
        label = "-".join(map(str, shape)) or "scalar"
        suite.reject(
            f"shape-{dtype.lower()}-{label}",
            f"A tensor of {dtype} and shape {shape}: no whole bytes",
            f"dtype-{dtype.lower()}",
            Change(manifest=[put("tensors/0/result/shape", shape)]),
            "manifest.shape",
            "manifest.shape",
            op="validate",
        )
    for dtype, shape in (("F4", [2, 1]), ("F6_E2M3", [4]), ("F6_E3M2", [2, 2, 1])):
        size = 1
        for dim in shape:
            size *= dim
        data = bytes(range(1, 1 + size * WIDTH[dtype][0] // 8))
        suite.accept(
            f"shape-{dtype.lower()}-whole",
            f"A tensor of {dtype} and shape {shape}: whole bytes",
            single(dense(dtype, data), dtype, shape, None),
            "manifest.shape dense.replace",
        )
    for shape in ([], [1], [1] * 8, [2, 1, 3, 1, 1, 1, 1, 1]):
        size = 6 if len(shape) == 8 and shape[0] == 2 else 1
        made = single(dense("U16", bytes(range(2 * size))), "U16", shape, None)
        suite.accept(
            f"shape-{'-'.join(map(str, shape)) or 'scalar'}",
            f"A tensor of shape {shape}",
            made,
            "limit.exceeded/rank num.matrix dense.replace",
        )
    suite.accept(
        "shape-zero-and-large",
        "A tensor of shape (0, 2^40)",
        single([], "F32", [0, 1 << 40], None),
        "limit.exceeded/tensor-bytes reader.arithmetic manifest.components/empty-tensor",
        op="validate",
        why="No elements, so no bytes, whatever the other dimension.",
    )
    suite.accept(
        "shape-2-53",
        "A tensor of shape (2^53, 0): the rendering has text",
        single([], "U8", [1 << 53, 0], None),
        "json.rendering limit.exceeded/tensor-bytes",
        op="inspect",
    )


def parameters(suite: Suite) -> None:
    of = "encoding-plain"
    for mode in ("", "Add", "set", "xor"):
        suite.reject(
            f"dense-mode-{_slug(mode) or 'empty'}{'-upper' if mode == 'Add' else ''}",
            f"dense: the mode {mode!r}",
            of,
            Change(manifest=[put("tensors/0/components/0/mode", mode)]),
            "manifest.parameter",
            "manifest.parameter/dense-mode manifest.parameter",
            op="validate",
        )
    for dtype in ("F64", "I32", "F8_E4M3", "BOOL", "F4"):
        suite.reject(
            f"dense-add-of-{dtype.lower()}",
            f"dense: values of {dtype} added",
            of,
            Change(manifest=[put("tensors/0/components/0/dtype", dtype)]),
            "manifest.parameter",
            "manifest.parameter/dense-dtype manifest.parameter",
            op="validate",
        )
    for dtype in ("F16", "U32", "I32", "F64"):
        suite.reject(
            f"dense-replace-by-{dtype.lower()}",
            f"dense: an F32 tensor replaced by values of {dtype}",
            "components-replace",
            Change(manifest=[put("tensors/0/components/0/dtype", dtype)]),
            "manifest.parameter",
            "manifest.parameter/dense-dtype",
            op="validate",
        )
    suite.reject(
        "dense-dtype-unknown",
        "dense: values of a dtype that is not in the table",
        of,
        Change(manifest=[put("tensors/0/components/0/dtype", "F128")]),
        "unsupported.dtype manifest.parameter",
        "unsupported.dtype",
        op="validate",
    )


def _slug(path: str) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in path.lower())
    return "-".join(filter(None, kept.split("-")))


def cases(suite: Suite) -> None:
    required(suite)
    unknown(suite)
    typed(suite)
    values(suite)
    entries(suite)
    components(suite)
    kinds(suite)
    parameters(suite)
