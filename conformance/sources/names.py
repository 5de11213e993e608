"""Names of tensors and modules, their order; aliases; side files."""

from __future__ import annotations

from conformance.assemble import Entry
from conformance.assembler.draft import Change, Model
from conformance.assembler.edits import drop, put, swap
from conformance.assembler.suite import Suite

from .models import ENTRIES, dense, raw, tensor

OF = "container-all-kinds-validate"
A, I = ENTRIES["a.bias"], ENTRIES["i.tied"]  # noqa: E741
SIDE_FILES = (
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def one(name: str, module: str = "") -> Model:
    return Model({"beside": raw("U8", [1], b"\1")}, [Entry(name, "other", module, [dense("U8", b"\7")], ("U8", [1]))])


def tensors(suite: Suite) -> None:
    legal = {
        "one-character": "!",
        "tilde": "~",
        "path": "../../etc/passwd",
        "absolute": "/abs/name",
        "windows": "C:\\x",
        "markup": "[bold]x[/bold]",
        "format": "{0.__class__}%n%s",
        "proto": "__proto__",
        "digits": "0",
        "dots": "..",
        "option": "-rf",
        "shell": "$(x);`y`",
        "quotes": "a\"b'c",
        "upper": "W",
        "hash": "#x",
        "ci": "::error::x",
    }
    for name, text in legal.items():
        suite.accept(
            f"name-{name}",
            f"A tensor named {text}",
            one(text),
            "manifest.name document.names-opaque safe.no-paths safe.no-reach",
            why="Names are opaque: visible ASCII is enough.",
        )
    for count in (511, 512):
        suite.accept(
            f"name-of-{count}", f"A name of {count} bytes", one("n" * count), "limit.exceeded/name manifest.name"
        )
        suite.accept(
            f"module-of-{count}",
            f"A module of {count} bytes",
            one("w", "m" * count),
            "limit.exceeded/name manifest.name/module",
            op="validate",
        )
    suite.accept(
        "name-metadata-in-part",
        "A tensor named __metadata__2, of a module named __metadata__",
        one("__metadata__2", "__metadata__"),
        "manifest.name manifest.name/module",
        op="validate",
    )
    suite.reject(
        "name-metadata",
        "A tensor named __metadata__",
        OF,
        Change(manifest=[put(f"tensors/{A}/name", "__metadata__")]),
        "manifest.name",
        "manifest.name",
        "A safetensors file has its metadata under this name.",
    )
    illegal = {
        "empty": "",
        "space": "a b",
        "nul": "a\0b",
        "del": "a\x7f",
        "escape": "\x1b[2J",
        "line-feed": "a\nb",
        "return": "a\rb",
        "csi": "a\x9b2J",
        "latin": "a\u00e9",
        "combining": "ae\u0301",
        "bidi": "a\u202eb",
        "zero-width": "a\u200bb",
        "cyrillic": "al\u0430yers",
        "tag": "a\U000e0041",
        "trailing-line-feed": "a\n",
        "leading-space": " a",
        "tab": "\t",
    }
    for name, text in illegal.items():
        suite.reject(
            f"name-{name}",
            f"A tensor named {text!a}",
            OF,
            Change(manifest=[put(f"tensors/{A}/name", text)]),
            "manifest.name",
            "manifest.name",
        )
        if text:
            suite.reject(
                f"module-{name}",
                f"A module named {text!a}",
                OF,
                Change(manifest=[put(f"tensors/{A}/module", text)]),
                "manifest.name",
                "manifest.name/module",
            )
    suite.accept("module-empty", "An empty module", one("w", ""), "manifest.name/module", op="validate")
    suite.accept(
        "module-markup",
        "A module of markup and dots",
        one("w", "[red]../x[/red]"),
        "manifest.name/module document.informative",
        op="validate",
    )
    for key in ("name", "module"):
        suite.reject(
            f"{key}-of-513",
            f"A {key} of 513 bytes",
            OF,
            Change(manifest=[put(f"tensors/{A}/{key}", "a" * 513)]),
            "limit.exceeded",
            "limit.exceeded/name limit.exceeded",
        )
        suite.reject(
            f"{key}-of-1-mib",
            f"A {key} of 1 MiB",
            OF,
            Change(manifest=[put(f"tensors/{A}/{key}", "a" * (1 << 20))]),
            "limit.exceeded",
            "limit.exceeded/name error.text",
        )


def orders(suite: Suite) -> None:
    names = ["A", "B", "_", "a", "a.", "a.b", "a/b", "aa", "b"]
    made = Model({}, [Entry(n, "other", "", [dense("U8", bytes([k]))], ("U8", [1])) for k, n in enumerate(names)])
    suite.accept(
        "order-bytes", "Names in the order of their bytes, prefixes first", made, "manifest.order digest.checkpoint"
    )
    suite.reject(
        "order-entries-exchanged",
        "Two entries exchanged",
        "order-bytes",
        Change(manifest=[swap("tensors", 3, 4)]),
        "manifest.order",
        "manifest.order",
        op="validate",
    )
    suite.reject(
        "order-entries-repeated",
        "The same name twice",
        "order-bytes",
        Change(manifest=[put("tensors/4/name", "a")]),
        "manifest.order",
        "manifest.order",
        op="validate",
    )
    suite.reject(
        "order-entries-without-case",
        "Names ordered without case",
        "order-bytes",
        Change(manifest=[swap("tensors", 1, 3)]),
        "manifest.order",
        "manifest.order",
        op="validate",
    )


def aliases(suite: Suite) -> None:
    base = {"a": tensor("F32", [2], 1, 2), "z": tensor("F32", [2], 5, 6)}
    new = Entry("m", "other", "", [dense("U8", b"\1\2")], ("U8", [2]))
    tied = Entry("n", "other", "", None, ("U8", [2]), alias="m")
    third = Entry("o", "other", "", None, ("U8", [2]), alias="m")
    suite.accept(
        "alias-listed",
        "Two aliases of one added tensor",
        Model(base, [new, tied, third]),
        "apply.alias manifest.alias manifest.alias/target",
    )
    suite.accept(
        "alias-decode",
        "An alias asked for by name: decode",
        Model(base, [new, tied, third]),
        "apply.alias",
        op="decode",
        tensor="o",
    )
    unlisted = Entry("n", "other", "", None, ("F32", [2]), alias="z")
    suite.accept(
        "alias-unlisted",
        "An alias of an unchanged tensor",
        Model(base, [unlisted]),
        "apply.alias manifest.alias/unlisted",
    )
    changed = Entry("a", "other", "", None, ("F32", [2]), alias="z")
    suite.accept(
        "alias-changed",
        "A tensor of the base becomes an alias",
        Model(base, [changed]),
        "apply.alias manifest.alias/unlisted manifest.components",
    )
    early = [Entry("b", "other", "", None, ("U8", [2]), alias="m"), new]
    suite.accept(
        "alias-before-target",
        "An alias that comes before the tensor it names",
        Model(base, early),
        "apply.alias manifest.alias/target layout.contents",
    )
    swapped = Model(
        base,
        [
            Entry("a", "other", "", [dense("F32", tensor("F32", [2], 9, 8).data)], ("F32", [2])),
            Entry("z", "other", "", None, ("F32", [2]), alias="a"),
        ],
    )
    suite.accept(
        "alias-of-changed",
        "A tensor of the base becomes an alias of a changed one",
        swapped,
        "apply.alias manifest.alias/target",
    )
    listed = "alias-listed"
    other = {"dtype": "U8", "sha256": bytes(32), "shape": [2]}
    changes = (
        ("to-itself", "An alias of itself", [put("tensors/1/alias", "n")], "manifest.alias/target"),
        ("to-alias", "An alias of an alias", [put("tensors/2/alias", "n")], "manifest.alias/target"),
        (
            "cycle",
            "Two aliases of each other",
            [put("tensors/1/alias", "o"), put("tensors/2/alias", "n")],
            "manifest.alias/target",
        ),
        (
            "other-digest",
            "An alias whose result has another digest",
            [put("tensors/1/result", other)],
            "manifest.alias/target",
        ),
        (
            "other-shape",
            "An alias whose result has another shape",
            [put("tensors/1/result/shape", [1, 2])],
            "manifest.alias/target",
        ),
        (
            "other-dtype",
            "An alias whose result has another dtype",
            [put("tensors/1/result/dtype", "I8")],
            "manifest.alias/target",
        ),
    )
    for name, title, edits, requirement in changes:
        suite.reject(
            f"alias-{name}", title, listed, Change(manifest=edits), "manifest.alias", requirement, op="validate"
        )
    for k, name in enumerate(("", "a b", "m\n", "\u00e9", "\x1b[2J", "__metadata__")):
        suite.reject(
            f"alias-name-{k}",
            f"An alias of {name!a}",
            listed,
            Change(manifest=[put("tensors/1/alias", name)]),
            "manifest.name",
            "manifest.name/alias",
            op="validate",
        )
    suite.reject(
        "alias-of-513",
        "An alias of a name of 513 bytes",
        listed,
        Change(manifest=[put("tensors/1/alias", "m" * 513)]),
        "limit.exceeded",
        "limit.exceeded/name",
        op="validate",
    )
    suite.variant(
        "alias-of-512",
        "An alias of a name of 512 bytes that the pack does not list, no base given",
        "alias-unlisted",
        Change(manifest=[put("tensors/0/alias", "m" * 512)]),
        "limit.exceeded/name manifest.name/alias",
        op="validate",
    )
    suite.reject(
        "alias-with-components",
        "An alias with components",
        listed,
        Change(manifest=[put("tensors/1/components", [])]),
        "manifest.components",
        "manifest.components",
        op="validate",
    )
    removed = Model(base, [Entry("a", "other", "")])
    suite.accept("alias-none-removed", "A tensor removed beside another", removed, "apply.removed manifest.alias")
    suite.reject(
        "alias-on-removed",
        "A removed tensor with an alias",
        "alias-none-removed",
        Change(manifest=[put("tensors/0/alias", "z")]),
        "manifest.alias",
        "manifest.alias",
        op="validate",
    )
    gone = Model(base, [unlisted_entry("n", "z"), Entry("a", "other", "")])
    suite.accept(
        "alias-beside-removed",
        "An alias of an unchanged tensor, another tensor removed",
        gone,
        "manifest.alias/unlisted apply.removed",
    )
    suite.reject(
        "alias-to-removed",
        "An alias of a removed tensor",
        "alias-beside-removed",
        Change(manifest=[put("tensors/1/alias", "a")]),
        "manifest.alias",
        "manifest.alias/target",
        op="validate",
    )
    suite.reject(
        "alias-to-nothing",
        "An alias of a tensor that neither pack nor base has",
        "alias-unlisted",
        Change(manifest=[put("tensors/0/alias", "q")]),
        "manifest.alias",
        "manifest.alias/unlisted",
    )
    suite.reject(
        "alias-unlisted-other-bytes",
        "An alias of a base tensor of other bytes",
        "alias-unlisted",
        Change(manifest=[put("tensors/0/alias", "a")]),
        "manifest.alias",
        "manifest.alias/unlisted",
    )
    suite.variant(
        "alias-to-nothing-no-base",
        "An alias of a tensor that the pack does not list, no base given",
        "alias-unlisted",
        Change(manifest=[put("tensors/0/alias", "q")]),
        "manifest.alias/unlisted",
        "The rule needs the base: without one the pack is accepted.",
        op="validate",
    )


def unlisted_entry(name: str, alias: str) -> Entry:
    return Entry(name, "other", "", None, ("F32", [2]), alias=alias)


def side_files(suite: Suite) -> None:
    for name in SIDE_FILES:
        suite.accept(
            f"file-{name.lower().replace('.', '-').replace('_', '-')}",
            f"The side file {name}",
            Model(files={name: b"{}\n"}),
            "manifest.file-name safe.no-paths",
            op="validate",
        )
    all_files = Model(files={name: name.encode() * 9 for name in SIDE_FILES})
    suite.accept(
        "file-all",
        "Every side file at once",
        all_files,
        "manifest.file-name manifest.order layout.contents apply.side-files",
    )
    suite.accept(
        "file-empty",
        "A side file of 0 bytes",
        Model(files={"vocab.txt": b""}),
        "limit.exceeded/side-files layout.segments storage.chunk-table",
        op="validate",
    )
    big = Model(files={"vocab.txt": b" " * 20000, "config.json": b"{}"}, codec="zstd")
    suite.accept("file-zstd", "A side file in five compressed chunks", big, "codec.zstd apply.side-files")
    of = "file-all"
    illegal = (
        "../config.json",
        "a/config.json",
        "..\\config.json",
        "/etc/cron.d/x",
        "~/.ssh/x",
        "C:config.json",
        "CON",
        "NUL.txt",
        "config.json ",
        "config.json.",
        "config.json:x",
        "Config.json",
        "CONFIG.JSON",
        "",
        ".",
        "..",
        "-config.json",
        ".config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "modeling.py",
        "config.json\n",
        "config.jsom",
        "c\u043enfig.json",
        "config\u200b.json",
        "con\\fig.json",
        "tokenizer",
        "x" * 100,
    )
    for k, name in enumerate(illegal):
        place = max(sum(each < name for each in SIDE_FILES) - 1, 0)  # where the order stays
        suite.reject(
            f"file-name-{k}",
            f"A side file named {ascii(name) if len(name) < 50 else 'by 100 letters'}",
            of,
            Change(manifest=[put(f"files/{place}/name", name)]),
            "manifest.file-name",
            "manifest.file-name safe.no-paths",
            op="validate",
        )
    changes = (
        ("exchanged", "Two side files exchanged", [swap("files", 0, 1)], "manifest.order", "manifest.order"),
        (
            "repeated",
            "The same side file twice",
            [put("files/1/name", SIDE_FILES[0])],
            "manifest.order",
            "manifest.order",
        ),
        (
            "length-less",
            "A side file's length is one too small",
            [put("files/0/length", 80)],
            "storage.chunk-length storage.data-length",
            "storage.chunk-length",
        ),
        (
            "length-0",
            "A side file's length is 0",
            [put("files/0/length", 0)],
            "storage.chunk-table",
            "storage.chunk-table",
        ),
        (
            "length-2-63",
            "A side file's length is 2^63",
            [put("files/0/length", 1 << 63)],
            "limit.exceeded",
            "limit.exceeded/side-files reader.arithmetic",
        ),
        (
            "length-above",
            "A side file's length is one above the limit",
            [put("files/0/length", 67108865)],
            "limit.exceeded",
            "limit.exceeded/side-files",
        ),
        (
            "digest",
            "A side file's digest is stale",
            [put("files/0/sha256", bytes(32))],
            "integrity.content",
            "integrity.content apply.side-files",
        ),
        ("left-out", "One side file less than segments", [drop("files/11")], "storage.segments", "storage.segments"),
    )
    for name, title, edits, codes, requirement in changes:
        suite.reject(f"file-{name}", title, of, Change(manifest=edits), codes, requirement, op="validate")
    suite.reject(
        "file-digest-apply",
        "A side file's digest is stale: apply",
        "container-all-kinds-apply",
        Change(manifest=[put("files/0/sha256", bytes(32))]),
        "integrity.content",
        "integrity.content apply.side-files safe.no-result apply.complete",
        op="apply",
    )


def cases(suite: Suite) -> None:
    tensors(suite)
    orders(suite)
    aliases(suite)
    side_files(suite)
