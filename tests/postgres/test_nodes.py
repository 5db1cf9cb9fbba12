"""Several relays on one spool: each takes and delivers mail, and one may end at any time."""

import asyncio
import json
import signal
from collections import Counter
from typing import Any

import pytest

from tests.postgres.conftest import StartNode
from tests.support.event_source import ReceivedEvent, event_source
from tests.support.graph_client import message
from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

LEASE_S = 60  # and what a takeover takes


def test_nodes_share_one_queue(remotes: Remotes, node: StartNode) -> None:
    mx = remotes.start("a.test", rcpt={"later@a.test": "451 4.2.0 later"})
    one, two = node("one"), node("two")
    sent = [one.send_mail(to=["bob@example.test", "x@a.test"], subject="of one")]
    sent += [two.send_mail(to=["bob@example.test", "x@a.test"], subject="of two")]
    waiting = one.submit("alice@example.test", ["later@a.test"])
    for sender, identity in zip((one, two), sent, strict=True):
        sender.until_final(identity)
    until("both hosts have it", lambda: len(mx.envelopes) == 2)
    one.until_state(waiting, "deferred")
    assert one.subjects("bob") == ["of one"]
    assert two.subjects("bob") == ["of two"]
    until("both tell the same", lambda: two.journey(waiting) == one.journey(waiting))
    accepted, *_ = two.journey(waiting)["steps"]
    assert (accepted["step"], accepted["name"]) == (4, "accepted")
    assert accepted["detail"] == {"queue_id": waiting, "node": "one"}
    assert [entry["id"] for entry in two.queue()] == [waiting]
    until("held", lambda: two.cli("queue", "hold", waiting).returncode == 0)  # not in flight
    assert one.queue()[0]["state"] == "held"
    same = 'the stores "two" and "one" have the same local domain example.test'
    assert f"warning: {same}" in two.cli("check").stderr
    mx.rcpt.clear()
    assert one.cli("queue", "release", waiting).returncode == 0
    two.until_state(waiting, "relayed")
    mx.rcpt["later@a.test"] = "451 4.2.0 later"
    cancelled = one.submit("alice@example.test", ["later@a.test"])
    one.until_state(cancelled, "deferred")
    until("cancelled", lambda: two.cli("queue", "cancel", cancelled).returncode == 0)
    assert one.until_final(cancelled)["state"] == "cancelled"
    trace = one.cli("trace", waiting).stdout
    assert "[one]" in trace
    assert "[two]" in trace
    assert {step["detail"]["node"] for step in one.journey(sent[0])["steps"]} == {"one"}
    assert '"node":"two"' in two.log
    differ = "srs_key: not the same at one and at two"  # each has made its own
    until("the difference is said", lambda: differ in one.log)
    done = two.cli("check")
    checked = done.stdout + done.stderr
    assert f"nodes differ in what must be equal: {differ}" in checked
    for equal in ("rules", "routes", "DKIM keys"):
        assert f"{equal}: not the same" not in one.log + checked
    for relay in (one, two):
        until("counted", lambda relay=relay: relay.metric("relay_queue_entries") == 0)
        assert relay.metric("relay_queue_unaccounted") == 0
    assert states_of_nodes(two) == {"one": "alive", "two": "alive"}
    assert one.stop() == 0
    assert states_of_nodes(two) == {"one": "stopped", "two": "alive"}
    assert states_of_nodes(one) == {"one": "stopped", "two": "alive"}
    assert two.stop() == 0


def test_a_list_after_a_cursor_has_each_mail_of_all_nodes(node: StartNode) -> None:
    one, two = node("n_1"), node("n-1")  # in a pattern of SQL, "_" is any character

    def listed(at: RelayProcess, query: str) -> dict[str, Any]:
        path = f"/relay/v1/messages?kind=mail&{query}"
        answer: dict[str, Any] = at.graph("GET", path, token="operator").json()
        return answer

    cursor, found = listed(one, "limit=1")["cursor"], []
    for place, sender in ((one, two), (one, one), (one, two), (two, one), (two, two), (one, two)):
        sender.until_final(sender.send_mail(to=["bob@example.test"], subject=f"{len(found)}"))
        page = listed(place, f"after={cursor}&wait=20")
        cursor = page["cursor"]
        found += [mail["subject"] for mail in page["messages"]]
    assert found == ["0", "1", "2", "3", "4", "5"]


async def test_a_reader_of_events_goes_from_node_to_node(node: StartNode) -> None:
    one, two = node("one"), node("two")

    def send(sender: RelayProcess) -> None:
        sender.until_final(sender.send_mail(to=["bob@example.test"], subject="x"))

    await asyncio.to_thread(send, two)
    async with event_source(*one.http) as source:
        cursor = source.headers["x-relay-cursor"]
    found: list[ReceivedEvent] = []
    for place, sender in ((one, one), (two, one), (one, two), (two, two), (one, one)):
        await asyncio.to_thread(send, sender)
        async with event_source(*place.http, query={"after": cursor}) as source:
            found += await source.until_step(6)
        cursor = found[-1].id
    assert Counter(event.type for event in found)["gap"] == 1  # earlier steps of the second node
    told = [event.data for event in found if event.type == "message" and event.data["step"] != 4]
    assert Counter(data["step"] for data in told) == dict.fromkeys((1, 2, 3, 5, 6), 5)
    assert len({(data["submission_id"], data["step"]) for data in told}) == len(told)


def states_of_nodes(relay: RelayProcess) -> dict[str, str]:
    nodes = json.loads(relay.cli("queue", "stats", "--json").stdout)["nodes"]
    return {one["name"]: one["state"] for one in nodes}


def test_a_node_rejects_no_mail_for_a_domain_of_another_store(
    remotes: Remotes, node: StartNode
) -> None:
    one, two = node("one"), node("two", domains=["example.test", "two.test"])

    def answer(domain: str) -> str:
        with one.smtp(source="127.0.0.2") as stranger:
            stranger.ehlo("stranger.test")
            stranger.mail("ann@away.test")
            code, text = stranger.rcpt(f"bob@{domain}")
            return f"{code} {text.decode()}"

    assert answer("else.test").startswith("550 5.7.1 ")
    until("its domain is known", lambda: answer("two.test").startswith("450 4.4.4 "))
    two.config["mailboxes"]["domains"].append("later.test")
    two.write_config(two.config)
    assert two.cli("reload").returncode == 0
    until("a reload is seen", lambda: answer("later.test").startswith("450 4.4.4 "))
    remotes.dns.zone["two.test"] = {"MX": [f"10 {one.config['hostname']}."]}
    remotes.dns.zone["later.test"] = {"MX": ["10 mx.two.test."]}
    one.until_state(one.submit("alice@example.test", ["bob@two.test"]), "deferred")
    checked = one.cli("check").stderr
    assert "two.test is a domain of another store, and its MX records lead to this node" in checked
    assert "later.test is" not in checked
    assert two.stop() == 0
    assert one.restart() is one
    assert answer("later.test").startswith("450 4.4.4 ")


def test_of_two_mail_roots_that_start_at_once_one_has_the_name(node: StartNode) -> None:
    nodes = [node(name, wait=False, store="main") for name in ("one", "two")]
    until("one has ended", lambda: any(one.process_ended for one in nodes))
    (lost,) = (one for one in nodes if one.process_ended)
    assert lost.wait_end() == 78
    assert '[mailboxes] store = "second", not "main"' in lost.log
    (other,) = (one for one in nodes if one is not lost)
    until("the other one is ready", lambda: '"event":"ready"' in other.log)


def test_nodes_share_the_count_of_an_account(remotes: Remotes, node: StartNode) -> None:
    remotes.start("a.test")
    one, two = (node(name, limits={"recipients": "1000/1h"}) for name in ("one", "two"))

    def send(relay: RelayProcess, count: int) -> int:
        body = {"message": message(to=[f"{number}@a.test" for number in range(count)])}
        return relay.graph("POST", "/me/sendMail", body).status

    assert [send(one, 500), send(one, 499), send(two, 1)] == [202, 202, 202]
    until("the other has counted it", lambda: send(two, 1) == 429)  # long before its own 1000
    two.stop()
    two.start()
    assert [send(two, 1), send(one, 499)] == [429, 429]


def test_a_name_is_that_of_one_node(node: StartNode) -> None:
    """A copied state_dir does not change that, nor what the first node has."""
    one = node("one")
    two = node("one", wait=False, store="second")
    assert two.wait_end() == 78
    assert "another node has the name one since 20" in two.log
    assert "[spool] node" in two.log
    home = one.folder / "state" / "spool-owner"
    (two.folder / "state" / home.name).write_bytes(home.read_bytes())
    two.start(wait=False)
    assert two.wait_end() == 78
    assert two.log.count("another node has the name one since 20") == 2
    one.until_final(one.send_mail(to=["bob@example.test"], subject="goes on"))


@long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_dies_is_followed_by_another(
    remotes: Remotes, node: StartNode, how: signal.Signals
) -> None:
    """Its mail is delivered; only an attempt of which nobody knows how it ended may be repeated."""
    mx = remotes.start("a.test", gates={"DOT": remotes.gate()})
    one, two = node("one"), node("two")
    queue_id = one.submit("alice@example.test", ["x@a.test"])
    remotes.run(mx.reached("DOT"))
    assert one.process is not None
    one.process.send_signal(how)
    mx.gates.clear()
    until(
        "another node delivers it",
        lambda: two.journey(queue_id)["state"] == "relayed",
        timeout_s=LEASE_S,
    )
    assert two.metric("relay_spool_takeovers_total") == 1
    if how is signal.SIGSTOP:
        one.process.send_signal(signal.SIGCONT)
        until("it has joined again", lambda: "joined again" in one.log)
        again = one.submit("alice@example.test", ["y@a.test"])
        one.until_state(again, "relayed")
        assert one.stop() == 0
    assert two.metric("relay_queue_unaccounted") == 0
