"""The pickle inside of a torch archive, read without running it.

A pickle is a program for a small machine that can call anything it names. This is another machine: it knows the
opcodes that plain data and tensors need, and a name is only ever compared with a short list, so nothing can be imported
or called. Whatever else a pickle asks for is refused by the name of its opcode or global (checkpoint.pickle).

Containers are trees here: one that was stored is not fetched again, so nothing can hold itself and the depth of every
value is known when it is made.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from skillpack_format.dtypes import DType, dtype_named
from skillpack_format.errors import SkillPackError, error
from skillpack_format.limits import Limits

STORAGES: Final = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_NAMES: Final = {  # everything a pickle may name; only these words, never what they mean to Python
    "collections OrderedDict": "dict",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_parameter": "parameter",
    **{f"torch {storage}": storage for storage in STORAGES},
}
_NAME_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Storage:
    """A typed run of ``count`` elements: the record called ``key``."""

    dtype: DType
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: elements of a storage by offset and strides, all counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """A global that was named; ``meaning`` is a word of _NAMES."""

    text: str
    meaning: str


@dataclass(slots=True)
class _Item:
    """A value on the stack, and how deeply it nests."""

    value: Any
    depth: int = 0


class _Mark:
    pass


def read_pickle(raw: bytes, limits: Limits) -> Any:
    """The value in ``raw``: dict, list, tuple, str, int, float, bool, None and ``View``, nothing else.

    checkpoint.pickle names the opcode or global that asks for more, and the byte it is at.
    """
    machine = _Machine(raw, limits)
    return machine.run()


class _Machine:
    def __init__(self, raw: bytes, limits: Limits) -> None:
        self.raw = raw
        self.at = 0
        self.limits = limits
        self.stack: list[Any] = []
        self.memo: dict[int, _Item] = {}

    def run(self) -> Any:
        steps = 0
        while True:
            steps += 1
            self.limits.require("header_nodes", steps, "pickle")
            where = self.at
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.result()
            step = _STEPS.get(code)
            if step is None:
                raise self.wrong(
                    f"opcode {_OPCODES.get(code, f'0x{code:02x}')} at byte {where} is for more than tensors"
                )
            step(self)

    def result(self) -> Any:
        found = self.pop().value
        if self.stack or self.at != len(self.raw):
            raise self.wrong("values or bytes are left after its end")
        return found

    def wrong(self, message: str) -> SkillPackError:
        return error("checkpoint.pickle", "pickle", message)

    def take(self, count: int) -> bytes:
        found = self.raw[self.at : self.at + count]
        if len(found) < count:
            raise self.wrong(f"it ends at byte {len(self.raw)}, within an opcode")
        self.at += count
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.raw.find(b"\n", self.at, self.at + _NAME_BYTES)
        if end < 0:
            raise self.wrong(f"the name at byte {self.at} does not end within {_NAME_BYTES} bytes")
        found = self.raw[self.at : end].decode("latin-1")
        self.at = end + 1
        return found

    def push(self, value: Any, depth: int = 0) -> None:
        self.limits.require("header_depth", depth, "pickle")
        self.stack.append(_Item(value, depth))

    def pop(self) -> _Item:
        if not self.stack or self.stack[-1] is _Mark:
            raise self.wrong(f"its stack is empty at byte {self.at}")
        found: _Item = self.stack.pop()
        return found

    def pop_to_mark(self) -> list[_Item]:
        found: list[_Item] = []
        while self.stack and self.stack[-1] is not _Mark:
            found.append(self.stack.pop())
        if not self.stack:
            raise self.wrong(f"its stack has no mark at byte {self.at}")
        self.stack.pop()
        return found[::-1]

    def top(self, kind: type) -> _Item:
        if not self.stack or self.stack[-1] is _Mark or type(self.stack[-1].value) is not kind:
            raise self.wrong(f"no {kind.__name__} to add to at byte {self.at}")
        found: _Item = self.stack[-1]
        return found

    def put(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _Mark:
            raise self.wrong(f"nothing to remember at byte {self.at}")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        found = self.memo.get(index)
        if found is None:
            raise self.wrong(f"it recalls what was never stored, at byte {self.at}")
        if isinstance(found.value, (dict, list)):
            raise self.wrong(f"a container is in two places, or in itself, at byte {self.at}")
        self.push(found.value, found.depth)

    def tuple_of(self, items: list[_Item]) -> None:
        self.push(tuple(item.value for item in items), 1 + max((item.depth for item in items), default=0))

    def extend(self, items: list[_Item]) -> None:
        target = self.top(list)
        target.value.extend(item.value for item in items)
        self.deepen(target, items)

    def update(self, items: list[_Item]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise self.wrong(f"a key without a value at byte {self.at}")
        for key, item in zip(items[::2], items[1::2], strict=True):
            if type(key.value) not in (str, int):
                raise self.wrong(f"a key at byte {self.at} is neither a string nor a number")
            if key.value in target.value:
                raise error("checkpoint.duplicate", "pickle", f"key {key.value!r} is there more than once")
            target.value[key.value] = item.value
        self.deepen(target, items)

    def deepen(self, target: _Item, items: list[_Item]) -> None:
        target.depth = max([target.depth, *(1 + item.depth for item in items)])
        self.limits.require("header_depth", target.depth, "pickle")

    def name(self) -> None:
        text = f"{self.line()} {self.line()}"
        meaning = _NAMES.get(text)
        if meaning is None:
            raise self.wrong(f"it names {text.replace(' ', '.')!r}, which is neither a tensor nor plain data")
        self.push(_Name(text, meaning))

    def text(self) -> None:
        raw = self.take(self.number("<I"))
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise self.wrong(f"a string before byte {self.at} is not UTF-8") from None

    def long(self) -> None:
        length = self.number("<B")
        if length > 8:
            raise self.wrong(f"an integer of {length} bytes at byte {self.at}; torch writes none above 8")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def persistent(self) -> None:
        """BINPERSID: a storage, as ('storage', type, key, location, count)."""
        found = self.pop().value
        is_storage = type(found) is tuple and len(found) == 5 and found[0] == "storage"
        if not is_storage or not isinstance(found[1], _Name) or found[1].meaning not in STORAGES:
            raise self.wrong(f"a persistent id at byte {self.at} is not that of a storage of a known type")
        _, kind, key, location, count = found
        if type(key) is not str or type(location) is not str or not _is_size(count):
            raise self.wrong(f"a storage at byte {self.at} is described wrongly")
        self.push(Storage(dtype_named(STORAGES[kind.meaning]), key, count))

    def reduce(self) -> None:
        """REDUCE: the few calls that stand for plain data are made here, by hand."""
        arguments = self.pop().value
        called = self.pop().value
        if not isinstance(called, _Name) or type(arguments) is not tuple:
            raise self.wrong(f"it calls what is no function of its list, at byte {self.at}")
        if called.meaning == "dict" and arguments == ():
            self.push({})
        elif called.meaning == "tensor":
            self.push(self.view(arguments))
        elif called.meaning == "parameter" and len(arguments) == 3 and isinstance(arguments[0], View):
            self.push(arguments[0])
        else:
            raise self.wrong(f"it calls {called.text.replace(' ', '.')!r} with other arguments than torch does")

    def view(self, arguments: tuple[Any, ...]) -> View:
        if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage):
            raise self.wrong("a tensor has other arguments than torch gives")
        storage, offset, shape, strides, _, hooks = arguments[:6]
        sizes = (*shape, *strides) if type(shape) is tuple and type(strides) is tuple else (None,)
        if hooks != {} or not _is_size(offset) or not all(map(_is_size, sizes)) or len(shape) != len(strides):
            raise self.wrong("a tensor's offset, shape or strides are no sizes, or it has hooks to be called")
        self.limits.require("tensor_rank", len(shape), "pickle")
        return View(storage, offset, shape, strides)

    def build(self) -> None:
        """BUILD: an OrderedDict with attributes. torch notes versions in ``_metadata``, which no tensor depends on."""
        state = self.pop().value
        self.top(dict)
        if type(state) is not dict or state.keys() - {"_metadata"}:
            raise self.wrong(f"BUILD at byte {self.at} sets more than the _metadata of a state dict")

    def protocol(self) -> None:
        if self.number("<B") != 2:
            raise self.wrong("its protocol is not 2, which torch writes")


def _is_size(found: Any) -> bool:
    return type(found) is int and found >= 0  # every integer here has at most 64 bits, one of them the sign


_STEPS: Final[dict[int, Callable[[_Machine], None]]] = {
    0x80: _Machine.protocol,
    0x28: lambda m: m.stack.append(_Mark),  # MARK
    0x63: _Machine.name,  # GLOBAL
    0x51: _Machine.persistent,  # BINPERSID
    0x52: _Machine.reduce,
    0x62: _Machine.build,
    0x4E: lambda m: m.push(None),  # NONE
    0x88: lambda m: m.push(True),  # NEWTRUE
    0x89: lambda m: m.push(False),  # NEWFALSE
    0x4A: lambda m: m.push(m.number("<i")),  # BININT
    0x4B: lambda m: m.push(m.number("<B")),  # BININT1
    0x4D: lambda m: m.push(m.number("<H")),  # BININT2
    0x8A: _Machine.long,  # LONG1
    0x47: lambda m: m.push(m.number(">d")),  # BINFLOAT
    0x58: _Machine.text,  # BINUNICODE
    0x29: lambda m: m.tuple_of([]),  # EMPTY_TUPLE
    0x85: lambda m: m.tuple_of([m.pop()]),  # TUPLE1
    0x86: lambda m: m.tuple_of([m.pop(), m.pop()][::-1]),  # TUPLE2
    0x87: lambda m: m.tuple_of([m.pop(), m.pop(), m.pop()][::-1]),  # TUPLE3
    0x74: lambda m: m.tuple_of(m.pop_to_mark()),  # TUPLE
    0x5D: lambda m: m.push([], 1),  # EMPTY_LIST
    0x61: lambda m: m.extend([m.pop()]),  # APPEND
    0x65: lambda m: m.extend(m.pop_to_mark()),  # APPENDS
    0x7D: lambda m: m.push({}, 1),  # EMPTY_DICT
    0x73: lambda m: m.update([m.pop(), m.pop()][::-1]),  # SETITEM
    0x75: lambda m: m.update(m.pop_to_mark()),  # SETITEMS
    0x71: lambda m: m.put(m.number("<B")),  # BINPUT
    0x72: lambda m: m.put(m.number("<I")),  # LONG_BINPUT
    0x68: lambda m: m.get(m.number("<B")),  # BINGET
    0x6A: lambda m: m.get(m.number("<I")),  # LONG_BINGET
}
_OPCODES: Final = {  # names for refusals; those of protocol 4 and later are told by the protocol already
    0x30: "POP",
    0x31: "POP_MARK",
    0x32: "DUP",
    0x50: "PERSID",
    0x69: "INST",
    0x6F: "OBJ",
    0x81: "NEWOBJ",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x8B: "LONG4",
    0x8C: "SHORT_BINUNICODE",
    0x92: "NEWOBJ_EX",
    0x93: "STACK_GLOBAL",
    0x95: "FRAME",
    0x96: "BYTEARRAY8",
    0x97: "NEXT_BUFFER",
}
