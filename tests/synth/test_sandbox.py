"""Programs that try to get out, to take more than they may, or to stay: each has a clear end and leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from confinement import confined
from stillhouse.core.run import Run, RunError
from stillhouse.synth import sandbox as module
from stillhouse.synth.sandbox import Outcome, Program, Sandbox, spread

SMALL = Sandbox(cpu=2, seconds=3.0, memory=256 << 20, processes=8, disk=1 << 20, output=1 << 16)
QUICK = replace(SMALL, seconds=0.6)


token = f"stray{secrets.token_hex(8)}"


def run(source: str, sandbox: Sandbox = SMALL, stdin: str = "") -> Outcome:
    return sandbox.run(Program(source, stdin))


def strays(name: str = token) -> list[str]:
    """Processes of this machine that carry the name."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [str(path)] if name.encode() in path.read_bytes() else []
        except OSError:
            pass
    return found


def gone(name: str = token) -> bool:
    """None of them is left, or will be in a moment: the kernel needs one to end a whole tree.

    Looks are counted, and not seconds: a machine that stands still for a while has had no time to end anything.
    """
    for _ in range(1000):
        if not strays(name):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """After every test no process, no open file and no file is left."""
    here, files = set(os.listdir(".")), len(os.listdir("/proc/self/fd"))
    yield
    assert gone()
    assert set(os.listdir(".")) == here
    assert len(os.listdir("/proc/self/fd")) == files


# -- what works ----------------------------------------------------------------------------------------------------


@confined
def test_a_program_runs_reads_and_prints() -> None:
    found = run("import sys\nprint(input()[::-1])\nprint('to you', file=sys.stderr)\nsys.exit(3)", stdin="abc\n")
    assert (found.status, found.code, found.stdout, found.stderr) == ("failed", 3, "cba\n", "to you\n")
    assert 0 < found.seconds < 3
    assert run("exit()").status == "ok"
    assert run("").status == "ok"
    assert (
        run("print(__name__)\nif __name__ == '__main__': print(__import__('sys').argv)").stdout
        == "__main__\n['program.py']\n"
    )
    assert run("open('mine', 'w').write('x')\nprint(open('mine').read())").stdout == "x\n"
    standard = (
        "import sqlite3, hashlib, ctypes, decimal, dataclasses\n@dataclasses.dataclass\nclass A: x: 'int'\nprint(A(1))"
    )
    assert run(standard).stdout == "A(x=1)\n"
    threads = "from concurrent.futures import ThreadPoolExecutor as T\nprint(list(T(4).map(abs, range(-3, 3))))"
    assert run(threads).stdout == "[3, 2, 1, 0, 1, 2]\n"


@confined
def test_the_same_program_says_the_same() -> None:
    told = spread(SMALL.run, [Program("print(hash('a'), {'a', 'b', 'c'})")] * 3)
    assert len({each.stdout for each in told}) == 1


@confined
def test_many_programs_keep_their_order() -> None:
    sources = [Program(f"import time; time.sleep({0.2 if i == 0 else 0}); print({i})") for i in range(5)]
    assert [each.stdout for each in spread(SMALL.run, sources)] == [f"{i}\n" for i in range(5)]


@confined
def test_modules_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "handy.py").write_text("x = 7\n")
    tmp_path.chmod(0o755)
    assert "No module" in run("import handy").stderr
    assert "No module" in run("import torch").stderr
    shown = replace(SMALL, packages=(str(tmp_path),))
    shown.check()
    assert run("import handy; print(handy.x)", shown).stdout == "7\n"
    assert "Read-only file system" in run(f"open('{tmp_path}/handy.py', 'w')", shown).stderr
    with pytest.raises(RunError, match="is no folder"):
        replace(SMALL, packages=(str(tmp_path / "none"),)).check()


# -- getting out -----------------------------------------------------------------------------------------------------


@confined
def test_it_sees_no_file_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("do not tell")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/etc/passwd")
    places = [
        "/etc/passwd", "/etc/shadow", "/etc/hosts", f"{tmp_path}/secret", f"{Path.home()}/.bashrc", __file__,
        f"{module.__file__}", "/sys/kernel", "/var/log", "/home", "/mnt", "/run", "/proc/1/root/etc/passwd", "/proc/kcore",
        "/proc/1/root" + str(tmp_path), "../" * 20 + "etc/passwd",
    ]  # fmt: skip
    source = f"""
import os
for place in {places!r}:
    try:
        print(place, os.listdir(place) if os.path.isdir(place) else open(place).read(20))
    except OSError as error:
        pass
os.symlink('/etc/passwd', 'out'); os.symlink('{tmp_path}', 'there')
for place in ('out', 'there/secret'):
    print(os.path.exists(place))
print(os.getcwd(), sorted(os.listdir('.')))
"""
    assert run(source).stdout == "False\nFalse\n/tmp ['out', 'program.py', 'there']\n"


@confined
def test_it_writes_nowhere_but_into_its_scratch_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("whole")
    places = [f"{tmp_path}/mine", "/x", "/usr/x", "/dev/x", "/dev/shm/x", "/etc/x", f"{sys.base_prefix}/x", "/proc/x",
              "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "program.py", "/proc/1/oom_score_adj"]  # fmt: skip
    source = f"""
import os
open('mine', 'w').close()
for place in {places!r}:
    for how in (os.unlink, os.mkdir, lambda place: open(place, 'w').write('-1'), lambda place: os.rename('mine', place)):
        try:
            how(place); print('wrote', place)
        except OSError:
            pass
"""
    said = run(source).stdout.replace("wrote /proc/1/oom_score_adj\n", "")  # its own process 1
    assert said == ""
    assert (tmp_path / "mine").read_text() == "whole"


@confined
def test_it_sees_no_variable_and_no_process_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "hunter2hunter2")
    source = f"""
import os, glob
print(sorted(os.environ))
for path in glob.glob('/proc/[0-9]*/environ'):
    print(b'hunter2' in open(path, 'rb').read())
print(len(glob.glob('/proc/[0-9]*')), os.path.exists('/proc/{os.getpid()}/cmdline'), os.getppid())
print(os.uname().nodename, os.getuid(), os.listdir('/proc/self/fd'))
"""
    lines = run(source).stdout.splitlines()
    assert "MY_SECRET" not in lines[0] and "TOKEN" not in lines[0]
    assert lines[1:] == ["False", "False", "2 False 1", "sandbox 65534 ['0', '1', '2', '3']"]  # 3: the listing's own


@confined
def test_it_reaches_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as hidden:
        hidden.bind(f"\0{token}")
        hidden.listen()
        source = f"""
import socket
def attempt(name, what):
    try:
        what(); print(name, 'went through')
    except OSError as error:
        print(name, type(error).__name__)
attempt('localhost', lambda: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1))
attempt('outside', lambda: socket.create_connection(('1.1.1.1', 80), 1))
attempt('name', lambda: socket.create_connection(('example.org', 80), 1))
attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53)))
attempt('udp6', lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('2606:4700::1111', 53)))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0{token}'))
"""
        found = run(source)
    assert found.status == "ok" and len(found.stdout.splitlines()) == 7
    assert "went through" not in found.stdout


@confined
def test_it_gains_no_rights() -> None:
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print([l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapBnd', 'NoNewPrivs'))])
for space in (0x10000000, 0x20000, 0x40000000):  # a user's, a mount's, a network's
    print(libc.unshare(space))
print(libc.mount(b'none', b'/tmp', b'tmpfs', 0, b''))
for id in (0, 1000):
    try:
        os.setuid(id); print('became', id)
    except OSError:
        pass
import resource
try:
    resource.setrlimit(resource.RLIMIT_NPROC, (10000, 10000)); print('raised')
except ValueError:
    pass
"""
    first, *rest = run(source).stdout.splitlines()
    assert first.count("0000000000000000") == 2 and "NoNewPrivs:\\t1" in first
    assert rest == ["-1", "-1", "-1", "-1"]


# -- taking more than it may --------------------------------------------------------------------------------------


@confined
def test_a_fork_bomb_is_held() -> None:
    source = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except OSError as error:
    print(made, error.strerror)
"""
    assert run(source).stdout == "7 Resource temporarily unavailable\n"  # and itself: 8
    bomb = run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", QUICK)
    assert bomb.status == "timeout" and bomb.code is None and bomb.seconds < 2
    threads = run(
        "import threading, time\nfor i in range(99): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    )
    assert "can't start new thread" in threads.stderr


@confined
@pytest.mark.parametrize(
    "source", ["x = 'a' * 10**9", "x = []\nwhile True: x.append(' ' * 10**6 + str(len(x)))", "x = bytearray(10**9)"]
)
def test_a_memory_bomb_is_held(source: str) -> None:
    found = run(source)
    assert (found.status, found.code) == ("memory", 1)


@confined
def test_files_and_output_are_held() -> None:
    huge = run("f = open('big', 'wb')\nwhile True: f.write(b'x' * 65536)")
    assert huge.status == "failed" and "File too large" in huge.stderr
    many = run("for i in range(99): open(f'f{i}', 'wb').write(b'x' * 200000)")
    assert many.status == "failed" and "No space left" in many.stderr
    opened = run("files = [open('program.py') for _ in range(200)]")
    assert opened.status == "failed" and "Too many open files" in opened.stderr
    for stream in (1, 2):
        endless = run(f"import os\nwhile True: os.write({stream}, b'y' * 4096)")
        assert endless.status == "output" and endless.code is None
        assert len(endless.stdout + endless.stderr) == SMALL.output


@confined
@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import signal, time\nfor s in {*signal.Signals} - {9, 19}: signal.signal(s, lambda *a: 0)\ntime.sleep(99)",
        "import os, time\nos.close(0); os.close(1); os.close(2); time.sleep(600)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import ctypes; ctypes.CDLL(None).ptrace(16, 1, 0, 0)",  # stops bubblewrap's own process, which would end it
        "input(); import sys; sys.stdin.read(); import threading; threading.Event().wait()",
    ],
)
def test_what_goes_on_forever_is_ended(source: str) -> None:
    found = run(source, QUICK, stdin="x\n")
    assert (found.status, found.code) == ("timeout", None)
    assert 0.6 <= found.seconds < 2


@confined
def test_processor_time_is_counted_for_itself() -> None:
    ignoring = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    busy = replace(SMALL, cpu=1, seconds=30.0)
    found = spread(busy.run, [Program("while True: pass"), Program(ignoring)])
    assert [each.status for each in found] == ["timeout", "killed"]
    assert all(each.code is not None and each.seconds < 20 for each in found)  # the kernel ended them, not we


# -- staying, and odd ends -------------------------------------------------------------------------------------------

STAY = f"""
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for s in (1, 2, 3, 13, 15): signal.signal(s, signal.SIG_IGN)
        {{close}}
        os.execv('/usr/bin/sleep', ['{token}', '600'])
    os._exit(0)
os.wait()
{{then}}
"""


@confined
@pytest.mark.parametrize("then", ["print('done')", "time.sleep(600)", "while True: os.write(1, b'x' * 4096)"])
@pytest.mark.parametrize("close", ["os.closerange(0, 3)", "pass"])
def test_a_daemon_does_not_outlive_its_program(then: str, close: str) -> None:
    found = run(STAY.format(close=close, then=then), QUICK)
    assert found.status == {"p": "ok", "t": "timeout", "w": "output"}[then[0]]
    assert gone()


@confined
def test_a_killed_run_leaves_no_program() -> None:
    name = f"{token}killed"
    source = f"import os; os.execv('/usr/bin/sleep', ['{name}', '600'])"
    code = f"from stillhouse.synth.sandbox import *; Sandbox(seconds=60).run(Program({source!r}))"
    with subprocess.Popen([sys.executable, "-c", code]) as ours:
        until = time.monotonic() + 30
        while not any("cmdline" in path for path in strays(f"{name}\x00600")) and time.monotonic() < until:
            time.sleep(0.05)
        assert strays(f"{name}\x00600")
        ours.send_signal(signal.SIGKILL)
    assert gone(name)


@confined
@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("import os; os._exit(0)", "ok", 0),
        ("raise SystemExit", "ok", 0),
        ("import os; os.abort()", "killed", 134),
        ("import ctypes; ctypes.string_at(0)", "killed", 139),
        ("import os; os.kill(os.getpid(), 9)", "killed", 137),
        ("import os; os.kill(-1, 9)", "failed", 1),  # there is nobody to kill
        ("import os; os.kill(1, 9); os.kill(os.getppid(), 15)", "ok", 0),
        ("def f(): return f()\nf()", "failed", 1),
        ("import sys; sys.setrecursionlimit(10**9)\ndef f(x): return f([x])\nf(0)", None, None),
        ("x = " + "(" * 5000, "failed", 1),
        ("1 +", "failed", 1),
        ("a\0b", "failed", 1),
        ("\ud800", "failed", 1),
        ("# \xe9\nprint('\u65e5')", "ok", 0),
        ("import os; os.write(1, bytes(range(256)))", "ok", 0),
        ("import sys; sys.stdout.close(); print('x')", "failed", 1),
        ("import os; os.rmdir('/tmp')", "failed", 1),
        ("import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])", "ok", 0),
    ],
)
def test_odd_ends(source: str, status: str | None, code: int | None) -> None:
    found = run(source, QUICK if status is None else SMALL)
    if status is None:
        assert found.status in ("failed", "killed", "memory", "timeout")  # as deep as the stack or the memory goes
    else:
        assert (found.status, found.code) == (status, code), found


# -- where it cannot be done -----------------------------------------------------------------------------------------


def test_limits_are_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Sandbox(cpu=0)


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_checked", set[Sandbox]())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="apt-get install bubblewrap") as error:
        SMALL.check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tool", ["bwrap: No permissions to create new namespace", "bwrap: Unknown option --disable-userns"])
def test_where_namespaces_are_forbidden_nothing_runs(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # nobody may read it, unlike tmp_path
        os.chmod(folder, 0o755)
        Path(folder, "bwrap").write_text(f"#!/bin/sh\necho '{tool}' >&2\nexit 1\n")
        Path(folder, "bwrap").chmod(0o755)
        monkeypatch.setattr(module, "_checked", set[Sandbox]())
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(RunError, match="cannot confine programs here .*allow user namespaces") as error:
            SMALL.check()
    assert tool in str(error.value) and "\n" not in str(error.value)


@confined
def test_limits_too_tight_for_any_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="even a program of one line fails"):
        replace(SMALL, seconds=0.001).check()


def test_only_who_says_so_runs_unconfined_and_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_checked", set[Sandbox]())
    monkeypatch.setenv("MY_SECRET", "hunter2hunter2")
    ours = Run(tmp_path / "run", device=torch.device("cpu"))
    unsafe = replace(QUICK, unsafe=True)
    with pytest.warns(UserWarning, match="UNCONFINED"):
        unsafe.check(ours)
    unsafe.check(ours)
    assert [line["event"] for line in ours.read("events.jsonl")] == ["unsafe"]
    assert run("import os; print(os.path.exists('/etc/passwd'), 'MY_SECRET' in os.environ)", unsafe).stdout == "True False\n"
    assert run("x = bytearray(10**9)", unsafe).status == "memory"
    assert run("import time; time.sleep(60)", unsafe).status == "timeout"
    assert run("import os; os.kill(os.getpid(), 9)", unsafe).code == 137
