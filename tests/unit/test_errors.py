"""The tree of exceptions: the class follows from the code."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - of our own objects: multiprocessing sends errors so

import pytest
from builders import refused

from skillpack_format import errors
from skillpack_format.errors import CLASS_OF, SkillPackError, error, located
from skillpack_format.problems import CODES

EXITS = {
    "FormatError": 4, "FramingError": 4, "ManifestError": 4, "IntegrityError": 4, "PayloadError": 4, "LimitError": 4,
    "UnsupportedError": 6, "BaseMismatchError": 3, "CheckpointError": 4, "InputError": 5, "ConvertError": 1,
    "OutputError": 5, "PlanError": 7, "ResourceError": 5, "SignatureError": 4, "UsageError": 2, "SkillPackError": 1,
}  # fmt: skip


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_has_its_class(code: str) -> None:
    found = error(code, "place", "what")
    assert type(found) is CLASS_OF[code.partition(".")[0]]
    assert (found.code, found.where, found.message) == (code, "place", "what")
    assert str(found) == f"place: what [{code}]"


@pytest.mark.parametrize(("name", "status"), EXITS.items())
def test_every_class_has_its_exit_status(name: str, status: int) -> None:
    assert getattr(errors, name).exit_status == status


def test_every_class_of_the_tree_has_an_exit_status_here() -> None:
    found = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, SkillPackError)}
    assert found == set(EXITS)


def test_format_errors_are_of_one_family() -> None:
    for word in ("framing", "wire", "manifest", "storage", "integrity", "payload"):
        assert issubclass(CLASS_OF[word], errors.FormatError)


def test_an_unlisted_code_is_a_bug() -> None:
    with pytest.raises(LookupError, match=r"framing\.nothing"):
        error("framing.nothing", "", "")


def test_errors_survive_pickling_and_copying() -> None:
    found = error("base.kind", "tensor 'a'", "what")
    for twin in (pickle.loads(pickle.dumps(found)), copy.copy(found)):  # noqa: S301
        assert type(twin) is type(found)
        assert str(twin) == str(found)
        assert twin.problem == found.problem


def test_located_puts_a_place_in_front() -> None:
    def fail(where: str) -> None:
        with located("outer"):
            raise error("limit.exceeded", where, "what")

    assert refused("limit.exceeded", fail, "inner").where == "outer, inner"
    assert refused("limit.exceeded", fail, "").where == "outer"


def test_located_keeps_the_first_error_as_the_cause() -> None:
    inner = error("limit.exceeded", "", "what")
    with pytest.raises(SkillPackError) as caught, located("outer"):
        raise inner
    assert caught.value.__cause__ is inner


def test_located_lets_other_exceptions_pass() -> None:
    with pytest.raises(KeyError), located("outer"):
        raise KeyError("x")
