"""A plan of generation, judging and rewriting with two servers as one teacher, killed again and again.

Run as a script it is the process that gets killed: `python -m synth.test_killed FOLDER COUNT URL URL`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from chatserver import PASSING, ChatServer
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.synth.flow import Grow
from stillhouse.synth.generate import Generate
from stillhouse.synth.grid import Grid
from stillhouse.synth.instruct import Instruct
from stillhouse.synth.judge import Judge, Pairwise
from stillhouse.synth.rewrite import Rewrite
from stillhouse.synth.synthesize import DataPlan, account_of, lost_rows
from stillhouse.teachers.chat import HttpChat
from stillhouse.teachers.pool import Pool
from stillhouse.teachers.text import Decoding

from .talk import plan


def said(words: str, body: Any) -> str:
    """What the servers answer: a list, a choice, a number or a text, by what they are asked and the seed."""
    number = zlib.crc32(f"{words} {body.get('seed')}".encode())
    if "numbered list" in words:
        return "\n".join(f"{i}. item {number % 97 * i} of {number % 89}" for i in range(1, 4))
    if "Which answer" in words:
        return "1" if number % 3 else "2"
    return str(number % 11) if "How good" in words else f"{words[-20:]} {number % 1000}"


def recipe(count: int, urls: Sequence[str]) -> Recipe:
    servers = {f"m{i}": HttpChat(url=url, model="tiny", concurrency=4) for i, url in enumerate(urls)}
    pool = Pool(members=servers, rest=0.01, longest_rest=0.05, retries=60)
    few = Decoding(max_new=16)
    steps = {
        "grow": Grow(
            steps={"more": Instruct(asks=3, wanted=3, alike=0.95, decoding=Decoding(max_new=64))}, to=count, rounds=9
        ),
        "grid": Grid(axes={"level": ["easy", "hard"]}, per_row=True),
        "write": Generate(prompt="{{ level }} {{ text }}", each=2, decoding=few),
        "mark": Judge(prompt="{{ answer }}\nHow good is it?", reviewers=2, least=3, decoding=few, teacher="teacher"),
        "again": Generate(prompt="Say otherwise: {{ answer }}", into="other", decoding=few),
        "better": Pairwise(first="answer", second="other", teacher="teacher"),
        "shorter": Rewrite(column="answer", prompt="Shorter: {{ answer }}", same=("[a-z]+:",), decoding=few),
    }
    return plan(steps, [{"text": f"row {i}"} for i in range(4)], teacher=pool)


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bytes(chat_server: Callable[..., ChatServer], tmp_path: Path) -> None:
    from .lab import go

    servers, count = [chat_server(said, slow=0.004) for _ in range(2)], 14
    urls = [server.url for server in servers]
    asked = recipe(count, urls)
    calm = go(asked, tmp_path / "calm" / "run")
    answered = Counter(words for server in servers for words in server.answered)
    need, paid = DataPlan.of(asked).needs["teacher"], account_of(calm, "make")["teachers"]["teacher"]
    assert paid["calls"] <= need.calls and paid["tokens"] <= need.read + need.wrote
    for server in servers:
        server.answered.clear()
    chance, kills = random.Random(11), 0
    servers[0].fault_of = lambda number: chance.choice(PASSING) if chance.random() < 0.3 else None
    folder, tests = tmp_path / "killed" / "run", Path(__file__).parent.parent
    command = [sys.executable, "-m", "synth.test_killed", str(folder), str(count), *urls]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    done = lambda: sum(len(server.answered) for server in servers)  # noqa: E731
    while True:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        wanted, deadline = done() + chance.randrange(5, 50), time.monotonic() + 90
        while process.poll() is None and done() < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.poll() is None and kills < 5:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.wait(90) == 0, process.stderr.read()  # type: ignore[union-attr]
        break
    assert kills >= 3
    run = Run(folder)
    assert (run.path("make") / "rows.parquet").read_bytes() == (calm.path("make") / "rows.parquet").read_bytes()
    assert list(lost_rows(run, "make")) == list(lost_rows(calm, "make"))
    twice = sum((Counter(words for server in servers for words in server.answered) - answered).values())
    assert twice <= kills * 16  # those in flight: eight being answered, and as many on their way from there to the disk


if __name__ == "__main__":
    from synth.lab import go
    from synth.test_killed import recipe  # under the name that the test knows it by

    go(recipe(int(sys.argv[2]), sys.argv[3:]), Path(sys.argv[1]))
