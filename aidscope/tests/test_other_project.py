"""The one file, copied into somebody else's project, works and touches nothing there.

The project has two applications, three databases, a router, migrations that write by
every road to the default connection, and code that writes whenever it can.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from aidscope.tests.support import (
    BOUND,
    SCRIPT,
    Case,
    database,
    execute,
    folder,
    once,
    pg_dump,
    place,
    server,
    until_the_end,
)

SETTINGS = """
SERVER = {{"ENGINE": "django.db.backends.postgresql", "USER": "postgres", "HOST": {host!r}}}
DATABASES = {{
    "default": {{**SERVER, "NAME": "lifted"}},
    "second": {{**SERVER, "NAME": "lifted_second"}},
    "third": {{"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "third.db"}},
}}
DATABASE_ROUTERS = ["shop.routers.Router"]
INSTALLED_APPS += ["shop", "archive"]
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
# Writes when Django has started, whenever a connection is made, all the while, and when
# the interpreter ends.
WRITING_APPLICATION = """
import threading
import time

from django.apps import AppConfig
from django.db import connection
from django.db.backends.signals import connection_created


def note(by):
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO shop_visit (by) VALUES (%s)", [by])
    except Exception:
        connection.close()  # there is no such table, or no such database


def note_always():
    left = 10
    while left:
        note("a thread")
        left -= not threading.main_thread().is_alive()
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
        connection_created.connect(on_connection)
        note("ready")
        threading.Thread(target=note_always).start()
"""
WRITING = """
from market.settings import *

INSTALLED_APPS = [*INSTALLED_APPS[:-2], "shop.apps.ShopConfig", "archive"]
"""
SQLITE = WRITING + """
DATABASES = {"default": DATABASES["third"]}
DATABASE_ROUTERS = []
"""
# A project's own engine, which some of its migrations need, and its OPTIONS.
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
WANTED = "market.engine", "tenant,public"
"""
FROM_VARIABLES = """
import os

from market.settings import *

words = {key: os.environ["PG" + key] for key in ("HOST", "USER", "DATABASE")}
words["NAME"] = words.pop("DATABASE")
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", **words}}
DATABASE_ROUTERS = []
"""
BY_SERVICE = """
from market.settings import *

SERVICE = {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {"service": "drill"}}
DATABASES = {"default": SERVICE}
DATABASE_ROUTERS = []
"""
OPTIONS = """
from market.settings import *

DATABASES["default"]["OPTIONS"] = {"dbname": "lifted"}
"""
# What django-configurations does: the importer makes settings of a class.
IMPORTER = """
import os

installed = False


def install():
    global installed
    installed = True
    assert os.environ["DJANGO_CONFIGURATION"] == "Production"
"""
CONFIGURED = """
from configurations import importer
from market.settings import *

assert importer.installed, "the importer is not installed"
"""
BINDING = """
from market.settings import *

DATABASES["default"]["OPTIONS"] = {"server_side_binding": True, "prepare_threshold": 0}
"""


class Use(NamedTuple):
    """The settings that a drill is run with, its arguments, and facts of its report."""

    settings: str = "settings"
    arguments: tuple[str, ...] = ()
    facts: dict[str, Any] = {}  # noqa: RUF012 - it is only read
    environment: dict[str, str] = {}  # noqa: RUF012


USES = {
    "a project that migrates": Use(facts={"pending_migrations": []}),
    "the database itself": Use(
        arguments=("--live",), facts={"pending_migrations": [], "tables": 12}
    ),
    "another alias": Use(
        arguments=("--database", "second"),
        facts={"database": "second", "pending_migrations": []},
    ),
    "another alias, the database itself": Use(
        arguments=("--database", "second", "--live"),
        facts={"database": "second", "pending_migrations": [], "tables": 2},
    ),
    "a project that writes whenever it can": Use("writing"),
    "a project that writes, on a private server": Use("writing", ("--throwaway",)),
    "a project with SQLite, on a private server": Use("sqlite", ("--throwaway",)),
    "an engine and options of its own": Use(
        "own_engine", (), {"pending_migrations": []}
    ),
    "an engine and options of its own, on a private server": Use(
        "own_engine", ("--throwaway",), {"pending_migrations": []}
    ),
    "settings that read variables of libpq's": Use(
        "from_variables",
        ("--live",),
        {"rows": 1},
        {"PGDATABASE": "lifted_variables", "PGUSER": "postgres"},
    ),
    "options that name a database": Use("options", (), {"tables": 15}),
    "settings that name a service": Use(
        "by_service", ("--live",), {"tables": 12}, {"PGSERVICEFILE": "services/one"}
    ),
    "django-configurations": Use(
        "configured", (), {}, {"DJANGO_CONFIGURATION": "Production"}
    ),
}
if importlib.util.find_spec("psycopg"):
    USES["psycopg 3 that binds on the server"] = Use("binding")
    USES["psycopg 3 that binds on the server, live"] = Use("binding", ("--live",))


class OtherProjectTests(Case, table=USES):
    """The drill passes in the project, and its databases are what they were."""

    def judge(self, row: Use) -> None:
        """It passes, and nothing has changed."""
        root = project()
        before = contents(root)
        self.assertIn("by hand", before["lifted"])
        self.assertIn("by hand", before["lifted_second"])
        with place() as here:
            over = here.drill(
                *row.arguments,
                command=("scripts/test_backup_restore.py",),
                cwd=root,
                DJANGO_SETTINGS_MODULE=f"market.{row.settings}",
                PGHOST=str(server().data),
                **row.environment,
            )
        for name, text in contents(root).items():
            self.assertEqual(before[name], text, f"{name} has changed")
        self.assert_verdict(over, "passed")
        self.assertEqual(over.stdout, "")
        for fact, value in row.facts.items():
            self.assertEqual(over.report[fact], value, fact)
        self.assertEqual("database: second" in over.text, "second" in row.arguments)


@once
def project() -> Path:
    """A project as django-admin makes it, with its databases in use."""
    enter, root = until_the_end().enter_context, folder() / "elsewhere"
    for name in ("lifted", "lifted_second"):
        enter(database(name=name))
    enter(database("CREATE TABLE public.one AS SELECT 1", "lifted_variables"))
    root.mkdir()
    django("-m", "django", "startproject", "market", ".")
    files = {
        "archive/models.py": ARCHIVE,
        "configurations/importer.py": IMPORTER,
        "market/binding.py": BINDING,
        "market/by_service.py": BY_SERVICE,
        "market/configured.py": CONFIGURED,
        "market/engine/base.py": ENGINE,
        "market/from_variables.py": FROM_VARIABLES,
        "market/options.py": OPTIONS,
        "market/own_engine.py": OWN_ENGINE,
        "market/sqlite.py": SQLITE,
        "market/writing.py": WRITING,
        "shop/apps.py": WRITING_APPLICATION,
        "shop/models.py": SHOP,
        "shop/routers.py": ROUTERS,
        "services/one": f"[drill]\nhost={server().data}\nuser=postgres\ndbname=lifted\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    with (root / "market" / "settings.py").open("a") as file:
        file.write(SETTINGS.format(host=str(server().data)))
    (root / "scripts").mkdir()
    shutil.copy(SCRIPT, root / "scripts")
    django("manage.py", "makemigrations", "shop", "archive")
    (root / "shop" / "migrations" / "0002_fill.py").write_text(DATA_MIGRATION)
    for alias in ("default", "second"):
        django("manage.py", "migrate", "--database", alias)
    execute("lifted", "INSERT INTO shop_article (name, kind) VALUES ('by hand', 'new')")
    execute("lifted_second", "INSERT INTO archive_paper (title) VALUES ('by hand')")
    return root


def django(*arguments: str) -> None:
    """Run one of Django's commands in the project."""
    with place() as here:
        subprocess.run(
            [sys.executable, *arguments],
            cwd=folder() / "elsewhere",
            env=here.environment(),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=BOUND,
        )


def contents(root: Path) -> dict[str, str]:
    """The project's databases, byte for byte: as pg_dump writes them, and a file."""
    third = root / "third.db"
    found = {"third": third.read_bytes().hex() if third.exists() else "missing"}
    with place() as here:
        for name in ("lifted", "lifted_second"):
            text = pg_dump(name, here.folder / name).read_text()
            found[name] = re.sub(r"(?m)^\\(un)?restrict .*\n", "", text)
    return found
