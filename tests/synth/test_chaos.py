"""Everything at once: a server that fails at a third of all calls, a process that is killed again and again, a full disk.

At the end every row is there once, in the table or among those that were lost, and the files are those of a calm run, byte
for byte. `python -m synth.test_chaos KILLS` (with `tests` in the path) does it with as many kills as one likes.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from chatserver import PASSING, ChatServer
from stillhouse.core.run import Run
from stillhouse.synth.synthesize import ACCOUNT, account_of, lost_rows, made_rows

from .lab import go, made, said

Start = Callable[..., ChatServer]
TESTS = Path(__file__).parent.parent
COUNT, AT_ONCE, SHARE = 60, 4, 0.3


def command(folder: Path, url: str) -> tuple[list[str], dict[str, str]]:
    path = os.pathsep.join([str(TESTS), *sys.path])
    return [sys.executable, "-m", "synth.lab", str(folder), url, str(COUNT)], {**os.environ, "PYTHONPATH": path}


def calm(server: ChatServer, folder: Path) -> Run:
    return go(made(server.url, count=COUNT), folder)


def same(one: Run, other: Run) -> None:
    """Every file of both, and every row in one place."""
    folders = [run.path("make") for run in (one, other)]
    names = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        if name.name != ACCOUNT:  # tells what was paid, and answers in flight at a kill are paid again
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert account_of(one, "make")["steps"] == account_of(other, "make")["steps"]
    ids = [row["_id"] for row in made_rows(one, "make")] + [row["_id"] for row in lost_rows(one, "make")]
    assert len(ids) == len(set(ids)) == 2 * COUNT


def killed(server: ChatServer, folder: Path, kills: int, chance: random.Random) -> tuple[Run, int]:
    """A run that was killed so often, at random, under faults; and how often it really was."""
    server.fault_of = lambda number: chance.choice(PASSING) if chance.random() < SHARE else None
    line, environment = command(folder, server.url)
    done = 0
    while True:
        process = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE)
        before, deadline = len(server.asked), time.monotonic() + 60
        wanted = before + chance.randrange(1, 12)
        while process.poll() is None and len(server.asked) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.poll() is None and done < kills:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            continue
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told.decode()
        return Run(folder), done


@pytest.mark.slow
def test_faults_and_kills_together_change_no_byte(chat_server: Start, tmp_path: Path) -> None:
    quiet = chat_server(said)
    expected = calm(quiet, tmp_path / "calm" / "run")
    server = chat_server(said, slow=0.005)
    run, kills = killed(server, tmp_path / "chaos" / "run", 6, random.Random(11))
    assert kills >= 4
    same(run, expected)
    twice = sum((Counter(server.answered) - Counter(quiet.answered)).values())
    assert twice <= kills * 2 * AT_ONCE  # in flight: being answered, and on their way from there to the disk


@pytest.mark.slow
@pytest.mark.parametrize("room", [30_000, 60_000])
def test_a_full_disk_loses_nothing(chat_server: Start, tmp_path: Path, room: int) -> None:
    server = chat_server(said)
    expected = calm(server, tmp_path / "calm" / "run")
    folder = tmp_path / "full" / "run"
    line, environment = command(folder, server.url)

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    ended = subprocess.run(line, env=environment, preexec_fn=small, capture_output=True, text=True, timeout=120)  # noqa: PLW1509
    assert ended.returncode != 0
    last = ended.stderr.strip().splitlines()[-1]
    assert "RunError" in last and ("cannot write" in last or "cannot use" in last), ended.stderr
    go(made(server.url, count=COUNT), folder)
    same(Run(folder), expected)


def main(kills: int) -> None:
    """With many kills: too long for every change."""
    with tempfile.TemporaryDirectory() as place:
        quiet, server = ChatServer(said), ChatServer(said, slow=0.005)
        expected = calm(quiet, Path(place) / "calm" / "run")
        run, done = killed(server, Path(place) / "chaos" / "run", kills, random.Random(5))
        same(run, expected)
        twice = sum((Counter(server.answered) - Counter(quiet.answered)).values())
        requests = f"{len(server.asked)} requests for {len(quiet.asked)} answers, {twice} of them twice"
        print(f"{done} kills, {requests}; all bytes the same")


if __name__ == "__main__":
    main(int(sys.argv[1]))
