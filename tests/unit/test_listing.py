"""Listings, and whether a checkpoint is the one a pack was made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from builders import f32, full_plan, kind, refused, write_base, write_checkpoint, write_pack

from skillpack_format.digest import TensorIdentity, checkpoint_digest, sha256
from skillpack_format.errors import SkillPackError
from skillpack_format.listing import base_ref, content_fault, is_expected, kind_fault, listing_of, result_of
from skillpack_format.manifest import Manifest
from skillpack_format.progress import silent
from skillpack_format.reader import open_pack
from skillpack_format.stores.safetensors_files import open_checkpoint

Tensors = dict[str, tuple[object, bytes]]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    with open_pack(write_pack(tmp_path / "p.skp", full_plan())) as pack:
        return pack.manifest


def listed(folder: Path, tensors: Tensors) -> dict[str, TensorIdentity]:
    path = folder / "x.safetensors"
    path.unlink(missing_ok=True)
    with open_checkpoint(write_checkpoint(path, tensors)) as checkpoint:
        return listing_of(checkpoint, {}, 1, silent, "reading")


def kinds(folder: Path, manifest: Manifest, tensors: Tensors) -> SkillPackError | None:
    path = folder / "x.safetensors"
    path.unlink(missing_ok=True)
    with open_checkpoint(write_checkpoint(path, tensors)) as checkpoint:
        return kind_fault(manifest, checkpoint.specs)


@pytest.mark.parametrize("threads", [1, 3])
def test_lists_every_tensor_with_its_digest(tmp_path: Path, threads: int) -> None:
    seen: list[tuple[str, int, int]] = []
    with open_checkpoint(write_base(tmp_path / "b.safetensors", full_plan())) as checkpoint:
        found = listing_of(checkpoint, {"m.old": bytes(32)}, threads, lambda *step: seen.append(step), "reading")
    expected = {name: TensorIdentity(what, sha256(raw)) for name, (what, raw) in full_plan().base().items()}
    expected["m.old"] = TensorIdentity(kind("U8", 3), bytes(32))  # known already, so not read
    assert list(found) == sorted(found)
    assert found == expected
    total = sum(len(raw) for _, raw in full_plan().base().values())
    assert seen[-1] == ("reading", total, total)


def test_a_pack_keeps_the_digest_and_the_prints_of_its_base(tmp_path: Path) -> None:
    listing = listed(tmp_path, {"b": (kind("F32", 1), f32(1)), "a": (kind("F32", 1), f32(2))})
    ref = base_ref(listing)
    assert ref.prints == sha256(f32(2))[:4] + sha256(f32(1))[:4]
    assert (ref.count, ref.digest) == (2, checkpoint_digest(listing.items()))


def test_its_base_fits(tmp_path: Path, manifest: Manifest) -> None:
    assert kinds(tmp_path, manifest, full_plan().base()) is None
    listing = listed(tmp_path, full_plan().base())
    assert content_fault(manifest, listing) is None
    assert result_of(manifest, listing) == {
        name: TensorIdentity(what, sha256(raw)) for name, (what, raw) in full_plan().result().items()
    }


def without(name: str) -> Tensors:
    return {key: each for key, each in full_plan().base().items() if key != name}


def test_names_a_tensor_the_base_lacks(tmp_path: Path, manifest: Manifest) -> None:
    found = kinds(tmp_path, manifest, without("m.old"))
    assert found is not None
    assert (found.code, found.where, found.message) == ("base.missing", "tensor 'm.old'", "the base lacks it")


def test_names_a_tensor_that_would_be_added_and_is_there(tmp_path: Path, manifest: Manifest) -> None:
    found = kinds(tmp_path, manifest, {**full_plan().base(), "m.new": (kind("F32", 2), f32(0, 0))})
    assert found is not None
    assert (found.code, found.where) == ("base.extra", "tensor 'm.new'")


@pytest.mark.parametrize("what", [kind("I8", 3), kind("U8", 1, 3), kind("U8", 3, 1)])
def test_names_a_tensor_of_another_kind(tmp_path: Path, manifest: Manifest, what: object) -> None:
    found = kinds(tmp_path, manifest, {**full_plan().base(), "m.old": (what, b"abc")})
    assert found is not None
    assert (found.code, found.where) == ("base.kind", "tensor 'm.old'")
    assert "U8[3]" in found.message


def test_says_how_many_tensors_do_not_fit(tmp_path: Path, manifest: Manifest) -> None:
    found = kinds(tmp_path, manifest, {"m.same": full_plan().base()["m.same"]})
    assert found is not None
    assert (found.code, found.where) == ("base.missing", "tensor 'm.combined'")
    assert "4 of 8" in found.message


@pytest.mark.parametrize(("change", "code"), [(1, "base.extra"), (-1, "base.missing")])
def test_refuses_a_base_of_another_number_of_tensors(
    tmp_path: Path, manifest: Manifest, change: int, code: str
) -> None:
    tensors = {**full_plan().base(), "z": (kind("F32", 1), f32(1))} if change > 0 else without("m.same")
    found = kinds(tmp_path, manifest, tensors)
    assert found is not None
    assert (found.code, found.where) == (code, "base")


@pytest.mark.parametrize("name", ["m.combined", "m.same", "m.old"])
def test_names_a_tensor_of_other_bytes(tmp_path: Path, manifest: Manifest, name: str) -> None:
    tensors = full_plan().base()
    what, raw = tensors[name]
    found = content_fault(manifest, listed(tmp_path, {**tensors, name: (what, bytes([raw[0] ^ 1]) + raw[1:])}))
    assert found is not None
    assert (found.code, found.where) == ("base.content", f"tensor {name!r}")
    assert "1 of 5 tensors" in found.message


def test_a_wrong_digest_of_a_listed_tensor_is_found_though_its_print_agrees(tmp_path: Path, manifest: Manifest) -> None:
    listing = listed(tmp_path, full_plan().base())
    true = listing["m.old"].sha256
    listing["m.old"] = TensorIdentity(listing["m.old"].kind, true[:31] + bytes([true[31] ^ 1]))
    found = content_fault(manifest, listing)
    assert found is not None
    assert (found.code, found.where) == ("base.content", "tensor 'm.old'")


def test_another_name_or_kind_of_an_unlisted_tensor_is_found_by_the_digest(tmp_path: Path, manifest: Manifest) -> None:
    listing = listed(tmp_path, full_plan().base())
    listing["m.same"] = TensorIdentity(kind("U64"), listing["m.same"].sha256)
    found = content_fault(manifest, listing)
    assert found is not None
    assert (found.code, found.where) == ("base.content", "base")


def test_prints_tell_one_tensor_by_itself(manifest: Manifest) -> None:
    names = sorted(full_plan().base())
    digest = sha256(full_plan().base()["m.same"][1])
    assert is_expected(manifest, names.index("m.same"), digest)
    assert not is_expected(manifest, names.index("m.same"), bytes(32))


def test_refuses_a_result_that_the_entries_do_not_make(tmp_path: Path, manifest: Manifest) -> None:
    listing = listed(tmp_path, full_plan().base())
    listing["m.more"] = TensorIdentity(kind("I64"), bytes(32))
    refused("integrity.result", result_of, manifest, listing)


def test_an_alias_of_other_bytes_comes_before_the_result_as_a_whole(tmp_path: Path, manifest: Manifest) -> None:
    listing = listed(tmp_path, full_plan().base())
    listing["m.same"] = TensorIdentity(listing["m.same"].kind, bytes(32))
    refused("manifest.alias", result_of, manifest, listing)


@pytest.mark.parametrize("index", range(5))
def test_a_pack_that_contradicts_itself_about_its_base(tmp_path: Path, manifest: Manifest, index: int) -> None:
    """The digest of the whole is right, a print is not."""
    prints = bytearray(manifest.base.prints)
    prints[4 * index] ^= 1
    own = replace(manifest, base=replace(manifest.base, prints=bytes(prints)))
    found = content_fault(own, listed(tmp_path, full_plan().base()))
    assert found is not None
    assert (found.code, found.where) == ("base.content", f"tensor {sorted(full_plan().base())[index]!r}")
