"""However the drill is started, it runs, prints and returns what it should."""

import importlib.util
import os
import pty
import re
import subprocess
import sys
from typing import NamedTuple

from aidscope.tests.support import (
    BOUND,
    DUMP,
    DUMPS,
    SCRIPT,
    Case,
    Ended,
    place,
    url,
    version,
)

CREATION, VALIDATION, RESTORE = (
    f"test_backup_{act}" for act in ("creation", "validation", "restore")
)
SENTENCES = {
    CREATION: "The source is written to a new backup.",
    VALIDATION: "The backup is whole and holds every row of every table.",
    RESTORE: "A fresh database loaded from the backup is the source again.",
}
CUTS = DUMP + 'exec truncate --size=-600 "$target"'


# --- Ways that pass -------------------------------------------------------------------

PATH = "scripts/test_backup_restore.py"
CLASS = "scripts.test_backup_restore.BackupRestoreTests"
# unittest, in a process that can import neither Django nor the project.
WITHOUT_DJANGO = """
import sys
import unittest

sys.modules |= {"django": None, "aidscope": None}
unittest.main(module=None)
"""


class Way(NamedTuple):
    """How the drill is started, and the tests that run, in this order."""

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    tests: tuple[str, ...]


WAYS = {
    "unittest": Way(("-m", "unittest"), ("-v", PATH), (CREATION, VALIDATION, RESTORE)),
    "backwards, in a process without Django": Way(
        ("-c", WITHOUT_DJANGO),
        ("-v", *(f"{CLASS}.{name}" for name in (RESTORE, VALIDATION, CREATION))),
        (RESTORE, VALIDATION, CREATION),
    ),
    "creation alone": Way((PATH,), ("-v", "-k", "creation"), (CREATION,)),
    "validation alone": Way((PATH,), ("-v", "-f", "-k", "validation"), (VALIDATION,)),
    "restore alone": Way((PATH,), ("-k", "restore", "--verbose"), (RESTORE,)),
}
if importlib.util.find_spec("pytest"):  # it sorts by name, and ignores load_tests
    WAYS["pytest"] = Way(
        ("-m", "pytest"),
        ("-v", "-p", "no:cacheprovider", PATH),
        (CREATION, RESTORE, VALIDATION),
    )


class WaysThatPassTests(Case, table=WAYS):
    """Each test is right on its own and in any order."""

    def judge(self, row: Way) -> None:
        """The tests ran in order and passed; the process said so with its status."""
        with place() as here:
            over = here.run(*row.arguments, command=row.command, url=url())
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(named_tests(over), list(row.tests))
        self.assertNotIn("skipped", over.said)


def named_tests(over: Ended) -> list[str]:
    """The tests that unittest's or pytest's verbose output speaks of, in its order."""
    names = re.findall(r"^(test_backup_\w+) \(|::(\w+) PASSED", over.said, re.MULTILINE)
    return ["".join(name) for name in names]


# --- What a run prints and reports ----------------------------------------------------

LINE = "-" * 70
QUIET = rf"""\A\.\.\.
The backup restores\. tests: set-up passed, (?:.+
)+
{LINE}
Ran 3 tests in [\d.]+s

OK
\Z"""
STEP = r"^ +\d+\.\d\d s  (.+)$"
WARNING_SETTINGS = """
import warnings

from aidscope.settings import *

warnings.warn("somebody else's", DeprecationWarning)
"""
ANNOTATION = r"(?m)^::error title=Backup drill::(.+)$"


class OutputTests(Case):
    """What a drill prints, reports and returns."""

    def test_quiet(self) -> None:
        """Without --verbose there are the dots, the evidence and OK, in any folder."""
        with place() as here:
            (here.folder / "warning_settings.py").write_text(WARNING_SETTINGS)
            here.stand_in("pg_dump", "sleep 0.8", DUMPS)  # progress is for terminals
            over = here.run(
                cwd=here.folder,
                url=url(),
                DJANGO_SETTINGS_MODULE="warning_settings",
                PYTHONPATH=str(here.folder),
            )
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(over.stdout, "")
        self.assertRegex(over.stderr, QUIET)

    def test_progress(self) -> None:
        """A terminal is shown how much is written meanwhile."""
        with place() as here:
            here.stand_in("pg_dump", "sleep 0.8", DUMPS)
            primary, terminal = pty.openpty()
            shown = subprocess.run(
                [sys.executable, SCRIPT],
                env=here.environment(DATABASE_URL=url()),
                stderr=terminal,
                timeout=BOUND,
                check=False,
            )
            os.close(terminal)
            with open(primary, "rb") as screen:
                said = screen.read1().decode()
        self.assertEqual(shown.returncode, 0, said)
        self.assertRegex(said, r"\A\x1b7 .*\d.*\x1b\[K\x1b8")

    def test_pass(self) -> None:
        """A pass shows every step, every sentence, and the evidence in three forms."""
        with place() as here:
            over = here.drill("--verbose", url=url(), GITHUB_ACTIONS="true")
        self.assert_verdict(over, "passed", "The backup restores.")
        steps = re.findall(STEP, over.stderr, re.MULTILINE)
        for expected in ("run the project's migrations", "load the backup"):
            self.assertIn(expected, steps)
        self.assertEqual(named_tests(over), list(SENTENCES))
        report = over.report
        self.assertEqual((report["version"], report["verdict"]), (1, "passed"))
        for name, sentence in SENTENCES.items():
            test = report["tests"][name.removeprefix("test_backup_")]
            self.assertEqual((test["verdict"], test["sentence"]), ("passed", sentence))
            self.assertGreater(test["seconds"], 0)
        self.assertRegex(report["sha256"], r"\A[0-9a-f]{64}\Z")
        self.assertEqual(report["server"], version())
        self.assertEqual(report["pending_migrations"], [])
        self.assertEqual(report["database"], "default")
        self.assertNotIn("database: default", over.text)  # it goes without saying
        for fact in (report["sha256"], f"{report['bytes']:,}", report["server"]):
            self.assertIn(fact, over.summary)
            self.assertIn(fact, over.text)
        for never in ("roles and their passwords", "tablespaces", "other databases"):
            self.assertIn(never, report["not_compared"])
            self.assertIn(never, over.text)
        self.assert_summary(over.summary, "The backup restores")
        self.assertNotRegex(over.said, ANNOTATION)

    def test_failure(self) -> None:
        """The first test that fails ends the drill; what was done is on record."""
        with place() as here:
            (here.folder / "summary.md").write_text("what an earlier step wrote\n")
            here.stand_in("pg_dump", CUTS, DUMPS)
            over = here.drill(url=url(), GITHUB_ACTIONS="true")
        self.assert_verdict(over, "failed")
        self.assertRegex(over.stderr, r"(?m)^FAILED \(failures=1\)$")
        tests = over.report["tests"]
        verdicts = {act: test["verdict"] for act, test in tests.items()}
        expected = {"set-up": "passed", "creation": "passed", "validation": "failed"}
        self.assertEqual(verdicts, expected)
        self.assertIn("the backup is damaged", tests["validation"]["sentence"])
        self.assertEqual(over.report["verdict"], "failed")
        earlier, _, summary = over.summary.partition("\n")
        self.assertEqual(earlier, "what an earlier step wrote")
        self.assert_summary(summary, "The backup is bad", "the backup is damaged")
        self.assertIn("the backup is damaged", re.search(ANNOTATION, over.said)[1])

    def test_error(self) -> None:
        """The first test that cannot judge the backup ends the drill."""
        with place() as here:
            here.stand_in("pg_dump", "exit 1", DUMPS)
            over = here.drill(url=url(), GITHUB_ACTIONS="true")
        self.assert_verdict(over, "error")
        self.assertRegex(over.stderr, r"(?m)^FAILED \(errors=1\)$")
        self.assertEqual(list(over.report["tests"]), ["set-up", "creation"])
        annotations = re.findall(ANNOTATION, over.said)
        self.assertRegex("|".join(annotations), "\\Apg_dump exited with 1[^|]+\\Z")

    def test_set_up_error(self) -> None:
        """A drill that could not begin is on record with its sentence."""
        with place() as here:
            words = ("--database", "100%")
            over = here.drill(*words, url="sqlite://:memory:", GITHUB_ACTIONS="true")
        self.assert_verdict(over, "error")
        self.assertEqual(over.report["verdict"], "error")
        self.assertIn("'100%'", over.report["tests"]["set-up"]["sentence"])
        self.assertIn("'100%25'", re.search(ANNOTATION, over.said)[1])
        self.assert_summary(over.summary, "The backup could not be judged", "'100%'")

    def test_failfast(self) -> None:
        """-f, which the drill uses itself, can be given too."""
        with place() as here:
            here.stand_in("pg_dump", "exit 1", DUMPS)
            over = here.drill("-f", url=url())
        self.assert_verdict(over, "error", "Ran 1 test in")
        self.assertEqual(list(over.report["tests"]), ["set-up", "creation"])

    def test_report_that_cannot_be_written(self) -> None:
        """It is an error that names the file, whatever the backup is."""
        with place() as here:
            path = str(here.folder / "missing" / "report.json")
            over = here.run("--report", path, url="sqlite://:memory:")
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, path)

    def assert_summary(self, summary: str, headline: str, why: str = "") -> None:
        """The summary is the evidence, and the sentence of what did not pass."""
        title, text, *fenced = summary.strip().split("\n\n")
        self.assertEqual(title, "### Backup drill")
        self.assertTrue(text.startswith(f"{headline}. tests: "), text)
        self.assertEqual(len(fenced), bool(why))
        for sentence in fenced:
            self.assertRegex(sentence, r"(?s)\A```\n.*\n```\Z")
            self.assertIn(why, sentence)


# --- Arguments that are refused -------------------------------------------------------

SECONDS = "no duration"
REFUSED = {
    "an unknown option": ("--bogus", "unrecognized arguments: --bogus"),
    "no test of this name": ("-k nothing", "no test was run"),
    "a timeout of letters": ("--timeout abc", f"'abc' is {SECONDS}"),
    "a timeout of nothing": ("--timeout 0", f"'0' is {SECONDS}"),
    "a timeout of no time": ("--timeout 0.0001", f"is {SECONDS}"),
    "a timeout for ever": ("--timeout inf", f"'inf' is {SECONDS}"),
    "a timeout that is not a number": ("--timeout nan", f"'nan' is {SECONDS}"),
    "local variables shown": ("--locals", "would show the settings"),
    "local variables shown, abbreviated": ("--loc", "--loc"),
    "a timeout beyond PostgreSQL's": ("--timeout 600h", "statement_timeout"),
    "no workers": ("--jobs 0", "a number of workers, above 0"),
    "another format": ("--format zip", "argument --format: invalid choice: 'zip'"),
    "two sources": ("--live --backup x", "not allowed with argument --live"),
    "a report to nowhere": ("--report", "--report: expected one argument"),
    "an age of letters": ("--backup x --max-age soon", "argument --max-age: 'soon'"),
    "an age in weeks": ("--backup x --max-age 2w", "argument --max-age: '2w'"),
    "an age below zero": ("--backup x --max-age=-1h", "argument --max-age: '-1h'"),
    "an age of no backup": ("--max-age 2d", "--max-age"),
    "a restore of letters": ("--max-restore x", "argument --max-restore: 'x'"),
}
OPTIONS = "--verbose --strict --throwaway --timeout --database --format --jobs --live "
OPTIONS += "--backup --max-age --max-restore --report -k -f"
ON_PYTHON_3_10 = f"""
import datetime
import runpy
import sys

del datetime.UTC
sys.version_info = (3, 10, 12, "final", 0)
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


class RefusedArgumentsTests(Case, table=REFUSED):
    """Arguments that make no sense end the run with status 1 and a sentence."""

    def judge(self, row: tuple[str, str]) -> None:
        """The sentence is there, and no test was run."""
        with place() as here:
            over = here.run(*row[0].split())
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, row[1])
        self.assertNotIn("Ran 3", over.said)

    def test_duration(self) -> None:
        """What is no duration is refused with an example of one."""
        with place() as here:
            over = here.run("--max-restore", "1 hour")
        self.assertEqual(over.status, 1, over.said)
        self.assertRegex(over.said, r"--max-restore: '1 hour'.* \d+[smhd]\b")

    def test_help(self) -> None:
        """--help speaks of every option, and of unittest's."""
        with place() as here:
            over = here.run("--help")
        self.assertEqual(over.status, 0, over.said)
        for option in OPTIONS.split():
            self.assertIn(option, over.stdout)

    def test_older_python(self) -> None:
        """A Python that is too old is named in a sentence."""
        with place() as here:
            over = here.run(command=("-c", ON_PYTHON_3_10))
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, "Python 3.11")
