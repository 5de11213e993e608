"""numpy, imported when it is first used.

``skillpack inspect`` reads a header and needs no arrays, and numpy takes longer to import than that takes to answer.
Modules on its path write ``from skillpack_format.lazy_numpy import np`` and use ``np`` as ever.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:

    class _Numpy:
        """Stands for the module; every name is looked up in it once and then kept."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(import_module("numpy"), name)
            setattr(self, name, value)
            return value

    np = _Numpy()

__all__ = ["np"]
