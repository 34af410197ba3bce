"""A backup that exists, of any format, is judged by itself, and is never written to."""

import gzip
import os
import re
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from unittest.mock import patch

from aidscope.tests.in_process import drilled, server, verdict_on_load
from aidscope.tests.support import (
    COMPRESSORS,
    LOADS,
    NUMBERS,
    READS,
    SECRET,
    Case,
    Ended,
    Place,
    Row,
    changed,
    copied,
    database,
    everything,
    folder,
    originals,
    pg_dump,
    place,
    plain,
    role,
    rows_of_everything,
    system_programs,
    url,
)
from scripts import test_backup_restore as drill


def judged(here: Place, *arguments: str, **environment: str) -> Ended:
    """A run with the backup of the place, on the server of the tests."""
    words = ("--backup", str(here.backup), "--no-throwaway")
    return drilled(here, *words, *arguments, **environment)


def judged_privately(here: Place, *arguments: str) -> Ended:
    """A run with the backup of the place, on a private server."""
    return drilled(here, "--backup", str(here.backup), *arguments)


def raised_by(path: Path) -> Exception | None:
    """What ends the work with a backup, up to its load into its own database."""
    try:
        backup = drill.adopted_backup(path, server().run)
        reading, _ = drill.validated_reading(backup, server())
        return verdict_on_load(backup, reading)
    except (drill.BackupIsBad, drill.NotJudged) as verdict:
        return verdict


KINDS = {"failed": drill.BackupIsBad, "error": drill.NotJudged}


# --- Backups that restore -------------------------------------------------------------


@dataclass(frozen=True)
class Healthy(Row):
    """How everything is dumped, the name of the file, and what it is told to be."""

    form: str
    dump: tuple[str, ...] = ()
    file: str = "backup"
    drill: tuple[str, ...] = ()
    left_out: str = "no schema"
    uncompared: str = "values, definitions, owners and rights"


PLAIN = (
    Healthy(
        "under a custom's name, names quoted, without owners and rights; that would"
        " create its database anew",
        "plain",
        (
            *("--quote-all-identifiers", "--no-owner", "--no-privileges"),
            *("--create", "--clean", "--if-exists"),
        ),
        "nightly.dump",
        uncompared="database properties site_everything",
    ),
    Healthy(
        "that would drop first, rows as INSERT, many at once",
        "plain",
        ("--clean", "--column-inserts", "--rows-per-insert=50"),
        uncompared="--clean",
    ),
    Healthy(
        "that would drop first what exists, partitions by way of their root",
        "plain",
        ("--clean", "--if-exists", "--load-via-partition-root", "-N", "odd"),
        left_out="odd.",
        uncompared="what --clean drops",
    ),
)
ARCHIVES = (
    Healthy(
        "custom under a plain's name, not compressed, that can create",
        "custom",
        ("-Fc", "-Z0", "--create", "--disable-triggers"),
        "nightly.sql",
    ),
    Healthy("directory not compressed", "directory", ("-Fd", "-Z0")),
    Healthy("tar", "tar", ("-Ft",), drill=("--jobs", "2")),
)


class HealthyCase(Case):
    """A healthy backup passes, told by its content, and is as it was."""

    def judge(self, row: Healthy) -> None:
        """It passes as what it is, and every table is compared."""
        with place() as here:
            path = here.folder / row.file
            pg_dump(everything(), path, *row.dump)
            before = bytes_of(path)
            words = ("--no-throwaway", "--strict", "--max-age", "1h", *row.drill)
            over = drilled(here, "--backup", str(path), *words, "--max-restore", "15m")
            self.assertEqual(before, bytes_of(path), "the backup was written to")
        self.assert_verdict(over, "passed")
        tables = rows_of_everything().items()
        rows = [count for name, count in tables if row.left_out not in name]
        self.assert_facts(
            over,
            format=row.form,
            source=f"the backup {path.name}",
            rows=sum(rows),
            tables=len(rows),
            seconds_to_back_up=None,
            max_age_seconds=3600.0,
            max_restore_seconds=900.0,
        )
        self.assertIn(row.uncompared, str(over.not_compared))


def bytes_of(path: Path) -> dict[str, tuple[bytes, int]]:
    """The files of a backup, with the time at which each was written."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


class HealthyPlainTests(HealthyCase, table=PLAIN):
    """A plain backup that is healthy."""


class HealthyArchiveTests(HealthyCase, table=ARCHIVES):
    """An archive that is healthy."""


@dataclass(frozen=True)
class Compressed(Row):
    """A program that compresses."""


class HealthyCompressedTests(Case, table=map(Compressed, COMPRESSORS)):
    """A plain backup that was compressed passes, told by its content."""

    def judge(self, row: Compressed) -> None:
        """It is loaded as what it is, and is as it was."""
        path = copied(row.words, folder() / f"compressed_{next(NUMBERS)}")
        before = bytes_of(path)
        backup = drill.adopted_backup(path, server().run)
        reading, _ = drill.validated_reading(backup, server())
        self.assertIsNone(verdict_on_load(backup, reading))
        self.assertEqual(bytes_of(path), before)
        self.assertEqual(backup.format.name, row.words)
        rows = {"table public.kept": 500, "table public.long": 1}
        self.assertEqual(reading.rows, rows)


@dataclass(frozen=True)
class Peculiar(Row):
    """What makes a database, how it is dumped, and what is not compared of it."""

    sql: str
    dump: tuple[str, ...] = ()
    clauses: str = ""
    uncompared: str = ""


PARTITIONS = """
CREATE TABLE public.kept AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW public.part AS
SELECT 100 * count(*) FILTER (WHERE id = 1) / count(*) FROM public.kept;
CREATE TABLE public.day (d integer, who text) PARTITION BY RANGE (d);
CREATE TABLE public.day_1 PARTITION OF public.day FOR VALUES FROM (0) TO (9)
   PARTITION BY LIST (who);
CREATE TABLE public.day_1_a PARTITION OF public.day_1 FOR VALUES IN ('a');
CREATE TABLE public.day_1_x PARTITION OF public.day_1 DEFAULT;
CREATE TABLE public.day_2 PARTITION OF public.day FOR VALUES FROM (10) TO (19);
INSERT INTO public.day VALUES (1, 'a'), (2, 'b'), (11, 'a');
ALTER TABLE public.day ADD CHECK (d > 5) NOT VALID;
CREATE TABLE public.solo (id serial PRIMARY KEY);
INSERT INTO public.solo VALUES (1), (2);
CREATE TABLE public.moved (id serial);
ALTER SEQUENCE public.moved_id_seq RESTART 1000
"""
PECULIAR = (
    Peculiar(
        "one schema, which the backup makes itself",
        "CREATE TABLE public.kept AS SELECT 1 AS id",
        ("--schema", "public"),
    ),
    Peculiar(
        "one schema in an archive that also speaks of making it",
        """
        CREATE TABLE public.kept AS SELECT 1 AS id;
        COMMENT ON TABLE public.kept IS E'\nCREATE SCHEMA public;\n'
        """,
        ("-Fc", "--schema", "public"),
    ),
    Peculiar(
        "quotes that read otherwise",
        r"""
        ALTER DATABASE {me} SET standard_conforming_strings TO off;
        CREATE TABLE public.kept AS SELECT E'a\\'::text AS word;
        COMMENT ON TABLE public.kept IS E'it''s \\'
        """,
    ),
    Peculiar(
        "in no encoding",
        "CREATE TABLE public.\"café\" AS SELECT 'naïve'::text AS word",
        ("--encoding", "SQL_ASCII"),
    ),
    Peculiar(
        "another encoding and locale, told by an archive",
        "CREATE TABLE public.\"café\" AS SELECT 'naïve'::text AS word",
        ("-Fc",),
        "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    ),
    Peculiar(
        "another encoding and locale, told by CREATE DATABASE",
        "CREATE TABLE public.\"café\" AS SELECT 'naïve'::text AS word",
        ("--create",),
        "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    ),
)
# Of one database:
TOGETHER = (
    Peculiar(
        "views without rows, partitions, sequences behind and elsewhere",
        PARTITIONS,
        ("--load-via-partition-root",),
        uncompared="materialized view public.part",
    ),
    Peculiar(
        "a table whose rows were left out",
        "CREATE TABLE public.log AS SELECT 1 AS id",
        ("--exclude-table-data", "public.log"),
        uncompared="'table public.log': 'the backup holds no data of it'",
    ),
    Peculiar(
        "a partition whose rows were left out",
        """
        CREATE TABLE public.span (n integer) PARTITION BY RANGE (n);
        CREATE TABLE public.low PARTITION OF public.span FOR VALUES FROM (0) TO (5);
        CREATE TABLE public.high PARTITION OF public.span FOR VALUES FROM (5) TO (9);
        INSERT INTO public.span SELECT generate_series(1, 8)
        """,
        ("--exclude-table-data", "public.low"),
        uncompared="'table public.low': 'the backup holds no data of it'",
    ),
    Peculiar(
        "names that differ by a quote",
        """
        CREATE TABLE public.ab AS SELECT 1 AS id;
        CREATE TABLE public."a""b" AS SELECT n AS id FROM generate_series(1, 2) AS n
        """,
    ),
    Peculiar(
        "values of sequences that are left out",
        "CREATE SEQUENCE public.s",
        ("--exclude-table-data", "public.s"),
        uncompared="'sequence public.s': 'the backup holds no data of it'",
    ),
    Peculiar(
        "a body in quotes, edited on Windows",
        "CREATE FUNCTION public.f() RETURNS text LANGUAGE plpgsql AS"
        " E'BEGIN\\r\\n--\\r\\nRETURN ''x'';\\r\\nEND'",
        ("--disable-dollar-quoting",),
    ),
)


class PeculiarTests(Case, table=PECULIAR):
    """What is peculiar about a database or its dump is no fault."""

    def judge(self, row: Peculiar) -> None:
        """It passes."""
        with place() as here:
            with database(row.sql, row.clauses) as source:
                pg_dump(source, here.backup, *row.dump)
            over = judged(here)
        self.assert_verdict(over, "passed")
        self.assertIn(row.uncompared, str(over.not_compared))

    def test_encoding_that_is_lost(self) -> None:
        """Where text has no encoding, it may be too long; that is nobody's fault."""
        with place() as here:
            with database("CREATE TABLE t AS SELECT 'äöü'::varchar(3) AS s") as source:
                pg_dump(source, here.backup, "--encoding=SQL_ASCII")
                over = judged(here)
                pg_dump(source, here.backup, "--encoding=SQL_ASCII", "--create")
            # Then the encoding of the database counts.
            changed(rb"(LOCALE|LC_COLLATE) = '.*?'", rb"\1 = 'Nowhere'")(here.backup)
            told = judged(here)
        self.assert_verdict(over, "error", "22001", "dump it without --encoding")
        self.assert_verdict(told, "passed", "a locale is missing here")

    def test_order(self) -> None:
        """What is not compared stands in one order."""
        things = [f"table public.{letter}" for letter in "abcdefgh"]
        found = drill.contents_from(
            [("extension", thing, "odd 1.0") for thing in things[::-1]]
        )
        backup = drill.Backup(Path("backup"), drill.FORMATS["plain"], sha256="")
        nothing = drill.contents_from([])
        reasons = drill.not_compared(backup, drill.NOTHING, nothing, found)
        told = [thing for thing in reasons if thing in things]
        self.assertEqual(told, things)

    def test_data_after_the_end(self) -> None:
        """A row that begins with NULL is no command for psql."""
        data = "COPY public.t FROM stdin;\n\\N\tone\n\\.\n"
        with place() as here:
            with database("CREATE TABLE t AS SELECT 1 AS i, 'two' AS s") as source:
                pg_dump(source, here.backup)
            here.backup.write_text(here.backup.read_text() + data)
            over = judged(here)
        self.assert_verdict(over, "passed")
        self.assert_facts(over, rows=2)


@cache
def all_together() -> Ended:
    """A run with a dump of a database that has all of those."""
    with place() as here:
        with database(";".join(row.sql for row in TOGETHER)) as source:
            pg_dump(
                source, here.backup, *(word for row in TOGETHER for word in row.dump)
            )
        return judged(here)


class PeculiarTogetherTests(Case, table=TOGETHER):
    """What is peculiar about tables, sequences and functions is no fault, either."""

    def judge(self, row: Peculiar) -> None:
        """It is one of those that pass."""
        self.assert_verdict(all_together(), "passed")
        self.assertIn(row.uncompared, str(all_together().not_compared))


class PrivateServerTests(Case):
    """A private server is made to fit the backup."""

    def test_what_it_knows(self) -> None:
        """It knows letters, and has what the backup names: roles and tablespaces."""
        sql = r"""
        CREATE TABLE public.kept (word text CHECK (word ~ '^\w+$'));
        INSERT INTO public.kept VALUES ('José');
        """
        with place() as here, role() as owner:
            sql += f"ALTER TABLE public.kept OWNER TO {owner}"
            with database(sql, "LC_CTYPE 'C.UTF-8'") as source:
                pg_dump(source, here.backup)
            tablespace = b'CREATE ROLE mallory;\nSET default_tablespace = "A b";'
            changed(b"SET default_tablespace = '';", tablespace)(here.backup)
            over = judged_privately(here, "--strict")
        self.assert_verdict(over, "passed")
        self.assertTrue(over.was_private)


class ProjectTests(Case):
    """The project's migrations are compared with those of the restored database."""

    def test_whole_run(self) -> None:
        """Those that are pending are named, in a process of its own."""
        with place() as here:
            words = ("--backup", str(copied("custom", here.backup)))
            over = here.drill(*words, "--no-throwaway", url=url())
        self.assert_verdict(over, "passed", "The backup restores.")
        self.assertIn("aidscope.0001_initial", over.report["pending_migrations"])


# --- Files that are refused -----------------------------------------------------------

KEPT = """--
-- Name: kept; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kept (word text);


--
-- Data for Name: kept; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.kept (word) FROM stdin;
Krokodil
\\.


"""
INSERTED = re.sub(
    r"COPY (.*)\n(?s:.*)\\\.\n",
    "INSERT INTO public.kept VALUES ('one');\nINSERT INTO public.kept VALUES ('two');\n",
    KEPT,
)
FOREIGN = """
CREATE FOREIGN DATA WRAPPER afar;
CREATE SERVER island FOREIGN DATA WRAPPER afar;
--
-- Name: sand; Type: FOREIGN TABLE; Schema: public; Owner: -
--

CREATE FOREIGN TABLE public.sand (word text) SERVER island;
"""
OWN_TABLE = """--
-- Data for Name: pg_description; Type: TABLE DATA; Schema: pg_catalog; Owner: -
--

COPY pg_catalog.pg_description (objoid, classoid, objsubid, description) FROM stdin;
1\t1\t0\tKrokodil
\\.


"""
HEAD = b"--\n-- PostgreSQL database dump\n--\n\n"
FOOT = "--\n-- PostgreSQL database dump complete\n--\n\n"
CLUSTER = HEAD.replace(b"database dump", b"database cluster dump")
IN_PARTS = (
    b"--\n-- NOTE:\n--\n-- File paths need to be edited. Search for $$PATH$$ and\n"
)
TAR = b"a.sql".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0")


@dataclass(frozen=True)
class File(Row):
    """The content of a file, and what is said of it."""

    content: bytes
    verdict: str
    says: str


NO_BACKUPS = (
    File("prose", b"Krokodil, my diary\n", "error", "not a backup by pg_dump"),
    File("SQLite", b"SQLite format 3\0Krokodil", "error", "SQLite format"),
    File("HTML", b"<!DOCTYPE html>Krokodil", "error", "<!DOCTYPE html"),
    File("SQL by hand", b"-- by hand\nSELECT 1;\n", "error", "-- by hand"),
    File("zip", b"PK\3\4Krokodil", "error", "a zip file"),
    File("7z", b"7z\xbc\xaf\x27\x1cKrokodil", "error", "a 7z file"),
    File("a tar of other files", TAR, "error", "a tar of other files"),
    File("openssl", b"Salted__Krokodil", "error", "encrypted by openssl"),
    File("openssl in base64", b"U2FsdGVkX1Krokodil", "error", "encrypted by openssl"),
    File("age", b"age-encryption.org/v1\nKrokodil", "error", "encrypted by age"),
    File("PGP", b"-----BEGIN PGP MESSAGE-----\n", "error", "encrypted by OpenPGP"),
    File("PGP in binary", b"\x85\x01\x0cKrokodil", "error", "encrypted by OpenPGP"),
    File("a whole server's dump", CLUSTER, "error", "pg_dumpall"),
    File("the SQL of a tar", IN_PARTS + HEAD, "error", "the restore.sql of a tar"),
)
PACKED_TWICE = (
    File("a server's dump", gzip.compress(CLUSTER), "error", "pg_dumpall"),
    File("an archive", gzip.compress(b"PGDMP\1\16\0"), "error", "custom lies in it"),
    File("gzip", gzip.compress(gzip.compress(HEAD)), "error", "gzip lies in it"),
    File("a tar", gzip.compress(TAR), "error", "a tar of other files"),
)
DAMAGED = (
    File("nothing", b"", "failed", "it is empty"),
    File("zeros", bytes(4096), "failed", "zero bytes"),
    File("UTF-16", HEAD.decode().encode("utf-16"), "failed", "UTF-16"),
    File("the header alone", HEAD, "failed", "no footer"),
    File("nothing in gzip", gzip.compress(b""), "failed", "no header"),
    File("a tar that only looks so", b"toc.dat\0".ljust(512, b"x"), "failed", "tar"),
)
NEWER = (
    File(
        "archive", b"PGDMP\1\143\0\4\10\1" + bytes(100), "error", "unsupported version"
    ),
    File(
        "server",
        plain(f"-- Dumped from database version 99.1\n{KEPT}").encode(),
        "error",
        "99",
    ),
    File(
        "pg_dump",
        plain(f"-- Dumped by pg_dump version 99.1\n{KEPT}").encode(),
        "error",
        "99",
    ),
)


class FileCase(Case):
    """What is no backup of one database is refused, and none of its text is shown."""

    def judge(self, row: File) -> None:
        """Nothing is restored."""
        path = folder() / f"file_{next(NUMBERS)}"
        path.write_bytes(row.content)
        with patch.object(drill, "load_backup") as load:
            self.assert_raised(raised_by(path), KINDS[row.verdict], row.says)
        load.assert_not_called()


class NoBackupTests(FileCase, table=NO_BACKUPS):
    """A file that pg_dump did not write could not be judged."""

    def test_whole_runs(self) -> None:
        """So runs end before a restore."""
        for row in (NO_BACKUPS[0], DAMAGED[0]):
            with place() as here:
                here.backup.write_bytes(row.content)
                over = judged(here)
            self.assert_verdict(over, row.verdict, row.says)
            self.assert_facts(over, seconds_to_restore=None)

    def test_pipe(self) -> None:
        """A pipe, which can be read but once, is not a file."""
        with place() as here:
            os.mkfifo(here.backup)
            words = ("--backup", str(here.backup), "--no-throwaway")
            with here.started(*words, url=url()) as process:
                over = here.ended(process, 5)
        self.assert_verdict(over, "error", str(here.backup))

    def test_what_is_no_file(self) -> None:
        """Nothing may be there, or a folder, which may be a server's."""
        with place() as here:
            self.assert_verdict(judged(here), "error", "No such file", str(here.backup))
            here.backup.mkdir()
            (here.backup / "PG_VERSION").touch()
            self.assert_verdict(judged(here), "error", "no toc.dat", "PG_VERSION")

    def test_empty_folder(self) -> None:
        """An empty folder is an empty backup, whatever command would restore it."""
        with place() as here:
            here.backup.mkdir()
            words = ("--backup", str(here.backup), "--restore-command", "true")
            over = drilled(here, *words)
        self.assert_verdict(over, "failed", "it is empty", act="validation")

    def test_name_of_a_stream(self) -> None:
        """It would be another file in each program."""
        with place() as here, copied("plain", here.backup).open() as file:
            over = drilled(here, "--backup", f"/dev/fd/{file.fileno()}")
        self.assert_verdict(over, "error", "is not a file", act="creation")

    def test_another_file_meanwhile(self) -> None:
        """A backup that is replaced while it is judged could not be judged."""
        with place() as here:
            copied("plain", here.backup)
            here.stand_in("psql", f"touch -d @1 '{here.backup}'", LOADS)
            over = judged(here)
        self.assert_verdict(over, "error", "changed while it was", act="restore")

    def test_another_file_while_it_is_decrypted(self) -> None:
        """What was decrypted is not the file any more."""
        # By its time, and by its size alone.
        appended = "touch -r {0} {0}.time; echo >> {0}; touch -r {0}.time {0}"
        for change in ("touch -d @1 {0}", appended):
            with place() as here:
                copied("plain", here.backup)
                over = judged(here, "--decrypt", f"cat; {change.format(here.backup)}")
            self.assert_verdict(over, "error", "changed while it was", act="creation")

    def test_report_in_place_of_the_backup(self) -> None:
        """The report is not written over what it speaks of."""
        with place() as here:
            content = copied("plain", here.backup).read_bytes()
            for report in (here.backup, here.folder / "backup.sha256"):
                over = judged(here, "--report", str(report))
                self.assertEqual(over.status, 1, over.said)
                self.assert_said(over, "--report")
            self.assertEqual(here.backup.read_bytes(), content)

    def test_decompressor_that_is_missing(self) -> None:
        """It is an error that says what to install."""
        with place() as here:
            here.backup.write_bytes(b"\x28\xb5\x2f\xfd\x04\x58")
            tools = system_programs(here.folder / "tools", without="zstd")
            over = judged(here, PATH=f"{here.bin}{os.pathsep}{tools}")
        self.assert_verdict(over, "error", "zstd", "install")


class PackedTwiceTests(FileCase, table=PACKED_TWICE):
    """What lies in a compressed file is no plain backup: it could not be judged."""


class DamagedFileTests(FileCase, table=DAMAGED):
    """A file that was a backup, or should be one, is bad."""


class NewerTests(FileCase, table=NEWER):
    """What a newer version wrote could not be judged."""


@dataclass(frozen=True)
class Content(Row):
    """SQL of a plain backup with a table, and how the drill ends with it."""

    sql: str
    verdict: str
    says: str


MISSING = (
    Content("data of all tables", KEPT.partition("\n\n\n")[0], "failed", "no data of"),
    Content("all tables", "CREATE SEQUENCE public.s;", "failed", "it holds no table"),
    Content(
        "a sequence's value",
        f"{KEPT}--\n-- Name: s; Type: SEQUENCE SET; Schema: public; Owner: o\n--\n",
        "failed",
        "values of sequences are missing",
    ),
    Content(
        "the tables of all data", KEPT.partition("\n\n\n")[2], "error", "without their"
    ),
    Content("the end of a block", KEPT.replace("\\.", ""), "failed", "has no end"),
    Content(
        "rows behind an early end",
        KEPT.replace("Krokodil", "\\.\nKrokodil"),
        "failed",
        "",
    ),
    Content("the end of a quote", f"SELECT $x$;\n{KEPT}", "failed", "42601"),
    Content(
        "the head of rows",
        KEPT.replace(KEPT[KEPT.index("--\n-- Data") : KEPT.index("Kro")], "")
        .replace("Krokodil", "Krokodil; x")
        .replace("\\.\n", "")
        + KEPT.replace("kept", "other"),
        "failed",
        "a syntax error",
    ),
    Content(
        "nothing, as data are there twice",
        KEPT + KEPT.partition("\n\n\n")[2],
        "failed",
        "table public.kept: its data are there twice",
    ),
    Content(
        "nothing, as rows are there by COPY and by INSERT",
        KEPT + INSERTED.partition("\n\n\n")[2],
        "failed",
        "table public.kept: its data are there twice",
    ),
    Content(
        "nothing, as rows by INSERT are there twice",
        INSERTED + INSERTED.partition("\n\n\n")[2],
        "failed",
        "table public.kept: its data are there twice",
    ),
)
BEYOND = (
    Content("roles", f"{KEPT}CREATE ROLE mallory;", "error", "--throwaway"),
    Content("databases", f"{KEPT}DROP DATABASE live;", "error", "--throwaway"),
    Content("settings", f"{KEPT}ALTER SYSTEM SET x = 1;", "error", "--throwaway"),
    Content(
        "tablespaces",
        f"{KEPT}ALTER TABLESPACE pg_default RESET (seq_page_cost);",
        "error",
        "--throwaway",
    ),
    Content(
        "another server",
        FOREIGN + KEPT + KEPT.partition("\n\n\n")[2].replace("kept", "sand"),
        "error",
        "foreign tables",
    ),
    Content(
        "two databases",
        KEPT.join(
            f"--\n-- Name: {name}; Type: DATABASE; Schema: -; Owner: anna\n--\n\n"
            f"CREATE DATABASE {name};\n\n\\connect {name}\n\n"
            for name in ("one", "two")
        ),
        "error",
        "it holds the databases one, two",
    ),
    Content("own tables, by COPY", f"{OWN_TABLE}{KEPT}", "error", "this: pg_catalog"),
    Content(
        "a command for psql, after its own restriction",
        f"\\restrict x\n{KEPT}{FOOT}\\unrestrict x\n\\connect postgres\n",
        "error",
        r"this: \connect",
    ),
    Content(
        "own tables, by a name without a schema",
        f"{KEPT}COPY pg_shdescription FROM stdin;\n\\.\n",
        "error",
        "this: pg_shdescription",
    ),
    Content(
        "own tables, by INSERT",
        f"{KEPT}INSERT INTO pg_catalog.pg_description VALUES (1, 1, 0, 'x');",
        "error",
        "this: pg_catalog",
    ),
)


@dataclass(frozen=True)
class Command(Row):
    """What psql would do; {escaped} is a file that is not there."""

    sql: str


COMMANDS = (
    Command("for the shell", r"\! touch {escaped}"),
    Command("to connect", r"\connect postgres"),
    Command("to read a file", r"\i other.sql"),
    Command("to end", r"\q"),
    Command("behind SQL", r"SELECT 1 \gexec"),
    Command("of a copy", r"\copy public.kept from x"),
    Command("without restriction", r"\unrestrict x"),
    Command(
        "behind a carriage return",
        "-- x\r\\! touch {escaped}\n;",
    ),
    Command(
        "behind a parenthesis that nothing closes",
        "SELECT (1;\nCOPY public.a (b) FROM stdin;\n\\! touch {escaped}\n\\.\n",
    ),
    Command(
        "behind a quote that a backslash does not keep open",
        "SELECT 'a\\' \\! touch {escaped}\n;",
    ),
)


class ContentCase(Case):
    """What a plain backup holds decides how it is judged, and no row is shown."""

    def judge(self, row: Content) -> None:
        """It is judged as the row says."""
        path = folder() / f"content_{next(NUMBERS)}"
        path.write_bytes(plain(row.sql).encode())
        self.assert_raised(raised_by(path), KINDS[row.verdict], row.says)


class MissingTests(ContentCase, table=MISSING):
    """Something is missing."""


class BeyondTests(ContentCase, table=BEYOND):
    """A load would write elsewhere."""


class CommandTests(Case, table=COMMANDS):
    """A command for psql, which pg_dump writes nowhere."""

    def judge(self, row: Command) -> None:
        """It stands behind the tables: no command is given, and the backup is bad."""
        path = folder() / f"commands_{next(NUMBERS)}"
        escaped = path.with_suffix(".escaped")
        sql = f"{KEPT}--\n-- Name: v; Type: VIEW; Schema: public; Owner: -\n--\n\n"
        sql += row.sql.replace("{escaped}", str(escaped))
        path.write_bytes(plain(sql).encode())
        verdict = raised_by(path)
        self.assertFalse(escaped.exists(), verdict)
        self.assert_raised(verdict, drill.BackupIsBad, "a command for psql")

    def test_whole_run(self) -> None:
        """So a run ends."""
        with place() as here:
            here.backup.write_text(plain(f"{KEPT}\\q"))
            over = judged(here)
        self.assert_verdict(over, "failed", "a command for psql", act="restore")


LEFT_OUT = (
    "COMMENT ON DATABASE live IS 'Krokodil';",  # as old versions write it
    "GRANT ALL ON DATABASE live TO PUBLIC;",
    "REVOKE CONNECT,TEMPORARY ON DATABASE live FROM PUBLIC;",
    "SECURITY LABEL FOR x ON DATABASE live IS 'y';",
)


class LeftOutTests(Case):
    """What belongs to a server is not loaded, and is named."""

    def test_statements(self) -> None:
        """Each is left out with its entry, and the line of an error stays its line."""
        comment = "-- Name: DATABASE live; Type: COMMENT; Schema: -; Owner: -"
        sql = f"{KEPT}--\n{comment}\n--\n\n{LEFT_OUT[0]}\n\n\n"
        for statement in LEFT_OUT:
            comment = "-- Name: DATABASE live; Type: ACL; Schema: -; Owner: -"
            sql += f"--\n{comment}\n--\n\n{statement}\n\n\n"
        with place() as here:
            here.backup.write_text(plain(sql))
            passed = judged(here)
            here.backup.write_text(plain(f"{sql}--\n{BAD_ENTRY}"))
            failed = judged(here)
            line = here.backup.read_text().splitlines().index("SELECT 1 FROM;") + 1
        self.assert_verdict(passed, "passed")
        named = {"acl DATABASE live", "comment DATABASE live"}
        self.assertLessEqual(named, {*passed.not_compared})
        self.assert_verdict(failed, "failed", f"line {line}, view public.v: 42601")

    def test_view_without_its_rows(self) -> None:
        """One that the backup fills must be full."""
        comment = "-- Name: m; Type: {}; Schema: public; Owner: -"
        made = "CREATE MATERIALIZED VIEW public.m AS SELECT 1 AS a WITH NO DATA;"
        sql = f"{KEPT}--\n{comment.format('MATERIALIZED VIEW')}\n--\n\n{made}\n\n\n"
        sql += f"--\n{comment.format('MATERIALIZED VIEW DATA')}\n--\n\n"
        refresh = "REFRESH MATERIALIZED VIEW public.m;\n"
        with place() as here:
            here.backup.write_text(plain(sql + refresh))
            filled = judged(here)
            here.backup.write_text(plain(sql))
            empty = judged(here)
        self.assert_verdict(filled, "passed")
        says = "expected  rows of materialized view public.m: made"
        self.assert_verdict(empty, "failed", says, act="restore")

    def test_garbage_behind_the_end(self) -> None:
        """What gzip ignores is told: it may have been a part of the backup."""
        with place() as here:
            copied("gzip", here.backup)
            with here.backup.open("ab") as file:
                file.write(b"garbage")
            over = judged(here)
        self.assert_verdict(over, "passed", "trailing garbage ignored")

    def test_notes_behind_the_end(self) -> None:
        """However many there are, they are no data, and do not blind the control."""
        with place() as here:
            here.backup.write_text(plain(KEPT) + "-- a note of the operator's\n" * 400)
            over = judged(here)
        self.assert_verdict(over, "passed")


class ReasonedTests(Case):
    """What a load or a file says is taken for what it is, wherever it stands."""

    def test_commands_in_a_locale(self) -> None:
        """The clauses of CREATE DATABASE cannot hold a command for psql."""
        with place() as here:
            with database("CREATE TABLE t AS SELECT 1 AS i") as source:
                pg_dump(source, here.backup, "--create")
            made = here.folder / "made"
            changed(rb" (LOCALE|LC_COLLATE) = ", rb" \\! touch %s #" % bytes(made))(
                here.backup
            )
            over = judged(here)
            self.assertFalse(made.exists())
        self.assert_verdict(over, "passed")

    def test_error_at_commit(self) -> None:
        """One that psql reports without a line is one of the load, and hides rows."""
        sql = """CREATE TABLE one (id integer PRIMARY KEY);
        CREATE TABLE many (one integer REFERENCES one DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO one VALUES (4711); INSERT INTO many VALUES (4711)"""
        parts = ("pre-data", "post-data", "data")
        with place() as here, database(sql) as source:
            texts = [
                pg_dump(source, here.folder / part, f"--section={part}").read_text()
                for part in parts
            ]
            here.backup.write_text("".join(texts))
            changed(rb"(COPY public.one .*?stdin;\n)4711\n", rb"\1")(here.backup)
            over = judged(here)
        says = "at the end of the load: 23503"
        self.assert_verdict(over, "failed", says, act="restore")
        self.assertNotIn("4711", over.said)

    def test_dates_by_a_setting(self) -> None:
        """A plain file does not tell how its database reads dates; values it does."""
        sql = """ALTER DATABASE {me} SET datestyle TO 'ISO, DMY';
        SET datestyle TO 'ISO, DMY';
        CREATE TABLE t (day text, at date, CHECK (day::date > '2000-01-01'));
        INSERT INTO t VALUES ('31/12/2020', '2020-12-30')"""
        with place() as here, database(sql) as source:
            pg_dump(source, here.backup)
            healthy = judged(here)
            changed(b"2020-12-30", b"2020-13-30")(here.backup)
            damaged = judged(here)
        self.assert_verdict(healthy, "error", "22008", "ALTER DATABASE", act="restore")
        self.assert_verdict(damaged, "failed", "22008", act="restore")

    def test_sql_around(self) -> None:
        """What is about roles, before the header or after the end, needs a server."""
        with place() as here:
            dump = copied("plain", here.backup).read_text()
            for text in (f"{dump}grant anna to ben;\n", f" alter role ben;\n{dump}"):
                here.backup.write_text(text)
                self.assert_verdict(judged(here), "error", "more than its database")

    def test_sql_that_empties(self) -> None:
        """Nothing is left of a backup that removes its rows at the end."""
        with place() as here:
            dump = copied("plain", here.backup).read_text()
            here.backup.write_text(
                f"{dump}DELETE FROM public.kept; DELETE FROM public.long;\n"
            )
            over = judged(here)
        self.assert_verdict(over, "failed", "no row came back", act="restore")

    def test_no_constraints(self) -> None:
        """A backup without its last section has none, which is said."""
        with place() as here:
            with database("CREATE TABLE t AS SELECT 1 AS i") as source:
                pg_dump(source, here.backup)
            over = judged(here)
        self.assert_verdict(over, "passed", "constraints, indexes and triggers (the b")

    def test_colours(self) -> None:
        """They do not keep the drill from reading what psql says."""
        with place() as here:
            copied("plain", here.backup)
            changed(rb"stdin;\n1\t", rb"stdin;\nKrokodil\t")(here.backup)
            over = judged(here, PG_COLOR="always")
        self.assert_verdict(over, "failed", "22P02", act="restore")

    def test_what_utf8_lacks(self) -> None:
        """Some encodings hold bytes that stand for nothing, and PostgreSQL allows it."""
        with place() as here:
            clauses = "ENCODING 'WIN1252' LC_COLLATE 'C' LC_CTYPE 'C'"
            with database("CREATE TABLE t (s text)", clauses) as source:
                pg_dump(source, here.backup)
            changed(rb"stdin;\n", b"stdin;\n\x9d\n")(here.backup)
            over = judged(here)
        self.assert_verdict(over, "error", "22P05", act="restore")

    def test_words_of_damage_in_a_path(self) -> None:
        """What a program says of a path is not said of the content."""
        says = 'for last; do :; done; echo "pg_restore: error: $last: no" >&2; exit 1'
        with place() as here:
            path = here.folder / "corrupted" / "magic"
            path.parent.mkdir()
            copied("custom", path)
            here.stand_in("pg_restore", says, READS)
            over = drilled(here, "--backup", str(path), "--no-throwaway")
        self.assert_verdict(over, "error", "magic: no", act="validation")

    def test_names_before_10_3(self) -> None:
        """Before, a function's name in a comment had its arguments without schemas."""
        text = plain(f"-- Dumped by pg_dump version 10.1\n{OLD_FUNCTION}{KEPT}")
        with place() as here:
            here.backup.write_text(text)
            over = judged(here)
        self.assert_verdict(over, "passed", "names (an old pg_dump wrote them)")

    def test_record_of_a_folder(self) -> None:
        """Nobody knows of what in it that would be a checksum."""
        with place() as here:
            copied("directory", here.backup)
            here.backup.with_suffix(".sha256").write_text("1" * 64)
            over = judged(here)
        self.assert_verdict(over, "passed", "backup.sha256 was not used")

    def test_no_file_to_decrypt(self) -> None:
        """A file that is not there is named, before anything is asked of it."""
        with place() as here:
            over = judged(here, "--decrypt", "gpg -d")
        self.assert_verdict(over, "error", "No such file", str(here.backup))

    def test_report_beside_a_loop(self) -> None:
        """A path that leads to itself is not there, either."""
        with place() as here:
            here.backup.symlink_to(here.backup)
            over = judged(here, "--report", str(here.report))
        self.assert_verdict(over, "error", str(here.backup))

    def test_backup_that_goes(self) -> None:
        """One that somebody removes meanwhile was not judged."""
        goes = '"$REAL" "$@"; status=$?; rm "$PLACE/backup"; exit $status'
        with place() as here:
            copied("custom", here.backup)
            here.stand_in("pg_restore", goes, READS)
            over = judged(here)
        self.assert_verdict(over, "error", "changed while it was", act="validation")

    def test_command_for_an_old_psql(self) -> None:
        """One that cannot be restricted is given no command."""
        with place() as here:
            made = here.folder / "made"
            here.backup.write_text(plain(f"{KEPT}\\! touch {made}"))
            here.stand_in("psql", "exit 0", "*--help=commands*")
            over = judged(here)
            self.assertFalse(made.exists())
        self.assert_verdict(over, "error", "which this psql would obey", act="restore")

    def test_password_that_is_no_text(self) -> None:
        """Its bytes are hidden as they are."""
        with place() as here:
            copied("plain", here.backup)
            over = judged(here, PGPASSWORD="a\udce4")
        self.assert_verdict(over, "passed")

    def test_no_summary(self) -> None:
        """An empty variable names no file."""
        with place() as here:
            copied("plain", here.backup)
            over = judged(here, GITHUB_STEP_SUMMARY="")
        self.assert_verdict(over, "passed")


OLD_FUNCTION = """SET search_path = public, pg_catalog;

--
-- Name: mood; Type: TYPE; Schema: public; Owner: -
--

CREATE TYPE mood AS ENUM ('good');


--
-- Name: f(mood); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION f(mood) RETURNS integer LANGUAGE sql AS 'SELECT 1';


"""
BAD_ENTRY = """-- Name: v; Type: VIEW; Schema: public; Owner: -
--

SELECT 1 FROM;
"""


# --- Checksums ------------------------------------------------------------------------


@dataclass(frozen=True)
class Record(Row):
    """What stands in a FILE.sha256, with {sum} for the sum, and what is made of it."""

    text: str
    verdict: str
    says: str = ""
    encoding: str = "utf-8"


RECORDS = (
    Record("as sha256sum writes it", "{sum}  backup\n", "passed"),
    Record("in upper case, and binary", "{SUM} *backup\n", "passed"),
    Record("as BSD writes it", "SHA256 (backup) = {sum}\n", "passed"),
    Record("the sum alone", "{sum}", "passed"),
    Record("as PowerShell writes it", "{SUM}  backup\r\n", "passed", "", "utf-16"),
    Record("among others", f"{'1' * 64}  other\n{{sum}}  ./backup\n", "passed"),
    Record("of another file", "0" * 64, "failed", f"expected {'0' * 64}"),
    Record("empty", "", "passed", "backup.sha256"),
    Record("of too many", f"{'1' * 64}\n{'2' * 64}\n", "passed", "backup.sha256"),
)


class RecordTests(Case, table=RECORDS):
    """A FILE.sha256 beside the backup is believed, whatever program wrote it."""

    def judge(self, row: Record) -> None:
        """Validation ends as the row says; what cannot be read is a warning."""
        with place() as here:
            copied("custom", here.backup)
            said = subprocess.check_output(["sha256sum", here.backup], text=True)
            total = said.split()[0]
            text = row.text.replace("{sum}", total).replace("{SUM}", total.upper())
            record = here.backup.with_suffix(".sha256")
            record.write_bytes(text.encode(row.encoding))
            over = judged(here, "-k", "validation")
        self.assert_verdict(over, row.verdict, row.says)
        self.assertEqual("backup.sha256" in over.said, row.says == "backup.sha256")
        self.assertEqual(over.acts["validation"], row.verdict)


# --- What is compared, and how old a backup may be ------------------------------------


SORTS = r"""
CREATE TABLE public.kept (id serial, word text);
INSERT INTO public.kept SELECT n, 'one' FROM generate_series(1, 5) AS n;
CREATE INDEX kept_id ON public.kept (id);
CREATE TABLE public.ab (id integer);
CREATE TABLE public."a""b" ();
SELECT lo_from_bytea(4711, '\x00ff')
"""
SPOILED = """
DELETE FROM public.kept WHERE id = 5;
DROP INDEX public.kept_id;
SELECT setval('public.kept_id_seq', 7);
DROP TABLE public."a""b";
SELECT lo_unlink(4711)
"""


class ComparisonTests(Case):
    """What was restored is compared with what the file says."""

    def test_all_sorts(self) -> None:
        """Whatever is missing of rows, indexes, tables and so on is seen."""
        with place() as here, database(SORTS) as name:
            pg_dump(name, here.backup, "-Fc")
            here.spoil(SPOILED)
            over = judged(here)
        self.assert_verdict(
            over,
            "failed",
            "expected  table public.kept: 5 rows",
            "found     table public.kept: 4 rows",
            "expected  index public.kept_id",
            "expected  sequence public.kept_id_seq: 1, not called yet",
            "found     sequence public.kept_id_seq: 7",
            "found     large objects: 0 rows",
            'expected  table public.a"b: 0 rows',
            act="restore",
        )

    def test_rows_of_partitions(self) -> None:
        """A row that is missing is seen, however partitions are dumped."""
        with place() as here, database(PARTITIONS) as name:
            pg_dump(name, here.backup, "--load-via-partition-root")
            here.spoil("DELETE FROM public.day WHERE who = 'b'")
            over = judged(here)
        self.assert_verdict(over, "failed", "found     table public.day: 2 rows")

    def test_constraint(self) -> None:
        """Rows that break a constraint are bad where texts have the same order."""
        sql = "CREATE TABLE public.kept AS SELECT 1 AS id;"
        sql += "ALTER TABLE public.kept ADD CHECK (id > 0)"
        with place() as here, database(sql) as name:
            for words, verdict in (("--create",), "failed"), ((), "error"):
                pg_dump(name, here.backup, *words)
                changed(rb"stdin;\n1\n", rb"stdin;\n-1\n")(here.backup)
                says = "table data public.kept: 23514"
                self.assert_raised(raised_by(here.backup), KINDS[verdict], says)

    def test_slow_restore(self) -> None:
        """A restore that takes longer than it may is a failure."""
        with place() as here:
            copied("plain", here.backup)
            here.stand_in("psql", "sleep 1.2", LOADS)
            over = judged(here, "--max-restore", "1")
        self.assert_verdict(over, "failed", "took too long", act="restore")
        self.assert_facts(over, max_restore_seconds=1)
        self.assertGreater(over.report["seconds_to_restore"], 1)


DAY = 86400


@dataclass(frozen=True)
class Age(Row):
    """How old a backup of two days may be."""

    form: str
    limit: str
    verdict: str


AGES = (
    Age("plain, too old", "plain", "26h", "failed"),
    Age("plain, young enough", "plain", "3d", "passed"),
    Age("custom, too old", "custom", "26h", "failed"),
    Age("directory, too old", "directory", "2000m", "failed"),
)


class AgeTests(Case, table=AGES):
    """A backup that was last written too long ago is bad."""

    def judge(self, row: Age) -> None:
        """The backup is two days old; of a directory, the newest file is."""
        now = time.time()
        with place() as here:
            files = [*copied(row.form, here.backup).glob("*"), here.backup]
            for days, file in enumerate(files, 2):
                os.utime(file, (now, now - days * DAY))
            over = judged(here, "-k", "validation", "--max-age", row.limit)
        self.assert_verdict(over, row.verdict, act="validation")
        written = datetime.fromisoformat(over.report["backup_written"]).timestamp()
        self.assertAlmostEqual(written, now - 2 * DAY, delta=120)

    def test_future(self) -> None:
        """A time in the future is no age: whose clock is wrong, nobody knows."""
        tomorrow = time.time() + DAY
        with place() as here:
            os.utime(copied("plain", here.backup), (tomorrow, tomorrow))
            over = judged(here, "--max-age", "26h")
        self.assert_verdict(over, "error", "in the future", act="validation")

    def test_copied_archive(self) -> None:
        """An archive tells itself when it was made, however young the file is."""
        year = time.localtime().tm_year - 1900
        content = (originals() / "custom").read_bytes()
        last_year = content.replace(
            bytes([0, year, 0, 0, 0]), bytes([0, year - 1, 0, 0, 0]), 1
        )
        self.assertNotEqual(content, last_year)
        with place() as here:
            here.backup.write_bytes(last_year)
            over = judged(here, "--max-age", "26h")
        self.assert_verdict(over, "failed", "too old")
        self.assertNotIn(SECRET, over.said)
