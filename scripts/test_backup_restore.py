#!/usr/bin/env python3
"""Prove that this Django project's PostgreSQL backup restores.

    test_backup_creation    a source database is written to a backup
    test_backup_validation  the backup is whole and holds every row of every table
    test_backup_restore     a fresh database loaded from it equals the source

The source is a rehearsal, made for this run: the project's migrations and a sample of
awkward values. With --live it is the configured database, which is only read. With
--backup FILE the backup exists, and is compared with what it says itself.

What a database holds is told in two ways: pg_dump writes its definitions, psql reads
its facts: rows, sequences, names. PostgreSQL rewrites some definitions at their first
restore, so those of the reference are expected.

    server      a database through which others are made: where, as whom, by what
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
import contextlib
import hashlib
import io
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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import quote

if sys.version_info < (3, 11):  # noqa: UP036  a sentence, for those who have it
    raise SystemExit("the backup drill needs Python 3.11 or later")

try:  # in Django's order of preference
    import psycopg as driver
    from psycopg.conninfo import make_conninfo
except ImportError:
    import psycopg2 as driver
    from psycopg2.extensions import make_dsn as make_conninfo

__unittest = True  # unittest then shows our sentences without the frames of this file
log = logging.getLogger("backup_drill")
Options = argparse.Namespace  # of the command line, whose parser is the last room
MARK = "backup_drill_"  # what the names of our databases and folders begin with
CHUNK = 2**20  # bytes read at once
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that ask for an end
ISO = "%Y-%m-%dT%H:%M:%S+00:00"


class BackupIsBad(AssertionError):
    """The backup was judged and is bad: a failure, in unittest's words."""


class NotJudged(Exception):
    """The backup could not be judged: an error, in unittest's words, and what to do."""

    def __str__(self) -> str:
        return "\n  ".join(filter(None, map(str, self.args)))


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
    lasted interval, raw bytea, parsed jsonb, verbatim json, tags text[],
    span int4range, length integer GENERATED ALWAYS AS (length("Note")) STORED);
INSERT INTO backup_drill.item (kind, "Note") VALUES
    ('awkward', 'a ''quote'', a "double" one, a \backslash, and one at the end \'),
    ('awkward', E'a\ttab, a\nnew line, a\rreturn'), ('awkward', '  blanks around  '),
    ('awkward', '\.'), ('awkward', E'COPY backup_drill.item (x) FROM stdin;\n1\n\\.\n'),
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
BEGIN;  -- and no COMMIT
INSERT INTO backup_drill.item ("Note") VALUES ('after the restore');
INSERT INTO backup_drill.node (item) SELECT max(id) FROM backup_drill.item;
"""


# --- The story ------------------------------------------------------------------------
class BackupRestoreTests(unittest.TestCase):
    """A backup is made, is whole, and brings all back. Each test can run alone."""

    options: Options | None = None  # None: unittest or pytest has the command line

    @classmethod
    def setUpClass(cls) -> None:
        atexit.register(cls.doClassCleanups)  # unittest does without after Ctrl-C
        cls.options = cls.options or parsed([])[0]
        cls.made, cls.scan, cls.evidence = None, None, Evidence(cls.options)
        cls.enterClassContext(interruptible())
        cls.addClassCleanup(cls.evidence.publish)
        cls.evidence.judge("set-up", "The server is found.", cls.find_server)

    @classmethod
    def find_server(cls) -> None:
        """Find the server and programs, with the project's databases out of reach."""
        enter = cls.enterClassContext
        cls.project = enter(started_project(enter(started_run(cls.options))))
        cls.configured, cls.server = enter(started_servers(cls.project))
        cls.project.answer("set-up")  # done meanwhile
        cls.evidence.facts["server"] = cls.server.version
        cls.evidence.facts["programs"] = cls.server.programs

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
        return cls.made

    @classmethod
    def valid_scan(cls) -> "Scan":
        """What the backup holds, once it was found to be whole."""
        cls.scan = cls.scan or validated(cls.backup(), cls.server)
        return cls.scan

    def restore(self) -> None:
        """Load the backup, compare what came back, and use it."""
        backup, scan, facts = self.backup(), self.valid_scan(), self.evidence.facts
        provide_globals(scan, self.server)
        restored = made_database(self.server, "restored", backup.like, scan)
        seconds, *references = load_backup(backup, restored)
        facts["seconds_to_restore"] = round(seconds, 3)
        found, expected = read_both(backup, scan, restored, *references)
        facts["not_compared"] |= uncompared(backup, scan, found)
        fact = "the restored database differs from its source"
        refuse(fact, differences(expected, found))
        tables = [n for thing, (n, _) in found.rows.items() if thing != LARGE_OBJECTS]
        objects = len(expected.definitions)
        facts |= {"tables": len(tables), "rows": sum(tables), "objects": objects}
        with step("use the restored database"):
            plan = self.project.ask("showmigrations --plan", restored)
            pending = re.findall(r"(?m)^\[ \] +(\S+)", plan)
            facts["pending_migrations"] = pending
            if self.options.rehearsal:
                refuse("migrations are pending that were applied", pending)
                output_of(restored.psql(SAMPLE_INSERTS, fault=None))
        with step("make differences, and see them"):
            require_differences_seen(restored, found)
        refuse("the restore took too long", exceeded(seconds, self.options.max_restore))


def load_tests(loader: unittest.TestLoader, *_: Any) -> unittest.TestSuite:
    """Creation, validation, restore: by name, unittest would restore too early."""
    names = loader.getTestCaseNames(BackupRestoreTests)
    names.sort(key=lambda name: "cvr".index(name.split("_")[2][0]))
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
    began = time.monotonic()
    try:
        yield
    finally:
        log.info("%8.2f s  %s", time.monotonic() - began, what)


# --- A run: its signals, its folder, its reaper, its programs -------------------------
@contextmanager
def interruptible() -> Iterator[None]:
    """Interrupt the block at a signal that asks for an end."""
    before = handle_endings(interrupt)
    yield
    if __name__ != "__main__":  # else nothing follows that could be interrupted
        for each, handler in before.items():
            signal.signal(each, handler)


def interrupt(number: int, _frame: object) -> None:
    """Raise KeyboardInterrupt for the first signal; later ones do nothing."""
    handle_endings(signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def handle_endings(handler: Any) -> dict[signal.Signals, Any]:
    """Set the handler of the signals that ask for an end; return those before."""
    # One that is ignored from the start, as nohup does with SIGHUP, stays ignored.
    heeded = [each for each in ENDINGS if signal.getsignal(each) != signal.SIG_IGN]
    return {each: signal.signal(each, handler) for each in heeded}


# It reads +ID of each process group that starts, -ID of each that ended. At the end of
# the drill, by SIGKILL too, it kills those left, the private server, and the folder.
REAPER = r"""
groups=' '
while read -r line; do
    id=${line#?}
    case $line in
    +*) groups="$groups$id " ;;
    *) groups="${groups%% $id *} ${groups#* $id }" ;;
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
# Programs get only these variables: a server may run as another account.
PASSED_ON = ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "KRB5CCNAME"]
PASSED_ON += ["PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR"]


@contextmanager
def started_run(options: Options) -> Iterator["Run"]:
    """A run with its folder; the reaper removes that, and ends what still runs."""
    # Python's tempfile would silently leave a TMPDIR that is full or missing.
    parent = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()).absolute()
    folder = parent / f"{MARK}{os.urandom(8).hex()}"
    folder.mkdir(mode=0o700)
    words = ("/bin/sh", "-c", f"exec >&- 2>&-\n{REAPER}", "reaper", folder)
    # In a session of its own, so that no signal to the drill and its group ends it.
    how = {"stdin": subprocess.PIPE, "bufsize": 0, "start_new_session": True}
    with subprocess.Popen(words, **how) as reaper:
        try:
            yield Run(options, folder, reaper.stdin)
        finally:
            handle_endings(signal.SIG_IGN)
    if folder.exists():
        log.warning("the folder of this run is left behind: %s", folder)


@dataclass(frozen=True)
class Run:
    """What all parts of one run share, and how they start programs."""

    options: Options
    folder: Path  # for its files; the names of its databases begin with its name
    reaper: IO[bytes]  # kills process groups written here when this process has ended
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def redacted(self, text: str) -> str:
        """The text with [REDACTED] for each secret, in whichever way it is written."""
        forms = set()
        for secret in self.secrets:
            escaped = secret.replace("\\", "\\\\")
            forms |= {escaped, escaped.replace("'", "\\'"), secret.replace("'", "''")}
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
        with spool() as out, spool() as err:
            how = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err} | how
            how |= {"start_new_session": True, "umask": 0o077, "bufsize": 0}
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
            how["preexec_fn"] = lambda: (  # so that it never runs unknown to the reaper
                self.reaper.write(b"+%d\n" % os.getpid()),
                signal.pthread_sigmask(signal.SIG_SETMASK, mask),
            )
            try:
                popen = subprocess.Popen([*map(str, arguments)], **how)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            try:
                yield Process(popen, out, err, time.monotonic(), *about)
            finally:
                with suppress(ProcessLookupError, PermissionError):  # of macOS
                    os.killpg(popen.pid, signal.SIGKILL)
                popen.wait()
                for file in (popen.stdin, popen.stdout, how["stdin"]):
                    if hasattr(file, "close"):
                        file.close()
                self.reaper.write(b"-%d\n" % popen.pid)

    def pieces(self, stream: IO[bytes], what: str) -> Iterator[bytes]:
        """What a file or a program yields, piece by piece; NotJudged at the bound."""
        end = time.monotonic() + (bound := self.options.timeout)
        while time.monotonic() < end and select.select([stream], [], [], bound)[0]:
            if not (piece := os.read(stream.fileno(), CHUNK)):
                return
            yield piece
        raise self.overrun(what)

    def overrun(self, name: str) -> NotJudged:
        fact = f"{name} did not end within {self.options.timeout:g} s, and was killed"
        return NotJudged(fact, "allow more time with --timeout")


def spool(text: str = "") -> BinaryIO:
    """A file for what a program reads or says; in memory where possible: disks fill."""
    memory, disk = getattr(os, "memfd_create", None), tempfile.TemporaryFile
    file = os.fdopen(memory(""), "w+b") if memory else disk()
    file.write(text.encode("utf-8", "surrogateescape"))
    file.seek(0)
    return file


def text_of(file: BinaryIO) -> str:
    """What was written to the file; its position, which a program shares, stays."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode("utf-8", "surrogateescape")


def output_of(program: "Started") -> str:
    """What a program writes to stdout, once it has ended well."""
    with program as process:
        wait_for(process)
        return text_of(process.stdout)


def wait_for(*processes: "Process") -> None:
    """Wait until all have ended well; raise the first failure."""
    began, shown = time.monotonic(), 0
    while False in [process.has_ended() for process in processes]:
        time.sleep(0.002)
        seconds = (time.monotonic() - began) // 0.5 / 2
        if sys.stderr.isatty() and seconds > shown:
            # Behind unittest's dots: the cursor is saved, and brought back.
            shown, said = seconds, f"{processes[0].name}: {seconds:g} s"
            print(f"\x1b7 {said}\x1b[K\x1b8", end="", file=sys.stderr, flush=True)
    print("\x1b[K" * bool(shown), end="", file=sys.stderr, flush=True)
    for process in processes:
        process.log_warnings()


# --- Verdicts on programs that fail ---------------------------------------------------
# The severity is in the server's language; the code, and the function of PostgreSQL's
# that reported it, are not.
REPORT = re.compile(r"^psql:.*?:(\d+): \S+:  ([0-9A-Z]{5}): (.*)", re.MULTILINE)
LOCATION = re.compile(r"^LOCATION:  (\w+)|\Z", re.MULTILINE)
FAULT = re.compile(r"^.*\b(?:error|FATAL|ERROR|PANIC): .*", re.MULTILINE)
# Of a program that ends well. A backup brackets its large objects by BEGIN: class 25.
WARNING = r"(?m)^psql:.*?:\d+: \S+:  (?!25)\w{5}|^pg_\w+: (?:warning|hint|detail).*"
# What to do about errors. One that has a hint by its SQLSTATE, or by the function of
# the server's that raised it, is no fault of the backup's; words choose no verdict.
HINTS = {
    ":get_role_oid|:check_session_auth": "use a server with the role, or --throwaway",
    ":get_tablespace|:parse_extension|:call_string_check": "use a server that has it",
    ":get_collation|:report_newlocale": "install the locale where the server runs",
    ":find_option|:assignable_custom": "a newer pg_dump wrote it: use a newer server",
    "^42501|permission denied|must be ": "use a role with more rights, or --throwaway",
    "^53100|No space left|could not (extend|write)": "make room on the disk",
    "^53": "raise the limit of the server, such as max_locks_per_transaction",
    "^57014|(statement|lock) timeout": "allow more time with --timeout",
    "^28|authentication failed|no password": "check the user and the password",
    " refused|not trans|time(d |out e)|unreach|socket .*No such": "check host and port",
    '(database|role) ".*" does not exist': "check the names of database and user",
    "pg_hba.conf|SSL[ ,]": "check sslmode and its files, and the server's pg_hba.conf",
    "startup parameter": "let the settings name the server itself, not its pooler",
    "^(08|25006|40|55006|55P03|57|58|XX)": "run again; the server's log may tell more",
    "server closed|terminating conn|connection .*lost|shutting|starting": "run again",
}


def hint_for(said: str) -> str:
    return next((h for pattern, h in HINTS.items() if re.search(pattern, said)), "")


@dataclass(frozen=True)
class Process:
    """A program that was started, and the files that take what it says."""

    popen: subprocess.Popen
    stdout: BinaryIO
    stderr: BinaryIO
    began: float  # by the monotonic clock
    run: Run
    on: str  # the database
    fault: type[Exception] | None  # raised when it fails; None: the SQLSTATE decides

    @property
    def name(self) -> str:
        return Path(self.popen.args[0]).name

    def said(self) -> str:
        """What it has written to stderr, without secrets."""
        return self.run.redacted(text_of(self.stderr))

    def has_ended(self) -> bool:
        """Whether it has ended well; raises when it failed, or is over its time."""
        if self.popen.poll():
            raise self.failure()
        late = time.monotonic() > self.began + self.run.options.timeout
        if late and self.popen.returncode is None:
            raise self.run.overrun(self.name)
        return self.popen.returncode == 0

    def failure(self) -> Exception:
        """The exception for its exit status and message."""
        status, said = self.popen.returncode, self.said().strip()
        sentence = (FAULT.search(said) or re.match(".*", said))[0]
        hint, reports = hint_for(sentence), [*REPORT.finditer(said)]
        if reports:  # the last: warnings may precede the error
            sentence, hint = report_of(said[reports[-1].start() :])
        elif self.on and self.name == "pg_restore":  # it tells no code, but values
            sentence, hint = "", hint or "run without --jobs: psql tells what it means"
        ended = f"exited with {status}" if status > 0 else f"died of signal {-status}"
        where = f' on database "{self.on}"' if self.on else ""
        text = NotJudged(f"{self.name} {ended}{where}", sentence, hint)
        judged = self.fault is None and status == 3 and reports and not hint
        fault = BackupIsBad if judged else self.fault or NotJudged
        return text if status < 0 else fault(str(text))

    def log_warnings(self) -> None:
        """Log what it says though it ended well, but for what may quote values."""
        level = logging.WARNING if self.name == "pg_dump" else logging.INFO
        if said := re.findall(WARNING, self.said()):
            log.log(level, "%s says:\n%s", self.name, indented(said))


def report_of(said: str) -> tuple[str, str]:
    """The first line of psql's report, without values, and what to do about it."""
    line, code, message = REPORT.match(said).groups()
    function = LOCATION.search(said)[1] or "the server"
    if code.startswith(("22", "P0", "42601")) or function == "exec_stmt_raise":
        message = f"its message may quote a value ({function})"
    return f"line {line}: {code}: {message}", hint_for(f"{code}:{function}")


# --- The project, in a process of its own ---------------------------------------------
PROJECT = "--serve-project"  # the argument that makes this file that process
BACKENDS = "django.db.backends."
# libpq's variables, but for those that say where files of the settings' own lie.
LIBPQ = re.compile("PG(?!PASSFILE$|SERVICEFILE$|SYSCONFDIR$)")
SECRETS = ["sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"]
ENCODE = "in DATABASE_URL, percent-encode what is special in the password"


@dataclass(frozen=True)
class Project:
    """The process that has the project's code."""

    run: Run
    process: Process
    engine: str = ""
    connection: list[Any] | None = None  # libpq's words, and the role, where needed

    def ask(self, request: str, database: "Database") -> str:
        """What a command of Django's prints when every alias leads to the database."""
        private = {"HOST": database.words.get("host"), "USER": "postgres"}
        place = {"NAME": database.name} | (private if database.private else {})
        line = json.dumps([request.split(), place, database.options])
        with suppress(BrokenPipeError):  # the process has ended, which its answer tells
            self.process.popen.stdin.write(f"{line}\n".encode())
        return self.answer(request)

    def answer(self, about: str) -> Any:
        """What it answers next. Raises NotJudged when the project's code fails."""
        stdout = self.process.popen.stdout
        if not select.select([stdout], [], [], self.run.options.timeout)[0]:
            raise self.run.overrun(f"the project ({about})")
        answer, fault = json.loads(stdout.readline() or '[null, "it has ended"]')
        if fault:
            raise NotJudged(f"the project fails: {about}", self.run.redacted(fault))
        return answer


@contextmanager
def started_project(run: Run) -> Iterator[Project]:
    """The project's process, which has imported the settings."""
    alias, needed = run.options.database, run.options.use_configured
    how = {"env": dict(os.environ), "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    words = (sys.executable, __file__, PROJECT, alias, "connection" * needed)
    with run.started(*words, **how) as process:
        # Settings may read any variable; in this process, libpq must not.
        hidden = {k: os.environ.pop(k) for k in [*os.environ] if LIBPQ.match(k)}
        try:
            aliases, engine, *passwords = Project(run, process).answer("settings")
            run = replace(run, secrets=tuple(passwords))
            if alias not in aliases:
                known = ", ".join(aliases)
                raise NotJudged(f"settings.DATABASES has no {alias!r}; known: {known}")
            connection = Project(run, process).answer("connection") if needed else None
            yield Project(run, process, engine, connection)
        finally:
            os.environ.update(hidden)
            if said := run.redacted(process.said()).splitlines():
                log.info("the project says:\n%s", indented(said, 100))


def serve_project(alias: str, needed: str) -> None:
    """Import the project with no database in reach, and run its commands until EOF."""
    answers, requests = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
    os.dup2(2, 1)  # what the project prints is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def answer(value: Any, fault: str = "") -> None:
        print(json.dumps([value, fault]), file=answers, flush=True)

    databases = {}
    sys.excepthook = lambda _kind, error, _: answer(None, told(error, bool(databases)))
    databases = imported_databases()
    own = databases.get(alias, {"ENGINE": f"{BACKENDS}dummy", "OPTIONS": {}})
    secrets = [each["PASSWORD"] for each in databases.values()]
    for each in databases.values():
        secrets += map(each["OPTIONS"].get, ["password", *SECRETS])
    answer([[*databases], own["ENGINE"], *map(str, filter(None, secrets))])
    # Django's engines need no apps: the drill goes on beside the long work.
    if early := own["ENGINE"].startswith(BACKENDS):
        if needed:
            answer(connection_words(own, alias))
        own["ENGINE"] = f"{BACKENDS}postgresql"
    sealed = set_up_project(own)
    if needed and not early:
        answer(connection_words(own, alias))
    answer("it is set up")
    from django.core.management import call_command

    for words, place, options in map(json.loads, requests):
        point_project_at(scratch_settings(own, place, options))
        printed = io.StringIO()
        call_command(*words, database=alias, stdout=printed)
        answer(printed.getvalue())
        point_project_at(sealed)


def told(error: BaseException | None, with_words: bool) -> str:
    """An error and its causes: kinds, places, and words once passwords are known."""
    lines, hint = [], [ENCODE] * (isinstance(error, ValueError) and not with_words)
    while error:
        shown = with_words or isinstance(error, ImportError | SyntaxError)
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
    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        raise ImportError("no DJANGO_SETTINGS_MODULE, and no manage.py names one")
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
    nowhere = f"/nonexistent/{MARK}"
    sealed = {**own, "OPTIONS": {}, "HOST": nowhere, "NAME": nowhere}
    for name in [name for name in os.environ if LIBPQ.match(name)] + ["DATABASE_URL"]:
        os.environ.pop(name, None)
    point_project_at(sealed)
    django.setup()
    if any(each.settings_dict["HOST"] != nowhere for each in connections.all()):
        raise RuntimeError("the project replaces its DATABASES while it starts")
    return sealed


def point_project_at(database: dict[str, Any]) -> None:
    """Make every alias lead there: by another, a migration could write elsewhere."""
    from django.conf import settings
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        connection.close()
        del connections[connection.alias]
    settings.DATABASES = {alias: dict(database) for alias in connections.settings}
    connections._settings = None  # else it keeps the settings that it has read
    del connections.settings


def scratch_settings(own: dict, place: dict, options: str) -> dict[str, Any]:
    """The project's settings, changed so that they lead to a scratch database."""
    kept = {k: v for k, v in own["OPTIONS"].items() if k not in ("pool", "dbname")}
    if "HOST" in place:  # hostaddr, service or a role would lead back
        kept = {k: kept[k] for k in kept if k in ("options", "application_name")}
        place |= {"PORT": "5432", "PASSWORD": ""}
        kept["options"] = re.sub(r"(-c ?|--)role=\S+", "", kept.get("options", ""))
    kept["options"] = f"{kept.get('options', '')} {options}".strip()
    return {**own, "OPTIONS": kept, **place}


def connection_words(own: dict[str, Any], alias: str) -> list[Any] | None:
    """How the project's engine would connect, in libpq's words; None if by others."""
    from django.db.utils import load_backend

    wrapper = load_backend(own["ENGINE"]).DatabaseWrapper(own, alias)
    if wrapper.vendor != "postgresql":
        return None
    words = {}
    for word, value in wrapper.get_connection_params().items():
        with suppress(driver.ProgrammingError):  # it is Django's own or the driver's
            if word != "client_encoding" and isinstance(value, str | int | Path):
                make_conninfo(**{word: value})
                words[word] = str(value)
    return [words, own["OPTIONS"].get("assume_role")]


# --- From the settings to a server ----------------------------------------------------
# -X: a ~/.psqlrc must not matter. Without ON_ERROR_STOP, psql ends well after errors.
PSQL = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose")
DEFINITIONS = ("pg_dump", "--section=pre-data", "--section=post-data", "--no-blobs")
# Its last column has the clauses of CREATE DATABASE for one like that of the session.
ABOUT = """
SELECT pg_backend_pid(), datname, split_part(version(), ' ', 2), getdatabaseencoding(),
       concat_ws(' ', format('ENCODING %L LC_COLLATE %L LC_CTYPE %L',
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
PROGRAMS = ("pg_dump", "psql", "pg_restore")
PROGRAM_FOLDERS = """
usr/lib/postgresql/*/bin usr/pgsql-*/bin usr/libexec/postgresql*
opt/homebrew/opt/postgresql@*/bin usr/local/opt/postgresql@*/bin
Applications/Postgres.app/Contents/Versions/*/bin
"""  # of Debian, Red Hat, Alpine, Homebrew, and Postgres.app
Started = contextlib.AbstractContextManager[Process]


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
    def options(self) -> str:
        """libpq's options for our sessions; no timeout but ours is in force in them."""
        ours = [f"statement_timeout={round(self.run.options.timeout * 1000)}"]
        ours += ["idle_in_transaction_session_timeout=0", "idle_session_timeout=0"]
        ours += ["lock_timeout=0", "default_transaction_read_only=off"]
        ours += ["transaction_timeout=0"] * (major_of(self.version) >= 17)
        ours += ["standard_conforming_strings=on"]  # as the scan reads quotes
        role = re.sub(r"([\\ ])", r"\\\1", self.role or "")
        ours += [f"role={role}"] * bool(role)
        return " ".join(f"-c {each}" for each in ours)

    @property
    def conninfo(self) -> str:
        """How to connect, in libpq's words, but for the password."""
        options = f"{self.words.get('options', '')} {self.options}".strip()
        words = {"connect_timeout": str(max(2, round(self.run.options.timeout)))}
        words |= {**self.words, "options": options}
        words |= {"dbname": self.name} if self.name else {}  # a service may name it
        return make_conninfo(**words)

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A cursor that commits each statement; NotJudged in place of its errors."""
        own = {"password": self.password or None, "client_encoding": "UTF8"}
        try:
            with closing(driver.connect(self.conninfo, **own)) as connection:
                connection.autocommit = True
                yield connection.cursor()
        except driver.Error as error:
            said = self.run.redacted(str(error)).strip().partition("\n")[0]
            fact = f'database "{self.name}": {said or type(error).__name__}'
            raise NotJudged(fact, hint_for(said)) from None

    def client(self, program: str, *arguments: Any, **how: Any) -> Started:
        """A program of PostgreSQL's on the database; bytes of no encoding stay raw."""
        encoding = "SQL_ASCII" if self.encoding == "SQL_ASCII" else "UTF8"
        environment = {"PGCLIENTENCODING": encoding}
        environment |= {"PGPASSWORD": self.password} if self.password else {}
        how |= {"on": self.name, "more": environment}
        words = (self.folder / program, "--no-password", "--dbname", self.conninfo)
        return self.run.started(*words, *arguments, **how)

    def psql(self, *scripts: str, fault: type[Exception] | None = NotJudged) -> Started:
        """psql on the database, running the scripts in one session."""
        how = {"stdin": spool("".join(scripts)), "fault": fault}
        return self.client("psql", *PSQL, "-f", "-", **how)

    def facts(self, snapshot: str = "") -> Started:
        """psql, reading all facts in one transaction, of a shared snapshot if given."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"
        if snapshot:
            # No snapshot covers TRUNCATE; pg_dump locks the tables that it dumps too.
            begin += f"SET TRANSACTION SNAPSHOT '{snapshot}';\n{LOCKS}"
        return self.psql(PINNED, begin, SEQUENCES, f"{ROWS}\\gexec\n", LARGE, NAMES)

    def sequences(self) -> dict[str, list[Any]]:
        """The state and the file of each sequence, which no snapshot covers."""
        lines = output_of(self.psql(PINNED, SEQUENCES)).split("\n")
        return {name: state for _, name, *state in map(json.loads, filter(None, lines))}


@contextmanager
def started_servers(project: Project) -> Iterator[tuple[Database, Database]]:
    """The source's server, and that of the scratch databases; most often the same."""
    options = project.run.options
    if not any(any(program_folders(name)) for name in PROGRAMS):
        fact = "no PostgreSQL programs: neither on PATH nor in the usual folders"
        error = NotJudged(fact, "install them: apt-get install postgresql-client")
        if options.strict:
            raise error
        log.warning("the backup drill is skipped: %s", error)
        raise unittest.SkipTest(fact)
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
    if not project.connection:
        raise NotJudged(f"the database is not PostgreSQL but {project.engine}", hint)
    words, role = project.connection
    password, name = words.pop("password", ""), words.pop("dbname", "")
    if "@" in name:  # it holds a piece of a password
        raise NotJudged("the settings name a database with an @ in it", ENCODE)
    for word in filter(words.get, SECRETS):
        fact = f"{word} can be passed to PostgreSQL's programs as an argument only"
        raise NotJudged(fact, "leave it out of OPTIONS for the drill")
    return introduced(Database(project.run, name, words, password, role))


def introduced(server: Database) -> Database:
    """The server, with its version, its locale and the programs that fit it best."""
    with server.session() as cursor:
        cursor.execute(ABOUT)
        pid, *about = cursor.fetchone()
        if pid != cursor.connection.info.backend_pid:
            raise NotJudged("a connection pooler is there", "name the server itself")
    known = zip(("name", "version", "encoding", "locale"), about, strict=True)
    server, found = replace(server, **dict(known)), []
    needed = major_of(server.version)
    for folder in program_folders(*PROGRAMS):
        versions = {name: version_of(server.run, folder / name) for name in PROGRAMS}
        majors = sorted(map(major_of, versions.values()), reverse=True)
        found.append((majors, replace(server, folder=folder, programs=versions)))
    usable = [each for each in found if each[0][-1] >= needed]
    majors, best = min(usable, key=lambda each: each[0], default=([0], server))
    if majors[0] != needed:
        said = [", ".join(map(" ".join, each.programs.items())) for _, each in found]
        fact = f"{', '.join(PROGRAMS)} {needed} are needed for server {server.version}"
        hint = f"install them: apt-get install postgresql-client-{needed}"
        error = NotJudged(fact, f"found: {'; '.join(said) or 'none'}", hint)
        if server.run.options.strict or not usable:
            raise error
        log.warning("newer programs are used: %s", error)
    return best


def program_folders(*names: str) -> Iterator[Path]:
    """The folders that have all of these programs: PATH's first."""
    usual = (path for each in PROGRAM_FOLDERS.split() for path in Path("/").glob(each))
    for folder in [*map(Path, os.get_exec_path()), *sorted(usual)]:
        paths = [folder / name for name in names]
        real = [path.resolve().name for path in paths if os.access(path, os.X_OK)]
        if len(real) == len(names) and "pg_wrapper" not in real:  # it runs the newest
            yield folder


def version_of(run: Run, program: Path) -> str:
    """What the program says of its version: 15.18."""
    with suppress(NotJudged, OSError, IndexError):
        said = output_of(run.started(program, "--version"))
        return said.partition(") ")[2].split()[0]
    return "unknown"


def major_of(version: str) -> int:
    """The major version: 15 of 15.18; 0 of none."""
    return int(re.match(r"\d*", version)[0] or 0)


# --- Scratch databases, and the throwaway server --------------------------------------
SCRATCH_NAME = f"^{MARK}[0-9a-f]{{16}}_(source|reference|restored)$"
# Scratch databases that this role may drop, without those of runs that hold their
# lock. Sessions in them end: FORCE fails for an ordinary role beside an autovacuum
# worker, for which a plain DROP DATABASE waits.
DROPPABLE = """
SELECT datname,
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
        cursor.execute(f"SELECT pg_is_in_recovery(), rolcreatedb OR rolsuper {roles}")
        standby, may = cursor.fetchone()
        if standby or not may:
            fact = "the server is a standby" if standby else "the role may not"
            hint = "use --throwaway, or a role with CREATEDB on a primary server"
            raise NotJudged(f"no database can be created: {fact}", hint)
        key = int.from_bytes(bytes.fromhex(server.run.folder.name[-16:]), signed=True)
        cursor.execute("SELECT pg_advisory_lock(%s)", [key])
        drop_databases(server)
        try:
            yield
        finally:
            handle_endings(signal.SIG_IGN)
            if not server.private:  # else they go with it
                drop_databases(server)


def drop_databases(server: Database, purpose: str = "") -> None:
    """Drop the scratch databases of this run, or one, and of runs that are gone."""
    mark = server.run.folder.name
    with left_behind("a scratch database"), server.session() as cursor:
        cursor.execute(DROPPABLE, [SCRATCH_NAME, f"{mark}_{purpose}"])
        for name, _ in sorted(cursor.fetchall()):
            with left_behind(name):
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
    name = f"{server.run.folder.name}_{purpose}"
    encoding, locale = like.encoding, like.locale
    if scan and scan.encoding != encoding:  # a backup tells no locale
        encoding = scan.encoding
        locale = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with step(f"make {name}"), server.session() as cursor:
        # template1 may hold additions of the site's.
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0 {locale}")
    database = replace(server, name=name, encoding=encoding)
    if scan and scan.makes_public:  # as after pg_dump --schema public
        output_of(database.psql("DROP SCHEMA public;"))
    return database


@contextmanager
def throwaway_server(run: Run, major: int | None) -> Iterator[Database]:
    """A private server in the run's folder, without TCP; the reaper ends it."""
    found = reversed([*program_folders("postgres", "initdb", "pg_ctl")])
    homes = {major_of(version_of(run, home / "postgres")): home for home in found}
    if not (home := homes.get(major or max(homes, default=0))):
        hint = f"install them: apt-get install postgresql{f'-{major}' * bool(major)}"
        raise NotJudged("no programs of a server for a throwaway server", hint)
    data = run.folder / "data"
    data.mkdir(mode=0o700)
    how = {"cwd": data}
    ctype = "C" if sys.platform == "darwin" else "C.UTF-8"  # knows all letters
    initdb = [home / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
    initdb += ["--no-instructions", "-E", "UTF8", "--locale=C", "--lc-ctype", ctype]
    options = "-p 5432 -h '' -k . -c fsync=off -c synchronous_commit=off "
    options += "-c full_page_writes=off -c autovacuum=off -c wal_level=minimal "
    options += "-c max_wal_senders=0 -c max_locks_per_transaction=1024 "
    options += "-c allow_in_place_tablespaces=on"  # for those that a backup names
    start = [home / "pg_ctl", "start", "-D", data, "-w", "-l", "log", "-o", options]
    try:
        if os.geteuid() == 0:  # as whom PostgreSQL refuses to run
            how |= {"user": "postgres", "group": "postgres", "extra_groups": []}
            run.folder.chmod(0o711)
            shutil.chown(data, "postgres", "postgres")
        with step("start a throwaway server"):
            output_of(run.started(*initdb, **how))
            output_of(run.started(*start, "-t", round(run.options.timeout), **how))
    except (NotJudged, LookupError, OSError) as error:
        hint = "for root it needs an account postgres, which may enter TMPDIR"
        logs = [path.read_text(errors="replace") for path in data.glob("log")]
        fact, said = "the throwaway server does not start", "".join(logs).splitlines()
        raise NotJudged(fact, error, *said[-9:], hint) from None
    words = {"host": str(data), "port": "5432", "user": "postgres"}
    yield introduced(Database(run, "postgres", words, private=True))


# --- The source and its backup, or a backup that exists -------------------------------
ARCHIVE = ("pg_restore", "--file", "-")
# How the content of each format begins, and the program that makes SQL of it.
FORMATS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "custom": (rb"PGDMP", ARCHIVE),
    "tar": (rb"toc\.dat\0", ARCHIVE),
    "directory": (rb"(?!)", ARCHIVE),  # no file
    "gzip": (rb"\x1f\x8b", ("gzip", "-dc")),
    "zstd": (rb"\x28\xb5\x2f\xfd", ("zstd", "-dcq", "--long=31")),
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
    sha256: str  # of a folder: of all its files, one after the other
    written: float  # seconds since 1970, of the newest file
    like: Database  # whose encoding and locale fit
    # What follows is known of a source alone; an existing backup has none.
    source: "Contents | None" = field(default=None, repr=False)
    moved: dict[str, tuple] = field(default_factory=dict)  # sequence -> before, after
    script: str = field(default="", repr=False)  # the source's definitions, as SQL
    seconds: float = 0.0  # that the dump took

    def facts(self) -> dict[str, Any]:
        """What the evidence says of it."""
        never = ["roles and their passwords", "tablespaces", "other databases"]
        never += ["settings of the database itself"]
        facts = {"format": self.format, "bytes": size_of(self.path)}
        facts |= {"sha256": self.sha256, "not_compared": dict.fromkeys(never, "")}
        if self.source:
            return facts | {"seconds_to_back_up": round(self.seconds, 3)}
        written = time.strftime(ISO, time.gmtime(self.written))
        age = round(time.time() - self.written)
        return facts | {"backup_written": written, "backup_age_seconds": age}

    @contextmanager
    def opened(self, server: Database) -> Iterator[tuple[IO[bytes], list[Process]]]:
        """The backup as SQL, and the program that yields it unless it is SQL itself."""
        if not (words := FORMATS[self.format][1]):
            with self.path.open("rb") as file:
                yield file, []
            return
        path = f"{server.folder}:{os.environ.get('PATH', os.defpath)}"
        if not (program := shutil.which(words[0], path=path)):
            hint = f"install it, such as with: apt-get install {words[0]}"
            raise NotJudged(f"{words[0]} is needed to read the backup", hint)
        how = {"stdout": subprocess.PIPE, "fault": BackupIsBad}
        with server.run.started(program, *words[1:], self.path, **how) as process:
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
        project.ask("migrate --noinput --verbosity=0", source)
    with step("load the sample"), source.session() as cursor:
        utf8 = source.encoding == "UTF8"
        cursor.execute(SAMPLE if utf8 else SAMPLE.encode("ascii", "replace").decode())
    backup = dumped(source)
    drop_databases(server, "source")
    return backup


def dumped(source: Database) -> Backup:
    """The source, written to a new backup, and its contents under the same snapshot."""
    run, form = source.run, source.run.options.format
    path = run.folder / f"backup.{form}"
    how = ["--no-sync", "--format", form, "--file", path, "--encoding", source.encoding]
    how += ["--jobs", run.options.jobs] if form == "directory" else []
    with step("write the backup, read the source"), ExitStack() as stack:
        enter, holder = stack.enter_context, stack.enter_context(source.session())
        before = source.sequences() if run.options.live else {}
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        holder.execute("SELECT pg_export_snapshot()")
        (snapshot,) = holder.fetchone()
        began = time.monotonic()
        dump = enter(source.client("pg_dump", *how, "--snapshot", snapshot))
        definitions = enter(source.client(*DEFINITIONS, "--snapshot", snapshot))
        facts = enter(source.facts(snapshot))
        wait_for(dump)
        seconds = time.monotonic() - began
        if (size := size_of(path)) <= 1024 * run.options.rehearsal:
            raise BackupIsBad(f"pg_dump reported success but wrote only {size} bytes")
        sha256, _ = digests_of(path)
        wait_for(definitions, facts)
        script = text_of(definitions.stdout)
        contents = contents_from(text_of(facts.stdout), script)
        after = source.sequences() if run.options.live else {}
    moved = {s: (v, after.get(s)) for s, v in before.items() if v != after.get(s)}
    known = (source, contents, moved, script, seconds)
    return Backup(path, form, sha256, time.time(), *known)


def adopted_backup(path: Path, server: Database) -> Backup:
    """A backup that was there before this run; it is only ever read."""
    form, (sha256, _) = format_of(path, server.programs["pg_restore"]), digests_of(path)
    record = path.with_name(f"{path.name}.sha256")
    if record.exists():
        text = record.read_text(errors="replace").lower()
        expected = re.search(r"\b[0-9a-f]{64}\b|\Z", text)[0] or "one of 64 digits"
        problems = problems_of_checksum(sha256, expected)
        refuse(f"the backup is not the one that {record.name} speaks of", problems)
    written = max(file.stat().st_mtime for file in files_of(path))
    return Backup(path, form, sha256, written, server)


def format_of(path: Path, pg_restore: str) -> str:
    """The format of a backup, by its content. Raises NotJudged if it is too new."""
    file = path / "toc.dat" if path.is_dir() else path
    if path.exists() and not file.is_file():
        kind = BackupIsBad if path.is_dir() else NotJudged
        raise kind(f"{path} is no backup: {file.name} is no file")
    with file.open("rb") as content:
        head = content.read(1024)
    if re.match(ENCRYPTED, head):
        raise NotJudged(f"{path} is encrypted", "decrypt it first")
    # Version 1.15 of the archive is of PostgreSQL 16, 1.16 of 17 and later.
    if archive := re.match(rb"(?s)(toc\.dat\0.*)?PGDMP\x01([\x0f-\xff])", head):
        require_not_newer(archive[2][0] + 1, pg_restore)
    names = (name for name in FORMATS if re.match(FORMATS[name][0], head))
    return "directory" if path.is_dir() else next(names)


def files_of(path: Path) -> list[Path]:
    return sorted(path.iterdir(), key=os.fsencode) if path.is_dir() else [path]


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in files_of(path) if file.exists())


def digests_of(path: Path) -> tuple[str, str]:
    """The SHA-256 of a backup's files, and the one with the last bit flipped."""
    whole, last, flipped = hashlib.sha256(), b"\0", hashlib.sha256()
    for file in files_of(path):
        with file.open("rb") as pieces:
            while piece := pieces.read(CHUNK):
                flipped, last = whole.copy(), piece
                whole.update(piece)
    flipped.update(last[:-1] + bytes([last[-1] ^ 1]))
    return whole.hexdigest(), flipped.hexdigest()


def problems_of_checksum(found: str, expected: str) -> list[str]:
    return [f"SHA-256: found {found}, expected {expected}"] * (found != expected)


def problems_of_archive(backup: Backup) -> list[str]:
    """What pg_restore does not see: a member without data, and where a tar was cut."""
    # Of no data zlib makes some bytes.
    empty = [f for f in files_of(backup.path) if f.suffix == ".gz" and not size_of(f)]
    if backup.format != "tar":
        return [f"{file.name}: it is empty" for file in empty]
    with backup.path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
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
DEFINITION = r"(?m)^--\n-- Name: (.*); Type: (.*); Schema: (.*); (Owner: .*)\n--\n"
NAME = r'(?:"(?:[^"]|"")*"|[^\s".,;(]+)'
FULL = rf"({NAME}\.{NAME})"
COPY = re.compile(rf"(?s)COPY {FULL} (?:\(.*\) ?)? ?FROM stdin;")
SETVAL = re.compile(rf"SELECT pg_catalog.setval\('{FULL}', (-?\d+), (true|false)\);")
ROLES = re.compile(
    rf"(?s)(?: IN SCHEMA {NAME})? ?(?:ALTER .* OWNER TO|GRANT .* TO|REVOKE .* FROM"
    r"|ALTER DEFAULT PRIVILEGES FOR ROLE|CREATE USER MAPPING FOR"
    rf"|CREATE POLICY {NAME} ON {NAME}\.{NAME}(?: AS \w+)?(?: FOR \w+)? TO) "
    rf"({NAME}(?:, {NAME})*)"
)
GLOBAL = r"(DATABASE|ROLE|USER(?! MAPPING)|GROUP|TABLESPACE)\b"
# Outside quotes, in upper case: what reaches beyond the database, and what pg_dump
# writes into the backup of one. All else could undo the restore or do what nobody sees.
FORBIDDEN = re.compile(
    rf"(CREATE|ALTER|DROP|COMMENT ON|SECURITY LABEL( FOR \S+)? ON) {GLOBAL}"
    r"|(GRANT|REVOKE)\b(.* ON (DATABASE|TABLESPACE|PARAMETER)\b|(?!.* ON ))"
)
WRITTEN = re.compile(
    r"(CREATE|ALTER(?! SYSTEM)|COMMENT|SECURITY|GRANT|REVOKE|SET(?!.*U&)|RESET|INSERT"
    r"|BEGIN|COMMIT|REFRESH|DROP(?! OWNED)|SELECT (\* FROM )?PG_CATALOG.(LOWRITE|SETVAL"
    r"|LO_(CREATE|OPEN|CLOSE|UNLINK)|SET_CONFIG(?=\( '' , '' ,)|PG_RESTORE_\w+))\b"
)
# For a new database, where there is nothing to drop.
UNFIT = re.compile(rf"CREATE DATABASE |DROP (?!{GLOBAL}|OWNED |.* IF EXISTS )")
# What psql tells apart outside COPY data. Nothing matches where a quote is open, and
# where pg_dump writes otherwise and psql's versions differ: a digit before a quote.
TOKEN = re.compile(rb"""(?xs)
    (?P<comment> --[^\n]*\n ) | (?P<command> \\[^\n]*\n ) | (?P<end> ; )
  | (?P<block> /\*(?: [^*/] | \*(?!/) | /(?!\*) )*\*/ )  # one in another is refused
  | (?P<quoted> "[^"]*" | (?<![\w$\x80-\xff])
        (?: [eE]'(?:[^'\\]|\\.|'')*'(?!\s*(?:'|\Z)) | [bBxX]?'[^']*'
          | \$((?:[a-zA-Z_\x80-\xff][\w\x80-\xff]*)?)\$.*?\$\6\$ ) )
  | (?P<plain> (?: [^-'"$\\;/eEbBxX] | [eEbBxX](?!') | -(?!-) | /(?!\*)
             | (?<![\w$\x80-\xff])\$\d+(?![\w$\x80-\xff]) )+ )
    """)
# What follows in a definition may be a subscription's or a user mapping's password.
PASSWORD = re.compile(r"(?i)(password\W).*|(://)[^@\s]*@")
# It needs rows, which the reference lacks.
REFRESH = re.compile(r"(; Type: MATERIALIZED VIEW DATA; .*\n--\n\n)REFRESH .*")
# Entries of a backup that DEFINITIONS does not write, or under another name.
UNMATCHED = re.compile(
    "(table data|sequence set|blobs?|blob metadata|(default )?acl|database"
    "|statistics data|security label|comment LARGE OBJECT|materialized view data) "
    "|(schema|extension|comment|procedural language) ([A-Z]+ )?(public|plpgsql)$"
)
LONGEST_TAG = 128  # bytes: a token that ends nearer to the end of a piece may go on


class Scan:
    """A backup as SQL, read piece by piece by psql's rules for quotes and COPY."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.rows: dict[str, int] = {}  # thing -> how many the backup holds
        self.sequences: dict[str, tuple[int, bool]] = {}
        self.entries: set[str] = set()  # of the table of contents
        self.roles, self.tablespaces = set(), set()
        self.unfit = ""  # why it could not be judged, though it may be healthy
        self.encoding, self.newest = "UTF8", 0  # of the versions that it names
        self.makes_public = self.begun = self.ended = False  # by header and footer
        self.seen: Counter[str] = Counter()  # statements and entries, by their kinds
        self.table = ""  # whose COPY block is open
        self.statement, self.words = bytearray(), bytearray()  # the latter unquoted
        self.line, self.rest, self.enough = 1, b"", 0

    def feed(self, piece: bytes, final: bool = False) -> None:
        """Take the next piece of the SQL."""
        if not self.seen and piece[:5] in (b"PGDMP", b"toc.d"):
            self.unfit = "an archive was compressed again: decompress it first"
        # psql passes over what follows a zero byte in its line.
        self.note("zero bytes, which no text of PostgreSQL's has", b"\0" in piece)
        self.rest += piece
        if not final and len(self.rest) < self.enough:
            return
        at, before = 0, -1
        while at > before:
            before = at
            at = self.count_rows(at) if self.table else self.take_token(at, final)
        self.rest = self.rest[at:]
        self.enough = 2 * len(self.rest)  # before another attempt: quotes may be long

    def count_rows(self, at: int) -> int:
        """Count the rows of the open COPY block, from the end of its command on."""
        end = self.rest.find(b"\n\\.", at, -1) + 1
        stop = end or max(at, len(self.rest) - 3)
        self.rows[self.table] += (rows := self.rest.count(b"\n", at, stop))
        self.line += rows + bool(end)
        other = end > 0 and self.rest[end + 2 : end + 3] != b"\n"
        self.note(f"{self.table}: its end is another: line {self.line}", other)
        self.table = self.table if not end else ""
        return end + 3 if end else stop

    def take_token(self, at: int, final: bool) -> int:
        """Take the next token, unless it may not be whole; return where to go on."""
        token = TOKEN.match(self.rest, at)
        if not token or not final and token.end() > len(self.rest) - LONGEST_TAG:
            return at
        kind, text = token.lastgroup, token[0]
        beyond = kind == "command" and not re.fullmatch(rb"\\(un)?restrict \w+\n", text)
        self.note(f"a command for psql, not for the server: line {self.line}", beyond)
        self.note("lines end in CR LF, as of text", kind == "comment" and b"\r" in text)
        if kind == "comment" and not self.words.strip():
            self.words.clear()
            self.take_comment(self.decoded(text))
        self.line += text.count(b"\n")
        kept = {"plain": text, "end": text, "quoted": b" '' "}
        self.words += kept.get(kind, b" ")
        self.statement += text if kind in kept else b"\n"
        if kind == "end" and not self.is_open():
            self.take_statement()
        return token.end()

    def is_open(self) -> bool:
        """Whether psql reads on after the semicolon: in parentheses or an SQL body."""
        words, depth, body = self.words.lower(), 0, 0
        code = re.match(rb"\s*create\s+(or\s+replace\s+)?(function|procedure)\b", words)
        for word in re.findall(rb"[()]|[a-z_\x80-\xff][\w$\x80-\xff]*", words):
            if word in b"()":
                depth = max(0, depth + (1 if word == b"(" else -1))
            elif code and not depth:
                steps = {b"begin": 1, b"case": body > 0, b"end": -(body > 0)}
                body += steps.get(word, 0)
        return depth > 0 or body > 0

    def take_comment(self, comment: str) -> None:
        """Note the header, the footer, the versions and the entries."""
        line = comment.strip()
        self.note("something follows the footer", self.ended and line != "--")
        if line == "-- PostgreSQL database cluster dump":
            self.unfit = "pg_dumpall wrote it: dump each database by pg_dump"
        self.begun |= line == HEADER
        self.ended |= line == FOOTER
        if found := re.match(r"-- Dumped (?:from|by) \w+ version (\d+)", line):
            self.newest = max(self.newest, int(found[1]))
        elif found := ENTRY.match(line):
            self.seen[found[2]] += 1
            self.entries.add(entry_name(*found.groups()))

    def take_statement(self) -> None:
        """Take what a whole statement tells; refuse what leaves its database."""
        text = self.decoded(self.statement.strip())
        words = " ".join(self.decoded(self.words).upper().split())
        self.statement, self.words = bytearray(), bytearray()
        self.seen[re.match(r"SELECT [\w.]+|CREATE SUBSCRIPTION|\w*", words)[0]] += 1
        self.note("something follows the footer", self.ended)
        if found := COPY.fullmatch(text):
            self.table = f"table {simple_name(found[1])}"
            self.rows[self.table] = self.rows.get(self.table, 0) - 1
        elif UNFIT.match(words) and not self.ended:
            self.unfit = self.unfit or "pg_dump --create or --clean without --if-exists"
        elif FORBIDDEN.match(words) or not WRITTEN.match(words):
            self.note(f"a statement that is no part of a backup: line {self.line}")
        elif found := SETVAL.fullmatch(text.replace("''", "'")):
            state = int(found[2]), found[3] == "true"
            self.sequences[f"sequence {simple_name(found[1])}"] = state
        elif found := re.match(r"SET client_encoding = '(\w+)';", text):
            self.encoding = found[1]
        elif found := re.match(rf"SET default_tablespace = (?!'')({NAME});", text):
            self.tablespaces.add(unquoted(found[1]))
        elif re.match(r"(?is)SE.*standard_conforming(?!_strings = on;\Z)", text):
            self.unfit = "standard_conforming_strings is off in it: set it for pg_dump"
        self.makes_public |= text == "CREATE SCHEMA public;"
        at = 0
        while found := ROLES.match(text, at):
            self.roles |= set(map(unquoted, re.findall(NAME, found[1])))
            at = found.end()

    def decoded(self, text: bytes | bytearray) -> str:
        """The text, read in the encoding of the backup; Python has most of them."""
        codec = self.encoding.replace("WIN", "cp").replace("KOI8", "KOI8-")
        with suppress(LookupError):
            return text.decode(codec, "surrogateescape")
        return text.decode("utf-8", "surrogateescape")

    def note(self, problem: str, is_so: bool = True) -> None:
        """Add a problem, unless one of its kind is known."""
        kind = problem.partition(": line ")[0]
        if is_so and not any(known.startswith(kind) for known in self.problems):
            self.problems.append(problem)

    def finish(self) -> "Scan":
        """Take the rest, and note what is missing."""
        self.note("it is empty", self.line == 1 and not self.rest)
        self.feed(b"\n", final=True)  # an editor may have taken the last one
        self.note(f"no header, expected {HEADER!r}", not self.begun)
        self.note(f"{self.table}: its COPY block has no end", bool(self.table))
        rest = self.words + (b"" if self.table else self.rest)
        fact = f"a quote, a comment or a statement has no end: line {self.line}"
        self.note(fact, bool(rest.strip()))
        large = self.rows[LARGE_OBJECTS] = self.seen["SELECT PG_CATALOG.LO_CREATE"]
        announced = self.seen["TABLE DATA"] if self.seen["COPY"] else 0
        for what, found, expected in [
            ("COPY blocks", self.seen["COPY"], announced),
            ("values of sequences", len(self.sequences), self.seen["SEQUENCE SET"]),
            ("ends of transactions", self.seen["COMMIT"], self.seen["BEGIN"]),
            ("data of large objects", self.seen["SELECT PG_CATALOG.LO_OPEN"], large),
        ]:
            self.note(f"{what}: found {found}, expected {expected}", found != expected)
        self.note(f"no footer, expected {FOOTER!r}", not self.ended)
        return self


def simple_name(name: str) -> str:
    """The quoted name without the quotes that none of its letters need."""
    return re.sub('"([a-z_][a-z0-9_]*)"', r"\1", name)


def unquoted(identifier: str) -> str:
    """The name that an SQL identifier stands for."""
    return re.sub(r'\A"|"\Z', "", identifier).replace('""', '"')


def entry_name(name: str, kind: str, schema: str) -> str:
    full = name if schema == "-" else f"{schema}.{name}"
    return f"{kind.lower()} {full}".replace('"', "")  # --quote-all-identifiers


def validated(backup: Backup, server: Database) -> Scan:
    """A scan of the whole backup. Raises BackupIsBad when it is damaged or too old."""
    fact, scan, cut = "the backup is damaged", Scan(), Scan()
    with step("read the backup"):
        refuse(fact, problems_of_archive(backup))
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
        raise NotJudged(f"the backup cannot be judged: {scan.unfit}")
    problems += problems_of_source(scan, backup) if backup.source else []
    if server.run.options.live and problems:
        problems.append("if a table was truncated beside the dump, run again")
    refuse(fact, problems)
    age = time.time() - backup.written
    refuse("the backup is too old", exceeded(age, server.run.options.max_age))
    if not cut.finish().problems:
        raise NotJudged("the drill's own scan took a backup that was cut for whole")
    if not problems_of_checksum(flipped, backup.sha256):
        raise NotJudged("the drill's own checksum did not see that a bit was flipped")
    return scan


def problems_of_source(scan: Scan, backup: Backup) -> list[str]:
    """What the source had and the backup has otherwise: rows, values of sequences."""
    rows = {thing: count for thing, (count, _) in backup.source.rows.items()}
    counted = at_roots(scan.rows, backup.source.roots)
    problems = differing(rows, counted, "found {} rows, expected {}".format)
    # Any value will do of a sequence that moved meanwhile.
    moved = {n: scan.sequences[n] for n in backup.moved if n in scan.sequences}
    expected = backup.source.sequences | moved
    return problems + differing(expected, scan.sequences, states_apart)


# --- Contents -------------------------------------------------------------------------
LARGE_OBJECTS = "large objects"  # counted and hashed as the rows of one table


@dataclass(frozen=True)
class Contents:
    """What a database holds."""

    rows: dict[str, tuple[int, int]]  # thing -> how many, the sum of their hashes
    roots: dict[str, str]  # partition -> the table at the top, which has its rows
    sequences: dict[str, tuple[int, bool]]  # -> its value, whether it was called
    names: dict[str, str]  # of an object -> why no backup holds it as it is, or ""
    definitions: dict[str, str]  # entry of pg_dump's -> SQL

    @property
    def uncarried(self) -> dict[str, str]:
        return {name: why for name, why in self.names.items() if why}


# Text depends on these settings.
PINNED = """
SET timezone TO 'UTC'; SET datestyle TO 'ISO, YMD'; SET intervalstyle TO 'postgres';
SET bytea_output TO 'hex'; SET extra_float_digits TO 3; SET lc_monetary TO 'C';
SET xmloption TO 'content'; SET quote_all_identifiers TO off; SET search_path TO '';
SET standard_conforming_strings TO on; SET row_security TO off; SET jit TO off;
"""
# What belongs to the system or to an extension is nobody's to back up.
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
relation AS (
    SELECT c.*, sql, regexp_replace(sql, '"([a-z_][a-z0-9_]*)"', '\1', 'g') AS name
      FROM pg_class AS c
      JOIN pg_namespace AS n ON n.oid = c.relnamespace,
   LATERAL format('%I.%I', nspname, relname) AS sql
     WHERE nspname !~ '^pg_|^information_schema$'
       AND ('pg_class'::regclass, c.oid) NOT IN (TABLE member))
"""
# psql runs each cell of a result before \gexec as a statement.
LOCKS = RELATION + r"""
SELECT format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', sql)
  FROM relation
 WHERE relkind = 'r' \gexec
"""
SEQUENCES = RELATION + r"""
SELECT format('SELECT json_build_array(''sequence'', %L, last_value, is_called, %s) '
              'FROM %s', 'sequence ' || name, relfilenode, sql)
  FROM relation
 WHERE relkind = 'S' \gexec
"""
# A row's hash is the XOR of its values' hashes, each with a seed of its column's name:
# a restore may order the columns of an inheritance child differently. ROW() puts any
# type into text, at thrice the cost; what is named here is as exact without. The rows
# are summed, because XOR would cancel equal ones.
ROWS = RELATION + r"""
SELECT format('SELECT json_build_array(''rows'', %L, %L, count(*), '
              'coalesce(sum(%s), 0)) FROM ONLY %s AS t', 'table ' || r.name,
              'table ' || root.name, coalesce(hash, '0'), r.sql)
  FROM relation AS r
  LEFT JOIN relation AS root ON root.oid = nullif(pg_partition_root(r.oid), r.oid)
  LEFT JOIN (
       SELECT attrelid,
              string_agg(format('coalesce(' || CASE
                  WHEN atttypid = 'int4'::regtype THEN 'hashint4extended(t.%I, %s)'
                  WHEN atttypid = 'bpchar'::regtype AND atttypmod > 0  -- padded
                  THEN 'hashbpcharextended(t.%I COLLATE "C", %s)'
                  WHEN atttypid = ANY ('{bool, int2, int8, float8, numeric, date, uuid,
                      timestamp, timestamptz, text, varchar, json, jsonb}'::regtype[])
                  THEN 'hashtextextended(t.%I::text COLLATE "C", %s)'
                  ELSE 'hashtextextended(ROW(t.%I)::text COLLATE "C", %s)'
                  END || ', 0)', attname, hashtext(attname::text)), ' # ') AS hash
         FROM pg_attribute
        WHERE attnum > 0
          AND NOT attisdropped
        GROUP BY attrelid) AS h ON attrelid = r.oid
 WHERE r.relkind = 'r'
   AND NOT (r.relpersistence = 'u' AND pg_is_in_recovery())  -- it has none
"""
# The queries of ROWS, the smallest table first, with NULLs for a row that has a value.
ONE_AS_NULL = """(SELECT (NULL::%4$s).* UNION ALL
(SELECT * FROM ONLY %4$s AS s ORDER BY ROW(s.*) IS NULL OFFSET 1))"""
ALTERED = f"""{ROWS.replace("ONLY %s", ONE_AS_NULL)}
   AND pg_relation_size(r.oid) > 0
 ORDER BY pg_relation_size(r.oid), r.oid
"""
# lo_get reads at most 1 GB, and a large object holds up to 4 TB.
LARGE = r"""
SELECT json_build_array('rows', 'large objects', NULL, count(*),
           coalesce(sum(hashtextextended(ROW(l.oid, pg_get_userbyid(l.lomowner),
               obj_description(l.oid, 'pg_largeobject'),
               (SELECT string_agg(a::text, ',' ORDER BY a::text COLLATE "C")
                  FROM unnest(coalesce(lomacl, acldefault('L', lomowner))) AS a), size,
               (SELECT string_agg(md5(lo_get(l.oid, at, 1048576)), '' ORDER BY at)
                  FROM generate_series(0, size - 1, 1048576) AS at)
               )::text COLLATE "C", 0)), 0))
  FROM pg_largeobject_metadata AS l,
LATERAL lo_lseek64(lo_open(l.oid, x'40000'::integer), 0, 2) AS size;
"""
# With why no backup holds an object, or not whole, or not as it is.
NAMES = RELATION + r"""
SELECT json_build_array('name', type || ' ' || identity, CASE
       WHEN relkind = 'f' THEN 'the rows lie elsewhere'
       WHEN relkind = 'm' THEN 'the rows are made anew'
       WHEN NOT indisvalid AND relkind = 'i' THEN 'invalid, so pg_dump leaves it out'
       WHEN relpersistence = 'u' AND relkind = 'r' AND pg_is_in_recovery()
       THEN 'unlogged, and empty on a standby'
       WHEN classid = 'pg_extension'::regclass THEN 'the server makes it anew'
       WHEN EXISTS (SELECT FROM pg_trigger
                     WHERE ('pg_constraint'::regclass, tgconstraint) = (classid, objid)
                       AND tgisinternal AND tgenabled <> 'O')
       THEN 'its triggers are switched off' END)
  FROM (SELECT classid, objid
          FROM pg_depend
         UNION
        SELECT classid, objid
          FROM pg_shdepend
          JOIN pg_database AS d ON d.oid = dbid
         WHERE datname = current_database()
        EXCEPT
         TABLE member) AS o
  LEFT JOIN relation AS r ON r.oid = objid AND classid = 'pg_class'::regclass
  LEFT JOIN pg_index ON indexrelid = r.oid,
LATERAL pg_identify_object(classid, objid, 0)
 WHERE objid >= 16384
   AND classid <> 'pg_largeobject'::regclass
   AND identity !~ '(^| on | for )pg_(toast|temp_\d+)\.|_ConstraintTrigger_[a-z_]*\d+"';
"""


def contents_from(facts: str, script: str = "") -> Contents:
    """The contents that psql's facts and pg_dump's definitions tell."""
    contents = Contents({}, {}, {}, {}, entries_of(script))
    for kind, thing, *values in map(json.loads, filter(None, facts.split("\n"))):
        if kind == "rows":
            root, count, total = values
            thing = contents.roots.setdefault(thing, root) if root else thing
            had = contents.rows.get(thing, (0, 0))
            contents.rows[thing] = (had[0] + count, had[1] + total)
        elif kind == "sequence":
            contents.sequences[thing] = tuple(values[:2])
        else:
            contents.names[thing] = values[0] or ""
    return contents


def at_roots(blocks: dict[str, int], roots: dict[str, str]) -> dict[str, int]:
    """The rows of COPY blocks, with those of partitions in the partitioned table."""
    # Which partition it is can change, as by the hash of an enum, at every restore.
    counted: Counter[str] = Counter()
    for thing, rows in blocks.items():
        counted[roots.get(thing, thing)] += rows
    return counted


def entries_of(script: str) -> dict[str, str]:
    """Each entry of pg_dump's, with its owner and the SQL that makes it."""
    # What precedes the first is the dump's own: versions, settings, a random key.
    _, *parts = re.split(DEFINITION, script[: script.rfind(f"--\n{FOOTER}")])
    entries = defaultdict(str)  # two may have one comment
    for name, kind, schema, owner, sql in zip(*[iter(parts)] * 5, strict=True):
        entries[entry_name(name, kind, schema)] += f"{owner}\n{sql.strip()}\n"
    return entries


# --- The restored database, and what is expected of it --------------------------------
def provide_globals(scan: Scan, server: Database) -> None:
    """Make the roles and tablespaces of the backup, where the server is private."""
    roles, spaces = scan.roles - {"PUBLIC", "public", "CURRENT_USER"}, scan.tablespaces
    with server.session() as cursor:
        for named, known, statement in [
            # Superusers: only one owns an event trigger, and any reads for a view.
            (roles, "rolname FROM pg_roles", "CREATE ROLE %I SUPERUSER"),
            (spaces, "spcname FROM pg_tablespace", "CREATE TABLESPACE %I LOCATION ''"),
        ]:
            cursor.execute(f"SELECT {known}")
            missing = sorted(named - {name for (name,) in cursor.fetchall()})
            if missing and not server.private:
                fact = f"the server lacks {statement.split()[1]} {', '.join(missing)}"
                raise NotJudged(fact, "use a server that has them, or --throwaway")
            for name in missing:
                cursor.execute("SELECT format(%s, %s::text)", [statement, name])
                cursor.execute(*cursor.fetchone())
    if not server.private and scan.seen["CREATE SUBSCRIPTION"]:
        raise NotJudged("a subscription would keep its database", "use --throwaway")


def load_backup(backup: Backup, restored: Database) -> tuple[Any, ...]:
    """The seconds that loading took, and the reference, if any, loaded beside it."""
    jobs, like = restored.run.options.jobs, backup.like
    references = [made_database(restored, "reference", like)] if backup.source else []
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
        beside = [enter(reference.psql(script)) for reference in references]
        wait_for(load)
        wait_for(*readers)
        seconds = time.monotonic() - began
        wait_for(*beside)
    return seconds, *references


def read_both(backup: Backup, scan: Scan, *databases: Database) -> tuple[Contents, ...]:
    """What the restored database holds, and what is expected of it."""
    with step("read the restored database"), ExitStack() as stack:
        programs = [each.client(*DEFINITIONS) for each in databases]
        processes = [*map(stack.enter_context, [databases[0].facts(), *programs])]
        wait_for(*processes)
        facts, script, *others = (text_of(process.stdout) for process in processes)
    found = contents_from(facts, script)
    if not backup.source:
        return found, expected_of_scan(scan, found)
    # What the reference lacks, as REFRESH, is expected as the source has it.
    definitions = backup.source.definitions | entries_of(*others)
    known = {"sequences": scan.sequences, "definitions": definitions}
    return found, replace(backup.source, **known)


def expected_of_scan(scan: Scan, found: Contents) -> Contents:
    """What an existing backup says of itself; the rest is taken as it was found."""
    blocks = {t: n * bool(scan.seen["INSERT"]) for t, (n, _) in found.rows.items()}
    blocks |= at_roots(scan.rows, found.roots)
    rows = {thing: (blocks[thing], hashed) for thing, (_, hashed) in found.rows.items()}
    entries = {thing: "" for thing in scan.entries if not UNMATCHED.match(thing)}
    known = {"rows": rows, "sequences": found.sequences | scan.sequences}
    return replace(found, definitions=entries | found.definitions, **known)


def uncompared(backup: Backup, scan: Scan, found: Contents) -> dict[str, str]:
    """What is not compared, and why."""
    if not backup.source:
        why = {"values and definitions": "an existing backup has no source"}
        inserts = {"the number of rows": "the backup holds them as INSERT"}
        return why | (inserts if scan.seen["INSERT"] else {}) | found.uncarried
    why = dict(backup.source.uncarried)
    for thing, (before, after) in backup.moved.items():
        low, high = sorted([before, after or before])
        if not after or not low[0] <= scan.sequences.get(thing, low)[0] <= high[0]:
            why[thing] = "it was set, restarted or dropped meanwhile"
    return why


# --- Differences, and the controls ----------------------------------------------------
def differences(expected: Contents, found: Contents) -> list[str]:
    """One sentence for each difference; a definition speaks before its name."""
    definitions = differing(expected.definitions, found.definitions, first_difference)
    definitions += unexpected(expected.definitions, found.definitions)
    apart, both = expected.uncarried, (expected.names, found.names)
    names = [{n: "" for n in sorted(each) if n not in apart} for each in both]
    objects = definitions or differing(*names, str) + unexpected(*names)
    objects += [f"{x}: {why}" for x, why in found.uncarried.items() if x not in apart]
    rows = differing(expected.rows, found.rows, rows_apart)
    sequences = differing(expected.sequences, found.sequences, states_apart)
    return [*dict.fromkeys(objects + rows + sequences)]


def unexpected(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [f"{thing}: unexpected" for thing in found if thing not in expected]


def differing(expected: dict, found: dict, sentence: Callable[..., str]) -> list[str]:
    """A sentence for each thing that is missing or different."""
    missing = [f"{thing}: missing" for thing in expected if thing not in found]
    both = {x: (found[x], expected[x]) for x in expected if x in found}
    return missing + [f"{x}: {sentence(*b)}" for x, b in both.items() if b[0] != b[1]]


def rows_apart(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """A count speaks before a hash."""
    if found[0] != expected[0]:
        return f"found {found[0]} rows, expected {expected[0]}"
    return f"{found[0]} rows as expected, with other values"


def states_apart(*states: tuple[int, bool]) -> str:
    """The states of a sequence, as found and as expected."""
    said = (f"{value}" + ", not called yet" * (not called) for value, called in states)
    return "found {}, expected {}".format(*said)


def first_difference(found: str, expected: str) -> str:
    """The first line on each side that the other lacks, where they begin to differ."""
    sides = (map(str.strip, text.splitlines()) for text in (found, expected))
    got, want = ([line.rstrip(",;") for line in side if line] for side in sides)
    one = next((line for line in got if line not in want), "nothing")
    other = next((line for line in want if line not in got), "nothing")
    if one == other:
        return "the same lines, in another order"
    begin = max(0, len(os.path.commonprefix([one, other])) - 30)
    shown = [PASSWORD.sub(r"\1\2[REDACTED]", line)[begin:] for line in (one, other)]
    cut = [f"{'...' * bool(begin)}{line:.100}" for line in shown]
    return f"found {cut[0]}, expected {cut[1]}"


def require_differences_seen(restored: Database, found: Contents) -> None:
    """Raise NotJudged unless a change of a name, a definition and a value is seen."""
    changed = {}
    if name := next((name for name, why in found.names.items() if not why), ""):
        changed["names"] = {n: found.names[n] for n in found.names if n != name}
    if found.definitions:
        changed["definitions"] = dict([*found.definitions.items()][1:])
    with restored.session() as cursor:
        cursor.execute(PINNED)
        cursor.execute(ALTERED)
        for query in cursor.fetchall():
            cursor.execute(*query)
            altered = contents_from(json.dumps(*cursor.fetchone())).rows
            changed["rows"] = found.rows | altered
            if changed["rows"] != found.rows:  # else no row has a value
                break
    for what, altered in changed.items():
        if not differences(found, replace(found, **{what: altered})):
            raise NotJudged(f"the drill's own comparison saw no change of {what}")


# --- The evidence ---------------------------------------------------------------------
VERDICTS = {BackupIsBad: "failed", NotJudged: "error", unittest.SkipTest: "skipped"}
HEADLINES = {"passed": "The backup restores", "failed": "The backup is bad"}
HEADLINES["error"] = "The backup could not be judged"
HEADLINES["skipped"] = "The drill was skipped"


class Evidence:
    """The facts of a run, and the verdict on each act, as they become known."""

    def __init__(self, options: Options) -> None:
        self.options, self.why = options, ""
        source = "the configured database" if options.live else "a rehearsal"
        source = f"the backup {options.backup.name}" if options.backup else source
        limits = {"max_age": options.max_age, "max_restore": options.max_restore}
        self.facts: dict[str, Any] = {"version": 1, "verdict": "passed", "tests": {}}
        self.facts |= {"source": source, "database": options.database}
        self.facts |= {"time": time.strftime(ISO, time.gmtime())}
        self.facts |= {f"{name}_seconds": n for name, n in limits.items() if n}

    def judge(self, act: str, sentence: str, work: Callable[[], object]) -> None:
        """Do the work of an act; put its verdict, a sentence, its seconds on record."""
        log.info("")  # unittest has begun a line
        began, verdict = time.monotonic(), "passed"
        try:
            work()
        except BaseException as fault:  # noqa: BLE001  it is raised again
            if isinstance(fault, OSError):  # a full disk, a folder without rights
                fault = NotJudged(fault, hint_for(str(fault)))
            elif isinstance(fault, Exception) and type(fault) not in VERDICTS:
                fault = NotJudged("a fault of the drill's own", told(fault, False))
            verdict, sentence = VERDICTS.get(type(fault), "error"), str(fault)
            raise fault.with_traceback(None) from None
        finally:
            seconds = round(time.monotonic() - began, 3)
            test = {"verdict": verdict, "sentence": sentence, "seconds": seconds}
            self.facts["tests"][act] = test
            if self.facts["verdict"] == "passed" != verdict:
                self.facts["verdict"], self.why = verdict, sentence

    def publish(self) -> None:
        """Print the evidence; write the report; append it to the job's summary."""
        facts, headline = self.facts, HEADLINES[self.facts["verdict"]]
        if facts["verdict"] == "passed" and "restore" not in facts["tests"]:
            headline = "The backup was not restored yet"
        text = f"{headline}. {'; '.join(filter(None, map(told_of, facts.items())))}."
        print(f"\n{textwrap.fill(text, 88)}", file=sys.stderr)
        if self.why and os.environ.get("GITHUB_ACTIONS") == "true":
            said = self.why.partition("\n")[0].replace("%", "%25").replace("\r", "%0D")
            print(f"::error title=Backup drill::{said}", flush=True)
        if path := self.options.report:
            write_evidence(path, "w", f"{json.dumps(facts, indent=2)}\n")
        if path := os.environ.get("GITHUB_STEP_SUMMARY"):
            fenced = f"```\n{self.why}\n```\n\n" if self.why else ""
            write_evidence(Path(path), "a", f"### Backup drill\n\n{text}\n\n{fenced}")


def told_of(item: tuple[str, Any]) -> str:
    """A fact in words; nothing of one that goes without saying."""
    name, fact = item
    if name == "tests":
        fact = {act: test["verdict"] for act, test in fact.items()}
    if name == "not_compared":
        fact = {thing: f"({why})" if why else "" for thing, why in fact.items()}
    if isinstance(fact, dict):
        fact = ", ".join(" ".join(pair).strip() for pair in fact.items())
    elif isinstance(fact, list):
        fact = len(fact)
    elif "seconds" in name:
        fact = in_words(fact)
    silent = name in ("version", "verdict") or fact == "default"
    label = re.sub("seconds_|_seconds", "", name).replace("_", " ")
    fact = f"{fact:,}" if isinstance(fact, int) else fact
    return "" if silent else f"{label}: {fact}"


def write_evidence(path: Path, mode: str, text: str) -> None:
    """Write a file of evidence, or add to it. Raises NotJudged when that fails."""
    try:
        with path.open(mode, encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise NotJudged(f"the evidence cannot be written: {error}") from None


def exceeded(seconds: float, limit: float | None) -> list[str]:
    """Whether a duration is above its limit, or below zero, as a clock's fault is."""
    sentence = f"found {in_words(seconds)}, expected {in_words(limit or 0)} or less"
    return [sentence] * (limit is not None and not -60 < seconds <= limit)


def in_words(seconds: float) -> str:
    """A duration: 0.3 s, or 2 days, 3:00:00."""
    long = timedelta(seconds=round(seconds))
    return f"{seconds:.3g} s" if seconds < 60 else str(long)


# --- The command line -----------------------------------------------------------------
def duration(text: str) -> float:
    """A number of seconds, or one with s, m, h or d."""
    found = re.fullmatch(r"(\d+\.?\d*)([smhd]?)", text)
    if found and float(found[1]) >= 0.001:
        return float(found[1]) * {"m": 60, "h": 3600, "d": 86400}.get(found[2], 1)
    raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 900, 15m or 26h")


def parsed(argv: list[str]) -> tuple[Options, list[str]]:
    """The options, and the arguments for unittest. Raises SystemExit."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Other arguments go to unittest: -k restore. Status 0: all passed.",
        allow_abbrev=False,
    )
    add, source = parser.add_argument, parser.add_mutually_exclusive_group()
    yes, file = {"action": "store_true"}, {"type": Path, "metavar": "FILE"}
    span = {"type": duration, "metavar": "DURATION"}
    made = ("plain", "custom", "directory")
    add("-v", "--verbose", **yes, help="show each step and its duration")
    add("--strict", **yes, help="no skip, no substitute: programs, versions, database")
    add("--throwaway", **yes, help="work on a private server, started for this run")
    add("--timeout", **span, default=30.0, help="bound on each operation, default 30")
    add("--database", metavar="ALIAS", default="default", help="in settings.DATABASES")
    add("--format", choices=made, default="plain", help="of a new backup (plain)")
    add("--jobs", type=int, metavar="N", default=1, help="parallel workers, default 1")
    source.add_argument("--live", **yes, help="back the configured database up itself")
    source.add_argument("--backup", **file, help="restore one that exists, of any kind")
    add("--max-age", **span, help="fail if the --backup was written longer ago: 26h")
    add("--max-restore", **span, help="fail if loading the backup takes longer: 15m")
    add("--report", **file, help="write the evidence as JSON")
    options, others = parser.parse_known_args(argv)
    options.rehearsal = not (options.live or options.backup)
    options.use_configured = options.live or not options.throwaway
    if problem := contradiction(options, others):
        parser.error(problem)
    return options, others


def contradiction(options: Options, others: list[str]) -> str:
    """What cannot be meant, though each argument can."""
    if any(each.startswith("--l") for each in others):  # unittest takes abbreviations
        return "--locals would show the settings, with their passwords"
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
        logging.basicConfig(format="%(message)s")
        log.setLevel(logging.INFO if case.options.verbose else logging.WARNING)
        how = {"exit": False, "verbosity": 1 + case.options.verbose}
        how["warnings"] = "ignore"  # which are about other people's code
        # -f: a test would repeat what the one before it could not do.
        result = unittest.main(argv=[argv[0], "-f", *others], **how).result
    except SystemExit as stop:  # of either parser
        return 1 if stop.code else 0
    except KeyboardInterrupt as ended:
        print(f"\ninterrupted ({ended})", file=sys.stderr)
        return 1
    if result.testsRun == 0 and not result.skipped and result.wasSuccessful():
        print("no test was run", file=sys.stderr)
        return 1
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
