"""What the tests are made of: a server, its databases and roles, and runs of the drill.

The drill is only ever run as a process, in a place that shows what a run leaves behind.

place      a folder with the TMPDIR of its runs and the programs that they find first
stand-in   a shell script that is found in place of one of PostgreSQL's programs
act        a moment of a run, at which a stand-in can hold the run
"""

import atexit
import functools
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple
from urllib.parse import quote

try:
    import psycopg2 as driver
except ImportError:
    import psycopg as driver

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "test_backup_restore.py"
BOUND = 60.0  # seconds within which everything that the tests start is over
CLIENTS = ("pg_dump", "psql", "pg_restore")
USUAL_FOLDERS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
# What the machine that runs the tests may have set.
HIDDEN = {"DATABASE_URL", "DJANGO_SETTINGS_MODULE", "GITHUB_STEP_SUMMARY", "PYTHONPATH"}
HIDDEN |= {"DJANGO_CONFIGURATION", "GITHUB_ACTIONS", "LANGUAGE"}


def once(make: Callable[[], Any]) -> Callable[[], Any]:
    """The function, which is called once, whichever thread asks first."""
    cached, lock = functools.cache(make), RLock()

    @functools.wraps(make)
    def made() -> Any:
        with lock:
            return cached()

    return made


if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    # As under nohup. A drill would inherit that; it does not inherit a handler.
    signal.signal(signal.SIGHUP, lambda *_: None)


# --- Tests that run two at a time -----------------------------------------------------

POOL = ThreadPoolExecutor(2)
AHEAD = 3  # how many tests are begun before unittest asks for them
TESTS: list[Callable[[], Any]] = []  # of every case, in the order of their runs
FUTURES: dict[int, Future] = {}


class Row(dict[str, str]):
    """A row of a table: fields by name, empty where it does not have them."""

    def __missing__(self, _field: str) -> str:
        return ""


def rows(text: str) -> dict[str, Row]:
    """The rows of a table: a name, and below it, indented, `field: value` each.

    The lines of a longer value follow, indented once more.
    """
    table: dict[str, Row] = {}
    row, field = Row(), ""
    for line in filter(str.strip, text.splitlines()):
        if not line.startswith(" "):
            assert line not in table, f"two rows are called {line!r}"
            row = table[line] = Row()
        elif line.startswith(8 * " "):
            row[field] = f"{row[field]}\n{line[8:]}".removeprefix("\n")
        else:
            field, _, value = line.strip().partition(":")
            row[field] = value.strip()
    return table


class Case(unittest.TestCase):
    """Tests that run two at a time, each begun before unittest asks for it.

    With a table, there is a test for each row: `self.judge(row)`. Each test has an
    instance to itself, without set-up or cleanups.
    """

    maxDiff = None

    def __init_subclass__(cls, table: str | Mapping[str, Any] = "") -> None:
        super().__init_subclass__()
        for words, row in (rows(table) if isinstance(table, str) else table).items():
            name = "_".join(["test", *re.findall(r"\w+", words)])
            assert not hasattr(cls, name), f"two rows are called {words!r}"
            setattr(cls, name, test_of_row(words, row))
        for name in sorted(vars(cls)):
            if name.startswith("test_"):
                setattr(cls, name, begun_ahead(cls, name))

    def judge(self, row: Row) -> None:
        """Run the drill as the row says, which ends as the row says."""
        with prepared(row) as (here, words, how):
            self.assert_row(here.drill(*words, **how), row)

    def assert_row(self, over: "Ended", row: Row) -> None:
        """The run ended as the row says."""
        verdict, _, act = row["ends"].partition(" in ")
        self.assert_verdict(over, verdict, *row["says"].split(" | "))
        if act:
            self.assertEqual(over.report["tests"][act]["verdict"], verdict, over.said)
        for fact, value in json.loads(row["report"] or "{}").items():
            self.assertEqual(over.report.get(fact), value, fact)

    def assert_verdict(self, over: "Ended", verdict: str, *parts: str) -> None:
        """The run ended with the verdict, and said these parts."""
        self.assertEqual(over.status, int(verdict in ("failed", "error")), over.said)
        self.assertIn(HEADLINES[verdict], over.text, over.said)
        self.assert_said(over, *parts)

    def assert_said(self, over: "Ended", *parts: str) -> None:
        """The run said these parts, no secret, and showed no frames of Python's."""
        for part in parts:
            self.assertIn(part, over.text, over.said)
        self.assertNotIn("Traceback", over.said)
        for text in (over.said, json.dumps(over.report), over.summary):
            self.assertNotIn(SECRET, text)


def test_of_row(words: str, row: object) -> Callable[[Case], None]:
    """The test that judges a row."""

    def test(case: Any) -> None:
        case.judge(row)

    test.__doc__ = words
    return test


def begun_ahead(cls: type[Case], name: str) -> Callable[[Case], None]:
    """The test of this name, run by the pool together with those that follow it."""
    test, position = getattr(cls, name), len(TESTS)
    TESTS.append(lambda: test(cls(name)))

    @functools.wraps(test)
    def awaited(_case: Case) -> None:
        for at in range(position, min(position + AHEAD, len(TESTS))):
            if at not in FUTURES:
                FUTURES[at] = POOL.submit(TESTS[at])
        FUTURES[position].result()

    return awaited


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
"""


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

    def query(self, database: str, sql: str, **words: str) -> list[tuple]:
        """Run SQL, and return the rows of its last statement."""
        words = {"user": "postgres", "dbname": database} | words
        connection = driver.connect(host=str(self.data), **words)
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def control(self, *arguments: str, **environment: str) -> None:
        """Run pg_ctl."""
        words = ("-w", "-s", "-D", str(self.data), "-l", str(self.data / "log"))
        run_as_owner(self.data, "pg_ctl", *words, *arguments, **environment)


@once
def programs() -> Path:
    """The folder of the newest PostgreSQL on this machine."""
    usual = [path for form in USUAL_FOLDERS for path in Path("/").glob(form)]
    usual.sort(key=lambda path: [*map(int, re.findall(r"\d+", str(path)))])
    for folder in [*reversed(usual), *map(Path, os.get_exec_path())]:
        if all((folder / name).exists() for name in (*CLIENTS, "initdb", "pg_ctl")):
            return folder
    raise AssertionError("the tests need PostgreSQL's programs: install postgresql")


@once
def version() -> str:
    """The version of those programs."""
    said = subprocess.check_output([programs() / "psql", "--version"], text=True)
    return re.search(r"[\d.]+", said)[0]


@once
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
        env=os.environ | {"LC_ALL": "C"} | environment,
        check=True,
        capture_output=True,
        timeout=BOUND,
        **owner(),
    )


@contextmanager
def private_server(
    folder: Path, settings: str = "", **environment: str
) -> Iterator[Server]:
    """A server of the block's, whose data are in the folder."""
    data = folder / "data"
    data.mkdir(mode=0o700)
    if account := owner():
        os.chown(data, account["user"], account["group"])
    words = ("-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8")
    run_as_owner(data, "initdb", "--no-sync", "--locale", "C", *words)
    with (data / "postgresql.conf").open("a") as file:
        socket = f"unix_socket_directories = '{data}'\n"
        file.write(socket + SERVER_SETTINGS + settings)
    made = Server(data)
    made.control("start", **environment)
    try:
        yield made
    finally:
        made.control("stop", "-m", "immediate")


@once
def until_the_end() -> ExitStack:
    """What lasts as long as the process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack


@once
def folder() -> Path:
    """A folder for the suite's files: in memory, where there is room."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    path = Path(tempfile.mkdtemp(prefix="suite_", dir=memory if roomy else None))
    until_the_end().callback(shutil.rmtree, path, ignore_errors=True)
    path.chmod(0o755)  # root's servers run as somebody else
    return path


@once
def server() -> Server:
    """The suite's server."""
    return until_the_end().enter_context(private_server(folder()))


def url(database: str = "postgres", user: str = "postgres") -> str:
    """The DATABASE_URL of a database on the suite's server."""
    return server().url(database, user)


def execute(database: str, sql: str) -> None:
    """Run SQL on a database of the suite's server."""
    server().query(database, sql)


def query(database: str, sql: str) -> list[tuple]:
    """The rows of a query on a database of the suite's server."""
    return server().query(database, sql)


NUMBERS = itertools.count()


@contextmanager
def database(sql: str = "", name: str = "", clauses: str = "") -> Iterator[str]:
    """The name of a new database, in which the SQL was run, with {me} for its name."""
    name = name or f"site_{next(NUMBERS)}"
    quoted = '"' + name.replace('"', '""') + '"'
    execute("postgres", f"CREATE DATABASE {quoted} TEMPLATE template0 {clauses}")
    try:
        if sql:
            execute(name, sql.replace("{me}", quoted))
        yield name
    finally:
        execute("postgres", f"ALTER DATABASE {quoted} RESET ALL")
        for (subscription,) in query(name, SUBSCRIPTIONS):
            for change in ("DISABLE", "SET (slot_name = NONE)"):
                execute(name, f"ALTER SUBSCRIPTION {subscription} {change}")
            execute(name, f"DROP SUBSCRIPTION {subscription}")
        execute("postgres", f"DROP DATABASE {quoted} WITH (FORCE)")


SUBSCRIPTIONS = """
SELECT quote_ident(subname)
  FROM pg_subscription
  JOIN pg_database AS d ON d.oid = subdbid
 WHERE datname = current_database()
"""


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


@once
def everything() -> str:
    """A database with a rehearsal's tables, and every other kind of object."""
    with place() as here:
        here.stand_in("pg_dump", DUMP + 'cp "$target" "$PLACE/kept"; exit', DUMPS)
        over = here.run("-k", "creation", url=url())
        assert over.status == 0, over.said
        made = until_the_end().enter_context(database(name="site_everything"))
        words = ("-X", "-q", "-h", str(server().data), "-U", "postgres", "-d", made)
        files = (here.folder / "kept", Path(__file__).with_name("everything.sql"))
        for file in files:
            subprocess.run(
                [programs() / "psql", *words, "-v", "ON_ERROR_STOP=1", "-f", file],
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=BOUND,
            )
    return made


@once
def rows_of_everything() -> dict[str, int]:
    """How many rows each table of that database has, with those of its partitions."""
    sql = """
        SELECT oid::regclass::text, coalesce(pg_partition_root(oid), oid)::regclass::text
          FROM pg_class
         WHERE relkind = 'r'
           AND relnamespace::regnamespace::text !~ '^(pg_|information_schema)'
        """
    counted: dict[str, int] = {}
    for table, root in query(everything(), sql):
        ((rows,),) = query(everything(), f"SELECT count(*) FROM ONLY {table}")
        counted[root] = counted.get(root, 0) + rows
    return counted


def system_programs(target: Path, without: str = "") -> Path:
    """A new folder with the programs of this system, but PostgreSQL's and one more."""
    target.mkdir()
    left_out = {path.name for path in programs().iterdir()} | {without}
    for path in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()]:
        if path.name not in left_out and not (target / path.name).is_symlink():
            (target / path.name).symlink_to(path)
    return target


# --- Runs -----------------------------------------------------------------------------

HEADLINES = {
    "passed": "The backup ",  # restores, or was not restored yet
    "failed": "The backup is bad.",
    "error": "The backup could not be judged.",
    "skipped": "skipped",
}
SECRET = "Krokodil"  # stands for a password, or for somebody's row: it is never shown
# Patterns of the shell's for the arguments of a program.
WORKING = "[!-]*|-[!-]*|--[!v]*"  # it is asked for more than its version
DUMPS = "*--file*"  # pg_dump writes the backup
READS = r"*--file\ -\ *"  # pg_restore reads an archive
LOADS = r"*_restored*\ -1\ *|*\ -1\ *_restored*"  # psql


class Act(NamedTuple):
    """When a run can be held: a program, arguments of its, and of the drill's."""

    program: str
    pattern: str
    arguments: tuple[str, ...] = ()


ACTS = {
    "set-up": Act("pg_restore", "--version"),
    "creation": Act("pg_dump", DUMPS),
    "validation": Act("pg_restore", READS, ("--format", "custom")),
    "restore": Act("psql", LOADS),
}
# The shell's commands of stand-ins.
WAIT = """
echo $$ >> "$PLACE/waiting"
for _ in $(seq 600); do [ -e "$PLACE/go" ] && break; sleep 0.1; done
"""
DUMP = """
for word in "$@"
do
    case $word in --file=*) target=${word#--file=} ;; esac
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


class Ended(NamedTuple):
    """A run that is over."""

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
    def text(self) -> str:
        """The same without its line breaks, as the evidence is folded."""
        return " ".join(self.said.split())


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
        """The folder that stands first on PATH: it has all three client programs."""
        return self.folder / "bin"

    @property
    def backup(self) -> Path:
        """Where a backup may stand."""
        return self.folder / "backup"

    @property
    def report(self) -> Path:
        """Where a run reports as JSON."""
        return self.folder / "report.json"

    def stand_in(
        self, program: str, body: str, pattern: str = WORKING, *, before: str = ""
    ) -> None:
        """Put a script in the program's place: it does the body, then what is real.

        The body is done where the arguments fit the pattern; `before` always.
        """
        real, path = programs() / program, self.bin / program
        path.unlink()
        path.write_text(
            f"#!/bin/sh\nPLACE={shlex.quote(str(self.folder))} REAL={real}\n{before}\n"
            f'case "$*" in\n{pattern})\n{body}\n;;\nesac\nexec "$REAL" "$@"\n'
        )
        path.chmod(0o755)

    def spoil(self, sql: str, program: str = "psql") -> None:
        """Have SQL run in the restored database when the program has loaded it."""
        words = {"psql": programs() / "psql", "host": server().data}
        body = SPOIL.format(sql=shlex.quote(sql), **words)
        self.stand_in(program, body, LOADS if program == "psql" else "*_restored*")

    def environment(self, **changes: str) -> dict[str, str]:
        """That of a fresh machine, with the changes."""
        kept = {
            k: v for k, v in os.environ.items() if k not in HIDDEN and k[:2] != "PG"
        }
        own = {
            "DATABASE_URL": "",  # a developer may have a .env beside manage.py
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.temporary),
        }
        return kept | own | changes

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
        report, summary = self.report, self.folder / "summary.md"
        return Ended(
            process.returncode,
            stdout,
            stderr,
            json.loads(report.read_text() or "{}") if report.is_file() else {},
            summary.read_text(errors="replace") if summary.exists() else "",
        )

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
        time.sleep(0.1)  # until it has told its reaper of the programs beside that one

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

    def abandoned_databases(self) -> set[str]:
        """The scratch databases whose drill runs no longer: it holds no lock."""
        return {name for (name,) in self.home.query("postgres", ABANDONED)}

    def leftovers(self, bound: float = 5.0) -> list[str]:
        """What runs have left within the bound: folders, processes, databases."""
        eventually(lambda: not self.left(), bound)
        return self.left()

    def left(self) -> list[str]:
        """What is left of runs now; processes are read as Linux shows them."""
        return [
            *map(str, self.temporary.iterdir()),
            *(f"process {id}: {said}" for id, said in self.processes().items()),
            *sorted(self.abandoned_databases()),
        ]

    def processes(self) -> dict[int, str]:
        """The processes that know this place, by id: what they were given."""
        others = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
        given = {id: given_to(id) for id in others - {os.getpid()}}
        return {id: said for id, said in given.items() if str(self.folder) in said}


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


def given_to(process: int) -> str:
    """The arguments and the environment of a process, as far as Linux shows them."""
    said = ""
    for source in ("cmdline", "environ"):
        with suppress(OSError):  # it is gone, or somebody else's
            text = Path("/proc", str(process), source).read_bytes()
            said += text.replace(b"\0", b" ").decode(errors="replace")
    return said


def kill(process: int, number: signal.Signals) -> None:
    """Send a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(process, number)


@contextmanager
def place(home: Server | None = None) -> Iterator[Place]:
    """A place for drills, where nothing may be left when the block ends."""
    with tempfile.TemporaryDirectory(prefix="place_", dir=folder()) as name:
        here = Place(Path(name), home or server())
        here.folder.chmod(0o755)
        for path in (here.temporary, here.bin):
            path.mkdir()
        for program in CLIENTS:
            (here.bin / program).symlink_to(programs() / program)
        yield here
        if left := here.leftovers():
            for process in here.processes():
                kill(process, signal.SIGQUIT)  # which a server ends cleanly at
            raise AssertionError("\n".join(["the drill has left behind:", *left]))


@contextmanager
def prepared(row: Row) -> Iterator[tuple[Place, list[str], dict[str, str]]]:
    """A place, the arguments and the other words of a run, as the row's fields say.

    run         arguments            role        attributes of the role that runs it
    sql         makes a database     name        of it; `clauses` of CREATE DATABASE
    dump        how it is dumped     backup      SQL that a plain backup holds
    settings    of the project       url         DATABASE_URL; or else the suite's server
    pg_dump     (psql, pg_restore) what it does where it would work
    damage      what is done to what pg_dump wrote, $target
    spoil       SQL that is run when psql has loaded the backup
    """
    with ExitStack() as stack:
        enter, name = stack.enter_context, "postgres"
        user = enter(role(row["role"])) if "role" in row else "postgres"
        here = enter(place())
        patterns = {"pg_dump": DUMPS, "psql": LOADS, "pg_restore": READS}
        for program in patterns.keys() & row.keys():
            here.stand_in(program, row[program], patterns[program])
        if "damage" in row:
            here.stand_in("pg_dump", DUMP + row["damage"], DUMPS)
        if "spoil" in row:
            here.spoil(row["spoil"], row["spoiled by"] or "psql")
        if "sql" in row:
            name = enter(database(row["sql"], row["name"], row["clauses"]))
        words = shlex.split(row["run"])
        if "dump" in row:
            pg_dump(name, here.backup, *shlex.split(row["dump"]))
            name = "postgres"
        if "backup" in row:
            here.backup.write_text(plain(row["backup"]))
        if here.backup.exists():
            words += ["--backup", str(here.backup)]
        how = {"url": row["url"] if "url" in row else url(name, user)}
        if "settings" in row:
            text = f"from aidscope.settings import *\n{row['settings']}\n"
            (here.folder / "site_settings.py").write_text(text)
            how["DJANGO_SETTINGS_MODULE"] = "site_settings"
            how["PYTHONPATH"] = str(here.folder)
        yield here, words, how


def plain(sql: str) -> str:
    """A plain backup of this SQL, which begins in its fifth line."""
    comments = "PostgreSQL database dump", "PostgreSQL database dump complete"
    head, foot = (f"--\n-- {comment}\n--\n\n" for comment in comments)
    return f"{head}{sql}\n\n{foot}"


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


@once
def originals() -> Path:
    """A folder with a healthy backup of each format, named for it."""
    home = folder() / "originals"
    home.mkdir()
    with database(SMALL) as source:
        for form in ("plain", "custom", "directory", "tar"):
            pg_dump(source, home / form, f"-F{form}")
    sql = (home / "plain").read_bytes()
    for form in COMPRESSORS:
        made = subprocess.check_output([form, "-c"], input=sql)
        (home / form).write_bytes(made)
    return home


def copied(form: str, path: Path) -> Path:
    """The path, at which a healthy backup of the format was put."""
    original = originals() / form
    return Path((shutil.copytree if original.is_dir() else shutil.copy)(original, path))


def changed(pattern: bytes, by: bytes) -> Callable[[Path], None]:
    """What replaces all that fits the pattern in a file."""

    def change(path: Path) -> None:
        content, times = re.subn(pattern, by, path.read_bytes(), flags=re.DOTALL)
        assert times, f"{pattern!r} is not there"
        path.write_bytes(content)

    return change
