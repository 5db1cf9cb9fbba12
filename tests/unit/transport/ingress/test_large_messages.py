"""Messages over 1 MiB: the body is written to the spool while it arrives."""

from pathlib import Path

import pytest

from relay.base.message.content import BLOCK_BYTES, LargeContent, read_all
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import Selector, Spool
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.rule_files import read_rules
from tests.support.events import until
from tests.support.ingress import Client, Relay, inside
from tests.support.manual_clock import ManualClock
from tests.support.spools import spool_on

QUICK = SessionLimits(last_reply_s=0.2, large_bytes=1000)
BODY = b"0123456789abcdef\r\n" * 200
CONTENT = b"Subject: large\r\nMessage-ID: <m@example.test>\r\n\r\n" + BODY
RULES = """
[[rule]]
name = "tag"
when = { recipient = "x@b.test", size_over = "2 KiB" }
then = [ { subject_prefix = "[OUT]" } ]

[[rule]]
name = "exe"
when = { attachment_name = "*.exe" }
then = [ { reject = "5.7.1 No programs" } ]
"""
WITH_EXE = (
    b"Content-Type: multipart/mixed; boundary=q\r\n\r\n--q\r\n\r\n%s\r\n--q\r\n"
    b"Content-Disposition: attachment; filename=a.exe\r\n\r\nx\r\n--q--\r\n" % BODY
)


@pytest.fixture
def rules(tmp_path: Path) -> RuleSet:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "10-rules.toml").write_text(RULES)
    return read_rules(folder)


@pytest.fixture
async def spool(tmp_path: Path):
    async with spool_on(tmp_path / "spool.sqlite", ManualClock()) as spool:
        yield spool


@pytest.fixture
async def listening(spool: Spool, rules: RuleSet):
    """A listener with the real spool; it is stopped at the end."""
    relay = Relay(rules=rules)
    relay.spool = spool
    server = relay.server(limits=QUICK, trusted_networks=("127.0.0.0/8",))
    await server.start()
    yield relay, server
    while Client.opened:
        Client.opened.pop().writer.close()
    await server.drain(0.2)
    assert server.sessions == 0


async def begin(server, *recipients: str) -> Client:
    """Return a client that has received the 354."""
    client = await Client.connect(server.address)
    await client.reply()
    lines = ["EHLO client.test", "MAIL FROM:<alice@example.test>"]
    lines += [f"RCPT TO:<{one}>" for one in recipients]
    for line in lines:
        assert (await client.say(line))[:3] == "250"
    assert (await client.say("DATA"))[:3] == "354"
    return client


def names(spool: SqliteSpool) -> list[str]:
    return sorted(path.name for path in spool._files._directory.iterdir())


async def test_the_body_is_in_the_spool_once_for_all_edited_copies(listening, spool) -> None:
    relay, server = listening
    client = await begin(server, "bob@example.test", "x@b.test")
    client.writer.write(CONTENT)
    reply = await client.say(".")
    assert reply.startswith("250 2.0.0 Ok: queued as ")
    queue_id = reply.rpartition(" ")[2]
    await until(lambda: names(spool) == [f"{queue_id}-0"])
    found = {
        str(claim.next_hop): await spool.read_content(claim.content_id) for claim in relay.claims
    }
    assert all(isinstance(one, LargeContent) for one in found.values())
    whole = {hop: read_all(one).partition(b"Subject: ") for hop, one in found.items()}
    for received, _, _ in whole.values():
        assert received.startswith(b"Received: from client.test ([127.0.0.1])\r\n")
        assert queue_id.encode() in received
    assert whole["local"][2] == CONTENT.partition(b"Subject: ")[2]
    assert whole["mx:b.test"][2] == b"[OUT] " + CONTENT.partition(b"Subject: ")[2]
    (one, other) = await spool.queue_admin.list(Selector(all=True), limit=10)
    assert one["size"] == other["size"] == len(read_all(found["local"]))
    assert inside(server).shared.listener.budget.has(QUICK.buffered_bytes)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (WITH_EXE, "550 5.7.1 No programs"),
        (b"Received: x\r\n" * 60 + CONTENT, "250 "),
        (b"Received: x\r\n" * 101 + CONTENT, "554 5."),
        (CONTENT + b"\0\r\n", "550 5.5.2 "),
    ],
    ids=["an attachment", "Received", "a loop", "NUL"],
)
async def test_a_rejected_message_leaves_no_file(listening, spool, content, code) -> None:
    _, server = listening
    client = await begin(server, "bob@example.test")
    client.writer.write(content)
    assert (await client.say(".")).startswith(code)
    assert (await client.say("NOOP"))[:3] == "250"
    await until(lambda: not [one for one in names(spool) if one.startswith("arriving")])
    assert len(names(spool)) == (code == "250 ")
    assert inside(server).shared.listener.budget.has(QUICK.buffered_bytes)


async def test_a_disconnect_during_data_leaves_no_file(listening, spool) -> None:
    _, server = listening
    client = await begin(server, "bob@example.test")
    client.writer.write(CONTENT + BODY * (2 * BLOCK_BYTES // len(BODY)))
    await until(lambda: bool(names(spool)))
    client.reset()
    await until(lambda: not names(spool) and not server.sessions)
