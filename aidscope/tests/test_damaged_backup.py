"""A backup that is not what was written is refused, and the reason is named."""

import gzip
import io
import os
import re
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

from aidscope.tests.in_process import (
    drilled,
    made,
    said_by_restore,
    said_by_validation,
    server,
)
from aidscope.tests.support import (
    COMPRESSORS,
    NUMBERS,
    Case,
    Row,
    below_comment,
    changed,
    copied,
    database,
    execute,
    folder,
    originals,
    pg_dump,
    place,
    plain,
)
from scripts import test_backup_restore as drill

Change = Callable[[Path], None]

# --- What is done to files ------------------------------------------------------------


def largest(path: Path) -> Path:
    """The file that holds most of the backup: itself, unless it is a folder."""
    files = path.glob("*.dat.gz") if path.is_dir() else [path]
    return max(files, key=lambda file: file.stat().st_size)


def cut_at(part: float) -> Change:
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
    content[len(content) * 9 // 10] ^= 1
    file.write_bytes(content)


def written(change: Callable[[bytes], bytes]) -> Change:
    """What writes the changed content to a file."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def twice(content: bytes) -> bytes:
    """The whole backup a second time behind itself."""
    return content * 2


def without_file(pattern: str) -> Change:
    """What removes a file of a folder."""
    return lambda path: max(path.glob(pattern)).unlink()


def emptied(pattern: str) -> Change:
    """What empties a file of a folder: no bytes are no fault to zlib."""
    return lambda path: os.truncate(max(path.glob(pattern)), 0)


def cut_between_members(path: Path) -> None:
    """Cut a tar where one of its files ends and the next begins."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    os.truncate(path, members[len(members) // 2].offset)


def without_large_object(path: Path) -> None:
    """Lose a large object of a tar."""
    with tarfile.open(path) as tar:
        lost = next(each for each in tar.getmembers() if each.name.startswith("blob_"))
    end = lost.offset_data + lost.size + -lost.size % 512
    content = path.read_bytes()
    path.write_bytes(content[: lost.offset] + content[end:])


# --- Files that are damaged, in every format ------------------------------------------


@dataclass(frozen=True)
class Damaged(Row):
    """A format of a backup, and what is done to it."""

    form: str
    damage: Change
    says: str = ""


BLOCK = rb"COPY public\.kept .*?\n\\\.\n"
HEADER = b"-- PostgreSQL database dump\n"
PLAIN_FILES = (
    Damaged("cut early", "plain", cut_at(0.25)),
    Damaged("cut in the middle", "plain", cut_at(0.5)),
    Damaged("cut at its end", "plain", cut_at(-600)),
    Damaged("zero bytes in a value", "plain", changed(b"long enough", bytes(11))),
    Damaged(
        "a quote that nothing closes",
        "plain",
        changed(b"(?<=\n)CREATE INDEX", b"SELECT $x$\nCREATE INDEX"),
    ),
    Damaged("no rows of a table", "plain", changed(BLOCK, b"")),
    Damaged("the rows of a table twice", "plain", changed(BLOCK, rb"\g<0>\g<0>")),
    Damaged("there twice", "plain", written(twice)),
    Damaged("no header", "plain", changed(HEADER, b"")),
    Damaged("sent as text", "plain", changed(b"\n", b"\r\n"), "CR LF"),
    Damaged("UTF-16", "plain", written(lambda sql: sql.decode().encode("utf-16"))),
)
ARCHIVES = (
    Damaged("custom cut early", "custom", cut_at(0.25)),
    Damaged("custom cut in the middle", "custom", cut_at(0.5)),
    Damaged("custom cut at its end", "custom", cut_at(-600)),
    Damaged("custom with a bit flipped", "custom", flipped),
    Damaged("tar cut early", "tar", cut_at(0.25)),
    Damaged("tar cut in the middle", "tar", cut_at(0.5)),
    Damaged("tar cut at its end", "tar", cut_at(-600)),
    Damaged("tar cut between two files", "tar", cut_between_members),
    Damaged("tar there twice", "tar", written(twice)),
    Damaged("tar without a large object", "tar", without_large_object),
)
DIRECTORIES = (
    Damaged("a file cut early", "directory", cut_at(0.25)),
    Damaged("a file cut in the middle", "directory", cut_at(0.5)),
    Damaged("a file cut at its end", "directory", cut_at(-600)),
    Damaged("a file with a bit flipped", "directory", flipped),
    Damaged("no file", "directory", without_file("*.dat.gz")),
    Damaged("an empty list", "directory", emptied("blobs*.toc")),
    Damaged("an empty large object", "directory", emptied("blob_*.gz")),
    Damaged("a large object is missing", "directory", without_file("blob_*.gz")),
)
COMPRESSED = [
    Damaged(f"{program} {words}", program, damage)
    for program in COMPRESSORS
    for words, damage in (("cut", cut_at(0.5)), ("with a bit flipped", flipped))
]


class DamagedFileCase(Case):
    """A damaged file does not pass, and the drill comes to an end."""

    def judge(self, row: Damaged) -> None:
        """Validation, or else the restore, says that the backup is bad."""
        with place() as here:
            row.damage(copied(row.form, here.backup))
            words = ("--no-throwaway", "--timeout", "5")
            over = drilled(here, "--backup", str(here.backup), *words)
        self.assert_verdict(over, "failed", row.says)


class PlainFileTests(DamagedFileCase, table=PLAIN_FILES):
    """A plain backup that is damaged."""

    def test_restore_alone(self) -> None:
        """A backup that lost its end behind a block is bad, also with -k restore."""
        with place() as here:
            sql = copied("plain", here.backup).read_bytes()
            here.backup.write_bytes(sql[: sql.rindex(b"\n\\.\n") + 4])
            words = ("--no-throwaway", "--strict", "-k", "restore")
            over = drilled(here, "--backup", str(here.backup), *words)
        self.assert_verdict(over, "failed", "PostgreSQL database dump complete")

    def test_before_the_header(self) -> None:
        """What fails before the header is named by its line."""
        with place() as here:
            path = copied("plain", here.backup)
            path.write_bytes(b"rubbish;\n" + path.read_bytes())
            over = drilled(here, "--backup", str(path), "--no-throwaway")
        self.assert_verdict(over, "failed", "line 1, the header: 42601")

    def test_behind_the_end(self) -> None:
        """What fails behind the footer is of somebody else, and blames no backup."""
        with place() as here:
            path = copied("plain", here.backup)
            path.write_bytes(path.read_bytes() + b"rubbish")
            over = drilled(here, "--backup", str(path), "--no-throwaway")
        self.assert_verdict(over, "error", "after the end", "42601")

    def test_no_damage(self) -> None:
        """A file without its last end of line is whole, and so is joined gzip."""
        with place() as here:
            sql = copied("plain", here.backup).read_bytes()
            pieces = gzip.compress(sql[:999]) + gzip.compress(sql[999:])
            for content in (sql.rstrip(b"\n"), pieces):
                here.backup.write_bytes(content)
                words = ("--no-throwaway", "-k", "validation")
                over = drilled(here, "--backup", str(here.backup), *words)
                self.assert_verdict(over, "passed")


class ArchiveTests(DamagedFileCase, table=ARCHIVES):
    """A custom archive or a tar that is damaged."""

    def test_another_one_appended(self) -> None:
        """Of two archives in a file, the second one would not be read."""
        with place() as here:
            path = copied("custom", here.backup)
            path.write_bytes(2 * path.read_bytes())
            over = drilled(here, "--backup", str(path), "--no-throwaway")
        self.assert_verdict(over, "error", "holds a second archive", act="creation")

    def test_another_one_in_a_large_object(self) -> None:
        """That one is part of what the first holds."""
        with place() as here, database("CREATE TABLE t AS SELECT 1 AS id") as name:
            pg_dump(name, here.folder / "inner", "-Fc")
            inner = (here.folder / "inner").read_bytes().hex()
            execute(name, f"SELECT lo_from_bytea(0, '\\x{inner}')")
            pg_dump(name, here.backup, "-Fc", "-Z0")
            over = drilled(here, "--backup", str(here.backup), "--no-throwaway")
        self.assert_verdict(over, "passed")

    def test_old_tar(self) -> None:
        """A tar that ends with one block of zeros, as old versions write, is whole."""
        with place() as here:
            path = copied("tar", here.backup)
            os.truncate(path, path.stat().st_size - 512)
            words = ("--no-throwaway", "-k", "validation")
            over = drilled(here, "--backup", str(path), *words)
        self.assert_verdict(over, "passed")


class DirectoryTests(DamagedFileCase, table=DIRECTORIES):
    """A directory of which a file is damaged."""


class CompressedTests(DamagedFileCase, table=COMPRESSED):
    """A compressed file that is damaged."""


# --- Blocks that swallow others -------------------------------------------------------

TEXTS = """
CREATE TABLE public.first AS SELECT 'one' AS word UNION ALL SELECT 'two';
CREATE TABLE public.second AS SELECT 'three' AS word;
CREATE TABLE public.third AS SELECT 'four' AS word;
"""


def cut_in_rows(content: bytes) -> bytes:
    """The rows without the last, and without the end of their block."""
    return content[: content.index(b"\n") + 1]


SWALLOWED = (
    Damaged("plain", "plain", changed(rb"(FROM stdin;\none\ntwo\n)\\\.\n", rb"\1")),
    Damaged("a last block", "plain", changed(rb"(FROM stdin;\nfour\n)\\\.\n", rb"\1")),
    Damaged(
        "a last block whose end is a comment",
        "plain",
        changed(rb"(FROM stdin;\nfour\n)\\\.\n", rb"\1-- "),
    ),
    Damaged("a file without its end", "one", changed(rb"\\\.\n", b"")),
    Damaged("a file cut in its rows", "one", written(cut_in_rows)),
    Damaged("an empty file", "one", written(lambda _: b"")),
    Damaged("a last file without its end", "four", changed(rb"\\\.\n", b"")),
    Damaged("an empty last file", "four", written(lambda _: b"")),
)


@cache
def texts() -> Path:
    """A folder with backups of tables that have one column of text."""
    home = folder() / "texts"
    home.mkdir()
    with database(TEXTS) as source:
        pg_dump(source, home / "plain")
        pg_dump(source, home / "directory", "-Fd", "-Z0")
    return home


class SwallowedTests(Case, table=SWALLOWED):
    """A block without its end takes what follows for rows of its own."""

    def judge(self, row: Damaged) -> None:
        """Validation sees it: a file of a directory is named by its first row."""
        original = texts() / "plain"
        if row.form != "plain":
            original = texts() / "directory"
        backup = drill.Backup(original, drill.FORMATS[original.name], "", 0)
        self.assertEqual(said_by_validation(backup), "")
        path = folder() / f"damaged_{next(NUMBERS)}"
        if row.form == "plain":
            path.write_bytes(original.read_bytes())
            row.damage(path)
        else:
            path.mkdir()
            for file in original.iterdir():
                (path / file.name).write_bytes(file.read_bytes())
                if file.read_bytes().startswith(f"{row.form}\n".encode()):
                    row.damage(path / file.name)
        said = said_by_validation(replace(backup, path=path))
        self.assertIn("COPY block", said)


# --- A plain backup, beside its source ------------------------------------------------

FOOTER = b"-- PostgreSQL database dump complete"
NO_FOOTER = "no footer, expected '-- PostgreSQL database dump complete'"
NO_HEADER = "no header, expected '-- PostgreSQL database dump'"
LINE = rb"(?P<copy>COPY extra\.line [^\n]*\n)(?P<rows>.*?)(?P<end>\\\.\n)"
OTHER_VALUES = r"found     table extra\.line: rows with hash \w{16}"


def line_with(rows: bytes) -> Change:
    """What gives a COPY block other rows; the old ones are the group `rows`."""
    return changed(LINE, rb"\g<copy>" + rows + rb"\g<end>")


def without(kind: bytes, name: bytes) -> Change:
    """What leaves one of pg_dump's entries out."""
    entry = rb"--\n-- Name: %s; Type: %s; .*?(?=--\n-- (Name|Data for|Post))"
    return changed(entry % (re.escape(name), kind), b"")


def without_all(*entries: tuple[bytes, bytes]) -> Change:
    """What leaves several of pg_dump's entries out."""

    def change(path: Path) -> None:
        for kind, name in entries:
            without(kind, name)(path)

    return change


@dataclass(frozen=True)
class Beside(Row):
    """What is done to a file, and what is said of it: patterns."""

    damage: Change
    by_validation: str  # beside that the SHA-256 is another
    by_restore: str = ""  # where nobody recorded the SHA-256


CUT = (
    Beside("in the middle", cut_at(0.5), NO_FOOTER),
    Beside(
        "at a row boundary",
        changed(LINE + b".*", rb"\g<copy>2\tline 0\n"),
        "table extra.line: its COPY block has no end",
    ),
    Beside(
        "after the last block",
        changed(rb"(?P<kept>.*\n\\\.\n).*", rb"\g<kept>"),
        NO_FOOTER,
    ),
    Beside("before the footer", changed(FOOTER, b""), NO_FOOTER),
    Beside("before the last byte", cut_at(-1), ""),
    Beside("behind the header", changed(rb"\A--.*?(?=SET )", b""), NO_HEADER),
    Beside("at its beginning", written(lambda _: b""), "it is empty"),
    Beside(
        "and filled up with zeros",
        written(lambda sql: sql[:-4096] + bytes(4096)),
        NO_FOOTER,
    ),
    Beside("or nothing but zeros", written(lambda sql: bytes(len(sql))), NO_HEADER),
)
ROWS = (
    Beside(
        "one bit is flipped",
        changed(b"1\tline 10\n", b"1\tline 11\n"),
        "",
        OTHER_VALUES,
    ),
    Beside(
        "one is missing",
        changed(b"2\tline 10\n", b""),
        "found     table extra.line: 40 rows",
    ),
    Beside(
        "one is there twice",
        line_with(rb"\g<rows>2\tline 10\n"),
        "found     table extra.line: 42 rows",
    ),
    Beside(
        "one is there in place of another",
        changed(b"1\tline 10\n", b"2\tline 10\n"),
        "",
        OTHER_VALUES,
    ),
    Beside(
        "two have each other's values",
        changed(
            rb"(1799\thans\.)1799(.*?9967\thans\.)9967",
            rb"\g<1>9967\g<2>1799",
        ),
        "",
        r"found     table extra\.person: rows with hash \w{16}",
    ),
    Beside(
        "a block is empty",
        line_with(b""),
        "found     table extra.line: 0 rows",
    ),
    Beside(
        "a block is missing", changed(LINE, b""), "expected  table extra.line: 41 rows"
    ),
    Beside(
        "a block ends early",
        changed(rb"1\tline 5\n", rb"1\tline 5\n\\.\n"),
        r"found     table extra\.line: \d+ rows",
    ),
    Beside(
        "a block ends twice",
        line_with(rb"\g<rows>\\.\n"),
        "",
        "it holds a command for psql, or its end is cut",
    ),
    Beside(
        "a block is another table's",
        changed(rb"COPY extra\.visit_2025 \(", b"COPY extra.visit_2024 ("),
        "",
        "table data extra.visit_2025: 23514",
    ),
    Beside(
        "a value is no UTF-8", changed(b"2\tline 10\n", b"2\tline \xff\n"), "", "22021"
    ),
)
ENTRIES = (
    Beside(
        "of all sorts",
        without_all(
            (b"INDEX", b"value_ratio"),
            (b"FK CONSTRAINT", b"line line_value"),
            (b"TRIGGER", b"line line_keep"),
            (b"ACL", b"TABLE value"),
            (b"COMMENT", b"TABLE value"),
        ),
        "",
        "expected  acl extra.TABLE value\n"
        "expected  comment extra.TABLE value\n"
        "expected  fk constraint extra.line line_value\n"
        "expected  index extra.value_ratio\n"
        "(expected  .*\n)?"
        "expected  trigger extra.line line_keep",
    ),
    Beside(
        "the value of a sequence",
        without(b"SEQUENCE SET", b"item_id_seq"),
        "expected  sequence backup_drill.item_id_seq: 100",
    ),
    Beside(
        "the bytes of a large object",
        changed(rb"SELECT pg_catalog\.lo_open\('4712.*?\n\n", b""),
        "data of large objects are missing",
    ),
)
REPLACED = (
    Beside(
        "the value of a sequence by another",
        changed(rb"item_id_seq', 100, true", b"item_id_seq', 50, true"),
        "found     sequence backup_drill.item_id_seq: 50",
    ),
    Beside(
        "the file by another database's",
        written(lambda _: (originals() / "plain").read_bytes()),
        "expected  sequence backup_drill.item_id_seq: 100",
    ),
    Beside(
        "the file by itself twice",
        written(twice),
        "table backup_drill.item: its data are there twice",
    ),
    Beside("the file by its gzip", written(gzip.compress), NO_HEADER),
    Beside("ends of lines by CR LF", changed(b"\n", b"\r\n"), "lines end in CR LF"),
)
ADDED = (
    Beside(
        "SQL behind the end",
        written(lambda sql: sql + b"TRUNCATE extra.line;\n"),
        "",
        r"found     table extra\.line: 0 rows",
    ),
    Beside(
        "a command for psql",
        changed(b"--\n" + FOOTER, b"\\\\connect postgres\n--\n" + FOOTER),
        "",
        "it holds a command for psql, or its end is cut",
    ),
    Beside(
        "an end of the transaction",
        changed(LINE, rb"ROLLBACK;\n\g<0>"),
        "",
        "table data extra.line: 3F000",
    ),
)


class BesideSourceCase(Case):
    """What differs from a record is refused; without a record, nearly all is."""

    with_definitions = False

    def judge(self, row: Beside) -> None:
        """Validation says the sentence, or else the restore does."""
        healthy = made().backup
        path = folder() / f"damaged_{next(NUMBERS)}"
        path.write_bytes(healthy.path.read_bytes())
        row.damage(path)
        said = said_by_validation(replace(healthy, path=path))
        self.assertRegex(said, r"\n  SHA-256: found [0-9a-f]{64}, expected ")
        self.assertRegex(said, f".*{row.by_validation}")
        unrecorded = replace(healthy, path=path, sha256="")
        if row.by_restore:
            reading, problems = drill.read_whole(unrecorded, server())
            self.assertEqual(problems, [])
            said = said_by_restore(unrecorded, reading, self.with_definitions)
            self.assertRegex(said, row.by_restore)
        else:
            said = said_by_validation(unrecorded)
            self.assertRegex(f"{said}\n", f".*{row.by_validation}")


class CutTests(BesideSourceCase, table=CUT):
    """A plain backup is cut."""


class RowTests(BesideSourceCase, table=ROWS):
    """Rows of a plain backup are damaged."""


class EntryTests(BesideSourceCase, table=ENTRIES):
    """Entries of a plain backup are missing."""

    with_definitions = True


class ReplacedTests(BesideSourceCase, table=REPLACED):
    """A part of a plain backup, or all of it, is replaced."""


class AddedTests(BesideSourceCase, table=ADDED):
    """Something is added to a plain backup."""


class SequenceTests(Case):
    """A sequence that changes beside the dump is no fault of the backup's."""

    def test_dropped_before_the_snapshot(self) -> None:
        """One that is gone from both is no problem."""
        contents = replace(made().backup.contents, moved={"sequence public.gone"})
        backup = replace(made().backup, contents=contents)
        self.assertEqual(drill.problems_of_source(made().reading, backup), [])


# --- How a backup is read -------------------------------------------------------------


@dataclass(frozen=True)
class Statement(Row):
    """SQL, which names the test, and the kind of the entry that it stands in."""

    kind: str = "TABLE"


BEYOND = (
    Statement("ALTER DATABASE live SET timezone TO 'UTC';"),
    Statement("DROP DATABASE IF EXISTS live;"),
    Statement("CREATE ROLE mallory SUPERUSER;"),
    Statement("ALTER USER postgres PASSWORD 'x';"),
    Statement("DROP GROUP mallory;"),
    Statement("CREATE TABLESPACE wide LOCATION '/tmp';"),
    Statement("ALTER TABLESPACE pg_default RESET (seq_page_cost);"),
    Statement("ALTER SYSTEM SET fsync = off;"),
)
WITHIN = (
    Statement("ALTER DEFAULT PRIVILEGES FOR ROLE x GRANT SELECT ON TABLES TO y;"),
    Statement("CREATE USER MAPPING FOR x SERVER y;", "USER MAPPING"),
    Statement("COMMENT ON COLUMN public.role.database IS 'a\nALTER SYSTEM\n';"),
    Statement("SECURITY LABEL FOR x ON TABLE public.t IS 'a\nDROP ROLE x;\n';"),
    Statement("GRANT SELECT ON TABLE public.database TO PUBLIC;"),
    Statement("CREATE VIEW public.v AS\n SELECT 'a\n--\r\nDROP ROLE x;\n'::text;"),
    Statement('CREATE TABLE t ("x\'\n--\r\nDROP ROLE x;\n" text);', "TABLE"),
    Statement("COPY public.t (x) FROM stdin;\nALTER SYSTEM SET\n\\.\n", "TABLE DATA"),
    Statement("INSERT INTO public.t VALUES ('a\nCREATE ROLE x;\n');", "TABLE DATA"),
    Statement(
        "CREATE FUNCTION public.f() RETURNS void\n    LANGUAGE sql\n"
        "    AS $_$\nALTER SYSTEM SET fsync = off;\n$_$;",
        "FUNCTION",
    ),
)


def read(sql: str) -> drill.Reading:
    """What the drill reads in a plain backup of this SQL."""
    return drill.Reading(io.BytesIO(plain(sql).encode()))


class BeyondTests(Case, table=BEYOND):
    """What would reach beyond the database is noticed."""

    def judge(self, row: Statement) -> None:
        """It is told as something of the server's."""
        reading = read(below_comment(row.words, row.kind))
        self.assertEqual(reading.problems, [])
        self.assertTrue(reading.noted["server"])


class WithinTests(Case, table=WITHIN):
    """What only looks so is not noticed."""

    def judge(self, row: Statement) -> None:
        """Nothing is told, and nothing is a problem."""
        reading = read(below_comment(row.words, row.kind))
        self.assertEqual(reading.problems, [])
        self.assertFalse(reading.noted["server"])
        self.assertEqual(reading.left_out, {})


@dataclass(frozen=True)
class Naming(Row):
    """SQL, and the roles that it names."""

    roles: tuple[str, ...]


NAMING = (
    Naming("GRANT SELECT ON TABLE public.t TO anna WITH GRANT OPTION;", ("anna",)),
    Naming('REVOKE ALL ON TABLE public."a TO b" FROM "Ben";', ("Ben",)),
    Naming(
        "ALTER DEFAULT PRIVILEGES FOR ROLE anna GRANT SELECT ON TABLES TO ben;",
        ("anna", "ben"),
    ),
    Naming("CREATE USER MAPPING FOR anna SERVER far;", ("anna",)),
    Naming('CREATE POLICY p ON t TO anna, "B, c" USING (true);', ("B, c", "anna")),
    Naming("CREATE POLICY p ON t USING ((k = 'BELONGS TO US'::text));", ()),
    Naming("SET SESSION AUTHORIZATION 'Anna';", ("Anna",)),
    Naming("ALTER TABLE public.t OWNER TO anna;", ("anna",)),
)


class NamingTests(Case, table=NAMING):
    """The roles that a backup needs are those that it names."""

    def judge(self, row: Naming) -> None:
        """Each is noted without its quotes."""
        reading = read(below_comment(row.words))
        self.assertEqual(tuple(sorted(reading.roles)), row.roles)

    def test_rows_by_COPY_and_by_INSERT(self) -> None:
        """Of a table whose rows would be INSERTs, none need be there."""
        data = (
            "-- Data for Name: {}; Type: TABLE DATA; Schema: public; Owner: -\n--\n\n"
        )
        parts = (
            data.format("t") + "COPY public.t (x) FROM stdin;\n1\n\\.\n",
            data.format("u") + "INSERT INTO public.u VALUES (1);\n",
            data.format("v"),
        )
        reading = read(plain("--\n" + "\n\n--\n".join(parts)))
        self.assertEqual(reading.problems, [])
        self.assertEqual(reading.rows, {"table public.t": 1, "table public.u": 1})

    def test_INSERT_in_a_literal(self) -> None:
        """What looks like an INSERT in another statement is no row."""
        literal = "CREATE TABLE public.t (\n    x text DEFAULT 'a\nINSERT INTO t;\n');"
        self.assertFalse(read(below_comment(literal)).rows)


class LongRows(io.RawIOBase):
    """A backup with a row that has this many megabytes, and another of one byte."""

    def __init__(self, megabytes: int) -> None:
        head, foot = plain("").encode().split(b"\n\n\n")
        data = (
            b"-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: -\n--\n\n"
        )
        block = b"COPY public.t (word) FROM stdin;\n"
        self.pieces = [foot, b"\nx\n\\.\n\n--\n", *[b"x" * 2**20] * megabytes]
        self.pieces.append(head + b"\n\n--\n" + data + block)
        self.rest = b""

    def readable(self) -> bool:
        """It is only read."""
        return True

    def readinto(self, target: memoryview) -> int:
        """Write the next bytes to the target, and return how many they are."""
        if not self.rest and self.pieces:
            self.rest = self.pieces.pop()
        part = self.rest[: len(target)]
        target[: len(part)] = part
        self.rest = self.rest[len(part) :]
        return len(part)


class ReadingTests(Case):
    """A backup is read once, in constant memory."""

    def test_comments_with_many_parts(self) -> None:
        """A line that could be cut in very many ways is over at once."""
        comment = "-- Name: " + "; Type: x; Schema: " * 30_000
        reading = read(f"--\n{comment}\n")
        self.assertEqual(len(reading.entries), 4)

    def test_statement_behind_a_long_one(self) -> None:
        """What stands behind a line of several pieces is read as it is."""
        entry = "-- Name: t; Type: TABLE DATA; Schema: public; Owner: o"
        long = "z" * (2 * drill.LONGEST)
        text = "a\n--\n-- PostgreSQL database dump complete\n--\r\n"
        rows = "".join(f"INSERT INTO t VALUES ('{x}');\n" for x in (long, text, "b"))
        reading = read(f"--\n-- PostgreSQL database dump\n--\n--\n{entry}\n--\n{rows}")
        self.assertFalse(reading.is_garbled)
        self.assertEqual([problem[:9] for problem in reading.problems], ["no footer"])

    def test_role_behind_a_name_of_two_lines(self) -> None:
        """Whom a right is granted on a table with a line feed in its name."""
        entry = '-- Name: TABLE "a b"; Type: ACL; Schema: public; Owner: o'
        grant = 'GRANT SELECT ON TABLE public."a\nb TO x" TO "Ben", anna;'
        reading = read(f"--\n{entry}\n--\n\n{grant}\n")
        self.assertEqual(reading.roles, {"o", "Ben", "anna"})

    def test_text_that_is_open(self) -> None:
        """An INSERT whose text ends behind its line, whatever its columns are called."""
        entry = "-- Name: t; Type: TABLE DATA; Schema: public; Owner: o"
        for end in (",", ";"):
            row = f"INSERT INTO t (\"it's\") VALUES ('a{end}\n--\n{entry}\n--\n');\n"
            reading = read(f"--\n{entry}\n--\n{row}")
            kinds = [each.kind for each in reading.entries]
            self.assertEqual(kinds.count("TABLE DATA"), 1)

    def test_last_line_of_a_text(self) -> None:
        """One that looks like what stands behind a definition belongs to it."""
        for line in ("ALTER TABLE t OWNER TO {}", "SET default_x = {}"):
            comment = f"COMMENT ON TABLE public.t IS 'first\n{line}';\n\n"
            script = below_comment(comment, "COMMENT", "TABLE t", "o")
            found = [drill.definitions_in(script.format(end)) for end in ("me", "you")]
            self.assertNotEqual(*found)

    def test_long_rows(self) -> None:
        """A row that is longer than the memory for it is one row."""
        file = io.BufferedReader(LongRows(64))
        tracemalloc.start()
        try:
            reading = drill.Reading(file)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertEqual(reading.problems, [])
        self.assertEqual(reading.rows, {"table public.t": 2})
        self.assertLess(peak, 2**24)

    def test_pieces_of_any_length(self) -> None:
        """However short the pieces are, a backup reads the same."""
        sql = made().backup.path.read_bytes()
        reading = made().reading
        self.assertEqual(reading.rows["table backup_drill.item"], 100)
        name = "table extra.COPY extra.nil (id) FROM stdin;"
        self.assertEqual(reading.rows[name], 4)
        for length in (1021, 4099, 65537):
            with patch.object(drill, "LONGEST", length):
                other = drill.Reading(io.BytesIO(sql))
            self.assertEqual(other.problems, [])
            self.assertEqual(other.rows, reading.rows)
            self.assertEqual(other.entries, reading.entries)
            self.assertEqual(other.sequences, reading.sequences)
