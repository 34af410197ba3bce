"""What the tests are made of: a server, its databases and roles, and runs of the drill.

Each process that runs tests has a server and a folder of its own, from the first test
that needs them until it ends.

row        a case of a table: the values of one call; its words name the test
place      a folder with the TMPDIR of its runs and the programs that they find first
stand-in   a shell script that is found in place of one of PostgreSQL's programs
act        a moment of a run, at which a stand-in can hold the run
"""

import copyreg
import itertools
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from multiprocessing.util import Finalize
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import psycopg2
from psycopg2.extensions import connection

from scripts.test_backup_restore import SAMPLE

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "test_backup_restore.py"
BOUND = 60.0  # seconds within which everything that the tests start is over
CLIENTS = ("pg_dump", "psql", "pg_restore")
SERVER_PROGRAMS = ("postgres", "initdb", "pg_ctl")
USUAL_FOLDERS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
# What the machine that runs the tests may have set.
HIDDEN = {"DATABASE_URL", "DJANGO_SETTINGS_MODULE", "GITHUB_STEP_SUMMARY", "PYTHONPATH"}
HIDDEN |= {"BACKUP_DRILL_OPTIONS", "DJANGO_CONFIGURATION", "GITHUB_ACTIONS", "LANGUAGE"}
HIDDEN |= {"PYTHONUNBUFFERED"}

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    # As under nohup. A drill would inherit that; it does not inherit a handler.
    signal.signal(signal.SIGHUP, lambda *_: None)
# Tests that run in parallel send what they raise to another process, where a traceback
# cannot go: Django would end there. They are shown without --parallel.
copyreg.pickle(TracebackType, lambda _: (type(None), ()))


# --- Cases ----------------------------------------------------------------------------

HEADLINES = {
    "passed": "The backup ",  # restores, or was not restored yet
    "failed": "The backup is bad.",
    "error": "The backup could not be judged.",
    "skipped": "The drill was skipped.",
}
NEVER_COMPARED = {  # named in every run's evidence
    "roles and their passwords",
    "who granted a right",
    "statistics",
    "tablespaces",
    "settings of the database itself",
    "other databases",
    "what pg_dump never writes",
}
SECRET = "Krokodil"  # stands for a password, or for somebody's row: it is never shown


@dataclass(frozen=True)
class Ended:
    """A run of the drill that is over."""

    status: int
    stdout: str
    stderr: str
    report: dict[str, Any]
    summary: str

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.stdout + self.stderr

    @property
    def acts(self) -> dict[str, str]:
        """The verdict on each act that was begun."""
        acts = self.report.get("acts", {})
        return {name: act["verdict"] for name, act in acts.items()}

    @property
    def was_private(self) -> bool:
        """Whether its scratch databases were on a server of its own."""
        return self.report["server_is"] == "private"

    @property
    def not_compared(self) -> dict[str, str]:
        """What was not compared, and why."""
        return self.report["not_compared"]


@dataclass(frozen=True)
class Row:
    """A case of a table; its words name the test."""

    words: str


class Case(unittest.TestCase):
    """Tests, or a table that has one test for each row: `self.judge(row)`."""

    maxDiff = None
    judge: Callable[[Any], None]

    def __init_subclass__(cls, table: Iterable[Row] = ()) -> None:
        super().__init_subclass__()
        for row in table:
            name = "_".join(["test", *re.findall(r"\w+", row.words)])
            assert not hasattr(cls, name), f"two rows are called {row.words!r}"
            setattr(cls, name, test_of(row))

    def assert_verdict(
        self, over: Ended, verdict: str, *parts: str, act: str = ""
    ) -> None:
        """The run ended with the verdict, in an act if one is named, and said parts."""
        status = int(verdict in ("failed", "error"))
        self.assertEqual(over.status, status, over.said)
        self.assert_said(over, HEADLINES[verdict], *parts)
        if act:
            self.assertEqual(over.acts.get(act), verdict, over.said)

    def assert_raised(
        self, verdict: Exception | None, kind: type[Exception], *parts: str
    ) -> None:
        """What was raised is of the kind, and says these parts, and no row."""
        self.assertIsInstance(verdict, kind)
        for part in parts:
            self.assertIn(part, str(verdict))
        self.assertNotIn(SECRET, str(verdict))

    def assert_said(self, over: Ended, *parts: str) -> None:
        """The run said these parts, no secret, and showed no frames of Python's."""
        for part in parts:
            if part not in over.said:
                self.fail(f"not said: {part}\n{over.said}")
        self.assertNotIn("Traceback", over.said)
        for text in (over.said, json.dumps(over.report), over.summary):
            self.assertNotIn(SECRET, text)

    def assert_facts(self, over: Ended, **facts: object) -> None:
        """The report has these facts."""
        found = {name: over.report.get(name) for name in facts}
        self.assertEqual(found, facts, over.said)


def test_of(row: Row) -> Callable[[Case], None]:
    """The test that judges a row."""

    def test(case: Case) -> None:
        case.judge(row)

    test.__doc__ = row.words
    return test


def eventually(condition: Callable[[], object], bound: float = BOUND) -> bool:
    """Whether the condition holds within the bound, in seconds."""
    end = time.monotonic() + bound
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# --- The server -----------------------------------------------------------------------

SERVER_SETTINGS = """
listen_addresses = ''
fsync = off
full_page_writes = off
autovacuum = off
max_connections = 60
jit = off
"""
# The guard waits for the end of its stdin, which this process alone holds open, however
# it ends. Then it ends the drills that know the folder $1, the server in there, and
# removes the folder.
GUARD = r"""
trap '' HUP INT TERM
cat
for process in /proc/[0-9]*; do
    if grep -qs -e "$1" "$process/cmdline" "$process/environ"; then
        kill -s TERM "${process#/proc/}"
    fi
done
if read -r server < "$1/data/postmaster.pid"; then
    kill -s QUIT "$server"
    while kill -s 0 "$server"; do sleep 0.02; done
fi
until rm -rf -- "$1"; do sleep 0.05; done
"""


@cache
def programs() -> Path:
    """The folder of the newest PostgreSQL on this machine."""
    usual = [path for form in USUAL_FOLDERS for path in Path("/").glob(form)]
    usual.sort(key=lambda path: [*map(int, re.findall(r"\d+", str(path)))])
    for folder in [*reversed(usual), *map(Path, os.get_exec_path())]:
        if all((folder / name).exists() for name in (*CLIENTS, *SERVER_PROGRAMS)):
            return folder
    raise AssertionError("the tests need PostgreSQL's programs: install postgresql")


@cache
def version() -> str:
    """The version of those programs."""
    said = subprocess.check_output([programs() / "psql", "--version"], text=True)
    return re.search(r"[\d.]+", said)[0]


@cache
def owner() -> dict[str, Any]:
    """For subprocess: an account that servers may run as."""
    if os.getuid():
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    found = names.get("postgres") or names["nobody"]
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


def run_as_owner(folder: Path, program: str, *words: str, **environment: str) -> None:
    """Run one of the server's programs in the folder."""
    subprocess.run(
        [programs() / program, *words],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", **environment},
        check=True,
        capture_output=True,
        timeout=BOUND,
        **owner(),
    )


# It is called with -D and the folder first. It takes a tenth of the time of an initdb.
COPYING_INITDB = """#!/bin/sh
data=$2
shift 2
made="{clusters}/$(echo "$*" | cksum | tr -d ' ')"
if [ ! -d "$made" ]; then
    "{real}/initdb" -D "$made.$$" "$@" && mv "$made.$$" "$made"
fi
exec cp -a "$made/." "$data"
"""


@cache
def copying_initdb() -> Path:
    """An initdb that makes a cluster once for the same words, and then copies it."""
    clusters = folder() / "clusters"
    clusters.mkdir()
    if owner():
        os.chown(clusters, owner()["user"], owner()["group"])
    path = folder() / "copying_initdb"
    path.write_text(COPYING_INITDB.format(real=programs(), clusters=clusters))
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Server:
    """A server that the tests started."""

    data: Path  # where its socket is, too

    def url(
        self, database: str = "postgres", user: str = "postgres", password: str = ""
    ) -> str:
        """The DATABASE_URL of a database."""
        who = f"{user}:{quote(password, safe='')}" if password else user
        where = f"{quote(str(self.data), safe='')}/{quote(database, safe='')}"
        return f"postgresql://{who}@{where}"

    def session(self, database: str, user: str = "postgres") -> connection:
        """A new session, of which each statement is a transaction."""
        made = psycopg2.connect(host=str(self.data), dbname=database, user=user)
        made.autocommit = True
        return made

    @cached_property
    def lasting_session(self) -> connection:
        """A session for what is said to the server, as most of the time is a start's."""
        return self.session("postgres")

    def query(self, database: str, sql: str, user: str = "postgres") -> list[tuple]:
        """Run SQL, and return the rows of its last statement."""
        if (database, user) == ("postgres", "postgres"):
            return rows_of(self.lasting_session, sql)
        with closing(self.session(database, user)) as session:
            return rows_of(session, sql)

    def control(self, *arguments: str, **environment: str) -> None:
        """Run pg_ctl; the session that lasts may end with the server."""
        self.__dict__.pop("lasting_session", None)
        words = ("-w", "-s", "-D", str(self.data), "-l", str(self.data / "log"))
        run_as_owner(self.data, "pg_ctl", *words, *arguments, **environment)


def rows_of(session: connection, sql: str) -> list[tuple]:
    """The rows of the last statement of the SQL, which is run."""
    with session.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []


def started_server(
    folder: Path, settings: str = "", maker: str = "postgres", **environment: str
) -> Server:
    """A server that was started, made by this role, whose data are in the folder."""
    data = folder / "data"
    data.mkdir(mode=0o700)
    if owner():
        os.chown(data, owner()["user"], owner()["group"])
    words = ("-U", maker, "-A", "trust", "-E", "UTF8", "--no-sync", "--locale", "C")
    run_as_owner(data, str(copying_initdb()), "-D", str(data), *words)
    with (data / "postgresql.conf").open("a") as file:
        file.write(f"unix_socket_directories = '{data}'\n{SERVER_SETTINGS}{settings}")
    made = Server(data)
    made.control("start", **environment)
    return made


@contextmanager
def private_server(folder: Path, *how: str, **more: str) -> Iterator[Server]:
    """A server of the block's, whose data are in the folder."""
    made = started_server(folder, *how, **more)
    try:
        yield made
    finally:
        made.control("stop", "-m", "immediate")


@cache
def folder() -> Path:
    """A folder for the files of this process, in memory where there is room."""
    memory = Path("/dev/shm")
    is_roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    path = Path(tempfile.mkdtemp(prefix="suite_", dir=memory if is_roomy else None))
    path.chmod(0o755)  # root's servers run as somebody else
    guard = subprocess.Popen(
        ["/bin/sh", "-c", GUARD, "guard", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # away from the signals of a terminal
    )
    # Processes that run tests in parallel end without atexit, but not without this.
    Finalize(None, guard.communicate, exitpriority=1)
    return path


@cache
def server() -> Server:
    """The server of this process."""
    return started_server(folder())


def url(database: str = "postgres", user: str = "postgres") -> str:
    """The DATABASE_URL of a database on the server of this process."""
    return server().url(database, user)


def execute(database: str, sql: str) -> None:
    """Run SQL on a database of the server of this process."""
    server().query(database, sql)


def query(database: str, sql: str) -> list[tuple]:
    """The rows of a query on a database of the server of this process."""
    return server().query(database, sql)


# --- Databases and roles --------------------------------------------------------------

NUMBERS = itertools.count()
SUBSCRIPTIONS = """
SELECT quote_ident(subname)
  FROM pg_subscription
  JOIN pg_database AS d ON d.oid = subdbid
 WHERE datname = '{name}'
"""
TABLES = """
SELECT oid::regclass::text, coalesce(pg_partition_root(oid), oid)::regclass::text
  FROM pg_class
 WHERE relkind = 'r'
   AND relnamespace::regnamespace::text !~ '^(pg_|information_schema)'
"""


def create_database(name: str, template: str = "template0", clauses: str = "") -> None:
    """Make a database, by copying files where that can be asked for: it is faster."""
    major = int(version().partition(".")[0])
    strategy = "STRATEGY file_copy" if major >= 15 else ""
    sql = f"CREATE DATABASE {name} TEMPLATE {template} {strategy} {clauses}"
    execute("postgres", sql)


@contextmanager
def database(sql: str = "", clauses: str = "", name: str = "") -> Iterator[str]:
    """The name of a new database, in which the SQL was run, with {me} for its name."""
    name = name or f"site_{next(NUMBERS)}"
    escaped = name.replace('"', '""')
    quoted = f'"{escaped}"'
    create_database(quoted, clauses=clauses)
    try:
        if sql:
            execute(name, sql.replace("{me}", quoted))
        yield name
    finally:
        for (subscription,) in query("postgres", SUBSCRIPTIONS.format(name=name)):
            for change in ("DISABLE", "SET (slot_name = NONE)"):
                execute(name, f"ALTER SUBSCRIPTION {subscription} {change}")
            execute(name, f"DROP SUBSCRIPTION {subscription}")
        execute("postgres", f"DROP DATABASE {quoted} WITH (FORCE)")


@contextmanager
def role(attributes: str = "") -> Iterator[str]:
    """The name of a new role, which owns nothing when the block ends."""
    name = f"site_role_{next(NUMBERS)}"
    execute("postgres", f"CREATE ROLE {name} LOGIN {attributes}")
    try:
        yield name
    finally:
        execute("postgres", f"DROP ROLE {name}")


def pg_dump(database: str, path: Path, *arguments: str) -> Path:
    """The path, to which the database was dumped."""
    words = ("-h", str(server().data), "-U", "postgres", "-f", str(path), *arguments)
    subprocess.run(
        [programs() / "pg_dump", *words, "-d", f"dbname='{database}'"],
        check=True,
        timeout=BOUND,
    )
    return path


def lasting(name: str, sql: str = "") -> str:
    """A database of this name, made by the SQL, which stays."""
    create_database(name)
    if sql:
        execute(name, sql)
    return name


@cache
def everything() -> str:
    """A database with a rehearsal's tables, and every other kind of object."""
    name = lasting("site_everything")
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url(name)},
        check=True,
        timeout=BOUND,
    )
    execute(name, SAMPLE)
    execute(name, Path(__file__).with_name("everything.sql").read_text())
    return name


@cache
def rows_of_everything() -> dict[str, int]:
    """How many rows each table of that database has, with those of its partitions."""
    counted: dict[str, int] = {}
    for table, root in query(everything(), TABLES):
        ((rows,),) = query(everything(), f"SELECT count(*) FROM ONLY {table}")
        name = root.replace('"', "")  # in pg_dump's comments, a."b.c" is "a.b".c
        counted[name] = counted.get(name, 0) + rows
    return counted


@cache
def small() -> str:
    """A database with two tables and two large objects."""
    return lasting("site_small", SMALL)


# --- Places, and runs of the drill ----------------------------------------------------

# Patterns of the shell's for the arguments of a program.
WORKING = "[!-]*|-[!-]*|--[!v]*"  # it is asked for more than its version
DUMPS = "*--file*"  # pg_dump writes the backup
READS = r"*--file\ -\ /*"  # pg_restore reads an archive, not its beginning alone
LOADS = r"*_restored*\ -1\ *"  # psql
# When a run can be held: a program, its arguments, and arguments of the drill's.
ACTS = {
    "set-up": ("pg_dump", "--version", ()),
    "creation": ("pg_dump", DUMPS, ()),
    "validation": ("pg_restore", READS, ("--format", "custom")),
    "restore": ("psql", LOADS, ()),
}
# The shell's commands of stand-ins.
WAIT = """
echo $$ >> "$PLACE/waiting"
for _ in $(seq 600); do [ -e "$PLACE/go" ] && break; sleep 0.1; done
"""
DUMP = """
for word in "$@"
do
    [ "$before" = --file ] && target=$word
    before=$word
done
"$REAL" "$@" || exit
"""
SPOIL = r"""
"$REAL" "$@" || exit
name=$(expr "$*" : '.*\(backup_drill_[0-9a-f]*_restored\)')
exec {psql} -X -q -h {host} -U postgres -v ON_ERROR_STOP=1 -d "$name" -c {sql}
"""
# Scratch databases whose drill runs no longer: it holds no lock.
ABANDONED = """
WITH lock AS (
     SELECT classid::bigint << 32 | objid::bigint AS key
       FROM pg_locks
      WHERE locktype = 'advisory'
)
SELECT datname
  FROM pg_database
 WHERE datname ~ '^backup_drill_[0-9a-f]{16}_(source|reference|restored)$'
   AND ('x' || substr(datname, 14, 16))::bit(64)::bigint NOT IN (SELECT key FROM lock)
"""


@dataclass(frozen=True)
class Place:
    """Where drills run."""

    folder: Path
    home: Server  # on which databases may be left

    @property
    def temporary(self) -> Path:
        """The TMPDIR of the runs."""
        return self.folder / "tmp"

    @property
    def bin(self) -> Path:
        """The folder that stands first on PATH: it has all programs of PostgreSQL's."""
        return self.folder / "bin"

    @property
    def backup(self) -> Path:
        """Where a backup may stand."""
        return self.folder / "backup"

    @property
    def report(self) -> Path:
        """Where a run reports as JSON."""
        return self.folder / "report.json"

    @property
    def summary(self) -> Path:
        """The job's summary, to which runs append."""
        return self.folder / "summary.md"

    def stand_in(
        self, program: str, body: str, pattern: str = WORKING, *, before: str = ""
    ) -> None:
        """Put a script in the program's place: it does the body, then what is real.

        The body is done where the arguments fit the pattern; `before` always.
        """
        path = self.bin / program
        path.unlink()
        path.write_text(
            f"#!/bin/sh\nPLACE={shlex.quote(str(self.folder))}\n"
            f"REAL={programs() / program}\n{before}\n"
            f'case "$*" in\n{pattern})\n{body}\n;;\nesac\nexec "$REAL" "$@"\n'
        )
        path.chmod(0o755)

    def spoil(self, sql: str, program: str = "psql") -> None:
        """Have SQL run in the restored database when the program has loaded it."""
        words = {"psql": programs() / "psql", "host": self.home.data}
        body = SPOIL.format(sql=shlex.quote(sql), **words)
        self.stand_in(program, body, LOADS if program == "psql" else "*_restored*")

    def environment(self, **changes: str) -> dict[str, str]:
        """That of a fresh machine, with the changes."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in HIDDEN and not name.startswith("PG")
        }
        return {
            **kept,
            "DATABASE_URL": "",  # a developer may have a .env beside manage.py
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.temporary),
            **changes,
        }

    @contextmanager
    def started(
        self,
        *arguments: str,
        url: str = "",
        command: tuple[str, ...] = (str(SCRIPT),),
        cwd: Path = ROOT,
        **environment: str,
    ) -> Iterator[subprocess.Popen]:
        """A drill that runs; killed at the end of the block if it still does."""
        process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=cwd,
            env=self.environment(DATABASE_URL=url, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def ended(self, process: subprocess.Popen, bound: float = BOUND) -> Ended:
        """The run, once it is over, which must not take longer than the bound."""
        stdout, stderr = process.communicate(timeout=bound)
        return self.over(process.returncode, stdout, stderr)

    def over(self, status: int, stdout: str, stderr: str) -> Ended:
        """A run that is over, with what it wrote."""
        report = self.report.read_text() if self.report.is_file() else ""
        summary = ""
        if self.summary.exists():
            summary = self.summary.read_text(errors="replace")
        return Ended(status, stdout, stderr, json.loads(report or "{}"), summary)

    def run(self, *arguments: str, **how: Any) -> Ended:
        """A run of the drill, from its start to its end."""
        with self.started(*arguments, **how) as process:
            return self.ended(process)

    def drill(self, *arguments: str, **how: Any) -> Ended:
        """A run that reports as JSON."""
        return self.run("--report", str(self.report), *arguments, **how)

    @contextmanager
    def caught(
        self, act: str, *arguments: str, **how: Any
    ) -> Iterator[subprocess.Popen]:
        """A drill that waits in the act: `let_go`, or end it."""
        program, pattern, more = ACTS[act]
        self.stand_in(program, WAIT, pattern)
        try:
            with self.started(*more, *arguments, **how) as process:
                self.await_stand_in(process)
                yield process
        finally:
            self.end_waiting()

    def await_stand_in(self, process: subprocess.Popen) -> None:
        """Wait until a stand-in of the run's waits."""
        if not eventually(lambda: self.waiting or process.poll() is not None):
            raise AssertionError("the drill did not come to wait")
        if not self.waiting:
            raise AssertionError(f"the drill ended early: {self.ended(process).said}")

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
            if str(self.folder) in given_to(int(process)):
                kill(int(process), signal.SIGKILL)

    def leftovers(self, bound: float = 5.0) -> list[str]:
        """What runs have left within the bound: folders, processes, databases."""
        end = time.monotonic() + bound
        left = self.left()
        while left and time.monotonic() < end:
            time.sleep(0.02)
            left = self.left()
        return left

    def left(self) -> list[str]:
        """What is left of runs now; processes are read as Linux shows them."""
        return [
            *map(str, self.temporary.iterdir()),
            *(f"process {id}: {given}" for id, given in self.processes().items()),
            *(name for (name,) in self.home.query("postgres", ABANDONED)),
        ]

    def processes(self) -> dict[int, str]:
        """The processes that know this place, by id: what they were given."""
        ids = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
        given = {id: given_to(id) for id in ids - {os.getpid()}}
        return {id: words for id, words in given.items() if str(self.folder) in words}


@contextmanager
def place(home: Server | None = None) -> Iterator[Place]:
    """A place for drills, where nothing may be left when the block ends."""
    with tempfile.TemporaryDirectory(prefix="place_", dir=folder()) as name:
        here = Place(Path(name), home or server())
        here.folder.chmod(0o755)
        here.temporary.mkdir()
        here.bin.mkdir()
        for program in (*CLIENTS, *SERVER_PROGRAMS):
            real = programs() / program
            target = copying_initdb() if program == "initdb" else real
            (here.bin / program).symlink_to(target)
        yield here
        left = here.leftovers()
        if left:
            for process in here.processes():
                kill(process, signal.SIGQUIT)  # which a server ends cleanly at
            raise AssertionError("\n".join(["the drill has left behind:", *left]))


BACKUP = ("--backup", "{here}/backup")  # arguments for the backup of a place


def filled(here: Place, words: tuple[str, ...]) -> list[str]:
    """The words, with the place's folder for {here}."""
    return [word.replace("{here}", str(here.folder)) for word in words]


def behind(prelude: str) -> tuple[str, ...]:
    """The command of a drill whose process has run the prelude before, in Python."""
    become = "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    return ("-c", f"import os, sys; {prelude}; {become}", str(SCRIPT))


def given_to(process: int) -> str:
    """The arguments and the environment of a process, as far as Linux shows them."""
    given = ""
    for source in ("cmdline", "environ"):
        with suppress(OSError):  # it is gone, or somebody else's
            text = Path("/proc", str(process), source).read_bytes()
            given += text.replace(b"\0", b" ").decode(errors="replace")
    return given


def kill(process: int, number: signal.Signals) -> None:
    """Send a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(process, number)


def system_programs(target: Path, without: str = "") -> Path:
    """A new folder with the programs of this system, but PostgreSQL's and one more."""
    target.mkdir()
    left_out = {path.name for path in programs().iterdir()} | {without}
    for path in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()]:
        if path.name not in left_out and not (target / path.name).is_symlink():
            (target / path.name).symlink_to(path)
    return target


# --- Backups to be damaged ------------------------------------------------------------

SMALL = r"""
CREATE TABLE public.kept (id integer, word text);
INSERT INTO public.kept SELECT n, md5(n::text) FROM generate_series(1, 500) AS n;
CREATE TABLE public.long AS SELECT repeat('long enough to be cut ', 200) AS word;
CREATE INDEX kept_id ON public.kept (id);
SELECT lo_from_bytea(4711, '\x00ff');
SELECT lo_from_bytea(4712, '\x6d6f7265')
"""
COMPRESSORS = [
    name
    for name in ("gzip", "zstd", "xz", "bzip2", "lz4")
    if shutil.which(name)  # the README's set-up does not install them all
]


@cache
def originals() -> Path:
    """A folder with a healthy backup of each format, named for it."""
    home = folder() / "originals"
    home.mkdir()
    with database(SMALL) as source:
        for form in ("plain", "custom", "directory", "tar"):
            pg_dump(source, home / form, f"-F{form}")
    for form in COMPRESSORS:
        compressed(home / "plain", form, home / form)
    return home


def compressed(path: Path, program: str, target: Path) -> None:
    """Write to the target what the program makes of a file."""
    with path.open("rb") as source, target.open("wb") as file:
        subprocess.run([program, "-c"], stdin=source, stdout=file, check=True)


def copied(form: str, path: Path) -> Path:
    """The path, at which a healthy backup of the format was put."""
    original = originals() / form
    copy = shutil.copytree if original.is_dir() else shutil.copy
    return Path(copy(original, path))


def changed(pattern: bytes, by: bytes) -> Callable[[Path], None]:
    """What replaces all that fits the pattern in a file."""

    def change(path: Path) -> None:
        content, times = re.subn(pattern, by, path.read_bytes(), flags=re.DOTALL)
        assert times, f"{pattern!r} is not there"
        path.write_bytes(content)

    return change


def below_comment(
    sql: str, kind: str = "TABLE", name: str = "t", owner: str = "-"
) -> str:
    """The SQL of an object below the comment that pg_dump writes."""
    comment = f"-- Name: {name}; Type: {kind}; Schema: public; Owner: {owner}"
    return f"--\n{comment}\n--\n\n{sql}"


def plain(sql: str) -> str:
    """A plain backup of this SQL, which begins in its fifth line."""
    title = "-- PostgreSQL database dump"
    head = f"--\n{title}\n--\n-- Dumped by pg_dump version {version()}\n"
    return f"{head}{sql}\n\n--\n{title} complete\n--\n\n"
