"""Where every command is entered and left: errors become text (or JSON) and an exit code, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from graphgrow.errors import GraphgrowError, OptionError

REFUSED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
_USAGE_ERROR = typer.BadParameter.__mro__[1]  # click's UsageError, which typer ships under a private name
# The nearest names, at the end of the parser's messages.
_NEAR = re.compile(r"\.? \(?(did you mean|possible options:|maybe you meant) (?P<names>.+?)[?).]*$", re.IGNORECASE)
DEBUG = "GRAPHGROW_DEBUG"


class Door(TyperGroup):
    """All commands."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run one command and exit with its code."""
        given = extra.get("args") or (args[0] if args else None) or sys.argv[1:]
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except BrokenPipeError:
            code = _broken_pipe()
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:  # noqa: BLE001 - whatever it is, people get text and a code
            code = report(error, as_json="--json" in given)
        if code == INTERRUPTED:
            print("interrupted; nothing half-written is left", file=sys.stderr)  # noqa: T201
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        """Typer gives a broken pipe and an interrupt codes of its own: ours come first."""
        try:
            return super().invoke(ctx)
        except GraphgrowError as error:
            error.where = error.where or f"graphgrow {ctx.invoked_subcommand}"
            raise
        except BrokenPipeError:
            raise typer.Exit(_broken_pipe()) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def prepare() -> None:
    """A process that is asked to end clears away what it was writing; a stream that is closed is written to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  it stays open
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def report(error: Exception, as_json: bool) -> int:
    """Print an error to stderr; the exit code that is its."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    told = explained(error)
    if not told[0].found:  # no command at all: the help was printed
        return told[1]
    kind = (
        type(error).__name__
        if isinstance(error, GraphgrowError)
        else "UsageError"
        if told[1] == USAGE
        else "InternalError"
    )
    fields = {"type": kind, "found": told[0].found, "where": told[0].where, "do": told[0].fix}
    print(json.dumps({"error": fields}) if as_json else str(told[0]), file=sys.stderr)  # noqa: T201
    return told[1]


def explained(error: Exception) -> tuple[GraphgrowError, int]:
    """Any error as found, where and do, with its exit code."""
    if isinstance(error, GraphgrowError):
        return error, USAGE if isinstance(error, OptionError) else REFUSED
    if isinstance(error, _USAGE_ERROR):
        return _usage(error), USAGE
    if isinstance(error, MemoryError):
        return GraphgrowError(found="not enough memory", fix="use a machine with more, or a smaller model"), REFUSED
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
        return GraphgrowError(
            found=error.strerror or str(error), where="standard output", fix="make room, or send the output elsewhere"
        ), REFUSED
    if isinstance(error, OSError) and error.filename is not None:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        return GraphgrowError(
            found=error.strerror or str(error), where=where, fix="check the path and its permissions"
        ), REFUSED
    lines = str(error).strip().splitlines() or [""]
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return GraphgrowError(
        found=f"an error that graphgrow did not expect: {type(error).__name__}: {lines[0]}",
        where=", ".join(f"{frame.filename}:{frame.lineno}" for frame in place),
        fix=f"run again with {DEBUG}=1 and report what it prints: this is a bug",
    ), REFUSED


def _usage(error: Any) -> GraphgrowError:
    """What the command line's parser found, and the command whose help says more."""
    path = error.ctx.command_path if error.ctx else "graphgrow"
    message = str(error.format_message()).strip().replace("Value error, ", "")
    message, near = message[:1].lower() + message[1:], ""
    if found := _NEAR.search(message):
        message, near = message[: found.start()], f"use {found['names']}\n"
    fix = f"{near}{path} --help shows how it is used"
    if path.endswith(" apply") and "extra argument" in message:
        fix = f"give one model, and passes with --pass: {path} --pass widen model.pt"
    return GraphgrowError(found=message.rstrip("."), where=path, fix=fix)


def _broken_pipe() -> int:
    """Whoever read our output has gone: nobody is left to tell."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        return BROKEN_PIPE
    return BROKEN_PIPE
