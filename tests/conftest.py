"""What all tests share: ``builders`` can be imported, and no property test is timed.

With --import-mode=importlib no folder of tests is on the path by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("untimed", settings(), deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("untimed")
