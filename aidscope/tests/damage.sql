-- Values ------------------------------------------------------------------------------

-- a value is changed:
-- > found     table extra.value: rows with hash ...
UPDATE extra.value SET label = 'Two' WHERE id = 2;
-- two values are swapped between rows:
-- > found     table extra.value: rows with hash ...
UPDATE extra.value SET price = 4 - price WHERE id < 3;
-- two values are swapped between rows whose sum of XORs of hashes stays the same:
-- > found     table extra.person: rows with hash ...
UPDATE extra.person SET mail = CASE id WHEN 1799 THEN 'hans.9967@example.org' ELSE
  'hans.1799@example.org' END;
-- two values are swapped within a row:
-- > found     table extra.value: rows with hash ...
UPDATE extra.value SET label = code, code = label WHERE id = 2;
-- NULL stands for an empty text:
-- > found     table backup_drill.item: rows with hash ...
UPDATE backup_drill.item SET "Note" = NULL WHERE "Note" = '';
-- the text NULL stands for NULL:
-- > found     table backup_drill.item: rows with hash ...
UPDATE backup_drill.item SET "Note" = 'NULL' WHERE "Note" IS NULL;
-- 0 stands for -0:
-- > found     table extra.value: rows with hash ...
UPDATE extra.value SET ratio = 0 WHERE id = 4;
-- 1.50 becomes 1.5:
-- > found     table backup_drill.item: rows with hash ...
UPDATE backup_drill.item SET amount = 1.0 WHERE amount::text = '1.00';
-- a time is off by one microsecond:
-- > found     table extra.value: rows with hash ...
UPDATE extra.value SET seen = seen + interval '1 us' WHERE id = 1;
-- one bit of a float is flipped:
-- > found     table extra.value: rows with hash ...
UPDATE extra.value SET ratio = 0.10000000000000002 WHERE id = 1;
-- a decomposed letter is composed:
-- > found     table backup_drill.item: rows with hash ...
UPDATE backup_drill.item SET "Note" = normalize("Note") WHERE "Note" <>
  normalize("Note");
-- a trailing blank is lost:
-- > found     table backup_drill.item: rows with hash ...
UPDATE backup_drill.item SET "Note" = rtrim("Note") WHERE "Note" LIKE '%around  ';
-- a byte of a bytea is changed:
-- > found     table backup_drill.item: rows with hash ...
UPDATE backup_drill.item SET raw = set_byte(raw, 0, 1) WHERE length(raw) > 0;
-- an element of an array is lost:
-- > found     table backup_drill.item: rows with hash ...
UPDATE backup_drill.item SET tags = tags[2:] WHERE tags <> '{}';
-- a field of a composite becomes NULL:
-- > found     table extra.value: rows with hash ...
UPDATE extra.value SET made = NULL WHERE id = 4;
-- two equal rows replace two other equal rows:
-- > found     table backup_drill.event: rows with hash ...
UPDATE backup_drill.event SET at = at + interval '50 hours' WHERE at =
  '2024-01-01 00:00:00+00';
-- a large number has the same halves:
-- > found     table extra.short: rows with hash ...
UPDATE extra.short SET big = 4294967296 WHERE big = 1;
-- a large number changes its sign:
-- > found     table extra.short: rows with hash ...
UPDATE extra.short SET big = -1 WHERE big = 1;
-- a digit of a UUID is changed:
-- > found     table extra.short: rows with hash ...
UPDATE extra.short SET number = '12345678-9abc-def0-1234-56789abcdef1'
 WHERE number IS NOT NULL;
-- two numbers are swapped within a row:
-- > found     table extra.short: rows with hash ...
UPDATE extra.short SET whole = other, other = whole;
-- 0 stands for a NULL:
-- > found     table extra.short: rows with hash ...
UPDATE extra.short SET whole = 0 WHERE whole IS NULL;
-- false stands for a NULL:
-- > found     table extra.short: rows with hash ...
UPDATE extra.short SET flag = false WHERE flag IS NULL;
-- blanks stand for a NULL:
-- > found     table extra.short: rows with hash ...
UPDATE extra.short SET mark = '' WHERE mark IS NULL;
-- a value and a NULL change rows:
-- > found     table extra.short: rows with hash ...
UPDATE extra.short SET whole = CASE WHEN whole IS NULL THEN 1 END;
-- Rows --------------------------------------------------------------------------------

-- a row is deleted:
-- > found     table backup_drill.event: 99 rows
DELETE FROM backup_drill.event WHERE ctid = (SELECT min(ctid) FROM backup_drill.event);
-- a row is added:
-- > found     table extra.line: 42 rows
INSERT INTO extra.line VALUES (1, 'tomorrow');
-- a row is duplicated:
-- > found     table extra.line: 42 rows
INSERT INTO extra.line SELECT * FROM extra.line LIMIT 1;
-- a duplicated row replaces another:
-- > found     table backup_drill.event: rows with hash ...
UPDATE backup_drill.event SET at = '2024-01-01 00:00:00+00' WHERE ctid = (SELECT
  min(ctid) FROM backup_drill.event);
-- a table is emptied:
-- > found     table extra.line: 0 rows
TRUNCATE extra.line;
-- a row moves from a child to its parent:
-- > found     table extra.base: 1 rows
DELETE FROM extra.derived;
INSERT INTO extra.base VALUES (1, 'late');
-- a row of a partition is deleted:
-- > found     table extra.visit: 1 rows
DELETE FROM extra.visit WHERE who = 'a';
-- a row of Django's migrations is deleted:
-- > found     table odd.void: 1 rows
DELETE FROM odd.void WHERE ctid = '(0,1)';
-- > found     table odd.void: rows with hash ...
UPDATE odd.void SET a = 0 WHERE ctid = '(0,1)';
-- > found     table public.django_migrations: 15 rows
DELETE FROM public.django_migrations WHERE app = 'aidscope';

-- Sequences ---------------------------------------------------------------------------

-- > found     sequence extra.counter: 6
SELECT setval('extra.counter', 6);
-- > found     sequence extra.counter: 1, not called yet
SELECT setval('extra.counter', 1, false);
-- > found     sequence extra.untouched: 50
SELECT nextval('extra.untouched');
-- > found     sequence backup_drill.item_id_seq: 99
SELECT setval('backup_drill.item_id_seq', 99);
-- > found     sequence extra.counter: INCREMENT BY 6
ALTER SEQUENCE extra.counter INCREMENT 6;
-- > found     sequence extra.counter: MAXVALUE 2000
ALTER SEQUENCE extra.counter MAXVALUE 2000;
-- > expected  sequence extra.counter: CYCLE
ALTER SEQUENCE extra.counter NO CYCLE;
-- > found     sequence extra.counter: CACHE 1
ALTER SEQUENCE extra.counter CACHE 1;
-- > expected  sequence extra.counter: AS integer
ALTER SEQUENCE extra.counter AS bigint MAXVALUE 1000;
-- > found     sequence extra.untouched: START WITH 51
ALTER SEQUENCE extra.untouched START 51;
-- > expected  sequence owned by extra.counter
ALTER SEQUENCE extra.counter OWNED BY NONE;
-- > expected  sequence extra.untouched
DROP SEQUENCE extra.untouched;

-- Columns -----------------------------------------------------------------------------

-- > found     table extra.visit_2025: who character varying
ALTER TABLE extra.visit_2025 ALTER who TYPE varchar;
-- > found     table extra.value: code character varying(7)
ALTER TABLE extra.value ALTER code TYPE varchar(7);
-- > found     table public.aidscope_delivery: cost numeric(10,3) NOT NULL
ALTER TABLE public.aidscope_delivery ALTER cost TYPE numeric(10, 3);
-- > found     table extra.value: label text DEFAULT 'some'::text NOT NULL COLLATE ...
ALTER TABLE extra.value ALTER label SET DEFAULT 'some';
-- > found     table backup_drill.item: kind character varying(10) NOT NULL
ALTER TABLE backup_drill.item ALTER kind DROP DEFAULT;
-- > found     table extra.value: label text DEFAULT 'none'::text COLLATE pg_catalog."C"
ALTER TABLE extra.value ALTER label DROP NOT NULL;
-- > found     table extra.line: text text NOT NULL
ALTER TABLE extra.line ALTER text SET NOT NULL;
-- > expected  sequence extra.value_number_seq
ALTER TABLE extra.value ALTER number DROP IDENTITY;
-- > found     sequence extra.value_number_seq: ... GENERATED ALWAYS AS IDENTITY (
ALTER TABLE extra.value ALTER number SET GENERATED ALWAYS;
-- > found     table extra.value: twice integer GENERATED ALWAYS AS ((id + id)) STORED
ALTER TABLE extra.value DROP twice, DROP number;
ALTER TABLE extra.value ADD twice integer GENERATED ALWAYS AS (id + id) STORED, ADD
  number integer GENERATED BY DEFAULT AS IDENTITY;
-- > found     table extra.value: twice integer
ALTER TABLE extra.value ALTER twice DROP EXPRESSION;
-- > found     table extra.line: text text COLLATE extra.plain
ALTER TABLE extra.line ALTER text TYPE text COLLATE extra.plain;
-- > found     table extra.visit_2025: SQL with hash ...
ALTER TABLE extra.visit_2025 RENAME who TO was;
ALTER TABLE extra.visit_2025 ADD who text;
UPDATE extra.visit_2025 SET who = was;
ALTER TABLE extra.visit_2025 DROP day, DROP was, ADD day date NOT NULL DEFAULT
  '2025-05-01';
ALTER TABLE extra.visit_2025 ALTER day DROP DEFAULT;
-- > found     table extra.line: more text
ALTER TABLE extra.line ADD more text;
-- > expected  table extra.line: text text
ALTER TABLE extra.line DROP text;
-- > found     table extra.line: words text
ALTER TABLE extra.line RENAME text TO words;
-- > found     table extra.value: ... extra.value ALTER COLUMN label SET STATISTICS 80
ALTER TABLE extra.value ALTER label SET STATISTICS 80;
-- > found     table extra.value: ... extra.value ALTER COLUMN doc SET STORAGE MAIN
ALTER TABLE extra.value ALTER doc SET STORAGE MAIN;
-- > expected  table extra.value: ALTER TABLE ONLY extra.value ALTER COLUMN code SET ...
ALTER TABLE extra.value ALTER code RESET (n_distinct);

-- Constraints -------------------------------------------------------------------------

-- > expected  table extra.value: CONSTRAINT value_price CHECK ((price >= (0)::numeric))
ALTER TABLE extra.value DROP CONSTRAINT value_price;
-- > found     table extra.value: CONSTRAINT value_price CHECK ((price > (0)::numeric))
ALTER TABLE extra.value DROP CONSTRAINT value_price, ADD CONSTRAINT value_price CHECK
  (price > 0);
-- > found     check constraint extra.value value_price
ALTER TABLE extra.value DROP CONSTRAINT value_price, ADD CONSTRAINT value_price CHECK
  (price >= 0) NOT VALID;
-- > found     check constraint public.aidscope_case case_status_known
ALTER TABLE public.aidscope_case DROP CONSTRAINT case_status_known, ADD CONSTRAINT
  case_status_known CHECK (status IN ('waiting', 'open')) NOT VALID;
-- > expected  fk constraint extra.line line_value
ALTER TABLE extra.line DROP CONSTRAINT line_value;
-- > found     fk constraint extra.line line_value: ... UPDATE CASCADE NOT VALID
ALTER TABLE extra.line DROP CONSTRAINT line_value, ADD CONSTRAINT line_value FOREIGN
  KEY (value) REFERENCES extra.value ON UPDATE CASCADE NOT VALID;
-- > found     fk constraint extra.line line_value: ... UPDATE CASCADE NOT VALID
UPDATE pg_constraint SET convalidated = false WHERE conname = 'line_value';
-- > found     fk constraint extra.line line_value: ... REFERENCES extra.value(id)
ALTER TABLE extra.line DROP CONSTRAINT line_value, ADD CONSTRAINT line_value FOREIGN
  KEY (value) REFERENCES extra.value;
-- > found     fk constraint extra.line line_value: ... UPDATE CASCADE DEFERRABLE
ALTER TABLE extra.line ALTER CONSTRAINT line_value DEFERRABLE;
-- > found     trigger extra.line line_keep: ALTER TABLE extra.line DISABLE TRIGGER ...
ALTER TABLE extra.line DISABLE TRIGGER ALL;
-- > found     trigger extra.value value_keep: ALTER TABLE extra.value DISABLE ...
ALTER TABLE extra.value DISABLE TRIGGER ALL;
-- > found     constraint extra.value value_code: ... value_code UNIQUE (code)
ALTER TABLE extra.value DROP CONSTRAINT value_code, ADD CONSTRAINT value_code UNIQUE
  (code);
-- > expected  constraint extra.value value_code
ALTER TABLE extra.value DROP CONSTRAINT value_code;
CREATE UNIQUE INDEX value_code ON extra.value (code);
-- > expected  constraint public.aidscope_delivery_cases aidscope_delivery_cases_pkey
ALTER TABLE public.aidscope_delivery_cases DROP CONSTRAINT aidscope_delivery_cases_pkey;
-- > expected  constraint backup_drill.node node_reserved_excl
ALTER TABLE backup_drill.node DROP CONSTRAINT node_reserved_excl;
-- > found     table extra.line: CONSTRAINT more CHECK ((value < 1000))
ALTER TABLE extra.line ADD CONSTRAINT more CHECK (value < 1000);
-- > found     table extra.value: CONSTRAINT value_cost CHECK ((price >= (0)::numeric))
ALTER TABLE extra.value RENAME CONSTRAINT value_price TO value_cost;

-- Triggers of constraints -------------------------------------------------------------

-- the triggers of a foreign key alone are switched off:
-- > expected  table constraint line_value on extra.line: in order
UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 'extra.line'::regclass AND
  tgconstraint = (SELECT oid FROM pg_constraint WHERE conname = 'line_value');
-- > expected  table constraint line_value on extra.line: in order
UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 'extra.value'::regclass AND
  tgconstraint = (SELECT oid FROM pg_constraint WHERE conname = 'line_value');

-- Indexes -----------------------------------------------------------------------------

-- > expected  index extra.value_label
DROP INDEX extra.value_label;
-- > expected  index extra.value_label
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'extra.value_label'::regclass;
-- > expected  index extra.value_label
UPDATE pg_index SET indisready = false WHERE indexrelid = 'extra.value_label'::regclass;
-- > found     index extra.value_label: ... (code) WHERE (price > (1)::numeric)
DROP INDEX extra.value_label;
CREATE INDEX value_label ON extra.value (label) INCLUDE (code) WHERE price > 1;
-- > found     index public.case_one_open_per_place: CREATE INDEX ...
DROP INDEX public.case_one_open_per_place;
CREATE INDEX case_one_open_per_place ON public.aidscope_case (shelter_id, place) WHERE
  status = 'open';
-- > found     index backup_drill.item_awkward: ... (lower("Note")) WHERE ...
DROP INDEX backup_drill.item_awkward;
CREATE INDEX item_awkward ON backup_drill.item (lower("Note") NULLS LAST)
 WHERE kind IN ('awkward', 'odd') AND ticket BETWEEN 0 AND 9999;
-- > found     index extra.value_ratio: ... (ratio) WITH (pages_per_range='32')
ALTER INDEX extra.value_ratio SET (pages_per_range = 32);
-- > expected  index extra.value_label
ALTER INDEX extra.value_label RENAME TO value_mark;
-- > found     index extra.more
CREATE INDEX more ON extra.line (text);
-- > expected  index attach extra.visit_2023_who_idx
DROP INDEX extra.visit_who;
CREATE INDEX visit_who ON ONLY extra.visit (who);
CREATE INDEX visit_2023_who_idx ON extra.visit_2023 (who);
CREATE INDEX visit_2024_who_idx ON extra.visit_2024 (who);

-- Views, materialized views and rules -------------------------------------------------

-- > expected  view extra.dear
DROP VIEW extra.dear;
-- > found     view extra.dear: WHERE (...price > (3)::numeric)
CREATE OR REPLACE VIEW extra.dear WITH (security_barrier) AS SELECT id, label FROM
  extra.value WHERE price > 3;
-- > found     view backup_drill.awkward: FROM backup_drill.item i
CREATE OR REPLACE VIEW backup_drill.awkward AS SELECT i.id, i."Note" FROM
  backup_drill.item AS i WHERE i.kind IN ('awkward');
-- > found     view extra.dear: CREATE VIEW extra.dear AS
ALTER VIEW extra.dear RESET (security_barrier);
-- > expected  view extra.dear
DROP VIEW extra.dear;
CREATE TABLE extra.dear AS SELECT id, label FROM extra.value WHERE price > 2;
-- > found     default extra.dear label
ALTER VIEW extra.dear ALTER label SET DEFAULT 'x';
-- > found     materialized view extra.counted: SELECT count(...value) AS lines
DROP MATERIALIZED VIEW extra.counted;
CREATE MATERIALIZED VIEW extra.counted AS SELECT count(value) AS lines FROM extra.line;
-- > expected  rows of materialized view extra.counted: made
REFRESH MATERIALIZED VIEW extra.counted WITH NO DATA;
-- > found     rows of materialized view extra.hollow: made
REFRESH MATERIALIZED VIEW extra.hollow;
-- > expected  rule extra.line line_forever
DROP RULE line_forever ON extra.line;
-- > found     rule extra.line line_forever: ON DELETE TO extra.line
CREATE OR REPLACE RULE line_forever AS ON DELETE TO extra.line WHERE old.value > 1 DO
  INSTEAD NOTHING;
-- > found     rule extra.line line_forever: ALTER TABLE extra.line DISABLE RULE ...
ALTER TABLE extra.line DISABLE RULE line_forever;

-- Functions ---------------------------------------------------------------------------

-- > found     function extra.keep(): AS $$BEGIN RETURN OLD; END$$
CREATE OR REPLACE FUNCTION extra.keep() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN RETURN OLD; END';
-- > found     function extra.add_up(integer, integer): LANGUAGE sql STABLE STRICT ...
ALTER FUNCTION extra.add_up STABLE;
-- > found     function extra.add_up(integer, integer): ... SECURITY DEFINER COST 5
ALTER FUNCTION extra.add_up SECURITY DEFINER;
-- > found     function extra.add_up(integer, integer): LANGUAGE sql IMMUTABLE COST 5
ALTER FUNCTION extra.add_up CALLED ON NULL INPUT;
-- > found     function extra.keep(): SET search_path TO 'public'
ALTER FUNCTION extra.keep SET search_path TO public;
-- > found     function extra.add_up(integer, integer): ... IMMUTABLE STRICT COST 6
ALTER FUNCTION extra.add_up COST 6;
-- > found     function extra.add_up(integer, integer): ... 2) RETURNS integer
CREATE OR REPLACE FUNCTION extra.add_up(a integer, b integer DEFAULT 2) RETURNS integer
  LANGUAGE sql IMMUTABLE STRICT COST 5 AS 'SELECT a + b';
-- > expected  procedure extra.nothing(integer)
DROP PROCEDURE extra.nothing;
-- > found     aggregate extra.total(integer): INITCOND = '1'
CREATE OR REPLACE AGGREGATE extra.total (integer) (SFUNC = extra.add_up, STYPE =
  integer, INITCOND = '1');
-- > expected  operator extra.@+
DROP OPERATOR extra.@+ (integer, integer);
-- > expected  cast CAST (extra.pair AS text)
DROP CAST (extra.pair AS text);
-- > found     function extra.add_up(text)
CREATE FUNCTION extra.add_up(a text) RETURNS text LANGUAGE sql AS 'SELECT a';

-- Triggers ----------------------------------------------------------------------------

-- > expected  trigger extra.value value_keep
DROP TRIGGER value_keep ON extra.value;
-- > found     trigger extra.value value_keep: ALTER TABLE extra.value DISABLE ...
ALTER TABLE extra.value DISABLE TRIGGER value_keep;
-- > expected  trigger extra.line line_keep: ALTER TABLE extra.line ENABLE ALWAYS ...
ALTER TABLE extra.line ENABLE TRIGGER line_keep;
-- > found     trigger extra.visit_2023 visit_keep
ALTER TABLE extra.visit_2023 DISABLE TRIGGER visit_keep;
-- > found     trigger extra.value value_keep: ... INSERT ON extra.value FOR EACH ...
CREATE OR REPLACE TRIGGER value_keep BEFORE INSERT ON extra.value FOR EACH ROW EXECUTE
  FUNCTION extra.keep();
-- > expected  event trigger watching
DROP EVENT TRIGGER watching;
-- > found     event trigger watching: ALTER EVENT TRIGGER watching DISABLE
ALTER EVENT TRIGGER watching DISABLE;
-- > found     event trigger watching: WHEN TAG IN ('DROP CAST')
DROP EVENT TRIGGER watching;
CREATE EVENT TRIGGER watching ON ddl_command_end WHEN TAG IN ('DROP CAST') EXECUTE
  FUNCTION extra.watch();

-- Types -------------------------------------------------------------------------------

-- > found     type backup_drill.mood: 'worse'
ALTER TYPE backup_drill.mood ADD VALUE 'worse';
-- > found     type backup_drill.mood: 'ugly'
ALTER TYPE backup_drill.mood RENAME VALUE 'bad' TO 'ugly';
-- > found     type backup_drill.mood: SQL with hash ...
UPDATE pg_enum SET enumsortorder = -1 WHERE enumlabel = 'bad';
-- > found     domain backup_drill.percent: ... AND (VALUE <= (101)::numeric)))
ALTER DOMAIN backup_drill.percent DROP CONSTRAINT percent_check;
ALTER DOMAIN backup_drill.percent ADD CONSTRAINT percent_check CHECK (VALUE BETWEEN 0
  AND 101);
-- > expected  domain extra.word: CONSTRAINT word_check CHECK ((VALUE <> 'never'::text))
ALTER DOMAIN extra.word DROP CONSTRAINT word_check;
-- > found     domain extra.word: CREATE DOMAIN extra.word AS text DEFAULT 'some'::text
ALTER DOMAIN extra.word SET DEFAULT 'some';
-- > found     domain extra.word: CREATE DOMAIN extra.word AS text NOT NULL DEFAULT ...
ALTER DOMAIN extra.word SET NOT NULL;
-- > found     type extra.pair: c integer
ALTER TYPE extra.pair ADD ATTRIBUTE c integer;
-- > expected  type extra.stretch
DROP TYPE extra.stretch;
-- > found     type extra.stretch: subtype = time without time zone
DROP TYPE extra.stretch;
CREATE TYPE extra.stretch AS RANGE (SUBTYPE = time);
-- > expected  collation extra.plain
DROP COLLATION extra.plain;
-- > found     text search configuration extra.simpler: ... WITH english_stem
ALTER TEXT SEARCH CONFIGURATION extra.simpler ALTER MAPPING FOR word WITH
  pg_catalog.english_stem;

-- Owners, grants and policies ---------------------------------------------------------

-- > expected  row security extra.line
ALTER TABLE extra.line DISABLE ROW LEVEL SECURITY;
-- > expected  table extra.line: ALTER TABLE ONLY extra.line FORCE ROW LEVEL SECURITY
ALTER TABLE extra.line NO FORCE ROW LEVEL SECURITY;
-- > expected  policy extra.line line_read
DROP POLICY line_read ON extra.line;
-- > found     policy extra.line line_read: ... drill_reader USING ((value > 0))
ALTER POLICY line_read ON extra.line USING (value > 0);
-- > found     policy extra.line line_write: ... USING (true) WITH CHECK (true)
ALTER POLICY line_write ON extra.line WITH CHECK (true);
-- > found     policy extra.line line_read: ... FOR SELECT USING ((value > 1))
ALTER POLICY line_read ON extra.line TO PUBLIC;
-- > found     policy extra.line line_read: ... AS RESTRICTIVE FOR SELECT TO ...
DROP POLICY line_read ON extra.line;
CREATE POLICY line_read ON extra.line AS RESTRICTIVE FOR SELECT TO drill_reader USING
  (value > 1);
-- > expected  acl extra.TABLE value
REVOKE SELECT ON extra.value FROM drill_reader;
-- > found     acl extra.TABLE value: GRANT SELECT,DELETE ON TABLE extra.value TO ...
GRANT DELETE ON extra.value TO drill_reader;
-- > found     acl extra.TABLE value: ... extra.value TO drill_reader WITH GRANT OPTION
GRANT SELECT ON extra.value TO drill_reader WITH GRANT OPTION;
-- > expected  acl extra.COLUMN value.label
REVOKE UPDATE (label) ON extra.value FROM drill_reader;
-- > expected  acl SCHEMA extra
REVOKE USAGE ON SCHEMA extra FROM drill_reader;
-- > found     acl SCHEMA public
GRANT CREATE ON SCHEMA public TO PUBLIC;
-- > expected  acl extra.FUNCTION add_up(a integer, b integer): REVOKE ALL ON ...
GRANT EXECUTE ON FUNCTION extra.add_up TO PUBLIC;
-- > found     table extra.visit_2025: owner: postgres
ALTER TABLE extra.visit_2025 OWNER TO postgres;
-- > found     function extra.keep(): owner: drill_keeper
ALTER FUNCTION extra.keep OWNER TO drill_keeper;
-- > found     schema spare: owner: drill_keeper
ALTER SCHEMA spare OWNER TO drill_keeper;
-- > expected  default acl extra.DEFAULT PRIVILEGES FOR TABLES
ALTER DEFAULT PRIVILEGES FOR ROLE drill_keeper IN SCHEMA extra REVOKE INSERT ON TABLES
  FROM drill_reader;
-- > found     default acl extra.DEFAULT PRIVILEGES FOR TABLES: ... SELECT,INSERT ON ...
ALTER DEFAULT PRIVILEGES FOR ROLE drill_keeper IN SCHEMA extra GRANT SELECT ON TABLES
  TO drill_reader;

-- Other objects -----------------------------------------------------------------------

-- > expected  comment extra.TABLE value
COMMENT ON TABLE extra.value IS NULL;
-- > found     comment extra.COLUMN value.label: ... extra.value.label IS 'another'
COMMENT ON COLUMN extra.value.label IS 'another';
-- > expected  comment extra.FUNCTION add_up(a integer, b integer)
COMMENT ON FUNCTION extra.add_up(integer, integer) IS NULL;
-- > expected  comment SCHEMA backup_drill
COMMENT ON SCHEMA backup_drill IS NULL;
-- > expected  table backup_drill.event
DROP TABLE backup_drill.event;
-- > found     table extra.more
CREATE TABLE extra.more (id integer);
-- > expected  table extra.visit_2025
ALTER TABLE extra.visit_2025 SET SCHEMA spare;
-- > found     table extra.visit_2025: CREATE UNLOGGED TABLE extra.visit_2025 (
ALTER TABLE extra.visit_2025 SET UNLOGGED;
-- > found     table extra.value: WITH (autovacuum_enabled=off, fillfactor='90')
ALTER TABLE extra.value SET (fillfactor = 90);
-- > expected  table extra.value: ALTER TABLE ONLY extra.value REPLICA IDENTITY FULL
ALTER TABLE extra.value REPLICA IDENTITY DEFAULT;
-- > expected  constraint extra.value value_pkey: ALTER TABLE extra.value CLUSTER ON ...
ALTER TABLE extra.value SET WITHOUT CLUSTER;
-- > expected  table attach extra.visit_2023
ALTER TABLE extra.visit DETACH PARTITION extra.visit_2023;
-- > found     table attach extra.visit_2025
ALTER TABLE extra.visit ATTACH PARTITION extra.visit_2025 FOR VALUES FROM
  ('2025-01-01') TO ('2026-01-01');
-- > found     table attach extra.visit_2023: ... ('2022-01-01') TO ('2024-01-01')
ALTER TABLE extra.visit DETACH PARTITION extra.visit_2023;
ALTER TABLE extra.visit ATTACH PARTITION extra.visit_2023 FOR VALUES FROM
  ('2022-01-01') TO ('2024-01-01');
-- > expected  table extra.visit_2024
DROP TABLE extra.visit_2024;
-- > found     table extra.derived: id integer
ALTER TABLE extra.derived NO INHERIT extra.base;
-- > expected  schema spare
DROP SCHEMA spare;
-- > found     schema more
CREATE SCHEMA more;
-- > expected  extension citext
DROP EXTENSION citext;
-- > found     extension pg_trgm
CREATE EXTENSION pg_trgm SCHEMA extra;
-- > found     extension citext: CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA spare
ALTER EXTENSION citext SET SCHEMA spare;
-- > found     comment EXTENSION citext: COMMENT ON EXTENSION citext IS 'mine'
COMMENT ON EXTENSION citext IS 'mine';
-- > expected  publication news
DROP PUBLICATION news;
-- > found     publication news: ... PUBLICATION news WITH (publish = 'insert, update')
ALTER PUBLICATION news SET (publish = 'insert, update');
-- > expected  publication table extra.news value
ALTER PUBLICATION news DROP TABLE extra.value;
-- > expected  statistics extra.value_facts
DROP STATISTICS extra.value_facts;
-- > found     statistics extra.value_facts: ... extra.value_facts SET STATISTICS 60
ALTER STATISTICS extra.value_facts SET STATISTICS 60;
-- > found     server island: SQL with hash ...
ALTER SERVER island OPTIONS (SET host 'mainland');
-- > expected  user mapping USER MAPPING drill_reader SERVER island
DROP USER MAPPING FOR drill_reader SERVER island;
-- > found     foreign table extra.sand: colour text
ALTER FOREIGN TABLE extra.sand ADD colour text;
-- Large objects -----------------------------------------------------------------------

-- > found     large objects: 2 rows
SELECT lo_unlink(4712);
-- > found     large objects: rows with hash ...
SELECT lo_put(4711, 1, '\xfe');
-- > found     large objects: rows with hash ...
SELECT lo_put(4712, 4, '\x00');
-- > found     large objects: rows with hash ...
ALTER LARGE OBJECT 4712 OWNER TO postgres;
-- > found     large objects: rows with hash ...
REVOKE SELECT ON LARGE OBJECT 4712 FROM drill_reader;
-- > found     large objects: rows with hash ...
COMMENT ON LARGE OBJECT 4711 IS NULL;

-- No damage ---------------------------------------------------------------------------

-- the database is untouched:
-- > nothing
SELECT;
-- rows lie in another physical order:
-- > nothing
UPDATE extra.value SET id = id WHERE id = 1;
CREATE TABLE spare.line AS SELECT * FROM extra.line ORDER BY text DESC;
TRUNCATE extra.line;
INSERT INTO extra.line SELECT * FROM spare.line;
DROP TABLE spare.line;
-- a materialized view is stale:
-- > nothing
ALTER TABLE extra.line DISABLE RULE line_forever;
DELETE FROM extra.line WHERE text = 'line 10' AND value = 2;
REFRESH MATERIALIZED VIEW extra.counted;
INSERT INTO extra.line VALUES (2, 'line 10');
ALTER TABLE extra.line ENABLE RULE line_forever;
-- indexes are built anew:
-- > nothing
REINDEX TABLE extra.value;
-- statistics are taken:
-- > nothing
ANALYZE extra.value, backup_drill.item;
-- a column was there once:
-- > nothing
ALTER TABLE extra.line ADD more text;
ALTER TABLE extra.line DROP more;
