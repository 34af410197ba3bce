"""A password is printed nowhere, however a drill ends; and every end has its sentence.

The password holds what is special to URLs, shells, SQL and Python, around a word that
no way of quoting changes: that word is searched for in all that can be read.
"""

import functools
import json
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple
from urllib.parse import quote

from aidscope.tests.running import (
    ACTS,
    DrillsAhead,
    Ended,
    Place,
    drills_ahead,
    ended,
    eventually,
    place,
    url_of,
)
from aidscope.tests.server import execute, server
from scripts import test_backup_restore as drill

WORD = "Krokodil"
PASSWORD = f"p@ss:w/rd%20'\"\\$ `{{{WORD}}}é|\\'"
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
SETTINGS = """
from aidscope.settings import *

DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", **{settings!r}}}}}
INSTALLED_APPS = [*INSTALLED_APPS, *{applications!r}]
"""
TELLING_MIGRATION = """
import os

from django.db import migrations


def tell(apps, editor):
    known = editor.connection.settings_dict, os.environ.get("DATABASE_URL")
    raise ValueError(f"cannot work with {known}")


class Migration(migrations.Migration):
    operations = [migrations.RunPython(tell)]
"""


@functools.cache
def role() -> str:
    """A role that needs the password, on the suite's server."""
    maintenance = drill.maintenance(server())
    literal = PASSWORD.replace("'", "''")
    execute(maintenance, f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{literal}'")
    rules = Path(server().settings["HOST"]) / "pg_hba.conf"
    rules.write_text(f"local all {ROLE} scram-sha-256\n{rules.read_text()}")
    execute(maintenance, "SELECT pg_reload_conf()")
    if not eventually(is_asked_for_a_password):
        raise AssertionError(f"the server does not ask {ROLE} for a password")
    return ROLE


def is_asked_for_a_password() -> bool:
    """Whether the server refuses the role without one."""
    settings = server().settings | {"USER": ROLE}
    stranger = drill.Server(settings, server().timeout, server().mark)
    try:
        execute(drill.Database(stranger, "postgres"), "SELECT 1")
    except drill.NotJudged:
        return True
    return False


# --- In every way of failing ----------------------------------------------------------


class Way(NamedTuple):
    """A way in which a drill ends."""

    sentences: tuple[str, ...]
    status: int = 1
    stand_in: tuple[str, ...] = ()  # a program, and what it does
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, str] = MappingProxyType({})  # in place of those that work
    applications: tuple[str, ...] = ()
    carriers: tuple[str, ...] = ("a URL",)


BOTH = ("a URL", "OPTIONS")
REPEATS = 'cat "$PLACE/forms" >&2'
REDACTED = "[REDACTED]"
WAYS = {
    "a pass with warnings": Way(
        ("The backup restores.", "pg_dump says:", REDACTED),
        status=0,
        stand_in=("pg_dump", REPEATS),
        carriers=BOTH,
    ),
    "a wrong password": Way(
        ("password authentication failed", "check the user and the password"),
        settings={"PASSWORD": f"{PASSWORD}!"},
        carriers=BOTH,
    ),
    "no password": Way(
        ("no password supplied", "check the user and the password"),
        settings={"PASSWORD": ""},
    ),
    "a closed port": Way(
        ("Connection refused", "check the host and the port"),
        settings={"HOST": "127.0.0.1"},  # and a port that nobody listens at
    ),
    "an unknown host": Way(
        ("nowhere.invalid", "check the host and the port"),
        settings={"HOST": "nowhere.invalid"},
    ),
    "a missing database": Way(
        ('database "missing" does not exist', "check the name of the database"),
        settings={"NAME": "missing"},
    ),
    "a pg_dump that fails": Way(
        ("pg_dump exited with 1", REDACTED),
        stand_in=("pg_dump", f'{REPEATS}; echo "$PGPASSWORD" >&2; exit 1'),
        carriers=BOTH,
    ),
    "a psql that fails": Way(
        ("psql exited with 3", REDACTED),
        stand_in=("psql", f'{REPEATS}; echo "$PGPASSWORD" >&2; exit 3'),
        carriers=BOTH,
    ),
    "a pg_restore that fails": Way(
        ("pg_restore exited with 1", REDACTED),
        stand_in=("pg_restore", f'{REPEATS}; echo "$PGPASSWORD" >&2; exit 1'),
        arguments=("--format", "custom"),
    ),
    "a timeout": Way(
        ("pg_dump did not end within 3 s",),
        stand_in=("pg_dump", f"{REPEATS}; sleep 60; exit 1"),
        arguments=("--timeout", "3"),
    ),
    "a migration that tells": Way(
        ("cannot work with", REDACTED),
        applications=("telling",),
    ),
    "a migration that tells on a private server": Way(
        ("cannot work with", REDACTED),
        arguments=("--throwaway",),
        applications=("telling",),
    ),
}


class Outcome(NamedTuple):
    """How a drill ended, what it left, and what it wrote elsewhere."""

    over: Ended
    leftovers: list[str]
    texts: dict[str, str]


@drills_ahead
class SecretsTests(DrillsAhead):
    """The password is neither printed nor reported nor an argument of a program."""

    table: ClassVar = {
        f"{name} with the password in {carrier}": (way, carrier)
        for name, way in WAYS.items()
        for carrier in way.carriers
    }

    @classmethod
    def setUpClass(cls) -> None:
        role()
        super().setUpClass()

    @staticmethod
    def drilled(row: tuple[Way, str]) -> Outcome:
        """Run a drill that says all that it can."""
        way, carrier = row
        with place() as here, configured(here, way, carrier) as environment:
            spied_on(here, *way.stand_in)
            report = ("--report", str(here.folder / "report.json"))
            over = here.run("--verbose", *report, *way.arguments, **environment)
            return Outcome(over, here.leftovers(), written(here))

    def judge_outcome(self, row: tuple[Way, str], outcome: Outcome) -> None:
        """The drill ended as expected, and said so without the password."""
        (way, _carrier), over = row, outcome.over
        self.assertEqual(over.status, way.status, over.said)
        for sentence in way.sentences:
            self.assertIn(sentence, over.said)
        self.assert_secret(outcome)
        self.assertEqual(outcome.leftovers, [])

    def assert_secret(self, outcome: Outcome) -> None:
        """The password is nowhere in what a drill said, reported and passed on."""
        self.assertNotIn(WORD, outcome.over.said)
        for name, text in outcome.texts.items():
            self.assertTrue(text or outcome.over.status, name)
            self.assertNotIn(WORD, text, name)

    def test_password_file(self) -> None:
        """libpq's file of passwords serves the drill, and each of its programs."""
        way = WAYS["no password"]
        escaped = PASSWORD.replace("\\", r"\\").replace(":", r"\:")
        with place() as here, configured(here, way, "a URL") as environment:
            file = here.folder / "passwords"
            file.write_text(f"*:*:*:*:{escaped}\n")
            file.chmod(0o600)
            spied_on(here)
            over = here.run("--verbose", PGPASSFILE=str(file), **environment)
            self.assertEqual(over.status, 0, over.said)
            self.assertNotIn(WORD, over.said)

    def test_while_it_runs(self) -> None:
        """No file and no argument holds it in the middle of the run, nor does SIGINT."""
        way = WAYS["a pass with warnings"]
        with place() as here, configured(here, way, "a URL") as environment:
            spied_on(here)
            report = ("--report", str(here.folder / "report.json"), "--verbose")
            with here.caught(ACTS["restore"], *report, **environment) as process:
                files = [path for path in here.temporary.rglob("*") if path.is_file()]
                self.assertTrue(files)
                for path in files:
                    self.assertNotIn(WORD.encode(), path.read_bytes(), path)
                process.send_signal(signal.SIGINT)
                over = ended(process)
            self.assertIn("interrupted (SIGINT)", over.said)
            self.assert_secret(Outcome(over, here.leftovers(), written(here)))


@contextmanager
def configured(here: Place, way: Way, carrier: str) -> Iterator[dict[str, str]]:
    """The environment of a project that has the password in a URL or in OPTIONS."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        settings = {
            "NAME": "postgres",
            "USER": role(),
            "PASSWORD": PASSWORD,
            "HOST": server().settings["HOST"],
            **way.settings,
        }
        if settings["HOST"] == "127.0.0.1":
            settings["PORT"] = closed.getsockname()[1]
        (here.folder / "forms").write_text("\n".join(FORMS) + "\n")
        (here.folder / "summary.md").touch()
        (here.folder / "report.json").touch()
        (here.folder / "arguments").touch()
        yield {
            "GITHUB_STEP_SUMMARY": str(here.folder / "summary.md"),
            "PYTHONPATH": str(here.folder / "site"),
            **project(here, settings, carrier, way.applications),
        }


def project(
    here: Place,
    settings: dict[str, str | int],
    carrier: str,
    applications: tuple[str, ...],
) -> dict[str, str]:
    """The variables that lead a drill to these settings."""
    site = here.folder / "site"
    migrations = site / "telling" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "__init__.py").touch()
    (migrations / "0001_initial.py").write_text(TELLING_MIGRATION)
    if carrier == "a URL":
        where = f"{quote(settings['HOST'], safe='')}:{settings.get('PORT', '')}"
        who = f"{settings['USER']}:{quote(settings['PASSWORD'], safe='')}"
        url = f"postgresql://{who}@{where}/{settings['NAME']}"
        text = "from aidscope.settings import *\n\nINSTALLED_APPS = "
        text += f"[*INSTALLED_APPS, *{applications!r}]\n"
    else:
        url = ""
        options = {"password": settings.pop("PASSWORD")}
        settings = settings | {"OPTIONS": options}
        text = SETTINGS.format(settings=settings, applications=applications)
    (site / "secret_settings.py").write_text(text, encoding="utf-8")
    return {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "secret_settings"}


def spied_on(here: Place, program: str = "", body: str = "", *pattern: str) -> None:
    """Have the programs note their arguments; one does what it is told after that."""
    note = 'printf "%s\\n" "$@" >> "$PLACE/arguments"'
    for name in drill.PROGRAMS:
        if name == program:
            here.stand_in(name, f"{note}\n{body}", *pattern)
        else:
            here.stand_in(name, note)


def written(here: Place) -> dict[str, str]:
    """What a drill reported, and the arguments that it passed on."""
    names = ("report.json", "summary.md", "arguments")
    return {n: (here.folder / n).read_text(errors="replace") for n in names}


# --- URLs that cannot be read ---------------------------------------------------------

ENCODE = "percent-encode what is special in the password"


class Misread(NamedTuple):
    """A password that stands in a URL as it is, and what the drill says to that."""

    password: str
    sentence: str = ENCODE


@drills_ahead
class UnreadableURLTests(DrillsAhead):
    """A password that a URL cannot hold as it is makes an error without a piece of it."""

    table: ClassVar = {
        "a colon and a slash": Misread(f"p@ss:{WORD}/rd%20"),
        "a hash": Misread(f"{WORD}#x"),
        "a slash": Misread(f"{WORD}/x"),
        "a question mark": Misread(f"{WORD}?x"),
        "a bracket": Misread(f"{WORD}]x"),
        "digits and a slash, as in a port and a name": Misread(f"123/{WORD}"),
        "a question mark first, as in a parameter": Misread(f"?{WORD}=x", "NAME"),
    }

    @staticmethod
    def drilled(row: Misread) -> tuple[Ended, list[str]]:
        """Run a drill with the password in its URL."""
        url = f"postgresql://drill_secret:{row.password}@127.0.0.1:1/postgres"
        with place() as here:
            return here.run("--verbose", DATABASE_URL=url), here.leftovers()

    def judge_outcome(self, row: Misread, outcome: tuple[Ended, list[str]]) -> None:
        """The sentence says what to do, and shows nothing of the password."""
        over, leftovers = outcome
        self.assertEqual(over.status, 1, over.said)
        self.assertNotIn(WORD, over.said)
        self.assertIn(row.sentence, over.said)
        self.assertNotIn("Traceback", over.said)
        self.assertEqual(leftovers, [])


# --- Other ways to fail ---------------------------------------------------------------


class Configuration(NamedTuple):
    """What a drill cannot work with, and what it says to that."""

    sentences: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    url: str = ""
    role: str = ""  # on the suite's server
    settings: str = "aidscope.settings"


@drills_ahead
class ConfigurationTests(DrillsAhead):
    """What a drill cannot work with is an error with one sentence, and no frames."""

    table: ClassVar = {
        "SQLite": Configuration(
            ("not PostgreSQL but django.db.backends.sqlite3",),
            url="sqlite:///never.sqlite3",
        ),
        "a driver that is not there": Configuration(
            ("mysql",), url="mysql://u@127.0.0.1:1/x"
        ),
        "no database and strict": Configuration(
            ("no database is configured", "set DATABASE_URL"), ("--strict",)
        ),
        "no database and live": Configuration(
            ("no database is configured", "set DATABASE_URL"), ("--live",)
        ),
        "a role without CREATEDB": Configuration(
            ('role "drill_modest" may not create databases', "CREATEDB"),
            role="drill_modest",
        ),
        "a role that is not there": Configuration(
            ('role "drill_missing" does not exist',), role="drill_missing"
        ),
        "settings that are not there": Configuration(
            ("the settings cannot be imported", "No module named 'nowhere'"),
            settings="nowhere",
        ),
    }

    @classmethod
    def setUpClass(cls) -> None:
        modest()
        super().setUpClass()

    @staticmethod
    def drilled(row: Configuration) -> tuple[Ended, list[str]]:
        """Run a drill that is so configured."""
        url = url_of(user=row.role) if row.role else row.url
        settings = row.settings
        with place() as here:
            over = here.run(
                *row.arguments, DATABASE_URL=url, DJANGO_SETTINGS_MODULE=settings
            )
            return over, here.leftovers()

    def judge_outcome(
        self, row: Configuration, outcome: tuple[Ended, list[str]]
    ) -> None:
        """The sentence is there, and nothing is left."""
        over, leftovers = outcome
        self.assertEqual(over.status, 1, over.said)
        for sentence in row.sentences:
            self.assertIn(sentence, over.said)
        self.assertIn("could not be judged", over.said)
        self.assertNotIn("Traceback", over.said)
        self.assertEqual(leftovers, [])


@functools.cache
def modest() -> None:
    """Make a role that may nothing, on the suite's server."""
    execute(drill.maintenance(server()), "CREATE ROLE drill_modest LOGIN")
