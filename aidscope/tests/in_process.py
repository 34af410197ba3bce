"""What the drill's functions made of one database, for tests that need no whole run.

backup       of the database that has everything, validated
restored     the scratch database that was loaded from it
reference    the scratch database with the definitions alone
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from aidscope.tests.support import NUMBERS, everything, execute, once, until_the_end
from aidscope.tests.support import server as suites_server
from scripts import test_backup_restore as drill


class Made(NamedTuple):
    """What was made of the database that has everything."""

    backup: drill.Backup
    scan: drill.Scan
    restored: drill.Database
    reference: drill.Database


@once
def server() -> drill.Database:
    """The suite's server, as a run of the drill's sees it."""
    enter = until_the_end().enter_context
    run = enter(drill.started_run(drill.parsed(["--timeout", "60"])[0]))
    words = {"host": str(suites_server().data), "user": "postgres"}
    made = drill.introduced(drill.Database(run, "postgres", words))
    enter(drill.scratch_work(made))
    return made


@once
def made() -> Made:
    """The backup, and what it brings back: nobody writes to it."""
    backup = drill.dumped(replace(server(), name=everything()))
    scan = drill.validated(backup, server())
    restored = drill.made_database(server(), "restored", backup.like, scan)
    _, reference = drill.load_backup(backup, restored)
    return Made(backup, scan, restored, reference)


@contextmanager
def scratch_database(clauses: str) -> Iterator[drill.Database]:
    """A database of the block's; the name is none that a drill would drop."""
    name = f"site_{next(NUMBERS)}"
    execute("postgres", f"CREATE DATABASE {name} TEMPLATE {clauses}")
    try:
        yield replace(server(), name=name)
    finally:
        execute("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def differences_of(database: drill.Database) -> list[str]:
    """What the drill says of a database in the place of the restored one."""
    backup, scan, _, reference = made()
    found, expected = drill.read_both(backup, scan, database, reference)
    return drill.differences(expected, found)


def differences_after(sql: str) -> list[str]:
    """What the drill says of a copy of the restored database after this SQL."""
    with scratch_database(made().restored.name) as copy:
        execute(copy.name, sql)
        return differences_of(copy)


def said_by_validation(backup: drill.Backup) -> str:
    """The problems that validation finds in a copy of the backup."""
    try:
        drill.validated(backup, server())
    except drill.BackupIsBad as refusal:
        return str(refusal)
    return ""


def said_by_restore(backup: drill.Backup) -> str:
    """What keeps the copy from being restored, or else the first differences."""
    with scratch_database("template0") as restored:
        try:
            drill.load_backup(replace(backup, source=None), restored)
        except drill.BackupIsBad as refusal:
            return str(refusal)
        return "\n".join(differences_of(restored)[:3])
