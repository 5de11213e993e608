"""manifest.md: the rules for the fields of both documents, and the JSON rendering."""

from typing import Any

from .errors import Refusal

Table = dict[str, str]  # key -> type
TYPES: dict[str, Any] = {"integer": int, "str": str, "bin": bytes, "array": list, "map": dict}


def check_map(value: Any, where: str, required: Table, optional: Table | None = None) -> dict[str, Any]:
    """A map with the keys of a table; the types are written as the tables write them ("bin 32")."""
    check_type(value, "map", where)
    for key in required:
        if key not in value:  # manifest.missing-key
            raise Refusal("manifest.missing-key", f"{where}: {key} is missing")
    for key, item in value.items():
        kind = required.get(key) or (optional or {}).get(key)
        if kind is None:  # manifest.unknown-key
            raise Refusal("manifest.unknown-key", f"{where}: the key {key} is not known")
        check_type(item, kind, f"{where}: {key}")
    return dict(value)


def check_type(value: Any, kind: str, where: str) -> None:
    kind, _, length = kind.partition(" ")
    if not isinstance(value, TYPES[kind]):  # manifest.type
        raise Refusal("manifest.type", f"{where} is not of the type {kind}")
    if length and len(value) != int(length):  # manifest.value
        raise Refusal("manifest.value", f"{where} has {len(value)} bytes instead of {length}")


def render(value: Any) -> Any:
    """json.rendering"""
    if isinstance(value, dict):
        return {key: render(item) for key, item in value.items()}
    if isinstance(value, list):
        return [render(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and value > 2**53 - 1:
        return str(value)
    return value
