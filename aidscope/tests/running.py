"""The drill as people run it: a process of its own, in a place that shows leftovers.

place      a folder with the TMPDIR of its drills and the programs they meet first
stand-in   a program that does something else before, or in place of, the real one
Ended      what is known of a process when it is over
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from aidscope.tests.server import server, table_of_tests
from scripts import test_backup_restore as drill

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "test_backup_restore.py"
BOUND = 60.0  # seconds within which everything that the tests start is over
# What the machine that runs the tests may have set.
HIDDEN = {"DATABASE_URL", "DJANGO_SETTINGS_MODULE", "GITHUB_STEP_SUMMARY", "PYTHONPATH"}


class Ended(NamedTuple):
    """A process that is over."""

    status: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.stdout + self.stderr


class Act(NamedTuple):
    """When a drill can be caught: a program, arguments of its, and of the drill's."""

    program: str
    pattern: str  # of the shell
    arguments: tuple[str, ...] = ()


# The shell's pattern of arguments that ask for more than the version.
WORKING = "[!-]*|-[!-]*|--[!v]*"
ACTS = {
    "set-up": Act("pg_restore", "--version"),
    "creation": Act("pg_dump", "*--file*"),
    "validation": Act("pg_restore", "*-f\\ -*", ("--format", "custom")),
    "restore": Act("psql", WORKING),
}
# Waits for a minute, or until the file `go` is there.
WAIT = """
echo $$ >> "$PLACE/waiting"
for _ in $(seq 1200); do [ -e "$PLACE/go" ] && break; sleep 0.05; done
"""


@dataclass(frozen=True)
class Place:
    """Where drills run."""

    folder: Path
    temporary: Path  # their TMPDIR; several places may share one
    known: frozenset[str] = frozenset()  # databases that were there before

    def stand_in(self, program: str, body: str, pattern: str = WORKING) -> None:
        """Have a shell's commands run before the program, where its arguments fit."""
        path = self.folder / "bin" / program
        real = server().programs[program].path
        path.write_text(
            f"#!/bin/sh\nPLACE={shlex.quote(str(self.folder))}\n"
            f'case "$*" in\n{pattern})\n{body}\n;;\nesac\n'
            f'exec {shlex.quote(str(real))} "$@"\n'
        )
        path.chmod(0o755)

    def environment(self, **changes: str) -> dict[str, str]:
        """That of a fresh machine, but for the changes and the stand-ins on PATH."""
        kept = {
            k: v for k, v in os.environ.items() if k not in HIDDEN and k[:2] != "PG"
        }
        own = {
            "DATABASE_URL": "",  # else a developer's .env beside manage.py would say it
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.temporary),
        }
        return kept | own | changes

    @contextmanager
    def started(
        self,
        *arguments: str,
        command: tuple[str, ...] = (str(SCRIPT),),
        folder: Path = ROOT,
        **environment: str,
    ) -> Iterator[subprocess.Popen]:
        """A drill that runs; killed at the end of the block if it still does."""
        process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, **how: object) -> Ended:
        """A drill, from its start to its end."""
        with self.started(*arguments, **how) as process:
            return ended(process)

    @contextmanager
    def caught(
        self, act: Act, *arguments: str, **how: object
    ) -> Iterator[subprocess.Popen]:
        """A drill that waits in the act: `let_go`, or end it."""
        with self.bound_for(act, *arguments, **how) as process:
            self.await_stand_in(process)
            yield process

    @contextmanager
    def bound_for(
        self, act: Act, *arguments: str, **how: object
    ) -> Iterator[subprocess.Popen]:
        """A drill that will wait in the act."""
        self.stand_in(act.program, WAIT, act.pattern)
        try:
            with self.started(*act.arguments, *arguments, **how) as process:
                yield process
        finally:
            self.end_waiting()

    def await_stand_in(self, process: subprocess.Popen) -> None:
        """Wait until a stand-in of the drill's waits."""
        if not eventually(lambda: self.waiting or process.poll() is not None):
            raise AssertionError("the drill did not come to wait")
        if not self.waiting:
            raise AssertionError(f"the drill ended early: {ended(process)}")

    @property
    def waiting(self) -> list[str]:
        """The process ids of the stand-ins that have come to wait."""
        path = self.folder / "waiting"
        return path.read_text().split() if path.exists() else []

    def let_go(self) -> None:
        """Let the stand-ins that wait go on."""
        (self.folder / "go").touch()

    def end_waiting(self) -> None:
        """End the stand-ins that wait, if their drill has not."""
        for process in self.waiting:
            if str(self.folder) in introduced(Path("/proc", process)):
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """What drills have left: folders, databases, processes (as Linux shows them).

        A child that was killed may need a moment to be gone.
        """
        eventually(lambda: not self.processes(), 5)
        folders = [str(path) for path in self.temporary.iterdir()]
        return folders + self.abandoned_databases() + self.processes()

    def abandoned_databases(self) -> list[str]:
        """The new databases that no drill holds; one that runs may drop them still."""
        new = {*databases()} - self.known
        abandoned = new - alive()
        return sorted(abandoned & {*databases()})

    def processes(self) -> list[str]:
        """The processes whose arguments or environment speak of this place."""
        here = str(self.folder).encode()
        return [said for said in map(introduced, processes()) if here in said.encode()]


def processes() -> list[Path]:
    """The other processes of this machine, in Linux's words."""
    own = str(os.getpid())
    return [path for path in Path("/proc").glob("[0-9]*") if path.name != own]


def introduced(process: Path) -> str:
    """The arguments and the environment of a process, as far as they can be read."""
    said = ""
    for source in ("cmdline", "environ"):
        with suppress(OSError):  # it is gone, or somebody else's
            text = (process / source).read_bytes()
            said += text.replace(b"\0", b" ").decode(errors="replace")
    return said


@contextmanager
def place(temporary: Path | None = None) -> Iterator[Place]:
    """A place for drills, with a TMPDIR of its own unless there is one to share."""
    with TemporaryDirectory(prefix="drilled_") as name:
        folder = Path(name)
        folder.chmod(0o755)  # root's throwaway server runs as somebody else
        own = folder / "tmp"
        for path in (own, folder / "bin"):
            path.mkdir()
            path.chmod(0o755)
        yield Place(folder, temporary or own, frozenset(databases()))


def ended(process: subprocess.Popen, bound: float = BOUND) -> Ended:
    """The process, once it is over, which must not take longer than the bound."""
    stdout, stderr = process.communicate(timeout=bound)
    return Ended(process.returncode, stdout, stderr)


def eventually(condition: Callable[[], object], bound: float = BOUND) -> bool:
    """Whether the condition holds within the bound, in seconds."""
    end = time.monotonic() + bound
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# --- The suite's server, as drills meet it --------------------------------------------


def url_of(
    name: str = "postgres", user: str = "postgres", password: str | None = None
) -> str:
    """The DATABASE_URL of a database on the suite's server."""
    host = quote(server().settings["HOST"], safe="")
    who = user if password is None else f"{user}:{quote(password, safe='')}"
    return f"postgresql://{who}@{host}/{name}"


def databases() -> list[str]:
    """The databases on the suite's server that look like a drill's, but the suite's."""
    with drill.session(drill.maintenance(server())) as cursor:
        cursor.execute(
            """
            SELECT datname
              FROM pg_database
             WHERE starts_with(datname, %s)
               AND NOT starts_with(datname, %s)
             ORDER BY datname COLLATE "C"
            """,
            [drill.MARK, server().mark],
        )
        return [name for (name,) in cursor.fetchall()]


def alive() -> set[str]:
    """The databases on the suite's server whose drill still runs."""
    with drill.session(drill.maintenance(server())) as cursor:
        cursor.execute("""
            SELECT classid::bigint << 32 | objid::bigint
              FROM pg_locks
             WHERE locktype = 'advisory'
            """)
        held = {key for (key,) in cursor.fetchall()}
    known = [name for name in databases() if re.match(drill.SCRATCH_NAME, name)]
    return {name for name in known if drill.key_of(name) in held}


def sentences(pattern: str, text: str) -> list[str]:
    """What the pattern's group holds, wherever the text fits it, sorted."""
    return sorted(re.findall(pattern, text, re.MULTILINE))


# --- Many drills ----------------------------------------------------------------------


class DrillsAhead(unittest.TestCase):
    """A table of drills that run two at a time, ahead of the tests that judge them.

    A subclass says how to run a row, and how to judge its outcome.
    """

    table: ClassVar[dict[str, Any]]
    drilled: ClassVar[Callable[[Any], Any]]
    outcomes: ClassVar[dict[str, Future]]

    @classmethod
    def setUpClass(cls) -> None:
        server()
        pool = ThreadPoolExecutor(2)
        cls.addClassCleanup(pool.shutdown, cancel_futures=True)
        cls.outcomes = {
            name: pool.submit(cls.drilled, row) for name, row in cls.table.items()
        }

    def judge(self, name: str) -> None:
        """Judge the outcome of the row of this name."""
        self.judge_outcome(self.table[name], self.outcomes[name].result())

    def judge_outcome(self, row: Any, outcome: Any) -> None:
        """Judge the outcome of a row."""
        raise NotImplementedError


def drills_ahead(case: type[DrillsAhead]) -> type[DrillsAhead]:
    """Give the case a test for each row of its table."""
    return table_of_tests({name: (name,) for name in case.table})(case)
