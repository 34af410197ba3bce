"""A server that the drill cannot work on is told apart before any work is done."""

import re
import select
import shutil
import socket
import socketserver
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from unittest import mock
from urllib.parse import quote

from aidscope.tests import server as suite
from aidscope.tests.running import BOUND, Ended, place, url_of
from scripts import test_backup_restore as drill

SOCKET = ".s.PGSQL.5432"


class PoolerTests(unittest.TestCase):
    """A connection pooler, whose sessions the drill would share with others."""

    def test_pooler(self) -> None:
        """It is named, and nothing is made behind it."""
        with place() as here, pooler(here.folder) as url:
            over = here.run("--verbose", DATABASE_URL=url)
            leftovers = here.leftovers()
        assert_not_begun(
            self, over, "a connection pooler before the server shares its sessions out"
        )
        self.assertEqual(leftovers, [])


@contextmanager
def pooler(folder: Path) -> Iterator[str]:
    """The URL of the suite's server behind what tells, as poolers do, another pid."""
    listening = socketserver.ThreadingUnixStreamServer(str(folder / SOCKET), Pooled)
    listening.daemon_threads = True
    thread = Thread(target=listening.serve_forever)
    with listening:
        thread.start()
        try:
            yield url_of().replace(
                quote(suite.server().settings["HOST"], safe=""),
                quote(str(folder), safe=""),
            )
        finally:
            listening.shutdown()
            thread.join()


class Pooled(socketserver.BaseRequestHandler):
    """A client of the pooler's."""

    def handle(self) -> None:
        """Hand on what either side says; the server's pid is kept from the client."""
        path = Path(suite.server().settings["HOST"], SOCKET)
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(str(path))
            other = {self.request: server, server: self.request}
            while ready := select.select([*other], [], [], BOUND)[0]:
                said = ready[0].recv(65536)
                if not said:
                    return
                other[ready[0]].sendall(re.sub(KEY_DATA, b"\\1\0\0\0\1", said))


KEY_DATA = rb"(?s)(K\0\0\0\x0c)...."  # the server's pid, as it introduces itself


class StandbyTests(unittest.TestCase):
    """A standby, on which nothing can be created."""

    def test_standby(self) -> None:
        """It is named; with --throwaway its databases can be drilled all the same."""
        with place() as here, standby(here.folder) as url:
            refused = here.run("--live", DATABASE_URL=url)
            passed = here.run("--live", "--throwaway", DATABASE_URL=url)
        assert_not_begun(self, refused, "the server is a standby, on which no database")
        self.assertIn("use --throwaway", refused.stderr)
        self.assertEqual(passed.status, 0, passed.said)
        self.assertIn("compared: 1 tables, 3 rows", " ".join(passed.stderr.split()))


@contextmanager
def standby(folder: Path) -> Iterator[str]:
    """The URL of a server that replays, and holds one table of three rows."""
    settings = "listen_addresses = ''\nfsync = off\n"
    with mock.patch.object(drill, "SERVER_SETTINGS", settings):
        made = drill.throwaway_server(folder, suite.server().mark, BOUND, None)
        with made as server:
            suite.execute(
                drill.maintenance(server),
                "CREATE TABLE public.kept AS SELECT generate_series(1, 3) AS id",
            )
            data = Path(server.settings["HOST"])
            words = (server_program(), "-D", str(data), "-w", "-l", str(data / "log"))
            account = drill.unprivileged_account()
            (data / "standby.signal").touch()
            if account:
                shutil.chown(data / "standby.signal", account["user"])
            drill.run(drill.Command((*words, "restart"), BOUND), cwd=data, **account)
            yield f"postgresql://postgres@{quote(str(data), safe='')}/postgres"


def server_program() -> str:
    """The program that starts and stops servers."""
    return str(suite.server().programs["psql"].path.with_name("pg_ctl"))


def assert_not_begun(case: unittest.TestCase, over: Ended, sentence: str) -> None:
    """The drill said the sentence, and went no further than to look."""
    case.assertEqual(over.status, 1, over.said)
    case.assertIn(f"NotJudged: {sentence}", over.stderr)
    case.assertIn("tests: set-up error;", over.stderr)
    case.assertNotIn("Traceback", over.said)
