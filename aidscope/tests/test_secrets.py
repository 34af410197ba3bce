"""A password is printed nowhere, however a drill ends.

The password holds what is special to URLs, shells, SQL and Python, around a word that
no way of quoting changes: that word is searched for in all that can be read.
"""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from aidscope.tests import in_process
from aidscope.tests.support import (
    CLIENTS,
    SECRET,
    Case,
    Place,
    Row,
    database,
    driver,
    eventually,
    execute,
    once,
    pg_dump,
    place,
    prepared,
    programs,
    role,
    server,
    url,
)

PASSWORD = f"p@ss:w/rd%20'\"\\$ `{{{SECRET}}}é|\\'"
ROLE = "drill_secret"
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
TELLING_MIGRATION = """
import os

from django.db import migrations


def tell(apps, editor):
    known = editor.connection.settings_dict, os.environ.get("DATABASE_URL")
    raise ValueError(f"cannot work with {known}")


class Migration(migrations.Migration):
    operations = [migrations.RunPython(tell)]
"""


@once
def secret_role() -> str:
    """A role that needs the password, on the suite's server."""
    literal = PASSWORD.replace("'", "''")
    execute("postgres", f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{literal}'")
    rules = server().data / "pg_hba.conf"
    rules.write_text(f"local all {ROLE} scram-sha-256\n{rules.read_text()}")
    execute("postgres", "SELECT pg_reload_conf()")
    if not eventually(is_asked_for_a_password):
        raise AssertionError(f"the server does not ask {ROLE} for a password")
    return ROLE


def is_asked_for_a_password() -> bool:
    """Whether the server refuses the role without one."""
    try:
        server().query("postgres", "SELECT 1", user=ROLE)
    except driver.OperationalError:
        return True
    return False


# --- In every way of failing ----------------------------------------------------------


# `password`, `host` and `base` stand in place of settings that work. The password is in
# OPTIONS where the row says so, and else in a URL.
WAYS = """
a pass with warnings
    pg_dump:
        echo "$PGPASSWORD" >> "$PLACE/forms"
        sed 's/^/pg_dump: warning: /' "$PLACE/forms" >&2
    ends: passed
    says: The backup restores. | [REDACTED]
a pass with warnings, with OPTIONS
    in: OPTIONS
    pg_dump:
        echo "$PGPASSWORD" >> "$PLACE/forms"
        sed 's/^/pg_dump: warning: /' "$PLACE/forms" >&2
    ends: passed
    says: The backup restores. | [REDACTED]
a wrong password
    password: Krokodil!
    ends: error
    says: password authentication failed | check the user and the password
a wrong password, with OPTIONS
    in: OPTIONS
    password: Krokodil!
    ends: error
    says: password authentication failed
no password
    password:
    ends: error
    says: no password supplied
a closed port
    host: 127.0.0.1
    ends: error
    says: Connection refused | check host and port
an unknown host
    host: nowhere.invalid
    ends: error
    says: nowhere.invalid
a missing database
    base: missing
    ends: error
    says: database "missing" does not exist
a pg_dump that fails
    pg_dump: cat "$PLACE/forms" >&2; echo "$PGPASSWORD" >&2; exit 1
    ends: error
    says: pg_dump exited with 1
a psql that fails
    in: OPTIONS
    psql: cat "$PLACE/forms" >&2; echo "$PGPASSWORD" >&2; exit 3
    ends: error
    says: psql exited with 3
a pg_restore that fails
    run: --format custom
    pg_restore: cat "$PLACE/forms" >&2; echo "$PGPASSWORD" >&2; exit 1
    ends: failed
    says: pg_restore exited with 1 | [REDACTED]
a migration that tells
    application: telling
    ends: error
    says: cannot work with | [REDACTED]
a migration that tells on a private server
    run: --throwaway
    application: telling
    ends: error
    says: cannot work with
"""


class SecretsTests(Case, table=WAYS):
    """The password is neither printed nor reported nor an argument of a program."""

    def judge(self, row: Row) -> None:
        """The run ended as expected, and said so without the password."""
        with prepared(row) as (here, words, _), configured(here, row) as how:
            for name in CLIENTS:
                here.stand_in(name, row[name], before=NOTE)
            over = here.drill("--verbose", *words, **how)
            self.assert_row(over, row)
            self.assert_secret(here)

    def assert_secret(self, here: Place) -> None:
        """The password is in no argument of a program, and in no file of the run."""
        arguments = here.folder / "arguments"
        files = [*here.temporary.rglob("*"), *here.folder.glob("arguments")]
        for path in filter(Path.is_file, files):
            self.assertNotIn(SECRET.encode(), path.read_bytes(), path)
        if arguments.exists():
            self.assertTrue(arguments.read_text())

    def test_password_file(self) -> None:
        """libpq's file of passwords serves the drill, and each of its programs."""
        escaped = PASSWORD.replace("\\", r"\\").replace(":", r"\:")
        with place() as here, configured(here, Row(password="")) as how:
            file = here.folder / "passwords"
            file.write_text(f"*:*:*:*:{escaped}\n")
            file.chmod(0o600)
            over = here.drill("--verbose", PGPASSFILE=str(file), **how)
        self.assert_verdict(over, "passed")

    def test_while_it_runs(self) -> None:
        """No file holds it in the middle of the run, nor does SIGINT print it."""
        with place() as here, configured(here, Row()) as how:
            words = ("--report", str(here.report), "--verbose")
            with here.caught("restore", *words, **how) as process:
                self.assertTrue([*here.temporary.rglob("*")])
                self.assert_secret(here)
                process.send_signal(signal.SIGINT)
                over = here.ended(process)
        self.assert_verdict(over, "error", "interrupted (SIGINT)")

    def test_environment_of_a_private_server(self) -> None:
        """What may run as another account is given nothing of the settings'."""
        with (
            place() as here,
            configured(here, Row()) as how,
            here.caught("restore", "--throwaway", **how) as process,
        ):
            servers = f"{programs()}/postgres"
            given = [said for said in here.processes().values() if servers in said]
            here.let_go()
            over = here.ended(process)
        self.assert_verdict(over, "passed")
        self.assertTrue(given)
        self.assertNotIn(SECRET, "".join(given))


NOTE = 'printf "%s\\n" "$@" >> "$PLACE/arguments"'


@contextmanager
def configured(here: Place, row: Row) -> Iterator[dict[str, str]]:
    """How to run a drill with the password in a URL or in OPTIONS."""
    migrations = here.folder / "telling" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "__init__.py").touch()
    (migrations / "0001_initial.py").write_text(TELLING_MIGRATION)
    (here.folder / "forms").write_text("\n".join(FORMS) + "\n")
    password = row.get("password", PASSWORD)
    user, base = secret_role(), row["base"] or "postgres"
    host = row["host"] or str(server().data)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        port = closed.getsockname()[1] if row["host"] else 5432
        applications = [row["application"]] if row["application"] else []
        lines = [
            "from aidscope.settings import *",
            f"INSTALLED_APPS = [*INSTALLED_APPS, *{applications!r}]",
        ]
        where = f"{quote(host, safe='')}:{port}/{base}"
        where = f"postgresql://{user}:{quote(password, safe='')}@{where}"
        if row["in"] == "OPTIONS":
            where, engine = "", "django.db.backends.postgresql"
            words = {"ENGINE": engine, "NAME": base, "USER": user, "HOST": host}
            options = {"password": password}
            lines.append(f"DATABASES = {{'default': {words!r}}}")
            lines.append(f"DATABASES['default']['OPTIONS'] = {options!r}")
        text = "\n".join(lines)
        (here.folder / "secret_settings.py").write_text(text, encoding="utf-8")
        yield {
            "url": where,
            "DJANGO_SETTINGS_MODULE": "secret_settings",
            "PYTHONPATH": str(here.folder),
        }


# --- Passwords inside a database ------------------------------------------------------


class RedactionTests(Case):
    """What is not printed is found in every text."""

    def test_a_password_within_another(self) -> None:
        """No rest of the longer one is left."""
        run = replace(in_process.server().run, secrets=("part", "part-of-it"))
        self.assertEqual(run.redacted("a part-of-it."), "a [REDACTED].")


class DefinitionTests(Case):
    """Passwords in the definitions of a database are not shown either."""

    def test_user_mapping(self) -> None:
        """A user mapping that differs is named without its options."""
        sql = f"""
CREATE FOREIGN DATA WRAPPER afar;
CREATE SERVER island FOREIGN DATA WRAPPER afar;
CREATE USER MAPPING FOR PUBLIC SERVER island OPTIONS (password '{SECRET}')
        """
        spoiled = "ALTER USER MAPPING FOR PUBLIC SERVER island OPTIONS (ADD a '1')"
        with place() as here, database(sql) as name:
            here.spoil(spoiled)
            over = here.drill("--live", url=url(name))
        self.assert_verdict(over, "failed", "island")

    def test_subscription(self) -> None:
        """A subscription is refused before it is made, without its password."""
        sql = f"""
CREATE SUBSCRIPTION news CONNECTION 'host=127.0.0.1 port=1 password={SECRET}'
PUBLICATION news WITH (connect = false)
        """
        with role("CREATEDB") as name, place() as here:
            with database(sql) as source:
                pg_dump(source, here.backup, "-Fc", "--no-owner")
            for words in ((), ("--jobs", "2")):
                how = ("--backup", str(here.backup), *words)
                over = here.drill(*how, url=url(user=name))
                self.assertEqual(over.status, 1, over.said)
                self.assert_said(over, "subscription", "--throwaway")

    def test_value_in_a_parallel_load(self) -> None:
        """What pg_restore says of rows is not shown, and is no verdict."""
        sql = f"""
CREATE FUNCTION public.fussy(word text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN
    IF current_database() ~ '_restored$' THEN RAISE 'not %', word; END IF;
    RETURN true;
END$$;
CREATE TABLE public.kept (word text CHECK (public.fussy(word)));
INSERT INTO public.kept VALUES ('{SECRET}')
        """
        with database(sql) as source, place() as here:
            pg_dump(source, here.backup, "-Fc")
            for words, verdict in ((), "failed"), (("--jobs", "2"), "error"):
                over = here.drill("--backup", str(here.backup), *words, url=url())
                self.assert_verdict(over, verdict)
                self.assertNotIn(SECRET, over.text + str(over.report))


# --- URLs that cannot be read ---------------------------------------------------------

UNREADABLE = f"""
a colon and a slash
    password: p@ss:{SECRET}/rd%20
a hash
    password: {SECRET}#x
a slash
    password: {SECRET}/x
a question mark
    password: {SECRET}?x
a bracket
    password: {SECRET}]x
digits and a slash, as in a port and a name
    password: 123/{SECRET}
a question mark first, as in a parameter
    password: ?{SECRET}=x
    says: NAME
"""


class UnreadableURLTests(Case, table=UNREADABLE):
    """A password that a URL cannot hold as it is makes an error without a piece of it."""

    def judge(self, row: Row) -> None:
        """The sentence says what to do."""
        where = f"postgresql://drill_secret:{row['password']}@127.0.0.1:1/postgres"
        with place() as here:
            over = here.drill("--verbose", url=where)
        encode = "percent-encode what is special in the password"
        self.assert_verdict(over, "error", row["says"] or encode)
