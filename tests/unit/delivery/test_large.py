"""Large contents: from the file of the spool to hosts and mailboxes."""

import asyncio
import hashlib

import pytest

from relay.base.files import FileOctets
from relay.base.message.content import LARGE_BYTES, LargeContent, blocks
from relay.delivery import content_cache as contents_module
from relay.store.spool.types import EntryExtra
from tests.support.events import until
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

LINE = b"x" * 500 + b".\r\n.\r\n"


@pytest.fixture
def large(tmp_path):
    """`large()` is a content of some megabytes in a file."""

    def make(lines=10_000):
        path = tmp_path / "body"
        path.write_bytes(b"\r\n" + LINE * lines)
        body = FileOctets(path, 0, path.stat().st_size)
        assert body.size > LARGE_BYTES
        return LargeContent(b"Subject: large\r\nFrom: <alice@example.test>\r\n", (body,), False)

    return make


def digest(content):
    made = hashlib.sha256()
    for block in blocks(content):
        made.update(block)
    return made.hexdigest()


def body_files(delivery):
    return list((delivery.folder / "spool.sqlite-content").iterdir())


async def test_one_body_goes_to_hosts_and_mailboxes(delivery, large) -> None:
    delivery.table.mailboxes.add("bob@here.test")
    content = large()
    expected = digest(content)
    async with RemoteMx() as one, RemoteMx() as two:
        delivery.table.at("a.test", one)
        delivery.table.at("b.test", two)
        await delivery.start()
        queue_id = await delivery.send("x@a.test", "y@b.test", "bob@here.test", contents=(content,))
        journey = await delivery.done(queue_id)
        assert set(states(journey).values()) == {"relayed", "delivered"}
        assert {digest(mx.envelopes[0].content) for mx in (one, two)} == {expected}
    [delivered] = delivery.store.inboxes.values()
    assert isinstance(delivered, LargeContent)
    head = b"Return-Path: <alice@example.test>\r\nDelivered-To: bob@here.test\r\n"
    assert delivered.header == head + content.header
    assert delivered.body[0].size == content.body[0].size
    assert not delivery.scheduler.recorder.contents._held


@pytest.mark.parametrize("lost", [False, True])
async def test_the_bounce_of_a_large_message_reads_it_from_its_file(delivery, large, lost):
    told = []
    reports = delivery.reporter.reports

    def listening(kind, message, recipients, *, content):
        told.append(content)
        return reports(kind, message, recipients, content=content)

    delivery.reporter.reports = listening
    gate = asyncio.Event()
    async with delivery.host(replies={"DOT": "552 5.3.4 too large"}, gates={"DOT": gate}) as mx:
        queue_id = await delivery.send("x@a.test", contents=(large(),))
        await mx.reached("DOT")
        for path in body_files(delivery) if lost else ():
            path.unlink()
        gate.set()
        journey = await delivery.done(queue_id)
    assert outcomes(journey, "x@a.test") == ["failed"]
    [content] = told
    if lost:  # a report of a body that is gone could never be written
        assert b"could not be read" in content
    else:
        assert isinstance(content, LargeContent)
        assert content.header.startswith(b"Subject: large\r\n")


async def test_many_large_messages_do_not_wait_for_memory(delivery, large, monkeypatch) -> None:
    monkeypatch.setattr(contents_module, "LARGE_BYTES", 1)  # what is reserved before it is read
    gate = asyncio.Event()
    async with delivery.host(gates={"DOT": gate}) as mx:
        delivery.scheduler.recorder.contents._room.limit = 1000  # headers of all, and not one body
        ids = [await delivery.send(f"{n}@a.test", contents=(large(3_000),)) for n in range(4)]
        await until(lambda: len(mx.envelopes) >= 4)
        gate.set()
        for queue_id in ids:
            assert set(states(await delivery.done(queue_id)).values()) == {"relayed"}


async def test_a_stop_midway_releases_the_message(delivery, large) -> None:
    gate = asyncio.Event()
    async with delivery.host(gates={"CONTENT": gate}) as mx:
        queue_id = await delivery.send("x@a.test", contents=(large(50_000),))
        await mx.reached("DATA")
        await delivery.scheduler.drain(0.05)
        gate.set()
        journey = await delivery.spool.journey(queue_id)
        assert states(journey) == {"x@a.test": "queued"}
        assert outcomes(journey, "x@a.test") == []
        assert await delivery.spool.next_due_us(0) is not None
        await until(lambda: not mx.open)
        assert mx.envelopes == []


async def test_a_copy_that_an_alias_sends_outside_names_it(delivery, large) -> None:
    """RFC 9228: above all that was there."""
    content = large()
    async with delivery.host() as mx:
        extra = EntryExtra(delivered_to="team@here.test")
        queue_id = await delivery.send("x@a.test", contents=(content,), extra=extra)
        await delivery.done(queue_id)
    (envelope,) = mx.envelopes
    sent = b"".join(blocks(envelope.content))
    assert sent == b"Delivered-To: team@here.test\r\n" + b"".join(blocks(content))
    assert envelope.parameters["SIZE"] == str(len(sent))
