"""What the engine that makes data costs beside the work itself.

rows   a plan of three steps (change, multiply, filter) over 10,000 to 1,000,000 rows of a file: peak memory beyond what
       Python and its libraries take, and time for a row and step
calls  10,000 questions to a server in another process that answers each after 0.25 s, 256 at a time, beside a bare
       asyncio client that does nothing else than send and read

python benchmarks/data_engine.py rows
python benchmarks/data_engine.py calls
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.signal import Completion
from stillhouse.core.stage import execute
from stillhouse.synth.source import File
from stillhouse.synth.steps import Silent
from stillhouse.synth.synthesize import Synthesize, account_of
from stillhouse.synth.table import Row
from stillhouse.teachers.chat import HttpChat
from stillhouse.teachers.text import Ask, Decoding

SIZES = (10_000, 100_000, 1_000_000)
DELAY, CALLS, AT_ONCE = 0.25, 10_000, 256


@dataclass(frozen=True, kw_only=True)
class Change(Silent):
    """The length of each text."""

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """As many rows."""
        for row in rows:
            yield {**row, "length": len(row["text"])}


@dataclass(frozen=True, kw_only=True)
class Multiply(Silent):
    """Two new rows for every third one."""

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """Four rows for three."""
        for row in rows:
            if row["n"] % 3:
                yield row
            else:
                yield from (run.work.child(row, text=f"{row['text']} {part}", n=row["n"]) for part in "ab")


@dataclass(frozen=True, kw_only=True)
class Keep(Silent):
    """Loses one row of ten."""

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """Nine rows of ten."""
        for row in rows:
            if row["n"] % 10:
                yield row
            else:
                run.work.lose(row, "its number ends in 0", n=row["n"])


def one_size(count: int) -> dict[str, Any]:
    """The plan over so many rows, in this process."""
    with TemporaryDirectory() as place:
        file = Path(place) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({"text": f"row {i} " + "of words " * 12, "n": i}) + "\n" for i in range(count))
        steps = {"change": Change(), "multiply": Multiply(), "keep": Keep()}

        def go(data: File, name: str) -> Run:
            run = Run(Path(place) / name / "run")
            execute(Recipe(id="rows", student=None, data=data, teachers={}, stages={"make": Synthesize(steps=steps)}), run)
            return run

        go(File(path=str(file), limit=100), "first")  # what is imported on the way
        before, began = peak(), time.perf_counter()
        run = go(File(path=str(file)), "all")
        seconds = time.perf_counter() - began
        account = account_of(run, "make")["steps"]
        handled = sum(step["given"] for step in account)
        return {
            "rows": count, "made": account[-1]["made"], "seconds": seconds, "us_per_row_and_step": 1e6 * seconds / handled,
            "memory_mb": (peak() - before) / 1e6, "bytes_of_text": file.stat().st_size,
        }  # fmt: skip


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)


async def serve() -> None:
    """A server that answers a chat request with its own words after a while; prints its port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                body = json.loads(await read_message(reader))
                await asyncio.sleep(DELAY)
                said = {
                    "message": {"role": "assistant", "content": body["messages"][-1]["content"]},
                    "finish_reason": "stop",
                }
                told = json.dumps({"choices": [said], "usage": {"prompt_tokens": 5, "completion_tokens": 5}}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(told) + told)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """The body of one HTTP message."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))


async def bare(port: int, bodies: list[bytes]) -> None:
    """All bodies sent, all answers read, and nothing else."""
    todo = list(bodies)

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while todo:
            body = todo.pop()
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: it\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            json.loads(await read_message(reader))
        writer.close()

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def calls(rounds: int = 3) -> dict[str, Any]:
    """Seconds of ours, by themselves and through a run with its store, and of the bare client, in turn."""
    asks = [Ask((("user", f"question {i}"),), Decoding(max_new=16), i) for i in range(CALLS)]
    bodies = [
        json.dumps({"model": "m", "messages": [{"role": "user", "content": ask.messages[0][1]}], "seed": ask.seed}).encode()
        for ask in asks
    ]
    process = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        writer = HttpChat(url=f"http://127.0.0.1:{port}/v1", model="m", concurrency=AT_ONCE).build(None)  # type: ignore[arg-type]
        ours, theirs = list[float](), list[float]()
        for _ in range(rounds):
            began = time.perf_counter()
            answered = sum(isinstance(answer, Completion) for _, answer in writer.write(asks, threading.Event()))
            ours.append(time.perf_counter() - began)
            assert answered == CALLS
            began = time.perf_counter()
            asyncio.run(bare(port, bodies))
            theirs.append(time.perf_counter() - began)
        return {
            "calls": CALLS, "at_once": AT_ONCE, "delay": DELAY, "ours": ours, "bare": theirs,
            "ratio": sorted(ours)[rounds // 2] / sorted(theirs)[rounds // 2],
        }  # fmt: skip
    finally:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("rows", "calls", "serve", "size"))
    parser.add_argument("count", nargs="?", type=int, help="of rows, for `size`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.what == "serve":
        asyncio.run(serve())
    elif args.what == "size":
        print(json.dumps(one_size(args.count)))
    else:
        if args.what == "calls":
            found: Any = calls()
        else:  # each size in a process of its own: a peak of memory never falls
            sizes = [subprocess.check_output([sys.executable, __file__, "size", str(n)], text=True) for n in SIZES]
            found = [json.loads(text.splitlines()[-1]) for text in sizes]
        told = {"what": args.what, "found": found, "python": platform.python_version(), "cores": len_of_cores()}
        (args.out / f"data_engine_{args.what}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found, indent=1))


def len_of_cores() -> int:
    """Cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
