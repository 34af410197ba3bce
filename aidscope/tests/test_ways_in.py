"""Whichever way the drill is started, it runs, says and returns what it should."""

import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
import unittest
from typing import Any, ClassVar, NamedTuple

from aidscope.tests.running import (
    BOUND,
    SCRIPT,
    DrillsAhead,
    Ended,
    drills_ahead,
    place,
    url_of,
)
from aidscope.tests.server import server

CREATION, VALIDATION, RESTORE = (
    f"test_backup_{act}" for act in ("creation", "validation", "restore")
)
SENTENCES = {
    CREATION: "The source is written to a new backup.",
    VALIDATION: "The backup is whole and holds every row of every table.",
    RESTORE: "A fresh database loaded from the backup is the source again.",
}
OPTIONS = (
    "--verbose",
    "--strict",
    "--throwaway",
    "--timeout",
    "--format",
    "--jobs",
    "--live",
    "--backup",
    "--report",
)


# --- Ways that pass -------------------------------------------------------------------


PATH = "scripts/test_backup_restore.py"
MODULE = ("-m", "unittest", "-v")


class Way(NamedTuple):
    """How the drill is started, and the tests that run, in this order."""

    arguments: tuple[str, ...]
    tests: tuple[str, ...]
    command: tuple[str, ...] = (PATH,)


CASE = "scripts.test_backup_restore.BackupRestoreTests"
WAYS = {
    "unittest": Way((PATH,), (CREATION, VALIDATION, RESTORE), MODULE),
    "unittest backwards": Way(
        tuple(f"{CASE}.{name}" for name in (RESTORE, VALIDATION, CREATION)),
        (RESTORE, VALIDATION, CREATION),
        MODULE,
    ),
    "creation alone": Way(("-v", "-k", "creation"), (CREATION,)),
    "validation alone": Way(("-v", "-f", "-k", "validation"), (VALIDATION,)),
    "restore alone": Way(("-k", "restore", "--verbose"), (RESTORE,)),
}
if importlib.util.find_spec("pytest"):  # it sorts by name, and ignores load_tests
    WAYS["pytest"] = Way(
        ("-v", "-p", "no:cacheprovider", PATH),
        (CREATION, RESTORE, VALIDATION),
        ("-m", "pytest"),
    )


@drills_ahead
class WaysThatPassTests(DrillsAhead):
    """Each test is right on its own and in any order."""

    table: ClassVar = WAYS

    @staticmethod
    def drilled(row: Way) -> tuple[Ended, list[str]]:
        """Start the drill this way."""
        with place() as here:
            over = here.run(*row.arguments, command=row.command, DATABASE_URL=url_of())
            return over, here.leftovers()

    def judge_outcome(self, row: Way, outcome: tuple[Ended, list[str]]) -> None:
        """The tests ran in order and passed; the process said so with its status."""
        over, leftovers = outcome
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(tests_in(over), list(row.tests))
        self.assertNotIn("skipped", over.said)
        self.assertEqual(leftovers, [])


def tests_in(over: Ended) -> list[str]:
    """The tests that unittest's or pytest's verbose output speaks of, in its order."""
    names = re.findall(r"^(test_backup_\w+) \(|::(\w+) PASSED", over.said, re.MULTILINE)
    return ["".join(name) for name in names]


# --- What a run says ------------------------------------------------------------------

STEP = r"^ +\d+\.\d\d s  (.+)$"
LINE = "-" * 70
QUIET = rf"""\A\.\.\.
The backup restores\. tests: set-up passed, (?:.+
)+
{LINE}
Ran 3 tests in [\d.]+s

OK
\Z"""
NOT_ATTEMPTED = "not attempted, because {} did not pass"


def drilled_with(settings: str) -> Ended:
    """A drill in a project with these settings."""
    with place() as here:
        (here.folder / "site_settings.py").write_text(f"{settings}\n")
        where = str(here.folder)
        return here.run(PYTHONPATH=where, DJANGO_SETTINGS_MODULE="site_settings")


class SayingsTests(unittest.TestCase):
    """What a drill prints, reports and returns."""

    def test_quiet(self) -> None:
        """Without --verbose there are the dots, the evidence and OK, in any folder."""
        with place() as here:
            over = here.run(folder=here.folder, DATABASE_URL=url_of())
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(over.stdout, "")
        self.assertRegex(over.stderr, QUIET)

    def test_progress(self) -> None:
        """A long act tells a terminal how far it has come, and a file nothing."""
        with place() as here:
            here.stand_in("pg_dump", "sleep 0.8", "*--file*")
            quiet = here.run(DATABASE_URL=url_of())
            primary, terminal = pty.openpty()
            shown = subprocess.run(
                [sys.executable, SCRIPT],
                env=here.environment(DATABASE_URL=url_of()),
                stderr=terminal,
                timeout=BOUND,
                check=False,
            )
            os.close(terminal)
            with open(primary, "rb") as screen:
                said = screen.read1().decode()
        self.assertRegex(quiet.stderr, QUIET)
        self.assertEqual(shown.returncode, 0, said)
        self.assertRegex(said, r"\A\x1b7 [\d,]+ bytes written\x1b\[K\x1b8")

    def test_pass(self) -> None:
        """Every step and its duration, every sentence, and the evidence in two forms."""
        over, report, summary = reported("--verbose")
        self.assertEqual(over.status, 0, over.said)
        steps = re.findall(STEP, over.stderr, re.MULTILINE)
        for expected in ("run the project's migrations", "load the backup"):
            self.assertIn(expected, steps)
        self.assertEqual(tests_in(over), list(SENTENCES))
        for sentence in SENTENCES.values():
            self.assertIn(sentence, over.stderr)
        self.assertEqual((report["version"], report["verdict"]), (1, "passed"))
        for name, sentence in SENTENCES.items():
            test = report["tests"][name.removeprefix("test_backup_")]
            self.assertEqual((test["verdict"], test["sentence"]), ("passed", sentence))
            self.assertGreater(test["seconds"], 0)
        self.assertRegex(report["sha256"], r"\A[0-9a-f]{64}\Z")
        self.assertEqual(report["server"].partition(".")[0], str(server().major))
        for fact in (report["sha256"], f"{report['bytes']:,} bytes", report["server"]):
            self.assertIn(fact, summary)
            self.assertIn(fact, over.stderr)
        self.assertIn("roles and their passwords", over.stderr)
        self.assert_table(summary, "The backup restores")

    def test_failure(self) -> None:
        """A test whose predecessor failed fails too, and says so; all is on record."""
        over, report, summary = reported(pg_dump="echo no luck >&2; exit 1")
        self.assertEqual(over.status, 1, over.said)
        self.assertRegex(over.stderr, r"(?m)^FAILED \(failures=3\)$")
        told = [
            ("pg_dump exited with 1 on database", "no luck"),
            (NOT_ATTEMPTED.format("creation"),),
            (NOT_ATTEMPTED.format("validation"),),
        ]
        for act, parts in zip(("creation", "validation", "restore"), told, strict=True):
            self.assertEqual(report["tests"][act]["verdict"], "failed")
            for part in parts:
                self.assertIn(part, report["tests"][act]["sentence"])
                self.assertIn(part, over.stderr)
        self.assertEqual(report["verdict"], "failed")
        self.assert_table(summary, "The backup is bad")

    def test_error_on_the_way(self) -> None:
        """What depends on a test that could not judge the backup cannot either."""
        full = "echo 'could not write: No space left on device' >&2; exit 1"
        over, report, _ = reported(pg_dump=full)
        self.assertEqual(over.status, 1, over.said)
        self.assertRegex(over.stderr, r"(?m)^FAILED \(errors=3\)$")
        self.assertIn("make room on the disk", report["tests"]["creation"]["sentence"])
        for act, before in (("validation", "creation"), ("restore", "validation")):
            test = report["tests"][act]
            self.assertEqual(test["verdict"], "error")
            self.assertEqual(test["sentence"], NOT_ATTEMPTED.format(before))

    def test_settings_that_leave(self) -> None:
        """Code that leaves Python without a fault has not passed."""
        over = drilled_with("raise SystemExit")
        self.assertEqual(over.status, 1, over.said)
        self.assertIn("the settings cannot be imported", over.said)

    def test_settings_that_fail(self) -> None:
        """The place is named, and not the words, which may tell a password."""
        over = drilled_with("raise RuntimeError('secret')")
        self.assertEqual(over.status, 1, over.said)
        self.assertIn("RuntimeError in", over.said)
        self.assertIn("site_settings.py, line 1", over.said)
        self.assertNotIn("secret", over.said)

    def test_no_temporary_folder(self) -> None:
        """A TMPDIR that is not there is not replaced by another."""
        with place() as here:
            over = here.run(TMPDIR=str(here.folder / "missing"))
        self.assertEqual(over.status, 1, over.said)
        self.assertIn("which cannot be written to", over.said)

    def test_no_server_needed(self) -> None:
        """--throwaway does not ask the configured server."""
        with place() as here:
            over = here.run("--throwaway", DATABASE_URL="postgresql://u@127.0.0.1:1/x")
        self.assertEqual(over.status, 0, over.said)

    def test_failfast(self) -> None:
        """-f ends the drill with the first test that fails."""
        over, report, _ = reported("-f", pg_dump="exit 1")
        self.assertEqual(over.status, 1, over.said)
        self.assertIn("Ran 1 test in", over.stderr)
        self.assertNotIn("not attempted", over.stderr)
        self.assertEqual(list(report["tests"]), ["set-up", "creation"])

    def test_error(self) -> None:
        """A drill that could not begin is on record with its sentence."""
        over, report, summary = reported(url="sqlite://:memory:")
        self.assertEqual(over.status, 1, over.said)
        self.assertEqual(report["verdict"], "error")
        self.assertIn("not PostgreSQL", report["tests"]["set-up"]["sentence"])
        self.assert_table(summary, "The backup could not be judged")

    def test_report_that_cannot_be_written(self) -> None:
        """It is an error that names the file, whatever the backup is."""
        with place() as here:
            path = str(here.folder / "missing" / "report.json")
            over = here.run("--report", path, DATABASE_URL="sqlite://:memory:")
        self.assertEqual(over.status, 1, over.said)
        self.assertIn(path, over.stderr)
        self.assertNotIn("Traceback", over.said)

    def assert_table(self, summary: str, headline: str) -> None:
        """The summary is a Markdown table under the outcome."""
        before, title, *table = summary.rstrip().splitlines()
        self.assertEqual(before, "what an earlier step wrote")
        self.assertEqual(title, f"### Backup drill: {headline}")
        self.assertEqual(table[:3], ["", "| | |", "|---|---|"])
        for line in table[3:]:
            self.assertRegex(line, r"\A\| [^|]+ \|(\\\||[^|])+\|\Z")


def reported(
    *arguments: str, pg_dump: str = "", url: str | None = None
) -> tuple[Ended, dict[str, Any], str]:
    """A drill with what it reports as JSON, and the summary that it adds to."""
    with place() as here:
        report, summary = here.folder / "report.json", here.folder / "summary.md"
        summary.write_text("what an earlier step wrote\n")
        if pg_dump:
            here.stand_in("pg_dump", pg_dump)
        over = here.run(
            "--report",
            str(report),
            *arguments,
            DATABASE_URL=url or url_of(),
            GITHUB_STEP_SUMMARY=str(summary),
        )
        return over, json.loads(report.read_text()), summary.read_text()


# --- What it does not take ------------------------------------------------------------


@drills_ahead
class RefusedArgumentsTests(DrillsAhead):
    """Arguments that make no sense end the run with status 1 and a sentence."""

    table: ClassVar = {
        "an unknown option": ("--bogus", "unrecognized arguments: --bogus"),
        "no test of this name": ("-k nothing", "no test was run"),
        "a timeout of letters": ("--timeout abc", "'abc' is no number of seconds"),
        "a timeout of nothing": ("--timeout 0", "'0' is no number of seconds from"),
        "a timeout of no time": ("--timeout 0.0001", "is no number of seconds from"),
        "the settings shown": ("--locals", "--locals would show the settings"),
        "a timeout for ever": ("--timeout inf", "'inf' is no number of seconds"),
        "a timeout that is not a number": ("--timeout nan", "'nan' is no number of"),
        "no workers": ("--jobs 0", "'0' is no number of workers above 0"),
        "another format": ("--format zip", "argument --format: invalid choice: 'zip'"),
        "two sources": ("--live --backup x", "not allowed with argument --live"),
        "a report to nowhere": ("--report", "--report: expected one argument"),
    }

    @staticmethod
    def drilled(row: tuple[str, str]) -> tuple[Ended, list[str]]:
        """Start a drill with the arguments."""
        with place() as here:
            return here.run(*row[0].split()), here.leftovers()

    def judge_outcome(
        self, row: tuple[str, str], outcome: tuple[Ended, list[str]]
    ) -> None:
        """The sentence is there, and no test was run."""
        over, leftovers = outcome
        self.assertEqual(over.status, 1, over.said)
        self.assertIn(row[1], over.stderr)
        self.assertNotIn("Traceback", over.said)
        self.assertNotIn("Ran 3", over.said)
        self.assertEqual(leftovers, [])

    def test_help(self) -> None:
        """--help speaks of every option, and of unittest's."""
        with place() as here:
            over = here.run("--help")
        self.assertEqual(over.status, 0, over.said)
        for option in (*OPTIONS, "-k", "-f"):
            self.assertIn(option, over.stdout)
