"""``sign``, ``verify`` and ``apply --require-signature``."""

import pytest

pytest.importorskip("model_signing", reason="the extra 'sign' is not installed")


@pytest.fixture
def keys(tmp_path_factory):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")
    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    cover = serialization.BestAvailableEncryption(b"open sesame")
    (folder / "password").write_bytes(b"open sesame\n")
    (folder / "private").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, cover))
    (folder / "public").write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return folder


@pytest.fixture
def sign(keys, run, tmp_path):
    """Sign a pack; the signature lies in the working folder, and the arguments after it are passed on."""
    return lambda pack, *more: run(
        "sign", pack, "--key", keys / "private", "--password-file", keys / "password", "-o", tmp_path / "sig", *more
    )


def test_a_signature_is_made_and_verified(models, run, sign, keys, tmp_path):
    made = sign(models.standard, "--json").json("sign")
    found = run("verify", models.standard, "--key", keys / "public", "--signature", "sig", "--json").json("verify")
    assert {**made, "command": "verify", "signature": "sig"} == found
    outcome = run("verify", models.standard, "--key", keys / "public", "--signature", "sig")
    assert outcome.code == 0
    assert outcome.stdout.endswith("signed\n")
    assert "the bytes that were signed" in outcome.stdout
    assert sign(models.standard, "--force", "-q").stdout == f"{tmp_path / 'sig'}\n"


def test_the_signature_of_another_pack_ends_with_4(models, run, sign, keys):
    sign(models.lossless)
    outcome = run("verify", models.standard, "--key", keys / "public", "--signature", "sig", "--json")
    assert (outcome.code, outcome.json("error")["error"]["code"]) == (4, "signature.mismatch")


def test_no_signature_ends_with_4_and_a_hint(models, run, keys):
    outcome = run("verify", models.standard, "--key", keys / "public", "--signature", "sig")
    assert (outcome.code, outcome.stdout) == (4, "")
    assert "sig: there is no signature [signature.missing]" in outcome.stderr


def test_apply_asks_for_a_signature_beside_each_pack(models, run, sign, keys, tmp_path):
    pack = tmp_path / "math.skp"
    pack.write_bytes(models.standard.read_bytes())
    asked = ("apply", models.base, pack, "-o", "out", "--require-signature", keys / "public")
    outcome = run(*asked)
    assert (outcome.code, "signature.missing" in outcome.stderr, (tmp_path / "out").exists()) == (4, True, False)
    sign(pack, "-o", tmp_path / "math.skp.sig")
    assert run(*asked, "--dry-run").code == 0
    assert run(*asked).code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
