"""Nodes without mailboxes: local mail that they accept waits for the node that has the mail root."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Any

import pytest

from relay.store.spool.postgres.maintenance import WITHOUT_NODE_S
from tests.support.long_tests import long
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.relay_process import WAIT_S, RelayProcess, until
from tests.support.remotes import Remotes

NewNode = Callable[..., RelayProcess]


@pytest.fixture
def node(server: PostgresServer, remotes: Remotes) -> Iterator[NewNode]:
    """Return a function that makes a relay on the spool of the test, not started."""
    url = server.create()
    with ExitStack() as stack:

        def node(name: str, **config: Any) -> RelayProcess:
            relay = remotes.relay(config={"spool": {"node": name}} | config)
            stack.callback(relay.close)
            relay.config["spool"]["url"] = url
            relay.write_config(relay.config)
            return relay

        yield node


def transport(node: NewNode, **config: Any) -> RelayProcess:
    """Start a node without mailboxes."""
    unused = {
        "observe": {"metrics": f"127.0.0.1:{free_port()}"},
        "mailboxes": {"root": "elsewhere/mail"},
    }
    relay = node("transport", **(unused | config))
    relay.options = ("--role", "transport")
    return relay.start()


def asked(relay: RelayProcess, path: str) -> tuple[int, str]:
    """Ask the listener of the metrics."""
    connection = HTTPConnection(relay.config["observe"]["metrics"], timeout=WAIT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def state(relay: RelayProcess, key: str) -> str:
    """Ask by the control socket."""
    return str(relay.cli_json("trace", key)["state"])


def test_local_mail_waits_for_the_node_with_the_mailboxes(remotes: Remotes, node: NewNode) -> None:
    replies = {"no@a.test": "550 5.1.1 no such user", "later@a.test": "451 4.2.0 later"}
    mx = remotes.start("a.test", rcpt=replies)
    one = transport(node)
    assert one.ready["http"] == []
    assert not (one.folder / "elsewhere").exists()
    assert not (one.folder / "state" / "no-mail-root").exists()
    local = one.submit("alice@example.test", ["bob@example.test"], b"Subject: waits\r\n\r\n")
    both = one.submit("alice@example.test", ["bob@example.test", "x@a.test", "no@a.test"])
    gone = one.submit("alice@example.test", ["dave@example.test"], b"Subject: gone\r\n\r\n")
    held = one.submit("alice@example.test", ["carol@example.test"], b"Subject: held\r\n\r\n")
    later = one.submit("alice@example.test", ["later@a.test"])
    until("the host has it", lambda: len(mx.envelopes) == 1)
    with one.smtp() as session:
        session.ehlo()
        session.mail("alice@example.test")
        assert session.rcpt("nobody@example.test")[0] == 550
    assert one.cli("queue", "cancel", gone).returncode == 0
    assert one.cli("queue", "hold", held).returncode == 0
    assert state(one, local) == "queued"
    status, text = asked(one, "/readyz")
    assert (status, text.startswith("ready")) == (200, True)
    assert "relay_commit_seconds" in asked(one, "/metrics")[1]
    assert one.cli("trace", "bob@example.test").returncode == 0
    assert one.cli("explain", "bob@example.test").returncode == 0

    two = node("two").start()
    two.until_final(local)
    two.until_final(both)
    looked = [relay.cli("queue", "list", "--login", "alice@*").stderr for relay in (one, two)]
    assert looked == ["relay queue: not looked at: submissions of main\n", ""]
    until("the report is there", lambda: len(two.subjects("alice")) == 1)
    assert two.subjects("bob") == ["hello", "waits"]
    assert two.queue()[0]["state"] in ("held", "deferred")
    assert two.cli("queue", "release", held).returncode == 0
    assert two.until_final(held)["state"] == "delivered"
    assert two.journey(gone)["state"] == "cancelled"
    until("it is not in flight", lambda: two.cli("queue", "hold", later).returncode == 0)
    mx.rcpt.clear()
    assert one.cli("queue", "release", later).returncode == 0
    two.until_state(later, "relayed")
    again = one.submit("alice@example.test", ["carol@example.test"], b"Subject: again\r\n\r\n")
    two.until_final(again)
    assert two.subjects("carol") == ["again", "held"]
    assert two.subjects("bob") == ["hello", "waits"]
    for relay in (one, two):
        assert relay.stop() == 0
        assert relay.faults() == []


def test_the_reports_of_a_transport_node_are_those_of_the_other_store(
    remotes: Remotes, node: NewNode
) -> None:
    """The node that holds another root does not take them; what a node does not use may be faulty."""
    remotes.start("a.test", rcpt={"no@a.test": "550 5.1.1 no such user"})
    unused = {"listen": ["127.0.0.1:0"], "tls": {"certificate": "none", "key": "none"}}
    one = transport(node, mailboxes={"store": "first"}, http=unused)
    second = node("second", mailboxes={"store": "second"}).start()
    queue_id = one.submit("alice@example.test", ["no@a.test"])
    second.until_state(queue_id, "failed")
    (report,) = [entry["id"] for entry in second.queue()]
    assert one.stop() == 0
    first = node("first", mailboxes={"store": "first"}).start()
    second.until_final(report)
    assert len(first.subjects("alice")) == 1
    assert second.subjects("alice") == []


def test_a_spool_in_a_file_has_no_such_node(tmp_path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RelayProcess, "new_spool_url", None)
        relay = RelayProcess()
    try:
        relay.options = ("--role", "transport")
        assert relay.start(wait=False).wait_end() == 78
        assert "spool.url" in relay.log
        assert "PostgreSQL" in relay.log
        assert not list((relay.folder / "state").iterdir())
        done = relay.cli("check", "--role", "transport")
        assert (done.returncode, "spool.url" in done.stderr) == (78, True)
    finally:
        relay.close()


def test_a_store_without_a_node_is_named(node: NewNode) -> None:
    one = transport(node, mailboxes={"store": "first"})
    queue_id = one.submit("alice@example.test", ["bob@example.test"])
    text = until("it is named", lambda: _without_node(one))
    without_node = 'no node has the mail root of the store "first"'
    assert text == f"ready; {without_node}: its local mail waits\n"
    assert f"Queued: {without_node}." in one.cli("trace", queue_id).stdout
    done = one.cli("check", "--role", "transport")
    assert f"warning: {without_node}: its local mail waits" in done.stderr
    holder = node("first", mailboxes={"store": "first"}).start()
    holder.until_final(queue_id)
    until("it is named no longer", lambda: not _without_node(one))


def _without_node(relay: RelayProcess) -> str:
    status, text = asked(relay, "/readyz")
    assert status == 200
    return text if "mail root" in text else ""


@long
def test_mail_of_a_store_without_a_node_expires_with_a_report(node: NewNode) -> None:
    """The report waits for the same mail root."""
    expires = {"delivery": {"expire_after": "2s"}}
    one = transport(node, mailboxes={"store": "first"}, **expires)
    queue_id = one.submit("alice@example.test", ["bob@example.test"])
    until(
        "it expires", lambda: state(one, queue_id) == "expired", timeout_s=WITHOUT_NODE_S + WAIT_S
    )
    (report,) = one.cli_json("queue", "list")
    assert [to["address"] for to in report["recipients"]] == ["alice@example.test"]
    holder = node("first", mailboxes={"store": "first"}, **expires).start()
    until("she has it", lambda: holder.subjects("alice"))
    assert holder.subjects("bob") == []
    assert one.stop() == 0
    assert one.faults() == []
