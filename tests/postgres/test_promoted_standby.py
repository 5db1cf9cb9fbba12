"""A standby that confirms no commits takes over from its server, and has lost the last ones."""

import re
import threading

from tests.postgres.conftest import PortsUrl, StartNode
from tests.postgres.node_storm import Follower
from tests.support.journeys import outcomes
from tests.support.postgres import PostgresServer, StandbyServer, database_of
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

MESSAGES = 20
LOST = (
    r"^lost-message +message (\w+) of alice@example.test: found step 4 at .*; log: relayed (\S+)$"
)


def is_known(relay: RelayProcess, queue_id: str) -> bool:
    answer = relay.graph("GET", f"/relay/v1/messages/{queue_id}", token=OPERATOR)
    assert answer.status in (200, 404)
    return answer.status == 200


def test_what_a_promoted_standby_has_lost_is_counted(
    server: PostgresServer, remotes: Remotes, node: StartNode, url_by_ports: PortsUrl
) -> None:
    """All else is there once; an attempt whose result was lost is indeterminate."""
    gate = remotes.gate()
    slow, fast = remotes.start("slow.test", gates={"DOT": gate}), remotes.start("a.test")
    database = database_of(server.create())
    over = threading.Event()
    with StandbyServer(server) as standby:
        both = url_by_ports(database, server.port, standby.port)
        one, two = nodes = node("one", url=both), node("two", url=both)
        follower = Follower(lambda: two, stream_events=1_000_000)
        following = threading.Thread(target=follower.follow, args=(over,))
        following.start()

        def submit(name: str) -> list[str]:
            found = []
            for number in range(MESSAGES):
                to = [f"{name}{number}@a.test"]
                found.append(nodes[number % 2].submit("alice@example.test", to))
                nodes[number % 2].until_state(found[-1], "relayed")
            return found

        try:
            doubtful = one.submit("alice@example.test", ["x@slow.test"])
            remotes.run(slow.reached("DOT"))
            kept = submit("kept")
            standby.catch_up()
            standby.cut_off()
            remotes.open_gate(gate)
            one.until_state(doubtful, "relayed")
            lost = submit("lost")
            last = server.sql("SELECT max(sequence) FROM event", database=database)
            until("all is followed", lambda: follower.seen and follower.seen[-1][0] == int(last))
            server.stop(immediate=True)
            standby.promote()
            for relay in nodes:
                until("it has noticed", lambda one=relay: "has lost commits" in one.log)
            assert two.until_state(doubtful, "relayed")
            new = submit("new")
            log = "".join(relay.log for relay in nodes)
            for relay in nodes:
                done = relay.cli("storage", "verify", "--log", "-", stdin=log)
                named = re.findall(LOST, done.stdout, re.MULTILINE)
                assert next(zip(*named, strict=True)) == tuple(sorted(lost)), done
                assert {to for _, to in named} == {f"lost{n}@a.test" for n in range(MESSAGES)}
            for relay in nodes:
                assert [is_known(relay, queue_id) for queue_id in lost] == [False] * MESSAGES
                for queue_id in (*kept, *new):
                    assert relay.journey(queue_id)["state"] == "relayed"
            for name in ("kept", "lost", "new"):
                for number in range(MESSAGES):
                    received(fast, f"{name}{number}@a.test")
            assert len(slow.envelopes) == 2
            assert outcomes(two.journey(doubtful), "x@slow.test")[0] == "indeterminate"
            counted = sum(relay.metric("relay_spool_lost_commits_total") for relay in nodes)
            assert counted > 2 * MESSAGES  # each was accepted, and its result recorded
            events = standby.sql("SELECT sequence FROM event ORDER BY 1", database=database)
            numbers = [int(number) for number in events.split()]
            until("all is followed", lambda: follower.seen[-1][0] == numbers[-1])
            seen = [event[0] for event in follower.seen]
            assert seen == sorted(set(seen))
            assert set(seen) > set(numbers)
            for relay in nodes:
                until("counted", lambda one=relay: one.metric("relay_queue_entries") == 0)
                assert relay.metric("relay_queue_unaccounted") == 0
                assert relay.stop() == 0
        finally:
            over.set()
            following.join()
