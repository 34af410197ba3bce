#!/usr/bin/env python3
"""Prove that this Django project's PostgreSQL backup restores.

    test_backup_creation    a source database is written to a backup
    test_backup_validation  the backup is whole and holds every row of every table
    test_backup_restore     a fresh database loaded from it equals the source

The source is a rehearsal, made for this run: the project's migrations and a sample of
awkward values. With --live it is the configured database, which is only read. With
--backup FILE the backup exists, and is compared with what it says itself.

Two ways that do not know of each other tell what a database holds: pg_dump writes its
definitions, psql reads its facts: rows, sequences, names. PostgreSQL rewrites some
definitions at their first restore, so those of the reference are expected.

    server      a database through which others are made: where, as whom, by which programs
    scratch     made by this run, carries its mark, is dropped by it
    backup      the file or folder that holds the source
    scan        what one pass over a backup, as SQL, finds in it
    restored    the scratch database loaded from the backup
    reference   the scratch database with the source's definitions and no rows
    contents    what a database holds, as values that can be compared

A failure (BackupIsBad) says that the backup is bad, an error (NotJudged) that it could
not be judged. The tests come first; what they use follows in the order of its use.
"""

import argparse
import atexit
import hashlib
import json
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
import traceback
import unittest
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple
from urllib.parse import quote

try:  # in Django's order of preference
    import psycopg as driver
    from psycopg.conninfo import make_conninfo
except ImportError:
    import psycopg2 as driver
    from psycopg2.extensions import make_dsn as make_conninfo

__unittest = True  # unittest then shows our sentences without the frames of this file
log = logging.getLogger("backup_drill")
MARK = "backup_drill_"  # what the names of our databases and folders begin with
CHUNK = 2**20  # bytes read at once
ISO = "%Y-%m-%dT%H:%M:%S+00:00"


class BackupIsBad(AssertionError):
    """The backup was judged and is bad: a failure, in unittest's words."""


class NotJudged(Exception):
    """The backup could not be judged: an error, in unittest's words, and what to do."""

    def __str__(self) -> str:
        return "\n  ".join(filter(None, map(str, self.args)))


@dataclass(frozen=True)
class Options:
    """What the command line decides; durations are in seconds."""

    verbose: bool = False
    strict: bool = False
    throwaway: bool = False
    timeout: float = 30.0  # for each operation
    database: str = "default"  # an alias of settings.DATABASES
    format: str = "plain"
    jobs: int = 1
    live: bool = False
    backup: Path | None = None
    max_age: float | None = None
    max_restore: float | None = None
    report: Path | None = None

    @property
    def use_configured(self) -> bool:
        """Whether the configured database's server takes part."""
        return self.live or not self.throwaway


# --- The sample -----------------------------------------------------------------------

SAMPLE = r"""
CREATE SCHEMA backup_drill;
COMMENT ON SCHEMA backup_drill IS 'It''s a sample; "quotes", \ and
a second line';
CREATE TYPE backup_drill.mood AS ENUM ('good', 'bad', 'it''s complicated');
CREATE DOMAIN backup_drill.percent AS numeric(5, 2) CHECK (VALUE BETWEEN 0 AND 100);
CREATE SEQUENCE backup_drill.ticket START 1000 INCREMENT 10;
CREATE TABLE backup_drill.item (                    -- "Note" needs its quotes
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "Note" text, amount numeric,
    kind varchar(10) NOT NULL DEFAULT 'plain' CHECK (kind IN ('plain', 'awkward')),
    ticket integer DEFAULT nextval('backup_drill.ticket'), ratio double precision,
    share backup_drill.percent, mood backup_drill.mood, born date, seen timestamptz,
    lasted interval, raw bytea, parsed jsonb, verbatim json, tags text[], span int4range,
    length integer GENERATED ALWAYS AS (length("Note")) STORED);
INSERT INTO backup_drill.item (kind, "Note") VALUES
    ('awkward', 'a ''quote'', a "double" one, a \backslash, and one at the end \'),
    ('awkward', E'a\ttab, a\nnew line, a\rreturn'), ('awkward', '  blanks at both ends  '),
    ('awkward', '\.'), ('awkward', E'COPY backup_drill.item (id) FROM stdin;\n1\n\\.\n'),
    ('awkward', NULL), ('awkward', ''), ('awkward', '\N'),  -- NULL is neither
    ('awkward', 'naïve Ünïcödé, 日本語, العربية, 🚑, é is not é'),
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
    id integer GENERATED BY DEFAULT AS IDENTITY (START 7 INCREMENT 3) PRIMARY KEY,
    parent integer REFERENCES backup_drill.node DEFERRABLE INITIALLY DEFERRED,
    item bigint NOT NULL REFERENCES backup_drill.item ON DELETE CASCADE,
    place integer UNIQUE, reserved int4range, EXCLUDE USING gist (reserved WITH &&));
INSERT INTO backup_drill.node (parent, item, place, reserved)
SELECT nullif(7 + 3 * (n / 2), 7 + 3 * n), n + 1, n, int4range(n, n + 1)
  FROM generate_series(0, 99) AS n;
CREATE TABLE backup_drill.event (what text, at timestamptz);  -- no key, equal rows
INSERT INTO backup_drill.event
SELECT 'twice', timestamptz '2024-01-01 00:00:00+00' + n % 50 * interval '1 hour'
  FROM generate_series(1, 100) AS n;
ALTER TABLE backup_drill.event ENABLE ROW LEVEL SECURITY;
CREATE POLICY event_recent ON backup_drill.event FOR SELECT USING (at > '2024-01-02');
CREATE VIEW backup_drill.awkward AS
SELECT id, "Note" FROM backup_drill.item WHERE kind IN ('awkward', 'odd');
CREATE MATERIALIZED VIEW backup_drill.tally AS
SELECT kind, count(*) AS items FROM backup_drill.item GROUP BY kind;
CREATE FUNCTION backup_drill.keep_place() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN /* A reader of the backup must not take this for data:
COPY backup_drill.fake (id) FROM stdin;
\.
-- PostgreSQL database dump complete
*/  NEW.place := coalesce(NEW.place, NEW.id + 1000);
    RETURN NEW;
END $body$;
CREATE TRIGGER node_place BEFORE INSERT ON backup_drill.node
   FOR EACH ROW WHEN (NEW.place IS NULL) EXECUTE FUNCTION backup_drill.keep_place();
GRANT SELECT ON backup_drill.item TO PUBLIC;
GRANT UPDATE (what) ON backup_drill.event TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA backup_drill GRANT SELECT ON TABLES TO PUBLIC;
SELECT lo_from_bytea(4711, '\x00ff0a5c2e0a');
COMMENT ON LARGE OBJECT 4711 IS 'six bytes';
"""
# Through the identity columns, the sequence and the trigger of the sample.
SAMPLE_INSERTS = """
INSERT INTO backup_drill.item ("Note") VALUES ('after the restore');
INSERT INTO backup_drill.node (item) SELECT max(id) FROM backup_drill.item;
"""


# --- The story ------------------------------------------------------------------------


class BackupRestoreTests(unittest.TestCase):
    """A backup is made, is whole, and brings everything back.

    `load_tests` keeps the tests in this order. Under pytest, which sorts by name, and
    with -k, a test makes and validates the backup that it needs: each is right alone.
    """

    options = Options()

    @classmethod
    def setUpClass(cls) -> None:
        # Ctrl-C leaves unittest before it has cleaned up after the class.
        atexit.register(cls.doClassCleanups)
        logging.basicConfig(format="%(message)s")
        log.setLevel(logging.INFO if cls.options.verbose else logging.WARNING)
        cls.made: Backup | None = None
        cls.scan: Scan | None = None
        cls.evidence = Evidence(cls.options)
        cls.addClassCleanup(cls.evidence.publish)
        cls.evidence.judge("set-up", "The server is found.", cls.find_server)

    @classmethod
    def find_server(cls) -> None:
        """Find the server and its programs, with the project's databases out of reach."""
        if sys.version_info < (3, 11):  # noqa: UP036  a sentence, for those who have it
            raise NotJudged("this Python is too old", "use Python 3.11 or later")
        if cls.options.report:  # better told now than after the work
            write_evidence("the report", cls.options.report, "a", "")
        cls.enterClassContext(interruptible())
        run = cls.enterClassContext(started_run(cls.options))
        cls.project = cls.enterClassContext(started_project(run))
        cls.configured, cls.server = cls.enterClassContext(started_servers(cls.project))
        cls.project.ask("set-up")  # done meanwhile
        programs = cls.server.programs
        cls.evidence.facts |= {"server": cls.server.version, "programs": programs}

    def test_backup_creation(self) -> None:
        """The source is written to a new backup."""
        self.evidence.judge("creation", self.shortDescription(), self.backup)

    def test_backup_validation(self) -> None:
        """The backup is whole and holds every row of every table."""
        self.evidence.judge("validation", self.shortDescription(), self.valid_scan)

    def test_backup_restore(self) -> None:
        """A fresh database loaded from the backup is the source again."""
        self.evidence.judge("restore", self.shortDescription(), self.restore)

    @classmethod
    def backup(cls) -> "Backup":
        """The backup of this run, made on first use."""
        if cls.made is None:
            cls.made = create_backup(cls.configured, cls.server, cls.project)
            cls.evidence.facts |= cls.made.facts()
            size, least = cls.evidence.facts["bytes"], 1024 if cls.made.rehearsal else 1
            small = [f"found {size} bytes, expected {least} or more"] * (size < least)
            refuse("the backup is too small to hold its source", small)
        return cls.made

    @classmethod
    def valid_scan(cls) -> "Scan":
        """What the backup holds, once it was found to be whole."""
        if cls.scan is None:
            cls.scan = validated(cls.backup(), cls.server)
        return cls.scan

    def restore(self) -> None:
        """Load the backup, compare what came back, and use it."""
        backup, scan, facts = self.backup(), self.valid_scan(), self.evidence.facts
        provide_globals(scan, self.server)
        restored = made_database(self.server, "restored", backup.like, scan)
        seconds, reference = load_backup(backup, restored)
        facts["seconds_to_restore"] = round(seconds, 3)
        found, expected = read_both(backup, scan, restored, reference)
        facts["not_compared"] |= uncompared(backup, scan, found)
        fact = "the restored database differs from its source"
        refuse(fact, differences(expected, found))
        tables = [r.count for thing, r in found.rows.items() if thing[:5] == "table"]
        facts |= {"tables": len(tables), "rows": sum(tables)}
        facts["objects"] = len(expected.definitions)
        with step("use the restored database"):
            pending = self.project.ask("pending migrations", restored)
            facts["pending_migrations"] = pending
            faults = faults_in_use(restored, pending) if backup.rehearsal else []
            refuse("the restored database cannot be used", faults)
        with step("make differences, and see them"):
            require_differences_seen(restored, found)
        refuse("the restore took too long", beyond(seconds, self.options.max_restore))


def load_tests(loader: unittest.TestLoader, *_: Any) -> unittest.TestSuite:
    """Creation, validation, restore: by name, unittest would restore too early."""
    order = ["creation", "validation", "restore"]
    names = loader.getTestCaseNames(BackupRestoreTests)
    names = sorted(names, key=lambda name: order.index(name.rpartition("_")[2]))
    return unittest.TestSuite(map(BackupRestoreTests, names))


def refuse(fact: str, sentences: list[str]) -> None:
    """Fail with the fact and the first sentences, unless there are none."""
    if sentences:
        raise BackupIsBad(f"{fact}\n{indented(sentences)}")


def indented(lines: list[str], most: int = 20) -> str:
    """The first lines, indented by two blanks, and how many more there are."""
    more = [f"... and {len(lines) - most} more"] * (len(lines) > most)
    return "\n".join(f"  {line}" for line in [*lines[:most], *more])


@contextmanager
def step(what: str) -> Iterator[None]:
    """Report what was done and how long it took."""
    began, outcome = time.monotonic(), ": stopped here"
    try:
        yield
        outcome = ""
    finally:
        log.info("%8.2f s  %s%s", time.monotonic() - began, what, outcome)


# --- A run: its signals, its folder, its reaper, its programs -------------------------


@contextmanager
def interruptible() -> Iterator[None]:
    """The first signal that asks for an end raises KeyboardInterrupt; later ones do not."""
    interrupted = []

    def interrupt(number: int, _frame: object) -> None:
        interrupted.append(number)
        handle_endings(lambda *_: None)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = handle_endings(interrupt)
    yield
    for each, handler in before.items():
        # After a first signal the process is ending: later ones are ignored.
        signal.signal(each, signal.SIG_IGN if interrupted else handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Heed a signal that asks for an end when the block is over."""
    came = []
    before = handle_endings(lambda number, _: came.append(number))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def handle_endings(handler: Callable[..., None]) -> dict[signal.Signals, Any]:
    """Set the handler of the signals that ask for an end; return those before."""
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # One that is ignored from the start, as nohup does with SIGHUP, stays ignored.
    heeded = [each for each in endings if signal.getsignal(each) != signal.SIG_IGN]
    return {each: signal.signal(each, handler) for each in heeded}


# It reads +ID for each process group that was started, -ID for each that ended. At the
# end of the drill, by SIGKILL too, it kills the groups that are left, ends the private
# server, and removes the folder.
REAPER = r"""
groups=' '
while read -r line; do
    id=${line#?}
    case $line in
    +*) groups="$groups$id " ;;
    -*) groups="${groups%% $id *} ${groups#* $id }" ;;
    esac
done
for id in $groups; do kill -s KILL -- "-$id"; done
file="$1/data/postmaster.pid"  # which a server that ends removes
if read -r server < "$file"; then
    kill -s QUIT "$server"
    while [ -e "$file" ] && kill -0 "$server"; do sleep 0.02; done
fi
rm -rf -- "$1"
"""
# Nothing else of the environment reaches a program: a server may run as another
# account, whose processes others can look at.
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "KRB5CCNAME")
PASSED_ON += ("PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR")


@contextmanager
def started_run(options: Options) -> Iterator["Run"]:
    """A run with its folder; the reaper removes that, and ends what still runs."""
    # Python's tempfile falls back to another folder where TMPDIR is no good.
    parent = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()).absolute()
    folder = parent / f"{MARK}{os.urandom(8).hex()}"
    folder.mkdir(mode=0o700)
    words = ("/bin/sh", "-c", REAPER, "reaper", folder)
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "bufsize": 0}
    how["stdin"] = subprocess.PIPE
    how["start_new_session"] = True  # a signal to this process and its group spares it
    with subprocess.Popen(words, **how) as reaper:
        try:
            yield Run(options, folder, f"{folder.name}_", reaper)
        finally:
            handle_endings(lambda *_: None)
    if folder.exists():
        log.warning("the folder of this run is left behind: %s", folder)


@dataclass(frozen=True)
class Run:
    """What all parts of one run share, and how they start programs."""

    options: Options
    folder: Path  # for its files, readable by this account alone
    mark: str  # what the names of its databases begin with
    reaper: subprocess.Popen  # removes what is left, however this process ends
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def redacted(self, text: str) -> str:
        """The text with [REDACTED] for each secret, in whichever way it is written."""
        for secret in self.secrets:
            escaped = secret.replace("\\", "\\\\")
            forms = {escaped, escaped.replace("'", "\\'"), secret.replace("'", "''")}
            forms |= {quote(secret, safe=""), quote(secret), repr(secret)[1:-1], secret}
            forms |= {json.dumps(secret, ensure_ascii=a)[1:-1] for a in (True, False)}
            for form in sorted(forms, key=len, reverse=True):
                text = text.replace(form, "[REDACTED]")
        return text

    @contextmanager
    def started(self, *arguments: Any, **how: Any) -> Iterator["Process"]:
        """A program that runs beside this one; killed with its children on leaving."""
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        how.setdefault("env", kept | {"LC_ALL": "C"} | how.pop("more", {}))
        about = self, how.pop("on", ""), how.pop("fault", NotJudged)
        with spool() as out, spool() as err, ExitStack() as stack:
            how = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err} | how
            how |= {"start_new_session": True, "umask": 0o077, "bufsize": 0}
            with uninterrupted():
                popen = subprocess.Popen([*map(str, arguments)], **how)
                self.reaper.stdin.write(f"+{popen.pid}\n".encode())
                stack.callback(self.end, popen)
            yield Process(popen, out, err, time.monotonic(), *about)

    def end(self, popen: subprocess.Popen) -> None:
        """Kill a program with its children, if it still runs."""
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        for pipe in filter(None, (popen.stdin, popen.stdout)):
            pipe.close()
        self.reaper.stdin.write(f"-{popen.pid}\n".encode())

    def output(self, *arguments: Any, **how: Any) -> str:
        """What a program writes to stdout, once it has ended well."""
        with self.started(*arguments, **how) as process:
            wait_for(process)
            return text_of(process.stdout)

    def pieces(self, stream: IO[bytes], what: str) -> Iterator[bytes]:
        """What a file or a program yields, piece by piece; NotJudged at the bound."""
        end = time.monotonic() + self.options.timeout
        while select.select([stream], [], [], max(0, end - time.monotonic()))[0]:
            if not (piece := os.read(stream.fileno(), CHUNK)):
                return
            yield piece
        raise self.overrun(what)

    def overrun(self, name: str) -> NotJudged:
        """The error that a program did not end in time; leaving its context kills it."""
        fact = f"{name} did not end within {self.options.timeout:g} s, and was killed"
        return NotJudged(fact, "allow more time with --timeout")


def spool(text: str = "") -> BinaryIO:
    """A file for what a program reads or says; in memory, if possible: disks fill up."""
    if hasattr(os, "memfd_create"):  # Linux
        file = os.fdopen(os.memfd_create(""), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(text.encode("utf-8", "surrogateescape"))
    file.seek(0)
    return file


def text_of(file: BinaryIO) -> str:
    """What was written to the file; its position, which a program shares, stays."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode("utf-8", "surrogateescape")


def wait_for(*processes: "Process") -> None:
    """Wait until all have ended well; raise what the first means that has not."""
    began = shown = now = time.monotonic()
    while any(process.popen.poll() is None for process in processes):
        for process in processes:
            if process.popen.poll():
                raise process.failure()
            late = now > process.began + process.run.options.timeout
            if late and process.popen.poll() is None:
                raise process.run.overrun(process.name)
        if sys.stderr.isatty() and now > shown + 0.5:
            # Behind unittest's dots: the cursor is saved, and brought back.
            said, shown = f"{processes[0].name}: {now - began:.0f} s", now
            print(f"\x1b7 {said}\x1b[K\x1b8", end="", file=sys.stderr, flush=True)
        time.sleep(0.002)
        now = time.monotonic()
    if shown > began:
        print("\x1b[K", end="", file=sys.stderr, flush=True)
    for process in processes:
        if process.popen.returncode:
            raise process.failure()
        level = logging.WARNING if process.name == "pg_dump" else logging.INFO
        if said := [*filter(None, map(without_values, process.said().splitlines()))]:
            log.log(level, "%s says:\n%s", process.name, indented(said))


# --- What a program's failing means ---------------------------------------------------

# psql's report of an error. The severity is in the server's language; the code, and
# the function of PostgreSQL's that reported it, are not.
REPORT = re.compile(r"^psql:.*?:(\d+): \S+:  ([0-9A-Z]{5}): (.*)", re.MULTILINE)
LOCATION = re.compile(r"^LOCATION:  (\w+)|\Z", re.MULTILINE)
FAULT = re.compile(r"^.*\b(?:error|FATAL|ERROR|PANIC): .*", re.MULTILINE)
# A function, a SQLSTATE or how one begins: no fault of the backup's, and what to do.
OUTSIDE = {
    "get_role_oid": "use a server that has the role, or --throwaway",
    "check_session_authorization": "use a server that has the role",
    "get_tablespace_oid": "use a server that has the tablespace",
    "parse_extension_control_file": "install the extension on the server",
    "find_option": "a newer pg_dump wrote it: use the programs of the server's version",
    "assignable_custom_variable_name": "use the programs of the server's version",
    "42501": "use a superuser, or --throwaway",
    "25006": "let the role write in new databases (default_transaction_read_only)",
    "53100": "make room on the disk",
    "53": "the server is at a limit, such as max_locks_per_transaction: raise it",
    "57014": "allow more time with --timeout",
    "58": "a file or a library is missing on the machine of the server: see its log",
    "28": "check the user and the password",
    "XX": "an internal error of the server: see its log, and run again",
} | dict.fromkeys(("08", "40", "55006", "55P03", "57"), "run again")
QUOTES_VALUES = ("22", "P0", "42601")  # their messages do, and a RAISE may
# What to do about another error, by words of it. They choose no verdict.
HINTS = {
    "authentication failed|no password": "check the user and the password",
    "refused|translate|resolve|timed out|No route|No such file": "check host and port",
    "server closed|terminating|connection .*(lost|closed)|shutting|starting": "run again",
    'database ".*" does not exist': "check the name of the database",
    "pg_hba.conf|SSL": "check sslmode and its files, and the server's pg_hba.conf",
    "startup parameter": "let the settings name the server itself, not its pooler",
    "(statement|lock) timeout": "allow more time with --timeout",
    "No space|could not (extend|write)": "make room on the disk",
    "permission denied|row-level security": "use a role that may read everything",
    "must be (superuser|owner)": "use a superuser, or --throwaway",
    "locale|LC_C": "install the locale on the machine of the server",
}


@dataclass(frozen=True)
class Process:
    """A program that was started, and the files that take what it says."""

    popen: subprocess.Popen
    stdout: BinaryIO
    stderr: BinaryIO
    began: float  # by the monotonic clock
    run: Run
    on: str  # the database
    fault: type[Exception] | None  # what its failing means; None: psql's report tells

    @property
    def name(self) -> str:
        """The program's name."""
        return Path(self.popen.args[0]).name

    def said(self) -> str:
        """What it has written to stderr, without secrets."""
        return self.run.redacted(text_of(self.stderr))

    def failure(self) -> Exception:
        """What it means that it did not end well."""
        status, said = self.popen.returncode, self.said().strip()
        reports = [*REPORT.finditer(said)][-1:]  # warnings may precede the error
        found = FAULT.search(said)
        sentence = found[0] if found else said.partition("\n")[0]
        hint = hint_for(sentence)
        if reports:
            sentence, hint = report_of(said[reports[0].start() :])
        elif self.on and self.name == "pg_restore":
            # It gives no code, and quotes values.
            sentence, hint = "", hint or "run without --jobs: psql tells what it means"
        ended = f"exited with {status}" if status > 0 else f"died of signal {-status}"
        where = f' on database "{self.on}"' if self.on else ""
        judged = status == 3 and reports and not hint
        kind = self.fault or (BackupIsBad if judged else NotJudged)
        text = NotJudged(f"{self.name} {ended}{where}", sentence, hint)
        return text if status < 0 else kind(str(text))


def report_of(said: str) -> tuple[str, str]:
    """The first line of psql's report, without values, and what to do about it."""
    line, code, message = REPORT.match(said).groups()
    function = LOCATION.search(said)[1] or "the server"
    if code.startswith(QUOTES_VALUES) or function == "exec_stmt_raise":
        message = f"its message may quote a value ({function})"
    hints = [h for key, h in OUTSIDE.items() if key == function or code.startswith(key)]
    return f"line {line}: {code}: {message}", "".join(hints[:1])


def without_values(line: str) -> str:
    """What can be shown of a line that a program says though it ends well."""
    if found := REPORT.match(line):  # a backup brackets its large objects: class 25
        return "" if found[2][:2] == "25" else f"line {found[1]}: warning {found[2]}"
    return line if re.match(r"pg_\w+: (warning|hint|detail)", line) else ""


def hint_for(said: str) -> str:
    """What to do about an error."""
    return next((h for pattern, h in HINTS.items() if re.search(pattern, said)), "")


# --- The project, in a process of its own ---------------------------------------------

PROJECT = "--serve-project"  # the argument that makes this file that process
BACKENDS = "django.db.backends."
# libpq's variables, but for those that say where files of the settings' own lie.
LIBPQ = re.compile("PG(?!PASSFILE$|SERVICEFILE$|SYSCONFDIR$)")
SECRET_OPTIONS = ("sslpassword", "oauth_client_secret", "scram_client_key")
SECRET_OPTIONS += ("scram_server_key", "password")
ENCODE = "in DATABASE_URL, percent-encode what is special in the password"


@dataclass(frozen=True)
class Project:
    """The process that has the project's code."""

    run: Run
    process: Process
    engine: str = ""
    connection: dict[str, Any] | None = None  # None also where nobody needs it

    def ask(self, request: str, database: "Database | None" = None) -> Any:
        """The answer to a request, for which the project has the database.

        Raises NotJudged when the project's code fails.
        """
        place = {"NAME": database.name} if database else {}
        if database and database.private:
            place |= {"HOST": database.words["host"], "USER": "postgres"}
        with suppress(BrokenPipeError):  # the process has ended, which its answer tells
            line = json.dumps([request, place])
            self.process.popen.stdin.write(f"{line}\n".encode())
        text = b""
        stdout, what = self.process.popen.stdout, f"what the project does: {request},"
        for piece in self.run.pieces(stdout, what):
            text += piece
            if text.endswith(b"\n"):
                break
        answer, fault = json.loads(text or b'[null, "the project has ended Python"]')
        if fault:
            raise NotJudged(self.run.redacted(fault))
        return answer


@contextmanager
def started_project(run: Run) -> Iterator[Project]:
    """The project's process, which has imported the settings."""
    alias, bound = run.options.database, run.options.timeout
    needed = run.options.use_configured
    # Settings may read any variable; in this process, libpq must not.
    how = {"env": dict(os.environ), "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    words = (sys.executable, __file__, PROJECT, alias, bound, "connection" * needed)
    with run.started(*words, **how) as process:
        hidden = {k: os.environ.pop(k) for k in [*os.environ] if LIBPQ.match(k)}
        try:
            aliases, engine, *passwords = Project(run, process).ask("settings")
            run = replace(run, secrets=tuple(passwords))
            if alias not in aliases:
                known = f"known: {', '.join(aliases)}"
                raise NotJudged(f"settings.DATABASES has no {alias!r}", known)
            project = Project(run, process, engine)
            connection = project.ask("connection") if needed else None
            yield replace(project, connection=connection)
        finally:
            os.environ.update(hidden)
            if said := run.redacted(process.said()).splitlines():
                log.info("the project says:\n%s", indented(said, 100))


def serve_project(alias: str, timeout: str, needed: str) -> None:
    """Import the project with no database in reach, and answer requests until EOF.

    An exception ends the process; what can be shown of it is the answer.
    """
    answers, requests = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
    os.dup2(2, 1)  # what the project prints is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    act = "the settings cannot be imported"

    def answer(value: Any, fault: str = "") -> None:
        print(json.dumps([value, fault]), file=answers, flush=True)

    def reply(value: Any) -> None:
        requests.readline()
        answer(value)

    sys.excepthook = lambda _kind, error, _trace: answer(None, told(error, act))
    databases = imported_databases()
    own = databases.get(alias, {"ENGINE": f"{BACKENDS}dummy", "OPTIONS": {}})
    reply([[*databases], own["ENGINE"], *passwords_of(databases)])
    # Django's engines need no apps: their words come before the long work, and the drill
    # goes on beside it.
    early = needed and own["ENGINE"].startswith(BACKENDS)
    act = "the project fails: its connection"
    if early:
        reply(connection_words(own, alias))
    act = "the project cannot be set up"
    sealed = set_up_project(own)
    if needed and not early:
        reply(connection_words(own, alias))
    reply("set up")
    options = f"-c statement_timeout={round(float(timeout) * 1000)}"
    options += " -c default_transaction_read_only=off"
    for request, place in map(json.loads, requests):
        act = f"the project fails: its {request}"
        point_project_at(scratch_settings(own, sealed["ENGINE"], place, options))
        answer(answer_from_django(request, alias))
        point_project_at(sealed)


def passwords_of(databases: dict[str, dict[str, Any]]) -> list[str]:
    """What no message may show, of all aliases."""
    options = [db["OPTIONS"] | {"": db["PASSWORD"]} for db in databases.values()]
    secrets = (o.get(name) for o in options for name in ("", *SECRET_OPTIONS))
    return [str(secret) for secret in secrets if secret]


def told(error: BaseException | None, act: str) -> str:
    """What failed: the kinds of the error and of its causes, words, and places."""
    # While settings are imported no password is known that could be redacted.
    lines, silent = [act], "imported" in act
    hint = [ENCODE] * (silent and isinstance(error, ValueError))
    while error:
        shown = not silent or isinstance(error, ImportError | SyntaxError)
        line = type(error).__name__ + f": {error}".partition("\n")[0] * shown
        for frame, number in [*traceback.walk_tb(error.__traceback__)][-1:]:
            line += f" (in {frame.f_code.co_filename}, line {number})"
        lines.append(line)
        error = error.__cause__ or error.__context__
    return "\n  ".join(lines + hint)


def imported_databases() -> dict[str, dict[str, Any]]:
    """settings.DATABASES, of the settings that the environment or manage.py names."""
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    text = "".join(path.read_text(encoding="utf-8") for path in root.glob("manage.py"))
    for name in ("DJANGO_SETTINGS_MODULE", "DJANGO_CONFIGURATION"):
        if named := re.search(rf"""["']{name}["'],\s*["']([\w.]+)""", text):
            os.environ.setdefault(name, named[1])
    if os.environ.get("DJANGO_CONFIGURATION"):
        from configurations import importer

        importer.install()
    from django.db import connections

    return {alias: dict(connections.settings[alias]) for alias in connections.settings}


def set_up_project(own: dict[str, Any]) -> dict[str, Any]:
    """Call django.setup() while every alias leads nowhere; return those settings."""
    import django
    from django.db import connections

    # As a server that is down: code that asks the database at start-up expects that.
    engine, nowhere = own["ENGINE"], f"/nonexistent/{MARK}"
    if engine.startswith(BACKENDS):  # SQLite would make the file that it does not find
        engine = f"{BACKENDS}postgresql"
    sealed = {**own, "ENGINE": engine, "OPTIONS": {}, "HOST": nowhere, "NAME": nowhere}
    for name in [*os.environ]:
        if name == "DATABASE_URL" or LIBPQ.match(name):
            del os.environ[name]
    point_project_at(sealed)
    django.setup()
    if any(each.settings_dict["HOST"] != nowhere for each in connections.all()):
        raise RuntimeError("the project replaces its DATABASES while it starts")
    return sealed


def point_project_at(database: dict[str, Any]) -> None:
    """Make every alias lead there: through another, a migration could write elsewhere."""
    from django.conf import settings
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        connection.close()
        del connections[connection.alias]
    settings.DATABASES = {alias: dict(database) for alias in connections.settings}
    connections._settings = None  # else it keeps the settings that it has read
    del connections.settings


def scratch_settings(own: dict, engine: str, place: dict, options: str) -> dict:
    """The project's settings, changed so that they lead to a scratch database."""
    kept = {k: v for k, v in own["OPTIONS"].items() if k != "pool"}
    if "HOST" in place:  # hostaddr, service or a role would lead back
        kept = {k: kept[k] for k in ("options", "application_name") if k in kept}
        kept["options"] = re.sub(r"(-c ?|--)role=\S+", "", kept.get("options", ""))
        place = {**place, "PORT": "", "PASSWORD": ""}
    kept["options"] = f"{kept.get('options', '')} {options}".strip()
    return {**own, "ENGINE": engine, "OPTIONS": kept, **place}


def connection_words(own: dict[str, Any], alias: str) -> dict[str, Any] | None:
    """How the project's engine would connect, in libpq's words; None if by others."""
    from django.db.utils import load_backend

    wrapper = load_backend(own["ENGINE"]).DatabaseWrapper(own, alias)
    if wrapper.vendor != "postgresql":
        return None
    words = {}
    for word, value in wrapper.get_connection_params().items():
        with suppress(driver.ProgrammingError):  # it is Django's own or the driver's
            if word != "client_encoding" and isinstance(value, str | int):
                make_conninfo(**{word: value})
                words[word] = str(value)
    return {"words": words, "role": own["OPTIONS"].get("assume_role")}


def answer_from_django(request: str, alias: str) -> list[str] | None:
    """Migrate what the routers let into this alias, or list what it has not applied."""
    from django.core.management import call_command
    from django.db import connections
    from django.db.migrations.executor import MigrationExecutor

    if request == "migrations":
        return call_command("migrate", database=alias, interactive=False, verbosity=0)
    executor = MigrationExecutor(connections[alias])
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [str(migration) for migration, _backwards in plan]


# --- From the settings to a server ----------------------------------------------------

# -X: a developer's ~/.psqlrc must not matter. Without ON_ERROR_STOP psql goes on after
# errors, and ends well.
PSQL = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose")
Started = AbstractContextManager[Process]


@dataclass(frozen=True)
class Database:
    """One database: where PostgreSQL listens, as whom we connect, by which programs."""

    run: Run
    name: str
    words: dict[str, str] = field(repr=False)  # libpq's, for the server
    password: str = field(default="", repr=False)
    role: str | None = None  # the project's assume_role
    encoding: str = "UTF8"
    locale: str = ""  # the clauses of CREATE DATABASE for one like it
    version: str = ""  # 15.18
    folder: Path = Path()  # of the programs
    programs: dict[str, str] = field(default_factory=dict)  # name -> version
    private: bool = False  # on a server that was started by this run, for this run

    @property
    def conninfo(self) -> str:
        """How to connect, in libpq's words, but for the password."""
        bound = self.run.options.timeout
        # Sessions must bear to wait: only our bound on each statement ends one.
        ours = {"statement_timeout": round(bound * 1000), "lock_timeout": 0}
        ours |= {"idle_session_timeout": 0, "idle_in_transaction_session_timeout": 0}
        ours |= {"default_transaction_read_only": "off"}
        if major_of(self.version) >= 17:
            ours["transaction_timeout"] = 0
        if self.role:
            ours["role"] = re.sub(r"([\\ ])", r"\\\1", self.role)
        options = " ".join(f"-c {name}={value}" for name, value in ours.items())
        words = {"connect_timeout": str(max(2, round(bound))), **self.words}
        words |= {"options": f"{self.words.get('options', '')} {options}".strip()}
        words |= {"dbname": self.name} if self.name else {}  # a service may name it
        return make_conninfo(**words)

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A cursor that commits each statement; NotJudged in place of its errors."""
        connection, secret = None, {"password": self.password} if self.password else {}
        try:
            connection = driver.connect(self.conninfo, **secret)
            connection.autocommit = True
            yield connection.cursor()
        except driver.Error as error:
            said = self.run.redacted(str(error)).strip().partition("\n")[0]
            fact = f'database "{self.name}": {said or type(error).__name__}'
            raise NotJudged(fact, hint_for(said)) from None
        finally:
            if connection:
                connection.close()

    def client(self, program: str, *arguments: Any, **how: Any) -> Started:
        """A program of PostgreSQL's on the database, started."""
        environment = {"PGPASSWORD": self.password} if self.password else {}
        if program == "psql":  # pg_dump would write the backup so
            environment["PGCLIENTENCODING"] = self.client_encoding
        words = (self.folder / program, "--no-password", "--dbname", self.conninfo)
        how |= {"on": self.name, "more": environment}
        return self.run.started(*words, *arguments, **how)

    @property
    def client_encoding(self) -> str:
        """UTF8, unless the database holds bytes of no encoding."""
        return "SQL_ASCII" if self.encoding == "SQL_ASCII" else "UTF8"

    def psql(self, *scripts: str) -> Started:
        """psql on the database, running the scripts in one session."""
        script = spool("".join(scripts))
        return self.client("psql", *PSQL, "-f", "-", stdin=script)

    def definitions(self, *arguments: Any) -> Started:
        """pg_dump, writing all definitions and no row."""
        what = ("--section=pre-data", "--section=post-data", "--no-blobs")
        encoding = ("--encoding", self.client_encoding)
        return self.client("pg_dump", *what, *encoding, *arguments)

    def facts(self, snapshot: str = "") -> Started:
        """psql, reading all facts in one transaction, of a snapshot that others share."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"
        if snapshot:
            # No snapshot covers TRUNCATE; pg_dump locks the tables that it dumps too.
            begin += f"SET TRANSACTION SNAPSHOT '{snapshot}';\n{LOCKS}"
        scripts = (SEQUENCES, f"{ROWS}\\gexec\n", LARGE, NAMES, UNCARRIED, "COMMIT;")
        return self.psql(PINNED, begin, *scripts)

    def sequences(self) -> "Sequences":
        """The values of its sequences as they stand, which no snapshot covers."""
        with self.psql(PINNED, SEQUENCES) as process:
            wait_for(process)
            return contents_from(text_of(process.stdout)).sequences


@contextmanager
def started_servers(project: Project) -> Iterator[tuple[Database, Database]]:
    """The source's server, and the server for scratch databases; most often the same."""
    options = project.run.options
    if not any(any(program_folders(name)) for name in PROGRAMS):
        missing = "no PostgreSQL programs: neither on PATH nor in the usual folders"
        error = NotJudged(missing, "install them: apt-get install postgresql-client")
        if options.strict:
            raise error
        log.warning("the backup drill is skipped: %s", error)
        raise unittest.SkipTest(missing)
    configured = server = configured_server(project) if options.use_configured else None
    with ExitStack() as stack:
        if server is None or options.throwaway:
            major = server and major_of(server.version)
            server = stack.enter_context(throwaway_server(project.run, major))
        stack.enter_context(scratch_work(server))
        yield configured or server, server


def configured_server(project: Project) -> Database | None:
    """The server of the settings, None when they have no database."""
    options, hint = project.run.options, "use --throwaway for a private server"
    if project.engine == f"{BACKENDS}dummy":
        if options.live or options.strict:
            hint = f"set DATABASE_URL or settings.DATABASES, or {hint}"
            raise NotJudged(f"no database is configured as {options.database!r}", hint)
        log.warning("no database is configured: using a throwaway server")
        return None
    if not (found := project.connection):
        fact = f"the configured database is not PostgreSQL but {project.engine}"
        raise NotJudged(fact, hint)
    words = found["words"]
    password, name = words.pop("password", ""), words.pop("dbname", "")
    if "@" in name:  # it holds a piece of a password
        raise NotJudged("the settings name a database with an @ in it", ENCODE)
    for word in filter(words.get, SECRET_OPTIONS):
        fact = f"{word} can be passed to PostgreSQL's programs as an argument only"
        raise NotJudged(fact, "leave it out of OPTIONS for the drill")
    return introduced(Database(project.run, name, words, password, found["role"]))


# The clauses of CREATE DATABASE for one like that of the session.
LOCALE = """
SELECT concat_ws(' ', format('ENCODING %L LC_COLLATE %L LC_CTYPE %L',
                             getdatabaseencoding(), datcollate, datctype),
           CASE row ->> 'datlocprovider'
           WHEN 'c' THEN 'LOCALE_PROVIDER libc'
           WHEN 'i' THEN format('LOCALE_PROVIDER icu ICU_LOCALE %L', name)
           WHEN 'b' THEN format('LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', name)
           END, 'ICU_RULES ' || quote_literal(row ->> 'daticurules'))
  FROM pg_database AS d,
       to_jsonb(d) AS row,
       coalesce(row ->> 'datlocale', row ->> 'daticulocale') AS name
 WHERE datname = current_database()
"""


def introduced(server: Database) -> Database:
    """The server, with its version, its locale and the programs that fit it."""
    about = "version(), getdatabaseencoding(), current_database(), pg_backend_pid()"
    with server.session() as cursor:
        cursor.execute(f"SELECT {about}")
        version, encoding, name, pid = cursor.fetchone()
        if pid != cursor.connection.info.backend_pid:
            fact = "a connection pooler before the server shares its sessions out"
            raise NotJudged(fact, "let the settings name the server itself")
        cursor.execute(LOCALE)
        (locale,) = cursor.fetchone()
    known = {"version": version.split()[1], "encoding": encoding, "name": name}
    return with_programs(replace(server, locale=locale, **known))


PROGRAMS = ("pg_dump", "psql", "pg_restore")
PROGRAM_FOLDERS = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # Red Hat
    "usr/libexec/postgresql*",  # Alpine
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


def program_folders(*names: str) -> Iterator[Path]:
    """The folders that have all of these programs: first on PATH, then versioned ones."""
    usual = (folder for each in PROGRAM_FOLDERS for folder in Path("/").glob(each))
    for folder in [*map(Path, os.get_exec_path()), *sorted(usual)]:
        paths = [folder / name for name in names]
        # Debian's wrapper runs the newest version, whichever is needed.
        wrapped = any(path.resolve().name == "pg_wrapper" for path in paths)
        if not wrapped and all(os.access(path, os.X_OK) for path in paths):
            yield folder


def major_of(version: str) -> int:
    """The major version: 15 of 15.18; 0 of none."""
    return int(re.match(r"\d*", version)[0] or 0)


def version_of(run: Run, program: Path) -> str:
    """What the program says of its version."""
    with suppress(NotJudged, OSError, IndexError):
        return run.output(program, "--version").partition(") ")[2].split()[0]
    return "unknown"


def with_programs(server: Database) -> Database:
    """The server, with programs of its major version, or else newer ones."""
    needed, found = major_of(server.version), []
    for folder in program_folders(*PROGRAMS):
        versions = {name: version_of(server.run, folder / name) for name in PROGRAMS}
        majors = sorted(map(major_of, versions.values()), reverse=True)
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        found.append((majors, said, replace(server, folder=folder, programs=versions)))
        if {*majors} == {needed}:  # none can fit better
            break
    hint = f"install them: apt-get install postgresql-client-{needed}"
    usable = [each for each in found if each[0][-1] >= needed]
    majors, said, best = min(usable, key=lambda each: each[0], default=([0], "", None))
    if majors[0] != needed and (server.run.options.strict or not usable):
        fact = f"{', '.join(PROGRAMS)} {needed} are needed for server {server.version}"
        said = "; ".join(each[1] for each in found) or "none"
        raise NotJudged(fact, f"found: {said}", hint)
    if majors[0] != needed:
        fact = "server %s is used with newer programs: %s\n  %s"
        log.warning(fact, server.version, said, hint)
    return best


# --- Scratch databases, and the throwaway server --------------------------------------

SCRATCH_NAME = f"^{MARK}[0-9a-f]{{16}}_(source|reference|restored)$"
# Those that this role may drop, but for those whose run holds its mark: advisory locks
# belong to one database, and a run may hold its own in another, but pg_locks shows all.
# Sessions in them end (FORCE fails for an ordinary role beside an autovacuum worker, for
# which a plain DROP DATABASE waits), and so do subscriptions, which would keep them.
DROPPABLE = """
SELECT datname,
       ARRAY(SELECT format('ALTER SUBSCRIPTION %%1$I DISABLE; ALTER SUBSCRIPTION %%1$I '
                           'SET (slot_name = NONE); DROP SUBSCRIPTION %%1$I', subname)
               FROM pg_subscription
              WHERE subdbid = d.oid),
       ARRAY(SELECT pg_terminate_backend(pid)
               FROM pg_stat_activity AS s
              WHERE s.datname = d.datname
                AND pg_has_role(usesysid, 'MEMBER'))
  FROM pg_database AS d
 WHERE datname ~ %s
   AND pg_has_role(datdba, 'MEMBER')
   AND (starts_with(datname, %s)
        OR split_part(datname, '_', 3) NOT IN (
           SELECT lpad(to_hex(classid::bigint << 32 | objid::bigint), 16, '0')
             FROM pg_locks
            WHERE locktype = 'advisory'
              AND objsubid = 1))
"""


@contextmanager
def scratch_work(server: Database) -> Iterator[None]:
    """Hold this run's mark; drop what killed runs left, and at last this run's own."""
    with server.session() as cursor:
        roles = "FROM pg_roles WHERE rolname = current_user"
        cursor.execute(f"SELECT rolcreatedb OR rolsuper, pg_is_in_recovery() {roles}")
        may, standby = cursor.fetchone()
        if standby:
            fact = "the server is a standby, on which no database can be created"
            raise NotJudged(fact, "use --throwaway")
        if not may:
            hint = "let a superuser ALTER ROLE ... CREATEDB, or use --throwaway"
            raise NotJudged("the role may not create databases", hint)
        key = int.from_bytes(bytes.fromhex(server.run.mark.split("_")[2]), signed=True)
        cursor.execute("SELECT pg_advisory_lock(%s)", [key])
        drop_databases(server)
        try:
            yield
        finally:
            handle_endings(lambda *_: None)
            if not server.private:  # else they go with it
                drop_databases(server)


def drop_databases(server: Database, purpose: str = "") -> None:
    """Drop the scratch databases of this run, or one, and of runs that are gone."""
    mark = server.run.mark
    with left_behind("a scratch database"), server.session() as cursor:
        cursor.execute(DROPPABLE, [SCRATCH_NAME, mark + purpose])
        for name, subscriptions, _ in sorted(cursor.fetchall()):
            with left_behind(name):
                if subscriptions:
                    with replace(server, name=name).session() as inside:
                        # An event trigger may forbid DDL.
                        inside.execute("SET session_replication_role TO replica")
                        for statement in "; ".join(subscriptions).split("; "):
                            inside.execute(statement)
                if re.match(SCRATCH_NAME, name):
                    cursor.execute(f"DROP DATABASE IF EXISTS {name}")
                if not name.startswith(mark):
                    log.warning("dropped a database of a killed run: %s", name)


@contextmanager
def left_behind(name: str) -> Iterator[None]:
    """Warn of what cannot be dropped, and go on."""
    try:
        yield
    except (NotJudged, driver.Error) as error:
        fact = "is left behind; the next run on this server drops it"
        log.warning("%s %s\n  %s", name, fact, str(error).strip().partition("\n")[0])


def made_database(
    server: Database, purpose: str, like: Database, scan: "Scan | None" = None
) -> Database:
    """An empty scratch database for what the scan found, else like another."""
    name, encoding, locale = f"{server.run.mark}{purpose}", like.encoding, like.locale
    if scan and scan.encoding != encoding:  # a backup tells no locale
        encoding = scan.encoding
        locale = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with step(f"make {name}"), server.session() as cursor:
        # template1 may hold additions of the site's.
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0 {locale}")
    database = replace(server, name=name, encoding=encoding)
    if scan and scan.makes_public:  # as after pg_dump --schema public
        with database.session() as cursor:
            cursor.execute("DROP SCHEMA public")
    return database


@contextmanager
def throwaway_server(run: Run, major: int | None) -> Iterator[Database]:
    """A private server in the run's folder: no TCP, durability off; the reaper ends it."""
    home, data = server_programs(run, major), run.folder / "data"
    data.mkdir(mode=0o700)
    how = {"cwd": data}
    initdb = [home / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
    initdb += ["--no-instructions", "--encoding=UTF8", "--locale=C"]
    options = ["-h ''", f"-k '{data}'", "-c fsync=off", "-c synchronous_commit=off"]
    options += ["-c full_page_writes=off", "-c wal_level=minimal", "-c autovacuum=off"]
    options += ["-c max_wal_senders=0", "-c max_locks_per_transaction=1024"]
    start = [home / "pg_ctl", "start", "-D", data, "-w", "-l", "log"]
    start += ["-t", round(run.options.timeout), "-o", " ".join(options)]
    try:
        if os.geteuid() == 0:  # as whom PostgreSQL refuses to run
            how |= {"user": "postgres", "group": "postgres", "extra_groups": []}
            run.folder.chmod(0o711)
            shutil.chown(data, "postgres", "postgres")
        with step("start a throwaway server"):
            try:  # a locale that knows all letters, where the machine has it
                run.output(*initdb, "--lc-ctype=C.UTF-8", **how)
            except NotJudged:
                run.output(*initdb, **how)
            run.output(*start, **how)
    except (NotJudged, LookupError) as error:
        hint = "as root it needs an account postgres, which may enter TMPDIR"
        logs = [path.read_text(errors="replace") for path in data.glob("log")]
        fact = "the throwaway server does not start"
        raise NotJudged(fact, error, *"".join(logs).splitlines()[-9:], hint) from None
    words = {"host": str(data), "user": "postgres"}
    yield introduced(Database(run, "postgres", words, private=True))


def server_programs(run: Run, major: int | None) -> Path:
    """The folder of a server's programs: of this major version, or of the newest."""
    folders = program_folders("initdb", "pg_ctl", "postgres", *PROGRAMS)
    found = [(major_of(version_of(run, f / "postgres")), f) for f in folders]
    fitting = [each for each in found if each[0] == major or not major]
    if fitting:
        return max(fitting, key=lambda each: each[0])[1]
    package = f"postgresql-{major}" if major else "postgresql"
    hint = f"install them: apt-get install {package}"
    raise NotJudged("no programs of a server for a throwaway server", hint)


# --- The source and its backup, or a backup that exists -------------------------------

ARCHIVE = ("pg_restore", "--file", "-")
# How the content of each format begins, and the program that makes SQL of it.
FORMATS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "custom": (rb"PGDMP", ARCHIVE),
    "tar": (rb"toc\.dat\0", ARCHIVE),
    "directory": (rb"(?!)", ARCHIVE),  # no file
    "gzip": (rb"\x1f\x8b", ("gzip", "-dc")),
    "zstd": (rb"\x28\xb5\x2f\xfd", ("zstd", "-dcq")),
    "xz": (rb"\xfd7zXZ\0", ("xz", "-dc")),
    "bzip2": (rb"BZh", ("bzip2", "-dc")),
    "lz4": (rb"\x04\x22\x4d\x18", ("lz4", "-dc")),
    "plain": (rb"", ()),  # or none that we know, as its scan will show
}
ENCRYPTED = rb"Salted__|-----BEGIN PGP|age-encryption|\x85[\x01-\x04]|\x8c\x0d"


@dataclass(frozen=True)
class Backup:
    """The file or folder that holds a database, and what is known of that database."""

    path: Path
    format: str
    sha256: str  # of a folder: of what sha256sum prints of its files
    written: float  # seconds since 1970, of the newest file
    like: Database  # whose encoding and locale fit
    # What follows is known of a source alone; an existing backup has none.
    source: "Contents | None" = field(default=None, repr=False)
    later: "Sequences" = field(default_factory=dict, repr=False)  # after the dump
    script: str = field(default="", repr=False)  # the source's definitions, as SQL
    seconds: float = 0.0  # that the dump took
    rehearsal: bool = False

    @property
    def is_archive(self) -> bool:
        """Whether pg_restore reads it."""
        return FORMATS[self.format][1] == ARCHIVE

    def facts(self) -> dict[str, Any]:
        """What the evidence says of it."""
        size = sum(file.stat().st_size for file in files_of(self.path))
        facts = {"format": self.format, "bytes": size, "sha256": self.sha256}
        facts["not_compared"] = dict.fromkeys(NEVER_COMPARED, "")
        if self.source:
            return facts | {"seconds_to_back_up": round(self.seconds, 3)}
        written = time.strftime(ISO, time.gmtime(self.written))
        age = round(time.time() - self.written)
        return facts | {"backup_written": written, "backup_age_seconds": age}

    @contextmanager
    def opened(self, server: Database) -> Iterator[tuple[IO[bytes], list[Process]]]:
        """The backup as SQL, and the program that yields it, unless it is SQL itself."""
        _, reader = FORMATS[self.format]
        if not reader:
            with self.path.open("rb") as file:
                yield file, []
            return
        program, *words = reader
        if self.is_archive:
            program = server.folder / program
        elif not shutil.which(program):
            hint = f"install it, such as with: apt-get install {program}"
            raise NotJudged(f"{program} is needed to read the backup", hint)
        how = {"stdout": subprocess.PIPE, "fault": BackupIsBad}
        with server.run.started(program, *words, self.path, **how) as process:
            yield process.popen.stdout, [process]


def create_backup(configured: Database, server: Database, project: Project) -> Backup:
    """A backup of the source that the options ask for; an existing one is adopted."""
    options = server.run.options
    if options.backup:
        return adopted_backup(options.backup, server)
    if options.live:
        return dumped(configured)
    source = made_database(server, "source", server)
    with step("run the project's migrations"):
        project.ask("migrations", source)
    with step("load the sample"), source.session() as cursor:
        utf8 = source.encoding == "UTF8"
        cursor.execute(SAMPLE if utf8 else SAMPLE.encode("ascii", "replace").decode())
    backup = replace(dumped(source), rehearsal=True, like=server)
    drop_databases(server, "source")
    return backup


def dumped(source: Database) -> Backup:
    """The source, written to a new backup while its contents are read.

    One snapshot serves both; none covers the values of sequences.
    """
    run, form = source.run, source.run.options.format
    path = run.folder / f"backup.{form}"
    how = ["--no-sync", "--format", form, "--file", path]
    how += ["--jobs", run.options.jobs] if form == "directory" else []
    with step("write the backup, read the source"), source.session() as holder:
        earlier = source.sequences() if run.options.live else None
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        holder.execute("SELECT pg_export_snapshot()")
        (snapshot,) = holder.fetchone()
        bound = round(run.options.timeout * 1000)
        same = ("--snapshot", snapshot, "--lock-wait-timeout", bound)
        began = time.monotonic()
        with (
            source.client("pg_dump", *how, *same) as dump,
            source.definitions(*same) as definitions,
            source.facts(snapshot) as facts,
        ):
            wait_for(dump)
            seconds = time.monotonic() - began
            if not path.exists():
                raise BackupIsBad("pg_dump ended well, and wrote no backup")
            sha256, _ = digests_of(path)
            wait_for(definitions, facts)
            script = text_of(definitions.stdout)
            contents = contents_from(text_of(facts.stdout), script)
        later = source.sequences() if earlier else contents.sequences
        contents = replace(contents, sequences=earlier or contents.sequences)
    known = (source, contents, later, script, seconds)
    return Backup(path, form, sha256, time.time(), *known)


def adopted_backup(path: Path, server: Database) -> Backup:
    """A backup that was there before this run; it is only ever read."""
    form = "directory"
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise NotJudged(f"{path} is neither a file nor a folder")
        with path.open("rb") as file:
            head = file.read(16)
        if re.match(ENCRYPTED, head):
            raise NotJudged(f"{path} is encrypted", "decrypt it first")
        form = next(name for name in FORMATS if re.match(FORMATS[name][0], head))
    elif not (path / "toc.dat").is_file():
        raise BackupIsBad(f"{path} is no backup: the folder has no toc.dat")
    written = max(file.stat().st_mtime for file in files_of(path))
    sha256, _ = digests_of(path)
    record = path.with_name(f"{path.name}.sha256")
    if record.exists():
        text = record.read_text(errors="replace").lower()
        expected = re.search(r"\b[0-9a-f]{64}\b|\Z", text)[0] or "one of 64 digits"
        fact = f"the backup is not the one that {record.name} speaks of"
        refuse(fact, problems_of_checksum(sha256, expected))
    return Backup(path, form, sha256, written, server)


def files_of(path: Path) -> list[Path]:
    """The file, or the files of the folder, sorted as LC_ALL=C does."""
    return sorted(path.iterdir(), key=os.fsencode) if path.is_dir() else [path]


def digests_of(path: Path) -> tuple[str, str]:
    """The SHA-256 of a backup, and what it were if the last bit were another."""
    whole, last, flipped = hashlib.sha256(), b"\0", hashlib.sha256()
    if path.is_dir():  # as of what `sha256sum *` prints
        for file in files_of(path):
            one, other = (f"{d}  {file.name}\n".encode() for d in digests_of(file))
            flipped = whole.copy()
            whole.update(one)
            flipped.update(other)
        return whole.hexdigest(), flipped.hexdigest()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            flipped, last = whole.copy(), piece
            whole.update(piece)
    flipped.update(last[:-1] + bytes([last[-1] ^ 1]))
    return whole.hexdigest(), flipped.hexdigest()


def problems_of_checksum(found: str, expected: str) -> list[str]:
    """Whether the SHA-256 is that on record."""
    return [f"SHA-256: found {found}, expected {expected}"] * (found != expected)


def problems_of_archive(backup: Backup, server: Database) -> list[str]:
    """What pg_restore would not say of an archive: it may read a cut tar for ever."""
    path = backup.path / "toc.dat" if backup.path.is_dir() else backup.path
    with path.open("rb") as file:
        # Version 1.15 is of PostgreSQL 16, 1.16 of 17 and later.
        version = re.search(rb"PGDMP\x01([\x0f-\xff])|\Z", file.read(CHUNK), re.DOTALL)
        major = version[1][0] + 1 if version[1] else 0
        require_not_newer(major, server.programs["pg_restore"])
        if backup.format != "tar":
            # Of no data zlib makes some bytes; pg_restore takes none for no data.
            packed = [f for f in files_of(backup.path) if f.suffix == ".gz"]
            return [f"{f.name}: it is empty" for f in packed if not f.stat().st_size]
        try:
            with tarfile.open(path, "r:") as tar:
                tar.getmembers()
        except tarfile.TarError as error:
            return [f"the tar is cut or damaged: {error}"]
        file.seek(tar.offset)
        rest = file.read(CHUNK)
    whole = len(rest) >= 1024 and not rest.strip(b"\0")
    return [] if whole else ["the tar is cut, or something follows its end"]


def require_not_newer(major: int, version: str) -> None:
    """Raise NotJudged when the backup is of a newer PostgreSQL than this version."""
    if major > major_of(version):
        fact = f"PostgreSQL {major} wrote the backup, too new for {version}"
        raise NotJudged(fact, "run the drill on a server of that version, or newer")


# --- Reading a backup -----------------------------------------------------------------

HEADER, FOOTER = "-- PostgreSQL database dump", "-- PostgreSQL database dump complete"
ENTRY = re.compile(r"-- (?:Data for )?Name: (.*); Type: (.*); Schema: (.*); Owner: ")
WRITTEN = re.compile(r"-- Dumped (?:from database|by pg_dump) version (\d+)")
NAME = r'(?:"(?:[^"]|"")*"|[^\s".,;(]+)'
FULL = rf"({NAME})\.({NAME})"
COPY = re.compile(rf"COPY {FULL} (?:\(.*\) ?)? ?FROM stdin;", re.DOTALL)
SETVAL = re.compile(rf"SELECT pg_catalog.setval\('{FULL}', (-?\d+), (true|false)\);")
ROLES = re.compile(
    rf"(?: IN SCHEMA {NAME})? ?(?:ALTER .* OWNER TO|GRANT .* TO|REVOKE .* FROM"
    r"|ALTER DEFAULT PRIVILEGES FOR ROLE|CREATE USER MAPPING FOR"
    rf"|CREATE POLICY {NAME} ON {NAME}\.{NAME}(?: AS \w+)?(?: FOR \w+)? TO) "
    rf"({NAME}(?:, {NAME})*)",
    re.DOTALL,
)
# Outside quotes, in upper case. pg_dump writes none of them into the backup of one
# database; they reach beyond it, undo what was restored, or run what no scan can see.
FORBIDDEN = re.compile(
    r"(CREATE|ALTER|DROP|COMMENT ON|SECURITY LABEL( FOR \S+)? ON) "
    r"(DATABASE|ROLE|USER(?! MAPPING)|GROUP|TABLESPACE)\b"
    r"|(GRANT|REVOKE)\b(?!.* ON )|(GRANT|REVOKE)\b.* ON (DATABASE|TABLESPACE|PARAMETER)\b"
    r"|(REASSIGN|DROP) OWNED|(ALTER SYSTEM|ROLLBACK|ABORT|END|PREPARE|DO|CALL|LOAD|COPY)\b"
)
# For a new database, where there is nothing to drop.
UNFIT = re.compile(
    "CREATE DATABASE |DROP (?!(DATABASE|ROLE|USER|GROUP|TABLESPACE|OWNED) "
    "|.* IF EXISTS )"
)
ATOMIC = re.compile(rb"(?is)\s*CREATE\s.*\bBEGIN\s+ATOMIC\b")  # holds statements
# What psql tells apart outside COPY data. Where a quote is open, nothing matches.
TOKEN = re.compile(
    rb"""
    (?P<comment> --[^\n]*\n ) | (?P<command> \\[^\n]*\n ) | (?P<end> ; )
  | (?P<block> /\*(?: [^*/] | \*(?!/) | /(?!\*) )*\*/ )  # one in another is refused
  | (?P<quoted>  (?<![\w$])[eE]'(?:[^'\\]|\\.)*' | '[^']*' | "[^"]*"
               | (?<![\w$\x80-\xff])\$((?:[a-zA-Z_\x80-\xff][\w\x80-\xff]*)?)\$.*?\$\6\$ )
  | (?P<plain>   (?: [^-'"$\\;/eE] | [eE](?!') | (?<=[\w$])[eE] | -(?!-) | /(?!\*)
               | (?<=[\w$\x80-\xff])\$ | \$(?![a-zA-Z_\x80-\xff$]) )+ )
    """,
    re.VERBOSE | re.DOTALL,
)
# The same where standard_conforming_strings is off.
ESCAPES = TOKEN.pattern.replace(rb"(?<![\w$])[eE]'", rb"[eE]?'")
ESCAPING = re.compile(ESCAPES, re.VERBOSE | re.DOTALL)
LONGEST_TAG = 128  # bytes: a token that ends nearer to the end of a piece may go on


class Scan:
    """A backup as SQL, read piece by piece by psql's rules for quotes and COPY.

    Text in quotes may look like COPY or like the footer, and is neither.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.rows = {LARGE_OBJECTS: 0}  # thing -> how many the backup holds
        self.sequences: Sequences = {}
        self.entries: set[str] = set()  # of the table of contents
        self.roles: set[str] = set()
        self.tablespaces: set[str] = set()
        self.unfit = ""  # why it could not be judged, though it may be healthy
        self.encoding, self.newest = "UTF8", 0  # of the versions that it names
        self.makes_public = self.inserts = False
        self.begun = self.ended = False  # the header, the footer was there
        self.blocks = self.announced = 0  # COPY; TABLE DATA
        self.filled = self.valued = 0  # lo_open; SEQUENCE SET
        self.table = ""  # whose COPY block is open
        self.statement, self.words = bytearray(), bytearray()  # the latter unquoted
        self.line, self.rest, self.enough, self.token = 1, b"", 0, TOKEN

    def feed(self, piece: bytes, final: bool = False) -> None:
        """Take the next piece of the SQL."""
        # psql passes over what follows a zero byte in its line.
        self.note("zero bytes, which no text of PostgreSQL's has", b"\0" in piece)
        self.rest += piece
        at, before = 0, -1
        while at > before and (final or len(self.rest) >= self.enough):
            before = at
            at = self.count_rows(at) if self.table else self.take_token(at, final)
        self.rest = self.rest[at:]
        self.enough = 2 * len(self.rest)  # before another attempt: quotes may be long

    def count_rows(self, at: int) -> int:
        """Count the rows of the open COPY block, from the end of its command on."""
        end = self.rest.find(b"\n\\.\n", at)
        stop = end + 1 if end >= 0 else max(at, len(self.rest) - 3)
        rows = self.rest.count(b"\n", at, stop)
        self.rows[self.table] += rows
        self.line += rows + (end >= 0)
        self.table = self.table if end < 0 else ""
        return stop if end < 0 else end + 4

    def take_token(self, at: int, final: bool) -> int:
        """Take the next token, unless it may not be whole; return where to go on."""
        token = self.token.match(self.rest, at)
        if not token or not final and token.end() > len(self.rest) - LONGEST_TAG:
            return at
        kind, text = token.lastgroup, token[0]
        beyond = kind == "command" and not re.match(rb"\\(un)?restrict ", text)
        fact = "a command for psql, which could leave the file or the database"
        self.note(f"{fact}: line {self.line}", beyond)
        if kind == "comment" and not self.words.strip():
            self.take_comment(self.decoded(text))
        self.line += text.count(b"\n")
        kept = {"plain": text, "end": text, "quoted": b" '' "}
        self.words += kept.get(kind, b" ")
        self.statement += text if kind in kept else b"\n"
        if kind == "end" and not self.is_open():
            self.take_statement()
        return token.end()

    def is_open(self) -> bool:
        """Whether the statement goes on behind its semicolon, as a body in SQL does."""
        if not ATOMIC.match(self.words):
            return False
        begun, ended = rb"(?i)\b(BEGIN\s+ATOMIC|CASE)\b", rb"(?i)\bEND\b"
        return len(re.findall(begun, self.words)) > len(re.findall(ended, self.words))

    def take_comment(self, comment: str) -> None:
        """Note the header, the footer, the versions and the entries."""
        line = comment.strip()
        self.note("its lines end in CR LF: it was sent as text", comment[-2:] == "\r\n")
        self.note("something follows the footer", self.ended and line != "--")
        if line == "-- PostgreSQL database cluster dump":
            self.unfit = "pg_dumpall wrote it, of a whole server"
        self.begun |= line == HEADER
        self.ended |= line == FOOTER
        if found := WRITTEN.match(line):
            self.newest = max(self.newest, int(found[1]))
        elif found := ENTRY.match(line):
            self.announced += found[2] == "TABLE DATA"
            self.valued += found[2] == "SEQUENCE SET"
            self.entries.add(entry_name(*found.groups()))

    def take_statement(self) -> None:
        """Take what a whole statement tells; refuse what leaves its database."""
        text = self.decoded(self.statement.strip())
        words = " ".join(self.decoded(self.words).upper().split())
        self.statement, self.words = bytearray(), bytearray()
        self.note(f"no header, expected {HEADER!r}", not self.begun)
        self.note("something follows the footer", self.ended)
        if found := COPY.fullmatch(text):
            self.table = f"table {full_name(*map(unquoted, found.groups()))}"
            self.rows[self.table] = self.rows.get(self.table, 0) - 1
            self.blocks += 1
        elif UNFIT.match(words) and not self.ended:
            self.unfit = self.unfit or "pg_dump --create or --clean wrote it"
        elif found := FORBIDDEN.match(words):
            fact = "a statement that reaches beyond its database, or may"
            self.note(f"{fact}: line {self.line}, {found[0][:40]}")
        elif found := SETVAL.fullmatch(text.replace("''", "'")):
            thing = f"sequence {full_name(*map(unquoted, found.groups()[:2]))}"
            self.sequences[thing] = int(found[3]), found[4] == "true"
        elif found := re.match(r"SET client_encoding = '(\w+)';", text):
            self.encoding = found[1]
        elif found := re.match(rf"SET default_tablespace = (?!'')({NAME});", text):
            self.tablespaces.add(unquoted(found[1]))
        elif words.startswith("SET STANDARD_CONFORMING_STRINGS"):
            self.token = ESCAPING if words.endswith("OFF;") else TOKEN
        self.rows[LARGE_OBJECTS] += text.startswith("SELECT pg_catalog.lo_create(")
        self.filled += text.startswith("SELECT pg_catalog.lo_open(")
        self.makes_public |= text == "CREATE SCHEMA public;"
        self.inserts |= words.startswith("INSERT")
        at = 0
        while found := ROLES.match(text, at):
            self.roles |= set(map(unquoted, re.findall(NAME, found[1])))
            at = found.end()

    def decoded(self, text: bytes | bytearray) -> str:
        """The text, read in the encoding of the backup, of which Python has the most."""
        codec = self.encoding.replace("WIN", "cp").replace("KOI8", "KOI8-")
        with suppress(LookupError):
            return text.decode(codec, "surrogateescape")
        return text.decode("utf-8", "surrogateescape")

    def note(self, problem: str, is_so: bool = True) -> None:
        """Add a problem, of those that may be found on many lines the first."""
        kind = problem.partition(": line ")[0]
        if is_so and not any(known.startswith(kind) for known in self.problems):
            self.problems.append(problem)

    def finish(self) -> "Scan":
        """Note what lacks at the end."""
        self.note("it is empty", self.line == 1 and not self.rest)
        self.feed(b"\n", final=True)  # an editor may have taken the last one
        self.note(f"no header, expected {HEADER!r}", not self.begun)
        self.note(f"{self.table}: its COPY block has no end", bool(self.table))
        rest = self.words + (b"" if self.table else self.rest)
        fact = f"a quote, a comment or a statement has no end: line {self.line}"
        self.note(fact, bool(rest.strip()))
        announced = self.announced if self.blocks else 0
        for what, found, expected in [
            ("COPY blocks", self.blocks, announced),
            ("values of sequences", len(self.sequences), self.valued),
            ("data of large objects", self.filled, self.rows[LARGE_OBJECTS]),
        ]:
            self.note(f"{what}: found {found}, expected {expected}", found != expected)
        self.note(f"no footer, expected {FOOTER!r}", not self.ended)
        return self


def unquoted(identifier: str) -> str:
    """The name that an SQL identifier stands for."""
    quoted = identifier.startswith('"')
    return identifier[1:-1].replace('""', '"') if quoted else identifier


def full_name(*parts: str) -> str:
    """The name with its schema, each in quotes where it could be misread."""
    quoted = ('"' + part.replace('"', '""') + '"' for part in parts)
    pairs = zip(parts, quoted, strict=True)
    return ".".join(p if re.fullmatch(r"[a-z_]\w*", p) else q for p, q in pairs)


def entry_name(name: str, kind: str, schema: str) -> str:
    """An entry of pg_dump's table of contents, as messages name it."""
    full = name if schema == "-" else f"{schema}.{name}"
    return f"{kind.lower()} {full}".replace('"', "")  # --quote-all-identifiers


def validated(backup: Backup, server: Database) -> Scan:
    """A scan of the whole backup. Raises BackupIsBad when it is damaged or too old."""
    fact, scan, cut = "the backup is damaged", Scan(), Scan()
    with step("read the backup"):
        if backup.is_archive:
            refuse(fact, problems_of_archive(backup, server))
        sha256, flipped = digests_of(backup.path)
        with backup.opened(server) as (sql, readers):
            for piece in server.run.pieces(sql, "reading the backup"):
                if not scan.begun:
                    cut.feed(piece[: len(piece) // 2])
                scan.feed(piece)
            wait_for(*readers)
    problems = problems_of_checksum(sha256, backup.sha256) + scan.finish().problems
    if not backup.source:  # else it is known which programs wrote it
        require_not_newer(scan.newest, server.version)
    if scan.unfit:
        hint = "dump each database without --create, and --clean with --if-exists"
        raise NotJudged(f"the backup is not for a new database: {scan.unfit}", hint)
    refuse(fact, problems + problems_of_source(scan, backup))
    age = time.time() - backup.written
    refuse("the backup is too old", beyond(age, server.run.options.max_age))
    if not cut.finish().problems:
        raise NotJudged("the drill's own scan took a backup that was cut for whole")
    if not problems_of_checksum(flipped, backup.sha256):
        raise NotJudged("the drill's own checksum did not see that a bit was flipped")
    return scan


def problems_of_source(scan: Scan, backup: Backup) -> list[str]:
    """What the source had and the backup has otherwise: rows, values of sequences."""
    problems, blocks = [], scan.rows
    if not backup.source:
        return problems
    for thing, rows in counted_as(backup.source.rows, blocks).items():
        found = f"found {blocks[thing]} rows" if thing in blocks else "no COPY block"
        if blocks.get(thing) != rows.count:
            problems.append(f"{thing}: {found}, expected {rows.count} rows")
    if problems and not backup.rehearsal:
        problems.append("if a table was truncated beside the dump, run again")
    for thing, state in backup.source.sequences.items():
        found, later = scan.sequences.get(thing), backup.later.get(thing)
        if not found or found != state[:2] and state == later:
            sentence = f"found {in_state(found)}, expected {in_state(state)}"
            problems.append(f"{thing}: {sentence}")
    return problems


# --- Contents -------------------------------------------------------------------------

LARGE_OBJECTS = "large objects"  # counted and hashed as the rows of one table
# Thing -> its value, whether it was called, and its file, which a restart replaces.
Sequences = dict[str, tuple[int, bool] | tuple[int, bool, int]]


class Rows(NamedTuple):
    """The rows of a table: how many, and the sum of their hashes."""

    count: int
    hash: int | None = None  # None: not known
    root: str | None = None  # of a partition: the partitioned table at the top


@dataclass(frozen=True)
class Contents:
    """What a database holds."""

    rows: dict[str, Rows]  # of each table, and of the large objects
    sequences: Sequences
    names: frozenset[str]  # of its objects, as the server identifies them
    definitions: dict[str, str]  # entry of pg_dump's -> SQL
    uncarried: dict[str, str]  # what no backup holds as it is -> why


# Text depends on these settings.
PINNED = """
SET timezone TO 'UTC'; SET datestyle TO 'ISO, YMD'; SET intervalstyle TO 'postgres';
SET bytea_output TO 'hex'; SET extra_float_digits TO 3; SET lc_monetary TO 'C';
SET xmloption TO 'content'; SET quote_all_identifiers TO off; SET search_path TO '';
SET standard_conforming_strings TO on; SET row_security TO off; SET jit TO off;
"""
# What belongs to the system, to an extension or to another session's temporary schema is
# nobody's to back up.
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
       AND d.classid::regclass::text IN ('pg_amop', 'pg_amproc', 'pg_type', 'pg_attrdef',
                                         'pg_rewrite')),
relation AS (
    SELECT c.*, n.nspname, ('pg_class'::regclass, c.oid) IN (TABLE member) AS of_extension
      FROM pg_class AS c
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
     WHERE n.nspname !~ '^pg_|^information_schema$')
"""
# psql runs each cell of a result before \gexec as a statement.
LOCKS = RELATION + r"""
SELECT format('LOCK TABLE ONLY %I.%I IN ACCESS SHARE MODE', nspname, relname)
  FROM relation
 WHERE relkind = 'r'
   AND NOT of_extension \gexec
"""
SEQUENCES = RELATION + r"""
SELECT format('SELECT json_build_array(''sequence'', %L, %L, last_value, is_called, %s) '
              'FROM %I.%I', nspname, relname, relfilenode, nspname, relname)
  FROM relation
 WHERE relkind = 'S'
   AND NOT of_extension \gexec
"""
# A row's hash is the XOR of its values' hashes, each with a seed of its own. Columns go
# by name, because a restore may order those of an inheritance child differently. ROW()
# puts any type into text, at thrice the cost; what is named here is as exact without.
# A parent does not count its children (ONLY). The rows are summed, because XOR would
# cancel equal ones. A standby has no unlogged table.
ROWS = RELATION + r"""
SELECT format('SELECT json_build_array(''rows'', %L, %L, %L, %L, count(*), '
              'coalesce(sum(%s), 0)) FROM ONLY %1$I.%2$I AS t', r.nspname, r.relname,
              root.nspname, root.relname, coalesce(hash, '0'))
  FROM relation AS r
  LEFT JOIN relation AS root ON root.oid = nullif(pg_partition_root(r.oid), r.oid)
  LEFT JOIN (
       SELECT attrelid,
              string_agg(format('coalesce(' || CASE
                  WHEN atttypid = 'int4'::regtype
                  THEN 'hashint4extended(t.%I, %s)'
                  WHEN atttypid = 'bpchar'::regtype AND atttypmod > 0  -- padded
                  THEN 'hashbpcharextended(t.%I COLLATE "C", %s)'
                  WHEN atttypid = ANY ('{bool, int2, int8, float8, numeric, date, uuid,
                      timestamp, timestamptz, text, varchar, json, jsonb}'::regtype[])
                  THEN 'hashtextextended(t.%I::text COLLATE "C", %s)'
                  ELSE 'hashtextextended(ROW(t.%I)::text COLLATE "C", %s)'
                  END || ', 0)', attname, seed), ' # ') AS hash
         FROM (SELECT *, row_number() OVER (PARTITION BY attrelid
                                            ORDER BY attname COLLATE "C") AS seed
                 FROM pg_attribute
                WHERE attnum > 0
                  AND NOT attisdropped) AS a
        GROUP BY attrelid) AS h ON attrelid = r.oid
 WHERE r.relkind = 'r'
   AND NOT r.of_extension
   AND NOT (r.relpersistence = 'u' AND pg_is_in_recovery())
"""
# lo_get reads at most 1 GB, and a large object holds up to 4 TB.
LARGE = r"""
SELECT json_build_array('rows', NULL, NULL, NULL, NULL, count(*),
           coalesce(sum(hashtextextended(ROW(l.oid, pg_get_userbyid(l.lomowner),
               obj_description(l.oid, 'pg_largeobject'),
               (SELECT string_agg(granted, ',' ORDER BY granted COLLATE "C")
                  FROM aclexplode(coalesce(l.lomacl, acldefault('L', l.lomowner))),
                       concat_ws(' ', grantee::regrole, privilege_type,
                                 is_grantable) AS granted), size,
               (SELECT string_agg(md5(lo_get(l.oid, at, 1048576)), '' ORDER BY at)
                  FROM generate_series(0, size - 1, 1048576) AS at)
               )::text COLLATE "C", 0)), 0))
  FROM pg_largeobject_metadata AS l,
LATERAL lo_lseek64(lo_open(l.oid, x'40000'::integer), 0, 2) AS size;
"""
NAMES = RELATION + r"""
SELECT json_build_array('name', type || ' ' || identity)
  FROM (SELECT classid, objid
          FROM pg_depend
         UNION
        SELECT classid, objid
          FROM pg_shdepend
          JOIN pg_database AS d ON d.oid = dbid
         WHERE datname = current_database()
        EXCEPT
         TABLE member) AS o,
       pg_identify_object(classid, objid, 0)
 WHERE objid >= 16384
   AND classid <> 'pg_largeobject'::regclass
   AND identity !~ '(^| on | for )pg_(toast|temp_\d+)\.|_ConstraintTrigger_[a-z]*_?\d+"';
"""
# What no backup holds, or not whole, or not as it is.
UNCARRIED = RELATION + r"""
SELECT json_build_array('uncarried', type || ' ' || identity, why)
  FROM (SELECT 'pg_class'::regclass AS class, oid,
               CASE WHEN of_extension THEN 'the rows belong to an extension'
                    WHEN relkind = 'f' THEN 'the rows lie elsewhere'
                    WHEN relkind = 'm' THEN 'the rows are made anew'
                    WHEN relkind = 'i' THEN 'invalid, so pg_dump leaves it out'
                    ELSE 'unlogged, and empty on a standby'
               END AS why
          FROM relation
         WHERE relkind IN ('f', 'm')
            OR relkind = 'r' AND (of_extension OR relpersistence = 'u'
                                                  AND pg_is_in_recovery())
            OR oid IN (SELECT indexrelid FROM pg_index WHERE NOT indisvalid)
               AND relkind = 'i'
         UNION
        SELECT 'pg_constraint'::regclass, tgconstraint, 'its triggers are switched off'
          FROM pg_trigger
         WHERE tgisinternal AND tgconstraint <> 0 AND tgenabled <> 'O'
         UNION
        SELECT 'pg_extension'::regclass, oid, 'the server makes what it holds anew'
          FROM pg_extension
         WHERE extname <> 'plpgsql'
         UNION
        SELECT 'pg_subscription'::regclass, s.oid, 'it is restored switched off'
          FROM pg_subscription AS s
          JOIN pg_database AS d ON d.oid = subdbid AND datname = current_database()) AS u,
       pg_identify_object(class, oid, 0);
"""


def contents_from(facts: str, script: str = "") -> Contents:
    """The contents that psql's facts and pg_dump's definitions tell."""
    rows, sequences, names, uncarried = {}, {}, set(), {}
    for kind, *values in map(json.loads, filter(None, facts.split("\n"))):
        if kind == "rows":
            *table, root_schema, root, count, total = values
            root = f"table {full_name(root_schema, root)}" if root else None
            thing = f"table {full_name(*table)}" if table[0] else LARGE_OBJECTS
            rows[thing] = Rows(count, total, root)
        elif kind == "sequence":
            sequences[f"sequence {full_name(*values[:2])}"] = tuple(values[2:])
        elif kind == "name":
            names |= {*values}
        else:
            uncarried |= {values[0]: values[1]}
    return Contents(rows, sequences, frozenset(names), entries_of(script), uncarried)


DEFINITION = re.compile(
    r"(?m)^--\n-- Name: (.*); Type: (.*); Schema: (.*); (Owner: .*)\n--\n"
)


def entries_of(script: str) -> dict[str, str]:
    """Each entry of pg_dump's, with its owner and the SQL that makes it."""
    # What precedes the first is the dump's own: versions, settings, a random key.
    _, *parts = DEFINITION.split(script[: script.rfind(f"--\n{FOOTER}")])
    entries: dict[str, str] = {}
    for name, kind, schema, owner, sql in zip(*[iter(parts)] * 5, strict=True):
        thing = entry_name(name, kind, schema)
        # Two entries may have one comment, which has no end of line in a name.
        entries[thing] = entries.get(thing, "") + f"{owner}\n{sql.strip()}\n"
    return entries


# --- The restored database, and what is expected of it --------------------------------


def provide_globals(scan: Scan, server: Database) -> None:
    """Make the backup's roles and tablespaces on a private server.

    Raises NotJudged when another server lacks one.
    """
    roles = scan.roles - {"PUBLIC", "public", "CURRENT_USER"}
    space = "TABLESPACE %I LOCATION ''"
    with server.session() as cursor:
        for what, named, known, statement in [
            # Superusers: only one owns an event trigger, and any reads for a view.
            ("roles", roles, "rolname FROM pg_roles", "ROLE %I SUPERUSER"),
            ("tablespaces", scan.tablespaces, "spcname FROM pg_tablespace", space),
        ]:
            cursor.execute(f"SELECT {known}")
            missing = sorted(named - {name for (name,) in cursor.fetchall()})
            if missing and not server.private:
                fact = f"the server lacks {what} of the backup: {', '.join(missing)}"
                raise NotJudged(fact, "use a server that has them, or --throwaway")
            for name in missing:
                cursor.execute("SET allow_in_place_tablespaces TO on")
                cursor.execute(
                    "SELECT format(%s, %s::text)", [f"CREATE {statement}", name]
                )
                cursor.execute(*cursor.fetchone())


def load_backup(backup: Backup, restored: Database) -> tuple[float, Database | None]:
    """The seconds that loading took; and the reference, loaded beside the backup."""
    jobs, reference = restored.run.options.jobs, None
    if backup.source:
        reference = made_database(restored, "reference", backup.like)
    with step("load the backup"), ExitStack() as stack:
        enter, began, readers = stack.enter_context, time.monotonic(), []
        if backup.format in ("custom", "directory") and jobs > 1:
            words = ("--exit-on-error", "--jobs", jobs, backup.path)
            load = enter(restored.client("pg_restore", *words))
        else:
            sql, readers = enter(backup.opened(restored))
            how = {"stdin": sql, "fault": None}
            load = enter(restored.client("psql", *PSQL, "-1", "-f", "-", **how))
            if readers:
                sql.close()  # psql has it
        # Not in one transaction: two with 1,000 tables exhaust the lock table.
        script = "SET synchronous_commit TO off;\n" + REFRESH.sub(r"\1", backup.script)
        beside = [enter(reference.psql(script))] if reference else []
        wait_for(load)
        wait_for(*readers)
        seconds = time.monotonic() - began
        wait_for(*beside)
    return seconds, reference


# It needs rows, which the reference lacks.
REFRESH = re.compile(r"(; Type: MATERIALIZED VIEW DATA; .*\n--\n\n)REFRESH .*")


def read_both(
    backup: Backup, scan: Scan, restored: Database, reference: Database | None
) -> tuple[Contents, Contents]:
    """What the restored database holds, and what is expected of it."""
    with step(f"read {restored.name}"), ExitStack() as stack:
        programs = [restored.facts(), restored.definitions()]
        programs += [reference.definitions()] if reference else []
        processes = [*map(stack.enter_context, programs)]
        wait_for(*processes)
        facts, script, *others = (text_of(process.stdout) for process in processes)
    found = contents_from(facts, script)
    found = replace(found, rows=counted_as(found.rows, scan.rows))
    if not reference:
        return found, expected_of_scan(scan, found)
    # What the reference lacks, as REFRESH, is expected as the source has it.
    definitions = backup.source.definitions | entries_of(*others)
    rows = counted_as(backup.source.rows, scan.rows)
    known = {"rows": rows, "sequences": scan.sequences, "definitions": definitions}
    return found, replace(backup.source, **known)


# Entries that pg_dump does not write of a restored database, or by another name.
UNMATCHED = re.compile(
    "(table data|sequence set|blobs?|blob metadata|(default )?acl|database|statistics data"
    "|security label|comment LARGE OBJECT|materialized view data) "
    "|(schema|extension|comment|procedural language) ([A-Z]+ )?(public|plpgsql)$"
)


def expected_of_scan(scan: Scan, found: Contents) -> Contents:
    """What an existing backup says of itself; the rest is taken as it was found."""
    rows = {} if scan.inserts else dict.fromkeys(found.rows, Rows(0))
    carried = [thing for thing in scan.rows if thing not in found.uncarried]
    rows |= {thing: Rows(scan.rows[thing]) for thing in carried}
    entries = {thing: "" for thing in scan.entries if not UNMATCHED.match(thing)}
    known = {"sequences": scan.sequences, "definitions": entries | found.definitions}
    return replace(found, rows=rows, **known)


def counted_as(rows: dict[str, Rows], blocks: Iterable[str]) -> dict[str, Rows]:
    """The rows by the tables that COPY names: a partition's may be its root's."""
    # So with --load-via-partition-root; and always with partitions by the hash of an
    # enum, which hold other rows after each restore.
    counted: dict[str, Rows] = {}
    for thing, (count, total, root) in rows.items():
        key = root if root in blocks and thing not in blocks else thing
        known = counted.get(key, Rows(0, 0))
        counted[key] = Rows(known.count + count, known.hash + total)
    return counted


def uncompared(backup: Backup, scan: Scan, found: Contents) -> dict[str, str]:
    """What is not compared, and why."""
    if not backup.source:
        why = {"values and definitions": "an existing backup has no source"}
        if scan.inserts:
            why["the number of rows"] = "the backup holds them as INSERT"
        return why | found.uncarried
    moved = dict(backup.source.uncarried)
    for thing, state in backup.source.sequences.items():
        later, value = backup.later.get(thing), scan.sequences[thing][0]
        if not later or not min(state, later)[0] <= value <= max(state, later)[0]:
            moved[thing] = "it was set, restarted or dropped meanwhile"
    return moved


# --- Differences ----------------------------------------------------------------------


def differences(expected: Contents, found: Contents) -> list[str]:
    """One sentence for each difference; equal contents have none."""
    # A definition speaks before a name, which would say the same again.
    definitions = [*differing(expected.definitions, found.definitions)]
    apart, new = expected.uncarried, found.uncarried
    names = [sorted({*each.names} - {*apart}) for each in (expected, found)]
    named = [*differing(*(dict.fromkeys(each, "") for each in names))]
    rows = [*differing_rows(expected.rows, found.rows)]
    states = [
        f"{thing}: found {in_state(found.sequences[thing])}, expected {in_state(state)}"
        for thing, state in expected.sequences.items()
        if found.sequences.get(thing, state)[:2] != state[:2]
    ]
    states += [f"{thing}: {new[thing]}" for thing in new if thing not in apart]
    return definitions + rows + states + (named if not definitions else [])


def in_state(state: tuple[int, bool] | None) -> str:
    """The state of a sequence, in words."""
    return f"{state[0]}" + ", not called yet" * (not state[1]) if state else "none"


def differing(expected: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    """The sentences on what is missing, unexpected, or defined otherwise."""
    yield from (f"{thing}: missing" for thing in expected if thing not in found)
    yield from (f"{thing}: unexpected" for thing in found if thing not in expected)
    for thing, sql in expected.items():
        if found.get(thing, sql) != sql:
            yield f"{thing}: {first_difference(found[thing], sql)}"


def differing_rows(expected: dict[str, Rows], found: dict[str, Rows]) -> Iterator[str]:
    """The sentences on rows: a count speaks before a hash."""
    for thing, want in expected.items():
        got = found.get(thing, Rows(0, 0))
        if got.count != want.count:
            yield f"{thing}: found {got.count} rows, expected {want.count}"
        elif want.hash not in (None, got.hash):
            yield f"{thing}: {want.count} rows as expected, with other values"


# What follows in a definition may be a subscription's or a user mapping's password.
PASSWORD = re.compile(r"(?i)(password\W).*|(://)[^@\s]*@")


def first_difference(found: str, expected: str) -> str:
    """The first line on each side that the other lacks, where they begin to differ."""
    sides = (map(str.strip, text.splitlines()) for text in (found, expected))
    got, want = ([line.rstrip(",;") for line in side if line] for side in sides)
    one = next((line for line in got if line not in want), "nothing")
    other = next((line for line in want if line not in got), "nothing")
    if one == other:  # the same lines, in another order
        pairs = zip(got, want, strict=False)
        differ = (pair for pair in pairs if pair[0] != pair[1])
        one, other = next(differ, ("other blanks", "the source's"))
    begin = max(0, len(os.path.commonprefix([one, other])) - 30)
    shown = [PASSWORD.sub(r"\1\2[REDACTED]", line)[begin:] for line in (one, other)]
    cut = [f"{'...' * bool(begin)}{line:.100}" for line in shown]
    return f"found {cut[0]}, expected {cut[1]}"


# --- The restored database in use, and the controls -----------------------------------


def faults_in_use(restored: Database, pending: list[str]) -> list[str]:
    """What keeps the project from using the restored rehearsal."""
    faults = [f"migration {name}: pending, expected applied" for name in pending]
    with restored.session() as cursor:
        cursor.execute("BEGIN")
        try:
            cursor.execute(SAMPLE_INSERTS)
        except driver.Error as error:
            faults.append(f"an INSERT fails: {error}".partition("\n")[0])
        cursor.execute("ROLLBACK")
    return faults


def require_differences_seen(restored: Database, found: Contents) -> None:
    """Raise NotJudged unless a change of a name, a definition and a value is seen."""
    names, definitions = sorted(found.names - {*found.uncarried}), [*found.definitions]
    changed = {}
    if names:
        changed["names"] = found.names - {names[0]}
    if definitions:
        changed["definitions"] = {d: found.definitions[d] for d in definitions[1:]}
    if any(r.count for thing, r in found.rows.items() if thing != LARGE_OBJECTS):
        changed["rows"] = changed_rows(restored, found)
    for what, less in changed.items():
        if not differences(found, replace(found, **{what: less})):
            raise NotJudged(f"the drill's own comparison saw no change of {what}")


# The same of a table whose first row had NULL for each value.
ALTERED = ROWS.replace(
    "ONLY %1$I.%2$I AS t",
    "((SELECT * FROM ONLY %1$I.%2$I OFFSET 1) UNION ALL SELECT (NULL::%1$I.%2$I).*) AS t",
)


def changed_rows(restored: Database, found: Contents) -> dict[str, Rows]:
    """The rows as they would be read after a change of the smallest table."""
    size = "pg_relation_size(r.oid)"
    smallest = f"AND {size} > 0 ORDER BY {size}, r.oid"
    with restored.session() as cursor:
        cursor.execute(PINNED)
        cursor.execute(ROWS + smallest)
        plain = cursor.fetchall()
        cursor.execute(ALTERED + smallest)
        for queries in zip(plain, cursor.fetchall(), strict=True):
            (thing, before), (_, after) = (rows_of(cursor, *query) for query in queries)
            if after.hash != before.hash:  # it had a value
                thing = thing if thing in found.rows else after.root
                count, total, _ = found.rows[thing]
                changed = Rows(count, total - before.hash + after.hash)
                return {**found.rows, thing: changed}
    return found.rows


def rows_of(cursor: Any, query: str) -> tuple[str, Rows]:
    """One table, as a thing, and its rows."""
    cursor.execute(query)
    [item] = contents_from(json.dumps(*cursor.fetchone())).rows.items()
    return item


# --- The evidence ---------------------------------------------------------------------

NEVER_COMPARED = ("roles and their passwords", "tablespaces", "other databases")
NEVER_COMPARED += ("settings of the database itself",)
VERDICTS = {BackupIsBad: "failed", NotJudged: "error", unittest.SkipTest: "skipped"}
HEADLINES = {
    "passed": "The backup restores",
    "failed": "The backup is bad",
    "error": "The backup could not be judged",
    "skipped": "The drill was skipped",
}
AFTER = {"validation": "creation", "restore": "validation"}  # what must have passed


class Evidence:
    """The facts of a run, and the verdict on each act, as they become known."""

    def __init__(self, options: Options) -> None:
        self.options = options
        source = "the configured database" if options.live else "a rehearsal"
        source = f"the backup {options.backup.name}" if options.backup else source
        self.facts: dict[str, Any] = {
            "version": 1,
            "verdict": "passed",
            "tests": {},
            "source": source,
            "database": options.database,
            "time": time.strftime(ISO, time.gmtime()),
        }
        limits = {"max_age": options.max_age, "max_restore": options.max_restore}
        self.facts |= {f"{name}_seconds": n for name, n in limits.items() if n}

    def judge(self, act: str, sentence: str, work: Callable[[], object]) -> None:
        """Do the work of an act; put its verdict, a sentence, its seconds on record."""
        log.info("")  # unittest has begun a line
        began, error, tests = time.monotonic(), None, self.facts["tests"]
        before = tests.get(AFTER.get(act), {"verdict": "passed"})["verdict"]
        try:
            if before != "passed":
                unmet = BackupIsBad if before == "failed" else NotJudged
                raise unmet(f"not attempted, because {AFTER[act]} did not pass")
            work()
        except OSError as fault:  # a full disk, a folder without rights
            error = NotJudged(fault, hint_for(str(fault)))
        except tuple(VERDICTS) as fault:
            error = fault
        except BaseException as fault:
            error, sentence = fault, type(fault).__name__  # its words may be a secret
            raise
        finally:
            verdict = VERDICTS.get(type(error), "error") if error else "passed"
            sentence = str(error) if type(error) in VERDICTS else sentence
            seconds = round(time.monotonic() - began, 3)
            tests[act] = {"verdict": verdict, "sentence": sentence, "seconds": seconds}
            if self.facts["verdict"] == "passed":
                self.facts["verdict"] = verdict
        if error:
            raise error.with_traceback(None)

    def publish(self) -> None:
        """Print the evidence; write the report; append it to the job's summary."""
        facts, headline = self.facts, HEADLINES[self.facts["verdict"]]
        if facts["verdict"] == "passed" and "restore" not in facts["tests"]:
            headline = "The backup was not restored yet"
        lines = self.lines()
        paragraph = "; ".join(f"{name}: {text}" for name, text in lines.items())
        print(f"\n{textwrap.fill(f'{headline}. {paragraph}.', 88)}", file=sys.stderr)
        tests = facts["tests"].values()
        why = next((t["sentence"] for t in tests if t["verdict"] != "passed"), "")
        if why and os.environ.get("GITHUB_ACTIONS") == "true":
            said = why.partition("\n")[0].replace("%", "%25").replace("\r", "%0D")
            print(f"::error title=Backup drill::{said}", flush=True)
        if self.options.report:
            text = json.dumps(facts, indent=2)
            write_evidence("the report", self.options.report, "w", f"{text}\n")
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            cells = lines | ({"why": why} if why else {})
            clean = {k: t.replace("|", "&#124;") for k, t in cells.items()}
            table = "".join(f"| {k} | {text} |\n" for k, text in clean.items())
            table = table.replace("\n  ", "<br>")
            text = f"### Backup drill: {headline}\n\n| | |\n|---|---|\n{table}\n"
            write_evidence("the job summary", Path(summary), "a", text)

    def lines(self) -> dict[str, str]:
        """The facts in words, but for what goes without saying."""
        told = {}
        for name, fact in self.facts.items():
            if name == "tests":
                fact = {act: test["verdict"] for act, test in fact.items()}
            if name == "not_compared":
                fact = {thing: f"({why})" if why else "" for thing, why in fact.items()}
            if isinstance(fact, dict):
                fact = ", ".join(f"{k} {value}".strip() for k, value in fact.items())
            elif isinstance(fact, list):
                fact = ", ".join([str(len(fact)), *fact[:3], *["..."][: len(fact) > 3]])
            elif "seconds" in name:
                fact = in_words(fact)
            elif isinstance(fact, int):
                fact = f"{fact:,}"
            if name not in ("version", "verdict") and fact != "default":
                told[re.sub("seconds_|_seconds", "", name).replace("_", " ")] = fact
        return told


def write_evidence(what: str, path: Path, mode: str, text: str) -> None:
    """Write a file of evidence, or add to it. Raises NotJudged when that fails."""
    try:
        with path.open(mode, encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise NotJudged(f"{what} cannot be written: {error}") from None


def beyond(seconds: float, limit: float | None) -> list[str]:
    """Whether a duration is above its limit, or below zero, as a clock's fault is."""
    fine = limit is None or -60 < seconds <= limit
    sentence = f"found {in_words(seconds)}, expected {in_words(limit or 0)} or less"
    return [] if fine else [sentence]


def in_words(seconds: float) -> str:
    """A duration, as people write it: 2 d 3 h."""
    if abs(seconds) < 60:
        return f"{seconds:.3g} s"
    days, rest = divmod(round(seconds / 60), 1440)
    parts = ((days, "d"), (rest // 60, "h"), (rest % 60, "min"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


# --- The command line -----------------------------------------------------------------


def duration(text: str) -> float:
    """A number of seconds, or one with s, m, h or d."""
    found = re.fullmatch(r"(\d+\.?\d*)([smhd]?)", text)
    if found and float(found[1]) >= 0.001:
        return float(found[1]) * {"m": 60, "h": 3600, "d": 86400}.get(found[2], 1)
    hint = "write a number of 0.001 or more, with s, m, h or d, such as 26h"
    raise argparse.ArgumentTypeError(f"{text!r} is no duration: {hint}")


def parsed(argv: list[str]) -> tuple[Options, list[str]]:
    """The options, and the arguments for unittest. Raises SystemExit."""
    parser = argparse.ArgumentParser(
        description="Prove that this Django project's PostgreSQL backup restores.",
        epilog="Other arguments go to unittest, such as -k restore or -f. "
        "The exit status is 0 when all that ran passed, else 1.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add, source = parser.add_argument, parser.add_mutually_exclusive_group()
    yes, file = {"action": "store_true"}, {"type": Path, "metavar": "FILE"}
    span = {"type": duration, "metavar": "DURATION"}
    made = ("plain", "custom", "directory")
    add("-v", "--verbose", **yes, help="show each step and its duration")
    add("--strict", **yes, help="do without nothing: programs, versions, a database")
    add("--throwaway", **yes, help="work on a private server, started for this run")
    add("--timeout", **span, help="bound on each dump, load or query (default: 30)")
    add("--database", metavar="ALIAS", help="of settings.DATABASES (default: default)")
    add("--format", choices=made, help="the format to rehearse (default: plain)")
    add("--jobs", type=int, metavar="N", help="parallel workers, where possible")
    text = "back the configured database itself up; it is only ever read"
    source.add_argument("--live", **yes, help=text)
    text = "restore a backup that exists: plain, compressed, custom, directory or tar"
    source.add_argument("--backup", **file, help=text)
    add("--max-age", **span, help="fail if the --backup was written longer ago: 26h")
    add("--max-restore", **span, help="fail if loading the backup takes longer: 15m")
    add("--report", **file, help="write the evidence as JSON")
    known, others = parser.parse_known_args(argv)
    options = Options(**vars(known))
    if problem := contradiction(options, others):
        parser.error(problem)
    return options, others


def contradiction(options: Options, others: list[str]) -> str:
    """What cannot be meant, though each argument can."""
    if any(each.startswith("--l") for each in others):  # unittest takes abbreviations
        return "--locals would show the settings, with their passwords"
    if options.timeout > 2_000_000:  # PostgreSQL takes milliseconds, of 32 bits
        return "argument --timeout: 23d is the most"
    if options.jobs < 1:
        return "argument --jobs: it is a number of workers, above 0"
    if options.max_age and not options.backup:
        return "argument --max-age: it is about a --backup that exists"
    if options.backup and options.report:
        path, backup = options.report.resolve(), options.backup.resolve()
        if backup in (path, *path.parents) or path.name == f"{backup.name}.sha256":
            return "argument --report: it is the backup, which is only ever read"
    return ""


def main(argv: list[str]) -> int:
    """Run the drill; return 0 when all that ran passed, else 1."""
    if argv[1:2] == [PROJECT]:
        serve_project(*argv[2:])
        return 0
    case = BackupRestoreTests
    try:
        case.options, others = parsed(argv[1:])
        how = {"verbosity": 1 + case.options.verbose, "exit": False}
        how["warnings"] = "ignore"  # which are about other people's code
        result = unittest.main(argv=[argv[0], *others], **how).result
    except SystemExit as stop:  # of either parser
        return 1 if stop.code else 0
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted ({interrupt})", file=sys.stderr)
        return 1
    finally:
        case.doClassCleanups()
        for _, error, _ in case.tearDown_exceptions:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    if result.testsRun == 0 and not result.skipped and result.wasSuccessful():
        print("no test was run", file=sys.stderr)
        return 1
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
