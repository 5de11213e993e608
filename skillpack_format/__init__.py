"""SkillPack: the change that a fine-tune makes, in one verified file.

    from pathlib import Path
    import skillpack_format as skp

    skp.convert(Path("base"), Path("tuned"), Path("math.skp"))             # a lossless pack
    with skp.safe_open("math.skp") as pack:
        for name in pack.keys():
            print(pack.info(name))
    skp.apply(Path("base"), [Path("math.skp")], Path("math"))              # the model back, proved by digest

The file format is specified in spec/; every error is a ``SkillPackError`` with a stable ``code``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillpack_format.calibration import Calibration
    from skillpack_format.errors import SkillPackError
    from skillpack_format.limits import Limits
    from skillpack_format.loaded.attaching import Attachment, attach, detach, switch
    from skillpack_format.loaded.attaching import Options as AttachOptions
    from skillpack_format.loaded.probing import calibrate
    from skillpack_format.loaded.unmerged import Options as UnmergedOptions
    from skillpack_format.loaded.unmerged import Unmerged, unmerged
    from skillpack_format.opening import safe_open
    from skillpack_format.ops.application import ApplicationReport, apply, prove
    from skillpack_format.ops.application import Options as ApplyOptions
    from skillpack_format.ops.conversion import ConversionReport, convert, preview
    from skillpack_format.ops.conversion import Options as ConvertOptions
    from skillpack_format.ops.importing import ImportReport, import_delta
    from skillpack_format.ops.importing import Options as ImportOptions
    from skillpack_format.ops.inspection import InspectionReport, inspect
    from skillpack_format.ops.plans import PlanReport
    from skillpack_format.ops.slices import Applied, AppliedSlice, open_applied
    from skillpack_format.ops.validation import ValidationReport, validate
    from skillpack_format.reader import Pack, TensorInfo, open_pack
    from skillpack_format.signatures import SignatureReport, sign, verify

# Where each public name lives, loaded when it is first asked for: a command that inspects does not wait for the
# machinery that converts. A test holds the table, the imports and __all__ together.
_HOMES = {
    "ApplicationReport": "ops.application",
    "Applied": "ops.slices",
    "AppliedSlice": "ops.slices",
    "ApplyOptions": "ops.application:Options",
    "AttachOptions": "loaded.attaching:Options",
    "Attachment": "loaded.attaching",
    "Calibration": "calibration",
    "ConversionReport": "ops.conversion",
    "ConvertOptions": "ops.conversion:Options",
    "ImportOptions": "ops.importing:Options",
    "ImportReport": "ops.importing",
    "InspectionReport": "ops.inspection",
    "Limits": "limits",
    "Pack": "reader",
    "PlanReport": "ops.plans",
    "SignatureReport": "signatures",
    "SkillPackError": "errors",
    "TensorInfo": "reader",
    "Unmerged": "loaded.unmerged",
    "UnmergedOptions": "loaded.unmerged:Options",
    "ValidationReport": "ops.validation",
    "apply": "ops.application",
    "attach": "loaded.attaching",
    "calibrate": "loaded.probing",
    "convert": "ops.conversion",
    "detach": "loaded.attaching",
    "import_delta": "ops.importing",
    "inspect": "ops.inspection",
    "open_applied": "ops.slices",
    "open_pack": "reader",
    "preview": "ops.conversion",
    "prove": "ops.application",
    "safe_open": "opening",
    "sign": "signatures",
    "switch": "loaded.attaching",
    "unmerged": "loaded.unmerged",
    "validate": "ops.validation",
    "verify": "signatures",
}

__all__ = [
    "ApplicationReport",
    "Applied",
    "AppliedSlice",
    "ApplyOptions",
    "AttachOptions",
    "Attachment",
    "Calibration",
    "ConversionReport",
    "ConvertOptions",
    "ImportOptions",
    "ImportReport",
    "InspectionReport",
    "Limits",
    "Pack",
    "PlanReport",
    "SignatureReport",
    "SkillPackError",
    "TensorInfo",
    "Unmerged",
    "UnmergedOptions",
    "ValidationReport",
    "apply",
    "attach",
    "calibrate",
    "convert",
    "detach",
    "import_delta",
    "inspect",
    "open_applied",
    "open_pack",
    "preview",
    "prove",
    "safe_open",
    "sign",
    "switch",
    "unmerged",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, original = home.partition(":")
    return getattr(import_module(f"{__name__}.{module}"), original or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
