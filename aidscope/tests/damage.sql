-- Rows --------------------------------------------------------------------------------

-- a value is changed:
-- > table extra.value: 4 rows as expected, with other values
UPDATE extra.value SET label = 'Two' WHERE id = 2;
-- two values are swapped between rows:
-- > table extra.value: 4 rows as expected, with other values
UPDATE extra.value SET price = 4 - price WHERE id < 3;
-- two values are swapped within a row:
-- > table extra.value: 4 rows as expected, with other values
UPDATE extra.value SET label = code, code = label WHERE id = 2;
-- NULL stands for an empty text:
-- > table backup_drill.item: 100 rows as expected, with other values
UPDATE backup_drill.item SET "Note" = NULL WHERE "Note" = '';
-- the text NULL stands for NULL:
-- > table backup_drill.item: 100 rows as expected, with other values
UPDATE backup_drill.item SET "Note" = 'NULL' WHERE "Note" IS NULL;
-- 0 stands for -0:
-- > table extra.value: 4 rows as expected, with other values
UPDATE extra.value SET ratio = 0 WHERE id = 4;
-- 1.50 becomes 1.5:
-- > table backup_drill.item: 100 rows as expected, with other values
UPDATE backup_drill.item SET amount = 1.0 WHERE amount::text = '1.00';
-- a time is off by one microsecond:
-- > table extra.value: 4 rows as expected, with other values
UPDATE extra.value SET seen = seen + interval '1 us' WHERE id = 1;
-- one bit of a float is flipped:
-- > table extra.value: 4 rows as expected, with other values
UPDATE extra.value SET ratio = 0.10000000000000002 WHERE id = 1;
-- a decomposed letter is composed:
-- > table backup_drill.item: 100 rows as expected, with other values
UPDATE backup_drill.item SET "Note" = normalize("Note") WHERE "Note" <>
  normalize("Note");
-- a trailing blank is lost:
-- > table backup_drill.item: 100 rows as expected, with other values
UPDATE backup_drill.item SET "Note" = rtrim("Note") WHERE "Note" LIKE '%around  ';
-- a byte of a bytea is changed:
-- > table backup_drill.item: 100 rows as expected, with other values
UPDATE backup_drill.item SET raw = set_byte(raw, 0, 1) WHERE length(raw) > 0;
-- an element of an array is lost:
-- > table backup_drill.item: 100 rows as expected, with other values
UPDATE backup_drill.item SET tags = tags[2:] WHERE tags <> '{}';
-- a field of a composite becomes NULL:
-- > table extra.value: 4 rows as expected, with other values
UPDATE extra.value SET made = NULL WHERE id = 4;
-- two equal rows replace two other equal rows:
-- > table backup_drill.event: 100 rows as expected, with other values
UPDATE backup_drill.event SET at = at + interval '50 hours' WHERE at =
  '2024-01-01 00:00:00+00';
-- a large number has the same halves:
-- > table extra.short: 2 rows as expected, with other values
UPDATE extra.short SET big = 4294967296 WHERE big = 1;
-- two numbers are swapped within a row:
-- > table extra.short: 2 rows as expected, with other values
UPDATE extra.short SET whole = other, other = whole;
-- 0 stands for a NULL:
-- > table extra.short: 2 rows as expected, with other values
UPDATE extra.short SET whole = 0 WHERE whole IS NULL;
-- false stands for a NULL:
-- > table extra.short: 2 rows as expected, with other values
UPDATE extra.short SET flag = false WHERE flag IS NULL;
-- blanks stand for a NULL:
-- > table extra.short: 2 rows as expected, with other values
UPDATE extra.short SET mark = '' WHERE mark IS NULL;
-- a value and a NULL change rows:
-- > table extra.short: 2 rows as expected, with other values
UPDATE extra.short SET whole = CASE WHEN whole IS NULL THEN 1 END;
-- a row is deleted:
-- > table backup_drill.event: found 99 rows, expected 100
DELETE FROM backup_drill.event WHERE ctid = (SELECT min(ctid) FROM backup_drill.event);
-- a row is added:
-- > table extra.line: found 42 rows, expected 41
INSERT INTO extra.line VALUES (1, 'tomorrow');
-- a row is duplicated:
-- > table extra.line: found 42 rows, expected 41
INSERT INTO extra.line SELECT * FROM extra.line LIMIT 1;
-- a duplicated row replaces another:
-- > table backup_drill.event: 100 rows as expected, with other values
UPDATE backup_drill.event SET at = '2024-01-01 00:00:00+00' WHERE ctid = (SELECT
  min(ctid) FROM backup_drill.event);
-- a table is emptied:
-- > table extra.line: found 0 rows, expected 41
TRUNCATE extra.line;
-- a row moves from a child to its parent:
-- > table extra.base: found 1 rows, expected 0
DELETE FROM extra.derived;
INSERT INTO extra.base VALUES (1, 'late');
-- a row of a partition is deleted:
-- > table extra.visit: found 1 rows, expected 2
DELETE FROM extra.visit WHERE who = 'a';
-- a row of Django's migrations is deleted:
-- > table public.django_migrations: found 15 rows, expected 16
DELETE FROM public.django_migrations WHERE app = 'aidscope';

-- Sequences ---------------------------------------------------------------------------

-- > sequence extra.counter: found 
SELECT setval('extra.counter', 6);
-- > sequence extra.counter: found 
SELECT setval('extra.counter', 1, false);
-- > sequence extra.untouched: found 
SELECT nextval('extra.untouched');
-- > sequence backup_drill.item_id_seq: found 
SELECT setval('backup_drill.item_id_seq', 99);
-- > sequence extra.counter: found INCREMENT BY 6, expected INCREMENT BY 5
ALTER SEQUENCE extra.counter INCREMENT 6;
-- > sequence extra.counter: found MAXVALUE 2000, expected MAXVALUE 1000
ALTER SEQUENCE extra.counter MAXVALUE 2000;
-- > sequence extra.counter: found nothing, expected CYCLE
ALTER SEQUENCE extra.counter NO CYCLE;
-- > sequence extra.counter: found CACHE 1, expected CACHE 7
ALTER SEQUENCE extra.counter CACHE 1;
-- > sequence extra.counter: found nothing, expected AS integer
ALTER SEQUENCE extra.counter AS bigint MAXVALUE 1000;
-- > sequence extra.untouched: found START WITH 51, expected START WITH 50
ALTER SEQUENCE extra.untouched START 51;
-- > sequence owned by extra.counter: missing
ALTER SEQUENCE extra.counter OWNED BY NONE;
-- > sequence extra.untouched: missing
DROP SEQUENCE extra.untouched;

-- Columns -----------------------------------------------------------------------------

-- > table extra.visit_2025: found who character varying, expected who text
ALTER TABLE extra.visit_2025 ALTER who TYPE varchar;
-- > table extra.value: found code character varying(7)
ALTER TABLE extra.value ALTER code TYPE varchar(7);
-- > table public.aidscope_delivery: found cost numeric(10,3) NOT NULL
ALTER TABLE public.aidscope_delivery ALTER cost TYPE numeric(10, 3);
-- > table extra.value: found label text DEFAULT 'some'::text NOT NULL COLLATE pg_catal
ALTER TABLE extra.value ALTER label SET DEFAULT 'some';
-- > table backup_drill.item: found kind character varying(10) NOT NULL
ALTER TABLE backup_drill.item ALTER kind DROP DEFAULT;
-- > table extra.value: found ...bel text DEFAULT 'none'::text COLLATE pg_catalog."C"
ALTER TABLE extra.value ALTER label DROP NOT NULL;
-- > table extra.line: found text text NOT NULL, expected text text
ALTER TABLE extra.line ALTER text SET NOT NULL;
-- > sequence extra.value_number_seq: missing
ALTER TABLE extra.value ALTER number DROP IDENTITY;
-- > sequence extra.value_number_seq: found ...R COLUMN number ADD GENERATED ALWAYS AS
ALTER TABLE extra.value ALTER number SET GENERATED ALWAYS;
-- > table extra.value: found ...eger GENERATED ALWAYS AS ((id + id)) STORED
ALTER TABLE extra.value DROP twice, DROP number;
ALTER TABLE extra.value ADD twice integer GENERATED ALWAYS AS (id + id) STORED, ADD
  number integer GENERATED BY DEFAULT AS IDENTITY;
-- > table extra.value: found twice integer
ALTER TABLE extra.value ALTER twice DROP EXPRESSION;
-- > table extra.line: found text text COLLATE extra.plain, expected text text
ALTER TABLE extra.line ALTER text TYPE text COLLATE extra.plain;
-- > table extra.visit_2025: the same lines, in another order
ALTER TABLE extra.visit_2025 RENAME who TO was;
ALTER TABLE extra.visit_2025 ADD who text;
UPDATE extra.visit_2025 SET who = was;
ALTER TABLE extra.visit_2025 DROP day, DROP was, ADD day date NOT NULL DEFAULT
  '2025-05-01';
ALTER TABLE extra.visit_2025 ALTER day DROP DEFAULT;
-- > table extra.line: found more text, expected nothing
ALTER TABLE extra.line ADD more text;
-- > table extra.line: found nothing, expected text text
ALTER TABLE extra.line DROP text;
-- > table extra.line: found words text, expected text text
ALTER TABLE extra.line RENAME text TO words;
-- > table extra.value: found ...R COLUMN label SET STATISTICS 80
ALTER TABLE extra.value ALTER label SET STATISTICS 80;
-- > table extra.value: found ... ALTER COLUMN doc SET STORAGE MAIN
ALTER TABLE extra.value ALTER doc SET STORAGE MAIN;
-- > table extra.value: found nothing, expected ALTER TABLE ONLY extra.value ALTER COLUMN
ALTER TABLE extra.value ALTER code RESET (n_distinct);

-- Constraints -------------------------------------------------------------------------

-- > table extra.value: found nothing, expected CONSTRAINT value_price CHECK ((price >=
ALTER TABLE extra.value DROP CONSTRAINT value_price;
-- > table extra.value: found ...NT value_price CHECK ((price > (0)::numeric))
ALTER TABLE extra.value DROP CONSTRAINT value_price, ADD CONSTRAINT value_price CHECK
  (price > 0);
-- > check constraint extra.value value_price: unexpected
ALTER TABLE extra.value DROP CONSTRAINT value_price, ADD CONSTRAINT value_price CHECK
  (price >= 0) NOT VALID;
-- > check constraint public.aidscope_case case_status_known: unexpected
ALTER TABLE public.aidscope_case DROP CONSTRAINT case_status_known, ADD CONSTRAINT
  case_status_known CHECK (status IN ('waiting', 'open')) NOT VALID;
-- > fk constraint extra.line line_value: missing
ALTER TABLE extra.line DROP CONSTRAINT line_value;
-- > fk constraint extra.line line_value: found ...ra.value(id) ON UPDATE CASCADE NOT V
ALTER TABLE extra.line DROP CONSTRAINT line_value, ADD CONSTRAINT line_value FOREIGN
  KEY (value) REFERENCES extra.value ON UPDATE CASCADE NOT VALID;
-- > fk constraint extra.line line_value: found ...ra.value(id) ON UPDATE CASCADE NOT V
UPDATE pg_constraint SET convalidated = false WHERE conname = 'line_value';
-- > fk constraint extra.line line_value: found ...ue) REFERENCES extra.value(id)
ALTER TABLE extra.line DROP CONSTRAINT line_value, ADD CONSTRAINT line_value FOREIGN
  KEY (value) REFERENCES extra.value;
-- > fk constraint extra.line line_value: found ...ra.value(id) ON UPDATE CASCADE DEFER
ALTER TABLE extra.line ALTER CONSTRAINT line_value DEFERRABLE;
-- > table constraint line_value on extra.line: its triggers are switched off
ALTER TABLE extra.line DISABLE TRIGGER ALL;
-- > table constraint line_value on extra.line: its triggers are switched off
ALTER TABLE extra.value DISABLE TRIGGER ALL;
-- > constraint extra.value value_code: found ...RAINT value_code UNIQUE (code)
ALTER TABLE extra.value DROP CONSTRAINT value_code, ADD CONSTRAINT value_code UNIQUE
  (code);
-- > constraint extra.value value_code: missing
ALTER TABLE extra.value DROP CONSTRAINT value_code;
CREATE UNIQUE INDEX value_code ON extra.value (code);
-- > constraint public.aidscope_delivery_cases aidscope_delivery_cases_pkey: missing
ALTER TABLE public.aidscope_delivery_cases DROP CONSTRAINT aidscope_delivery_cases_pkey;
-- > constraint backup_drill.node node_reserved_excl: missing
ALTER TABLE backup_drill.node DROP CONSTRAINT node_reserved_excl;
-- > table extra.line: found CONSTRAINT more CHECK ((value < 1000)), expected nothing
ALTER TABLE extra.line ADD CONSTRAINT more CHECK (value < 1000);
-- > table extra.value: found CONSTRAINT value_cost CHECK ((price >= (0)::numeric))
ALTER TABLE extra.value RENAME CONSTRAINT value_price TO value_cost;

-- Indexes -----------------------------------------------------------------------------

-- > index extra.value_label: missing
DROP INDEX extra.value_label;
-- > index extra.value_label: missing
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'extra.value_label'::regclass;
-- > index extra.value_label: missing
UPDATE pg_index SET indisready = false WHERE indexrelid = 'extra.value_label'::regclass;
-- > index extra.value_label: found ...NCLUDE (code) WHERE (price > (1)::numeric)
DROP INDEX extra.value_label;
CREATE INDEX value_label ON extra.value (label) INCLUDE (code) WHERE price > 1;
-- > index public.case_one_open_per_place: found CREATE INDEX case_one_open_per_place O
DROP INDEX public.case_one_open_per_place;
CREATE INDEX case_one_open_per_place ON public.aidscope_case (shelter_id, place) WHERE
  status = 'open';
-- > index backup_drill.item_awkward: found ...tem USING btree (lower("Note")) WHERE ((
DROP INDEX backup_drill.item_awkward;
CREATE INDEX item_awkward ON backup_drill.item (lower("Note") NULLS LAST)
 WHERE kind IN ('awkward', 'odd') AND ticket BETWEEN 0 AND 9999;
-- > index extra.value_ratio: found ...ratio) WITH (pages_per_range='32')
ALTER INDEX extra.value_ratio SET (pages_per_range = 32);
-- > index extra.value_label: missing
ALTER INDEX extra.value_label RENAME TO value_mark;
-- > index extra.more: unexpected
CREATE INDEX more ON extra.line (text);
-- > index attach extra.visit_2023_who_idx: missing
DROP INDEX extra.visit_who;
CREATE INDEX visit_who ON ONLY extra.visit (who);
CREATE INDEX visit_2023_who_idx ON extra.visit_2023 (who);
CREATE INDEX visit_2024_who_idx ON extra.visit_2024 (who);

-- Views, materialized views and rules -------------------------------------------------

-- > view extra.dear: missing
DROP VIEW extra.dear;
-- > view extra.dear: found WHERE (value.price > (3)::numeric)
CREATE OR REPLACE VIEW extra.dear WITH (security_barrier) AS SELECT id, label FROM
  extra.value WHERE price > 3;
-- > view backup_drill.awkward: found SELECT i.id, expected SELECT item.id
CREATE OR REPLACE VIEW backup_drill.awkward AS SELECT i.id, i."Note" FROM
  backup_drill.item AS i WHERE i.kind IN ('awkward');
-- > view extra.dear: found CREATE VIEW extra.dear AS
ALTER VIEW extra.dear RESET (security_barrier);
-- > view extra.dear: missing
DROP VIEW extra.dear;
CREATE TABLE extra.dear AS SELECT id, label FROM extra.value WHERE price > 2;
-- > default extra.dear label: unexpected
ALTER VIEW extra.dear ALTER label SET DEFAULT 'x';
-- > materialized view extra.counted: found SELECT count(line.value) AS lines
DROP MATERIALIZED VIEW extra.counted;
CREATE MATERIALIZED VIEW extra.counted AS SELECT count(value) AS lines FROM extra.line;
-- > materialized view data extra.counted: missing
REFRESH MATERIALIZED VIEW extra.counted WITH NO DATA;
-- > materialized view data extra.hollow: unexpected
REFRESH MATERIALIZED VIEW extra.hollow;
-- > rule extra.line line_forever: missing
DROP RULE line_forever ON extra.line;
-- > rule extra.line line_forever: found ON DELETE TO extra.line
CREATE OR REPLACE RULE line_forever AS ON DELETE TO extra.line WHERE old.value > 1 DO
  INSTEAD NOTHING;
-- > rule extra.line line_forever: found ALTER TABLE extra.line DISABLE RULE line_forev
ALTER TABLE extra.line DISABLE RULE line_forever;

-- Functions ---------------------------------------------------------------------------

-- > function extra.keep(): found AS $$BEGIN RETURN OLD; END$$
CREATE OR REPLACE FUNCTION extra.keep() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN RETURN OLD; END';
-- > function extra.add_up(integer, integer): found LANGUAGE sql STABLE STRICT COST 5
ALTER FUNCTION extra.add_up STABLE;
-- > function extra.add_up(integer, integer): found LANGUAGE sql IMMUTABLE STRICT SECUR
ALTER FUNCTION extra.add_up SECURITY DEFINER;
-- > function extra.add_up(integer, integer): found LANGUAGE sql IMMUTABLE COST 5
ALTER FUNCTION extra.add_up CALLED ON NULL INPUT;
-- > function extra.keep(): found SET search_path TO 'public', expected nothing
ALTER FUNCTION extra.keep SET search_path TO public;
-- > function extra.add_up(integer, integer): found ...AGE sql IMMUTABLE STRICT COST 6
ALTER FUNCTION extra.add_up COST 6;
-- > function extra.add_up(integer, integer): found ...(a integer, b integer DEFAULT 2)
CREATE OR REPLACE FUNCTION extra.add_up(a integer, b integer DEFAULT 2) RETURNS integer
  LANGUAGE sql IMMUTABLE STRICT COST 5 AS 'SELECT a + b';
-- > procedure extra.nothing(integer): missing
DROP PROCEDURE extra.nothing;
-- > aggregate extra.total(integer): found INITCOND = '1', expected INITCOND = '0'
CREATE OR REPLACE AGGREGATE extra.total (integer) (SFUNC = extra.add_up, STYPE =
  integer, INITCOND = '1');
-- > operator extra.@+: missing
DROP OPERATOR extra.@+ (integer, integer);
-- > cast CAST (extra.pair AS text): missing
DROP CAST (extra.pair AS text);
-- > function extra.add_up(text): unexpected
CREATE FUNCTION extra.add_up(a text) RETURNS text LANGUAGE sql AS 'SELECT a';

-- Triggers ----------------------------------------------------------------------------

-- > trigger extra.value value_keep: missing
DROP TRIGGER value_keep ON extra.value;
-- > trigger extra.value value_keep: found ALTER TABLE extra.value DISABLE TRIGGER valu
ALTER TABLE extra.value DISABLE TRIGGER value_keep;
-- > trigger extra.line line_keep: found nothing, expected ALTER TABLE extra.line ENABL
ALTER TABLE extra.line ENABLE TRIGGER line_keep;
-- > trigger extra.visit_2023 visit_keep: unexpected
ALTER TABLE extra.visit_2023 DISABLE TRIGGER visit_keep;
-- > trigger extra.value value_keep: found ...ATE TRIGGER value_keep BEFORE INSERT ON e
CREATE OR REPLACE TRIGGER value_keep BEFORE INSERT ON extra.value FOR EACH ROW EXECUTE
  FUNCTION extra.keep();
-- > event trigger watching: missing
DROP EVENT TRIGGER watching;
-- > event trigger watching: found ALTER EVENT TRIGGER watching DISABLE
ALTER EVENT TRIGGER watching DISABLE;
-- > event trigger watching: found WHEN TAG IN ('DROP CAST')
DROP EVENT TRIGGER watching;
CREATE EVENT TRIGGER watching ON ddl_command_end WHEN TAG IN ('DROP CAST') EXECUTE
  FUNCTION extra.watch();

-- Types -------------------------------------------------------------------------------

-- > type backup_drill.mood: found 'worse', expected nothing
ALTER TYPE backup_drill.mood ADD VALUE 'worse';
-- > type backup_drill.mood: found 'ugly', expected 'bad'
ALTER TYPE backup_drill.mood RENAME VALUE 'bad' TO 'ugly';
-- > type backup_drill.mood: the same lines, in another order
UPDATE pg_enum SET enumsortorder = -1 WHERE enumlabel = 'bad';
-- > domain backup_drill.percent: found ...0)::numeric) AND (VALUE <= (101)::numeric)))
ALTER DOMAIN backup_drill.percent DROP CONSTRAINT percent_check;
ALTER DOMAIN backup_drill.percent ADD CONSTRAINT percent_check CHECK (VALUE BETWEEN 0
  AND 101);
-- > domain extra.word: found nothing, expected CONSTRAINT word_check CHECK ((VALUE <>
ALTER DOMAIN extra.word DROP CONSTRAINT word_check;
-- > domain extra.word: found ...N extra.word AS text DEFAULT 'some'::text
ALTER DOMAIN extra.word SET DEFAULT 'some';
-- > domain extra.word: found ...ATE DOMAIN extra.word AS text NOT NULL DEFAULT 'none':
ALTER DOMAIN extra.word SET NOT NULL;
-- > type extra.pair: found c integer, expected nothing
ALTER TYPE extra.pair ADD ATTRIBUTE c integer;
-- > type extra.stretch: missing
DROP TYPE extra.stretch;
-- > type extra.stretch: found subtype = time without time zone
DROP TYPE extra.stretch;
CREATE TYPE extra.stretch AS RANGE (SUBTYPE = time);
-- > collation extra.plain: missing
DROP COLLATION extra.plain;
-- > text search configuration extra.simpler: found ADD MAPPING FOR word WITH english_s
ALTER TEXT SEARCH CONFIGURATION extra.simpler ALTER MAPPING FOR word WITH
  pg_catalog.english_stem;

-- Owners, grants and policies ---------------------------------------------------------

-- > row security extra.line: missing
ALTER TABLE extra.line DISABLE ROW LEVEL SECURITY;
-- > table extra.line: found nothing, expected ALTER TABLE ONLY extra.line FORCE ROW LEV
ALTER TABLE extra.line NO FORCE ROW LEVEL SECURITY;
-- > policy extra.line line_read: missing
DROP POLICY line_read ON extra.line;
-- > policy extra.line line_read: found ... drill_reader USING ((value > 0))
ALTER POLICY line_read ON extra.line USING (value > 0);
-- > policy extra.line line_write: found ...DATE USING (true) WITH CHECK (true)
ALTER POLICY line_write ON extra.line WITH CHECK (true);
-- > policy extra.line line_read: found ...read ON extra.line FOR SELECT USING ((value
ALTER POLICY line_read ON extra.line TO PUBLIC;
-- > policy extra.line line_read: found ...OLICY line_read ON extra.line AS RESTRICTIVE
DROP POLICY line_read ON extra.line;
CREATE POLICY line_read ON extra.line AS RESTRICTIVE FOR SELECT TO drill_reader USING
  (value > 1);
-- > acl extra.TABLE value: missing
REVOKE SELECT ON extra.value FROM drill_reader;
-- > acl extra.TABLE value: found GRANT SELECT,DELETE ON TABLE extra.value TO drill_rea
GRANT DELETE ON extra.value TO drill_reader;
-- > acl extra.TABLE value: found ...LE extra.value TO drill_reader WITH GRANT OPTION
GRANT SELECT ON extra.value TO drill_reader WITH GRANT OPTION;
-- > acl extra.COLUMN value.label: missing
REVOKE UPDATE (label) ON extra.value FROM drill_reader;
-- > acl SCHEMA extra: missing
REVOKE USAGE ON SCHEMA extra FROM drill_reader;
-- > acl SCHEMA public: unexpected
GRANT CREATE ON SCHEMA public TO PUBLIC;
-- > acl extra.FUNCTION add_up(a integer, b integer): found nothing, expected REVOKE ALL
GRANT EXECUTE ON FUNCTION extra.add_up TO PUBLIC;
-- > table extra.visit_2025: found Owner: postgres, expected Owner: drill_keeper
ALTER TABLE extra.visit_2025 OWNER TO postgres;
-- > function extra.keep(): found Owner: drill_keeper, expected Owner: postgres
ALTER FUNCTION extra.keep OWNER TO drill_keeper;
-- > schema spare: found Owner: drill_keeper, expected Owner: postgres
ALTER SCHEMA spare OWNER TO drill_keeper;
-- > default acl extra.DEFAULT PRIVILEGES FOR TABLES: missing
ALTER DEFAULT PRIVILEGES FOR ROLE drill_keeper IN SCHEMA extra REVOKE INSERT ON TABLES
  FROM drill_reader;
-- > default acl extra.DEFAULT PRIVILEGES FOR TABLES: found ..._keeper IN SCHEMA extra
ALTER DEFAULT PRIVILEGES FOR ROLE drill_keeper IN SCHEMA extra GRANT SELECT ON TABLES
  TO drill_reader;

-- Other objects -----------------------------------------------------------------------

-- > comment extra.TABLE value: missing
COMMENT ON TABLE extra.value IS NULL;
-- > comment extra.COLUMN value.label: found ...COLUMN extra.value.label IS 'another'
COMMENT ON COLUMN extra.value.label IS 'another';
-- > comment extra.FUNCTION add_up(a integer, b integer): missing
COMMENT ON FUNCTION extra.add_up(integer, integer) IS NULL;
-- > comment SCHEMA backup_drill: missing
COMMENT ON SCHEMA backup_drill IS NULL;
-- > table backup_drill.event: missing
DROP TABLE backup_drill.event;
-- > table extra.more: unexpected
CREATE TABLE extra.more (id integer);
-- > table extra.visit_2025: missing
ALTER TABLE extra.visit_2025 SET SCHEMA spare;
-- > table extra.visit_2025: found CREATE UNLOGGED TABLE extra.visit_2025 (
ALTER TABLE extra.visit_2025 SET UNLOGGED;
-- > table extra.value: found WITH (autovacuum_enabled=off, fillfactor='90')
ALTER TABLE extra.value SET (fillfactor = 90);
-- > table extra.value: found nothing, expected ALTER TABLE ONLY extra.value REPLICA ID
ALTER TABLE extra.value REPLICA IDENTITY DEFAULT;
-- > constraint extra.value value_pkey: found nothing, expected ALTER TABLE extra.value
ALTER TABLE extra.value SET WITHOUT CLUSTER;
-- > table attach extra.visit_2023: missing
ALTER TABLE extra.visit DETACH PARTITION extra.visit_2023;
-- > table attach extra.visit_2025: unexpected
ALTER TABLE extra.visit ATTACH PARTITION extra.visit_2025 FOR VALUES FROM
  ('2025-01-01') TO ('2026-01-01');
-- > table attach extra.visit_2023: found ...sit_2023 FOR VALUES FROM ('2022-01-01') TO
ALTER TABLE extra.visit DETACH PARTITION extra.visit_2023;
ALTER TABLE extra.visit ATTACH PARTITION extra.visit_2023 FOR VALUES FROM
  ('2022-01-01') TO ('2024-01-01');
-- > table extra.visit_2024: missing
DROP TABLE extra.visit_2024;
-- > table extra.derived: found id integer, expected INHERITS (extra.base)
ALTER TABLE extra.derived NO INHERIT extra.base;
-- > schema spare: missing
DROP SCHEMA spare;
-- > schema more: unexpected
CREATE SCHEMA more;
-- > extension citext: missing
DROP EXTENSION citext;
-- > extension pg_trgm: unexpected
CREATE EXTENSION pg_trgm SCHEMA extra;
-- > extension citext: found ...NOT EXISTS citext WITH SCHEMA spare
ALTER EXTENSION citext SET SCHEMA spare;
-- > comment EXTENSION citext: found ...MMENT ON EXTENSION citext IS 'mine'
COMMENT ON EXTENSION citext IS 'mine';
-- > publication news: missing
DROP PUBLICATION news;
-- > publication news: found ...N news WITH (publish = 'insert, update')
ALTER PUBLICATION news SET (publish = 'insert, update');
-- > publication table extra.news value: missing
ALTER PUBLICATION news DROP TABLE extra.value;
-- > statistics extra.value_facts: missing
DROP STATISTICS extra.value_facts;
-- > statistics extra.value_facts: found ...ra.value_facts SET STATISTICS 60
ALTER STATISTICS extra.value_facts SET STATISTICS 60;
-- > server island: found host 'mainland', expected host 'island'
ALTER SERVER island OPTIONS (SET host 'mainland');
-- > user mapping USER MAPPING drill_reader SERVER island: missing
DROP USER MAPPING FOR drill_reader SERVER island;
-- > foreign table extra.sand: found colour text, expected nothing
ALTER FOREIGN TABLE extra.sand ADD colour text;
-- > large objects: found 1 rows, expected 2
SELECT lo_unlink(4712);
-- > large objects: 2 rows as expected, with other values
SELECT lo_put(4711, 1, '\xfe');
-- > large objects: 2 rows as expected, with other values
SELECT lo_put(4712, 4, '\x00');
-- > large objects: 2 rows as expected, with other values
ALTER LARGE OBJECT 4712 OWNER TO postgres;
-- > large objects: 2 rows as expected, with other values
REVOKE SELECT ON LARGE OBJECT 4712 FROM drill_reader;
-- > large objects: 2 rows as expected, with other values
COMMENT ON LARGE OBJECT 4711 IS NULL;

-- No damage -------------------------------------------------------------------------

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
