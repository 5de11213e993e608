"""numpy, imported when it is first used."""

from __future__ import annotations

import subprocess
import sys

import numpy
import pytest

from skillpack_format.lazy_numpy import np


def test_stands_for_numpy_itself() -> None:
    assert np.float32 is numpy.float32
    assert np.array([1]).dtype == numpy.array([1]).dtype


def test_a_name_that_numpy_does_not_have_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = np.no_such_name


def test_the_header_of_a_pack_is_read_without_numpy() -> None:
    code = "import sys, skillpack_format.ops.inspection; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
