"""Queue commands with real remote hosts: held or cancelled mail is not sent, other mail is sent once."""

import random
import threading
from collections import Counter
from typing import Any

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

OK, DATA, TRY_LATER = 0, 65, 75
ONE_CONNECTION = {"delivery": {"retry": ["1h"], "max_connections_per_next_hop": 1}}


def change(relay: RelayProcess, operation: str, **body: Any) -> dict[str, Any]:
    answer = relay.graph("POST", f"/relay/v1/queue/{operation}", body, token=OPERATOR)
    assert answer.status == 200, answer.body
    return dict(answer.json())


def queue_commands(relay: RelayProcess, queue_id: str) -> list[dict[str, Any]]:
    """What the journey says was done by hand."""
    details = (step["detail"] for step in relay.journey(queue_id)["steps"])
    return [one for one in details if "operation" in one]


def test_hold_reports_entries_in_flight_and_holds_the_others(
    remotes: Remotes,
) -> None:
    gate = remotes.gate()
    mx = remotes.start("slow.test", gates={"DOT": gate})
    with remotes.relay(config=ONE_CONNECTION) as relay:
        first = relay.submit("alice@example.test", ["first@slow.test"])
        remotes.run(mx.reached("DOT"))
        others = [relay.submit("alice@example.test", [f"{n}@slow.test"]) for n in range(4)]
        done = relay.cli("queue", "hold", first)
        assert (done.returncode, "in flight" in done.stdout) == (TRY_LATER, True)
        would = relay.cli_json("queue", "hold", "--all", "--dry-run")
        assert {one["id"]: (one["result"], one["state"]) for one in would} == {
            first: ("in flight", "queued"), **dict.fromkeys(others, ("done", "queued")),
        }  # fmt: skip
        answer = relay.cli_json("queue", "hold", "--all", "--reason", "the remote is slow")
        results = {one["id"]: (one["result"], one["state"]) for one in answer}
        assert results == {first: ("in flight", "queued")} | dict.fromkeys(others, ("done", "held"))
        assert change(relay, "cancel", ids=others[:1], reason="twice")["done"] == 1
        remotes.open_gate(gate)
        assert relay.until_final(first)["state"] == "relayed"
        (hold,) = queue_commands(relay, others[1])
        assert (hold["operation"], hold["why"]) == ("hold", "the remote is slow")
        assert hold["who"]
        assert relay.stop() == OK
        relay.start()
        stats = relay.graph("GET", "/relay/v1/queue/stats", token=OPERATOR).json()
        assert (stats["entries"]["held"], stats["recipients"]) == (3, 3)
        assert change(relay, "release", ids=others[1:3])["done"] == 2
        for queue_id in others[1:3]:
            relay.until_state(queue_id, "relayed")
        assert [one["id"] for one in relay.queue()] == [others[3]]
        listed = relay.cli("queue", "list", "<a,b@c>", others[3])
        assert listed.stderr.strip().endswith('not in the queue: "<a,b@c>"')
        assert others[3] in listed.stdout
        assert Counter(one.addresses[0] for one in mx.envelopes) == {
            "first@slow.test": 1, "1@slow.test": 1, "2@slow.test": 1,
        }  # fmt: skip
        until("counted", lambda: relay.metric("relay_queue_entries", state="held") == 1)
        assert relay.metric("relay_queue_unaccounted") == 0
        assert relay.faults() == []


def test_a_retry_by_hand_ignores_the_unreachable_state_of_the_site(remotes: Remotes) -> None:
    live = remotes.start("live.test")
    remotes.dns.zone["dead.test"] = {"MX": ["10 mx.dead.test."]}
    remotes.dns.zone["mx.dead.test"] = {"A": ["127.0.0.12"]}  # where the next one will listen
    with remotes.relay(config={"delivery": {"retry": ["1h"]}}) as relay:
        rerouted, retried = (
            relay.submit("alice@example.test", [f"{name}@dead.test"])
            for name in ("rerouted", "retried")
        )
        for queue_id in (rerouted, retried):
            relay.until_state(queue_id, "deferred")
        assert change(relay, "reroute", ids=[rerouted], to="mx:live.test")["done"] == 1
        assert relay.until_final(rerouted)["state"] == "relayed"
        received(live, "rerouted@dead.test")
        back = remotes.start("dead.test")
        assert change(relay, "retry", next_hop="dead.test")["done"] == 1
        assert relay.until_final(retried)["state"] == "relayed"
        received(back, "retried@dead.test")
        assert [one["operation"] for one in queue_commands(relay, retried)] == ["retry"]


def test_captured_mail_is_sent_only_after_a_reroute(remotes: Remotes) -> None:
    mx = remotes.start("a.test")
    route = {"domain": "a.test", "next_hop": "capture"}
    with remotes.relay(config={"route": [route]}) as relay:
        kept = [relay.submit("alice@example.test", [f"{n}@a.test"]) for n in range(2)]
        (refused,) = change(relay, "release", ids=kept[:1])["entries"]
        assert (refused["result"], "say where to" in refused["note"]) == ("unchanged", True)
        assert change(relay, "reroute", ids=kept[:1], to="default")["done"] == 0
        assert relay.states(kept[0]) == {"0@a.test": "captured"}
        assert change(relay, "reroute", ids=kept[:1], to="mx")["done"] == 1
        relay.until_state(kept[0], "relayed")
        received(mx, "0@a.test")
        assert relay.states(kept[1]) == {"1@a.test": "captured"}


def test_queue_commands_under_load_lose_and_duplicate_nothing(remotes: Remotes) -> None:
    mx = remotes.start("busy.test", fragment=4)  # a slow one, so that a queue grows
    rng = random.Random(4)
    config = {"delivery": {"retry": [0.2], "max_connections_per_next_hop": 2}}
    with remotes.relay(config=config) as relay:
        queue_ids: list[str] = []

        def submit() -> None:
            people = (f"{number}@busy.test" for number in range(80))
            queue_ids.extend(relay.submit("alice@example.test", [one]) for one in people)

        senders = threading.Thread(target=submit)
        senders.start()
        cancelled: set[str] = set()
        while senders.is_alive():
            operation = rng.choice(["hold", "hold", "release", "cancel", "retry", "reroute"])
            more = {"to": "mx:busy.test"} if operation == "reroute" else {}
            some = queue_ids[-5:] if operation == "cancel" else queue_ids[-40:]
            if not some:
                continue
            for one in change(relay, operation, ids=some, **more)["entries"]:
                if operation == "cancel" and one["result"] == "done":
                    cancelled.add(one["id"])
        senders.join()
        change(relay, "release", state="held")
        ends = {queue_id: relay.until_final(queue_id)["state"] for queue_id in queue_ids}
        assert {one for one, state in ends.items() if state == "cancelled"} == cancelled
        assert set(ends.values()) <= {"relayed", "cancelled"}
        arrived = Counter(one.addresses[0] for one in mx.envelopes)
        expected = {
            f"{number}@busy.test": 1
            for number, queue_id in enumerate(queue_ids)
            if queue_id not in cancelled
        }
        assert arrived == expected
        assert 0 < len(cancelled) < len(queue_ids), "there should be some of both"
        assert relay.queue() == []
        until("counted", lambda: relay.metric("relay_queue_entries") == 0)
        assert relay.metric("relay_queue_unaccounted") == 0
        assert relay.faults() == []
