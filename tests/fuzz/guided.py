"""The targets under atheris, which keeps inputs that reach new branches of the library. Needs the extra ``fuzz``."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import process_time
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from fuzz.mutators import MAX_INPUT
from fuzz.oracles import Tally, Watch
from fuzz.targets import Target


def explore(target: Target, seed: int, seconds: float, done: Callable[[Tally], None]) -> NoReturn:
    """Fuzz for about ``seconds`` of processor time, hand the tally to ``done``, and end this process.

    libFuzzer never gives control back, so this is for a forked child.
    """
    import atheris

    watch, began = Watch(target), float("inf")
    warnings.simplefilter("error")

    def execute(data: bytes) -> None:
        watch.execute(data)
        if not watch.tally.executions & 63 and process_time() - began > seconds:
            watch.tally.seconds = process_time() - began
            done(watch.tally)
            os._exit(0)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        if number & 1:
            return bytes(atheris.Mutate(data, most))
        return target.mutate(bytes(data), Random(number))[:most]

    for name, module in sorted(sys.modules.items()):
        if name.startswith("skillpack_format") and module is not None:
            for function in _functions(module):
                atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as corpus:
        for index, data in enumerate(target.seeds()):
            Path(corpus, str(index)).write_bytes(data)
        # the oracle counts processor time; libFuzzer's own limit is of the clock, which a busy machine stretches
        settings = [f"-seed={seed}", f"-max_len={MAX_INPUT}", "-verbosity=0", "-timeout=3600", "-rss_limit_mb=0"]
        atheris.Setup([sys.argv[0], corpus, *settings], execute, custom_mutator=mutate)
        began = process_time()
        atheris.Fuzz()
    raise AssertionError("libFuzzer came back")


def _functions(module: ModuleType) -> list[FunctionType]:
    """The functions and methods that a module defines."""
    own: list[Any] = [each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__]
    methods = [method for each in own if isinstance(each, type) for method in vars(each).values()]
    return [each for each in (*own, *methods) if isinstance(each, FunctionType)]
