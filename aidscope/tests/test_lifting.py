"""The one file, copied into somebody else's project, works and touches nothing there.

The project has two applications, three databases, a router, migrations that write by
every road to the default connection, and code that writes whenever it can.
"""

import re
import shutil
import subprocess
import sys
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aidscope.tests.running import BOUND, SCRIPT, Place, place
from aidscope.tests.server import execute, server
from scripts import test_backup_restore as drill

NAMES = {"default": "lifted", "second": "lifted_second"}

SETTINGS = """
from importlib import import_module

SERVER = {server!r}
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
from django.db import connection, connections, migrations, transaction


def fill(apps, editor):
    from shop.models import Article

    Article.objects.create(name="by the real model")
    apps.get_model("shop", "Article").objects.create(name="by the historical model")
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO shop_article (name, kind) VALUES ('by SQL', 'new')")
    with transaction.atomic(using="default"):
        connections["default"].cursor().execute("UPDATE shop_article SET kind = 'used'")
    print("filled", Article.objects.count())


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
"""
# Writes when Django has started, and whenever a connection is made.
WRITING_APPLICATION = """
from django.apps import AppConfig
from django.db import DatabaseError, connection
from django.db.backends.signals import connection_created


def note(by):
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO shop_visit (by) VALUES (%s)", [by])
    except DatabaseError:
        pass  # there is no such table yet


def on_connection(sender, connection, **rest):
    if connection.alias == "default":
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('shop_visit')")
            if cursor.fetchone()[0]:
                cursor.execute("INSERT INTO shop_visit (by) VALUES ('a receiver')")


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        connection_created.connect(on_connection)
        note("ready")
"""


class LiftingTests(unittest.TestCase):
    """The script needs nothing but a Django project, and leaves its databases alone."""

    def test_another_project(self) -> None:
        """The drill passes there; the configured databases are what they were."""
        with place() as here, project(here) as root:
            before = contents(root)
            self.assertIn("by hand", before["default"])
            self.assertIn("by hand", before["second"])
            with self.subTest("a project that migrates"):
                self.judge(here, root, before)
            (root / "shop" / "apps.py").write_text(WRITING_APPLICATION)
            with self.subTest("a project that writes whenever it can"):
                self.judge(here, root, before)

    def judge(self, here: Place, root: Path, before: dict[str, str]) -> None:
        """The drill passes in the project and changes nothing."""
        over = here.run(command=("scripts/test_backup_restore.py",), folder=root)
        after = contents(root)
        for alias, text in before.items():
            self.assertEqual(after[alias], text, f"{alias} has changed")
        self.assertEqual(over.status, 0, over.said)
        self.assertEqual(over.stdout, "")
        self.assertIn("The backup restores.", over.said)
        self.assertEqual(here.leftovers(), [])


@contextmanager
def project(here: Place) -> Iterator[Path]:
    """A project as django-admin makes it, with its databases in use."""
    root = here.folder / "elsewhere"
    root.mkdir()
    maintenance = drill.maintenance(server())
    for name in NAMES.values():
        execute(maintenance, f"CREATE DATABASE {name}")
    try:
        build(here, root)
        yield root
    finally:
        for name in NAMES.values():
            execute(maintenance, f"DROP DATABASE {name} WITH (FORCE)")


def build(here: Place, root: Path) -> None:
    """Write the project, and migrate and fill its databases."""
    django(here, root, "-m", "django", "startproject", "market", ".")
    (root / "scripts").mkdir()
    shutil.copy(SCRIPT, root / "scripts")
    keys = ("ENGINE", "HOST", "USER")
    settings = SETTINGS.format(server={key: server().settings[key] for key in keys})
    with (root / "market" / "settings.py").open("a") as file:
        file.write(settings)
    for name, models in {"shop": SHOP, "archive": ARCHIVE}.items():
        (root / name / "migrations").mkdir(parents=True)
        (root / name / "__init__.py").touch()
        (root / name / "migrations" / "__init__.py").touch()
        (root / name / "models.py").write_text(models)
    (root / "shop" / "routers.py").write_text(ROUTERS)
    django(here, root, "manage.py", "makemigrations", "shop", "archive")
    migration = root / "shop" / "migrations" / "0002_fill.py"
    migration.write_text(DATA_MIGRATION)
    for alias in NAMES:
        django(here, root, "manage.py", "migrate", "--database", alias)
    fill("default", "INSERT INTO shop_article (name, kind) VALUES ('by hand', 'new')")
    fill("second", "INSERT INTO archive_paper (title) VALUES ('by hand')")


def django(here: Place, root: Path, *arguments: str) -> None:
    """Run one of Django's commands in the project."""
    subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=here.environment(),
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=BOUND,
    )


def fill(alias: str, sql: str) -> None:
    """Run SQL on one of the project's databases."""
    execute(drill.Database(server(), NAMES[alias]), f"SET search_path TO public; {sql}")


def contents(root: Path) -> dict[str, str]:
    """The project's databases, byte for byte: as pg_dump writes them, and a file."""
    third = root / "third.db"
    found = {"third": third.read_bytes().hex() if third.exists() else "missing"}
    for alias, name in NAMES.items():
        text = drill.run(drill.command(drill.Database(server(), name), "pg_dump"))
        found[alias] = re.sub(r"(?m)^\\(un)?restrict .*\n", "", text)
    return found
