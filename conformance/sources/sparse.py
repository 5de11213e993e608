"""The encoding ``sparse``: values for some elements; every parameter at its borders, every refusal."""

from __future__ import annotations

from conformance.assemble import WIDTH, Entry, bits_of, from_items
from conformance.assembler.draft import Change, Model
from conformance.assembler.suite import Suite

from .encoding_words import BAD_SCALES, FLOATS, parameter
from .models import noise, q, raw, single, sparse, tensor


def cases(suite: Suite) -> None:
    n = 600
    base = raw("U8", [n], bytes(noise(n, 3)))
    escape = 255
    lists: dict[str, tuple[str, list[int]]] = {
        "none": ("no element", []),
        "first": ("the first element", [0]),
        "last": ("the last element, after two escapes", [599]),
        "254": ("element 254: the largest gap without escape", [254]),
        "255": ("element 255: an escape and a gap of 0", [255]),
        "255-after-0": ("element 256 after element 0: an escape and a gap of 0", [0, 256]),
        "509": ("element 509: an escape and a gap of 254", [509]),
        "510": ("element 510: two escapes", [510]),
        "neighbours": ("three neighbours", [7, 8, 9]),
        "many": ("every third element", list(range(0, n, 3))),
        "ends": ("the first and the last element", [0, 599]),
    }
    for name, (words, places) in lists.items():
        codes = gaps_of(places, escape)
        values = bytes((base.data[k] + 1) % 256 for k in places)
        suite.accept(
            f"sparse-gap8-{name}",
            f"gap8 lists {words}",
            single(sparse("gap8", codes, "U8", values), "U8", [n], base)
            if places
            else Model({"beside": base}, [Entry("w", "other", "", [sparse("gap8", [], "U8", b"")], ("U8", [n]))]),
            "sparse.gaps sparse.replace payload.position payload.position/escape payload.position/range "
            "manifest.parameter/sparse-gaps manifest.parameter/sparse-values",
        )
    large = 66000
    wide = raw("U8", [large], bytes(large))
    for name, places in (("65534", [65534]), ("65535", [65535]), ("65536-after-0", [0, 65536]), ("last", [3, 65999])):
        suite.accept(
            f"sparse-gap16-{name}",
            f"gap16 lists {' and '.join(map(str, places))} of 66000",
            single(
                sparse("gap16", gaps_of(places, 65535), "U8", bytes(range(1, 1 + len(places)))), "U8", [large], wide
            ),
            "sparse.gaps sparse.replace payload.position/range",
        )
    for count in (1, 7, 8, 9, 16, 17):
        places = sorted({0, count // 2, count - 1})
        suite.accept(
            f"sparse-bitmap-{count}",
            f"A bitmap of {count} elements",
            single(
                sparse("bitmap", bitmap(places, count), "I16", from_items([7 + k for k in places], 2)),
                "I16",
                [count],
                raw("I16", [count], bytes(2 * count)),
            ),
            "sparse.bitmap sparse.replace payload.padding-bits/bitmap",
        )
    suite.accept(
        "sparse-bitmap-all",
        "A bitmap that lists every element",
        single(sparse("bitmap", b"\xff\x03", "U8", bytes(range(1, 11))), "U8", [2, 5], raw("U8", [2, 5], bytes(10))),
        "sparse.bitmap sparse.replace",
    )
    for dtype in FLOATS:
        start = tensor(dtype, [5], 1, "0x80000000" if dtype == "F32" else "0x8000", 3, 0, -2)
        suite.accept(
            f"sparse-add-{dtype.lower()}",
            f"{dtype} values added to some elements, 0 to one that is -0",
            single(sparse("gap8", [1, 1], dtype, bits_of(dtype, 0, q(1, 2)), "add"), dtype, [5], start),
            "sparse.add num.addressed num.zero payload.nonfinite/sparse",
        )
        for name in ("nan", "inf", "minus-inf"):
            values = bits_of(dtype, 0, BAD_SCALES[name][dtype])
            suite.reject(
                f"sparse-add-{name}-{dtype.lower()}",
                f"A listed {dtype} value to be added is {name.replace('-', ' ')}",
                f"sparse-add-{dtype.lower()}",
                Change(parts={"w/0/values": values}),
                "payload.nonfinite",
                "payload.nonfinite/sparse",
                op="validate",
            )
    suite.accept(
        "sparse-add-unlisted-nan",
        "NaN in an element that is not listed",
        single(
            sparse("gap8", [0], "F32", bits_of("F32", 1), "add"),
            "F32",
            [3],
            tensor("F32", [3], 1, "0x7fc00123", "0xff800000"),
        ),
        "sparse.add num.addressed payload.nonfinite",
    )
    for dtype in ("F64", "C64", "I64", "BOOL", "F8_E5M2", "F8_E8M0", "U32"):
        width = WIDTH[dtype][0] // 8
        item = b"\1" if dtype == "BOOL" else bytes(range(9, 9 + width))
        suite.accept(
            f"sparse-replace-{dtype.lower()}",
            f"An element of {dtype} replaced",
            single(sparse("gap8", [1], dtype, item), dtype, [3], raw(dtype, [3], bytes(3 * width))),
            "sparse.replace manifest.parameter/sparse-dtype payload.value",
        )
    sparse_refusals(suite)


def gaps_of(places: list[int], escape: int) -> list[int]:
    found, at = [], 0
    for place in places:
        gap = place - at
        found += [escape] * (gap // escape) + [gap % escape]
        at = place + 1
    return found


def bitmap(places: list[int], count: int) -> bytes:
    return sum(1 << place for place in places).to_bytes((count + 7) // 8, "little")


def sparse_refusals(suite: Suite) -> None:
    of, n = "sparse-gap8-neighbours", 600
    for key, value, words in (
        ("index", "gap4", "index gap4"),
        ("index", "", "an empty index"),
        ("index", "Bitmap", "index Bitmap"),
        ("mode", "set", "mode set"),
        ("mode", "", "an empty mode"),
        ("count", n + 1, "a count above N"),
        ("count", (1 << 64) - 1, "a count of 2^64 - 1"),
    ):
        slug = f"sparse-{key}-{str(value).lower() or 'empty'}"
        parameter(suite, of, slug, f"sparse: {words}", key, value, "manifest.parameter/sparse-values")
    for dtype in ("F4", "F6_E2M3", "U16", "F32", "I8"):
        parameter(
            suite,
            of,
            f"sparse-dtype-{dtype.lower()}",
            f"sparse: a U8 tensor's elements replaced by {dtype}",
            "dtype",
            dtype,
            "manifest.parameter/sparse-dtype",
        )
    for dtype in ("F64", "I32", "F8_E4M3"):
        parameter(
            suite,
            "sparse-add-f32",
            f"sparse-add-of-{dtype.lower()}",
            f"sparse: values of {dtype} added",
            "dtype",
            dtype,
            "manifest.parameter/sparse-dtype",
        )
    parameter(
        suite, of, "sparse-gaps-below", "sparse: gaps one below count", "gaps", 2, "manifest.parameter/sparse-gaps"
    )
    parameter(
        suite,
        of,
        "sparse-gaps-above",
        "sparse: gaps one above count + N // 255",
        "gaps",
        6,
        "manifest.parameter/sparse-gaps",
    )
    parameter(
        suite,
        of,
        "sparse-gaps-2-64",
        "sparse: gaps of 2^64 - 1",
        "gaps",
        (1 << 64) - 1,
        "manifest.parameter/sparse-gaps reader.arithmetic",
    )
    parameter(
        suite,
        "sparse-bitmap-9",
        "sparse-gaps-bitmap",
        "sparse: gaps of 2 with a bitmap",
        "gaps",
        2,
        "manifest.parameter/sparse-gaps",
    )
    index = (
        ("range", "sparse-gap8-last", [255, 255, 90], "The position N", "payload.position/range"),
        ("range-far", "sparse-gap8-last", [255, 255, 254], "A position far above N", "payload.position/range"),
        ("ends-in-escape", "sparse-gap8-last", [255, 89, 255], "The last item is an escape", "payload.position/escape"),
        (
            "only-escapes",
            "sparse-gap8-last",
            [255, 255, 255],
            "Nothing but escapes",
            "payload.position payload.position/escape",
        ),
        ("too-many", "sparse-gap8-last", [1, 1, 1], "Three elements listed, count is 1", "payload.position"),
        ("too-few", "sparse-gap8-neighbours", [255, 0, 0], "Two elements listed, count is 3", "payload.position"),
        (
            "second-past-end",
            "sparse-gap8-ends",
            [0, 255, 255, 89],
            "The last of two positions is N",
            "payload.position/range",
        ),
    )
    for name, parent, codes, title, requirement in index:
        suite.reject(
            f"sparse-{name}",
            f"sparse: {title[0].lower()}{title[1:]}",
            parent,
            Change(parts={"w/0/index": bytes(codes)}),
            "payload.position",
            requirement,
            op="validate",
        )
    suite.reject(
        "sparse-gap16-range",
        "sparse: a gap16 position of N",
        "sparse-gap16-last",
        Change(parts={"w/0/index": from_items([3, 65535, 66000 - 4 - 65535], 2)}),
        "payload.position",
        "payload.position/range",
        op="validate",
    )
    suite.reject(
        "sparse-gap16-escape",
        "sparse: a gap16 index that ends in an escape",
        "sparse-gap16-last",
        Change(parts={"w/0/index": from_items([3, 9, 65535], 2)}),
        "payload.position",
        "payload.position/escape",
        op="validate",
    )
    for name, data, words, codes, requirement in (
        ("more", b"\xff\x01", "nine bits set, count is 3", "payload.position", "payload.position"),
        ("fewer", b"\x11\x00", "two bits set, count is 3", "payload.position", "payload.position"),
        (
            "spare",
            b"\x11\x02",
            "a bit set for element N in place of one within",
            "payload.padding-bits payload.position",
            "payload.padding-bits/bitmap",
        ),
        (
            "spare-top",
            b"\x11\x81",
            "the highest spare bit set as a fourth",
            "payload.padding-bits payload.position",
            "payload.padding-bits/bitmap payload.padding-bits",
        ),
    ):
        suite.reject(
            f"sparse-bitmap-{name}",
            f"sparse: a bitmap with {words}",
            "sparse-bitmap-9",
            Change(parts={"w/0/index": data}),
            codes,
            requirement,
            op="validate",
        )
    suite.reject(
        "sparse-bool-7",
        "sparse: a BOOL of 7",
        "sparse-replace-bool",
        Change(parts={"w/0/values": b"\7"}),
        "payload.value",
        "payload.value",
        op="validate",
    )
    suite.reject(
        "sparse-range-apply",
        "sparse: the position N, apply",
        "sparse-gap8-last",
        Change(parts={"w/0/index": bytes([255, 255, 90])}),
        "payload.position",
        "payload.position/range safe.no-result",
    )
