"""Cases: what is asked of a reader, what it must answer, and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from conformance import assemble as oracle

from .draft import Change, Files, Model, folder_of

WALL_S, RSS_MB = 10, 256
CLASSES = {
    "framing": "FramingError", "wire": "ManifestError", "manifest": "ManifestError", "storage": "ManifestError",
    "integrity": "IntegrityError", "payload": "PayloadError", "unsupported": "UnsupportedError",
    "limit": "LimitError", "base": "BaseMismatchError", "checkpoint": "CheckpointError",
}  # fmt: skip
NEEDS_BASE = ("decode", "slice", "apply", "folder")


def rendering_digest(document: Any) -> str:
    """SHA-256 of a JSON rendering in one form: keys sorted, no white space, ASCII."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Case:
    """One question. ``changes`` are what makes the input differ from ``model``; of a rejecting case the last one is the
    named change to the accepted case ``mutant_of``."""

    area: str
    id: str
    title: str
    requirements: tuple[str, ...]
    op: str
    model: Model
    changes: tuple[Change, ...]
    codes: tuple[str, ...]  # empty: accept
    why: str
    mutant_of: str = ""
    with_base: bool = False
    tensor: str = ""
    rows: tuple[int, int] | None = None
    wall_s: float = WALL_S
    rss_mb: int = RSS_MB
    read_bytes: int = 0  # 0: no bound
    is_open: bool = False  # to accept is right as well as to refuse with one of the codes

    def plain(self, files: Files) -> dict[str, Any]:
        """The case file."""
        found: dict[str, Any] = {
            "id": self.id,
            "title": self.title,
            "requirements": sorted(set(self.requirements)),
            "op": self.op,
            "inputs": {"pack": _input(files.pack)},
        }
        if self.op == "folder" and files.before:
            found["inputs"]["before"] = _input(files.before)
        if self.with_base:
            found["inputs"]["base"] = _input(files.base)
        found["args"] = self._args()
        found["expect"] = self._expectation(files)
        found["budgets"] = {"wall_s": self.wall_s, "rss_mb": self.rss_mb}
        if self.read_bytes:
            found["budgets"]["read_bytes"] = self.read_bytes
        if self.mutant_of:
            found["mutant_of"] = self.mutant_of
            found["change"] = self.changes[-1].plain()
        found["why"] = self.why
        return found

    def _args(self) -> dict[str, Any]:
        limits: dict[str, int] = {}
        for change in self.changes:
            limits |= change.limits
        found: dict[str, Any] = {"tensor": self.tensor} if self.tensor else {}
        if self.rows:
            found["rows"] = list(self.rows)
        return found | ({"limits": limits} if limits else {})

    def _expectation(self, files: Files) -> dict[str, Any]:
        if self.codes:
            classes = {CLASSES[code.partition(".")[0]] for code in self.codes}
            verdict = "either" if self.is_open else "reject"
            refusal = {"classes": sorted(classes), "codes": sorted(self.codes)}
            return {"verdict": verdict, **refusal, **(self._made(files) if self.is_open else {})}
        return {"verdict": "accept", **self._made(files)}

    def _made(self, files: Files) -> dict[str, Any]:
        """What an accepting answer brings."""
        found: dict[str, Any] = {}
        if self.op == "inspect":
            found["pack_id"] = files.pack_id
            found["manifest"] = rendering_digest(oracle.rendered(files.manifest))
            found["storage"] = rendering_digest(oracle.rendered(files.storage))
        elif self.op == "folder":
            found["files"] = [{"name": name, **_input(data)} for name, data in folder_of(self.model, self.changes)]
            if self.model.layout is None:
                found["outputs"] = self._outputs()
        elif self.op in NEEDS_BASE:
            found["outputs"] = self._outputs()
        return found

    def _outputs(self) -> list[dict[str, Any]]:
        results = self.model.results
        names = list(results) if self.op in ("apply", "folder") else [self.tensor]
        found = []
        for name in names:
            made = results[name]
            shape, data = list(made.shape), made.data
            if self.rows:
                first, end = self.rows
                row = len(data) // shape[0]
                shape, data = [end - first, *shape[1:]], data[first * row : end * row]
            digest = hashlib.sha256(data).hexdigest()
            found.append({"name": name, "dtype": made.dtype, "shape": shape, "sha256": digest})
        return found


def _input(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Suite:
    """The cases of one area, collected in order."""

    def __init__(self, area: str, known: Mapping[str, Case] | None = None) -> None:
        self.area = area
        self.cases: dict[str, Case] = {}
        self._known = known if known is not None else {}

    def accept(  # noqa: PLR0913 - a table of named columns
        self,
        case_id: str,
        title: str,
        model: Model,
        requirements: str,
        why: str = "",
        *,
        op: str = "apply",
        change: Change | None = None,
        of: str = "",
        tensor: str = "",
        rows: tuple[int, int] | None = None,
        with_base: bool | None = None,
        wall_s: float = WALL_S,
        rss_mb: int = RSS_MB,
        read_bytes: int = 0,
    ) -> str:
        """A case that must be accepted; returns its id."""
        given = op in NEEDS_BASE if with_base is None else with_base
        changes = (change,) if change else ()
        self._add(
            Case(
                self.area, case_id, title, tuple(requirements.split()), op, model, changes, (), why or title, of, given,
                tensor, rows, wall_s, rss_mb, read_bytes,
            )
        )  # fmt: skip
        return case_id

    def variant(self, case_id: str, title: str, of: str, change: Change, requirements: str, why: str = "",
                op: str = "", **more: Any) -> str:  # fmt: skip
        """A legal change of an accepted case: accepted too, with the same result."""
        parent = self._parent(of)
        chosen = op or parent.op
        more.setdefault("tensor", parent.tensor)
        more.setdefault("rows", parent.rows)
        return self.accept(case_id, title, parent.model, requirements, why, op=chosen, change=change, of=of, **more)

    def reject(  # noqa: PLR0913 - a table of named columns
        self,
        case_id: str,
        title: str,
        of: str,
        change: Change,
        codes: str,
        requirements: str,
        why: str = "",
        *,
        op: str = "",
        with_base: bool | None = None,
        tensor: str = "",
        rows: tuple[int, int] | None = None,
        wall_s: float = WALL_S,
        rss_mb: int = RSS_MB,
    ) -> str:
        """A case that must be refused: the accepted case ``of`` with one named change."""
        parent = self._parent(of)
        assert not parent.changes, f"{case_id}: {of} is a variant itself"
        chosen = op or parent.op
        given = chosen in NEEDS_BASE if with_base is None else with_base
        allowed = tuple(codes.split())
        self._add(
            Case(
                self.area, case_id, title, tuple(requirements.split()), chosen, parent.model, (change,), allowed,
                why or title, of, given, tensor or parent.tensor, rows or parent.rows, wall_s, rss_mb,
            )
        )  # fmt: skip
        return case_id

    def either(
        self, case_id: str, title: str, of: str, change: Change, codes: str, requirements: str, why: str, op: str = ""
    ) -> str:
        """A case that the specification leaves to the reader; ``why`` says why."""
        parent = self._parent(of)
        chosen = op or parent.op
        self._add(
            Case(
                self.area, case_id, title, tuple(requirements.split()), chosen, parent.model, (change,),
                tuple(codes.split()), why, of, chosen in NEEDS_BASE, parent.tensor, parent.rows, is_open=True,
            )
        )  # fmt: skip
        return case_id

    def twin(self, case_id: str, title: str, of: str, wrong: Mapping[str, bytes], requirements: str, why: str) -> str:
        """A pack that promises what a reader with a certain fault would make: right readers refuse it."""
        parent = self._parent(of)
        for name, data in wrong.items():
            right = parent.model.results[name].data
            assert data != right, (case_id, name)
            assert len(data) == len(right), (case_id, name)
        return self.reject(case_id, title, of, Change(results=wrong), "integrity.result", requirements, why, op="apply")

    def model_of(self, case_id: str) -> Model:
        """The pack of an accepted case."""
        return self._parent(case_id).model

    def _parent(self, case_id: str) -> Case:
        slug = case_id.replace("_", "-")
        return self.cases[slug] if slug in self.cases else self._known[slug]

    def _add(self, case: Case) -> None:
        named = replace(case, id=case.id.replace("_", "-"), mutant_of=case.mutant_of.replace("_", "-"))
        assert named.id not in self.cases, named.id
        assert named.id not in self._known, named.id
        self.cases[named.id] = named
