"""``skillpack``: argv to a command, whatever it raised to one line and an exit code.

The one rule: every failure ends here, so no command catches anything and no user sees a traceback that was not asked
for. Nothing heavy is imported before a command is chosen; ``skillpack --help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import click

INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell reports it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE: nobody reads the result any more, which is no error of ours
IO_FAILED: Final = 5  # also for memory: the machine has no more to give
INTERNAL: Final = 70  # EX_SOFTWARE of sysexits.h, outside the range that spec/errors.md defines

COMMANDS: Final[Mapping[str, str]] = {  # the first line of each command's help, here so that --help loads none of them
    "convert": "Write the pack that turns BASE into TUNED.",
    "import": "Write the pack of a LoRA adapter or another tool's delta.",
    "inspect": "Show what a pack is, from its header alone.",
    "validate": "Check a pack by every rule; list all problems.",
    "apply": "Make the checkpoint that packs turn BASE into.",
    "sign": "Sign a pack with a private key, in a file beside it.",
    "verify": "See that a pack was signed with a key.",
    "conformance": "Ask a reader every case of the corpus.",
}
HINTS: Final[Mapping[str, str]] = {  # by code, or by the first word of one
    "output.exists": "choose another -o, or replace it with --force",
    "output.alias": "choose an -o outside of the inputs",
    "output.locked": "wait for it, or choose another -o",
    "base": "skillpack inspect PACK shows the digest of the base it was made for",
    "framing.magic": "a pack begins with the bytes of spec/container.md; .skp is also a suffix of other programs",
    "integrity.source-changed": "try again once nothing writes to the inputs",
    "convert.unmatched": "--base must be the checkpoint that the delta was made for; --add-new adds what it lacks",
    "signature.missing": "it is looked for beside the pack, at PACK.sig; verify takes another with --signature",
    "resource.memory": "fewer --threads hold fewer tensors at a time",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run ends that did not succeed: what is said, and the exit code."""

    status: int
    code: str
    where: str
    message: str
    hint: str = ""


class SkillPackGroup(click.Group):
    """A group that imports a command when it is chosen, and that ends every run in one of the documented exit codes."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            command = import_module(f".cmd_{name}", __package__).command  # a name of COMMANDS, never one from a file
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as found:  # of which click would make a blank line and exit code 1
            raise _StoppedError from found

    def main(self, args: Sequence[str] | None = None, **settings: Any) -> Any:  # type: ignore[override]  # passes the rest on
        arguments = list(sys.argv[1:] if args is None else args)
        run = super().main
        status = _status(lambda: run(arguments, **{**settings, "standalone_mode": False}), arguments)
        sys.exit(status)


class _StoppedError(Exception):
    """The run was stopped from outside; ``__cause__`` says how."""


@click.group(
    cls=SkillPackGroup,
    commands=[click.Command(name, short_help=text) for name, text in COMMANDS.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="skillpack", prog_name="skillpack", message="%(prog)s %(version)s")
def skillpack() -> None:
    """Carry what a fine-tune changed as one verified file: a pack.

    \b
      skillpack convert --base base/ --tuned tuned/ -o math.skp
      skillpack apply base/ math.skp

    Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 findings or inputs that no
    pack can express, 2 usage, 3 wrong base, 4 corrupt or unsafe input, 5 input, output or memory, 6 unsupported,
    7 a budget or bound out of reach, 70 internal error, 130 interrupted, 141 the reader of the output went away.
    """


def main() -> None:
    """The console script."""
    skillpack.main(prog_name="skillpack")


def _status(run: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run a command and tell its exit code; what it raised is said on standard error."""
    try:
        status = run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as found:
        found.show()
        return found.exit_code
    except Exception as found:  # noqa: BLE001 - the one place where every failure ends; none is swallowed in silence
        return _end(found, arguments)
    return status if isinstance(status, int) else 0


def _end(found: Exception, arguments: Sequence[str]) -> int:
    if isinstance(found, BrokenPipeError) or isinstance(found.__cause__, BrokenPipeError):
        _forget_output()
        return PIPE_CLOSED
    failure = _failure(found, arguments)
    if os.environ.get("SKILLPACK_DEBUG") == "1":
        traceback.print_exception(found)
    from .render import show_error  # noqa: PLC0415 - it loads the library, for which --help must not wait

    with suppress(OSError):  # standard error may be closed or full as well; the exit code says it all the same
        show_error(failure.code, failure.where, failure.message, failure.hint, as_json=_wants_json(arguments))
    if isinstance(found, OSError):
        _forget_output()
    return failure.status


def _failure(found: Exception, arguments: Sequence[str]) -> Failure:
    """What an exception means to the user."""
    from skillpack_format.errors import SkillPackError  # noqa: PLC0415 - it loads numpy, for which --help must not wait
    from skillpack_format.progress import is_no_thread  # noqa: PLC0415 - as above

    if isinstance(found, SkillPackError):
        is_moot = found.code == "output.exists" and "--force" in arguments
        hint = "" if is_moot else HINTS.get(found.code) or HINTS.get(found.code.partition(".")[0], "")
        return Failure(found.exit_status, found.code, found.where, found.message, hint)
    if isinstance(found, click.ClickException):
        context = getattr(found, "ctx", None)
        hint = f"{context.command_path} --help" if context else ""
        return Failure(2, "usage.argument", "", " ".join(found.format_message().split()), hint)
    if isinstance(found, _StoppedError | click.Abort):
        kept = getattr(found.__cause__, "kept", None)  # of durable.RunInterruptedError
        hint = f"the same command goes on from what is done, in {kept}; or remove that" if kept else ""
        return Failure(INTERRUPTED, "run.interrupted", "", "interrupted", hint)
    if isinstance(found, OSError):  # the library has turned its own into SkillPackErrors: this is standard output
        code = "output.space" if found.errno == errno.ENOSPC else "output.failed"
        return Failure(IO_FAILED, code, "standard output", f"cannot be written: {found.strerror or found}")
    if isinstance(found, MemoryError) or is_no_thread(found):
        message = "this machine has not the memory for it"
        return Failure(IO_FAILED, "resource.memory", "", message, HINTS["resource.memory"])
    message = f"internal error ({type(found).__name__}: {found}); please report it; SKILLPACK_DEBUG=1 shows where"
    return Failure(INTERNAL, "internal.error", "", message)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether --json was given, told without click: the arguments may be what is wrong."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _forget_output() -> None:
    """Send what is still buffered for standard output nowhere, or Python complains about it at the very end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
