#!/usr/bin/env python3
"""Prove that this Django project's PostgreSQL backup restores.

    test_backup_creation    a source database is written to a backup
    test_backup_validation  the backup is whole, and holds every row
    test_backup_restore     a database loaded from it equals the source

The source is a rehearsal, made for this run: the project's migrations and a
sample of awkward values. With --live it is the configured database, which is
only read. With --backup FILE the backup exists already, and is compared with
what it says itself. The team's own commands can take the place of pg_dump and
of psql.

PostgreSQL's own programs tell what a database holds, in two ways: pg_dump
writes its definitions, psql reads its facts. PostgreSQL rewrites some
definitions when they are restored for the first time. So the source's
definitions are also restored alone, without rows, into a reference, and the
restored database must have the definitions of that.

    server      a database through which others are made: where, as whom
    scratch     made by this run, carries its mark, is dropped by it
    private     a server that this run starts and stops (--throwaway)
    source      the database that is backed up
    backup      the file or folder that holds it
    entry       what pg_dump writes about one object, under a comment
    reading     what one pass over a backup, as SQL, finds in it
    restored    the scratch database loaded from the backup
    reference   the scratch database with the source's definitions, no rows
    fact        a thing and a text about it: table public.film: 1000 rows
    contents    the facts and the definitions of a database
    difference  a fact that one of two databases lacks
    act         set-up, creation, validation, restore; each has a verdict
    evidence    what a run has found, as it is printed and reported

A failure (BackupIsBad) says that the backup is bad; an error (NotJudged) says
that it could not be judged, and what to do.

First come the tests; then what a pass rests on: programs, verdicts, databases,
contents, differences; then how it is done: reading a backup, the source, a
backup that exists, validation, restore, the project, own commands, servers,
hints, the evidence, the command line. If you have one question, begin here:

    what is dropped, and nothing else   SCRATCH_NAME, DROPPABLE, drop_databases
    what happens at a signal or a kill  interrupt, Run.started, GUARD, guarded;
                                        who cleans up: main, scratch_work
    how long a program may take         Run.started, Deadline, Program.wait
    which errors blame the backup       BLAMED_ALWAYS, blamed_causes,
                                        verdict_on_load; of own commands:
                                        verdict_on_command, load_by_command
    what is taken for a secret          SECRET, secrets_in, definitions_in
    why no password is printed          Run.redacted, by ProgramFailed,
                                        unaccepted, verdict_on_project; described
    why none is an argument             named_database, Database.started,
                                        Project.request
    why no row is shown                 Report.sentence, verdict_on_load, WARNING,
                                        SALT, SHOWN_WITH_ROWS, SHOWN; but
                                        --verbose shows what the team's and the
                                        project's code prints
    what of a row is compared           ROWS
    what of a definition is compared    definitions_in, differences_between
    why a definition may be rewritten   Drill.loaded, Drill.compare
    what a file is compared with        problems_of_source, expected_of_source;
                                        of one that exists: told_facts,
                                        expected_of_existing
    what checks the checks              CHANGED_ROWS, require_differences_seen,
                                        require_damage_seen
    what counts as data in a file       TELLING, Reading.take,
                                        Reading.take_block, Reading.take_insert
    where data have lost their end      END_OF_DATA, Reading.take_block,
                                        Reading.check_rows, Reading.finish_tables
    what is only text in a file         Reading.end_texts, opened_in
    what is never loaded                Reading.note, Reading.begin,
                                        without_left_out, loading,
                                        require_loadable
    what files are taken for            KNOWN_FORMATS, readable_backup
    what the project's code can reach   run_on_scratch_database,
                                        refuse_other_connections: of databases,
                                        that one; nothing else is fenced
    what own commands are given         command_environment
    how own commands end                run_command, verdict_on_command
    what a pass does not prove          NEVER_COMPARED, not_compared
"""

import signal
import sys

if __name__ == "__main__":
    # Until the drill handles it, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.version_info < (3, 11):  # noqa: UP036  a sentence for those who have less
    raise SystemExit("the backup drill needs Python 3.11 or later")

import argparse
import atexit
import codecs
import hashlib
import io
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import tarfile
import tempfile
import textwrap
import time
import traceback
import unittest
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise
from os import environ
from pathlib import Path
from signal import SIG_IGN
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from threading import Timer
from time import monotonic
from typing import IO, Any, NamedTuple, NoReturn
from urllib.parse import quote, urlencode

__unittest = True  # unittest then shows our sentences without our frames
log = logging.getLogger("backup_drill")
Options = argparse.Namespace  # of the command line, see the last section
StringDict = dict[str, str]
Evidence = dict[str, Any]  # see FACTS
Things = AbstractSet[str]
Fact = tuple[str, str]  # a thing, and a text about it
Command = tuple[str, ...]
File = IO[bytes]
Context = AbstractContextManager[Any]
MARK = "backup_drill_"  # our databases' and folders' names begin with it
FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent  # of the project
if (FOLDER / "manage.py").is_file():
    ROOT = FOLDER


class Verdict(Exception):
    """Why a backup does not pass. The arguments are lines."""

    def __str__(self) -> str:
        return "\n  ".join(str(line) for line in self.args if line)


class BackupIsBad(Verdict, AssertionError):
    """The backup was judged and is bad: unittest calls this a failure."""


class NotJudged(Verdict):
    """The backup could not be judged: unittest calls this an error."""


class NotReadable(NotJudged):
    """The file was not written by pg_dump, or is packed or encrypted."""


# --- The story ---------------------------------------------------------------
# In: the options. Out: a verdict on each act. Promised: a pass means that the
# backup was read whole, was loaded, and brought back what it should.


class BackupRestoreTests(unittest.TestCase):
    """A backup is made, is whole, brings everything back. Each test can run alone."""

    options: Options | None = None  # None: unittest or pytest was called
    drill: "Drill"

    @classmethod
    def setUpClass(cls) -> None:
        atexit.register(cls.doClassCleanups)  # as unittest does not at Ctrl-C
        cls.enterClassContext(interruptible())
        cls.drill = Drill(cls.options or given_options(), cls.enterClassContext)
        # Cleanups run in reverse order: the evidence is published last.
        cls.addClassCleanup(publish, cls.drill.evidence, cls.drill.options)
        judge(cls.drill.evidence, "set-up", cls.drill.set_up)

    def test_backup_creation(self) -> None:
        """The source is written to a new backup."""
        judge(self.drill.evidence, "creation", lambda: self.drill.backup)

    def test_backup_validation(self) -> None:
        """The backup is whole and holds every row of every table."""
        judge(self.drill.evidence, "validation", lambda: self.drill.reading)

    def test_backup_restore(self) -> None:
        """A fresh database loaded from the backup is the source again."""
        judge(self.drill.evidence, "restore", self.drill.restore)


def load_tests(loader: unittest.TestLoader, *_: object) -> unittest.TestSuite:
    """Creation, validation, restore: sorted by name, restore would come second."""
    names = loader.getTestCaseNames(BackupRestoreTests)
    names = sorted(names, key=lambda name: name.endswith("restore"))
    return unittest.TestSuite(map(BackupRestoreTests, names))


class Drill:
    """The acts of a run; what one makes is kept for those that follow."""

    def __init__(self, options: Options, enter: Callable[[Context], Any]) -> None:
        self.options = options
        self.enter = enter  # enters a context that lasts until the run is over
        self.evidence = initial_evidence(options)

    def set_up(self) -> None:
        """Read the settings; find their server, or start a private one."""
        run = self.enter(started_run(self.options, self.evidence))
        self.project = described_project(run)
        self.configured = None
        if self.options.live or not self.options.private:
            self.configured = configured_database(self.project)
        self.is_private = self.options.private or not self.configured
        if not self.is_private:
            self.enter(scratch_work(self.configured))
        elif not self.options.backup:  # that must be read first, for its version
            _ = self.starting  # a first access starts it, in the background

    @cached_property
    def starting(self) -> tuple["Database", "Program"]:
        """The private server, and the program that is starting it."""
        major = NEWEST
        if self.options.live:
            major = self.configured.major
        elif self.options.backup:
            major = self.backup.first_reading.versions[-1]
        return self.enter(starting_server(self.project, major))

    @cached_property
    def server(self) -> "Database":
        """The server of the scratch databases, once it has started."""
        server = self.configured
        server_is = "the one of the settings"
        if self.is_private:
            server = with_server_details(*self.starting)
            server_is = "private"
        self.evidence.update(
            server=server.version,
            server_is=server_is,
            programs=server.programs.version,
        )
        return server

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raise NotJudged if the block or somebody else changes the --backup."""
        path = self.options.backup
        before = self.state
        try:
            yield
        finally:  # in place of another error, too, which this may have caused
            after = state_of(path)
            if self.options.restore_command and not after:
                log.warning("the restore command has removed %s", path)
            elif after != before:
                raise NotJudged(
                    f"{path} changed while it was judged",
                    "judge a copy of it, or wait until it is complete",
                )

    @cached_property
    def state(self) -> list[tuple[int, int, int]]:
        """The state in which an existing backup was found."""
        return state_of(self.options.backup)

    @cached_property
    def backup(self) -> "Backup":
        """The backup: one that exists, or a new one of the source."""
        if self.options.live:
            backup = new_backup(self.configured, self.project)
        elif self.options.backup:
            with self.unchanged():
                backup = adopted_backup(self.options.backup, self.project.run)
            self.evidence["backup_written"] = in_utc(backup.written)
        else:
            backup = rehearsed_backup(self.server, self.project)
        self.evidence.update(
            seconds_to_back_up=backup.seconds,
            format=backup.format.name,
            bytes=size_of(self.options.backup or backup.path),
        )
        return backup

    @cached_property
    def reading(self) -> "Reading":
        """What the backup says. Raises BackupIsBad unless it is whole."""
        backup = self.backup
        server = self.configured
        if self.is_private:
            server, _ = self.starting  # reading needs only its programs
        with self.unchanged():
            reading, sha256 = validated_reading(backup, server)
        roles = sorted(reading.roles - {"PUBLIC"})
        self.evidence.update(sha256=sha256, roles_needed=roles)
        age = time.time() - backup.written
        if self.options.max_age and age < -60:
            raise NotJudged(
                "the time of the backup is in the future",
                "set the clock that is wrong, or its file's time",
            )
        require_limit(self.evidence, "max_age", "the backup is too old", age)
        return reading

    def restore(self) -> None:
        """Load the backup, compare what came back, and use it."""
        with self.unchanged():
            restored, definitions = self.loaded()
        self.compare(restored, definitions)
        if self.options.rehearsal:
            with step("use the restored database"):
                insert_through_sequences(restored)
        seconds = self.evidence["seconds_to_restore"]
        require_limit(
            self.evidence, "max_restore", "the restore took too long", seconds
        )
        require_checks(restored, self.project, self.evidence["checks"])

    def loaded(self) -> tuple["Database", "Program | None"]:
        """The restored database; pg_dump, which writes the reference's definitions."""
        backup = self.backup
        reading = self.reading
        server = self.server
        if server.private:
            provide_globals(server, reading, self.project)
        if self.options.live:
            server = with_settings_of(backup.source, server)
        restored = database_for(backup, server)
        if self.options.restore_command:  # before all else, as it may drop roles
            seconds = load_by_command(backup, restored, self.project)
            self.evidence["not_compared"]["encoding and locale of the database"] = (
                "the restore command may make it anew"
            )
        if backup.source:  # in the background
            reference = made_database(server, "reference", restored)
            reference_load = self.enter(loading_reference(reference, backup.contents))
        if not self.options.restore_command:
            seconds = load_backup(backup, reading, restored)
        self.evidence["seconds_to_restore"] = seconds
        if not backup.source:
            return restored, None
        reference_load.wait()
        return restored, self.enter(reading_definitions(reference))

    def compare(self, restored: "Database", definitions: "Program | None") -> None:
        """Compare what came back with what was expected."""
        backup = self.backup
        found, plan = read_back(restored, self.project)
        # [ ]  shop.0002_price
        self.evidence["pending_migrations"] = re.findall(r"(?m)^\[ \] +(\S+)", plan)
        if not backup.source and not found.definitions and self.options.restore_command:
            raise NotJudged("nothing came back", ELSEWHERE)
        if backup.source:
            fact = "the restored database differs from its source"
            script = definitions_by(definitions)
            expected = expected_of_source(backup, self.reading, found, script)
        else:
            fact = "the restored database differs from what its backup says"
            expected = expected_of_existing(backup, self.reading, found)
        self.evidence["not_compared"].update(
            not_compared(backup, self.reading, expected, found)
        )
        differences = unaccepted(differences_between(expected, found), restored.run)
        if not expected.definitions & found.definitions:
            fact += f"\n  {ELSEWHERE}"
        require_none(fact, differences)
        if not found.tables:  # whatever was accepted
            raise BackupIsBad("no table came back")
        self.evidence.update(counts_of(expected))
        with step("make differences, and see them"):
            require_differences_seen(restored, found)


# --- Programs ----------------------------------------------------------------
# In: command lines. Out: what programs wrote, or a verdict. Promised: programs
# run side by side while Python waits; each has a time limit, joins the process
# group of a guard, and ends with that group, however this process ends.

# The guard waits for the end of its stdin, which this process alone holds open.
# Then it ends, in this order:
# - its group, by TERM, as programs that still write would fill the folder again;
# - what has left the group, as `timeout` and `setsid` make programs do, but has a
#   variable that begins with $1, as BACKUP_DRILL does, where there is a /proc;
# - the private server, by QUIT, at which it stops at once; after 10 seconds by KILL,
#   together with its children, which have groups of their own;
# - the folder; and at last whatever ignored TERM, and itself, by KILL.
GUARD = r"""
trap '' HUP INT TERM
end_strays() {
    grep -lszF -e "$2" /proc/[0-9]*/environ |
        while IFS=/ read -r _ _ process _; do kill -s "$1" "$process"; done
}
cat
kill -s TERM 0
end_strays TERM "=$1"
file="$1/data/postmaster.pid"  # the server removes it when it ends
if read -r server < "$file"; then
    kill -s QUIT "$server"
    kill -s CONT "$server"     # it may have been stopped
    tries=0
    while [ -e "$file" ] && kill -s 0 "$server" && [ $((tries += 1)) -le 500 ]
    do sleep 0.02; done
    if [ -e "$file" ]; then
        children=$(ps -A -o pid= -o ppid= | while read -r child parent; do
            if [ "$parent" = "$server" ]; then echo "$child"; fi
        done)
        kill -s KILL "$server" $children
    fi
fi
tries=0
until rm -rf -- "$1" || [ $((tries += 1)) -gt 20 ]; do sleep 0.05; done
end_strays KILL "=$1"
kill -s KILL 0
"""
MOST_SHOWN = 2**14  # bytes of what a team's or the project's code prints
GUARD_SECONDS = 60  # within which a guard must end: its folder may be large
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # they ask us to end
# PostgreSQL's programs get only these variables.
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "KRB5CCNAME")
# pg_dump: warning: it rains
# gzip: x.gz: decompression OK, trailing garbage ignored
# psql:<stdin>:33: WARNING:  01000: it rains
# Of psql's, the message is left out, as it may quote a value; and class 25 is,
# as a backup loads large objects between a BEGIN and a COMMIT of its own.
WARNING = re.compile(
    r"^(pg_\w+: (?:warning|hint|detail).*|(?:gzip|bzip2): .*"
    r"|psql:.*?:\d+: \S+:  (?!25)\w{5})",
    re.MULTILINE,
)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on SIGINT, SIGTERM and SIGHUP."""
    # A signal that is ignored from the start, as nohup does, stays ignored.
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number in ENDING_SIGNALS:
        if before[number] != SIG_IGN:
            signal.signal(number, interrupt)
    # A program that asks a terminal for a passphrase then fails; else it would stop.
    signal.signal(signal.SIGTTIN, SIG_IGN)
    signal.signal(signal.SIGTTOU, SIG_IGN)
    yield  # no exception comes from here, as this is a fixture of unittest
    if __name__ != "__main__":  # else nothing follows
        for number in ENDING_SIGNALS:
            signal.signal(number, before[number])


def interrupt(number: int, _frame: object) -> None:
    """Raise KeyboardInterrupt, with the name of the signal."""
    ignore_signals()
    raise KeyboardInterrupt(signal.Signals(number).name)


def ignore_signals() -> None:
    """Ignore these signals, as the drill cleans up."""
    for number in ENDING_SIGNALS:
        signal.signal(number, SIG_IGN)


@contextmanager
def guarded(folder: Path) -> Iterator[int]:
    """The id of a process group; it and the folder are gone after the block."""
    guard = Popen(
        ["/bin/sh", "-c", GUARD, "guard", folder],
        env={"PATH": f"{environ.get('PATH', os.defpath)}:{os.defpath}"},
        stdin=PIPE,
        stdout=DEVNULL,
        stderr=DEVNULL,
        process_group=0,
    )
    try:
        yield guard.pid
    finally:
        guard.stdin.close()
        os.killpg(guard.pid, signal.SIGCONT)  # somebody may have stopped it
        try:
            guard.wait(GUARD_SECONDS)
        except TimeoutExpired:
            os.killpg(guard.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started_run(options: Options, evidence: Evidence) -> Iterator["Run"]:
    """A run and its folder, which is gone after the block."""
    # Python's tempfile would silently use another folder if that is full or missing.
    parent = Path(environ.get("TMPDIR") or tempfile.gettempdir())
    number = os.urandom(8).hex()
    folder = parent.absolute() / f"{MARK}{number}"
    if "\n" in str(folder):  # the guard's grep would look for two names
        raise NotJudged("TMPDIR has a line feed in its name", "set another one")
    folder.mkdir(mode=0o700)
    with guarded(folder) as group:
        try:
            yield Run(options, folder, group, evidence)
        finally:
            ignore_signals()
    if folder.exists():
        evidence["scratch_dropped"] = False
        log.warning("left behind: the folder of this run, %s", folder)


@dataclass(frozen=True)
class Run:
    """What all parts of one run share, and how they start programs."""

    options: Options
    folder: Path  # for its files; the names of its databases begin with its name
    group: int  # the process group of its guard
    evidence: Evidence
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def hidden_in_urls(self) -> re.Pattern[str]:
        """The secrets, where each character may be percent-encoded."""
        longest_first = sorted(self.secrets, key=len, reverse=True)
        return re.compile("|".join(map(encoded_anyhow, longest_first)) or "(?!)")

    @cached_property
    def hidden(self) -> list[str]:
        """The secrets in every quoting; the longest come first."""
        forms = set().union(*map(written_forms, self.secrets))
        return sorted(forms, key=len, reverse=True)

    def redacted(self, text: str) -> str:
        """The text with [REDACTED] for each secret."""
        for form in self.hidden:
            text = text.replace(form, "[REDACTED]")
        return self.hidden_in_urls.sub("[REDACTED]", text)

    @cached_property
    def installed(self) -> str:
        """The folders of PostgreSQL's programs, one a line, with their versions."""
        return output_of(self.started("/bin/sh", "-c", FIND_PROGRAMS))

    def file(self, text: str = "") -> File:
        """A nameless file with the text, for a program to read or to write."""
        # Not in the run's folder, which a team's command could remove.
        file = tempfile.TemporaryFile(dir=self.folder.parent)  # noqa: SIM115
        file.write(encoded(text))
        file.seek(0)
        return file

    @contextmanager
    def started(
        self,
        *command: object,
        name: str = "",
        environment: StringDict | None = None,
        text: str = "",  # its stdin, unless that is given
        stdin: int | File | None = None,
        stdout: int | None = None,
        umask: int = 0o077,
        timeouts: float = 1,  # its time limit, as a multiple of --timeout
        **account: Any,
    ) -> Iterator["Program"]:
        """A program that runs beside this process, and is killed after the block."""
        with self.file(text) as given, self.file() as output, self.file() as errors:
            popen = Popen(
                list(map(str, command)),
                env=environment or base_environment(),
                stdin=stdin or given,
                stdout=stdout or output,
                stderr=errors,
                bufsize=0,
                umask=umask,
                cwd=ROOT,  # the settings may name files relative to it
                process_group=self.group,
                **account,
            )
            name = name or Path(popen.args[0]).name
            deadline = Deadline(timeouts * self.options.timeout, popen)
            program = Program(self, name, popen, output, errors, deadline)
            with popen:
                try:
                    deadline.start()
                    yield program
                finally:
                    deadline.cancel()
                    popen.kill()


class Deadline(Timer):
    """A thread that kills a program when its time is up."""

    def __init__(self, seconds: float, popen: Popen[bytes]) -> None:
        super().__init__(seconds, self.end)
        self.daemon = True  # else this process would wait for it at its end
        self.popen = popen
        self.has_killed = False

    def end(self) -> None:
        """Kill the program, unless it has ended."""
        if self.popen.poll() is None:
            self.has_killed = True
            self.popen.kill()


def base_environment() -> StringDict:
    """The environment of PostgreSQL's programs, which then speak English."""
    passed_on = {name: environ[name] for name in PASSED_ON if name in environ}
    return {**passed_on, "LC_ALL": "C", "TZ": "UTC"}


def encoded(text: str) -> bytes:
    """The bytes of a text; those that were not UTF-8 come back unchanged."""
    return text.encode("utf-8", "surrogateescape")


def encoded_anyhow(secret: str) -> str:
    """A pattern for a text in a URL: p@ss, p%40ss."""
    pattern = ""
    for character in secret:
        percents = "".join(f"%{byte:02x}" for byte in encoded(character))
        pattern += f"(?:{re.escape(character)}|(?i:{percents}))"
    return pattern


def written_forms(secret: str) -> set[str]:
    """A text as it is, and as SQL, libpq, Python, JSON and shells quote it."""
    return {
        secret,
        secret.replace("'", "''"),  # SQL
        secret.replace("\\", "\\\\"),  # E'' of SQL
        backslashed(secret)[1:-1],  # libpq
        secret.replace("'", "'\\''"),  # bash: 'it'\''s'
        secret.replace("'", "'\"'\"'"),  # shlex: 'it'"'"'s'
        re.sub(r'([\\"$`])', r"\\\1", secret),  # a shell, in double quotes
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    }


@dataclass(frozen=True)
class Program:
    """A program that was started, and the files into which it writes."""

    run: Run
    name: str
    popen: Popen[bytes]
    output: File
    errors: File
    deadline: Deadline
    began: float = field(default_factory=monotonic)

    def stdout(self) -> str:
        """What it has written to stdout."""
        return text_of(self.output)

    def stderr(self) -> str:
        """What it has written to stderr; it may hold secrets."""
        return text_of(self.errors)

    def show(self, *streams: File) -> None:
        """Show, with --verbose, the end of what it has written."""
        texts = [text_of(stream, MOST_SHOWN) for stream in streams]
        text = self.run.redacted("\n".join(texts)).strip()
        if text:
            log.info("%s says:\n%s", self.name, textwrap.indent(text, "  "))

    def wait(self) -> float:
        """Wait until it has ended well; return how many seconds it took.

        Raises ProgramFailed if it failed, NotJudged if its time was up.
        """
        status = self.popen.wait()
        seconds = monotonic() - self.began
        if self.deadline.has_killed:
            raise NotJudged(
                f"{self.name} did not end within {self.deadline.interval:g} s",
                "allow more time with --timeout, unless somebody holds a lock",
            )
        # gzip exits with 2 for a warning, such as that of trailing garbage.
        if status and (self.name, status) != ("gzip", 2):
            raise ProgramFailed(self)
        warnings = WARNING.findall(self.run.redacted(self.stderr()))
        if warnings:
            level = logging.INFO
            if self.name in ("pg_dump", "gzip", "bzip2"):  # others warn of much
                level = logging.WARNING
            log.log(level, "%s says:\n%s", self.name, indented(warnings))
        return round(seconds, 3)


def text_of(file: File, max_bytes: int = sys.maxsize) -> str:
    """The text of a file into which a program may still write, or its last lines."""
    size = os.fstat(file.fileno()).st_size
    beginning = max(0, size - max_bytes)
    # Not by read(), which would move the offset that the program writes at.
    raw = os.pread(file.fileno(), size - beginning, beginning)
    if beginning:  # a part of the first line could be a part of a password
        _, _, raw = raw.partition(b"\n")
    return raw.decode("utf-8", "surrogateescape")


def wait_for(*programs: Program) -> None:
    """Wait until all have ended well, one after the other."""
    for program in programs:
        program.wait()


def output_of(starting: Context) -> str:
    """What a program writes to stdout. Raises unless it ends well."""
    with starting as program:
        program.wait()
        return program.stdout()


# --- Verdicts ----------------------------------------------------------------
# In: what a program said when it failed. Out: a failure or an error. Promised:
# a load by psql that fails makes a backup bad by the lists below alone, or if
# the backup holds a command for psql. What a program says is classified as it
# was said, and redacted where it is shown; no value of a row is shown.

# Patterns for a SQLSTATE and the server's function that reported it, such as
# 22P02:pg_strtoint32_safe. A backup's content causes these, or settings that are
# lost, see BY_SETTINGS:
BLAMED_ALWAYS = (
    # Not a value of its type; but 22023 is about a parameter, 22P05 about what
    # UTF-8 lacks, and money is written as lc_monetary of the source has it.
    "22(?!023|P05|P02:cash_in)"
    "|42P06|42P07|42701|42723"  # a schema, relation, column, function twice
    "|42710:(?!CreateExtension|CreateRole)"  # another object twice
    "|23502|23503"  # NULL in a NOT NULL column; a reference to a missing row
    "|P0001:exec_stmt_raise"  # a function in the backup raises it
)
# These too, on the major version that wrote it: others have other objects, and
# another SQL; 13 was the last version with postfix operators.
BLAMED_ON_SAME_MAJOR = (
    "|42601"  # a syntax error
    "|(42P01|42703|3F000):(?!CreateExtension)"  # no such table, column, schema
    # No such extension for a comment on it; no such publication for a table of it:
    "|42704:(get_extension_oid|AlterPublication)"
    "|42803"  # a view that groups by a key which is lost
    "|42809|42830"  # a wrong kind of relation; no key for a foreign key
    "|55000:ATExecAttachPartitionIdx"  # the index of a table that is no partition
)
# These too, with the same versions of extensions, as others have other objects:
# no such function, but not a library; no such type.
BLAMED_WITH_SAME_EXTENSIONS = (
    "|42883:(?!load_external_function)|42704:(typenameType|compute_return_type)"
)
# These too, in the locale of the source, as texts may be ordered otherwise
# elsewhere: duplicate keys, CHECKs, exclusions, partition bounds.
BLAMED_IN_SAME_ORDER = "|23505|23514|23P01|42P17"
BLAMED_IN_REHEARSAL = (
    BLAMED_ALWAYS
    + BLAMED_ON_SAME_MAJOR
    + BLAMED_WITH_SAME_EXTENSIONS
    + BLAMED_IN_SAME_ORDER
)
# What a code says about a row, where PostgreSQL's own message could quote one.
MEANINGS = {
    "42601": "a syntax error",
    "22001": "a value that is too long",
    "22021": "bytes that are not text in its encoding",
    "22P02": "a value that its type does not allow",
    "22P04": "a row with too few or too many columns",
    "23502": "NULL in a column that does not allow it",
    "23503": "a reference to a row that is missing",
    "23505": "a duplicate key",
    "23514": "a row that a CHECK forbids",
    "42703": "a column that is missing",
    "42704": "an object that is missing",
    "42883": "a function that is missing",
    "42P01": "a table that is missing",
}
# Where a statement reads rows, the message of an error may quote a value; not
# if it is about the number of rows, the transaction or the server, nor if one
# of these functions reports it, which look at the text of the statement alone.
QUOTES_NO_VALUE = (
    "2[15]|5[37]|.*:(parserOpenTable|errorMissing|ParseFunc|op_error|transformSubLink"
    "|ResolveOpClass)"
)
# psql:<stdin>:25: ERROR:  22P02: invalid input syntax for type integer: "x"
# but not a warning: 00, 01; and 25001, 25P01, which may come after an error.
REPORT = re.compile(
    r"^(?:psql:[^:]*:(\d+): )?\S+:  (?!0[01]|25001|25P01)([0-9A-Z]{5}): (.*)",
    re.MULTILINE,
)
AT_THE_END = sys.maxsize  # in place of a line that is not told, as at COMMIT
# LOCATION:  pg_strtoint32_safe, numutils.c:320
# or the end of all, without a function
LOCATION = re.compile(r"^LOCATION:  (\w+),|\Z", re.MULTILINE)
# pg_dump: error: connection to server at "localhost" failed: FATAL:  it rains
# FileNotFoundError: [Errno 2] No such file or directory: 'last.dump'
FAULT = re.compile(r"^.*\b(?:error|FATAL|ERROR|PANIC|\w+Error): .*", re.MULTILINE)
# psql:<stdin>:9: error: backslash commands are restricted; only \unrestrict ...
# psql:<stdin>:9: error: invalid command \nSecret
COMMAND_FAILED = re.compile(r"^psql:[^:]*:\d+: error: ", re.MULTILINE)
SCRIPT_FAILED = 3  # psql's exit status where SQL or a command failed
MOST_LINES = 20  # of sentences that are shown together


@dataclass(frozen=True)
class Report:
    """An error of the server's, as psql reports it."""

    line: int
    code: str  # SQLSTATE
    message: str  # its first line
    function: str  # of the server, that reported it

    @property
    def cause(self) -> str:
        return f"{self.code}:{self.function}"

    def sentence(self, of_rows: bool = False, reads_rows: bool = False) -> str:
        """The error; in our words where PostgreSQL's message may quote a value.

        So it may if the statement holds rows, of_rows, and for most errors if it reads
        some, reads_rows.
        """
        # 22023 is about a parameter; 38 is of functions in other languages.
        may_quote = of_rows or re.match(
            "22(?!023)|38|P0|.*:exec_stmt_raise", self.cause
        )
        if reads_rows and not re.match(QUOTES_NO_VALUE, self.cause):
            may_quote = True
        if may_quote:
            meaning = MEANINGS.get(self.code, "its message may quote a value")
            return f"{self.code} by {self.function}: {meaning}"
        return f"{self.code}: {self.message}"


class ProgramFailed(NotJudged):
    """A program failed: an error, unless a caller can blame the backup."""

    def __init__(self, program: Program) -> None:
        self.status = program.popen.returncode  # below 0: by a signal
        self.stderr = program.stderr()
        self.report = None
        if self.status == SCRIPT_FAILED:
            self.report = report_in(self.stderr)
        if self.report:
            sentence = self.report.sentence()
            hint = hint_for(self.report.cause)
        else:
            first_line = re.search(".+|$", self.stderr)
            fault = FAULT.search(self.stderr) or first_line
            sentence = fault[0] or "it said nothing"
            if self.status < 0 and not fault[0]:
                sentence = "a signal ended it"
            hint = hint_for(sentence)
        fact = f"{program.name} exited with {self.status}"
        super().__init__(fact, program.run.redacted(sentence), hint)


def report_in(stderr: str) -> Report | None:
    """The last error that psql reports, if any."""
    error = None
    for report in REPORT.finditer(stderr):
        line, code, message = report.groups()
        # It is always found: the end of all is one, too.
        function = LOCATION.search(stderr, report.end())[1] or "the server"
        error = Report(int(line or AT_THE_END), code, message, function)
    return error


def require_none(fact: str, sentences: Collection[object]) -> None:
    """Raise BackupIsBad with the fact and the sentences, unless there are none."""
    if sentences:
        raise BackupIsBad(f"{fact}\n{indented(sentences)}")


def indented(sentences: Iterable[object]) -> str:
    """The first sentences, one a line, and how many more there are."""
    lines = [f"  {sentence}" for sentence in sentences]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"  ... and {len(lines) - MOST_LINES} more"]
    return "\n".join(lines)


# --- Databases, and what is dropped ------------------------------------------
# In: a server. Out: scratch databases, and psql's answers. Promised: one
# statement drops databases, and names those alone that carry the mark of this
# run, or of one that is over. Only programs speak to a server, as they can be
# killed.

# -X: a ~/.psqlrc must not matter. Without ON_ERROR_STOP, psql would end well.
PSQL = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose")
# Options of all our sessions: no timeout but ours; standard quoting, as the
# reader of backups expects; and a server that soon notices that its client was
# killed.
SETTINGS = (
    "-c statement_timeout={timeout} -c lock_timeout=0 -c idle_session_timeout=0"
    " -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off"
    " -c standard_conforming_strings=on -c client_connection_check_interval=500"
)
LONGEST_TIMEOUT = 2**31 - 1  # milliseconds, of PostgreSQL
SCRATCH_NAME = f"^{MARK}[0-9a-f]{{16}}_(source|reference|restored)$"
# A run that has scratch databases on the server of the settings holds a lock
# there, whose key is the number in their names. If nobody holds it, the run is
# over.
DROPPABLE = """
SELECT datname
  FROM pg_database
 WHERE datname ~ :'scratch_name'
   AND pg_has_role(datdba, 'MEMBER')
   AND (starts_with(datname, :'prefix')
        OR split_part(datname, '_', 3) NOT IN (  -- backup_drill_NUMBER_source
           SELECT lpad(to_hex(classid::bigint << 32 | objid::bigint), 16, '0')
             FROM pg_locks
            WHERE locktype = 'advisory'
              AND objsubid = 1))  -- its key is one bigint
"""
FROM_OTHERS = "dropping a database of a killed run"
# First, their sessions are ended; no column of that is of interest. DROP
# DATABASE with FORCE would fail for an ordinary role where an autovacuum
# worker is; without FORCE, it waits for that.
DROP = rf"""
SELECT
  FROM ({DROPPABLE}) AS d,
LATERAL (SELECT count(pg_terminate_backend(pid))
           FROM pg_stat_activity AS s
          WHERE s.datname = d.datname
            AND pg_has_role(usesysid, 'MEMBER')) AS ended;
SELECT json_build_array(datname, '{FROM_OTHERS}')
  FROM ({DROPPABLE}) AS d
 WHERE NOT starts_with(datname, :'prefix');
\set ON_ERROR_STOP 0
SELECT format('DROP DATABASE IF EXISTS %I', datname)
  FROM ({DROPPABLE}) AS d \gexec
SELECT json_build_array(datname, 'left behind, for the next run to drop')
  FROM ({DROPPABLE}) AS d;
"""
# template1 may have additions of the site. The locale may be missing here.
CREATE = r"""
\set ON_ERROR_STOP :strict
CREATE DATABASE :"name" TEMPLATE template0 :locale;
\set ON_ERROR_STOP 1
SELECT count(*) = 0 AS is_missing
  FROM pg_database
 WHERE datname = :'name' \gset
\if :is_missing
CREATE DATABASE :"name" TEMPLATE template0 :other_locale;
\endif
SELECT to_json(:'is_missing'::boolean);
"""


@dataclass(frozen=True)
class Database:
    """One database: how we connect to it, what it is like, and the programs for it."""

    run: Run
    name: str
    parameters: StringDict = field(repr=False)  # libpq's, without dbname and password
    environment: StringDict = field(repr=False)  # libpq's variables, with the password
    programs: "Programs"
    version: str = ""  # of the server: 15.20
    major: int = 0
    encoding: str = "UTF8"
    locale: str = ""  # as clauses of CREATE DATABASE
    has_settings: bool = False  # of its own or of its role
    settings: StringDict = field(default_factory=dict)  # of our sessions: some names
    private: bool = False  # on a server that this run has started

    def options(self) -> str:
        """The options of a session: the project's, and then ours."""
        timeout = round(self.run.options.timeout * 1000)
        settings = SETTINGS.format(timeout=min(timeout, LONGEST_TIMEOUT))
        if self.major >= 17:
            settings += " -c transaction_timeout=0"
        return f"{self.parameters.get('options', '')} {settings}"

    def started(
        self,
        program: str,
        *arguments: object,
        **streams: Any,
    ) -> Context:
        """A program of PostgreSQL that works on the database."""
        parameters = {
            "connect_timeout": str(round(self.run.options.timeout)),
            **self.parameters,
        }
        if self.name:  # else a service of libpq names it
            parameters["dbname"] = self.name
        variables = {**base_environment(), **self.environment}
        # Options may hold secrets, so they are no argument, unless those of a
        # service would go before the variable.
        options = self.options()
        variables["PGOPTIONS"] = options
        parameters.pop("options", None)
        if "service" in parameters or "PGSERVICE" in variables:
            parameters["options"] = options
        variables["PG_COLOR"] = "never"
        variables["PGCLIENTENCODING"] = "UTF8"
        if self.encoding == "SQL_ASCII":  # then bytes are not converted
            variables["PGCLIENTENCODING"] = "SQL_ASCII"
        connection = [f"{name}={backslashed(parameters[name])}" for name in parameters]
        return self.run.started(
            self.programs.folder / program,
            "--no-password",
            "--dbname",
            " ".join(connection),
            *arguments,
            environment=variables,
            **streams,
        )

    def psql(self, script: str, **values: str) -> Context:
        """psql, which runs the script; a value `name` is :'name' in it."""
        commands = ""
        for name, value in values.items():
            text = backslashed(value).replace("\n", "\\n")
            commands += f"\\set {name} {text}\n"
        return self.started("psql", *PSQL, "-f", "-", text=commands + script)

    def ask(self, script: str, **values: str) -> list[Any]:
        """The values that the script selects, each as JSON on a line of its own."""
        return values_in(output_of(self.psql(script, **values)))

    @contextmanager
    def held(self, script: str) -> Iterator[str]:
        """The answer of a session that stays open until the block ends."""
        # psql runs the script, and then waits for its stdin, where nothing comes.
        with self.started(
            "psql", *PSQL, "-c", script, "-f", "-", stdin=PIPE, stdout=PIPE
        ) as psql:
            answer = psql.popen.stdout.readline().decode().strip()
            if not answer:  # psql has failed
                psql.wait()
            psql.deadline.cancel()
            yield answer


def values_in(text: str) -> list[Any]:
    """The values that psql has printed, each as JSON on a line of its own."""
    return [json.loads(line) for line in text.split("\n") if line]


def backslashed(value: str) -> str:
    """A value as libpq's connection strings and psql's commands quote it."""
    escaped = re.sub(r"([\\'])", r"\\\1", value)
    return f"'{escaped}'"


def session_option(name: str, value: str) -> str:
    """A setting as an option of a session, to be put behind others."""
    escaped = re.sub(r"([\\\s])", r"\\\1", value)
    return f" -c {name}={escaped}"


@contextmanager
def scratch_work(server: Database) -> Iterator[None]:
    """Hold this run's lock; drop what killed runs left, and at the end its own."""
    number = server.run.folder.name.removeprefix(MARK)
    with server.held(f"SELECT 'locked' FROM pg_advisory_lock(x'{number}'::bigint)"):
        drop_databases(server)
        try:
            yield
        finally:
            ignore_signals()
            drop_databases(server)


def drop_databases(server: Database, purpose: str = "") -> None:
    """Drop this run's scratch databases, or one, and those of killed runs."""
    prefix = f"{server.run.folder.name}_{purpose}"
    try:
        fates = server.ask(DROP, scratch_name=SCRATCH_NAME, prefix=prefix)
    except (NotJudged, OSError) as error:
        fate = f"scratch databases may be left, for the next run to drop ({error})"
        fates = [(server.run.folder.name, fate)]
    for name, fate in fates:
        log.warning("%s: %s", fate, name)
        if fate != FROM_OTHERS:
            server.run.evidence["scratch_dropped"] = False


def made_database(
    server: Database, purpose: str, like: Any, name: str = ""
) -> Database:
    """An empty scratch database with the encoding and the locale of another.

    A locale that is missing here is replaced by the server's, unless --strict.
    """
    name = name or f"{server.run.folder.name}_{purpose}"
    locale = like.locale or f"ENCODING '{like.encoding}'"
    other_locale = server.locale
    if like.encoding != server.encoding:  # C goes with every encoding
        other_locale = f"ENCODING '{like.encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with step(f"make {name}"):
        (is_missing,) = server.ask(
            CREATE,
            name=name,
            strict=str(server.run.options.strict),
            locale=locale,
            other_locale=other_locale,
        )
    if is_missing:
        log.warning("a locale is missing here: %s", locale)
        locale = other_locale
    return replace(server, name=name, encoding=like.encoding, locale=locale)


# --- Contents ----------------------------------------------------------------
# In: a database. Out: what it holds, as sets of facts. Promised: two databases
# with equal facts and definitions hold the same rows, sequences, large objects
# and objects. OIDs and the order of rows do not matter.

LARGE_OBJECTS = "large objects"  # counted and hashed as the rows of one table


@dataclass(frozen=True)
class Contents:
    """What a database holds."""

    # table public.film: 1000 rows
    # index public.film_title: in order
    facts: set[Fact]
    script: str = field(repr=False)  # the SQL that makes its objects
    # Among the facts, those that a backup tells, too:
    rows: Counter[str]  # of a table, or the number of large objects
    sequences: set[Fact]  # sequence public.film_id_seq: 7, not called yet
    reasons: StringDict  # thing -> why no backup brings it back as it is
    extensions: StringDict  # thing -> the extension that it belongs to
    roots: StringDict  # partition -> the top table, to which its rows are counted
    # Things that changed while the backup was made, or of which an existing
    # backup has no data:
    moved: Things = frozenset()  # whose facts are replaced, see expected_of_source
    altered: Things = frozenset()  # whose definitions are not compared
    busy: Things = frozenset()  # those whose rows changed, but not from or to none

    @cached_property
    def definitions(self) -> set[Fact]:
        """The script as facts, such as these; the first has no text.

        table public.film:
        table public.film: owner: anna
        table public.film: SQL with hash 0123456789abcdef
        table public.film: title text NOT NULL
        """
        return definitions_in(self.script)

    @property
    def told(self) -> set[Fact]:
        """The facts that a backup tells, too."""
        return counted(self.rows) | self.sequences

    @property
    def tables(self) -> set[str]:
        """The tables whose rows were counted."""
        return self.rows.keys() - {LARGE_OBJECTS}

    @property
    def has_rows(self) -> bool:
        """Whether a table has any."""
        return any(self.rows[table] for table in self.tables)

    def top(self, table: str) -> str:
        """The table to which the rows of a table or partition are counted."""
        return self.roots.get(table, table)


# It writes the SQL that makes all objects, without their rows.
DEFINITIONS = ("pg_dump", "--section=pre-data", "--section=post-data", "--no-blobs")
# Lines that follow a definition: its owner, and settings for the next one.
# ALTER TABLE public.film OWNER TO anna;
# SET default_tablespace = '';
OWNER_SET = r"ALTER .* OWNER TO (\"[^\"]*\"|[^\s\"';]+);"
DEFAULT_SET = r"SET default_\w+ = (\"[^\"]*\"|''|\w+);"
AFTER_DEFINITION = rf"{OWNER_SET}|{DEFAULT_SET}|"
# Entries whose SQL may hold a password, as a literal.
WITH_SECRETS = ("server ", "user mapping ", "subscription ", "foreign ")
LITERAL = r"'(?:[^']|'')*'"
# Other lines that may hold one: PERFORM dblink('host=h password=it''s_me', sql);
# ALTER ROLE anna PASSWORD 'open sesame'; postgresql://anna:sesame@h/live
# Each alternative goes over a line once, as a line may be very long.
PASSWORD = (
    r"(?im)^(?=.*(?:passw(?:or)?d|secret|token|bearer|api_?key|pgp_sym_))"
    r"(?=.*[='\"]).*|^(?=.*://)(?=.*@).*"
)
# Of this run. Differences show hashes; without it, the row of a small table
# could be guessed from its hash, and a password from that of a definition.
SALT = os.urandom(16).hex()
# Text depends on these settings.
PINNED = """
SET timezone TO 'UTC'; SET datestyle TO 'ISO, YMD';
SET intervalstyle TO 'postgres'; SET bytea_output TO 'hex';
SET extra_float_digits TO 3; SET lc_monetary TO 'C'; SET xmloption TO 'content';
SET quote_all_identifiers TO off; SET standard_conforming_strings TO on;
SET search_path TO ''; SET row_security TO off; SET jit TO off;
"""
# What belongs to an extension is made by the extension, except rows of the
# tables that it lists as configuration, perhaps under a condition: pg_dump
# writes those.
# OIDs below 16384 are PostgreSQL's own.
RELATION = r"""
WITH RECURSIVE member AS (
    SELECT classid, objid
      FROM pg_depend
     WHERE deptype = 'e'
     UNION
    SELECT d.classid, d.objid
      FROM pg_depend AS d
      JOIN member AS m ON d.refclassid = m.classid AND d.refobjid = m.objid
     WHERE d.deptype IN ('i', 'a')
       AND d.classid::regclass::text IN ('pg_amop', 'pg_amproc', 'pg_type',
                                         'pg_attrdef', 'pg_rewrite')),
config AS (
    SELECT relation AS oid, condition, extname || ' ' || extversion AS extension
      FROM pg_extension AS e,
    LATERAL unnest(extconfig, extcondition) AS listed (relation, condition)
     WHERE e.oid >= 16384),
relation AS (
    SELECT c.*, extension, sql,
           -- A line feed is a blank in pg_dump's comments.
           translate(nspname || '.' || relname, E'\n\r', '  ') AS name,
           CASE WHEN coalesce(condition, '') = '' THEN 'ONLY ' || sql
           ELSE format('(SELECT * FROM %s %s)', sql, condition) END AS origin
      FROM pg_class AS c
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
      LEFT JOIN config ON config.oid = c.oid,
   LATERAL format('%I.%I', nspname, relname) AS sql
     WHERE nspname !~ '^pg_|^information_schema$'
       AND (extension IS NOT NULL
            OR ('pg_class'::regclass, c.oid) NOT IN (TABLE member)))
"""
# These queries follow RELATION, which ends before its SELECT. What they select
# is a list: its kind (rows, sequence, fact, reason, extension, root), a thing,
# and what is told of it.
# \gexec runs each cell of a result as a statement.
LOCKS = r"""
SELECT format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', sql)
  FROM relation
 WHERE relkind = 'r' \gexec
"""
# The snapshot sees no row of a table that was truncated since; it has another file.
TRUNCATED = r"""
SELECT format('SELECT json_build_array(''reason'', %L, '
              '''truncated beside the dump, which has none: run again'') '
              'WHERE NOT EXISTS (SELECT FROM %s AS t)',
              'rows of table ' || name, origin)
  FROM relation
 WHERE relkind = 'r'
   AND relfilenode <> pg_relation_filenode(oid) \gexec
"""
SEQUENCES = r"""
SELECT format('SELECT json_build_array(''sequence'', %L, last_value || '
              'CASE WHEN is_called THEN '''' ELSE '', not called yet'' END) '
              'FROM %s', 'sequence ' || name, sql)
  FROM relation
 WHERE relkind = 'S'
   AND NOT (relpersistence = 'u' AND pg_is_in_recovery()) \gexec
"""
# Snapshots do not cover sequences. One that is restarted gets another file.
STATES_OF_SEQUENCES = rf"""
{PINNED}{RELATION}{SEQUENCES}{RELATION}
SELECT json_build_array('file', 'sequence ' || name, relfilenode)
  FROM relation
 WHERE relkind = 'S';
"""
# A row's hash is the XOR of its values' hashes, each seeded with the hash of
# its column's name: a restore may order the columns of an inheritance child
# differently. It is hashed once more before it is summed; else two rows could
# exchange values unseen. ROW() turns any type into text, at thrice the cost;
# the types named here are compared as exactly without it. A bigint is given as
# the seed, which has 64 bits, as hashint8extended would fold it into 32. The
# rows of partitions count for the table at the top, as their leaf may change
# at a restore.
# `template` says where the rows are, such as WHOLE_TABLE, with %2$s for the
# relation, and %3$s for its row type. For each table and leaf this is asked,
# with pg_catalog before the names of functions and operators:
# SELECT json_build_array('rows', 'table public.film', count(*), coalesce(sum(
#        hashint4extended(4711,
#        coalesce(hashint4extended(17, t.id), 0)
#        # coalesce(hashtextextended(t.title::text COLLATE "C", 42), 0))), 0))
#   FROM ONLY public.film AS t
ROWS = r"""
SELECT CASE WHEN is_planned THEN 'SET search_path TO DEFAULT' END,
       format('SELECT pg_catalog.json_build_array(''rows'', %4$L, pg_catalog.count(*), '
              'coalesce(pg_catalog.sum(pg_catalog.hashint4extended(%5$s, %1$s)), 0)) '
              'FROM ' || :'template',
              coalesce(hash, '0'), origin, sql, 'table ' || top, top_hash),
       CASE WHEN is_planned THEN 'SET search_path TO ''''' END
  FROM (SELECT r.*,
               coalesce(root.name, r.name) AS top,
               -- Names that are not the same may look so: a.b.c, for one.
               hashtext(coalesce(root.sql, r.sql)) AS top_hash,
               -- To plan a query, PostgreSQL may call the functions in a table's
               -- index expressions and statistics. They may need the search_path
               -- of the database, so that is set for these tables. As anybody
               -- may have functions there, those named here have pg_catalog
               -- before them.
               EXISTS (SELECT FROM pg_index
                        WHERE indrelid = r.oid
                          AND (indexprs IS NOT NULL OR indpred IS NOT NULL))
               OR EXISTS (SELECT FROM pg_statistic_ext
                           WHERE stxrelid = r.oid) AS is_planned
          FROM relation AS r
          LEFT JOIN relation AS root
            ON root.oid = nullif(pg_partition_root(r.oid), r.oid)
         WHERE r.relkind = 'r') AS leaf
  LEFT JOIN (
       SELECT attrelid,
              string_agg(format('coalesce(pg_catalog.' || CASE
                  WHEN atttypid = 'int8'::regtype
                  THEN 'hashint4extended(%2$s, t.%1$I)'
                  WHEN atttypid = ANY ('{int2, int4}'::regtype[])
                  THEN 'hashint4extended(t.%I, %s)'
                  WHEN atttypid = 'uuid'::regtype
                  THEN 'uuid_hash_extended(t.%I, %s)'
                  WHEN atttypid = 'bpchar'::regtype AND atttypmod > 0
                  THEN 'hashbpcharextended(t.%I COLLATE "C", %s)'
                  WHEN atttypid = ANY ('{bool, float8, numeric, date, timestamp,
                      timestamptz, text, varchar, json, jsonb}'::regtype[])
                  THEN 'hashtextextended(t.%I::text COLLATE "C", %s)'
                  ELSE 'hashtextextended(ROW(t.%I)::text COLLATE "C", %s)'
                  END || ', 0)', attname, hashtext(attname::text)),
                  ' OPERATOR(pg_catalog.#) ') AS hash
         FROM pg_attribute
        WHERE attnum > 0
          AND NOT attisdropped
        GROUP BY attrelid) AS h ON attrelid = leaf.oid
 WHERE NOT (relpersistence = 'u' AND pg_is_in_recovery())  -- which nobody can read
"""
WHOLE_TABLE = "%2$s AS t"
# lo_get reads at most 1 GB, and a large object holds up to 4 TB. x'40000'
# (INV_READ) opens one for reading; 2 (SEEK_END) counts from its end.
LARGE = r"""
SELECT json_build_array('rows', 'large objects', count(*), coalesce(sum(hash), 0))
  FROM pg_largeobject_metadata AS l,
LATERAL lo_lseek64(lo_open(l.oid, x'40000'::integer), 0, 2) AS size,
LATERAL hashtextextended(ROW(
        l.oid, pg_get_userbyid(l.lomowner),
        obj_description(l.oid, 'pg_largeobject'),
        (SELECT string_agg(granted, ',' ORDER BY granted COLLATE "C")
           FROM unnest(coalesce(lomacl, acldefault('L', lomowner))) AS a,
        LATERAL split_part(a::text, '/', 1) AS granted),  -- by whom comes after it
        size,
        (SELECT string_agg(md5(lo_get(l.oid, at, 1048576)), '' ORDER BY at)
           FROM generate_series(0, size - 1, 1048576) AS at)
        )::text COLLATE "C", 0) AS hash;
"""
# The names of objects that depend on others, as nearly all do (definitions
# name the rest, such as schemas), and why a backup does not hold one, or not
# as it is. Left out are names that pg_dump never writes: of temporary objects,
# of foreign keys that a partition has from its parent, of triggers that
# PostgreSQL numbers.
NAMES = r"""
SELECT json_build_array(CASE WHEN reason IS NULL THEN 'fact' ELSE 'reason' END,
                        type || ' ' || coalesce(r.name, identity),
                        coalesce(reason, 'in order, by ' || amname, 'in order'))
  FROM (SELECT classid, objid
          FROM pg_depend
        EXCEPT
         TABLE member) AS o
  LEFT JOIN relation AS r ON r.oid = objid AND classid = 'pg_class'::regclass
  LEFT JOIN pg_index ON indexrelid = r.oid
  LEFT JOIN pg_constraint AS k
    ON k.oid = objid AND classid = 'pg_constraint'::regclass
  LEFT JOIN pg_am ON pg_am.oid = relam AND amtype = 't' AND amname <> 'heap',
LATERAL pg_identify_object(classid, objid, 0),
LATERAL (SELECT CASE
       WHEN relkind = 'f' THEN 'the rows lie elsewhere'
       WHEN relkind = 'm' THEN 'the rows are made anew'
       WHEN NOT indisvalid AND relkind = 'i'
       THEN 'invalid, so pg_dump leaves it out'
       WHEN relpersistence = 'u' AND relkind IN ('r', 'S') AND pg_is_in_recovery()
       THEN 'unlogged, and empty on a standby'
       WHEN classid = 'pg_extension'::regclass THEN 'the server makes it anew'
       WHEN EXISTS (SELECT FROM pg_trigger
                     WHERE classid = 'pg_constraint'::regclass
                       AND objid = tgconstraint
                       AND tgisinternal
                       AND tgenabled <> 'O')
       THEN 'its triggers are switched off' END AS reason) AS why
 WHERE objid >= 16384
   AND NOT coalesce(contype = 'f' AND conparentid <> 0, false)
   -- From 18 on, each NOT NULL is one, too; definitions tell it in all versions.
   AND NOT coalesce(contype = 'n', false)
   AND identity !~ '(^|\m(on|for) )pg_(toast|temp_\d+|toast_temp_\d+)(\.|$)'
   AND identity !~ '_ConstraintTrigger_[a-z_]*\d+"';
"""
# What may differ in another version of an extension: the rows of the tables
# that it lists, and the indexes, constraints and triggers of its tables.
EXTENSIONS = r"""
SELECT json_build_array('extension', kind || name, extension)
  FROM relation,
LATERAL (SELECT CASE relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END)
     AS k (kind)
 WHERE extension IS NOT NULL;
"""
PARTS_OF_EXTENSIONS = r"""
SELECT json_build_array('extension', type || ' ' || coalesce(r.name, identity),
                        extname || ' ' || extversion)
  FROM (SELECT indrelid, 'pg_class'::regclass, indexrelid
          FROM pg_index
         UNION ALL
        SELECT conrelid, 'pg_constraint'::regclass, oid
          FROM pg_constraint
         UNION ALL
        SELECT tgrelid, 'pg_trigger'::regclass, oid
          FROM pg_trigger) AS part (whole, classid, objid)
  JOIN pg_depend AS d
    ON d.classid = 'pg_class'::regclass AND d.objid = whole AND deptype = 'e'
  JOIN pg_extension AS e ON e.oid = refobjid
  LEFT JOIN relation AS r
    ON r.oid = part.objid AND part.classid = 'pg_class'::regclass,
LATERAL pg_identify_object(part.classid, part.objid, 0);
SELECT json_build_array('extension', 'extension ' || extname,
                        extname || ' ' || extversion)
  FROM pg_extension
 WHERE oid >= 16384;
"""
# Rows of other tables of extensions, and values of sequences, are in no backup.
MEMBERS = r"""
SELECT json_build_array('reason', kind || c.oid::regclass,
                        'an extension''s, which no backup holds')
  FROM pg_class AS c
  JOIN member ON objid = oid AND classid = 'pg_class'::regclass,
LATERAL (SELECT CASE
       WHEN relkind = 'r' AND pg_relation_size(oid) > 0 THEN 'rows of table '
       WHEN relkind = 'S' AND has_sequence_privilege(oid, 'USAGE, SELECT')
            AND pg_sequence_last_value(oid) IS NOT NULL
       THEN 'value of sequence ' END) AS k (kind)
 WHERE kind IS NOT NULL
   AND oid NOT IN (SELECT oid FROM config);
"""
SUBSCRIPTIONS = """
SELECT
  FROM pg_subscription
  JOIN pg_database AS d ON d.oid = subdbid
 WHERE datname = current_database()
"""
UNSEEN = rf"""
SELECT json_build_array('reason', 'subscriptions, options of user mappings',
                        'pg_dump shows them to superusers alone')
 WHERE current_setting('is_superuser') = 'off'
   AND (EXISTS (SELECT FROM pg_user_mappings)
        OR EXISTS ({SUBSCRIPTIONS}));
SELECT json_build_array('reason', 'whether subscriptions are enabled',
                        'pg_dump writes them as disabled')
 WHERE EXISTS ({SUBSCRIPTIONS});
"""
POPULATED = r"""
SELECT json_build_array('fact', 'rows of materialized view ' || name, 'made')
  FROM relation
 WHERE relkind = 'm'
   AND relispopulated;
"""
PARTITIONS = r"""
SELECT json_build_array('root', 'table ' || leaf.name, 'table ' || root.name)
  FROM relation AS leaf
  JOIN relation AS root
    ON root.oid = nullif(pg_partition_root(leaf.oid), leaf.oid)
 WHERE leaf.relkind = 'r';
"""
ALL_FACTS = "".join(
    f"{RELATION}{query}"
    for query in (
        SEQUENCES,
        f"{ROWS}\\gexec\n",
        LARGE,
        NAMES,
        EXTENSIONS,
        PARTS_OF_EXTENSIONS,
        MEMBERS,
        UNSEEN,
        POPULATED,
        PARTITIONS,
    )
)
BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"


def facts_of(database: Database, snapshot: str = "") -> Context:
    """psql, which reads all facts in one transaction, or in a snapshot."""
    script = f"{PINNED}{BEGIN}"
    if snapshot:
        script += f"SET TRANSACTION SNAPSHOT '{snapshot}';\n"
        # Beside pg_dump, parallel workers would slow both down.
        script += "SET max_parallel_workers_per_gather TO 0;\n"
        # From now on, nothing is truncated; pg_dump locks what it dumps, too.
        script += f"{RELATION}{LOCKS}{RELATION}{TRUNCATED}"
    return database.psql(script + ALL_FACTS, template=WHOLE_TABLE)


def reading_definitions(database: Database, *arguments: str) -> Context:
    """pg_dump, which writes the definitions; it tells times in UTC."""
    environment = {**database.environment, "PGTZ": "UTC"}
    return replace(database, environment=environment).started(*DEFINITIONS, *arguments)


def definitions_by(pg_dump: Program) -> str:
    """What pg_dump, once it has ended, has written. Raises NotJudged for a part."""
    pg_dump.wait()
    script = pg_dump.stdout()
    # On a full disk, pg_dump loses its last lines, and ends well.
    if "-- PostgreSQL database dump complete" not in script[-300:]:
        raise NotJudged("pg_dump did not write its last lines", hint_for(NO_ROOM))
    return script


@contextmanager
def reading_contents(
    database: Database, snapshot: str = ""
) -> Iterator[Callable[[], Contents]]:
    """A function that waits for the programs that read the contents."""
    arguments = []
    if snapshot:
        arguments = ["--snapshot", snapshot]
    with (
        facts_of(database, snapshot) as psql,
        reading_definitions(database, *arguments) as pg_dump,
    ):

        def contents() -> Contents:
            psql.wait()
            return contents_from(values_in(psql.stdout()), definitions_by(pg_dump))

        yield contents


def read_contents(database: Database) -> Contents:
    """The contents of a database."""
    with reading_contents(database) as contents:
        return contents()


def contents_from(facts: list[Any], script: str = "") -> Contents:
    """The contents of a database, from what psql and pg_dump have told."""
    found: dict[str, set[Fact]] = defaultdict(set)
    rows: Counter[str] = Counter()
    totals: Counter[str] = Counter()  # of the rows' hashes
    for kind, thing, *values in facts:
        if kind == "rows":  # of a table, or of one of its partitions
            count, total = values
            rows[thing] += count
            totals[thing] += total
        else:
            (text,) = values
            found[kind].add((thing, text))
    for thing, total in totals.items():
        found["fact"].add((thing, f"rows with hash {salted_hash(total)}"))
    return Contents(
        facts=found["fact"] | found["sequence"] | counted(rows),
        script=script,
        rows=rows,
        sequences=found["sequence"],
        reasons=dict(found["reason"]),
        extensions=dict(found["extension"]),
        roots=dict(found["root"]),
    )


def counted(rows: Counter[str]) -> set[Fact]:
    """Numbers of rows as facts."""
    return {(thing, f"{count} rows") for thing, count in rows.items()}


def salted_hash(value: object) -> str:
    """A hash that may be shown: it tells nothing of the value."""
    return hashlib.sha256(encoded(f"{SALT}{value}")).hexdigest()[:16]


def definitions_in(script: str) -> set[Fact]:
    """The names, owners and lines of SQL of the entries that pg_dump wrote."""
    found = set()
    lines = script.split("\n")
    entries = Reading(io.BytesIO(encoded(script))).entries
    for entry, following in pairwise(entries):
        # A header and a footer have no schema. Whether a materialized view was
        # made is told by POPULATED.
        if not entry.schema or entry.kind == "MATERIALIZED VIEW DATA":
            continue
        thing = entry.unquoted_thing
        # The comment of an entry has three lines; lines are counted from 1.
        own_lines = lines[entry.line + 2 : following.line - 1]
        while own_lines and re.fullmatch(AFTER_DEFINITION, own_lines[-1]):
            own_lines.pop()
        sql = "\n".join(own_lines).strip()
        hashed = f"SQL with hash {salted_hash(sql)}"
        owner = f"owner: {entry.owner}"
        if (thing, "") in found:  # an operator of the same name for other types
            owner += f" of {hashed}"
        found.add((thing, ""))
        found.add((thing, owner))
        found.add((thing, hashed))
        if thing.startswith(WITH_SECRETS):
            sql = re.sub(LITERAL, "'[REDACTED]'", sql)
        sql = re.sub(PASSWORD, "[REDACTED]", sql)
        texts = {line.strip(" \t,;") for line in sql.split("\n")} - {""}
        found.update((thing, text) for text in texts)
    return found


# --- Differences, and the controls -------------------------------------------
# In: the contents of the restored database, and those expected. Out: the facts
# that one side lacks; none means that they are equal. Promised: each run shows
# that its own checks see a change.


class Difference(NamedTuple):
    """A fact that one side lacks; the order of fields is that of sorting."""

    thing: str  # table public.film
    side: str  # the one that has the fact: expected, found
    text: str  # 1000 rows

    @property
    def sentence(self) -> str:
        """What --accept is compared with: table public.film: 1000 rows"""
        return f"{self.thing}: {self.text}".removesuffix(": ")

    def __str__(self) -> str:
        return f"{self.side:<9} {self.sentence:.200}"


def differences_between(expected: Contents, found: Contents) -> list[Difference]:
    """The differences between the restored database and what was expected."""
    others = things_of_other_versions(expected, found)
    # A thing with a reason, such as an invalid index, may be in order after a restore.
    skipped = others | expected.reasons.keys()
    altered = expected.altered
    return differences_of_facts(
        without(expected.facts, skipped) | without(expected.definitions, altered),
        without(found.facts, skipped) | without(found.definitions, altered),
    )


def things_of_other_versions(expected: Contents, found: Contents) -> Things:
    """The things of extensions whose version is not the same on both sides."""
    versions = set(expected.extensions.values()) ^ set(found.extensions.values())
    things = [*expected.extensions.items(), *found.extensions.items()]
    return {thing for thing, version in things if version in versions}


def about(facts: set[Fact], things: Things) -> set[Fact]:
    """The facts that are about these things."""
    return {(thing, text) for thing, text in facts if thing in things}


def without(facts: set[Fact], things: Things) -> set[Fact]:
    """The facts that are not about these things."""
    return facts - about(facts, things)


def differences_of_facts(expected: set[Fact], found: set[Fact]) -> list[Difference]:
    """The facts that one side lacks; of a thing that one side lacks, its name alone."""
    # The fact that a thing is there has no text.
    lacking = {thing for thing, text in expected ^ found if not text}
    differences = []
    for side, facts in [("expected", expected - found), ("found", found - expected)]:
        for thing, text in facts:
            if not text or thing not in lacking:
                differences.append(Difference(thing, side, text))
    return sorted(differences)


def unaccepted(differences: list[Difference], run: Run) -> list[Difference]:
    """The differences that no --accept matches, redacted; notes the accepted ones."""
    rest = []
    for difference in differences:
        shown = Difference(*map(run.redacted, difference))
        for glob in run.options.accept:
            if fnmatchcase(difference.sentence, glob):
                run.evidence["accepted"][str(shown)] = glob
                break
        else:
            rest.append(shown)
    return rest


# Of each of the smallest tables up to 100 rows, which are not all NULL: as
# they are, and with NULL in place of all values of one row.
SMALLEST = """
   AND pg_relation_size(leaf.oid) > 0
 ORDER BY pg_relation_size(leaf.oid), leaf.oid
 LIMIT 10 \\gexec
"""
SOME_ROWS = "(SELECT * FROM %2$s AS s WHERE NOT (ROW(s.*) IS NULL) LIMIT 100)"
CHANGED_ROWS = f"""(WITH picked AS MATERIALIZED {SOME_ROWS}
SELECT (NULL::%3$s).* FROM (SELECT FROM picked LIMIT 1) AS one
UNION ALL (SELECT * FROM picked OFFSET 1))"""


def require_differences_seen(restored: Database, found: Contents) -> None:
    """Raise NotJudged unless a changed value, definition and name is seen."""
    script = f"{PINNED}{RELATION}{ROWS}{SMALLEST}"
    some_rows = contents_from(restored.ask(script, template=f"{SOME_ROWS} AS t"))
    changed_rows = contents_from(restored.ask(script, template=f"{CHANGED_ROWS} AS t"))
    facts_alone = replace(found, script="")  # no definitions are read again
    names = [fact for fact in found.facts if fact[1] == "in order"]
    one_less = replace(facts_alone, facts=found.facts - set(names[:1]))
    other_sql = found.script.replace("\nCREATE ", "\nCREATE OTHER ", 1)
    differences = differences_between(some_rows, changed_rows)
    seen = {difference.thing for difference in differences}
    unseen = [
        f"a value of {table}"
        for table, count in some_rows.rows.items()
        if count and table not in seen  # 0: all its values are NULL
    ]
    if names and not differences_between(facts_alone, one_less):
        unseen.append("a name")
    if not differences_between(found, replace(found, script=other_sql)):
        unseen.append("a definition")
    if unseen:
        raise NotJudged(
            f"the drill's own comparison saw no change of {', '.join(unseen)}"
        )


# --- Reading a backup --------------------------------------------------------
# In: SQL that pg_dump wrote, as a stream. Out: what it says of itself, and what
# is wrong with it. Promised: it is read once, line by line, an entry at a time,
# in constant memory; no row is taken for a statement, no statement for a row.

LONGEST = 2**20  # bytes: a longer line is read in pieces, as a row may have 200 MB
AT_ONCE = 2**17  # bytes to read at once: more would be slower, as caches are small
END_OF_DATA = b"\\.\n"
AFTER_END = "after the end"  # the kind of whatever follows a footer
# INSERT INTO ...; not a comment, perhaps behind a byte-order mark, and not \unrestrict
SQL_LINE = rb"(?!(\xef\xbb\xbf)?--|\\)\s*\S"
# What SQL that pg_dump did not write may be about: a role, another database.
OF_SERVER = rb"(?i)\b(ROLE|USER|GROUP|DATABASE|TABLESPACE|SYSTEM|GRANT|REVOKE)\b"
# Causes of damage, which replace the problems that follow from them.
CR_LF_PROBLEM = (
    "its lines end in CR LF: it went through a terminal (docker exec -t),"
    " an editor, a shell of Windows or FTP as text"
)
UTF_16_PROBLEM = "it is UTF-16, as the > of PowerShell writes: use pg_dump's --file"
NAME = rb'(?:"(?:[^"]|"")*"|[^\s.,;()"\']+)'
# -- Data for Name: film; Type: TABLE DATA; Schema: public; Owner: anna
ENTRY = re.compile(
    rb"-- (?:Data for |Statistics for )?Name: (.*);"
    rb" Type: ([^;]*); Schema: (.*); Owner: ?([^;\r\n]*)"
)
LONGEST_ENTRY = 2**13  # bytes of its comment
# The body of a function begins a line: "    AS $_$", and ends with $_$ again.
# Text that a line leaves open is put before the next line, so that \A is where
# it began.
BODY = rb"\A    AS (\$\w*\$)"
# Everything before an open end: texts and names such as 'it''s' and "a b", bodies,
# and what is between. (?>...) keeps the regular expression from trying other ways;
# *+ would, too, but is wrong before Python 3.11.5.
CLOSED = re.compile(
    rb"""(?s)(?>(?:'[^']*'|"[^"]*"|%b.*?\1|(?!%b)[^'"]+)*)""" % (BODY, BODY)
)
OPENING = re.compile(rb"""%b|['"]|\Z""" % BODY)
# Kinds of entries in which a quote opens nothing.
WITHOUT_TEXTS = ("", AFTER_END, "BLOBS")
# COPY public.film (id, name) FROM stdin;
FROM_STDIN = b" FROM stdin;\n"  # the rows come after this
# The name of the table, or the line if a name in quotes goes on in the next one
DATA_OF = rb"(?s)(?:COPY|INSERT INTO) (%b\.%b|.*)" % (NAME, NAME)
# SELECT pg_catalog.setval('public.film_id_seq', 1000, true);
SETVAL_END = rb"', (-?\d+), (true|false)\);\n\Z"
# LC_COLLATE = 'C', and nothing that psql would take for the end of a statement
CLAUSE = rb"[A-Z_]+ = (?:'(?:[^']|'')*'|\w+)"
# The beginning of a line -> what it tells; its group is the value. The
# commonest come first.
TELLING = {
    rb"(?:INSERT INTO|COPY) (pg_\w+|)": "data",
    rb"SELECT pg_catalog\.lo_(create)\(": "made",
    rb"SELECT pg_catalog\.lo_(open)\(": "filled",
    rb"-- (Data for |Statistics for |)Name: ": "entry",
    rb"SELECT pg_catalog\.(setval)\(": "setval",
    # GRANT CONNECT ON DATABASE live TO anna;
    rb"(COMMENT|SECURITY LABEL FOR \S+) ON DATABASE ": "on database",
    rb"(GRANT|REVOKE) [A-Z, ]+ ON DATABASE ": "on database",
    # Lines that may name roles, see ROLES:
    rb"(GRANT|REVOKE|ALTER DEFAULT PRIVILEGES|CREATE POLICY) ": "roles",
    rb"(CREATE USER MAPPING|SET SESSION AUTHORIZATION) ": "roles",
    # -- Dumped by pg_dump version 15.20 (Debian 15.20-0+deb12u1)
    rb"-- Dumped (?:from database|by pg_dump) version (\d+)": "version",
    rb"-- PostgreSQL database dump(\r)\n": "CR LF",
    # -- Started on 2026-11-29 00:25:26 UTC
    rb"-- Started on (\d+-\d\d-\d\d \d\d:\d\d:\d\d)": "started",
    rb"-- PostgreSQL database dump (complete)": "footer",
    rb"-- PostgreSQL database (dump)": "header",
    rb"-- PostgreSQL database (cluster) dump": "cluster",
    rb"(\xff\xfe|\xfe\xff)": "UTF-16",
    rb"\\(restrict) ": "restrict",
    # Commands of psql that lead elsewhere; no row begins so.
    rb"(\\(?:!|(?:c|connect|copy|i|ir|include\w*|o|out|w)\b))": "command",
    rb"SET client_encoding = '(\w+)'": "encoding",
    rb"SET default_tablespace = ([^'].*);": "tablespace",
    rb"SET row_security = (on)": "row security",
    rb"SET (search_path) = ": "search_path",
    rb"CREATE DATABASE .* TEMPLATE = template0((?: %b)*?)(?: TABLESP.*)?;"
    % CLAUSE: "locale",
    rb'CREATE SCHEMA "?(public)"?;': "public",
    rb"(?:CREATE|ALTER|DROP) (ROLE|USER|GROUP|DATABASE|SYSTEM) (?!MAPP)": "server",
    # The latter keeps its database from being dropped.
    rb"(?:CREATE|ALTER|DROP) (TABLESPACE|SUBSCRIPTION) ": "server",
    rb"(ALTER) .* OWNER TO ": "roles",
    # What --clean writes before the first entry:
    rb"(DROP |ALTER .* DROP |ALTER .* DETACH |CREATE OR REPLACE VIEW )": "drop",
    rb"(SELECT pg_catalog\.lo_unlink\(|SELECT CASE WHEN EXISTS)": "drop",
}
TELLS = re.compile(b"|".join(TELLING))
TOLD = tuple(TELLING.values())
# Roles that a line names, in addition to the owners in comments: what is
# skipped, what stands before a role, and all together.
# ALTER DEFAULT PRIVILEGES FOR ROLE anna GRANT SELECT ON TABLES TO "Ben";
# CREATE POLICY some ON public.film FOR SELECT TO anna, "Ben" USING (true);
NO_ROLE = rb""""[^"]*"|'[^']*'| USING .*| WITH CHECK .*"""
BEFORE_ROLES = rb" (?:(?:TO|FROM|FOR ROLE|MAPPING FOR) |AUTHORIZATION ')"
ROLES = rb"%b|%b(%b(?:, %b)*)" % (NO_ROLE, BEFORE_ROLES, NAME, NAME)


@dataclass(frozen=True)
class Entry:
    """What pg_dump writes about one object; a header has no name and no kind."""

    line: int  # where its comment begins
    name: str = ""
    kind: str = ""
    schema: str = ""
    owner: str = ""

    @property
    def full_name(self) -> str:
        """Its name with its schema: public.film."""
        return f"{self.schema}.{self.name}".removeprefix("-.")  # in no schema

    @property
    def thing(self) -> str:
        """Its name in sentences: table public.film."""
        return f"{self.kind.lower()} {self.full_name}"

    @property
    def unquoted_thing(self) -> str:
        """Its name for a comparison, as some versions of pg_dump put some in quotes."""
        return self.thing.replace('"', "")

    @property
    def table(self) -> str:
        """The table to which its data belong: table public.film."""
        return f"table {self.full_name}"


class Reading:
    """What a backup says of itself, and what is wrong with it."""

    def __init__(self, file: File) -> None:
        self.file = io.BufferedReader(file, AT_ONCE)
        self.beginning = self.file.peek()
        self.line = 0  # the number of the last line that was read
        self.codec = "utf-8"
        self.entry = Entry(1)
        self.entries = [self.entry]
        self.rows: Counter[str] = Counter()  # table -> how many
        self.sequences: set[Fact] = set()  # a sequence, and its value
        # What lines tell, as TELLING calls it -> value -> number of lines
        self.noted: dict[str, Counter[str]] = defaultdict(Counter)
        self.roles: set[str] = set()
        self.has_zeros = False
        self.has_sql_after_end = False  # after a footer
        self.copied: set[Entry] = set()  # those with a COPY block
        self.inserted: set[Entry] = set()  # those with rows by INSERT
        # Data: their table as the comment names it, and as COPY or INSERT does
        self.blocks: set[tuple[str, bytes]] = set()
        # Entries that are not loaded -> the first line that is not
        self.left_out: dict[Entry, int] = {}
        self.swallowed: set[str] = set()  # tables whose data lie in another's block
        self.problems: list[str] = []
        self.last = b""  # the last piece that was read
        for line in iter(self.piece, b""):
            self.take(line)
        self.finish()

    @property
    def versions(self) -> list[int]:
        """The major versions of the server and of pg_dump that it names."""
        return sorted(map(int, self.noted["version"])) or [0]

    @property
    def locale(self) -> str:
        """The clauses of its CREATE DATABASE, "" if it has none."""
        return "".join(self.noted["locale"])

    @property
    def encoding(self) -> str:
        """The encoding of a database into which it can be loaded."""
        found = re.search(r"ENCODING = '(\w+)'", self.locale)
        if found:
            return found[1]
        if "SQL_ASCII" in self.noted["encoding"]:
            return "SQL_ASCII"
        return "UTF8"

    @property
    def has_names(self) -> bool:
        """Whether entries are named as pg_dump has named them since 10.3."""
        return self.versions[0] >= 10 and not self.noted["search_path"]

    @property
    def is_garbled(self) -> bool:
        """Whether it went through something that took it for text."""
        return bool(self.noted["CR LF"] or self.noted["UTF-16"])

    def named(self, *kinds: str) -> set[str]:
        """The full names in entries of these kinds."""
        return {entry.full_name for entry in self.entries if entry.kind in kinds}

    def tables(self, *kinds: str) -> set[str]:
        """The tables in entries of these kinds."""
        return {entry.table for entry in self.entries if entry.kind in kinds}

    @property
    def strange(self) -> set[str]:
        """Rows of PostgreSQL's own tables, and commands of psql that lead elsewhere."""
        # The name of a table in the backup may begin with pg_, that of a schema not.
        tables = {entry.name for entry in self.entries if entry.kind == "TABLE"}
        found = set(self.noted["data"]) - tables - {""}
        # Those before its own \restrict and after \unrestrict; see `loading`, too.
        if self.noted["restrict"]:
            found.update(self.noted["command"])
        return found

    def piece(self) -> bytes:
        """The next line, or a part of one that is very long."""
        piece = self.file.readline(LONGEST)
        self.line += int(piece.endswith(b"\n"))
        if b"\0" in piece:
            self.has_zeros = True
        self.last = piece
        return piece

    def take(self, line: bytes) -> None:
        """Note what a line tells; read to the end of what it begins."""
        kind = self.entry.kind
        is_outside = kind == AFTER_END or not self.noted["header"]
        if is_outside and re.match(SQL_LINE, line):
            if kind == AFTER_END:
                self.has_sql_after_end = True
            for word in re.findall(OF_SERVER, line):
                self.noted["server"][self.text(word)] += 1
        self.end_texts(line)
        # A blank and a bracket: one more row by --rows-per-insert.
        if kind == "TABLE DATA" and line.startswith((b"INSERT ", b"\t(")):
            self.take_insert(line)
        match = TELLS.match(line)
        if not match:
            return
        what = TOLD[match.lastindex - 1]
        self.note(what, self.text(match[match.lastindex]))
        if what == "entry":
            for entry in self.entries_in(line):
                self.begin(entry)
        elif what == "header":
            self.begin(Entry(self.line - 1))
        elif what == "footer":
            self.begin(Entry(self.line - 1, kind=AFTER_END))
        elif kind == "TABLE DATA" and line.startswith(b"COPY "):
            self.take_block(line)
        elif kind == "SEQUENCE SET" and what == "setval":
            self.take_sequence()
        elif what in ("roles", "on database"):
            # If a name has a line feed, the last piece is another line.
            self.take_roles(line + self.last)

    def entries_in(self, lines: bytes) -> Iterator[Entry]:
        """The entries whose comments are among these lines."""
        for line in lines.split(b"\n"):
            comment = ENTRY.match(line, 0, LONGEST_ENTRY)
            if comment:
                yield Entry(self.line - 1, *map(self.text, comment.groups()))

    def end_texts(self, line: bytes) -> None:
        """Read to the end of a line, and of a text or name that it begins.

        Such a text can hold lines that look like a header, an entry, or CR LF.
        """
        is_comment = line.startswith(b"--")
        has_texts = self.entry.kind not in WITHOUT_TEXTS and not is_comment
        opened = b""
        while line:
            if has_texts:
                opened = opened_in(opened + line)
            if line.endswith(b"\n") and not opened:
                break
            line = self.piece()

    def note(self, what: str, value: str) -> None:
        """Note what was told; leave out of the load what is about the server."""
        entry = self.entry
        is_inside = entry.kind not in ("", AFTER_END)
        if what == "command" and is_inside and self.noted["restrict"]:
            return  # psql obeys none between \restrict and \unrestrict
        if what == "encoding":
            self.codec = codec_of(value)
        if what == "on database":
            self.left_out[entry] = entry.line
        elif what in ("drop", "server") and not entry.kind:
            # Before the first object: what is from this line to the next entry.
            self.left_out.setdefault(entry, self.line)
        elif what not in ("server", "command") or entry not in self.left_out:
            # These do no harm in an entry that is left out, as \connect in DATABASE.
            self.noted[what][value] += 1

    def begin(self, entry: Entry) -> None:
        """Begin an entry."""
        # pg_dump writes the database first, and then its properties.
        is_early = not self.entry.kind or self.entry in self.left_out
        if is_early and entry.kind in ("DATABASE", "DATABASE PROPERTIES"):
            self.left_out[entry] = entry.line
        if entry.owner not in ("", "-"):
            self.roles.add(entry.owner)
        self.entries.append(entry)
        self.entry = entry

    def take_roles(self, line: bytes) -> None:
        """Note the roles that a line names."""
        for names in re.findall(ROLES, line):
            for name in re.findall(NAME, names):
                self.roles.add(unquoted(self.text(name)))

    def take_insert(self, line: bytes) -> None:
        """Count a row by INSERT; a line that ends with VALUES has its rows below."""
        if self.entry not in self.inserted:
            self.inserted.add(self.entry)
            self.note_data(line)
        if not self.last.endswith(b" VALUES\n"):
            self.rows[self.entry.table] += 1

    def take_block(self, line: bytes) -> None:
        """Count the rows of a COPY block, which begins with the line."""
        if not self.last.endswith(FROM_STDIN):  # it is cut: the data are missing
            return
        table = self.entry.table
        self.note_data(line)
        self.copied.add(self.entry)
        rows = 0
        before = self.last
        for piece in iter(self.rows_ahead, b""):
            if piece == END_OF_DATA and before.endswith(b"\n"):
                break
            self.check_rows(piece)
            rows += piece.count(b"\n")
            before = piece
        else:
            self.problems.append(f"{table}: its COPY block has no end")
        self.rows[table] += rows
        self.line += rows + 1

    def note_data(self, line: bytes) -> None:
        """Note that data of a table begin with the line."""
        # Names that differ by a line feed alone have the same comment.
        block = (self.entry.table, re.match(DATA_OF, line)[1])
        if block in self.blocks:
            self.problems.append(f"{self.entry.table}: its data are there twice")
        self.blocks.add(block)

    def rows_ahead(self) -> bytes:
        """The rows that are in memory; else a line, or a part of a long one.

        Most rows are read by the thousand: to read them one by one takes longer.
        """
        ahead = self.file.peek()
        last = -1
        if b"\\" in ahead:  # one byte is found forty times faster than four
            last = ahead.find(b"\n" + END_OF_DATA)
        if last < 0:
            last = ahead.rfind(b"\n")
        if last < 0 or ahead.startswith(END_OF_DATA):
            return self.file.readline(LONGEST)
        return self.file.read(last + 1)

    def check_rows(self, rows: bytes) -> None:
        """Note what an undamaged block cannot contain."""
        if b"\0" in rows:
            self.has_zeros = True
        # Again, one byte is looked for first, as it is found faster.
        if b";" in rows and b"; Type: TABLE DATA; " in rows:
            for entry in self.entries_in(rows):
                if entry.kind == "TABLE DATA":
                    self.swallowed.add(entry.table)

    def take_sequence(self) -> None:
        """Note the value of a sequence, which is at the end of the line."""
        for number, is_called in re.findall(SETVAL_END, self.last):
            value = self.text(number)
            if is_called == b"false":
                value += ", not called yet"
            self.sequences.add((f"sequence {self.entry.full_name}", value))

    def text(self, raw: bytes) -> str:
        """Text of the backup, read in its encoding."""
        return raw.decode(self.codec, "surrogateescape")

    def finish(self) -> None:
        """Note what is missing."""
        last = self.entry.kind
        self.begin(Entry(self.line + 1, kind=AFTER_END))
        self.finish_tables()
        parts = self.noted["header"].total()
        for is_so, problem in [
            (
                len(self.sequences) < len(self.named("SEQUENCE SET")),
                "values of sequences are missing",
            ),
            (
                self.noted["filled"].total() < self.noted["made"].total(),
                "data of large objects are missing",
            ),
            (
                self.has_zeros,
                "zero bytes, which no text of PostgreSQL's has",
            ),
            (
                not parts,
                "no header, expected '-- PostgreSQL database dump'",
            ),
            (
                last != AFTER_END or self.noted["footer"].total() < parts,
                "no footer, expected '-- PostgreSQL database dump complete'",
            ),
        ]:
            if is_so:
                self.problems.append(problem)
        if self.noted["CR LF"]:
            self.problems = [CR_LF_PROBLEM]
        if self.noted["UTF-16"]:
            self.problems = [UTF_16_PROBLEM]

    def finish_tables(self) -> None:
        """Note tables whose data are missing from their entry, or swallowed."""
        # In a dump by INSERT, the entry of a table without rows is empty.
        has_copies_alone = bool(self.copied) and not self.inserted
        for entry in self.entries:
            lacks_block = entry.kind == "TABLE DATA" and entry not in self.copied
            if has_copies_alone and lacks_block:
                self.problems.append(f"{entry.thing}: missing")
        without_data = self.tables("TABLE") - self.tables("TABLE DATA")
        for table in sorted(self.swallowed & without_data):
            self.problems.append(f"{table}: its data lie in another's COPY block")


NOTHING = Reading(io.BytesIO())


def opened_in(text: bytes) -> bytes:
    """The quote, or the first line of a body, that a text opens but does not close.

    Empty if there is none.
    """
    return OPENING.match(text, CLOSED.match(text).end())[0]


def codec_of(encoding: str) -> str:
    """The codec of Python for an encoding of PostgreSQL, else UTF-8."""
    name = encoding.replace("WIN", "cp").replace("KOI8", "KOI8-")
    name = re.sub("^(SJIS|MSKANJI)", "cp932", name)
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "utf-8"


def unquoted(name: str) -> str:
    """The name that an SQL identifier stands for."""
    if name.startswith('"'):
        return name[1:-1].replace('""', '"')
    return name


# --- The source and its backup -----------------------------------------------
# In: the project, or its database. Out: a backup, and what the source held when
# it was written. Promised: the configured database is only read.

SAMPLE = r"""
CREATE SCHEMA backup_drill;
COMMENT ON SCHEMA backup_drill IS 'It''s a sample; "quotes", \ and
a second line';
CREATE TYPE backup_drill.mood AS ENUM ('good', 'bad', 'it''s complicated');
CREATE DOMAIN backup_drill.percent AS numeric(5, 2)
CHECK (VALUE BETWEEN 0 AND 100);
CREATE SEQUENCE backup_drill.ticket START 1000 INCREMENT 10;
CREATE TABLE backup_drill.item (                    -- "Note" needs its quotes
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "Note" text, amount numeric,
    kind varchar(10) NOT NULL DEFAULT 'plain'
    CHECK (kind IN ('plain', 'awkward')),
    ticket integer DEFAULT nextval('backup_drill.ticket'),
    ratio double precision, share backup_drill.percent, mood backup_drill.mood,
    born date, seen timestamptz, lasted interval, raw bytea, parsed jsonb,
    verbatim json, tags text[], span int4range,
    length integer GENERATED ALWAYS AS (length("Note")) STORED);
INSERT INTO backup_drill.item (kind, "Note") VALUES
    ('awkward', 'a ''quote'', a "double" one, a \backslash, one at the end \'),
    ('awkward', E'a\ttab, a\nnew line, a\rreturn'),
    ('awkward', '  blanks around  '), ('awkward', '\.'),
    ('awkward', E'COPY backup_drill.item (x) FROM stdin;\n1\n\\.\n'),
    ('awkward', NULL), ('awkward', ''), ('awkward', '\N'),  -- NULL is neither
    ('awkward', 'naïve Ünïcödé, 日本語, العربية, 🚑, é is not é'),
    ('awkward', '-- PostgreSQL database dump complete'),
    ('awkward', repeat('long enough for TOAST ', 5000));
INSERT INTO backup_drill.item (amount, ratio, share, born, seen, lasted) VALUES
    ('NaN', 'NaN', 0, '0044-03-15 BC', '-infinity', '1 mon -1 day'),
    ('1.00', 'Infinity', 100, 'infinity', NULL, '-00:00:00.000001'),
    ('1.0', '-0', 0.01, NULL, '2024-02-29 23:59:59.999999+14', NULL),
    (12345678901234567890.123456789, 0.1::float8 + 0.2, 9, NULL, NULL, NULL);
INSERT INTO backup_drill.item (raw, parsed, verbatim, tags, span, mood) VALUES
    ('\x00ff005c0a', '{"b": [1, null], "a": 1.0}', '{"b":1,  "b":2}',
     ARRAY['NULL', NULL, '', '{}', 'a,"b'], '[1,5)', 'it''s complicated'),
    ('', 'null', '"\u00e9"', '{}', 'empty', 'good');
INSERT INTO backup_drill.item ("Note")
SELECT 'row ' || n
  FROM generate_series(1, 100 - (SELECT count(*) FROM backup_drill.item)) AS n;
SELECT nextval('backup_drill.ticket');              -- a gap behind the last row
CREATE INDEX item_awkward ON backup_drill.item (lower("Note") DESC NULLS LAST)
 WHERE kind IN ('awkward', 'odd') AND ticket BETWEEN 0 AND 9999;
CREATE TABLE backup_drill.node (                    -- a tree
    id integer GENERATED BY DEFAULT AS IDENTITY (START 7 INCREMENT 3)
    PRIMARY KEY,
    parent integer
    REFERENCES backup_drill.node DEFERRABLE INITIALLY DEFERRED,
    item bigint NOT NULL REFERENCES backup_drill.item ON DELETE CASCADE,
    place integer UNIQUE,
    reserved int4range, EXCLUDE USING gist (reserved WITH &&));
INSERT INTO backup_drill.node (parent, item, place, reserved)
SELECT nullif(7 + 3 * (n / 2), 7 + 3 * n), n + 1, n, int4range(n, n + 1)
  FROM generate_series(0, 99) AS n;
CREATE TABLE backup_drill.event (what text, at timestamptz);  -- no key
INSERT INTO backup_drill.event                      -- equal rows
SELECT 'twice', timestamptz '2024-01-01 00:00:00+00' + n % 50 * interval '1 hour'
  FROM generate_series(1, 100) AS n;
ALTER TABLE backup_drill.event ENABLE ROW LEVEL SECURITY;
CREATE POLICY event_recent ON backup_drill.event
   FOR SELECT USING (at > '2024-01-02');
CREATE VIEW backup_drill.awkward AS
SELECT id, "Note" FROM backup_drill.item WHERE kind IN ('awkward', 'odd');
CREATE MATERIALIZED VIEW backup_drill.tally AS
SELECT kind, count(*) AS items FROM backup_drill.item GROUP BY kind;
CREATE FUNCTION backup_drill.keep_place() RETURNS trigger
LANGUAGE plpgsql AS $body$
BEGIN /* A reader of the backup must not take this for data:
COPY backup_drill.fake (id) FROM stdin;
\.
-- PostgreSQL database dump complete
*/  NEW.place := coalesce(NEW.place, NEW.id + 1000);
    RETURN NEW;
END $body$;
CREATE TRIGGER node_place BEFORE INSERT ON backup_drill.node
   FOR EACH ROW WHEN (NEW.place IS NULL)
   EXECUTE FUNCTION backup_drill.keep_place();
GRANT SELECT ON backup_drill.item TO PUBLIC;
GRANT UPDATE (what) ON backup_drill.event TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA backup_drill
GRANT SELECT ON TABLES TO PUBLIC;
SELECT lo_from_bytea(4711, '\x00ff0a5c2e0a');
COMMENT ON LARGE OBJECT 4711 IS 'six bytes';
"""
# A project may have its tables in a schema that its migrations do not make.
SCHEMAS = r"""
SELECT format('CREATE SCHEMA %I', replace(btrim(name, '"'), '$user', current_user))
  FROM regexp_split_to_table(current_setting('search_path'), ', *') AS name
 WHERE current_schemas(false) <@ '{pg_catalog}'
   AND name !~ '^("?pg_|$)' \gexec
"""
# Through the identity columns, the sequence and the trigger of the sample.
SAMPLE_INSERTS = """
BEGIN;  -- and no COMMIT
INSERT INTO backup_drill.item ("Note") VALUES ('after the restore');
INSERT INTO backup_drill.node (item) SELECT max(id) FROM backup_drill.item;
"""


def rehearsed_backup(server: Database, project: "Project") -> "Backup":
    """A backup of the migrations and the sample, whose database is then dropped."""
    source = made_database(server, "source", server)
    source.ask(SCHEMAS)
    with step("run the project's migrations"):
        migrate = project.on_alias("migrate", "--noinput", "--verbosity=0")
        project.manage(migrate, source, timeouts=10)
    sample = SAMPLE
    if source.encoding != "UTF8":
        sample = SAMPLE.encode("ascii", "replace").decode()
    with step("load the sample"):
        output_of(source.psql(sample))
    backup = new_backup(source, project)
    drop_databases(server, "source")
    return backup


def new_backup(source: Database, project: "Project") -> "Backup":
    """A backup of a database, by the team's own command if one is given."""
    if source.run.options.backup_command:
        backup = commanded_backup(source, project)
    else:
        backup = written_backup(source)
    if not backup.contents.tables:
        raise NotJudged(f'database "{source.name}" has no table to lose')
    return backup


def written_backup(source: Database) -> "Backup":
    """A backup by pg_dump, and what its source held in the same snapshot."""
    run = source.run
    form = run.options.format
    path = run.folder / f"backup.{form}"
    arguments = ["--no-sync", "--encoding", source.encoding, "--format", form]
    if form == "directory":
        arguments += ["--jobs", run.options.jobs]
    before = source.ask(STATES_OF_SEQUENCES)
    with (
        step("write the backup"),
        source.held(f"{BEGIN}SELECT pg_export_snapshot();") as snapshot,
        source.started(
            "pg_dump", *arguments, "--file", path, "--snapshot", snapshot
        ) as dump,
        reading_contents(source, snapshot) as contents,
    ):
        seconds = dump.wait()
        size = size_of(path)
        if run.options.rehearsal and size <= 1024:  # the sample alone has more
            raise BackupIsBad(f"pg_dump ended well but wrote only {size} bytes")
        sha256 = output_of(hashing(path, run))
        found = contents()
    after = source.ask(STATES_OF_SEQUENCES)
    changed = set(map(tuple, before)) ^ set(map(tuple, after))
    moved = {thing for _, thing, _ in changed}
    return Backup(
        path,
        FORMATS[form],
        sha256,
        source=source,
        contents=replace(found, moved=moved),
        seconds=seconds,
    )


def commanded_backup(source: Database, project: "Project") -> "Backup":
    """A backup by the team's command; what changed while it ran is not compared."""
    run = source.run
    path = run.folder / "backup"
    with step("read the source"):
        before = read_contents(source)
    command = run.options.backup_command
    environment = command_environment(source, project, path)
    seconds = run_command(run, "backup command", command, environment)
    if not size_of(path):
        raise BackupIsBad("the backup command wrote nothing to $BACKUP_FILE")
    with step("read the source again"):
        after = read_contents(source)
    moved = {thing for thing, _ in before.facts ^ after.facts}
    altered = {thing for thing, _ in before.definitions ^ after.definitions}
    busy = {thing for thing in moved if before.rows[thing] and after.rows[thing]}
    if run.options.rehearsal:  # nobody else can have done it
        require_none("the backup command changed its source", sorted(moved | altered))
    backup = adopted_backup(path, run)
    return replace(
        backup,
        sha256=backup.sha256 or output_of(hashing(path, run)),
        source=source,
        contents=replace(after, moved=moved, altered=altered, busy=busy),
        seconds=seconds,
    )


# Prints the SHA-256 of the files that stdin names, all in one.
HASH = r"""
import hashlib, sys
total = hashlib.sha256()
for name in filter(None, sys.stdin.buffer.read().split(b"\0")):
    with open(name, "rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            total.update(piece)
print(total.hexdigest(), end="")
"""


def hashing(path: Path, run: Run) -> Context:
    """A program that prints the SHA-256 of a backup."""
    command = (sys.executable, "-IS", "-c", HASH)
    names = "\0".join(map(str, members_of(path)))
    return run.started(*command, name="SHA-256", text=names)


# --- A backup that exists ----------------------------------------------------
# In: whatever an operator points at. Out: a backup, or what the file is and
# what to do. Promised: the file is only read; a file that pg_dump did not write
# is not judged.

PG_RESTORE = ("pg_restore", "--file", "-")
DECRYPT = "give --decrypt; to judge a backup command, --restore-command"
UNPACK = "unpack it first, and give the backup that lies in it"


@dataclass(frozen=True)
class Format:
    """How the files of a format begin, and what turns them into SQL."""

    name: str
    begins: bytes = rb"(?!)"  # a regular expression; by default, nothing does
    command: Command = ()
    hint: str = ""  # what to do if there is no such command


UNREAD = Format("a format of the command's own, which was not read")
KNOWN_FORMATS = (
    Format("custom", rb"PGDMP", PG_RESTORE),
    Format("tar", rb"toc\.dat\0", PG_RESTORE),
    Format("directory", command=PG_RESTORE),
    Format("gzip", rb"\x1f\x8b", ("gzip", "-dc")),
    # Files of pzstd begin with a frame to be skipped, the second form.
    Format(
        "zstd",
        rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
        ("zstd", "-dcq", "--long=31"),
    ),
    Format("xz", rb"\xfd7zXZ\0", ("xz", "-dc")),
    Format("bzip2", rb"BZh", ("bzip2", "-dc")),
    Format("lz4", rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", ("lz4", "-dc")),
    Format("a zip file", rb"PK\x03\x04", hint=UNPACK),
    Format("a 7z file", rb"7z\xbc\xaf", hint=UNPACK),
    Format("a tar of other files", rb"(?s).{257}ustar", hint=UNPACK),
    Format("encrypted by openssl", rb"Salted__|U2FsdGVkX1", hint=DECRYPT),
    Format("encrypted by age", rb"age-enc|-----BEGIN AGE", hint=DECRYPT),
    # The latter are packets of a session key, in the old form, and in the new
    # one, which UTF-8 cannot be.
    Format(
        "encrypted by OpenPGP",
        rb"-----BEGIN PGP|[\x84\x85\x8c]|[\xc1\xc3][\x00-\x7f]",
        hint=DECRYPT,
    ),
    Format("plain", rb"", ("/bin/cat",)),  # or anything else, as its content will tell
)
FORMATS = {form.name: form for form in KNOWN_FORMATS}
# Prints where an archive holds the beginning of another one, if it does. The last
# byte of that is a control character: hardly any text of a database holds it.
FIND_ARCHIVE = r"""
import sys
head = b"PGDMP\1"
tail = b""
with open(sys.argv[1], "rb") as file:
    file.seek(1)  # the archive's own head is none
    for piece in iter(lambda: file.read(2**20), b""):
        found = (tail + piece).find(head)
        if found >= 0:
            print(file.tell() - len(tail + piece) + found)
            break
        tail = piece[-len(head):]
"""
READ_BEGINNING = 'head -c "$2" -- "$1" | "$3" --file /dev/null'
# The files of a directory, and how they are compressed:
# toc.dat, 3456.dat.gz, blob_4711.dat, blobs_16394.toc
MEMBER = re.compile(r"toc\.dat|(blob_)?\d+\.dat(\.\w+)?|blobs(_\d+)?\.toc(\.\w+)?")
MEMBER_FORMATS = {".gz": "gzip", ".lz4": "lz4", ".zst": "zstd"}
# A tar holds SQL, too, for those who unpack it:
# -- File paths need to be edited. Search for $$PATH$$ and
IN_PARTS = b"\n-- File paths need to be edited."
# What is shown of a file that is not a backup: a beginning that cannot be a row.
SHOWN = rb"((--|/\*)[ -~]{0,60}|<[!?a-zA-Z][a-zA-Z ]*|[{\[]|SQLite format)?"
# What decompressors and pg_restore say of damage, and of nothing else:
# gzip: x.gz: unexpected end of file
# bzip2: Compressed file ends unexpectedly
# zstd: x.zst: Data corruption detected
# lz4: Decompression error : ERROR_contentChecksum_invalid
# xz: x.xz: File format not recognized
# pg_restore: error: could not open file "3456.dat": No such file or directory
DAMAGE = (
    "unexpected|premature end|Unfinished stream|end of (file|input)|too short"
    "|[Cc]orrupt|[Ii]ntegrity|crc error|length error|Decompression error"
    "|uncompress|not recognized|[Uu]nrecognized (?!option)|unknown header"
    "|match checksum|incorrect (data|header|length) check|could not close data"
    "|unsupported format|magic|could not open .*No such file|could not find"
    "|out of range|invalid (?!option|mem)"
)
# "Started on" is in an unknown time zone, which is at most so far behind UTC.
FARTHEST_BEHIND = timedelta(hours=12)


@dataclass(frozen=True)
class Backup:
    """The file or folder that holds a database."""

    path: Path
    format: Format
    sha256: str  # that was recorded for it, or ""
    written: float = 0  # when an existing one was, in seconds since 1970
    first_reading: Reading = NOTHING  # of the beginning of an existing one
    source: Database | None = None  # of a backup that this run has made
    contents: Contents | None = None  # of its source, when it was written
    seconds: float | None = None  # how long it took to write

    @property
    def model(self) -> Database | Reading:
        """What has the encoding and the locale that a database for it needs."""
        return self.source or self.first_reading

    def sql(self, programs: "Programs", *options: str) -> Context:
        """The program that writes its SQL to stdout."""
        program, *arguments = self.format.command
        if program == "pg_restore":
            program = programs.folder / program
        arguments += [*options, self.path]
        return programs.run.started(program, *arguments, stdout=PIPE)


def members_of(path: Path) -> list[Path]:
    """The files of a backup; others that lie in its folder do not count."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if (path / "toc.dat").is_file():
        files = [file for file in files if MEMBER.fullmatch(file.name)]
    return files


def size_of(path: Path) -> int:
    """The size of a backup in bytes, 0 if there is none."""
    return sum(size for _, size, _ in state_of(path))


def state_of(path: Path | None) -> list[tuple[int, int, int]]:
    """The inode, size and time of modification of each file of a backup."""
    if not path or not path.exists():
        return []
    stats = [file.stat() for file in members_of(path)]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


def adopted_backup(path: Path, run: Run) -> Backup:
    """A backup that another program has made."""
    path.stat()  # raises FileNotFoundError
    is_readable = path.is_file() or path.is_dir()
    # /dev/stdin, /proc/self/fd/3: another file in each program.
    is_stream = re.match("/dev/(fd/|std)|/proc/", str(path))
    if is_stream or not is_readable:
        raise NotJudged(f"{path} is not a file", "write its output into one")
    programs = found_programs(run, NEWEST, CLIENTS)
    times = [modified for _, _, modified in state_of(path)]
    written = max(times, default=0) / 1e9  # an empty folder has no times
    backup = Backup(path, UNREAD, recorded_sha256(path), written)
    if run.options.decrypt:
        backup = replace(backup, path=decrypted(path, run))
    try:
        return readable_backup(backup, programs)
    except NotReadable:
        if run.options.restore_command:
            return backup
        raise


def decrypted(path: Path, run: Run) -> Path:
    """The backup that the user's command makes of a file."""
    target = run.folder / "decrypted"
    streams = f"exec < {shlex.quote(str(path))} > {shlex.quote(str(target))}"
    command = f"{streams}\n{run.options.decrypt}"
    run_command(run, "decrypt command", command, environ, NotJudged)
    if not size_of(target):
        raise NotJudged("the decrypt command wrote nothing", "check its key")
    return target


def readable_backup(found: Backup, programs: "Programs") -> Backup:
    """The backup with what its beginning tells. Raises NotReadable."""
    backup = replace(found, format=format_of(found.path))
    if problems_of_files(backup):  # validation reports them
        return backup
    if backup.format.name == "custom":
        require_one_archive(backup.path, programs)
    is_archive = backup.format.command == PG_RESTORE
    options = []
    if is_archive:  # pg_restore then tells the locale, and when it was written
        options = ["--create", "--verbose"]
    problems = []
    with backup.sql(programs, *options) as reader:
        beginning = io.BufferedReader(reader.popen.stdout).read(LONGEST)
        if len(beginning) < LONGEST:  # else the program has not ended
            problems = problems_of_program(reader)
    first_reading = Reading(io.BytesIO(beginning))
    if not is_archive and not problems:
        require_sql(backup.path, first_reading)
    written = backup.written
    for started in first_reading.noted["started"]:
        with suppress(ValueError, OverflowError):  # no such day
            # The latest that it can be: the time of a clock that is far behind UTC.
            local = datetime.fromisoformat(f"{started}+00:00")
            written = min(written, (local + FARTHEST_BEHIND).timestamp())
    return replace(backup, written=written, first_reading=first_reading)


def format_of(path: Path) -> Format:
    """The format of a file, by its content. Raises NotReadable."""
    if (path / "toc.dat").is_file():
        return FORMATS["directory"]
    if path.is_dir():
        hint = "it is empty"
        names = sorted(file.name for file in path.iterdir())
        if names:
            hint = f"name one of these: {', '.join(names[:5])}"
        raise NotReadable(
            f"{path} is a folder, but not a backup: it has no toc.dat", hint
        )
    with path.open("rb") as file:
        return readable_format(file.read(1024), path)


def readable_format(head: bytes, path: Path) -> Format:
    """The format of a file that begins so. Raises NotReadable if nothing reads it."""
    found = next(form for form in KNOWN_FORMATS if re.match(form.begins, head))
    if found.hint:
        raise NotReadable(f"{path} is {found.name}", found.hint)
    return found


def require_sql(path: Path, first_reading: Reading) -> None:
    """Raise NotReadable unless a plain file is SQL that pg_dump wrote."""
    beginning = first_reading.beginning
    inside = readable_format(beginning[:1024], path).name
    if inside != "plain":
        raise NotReadable(f"{path} is packed twice: {inside} lies in it", UNPACK)
    if first_reading.noted["cluster"]:
        raise NotReadable(
            f"{path} is a dump of a whole server, by pg_dumpall",
            "dump each database by pg_dump",
        )
    if IN_PARTS in beginning[:1024]:
        raise NotReadable(
            f"{path} is the restore.sql of a tar, whose data are in other files",
            "name the tar, or the folder that it was unpacked into",
        )
    is_damaged = first_reading.is_garbled or not beginning.strip(b"\0")
    # Reading itself adds an entry before the first line and one after the last.
    has_no_entries = len(first_reading.entries) == 2
    if has_no_entries and not is_damaged:
        shown = re.match(SHOWN, beginning)[0].decode()
        raise NotReadable(
            f"{path} is not a backup by pg_dump",
            shown,
            "name a file or folder that pg_dump has written",
        )


def require_one_archive(path: Path, programs: "Programs") -> None:
    """Raise NotJudged if another archive follows the first one, as by `>>`."""
    run = programs.run
    command = (sys.executable, "-IS", "-c", FIND_ARCHIVE, path)
    position = output_of(run.started(*command, name="the search for an archive"))
    if not position:
        return
    pg_restore = programs.folder / "pg_restore"
    reading = ("/bin/sh", "-c", READ_BEGINNING, "sh", path, position.strip())
    try:
        output_of(run.started(*reading, pg_restore))
    except ProgramFailed:
        return  # it needs more: the other one is in a large object of the first
    raise NotJudged(
        f"{path} holds a second archive, which pg_restore ignores",
        "write each into a file of its own, by > in place of >>",
    )


def problems_of_program(reader: Program) -> list[str]:
    """What a program says of damage. Raises ProgramFailed for everything else."""
    path = reader.popen.args[-1]
    try:
        reader.wait()
    except ProgramFailed as failure:
        if not re.search(DAMAGE, failure.stderr.replace(path, "")):
            raise
        return [": ".join(failure.args[:2])]
    return []


def recorded_sha256(path: Path) -> str:
    """The SHA-256 that a FILE.sha256 records, "" if there is none."""
    record = path.with_name(f"{path.name}.sha256")
    if not record.is_file():
        return ""
    if path.is_dir():
        log.warning("%s was not used: %s is a folder", record, path.name)
        return ""
    text = record.read_text("utf-8", "surrogateescape")
    text = text.replace("\0", "")  # as UTF-16 of PowerShell has
    line = rf"(?m)^.*(?<![\w.-]){re.escape(path.name)}(?![\w.-]).*"
    named = "\n".join(re.findall(line, text)) or text
    digests = set(re.findall(r"\b[0-9a-f]{64}\b", named.lower()))
    if len(digests) != 1:
        log.warning("%s does not hold one SHA-256 of %s", record, path.name)
        return ""
    return digests.pop()


# --- Validation --------------------------------------------------------------
# In: a backup. Out: what it says, once it was found whole. Promised: it is read
# to its end, hashed, and compared with its source; every problem is listed.


def validated_reading(backup: Backup, server: Database) -> tuple[Reading, str]:
    """What a backup says, and its SHA-256. Raises BackupIsBad for damage."""
    # The file as it was given, even if it was decrypted:
    path = server.run.options.backup or backup.path
    with step("read the backup"), hashing(path, server.run) as hasher:
        if backup.format == UNREAD:
            reading, problems = reading_of_source(backup), []
        else:
            reading, problems = read_whole(backup, server)
        hasher.wait()
        sha256 = hasher.stdout()
    if not size_of(backup.path):
        problems = ["it is empty"]
    if backup.sha256:
        problems = problems_of_checksum(sha256, backup.sha256) + problems
    require_none("the backup is damaged", problems)
    if backup.format != UNREAD:
        require_loadable(reading, server)
        require_damage_seen(reading)
    return reading, sha256


def reading_of_source(backup: Backup) -> Reading:
    """What the source says, for a backup that only its restore command can read."""
    if not backup.source:
        return NOTHING
    return Reading(io.BytesIO(encoded(backup.contents.script)))


def read_whole(backup: Backup, server: Database) -> tuple[Reading, list[str]]:
    """What a backup says, and what is wrong with it."""
    problems = problems_of_files(backup)
    if problems:  # pg_restore would never end on a tar that is cut
        return NOTHING, problems
    with backup.sql(server.programs) as reader:
        reading = Reading(reader.popen.stdout)
        problems = problems_of_program(reader) + reading.problems
    if reading.is_garbled:  # then all other problems follow from that
        return reading, reading.problems
    if backup.source:
        problems += problems_of_source(reading, backup)
    elif not problems and not reading.named("TABLE", "TABLE DATA"):
        problems = ["it holds no table"]
    elif not problems and not reading.rows:
        problems = ["it holds no data of any table"]
    return reading, problems


def problems_of_checksum(found: str, expected: str) -> list[str]:
    """The problem that a checksum is not the recorded one, if it is not."""
    if found == expected:
        return []
    return [f"SHA-256: found {found}, expected {expected}"]


def problems_of_files(backup: Backup) -> list[str]:
    """Damage that pg_restore does not see: of a directory's files, of a tar's end."""
    problems = []
    if backup.format.name == "directory":
        for file in members_of(backup.path):
            form = FORMATS.get(MEMBER_FORMATS.get(file.suffix))
            # pg_restore takes an empty file for a table without rows, and reads
            # what is not compressed as it is.
            with file.open("rb") as content:
                head = content.read(16)
            if form and not re.match(form.begins, head):
                problems.append(f"{file.name}: it is no file of {form.name}")
    if backup.format.name == "tar" and not ends_well(backup.path):
        problems.append("the tar is cut, damaged, or goes on after its end")
    return problems


def ends_well(path: Path) -> bool:
    """Whether the zeros that end a tar, and nothing else, follow its last file."""
    try:
        with tarfile.open(path, mode="r:") as tar:
            tar.getmembers()
            tar.fileobj.seek(tar.offset)
            rest = tar.fileobj.read(LONGEST)
    except tarfile.TarError:
        return False
    # Old versions of pg_dump write one block of zeros, others two.
    return len(rest) >= 512 and not rest.strip(b"\0")


def told_facts(reading: Reading, contents: Contents) -> set[Fact]:
    """The facts of a database, with numbers and values as a backup tells them."""
    rows = Counter({LARGE_OBJECTS: reading.noted["made"].total()})
    # A partition without rows may have no entry; its rows may be in that of the top.
    for table in reading.tables("TABLE DATA") | contents.roots.keys():
        rows[contents.top(table)] += reading.rows[table]
    return (contents.facts - contents.told) | counted(rows) | reading.sequences


def problems_of_source(reading: Reading, backup: Backup) -> list[str]:
    """How the rows and sequences of a backup differ from those of its source."""
    run = backup.source.run
    contents = backup.contents
    uncounted = contents.moved | reading.tables("FOREIGN TABLE")
    had = without(contents.facts, uncounted)
    told = told_facts(reading, contents)
    # Of what changed meanwhile, some data must be there; but it may be new.
    lacking = {thing for thing in contents.busy if (thing, "0 rows") in told}
    changed = contents.moved - contents.altered
    for thing in unfilled_things(reading, contents):
        if contents.top(thing) in changed:
            lacking.add(thing)
    had.update((thing, "its data, which change") for thing in lacking)
    told = without(told, uncounted)
    problems = list(map(str, unaccepted(differences_of_facts(had, told), run)))
    if problems and run.options.live:
        problems.insert(0, "if rows came and went meanwhile, run again")
    alike = {text for _, text in contents.told & told}
    if problems and alike <= {"0 rows"}:
        problems.insert(0, ELSEWHERE)
    return problems


def require_loadable(reading: Reading, server: Database) -> None:
    """Raise NotJudged if a load would fail, or would change other databases."""
    newest = reading.versions[-1]
    foreign = reading.named("FOREIGN TABLE") & reading.named("TABLE DATA")
    strange = ", ".join(sorted(reading.strange))
    beyond = ", ".join(sorted(reading.noted["server"]))
    for is_so, fact, hint in [
        (
            newest > server.programs.major,
            f"PostgreSQL {newest} wrote it, {server.programs.major} is here",
            f"install PostgreSQL {newest}, or a newer one",
        ),
        (
            len(reading.named("DATABASE")) > 1,
            f"it holds the databases {', '.join(sorted(reading.named('DATABASE')))}",
            "judge the dump of each alone",
        ),
        (
            not reading.named("TABLE") and not server.run.options.restore_command,
            "it holds data without their tables",
            "put the part with the schema before it, in one file",
        ),
        (
            foreign,
            f"it holds rows of foreign tables: {', '.join(sorted(foreign))}",
            "a load would write into the other server: dump without them",
        ),
        (
            strange and not server.run.options.restore_command,
            f"pg_dump never writes this: {strange}",
            "find out who did",
        ),
        (
            beyond and not server.private,
            f"it changes more than its database: {beyond}",
            "use a private server: --throwaway",
        ),
    ]:
        if is_so:
            raise NotJudged(f"the backup cannot be judged: {fact}", hint)


def require_damage_seen(reading: Reading) -> None:
    """Raise NotJudged unless a cut backup, cut data and a flipped bit are seen."""
    control = "the drill's own control failed"
    beginning = reading.beginning
    before_end = beginning.split(b"-- PostgreSQL database dump complete")[0]
    cut = before_end[: len(before_end) // 2]
    if not Reading(io.BytesIO(cut)).problems:
        raise NotJudged(control, "the reader took a cut backup for whole")
    lines = beginning.split(b"\n")
    # Before the first entry with data, the body of a function may hold such a line.
    data = min((entry.line for entry in reading.copied), default=len(lines))
    if b"\\." in lines[data:]:
        cut = b"\n".join([*lines[: lines.index(b"\\.", data)], b""])
        if "has no end" not in str(Reading(io.BytesIO(cut)).problems):
            raise NotJudged(control, "the reader took cut data for whole")
    before = hashlib.sha256(beginning)
    after = hashlib.sha256(bytes([beginning[0] ^ 1]) + beginning[1:])
    if not problems_of_checksum(after.hexdigest(), before.hexdigest()):
        raise NotJudged(control, "the checksum did not see a flipped bit")


# --- The restored database, and what is expected of it -----------------------
# In: a backup and what it says. Out: what came back, and what should have.
# Promised: psql loads the backup in one transaction (with --jobs, pg_restore in
# many); an error blames the backup only if nothing else can have caused it.

# Superusers, as only such roles own event triggers. With LOGIN, as a restore
# command may connect as one of them.
GLOBALS = r"""
SELECT DISTINCT format('CREATE ROLE %I SUPERUSER LOGIN', name)
  FROM json_array_elements_text(:'roles') AS name
 WHERE name !~ '^pg_|^(public|PUBLIC|CURRENT_USER)$'
   AND name NOT IN (SELECT rolname FROM pg_roles) \gexec
SELECT DISTINCT format('CREATE TABLESPACE %I LOCATION ''''', name)
  FROM json_array_elements_text(:'tablespaces') AS name
 WHERE name NOT IN (SELECT spcname FROM pg_tablespace) \gexec
"""
EXISTS = "SELECT 1 FROM pg_database WHERE datname = :'name';"
# An unknown value is an error, after which psql has no variable `known`.
KNOWS_SETTING = r"""
\set ON_ERROR_STOP 0
\unset known
SELECT set_config(:'name_NUMBER', :'value_NUMBER', false) AS known \gset
SELECT to_json(:{?known});
"""
# A warning that rights were left as they are:
# psql:<stdin>:99: WARNING:  01006: no privileges could be revoked for "hstore"
NO_RIGHTS = re.compile(r"^psql:.*?:\d+: \S+:  0100[67]:", re.MULTILINE)
# Codes of a check that had no answer: the time was up, the server ended, its
# limits were reached; but not of one that names a missing file, 58P01.
NO_ANSWER = "08|5[37]|58(?!P01)"
# The line feed ends a comment at the end of the check.
CHECK = r"""
BEGIN READ ONLY;
SELECT format(E'SELECT to_json((%s\n))', :'check') \gexec
"""
PASSED = "passed"
SEE_WORDS = "see what it says: --verbose"
# The REFRESH below -- Name: tally; Type: MATERIALIZED VIEW DATA; ...
REFRESH = re.compile(
    r'(; Type: MATERIALIZED VIEW DATA; .*\n--\n\n)REFRESH (?:"[^"]*"|[^;"])*;'
)
# What pg_dump writes before the comment of the entry that it is for.
SET_FOR_NEXT_ENTRY = "^SET (SESSION AUTHORIZATION|search_path|default_[a-z_]+) "
# Entries that DEFINITIONS does not write, or under other names, and those of what
# every new database has: table data public.film, comment EXTENSION plpgsql
UNMATCHED = (
    "(table data|sequence set|materialized view data|statistics data|blob.*"
    "|(default )?acl|security label|comment LARGE OBJECT"
    "|database( properties)?) "
    "|(schema|extension|comment|.* language) ([A-Z]+ )?(public|plpgsql)$"
)
# A locale that orders texts by their bytes: ... LC_COLLATE = 'C' ...
BY_BYTES = r"(?s)^(?!.*(?i:icu)).* (LC_COLLATE|LOCALE) (= )?'(C|POSIX)'"
# Errors that may be due to settings of the database, the role or the server,
# such as the time zone, which decide what a value is, or whether a row is
# allowed.
# An index can rest on a function that pretends not to depend on them.
BY_SETTINGS = (
    ".* (23514|22007|22008|P0001)|INDEX 23505|[A-Z].* 42704:(find_option|assignable)"
)
# A value is not of its type, which no setting can change, as pg_dump sets its own.
# CONTEXT:  COPY film, line 1, column released: "2024-13-01"
OF_VALUE = re.compile(r"^CONTEXT:  COPY .+, \w+ \d+, \w+ ", re.MULTILINE)
LOST_SETTINGS = (
    "unless it is damaged: the source has settings, as by ALTER DATABASE, that are not"
    " loaded. Set them in settings.DATABASES, as OPTIONS: {'options': '-c timezone=...'}"
)


def provide_globals(server: Database, reading: Reading, project: "Project") -> None:
    """Make the roles and tablespaces that a backup names, and the settings' user."""
    user = project.parameters.get("user", "postgres")
    tablespaces = map(unquoted, reading.noted["tablespace"])
    server.ask(
        GLOBALS,
        roles=json.dumps([*reading.roles, user]),
        tablespaces=json.dumps(list(tablespaces)),
    )


def with_settings_of(source: Database, server: Database) -> Database:
    """The server, with settings of the source in its sessions, as far as it knows them.

    A load brings no settings of a database, a role or a server, but values and checks
    may rely on them.
    """
    questions = ""
    values = {}
    for number, (name, value) in enumerate(source.settings.items()):
        questions += KNOWS_SETTING.replace("NUMBER", str(number))
        values[f"name_{number}"] = name
        values[f"value_{number}"] = value
    answers = server.ask(questions, **values)
    options = server.parameters.get("options", "")
    for (name, value), is_known in zip(source.settings.items(), answers, strict=True):
        if is_known:
            options += session_option(name, value)
        else:
            log.warning("not known here: %s of the source", name)
    return replace(
        server,
        parameters={**server.parameters, "options": options},
        has_settings=server.has_settings or not all(answers),
    )


def database_for(backup: Backup, server: Database) -> Database:
    """An empty database for a backup.

    For a restore command it has the name of the source, or the one that the file
    tells, as pg_restore --create and scripts by pg_dumpall go there, whatever
    database they are given.
    """
    names = backup.first_reading.named("DATABASE")
    if backup.source:
        names = {backup.source.name}
    name = ""
    if server.run.options.restore_command:
        name = "".join(names - {"postgres", "template1"})  # which are there
    return made_database(server, "restored", backup.model, name)


def load_backup(
    backup: Backup,
    reading: Reading,
    restored: Database,
) -> float:
    """The seconds that the backup took to load."""
    if reading.noted["public"]:  # as after pg_dump --schema public
        restored.ask("DROP SCHEMA public;")
    with (
        step("load the backup"),
        loading(backup, reading, restored) as load,
    ):
        try:
            seconds = load.wait()
        except ProgramFailed as failure:
            raise verdict_on_load(failure, backup, reading, restored) from None
        if backup.source and NO_RIGHTS.search(load.stderr()):
            raise NotJudged(
                "the role of the settings may not give or take some rights",
                "use a role with more rights, or --throwaway",
            )
    return seconds


@contextmanager
def loading(
    backup: Backup,
    reading: Reading,
    restored: Database,
) -> Iterator[Program]:
    """The program that loads the backup."""
    jobs = restored.run.options.jobs
    if jobs > 1 and backup.format.name in ("custom", "directory"):
        with restored.started(
            "pg_restore", "--exit-on-error", "--jobs", jobs, backup.path
        ) as pg_restore:
            yield pg_restore
        return
    arguments = ["-1"]
    if not reading.noted["restrict"]:
        commands = output_of(restored.started("psql", "--help=commands"))
        if "\\restrict" in commands:  # then psql obeys no command of the backup
            arguments += ["-c", f"\\restrict {os.urandom(16).hex()}"]
        elif reading.noted["command"]:
            raise NotJudged(
                "the backup holds a command for psql, which this psql would obey",
                "find out who put it there",
            )
    with (
        backup.sql(restored.programs) as reader,
        without_left_out(reader, reading) as editor,
        restored.started(
            "psql", *PSQL, *arguments, "-f", "-", stdin=editor.popen.stdout
        ) as psql,
    ):
        sources = [reader]
        if editor is not reader:
            sources.append(editor)
        try:
            yield psql
        finally:
            # One that was killed has cut the SQL, at which psql fails, too.
            wait_for(*[source for source in sources if source.popen.poll()])
        wait_for(*sources)


def without_left_out(reader: Program, reading: Reading) -> Context:
    """The program that empties what is about the whole server, else the reader."""
    if not reading.left_out:
        return nullcontext(reader)
    script = ""
    # The last entry is the one that Reading.finish has added.
    for entry, following in pairwise(reading.entries):
        if entry in reading.left_out:
            first = reading.left_out[entry]
            last = following.line - 1
            script += f"{first},{last}{{/{SET_FOR_NEXT_ENTRY}/!s/.*//;}}\n"
    return reader.run.started(
        "sed", "-E", script, stdin=reader.popen.stdout, stdout=PIPE
    )


def loading_reference(reference: Database, contents: Contents) -> Context:
    """psql, which loads the source's definitions."""
    # Not in one transaction: two that make 1,000 tables exhaust the table of locks.
    script = REFRESH.sub(r"\1", contents.script)
    name = "the load of the source's definitions"
    return reference.started("psql", *PSQL, "-f", "-", name=name, text=script)


def load_by_command(backup: Backup, restored: Database, project: "Project") -> float:
    """The seconds that the team's own command took to load the backup."""
    run = restored.run
    command = run.options.restore_command
    failed = NotJudged  # as nobody knows what an existing backup needs
    if backup.source:
        failed = BackupIsBad
    environment = command_environment(restored, project, backup.path)
    seconds = run_command(run, "restore command", command, environment, failed)
    server = replace(restored, name="postgres")
    if not server.ask(EXISTS, name=restored.name):
        raise failed(f"the restore command left no database {restored.name}")
    return seconds


def verdict_on_load(
    failure: ProgramFailed,
    backup: Backup,
    reading: Reading,
    restored: Database,
) -> Verdict:
    """What a load that failed says of the backup: a failure, or an error."""
    fact = failure.args[0]
    if fact.startswith("pg_restore"):  # it reports no code, and may quote values
        return NotJudged(fact, "run without --jobs: psql tells what it means")
    if failure.status == SCRIPT_FAILED and COMMAND_FAILED.search(failure.stderr):
        return BackupIsBad(fact, "it holds a command for psql, or its end is cut")
    report = failure.report
    if not report:
        return failure
    begun = [entry for entry in reading.entries if entry.line <= report.line]
    entry = begun[-1]
    # Without its COPY, a row is a syntax error, in which a value is quoted.
    is_of_rows = entry.kind in ("TABLE DATA", "BLOBS") or report.code == "42601"
    reads_rows = re.search(f"VIEW DATA|INDEX|CONSTRAINT|{AFTER_END}", entry.kind)
    sentence = report.sentence(is_of_rows, bool(reads_rows))
    thing = entry.thing.strip(" .") or "the header"
    place = f"line {report.line}, {thing}"
    if report.line == AT_THE_END:
        place = "at the end of the load"
    found = restored.run.redacted(f"{place}: {sentence}")
    is_of_value = report.code[:2] == "22" and OF_VALUE.search(failure.stderr)
    is_by_settings = re.match(BY_SETTINGS, f"{entry.kind} {report.cause}")
    if is_by_settings and not is_of_value and has_lost_settings(backup, restored):
        return NotJudged(fact, found, LOST_SETTINGS)
    # CREATE EXTENSION runs a script of the server's; its own syntax is the backup's.
    is_extension_script = entry.kind == "EXTENSION" and report.code != "42601"
    is_appended_sql = entry.kind == AFTER_END and reading.has_sql_after_end
    is_blamed = re.match(blamed_causes(backup, reading, restored), report.cause)
    if is_blamed and not is_extension_script and not is_appended_sql:
        return BackupIsBad(fact, found)
    return NotJudged(fact, found, hint_for(f"{report.cause} of a load"))


def blamed_causes(backup: Backup, reading: Reading, restored: Database) -> str:
    """A pattern for the errors that only the content of a backup can cause here."""
    pattern = BLAMED_ALWAYS
    if restored.encoding == "SQL_ASCII":
        pattern = f"(?!22001){pattern}"  # varchar(9) has room for nine bytes there
    has_extensions = reading.named("EXTENSION") - {"plpgsql"}
    if set(reading.versions) == {restored.major}:
        pattern += BLAMED_ON_SAME_MAJOR
        if is_on_its_server(backup, restored) or not has_extensions:
            pattern += BLAMED_WITH_SAME_EXTENSIONS
    if has_same_order(backup, restored):
        pattern += BLAMED_IN_SAME_ORDER
    return pattern


def has_lost_settings(backup: Backup, restored: Database) -> bool:
    """Whether the source may have settings of its own, which a load does not bring."""
    if backup.source:
        # In a rehearsal, it has none that the restored database lacks.
        has_settings = backup.source.has_settings or restored.has_settings
        return restored.run.options.live and has_settings
    told = backup.first_reading
    return bool(told.named("DATABASE PROPERTIES") or not told.named("DATABASE"))


def is_on_its_server(backup: Backup, restored: Database) -> bool:
    """Whether the source is on the server on which the backup was restored."""
    return backup.source is not None and backup.source.private == restored.private


def has_same_order(backup: Backup, restored: Database) -> bool:
    """Whether texts are certainly in the same order here as at the source."""
    if restored.locale != backup.model.locale:
        return False
    if is_on_its_server(backup, restored):
        return True
    # In another library, a locale of the same name may order otherwise.
    return bool(re.search(BY_BYTES, restored.locale))


def read_back(restored: Database, project: "Project") -> tuple[Contents, str]:
    """What came back, and the plan of migrations."""
    plan = ""
    with (
        step("read the restored database"),
        reading_contents(restored) as contents,
    ):
        if not restored.run.options.rehearsal:  # which compares django_migrations
            show_plan = project.on_alias("showmigrations", "--plan")
            plan = project.manage(show_plan, restored)
        return contents(), plan


def expected_of_source(
    backup: Backup,
    reading: Reading,
    found: Contents,
    script: str,
) -> Contents:
    """What the source held; of what changed meanwhile, what the backup says of it."""
    contents = backup.contents
    told = found.facts
    if backup.format != UNREAD:
        told = told_facts(reading, found)
    moved = contents.moved
    facts = without(contents.facts, moved) | about(told, moved)
    # What a restore rewrites, it has rewritten in the script of the reference, too.
    return replace(contents, facts=facts, script=script)


def expected_of_existing(
    backup: Backup,
    reading: Reading,
    found: Contents,
) -> Contents:
    """What a backup says of itself; everything else is expected as it was found."""
    if backup.format == UNREAD and not found.has_rows:
        raise BackupIsBad("the restore command brought back no row")
    if reading.rows.total() and reading.has_sql_after_end and not found.has_rows:
        raise BackupIsBad("no row came back: SQL after its end has removed all")
    # It may have changed anything else.
    if backup.format == UNREAD or reading.has_sql_after_end:
        return found
    facts = told_facts(reading, found)
    for view in reading.named("MATERIALIZED VIEW DATA"):
        facts.add((f"rows of materialized view {view}", "made"))
    if reading.has_names:
        facts.update(names_of_objects(reading) - found.definitions)
    moved = unfilled_things(reading, found)
    facts = without(facts, moved) | about(found.facts, moved)
    return replace(found, facts=facts, moved=moved, extensions={})


def names_of_objects(reading: Reading) -> set[Fact]:
    """The objects that a backup makes, as Contents.definitions name them."""
    names = set()
    for entry in reading.entries:
        name = entry.unquoted_thing
        # A header and a footer have no schema, not even "-".
        is_loaded = entry.schema and entry not in reading.left_out
        if is_loaded and not re.match(UNMATCHED, name):
            names.add((name, ""))
    return names


def not_compared(
    backup: Backup, reading: Reading, expected: Contents, found: Contents
) -> StringDict:
    """What is not compared, and why."""
    reasons = dict(sorted(expected.reasons.items()))
    reason = "it changed meanwhile"
    if not backup.source:
        reasons.update(not_told(backup, reading))
        reason = "the backup holds no data of it"
    elif backup.source.run.options.rehearsal:
        reasons["owners"] = "one role owns all of a rehearsal"
    for thing in sorted(expected.moved | expected.altered):
        reasons[thing] = reason
    for thing in sorted(things_of_other_versions(expected, found)):
        reasons[thing] = "an extension's, which may be of another version here"
    return reasons


def not_told(backup: Backup, reading: Reading) -> StringDict:
    """What an existing backup does not tell, and why."""
    what = "values, definitions, owners and rights"
    reasons = {what: "an existing backup has no source"}
    for entry in reading.left_out:
        what = entry.thing
        if not entry.kind:
            what = "what --clean drops"
        reasons[what] = "not loaded: it is about the server, or not there"
    for is_so, what, reason in [
        (backup.format == UNREAD, "the file", "its command alone reads it"),
        (
            reading.versions[0] and not reading.has_names,
            "names",
            "an old pg_dump wrote them",
        ),
        (
            reading.versions[0]
            and not reading.named("CONSTRAINT", "FK CONSTRAINT", "INDEX", "TRIGGER"),
            "constraints, indexes and triggers",
            "the backup has none",
        ),
        (
            reading.noted["row security"],
            "rows that its role could not see",
            "pg_dump --enable-row-security",
        ),
        (
            reading.has_sql_after_end,
            "everything else",
            "SQL after the end may have changed it",
        ),
    ]:
        if is_so:
            reasons[what] = reason
    return reasons


def unfilled_things(reading: Reading, contents: Contents) -> Things:
    """Tables, partitions, sequences and large objects of which a backup has no data."""
    # The data of a table with partitions are theirs.
    tables = (contents.tables - set(contents.roots.values())) | contents.roots.keys()
    told = {sequence for sequence, _ in reading.sequences}
    sequences = {sequence for sequence, _ in contents.sequences}
    things = (tables - reading.tables("TABLE DATA")) | (sequences - told)
    if contents.rows[LARGE_OBJECTS] and not reading.noted["made"]:
        things.add(LARGE_OBJECTS)
    return things


def insert_through_sequences(restored: Database) -> None:
    """Insert rows, which use the sample's identity columns, sequence and trigger."""
    try:
        output_of(restored.psql(SAMPLE_INSERTS))
    except ProgramFailed as failure:
        if failure.report and re.match(BLAMED_IN_REHEARSAL, failure.report.cause):
            raise BackupIsBad(*failure.args) from None
        raise


def require_checks(
    restored: Database,
    project: "Project",
    verdicts: StringDict,
) -> None:
    """Fail unless the user's checks and commands pass; note each verdict."""
    options = restored.run.options
    for check in options.check:
        verdicts[check] = verdict_on_check(restored, check)
    for command in options.manage:
        name = f"manage.py {command}"
        verdicts[name] = verdict_on_manage(restored, project, command)
    failed = [
        f"{check}: {verdict}"
        for check, verdict in verdicts.items()
        if verdict != PASSED
    ]
    require_none("a check of the restored database failed", failed)


def verdict_on_check(restored: Database, check: str) -> str:
    """PASSED if a user's SQL is true of the restored database, else why not."""
    try:
        sql = check.rstrip("; \n")
        answer = output_of(restored.psql(CHECK, check=sql)).strip()
    except ProgramFailed as failure:
        report = failure.report
        if not report or re.match(NO_ANSWER, report.code):
            raise
        return report.sentence(reads_rows=True)
    if answer != "true":
        return "not true"
    return PASSED


def verdict_on_manage(
    restored: Database,
    project: "Project",
    command: str,
) -> str:
    """PASSED if a management command succeeds, else why not."""
    try:
        project.manage(shlex.split(command), restored)
    except ProjectFails as failure:
        return f"{failure.args[1]}\n  {SEE_WORDS}"
    return PASSED


# --- The project -------------------------------------------------------------
# In: the settings. Out: how they connect, and what Django's commands print.
# Promised: the project's code runs in processes of its own; while a command
# runs, every alias leads to a scratch database. Code is led there, not locked
# in.

# The first argument with which this file runs itself, as a process of the project.
DESCRIBE = "--describe-project"
RUN_COMMAND = "--run-project-command"
RUN_FOR_TEAM = "--run-project-command-for-team"
REQUEST = "BACKUP_DRILL_REQUEST"  # a variable, see `Project.request`
FAULT_MARK = "the project fails:"  # on stderr, before what went wrong
# Exceptions whose messages are shown: where rows are at hand, those that are about
# a command; while settings are imported, those about code and names, too. The
# messages of all others may quote a value. "by Django": if a file of its raised it.
SHOWN_WITH_ROWS = {
    f"{__name__}.NotJudged",
    "django.core.management.base.CommandError by Django",
}
SHOWN_WITH_SETTINGS = SHOWN_WITH_ROWS | {
    "builtins.ImportError",
    "builtins.SyntaxError",
    "builtins.KeyError",
    "django.core.exceptions.AppRegistryNotReady by Django",
    "django.core.exceptions.ImproperlyConfigured by Django",
    "django.db.utils.ConnectionDoesNotExist by Django",
    "django.db.utils.OperationalError by Django",
}
SHOWN_WITH_SAMPLE = {"builtins.BaseException"}
MUST_NOT_RUN = 126  # the exit status of what the drill refuses, as in a shell
POSTGRESQL = "django.db.backends.postgresql"
# Parameters of a connection that are Django's or a driver's, not libpq's.
NOT_LIBPQ = ("client_encoding", "prepare_threshold", "autocommit", "async_")
SECRET = "(?i)password|secret|scram_.*_key"  # names of settings that are secret
ROLE_OPTION = r"(-c ?|--)role=\S+"  # -c role=anna
# Files that are not the project's: a package's, Python's, and this one.
INSTALLED = (
    r"<frozen |[/\\](site-packages|dist-packages|python3[.\d]*)[/\\]"
    rf"|{re.escape(__file__)}"
)
DJANGO = r"[/\\](site|dist)-packages[/\\]django[/\\]"  # a file of Django's
ENCODE = "in DATABASE_URL, percent-encode special characters of the password"


class ProjectFails(NotJudged):
    """The project's own code fails."""


@dataclass(frozen=True)
class Project:
    """What the settings say, and how to run Django's commands."""

    run: Run  # with the secrets of the settings
    engine: str  # of connections to scratch databases
    vendor: str  # postgresql, sqlite; unknown if no database is configured
    options: str  # of its sessions, as libpq has them
    parameters: StringDict = field(repr=False)  # libpq's, if they are needed

    def on_alias(self, *command: str) -> Command:
        """A command of Django's for the alias that the options name."""
        return (*command, f"--database={self.run.options.database}")

    def manage(
        self, command: Collection[str], database: Database, timeouts: float = 1
    ) -> str:
        """What a management command prints, while every alias is this database."""
        name, *_ = command
        return answer_of(
            self.run,
            f"manage.py {name}",
            RUN_COMMAND,
            *command,
            request=self.request(database),
            timeouts=timeouts,
        )

    def request(self, database: Database) -> str:
        """Where every alias is to lead, and what may be shown, as JSON.

        It may hold a password, so it goes into the environment of a process.
        """
        target = {"NAME": database.name, "ENGINE": self.engine}
        if database.private:
            for name in ("host", "port", "user"):
                target[name.upper()] = database.parameters[name]
        options = self.run.options
        return json.dumps(
            {
                "alias": options.database,
                "target": target,
                "options": database.options(),
                "url": url_of(database),
                "shows_messages": options.rehearsal,
            }
        )


def described_project(run: Run) -> Project:
    """What the settings say of the alias that the options name."""
    options = run.options
    arguments = [DESCRIBE, options.database]
    if options.live or options.restore_command or not options.private:
        arguments.append("connection")
    with step("import the settings"):
        text = answer_of(run, "the settings", *arguments)
    if not text:
        raise NotJudged("the settings end the process that imports them")
    answer = json.loads(text)
    run = replace(run, secrets=tuple(answer.pop("secrets")))
    aliases = answer.pop("aliases")
    if options.database not in aliases:
        raise NotJudged(
            f"settings.DATABASES has no {options.database!r}",
            f"known: {', '.join(aliases)}",
        )
    return Project(run, **answer)


def answer_of(
    run: Run,
    name: str,
    verb: str,
    *arguments: str,
    request: str = "{}",
    timeouts: float = 1,
) -> str:
    """What this file answers when it runs as a process of the project."""
    started = run.started(
        sys.executable,
        __file__,
        verb,
        *arguments,
        name=name,
        environment={**environ, "BACKUP_DRILL": str(run.folder), REQUEST: request},
        umask=-1,  # what it writes belongs to the project
        timeouts=timeouts,
    )
    with started as program:
        try:
            program.wait()
        except ProgramFailed:
            hint = ""
            if verb == RUN_COMMAND:
                program.show(program.output)
                hint = SEE_WORDS
            raise verdict_on_project(program, hint) from None
        finally:
            # What DESCRIBE prints is never shown, as no secret is known yet.
            if verb == RUN_COMMAND:
                program.show(program.errors)
        return program.stdout()


def verdict_on_project(program: Program, hint: str) -> NotJudged:
    """Why the project fails, as its process says; with a hint, if no other is known."""
    name = program.name
    status = program.popen.returncode
    _, mark, fault = program.stderr().rpartition(FAULT_MARK)
    if not mark:
        return NotJudged(f"{name} exited with {status}", "it could not say why")
    fact = f"{name}: the project fails"
    fault = program.run.redacted(fault).strip()
    if status == MUST_NOT_RUN:
        return NotJudged(fact, fault)
    return ProjectFails(fact, fault, hint_for(f"{name}: {fault}") or hint)


def answer(verb: str, *arguments: str) -> NoReturn:
    """Print what `answer_of` asks for, or on stderr why the project fails; exit."""
    answers = os.fdopen(os.dup(1), "w")
    errors = os.fdopen(os.dup(2), "w", errors="backslashreplace")
    asked = json.loads(environ.pop(REQUEST))
    if verb != RUN_FOR_TEAM:
        os.dup2(2, 1)  # what the project prints is not the answer

    def work(*_: object) -> None:
        try:
            if verb == DESCRIBE:
                json.dump(description_of(*arguments), answers)
            elif verb == RUN_COMMAND:
                run_on_scratch_database(asked, arguments, answers)
            else:
                run_on_scratch_database(asked, arguments, sys.stdout)
                sys.stdout.flush()  # which fails on a full disk
        except SystemExit as stop:
            if stop.code:
                raise
        end(0)

    def end(status: int) -> NoReturn:
        # The project may have replaced its own, or closed them.
        with suppress(AttributeError, OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        answers.flush()
        errors.flush()
        os._exit(status)  # a thread of the project may never end

    try:
        run_in_project(work)
    except BaseException as error:  # noqa: BLE001  the process ends below
        if verb != DESCRIBE:
            print(error, file=errors)  # the whole message, as manage.py does
        print(FAULT_MARK, described(error, shown_in(verb, asked)), file=errors)
        if isinstance(error, NotJudged):
            end(MUST_NOT_RUN)
    end(1)


def shown_in(verb: str, asked: dict[str, Any]) -> Things:
    """The kinds of exceptions whose messages are shown."""
    if verb == DESCRIBE:  # no secret is known yet that a message might hold
        return SHOWN_WITH_SETTINGS
    if asked["shows_messages"]:
        return SHOWN_WITH_SAMPLE
    return SHOWN_WITH_ROWS


def run_in_project(work: Callable[..., None]) -> None:
    """Do the work where manage.py would run a command of Django's."""
    from django.core import management

    management.execute_from_command_line = work
    management.ManagementUtility.execute = work
    paths = [ROOT / "manage.py", *sorted(ROOT.glob("*/manage.py"))]
    for path in filter(Path.exists, paths):
        sys.path.insert(0, str(path.parent))
        # A manage.py may start Django otherwise, which knows no such command.
        sys.argv = [str(path), "backup-drill"]
        runpy.run_path(str(path), run_name="__main__")
    if "DJANGO_SETTINGS_MODULE" not in environ:
        raise ImportError(
            "DJANGO_SETTINGS_MODULE is not set,"
            f" and no manage.py names it in {ROOT} and its folders"
        )
    work()


def described(error: BaseException | None, shown: Things) -> str:
    """An error and its causes: kind and place, and the message if the kind is shown."""
    lines = []
    while error:
        line = type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)
        kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
        if re.search(DJANGO, str(frames[-1:])):
            kinds.update([f"{kind} by Django" for kind in kinds])
        # A command's error may quote the one that caused it, and so a row.
        cause = error.__cause__ or error.__context__
        may_quote = cause is not None and not isinstance(cause, KeyError)
        if kinds & shown and not (may_quote and shown == SHOWN_WITH_ROWS):
            line += f": {error}".partition("\n")[0]
        of_project = [
            frame for frame in frames if not re.search(INSTALLED, frame.filename)
        ]
        for frame in (of_project or frames)[-1:]:
            line += f" (in {frame.filename}, line {frame.lineno})"
        lines.append(line)
        is_shown = not error.__suppress_context__
        error = error.__cause__ or (is_shown and error.__context__)
    return "\n  ".join(lines)


def description_of(alias: str, *needed: str) -> dict[str, Any]:
    """What the settings say, and how one alias would connect."""
    from django.db import connections

    databases = connections.settings
    none = {"ENGINE": "django.db.backends.dummy", "OPTIONS": {}}
    database = databases.get(alias, none)
    wrapper = wrapper_of(alias, database)
    engine = POSTGRESQL
    parameters = {}
    if wrapper.vendor == "postgresql":
        engine = database["ENGINE"]
        if needed:
            parameters = connection_parameters(wrapper)
    options = database["OPTIONS"].get("options") or ""
    return {
        "aliases": list(databases),
        "secrets": secrets_in(databases, parameters),
        "engine": engine,
        "vendor": wrapper.vendor,
        "options": re.sub(ROLE_OPTION, "", options),
        "parameters": {
            name: str(value)
            for name, value in parameters.items()
            if isinstance(value, str | int | Path) and name not in NOT_LIBPQ
        },
    }


def wrapper_of(alias: str, database: dict[str, Any]) -> Any:
    """Django's wrapper of a connection, by the engine of the alias, if it can be."""
    from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured
    from django.db.utils import load_backend

    try:
        backend = load_backend(database["ENGINE"])
    except (AppRegistryNotReady, ImproperlyConfigured):
        if database["ENGINE"].startswith("django.db.backends."):
            raise  # its driver is missing
        # The engines of postgis and django-tenants need the apps, for example.
        backend = load_backend(POSTGRESQL)
    return backend.DatabaseWrapper(database, alias)


def connection_parameters(wrapper: Any) -> dict[str, Any]:
    """The parameters that Django would give to the driver."""
    parameters = wrapper.get_connection_params()
    options = wrapper.settings_dict["OPTIONS"]
    parameters["options"] = options.get("options") or environ.get("PGOPTIONS", "")
    role = options.get("assume_role")
    if role:
        parameters["options"] += session_option("role", role)
    return parameters


def secrets_in(databases: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """The values whose names tell that they are secret."""
    named = [("PGPASSWORD", environ.get("PGPASSWORD")), *parameters.items()]
    for database in databases.values():
        named += [*database.items(), *database["OPTIONS"].items()]
    return [str(text) for name, text in named if text and re.search(SECRET, name)]


def run_on_scratch_database(
    asked: dict[str, Any], command: Command, stdout: IO[str]
) -> None:
    """Run a command while every alias leads to the target of a request."""
    target = asked["target"]
    sys.argv[1:] = command
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connections

    if connections.all(initialized_only=True):
        raise NotJudged("the settings module connects to a database")
    databases = connections.settings
    hidden = {"PGDATABASE"}
    if "HOST" in target:  # a private server, of which none of these is true
        hidden = {name for name in environ if name.startswith("PG")}
    for name in hidden:
        environ.pop(name, None)
    # For programs that the command starts, which read the settings again.
    environ["DATABASE_URL"] = asked["url"]
    scratch = scratch_settings(databases[asked["alias"]], asked)
    # The handler of connections prefers these to settings.DATABASES, which some
    # projects replace by an object of another kind.
    connections._settings = {name: dict(scratch) for name in databases}
    databases.update(connections._settings)  # for code that reads settings.DATABASES
    del connections.settings  # a cache of what they were before
    refused = refuse_other_connections(target)
    django.setup()
    for database in connections.settings.values():
        for name in ("NAME", "HOST", "PORT"):
            if database[name] != scratch[name]:
                raise NotJudged("the project replaces its DATABASES")
    if command[0] in ("dbbackup", "dbrestore"):
        for connector in getattr(settings, "DBBACKUP_CONNECTORS", {}).values():
            if connector.keys() & {"NAME", "HOST", "PORT"}:
                raise NotJudged("DBBACKUP_CONNECTORS names a database")
    call_command(*command, stdout=stdout)
    if refused:  # and the command has passed over it
        raise NotJudged(*refused)


def scratch_settings(
    configured: dict[str, Any], asked: dict[str, Any]
) -> dict[str, Any]:
    """The settings of an alias that leads to the target of a request."""
    target = asked["target"]
    options = {"options": asked["options"]}
    if "HOST" not in target:  # else the settings know nothing of its server
        options = {**configured["OPTIONS"], **options}
    # dbname would name another database, and a pool keeps connections open.
    for option in ("dbname", "pool"):
        options.pop(option, None)
    return {**configured, **target, "OPTIONS": options}


def refuse_other_connections(target: StringDict) -> list[str]:
    """End connections of Django's that lead elsewhere, as those of an engine may.

    The list that is returned says so, once it has happened.
    """
    from django.db.backends.signals import connection_created

    refused: list[str] = []

    def require_target(connection: Any, **_: object) -> None:
        info = connection.connection.info
        host = target.get("HOST", info.host)
        if (info.dbname, info.host) != (target["NAME"], host):
            connection.close()
            refused[:] = ["the project connects to another database"]
            raise NotJudged(*refused)

    connection_created.connect(require_target, weak=False)
    return refused


# --- A team's own commands ---------------------------------------------------
# In: a command, and the database that it is given. Out: a file or a database,
# or a verdict. Promised: PG*, DATABASE_URL and MANAGE name no other database;
# a restore command has a private server (see `contradiction`); each command
# runs under a guard of its own; what it prints is shown with --verbose alone.

# Most variables of libpq are PG and the parameter without its underscores, as
# PGCHANNELBINDING is; these are not:
IRREGULAR_VARIABLES = {
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}
ELSEWHERE = (
    "nothing is as expected: did a command use another database? It is given one by"
    " PG*, DATABASE_URL and MANAGE. Or are all data left out?"
)
NO_ROOM = "No space left on device"
# What a private server logs when it has no room, or when a process of it ends badly:
# LOG:  server process (PID 4711) was terminated by signal 9: Killed
PLACE_FAILED = f"{NO_ROOM}|was terminated by signal|PANIC"
LEAST_ROOM = 2**16  # bytes: with less, what a program has said may be cut
# The outer shell stays, as exit comes last, and it is ours to kill.
RUN_BY_US = '/bin/sh -c "$1"\nexit $?'
# By these, a shell tells that a program must not be run, is missing, or was killed.
TOLD_BY_SHELL = (MUST_NOT_RUN, 127, *range(129, 193))
# Group, process, parent, state and name of a program in a group, {0}; but not
# the guard, whose process has the same number, or a child of it, and not a
# zombie, Z:
#    4711    4720    4719 S    pg_dump
RUNNING = r"(?m)^ *{0} +(?!{0} )\d+ +(?!{0} )\d+ +(?!Z)\S+ +(.*\S)"


def run_command(
    run: Run,
    name: str,
    command: str,
    environment: StringDict,
    failed: type[Verdict] = BackupIsBad,
) -> float:
    """Run a command of the team; return how many seconds it took."""
    folder = run.folder / "command"
    folder.mkdir()
    # Under a guard of its own, as a `kill 0` in it must not end our programs.
    with step(f"run the {name}"), guarded(folder) as group:
        starting = replace(run, group=group).started(
            "/bin/sh",
            "-c",
            RUN_BY_US,
            "sh",
            command,
            name=f"the {name}",
            environment={**environment, "BACKUP_DRILL": str(folder)},
        )
        with starting as shell:
            try:
                seconds = shell.wait()
            except ProgramFailed:
                raise verdict_on_command(shell, failed) from None
            finally:
                shell.show(shell.output, shell.errors)
        running = programs_in(group, run)
        if running:
            time.sleep(1)  # in bash, the tee of a `> >(tee log)` ends a little later
            running = programs_in(group, run)
    if running:
        names = ", ".join(running)
        raise failed(f"the {name} returned while {names} still ran")
    return seconds


def programs_in(group: int, run: Run) -> list[str]:
    """The programs in a process group, except those of its guard."""
    arguments = ("ps", "-A", "-o", "pgid=,pid=,ppid=,stat=,comm=")
    return re.findall(RUNNING.format(group), output_of(run.started(*arguments)))


def verdict_on_command(shell: Program, failed: type[Verdict]) -> Verdict:
    """What a command that failed says of the backup."""
    status = shell.popen.returncode
    fact = f"{shell.name} exited with {status}"
    if status < 0 or status in TOLD_BY_SHELL:  # below 0: the shell itself was killed
        return NotJudged(
            fact,
            "a program was ended by a signal, is missing, or must not be run",
            SEE_WORDS,
        )
    said = ""
    server_log = shell.run.folder / "data" / "log"  # of a private server
    if server_log.exists():
        said = server_log.read_text(errors="replace")
    if shutil.disk_usage(shell.run.folder).free < LEAST_ROOM:
        said += NO_ROOM  # what it said itself may be lost
    found = re.search(PLACE_FAILED, said)
    if found:
        return NotJudged(fact, found[0], hint_for(found[0]))
    return failed(fact, SEE_WORDS)


def command_environment(
    database: Database,
    project: Project,
    path: Path,
) -> StringDict:
    """The environment of a command: ours, where only this database is named."""
    variables = {name: environ[name] for name in environ if name[:2] != "PG"}
    variables.update(database.environment)
    for parameter, value in {**database.parameters, "database": database.name}.items():
        name = "PG" + parameter.upper().replace("_", "")
        variables[IRREGULAR_VARIABLES.get(parameter, name)] = value
    variables["BACKUP_FILE"] = str(path)
    variables["DATABASE_URL"] = url_of(database)
    variables["MANAGE"] = str(manage_script(database.run))
    variables[REQUEST] = project.request(database)
    return variables


def url_of(database: Database) -> str:
    """The DATABASE_URL of a database, in a form in which a socket can be the host."""
    parameters = dict(database.parameters)
    user = quote(encoded(parameters.pop("user", "")), safe="")
    password = quote(encoded(database.environment.get("PGPASSWORD", "")), safe="")
    name = quote(encoded(database.name), safe="")
    query = urlencode(parameters, quote_via=quote, errors="surrogateescape")
    return f"postgresql://{user}:{password}@/{name}?{query}"


def manage_script(run: Run) -> Path:
    """A file that runs the project's management commands, as its REQUEST says."""
    path = run.folder / "manage"
    arguments = (sys.executable, __file__, RUN_FOR_TEAM)
    path.write_text(f'#!/bin/sh\nexec {shlex.join(arguments)} "$@"\n')
    path.chmod(0o700)
    return path


# --- Servers and their programs ----------------------------------------------
# In: what the settings say. Out: servers with the programs that fit them.
# Promised: the programs come from one folder, and are of the server's major
# version or newer.

CLIENTS = ("pg_dump", "psql", "pg_restore")
SERVER_PROGRAMS = (*CLIENTS, "postgres", "initdb", "pg_ctl")
NEWEST = 0  # in place of a major version
# The folders that have all clients, each with what its pg_dump says of its version:
# those of PATH, Debian, Red Hat, Alpine, Homebrew and Postgres.app. Debian's
# wrapper is skipped, as it runs the newest version, whatever was asked for.
FIND_PROGRAMS = r"""
IFS=:
for folder in $PATH /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
    /usr/libexec/postgresql* /opt/homebrew/opt/postgresql@*/bin \
    /usr/local/opt/postgresql@*/bin \
    /Applications/Postgres.app/Contents/Versions/*/bin
do
    for client in psql pg_restore pg_dump
    do
        [ -x "$folder/$client" ] || continue 2
    done
    case $(readlink -f "$folder/pg_dump") in */pg_wrapper) continue ;; esac
    echo "$folder:$("$folder/pg_dump" --version)"
done
"""
# /usr/lib/postgresql/15/bin:pg_dump (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)
FOUND = re.compile(r"^(.+):\w+ \(PostgreSQL\) ((\d+)\S*)", re.MULTILINE)
# What `Database` wants to know of the session's database and server. The second
# answer shows whether SETTINGS have arrived, as a pooler may drop them.
ABOUT = r"""
SELECT json_build_object(
       'name', datname,
       'version', split_part(version(), ' ', 2),
       'major', current_setting('server_version_num')::integer / 10000,
       'encoding', getdatabaseencoding(),
       'settings', (
           SELECT json_object_agg(setting, CASE setting
                  WHEN 'search_path' THEN coalesce(schemas, '""')
                  ELSE current_setting(setting) END)
             FROM (SELECT unnest('{search_path, TimeZone, DateStyle, IntervalStyle,
                       lc_monetary, default_text_search_config}'::text[])
                   UNION
                  -- Those of an application, which have a dot: app.tenant=7
                  SELECT split_part(own, '=', 1)
                    FROM pg_db_role_setting, unnest(setconfig) AS own
                   WHERE setdatabase IN (0, d.oid)
                     AND (setrole = 0 OR pg_get_userbyid(setrole) = current_user)
                     AND own ~ '^\w+\.[\w.]+='
                     AND own !~* '^[^=]*(passw|secret|token|key)') AS known (setting)),
       'has_settings', EXISTS (
           SELECT FROM pg_db_role_setting
            WHERE setdatabase IN (0, d.oid)
              AND (setrole = 0 OR pg_get_userbyid(setrole) = current_user)),
       'locale', concat_ws(' ',
           format('ENCODING %L LC_COLLATE %L LC_CTYPE %L',
                  getdatabaseencoding(), datcollate, datctype),
           CASE row ->> 'datlocprovider'
           WHEN 'c' THEN 'LOCALE_PROVIDER libc'
           WHEN 'i' THEN format('LOCALE_PROVIDER icu ICU_LOCALE %L', name)
           WHEN 'b' THEN format('LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', name)
           END,
           'ICU_RULES ' || quote_literal(row ->> 'daticurules')))
  FROM pg_database AS d,
       to_jsonb(d) AS row,
       coalesce(row ->> 'datlocale', row ->> 'daticulocale') AS name,
       (SELECT string_agg(quote_ident(schema), ',')
          FROM unnest(current_schemas(false)) AS schema) AS path (schemas)
 WHERE datname = current_database();
SELECT to_json(current_setting('client_connection_check_interval'));
"""
# A server in the folder $1, by the programs in $2, within $3 seconds. It
# listens to no network, and waits for no disk, as all is thrown away. There is
# room for the locks of a large load. Its shared memory is in its folder:
# containers have little elsewhere.
START_SERVER = r"""
ctype=C.UTF-8
case $(uname) in Darwin) ctype=C ;; esac
"$2/initdb" -D "$1" -U postgres -A trust --no-sync --no-instructions \
    -E UTF8 --locale=C --lc-ctype "$ctype" &&
"$2/pg_ctl" start -D "$1" -w -t "$3" -l "$1/log" -o "-p 5432 -h '' -k . \
    -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
    -c autovacuum=off -c wal_level=minimal -c max_wal_senders=0 \
    -c max_wal_size=4GB -c max_locks_per_transaction=1024 \
    -c dynamic_shared_memory_type=mmap -c allow_in_place_tablespaces=on" || {
    tail -n 9 "$1/log" >&2
    exit 1
}
"""


@dataclass(frozen=True)
class Programs:
    """A folder of PostgreSQL's programs, and their version."""

    run: Run = field(repr=False)
    folder: Path
    version: str  # 15.20
    major: int


def found_programs(run: Run, major: int, names: tuple[str, ...]) -> Programs:
    """Programs of a major version, which may be NEWEST; if missing, newer ones."""
    found = [
        Programs(run, Path(folder), version, int(number))
        for folder, version, number in FOUND.findall(run.installed)
        if all(shutil.which(name, path=folder) for name in names)
    ]
    fitting = [programs for programs in found if programs.major >= major]
    nearest = min
    if major == NEWEST:
        nearest = max
    best = nearest(fitting, key=lambda programs: programs.major, default=None)
    if best and major in (NEWEST, best.major):
        return best
    error = missing_programs(major, names, found)
    is_there = found or any(map(shutil.which, names))
    if run.options.strict or is_there and not best:
        raise error
    if not best:
        log.warning("the backup drill is skipped: %s", error)
        raise unittest.SkipTest(error.args[0])
    log.warning("newer programs are used: %s", error)
    return best


def missing_programs(
    major: int,
    names: tuple[str, ...],
    found: list[Programs],
) -> NotJudged:
    """The error that programs are missing, with how to install them."""
    fact = "missing: " + ", ".join(names)
    package = "postgresql-client"
    if "initdb" in names:
        package = "postgresql"
    if major != NEWEST:
        fact += f" {major}, the version of the server or of the backup"
        package += f"-{major}, perhaps from apt.postgresql.org"
    versions = ", ".join(sorted({programs.version for programs in found}))
    return NotJudged(
        fact,
        f"found: {versions or 'none'}",
        f"install them, such as with: apt-get install {package}",
    )


def configured_database(project: Project) -> Database | None:
    """The database that the settings name, None if they name none."""
    run = project.run
    options = run.options
    hint = "name another alias, --database, or rehearse without it: --throwaway"
    if project.vendor == "unknown":
        fact = f"no database is configured as {options.database!r}"
        if options.live or options.strict or options.throwaway is False:
            raise NotJudged(fact, f"set DATABASE_URL or settings.DATABASES; or {hint}")
        log.warning("%s: using a private server", fact)
        return None
    if project.vendor != "postgresql":
        raise NotJudged(f"the database is not PostgreSQL but {project.vendor}", hint)
    programs = found_programs(run, NEWEST, CLIENTS)
    database = with_server_details(named_database(project, programs))
    return replace(database, programs=found_programs(run, database.major, CLIENTS))


def named_database(project: Project, programs: Programs) -> Database:
    """The database that the settings name, without what its server tells of it."""
    parameters = dict(project.parameters)
    # The settings may leave parameters to these variables.
    environment = {name: environ[name] for name in environ if name[:2] == "PG"}
    if "password" in parameters:
        environment["PGPASSWORD"] = parameters.pop("password")
    name = parameters.pop("dbname", "")
    for parameter in parameters:
        if re.search(SECRET, parameter):
            raise NotJudged(
                f"{parameter} would be an argument of PostgreSQL's programs",
                "leave it out of OPTIONS for the drill",
            )
    if "@" in name:  # a part of a password that was not encoded
        raise NotJudged("the settings name a database with an @ in it", ENCODE)
    return Database(project.run, name, parameters, environment, programs)


def with_server_details(
    database: Database, starting: Program | None = None
) -> Database:
    """A database with what its server tells of it, once the server has started."""
    with step("ask the server"):
        if starting:
            starting.wait()
        told, interval = database.ask(ABOUT)
    if interval != "500ms":  # of SETTINGS
        raise NotJudged(
            "the options of sessions are ignored, as by a pooler",
            "let the settings name the server itself",
        )
    return replace(database, **told)


@contextmanager
def starting_server(project: Project, major: int) -> Iterator[tuple[Database, Program]]:
    """A private server in the run's folder, which the guard ends."""
    run = project.run
    programs = found_programs(run, major, SERVER_PROGRAMS)
    data = made_data_folder(run)
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        account = {"user": "postgres", "group": "postgres", "extra_groups": ()}
        give_to_postgres(data)
    server = Database(
        run,
        "postgres",
        {
            "host": str(data),
            "port": "5432",
            "user": "postgres",
            "options": project.options,
        },
        {"PGPASSWORD": "unused"},  # for commands that insist on one
        programs,
        private=True,
    )
    with run.started(
        "/bin/sh",
        "-c",
        START_SERVER,
        "server",
        data,
        programs.folder,
        round(run.options.timeout),
        name="the start of the private server",
        timeouts=2,  # for initdb, and for the start
        **account,
    ) as program:
        yield server, program


def give_to_postgres(data: Path) -> None:
    """Make a folder that of the account postgres, which then can enter it."""
    data.parent.chmod(0o711)
    try:
        shutil.chown(data, "postgres", "postgres")
    except LookupError:
        raise NotJudged(
            "root may run no server, and there is no account postgres",
            "run the drill as another account",
        ) from None


def made_data_folder(run: Run) -> Path:
    """A folder for a private server, in the folder of the run."""
    data = run.folder / "data"
    # libpq takes a comma for the end of a host, the shell of pg_ctl expands the
    # others, and macOS allows 103 bytes for the path of a socket.
    socket = os.fsencode(data / ".s.PGSQL.5432")
    if re.search('[,"$`\\\\]', str(data)) or len(socket) > 103:
        raise NotJudged(f"no server can be in {data}", "set a short, plain TMPDIR")
    data.mkdir(mode=0o700)
    return data


# --- Hints and progress ------------------------------------------------------
# In: an error, or a step of the drill. Out: what to do, how long it took.
# Promised:
# no verdict rests on a hint.

# What to do about an error: patterns for its code and function, or for its message.
# The code of an error of a load has " of a load" behind it.
HINTS = {
    ":get_role_oid": "use a server with the role, or --throwaway",
    ":get_tablespace": "use a server with the tablespace, or --throwaway",
    "^F0000|:parse_extension|:load_external": "install it where the server runs",
    ":internal_load_library": "install it where the server runs",
    ":get_collation|:report_newlocale": "install the locale where the server runs",
    ":cash_in": "use a server with the lc_monetary of the source: --no-throwaway",
    "42809:createdb": "install the locale where the server runs",
    ":find_option|:assignable_cus": (
        "its pg_dump is newer: use a newer server, or programs of this server's version"
    ),
    "^0A000|^22023|:CreateExtension": "use a server like the source's, with its roles",
    "row-level security": "use a role with BYPASSRLS",
    "^42501|permission denied": (
        "use a role with more rights; a rehearsal can do with --throwaway"
    ),
    "must be ": "use a role with more rights, or --throwaway",
    "unsupported version": "install the version of PostgreSQL that wrote it",
    "build does not support": "use programs that are built with it",
    f"{MARK}\\w+'$": "set TMPDIR to a folder that is there, and can be written to",
    "Permission denied": "let the account that runs the drill in there",
    "^53100|No space left|said nothing|child process": "make room on the disk",
    "a signal ended it|terminated by signal|PANIC": (
        "run again, with more memory if the system's log says so"
    ),
    "^53300|too many c|slots": "raise the limit of connections, or wait for others",
    "^53": "raise the limit of the server, such as max_locks_per_transaction",
    "^57014|(statement|lock) timeout|did not start in time": (
        "allow more time with --timeout, unless somebody holds a lock"
    ),
    "authentication failed|no password": "check the user and the password",
    " refused|not trans|time(d |out e)|unreach": "check host and port",
    "socket .*No such": "check host and port",
    '(database|role) ".*" does not': "check the names of database and user",
    "pg_hba.conf|SSL[ ,]": "check sslmode and its files, and pg_hba.conf",
    "startup parameter": "let the settings name the server, not its pooler",
    "idle_session_timeout": "use PostgreSQL 14 or later, as Django does",
    "Error loading .* module": "install the driver, or name another: --database",
    r"^the settings: (Value|Parse|UnknownScheme|\w*Decode)Error \(in": ENCODE,
    "invalid connection option": "take it out of OPTIONS: these programs are older",
    "^(23505|23514|23P01|42P17).* of a load": (
        "texts may have another order here: use --no-throwaway"
        " on a server with the locale of the source"
    ),
    "^22001.* of a load": "dump it without --encoding, as it had perhaps another one",
    "^(42|3F000|55000).* of a load": (
        "use the versions of PostgreSQL and of its extensions that wrote it,"
        " unless the backup lacks what is missing"
    ),
    "^42(P01|703|883)|relation .* does not|open relation": (
        "it was dropped or altered meanwhile: run again"
    ),
    "No such file or directory: '[a-z0-9]+'": (
        "install it (zstd, xz-utils, ...), or add its folder to PATH"
    ),
    "shared librar": "install the program once more: it lacks a library",
    "^25006": "the server is a standby, or read-only: use --throwaway",
    "^(08|40|55006|55P03|57|58|XX)": "run again; the server's log may tell more",
    "server (closed|was lost)|terminating conn|is (starting up|shutting)": "run again",
}
CLEAR = "\33[K"  # erases the rest of a terminal's line


def hint_for(message: str) -> str:
    """What to do about an error, "" if that is not known."""
    for pattern, hint in HINTS.items():
        if re.search(pattern, message):
            return hint
    return ""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show what the block does, since when, and at the end how long it took."""
    began = monotonic()
    show_on_terminal(f"{what}, since {datetime.now():%H:%M:%S}")
    try:
        yield
    finally:
        show_on_terminal("")
        log.info("%8.2f s  %s", monotonic() - began, what)


def show_on_terminal(text: str) -> None:
    """Show a text on a terminal, in place of what its last line says."""
    with suppress(OSError):  # it may be gone
        if sys.stderr.isatty():
            print(f"\r{text}{CLEAR}", end="", file=sys.stderr, flush=True)


# --- The evidence ------------------------------------------------------------
# In: facts, as they become known. Out: lines on the screen, tables in GitHub's
# summary, JSON. Promised: it is published once, at the end, unless SIGKILL
# comes.

# The facts, in the order of --report; --help shows this. What is not known is
# null.
FACTS = """
  version              of this list of facts: 2
  verdict              passed, failed, error or skipped: of the first act
                       that did not pass
  sentence             why that act did not pass
  acts                 for each the verdict, or "not run"; seconds; sentence
  started              when the run began, in UTC, as all times are
  finished             when it ended
  drill                the first digits of the SHA-256 of this program
  host                 the name of the machine
  revision             the commit; from GitHub, as are the next three
  run                  the number of the workflow's run
  trigger              what began it: push, schedule
  actor                who began it
  source               a rehearsal, the configured database, the backup NAME
  database             the alias in settings.DATABASES
  backup_written       when an existing backup was written
  max_age_seconds      what --max-age allows
  max_age_met          whether it was
  seconds_to_back_up   how long the backup took
  seconds_to_restore   how long the load took: the measured recovery time
  max_restore_seconds  what --max-restore allows
  max_restore_met      whether it was
  server               the version of the scratch databases' server
  server_is            private, or the one of the settings
  programs             the version of pg_dump, psql and pg_restore
  format               of the backup
  bytes                its size
  sha256               its SHA-256; of a folder, that of its files in order
  tables               how many were compared; one for all partitions
  rows                 how many were compared
  objects              how many definitions were compared
  rows_of_tables       table to number of rows
  sequences            how many were compared
  large_objects        how many were compared
  roles_needed         owners and grantees, which a recovery must have
  pending_migrations   of the project, that the restored database lacks
  not_compared         thing to reason, "" for what is never compared
  accepted             difference to the --accept that matches it
  unused_accepts       each --accept that was not needed
  checks               each --check and --manage to its verdict
  scratch_dropped      whether nothing was left behind
"""
ACTS = ("set-up", "creation", "validation", "restore")
# GitHub's variables about the job.
GITHUB = {
    "revision": "GITHUB_SHA",
    "run": "GITHUB_RUN_ID",
    "trigger": "GITHUB_EVENT_NAME",
    "actor": "GITHUB_ACTOR",
}
# Of each label, the first line is shown whose facts are all known.
LINES = (
    ("source", "{source}: {tables:,} tables, {rows:,} rows, {objects:,} objects"),
    ("source", "{source}"),
    ("backup", "{format}, {bytes:,} bytes, SHA-256 {sha256}"),
    ("backup", "{format}, {bytes:,} bytes"),
    ("written", "{backup_written}"),
    ("max age", "{max_age_seconds:,.10g} s, met: {max_age_met}"),
    ("backed up", "in {seconds_to_back_up:.2f} s"),
    ("restored", "in {seconds_to_restore:.2f} s"),
    ("max restore", "{max_restore_seconds:,.10g} s, met: {max_restore_met}"),
    ("server", "PostgreSQL {server}, {server_is}"),
    ("programs", "pg_dump, psql, pg_restore {programs}"),
)
NEVER_COMPARED = (
    "roles and their passwords",
    "who granted a right",
    "statistics",
    "tablespaces",
    "other databases",
    "settings of the database itself",
    "what pg_dump never writes",
)
MOST_NAMES = 12  # on a line
VERDICTS = {BackupIsBad: "failed", unittest.SkipTest: "skipped"}  # else: error
# Errors in the drill's own words, and ends that somebody asked for:
SHOWN_UNCHANGED = (BackupIsBad, unittest.SkipTest, KeyboardInterrupt, SystemExit)
HEADLINES = {
    PASSED: "The backup restores.",
    "failed": "The backup is bad.",
    "error": "The backup could not be judged.",
    "skipped": "The drill was skipped.",
}


def initial_evidence(options: Options) -> Evidence:
    """What is known of a run when it begins."""
    source = "a rehearsal"
    if options.live:
        source = "the configured database"
    elif options.backup:
        source = f"the backup {options.backup.name}"
    not_run = {"verdict": "not run", "seconds": None, "sentence": ""}
    evidence: Evidence = dict.fromkeys(re.findall(r"(?m)^  (\w+)", FACTS))
    evidence.update(
        version=2,
        verdict=PASSED,
        acts=dict.fromkeys(ACTS, not_run),
        started=in_utc(time.time()),
        drill=version_of_drill(),
        host=os.uname().nodename,
        source=source,
        database=options.database,
        max_age_seconds=options.max_age,
        max_restore_seconds=options.max_restore,
        not_compared=dict.fromkeys(NEVER_COMPARED, ""),
        accepted={},
        checks={},
        scratch_dropped=True,  # as far as is known
    )
    for fact, variable in GITHUB.items():
        evidence[fact] = environ.get(variable)
    return evidence


def judge(evidence: Evidence, act: str, work: Callable[[], object]) -> None:
    """Do the work of an act; note the verdict, and why it did not pass."""
    log.info("")  # ends the line that unittest has begun
    began = monotonic()
    verdict = PASSED
    sentence = ""
    try:
        work()
    except BaseException as error:  # noqa: BLE001  it is raised again
        fault = shown_fault(error)
        verdict = VERDICTS.get(type(fault), "error")
        sentence = str(fault)
        raise fault.with_traceback(None) from None
    finally:
        evidence["acts"][act] = {
            "verdict": verdict,
            "seconds": round(monotonic() - began, 3),
            "sentence": sentence,
        }
        if evidence["verdict"] == PASSED:
            evidence["verdict"] = verdict
            evidence["sentence"] = sentence


def require_limit(evidence: Evidence, name: str, fact: str, seconds: float) -> None:
    """Fail with the fact if a duration is above the limit of that name."""
    limit = evidence[f"{name}_seconds"]
    if not limit:
        return
    evidence[f"{name}_met"] = seconds <= limit
    if seconds > limit:
        found = timedelta(seconds=round(seconds))
        allowed = timedelta(seconds=round(limit))
        raise BackupIsBad(fact, f"found {found}, expected {allowed} or less")


def publish(evidence: Evidence, options: Options) -> None:
    """Print the evidence, write the report, add to the job's summary."""
    evidence["finished"] = in_utc(time.time())
    used = evidence["accepted"].values()
    evidence["unused_accepts"] = [glob for glob in options.accept if glob not in used]
    headline = HEADLINES[evidence["verdict"]]
    not_restored = evidence["acts"]["restore"]["verdict"] == "not run"
    if evidence["verdict"] == PASSED and not_restored:
        headline = "The backup was not restored yet."
    lines = lines_of(evidence)
    screen = [f"    {label:<13} {text}" for label, text in lines]
    try:
        print("", headline, *screen, sep="\n", file=sys.stderr)
    finally:  # the terminal may be closed
        if options.report:
            text = json.dumps(evidence, indent=2)
            write_evidence(options.report, "wb", f"{text}\n")
        if environ.get("GITHUB_STEP_SUMMARY"):
            summary = Path(environ["GITHUB_STEP_SUMMARY"])
            write_evidence(summary, "ab", markdown_of(evidence, headline, lines))
    if evidence["sentence"] and environ.get("GITHUB_ACTIONS") == "true":
        level = "error"
        if evidence["verdict"] == "skipped":
            level = "warning"
        first, _, _ = encoded(evidence["sentence"]).partition(b"\n")
        text = first.decode(errors="backslashreplace").replace("%", "%25")
        print(f"::{level} title=Backup drill::{text}", flush=True)


def markdown_of(evidence: Evidence, headline: str, lines: list[Fact]) -> str:
    """The evidence for GitHub's summary: a table of the acts, one of the facts."""
    text = f"### Backup drill\n\n**{headline}**\n\n"
    if evidence["sentence"]:
        text += f"```\n{evidence['sentence']}\n```\n\n"
    text += "| act | verdict | seconds |\n| --- | --- | --- |\n"
    for name, act in evidence["acts"].items():
        text += f"| {name} | {act['verdict']} | {act['seconds'] or ''} |\n"
    text += "\n| fact | found |\n| --- | --- |\n"
    for label, found in lines:
        cell = found.replace("|", "\\|")
        text += f"| {label} | {cell} |\n"
    return f"{text}\n"


def lines_of(evidence: Evidence) -> list[Fact]:
    """The facts as lines: a label, which may be empty, and a text."""
    lines = []
    if evidence["verdict"] != PASSED:
        acts = evidence["acts"].items()
        verdicts = [f"{name} {act['verdict']}" for name, act in acts]
        lines.append(("acts", ", ".join(verdicts)))
    known_facts = {name: fact for name, fact in evidence.items() if fact is not None}
    for label, template in LINES:
        if label not in dict(lines):  # so far, a fact of its lines was not known
            with suppress(KeyError):  # of a fact that is not known
                lines.append((label, template.format(**known_facts)))
    for fact in ("not_compared", "accepted", "checks"):
        label = fact.replace("_", " ")
        for text in in_words(evidence[fact]):
            lines.append((label, text))
            label = ""
    for glob in evidence["unused_accepts"]:
        lines.append(("accepted", f"{glob} (matches nothing)"))
    return lines


def in_words(reasons: StringDict) -> list[str]:
    """Things with their reason, one line for each reason."""
    things = defaultdict(list)
    for thing, reason in reasons.items():
        things[reason].append(thing)
    texts = []
    for reason, names in things.items():
        text = ", ".join(names[:MOST_NAMES])
        if len(names) > MOST_NAMES:
            text += f" and {len(names) - MOST_NAMES} more"
        if reason:
            text += f" ({reason})"
        texts.append(text)
    return texts


def counts_of(contents: Contents) -> Evidence:
    """How much a database holds, of what."""
    tables = contents.tables - contents.moved
    rows = {table: contents.rows[table] for table in sorted(tables)}
    large_objects = contents.rows[LARGE_OBJECTS]
    if LARGE_OBJECTS in contents.moved:
        large_objects = 0
    texts = [text for _, text in contents.definitions]
    return {
        "tables": len(rows),
        "rows": sum(rows.values()),
        "objects": texts.count(""),  # see Contents.definitions
        "rows_of_tables": {name.removeprefix("table "): rows[name] for name in rows},
        "sequences": len(without(contents.sequences, contents.moved)),
        "large_objects": large_objects,
    }


def version_of_drill() -> str:
    """What tells which copy of this file runs: the beginning of its SHA-256."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def shown_fault(error: BaseException) -> BaseException:
    """The error in words that may be shown to the user."""
    if isinstance(error, OSError):  # a full disk, a folder without rights
        fact = error.strerror or str(error)
        if error.filename:
            fact += f": {error.filename}"
        return NotJudged(fact, hint_for(str(error)))
    if isinstance(error, NotJudged):  # the name of a subclass would tell nothing
        return NotJudged(*error.args)
    if isinstance(error, SHOWN_UNCHANGED):
        return error
    fault = described(error, SHOWN_WITH_ROWS)
    return NotJudged("a fault of the drill's own", fault)


def write_evidence(path: Path, mode: str, text: str) -> None:
    """Write a file of evidence, or add to it. Raises NotJudged."""
    try:
        with open(path, mode, opener=opened_at_once) as file:
            file.write(text.encode(errors="backslashreplace"))
    except OSError as error:
        raise NotJudged(f"the evidence cannot be written: {error}") from None


def opened_at_once(path: str, flags: int) -> int:
    """A file descriptor; opening it does not wait for the reader of a pipe."""
    file = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(file, True)
    return file


def in_utc(seconds: float) -> str:
    """A time since 1970 as ISO 8601."""
    return datetime.fromtimestamp(round(seconds), UTC).isoformat()


# --- The command line --------------------------------------------------------
# In: arguments. Out: options, or a sentence. Promised: status 0 when all that
# ran passed or was skipped, else 1.

EPILOG = """
examples:
  on every push             --strict
  last night's file         --backup last.dump --max-age 26h --max-restore 15m
  the database as it is     --live --report drill.json
  your own commands         --backup-command './backup.sh "$BACKUP_FILE"'
                            --restore-command './restore.sh "$BACKUP_FILE"'
  an encrypted file         --backup last.gpg --decrypt 'gpg --batch -d'
  a freshness check         --check "SELECT max(at) > now() - interval '26 h'
                                     FROM orders"
  owners left out           --accept '*: owner: *'

A DURATION is 900, 15m, 26h or 2d. A command gets BACKUP_FILE, PG*,
DATABASE_URL, and MANAGE, which runs management commands on its database.
Options can also be given in BACKUP_DRILL_OPTIONS, for unittest and pytest, too.
Arguments that are not listed go to unittest: -k restore runs one test.
Exit status: 0 when all that ran passed or was skipped, 1 otherwise.
"""


def duration(text: str) -> float:
    """A number of seconds, or one with s, m, h or d."""
    found = re.fullmatch(r"(\d+\.?\d*)([smhd]?)", text)
    if found:
        units = {"m": 60, "h": 3600, "d": 86400}
        seconds = float(found[1]) * units.get(found[2], 1)
        if 0.001 <= seconds <= 1e8:  # three years
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 900, 15m or 26h")


def not_blank(text: str) -> str:
    """A text that is not empty, as "$FILE" is if the variable is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: is a variable not set?")
    return text


def file_path(text: str) -> Path:
    """The path of a file, made absolute."""
    try:
        return Path(not_blank(text)).absolute()
    except FileNotFoundError:  # of the working directory
        raise argparse.ArgumentTypeError(
            "this folder is gone: name the file by its full path"
        ) from None


def django_command(text: str) -> str:
    """A command for manage.py."""
    try:
        shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return not_blank(text)


FLAG = {"action": "store_true"}
SHELL = {"metavar": "COMMAND", "type": not_blank}
FILE = {"metavar": "FILE", "type": file_path}
LIMIT = {"metavar": "DURATION", "type": duration}
SEVERAL = {"action": "append", "default": [], "type": not_blank}
OPTIONS = {
    "what": {
        "--live": (FLAG, "back up the configured database"),
        "--backup": (FILE, "judge an existing backup"),
        "--decrypt": (SHELL, "decrypts FILE, from stdin to stdout"),
        "--backup-command": (SHELL, "writes $BACKUP_FILE"),
        "--restore-command": (SHELL, "loads $BACKUP_FILE"),
        "--format": (
            {"choices": ("plain", "custom", "directory"), "default": "plain"},
            "of the backup that is made (default: plain)",
        ),
        "--jobs": (
            {"metavar": "N", "type": int, "default": 1},
            "parallel workers, where the format allows them (default: 1)",
        ),
    },
    "where": {
        "--database": (
            {"metavar": "ALIAS", "default": "default"},
            "in settings.DATABASES (default: default)",
        ),
        "--throwaway": (
            {"action": argparse.BooleanOptionalAction},
            "work on a private server; --live and --backup do so anyway",
        ),
        "--strict": (FLAG, "anything missing is an error: no skip, no substitute"),
    },
    "limits and checks": {
        "--timeout": (
            {**LIMIT, "default": 30.0},
            "for each operation (default: 30 s); ten times that to migrate",
        ),
        "--max-age": (LIMIT, "of the --backup"),
        "--max-restore": (LIMIT, "of the load"),
        "--check": (
            {**SEVERAL, "metavar": "SQL"},
            "must be true in the restored database",
        ),
        "--manage": (
            {**SEVERAL, "metavar": "COMMAND", "type": django_command},
            "of manage.py, must succeed on it",
        ),
        "--accept": ({**SEVERAL, "metavar": "GLOB"}, "differences that are no fault"),
    },
    "output": {
        "-v --verbose": (FLAG, "show each step, and what commands print"),
        "--report": (FILE, "write the evidence as JSON"),
    },
}


def parsed(argv: list[str]) -> tuple[Options, list[str]]:
    """The options, and the arguments for unittest. Raises SystemExit."""
    parser = argparse.ArgumentParser(
        description="Prove that this Django project's backup restores.",
        epilog=f"{EPILOG}\nfacts of --report:\n{FACTS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version_of_drill())
    for title, arguments in OPTIONS.items():
        group = parser.add_argument_group(title)
        for names, (keywords, text) in arguments.items():
            group.add_argument(*names.split(), **keywords, help=text)
    try:
        given = shlex.split(environ.get("BACKUP_DRILL_OPTIONS", ""))
    except ValueError as error:
        parser.error(f"BACKUP_DRILL_OPTIONS: {error}")
    options, others = parser.parse_known_args([*given, *argv])
    options.rehearsal = not (options.live or options.backup)
    options.private = options.throwaway
    if options.private is None:
        options.private = bool(options.restore_command) or not options.rehearsal
    problem = contradiction(options, others)
    if problem:
        parser.error(problem)
    return options, others


def given_options() -> Options:
    """The options that only the environment gives. Raises NotJudged."""
    try:
        options, others = parsed([])
    except SystemExit:  # of --help, for example: unittest would report success
        raise NotJudged(
            "BACKUP_DRILL_OPTIONS asks for no drill", "see --help"
        ) from None
    if others:  # which nobody else would look at
        raise NotJudged(
            f"BACKUP_DRILL_OPTIONS: not known: {shlex.join(others)}", "see --help"
        )
    return options


def contradiction(options: Options, others: list[str]) -> str:
    """What is wrong with the options together, "" if nothing is."""
    for is_so, problem in [
        (
            # unittest takes abbreviations
            any(argument.startswith("--l") for argument in others),
            "--locals would show the settings, with their passwords",
        ),
        (
            others and Path(others[0]).is_file(),
            "a file is given by --backup, --decrypt or --report",
        ),
        (options.live and options.backup, "not allowed: --live and --backup"),
        (options.jobs < 1, "--jobs is a number of workers, above 0"),
        (
            options.restore_command and not options.private,
            "--restore-command works on a private server alone",
        ),
        (
            options.backup_command and options.backup,
            "--backup-command: the --backup exists",
        ),
        (
            (options.decrypt or options.max_age) and not options.backup,
            "--decrypt and --max-age are about a --backup that exists",
        ),
        (
            options.backup and options.report and reports_into(options),
            "--report: that is the backup, which is only read",
        ),
    ]:
        if is_so:
            return problem
    return ""


def reports_into(options: Options) -> bool:
    """Whether the report would be written into the backup."""
    report = Path(os.path.realpath(options.report))
    backup = Path(os.path.realpath(options.backup))
    record = backup.with_name(f"{backup.name}.sha256")
    with suppress(OSError):  # one of them is not there
        if report.samefile(backup):
            return True  # by another name
    return backup in (report, *report.parents) or report == record


def open_missing_streams() -> None:
    """Open stdin, stdout and stderr if the process was started without them."""
    while os.open(os.devnull, os.O_RDWR) < 3:
        continue  # until all three are open, and one more, which is not used
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    atexit.register(close_streams)  # what is registered first is called last


def close_streams() -> None:
    """Close them; at its end, Python would fail to, if a terminal is gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.close()


def main(argv: list[str]) -> int:
    """Run the drill; 0 when all that ran passed or was skipped, else 1."""
    if argv[1:] and argv[1] in (DESCRIBE, RUN_COMMAND, RUN_FOR_TEAM):
        answer(*argv[1:])  # which ends the process
    open_missing_streams()
    try:
        options, others = parsed(argv[1:])
        BackupRestoreTests.options = options
        form = "%(message)s"
        if sys.stderr.isatty():  # in place of what `step` has put into the line
            form = f"\r{CLEAR}%(message)s"
        logging.basicConfig(format=form)
        log.setLevel(logging.WARNING)
        if options.verbose:
            log.setLevel(logging.INFO)
        # -f: a test would repeat what the one before it could not do.
        result = unittest.main(
            argv=[argv[0], "-f", *others],
            exit=False,
            verbosity=1 + options.verbose,
            warnings="ignore",  # they are about the code of others
        ).result
    except SystemExit as stop:  # of either parser
        return int(bool(stop.code))
    except KeyboardInterrupt as ended:
        print(f"\ninterrupted ({ended})", file=sys.stderr)
        return 1
    finally:
        # Not only at exit, where the first versions of Python 3.12 start no thread.
        BackupRestoreTests.doClassCleanups()
    if not (result.testsRun or result.skipped or result.errors):
        print("no test was run", file=sys.stderr)
        return 1
    return int(not result.wasSuccessful())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
