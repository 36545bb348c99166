"""Where a model's code runs: a process that sees no network, no file of yours and no variable, under limits.

    Sandbox().run(Program("print(6 * 7)"))        Outcome(status="ok", code=0, stdout="42\\n", ...)

Bubblewrap (`bwrap`) gives the program Linux namespaces of its own: its only processes are its own, its only files are
/usr, the interpreter's folder (both read-only) and an empty /tmp in memory that goes when it ends. All of it is killed
when the program ends or its time is over. Where bubblewrap cannot do this, nothing runs (`RunError`).
"""

from __future__ import annotations

import fcntl
import os
import resource
import selectors
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.run import Run, RunError

Status = Literal["ok", "failed", "timeout", "memory", "output", "killed"]
NOBODY = "65534"  # who runs it, inside; and outside too if we are root, whom no limit on processes binds
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
KNOWN = {  # all the variables that a program sees
    "HOME": "/tmp", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "TZ": "UTC",
}  # fmt: skip
LIMITED = """
import resource, sys
for which, most in {limits!r}:
    resource.setrlimit(which, most)
sys.path += {packages!r}
sys.argv = ["program.py"]
del resource, which, most
"""
SCRIPT = """
import builtins
builtins.exit = builtins.quit = sys.exit
del builtins, sys
exec(compile(open("program.py", "rb").read(), "program.py", "exec"))
"""


@dataclass(frozen=True, slots=True)
class Program:
    """Python source, and what it reads from standard input."""

    source: str
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. `ok` says that it exited with 0, which any program can do; not that it is right."""

    status: Status  # output: it wrote too much; memory: a MemoryError ended it; killed: a signal did
    code: int | None  # exit code, 128 + the signal; None: we ended it
    stdout: str  # what is not UTF-8 is replaced; cut at the limit
    stderr: str
    seconds: float  # wall time


@dataclass(frozen=True, slots=True)
class Job:
    """Python of ours, and `files` for it to find, read-only, in its working folder: a model's program among them."""

    code: str
    files: Mapping[str, bytes]
    stdin: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What a program may use. Sizes are bytes. A process may take `memory`, so all of them `processes` times as much."""

    cpu: int = 5  # CPU seconds of a process
    seconds: float = 10.0  # wall time: also for programs that wait
    memory: int = 512 << 20  # address space of a process
    processes: int = 8  # at once, threads included
    disk: int = 16 << 20  # scratch folder, which is in memory
    output: int = 1 << 20  # each of standard output and standard error
    packages: tuple[str, ...] = ()  # folders with modules that programs may import and read; else the standard library
    unsafe: bool = False  # True: no confinement at all, only limits. The program can read and delete what you can

    def __post_init__(self) -> None:
        if min(self.cpu, self.seconds, self.memory, self.processes, self.disk, self.output) <= 0:
            raise ValueError("the limits of a sandbox are above 0")

    def check(self, run: Run | None = None) -> None:
        """RunError, with what to install, if programs cannot be confined here. Asks once a process."""
        if self.unsafe and run is not None and run.folder not in _warned:
            _warned.add(run.folder)
            note = "sandbox.unsafe=true: programs that a model wrote run UNCONFINED, with your files and your network"
            run.event("unsafe", note=note)
            warnings.warn(note, stacklevel=2)
        if self in _checked:
            return
        missing = next((folder for folder in self.packages if not Path(folder).is_dir()), None)
        if missing is not None:
            raise RunError(f"sandbox.packages names {missing}, which is no folder")
        if sys.platform != "linux":
            raise RunError("a model's programs run on Linux alone: nothing else here can limit and confine them")
        tools = () if self.unsafe else ("bwrap", "setpriv") if os.geteuid() == 0 else ("bwrap",)
        if not all(map(shutil.which, tools)):
            raise RunError(
                f"a model's programs are confined by {' and '.join(tools)}, which this machine lacks: apt-get install "
                "bubblewrap util-linux (or set sandbox.unsafe=true, and they run with your rights)"
            )
        found = self.run(Program("import sys; sys.stdout.write('42')"))
        if found.stdout != "42":
            why = (found.stderr.strip().splitlines() or [found.status])[-1]
            raise RunError(f"even a program of one line fails within the sandbox's limits ({why}); raise them")
        _checked.add(self)

    def run(self, program: Program) -> Outcome:
        """Run one program to its end."""
        source = program.source.encode(errors="surrogatepass")
        return self.jobs(Job(SCRIPT, {"program.py": source}, program.stdin.encode(errors="surrogatepass")))

    def jobs(self, first: Job, second: Job | None = None) -> Outcome:
        """Run a job; with a `second`, each in a sandbox of its own, reading what the other writes, until `first` ends."""
        with tempfile.TemporaryDirectory() if self.unsafe else nullcontext("/") as scratch:
            children: list[_Child] = []
            ends: list[int] = []
            try:
                if second is None:
                    children.append(_Child(self, first, Path(scratch)))
                else:
                    (there, back), (here, forth) = os.pipe(), os.pipe()
                    ends = [there, back, here, forth]
                    children.append(_Child(self, first, Path(scratch), there, forth))
                    children.append(_Child(self, second, Path(scratch), here, back))
                    while ends:
                        os.close(ends.pop())
                self._watch(children)
            finally:
                for each in children:
                    each.kill()
                for end in ends:
                    os.close(end)
            return children[0].outcome()

    def _watch(self, children: Sequence[_Child]) -> None:
        """Read what they say until the first of them ends, or one of them has to."""
        first = children[0]
        with selectors.DefaultSelector() as waiting:
            for child in children:
                for pipe in child.said:
                    waiting.register(pipe, selectors.EVENT_READ, child)
            while any(key.data is first for key in waiting.get_map().values()):
                ready = waiting.select(max(first.began + self.seconds - time.monotonic(), 0))
                if not ready:
                    first.ended = "timeout"
                    return
                for key, _ in ready:
                    part = os.read(key.fd, 1 << 16)
                    if not part:
                        waiting.unregister(key.fd)
                    key.data.said[key.fd] += part
                    if len(key.data.said[key.fd]) > self.output:
                        first.ended = "output"
                        return
        while not first.over():  # it has closed all that we listen to
            if time.monotonic() > first.began + self.seconds:
                first.ended = "timeout"
                return
            time.sleep(0.001)

    def limits(self) -> list[tuple[int, tuple[int, int]]]:
        """For `setrlimit`, inside. One more process: bubblewrap's own. Unconfined, the user's processes all count."""
        most = {"AS": self.memory, "FSIZE": self.disk, "NOFILE": 64, "CORE": 0}
        if not self.unsafe:
            most["NPROC"] = self.processes + 1
        table = [(getattr(resource, f"RLIMIT_{name}"), (value, value)) for name, value in most.items()]
        return [*table, (resource.RLIMIT_CPU, (self.cpu, self.cpu + 1))]

    def command(self, code: str, files: Mapping[str, int], status: int) -> list[str]:
        """What starts `code`; `files` and `status` are open file descriptors."""
        python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        limited = LIMITED.format(limits=self.limits(), packages=[*map(os.path.abspath, self.packages)])
        start = [str(python), "-s", "-S", "-B", "-c", limited + code]
        if self.unsafe:
            return start
        bwrap = shutil.which("bwrap") or "bwrap"
        system: list[str] = []
        for path in filter(os.path.lexists, SYSTEM):
            system += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
        needed = [Path(sys.base_prefix).resolve(), python.parent, *(Path(p).absolute() for p in self.packages)]
        folders = [p for i, p in enumerate(needed) if not any(p.is_relative_to(q) for q in ("/usr", *needed[:i]))]
        before = _as_nobody(folders) if os.geteuid() == 0 else []
        inside = [bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
        inside += ["--clearenv", "--cap-drop", "ALL", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox", *system]
        inside += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
        inside += ["--remount-ro", "/dev", "--perms", "1777", "--size", str(self.disk), "--tmpfs", "/tmp"]
        for path in map(str, folders):
            inside += ["--ro-bind", path, path]
        for name, number in files.items():
            inside += ["--perms", "0444", "--ro-bind-data", str(number), f"/tmp/{name}"]
        for name, value in KNOWN.items():
            inside += ["--setenv", name, value]
        return [*before, *inside, "--remount-ro", "/", "--chdir", "/tmp", "--json-status-fd", str(status), *start]


class _Child:
    """A job under way; `stdin` and `stdout` are pipes, or else the job's own and what is read here."""

    def __init__(self, sandbox: Sandbox, job: Job, scratch: Path, stdin: int | None = None, stdout: int | None = None):
        self.sandbox, self.took = sandbox, 0.0
        self.ended: Status | None = None  # by us, and why
        given = [_filled(data) for data in job.files.values()]
        source = _filled(job.stdin) if stdin is None else os.dup(stdin)
        self.status, pipe = os.pipe()
        status = _aside(pipe)
        os.close(pipe)
        self.began = time.monotonic()
        try:
            command = sandbox.command(job.code, dict(zip(job.files, given, strict=True)), status)
            for name, data in job.files.items() if sandbox.unsafe else ():
                (scratch / name).write_bytes(data)
            self.process = subprocess.Popen(
                command, stdin=source, stdout=subprocess.PIPE if stdout is None else stdout, stderr=subprocess.PIPE,
                env=KNOWN, cwd=scratch, start_new_session=True, pass_fds=() if sandbox.unsafe else (*given, status),
            )  # fmt: skip
        except BaseException:
            os.close(self.status)
            raise
        finally:
            for number in (*given, source, status):
                os.close(number)
        pipes = (self.process.stdout, self.process.stderr)
        self.pipes = [self.status, *(pipe.fileno() for pipe in pipes if pipe is not None)]
        self.said = {pipe: bytearray() for pipe in self.pipes}

    def over(self) -> bool:
        """Has it ended? It is not waited for, so that its number stays its own until `kill`."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def kill(self) -> None:
        """End it and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.took = time.monotonic() - self.began
        os.close(self.status)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def outcome(self) -> Outcome:
        """How it ended."""
        texts = [bytes(self.said[pipe][: self.sandbox.output]).decode(errors="replace") for pipe in self.pipes]
        status_told, stdout, stderr = texts if len(texts) == 3 else (texts[0], "", texts[1])
        if self.ended is not None:
            return Outcome(self.ended, None, stdout, stderr, self.took)
        code = self.process.returncode
        if code > 0 and not self.sandbox.unsafe and "exit-code" not in status_told:
            raise RunError(
                f"bubblewrap cannot confine programs here ({' '.join(stderr.split()) or code}): allow user namespaces "
                "(sysctl kernel.unprivileged_userns_clone=1, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0, in a "
                "container --security-opt seccomp=unconfined); bubblewrap must be 0.8 or newer"
            )
        code = code if code >= 0 else 128 - code
        status: Status = "ok" if code == 0 else "killed" if code > 128 else "failed"
        if code == 128 + signal.SIGXCPU:
            status = "timeout"
        if code == 1 and (stderr.rstrip().splitlines() or [""])[-1].startswith("MemoryError"):
            status = "memory"
        return Outcome(status, code, stdout, stderr, self.took)


_checked: set[Sandbox] = set()
_warned: set[Path] = set()


def spread(function: Any, items: Iterable[Any]) -> list[Any]:
    """`function` of every item, in threads, as many as there are cores; in their order."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) as threads:
        return list(threads.map(function, items))


def _as_nobody(folders: Sequence[Path]) -> list[str]:
    """What goes before bubblewrap when we are root: become nobody, whom limits bind.

    Nobody may not walk to root's folders. Such a folder is bound again under an empty one, in a namespace of our own.
    """
    steps: list[str] = []
    hidden: dict[Path, Path] = {}
    for path in folders:
        if path.stat().st_mode & 0o5 != 0o5:
            raise RunError(f"programs run as nobody, who may not read {path}: chmod -R o+rX it")
        closed = next((p for p in reversed(path.parents) if not p.stat().st_mode & stat.S_IXOTH), None)
        if closed is not None:
            hidden[path] = closed
    if len(hidden) > 6:
        raise RunError("at most 5 folders of sandbox.packages may lie below one that only root can enter; move them")
    numbered = [(number, shlex.quote(str(path))) for number, path in enumerate(hidden, 3)]  # a shell knows 3 to 9
    steps += [f"exec {number}<{path}" for number, path in numbered]
    steps += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(path))}" for path in dict.fromkeys(hidden.values())]
    steps += [f"mkdir -p {path}\nmount -c --rbind /proc/self/fd/{number} {path}" for number, path in numbered]
    steps += [f"exec {number}<&-" for number, _ in numbered]
    opened = ["unshare", "--mount", "sh", "-ec", "\n".join(["umask 022", *steps, 'exec "$@"']), "sh"] if hidden else []
    return [*opened, "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--pdeathsig", "KILL"]


def _filled(data: bytes) -> int:
    """A file without a name that holds `data`."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return _aside(file.fileno())


def _aside(number: int) -> int:
    """The same file under a number that no shell uses for its own ends."""
    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
