"""A failure says that the backup is bad, an error that it could not be judged."""

import os
import re
import select
import shutil
import socket
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.parse import quote

from aidscope.tests.support import (
    BOUND,
    CLIENTS,
    DUMP,
    DUMPS,
    ROOT,
    SCRIPT,
    Case,
    Place,
    Row,
    Server,
    folder,
    once,
    owner,
    place,
    prepared,
    private_server,
    programs,
    server,
    system_programs,
    until_the_end,
    url,
    version,
)

# --- Programs and their versions ------------------------------------------------------

# Which programs are on PATH, by the version that they tell, and, with `real`, where the
# real ones are besides: in their usual folder, or further behind on PATH.
VERSIONS = """
none
    ends: skipped
    says: no PostgreSQL programs | install postgresql
none, strict
    run: --strict
    ends: error
    says: no PostgreSQL programs
psql alone is missing
    found: pg_dump {version} pg_restore {version}
    ends: error
    says: psql
only older
    found: pg_dump {older} psql {older} pg_restore {older}
    ends: error
    says: {older} | {version} | install postgresql
only newer
    found: pg_dump {newer} psql {newer} pg_restore {newer}
    ends: passed
    says: pg_dump {newer} | {version}
only newer, strict
    run: --strict
    found: pg_dump {newer} psql {newer} pg_restore {newer}
    ends: error
    says: {newer}
newer, and their backup is ahead of the server
    found: pg_dump {newer} psql {newer} pg_restore {newer}
    damage: exec sed -i '1,/^SET /s/^SET /SET shape = 1; &/' "$target"
    ends: error
    says: parameter "shape" | newer
newer before the right ones
    run: --strict -k creation
    found: pg_dump {newer} psql {newer} pg_restore {newer}
    real: usual
    ends: passed
    says: {all}
older before the right ones on PATH
    run: --strict -k creation
    found: pg_dump {older} psql {older} pg_restore {older}
    real: behind
    ends: passed
    says: {all}
of several versions in one folder
    run: --strict -k creation
    found: pg_dump {version} psql {version} pg_restore {newer}
    real: usual
    ends: passed
    says: {all}
of no version
    run: --strict
    found: pg_dump unknown psql unknown pg_restore unknown
    ends: error
    says: {version} | found: | install postgresql
"""
MAJOR = int(version().partition(".")[0])
for word, meaning in {
    "{all}": ", ".join(f"{name} {version()}" for name in CLIENTS),
    "{newer}": f"{MAJOR + 1}.3",
    "{older}": f"{MAJOR - 1}.3",
    "{version}": version(),
}.items():
    VERSIONS = VERSIONS.replace(word, meaning)


class VersionTests(Case, table=VERSIONS):
    """The programs fit the server, or the drill says what is needed."""

    def judge(self, row: Row) -> None:
        """The run ends as the row says, whatever else is on this machine."""
        with place() as here:
            for name in CLIENTS:
                (here.bin / name).unlink()
            for name, told in re.findall(r"(\w+) (\S+)", row["found"]):
                (here.bin / name).touch()
                body = DUMP + row["damage"] if name == "pg_dump" else ""
                tells = f'[ "$*" = --version ] && echo "x (PostgreSQL) {told}" && exit'
                here.stand_in(name, body if row["damage"] else "", DUMPS, before=tells)
            behind = [str(programs())] if row["real"] == "behind" else []
            usual = row["real"] == "usual"
            over = here.drill(
                *row["run"].split(),
                url=url(),
                command=(str(SCRIPT if usual else without_usual_folders(here)),),
                PATH=os.pathsep.join([str(here.bin), *behind, str(tools())]),
                PYTHONPATH=str(ROOT),
                DJANGO_SETTINGS_MODULE="aidscope.settings",
            )
        self.assert_row(over, row)

    def test_wrapper(self) -> None:
        """Debian's wrapper, which runs the newest version, is passed by."""
        with place() as here:
            called, wrapper = here.folder / "called", here.bin / "pg_wrapper"
            wrapper.write_text(f"#!/bin/sh\necho $0 >> '{called}'\n")
            wrapper.chmod(0o755)
            for name in CLIENTS:
                (here.bin / name).unlink()
                (here.bin / name).symlink_to(wrapper)
            path = f"{here.bin}{os.pathsep}{tools()}"
            over = here.run("--strict", "-k", "creation", url=url(), PATH=path)
            self.assertFalse(called.exists())
        self.assert_verdict(over, "passed", f"psql {version()}")


@once
def tools() -> Path:
    """A folder with the programs of this system, but for PostgreSQL's."""
    return system_programs(folder() / "tools")


def without_usual_folders(here: Place) -> Path:
    """A copy of the drill that looks for programs on PATH alone."""
    text = SCRIPT.read_text()
    other = re.sub(r"(usr|opt)/(lib|homebrew|local|pgsql-)", "nowhere", text)
    assert other != text
    copy = here.folder / "scripts" / SCRIPT.name
    copy.parent.mkdir()
    copy.write_text(other)
    return copy


# --- What programs do -----------------------------------------------------------------

BEHAVIOURS = """
pg_dump hangs, with a child
    run: --timeout 2
    pg_dump: sleep 600 & sleep 600
    ends: error in creation
    says: pg_dump did not end within 2 s | --timeout
pg_dump fails
    pg_dump: echo 'pg_dump: error: it rains' >&2; exit 3
    ends: error in creation
    says: pg_dump exited with 3 | pg_dump: error: it rains
pg_dump finds no room
    pg_dump: echo 'pg_dump: error: write: No space left on device' >&2; exit 1
    ends: error in creation
    says: No space left on device | make room on the disk
pg_dump is killed
    pg_dump: kill -9 $$
    ends: error in creation
    says: signal 9
pg_dump ends well and writes nothing
    pg_dump: exit 0
    ends: failed in creation
    says: wrote only 0 bytes
pg_dump ends well and its file is empty
    damage: : > "$target"; exit
    ends: failed in creation
    says: wrote only 0 bytes
pg_dump warns
    run: -k creation
    pg_dump: echo 'pg_dump: warning: it rains' >&2
    ends: passed in creation
    says: pg_dump: warning: it rains
psql hangs
    run: --timeout 2
    psql: sleep 600
    ends: error in restore
    says: psql did not end within 2 s
psql fails and tells no SQLSTATE
    psql: echo 'it rains' >&2; exit 3
    ends: error in restore
    says: it rains
psql fails by a fault of its own
    psql: echo 'out of memory' >&2; exit 1
    ends: error in restore
    says: out of memory
psql is killed
    psql: kill -9 $$
    ends: error in restore
    says: signal 9
psql ends well and loads nothing
    psql: exit 0
    ends: failed in restore
    says: the restored database differs from its source | : missing
pg_restore is killed
    run: --format custom
    pg_restore: kill -9 $$
    ends: error in validation
    says: signal 9
pg_restore fails
    run: --format custom
    pg_restore: echo 'pg_restore: error: it rains' >&2; exit 1
    ends: failed in validation
    says: pg_restore: error: it rains
"""


class BehaviourTests(Case, table=BEHAVIOURS):
    """A program that does not do its work does not pass for one that does."""


# --- The drill's own checks -----------------------------------------------------------

# In the words of Python: what makes one check blind.
CONTROLS = """
the scan of a backup
    blind: drill.Scan.note = lambda *_: None
    ends: error in validation
    says: the drill's own scan
the checksum
    blind: drill.problems_of_checksum = lambda *_: []
    ends: error in validation
    says: the drill's own checksum
rows
    blind: without("rows", {})
    ends: error in restore
    says: the drill's own comparison | rows
the hashes of rows
    blind: hash_nothing()
    ends: error in restore
    says: the drill's own comparison | rows
definitions
    blind: without("definitions", {})
    ends: error in restore
    says: the drill's own comparison | definition
names
    blind: without("names", {})
    ends: error in restore
    says: the drill's own comparison | name
everything
    blind: drill.differences = lambda *_: []
    ends: error in restore
    says: the drill's own comparison
"""
BLIND = """
import sys
from dataclasses import replace
from scripts import test_backup_restore as drill
from scripts.test_backup_restore import BackupRestoreTests, load_tests

compare = drill.differences

def hash_nothing():
    for name in ("ROWS", "ALTERED"):
        blinded = "coalesce(0 * sum(%s), 0)"
        query = getattr(drill, name).replace("coalesce(sum(%s), 0)", blinded)
        setattr(drill, name, query)

def without(field, nothing):
    def blind(*both):
        return compare(*(replace(contents, **{field: nothing}) for contents in both))
    drill.differences = blind

"""


class ControlTests(Case, table=CONTROLS):
    """A drill with a check that is blind does not pass: it finds that out."""

    def judge(self, row: Row) -> None:
        """The run ends as an error of the check's."""
        code = f"{BLIND}{row['blind']}\nraise SystemExit(drill.main(sys.argv))"
        with place() as here:
            self.assert_row(here.drill(url=url(), command=("-c", code)), row)


# --- What PostgreSQL answers while it restores ----------------------------------------

ANSWERS = r"""
a relation is missing, which sounds like TLS
    backup: CREATE VIEW public.v AS SELECT * FROM public.tls_certificate;
    ends: failed in restore
    says: relation "public.tls_certificate" does not exist
a type is missing
    backup: CREATE TABLE public.t (x public.nothing);
    ends: failed in restore
    says: public.nothing
a role is missing
    backup: ALTER SCHEMA public OWNER TO drill_nobody;
    ends: error in restore
    says: drill_nobody | --throwaway
a role is missing that no statement names
    backup:
        CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS
        $$BEGIN EXECUTE 'ALTER SCHEMA public OWNER TO drill_' || 'nobody'; END$$;
        CREATE MATERIALIZED VIEW public.m AS SELECT public.f() IS NULL AS x;
    ends: error in restore
    says: role "drill_nobody" does not exist | --throwaway
a role is missing, in German
    german: yes
    backup:
        CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS
        $$BEGIN EXECUTE 'ALTER SCHEMA public OWNER TO drill_' || 'nobody'; END$$;
        CREATE MATERIALIZED VIEW public.m AS SELECT public.f() IS NULL AS x;
    ends: error in restore
    says: drill_nobody
a relation is missing, in German
    german: yes
    backup: CREATE VIEW public.v AS SELECT * FROM public.tls_certificate;
    ends: failed in restore
    says: tls_certificate
a tablespace is missing
    backup: CREATE TABLE public.t () TABLESPACE nowhere;
    ends: error in restore
    says: nowhere
a tablespace is missing, as pg_dump names it
    backup:
        SET default_tablespace = nowhere;
        CREATE TABLE public.t ();
    ends: error in restore
    says: tablespace
an extension is missing
    backup: CREATE EXTENSION nowhere;
    ends: error in restore
    says: extension "nowhere"
a collation is missing
    backup: CREATE COLLATION public.c (locale = 'xx_XX.utf8');
    ends: error in restore
    says: locale
a setting is unknown
    backup: SET shape = 1;
    ends: error in restore
    says: parameter "shape" | newer
a value is invalid
    backup:
        CREATE TABLE public.t (x integer);
        -- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: x
        COPY public.t (x) FROM stdin;
        Krokodil
        \.
    ends: failed in restore
    says: 22P02
a key is there twice
    backup:
        CREATE TABLE public.t (x text PRIMARY KEY);
        -- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: x
        COPY public.t (x) FROM stdin;
        Krokodil
        Krokodil
        \.
    ends: failed in restore
    says: duplicate key value violates unique constraint "t_pkey"
a trigger raises
    backup:
        CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS
        $$BEGIN RAISE 'Krokodil'; END$$;
        CREATE MATERIALIZED VIEW public.m AS SELECT public.f() IS NULL AS x;
    ends: failed in restore
    says: P0001
a trigger raises with another code
    backup:
        CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS
        $$BEGIN RAISE 'Krokodil' USING ERRCODE = '23505'; END$$;
        CREATE MATERIALIZED VIEW public.m AS SELECT public.f() IS NULL AS x;
    ends: failed in restore
    says: 23505
a trigger warns
    run: --verbose
    backup:
        CREATE FUNCTION public.f() RETURNS void LANGUAGE plpgsql AS
        $$BEGIN RAISE WARNING 'Krokodil'; END$$;
        CREATE MATERIALIZED VIEW public.m AS SELECT public.f() IS NULL AS x;
    ends: passed in restore
    says: 01000
the session is ended
    backup: CREATE MATERIALIZED VIEW public.m AS SELECT pg_terminate_backend(pg_backend_pid());
    ends: error in restore
    says: server
a statement does not end
    run: --timeout 2
    backup: CREATE MATERIALIZED VIEW public.m AS SELECT pg_sleep(60) IS NULL AS x;
    ends: error in restore
    says: --timeout
"""


class AnswerTests(Case, table=ANSWERS):
    """Codes decide, not words; and no value of a row is shown."""

    def judge(self, row: Row) -> None:
        """Validation passes, and the restore ends as the row says."""
        with prepared(row) as (here, words, how):
            if row["german"]:
                how["url"] = german_server().url()
            over = here.drill(*words, **how)
            self.assert_row(over, row)
            self.assertEqual(over.report["tests"]["validation"]["verdict"], "passed")


@once
def german_server() -> Server:
    """A server that speaks German, if its messages are installed."""
    home = folder() / "german"
    home.mkdir(mode=0o755)
    made = private_server(home, "lc_messages = 'C.UTF-8'\n", LANGUAGE="de")
    return until_the_end().enter_context(made)


# --- Servers --------------------------------------------------------------------------

SOCKET = ".s.PGSQL.5432"
KEY_DATA = rb"(?s)(K\0\0\0\x0c)...."  # the server's pid, as it introduces itself


class ServerTests(Case):
    """A server that the drill cannot work on is named before any work is done."""

    def test_pooler(self) -> None:
        """A connection pooler, which shares sessions out, is named."""
        with place() as here, pooler(here.folder) as where:
            over = here.drill(url=where)
        self.assert_verdict(over, "error", "connection pooler")
        self.assertEqual(list(over.report["tests"]), ["set-up"])

    def test_standby(self) -> None:
        """A standby is named; with --throwaway its databases are drilled nevertheless."""
        with place() as here, standby(here.folder) as where:
            refused = here.drill("--live", url=where)
            passed = here.drill("--live", "--throwaway", url=where)
        self.assert_verdict(refused, "error", "standby", "--throwaway")
        self.assertEqual(list(refused.report["tests"]), ["set-up"])
        self.assert_verdict(passed, "passed")
        self.assertEqual(passed.report["rows"], 3)  # none of the unlogged table


@contextmanager
def pooler(home: Path) -> Iterator[str]:
    """The URL of the suite's server behind what tells, as poolers do, another pid."""
    listening = socketserver.ThreadingUnixStreamServer(str(home / SOCKET), Pooled)
    listening.daemon_threads = True
    thread = Thread(target=listening.serve_forever)
    with listening:
        thread.start()
        try:
            yield url().replace(
                quote(str(server().data), safe=""), quote(str(home), "")
            )
        finally:
            listening.shutdown()
            thread.join()


class Pooled(socketserver.BaseRequestHandler):
    """A client of the pooler's."""

    def handle(self) -> None:
        """Pass on what either side sends, with another pid in place of the server's."""
        with socket.socket(socket.AF_UNIX) as behind:
            behind.connect(str(server().data / SOCKET))
            other = {self.request: behind, behind: self.request}
            while ready := select.select([*other], [], [], BOUND)[0]:
                said = ready[0].recv(65536)
                if not said:
                    return
                other[ready[0]].sendall(re.sub(KEY_DATA, b"\\1\0\0\0\1", said))


@contextmanager
def standby(home: Path) -> Iterator[str]:
    """The URL of a standby with one table of three rows, and one that is unlogged."""
    with private_server(home) as made:
        made.query(
            "postgres",
            "CREATE TABLE public.kept AS SELECT generate_series(1, 3) AS id;"
            "CREATE UNLOGGED TABLE public.hasty AS SELECT 1 AS id",
        )
        (made.data / "standby.signal").touch()
        if account := owner():
            shutil.chown(made.data / "standby.signal", account["user"])
        made.control("restart")
        yield made.url()


# --- Settings -------------------------------------------------------------------------

CONFIGURATIONS = """
SQLite
    url: sqlite:///never.sqlite3
    says: not PostgreSQL | sqlite3 | --throwaway
a driver that is not there
    url: mysql://u@127.0.0.1:1/x
    says: mysql
no database and strict
    run: --strict
    url:
    says: no database is configured | DATABASE_URL
no database and live
    run: --live
    url:
    says: no database is configured | DATABASE_URL
an alias that is not there
    run: --database second
    settings:
        DATABASES = {name: DATABASES["default"] for name in ("archive", "default")}
    says: second | archive | default
settings that leave Python
    settings: raise SystemExit
    says: it has ended
settings that fail
    settings: raise RuntimeError("Krokodil")
    says: RuntimeError (in | site_settings.py, line 2
settings that lack a key
    settings: {}["Krokodil"]
    says: KeyError | site_settings.py, line 2
settings that are not well configured
    settings:
        from django.core.exceptions import ImproperlyConfigured
        raise ImproperlyConfigured("the key Krokodil is too short")
    says: ImproperlyConfigured | site_settings.py, line 3
a log file that cannot be opened
    settings:
        LOGGING = {"version": 1, "handlers": {"file": {
            "class": "logging.FileHandler", "filename": "/nowhere/drill.log"}}}
    says: Unable to configure handler 'file' | FileNotFoundError
a role that may not create databases
    role: NOCREATEDB
    says: no database can be created | CREATEDB
"""


class ConfigurationTests(Case, table=CONFIGURATIONS):
    """What a drill cannot work with is an error with one sentence."""

    def judge(self, row: Row) -> None:
        """The sentence is there, and no work was done."""
        with prepared(row) as (here, words, how):
            over = here.drill(*words, **how)
            self.assert_row(over, Row(row, ends="error in set-up"))
            self.assertEqual(list(over.report["tests"]), ["set-up"])

    def test_settings_that_are_not_there(self) -> None:
        """The module that is missing is named."""
        with place() as here:
            over = here.run(DJANGO_SETTINGS_MODULE="nowhere")
        self.assert_verdict(over, "error", "No module named 'nowhere'")

    def test_role_that_is_not_there(self) -> None:
        """PostgreSQL's own sentence names the role."""
        with place() as here:
            over = here.run(url=url(user="drill_missing"))
        self.assert_verdict(over, "error", 'role "drill_missing" does not exist')

    def test_no_temporary_folder(self) -> None:
        """A TMPDIR that is not there is not replaced by another."""
        with place() as here:
            missing = str(here.folder / "missing")
            over = here.run(TMPDIR=missing)
        self.assertEqual(over.status, 1, over.said)
        self.assert_said(over, missing)
