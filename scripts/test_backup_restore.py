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
    reference    a scratch database with the source's schema and no row from COPY
    reading      what one pass over the backup finds in it
    contents     what a database holds, as thing -> aspect -> value
    difference   one sentence on how the restored database departs from its source

A failure (BackupIsBad) says that the backup is bad, an error (NotJudged) that it could
not be judged. The tests come first; what they use follows in the order of its use.
"""

import argparse
import atexit
import codecs
import copy
import fcntl
import functools
import gzip
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
import stat
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
import traceback
import unittest
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from locale import LC_CTYPE, setlocale
from locale import Error as UnknownLocale
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event, Thread, Timer, current_thread, main_thread
from typing import IO, Any, BinaryIO, NamedTuple, TextIO
from urllib.parse import quote

__unittest = True  # unittest then shows our sentences without the frames of this file

log = logging.getLogger("backup_drill")

ANYTHING = ...  # the value of an aspect that is not compared
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

    @property
    def source(self) -> str:
        """What is backed up, in words."""
        if self.backup:
            return f"the backup {self.backup.name}"
        return "the configured database" if self.live else "a rehearsal"


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
    """Have a method's outcome put on record; `after` must have passed before it."""

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
        cls.evidence.note(source=cls.options.source)
        if cls.options.report:  # better told now than after the work
            write_evidence("the report", cls.options.report, "a", "")
        cls.folder = cls.enterClassContext(private_folder())
        servers = drill_server(cls.options, cls.folder)
        cls.configured, cls.server = cls.enterClassContext(servers)
        cls.evidence.note(
            server=cls.server.version,
            programs={p.path.name: p.version for p in cls.server.programs.values()},
        )

    @classmethod
    def backup(cls) -> "Backup":
        """The backup of this run, made on first use."""
        if cls.made is None:
            cls.made = create_backup(
                cls.options, cls.configured, cls.server, cls.folder
            )
            cls.evidence.note(
                format=cls.made.format,
                bytes=cls.made.size,
                sha256=cls.made.sha256,
                not_compared=NEVER_COMPARED | cls.made.uncompared,
            )
            if cls.made.seconds is not None:
                cls.evidence.note(seconds_to_back_up=round(cls.made.seconds, 3))
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
        with database_for(backup, self.server, "restored") as restored:
            provide_globals(backup, self.server)
            seconds = load_backup(backup, restored, self.options.jobs)
            self.evidence.note(seconds_to_restore=round(seconds, 3))
            found = contents_of(restored)
            refuse(
                "the restored database differs from its source",
                departures(backup, found, restored),
            )
            self.evidence.note(**counts_of(found))
            with step("use the restored database"):
                faults, pending = faults_in(restored, backup.rehearsal)
                self.evidence.note(pending_migrations=pending)
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


def refuse(fact: str, sentences: list[str]) -> None:
    """Fail with the fact and the first sentences, unless there are none."""
    if sentences:
        raise BackupIsBad(f"{fact}\n{indented(sentences)}")


# --- Around the tests: what they say, what they withstand -----------------------------


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
        for each in ENDINGS:
            signal.signal(each, lambda *_: None)
        raise KeyboardInterrupt(signal.Signals(number).name)

    with handling_signals(interrupt):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal waits until the block is left: what was begun is cleaned up first."""
    if current_thread() is not main_thread():  # others get none, and may hold none off
        yield
        return
    waiting: list[int] = []
    try:
        with handling_signals(lambda number, _frame: waiting.append(number)):
            yield
    finally:
        for number in waiting[:1]:
            signal.raise_signal(number)


@contextmanager
def handling_signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Have the signals that ask for an end handled so, and then as before."""
    before = {each: signal.signal(each, handler) for each in ENDINGS}
    try:
        yield
    finally:
        for each, former in before.items():
            signal.signal(each, former)


ENDINGS = (signal.SIGINT, signal.SIGTERM)
# Where files of the settings' own lie; all other variables of libpq's are ignored.
LIBPQ_FILES = {"PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR"}


@contextmanager
def without_libpq_variables() -> Iterator[None]:
    """Only the settings say where the server is; libpq's variables do not."""
    hidden = {name: os.environ.pop(name) for name in [*os.environ] if is_libpqs(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def is_libpqs(name: str) -> bool:
    """Whether the variable would tell libpq what only the settings may tell."""
    return name.startswith("PG") and name not in LIBPQ_FILES


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this account can read, removed with all that is in it.

    Its lock tells the next run whether somebody is still there.
    """
    wanted = os.environ.get("TMPDIR")
    if wanted and not os.access(wanted, os.W_OK | os.X_OK):
        raise NotJudged(f"TMPDIR is {wanted}, which cannot be written to")
    sweep_folders()
    while True:
        folder = Path(tempfile.gettempdir(), f"{MARK}{secrets.token_hex(8)}")
        folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # another run swept it before it was locked
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                break
            os.close(lock)
    try:
        yield folder
    finally:
        with undisturbed():
            shutil.rmtree(folder)
            os.close(lock)


def sweep_folders() -> None:
    """Remove the folders of runs that were killed, and end their servers."""
    for folder in Path(tempfile.gettempdir()).glob(f"{MARK}{'[0-9a-f]' * 16}"):
        try:
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                sweep_folder(folder)
        except FileNotFoundError:
            pass  # another run was faster
        except OSError as error:  # a program of that run may be at its end
            log.warning("the folder of a killed run is there still: %s", error)


def sweep_folder(folder: Path) -> None:
    """Remove the folder, unless a run holds its lock."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        killed = any(folder.iterdir())  # an empty one may be a run's that just begins
        stop_orphaned_server(folder / "data" / "postmaster.pid")
        shutil.rmtree(folder)
        if killed:
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
    programs: dict[str, "Program"] = field(default_factory=dict)
    private: bool = False  # started by this run, for this run
    project: dict[str, Any] = field(default_factory=dict, repr=False)  # its settings

    @property
    def major(self) -> int:
        """The major version: 15 of 15.18."""
        return int(re.match(r"\d+", self.version)[0])

    @property
    def connect_timeout(self) -> int:
        """The bound in seconds, of which libpq wants two or more."""
        return max(2, round(self.timeout))

    def scrubbed(self, text: str) -> str:
        """The text without the passwords of the settings."""
        return scrubbed(scrubbed(text, self.settings), self.project)


@dataclass(frozen=True)
class Database:
    """One database on a server."""

    server: Server
    name: str


SECRET_OPTIONS = {"password", "sslpassword", "oauth_client_secret"}
SECRET_OPTIONS |= {"scram_client_key", "scram_server_key"}


def scrubbed(text: str, settings: dict[str, Any]) -> str:
    """The text with [REDACTED] for each password of the settings, however quoted."""
    options = settings.get("OPTIONS", {})
    known = [settings.get("PASSWORD"), *map(options.get, SECRET_OPTIONS)]
    forms = {form for secret in known if secret for form in forms_of(str(secret))}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "[REDACTED]")
    return text.strip()


def forms_of(secret: str) -> set[str]:
    """The ways in which programs, drivers and Python write a password."""
    escaped = secret.replace("\\", "\\\\")
    return {
        secret,
        quote(secret, safe=""),
        quote(secret),
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        escaped,
        escaped.replace("'", "\\'"),
        secret.replace("'", "''"),
    }


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
        configured = None
        if options.live or not options.throwaway:
            configured = configured_server(settings, options, mark)
        if configured is None or options.throwaway:
            major = configured.major if configured else None
            private = throwaway_server(folder, mark, options.timeout, major)
            server = replace(stack.enter_context(private), project=settings)
        else:
            server = configured
        cursor = stack.enter_context(holding_mark(server))
        require_right_to_create_databases(cursor)
        for name in orphans(cursor):
            try:
                drop_database(Database(server, name))
                log.warning("dropped a database of a killed run: %s", name)
            except NotJudged as error:
                log.warning("%s, of a killed run, is there still\n  %s", name, error)
        yield configured or server, server


def configured_server(
    settings: dict[str, Any], options: Options, mark: str
) -> Server | None:
    """The server of settings.DATABASES["default"], None when there is no database."""
    from django.core.exceptions import ImproperlyConfigured
    from django.db.utils import load_backend

    engine = settings["ENGINE"]
    if engine == "django.db.backends.dummy":
        ask = "set DATABASE_URL, or settings.DATABASES['default']"
        if options.live or options.strict:
            raise NotJudged(f"no database is configured\n  {ask}")
        log.warning("no database is configured: using a throwaway server")
        return None
    try:
        vendor = load_backend(engine).DatabaseWrapper.vendor
    except ImproperlyConfigured as error:
        raise NotJudged(f"the engine {engine} cannot be loaded\n  {error}") from None
    if vendor != "postgresql":
        raise NotJudged(f"the configured database is not PostgreSQL but {engine}")
    if "@" in str(settings["NAME"]):  # it holds a piece of a password
        raise NotJudged(f"the settings name a database with an @ in it\n  {ENCODE}")
    return introduced(Server(settings, options.timeout, mark), options.strict)


ENCODE = "in DATABASE_URL, percent-encode what is special in the password"


def introduced(server: Server, strict: bool = False) -> Server:
    """The server, with its version and the programs that fit it."""
    with session(maintenance(server)) as cursor:
        cursor.execute("""
            SELECT current_database(),
                   current_setting('server_version'),
                   pg_backend_pid()
            """)
        name, version, pid = cursor.fetchone()  # a service may name the database
        if pid != cursor.connection.info.backend_pid:
            raise NotJudged(
                "a connection pooler before the server shares its sessions out\n"
                "  let the settings name the server itself, for the drill"
            )
    settings = server.settings | {"NAME": name}
    server = replace(server, settings=settings, version=version.split()[0])
    programs = {name: fitting_program(name, server, strict) for name in PROGRAMS}
    if newer := [str(p) for p in programs.values() if p.major > server.major]:
        log.warning(
            "server %s is used with newer programs: %s\n  %s",
            server.version,
            ", ".join(newer),
            client_hint(server),
        )
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
    # As a server that is down: code that asks the database at start-up expects that.
    nowhere = dict(kept["default"], HOST=f"/nonexistent/{MARK}", PORT="", PASSWORD="")
    try:
        point_project_at(lambda _alias: dict(nowhere, OPTIONS={}))
        django.setup()
    except (Exception, SystemExit) as error:  # noqa: BLE001  any may come
        point_project_at(kept.get)
        said = scrubbed(f"{type(error).__name__}: {error}", kept["default"])
        raise NotJudged(
            f"the project cannot be set up\n{indented(said.splitlines())}"
        ) from None
    log.disabled = False  # LOGGING may disable the loggers that it does not name
    try:
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
    from django.core.exceptions import ImproperlyConfigured
    from django.db import connections

    try:
        connections.settings  # noqa: B018
    except (ImportError, ImproperlyConfigured, KeyError, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise NotJudged(f"the settings cannot be imported\n  {said}") from None
    except ValueError as error:
        # Its words may be a piece of a password that a URL cannot hold as it is.
        raise NotJudged(
            f"the settings cannot be read: {type(error).__name__}\n  {ENCODE}"
        ) from None
    except Exception as error:  # noqa: BLE001  any may come, and its words may tell
        *_, place = traceback.extract_tb(error.__traceback__)
        said = f"{type(error).__name__} in {place.filename}, line {place.lineno}"
        raise NotJudged(f"the settings cannot be imported\n  {said}") from None


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
    bound = f"-c statement_timeout={round(database.server.timeout * 1000)}"
    given = settings["OPTIONS"].get("options", "")
    settings["OPTIONS"] |= {"options": f"{given} {bound}".strip()}
    point_project_at(lambda _alias: settings)
    try:
        # Migrations print, and a quiet run shows nothing but its dots.
        with redirect_stdout(io.StringIO()):
            yield
    except (Exception, SystemExit) as error:  # noqa: BLE001  any may come
        log.info("%s", database.server.scrubbed(traceback.format_exc()))
        said = database.server.scrubbed(f"{type(error).__name__}: {error}")
        raise NotJudged(
            "the project's migrations fail\n"
            f"{indented(said.splitlines())}{advice(said)}"
        ) from None
    finally:
        point_project_at(lambda _alias: sealed)


def settings_for(database: Database) -> dict[str, Any]:
    """Django's settings for the database, without a pool, which would outlive it."""
    settings = database.server.settings
    options = {k: v for k, v in settings["OPTIONS"].items() if k != "pool"}
    return settings | {"NAME": database.name, "OPTIONS": options}


# Text, in and out, depends on these; and scratch databases are made from where only
# reading may be the default.
PINNED = """
SET timezone TO 'UTC';
SET datestyle TO 'ISO, YMD';
SET intervalstyle TO 'postgres';
SET bytea_output TO 'hex';
SET extra_float_digits TO 3;
SET lc_monetary TO 'C';
SET xmloption TO 'content';
SET quote_all_identifiers TO off;
SET standard_conforming_strings TO on;
SET search_path TO '';
SET row_security TO off;
SET jit TO off;
SET default_transaction_read_only TO off;
"""
# A session must bear to wait; only statement_timeout, which is ours, ends a statement.
PATIENT = """
SELECT set_config(name, '0', false)
  FROM pg_settings
 WHERE name ~ '^(idle_session|idle_in_transaction_session|transaction|lock)_timeout$'
"""


@contextmanager
def session(database: Database, snapshot: str | None = None) -> Iterator[Any]:
    """A cursor on a connection of its own; with a snapshot, in its transaction.

    Raises NotJudged, with the server's sentence, in place of a database error.
    """
    from django.core.exceptions import ImproperlyConfigured
    from django.db.utils import load_backend

    server = database.server
    settings = settings_for(database)
    bound = {"connect_timeout": server.connect_timeout}
    settings["OPTIONS"] = bound | settings["OPTIONS"]
    django = load_backend(settings["ENGINE"]).DatabaseWrapper(settings)
    connection = None
    try:
        # Not django.connect(): it tells the project, whose receivers may then write.
        connection = django.get_new_connection(django.get_connection_params())
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(PINNED)
        cursor.execute(PATIENT)
        cursor.execute(f"SET statement_timeout TO {round(server.timeout * 1000)}")
        if role := settings["OPTIONS"].get("assume_role"):
            cursor.execute("SELECT set_config('role', %s, false)", [role])
        if snapshot:
            cursor.execute(REPEATABLE_READ)
            cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        yield cursor
    except (django.Database.Error, ImproperlyConfigured) as error:
        said = server.scrubbed(str(error)) or type(error).__name__
        hint = advice(str(error))
        raise NotJudged(f'database "{database.name}": {said}{hint}') from None
    finally:
        if connection:
            connection.close()


REPEATABLE_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# What the world does to a drill, in PostgreSQL's words, and what to do about it.
ADVICE = {
    "check the user and the password": [
        "authentication failed",
        "no password supplied",
    ],
    "check the host and the port, and that the server runs": [
        "Connection refused",
        "could not translate",
        "failed to resolve",
        "failed: No such file",
        "timeout expired",
        "timed out",
        "No route",
    ],
    "the server went away: run again": [
        "server closed",
        "terminating connection",
        "connection to server was lost",
        "shutting down",
        "starting up",
        "connection already closed",
        "SSL connection has been closed",
    ],
    "check sslmode and its files, and the server's pg_hba.conf": [
        "pg_hba.conf",
        "SSL",
        "certificate",
    ],
    "install the locale on the machine of the server": [
        "invalid (locale|LC_COLLATE|LC_CTYPE)",
    ],
    "check the service, and where PGSERVICEFILE is": ["definition of service"],
    "check the name of the database": ['database ".*" does not exist'],
    "allow more time with --timeout SECONDS": ["statement timeout", "lock timeout"],
    "replay on the standby was faster: raise max_standby_streaming_delay": [
        "conflict with recovery",
    ],
    "let the role write in new databases (default_transaction_read_only)": [
        "read-only transaction",
    ],
    "make room on the disk": [
        "No space left",
        "could not extend",
        "could not write",
    ],
    "the server is at a limit: raise it, or run when it is less busy": [
        "too many (clients|connections)",
        "remaining connection slots",
        "out of memory",
        "shared memory",
    ],
    "a newer pg_dump wrote it: use the programs of the server's own version": [
        "unrecognized configuration parameter",
    ],
    "use a superuser to whom the roles are known, or --throwaway": [
        '(role|tablespace) ".*" does not exist',
        "must be (able to SET ROLE|member of role|superuser|owner)",
        "permission denied",
    ],
    "install the extension on the server": [
        'extension ".*" is not available',
        "could not open extension control file",
    ],
}


def advice(text: str) -> str:
    """What to do about a fault that is not the backup's, on a line of its own."""
    for hint, patterns in ADVICE.items():
        if re.search("|".join(patterns), text):
            return f"\n  {hint}"
    return ""


# --- Scratch databases ----------------------------------------------------------------


@contextmanager
def holding_mark(server: Server) -> Iterator[Any]:
    """A cursor whose session shows every other run that this one's mark is taken."""
    with session(maintenance(server)) as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [key_of(server.mark)])
        yield cursor


def maintenance(server: Server) -> Database:
    """The database from which others are made and dropped: the configured one."""
    return Database(server, server.settings["NAME"])


def key_of(name: str) -> int:
    """The key of the advisory lock that the run of this database holds."""
    return int.from_bytes(bytes.fromhex(name.split("_")[2]), signed=True)


def orphans(cursor: Any) -> list[str]:
    """The scratch databases of runs that no longer exist."""
    cursor.execute("""
        SELECT datname
          FROM pg_database
         WHERE pg_has_role(datdba, 'MEMBER')
         ORDER BY datname COLLATE "C"
        """)
    return [name for (name,) in cursor.fetchall() if is_orphan(name, cursor)]


def is_orphan(name: str, cursor: Any) -> bool:
    """Whether the name is a scratch database's, and no session holds its mark.

    Advisory locks belong to one database, and a run may hold its own in another: only
    pg_locks shows them all.
    """
    if not re.fullmatch(SCRATCH_NAME, name):
        return False
    cursor.execute(
        """
        SELECT count(*)
          FROM pg_locks
         WHERE locktype = 'advisory'
           AND objsubid = 1
           AND classid::bigint << 32 | objid::bigint = %s
        """,
        [key_of(name)],
    )
    return cursor.fetchone() == (0,)


SCRATCH_NAME = f"{MARK}[0-9a-f]{{16}}_(source|reference|restored)"


def drop_database(database: Database) -> None:
    """Drop a scratch database of this run, or of a run that is gone: no other."""
    server, name = database.server, database.name
    with session(maintenance(server)) as cursor:
        if not name.startswith(server.mark) and not is_orphan(name, cursor):
            raise RuntimeError(f'"{name}" is no scratch database of this run')
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
    ended_well = False
    try:
        with step(f"make {database.name}"), session(maintenance(server)) as cursor:
            # template1 may hold additions of the site's, with which a backup collides.
            cursor.execute(
                f"CREATE DATABASE {database.name} TEMPLATE template0 {locale}"
            )
        yield database
        ended_well = True
    finally:
        try:
            with undisturbed(), step(f"drop {database.name}"):
                drop_database(database)
        except NotJudged as error:
            left = f"{database.name} is left behind; the next drill there drops it"
            if ended_well:
                raise NotJudged(f"{left}\n  {error}") from None
            log.warning("%s\n  %s", left, error)  # what went wrong first comes first


def locale_of(cursor: Any) -> str:
    """The encoding and the locale of the database, as clauses of CREATE DATABASE."""
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


def require_right_to_create_databases(cursor: Any) -> None:
    """Raise NotJudged, before any work is done, when the role or the server may not."""
    cursor.execute("""
        SELECT pg_is_in_recovery(), rolname, rolcreatedb OR rolsuper
          FROM pg_roles
         WHERE rolname = current_user
        """)
    standby, role, may = cursor.fetchone()
    if standby:
        raise NotJudged(
            "the server is a standby, on which no database can be created\n"
            "  use --throwaway"
        )
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

    begun = False
    try:
        try:
            with step("start a throwaway server"):
                form = (*INITDB_OPTIONS, f"--lc-ctype={letters()}")
                serve("initdb", "-U", "postgres", "-A", "trust", *form)
                with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
                    file.write(f"unix_socket_directories = '{data}'\n{SERVER_SETTINGS}")
                begun = True
                serve("pg_ctl", "-w", "-t", str(round(timeout)), "-l", "log", "start")
        except BackupIsBad as error:
            log_lines = last_lines(data / "log")
            hint = "\n  set TMPDIR to a folder that every account may enter"
            raise NotJudged(
                f"the throwaway server does not start\n  {error}\n{log_lines}".rstrip()
                + hint * ("Permission denied" in str(error))
            ) from None
        yield private(data, mark, timeout)
    finally:
        if begun and (data / "postmaster.pid").exists():
            with undisturbed(), step("stop the throwaway server"):
                try:
                    serve("pg_ctl", "-w", "-m", "immediate", "stop")
                except BackupIsBad as error:  # it ends by itself, without its folder
                    log.warning("the throwaway server does not stop\n  %s", error)


INITDB_OPTIONS = ("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
LETTERS = "C.UTF-8"  # the locale that knows them all, where there is one
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


def letters() -> str:
    """The locale that tells letters from other signs: LETTERS, or else C."""
    kept = setlocale(LC_CTYPE)
    try:
        return setlocale(LC_CTYPE, LETTERS)
    except UnknownLocale:
        return "C"
    finally:
        setlocale(LC_CTYPE, kept)


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
    return introduced(Server(settings, timeout, mark, private=True))


def server_programs(major: int | None) -> Path:
    """The folder of a server's programs: of this major version, or of the newest."""
    found = {
        program.major: program.path.parent
        for program in programs_called("pg_ctl")
        if all((program.path.parent / name).exists() for name in ("initdb", "postgres"))
    }
    if not found or (major or max(found)) not in found:
        wanted = f"PostgreSQL {major}" if major else "PostgreSQL"
        raise NotJudged(
            f"no programs of a {wanted} server for a throwaway server\n"
            f"  install them, such as with: apt-get install postgresql"
            + f"-{major}" * bool(major)
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
    """End the server of a killed run, if it is still there; wait for its end."""
    if pid_file.exists():
        pid = pid_file.read_text().partition("\n")[0]
        command = Command(("ps", "-o", "args=", "-p", pid), 10)
        # ps fails when there is no such process. Where there is no ps, the server ends
        # by itself, within a minute of its folder.
        with suppress(BackupIsBad, FileNotFoundError, ProcessLookupError):
            if str(pid_file.parent) in run(command):
                os.kill(int(pid), signal.SIGQUIT)
                for _ in range(100):
                    time.sleep(0.05)
                    os.kill(int(pid), 0)


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
    for folder in os.get_exec_path():
        path = shutil.which(program, path=folder)
        # Debian's wrapper runs the newest version, whichever is asked for.
        if path and Path(path).resolve().name != "pg_wrapper":
            yield Path(path)
    for folder in PROGRAM_FOLDERS:
        yield from sorted(Path("/").glob(f"{folder}/{program}"))


@dataclass(frozen=True)
class Program:
    """A program of PostgreSQL's."""

    path: Path
    version: str  # 15.18

    @property
    def major(self) -> int:
        """The major version: 15 of 15.18."""
        return int(self.version.partition(".")[0])

    def __str__(self) -> str:
        """The program as messages name it."""
        return f"{self.path.name} {self.version}"


def programs_called(name: str) -> Iterator[Program]:
    """The programs of this name, but for those that do not work."""
    for path in candidates(name):
        try:
            program = introduced_program(path)
        except (BackupIsBad, OSError) as error:
            log.info("%s is passed over: %s", path, error)
        else:
            yield program


def introduced_program(path: Path) -> Program:
    """The program, with the version that it says it has."""
    said = run(Command((str(path), "--version"), 10))
    version = re.search(r"\) (\d[\d.]*)", said)
    if version is None:
        raise NotJudged(f"{path} does not tell its version when asked by --version")
    return Program(path, version[1])


def fitting_program(name: str, server: Server, strict: bool) -> Program:
    """The program of the server's major version, or else the next newer one."""
    others: dict[int, Program] = {}
    for program in programs_called(name):
        if program.major == server.major:
            return program
        others.setdefault(program.major, program)
    newer = [major for major in others if major > server.major]
    if not newer or strict:
        found = ", ".join(map(str, others.values())) or "none"
        raise NotJudged(
            f"{name} {server.major} is needed for server {server.version}, "
            f"found: {found}\n  {client_hint(server)}"
        )
    return others[min(newer)]


def client_hint(server: Server) -> str:
    """How to get the programs of the server's version."""
    return (
        f"install them, such as with: apt-get install postgresql-client-{server.major}"
    )


@dataclass(frozen=True)
class Command:
    """A program to run, with its arguments, its environment and its bound."""

    arguments: tuple[str, ...]
    timeout: float  # seconds
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    database: Database | None = None
    server: Server | None = None

    @property
    def secret_settings(self) -> dict[str, Any]:
        """The settings whose passwords the program may know."""
        server = self.database.server if self.database else self.server
        return server.settings if server else {}


def command(database: Database, name: str, *arguments: str | Path) -> Command:
    """A program of PostgreSQL's on the database, in Django's translation for psql."""
    from django.db.backends.postgresql.client import DatabaseClient

    server = database.server
    settings = settings_for(database)
    (_, *where, _), secret = DatabaseClient.settings_to_cmd_args_env(settings, [])
    where += ["--no-password", "--dbname", conninfo(database)]
    environment = {"PGCONNECT_TIMEOUT": str(server.connect_timeout), **(secret or {})}
    password = settings["OPTIONS"].get("password")
    if password and not settings["PASSWORD"]:
        environment["PGPASSWORD"] = password
    program = str(server.programs[name].path)
    return Command(
        (program, *where, *map(str, arguments)), server.timeout, environment, database
    )


# Translated by Django, secret, or none of libpq's.
NOT_FOR_DBNAME = {"passfile", "service", "sslmode", "sslrootcert", "sslcert", "sslkey"}
NOT_FOR_DBNAME |= SECRET_OPTIONS
NOT_FOR_DBNAME |= {"assume_role", "isolation_level", "prepare_threshold"}


def conninfo(database: Database) -> str:
    """The database's name, and what Django's translation leaves out, for --dbname."""
    options = settings_for(database)["OPTIONS"]
    words = {
        name: value
        for name, value in options.items()
        if name not in NOT_FOR_DBNAME and type(value) in (str, int)
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
    inherited = {k: v for k, v in os.environ.items() if not is_libpqs(k)}
    with spoken() as stdout, spoken() as stderr:
        process = subprocess.Popen(
            command.arguments,
            env=inherited | {"LC_ALL": "C"} | command.environment,
            start_new_session=True,  # a process group of its own
            umask=0o077,
            **{"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr} | popen,
        )
        overran = Event()
        bound = Timer(command.timeout, lambda: overran.set() or kill_group(process))
        bound.daemon = True

        def finish() -> str:
            # Not wait(): a signal that comes just before it would have to wait as well.
            while process.poll() is None:
                time.sleep(0.005)
            if overran.is_set():
                raise NotJudged(overrun(command))
            return judged(command, process.returncode, said(stdout), said(stderr))

        try:
            with suppress(RuntimeError):  # Python 3.12 starts no thread at its own end
                bound.start()
            yield finish
        finally:
            bound.cancel()
            kill_group(process)
            process.wait()


def spoken() -> TextIO:
    """A file for what a program says; in memory, if that can be: disks may be full."""
    how = {"encoding": "utf-8", "errors": "surrogateescape"}
    if hasattr(os, "memfd_create"):  # Linux
        return open(os.memfd_create("said"), "w+", **how)
    return TemporaryFile("w+", **how)


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
    lines = scrubbed(stderr, command.secret_settings).splitlines()
    if status == 0:
        # A backup brackets its large objects in BEGIN and COMMIT of its own.
        lines = [line for line in lines if " transaction in progress" not in line]
        if lines and server:
            level = logging.WARNING if program == "pg_dump" else logging.INFO
            log.log(level, "%s says:\n%s", program, indented(lines, len(lines)))
        return stdout
    faults = [n for n, line in enumerate(lines) if FAULT.search(line)]
    lines = lines[min(faults, default=0) :]  # warnings may precede
    # Without a server its words are of our own files; and some lines quote the data.
    words = [line for line in lines if not QUOTES.match(line)] if server else []
    hint = advice("\n".join(words))
    where = f' on database "{command.database.name}"' if command.database else ""
    ended = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
    verdict = NotJudged if hint else BackupIsBad
    raise verdict(f"{program} {ended}{where}\n{indented(lines)}{hint}")


FAULT = re.compile("(ERROR|FATAL|PANIC|error): ")
QUOTES = re.compile(r"(DETAIL|CONTEXT|QUERY|LINE \d+): ")


def indented(lines: list[str], most: int = 20) -> str:
    """The first lines, set in by two blanks, and how many more there are."""
    shown = [f"  {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"  ... and {len(lines) - most} more")
    return "\n".join(shown)


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
    sha256: str  # of a folder: of what sha256sum prints of its files
    size: int  # bytes
    locale: str  # the clauses of CREATE DATABASE that make a like database
    schema: str = field(default="", repr=False)  # the source's, as SQL
    # None: there is no source, and the backup is the witness of its own contents.
    contents: Contents | None = field(default=None, repr=False)
    seconds: float | None = None  # None: the backup was there before this run
    rehearsal: bool = False
    makes_public: bool = False  # it has the schema itself, as after pg_dump -n public
    uncompared: dict[str, str] = field(default_factory=dict)  # thing -> why

    @property
    def least_size(self) -> int:
        """Bytes below which it cannot hold its source; a live one may be empty."""
        return 1024 if self.rehearsal else 1

    @property
    def rows(self) -> dict[str, int]:
        """The source's tables, each with its number of rows."""
        return {
            thing.removeprefix("table "): aspects["rows"]
            for thing, aspects in (self.contents or {}).items()
            if thing.startswith("table ") and "rows" in aspects
        }


def create_backup(
    options: Options, configured: Server, server: Server, folder: Path
) -> Backup:
    """A backup of the source that the options ask for; an existing one is adopted."""
    if options.backup:
        return adopted(options.backup, server)
    if options.live:
        source = maintenance(configured)
        if not server.private:
            require_right_to_restore(source)
        return dumped(source, options, folder)
    with rehearsal(server) as source:
        return replace(dumped(source, options, folder), rehearsal=True)


@contextmanager
def rehearsal(server: Server) -> Iterator[Database]:
    """A scratch database with the project's migrations and the sample, then lost."""
    from django.core.management import call_command

    with session(maintenance(server)) as cursor:
        locale = locale_of(cursor)
    with scratch_database(server, "source", locale) as source:
        with step("run the project's migrations"), lent(source):
            call_command("migrate", interactive=False, verbosity=0)
        with step("load the sample"), session(source) as cursor:
            cursor.execute("SHOW server_encoding")
            utf8 = cursor.fetchone() == ("UTF8",)
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
    with (
        session(source) as cursor,  # whose queries keep no lock: others write on
        snapshot_of(source) as snapshot,
        step("write the backup, read the source"),
    ):
        cursor.execute("SET default_transaction_read_only TO on")
        require_right_to_read(cursor)
        same = ("--snapshot", snapshot, "--lock-wait-timeout", lock_timeout(source))
        write_backup = command(source, "pg_dump", *same, *form)
        write_schema = command(source, "pg_dump", *same, *schema_only(cursor))
        before = sequences_of(cursor)
        began = time.monotonic()
        with (
            started(write_backup) as written,
            started(write_schema) as schema_written,
            being_read(source, snapshot) as read,
        ):
            with progress(lambda: f"{size_on_disk(path):,} bytes written"):
                written()
            seconds = time.monotonic() - began
            if not path.exists():
                raise BackupIsBad("pg_dump ended well, and wrote no backup")
            sha256, size = fingerprint(path)
            schema = schema_written()
            contents = read()
        sequences, unsettled = bracketed(before, sequences_of(cursor))
        locale, elsewhere = locale_of(cursor), uncarried_of(cursor)
    merge(contents, {thing: sequences[thing] for thing in sequences.keys() & contents})
    merge(contents, entries_of(schema))
    contents, uncompared = carried(contents)
    return Backup(
        path=path,
        format=options.format,
        sha256=sha256,
        size=size,
        locale=locale,
        schema=schema,
        contents=contents,
        seconds=seconds,
        uncompared=uncompared | elsewhere | unsettled,
    )


@contextmanager
def progress(describe: Callable[[], str]) -> Iterator[None]:
    """Show on a terminal, twice a second, how far a long act has come."""

    def show() -> None:
        while not over.wait(0.5):
            # Behind unittest's dots: the cursor is saved, and brought back.
            print(f"\x1b7 {describe()}\x1b[K\x1b8", end="", file=sys.stderr, flush=True)

    over = Event()
    thread = Thread(target=show)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.ident:
            thread.join()
            print("\x1b[K", end="", file=sys.stderr, flush=True)


def size_on_disk(path: Path) -> int:
    """The bytes of a file, or of a folder's files, as far as they are written."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())


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


def require_right_to_read(cursor: Any) -> None:
    """Raise NotJudged, naming what the role may not read whole."""
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
         UNION ALL
        SELECT format('large object %s', oid), 'the role may not read it'
          FROM pg_largeobject_metadata
         WHERE NOT pg_has_role(lomowner, 'USAGE')
           AND NOT EXISTS (SELECT
                             FROM aclexplode(lomacl)
                            WHERE privilege_type = 'SELECT'
                              AND (grantee = 0 OR pg_has_role(grantee, 'USAGE')))
        """)
    unreadable = sorted(f"{name}: {why}" for name, why in cursor.fetchall())
    if unreadable:
        shown = indented(unreadable)
        raise NotJudged(
            f"the database cannot be read whole by this role\n{shown}\n"
            f"  use a role that owns the tables, or has BYPASSRLS and may read them"
        )


def require_right_to_restore(source: Database) -> None:
    """Raise NotJudged, naming the owners in whose name the role may not create."""
    with session(source) as cursor:
        cursor.execute("""
            WITH owned (owner, namespace, class, object) AS (
                SELECT relowner, relnamespace, tableoid, oid FROM pg_class
                 UNION ALL
                SELECT proowner, pronamespace, tableoid, oid FROM pg_proc
                 UNION ALL
                SELECT typowner, typnamespace, tableoid, oid FROM pg_type
                 WHERE typtype IN ('d', 'e', 'r')
                 UNION ALL
                SELECT nspowner, oid, tableoid, oid FROM pg_namespace)
            SELECT DISTINCT owner::regrole::text
              FROM owned
              JOIN pg_namespace AS n ON n.oid = namespace
             WHERE nspname !~ '^pg_'
               AND nspname <> 'information_schema'
               AND NOT pg_has_role(owner, 'MEMBER')
               AND owner <> 'pg_database_owner'::regrole  -- whoever that is there
               AND NOT EXISTS (SELECT
                                 FROM pg_depend
                                WHERE classid = class
                                  AND objid = object
                                  AND deptype = 'e')
             ORDER BY 1
            """)
        owners = [owner for (owner,) in cursor.fetchall()]
    if owners:
        raise NotJudged(
            f"this role may not restore objects of other owners: {', '.join(owners)}\n"
            f"  use a superuser or a member of these roles, or --throwaway"
        )


def bracketed(
    before: list["Sequence"], after: list["Sequence"]
) -> tuple[Contents, dict[str, str]]:
    """The sequences as they may be restored; those whose values tell nothing, and why.

    No snapshot covers a sequence: what is dumped of one that only goes on lies between
    these two.
    """
    contents, unsettled = gathered(before + after), {}
    earlier, later = ({one.thing: one for one in each} for each in (before, after))
    for thing, aspects in contents.items():
        old, new = earlier.get(thing), later.get(thing)
        if old == new:
            continue
        aspects |= {"value": ANYTHING, "called": ANYTHING, "behind": ANYTHING}
        if old and new and old.goes_on_to(new):
            low, high = sorted((old.value, new.value))
            aspects["value"] = range(low, high + 1)
        else:
            unsettled[thing] = "it was set, restarted or dropped meanwhile"
    return contents, unsettled


def merge(contents: Contents, more: Contents) -> None:
    """Add the aspects of `more` to `contents`."""
    for thing, aspects in more.items():
        contents.setdefault(thing, {}).update(aspects)


def carried(contents: Contents) -> tuple[Contents, dict[str, str]]:
    """What a dump carries of the contents, and why the rest is not compared."""
    kept: Contents = {}
    left: dict[str, str] = {}
    for thing, aspects in contents.items():
        if thing.startswith("index ") and not aspects.get("valid", True):
            left[thing] = "invalid, so pg_dump leaves it out"
            continue
        kept[thing] = dict(aspects)
        if aspects.get("enforced") is False:
            left[thing] = "a dump does not tell that it is switched off"
            kept[thing]["enforced"] = ANYTHING
    return kept, left


# What a dump does not hold, or not whole, or not as it is.
UNCARRIED = r"""
SELECT r.thing,
       CASE r.relkind
       WHEN 'f' THEN 'the rows lie elsewhere'
       WHEN 'm' THEN 'the rows are made anew'
       END
  FROM relation AS r
 WHERE r.relkind IN ('f', 'm')
 UNION ALL
SELECT 'table ' || replace(n.nspname, '.', '\.') || '.' || c.relname,
       'the rows belong to an extension'
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_depend AS d ON d.objid = c.oid
 WHERE d.classid = 'pg_class'::regclass
   AND d.deptype = 'e'
   AND c.relkind = 'r'
 UNION ALL
SELECT 'extension ' || extname, 'what it holds is made anew by the server''s version'
  FROM pg_extension
 WHERE extname <> 'plpgsql'
 UNION ALL
SELECT 'subscription ' || subname, 'it is restored switched off'
  FROM pg_subscription
  JOIN pg_database AS d ON d.oid = subdbid
 WHERE datname = current_database()
 ORDER BY 1
"""


def uncarried_of(cursor: Any) -> dict[str, str]:
    """What of the source is not compared, because a dump does not carry it: why."""
    cursor.execute(RELATIONS + UNCARRIED)
    return dict(cursor.fetchall())


# --- A backup that exists -------------------------------------------------------------

FORMATS = {
    "plain": rb"(\s*--[^\n]*\n)*?-- PostgreSQL database dump\r?\n",
    "custom": b"PGDMP",
    "gzip": b"\x1f\x8b",
    "tar": rb"toc\.dat\0",
}
# What is not a backup of one database, or not yet.
STRANGERS = {
    rb"(\s*--[^\n]*\n)*?-- PostgreSQL database cluster dump": (
        "pg_dumpall wrote it, and it recreates a whole server",
        "back each database up with pg_dump",
    ),
    rb"Salted__|-----BEGIN PGP|age-encryption|\x85[\x01-\x04]|\x8c\x0d": (
        "it is encrypted",
        "decrypt it first",
    ),
    rb"\xfd7zXZ|\x28\xb5\x2f\xfd|BZh|PK\x03\x04|\x04\x22M\x18": (
        "it is compressed by another program than gzip",
        "decompress it first",
    ),
    rb"\xff\xfe|\xfe\xff": (
        "it is UTF-16, as a redirection in PowerShell makes it",
        "let pg_dump write the file itself: pg_dump --file",
    ),
    rb"SQLite format 3|-- MySQL dump|-- MariaDB dump": (
        "it is of another database system",
        "the drill restores what pg_dump writes",
    ),
}


def adopted(path: Path, server: Server) -> Backup:
    """A backup that was there before this run; it is only ever read."""
    form = format_of(path)
    sha256, size = fingerprint(path)
    record = record_of(path)
    if record.exists():
        words = record.read_text(errors="replace").split()
        expected = (words or ["nothing"])[0].lower()
        if sha256 != expected:
            raise BackupIsBad(
                f"the backup is not the one that {record.name} speaks of\n"
                f"  SHA-256: found {sha256}, expected {expected}"
            )
    backup = Backup(path, form, sha256, size, locale="")
    head = head_of(backup, server)
    require_not_newer(head, server)
    scan = SqlScan()
    if form in ("plain", "gzip"):  # psql obeys a file that pg_restore would not
        with open_sql(backup, server) as sql:
            scan.read(sql)
        require_fit_for_fresh_database(scan)
        refuse("the backup would reach beyond its database", scan.escapes)
    else:
        scan.read(io.BytesIO(head.encode(errors="surrogateescape")))
    locale = locale_for(head, server)
    return replace(backup, locale=locale, makes_public=scan.makes_public)


def record_of(path: Path) -> Path:
    """Where the SHA-256 of a backup is kept."""
    return path.with_name(f"{path.name}.sha256")


def require_fit_for_fresh_database(scan: "SqlScan") -> None:
    """Raise NotJudged for SQL that is meant for another place than a new database."""
    if any("CREATE DATABASE" in escape for escape in scan.escapes):
        raise NotJudged(
            "the backup makes a database of its own: pg_dump --create wrote it\n"
            "  dump without --create, or in an archive format, which holds it apart"
        )
    if scan.drops:
        raise NotJudged(
            "the backup drops what a fresh database lacks: pg_dump --clean wrote it\n"
            "  dump with --if-exists as well, or in an archive format"
        )


def format_of(path: Path) -> str:
    """The format of a backup, told from its content."""
    if path.is_dir():
        if not (path / "toc.dat").is_file():
            raise BackupIsBad(f"{path} is no backup: the folder has no toc.dat")
        refuse("the backup is damaged", faults_of_directory(path))
        return "directory"
    if path.exists() and not path.is_file():  # a pipe can be read but once
        raise NotJudged(f"{path} is neither a file nor a folder")
    with path.open("rb") as file:
        head = file.read(512)
    if not head.strip(b"\0"):
        found = "it is empty" if not head else "it begins with zero bytes"
        raise BackupIsBad(f"{path} is no backup: {found}")
    for form, magic in FORMATS.items():
        if re.match(magic, head):
            if form == "tar":
                refuse("the backup is damaged", faults_of_tar(path))
            if form == "gzip":
                refuse_stranger(path, beginning_of(path), STRANGERS | PACKED)
            return form
    refuse_stranger(path, head, STRANGERS)
    raise BackupIsBad(
        f"{path} is no backup that pg_dump wrote\n"
        f"  it begins with {quoted(head)}, expected {quoted(HEADER)}\n"
        f"  if it is encrypted, decrypt it first"
    )


# What is no plain backup under gzip, though it is one without.
PACKED = {
    rb"PGDMP|(?s:.{257})ustar": ("an archive was gzipped", "decompress it first"),
}


def refuse_stranger(
    path: Path, head: bytes, strangers: dict[bytes, tuple[str, str]]
) -> None:
    """Raise BackupIsBad when what begins so is one of the strangers."""
    for magic, (fact, hint) in strangers.items():
        if re.match(magic, head):
            raise BackupIsBad(f"{path} cannot be restored: {fact}\n  {hint}")


def beginning_of(path: Path) -> bytes:
    """The first bytes of what a gzip file holds, as far as it can be read."""
    with suppress(EOFError, gzip.BadGzipFile, zlib.error), gzip.open(path) as packed:
        return packed.read(4096)
    return b""


def faults_of_tar(path: Path) -> list[str]:
    """What is wrong with a tar, which pg_restore may read cut, or read for ever."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            for member in members:
                found = size - member.offset_data
                if found < member.size:
                    expected = f"found {found} bytes, expected {member.size}"
                    return [f"the tar is cut in {member.name}: {expected}"]
            names = [member.name for member in members]
            lists = [tar.extractfile(n).read() for n in names if LISTS.match(n)]
    except tarfile.TarError as error:
        return [f"the tar cannot be read: {error}"]
    with path.open("rb") as file:
        file.seek(member.offset_data + member.size + -member.size % 512)
        if file.read(1024) != bytes(1024):
            return ["the tar is cut: it has no end-of-archive blocks"]
        if any(piece.strip(b"\0") for piece in iter(lambda: file.read(CHUNK), b"")):
            return ["something follows the end of the tar"]
    return faults_of_large_objects(names, lists)


def faults_of_directory(path: Path) -> list[str]:
    """What pg_restore takes for empty files, or for none."""
    for file in sorted(path.glob("*.gz")):
        with file.open("rb") as packed:
            if packed.read(2) != FORMATS["gzip"]:
                return [f"{file.name} is no gzip file"]
    files = sorted(path.iterdir())
    lists = [file.read_bytes() for file in files if LISTS.match(file.name)]
    return faults_of_large_objects([file.name for file in files], lists)


LISTS = re.compile(r"blobs(_\d+)?\.toc")  # of large objects: a number and a file each


def faults_of_large_objects(names: list[str], lists: list[bytes]) -> list[str]:
    """The files of large objects that are not there, or that no list names."""
    found = {name.split(".")[0] for name in names if name.startswith("blob_")}
    listed = {
        line.partition(b" ")[2].decode("utf-8", "replace").split(".")[0]
        for line in b"\n".join(lists).splitlines()
        if line
    }
    missing = [f"large object {name}: missing" for name in sorted(listed - found)]
    return missing + [
        f"large object {name}: not in the list" for name in sorted(found - listed)
    ]


def head_of(backup: Backup, server: Server) -> str:
    """The beginning of the backup as SQL; of an archive, the whole schema."""
    if backup.format == "gzip":
        return beginning_of(backup.path).decode("utf-8", "replace")
    if backup.format == "plain":
        with backup.path.open("rb") as file:
            return file.read(4096).decode("utf-8", "replace")
    try:
        return run(archive_command(backup, server, "--schema-only"))
    except BackupIsBad as error:
        if "unsupported version" not in str(error):
            raise
        raise NotJudged(f"a newer pg_dump wrote the backup: {error}\n{NEWER}") from None


NEWER = "  run the drill on a server of that version, or of a newer one"


def require_not_newer(head: str, server: Server) -> None:
    """Raise NotJudged when a newer PostgreSQL wrote the backup."""
    for what in ("from database", "by pg_dump"):
        written = re.search(rf"^-- Dumped {what} version (\d+)", head, re.MULTILINE)
        if written and int(written[1]) > server.major:
            raise NotJudged(
                f"the backup was dumped {what} version {written[1]}, and PostgreSQL "
                f"{server.version} cannot be relied on to restore it\n{NEWER}"
            )


def locale_for(head: str, server: Server) -> str:
    """The clauses of CREATE DATABASE for a backup's encoding; it tells no locale."""
    encoding = re.search(r"^SET client_encoding = '(\w+)';", head, re.MULTILINE)
    with session(maintenance(server)) as cursor:
        cursor.execute("""
            SELECT pg_encoding_to_char(encoding)
              FROM pg_database
             WHERE datname = 'template0'
            """)
        (default,) = cursor.fetchone()
    if encoding is None or encoding[1] == default:
        return ""
    return f"ENCODING '{encoding[1]}' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'"


# --- Contents -------------------------------------------------------------------------

# Each statement answers with things and their aspects, as text. A system's, an
# extension's and another session's temporary objects are nobody's to back up.
RELATIONS = r"""
WITH site_schema AS (
    SELECT oid, nspname, replace(nspname, '.', '\.') || '.' AS prefix
      FROM pg_namespace
     WHERE nspname !~ '^pg_'
       AND nspname <> 'information_schema'),
relation AS (
    SELECT c.*, n.nspname, n.prefix || c.relname AS full_name,
           CASE c.relkind
           WHEN 'v' THEN 'view'
           WHEN 'm' THEN 'materialized view'
           WHEN 'f' THEN 'foreign table'
           WHEN 'c' THEN 'type'
           WHEN 'S' THEN 'sequence'
           WHEN 'i' THEN 'index'
           WHEN 'I' THEN 'index'
           ELSE 'table'
           END || ' ' || n.prefix || c.relname AS thing
      FROM pg_class AS c
      JOIN site_schema AS n ON n.oid = c.relnamespace
     WHERE NOT EXISTS (SELECT
                         FROM pg_depend AS d
                        WHERE d.classid = 'pg_class'::regclass
                          AND d.objid = c.oid
                          AND d.deptype = 'e'))
"""
# A row's hash is the XOR of its values' hashes, each with a seed of its own. Columns go
# by name, because a restore may order those of an inheritance child differently. ROW()
# puts any type into text, at thrice the cost; what is named here is as exact without.
ROW_HASHES = """
, row_hash AS (
    SELECT attrelid,
           string_agg(format('coalesce(' || hash || ', 0)', attname, seed),
                      ' # ') AS expression
      FROM (SELECT attrelid, attname,
                   row_number() OVER (PARTITION BY attrelid
                                      ORDER BY attname COLLATE "C") AS seed,
                   CASE
                   WHEN atttypid = 'int4'::regtype
                   THEN 'hashint4extended(t.%I, %s)'
                   WHEN atttypid = 'bpchar'::regtype AND atttypmod > 0  -- padded
                   THEN 'hashbpcharextended(t.%I COLLATE "C", %s)'
                   WHEN atttypid = ANY ('{bool, int2, int8, float8, numeric, date,
                                          timestamp, timestamptz, text, varchar,
                                          uuid, json, jsonb}'::regtype[])
                   THEN 'hashtextextended(t.%I::text COLLATE "C", %s)'
                   ELSE 'hashtextextended(ROW(t.%I)::text COLLATE "C", %s)'
                   END AS hash
              FROM pg_attribute
             WHERE attnum > 0
               AND NOT attisdropped) AS value
     GROUP BY attrelid)
"""
# A parent does not count its children (ONLY). A sum counts equal rows, XOR loses them.
# What enum a hash partition holds depends on OIDs: its rows are counted as the root's.
TABLES = """
SELECT leaf.oid,
       pg_table_size(leaf.oid),
       counted_as,
       format('SELECT %L, json_build_object(''rows'', count(*), ''values'', '
              'coalesce(sum(%s), 0))::text',
              counted_as, coalesce(expression, '0')),
       format('%I.%I', leaf.nspname, leaf.relname),
       root.thing
  FROM relation AS leaf
  LEFT JOIN relation AS root ON root.oid = pg_partition_root(leaf.oid)
  LEFT JOIN row_hash ON attrelid = leaf.oid,
LATERAL coalesce((SELECT root.thing
                    FROM pg_partition_ancestors(leaf.oid)
                    JOIN pg_partitioned_table ON partrelid = relid
                    JOIN pg_opclass AS c ON c.oid = ANY (partclass)
                   WHERE partstrat = 'h'
                     AND opcname = 'enum_ops'
                   LIMIT 1), leaf.thing) AS counted_as
 WHERE leaf.relkind = 'r'
"""


@dataclass(frozen=True)
class Table:
    """A table, and the question for the number and the values of its rows."""

    oid: int
    size: int  # bytes
    thing: str  # as which its rows are counted
    question: str  # which lacks its FROM
    name: str  # quoted
    root: str | None  # the thing of which it is a partition

    @property
    def statement(self) -> str:
        """The question, put to the table itself."""
        return f"{self.question} FROM ONLY {self.name} AS t"


def tables_of(cursor: Any) -> list[Table]:
    """The tables whose rows are compared, the largest first."""
    cursor.execute(RELATIONS + ROW_HASHES + TABLES)
    tables = [Table(*row) for row in cursor.fetchall()]
    return sorted(tables, key=lambda table: (-table.size, table.name))


SEQUENCES = """
SELECT format('SELECT %L, json_build_object(''value'', last_value, ''called'', '
              'is_called)::text, last_value, %s, pg_relation_filepath(%s), log_cnt '
              'FROM %I.%I',
              r.thing, CASE WHEN seqcycle THEN 0 ELSE sign(seqincrement) END, r.oid,
              r.nspname, r.relname)
  FROM relation AS r
  JOIN pg_sequence ON seqrelid = r.oid
 ORDER BY r.thing COLLATE "C"
"""
# Whether a sequence would come to a value that its column already has. The table is
# locked first, as TRUNCATE does: in the other order, they could wait for each other.
BEHIND = """
SELECT format('SELECT %L, json_build_object(''behind'', coalesce(most %s last_value '
              'OR most = last_value AND NOT is_called, false))::text '
              'FROM (SELECT %s(%I) AS most FROM %s) AS t, %I.%I',
              r.thing, beyond, most, attname, d.refobjid::regclass,
              r.nspname, r.relname)
  FROM relation AS r
  JOIN pg_sequence ON seqrelid = r.oid
  JOIN (VALUES ('max', '>', 1), ('min', '<', -1)) AS direction (most, beyond, sign)
    ON sign = sign(seqincrement)
  JOIN pg_depend AS d ON d.objid = r.oid
  JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.classid = 'pg_class'::regclass
   AND d.refclassid = 'pg_class'::regclass
   AND d.deptype IN ('a', 'i')
   AND d.refobjsubid > 0
   AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
"""
OBJECTS = (
    """
    SELECT r.thing, json_build_object(
               'unlogged', r.relpersistence = 'u',
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
               CASE a.attidentity
                   WHEN 'a' THEN 'GENERATED ALWAYS AS IDENTITY'
                   WHEN 'd' THEN 'GENERATED BY DEFAULT AS IDENTITY'
               END,
               CASE a.attgenerated WHEN '' THEN 'DEFAULT ' ELSE 'GENERATED ' END
                   || pg_get_expr(d.adbin, d.adrelid)))
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
           END || r.full_name || ' ' || c.conname,
           json_build_object(
               'definition', pg_get_constraintdef(c.oid),
               'validated', c.convalidated,
               'enforced', (SELECT bool_and(tgenabled = 'O')
                              FROM pg_trigger
                             WHERE tgconstraint = c.oid
                               AND tgisinternal))
      FROM relation AS r
      JOIN pg_constraint AS c ON c.conrelid = r.oid
     WHERE c.contype <> 't'
       AND NOT (c.contype = 'f' AND c.conparentid <> 0)
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
    SELECT 'trigger ' || r.full_name || ' ' || t.tgname,
           json_build_object('definition', pg_get_triggerdef(t.oid),
                             'enabled', CASE t.tgenabled
                                            WHEN 'O' THEN 'yes'
                                            WHEN 'D' THEN 'no'
                                            WHEN 'A' THEN 'always'
                                            WHEN 'R' THEN 'on a replica'
                                        END)
      FROM relation AS r
      JOIN pg_trigger AS t ON t.tgrelid = r.oid
     WHERE NOT t.tgisinternal
    """,
    """
    SELECT 'policy ' || r.full_name || ' ' || p.polname,
           json_build_object('command', p.polcmd,
                             'permissive', p.polpermissive,
                             'roles', (SELECT string_agg(CASE role
                                           WHEN 0 THEN 'PUBLIC'
                                           ELSE role::regrole::text
                                       END, ', ') FROM unnest(p.polroles) AS role),
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
           END || n.prefix || p.proname
               || '(' || oidvectortypes(p.proargtypes) || ')',
           json_build_object('definition', CASE WHEN p.prokind <> 'a'
                                                THEN pg_get_functiondef(p.oid)
                                            END)
      FROM pg_proc AS p
      JOIN site_schema AS n ON n.oid = p.pronamespace
     WHERE NOT EXISTS (SELECT
                         FROM pg_depend AS d
                        WHERE d.classid = 'pg_proc'::regclass
                          AND d.objid = p.oid
                          AND d.deptype IN ('e', 'i'))  -- a range's constructors
    """,
    """
    SELECT CASE t.typtype WHEN 'd' THEN 'domain ' ELSE 'type ' END
               || n.prefix || t.typname,
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
      JOIN site_schema AS n ON n.oid = t.typnamespace
     WHERE t.typtype IN ('d', 'e', 'r')
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
     WHERE extname <> 'plpgsql'  -- template0 has it, and no dump drops it
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
    with (
        step(f"read {database.name}"),
        session(database) as cursor,
        started(command(database, "pg_dump", *schema_only(cursor))) as schema_written,
        being_read(database) as read,
    ):
        contents = read()
        merge(contents, gathered(sequences_of(cursor)))
        merge(contents, entries_of(schema_written()))
    return contents


def schema_only(cursor: Any) -> tuple[str, ...]:
    """The arguments by which pg_dump writes the schema, readable if it can be."""
    cursor.execute("SHOW server_encoding")
    (encoding,) = cursor.fetchone()  # bytes of any kind cannot be made UTF-8
    return (
        "--schema-only",
        "--encoding",
        encoding if encoding == "SQL_ASCII" else "UTF8",
    )


@contextmanager
def being_read(
    database: Database, snapshot: str | None = None
) -> Iterator[Callable[[], Contents]]:
    """Start to read rows and objects; yield what waits for them."""
    with session(database, snapshot) as cursor:
        tables = tables_of(cursor)
        cursor.execute(RELATIONS + BEHIND)
        behind = joined([statement for (statement,) in cursor.fetchall()])
    large = [table.statement for table in tables if table.size > 2**20]
    small = [table.statement for table in tables if table.size <= 2**20]
    rows = [*large, *joined(small)]
    questions = [*rows, *behind, *map(as_text, OBJECTS)]
    answers: list[list[tuple]] = [[] for _ in questions]
    names = ", ".join(f"ONLY {table.name}" for table in tables)
    # No snapshot covers TRUNCATE; pg_dump locks the tables that it dumps as well.
    first = f"LOCK TABLE {names} IN ACCESS SHARE MODE" if snapshot and names else ""

    def read() -> Contents:
        with progress(lambda: f"{read_so_far():,} of {len(tables):,} tables read"):
            finish()
        return gathered(one for each in answers for one in sorted(each))

    def read_so_far() -> int:
        return sum(map(len, answers[: len(rows)]))

    with being_asked(database, questions, answers, snapshot, first) as finish:
        yield read


def as_text(query: str) -> str:
    """The query on relations, with its JSON as text, which each driver leaves alone."""
    return (
        f"{RELATIONS} SELECT thing, aspects::text FROM ({query}) AS o (thing, aspects)"
    )


class Sequence(NamedTuple):
    """A sequence as it stands at one moment."""

    thing: str
    aspects: str  # as JSON
    value: int
    direction: int  # of its values; 0 where it begins anew at its end
    file: str  # a restart gives it another one
    logged: int  # values that its log is ahead: none after it was set

    def goes_on_to(self, later: "Sequence") -> bool:
        """Whether it came from here to there by nothing but taking values."""
        return (
            self.file == later.file
            and later.logged > 0
            and later.direction * (later.value - self.value) > 0
        )


def sequences_of(cursor: Any) -> list[Sequence]:
    """The sequences that the session sees, by name."""
    cursor.execute(RELATIONS + SEQUENCES)
    statements = joined([statement for (statement,) in cursor.fetchall()])
    sequences = []
    for statement in statements:
        cursor.execute(statement)
        sequences += [Sequence(*row) for row in cursor.fetchall()]
    return sequences


def joined(statements: list[str], at_once: int = 100) -> list[str]:
    """Fewer statements that answer the same."""
    return [
        "\nUNION ALL\n".join(statements[n : n + at_once])
        for n in range(0, len(statements), at_once)
    ]


def gathered(answers: Iterable[tuple]) -> Contents:
    """The contents that the answers speak of; what several count is added."""
    contents: Contents = {}
    for thing, aspects, *_ in answers:
        known = contents.setdefault(thing, {})
        for aspect, value in json.loads(aspects).items():
            counted = aspect in ("rows", "values") and aspect in known
            known[aspect] = known[aspect] + value if counted else value
    return contents


@contextmanager
def being_asked(
    database: Database,
    questions: list[str],
    answers: list[list[tuple]],
    snapshot: str | None,
    first: str,
    sessions: int = 2,
) -> Iterator[Callable[[], None]]:
    """Fill in the answers, on sessions side by side; yield what waits for the last."""
    waiting = deque(enumerate(questions))
    busy: set[Any] = set()

    def ask() -> None:
        with session(database, snapshot) as cursor:
            busy.add(cursor)
            try:
                if first:
                    cursor.execute(first)
                while waiting:
                    with suppress(IndexError):  # another session took the last one
                        number, question = waiting.popleft()
                        cursor.execute(question)
                        answers[number] = cursor.fetchall()
            finally:
                busy.discard(cursor)

    with ThreadPoolExecutor(sessions) as pool:
        futures = [pool.submit(ask) for _ in range(sessions)]
        try:
            yield lambda: [future.result() for future in futures]
        finally:
            waiting.clear()
            for cursor in [*busy]:
                with suppress(cursor.connection.Error):  # it was just closed
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
        known_as = name if namespace == "-" else full_name(namespace, name)
        aspects = contents.setdefault(f"{kind.lower()} {known_as}", {"pg_dump": ""})
        aspects["pg_dump"] += f"{owner}\n{sql.strip()}\n"
    return contents


# --- Reading a backup -----------------------------------------------------------------

HEADER = b"-- PostgreSQL database dump"
CLOSING = b"-- PostgreSQL database dump complete"
DATA = re.compile(rb"-- Data for Name: (.*); Type: TABLE DATA; Schema: (.*); Owner: ")
CHUNK = 2**20  # bytes read at once


@dataclass(frozen=True)
class Reading:
    """What one pass over a backup finds."""

    sha256: str
    size: int
    rows: dict[str, int]  # of each table that has a COPY block
    problems: list[str]  # that need no comparison to be seen


def problems_in(reading: Reading, backup: Backup) -> list[str]:
    """One sentence for each sign that the backup is not what was written."""
    problems = [*reading.problems]
    if reading.sha256 != backup.sha256:
        problems.insert(0, f"SHA-256: found {reading.sha256}, expected {backup.sha256}")
    if reading.size != backup.size:
        problems.append(f"size: found {reading.size} bytes, expected {backup.size}")
    if backup.contents is None:
        return problems
    for table, rows in backup.rows.items():
        if table not in reading.rows:
            problems.append(f"table {table}: no COPY block, expected {rows} rows")
        elif reading.rows[table] != rows:
            found = reading.rows[table]
            problems.append(f"table {table}: found {found} rows, expected {rows}")
    for table in reading.rows.keys() - backup.rows.keys():
        if f"table {table}" not in backup.uncompared:
            problems.append(f"table {table}: unexpected, the source has no such table")
    return problems


def readings_of(backup: Backup, server: Server) -> list[Reading]:
    """The backup as it is, as if it were cut, and as if one bit of it were flipped.

    One pass over the SQL serves all three: the damaged ones part from it in its last
    piece. What is hashed of an archive takes a pass of its own.
    """
    with open_sql(backup, server) as sql:
        if backup.format == "plain":
            scans = three_ways(sql, Digest(), SqlScan())
        else:
            scans = [(scan,) for (scan,) in three_ways(sql, SqlScan())]
            scans = zip(digests_of(backup.path), [scan for (scan,) in scans])
        return [
            Reading(digest.hexdigest, digest.size, scan.rows, scan.finish())
            for digest, scan in scans
        ]


def three_ways(stream: BinaryIO, *scans: Any) -> list[tuple[Any, ...]]:
    """The scans of the stream, of the stream cut short, and with one bit flipped.

    Several scans take each piece side by side.
    """
    last, coming = b"", stream.read(CHUNK)
    with ThreadPoolExecutor(len(scans)) as pool:
        while coming:
            updates = [pool.submit(scan.update, last) for scan in scans]
            last, coming = coming, stream.read(CHUNK)
            for update in updates:
                update.result()
    cut, flipped = ([scan.copy() for scan in scans] for _ in range(2))
    half = len(last) // 2
    bit = bytes(byte ^ 1 for byte in last[half : half + 1])
    for variant, end in [
        (cut, last[:half]),
        (flipped, last[:half] + bit + last[half + 1 :]),
        (scans, last),
    ]:
        for scan in variant:
            scan.update(end)
    return [scans, tuple(cut), tuple(flipped)]


class Digest:
    """A SHA-256 and a size, taken piece by piece."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0

    def update(self, piece: bytes) -> None:
        """Take one more piece."""
        self.sha256.update(piece)
        self.size += len(piece)

    def copy(self) -> "Digest":
        """A twin that goes its own way from here."""
        twin = Digest()
        twin.sha256, twin.size = self.sha256.copy(), self.size
        return twin

    @property
    def hexdigest(self) -> str:
        """The SHA-256 of the pieces."""
        return self.sha256.hexdigest()


def fingerprint(path: Path) -> tuple[str, int]:
    """The SHA-256 and the size in bytes of a backup."""
    digest = digests_of(path)[0]
    return digest.hexdigest, digest.size


def digests_of(path: Path) -> list[Digest]:
    """The digests of a backup as it is, cut, and with one bit flipped.

    For a folder it is what `sha256sum * | sha256sum` prints, sorted as LC_ALL=C does.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return [digest for (digest,) in three_ways(file, Digest())]
    files = sorted(path.iterdir())
    digests = [Digest() for _ in range(3)]
    for file in files:
        for digest, part in zip(digests, digests_of(file), strict=True):
            digest.sha256.update(f"{part.hexdigest}  {file.name}\n".encode())
            digest.size += part.size
    return digests


NAME = r'(?:"(?:[^"]|"")*"|[^\s".]+)'
COPY = re.compile(rf"COPY ({NAME})\.({NAME}) (\(.*\))? ?FROM stdin\Z", re.DOTALL)
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
NAMES_ROLES = re.compile(
    "ALTER .*OWNER TO|GRANT|REVOKE|ALTER DEFAULT PRIVILEGES"
    "|CREATE (POLICY|USER MAPPING)"
)
ESCAPES = re.compile(
    r"ROLLBACK|ABORT|ALTER SYSTEM"
    r"|(CREATE|DROP|ALTER) (DATABASE|ROLE|USER|GROUP|TABLESPACE)\b(?! MAPPING)"
)
ROLES = re.compile(rf"\b(?:TO|FROM|FOR ROLE|FOR) ({NAME}(?:, {NAME})*)")
TABLESPACE = re.compile(rf"SET default_tablespace = (?!'')({NAME})\Z")
REFRESH = re.compile(rf"REFRESH MATERIALIZED VIEW ({NAME})\.({NAME})\Z")
OPENING = re.compile(rb"""--|\\|'|"|/\*|(?<![\w$])(?:[eE]'|\$\w*\$)""")
LONGEST_OPENING = 128  # bytes: a dollar quote's tag has 63 at most


class SqlScan:
    """A backup as SQL, scanned piece by piece, with psql's eyes.

    Text in quotes may look like COPY or like the closing line, and is neither. What is
    found can be followed: `on_schema` gets all text but the COPY blocks; `on_block`,
    `on_rows` and `on_end` get those.
    """

    def __init__(self, **followers: Callable) -> None:
        self.followers = followers
        self.rows: dict[str, int] = {}
        self.roles: set[str] = set()
        self.tablespaces: set[str] = set()
        self.problems: list[str] = []
        self.escapes: list[str] = []  # what would leave the database, or undo it
        self.rest = b""  # not scanned yet
        self.enough = 0  # bytes of it, before another attempt: quotes may be long
        self.statement: list[bytes] = []
        self.table: str | None = None  # whose COPY data come
        self.blocks = 0
        self.announced: list[str] = []  # tables with data, by comments
        self.refreshed: set[str] = set()  # materialized views
        self.makes_public = self.drops = False
        self.encoding = "UTF8"
        self.begun = self.ended = False

    def copy(self) -> "SqlScan":
        """A twin that goes its own way from here."""
        twin = copy.copy(self)
        twin.rows, twin.problems = dict(self.rows), list(self.problems)
        twin.escapes, twin.announced = list(self.escapes), list(self.announced)
        twin.statement = list(self.statement)
        return twin

    def read(self, sql: BinaryIO) -> "SqlScan":
        """Scan a stream from where it is to its end."""
        while piece := sql.read(CHUNK):
            self.update(piece)
        self.finish()
        return self

    def tell(self, follower: str, *found: Any) -> None:
        """Let a follower know, if it is there."""
        if follower in self.followers:
            self.followers[follower](*found)

    def update(self, piece: bytes, final: bool = False) -> None:
        """Scan as far as it is certain what comes."""
        if b"\0" in piece:  # psql passes over what follows one in its line
            self.note("zero bytes, which no text of PostgreSQL's has")
        self.rest += piece
        if len(self.rest) < self.enough and not final:
            return
        at = 0
        while at < len(self.rest):
            scan = self.scan_text if self.table is None else self.scan_rows
            after = scan(at, final)
            if after is None:
                break
            at = after
        self.rest = self.rest[at:]
        self.enough = 2 * len(self.rest)

    def scan_rows(self, at: int, _final: bool) -> int | None:
        """Count rows up to the end of the block, or to the last whole row."""
        if self.rest.startswith(b"\\.\n", at):
            self.table = None
            self.tell("on_end")
            return at + 3
        end = self.rest.find(b"\n\\.\n", at)
        after = (self.rest.rfind(b"\n", at) if end < 0 else end) + 1
        if after <= at:
            return None
        self.rows[self.table] += self.rest.count(b"\n", at, after)
        if "on_rows" in self.followers:
            self.tell("on_rows", self.rest[at:after])
        return after

    def scan_text(self, at: int, final: bool) -> int | None:
        """Take one token; nothing while it may not be whole."""
        if not final and len(self.rest) - at < LONGEST_OPENING:
            return None
        token = TOKEN.match(self.rest, at)
        kind = "quoted" if token.lastgroup == "tag" else token.lastgroup
        if kind == "plain" and OPENING.match(self.rest, at):
            if not final:
                return None
            opened = quoted(self.rest[at : at + 60])
            self.note("a quote or a comment that nothing closes", f": {opened}")
        self.statement.append(token[0])
        if kind == "comment":
            self.take_comment(self.statement.pop())
            self.tell("on_schema", token[0])
        elif kind == "meta":
            self.take_meta(self.statement.pop().strip())
        elif kind == "end":
            statement = b"".join(self.statement)
            self.statement.clear()
            self.take_statement(statement.strip(b" \r\n;"))
            if self.table is None:
                self.tell("on_schema", statement)
        return token.end()

    def take_comment(self, comment: bytes) -> None:
        """Note the header and the closing line."""
        line = comment.strip()
        if line == HEADER and not self.begun:
            self.begun = True
            if comment.endswith(b"\r\n"):
                self.problems.append("its lines end in CR LF: it was sent as text")
        elif line == CLOSING and not self.ended:
            self.ended = True
        elif found := DATA.match(line):
            self.announced.append(
                b".".join(found.groups()[::-1]).decode("utf-8", "replace")
            )
        elif self.ended and line != b"--":
            self.trailing(line)

    def take_meta(self, line: bytes) -> None:
        """Refuse what would make psql leave the file or the database."""
        if line.split()[0] not in (b"\\restrict", b"\\unrestrict"):
            # None begins with a capital: that is a row which lost its COPY.
            shown = line[:2] if line[1:2].isupper() else line
            self.escapes.append(f"a command for psql: {quoted(shown)}")

    def take_statement(self, raw: bytes) -> None:
        """Open a COPY block, refuse what undoes a restore or leaves its database."""
        if self.ended:
            self.trailing(raw)
        text = raw.decode(codec_of(self.encoding), "surrogateescape")
        if found := COPY.match(text):
            *name, columns = found.groups()
            self.table = full_name(*map(unquoted, name))
            self.rows.setdefault(self.table, 0)
            self.blocks += 1
            self.tell("on_block", self.table, columns or "")
        elif found := re.match(r"SET client_encoding = '(\w+)'", text):
            self.encoding = found[1]
        elif ESCAPES.match(text):
            self.escapes.append(f"a statement on more than its database: {quoted(raw)}")
        elif NAMES_ROLES.match(text):
            for names in ROLES.findall(text):
                self.roles |= {unquoted(name) for name in re.findall(NAME, names)}
        elif found := TABLESPACE.match(text):
            self.tablespaces.add(unquoted(found[1]))
        elif found := REFRESH.match(text):
            self.refreshed.add(full_name(*map(unquoted, found.groups())))
        elif text == "CREATE SCHEMA public":
            self.makes_public = True
        elif text.startswith("DROP ") and " IF EXISTS " not in text:
            self.drops = True

    def trailing(self, text: bytes) -> None:
        """Note that the end is not the end, once."""
        self.note("something follows the closing line", f": {quoted(text)}")

    def note(self, problem: str, details: str = "") -> None:
        """Add a problem that may be found many times, once."""
        if not any(known.startswith(problem) for known in self.problems):
            self.problems.append(problem + details)

    def finish(self) -> list[str]:
        """The problems that were found, once there is no more to come."""
        self.update(b"\n", final=True)  # an editor may have taken the last one
        if not self.begun:
            self.problems.insert(0, f"no header, expected {quoted(HEADER)}")
        if self.table is not None:
            self.problems.append(f"table {self.table}: its COPY block has no end")
        if self.blocks and len(self.announced) not in (0, self.blocks):
            lacking = [name for name in self.announced if name not in self.rows]
            self.problems.append(
                f"COPY blocks: found {self.blocks}, expected {len(self.announced)}"
                + f"; none for {', '.join(lacking)}" * bool(lacking)
            )
        if self.table is None and (rest := b"".join(self.statement).strip()):
            self.problems.append(f"an unfinished statement: {quoted(rest)}")
        if not self.ended:
            self.problems.append(f"no closing line, expected {quoted(CLOSING)}")
        return self.problems + self.escapes


def quoted(text: bytes) -> str:
    """The beginning of the text, as a message shows it."""
    return repr(shortened(text.decode("utf-8", "replace"), most=60))


@functools.cache
def codec_of(encoding: str) -> str:
    """Python's name for an encoding of PostgreSQL's."""
    known_as = encoding.replace("WIN", "cp").replace("KOI8", "KOI8-")
    with suppress(LookupError):
        return codecs.lookup(known_as).name
    return "utf-8"


def unquoted(identifier: str) -> str:
    """The name that an SQL identifier stands for."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier


def full_name(schema: str, name: str) -> str:
    """A name with its schema: after the first bare dot, for either may hold more."""
    return schema.replace(".", r"\.") + "." + name


@contextmanager
def open_sql(backup: Backup, server: Server) -> Iterator[BinaryIO]:
    """The backup as SQL, to be read to its end, by us or by another program."""
    if backup.format == "plain":
        with backup.path.open("rb") as file:
            yield file
    elif backup.format == "gzip":
        with written_to_pipe(functools.partial(unpack, backup.path)) as stream:
            yield stream
    else:
        reading, writing = os.pipe()
        archive = archive_command(backup, server)
        with (
            open(reading, "rb") as stream,
            open(writing, "wb") as pipe,
            started(archive, stdout=pipe) as finish,
        ):
            pipe.close()
            yield stream
            finish()


def archive_command(backup: Backup, server: Server, *arguments: str) -> Command:
    """pg_restore, writing an archive as SQL: --list would not read the data."""
    program = str(server.programs["pg_restore"].path)
    words = (program, *arguments, "-f", "-", str(backup.path))
    return Command(words, server.timeout, server=server)


def unpack(path: Path, target: BinaryIO) -> None:
    """Write what a gzip file holds. Raises BackupIsBad when it is cut or damaged."""
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, target, CHUNK)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BackupIsBad(f"the backup is damaged\n  gzip: {error}") from None


@contextmanager
def written_to_pipe(write: Callable[[BinaryIO], None]) -> Iterator[BinaryIO]:
    """What a function writes, as a stream that another program can read too."""

    def write_and_close() -> None:
        with suppress(BrokenPipeError), open(writing, "wb") as pipe:
            write(pipe)

    reading, writing = os.pipe()
    with ThreadPoolExecutor(1) as pool:
        with open(reading, "rb") as stream:
            written = pool.submit(write_and_close)
            yield stream
        written.result()


# --- The restored database ------------------------------------------------------------


def provide_globals(backup: Backup, server: Server) -> None:
    """Create on a private server the roles and tablespaces that the backup names."""
    if not server.private:
        return
    with schema_of(backup, server) as sql:
        named = SqlScan().read(sql)
    with session(maintenance(server)) as cursor:
        cursor.execute("SELECT rolname FROM pg_roles")
        known = {name for (name,) in cursor.fetchall()} | {"PUBLIC", "public"}
        for role in sorted(named.roles - known):
            # A superuser: only one owns an event trigger, and any reads for its views.
            create(cursor, "CREATE ROLE {} SUPERUSER", role)
        cursor.execute("SELECT spcname FROM pg_tablespace")
        known = {name for (name,) in cursor.fetchall()}
        cursor.execute("SET allow_in_place_tablespaces TO on")
        for tablespace in sorted(named.tablespaces - known):
            create(cursor, "CREATE TABLESPACE {} LOCATION ''", tablespace)


def create(cursor: Any, statement: str, name: str) -> None:
    """Run the statement with the name in it, quoted."""
    cursor.execute("SELECT quote_ident(%s)", [name])
    cursor.execute(statement.format(cursor.fetchone()[0]))


@contextmanager
def database_for(backup: Backup, server: Server, purpose: str) -> Iterator[Database]:
    """A scratch database into which the backup, or its schema, can be loaded."""
    with scratch_database(server, purpose, backup.locale) as database:
        if backup.makes_public:
            with session(database) as cursor:
                cursor.execute("DROP SCHEMA public")
        yield database


def load_backup(backup: Backup, restored: Database, jobs: int) -> float:
    """Load the backup into the empty database; return the seconds that it took."""
    began = time.monotonic()
    with step("load the backup"):
        if backup.format == "plain":
            load_sql(restored, backup.path)
        elif backup.format == "gzip":
            with open_sql(backup, restored.server) as sql:
                load_sql(restored, sql)
        else:
            at_once = backup.format != "tar" and jobs > 1
            how = ("--jobs", str(jobs)) if at_once else ("--single-transaction",)
            run(
                command(restored, "pg_restore", "--exit-on-error", *how, backup.path),
            )
    return time.monotonic() - began


def load_sql(database: Database, sql: Path | IO) -> None:
    """Run SQL by psql, in one transaction but for what brings its own.

    -X: what a developer's ~/.psqlrc says must not matter. Without ON_ERROR_STOP psql
    goes on after errors, and ends well.
    """
    arguments = ("-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f")
    if isinstance(sql, Path):
        run(command(database, "psql", *arguments, sql))
    else:
        run(command(database, "psql", *arguments, "-"), stdin=sql)


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
    sentences = differences(backup.contents or {}, found)
    if sentences:
        with reference_database(backup, restored.server) as reference:
            if backup.contents is None:
                expected = witnessed_contents(backup, reference)
            else:
                expected = after_round_trip(backup.contents, contents_of(reference))
        sentences = differences(expected, found)
    return sentences


@contextmanager
def reference_database(backup: Backup, server: Server) -> Iterator[Database]:
    """A scratch database with the source's schema; no COPY block was loaded."""
    with database_for(backup, server, "reference") as reference:
        with step("load the schema alone"), schema_of(backup, server) as sql:
            load_sql(reference, sql)
        yield reference


@contextmanager
def schema_of(backup: Backup, server: Server) -> Iterator[BinaryIO]:
    """The source's schema as SQL; without a source, what is no row of the backup."""
    with TemporaryFile("w+b") as schema:

        def on_schema(sql: bytes) -> None:
            if not sql.lstrip().startswith(b"REFRESH "):  # which may need rows
                schema.write(sql)

        if backup.contents is None:
            with open_sql(backup, server) as sql:
                SqlScan(on_schema=on_schema).read(sql)
        else:
            schema.write(backup.schema.encode(errors="surrogateescape"))
        schema.seek(0)
        yield schema


def after_round_trip(contents: Contents, reference: Contents) -> Contents:
    """The contents, with definitions as the reference has them."""
    expected: Contents = {}
    for thing, aspects in contents.items():
        again = reference.get(thing, {})
        definition = {k: v for k, v in again.items() if k not in STATE}
        expected[thing] = aspects | definition
    return expected


def witnessed_contents(backup: Backup, reference: Database) -> Contents:
    """What the backup itself testifies to: its rows as the server reads them.

    The reference has everything but the COPY blocks. Each of those is loaded into a
    table like its own, which is then questioned; a partitioned table's own partitions
    are, when it was dumped as a whole (--load-via-partition-root).
    """
    with session(reference) as cursor:
        witnesses = witnesses_of(cursor)
        superuser = is_superuser(cursor)
    contents = contents_of(reference)
    arguments = ("-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-f", "-")
    scan = SqlScan()
    with step("question the backup's rows"):
        testimony = witness_script(backup, reference.server, witnesses, superuser, scan)
        with written_to_pipe(testimony) as script:
            said = run(command(reference, "psql", *arguments), stdin=script)
    merge(contents, gathered(map(json.loads, said.splitlines())))
    for view in scan.refreshed:
        contents[f"materialized view {view}"]["populated"] = True
    return contents


def is_superuser(cursor: Any) -> bool:
    """Whether the session's role may do anything."""
    cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    return cursor.fetchone()[0]


@dataclass(frozen=True)
class Witness:
    """How to make a table that takes a COPY block, and what to ask it."""

    statements: list[str]
    questions: list[str]


# The partitions of a partitioned table, from the root down, without its constraints.
PARTITIONS = """
SELECT root.thing,
       format('CREATE TEMP TABLE witness%s %s %s',
              CASE WHEN level > 0 THEN concat('_', relid::oid) END,
              CASE WHEN level = 0
                   THEN format('(LIKE %I.%I INCLUDING GENERATED)', nspname, relname)
                   ELSE format('PARTITION OF witness%s %s',
                               '_' || nullif(parentrelid::oid, root.oid),
                               (SELECT pg_get_expr(relpartbound, oid)
                                  FROM pg_class
                                 WHERE oid = relid))
              END,
              CASE WHEN NOT isleaf
                   THEN concat('PARTITION BY ', pg_get_partkeydef(relid))
              END)
  FROM relation AS root,
       pg_partition_tree(root.oid)
 WHERE root.relkind = 'p'
   AND NOT root.relispartition
 ORDER BY root.oid, level
"""


def witnesses_of(cursor: Any) -> dict[str, Witness]:
    """The witnesses of the tables, and of partitioned tables that are dumped as one."""
    cursor.execute(RELATIONS + PARTITIONS)
    witnesses: dict[str, Witness] = {}
    for thing, statement in cursor.fetchall():
        witnesses.setdefault(thing, Witness([], [])).statements.append(statement)
    tables = tables_of(cursor)
    for table in tables:
        if table.root in witnesses:
            question = f"{table.question} FROM witness_{table.oid} AS t"
            witnesses[table.root].questions.append(question)
    for table in tables:
        witnesses[table.thing] = Witness(
            [f"CREATE TEMP TABLE witness (LIKE {table.name} INCLUDING GENERATED)"],
            [f"{table.question} FROM witness AS t"],
        )
    return witnesses


def witness_script(
    backup: Backup,
    server: Server,
    witnesses: dict[str, Witness],
    superuser: bool,
    scan: "SqlScan",
) -> Callable[[BinaryIO], None]:
    """What writes SQL that loads and questions each COPY block, while it scans."""

    def write(script: BinaryIO) -> None:
        def say(*statements: str) -> None:
            script.write(
                "".join(f"{statement};\n" for statement in statements).encode()
            )

        def on_block(name: str, columns: str) -> None:
            nonlocal witness
            witness = witnesses.get(f"table {name}")
            if witness:
                form = f"(ENCODING '{scan.encoding}')"
                copy_in = f"COPY witness {columns} FROM stdin {form}"
                say("BEGIN", *witness.statements, "RESET lc_monetary", copy_in)

        def on_rows(rows: bytes) -> None:
            if witness:
                script.write(rows)

        def on_end() -> None:
            if witness:
                script.write(b"\\.\n")
                asked = map(as_array, witness.questions)
                say("SET lc_monetary TO 'C'", *asked, "ROLLBACK")

        witness: Witness | None = None
        script.write(PINNED.encode())
        say("SET client_encoding TO 'UTF8'", "SET search_path TO pg_temp")
        if superuser:  # an event trigger may forbid the table
            say("SET session_replication_role TO replica")
        scan.followers.update(on_block=on_block, on_rows=on_rows, on_end=on_end)
        with open_sql(backup, server) as sql:
            scan.read(sql)

    return write


def as_array(statement: str) -> str:
    """The statement, with each thing and its aspects as one JSON array."""
    return f"SELECT json_build_array(a, b) FROM ({statement}) AS q (a, b)"


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
        if want in (got, ANYTHING) or isinstance(want, range) and got in want:
            continue
        if aspect == "pg_dump" and said:
            continue
        if aspect == "values":
            if expected["rows"] == found.get("rows"):
                yield f"{thing}: {expected['rows']} rows as expected, with other values"
        elif aspect == "behind":
            yield f"{thing}: behind the values of its column"
        elif aspect == "rows":
            yield f"{thing}: found {got} rows, expected {want}"
        else:
            yield f"{thing}: {aspect}: {where_they_part(got, want)}"
        said = True


def where_they_part(found: Any, expected: Any) -> str:
    """The first line on each side that the other lacks, where they begin to differ."""
    got, want = lines_of(found), lines_of(expected)
    extra = [line for line in got if line not in want]
    lacking = [line for line in want if line not in got]
    if not extra and not lacking:  # the same lines, in another order
        moved = [pair for pair in zip(got, want, strict=False) if pair[0] != pair[1]]
        extra, lacking = zip(*moved[:1], strict=True) if moved else ([], [])
    one, other = next(iter(extra), "nothing"), next(iter(lacking), "nothing")
    same = len(os.path.commonprefix([one, other]))
    return f"found {shortened(one, same)}, expected {shortened(other, same)}"


def lines_of(value: Any) -> list[str]:
    """The lines of a value that hold something."""
    text = "" if value is None else str(value)
    return [line.strip() for line in text.splitlines() if line.strip()]


def shortened(text: str, at: int = 0, most: int = 120) -> str:
    """The text, of bounded length, around a place in it."""
    if len(text) <= most:
        return text
    begin = max(0, min(at - most // 4, len(text) - most))
    end = begin + most
    return "..." * (begin > 0) + text[begin:end] + "..." * (end < len(text))


# --- The restored database in use -----------------------------------------------------


def counts_of(contents: Contents) -> dict[str, int]:
    """How much was compared."""
    tables = [
        a["rows"] for t, a in contents.items() if "rows" in a and t[:5] == "table"
    ]
    return {"tables": len(tables), "rows": sum(tables), "objects": len(contents)}


def faults_in(restored: Database, rehearsal: bool) -> tuple[list[str], list[str]]:
    """What keeps the project from using the restored database; pending migrations."""
    pending = pending_migrations(restored)
    if not rehearsal:
        return [], pending
    faults = [f"migration {name}: pending, expected applied" for name in pending]
    with session(restored) as cursor:
        cursor.execute("BEGIN")
        try:
            cursor.execute(SAMPLE_INSERTS)
        except cursor.connection.Error as error:
            faults.append(f"an INSERT fails: {error}")
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


# Changes that keep a value's range and length; where none is possible, a row goes; at
# last, one that triggers, rules or publications would keep.
CHANGES = """
SELECT name, guards,
       format('%s WHERE ctid = (SELECT ctid FROM ONLY %s WHERE %s LIMIT 1)',
              change, name, condition)
  FROM relation AS r,
       format('%I.%I', nspname, relname) AS name,
       LATERAL (
           SELECT format('UPDATE ONLY %s SET %I = %s', name, a.attname,
                         format(changed, a.attname)),
                  format(fit, a.attname),
                  'SELECT', 0
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
           SELECT format('DELETE FROM ONLY %s', name), 'true', 'SELECT', 1
            UNION ALL
           SELECT format('DELETE FROM ONLY %s', name), 'true',
                  concat(format('ALTER TABLE %s DISABLE TRIGGER USER, '
                                'REPLICA IDENTITY FULL', name),
                         string_agg(format(', DISABLE RULE %I', rulename), '')), 2
             FROM pg_rewrite
            WHERE ev_class = r.oid
       ) AS possible (change, condition, guards, rank)
 WHERE r.relkind = 'r'
 ORDER BY rank, pg_relation_size(r.oid), name COLLATE "C"
"""


def prove_that_a_change_is_seen(restored: Database, found: Contents) -> None:
    """Change one value of the restored database, compare, and take the change back."""
    if not counts_of(found)["rows"]:
        return  # a live source may be empty: there is no value to change
    with session(restored) as cursor:
        tables = tables_of(cursor)
        things = {table.name: table.thing for table in tables}
        if is_superuser(cursor):  # triggers and foreign keys need not agree
            cursor.execute("SET session_replication_role TO replica")
        cursor.execute(RELATIONS + CHANGES)
        for name, guards, change in cursor.fetchall():
            thing = things[name]
            if not found[thing]["rows"] or not made(change, guards, cursor):
                continue
            asked = [table.statement for table in tables if table.thing == thing]
            cursor.execute("\nUNION ALL\n".join(asked))
            (changed,) = gathered(cursor.fetchall()).values()
            unchanged = {aspect: found[thing][aspect] for aspect in changed}
            if differences({thing: unchanged}, {thing: changed}):
                return  # else a trigger may have taken the change back
    raise NotJudged("no value could be changed so that the drill sees the change")


def made(change: str, guards: str, cursor: Any) -> bool:
    """Whether the change was made, in a transaction that is never committed."""
    cursor.execute("ROLLBACK")
    cursor.execute("BEGIN")
    # A constraint or a rule may object: then another value.
    with suppress(cursor.connection.Error):
        cursor.execute(guards)
        cursor.execute(change)
        return cursor.rowcount == 1
    return False


# --- The evidence ---------------------------------------------------------------------

NEVER_COMPARED = {
    "roles and their passwords": "",
    "tablespaces": "",
    "settings of the database itself": "",
    "other databases": "",
}


class Evidence:
    """The facts of a run, and the verdict on each act, as they become known."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {
            "version": 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "verdict": "passed",
            "tests": {},
        }

    def note(self, **facts: Any) -> None:
        """Add facts."""
        self.facts |= facts

    def judge(self, act: str, after: str, method: Callable, owner: Any) -> None:
        """Run an act and record its verdict, its sentence and its seconds."""
        log.info("")  # unittest has begun a line
        began = time.monotonic()
        verdict, sentence = "passed", (method.__doc__ or "").strip()
        try:
            before = self.facts["tests"].get(after)
            if before and before["verdict"] != "passed":
                unmet = BackupIsBad if before["verdict"] == "failed" else NotJudged
                raise unmet(f"not attempted, because {after} did not pass")
            method(owner)
        except OSError as error:  # a full disk, a folder without rights
            verdict, sentence = "error", f"{error}{advice(str(error))}"
            raise NotJudged(sentence) from None
        except (BackupIsBad, NotJudged, unittest.SkipTest) as error:
            if act == "set-up" and isinstance(error, BackupIsBad):
                error = NotJudged(error)  # there is no backup yet
            verdict, sentence = VERDICTS[type(error)], str(error)
            raise error.with_traceback(None) from None
        except BaseException as error:
            verdict, sentence = "error", type(error).__name__  # it may hold a secret
            raise
        finally:
            seconds = round(time.monotonic() - began, 3)
            self.facts["tests"][act] = {
                "verdict": verdict,
                "sentence": sentence,
                "seconds": seconds,
            }
            if self.facts["verdict"] == "passed":
                self.facts["verdict"] = verdict


VERDICTS = {BackupIsBad: "failed", NotJudged: "error", unittest.SkipTest: "skipped"}


def publish(evidence: Evidence, options: Options) -> None:
    """Print the evidence; write the report; append it to the job's summary."""
    headline, lines = headline_of(evidence.facts), told(evidence.facts)
    paragraph = "; ".join(f"{name}: {text}" for name, text in lines.items())
    print(f"\n{textwrap.fill(f'{headline}. {paragraph}.', 88)}", file=sys.stderr)
    if options.report:
        report = json.dumps(evidence.facts, indent=2)
        write_evidence("the report", options.report, "w", f"{report}\n")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        whys = [
            test["sentence"]
            for test in evidence.facts["tests"].values()
            if test["verdict"] != "passed"
        ]
        if whys:
            lines["why"] = whys[0]
        rows = [f"| {name} | {escaped(text)} |" for name, text in lines.items()]
        table = "\n".join(
            [f"### Backup drill: {headline}", "", "| | |", "|---|---|", *rows]
        )
        write_evidence("the job summary", Path(summary), "a", f"{table}\n\n")


def write_evidence(what: str, path: Path, mode: str, text: str) -> None:
    """Write a file of evidence, or add to it. Raises NotJudged when that fails."""
    try:
        with path.open(mode, encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise NotJudged(f"{what} cannot be written: {error}") from None


def headline_of(facts: dict[str, Any]) -> str:
    """The outcome of the run in a few words."""
    if facts["verdict"] == "passed":
        restored = "restore" in facts["tests"]
        return "The backup restores" if restored else "The backup was not restored yet"
    return {
        "failed": "The backup is bad",
        "error": "The backup could not be judged",
        "skipped": "The drill was skipped",
    }[facts["verdict"]]


def escaped(text: str) -> str:
    """The text, as a cell of a Markdown table holds it."""
    return text.replace("|", r"\|").replace("\n", "<br>")


def told(facts: dict[str, Any]) -> dict[str, str]:
    """The facts in words; those that are not known are left out."""
    forms = {
        "tests": "{tests}",
        "source": "{source}",
        "server": "PostgreSQL {server}",
        "programs": "{programs}",
        "backup": "{format}, {bytes:,} bytes, SHA-256 {sha256}",
        "backed up in": "{seconds_to_back_up:.2f} s",
        "restored in": "{seconds_to_restore:.2f} s",
        "compared": "{tables:,} tables, {rows:,} rows, {objects:,} objects, all equal",
        "pending migrations": "{pending_migrations}",
        "not compared": "{not_compared}",
        "time": "{time}",
    }
    words = facts | {
        name: ", ".join(filter(None, map(say, facts[name].items())))
        for name, say in SAYINGS.items()
        if name in facts
    }
    if "pending_migrations" in facts:
        pending = facts["pending_migrations"]
        shown = [*pending[:3], *["..."] * (len(pending) > 3)]
        words["pending_migrations"] = f"{len(pending)} {', '.join(shown)}".strip()
    known = {}
    for name, form in forms.items():
        with suppress(KeyError):
            known[name] = form.format_map(words)
    return known


SAYINGS: dict[str, Callable[[tuple[str, Any]], str]] = {
    "tests": lambda item: " ".join((item[0], item[1]["verdict"])),
    "programs": lambda item: f"{item[0]} {item[1]}",
    "not_compared": lambda item: f"{item[0]} ({item[1]})" if item[1] else item[0],
}


# --- The command line -----------------------------------------------------------------


def seconds(text: str) -> float:
    """A bound in seconds."""
    with suppress(ValueError):
        if 0.001 <= float(text) <= 2_000_000:  # as milliseconds, they must fit 32 bits
            return float(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is no number of seconds from 0.001 to 2000000"
    )


def workers(text: str) -> int:
    """A number of parallel workers."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of workers above 0")


def command_line() -> argparse.ArgumentParser:
    """The options, in the words of --help."""
    parser = argparse.ArgumentParser(
        description="Prove that this Django project's PostgreSQL backup restores: back "
        "a database up, judge the backup, restore it, and compare row for row.",
        epilog="Other arguments go to unittest, such as -k restore or -f. "
        "The exit status is 0 when all that ran passed, else 1.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-v", "--verbose", action="store_true", help="show each step and its duration")
    add(
        "--strict",
        action="store_true",
        help="fail where programs, their right version or a database are missing, "
        "instead of doing without",
    )
    add(
        "--throwaway",
        action="store_true",
        help="do all scratch work on a private server, started for this run",
    )
    add(
        "--timeout",
        type=seconds,
        default=Options.timeout,
        metavar="SECONDS",
        help="bound on each dump, restore, query, server start (default: 30)",
    )
    add(
        "--format",
        choices=["plain", "custom", "directory"],
        default=Options.format,
        help="the backup format to rehearse (default: plain)",
    )
    add(
        "--jobs",
        type=workers,
        default=Options.jobs,
        metavar="N",
        help="parallel workers, where the format allows them",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--live",
        action="store_true",
        help="back the configured database itself up; it is only ever read",
    )
    source.add_argument(
        "--backup",
        type=Path,
        metavar="FILE",
        help="restore a backup that exists: plain, gzip, custom, directory or tar",
    )
    add("--report", type=Path, metavar="FILE", help="write the evidence as JSON")
    return parser


def lies_in(path: Path, backup: Path) -> bool:
    """Whether the path is the backup, a file of it, or its record."""
    record = record_of(backup).resolve()
    path, backup = path.resolve(), backup.resolve()
    return path in (backup, record) or backup in path.parents


def main(argv: list[str]) -> int:
    """Run the drill; return 0 when all that ran passed, else 1."""
    parser = command_line()
    try:
        known, others = parser.parse_known_args(argv[1:])
        if "--locals" in others:
            parser.error("--locals would show the settings, with their passwords")
        if known.backup and known.report and lies_in(known.report, known.backup):
            parser.error("argument --report: it is the backup, which is only ever read")
    except SystemExit as stop:  # also after --help
        return 1 if stop.code else 0
    BackupRestoreTests.options = Options(**vars(known))
    try:
        program = unittest.main(
            argv=[argv[0], *others], exit=False, verbosity=1 + known.verbose
        )
    except SystemExit:  # of unittest's parser, or of the project's code
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted ({interrupt})", file=sys.stderr)
        return 1
    finally:
        BackupRestoreTests.doClassCleanups()
        for _, error, _ in BackupRestoreTests.tearDown_exceptions:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    result = program.result
    if result.testsRun == 0 and not result.skipped and result.wasSuccessful():
        print("no test was run", file=sys.stderr)
        return 1
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
