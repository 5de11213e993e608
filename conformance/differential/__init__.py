"""The library, ``mini`` and ``js`` over the same generated and damaged packs: same verdict, same code, same bytes.

python -m conformance.differential --packs 20000 --seed 1
"""
