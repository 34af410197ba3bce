"""A restored database that is not its source is refused, and the difference is named.

Each row of a table spoils a copy of a healthy restored database by SQL. What the drill
then says about the copy must begin with, or have among its first three sentences, the
one that names the damage. A second table holds what is no damage: it must say nothing.
"""

import unittest
from typing import NamedTuple

from aidscope.tests import server as suite


class Damage(NamedTuple):
    """What is done to the restored database, and how what is said of it begins."""

    sql: str
    sentence: str


ROWS = {
    "a value is changed": Damage(
        "UPDATE extra.value SET label = 'Two' WHERE id = 2",
        "table extra.value: 4 rows as expected, with other values",
    ),
    "two values are swapped between rows": Damage(
        "UPDATE extra.value SET price = 4 - price WHERE id < 3",
        "table extra.value: 4 rows as expected, with other values",
    ),
    "two values are swapped within a row": Damage(
        "UPDATE extra.value SET label = code, code = label WHERE id = 2",
        "table extra.value: 4 rows as expected, with other values",
    ),
    "NULL stands for an empty text": Damage(
        'UPDATE backup_drill.item SET "Note" = NULL WHERE "Note" = \'\'',
        "table backup_drill.item: 100 rows as expected, with other values",
    ),
    "the text NULL stands for NULL": Damage(
        'UPDATE backup_drill.item SET "Note" = \'NULL\' WHERE "Note" IS NULL',
        "table backup_drill.item: 100 rows as expected, with other values",
    ),
    "0 stands for -0": Damage(
        "UPDATE extra.value SET ratio = 0 WHERE id = 4",
        "table extra.value: 4 rows as expected, with other values",
    ),
    "1.50 becomes 1.5": Damage(
        "UPDATE backup_drill.item SET amount = 1.0 WHERE amount::text = '1.00'",
        "table backup_drill.item: 100 rows as expected, with other values",
    ),
    "a time is off by one microsecond": Damage(
        "UPDATE extra.value SET seen = seen + interval '1 us' WHERE id = 1",
        "table extra.value: 4 rows as expected, with other values",
    ),
    "one bit of a float is flipped": Damage(
        "UPDATE extra.value SET ratio = 0.10000000000000002 WHERE id = 1",
        "table extra.value: 4 rows as expected, with other values",
    ),
    "a decomposed letter is composed": Damage(
        'UPDATE backup_drill.item SET "Note" = normalize("Note")'
        ' WHERE "Note" <> normalize("Note")',
        "table backup_drill.item: 100 rows as expected, with other values",
    ),
    "a trailing blank is lost": Damage(
        'UPDATE backup_drill.item SET "Note" = rtrim("Note")'
        " WHERE \"Note\" LIKE '%ends  '",
        "table backup_drill.item: 100 rows as expected, with other values",
    ),
    "a byte of a bytea is changed": Damage(
        "UPDATE backup_drill.item SET raw = set_byte(raw, 0, 1) WHERE length(raw) > 0",
        "table backup_drill.item: 100 rows as expected, with other values",
    ),
    "an element of an array is lost": Damage(
        "UPDATE backup_drill.item SET tags = tags[2:] WHERE tags <> '{}'",
        "table backup_drill.item: 100 rows as expected, with other values",
    ),
    "a field of a composite becomes NULL": Damage(
        "UPDATE extra.value SET made = NULL WHERE id = 4",
        "table extra.value: 4 rows as expected, with other values",
    ),
    "two equal rows replace two other equal rows": Damage(
        "UPDATE backup_drill.event SET at = at + interval '50 hours'"
        " WHERE at = '2024-01-01 00:00:00+00'",
        "table backup_drill.event: 100 rows as expected, with other values",
    ),
    "a large number has the same halves": Damage(
        "UPDATE extra.short SET big = 4294967296 WHERE big = 1",
        "table extra.short: 2 rows as expected, with other values",
    ),
    "two numbers are swapped within a row": Damage(
        "UPDATE extra.short SET whole = other, other = whole",
        "table extra.short: 2 rows as expected, with other values",
    ),
    "0 stands for a NULL": Damage(
        "UPDATE extra.short SET whole = 0 WHERE whole IS NULL",
        "table extra.short: 2 rows as expected, with other values",
    ),
    "false stands for a NULL": Damage(
        "UPDATE extra.short SET flag = false WHERE flag IS NULL",
        "table extra.short: 2 rows as expected, with other values",
    ),
    "blanks stand for a NULL": Damage(
        "UPDATE extra.short SET mark = '' WHERE mark IS NULL",
        "table extra.short: 2 rows as expected, with other values",
    ),
    "a value and a NULL change rows": Damage(
        "UPDATE extra.short SET whole = CASE WHEN whole IS NULL THEN 1 END",
        "table extra.short: 2 rows as expected, with other values",
    ),
    "a row is deleted": Damage(
        "DELETE FROM backup_drill.event WHERE ctid ="
        " (SELECT min(ctid) FROM backup_drill.event)",
        "table backup_drill.event: found 99 rows, expected 100",
    ),
    "a row is added": Damage(
        "INSERT INTO extra.line VALUES (1, 'tomorrow')",
        "table extra.line: found 42 rows, expected 41",
    ),
    "a row is duplicated": Damage(
        "INSERT INTO extra.line SELECT * FROM extra.line LIMIT 1",
        "table extra.line: found 42 rows, expected 41",
    ),
    "a duplicated row replaces another": Damage(
        "UPDATE backup_drill.event SET at = '2024-01-01 00:00:00+00' WHERE ctid ="
        " (SELECT min(ctid) FROM backup_drill.event)",
        "table backup_drill.event: 100 rows as expected, with other values",
    ),
    "a table is emptied": Damage(
        "TRUNCATE extra.line",
        "table extra.line: found 0 rows, expected 41",
    ),
    "a row moves from a child to its parent": Damage(
        "DELETE FROM extra.derived; INSERT INTO extra.base VALUES (1, 'late')",
        "table extra.base: found 1 rows, expected 0",
    ),
    "a row of a partition is deleted": Damage(
        "DELETE FROM extra.visit WHERE who = 'a'",
        "table extra.visit_2023: found 0 rows, expected 1",
    ),
    "a row of Django's migrations is deleted": Damage(
        "DELETE FROM public.django_migrations WHERE app = 'aidscope'",
        "table public.django_migrations: found ",
    ),
}

SEQUENCES = {
    "a sequence has another value": Damage(
        "SELECT setval('extra.counter', 6)",
        "sequence extra.counter: value: found 6, expected 31",
    ),
    "a sequence is not called yet": Damage(
        "SELECT setval('extra.counter', 1, false)",
        "sequence extra.counter: called: found False, expected True",
    ),
    "an untouched sequence is called": Damage(
        "SELECT nextval('extra.untouched')",
        "sequence extra.untouched: called: found True, expected False",
    ),
    "the sequence of an identity is behind its rows": Damage(
        "SELECT setval('backup_drill.item_id_seq', 99)",
        "sequence backup_drill.item_id_seq: value: found 99, expected 100",
    ),
    "a sequence has another increment": Damage(
        "ALTER SEQUENCE extra.counter INCREMENT 6",
        "sequence extra.counter: definition: found integer start 1 increment 6 ",
    ),
    "a sequence has another maximum": Damage(
        "ALTER SEQUENCE extra.counter MAXVALUE 2000",
        "sequence extra.counter: definition: ",
    ),
    "a sequence does not cycle": Damage(
        "ALTER SEQUENCE extra.counter NO CYCLE",
        "sequence extra.counter: definition: ",
    ),
    "a sequence has another cache": Damage(
        "ALTER SEQUENCE extra.counter CACHE 1",
        "sequence extra.counter: definition: ",
    ),
    "a sequence is of another type": Damage(
        "ALTER SEQUENCE extra.counter AS bigint MAXVALUE 1000",
        "sequence extra.counter: definition: found bigint start 1 ",
    ),
    "a sequence has another start": Damage(
        "ALTER SEQUENCE extra.untouched START 51",
        "sequence extra.untouched: definition: found bigint start 51 ",
    ),
    "a sequence belongs to no column": Damage(
        "ALTER SEQUENCE extra.counter OWNED BY NONE",
        "sequence extra.counter: owned by: found nothing, expected extra.line.value",
    ),
    "a sequence is dropped": Damage(
        "DROP SEQUENCE extra.untouched",
        "sequence extra.untouched: missing",
    ),
}

COLUMNS = {
    "a column is of another type": Damage(
        "ALTER TABLE extra.visit_2025 ALTER who TYPE varchar",
        "table extra.visit_2025: column who: found character varying, expected text",
    ),
    "a column is shorter": Damage(
        "ALTER TABLE extra.value ALTER code TYPE varchar(7)",
        "table extra.value: column code: found character varying(7), "
        "expected character varying(8)",
    ),
    "a number has another scale": Damage(
        "ALTER TABLE public.aidscope_delivery ALTER cost TYPE numeric(10, 3)",
        "table public.aidscope_delivery: column cost: found numeric(10,3) NOT NULL, "
        "expected numeric(10,2) NOT NULL",
    ),
    "a default is changed": Damage(
        "ALTER TABLE extra.value ALTER label SET DEFAULT 'some'",
        'table extra.value: column label: found text COLLATE "C" NOT NULL '
        "DEFAULT 'some'::text",
    ),
    "a default is dropped": Damage(
        "ALTER TABLE backup_drill.item ALTER kind DROP DEFAULT",
        "table backup_drill.item: column kind: found character varying(10) NOT NULL, "
        "expected character varying(10) NOT NULL DEFAULT 'plain'",
    ),
    "NOT NULL is dropped": Damage(
        "ALTER TABLE extra.value ALTER label DROP NOT NULL",
        'table extra.value: column label: found text COLLATE "C" DEFAULT ',
    ),
    "NOT NULL is added": Damage(
        "ALTER TABLE extra.line ALTER text SET NOT NULL",
        "table extra.line: column text: found text NOT NULL, expected text",
    ),
    "an identity is dropped": Damage(
        "ALTER TABLE extra.value ALTER number DROP IDENTITY",
        "sequence extra.value_number_seq: missing",
    ),
    "an identity is of another kind": Damage(
        "ALTER TABLE extra.value ALTER number SET GENERATED ALWAYS",
        "table extra.value: column number: "
        "found integer NOT NULL GENERATED ALWAYS AS IDENTITY, "
        "expected integer NOT NULL GENERATED BY DEFAULT AS IDENTITY",
    ),
    "a generated column has another expression": Damage(
        "ALTER TABLE extra.value DROP twice, DROP number;"
        "ALTER TABLE extra.value ADD twice integer"
        " GENERATED ALWAYS AS (id + id) STORED,"
        " ADD number integer GENERATED BY DEFAULT AS IDENTITY",
        "table extra.value: column twice: found integer GENERATED "
        "(id + id), expected integer GENERATED (id * 2)",
    ),
    "a generated column becomes a plain one": Damage(
        "ALTER TABLE extra.value ALTER twice DROP EXPRESSION",
        "table extra.value: column twice: found integer, "
        "expected integer GENERATED (id * 2)",
    ),
    "a column has another collation": Damage(
        "ALTER TABLE extra.line ALTER text TYPE text COLLATE extra.plain",
        "table extra.line: column text: found text COLLATE extra.plain, expected text",
    ),
    "columns stand in another order": Damage(
        "ALTER TABLE extra.visit_2025 RENAME who TO was;"
        "ALTER TABLE extra.visit_2025 ADD who text;"
        "UPDATE extra.visit_2025 SET who = was;"
        "ALTER TABLE extra.visit_2025 DROP day, DROP was, ADD day date NOT NULL"
        " DEFAULT '2025-05-01';"
        "ALTER TABLE extra.visit_2025 ALTER day DROP DEFAULT",
        "table extra.visit_2025: pg_dump: found who text,, expected day date NOT NULL,",
    ),
    "a column is extra": Damage(
        "ALTER TABLE extra.line ADD more text",
        "table extra.line: column more: found text, expected nothing",
    ),
    "a column is dropped": Damage(
        "ALTER TABLE extra.line DROP text",
        "table extra.line: column text: found nothing, expected text",
    ),
    "a column is renamed": Damage(
        "ALTER TABLE extra.line RENAME text TO words",
        "table extra.line: column text: found nothing, expected text",
    ),
    "a column has another statistics target": Damage(
        "ALTER TABLE extra.value ALTER label SET STATISTICS 80",
        "table extra.value: pg_dump: found ALTER TABLE ONLY extra.value "
        "ALTER COLUMN label SET STATISTICS 80;",
    ),
    "a column is stored otherwise": Damage(
        "ALTER TABLE extra.value ALTER doc SET STORAGE MAIN",
        "table extra.value: pg_dump: found ALTER TABLE ONLY extra.value "
        "ALTER COLUMN doc SET STORAGE MAIN;",
    ),
    "an option of a column is reset": Damage(
        "ALTER TABLE extra.value ALTER code RESET (n_distinct)",
        "table extra.value: pg_dump: found nothing, expected ALTER TABLE ONLY "
        "extra.value ALTER COLUMN code SET (n_distinct=-0.5);",
    ),
}

CONSTRAINTS = {
    "a check is dropped": Damage(
        "ALTER TABLE extra.value DROP CONSTRAINT value_price",
        "check constraint extra.value value_price: missing",
    ),
    "a check has another expression": Damage(
        "ALTER TABLE extra.value DROP CONSTRAINT value_price,"
        " ADD CONSTRAINT value_price CHECK (price > 0)",
        "check constraint extra.value value_price: definition: "
        "found CHECK ((price > (0)::numeric)), "
        "expected CHECK ((price >= (0)::numeric))",
    ),
    "a check is not validated": Damage(
        "ALTER TABLE extra.value DROP CONSTRAINT value_price,"
        " ADD CONSTRAINT value_price CHECK (price >= 0) NOT VALID",
        "check constraint extra.value value_price: definition: found "
        "CHECK ((price >= (0)::numeric)) NOT VALID",
    ),
    "a check of Django's lacks a value": Damage(
        "ALTER TABLE public.aidscope_case DROP CONSTRAINT case_status_known,"
        " ADD CONSTRAINT case_status_known CHECK (status IN ('waiting', 'open'))"
        " NOT VALID",
        "check constraint public.aidscope_case case_status_known: definition: ",
    ),
    "a foreign key is dropped": Damage(
        "ALTER TABLE extra.line DROP CONSTRAINT line_value",
        "fk constraint extra.line line_value: missing",
    ),
    "a foreign key is not validated": Damage(
        "ALTER TABLE extra.line DROP CONSTRAINT line_value,"
        " ADD CONSTRAINT line_value FOREIGN KEY (value) REFERENCES extra.value"
        " ON UPDATE CASCADE NOT VALID",
        "fk constraint extra.line line_value: definition: found ",
    ),
    "a foreign key is only marked as not validated": Damage(
        "UPDATE pg_constraint SET convalidated = false WHERE conname = 'line_value'",
        "fk constraint extra.line line_value: definition: found ",
    ),
    "a foreign key does not cascade": Damage(
        "ALTER TABLE extra.line DROP CONSTRAINT line_value,"
        " ADD CONSTRAINT line_value FOREIGN KEY (value) REFERENCES extra.value",
        "fk constraint extra.line line_value: definition: "
        "found FOREIGN KEY (value) REFERENCES extra.value(id), expected ",
    ),
    "a foreign key becomes deferrable": Damage(
        "ALTER TABLE extra.line ALTER CONSTRAINT line_value DEFERRABLE",
        "fk constraint extra.line line_value: definition: found ",
    ),
    "a foreign key is not enforced": Damage(
        "ALTER TABLE extra.line DISABLE TRIGGER ALL",
        "fk constraint extra.line line_value: enforced: found ",
    ),
    "the other side of a foreign key is not enforced": Damage(
        "ALTER TABLE extra.value DISABLE TRIGGER ALL",
        "fk constraint extra.line line_value: enforced: found ",
    ),
    "a unique constraint is not deferrable": Damage(
        "ALTER TABLE extra.value DROP CONSTRAINT value_code,"
        " ADD CONSTRAINT value_code UNIQUE (code)",
        "constraint extra.value value_code: definition: "
        "found UNIQUE (code), expected UNIQUE (code) DEFERRABLE",
    ),
    "a unique constraint becomes a unique index": Damage(
        "ALTER TABLE extra.value DROP CONSTRAINT value_code;"
        "CREATE UNIQUE INDEX value_code ON extra.value (code)",
        "constraint extra.value value_code: missing",
    ),
    "a primary key is dropped": Damage(
        "ALTER TABLE public.aidscope_delivery_cases"
        " DROP CONSTRAINT aidscope_delivery_cases_pkey",
        "constraint public.aidscope_delivery_cases aidscope_delivery_cases_pkey: "
        "missing",
    ),
    "an exclusion constraint is dropped": Damage(
        "ALTER TABLE backup_drill.node DROP CONSTRAINT node_reserved_excl",
        "constraint backup_drill.node node_reserved_excl: missing",
    ),
    "a constraint is extra": Damage(
        "ALTER TABLE extra.line ADD CONSTRAINT more CHECK (value < 1000)",
        "check constraint extra.line more: unexpected",
    ),
    "a constraint is renamed": Damage(
        "ALTER TABLE extra.value RENAME CONSTRAINT value_price TO value_cost",
        "check constraint extra.value value_price: missing",
    ),
}

INDEXES = {
    "an index is dropped": Damage(
        "DROP INDEX extra.value_label",
        "index extra.value_label: missing",
    ),
    "an index is invalid": Damage(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'extra.value_label'::regclass",
        "index extra.value_label: valid: found False, expected True",
    ),
    "an index is not ready": Damage(
        "UPDATE pg_index SET indisready = false"
        " WHERE indexrelid = 'extra.value_label'::regclass",
        "index extra.value_label: ",
    ),
    "an index has another predicate": Damage(
        "DROP INDEX extra.value_label;"
        "CREATE INDEX value_label ON extra.value (label) INCLUDE (code)"
        " WHERE price > 1",
        "index extra.value_label: definition: found ",
    ),
    "an index is unique no longer": Damage(
        "DROP INDEX public.case_one_open_per_place;"
        "CREATE INDEX case_one_open_per_place ON public.aidscope_case"
        " (shelter_id, place) WHERE status = 'open'",
        "index public.case_one_open_per_place: definition: found CREATE INDEX ",
    ),
    "an index has another order": Damage(
        "DROP INDEX backup_drill.item_lower;"
        'CREATE INDEX item_lower ON backup_drill.item (lower("Note"))'
        " WHERE length < 1000",
        "index backup_drill.item_lower: definition: found ",
    ),
    "an index has another parameter": Damage(
        "ALTER INDEX extra.value_ratio SET (pages_per_range = 32)",
        "index extra.value_ratio: definition: found ",
    ),
    "an index has another name": Damage(
        "ALTER INDEX extra.value_label RENAME TO value_mark",
        "index extra.value_label: missing",
    ),
    "an index is extra": Damage(
        "CREATE INDEX more ON extra.line (text)",
        "index extra.more: unexpected",
    ),
    "an index of a partition is detached": Damage(
        "DROP INDEX extra.visit_who;"
        "CREATE INDEX visit_who ON ONLY extra.visit (who);"
        "CREATE INDEX visit_2023_who_idx ON extra.visit_2023 (who);"
        "CREATE INDEX visit_2024_who_idx ON extra.visit_2024 (who)",
        "index attach extra.visit_2023_who_idx: missing",
    ),
}

VIEWS = {
    "a view is dropped": Damage(
        "DROP VIEW extra.dear",
        "view extra.dear: missing",
    ),
    "a view has another definition": Damage(
        "CREATE OR REPLACE VIEW extra.dear WITH (security_barrier) AS"
        " SELECT id, label FROM extra.value WHERE price > 3",
        "view extra.dear: definition: found WHERE (",
    ),
    "a view of the sample has another definition": Damage(
        'CREATE OR REPLACE VIEW backup_drill.awkward AS SELECT i.id, i."Note"'
        " FROM backup_drill.item AS i WHERE i.kind IN ('awkward')",
        "view backup_drill.awkward: definition: found ",
    ),
    "a view is no barrier": Damage(
        "ALTER VIEW extra.dear RESET (security_barrier)",
        "view extra.dear: pg_dump: found CREATE VIEW extra.dear AS, "
        "expected CREATE VIEW extra.dear WITH (security_barrier='true') AS",
    ),
    "a view becomes a table": Damage(
        "DROP VIEW extra.dear;"
        "CREATE TABLE extra.dear AS SELECT id, label FROM extra.value WHERE price > 2",
        "view extra.dear: missing",
    ),
    "a column of a view has a default": Damage(
        "ALTER VIEW extra.dear ALTER label SET DEFAULT 'x'",
        "view extra.dear: column label: found text",
    ),
    "a materialized view has another definition": Damage(
        "DROP MATERIALIZED VIEW extra.counted;"
        "CREATE MATERIALIZED VIEW extra.counted AS"
        " SELECT count(value) AS lines FROM extra.line",
        "materialized view extra.counted: definition: found ",
    ),
    "a materialized view is not populated": Damage(
        "REFRESH MATERIALIZED VIEW extra.counted WITH NO DATA",
        "materialized view extra.counted: populated: found False, expected True",
    ),
    "an unpopulated materialized view is populated": Damage(
        "REFRESH MATERIALIZED VIEW extra.hollow",
        "materialized view extra.hollow: populated: found True, expected False",
    ),
    "a rule is dropped": Damage(
        "DROP RULE line_forever ON extra.line",
        "rule extra.line line_forever: missing",
    ),
    "a rule does something else": Damage(
        "CREATE OR REPLACE RULE line_forever AS ON DELETE TO extra.line"
        " WHERE old.value > 1 DO INSTEAD NOTHING",
        "rule extra.line line_forever: pg_dump: found ",
    ),
    "a rule is disabled": Damage(
        "ALTER TABLE extra.line DISABLE RULE line_forever",
        "rule extra.line line_forever: pg_dump: found ALTER TABLE extra.line "
        "DISABLE RULE line_forever;, expected nothing",
    ),
}

FUNCTIONS = {
    "a function has another body": Damage(
        "CREATE OR REPLACE FUNCTION extra.keep() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RETURN OLD; END'",
        "function extra.keep(): definition: found AS $function$BEGIN RETURN OLD; ",
    ),
    "a function has another volatility": Damage(
        "ALTER FUNCTION extra.add_up STABLE",
        "function extra.add_up(integer, integer): definition: found STABLE STRICT COST 5",
    ),
    "a function runs with its owner's rights": Damage(
        "ALTER FUNCTION extra.add_up SECURITY DEFINER",
        "function extra.add_up(integer, integer): definition: found IMMUTABLE STRICT "
        "SECURITY DEFINER COST 5",
    ),
    "a function is called on NULL": Damage(
        "ALTER FUNCTION extra.add_up CALLED ON NULL INPUT",
        "function extra.add_up(integer, integer): definition: found IMMUTABLE COST 5",
    ),
    "a function has a setting": Damage(
        "ALTER FUNCTION extra.keep SET search_path TO public",
        "function extra.keep(): definition: found SET search_path TO 'public', "
        "expected nothing",
    ),
    "a function has another cost": Damage(
        "ALTER FUNCTION extra.add_up COST 6",
        "function extra.add_up(integer, integer): definition: found ",
    ),
    "an argument has another default": Damage(
        "CREATE OR REPLACE FUNCTION extra.add_up(a integer, b integer DEFAULT 2)"
        " RETURNS integer LANGUAGE sql IMMUTABLE STRICT COST 5 AS 'SELECT a + b'",
        "function extra.add_up(integer, integer): definition: found ",
    ),
    "a procedure is dropped": Damage(
        "DROP PROCEDURE extra.nothing",
        "procedure extra.nothing(integer): missing",
    ),
    "an aggregate starts elsewhere": Damage(
        "CREATE OR REPLACE AGGREGATE extra.total (integer)"
        " (SFUNC = extra.add_up, STYPE = integer, INITCOND = '1')",
        "aggregate extra.total(integer): pg_dump: found ",
    ),
    "an operator is dropped": Damage(
        "DROP OPERATOR extra.@+ (integer, integer)",
        "operator extra.@+: missing",
    ),
    "a cast is dropped": Damage(
        "DROP CAST (extra.pair AS text)",
        "cast CAST (extra.pair AS text): missing",
    ),
    "a function is overloaded": Damage(
        "CREATE FUNCTION extra.add_up(a text) RETURNS text LANGUAGE sql AS 'SELECT a'",
        "function extra.add_up(text): unexpected",
    ),
}

TRIGGERS = {
    "a trigger is dropped": Damage(
        "DROP TRIGGER value_keep ON extra.value",
        "trigger extra.value value_keep: missing",
    ),
    "a trigger is disabled": Damage(
        "ALTER TABLE extra.value DISABLE TRIGGER value_keep",
        "trigger extra.value value_keep: enabled: found ",
    ),
    "a trigger fires always no longer": Damage(
        "ALTER TABLE extra.line ENABLE TRIGGER line_keep",
        "trigger extra.line line_keep: enabled: found ",
    ),
    "a trigger of a partition is disabled": Damage(
        "ALTER TABLE extra.visit_2023 DISABLE TRIGGER visit_keep",
        "trigger extra.visit_2023 visit_keep: enabled: found ",
    ),
    "a trigger fires at another event": Damage(
        "CREATE OR REPLACE TRIGGER value_keep BEFORE INSERT ON extra.value"
        " FOR EACH ROW EXECUTE FUNCTION extra.keep()",
        "trigger extra.value value_keep: definition: found ",
    ),
    "an event trigger is dropped": Damage(
        "DROP EVENT TRIGGER watching",
        "event trigger watching: missing",
    ),
    "an event trigger is disabled": Damage(
        "ALTER EVENT TRIGGER watching DISABLE",
        "event trigger watching: pg_dump: found ALTER EVENT TRIGGER watching DISABLE;, "
        "expected nothing",
    ),
    "an event trigger has another tag": Damage(
        "DROP EVENT TRIGGER watching;"
        "CREATE EVENT TRIGGER watching ON ddl_command_end WHEN TAG IN ('DROP CAST')"
        " EXECUTE FUNCTION extra.watch()",
        "event trigger watching: pg_dump: found ",
    ),
}

TYPES = {
    "an enum has one more label": Damage(
        "ALTER TYPE backup_drill.mood ADD VALUE 'worse'",
        "type backup_drill.mood: labels: found ",
    ),
    "a label of an enum is renamed": Damage(
        "ALTER TYPE backup_drill.mood RENAME VALUE 'bad' TO 'ugly'",
        "type backup_drill.mood: labels: found ",
    ),
    "two labels of an enum change places": Damage(
        "UPDATE pg_enum SET enumsortorder = -1 WHERE enumlabel = 'bad'",
        "type backup_drill.mood: labels: found ['bad', 'good', ",
    ),
    "a domain has another check": Damage(
        "ALTER DOMAIN backup_drill.percent DROP CONSTRAINT percent_check;"
        "ALTER DOMAIN backup_drill.percent ADD CONSTRAINT percent_check"
        " CHECK (VALUE BETWEEN 0 AND 101)",
        "domain backup_drill.percent: checks: found ",
    ),
    "a domain has no check": Damage(
        "ALTER DOMAIN extra.word DROP CONSTRAINT word_check",
        "domain extra.word: checks: found ",
    ),
    "a domain has another default": Damage(
        "ALTER DOMAIN extra.word SET DEFAULT 'some'",
        "domain extra.word: default: found 'some'::text, expected 'none'::text",
    ),
    "a domain is not null": Damage(
        "ALTER DOMAIN extra.word SET NOT NULL",
        "domain extra.word: not null: found True, expected False",
    ),
    "a composite type has one more attribute": Damage(
        "ALTER TYPE extra.pair ADD ATTRIBUTE c integer",
        "type extra.pair: column c: found integer, expected nothing",
    ),
    "a range type is dropped": Damage(
        "DROP TYPE extra.stretch",
        "type extra.stretch: missing",
    ),
    "a range type has another subtype": Damage(
        "DROP TYPE extra.stretch; CREATE TYPE extra.stretch AS RANGE (SUBTYPE = time)",
        "type extra.stretch: pg_dump: found ",
    ),
    "a collation is dropped": Damage(
        "DROP COLLATION extra.plain",
        "collation extra.plain: missing",
    ),
    "a text search configuration has another dictionary": Damage(
        "ALTER TEXT SEARCH CONFIGURATION extra.simpler"
        " ALTER MAPPING FOR word WITH pg_catalog.english_stem",
        "text search configuration extra.simpler: pg_dump: found ",
    ),
}

RIGHTS = {
    "row security is disabled": Damage(
        "ALTER TABLE extra.line DISABLE ROW LEVEL SECURITY",
        "table extra.line: row security: found False, expected True",
    ),
    "row security is not forced": Damage(
        "ALTER TABLE extra.line NO FORCE ROW LEVEL SECURITY",
        "table extra.line: row security forced: found False, expected True",
    ),
    "a policy is dropped": Damage(
        "DROP POLICY line_read ON extra.line",
        "policy extra.line line_read: missing",
    ),
    "a policy lets other rows be read": Damage(
        "ALTER POLICY line_read ON extra.line USING (value > 0)",
        "policy extra.line line_read: using: found (value > 0), expected (value > 1)",
    ),
    "a policy lets other rows be written": Damage(
        "ALTER POLICY line_write ON extra.line WITH CHECK (true)",
        "policy extra.line line_write: check: found true, expected (value < 9)",
    ),
    "a policy is for everybody": Damage(
        "ALTER POLICY line_read ON extra.line TO PUBLIC",
        "policy extra.line line_read: roles: found ",
    ),
    "a policy restricts": Damage(
        "DROP POLICY line_read ON extra.line;"
        "CREATE POLICY line_read ON extra.line AS RESTRICTIVE FOR SELECT"
        " TO drill_reader USING (value > 1)",
        "policy extra.line line_read: permissive: found False, expected True",
    ),
    "a grant on a table is revoked": Damage(
        "REVOKE SELECT ON extra.value FROM drill_reader",
        "acl extra.TABLE value: missing",
    ),
    "a grant on a table is extra": Damage(
        "GRANT DELETE ON extra.value TO drill_reader",
        "acl extra.TABLE value: pg_dump: found GRANT SELECT,DELETE ON ",
    ),
    "a grant on a table may be passed on": Damage(
        "GRANT SELECT ON extra.value TO drill_reader WITH GRANT OPTION",
        "acl extra.TABLE value: pg_dump: found ",
    ),
    "a grant on a column is revoked": Damage(
        "REVOKE UPDATE (label) ON extra.value FROM drill_reader",
        "acl extra.COLUMN value.label: missing",
    ),
    "a grant on a schema is revoked": Damage(
        "REVOKE USAGE ON SCHEMA extra FROM drill_reader",
        "acl SCHEMA extra: missing",
    ),
    "the right to create in public is given": Damage(
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "acl SCHEMA public: unexpected",
    ),
    "everybody may call a function": Damage(
        "GRANT EXECUTE ON FUNCTION extra.add_up TO PUBLIC",
        "acl extra.FUNCTION add_up(a integer, b integer): pg_dump: found nothing, "
        "expected REVOKE ALL ON FUNCTION extra.add_up(a integer, b integer) FROM PUBLIC;",
    ),
    "a table has another owner": Damage(
        "ALTER TABLE extra.visit_2025 OWNER TO postgres",
        "table extra.visit_2025: pg_dump: found Owner: postgres, "
        "expected Owner: drill_keeper",
    ),
    "a function has another owner": Damage(
        "ALTER FUNCTION extra.keep OWNER TO drill_keeper",
        "function extra.keep(): pg_dump: found Owner: drill_keeper, "
        "expected Owner: postgres",
    ),
    "a schema has another owner": Damage(
        "ALTER SCHEMA spare OWNER TO drill_keeper",
        "schema spare: pg_dump: found Owner: drill_keeper, expected Owner: postgres",
    ),
    "default privileges are revoked": Damage(
        "ALTER DEFAULT PRIVILEGES FOR ROLE drill_keeper IN SCHEMA extra"
        " REVOKE INSERT ON TABLES FROM drill_reader",
        "default acl extra.DEFAULT PRIVILEGES FOR TABLES: missing",
    ),
    "default privileges give more": Damage(
        "ALTER DEFAULT PRIVILEGES FOR ROLE drill_keeper IN SCHEMA extra"
        " GRANT SELECT ON TABLES TO drill_reader",
        "default acl extra.DEFAULT PRIVILEGES FOR TABLES: pg_dump: found ",
    ),
}

THE_REST = {
    "a comment on a table is lost": Damage(
        "COMMENT ON TABLE extra.value IS NULL",
        "comment extra.TABLE value: missing",
    ),
    "a comment on a column is changed": Damage(
        "COMMENT ON COLUMN backup_drill.node.place IS 'naive'",
        "comment backup_drill.COLUMN node.place: pg_dump: found ",
    ),
    "a comment on a function is lost": Damage(
        "COMMENT ON FUNCTION extra.add_up(integer, integer) IS NULL",
        "comment extra.FUNCTION add_up(a integer, b integer): missing",
    ),
    "a comment on a schema is lost": Damage(
        "COMMENT ON SCHEMA backup_drill IS NULL",
        "comment SCHEMA backup_drill: missing",
    ),
    "a table is dropped": Damage(
        "DROP TABLE backup_drill.event",
        "table backup_drill.event: missing",
    ),
    "a table is extra": Damage(
        "CREATE TABLE extra.more (id integer)",
        "table extra.more: unexpected",
    ),
    "a table moves into another schema": Damage(
        "ALTER TABLE extra.visit_2025 SET SCHEMA spare",
        "table extra.visit_2025: missing",
    ),
    "a table is unlogged": Damage(
        "ALTER TABLE extra.visit_2025 SET UNLOGGED",
        "table extra.visit_2025: unlogged: found True, expected False",
    ),
    "a table has other storage parameters": Damage(
        "ALTER TABLE extra.value SET (fillfactor = 90)",
        "table extra.value: pg_dump: found WITH (autovacuum_enabled=off, "
        "fillfactor='90');",
    ),
    "a table has another replica identity": Damage(
        "ALTER TABLE extra.value REPLICA IDENTITY DEFAULT",
        "table extra.value: pg_dump: found nothing, expected ALTER TABLE ONLY "
        "extra.value REPLICA IDENTITY FULL;",
    ),
    "a table is clustered no longer": Damage(
        "ALTER TABLE extra.value SET WITHOUT CLUSTER",
        "index extra.value_pkey: clustered: found False, expected True",
    ),
    "a partition is detached": Damage(
        "ALTER TABLE extra.visit DETACH PARTITION extra.visit_2023",
        "table attach extra.visit_2023: missing",
    ),
    "a partition is attached": Damage(
        "ALTER TABLE extra.visit ATTACH PARTITION extra.visit_2025"
        " FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
        "table attach extra.visit_2025: unexpected",
    ),
    "a partition has other bounds": Damage(
        "ALTER TABLE extra.visit DETACH PARTITION extra.visit_2023;"
        "ALTER TABLE extra.visit ATTACH PARTITION extra.visit_2023"
        " FOR VALUES FROM ('2022-01-01') TO ('2024-01-01')",
        "table extra.visit_2023: partition: found FOR VALUES FROM ('2022-01-01') ",
    ),
    "a partition is dropped": Damage(
        "DROP TABLE extra.visit_2024",
        "table extra.visit_2024: missing",
    ),
    "a child does not inherit": Damage(
        "ALTER TABLE extra.derived NO INHERIT extra.base",
        "table extra.derived: parents: found nothing, expected ['extra.base']",
    ),
    "a schema is dropped": Damage(
        "DROP SCHEMA spare",
        "schema spare: missing",
    ),
    "a schema is extra": Damage(
        "CREATE SCHEMA more",
        "schema more: unexpected",
    ),
    "an extension is missing": Damage(
        "DROP EXTENSION citext",
        "extension citext: missing",
    ),
    "an extension is extra": Damage(
        "CREATE EXTENSION pg_trgm SCHEMA extra",
        "extension pg_trgm: unexpected",
    ),
    "an extension is in another schema": Damage(
        "ALTER EXTENSION citext SET SCHEMA spare",
        "extension citext: schema: found spare, expected extra",
    ),
    "a comment on an extension is changed": Damage(
        "COMMENT ON EXTENSION citext IS 'mine'",
        "comment EXTENSION citext: pg_dump: found ",
    ),
    "a publication is dropped": Damage(
        "DROP PUBLICATION news",
        "publication news: missing",
    ),
    "a publication publishes more": Damage(
        "ALTER PUBLICATION news SET (publish = 'insert, update')",
        "publication news: pg_dump: found ",
    ),
    "a publication lacks a table": Damage(
        "ALTER PUBLICATION news DROP TABLE extra.value",
        "publication table extra.news value: missing",
    ),
    "a statistics object is dropped": Damage(
        "DROP STATISTICS extra.value_facts",
        "statistics extra.value_facts: missing",
    ),
    "a statistics object has another target": Damage(
        "ALTER STATISTICS extra.value_facts SET STATISTICS 60",
        "statistics extra.value_facts: pg_dump: found ",
    ),
    "a foreign server has other options": Damage(
        "ALTER SERVER island OPTIONS (SET host 'mainland')",
        "server island: pg_dump: found ",
    ),
    "a user mapping is dropped": Damage(
        "DROP USER MAPPING FOR drill_reader SERVER island",
        "user mapping USER MAPPING drill_reader SERVER island: missing",
    ),
    "a foreign table has another column": Damage(
        "ALTER FOREIGN TABLE extra.sand ADD colour text",
        "foreign table extra.sand: column colour: found text, expected nothing",
    ),
    "a large object is missing": Damage(
        "SELECT lo_unlink(4712)",
        "large objects: found 1 rows, expected 2",
    ),
    "a large object has one other byte": Damage(
        "SELECT lo_put(4711, 1, '\\xfe')",
        "large objects: 2 rows as expected, with other values",
    ),
    "a large object is longer": Damage(
        "SELECT lo_put(4712, 4, '\\x00')",
        "large objects: 2 rows as expected, with other values",
    ),
    "a large object has another owner": Damage(
        "ALTER LARGE OBJECT 4712 OWNER TO postgres",
        "large objects: 2 rows as expected, with other values",
    ),
    "a large object is granted to nobody": Damage(
        "REVOKE SELECT ON LARGE OBJECT 4712 FROM drill_reader",
        "large objects: 2 rows as expected, with other values",
    ),
    "a comment on a large object is lost": Damage(
        "COMMENT ON LARGE OBJECT 4711 IS NULL",
        "large objects: 2 rows as expected, with other values",
    ),
}

NO_DAMAGE = {
    "the database is untouched": "SELECT",
    "rows lie in another physical order": (
        "UPDATE extra.value SET id = id WHERE id = 1;"
        "CREATE TABLE spare.line AS SELECT * FROM extra.line ORDER BY text DESC;"
        "TRUNCATE extra.line;"
        "INSERT INTO extra.line SELECT * FROM spare.line;"
        "DROP TABLE spare.line"
    ),
    "a materialized view is stale": (
        "ALTER TABLE extra.line DISABLE RULE line_forever;"
        "DELETE FROM extra.line WHERE text = 'today';"
        "REFRESH MATERIALIZED VIEW extra.counted;"
        "INSERT INTO extra.line VALUES (1, 'today');"
        "ALTER TABLE extra.line ENABLE RULE line_forever"
    ),
    "indexes are built anew": "REINDEX TABLE extra.value",
    "statistics are taken": "ANALYZE",
    "a column was there once": (
        "ALTER TABLE extra.line ADD more text; ALTER TABLE extra.line DROP more"
    ),
}


def departures_after(sql: str) -> list[str]:
    """What the drill says of a restored database in which this SQL was run."""
    with suite.copy_of_restored() as copy:
        suite.execute(copy, sql)
        return suite.departures_of(copy)


class Damaged(unittest.TestCase):
    """What every table of damage asks."""

    def judge(self, sql: str, sentence: str) -> None:
        """The sentence is among the first three that the drill says."""
        said = departures_after(sql)
        if not any(each.startswith(sentence) for each in said[:3]):
            self.fail(f"not said: {sentence}\nsaid:\n{suite.first_lines(said, 10)}")


@suite.table_of_tests(ROWS)
class RowTests(Damaged):
    """Rows that differ are counted, or told to differ."""


@suite.table_of_tests(SEQUENCES)
class SequenceTests(Damaged):
    """Sequences that differ are named."""


@suite.table_of_tests(COLUMNS)
class ColumnTests(Damaged):
    """Columns that differ are named."""


@suite.table_of_tests(CONSTRAINTS)
class ConstraintTests(Damaged):
    """Constraints that differ are named."""


@suite.table_of_tests(INDEXES)
class IndexTests(Damaged):
    """Indexes that differ are named."""


class LongLineTests(unittest.TestCase):
    """A difference is shown, wherever in a line it stands."""

    def test_the_end_of_a_long_line(self) -> None:
        """A predicate that ends otherwise is not shown as its equal beginning."""
        [sentence] = departures_after(
            "DROP INDEX public.case_unfinished;"
            "CREATE INDEX case_unfinished ON public.aidscope_case (opened_at)"
            " WHERE status IN ('waiting', 'opened')"
        )
        thing, _, difference = sentence.partition(": definition: found ")
        self.assertEqual(thing, "index public.case_unfinished")
        found, _, expected = difference.partition(", expected ")
        self.assertNotEqual(found, expected)


@suite.table_of_tests(VIEWS)
class ViewTests(Damaged):
    """Views, materialized views and rules that differ are named."""


@suite.table_of_tests(FUNCTIONS)
class FunctionTests(Damaged):
    """Functions that differ are named."""


@suite.table_of_tests(TRIGGERS)
class TriggerTests(Damaged):
    """Triggers that differ are named."""


@suite.table_of_tests(TYPES)
class TypeTests(Damaged):
    """Types that differ are named."""


@suite.table_of_tests(RIGHTS)
class RightTests(Damaged):
    """Owners, grants and policies that differ are named."""


@suite.table_of_tests(THE_REST)
class OtherObjectTests(Damaged):
    """Whatever else a backup carries is named when it differs."""


@suite.table_of_tests({name: (sql,) for name, sql in NO_DAMAGE.items()})
class NoDamageTests(unittest.TestCase):
    """What a reader would call the same database is the same."""

    def judge(self, sql: str) -> None:
        """The drill says nothing."""
        self.assertEqual(departures_after(sql), [])
