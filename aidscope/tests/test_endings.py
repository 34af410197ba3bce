"""However a drill ends, it says so in a sentence, and nothing is left behind.

A drill is held in an act by a stand-in that waits, or by a migration that does. That no
folder, process or database is left is judged where the block of each place ends.
"""

import os
import pty
import re
import select
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from threading import Event, Thread, Timer
from typing import IO
from unittest.mock import patch

import psycopg2

from aidscope.tests.in_process import drilled, limited
from aidscope.tests.in_process import server as server_in_process
from aidscope.tests.support import (
    BACKUP,
    BOUND,
    DUMPS,
    LOADS,
    SMALL,
    Case,
    Ended,
    Place,
    Row,
    Server,
    behind,
    copied,
    eventually,
    filled,
    given_to,
    kill,
    pg_dump,
    place,
    private_server,
    query,
    role,
    server,
    small,
    url,
)
from scripts import test_backup_restore as drill

PROMPTLY = 15.0  # seconds, on a busy machine
LIVE = ("--live", "--no-throwaway")
PRIVATE = (*BACKUP, "--throwaway")
CREATION = ("-k", "creation")


# --- Told to stop ---------------------------------------------------------------------


@dataclass(frozen=True)
class Told(Row):
    """A signal, the act in which it comes, and the drill's arguments."""

    number: signal.Signals
    act: str
    arguments: tuple[str, ...] = LIVE


TOLD = (
    Told("SIGTERM in set-up", signal.SIGTERM, "set-up"),
    Told("SIGINT in the creation of a rehearsal", signal.SIGINT, "creation", ()),
    Told("SIGHUP in creation", signal.SIGHUP, "creation"),
    Told("SIGTERM in validation", signal.SIGTERM, "validation"),
    Told("SIGHUP with a private server", signal.SIGHUP, "restore", PRIVATE),
)
NEVER_ENDING = """
import os
import pathlib
import time

pathlib.Path(os.environ["WAITING"]).write_text("0")
time.sleep(600)
"""


class SignalTests(Case, table=TOLD):
    """A drill that is told to stop ends at once, with one sentence."""

    def judge(self, row: Told) -> None:
        """The signal is named, and the act is on record with an error."""
        with place() as here, caught(here, row.act, *row.arguments) as process:
            process.send_signal(row.number)
            over = here.ended(process, PROMPTLY)
        self.assert_interrupted(over, row.number, row.act)

    def test_signals_that_follow(self) -> None:
        """Others that come while it cleans up change nothing."""
        with place() as here, caught(here, "restore", *LIVE) as process:
            for number in cycle((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
                process.send_signal(number)
                if eventually(lambda: process.poll() is not None, 0.02):
                    break
            over = here.ended(process, PROMPTLY)
        self.assert_interrupted(over, signal.SIGINT, "restore")

    def test_nohup(self) -> None:
        """A signal that is ignored when the drill starts is ignored to its end."""
        prelude = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
        how = {"command": behind(prelude)}
        words = (*LIVE, "-k", "creation")
        with place() as here, caught(here, "creation", *words, **how) as process:
            process.send_signal(signal.SIGHUP)
            here.let_go()
            over = here.ended(process)
        self.assert_verdict(over, "passed")

    def test_imports(self) -> None:
        """Ctrl-C before the drill has begun ends it without a traceback."""
        with place() as here:
            (here.folder / "argparse.py").write_text(NEVER_ENDING)
            waiting = str(here.folder / "waiting")
            how = {"PYTHONPATH": str(here.folder), "WAITING": waiting}
            with here.started(**how) as process:
                here.await_stand_in(process)
                process.send_signal(signal.SIGINT)
                over = here.ended(process, PROMPTLY)
        self.assertEqual((over.status, over.said), (-signal.SIGINT, ""))

    def assert_interrupted(self, over: Ended, number: signal.Signals, act: str) -> None:
        """The run ended by the signal, and has dropped its databases itself."""
        self.assert_verdict(over, "error", f"interrupted ({number.name})", act=act)
        self.assertNotIn("OSError", over.said)
        self.assertNotIn("left behind", over.said)


@contextmanager
def caught(
    here: Place, act: str, *arguments: str, **how: object
) -> Iterator[subprocess.Popen]:
    """A drill that reports as JSON, of a small database, and waits in the act."""
    words = ("--report", str(here.report), *existing(here, arguments))
    with here.caught(act, *words, url=url(small()), **how) as process:
        yield process


def unowned(here: Place) -> tuple[str, ...]:
    """The arguments for a backup that any role can load."""
    pg_dump(small(), here.backup, "--no-owner")
    return ("--backup", str(here.backup), "--no-throwaway")


def existing(here: Place, arguments: tuple[str, ...]) -> list[str]:
    """The arguments, with the path of a backup that was put where they want one."""
    if BACKUP[1] in arguments:
        copied("plain", here.backup)
    return filled(here, arguments)


# --- In a terminal --------------------------------------------------------------------

# A process without a terminal gets the first that it opens. Nothing else is in {0}'s
# session than the drill and its programs.
IN_TERMINAL = "terminal = os.open({!r}, os.O_RDWR)"
ON_SCREEN = f"{IN_TERMINAL}; os.dup2(terminal, 1); os.dup2(terminal, 2)"


class TerminalTests(Case):
    """A terminal's own signals end a drill, and none of its programs can stop it."""

    def test_control_c(self) -> None:
        """Ctrl-C interrupts the drill."""
        with terminal() as (screen, name), place() as here:
            how = {"command": behind(IN_TERMINAL.format(name))}
            with caught(here, "creation", *LIVE, **how) as process:
                screen.write(b"\x03")
                over = here.ended(process, PROMPTLY)
        self.assert_verdict(over, "error", "interrupted (SIGINT)", act="creation")

    def test_closing(self) -> None:
        """One that is closed, to which nothing can be written, leaves a report."""
        with terminal() as (screen, name), place() as here:
            how = {"command": behind(ON_SCREEN.format(name))}
            with caught(here, "creation", *LIVE, **how) as process:
                screen.close()
                over = here.ended(process, PROMPTLY)
        self.assertEqual(over.status, 1)
        self.assertEqual(over.acts.get("creation"), "error")

    def test_passphrase(self) -> None:
        """A program that asks the terminal gets no answer, and stops nobody."""
        with terminal() as (_, name), place() as here:
            here.stand_in("pg_dump", "read -r word < /dev/tty", DUMPS)
            how = {"command": behind(IN_TERMINAL.format(name)), "url": url(small())}
            with here.started(*LIVE, "-k", "creation", **how) as process:
                over = here.ended(process, PROMPTLY)
        self.assert_verdict(over, "passed")


@contextmanager
def terminal() -> Iterator[tuple[IO[bytes], str]]:
    """A new terminal: the end that a user would see, and the name of the other."""
    primary, secondary = pty.openpty()
    with open(primary, "wb", buffering=0) as screen:
        yield screen, os.ttyname(secondary)
    os.close(secondary)


# --- Held up --------------------------------------------------------------------------


class HeldUpTests(Case):
    """Nothing that lasts, is stopped or is missing keeps a drill from its end."""

    def test_stopped_psql(self) -> None:
        """A program that was stopped is killed when its time is over."""
        with place() as here:
            here.stand_in("psql", "sleep 600 & kill -s STOP $$", LOADS)
            words = (*LIVE, "--timeout", "2")
            over = drilled(here, *words, database=small(), alone=True)
        parts = ("psql did not end within 2 s", "--timeout")
        self.assert_verdict(over, "error", *parts, act="restore")

    def test_stopped_guard(self) -> None:
        """A guard that was stopped does its work nevertheless."""
        with place() as here, caught(here, "creation", *LIVE) as process:
            for guard in ids_of(here, "cat\nkill -s TERM 0"):
                os.kill(guard, signal.SIGSTOP)
            process.send_signal(signal.SIGTERM)
            over = here.ended(process, PROMPTLY)
        self.assert_verdict(over, "error", "interrupted (SIGTERM)", act="creation")

    def test_signal_as_a_limit_begins(self) -> None:
        """What kills a program in time keeps no process from its end."""

        def start(timer: Timer) -> None:
            begin(timer)
            raise KeyboardInterrupt("SIGTERM")

        begin = Timer.start
        with (
            patch.object(Timer, "start", start),
            suppress(KeyboardInterrupt),
            server_in_process().run.started("sleep", "600"),
        ):
            self.fail("the signal was lost")
        timers = [each for each in threading.enumerate() if isinstance(each, Timer)]
        for timer in timers:
            timer.cancel()
        self.assertTrue(all(each.daemon for each in timers))

    def test_full_disk(self) -> None:
        """No room for the backup is an error that says what to do."""
        with place() as here:
            here.stand_in("pg_dump", TO_A_FULL_DISK, DUMPS)
            over = drilled(here, *LIVE, database=small())
        parts = ("No space left on device", "make room on the disk")
        self.assert_verdict(over, "error", *parts, act="creation")

    def test_path_without_tools(self) -> None:
        """A PATH that leads to no program but PostgreSQL's keeps nothing from going."""
        with place() as here:
            over = here.run(*LIVE, url=url(small()), PATH=str(here.bin))
        self.assert_verdict(over, "passed")


# Has pg_dump write the backup to a device that is always full.
TO_A_FULL_DISK = """
for each do
    shift
    case $each in */backup.plain) each=/dev/full ;; esac
    set -- "$@" "$each"
done
"""


def ids_of(here: Place, words: str) -> list[int]:
    """The processes of a place that were given the words."""
    return [id for id, given in here.processes().items() if words in given]


# --- Migrations that last -------------------------------------------------------------

SLOW_SETTINGS = """
from aidscope.settings import *

INSTALLED_APPS = ["slow"]
"""
SLOW_MIGRATION = """
import time
from pathlib import Path

from django.db import migrations


def wait(apps, editor):
    Path({waiting!r}).write_text("0")
    {waits}


class Migration(migrations.Migration):
    operations = [migrations.RunPython(wait)]
"""
SLEEPS = 'editor.execute("SELECT pg_sleep(120)")'


class MigrationTests(Case):
    """Migrations may take longer than anything else, but none of their queries may."""

    def test_signal(self) -> None:
        """A signal ends the query of a migration."""
        with place() as here:
            how = slow_project(here, SLEEPS)
            with here.started(*CREATION, url=url(), **how) as process:
                here.await_stand_in(process)
                process.send_signal(signal.SIGINT)
                over = here.ended(process, PROMPTLY)
        self.assert_verdict(over, "error", "interrupted (SIGINT)")

    def test_query_that_hangs(self) -> None:
        """A query that does not end is bound by --timeout."""
        with place() as here:
            over = migrated(here, SLEEPS)
        self.assert_verdict(over, "error", "migrate", "allow more time with --timeout")

    def test_many_that_last(self) -> None:
        """All migrations together may take more than --timeout."""
        with place() as here:
            over = migrated(here, "time.sleep(1.2)")
        self.assert_verdict(over, "passed")


def slow_project(here: Place, waits: str) -> dict[str, str]:
    """The variables of a project whose migration waits."""
    migrations = here.folder / "site" / "slow" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "__init__.py").touch()
    waiting = str(here.folder / "waiting")
    migration = SLOW_MIGRATION.format(waiting=waiting, waits=waits)
    (migrations / "0001_initial.py").write_text(migration)
    (here.folder / "site" / "slow_settings.py").write_text(SLOW_SETTINGS)
    site = str(here.folder / "site")
    return {"DJANGO_SETTINGS_MODULE": "slow_settings", "PYTHONPATH": site}


class HurriedProject(drill.Project):
    """A project whose commands alone have a second for each operation."""

    def manage(
        self, command: Iterable[str], database: drill.Database, timeouts: int = 1
    ) -> str:
        """What a command prints."""
        run = limited(self.run, 1)
        hurried = replace(self, run=run)
        database = replace(database, run=run)
        return drill.Project.manage(hurried, command, database, timeouts)


def migrated(here: Place, waits: str) -> Ended:
    """A run in this process that creates the backup of such a project."""
    how = {"DATABASE_URL": url(), **slow_project(here, waits)}
    return drilled(here, *CREATION, kind=HurriedProject, **how)


# --- Servers that freeze --------------------------------------------------------------


@dataclass(frozen=True)
class Frozen(Row):
    """What a session says when the network freezes, and in which act that is."""

    at: bytes
    act: str
    arguments: tuple[str, ...] = LIVE
    says: str = "--timeout"


FROZEN = (
    Frozen(
        "as the session that stays begins",
        b"pg_advisory_lock",
        "set-up",
        says="psql did not end within 2 s",
    ),
    Frozen(
        "as the source is read",
        b"SET TRANSACTION SNAPSHOT",
        "creation",
        ("--live", "--throwaway"),
    ),
    Frozen(
        "as a database is made",
        b"CREATE DATABASE",
        "restore",
        says="scratch databases may be left",
    ),
)


class FrozenNetworkTests(Case, table=FROZEN):
    """A network that stops forwarding ends a drill when its time is over."""

    def judge(self, row: Frozen) -> None:
        """The drill ends by itself, as an error that names the limit."""
        with place() as here, relay(here.folder, row.at) as (where, stopped):
            words = ("--timeout", "2", *row.arguments)
            over = drilled(Place(here.folder, where), *words, database=small())
            self.assertTrue(stopped.is_set())
        parts = ("did not end within 2 s", "--timeout", row.says)
        self.assert_verdict(over, "error", *parts, act=row.act)

    def test_signal(self) -> None:
        """A signal ends the drill at once."""
        at = b"SET TRANSACTION SNAPSHOT"
        with place() as here, relay(here.folder, at) as (where, stopped):
            words = ("--timeout", "10m", "--live", "--throwaway")
            with here.started(*words, url=where.url(small())) as process:
                self.assertTrue(stopped.wait(BOUND))
                process.send_signal(signal.SIGTERM)
                over = here.ended(process, PROMPTLY)
        self.assert_verdict(over, "error", "interrupted (SIGTERM)")


SOCKET = ".s.PGSQL.5432"


class Relay(socketserver.ThreadingUnixStreamServer):
    """What passes bytes on between clients and the server of the tests, for a while."""

    daemon_threads = True

    def __init__(self, home: Path, stops_at: bytes) -> None:
        super().__init__(str(home / SOCKET), Relayed)
        self.stops_at = stops_at
        self.stopped = Event()
        self.over = Event()


class Relayed(socketserver.BaseRequestHandler):
    """A client of the relay's."""

    server: Relay

    def handle(self) -> None:
        """Pass on what both sides send, until any client says what the relay stops at."""
        with socket.socket(socket.AF_UNIX) as far:
            far.connect(str(server().data / SOCKET))
            other = {self.request: far, far: self.request}
            while not self.server.stopped.is_set():
                for ready in select.select([*other], [], [], 0.05)[0]:
                    said = ready.recv(65536)
                    if not said:
                        return
                    if self.server.stops_at in said:
                        self.server.stopped.set()
                    else:
                        other[ready].sendall(said)
            self.server.over.wait()


@contextmanager
def relay(home: Path, stops_at: bytes) -> Iterator[tuple[Server, Event]]:
    """The server of the tests behind a relay, and whether it has stopped forwarding."""
    with Relay(home, stops_at) as listening:
        thread = Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Server(home), listening.stopped
        finally:
            listening.over.set()
            listening.shutdown()
            thread.join()


class FrozenServerTests(Case):
    """A private server that is stopped is ended nevertheless."""

    def test_signal(self) -> None:
        """One that is stopped does not keep the drill from ending."""
        with place() as here, caught(here, "restore", *PRIVATE) as process:
            os.kill(private_server_in(here), signal.SIGSTOP)
            process.send_signal(signal.SIGTERM)
            over = here.ended(process, PROMPTLY)
        self.assert_verdict(over, "error", "interrupted (SIGTERM)", act="restore")

    def test_kill(self) -> None:
        """The guard ends one of which every process was stopped."""
        with place() as here, caught(here, "restore", *PRIVATE) as process:
            postmaster = private_server_in(here)
            family = [postmaster, *children_of(postmaster)]
            self.assertGreater(len(family), 1)
            for member in family:
                kill(member, signal.SIGSTOP)
            memory = Path(f"/proc/{postmaster}/maps").read_text()
            process.kill()
            here.ended(process)
            left = here.leftovers(BOUND)
            is_over = eventually(lambda: not any(map(is_there, family)))
            for member in family:
                kill(member, signal.SIGKILL)
        self.assertEqual(left, [])
        self.assertTrue(is_over)
        # It would stay, as only a server removes it that ends by itself.
        self.assertFalse("/dev/shm/PostgreSQL" in memory, "memory would be left")


def private_server_in(here: Place) -> int:
    """The process that leads the private server of a run."""
    (file,) = here.temporary.glob("*/data/postmaster.pid")
    return int(file.read_text().split()[0])


def children_of(parent: int) -> list[int]:
    """The processes that a process has started."""
    told = subprocess.check_output(["ps", "-A", "-o", "ppid=", "-o", "pid="], text=True)
    pairs = [map(int, line.split()) for line in told.splitlines()]
    return [child for leader, child in pairs if leader == parent]


def is_there(process: int) -> bool:
    """Whether a process runs; one that is over may wait for its parent."""
    return given_to(process) != ""


# --- Killed, and beside others --------------------------------------------------------

DROPPED = r"(?m)^dropping a database of a killed run: (.*)$"
DATABASES = "SELECT datname FROM pg_database WHERE datname ~ '^backup_drill_'"
RESTORED = """
SELECT datname
  FROM pg_database
 WHERE pg_get_userbyid(datdba) = '{}'
   AND datname ~ '_restored$'
"""
DROPPING = "SELECT 1 FROM pg_stat_activity WHERE query ~ '^DROP DATABASE .*_restored'"


@contextmanager
def own_server() -> Iterator[Server]:
    """A server of the test's, on which no other test's drill drops orphans."""
    with place() as home, private_server(home.folder) as made:
        made.query("postgres", SMALL)
        yield made


def databases_on(home: Server) -> set[str]:
    """The databases that look like a drill's."""
    return {name for (name,) in home.query("postgres", DATABASES)}


class KilledTests(Case):
    """The guard removes what a killed run leaves, and the next run its databases."""

    def test_databases(self) -> None:
        """Databases of killed runs are dropped; no other is, whatever its name.

        One that cannot be dropped is named, and keeps no drill from its work.
        """
        mark = "backup_drill_0123456789abcdef_"
        decoys = {"backup_drill_notes", f"{mark}source_of_truth", f"{mark}Source"}
        with own_server() as home, ExitStack() as stack:
            for decoy in decoys:
                home.query("postgres", f'CREATE DATABASE "{decoy}"')
            other = stack.enter_context(place())
            words = existing(other, (*BACKUP, "--no-throwaway"))
            alive = stack.enter_context(other.caught("restore", *words, url=home.url()))
            kept = databases_on(home)
            with place() as here, here.caught("restore", *LIVE, url=home.url()) as run:
                os.killpg(run.pid, signal.SIGKILL)
                here.ended(run)
                self.assertEqual(here.leftovers(), [])
            home.query("postgres", f"CREATE DATABASE {mark}source")
            orphans = databases_on(home) - kept
            stays = f"{mark}reference"
            home.query("postgres", f"CREATE DATABASE {stays} IS_TEMPLATE true")
            purposes = {orphan.rpartition("_")[2] for orphan in orphans}
            self.assertEqual(purposes, {"source", "restored", "reference"})

            with place() as here:
                swept = here.run(*LIVE, *CREATION, url=home.url())
            self.assert_verdict(swept, "passed", f"for the next run to drop: {stays}")
            self.assertEqual({*re.findall(DROPPED, swept.said)}, {*orphans, stays})
            self.assertEqual(databases_on(home), {*kept, stays})

            other.let_go()
            self.assert_verdict(other.ended(alive), "passed")
            self.assertEqual(databases_on(home), {*decoys, stays})

    def test_private_server(self) -> None:
        """The private server, the programs and the folder go at once."""
        with place() as here, caught(here, "restore", *PRIVATE) as process:
            self.assertTrue([*here.temporary.iterdir()])
            postmaster = private_server_in(here)
            self.assertTrue(is_there(postmaster))
            process.kill()
            here.ended(process)
            self.assertEqual(here.leftovers(), [])
            self.assertFalse(is_there(postmaster))


class BesideOthersTests(Case):
    """Others on the server, and its end, do not disturb a drill more than they must."""

    def test_three_at_once(self) -> None:
        """Three drills pass, though each meets the same orphans to drop."""
        orphans = {f"backup_drill_00000000000000{n:02x}_source" for n in range(4)}
        with own_server() as home, place(home) as here, ExitStack() as stack:
            for orphan in orphans:
                home.query("postgres", f"CREATE DATABASE {orphan}")
            words = existing(here, (*BACKUP, "--no-throwaway", *CREATION))
            started = [here.started(*words, url=home.url()) for _ in range(3)]
            runs = [here.ended(run) for run in map(stack.enter_context, started)]
            for run in runs:
                self.assert_verdict(run, "passed")
            said = "".join(run.said for run in runs)
            self.assertEqual({*re.findall(DROPPED, said)}, orphans)

    def test_session_of_another_role(self) -> None:
        """One that looks into a scratch database, as autovacuum does, is waited for."""
        with (
            role("CREATEDB") as name,
            place() as here,
            here.caught("restore", *unowned(here), url=url(user=name)) as process,
        ):
            ((restored,),) = query("postgres", RESTORED.format(name))
            words = {"user": "postgres", "dbname": restored}
            session = psycopg2.connect(host=str(server().data), **words)
            here.let_go()
            is_waited_for = eventually(lambda: query("postgres", DROPPING))
            session.close()
            over = here.ended(process)
        self.assertTrue(is_waited_for)
        self.assert_verdict(over, "passed")
        self.assertNotIn("left behind", over.said)

    def test_server_that_goes_away(self) -> None:
        """Its end is an error, and no failure of the backup."""
        with own_server() as home, place() as here:
            words = existing(here, (*BACKUP, "--no-throwaway"))
            words += ["--report", str(here.report)]
            with here.caught("restore", *words, url=home.url()) as process:
                home.control("stop", "-m", "immediate")
                here.let_go()
                over = here.ended(process)
            home.control("start")
        self.assert_verdict(over, "error", "check host and port", act="restore")
