"""A backup that exists, of any format, is judged by itself, and is never written to."""

import gzip
import os
import shlex
import subprocess
import time
from datetime import datetime
from pathlib import Path

from aidscope.tests.support import (
    COMPRESSORS,
    LOADS,
    Case,
    Ended,
    Place,
    Row,
    changed,
    copied,
    everything,
    pg_dump,
    place,
    plain,
    prepared,
    rows_of_everything,
    system_programs,
    url,
)


def judged(here: Place, *arguments: str, **how: str) -> Ended:
    """A run with the backup of the place."""
    return here.drill("--backup", str(here.backup), *arguments, **{"url": url(), **how})


def bytes_of(path: Path) -> dict[str, tuple[bytes, int]]:
    """The files of a backup, with the time at which each was written."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


# --- Backups that restore -------------------------------------------------------------

HEALTHY = """
plain under a custom's name, names quoted, without owners and rights
    dump: --quote-all-identifiers --no-owner --no-privileges
    file: nightly.dump
    format: plain
custom under a plain's name, not compressed, that can create
    dump: -Fc -Z0 --create --disable-triggers
    file: nightly.sql
    format: custom
directory written by two workers
    dump: -Fd -j2
    format: directory
tar
    dump: -Ft
    format: tar
    words: --jobs 2
rows as INSERT, many at once
    dump: --column-inserts --rows-per-insert=50
    format: plain
that would drop first, partitions by way of their root
    dump: --clean --if-exists --load-via-partition-root --exclude-schema odd
    format: plain
the schema alone, in an encoding of its own
    dump: --schema-only --encoding SQL_ASCII
    format: plain
"""
for program in COMPRESSORS:
    HEALTHY += f"""
{program} under a plain's name
    file: nightly.sql
    format: {program}
"""


class HealthyTests(Case, table=HEALTHY):
    """A healthy backup passes, told by its content, and is as it was."""

    def judge(self, row: Row) -> None:
        """It passes as what it is, and every table is compared."""
        with place() as here:
            path = here.folder / (row["file"] or "backup")
            pg_dump(everything(), path, *shlex.split(row["dump"]))
            if "dump" not in row:
                words, sql = [row["format"], "-c"], path.read_bytes()
                path.write_bytes(subprocess.check_output(words, input=sql))
            before = bytes_of(path)
            words = ["--max-age", "1h", "--max-restore", "15m", "--backup", str(path)]
            words += row["words"].split()
            over = here.drill("--strict", *words, url=url())
            self.assertEqual(before, bytes_of(path), "the backup was written to")
        self.assert_verdict(over, "passed")
        report, empty = over.report, "--schema-only" in row["dump"]
        self.assertEqual(report["format"], row["format"])
        self.assertEqual(report["source"], f"the backup {path.name}")
        left_out = "odd." if "odd" in row["dump"] else "none"
        rows = {k: n for k, n in rows_of_everything().items() if left_out not in k}
        self.assertEqual(report["rows"], 0 if empty else sum(rows.values()))
        self.assertEqual(report["tables"], len(rows))
        self.assertEqual(report["pending_migrations"] != [], empty)
        self.assertNotIn("seconds_to_back_up", report)
        self.assertEqual(report["max_age_seconds"], 3600)
        self.assertEqual(report["max_restore_seconds"], 900)


PECULIAR = r"""
one schema, which the backup makes itself
    sql: CREATE TABLE public.kept AS SELECT 1 AS id
    dump: --schema public
one schema in an archive that also speaks of making it
    sql:
        CREATE TABLE public.kept AS SELECT 1 AS id;
        COMMENT ON TABLE public.kept IS E'\nCREATE SCHEMA public;\n'
    dump: -Fc --schema public
views without rows, partitions, sequences behind and elsewhere
    sql:
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
    dump: --load-via-partition-root
    uncompared: materialized view public.part
letters beyond ASCII, on a private server
    run: --throwaway --strict
    url:
    clauses: LC_CTYPE 'C.UTF-8'
    sql:
        CREATE TABLE public.kept (word text CHECK (word ~ '^\w+$'));
        INSERT INTO public.kept VALUES ('José')
    dump: -Fp
"""


class PeculiarTests(Case, table=PECULIAR):
    """What is peculiar about a database or its dump is no fault."""

    def judge(self, row: Row) -> None:
        """It passes."""
        with prepared(row) as (here, words, how):
            over = here.drill(*words, **how)
            self.assert_verdict(over, "passed")
            self.assertIn(row["uncompared"], str(over.report["not_compared"]))

    def test_private_server(self) -> None:
        """Roles and tablespaces that a backup names are made on a private server."""
        with place() as here:
            pg_dump(everything(), here.backup)
            tablespace = b'SET default_tablespace = "A b";'
            changed(b"SET default_tablespace = '';", tablespace)(here.backup)
            over = judged(here, "--strict", "--throwaway", url="")
        self.assert_verdict(over, "passed")


# --- Files that are refused -----------------------------------------------------------

HEAD = b"--\n-- PostgreSQL database dump\n--\n\n"
CLUSTER = HEAD.replace(b"database dump", b"database cluster dump")
NO_HEADER = ("failed", "no header")
REFUSED = {
    "nothing": (b"", "failed", "it is empty"),
    "zeros": (bytes(4096), *NO_HEADER),
    "prose": (b"Krokodil, my diary\n", *NO_HEADER),
    "SQLite": (b"SQLite format 3\0Krokodil", *NO_HEADER),
    "UTF-16": (HEAD.decode().encode("utf-16"), *NO_HEADER),
    "encrypted": (b"Salted__Krokodil", "error", "encrypted"),
    "a whole server's dump": (CLUSTER, "error", "pg_dumpall"),
    "a whole server's dump in gzip": (gzip.compress(CLUSTER), "error", "pg_dumpall"),
    "an archive in gzip": (gzip.compress(b"PGDMP\1\16\0"), "error", "decompress it"),
    "a tar of other files": (b"toc.dat\0" + b"x" * 504, "failed", "tar"),
    "a newer archive": (b"PGDMP\1\143\0\4\10\1" + bytes(100), "error", "newer"),
    "a newer server's": ("-- Dumped from database version 99.1", "error", "99"),
    "a newer pg_dump's": ("-- Dumped by pg_dump version 99.1", "error", "99"),
    "one that creates its database": (
        "CREATE DATABASE shop;\n\\connect shop",
        "error",
        "--create",
    ),
    "one that drops what is not there": ("DROP TABLE public.kept;", "error", "--clean"),
    "one whose quotes read otherwise": (
        "SET standard_conforming_strings = off;",
        "error",
        "standard_conforming_strings",
    ),
    "a sequence without its value": (
        "-- Name: s; Type: SEQUENCE SET; Schema: public; Owner: o",
        "failed",
        "values of sequences: found 0, expected 1",
    ),
    "a quote that nothing closes": ("SELECT $x$Krokodil", "failed", "no end"),
    "a statement on more than the database": (
        "COMMENT ON DATABASE live IS 'Krokodil';",
        "failed",
        "line 5",
    ),
    "a command for the shell": ("\\! touch Krokodil", "failed", "line 5"),
    "a command between two blocks": (
        "COPY public.a (b) FROM stdin;\n1\n\\.\n\\i other.sql",
        "failed",
        "line 8",
    ),
}


class RefusedTests(Case, table=REFUSED):
    """What is no backup of one database is refused, and none of its text is shown."""

    def judge(self, row: tuple) -> None:
        """Nothing was restored."""
        content, verdict, *parts = row
        with place() as here:
            content = plain(content).encode() if isinstance(content, str) else content
            here.backup.write_bytes(content)
            over = judged(here)
        self.assert_verdict(over, verdict, *parts)
        self.assertNotIn("seconds_to_restore", over.report)

    def test_what_is_no_file(self) -> None:
        """A pipe can be read but once, a folder may be a server's, or nothing is there."""
        with place() as here:
            self.assert_verdict(judged(here), "error", "No such file", str(here.backup))
            here.backup.mkdir()
            self.assert_verdict(judged(here), "failed", "toc.dat")
            here.backup.rmdir()
            os.mkfifo(here.backup)
            self.assert_verdict(judged(here), "error", "is no file")

    def test_report_in_place_of_the_backup(self) -> None:
        """The report is not written over what it speaks of."""
        with place() as here:
            here.report.write_text("kept")
            words = ("--backup", str(here.report), "--report", str(here.report))
            with here.started(*words) as process:
                said = process.communicate()[1]
            self.assertEqual(here.report.read_text(), "kept")
        self.assertEqual(process.returncode, 1, said)
        self.assertIn("--report", said)

    def test_decompressor_that_is_missing(self) -> None:
        """It is an error that says what to install."""
        with place() as here:
            here.backup.write_bytes(b"\x28\xb5\x2f\xfd\x04\x58")
            tools = system_programs(here.folder / "tools", without="zstd")
            over = judged(here, PATH=f"{here.bin}{os.pathsep}{tools}")
        self.assert_verdict(over, "error", "zstd", "install")


RECORDS = """
as sha256sum writes it
    record: {sum}  backup
    ends: passed
in upper case, and binary
    record: {SUM} *backup
    ends: passed
of another file
    record: 0000000000000000000000000000000000000000000000000000000000000000
    ends: failed
    says: backup.sha256 | expected 00000000
empty
    record:
    ends: failed
    says: backup.sha256
"""


class RecordTests(Case, table=RECORDS):
    """A FILE.sha256 beside the backup is believed, whatever program wrote it."""

    def judge(self, row: Row) -> None:
        """Validation ends as the row says."""
        with place() as here:
            copied("custom", here.backup)
            said = subprocess.check_output(["sha256sum", here.backup], text=True)
            total = said.split()[0]
            record = row["record"].replace("{sum}", total)
            record = record.replace("{SUM}", total.upper())
            here.backup.with_suffix(".sha256").write_text(f"{record}\n")
            self.assert_row(judged(here, "-k", "validation"), row)


# --- What is compared, and how old a backup may be ------------------------------------


class ComparisonTests(Case):
    """What was restored is compared with what the file says."""

    def test_rows(self) -> None:
        """A row that is missing is seen, and so is an index."""
        with place() as here:
            copied("custom", here.backup)
            here.spoil("DELETE FROM public.kept WHERE id = 5; DROP INDEX kept_id")
            over = judged(here)
        row = "table public.kept: found 499 rows, expected 500"
        self.assert_verdict(over, "failed", row, "index public.kept_id: missing")

    def test_rows_of_partitions(self) -> None:
        """A row that is missing is seen, however partitions are dumped."""
        with place() as here:
            pg_dump(everything(), here.backup, "--load-via-partition-root")
            here.spoil("DELETE FROM extra.visit WHERE who = 'a'")
            self.assert_verdict(judged(here), "failed", "table extra.visit")

    def test_constraint(self) -> None:
        """Rows that break a constraint are refused in PostgreSQL's words."""
        with place() as here:
            pg_dump(everything(), here.backup)
            changed(rb"\t2\.50\t", rb"\t-2.5\t")(here.backup)
            said = 'violates check constraint "value_price"'
            self.assert_verdict(judged(here), "failed", said)

    def test_slow_restore(self) -> None:
        """A restore that takes longer than it may is a failure."""
        with place() as here:
            copied("plain", here.backup)
            here.stand_in("psql", "sleep 1.2", LOADS)
            over = judged(here, "--max-restore", "1")
        self.assert_verdict(over, "failed", "restore failed")
        self.assertEqual(over.report["max_restore_seconds"], 1)
        self.assertGreater(over.report["seconds_to_restore"], 1)


DAY = 86400
AGES = """
plain, too old
    run: --max-age 26h
    ends: failed
plain, young enough
    run: --max-age 3d
    ends: passed
directory, too old
    run: --max-age 2000m
    ends: failed
"""


class AgeTests(Case, table=AGES):
    """A backup that was last written too long ago is bad."""

    def judge(self, row: Row) -> None:
        """The backup is two days old; of a directory, the newest file is."""
        now, form = time.time(), "directory" if "2000" in row["run"] else "plain"
        with place() as here:
            files = [*copied(form, here.backup).glob("*"), here.backup]
            for days, file in enumerate(files, 2):
                os.utime(file, (now, now - days * DAY))
            over = judged(here, *row["run"].split())
        self.assert_row(over, row)
        self.assertAlmostEqual(over.report["backup_age_seconds"], 2 * DAY, delta=120)
        written = datetime.fromisoformat(over.report["backup_written"]).timestamp()
        self.assertAlmostEqual(written, now - 2 * DAY, delta=120)
        self.assertIn("max_age_seconds", over.report)
