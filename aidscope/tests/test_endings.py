"""However a drill ends, nothing is left behind; and what cannot end well is swept.

A drill is caught in an act by a program on PATH that waits, or by a migration that
does; see `running.py`. The places look at folders, databases and processes.
"""

import re
import signal
import unittest
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from aidscope.tests.running import (
    ACTS,
    BOUND,
    DrillsAhead,
    Ended,
    Place,
    databases,
    drills_ahead,
    ended,
    eventually,
    place,
    sentences,
    url_of,
)
from aidscope.tests.server import OPTIONS, execute, server
from scripts import test_backup_restore as drill

DROPPED = "^dropped a database of a killed run: (.*)$"
PROMPTLY = 15.0  # seconds, on a busy machine
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


class InterruptedTests(Tests):
    """A drill that is told to stop stops well, whatever else comes in its way."""

    def test_impatience(self) -> None:
        """Signals that follow the first do not disturb the cleaning up."""
        with place() as here:
            with here.caught(ACTS["restore"], DATABASE_URL=url_of()) as process:
                for number in 3 * [signal.SIGINT, signal.SIGTERM]:
                    process.send_signal(number)
                stopped = ended(process, PROMPTLY)
            self.assert_ended(stopped, "interrupted (SIG")
            self.assertEqual(here.leftovers(), [])

    def test_throwaway_server(self) -> None:
        """An interrupted drill takes its private server with it."""
        with place() as here:
            with here.caught(ACTS["creation"]) as process:
                self.assertTrue([said for said in here.processes() if "/data" in said])
                process.send_signal(signal.SIGTERM)
                stopped = ended(process, PROMPTLY)
            self.assert_ended(stopped, "interrupted (SIGTERM)")
            self.assertEqual(here.leftovers(), [])

    def test_running_query(self) -> None:
        """A query that runs holds an interrupted drill no longer than the timeout."""
        with place() as here:
            environment = slow_migration(here)
            with here.started("--timeout", "3", **environment) as process:
                self.assertTrue(eventually(lambda: here.waiting))
                process.send_signal(signal.SIGINT)
                stopped = ended(process, PROMPTLY)
            self.assert_ended(stopped, "interrupted (SIGINT)")
            self.assertEqual(here.leftovers(), [])


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

            swept = here.run(DATABASE_URL=url_of())
            self.assert_passed(swept)
            self.assertEqual(sentences(DROPPED, swept.said), orphans)
            self.assertEqual(sentences(REMOVED, swept.said), [*map(str, abandoned)])
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


class SideBySideTests(Tests):
    """Any number of drills can share a server and a folder."""

    def test_six_at_once(self) -> None:
        """Six drills pass, though each meets the same leftovers to sweep."""
        maintenance = drill.maintenance(server())
        orphans = [f"{drill.MARK}00000000000000{n:02x}_source" for n in range(4)]
        with place() as here, ExitStack() as stack:
            for name in orphans:
                execute(maintenance, f"CREATE DATABASE {name}")
            kill(here, "set-up")
            (folder,) = here.temporary.iterdir()
            started = [here.started(DATABASE_URL=url_of()) for _ in range(6)]
            runs = [ended(run) for run in [*map(stack.enter_context, started)]]
            for run in runs:
                self.assert_passed(run)
            said = "".join(run.said for run in runs)
            self.assertEqual({*sentences(DROPPED, said)}, {*orphans})
            self.assertEqual({*sentences(REMOVED, said)}, {str(folder)})
            self.assertEqual(here.leftovers(), [])


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


class BoundTests(Tests):
    """Nothing lasts for ever, and nothing grows for ever."""

    def test_hanging_program(self) -> None:
        """A program is killed at the timeout, with its children."""
        with place() as here:
            here.stand_in("pg_dump", "sleep 600 & sleep 600; exit 1")
            stopped = here.run("--timeout", "3", DATABASE_URL=url_of())
            self.assert_ended(
                stopped,
                "pg_dump did not end within 3 s, and was killed",
                "allow more time with --timeout SECONDS",
                "creation error",
            )
            self.assertEqual(here.leftovers(), [])

    def test_hanging_migration(self) -> None:
        """A query of a migration's is bounded as every other."""
        with place() as here:
            environment = slow_migration(here)
            with here.started("--timeout", "3", **environment) as process:
                stopped = ended(process, PROMPTLY)
            self.assert_ended(
                stopped, "migrations fail", "statement timeout", "--timeout SECONDS"
            )
            self.assertEqual(here.leftovers(), [])

    def test_full_disk(self) -> None:
        """A backup that does not fit on the disk is an error that says so."""
        with place() as here:
            to_full = re.sub(
                r"\n *",
                " ",
                """for each do
                shift;
                case $each in */backup.plain) each=/dev/full ;; esac;
                set -- "$@" "$each";
                done""",
            )
            here.stand_in("pg_dump", to_full, "*--file*")
            stopped = here.run(DATABASE_URL=url_of())
            self.assert_ended(
                stopped,
                "creation error",
                "No space left on device",
                "make room on the disk",
            )
            self.assertEqual(here.leftovers(), [])
