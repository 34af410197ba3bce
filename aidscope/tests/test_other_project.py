"""The one file, copied into somebody else's project, works and touches nothing there.

The project has two applications, three databases, a router, migrations that write by
every road to the default connection, and code that writes whenever it can.
"""

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from aidscope.tests.in_process import drilled
from aidscope.tests.support import (
    BOUND,
    SCRIPT,
    SECRET,
    Case,
    Ended,
    Row,
    database,
    execute,
    folder,
    lasting,
    pg_dump,
    place,
    server,
)
from scripts import test_backup_restore as drill

# --- The project ----------------------------------------------------------------------

SETTINGS = """
SERVER = {{"ENGINE": "django.db.backends.postgresql", "USER": "postgres", "HOST": {host!r}}}
DATABASES = {{
    "default": {{**SERVER, "NAME": "lifted"}},
    "second": {{**SERVER, "NAME": "lifted_second"}},
    "third": {{"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "third.db"}},
}}
DATABASE_ROUTERS = ["shop.routers.Router"]
# What else a project is made with would take most of the time of its migrations.
INSTALLED_APPS = ["django.contrib.contenttypes", "shop", "archive"]
ROOT_URLCONF = None
"""
ROUTERS = '''
class Router:
    """The archive lives in the second database."""

    def db_for_read(self, model, **hints):
        return "second" if model._meta.app_label == "archive" else None

    db_for_write = db_for_read

    def allow_migrate(self, db, app_label, **hints):
        return (app_label == "archive") == (db == "second")
'''
SHOP = """
from django.db import models


class Article(models.Model):
    name = models.CharField(max_length=30, unique=True)
    kind = models.CharField(max_length=9, default="new")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(kind__in=["new", "used"]), name="article_kind"
            )
        ]


class Visit(models.Model):
    by = models.CharField(max_length=20)
"""
ARCHIVE = """
from django.db import models


class Paper(models.Model):
    title = models.CharField(max_length=20)
"""
DATA_MIGRATION = """
from django.conf import settings
from django.db import connection, connections, migrations, transaction


def fill(apps, editor):
    from shop.models import Article

    if editor.connection.alias != "default":
        return
    Article.objects.create(name="by the real model")
    apps.get_model("shop", "Article").objects.create(name="by the historical model")
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop_article (name, kind) VALUES ('by SQL', 'new')")
        cursor.execute("SHOW search_path")
        path = cursor.fetchone()[0]
    with transaction.atomic(using="default"):
        connections["default"].cursor().execute("UPDATE shop_article SET kind = 'used'")
    engine = connection.settings_dict["ENGINE"]
    wanted = getattr(settings, "WANTED", (engine, path))
    assert (engine, path) == wanted, f"{engine}, {path}"
    print("filled", Article.objects.count())


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
"""
# Writes when Django has started, whenever a connection is made, and without an end.
WRITING_APPLICATION = """
import os
import threading
import time

from django.apps import AppConfig
from django.conf import settings
from django.db import connection
from django.db.backends.signals import connection_created


def note(by):
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO shop_visit (by) VALUES (%s)", [by])
    except Exception:
        connection.close()  # there is no such table, or no such database


def note_always():
    while True:
        note("a thread")
        time.sleep(0.02)


def on_connection(sender, connection, **rest):
    if connection.alias == "default" and connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('shop_visit')")
            if cursor.fetchone()[0]:
                cursor.execute("INSERT INTO shop_visit (by) VALUES ('a receiver')")


class ShopConfig(AppConfig):
    default = False
    name = "shop"

    def ready(self):
        assert "PGDATABASE" not in os.environ
        assert "backup_drill_" in os.environ["DATABASE_URL"]
        # For code that gives them to a driver or a program of its own.
        named = {each["NAME"] for each in settings.DATABASES.values()}
        assert connection.vendor == "sqlite" or named == {connection.settings_dict["NAME"]}
        connection_created.connect(on_connection)
        note("ready")
        threading.Thread(target=note_always).start()
"""
WRITING = """
from market.settings import *

print("settings that print")
INSTALLED_APPS = [*INSTALLED_APPS[:-2], "shop.apps.ShopConfig", "archive"]
"""
SQLITE = (
    WRITING
    + """
import sys

DATABASES = {"default": DATABASES["third"]}
DATABASE_ROUTERS = []
sys.stdout = None  # nothing that is printed from now on is shown
"""
)
# An engine of the project's, which some of its migrations need, and its OPTIONS.
ENGINE = """
from django.db.backends.postgresql.base import DatabaseWrapper as Wrapper


class DatabaseWrapper(Wrapper):
    display_name = "PostgreSQL, as this project wants it"
"""
OWN_ENGINE = """
from market.settings import *

DATABASES["default"] |= {
    "ENGINE": "market.engine",
    "OPTIONS": {"options": "-c search_path=tenant,public", "connect_timeout": 9},
}
DATABASES["fourth"] = {"ENGINE": "nowhere.to.be.found"}
WANTED = "market.engine", "tenant,public"
"""
# As the engine of django-tenants, this one needs the applications.
LATE_ENGINE = f"from django.contrib.contenttypes.models import ContentType\n{ENGINE}"
NEEDS_APPS = """
from market.settings import *

DATABASES["default"] |= {
    "ENGINE": "market.late_engine",
    "OPTIONS": {"options": "-c search_path=tenant,public", "connect_timeout": 9},
}
WANTED = "market.late_engine", "tenant,public"
"""
# What Dynaconf does: the module that has the settings is replaced by another object.
REPLACED_MODULE = """
import sys

import django.conf
from market.settings import *

module = django.conf


class Kept:
    DATABASES = DATABASES

    def __getattr__(self, name):
        return getattr(module.settings, name)


class Wrapper:
    settings = Kept()

    def __getattr__(self, name):
        return getattr(module, name)


sys.modules["django.conf"] = Wrapper()
"""
# What django-configurations does: a command line of its own installs an importer.
MANAGE_CONFIGURED = """
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "market.configured"

if __name__ == "__main__":
    from configurations.management import execute_from_command_line

    execute_from_command_line(["manage.py"])
"""
CONFIGURATIONS = """
from django.core.management import execute_from_command_line  # noqa

installed = True
"""
CONFIGURED = """
import sys

from market.settings import *

assert sys.modules["configurations.management"].installed
"""


MIGRATING = f"""
import os
from pathlib import Path

import django
from django.core.management import call_command

os.environ["DJANGO_SETTINGS_MODULE"] = "market.settings"
django.setup()
call_command("makemigrations", "shop", "archive", verbosity=0)
Path("shop/migrations/0002_fill.py").write_text({DATA_MIGRATION!r})
for alias in ("default", "second"):
    call_command("migrate", database=alias, verbosity=0)
"""


@cache
def project() -> Path:
    """A project that django-admin began, with its databases in use."""
    root = folder() / "elsewhere"
    root.mkdir()
    django(root, "-m", "django", "startproject", "market", ".")
    files = {
        "archive/models.py": ARCHIVE,
        "market/engine/base.py": ENGINE,
        "market/late_engine/base.py": LATE_ENGINE,
        "market/needs_apps.py": NEEDS_APPS,
        "market/own_engine.py": OWN_ENGINE,
        "market/replaced_module.py": REPLACED_MODULE,
        "market/sqlite.py": SQLITE,
        "market/writing.py": WRITING,
        "shop/apps.py": WRITING_APPLICATION,
        "shop/models.py": SHOP,
        "shop/routers.py": ROUTERS,
        "service": SERVICE.format(host=server().data),
    }
    for row in (*CONNECTIONS, *FAULTS):
        files[f"market/{module_of(row)}.py"] = row.settings
    for name, text in files.items():
        write(root / name, text)
    with (root / "market" / "settings.py").open("a") as file:
        file.write(SETTINGS.format(host=str(server().data)))
    (root / "scripts").mkdir()
    shutil.copy(SCRIPT, root / "scripts")
    for name in ("lifted", "lifted_second"):
        lasting(name)
    django(root, "-c", MIGRATING)
    execute("lifted", "INSERT INTO shop_article (name, kind) VALUES ('by hand', 'new')")
    execute("lifted_second", "INSERT INTO archive_paper (title) VALUES ('by hand')")
    return root


def write(path: Path, text: str) -> None:
    """Write a file into a package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (path.parent / "__init__.py").touch()


def django(root: Path, *arguments: str) -> None:
    """Run one of Django's commands in the project."""
    with place() as here:
        subprocess.run(
            [sys.executable, *arguments],
            cwd=root,
            env=here.environment(),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=BOUND,
        )


def module_of(row: Row) -> str:
    """The name of a module for the settings of a row."""
    return "_".join(re.findall(r"\w+", row.words))


@cache
def contents() -> dict[str, str]:
    """What the project's databases held before any drill."""
    project()
    found = contents_now()
    assert "by hand" in found["lifted"]
    assert "by hand" in found["lifted_second"]
    return found


def contents_now() -> dict[str, str]:
    """The project's databases, byte for byte: as pg_dump writes them, and a file."""
    third = project() / "third.db"
    found = {"third": third.read_bytes().hex() if third.exists() else "missing"}
    with place() as here:
        for name in ("lifted", "lifted_second"):
            text = pg_dump(name, here.folder / name).read_text()
            found[name] = re.sub(r"(?m)^\\(un)?restrict .*\n", "", text)
    return found


def lifted(settings: str, *arguments: str) -> Ended:
    """A run of the copied file in the project, with these settings."""
    with place() as here:
        return here.drill(
            *arguments,
            command=("scripts/test_backup_restore.py",),
            cwd=project(),
            DJANGO_SETTINGS_MODULE=f"market.{settings}",
            PGDATABASE="lifted",
        )


def settled(row: Row, *arguments: str, **environment: str) -> Ended:
    """A run in this process, with the settings of a row."""
    environment["PYTHONPATH"] = str(project())
    settings = f"market.{module_of(row)}"
    with place() as here:
        return drilled(here, *arguments, settings=settings, **environment)


# --- Projects that are drilled --------------------------------------------------------


@dataclass(frozen=True)
class Use(Row):
    """The settings that a drill is run with, its arguments, and facts of its report."""

    settings: str
    arguments: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


LIVE = ("--live", "--no-throwaway")
CREATION = ("-k", "creation")
MIGRATED = {"pending_migrations": []}
SAMPLE_TABLES = 3
SHOP_TABLES = 4
ARCHIVE_TABLES = 2
USES = (
    Use(
        "code that writes whenever it can",
        "writing",
        facts={"tables": SHOP_TABLES + SAMPLE_TABLES},
    ),
    Use(
        "code that writes whenever it can, beside another alias",
        "writing",
        ("--live", "--database", "second"),
        {"database": "second", "tables": ARCHIVE_TABLES, **MIGRATED},
    ),
    Use("SQLite, on a private server", "sqlite", ("--throwaway", *CREATION)),
    Use(
        "a rehearsal of another alias, settings in an object of their own",
        "replaced_module",
        ("--database", "second"),
        {"database": "second", "tables": ARCHIVE_TABLES + SAMPLE_TABLES},
    ),
    Use(
        "an engine and options of its own, on a private server",
        "own_engine",
        ("--throwaway", *CREATION),
    ),
    Use("an engine that needs the applications", "needs_apps", CREATION),
)


MANAGE_OTHERWISE = """
import os, subprocess, sys
from django.core import management

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "market.settings")
"""
BY_A_PROGRAM = "subprocess.run([sys.executable, '-m', 'django', *sys.argv[1:]])\n"
BY_THE_UTILITY = "management.ManagementUtility(sys.argv).execute()\n"


class OtherProjectTests(Case, table=USES):
    """The drill passes in the project, and its databases are what they were."""

    def judge(self, row: Use) -> None:
        """It passes, and nothing has changed."""
        before = contents()
        over = lifted(row.settings, *row.arguments)
        after = contents_now()
        for name, text in before.items():
            self.assertEqual(text, after[name], f"{name} has changed")
        self.assert_verdict(over, "passed")
        self.assertEqual(over.stdout, "")
        self.assert_facts(over, **row.facts)


class PlaceOfProjectTests(Case):
    """The project is found, or it is said where it was looked for."""

    def test_manage_in_a_folder(self) -> None:
        """A manage.py beside scripts names the settings, and what comes with it."""
        with other_root() as root:
            write(root / "src" / "configurations" / "management.py", CONFIGURATIONS)
            shutil.copytree(project() / "market", root / "src" / "market")
            for name in ("shop", "archive"):
                shutil.copytree(project() / name, root / "src" / name)
            (root / "src" / "market" / "configured.py").write_text(CONFIGURED)
            (root / "src" / "manage.py").write_text(MANAGE_CONFIGURED)
            over = self.run_in(root, *LIVE)
        self.assert_verdict(over, "passed")
        self.assert_facts(over, tables=SHOP_TABLES, **MIGRATED)

    def test_manage_of_its_own(self) -> None:
        """One that starts Django by other means leads nothing to its database."""
        for start in (BY_A_PROGRAM, BY_THE_UTILITY):
            with other_root() as root, database("CREATE TABLE kept ()") as own:
                for name in ("market", "shop", "archive"):
                    shutil.copytree(project() / name, root / name)
                with (root / "market" / "settings.py").open("a") as file:
                    file.write(f"DATABASES['default']['NAME'] = {own!r}\n")
                (root / "manage.py").write_text(f"{MANAGE_OTHERWISE}{start}")
                over = self.run_in(root, "--throwaway")
                now = pg_dump(own, root / "now").read_text()
            self.assert_verdict(over, "passed")
            self.assertNotIn("django_migrations", now)

    def test_file_beside_manage(self) -> None:
        """The project is that of the manage.py beside the drill, not a neighbour's."""
        with other_root() as root:
            (root / "aaa").mkdir()
            (root / "aaa" / "manage.py").write_text("raise RuntimeError")
            (root / "scripts" / "manage.py").write_text("raise SystemExit(0)\n")
            over = self.run_in(root)
        self.assert_verdict(over, "error", "SystemExit", act="set-up")

    def test_no_manage(self) -> None:
        """Without one, a variable names the settings, or nothing does."""
        with other_root() as root:
            named = self.run_in(
                root,
                *CREATION,
                *LIVE,
                DJANGO_SETTINGS_MODULE="market.settings",
                PYTHONPATH=str(project()),
            )
            unnamed = self.run_in(root)
        self.assert_verdict(named, "passed")
        self.assert_verdict(
            unnamed,
            "error",
            "DJANGO_SETTINGS_MODULE is not set",
            "manage.py",
            str(root),
            act="set-up",
        )

    def test_manage_that_ends_early(self) -> None:
        """One that ends well before its command has not done the work."""
        with other_root() as root:
            (root / "manage.py").write_text("raise SystemExit(0)\n")
            over = self.run_in(root)
        self.assert_verdict(over, "error", "SystemExit", "manage.py", act="set-up")

    def run_in(self, root: Path, *arguments: str, **environment: str) -> Ended:
        """A run of the copied file in another folder."""
        with place() as here:
            command = (str(root / "scripts" / SCRIPT.name),)
            return here.drill(*arguments, command=command, cwd=root, **environment)


@contextmanager
def other_root() -> Iterator[Path]:
    """A folder with the drill, and nothing else."""
    root = folder() / "other"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, root / "scripts")
    try:
        yield root
    finally:
        shutil.rmtree(root)


# --- How settings name a database -----------------------------------------------------


@dataclass(frozen=True)
class Connection(Row):
    """Settings by which the database is found, and variables that they need."""

    settings: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = LIVE


SERVICE = "[drill]\nhost={host}\nuser=postgres\ndbname=lifted\n"
BASE = """
from market.settings import *

DATABASE_ROUTERS = []
ENGINE = "django.db.backends.postgresql"
"""
ONE = BASE + "DATABASES = {'default': {'ENGINE': ENGINE, "
CONNECTIONS = (
    Connection(
        "variables of libpq that the settings read",
        BASE
        + """
import os

words = {key: os.environ["PG" + key] for key in ("HOST", "USER", "DATABASE")}
words["NAME"] = words.pop("DATABASE")
DATABASES = {"default": {"ENGINE": ENGINE, **words}}
""",
        {"PGDATABASE": "lifted", "PGUSER": "postgres"},
        (*LIVE, *CREATION),
    ),
    Connection(
        "variables of libpq that the settings leave to it",
        ONE + "'NAME': 'lifted'}}",
        {"PGUSER": "postgres", "PGDATABASE": "nowhere", "PGOPTIONS": "-c geqo=off"},
    ),
    Connection(
        "variables that others of libpq go before",
        ONE + "'NAME': 'lifted', 'USER': 'postgres', 'HOST': SERVER['HOST']}}",
        {"PGUSER": "drill_missing", "PGHOST": "/nowhere", "PGDATABASE": "nowhere"},
        (*LIVE, *CREATION),
    ),
    Connection(
        "a service in a file of the project's",
        ONE + "'OPTIONS': {'service': 'drill'}}}",
        {"PGSERVICEFILE": "service"},
    ),
    Connection(
        "options that name the database, and a schema of its own, in a rehearsal",
        ONE
        + "**SERVER, 'NAME': 'nowhere', 'OPTIONS': {'dbname': 'lifted',"
        + " 'options': r'-c search_path=\"$user\",\"my\\ own\"'}}}",
        arguments=(),
    ),
    Connection(
        "a schema that is PostgreSQL's own, in a rehearsal",
        ONE
        + "**SERVER, 'NAME': 'lifted',"
        + " 'OPTIONS': {'options': '-c search_path=shop,pg_catalog'}}}",
        arguments=(),
    ),
    Connection(
        "options that are none",
        ONE + "**SERVER, 'NAME': 'lifted', 'OPTIONS': {'options': None}}}",
        arguments=(*LIVE, *CREATION),
    ),
    Connection(
        "options that name a role to assume",
        ONE
        + "**SERVER, 'USER': 'site_nobody', 'NAME': 'lifted',"
        + " 'OPTIONS': {'assume_role': 'site reader'}}}",
        arguments=("--live",),
    ),
)
if importlib.util.find_spec("psycopg_pool"):
    CONNECTIONS += (
        Connection(
            "options of psycopg 3",
            ONE + "**SERVER, 'NAME': 'lifted', 'OPTIONS': {'pool': True}}}",
        ),
        Connection(
            "options of psycopg 3 that bind on the server",
            ONE
            + "**SERVER, 'NAME': 'lifted', 'OPTIONS':"
            + " {'server_side_binding': True, 'prepare_threshold': 0}}}",
        ),
        Connection(
            "a rehearsal with options of psycopg 3",
            ONE + "**SERVER, 'NAME': 'lifted', 'OPTIONS': {'pool': True}}}",
            arguments=(),
        ),
    )


class ConnectionTests(Case, table=CONNECTIONS):
    """The drill finds the database that Django finds, and Django the restored one."""

    def judge(self, row: Connection) -> None:
        """It passes, and it was that database."""
        assumable()
        environment = {"PGHOST": str(server().data), **row.environment}
        if "PGSERVICEFILE" in environment:
            environment["PGSERVICEFILE"] = str(project() / "service")
        over = settled(row, *row.arguments, **environment)
        self.assert_verdict(over, "passed")
        if not row.arguments:
            # No router keeps the archive out.
            self.assert_facts(over, tables=SHOP_TABLES + 1 + SAMPLE_TABLES)
        elif over.acts["restore"] == "passed":
            self.assert_facts(over, tables=SHOP_TABLES, **MIGRATED)


@cache
def assumable() -> None:
    """Make a role that may do nothing, but be another one, which may read all."""
    execute(
        "postgres",
        'CREATE ROLE "site reader" IN ROLE pg_read_all_data;'
        'CREATE ROLE site_nobody LOGIN NOINHERIT IN ROLE "site reader"',
    )


# --- Faults of settings ---------------------------------------------------------------


@dataclass(frozen=True)
class Fault(Row):
    """Settings that are at fault, how the drill is run, and what is said."""

    settings: str
    says: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    act: str = "set-up"


NO_DATABASE = "from market.settings import *\nDATABASES = {}\n"
RAISED = (
    Fault(
        "that fail",
        "\nraise RuntimeError('Krokodil')",
        ("RuntimeError (in ", "that_fail.py, line 2)"),
    ),
    Fault(
        "that fail in a folder called as Django's own",
        "exec(compile('raise ValueError(\"Krokodil\")', '/srv/django/x.py', 'exec'))",
        ("ValueError (in /srv/django/x.py, line 1)",),
    ),
    Fault(
        "that lack a variable",
        "import os\nNAME = os.environ['DB_NAME']",
        ("KeyError: 'DB_NAME' (in ", "that_lack_a_variable.py, line 2)"),
    ),
    Fault(
        "that are not well configured",
        "from django.core.exceptions import ImproperlyConfigured\n"
        "raise ImproperlyConfigured('the key Krokodil is too short')",
        ("ImproperlyConfigured (in ", "that_are_not_well_configured.py, line 2)"),
    ),
    Fault(
        "that import what is not there",
        "import nowhere_to_be_found",
        ("ModuleNotFoundError: No module named 'nowhere_to_be_found'",),
    ),
    Fault(
        "that are no Python",
        "\nDATABASES = {",
        ("SyntaxError: ", "that_are_no_Python.py, line 2"),
    ),
)
FAULTS = (
    Fault(
        "that leave Python well",
        "raise SystemExit(0)",
        ("the settings end the process that imports them",),
    ),
    Fault(
        "that leave Python",
        "raise SystemExit('Krokodil')",
        ("the settings: the project fails",),
    ),
    Fault(
        "that cannot read a value",
        "import json\nDATABASES = json.loads('Krokodil')",
        (
            "JSONDecodeError (in ",
            "that_cannot_read_a_value.py, line 2)",
            "percent-encode special characters of the password",
        ),
    ),
    Fault(
        "whose fault has a cause",
        "try:\n    {}['price']\nexcept KeyError as error:\n"
        "    raise RuntimeError('Krokodil') from error",
        (
            "RuntimeError (in ",
            "whose_fault_has_a_cause.py, line 4)\n  KeyError: 'price' (in ",
            "whose_fault_has_a_cause.py, line 2)",
        ),
    ),
    Fault(
        "for SQLite",
        "from market.settings import *\nDATABASES['default'] = DATABASES['third']\n",
        ("not PostgreSQL but sqlite", "--database"),
    ),
    Fault(
        "for MySQL, whose driver is not there",
        "from market.settings import *\n"
        "DATABASES['default']['ENGINE'] = 'django.db.backends.mysql'\n",
        ("mysql", "--database"),
    ),
    Fault(
        "without an alias",
        "from market.settings import *\n",
        ("settings.DATABASES has no 'fifth'", "known: default, second, third"),
        ("--database", "fifth"),
    ),
    Fault(
        "without a database, strict",
        NO_DATABASE,
        ("no database is configured", "DATABASE_URL"),
        ("--strict",),
    ),
    Fault(
        "without a database, live",
        NO_DATABASE,
        ("no database is configured", "DATABASE_URL"),
        ("--live",),
    ),
    Fault(
        "with an option that would be an argument",
        "from market.settings import *\n"
        "DATABASES['default']['OPTIONS'] = {'sslpassword': 'Krokodil'}\n",
        ("sslpassword", "leave it out of OPTIONS"),
    ),
    Fault(
        "with an option that libpq does not know",
        "from market.settings import *\n"
        "DATABASES['default']['OPTIONS'] = {'shape': 'round'}\n",
        ('invalid connection option "shape"', "take it out of OPTIONS"),
    ),
    Fault(
        "that have connected",
        "from market.settings import *\n"
        "from django.db import connections\n"
        "connections['default'].ensure_connection()\n",
        ("the settings module connects to a database",),
        act="creation",
    ),
    Fault(
        "whose log cannot be opened",
        "from market.settings import *\n"
        "LOGGING = {'version': 1, 'handlers': {'file':\n"
        "    {'class': 'logging.FileHandler', 'filename': '/nowhere/drill.log'}}}\n",
        ("ValueError: Unable to configure handler 'file'", "FileNotFoundError: "),
        act="creation",
    ),
    Fault(
        "with an application that adds a database",
        "from market.settings import *\n"
        "INSTALLED_APPS = [*INSTALLED_APPS[:-2], 'shop.adding.AddingConfig']\n",
        ("the project replaces its DATABASES",),
        act="creation",
    ),
    Fault(
        "with an engine that knows better",
        "from market.settings import *\n"
        "DATABASES['default']['ENGINE'] = 'shop.leading'\n",
        ("the project connects to another database",),
        act="creation",
    ),
    Fault(
        "with a migration that fails",
        "from market.settings import *\nMIGRATION_MODULES = {'shop': 'shop.failing'}\n",
        (
            "migrate: the project fails",
            "out of stock (in ",
            "0001_initial.py",
        ),
        act="creation",
    ),
    Fault(
        "with a migration that needs more rights",
        "from market.settings import *\n"
        "MIGRATION_MODULES = {'shop': 'shop.extending'}\n"
        "DATABASES['default']['USER'] = 'site_maker'\n",
        ("permission denied to create extension", "use a role with more rights"),
        act="creation",
    ),
)
ADDING = """
from django.apps import AppConfig
from django.db import connections


class AddingConfig(AppConfig):
    name = "shop"

    def ready(self):
        lifted = connections.databases["default"] | {"NAME": "lifted"}
        connections.databases["raw"] = lifted
"""
LEADING = """
from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    def get_connection_params(self):
        return {**super().get_connection_params(), "dbname": "lifted"}
"""
FAILING = """
from django.db import migrations


def fail(apps, editor):
    raise RuntimeError("out of stock")


class Migration(migrations.Migration):
    operations = [migrations.RunPython(fail)]
"""
EXTENDING = """
from django.contrib.postgres.operations import CreateExtension
from django.db import migrations


class Migration(migrations.Migration):
    operations = [CreateExtension("file_fdw")]
"""


class RaisedTests(Case, table=RAISED):
    """What settings raise is told by kind and place, and without its words."""

    def judge(self, row: Fault) -> None:
        """It is told with these words, and not with its own."""
        path = folder() / f"{module_of(row)}.py"
        path.write_text(row.settings)
        said = "nothing"
        try:
            runpy.run_path(str(path))
        except Exception as error:  # noqa: BLE001  whatever settings may raise
            said = drill.described(error, drill.SHOWN_WITH_SETTINGS)
        for part in row.says:
            self.assertIn(part, said)
        self.assertNotIn(SECRET, said)


class FaultTests(Case, table=FAULTS):
    """A fault of the project's is told by kind and place, and without its words."""

    def judge(self, row: Fault) -> None:
        """It is an error with these sentences."""
        faulty_project()
        over = settled(row, *row.arguments)
        self.assert_verdict(over, "error", *row.says, act=row.act)


@cache
def faulty_project() -> None:
    """The project with applications that are at fault, too."""
    root = project()
    write(root / "shop" / "adding.py", ADDING)
    write(root / "shop" / "leading" / "base.py", LEADING)
    write(root / "shop" / "failing" / "0001_initial.py", FAILING)
    write(root / "shop" / "extending" / "0001_initial.py", EXTENDING)
    execute("postgres", "CREATE ROLE site_maker LOGIN CREATEDB")
