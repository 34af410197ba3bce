"""A backup that exists, of any format, is judged by itself, and is never written to.

The backups are of the suite's restored database, which holds every kind of object. A
healthy one passes whatever its name is; the file is the witness of its own rows.
"""

import functools
import gzip
import json
import os
import re
import secrets
import shutil
import tarfile
import unittest
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from aidscope.tests import server as suite
from aidscope.tests.running import DrillsAhead, Ended, drills_ahead, place, url_of
from aidscope.tests.test_live import database, spoil
from scripts import test_backup_restore as drill

HEAD = b"--\n-- PostgreSQL database dump\n--\n\n"
ARCHIVES = {"custom": "c", "directory": "d", "tar": "t"}


def written(path: Path, *arguments: str) -> Path:
    """The suite's restored database, written by pg_dump."""
    drill.run(drill.command(suite.restored(), "pg_dump", "--file", path, *arguments))
    return path


def healthy(folder: Path, form: str) -> Path:
    """A healthy backup of the format, under a name that says nothing."""
    kept, path = original(form), folder / "backup"
    if kept.is_dir():
        return shutil.copytree(kept, path)
    return Path(shutil.copyfile(kept, path))


@functools.cache
def original(form: str) -> Path:
    """The healthy backup of the format, from which copies are made."""
    path = suite.folder() / f"healthy.{form}"
    if form in ARCHIVES:
        return written(path, "--format", ARCHIVES[form])
    sql = written(path).read_bytes()
    if form == "gzip":
        path.write_bytes(gzip.compress(sql))
    return path


def bytes_of(path: Path) -> dict[str, tuple[bytes, int]]:
    """The files of a backup, with the time at which each was written."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


# --- Backups that restore -------------------------------------------------------------


class Healthy(NamedTuple):
    """How a backup is written and named, and the format that the drill must see."""

    form: str
    arguments: tuple[str, ...] = ()
    name: str = "backup"


HEALTHY = {
    "plain under a custom's name": Healthy("plain", name="nightly.dump"),
    "gzip under a plain's name": Healthy("gzip", name="nightly.sql"),
    "custom under a plain's name": Healthy("custom", ("-Fc",), "nightly.sql"),
    "directory": Healthy("directory", ("-Fd",)),
    "directory written by two workers": Healthy("directory", ("-Fd", "-j2")),
    "tar without its ending": Healthy("tar", ("-Ft",), "nightly"),
    "custom that is not compressed": Healthy("custom", ("-Fc", "-Z0")),
    "rows as INSERT": Healthy("plain", ("--inserts",)),
    "rows as INSERT, many at once": Healthy(
        "plain", ("--column-inserts", "--rows-per-insert=50")
    ),
    "without owners and rights": Healthy("plain", ("--no-owner", "--no-privileges")),
    "that would drop first": Healthy("plain", ("--clean", "--if-exists")),
    "all names quoted": Healthy("plain", ("--quote-all-identifiers",)),
    "triggers switched off": Healthy("custom", ("-Fc", "--disable-triggers")),
    "partitions by way of their root": Healthy("plain", ("--load-via-partition-root",)),
    "in an encoding of its own": Healthy("plain", ("--encoding", "SQL_ASCII")),
    "the schema alone": Healthy("plain", ("--schema-only",)),
    "archive that can create its database": Healthy("custom", ("-Fc", "--create")),
}


class Outcome(NamedTuple):
    """What a drill with a backup came to."""

    over: Ended
    report: dict
    untouched: bool
    leftovers: list[str]


@drills_ahead
class HealthyTests(DrillsAhead):
    """A healthy backup passes, told by its content, and is as it was."""

    table: ClassVar = HEALTHY

    @classmethod
    def setUpClass(cls) -> None:
        suite.restored()
        super().setUpClass()

    @staticmethod
    def drilled(row: Healthy) -> Outcome:
        """Drill with a backup that was written so."""
        with place() as here:
            path = written(here.folder / row.name, *row.arguments)
            if row.form == "gzip":
                path.write_bytes(gzip.compress(path.read_bytes()))
            before = bytes_of(path)
            report = here.folder / "report.json"
            arguments = ("--backup", str(path), "--report", str(report), "--strict")
            over = here.run(*arguments, DATABASE_URL=url_of())
            facts = json.loads(report.read_text())
            return Outcome(over, facts, before == bytes_of(path), here.leftovers())

    def judge_outcome(self, row: Healthy, outcome: Outcome) -> None:
        """It passed, as what it is, and every table was compared."""
        over, report, untouched, leftovers = outcome
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(report["format"], row.form)
        self.assertEqual(report["source"], f"the backup {row.name}")
        self.assertEqual(report["tables"], len(suite.backups().today.rows))
        rows = sum(suite.backups().today.rows.values())
        empty = "--schema-only" in row.arguments
        self.assertEqual(report["rows"], 0 if empty else rows)
        self.assertEqual(report["pending_migrations"] != [], empty)
        self.assertNotIn("seconds_to_back_up", report)
        self.assertTrue(untouched, "the backup was written to")
        self.assertEqual(leftovers, [])


class Peculiar(NamedTuple):
    """The statements that make a database, and how it is dumped and drilled."""

    sql: str
    dump: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    clauses: str = ""


PECULIAR = {
    "one schema, which the backup makes itself": Peculiar(
        "CREATE TABLE public.kept AS SELECT 1 AS id", ("--schema", "public")
    ),
    "one schema, in an archive": Peculiar(
        "CREATE TABLE public.kept AS SELECT 1 AS id", ("-Fc", "--schema", "public")
    ),
    "an archive that only speaks of making a schema": Peculiar(
        r"""
CREATE TABLE public.kept AS SELECT 1 AS id;
COMMENT ON TABLE public.kept IS E'\nCREATE SCHEMA public;\n'
        """,
        ("-Fc",),
    ),
    "a view that cannot be made without rows": Peculiar("""
CREATE TABLE public.kept AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW public.part AS
SELECT 100 * count(*) FILTER (WHERE id = 1) / count(*) FROM public.kept
        """),
    "a whole partitioned table with rows that break a constraint": Peculiar(
        """
CREATE TABLE public.day (d integer, who text) PARTITION BY RANGE (d);
CREATE TABLE public.day_1 PARTITION OF public.day FOR VALUES FROM (0) TO (9)
   PARTITION BY LIST (who);
CREATE TABLE public.day_1_a PARTITION OF public.day_1 FOR VALUES IN ('a');
CREATE TABLE public.day_1_x PARTITION OF public.day_1 DEFAULT;
CREATE TABLE public.day_2 PARTITION OF public.day FOR VALUES FROM (10) TO (19);
INSERT INTO public.day VALUES (1, 'a'), (2, 'b'), (11, 'a');
ALTER TABLE public.day ADD CHECK (d > 5) NOT VALID
        """,
        ("--load-via-partition-root",),
    ),
    "letters beyond ASCII, on a private server": Peculiar(
        r"""
CREATE TABLE public.kept (word text CHECK (word ~ '^\w+$'));
INSERT INTO public.kept VALUES ('José')
        """,
        words=("--throwaway",),
        clauses="LC_CTYPE 'C.UTF-8'",
    ),
    "sequences that will begin elsewhere": Peculiar("""
CREATE TABLE public.kept (id serial);
INSERT INTO public.kept VALUES (1), (2);
ALTER SEQUENCE public.kept_id_seq RESTART 1000
        """),
}


@drills_ahead
class PeculiarTests(DrillsAhead):
    """What is peculiar about a database or its dump is no fault."""

    table: ClassVar = PECULIAR

    @staticmethod
    def drilled(row: Peculiar) -> Ended:
        """Drill with a dump of such a database."""
        with place() as here, database(row.sql, clauses=row.clauses) as source:
            path = here.folder / "backup"
            dump = drill.command(source, "pg_dump", "--file", path, *row.dump)
            drill.run(dump)
            where = {} if row.words else {"DATABASE_URL": url_of()}
            return here.run("--backup", str(path), *row.words, **where)

    def judge_outcome(self, _row: Peculiar, outcome: Ended) -> None:
        """It passed."""
        self.assertEqual(outcome.status, 0, outcome.said)


class PrivateServerTests(unittest.TestCase):
    """With --throwaway a backup needs no configured database."""

    def test_throwaway(self) -> None:
        """The roles that the backup names are made, so that owners are restored."""
        with place() as here:
            path = healthy(here.folder, "custom")
            words = ("--strict", "--throwaway", "--backup", str(path))
            over = here.run(*words)
            leftovers = here.leftovers()
        self.assertEqual(over.status, 0, over.said)
        self.assertIn("The backup restores.", over.stderr)
        self.assertEqual(leftovers, [])

    def test_tablespace(self) -> None:
        """Tablespaces that the backup names are made, too."""
        with place() as here:
            path = healthy(here.folder, "plain")
            sql, none = path.read_bytes(), b"SET default_tablespace = '';"
            self.assertIn(none, sql)
            path.write_bytes(sql.replace(none, b'SET default_tablespace = "A b";'))
            over = here.run("--throwaway", "--backup", str(path))
        self.assertEqual(over.status, 0, over.said)

    def test_unknown_role(self) -> None:
        """A role that the server does not know is no fault of the backup's."""
        with place() as here:
            path = healthy(here.folder, "plain")
            sql = path.read_bytes().replace(b"TO drill_keeper", b"TO drill_nobody")
            path.write_bytes(sql)
            over = here.run("--backup", str(path), DATABASE_URL=url_of())
        self.assertEqual(over.status, 1, over.said)
        self.assertIn("The backup could not be judged.", over.stderr)
        self.assertIn('role "drill_nobody" does not exist', over.stderr)
        self.assertIn("or --throwaway", over.stderr)


class RecordTests(unittest.TestCase):
    """A FILE.sha256 beside the backup is believed."""

    def judged(self, record: Callable[[str], str]) -> str:
        """What is said of a healthy backup with this record beside it."""
        with place() as here:
            path = healthy(here.folder, "custom")
            sha256, _ = drill.fingerprint(path)
            path.with_name("backup.sha256").write_text(record(sha256))
            return said_of(path, drill.adopted)

    def test_right(self) -> None:
        """Whatever program wrote the sum, and however, it is understood."""
        for record in ("{0}\n", "{0}  backup\n", "{0} *backup\n", "{1}\n"):
            with self.subTest(record=record):
                said = self.judged(lambda s, r=record: r.format(s, s.upper()))
                self.assertEqual(said, "")

    def test_wrong(self) -> None:
        """Another sum is refused, and both are shown."""
        said = self.judged(lambda _: "0" * 64)
        self.assertIn("not the one that backup.sha256 speaks of", said)
        self.assertRegex(said, f"SHA-256: found [0-9a-f]{{64}}, expected {'0' * 64}")

    def test_empty(self) -> None:
        """A record that says nothing is refused."""
        self.assertIn("expected nothing", self.judged(lambda _: "\n"))


# --- What is no backup, or not yet ----------------------------------------------------


class Stranger(NamedTuple):
    """What a file holds, and how what is said of it begins."""

    content: bytes
    sentence: str
    verdict: type[Exception] = drill.BackupIsBad


def plain(*lines: bytes) -> bytes:
    """A small plain backup with these lines in it."""
    return b"\n".join([HEAD, *lines, b"--", drill.CLOSING, b"--\n"])


BEYOND = "the backup would reach beyond its database\n  "
STRANGERS = {
    "nothing": Stranger(b"", "{} is no backup: it is empty"),
    "zeros": Stranger(b"\0" * 4096, "{} is no backup: it begins with zero bytes"),
    "prose": Stranger(b"Dear diary,\n", "{} is no backup that pg_dump wrote"),
    "a server's dump": Stranger(
        HEAD.replace(b"database dump", b"database cluster dump"),
        "{} cannot be restored: pg_dumpall wrote it",
    ),
    "an archive in gzip": Stranger(
        gzip.compress(b"PGDMP\1\16\0"), "{} cannot be restored: an archive was gzipped"
    ),
    "a server's dump in gzip": Stranger(
        gzip.compress(HEAD.replace(b"database dump", b"database cluster dump")),
        "{} cannot be restored: pg_dumpall wrote it",
    ),
    "a row that lost its COPY": Stranger(
        plain(b"\\N\tsecret"), BEYOND + "a command for psql: '\\\\N'"
    ),
    "a tar with another first file": Stranger(
        b"toc.dat\0" + b"x" * 504, "the backup is damaged\n  the tar cannot be read"
    ),
    "an archive of a newer pg_dump": Stranger(
        b"PGDMP\1\143\0\4\10\1" + bytes(100),
        "a newer pg_dump wrote the backup",
        drill.NotJudged,
    ),
    "a dump for a database that is there": Stranger(
        plain(b"DROP TABLE public.kept;"),
        "the backup drops what a fresh database lacks: pg_dump --clean wrote it",
        drill.NotJudged,
    ),
    "SQLite": Stranger(b"SQLite format 3\0", "{} cannot be restored: it is of another"),
    "MySQL": Stranger(b"-- MySQL dump 10\n", "{} cannot be restored: it is of another"),
    "UTF-16": Stranger(
        HEAD.decode().encode("utf-16"), "{} cannot be restored: it is UTF-16"
    ),
    "a newer server's": Stranger(
        plain(b"-- Dumped from database version 99.1"),
        "the backup was dumped from database version 99",
        drill.NotJudged,
    ),
    "a newer pg_dump's": Stranger(
        plain(b"-- Dumped by pg_dump version 99.1"),
        "the backup was dumped by pg_dump version 99",
        drill.NotJudged,
    ),
    "one that creates its database": Stranger(
        plain(b"CREATE DATABASE shop;", b"\\connect shop"),
        "the backup makes a database of its own: pg_dump --create wrote it",
        drill.NotJudged,
    ),
    "a command for the shell": Stranger(
        plain(b"\\! touch escaped"), BEYOND + "a command for psql: '\\\\\\\\! touch"
    ),
    "a command between two rows' blocks": Stranger(
        plain(b"COPY public.a (b) FROM stdin;", b"1", b"\\.", b"\\i other.sql"),
        BEYOND + "a command for psql: '\\\\\\\\i other.sql'",
    ),
    "another database": Stranger(
        plain(b"\\connect postgres"), BEYOND + "a command for psql: '\\\\\\\\connect"
    ),
    "an end to its transaction": Stranger(
        plain(b"ROLLBACK;"), BEYOND + "a statement on more than its database: 'ROLLBACK"
    ),
    "the server's settings": Stranger(
        plain(b"ALTER SYSTEM SET fsync = off;"),
        BEYOND + "a statement on more than its database: 'ALTER SYSTEM",
    ),
    "a role": Stranger(
        plain(b"CREATE ROLE mallory SUPERUSER;"),
        BEYOND + "a statement on more than its database: 'CREATE ROLE",
    ),
}
STRANGERS |= {
    f"encrypted by {program}": Stranger(head, "{} cannot be restored: it is encrypted")
    for program, head in {
        "openssl": b"Salted__01234567",
        "gpg, as text": b"-----BEGIN PGP MESSAGE-----\n",
        "gpg": b"\x85\x02\x0c\x03",
        "gpg, by a phrase": b"\x8c\x0d\x04\x09",
        "age": b"age-encryption.org/v1\n",
    }.items()
}
STRANGERS |= {
    f"compressed by {program}": Stranger(
        head, "{} cannot be restored: it is compressed by another program than gzip"
    )
    for program, head in {
        "xz": b"\xfd7zXZ\0\0\4",
        "zstd": b"\x28\xb5\x2f\xfd\x04\x58",
        "bzip2": b"BZh91AY&SY",
        "zip": b"PK\x03\x04\x14\0",
        "lz4": b"\x04\x22\x4d\x18\x64\x40",
    }.items()
}


@suite.table_of_tests(STRANGERS)
class StrangerTests(unittest.TestCase):
    """What is no backup of one database is refused before anything is restored."""

    def judge(self, content: bytes, sentence: str, verdict: type[Exception]) -> None:
        """The sentence is said, and what the file asks for was not done."""
        with place() as here:
            path = here.folder / "backup"
            path.write_bytes(content)
            expected = sentence.format(path).replace("\\\\\\\\", "\\\\")
            with self.assertRaises(verdict) as refusal:
                drill.adopted(path, suite.server())
        self.assertEqual(str(refusal.exception)[: len(expected)], expected)


class NoFileTests(unittest.TestCase):
    """What cannot be opened is an error that names it."""

    def test_pipe(self) -> None:
        """A pipe, which can be read but once, is no backup."""
        with place() as here, self.assertRaises(drill.NotJudged) as refusal:
            os.mkfifo(here.folder / "pipe")
            drill.adopted(here.folder / "pipe", suite.server())
        self.assertIn("neither a file nor a folder", str(refusal.exception))

    def test_report_in_place_of_the_backup(self) -> None:
        """The report is not written over what it speaks of."""
        with place() as here:
            path = healthy(here.folder, "plain")
            before = bytes_of(path)
            over = here.run("--backup", str(path), "--report", str(path))
            self.assertEqual(over.status, 1, over.said)
            self.assertIn("argument --report: it is the backup", over.said)
            self.assertEqual(bytes_of(path), before)

    def test_missing(self) -> None:
        """A file that is not there."""
        with place() as here:
            path = str(here.folder / "missing.sql")
            over = here.run("--backup", path, DATABASE_URL=url_of())
        self.assertEqual(over.status, 1, over.said)
        self.assertIn(f"No such file or directory: '{path}'", over.stderr)
        self.assertIn("The backup could not be judged.", over.stderr)
        self.assertNotIn("Traceback", over.said)

    def test_folder(self) -> None:
        """A folder of another kind, such as a server's."""
        with place() as here, self.assertRaises(drill.BackupIsBad) as refusal:
            drill.adopted(here.folder, suite.server())
        self.assertIn("the folder has no toc.dat", str(refusal.exception))


# --- Damage ---------------------------------------------------------------------------


def largest(path: Path) -> Path:
    """The file that holds most of the backup: itself, unless it is a folder."""
    files = path.glob("*.dat.gz") if path.is_dir() else [path]
    return max(files, key=lambda file: file.stat().st_size)


def cut_at(part: float) -> Callable[[Path], None]:
    """What cuts a backup behind this part of it; below 0 it is bytes from its end."""

    def cut(path: Path) -> None:
        file = largest(path)
        size = file.stat().st_size
        os.truncate(file, size + int(part) if part < 0 else int(size * part))

    return cut


def flipped(path: Path) -> None:
    """Flip one bit where a backup's data are: behind its table of contents."""
    file = largest(path)
    content = bytearray(file.read_bytes())
    content[len(content) * 24 // 25] ^= 1
    file.write_bytes(content)


def zeroed(path: Path) -> None:
    """Leave zero bytes in a long value, as a disk does that lost a page."""
    content = bytearray(path.read_bytes())
    at = content.index(b"enough for TOAST long enough")
    content[at : at + 512] = bytes(512)
    path.write_bytes(content)


def without_block(path: Path) -> None:
    """Lose the rows of a table, but for the comment that announces them."""
    sql = path.read_bytes()
    path.write_bytes(
        re.sub(rb"COPY extra\.visit_2023 .*?\n\\\.\n", b"", sql, flags=re.DOTALL)
    )


def with_block_twice(path: Path) -> None:
    """Have the rows of a table twice."""
    sql = path.read_bytes()
    path.write_bytes(
        re.sub(rb"(COPY extra\.visit_2023 .*?\n\\\.\n)", rb"\1\1", sql, flags=re.DOTALL)
    )


def without_list_of_large_objects(path: Path) -> None:
    """Empty the list by which pg_restore finds the large objects of a folder."""
    os.truncate(next(path.glob("blobs*.toc")), 0)


def with_empty_large_object(path: Path) -> None:
    """Empty the file of a large object: no bytes are no fault to zlib."""
    os.truncate(next(path.glob("blob_*.gz")), 0)


def unclosed(path: Path) -> None:
    """Open a quote that nothing closes: psql passes over the rest of the file."""
    sql = path.read_bytes()
    path.write_bytes(sql.replace(b"\nCREATE TABLE", b"\nSELECT $x$\nCREATE TABLE", 1))


def twice(path: Path) -> None:
    """Have the whole backup a second time behind itself."""
    path.write_bytes(path.read_bytes() * 2)


def without_large_object(path: Path) -> None:
    """Lose a large object of a tar."""
    with tarfile.open(path) as tar:
        lost, *_ = (m for m in tar.getmembers() if m.name.startswith("blob_"))
    begin = lost.offset
    end = lost.offset_data + lost.size + -lost.size % 512
    content = path.read_bytes()
    path.write_bytes(content[:begin] + content[end:])


def trailing(path: Path) -> None:
    """Add something behind the end."""
    with path.open("ab") as file:
        file.write(b"rubbish")


def lost(path: Path) -> None:
    """Lose the largest file of a folder."""
    largest(path).unlink()


def cut_between_members(path: Path) -> None:
    """Cut a tar where one of its files ends and the next begins."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    os.truncate(path, members[len(members) // 2].offset)


DAMAGED = {
    f"{form} is cut at {part}": (form, cut_at(part))
    for form in ("plain", "gzip", "custom", "directory", "tar")
    for part in (0.25, 0.5, -600)
} | {
    "gzip has one bit flipped": ("gzip", flipped),
    "custom has one bit flipped": ("custom", flipped),
    "a directory's file has one bit flipped": ("directory", flipped),
    "a directory lost a file": ("directory", lost),
    "tar is cut between two files": ("tar", cut_between_members),
    "plain has zero bytes in a value": ("plain", zeroed),
    "plain has a quote that nothing closes": ("plain", unclosed),
    "plain lost the rows of a table": ("plain", without_block),
    "plain has the rows of a table twice": ("plain", with_block_twice),
    "a directory lost its list": ("directory", without_list_of_large_objects),
    "a directory's large object is empty": ("directory", with_empty_large_object),
    "tar is there twice": ("tar", twice),
    "tar lost a large object": ("tar", without_large_object),
    "gzip has something behind its end": ("gzip", trailing),
    "plain has something behind its end": ("plain", trailing),
}


def put_to_the_test(path: Path, server: drill.Server) -> None:
    """Judge a backup as the three tests do, in this process."""
    backup = drill.adopted(path, server)
    whole, *_ = drill.readings_of(backup, server)
    drill.refuse("the backup is damaged", drill.problems_in(whole, backup))
    with drill.scratch_database(server, "restored", backup.locale) as restored:
        drill.load_backup(backup, restored, jobs=1)
        found = drill.contents_of(restored)
        drill.refuse("it differs", drill.departures(backup, found, restored))


def said_of(
    path: Path, judge: Callable[[Path, drill.Server], object] = put_to_the_test
) -> str:
    """What is said of a backup that is judged bad; nothing of another."""
    mark = f"{drill.MARK}{secrets.token_hex(8)}_"  # the suite has a reference, too
    server = replace(suite.server(), mark=mark)
    try:
        with drill.holding_mark(server):
            judge(path, server)
    except drill.BackupIsBad as refusal:
        return str(refusal)
    return ""


@suite.table_of_tests(DAMAGED)
class DamagedTests(unittest.TestCase):
    """A damaged backup does not pass, and the drill comes to an end."""

    def judge(self, form: str, damage: Callable[[Path], None]) -> None:
        """Without the damage nothing is said; with it something is."""
        with place() as here:
            path = healthy(here.folder, form)
            damage(path)
            self.assertNotEqual(said_of(path), "")


class UndamagedTests(unittest.TestCase):
    """What is no damage is not refused."""

    def test_every_format(self) -> None:
        """The backups that the damage is done to pass without it."""
        for form in ("plain", "gzip", "custom", "directory", "tar"):
            with self.subTest(form=form), place() as here:
                self.assertEqual(said_of(healthy(here.folder, form)), "")

    def test_last_line(self) -> None:
        """A plain backup that an editor left without its last end of line is whole."""
        with place() as here:
            path = healthy(here.folder, "plain")
            path.write_bytes(path.read_bytes().rstrip(b"\n"))
            self.assertEqual(said_of(path), "")

    def test_gzip_in_pieces(self) -> None:
        """Gzip files that were joined are one."""
        with place() as here:
            path = healthy(here.folder, "plain")
            sql = path.read_bytes()
            half = len(sql) // 2
            path.write_bytes(gzip.compress(sql[:half]) + gzip.compress(sql[half:]))
            self.assertEqual(said_of(path), "")


class WitnessTests(unittest.TestCase):
    """The file testifies against what was made of it."""

    def test_rows_that_were_restored_otherwise(self) -> None:
        """A row that the file does not know is seen, however partitions are dumped."""
        sql = "UPDATE extra.visit SET who = 'x' WHERE who = 'a'"
        for how in ((), ("--load-via-partition-root",)):
            with self.subTest(how=how), place() as here:
                path = written(here.folder / "backup", *how)
                here.stand_in("psql", spoil("psql", sql), "*_restored*")
                over = here.run("--backup", str(path), DATABASE_URL=url_of())
                self.assertEqual(over.status, 1, over.said)
                self.assertIn(
                    "BackupIsBad: the restored database differs from its source\n"
                    "  table extra.visit_2023: 1 rows as expected, with other values\n\n",
                    over.stderr,
                )

    def test_sequence_behind(self) -> None:
        """A sequence that stands behind its column's values is named."""
        with place() as here:
            path = healthy(here.folder, "plain")
            before = b"setval('backup_drill.item_id_seq', 100"
            sql = path.read_bytes()
            self.assertIn(before, sql)
            path.write_bytes(sql.replace(before, before[:-3] + b"50"))
            self.assertIn(
                "sequence backup_drill.item_id_seq: behind the values of its column",
                said_of(path),
            )

    def test_constraint(self) -> None:
        """Rows that break a constraint are refused in psql's words."""
        with place() as here:
            path = healthy(here.folder, "plain")
            sql = path.read_bytes()
            self.assertIn(b"\t2.50\t", sql)
            path.write_bytes(sql.replace(b"\t2.50\t", b"\t-2.5\t"))
            self.assertIn('violates check constraint "value_price"', said_of(path))
