"""Runs inside the peers' environment: ZipNN's delta of one file to another of the same length, undone and compared.

python -m benchmarks.size.peers.zipnn_inside BASE_FILE TUNED_FILE DTYPE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from zipnn import ZipNN


def main(base: str, tuned: str, dtype: str, out: str) -> None:
    before, after = Path(base).read_bytes(), Path(tuned).read_bytes()
    settings = {"bytearray_dtype": dtype, "delta_compressed_type": "byte"}
    packed = bytes(ZipNN(**settings).compress(bytearray(after), delta_second_data=bytearray(before)))
    back = ZipNN(**settings).decompress(packed, delta_second_data=bytearray(before))
    if bytes(back) != after:
        raise SystemExit("ZipNN does not make the file again")
    Path(out).write_bytes(packed)


if __name__ == "__main__":
    main(*sys.argv[1:])
