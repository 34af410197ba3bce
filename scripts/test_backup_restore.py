#!/usr/bin/env python3
"""Prove that this Django project's PostgreSQL backup restores.

Three tests, one after the other, as one night hands over to the next morning:

    test_backup_creation    a source database is written to a backup
    test_backup_validation  the backup is whole and holds every row of every table
    test_backup_restore     a fresh database loaded from it is the source again

The source is a rehearsal, made for this run: the project's migrations and a sample
of awkward values. With --live it is the configured database, which is only read.
With --backup FILE there is no source: the file is the witness of its own contents.

Throughout this file:

    server       where PostgreSQL listens and as whom we speak
    database     one database there
    scratch      made by this run, carries its mark, is dropped by it
    source       the database that is backed up
    backup       the file or folder that holds it
    restored     the scratch database loaded from the backup
    reference    a scratch database with the source's schema and none of its rows
    reading      what one pass over the backup finds in it
    contents     what a database holds, as thing -> aspect -> value
    difference   one sentence on how the restored database departs from its source

A failure (BackupIsBad) says that the backup is bad, an error (NotJudged) that it could
not be judged. The tests come first; what they use follows in the order of its use.
"""

import argparse
import atexit
import copy
import fcntl
import functools
import hashlib
import io
import json
import logging
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from typing import Any, BinaryIO, TextIO
from urllib.parse import quote

__unittest = True  # unittest then shows our sentences without the frames of this file

log = logging.getLogger("backup_drill")

MARK = "backup_drill_"  # what the names of our databases and folders begin with

Contents = dict[str, dict[str, Any]]  # 'table public.case' -> 'rows' -> 100


class BackupIsBad(AssertionError):
    """The backup was judged and found wanting: a failure, in unittest's words."""


class NotJudged(Exception):
    """The backup could not be judged: an error, in unittest's words."""


@dataclass(frozen=True)
class Options:
    """What the command line decides."""

    verbose: bool = False
    strict: bool = False
    throwaway: bool = False
    timeout: float = 30.0  # seconds, for each operation
    format: str = "plain"
    jobs: int = 1
    live: bool = False
    backup: Path | None = None
    report: Path | None = None


# --- The sample -----------------------------------------------------------------------

SAMPLE = r"""
CREATE SCHEMA backup_drill;
COMMENT ON SCHEMA backup_drill IS 'It''s a sample; "quotes", \ and
a second line';
CREATE TYPE backup_drill.mood AS ENUM ('good', 'bad', 'it''s complicated');
CREATE DOMAIN backup_drill.percent AS numeric(5, 2) CHECK (VALUE BETWEEN 0 AND 100);
CREATE SEQUENCE backup_drill.ticket START 1000 INCREMENT 10;

CREATE TABLE backup_drill.item (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind     varchar(10) NOT NULL DEFAULT 'plain'
             CHECK (kind IN ('plain', 'awkward')),  -- deparses otherwise once restored
    "Note"   text,                                  -- upper case needs its quotes
    ticket   integer DEFAULT nextval('backup_drill.ticket'),
    amount   numeric,
    ratio    double precision,
    share    backup_drill.percent,
    mood     backup_drill.mood,
    born     date,
    seen     timestamptz,
    lasted   interval,
    raw      bytea,
    parsed   jsonb,
    verbatim json,
    tags     text[],
    span     int4range,
    length   integer GENERATED ALWAYS AS (length("Note")) STORED
);
INSERT INTO backup_drill.item (kind, "Note") VALUES
    ('awkward', 'a ''quote'' and a "double" one'),
    ('awkward', 'a \backslash, and one at the end \'),
    ('awkward', E'a\ttab, a\nnew line, a\rreturn'),
    ('awkward', '\.'),                              -- ends COPY when not escaped
    ('awkward', E'COPY backup_drill.item (id) FROM stdin;\n1\n\\.\n'),
    ('awkward', '-- PostgreSQL database dump complete'),
    ('awkward', NULL),                              -- beside '', which is not NULL
    ('awkward', ''),
    ('awkward', '\N'),                              -- COPY's NULL, as a text
    ('awkward', 'naïve Ünïcödé, 日本語, العربية'),
    ('awkward', 'e' || U&'\0301' || ' is not é'),   -- decomposed, and composed
    ('awkward', '🚑 needs four bytes'),
    ('awkward', '  blanks at both ends  '),
    ('awkward', repeat('long enough for TOAST ', 5000));
INSERT INTO backup_drill.item (kind, amount, ratio, share) VALUES
    ('awkward', 'NaN', 'NaN', 0),
    ('awkward', '1.00', 'Infinity', 100),           -- 1.00 is not 1.0 as text
    ('awkward', '1.0', '-Infinity', 0.01),
    ('awkward', 12345678901234567890.123456789, '-0', 99.99),
    ('awkward', -1e-30, 0.1::float8 + 0.2, NULL);   -- all 17 digits
INSERT INTO backup_drill.item (kind, born, seen, lasted) VALUES
    ('awkward', '0044-03-15 BC', '2024-02-29 23:59:59.999999+14', '1 mon -1 day'),
    ('awkward', 'infinity', '-infinity', '-00:00:00.000001'),
    ('awkward', '9999-12-31', '0001-01-01 00:00:00+00 BC', '178000000 years');
INSERT INTO backup_drill.item (kind, raw, parsed, verbatim, tags, span, mood) VALUES
    ('awkward', '\x00ff005c0a', '{"b": [1, null], "a": 1.0}', '{"b":1,  "b":2}',
     ARRAY['NULL', NULL, '', '{}', 'a,"b'], '[1,5)', 'it''s complicated'),
    ('awkward', '', 'null', 'null', '{}', 'empty', 'good'),
    ('awkward', NULL, '"\u00e9"', '"\u00e9"', NULL, '(,)', 'bad');
INSERT INTO backup_drill.item ("Note")
SELECT 'row ' || n
  FROM generate_series(1, 100 - (SELECT count(*) FROM backup_drill.item)) AS n;
SELECT nextval('backup_drill.ticket');              -- a gap behind the last row
CREATE INDEX item_awkward ON backup_drill.item (ticket)
 WHERE kind IN ('awkward', 'odd') AND ticket BETWEEN 0 AND 9999;
CREATE INDEX item_lower ON backup_drill.item (lower("Note") DESC NULLS LAST)
 WHERE length < 1000;

CREATE TABLE backup_drill.node (                    -- a tree
    id       integer GENERATED BY DEFAULT AS IDENTITY (START 7 INCREMENT 3) PRIMARY KEY,
    parent   integer REFERENCES backup_drill.node DEFERRABLE INITIALLY DEFERRED,
    item     bigint NOT NULL REFERENCES backup_drill.item ON DELETE CASCADE,
    place    integer UNIQUE DEFERRABLE,
    reserved int4range,
    EXCLUDE USING gist (reserved WITH &&)
);
INSERT INTO backup_drill.node (parent, item, place, reserved)
SELECT nullif(7 + 3 * (n / 2), 7 + 3 * n), n + 1, n, int4range(n, n + 1)
  FROM generate_series(0, 99) AS n;
COMMENT ON COLUMN backup_drill.node.place IS 'naïve 🚑';

CREATE TABLE backup_drill.event (what text, at timestamptz);  -- no key, equal rows
INSERT INTO backup_drill.event
SELECT 'twice', timestamptz '2024-01-01 00:00:00+00' + n % 50 * interval '1 hour'
  FROM generate_series(1, 100) AS n;
ALTER TABLE backup_drill.event ENABLE ROW LEVEL SECURITY;
CREATE POLICY event_recent ON backup_drill.event FOR SELECT USING (at > '2024-01-02');

CREATE VIEW backup_drill.awkward AS
SELECT i.id, i."Note"
  FROM backup_drill.item AS i
 WHERE i.kind IN ('awkward', 'odd');
CREATE MATERIALIZED VIEW backup_drill.tally AS
SELECT kind, count(*) AS items
  FROM backup_drill.item
 GROUP BY kind;
CREATE FUNCTION backup_drill.keep_place() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    /* A reader of the backup must not take this for data:
COPY backup_drill.fake (id) FROM stdin;
1
\.
-- PostgreSQL database dump complete
    */
    NEW.place := coalesce(NEW.place, NEW.id + 1000);
    RETURN NEW;
END
$body$;
CREATE TRIGGER node_place BEFORE INSERT ON backup_drill.node
   FOR EACH ROW WHEN (NEW.place IS NULL) EXECUTE FUNCTION backup_drill.keep_place();
GRANT USAGE ON SCHEMA backup_drill TO PUBLIC;
GRANT SELECT ON backup_drill.item TO PUBLIC;
GRANT UPDATE (what) ON backup_drill.event TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA backup_drill GRANT SELECT ON TABLES TO PUBLIC;
SELECT lo_from_bytea(4711, '\x00ff0a5c2e0a');
COMMENT ON LARGE OBJECT 4711 IS 'six bytes';
"""

# Through the identity columns, the sequence and the trigger of the sample.
SAMPLE_INSERTS = """
INSERT INTO backup_drill.item ("Note") VALUES ('after the restore');
INSERT INTO backup_drill.node (item)
SELECT max(id)
  FROM backup_drill.item;
"""


# --- The story ------------------------------------------------------------------------


def act(name: str, after: str = "") -> Callable[[Callable], Callable]:
    """Have a method's outcome put on record; it fails when `after` did not pass."""

    def on_record(method: Callable) -> Callable:
        @functools.wraps(method)
        def judged_method(owner: Any) -> None:
            owner.evidence.judge(name, after, method, owner)

        return judged_method

    return on_record


class BackupRestoreTests(unittest.TestCase):
    """A backup is made, is whole, and brings everything back.

    `load_tests` keeps the tests in this order. Under pytest, which sorts by name, and
    with -k, a test makes the backup that it needs: each is right alone.
    """

    options = Options()

    @classmethod
    def setUpClass(cls) -> None:
        # Ctrl-C leaves unittest before it has cleaned up after the class.
        atexit.register(cls.doClassCleanups)
        cls.made: Backup | None = None
        cls.evidence = Evidence()
        cls.enterClassContext(speaking(cls.options.verbose))
        cls.addClassCleanup(publish, cls.evidence, cls.options)
        cls.enterClassContext(interruptible())
        cls.enterClassContext(without_libpq_variables())
        cls.find_server()

    @classmethod
    @act("set-up")
    def find_server(cls) -> None:
        """Find the server, with nothing of the project's in reach."""
        cls.folder = cls.enterClassContext(private_folder())
        servers = drill_server(cls.options, cls.folder)
        cls.configured, cls.server = cls.enterClassContext(servers)
        cls.evidence.note(server=cls.server.version)

    @classmethod
    def backup(cls) -> "Backup":
        """The backup of this run, made on first use."""
        if cls.made is None:
            cls.made = create_backup(
                cls.options, cls.configured, cls.server, cls.folder
            )
            cls.evidence.note(size=cls.made.size, sha256=cls.made.sha256)
        return cls.made

    @act("creation")
    def test_backup_creation(self) -> None:
        """The source is written to a new backup."""
        backup = self.backup()
        if backup.size < backup.least_size:
            raise BackupIsBad(
                f"the backup is too small to hold its source\n"
                f"  found {backup.size} bytes, expected {backup.least_size} or more"
            )

    @act("validation", after="creation")
    def test_backup_validation(self) -> None:
        """The backup is whole and holds every row of every table."""
        backup = self.backup()
        with step("read the backup"):
            whole, *damaged = readings_of(backup, self.server)
        refuse("the backup is damaged", problems_in(whole, backup))
        for control in damaged:
            if not problems_in(control, backup):
                raise NotJudged("the drill took a damaged copy for a whole backup")

    @act("restore", after="validation")
    def test_backup_restore(self) -> None:
        """A fresh database loaded from the backup is the source again."""
        backup = self.backup()
        with scratch_database(self.server, "restored", backup.locale) as restored:
            seconds = load_backup(backup, restored, self.options.jobs)
            self.evidence.note(seconds_to_restore=seconds)
            found = contents_of(restored)
            refuse(
                "the restored database differs from its source",
                departures(backup, found, restored),
            )
            self.evidence.note(objects=len(found))
            with step("use the restored database"):
                faults, _ = faults_in(restored, backup.rehearsal)
                refuse("the restored database cannot be used", faults)
            with step("change one value, and see it"):
                prove_that_a_change_is_seen(restored, found)


def load_tests(
    loader: unittest.TestLoader, _tests: unittest.TestSuite, _pattern: str | None
) -> unittest.TestSuite:
    """Creation, validation, restore: by name, unittest would restore too early."""
    order = ["creation", "validation", "restore"]
    names = loader.getTestCaseNames(BackupRestoreTests)
    names = sorted(names, key=lambda name: order.index(name.rpartition("_")[2]))
    return unittest.TestSuite(map(BackupRestoreTests, names))


def refuse(fact: str, sentences: list[str], most: int = 20) -> None:
    """Fail with the fact and the first sentences, unless there are none."""
    if sentences:
        shown = [f"  {sentence}" for sentence in sentences[:most]]
        if len(sentences) > most:
            shown.append(f"  ... and {len(sentences) - most} more")
        raise BackupIsBad("\n".join([fact, *shown]))


# --- Around the tests: what they say, what they withstand ------------------------------


@contextmanager
def speaking(verbose: bool) -> Iterator[None]:
    """Warnings go to stderr, and with `verbose` every step."""
    handler = logging.StreamHandler()
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Report what was done and how long it took."""
    began = time.monotonic()
    try:
        yield
    except BaseException:
        log.info("%8.2f s  %s: stopped here", time.monotonic() - began, what)
        raise
    log.info("%8.2f s  %s", time.monotonic() - began, what)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, and neither disturbs the cleaning up."""

    def interrupt(number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    handlers = {
        each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


@contextmanager
def without_libpq_variables() -> Iterator[None]:
    """Only the settings say where the server is; libpq's variables do not."""
    kept = {"PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR"}  # where files of theirs lie
    hidden = {
        name: os.environ.pop(name)
        for name in [*os.environ]
        if name.startswith("PG") and name not in kept
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this account can read, removed with all that is in it.

    Its lock tells the next run whether somebody is still there.
    """
    sweep_folders()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=MARK))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # else another run swept it before it was locked
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(lock)


def sweep_folders() -> None:
    """Remove the folders of runs that were killed, and end their servers."""
    for folder in Path(tempfile.gettempdir()).glob(f"{MARK}*"):
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            continue
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            stop_orphaned_server(folder / "data" / "postmaster.pid")
            shutil.rmtree(folder)
            log.warning("removed the folder of a killed run: %s", folder)
        finally:
            os.close(lock)


# --- From the settings to a server ----------------------------------------------------


@dataclass(frozen=True)
class Server:
    """Where PostgreSQL listens, as whom we speak, and with which programs."""

    settings: dict[str, Any] = field(repr=False)  # in Django's form
    timeout: float  # seconds, for each operation
    mark: str  # what the names of this run's databases begin with
    version: str = ""
    programs: dict[str, Path] = field(default_factory=dict)

    @property
    def major(self) -> int:
        """The major version: 15 of 15.18."""
        return int(re.match(r"\d+", self.version)[0])

    def scrubbed(self, text: str) -> str:
        """The text without the passwords of the settings."""
        return scrubbed(text, self.settings)


@dataclass(frozen=True)
class Database:
    """One database on a server."""

    server: Server
    name: str


def scrubbed(text: str, settings: dict[str, Any]) -> str:
    """The text with [REDACTED] for each password of the settings, as is and quoted."""
    options = settings.get("OPTIONS", {})
    for secret in (
        settings.get("PASSWORD"),
        options.get("password"),
        options.get("sslpassword"),
    ):
        if secret:
            for form in (secret, quote(secret, safe=""), quote(secret)):
                text = text.replace(form, "[REDACTED]")
    return text.strip()


@contextmanager
def drill_server(options: Options, folder: Path) -> Iterator[tuple[Server, Server]]:
    """The source's server, and the server for scratch work; most often the same."""
    if not any(candidates("pg_dump")):
        missing = "no PostgreSQL programs: neither on PATH nor in the usual folders"
        hint = "install them, such as with: apt-get install postgresql-client"
        if options.strict:
            raise NotJudged(f"{missing}\n  {hint}")
        log.warning("the backup drill is skipped: %s\n  %s", missing, hint)
        raise unittest.SkipTest(missing)
    with sealed_project() as settings, ExitStack() as stack:
        mark = f"{MARK}{secrets.token_hex(8)}_"
        configured = configured_server(settings, options, mark)
        if configured is None or options.throwaway:
            major = configured.major if configured and options.live else None
            private = throwaway_server(folder, mark, options.timeout, major)
            server = stack.enter_context(private)
        else:
            server = configured
        stack.enter_context(holding_mark(server))
        require_right_to_create_databases(server)
        sweep_databases(server)
        yield configured or server, server


def configured_server(
    settings: dict[str, Any], options: Options, mark: str
) -> Server | None:
    """The server of settings.DATABASES["default"], None when there is no database."""
    from django.db.utils import load_backend

    engine = settings["ENGINE"]
    if engine == "django.db.backends.dummy":
        ask = "set DATABASE_URL, or settings.DATABASES['default']"
        if options.live or (options.strict and not options.throwaway):
            raise NotJudged(f"no database is configured\n  {ask}")
        log.warning("no database is configured: rehearsing on a throwaway server")
        return None
    if load_backend(engine).DatabaseWrapper.vendor != "postgresql":
        raise NotJudged(f"the configured database is not PostgreSQL but {engine}")
    return introduced(Server(settings, options.timeout, mark), options.strict)


def introduced(server: Server, strict: bool = False) -> Server:
    """The server, with its version and the programs that fit it."""
    with session(Database(server, server.settings["NAME"])) as cursor:
        cursor.execute("SHOW server_version")
        version = cursor.fetchone()[0].split()[0]
    server = replace(server, version=version)
    programs = {name: fitting_program(name, server, strict) for name in PROGRAMS}
    return replace(server, programs=programs)


@contextmanager
def sealed_project() -> Iterator[dict[str, Any]]:
    """Set Django up with no database in reach; yield the settings of the default one.

    From here on the project's code finds a database only where `lent` lends it one.
    """
    load_settings()
    # Imported late: settings must be found first, and an import must do nothing else.
    import django
    from django.db import connections

    kept = {alias: dict(connections.settings[alias]) for alias in connections.settings}
    dummy = connections.configure_settings({})["default"]
    try:
        point_project_at(lambda _alias: dummy)
        django.setup()
        log.disabled = False  # LOGGING may disable the loggers that it does not name
        yield kept["default"]
    finally:
        point_project_at(kept.get)


def load_settings() -> None:
    """Import the settings that DJANGO_SETTINGS_MODULE, or else manage.py, names."""
    root = Path(__file__).resolve().parent.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        manage = root / "manage.py"
        text = manage.read_text(encoding="utf-8") if manage.is_file() else ""
        named = re.search(r"""DJANGO_SETTINGS_MODULE["'],\s*["']([\w.]+)""", text)
        if named is None:
            raise NotJudged("no settings: set DJANGO_SETTINGS_MODULE")
        os.environ["DJANGO_SETTINGS_MODULE"] = named[1]
    from django.conf import settings

    try:
        settings.DATABASES  # noqa: B018
    except ImportError as error:
        raise NotJudged(f"the settings cannot be imported: {error}") from None
    except ValueError as error:
        # Its words may be a piece of a password that a URL cannot hold as it is.
        raise NotJudged(
            f"the settings cannot be read: {type(error).__name__}\n"
            "  in DATABASE_URL, percent-encode what is special in the password"
        ) from None


def point_project_at(settings_of: Callable[[str], dict[str, Any]]) -> None:
    """Make each alias of the project lead to the database that the settings name."""
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        connection.close()
        del connections[connection.alias]
    for alias in connections.settings:
        # In place: it is the very dictionary that settings.DATABASES holds.
        connections.settings[alias].clear()
        connections.settings[alias].update(settings_of(alias))


@contextmanager
def lent(database: Database) -> Iterator[None]:
    """Let the project's code reach this database, under every alias, and no other.

    Another alias would be a trap: a data migration that uses the default connection
    would write to the configured database.
    """
    from django.db import connections

    sealed = dict(connections.settings["default"])
    settings = settings_for(database)
    point_project_at(lambda _alias: settings)
    try:
        # Migrations print, and a quiet run shows nothing but its dots.
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        point_project_at(lambda _alias: sealed)


def settings_for(database: Database) -> dict[str, Any]:
    """Django's settings for the database, without a pool, which would outlive it."""
    settings = database.server.settings
    options = {k: v for k, v in settings["OPTIONS"].items() if k != "pool"}
    return settings | {"NAME": database.name, "OPTIONS": options}


# Text output depends on these, and a client cannot wait for ever on an idle session.
PINNED = """
SET timezone TO 'UTC';
SET datestyle TO 'ISO, YMD';
SET intervalstyle TO 'postgres';
SET bytea_output TO 'hex';
SET extra_float_digits TO 3;
SET lc_monetary TO 'C';
SET xmloption TO 'content';
SET quote_all_identifiers TO off;
SET search_path TO '';
SET row_security TO off;
SET jit TO off;
SET idle_in_transaction_session_timeout TO 0;
SET idle_session_timeout TO 0;
"""


@contextmanager
def session(database: Database, snapshot: str | None = None) -> Iterator[Any]:
    """A cursor on a connection of its own; with a snapshot, in its transaction.

    Raises NotJudged, with the server's sentence, in place of a database error.
    """
    from django.db.utils import load_backend

    server = database.server
    settings = settings_for(database)
    bound = {"connect_timeout": max(2, round(server.timeout))}  # libpq's least
    settings["OPTIONS"] = bound | settings["OPTIONS"]
    django = load_backend(settings["ENGINE"]).DatabaseWrapper(settings)
    connection = None
    try:
        # Not django.connect(): it tells the project, whose receivers may then write.
        connection = django.get_new_connection(django.get_connection_params())
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(PINNED)
        cursor.execute(f"SET statement_timeout TO {round(server.timeout * 1000)}")
        if snapshot:
            cursor.execute(REPEATABLE_READ)
            cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        yield cursor
    except django.Database.Error as error:
        said = server.scrubbed(str(error)) or type(error).__name__
        raise NotJudged(f'database "{database.name}": {said}{advice(said)}') from None
    finally:
        if connection:
            connection.close()


REPEATABLE_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
ADVICE = {
    "authentication failed|no password supplied": "check the user and the password",
    "onnection refused|could not translate|No such file|timeout expired|No route": (
        "check the host and the port, and that the server runs"
    ),
    'database ".*" does not exist': "check the name of the database",
    "statement timeout|lock timeout": "allow more time with --timeout SECONDS",
    "No space left|could not extend|could not write": "make room on the disk",
    "server closed|terminating connection|shutting down|starting up|onnection to server"
    "|connection already closed|SSL connection": "the server went away: run again",
    "too many clients|remaining connection slots|out of memory|shared memory": (
        "the server is at a limit: raise it, or run when it is less busy"
    ),
}


def advice(text: str) -> str:
    """What to do about a fault that is not the backup's, on a line of its own."""
    for pattern, hint in ADVICE.items():
        if re.search(pattern, text):
            return f"\n  {hint}"
    return ""


# --- Scratch databases ----------------------------------------------------------------


@contextmanager
def holding_mark(server: Server) -> Iterator[None]:
    """Show every other run, for as long as this one lives, that its mark is taken."""
    with session(maintenance(server)) as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [key_of(server.mark)])
        yield


def maintenance(server: Server) -> Database:
    """The database from which others are made and dropped: the configured one."""
    return Database(server, server.settings["NAME"])


def key_of(name: str) -> int:
    """The key of the advisory lock that the run of this database holds."""
    return int.from_bytes(bytes.fromhex(name.split("_")[2]), signed=True)


def orphans(server: Server) -> list[str]:
    """The scratch databases of runs that no longer exist."""
    with session(maintenance(server)) as cursor:
        cursor.execute(
            """
            SELECT datname
              FROM pg_database
             WHERE datname ~ %s
               AND pg_has_role(datdba, 'MEMBER')
             ORDER BY datname COLLATE "C"
            """,
            [SCRATCH_NAME],
        )
        names = [name for (name,) in cursor.fetchall()]
        # Advisory locks belong to one database, and a run may hold its own in another.
        cursor.execute("""
            SELECT classid::bigint << 32 | objid::bigint
              FROM pg_locks
             WHERE locktype = 'advisory'
               AND objsubid = 1
            """)
        held = {key for (key,) in cursor.fetchall()}
    return [name for name in names if key_of(name) not in held]


SCRATCH_NAME = f"^{MARK}[0-9a-f]{{16}}_(source|reference|restored)$"


def sweep_databases(server: Server) -> None:
    """Drop the scratch databases that killed runs left."""
    for name in orphans(server):
        drop_database(Database(server, name))
        log.warning("dropped a database of a killed run: %s", name)


def drop_database(database: Database) -> None:
    """Drop a scratch database of this run, or of a run that is gone: no other."""
    server, name = database.server, database.name
    if not name.startswith(server.mark) and name not in orphans(server):
        raise RuntimeError(f'"{name}" is no scratch database of this run')
    with session(maintenance(server)) as cursor:
        cursor.execute(
            """
            SELECT quote_ident(subname)
              FROM pg_subscription
              JOIN pg_database AS d ON d.oid = subdbid
             WHERE datname = %s
            """,
            [name],
        )
        drop_subscriptions(database, [name for (name,) in cursor.fetchall()])
        cursor.execute("SELECT quote_ident(%s)", [name])
        cursor.execute(f"DROP DATABASE IF EXISTS {cursor.fetchone()[0]} WITH (FORCE)")


def drop_subscriptions(database: Database, names: list[str]) -> None:
    """Drop what would keep the database, without a word to the publisher."""
    if names:
        with session(database) as cursor:
            # An event trigger may forbid DDL.
            cursor.execute("SET session_replication_role TO replica")
            for name in names:
                cursor.execute(f"ALTER SUBSCRIPTION {name} DISABLE")
                cursor.execute(f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")
                cursor.execute(f"DROP SUBSCRIPTION {name}")


@contextmanager
def scratch_database(server: Server, purpose: str, locale: str) -> Iterator[Database]:
    """An empty database from template0, dropped at the end, whatever happens."""
    database = Database(server, server.mark + purpose)
    try:
        with step(f"make {database.name}"), session(maintenance(server)) as cursor:
            # template1 may hold additions of the site's, with which a backup collides.
            cursor.execute(
                f"CREATE DATABASE {database.name} TEMPLATE template0 {locale}"
            )
        yield database
    finally:
        with step(f"drop {database.name}"):
            drop_database(database)


def locale_of(database: Database) -> str:
    """The encoding and the locale of the database, as clauses of CREATE DATABASE."""
    with session(database) as cursor:
        cursor.execute("""
            SELECT concat_ws(' ',
                       format('ENCODING %L', pg_encoding_to_char(d.encoding)),
                       format('LC_COLLATE %L LC_CTYPE %L', datcollate, datctype),
                       CASE row ->> 'datlocprovider'
                       WHEN 'c' THEN 'LOCALE_PROVIDER libc'
                       WHEN 'i' THEN format('LOCALE_PROVIDER icu ICU_LOCALE %L', name)
                       WHEN 'b' THEN
                            format('LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', name)
                       END,
                       'ICU_RULES ' || quote_literal(row ->> 'daticurules'))
              FROM pg_database AS d,
                   to_jsonb(d) AS row,
                   coalesce(row ->> 'datlocale', row ->> 'daticulocale') AS name
             WHERE datname = current_database()
            """)
        return cursor.fetchone()[0]


def require_right_to_create_databases(server: Server) -> None:
    """Raise NotJudged, before any work is done, when the role may not."""
    with session(maintenance(server)) as cursor:
        cursor.execute("""
            SELECT rolname, rolcreatedb OR rolsuper
              FROM pg_roles
             WHERE rolname = current_user
            """)
        role, may = cursor.fetchone()
    if not may:
        raise NotJudged(
            f'role "{role}" may not create databases\n'
            f"  a superuser can grant it: ALTER ROLE ... CREATEDB; or use --throwaway"
        )


# --- The throwaway server -------------------------------------------------------------


@contextmanager
def throwaway_server(
    folder: Path, mark: str, timeout: float, major: int | None
) -> Iterator[Server]:
    """A private server in the folder: no TCP, durability off, stopped at the end."""
    home = server_programs(major)
    account = unprivileged_account()
    data = folder / "data"
    data.mkdir(mode=0o700)
    if account:  # PostgreSQL refuses to run as root
        folder.chmod(0o711)
        shutil.chown(data, account["user"], account["group"])

    def serve(program: str, *arguments: str) -> None:
        command = Command((str(home / program), "-D", str(data), *arguments), timeout)
        run(command, cwd=data, **account)

    try:
        with step("start a throwaway server"):
            serve("initdb", "-U", "postgres", "-A", "trust", *INITDB_OPTIONS)
            with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
                file.write(f"unix_socket_directories = '{data}'\n{SERVER_SETTINGS}")
            try:
                serve("pg_ctl", "-w", "-t", str(round(timeout)), "-l", "log", "start")
            except (BackupIsBad, NotJudged):
                raise NotJudged(
                    f"the throwaway server does not start\n{last_lines(data / 'log')}"
                ) from None
        yield private(data, mark, timeout)
    finally:
        if (data / "postmaster.pid").exists():
            with step("stop the throwaway server"):
                serve("pg_ctl", "-w", "-m", "immediate", "stop")


INITDB_OPTIONS = ("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
SERVER_SETTINGS = """
listen_addresses = ''
fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
autovacuum = off
max_locks_per_transaction = 1024
"""


def private(data: Path, mark: str, timeout: float) -> Server:
    """The throwaway server that listens in this folder."""
    from django.db import ConnectionHandler

    url = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": str(data),
        "NAME": "postgres",
        "USER": "postgres",
    }
    settings = ConnectionHandler({"default": url}).settings["default"]
    return introduced(Server(settings, timeout, mark))


def server_programs(major: int | None) -> Path:
    """The folder of a server's programs: of this major version, or of the newest."""
    found = {
        version_of(path): path.parent
        for path in candidates("pg_ctl")
        if (path.parent / "initdb").exists() and (path.parent / "postgres").exists()
    }
    if not found or (major or max(found)) not in found:
        wanted = f"PostgreSQL {major}" if major else "PostgreSQL"
        raise NotJudged(
            f"no programs of a {wanted} server for a throwaway server\n"
            f"  install them, such as with: apt-get install postgresql-{major or 15}"
        )
    return found[major or max(found)]


def unprivileged_account() -> dict[str, Any]:
    """As root, how to run a program as somebody else; else nothing."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {
                "user": entry.pw_uid,
                "group": entry.pw_gid,
                "extra_groups": [],
            }
    raise NotJudged("root may not run a server, and there is no account 'postgres'")


def last_lines(path: Path, most: int = 10) -> str:
    """The end of a log, indented."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(f"  {line}" for line in lines[-most:])


def stop_orphaned_server(pid_file: Path) -> None:
    """End the server of a killed run, if it is still there."""
    if pid_file.exists():
        pid = pid_file.read_text().partition("\n")[0]
        command = Command(("ps", "-o", "args=", "-p", pid), 10)
        with suppress(BackupIsBad):  # ps fails when there is no such process
            if str(pid_file.parent) in run(command):
                os.kill(int(pid), signal.SIGQUIT)


# --- Programs -------------------------------------------------------------------------

PROGRAMS = ("pg_dump", "psql", "pg_restore")
PROGRAM_FOLDERS = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # Red Hat
    "usr/libexec/postgresql*",  # Alpine
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


def candidates(program: str) -> Iterator[Path]:
    """Where the program is: first on PATH, then in the versioned folders."""
    on_path = shutil.which(program)
    # Debian's wrapper runs the newest version, whichever is asked for.
    if on_path and Path(on_path).resolve().name != "pg_wrapper":
        yield Path(on_path)
    for folder in PROGRAM_FOLDERS:
        yield from sorted(Path("/").glob(f"{folder}/{program}"))


def version_of(program: Path) -> int:
    """The major version that the program says it has."""
    said = run(Command((str(program), "--version"), 10))
    version = re.search(r"\(PostgreSQL\) (\d+)", said)
    if version is None:
        raise NotJudged(f"{program} does not tell its version\n  it said: {said!r}")
    return int(version[1])


def fitting_program(name: str, server: Server, strict: bool) -> Path:
    """The program of the server's major version, or else the next newer one."""
    newer: dict[int, Path] = {}
    older: list[int] = []
    for path in candidates(name):
        version = version_of(path)
        if version == server.major:
            return path
        if version > server.major:
            newer.setdefault(version, path)
        else:
            older.append(version)
    wanted = f"{name} {server.major} is needed for server {server.version}"
    hint = f"install it, such as with: apt-get install postgresql-client-{server.major}"
    if not newer or strict:
        found = ", ".join(map(str, sorted([*newer, *older]))) or "none"
        raise NotJudged(f"{wanted}, found: {found}\n  {hint}")
    log.warning("%s; using %s instead\n  %s", wanted, min(newer), hint)
    return newer[min(newer)]


@dataclass(frozen=True)
class Command:
    """A program to run, with its arguments, its environment and its bound."""

    arguments: tuple[str, ...]
    timeout: float  # seconds
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    database: Database | None = None


def command(
    database: Database, name: str, *arguments: str | Path, options: str = ""
) -> Command:
    """A program of PostgreSQL's on the database, in Django's translation for psql."""
    from django.db.backends.postgresql.client import DatabaseClient

    server = database.server
    settings = settings_for(database)
    (_, *where, _), secret = DatabaseClient.settings_to_cmd_args_env(settings, [])
    where += ["--no-password", "--dbname", conninfo(database)]
    environment = {"PGCONNECT_TIMEOUT": str(round(server.timeout)), **(secret or {})}
    password = settings["OPTIONS"].get("password")
    if password and not settings["PASSWORD"]:
        environment["PGPASSWORD"] = password
    program = str(server.programs[name])
    return Command(
        (program, *where, *map(str, arguments)), server.timeout, environment, database
    )


def conninfo(database: Database) -> str:
    """The database's name, and what Django's translation leaves out, for --dbname."""
    options = settings_for(database)["OPTIONS"]
    known = {"password", "passfile", "service", "sslmode", "sslpassword"}
    known |= {"sslrootcert", "sslcert", "sslkey", "assume_role", "isolation_level"}
    words = {
        name: value
        for name, value in options.items()
        if name not in known and isinstance(value, str | int) and value is not True
    }
    if role := options.get("assume_role"):
        words["options"] = f"{words.get('options', '')} -c role={role}".strip()
    words = {"dbname": database.name, **words}
    escaped = {k: re.sub(r"(['\\])", r"\\\1", str(v)) for k, v in words.items()}
    return " ".join(f"{name}='{value}'" for name, value in escaped.items())


def run(command: Command, **popen: Any) -> str:
    """What the program writes to stdout, once it has ended well."""
    with started(command, **popen) as finish:
        return finish()


@contextmanager
def started(command: Command, **popen: Any) -> Iterator[Callable[[], str]]:
    """Start a program; yield what waits for its end and returns its stdout.

    At the bound, and whenever the block is left, the program is killed with all of its
    children. Raises NotJudged when it overruns, BackupIsBad when it fails.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command.arguments,
            env=inherited | {"LC_ALL": "C"} | command.environment,
            start_new_session=True,  # a process group of its own
            umask=0o077,
            **{"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr} | popen,
        )
        bound = Timer(command.timeout, kill_group, [process])
        bound.start()

        def finish() -> str:
            status = process.wait()
            if bound.finished.is_set():
                raise NotJudged(overrun(command))
            return judged(command, status, said(stdout), said(stderr))

        try:
            yield finish
        finally:
            bound.cancel()
            kill_group(process)
            process.wait()


def kill_group(process: subprocess.Popen) -> None:
    """Kill the process with its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def said(file: TextIO) -> str:
    """What a program wrote."""
    file.seek(0)
    return file.read()


def judged(command: Command, status: int, stdout: str, stderr: str) -> str:
    """The program's stdout when it ended well, an exception when it did not."""
    program = Path(command.arguments[0]).name
    server = command.database and command.database.server
    stderr = server.scrubbed(stderr) if server else stderr.strip()
    if status == 0:
        # A backup brackets its large objects in BEGIN and COMMIT of its own.
        lines = [s for s in stderr.splitlines() if " transaction in progress" not in s]
        if lines and server:
            log.warning("%s says:\n%s", program, indented("\n".join(lines)))
        return stdout
    where = f' on database "{command.database.name}"' if command.database else ""
    ended = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
    hint = advice(stderr)
    verdict = NotJudged if hint else BackupIsBad
    raise verdict(f"{program} {ended}{where}\n{indented(stderr)}{hint}")


def indented(text: str, most: int = 10) -> str:
    """The first lines of the text, set in by two blanks."""
    return "\n".join(f"  {line}" for line in text.splitlines()[:most])


def overrun(command: Command) -> str:
    """The sentence on a program that did not end in time."""
    program = Path(command.arguments[0]).name
    return (
        f"{program} did not end within {command.timeout:g} s, and was killed\n"
        f"  allow more time with --timeout SECONDS"
    )


# --- The source, and its backup -------------------------------------------------------


@dataclass(frozen=True)
class Backup:
    """The file or folder that holds a database, and what is known of that database."""

    path: Path
    format: str  # plain, gzip, custom, directory or tar
    sha256: str  # of a folder: of the list of its files, as sha256sum prints it
    size: int  # bytes
    schema: str = field(repr=False)  # the source's, as SQL
    contents: Contents = field(repr=False)
    locale: str = ""  # the clauses of CREATE DATABASE that make a like database
    seconds: float | None = None  # None: the backup existed before this run
    rehearsal: bool = False
    uncompared: tuple[str, ...] = ()
    foreign: frozenset[str] = frozenset()  # tables of extensions

    @property
    def least_size(self) -> int:
        """The bytes that the backup has at the very least; a live source may be empty."""
        return 1024 if self.rehearsal else 1

    @property
    def tables(self) -> dict[str, int]:
        """The source's tables, each with the number of its rows."""
        return {
            thing.removeprefix("table "): aspects["rows"]
            for thing, aspects in self.contents.items()
            if "rows" in aspects and thing.startswith("table ")
        }


def create_backup(
    options: Options, configured: Server, server: Server, folder: Path
) -> Backup:
    """A backup of the source that the options ask for; an existing one is adopted."""
    if options.backup:
        return adopted_backup(options.backup, server, folder)
    if options.live:
        return dumped(maintenance(configured), options, folder)
    with rehearsal(server) as source:
        return replace(dumped(source, options, folder), rehearsal=True)


@contextmanager
def rehearsal(server: Server) -> Iterator[Database]:
    """A scratch database with the project's migrations and the sample; lost at the end."""
    from django.core.management import call_command

    locale = locale_of(maintenance(server))
    with scratch_database(server, "source", locale) as source:
        with step("run the project's migrations"), lent(source):
            call_command("migrate", interactive=False, verbosity=0)
        with step("load the sample"), session(source) as cursor:
            cursor.execute("SHOW server_encoding")
            utf8 = cursor.fetchone()[0] == "UTF8"
            cursor.execute(SAMPLE if utf8 else SAMPLE.encode("ascii", "replace"))
        yield source


def dumped(source: Database, options: Options, folder: Path) -> Backup:
    """The source, written to a new backup while its contents are read.

    One snapshot serves both, so that what is written meanwhile does not matter.
    """
    path = folder / f"backup.{options.format}"
    form = ["--format", options.format, "--file", path]
    if options.format == "directory":
        form += ["--jobs", options.jobs]
    require_right_to_read(source)
    with snapshot_of(source) as snapshot, step("write the backup, read the source"):
        same = ("--snapshot", snapshot, "--lock-wait-timeout", lock_timeout(source))
        sequences = sequences_of(source)
        began = time.monotonic()
        with (
            started(command(source, "pg_dump", *same, *form)) as written,
            started(
                command(source, "pg_dump", *same, "--schema-only", "--encoding", "UTF8")
            ) as schema_written,
            being_read(source, snapshot) as read,
        ):
            written()
            seconds = time.monotonic() - began
            sha256, size = fingerprint(path)
            schema_sql = schema_written()
            contents = read()
    merge(contents, bracketed(sequences, sequences_of(source)))
    merge(contents, entries_of(schema_sql))
    contents, uncompared = carried(contents)
    return Backup(
        path=path,
        format=options.format,
        sha256=sha256,
        size=size,
        schema=schema_sql,
        contents=contents,
        locale=locale_of(source),
        seconds=seconds,
        uncompared=uncompared,
    )


def lock_timeout(database: Database) -> str:
    """The bound on waiting for a lock, in milliseconds as pg_dump wants it."""
    return str(round(database.server.timeout * 1000))


@contextmanager
def snapshot_of(database: Database) -> Iterator[str]:
    """The name of a view of the database that other sessions can share."""
    with session(database) as cursor:
        cursor.execute(REPEATABLE_READ)
        cursor.execute("SELECT pg_export_snapshot()")
        yield cursor.fetchone()[0]


def require_right_to_read(source: Database) -> None:
    """Raise NotJudged, naming the tables that the role may not read whole."""
    with session(source) as cursor:
        cursor.execute("""
            SELECT c.oid::regclass::text,
                   CASE WHEN c.relkind <> 'S' AND row_security_active(c.oid)
                        THEN 'row-level security would hide rows of it'
                        ELSE 'the role may not read it'
                    END
              FROM pg_class AS c
              JOIN pg_namespace AS n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'S')
               AND n.nspname !~ '^pg_'
               AND n.nspname <> 'information_schema'
               AND (NOT has_schema_privilege(n.oid, 'USAGE')
                    OR c.relkind = 'r' AND row_security_active(c.oid)
                    OR NOT CASE c.relkind
                           WHEN 'r' THEN has_table_privilege(c.oid, 'SELECT')
                           ELSE has_sequence_privilege(c.oid, 'SELECT')
                           END)
             ORDER BY c.oid::regclass::text COLLATE "C"
            """)
        unreadable = [f"{name}: {why}" for name, why in cursor.fetchall()]
    if unreadable:
        shown = indented("\n".join(unreadable))
        raise NotJudged(
            f'database "{source.name}" cannot be read whole by this role\n{shown}\n'
            f"  use a role that owns the tables, or has BYPASSRLS and may read them"
        )


def bracketed(before: Contents, after: Contents) -> Contents:
    """The sequences, with the range of values for those that moved meanwhile.

    No snapshot covers a sequence: its dumped value lies between these two.
    """
    bracket = {}
    for thing in before.keys() & after.keys():
        if before[thing] == after[thing]:
            bracket[thing] = after[thing]
        else:
            low, high = sorted((before[thing]["value"], after[thing]["value"]))
            bracket[thing] = {"value": range(low, high + 1)}
    return bracket


def merge(contents: Contents, more: Contents) -> None:
    """Add the aspects of `more` to `contents`."""
    for thing, aspects in more.items():
        contents.setdefault(thing, {}).update(aspects)


def carried(contents: Contents) -> tuple[Contents, tuple[str, ...]]:
    """What a dump can carry of the contents, and sentences on what it cannot."""
    kept: Contents = {}
    left: list[str] = []
    for thing, aspects in contents.items():
        if thing.startswith("index ") and not aspects.get("valid", True):
            left.append(f"{thing}, which is invalid")
        elif thing.startswith("rows not compared"):
            left.append(f"{aspects['why']}")
        elif aspects.get("enforced", "O") != "O":
            left.append(f"whether {thing} is enforced")
            kept[thing] = {k: v for k, v in aspects.items() if k != "enforced"}
        else:
            kept[thing] = aspects
    return kept, tuple(left)


def fingerprint(path: Path) -> tuple[str, int]:
    """The SHA-256 and the size in bytes of a file, or of a folder's list of files.

    For a folder it is what `sha256sum * | sha256sum` prints, sorted as LC_ALL=C does.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
    files = sorted(path.iterdir())
    parts = [fingerprint(file) for file in files]
    lines = "".join(f"{sha256}  {f.name}\n" for f, (sha256, _) in zip(files, parts))
    return hashlib.sha256(lines.encode()).hexdigest(), sum(size for _, size in parts)


# --- Contents -------------------------------------------------------------------------

# Each statement answers with things and their aspects, as text. A system's, an
# extension's and another session's temporary objects are nobody's to back up.
RELATIONS = """
WITH relation AS (
    SELECT c.*, n.nspname,
           CASE c.relkind
           WHEN 'v' THEN 'view'
           WHEN 'm' THEN 'materialized view'
           WHEN 'f' THEN 'foreign table'
           WHEN 'c' THEN 'type'
           WHEN 'S' THEN 'sequence'
           WHEN 'i' THEN 'index'
           WHEN 'I' THEN 'index'
           ELSE 'table'
           END || ' ' || n.nspname || '.' || c.relname AS thing
      FROM pg_class AS c
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
     WHERE n.nspname !~ '^pg_'
       AND n.nspname <> 'information_schema'
       AND NOT EXISTS (SELECT
                         FROM pg_depend AS d
                        WHERE d.classid = 'pg_class'::regclass
                          AND d.objid = c.oid
                          AND d.deptype = 'e'))
"""
# A parent does not count its children (ONLY). Columns go by name, because a restore
# may order those of an inheritance child differently. Sums keep equal rows apart from
# none; XOR would not.
TABLES = """
SELECT coalesce(pg_table_size(r.oid), 0), r.thing,
       format('SELECT %L, json_build_object(''rows'', count(*), ''values'', '
              'sum(hashtextextended(ROW(%s)::text COLLATE "C", 0)))::text '
              'FROM ONLY %I.%I AS t',
              r.thing,
              (SELECT string_agg(format('t.%I', attname), ', '
                                 ORDER BY attname COLLATE "C")
                 FROM pg_attribute
                WHERE attrelid = r.oid
                  AND attnum > 0
                  AND NOT attisdropped),
              r.nspname, r.relname)
  FROM relation AS r
 WHERE r.relkind = 'r'
 ORDER BY 1 DESC, r.thing COLLATE "C"
"""
SEQUENCES = """
SELECT format('SELECT %L, json_build_object(''value'', last_value, ''called'', '
              'is_called, ''behind'', %s)::text FROM %I.%I',
              r.thing,
              coalesce((SELECT format('(SELECT coalesce(%s(%I) %s last_value '
                                      'OR NOT is_called AND count(*) > 0, false) '
                                      'FROM %s)', most, attname, beyond,
                                      d.refobjid::regclass)
                          FROM pg_depend AS d
                          JOIN pg_attribute AS a ON a.attrelid = d.refobjid
                                                AND a.attnum = d.refobjsubid
                          JOIN pg_sequence AS s ON s.seqrelid = d.objid,
                               LATERAL (VALUES ('max', '>', 1), ('min', '<', -1))
                                    AS direction (most, beyond, sign)
                         WHERE sign = sign(seqincrement)
                           AND d.objid = r.oid
                           AND d.classid = 'pg_class'::regclass
                           AND d.refclassid = 'pg_class'::regclass
                           AND d.deptype IN ('a', 'i')
                           AND d.refobjsubid > 0
                           AND a.atttypid IN ('int2'::regtype, 'int4'::regtype,
                                              'int8'::regtype)), 'false'),
              r.nspname, r.relname)
  FROM relation AS r
 WHERE r.relkind = 'S'
 ORDER BY r.thing COLLATE "C"
"""
OBJECTS = (
    """
    SELECT r.thing, json_build_object(
               'persistence', r.relpersistence,
               'row security', r.relrowsecurity,
               'row security forced', r.relforcerowsecurity,
               'partition', pg_get_expr(r.relpartbound, r.oid),
               'parents', (SELECT json_agg(inhparent::regclass::text ORDER BY inhseqno)
                             FROM pg_inherits
                            WHERE inhrelid = r.oid))
      FROM relation AS r
     WHERE r.relkind IN ('r', 'p', 'f')
    """,
    """
    SELECT r.thing, json_object_agg('column ' || a.attname, concat_ws(' ',
               format_type(a.atttypid, a.atttypmod),
               'COLLATE ' || nullif(a.attcollation, t.typcollation)::regcollation::text,
               CASE WHEN a.attnotnull THEN 'NOT NULL' END,
               'IDENTITY ' || nullif(a.attidentity::text, ''),
               'GENERATED ' || nullif(a.attgenerated::text, ''),
               'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid)))
      FROM relation AS r
      JOIN pg_attribute AS a ON a.attrelid = r.oid
      JOIN pg_type AS t ON t.oid = a.atttypid
      LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
     WHERE r.relkind IN ('r', 'p', 'f', 'v', 'm', 'c')
       AND a.attnum > 0
       AND NOT a.attisdropped
     GROUP BY r.thing
    """,
    """
    SELECT r.thing, json_build_object(
               'definition', pg_get_indexdef(r.oid),
               'valid', i.indisvalid OR r.relkind = 'I',
               'clustered', i.indisclustered,
               'replica identity', i.indisreplident)
      FROM relation AS r
      JOIN pg_index AS i ON i.indexrelid = r.oid
    """,
    """
    SELECT CASE c.contype
           WHEN 'f' THEN 'fk constraint '
           WHEN 'c' THEN 'check constraint '
           ELSE 'constraint '
           END || r.nspname || '.' || r.relname || ' ' || c.conname,
           json_build_object(
               'definition', pg_get_constraintdef(c.oid),
               'validated', c.convalidated,
               'enforced', (SELECT string_agg(DISTINCT tgenabled::text, '')
                              FROM pg_trigger
                             WHERE tgconstraint = c.oid
                               AND tgisinternal))
      FROM relation AS r
      JOIN pg_constraint AS c ON c.conrelid = r.oid
     WHERE c.contype <> 't'
    """,
    """
    SELECT r.thing, json_build_object(
               'definition', concat_ws(' ', seqtypid::regtype, 'start', seqstart,
                   'increment', seqincrement, 'between', seqmin, 'and', seqmax,
                   'cache', seqcache, CASE WHEN seqcycle THEN 'cycle' END),
               'owned by', (SELECT format('%s.%I', refobjid::regclass, attname)
                              FROM pg_depend
                              JOIN pg_attribute ON attrelid = refobjid
                                               AND attnum = refobjsubid
                             WHERE objid = r.oid
                               AND classid = 'pg_class'::regclass
                               AND refclassid = 'pg_class'::regclass
                               AND deptype IN ('a', 'i')))
      FROM relation AS r
      JOIN pg_sequence AS s ON s.seqrelid = r.oid
    """,
    """
    SELECT r.thing, json_build_object('definition', pg_get_viewdef(r.oid),
                                      'populated', r.relispopulated)
      FROM relation AS r
     WHERE r.relkind IN ('v', 'm')
    """,
    """
    SELECT 'trigger ' || r.nspname || '.' || r.relname || ' ' || t.tgname,
           json_build_object('definition', pg_get_triggerdef(t.oid),
                             'enabled', t.tgenabled)
      FROM relation AS r
      JOIN pg_trigger AS t ON t.tgrelid = r.oid
     WHERE NOT t.tgisinternal
    """,
    """
    SELECT 'policy ' || r.nspname || '.' || r.relname || ' ' || p.polname,
           json_build_object('command', p.polcmd,
                             'permissive', p.polpermissive,
                             'roles', p.polroles::regrole[]::text,
                             'using', pg_get_expr(p.polqual, r.oid),
                             'check', pg_get_expr(p.polwithcheck, r.oid))
      FROM relation AS r
      JOIN pg_policy AS p ON p.polrelid = r.oid
    """,
    """
    SELECT CASE p.prokind
           WHEN 'a' THEN 'aggregate '
           WHEN 'p' THEN 'procedure '
           ELSE 'function '
           END || n.nspname || '.' || p.proname
               || '(' || oidvectortypes(p.proargtypes) || ')',
           json_build_object('definition', CASE WHEN p.prokind <> 'a'
                                                THEN pg_get_functiondef(p.oid)
                                            END)
      FROM pg_proc AS p
      JOIN pg_namespace AS n ON n.oid = p.pronamespace
     WHERE n.nspname !~ '^pg_'
       AND n.nspname <> 'information_schema'
       AND NOT EXISTS (SELECT
                         FROM pg_depend AS d
                        WHERE d.classid = 'pg_proc'::regclass
                          AND d.objid = p.oid
                          AND d.deptype = 'e')
    """,
    """
    SELECT CASE t.typtype WHEN 'd' THEN 'domain ' ELSE 'type ' END
               || n.nspname || '.' || t.typname,
           json_build_object(
               'kind', t.typtype,
               'labels', (SELECT json_agg(enumlabel ORDER BY enumsortorder)
                            FROM pg_enum
                           WHERE enumtypid = t.oid),
               'domain of', CASE WHEN t.typtype = 'd'
                                 THEN format_type(t.typbasetype, t.typtypmod)
                             END,
               'default', t.typdefault,
               'not null', t.typnotnull,
               'checks', (SELECT json_object_agg(conname, pg_get_constraintdef(oid))
                            FROM pg_constraint
                           WHERE contypid = t.oid))
      FROM pg_type AS t
      JOIN pg_namespace AS n ON n.oid = t.typnamespace
     WHERE t.typtype IN ('d', 'e', 'r')
       AND n.nspname !~ '^pg_'
       AND n.nspname <> 'information_schema'
       AND NOT EXISTS (SELECT
                         FROM pg_depend AS d
                        WHERE d.classid = 'pg_type'::regclass
                          AND d.objid = t.oid
                          AND d.deptype = 'e')
    """,
    """
    SELECT 'extension ' || extname,
           json_build_object('schema', extnamespace::regnamespace::text)
      FROM pg_extension
    """,
    # lo_get reads at most 1 GB, and a large object holds up to 4 TB.
    """
    SELECT 'large objects', json_build_object(
               'rows', count(*),
               'values', sum(hashtextextended(ROW(l.oid, pg_get_userbyid(l.lomowner),
                   obj_description(l.oid, 'pg_largeobject'),
                   (SELECT string_agg(granted, ',' ORDER BY granted COLLATE "C")
                      FROM aclexplode(coalesce(l.lomacl, acldefault('L', l.lomowner))),
                           format('%s %s %s', grantee::regrole, privilege_type,
                                  is_grantable) AS granted),
                   size,
                   (SELECT string_agg(md5(lo_get(l.oid, at, 1048576)), ''
                                      ORDER BY at)
                      FROM generate_series(0, size - 1, 1048576) AS at)
                   )::text COLLATE "C", 0)))
      FROM pg_largeobject_metadata AS l,
   LATERAL lo_lseek64(lo_open(l.oid, x'40000'::integer), 0, 2) AS size
    HAVING count(*) > 0
    """,
)


def contents_of(database: Database) -> Contents:
    """What the database holds: rows, values of sequences, objects, pg_dump's words."""
    write_schema = command(database, "pg_dump", "--schema-only", "--encoding", "UTF8")
    with (
        step(f"read {database.name}"),
        started(write_schema) as schema_written,
        being_read(database) as read,
    ):
        contents = read()
        merge(contents, sequences_of(database))
        merge(contents, entries_of(schema_written()))
    return contents


@contextmanager
def being_read(
    database: Database, snapshot: str | None = None
) -> Iterator[Callable[[], Contents]]:
    """Start to read rows and objects; yield what waits for them."""
    with session(database, snapshot) as cursor:
        cursor.execute(RELATIONS + TABLES)
        tables = cursor.fetchall()
    large = [statement for size, _, statement in tables if size > 2**20]
    small = [statement for size, _, statement in tables if size <= 2**20]
    statements = [*large, *joined(small), *map(as_text, OBJECTS)]
    with being_asked(database, statements, snapshot) as answer:
        yield lambda: gathered(answer())


def as_text(query: str) -> str:
    """The query on relations, with its JSON as text, which every driver leaves alone."""
    return (
        f"{RELATIONS} SELECT thing, aspects::text FROM ({query}) AS o (thing, aspects)"
    )


def sequences_of(database: Database) -> Contents:
    """The sequences with their values, which belong to no snapshot."""
    with session(database) as cursor:
        cursor.execute(RELATIONS + SEQUENCES)
        statements = joined([statement for (statement,) in cursor.fetchall()])
        rows = []
        for statement in statements:
            cursor.execute(statement)
            rows += cursor.fetchall()
    return gathered(rows)


def joined(statements: list[str], at_once: int = 100) -> list[str]:
    """Fewer statements that answer the same."""
    return [
        "\nUNION ALL\n".join(statements[n : n + at_once])
        for n in range(0, len(statements), at_once)
    ]


def gathered(rows: Iterable[tuple[str, str]]) -> Contents:
    """The contents that the answers speak of."""
    contents: Contents = {}
    for thing, aspects in rows:
        merge(contents, {thing: json.loads(aspects)})
    return contents


@contextmanager
def being_asked(
    database: Database, statements: list[str], snapshot: str | None, sessions: int = 2
) -> Iterator[Callable[[], list[tuple]]]:
    """Ask on several sessions side by side; yield what waits for all rows, in order."""
    waiting = deque(enumerate(statements))
    answers: dict[int, list[tuple]] = {}
    busy: set[Any] = set()

    def ask() -> None:
        with session(database, snapshot) as cursor:
            busy.add(cursor)
            try:
                while waiting:
                    with suppress(IndexError):  # another session took the last one
                        number, statement = waiting.popleft()
                        cursor.execute(statement)
                        answers[number] = cursor.fetchall()
            finally:
                busy.discard(cursor)

    def finish() -> list[tuple]:
        for future in futures:
            future.result()
        return [row for number in sorted(answers) for row in answers[number]]

    with ThreadPoolExecutor(sessions) as pool:
        futures = [pool.submit(ask) for _ in range(sessions)]
        try:
            yield finish
        finally:
            waiting.clear()
            for cursor in [*busy]:
                cursor.connection.cancel()


ENTRY = re.compile(
    r"^--\n-- Name: (.*); Type: ([A-Z ]+); Schema: (.*); (Owner: .*)\n--\n",
    re.MULTILINE,
)


def entries_of(schema: str) -> Contents:
    """Each object of a schema-only dump, with the SQL that makes it.

    What precedes the first is the dump's own: versions, settings, a random key.
    """
    schema = schema[: schema.rfind("--\n-- PostgreSQL database dump complete")]
    _, *parts = ENTRY.split(schema)
    contents: Contents = {}
    for name, kind, namespace, owner, sql in zip(*[iter(parts)] * 5, strict=True):
        prefix = "" if namespace == "-" else f"{namespace}."
        aspects = contents.setdefault(f"{kind.lower()} {prefix}{name}", {"pg_dump": ""})
        aspects["pg_dump"] += f"{owner}\n{sql.strip()}\n"
    return contents


# --- Differences ----------------------------------------------------------------------

# What the data decide; the rest defines an object, and has two ways to be written: as
# somebody wrote it, and as PostgreSQL writes it after a round trip, then for ever.
STATE = {"rows", "values", "value", "called", "behind", "valid", "validated"}
STATE |= {"enabled", "enforced", "populated"}


def departures(backup: Backup, found: Contents, restored: Database) -> list[str]:
    """How the restored database departs from the source.

    IN, BETWEEN, predicates of indexes and bodies of views are deparsed differently
    after their first round trip. So when anything differs, the source's schema makes a
    round trip of its own, and only what differs then counts.
    """
    sentences = differences(backup.contents, found)
    if sentences:
        with reference_database(backup, restored.server) as reference:
            expected = after_round_trip(backup.contents, contents_of(reference))
        sentences = differences(expected, found)
    return sentences


@contextmanager
def reference_database(backup: Backup, server: Server) -> Iterator[Database]:
    """A scratch database with the source's schema, and no rows."""
    with scratch_database(server, "reference", backup.locale) as reference:
        with step("load the source's schema alone"), TemporaryFile("w+") as sql:
            sql.write(backup.schema)
            sql.seek(0)
            load_sql(reference, sql)
        yield reference


def after_round_trip(contents: Contents, reference: Contents) -> Contents:
    """The contents, with definitions as the reference has them."""
    expected = {thing: dict(aspects) for thing, aspects in contents.items()}
    for thing, aspects in reference.items():
        definition = {k: v for k, v in aspects.items() if k not in STATE}
        expected.setdefault(thing, {}).update(definition)
    return expected


def differences(expected: Contents, found: Contents) -> list[str]:
    """One sentence for each difference; equal contents have none."""
    sentences = [
        difference
        for thing, aspects in expected.items()
        if thing in found
        for difference in differing_aspects(thing, aspects, found[thing])
    ]
    missing = [f"{thing}: missing" for thing in expected if thing not in found]
    unexpected = [f"{thing}: unexpected" for thing in found if thing not in expected]
    return missing + unexpected + sentences


def differing_aspects(
    thing: str, expected: dict[str, Any], found: dict[str, Any]
) -> Iterator[str]:
    """The sentences on one thing; what pg_dump says only if nothing else speaks."""
    said = False
    for aspect in [*expected, *(found.keys() - expected.keys())]:
        want, got = expected.get(aspect), found.get(aspect)
        if got == want or isinstance(want, range) and got in want:
            continue
        if aspect == "pg_dump" and said:
            continue
        if aspect == "values":
            if expected["rows"] == found.get("rows"):
                yield f"{thing}: {expected['rows']} rows as expected, with other values"
        elif aspect == "rows":
            yield f"{thing}: found {got} rows, expected {want}"
        else:
            yield f"{thing}: {aspect}: {where_they_part(got, want)}"
        said = True


def where_they_part(found: Any, expected: Any) -> str:
    """The first line in which two values differ."""
    pairs = zip_longest(str(found).splitlines(), str(expected).splitlines())
    got, want = next((pair for pair in pairs if pair[0] != pair[1]), (found, expected))
    return f"found {shortened(got)}, expected {shortened(want)}"


def shortened(value: Any, most: int = 120) -> str:
    """The value on one line of bounded length."""
    text = "nothing" if value is None else str(value).strip()
    return text if len(text) <= most else f"{text[:most]}..."


# --- Reading a backup -----------------------------------------------------------------

HEADER = b"-- PostgreSQL database dump"
CLOSING = b"-- PostgreSQL database dump complete"
CHUNK = 2**20


@dataclass(frozen=True)
class Reading:
    """What one pass over a backup finds."""

    sha256: str
    size: int
    blocks: dict[str, int]  # table -> rows of its COPY block
    problems: tuple[str, ...]  # seen without a comparison


def problems_in(reading: Reading, backup: Backup) -> list[str]:
    """One sentence for each sign that the backup is not what was written."""
    problems = list(reading.problems)
    if reading.sha256 != backup.sha256:
        problems.insert(0, f"SHA-256: found {reading.sha256}, expected {backup.sha256}")
    if reading.size != backup.size:
        problems.append(f"size: found {reading.size} bytes, expected {backup.size}")
    for table, rows in backup.tables.items():
        found = reading.blocks.get(table)
        if found is None:
            problems.append(f"table {table}: no COPY block, expected {rows} rows")
        elif found != rows:
            problems.append(f"table {table}: found {found} rows, expected {rows}")
    for table in reading.blocks.keys() - backup.tables.keys() - backup.foreign:
        problems.append(f"table {table}: unexpected, the source has no such table")
    return problems


def readings_of(backup: Backup, server: Server) -> tuple[Reading, Reading, Reading]:
    """The backup as it is, as if it were cut, and as if one bit of it were flipped.

    One pass serves all three: the damaged ones part from it in its last piece.
    """
    with open_sql(backup, server) as sql:
        scans = three_ways(SqlScan(), sql)
    readings = [scan.finish() for scan in scans]
    return tuple(readings)


def three_ways(scan: Any, stream: BinaryIO) -> tuple[Any, Any, Any]:
    """The scan of the stream, of the stream cut short, and with one bit flipped."""
    last = b""
    while piece := stream.read(CHUNK):
        scan.update(last)
        last = piece
    cut, flipped = scan.copy(), scan.copy()
    half = len(last) // 2
    cut.update(last[:half])
    flipped.update(
        last[:half] + bytes(b ^ 1 for b in last[half:][:1]) + last[half + 1 :]
    )
    scan.update(last)
    return scan, cut, flipped


NAME = r'(?:"(?:[^"]|"")*"|[^\s".]+)'
COPY = re.compile(rf"COPY ({NAME})\.({NAME}) (?:\(.*\) )?FROM stdin\Z", re.DOTALL)
# What psql tells apart outside COPY data; two quotes in a row are two quoted pieces.
TOKEN = re.compile(
    rb"""
    (?P<comment> --[^\n]*\n )
  | (?P<meta>    \\[^\n]*\n )
  | (?P<quoted>  (?<![\w$])[eE]'(?:[^'\\]|\\.)*'
               | '[^']*'
               | "[^"]*"
               | (?<![\w$])\$(?P<tag>\w*)\$.*?\$(?P=tag)\$
               | /\*.*?\*/ )
  | (?P<end>     ;\n? )
  | (?P<plain>   (?:[^-'"$\\;/eE]|[eE](?!'))+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
OPENING = re.compile(rb"""--|\\|'|"|/\*|(?<![\w$])(?:[eE]'|\$\w*\$)""")
LONGEST_OPENING = 128  # bytes: a dollar quote's tag has 63 at most


class SqlScan:
    """A plain backup, scanned piece by piece, with psql's eyes.

    Text in quotes may look like COPY or like the closing line, and is neither.
    """

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.blocks: dict[str, int] = {}
        self.problems: list[str] = []
        self.rest = b""  # not scanned yet
        self.statement: list[bytes] = []
        self.table: str | None = None  # whose COPY data come
        self.begun = self.ended = False

    def copy(self) -> "SqlScan":
        """A twin that goes its own way from here."""
        twin = copy.copy(self)
        twin.sha256 = self.sha256.copy()
        twin.blocks, twin.problems = dict(self.blocks), list(self.problems)
        twin.statement = list(self.statement)
        return twin

    def update(self, piece: bytes, final: bool = False) -> None:
        """Scan as far as it is certain what comes."""
        self.sha256.update(piece)
        self.size += len(piece)
        self.rest += piece
        at = 0
        while at < len(self.rest):
            scan = self.scan_text if self.table is None else self.scan_rows
            after = scan(at, final)
            if after is None:
                break
            at = after
        self.rest = self.rest[at:]

    def scan_rows(self, at: int, final: bool) -> int | None:
        """Count rows up to the end of the block, or to the last whole row."""
        if self.rest.startswith(b"\\.\n", at):
            self.table = None
            return at + 3
        end = self.rest.find(b"\n\\.\n", at)
        after = (self.rest.rfind(b"\n", at) if end < 0 else end) + 1
        self.blocks[self.table] += self.rest.count(b"\n", at, after)
        return after if after > at else None

    def scan_text(self, at: int, final: bool) -> int | None:
        """Take one token; nothing while it may not be whole."""
        if not final and len(self.rest) - at < LONGEST_OPENING:
            return None
        token = TOKEN.match(self.rest, at)
        kind = token.lastgroup if token.lastgroup != "tag" else "quoted"
        if kind == "plain" and OPENING.match(self.rest, at) and not final:
            return None
        if kind == "comment":
            self.take_comment(token[0].strip())
        elif kind == "meta":
            self.take_meta(token[0].strip())
        elif kind == "end":
            self.take_statement(b"".join(self.statement).strip())
            self.statement.clear()
        else:
            self.statement.append(token[0])
        return token.end()

    def take_comment(self, line: bytes) -> None:
        """Note the header and the closing line."""
        if line == HEADER and not self.begun:
            self.begun = True
        elif line == CLOSING and not self.ended:
            self.ended = True
        elif self.ended and line != b"--":
            self.trailing(line)

    def take_meta(self, line: bytes) -> None:
        """Refuse what would make psql leave the file or the database."""
        if line.split()[0] not in (b"\\restrict", b"\\unrestrict"):
            self.problems.append(f"a command for psql: {quoted(line)}")

    def take_statement(self, text: bytes) -> None:
        """Open a COPY block, refuse what undoes a restore or leaves its database."""
        if self.ended:
            self.trailing(text)
        if text.startswith(b"COPY "):
            if named := COPY.match(text.decode("utf-8", "replace")):
                self.table = ".".join(unquoted(name) for name in named.groups())
                if self.table in self.blocks:
                    self.problems.append(f"table {self.table}: a second COPY block")
                self.blocks[self.table] = 0
        elif re.match(rb"ROLLBACK|ABORT|(CREATE|DROP|ALTER) DATABASE\b", text):
            self.problems.append(f"a statement that no restore may run: {quoted(text)}")

    def trailing(self, text: bytes) -> None:
        """Note that the end is not the end, once."""
        problem = "something follows the closing line"
        if not any(known.startswith(problem) for known in self.problems):
            self.problems.append(f"{problem}: {quoted(text)}")

    def finish(self) -> Reading:
        """What was found, once there is no more to come."""
        self.update(b"", final=True)
        if not self.begun:
            self.problems.insert(0, f"no header, expected {quoted(HEADER)}")
        if self.table is not None:
            self.problems.append(f"table {self.table}: its COPY block has no end")
        elif rest := b"".join(self.statement).strip():
            self.problems.append(f"an unfinished statement: {quoted(rest)}")
        if not self.ended:
            self.problems.append(f"no closing line, expected {quoted(CLOSING)}")
        return Reading(
            self.sha256.hexdigest(), self.size, self.blocks, tuple(self.problems)
        )


def quoted(text: bytes) -> str:
    """The beginning of the text, as a message shows it."""
    return repr(shortened(text.decode("utf-8", "replace"), 60))


def unquoted(identifier: str) -> str:
    """The name that an SQL identifier stands for."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier


@contextmanager
def open_sql(backup: Backup, server: Server) -> Iterator[BinaryIO]:
    """The backup as SQL, in a stream that another program can read too."""
    if backup.format == "plain":
        with backup.path.open("rb") as file:
            yield file
    else:
        raise NotImplementedError


# --- The restored database ------------------------------------------------------------


def load_backup(backup: Backup, restored: Database, jobs: int) -> float:
    """Load the backup into the empty database; return the seconds that it took."""
    began = time.monotonic()
    with step("load the backup"), open_sql(backup, restored.server) as sql:
        load_sql(restored, sql)
    return time.monotonic() - began


def load_sql(database: Database, sql: Any) -> None:
    """Run SQL by psql: all of it, or nothing.

    -X: what a developer's ~/.psqlrc says must not matter. Without ON_ERROR_STOP psql
    goes on after errors, and ends well.
    """
    arguments = ("-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", "-")
    run(command(database, "psql", *arguments), stdin=sql)


def faults_in(restored: Database, rehearsal: bool) -> tuple[list[str], list[str]]:
    """What keeps the project from using the restored database; pending migrations."""
    pending = pending_migrations(restored)
    if not rehearsal:
        return [], pending
    faults = [f"migration {name}: pending, expected applied" for name in pending]
    with session(restored) as cursor:
        cursor.execute("BEGIN")
        cursor.execute(SAMPLE_INSERTS)
        cursor.execute("ROLLBACK")
    return faults, pending


def pending_migrations(database: Database) -> list[str]:
    """The project's migrations that the database does not have."""
    from django.db import connections
    from django.db.migrations.executor import MigrationExecutor

    with lent(database):
        executor = MigrationExecutor(connections["default"])
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [str(migration) for migration, _backwards in plan]


# Changes that keep a value's range and length; where none is possible, a row goes.
CHANGES = """
SELECT r.thing,
       format('%s WHERE ctid = (SELECT ctid FROM ONLY %I.%I WHERE %s LIMIT 1)',
              change, r.nspname, r.relname, condition)
  FROM relation AS r,
       LATERAL (
           SELECT format('UPDATE ONLY %I.%I SET %I = %s', r.nspname, r.relname,
                         a.attname, format(changed, a.attname)) AS change,
                  format(fit, a.attname) AS condition,
                  0 AS rank
             FROM pg_attribute AS a
             JOIN (VALUES ('bool'::regtype, 'NOT %1$I', '%1$I IS NOT NULL'),
                          ('int4', '%1$I # 1', '%1$I IS NOT NULL'),
                          ('int8', '%1$I # 1', '%1$I IS NOT NULL'),
                          ('text', 'overlay(%1$I PLACING $$x$$ FROM 1)',
                           '%1$I ~ $$^[^x]$$'),
                          ('varchar', 'overlay(%1$I PLACING $$x$$ FROM 1)',
                           '%1$I ~ $$^[^x]$$')
                  ) AS c (type, changed, fit) ON c.type = a.atttypid
            WHERE a.attrelid = r.oid
              AND a.attnum > 0
              AND a.attgenerated = ''
              AND a.attidentity = ''
              AND NOT EXISTS (SELECT
                                FROM pg_constraint
                               WHERE conrelid = r.oid
                                 AND a.attnum = ANY (conkey))
            UNION ALL
           SELECT format('DELETE FROM ONLY %I.%I', r.nspname, r.relname), 'true', 1
       ) AS possible
 WHERE r.relkind = 'r'
 ORDER BY rank, r.thing COLLATE "C"
"""


def prove_that_a_change_is_seen(restored: Database, found: Contents) -> None:
    """Change one value of the restored database, compare, and take the change back."""
    if not any(aspects.get("rows") for aspects in found.values()):
        return  # a live source may be empty: there is no value to change
    with session(restored) as cursor:
        cursor.execute(RELATIONS + CHANGES)
        changes = [row for row in cursor.fetchall() if found[row[0]].get("rows")]
        cursor.execute(RELATIONS + TABLES)
        questions = {thing: question for _, thing, question in cursor.fetchall()}
        for thing, change in changes[:100]:
            if not made(change, cursor):
                continue
            cursor.execute(questions[thing])
            (changed,) = gathered(cursor.fetchall()).values()
            unchanged = {aspect: found[thing][aspect] for aspect in changed}
            if not differences({thing: unchanged}, {thing: changed}):
                raise NotJudged(f"the drill does not see that {thing} was changed")
            return
    raise NotJudged("no value could be changed, to prove that a change is seen")


def made(change: str, cursor: Any) -> bool:
    """Whether the change was made, in a transaction that is never committed."""
    cursor.execute("ROLLBACK")
    cursor.execute("BEGIN")
    cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    if cursor.fetchone()[0]:  # triggers and foreign keys need not agree
        cursor.execute("SET LOCAL session_replication_role TO replica")
    with suppress(
        cursor.connection.Error
    ):  # a constraint or a rule may object: then another value
        cursor.execute(change)
        return cursor.rowcount == 1
    return False


# --- The evidence ---------------------------------------------------------------------

NEVER_COMPARED = (
    "roles and their passwords",
    "tablespaces",
    "settings of the database itself",
    "other databases",
)


class Evidence:
    """The facts of a run, and the verdict on each act, as they become known."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.verdicts: dict[str, tuple[str, str]] = {}  # act -> verdict, sentence

    def note(self, **facts: Any) -> None:
        """Add facts."""
        self.facts |= facts

    def judge(self, act: str, after: str, method: Callable, owner: Any) -> None:
        """Run an act and record its verdict, its sentence and its seconds."""
        log.info("")  # unittest has begun a line
        began = time.monotonic()
        verdict, sentence = "passed", ""
        try:
            if self.verdicts.get(after, ("passed",))[0] != "passed":
                raise BackupIsBad(f"not attempted, because {after} did not pass")
            method(owner)
        except OSError as error:  # a full disk, a folder without rights
            verdict, sentence = "error", f"{error}{advice(str(error))}"
            raise NotJudged(sentence) from None
        except (BackupIsBad, NotJudged) as error:
            verdict = "failed" if isinstance(error, BackupIsBad) else "error"
            sentence = str(error)
            raise error.with_traceback(None) from None
        except BaseException as error:
            verdict, sentence = "error", f"{type(error).__name__}: {error}"
            raise
        finally:
            self.verdicts[act] = (verdict, sentence)
            self.note(**{f"seconds_{act}": round(time.monotonic() - began, 3)})


def publish(evidence: Evidence, options: Options) -> None:
    """Print the evidence; append it to the job's summary; write the report."""
    facts = rows_of(evidence.facts)
    paragraph = "; ".join(f"{name} {value}" for name, value in facts)
    print(f"\nevidence: {paragraph}", file=sys.stderr)


def rows_of(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(k, str(v)) for k, v in facts.items()]


# --- The command line -----------------------------------------------------------------


def seconds(text: str) -> float:
    """A bound in seconds."""
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Prove that this Django project's PostgreSQL backup restores.",
        epilog="Other arguments go to unittest: -k restore, -f.",
        allow_abbrev=False,
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--throwaway", action="store_true")
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="SECONDS")
    parser.add_argument("--live", action="store_true")
    parser.add_argument(
        "--format", choices=["plain", "custom", "directory"], default="plain"
    )
    parser.add_argument("--jobs", type=int, default=1)
    return parser


def main(argv: list[str]) -> int:
    """Run the drill; return 0 when all that ran passed, else 1."""
    try:
        known, others = arguments().parse_known_args(argv[1:])
        BackupRestoreTests.options = Options(**vars(known))
        program = unittest.main(
            argv=[argv[0], *others], exit=False, verbosity=1 + known.verbose
        )
    except SystemExit as stop:
        return 1 if stop.code else 0
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted ({interrupt})", file=sys.stderr)
        return 1
    finally:
        BackupRestoreTests.doClassCleanups()
    result = program.result
    if result.testsRun == 0 and not result.skipped and result.wasSuccessful():
        print("no test was run", file=sys.stderr)
        return 1
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
