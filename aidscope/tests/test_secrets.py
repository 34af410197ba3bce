"""A password is printed nowhere, however a drill ends, and neither is a row.

The password holds what is special to URLs, shells, SQL and Python, around a word that
no way of quoting changes: that word is searched for in all that can be read.
"""

import json
import signal
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import dj_database_url
import psycopg2

from aidscope.tests import in_process
from aidscope.tests.in_process import drilled
from aidscope.tests.support import (
    CLIENTS,
    DUMPS,
    LOADS,
    SECRET,
    SERVER_PROGRAMS,
    WORKING,
    Case,
    Ended,
    Place,
    Row,
    below_comment,
    copied,
    database,
    eventually,
    execute,
    pg_dump,
    place,
    plain,
    programs,
    server,
    small,
)
from scripts import test_backup_restore as drill

PASSWORD = f"p@ss:w/rd%20'\"\\$ `{{{SECRET}}}é|\\'"
LIVE = ("--live", "--no-throwaway")
PRIVATE = ("--live", "--throwaway")
# Forms in which a program might repeat the password that it was given.
FORMS = [
    PASSWORD,
    quote(PASSWORD, safe=""),
    quote(PASSWORD),
    repr(PASSWORD),
    json.dumps(PASSWORD),
    PASSWORD.replace("\\", "\\\\").replace("'", "\\'"),  # in a connection string
    PASSWORD.replace("'", "''"),  # in SQL
]


@cache
def secret_role() -> str:
    """A role that needs the password, and owns a database of its name."""
    name = "site_secret"
    literal = PASSWORD.replace("'", "''")
    execute("postgres", f"CREATE ROLE {name} LOGIN CREATEDB PASSWORD '{literal}'")
    execute("postgres", f"CREATE DATABASE {name} OWNER {name} TEMPLATE template0")
    execute(
        name, f"CREATE TABLE kept AS SELECT 1 AS id; ALTER TABLE kept OWNER TO {name}"
    )
    rules = server().data / "pg_hba.conf"
    rules.write_text(f"local all {name} scram-sha-256\n{rules.read_text()}")
    execute("postgres", "SELECT pg_reload_conf()")
    if not eventually(is_asked_for_a_password):
        raise AssertionError(f"the server does not ask {name} for a password")
    return name


def is_asked_for_a_password() -> bool:
    """Whether the server refuses the role without one."""
    try:
        server().query("postgres", "SELECT 1", user="site_secret")
    except psycopg2.OperationalError:
        return True
    return False


# --- Ways to have a password ----------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Where the settings have the password, and what in them does not work."""

    password_in: str = "URL"
    password: str = PASSWORD
    host: str = ""
    name: str = ""
    more: str = ""  # Python at their end

    def written(self, here: Place) -> dict[str, str]:
        """How to run a drill with them."""
        role = secret_role()
        host = self.host or str(server().data)
        name = self.name or role
        how = {
            "DJANGO_SETTINGS_MODULE": "secret_settings",
            "PYTHONPATH": str(here.folder),
        }
        words = {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": role}
        if self.password_in == "URL":
            who = f"{role}:{quote(self.password, safe='')}"
            how["url"] = f"postgresql://{who}@{quote(host, safe='')}/{name}"
        elif self.password_in == "OPTIONS":
            words.update(HOST=host, OPTIONS={"password": self.password})
        elif self.password_in == "PGPASSWORD":
            how.update(PGHOST=host, PGPASSWORD=self.password)
        else:
            escaped = self.password.replace("\\", r"\\").replace(":", r"\:")
            file = here.folder / "passwords"
            file.write_text(f"*:*:*:*:{escaped}\n")
            file.chmod(0o600)
            how.update(PGHOST=host, PGPASSFILE=str(file))
        # What else is installed would take most of the time of migrations.
        apps = "INSTALLED_APPS = ['django.contrib.contenttypes']"
        lines = [f"from aidscope.settings import *; {apps}"]
        if self.password_in != "URL":
            lines.append(f"DATABASES = {{'default': {words!r}}}")
        text = "\n".join([*lines, self.more])
        (here.folder / "secret_settings.py").write_text(text, encoding="utf-8")
        return how


# Notes of a program what it was given: its arguments, and the variables but one.
NOTE = """
{ printf "%s\\n" "$@"; env | grep -v "^PGPASSWORD="; } >> "$PLACE/given"
"""
TELLS = 'cat "$PLACE/forms" >&2; echo "$PGPASSWORD" >&2'
WARNS = """
echo "$PGPASSWORD" >> "$PLACE/forms"
sed 's/^/pg_dump: warning: /' "$PLACE/forms" >&2
"""


@dataclass(frozen=True)
class Way(Row):
    """How a drill meets the password, how it ends, and what is said then."""

    verdict: str
    says: tuple[str, ...]
    settings: Settings = Settings()
    arguments: tuple[str, ...] = LIVE
    stand_in: tuple[str, str, str] = ("psql", "", WORKING)


REDACTED = "[REDACTED]"
PRINTS = "import sys; print(DATABASES); print(DATABASES, file=sys.stderr)"
PASSES = (
    Way("in OPTIONS", "passed", (), Settings("OPTIONS")),
    Way(
        "in PGPASSWORD, by a rehearsal with warnings",
        "passed",
        (REDACTED,),
        Settings("PGPASSWORD"),
        ("-k", "creation"),
        ("pg_dump", WARNS, DUMPS),
    ),
    Way(
        "in a file of passwords",
        "passed",
        (),
        Settings("PGPASSFILE"),
        (*LIVE, "-k", "creation"),
    ),
    Way(
        "settings that print it",
        "passed",
        (),
        Settings(more=PRINTS),
        (*LIVE, "-k", "creation"),
    ),
)
ENDS = (
    Way(
        "a wrong password",
        "error",
        ("password authentication failed", "check the user and the password"),
        Settings(password=f"{SECRET}!"),
    ),
    Way(
        "a wrong password in OPTIONS",
        "error",
        ("password authentication failed",),
        Settings("OPTIONS", f"{SECRET}!"),
    ),
    Way(
        "no password",
        "error",
        ("no password supplied", "check the user and the password"),
        Settings(password=""),
    ),
    Way(
        "a closed port",
        "error",
        ("Connection refused", "check host and port"),
        Settings(host="127.0.0.1"),
    ),
    Way(
        "a missing database",
        "error",
        ('database "missing" does not exist', "check the names"),
        Settings(name="missing"),
    ),
    Way(
        "a password of a key",
        "error",
        ("sslpassword", "leave it out of OPTIONS"),
        Settings(
            more=f"DATABASES['default']['OPTIONS'] = {{'sslpassword': '{SECRET}'}}"
        ),
    ),
    Way(
        "settings that print it and fail",
        "error",
        ("RuntimeError", "secret_settings.py, line 2"),
        Settings(more=f"{PRINTS}; raise RuntimeError(DATABASES)"),
    ),
    Way(
        "pg_dump fails",
        "error",
        ("pg_dump exited with 1", REDACTED),
        stand_in=("pg_dump", f"{TELLS}; exit 1", DUMPS),
    ),
    Way(
        "psql fails",
        "error",
        ("psql exited with 3", REDACTED),
        Settings("OPTIONS"),
        stand_in=("psql", f"{TELLS}; exit 3", LOADS),
    ),
    Way(
        "pg_restore fails",
        "failed",
        ("pg_restore exited with 1", REDACTED),
        arguments=(*LIVE, "--format", "custom"),
        stand_in=(
            "pg_restore",
            'echo "pg_restore: error: corrupt: $(cat "$PLACE/forms")" >&2; exit 1',
            "*--file*",
        ),
    ),
    Way(
        "a migration tells",
        "error",
        ("cannot work with", REDACTED),
        Settings(more="INSTALLED_APPS = [*INSTALLED_APPS, 'telling']"),
        (),
    ),
)
TELLING_MIGRATION = f"""
import os

from django.db import migrations

PASSWORD = {PASSWORD!r}


def tell(apps, editor):
    settings = editor.connection.settings_dict
    print(settings)
    raise ValueError("cannot work with", PASSWORD, settings, dict(os.environ))


class Migration(migrations.Migration):
    operations = [migrations.RunPython(tell)]
"""


class SecretsCase(Case):
    """The password is neither printed nor reported nor an argument of a program."""

    def judge(self, row: Way) -> None:
        """The run ended as expected, and said so without the password."""
        with place() as here:
            prepare(here, row.stand_in)
            how: dict[str, Any] = row.settings.written(here)
            how.update(DATABASE_URL=how.pop("url", ""), GITHUB_ACTIONS="true")
            words = ("--verbose", *row.arguments)
            how.update(settings="secret_settings", alone=True)
            over = drilled(here, *words, **how)
            self.assert_verdict(over, row.verdict, *row.says)
            self.assert_kept(here)

    def assert_kept(self, here: Place) -> None:
        """No program was given the password, but by its variable for it."""
        given = here.folder / "given"
        if given.exists():
            self.assertNotIn(SECRET, given.read_text(errors="replace"))


class PassTests(SecretsCase, table=PASSES):
    """A drill that passes."""

    def test_programs_are_watched(self) -> None:
        """What programs are given is on record."""
        with place() as here:
            prepare(here, ("psql", "", WORKING))
            here.drill(*PRIVATE, **Settings().written(here))
            self.assert_kept(here)
            given = (here.folder / "given").read_text()
        for words in ("--snapshot", "-D\n", "ON_ERROR_STOP=1", "LC_ALL=C"):
            self.assertIn(words, given)


class EndTests(SecretsCase, table=ENDS):
    """A drill that ends otherwise."""


def prepare(here: Place, stand_in: tuple[str, str, str]) -> None:
    """Have programs note what they are given, and one do what the stand-in does."""
    migrations = here.folder / "telling" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "__init__.py").touch()
    (migrations / "0001_initial.py").write_text(TELLING_MIGRATION)
    (here.folder / "forms").write_text("\n".join(FORMS) + "\n")
    given = here.folder / "given"
    given.touch()
    given.chmod(0o666)  # root's servers run as somebody else
    for name in (*CLIENTS, *SERVER_PROGRAMS):
        here.stand_in(name, "", before=NOTE)
    program, body, pattern = stand_in
    here.stand_in(program, body, pattern, before=NOTE)


class RunningTests(Case):
    """In the middle of a run, too, it is nowhere but where it has to be."""

    def test_signal(self) -> None:
        """No file and no argument holds it, nor does SIGINT print it."""
        with place() as here:
            how = Settings().written(here)
            words = (*LIVE, "--verbose", "--report", str(here.report))
            with here.caught("restore", *words, **how) as process:
                files = [path for path in here.temporary.rglob("*") if path.is_file()]
                self.assertTrue(files)
                for path in files:
                    self.assertNotIn(SECRET.encode(), path.read_bytes(), path)
                self.assertGreater(len(here.processes()), 3)
                for id in here.processes():
                    arguments = Path("/proc", str(id), "cmdline").read_bytes()
                    self.assertNotIn(SECRET.encode(), arguments)
                process.send_signal(signal.SIGINT)
                over = here.ended(process)
        self.assert_verdict(over, "error", "interrupted (SIGINT)", act="restore")

    def test_environment_of_a_private_server(self) -> None:
        """What may run as another account is given nothing of the settings'."""
        with place() as here:
            how = {**Settings().written(here), "PGPASSWORD": PASSWORD}
            words = ("--backup", str(copied("plain", here.backup)), "--throwaway")
            with here.caught("restore", *words, **how):
                servers = f"{programs()}/postgres"
                given = [said for said in here.processes().values() if servers in said]
        self.assertTrue(given)
        self.assertNotIn(SECRET, "".join(given))


# --- What is redacted, and when -------------------------------------------------------

TROUBLESOME = ("role", "psql", "22", "2", "1", ":")
TABLE = """
--
-- Name: kept; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.kept (id integer);
"""
INVALID = f"""{TABLE}
--
-- Data for Name: kept; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.kept (id) FROM stdin;
{SECRET}
\\.

"""
INSERTS = f"""{TABLE}
--
-- Data for Name: kept; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.kept VALUES ("{SECRET}");

"""
OWNED = f"""{INVALID.replace(SECRET, "1")}
ALTER TABLE public.kept OWNER TO nobody_1;
"""


class RedactionTests(Case):
    """What is not printed is found in every text, and decides nothing."""

    def test_a_password_in_part_encoded(self) -> None:
        """In a URL, each character may be percent-encoded, in either case."""
        run = drill.Run(None, Path(), 0, {}, secrets=("p@ss/wörd!",))
        for text in ("p%40ss%2fwörd!", "p@ss/w%C3%B6rd%21", "p%40ss%2Fw%c3%b6rd!"):
            self.assertEqual(run.redacted(f"x:{text}@h"), "x:[REDACTED]@h")
        run = replace(run, secrets=("p@", "p@ss"))
        self.assertEqual(run.redacted("x:p%40ss@h"), "x:[REDACTED]@h")

    def test_a_password_within_another(self) -> None:
        """No rest of the longer one is left."""
        run = replace(in_process.server().run, secrets=("part", "part-of-it"))
        self.assertEqual(run.redacted("a part-of-it."), "a [REDACTED].")

    def test_a_password_that_shells_quote(self) -> None:
        """It is found as bash prints it, by `set -x` and by `declare -p`."""
        run = replace(in_process.server().run, secrets=("a'b\"$c`d",))
        for text in ("'a'\\''b\"$c`d'", '"a\'b\\"\\$c\\`d"'):
            self.assertEqual(run.redacted(text)[1:-1], "[REDACTED]")

    def test_words_of_messages(self) -> None:
        """Passwords that stand in PostgreSQL's messages change no verdict."""
        with place() as here:
            over = loaded(here, INVALID, *TROUBLESOME)
        self.assert_verdict(over, "failed", "a value that its type", act="restore")

    def test_words_of_hints(self) -> None:
        """They hide no hint either."""
        with place() as here:
            over = loaded(here, OWNED, *TROUBLESOME)
        hint = "use a server with the role, or --throwaway"
        self.assert_verdict(over, "error", hint, act="restore")

    def test_fault_of_the_drill(self) -> None:
        """A fault of the drill's own is told without its words."""
        fault = patch.object(drill, "new_backup", side_effect=ValueError(SECRET))
        with place() as here, fault:
            over = drilled(here, *LIVE, database=small())
        self.assert_verdict(over, "error", "a fault of the drill's own", "ValueError")


def loaded(here: Place, sql: str, *secrets: str) -> Ended:
    """A run with a backup of this SQL, of a project with these passwords."""
    here.backup.write_text(plain(sql))
    words = ("--backup", str(here.backup), "--no-throwaway", "--verbose")
    return drilled(here, *words, secrets=secrets)


# --- Secrets inside a database --------------------------------------------------------


@dataclass(frozen=True)
class Spoiled(Row):
    """What has a secret in a database, what is done to it when it is restored."""

    sql: str
    spoil: str
    says: str


# Of one database:
SPOILED = (
    Spoiled(
        "a user mapping",
        f"""
        CREATE TABLE public.kept ();
        CREATE FOREIGN DATA WRAPPER afar;
        CREATE SERVER island FOREIGN DATA WRAPPER afar;
        CREATE USER MAPPING FOR PUBLIC SERVER island OPTIONS (password '{SECRET}''s')
        """,
        f"ALTER USER MAPPING FOR PUBLIC SERVER island OPTIONS (ADD a '{SECRET}')",
        "user mapping USER MAPPING public SERVER island: ",
    ),
    Spoiled(
        "a foreign table",
        f"""
        CREATE FOREIGN TABLE public.sand (id integer OPTIONS (key '{SECRET}'))
        SERVER island OPTIONS (password '{SECRET}')
        """,
        f"ALTER FOREIGN TABLE public.sand OPTIONS (SET password '!', ADD a '{SECRET}')",
        "foreign table public.sand: ",
    ),
)


@cache
def all_spoiled() -> Ended:
    """A run of a database that has all of those."""
    with place() as here, database(";".join(row.sql for row in SPOILED)) as name:
        here.spoil(";".join(row.spoil for row in SPOILED))
        return drilled(here, *LIVE, database=name)


class DefinitionTests(Case, table=SPOILED):
    """Passwords in definitions that differ are not shown."""

    def judge(self, row: Spoiled) -> None:
        """The difference is told without the options' values."""
        shown = f"found     {row.says}a '{REDACTED}'"
        self.assert_verdict(all_spoiled(), "failed", shown, act="restore")

    def test_subscription(self) -> None:
        """A subscription is refused before it is made, without its password."""
        sql = f"""
        CREATE TABLE public.kept ();
        CREATE SUBSCRIPTION news CONNECTION 'host=127.0.0.1 port=1 password={SECRET}'
        PUBLICATION news WITH (connect = false)
        """
        with place() as here:
            with database(sql) as source:
                pg_dump(source, here.backup, "-Fc", "--no-owner")
            for words in ((), ("--jobs", "2")):
                how = ("--backup", str(here.backup), "--no-throwaway", *words)
                over = drilled(here, *how)
                self.assert_verdict(over, "error", "SUBSCRIPTION", "--throwaway")


# The value is the name of a table that a load makes later, or never.
NAMING = f"""
CREATE FUNCTION public.named(word text) RETURNS oid
LANGUAGE sql IMMUTABLE AS 'SELECT 1::oid';
CREATE TABLE public."{SECRET}" ();
CREATE TABLE public.kept (word text);
INSERT INTO public.kept VALUES ('"{SECRET}"');
ALTER TABLE public.kept ADD EXCLUDE USING btree (public.named(word) WITH =);
-- Later, as from PostgreSQL 17 on no index is made that needs a search_path.
CREATE OR REPLACE FUNCTION public.named(word text) RETURNS oid
LANGUAGE sql IMMUTABLE AS 'SELECT word::regclass::oid'
"""
FUSSY = f"""
CREATE FUNCTION public.fussy(word text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN
    IF current_database() ~ '_restored$' THEN {{raises}}; END IF;
    RETURN true;
END$$;
CREATE TABLE public.kept (word text CHECK (public.fussy(word)));
INSERT INTO public.kept VALUES ('{SECRET}')
"""


class LongDefinitionTests(Case):
    """A long definition is looked through in no time."""

    def test_many_urls(self) -> None:
        """Each might be the beginning of a password."""
        self.assertEqual(facts_of_default("http://a:b/" * 10000), 4)

    def test_many_blank_lines(self) -> None:
        """Each might be the end of the definition."""
        self.assertEqual(facts_of_default("\n" * 20000), 5)


def facts_of_default(text: str) -> int:
    """How many facts tell of a table with this default."""
    sql = f"CREATE TABLE t (x text DEFAULT '{text}');\n\n"
    return len(drill.definitions_in(below_comment(sql)))


class RowTests(Case):
    """No row is shown, whatever code PostgreSQL tells of it."""

    def test_value_in_an_insert(self) -> None:
        """A value that is taken for a column is not shown."""
        with place() as here:
            over = loaded(here, INSERTS)
        self.assertEqual(over.status, 1)
        self.assert_said(over, "42703")

    def test_value_behind_a_backslash(self) -> None:
        """A psql that knows no restriction, too, takes it for a command."""
        row = f"(1);\n2\\t{SECRET}"
        with place() as here:
            here.stand_in("psql", "exit 0", "*--help=commands*")
            over = loaded(here, INSERTS.replace(f'("{SECRET}");', row))
        says = "it holds a command for psql"
        self.assert_verdict(over, "failed", says, act="restore")

    def test_value_that_a_constraint_reads(self) -> None:
        """A value that names a table, which the search path does not find."""
        with place() as here, database(NAMING) as name:
            over = drilled(here, *LIVE, database=name)
        self.assert_verdict(over, "failed", "42P01 by", act="restore")

    def test_value_that_a_function_raises(self) -> None:
        """It is not shown, nor where pg_restore tells no code."""
        for raises, words, verdict in (
            ("RAISE 'not %', word", (), "failed"),
            ("RAISE 'not %', word USING ERRCODE = '23505'", (), "failed"),
            ("RAISE 'not %', word", ("--jobs", "2"), "error"),
        ):
            with database(FUSSY.format(raises=raises)) as name, place() as here:
                pg_dump(name, here.backup, "-Fc")
                how = ("--backup", str(here.backup), "--no-throwaway", "-v", *words)
                self.assert_verdict(drilled(here, *how), verdict, act="restore")

    def test_value_in_a_warning(self) -> None:
        """It is not shown either."""
        sql = FUSSY.format(raises="RAISE WARNING 'not %', word")
        with place() as here, database(sql) as name:
            pg_dump(name, here.backup)
            how = ("--backup", str(here.backup), "--no-throwaway", "--verbose")
            over = drilled(here, *how)
        self.assert_verdict(over, "passed", "01000")


# --- URLs that cannot be read ---------------------------------------------------------


@dataclass(frozen=True)
class Unreadable(Row):
    """A password that a URL cannot hold as it is."""

    password: str


UNREADABLE = (
    Unreadable("a colon and a slash", f"p@ss:{SECRET}/rd%20"),
    Unreadable("a hash", f"{SECRET}#x"),
    Unreadable("a question mark", f"{SECRET}?x"),
    Unreadable("a bracket", f"{SECRET}]x"),
)


class UnreadableURLTests(Case, table=UNREADABLE):
    """A password that a URL cannot hold makes an error without a piece of it."""

    def judge(self, row: Unreadable) -> None:
        """What is raised is told without its words."""
        said = "nothing"
        try:
            dj_database_url.parse(url_with(row.password))
        except ValueError as error:
            said = drill.described(error, drill.SHOWN_WITH_SETTINGS)
        self.assertRegex(said, r"\A\w*Error \(in .*, line \d+\)")
        self.assertNotIn(SECRET, said)

    def test_whole_runs(self) -> None:
        """The sentence says what to do, also where a URL is read as another one."""
        encode = "percent-encode special characters of the password"
        for password, says in (
            (UNREADABLE[0].password, encode),
            (f"123/{SECRET}", encode),  # as a port and a name
            (f"?{SECRET}=x", "NAME"),
        ):
            how = {"settings": "aidscope.settings", "DATABASE_URL": url_with(password)}
            with place() as here:
                over = drilled(here, "--verbose", **how)
            self.assert_verdict(over, "error", says, act="set-up")


def url_with(password: str) -> str:
    """A URL with this password, as it is."""
    return f"postgresql://site_secret:{password}@127.0.0.1:1/postgres"
