"""The promise: apply(base, convert(base, tuned)) is tuned, tensor by tensor, bit for bit, on real shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skillpack_format as skp
from skillpack_format.dtypes import DTYPES, bits_to_float32, dtype_named, float32_to_bits, numel
from skillpack_format.recipes import RECIPES
from skillpack_format.stores.header import TensorSpec
from skillpack_format.stores.safetensors_files import open_checkpoint
from skillpack_format.stores.shards import ShardWriter, encode_index

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, shape, bytes


def values(dtype: str, shape: tuple[int, ...], seed: int, around: bytes | None = None, by: float = 1e-3) -> bytes:
    """Small normal numbers; with ``around``, those of a fine-tune that moved them a little."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(0, 0.02, numel(shape)).astype(np.float32)
    if around is not None:
        old = bits_to_float32(np.frombuffer(around, dtype_named(dtype).bit_pattern), dtype_named(dtype))
        numbers = old + rng.normal(0, by, old.size).astype(np.float32)
    return float32_to_bits(numbers, dtype_named(dtype)).tobytes()


def write_folder(folder: Path, tensors: Tensors, shards: int = 1, **side_files: Any) -> Path:
    """A checkpoint folder with this many shards and JSON side files."""
    folder.mkdir(parents=True)
    names = sorted(tensors)
    weight_map = {}
    for index in range(shards):
        file_name = "model.safetensors" if shards == 1 else f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[index::shards]
        specs = [TensorSpec(name, dtype_named(tensors[name][0]), tensors[name][1]) for name in mine]
        with ShardWriter(folder / file_name, specs, {}) as writer:
            for spec in writer.tensors:
                writer.write(spec.name, tensors[spec.name][2])
        weight_map.update(dict.fromkeys(mine, file_name))
    if shards > 1:
        index = encode_index(weight_map, sum(len(t[2]) for t in tensors.values()), {})
        (folder / "model.safetensors.index.json").write_bytes(index)
    for name, plain in side_files.items():
        (folder / f"{name}.json").write_text(json.dumps(plain))
    return folder


def read_folder(folder: Path) -> Tensors:
    with open_checkpoint(folder) as checkpoint:
        return {n: (s.dtype.name, s.shape, bytes(checkpoint.read(n))) for n, s in checkpoint.specs.items()}


def matrices(shapes: dict[str, tuple[int, ...]], dtype: str) -> tuple[Tensors, Tensors]:
    base = {name: (dtype, shape, values(dtype, shape, index)) for index, (name, shape) in enumerate(shapes.items())}
    tuned = {
        name: (dtype, shape, values(dtype, shape, 1000 + index, around=base[name][2]))
        for index, (name, shape) in enumerate(shapes.items())
    }
    return base, tuned


def llama() -> tuple[Tensors, Tensors]:
    """Grouped-query attention, head tied to the embedding and hence not on disk."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{p}_proj.weight": (32, 32) for p in "qo"}
        shapes |= {f"{at}.self_attn.{p}_proj.weight": (8, 32) for p in "kv"}
        shapes |= {f"{at}.mlp.{p}_proj.weight": (48, 32) for p in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (32, 48), f"{at}.input_layernorm.weight": (32,)}
    return matrices(shapes, "BF16")


def qwen2() -> tuple[Tensors, Tensors]:
    base, tuned = llama()
    more, more_tuned = matrices({f"model.layers.0.self_attn.{p}_proj.bias": (8,) for p in "kv"}, "BF16")
    return base | more, tuned | more_tuned


def experts() -> tuple[Tensors, Tensors]:
    return matrices(
        {
            "model.layers.0.mlp.gate.weight": (4, 32),
            **{f"model.layers.0.mlp.experts.{e}.up_proj.weight": (48, 32) for e in range(4)},
            "model.layers.1.mlp.experts.gate_up_proj": (4, 32, 24),
        },
        "F16",
    )


def grown_vocabulary() -> tuple[Tensors, Tensors]:
    base, tuned = llama()
    name = "model.embed_tokens.weight"
    tuned[name] = ("BF16", (67, 32), tuned[name][2] + values("BF16", (3, 32), 77))
    return base, tuned


def cut_vocabulary() -> tuple[Tensors, Tensors]:
    base, tuned = llama()
    name = "model.embed_tokens.weight"
    tuned[name] = ("BF16", (60, 32), tuned[name][2][: 60 * 32 * 2])
    return base, tuned


def untied_head() -> tuple[Tensors, Tensors]:
    base, tuned = llama()
    tuned["lm_head.weight"] = (
        "BF16",
        (64, 32),
        values("BF16", (64, 32), 5, around=base["model.embed_tokens.weight"][2]),
    )
    return base, tuned


def tied_twice() -> tuple[Tensors, Tensors]:
    """A head that is stored although it is tied, in both checkpoints."""
    base, tuned = llama()
    for tensors in (base, tuned):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return base, tuned


def head_becomes_tied() -> tuple[Tensors, Tensors]:
    base, tuned = untied_head()
    return tuned, base


def changed_dtype() -> tuple[Tensors, Tensors]:
    base, tuned = matrices({"a.weight": (16, 16), "b.weight": (16, 16), "c.weight": (9,)}, "F32")
    for name, dtype in (("a.weight", "BF16"), ("b.weight", "F16")):
        numbers = np.frombuffer(tuned[name][2], np.float32)
        tuned[name] = (dtype, (16, 16), float32_to_bits(numbers, dtype_named(dtype)).tobytes())
    tuned["c.weight"] = ("I32", (9,), np.arange(9, dtype="<i4").tobytes())
    return base, tuned


def changed_shape() -> tuple[Tensors, Tensors]:
    base, tuned = llama()
    name = "model.layers.0.mlp.down_proj.weight"
    tuned[name] = ("BF16", (48, 32), tuned[name][2])
    tuned["model.norm.weight"] = ("BF16", (2, 16), tuned["model.norm.weight"][2])
    return base, tuned


def odd_values() -> tuple[Tensors, Tensors]:
    """NaN payloads, signalling NaNs, infinities, -0.0 and subnormals on both sides, in every float dtype."""
    base: Tensors = {}
    tuned: Tensors = {}
    for dtype in (d for d in DTYPES.values() if d.kind == "float" and d.itemsize):
        top = 1 << (dtype.bits - 1)
        rng = np.random.default_rng(dtype.bits)
        patterns = [0, top, 1, top | 1, top - 1, 2 * top - 1, top >> 1, (top >> 1) | 1]
        patterns += [int(x) for x in rng.integers(0, 2 * top, 200, dtype=np.uint64)]
        name = f"odd.{dtype.name}"
        base[name] = (dtype.name, (len(patterns),), np.array(patterns, dtype.bit_pattern).tobytes())
        rng.shuffle(patterns)
        tuned[name] = (dtype.name, (len(patterns),), np.array(patterns, dtype.bit_pattern).tobytes())
    base["matrix.weight"] = ("BF16", (4, 4), np.array([0x7FA1, 0x8000, 1, 0x7F80] * 4, "<u2").tobytes())
    tuned["matrix.weight"] = ("BF16", (4, 4), np.array([0x8000, 0, 0x8001, 0xFFFF] * 4, "<u2").tobytes())
    return base, tuned


def every_dtype() -> tuple[Tensors, Tensors]:
    base: Tensors = {}
    tuned: Tensors = {}
    for index, dtype in enumerate(DTYPES.values()):
        count = 64
        rng = np.random.default_rng(index)
        for side in (base, tuned):
            raw = rng.integers(0, 2 if dtype.kind == "bool" else 256, count * dtype.bits // 8, dtype=np.uint8)
            side[f"t.{dtype.name}"] = (dtype.name, (8, 8), raw.tobytes())
    return base, tuned


def odd_shapes() -> tuple[Tensors, Tensors]:
    shapes = {"scalar": (), "empty": (0, 5), "one": (1,), "deep": (2, 1, 2, 1, 3, 1, 2, 2)}
    base, tuned = matrices(shapes, "F32")
    tuned["empty"] = ("F32", (0, 7), b"")
    tuned["new.empty"] = ("BF16", (3, 0), b"")
    return base, tuned


def added_and_removed() -> tuple[Tensors, Tensors]:
    base, tuned = llama()
    del tuned["model.layers.1.mlp.up_proj.weight"]
    tuned["model.layers.2.new.weight"] = ("F32", (3, 5), values("F32", (3, 5), 9))
    tuned["a.zero"] = ("I64", (100,), bytes(800))
    return base, tuned


CASES: dict[str, Callable[[], tuple[Tensors, Tensors]]] = {
    made.__name__: made
    for made in (
        llama, qwen2, experts, grown_vocabulary, cut_vocabulary, untied_head, tied_twice, head_becomes_tied,
        changed_dtype, changed_shape, odd_values, every_dtype, odd_shapes, added_and_removed,
    )
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("codec", "shards"), [("zstd", 1), ("raw", 3)])
def test_a_lossless_pack_gives_back_every_bit(tmp_path: Path, case: str, codec: str, shards: int) -> None:
    base, tuned = CASES[case]()
    before, after = write_folder(tmp_path / "base", base, shards), write_folder(tmp_path / "tuned", tuned)
    skp.convert(before, after, tmp_path / "p.skp", skp.ConvertOptions(codec=codec, threads=2))
    assert skp.validate(tmp_path / "p.skp", base=before, deep=True).problems == ()
    skp.apply(before, [tmp_path / "p.skp"], tmp_path / "out", skp.ApplyOptions(threads=2))
    assert read_folder(tmp_path / "out") == dict(sorted(tuned.items()))
    for path in after.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "lossless"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "odd_values"])
def test_a_lossy_pack_makes_what_it_promises(tmp_path: Path, case: str, recipe: str) -> None:
    base, tuned = CASES[case]()
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    exact = ("*gate_up_proj", "deep") if recipe == "graftllm" else ()
    options = skp.ConvertOptions(recipe=RECIPES[recipe], exact=exact)
    report = skp.convert(before, after, tmp_path / "p.skp", options)
    applied = skp.apply(before, [tmp_path / "p.skp"], tmp_path / "out")
    made = read_folder(tmp_path / "out")
    assert {n: t[:2] for n, t in made.items()} == {n: tuned[n][:2] for n in sorted(tuned)}
    assert applied.result_digest is not None
    exact_classes = ("router", "other", *(("norm", "bias") if recipe == "graftllm" else ()))
    for each in report.tensors:
        if each.tensor_class in exact_classes and each.change != "removed":
            assert made[each.name] == tuned[each.name]


def test_a_new_row_is_exact_even_in_a_lossy_pack(tmp_path: Path) -> None:
    base, tuned = grown_vocabulary()
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    skp.convert(before, after, tmp_path / "p.skp", skp.ConvertOptions(recipe=RECIPES["small"]))
    skp.apply(before, [tmp_path / "p.skp"], tmp_path / "out")
    name = "model.embed_tokens.weight"
    assert read_folder(tmp_path / "out")[name][2][64 * 32 * 2 :] == tuned[name][2][64 * 32 * 2 :]


def test_nan_is_refused_where_a_lossy_code_was_asked_for(tmp_path: Path) -> None:
    base, tuned = matrices({"layer.mlp.up_proj.weight": (16, 16)}, "F32")
    spoiled = bytearray(tuned["layer.mlp.up_proj.weight"][2])
    spoiled[:4] = b"\x00\x00\xc0\x7f"
    tuned["layer.mlp.up_proj.weight"] = ("F32", (16, 16), bytes(spoiled))
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    with pytest.raises(skp.SkillPackError, match=r"layer\.mlp\.up_proj\.weight.*convert\.nonfinite"):
        skp.convert(before, after, tmp_path / "p.skp", skp.ConvertOptions(recipe=RECIPES["standard"]))
    assert not (tmp_path / "p.skp").exists()


def test_tied_weights_stored_twice_are_stored_once(tmp_path: Path) -> None:
    base, tuned = tied_twice()
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    report = skp.convert(before, after, tmp_path / "p.skp")
    assert {t.name: t.change for t in report.tensors}["model.embed_tokens.weight"] == "alias"


def test_identical_checkpoints_give_a_tiny_pack_that_changes_nothing(tmp_path: Path) -> None:
    base, _ = llama()
    before = write_folder(tmp_path / "base", base)
    report = skp.convert(before, before, tmp_path / "p.skp")
    assert report.pack_bytes < 1024
    applied = skp.apply(before, [tmp_path / "p.skp"], tmp_path / "out")
    assert (applied.changed, applied.added, applied.removed) == (0, 0, 0)
    assert read_folder(tmp_path / "out") == dict(sorted(base.items()))


@pytest.mark.parametrize("unchanged", [True, False], ids=["unchanged-tensor", "changed-tensor"])
def test_one_changed_bit_in_the_base_is_refused_by_name(tmp_path: Path, unchanged: bool) -> None:
    base, tuned = llama()
    if unchanged:
        tuned["model.norm.weight"] = base["model.norm.weight"]
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    skp.convert(before, after, tmp_path / "p.skp")
    raw = bytearray(base["model.norm.weight"][2])
    raw[-1] ^= 0x40
    wrong = write_folder(tmp_path / "wrong", base | {"model.norm.weight": ("BF16", (32,), bytes(raw))})
    with pytest.raises(skp.SkillPackError, match=r"model\.norm\.weight.*1 of 18 tensors differ") as found:
        skp.apply(wrong, [tmp_path / "p.skp"], tmp_path / "out")
    assert (found.value.code, found.value.exit_status) == ("base.content", 3)
    assert not (tmp_path / "out").exists()


def test_a_base_in_other_shards_is_the_same_base(tmp_path: Path) -> None:
    base, tuned = llama()
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    skp.convert(before, after, tmp_path / "p.skp", skp.ConvertOptions(layout=False))
    other = write_folder(tmp_path / "other", base, shards=4)
    skp.apply(other, [tmp_path / "p.skp"], tmp_path / "out")
    assert read_folder(tmp_path / "out") == dict(sorted(tuned.items()))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in other.iterdir())


def test_packs_in_a_row_build_on_each_other(tmp_path: Path) -> None:
    base, first = grown_vocabulary()
    second = {n: (d, s, values(d, s, 4000 + i, around=b)) for i, (n, (d, s, b)) in enumerate(sorted(first.items()))}
    folders = [write_folder(tmp_path / name, each) for name, each in (("a", base), ("b", first), ("c", second))]
    skp.convert(folders[0], folders[1], tmp_path / "ab.skp")
    skp.convert(folders[1], folders[2], tmp_path / "bc.skp")
    skp.apply(folders[0], [tmp_path / "ab.skp", tmp_path / "bc.skp"], tmp_path / "out")
    assert read_folder(tmp_path / "out") == dict(sorted(second.items()))
    with pytest.raises(skp.SkillPackError, match=r"base\."):
        skp.apply(folders[0], [tmp_path / "bc.skp", tmp_path / "ab.skp"], tmp_path / "wrong")


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0])
def test_a_scale_takes_that_share_of_the_change(tmp_path: Path, scale: float) -> None:
    base, tuned = matrices({"layer.mlp.up_proj.weight": (16, 16), "norm.weight": (16,)}, "F32")
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    skp.convert(before, after, tmp_path / "p.skp")
    report = skp.apply(before, [tmp_path / "p.skp"], tmp_path / "out", skp.ApplyOptions(scale=scale))
    assert report.result_digest is None
    for name, (_, _, raw) in read_folder(tmp_path / "out").items():
        old, new = (np.frombuffer(side[name][2], np.float32).astype(np.float64) for side in (base, tuned))
        assert np.array_equal(np.frombuffer(raw, np.float32), (old + scale * (new - old)).astype(np.float32))


def test_side_files_travel_and_code_does_not(tmp_path: Path) -> None:
    base, tuned = llama()
    before = write_folder(tmp_path / "base", base, config={"vocab_size": 64}, tokenizer_config={"a": 1})
    after = write_folder(
        tmp_path / "tuned",
        tuned,
        config={"vocab_size": 64, "auto_map": {"AutoModel": "x.py"}},
        tokenizer_config={"a": 2},
    )
    (after / "modeling.py").write_text("raise SystemExit")
    (before / "notes").mkdir()
    (before / "notes" / "a.txt").write_text("kept")
    report = skp.convert(before, after, tmp_path / "p.skp")
    assert report.side_files == ("tokenizer_config.json",)
    assert any("auto_map" in warning for warning in report.warnings)
    assert "not carried, of the folder of tuned: modeling.py (a program)" in report.warnings
    applied = skp.apply(before, [tmp_path / "p.skp"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"a": 2}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"vocab_size": 64}
    assert (tmp_path / "out" / "notes" / "a.txt").read_text() == "kept"
    assert not (tmp_path / "out" / "modeling.py").exists()
    assert '"a": 2' in applied.side_files[0].diff


def test_a_single_file_gives_a_single_file(tmp_path: Path) -> None:
    base, tuned = llama()
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    skp.convert(before / "model.safetensors", after / "model.safetensors", tmp_path / "p.skp")
    skp.apply(before / "model.safetensors", [tmp_path / "p.skp"], tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (after / "model.safetensors").read_bytes()


def test_unrelated_checkpoints_are_refused(tmp_path: Path) -> None:
    base, _ = llama()
    other, _ = matrices({"something.else": (4, 4)}, "F32")
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", other)
    with pytest.raises(skp.SkillPackError, match=r"convert\.unrelated"):
        skp.convert(before, after, tmp_path / "p.skp")


@pytest.mark.parametrize("recipe", ["lossless", "standard"])
def test_the_pack_does_not_depend_on_threads_or_hash_seed(tmp_path: Path, recipe: str) -> None:
    base, tuned = matrices({f"layer.{i}.mlp.up_proj.weight": (96, 64) for i in range(6)}, "BF16")
    before, after = write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)
    program = (
        "import sys; from pathlib import Path; import skillpack_format as skp;"
        "from skillpack_format.recipes import RECIPES; b, t, p, r, n = sys.argv[1:];"
        "print(skp.convert(Path(b), Path(t), Path(p), skp.ConvertOptions(recipe=RECIPES[r], threads=int(n))).pack_id)"
    )
    found = set()
    files = set()
    for seed, threads in (("0", "1"), ("1", "2"), ("77", "3")):
        pack = tmp_path / f"{seed}.skp"
        command = [sys.executable, "-c", program, str(before), str(after), str(pack), recipe, threads]
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(skp.__file__).parent.parent)}
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
        files.add(pack.read_bytes())
    assert (len(found), len(files)) == (1, 1)
