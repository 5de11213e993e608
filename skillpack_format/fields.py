"""Typed fields of a plain document, refused by name when they are not what the specification says.

Used for MANIFEST and STORAGE and for the parameters of every encoding, so that an unknown key anywhere is invalid.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from skillpack_format.errors import error

# ``made(Kind, values)`` is ``Kind(*values)`` for a NamedTuple, whose own __new__ is Python and takes twice as long: for
# what a header has thousands of
made: Final = tuple.__new__


def require_keys(plain: Any, required: Collection[str], optional: Collection[str], where: str) -> dict[str, Any]:
    """``plain`` as a map with exactly the ``required`` keys and perhaps ``optional`` ones.

    A frozenset of ``required`` keys is compared as a whole, which is for maps that a header has thousands of.
    """
    if not isinstance(plain, dict):
        raise error("manifest.type", where, f"a map is needed, found {_kind(plain)}")
    if plain.keys() == required:
        return plain
    found = 0
    for key in plain:
        if key in required:
            found += 1
        elif key not in optional:
            known = ", ".join(sorted({*required, *optional}))
            raise error("manifest.unknown-key", where, f"unknown key {key!r}; version 1 knows {known}")
    if found < len(required):
        missing = min(key for key in required if key not in plain)
        raise error("manifest.missing-key", where, f"key {missing!r} is missing")
    return plain


def integer(plain: dict[str, Any], key: str, least: int, most: int, where: str, code: str = "manifest.value") -> int:
    """``plain[key]`` as an integer within [least, most]."""
    value = plain[key]
    if not isinstance(value, int):
        raise error("manifest.type", where, f"{key} must be an integer, found {_kind(value)}")
    if not least <= value <= most:
        raise error(code, where, f"{key} is {value}, it must be {least} to {most}")
    return value


def text(plain: dict[str, Any], key: str, where: str) -> str:
    value = plain[key]
    if not isinstance(value, str):
        raise error("manifest.type", where, f"{key} must be a string, found {_kind(value)}")
    return value


def one_of(plain: dict[str, Any], key: str, allowed: Collection[str], where: str, code: str = "manifest.value") -> str:
    value = text(plain, key, where)
    if value not in allowed:
        raise error(code, where, f"{key} is {value!r}, it must be one of {', '.join(allowed)}")
    return value


def binary(plain: dict[str, Any], key: str, nbytes: int, where: str) -> bytes:
    """``plain[key]`` as exactly ``nbytes`` bytes."""
    value = plain[key]
    if not isinstance(value, bytes):
        raise error("manifest.type", where, f"{key} must be bytes, found {_kind(value)}")
    if len(value) != nbytes:
        raise error("manifest.value", where, f"{key} has {len(value)} bytes, it must have {nbytes}")
    return value


def array(plain: dict[str, Any], key: str, where: str) -> list[Any]:
    value = plain[key]
    if not isinstance(value, list):
        raise error("manifest.type", where, f"{key} must be an array, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return {int: "an integer", str: "a string", bytes: "bytes", list: "an array", dict: "a map"}[type(value)]
