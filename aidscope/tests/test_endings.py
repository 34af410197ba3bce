"""However a drill ends, it says so in a sentence, and nothing is left behind.

A drill is held in an act by a stand-in that waits, or by a migration that does. That no
folder, process or database is left is judged where the block of each place ends.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Timer
from typing import NamedTuple

from aidscope.tests.support import (
    DUMPS,
    Case,
    Ended,
    Place,
    Server,
    driver,
    place,
    private_server,
    query,
    role,
    server,
    url,
)

PROMPTLY = 15.0  # seconds, on a busy machine


# --- Told to stop, or held up ---------------------------------------------------------

SLOW_SETTINGS = """
from aidscope.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "slow"]
"""
SLOW_MIGRATION = """
from pathlib import Path

from django.db import migrations


def wait(apps, editor):
    Path({waiting!r}).write_text("0")
    editor.execute("SELECT pg_sleep(120)")


class Migration(migrations.Migration):
    operations = [migrations.RunPython(wait)]
"""
# Has pg_dump write the backup to a device that is always full.
TO_A_FULL_DISK = """
for each do
    shift
    case $each in */backup.plain) each=/dev/full ;; esac
    set -- "$@" "$each"
done
"""


class Ending(NamedTuple):
    """How a run is brought to an end, and what it says then."""

    run: Callable[[Place], Ended]
    parts: tuple[str, ...]
    act: str = ""  # the one that is on record with an error


def signalled(number: signal.Signals, act: str, *arguments: str) -> Ending:
    """A signal comes in an act."""

    def run(here: Place) -> Ended:
        where = "" if "--throwaway" in arguments else url()
        with here.caught(act, *arguments, url=where) as process:
            process.send_signal(number)
            return here.ended(process, PROMPTLY)

    return Ending(run, (f"interrupted ({number.name})",), act)


def signalled_repeatedly(here: Place) -> Ended:
    """Signals follow the first while the drill cleans up."""
    with here.caught("restore", url=url()) as process:
        for number in 3 * [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]:
            process.send_signal(number)
            time.sleep(0.02)
        return here.ended(process, PROMPTLY)


def interrupted_in_a_migration(here: Place) -> Ended:
    """A migration's query runs."""
    with here.started("--timeout", "3", **slow_migration(here)) as process:
        here.await_stand_in(process)
        process.send_signal(signal.SIGINT)
        return here.ended(process, PROMPTLY)


def with_a_slow_migration(here: Place) -> Ended:
    """A migration's query does not end."""
    with here.started("--timeout", "2", **slow_migration(here)) as process:
        return here.ended(process, PROMPTLY)


def with_a_full_disk(here: Place) -> Ended:
    """pg_dump writes where there is no room."""
    here.stand_in("pg_dump", TO_A_FULL_DISK, DUMPS)
    return here.run(url=url())


def slow_migration(here: Place) -> dict[str, str]:
    """How to run a drill of a project with a migration that takes two minutes."""
    migrations = here.folder / "site" / "slow" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "__init__.py").touch()
    waiting = str(here.folder / "waiting")
    migration = SLOW_MIGRATION.format(waiting=waiting)
    (migrations / "0001_initial.py").write_text(migration)
    (here.folder / "site" / "slow_settings.py").write_text(SLOW_SETTINGS)
    return {
        "url": url(),
        "DJANGO_SETTINGS_MODULE": "slow_settings",
        "PYTHONPATH": str(here.folder / "site"),
    }


ENDINGS = {
    "SIGTERM in set-up": signalled(signal.SIGTERM, "set-up"),
    "SIGINT in creation": signalled(signal.SIGINT, "creation"),
    "SIGHUP in creation": signalled(signal.SIGHUP, "creation"),
    "SIGTERM in validation": signalled(signal.SIGTERM, "validation"),
    "SIGINT in restore": signalled(signal.SIGINT, "restore"),
    "SIGHUP with a throwaway server": signalled(
        signal.SIGHUP, "restore", "--throwaway"
    ),
    "signals that follow the first": Ending(
        signalled_repeatedly, ("interrupted (SIG",)
    ),
    "a signal in a migration": Ending(
        interrupted_in_a_migration, ("interrupted (SIGINT)",)
    ),
    "a migration that hangs": Ending(with_a_slow_migration, ("migrate", "--timeout")),
    "a full disk": Ending(
        with_a_full_disk, ("No space left on device", "make room on the disk")
    ),
}


class EndingTests(Case, table=ENDINGS):
    """Nothing that comes or lasts keeps a drill from ending with a sentence."""

    def judge(self, row: Ending) -> None:
        """The run ends as an error with its sentence."""
        with place() as here:
            over = row.run(here)
        self.assert_verdict(over, "error", *row.parts)
        if row.act:
            self.assertIn(f"{row.act} error", over.text)
        self.assertNotIn("of a killed run", over.said)


# --- Killed, and beside others --------------------------------------------------------

DROPPED = r"(?m)^dropped a database of a killed run: (.*)$"
DATABASES = "SELECT datname FROM pg_database WHERE datname ~ '^backup_drill_'"


@contextmanager
def own_server() -> Iterator[Server]:
    """A server of the test's, on which no other test's drill drops orphans."""
    with place() as home, private_server(home.folder) as made:
        yield made


def databases_on(home: Server) -> set[str]:
    """The databases that look like a drill's."""
    return {name for (name,) in home.query("postgres", DATABASES)}


class KilledTests(Case):
    """The reaper removes what a killed run leaves, and the next run its databases."""

    def test_databases(self) -> None:
        """Databases of killed runs are dropped; no other is, whatever its name."""
        mark = "backup_drill_0123456789abcdef_"
        decoys = {"backup_drill_notes", f"{mark}source_of_truth", f"{mark}Source"}
        with own_server() as home, ExitStack() as stack:
            for decoy in decoys:
                home.query("postgres", f'CREATE DATABASE "{decoy}"')
            other = stack.enter_context(place(home))
            alive = stack.enter_context(other.caught("creation", url=home.url()))
            kept = databases_on(home)
            for act in ("creation", "restore"):
                with place() as here, here.caught(act, url=home.url()) as process:
                    os.killpg(process.pid, signal.SIGKILL)
                    here.ended(process)
                    self.assertEqual(here.leftovers(), [])
            orphans = sorted(databases_on(home) - kept)
            purposes = {orphan.rpartition("_")[2] for orphan in orphans}
            self.assertLessEqual({"restored", "reference"}, purposes)

            with place(home) as here:
                swept = here.run(url=home.url())
            self.assert_verdict(swept, "passed")
            self.assertLessEqual({*re.findall(DROPPED, swept.said)}, {*orphans})
            self.assertEqual(databases_on(home), kept)

            other.let_go()
            self.assert_verdict(other.ended(alive), "passed")
            self.assertEqual(databases_on(home), decoys)

    def test_throwaway_server(self) -> None:
        """The private server, the programs and the folder go at once."""
        with place() as here, here.caught("restore", "--throwaway") as process:
            self.assertTrue([*here.temporary.iterdir()])
            self.assertIn("/postgres -D", str(here.processes()))
            process.kill()
            here.ended(process)
            self.assertEqual(here.leftovers(), [])

    def test_orphan_that_cannot_be_dropped(self) -> None:
        """It is named, and does not keep the next drill from its work."""
        orphan = "backup_drill_00000000000000ff_source"
        with own_server() as home:
            home.query("postgres", f"CREATE DATABASE {orphan} IS_TEMPLATE true")
            with place() as here:
                over = here.run(url=home.url())
            self.assertEqual(databases_on(home), {orphan})
        self.assert_verdict(over, "passed", orphan)


class BesideOthersTests(Case):
    """Others on the server, and its end, do not disturb a drill more than they must."""

    def test_six_at_once(self) -> None:
        """Six drills pass, though each meets the same orphans to drop."""
        orphans = {f"backup_drill_00000000000000{n:02x}_source" for n in range(4)}
        with own_server() as home, place(home) as here, ExitStack() as stack:
            for orphan in orphans:
                home.query("postgres", f"CREATE DATABASE {orphan}")
            started = [here.started(url=home.url()) for _ in range(6)]
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
            here.caught("restore", url=url(user=name)) as process,
        ):
            (restored,) = query("postgres", RESTORED.format(name))[0]
            words = {"user": "postgres", "dbname": restored}
            session = driver.connect(host=str(server().data), **words)
            timer = Timer(2.5, session.close)
            timer.start()
            here.let_go()
            over = here.ended(process)
            timer.join()
        self.assert_verdict(over, "passed")
        self.assertNotIn("left behind", over.said)

    def test_server_that_goes_away(self) -> None:
        """It is an error, not a failure, and a later run drops what was left there."""
        with own_server() as home:
            with place() as here, here.caught("restore", url=home.url()) as process:
                home.control("stop", "-m", "immediate")
                here.let_go()
                stopped = here.ended(process)
                home.control("start")
            with place(home) as here:
                swept = here.run(url=home.url())
        self.assert_verdict(stopped, "error", "restore error")
        self.assertRegex(stopped.said, "server closed|connection .*failed|went away")
        self.assert_verdict(swept, "passed")
        dropped = re.findall(DROPPED, swept.said)
        self.assertIn("restored", {name.rpartition("_")[2] for name in dropped})


RESTORED = """
SELECT datname
  FROM pg_database
 WHERE pg_get_userbyid(datdba) = '{}'
   AND datname ~ '_restored$'
"""
