"""The drill's own functions, called in the process of the tests: it saves half a run.

Only what the project's code does is left out here, unless a settings module is named:
the settings are the suite's, and a command of Django's prints nothing.

backup      of the database that has everything, validated
restored    the scratch database that was loaded from it
expected    what a database that was restored from it holds
"""

import io
import logging
import os
import shutil
import sys
import unittest
from collections.abc import Iterable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg2

from aidscope.tests.support import (
    NUMBERS,
    Ended,
    Place,
    Server,
    create_database,
    everything,
    execute,
    folder,
    query,
    rows_of,
    version,
)
from aidscope.tests.support import server as server_of_tests
from scripts import test_backup_restore as drill

described_project = drill.described_project
started_run = drill.started_run
starting_server = drill.starting_server
ENVIRONMENT = dict(os.environ)


class ProjectWithoutApps(drill.Project):
    """A project whose commands do nothing."""

    def manage(self, *_: object, **__: object) -> str:
        """What none of them prints."""
        return ""


class ProjectWithCommands(drill.Project):
    """A project of which the commands of users are run, but none of the drill's."""

    def manage(self, command: Iterable[str], *how: Any, **more: Any) -> str:
        """What such a command prints."""
        name, *_ = command
        if name == "showmigrations":
            return ""
        return super().manage(command, *how, **more)


def project_on(
    run: drill.Run,
    home: Server,
    database: str = "postgres",
    user: str = "postgres",
    kind: type[drill.Project] = ProjectWithoutApps,
) -> drill.Project:
    """A project whose settings name this database of a server."""
    words = {"dbname": database, "host": str(home.data), "user": user}
    return kind(run, drill.POSTGRESQL, "postgresql", "", words)


def drilled(
    here: Place,
    *arguments: str,
    database: str = "postgres",
    user: str = "postgres",
    secrets: tuple[str, ...] = (),
    settings: str = "",
    kind: type[drill.Project] = ProjectWithoutApps,
    alone: bool = False,
    **environment: str,
) -> Ended:
    """A run in this process, of a project whose settings name the database.

    The secrets are what the settings hold besides. With a settings module the project
    is a real one, whose code runs in processes of its own. Runs on the server of the
    tests share a guard, a folder and a lock, and private ones a private server, which
    is as new for each; but for one that is alone.
    """
    if settings:
        environment["DJANGO_SETTINGS_MODULE"] = settings
    is_elsewhere = here.home != server_of_tests() or "TMPDIR" in environment
    shared = None if alone or is_elsewhere else server_of_runs()

    def described(run: drill.Run) -> drill.Project:
        if settings:
            project = described_project(run)
        else:
            run = replace(run, secrets=secrets)
            project = project_on(run, here.home, database, user, kind)
        if shared and "PATH" not in environment:
            # What it would find of the programs of the place.
            installed = f"{here.bin}:pg_dump (PostgreSQL) {version()}"
            project.run.__dict__["installed"] = installed
        return project

    replaced = {
        "described_project": described,
        # A signal is about the tests, which no drill may keep from ending.
        "interruptible": nullcontext,
        "ignore_signals": lambda: None,
    }
    if shared:
        replaced["started_run"] = joined_run
        replaced["scratch_work"] = joined_work
        replaced["starting_server"] = joined_server

    with (
        redirect_stdout(io.StringIO()) as stdout,
        redirect_stderr(io.StringIO()) as stderr,
        patch.dict(os.environ, here.environment(**environment), clear=True),
        patch.dict(sys.modules, {"__main__": drill}),  # where unittest finds the tests
        patch.object(unittest.defaultTestLoader, "testNamePatterns", None),  # of -k
        patch.object(logging.root, "handlers", []),
        patch.multiple(drill, **replaced),
    ):
        status = drill.main(["drill", "--report", str(here.report), *arguments])
    return here.over(status, stdout.getvalue(), stderr.getvalue())


# What runs share, in place of what each has of its own:


@contextmanager
def joined_run(options: drill.Options, evidence: drill.Evidence) -> Iterator[drill.Run]:
    """A run in the folder and under the guard that others share; no file is left."""
    run = replace(server_of_runs().run, options=options, evidence=evidence)
    try:
        yield run
    finally:
        shutil.rmtree(run.folder, ignore_errors=True)
        run.folder.mkdir(mode=0o700)


@contextmanager
def joined_work(database: drill.Database) -> Iterator[None]:
    """The lock that others share is held; no database is left."""
    mark = database.run.folder.name
    made = f"SELECT 1 FROM pg_database WHERE starts_with(datname, '{mark}')"
    try:
        yield
    finally:
        if query("postgres", made):
            drill.drop_databases(database)


# What a private server has that a new one has not; databases come before what their
# objects are of.
ADDED = """
SELECT format('DROP DATABASE %I WITH (FORCE)', datname)
  FROM pg_database
 WHERE datname NOT IN ('postgres', 'template0', 'template1')
 UNION ALL
SELECT format('DROP TABLESPACE %I', spcname) FROM pg_tablespace WHERE spcname !~ '^pg_'
 UNION ALL
SELECT format('DROP ROLE %I', rolname)
  FROM pg_roles
 WHERE rolname !~ '^pg_' AND rolname <> 'postgres'
"""


@contextmanager
def joined_server(
    project: drill.Project, major: int
) -> Iterator[tuple[drill.Database, drill.Program]]:
    """The private server that others share, with its start; new after the block."""
    server, program = lasting_private_server()
    run = project.run
    parameters = {**server.parameters, "options": project.options}
    programs = drill.found_programs(run, major, drill.SERVER_PROGRAMS)
    try:
        yield (
            replace(server, run=run, parameters=parameters, programs=programs),
            program,
        )
    finally:
        there = Server(Path(server.parameters["host"]))
        try:
            with closing(there.session("postgres")) as session:
                for (drop,) in rows_of(session, ADDED):
                    rows_of(session, drop)
        except psycopg2.Error:  # the next run is given another one
            lasting_private_server.cache_clear()
            raise


@cache
def lasting_private_server() -> tuple[drill.Database, drill.Program]:
    """The private server of runs that share one, with its start."""
    stack, run = begun_run()
    starting = starting_server(project_on(run, server_of_tests()), drill.NEWEST)
    with own_environment():
        server, program = stack.enter_context(starting)
    program.wait()
    return server, program


# --- One database, its backup, and what came back -------------------------------------


@dataclass(frozen=True)
class Made:
    """What was made of the database that has everything: nobody writes to it."""

    backup: drill.Backup
    reading: drill.Reading
    restored: drill.Database
    expected: drill.Contents
    facts: list[Any]  # that psql tells of the restored database
    definitions: str  # that pg_dump tells of it


def begun_run() -> tuple[ExitStack, drill.Run]:
    """A run of the drill's that lasts as long as this process, and what ends it."""
    stack = ExitStack()
    Finalize(None, stack.close, exitpriority=2)  # before the server ends
    options, _ = drill.parsed(["--live", "--no-throwaway", "--timeout", "60"])
    with own_environment():
        return stack, stack.enter_context(started_run(options, {}))


def own_environment() -> AbstractContextManager[Any]:
    """In this block the environment is of no place; what begins in it outlives one."""
    return patch.dict(os.environ, {**ENVIRONMENT, "TMPDIR": str(folder())}, clear=True)


def working_server() -> drill.Database:
    """The server of the tests, as a run of the drill's sees it that has begun."""
    stack, run = begun_run()
    found = drill.configured_database(project_on(run, server_of_tests()))
    stack.enter_context(drill.scratch_work(found))
    return found


@cache
def server() -> drill.Database:
    """The server for what is made of the database that has everything."""
    return working_server()


def limited(run: drill.Run, seconds: float) -> drill.Run:
    """The run, in which each program and each statement has this time."""
    options = drill.Options(**{**vars(run.options), "timeout": seconds})
    return replace(run, options=options)


@cache
def server_of_runs() -> drill.Database:
    """The server for runs that share a guard, a folder and a lock."""
    return working_server()


@cache
def made() -> Made:
    """The backup, and what it brings back."""
    backup = drill.written_backup(replace(server(), name=everything()))
    reading, _ = drill.validated_reading(backup, server())
    restored = drill.made_database(server(), "restored", backup.model)
    reference = drill.made_database(server(), "reference", restored)
    drill.load_backup(backup, reading, restored)
    drill.output_of(drill.loading_reference(reference, backup.contents))
    script = definitions_of(reference)
    expected = replace(backup.contents, script=script)
    facts, definitions = facts_of(restored), definitions_of(restored)
    return Made(backup, reading, restored, expected, facts, definitions)


def facts_of(database: drill.Database) -> list[Any]:
    """What psql tells of a database."""
    return drill.values_in(drill.output_of(drill.facts_of(database)))


def definitions_of(database: drill.Database) -> str:
    """What pg_dump tells of a database."""
    return drill.output_of(database.started(*drill.DEFINITIONS))


@contextmanager
def scratch_database(template: str) -> Iterator[drill.Database]:
    """A database of the block's; the name is none that a drill would drop."""
    name = f"site_{next(NUMBERS)}"
    create_database(name, template)
    try:
        yield replace(made().restored, name=name)
    finally:
        execute("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def differences_after(
    sql: str, with_facts: bool = True, with_definitions: bool = True
) -> list[str]:
    """What the drill says of a copy of the restored database after this SQL.

    What is not read again is taken to be as it was.
    """
    facts, definitions = made().facts, made().definitions
    with scratch_database(made().restored.name) as copy:
        execute(copy.name, sql)
        if with_facts:
            facts = facts_of(copy)
        if with_definitions:
            definitions = definitions_of(copy)
    found = drill.contents_from(facts, definitions)
    return list(map(str, drill.differences_between(made().expected, found)))


def said_by_validation(backup: drill.Backup) -> str:
    """The problems that validation finds in a copy of the backup."""
    try:
        drill.validated_reading(backup, server())
    except drill.BackupIsBad as refusal:
        return str(refusal)
    return ""


def verdict_on_load(backup: drill.Backup, reading: drill.Reading) -> Exception | None:
    """What is raised as a backup that was read is loaded into its own database."""
    drill.require_loadable(reading, server())
    name = f"site_{next(NUMBERS)}"
    try:
        with patch.object(drill.log, "disabled", True):  # a locale may be missing
            restored = drill.made_database(server(), "restored", backup.model, name)
            drill.load_backup(backup, reading, restored)
    except (drill.BackupIsBad, drill.NotJudged) as verdict:
        return verdict
    finally:
        execute("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    return None


def said_by_restore(
    backup: drill.Backup, reading: drill.Reading, with_definitions: bool = True
) -> str:
    """What keeps the copy from being restored, or else the differences.

    Definitions that are not read are taken to have come back.
    """
    definitions = made().definitions
    drill.require_loadable(reading, server())
    with scratch_database("template0") as scratch:
        restored = replace(scratch, run=backup.source.run)
        try:
            drill.load_backup(backup, reading, restored)
        except drill.BackupIsBad as refusal:
            return str(refusal)
        if with_definitions:
            definitions = definitions_of(restored)
        found = drill.contents_from(facts_of(restored), definitions)
    return "\n".join(map(str, drill.differences_between(made().expected, found)))
