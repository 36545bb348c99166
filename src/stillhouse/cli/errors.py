"""One clear line for everything that can go wrong, and the exit status that says which kind it was."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

INTERRUPTED = 130


def explain(error: BaseException) -> tuple[str, int]:
    """(one line, exit status) for an error. Our own say what to do; others point to --debug."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    if name == "Interrupted" or isinstance(error, KeyboardInterrupt):
        return text or "stopped", INTERRUPTED
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "not enough memory" in text:
        return "out of memory; use a smaller batch or more `accumulate`, a shorter length or a smaller student", 1
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"there is no file {error.filename}", 1
    if isinstance(error, OSError) and error.filename:
        return f"cannot use {error.filename}: {error.strerror}", 1
    if isinstance(error, OSError) or _ours(error):
        return text or name, 1
    return f"unexpected {name}: {text or 'no message'} (the same command with --debug shows where)", 1


def _ours(error: BaseException) -> bool:
    """Whether it was raised on purpose: a class of ours, or a plain ValueError or LookupError from our code."""
    if type(error).__module__.split(".")[0] == "stillhouse":
        return True
    return type(error) in (ValueError, LookupError) and _raised_in(error.__traceback__).startswith("stillhouse.")


def _raised_in(trace: TracebackType | None) -> str:
    """The module whose frame is innermost."""
    name = ""
    for frame, _ in traceback.walk_tb(trace):
        name = frame.f_globals.get("__name__", "")
    return name


def report(error: BaseException, *, debug: bool) -> int:
    """Print the line (and, with `debug`, the traceback) to standard error; returns the exit status."""
    if debug:
        traceback.print_exception(error)
    line, status = explain(error)
    print(f"stillhouse: {line}", file=sys.stderr)
    return status
