"""Clients, remote hosts, an operator and followers of events around several nodes of one queue.

Nodes, the database and connections end at any time. Raises AssertionError that names the messages
and what is wrong with them. See docs/postgresql.md.
"""

import http.client
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from relay.store.journeys.events import Step
from tests.crash.queue_storm import QueueStorm
from tests.support.cutting_proxy import Cut, CuttingProxy
from tests.support.in_thread import in_threads
from tests.support.postgres import PostgresServer
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

STOP_S = 20.0
_LEASE_S = 60.0  # and what a takeover takes
_AWAY_S = 40.0
_LIFE_S_MAX = 10.0
_LOOK_S = 5.0  # how long a follower waits for one event: a relay paces streams that are behind
_STREAM_EVENTS = 300  # before a follower that wanders goes to another node
_CUTS = 4
_SAMPLE = 20  # journeys that are compared

Event = tuple[int, str, int, str]  # number, message, step, time


class Follower:
    """Reads the events of the queue from a node, and goes on where it was after each loss."""

    def __init__(self, choose: Callable[[], RelayProcess], *, stream_events: int) -> None:
        self._choose = choose
        self._stream_events = stream_events
        self._cursor = "0"
        self.gaps = 0
        self.seen: list[Event] = []

    def follow(self, over: threading.Event) -> None:
        """Read until it is over, and then what is left."""
        while not over.is_set():
            with suppress(OSError, http.client.HTTPException, KeyError):
                self._read_stream(self._choose(), over)
            over.wait(0.05)

    def _read_stream(self, relay: RelayProcess, over: threading.Event) -> None:
        connection = http.client.HTTPConnection(*relay.http, timeout=_LOOK_S)
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        try:
            connection.request("GET", f"/relay/v1/events?after={self._cursor}", headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                return
            kind = number = ""
            for _ in range(self._stream_events):
                for line in iter(response.readline, b"\n"):
                    if not line.endswith(b"\n") or over.is_set():
                        return
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "id":
                        number = value
                    elif name == "data":
                        self._take(kind, number, value)
                kind = number = ""
        finally:
            connection.close()

    def _take(self, kind: str, cursor: str, text: str) -> None:
        if kind == "gap":
            self.gaps += 1
            return
        before, after = (int(one.partition(".")[0]) for one in (self._cursor, cursor))
        self._cursor = cursor
        event = json.loads(text)
        if after != before and event["step"] >= Step.POLICY_AND_ROUTING:  # of the spool
            self.seen.append((after, event["message"], event["step"], event["at"]))


def shared_part(journey: dict[str, Any]) -> dict[str, Any]:
    """A journey without what only the node knows whose mail root the message passed."""
    steps = [one for one in journey["steps"] if one["step"] >= Step.POLICY_AND_ROUTING]
    is_submission = journey["submission_id"] is not None
    return journey | {"steps": steps, "client": None if is_submission else journey["client"]}


class NodeStorm(QueueStorm):
    """Relays on one queue, and what happens to them."""

    pause_s = 0.1

    def __init__(
        self,
        remotes: Remotes,
        rng: random.Random,
        make: Callable[[], Sequence[RelayProcess]],
        *,
        server: PostgresServer,
        proxy: CuttingProxy,
    ) -> None:
        """The last of the relays reaches the server by the proxy."""
        super().__init__(remotes, rng, make)
        self._server = server
        self._proxy = proxy
        self.followers = [
            Follower(lambda one=one: one, stream_events=1_000_000) for one in self.relays
        ]
        wandering = random.Random(rng.random())
        self.followers.append(Follower(lambda: self._one(wandering), stream_events=_STREAM_EVENTS))

    def refused(self, code: int) -> bool | None:
        """After a lost connection the message may be there all the same (RFC 1047)."""
        return None if code == 451 else False

    @contextmanager
    def followed(self) -> Iterator[None]:
        """All followers read inside."""
        over = threading.Event()
        with in_threads([partial(one.follow, over) for one in self.followers], over=over):
            yield

    def live(self, letters: int) -> None:
        """Wait until so many more were accepted; not for ever, since nobody may be there."""
        goal, end_s = self.accepted + letters, time.monotonic() + _LIFE_S_MAX
        while self.accepted < goal and time.monotonic() < end_s:
            time.sleep(0.01)

    # -- what happens

    def kill(self) -> None:
        """Kill -9 of a node, which starts again."""
        node = self._one(self.rng)
        node.kill()
        self.live(self.rng.randint(0, 20))
        node.start()

    def freeze(self) -> None:
        """Stop a node for longer than its lease; then it goes on."""
        node = self._one(self.rng)
        assert node.process is not None
        died, joined = self._died(), node.log.count("joined again")
        node.process.send_signal(signal.SIGSTOP)
        self.silent.add(node)
        try:
            until("it is taken for dead", lambda: self._died() > died, timeout_s=_LEASE_S)
            self.live(20)
        finally:
            node.process.send_signal(signal.SIGCONT)
            self.silent.discard(node)
        until("it has joined again", lambda: node.log.count("joined again") > joined)

    def _died(self) -> int:
        return sum(one.log.count("a node is dead") for one in self.relays)

    def restart_database(self) -> None:
        """Stop the server as a crash does, and start it."""
        self._server.stop(immediate=True)
        time.sleep(self.rng.uniform(0, 1))
        self._server.start()

    def take_database_away(self) -> None:
        """For longer than the lease of every node."""
        self._server.stop(immediate=True)
        time.sleep(_AWAY_S)
        self._server.start()
        for node in self.relays:
            until("ready", lambda node=node: node.request("GET", "/readyz").status == 200)

    def cut(self) -> None:
        """Lose what a node sends, or the reply."""
        for _ in range(_CUTS):
            lost = self._proxy.losses
            self._proxy.lose("writer", self.rng.choice(list(Cut)), after=self.rng.randint(0, 30))
            until("it is lost", lambda lost=lost: self._proxy.losses > lost)

    # -- what must hold when it is over

    def check_events(self, numbers: Sequence[int]) -> None:
        """Each follower sees all events, in one order."""
        for follower in self.followers:
            count = -1
            while count < len(follower.seen) < len(numbers):  # as long as it sees more, in order
                count = len(follower.seen)
                with suppress(AssertionError):  # what follows says more
                    until("more is seen", lambda one=follower, n=count: len(one.seen) > n)
            seen = [one[0] for one in follower.seen]
            missed, again = set(numbers) - set(seen), len(seen) - len(set(seen))
            number = self.followers.index(follower)
            assert not missed, (
                f"{number} missed {len(missed)} of {len(numbers)}: {sorted(missed)[:9]}"
            )
            assert again == 0, f"{again} came again"
            assert seen == list(numbers), "in another order"
            assert follower.seen == self.followers[0].seen, "events of two followers"
        assert [one.gaps for one in self.followers[:-1]] == [0] * len(self.relays)

    def check_nodes(self) -> None:
        """Each node tells the same, and ends in time."""
        for letter in self.rng.sample(self.letters, min(_SAMPLE, len(self.letters))):
            if letter.accepted:
                first, *others = (
                    shared_part(one.journey(letter.recipients[0])) for one in self.relays
                )
                for other in others:
                    found = [name for name in first if first[name] != other[name]]
                    assert found == [], f"{letter}: {[(first[one], other[one]) for one in found]}"
        assert set(self.unaccounted) == {0}, self.unaccounted
        for relay in self.relays:
            until("counted", lambda one=relay: one.metric("relay_queue_entries") == 0)
            assert relay.metric("relay_queue_unaccounted") == 0
            broken = [one for one in relay.log.splitlines() if "Traceback" in one]
            assert broken == [], broken[0].replace("\\n", "\n")
            code = relay.stop(timeout_s=STOP_S)
            assert code == 0, f"it ended with {code}\n{relay.log_tail()}"
