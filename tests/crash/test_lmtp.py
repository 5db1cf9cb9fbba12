"""LMTP cut or stalled after each reply while the relay is killed (-9).

A recipient whose 2xx reply was settled gets the message once, the others get it all the same. See
docs/design.md 7, invariants 1 and 2; RFC 2033 4.2.
"""

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import DROP, STALL
from tests.support.remotes import Remotes

pytestmark = pytest.mark.crash

COUNT = 3
FAULTS = {"stall": [STALL], "cut": [DROP, DROP]}
MESSAGES = {
    (name, place): [f"{name}-{place}-{number}@a.test" for number in range(COUNT)]
    for name in FAULTS
    for place in range(COUNT)
}


def has_replies_settled(relay: RelayProcess, queue_id: str, before: list[str]) -> bool:
    states = relay.states(queue_id)
    return all(states[one] == "delivered" for one in before)


def test_no_recipient_with_a_settled_reply_gets_the_message_again() -> None:
    """At each place one host stalls and another one hangs up; the relay is killed once they do."""
    dot = {
        people[place]: [*FAULTS[name], "250 2.1.5 saved"]
        for (name, place), people in MESSAGES.items()
    }
    with Remotes() as remotes:
        host = remotes.start("a.test", lmtp=True, dot=dot)
        next_hop = f"lmtp://{host.host}:{host.port}"
        routes = [{"domain": "a.test", "next_hop": next_hop}]
        with remotes.relay(config={"route": routes}) as relay:
            sent = {key: relay.submit("alice@example.test", MESSAGES[key]) for key in MESSAGES}
            for (name, place), people in MESSAGES.items():
                until(
                    f"{name}: {place} replies are settled",
                    lambda queue_id=sent[name, place], before=people[:place]: has_replies_settled(
                        relay, queue_id, before
                    ),
                )
            until("a stall at each place", lambda: sum(map(is_stalled, host.envelopes)) >= COUNT)
            settled = {
                one
                for queue_id in sent.values()
                for one, state in relay.states(queue_id).items()
                if state == "delivered"
            }
            relay.restart()
            for queue_id in sent.values():
                journey = relay.until_final(queue_id)
                assert journey["state"] == "delivered"
    for people in MESSAGES.values():
        for address in people:
            copies = host.received(address)
            assert len(copies) >= 1, address
            if address in settled:
                assert len(copies) == 1, address
    assert {one for (_, place), people in MESSAGES.items() for one in people[:place]} <= settled


def is_stalled(envelope) -> bool:
    return envelope.answered == 0 and envelope.addresses[0].startswith("stall")
