"""The promise over all: a model rebuilt from a lossless pack verifies against its author's own signature of it.

The author signs the folder of the fine-tune with the model_signing package, before there is a pack; nothing of the
signature passes through SkillPack. What is signed is whatever a folder can look like: shards of other names than the
base's, heads that no library of ours writes, an index in a layout of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import skillpack_format as skp

pytest.importorskip("model_signing", reason="the extra 'sign' is not installed")

Tensors = dict[str, np.ndarray]


def base_tensors() -> Tensors:
    random = np.random.default_rng(3)
    shapes = {"embed.weight": (40, 16), "layers.0.up.weight": (32, 16), "layers.0.norm.weight": (16,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def tuned_tensors() -> Tensors:
    random = np.random.default_rng(4)
    changed = {n: t + random.standard_normal(t.shape).astype(np.float32) / 64 for n, t in base_tensors().items()}
    return {**changed, "head.bias": np.arange(5, dtype=np.int8), "empty": np.zeros((0, 3), np.float16)}


def by_hand(tensors: Mapping[str, np.ndarray], order: list[str], padding: bytes) -> bytes:
    """A safetensors file as no library writes it: any order in header and data, blanks, metadata at the end."""
    names = {"float32": "F32", "int8": "I8", "float16": "F16"}
    header, data = {}, b""
    for name in order:
        raw = tensors[name].tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {
            "shape": list(tensors[name].shape),
            "data_offsets": span,
            "dtype": names[str(tensors[name].dtype)],
        }
        data += raw
    shuffled = {name: header[name] for name in sorted(header, reverse=True)}
    text = (
        json.dumps({**shuffled, "__metadata__": {"made by": "hand \u00e4", "format": "pt"}}, indent=1).encode()
        + padding
    )
    return len(text).to_bytes(8, "little") + text + data


def plain(folder: Path) -> None:
    """One file, as the reference library writes it."""
    save_file(tuned_tensors(), folder / "model.safetensors", metadata={"format": "pt", "more": "of it"})


def sharded(folder: Path) -> None:
    """Three files of odd heads and an index that no library writes."""
    tensors = tuned_tensors()
    shards = {
        "Fine_tune-00001-of-00003.safetensors": ["layers.0.up.weight", "empty", "embed.weight"],
        "Fine_tune-00002-of-00003.safetensors": ["layers.0.norm.weight"],
        "a.safetensors": ["head.bias"],
    }
    for number, (name, order) in enumerate(shards.items()):
        (folder / name).write_bytes(by_hand(tensors, order, b" " * number))
    weight_map = {tensor: name for name, order in shards.items() for tensor in order}
    text = json.dumps({"weight_map": weight_map, "zz": 1.5, "metadata": {"total_size": "?"}}, indent=3)
    (folder / "Fine_tune.safetensors.index.json").write_text(text)


FOLDERS: dict[str, Callable[[Path], None]] = {"plain": plain, "sharded": sharded}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(base_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"vocab_size": 40}')
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "README.md").write_text("the base")
    return folder


@pytest.fixture(params=FOLDERS)
def tuned(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "tuned"
    folder.mkdir()
    FOLDERS[request.param](folder)
    (folder / "config.json").write_text('{ "vocab_size":40,\n"tuned":true }')
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "README.md").write_text("# tuned\n")
    return folder


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def author_signs(folder: Path, private: Path) -> Path:
    from model_signing import signing

    signature = folder.parent / "model.sig"
    signing.Config().use_elliptic_key_signer(private_key=private).sign(folder, signature)
    return signature


def stock_accepts(folder: Path, signature: Path, public: Path, *more: str) -> bool:
    """What the package's own command says of a folder."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder), "--signature", str(signature)]
    return (
        subprocess.run([*command, "--public_key", str(public), *more], capture_output=True, check=False).returncode == 0
    )


def test_a_rebuilt_model_verifies_against_the_signature_of_the_full_fine_tune(
    tmp_path: Path, base: Path, tuned: Path
) -> None:
    private, public = keys(tmp_path, "author")
    signature = author_signs(tuned, private)
    pack, out = tmp_path / "p.skp", tmp_path / "out"
    assert skp.convert(base, tuned, pack).warnings == ()
    skp.sign(pack, private)
    skp.apply(base, [pack], out, skp.ApplyOptions(signed_by=public))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in tuned.iterdir()
    }
    assert stock_accepts(out, signature, public)
    assert not stock_accepts(out, signature, keys(tmp_path, "other")[1])
    assert not stock_accepts(base, signature, public)
    shard = next(path for path in sorted(out.iterdir()) if path.suffix == ".safetensors")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert not stock_accepts(out, signature, public)


def test_a_base_in_other_shards_gives_the_same_files(tmp_path: Path, base: Path, tuned: Path) -> None:
    skp.convert(base, tuned, tmp_path / "p.skp")
    other = tmp_path / "other"
    other.mkdir()
    home = {}
    for number, (name, tensor) in enumerate(sorted(base_tensors().items())):
        home[name] = f"part-{number}.safetensors"
        save_file({name: tensor}, other / home[name])
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": home}))
    (other / "vocab.txt").write_text("a\nb\n")
    skp.apply(other, [tmp_path / "p.skp"], tmp_path / "out")
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made == {path.name: path.read_bytes() for path in tuned.iterdir()}


def test_files_that_only_the_base_has_are_left_and_the_stock_program_can_pass_over_them(
    tmp_path: Path, base: Path, tuned: Path
) -> None:
    private, public = keys(tmp_path, "author")
    signature = author_signs(tuned, private)
    (base / "LICENSE").write_text("of the base")
    skp.convert(base, tuned, tmp_path / "p.skp")
    skp.apply(base, [tmp_path / "p.skp"], tmp_path / "out")
    assert not stock_accepts(tmp_path / "out", signature, public)
    assert stock_accepts(tmp_path / "out", signature, public, "--ignore_unsigned_files")


def test_what_no_pack_carries_is_named_when_the_pack_is_made(tmp_path: Path, base: Path, tuned: Path) -> None:
    (tuned / "training_args.bin").write_bytes(b"x")
    (tuned / "run.py").write_text("pass")
    (tuned / "original").mkdir()
    (tuned / ".hidden").write_text("x")
    (warning,) = skp.convert(base, tuned, tmp_path / "p.skp").warnings
    assert warning == "not carried, of the folder of tuned: original/, run.py (a program), training_args.bin"


def test_without_a_layout_and_from_a_lossy_pack_the_files_are_the_bases(
    tmp_path: Path, base: Path, tuned: Path
) -> None:
    from skillpack_format.recipes import RECIPES

    skp.convert(base, tuned, tmp_path / "a.skp", skp.ConvertOptions(layout=False))
    skp.convert(base, tuned, tmp_path / "b.skp", skp.ConvertOptions(recipe=RECIPES["standard"]))
    for name in ("a", "b"):
        assert skp.inspect(tmp_path / f"{name}.skp").to_plain()["layout"] is None
        skp.apply(base, [tmp_path / f"{name}.skp"], tmp_path / name)
        assert [path.name for path in (tmp_path / name).glob("*.safetensors*")] == ["model.safetensors"]


def test_a_layout_is_shown_and_not_used_for_a_scaled_result_or_a_single_file(
    tmp_path: Path, base: Path, tuned: Path
) -> None:
    pack = tmp_path / "p.skp"
    skp.convert(base, tuned, pack)
    shown = skp.inspect(pack).to_plain()["layout"]
    assert shown["shards"] == sorted(path.name for path in tuned.glob("*.safetensors"))
    skp.apply(base, [pack], tmp_path / "half", skp.ApplyOptions(scale=0.5))
    assert [path.name for path in (tmp_path / "half").glob("*.safetensors*")] == ["model.safetensors"]
    skp.apply(base / "model.safetensors", [pack], tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").is_file()


def test_a_shard_whose_name_is_not_plain_is_packed_without_layout_and_said(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    save_file(tuned_tensors(), folder / "my model.safetensors")
    report = skp.convert(base, folder, tmp_path / "p.skp")
    assert "my model.safetensors is no plain name" in report.warnings[0]
    assert skp.inspect(tmp_path / "p.skp").shards == ()


def test_a_layout_above_a_limit_is_left_out_and_said(tmp_path: Path, base: Path, tuned: Path) -> None:
    limits = skp.Limits(layout_bytes=100)
    report = skp.convert(base, tuned, tmp_path / "p.skp", skp.ConvertOptions(limits=limits))
    assert "above a limit" in report.warnings[0]
    assert skp.validate(tmp_path / "p.skp", base=base).is_valid
