"""Quarantine by a rule, in a real relay: in Junk Email, or at another address; what is seen of it."""

import http.client
from contextlib import closing, suppress
from typing import Any

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

ALICE, BOB = "alice@example.test", "bob@example.test"
RULES = """
[[rule]]
name = "suspicious"
when = { subject = "junk*" }
then = [ { set_header = { name = "X-Tag", value = "yes" } }, { quarantine = true } ]

[[rule]]
name = "to the analysts"
when = { subject = "away*" }
then = [ { quarantine = "carol@example.test" } ]
"""
SECRET = ("suspicious", "analysts", "uarantine", "carol", "unk")  # what no sender may read


def letter(subject: str) -> bytes:
    return f"Subject: {subject}\r\n\r\nHello.\r\n".encode()


def submit(relay: RelayProcess, subject: str, *to: str) -> str:
    """Submit a message of which a report of success is wanted; return its queue id."""
    with relay.smtp() as session:
        session.ehlo("client.test")
        session.mail(ALICE)
        for one in to:
            session.rcpt(one, ["NOTIFY=SUCCESS,FAILURE,DELAY"])
        code, reply = session.data(letter(subject))
        assert code == 250
        return reply.decode().split()[-1]


def seen_by(relay: RelayProcess, token: str, key: str) -> str:
    return relay.graph("GET", f"/relay/v1/messages/{key}", token=token).body.decode()


def reports(relay: RelayProcess, subject: str) -> list[str]:
    return [one.as_string() for one in relay.maildir() if subject in str(one["subject"])]


def events_of(relay: RelayProcess, token: str) -> str:
    """Return the events of all messages so far, up to the first pause."""
    headers, found = {"Authorization": f"Bearer {token}"}, b""
    with closing(http.client.HTTPConnection(*relay.http, timeout=120)) as connection:
        connection.request("GET", "/relay/v1/events?after=0", headers=headers)
        with connection.getresponse() as response, suppress(TimeoutError):
            while block := response.read1():
                found += block
                connection.sock.settimeout(0.3)
    return found.decode()


def test_junk_email_has_the_copy_of_a_mailbox_and_its_sender_learns_nothing(
    remotes: Remotes, serve
) -> None:
    host = remotes.start("b.test")
    relay = serve(remotes, policies={"rules.toml": RULES})
    name = submit(relay, "junk one", BOB, "x@b.test")
    until("delivered", lambda: relay.states(name)[BOB] == "delivered")
    assert relay.subjects("bob", "Junk") == ["junk one"]
    assert relay.subjects("bob") == []
    (copy,) = relay.maildir("bob", "Junk")
    assert copy["x-tag"] == "yes"
    (shown,) = relay.messages("junkemail", token="bob")
    assert (shown["subject"], shown["isRead"]) == ("junk one", False)
    folder = relay.graph("GET", "/me/mailFolders/junkemail", token="bob").json()
    assert (folder["totalItemCount"], folder["unreadItemCount"]) == (1, 1)
    assert relay.messages("inbox", token="bob") == []
    # the operator sees why, the sender not
    journey = relay.journey(name)
    reasons = {one["address"]: (one["state"], one["reason"]) for one in journey["recipients"]}
    assert reasons == {
        BOB: ("delivered", 'quarantined by rule "suspicious" (Junk Email)'),
        "x@b.test": ("held", 'rule "suspicious": quarantine'),
    }
    trace = relay.cli("trace", name).stdout
    assert 'It was quarantined by rule "suspicious" (Junk Email).' in trace
    assert f'quarantined by rule "suspicious" (Junk Email): {BOB}' in trace
    (report,) = until("the report", lambda: reports(relay, "junk one"))
    assert BOB in report
    assert "Action: delivered" in report
    seen = seen_by(relay, "alice", name)
    for text in (seen, report, events_of(relay, "alice")):
        assert BOB in text
        assert [word for word in SECRET if word in text.replace("junk one", "")] == []
    assert "suspicious" in events_of(relay, OPERATOR)
    # held at b.test: for two days, in silence
    (held,) = relay.cli_json("queue", "list", "--state", "held")
    assert (held["rule"], held["reason"]) == ("suspicious", "quarantine")
    relay.cli("queue", "release", held["id"])
    assert received(host, "x@b.test")
    assert relay.faults() == []


def test_an_address_gets_the_copy_and_the_sender_sees_a_delivery(remotes: Remotes, serve) -> None:
    relay = serve(remotes, policies={"rules.toml": RULES})
    name = submit(relay, "away", BOB)
    until("carol's copy", lambda: relay.subjects("carol") == ["away"])
    assert relay.subjects("bob") == []
    journey: dict[str, Any] = relay.journey(name)
    (bob,) = journey["recipients"]
    why = 'quarantined by rule "to the analysts" (carol@example.test)'
    assert (journey["state"], bob["state"], bob["reason"]) == ("delivered", "delivered", why)
    (report,) = until("the report", lambda: reports(relay, "away"))
    assert "Action: delivered" in report
    for text in (seen_by(relay, "alice", name), report, events_of(relay, "alice")):
        assert [word for word in SECRET if word in text] == []
    assert "discarded" not in events_of(relay, "alice")  # the state after step 5
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.faults() == []
