"""Programs that are missing, of another version, or do not do their work.

Each row puts programs of its own before the real ones, and runs the drill as a process:
its exit status and its sentences are given, no process of it is left, and no database.
"""

import os
import shlex
import unittest
from pathlib import Path
from typing import NamedTuple

from aidscope.tests import server as suite
from aidscope.tests.running import Place, place, url_of

# The usual folders of this machine hold nothing, or only what a row wants there.
DRILL = """
import sys
from scripts import test_backup_restore as drill
from scripts.test_backup_restore import *
drill.PROGRAM_FOLDERS = {folders!r}
raise SystemExit(drill.main(sys.argv))
"""


# --- What a program is, and does ------------------------------------------------------

# In the words of the shell, when it is asked for more than its version: {real} is the
# real program.
WORKS = 'exec {real} "$@"'
HANGS = "sleep 600 & wait"
FAILS = "echo 'pg_dump: error: it rains' >&2; exit 3"
DISK_IS_FULL = "echo 'pg_dump: error: write: No space left on device' >&2; exit 1"
IS_KILLED = "kill -9 $$"
IS_IDLE = "exit 0"
GRUMBLES = 'echo "pg_dump: warning: it rains" >&2; exec {real} "$@"'
# pg_dump is told its target by --file TARGET.
WITH_TARGET = """
for word in "$@"
do
    test "$before" = --file && target=$word
    before=$word
done
{real} "$@" || exit
test "$target" || exit 0
"""
CUTS = WITH_TARGET + 'head -n 400 "$target" > "$target.cut"; mv "$target.cut" "$target"'
EMPTIES = WITH_TARGET + ': > "$target"'
IS_AHEAD = WITH_TARGET + (
    'sed \'1,/^SET /s/^SET /SET shape = 1; &/\' "$target" > "$target.new"\n'
    'mv "$target.new" "$target"'
)
# psql is told last what to run, a file or -: here it reads all but the larger half.
LOADS_HALF = r"""
left=$#
for word in "$@"
do
    shift
    left=$((left - 1))
    if test $left = 0 && test "$word" != -
    then
        exec < "$word"
        word=-
    fi
    set -- "$@" "$word"
done
sed '/^COPY backup_drill.item (id, /,$d' | {real} "$@" || exit
"""
FAILS_HALF_WAY = LOADS_HALF + "echo 'it rains' >&2; exit 3"


class Program(NamedTuple):
    """A program on PATH: the version that it says it has, and what it does."""

    name: str
    behaviour: str = WORKS
    version: str = "{version}"


def all_three(version: str) -> list[Program]:
    """Programs that work, in this version."""
    names = ("pg_dump", "psql", "pg_restore")
    return [Program(name, version=version) for name in names]


OLDER, NEWER = all_three("{older}"), all_three("{newer}")
THE_SERVERS = "pg_dump {version}, psql {version}, pg_restore {version}"
ONE_TEST = ("--strict", "-k", "backup_creation")  # shows which programs are chosen


# --- What the drill makes of them -----------------------------------------------------


class Row(NamedTuple):
    """What stands on PATH, how the drill is called, how it ends, what it says."""

    programs: list[Program]
    status: int
    sentences: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    usual: bool = False  # whether the real programs are in the usual folders


def row(
    programs: list[Program],
    status: int,
    *sentences: str,
    arguments: tuple[str, ...] = (),
    usual: bool = False,
) -> Row:
    """A row of either table."""
    return Row(programs, status, sentences, arguments, usual)


def does(
    program: str, behaviour: str, status: int, *sentences: str, **how: tuple
) -> Row:
    """A row on a program of the right version that behaves like this."""
    return row([Program(program, behaviour)], status, *sentences, usual=True, **how)


VERSIONS = {
    "missing": row(
        [],
        0,
        "the backup drill is skipped: no PostgreSQL programs: "
        "neither on PATH nor in the usual folders",
        "apt-get install postgresql-client",
    ),
    "missing with --strict": row(
        [],
        1,
        "ERROR: ",
        "no PostgreSQL programs: neither on PATH nor in the usual folders",
        arguments=("--strict",),
    ),
    "psql alone is missing": row(
        [Program("pg_dump"), Program("pg_restore")],
        1,
        "psql {major} is needed for server {version}, found: none",
    ),
    "only older": row(
        OLDER,
        1,
        "pg_dump {major} is needed for server {version}, found: pg_dump {older}",
        "apt-get install postgresql-client-{major}",
    ),
    "only newer": row(
        NEWER,
        0,
        "server {version} is used with newer programs: "
        "pg_dump {newer}, psql {newer}, pg_restore {newer}",
    ),
    "only newer with --strict": row(
        NEWER,
        1,
        "pg_dump {major} is needed for server {version}, found: pg_dump {newer}",
        arguments=("--strict",),
    ),
    "a newer one writes what the server does not know": row(
        [Program("pg_dump", IS_AHEAD, "{newer}"), *NEWER[1:]],
        1,
        'unrecognized configuration parameter "shape"',
        "a newer pg_dump wrote it: use the programs of the server's own version",
    ),
    "newer on PATH": row(NEWER, 0, THE_SERVERS, arguments=ONE_TEST, usual=True),
    "older on PATH": row(OLDER, 0, THE_SERVERS, arguments=ONE_TEST, usual=True),
    "of no version": row(
        [Program("pg_dump", version="unknown")],
        1,
        "pg_dump does not tell its version",
        usual=True,
    ),
}

BEHAVIOURS = {
    "pg_dump hangs": does(
        "pg_dump",
        HANGS,
        1,
        "ERROR: test_backup_creation",
        "pg_dump did not end within 3 s, and was killed",
        "allow more time with --timeout SECONDS",
        arguments=("--timeout", "3"),
    ),
    "psql hangs": does(
        "psql",
        HANGS,
        1,
        "ERROR: test_backup_restore",
        "psql did not end within 3 s, and was killed",
        arguments=("--timeout", "3"),
    ),
    "pg_dump fails": does(
        "pg_dump",
        FAILS,
        1,
        "FAIL: test_backup_creation",
        'pg_dump exited with 3 on database "backup_drill_',
        "pg_dump: error: it rains",
        "not attempted, because creation did not pass",
    ),
    "pg_dump finds no room": does(
        "pg_dump",
        DISK_IS_FULL,
        1,
        "ERROR: test_backup_creation",
        "pg_dump: error: write: No space left on device",
        "make room on the disk",
    ),
    "pg_dump is killed": does(
        "pg_dump",
        IS_KILLED,
        1,
        "FAIL: test_backup_creation",
        "pg_dump was killed by signal 9 on",
    ),
    "pg_dump ends well and writes nothing": does(
        "pg_dump",
        IS_IDLE,
        1,
        "FAIL: test_backup_creation",
        "pg_dump ended well, and wrote no backup",
    ),
    "pg_dump ends well and its file is empty": does(
        "pg_dump",
        EMPTIES,
        1,
        "FAIL: test_backup_creation",
        "the backup is too small to hold its source",
        "found 0 bytes, expected 1024 or more",
    ),
    "pg_dump ends well and its file is cut": does(
        "pg_dump",
        CUTS,
        1,
        "FAIL: test_backup_validation",
        "the backup is damaged",
        "no closing line",
    ),
    "pg_dump warns": does(
        "pg_dump",
        GRUMBLES,
        0,
        "pg_dump says: pg_dump: warning: it rains",
        arguments=ONE_TEST,
    ),
    "psql fails half way": does(
        "psql",
        FAILS_HALF_WAY,
        1,
        "FAIL: test_backup_restore",
        'psql exited with 3 on database "backup_drill_',
        "it rains",
    ),
    "psql ends well and loads nothing": does(
        "psql",
        IS_IDLE,
        1,
        "FAIL: test_backup_restore",
        "the restored database differs from its source",
        ": missing",
    ),
    "psql ends well and loads half": does(
        "psql",
        LOADS_HALF,
        1,
        "FAIL: test_backup_restore",
        "the restored database differs from its source",
        "index public.aidscope_case_pkey: missing",
    ),
}


def facts() -> dict[str, str]:
    """The versions that the rows speak of."""
    major = suite.server().major
    return {
        "version": suite.server().programs["pg_dump"].version,
        "major": str(major),
        "older": f"{major - 1}.3",
        "newer": f"{major + 1}.3",
    }


def real_folder() -> Path:
    """Where the programs of the suite's server are."""
    return suite.server().programs["pg_dump"].path.parent


def put(here: Place, program: Program) -> None:
    """Put the program on PATH."""
    words = facts() | {"real": shlex.quote(str(real_folder() / program.name))}
    said = f"{program.name} (PostgreSQL) {program.version.format(**words)}"
    path = here.folder / "bin" / program.name
    path.write_text(
        f"#!/bin/sh\n"
        f"PATH=/usr/bin:/bin\n"
        f'test "$*" = --version && echo {shlex.quote(said)} && exit\n'
        f"{program.behaviour.format(**words)}\n"
    )
    path.chmod(0o755)


class Drilled(unittest.TestCase):
    """What the tables ask."""

    def judge(self, *cells: object) -> None:
        """The drill ends and speaks as the row has it, and leaves nothing."""
        with place() as here:
            self.assert_drilled(here, Row(*cells))

    def assert_drilled(self, here: Place, row: Row, *behind: Path) -> None:
        """So it does here, with these folders behind on PATH."""
        for program in row.programs:
            put(here, program)
        folders = (str(real_folder().relative_to("/")),) if row.usual else ()
        ended = here.run(
            *row.arguments,
            command=("-c", DRILL.format(folders=folders)),
            DATABASE_URL=url_of(),
            PATH=os.pathsep.join(map(str, [here.folder / "bin", *behind])),
        )
        self.assertEqual(ended.status, row.status, ended.said)
        said = " ".join(ended.said.split())  # the evidence is folded
        for sentence in row.sentences:
            self.assertIn(sentence.format(**facts()), said)
        self.assertNotIn("Traceback", ended.said)
        self.assertEqual(here.leftovers(), [])


@suite.table_of_tests(VERSIONS)
class VersionTests(Drilled):
    """The programs fit the server, or the drill says what is needed."""


@suite.table_of_tests(BEHAVIOURS)
class BehaviourTests(Drilled):
    """A program that does not do its work does not pass for one that does."""


class PathTests(Drilled):
    """The first on PATH is not always the right one."""

    def test_wrapper_in_front(self) -> None:
        """Debian's wrapper, which runs the newest version, is passed by."""
        with place() as here:
            called = here.folder / "called"
            wrapper = here.folder / "bin" / "pg_wrapper"
            wrapper.write_text(f"#!/bin/sh\necho $0 >> {shlex.quote(str(called))}\n")
            wrapper.chmod(0o755)
            for program in ("pg_dump", "psql", "pg_restore"):
                (here.folder / "bin" / program).symlink_to(wrapper)
            found = row([], 0, THE_SERVERS, arguments=ONE_TEST, usual=True)
            self.assert_drilled(here, found)
            self.assertFalse(called.exists())

    def test_right_ones_behind(self) -> None:
        """The right ones are found on PATH behind older ones."""
        with place() as here:
            found = row(OLDER, 0, THE_SERVERS, arguments=ONE_TEST)
            self.assert_drilled(here, found, real_folder())
