"""A failure says that the backup is bad, an error that it could not be judged.

shop      a healthy backup, with the version and the locale of its source
damaged   a copy of it that something was done to
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aidscope.tests import in_process
from aidscope.tests.in_process import drilled, made, verdict_on_load
from aidscope.tests.support import (
    CLIENTS,
    DUMP,
    DUMPS,
    LOADS,
    NUMBERS,
    READS,
    Case,
    Ended,
    Place,
    Row,
    Server,
    below_comment,
    changed,
    copied,
    database,
    folder,
    owner,
    pg_dump,
    place,
    private_server,
    programs,
    role,
    small,
    started_server,
    system_programs,
    version,
)
from scripts import test_backup_restore as drill

Change = Callable[[Path], None]

# --- A backup, and what is done to it -------------------------------------------------

SHOP = """
CREATE SCHEMA shop;
CREATE EXTENSION hstore SCHEMA public;
CREATE TYPE shop.kind AS ENUM ('new', 'used');
CREATE TYPE shop.size AS ENUM ('small', 'wide');
CREATE FUNCTION shop.twice(integer) RETURNS integer LANGUAGE sql AS 'SELECT 2 * $1';
CREATE FUNCTION shop.size() RETURNS shop.size LANGUAGE plpgsql AS
$$BEGIN RETURN 'wide'; END$$;
CREATE TABLE shop.article (id integer PRIMARY KEY, name text NOT NULL UNIQUE,
    price integer CHECK (price > 0), kind shop.kind);
CREATE TABLE shop.sale (article integer REFERENCES shop.article, span int4range,
    EXCLUDE USING gist (span WITH &&));
INSERT INTO shop.article VALUES (1, 'hat', 10, 'new'), (2, 'coat', 20, 'used');
INSERT INTO shop.sale VALUES (1, '[1,5)'), (2, '[7,9)');
CREATE VIEW shop.double AS SELECT id, shop.twice(price) FROM shop.article;
CREATE VIEW shop.named AS
SELECT name, count(*) FROM shop.article JOIN shop.sale ON article = id GROUP BY id;
CREATE FUNCTION shop.full() RETURNS boolean LANGUAGE plpgsql AS
$$BEGIN
    IF (SELECT count(*) FROM shop.sale) < 2 THEN RAISE 'Krokodil'; END IF;
    RETURN true;
END$$;
CREATE MATERIALIZED VIEW shop.checked AS SELECT shop.full();
CREATE TABLE shop.visit (who text) PARTITION BY RANGE (who);
CREATE TABLE shop.visit_1 PARTITION OF shop.visit FOR VALUES FROM ('a') TO ('m');
CREATE INDEX visit_who ON shop.visit (who);
CREATE PUBLICATION news FOR TABLE shop.article;
SELECT lo_from_bytea(4711, 'six bytes')
"""
FOOTER = b"--\n-- PostgreSQL database dump complete"
SALE_2 = b"2\t[7,9)\n"


@cache
def shop() -> Path:
    """A backup of the shop; that tells its locale, too."""
    with database(SHOP) as name:
        return pg_dump(name, folder() / "shop", "--create")


def entry(kind: bytes, name: bytes) -> bytes:
    """The pattern of one of pg_dump's entries."""
    begins = rb"--\n-- Name: %s; Type: %s; " % (re.escape(name), kind)
    return begins + rb".*?(?=--\n-- (Name|Data for|Post))"


def without(kind: bytes, name: bytes) -> Change:
    """What leaves an entry out."""
    return changed(entry(kind, name), b"")


def twice(kind: bytes, name: bytes) -> Change:
    """What puts an entry in a second time."""
    return changed(entry(kind, name), rb"\g<0>\g<0>")


def replaced(old: bytes, new: bytes) -> Change:
    """What replaces bytes."""
    return changed(re.escape(old), new.replace(b"\\", rb"\\"))


def added(sql: str, kind: str = "VIEW", name: str = "v") -> Change:
    """What adds an entry at the end."""
    entry = below_comment(f"{sql}\n\n\n", kind, name, "postgres")
    return replaced(FOOTER, entry.encode() + FOOTER)


def judged(
    here: Place, *changes: Change, arguments: tuple[str, ...] = (), **how: Any
) -> Ended:
    """A run with a copy of the backup that was changed, on the server of the place."""
    shutil.copy(shop(), here.backup)
    for change in changes:
        change(here.backup)
    words = ("--backup", str(here.backup), "--no-throwaway", *arguments)
    return drilled(here, *words, **how)


def loaded(*changes: Change) -> Exception | None:
    """What the load of a copy of the backup that was changed raises."""
    path = folder() / f"shop_{next(NUMBERS)}"
    shutil.copy(shop(), path)
    for change in changes:
        change(path)
    backup = drill.adopted_backup(path, in_process.server().run)
    reading, problems = drill.read_whole(backup, in_process.server())
    assert not problems, problems
    return verdict_on_load(backup, reading)


def without_extension(path: Path) -> None:
    """Leave the extension and its comment out."""
    without(b"EXTENSION", b"hstore")(path)
    without(b"COMMENT", b"EXTENSION hstore")(path)


OTHER_MAJOR = changed(rb"(Dumped from database version )\d+", rb"\g<1>9")
OTHER_LOCALE = replaced(b" LOCALE = 'C'", b" LOCALE = 'xx_XX.utf8'")

# --- What only the content of a backup can cause --------------------------------------


@dataclass(frozen=True)
class Bad(Row):
    """How a backup is damaged, the code with the function, and where it is found."""

    damage: Change
    cause: str
    found: str


ALWAYS = (
    Bad(
        "a value that its type does not allow",
        replaced(b"\t10\tnew", b"\tKrokodil\tnew"),
        "22P02",
        "table data shop.article",
    ),
    Bad(
        "a row that is short of a column",
        replaced(b"2\tcoat\t20\tused", b"2\tKrokodil"),
        "22P04",
        "table data shop.article",
    ),
    Bad("a schema twice", twice(b"SCHEMA", b"shop"), "42P06", "schema shop"),
    Bad("a table twice", twice(b"TABLE", b"sale"), "42P07", "table shop.sale"),
    Bad(
        "a column twice",
        replaced(b"    price integer", b"    price integer,\n    price integer"),
        "42701",
        "table shop.article",
    ),
    Bad(
        "a function twice",
        twice(b"FUNCTION", b"full()"),
        "42723",
        "function shop.full()",
    ),
    Bad("a type twice", twice(b"TYPE", b"kind"), "42710", "type shop.kind"),
    Bad(
        "no value where there must be one",
        replaced(b"1\that\t", b"1\t\\N\t"),
        "23502",
        "table data shop.article",
    ),
    Bad(
        "a reference to nothing",
        replaced(b"1\that\t10\tnew\n", b""),
        "23503",
        "fk constraint shop.sale sale_article_fkey",
    ),
    Bad(
        "rows that a function of its own raises at",
        replaced(SALE_2, b""),
        "P0001:exec_stmt_raise",
        "materialized view data shop.checked",
    ),
)
ON_SAME_MAJOR = (
    Bad(
        "no SQL", replaced(b"CREATE VIEW", b"CREATE VEIW"), "42601", "view shop.double"
    ),
    Bad("no table", without(b"TABLE", b"sale"), "42P01", "table data shop.sale"),
    Bad(
        "no column",
        replaced(b"    price integer,\n", b""),
        "42703",
        "table shop.article",
    ),
    Bad("no schema", without(b"SCHEMA", b"shop"), "3F000", "type shop.kind"),
    Bad(
        "no extension",
        without(b"EXTENSION", b"hstore"),
        "42704:get_extension_oid",
        "comment EXTENSION hstore",
    ),
    Bad(
        "no publication",
        without(b"PUBLICATION", b"news"),
        "42704:AlterPublication",
        "publication table shop.news article",
    ),
    Bad(
        "no primary key, which a view needs",
        without(b"CONSTRAINT", b"article article_pkey"),
        "42803",
        "rule shop.named _RETURN",
    ),
    Bad(
        "no primary key, which a reference needs",
        changed(
            entry(b"CONSTRAINT", b"article article_pkey")
            + rb"(?P<between>.*?)"
            + entry(b"RULE", b"named _RETURN"),
            rb"\g<between>",
        ),
        "42830",
        "fk constraint shop.sale sale_article_fkey",
    ),
    Bad(
        "an index on what is a view",
        replaced(b"ON ONLY shop.visit ", b"ON ONLY shop.double "),
        "42809",
        "index shop.visit_who",
    ),
    Bad(
        "a partition that is not attached",
        without(b"TABLE ATTACH", b"visit_1"),
        "55000:ATExecAttachPartitionIdx",
        "index attach shop.visit_1_who_idx",
    ),
)
WITH_SAME_EXTENSIONS = (
    Bad(
        "no function",
        without(b"FUNCTION", b"twice(integer)"),
        "42883",
        "view shop.double",
    ),
    Bad(
        "no type of a column",
        without(b"TYPE", b"kind"),
        "42704:typenameType",
        "table shop.article",
    ),
    Bad(
        "no type that a function returns",
        without(b"TYPE", b"size"),
        "42704:compute_return_type",
        "function shop.size()",
    ),
)
IN_SAME_LOCALE = (
    Bad(
        "a key twice",
        replaced(b"2\tcoat\t", b"2\that\t"),
        "23505",
        "constraint shop.article article_name_key",
    ),
    Bad(
        "a row that a CHECK forbids",
        replaced(b"1\that\t10", b"1\that\t-10"),
        "23514",
        "table data shop.article",
    ),
    Bad(
        "rows that exclude each other",
        replaced(SALE_2, b"2\t[4,9)\n"),
        "23P01",
        "constraint shop.sale sale_span_excl",
    ),
    Bad(
        "bounds that hold nothing",
        replaced(b"FROM ('a') TO ('m')", b"FROM ('m') TO ('a')"),
        "42P17",
        "table attach shop.visit_1",
    ),
)


class BadCase(Case):
    """A backup is damaged; so it is bad, unless its place can have caused the error."""

    pattern: str
    blamed: tuple[Change, ...] = ()  # where it is bad nevertheless
    excused: tuple[Change, ...] = ()  # where its place can have caused the error
    hint = ""

    def judge(self, row: Bad) -> None:
        """It is bad, in the entry that is damaged; an error where it is excused."""
        said = f"{row.found}: {row.cause[:5]}"
        verdict = loaded(row.damage, *self.blamed)
        self.assert_raised(verdict, drill.BackupIsBad, said)
        if self.excused:
            verdict = loaded(row.damage, *self.excused)
            self.assert_raised(verdict, drill.NotJudged, said, self.hint)

    def assert_all_caused(self, rows: tuple[Bad, ...]) -> None:
        """Each code, and each function that must have reported it, is in a row."""
        causes = " ".join(row.cause for row in rows)
        positive = re.sub(r"\(\?!.*?\)", "", self.pattern)
        for part in re.findall("[0-9A-Z]{5}|[a-zA-Z_]{9,}|22", positive):
            self.assertIn(part, causes)


class AlwaysBadTests(BadCase, table=ALWAYS):
    """What is bad wherever it is restored, and whatever version wrote it."""

    pattern = drill.BLAMED_ALWAYS
    blamed = (OTHER_MAJOR, OTHER_LOCALE)

    def test_whole_runs(self) -> None:
        """What a load raises is what a run ends with, in its last act."""
        bad = ALWAYS[0]
        with place() as here:
            failed = judged(here, bad.damage)
            error = judged(here, MISSING[0].change)
        self.assert_verdict(failed, "failed", bad.cause, bad.found, act="restore")
        hint = MISSING[0].hint
        self.assert_verdict(error, "error", "42704", hint, act="restore")

    def test_all(self) -> None:
        """The program has no pattern that is not here."""
        self.assert_all_caused(ALWAYS)

    def test_healthy(self) -> None:
        """The backup that is not damaged passes, there as well."""
        self.assertIsNone(loaded())
        with place() as here:
            over = judged(here, OTHER_MAJOR, OTHER_LOCALE)
        self.assert_verdict(over, "passed", "a locale is missing here")


class BadOnSameMajorTests(BadCase, table=ON_SAME_MAJOR):
    """What is bad on the version that wrote it; another one may lack something."""

    pattern = drill.BLAMED_ON_SAME_MAJOR
    blamed = (OTHER_LOCALE,)
    excused = (OTHER_MAJOR,)
    hint = "use the versions of PostgreSQL and of its extensions"

    def test_all(self) -> None:
        """The program has no pattern that is not here."""
        self.assert_all_caused(ON_SAME_MAJOR)


class BadWithSameExtensionsTests(BadCase, table=WITH_SAME_EXTENSIONS):
    """What is bad with the extensions of its source; other versions may lack it."""

    pattern = drill.BLAMED_WITH_SAME_EXTENSIONS
    blamed = (OTHER_LOCALE, without_extension)
    excused = (OTHER_LOCALE,)
    hint = "use the versions of PostgreSQL and of its extensions"

    def test_all(self) -> None:
        """The program has no pattern that is not here."""
        self.assert_all_caused(WITH_SAME_EXTENSIONS)


class BadInSameLocaleTests(BadCase, table=IN_SAME_LOCALE):
    """What is bad in the locale of its source; texts have another order elsewhere."""

    pattern = drill.BLAMED_IN_SAME_ORDER
    blamed = (OTHER_MAJOR,)
    excused = (OTHER_LOCALE,)
    hint = "texts may have another order here"

    def test_all(self) -> None:
        """The program has no pattern that is not here."""
        self.assert_all_caused(IN_SAME_LOCALE)


@dataclass(frozen=True)
class Order(Row):
    """The clauses of a source's locale, and whether its order is known elsewhere."""

    locale: str
    is_known: bool


ORDERS = (
    Order(
        "C", "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc", True
    ),
    Order(
        "C by --create", " ENCODING = 'UTF8' LOCALE_PROVIDER = libc LOCALE = 'C'", True
    ),
    Order("a language's", " ENCODING = 'UTF8' LC_COLLATE = 'en_US.utf8'", False),
    Order(
        "ICU's",
        "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'sv'",
        False,
    ),
    Order("nobody knows which", "", False),
)


class OrderTests(Case, table=ORDERS):
    """Texts are taken to have the same order by their bytes, or on one server."""

    def judge(self, row: Order) -> None:
        """Another server has another library, which may order otherwise."""
        nothing = drill.Run(None, Path(), 0, {}), "", {}, {}, None
        there = drill.Database(*nothing, locale=row.locale)
        here = replace(there, private=True)
        backup = drill.Backup(Path(), drill.UNREAD, "", 0, first_reading=there)
        self.assertIs(drill.has_same_order(backup, here), row.is_known)
        backup = replace(backup, source=there)
        self.assertIs(drill.has_same_order(backup, here), row.is_known)
        self.assertTrue(drill.has_same_order(backup, there))
        other = replace(here, locale="another")
        self.assertFalse(drill.has_same_order(backup, other))


# --- What the place of the restore can cause ------------------------------------------


@dataclass(frozen=True)
class Healthy(Row):
    """What a healthy backup holds besides, what is said, and what to do."""

    change: Change
    says: str
    hint: str = ""


NOBODY = "ALTER SCHEMA shop OWNER TO nobody_here;"
MISSING = (
    Healthy("a role", added(NOBODY), "42704", "a server with the role"),
    Healthy(
        "a role, as the session's",
        added("SET SESSION AUTHORIZATION nobody_here;"),
        "22023",
        "a server like the source's, with its roles",
    ),
    Healthy(
        "a role that only a function names",
        added(
            "CREATE FUNCTION public.f() RETURNS int LANGUAGE plpgsql AS"
            f" $$BEGIN EXECUTE replace('{NOBODY}', 'body', 'where'); END$$;\n"
            "CREATE MATERIALIZED VIEW public.m AS SELECT public.f();"
        ),
        "42704",
        "a server with the role",
    ),
    Healthy(
        "a tablespace",
        added("CREATE TABLE public.t () TABLESPACE nowhere;"),
        "42704",
        "use a server with the tablespace",
    ),
    Healthy(
        "a tablespace, as the default",
        added("SET default_tablespace = nowhere;"),
        "22023: invalid value for parameter",
        "a server like the source's",
    ),
    Healthy(
        "an extension",
        added("CREATE EXTENSION nowhere;"),
        'extension "nowhere" is not available',
        "where the server runs",
    ),
    Healthy(
        "a version of an extension",
        added("CREATE EXTENSION citext VERSION '99';"),
        "22023",
        "a server like the source's",
    ),
    Healthy(
        "an extension that an extension needs",
        added("CREATE EXTENSION earthdistance SCHEMA shop;", "EXTENSION"),
        "42704",
        "",
    ),
    Healthy(
        "a schema in which an extension may be",
        added("DROP EXTENSION plpgsql CASCADE; CREATE EXTENSION plpgsql SCHEMA shop;"),
        "0A000",
        "a server like the source's",
    ),
    Healthy(
        "a schema, of an extension",
        added("CREATE EXTENSION citext SCHEMA nowhere;", "EXTENSION"),
        "3F000",
        "",
    ),
    Healthy(
        "a library",
        added(
            "CREATE FUNCTION public.f() RETURNS int LANGUAGE c"
            " AS '$libdir/nowhere', 'f';"
        ),
        "58P01",
        "where the server runs",
    ),
    Healthy(
        "a function of a library",
        added(
            "CREATE FUNCTION public.f() RETURNS int LANGUAGE c"
            " AS '$libdir/hstore', 'nowhere';"
        ),
        "42883",
        "where the server runs",
    ),
    Healthy(
        "the file of a dictionary",
        added(
            "CREATE TEXT SEARCH DICTIONARY public.d"
            " (template = simple, stopwords = nowhere);"
        ),
        "F0000",
        "where the server runs",
    ),
    Healthy(
        "the provider of a label",
        added("SECURITY LABEL FOR nowhere ON TABLE shop.sale IS 'Krokodil';"),
        "22023",
        "a server like the source's",
    ),
    Healthy(
        "a locale",
        added("CREATE COLLATION public.c (locale = 'xx_XX.utf8');"),
        "22023: could not create locale",
        "install the locale where the server runs",
    ),
    Healthy(
        "a collation",
        added('CREATE TABLE public.t (x text COLLATE pg_catalog."xx_XX.utf8");'),
        "42704",
        "install the locale where the server runs",
    ),
    Healthy(
        "a setting", added("SET shape = 1;"), 'parameter "shape"', "use a newer server"
    ),
)
IN_THE_WAY = (
    Healthy(
        "an extension",
        added("CREATE EXTENSION plpgsql;", "EXTENSION"),
        "42710",
        "",
    ),
    Healthy(
        "a function that an extension brings",
        added(
            "CREATE FUNCTION shop.soundex(text) RETURNS text LANGUAGE sql"
            " AS 'SELECT $1';\nCREATE EXTENSION fuzzystrmatch SCHEMA shop;",
            "EXTENSION",
        ),
        "42723",
        "",
    ),
    Healthy(
        "an end of the query",
        added(
            "CREATE MATERIALIZED VIEW public.m AS"
            " SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(9) IS NULL AS x;"
        ),
        "57014",
        "allow more time with --timeout",
    ),
    Healthy(
        "an end of the session",
        added(
            "CREATE MATERIALIZED VIEW public.m AS"
            " SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(9) IS NULL AS x;"
        ),
        "psql exited with 2\n  psql:<stdin>:",
        "terminating connection due to administrator command\n  run again",
    ),
    Healthy(
        "SQL behind the end of the backup",
        replaced(FOOTER + b"\n--\n", FOOTER + b"\n--\n\nSELECT public.f();\n"),
        "42883",
        "",
    ),
)


class HealthyCase(Case):
    """A backup is healthy, but cannot be restored here: it could not be judged."""

    def judge(self, row: Healthy) -> None:
        """It is an error that says what to do, though version and locale are right."""
        verdict = loaded(row.change)
        self.assert_raised(verdict, drill.NotJudged, row.says, row.hint)


class MissingTests(HealthyCase, table=MISSING):
    """The server lacks something."""

    def test_rights(self) -> None:
        """An ordinary role may not make what a superuser owned."""
        with role("CREATEDB") as user, place() as here:
            over = judged(here, user=user)
        self.assert_verdict(over, "error", "42501", "a role with more rights")

    def test_locale_of_the_database(self) -> None:
        """With --strict no other is taken in its place."""
        with place() as here:
            over = judged(here, OTHER_LOCALE, arguments=("--strict",))
        self.assert_verdict(over, "error", "xx_XX", "install the locale", act="restore")


class InTheWayTests(HealthyCase, table=IN_THE_WAY):
    """Something is in the way."""


# --- What is said ---------------------------------------------------------------------

RAISE = """
CREATE FUNCTION public.f() RETURNS int LANGUAGE plpgsql AS
$$BEGIN RAISE {level} 'Krokodil' USING ERRCODE = '{code}'; RETURN 1; END$$;
CREATE MATERIALIZED VIEW public.m AS SELECT public.f();
"""


@dataclass(frozen=True)
class Told(Row):
    """What is done to a backup, the verdict, and what is said of it."""

    change: Change
    verdict: str
    says: str


WORDS = (
    Told(
        "a relation that sounds like a fault of the disk",
        added('CREATE VIEW public.v AS TABLE public."No space left on device";'),
        "failed",
        '42P01: relation "public.No space left on device" does not exist',
    ),
    Told(
        "a relation that sounds like a start",
        added('CREATE VIEW public.v AS TABLE public."the server is starting up";'),
        "failed",
        "42P01",
    ),
    Told(
        "a value as an INSERT's column",
        added('INSERT INTO shop.sale VALUES (1, "Krokodil");', "TABLE DATA"),
        "failed",
        "42703 by errorMissingColumn: a column that is missing",
    ),
    Told(
        "a value that a view casts",
        added("CREATE MATERIALIZED VIEW public.m AS SELECT 'Krokodil'::int AS x;"),
        "failed",
        "22P02",
    ),
    Told(
        "a value in an error that is raised with a code of its own",
        added(RAISE.format(level="EXCEPTION", code="23505")),
        "failed",
        "23505 by exec_stmt_raise: a duplicate key",
    ),
    Told(
        "a value in an error that is raised with a code of the place's",
        added(RAISE.format(level="EXCEPTION", code="53100")),
        "error",
        "53100 by exec_stmt_raise: its message may quote a value",
    ),
    Told(
        "a value in a warning",
        added(RAISE.format(level="WARNING", code="22012"), "FUNCTION", "f()"),
        "passed",
        "",
    ),
    Told(
        "an error behind a warning",
        added(f"{RAISE.format(level='WARNING', code='22012')}\n{NOBODY}"),
        "error",
        'role "nobody_here" does not exist',
    ),
    Told(
        "another key of the restriction",
        replaced(b"\n\\unrestrict ", b"\n\\unrestrict x"),
        "failed",
        "it holds a command for psql, or its end is cut",
    ),
)
GERMAN = (
    Told("a role", added(NOBODY), "error", "a server with the role"),
    Told("a table", without(b"TABLE", b"sale"), "failed", "42P01"),
    Told(
        "room for locks",
        added("\n".join(f"CREATE TABLE public.t{n} ();" for n in range(1500))),
        "error",
        "max_locks_per_transaction",
    ),
)


class WordsTests(Case, table=WORDS):
    """Codes decide, not words; and no value of a row is shown."""

    def judge(self, row: Told) -> None:
        """The restore ends as the row says."""
        if row.verdict == "passed":
            with place() as here:
                over = judged(here, row.change)
            self.assert_verdict(over, "passed", row.says, act="restore")
            return
        kinds = {"failed": drill.BackupIsBad, "error": drill.NotJudged}
        self.assert_raised(loaded(row.change), kinds[row.verdict], row.says)

    def test_passwords(self) -> None:
        """What looks like a password is not shown, and changes no verdict."""
        secrets = ("role", "psql", "ERROR", "2", "22", "1", ":")
        damage = replaced(b"\t10\tnew", b"\tKrokodil\tnew")
        with place() as here:
            failed = judged(here, damage, secrets=secrets)
            error = judged(here, added(NOBODY), secrets=secrets)
        self.assert_verdict(failed, "failed", "table data shop.article", act="restore")
        self.assert_verdict(error, "error", "use a server with the", act="restore")
        self.assertIn("[REDACTED]", failed.said)


class GermanTests(Case, table=GERMAN):
    """A small server that speaks German lacks something."""

    def judge(self, row: Told) -> None:
        """The restore ends as the row says."""
        with place(german_server()) as here:
            over = judged(here, row.change)
        self.assert_verdict(over, row.verdict, row.says, act="restore")


@cache
def german_server() -> Server:
    """A server that speaks German, if its messages are installed."""
    home = folder() / "german"
    home.mkdir()
    settings = "lc_messages = 'C.UTF-8'\nmax_locks_per_transaction = 10\n"
    settings += "max_wal_senders = 0\nmax_worker_processes = 0\nmax_connections = 10\n"
    return started_server(home, settings, LANGUAGE="de")


@dataclass(frozen=True)
class Hinted(Row):
    """What a program says, which cannot be caused here, and what to do about it."""

    hint: str


HINTED = (
    Hinted("psql: error: ... FATAL:  password authentication failed for x", "password"),
    Hinted("could not connect to server: Connection timed out", "host and port"),
    Hinted('FATAL:  no pg_hba.conf entry for host "10.0.0.1"', "sslmode"),
    Hinted("FATAL:  unsupported startup parameter: options", "not its pooler"),
    Hinted("pg_dump: error while loading shared libraries: libzstd", "lacks a library"),
    Hinted("[Errno 13] Permission denied: '/srv/nightly.dump'", "let the account"),
    Hinted("[Errno 2] No such file or directory: 'xz'", "xz-utils"),
    Hinted("[Errno 2] No such file or directory: '/srv/starting'", ""),
    Hinted("cannot open /srv/the database system/starting.sql", ""),
)


class HintTests(Case, table=HINTED):
    """What programs say without a code is told with what to do."""

    def judge(self, row: Hinted) -> None:
        """The hint is there, or there is none."""
        hint = drill.hint_for(row.words)
        self.assertIn(row.hint, hint)
        self.assertEqual(bool(hint), bool(row.hint))


# --- What programs do -----------------------------------------------------------------


@dataclass(frozen=True)
class Behaviour(Row):
    """The shell's commands that a program does, and how the run ends in which act."""

    program: str
    body: str
    verdict: str
    act: str
    says: str
    drill: tuple[str, ...] = ("--live", "--no-throwaway")


LIVE = ("--live", "--no-throwaway")
SHORT = (*LIVE, "--timeout", "2")
CREATION = ("-k", "creation")
REHEARSAL: tuple[str, ...] = ()
MOMENTS = {"pg_dump": DUMPS, "psql": LOADS, "pg_restore": READS}
PG_DUMP = (
    Behaviour(
        "hangs with a child",
        "pg_dump",
        "sleep 600 & sleep 600",
        "error",
        "creation",
        "pg_dump did not end within 2 s",
        SHORT,
    ),
    Behaviour(
        "fails",
        "pg_dump",
        "echo 'pg_dump: error: it rains' >&2; exit 3",
        "error",
        "creation",
        "pg_dump exited with 3\n  pg_dump: error: it rains",
    ),
    Behaviour(
        "finds no room",
        "pg_dump",
        "echo 'pg_dump: error: write: No space left on device' >&2; exit 1",
        "error",
        "creation",
        "No space left on device\n  make room on the disk",
    ),
    Behaviour(
        "is killed",
        "pg_dump",
        "kill -9 $$",
        "error",
        "creation",
        "pg_dump exited with -9\n  a signal ended it\n  run again",
    ),
    Behaviour(
        "ends well and writes nothing",
        "pg_dump",
        "exit 0",
        "failed",
        "creation",
        "wrote only 0 bytes",
        REHEARSAL,
    ),
    Behaviour(
        "ends well and its file is empty",
        "pg_dump",
        f'{DUMP}: > "$target"; exit',
        "failed",
        "creation",
        "wrote only 0 bytes",
        REHEARSAL,
    ),
    Behaviour(
        "warns",
        "pg_dump",
        "echo 'pg_dump: warning: it rains' >&2",
        "passed",
        "creation",
        "pg_dump: warning: it rains",
        (*LIVE, *CREATION),
    ),
)
# It reads the archive well for validation; at the load it is killed in a row.
KILLED_LATER = """
mkdir "$PLACE/was_read" 2> /dev/null && exec "$REAL" "$@"
"$REAL" "$@" | head -n 60; printf 7
kill -9 $$
"""
LOADERS = (
    Behaviour(
        "psql fails and tells no code",
        "psql",
        "echo 'it rains' >&2; exit 3",
        "error",
        "restore",
        "psql exited with 3\n  it rains",
    ),
    Behaviour(
        "psql fails by a fault of its own",
        "psql",
        "echo 'out of memory' >&2; exit 1",
        "error",
        "restore",
        "psql exited with 1\n  out of memory",
    ),
    Behaviour(
        "psql fails by itself with a code in what it says",
        "psql",
        "echo 'psql:<stdin>:1: ERROR:  22P02: it rains' >&2; exit 1",
        "error",
        "restore",
        "psql exited with 1",
    ),
    Behaviour(
        "psql is killed",
        "psql",
        "kill -9 $$",
        "error",
        "restore",
        "psql exited with -9",
    ),
    Behaviour(
        "psql ends well and loads nothing",
        "psql",
        "cat > /dev/null; exit 0",
        "failed",
        "restore",
        "expected  index public.kept_id\n",
    ),
    Behaviour(
        "pg_restore is killed",
        "pg_restore",
        "kill -9 $$",
        "error",
        "validation",
        "pg_restore exited with -9",
    ),
    Behaviour(
        "pg_restore is killed while psql loads what it reads",
        "pg_restore",
        KILLED_LATER,
        "error",
        "restore",
        "pg_restore exited with -9",
    ),
    Behaviour(
        "pg_restore fails",
        "pg_restore",
        "echo 'pg_restore: error: it rains' >&2; exit 1",
        "error",
        "validation",
        "pg_restore exited with 1\n  pg_restore: error: it rains",
    ),
    Behaviour(
        "pg_restore finds damage",
        "pg_restore",
        "echo 'pg_restore: error: could not find header for file' >&2; exit 1",
        "failed",
        "validation",
        "pg_restore: error: could not find header for file",
    ),
    Behaviour(
        "pg_restore was built without a compression",
        "pg_restore",
        "echo 'pg_restore: error: this build does not support compression with"
        " zstd' >&2; exit 1",
        "error",
        "validation",
        "that are built with it",
    ),
)


class BehaviourCase(Case):
    """A program that does not do its work does not pass for one that does."""

    def judge(self, row: Behaviour) -> None:
        """The run ends as the row says."""
        words = row.drill
        with place() as here:
            here.stand_in(row.program, row.body, MOMENTS[row.program])
            if row.program != "pg_dump":
                form = "plain" if row.program == "psql" else "custom"
                path = copied(form, here.backup)
                words = ("--backup", str(path), "--no-throwaway")
            alone = row.drill == SHORT  # the child ends with the group of the run
            over = drilled(here, *words, database=small(), alone=alone)
        self.assert_verdict(over, row.verdict, row.says, act=row.act)


class DumpBehaviourTests(BehaviourCase, table=PG_DUMP):
    """What pg_dump does when it writes the backup."""


start = drill.Deadline.start


def started_later_for_psql(deadline: drill.Deadline) -> None:
    """Give psql a second more than others, so that it is never the first to be killed."""
    if Path(deadline.popen.args[0]).name == "psql":
        deadline.interval += 1
    start(deadline)


class LoaderBehaviourTests(BehaviourCase, table=LOADERS):
    """What psql does when it loads, and pg_restore when it reads."""

    def test_sed_is_killed(self) -> None:
        """What leaves lines out of the load has cut it, and nobody else has."""
        with place() as here:
            pg_dump(small(), here.backup, "--create")
            sed = here.bin / "sed"
            sed.write_text("#!/bin/sh\nhead -c 4000\nkill -9 $$\n")
            sed.chmod(0o755)
            over = drilled(here, "--backup", str(here.backup))
        self.assert_verdict(over, "error", "sed exited with -9", act="restore")

    def test_gzip_is_out_of_time(self) -> None:
        """It is killed a moment before psql, which then has half a row."""
        with place() as here:
            copied("gzip", here.backup)
            gzip = here.bin / "gzip"
            gzip.write_text(
                f"#!/bin/sh\ncd {here.folder}\nmkdir validation 2> /dev/null ||"
                f" mkdir load 2> /dev/null || {{\n"
                f"{shutil.which('gzip')} $* | head -n 60; printf 7; exec sleep 60; }}\n"
                f"exec {shutil.which('gzip')} $*\n"
            )
            gzip.chmod(0o755)
            with patch.object(drill.Deadline, "start", started_later_for_psql):
                over = drilled(here, "--backup", str(here.backup), "--timeout", "3")
        says = "gzip did not end within 3 s"
        self.assert_verdict(over, "error", says, act="restore")


# --- The drill's own checks -----------------------------------------------------------

compare = drill.differences_of_facts
Lines = set[drill.Fact]


def comparison_without(pattern: str) -> Callable[[Lines, Lines], list[Any]]:
    """A comparison that does not see what lines with such a text say."""

    def blind(expected: Lines, found: Lines) -> list[Any]:
        unseen = {line for line in expected ^ found if re.search(pattern, line[1])}
        return compare(expected - unseen, found - unseen)

    return blind


class BlindReading(drill.Reading):
    """A reading that finds no problem."""

    problems = property(lambda _: [], lambda *_: None)


@dataclass(frozen=True)
class Control(Row):
    """What makes one of the program's checks blind, and what is said then."""

    target: object
    name: str
    blind: object
    act: str
    says: str


OF_ROWS = r"^rows with hash \w+$"
NODE = "table backup_drill.node"
CONTROLS = (
    Control(
        "the reader",
        drill,
        "Reading",
        BlindReading,
        "validation",
        "the drill's own control failed\n  the reader",
    ),
    Control(
        "the reader of rows",
        drill.Reading,
        "take_block",
        lambda *_: None,
        "validation",
        "the drill's own control failed\n  the reader took cut data",
    ),
    Control(
        "the checksum",
        drill,
        "problems_of_checksum",
        lambda *_: [],
        "validation",
        "the drill's own control failed\n  the checksum",
    ),
    Control(
        "the comparison of values",
        drill,
        "differences_of_facts",
        comparison_without(OF_ROWS),
        "restore",
        "saw no change of a value",
    ),
    Control(
        "the hash of rows",
        drill,
        "ROWS",
        drill.ROWS.replace("(%5$s, %1$s)", "(0, 0)"),
        "restore",
        "saw no change of a value",
    ),
    Control(
        "the comparison of one table",
        drill,
        "differences_of_facts",
        lambda *sides: compare(*(drill.without(side, {NODE}) for side in sides)),
        "restore",
        "saw no change of a value of table backup_drill.node",
    ),
    Control(
        "the comparison of definitions",
        drill,
        "differences_of_facts",
        comparison_without(r"^(?!.* rows$|in order$|rows with hash )"),
        "restore",
        "saw no change of a definition",
    ),
    Control(
        "the comparison of names",
        drill,
        "differences_of_facts",
        comparison_without("^in order$"),
        "restore",
        "saw no change of a name",
    ),
    Control(
        "all comparison",
        drill,
        "differences_of_facts",
        lambda *_: [],
        "restore",
        "the drill's own comparison",
    ),
)


class ControlTests(Case, table=CONTROLS):
    """A drill with a check that is blind does not pass: it finds that out."""

    def judge(self, row: Control) -> None:
        """It is an error of the check's."""
        found = drill.contents_from(made().facts, made().definitions)
        with (
            patch.object(row.target, row.name, row.blind),
            self.assertRaises(drill.NotJudged) as raised,
        ):
            if row.act == "validation":
                drill.require_damage_seen(made().reading)
            else:
                drill.require_differences_seen(made().restored, found)
        self.assertIn(row.says, str(raised.exception))

    def test_whole_runs(self) -> None:
        """Each run does that, in both acts."""
        for row in (CONTROLS[0], CONTROLS[-1]):
            with place() as here, patch.object(row.target, row.name, row.blind):
                path = str(copied("plain", here.backup))
                over = drilled(here, "--backup", path, "--no-throwaway")
            self.assert_verdict(over, "error", row.says, act=row.act)


# --- Programs and their versions ------------------------------------------------------


@dataclass(frozen=True)
class Versions(Row):
    """Which programs are on PATH, by how many majors they are newer, and the end."""

    newer: dict[str, int]
    verdict: str
    says: str
    drill: tuple[str, ...] = ()
    real: str = ""  # where the real ones are besides: usual folders, behind on PATH


STRICT = ("--strict",)
BOTH = STRICT + CREATION
OLDER = dict.fromkeys(CLIENTS, -1)
NEWER = dict.fromkeys(CLIENTS, 1)
VERSIONS = (
    Versions("none", {}, "skipped", "apt-get install postgresql-client"),
    Versions("none, strict", {}, "error", "found: none", STRICT),
    Versions(
        "psql alone is missing",
        {"pg_dump": 0, "pg_restore": 0},
        "error",
        "missing: pg_dump, psql, pg_restore\n  found: none",
    ),
    Versions("only older", OLDER, "error", "apt-get install postgresql-client"),
    Versions("only newer", NEWER, "passed", "newer programs are used", CREATION),
    Versions("only newer, strict", NEWER, "error", "\n  found: ", STRICT),
    Versions("newer before the right ones", NEWER, "passed", "", BOTH, "usual"),
    Versions("older before the right ones", OLDER, "passed", "", BOTH, "behind"),
)
USUAL = re.compile("(usr|opt|Applications)/")
SPEAKS = '[ "$*" = --version ] && echo "pg_dump (PostgreSQL) {version}" && exit'


class VersionTests(Case, table=VERSIONS):
    """The programs fit the server, or the drill says what is needed."""

    def judge(self, row: Versions) -> None:
        """The run ends as the row says, whatever else is on this machine."""
        major = int(version().partition(".")[0])
        with place() as here:
            for name in set(CLIENTS) - row.newer.keys():
                (here.bin / name).unlink()
            for name, newer in row.newer.items():
                tells = SPEAKS.format(version=f"{major + newer}.3")
                here.stand_in(name, "", before=tells)
            path = [here.bin, tools()]
            if row.real == "behind":
                path.insert(1, programs())
            find = drill.FIND_PROGRAMS
            if row.real != "usual":
                find = USUAL.sub("nowhere/", find)
            with patch.object(drill, "FIND_PROGRAMS", find):
                over = drilled(here, *row.drill, PATH=":".join(map(str, path)))
        self.assert_verdict(over, row.verdict, row.says)
        if row.verdict == "passed":
            used = version() if row.real else f"{major + 1}.3"
            self.assert_facts(over, programs=used)
        if row.newer in (OLDER, NEWER) and row.verdict == "error":
            self.assertIn(f"missing: pg_dump, psql, pg_restore {major},", over.said)
            self.assertIn(
                f"apt-get install postgresql-client-{major}, perhaps", over.said
            )

    def test_of_no_version(self) -> None:
        """Programs that tell no version are none."""
        with place() as here:
            for name in CLIENTS:
                here.stand_in(name, "", before=SPEAKS.format(version="unknown"))
            find = USUAL.sub("nowhere/", drill.FIND_PROGRAMS)
            path = f"{here.bin}{os.pathsep}{tools()}"
            with patch.object(drill, "FIND_PROGRAMS", find):
                over = drilled(here, PATH=path)
        self.assert_verdict(over, "error", "found: none")

    def test_of_another_place(self) -> None:
        """Programs that PATH does not name, and that do not fit, are no reason to skip."""
        with place() as here:
            for name in CLIENTS:
                (here.bin / name).unlink()
            find = f"echo '{programs()}:pg_dump (PostgreSQL) 9.6.24'"
            path = f"{here.bin}{os.pathsep}{tools()}"
            with patch.object(drill, "FIND_PROGRAMS", find):
                over = drilled(here, PATH=path)
        self.assert_verdict(over, "error", "found: 9.6.24")

    def test_wrapper(self) -> None:
        """Debian's wrapper, which runs the newest version, is passed by."""
        with place() as here:
            called = here.folder / "called"
            wrapper = here.bin / "pg_wrapper"
            wrapper.write_text(f"#!/bin/sh\necho $0 >> '{called}'\n")
            wrapper.chmod(0o755)
            for name in CLIENTS:
                (here.bin / name).unlink()
                (here.bin / name).symlink_to(wrapper)
            path = f"{here.bin}{os.pathsep}{tools()}"
            over = drilled(here, "--strict", "-k", "creation", PATH=path)
            self.assertFalse(called.exists())
        self.assert_verdict(over, "passed")
        self.assert_facts(over, programs=version())


@cache
def tools() -> Path:
    """A folder with the programs of this system, but for PostgreSQL's."""
    return system_programs(folder() / "tools")


# --- Servers --------------------------------------------------------------------------

# The words of a connection, but for its options.
WITHOUT_OPTIONS = "unset PGOPTIONS"


class ServerTests(Case):
    """A server that the drill cannot work on is an error that says why."""

    def assert_no_work(self, over: Ended, *says: str) -> None:
        """The run ended in the set-up, with this said."""
        self.assert_verdict(over, "error", *says, act="set-up")
        self.assertNotIn("passed", over.acts.values())

    def test_no_connection(self) -> None:
        """What is missing or full is named in PostgreSQL's words, with what to do."""
        with place() as here, role("CREATEDB CONNECTION LIMIT 0") as full:
            missing = drilled(here, user="drill_missing")
            elsewhere = drilled(here, database="drill_missing")
            crowded = drilled(here, user=full)
        self.assert_no_work(missing, 'role "drill_missing" does not', "check the names")
        self.assert_no_work(elsewhere, '"drill_missing" does not', "check the names")
        self.assert_no_work(
            crowded, f'for role "{full}"', "raise the limit of connections"
        )

    def test_no_server(self) -> None:
        """A server that is not there is an error that says where it was looked for."""
        with place() as here:
            gone = Server(here.folder)
            over = drilled(Place(here.folder, gone), "--live")
        self.assert_no_work(over, str(here.folder), "check host and port")

    def test_ignored_options(self) -> None:
        """A pooler may ignore them, and hand on to others what a session has set."""
        with place() as here:
            here.stand_in("psql", WITHOUT_OPTIONS)
            over = drilled(here, "--live")
        self.assert_no_work(over, "options of sessions are ignored", "server itself")

    def test_no_right_to_make_databases(self) -> None:
        """A role needs it, unless the server is private."""
        with place() as here, role() as user:
            over = drilled(here, user=user)
        self.assert_verdict(
            over, "error", "permission denied to create database", "--throwaway"
        )

    def test_standby(self) -> None:
        """A standby is named; on a private server its databases are drilled."""
        with place() as here, standby(here.folder) as home:
            there = Place(here.folder, home)
            refused = drilled(there, "--live", "--no-throwaway")
            passed = drilled(there, "--live", "--strict")
        self.assert_verdict(refused, "error", "the server is a standby", "--throwaway")
        self.assert_verdict(passed, "passed", "public.hasty")
        self.assert_facts(passed, rows=3, tables=1)  # none of the unlogged table

    def test_no_temporary_folder(self) -> None:
        """A TMPDIR that is not there is not replaced by another."""
        with place() as here:
            missing = str(here.folder / "missing")
            over = drilled(here, TMPDIR=missing)
        self.assert_no_work(over, missing, "set TMPDIR")

    def test_temporary_folder_that_takes_no_server(self) -> None:
        """libpq would take a path with a comma for two hosts, and cannot take any."""
        with place() as here:
            for name in ("a,b", 'a"b', "a" * 90):
                path = here.temporary / name
                path.mkdir()
                over = drilled(here, "--throwaway", TMPDIR=str(path))
                path.rmdir()
                self.assert_no_work(over, "no server can be in", "plain TMPDIR")
            lines = here.temporary / "a\nb"
            over = drilled(here, TMPDIR=str(lines))
        self.assert_no_work(over, "has a line feed")


@contextmanager
def standby(home: Path) -> Iterator[Server]:
    """A standby with one table of three rows, and one that is unlogged."""
    with private_server(home) as made:
        made.query(
            "postgres",
            "CREATE TABLE public.kept AS SELECT generate_series(1, 3) AS id;"
            "CREATE UNLOGGED TABLE public.hasty AS SELECT 1 AS id;"
            "ALTER TABLE hasty ALTER id SET NOT NULL,"
            " ALTER id ADD GENERATED ALWAYS AS IDENTITY",
        )
        (made.data / "standby.signal").touch()
        if owner():
            shutil.chown(made.data / "standby.signal", owner()["user"])
        made.control("restart")
        yield made
