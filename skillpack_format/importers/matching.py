"""Which tensor of the base a name of a delta means.

Tools name tensors by the modules of a model in memory; a checkpoint on disk may have a prefix more (``model.``) or
less. So one prefix is put in front of every name of the delta, or taken from it: the one under which all of them are
there. Two that serve are refused, and so is a name that fits none: nothing is guessed tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from skillpack_format.errors import error


@dataclass(frozen=True, slots=True, order=True)
class Prefix:
    """``less`` is taken from the front of a name, then ``more`` is put there; one of them is empty."""

    less: str = ""
    more: str = ""

    def __str__(self) -> str:
        return f"{self.less!r} taken off" if self.less else f"{self.more!r} in front"

    def applied_to(self, name: str) -> str | None:
        return self.more + name.removeprefix(self.less) if name.startswith(self.less) else None


def match(names: Iterable[str], optional: Collection[str], base: Collection[str]) -> dict[str, str]:
    """For every name of a delta the name its tensor has in ``base``.

    ``optional`` are names that the base may lack; such a tensor keeps its own, unless it looks like one of the base.
    convert.unmatched says what is wrong.
    """
    listed = sorted(names)
    needed = [name for name in listed if name not in optional]
    prefix = _common_prefix(needed, base) if needed else Prefix()
    tails = {tail for name in base for tail in _tails(name)} if optional else set()
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in listed:
        target = prefix.applied_to(name)
        if target is None or target not in base:
            target = name
            if name not in base and (name in tails or any(tail in base for tail in _tails(name))):
                message = (
                    "the base has no such tensor, but one whose name differs by a prefix; adding it may be a mistake"
                )
                raise error("convert.unmatched", f"tensor {name!r} of the delta", message)
        if target in taken:
            message = f"it and {taken[target]!r} both mean {target!r}"
            raise error("convert.unmatched", f"tensor {name!r} of the delta", message)
        taken[target] = name
        found[name] = target
    return found


def _tails(name: str) -> Iterator[str]:
    """What is left of ``name`` after each of its dots."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _common_prefix(needed: list[str], base: Collection[str]) -> Prefix:
    if all(name in base for name in needed):
        return Prefix()
    left = [Prefix(), *sorted({prefix for name in base if (prefix := _between(needed[0], name)) is not None})]
    for at, name in enumerate(needed):
        fitting = [prefix for prefix in left if prefix.applied_to(name) in base]
        if not fitting:
            lost = sum(left[-1].applied_to(each) not in base for each in needed[at + 1 :])
            message = f"the base has no such tensor, nor of {lost} more of {len(needed)}; is it the right base?"
            raise error("convert.unmatched", f"tensor {name!r} of the delta", message)
        left = fitting
    if len(left) > 1:
        message = f"the names fit the base with {left[0]} and with {left[1]}; which is meant cannot be told"
        raise error("convert.unmatched", f"tensor {needed[0]!r} of the delta", message)
    return left[0]


def _between(name: str, base_name: str) -> Prefix | None:
    """The prefix that makes ``base_name`` of ``name``, where one of them ends with the other."""
    if base_name.endswith(f".{name}"):
        return Prefix(more=base_name[: -len(name)])
    if name.endswith(f".{base_name}"):
        return Prefix(less=name[: -len(base_name)])
    return None
