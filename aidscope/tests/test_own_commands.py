"""A team's own commands take the places of pg_dump and psql, and add checks.

A row of the databases holds the secret word: no command that prints it makes the drill
show it. That nothing of a command is left is judged where the block of each place ends.
"""

import base64
import os
import signal
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch
from urllib.parse import quote

from aidscope.tests.in_process import (
    ProjectWithCommands,
    ProjectWithoutApps,
    drilled,
    limited,
    project_on,
)
from aidscope.tests.in_process import server as server_in_process
from aidscope.tests.support import (
    BACKUP,
    BOUND,
    ROOT,
    SECRET,
    Case,
    Ended,
    Place,
    Row,
    copied,
    database,
    filled,
    lasting,
    originals,
    pg_dump,
    place,
    query,
    role,
    server,
    small,
    url,
)
from scripts import test_backup_restore as drill

PROMPTLY = 15.0  # seconds, on a busy machine
LIVE = ("--live", "--no-throwaway")
CREATION = (*LIVE, "-k", "creation")
LIMIT = 0.4  # seconds
KEPT = f"""
CREATE TABLE public.kept (id serial, word text);
INSERT INTO public.kept (word) SELECT '{SECRET}' FROM generate_series(1, 300);
CREATE INDEX kept_id ON public.kept (id);
CREATE TABLE public.lost AS SELECT 1 AS id
"""
DUMP = 'pg_dump -f "$BACKUP_FILE"'
DUMP_ALL = '"$(dirname "$(readlink -f "$(command -v pg_dump)")")/pg_dumpall"'
LOAD = 'psql -q -v ON_ERROR_STOP=1 -f "$BACKUP_FILE"'
TELL = "psql -q -A -t -c 'TABLE public.kept'"
SPOIL = """psql -q -c "DROP INDEX kept_id; DELETE FROM kept WHERE id = 1;
SELECT setval('kept_id_seq', 7)" """
# Programs that do not want to end.
STAYS = "trap '' HUP INT TERM; (sleep 600 & sleep 600) & while :; do sleep 600; done"
ELSEWHERE = "did a command use another database?"
NOTHING = "the backup command wrote nothing to $BACKUP_FILE"
QUIETLY = "\n  see what it says: --verbose"


@cache
def kept() -> str:
    """A database with a row that holds the secret word; no command changes it."""
    return lasting("site_kept", KEPT)


@cache
def contents_of_kept() -> drill.Contents:
    """What that database holds."""
    return drill.read_contents(replace(server_in_process(), name=kept()))


@contextmanager
def known_contents() -> Iterator[None]:
    """In this block what that database holds is not read again."""
    contents = Mock(return_value=contents_of_kept())
    with patch.object(drill, "read_contents", contents):
        yield


def commanded(here: Place, *arguments: str, source: str = "", **how: Any) -> Ended:
    """A run in this process, with the place's folder for {here} in its arguments."""
    if "settings" not in how:
        how.setdefault("database", source or kept())
    return drilled(here, *filled(here, arguments), **how)


def judged_after(change: str, sql: str, then: str = "") -> Ended:
    """A run whose backup went through sed, and whose command went on with `then`."""
    command = f"pg_dump | sed '{change}' > \"$BACKUP_FILE\"{then}"
    with place() as here, database(sql) as name:
        return commanded(here, *LIVE, "--backup-command", command, source=name)


# --- Commands that make a backup ------------------------------------------------------


@dataclass(frozen=True)
class Making(Row):
    """A backup command, what is said of it, and the verdict."""

    command: str
    says: str
    verdict: str = "failed"
    arguments: tuple[str, ...] = LIVE


EXITS = (
    Making("nothing is written", "true", NOTHING),
    Making("written elsewhere", "pg_dump -f '{here}/sql'", NOTHING),
    Making("printed only", "pg_dump", NOTHING),
    Making(
        "a status, and rows on both streams",
        f"{DUMP}; {TELL}; {TELL} >&2; exit 4",
        f"the backup command exited with 4{QUIETLY}",
    ),
    Making("a status of its own", f"{DUMP}; exit 255", "exited with 255"),
    Making("a missing program", "no-such-program", "exited with 127", "error"),
    Making("no program", "./README.md", "exited with 126", "error"),
    Making("killed", f"{DUMP}; kill -s KILL $$", "exited with 137", "error"),
    Making(
        "a killed program",
        f"{DUMP} & kill -s KILL $! && wait $!",
        "exited with 137",
        "error",
    ),
    Making("a trap", f"trap 'kill 0' EXIT; {DUMP}", "exited with -15", "error"),
    Making("a killed group", "sleep 600 & kill -9 0", "exited with -9", "error"),
    Making(
        "a failing pipe, told",
        "bash -c 'set -o pipefail; pg_dump -d nosuch | gzip > \"$BACKUP_FILE\"'",
        "the backup command exited with 1",
    ),
    Making(
        "a source that is changed",
        f"psql -q -c 'DELETE FROM backup_drill.event'; {DUMP}",
        "changed its source\n  table backup_drill.event",
        arguments=("-k", "creation"),
    ),
    Making("in the background", f"{DUMP} & sleep 600 & exit 0", "still ran"),
    Making("an orphan", f"{DUMP}; (nohup sleep 600 > /dev/null 2>&1 &)", "still ran"),
    Making("in a group of its own", "timeout 600 sleep 600 &", NOTHING),
    Making("its folder is removed", 'rm -rf "${BACKUP_FILE%/*}"', NOTHING),
    Making("all", f'{DUMP_ALL} > "$BACKUP_FILE"', "by pg_dumpall", "error"),
    Making(
        "a folder of its own",
        'mkdir "$BACKUP_FILE" && pg_dump -f "$BACKUP_FILE/sql"',
        "it has no toc.dat",
        "error",
    ),
    Making(
        "encrypted",
        '{ printf Salted__; pg_dump; } > "$BACKUP_FILE"',
        "is encrypted by openssl",
        "error",
    ),
)
LASTING = (
    Making("no end", STAYS, "did not end within 0.4 s\n  allow more", "error"),
    Making("stopped with its guard", "kill -s STOP 0", "did not end", "error"),
    Making("a limit of its own", "timeout 99 sleep 99", "did not end", "error"),
)
CONTENTS = (
    Making("a failing pipe", 'pg_dump -d x | gzip > "$BACKUP_FILE"', "no header"),
    Making("a cut pipe", 'pg_dump | head -c 3000 > "$BACKUP_FILE"', "no footer"),
    Making("another database", f"{DUMP} -d postgres", ELSEWHERE),
    Making("definitions alone", f"{DUMP} -s", "expected  table public.kept: 300 rows"),
    Making("a table less", f"{DUMP} -T lost", "expected  table public.lost: 1 rows"),
    Making(
        "a row less, each by INSERT",
        "pg_dump --inserts | sed '/^INSERT INTO public.lost/d' > \"$BACKUP_FILE\"",
        "found     table public.lost: 0 rows",
    ),
    Making(
        "a row less, many by one INSERT",
        "pg_dump --rows-per-insert=99 | sed '0,/^\\t(/{//d;}' > \"$BACKUP_FILE\"",
        "found     table public.kept: 299 rows",
    ),
)


class MakingCase(Case):
    """A backup command goes wrong.

    No command changes the database, whose contents are read once for all; and a
    program that still runs is not given the time in which it may end.
    """

    act = "creation"

    def judge(self, row: Making) -> None:
        """The verdict and the words are right, and no act after that is run."""
        words = (*row.arguments, "--backup-command", row.command)
        at_once = Mock(wraps=drill.time, sleep=Mock())
        known = known_contents() if row.arguments == LIVE else nullcontext()
        with place() as here, patch.object(drill, "time", at_once), known:
            over = commanded(here, *words)
        self.assert_verdict(over, row.verdict, row.says, act=self.act)
        self.assert_facts(over, verdict=row.verdict, scratch_dropped=True)
        self.assertEqual(over.acts["restore"], "not run")


class ExitTests(MakingCase, table=EXITS):
    """It ends otherwise than well, or writes no backup of one database."""

    def test_session_of_its_own(self) -> None:
        """What leaves its session is not waited for, but ended."""
        with place() as here:
            command = f"{DUMP}; setsid -f sleep 600"
            over = commanded(here, *CREATION, "--backup-command", command)
        self.assert_verdict(over, "passed")

    def test_log(self) -> None:
        """A process that only takes the rest of a log may end a little later."""
        log = f"bash -c 'exec > >(sleep 0.3; cat > /dev/null); {DUMP}'"
        with place() as here:
            over = commanded(here, *CREATION, "--backup-command", log)
        self.assert_verdict(over, "passed")


class LastingTests(MakingCase, table=LASTING):
    """It does not end: that it is given less time than all else makes it quick."""

    def judge(self, row: Making) -> None:
        """Its time is over."""
        run_command = drill.run_command

        def run_limited(run: drill.Run, *words: Any, **how: Any) -> float:
            return run_command(limited(run, LIMIT), *words, **how)

        with patch.object(drill, "run_command", run_limited):
            super().judge(row)


# A row, a function whose body, in two lines, looks like what is said of owners, and
# another that knows passwords.
BODIES = f"""
CREATE TABLE acct (id int, balance int);
INSERT INTO acct VALUES (1, 3587);
CREATE TABLE t AS SELECT 1;
CREATE FUNCTION hand() RETURNS void LANGUAGE sql AS $$
ALTER TABLE t OWNER TO anna;
$$;
CREATE FUNCTION call() RETURNS text LANGUAGE sql AS $$
SELECT 'host=x password=''open {SECRET} now'' port=1'
UNION ALL SELECT 'postgresql://anna:{SECRET}@x/live';
$$
"""
FOREIGN = """
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE sand (line text) SERVER files OPTIONS (filename '/etc/hostname');
CREATE TABLE t AS SELECT 1
"""


class ContentTests(MakingCase, table=CONTENTS):
    """It writes a backup that is not whole, or not of the database."""

    act = "validation"

    def test_empty_table_less(self) -> None:
        """It is missed though there is no row to be missed."""
        command = f"{DUMP} -T empty"
        with place() as here, database("CREATE TABLE empty (); " + KEPT) as name:
            over = commanded(here, *LIVE, "--backup-command", command, source=name)
        says = "meanwhile, run again\n  expected  table public.empty: 0 rows\n\n"
        self.assert_verdict(over, "failed", says, act="validation")

    def test_values_and_definitions_that_differ_by_little(self) -> None:
        """Two rows that are one in 32 bits of what is hashed are two.

        What a definition holds is compared, even a line that looks like an owner's,
        or only a password; and no password is shown.
        """
        over = judged_after(
            "s/\\b3587$/391779/;"
            "s/^ALTER TABLE t OWNER TO anna;/ALTER TABLE t OWNER TO ben;/;"
            "/host=x/d; s/postgresql/postgres/",
            BODIES,
        )
        says = (
            "found     table public.acct: rows with hash",
            "expected  function public.hand(): ALTER TABLE t OWNER TO anna\n",
            "function public.call(): SQL",
        )
        self.assert_verdict(over, "failed", *says, act="restore")

    def test_passwords_in_a_function(self) -> None:
        """Lines of a definition that may hold one are shown without a word."""
        over = judged_after("/host=x/d; s/^UNION ALL.*/SELECT NULL;/", BODIES)
        says = "expected  function public.call(): [REDACTED]"
        self.assert_verdict(over, "failed", says, act="restore")

    def test_rows_of_a_foreign_table(self) -> None:
        """A backup that would write into another server is not loaded."""
        command = f"{DUMP} --include-foreign-data='*'"
        with place() as here, database(FOREIGN) as name:
            over = commanded(here, *LIVE, "--backup-command", command, source=name)
        says = "rows of foreign tables: public.sand\n  a load would write"
        self.assert_verdict(over, "error", says, act="validation")

    def test_another_database_than_that_of_many_tables(self) -> None:
        """The hint is not lost behind a long list."""
        tables = "".join(f"CREATE TABLE t{n} AS SELECT 1 AS x;" for n in range(25))
        with place() as here, database(f"{tables} SELECT lo_create(1)") as source:
            words = (*LIVE, "--backup-command", f"{DUMP} -d postgres")
            over = commanded(here, *words, source=source)
        self.assert_verdict(over, "failed", ELSEWHERE, act="validation")


@dataclass(frozen=True)
class Made(Row):
    """A backup command that does its work, and the format of what it writes."""

    command: str
    form: str
    arguments: tuple[str, ...] = LIVE


MADE = (
    Made(
        "compressed by a pipe, in a rehearsal",
        'cat; pg_dump | gzip > "$BACKUP_FILE"',
        "gzip",
        (),
    ),
    Made("by the URL, a folder", f'{DUMP} -d "$DATABASE_URL" -Fd -j2', "directory"),
)


class MadeTests(Case, table=MADE):
    """A backup command does its work."""

    def judge(self, row: Made) -> None:
        """The backup is judged as any other, and passes a check."""
        check = "SELECT true"
        words = (*row.arguments, "--check", check, "--backup-command", row.command)
        known = known_contents() if row.arguments == LIVE else nullcontext()
        with place() as here, known:
            over = commanded(here, *words)
        self.assert_verdict(over, "passed", "The backup restores.")
        self.assert_facts(over, format=row.form, accepted={}, checks={check: "passed"})

    def test_changes_meanwhile(self) -> None:
        """What the command changes in the source is not compared, but named.

        A table without any partition has no data that could be lacking.
        """
        before = "psql -q -c 'CREATE TABLE parted (at date) PARTITION BY RANGE (at)'"
        after = "psql -q -c 'INSERT INTO lost VALUES (2); CREATE TABLE late ()'"
        with place() as here, database(KEPT) as source:
            words = (*LIVE, "--backup-command", f"{before}; {DUMP}; {after}")
            over = commanded(here, *words, source=source)
        self.assert_verdict(over, "passed")
        for name in ("table public.lost", "table public.late"):
            self.assertEqual(over.not_compared[name], "it changed meanwhile")
        self.assertEqual(over.report["rows_of_tables"], {"public.kept": 300})

    def test_busy_table_without_data(self) -> None:
        """A table that changes all the time is not left out for that."""
        change = "psql -q -c 'INSERT INTO lost VALUES (2)'"
        with place() as here, database(KEPT) as source:
            command = f"{change}; {DUMP} --exclude-table-data lost"
            over = commanded(here, *LIVE, "--backup-command", command, source=source)
            words = (*LIVE, "-k", "validation", "--accept", "table public.lost: *")
            good = commanded(here, *words, "--backup-command", command, source=source)
        says = "expected  table public.lost: its data, which change"
        self.assert_verdict(over, "failed", says, act="validation")
        self.assert_verdict(good, "passed")

    def test_busy_partitions_and_sequences_without_data(self) -> None:
        """So are they not: rows of one partition, a sequence's value, large objects."""
        change = """
        CREATE TABLE IF NOT EXISTS parted (id int) PARTITION BY RANGE (id);
        CREATE TABLE IF NOT EXISTS low PARTITION OF parted FOR VALUES FROM (0) TO (5);
        CREATE TABLE IF NOT EXISTS high PARTITION OF parted FOR VALUES FROM (5) TO (9);
        CREATE SEQUENCE IF NOT EXISTS number;
        INSERT INTO parted VALUES (1), (7);
        SELECT nextval('number'), lo_create(0)"""
        command = (
            f'psql -q -c "{change}"; pg_dump --exclude-table-data low --no-blobs'
            ' --exclude-table-data number --file "$BACKUP_FILE"'
        )
        with place() as here, database(f"{KEPT}; {change}") as source:
            over = commanded(here, *LIVE, "--backup-command", command, source=source)
        says = (
            "expected  table public.low: its data, which change",
            "expected  sequence public.number: its data, which change",
            "expected  large objects: its data, which change",
        )
        self.assert_verdict(over, "failed", *says, act="validation")

    def test_busy_table_without_rows(self) -> None:
        """One that had rows before and after the dump has some in it."""
        hides = "/^COPY public.lost /,/^.[.]$/{/^[0-9]/d}"
        inserts = "; psql -q -c 'INSERT INTO lost VALUES (2)'"
        over = judged_after(hides, KEPT, inserts)
        says = "expected  table public.lost: its data, which change"
        self.assert_verdict(over, "failed", says, act="validation")

    def test_names_that_look_alike(self) -> None:
        """Rows of two tables, whose names look as one, are not taken for another's."""
        made = """CREATE SCHEMA a; CREATE SCHEMA "a.b";
        CREATE TABLE a."b.c" AS SELECT 1 AS i; CREATE TABLE "a.b".c AS SELECT 2 AS i"""
        changes = """UPDATE a."b.c" SET i = 2; UPDATE "a.b".c SET i = 1"""
        load = f"{LOAD} && psql -q -c '{changes}'"
        words = ("--live", "--backup-command", DUMP, "--restore-command", load)
        with place() as here, database(made) as source:
            over = commanded(here, *words, source=source)
        says = "found     table a.b.c: rows with hash"
        self.assert_verdict(over, "failed", says, act="restore")

    def test_busy_table_that_is_lost(self) -> None:
        """What changes is compared with what the backup says of it."""
        change = "psql -q -c 'INSERT INTO lost VALUES (2)'"
        backup = f"{change}; {DUMP}; {change}"
        words = ("--live", "--backup-command", backup, "--restore-command")
        spoil = "DELETE FROM lost WHERE id = 2"
        with place() as here, database(KEPT) as source:
            good = commanded(here, *words, LOAD, source=source)
            bad = commanded(
                here, *words, f"{LOAD} && psql -q -c '{spoil}'", source=source
            )
        self.assert_verdict(good, "passed")
        says = "found     table public.lost: 1 rows"
        self.assert_verdict(bad, "failed", says, act="restore")

    def test_data_for_tables_of_its_own(self) -> None:
        """A backup of data alone is judged where a command brings the tables."""
        load = "psql -q -f '{here}/schema' && pg_restore -d \"$PGDATABASE\""
        words = ("--backup-command", f"{DUMP} -F c --data-only --disable-triggers")
        with place() as here, known_contents():
            pg_dump(kept(), here.folder / "schema", "--schema-only")
            load += ' --disable-triggers "$BACKUP_FILE"'
            over = commanded(here, "--live", *words, "--restore-command", load)
        self.assert_verdict(over, "passed")


# --- What is accepted -----------------------------------------------------------------


class AcceptTests(Case):
    """Differences that are meant are on record, and all others fail."""

    def test_owners_rights_and_a_table(self) -> None:
        """Without owners, rights and a table a backup passes where all are accepted.

        The table that is left out accuses none of its neighbours.
        """
        tables = """CREATE SCHEMA app; CREATE TABLE a_log (); CREATE VIEW b AS SELECT 1;
        CREATE TABLE c (); CREATE TABLE kept (); GRANT SELECT ON kept TO PUBLIC"""
        accepted = ("--accept", "t* public.a_log*", "--accept", "*: owner: *")
        words = (*LIVE, "--backup-command", f"{DUMP} -O -x -T a_log", *accepted)
        with (
            place() as here,
            role() as owner,
            database(f"{tables}; ALTER TABLE kept OWNER TO {owner}") as source,
        ):
            bad = commanded(here, *words, source=source)
            good = commanded(here, *words, "--accept", "acl *", source=source)
        says = "expected  acl public.TABLE kept"
        self.assert_verdict(bad, "failed", says, act="restore")
        patterns = {"t* public.a_log*", "*: owner: *"}
        self.assertEqual({*bad.report["accepted"].values()}, patterns)
        self.assert_verdict(good, "passed", "accepted")
        self.assertEqual(good.report["accepted"][says], "acl *")

    def test_secret_that_is_a_name(self) -> None:
        """What is accepted is so whatever is hidden of it."""
        options = Namespace(accept=["*: owner: anna"])
        run = drill.Run(options, Path(), 0, {"accepted": {}}, secrets=("anna",))
        difference = drill.Difference("table t", "expected", "owner: anna")
        self.assertEqual(drill.unaccepted([difference], run), [])
        self.assertNotIn("anna", str([*run.evidence["accepted"]]))

    def test_rows(self) -> None:
        """Rows that are left out pass both acts; what nothing fits is named."""
        with place() as here, known_contents():
            command = f"{DUMP} --exclude-table-data=lost"
            words = (*LIVE, "--backup-command", command)
            accepted = ("--accept", "table public.lost: *", "--accept", "none")
            over = commanded(here, *words, *accepted)
        self.assert_verdict(over, "passed", "none (matches nothing)")
        self.assert_facts(over, unused_accepts=["none"])
        differences = over.report["accepted"]
        self.assertEqual({*differences.values()}, {"table public.lost: *"})
        self.assertIn("expected  table public.lost: 1 rows", differences)


# --- Commands that load a backup ------------------------------------------------------


@dataclass(frozen=True)
class Loading(Making):
    """A restore command, what is said of it, and the command that made the backup."""

    backup: str = DUMP
    accept: tuple[str, ...] = ()
    alone: bool = False  # the server is changed for ever, or its log is read


REFERENCES = r"SELECT count(*) FROM pg_database WHERE datname LIKE $$%reference$$"
OTHERS = "site_everything|backup_drill*"  # of other tests, and large
UNREAD = "a format of the command's own"
LOADINGS = (
    Loading(
        "database and all",
        'pg_restore --create --clean --if-exists -d postgres "$BACKUP_FILE"',
        "custom, ",
        "passed",
        backup=f"{DUMP} -F c",
    ),
    Loading(
        "a whole server",
        'psql -q -d postgres -f "$BACKUP_FILE"',
        UNREAD,
        "passed",
        backup=f"{DUMP_ALL} --exclude-database '{OTHERS}' > \"$BACKUP_FILE\"",
        alone=True,
    ),
    Loading(
        "an encrypted file in a folder",
        'tail -c +9 "$BACKUP_FILE/sql" | psql -q -d "$DATABASE_URL"',
        UNREAD,
        "passed",
        backup='mkdir "$BACKUP_FILE"; { printf Salted__; pg_dump; } > "$BACKUP_FILE/sql"',
    ),
    Loading(
        "something is lost",
        f"{LOAD}; {SPOIL}",
        "the restored database differs from its source\n"
        "  expected  index public.kept_id\n"
        "  expected  sequence public.kept_id_seq: 300\n"
        "  found     sequence public.kept_id_seq: 7\n"
        "  expected  table public.kept: 300 rows\n",
    ),
    Loading(
        "where nothing else stands that could keep a role; its file is removed",
        f"[ $(psql -Atd postgres -c '{REFERENCES}') = 0 ] && {LOAD}"
        ' && rm "$BACKUP_FILE"',
        "",
        "passed",
    ),
    Loading("elsewhere", f"psql -q -c 'CREATE DATABASE x'; {LOAD} -d x", ELSEWHERE),
    Loading(
        "the database is dropped",
        """psql -d postgres -c "DROP DATABASE \\"$PGDATABASE\\"" """,
        "the restore command left no database site_kept",
    ),
    Loading(
        "a status, and rows",
        f"{LOAD}; {TELL} >&2; false",
        f"the restore command exited with 1{QUIETLY}",
    ),
    Loading(
        "nothing, and all is accepted",
        "true",
        "no table came back",
        accept=("--accept", "*"),
    ),
    Loading("a group is ended", "sleep 600 & kill 0", "exited with -15", "error"),
    Loading(
        "its file is removed, and no more",
        'rm "$BACKUP_FILE"; false',
        "the restore command exited with 1",
    ),
    Loading(
        "a session of the server was killed",
        'echo "LOG:  process 1 was terminated by signal 9" >> "$PGHOST/log"; false',
        "was terminated by signal\n  run again",
        "error",
        alone=True,
    ),
    Loading(
        "the server has no room",
        'echo "FATAL:  No space left on device" >> "$PGHOST/log"; false',
        "make room on the disk",
        "error",
        alone=True,
    ),
)


class LoadingTests(Case, table=LOADINGS):
    """A restore command works on a private server, where it may do what it wants."""

    def judge(self, row: Loading) -> None:
        """The verdict is right, and the source is as it was."""
        words = ("--backup-command", row.backup, "--restore-command", row.command)
        with place() as here, known_contents():
            over = commanded(here, "--live", *words, *row.accept, alone=row.alone)
            left = query(kept(), "SELECT count(*) FROM kept")
        self.assert_verdict(over, row.verdict, row.says, act="restore")
        self.assertTrue(over.was_private)
        self.assertEqual(left, [(300,)])


# --- Commands for a backup that exists ------------------------------------------------


@dataclass(frozen=True)
class Existing(Row):
    """Arguments about a backup in base64, what is said, the verdict, and the act."""

    arguments: tuple[str, ...]
    says: str
    verdict: str = "failed"
    act: str = "restore"


DECRYPT = ("--no-throwaway", "--decrypt")
RESTORE = 'pg_restore -d "$PGDATABASE" "$BACKUP_FILE"'
UNPACK = 'base64 -d "$BACKUP_FILE" | pg_restore -d "$PGDATABASE"'
EXISTING = (
    Existing(
        "a key in the environment",
        (*DECRYPT, 'test "$KEY" = "a key" && base64 -d'),
        "custom, ",
        "passed",
    ),
    Existing(
        "decryption fails, and tells",
        (*DECRYPT, f"echo {SECRET}; echo {SECRET} >&2; false"),
        f"the decrypt command exited with 1{QUIETLY}",
        "error",
        "creation",
    ),
    Existing(
        "decryption cuts",
        (*DECRYPT, "base64 -d | head -c 3000"),
        "the backup is damaged",
        act="validation",
    ),
    Existing(
        "decryption writes nothing",
        (*DECRYPT, "cat > /dev/null"),
        "the decrypt command wrote nothing",
        "error",
        "creation",
    ),
    Existing(
        "to something else", (*DECRYPT, "tr a-z b-za"), "is no", "error", "creation"
    ),
    Existing("going on", (*DECRYPT, "sleep 600 &"), "still ran", "error", "creation"),
    Existing(
        "decrypted, then loaded; some differences are accepted",
        (
            *("--decrypt", "base64 -d", "--restore-command", f"{RESTORE}; {SPOIL}"),
            *("--accept", "table public.kept: *", "--accept", "sequence *"),
        ),
        "differs from what its backup says\n  expected  index public.kept_id\n\n",
    ),
    Existing(
        "unread, and loaded from its own path",
        ("--restore-command", f'test "$BACKUP_FILE" = {{here}}/backup && {UNPACK}'),
        "the file (its command alone reads it)",
        "passed",
    ),
    Existing(
        "nothing is loaded",
        ("--restore-command", "true"),
        "nothing came back",
        "error",
    ),
    Existing("a status", ("--restore-command", "false"), "exited with 1", "error"),
    Existing(
        "decrypted, then loaded as the database that it names",
        (
            *("--decrypt", "base64 -d", "--restore-command"),
            'pg_restore --create --clean -d postgres "$BACKUP_FILE"',
        ),
        "custom, ",
        "passed",
    ),
)


@cache
def encoded_backup() -> bytes:
    """A backup of the database that holds the secret word, in base64."""
    with place() as here:
        backup = pg_dump(kept(), here.backup, "-F", "c")
        return base64.encodebytes(backup.read_bytes())


class ExistingTests(Case, table=EXISTING):
    """Commands decrypt and load a backup that exists, which is only read."""

    def judge(self, row: Existing) -> None:
        """The verdict is right, and the file is as it was."""
        with place() as here:
            content = encoded_backup()
            here.backup.write_bytes(content)
            words = ("--backup", str(here.backup), *row.arguments)
            over = commanded(here, *words, KEY="a key")
            self.assertEqual(here.backup.read_bytes(), content)
        self.assert_verdict(over, row.verdict, row.says, act=row.act)


# --- What a command is given ----------------------------------------------------------

PASSWORD = f"p@ss w/{SECRET}'\"\\é"
# What a command may do with what it is given, and what it finds of the drill's files.
TELLS = """
env
env >&2
python3 -c 'import os; print(repr(os.environ["PGPASSWORD"]), [*os.environ.items()])'
! grep -rq Krokodil "$(dirname "$BACKUP_FILE")" || exit 5
exit 3
"""
# Notes the variables, and what the database is to which the project's code connects.
NOTE = """
env > '{here}/given'
"$MANAGE" shell -c "
from django.db import connection
cursor = connection.cursor()
cursor.execute('SELECT current_database(), count(*) FROM pg_class')
print(cursor.fetchone())" > '{here}/asked' 2>&1;
"""


class EnvironmentTests(Case):
    """A command is told of one database, in all ways, and of no other."""

    def test_password(self) -> None:
        """A command that tells all that it was given does not make the drill tell."""
        with place() as here:
            words = (*LIVE, "--verbose", "--backup-command", TELLS)
            how = {"DATABASE_URL": url(small()), "PGPASSWORD": PASSWORD}
            over = drilled(here, *words, settings="aidscope.settings", **how)
        says = ("the backup command says:", "exited with 3", "PGPASSWORD=[REDACTED]")
        self.assert_verdict(over, "failed", *says, ":[REDACTED]@", act="creation")

    def test_cut_password(self) -> None:
        """Of what a command tells, the end is shown, but no end of a password."""
        end = PASSWORD[-4:]
        rest = drill.MOST_SHOWN - len(end.encode())
        tells = f"printf %s \"$PGPASSWORD\"; printf '%0{rest}d' 0; exit 3"
        with place() as here:
            words = (*LIVE, "--verbose", "--backup-command", tells)
            how = {"DATABASE_URL": url(small()), "PGPASSWORD": PASSWORD}
            over = drilled(here, *words, settings="aidscope.settings", **how)
        self.assert_verdict(over, "failed", "exited with 3", act="creation")
        self.assertNotIn(f"{end}0", over.said)

    def test_backup(self) -> None:
        """In a rehearsal it is told of the scratch source, in the project's folder."""
        how = {**settings_of(small(), PGDATABASE="x"), "kind": ProjectWithoutApps}
        with place() as here:
            words = ("-k", "creation", "--backup-command", NOTE + DUMP)
            over = commanded(here, *words, **how)
            given, asked = noted(here)
        self.assert_verdict(over, "passed")
        name = given["PGDATABASE"]
        self.assertRegex(name, r"\Abackup_drill_[0-9a-f]{16}_source\Z")
        self.assertIn(f"({name!r}, ", asked)
        self.assertRegex(given["DATABASE_URL"], f"^postgresql://postgres:?@/{name}[?]")
        self.assertEqual(given["PGHOST"], str(here.home.data))
        self.assertEqual(given["PWD"], str(ROOT))

    def test_restore(self) -> None:
        """It gets no word of the server of the settings."""
        how = {"PGAPPNAME": "told", "PGSSLMODE": "prefer", "PGPASSWORD": PASSWORD}
        with place() as here, known_contents():
            words = ("--live", "--backup-command", DUMP, "--restore-command")
            over = commanded(here, *words, NOTE + LOAD, alone=True, **how)
            given, asked = noted(here)
        self.assert_verdict(over, "passed")
        words = {name for name in given if name.startswith("PG")}
        names = {"PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS"}
        # Scripts want one, though that server asks for none.
        self.assertEqual(words, {*names, "PGPASSWORD"})
        self.assertEqual(Path(given["PGHOST"]).parent, Path(given["MANAGE"]).parent)
        self.assertNotIn(SECRET, str(given))
        self.assertIn(f"({kept()!r}, ", asked)


def noted(here: Place) -> tuple[dict[str, str], str]:
    """The variables that a command has noted, and the answer of the project's code."""
    lines = (here.folder / "given").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if "=" in line)
    return given, (here.folder / "asked").read_text()


# --- Checks ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Check(Row):
    """A check, and a pattern of the verdict on it."""

    sql: str
    verdict: str


TO_XML = "query_to_xml(word, true, true, '')"
CHECKS = (
    Check("true", "SELECT count(*) = 300 FROM kept", "passed"),
    Check("true, with a comment", "SELECT true -- so", "passed"),
    Check("false", "SELECT false", "not true"),
    Check("NULL", "SELECT max(id) > 5 FROM kept WHERE false", "not true"),
    Check("no row", "SELECT true WHERE false", "not true"),
    Check("two rows", "VALUES (true), (true)", "21000: .*"),
    Check("two columns", "SELECT true, false", "42601: .*"),
    Check("true, with its end", "SELECT true;", "passed"),
    Check("a number", "SELECT 1", "not true"),
    Check("a row that is no number", "SELECT word::int = 1 FROM kept", "22P02 .*"),
    Check("no such column", "SELECT nothing FROM kept", "42703: .*"),
    Check("two statements", "SELECT true; SELECT true", "42601 .*"),
    Check("a command of psql's", r"\! touch hacked", "42601 .*"),
    Check("a variable of psql's", "SELECT :'check' <> ''", "42601 .*"),
    Check("a deletion", "DELETE FROM kept RETURNING true", "42601 .*"),
    Check("a function that writes", "SELECT public.writes()", "25006: .*"),
    Check("a value of a sequence", "SELECT nextval('kept_id_seq') > 0", "25006: .*"),
    Check("a function that raises a row", "SELECT public.raises()", "P0001 .*"),
    Check("a table named by a row", "SELECT word::regclass > 0 FROM kept", "42P01 .*"),
    Check("a parameter", "SELECT current_setting(word) = '' FROM kept", "42704 .*"),
    Check("no such table", "SELECT true FROM nothing", "42P01: .*"),
    Check("a query in a row", f"SELECT {TO_XML} IS NULL FROM kept", "42601 .*"),
    Check(
        "a file named by a row", "SELECT pg_read_file(word) > '' FROM kept", "58P01 .*"
    ),
)
FUNCTIONS = """
CREATE FUNCTION public.writes() RETURNS boolean LANGUAGE plpgsql AS
$$BEGIN DELETE FROM public.kept; RETURN true; END$$;
CREATE FUNCTION public.raises() RETURNS boolean LANGUAGE plpgsql AS
$$BEGIN RAISE '%', (SELECT max(word) FROM public.kept); END$$
"""


@cache
def checked() -> Ended:
    """A run with all these checks."""
    checks = [word for row in CHECKS for word in ("--check", row.sql)]
    with place() as here, database(f"{KEPT};{FUNCTIONS}") as source:
        return commanded(here, *LIVE, *checks, source=source)


class CheckCase(Case):
    """A run with checks of which some fail."""

    def assert_checked(self, over: Ended, check: str, pattern: str) -> None:
        """The verdict on a check is on record, and is told unless it has passed."""
        says = "a check of the restored database failed"
        self.assert_verdict(over, "failed", says, act="restore")
        verdict = over.report["checks"][check]
        self.assertRegex(verdict, rf"\A{pattern}\Z")
        told = f"\n  {check}: {verdict}\n" in over.said
        self.assertEqual(told, verdict != "passed")


class CheckTests(CheckCase, table=CHECKS):
    """A check is one boolean, which is true."""

    def judge(self, row: Check) -> None:
        """It ends so, and nothing else happens."""
        self.assert_checked(checked(), row.sql, row.verdict)
        self.assertFalse((ROOT / "hacked").exists())

    def test_no_end(self) -> None:
        """A check that does not end is an error."""
        run = limited(server_in_process().run, LIMIT)
        restored = replace(server_in_process(), name=kept(), run=run)
        with self.assertRaisesRegex(drill.NotJudged, "with --timeout"):
            drill.verdict_on_check(restored, "SELECT pg_sleep(600) IS NULL")


# --- Management commands --------------------------------------------------------------


@dataclass(frozen=True)
class Managed(Row):
    """A command, and a pattern of the verdict on it."""

    command: str
    verdict: str


FIELD = "from django.db.models import IntegerField; IntegerField()"
RAISES_COMMAND_ERROR = "from django.core.management import CommandError as E; raise E"
MANAGED = (
    Managed("unknown", "nosuch", "CommandError: Unknown command: 'nosuch'.*"),
    Managed("failing", "migrate --check", ".*"),
    # What one has printed before it fails is not shown.
    Managed(
        "failing behind rows",
        "dumpdata contenttypes auth",
        r"CommandError \(in .*",
    ),
    # What an exception says may be a value.
    Managed(
        "failing with a value",
        f"shell -c \"raise ValueError('{SECRET[::-1]}'[::-1])\"",
        r"ValueError \(in .*",
    ),
    Managed(
        "failing with a value that Django quotes",
        f"shell -c \"{FIELD}.clean('{SECRET[::-1]}'[::-1], None)\"",
        r"ValidationError \(in .*",
    ),
    Managed(
        "failing with a value that is a key",
        f"shell -c \"{{}}['{SECRET[::-1]}'[::-1]]\"",
        r"KeyError \(in .*see what it says: --verbose",
    ),
    Managed(
        "failing with a value that is no module",
        f"shell -c \"__import__('{SECRET[::-1]}'[::-1])\"",
        r"ModuleNotFoundError \(in .*see what it says: --verbose",
    ),
    Managed(
        "failing with a value in words of its own",
        f"shell -c \"{RAISES_COMMAND_ERROR}('{SECRET[::-1]}'[::-1])\"",
        r"CommandError \(in .*see what it says: --verbose",
    ),
    Managed("good", "check", "passed"),
)


@cache
def managed_all() -> Ended:
    """A run with all these commands."""
    with database(CONTENT_TYPES) as name:
        return managed(*(row.command for row in MANAGED), source=name)


class ManageTests(CheckCase, table=MANAGED):
    """Management commands work on the restored database, and must succeed."""

    def judge(self, row: Managed) -> None:
        """The verdict on it is on record, and is told with its reason if it failed."""
        name = f"manage.py {row.command}"
        over = managed_all()
        self.assert_checked(over, name, f"(?s:{row.verdict})")
        has_passed = over.report["checks"][name] == "passed"
        self.assertEqual(has_passed, row.verdict == "passed")

    def test_success(self) -> None:
        """They may write there: the configured database stays as it is."""
        over = managed_well()
        self.assert_verdict(over, "passed")
        self.assertEqual({*over.report["checks"].values()}, {"passed"})
        tables = query(small(), "SELECT relname FROM pg_class WHERE relkind = 'r'")
        self.assertNotIn(("django_migrations",), tables)

    def test_printed(self) -> None:
        """With --verbose, what one prints past Django is shown, too."""
        self.assert_said(managed_well(), "manage.py shell says:", "7" * 9)

    def test_daemon(self) -> None:
        """What one leaves running in a session of its own is ended."""
        self.assertEqual(
            managed_well().report["checks"][f"manage.py {LEAVES}"], "passed"
        )

    def test_words_of_a_failure(self) -> None:
        """With --verbose a command's own command is quoted whole."""
        fails = "raise ValueError(chr(10).join([str(1), str(2) * 9]))"
        command = f'"$MANAGE" shell -c "{fails}"'
        with place() as here:
            words = (*LIVE, "--verbose", "--backup-command", command)
            over = commanded(here, *words, **settings_of(small()))
        self.assert_verdict(over, "failed", "222222222", act="creation")

    def test_output(self) -> None:
        """What one's programs write goes where that of manage.py goes."""
        dumps = (
            "import subprocess; from django.db import connection;"
            " to = connection.settings_dict; subprocess.run("
            "['pg_dump', '-h', to['HOST'], '-U', to['USER'], to['NAME']])"
        )
        command = f'"$MANAGE" shell -v 0 -c "{dumps}" > "$BACKUP_FILE"'
        with place() as here:
            words = (*LIVE, "--backup-command", command)
            over = commanded(here, *words, **settings_of(small()))
        self.assert_verdict(over, "passed")

    def test_words_of_a_check(self) -> None:
        """What a command of --manage has found is shown with --verbose."""
        with place() as here:
            words = (*LIVE, "--verbose", "--manage", "migrate --plan --check")
            over = commanded(here, *words, **settings_of(small()))
        self.assert_verdict(over, "failed", "Planned operations:", act="restore")

    def test_programs_of_a_command(self) -> None:
        """What a command starts anew finds the command's database, if it reads a URL."""
        runs = "import subprocess as s, sys; s.run([sys.executable, 'manage.py', {}])"
        migrates = runs.format("'migrate', '-v0'")
        with place() as here, database("CREATE TABLE kept ()") as name:
            (here.folder / "from_file.py").write_text(
                f"import os\nos.environ.setdefault('DATABASE_URL', {url(name)!r})\n"
                "from aidscope.settings import *\n"
            )
            words = ("--live", "--manage", f'shell -c "{migrates}"')
            how = settings_of(name, "from_file", PYTHONPATH=str(here.folder))
            over = commanded(here, *words, **how)
            made = query(name, "SELECT 1 FROM pg_class WHERE relname ~ '^django'")
        self.assert_verdict(over, "passed")
        self.assertEqual(made, [])

    def test_connection_that_is_passed_over(self) -> None:
        """A command whose other connection was refused was not judged."""
        connects = (
            "from django.db.utils import ConnectionHandler as H;"
            "from django.conf import settings as s;"
            "from contextlib import suppress;"
            "d = dict(s.DATABASES['default'], NAME='postgres');"
            "h = H(dict(default=d))\n"
            "with suppress(Exception): h['default'].ensure_connection()"
        )
        with place() as here:
            words = ("--live", "--manage", f'shell -c "{connects}"')
            over = commanded(here, *words, **settings_of(small()))
        self.assert_verdict(over, "error", "connects to another database")

    def test_secrets_of_options(self) -> None:
        """Options of sessions are no argument, and in no file."""
        sees = 'ps -eo args > "{here}/seen"; cat "$MANAGE" >> "{here}/seen"'
        with place() as here:
            name = f"{url(small())}?options={quote('-c app.api_key=Krokodil')}"
            words = (*LIVE, "--backup-command", f"{sees}; {DUMP}")
            over = here.drill(*filled(here, words), url=name)
            seen = (here.folder / "seen").read_text()
        self.assert_verdict(over, "passed")
        self.assertIn("manage", seen)
        self.assertNotIn("Krokodil", seen)

    def test_refusal(self) -> None:
        """That a command would reach another database is no fault of the backup's."""
        connector = "DBBACKUP_CONNECTORS = {'default': {'NAME': 'live'}}"
        command = '"$MANAGE" dbbackup -O "$BACKUP_FILE"'
        with place() as here:
            path = here.folder / "connecting.py"
            path.write_text(f"from aidscope.settings import *\n{connector}\n")
            how = settings_of(small(), "connecting", PYTHONPATH=str(here.folder))
            words = (*LIVE, "--verbose", "--backup-command", command)
            over = commanded(here, *words, **how)
        says = "DBBACKUP_CONNECTORS names a database"
        self.assert_verdict(over, "error", says, "exited with 126", act="creation")

    def test_killed(self) -> None:
        """One that was killed says nothing of the backup."""
        kills = "shell -c 'import os; os.kill(os.getpid(), 9)'"
        self.assert_not_judged(kills, "manage.py shell exited with -9", BOUND)

    def test_killed_before(self) -> None:
        """One that was killed before its time was up did not take too long."""
        run = limited(server_in_process().run, 0.2)
        with run.started("/bin/sh", "-c", "kill -9 $$") as program:
            program.popen.wait()
            time.sleep(0.3)
            with self.assertRaises(drill.ProgramFailed):
                program.wait()

    def test_no_end(self) -> None:
        """One that does not end is an error."""
        sleeps = "shell -c 'import time; time.sleep(600)'"
        self.assert_not_judged(sleeps, "did not end within 0.4 s", LIMIT)

    def assert_not_judged(self, command: str, says: str, seconds: float) -> None:
        """The command, which has so much time, is an error."""
        run = limited(server_in_process().run, seconds)
        restored = replace(server_in_process(), name=small(), run=run)
        project = project_on(run, server(), kind=ProjectWithCommands)
        settings = {"DJANGO_SETTINGS_MODULE": "aidscope.settings"}
        with (
            patch.dict(os.environ, settings, DATABASE_URL=url(small())),
            self.assertRaisesRegex(drill.NotJudged, says),
        ):
            drill.verdict_on_manage(restored, project, command)


LEAVES = (
    'shell -c "import os;'
    " os.fork() or os.setsid() or os.execlp('sleep', 'sleep', '600')\""
)


@cache
def managed_well() -> Ended:
    """A run with commands that succeed, of which nothing is left."""
    prints = "shell -c 'print(9 * str(7))'"
    commands = ("migrate --verbosity 0", "migrate --check", prints, LEAVES)
    existing = ("--backup", str(originals() / "plain"), "--no-throwaway", "--verbose")
    return managed(*commands, arguments=existing, alone=True)


# What a model of Django's needs, but for what another one needs.
CONTENT_TYPES = f"""
CREATE TABLE django_content_type (id int, app_label text, model text);
INSERT INTO django_content_type VALUES (1, '{SECRET}', 'x')
"""


def managed(
    *commands: str,
    arguments: tuple[str, ...] = LIVE,
    source: str = "",
    alone: bool = False,
) -> Ended:
    """A run with these commands, on a project whose settings name a database."""
    words = [word for command in commands for word in ("--manage", command)]
    how = settings_of(source or small())
    with place() as here:
        return commanded(here, *arguments, *words, alone=alone, **how)


def settings_of(
    name: str, settings: str = "aidscope.settings", **environment: str
) -> dict[str, Any]:
    """What a run is told so that a project's settings name the database."""
    variables = {"DJANGO_SETTINGS_MODULE": settings, "DATABASE_URL": url(name)}
    how = {"kind": ProjectWithCommands, "database": name}
    return {**how, **variables, **environment}


# --- Told to stop ---------------------------------------------------------------------


@dataclass(frozen=True)
class Told(Row):
    """A signal that comes as a command runs, the arguments, and the act."""

    number: signal.Signals
    arguments: tuple[str, ...]
    act: str = "creation"


STARTS = "echo $$ > '{here}/waiting'; " + STAYS
WAITS = """shell -c "
import os, pathlib, time
pathlib.Path('{here}', 'waiting').write_text(str(os.getpid()))
time.sleep(600)" """
TOLD = (
    Told("SIGINT", signal.SIGINT, (*LIVE, "--backup-command", STARTS)),
    Told("SIGTERM", signal.SIGTERM, (*BACKUP, "--restore-command", STARTS), "restore"),
    Told(
        "SIGHUP",
        signal.SIGHUP,
        (*BACKUP, "--no-throwaway", "--manage", WAITS),
        "restore",
    ),
)


class ToldTests(Case, table=TOLD):
    """A signal to the drill ends a command with all its programs."""

    def judge(self, row: Told) -> None:
        """The signal is named; that nothing runs on is judged by the place."""
        with place() as here:
            copied("plain", here.backup)
            words = ("--report", str(here.report), *filled(here, row.arguments))
            with here.started(*words, url=url(small())) as process:
                here.await_stand_in(process)
                process.send_signal(row.number)
                over = here.ended(process, PROMPTLY)
        says = f"interrupted ({row.number.name})"
        self.assert_verdict(over, "error", says, act=row.act)
