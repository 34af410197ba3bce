"""However the drill is started, it runs, prints and returns what it should."""

import hashlib
import importlib.util
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from aidscope.tests.in_process import drilled
from aidscope.tests.support import (
    DUMP,
    DUMPS,
    NEVER_COMPARED,
    SCRIPT,
    Case,
    Ended,
    Place,
    Row,
    behind,
    database,
    originals,
    place,
    small,
    url,
    version,
)
from scripts import test_backup_restore as drill

CREATION, VALIDATION, RESTORE = (
    f"test_backup_{act}" for act in ("creation", "validation", "restore")
)
SENTENCES = {
    CREATION: "The source is written to a new backup.",
    VALIDATION: "The backup is whole and holds every row of every table.",
    RESTORE: "A fresh database loaded from the backup is the source again.",
}
LIVE = ("--live", "--no-throwaway")
VERSION = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()[:12]
CUTS = DUMP + 'exec truncate --size=-600 "$target"'


# --- Ways that pass -------------------------------------------------------------------


@dataclass(frozen=True)
class Way(Row):
    """How the drill is started, and the tests that run, in this order."""

    command: tuple[str, ...]
    tests: tuple[str, ...] = (CREATION, VALIDATION, RESTORE)


PATH = "scripts/test_backup_restore.py"
CLASS = "scripts.test_backup_restore.BackupRestoreTests"
# unittest, in a process that can import neither Django nor the project.
WITHOUT_DJANGO = """
import signal
import sys
import unittest

sys.modules |= {"django": None, "aidscope": None}
before = signal.getsignal(signal.SIGINT)
over = unittest.main(module=None, exit=False)
if signal.getsignal(signal.SIGINT) is not before:
    raise SystemExit("the tests that follow are deaf to Ctrl-C")
raise SystemExit(not over.result.wasSuccessful())
"""
WAYS = (
    Way("unittest", ("-m", "unittest", "-v", PATH)),
    Way(
        "backwards, in a process without Django",
        (
            *("-c", WITHOUT_DJANGO, "-v"),
            *(f"{CLASS}.{name}" for name in (RESTORE, VALIDATION, CREATION)),
        ),
        (RESTORE, VALIDATION, CREATION),
    ),
    Way(
        "restore alone, without assertions and docstrings",
        ("-OO", PATH, "--verbose", "-k", "restore"),
        (RESTORE,),
    ),
)
if importlib.util.find_spec("pytest"):  # it sorts by name, and ignores load_tests
    WAYS += (
        Way(
            "pytest",
            ("-m", "pytest", "-v", "-p", "no:cacheprovider", PATH),
            (CREATION, RESTORE, VALIDATION),
        ),
    )


class PassingWaysTests(Case, table=WAYS):
    """Each test is right in any order, and options can come by the environment."""

    def judge(self, row: Way) -> None:
        """The tests ran in order and passed, by the options that were given."""
        with place() as here:
            given = f"--live --no-throwaway --report '{here.report}'"
            how = {"url": url(small()), "BACKUP_DRILL_OPTIONS": given}
            over = here.run(command=row.command, **how)
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(named_tests(over), list(row.tests))
        self.assert_facts(over, verdict="passed", source="the configured database")
        passed = [act for act in over.acts if over.acts[act] == "passed"]
        acts = {name.removeprefix("test_backup_") for name in row.tests}
        self.assertEqual({*passed}, {"set-up", *acts})

    def test_option_that_unittest_would_pass_by(self) -> None:
        """What BACKUP_DRILL_OPTIONS spells wrongly is an error in every way in."""
        given = {"BACKUP_DRILL_OPTIONS": "--bakup last.dump"}
        with place() as here:
            over = here.run(command=("-m", "unittest", PATH), **given)
        self.assertNotEqual(over.status, 0, over.said)  # 5 by new versions
        self.assert_said(over, "BACKUP_DRILL_OPTIONS: not known: --bakup last.dump")

    def test_options_that_ask_for_no_drill(self) -> None:
        """No way in takes them for a drill that has passed."""
        with place() as here:
            given = {"BACKUP_DRILL_OPTIONS": "--help"}
            over = here.run(command=("-m", "unittest", PATH), **given)
        self.assertNotEqual(over.status, 0, over.said)  # 5 by new versions
        self.assert_said(over, "BACKUP_DRILL_OPTIONS asks for no drill")


@dataclass(frozen=True)
class Alone(Row):
    """Arguments of a drill, and the one test that runs."""

    arguments: tuple[str, ...]
    test: str


ALONE = (
    Alone("creation alone", ("-v", "-k", "creation"), CREATION),
    Alone("validation alone", ("-v", "-f", "-k", "validation"), VALIDATION),
)


class AloneTests(Case, table=ALONE):
    """Each test is right on its own."""

    def judge(self, row: Alone) -> None:
        """It ran and passed; only a restore would say that the backup restores."""
        with place() as here:
            over = drilled(here, *row.arguments)
        self.assert_verdict(over, "passed", "The backup was not restored yet.")
        self.assertEqual(named_tests(over), [row.test])

    def test_arguments_win(self) -> None:
        """An option on the command line wins over the environment."""
        given = {"BACKUP_DRILL_OPTIONS": "--format custom --jobs 2"}
        with place() as here:
            words = (*LIVE, "-k", "creation", "--format", "plain")
            over = drilled(here, *words, database=small(), **given)
        self.assert_verdict(over, "passed")
        self.assert_facts(over, format="plain")


def named_tests(over: Ended) -> list[str]:
    """The tests that unittest's or pytest's verbose output speaks of, in its order."""
    names = re.findall(r"(?m)^(test_backup_\w+) \(|::(\w+) PASSED", over.said)
    return ["".join(name) for name in names]


# --- Streams --------------------------------------------------------------------------


class StreamTests(Case):
    """A drill does its work, whether or not anybody can read what it prints."""

    def test_closed(self) -> None:
        """Without stdin, stdout and stderr the report tells the verdict."""
        prelude = "[os.close(stream) for stream in (0, 1, 2)]"
        with place() as here:
            over = self.drilled_behind(prelude, here)
        self.assertEqual((over.status, over.said), (0, ""))
        self.assertEqual(over.report["verdict"], "passed")

    def test_closed_and_bad(self) -> None:
        """The exit status alone tells that a backup is bad."""
        cut = (originals() / "plain").read_bytes()[:-600]
        with place() as here:
            over = self.drilled_behind("os.close(1); os.close(2)", here, cut)
        self.assertEqual((over.status, over.said), (1, ""))
        self.assertEqual(over.report["verdict"], "failed")

    def test_no_reader(self) -> None:
        """Where nobody reads any more, the report tells the verdict."""
        prelude = "unread, pipe = os.pipe(); os.close(unread); os.dup2(pipe, 2)"
        with place() as here:
            over = self.drilled_behind(prelude, here)
        self.assertEqual(over.report.get("verdict"), "passed")

    def test_ascii(self) -> None:
        """Names that a stream has no letters for are printed nevertheless."""
        with place() as here, database("CREATE TABLE kept ()", name="größe") as name:
            words = ("--backup", str(here.folder / "größe"))
            how = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
            over = here.drill(*words, url=url(name), **how)
        self.assert_verdict(over, "error", "No such file", r"gr\xf6\xdfe")

    def drilled_behind(self, prelude: str, here: Place, content: bytes = b"") -> Ended:
        """A drill whose process has done something to its streams before."""
        here.backup.write_bytes(content or (originals() / "plain").read_bytes())
        words = ("--backup", str(here.backup), "--no-throwaway", "-k", "validation")
        return here.drill(*words, url=url(), command=behind(prelude))


# --- What a run prints and reports ----------------------------------------------------

LINE = "-" * 70
QUIET = rf"""\A\.\.\.
The backup restores\.
(?:    [a-z ]{{13}} \S.+
)+
{LINE}
Ran 3 tests in [\d.]+s

OK
\Z"""
FACT_NAME = r"(?m)^  (\w+) "
STEP = r"(?m)^ +\d+\.\d\d s  (.+)$"
STEPS = [
    "import the settings",
    "ask the server",
    "run the project's migrations",
    "load the sample",
    "write the backup",
    "read the backup",
    "load the backup",
    "read the restored database",
    "use the restored database",
]
WARNING_SETTINGS = """
import warnings

from aidscope.settings import *

warnings.warn("somebody else's", DeprecationWarning)
print("somebody else's")
"""
ANNOTATION = r"(?m)^::error title=Backup drill::(.+)$"


class OutputTests(Case):
    """What a drill prints, reports and returns."""

    def test_quiet(self) -> None:
        """Without --verbose there are the dots, the evidence and OK, in any folder."""
        with place() as here:
            (here.folder / "warning_settings.py").write_text(WARNING_SETTINGS)
            over = here.run(
                *LIVE,
                cwd=here.folder,
                url=url(small()),
                DJANGO_SETTINGS_MODULE="warning_settings",
                PYTHONPATH=str(here.folder),
            )
        self.assertEqual((over.status, over.stdout), (0, ""))
        self.assertRegex(over.stderr, QUIET)

    def test_pass(self) -> None:
        """A pass shows every step, every sentence, and the evidence in three forms."""
        with place() as here:
            over = here.drill("--verbose", url=url(), GITHUB_ACTIONS="true")
        self.assert_verdict(over, "passed", *SENTENCES.values())
        steps = re.findall(STEP, over.stderr)
        self.assertEqual([step for step in steps if step in STEPS], STEPS)
        report = over.report
        self.assertEqual([*report], re.findall(FACT_NAME, drill.FACTS))
        self.assertEqual(over.acts, dict.fromkeys(drill.ACTS, "passed"))
        self.assertGreater(report["acts"]["restore"]["seconds"], 0)
        self.assert_facts(
            over,
            version=2,
            verdict="passed",
            source="a rehearsal",
            database="default",
            format="plain",
            backup_written=None,
            server=version(),
            server_is="the one of the settings",
            pending_migrations=[],
        )
        self.assertEqual(report["drill"], VERSION)
        self.assertRegex(report["sha256"], r"\A[0-9a-f]{64}\Z")
        shown = [report["sha256"], f"{report['bytes']:,}", version(), *NEVER_COMPARED]
        for fact in shown:
            self.assertIn(fact, over.summary)
            self.assertIn(fact, over.stderr)
        self.assertLessEqual(NEVER_COMPARED, {*over.not_compared})
        self.assert_summary(over.summary, "The backup restores.")
        self.assertNotRegex(over.said, ANNOTATION)

    def test_failure(self) -> None:
        """The first test that fails ends the drill; what was done is on record."""
        with place() as here:
            here.summary.write_text("what an earlier step wrote\n")
            here.stand_in("pg_dump", CUTS, DUMPS)
            over = drilled(here, *LIVE, database=small(), GITHUB_ACTIONS="true")
        self.assert_verdict(over, "failed")
        self.assertRegex(over.stderr, r"(?m)^FAILED \(failures=1\)$")
        verdicts = ["passed", "passed", "failed", "not run"]
        self.assertEqual([*over.acts.values()], verdicts)
        self.assertEqual(over.report["verdict"], "failed")
        sentence = over.report["acts"]["validation"]["sentence"]
        self.assertIn("the backup is damaged\n", sentence)
        earlier, _, summary = over.summary.partition("\n")
        self.assertEqual(earlier, "what an earlier step wrote")
        self.assert_summary(summary, "The backup is bad.", sentence)
        self.assertEqual(re.findall(ANNOTATION, over.stdout), ["the backup is damaged"])

    def test_error(self) -> None:
        """The first test that cannot judge ends the drill, also where -f is given."""
        with place() as here:
            here.stand_in("pg_dump", "exit 1", DUMPS)
            how = {"database": small(), "GITHUB_ACTIONS": "true"}
            over = drilled(here, *LIVE, "-f", **how)
        self.assert_verdict(over, "error", "Ran 1 test in")
        self.assertRegex(over.stderr, r"(?m)^FAILED \(errors=1\)$")
        verdicts = ["passed", "error", "not run", "not run"]
        self.assertEqual([*over.acts.values()], verdicts)
        annotations = re.findall(ANNOTATION, over.stdout)
        self.assertEqual(annotations, ["pg_dump exited with 1"])

    def test_set_up_error(self) -> None:
        """A drill that could not begin is on record with its sentence."""
        with place() as here:
            over = here.drill("--database", "100%", GITHUB_ACTIONS="true")
        self.assert_verdict(over, "error", act="set-up")
        self.assert_facts(over, verdict="error", server=None, sha256=None)
        sentence = over.report["acts"]["set-up"]["sentence"]
        self.assertIn("'100%'", sentence)
        self.assertIn("'100%25'", re.search(ANNOTATION, over.stdout)[1])
        self.assert_summary(over.summary, "The backup could not be judged.", sentence)

    def test_report_that_cannot_be_written(self) -> None:
        """It is an error that names the file, though the backup restores."""
        with place() as here:
            path = str(here.folder / "missing" / "report.json")
            words = (*LIVE, "-k", "creation", "--report", path)
            over = drilled(here, *words, database=small())
        self.assertEqual(over.status, 1, over.said)
        headline = "The backup was not restored yet."
        self.assert_said(over, headline, "the evidence cannot be written", path)

    def test_report_to_nobody(self) -> None:
        """A pipe without a reader is not waited for."""
        with place() as here:
            path = here.folder / "pipe"
            os.mkfifo(path)
            words = (*LIVE, "-k", "creation", "--report", str(path))
            over = drilled(here, *words, database=small())
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, "the evidence cannot be written", str(path))

    def test_report_by_another_name_of_the_backup(self) -> None:
        """It is not written over the backup."""
        with place() as here:
            here.backup.write_text("a backup")
            path = here.folder / "link"
            path.hardlink_to(here.backup)
            over = drilled(here, "--backup", str(here.backup), "--report", str(path))
            self.assertEqual(here.backup.read_text(), "a backup")
        self.assert_said(over, "that is the backup, which is only read")

    def test_folder_that_is_gone(self) -> None:
        """A path that begins there is refused."""
        with place() as here:
            gone = here.folder / "gone"
            gone.mkdir()
            prelude = f"os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})"
            over = here.run("--backup", "x.dump", command=behind(prelude))
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, "this folder is gone")

    def test_odd_name_in_a_job(self) -> None:
        """A name that is no text ends in no traceback in GitHub's job, either."""
        with place() as here:
            path = os.fsdecode(os.fsencode(here.folder) + b"/b\xff")
            Path(path).write_text("x")
            how = {"GITHUB_ACTIONS": "true", "PYTHONIOENCODING": "utf-8:strict"}
            over = here.run("--backup", path, **how)
        self.assert_said(over, "is not a backup by pg_dump", "::error title=")

    def assert_summary(self, summary: str, headline: str, why: str = "") -> None:
        """The summary is the evidence as tables, and why the backup did not pass."""
        title, text, *fenced, acts, facts = summary.strip().split("\n\n")
        self.assertEqual((title, text), ("### Backup drill", f"**{headline}**"))
        self.assertEqual(fenced, [f"```\n{why}\n```"] if why else [])
        for row in acts.splitlines():
            self.assertRegex(row, r"\A\|[^|]+\|[^|]+\|[^|]+\|\Z")
        for row in facts.splitlines():
            self.assertRegex(row, r"\A\|[^|]+\|[^|]+\|\Z")


# --- Arguments that are refused -------------------------------------------------------


@dataclass(frozen=True)
class Refused(Row):
    """Arguments that make no sense, and what is said."""

    arguments: str
    says: str


REFUSED = (
    Refused("an unknown option", "--bogus", "unrecognized arguments: --bogus"),
    Refused("no test of this name", "-k nothing", "no test was run"),
    Refused("a timeout of letters", "--timeout abc", "'abc' is no duration such as"),
    Refused("a timeout in words", "--timeout 1hour", "'1hour' is no duration such as"),
    Refused("a timeout of nothing", "--timeout 0", "'0' is no duration"),
    Refused("a timeout of no time", "--timeout 0.0001", "is no duration"),
    Refused("a timeout for ever", "--timeout inf", "'inf' is no duration"),
    Refused("a timeout that is not a number", "--timeout nan", "'nan' is no duration"),
    Refused("a timeout of three centuries", "--timeout 99999d", "is no duration"),
    Refused("local variables shown", "--locals", "would show the settings"),
    Refused("local variables shown, abbreviated", "--loc", "would show the settings"),
    Refused("a file without its option", str(SCRIPT), "a file is given by --backup"),
    Refused("no workers", "--jobs 0", "a number of workers, above 0"),
    Refused("another format", "--format zip", "--format: invalid choice: 'zip'"),
    Refused("two sources", "--live --backup x", "not allowed: --live and --backup"),
    Refused("a report to nowhere", "--report", "--report: expected one argument"),
    Refused("an age in weeks", "--backup x --max-age 2w", "argument --max-age: '2w'"),
    Refused("an age below zero", "--backup x --max-age=-1h", "--max-age: '-1h'"),
    Refused("an age of no backup", "--max-age 2d", "--max-age are about a --backup"),
    Refused("a restore of letters", "--max-restore x", "argument --max-restore: 'x'"),
    Refused(
        "a backup command for what exists",
        "--backup x --backup-command true",
        "--backup-command: the --backup exists",
    ),
    Refused(
        "a restore command on the server of the settings",
        "--restore-command true --no-throwaway",
        "--restore-command works on a private server alone",
    ),
    Refused("nothing to decrypt", "--decrypt true", "are about a --backup"),
    # As where a variable of a workflow's is not set:
    Refused("no commands", "--backup-command '' --restore-command ''", "-command"),
    Refused("a quote that nothing closes", '--live --manage "\'"', "--manage"),
    Refused("no check", "--live --check ' '", "--check: it is empty"),
    Refused("an abbreviation", "--timeo 5", "unrecognized arguments: --timeo"),
)
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

    def judge(self, row: Refused) -> None:
        """The sentence is there, and no test was run."""
        with place() as here:
            over = drilled(here, *shlex.split(row.arguments))
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, row.says)
        self.assertNotIn("Ran 3", over.said)
        self.assertNotIn("a fault of the drill's own", over.said)

    def test_environment(self) -> None:
        """Options of the environment are judged like those of the command line."""
        with place() as here:
            over = drilled(here, BACKUP_DRILL_OPTIONS="--bogus --locals")
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, "--locals would show the settings")

    def test_help(self) -> None:
        """--help works on any machine with Python, and speaks of every option."""
        with place() as here:
            over = here.run("--help", command=("-S", str(SCRIPT)))
        self.assertEqual((over.status, over.stderr), (0, ""))
        options = {f"--{name.replace('_', '-')}" for name in vars(drill.parsed([])[0])}
        options -= {"--rehearsal", "--private"}  # which follow from others
        for words in (*options, "-k restore", "BACKUP_DRILL_OPTIONS", "or was skipped"):
            self.assertIn(words, over.stdout)

    def test_version(self) -> None:
        """--version tells which copy of the drill this is, on any machine, too."""
        with place() as here:
            over = here.run("--version", command=("-S", str(SCRIPT)))
        self.assertEqual((over.status, over.said), (0, f"{VERSION}\n"))

    def test_older_python(self) -> None:
        """A Python that is too old is named in a sentence."""
        with place() as here:
            over = here.run(command=("-c", ON_PYTHON_3_10))
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, "Python 3.11")

    def test_map(self) -> None:
        """Every name to which a reader is sent is there."""
        *_, places = drill.__doc__.partition("begin here:")
        names = re.findall(r"\b[A-Z_]{4,}\b|\b[A-Za-z]+\.\w+|\b\w+_\w+\b", places)
        self.assertGreater(len(names), 20)
        for name in names:
            found = drill
            for part in name.split("."):
                self.assertTrue(hasattr(found, part), name)
                found = getattr(found, part)
