"""Three nodes on a cluster of Patroni's, each on one of the ways of docs/postgresql.md, "With Patroni", and what
happens to the cluster. For each way a line (`pytest -s`): what was accepted, lost and delivered twice, and the
longest time in which nothing was accepted.
"""

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.crash.queue_storm import PATIENT
from tests.postgres.test_poolers import opened_front
from tests.postgres.test_server_away import submit_code
from tests.support.journeys import outcomes
from tests.support.long_tests import long
from tests.support.patroni import Cluster
from tests.support.postgres import OWNER, PASSWORD
from tests.support.process_tree import tree
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.remotes import Remotes

URL, HAPROXY, PGBOUNCER = re.findall(
    r"^```.*?\n(.*?)^```$",
    (ROOT / "docs/postgresql.md").read_text().partition("## With Patroni\n")[2],
    re.MULTILINE | re.DOTALL,
)[:3]
LETTERS = 15  # before an event, and after it
LAST_S = 120.0
LOSE_ALL = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{OWNER}'"


class Ways:
    """A cluster, what stands in front of it, and three nodes."""

    def __init__(self, until_end: ExitStack) -> None:
        self.cluster = Cluster(until_end)
        self.haproxy, self.pgbouncer = (until_end.enter_context(opened_front()) for _ in range(2))
        self._password = self.haproxy.folder / "password"
        self.start_fronts(PASSWORD)
        remotes = until_end.enter_context(Remotes())
        self.host = remotes.start("a.test")
        self.nodes = dict[str, RelayProcess]()
        shown = self.filled(URL).split('"')[1].partition("?")[0]
        for name, places in (
            ("hosts", self.cluster.members),
            ("haproxy", [self.haproxy]),
            ("pgbouncer", [self.pgbouncer]),
        ):
            hosts = ",".join(f"127.0.0.1:{one.port}" for one in places)
            spool = {"node": name, "url": re.sub("@.*/", f"@{hosts}/", shown)}
            own = PATIENT | {"spool": spool, "mailboxes": {"store": name}}
            self.nodes[name] = remotes.relay(config=own)
            until_end.callback(self.nodes[name].close)
            self.nodes[name].start()

    def filled(self, text: str) -> str:
        """What the page shows, with the ports and files of here."""
        for one in self.cluster.members:
            shown = f"{one.name}.example.org:5432 check port 8008"
            text = text.replace(shown, f"127.0.0.1:{one.port} check port {one.api}")
        text = text.replace("5000", str(self.haproxy.port)).replace(
            "6432", str(self.pgbouncer.port)
        )
        text = text.replace("/etc/relay/spool-password", str(self._password))
        return text.replace("/etc/pgbouncer/userlist.txt", str(self.pgbouncer.folder / "users"))

    def start_fronts(self, password: str) -> None:
        self._password.write_text(password)
        self._password.chmod(0o600)
        self.haproxy.haproxy(self.filled(HAPROXY))
        self.pgbouncer.pgbouncer(text=self.filled(PGBOUNCER), password=password)

    def is_accepting(self) -> bool:
        return submit_code(self.nodes["hosts"], 0) == 250

    def stop_fronts(self) -> None:
        for front in (self.haproxy, self.pgbouncer):
            front.process.kill()
            front.process.wait()


class Client:
    """Hands a node a message by SMTP and one by sendMail in turn, each once."""

    def __init__(self, way: str, relay: RelayProcess) -> None:
        self._way, self._relay = way, relay
        self.accepted: dict[str, str] = {}  # address -> id
        self._times = [time.monotonic()]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        while not self._over.wait(0.05):
            by_smtp, by_graph = (f"{kind}{time.monotonic_ns()}@a.test" for kind in "sg")
            with suppress(AssertionError, OSError):
                self.accepted[by_smtp] = self._relay.submit("alice@example.test", [by_smtp])
                self._times.append(time.monotonic())
            with suppress(AssertionError, OSError):
                self.accepted[by_graph] = self._relay.send_mail(to=[by_graph], save=False)

    def until_more(self) -> None:
        """Wait until so many more were accepted."""
        goal = len(self._times) + LETTERS
        until(f"{self._way} accepts", lambda: len(self._times) >= goal, timeout_s=LAST_S)

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def line(self, event: str, found: Counter[str]) -> str:
        """What became of its mail; raises AssertionError for what came twice without a word."""
        gap_s = max(then - now for now, then in zip(self._times, self._times[1:], strict=False))
        lost, twice = ([one for one in self.accepted if found[one] in n] for n in ((0,), (2, 3)))
        line = f"{event:<16}{self._way:<10}{len(self.accepted):>5}{len(lost):>3}{len(twice):>3}{gap_s:>6.1f} s"
        assert not lost, line
        for one in twice:
            assert "indeterminate" in outcomes(self._relay.journey(self.accepted[one]), one), line
        return line


def switchover(ways: Ways) -> None:
    old = ways.cluster.primary
    old.ask("/switchover", leader=old.name)


def kill(ways: Ways) -> None:
    os.kill(ways.cluster.primary.pid, signal.SIGKILL)


def kill_machine(ways: Ways) -> None:
    """The primary and its Patroni come back later."""
    old = ways.cluster.primary
    old.stop()
    until("another one leads", lambda: ways.cluster.leaders)
    old.start()


def freeze(ways: Ways) -> None:
    """The primary goes on when there is another one."""
    old = ways.cluster.primary
    with stopped(*tree(old.pid)):
        until("another one leads", lambda: set(ways.cluster.leaders) - {old})


def stop_store(ways: Ways) -> None:
    with stopped(ways.cluster.store.pid):
        until("nobody leads", lambda: not ways.cluster.leaders)
        until("nothing is accepted", lambda: not ways.is_accepting())


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    yield
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def restart_fronts(ways: Ways) -> None:
    ways.stop_fronts()
    ways.start_fronts(PASSWORD)


def change_password(ways: Ways) -> None:
    ways.cluster.sql(f"ALTER ROLE {OWNER} PASSWORD 'another'")
    ways.cluster.sql(LOSE_ALL)
    until("nothing is accepted", lambda: not ways.is_accepting())
    ways.stop_fronts()
    ways.start_fronts("another")


def limit_times(ways: Ways) -> None:
    for name in ("statement", "lock", "idle_in_transaction_session", "idle_session"):
        ways.cluster.sql(f"ALTER ROLE {OWNER} SET {name}_timeout = '1s'")
    ways.cluster.sql(LOSE_ALL)


@pytest.fixture(scope="module", autouse=True)
def every_relay() -> None:
    """Each node has a spool that the others share."""


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    with ExitStack() as until_end:
        yield Ways(until_end)


LONG = (kill_machine, freeze, stop_store, restart_fronts, change_password, limit_times)


@pytest.mark.parametrize("event", [switchover, kill, *(pytest.param(e, marks=long) for e in LONG)])
def test_nothing_is_lost_and_nothing_comes_twice_untold(
    ways: Ways, event: Callable[[Ways], None]
) -> None:
    ways.cluster.until_whole()
    clients = [Client(*one) for one in ways.nodes.items()]
    try:
        for one in clients:
            one.until_more()
        event(ways)
        for one in clients:
            one.until_more()
    finally:
        for one in clients:
            one.end()

    def found() -> Counter[str]:
        taken = (one for one in ways.host.envelopes if one.answered // 100 == 2)
        return Counter(to for one in taken for to in one.addresses)

    everything = set().union(*(one.accepted for one in clients))
    with suppress(AssertionError):  # the lines say more
        until("all has come", lambda: everything <= set(found()), timeout_s=LAST_S)
        until("the queues are empty", lambda: not ways.nodes["hosts"].queue())
    for one in clients:
        print(one.line(event.__name__, found()))
