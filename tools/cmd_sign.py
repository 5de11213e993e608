"""``skillpack sign``: a detached signature over a pack."""

from __future__ import annotations

from pathlib import Path

import click

from skillpack_format import sign
from skillpack_format.sources import input_errors

from . import options, render


@click.command("sign")
@click.argument("pack", type=options.PATH)
@click.option("--key", type=options.PATH, required=True, help="Private key: PEM, on the curve P-256, P-384 or P-521.")
@click.option("-o", "--output", type=options.PATH, help="The signature to write.  [default: PACK.sig]")
@click.option("--password-file", type=options.PATH, help="File whose first line is the key's password.")
@options.force
@options.as_json
@options.quiet
def command(
    pack: Path,
    key: Path,
    output: Path | None,
    password_file: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Sign a pack with a private key, in a file beside it.

    The signature is a bundle as the model_signing command makes them. It holds for the pack, that is for its pack id,
    and for the bytes of this very file. Nothing is sent anywhere.
    """
    report = sign(pack, key, output, password=_first_line(password_file), overwrite=force)
    if as_json:
        render.show_json(render.result("sign", report.to_plain()))
    elif quiet:
        render.show_path(report.signature)
    else:
        page = render.Page()
        page.fields(
            {"signature": str(report.signature), "pack": str(pack), "pack id": report.pack_id, "key": report.key_sha256}
        )
        page.show()


def _first_line(path: Path | None) -> bytes | None:
    if path is None:
        return None
    with input_errors(path), path.open("rb") as file:
        return file.readline(4096).rstrip(b"\r\n")
