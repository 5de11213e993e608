"""What a pack may do to a loaded model: ties, aliases, and what no memory can follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import Case, Plan, added, bf16, kind, refused, same_kind, write_pack

torch = pytest.importorskip("torch", reason="torch is an extra")

from toy_models import Llama, low_rank, nudged, pack_of, snapshot, stored  # noqa: E402

import skillpack_format as skp  # noqa: E402
from skillpack_format.digest import TensorKind  # noqa: E402
from skillpack_format.dtypes import DTYPES  # noqa: E402
from skillpack_format.encodings import dense  # noqa: E402

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UP = "model.layers.0.mlp.up_proj.weight"
Checkpoint = Mapping[str, tuple[TensorKind, bytes]]


def both_halves(model: Any) -> dict[str, tuple[TensorKind, bytes]]:
    """A checkpoint that stores a tied tensor twice."""
    checkpoint = stored(model)
    return {**checkpoint, HEAD: checkpoint[EMBEDDING]}


def attached(model: Any, path: Path, **options: Any) -> skp.Attachment:
    """``attach``, and the model is as it was if it is refused."""
    before = snapshot(model)
    try:
        return skp.attach(model, path, skp.AttachOptions(**options))
    except skp.SkillPackError:
        assert snapshot(model) == before
        raise


def test_a_tied_tensor_stored_once_is_changed_once(tmp_path: Path) -> None:
    model = Llama(tied=True)
    checkpoint = stored(model)
    assert HEAD not in checkpoint
    path, result = pack_of(tmp_path / "p.skp", checkpoint, {EMBEDDING: [low_rank(checkpoint[EMBEDDING][0], 1)]})
    attachment = attached(model, path)
    assert snapshot(model)[HEAD] == snapshot(model)[EMBEDDING] == result[EMBEDDING]
    attachment.detach()
    assert snapshot(model)[HEAD] == checkpoint[EMBEDDING][1]


def test_a_tied_tensor_stored_twice_and_changed_alike_is_changed_once(tmp_path: Path) -> None:
    model = Llama(tied=True)
    checkpoint = both_halves(model)
    change = low_rank(checkpoint[EMBEDDING][0], 1)
    path, result = pack_of(tmp_path / "p.skp", checkpoint, {EMBEDDING: [change], HEAD: [change]})
    attached(model, path).detach()
    assert snapshot(model)[HEAD] == checkpoint[EMBEDDING][1]
    attached(model, path)
    assert snapshot(model)[HEAD] == result[EMBEDDING]


def test_refuses_a_tie_whose_halves_become_different(tmp_path: Path) -> None:
    model = Llama(tied=True)
    checkpoint = both_halves(model)
    what = checkpoint[EMBEDDING][0]
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, {EMBEDDING: [low_rank(what, 1)], HEAD: [low_rank(what, 2)]})
    found = refused("unsupported.operation", attached, model, path)
    assert HEAD in found.message + found.where
    assert EMBEDDING in found.message + found.where


@pytest.mark.parametrize("changed", [EMBEDDING, HEAD])
def test_refuses_a_tie_of_which_the_pack_changes_one_half_and_leaves_the_other(changed: str, tmp_path: Path) -> None:
    model = Llama(tied=True)
    checkpoint = both_halves(model)
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, {changed: [low_rank(checkpoint[changed][0], 1)]})
    found = refused("unsupported.operation", attached, model, path)
    assert "one of the two" in found.message
    apart = Llama()
    apart.lm_head.weight.copy_(apart.model.embed_tokens.weight)
    attached(apart, path)  # where they are not tied there is nothing to pull apart


def alias_pack(path: Path, checkpoint: Checkpoint, name: str, *, base: bool) -> Path:
    """The embedding changes; ``name`` becomes a copy of it, from bytes of the base or from nothing."""
    case = same_kind(EMBEDDING, *checkpoint[EMBEDDING], low_rank(checkpoint[EMBEDDING][0], 1))
    rest = {each: value for each, value in checkpoint.items() if each not in (EMBEDDING, name)}
    own = {name: checkpoint[name]} if base else {}
    return write_pack(path, Plan({EMBEDDING: case}, unchanged=rest, aliases={name: EMBEDDING}, removed=own))


def test_an_alias_is_made_from_what_it_copies(tmp_path: Path) -> None:
    model = Llama()
    model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    checkpoint = stored(model)
    path = alias_pack(tmp_path / "p.skp", checkpoint, HEAD, base=True)
    before = snapshot(model)
    attachment = attached(model, path)
    assert snapshot(model)[HEAD] == snapshot(model)[EMBEDDING] != before[EMBEDDING]
    attachment.detach()
    assert snapshot(model) == before


def test_an_alias_that_is_tied_in_the_model_needs_nothing(tmp_path: Path) -> None:
    for base in (True, False):
        model = Llama(tied=True)
        checkpoint = both_halves(model) if base else stored(model)
        path = alias_pack(tmp_path / f"{base}.skp", checkpoint, HEAD, base=base)
        attached(model, path)
        assert snapshot(model)[HEAD] != checkpoint[EMBEDDING][1]
        skp.detach(model)
        assert snapshot(model)[HEAD] == checkpoint[EMBEDDING][1]


def test_refuses_an_added_alias_that_is_not_tied_in_the_model(tmp_path: Path) -> None:
    model = Llama()
    checkpoint = {name: each for name, each in stored(model).items() if name != HEAD}
    path = alias_pack(tmp_path / "p.skp", checkpoint, HEAD, base=False)
    assert "not tied" in refused("unsupported.operation", attached, model, path).message


def test_refuses_an_alias_of_something_else_than_its_base(tmp_path: Path) -> None:
    model = Llama()
    path = alias_pack(tmp_path / "p.skp", stored(model), HEAD, base=True)
    assert refused("unsupported.operation", attached, model, path).where == f"tensor {HEAD!r}"


def grown(checkpoint: Checkpoint) -> Case:
    what, raw = checkpoint[UP]
    larger = kind("BF16", what.shape[0] + 1, what.shape[1])
    return Case(UP, larger, (low_rank(larger, 1),), what, raw)


def other_dtype(checkpoint: Checkpoint) -> Case:
    what, raw = checkpoint[UP]
    return Case(UP, kind("F32", *what.shape), (), what, raw)


@pytest.mark.parametrize("make", [grown, other_dtype])
def test_refuses_a_change_of_kind(make: Any, tmp_path: Path) -> None:
    model = Llama()
    checkpoint = stored(model)
    rest = {name: each for name, each in checkpoint.items() if name != UP}
    path = write_pack(tmp_path / "p.skp", Plan({UP: make(checkpoint)}, unchanged=rest))
    found = refused("unsupported.operation", attached, model, path)
    assert found.where == f"tensor {UP!r}"
    assert "keeps its kind" in found.message


def test_refuses_tensors_added_and_removed(tmp_path: Path) -> None:
    model = Llama()
    checkpoint = stored(model)
    new = added("model.new", kind("BF16", 2), dense.replacement(_two(), DTYPES["BF16"]))
    path = write_pack(tmp_path / "added.skp", Plan({"model.new": new}, unchanged=checkpoint))
    assert "adds it" in refused("unsupported.operation", attached, model, path).message
    rest = {name: each for name, each in checkpoint.items() if name != UP}
    path = write_pack(tmp_path / "removed.skp", Plan({}, unchanged=rest, removed={UP: checkpoint[UP]}))
    assert "removes it" in refused("unsupported.operation", attached, model, path).message


def _two() -> Any:
    import numpy as np

    return np.frombuffer(bf16(1.0, 2.0), "<u2")


def test_fused_projections_are_changed_in_their_rows(tmp_path: Path) -> None:
    plain, fused = Llama(), Llama(fused=True)
    checkpoint = stored(plain)
    attention, mlp = fused.model.layers[0].self_attn, fused.model.layers[0].mlp
    own = plain.model.layers[0]
    for target, parts in (
        (attention.qkv_proj, [own.self_attn.q_proj, own.self_attn.k_proj, own.self_attn.v_proj]),
        (mlp.gate_up_proj, [own.mlp.gate_proj, own.mlp.up_proj]),
    ):
        target.weight.copy_(torch.cat([part.weight for part in parts]))
    at = "model.layers.0."
    names = [f"{at}self_attn.{part}_proj.weight" for part in "qv"] + [f"{at}mlp.up_proj.weight"]
    path, result = pack_of(tmp_path / "p.skp", checkpoint, {name: [nudged(*checkpoint[name], 1)] for name in names})
    before = snapshot(fused)
    attachment = attached(fused, path)
    made = [result[f"{at}self_attn.{part}_proj.weight"] for part in "qkv"]
    assert snapshot(fused)[f"{at}self_attn.qkv_proj.weight"] == b"".join(made)
    assert snapshot(fused)[f"{at}mlp.gate_up_proj.weight"].endswith(result[f"{at}mlp.up_proj.weight"])
    attachment.detach()
    assert snapshot(fused) == before


def test_refuses_two_names_for_parts_of_one_memory(tmp_path: Path) -> None:
    model = Llama()
    checkpoint = stored(model)
    q, o = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qo")
    path, _ = pack_of(tmp_path / "p.skp", checkpoint, {name: [low_rank(checkpoint[name][0], 1)] for name in (q, o)})
    names = {q: model.lm_head.weight[:12], o: model.lm_head.weight[6:18]}
    assert "part of its memory" in refused("unsupported.operation", attached, model, path, names=names).message
