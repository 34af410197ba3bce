"""The configured database is backed up as it is, and only ever read."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Event, Thread

from aidscope.tests.support import (
    Case,
    Row,
    database,
    everything,
    execute,
    place,
    prepared,
    query,
    role,
    rows_of_everything,
    url,
)

# --- Databases that are healthy, whatever they look like ------------------------------

NEVER_COMPARED = {
    "roles and their passwords",
    "tablespaces",
    "settings of the database itself",
    "other databases",
}
HEALTHY = r"""
an empty one
    sql: SELECT 1
    report: {"rows": 0}
triggers and foreign keys that are switched off
    sql:
        CREATE TABLE public.a (id integer PRIMARY KEY);
        CREATE TABLE public.b (a integer REFERENCES public.a);
        CREATE FUNCTION public.stop() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN RETURN NULL; END';
        CREATE TRIGGER stop BEFORE INSERT ON public.b
           FOR EACH ROW EXECUTE FUNCTION public.stop();
        ALTER TABLE public.b DISABLE TRIGGER ALL;
        INSERT INTO public.a VALUES (1);
        INSERT INTO public.b VALUES (1)
    report: {"rows": 2}
    uncompared: table constraint b_a_fkey on public.b
a ledger that only grows, and forbids all DDL
    sql:
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
    report: {"rows": 1}
a trigger that takes changes back
    sql:
        CREATE TABLE public.kept (code text);
        INSERT INTO public.kept VALUES ('a');
        CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN NEW.code := OLD.code; RETURN NEW; END$$;
        CREATE TRIGGER keep BEFORE UPDATE ON public.kept
           FOR EACH ROW EXECUTE FUNCTION public.keep();
        ALTER TABLE public.kept ENABLE ALWAYS TRIGGER keep
    report: {"rows": 1}
rows that begin with no value
    sql:
        CREATE TABLE public.kept (a integer, b text);
        INSERT INTO public.kept VALUES (NULL, NULL), (1, 'one')
    report: {"rows": 2}
functions in the SQL standard's form
    sql:
        CREATE TABLE public.kept AS SELECT 1 AS id;
        CREATE FUNCTION public.f() RETURNS bigint LANGUAGE sql
        BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN count(*) END FROM public.kept;
        END;
        CREATE PROCEDURE public.p() LANGUAGE sql BEGIN ATOMIC END;
    report: {"rows": 1}
nothing but partitions by the hash of an enum
    sql:
        CREATE TYPE public.mood AS ENUM ('good', 'bad');
        CREATE TABLE public.spread (m public.mood) PARTITION BY HASH (m);
        CREATE TABLE public.spread_0 PARTITION OF public.spread
           FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE public.spread_1 PARTITION OF public.spread
           FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO public.spread VALUES ('good'), ('bad'), ('good')
    report: {"rows": 3}
large objects alone
    sql:
        SELECT lo_from_bytea(4711, '\x00ff');
        SELECT lo_put(lo_create(4712), 5000000, 'behind a hole');
        COMMENT ON LARGE OBJECT 4711 IS 'two bytes'
    report: {"rows": 0}
names that look like something else
    name: Odd "Name" 100%
    sql:
        CREATE SCHEMA "A b";
        CREATE TABLE "A b"."COPY x (y) FROM stdin;" ("100%s" text, "
        --" text);
        INSERT INTO "A b"."COPY x (y) FROM stdin;"
        VALUES ('\.', E'\n\\.\n'), ('-- PostgreSQL database dump complete', NULL);
        CREATE VIEW "A b"."it's" AS SELECT 1 AS "%I 'b'";
        CREATE TABLE "A b"."x
        y" ();
        CREATE TABLE "A b"."x y" ();
        INSERT INTO "A b"."x y" DEFAULT VALUES
    report: {"rows": 3}
settings that change how values are written
    sql:
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
    report: {"rows": 1}
a subscription, on a server that goes with it
    run: --throwaway
    sql:
        CREATE SUBSCRIPTION news CONNECTION 'host=127.0.0.1 port=1' PUBLICATION news
          WITH (connect = false)
    report: {"rows": 0}
another encoding and locale
    clauses: ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'
    sql:
        CREATE TABLE public."café" AS SELECT 'naïve'::text AS word;
        CREATE INDEX word ON public."café" (word)
    report: {"rows": 1}
an encoding with a name of its own
    clauses: ENCODING 'KOI8R' LC_COLLATE 'C' LC_CTYPE 'C'
    sql: CREATE TABLE public."привет" AS SELECT 'мир'::text AS "слово"
    report: {"rows": 1}
bytes of no encoding
    clauses: ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'
    sql:
        CREATE TABLE public.kept (word text);
        INSERT INTO public.kept VALUES (convert_from('\xe9', 'SQL_ASCII'));
        DO $$BEGIN
          EXECUTE format('COMMENT ON COLUMN public.kept.word IS %L',
                         convert_from('\xe9', 'SQL_ASCII')); END$$
    report: {"rows": 1}
"""


class HealthyTests(Case, table=HEALTHY):
    """No healthy database raises an alarm; what a dump cannot carry is named."""

    def judge(self, row: Row) -> None:
        """It passes, and every row is compared."""
        with prepared(row) as (here, words, how):
            over = here.drill("--live", "--strict", *words, **how)
            self.assert_row(over, Row(row, ends="passed"))
        self.assertEqual(over.report["source"], "the configured database")
        self.assertNotEqual(over.report["pending_migrations"], [])
        uncompared = {*filter(None, row["uncompared"].split(" | "))}
        self.assertEqual({*over.report["not_compared"]}, NEVER_COMPARED | uncompared)

    def test_sample_in_another_encoding(self) -> None:
        """The rehearsal's sample fits a server of any encoding."""
        for encoding in ("LATIN1", "SQL_ASCII"):
            clauses = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            with database(clauses=clauses) as name, place() as here:
                self.assert_verdict(here.drill(url=url(name)), "passed")

    def test_every_kind_of_object(self) -> None:
        """In each format every object, table and row comes back."""
        for words in (("plain",), ("directory", "--jobs", "2"), ("custom",)):
            with place() as here:
                over = here.drill("--live", "--format", *words, url=url(everything()))
            self.assert_verdict(over, "passed")
            self.assertEqual(over.report["format"], words[0])
            self.assertEqual(over.report["rows"], sum(rows_of_everything().values()))
            self.assertEqual(over.report["tables"], len(rows_of_everything()))
            self.assertEqual(over.report["pending_migrations"], [])
            self.assertLess({*UNCOMPARED.split(" | ")}, {*over.report["not_compared"]})


UNCOMPARED = (
    "foreign table extra.sand | foreign table odd.dune | foreign table odd.week_3 | "
    "index odd.broken | materialized view odd.hollow | materialized view odd.stale"
)


# --- A database in use ----------------------------------------------------------------

KEPT = """
CREATE TABLE public.kept (id bigserial PRIMARY KEY, word text);
CREATE SEQUENCE public.ticket;
INSERT INTO public.kept (word) SELECT md5(n::text) FROM generate_series(1, 9) AS n;
CREATE INDEX kept_word ON public.kept (word);
GRANT SELECT ON public.kept TO PUBLIC
"""
WRITES = """
rows that come and go, ahead of their sequence
    sql:
        INSERT INTO public.kept (word) SELECT md5(n::text) FROM generate_series(1, 50) n;
        DELETE FROM public.kept WHERE id % 3 = 0;
        INSERT INTO public.kept (id) SELECT 10000000 + (random() * 100000000)::integer;
        SELECT pg_sleep(0.002);
        DELETE FROM public.kept WHERE id >= 10000000
a sequence that is set back and forth
    sql: SELECT setval('public.ticket', 1 + (random() * 1000)::integer)
a table that is emptied
    sql:
        TRUNCATE public.kept RESTART IDENTITY;
        SELECT pg_sleep(0.02);
        INSERT INTO public.kept (word) VALUES ('a'), ('b'), ('c')
tables that are new
    sql:
        DO $$BEGIN EXECUTE format('CREATE TABLE public.t%s (id serial)',
        nextval('public.ticket')); END$$;
        SELECT pg_sleep(0.05)
"""


class InUseTests(Case, table=WRITES):
    """A database that is written to all the while compares equal."""

    def judge(self, row: Row) -> None:
        """The drill passes twice, and much was written."""
        with place() as here, database(KEPT) as name:
            for _ in range(2):
                with busy(name, row["sql"]) as written:
                    over = here.drill("--live", url=url(name))
                    self.assert_verdict(over, "passed")
                    self.assertGreater(next(written), 10)


@contextmanager
def busy(name: str, sql: str) -> Iterator[Iterator[int]]:
    """Run the SQL on two sessions, over and over; each run takes a number."""

    def write() -> None:
        while not over.is_set():
            for statement in sql.split(";\n"):
                execute(name, statement)
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

RIGHTS = """
to read a table
    run: --throwaway
    sql: CREATE TABLE public.secret (id integer)
    says: permission denied | secret
to read a sequence
    run: --throwaway
    sql: CREATE SEQUENCE public.secret
    says: permission denied | secret
to see every row
    run: --throwaway
    sql:
        CREATE TABLE public.secret (id integer);
        GRANT SELECT ON public.secret TO PUBLIC;
        ALTER TABLE public.secret ENABLE ROW LEVEL SECURITY
    says: row-level security | secret
to read a large object
    run: --throwaway
    sql: SELECT lo_from_bytea(4711, 'secret')
    says: permission denied | 4711
to restore for the owner
    sql:
        CREATE TABLE public.kept (id integer);
        GRANT SELECT ON public.kept TO PUBLIC
    says: postgres | --throwaway
"""


class RightsTests(Case, table=RIGHTS):
    """A right that is missing is an error in PostgreSQL's words; reading is enough."""

    def judge(self, row: Row) -> None:
        """The run ends as an error."""
        with prepared(Row(row, role="CREATEDB")) as (here, words, how):
            over = here.drill("--live", *words, **how)
            self.assert_row(over, Row(row, ends="error"))

    def test_owner(self) -> None:
        """An ordinary role drills with what it owns, and with a trusted extension."""
        made = database("CREATE EXTENSION citext SCHEMA public")
        with role("CREATEDB") as name, place() as here, made as source:
            execute("postgres", f"ALTER DATABASE {source} OWNER TO {name}")
            over = here.drill("--live", url=url(source, name))
            execute("postgres", f"ALTER DATABASE {source} OWNER TO postgres")
        self.assert_verdict(over, "passed")

    def test_reader(self) -> None:
        """With --throwaway a role that can only read drills with others' objects."""
        with (
            role("IN ROLE pg_read_all_data") as name,
            role() as keeper,
            place() as here,
            database(KEPT) as source,
        ):
            execute(source, f"ALTER TABLE public.kept OWNER TO {keeper}")
            before = query(source, STATE)
            over = here.drill("--live", "--throwaway", url=url(source, name))
            self.assertEqual(before, query(source, STATE))
        self.assert_verdict(over, "passed")
        self.assertEqual(over.report["rows"], 9)


# What changes when anything is made in a database.
STATE = """
SELECT (SELECT count(*) FROM pg_class),
       (SELECT max(oid::bigint) FROM pg_class),
       (SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables)
"""


# --- Changes of the restored database, and of the backup ------------------------------

CHANGES = """
a value, in plain
    spoil: UPDATE public.kept SET word = 'other' WHERE id = 5
    says: source table public.kept: 9 rows as expected, with other values
a row, in custom
    run: --format custom
    spoil: DELETE FROM public.kept WHERE id = 5
    says: source table public.kept: found 8 rows, expected 9
an index, in a directory
    run: --format directory --jobs 2
    spoil: DROP INDEX public.kept_word
    spoiled by: pg_restore
    says: source index public.kept_word: missing
a sequence, in plain
    spoil: SELECT setval('public.kept_id_seq', 4)
    says: source sequence public.kept_id_seq: found | 4 | expected | 9
a grant, in custom
    run: --format custom
    spoil: REVOKE SELECT ON public.kept FROM PUBLIC
    says: TABLE kept: missing
"""


class ChangedDatabaseTests(Case, table=CHANGES):
    """A change of the restored database is seen, whatever the format of the backup is."""

    def judge(self, row: Row) -> None:
        """The difference is named first."""
        with prepared(Row(row, sql=KEPT)) as (here, words, how):
            over = here.drill("--live", *words, **how)
            self.assert_row(over, Row(row, ends="failed in restore"))
            self.assert_said(over, "the restored database differs from its source")


FAULTS = r"""
the rows of a table are left out
    damage: exec sed -i '/^COPY public.kept/,/^\\\.$/d' "$target"
    says: table public.kept: missing
the end of the file is lost
    damage: exec truncate --size=-600 "$target"
    says: PostgreSQL database dump complete
a byte of a directory's data is another
    run: --format directory --jobs 2
    damage:
        file=$(ls -S "$target"/*.dat.gz | head -n 1)
        exec dd if=/dev/zero of="$file" bs=1 seek=40 count=1 conv=notrunc status=none
    says: pg_restore exited with 1
the end of an archive is lost
    run: --format custom
    damage: exec truncate --size=-20 "$target"
    says: pg_restore exited with 1
"""


class FaultyDumpTests(Case, table=FAULTS):
    """Validation reads the data of a backup, in whichever format."""

    def judge(self, row: Row) -> None:
        """Validation fails, and names the fault."""
        with prepared(Row(row, sql=KEPT)) as (here, words, how):
            over = here.drill("--live", *words, **how)
            self.assert_row(over, Row(row, ends="failed in validation"))
