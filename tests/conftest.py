"""Lets every test import ``builders``: with --import-mode=importlib no folder of tests is on the path by itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
