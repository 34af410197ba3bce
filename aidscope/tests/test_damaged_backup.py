"""A backup that is not what was written is refused, and the reason is named.

Each row of the first table damages a copy of a healthy backup, whose SHA-256 was
recorded before: validation says the sentence. For the second table the SHA-256 is taken
after the damage, as it is of a backup that nobody recorded: validation says the
sentence still, or the restore does.
"""

import gzip
import re
import unittest
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from aidscope.tests import server as suite
from scripts import test_backup_restore as drill

Damage = Callable[[bytes], bytes]
CLOSING = b"--\n-- PostgreSQL database dump complete\n--\n"


# --- What can happen to a backup ------------------------------------------------------


def block_of(sql: bytes, table: str) -> re.Match:
    """The COPY block of a table: its command, its rows, its end."""
    name = re.escape(table.encode())
    return re.search(
        rb"^(COPY %s \(.*\) FROM stdin;\n)((?:.*\n)*?)(\\\.\n)" % name,
        sql,
        re.MULTILINE,
    )


def with_rows(table: str, change: Callable[[list[bytes]], list[bytes]]) -> Damage:
    """Change the rows of a table's COPY block."""

    def damage(sql: bytes) -> bytes:
        block = block_of(sql, table)
        rows = change(block[2].splitlines(keepends=True))
        return b"".join([sql[: block.start(2)], *rows, sql[block.end(2) :]])

    return damage


def without_block(sql: bytes) -> bytes:
    """Leave the whole COPY block of a table out."""
    block = block_of(sql, "extra.line")
    return sql[: block.start()] + sql[block.end() :]


def without(kind: str, name: str) -> Damage:
    """Leave an entry of pg_dump's out."""
    entry = f"--\n-- Name: {name}; Type: {kind}; ".encode()

    def damage(sql: bytes) -> bytes:
        start = sql.index(entry)
        following = re.compile(
            rb"^--\n-- (Data for )?Name: |^%s" % CLOSING, re.MULTILINE
        )
        return sql[:start] + sql[following.search(sql, start + 1).start() :]

    return damage


def replaced(old: bytes, new: bytes) -> Damage:
    """Put something else in the place of what stands there once."""

    def damage(sql: bytes) -> bytes:
        assert sql.count(old) == 1, f"{old!r} stands there {sql.count(old)} times"
        return sql.replace(old, new)

    return damage


def cut_in_the_middle(sql: bytes) -> bytes:
    """Keep the first half."""
    return sql[: len(sql) // 2]


def cut_at_a_row(sql: bytes) -> bytes:
    """Keep what stands before a row of the largest block: psql takes it for whole."""
    block = block_of(sql, "extra.line")
    return sql[: block.start(2)] + b"".join(block[2].splitlines(keepends=True)[:20])


def cut_after_the_last_block(sql: bytes) -> bytes:
    """Keep all rows, and none of the indexes and constraints that follow."""
    return sql[: sql.rindex(b"\n\\.\n") + 4]


def without_header(sql: bytes) -> bytes:
    """Begin behind the header."""
    return sql[sql.index(b"SET statement_timeout") :]


def another_backup(_sql: bytes) -> bytes:
    """Put another database's backup in its place."""
    return suite.backups().another.path.read_bytes()


def yesterdays_backup(_sql: bytes) -> bytes:
    """Put yesterday's backup in its place."""
    return suite.backups().yesterday.path.read_bytes()


# --- The SHA-256 was recorded before --------------------------------------------------

RECORDED: dict[str, tuple[Damage, str]] = {
    "cut in the middle": (
        cut_in_the_middle,
        "no closing line, expected '-- PostgreSQL database dump complete'",
    ),
    "cut at a row boundary": (
        cut_at_a_row,
        "table extra.line: its COPY block has no end",
    ),
    "cut after the last block": (
        cut_after_the_last_block,
        "no closing line, expected '-- PostgreSQL database dump complete'",
    ),
    "the closing line is missing": (
        replaced(CLOSING, b""),
        "no closing line, expected '-- PostgreSQL database dump complete'",
    ),
    "the last byte is missing": (lambda sql: sql[:-1], "SHA-256: found "),
    "the header is gone": (
        without_header,
        "no header, expected '-- PostgreSQL database dump'",
    ),
    "empty": (
        lambda sql: b"",
        "no header, expected '-- PostgreSQL database dump'",
    ),
    "the last page is zeros": (
        lambda sql: sql[:-4096] + bytes(4096),
        "no closing line, expected '-- PostgreSQL database dump complete'",
    ),
    "all zero bytes": (
        lambda sql: bytes(len(sql)),
        "no header, expected '-- PostgreSQL database dump'",
    ),
    "one bit of a row is flipped": (
        replaced(b"1\ttoday\n", b"1\ttodax\n"),
        "SHA-256: found ",
    ),
    "a row is deleted": (
        with_rows("extra.line", lambda rows: rows[1:]),
        "table extra.line: found 40 rows, expected 41",
    ),
    "a row is duplicated": (
        with_rows("extra.line", lambda rows: [rows[0], *rows]),
        "table extra.line: found 42 rows, expected 41",
    ),
    "a row is duplicated over another": (
        with_rows("extra.line", lambda rows: [rows[1], *rows[1:]]),
        "SHA-256: found ",
    ),
    "a block is emptied": (
        with_rows("extra.line", lambda rows: []),
        "table extra.line: found 0 rows, expected 41",
    ),
    "a block is missing": (
        without_block,
        "table extra.line: no COPY block, expected 41 rows",
    ),
    "a block is another table's": (
        replaced(b"COPY extra.visit_2025 (", b"COPY extra.visit_2024 ("),
        "table extra.visit_2025: no COPY block, expected 1 rows",
    ),
    "an index is dropped": (without("INDEX", "value_ratio"), "SHA-256: found "),
    "a constraint is dropped": (
        without("FK CONSTRAINT", "line line_value"),
        "SHA-256: found ",
    ),
    "a setval is dropped": (
        without("SEQUENCE SET", "item_id_seq"),
        "SHA-256: found ",
    ),
    "a trigger is dropped": (
        without("TRIGGER", "line line_keep"),
        "SHA-256: found ",
    ),
    "a grant is dropped": (without("ACL", "TABLE value"), "SHA-256: found "),
    "a comment is dropped": (without("COMMENT", "TABLE value"), "SHA-256: found "),
    "a large object is dropped": (
        lambda sql: re.sub(rb"(?s)SELECT pg_catalog.lo_open\('4712.*?\n\n", b"", sql),
        "SHA-256: found ",
    ),
    "yesterday's backup": (
        yesterdays_backup,
        "table extra.line: found 40 rows, expected 41",
    ),
    "another database's backup": (
        another_backup,
        "table backup_drill.item: no COPY block, expected 100 rows",
    ),
    "two backups in one file": (
        lambda sql: sql + sql,
        "something follows the closing line: '-- PostgreSQL database dump'",
    ),
    "a stranger's SQL at the end": (
        lambda sql: sql + b"DROP TABLE extra.line;\n",
        "something follows the closing line: 'DROP TABLE extra.line'",
    ),
    "compressed under a plain name": (
        gzip.compress,
        "no header, expected '-- PostgreSQL database dump'",
    ),
    "invalid UTF-8": (replaced(b"\ttoday\n", b"\tto\xffay\n"), "SHA-256: found "),
    "sent as text, so that its lines end in CR LF": (
        lambda sql: sql.replace(b"\n", b"\r\n"),
        "its lines end in CR LF: it was sent as text",
    ),
    "a command that leaves for another database": (
        replaced(CLOSING, b"\\connect postgres\n" + CLOSING),
        r"a command for psql: '\\connect postgres'",
    ),
    "a statement that undoes it all": (
        replaced(CLOSING, b"ROLLBACK;\n" + CLOSING),
        "a statement on more than its database: 'ROLLBACK'",
    ),
}

# --- The SHA-256 was taken afterwards -------------------------------------------------

UNRECORDED: dict[str, tuple[Damage, str]] = {
    name: (damage, sentence)
    for name, (damage, sentence) in RECORDED.items()
    if sentence != "SHA-256: found "
} | {
    name: (RECORDED[name][0], sentence)
    for name, sentence in {
        "one bit of a row is flipped": (
            "table extra.line: 41 rows as expected, with other values"
        ),
        "a row is duplicated over another": (
            "table extra.line: 41 rows as expected, with other values"
        ),
        "an index is dropped": "index extra.value_ratio: missing",
        "a constraint is dropped": "fk constraint extra.line line_value: missing",
        "a setval is dropped": (
            "sequence backup_drill.item_id_seq: value: found 1, expected 100"
        ),
        "a trigger is dropped": "trigger extra.line line_keep: missing",
        "a grant is dropped": "acl extra.TABLE value: missing",
        "a comment is dropped": "comment extra.TABLE value: missing",
        "a large object is dropped": (
            "large objects: 2 rows as expected, with other values"
        ),
        "invalid UTF-8": 'invalid byte sequence for encoding "UTF8": 0xff',
    }.items()
}


# --- What the drill says --------------------------------------------------------------

numbers = count()


def damaged(damage: Damage) -> drill.Backup:
    """A damaged copy of today's backup; its SHA-256 is the healthy one's."""
    backup = suite.backups().today
    path = suite.folder() / f"damaged_{next(numbers)}.sql"
    sql = damage(backup.path.read_bytes())
    assert sql != backup.path.read_bytes(), "nothing was damaged"
    path.write_bytes(sql)
    return replace(backup, path=path)


def said_by_validation(backup: drill.Backup) -> list[str]:
    """The problems that validation finds."""
    whole, *_ = drill.readings_of(backup, suite.server())
    return drill.problems_in(whole, backup)


def said_by_restore(backup: drill.Backup) -> list[str]:
    """What keeps the backup from being restored, or else how the result departs."""
    server = suite.server()
    with drill.scratch_database(server, "restored", backup.locale) as restored:
        try:
            drill.load_backup(backup, restored, suite.OPTIONS.jobs)
        except drill.BackupIsBad as refusal:
            return str(refusal).splitlines()
        return suite.departures_of(restored)


class SaysSentence(unittest.TestCase):
    """What both tables ask."""

    def assert_said(self, sentence: str, said: list[str], most: int = 3) -> None:
        """The sentence is among the first that were said."""
        if not any(sentence in each for each in said[:most]):
            self.fail(f"not said: {sentence}\nsaid:\n{suite.first_lines(said, 10)}")


@suite.table_of_tests(RECORDED)
class RecordedTests(SaysSentence):
    """Validation refuses whatever differs from what was recorded."""

    def judge(self, damage: Damage, sentence: str) -> None:
        """Validation says the sentence, and that it is another file."""
        said = said_by_validation(damaged(damage))
        self.assertRegex(said[0], "^SHA-256: found [0-9a-f]{64}, expected ")
        self.assert_said(sentence, said, most=4)  # behind the SHA-256


@suite.table_of_tests(UNRECORDED)
class UnrecordedTests(SaysSentence):
    """What validation cannot know, the restore finds."""

    def judge(self, damage: Damage, sentence: str) -> None:
        """Validation says the sentence, or the restore does."""
        backup = damaged(damage)
        sha256, size = drill.fingerprint(backup.path)
        backup = replace(backup, sha256=sha256, size=size)
        self.assert_said(
            sentence, said_by_validation(backup) or said_by_restore(backup)
        )


class HealthyTests(unittest.TestCase):
    """A healthy backup is not refused."""

    def test_untouched(self) -> None:
        """The backup as pg_dump wrote it has no problems."""
        self.assertEqual(said_by_validation(suite.backups().today), [])

    def test_restored(self) -> None:
        """The backup as pg_dump wrote it brings the source back."""
        backup, server = suite.backups().today, suite.server()
        with drill.scratch_database(server, "restored", backup.locale) as restored:
            drill.load_backup(backup, restored, suite.OPTIONS.jobs)
            found = drill.contents_of(restored)
            self.assertEqual(drill.departures(backup, found, restored), [])

    def test_rows_that_look_like_a_backup(self) -> None:
        r"""Rows that look like COPY, like \. or like the closing line are rows."""
        backup = suite.backups().today
        reading, *_ = drill.readings_of(backup, suite.server())
        self.assertEqual(reading.problems, [])
        self.assertEqual(reading.rows["extra.COPY extra.nil (id) FROM stdin;"], 4)
        self.assertEqual(reading.rows["backup_drill.item"], 100)
        self.assertEqual(reading.rows.keys(), backup.rows.keys())

    def test_pieces_of_any_length(self) -> None:
        """Wherever the pieces are cut in which it is read, a backup reads the same."""
        sql = suite.backups().today.path.read_bytes()
        expected = suite.backups().today.rows
        for length in (1021, 4099, 65537):
            scan = drill.SqlScan()
            for at in range(0, len(sql), length):
                scan.update(sql[at : at + length])
            with self.subTest(length=length):
                self.assertEqual(scan.finish(), [])
                self.assertEqual(scan.rows, expected)
