"""``skillpack verify``: is this pack signed by this key?"""

from __future__ import annotations

from pathlib import Path

import click

from skillpack_format import verify

from . import options, render


@click.command("verify")
@click.argument("pack", type=options.PATH)
@click.option("--key", type=options.PATH, required=True, help="Public key of whoever must have signed: a PEM file.")
@click.option("--signature", type=options.PATH, help="The signature.  [default: PACK.sig]")
@options.as_json
def command(pack: Path, key: Path, signature: Path | None, as_json: bool) -> None:
    """See that a pack was signed with a key.

    The same pack compressed otherwise is still signed: what is signed is its pack id. Whether the file has the signed
    bytes too is shown. This proves who made the pack; skillpack validate checks the pack.
    """
    report = verify(pack, key, signature)
    if as_json:
        render.show_json(render.result("verify", report.to_plain()))
        return
    page = render.Page()
    page.fields(
        {
            "pack": str(pack),
            "pack id": report.pack_id,
            "key": report.key_sha256,
            "file": "the bytes that were signed" if report.same_bytes else "other bytes than were signed",
        }
    )
    page.line("signed", "bold green")
    page.show()
