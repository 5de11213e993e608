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

from skillpack_format.errors import SkillPackError
from skillpack_format.limits import Limits
from skillpack_format.opening import safe_open
from skillpack_format.ops.application import ApplicationReport, apply, prove
from skillpack_format.ops.application import Options as ApplyOptions
from skillpack_format.ops.conversion import ConversionReport, convert
from skillpack_format.ops.conversion import Options as ConvertOptions
from skillpack_format.ops.inspection import InspectionReport, inspect
from skillpack_format.ops.validation import ValidationReport, validate
from skillpack_format.reader import Pack, TensorInfo, open_pack

__all__ = [
    "ApplicationReport",
    "ApplyOptions",
    "ConversionReport",
    "ConvertOptions",
    "InspectionReport",
    "Limits",
    "Pack",
    "SkillPackError",
    "TensorInfo",
    "ValidationReport",
    "apply",
    "convert",
    "inspect",
    "open_pack",
    "prove",
    "safe_open",
    "validate",
]
