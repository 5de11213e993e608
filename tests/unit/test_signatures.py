"""Signatures over packs: what is refused, and that the stock program of the package agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from pathlib import Path
from typing import NamedTuple

import pytest
from builders import (
    Parts,
    mixed_plan,
    plan_of,
    put_together,
    refused,
    tiny_plan,
    write_base,
    write_pack,
)

from skillpack_format import ApplyOptions, apply, prove, sign, verify
from skillpack_format.limits import Limits

pytest.importorskip("model_signing", reason="the extra 'sign' is not installed")


class Keys(NamedTuple):
    private: Path
    public: Path


def new_keys(folder, name="key", password=None, curve="SECP256R1"):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = ec.generate_private_key(getattr(ec, curve)())
    pem = serialization.Encoding.PEM
    cover = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    keys = Keys(folder / f"{name}.pem", folder / f"{name}.pub")
    keys.private.write_bytes(made.private_bytes(pem, serialization.PrivateFormat.PKCS8, cover))
    keys.public.write_bytes(made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return keys


@pytest.fixture
def keys(tmp_path):
    return new_keys(tmp_path)


@pytest.fixture
def pack(tmp_path):
    return write_pack(tmp_path / "a.skp", mixed_plan())


def stock(*arguments):
    """Exit code of the package's own command line."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def rewritten(signature, change):
    """The bundle with ``change`` made to it."""
    bundle = json.loads(signature.read_bytes())
    change(bundle)
    signature.write_text(json.dumps(bundle))


def resigned(signature, keys, change):
    """The bundle over a changed statement, signed again with the same key: what only the key's owner can make."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = serialization.load_pem_private_key(keys.private.read_bytes(), None)
    bundle = json.loads(signature.read_bytes())
    statement = json.loads(b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    kind = b"application/vnd.in-toto+json"
    covered = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    bundle["dsseEnvelope"]["payload"] = b64encode(payload).decode()
    made = key.sign(covered, ec.ECDSA(hashes.SHA256()))
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = b64encode(made).decode()
    signature.write_text(json.dumps(bundle))


# ------------------------------------------------------------------------------------------------------ agreement


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_what_is_signed_verifies_and_says_what_was_signed(tmp_path, pack, curve):
    keys = new_keys(tmp_path, curve, curve=curve)
    signed, found = sign(pack, keys.private), verify(pack, keys.public)
    assert signed == found
    assert (found.signature, found.same_bytes) == (tmp_path / "a.skp.sig", True)
    assert len(found.pack_id) == len(found.key_sha256) == 64


def test_the_stock_program_takes_the_signature_for_these_bytes_alone(tmp_path, pack, keys):
    signature = sign(pack, keys.private).signature
    arguments = ("verify", "key", pack, "--signature", signature, "--public_key", keys.public)
    assert stock(*arguments) == 0
    pack.write_bytes(pack.read_bytes() + b"\0")
    assert stock(*arguments) != 0


def test_the_same_pack_compressed_otherwise_is_signed_still_and_said_to_be_other_bytes(tmp_path, keys, pack):
    sign(pack, keys.private)
    other = write_pack(tmp_path / "b.skp", mixed_plan(), codec="zstd")
    assert other.read_bytes() != pack.read_bytes()
    found = verify(other, keys.public, tmp_path / "a.skp.sig")
    assert not found.same_bytes


def test_a_key_with_a_password_signs(tmp_path, pack):
    keys = new_keys(tmp_path, password=b"open sesame")
    refused("signature.key", sign, pack, keys.private)
    refused("signature.key", sign, pack, keys.private, password=b"wrong")
    sign(pack, keys.private, password=b"open sesame")
    assert verify(pack, keys.public).same_bytes


def test_a_pack_reached_by_a_link_is_signed(tmp_path, pack, keys):
    link = tmp_path / "link.skp"
    link.symlink_to(pack)
    sign(link, keys.private)
    assert verify(link, keys.public).same_bytes


# ------------------------------------------------------------------------------------------------------- refusals


def test_no_signature_is_refused(pack, keys):
    refused("signature.missing", verify, pack, keys.public)


def test_the_signature_of_another_pack_is_refused(tmp_path, pack, keys):
    other = write_pack(tmp_path / "b.skp", tiny_plan("dense"))
    signature = sign(other, keys.private).signature
    found = refused("signature.mismatch", verify, pack, keys.public, signature)
    assert "b.skp.sig" in found.where


def test_the_signature_by_another_key_is_refused(tmp_path, pack, keys):
    sign(pack, new_keys(tmp_path, "other").private)
    refused("signature.invalid", verify, pack, keys.public)


def test_a_changed_bit_of_what_is_signed_is_refused(pack, keys):
    signature = sign(pack, keys.private).signature
    whole = json.loads(signature.read_bytes())
    payload = b64decode(whole["dsseEnvelope"]["payload"])
    for at in range(0, len(payload), 7):
        bad = bytearray(payload)
        bad[at] ^= 1 << at % 8
        whole["dsseEnvelope"]["payload"] = b64encode(bad).decode()
        signature.write_text(json.dumps(whole))
        refused("signature.invalid", verify, pack, keys.public)


def test_one_changed_bit_of_the_signature_is_refused(pack, keys):
    signature = sign(pack, keys.private).signature
    whole = json.loads(signature.read_bytes())
    value = b64decode(whole["dsseEnvelope"]["signatures"][0]["sig"])
    for bit in range(0, 8 * len(value), 5):
        bad = bytearray(value)
        bad[bit // 8] ^= 1 << bit % 8
        whole["dsseEnvelope"]["signatures"][0]["sig"] = b64encode(bad).decode()
        signature.write_text(json.dumps(whole))
        refused("signature.invalid", verify, pack, keys.public)


def test_a_signature_cut_anywhere_is_refused(pack, keys):
    signature = sign(pack, keys.private).signature
    whole = signature.read_bytes()
    for length in range(0, len(whole), 31):
        signature.write_bytes(whole[:length])
        refused("signature.invalid", verify, pack, keys.public)


MALFORMED = {
    "nothing": b"",
    "no text": b"\xff\xfe",
    "a number": b"3",
    "a list": b"[]",
    "null": b"null",
    "an empty map": b"{}",
    "nesting": b"[" * 100_000,
    "material is a number": b'{"verificationMaterial":3}',
    "material is null": b'{"verificationMaterial":null}',
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_bundle_is_refused(tmp_path, pack, keys, text):
    (tmp_path / "a.skp.sig").write_bytes(text)
    refused("signature.invalid", verify, pack, keys.public)


CHANGES = {
    "no signatures": lambda b: b["dsseEnvelope"].update(signatures=[]),
    "no envelope": lambda b: b.pop("dsseEnvelope"),
    "no material": lambda b: b.pop("verificationMaterial"),
    "no key": lambda b: b["verificationMaterial"].pop("publicKey"),
    "no key named": lambda b: b["verificationMaterial"]["publicKey"].pop("hint"),
    "an empty key name": lambda b: b["verificationMaterial"]["publicKey"].update(hint=""),
    "another kind of bundle": lambda b: b.update(mediaType="application/json"),
    "a certificate": lambda b: b.update(verificationMaterial={"certificate": {"rawBytes": "AA=="}, "tlogEntries": []}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_bundle_that_lacks_something_is_refused_in_silence(pack, keys, change, capfd):
    rewritten(sign(pack, keys.private).signature, change)
    refused("signature.invalid", verify, pack, keys.public)
    assert capfd.readouterr().out == ""


STATEMENTS = {
    "no pack": lambda s: s["predicate"].pop("skillpack"),
    "a pack without id": lambda s: s["predicate"].update(skillpack={}),
    "a pack that is a text": lambda s: s["predicate"].update(skillpack="a pack"),
    "an id that is a number": lambda s: s["predicate"]["skillpack"].update(pack_id=7),
    "an id in capitals": lambda s: s["predicate"]["skillpack"].update(
        pack_id=s["predicate"]["skillpack"]["pack_id"].upper()
    ),
}


@pytest.mark.parametrize("change", STATEMENTS.values(), ids=STATEMENTS)
def test_a_good_signature_over_no_pack_id_is_refused(pack, keys, change):
    resigned(sign(pack, keys.private).signature, keys, change)
    refused("signature.mismatch", verify, pack, keys.public)


FOREIGN = {
    "another predicate": lambda s: s.update(predicateType="https://example.org/v1"),
    "another statement": lambda s: s.update(_type="https://example.org/v1"),
    "resources that do not add up": lambda s: s["predicate"]["resources"][0].update(digest="00" * 32),
    "no predicate": lambda s: s.pop("predicate"),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_good_signature_over_another_kind_of_statement_is_refused(pack, keys, change):
    resigned(sign(pack, keys.private).signature, keys, change)
    refused("signature.invalid", verify, pack, keys.public)


def test_a_model_signature_without_pack_id_is_left_to_its_own_program(tmp_path, pack, keys):
    signature = tmp_path / "a.skp.sig"
    assert stock("sign", "key", pack, "--signature", signature, "--private_key", keys.private) == 0
    found = refused("signature.mismatch", verify, pack, keys.public)
    assert "model_signing verify" in found.message


def test_a_huge_signature_is_not_read(pack, keys):
    nbytes = sign(pack, keys.private).signature.stat().st_size
    assert verify(pack, keys.public, limits=Limits(signature_bytes=nbytes)).same_bytes
    refused("limit.exceeded", verify, pack, keys.public, limits=Limits(signature_bytes=nbytes - 1))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and cannot be read is needed")
def test_a_signature_that_cannot_be_read_is_a_failed_read(pack, keys):
    found = refused("input.failed", verify, pack, keys.public, Path("/proc/self/mem"))
    assert found.message == "cannot be read: Input/output error"


def grow_while_read(monkeypatch, path):
    """From now on every read of a file lets ``path`` grow by a byte, as another process could."""
    read = os.preadv

    def read_and_grow(descriptor, buffers, offset):
        with path.open("ab") as file:
            file.write(b"\0")
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", read_and_grow)


def test_a_pack_that_changes_while_it_is_signed_is_refused(pack, keys, monkeypatch):
    grow_while_read(monkeypatch, pack)
    refused("integrity.source-changed", sign, pack, keys.private)
    assert not pack.with_name("a.skp.sig").exists()


def test_a_pack_that_changes_while_it_is_verified_is_refused(pack, keys, monkeypatch):
    sign(pack, keys.private)
    grow_while_read(monkeypatch, pack)
    refused("integrity.source-changed", verify, pack, keys.public)


@pytest.mark.parametrize("text", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path, pack, keys, text):
    sign(pack, keys.private)
    bad = tmp_path / "bad.pem"
    bad.write_bytes(text)
    refused("signature.key", verify, pack, bad)
    refused("signature.key", sign, pack, bad, tmp_path / "new.sig")
    assert not (tmp_path / "new.sig").exists()


def test_the_wrong_half_of_a_key_is_refused(tmp_path, pack, keys):
    sign(pack, keys.private)
    refused("signature.key", verify, pack, keys.private)
    refused("signature.key", sign, pack, keys.public, tmp_path / "new.sig")


def test_a_key_of_another_kind_is_refused(tmp_path, pack):
    found = refused("signature.key", sign, pack, new_keys(tmp_path, curve="SECP256K1").private)
    assert "P-256, P-384 or P-521" in found.message


def test_a_key_that_is_not_there_is_a_failed_read(tmp_path, pack, keys):
    refused("input.failed", sign, pack, tmp_path / "none.pem")
    sign(pack, keys.private)
    found = refused("input.failed", verify, pack, tmp_path / "none.pem")
    assert found.message == "cannot be read: No such file or directory"


def test_what_is_no_pack_is_not_signed(tmp_path, keys):
    (tmp_path / "no.skp").write_bytes(b"no pack")
    refused("framing.magic", sign, tmp_path / "no.skp", keys.private)
    assert not (tmp_path / "no.skp.sig").exists()


def test_no_signature_and_no_input_is_written_over(tmp_path, pack, keys):
    before = sign(pack, keys.private).signature.read_bytes()
    refused("output.exists", sign, pack, keys.private)
    refused("output.exists", sign, pack, tmp_path / "none.pem")  # seen before anything is read
    refused("output.alias", sign, pack, keys.private, keys.private, overwrite=True)
    refused("output.alias", sign, pack, keys.private, pack, overwrite=True)
    assert pack.with_name("a.skp.sig").read_bytes() == before
    sign(pack, keys.private, overwrite=True)
    assert verify(pack, keys.public).same_bytes


# ---------------------------------------------------------------------------------------------------------- apply


def test_apply_takes_a_signed_pack_and_refuses_others_before_the_base_is_looked_for(tmp_path, pack, keys):
    base, out = write_base(tmp_path / "base.safetensors", mixed_plan()), tmp_path / "out.safetensors"
    asked = ApplyOptions(signed_by=keys.public)
    no_base = tmp_path / "none.safetensors"
    for run in (lambda: apply(no_base, [pack], out, asked), lambda: prove(no_base, [pack], asked)):
        refused("signature.missing", run)
    sign(pack, new_keys(tmp_path, "other").private)
    refused("signature.invalid", apply, no_base, [pack], out, asked)
    sign(pack, keys.private, overwrite=True)
    assert apply(base, [pack], out, asked).tensors == 2
    other = write_pack(tmp_path / "b.skp", plan_of(mixed_plan().cases["a"]))
    (tmp_path / "b.skp.sig").write_bytes((tmp_path / "a.skp.sig").read_bytes())
    refused("signature.mismatch", apply, base, [other], tmp_path / "new.safetensors", asked)
    assert not (tmp_path / "new.safetensors").exists()


def test_of_an_unsigned_pack_no_document_is_read(tmp_path, keys):
    """A MANIFEST that is no msgpack at all is refused for its signature, not for what it is."""
    hostile = tmp_path / "h.skp"
    hostile.write_bytes(put_together(Parts(b"\xc1" * 5, b"\xc1", b"")))
    asked = ApplyOptions(signed_by=keys.public)
    refused("signature.missing", prove, tmp_path / "none", [hostile], asked)
    good = write_pack(tmp_path / "a.skp", mixed_plan())
    sign(good, keys.private, tmp_path / "h.skp.sig")
    refused("signature.mismatch", prove, tmp_path / "none", [hostile], asked)
    refused("wire.type", prove, tmp_path / "none", [hostile])


def test_of_two_packs_both_must_be_signed(tmp_path, pack, keys):
    sign(pack, keys.private)
    second = write_pack(tmp_path / "b.skp", tiny_plan("dense"))
    found = refused("signature.missing", prove, tmp_path / "none", [pack, second], ApplyOptions(signed_by=keys.public))
    assert "b.skp.sig" in found.where


def test_without_the_extra_nothing_is_signed(pack, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)  # as Python has it for what cannot be imported
    assert "model_signing is not installed" in refused("unsupported.operation", sign, pack, keys.private).message


def test_without_the_extra_the_error_names_the_command_that_installs_it(pack, keys):
    code = (
        "import sys, pathlib; sys.modules['model_signing'] = None\n"
        "import skillpack_format as skp\n"
        "from skillpack_format.errors import UnsupportedError\n"
        "try: skp.sign(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "except UnsupportedError as found: print(found.code, found.message)"
    )
    done = subprocess.run([sys.executable, "-c", code, pack, keys.private], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("unsupported.operation ")
    assert "pip install 'skillpack[sign]'" in done.stdout
