"""A user's function in a process of its own: one that hangs, raises or prints can be told, and stopped.

Run as a program (`python -m stillhouse.data.own FILE.py NAME`), it reads arguments as lines of JSON and answers each with
`{"value": ...}` (what JSON does not know as Python prints it) or `{"error": ...}`. What the function prints goes to
standard error.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

START = 60.0  # seconds that importing the user's file may take


class Failed(Exception):
    """What went wrong, to be put behind the function's name."""


def asked(function: str, arguments: Sequence[Any], seconds: float) -> Any:
    """What `function` (FILE.py:NAME) gives for the arguments, which JSON must know; `Failed` if it does not."""
    worker = _workers.get(function)
    if worker is not None and worker.read != _as_it_is(function):  # somebody has changed the file since
        worker.process.kill()
        worker.process.wait()
        worker = None
    if worker is None or worker.process.poll() is not None:
        worker = _workers[function] = Worker(function)
    try:
        return worker.ask(arguments, seconds)
    except Failed:
        if worker.process.poll() is not None:
            del _workers[function]
        raise


def _as_it_is(function: str) -> tuple[int, int] | None:
    """What tells one state of the function's file from another."""
    try:
        found = Path(function.rpartition(":")[0]).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class Worker:
    """The other process."""

    def __init__(self, function: str):
        file, _, name = function.rpartition(":")
        if not Path(file).is_file():
            raise Failed(f"is in no file {file}")
        self.read = _as_it_is(function)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stillhouse.data.own", file, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.process.kill)
        self._buffer = b""
        ready = self._read(START)
        if "error" in ready:
            self.process.wait()
            raise Failed(ready["error"])

    def ask(self, arguments: Sequence[Any], seconds: float) -> Any:
        """One call."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Failed("ended its process") from error
        answer = self._read(seconds)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["value"]

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            if not select.select([self.process.stdout], [], [], seconds)[0]:
                self.process.kill()
                self.process.wait()
                raise Failed(f"took more than {seconds:g} seconds")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                self.process.wait()
                raise Failed("ended its process")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


_workers: dict[str, Worker] = {}


def plain(value: Any) -> Any:
    """A value as JSON knows it, or what Python would print for it."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return repr(value)


def serve(file: str, name: str, out: TextIO) -> None:
    """Load the function, then answer every line of standard input."""

    def tell(what: dict[str, Any]) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    space: dict[str, Any] = {"__name__": Path(file).stem, "__file__": file}
    sys.path.insert(0, str(Path(file).resolve().parent))
    try:
        exec(compile(Path(file).read_text(encoding="utf-8"), file, "exec"), space)  # noqa: S102  the user's own file
        function = space[name]
    except KeyError:
        tell({"error": f"is not there: {file} has no function {name!r}"})
        return
    except BaseException as error:
        tell({"error": f"cannot be loaded: {type(error).__name__}: {error}"})
        return
    tell({"value": None})
    for line in sys.stdin:
        try:
            value = function(*json.loads(line))
            tell({"value": plain(value.item() if hasattr(value, "item") else value)})
        except Exception as error:
            tell({"error": f"raised {type(error).__name__}: {error}"})


if __name__ == "__main__":
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.argv[2], ours)
