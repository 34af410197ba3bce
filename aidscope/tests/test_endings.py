"""However a drill ends, nothing is left behind; and what cannot end well is swept.

A drill is caught in an act by a program on PATH that waits, or by a migration that
does; see `running.py`. The places look at folders, databases and processes.
"""

import os
import signal
import tempfile
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple
from unittest import mock

from aidscope.tests.running import (
    ACTS,
    BOUND,
    DrillsAhead,
    Ended,
    Place,
    databases,
    drills_ahead,
    ended,
    place,
    sentences,
    url_of,
)
from aidscope.tests.server import OPTIONS, execute, server
from scripts import test_backup_restore as drill

PROMPTLY = 15.0  # seconds, on a busy machine
DROPPED = "^dropped a database of a killed run: (.*)$"
REMOVED = "^removed the folder of a killed run: (.*)$"
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


class Tests(unittest.TestCase):
    """What the tests of endings have in common."""

    def assert_ended(self, ended: Ended, *said: str) -> None:
        """The drill said that it did not pass, in sentences and without frames."""
        self.assertEqual(ended.status, 1, ended.said)
        for sentence in said:
            self.assertIn(sentence, ended.said)
        self.assertNotIn("Traceback", ended.said)

    def assert_passed(self, ended: Ended) -> None:
        """The drill passed."""
        self.assertEqual(ended.status, 0, ended.said)
        self.assertIn("The backup restores.", ended.said)


# --- Told to stop ---------------------------------------------------------------------


@drills_ahead
class SignalTests(DrillsAhead, Tests):
    """A drill that is told to stop says so and leaves nothing, whatever it is at."""

    table: ClassVar = {
        f"{number.name} in {act}": (act, number)
        for act in ACTS
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    @staticmethod
    def drilled(row: tuple[str, signal.Signals]) -> tuple[Ended, list[str]]:
        """Send the signal in the act."""
        act, number = row
        with place() as here:
            with here.caught(ACTS[act], DATABASE_URL=url_of()) as process:
                process.send_signal(number)
                stopped = ended(process, PROMPTLY)
            return stopped, here.leftovers()

    def judge_outcome(
        self, row: tuple[str, signal.Signals], outcome: tuple[Ended, list[str]]
    ) -> None:
        """The drill ended with one sentence, on record for its act."""
        (act, number), (stopped, leftovers) = row, outcome
        self.assert_ended(stopped, f"interrupted ({number.name})", f"{act} error")
        self.assertNotIn("of a killed run", stopped.said)
        self.assertEqual(leftovers, [])


# --- Told to stop at a bad moment, or held up -----------------------------------------


class Story(NamedTuple):
    """How a drill is brought to an end, and what it says then."""

    told: Callable[[Place], Ended]
    sentences: tuple[str, ...]


def impatient(here: Place) -> Ended:
    """Signals follow the first while the drill cleans up."""
    with here.caught(ACTS["restore"], DATABASE_URL=url_of()) as process:
        for number in 3 * [signal.SIGINT, signal.SIGTERM]:
            process.send_signal(number)
        return ended(process, PROMPTLY)


def interrupted_with_its_server(here: Place) -> Ended:
    """The drill has a throwaway server."""
    with here.caught(ACTS["creation"]) as process:
        if not any("/data" in said for said in here.processes()):
            raise AssertionError("there is no throwaway server")
        process.send_signal(signal.SIGTERM)
        return ended(process, PROMPTLY)


def interrupted_in_a_query(here: Place) -> Ended:
    """A migration's query runs."""
    environment = slow_migration(here)
    with here.started("--timeout", "3", **environment) as process:
        here.await_stand_in(process)
        process.send_signal(signal.SIGINT)
        return ended(process, PROMPTLY)


def with_a_slow_migration(here: Place) -> Ended:
    """A migration's query does not end."""
    with here.started("--timeout", "3", **slow_migration(here)) as process:
        return ended(process, PROMPTLY)


def with_a_hanging_program(here: Place) -> Ended:
    """pg_dump has a child, and neither ends."""
    here.stand_in("pg_dump", "sleep 600 & sleep 600; exit 1")
    return here.run("--timeout", "3", DATABASE_URL=url_of())


def with_a_full_disk(here: Place) -> Ended:
    """pg_dump writes where there is no room."""
    here.stand_in("pg_dump", TO_A_FULL_DISK, "*--file*")
    return here.run(DATABASE_URL=url_of())


def slow_migration(here: Place) -> dict[str, str]:
    """The environment of a project with a migration whose query takes two minutes."""
    migrations = here.folder / "site" / "slow" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "__init__.py").touch()
    waiting = str(here.folder / "waiting")
    migration = SLOW_MIGRATION.format(waiting=waiting)
    (migrations / "0001_initial.py").write_text(migration)
    (here.folder / "site" / "slow_settings.py").write_text(SLOW_SETTINGS)
    return {
        "DATABASE_URL": url_of(),
        "DJANGO_SETTINGS_MODULE": "slow_settings",
        "PYTHONPATH": str(here.folder / "site"),
    }


@drills_ahead
class StoryTests(DrillsAhead, Tests):
    """Nothing that lasts or fails keeps a drill from ending with a sentence."""

    table: ClassVar = {
        "signals that follow the first": Story(impatient, ("interrupted (SIG",)),
        "a signal with a throwaway server": Story(
            interrupted_with_its_server, ("interrupted (SIGTERM)",)
        ),
        "a signal in a query": Story(interrupted_in_a_query, ("interrupted (SIGINT)",)),
        "a migration that hangs": Story(
            with_a_slow_migration,
            ("migrations fail", "statement timeout", "--timeout SECONDS"),
        ),
        "a program that hangs": Story(
            with_a_hanging_program,
            (
                "pg_dump did not end within 3 s, and was killed",
                "allow more time with --timeout SECONDS",
                "creation error",
            ),
        ),
        "a full disk": Story(
            with_a_full_disk,
            ("creation error", "No space left on device", "make room on the disk"),
        ),
    }

    @staticmethod
    def drilled(row: Story) -> tuple[Ended, list[str]]:
        """Let the story happen."""
        with place() as here:
            return row.told(here), here.leftovers()

    def judge_outcome(self, row: Story, outcome: tuple[Ended, list[str]]) -> None:
        """The drill ended with its sentences, and left nothing."""
        stopped, leftovers = outcome
        self.assert_ended(stopped, *row.sentences)
        self.assertEqual(leftovers, [])


# --- Killed ---------------------------------------------------------------------------


class KilledTests(Tests):
    """What a killed run leaves is nobody's, and the next run sweeps it."""

    def test_sweep(self) -> None:
        """Leftovers of kills in each act are swept; nothing else is, by any name."""
        mark = f"{drill.MARK}0123456789abcdef_"
        decoys = [f"{drill.MARK}notes", f"{mark}source_of_truth", f"{mark}Source"]
        with place() as here, ExitStack() as stack:
            for name in decoys:
                stack.enter_context(database(name))
            decoy_folders(here.temporary)
            other = stack.enter_context(place(here.temporary))
            caught = other.caught(ACTS["creation"], DATABASE_URL=url_of())
            alive = stack.enter_context(caught)
            kept, folders = databases(), {*here.temporary.iterdir()}

            kill(here, *ACTS)
            orphans = [name for name in databases() if name not in kept]
            purposes = {name.rpartition("_")[2] for name in orphans}
            self.assertLessEqual({"source", "restored"}, purposes)
            abandoned = sorted({*here.temporary.iterdir()} - folders)
            self.assertEqual(len(abandoned), len(ACTS))
            told = [str(folder) for folder in abandoned if any(folder.iterdir())]
            self.assertEqual(len(told), 2)  # the others had not written anything

            swept = here.run(DATABASE_URL=url_of())
            self.assert_passed(swept)
            self.assertEqual(sentences(DROPPED, swept.said), orphans)
            self.assertEqual(sentences(REMOVED, swept.said), told)
            self.assertEqual(databases(), kept)
            self.assertEqual({*here.temporary.iterdir()}, folders)

            other.let_go()
            survivor = ended(alive)
            self.assert_passed(survivor)
            self.assertEqual(databases(), sorted(decoys))

    def test_throwaway_server(self) -> None:
        """A killed run's private server is ended, and its folder removed."""
        with place() as here:
            kill(here, "creation", url="")
            (folder,) = here.temporary.iterdir()
            self.assertTrue([said for said in here.processes() if "/data" in said])
            swept = here.run(DATABASE_URL=url_of())
            self.assert_passed(swept)
            self.assertEqual(sentences(REMOVED, swept.said), [str(folder)])
            self.assertEqual(here.leftovers(), [])


@contextmanager
def database(name: str) -> Iterator[None]:
    """A database that is no drill's."""
    maintenance = drill.maintenance(server())
    execute(maintenance, f'CREATE DATABASE "{name}"')
    try:
        yield
    finally:
        execute(maintenance, f'DROP DATABASE "{name}"')


def decoy_folders(temporary: Path) -> None:
    """A folder, a file and a link that are no drill's, for all their names."""
    notes = temporary / f"{drill.MARK}notes"
    notes.mkdir()
    (notes / "keep.txt").write_text("keep me")
    report = temporary / f"{drill.MARK}report.json"
    report.write_text("{}")
    link = temporary / f"{drill.MARK}link"
    link.symlink_to(notes)


def kill(here: Place, *acts: str, url: str | None = None) -> None:
    """Kill a run in each of the acts at one moment, so that none cleans up."""
    url = url_of() if url is None else url
    with ExitStack() as stack:
        enter = stack.enter_context
        places = {act: enter(place(here.temporary)) for act in acts}
        runs = {
            act: enter(other.bound_for(ACTS[act], DATABASE_URL=url))
            for act, other in places.items()
        }
        for act in acts:
            places[act].await_stand_in(runs[act])
        for run in runs.values():
            run.kill()
        for run in runs.values():
            ended(run)


# --- Side by side ---------------------------------------------------------------------


class CleaningUpTests(Tests):
    """Nothing disturbs the cleaning up, and it hides nothing."""

    def test_signal(self) -> None:
        """A signal that comes while a database is dropped waits for that."""
        dropped = []

        def interrupted(database: drill.Database) -> None:
            """Be told to stop, and drop all the same."""
            signal.raise_signal(signal.SIGTERM)
            drop(database)
            dropped.append(database.name)

        drop = drill.drop_database
        with (
            mock.patch.object(drill, "drop_database", interrupted),
            self.assertRaisesRegex(KeyboardInterrupt, "SIGTERM"),
            drill.interruptible(),
            drill.scratch_database(server(), "source", "") as made,
        ):
            pass
        self.assertEqual(dropped, [made.name])

    def test_first_fault(self) -> None:
        """A database that cannot be dropped does not hide why the drill failed."""
        for fault in (
            drill.BackupIsBad("3 rows are lost"),
            KeyboardInterrupt("SIGINT"),
        ):
            with (
                self.subTest(fault=fault),
                self.assertLogs(drill.log, "WARNING") as said,
                self.assertRaisesRegex(type(fault), str(fault)),
                stuck(server()),
            ):
                raise fault
            self.assertIn("is left behind", said.output[0])
        with (
            self.assertRaisesRegex(drill.NotJudged, "is left behind"),
            stuck(server()),
        ):
            pass

    def test_orphan_in_use(self) -> None:
        """One that cannot be dropped does not keep the next drill from its work."""
        name = f"{drill.MARK}00000000000000ff_source"
        maintenance = drill.maintenance(server())
        with place() as here, database(name):
            execute(maintenance, f"ALTER DATABASE {name} IS_TEMPLATE true")
            over = here.run(DATABASE_URL=url_of())
            execute(maintenance, f"ALTER DATABASE {name} IS_TEMPLATE false")
        self.assert_passed(over)
        self.assertIn(f"{name}, of a killed run, is there still", over.said)


@contextmanager
def stuck(server: drill.Server) -> Iterator[None]:
    """A scratch database that cannot be dropped, until the drill has given up."""
    fault = drill.NotJudged("it is in use")
    try:
        with (
            mock.patch.object(drill, "drop_database", side_effect=fault),
            drill.scratch_database(server, "source", ""),
        ):
            yield
    finally:
        drill.drop_database(drill.Database(server, f"{server.mark}source"))


class SideBySideTests(Tests):
    """Any number of drills can share a server and a folder."""

    def test_six_at_once(self) -> None:
        """Six drills pass, though each meets the same leftovers to sweep."""
        maintenance = drill.maintenance(server())
        orphans = [f"{drill.MARK}00000000000000{n:02x}_source" for n in range(4)]
        with place() as here, ExitStack() as stack:
            kill(here, "validation")
            (folder,) = here.temporary.iterdir()
            for name in orphans:
                execute(maintenance, f"CREATE DATABASE {name}")
            started = [here.started(DATABASE_URL=url_of()) for _ in range(6)]
            runs = [ended(run) for run in [*map(stack.enter_context, started)]]
            for run in runs:
                self.assert_passed(run)
            said = "".join(run.said for run in runs)
            self.assertEqual({*sentences(DROPPED, said)}, {*orphans})
            self.assertEqual({*sentences(REMOVED, said)}, {str(folder)})
            self.assertEqual(here.leftovers(), [])

    def test_folder_that_is_swept_while_it_is_made(self) -> None:
        """A folder that another run sweeps before it is locked is made anew."""
        swept = []

        def open_too_late(path: str | Path, *how: int, **more: int | None) -> int:
            """What os.open does, once another run was faster."""
            if not swept and isinstance(path, Path):
                swept.append(path)
                path.rmdir()
            return opened(path, *how, **more)

        opened = os.open
        with (
            place() as here,
            mock.patch.object(tempfile, "tempdir", str(here.temporary)),
            mock.patch.object(os, "open", open_too_late),
            drill.private_folder() as folder,
        ):
            self.assertTrue(folder.is_dir())
            self.assertEqual([path.parent for path in swept], [here.temporary])
            self.assertNotEqual(swept, [folder])


# --- What goes wrong outside ----------------------------------------------------------


class ServerGoneTests(Tests):
    """A server that goes away ends the drill with a sentence; a later run sweeps."""

    def test_shut_down_in_the_middle(self) -> None:
        """It is an error, not a failure, and the drill does not wait for its return."""
        mark = f"{drill.MARK}fedcba9876543210_"
        with (
            drill.private_folder() as folder,
            drill.throwaway_server(folder, mark, OPTIONS.timeout, None) as own,
        ):
            data = own.settings["HOST"]
            url = f"postgresql://postgres@{data.replace('/', '%2F')}/postgres"
            said = ""
            for act in ("creation", "restore"):
                with place() as here:
                    with here.caught(ACTS[act], DATABASE_URL=url) as process:
                        control(data, "stop", "-m", "immediate")
                        here.let_go()
                        stopped = ended(process)
                    said += stopped.said
                    control(data, "start", "-l", "log")
                    with self.subTest(act):
                        self.assert_ended(stopped, f"{act} error", "judged")
                        self.assertRegex(
                            stopped.said, "server went away|that the server runs"
                        )
                        self.assertEqual(here.leftovers(), [])
            with place() as here:
                swept = here.run(DATABASE_URL=url)
            self.assert_passed(swept)
            names = sentences(DROPPED, said + swept.said)
            purposes = {name.rpartition("_")[2] for name in names}
            self.assertLessEqual({"source", "restored"}, purposes)


def control(data: str, *arguments: str) -> None:
    """Start or stop a server by pg_ctl."""
    program = str(drill.server_programs(None) / "pg_ctl")
    command = drill.Command((program, "-w", "-D", data, *arguments), BOUND)
    drill.run(command, cwd=data, **drill.unprivileged_account())
