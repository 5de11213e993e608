"""``safe_open``: a pack opened the way safetensors opens a checkpoint."""

from __future__ import annotations

from pathlib import Path

from skillpack_format.errors import error
from skillpack_format.limits import DEFAULT_LIMITS, Limits
from skillpack_format.reader import Pack

FRAMEWORKS = ("numpy", "pt")


def safe_open(path: str | Path, framework: str = "numpy", device: str = "cpu", limits: Limits = DEFAULT_LIMITS) -> Pack:
    """Open a pack; ``get_delta`` gives numpy arrays, or with ``framework="pt"`` torch tensors on ``device``.

    ``keys``, ``metadata`` and ``info`` are those of ``Pack``, and so is ``get_tensor``, whose bit patterns are numpy's
    either way. torch is imported only for "pt".
    """
    if framework not in FRAMEWORKS:
        raise error("usage.argument", "", f"framework {framework!r} is not one of {', '.join(FRAMEWORKS)}")
    if framework == "numpy":
        return Pack(Path(path), limits)
    from skillpack_format.torch_bridge import TorchPack  # noqa: PLC0415 - torch only where it is asked for

    return TorchPack(Path(path), limits, device)
