"""The configured database is backed up as it is, and only ever read."""

import json
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Event, Thread
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from aidscope.tests import server as suite
from aidscope.tests.running import (
    DrillsAhead,
    Ended,
    Place,
    drills_ahead,
    place,
    url_of,
)
from scripts import test_backup_restore as drill

numbers = count()


@contextmanager
def database(sql: str, name: str = "", clauses: str = "") -> Iterator[drill.Database]:
    """A database of the site's, in which the statements were run one by one."""
    made = drill.Database(suite.server(), name or f"site_{next(numbers)}")
    quoted = '"' + made.name.replace('"', '""') + '"'
    home = drill.maintenance(suite.server())
    suite.execute(home, f"CREATE DATABASE {quoted} TEMPLATE template0 {clauses}")
    try:
        for statement in sql.split(";\n"):
            suite.execute(made, statement.replace("{me}", quoted))
        yield made
    finally:
        suite.execute(home, f"ALTER DATABASE {quoted} RESET ALL")
        drop_subscriptions(made)
        suite.execute(home, f"DROP DATABASE {quoted} WITH (FORCE)")


def drop_subscriptions(made: drill.Database) -> None:
    """Drop what would keep the database from being dropped."""
    with drill.session(made) as cursor:
        cursor.execute("""
            SELECT quote_ident(subname)
              FROM pg_subscription
              JOIN pg_database AS d ON d.oid = subdbid
             WHERE datname = current_database()
            """)
        drill.drop_subscriptions(made, [name for (name,) in cursor.fetchall()])


def url(made: drill.Database, user: str = "postgres") -> str:
    """The DATABASE_URL of the database."""
    return url_of(quote(made.name, safe=""), user)


def drilled(
    here: Place, made: drill.Database, *arguments: str, user: str = "postgres"
) -> tuple[Ended, dict[str, Any]]:
    """A drill on the database itself, and its report."""
    report = here.folder / "report.json"
    words = ("--live", "--strict", "--report", str(report), *arguments)
    over = here.run(*words, DATABASE_URL=url(made, user))
    return over, json.loads(report.read_text())


# --- Databases that are healthy, whatever they look like ------------------------------


class Healthy(NamedTuple):
    """The statements that make a database, its rows, and what no dump of it carries."""

    sql: str
    rows: int = 0
    uncompared: tuple[str, ...] = ()
    name: str = ""
    clauses: str = ""


HEALTHY = {
    "an empty one": Healthy("SELECT 1"),
    "partitions": Healthy(
        """
CREATE TYPE public.mood AS ENUM ('good', 'bad');
CREATE TABLE public.day (d date, n integer) PARTITION BY RANGE (d);
CREATE TABLE public.day_1 PARTITION OF public.day
   FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE public.day_x PARTITION OF public.day DEFAULT PARTITION BY LIST (n);
CREATE TABLE public.day_x_1 PARTITION OF public.day_x FOR VALUES IN (1);
CREATE INDEX day_d ON public.day (d);
INSERT INTO public.day VALUES ('2024-05-01', 1), ('2026-01-01', 1)
        """,
        rows=2,
    ),
    "nothing but partitions by the hash of an enum": Healthy(
        """
CREATE TYPE public.mood AS ENUM ('good', 'bad');
CREATE TABLE public.spread (m public.mood) PARTITION BY HASH (m);
CREATE TABLE public.spread_0 PARTITION OF public.spread
   FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE public.spread_1 PARTITION OF public.spread
   FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO public.spread VALUES ('good'), ('bad'), ('good')
        """,
        rows=3,
    ),
    "such partitions beside others, and elsewhere": Healthy(
        """
CREATE TYPE public.mood AS ENUM ('good', 'bad');
CREATE FOREIGN DATA WRAPPER afar;
CREATE SERVER island FOREIGN DATA WRAPPER afar;
CREATE TABLE public.day (d integer, m public.mood) PARTITION BY RANGE (d);
CREATE TABLE public.day_1 PARTITION OF public.day FOR VALUES FROM (0) TO (9)
   PARTITION BY HASH (m);
CREATE TABLE public.day_1_0 PARTITION OF public.day_1
   FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE public.day_1_1 PARTITION OF public.day_1
   FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE public.day_2 PARTITION OF public.day FOR VALUES FROM (10) TO (19);
CREATE FOREIGN TABLE public.day_3 PARTITION OF public.day
   FOR VALUES FROM (20) TO (29) SERVER island;
INSERT INTO public.day VALUES (1, 'good'), (2, 'bad'), (3, 'good'), (11, 'bad')
        """,
        rows=4,
        uncompared=("foreign table public.day_3",),
    ),
    "children with another order of columns": Healthy(
        """
CREATE TABLE public.parent (a integer);
CREATE TABLE public.child (b text) INHERITS (public.parent);
ALTER TABLE public.parent ADD COLUMN z text DEFAULT 'z';
ALTER TABLE public.child DROP COLUMN b, ADD COLUMN c text;
INSERT INTO public.parent VALUES (1, 'x');
INSERT INTO public.child (a, z, c) VALUES (2, 'y', 'c')
        """,
        rows=2,
    ),
    "views that were not refreshed": Healthy(
        """
CREATE TABLE public.kept AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW public.stale AS SELECT id FROM public.kept;
CREATE MATERIALIZED VIEW public.hollow AS SELECT 1 AS one WITH NO DATA;
INSERT INTO public.kept VALUES (2)
        """,
        rows=2,
        uncompared=(
            "materialized view public.hollow",
            "materialized view public.stale",
        ),
    ),
    "rows that break what is not validated": Healthy(
        """
CREATE TABLE public.kept AS SELECT -1 AS id;
ALTER TABLE public.kept ADD CONSTRAINT sign CHECK (id > 0) NOT VALID
        """,
        rows=1,
    ),
    "an index that could not be built": Healthy(
        """
CREATE TABLE public.twice AS SELECT 1 AS id FROM generate_series(1, 2);
CREATE INDEX broken ON public.twice (id);
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.broken'::regclass
        """,
        rows=2,
        uncompared=("index public.broken",),
    ),
    "triggers and foreign keys that are switched off": Healthy(
        """
CREATE TABLE public.a (id integer PRIMARY KEY);
CREATE TABLE public.b (a integer REFERENCES public.a);
CREATE FUNCTION public.stop() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN RETURN NULL; END';
CREATE TRIGGER stop BEFORE INSERT ON public.b
   FOR EACH ROW EXECUTE FUNCTION public.stop();
ALTER TABLE public.b DISABLE TRIGGER ALL;
INSERT INTO public.a VALUES (1);
INSERT INTO public.b VALUES (1)
        """,
        rows=2,
        uncompared=("fk constraint public.b b_a_fkey",),
    ),
    "tables that point at each other": Healthy(
        """
CREATE TABLE public.a (id integer PRIMARY KEY, b integer);
CREATE TABLE public.b (id integer PRIMARY KEY, a integer);
INSERT INTO public.a VALUES (1, 2);
INSERT INTO public.b VALUES (2, 1);
ALTER TABLE public.a ADD FOREIGN KEY (b) REFERENCES public.b;
ALTER TABLE public.b ADD FOREIGN KEY (a) REFERENCES public.a
        """,
        rows=2,
    ),
    "a table elsewhere, and one that no crash survives": Healthy(
        """
CREATE FOREIGN DATA WRAPPER afar;
CREATE SERVER island FOREIGN DATA WRAPPER afar;
CREATE FOREIGN TABLE public.sand (grain integer) SERVER island;
CREATE UNLOGGED TABLE public.hasty AS SELECT 1 AS id
        """,
        rows=1,
        uncompared=("foreign table public.sand",),
    ),
    "large objects alone": Healthy(r"""
SELECT lo_from_bytea(4711, '\x00ff');
SELECT lo_put(lo_create(4712), 5000000, 'behind a hole');
COMMENT ON LARGE OBJECT 4711 IS 'two bytes'
        """),
    "names with dots": Healthy(
        """
CREATE SCHEMA a;
CREATE SCHEMA "a.b";
CREATE TABLE a."b.c" AS SELECT n FROM generate_series(1, 3) AS n;
CREATE TABLE "a.b".c AS SELECT n FROM generate_series(1, 5) AS n
        """,
        rows=8,
    ),
    "a ledger that only grows": Healthy(
        """
CREATE TABLE public.ledger (id integer CHECK (id > 0));
INSERT INTO public.ledger VALUES (1);
CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE 'append only'; END$$;
CREATE TRIGGER no BEFORE UPDATE OR DELETE ON public.ledger
   FOR EACH ROW EXECUTE FUNCTION public.no();
ALTER TABLE public.ledger ENABLE ALWAYS TRIGGER no;
CREATE RULE none AS ON DELETE TO public.ledger DO INSTEAD NOTHING;
ALTER TABLE public.ledger ENABLE ALWAYS RULE none
        """,
        rows=1,
    ),
    "a trigger that takes changes back": Healthy(
        """
CREATE TABLE public.kept (code text);
INSERT INTO public.kept VALUES ('a');
CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN NEW.code := OLD.code; RETURN NEW; END$$;
CREATE TRIGGER keep BEFORE UPDATE ON public.kept
   FOR EACH ROW EXECUTE FUNCTION public.keep();
ALTER TABLE public.kept ENABLE ALWAYS TRIGGER keep
        """,
        rows=1,
    ),
    "sequences of every kind": Healthy(
        """
CREATE SEQUENCE public.untouched;
CREATE SEQUENCE public.downwards INCREMENT -5;
CREATE TABLE public.kept (
    id   bigint GENERATED ALWAYS AS IDENTITY,
    old  serial,
    down integer DEFAULT nextval('public.downwards')
);
INSERT INTO public.kept DEFAULT VALUES;
SELECT setval('public.kept_old_seq', 7, false);
CREATE SEQUENCE public.round MAXVALUE 3 CYCLE;
SELECT nextval('public.round') FROM generate_series(1, 4)
        """,
        rows=1,
    ),
    "names that look like something else": Healthy(
        r"""
CREATE SCHEMA "A b";
CREATE TABLE "A b"."COPY x (y) FROM stdin;" ("100%s" text, "
--" text);
INSERT INTO "A b"."COPY x (y) FROM stdin;"
VALUES ('\.', E'\n\\.\n'), ('-- PostgreSQL database dump complete', NULL);
CREATE VIEW "A b"."it's" AS SELECT 1 AS "%I 'b'"
        """,
        rows=2,
        name='Odd "Name" 100%',
    ),
    "settings that change how values are written": Healthy(
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
        rows=1,
    ),
    "an event trigger that forbids all": Healthy(
        """
CREATE TABLE public.kept AS SELECT 1 AS id;
CREATE FUNCTION public.no() RETURNS event_trigger LANGUAGE plpgsql AS
$$BEGIN RAISE 'nothing is made here'; END$$;
CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE FUNCTION public.no()
        """,
        rows=1,
    ),
    "a subscription": Healthy(
        """
CREATE SUBSCRIPTION news CONNECTION 'host=127.0.0.1 port=1' PUBLICATION news
  WITH (connect = false)
        """,
        uncompared=("subscription news",),
    ),
    "another encoding and locale": Healthy(
        """
CREATE TABLE public."café" AS SELECT 'naïve'::text AS word;
CREATE INDEX word ON public."café" (word)
        """,
        rows=1,
        clauses="ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    ),
    "an encoding with a name of its own": Healthy(
        """
CREATE TABLE public."привет" AS SELECT 'мир'::text AS "слово"
        """,
        rows=1,
        clauses="ENCODING 'KOI8R' LC_COLLATE 'C' LC_CTYPE 'C'",
    ),
    "bytes of no encoding": Healthy(
        r"""
CREATE TABLE public.kept (word text);
INSERT INTO public.kept VALUES (convert_from('\xe9', 'SQL_ASCII'));
DO $$BEGIN
  EXECUTE format('COMMENT ON COLUMN public.kept.word IS %L',
                 convert_from('\xe9', 'SQL_ASCII')); END$$
        """,
        rows=1,
        clauses="ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'",
    ),
}


@drills_ahead
class HealthyTests(DrillsAhead):
    """No healthy database raises an alarm; what a dump cannot carry is named."""

    table: ClassVar = HEALTHY

    @staticmethod
    def drilled(row: Healthy) -> tuple[Ended, dict[str, Any], list[str]]:
        """Drill with such a database."""
        made = database(row.sql, row.name, row.clauses)
        with place() as here, made as source:
            return *drilled(here, source), here.leftovers()

    def judge_outcome(
        self, row: Healthy, outcome: tuple[Ended, dict[str, Any], list[str]]
    ) -> None:
        """It passed, every row was compared, and nothing is left."""
        over, report, leftovers = outcome
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(report["rows"], row.rows)
        self.assertEqual(report["source"], "the configured database")
        self.assertNotEqual(report["pending_migrations"], [])
        self.assertEqual(
            {*report["not_compared"]}, {*drill.NEVER_COMPARED, *row.uncompared}
        )
        self.assertEqual(leftovers, [])


# --- A database in use ----------------------------------------------------------------


WRITES = {
    "rows that come and go": """
INSERT INTO public.kept (word) SELECT md5(n::text) FROM generate_series(1, 50) AS n;
DELETE FROM public.kept WHERE id % 3 = 0
    """,
    "rows ahead of their sequence": """
INSERT INTO public.kept (id) SELECT 10000000 + (random() * 100000000)::integer;
SELECT pg_sleep(0.002);
DELETE FROM public.kept WHERE id >= 10000000
    """,
    "a sequence that is set back and forth": """
SELECT setval('public.ticket', 1 + (random() * 1000)::integer)
    """,
    "a table that is emptied": """
TRUNCATE public.kept RESTART IDENTITY;
INSERT INTO public.kept (word) VALUES ('a'), ('b'), ('c')
    """,
    "tables that are new": """
DO $$BEGIN
  EXECUTE format('CREATE TABLE public.t%s (id serial)', nextval('public.ticket')); END$$;
SELECT pg_sleep(0.05)
    """,
}


@drills_ahead
class InUseTests(DrillsAhead):
    """A database that is written to all the while compares equal."""

    table: ClassVar = WRITES

    @staticmethod
    def drilled(write: str) -> tuple[list[Ended], int]:
        """Drill twice, while others write."""
        kept = """
CREATE TABLE public.kept (id bigserial PRIMARY KEY, word text);
CREATE SEQUENCE public.ticket;
INSERT INTO public.kept (word) SELECT md5(n::text) FROM generate_series(1, 50) AS n
        """
        with place() as here, database(kept) as source, busy(source, write) as written:
            return [drilled(here, source)[0] for _ in range(2)], next(written)

    def judge_outcome(self, _write: str, outcome: tuple[list[Ended], int]) -> None:
        """Both passed, and much was written."""
        runs, written = outcome
        for over in runs:
            self.assertEqual(over.status, 0, over.said)
        self.assertGreater(written, 10)


@contextmanager
def busy(source: drill.Database, sql: str) -> Iterator[Iterator[int]]:
    """Run the SQL on two sessions, over and over; each run takes a number."""

    def write() -> None:
        with drill.session(source) as cursor:
            while not over.is_set():
                for statement in sql.split(";\n"):
                    cursor.execute(statement)
                next(done)

    over, done = Event(), count()
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


class Right(NamedTuple):
    """What a role lacks, and what is said of it."""

    sql: str
    sentence: str
    creates: bool = True  # databases


RIGHTS = {
    "to create databases": Right(
        "SELECT 1", 'role "{role}" may not create databases', creates=False
    ),
    "to read a table": Right(
        "CREATE TABLE public.secret (id integer)",
        "public.secret: the role may not read it",
    ),
    "to read a sequence": Right(
        "CREATE SEQUENCE public.secret",
        "public.secret: the role may not read it",
    ),
    "to use a schema": Right(
        """
CREATE SCHEMA secret;
CREATE TABLE secret.kept (id integer);
GRANT SELECT ON secret.kept TO PUBLIC
        """,
        "secret.kept: the role may not read it",
    ),
    "to see every row": Right(
        """
CREATE TABLE public.secret (id integer);
GRANT SELECT ON public.secret TO PUBLIC;
ALTER TABLE public.secret ENABLE ROW LEVEL SECURITY
        """,
        "public.secret: row-level security would hide rows of it",
    ),
    "to read a large object": Right(
        "SELECT lo_from_bytea(4711, 'secret')",
        "large object 4711: the role may not read it",
    ),
    "to restore for the owner": Right(
        """
CREATE TABLE public.kept (id integer);
GRANT SELECT ON public.kept TO PUBLIC
        """,
        "this role may not restore objects of other owners: postgres",
    ),
    "to restore another's schema": Right(
        "CREATE SCHEMA other",
        "this role may not restore objects of other owners: postgres",
    ),
    "to restore another's function": Right(
        "CREATE FUNCTION public.one() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "this role may not restore objects of other owners: postgres",
    ),
    "to restore another's type": Right(
        "CREATE TYPE public.mood AS ENUM ('good', 'bad')",
        "this role may not restore objects of other owners: postgres",
    ),
}


@contextmanager
def role(attributes: str) -> Iterator[str]:
    """A role with these attributes."""
    name, home = f"site_role_{next(numbers)}", drill.maintenance(suite.server())
    suite.execute(home, f"CREATE ROLE {name} LOGIN {attributes}")
    try:
        yield name
    finally:
        suite.execute(home, f"DROP ROLE {name}")


@drills_ahead
class RightsTests(DrillsAhead):
    """A right that is missing is named before any work is done."""

    table: ClassVar = RIGHTS

    @staticmethod
    def drilled(row: Right) -> tuple[Ended, list[str], str]:
        """Drill as a role that lacks the right; a pg_dump that works would be seen."""
        private = ("--throwaway",) * ("restore" not in row.sentence and row.creates)
        with (
            place() as here,
            role("CREATEDB" if row.creates else "") as name,
            database(row.sql) as source,
        ):
            here.stand_in("pg_dump", "echo 'pg_dump works' >&2", "*--file*")
            over, _ = drilled(here, source, *private, user=name)
            return over, here.leftovers(), row.sentence.format(role=name)

    def judge_outcome(self, row: Right, outcome: tuple[Ended, list[str], str]) -> None:
        """The right is named in an error, and no work was done."""
        over, leftovers, sentence = outcome
        self.assertEqual(over.status, 1, over.said)
        self.assertIn(sentence, over.stderr)
        self.assertIn("The backup could not be judged.", over.stderr)
        self.assertNotIn("pg_dump works", over.stderr)
        self.assertNotIn("Traceback", over.said)
        self.assertEqual(leftovers, [])


class OwnerTests(unittest.TestCase):
    """An ordinary role can drill with what it owns."""

    def test_extension(self) -> None:
        """The types of an extension are nobody's to restore for."""
        home = drill.maintenance(suite.server())
        made = database("CREATE EXTENSION citext SCHEMA public")
        with place() as here, role("CREATEDB") as name, made as source:
            suite.execute(home, f"ALTER DATABASE {source.name} OWNER TO {name}")
            over, report = drilled(here, source, user=name)
            suite.execute(home, f"ALTER DATABASE {source.name} OWNER TO postgres")
        self.assertEqual(over.status, 0, over.said)
        self.assertIn("extension citext", report["not_compared"])


class ReaderTests(unittest.TestCase):
    """Reading is enough."""

    def test_reader(self) -> None:
        """With --throwaway a role that can only read drills with others' objects."""
        made = database("""
CREATE TABLE public.kept AS SELECT 1 AS id;
ALTER TABLE public.kept OWNER TO drill_keeper;
GRANT SELECT ON public.kept TO drill_reader
            """)
        suite.restored()  # with its roles
        with place() as here, role("IN ROLE pg_read_all_data") as name, made as source:
            before = state_of(source)
            over, report = drilled(here, source, "--throwaway", user=name)
            after = state_of(source)
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(report["rows"], 1)
        self.assertEqual(before, after)


def state_of(source: drill.Database) -> tuple:
    """What changes when anything is made in a database, or beside it."""
    with drill.session(source) as cursor:
        cursor.execute("""
            SELECT (SELECT count(*) FROM pg_class),
                   (SELECT max(oid::bigint) FROM pg_class),
                   (SELECT array_agg(datname ORDER BY datname) FROM pg_database),
                   (SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)
                      FROM pg_stat_all_tables)
            """)
        return cursor.fetchone()


# --- Attempts to make it lie ----------------------------------------------------------

SPOIL = """
{real} "$@" || exit
while [ "$1" != --dbname ]; do shift; done
exec {psql} -X -q -h {host} -U postgres -v ON_ERROR_STOP=1 -d "$2" -c {sql}
"""
PLAIN, CUSTOM = ("--format", "plain"), ("--format", "custom")
DIRECTORY = ("--format", "directory", "--jobs", "2")


class Lie(NamedTuple):
    """What is done to the restored database behind the drill's back, and the answer."""

    form: tuple[str, ...]
    sql: str
    sentence: str


LIES = {
    "a value, in plain": Lie(
        PLAIN,
        "UPDATE public.kept SET word = 'other' WHERE id = 5",
        "table public.kept: 9 rows as expected, with other values",
    ),
    "a row, in custom": Lie(
        CUSTOM,
        "DELETE FROM public.kept WHERE id = 5",
        "table public.kept: found 8 rows, expected 9",
    ),
    "an index, in a directory": Lie(
        DIRECTORY, "DROP INDEX public.kept_word", "index public.kept_word: missing"
    ),
    "a sequence, in a directory": Lie(
        DIRECTORY,
        "SELECT setval('public.kept_id_seq', 4)",
        "sequence public.kept_id_seq: behind the values of its column",
    ),
    "a grant, in custom": Lie(
        CUSTOM,
        "REVOKE SELECT ON public.kept FROM PUBLIC",
        "acl public.TABLE kept: missing",
    ),
}
KEPT = """
CREATE TABLE public.kept (id serial PRIMARY KEY, word text);
INSERT INTO public.kept (word) SELECT md5(n::text) FROM generate_series(1, 9) AS n;
CREATE INDEX kept_word ON public.kept (word);
GRANT SELECT ON public.kept TO PUBLIC
"""


@drills_ahead
class LiesTests(DrillsAhead):
    """Whatever happens to the restored database, in whichever format, is seen."""

    table: ClassVar = LIES

    @staticmethod
    def drilled(row: Lie) -> Ended:
        """Drill with a psql or pg_restore that spoils what it has loaded."""
        program = "psql" if row.form == PLAIN else "pg_restore"
        with place() as here, database(KEPT) as source:
            here.stand_in(program, spoil(program, row.sql), "*_restored*")
            return drilled(here, source, *row.form)[0]

    def judge_outcome(self, row: Lie, outcome: Ended) -> None:
        """The difference is named, alone or first."""
        self.assertEqual(outcome.status, 1, outcome.said)
        self.assertIn(
            "BackupIsBad: the restored database differs from its source\n"
            f"  {row.sentence}",
            outcome.stderr,
        )


def spoil(program: str, sql: str) -> str:
    """The shell's commands that run the program, and then the SQL."""
    programs = suite.server().programs
    return SPOIL.format(
        real=programs[program].path,
        psql=programs["psql"].path,
        host=suite.server().settings["HOST"],
        sql=f'"{sql}"',
    )


DUMP = """
{real} "$@" || exit
while [ "$1" != --file ]; do shift; done
"""
FAULTS = {
    "the rows of a table are left out": (
        PLAIN,
        "exec sed -i '/^COPY public.kept/,/^\\\\\\.$/d' \"$2\"",
        "table public.kept: no COPY block, expected 9 rows",
    ),
    "the end of the file is lost": (
        PLAIN,
        'exec truncate --size=-600 "$2"',
        "no closing line, expected",
    ),
    "a byte of a directory's data is another": (
        DIRECTORY,
        """
file=$(ls -S "$2"/*.dat.gz | head -n 1)
exec dd if=/dev/zero of="$file" bs=1 seek=40 count=1 conv=notrunc status=none
        """,
        "pg_restore exited with 1",
    ),
    "the end of an archive is lost": (
        CUSTOM,
        'exec truncate --size=-20 "$2"',
        "pg_restore exited with 1",
    ),
}


@drills_ahead
class FaultyDumpTests(DrillsAhead):
    """Validation reads the data of a backup, in whichever format."""

    table: ClassVar = FAULTS

    @staticmethod
    def drilled(row: tuple[tuple[str, ...], str, str]) -> Ended:
        """Drill with a pg_dump that writes such a backup, and says nothing of it."""
        form, damage, _ = row
        body = DUMP.format(real=suite.server().programs["pg_dump"].path) + damage
        with place() as here, database(KEPT) as source:
            here.stand_in("pg_dump", body, "*--file*")
            return drilled(here, source, *form)[0]

    def judge_outcome(
        self, row: tuple[tuple[str, ...], str, str], outcome: Ended
    ) -> None:
        """Validation failed, and named the fault."""
        self.assertEqual(outcome.status, 1, outcome.said)
        self.assertIn("creation passed, validation failed", outcome.stderr)
        self.assertIn(row[2], outcome.stderr)


class FormatTests(unittest.TestCase):
    """Production's format can be rehearsed."""

    def test_every_kind_of_object(self) -> None:
        """Custom and directory, by two workers, bring everything back."""
        for form in (CUSTOM, DIRECTORY):
            with self.subTest(form=form), place() as here:
                over, report = drilled(here, suite.restored(), *form)
                self.assertEqual(over.status, 0, over.said)
                self.assertEqual(report["format"], form[1])
                rows = suite.backups().today.rows
                self.assertEqual(report["rows"], sum(rows.values()))
                self.assertEqual(report["tables"], len(rows))
