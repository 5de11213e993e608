"""Detached signatures over packs, in the bundle format of the OpenSSF model-signing package, which is an extra.

A signature is one bundle. Its statement lists the file's SHA-256 as any model's, so that ``model_signing verify``
takes it for the very bytes; beside it stands the pack_id, which is what counts here: the same pack, compressed
otherwise, stays signed (spec/decisions/0016-signatures.md). Keys are files, and nothing asks the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from skillpack_format.container import read_header
from skillpack_format.digest import sha256
from skillpack_format.durable import atomic_file
from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.output_paths import require_absent, require_not_input
from skillpack_format.sources import SourceFile, input_errors

SUFFIX: Final = ".sig"
PREDICATE_KEY: Final = "skillpack"  # readers of a model signature pass over what they do not know in a predicate
_REFUSED: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # of a bundle made to be wrong


@dataclass(frozen=True, slots=True)
class SignatureReport:
    """A pack and the signature over it. ``same_bytes``: the file is the very one signed, not only the same pack."""

    pack: Path
    signature: Path
    pack_id: str
    key_sha256: str  # of the public key, as the bundle names it
    same_bytes: bool

    def to_plain(self) -> dict[str, Any]:
        return {
            "pack": str(self.pack),
            "signature": str(self.signature),
            "pack_id": self.pack_id,
            "key_sha256": self.key_sha256,
            "same_bytes": self.same_bytes,
        }


@dataclass(frozen=True, slots=True)
class _Statement:
    """What a key has signed: the pack, and the file that held it."""

    pack_id: str
    file_sha256: str
    key_sha256: str


def signature_beside(pack: Path) -> Path:
    """Where the signature of ``pack`` is looked for: beside it, under its name and ``.sig``."""
    return pack.with_name(pack.name + SUFFIX)


def sign(
    pack: Path,
    key: Path,
    signature: Path | None = None,
    *,
    password: bytes | None = None,
    overwrite: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> SignatureReport:
    """Sign ``pack`` with the private elliptic-curve key in the PEM file ``key``, and write the signature.

    Raises:
        SignatureError: signature.key, the key cannot be used. UnsupportedError: the extra is not installed.
        FormatError: ``pack`` is no pack. OutputError: the signature cannot be written.
    """
    out = signature or signature_beside(pack)
    require_absent(out, overwrite=overwrite)
    require_not_input(out, (pack, key))
    with SourceFile(pack) as source:
        pack_id = _pack_id(source, limits)
        bundle, key_sha256 = _signed(pack, key, password, pack_id)
        source.require_unchanged()
    with atomic_file(out, overwrite=overwrite) as file:
        file.write(bundle)
    return SignatureReport(pack, out, pack_id, key_sha256, same_bytes=True)


def verify(pack: Path, key: Path, signature: Path | None = None, *, limits: Limits = DEFAULT_LIMITS) -> SignatureReport:
    """See that the owner of the public key in the PEM file ``key`` has signed ``pack``. The whole file is hashed.

    Raises:
        SignatureError: signature.missing, signature.key; signature.invalid, the key did not make it;
            signature.mismatch, it is over another pack or none. UnsupportedError: the extra is not installed.
    """
    place = signature or signature_beside(pack)
    statement = _authentic(place, key, limits)
    with SourceFile(pack) as source:
        _require_pack(source, statement, place, limits)
        same_bytes = source.sha256().hex() == statement.file_sha256
        source.require_unchanged()
    return SignatureReport(pack, place, statement.pack_id, statement.key_sha256, same_bytes)


def require_signed(pack: Path, key: Path, limits: Limits = DEFAULT_LIMITS) -> str:
    """The pack_id of ``pack``, which the owner of ``key`` has signed; of the pack, no more is read than its header.

    Raises what ``verify`` raises.
    """
    place = signature_beside(pack)
    statement = _authentic(place, key, limits)
    with SourceFile(pack) as source:
        _require_pack(source, statement, place, limits)
    return statement.pack_id


def _pack_id(source: SourceFile, limits: Limits) -> str:
    header = read_header(lambda offset, count: bytes(source.read_at(offset, count)), source.size, limits)
    return sha256(header.manifest).hex()


def _require_pack(source: SourceFile, statement: _Statement, place: Path, limits: Limits) -> None:
    found = _pack_id(source, limits)
    if found != statement.pack_id:
        message = f"signs the pack {statement.pack_id}, and {source.path.name} is {found}"
        raise error("signature.mismatch", str(place), message)


def _signed(pack: Path, key: Path, password: bytes | None, pack_id: str) -> tuple[bytes, str]:
    """The bundle over ``pack``, and the digest it names the public key by."""
    with _extra():
        from model_signing import hashing  # noqa: PLC0415 - an extra
        from model_signing._signing import sign_ec_key, signing  # noqa: PLC0415 - the façade cannot add to a statement
    with _key_errors(key):
        signer = sign_ec_key.Signer(key, password)
    with input_errors(pack):
        payload = signing.Payload(hashing.Config().set_allow_symlinks(True).hash(pack))
    payload.statement.pb.predicate.update({PREDICATE_KEY: {"pack_id": pack_id}})
    bundle = signer.sign(payload).bundle
    return bundle.to_json().encode(), bundle.verification_material.public_key.hint


def _authentic(place: Path, key: Path, limits: Limits) -> _Statement:
    """What the bundle at ``place`` says, once the key is known to have signed exactly that."""
    with _extra():
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - comes with the extra
        from model_signing._signing import sign_ec_key, sign_sigstore_pb  # noqa: PLC0415 - an extra
    with _key_errors(key):
        verifier = sign_ec_key.Verifier(key)
    _require_small(place, limits)
    try:
        bundle: Any = sign_sigstore_pb.Signature.read(place)
        hint = bundle.bundle.verification_material.public_key.hint
        if not hint:  # the package would print a warning and go on
            raise ValueError("it does not say which key it was made with")
        manifest = verifier.verify(bundle)
        statement = json.loads(bundle.bundle.dsse_envelope.payload)
        digests = {each.identifier: each.digest.digest_hex for each in manifest.resource_descriptors()}
    except OSError as found:
        raise error("input.failed", str(place), f"cannot be read: {found.strerror}") from found
    except InvalidSignature as found:
        raise error("signature.invalid", str(place), "was not made over what it holds with this key") from found
    except _REFUSED as found:
        message = f"is not a signature by this key: {type(found).__name__}: {found}"
        raise error("signature.invalid", str(place), message) from found
    signed = statement["predicate"].get(PREDICATE_KEY)
    pack_id = signed.get("pack_id") if isinstance(signed, dict) else None
    if not isinstance(pack_id, str):
        raise error("signature.mismatch", str(place), "signs no pack, only files; model_signing verify is for those")
    return _Statement(pack_id, digests.get(".", ""), hint)


def _require_small(place: Path, limits: Limits) -> None:
    """See that there is a signature at ``place``, and not more of it than a parser should be given."""
    if not place.exists():
        raise error("signature.missing", str(place), "there is no signature")
    with SourceFile(place) as source:
        limits.require("signature_bytes", source.size, str(place))


@contextmanager
def _extra() -> Iterator[None]:
    """unsupported.operation where the package that makes and checks signatures is not there."""
    try:
        yield
    except ModuleNotFoundError as found:
        message = f"signatures need model-signing, and {found.name} is not installed: pip install 'skillpack[sign]'"
        raise error("unsupported.operation", "", message) from None


@contextmanager
def _key_errors(key: Path) -> Iterator[None]:
    """signature.key for a file that holds no usable key; the reason is the package's."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - comes with the extra

    try:
        yield
    except OSError as found:
        raise error("input.failed", str(key), f"cannot be read: {found.strerror}") from found
    except (ValueError, TypeError, UnsupportedAlgorithm) as found:
        message = f"is no PEM key on the curve P-256, P-384 or P-521 that can be used here: {found}"
        raise error("signature.key", str(key), message) from found
