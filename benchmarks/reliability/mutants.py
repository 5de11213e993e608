"""Mutants of the code that checks: one small change each, so that a test must fail.

``delete``   a raise, or a call whose only purpose is to refuse, does nothing
``negate``   the condition of an if, a conditional expression, a loop or a comprehension is turned round
``operand``  one operand of an ``and`` or ``or`` is left out
``bound``    < becomes <=, >= becomes >, and so on: off by one
``range``    an end of the interval that ``fields.integer`` accepts, or a size that is compared, moves by one

A mutant keeps every line number, so that the code of a function can be exchanged in a running process.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

REFUSING = re.compile(r"_?(require|check|refuse|report|integer|text|binary|one_of|array)(_.*)?")
OTHER_BOUND: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip
ENDS = {"integer": (2, 3), "binary": (2,), "require": (1,)}  # the arguments that are an end or a size

Edit = Callable[[ast.AST], ast.AST | None]  # changes a node in place, or gives the one that takes its place


@dataclass(frozen=True)
class Mutant:
    """One change: ``number`` counts the mutants of its file; ``key`` survives changes elsewhere in the file."""

    module: str
    path: Path
    number: int
    kind: str
    line: int
    last_line: int
    function: str
    change: str

    @property
    def key(self) -> str:
        return f"{self.module} {self.function}: {self.kind} {self.change}"

    def code(self) -> CodeType:
        """The module compiled with the change."""
        return compile(self.tree(), str(self.path), "exec")

    def tree(self) -> ast.Module:
        tree = ast.parse(self.path.read_bytes())
        for number, (_, node, _, edit, parents) in enumerate(_edits(tree)):
            if number == self.number:
                _apply(node, edit, parents)
        return ast.fix_missing_locations(tree)


def mutants_of(path: Path, module: str) -> list[Mutant]:
    """Every mutant of one file, in the order of its text."""
    source = path.read_text()
    found: list[Mutant] = []
    for number, (kind, node, what, _, parents) in enumerate(_edits(ast.parse(source))):
        inside = [each.name for each in parents if isinstance(each, (ast.FunctionDef, ast.ClassDef))]
        text = " ".join((ast.get_source_segment(source, node) or "").split())
        change = f"{text[:110]}{' | ' + what if what else ''}"
        same = sum(
            (each.function, each.kind, each.change.partition(" #")[0]) == (".".join(inside), kind, change)
            for each in found
        )
        change += f" #{same + 1}" if same else ""
        last = node.end_lineno or node.lineno
        found.append(Mutant(module, path, number, kind, node.lineno, last, ".".join(inside), change))
    return found


def exchange(module: ModuleType, code: CodeType) -> None:
    """Give every function of ``module`` the code that it has in ``code``: whoever imported it has the new one."""
    ours = {(each.co_name, each.co_firstlineno): each for each in _codes(code)}
    for function in _functions(module):
        old = function.__code__
        new = ours.get((old.co_name, old.co_firstlineno))
        if new is not None and new.co_freevars == old.co_freevars:
            function.__code__ = new


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    pending: list[Any] = [each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__]
    while pending:
        each = pending.pop()
        if isinstance(each, type):
            pending += vars(each).values()
        elif isinstance(each, (staticmethod, classmethod)):
            pending.append(each.__func__)
        elif isinstance(each, property):
            pending.append(each.fget)
        elif isinstance(each, FunctionType):
            yield each
            if hasattr(each, "__wrapped__"):
                pending.append(each.__wrapped__)


# ----------------------------------------------------------------------------------------------------- what to change

Found = tuple[str, Any, str, Edit, tuple[ast.AST, ...]]  # kind, node, what becomes of it, edit, parents


def _edits(tree: ast.Module) -> Iterator[Found]:
    yield from _walk(tree, ())


def _walk(node: ast.AST, parents: tuple[ast.AST, ...]) -> Iterator[Found]:
    if any(isinstance(each, ast.FunctionDef) for each in parents):
        for kind, what, edit in _edits_of(node, parents[-1]):
            yield kind, node, what, edit, parents
    for child in ast.iter_child_nodes(node):
        is_signature = isinstance(node, ast.FunctionDef) and child not in node.body
        if not is_signature:
            yield from _walk(child, (*parents, node))


def _edits_of(node: ast.AST, parent: ast.AST) -> Iterator[tuple[str, str, Edit]]:
    if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and _is_refusing(node.value)):
        yield "delete", "", lambda each: ast.copy_location(ast.Pass(), each)
    if _is_condition(node, parent):
        yield "negate", "", _negated
    if isinstance(node, ast.BoolOp):
        yield from (("operand", f"without operand {index}", _without(index)) for index in range(len(node.values)))
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            if other := OTHER_BOUND.get(type(operator)):
                yield "bound", f"operator {index} {other.__name__}", _with_operator(index, other)
    if isinstance(node, ast.Call):
        ends = [index for index in ENDS.get(_name_of(node), ()) if index < len(node.args)]
        yield from (("range", f"argument {index} {step:+}", _moved(index, step)) for index in ends for step in (-1, 1))


def _is_refusing(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and REFUSING.fullmatch(_name_of(value)) is not None


def _name_of(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _is_condition(node: ast.AST, parent: ast.AST) -> bool:
    if isinstance(parent, (ast.If, ast.IfExp, ast.While)):
        return node is parent.test
    return isinstance(parent, ast.comprehension) and node in parent.ifs


def _negated(node: Any) -> ast.AST:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand
    return ast.copy_location(ast.UnaryOp(ast.Not(), node), node)


def _without(index: int) -> Edit:
    def edit(node: Any) -> None:
        del node.values[index]
        if len(node.values) == 1:  # an operation of one operand is no operation
            node.values.append(ast.copy_location(ast.Constant(isinstance(node.op, ast.And)), node))

    return edit


def _with_operator(index: int, operator: type[ast.cmpop]) -> Edit:
    def edit(node: Any) -> None:
        node.ops[index] = operator()

    return edit


def _moved(index: int, step: int) -> Edit:
    def edit(node: Any) -> None:
        old = node.args[index]
        node.args[index] = ast.copy_location(ast.BinOp(old, ast.Add(), ast.Constant(step)), old)

    return edit


def _apply(node: ast.AST, edit: Edit, parents: tuple[ast.AST, ...]) -> None:
    replacement = edit(node)
    if replacement is None:
        return
    for name, value in ast.iter_fields(parents[-1]):
        if value is node:
            setattr(parents[-1], name, replacement)
        elif isinstance(value, list) and any(each is node for each in value):
            value[:] = [replacement if each is node else each for each in value]
