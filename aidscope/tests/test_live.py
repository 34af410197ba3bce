"""The configured database is backed up as it is, and only ever read."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from threading import Event, Thread

import psycopg2

from aidscope.tests import in_process
from aidscope.tests.in_process import drilled
from aidscope.tests.support import (
    DUMP,
    DUMPS,
    NEVER_COMPARED,
    Case,
    Ended,
    Row,
    changed,
    database,
    eventually,
    everything,
    execute,
    pg_dump,
    place,
    private_server,
    query,
    role,
    rows_of_everything,
    server,
    url,
)
from scripts import test_backup_restore as drill

LIVE = ("--live", "--no-throwaway")
# Loads what `pg_dump --create` writes.
LOADS_ALL = """
dropdb "$PGDATABASE"
psql -q -v ON_ERROR_STOP=1 -d postgres -f "$BACKUP_FILE"
"""

# --- Databases that are healthy, whatever they look like ------------------------------


@dataclass(frozen=True)
class Healthy(Row):
    """What makes a database, its rows and tables, and what is not compared of it."""

    sql: str
    rows: int
    tables: int = 1
    clauses: str = ""
    uncompared: tuple[str, ...] = ()


EXTENSIONS = ("citext", "fuzzystrmatch", "hstore", "ltree", "pg_trgm", "unaccent")
# Of one database:
TOGETHER = (
    Healthy(
        "names that look like something else",
        r"""
        CREATE SCHEMA "A b";
        CREATE TABLE "A b"."COPY x (y) FROM stdin;" ("100%s" text, "
        --" text);
        INSERT INTO "A b"."COPY x (y) FROM stdin;"
        VALUES ('\.', E'\n\\.\n'), ('-- PostgreSQL database dump complete', NULL);
        CREATE VIEW "A b"."it's" AS SELECT 1 AS "%I 'b'";
        CREATE TABLE "A b"."x
        y" ("a
        ""b" text);
        COMMENT ON COLUMN "A b"."x
        y"."a
        ""b" IS 'it''s
        "a" text of
        "three lines, or so';
        CREATE TABLE "A b"."x y" ();
        INSERT INTO "A b"."x y" DEFAULT VALUES
        """,
        3,
        3,
    ),
    Healthy(
        "texts that look like something else",
        r"""
        CREATE TABLE public.kept (a text DEFAULT E'\n--\n-- PostgreSQL database dump\n',
            b text DEFAULT E'it''s "\n--\r\n', "c's" text CHECK ("c's" <> E'\n--\r\n'),
            d text DEFAULT E'complete\n--\n-- Name: q; Type: TABLE DATA; Schema: public;'
                           ' Owner: o\n--\n');
        INSERT INTO public.kept DEFAULT VALUES;
        CREATE VIEW public.v AS SELECT E'\r\n--\r\n'::text AS "a ""b"
         WHERE 'x' <> E'\n-- PostgreSQL database dump complete\n'
        """,
        1,
        1,
    ),
    Healthy(
        "names that differ by a quote",
        """
        CREATE TABLE public.ab AS SELECT 1 AS id;
        CREATE TABLE public."a""b" AS SELECT n AS id FROM generate_series(1, 2) AS n
        """,
        3,
        2,
    ),
    Healthy(
        "a view with a name of two lines, whose rows are made in no reference",
        "CREATE TABLE public.viewed AS SELECT 1;"
        'CREATE MATERIALIZED VIEW public."m;\nv" AS TABLE public.viewed',
        1,
        uncompared=("materialized view public.m; v",),
    ),
    Healthy(
        "rows of nothing but NULL",
        """
        CREATE TABLE public.void (a integer, b text);
        INSERT INTO public.void VALUES (NULL, NULL), (NULL, NULL)
        """,
        2,
    ),
    Healthy(
        "partitions by the hash of an enum",
        """
        CREATE TYPE public.mood AS ENUM ('good', 'bad');
        CREATE TABLE public.spread (m public.mood) PARTITION BY HASH (m);
        CREATE TABLE public.spread_0 PARTITION OF public.spread
           FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE public.spread_1 PARTITION OF public.spread
           FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO public.spread VALUES ('good'), ('bad'), ('good')
        """,
        3,
    ),
    Healthy(
        "extensions that were not made in the order of their names",
        ";".join(f"CREATE EXTENSION {name} SCHEMA public" for name in EXTENSIONS[::-1]),
        0,
        0,
        uncompared=tuple(f"extension {name}" for name in EXTENSIONS),
    ),
)
FORMS = (
    Healthy("a table without rows", "CREATE TABLE public.void (id integer)", 0),
    Healthy(
        "a ledger that only grows, and forbids all DDL",
        """
        CREATE TABLE public.ledger (id integer CHECK (id > 0));
        INSERT INTO public.ledger VALUES (1);
        CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE 'append only'; END$$;
        CREATE TRIGGER no BEFORE UPDATE OR DELETE ON public.ledger
           FOR EACH ROW EXECUTE FUNCTION public.no();
        ALTER TABLE public.ledger ENABLE ALWAYS TRIGGER no;
        CREATE RULE none AS ON DELETE TO public.ledger DO INSTEAD NOTHING;
        ALTER TABLE public.ledger ENABLE ALWAYS RULE none;
        CREATE FUNCTION public.none() RETURNS event_trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE 'nothing is made here'; END$$;
        CREATE EVENT TRIGGER none ON ddl_command_start EXECUTE FUNCTION public.none()
        """,
        1,
    ),
    Healthy(
        "settings that change how values are written",
        r"""
        CREATE TABLE public.kept AS
        SELECT now() AS at, interval '1 day' AS span, 0.1::float8 AS ratio,
               '\x00ff'::bytea AS raw, 1.5::money AS price;
        ALTER DATABASE {me} SET datestyle TO 'German';
        ALTER DATABASE {me} SET timezone TO 'Asia/Tokyo';
        ALTER DATABASE {me} SET intervalstyle TO 'sql_standard';
        ALTER DATABASE {me} SET bytea_output TO 'escape';
        ALTER DATABASE {me} SET extra_float_digits TO -15;
        ALTER DATABASE {me} SET standard_conforming_strings TO off;
        ALTER DATABASE {me} SET search_path TO nowhere;
        ALTER DATABASE {me} SET default_transaction_read_only TO on
        """,
        1,
    ),
    Healthy(
        "another encoding, with a name of its own, and locale",
        """
        CREATE TABLE public."привет" AS SELECT 'мир'::text AS "слово";
        CREATE INDEX "слово" ON public."привет" ("слово")
        """,
        1,
        clauses="ENCODING 'KOI8R' LC_COLLATE 'C' LC_CTYPE 'C'",
    ),
    Healthy(
        "bytes of no encoding",
        r"""
        CREATE TABLE public.kept (word text);
        INSERT INTO public.kept VALUES (convert_from('\xe9', 'SQL_ASCII'));
        DO $$BEGIN
          EXECUTE format('COMMENT ON COLUMN public.kept.word IS %L',
                         convert_from('\xe9', 'SQL_ASCII')); END$$
        """,
        1,
        clauses="ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'",
    ),
)


class HealthyCase(Case):
    """No healthy database raises an alarm."""

    def assert_healthy(self, over: Ended, *rows: Healthy) -> None:
        """It passed, and every row was compared."""
        self.assert_verdict(over, "passed")
        self.assert_facts(
            over,
            source="the configured database",
            rows=sum(row.rows for row in rows),
            tables=sum(row.tables for row in rows),
        )
        uncompared = {name for row in rows for name in row.uncompared}
        self.assertEqual({*over.not_compared}, NEVER_COMPARED | uncompared)


def session_in(name: str) -> psycopg2.extensions.connection:
    """A session of somebody else's in the database."""
    return psycopg2.connect(host=str(server().data), dbname=name, user="postgres")


TEMPORARY = """
CREATE TEMPORARY TABLE passing (
    id serial PRIMARY KEY, word text DEFAULT 'none' CHECK (word <> ''));
CREATE INDEX passing_word ON passing (word);
CREATE RULE passing_once AS ON DELETE TO passing DO INSTEAD NOTHING;
CREATE TEMPORARY VIEW passed AS SELECT word FROM passing;
CREATE FUNCTION pg_temp.pass() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN RETURN NEW; END';
CREATE TRIGGER pass BEFORE INSERT ON passing
   FOR EACH ROW EXECUTE FUNCTION pg_temp.pass();
INSERT INTO passing (word) VALUES ('a')
"""


@cache
def all_together() -> Ended:
    """A run of a database that has all of those, and temporary tables of a session."""
    sql = ";".join(row.sql for row in TOGETHER)
    with (
        place() as here,
        database(sql, name='Odd "Name" 100%') as name,
        closing(session_in(name)) as session,
    ):
        session.cursor().execute(TEMPORARY)
        session.commit()
        return drilled(here, *LIVE, "--strict", database=name)


class HealthyTogetherTests(HealthyCase, table=TOGETHER):
    """How names, texts and rows are written."""

    def judge(self, _: Healthy) -> None:
        """It is one of those that pass."""
        self.assert_healthy(all_together(), *TOGETHER)

    def test_temporary_tables(self) -> None:
        """Temporary tables of another session are no part of a backup."""
        self.assert_healthy(all_together(), *TOGETHER)

    def test_order(self) -> None:
        """What is not compared stands in one order, for one reason on one line."""
        told = ", ".join(f"extension {name}" for name in EXTENSIONS)
        self.assert_said(all_together(), f"{told} (the server makes it anew)")


class HealthyFormsTests(HealthyCase, table=FORMS):
    """What a database holds, and what is so of all of it."""

    def judge(self, row: Healthy) -> None:
        """It passes."""
        with place() as here, database(row.sql, row.clauses) as name:
            over = drilled(here, *LIVE, "--strict", database=name)
        self.assert_healthy(over, row)

    def test_sample_in_another_encoding(self) -> None:
        """The rehearsal's sample fits a server of any encoding."""
        for encoding in ("LATIN1", "SQL_ASCII"):
            clauses = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            with database(clauses=clauses) as name, place() as here:
                over = drilled(here, "-k", "creation", database=name)
                self.assert_verdict(over, "passed")


@dataclass(frozen=True)
class Whole(Row):
    """The arguments of a run of a database with every kind of object."""

    arguments: tuple[str, ...]


FORMATS = (
    Whole("directory", ("--format", "directory", "--jobs", "2")),
    Whole("custom, loaded by two", ("--format", "custom", "--jobs", "2")),
)
UNCOMPARED = {
    "foreign table extra.sand",
    "foreign table odd.dune",
    "foreign table odd.week_3",
    "index odd.broken",
    "materialized view odd.hollow",
    "materialized view odd.stale",
    "table constraint d_c_fkey on odd.d",
}


def contents_with(extensions: dict[str, str]) -> drill.Contents:
    """Contents of nothing but parts of extensions."""
    return drill.contents_from([("extension", *item) for item in extensions.items()])


@dataclass(frozen=True)
class Lacking(Row):
    """What makes a part of a database, with names for roles."""

    sql: str


# From PostgreSQL 17 on, no index is made that needs a search_path: so it comes first.
FOUND_BY_PATH = """
CREATE FUNCTION strip(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION norm(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE TABLE found AS SELECT 1 AS id, 'a'::text AS name;
CREATE {what};
CREATE OR REPLACE FUNCTION norm(text) RETURNS text
IMMUTABLE LANGUAGE sql AS 'SELECT strip($1)'
"""
# Of one database, from which a private server lacks something:
LACKING = (
    Lacking(
        "who granted a right, also to a large object",
        """
        SELECT lo_create(777);
        ALTER LARGE OBJECT 777 OWNER TO {owner}; SET ROLE {owner};
        GRANT SELECT ON LARGE OBJECT 777 TO {friend} WITH GRANT OPTION;
        SET ROLE {friend};
        GRANT SELECT ON LARGE OBJECT 777 TO {reader};
        RESET ROLE
        """,
    ),
    # None is called because its arguments fit better than those of PostgreSQL's.
    Lacking(
        "functions that are called as those of PostgreSQL",
        """
        CREATE TABLE t AS SELECT 1 AS id, 'a'::text AS name;
        CREATE INDEX ON t (lower(name));
        CREATE FUNCTION json_build_array(text, text, text) RETURNS json
        LANGUAGE sql AS 'SELECT to_json(1 / 0)';
        CREATE FUNCTION hashint4extended(integer, integer) RETURNS bigint
        LANGUAGE sql AS 'SELECT 1::bigint / 0';
        CREATE FUNCTION xor(bigint, integer) RETURNS bigint
        LANGUAGE sql AS 'SELECT 1::bigint / 0';
        CREATE OPERATOR # (FUNCTION = xor, LEFTARG = bigint, RIGHTARG = integer)
        """,
    ),
    Lacking(
        "statistics on a function that a search path finds",
        FOUND_BY_PATH.format(what="STATISTICS s ON (norm(name)), id FROM found"),
    ),
)


@cache
def privately_together() -> Ended:
    """A run of a database that has all of those, on a private server."""
    with role() as owner, role() as friend, role() as reader:
        roles = {"{owner}": owner, "{friend}": friend, "{reader}": reader}
        sql = ";".join(part.sql for part in LACKING)
        for word, name in roles.items():
            sql = sql.replace(word, name)
        with place() as here, database(sql) as name:
            return drilled(here, "--live", database=name)


class PrivateTests(Case, table=LACKING):
    """What a private server lacks is no loss."""

    def test_owners_that_another_server_was_made_by(self) -> None:
        """Nothing rests on the name of the role that a server was made by."""
        sql = "CREATE SCHEMA app; CREATE TABLE app.t AS SELECT 1 AS id"
        with place() as outer, private_server(outer.folder, maker="admin") as home:
            home.query("postgres", "CREATE ROLE postgres SUPERUSER LOGIN", "admin")
            home.query("postgres", sql, "admin")
            with place(home) as here:
                over = drilled(here, "--live", user="admin")
        self.assert_verdict(over, "passed")

    def judge(self, _: Row) -> None:
        """It is one of those that pass."""
        self.assert_verdict(privately_together(), "passed")
        self.assertTrue(privately_together().was_private)

    def test_settings_of_the_database(self) -> None:
        """A row that is allowed by its time zone alone proves no bad backup."""
        sql = """
        ALTER DATABASE {me} SET timezone TO 'Asia/Tokyo';
        SET timezone TO 'Asia/Tokyo';
        CREATE TABLE t (at timestamptz, day date, CHECK (at::date = day));
        INSERT INTO t VALUES ('2024-01-01 03:00+09', '2024-01-01')"""
        with place() as here, database(sql) as name:
            pg_dump(name, here.backup, "--create")
            over = drilled(here, "--backup", str(here.backup))
        says = ("23514 by ExecConstraints", "by ALTER DATABASE", "OPTIONS")
        self.assert_verdict(over, "error", *says, act="restore")

    def test_time_zone_and_dates_of_the_source(self) -> None:
        """They hold for what is restored, too, where values and bounds rest on them."""
        sql = """
        ALTER DATABASE {me} SET timezone TO 'Asia/Tokyo';
        ALTER DATABASE {me} SET datestyle TO 'German, DMY';
        SET timezone TO 'Asia/Tokyo';
        SET datestyle TO 'German, DMY';
        CREATE TABLE told (at date, CHECK (at::text ~ '^31.12'));
        INSERT INTO told VALUES ('2024-12-31');
        CREATE FUNCTION public.day(timestamptz) RETURNS date IMMUTABLE
        RETURN $1::date;
        CREATE TABLE t (at timestamptz, day date GENERATED ALWAYS AS (day(at)) STORED,
            CHECK (at::date = day)) PARTITION BY RANGE (at);
        CREATE TABLE t_2024 PARTITION OF t FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
        INSERT INTO t VALUES ('2024-01-01 03:00+09')"""
        with place() as here, database(sql) as name:
            self.assert_verdict(drilled(here, "--live", database=name), "passed")
            own = ("--backup-command", 'pg_dump --create --file "$BACKUP_FILE"')
            own += ("--restore-command", LOADS_ALL)
            over = drilled(here, "--live", *own, database=name)
        self.assert_verdict(over, "passed")

    def test_settings_of_an_application(self) -> None:
        """They hold for what is restored, too: a value may rest on one."""
        sql = """
        ALTER DATABASE {me} SET app.rate TO '2';
        SET app.rate TO '2';
        CREATE FUNCTION public.rated(integer) RETURNS integer IMMUTABLE
        RETURN $1 * current_setting('app.rate')::integer;
        CREATE TABLE t (i integer, r integer GENERATED ALWAYS AS (rated(i)) STORED);
        INSERT INTO t VALUES (1)"""
        with place() as here, database(sql) as name:
            over = drilled(here, "--live", database=name)
        self.assert_verdict(over, "passed")

    def test_new_sequence(self) -> None:
        """One that is made and used meanwhile is compared with what the dump has."""
        ask = f"psql -X -q -h {server().data} -U postgres"
        begins = f"{ask} -c 'CREATE TABLE new (id serial)' $name > /dev/null"
        goes_on = f"sleep 0.5; {ask} -c \"SELECT nextval('new_id_seq')\" $name"
        with place() as here, database("CREATE TABLE t AS SELECT 1") as name:
            here.stand_in("psql", f"name={name}; {begins}", "*pg_export_snapshot*")
            here.stand_in("pg_dump", f"name={name}; {goes_on} > /dev/null", DUMPS)
            over = drilled(here, *LIVE, database=name)
        self.assert_verdict(over, "passed", "sequence public.new_id_seq (it changed")

    def test_definitions_that_are_cut(self) -> None:
        """On a full disk, pg_dump loses its last lines and ends well."""
        cut = '"$REAL" "$@" | head -n -9; exit 0'
        with place() as here, database("CREATE TABLE t AS SELECT 1") as name:
            here.stand_in("pg_dump", cut, "*--section*")
            over = drilled(here, *LIVE, database=name)
        self.assert_verdict(over, "error", "last lines", "make room on the disk")

    def test_sequence_of_an_extension(self) -> None:
        """Its value is in no backup, which is told once it was called."""
        sql = """CREATE TABLE t AS SELECT 1 AS id;
        CREATE EXTENSION citext;
        CREATE SEQUENCE called;
        CREATE SEQUENCE new;
        ALTER EXTENSION citext ADD SEQUENCE called;
        ALTER EXTENSION citext ADD SEQUENCE new;
        SELECT nextval('called')"""
        with place() as here, database(sql) as name:
            over = drilled(here, *LIVE, database=name)
        self.assert_verdict(over, "passed", "value of sequence public.called")
        self.assertNotIn("public.new", over.said)

    def test_settings_of_the_role(self) -> None:
        """So it is where its role has settings that are not made there."""
        sql = """CREATE TABLE t (raw bytea CHECK (raw::text = 'a'));
        SET bytea_output TO 'escape'; INSERT INTO t VALUES ('a')"""
        with place() as here, role("SUPERUSER") as user, database(sql) as name:
            execute("postgres", f"ALTER ROLE {user} SET bytea_output TO escape")
            over = drilled(here, "--live", database=name, user=user)
        self.assert_verdict(over, "error", "23514", "OPTIONS", act="restore")

    def test_search_path_of_the_role(self) -> None:
        """It holds for what is restored, too, where checks may rely on it."""
        own = '"my,\t""own\\"'
        sql = f"CREATE SCHEMA {own}; CREATE TABLE {own}.t AS SELECT 1"
        check = "SELECT count(*) = 1 FROM t"
        with place() as here, role("SUPERUSER") as user, database(sql) as name:
            execute("postgres", f"ALTER ROLE {user} SET search_path TO {own}")
            over = drilled(here, "--live", "--check", check, database=name, user=user)
        self.assert_verdict(over, "passed")

    def test_index_on_a_function_that_a_search_path_finds(self) -> None:
        """It is lost in every backup."""
        sql = FOUND_BY_PATH.format(what="INDEX i ON found (norm(name))")
        with place() as here, database(sql) as name:
            over = drilled(here, *LIVE, database=name)
        says = "index public.i: 42883"
        self.assert_verdict(over, "failed", says, act="restore")

    def test_parts_of_extensions(self) -> None:
        """They are not compared only where their extension has another version."""
        index = {"index jobs.extra": "jobs 1.0"}
        before = contents_with({"extension jobs": "jobs 1.0", **index})
        alike = contents_with({"extension jobs": "jobs 1.0"})
        other = contents_with({"extension jobs": "jobs 1.1"})
        self.assertEqual(drill.things_of_other_versions(before, alike), frozenset())
        self.assertIn("index jobs.extra", drill.things_of_other_versions(before, other))

    def test_locale_of_another_encoding(self) -> None:
        """Where a locale is missing, the encoding is as it was."""
        clauses = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
        check = "SELECT getdatabaseencoding() = 'LATIN1'"
        with place() as here, database("CREATE TABLE t AS SELECT 1", clauses) as name:
            pg_dump(name, here.backup, "--create")
            changed(rb"(LOCALE|LC_COLLATE|LC_CTYPE) = '?C'?", rb"\1 = 'xx_XX'")(
                here.backup
            )
            words = ("--backup", str(here.backup), "--check", check)
            over = drilled(here, *words)
        self.assert_verdict(over, "passed", "a locale is missing here")


class EveryKindTests(Case, table=FORMATS):
    """In each format every object, table and row comes back."""

    def judge(self, row: Whole) -> None:
        """It is whole, and what it brings back is what was there."""
        options, _ = drill.parsed(["--timeout", "60", *LIVE, *row.arguments])
        run = replace(in_process.server().run, options=options)
        source = replace(in_process.server(), name=everything(), run=run)
        backup = drill.written_backup(source)
        self.assertEqual(backup.format.name, row.arguments[1])
        reading, problems = drill.read_whole(backup, source)
        self.assertEqual(problems, [])
        self.assertEqual(in_process.said_by_restore(backup, reading), "")

    def test_whole_run(self) -> None:
        """So it does in a process of its own, and what no backup carries is named."""
        with place() as here:
            over = here.drill("--live", url=url(everything()))
        self.assert_verdict(over, "passed", "The backup restores.")
        counts = rows_of_everything().values()
        self.assert_facts(over, format="plain", rows=sum(counts), tables=len(counts))
        self.assert_facts(over, pending_migrations=[])
        self.assertLess(UNCOMPARED, {*over.not_compared})
        self.assertTrue(over.was_private)

    def test_subscription(self) -> None:
        """One is restored on a server that goes with it."""
        sql = """
        CREATE TABLE public.kept ();
        CREATE SUBSCRIPTION news CONNECTION 'host=127.0.0.1 port=1 password=Krokodil'
        PUBLICATION news WITH (connect = false)
        """
        with place() as here, database(sql) as name:
            over = drilled(here, "--live", "--strict", database=name, alone=True)
        self.assert_verdict(over, "passed")
        self.assertIn("whether subscriptions are enabled", over.not_compared)


class NothingTests(Case):
    """A database without a table proves nothing."""

    def test_no_table(self) -> None:
        """It is an error that names the database."""
        with place() as here, database("CREATE SEQUENCE public.s") as name:
            over = drilled(here, *LIVE, database=name)
        self.assert_verdict(over, "error", name, "no table", act="creation")


# --- A database in use ----------------------------------------------------------------

KEPT = """
CREATE TABLE public.kept (id bigserial PRIMARY KEY, word text);
CREATE SEQUENCE public.ticket;
INSERT INTO public.kept (word) SELECT md5(n::text) FROM generate_series(1, 9) AS n;
CREATE INDEX kept_word ON public.kept (word);
GRANT SELECT ON public.kept TO PUBLIC
"""
NEW_TABLE = """
DO $$BEGIN
    EXECUTE format('CREATE TABLE public.t%s (id serial)', nextval('public.ticket'));
END$$
"""


@dataclass(frozen=True)
class Writing(Row):
    """Statements that are run all the while."""

    statements: tuple[str, ...]


WRITING = (
    Writing(
        "rows that come and go, ahead of their sequence; one set back and forth",
        (
            "INSERT INTO public.kept (word) SELECT n FROM generate_series(1, 50) AS n",
            "DELETE FROM public.kept WHERE id % 3 = 0",
            "SELECT setval('public.ticket', 1 + (random() * 1000)::integer)",
            "INSERT INTO public.kept (id) SELECT 10000000 + (random() * 10000000)::int",
            "SELECT pg_sleep(0.002)",
            "DELETE FROM public.kept WHERE id >= 10000000",
        ),
    ),
    Writing(
        "a table that is emptied, and others that are new",
        (
            "TRUNCATE public.kept RESTART IDENTITY",
            NEW_TABLE,
            "SELECT pg_sleep(0.02)",
            "INSERT INTO public.kept (word) VALUES ('a'), ('b'), ('c')",
        ),
    ),
)


class InUseTests(Case, table=WRITING):
    """A database that is written to all the while compares equal."""

    def judge(self, row: Writing) -> None:
        """The drill passes, and much was written."""
        with (
            place() as here,
            database(KEPT) as name,
            busy(name, row.statements) as written,
        ):
            over = drilled(here, *LIVE, database=name)
            self.assertGreater(next(written), 10)
        self.assert_verdict(over, "passed")

    def test_table_that_is_filled_anew(self) -> None:
        """A backup lacks its rows, the old and the new ones, which is told."""
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        with (
            place() as here,
            database(KEPT) as name,
            closing(session_in(name)) as session,
            session.cursor() as cursor,
        ):
            cursor.execute("TRUNCATE kept; INSERT INTO kept (word) VALUES ('new')")
            with here.started(*LIVE, url=url(name)) as process:
                self.assertTrue(eventually(lambda: query(name, waiting)))
                session.commit()
                over = here.ended(process)
        says = "rows of table public.kept (truncated beside the dump, which has none"
        self.assert_verdict(over, "passed", says)


@contextmanager
def busy(name: str, statements: tuple[str, ...]) -> Iterator[Iterator[int]]:
    """Run the statements in two threads, over and over; each round takes a number."""
    over = Event()
    done = count()

    def write() -> None:
        session = session_in(name)
        session.autocommit = True
        with closing(session), session.cursor() as cursor:
            while not over.is_set():
                for statement in statements:
                    cursor.execute(statement)
                next(done)
                time.sleep(0.005)

    threads = [Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        over.set()
        for thread in threads:
            thread.join()


# --- Rights ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Right(Row):
    """What a role that owns nothing may not do with a database, and what is said."""

    sql: str
    says: tuple[str, ...]


RIGHTS = (
    Right(
        "to read a table",
        "CREATE TABLE public.secret (id integer)",
        ("permission denied", "secret"),
    ),
    Right(
        "to read a sequence",
        "CREATE SEQUENCE public.secret",
        ("permission denied", "secret"),
    ),
    Right(
        "to see every row",
        """
        CREATE TABLE public.secret (id integer);
        GRANT SELECT ON public.secret TO PUBLIC;
        ALTER TABLE public.secret ENABLE ROW LEVEL SECURITY
        """,
        ("row-level security", "secret"),
    ),
    Right(
        "to read a large object",
        "SELECT lo_from_bytea(4711, 'secret')",
        ("permission denied", "4711"),
    ),
    Right(
        "to restore for the owner",
        """
        CREATE TABLE public.kept (id integer);
        GRANT SELECT ON public.kept TO PUBLIC
        """,
        ("postgres", "--throwaway"),
    ),
)


class RightsTests(Case, table=RIGHTS):
    """A right that is missing is an error in PostgreSQL's words; reading is enough."""

    def judge(self, row: Right) -> None:
        """The run ends as an error."""
        with role("CREATEDB") as user, place() as here, database(row.sql) as name:
            over = drilled(here, *LIVE, database=name, user=user)
        self.assert_verdict(over, "error", *row.says)

    def test_owner(self) -> None:
        """An ordinary role drills with what it owns, and with a trusted extension."""
        made = "CREATE EXTENSION citext SCHEMA public"
        over = drilled_by_owner(made, "CREATE TABLE kept (word public.citext)")
        self.assert_verdict(over, "passed")

    def test_owner_of_too_little(self) -> None:
        """Rights that PostgreSQL does not let a role take are not lost silently."""
        made = "REVOKE EXECUTE ON FUNCTION pg_sleep FROM PUBLIC"
        over = drilled_by_owner(made, "CREATE TABLE kept ()")
        self.assert_verdict(over, "error", "some rights", "--throwaway", act="restore")

    def test_reader(self) -> None:
        """A role that can only read drills with others' objects, and makes nothing.

        What pg_dump leaves out for any role but a superuser is named.
        """
        with (
            role("IN ROLE pg_read_all_data") as user,
            role() as keeper,
            place() as here,
            database(KEPT) as name,
        ):
            execute(name, f"{MAPPED}; ALTER TABLE public.kept OWNER TO {keeper}")
            before = query(name, STATE)
            over = drilled(here, "--live", database=name, user=user)
            self.assertEqual(before, query(name, STATE))
        self.assert_verdict(over, "passed")
        self.assert_facts(over, rows=9)
        self.assertTrue(over.was_private)
        self.assertIn("subscriptions, options of user mappings", over.not_compared)


def drilled_by_owner(made: str, own: str) -> Ended:
    """A run of a role on its database, in which it has made a table itself."""
    with role("CREATEDB") as user, place() as here, database(made) as name:
        execute("postgres", f"ALTER DATABASE {name} OWNER TO {user}")
        server().query(name, own, user)
        over = drilled(here, *LIVE, database=name, user=user)
        execute(name, "DROP TABLE kept")
        execute("postgres", f"ALTER DATABASE {name} OWNER TO postgres")
    return over


# A superuser alone sees the options.
MAPPED = """
CREATE FOREIGN DATA WRAPPER w;
CREATE SERVER s FOREIGN DATA WRAPPER w;
CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (password 'Krokodil')
"""
# What changes when anything is made in a database, or beside it.
STATE = """
SELECT (SELECT count(*) FROM pg_class),
       (SELECT max(oid::bigint) FROM pg_class),
       (SELECT max(oid::bigint) FROM pg_database),
       (SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables)
"""


# --- Changes of the restored database, and of the backup ------------------------------


@dataclass(frozen=True)
class Spoiled(Row):
    """What is done to the restored database, and what is said."""

    spoil: str
    says: tuple[str, ...]
    drill: tuple[str, ...] = ()
    program: str = "psql"  # that has loaded it
    sql: str = KEPT


# See damage.sql: the sum of XORs of their hashes stays the same.
PERSONS = """
CREATE TABLE public.person AS
SELECT n AS id,
       (ARRAY['anna', 'ben', 'carla', 'david', 'emma', 'finn', 'greta', 'hans'])
       [1 + n % 8] || '.' || n || '@example.org' AS mail
  FROM generate_series(1, 20000) AS n
"""
ISLAND = """
CREATE FOREIGN DATA WRAPPER afar;
CREATE SERVER island FOREIGN DATA WRAPPER afar OPTIONS (host 'Krokodil!')
"""
SPOILED = (
    Spoiled(
        "all sorts of things, in plain",
        """
        UPDATE public.other SET word = 'other' WHERE id = 5;
        DELETE FROM public.kept WHERE id = 5;
        SELECT setval('public.kept_id_seq', 4);
        ALTER TABLE public.kept OWNER TO pg_monitor;
        DROP INDEX public.kept_word
        """,
        (
            "table public.other: rows with hash ",
            "expected  table public.kept: 9 rows",
            "found     table public.kept: 8 rows",
            "found     sequence public.kept_id_seq: 4",
            "found     table public.kept: owner: pg_monitor",
            "expected  index public.kept_word",
        ),
        sql=f"{KEPT}; CREATE TABLE public.other AS SELECT * FROM public.kept",
    ),
    Spoiled(
        "a row, a grant, the mails of two persons and an option, in custom",
        """
        DELETE FROM public.kept WHERE id = 5;
        REVOKE SELECT ON public.kept FROM PUBLIC;
        UPDATE public.person AS a SET mail = b.mail FROM public.person AS b
         WHERE a.id IN (1799, 9967) AND b.id = 1799 + 9967 - a.id;
        ALTER SERVER island OPTIONS (SET host 'Krokodil')
        """,
        (
            "found     table public.kept: 8 rows",
            "expected  acl public.TABLE kept",
            "found     table public.person: rows with hash ",
            "found     server island: ",
        ),
        ("--format", "custom"),
        sql=f"{KEPT}; {PERSONS}; {ISLAND}",
    ),
    Spoiled(
        "an index, in a directory",
        "DROP INDEX public.kept_word",
        ("expected  index public.kept_word",),
        ("--format", "directory", "--jobs", "2"),
        "pg_restore",
    ),
)


class SpoiledTests(Case, table=SPOILED):
    """A change of the restored database is seen, whatever the backup's format is."""

    def judge(self, row: Spoiled) -> None:
        """The difference is named."""
        with place() as here, database(row.sql) as name:
            here.spoil(row.spoil, row.program)
            over = drilled(here, *LIVE, *row.drill, database=name)
        fact = "the restored database differs from its source"
        self.assert_verdict(over, "failed", fact, *row.says, act="restore")


@dataclass(frozen=True)
class Faulty(Row):
    """What is done to what pg_dump wrote, in the shell's words, and what is said."""

    damage: str
    says: str
    drill: tuple[str, ...] = ()


FAULTY = (
    Faulty(
        "the rows of a table are left out",
        r"""exec sed -i '/^COPY public.kept/,/^\\\.$/d' "$target" """,
        "expected  table public.kept: 9 rows",
    ),
    Faulty(
        "the end of the file is lost",
        'exec truncate --size=-600 "$target"',
        "PostgreSQL database dump complete",
    ),
    Faulty(
        "a byte of the data of a directory is another",
        """
        file=$(ls -S "$target"/*.dat.gz | head -n 1)
        exec dd if=/dev/zero of="$file" bs=1 seek=40 count=1 conv=notrunc status=none
        """,
        "pg_restore exited with 1",
        ("--format", "directory", "--jobs", "2"),
    ),
    Faulty(
        "the end of an archive is lost",
        'exec truncate --size=-20 "$target"',
        "pg_restore exited with 1",
        ("--format", "custom"),
    ),
)


class FaultyDumpTests(Case, table=FAULTY):
    """Validation reads the data of a backup, in whichever format."""

    def judge(self, row: Faulty) -> None:
        """Validation fails, and names the fault."""
        with place() as here, database(KEPT) as name:
            here.stand_in("pg_dump", DUMP + row.damage, DUMPS)
            over = drilled(here, *LIVE, *row.drill, database=name)
        self.assert_verdict(over, "failed", row.says, act="validation")
