"""A backup that is not what was written is refused, and the reason is named."""

import gzip
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from aidscope.tests.in_process import made, said_by_restore, said_by_validation
from aidscope.tests.support import (
    COMPRESSORS,
    NUMBERS,
    Case,
    changed,
    copied,
    folder,
    originals,
    place,
    plain,
    url,
)
from scripts import test_backup_restore as drill

# --- Files that are damaged, in every format ------------------------------------------


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
    content[len(content) * 9 // 10] ^= 1
    file.write_bytes(content)


def trailing(path: Path) -> None:
    """Add something behind the end."""
    with path.open("ab") as file:
        file.write(b"rubbish")


def twice(path: Path) -> None:
    """Have the whole backup a second time behind itself."""
    path.write_bytes(path.read_bytes() * 2)


def without_file(pattern: str) -> Callable[[Path], None]:
    """What removes a file of a folder."""
    return lambda path: max(path.glob(pattern)).unlink()


def emptied(pattern: str) -> Callable[[Path], None]:
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
        lost = next(m for m in tar.getmembers() if m.name.startswith("blob_"))
    end = lost.offset_data + lost.size + -lost.size % 512
    content = path.read_bytes()
    path.write_bytes(content[: lost.offset] + content[end:])


BLOCK = rb"COPY public\.kept .*?\n\\\.\n"
DAMAGED = {
    f"{form} is cut at {part}": (form, cut_at(part))
    for form in ("plain", "custom", "directory", "tar")
    for part in (0.25, 0.5, -600)
} | {
    "custom has one bit flipped": ("custom", flipped),
    "a directory's file has one bit flipped": ("directory", flipped),
    "a directory lost a file": ("directory", without_file("*.dat.gz")),
    "a directory lost its list": ("directory", emptied("blobs*.toc")),
    "a directory's large object is empty": ("directory", emptied("blob_*.gz")),
    "tar is cut between two files": ("tar", cut_between_members),
    "tar is there twice": ("tar", twice),
    "tar lost a large object": ("tar", without_large_object),
    "plain has zero bytes in a value": ("plain", changed(b"long enough", bytes(11))),
    "plain has a quote that nothing closes": (
        "plain",
        changed(b"(?<=\n)CREATE INDEX", b"SELECT $x$\nCREATE INDEX"),
    ),
    "plain lost the rows of a table": ("plain", changed(BLOCK, b"")),
    "plain has the rows of a table twice": ("plain", changed(BLOCK, rb"\g<0>\g<0>")),
    "plain has something behind its end": ("plain", trailing),
    "plain is there twice": ("plain", twice),
    "plain lost its header": ("plain", changed(b"-- PostgreSQL database dump\n", b"")),
    "plain was sent as text": ("plain", changed(b"\n", b"\r\n")),
}
for program in COMPRESSORS:
    for words, damage in {"is cut": cut_at(0.5), "has a bit flipped": flipped}.items():
        DAMAGED[f"{program} {words}"] = (program, damage)


class DamagedFileTests(Case, table=DAMAGED):
    """A damaged file does not pass, and the drill comes to an end."""

    def judge(self, row: tuple[str, Callable[[Path], None]]) -> None:
        """Validation, or else the restore, says that the backup is bad."""
        form, damage = row
        with place() as here:
            damage(copied(form, here.backup))
            over = here.drill("--backup", str(here.backup), url=url())
        self.assert_verdict(over, "failed")

    def test_restore_alone(self) -> None:
        """A backup that lost its end behind a block is bad, also with -k restore."""
        with place() as here:
            sql = copied("plain", here.backup).read_bytes()
            here.backup.write_bytes(sql[: sql.rindex(b"\n\\.\n") + 4])
            words = ("--strict", "-k", "restore")
            over = here.drill("--backup", str(here.backup), *words, url=url())
        self.assert_verdict(over, "failed", "PostgreSQL database dump complete")

    def test_no_damage(self) -> None:
        """A file without its last end of line is whole, and so are joined gzip files."""
        with place() as here:
            sql = copied("plain", here.backup).read_bytes()
            pieces = gzip.compress(sql[:999]) + gzip.compress(sql[999:])
            for content in (sql.rstrip(b"\n"), pieces):
                here.backup.write_bytes(content)
                over = here.drill("--backup", str(here.backup), url=url())
                self.assert_verdict(over, "passed")


# --- A plain backup, beside its source ------------------------------------------------

FOOTER = b"-- PostgreSQL database dump complete"
NO_FOOTER = "no footer, expected '-- PostgreSQL database dump complete'"
NO_HEADER = "no header, expected '-- PostgreSQL database dump'"
LINE = rb"(?P<copy>COPY extra\.line [^\n]*\n)(?P<rows>.*?)(?P<end>\\\.\n)"
OTHER_VALUES = "table extra.line: 41 rows as expected, with other values"
AFTER = "something follows the footer"


def line_with(rows: bytes) -> Callable[[Path], None]:
    """What gives a COPY block other rows; the old ones are the group `rows`."""
    return changed(LINE, rb"\g<copy>" + rows + rb"\g<end>")


def without(kind: bytes, name: bytes) -> Callable[[Path], None]:
    """What leaves one of pg_dump's entries out."""
    entry = rb"--\n-- Name: %s; Type: %s; .*?(?=--\n-- (Name|Data for|Post))"
    return changed(entry % (re.escape(name), kind), b"")


def written(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """What writes the changed content to a file."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


class Damage(NamedTuple):
    """What is done to a file, and what is said of it."""

    done: Callable[[Path], None]
    by_validation: str  # beside that the SHA-256 is another
    by_restore: str = ""  # where nobody recorded the SHA-256


PLAIN = {
    "cut in the middle": Damage(cut_at(0.5), NO_FOOTER),
    "cut at a row boundary": Damage(
        changed(LINE + b".*", rb"\g<copy>2\tline 0\n"),
        "table extra.line: its COPY block has no end",
    ),
    "cut after the last block": Damage(
        changed(rb"(?P<kept>.*\n\\\.\n).*", rb"\g<kept>"), NO_FOOTER
    ),
    "the footer is missing": Damage(changed(FOOTER, b""), NO_FOOTER),
    "the last byte is missing": Damage(cut_at(-1), ""),
    "the header is gone": Damage(changed(rb"\A--.*?(?=SET )", b""), NO_HEADER),
    "empty": Damage(written(lambda _: b""), "it is empty"),
    "the last page is zeros": Damage(
        written(lambda sql: sql[:-4096] + bytes(4096)), NO_FOOTER
    ),
    "all zeros": Damage(written(lambda sql: bytes(len(sql))), NO_HEADER),
    "one bit of a row is flipped": Damage(
        changed(b"1\tline 10\n", b"1\tline 11\n"), "", OTHER_VALUES
    ),
    "a row is missing": Damage(
        changed(b"2\tline 10\n", b""), "table extra.line: found 40 rows, expected 41"
    ),
    "a row is there twice": Damage(
        line_with(rb"\g<rows>2\tline 10\n"),
        "table extra.line: found 42 rows, expected 41",
    ),
    "a row is there in place of another": Damage(
        changed(b"1\tline 10\n", b"2\tline 10\n"), "", OTHER_VALUES
    ),
    "a block is empty": Damage(
        line_with(b""), "table extra.line: found 0 rows, expected 41"
    ),
    "a block is missing": Damage(changed(LINE, b""), "table extra.line: missing"),
    "a block is another table's": Damage(
        changed(rb"COPY extra\.visit_2025 \(", b"COPY extra.visit_2024 ("),
        "table extra.visit_2025: missing",
    ),
    "an index is missing": Damage(
        without(b"INDEX", b"value_ratio"), "", "index extra.value_ratio: missing"
    ),
    "a foreign key is missing": Damage(
        without(b"FK CONSTRAINT", b"line line_value"),
        "",
        "fk constraint extra.line line_value: missing",
    ),
    "a sequence's value is missing": Damage(
        without(b"SEQUENCE SET", b"item_id_seq"),
        "sequence backup_drill.item_id_seq: missing",
    ),
    "a sequence's value is another": Damage(
        changed(rb"item_id_seq', 100, true", b"item_id_seq', 50, true"),
        "sequence backup_drill.item_id_seq: found ",
    ),
    "a trigger is missing": Damage(
        without(b"TRIGGER", b"line line_keep"),
        "",
        "trigger extra.line line_keep: missing",
    ),
    "a grant is missing": Damage(
        without(b"ACL", b"TABLE value"), "", "acl extra.TABLE value: missing"
    ),
    "a comment is missing": Damage(
        without(b"COMMENT", b"TABLE value"), "", "comment extra.TABLE value: missing"
    ),
    "a large object is empty": Damage(
        changed(rb"SELECT pg_catalog\.lo_open\('4712.*?\n\n", b""),
        "data of large objects: found 1, expected 2",
    ),
    "another database's": Damage(
        written(lambda _: (originals() / "plain").read_bytes()),
        "table backup_drill.item: missing",
    ),
    "there twice": Damage(twice, AFTER),
    "somebody's SQL at the end": Damage(
        written(lambda sql: sql + b"DROP TABLE extra.line;\n"), AFTER
    ),
    "compressed under the same name": Damage(written(gzip.compress), NO_HEADER),
    "invalid UTF-8": Damage(changed(b"2\tline 10\n", b"2\tline \xff\n"), "", "22021"),
    "sent as text": Damage(changed(b"\n", b"\r\n"), "lines end in CR LF"),
    "with a command for psql": Damage(
        changed(FOOTER, b"\n\\\\connect postgres\n" + FOOTER), "a command for psql"
    ),
    "with an end of the transaction": Damage(
        changed(FOOTER, b"\nROLLBACK;\n" + FOOTER),
        "no part of a backup",
    ),
}


class PlainTests(Case, table=PLAIN):
    """What differs from what was recorded is refused; without a record, nearly all is."""

    def judge(self, row: Damage) -> None:
        """Validation says the sentence, or else the restore does."""
        healthy, path = made().backup, folder() / f"damaged_{next(NUMBERS)}"
        path.write_bytes(healthy.path.read_bytes())
        row.done(path)
        said = said_by_validation(replace(healthy, path=path))
        self.assertRegex(said, r"\n  SHA-256: found [0-9a-f]{64}, expected ")
        self.assertIn(row.by_validation, said)
        sha256, _ = drill.digests_of(path)
        unrecorded = replace(healthy, path=path, sha256=sha256)
        said = said_by_validation(unrecorded)
        self.assertIn(row.by_validation, said)
        if row.by_restore:
            self.assertEqual(said, "")
            self.assertIn(row.by_restore, said_by_restore(unrecorded))


class SequenceTests(Case):
    """A sequence that changes beside the dump is no fault of the backup's."""

    def test_dropped_before_the_snapshot(self) -> None:
        """It is named under what is not compared."""
        gone = {"sequence public.gone": ([7, True, 4711], None)}
        backup, scan = replace(made().backup, moved=gone), made().scan
        self.assertEqual(drill.problems_of_source(scan, backup), [])
        self.assertLess({*gone}, {*drill.uncompared(backup, scan, backup.source)})


# --- What the scan of a backup finds --------------------------------------------------

BEYOND = r"""
COMMENT ON DATABASE live IS 'x';
ALTER DATABASE live SET timezone TO 'UTC';
DROP DATABASE IF EXISTS live;
GRANT ALL ON DATABASE live TO PUBLIC;
REVOKE CONNECT ON DATABASE live FROM PUBLIC;
SECURITY LABEL FOR x ON DATABASE live IS 'y';
CREATE ROLE mallory SUPERUSER;
ALTER USER postgres PASSWORD 'x';
DROP GROUP mallory;
COMMENT ON ROLE postgres IS 'x';
GRANT postgres TO PUBLIC;
REVOKE postgres FROM mallory;
CREATE TABLESPACE wide LOCATION '/tmp';
ALTER TABLESPACE pg_default RESET (seq_page_cost);
GRANT CREATE ON TABLESPACE pg_default TO PUBLIC;
ALTER SYSTEM SET fsync = off;
ROLLBACK;
/* x */ rollback ;
select 1; End;
alter /* x */ system set fsync = off;
/* a /* b */ */ ALTER SYSTEM SET fsync = off;
/* /* */ SELECT 1; */ ALTER SYSTEM SET fsync = off;
\! touch escaped
\connect postgres
\i other.sql
SELECT 1 \gexec
SELECT 1 \; COMMIT;
\N	is a row that lost its COPY
\restrict x \unrestrict x \! touch escaped
\unrestrict `touch escaped`
DROP OWNED BY postgres;
DO 'BEGIN END';
UPDATE pg_settings SET setting = 'off' WHERE name = 'standard_conforming_strings';
SELECT public.f();
SELECT pg_catalog.lo_export(1, 'escaped');
SELECT pg_catalog.set_config('standard_' || 'conforming_strings', 'off', false);
SET U&"standard\005fconforming_strings" = off;
"""
# What psql reads otherwise than the standard, or its versions than each other.
MISREAD = [
    b"-- x\r\\! touch escaped\n;",
    b"SELECT 1 -- x\r\\! touch escaped\n;",
    b"SELECT (1;\nCOPY public.a (b) FROM stdin;\n\\! touch escaped\n\\.\n",
    b"COPY public.a (b) FROM stdin;\n\\.\r\n\\! touch escaped\n\\.\n",
    b"CREATE FUNCTION begin() RETURNS int LANGUAGE sql AS 'SELECT 1';\n\\! touch escaped",
    b"CREATE TABLE a (begin atomic);\nALTER SYSTEM SET fsync = off;\n",
    b"CREATE VIEW a AS SELECT \xc3\xa9E'\\' \\! touch escaped\n ';",
    b"CREATE VIEW a AS SELECT 1$$'$$ \\! touch escaped\n ';",
    b"CREATE VIEW a AS SELECT $1$$'$$ \\! touch escaped\n ';",
    b"CREATE VIEW a AS SELECT $$a$$$x$'$x$ \\! touch escaped\n ';",
    b"CREATE VIEW a AS SELECT E'a'\n'\\'' \\! touch escaped\n ';",
    b"CREATE VIEW a AS SELECT 1e'\\' \\! touch escaped\n ';",
]
WITHIN = r"""
ALTER DEFAULT PRIVILEGES FOR ROLE x IN SCHEMA public GRANT SELECT ON TABLES TO y;
CREATE USER MAPPING FOR x SERVER y OPTIONS (password 'z');
COMMENT ON COLUMN public.role.database IS 'ALTER SYSTEM; \! x';
GRANT SELECT ON TABLE public.database TO PUBLIC;
CREATE TABLE public.t ("; ROLLBACK;" text DEFAULT E'\'; \! x');
CREATE FUNCTION public.f() RETURNS void LANGUAGE sql AS $_$ROLLBACK; \! x$_$;
CREATE FUNCTION public.g() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE RULE r AS ON INSERT TO public.t DO (SELECT 1; DELETE FROM public.u; );
CREATE VIEW public.v AS SELECT B'01', X'ff', U&'x', E'it''s', date('x'), $1;
"""


def scanned(sql: bytes, length: int = 2**20) -> drill.Scan:
    """What the scan finds in the SQL, which comes in pieces of this length."""
    scan = drill.Scan()
    for at in range(0, len(sql), length):
        scan.feed(sql[at : at + length])
    return scan.finish()


class ScanTests(Case):
    """A backup is read as psql reads it."""

    def test_what_reaches_beyond(self) -> None:
        """Whatever would reach beyond the database is refused, with its line."""
        lines = BEYOND.strip().splitlines()
        found = {line: scanned(plain(line).encode()).problems for line in lines}
        unseen = [line for line in lines if "line 5" not in "".join(found[line])]
        self.assertEqual(unseen, [])

    def test_what_psql_misreads(self) -> None:
        """What hides a command from one of the two readers is refused."""
        texts = {sql: plain(sql.decode("latin-1")).encode("latin-1") for sql in MISREAD}
        unseen = [sql for sql, text in texts.items() if not scanned(text).problems]
        self.assertEqual(unseen, [])

    def test_long_quotes_and_many_comments(self) -> None:
        """What is kept of a backup does not grow with it, however short the pieces."""
        scan, quote = drill.Scan(), b"SELECT pg_catalog.lowrite(0, '" + 2**16 * b"x"
        for piece in [quote[at : at + 4096] for at in range(0, len(quote), 4096)] * 50:
            scan.feed(piece)
            scan.feed(b"');\n" if piece.endswith(b"x") and len(piece) < 4096 else b"")
            self.assertLess(len(scan.rest), 2**19)
        scan = drill.Scan()
        for _ in range(1000):
            scan.feed(100 * b"-- a comment\n")
        self.assertLess(len(scan.words), 1000)

    def test_what_stays_within(self) -> None:
        """What only looks so is not refused."""
        lines = WITHIN.strip().splitlines()
        found = {line: scanned(plain(line).encode()).problems for line in lines}
        self.assertEqual({line: said for line, said in found.items() if said}, {})

    def test_pieces_of_any_length(self) -> None:
        """However long the pieces are, a backup reads the same."""
        sql, scan = made().backup.path.read_bytes(), made().scan
        self.assertEqual(scan.rows["table backup_drill.item"], 100)
        self.assertEqual(scan.rows['table extra."COPY extra.nil (id) FROM stdin;"'], 4)
        for length in (1021, 4099, 65537):
            other = scanned(sql, length)
            self.assertEqual((other.problems, other.rows), ([], scan.rows))
            self.assertEqual(other.entries, scan.entries)
            self.assertEqual(other.sequences, scan.sequences)
